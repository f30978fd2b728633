//! Letting events gather, so that a wake-up serves many.
//!
//! All sources share one thread. When every one of them has read what there was, the thread would
//! wait for the next event on any socket, and at a thousand events a second wake up for each. A
//! timer of the runtime does not help: while it runs, each event that comes still wakes the thread.
//! So the thread sleeps outside of the runtime, just before it would wait, for as long as a source
//! [asked](ask) since it last did. With no events it does not sleep but waits, and costs nothing.
//!
//! The sinks say how long it may be, by how long they let a batch wait to fill: where that is a
//! fifth of a second nobody notices a fiftieth more, and where it is nothing the thread does not
//! sleep at all.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::SinkConfig;

thread_local! {
    static ASKED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Asks that events may gather for so long, at the most, before the thread looks at the sockets
/// again. Of several wishes the shortest counts.
pub(super) fn ask(wish: Duration) {
    ASKED.with(|asked| {
        let others = asked.get();
        asked.set(if others.is_zero() { wish } else { others.min(wish) });
    });
}

/// The part of the shortest linger that a sleep may take.
const PART: u32 = 10;

/// A sleep that is shorter than this costs more than the wake-ups that it saves: the kernel makes
/// it longer by a twentieth of a millisecond.
const WORTH_IT: Duration = Duration::from_micros(200);

/// The longest sleep, in microseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct CoalesceLimit(Arc<AtomicU64>);

impl CoalesceLimit {
    /// The bound for these sinks.
    pub(crate) fn of(sinks: &[SinkConfig]) -> Self {
        let bound = CoalesceLimit::default();
        bound.set(sinks);
        bound
    }

    /// From now on these are the sinks.
    pub(crate) fn set(&self, sinks: &[SinkConfig]) {
        let lingers = sinks.iter().map(|sink| sink.limits.linger);
        let shortest = lingers.min().unwrap_or(Duration::MAX);
        let micros = u64::try_from((shortest / PART).as_micros()).unwrap_or(u64::MAX);
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
