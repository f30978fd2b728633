//! The meaning of an error of Kafka's for a batch.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{Producer, ThreadedProducer};

use super::reports::{Reports, Trouble};
use crate::client::kafka::explained;
use crate::sink::contract::{Cause, WriteError};

/// The consequence of an error; of several, the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// It works only after a change of the configuration, or of the brokers' access lists.
    Never,
    /// Another producer has this one's transactional id.
    Fenced,
    /// It works over a new producer: this one can do no more.
    Anew,
    /// It works later: a leader moved, brokers are gone, a disk is full.
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

/// The error for the engine. An error of a broker explains more than a timeout does, and the error
/// that broke the producer for good more than the errors that followed from it.
pub(super) fn sink_error(
    doing: impl Into<String>,
    error: KafkaError,
    producer: &ThreadedProducer<Reports>,
) -> WriteError {
    let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
    if let Some((fatal, reason)) = producer.client().fatal_error() {
        let cause = format!("{}: {reason}", explained(&KafkaError::Global(fatal)));
        return match Outcome::of(fatal) {
            Outcome::Never => WriteError::fatal(doing, cause),
            _ => WriteError::reconnect(doing, cause),
        };
    }
    let trouble = producer.context().trouble().filter(|_| is_silence(code));
    let (code, cause): (Code, Cause) = match trouble {
        Some(Trouble { code, reason }) => {
            let code = if is_tls(code, &reason) { Code::SSL } else { code };
            (code, format!("{}: {reason}", explained(&KafkaError::Global(code))).into())
        }
        None => (code, explained(&error).into()),
    };
    match Outcome::of(code) {
        Outcome::Never => WriteError::fatal(doing, cause),
        Outcome::Anew | Outcome::Fenced => WriteError::reconnect(doing, cause),
        Outcome::Later | Outcome::Refused => WriteError::retry(doing, cause),
    }
}

/// True if TLS failed. librdkafka calls it a failure of the transport where OpenSSL finds it while
/// reading or writing.
fn is_tls(code: Code, reason: &str) -> bool {
    code == Code::SSL || code == Code::BrokerTransportFailure && reason.contains("SSL routines")
}

/// An error says no more than that nobody answered.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_class() {
        for (outcome, codes) in [
            (Outcome::Refused, &[Code::MessageSizeTooLarge, Code::InvalidRecord][..]),
            (
                Outcome::Later,
                &[
                    Code::NotLeaderForPartition,
                    Code::LeaderNotAvailable,
                    Code::NotEnoughReplicas,
                    Code::RequestTimedOut,
                    Code::MessageTimedOut,
                    Code::BrokerTransportFailure,
                    Code::AllBrokersDown,
                    Code::UnknownTopicOrPartition,
                    Code::KafkaStorageError,
                    Code::CoordinatorNotAvailable,
                    Code::ConcurrentTransactions,
                    Code::SSL,
                    Code::Resolve,
                ],
            ),
            (Outcome::Anew, &[Code::Fatal, Code::OutOfOrderSequenceNumber, Code::State]),
            (Outcome::Fenced, &[Code::Fenced, Code::ProducerFenced, Code::InvalidProducerEpoch]),
            (
                Outcome::Never,
                &[
                    Code::Authentication,
                    Code::TopicAuthorizationFailed,
                    Code::TransactionalIdAuthorizationFailed,
                    Code::InvalidTopic,
                ],
            ),
        ] {
            for code in codes {
                assert_eq!(Outcome::of(*code), outcome, "{code}");
            }
        }
    }

    fn class(said: &[(Code, &str)], code: Code) -> (&'static str, String) {
        let producer: ThreadedProducer<Reports> =
            rdkafka::ClientConfig::new().create_with_context(Reports::default()).unwrap();
        for (code, reason) in said {
            producer.context().say(*code, reason);
        }
        let error = sink_error("writing", KafkaError::MessageProduction(code), &producer);
        (error.label(), error.chain())
    }

    #[test]
    fn what_a_broker_said_explains_a_silence() {
        let said = [(Code::Authentication, "wrong password"), (Code::AllBrokersDown, "1/1")];
        let (label, text) = class(&said, Code::MessageTimedOut);
        assert_eq!(label, "fatal");
        assert!(text.contains("wrong password"), "{text}");
        assert_eq!(class(&said, Code::NotLeaderForPartition).0, "retry");
        assert_eq!(class(&[], Code::MessageTimedOut).0, "retry");
        assert_eq!(class(&[], Code::OutOfOrderSequenceNumber).0, "reconnect");
        assert_eq!(class(&[], Code::TopicAuthorizationFailed).0, "fatal");
    }
}
