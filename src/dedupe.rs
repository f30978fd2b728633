//! Drops events that were seen a moment ago: the same event from the bus and a returner, or from
//! two masters of a cluster.
//!
//! Ids of events are kept in two generations. A new generation begins when the window has passed,
//! or when the current one is full; what was in the one before the last is forgotten. An event is
//! therefore remembered for one window at the least and two at the most, unless more than
//! [`MAX_IDS`] come within a window, and memory stays bounded.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::event::EventId;

/// Ids of a generation: 16 MiB or so of memory for both.
const MAX_IDS: usize = 200_000;

/// What was seen a moment ago.
#[derive(Debug)]
pub struct Recent {
    window: Duration,
    max_ids: usize,
    since: Instant,
    current: HashSet<EventId>,
    previous: HashSet<EventId>,
}

impl Recent {
    /// Remembers events for `window`.
    pub fn new(window: Duration, now: Instant) -> Self {
        let (current, previous) = (HashSet::new(), HashSet::new());
        Recent { window, max_ids: MAX_IDS, since: now, current, previous }
    }

    /// Whether the event was seen before; remembers it.
    pub fn seen(&mut self, id: EventId, now: Instant) -> bool {
        if now.duration_since(self.since) >= self.window || self.current.len() >= self.max_ids {
            if now.duration_since(self.since) >= self.window * 2 {
                self.current.clear();
            }
            self.previous = std::mem::take(&mut self.current);
            self.since = now;
        }
        self.previous.contains(&id) || !self.current.insert(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn events_are_remembered_for_a_window() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut recent = Recent::new(WINDOW, start);
        assert!(!recent.seen(EventId(1), at(0)));
        assert!(recent.seen(EventId(1), at(1)));
        assert!(!recent.seen(EventId(2), at(9)));
        assert!(recent.seen(EventId(2), at(19)));
        assert!(!recent.seen(EventId(1), at(29)));
        assert!(!recent.seen(EventId(2), at(100)));
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut recent = Recent::new(WINDOW, start);
        recent.max_ids = 100;
        for id in 0..10_000 {
            assert!(!recent.seen(EventId(id), start));
            assert!(recent.current.len() + recent.previous.len() <= 200);
        }
        assert!(recent.seen(EventId(9_950), start));
    }
}
