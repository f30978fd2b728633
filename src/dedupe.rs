//! Drops events that another source or master brought a moment ago: the same event from the bus and
//! a returner, or from two masters of a cluster.
//!
//! What comes again from where it came from is no such repeat: a source that reads something a second
//! time does so because the first time may not have been enough, and whoever brought an event first
//! is the one that answers for it.
//!
//! Ids of events are kept in two generations. A new generation begins when the window has passed,
//! or when the current one is full; what was in the one before the last is forgotten. An event is
//! therefore remembered for one window at the least and two at the most, unless more than
//! [`MAX_IDS`] come within a window, and memory stays bounded.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::event::{EventId, Origin};

/// Ids of a generation: 24 MiB or so of memory for both.
const MAX_IDS: usize = 200_000;

/// What was seen a moment ago.
#[derive(Debug)]
pub struct Recent {
    window: Duration,
    max_ids: usize,
    since: Instant,
    /// Who brought an event first.
    current: HashMap<EventId, Bringer>,
    previous: HashMap<EventId, Bringer>,
}

/// A source, a way into it and a master, as a hash. Where two are the same, a repeat passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bringer(u64);

impl Bringer {
    /// The bringer of what comes from there, by this way of the source's.
    pub fn of(origin: &Origin, way: &str) -> Self {
        let names = [&origin.source, way, &origin.master_id].join("\0");
        Bringer(xxhash_rust::xxh3::xxh3_64(names.as_bytes()))
    }
}

impl Recent {
    /// Remembers events for `window`.
    pub fn new(window: Duration, now: Instant) -> Self {
        let (current, previous) = (HashMap::new(), HashMap::new());
        Recent { window, max_ids: MAX_IDS, since: now, current, previous }
    }

    /// Whether another than `bringer` brought the event before; remembers it.
    pub fn is_repeat(&mut self, id: EventId, bringer: Bringer, now: Instant) -> bool {
        if now.duration_since(self.since) >= self.window || self.current.len() >= self.max_ids {
            if now.duration_since(self.since) >= self.window * 2 {
                self.current.clear();
            }
            self.previous = std::mem::take(&mut self.current);
            self.since = now;
        }
        let first = self.previous.get(&id).copied();
        first.unwrap_or_else(|| *self.current.entry(id).or_insert(bringer)) != bringer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn bringer(source: &str, master_id: &str) -> Bringer {
        Bringer::of(&Origin { source: source.into(), master_id: master_id.into() }, "")
    }

    #[test]
    fn events_are_remembered_for_a_window() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut recent = Recent::new(WINDOW, start);
        let (bus, other) = (bringer("bus", "m"), bringer("other", "m"));
        assert!(!recent.is_repeat(EventId(1), bus, at(0)));
        assert!(recent.is_repeat(EventId(1), other, at(1)));
        assert!(!recent.is_repeat(EventId(2), bus, at(9)));
        assert!(recent.is_repeat(EventId(2), other, at(19)));
        assert!(!recent.is_repeat(EventId(1), other, at(29)));
        assert!(!recent.is_repeat(EventId(2), other, at(100)));
    }

    #[test]
    fn what_comes_again_from_where_it_came_from_passes() {
        let start = Instant::now();
        let mut recent = Recent::new(WINDOW, start);
        let (first, second) = (bringer("topic", "m1"), bringer("topic", "m2"));
        assert!(!recent.is_repeat(EventId(1), first, start));
        assert!(recent.is_repeat(EventId(1), second, start));
        assert!(!recent.is_repeat(EventId(1), first, start));
        let later = start + WINDOW;
        assert!(!recent.is_repeat(EventId(1), first, later));
        assert!(recent.is_repeat(EventId(1), second, later));
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut recent = Recent::new(WINDOW, start);
        let (bus, other) = (bringer("bus", "m"), bringer("other", "m"));
        recent.max_ids = 100;
        for id in 0..10_000 {
            assert!(!recent.is_repeat(EventId(id), bus, start));
            assert!(recent.current.len() + recent.previous.len() <= 200);
        }
        assert!(recent.is_repeat(EventId(9_950), other, start));
    }
}
