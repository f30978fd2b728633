//! The connection of a source: the metrics and log lines of its coming and going.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::client::backoff::Backoff;
use crate::observe::state::SourceState;

/// The history of a source's connection, counted and logged when it comes and goes.
#[derive(Debug)]
pub(crate) struct Link {
    state: Arc<SourceState>,
    backoff: Backoff,
    lost_since: Option<Instant>,
    /// Events that come meanwhile are kept until the link is up again.
    keeps: bool,
}

/// The wait before the first try to connect again, and the longest.
pub(crate) const RECONNECT: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(10));

impl Link {
    /// A link that was never up.
    pub(crate) fn new(state: Arc<SourceState>) -> Self {
        let backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
        Link { state, backoff, lost_since: None, keeps: false }
    }

    /// A link to something that keeps events for as long as the link is down.
    pub(crate) fn keeping(state: Arc<SourceState>) -> Self {
        Link { keeps: true, ..Link::new(state) }
    }

    /// The connection is there.
    pub(crate) fn up(&mut self, to: &str) {
        self.state.connected.set_bool(true);
        self.state.connects.add(1);
        match self.lost_since.take() {
            Some(since) => {
                let gap = since.elapsed();
                self.state.gap_seconds.add(gap);
                let (source, gap_seconds) = (&self.state.name, gap.as_secs_f64());
                if self.keeps {
                    info!(source, to, gap_seconds, "connected again");
                } else {
                    let told = "connected again; events of the gap were not seen";
                    warn!(source, to, gap_seconds, "{told}");
                }
            }
            None => info!(source = self.state.name, to, "connected"),
        }
    }

    /// The connection works: the next wait is short again.
    pub(crate) fn works(&mut self) {
        self.backoff.reset();
    }

    /// The connection was lost.
    pub(crate) fn lost(&mut self, reason: &str) {
        self.state.connected.set_bool(false);
        self.state.gaps.add(1);
        self.lost_since.get_or_insert_with(Instant::now);
        if self.state.failed(reason) {
            warn!(source = self.state.name, reason, "the connection was lost");
        }
    }

    /// A connection could not be made.
    pub(crate) fn absent(&mut self, reason: &str) {
        if self.state.failed(reason) {
            warn!(source = self.state.name, reason, "cannot connect, trying again");
        }
    }

    /// The connection is there.
    pub(crate) fn is_up(&self) -> bool {
        self.state.connected.get() > 0.0
    }

    /// Waits for the next try, which an operator may ask for before its time.
    pub(crate) async fn wait(&mut self) {
        if timeout(self.backoff.delay(None), self.state.asked_to_try()).await.is_ok() {
            self.backoff.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::source::link::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_the_next_try_is_cut_short_on_request() {
        let state = Arc::new(SourceState::new("bus", "salt_bus", "m"));
        let mut link = Link::new(Arc::clone(&state));
        for _ in 0..10 {
            link.wait().await;
        }
        let began = Instant::now();
        let asking = async { state.try_now() };
        tokio::join!(biased; link.wait(), asking);
        assert_eq!(began.elapsed(), Duration::ZERO);
        link.wait().await;
        assert!(began.elapsed() <= RECONNECT.0, "it begins again with the shortest wait");
    }
}
