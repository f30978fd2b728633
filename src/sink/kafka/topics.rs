//! Topics that are known to exist, and the making of missing ones.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{Producer, ThreadedProducer};
use rdkafka::types::RDKafkaRespErr;
use tokio::runtime::Handle;
use tracing::info;

use super::outcome::sink_error;
use super::reports::Reports;
use super::settings::Create;
use crate::client::kafka::ANSWER;
use crate::sink::contract::WriteError;

/// The time to block for the brokers' metadata; the engine asks again. Nothing stops us meanwhile,
/// so it is short.
pub(super) const LOOK: Duration = Duration::from_secs(5);

/// The time that a new topic may take to get leaders before that is asked for again.
const LEADERS: Duration = Duration::from_secs(5);

/// The topics that the sink writes to.
#[derive(Debug, Clone, Default)]
pub(super) struct Topics(Arc<HashSet<String>>);

impl Topics {
    pub(super) fn knows(&self, topic: &str) -> bool {
        self.0.contains(topic)
    }

    /// Asks for all topics again before the next batch: one is gone.
    pub(super) fn forget(&mut self) {
        self.0 = Arc::default();
    }

    /// Sees that a topic is there; makes it if that is allowed. Blocks.
    pub(super) fn ensure(
        &mut self,
        topic: &str,
        producer: &ThreadedProducer<Reports>,
        client: &ClientConfig,
        create: Create,
    ) -> Result<(), WriteError> {
        let looking = || format!("looking for the topic {topic}");
        match is_there(topic, producer) {
            Ok(true) => {}
            Ok(false) => match create {
                Create::Never => {
                    let cause = "there is no such topic: create it, or set `create: true`";
                    return Err(WriteError::retry(looking(), cause));
                }
                Create::Missing { partitions, replication } => {
                    make(topic, partitions, replication, producer, client)?;
                }
            },
            Err(error) => return Err(sink_error(looking(), error, producer)),
        }
        Arc::make_mut(&mut self.0).insert(topic.to_owned());
        Ok(())
    }
}

fn is_there(topic: &str, producer: &ThreadedProducer<Reports>) -> Result<bool, KafkaError> {
    let metadata = producer.client().fetch_metadata(Some(topic), LOOK)?;
    match metadata.topics().first().and_then(rdkafka::metadata::MetadataTopic::error) {
        None | Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => Ok(true),
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => Ok(false),
        Some(error) => Err(KafkaError::MetadataFetch(error.into())),
    }
}

fn make(
    topic: &str,
    partitions: i32,
    replication: i32,
    producer: &ThreadedProducer<Reports>,
    client: &ClientConfig,
) -> Result<(), WriteError> {
    let doing = || format!("creating the topic {topic}");
    let failed = |error| sink_error(doing(), error, producer);
    let admin: AdminClient<DefaultClientContext> = client.create().map_err(failed)?;
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
    let options =
        AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(LEADERS));
    let answer = Handle::current().block_on(admin.create_topics([&new], &options));
    for result in answer.map_err(failed)? {
        match result {
            Ok(_) => info!(topic, "the topic was created"),
            // Another writer was faster, or its leaders take their time.
            Err((_, Code::TopicAlreadyExists | Code::RequestTimedOut)) => {}
            Err((_, code @ (Code::InvalidReplicationFactor | Code::InvalidPartitions))) => {
                let cause = format!("{code}; look at `partitions` and `replication`");
                return Err(WriteError::retry(doing(), cause));
            }
            Err((_, code)) => return Err(failed(KafkaError::Global(code))),
        }
    }
    Ok(())
}
