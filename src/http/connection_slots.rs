//! The slots for connections at one listener, and the choice of a connection to close if there is
//! none for the next.
//!
//! No client waits behind clients that do nothing. When all slots are taken, one connection is
//! closed. First goes one that has asked nothing yet, then an idle one, then one whose client does
//! not read. Last goes one without a token that asks again and again. Connections without a token
//! go before those with one. Among equal ones the longest in that state goes.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use crate::sync::lock;
use tokio_util::sync::CancellationToken;

/// The time after which others can have the place of a client that does not read. It is also the
/// time for an answer to a client that has not shown who it is.
const IDLE_LIMIT: Duration = Duration::from_secs(1);

/// The time that a request may be on its way before its connection counts as one that asks nothing.
const ON_ITS_WAY: Duration = Duration::from_millis(250);

/// A client that asks again so soon after an answer has sent its requests together. No scraper or
/// probe does that.
const TOGETHER: Duration = Duration::from_millis(100);

/// The place of one connection; a clone is the same one.
#[derive(Clone)]
pub(super) struct Slot {
    state: Arc<Mutex<SlotState>>,
    leave: CancellationToken,
}

struct SlotState {
    has_asked: bool,
    is_known: bool,
    may_pause: bool,
    /// Its last request came right behind the answer before.
    is_greedy: bool,
    answers: u32,
    /// The time at which it last began or ended something.
    since: Instant,
    /// The time from which its client has read nothing, while there is something to read.
    blocked: Option<Instant>,
}

impl Slot {
    fn new(now: Instant) -> Self {
        let state = SlotState {
            has_asked: false,
            is_known: false,
            may_pause: false,
            is_greedy: false,
            answers: 0,
            since: now,
            blocked: None,
        };
        Slot { state: Arc::new(Mutex::new(state)), leave: CancellationToken::new() }
    }

    /// Waits until the place is wanted for another.
    pub(super) async fn asked_to_leave(&self) {
        self.leave.cancelled().await;
    }

    #[cfg(test)]
    pub(super) fn is_asked_to_leave(&self) -> bool {
        self.leave.is_cancelled()
    }

    /// A request has come; the returned guard lives until its answer is made.
    pub(super) fn begin(&self) -> Answering {
        let (mut state, now) = (self.lock(), Instant::now());
        let is_soon = now.saturating_duration_since(state.since) < TOGETHER;
        state.is_greedy = state.has_asked && is_soon;
        state.has_asked = true;
        state.answers += 1;
        state.since = now;
        Answering(self.clone())
    }

    /// Its client has shown who it is.
    pub(super) fn is_known(&self) {
        self.lock().is_known = true;
    }

    /// Its client may stop reading for as long as a person pauses.
    pub(super) fn pauses(&self) {
        self.lock().may_pause = true;
    }

    pub(super) fn may_pause(&self) -> bool {
        self.lock().may_pause
    }

    /// Notes whether its client reads.
    pub(super) fn reads(&self, reads: bool) {
        let mut state = self.lock();
        match reads {
            true => state.blocked = None,
            false if state.blocked.is_none() => state.blocked = Some(Instant::now()),
            false => {}
        }
    }

    /// The place of a connection, as other connections see it.
    pub(super) fn seen(&self) -> Seen {
        Seen { state: Arc::downgrade(&self.state), leave: self.leave.clone() }
    }

    /// Its rank to be closed, the lowest first; `None` if it stays.
    fn order(&self, now: Instant) -> Option<(u8, bool, Instant)> {
        let state = self.lock();
        let (known, since) = (state.is_known, state.since);
        let is_over = |since: Instant| now.saturating_duration_since(since) >= IDLE_LIMIT;
        match state.blocked {
            _ if !state.has_asked => {
                let is_late = now.saturating_duration_since(since) >= ON_ITS_WAY;
                is_late.then_some((0, known, since))
            }
            Some(blocked) if is_over(blocked) => Some((2, known, blocked)),
            None if state.answers == 0 => Some((1, known, since)),
            None if !known && is_over(since) => Some((3, known, since)),
            _ if !known && state.is_greedy => Some((3, known, since)),
            _ => None,
        }
    }

    /// Nothing can panic while it is held.
    fn lock(&self) -> MutexGuard<'_, SlotState> {
        lock::hold(&self.state)
    }
}

/// A place as others see it; it may be free by now.
pub(super) struct Seen {
    state: Weak<Mutex<SlotState>>,
    leave: CancellationToken,
}

impl Seen {
    /// Asks its client to leave.
    pub(super) fn free(&self) {
        self.leave.cancel();
    }

    /// Says if its client has read nothing for a while.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        let is_over = |blocked| now.saturating_duration_since(blocked) >= IDLE_LIMIT;
        self.of_state(|state| state.blocked.is_some_and(is_over))
    }

    /// Says if its client has shown who it is.
    pub(super) fn is_known(&self) -> bool {
        self.of_state(|state| state.is_known)
    }

    /// `false` of a place that is free.
    fn of_state(&self, ask: impl FnOnce(&SlotState) -> bool) -> bool {
        let state = self.state.upgrade();
        state.is_some_and(|s| ask(&lock::hold(&s)))
    }
}

/// An answer that is being made.
pub(super) struct Answering(Slot);

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.answers = state.answers.saturating_sub(1);
        state.since = Instant::now();
    }
}

/// All places at one listener.
pub(super) struct Slots {
    taken: Vec<Slot>,
    places: usize,
}

impl Slots {
    pub(super) fn new(places: usize) -> Self {
        Slots { taken: Vec::new(), places }
    }

    /// Says if there is a place for one more, or one that can be freed.
    pub(super) fn have_room(&mut self, now: Instant) -> bool {
        self.forget_those_over();
        self.taken.len() < self.places || self.taken.iter().any(|slot| slot.order(now).is_some())
    }

    /// A place for a new connection; `None` if all are taken and nobody leaves.
    pub(super) fn take(&mut self, now: Instant) -> Option<Slot> {
        self.forget_those_over();
        if self.taken.len() >= self.places {
            self.free_one(now);
        }
        if self.taken.len() >= self.places {
            return None;
        }
        let slot = Slot::new(now);
        self.taken.push(slot.clone());
        Some(slot)
    }

    /// Connections that have ended have dropped their places.
    fn forget_those_over(&mut self) {
        self.taken.retain(|slot| Arc::strong_count(&slot.state) > 1);
    }

    /// Asks the connection with the lowest rank to leave, if there is one.
    pub(super) fn free_one(&mut self, now: Instant) {
        let orders = self.taken.iter().enumerate();
        let orders = orders.filter_map(|(place, slot)| Some((slot.order(now)?, place)));
        if let Some((_, place)) = orders.min() {
            self.taken.swap_remove(place).leave.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_does_nothing_leaves_first_and_whoever_is_answered_stays() {
        let mut slots = Slots::new(5);
        let begin = Instant::now();
        let later = begin + 2 * IDLE_LIMIT;
        let kept: Vec<_> = (0..5).map(|_| slots.take(begin).unwrap()).collect();
        let [silent, idle, known, deaf, busy] = &kept[..] else { panic!() };
        drop(idle.begin());
        drop(known.begin());
        known.is_known();
        let _unread = deaf.begin();
        deaf.reads(false);
        let _answer = busy.begin();
        busy.is_known();
        for (place, next) in [silent, idle, known, deaf].into_iter().enumerate() {
            assert!(slots.have_room(later), "{place}");
            assert!(!next.leave.is_cancelled());
            let new = slots.take(later).unwrap();
            assert!(next.leave.is_cancelled(), "{place}");
            let answer = new.begin();
            new.is_known();
            std::mem::forget((answer, new));
        }
        assert!(!slots.have_room(later) && slots.take(later).is_none());
        assert!(!busy.leave.is_cancelled());
        drop(kept);
    }

    #[test]
    fn who_sends_requests_together_does_not_keep_a_place() {
        let mut slots = Slots::new(1);
        let slot = slots.take(Instant::now()).unwrap();
        let first = slot.begin();
        assert!(!slots.have_room(Instant::now()), "it asks for the first time");
        drop(first);
        let _second = slot.begin();
        assert!(slots.have_room(Instant::now()));
        slot.is_known();
        assert!(!slots.have_room(Instant::now()));
    }

    #[test]
    fn the_place_of_a_connection_that_is_over_is_free() {
        let mut slots = Slots::new(1);
        let now = Instant::now();
        let slot = slots.take(now).unwrap();
        let answer = slot.begin();
        assert!(!slots.have_room(now));
        drop((slot, answer));
        assert!(slots.have_room(now));
    }
}
