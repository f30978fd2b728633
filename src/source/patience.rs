//! Letting events gather, so that a wake-up serves many.
//!
//! All sources share one thread. When every one of them has read what there was, the thread would
//! wait for the next event on any socket, and at a thousand events a second wake up for each. A
//! timer of the runtime does not help: while it runs, each event that comes still wakes the thread.
//! So the thread sleeps outside of the runtime, just before it would wait, for as long as a source
//! [asked](ask) since it last did. With no events it does not sleep but waits, and costs nothing.

use std::cell::Cell;
use std::time::Duration;

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

/// Sleeps as long as was asked for since the last time. For the sources' runtime to call before it
/// waits for events.
pub fn sleep() {
    let wish = ASKED.with(Cell::take);
    if !wish.is_zero() {
        // There is no task that could run meanwhile: the runtime is about to wait.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(wish);
    }
}
