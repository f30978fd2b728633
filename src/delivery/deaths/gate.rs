//! The gate that stops other writes while an attempt that may kill the process runs alone.
//!
//! Most attempts run beside one another. An attempt that has to run alone closes the gate, waits
//! until the others are through, and opens it again. No store can hold up the others for long:
//!
//! - An attempt that runs alone is cut off after a time, and so is one beside which another waits
//!   to run alone.
//! - An attempt that cannot be cut off hangs in a system call. It is waited for a little longer,
//!   and then the others go on. No attempt runs alone until it has returned.
//! - The gate stays open at least as long as it was closed before.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::sync::lock;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

/// The gate, and the attempts behind it.
pub(super) struct Gate {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    /// The longest time of an attempt that runs alone, or beside which another waits to run alone.
    limit: Duration,
}

struct State {
    beside: usize,
    closed: Option<Closed>,
    /// It is not closed before.
    open_until: Instant,
    /// The number of the next one that closes it.
    next: u64,
    /// It stays open for ever.
    is_over: bool,
}

struct Closed {
    by: u64,
    since: Instant,
    /// From then on the others go on.
    until: Instant,
    /// The others are through.
    is_alone: bool,
}

impl State {
    /// Opens it if it was closed for long enough, as [`State::force_open`]; else returns the time
    /// until which it is closed.
    fn open_in_time(&mut self, now: Instant) -> Result<bool, Instant> {
        match self.closed.as_ref().filter(|closed| now < closed.until) {
            Some(closed) => Err(closed.until),
            None => Ok(self.force_open(now)),
        }
    }

    /// Lets the others go on beside an attempt that ran alone and is not yet through. Returns true
    /// if there was one.
    fn force_open(&mut self, now: Instant) -> bool {
        let Some(closed) = self.closed.take() else { return false };
        self.beside += usize::from(closed.is_alone);
        self.open_until = now + (now - closed.since);
        closed.is_alone
    }
}

impl Gate {
    /// A gate that is open for ever, or that attempts may close to run alone.
    pub(super) fn new(is_over: bool, limit: Duration) -> Self {
        let open_until = Instant::now();
        let state = State { beside: 0, closed: None, open_until, next: 0, is_over };
        Gate { state: Mutex::new(state), changed: watch::Sender::new(()), limit }
    }

    /// True if it stays open for ever.
    pub(super) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    /// Opens it for ever.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.is_over = true;
        state.force_open(Instant::now());
        drop(state);
        self.changed.send_replace(());
    }

    /// Waits until the gate is open.
    pub(super) async fn beside(&self) -> Pass<'_> {
        let mut changed = self.changed.subscribe();
        loop {
            let until = match self.enter() {
                Ok(pass) => return pass,
                Err(until) => until,
            };
            // The loop sees above if it was opened or the time is up.
            let _ = timeout_at(until, changed.changed()).await;
        }
    }

    /// Waits until no other attempt is behind the gate. The gate stays closed until the pass is
    /// dropped. If an attempt does not come out, the pass is for running beside others.
    pub(super) async fn alone(&self) -> Pass<'_> {
        let mut changed = self.changed.subscribe();
        let mut pass = loop {
            let until = match self.close() {
                Ok(pass) => break pass,
                Err(until) => until,
            };
            let _ = timeout_at(until, changed.changed()).await;
        };
        while let Err(until) = self.turn_alone(&mut pass) {
            let _ = timeout_at(until, changed.changed()).await;
        }
        pass
    }

    fn enter(&self) -> Result<Pass<'_>, Instant> {
        let now = Instant::now();
        let mut state = self.lock();
        let has_forced = state.open_in_time(now)?;
        state.beside += 1;
        Ok(Pass { gate: self, kind: PassKind::Beside, has_forced })
    }

    fn close(&self) -> Result<Pass<'_>, Instant> {
        let now = Instant::now();
        let mut state = self.lock();
        let has_forced = state.open_in_time(now)?;
        if state.is_over {
            state.beside += 1;
            return Ok(Pass { gate: self, kind: PassKind::Beside, has_forced });
        }
        if now < state.open_until {
            return Err(state.open_until);
        }
        let by = state.next;
        state.next += 1;
        state.closed = Some(Closed { by, since: now, until: self.until(now), is_alone: false });
        drop(state);
        // This tells attempts beside it that take too long.
        self.changed.send_replace(());
        Ok(Pass { gate: self, kind: PassKind::Closing(by), has_forced })
    }

    /// Lets the attempt that has closed the gate run alone, or beside others if it cannot be alone.
    /// Else returns the time until which it has to wait.
    fn turn_alone(&self, pass: &mut Pass<'_>) -> Result<(), Instant> {
        let PassKind::Closing(by) = pass.kind else { return Ok(()) };
        let now = Instant::now();
        let mut state = self.lock();
        let is_free = state.beside == 0;
        match state.closed.as_mut().filter(|closed| closed.by == by) {
            Some(closed) if is_free => {
                closed.is_alone = true;
                closed.until = self.until(now);
                pass.kind = PassKind::Alone(by);
                return Ok(());
            }
            Some(closed) if now < closed.until => return Err(closed.until),
            Some(_) => {
                state.force_open(now);
            }
            // The others would not wait any longer.
            None => {}
        }
        state.beside += 1;
        pass.kind = PassKind::Beside;
        drop(state);
        self.changed.send_replace(());
        Ok(())
    }

    /// The time until which the others wait at the most: half as long again as an attempt may take.
    fn until(&self, now: Instant) -> Instant {
        now + self.limit + self.limit / 2
    }

    /// A state is never half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock::hold(&self.state)
    }
}

/// The right to be behind the gate, until it is dropped.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    kind: PassKind,
    /// An attempt that ran alone before is still behind the gate.
    pub(super) has_forced: bool,
}

enum PassKind {
    Beside,
    Closing(u64),
    Alone(u64),
}

impl Pass<'_> {
    /// True if nobody else is behind the gate.
    pub(super) fn is_alone(&self) -> bool {
        matches!(self.kind, PassKind::Alone(_))
    }

    /// Returns when it is time to come out; never, once the gate is open for ever.
    pub(super) async fn overdue(&self) {
        sleep(self.gate.limit).await;
        let mut changed = self.gate.changed.subscribe();
        loop {
            {
                let state = self.gate.lock();
                if !state.is_over && (self.is_alone() || state.closed.is_some()) {
                    return;
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.gate.lock();
        match self.kind {
            PassKind::Beside => state.beside = state.beside.saturating_sub(1),
            PassKind::Closing(by) | PassKind::Alone(by) => {
                match state.closed.take_if(|closed| closed.by == by) {
                    Some(closed) => state.open_until = now + (now - closed.since),
                    // It was counted among the others when they went on.
                    None if self.is_alone() => state.beside = state.beside.saturating_sub(1),
                    None => {}
                }
            }
        }
        drop(state);
        self.gate.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::delivery::deaths::gate::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn gate() -> Arc<Gate> {
        Arc::new(Gate::new(false, LIMIT))
    }

    async fn seconds<T>(waiting: impl Future<Output = T>) -> (T, u64) {
        let began = Instant::now();
        let result = waiting.await;
        (result, began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn one_is_alone_when_the_others_are_through_and_they_wait_meanwhile() {
        let gate = gate();
        let (first, second) = (gate.beside().await, gate.beside().await);
        let closing = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move {
                let pass = gate.alone().await;
                sleep(Duration::from_secs(3)).await;
                pass.is_alone()
            }
        });
        sleep(Duration::from_secs(2)).await;
        drop((first, second));
        let (third, waited) = seconds(gate.beside()).await;
        assert_eq!((waited, closing.await.unwrap()), (3, true));
        drop(third);
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_2_whoever_hangs_alone_keeps_the_others_out_for_a_while_and_not_again_at_once()
     {
        let gate = gate();
        let stuck = gate.alone().await;
        let ((), overdue) = seconds(stuck.overdue()).await;
        let (others, waited) = seconds(gate.beside()).await;
        assert_eq!((overdue, waited, others.has_forced), (10, 5, true));
        let ((), waited) = seconds(async { drop(gate.beside().await) }).await;
        assert_eq!(waited, 0);
        drop(others);
        // It still hangs. So the next one does not run alone, and does not wait for ever.
        let (next, waited) = seconds(gate.alone()).await;
        assert_eq!((next.is_alone(), waited), (false, 30));
        drop((stuck, next));
        assert!(gate.alone().await.is_alone());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_long_goes_on_until_another_waits_to_be_alone() {
        let gate = gate();
        let long = gate.beside().await;
        let waiting = tokio::time::timeout(Duration::from_secs(100), long.overdue());
        assert!(waiting.await.is_err());
        let closing = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.alone().await.is_alone() }
        });
        let ((), told) = seconds(long.overdue()).await;
        assert_eq!(told, 10);
        drop(long);
        assert!(closing.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_gives_up_waiting_opens_the_gate() {
        let gate = gate();
        let long = gate.beside().await;
        let waiting = tokio::time::timeout(Duration::from_secs(1), gate.alone());
        assert!(waiting.await.is_err());
        let (_second, waited) = seconds(gate.beside()).await;
        assert_eq!(waited, 0);
        drop(long);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_that_is_open_for_ever_lets_all_in() {
        let gate = gate();
        let alone = gate.alone().await;
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move {
                drop(gate.beside().await);
                gate.alone().await.is_alone()
            }
        });
        tokio::task::yield_now().await;
        gate.end();
        assert!(!waiting.await.unwrap());
        assert!(tokio::time::timeout(LIMIT * 9, alone.overdue()).await.is_err());
    }
}
