//! `kafka`: events that the `kafka` sink of another saltern wrote to a topic, or that somebody else
//! did in the same form.
//!
//! Workers of one group share the partitions of the topics. A worker commits an offset only once
//! every sink that wants the events before it has them, stored or on disk, so that whoever reads a
//! partition next begins with what is not safe. Events may come twice therefore, with the same ids,
//! and are never left out.
//!
//! Here is what can be set, and what is asked to see whether it is right. `worker` reads messages,
//! `messages` makes events of them, `in_flight` knows which are safe, and `group` answers when
//! librdkafka calls back. `seen` shows how far it all is.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::metadata::MetadataTopic;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::{FrameSender, Source, SourceError};
use crate::client::kafka::{
    self as kafka_client, Brokers, Properties, Sasl, Tls, explained, not_made,
};
use crate::client::stream::Stream;

mod group;
mod in_flight;
mod messages;
mod seen;
mod worker;

use group::Context;
use messages::Format;
use worker::Worker;

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
    /// What the messages' values are.
    #[serde(default)]
    format: Format,
    /// TLS towards the brokers. Default: none.
    #[serde(default)]
    tls: Option<Tls>,
    /// Who logs in, and how. Default: nobody.
    #[serde(default)]
    sasl: Option<Sasl>,
    /// Settings of librdkafka by their own names.
    #[serde(default)]
    properties: Properties,
}

fn default_group() -> String {
    "saltern".to_owned()
}

/// Events from topics of Kafka.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written")]
pub(super) struct Config {
    /// For people.
    pub(super) brokers: String,
    pub(super) topics: Vec<String>,
    /// The topics that have names, at each broker.
    reads: Vec<Stream>,
    pub(super) format: Format,
    pub(super) client: ClientConfig,
}

impl Config {
    /// The topics that have names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.topics.iter().map(String::as_str).filter(|topic| !topic.starts_with('^'))
    }
}

/// What the source sets itself, and why nobody else may.
const OWNED: &[(&str, &str)] = &[
    ("group.id", "group"),
    ("enable.auto.commit", "the manual: offsets are committed when the events are safe"),
    ("enable.auto.offset.store", "the manual: offsets are committed when the events are safe"),
    ("enable.partition.eof", "the manual: the source never ends"),
    ("isolation.level", "the manual: what a transaction took back is no event"),
];

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
            // Few answers with many messages each, and at most so much waiting in memory.
            ("fetch.min.bytes", "16384"),
            ("fetch.wait.max.ms", "50"),
            ("queued.max.messages.kbytes", "16384"),
            // Topics that come later are found within this.
            ("topic.metadata.refresh.interval.ms", "30000"),
            // How often it is told how far the source is behind.
            ("statistics.interval.ms", "5000"),
        ] {
            client.set(name, value);
        }
        properties.set_on(&mut client, OWNED)?;
        let named = topics.iter().enumerate().filter(|(_, topic)| !topic.starts_with('^'));
        let reads = named
            .flat_map(|(n, topic)| brokers.topic(topic, &["topics".to_owned(), n.to_string()]))
            .collect();
        Ok(Config { brokers: brokers.to_string(), topics, reads, format, client })
    }
}

pub(super) struct Kafka;

impl Source for Kafka {
    const NAME: &'static str = "kafka";
    const ABOUT: &'static str = "events that a kafka sink wrote, shared by the workers of a group";
    type Config = Config;

    async fn run(
        config: &Config,
        sender: FrameSender,
        stop: CancellationToken,
    ) -> Result<(), SourceError> {
        let config = config.clone();
        let runtime = Handle::current();
        let reading = spawn_blocking(move || Worker::join(&config, sender, runtime)?.run(&stop));
        reading.await.unwrap_or_else(|error| {
            Err(SourceError::new("reading from Kafka, on a thread of its own", error))
        })
    }

    fn reads(config: &Config) -> Vec<Stream> {
        config.reads.clone()
    }

    async fn probe(config: &Config) -> Result<(), SourceError> {
        let config = config.clone();
        let asking = spawn_blocking(move || ask(&config));
        asking.await.unwrap_or_else(|error| Err(SourceError::new("asking Kafka", error)))
    }
}

/// How long the brokers may take to say what there is. Less than `saltern check` waits, so that
/// what librdkafka knows of the reason is told.
const PROBE: Duration = Duration::from_secs(5);

/// Asks the brokers for each topic that has a name.
fn ask(config: &Config) -> Result<(), SourceError> {
    let doing = |topic: &str| format!("asking {} for {topic}", config.brokers);
    let context = Context::new(Handle::current(), None);
    let client: BaseConsumer<Context> = config
        .client
        .create_with_context(context)
        .map_err(|error| SourceError::new(doing("anything"), not_made(&error, &config.client)))?;
    if config.names().next().is_none() {
        let answer = client.fetch_metadata(None, PROBE);
        return answer.map(drop).map_err(|error| {
            let cause = client.context().reason().unwrap_or_else(|| explained(&error));
            SourceError::new(doing("its topics"), cause)
        });
    }
    for name in config.names() {
        let failed = |error: &KafkaError| {
            let cause = client.context().reason().unwrap_or_else(|| explained(error));
            SourceError::new(doing(&format!("the topic `{name}`")), cause)
        };
        let metadata = client.fetch_metadata(Some(name), PROBE).map_err(|e| failed(&e))?;
        let found = metadata.topics().iter().find(|topic| topic.name() == name);
        if let Some(error) = found.and_then(MetadataTopic::error) {
            return Err(failed(&KafkaError::MetadataFetch(error.into())));
        }
    }
    Ok(())
}
