//! `kafka`: events that the [`kafka` sink](../sinks/kafka.md) of another saltern wrote to a topic,
//! or that somebody else did in the same form. Workers of one group share the partitions of the
//! topics; each group reads everything. `config/collector.yaml` and `config/worker.yaml` are the
//! two sides, [Scaling](../scaling.md) says how many of each.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   events: {kafka: {brokers: [kafka-1:9092, kafka-2:9092], topics: [salt.events]}}
//! sinks:
//!   archive:
//!     rawfile_json: {filename: /var/log/saltern/events.jsonl}
//!     spill: {mode: memory}
//! ```
//!
//! # What is read
//!
//! A value is an object of `tag` and `data`. The headers `event_id` and `master` hold the event's
//! id and its master. Without them the id is the hash of the message's event, and the master is the
//! source's. An event that went through JSON keeps the id that it had on the bus; its dates and
//! bytes are strings. Only committed messages are read (`isolation.level` is `read_committed`).
//! `auto.offset.reset` is `earliest` unless it is set among `properties`. A new topic that a
//! regular expression matches is found within 30 s.
//!
//! Parts of a value that JSON has no form for are replaced and counted ([What JSON
//! lacks](../sources.md#what-json-lacks)). A daemon whose own sink writes a topic that it reads is
//! refused. `saltern check --connect` asks the brokers for each topic.
//!
//! # How far it is behind
//!
//! `saltern_source_kafka_lag_messages`, every 5 s, is the messages behind the commits in the
//! partitions that this worker reads. Where the group has not committed yet, it is the messages
//! behind those read. The marks of transactions are messages too, so one a partition remains.
//! `saltern_source_kafka_in_flight_bytes` and `saltern_source_kafka_partitions` stand beside it.
//!
//! # Guarantee
//!
//! An offset is committed when every sink that wants the events before it has them: on disk with
//! `spill.mode` `durable`, stored with `memory`, either with `overflow`. If a worker is killed,
//! another reads the rest. So events may come twice, with the same ids, and are never left out.
//! Before a partition goes to another worker, and at a stop, the worker waits up to 10 s for its
//! messages in flight ([Memory](#memory)). Events that a full queue dropped are not
//! committed: they are counted as dropped, and read again after 0.5 s to 30 s. With `mode: durable`
//! a full queue drops events that *are* committed. So let workers have `mode: memory`, where Kafka
//! is the disk, or `when_full: block`.
//!
//! # Memory
//!
//! A message is in one of three places, each with a limit of its own:
//!
//! 1. librdkafka's queue, of messages that were fetched and not read yet. While it has room the
//!    brokers are asked for more: until it holds 16 MiB of keys and values as they are without
//!    compression (`queued.max.messages.kbytes` among `properties`), or 100 000 messages
//!    (`queued.min.messages`). It goes over by what one answer holds. That is for each partition up
//!    to 1 MiB as it is compressed (`max.partition.fetch.bytes`), times what a batch shrinks by;
//!    lower it where memory is short. A message that is larger raises it. A partition that found
//!    the queue full asks again after 10 ms (`fetch.queue.backoff.ms`).
//! 2. Messages in flight, which were read and which not every sink has kept yet: 16 MiB and one lot
//!    more, or 64 lots. A lot is up to 1000 messages, or 1 MiB and one message. They count as the
//!    frames that the bus would carry.
//! 3. The sinks' queues (`spill.memory`). With `spill.mode` `memory` they hold the frames that are
//!    in flight, which all sinks share, and their JSON. With `durable` an event on disk is not in
//!    flight any more: the queue of a sink that is down fills up, and the worker reads on.
//!
//! # Failures
//!
//! * no broker can be reached → tried again; Kafka keeps what comes meanwhile →
//!   `saltern_source_connected` is 0, `/readyz` names the source
//! * a message is no event (no tag, neither JSON nor msgpack) → it is passed over → it is counted
//!   as a bad frame, and logged the first time
//!
//! # Inside
//!
//! Here are the settings, and the questions that check them. `worker` reads messages, `messages`
//! makes events of them, `in_flight` knows which are safe, and `group` answers when librdkafka
//! calls back. `seen` shows how far it all is.

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

/// The time that the brokers may take to list topics. It is less than `saltern check` waits, so
/// that librdkafka's reason is shown.
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
