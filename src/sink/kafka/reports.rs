//! The context of a producer: its flights, and errors of brokers.
//!
//! librdkafka hands reports to a thread of the producer's own; the sink waits for the last of them.

use std::sync::{Arc, Mutex};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};

use super::flight::{Failed, Flight, Flights};
use crate::client::kafka as kafka_client;
use crate::sync::lock;

/// Something that librdkafka says of a broker.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) code: RDKafkaErrorCode,
    pub(super) reason: String,
}

/// The reports of one producer.
#[derive(Debug, Default)]
pub(super) struct Reports {
    flights: Arc<Flights>,
    trouble: Mutex<Option<Trouble>>,
    /// Held while messages are handed over ahead; true once the producer is about to be dropped.
    gate: Mutex<bool>,
}

impl Reports {
    pub(super) fn flights(&self) -> &Arc<Flights> {
        &self.flights
    }

    /// Hands over messages ahead, unless the producer is about to be dropped.
    pub(super) fn ahead<T>(&self, hand_over: impl FnOnce() -> T) -> Option<T> {
        let is_closed = lock::hold(&self.gate);
        (!*is_closed).then(hand_over)
    }

    /// Waits until nobody hands over messages ahead, and lets nobody any more. Blocks.
    pub(super) fn close(&self) {
        self.flights.disturb();
        *lock::hold(&self.gate) = true;
    }

    /// The last error of a broker since it was forgotten.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        lock::hold(&self.trouble).clone()
    }

    /// Waits for the last report of a flight, as [`Flight::end`] does. A flight without failures
    /// ends the errors of brokers: they are mended. A batch that was begun ahead is not begun anew,
    /// so an old error would else explain a silence of today.
    pub(super) async fn end(&self, flight: Flight, at_failure: impl Fn()) -> Vec<Failed> {
        let failed = flight.end(at_failure).await;
        if failed.is_empty() {
            self.forget_trouble();
        }
        failed
    }

    /// Forgets errors of brokers: another batch is written.
    pub(super) fn forget_trouble(&self) {
        *lock::hold(&self.trouble) = None;
    }

    /// Notes an error of a broker.
    pub(super) fn say(&self, code: RDKafkaErrorCode, reason: &str) {
        let mut trouble = lock::hold(&self.trouble);
        // "All are down" follows from the errors of the single brokers.
        if code != RDKafkaErrorCode::AllBrokersDown || trouble.is_none() {
            *trouble = Some(Trouble { code, reason: reason.to_owned() });
        }
    }
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

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let failed = result.as_ref().err();
        let code = failed.map(|(error, _)| error.rdkafka_error_code());
        self.flights.report(number, code.map(|code| code.unwrap_or(RDKafkaErrorCode::Fail)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc::{self, RecvTimeoutError};
    use std::thread;
    use std::time::Duration;

    use super::*;

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

    #[tokio::test]
    async fn a_batch_that_is_delivered_ends_the_errors_of_brokers() {
        let reports = Reports::default();
        for failure in [Some(RDKafkaErrorCode::MessageTimedOut), None] {
            reports.say(RDKafkaErrorCode::Authentication, "wrong password");
            let mut flight = reports.flights().begin(1, true);
            flight.handed_over(0);
            reports.flights().report(flight.number(0), failure);
            reports.end(flight, || {}).await;
            assert_eq!(reports.trouble().is_some(), failure.is_some(), "{failure:?}");
        }
    }

    #[test]
    fn a_producer_is_dropped_after_the_last_message_ahead() {
        let reports = Reports::default();
        let flight = reports.flights().begin(1, true);
        let has_begun = Barrier::new(2);
        let (closed, close) = mpsc::sync_channel(1);
        thread::scope(|scope| {
            let (reports, has_begun) = (&reports, &has_begun);
            let ahead = scope.spawn(move || {
                reports.ahead(|| {
                    has_begun.wait();
                    while !flight.is_disturbed() {
                        thread::yield_now();
                    }
                    // A `close` that does not wait would end meanwhile.
                    close.recv_timeout(Duration::from_millis(50))
                })
            });
            has_begun.wait();
            reports.close();
            // Nobody may listen any more.
            let _ = closed.send(());
            assert_eq!(ahead.join().unwrap(), Some(Err(RecvTimeoutError::Timeout)));
        });
        assert_eq!(reports.ahead(|| ()), None);
    }
}
