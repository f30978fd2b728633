//! Hands dead letters that are marked for replay to their sinks once more.
//!
//! A letter leaves the database when its sink has kept the event; until then a crash changes
//! nothing. One letter at a time: a replay is rare, and slow is better than in the way.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::dead_letter::{DeadLetterError, DeadLetters, Replay};
use crate::event::Share;
use crate::receipt::Claim;
use crate::sink::{blocking, chain};
use crate::state::SinkState;

/// How often to look for letters that were marked.
const LOOK: Duration = Duration::from_secs(1);

/// How long to wait for room in a sink's channel.
const FULL_CHANNEL_WAIT: Duration = Duration::from_millis(10);

/// The way to a sink's spooler.
pub struct Way {
    /// The sink's name.
    pub sink: String,
    /// To its spooler.
    pub shares: Sender<Share>,
    /// Where the number of its letters is shown.
    pub state: Arc<SinkState>,
}

/// Looks for marked letters and hands them over until `stop` is cancelled.
pub async fn run(letters: Arc<DeadLetters>, ways: Vec<Way>, stop: CancellationToken) {
    let looking = async {
        let mut shown = None;
        loop {
            if let Err(error) = show(&letters, &ways, &mut shown) {
                warn!(error = chain(&error), "dead letters cannot be counted");
            }
            if let Err(error) = pass(&letters, &ways).await {
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
    ways: &[Way],
    shown: &mut Option<(i64, i64)>,
) -> Result<(), DeadLetterError> {
    let version = blocking(|| letters.version())?;
    if *shown == Some(version) {
        return Ok(());
    }
    let counts = blocking(|| letters.counts())?;
    for way in ways {
        let count = counts.iter().find(|(sink, _)| *sink == way.sink);
        let count = count.map_or(0, |(_, count)| *count);
        way.state.dead_letters.set_count(usize::try_from(count).unwrap_or(usize::MAX));
    }
    *shown = Some(version);
    Ok(())
}

async fn pass(letters: &DeadLetters, ways: &[Way]) -> Result<(), DeadLetterError> {
    let (mut after, mut kept) = (0, 0);
    while let Some(Replay { letter, share }) = blocking(|| letters.next_replay(after))? {
        after = letter.id;
        let way = ways.iter().find(|way| way.sink == letter.sink);
        let (Some(way), Some(share)) = (way, share) else { continue };
        if hand_over(way, share).await {
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
async fn hand_over(way: &Way, share: Share) -> bool {
    let (claim, receipt) = Claim::new();
    let mut share = share.claimed(Some(claim));
    loop {
        match way.shares.try_send(share) {
            Ok(()) => return receipt.await.unwrap_or(false),
            Err(TrySendError::Full(back)) => share = back,
            Err(TrySendError::Disconnected(_)) => return false,
        }
        sleep(FULL_CHANNEL_WAIT).await;
    }
}
