//! The wait before the next try: twice as long each time, up to a limit, with jitter.

use std::time::Duration;

/// Delays that double from `initial` to `max`. Each is spread over its upper half at random, so
/// that many daemons that lost the same server do not come back together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    initial: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays from `initial` to `max`.
    pub(crate) fn new(initial: Duration, max: Duration) -> Self {
        let initial = initial.min(max).max(Duration::from_millis(1));
        Backoff { initial, max: max.max(initial), next: initial }
    }

    /// The next delay; not shorter than what the server asked for.
    pub(crate) fn delay(&mut self, asked_for: Option<Duration>) -> Duration {
        let delay = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(self.max);
        delay.max(asked_for.unwrap_or_default())
    }

    /// Begins again with the shortest delay.
    pub(crate) fn reset(&mut self) {
        self.next = self.initial;
    }
}

#[cfg(test)]
mod tests {
    use crate::client::backoff::*;

    #[test]
    fn delays_double_up_to_the_limit() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        for upper in [1, 2, 4, 5, 5] {
            let upper = Duration::from_secs(upper);
            let delay = backoff.delay(None);
            assert!(delay >= upper / 2 && delay <= upper, "{delay:?} for {upper:?}");
        }
        backoff.reset();
        assert!(backoff.delay(None) <= Duration::from_secs(1));
        assert_eq!(backoff.delay(Some(Duration::from_secs(9))), Duration::from_secs(9));
    }
}
