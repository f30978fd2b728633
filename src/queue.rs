//! A sink's queue: the events that it wants and has not stored yet, in the order of the bus.
//!
//! ```text
//!   push ──▶ │ waiting: share share share share │ ──▶ take ──▶ in flight ──▶ settle
//! ```
//!
//! The queue belongs to the sink's spooler thread alone. It holds shares in memory, counted by
//! weight (an event's frame twice, for its JSON, and the structs) against one bound that covers
//! what waits and what is in flight. Invariants:
//!
//! - batches leave in the order in which events came, each event in one batch;
//! - a full queue drops what waits, oldest or newest first, and says how many events it dropped;
//!   what is in flight is never dropped;
//! - an event larger than the whole bound is still taken when the queue is empty, so that no event
//!   is undeliverable for its size.

use std::collections::VecDeque;
use std::time::Instant;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::batch::{Batch, BatchLimits};
use crate::event::{Event, Share};
use crate::units::ByteSize;

/// Where a sink's events wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpillMode {
    /// In memory only: what waits is lost when the daemon ends.
    #[default]
    Memory,
}

/// What to do with a new event when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Discard the oldest events that wait.
    #[default]
    DropOldest,
    /// Discard the new events.
    DropNewest,
}

/// How many events may wait for a sink, and where.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpillConfig {
    /// Where events wait.
    pub mode: SpillMode,
    /// Memory that the waiting events may take, their JSON included.
    pub max_bytes: ByteSize,
    /// What to do when they take more.
    pub when_full: WhenFull,
}

impl Default for SpillConfig {
    fn default() -> Self {
        let max_bytes = ByteSize::mib(64);
        SpillConfig { mode: SpillMode::Memory, max_bytes, when_full: WhenFull::DropOldest }
    }
}

/// The queue of one sink.
#[derive(Debug)]
pub struct Queue {
    id: u128,
    max_weight: usize,
    when_full: WhenFull,
    waiting: VecDeque<Waiting>,
    waiting_events: usize,
    waiting_bytes: usize,
    in_flight: VecDeque<InFlight>,
    /// Of what waits and what is in flight.
    weight: usize,
    /// The sequence of the next event that comes.
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    share: Share,
    since: Instant,
    bytes: usize,
}

#[derive(Debug)]
struct InFlight {
    first: u64,
    events: usize,
    weight: usize,
    received: u64,
}

impl Queue {
    /// An empty queue; `id` names it in the ids of its batches.
    pub fn new(id: u128, config: SpillConfig) -> Self {
        Queue {
            id,
            max_weight: config.max_bytes.as_usize(),
            when_full: config.when_full,
            waiting: VecDeque::new(),
            waiting_events: 0,
            waiting_bytes: 0,
            in_flight: VecDeque::new(),
            weight: 0,
            next: 0,
        }
    }

    /// Puts a share behind the others and returns how many events had to be dropped for it.
    pub fn push(&mut self, share: Share, now: Instant) -> usize {
        if share.is_empty() {
            return 0;
        }
        let weight = share.weight();
        let mut dropped = 0;
        if self.when_full == WhenFull::DropNewest && self.is_full(weight) {
            return share.len();
        }
        while self.is_full(weight) {
            let Some(oldest) = self.waiting.pop_front() else { break };
            dropped += oldest.share.len();
            self.forget_waiting(&oldest.share, oldest.bytes);
            self.weight -= oldest.share.weight();
        }
        let bytes = bytes_of(&share);
        self.weight += weight;
        self.waiting_events += share.len();
        self.waiting_bytes += bytes;
        self.next += share.len() as u64;
        self.waiting.push_back(Waiting { share, since: now, bytes });
        dropped
    }

    fn is_full(&self, more: usize) -> bool {
        self.weight > 0 && self.weight + more > self.max_weight
    }

    /// When the next batch is due; `None` while nothing waits.
    pub fn due(&self, limits: &BatchLimits) -> Option<Instant> {
        let oldest = self.waiting.front()?;
        Some(limits.due(self.waiting_events, self.waiting_bytes, oldest.since))
    }

    /// Takes the next batch, as large as the limits allow; `None` while nothing waits.
    pub fn take(&mut self, limits: &BatchLimits) -> Option<Batch> {
        let first = self.next - self.waiting_events as u64;
        let received = self.waiting.front()?.share.received();
        let (mut shares, mut events, mut bytes, mut weight) = (Vec::new(), 0, 0, 0);
        while let Some(waiting) = self.waiting.front_mut() {
            let room = limits.max_events - events;
            let mut fitting = 0;
            for event in waiting.share.events().take(room) {
                let len = event.frame().len();
                if events + fitting > 0 && bytes + len > limits.max_bytes {
                    break;
                }
                fitting += 1;
                bytes += len;
            }
            if fitting == 0 {
                break;
            }
            let share = waiting.share.split_front(fitting);
            let share_bytes = bytes_of(&share);
            let is_used_up = waiting.share.is_empty();
            waiting.bytes -= share_bytes;
            if is_used_up {
                self.waiting.pop_front();
            }
            self.forget_waiting(&share, share_bytes);
            events += fitting;
            weight += share.weight();
            shares.push(share);
            if !is_used_up {
                break;
            }
        }
        self.in_flight.push_back(InFlight { first, events, weight, received });
        Some(Batch::new(self.id, first, shares))
    }

    fn forget_waiting(&mut self, share: &Share, bytes: usize) {
        self.waiting_events -= share.len();
        self.waiting_bytes -= bytes;
    }

    /// The batch that begins at `first` is no longer in flight: stored, or given up.
    pub fn settle(&mut self, first: u64) {
        let Some(index) = self.in_flight.iter().position(|batch| batch.first == first) else {
            return;
        };
        if let Some(batch) = self.in_flight.remove(index) {
            self.weight -= batch.weight;
        }
    }

    /// Events that wait or are in flight.
    pub fn len(&self) -> usize {
        self.waiting_events + self.in_flight.iter().map(|batch| batch.events).sum::<usize>()
    }

    /// Whether nothing waits and nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty()
    }

    /// Events that wait.
    pub fn waiting(&self) -> usize {
        self.waiting_events
    }

    /// The memory that the queue is counted with, in bytes.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// When the oldest event of the queue was read, in microseconds since 1970.
    pub fn oldest(&self) -> Option<u64> {
        let in_flight = self.in_flight.iter().map(|batch| batch.received);
        in_flight.chain(self.waiting.front().map(|waiting| waiting.share.received())).min()
    }
}

fn bytes_of(share: &Share) -> usize {
    share.events().map(|event: &Event| event.frame().len()).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::event::{Chunk, Origin};

    fn share(numbers: std::ops::Range<u64>, size: usize) -> Share {
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        let events = numbers.map(|n| Event::new(&n.to_string(), &vec![0xc0; size])).collect();
        Share::all(Arc::new(Chunk { origin, received: 1, events }))
    }

    fn numbers(batch: &Batch) -> Vec<u64> {
        batch.events().map(|event| event.tag().parse().unwrap()).collect()
    }

    fn queue(max_bytes: u64, when_full: WhenFull) -> Queue {
        let max_bytes = ByteSize(max_bytes);
        Queue::new(1, SpillConfig { mode: SpillMode::Memory, max_bytes, when_full })
    }

    const ONE_SECOND: BatchLimits = BatchLimits::new(10, ByteSize(1000), 1000);

    #[derive(Debug, Clone)]
    enum Step {
        Push(u64, usize),
        Take,
        Settle,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..8u64, 0..300usize).prop_map(|(count, size)| Step::Push(count, size)),
            Just(Step::Take),
            Just(Step::Settle),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Against the simplest model: a list of numbers.
        #[test]
        fn every_event_leaves_once_in_order_or_is_counted(steps in steps(), newest: bool) {
            let when_full = if newest { WhenFull::DropNewest } else { WhenFull::DropOldest };
            let mut queue = queue(4000, when_full);
            let mut pushed = 0;
            let mut dropped = 0;
            let mut taken = Vec::new();
            let mut in_flight = Vec::new();
            for step in steps {
                match step {
                    Step::Push(count, size) => {
                        dropped += queue.push(share(pushed..pushed + count, size), Instant::now());
                        pushed += count;
                    }
                    Step::Take => {
                        let Some(batch) = queue.take(&ONE_SECOND) else {
                            prop_assert_eq!(queue.waiting(), 0);
                            continue;
                        };
                        prop_assert!(batch.len() <= 10);
                        in_flight.push(batch.first());
                        taken.extend(numbers(&batch));
                    }
                    Step::Settle => {
                        if let Some(first) = in_flight.pop() {
                            queue.settle(first);
                        }
                    }
                }
                prop_assert!(taken.is_sorted_by(|a, b| a < b));
                prop_assert_eq!(taken.len() + dropped + queue.waiting(), usize::try_from(pushed).unwrap());
            }
            for first in in_flight {
                queue.settle(first);
            }
            while let Some(batch) = queue.take(&ONE_SECOND) {
                queue.settle(batch.first());
            }
            prop_assert_eq!((queue.len(), queue.weight(), queue.oldest()), (0, 0, None));
        }
    }

    #[test]
    fn a_batch_is_due_when_full_or_after_its_linger() {
        let mut queue = queue(1 << 20, WhenFull::DropOldest);
        let now = Instant::now();
        assert_eq!(queue.due(&ONE_SECOND), None);
        queue.push(share(0..9, 1), now);
        assert_eq!(queue.due(&ONE_SECOND), Some(now + Duration::from_secs(1)));
        queue.push(share(9..10, 1), now);
        assert_eq!(queue.due(&ONE_SECOND), Some(now));
        assert_eq!(queue.take(&ONE_SECOND).unwrap().len(), 10);
        queue.push(share(10..11, 5000), now);
        assert_eq!(queue.due(&ONE_SECOND), Some(now));
    }

    #[test]
    fn a_full_queue_drops_what_waits_but_not_what_is_in_flight() {
        let weight = share(0..1, 100).weight() as u64;
        let mut queue = queue(weight * 4, WhenFull::DropOldest);
        queue.push(share(0..2, 100), Instant::now());
        let batch = queue.take(&ONE_SECOND).unwrap();
        queue.push(share(2..4, 100), Instant::now());
        assert_eq!(queue.push(share(4..6, 100), Instant::now()), 2);
        assert_eq!(numbers(&batch), [0, 1]);
        assert_eq!(numbers(&queue.take(&ONE_SECOND).unwrap()), [4, 5]);
    }

    #[test]
    fn an_event_over_the_bound_is_still_taken() {
        let mut queue = queue(10, WhenFull::DropNewest);
        assert_eq!(queue.push(share(0..1, 100), Instant::now()), 0);
        assert_eq!(queue.push(share(1..2, 100), Instant::now()), 1);
        assert_eq!(numbers(&queue.take(&ONE_SECOND).unwrap()), [0]);
    }
}
