//! Drops repeats: events that another source or master brought a moment ago. The bus and a returner
//! bring the same event, and so do two masters of a cluster.
//!
//! An event that comes again by the same provenance is no repeat. A source reads something a second
//! time because the first time may not have been enough. The first provenance of an event answers
//! for it.
//!
//! An event that the master vouches for passes once more if it came before without that word. A
//! sink that keeps one of two contradicting events has to hear of it ([`Seen::Raised`]).
//!
//! Ids of events are kept in two generations. A new generation begins when the window has passed,
//! or when the current one is full; the one before the last is forgotten. An event is therefore
//! remembered for one window at the least and two at the most, unless more than [`MAX_IDS`] come
//! within a window. So memory stays bounded.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::event::{Authority, EventId, Origin};
use crate::source::frame_sender::Via;

/// Ids of a generation: 24 MiB or so of memory for both.
const MAX_IDS: usize = 200_000;

/// The ids of events that were seen a moment ago.
#[derive(Debug)]
pub struct Recent {
    window: Duration,
    max_ids: usize,
    since: Instant,
    current: HashMap<EventId, SeenFrom>,
    previous: HashMap<EventId, SeenFrom>,
}

/// A source, a way into it and a master, as a hash. Where two are the same, a repeat passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Provenance(NonZeroU64);

/// The provenances that brought an event.
#[derive(Debug, Clone, Copy)]
struct SeenFrom {
    first: Provenance,
    /// The one that brought it with the master's word; it may be the first.
    vouching: Option<Provenance>,
}

/// An event that comes, beside those that were seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It is new, or comes again from where it came from.
    New,
    /// Another brought it, with less authority. Its content is known, and who vouches for it is
    /// news.
    Raised,
    /// Another brought it.
    Repeat,
}

impl Provenance {
    /// The provenance of events from there, by this way into the source.
    pub(crate) fn of(origin: &Origin, via: Via) -> Self {
        let way = match via {
            Via::Read => "",
            Via::JobCacheReturns => "returns",
            Via::JobLoads => "job loads",
        };
        let names = [&origin.source, way, &origin.master_id].join("\0");
        let hash = xxhash_rust::xxh3::xxh3_64(names.as_bytes());
        Provenance(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN))
    }
}

impl Recent {
    /// Remembers events for `window`.
    pub(crate) fn new(window: Duration, now: Instant) -> Self {
        let (current, previous) = (HashMap::new(), HashMap::new());
        Recent { window, max_ids: MAX_IDS, since: now, current, previous }
    }

    /// Remembers the event, and tells if another than `provenance` brought it before, and with how
    /// much authority.
    pub(crate) fn see(
        &mut self,
        id: EventId,
        provenance: Provenance,
        authority: Authority,
        now: Instant,
    ) -> Seen {
        if now.duration_since(self.since) >= self.window || self.current.len() >= self.max_ids {
            if now.duration_since(self.since) >= self.window * 2 {
                self.current.clear();
            }
            self.previous = std::mem::take(&mut self.current);
            self.since = now;
        }
        let vouching = (authority == Authority::Master).then_some(provenance);
        let new = SeenFrom { first: provenance, vouching };
        let seen_from = match self.previous.get_mut(&id) {
            Some(seen_from) => seen_from,
            None => self.current.entry(id).or_insert(new),
        };
        seen_from.vouching = seen_from.vouching.or(vouching);
        if seen_from.first == provenance {
            return Seen::New;
        }
        if vouching.is_some() && seen_from.vouching == vouching {
            Seen::Raised
        } else {
            Seen::Repeat
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::pipeline::dedupe::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn provenance(source: &str, master_id: &str) -> Provenance {
        Provenance::of(&Origin { source: source.into(), master_id: master_id.into() }, Via::Read)
    }

    #[test]
    fn events_are_remembered_for_a_window() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut recent = Recent::new(WINDOW, start);
        let (bus, other) = (provenance("bus", "m"), provenance("other", "m"));
        assert_eq!(recent.see(EventId(1), bus, Authority::Bus, at(0)), Seen::New);
        assert_eq!(recent.see(EventId(1), other, Authority::Bus, at(1)), Seen::Repeat);
        assert_eq!(recent.see(EventId(2), bus, Authority::Bus, at(9)), Seen::New);
        assert_eq!(recent.see(EventId(2), other, Authority::Bus, at(19)), Seen::Repeat);
        assert_eq!(recent.see(EventId(1), other, Authority::Bus, at(29)), Seen::New);
        assert_eq!(recent.see(EventId(2), other, Authority::Bus, at(100)), Seen::New);
    }

    #[test]
    fn what_comes_again_from_where_it_came_from_passes() {
        let start = Instant::now();
        let mut recent = Recent::new(WINDOW, start);
        let (first, second) = (provenance("topic", "m1"), provenance("topic", "m2"));
        assert_eq!(recent.see(EventId(1), first, Authority::Bus, start), Seen::New);
        assert_eq!(recent.see(EventId(1), second, Authority::Bus, start), Seen::Repeat);
        assert_eq!(recent.see(EventId(1), first, Authority::Bus, start), Seen::New);
        let later = start + WINDOW;
        assert_eq!(recent.see(EventId(1), first, Authority::Bus, later), Seen::New);
        assert_eq!(recent.see(EventId(1), second, Authority::Bus, later), Seen::Repeat);
    }

    #[test]
    fn the_masters_word_for_a_known_event_is_news() {
        let start = Instant::now();
        let mut recent = Recent::new(WINDOW, start);
        let (bus, returns) = (provenance("bus", "m"), provenance("returner", "m"));
        let mut see =
            |id, provenance, authority| recent.see(EventId(id), provenance, authority, start);
        assert_eq!(see(1, bus, Authority::Bus), Seen::New);
        assert_eq!(see(1, returns, Authority::Master), Seen::Raised);
        // Both may send again what may not have been enough.
        assert_eq!(see(1, returns, Authority::Master), Seen::Raised);
        assert_eq!(see(1, bus, Authority::Bus), Seen::New);
        assert_eq!(see(1, provenance("other", "m"), Authority::Bus), Seen::Repeat);
        assert_eq!(see(1, provenance("other", "m"), Authority::Master), Seen::Repeat);
        assert_eq!(see(2, returns, Authority::Master), Seen::New);
        assert_eq!(see(2, bus, Authority::Bus), Seen::Repeat);
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut recent = Recent::new(WINDOW, start);
        let (bus, other) = (provenance("bus", "m"), provenance("other", "m"));
        recent.max_ids = 100;
        for id in 0..10_000 {
            assert_eq!(recent.see(EventId(id), bus, Authority::Bus, start), Seen::New);
            assert!(recent.current.len() + recent.previous.len() <= 200);
        }
        assert_eq!(recent.see(EventId(9_950), other, Authority::Bus, start), Seen::Repeat);
    }
}
