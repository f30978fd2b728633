//! The settings of a source `kafka`.

use rdkafka::ClientConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use crate::client::kafka::{self as kafka_client, Brokers, KafkaTls, Owned, Properties, Sasl};
use crate::client::stream::Stream;
use crate::source::kafka::messages::Format;

/// Events from topics of Kafka, as an operator writes it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Written {
    /// Brokers to begin with, `HOST:PORT` each; they name the others.
    brokers: Brokers,
    /// Topics to read: names, or regular expressions that begin with `^`.
    topics: Vec<String>,
    /// The consumer group. Workers of one group share the topics; each group reads everything.
    #[serde(default = "default_group")]
    group: String,
    /// The form of the messages' values. Default: `auto`.
    #[serde(default)]
    format: Format,
    /// TLS towards the brokers. Default: none.
    #[serde(default)]
    tls: Option<KafkaTls>,
    /// The login. Default: none.
    #[serde(default)]
    sasl: Option<Sasl>,
    /// Settings of librdkafka by their own names. Default: none.
    #[serde(default, deserialize_with = "properties")]
    properties: Properties,
}

fn default_group() -> String {
    "saltern".to_owned()
}

/// Events from topics of Kafka.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written")]
pub(in crate::source) struct Config {
    /// For people.
    pub(super) brokers: String,
    pub(super) topics: Vec<String>,
    /// The topics that have names, at each broker.
    pub(super) reads: Vec<Stream>,
    pub(super) format: Format,
    pub(super) client: ClientConfig,
}

impl Config {
    /// The topics that have names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.topics.iter().map(String::as_str).filter(|topic| !topic.starts_with('^'))
    }
}

/// The properties that the source sets itself, and the reasons why nobody else may.
const OWNED: &[Owned] = &[
    ("group.id", "group"),
    ("enable.auto.commit", "the manual: offsets are committed when the events are safe"),
    ("enable.auto.offset.store", "the manual: offsets are committed when the events are safe"),
    ("enable.partition.eof", "the manual: the source never ends"),
    ("isolation.level", "the manual: what a transaction took back is no event"),
];

fn properties<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Properties, D::Error> {
    Properties::read(deserializer, OWNED)
}

impl TryFrom<Written> for Config {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { brokers, topics, group, format, tls, sasl, properties } = written;
        if topics.is_empty() || topics.iter().any(String::is_empty) {
            return Err("there is no topic; write topics: [salt.events]".to_owned());
        }
        let mut client = kafka_client::config(&brokers, tls.as_ref(), sasl.as_ref());
        for (name, value) in [
            ("group.id", group.as_str()),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", "read_committed"),
            // From here on `properties` may say otherwise.
            ("auto.offset.reset", "earliest"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            // Few answers with many messages each.
            ("fetch.min.bytes", "16384"),
            ("fetch.wait.max.ms", "50"),
            // Nothing more is asked of the brokers while so much waits in memory.
            ("queued.max.messages.kbytes", "16384"),
            // A partition that found the queue full asks again after this. The queue of 16 MiB is
            // read in far less than librdkafka's own second, and then the worker has nothing to do.
            ("fetch.queue.backoff.ms", "10"),
            // Topics that come later are found within this.
            ("topic.metadata.refresh.interval.ms", "30000"),
            // The interval at which the source's lag is measured.
            ("statistics.interval.ms", "5000"),
        ] {
            client.set(name, value);
        }
        properties.set_on(&mut client);
        let named = topics.iter().enumerate().filter(|(_, topic)| !topic.starts_with('^'));
        let reads = named
            .flat_map(|(n, topic)| brokers.topic(topic, &["topics".to_owned(), n.to_string()]))
            .collect();
        Ok(Config { brokers: brokers.to_string(), topics, reads, format, client })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::{Node, Problem};

    fn read(more: &str) -> Result<Config, Problem> {
        let text = format!("brokers: [127.0.0.1:9092]\ntopics: [salt.events]\n{more}");
        Node::parse(&text).unwrap().read()
    }

    #[test]
    fn properties_go_over_the_defaults_and_are_checked() {
        for (more, backoff, queued) in [
            ("", "10", "16384"),
            ("properties: {fetch.queue.backoff.ms: 250}", "250", "16384"),
            ("properties: {queued.max.messages.kbytes: 1024}", "10", "1024"),
        ] {
            let native = read(more).unwrap().client.create_native_config().unwrap();
            assert_eq!(native.get("fetch.queue.backoff.ms").unwrap(), backoff, "{more}");
            assert_eq!(native.get("queued.max.messages.kbytes").unwrap(), queued, "{more}");
        }
        for (more, says) in [
            ("properties: {fetch.queue.backoff.ms: soon}", "the property `fetch.queue.backoff.ms`"),
            ("properties: {group.id: another}", "see group"),
            ("properties: {enable.auto.commit: true}", "committed when the events are safe"),
        ] {
            let problem = read(more).unwrap_err();
            assert!(problem.message.contains(says), "{more}: {}", problem.message);
        }
    }
}
