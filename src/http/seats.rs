//! The places for connections at one door, and who leaves when there is none for the next.
//!
//! Nobody waits behind clients that do nothing. When all places are taken a connection that has
//! asked nothing yet goes first, then one that is idle, then one whose client does not read, then
//! one without a token that asks again and again. Those that have shown no token go before those
//! that have, and the one that has been so the longest.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// How long a client may not read, or an answer to who has shown nothing may take, before its place
/// can be had by others.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a request may be on its way before its connection counts as one that asks nothing.
const ON_ITS_WAY: Duration = Duration::from_millis(250);

/// A client that asks again so soon after an answer has sent its requests together, as no scraper
/// or probe does.
const TOGETHER: Duration = Duration::from_millis(100);

/// The place of one connection; a clone is the same one.
#[derive(Clone)]
pub(super) struct Seat {
    sitting: Arc<Mutex<Sitting>>,
    leave: CancellationToken,
}

struct Sitting {
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

impl Seat {
    fn new(now: Instant) -> Self {
        let sitting = Sitting {
            has_asked: false,
            is_known: false,
            may_pause: false,
            is_greedy: false,
            answers: 0,
            since: now,
            blocked: None,
        };
        Seat { sitting: Arc::new(Mutex::new(sitting)), leave: CancellationToken::new() }
    }

    /// Waits until the place is wanted for another.
    pub(super) async fn asked_to_leave(&self) {
        self.leave.cancelled().await;
    }

    #[cfg(test)]
    pub(super) fn is_asked_to_leave(&self) -> bool {
        self.leave.is_cancelled()
    }

    /// A request has come; what is returned lives until its answer is made.
    pub(super) fn begin(&self) -> Answering {
        let (mut sitting, now) = (self.lock(), Instant::now());
        let is_soon = now.saturating_duration_since(sitting.since) < TOGETHER;
        sitting.is_greedy = sitting.has_asked && is_soon;
        sitting.has_asked = true;
        sitting.answers += 1;
        sitting.since = now;
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

    /// Says whether its client takes what it is sent.
    pub(super) fn reads(&self, reads: bool) {
        let mut sitting = self.lock();
        match reads {
            true => sitting.blocked = None,
            false if sitting.blocked.is_none() => sitting.blocked = Some(Instant::now()),
            false => {}
        }
    }

    /// The place as seen by those who do not sit there.
    pub(super) fn seen(&self) -> Seen {
        Seen { sitting: Arc::downgrade(&self.sitting), leave: self.leave.clone() }
    }

    /// Its turn to leave, the least first; `None` if it stays.
    fn order(&self, now: Instant) -> Option<(u8, bool, Instant)> {
        let sitting = self.lock();
        let (known, since) = (sitting.is_known, sitting.since);
        let is_over = |since: Instant| now.saturating_duration_since(since) >= PATIENCE;
        match sitting.blocked {
            _ if !sitting.has_asked => {
                let is_late = now.saturating_duration_since(since) >= ON_ITS_WAY;
                is_late.then_some((0, known, since))
            }
            Some(blocked) if is_over(blocked) => Some((2, known, blocked)),
            None if sitting.answers == 0 => Some((1, known, since)),
            None if !known && is_over(since) => Some((3, known, since)),
            _ if !known && sitting.is_greedy => Some((3, known, since)),
            _ => None,
        }
    }

    /// Nothing can panic while it is held.
    fn lock(&self) -> MutexGuard<'_, Sitting> {
        self.sitting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place as others see it; it may be free by now.
pub(super) struct Seen {
    sitting: Weak<Mutex<Sitting>>,
    leave: CancellationToken,
}

impl Seen {
    /// Asks its client to leave.
    pub(super) fn free(&self) {
        self.leave.cancel();
    }

    /// Says if its client has read nothing for a while.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        let is_over = |blocked| now.saturating_duration_since(blocked) >= PATIENCE;
        self.of_sitting(|sitting| sitting.blocked.is_some_and(is_over))
    }

    /// Says if its client has shown who it is.
    pub(super) fn is_known(&self) -> bool {
        self.of_sitting(|sitting| sitting.is_known)
    }

    /// `false` of a place that is free.
    fn of_sitting(&self, ask: impl FnOnce(&Sitting) -> bool) -> bool {
        let sitting = self.sitting.upgrade();
        sitting.is_some_and(|s| ask(&s.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// An answer that is being made.
pub(super) struct Answering(Seat);

impl Drop for Answering {
    fn drop(&mut self) {
        let mut sitting = self.0.lock();
        sitting.answers = sitting.answers.saturating_sub(1);
        sitting.since = Instant::now();
    }
}

/// All places at one door.
pub(super) struct Seats {
    taken: Vec<Seat>,
    places: usize,
}

impl Seats {
    pub(super) fn new(places: usize) -> Self {
        Seats { taken: Vec::new(), places }
    }

    /// Says if there is a place for one more, or one that can be freed.
    pub(super) fn have_room(&mut self, now: Instant) -> bool {
        self.forget_those_over();
        self.taken.len() < self.places || self.taken.iter().any(|seat| seat.order(now).is_some())
    }

    /// A place for a new connection; `None` if all are taken and nobody leaves.
    pub(super) fn take(&mut self, now: Instant) -> Option<Seat> {
        self.forget_those_over();
        if self.taken.len() >= self.places {
            self.free_one(now);
        }
        if self.taken.len() >= self.places {
            return None;
        }
        let seat = Seat::new(now);
        self.taken.push(seat.clone());
        Some(seat)
    }

    /// The connections that are over have dropped their places.
    fn forget_those_over(&mut self) {
        self.taken.retain(|seat| Arc::strong_count(&seat.sitting) > 1);
    }

    /// Asks the one that is missed the least to leave, if one can be missed.
    pub(super) fn free_one(&mut self, now: Instant) {
        let orders = self.taken.iter().enumerate();
        let orders = orders.filter_map(|(place, seat)| Some((seat.order(now)?, place)));
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
        let mut seats = Seats::new(5);
        let begin = Instant::now();
        let later = begin + 2 * PATIENCE;
        let kept: Vec<_> = (0..5).map(|_| seats.take(begin).unwrap()).collect();
        let [silent, idle, known, deaf, busy] = &kept[..] else { panic!() };
        drop(idle.begin());
        drop(known.begin());
        known.is_known();
        let _unread = deaf.begin();
        deaf.reads(false);
        let _answer = busy.begin();
        busy.is_known();
        for (place, next) in [silent, idle, known, deaf].into_iter().enumerate() {
            assert!(seats.have_room(later), "{place}");
            assert!(!next.leave.is_cancelled());
            let new = seats.take(later).unwrap();
            assert!(next.leave.is_cancelled(), "{place}");
            let answer = new.begin();
            new.is_known();
            std::mem::forget((answer, new));
        }
        assert!(!seats.have_room(later) && seats.take(later).is_none());
        assert!(!busy.leave.is_cancelled());
        drop(kept);
    }

    #[test]
    fn who_sends_requests_together_does_not_keep_a_place() {
        let mut seats = Seats::new(1);
        let seat = seats.take(Instant::now()).unwrap();
        let first = seat.begin();
        assert!(!seats.have_room(Instant::now()), "it asks for the first time");
        drop(first);
        let _second = seat.begin();
        assert!(seats.have_room(Instant::now()));
        seat.is_known();
        assert!(!seats.have_room(Instant::now()));
    }

    #[test]
    fn the_place_of_a_connection_that_is_over_is_free() {
        let mut seats = Seats::new(1);
        let now = Instant::now();
        let seat = seats.take(now).unwrap();
        let answer = seat.begin();
        assert!(!seats.have_room(now));
        drop((seat, answer));
        assert!(seats.have_room(now));
    }
}
