//! Hands dead letters that are marked for replay to their sinks once more.
//!
//! A letter leaves the database when its sink has kept the event; until then a crash changes
//! nothing. One letter at a time: a replay is rare, and slow is better than in the way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::TrySendError;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::chunk::Share;
use crate::dead_letter::{DeadLetterError, DeadLetters, Replay};
use crate::doorbell::Sender;
use crate::receipt::Claim;
use crate::sink::{blocking, chain};
use crate::state::SinkState;

/// How often to look for letters that were marked.
const LOOK: Duration = Duration::from_secs(1);

/// How long to wait for room in a sink's channel.
const FULL_CHANNEL_WAIT: Duration = Duration::from_millis(10);

/// The ways to the sinks' spoolers, by the sinks' names. Once closed they stay closed, so that no
/// spooler waits for a sender that nobody will drop.
pub struct Ways {
    open: Mutex<Option<HashMap<String, Way>>>,
    /// How many were ever opened.
    opened: AtomicU64,
}

struct Way {
    shares: Sender<Share>,
    /// Where the number of the sink's letters is shown.
    state: Arc<SinkState>,
}

impl Ways {
    /// None yet.
    pub fn new() -> Self {
        Ways { open: Mutex::new(Some(HashMap::new())), opened: AtomicU64::new(0) }
    }

    /// Opens the way to a sink.
    pub fn open(&self, sink: &str, shares: Sender<Share>, state: Arc<SinkState>) {
        if let Some(ways) = &mut *self.lock() {
            ways.insert(sink.to_owned(), Way { shares, state });
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// Closes the way to a sink.
    pub fn close(&self, sink: &str) {
        if let Some(ways) = &mut *self.lock() {
            ways.remove(sink);
        }
    }

    fn to(&self, sink: &str) -> Option<Sender<Share>> {
        self.lock().as_ref()?.get(sink).map(|way| way.shares.clone())
    }

    /// How many ways were ever opened, and the states of the sinks that have one.
    fn states(&self) -> (u64, Vec<Arc<SinkState>>) {
        let opened = self.opened.load(Ordering::Relaxed);
        let ways = self.lock();
        let states = ways.iter().flat_map(HashMap::values).map(|way| Arc::clone(&way.state));
        (opened, states.collect())
    }

    /// A map is never half changed.
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<String, Way>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Ways {
    fn default() -> Self {
        Ways::new()
    }
}

/// Closes all ways when replaying ends, however it does.
struct Closing(Arc<Ways>);

impl Drop for Closing {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

/// Looks for marked letters and hands them over until `stop` is cancelled; then closes the ways.
pub async fn run(letters: Arc<DeadLetters>, ways: Arc<Ways>, stop: CancellationToken) {
    let closing = Closing(ways);
    let ways = &closing.0;
    let looking = async {
        let mut shown = None;
        loop {
            if let Err(error) = show(&letters, ways, &mut shown) {
                warn!(error = chain(&error), "dead letters cannot be counted");
            }
            if let Err(error) = pass(&letters, ways).await {
                error!(error = chain(&error), "dead letters cannot be replayed");
            }
            sleep(LOOK).await;
        }
    };
    stop.run_until_cancelled(looking).await;
}

/// Shows how many letters each sink has, if the letters have changed since `shown`.
fn show(
    letters: &DeadLetters,
    ways: &Ways,
    shown: &mut Option<(u64, (i64, i64))>,
) -> Result<(), DeadLetterError> {
    // A sink that was begun anew may have a state of its own, which shows nothing yet.
    let (opened, states) = ways.states();
    let version = (opened, blocking(|| letters.version())?);
    if *shown == Some(version) {
        return Ok(());
    }
    let counts = blocking(|| letters.counts())?;
    for state in states {
        let count = counts.iter().find(|(sink, _)| *sink == state.name);
        let count = count.map_or(0, |(_, count)| *count);
        state.dead_letters.set_count(usize::try_from(count).unwrap_or(usize::MAX));
    }
    *shown = Some(version);
    Ok(())
}

async fn pass(letters: &DeadLetters, ways: &Ways) -> Result<(), DeadLetterError> {
    let (mut after, mut kept) = (0, 0);
    while let Some(Replay { letter, share }) = blocking(|| letters.next_replay(after))? {
        after = letter.id;
        let (Some(shares), Some(share)) = (ways.to(&letter.sink), share) else { continue };
        if hand_over(shares, share).await {
            blocking(|| letters.replayed(letter.id))?;
            kept += 1;
        } else {
            warn!(sink = letter.sink, letter = letter.id, "the dead letter was not kept; it stays");
        }
    }
    if kept > 0 {
        info!(events = kept, "dead letters were handed to their sinks again");
    }
    Ok(())
}

/// Whether the sink has kept the event.
async fn hand_over(shares: Sender<Share>, share: Share) -> bool {
    let (claim, receipt) = Claim::new();
    let mut share = share.claimed(Some(claim));
    loop {
        match shares.try_send(share) {
            Ok(()) => {
                // A sink that is removed meanwhile must not wait for this sender.
                drop(shares);
                return receipt.await.unwrap_or(false);
            }
            Err(TrySendError::Full(back)) => share = back,
            Err(TrySendError::Disconnected(_)) => return false,
        }
        sleep(FULL_CHANNEL_WAIT).await;
    }
}
