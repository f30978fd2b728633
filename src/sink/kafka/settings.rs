//! The settings of the sink `kafka`, and librdkafka's configuration made of them.

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::message::{Format, Key, Topic};
use crate::client::kafka::{self as kafka_client, Brokers, KafkaTls, Owned, Properties, Sasl};
use crate::client::stream::Stream;

/// A topic of Kafka, or several.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Brokers to begin with, `HOST:PORT` each; they name the others.
    brokers: Brokers,
    /// The topic. `{kind}` in it stands for the event's kind (`job_return`), `{master}` for the id
    /// of its master.
    topic: Topic,
    /// The messages' key; messages with the same key stay in order. Default: `minion`.
    #[serde(default)]
    key: Key,
    /// The messages' value. Default: `json`.
    #[serde(default)]
    value: Format,
    /// The compression of messages. Default: `lz4`.
    #[serde(default)]
    compression: MessageCompression,
    /// Write each batch in a transaction, so that a reader with `isolation.level=read_committed`
    /// sees every event once. Default: false.
    #[serde(default)]
    transactional: bool,
    /// Create topics that are missing. Default: true.
    #[serde(default = "crate::units::yes")]
    create: bool,
    /// Partitions of a topic that is created. Default: the brokers' own setting.
    #[serde(default)]
    partitions: Option<u16>,
    /// Copies of a topic that is created. Default: the brokers' own setting.
    #[serde(default)]
    replication: Option<u8>,
    /// TLS towards the brokers. Default: none.
    #[serde(default)]
    tls: Option<KafkaTls>,
    /// The login at the brokers. Default: none.
    #[serde(default)]
    sasl: Option<Sasl>,
    /// Settings of librdkafka by their own names, for those without a setting here: `linger.ms:
    /// 5`, which is 20 otherwise, and 10 with `transactional`. Default: none.
    #[serde(default, deserialize_with = "properties")]
    properties: Properties,
}

/// A way to compress messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum MessageCompression {
    None,
    Gzip,
    Snappy,
    #[default]
    Lz4,
    Zstd,
}

impl MessageCompression {
    fn name(self) -> &'static str {
        match self {
            MessageCompression::None => "none",
            MessageCompression::Gzip => "gzip",
            MessageCompression::Snappy => "snappy",
            MessageCompression::Lz4 => "lz4",
            MessageCompression::Zstd => "zstd",
        }
    }
}

/// The treatment of a topic that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Create {
    /// Wait until somebody creates it.
    Never,
    /// Create it; -1 stands for the brokers' own setting.
    Missing { partitions: i32, replication: i32 },
}

/// The settings, checked.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Settings")]
#[schemars(with = "Settings")]
pub(crate) struct Config {
    pub(super) topic: Topic,
    pub(super) key: Key,
    pub(super) value: Format,
    pub(super) is_transactional: bool,
    pub(super) create: Create,
    /// The topic, if it has one name.
    pub(super) writes: Vec<Stream>,
    /// The settings that any client of the cluster needs.
    pub(super) client: ClientConfig,
    /// The settings that the producer needs, except the transactional id.
    pub(super) producer: ClientConfig,
}

impl Config {
    /// A sentence for `saltern check` where a password goes over the wire as it is.
    pub(super) fn shows_password(&self) -> Option<String> {
        let get = |property| self.client.get(property);
        let is_shown = get("sasl.mechanism") == Some("PLAIN")
            && get("security.protocol") == Some("sasl_plaintext");
        let says = "with `sasl.mechanism: PLAIN` and no `tls` everybody on the way can read the \
                    password; set `tls: {}`, or another mechanism";
        is_shown.then(|| says.to_owned())
    }
}

/// A message may be so large before it is compressed. Brokers take 1 MiB by default, compressed,
/// and end the connection at 100 MiB.
const LARGEST_MESSAGE: &str = "33554432";

/// Kibibytes that may wait in librdkafka: some batches of the default size.
const QUEUE_KIBIBYTES: &str = "65536";

/// Properties that have a setting of their own, or that the sink cannot do without.
const OWNED: &[Owned] = &[
    ("compression.type", "compression"),
    ("compression.codec", "compression"),
    ("transactional.id", "transactional"),
    ("delivery.report.only.error", "docs/sinks/kafka.md: every report is counted"),
    ("enable.gapless.guarantee", "docs/sinks/kafka.md: batches are tried again as a whole"),
];

/// Milliseconds that a message waits for others of its request. The next batch is behind, so this
/// costs nothing while there is load, and requests are full. A transaction ends with each batch, so
/// it waits for less.
fn linger(is_transactional: bool) -> &'static str {
    if is_transactional { "10" } else { "20" }
}

fn properties<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Properties, D::Error> {
    Properties::read(deserializer, OWNED)
}

impl TryFrom<Settings> for Config {
    type Error = String;

    fn try_from(settings: Settings) -> Result<Self, String> {
        let Settings { brokers, topic, key, value, compression, properties, .. } = settings;
        let mut client =
            kafka_client::config(&brokers, settings.tls.as_ref(), settings.sasl.as_ref());
        // Lines of librdkafka are logged as details; without this the crate `log` decides.
        client.set_log_level(RDKafkaLogLevel::Info);
        let mut producer = client.clone();
        producer
            .set("compression.type", compression.name())
            .set("enable.idempotence", "true")
            // Java's producers do so: a key then has one partition for all senders.
            .set("partitioner", "murmur2_random")
            .set("message.max.bytes", LARGEST_MESSAGE)
            .set("queue.buffering.max.kbytes", QUEUE_KIBIBYTES)
            // This holds unless the engine waits for less than twice as long.
            .set("message.timeout.ms", "30000")
            .set("socket.timeout.ms", "10000")
            .set("transaction.timeout.ms", "60000")
            .set("linger.ms", linger(settings.transactional))
            // Topics are created by us or not at all.
            .set("allow.auto.create.topics", "false");
        properties.set_on(&mut producer);
        let is_idempotent = producer.get("enable.idempotence") == Some("true");
        let acks = producer.get("acks").or(producer.get("request.required.acks"));
        if is_idempotent && acks.is_some_and(|acks| acks != "all" && acks != "-1") {
            let help = "set the property `enable.idempotence: false` with it";
            return Err(format!("`acks` other than `all` gives up idempotence; {help}"));
        }
        if !is_idempotent && settings.transactional {
            return Err("`transactional: true` needs `enable.idempotence: true`".to_owned());
        }
        let create = match settings.create {
            false => Create::Never,
            true => Create::Missing {
                partitions: settings.partitions.map_or(-1, i32::from),
                replication: settings.replication.map_or(-1, i32::from),
            },
        };
        let is_transactional = settings.transactional;
        let writes = topic.fixed().map(|name| brokers.topic(name, &["topic".to_owned()]));
        let writes = writes.unwrap_or_default();
        Ok(Config { topic, key, value, is_transactional, create, writes, client, producer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::{Node, Problem};

    fn read(more: &str) -> Result<Config, Problem> {
        let text = format!("brokers: [127.0.0.1:9092]\ntopic: salt.events\n{more}");
        Node::parse(&text).unwrap().read()
    }

    #[test]
    fn the_smallest_configuration() {
        let config = read("").unwrap();
        assert_eq!(config.topic.fixed(), Some("salt.events"));
        assert_eq!((config.key, config.value), (Key::Minion, Format::Json));
        assert_eq!(config.create, Create::Missing { partitions: -1, replication: -1 });
        let get = |name| config.producer.get(name);
        assert_eq!(get("bootstrap.servers"), Some("127.0.0.1:9092"));
        assert_eq!(
            (get("enable.idempotence"), get("compression.type")),
            (Some("true"), Some("lz4"))
        );
        config.producer.create_native_config().unwrap();
    }

    #[test]
    fn messages_wait_for_others_unless_properties_say_otherwise() {
        for (more, linger) in [
            ("", "20"),
            ("transactional: true", "10"),
            ("properties: {linger.ms: 2}", "2"),
            ("transactional: true\nproperties: {linger.ms: 2}", "2"),
        ] {
            assert_eq!(read(more).unwrap().producer.get("linger.ms"), Some(linger), "{more}");
        }
    }

    #[test]
    fn properties_pass_through_and_are_checked() {
        let more =
            "properties: {linger.ms: 5, acks: all, client.id: me, queue.buffering.max.kbytes: 99}";
        let config = read(more).unwrap();
        let native = config.producer.create_native_config().unwrap();
        for (name, value) in [
            ("linger.ms", "5"),
            ("acks", "-1"),
            ("client.id", "me"),
            ("queue.buffering.max.kbytes", "99"),
        ] {
            assert_eq!(native.get(name).unwrap(), value, "{name}");
        }
        for (more, says) in [
            ("properties: {lingr.ms: 20}", "lingr.ms"),
            ("properties: {linger.ms: soon}", "the property `linger.ms`"),
            ("properties: {bootstrap.servers: x}", "see brokers"),
            ("properties: {compression.type: lz4}", "see compression"),
            ("properties: {transactional.id: x}", "see transactional"),
            ("properties: {delivery.report.only.error: true}", "every report is counted"),
            ("properties: {acks: 1}", "enable.idempotence: false"),
            ("transactional: true\nproperties: {enable.idempotence: false}", "idempotence: true"),
        ] {
            let problem = read(more).unwrap_err();
            assert!(problem.message.contains(says), "{more}: {problem}");
            assert!(problem.place.is_some(), "{more}");
        }
        for (more, column) in [
            ("properties: {acks: all, foo.bar: a}", 25),
            ("properties: {acks: all, bootstrap.servers: x}", 25),
            ("properties: {linger.ms: soon}", 25),
        ] {
            let place = read(more).unwrap_err().place.unwrap();
            assert_eq!((place.line, place.column), (3, column), "{more}");
        }
        read("properties: {acks: 1, enable.idempotence: false}").unwrap();
    }

    #[test]
    fn a_password_that_everybody_can_read_is_told() {
        let sasl = "sasl: {mechanism: PLAIN, user: u, password: p}";
        let says = |more: &str| read(more).unwrap().shows_password();
        assert!(says(sasl).unwrap().contains("everybody on the way can read the password"));
        assert_eq!(says(&format!("{sasl}\ntls: {{}}")), None);
        assert_eq!(says("sasl: {user: u, password: p}"), None);
        assert_eq!(says(""), None);
    }

    #[test]
    fn mistakes_have_a_place() {
        for (more, line) in [("key: minions", 3), ("value: xml", 3), ("tls: {certs: x}", 3)] {
            assert_eq!(read(more).unwrap_err().place.unwrap().line, line, "{more}");
        }
        let text = "brokers: [127.0.0.1:9092]\ntopic: salt {kind}";
        let problem = Node::parse(text).unwrap().read::<Config>().unwrap_err();
        assert_eq!(problem.place.unwrap().line, 2);
    }
}
