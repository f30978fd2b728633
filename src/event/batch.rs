//! Batches, and the limits at which one is due.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::chunk::Share;
use crate::event::{Authority, Event, EventId, Origin};
use crate::units::{ByteSize, Span};

/// The size of a batch, and the time that it may wait to fill. A key that is not given has the
/// kind's own default.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BatchConfig {
    /// Events in a batch, at the most.
    pub(crate) max_events: Option<u64>,
    /// Bytes of tags and payloads in a batch, at the most; a larger event is a batch of its own.
    pub(crate) max_bytes: Option<ByteSize>,
    /// The time for which a batch may wait to fill, from its first event on.
    pub(crate) linger: Option<Span>,
}

/// A [`BatchConfig`] with nothing left open.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Events at the most, at least one.
    pub(crate) max_events: usize,
    /// Bytes at the most.
    pub(crate) max_bytes: usize,
    /// The time to wait for more.
    pub(crate) linger: Duration,
}

impl BatchLimits {
    /// Limits of so many events, so many bytes, and a wait.
    pub const fn new(max_events: usize, max_bytes: ByteSize, linger: Span) -> Self {
        #[allow(clippy::cast_possible_truncation)] // a constant of a few megabytes
        let max_bytes = max_bytes.0 as usize;
        BatchLimits { max_events, max_bytes, linger: linger.0 }
    }

    /// These limits where the configuration is silent.
    pub(crate) fn or(self, config: BatchConfig) -> Self {
        BatchLimits {
            max_events: config
                .max_events
                .map_or(self.max_events, |n| usize::try_from(n).unwrap_or(usize::MAX).max(1)),
            max_bytes: config.max_bytes.map_or(self.max_bytes, ByteSize::as_usize),
            linger: config.linger.map_or(self.linger, |span| span.0),
        }
    }

    /// These limits as they are written.
    pub(crate) fn written(self) -> BatchConfig {
        BatchConfig {
            max_events: Some(self.max_events as u64),
            max_bytes: Some(ByteSize(self.max_bytes as u64)),
            linger: Some(Span(self.linger)),
        }
    }

    /// The time at which a batch is due, of `events` of `bytes` that wait, the first since `since`.
    pub(crate) fn due(&self, events: usize, bytes: usize, since: Instant) -> Instant {
        if events >= self.max_events || bytes >= self.max_bytes {
            return since;
        }
        since + self.linger
    }
}

/// The id of a batch; the same for every try of it, also after a restart. Shown as 32 hexadecimal
/// digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BatchId(pub(crate) u128);

impl BatchId {
    /// The id of the batch of `len` events from `first` on in the queue that `queue` names, the
    /// first of them `event`, read at `received`. The event and the time keep ids apart where the
    /// same sequences name other events. That happens in a queue that lost its files, and if tried
    /// events have moved up behind dropped ones.
    fn of(queue: u128, first: u64, len: usize, received: u64, event: EventId) -> Self {
        let mut bytes = queue.to_be_bytes().to_vec();
        for number in [first, len as u64, received] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(event.0.to_be_bytes());
        BatchId(xxhash_rust::xxh3::xxh3_128(&bytes))
    }
}

impl BatchId {
    /// The id of the part of a batch that has the events at these places.
    fn part(self, places: impl Iterator<Item = usize>) -> Self {
        let mut bytes = self.0.to_be_bytes().to_vec();
        for place in places {
            bytes.extend((place as u64).to_be_bytes());
        }
        BatchId(xxhash_rust::xxh3::xxh3_128(&bytes))
    }
}

impl std::fmt::Display for BatchId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Events that one sink writes together, in the order of the bus.
#[derive(Debug, Clone)]
pub struct Batch {
    queue: u128,
    first: u64,
    shares: Vec<Share>,
    len: usize,
    was_begun: bool,
    /// The id, where it does not follow from the place in the queue: that of a part.
    own_id: Option<BatchId>,
}

impl Batch {
    /// A batch of these shares, which stand in the queue `queue` from `first` on.
    pub fn new(queue: u128, first: u64, shares: Vec<Share>) -> Self {
        let len = shares.iter().map(Share::len).sum();
        Batch { queue, first, shares, len, was_begun: false, own_id: None }
    }

    /// The same batch, begun by a process, or a spooler, before this one.
    pub(crate) fn begun_before(self) -> Self {
        Batch { was_begun: true, ..self }
    }

    /// It was begun before this process, or this spooler.
    pub(crate) fn was_begun(&self) -> bool {
        self.was_begun
    }

    /// The batch's id, for stores that drop known batches.
    pub(crate) fn id(&self) -> BatchId {
        if let Some(id) = self.own_id {
            return id;
        }
        let received = self.shares.first().map_or(0, Share::received);
        let event = self.events().next().map_or(EventId(0), Event::id);
        BatchId::of(self.queue, self.first, self.len, received, event)
    }

    /// The place of the first event in its queue.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The parts that the batch is made of.
    pub(crate) fn shares(&self) -> impl Iterator<Item = &Share> {
        self.shares.iter()
    }

    /// The bytes of the events' frames.
    pub(crate) fn bytes(&self) -> usize {
        self.shares.iter().map(Share::bytes).sum()
    }

    /// The number of events; never none.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// There are no events.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The events, in order.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.shares.iter().flat_map(Share::events)
    }

    /// The events with their origin, authority and time of reading.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.shares.iter().flat_map(|share| {
            let (origin, received) = (share.origin().as_ref(), share.received());
            let authority = share.authority();
            share.events().map(move |event| Entry { event, origin, received, authority })
        })
    }

    /// The events as a JSON list.
    pub(crate) fn json_list(&self) -> Vec<u8> {
        let mut list = vec![b'['];
        for (place, event) in self.events().enumerate() {
            if place > 0 {
                list.extend_from_slice(b", ");
            }
            event.write_object(&mut list);
        }
        list.push(b']');
        list
    }

    /// The events at these places, as a batch of their own. Its id follows from that of the whole
    /// and the places.
    pub(crate) fn part(&self, places: &BTreeSet<usize>) -> Batch {
        let mut shares = Vec::new();
        let mut before = 0;
        for share in &self.shares {
            let end = before + share.len();
            let picked: Vec<_> = places.range(before..end).map(|place| place - before).collect();
            if !picked.is_empty() {
                shares.push(share.pick(&picked));
            }
            before = end;
        }
        let own_id = Some(self.id().part(places.iter().copied()));
        let len = shares.iter().map(Share::len).sum();
        Batch { shares, len, own_id, ..*self }
    }

    /// Two batches of half the events each; the second is empty if there is one event.
    pub(crate) fn split(mut self) -> (Batch, Batch) {
        let ids = self
            .own_id
            .map(|id| (id.part(0..self.len.div_ceil(2)), id.part(self.len.div_ceil(2)..self.len)));
        let middle = self.len.div_ceil(2);
        let mut front = Vec::new();
        let mut wanted = middle;
        while let Some(share) = self.shares.first_mut().filter(|_| wanted > 0) {
            let part = share.split_front(wanted);
            wanted -= part.len();
            front.push(part);
            if share.is_empty() {
                self.shares.remove(0);
            }
        }
        let mut back = Batch::new(self.queue, self.first + middle as u64, self.shares);
        let mut front = Batch::new(self.queue, self.first, front);
        (front.own_id, back.own_id) = ids.unzip();
        match self.was_begun {
            true => (front.begun_before(), back.begun_before()),
            false => (front, back),
        }
    }
}

/// An event of a batch, with its origin, authority and time.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The event.
    pub event: &'a Event,
    /// Its origin.
    pub origin: &'a Origin,
    /// The time when it was read, in microseconds since 1970.
    pub received: u64,
    /// The authority that vouches for it.
    pub authority: Authority,
}

#[cfg(test)]
impl<'a> Entry<'a> {
    /// The entry of an event that was read in 2026, off the bus `bus` of the master `m`.
    pub(crate) fn of(event: &'a Event, authority: Authority) -> Self {
        static ORIGIN: std::sync::LazyLock<Origin> =
            std::sync::LazyLock::new(|| Origin { source: "bus".into(), master_id: "m".into() });
        Entry { event, origin: &ORIGIN, received: 1_795_304_177_692_890, authority }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::event::batch::*;
    use crate::event::chunk::Chunk;

    fn share(tags: &[&str]) -> Share {
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        let events = tags.iter().map(|tag| Event::new(tag, b"\x80")).collect();
        Share::all(Arc::new(Chunk::new(origin, 1, events)))
    }

    #[test]
    fn halves_keep_order_and_have_ids_of_their_own() {
        let batch = Batch::new(7, 100, vec![share(&["a", "b"]), share(&["c"]), share(&["d", "e"])]);
        let id = batch.id();
        assert_eq!(batch.clone().id(), id);
        let (front, back) = batch.split();
        let tags = |batch: &Batch| batch.events().map(Event::tag).collect::<String>();
        assert_eq!((tags(&front).as_str(), tags(&back).as_str()), ("abc", "de"));
        let event = Event::new("d", b"\x80").id();
        assert_eq!(back.id(), BatchId::of(7, 103, 2, 1, event));
        assert_ne!(front.id(), id);
        let (only, none) = back.split().0.split();
        assert_eq!((only.len(), none.len()), (1, 0));
    }
}
