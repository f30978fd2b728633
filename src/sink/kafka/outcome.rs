//! What an error of Kafka's means for a batch.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{Producer, ThreadedProducer};

use super::reports::{Reports, Trouble};
use crate::kafka_client::explained;
use crate::sink::{Cause, SinkError};

/// What to do about an error; of several, the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// Not before the configuration, or the brokers' access lists, are others.
    Never,
    /// Another producer has this one's transactional id.
    Fenced,
    /// The same over a new producer: this one can do no more.
    Anew,
    /// The same later: a leader moved, brokers are gone, a disk is full.
    Later,
    /// The brokers will never take this message.
    Refused,
}

impl Outcome {
    pub(super) fn of(code: Code) -> Self {
        match code {
            Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord => Outcome::Refused,
            Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => Outcome::Fenced,
            Code::Fatal
            | Code::BrokerDestroy
            | Code::OutOfOrderSequenceNumber
            | Code::DuplicateSequenceNumber
            | Code::UnknownProducerId
            | Code::InvalidProducerIdMapping
            | Code::InvalidTransactionalState
            | Code::State
            | Code::Conflict
            | Code::Inconsistent
            | Code::GaplessGuarantee => Outcome::Anew,
            Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::SecurityDisabled
            | Code::InvalidTopic
            | Code::InvalidRequiredAcks
            | Code::InvalidTransactionTimeout
            | Code::UnsupportedCompressionType
            | Code::UnsupportedVersion
            | Code::UnsupportedFeature => Outcome::Never,
            _ => Outcome::Later,
        }
    }
}

/// The error for the engine. What was said of a broker explains an error better than that time ran
/// out; what broke the producer for good, better than what broke for it.
pub(super) fn sink_error(
    doing: impl Into<String>,
    error: KafkaError,
    producer: &ThreadedProducer<Reports>,
) -> SinkError {
    let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
    if let Some((fatal, reason)) = producer.client().fatal_error() {
        let cause = format!("{}: {reason}", explained(&KafkaError::Global(fatal)));
        return match Outcome::of(fatal) {
            Outcome::Never => SinkError::fatal(doing, cause),
            _ => SinkError::reconnect(doing, cause),
        };
    }
    let trouble = producer.context().trouble().filter(|_| is_silence(code));
    let (code, cause): (Code, Cause) = match trouble {
        Some(Trouble { code, reason }) => {
            (code, format!("{}: {reason}", explained(&KafkaError::Global(code))).into())
        }
        None => (code, explained(&error).into()),
    };
    match Outcome::of(code) {
        Outcome::Never => SinkError::fatal(doing, cause),
        Outcome::Anew | Outcome::Fenced => SinkError::reconnect(doing, cause),
        Outcome::Later | Outcome::Refused => SinkError::retry(doing, cause),
    }
}

/// Whether an error says no more than that nobody answered.
fn is_silence(code: Code) -> bool {
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::MessageTimedOut
            | Code::OperationTimedOut
            | Code::TimedOutQueue
    )
}
