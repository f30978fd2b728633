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

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::metadata::MetadataTopic;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::client::kafka::{explained, not_made};
use crate::client::stream::Stream;
use crate::source::contract::{Source, SourceError};
use crate::source::frame_sender::FrameSender;

mod group;
mod in_flight;
mod messages;
mod seen;
mod settings;
mod worker;

use group::Context;
use settings::Config;
use worker::Worker;

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
