//! A circuit breaker: after several failures in a row only one writer at a time tries the server.
//!
//! ```text
//!            failures reach the threshold
//!  closed ───────────────────────────────▶ open ──┐ one writer at a time probes,
//!     ▲                                      │     │ after its back-off
//!     └──────────────────────────────────────┘ ◀──┘
//!                a probe succeeds
//! ```
//!
//! Every writer of a sink shares the breaker. While it is closed they all write. While it is open
//! they queue for the one permit: a server that comes back should be met by one connection, not by
//! all.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::{Mutex, MutexGuard};

/// Failures in a row that open the breaker.
const THRESHOLD: u32 = 3;

/// The breaker of one sink.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: AtomicU32,
    open: AtomicBool,
    probe: Mutex<()>,
}

/// The right to try the server once. Held while trying, and while waiting for the next try.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    breaker: &'a Breaker,
    _probe: Option<MutexGuard<'a, ()>>,
}

impl Breaker {
    /// Waits until this writer may try.
    pub(crate) async fn permit(&self) -> Permit<'_> {
        if !self.is_open() {
            return Permit { breaker: self, _probe: None };
        }
        let probe = self.probe.lock().await;
        // Another writer's probe may have closed the breaker meanwhile.
        Permit { breaker: self, _probe: self.is_open().then_some(probe) }
    }

    /// True while only probes are let through.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }
}

impl Permit<'_> {
    /// The try worked.
    pub(crate) fn succeeded(&self) {
        self.breaker.failures.store(0, Ordering::Release);
        self.breaker.open.store(false, Ordering::Release);
    }

    /// The try failed.
    pub(crate) fn failed(&self) {
        let failures = self.breaker.failures.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        if failures >= THRESHOLD {
            self.breaker.open.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use crate::delivery::breaker::*;

    #[tokio::test(start_paused = true)]
    async fn only_one_probes_while_it_is_open() {
        let breaker = Breaker::default();
        for _ in 0..THRESHOLD {
            assert!(!breaker.is_open());
            breaker.permit().await.failed();
        }
        assert!(breaker.is_open());
        let probe = breaker.permit().await;
        let second = timeout(Duration::from_secs(60), breaker.permit()).await;
        assert!(second.is_err(), "a second writer got through");
        probe.succeeded();
        drop(probe);
        let (first, second) = (breaker.permit().await, breaker.permit().await);
        first.succeeded();
        second.succeeded();
        assert!(!breaker.is_open());
    }
}
