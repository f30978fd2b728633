//! The messages that were read from Kafka and are not known to be safe yet, in the order in which
//! they were read.
//!
//! A partition's offset may be committed up to the first message that is not safe. Messages that
//! were read together are one *lot*. It has an end in each partition, and a receipt for each master
//! whose events are in it. Lots settle in order, so the offsets of a partition do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::sync::receipt::Receipt;

/// A partition of a topic.
pub(super) type Place = (Arc<str>, i32);

/// An offset for each of some partitions.
pub(super) type Offsets = BTreeMap<Place, i64>;

/// Messages that were read together and handed on.
#[derive(Debug)]
pub(super) struct Lot {
    receipts: Vec<Receipt>,
    /// Behind its last message in each partition.
    ends: Offsets,
    bytes: usize,
    is_kept: bool,
}

impl Lot {
    /// Messages up to these offsets, of so many bytes, which are safe when all the receipts say so.
    pub(super) fn new(receipts: Vec<Receipt>, ends: Offsets, bytes: usize) -> Self {
        Lot { receipts, ends, bytes, is_kept: true }
    }
}

/// The state of the oldest lot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Front {
    /// There is none: everything is safe.
    None,
    /// It is safe, and no longer in flight.
    Safe,
    /// It was not kept, so it must be read again.
    NotKept,
}

/// The lots, and the offsets that may be committed.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    lots: VecDeque<Lot>,
    bytes: usize,
    /// Partitions that this consumer reads.
    assigned: BTreeSet<Place>,
    /// The offsets up to which each of them is safe.
    safe: Offsets,
    /// More is safe than was committed.
    has_news: bool,
}

/// Lots in flight at the most; more than the channels of the pipeline hold.
const MAX_LOTS: usize = 64;

/// Bytes in flight at the most, as frames of the bus; the last lot goes over.
///
/// The sinks' queues hold the same frames and not copies of them. A queue counts a frame twice, for
/// its JSON, so all of them fit the memory that it has by default where there is no spill.
/// librdkafka's own queue is in front of this limit and has one of its own.
const MAX_BYTES: usize = 16 << 20;

impl InFlight {
    /// Nothing more should be read before something has settled.
    pub(super) fn is_full(&self) -> bool {
        self.lots.len() >= MAX_LOTS || self.bytes >= MAX_BYTES
    }

    /// Bytes in flight.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of partitions that are read.
    pub(super) fn partitions(&self) -> usize {
        self.assigned.len()
    }

    /// This partition is read.
    pub(super) fn reads(&self, topic: &str, partition: i32) -> bool {
        self.assigned.contains(&(topic.into(), partition))
    }

    /// These partitions are read from now on.
    pub(super) fn assign(&mut self, places: impl Iterator<Item = Place>) {
        self.assigned.extend(places);
    }

    /// These partitions are another's now: nothing is committed for them any more.
    pub(super) fn revoke(&mut self, places: impl Iterator<Item = Place>) {
        for place in places {
            self.assigned.remove(&place);
            self.safe.remove(&place);
            for lot in &mut self.lots {
                lot.ends.remove(&place);
            }
        }
    }

    /// A lot was handed on. This consumer must not commit partitions that were revoked meanwhile.
    pub(super) fn push(&mut self, mut lot: Lot) {
        lot.ends.retain(|place, _| self.assigned.contains(place));
        self.bytes += lot.bytes;
        self.lots.push_back(lot);
    }

    /// Waits until the fate of the oldest lot is known. Nothing is lost if the wait is cut short.
    pub(super) async fn settle(&mut self) -> Front {
        let Some(lot) = self.lots.front_mut() else { return Front::None };
        while let Some(receipt) = lot.receipts.last_mut() {
            lot.is_kept &= receipt.await.unwrap_or(false);
            lot.receipts.pop();
        }
        if !lot.is_kept {
            return Front::NotKept;
        }
        for (place, end) in std::mem::take(&mut lot.ends) {
            self.safe.insert(place, end);
            self.has_news = true;
        }
        self.bytes -= lot.bytes;
        self.lots.pop_front();
        Front::Safe
    }

    /// Waits until everything is safe, or something was not kept.
    pub(super) async fn settle_all(&mut self) -> Front {
        loop {
            match self.settle().await {
                Front::Safe => {}
                other => return other,
            }
        }
    }

    /// The offsets to commit, if there is news.
    pub(super) fn news(&mut self) -> Option<&Offsets> {
        std::mem::take(&mut self.has_news).then_some(&self.safe)
    }

    /// A commit did not work, so that there is news still.
    pub(super) fn not_committed(&mut self) {
        self.has_news = !self.safe.is_empty();
    }

    /// Forgets the messages that are in flight or not committed: they are read again.
    pub(super) fn forget(&mut self) {
        self.lots.clear();
        self.bytes = 0;
        self.has_news = false;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::sync::receipt::Claim;

    fn place(partition: i32) -> Place {
        ("t".into(), partition)
    }

    fn ends(ends: &[(i32, i64)]) -> Offsets {
        ends.iter().map(|(partition, end)| (place(*partition), *end)).collect()
    }

    fn in_flight() -> InFlight {
        let mut in_flight = InFlight::default();
        in_flight.assign([place(0), place(1)].into_iter());
        in_flight
    }

    fn committed(in_flight: &mut InFlight) -> Vec<(i32, i64)> {
        let offsets = in_flight.news().cloned().unwrap_or_default();
        offsets.into_iter().map(|((_, partition), next)| (partition, next)).collect()
    }

    #[test]
    fn lots_settle_in_order() {
        let mut in_flight = in_flight();
        let (first, receipt) = Claim::new();
        in_flight.push(Lot::new(vec![receipt], ends(&[(0, 5), (1, 8)]), 10));
        let (second, receipt) = Claim::new();
        in_flight.push(Lot::new(vec![receipt], ends(&[(0, 6)]), 10));
        second.honour();
        assert_eq!(in_flight.settle().now_or_never(), None);
        assert_eq!(in_flight.news(), None);
        first.honour();
        assert_eq!(in_flight.settle().now_or_never(), Some(Front::Safe));
        assert_eq!(committed(&mut in_flight), [(0, 5), (1, 8)]);
        assert_eq!(in_flight.settle_all().now_or_never(), Some(Front::None));
        assert_eq!(committed(&mut in_flight), [(0, 6), (1, 8)]);
        assert_eq!(in_flight.news(), None);
        in_flight.not_committed();
        assert_eq!(committed(&mut in_flight), [(0, 6), (1, 8)]);
    }

    #[test]
    fn a_lot_is_safe_when_all_its_masters_events_are() {
        let mut in_flight = in_flight();
        let (first, one) = Claim::new();
        let (second, other) = Claim::new();
        in_flight.push(Lot::new(vec![one, other], ends(&[(0, 2)]), 1));
        first.honour();
        assert_eq!(in_flight.settle().now_or_never(), None);
        drop(second);
        for _ in 0..2 {
            assert_eq!(in_flight.settle_all().now_or_never(), Some(Front::NotKept));
        }
        assert_eq!(in_flight.news(), None);
    }

    #[test]
    fn what_was_revoked_is_not_committed() {
        let mut in_flight = in_flight();
        let (claim, receipt) = Claim::new();
        in_flight.push(Lot::new(Vec::new(), ends(&[(0, 1), (1, 1)]), 1));
        in_flight.push(Lot::new(vec![receipt], ends(&[(0, 2), (1, 2)]), 1));
        assert_eq!(in_flight.settle().now_or_never(), Some(Front::Safe));
        in_flight.revoke(std::iter::once(place(1)));
        claim.honour();
        in_flight.push(Lot::new(Vec::new(), ends(&[(1, 3)]), 1));
        assert_eq!(in_flight.settle_all().now_or_never(), Some(Front::None));
        assert_eq!(committed(&mut in_flight), [(0, 2)]);
    }

    #[test]
    fn so_much_is_in_flight_and_no_more() {
        let mut in_flight = in_flight();
        for number in 0..64 {
            assert!(!in_flight.is_full(), "full with {number}");
            in_flight.push(Lot::new(vec![Claim::new().1], ends(&[]), 1));
        }
        assert!(in_flight.is_full());
        in_flight.forget();
        in_flight.push(Lot::new(Vec::new(), ends(&[]), MAX_BYTES));
        assert!(in_flight.is_full());
        assert_eq!(in_flight.settle_all().now_or_never(), Some(Front::None));
        assert!(!in_flight.is_full());
    }
}
