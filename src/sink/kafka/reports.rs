//! The fates of the messages of a batch: delivery reports, counted, and errors of brokers.
//!
//! librdkafka hands reports to a thread of the producer's own; the sink waits for the last of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};
use tokio::sync::Notify;

use crate::client::kafka as kafka_client;
use crate::sync::lock;

/// A message that was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed {
    /// Its event's place in the batch.
    pub(super) place: usize,
    /// The error.
    pub(super) code: RDKafkaErrorCode,
}

/// Something that librdkafka says of a broker.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) code: RDKafkaErrorCode,
    pub(super) reason: String,
}

/// The reports of one producer. There is one batch at a time.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// The number of messages without a report, plus one while more are to come.
    open: AtomicUsize,
    failed: Mutex<Vec<Failed>>,
    /// A message failed, or the last report is there.
    news: Notify,
    trouble: Mutex<Option<Trouble>>,
}

impl Reports {
    /// Messages of a batch are about to be sent.
    pub(super) fn begin(&self) {
        self.open.store(1, Ordering::SeqCst);
        locked(&self.failed).clear();
        *locked(&self.trouble) = None;
    }

    /// A report is to come.
    pub(super) fn expect_one(&self) {
        self.open.fetch_add(1, Ordering::SeqCst);
    }

    /// The expected message was not sent. Returns true if reports of others are to come.
    pub(super) fn expect_one_less(&self) -> bool {
        // The count includes this message and the one for more to come.
        self.open.fetch_sub(1, Ordering::SeqCst) > 2
    }

    /// The expected message could not be sent.
    pub(super) fn fail(&self, place: usize, code: RDKafkaErrorCode) {
        locked(&self.failed).push(Failed { place, code });
        self.settle_one();
        self.news.notify_one();
    }

    /// Waits for the last report after the last message; returns the messages that were not
    /// delivered. Calls `at_failure` if there are any, once or more.
    pub(super) async fn end(&self, at_failure: impl Fn()) -> Vec<Failed> {
        self.settle_one();
        while self.open.load(Ordering::SeqCst) > 0 {
            if !locked(&self.failed).is_empty() {
                at_failure();
            }
            self.news.notified().await;
        }
        std::mem::take(&mut locked(&self.failed))
    }

    /// The last error of a broker since the batch began.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        locked(&self.trouble).clone()
    }

    /// Notes an error of a broker.
    pub(super) fn say(&self, code: RDKafkaErrorCode, reason: &str) {
        let mut trouble = locked(&self.trouble);
        // "All are down" follows from the errors of the single brokers.
        if code != RDKafkaErrorCode::AllBrokersDown || trouble.is_none() {
            *trouble = Some(Trouble { code, reason: reason.to_owned() });
        }
    }

    fn settle_one(&self) {
        if self.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.news.notify_one();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    lock::hold(mutex)
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        kafka_client::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(code) = error.rdkafka_error_code() {
            self.say(code, reason);
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, place: usize) {
        match result {
            Ok(_) => self.settle_one(),
            Err((error, _)) => {
                self.fail(place, error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_report_ends_a_batch() {
        let reports = Reports::default();
        for _ in 0..2 {
            reports.begin();
            for _ in 0..3 {
                reports.expect_one();
            }
            reports.expect_one();
            assert!(reports.expect_one_less());
            reports.fail(1, RDKafkaErrorCode::MessageTimedOut);
            let (failed, ()) = tokio::join!(reports.end(|| {}), async {
                tokio::task::yield_now().await;
                reports.settle_one();
                reports.settle_one();
            });
            assert_eq!(failed, [Failed { place: 1, code: RDKafkaErrorCode::MessageTimedOut }]);
        }
    }

    #[test]
    fn the_cause_is_kept_over_what_follows_from_it() {
        let reports = Reports::default();
        for (code, reason) in [
            (RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down"),
            (RDKafkaErrorCode::Authentication, "wrong password"),
            (RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down"),
        ] {
            reports.say(code, reason);
        }
        assert_eq!(reports.trouble().unwrap().reason, "wrong password");
    }
}
