//! Batches on their way, and the counts of their reports.
//!
//! A flight is what is handed over of one batch at one time: all of it, or a part that is sent
//! again. Two may be open: the one whose write waits for its last report, and behind it the next
//! batch, whose messages are handed over meanwhile.
//!
//! A message has a number, which comes back with its report: the flight's first number plus the
//! event's place in the batch. No two open flights share one, and numbers go round. So a report
//! finds its flight, and that of a flight that was dropped finds none.
//!
//! Messages of a batch go out in order, and batches too. A flight that was begun ahead keeps to
//! that only as long as nothing before it fails, and nothing is sent again after it. Else it is
//! disturbed: it takes no more messages, and its batch is sent again from the first one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::Notify;

use crate::sync::lock;

/// A message that was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed {
    /// Its event's place in the batch.
    pub(super) place: usize,
    /// The error.
    pub(super) code: RDKafkaErrorCode,
}

/// The flights of one producer.
#[derive(Debug, Default)]
pub(super) struct Flights {
    open: Mutex<Open>,
    /// A message failed, or a last report is there.
    news: Notify,
}

#[derive(Debug, Default)]
struct Open {
    /// The first number of the next flight.
    next: usize,
    /// The oldest is the first.
    flights: Vec<Count>,
}

/// The reports of a flight.
#[derive(Debug)]
struct Count {
    first: usize,
    /// The number of events of its batch.
    len: usize,
    /// Another may be begun behind it.
    leads: bool,
    reported: usize,
    /// The number of messages, once the last is handed over.
    sent: Option<usize>,
    failed: Vec<Failed>,
    is_disturbed: Arc<AtomicBool>,
}

/// A batch of which some messages are handed over. Nobody waits for its reports once it is dropped.
#[derive(Debug)]
pub(crate) struct Flight {
    flights: Arc<Flights>,
    first: usize,
    /// The place of the first event that is not handed over.
    pub(super) next: usize,
    /// The number of messages that are.
    sent: usize,
    is_disturbed: Arc<AtomicBool>,
}

impl Flights {
    /// Begins a flight of a batch of so many events. Those that were begun ahead are disturbed,
    /// since its messages should have gone out before theirs.
    pub(super) fn begin(self: &Arc<Self>, len: usize, leads: bool) -> Flight {
        let mut open = lock::hold(&self.open);
        open.flights.iter().for_each(Count::disturb);
        self.add(&mut open, len, leads)
    }

    /// Begins the flight of the next batch behind the one that waits for its reports; `None` if
    /// there is none, or some of it is not handed over yet, or some of it failed.
    pub(super) fn begin_ahead(self: &Arc<Self>, len: usize) -> Option<Flight> {
        let mut open = lock::hold(&self.open);
        let [before] = &*open.flights else { return None };
        let is_well = before.leads && before.sent.is_some() && before.failed.is_empty();
        is_well.then(|| self.add(&mut open, len, true))
    }

    /// Nothing more is to be handed over.
    pub(super) fn disturb(&self) {
        lock::hold(&self.open).flights.iter().for_each(Count::disturb);
    }

    fn add(self: &Arc<Self>, open: &mut Open, len: usize, leads: bool) -> Flight {
        let first = open.next;
        // A flight is known by its first number.
        open.next = first.wrapping_add(len.max(1));
        let is_disturbed = Arc::new(AtomicBool::new(false));
        let flight = Flight {
            flights: Arc::clone(self),
            first,
            next: 0,
            sent: 0,
            is_disturbed: Arc::clone(&is_disturbed),
        };
        let (reported, sent, failed) = (0, None, Vec::new());
        open.flights.push(Count { first, len, leads, reported, sent, failed, is_disturbed });
        flight
    }

    /// The report of the message of this number; with a code if it was not delivered.
    pub(super) fn report(&self, number: usize, failed: Option<RDKafkaErrorCode>) {
        let mut open = lock::hold(&self.open);
        let mut later = open
            .flights
            .iter_mut()
            .skip_while(|flight| number.wrapping_sub(flight.first) >= flight.len);
        // It was dropped.
        let Some(flight) = later.next() else { return };
        flight.reported += 1;
        if let Some(code) = failed {
            let place = number.wrapping_sub(flight.first);
            flight.failed.push(Failed { place, code });
            later.for_each(|flight| flight.disturb());
        } else if !flight.is_done() {
            return;
        }
        drop(open);
        self.news.notify_one();
    }
}

impl Count {
    fn is_done(&self) -> bool {
        self.sent == Some(self.reported)
    }

    fn disturb(&self) {
        self.is_disturbed.store(true, Ordering::Relaxed);
    }
}

impl Flight {
    /// The number of the message of the event at this place.
    pub(super) fn number(&self, place: usize) -> usize {
        self.first.wrapping_add(place)
    }

    /// The message of the event at this place is handed over, and its report is to come.
    pub(super) fn handed_over(&mut self, place: usize) {
        self.sent += 1;
        self.next = place + 1;
    }

    /// The message of the event at this place cannot be handed over.
    pub(super) fn fail(&mut self, place: usize, code: RDKafkaErrorCode) {
        self.handed_over(place);
        self.flights.report(self.number(place), Some(code));
    }

    /// Messages of the batch before have failed, or are sent again.
    pub(super) fn is_disturbed(&self) -> bool {
        self.is_disturbed.load(Ordering::Relaxed)
    }

    /// It is one of these.
    pub(super) fn is_of(&self, flights: &Arc<Flights>) -> bool {
        Arc::ptr_eq(&self.flights, flights)
    }

    /// Waits for the last report after the last message; returns the messages that were not
    /// delivered. Calls `at_failure` if there are any, once or more.
    pub(super) async fn end(self, at_failure: impl Fn()) -> Vec<Failed> {
        loop {
            let has_failed = {
                let mut open = lock::hold(&self.flights.open);
                let mut flights = open.flights.iter_mut().enumerate();
                let Some((at, flight)) = flights.find(|(_, flight)| flight.first == self.first)
                else {
                    return Vec::new();
                };
                flight.sent = Some(self.sent);
                if flight.is_done() {
                    // Nobody may see it without its failures.
                    return open.flights.remove(at).failed;
                }
                !flight.failed.is_empty()
            };
            if has_failed {
                at_failure();
            }
            self.flights.news.notified().await;
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut open = lock::hold(&self.flights.open);
        open.flights.retain(|flight| flight.first != self.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMED_OUT: RDKafkaErrorCode = RDKafkaErrorCode::MessageTimedOut;

    fn hand_over(flight: &mut Flight, places: std::ops::Range<usize>) -> Vec<usize> {
        places
            .map(|place| {
                flight.handed_over(place);
                flight.number(place)
            })
            .collect()
    }

    async fn failed(flight: Flight) -> Vec<Failed> {
        flight.end(|| {}).await
    }

    #[tokio::test]
    async fn the_last_report_ends_a_batch() {
        let flights = Arc::new(Flights::default());
        for _ in 0..2 {
            let mut flight = flights.begin(4, true);
            let numbers = hand_over(&mut flight, 0..3);
            flight.fail(3, TIMED_OUT);
            flights.report(numbers[1], Some(RDKafkaErrorCode::QueueFull));
            let (failed, ()) = tokio::join!(failed(flight), async {
                tokio::task::yield_now().await;
                flights.report(numbers[0], None);
                flights.report(numbers[2], None);
            });
            let codes: Vec<_> = failed.iter().map(|failed| (failed.place, failed.code)).collect();
            assert_eq!(codes, [(3, TIMED_OUT), (1, RDKafkaErrorCode::QueueFull)]);
        }
    }

    /// Reports of both come mixed, and each flight ends with its own last one.
    #[tokio::test]
    async fn two_flights_are_counted_apart() {
        let flights = Arc::new(Flights::default());
        assert!(flights.begin_ahead(2).is_none(), "nothing is before it");
        let mut first = flights.begin(2, true);
        let of_first = hand_over(&mut first, 0..2);
        assert!(flights.begin_ahead(2).is_none(), "more of the first is to come");
        let mut ending = Box::pin(failed(first));
        assert!(futures_util::poll!(&mut ending).is_pending());
        let mut second = flights.begin_ahead(2).unwrap();
        assert!(flights.begin_ahead(2).is_none(), "there are two");
        let of_second = hand_over(&mut second, 0..2);
        flights.report(of_second[1], None);
        flights.report(of_first[0], None);
        flights.report(of_second[0], None);
        assert!(futures_util::poll!(&mut ending).is_pending());
        flights.report(of_first[1], None);
        assert_eq!(ending.await, []);
        assert!(!second.is_disturbed());
        assert_eq!(failed(second).await, []);
    }

    #[tokio::test]
    async fn a_failure_disturbs_what_is_behind_it() {
        let flights = Arc::new(Flights::default());
        let mut first = flights.begin(2, true);
        let of_first = hand_over(&mut first, 0..2);
        let mut ending = Box::pin(failed(first));
        assert!(futures_util::poll!(&mut ending).is_pending());
        let mut second = flights.begin_ahead(1).unwrap();
        let of_second = hand_over(&mut second, 0..1);
        flights.report(of_second[0], Some(TIMED_OUT));
        assert!(!second.is_disturbed(), "nothing before it has failed");
        flights.report(of_first[0], Some(TIMED_OUT));
        assert!(second.is_disturbed());
        drop(second);
        assert!(flights.begin_ahead(1).is_none(), "the first has failed");
        flights.report(of_first[1], None);
        assert_eq!(ending.await, [Failed { place: 0, code: TIMED_OUT }]);
    }

    #[tokio::test]
    async fn what_is_sent_again_disturbs_what_was_begun_ahead() {
        let flights = Arc::new(Flights::default());
        let mut first = flights.begin(1, true);
        let of_first = hand_over(&mut first, 0..1);
        let mut ending = Box::pin(failed(first));
        assert!(futures_util::poll!(&mut ending).is_pending());
        let second = flights.begin_ahead(1).unwrap();
        flights.report(of_first[0], None);
        ending.await;
        let mut again = flights.begin(1, false);
        assert!(second.is_disturbed());
        drop(second);
        let of_again = hand_over(&mut again, 0..1);
        let mut ending = Box::pin(failed(again));
        assert!(futures_util::poll!(&mut ending).is_pending());
        assert!(flights.begin_ahead(1).is_none(), "more may be sent again");
        flights.report(of_again[0], None);
        ending.await;
    }

    /// Also where the numbers go round.
    #[tokio::test]
    async fn a_late_report_of_a_dropped_flight_is_nobodys() {
        for next in [0, usize::MAX - 1, usize::MAX, usize::MAX - 4] {
            let flights = Arc::new(Flights::default());
            flights.open.lock().unwrap().next = next;
            let mut first = flights.begin(3, true);
            let of_first = hand_over(&mut first, 0..3);
            drop(first);
            let mut second = flights.begin(3, true);
            let of_second = hand_over(&mut second, 0..3);
            for number in &of_first {
                assert!(!of_second.contains(number));
                flights.report(*number, Some(TIMED_OUT));
            }
            let mut ending = Box::pin(failed(second));
            assert!(futures_util::poll!(&mut ending).is_pending());
            flights.report(of_second[0], None);
            flights.report(of_second[2], Some(TIMED_OUT));
            assert!(futures_util::poll!(&mut ending).is_pending());
            flights.report(of_second[1], None);
            assert_eq!(ending.await, [Failed { place: 2, code: TIMED_OUT }]);
        }
    }

    /// A write that is cut off leaves nothing behind.
    #[tokio::test]
    async fn a_wait_that_is_cut_off_drops_its_flight() {
        let flights = Arc::new(Flights::default());
        let mut flight = flights.begin(1, true);
        hand_over(&mut flight, 0..1);
        let mut ending = Box::pin(failed(flight));
        assert!(futures_util::poll!(&mut ending).is_pending());
        drop(ending);
        assert!(flights.open.lock().unwrap().flights.is_empty());
    }
}
