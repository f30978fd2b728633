//! Coalescing of reads: events gather for a moment, so that one wake-up serves many.
//!
//! All sources share one thread. Once every source has read what there was, the thread waits for
//! the next event on any socket. At a thousand events a second it would wake up for each. A timer
//! of the runtime does not help, because each event that comes wakes the thread all the same. So
//! the thread sleeps outside of the runtime, just before it would wait. It sleeps for as long as a
//! source [asked](ask) since its last sleep. Without events it waits and does not sleep, which
//! costs nothing.
//!
//! The sinks bound the sleep by the time that they let a batch wait to fill. If that is a fifth of
//! a second, nobody notices a fiftieth more. If it is nothing, the thread does not sleep.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

thread_local! {
    static ASKED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Asks that events may gather for so long, at the most, before the thread looks at the sockets
/// again. The shortest of several wishes counts.
pub(super) fn ask(wish: Duration) {
    ASKED.with(|asked| {
        let others = asked.get();
        asked.set(if others.is_zero() { wish } else { others.min(wish) });
    });
}

/// The part of the shortest linger that a sleep may take.
const PART: u32 = 10;

/// A shorter sleep costs more than the wake-ups that it saves: the kernel makes it longer by a
/// twentieth of a millisecond.
const WORTH_IT: Duration = Duration::from_micros(200);

/// The longest sleep, in microseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct CoalesceLimit(Arc<AtomicU64>);

impl CoalesceLimit {
    /// The limit for this shortest time that a sink lets a batch wait to fill.
    pub(crate) fn of(shortest_linger: Duration) -> Self {
        let limit = CoalesceLimit::default();
        limit.set(shortest_linger);
        limit
    }

    /// From now on this is the shortest time that a sink lets a batch wait to fill.
    pub(crate) fn set(&self, shortest_linger: Duration) {
        let micros = u64::try_from((shortest_linger / PART).as_micros()).unwrap_or(u64::MAX);
        self.0.store(micros, Ordering::Relaxed);
    }

    /// Sleeps as long as was asked for since the last time, within the bound. For the sources'
    /// runtime to call before it waits for events.
    pub(crate) fn sleep(&self) {
        let bound = Duration::from_micros(self.0.load(Ordering::Relaxed));
        let wish = ASKED.with(Cell::take).min(bound);
        if wish >= WORTH_IT {
            // There is no task that could run meanwhile: the runtime is about to wait.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(wish);
        }
    }
}
