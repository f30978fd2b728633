//! The chunks that events travel in, and a sink's share of a chunk.
//!
//! A [`Chunk`] is what the dispatcher made of one read of a source. Sinks share it by `Arc` and
//! hold a [`Share`] of it each: the events that their filter took. Their bytes are summed up once,
//! since every sink's queue asks for the sum again and again. Asking the events would fetch each of
//! them into another processor's cache.

use std::sync::Arc;

use crate::event::{Authority, Event, Origin};

/// Events that were read together, in the order of the bus.
#[derive(Debug)]
pub struct Chunk {
    /// Their origin.
    pub(crate) origin: Arc<Origin>,
    /// The time when they were read, in microseconds since 1970.
    pub(crate) received: u64,
    /// The authority that vouches for them.
    pub(crate) authority: Authority,
    /// The events.
    pub events: Vec<Event>,
    /// Bytes of the frames before each event, and behind the last.
    bytes_before: Vec<usize>,
}

/// Running sums of the events' frames, from 0 on.
fn running_bytes<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<usize> {
    let sums = events.scan(0, |sum, event| {
        *sum += event.frame().len();
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}

impl Chunk {
    fn event(&self, place: u32) -> Option<&Event> {
        self.events.get(usize::try_from(place).ok()?)
    }

    /// A chunk of these events, for which only the bus vouches.
    pub fn new(origin: Arc<Origin>, received: u64, events: Vec<Event>) -> Self {
        let bytes_before = running_bytes(events.iter());
        Chunk { origin, received, authority: Authority::Bus, events, bytes_before }
    }

    /// The same chunk, with this authority for its events.
    pub(crate) fn vouched_for_by(self, authority: Authority) -> Self {
        Chunk { authority, ..self }
    }

    /// The chunk, which is left of `read` bytes of frames. If it is less than half of them it is
    /// copied, so that it does not hold the memory of the rest.
    pub(crate) fn left_of(self, read: usize) -> Self {
        if self.bytes() * 2 >= read {
            return self;
        }
        let events = self.events.iter().map(Event::detached).collect();
        Chunk { events, ..self }
    }

    fn bytes(&self) -> usize {
        self.bytes_before.last().copied().unwrap_or_default()
    }

    /// The bytes of memory that the chunk is without the lines of JSON which sinks may have made.
    pub(crate) fn size(&self) -> usize {
        let each = size_of::<Event>() + size_of::<usize>();
        size_of::<Chunk>() + self.bytes() + self.events.len() * each
    }

    /// The weight of its events and their frames, see [`Share::weight`].
    fn weight(&self) -> usize {
        weight(self.bytes(), self.events.len())
    }
}

fn weight(bytes: usize, events: usize) -> usize {
    bytes * 2 + events * size_of::<Event>()
}

/// A sink's part of a chunk: all of it, or the events at some places. It is a range of these, since
/// a batch may end in the middle of a chunk.
#[derive(Debug, Clone)]
pub struct Share {
    chunk: Arc<Chunk>,
    picks: Option<Arc<Picks>>,
    from: usize,
    to: usize,
}

/// Some events of a chunk.
#[derive(Debug)]
struct Picks {
    /// Their places in the chunk, ascending.
    places: Vec<u32>,
    /// The same sums as in the chunk, of these events alone.
    bytes_before: Vec<usize>,
    /// The weight of these events, and of the chunk, which they hold.
    weights: (usize, usize),
}

/// Events that weigh less than this fraction of their chunk are copied, so that they do not hold
/// the memory of the rest.
const DETACH_BELOW: usize = 4;

impl Share {
    /// All events of the chunk.
    pub fn all(chunk: Arc<Chunk>) -> Self {
        let to = chunk.events.len();
        Share { chunk, picks: None, from: 0, to }
    }

    /// The events at `picks`, ascending.
    pub(crate) fn of(chunk: Arc<Chunk>, picks: Vec<u32>) -> Self {
        if picks.len() == chunk.events.len() {
            return Share::all(chunk);
        }
        let events = picks.iter().filter_map(|place| chunk.event(*place));
        let bytes_before = running_bytes(events);
        let to = picks.len();
        let own = weight(bytes_before.last().copied().unwrap_or_default(), to);
        let whole = chunk.weight();
        let picks = Some(Arc::new(Picks { places: picks, bytes_before, weights: (own, whole) }));
        let share = Share { chunk, picks, from: 0, to };
        if own * DETACH_BELOW >= whole { share } else { share.detached() }
    }

    fn detached(&self) -> Self {
        let events = self.events().map(Event::detached).collect();
        let origin = Arc::clone(&self.chunk.origin);
        let chunk = Chunk::new(origin, self.chunk.received, events);
        Share::all(Arc::new(chunk.vouched_for_by(self.chunk.authority)))
    }

    /// The number of events.
    pub fn len(&self) -> usize {
        self.to - self.from
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The origin of the events.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.chunk.origin
    }

    /// The time when the events were read, in microseconds since 1970.
    pub fn received(&self) -> u64 {
        self.chunk.received
    }

    /// The authority that vouches for the events.
    pub(crate) fn authority(&self) -> Authority {
        self.chunk.authority
    }

    /// The events, in order.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        (self.from..self.to).filter_map(|place| match &self.picks {
            None => self.chunk.events.get(place),
            Some(picks) => self.chunk.event(*picks.places.get(place)?),
        })
    }

    /// Bytes of the events' frames.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes_of_first(self.len())
    }

    /// Bytes of the frames of the first `count` events.
    fn bytes_of_first(&self, count: usize) -> usize {
        let before = |place: usize| self.bytes_before().get(place).copied().unwrap_or_default();
        before(self.from + count.min(self.len())) - before(self.from)
    }

    /// The number of events from the first on whose frames have at most `bytes` together.
    pub(crate) fn fitting(&self, bytes: usize) -> usize {
        let sums = self.bytes_before().get(self.from..=self.to).unwrap_or_default();
        let Some(before) = sums.first() else { return 0 };
        sums.partition_point(|sum| sum - before <= bytes).saturating_sub(1)
    }

    fn bytes_before(&self) -> &[usize] {
        self.picks.as_ref().map_or(&self.chunk.bytes_before, |picks| &picks.bytes_before)
    }

    /// The bytes of memory that the events are counted with: the structs, and their frames twice,
    /// because their JSON may stand beside them. A part of a chunk counts with its part of the
    /// whole chunk's weight, because it holds that. The memory held is at most five times as much:
    /// frames that are not copied are a quarter of their block, or half of that after repeats were
    /// dropped.
    pub(crate) fn weight(&self) -> usize {
        self.weight_before(self.to) - self.weight_before(self.from)
    }

    /// The weight of all before a place, so that the parts of a share weigh as much as the share.
    fn weight_before(&self, place: usize) -> usize {
        let bytes = self.bytes_before().get(place).copied().unwrap_or_default();
        let own = weight(bytes, place);
        let Some(picks) = &self.picks else { return own };
        let (all_own, whole) = picks.weights;
        let part = own as u128 * whole as u128 / (all_own as u128).max(1);
        usize::try_from(part).unwrap_or(usize::MAX)
    }

    /// The events at these places of the share, ascending.
    pub(crate) fn pick(&self, places: &[usize]) -> Share {
        let in_chunk = |place: &usize| match &self.picks {
            None => u32::try_from(self.from + place).ok(),
            Some(picks) => picks.places.get(self.from + place).copied(),
        };
        Share::of(Arc::clone(&self.chunk), places.iter().filter_map(in_chunk).collect())
    }

    /// Takes the first `count` events off the front.
    pub(crate) fn split_front(&mut self, count: usize) -> Share {
        let middle = self.from + count.min(self.len());
        let front = Share { to: middle, ..self.clone() };
        self.from = middle;
        front
    }
}

#[cfg(test)]
mod tests {
    use crate::event::chunk::*;

    fn chunk(sizes: &[usize]) -> Arc<Chunk> {
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        let events = sizes.iter().map(|size| Event::new("t", &vec![0xc0; *size])).collect();
        Arc::new(Chunk::new(origin, 1, events))
    }

    #[test]
    fn shares_split_and_keep_their_order() {
        let mut share = Share::of(chunk(&[1, 2, 3, 4, 5]), vec![0, 2, 3, 4]);
        let front = share.split_front(3);
        let sizes = |share: &Share| share.events().map(|e| e.payload().len()).collect::<Vec<_>>();
        assert_eq!((sizes(&front), sizes(&share)), (vec![1, 3, 4], vec![5]));
    }

    #[test]
    fn bytes_are_those_of_the_frames() {
        for share in [
            Share::all(chunk(&[1, 20, 300, 4000])),
            Share::of(chunk(&[1, 9, 20, 300, 4000]), vec![0, 2, 3, 4]),
        ] {
            let mut share = share;
            assert_eq!(share.split_front(1).bytes(), 1 + 3);
            assert_eq!(share.bytes(), 4320 + 3 * 3);
            assert_eq!(share.bytes_of_first(2), 320 + 2 * 3);
            let fitting = |bytes| share.fitting(bytes);
            assert_eq!([0, 22, 23, 325, 326, 1 << 20].map(fitting), [0, 0, 1, 1, 2, 3]);
        }
    }

    #[test]
    fn a_small_share_does_not_hold_its_chunk() {
        let chunk = chunk(&[10, 100_000]);
        let share = Share::of(Arc::clone(&chunk), vec![0]);
        assert_eq!(Arc::strong_count(&chunk), 1);
        assert_eq!(share.events().map(|event| event.payload().len()).collect::<Vec<_>>(), [10]);
        let share = Share::of(Arc::clone(&chunk), vec![1]);
        assert_eq!(Arc::strong_count(&chunk), 2);
        assert_eq!(share.len(), 1);
    }

    #[test]
    fn the_parts_of_a_share_weigh_what_it_holds_of_its_chunk() {
        let sizes: Vec<_> = (0..100).map(|place| 37 * place).collect();
        let chunk = chunk(&sizes);
        let mut share = Share::of(Arc::clone(&chunk), (0..100).step_by(3).collect());
        assert_eq!(share.weight(), chunk.weight());
        let mut parts = 0;
        while !share.is_empty() {
            parts += share.split_front(7).weight();
            assert_eq!(parts + share.weight(), chunk.weight());
        }
        let many = Arc::new(Chunk::new(
            Arc::clone(&chunk.origin),
            1,
            (0..1000).map(|n| Event::new("", &vec![0xc0; 10_000 * usize::from(n == 0)])).collect(),
        ));
        let share = Share::of(Arc::clone(&many), vec![0]);
        assert_eq!(Arc::strong_count(&many), 1, "the structs of small events weigh too");
        assert_eq!(share.len(), 1);
    }

    #[test]
    fn what_little_is_left_of_a_read_does_not_hold_the_rest() {
        let block = bytes::Bytes::from(vec![b'\n'; 10_000]);
        let event = |bytes| Event::parse(block.slice(..bytes)).unwrap();
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        let chunk = |bytes| Chunk::new(Arc::clone(&origin), 1, vec![event(bytes)]).left_of(10_000);
        let little = chunk(2000);
        assert!(block.is_unique());
        let much = chunk(6000);
        assert!(!block.is_unique());
        assert_eq!((little.bytes(), much.bytes()), (2000, 6000));
    }
}
