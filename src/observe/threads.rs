//! Checks that every thread moves.
//!
//! A thread that lives as long as the daemon has a [`Pulse`]: a number that the thread counts up
//! with each thing that it does. The number is odd while the thread waits. A thread whose number is
//! even and stays the same is stuck, in a system call perhaps. Looking costs the thread nothing,
//! and does not wake up a thread that waits.
//!
//! A runtime has no such thread of its own. A task of it is [asked](Threads::answer) at each look,
//! and counts as stuck while it does not answer.

use std::cell::RefCell;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::observe::metrics::{self, Level};
use crate::sync::lock;

thread_local! {
    static OWN: RefCell<Option<(Arc<Threads>, Arc<Pulse>)>> = const { RefCell::new(None) };
}

/// The time that a thread may do one thing, and that a task may leave a question unanswered.
pub(crate) const STUCK: Duration = Duration::from_secs(10);

/// The threads of a daemon that live as long as it.
#[derive(Default)]
pub(crate) struct Threads(Mutex<Vec<Watched>>);

/// A thread as it was when it was looked at.
struct Watched {
    pulse: Weak<Pulse>,
    beats: u64,
    /// The time at which it was first seen so.
    since: Instant,
}

/// The sign of life of one thread.
struct Pulse {
    name: String,
    /// Odd while it waits.
    beats: AtomicU64,
    is_stuck: AtomicBool,
    shown: Level,
    /// Rings when it is to answer; `None` for a thread, which beats by itself.
    asked: Option<Notify>,
}

impl Pulse {
    /// It waits from now on, or works.
    fn set_waiting(&self, waits: bool) {
        let beats = self.beats.load(Ordering::Relaxed);
        let is_new = (beats % 2 == 1) != waits;
        self.beats.store(beats + u64::from(is_new), Ordering::Relaxed);
    }

    fn show(&self, is_stuck: bool) {
        self.is_stuck.store(is_stuck, Ordering::Relaxed);
        self.shown.set_bool(is_stuck);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shown.set_bool(false);
    }
}

/// The thread that calls this moves.
pub(crate) fn beat() {
    OWN.with_borrow(|own| {
        if let Some((_, pulse)) = own {
            pulse.beats.store(pulse.beats.load(Ordering::Relaxed) + 2, Ordering::Relaxed);
        }
    });
}

/// The thread that calls this waits from now on, or no more.
pub(crate) fn set_waiting(waits: bool) {
    OWN.with_borrow(|own| own.as_ref().map(|(_, pulse)| pulse.set_waiting(waits)));
}

/// The threads that the one that calls this belongs to, for one that it starts.
pub(crate) fn own() -> Option<Arc<Threads>> {
    OWN.with_borrow(|own| own.as_ref().map(|(threads, _)| Arc::clone(threads)))
}

/// Waits, on a thread that has nothing else to do.
pub(crate) fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    set_waiting(true);
    let result = wait();
    set_waiting(false);
    result
}

impl Threads {
    /// The thread that calls this belongs to them until it ends.
    pub(crate) fn join(self: &Arc<Self>, name: &str) {
        let pulse = self.add(name, None);
        OWN.set(Some((Arc::clone(self), pulse)));
    }

    /// A task that answers questions while it is polled.
    pub(crate) async fn answer(&self, name: &str) -> Infallible {
        let pulse = self.add(name, Some(Notify::new()));
        pulse.set_waiting(true);
        loop {
            if let Some(asked) = &pulse.asked {
                asked.notified().await;
            }
            pulse.set_waiting(true);
        }
    }

    fn add(&self, name: &str, asked: Option<Notify>) -> Arc<Pulse> {
        let shown = Level::new(metrics::THREAD_STUCK, &[name]);
        shown.set_bool(false);
        let pulse = Arc::new(Pulse {
            name: name.to_owned(),
            beats: AtomicU64::new(0),
            is_stuck: AtomicBool::new(false),
            shown,
            asked,
        });
        let watched = Watched { pulse: Arc::downgrade(&pulse), beats: 0, since: Instant::now() };
        self.lock().push(watched);
        pulse
    }

    /// Looks at each. Returns the threads that are newly stuck after `limit`, and those that move
    /// again.
    pub(crate) fn look(&self, now: Instant, limit: Duration) -> Vec<(String, bool)> {
        let mut changed = Vec::new();
        self.lock().retain_mut(|watched| {
            let Some(pulse) = watched.pulse.upgrade() else { return false };
            let beats = pulse.beats.load(Ordering::Relaxed);
            if beats != watched.beats {
                (watched.beats, watched.since) = (beats, now);
            }
            let is_stuck = beats % 2 == 0 && now.duration_since(watched.since) >= limit;
            if is_stuck != pulse.is_stuck.load(Ordering::Relaxed) {
                pulse.show(is_stuck);
                changed.push((pulse.name.clone(), is_stuck));
            }
            if let Some(asked) = &pulse.asked {
                pulse.set_waiting(false);
                asked.notify_one();
            }
            true
        });
        changed
    }

    /// The names of threads that were stuck at the last look.
    pub(crate) fn stuck(&self) -> Vec<String> {
        let pulses = self.lock();
        let pulses = pulses.iter().filter_map(|watched| watched.pulse.upgrade());
        let stuck = pulses.filter(|pulse| pulse.is_stuck.load(Ordering::Relaxed));
        stuck.map(|pulse| pulse.name.clone()).collect()
    }

    /// A list is never half changed.
    fn lock(&self) -> MutexGuard<'_, Vec<Watched>> {
        lock::hold(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use crate::observe::threads::*;

    #[test]
    fn a_thread_that_does_one_thing_for_long_is_stuck_and_one_that_waits_is_not() {
        let threads = Arc::new(Threads::default());
        let (begun, has_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let joined = Arc::clone(&threads);
        let thread = std::thread::spawn(move || {
            joined.join("one");
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
            beat();
            begun.send(()).unwrap();
            waiting(|| {
                begun.send(()).unwrap();
                may_go_on.recv().unwrap();
            });
        });
        has_begun.recv().unwrap();
        let now = Instant::now();
        assert_eq!(threads.look(now, STUCK), []);
        let later = now + STUCK;
        assert_eq!(threads.look(later, STUCK), [("one".to_owned(), true)]);
        assert_eq!(threads.stuck(), ["one"]);
        go_on.send(()).unwrap();
        has_begun.recv().unwrap();
        assert_eq!(threads.look(later, STUCK), [("one".to_owned(), false)]);
        has_begun.recv().unwrap();
        threads.look(later, STUCK);
        assert_eq!(threads.look(later + 100 * STUCK, STUCK), []);
        assert!(threads.stuck().is_empty());
        go_on.send(()).unwrap();
        thread.join().unwrap();
        assert_eq!(threads.look(later + 200 * STUCK, STUCK), []);
        assert!(threads.lock().is_empty(), "a thread that has ended is forgotten");
    }

    #[tokio::test]
    async fn a_task_is_stuck_while_it_does_not_answer() {
        let threads = Threads::default();
        let mut answering = std::pin::pin!(threads.answer("task"));
        // It is cancelled as soon as it waits.
        let mut answer = async || {
            let _ = tokio::time::timeout(Duration::ZERO, answering.as_mut()).await;
        };
        answer().await;
        let now = Instant::now();
        threads.look(now, STUCK);
        assert_eq!(threads.look(now + STUCK, STUCK), []);
        assert_eq!(threads.look(now + 2 * STUCK, STUCK), [("task".to_owned(), true)]);
        answer().await;
        assert_eq!(threads.look(now + 3 * STUCK, STUCK), [("task".to_owned(), false)]);
    }
}
