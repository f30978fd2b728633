//! Hands dead letters that are marked for replay to their sinks once more.
//!
//! A letter leaves the database when its sink has kept the event; until then a crash changes
//! nothing. Letters go in the order of their numbers, some hundreds at a time, and the next ones
//! when the sink has kept those. Each sink has a task of its own, so a sink that is slow to keep
//! its letters does not hold up the others.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crossbeam_channel::TrySendError;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::delivery::dead_letter::{DeadLetterError, DeadLetters, Letter};
use crate::error::chain;
use crate::event::Origin;
use crate::event::chunk::{Chunk, Share};
use crate::observe::state::{SinkState, State};
use crate::queue::parcel::Parcel;
use crate::sync::bell::Sender;
use crate::sync::blocking;
use crate::sync::lock;
use crate::sync::receipt::{Claim, Receipt};

/// The interval at which to look for letters that were marked.
const LOOK: Duration = Duration::from_secs(1);

/// The time to wait for room in a sink's channel.
const FULL_CHANNEL_WAIT: Duration = Duration::from_millis(10);

/// The ways to the sinks' spoolers, by the sinks' names. Once closed they stay closed, so that no
/// spooler waits for a sender that nobody will drop.
pub(crate) struct LetterChannels {
    open: Mutex<Option<HashMap<String, LetterChannel>>>,
}

struct LetterChannel {
    shares: Sender<Parcel>,
    /// The place where the number of the sink's letters is shown.
    state: Arc<SinkState>,
}

impl LetterChannels {
    /// None yet.
    pub(crate) fn new() -> Self {
        LetterChannels { open: Mutex::new(Some(HashMap::new())) }
    }

    /// Opens the way to a sink.
    pub(crate) fn open(&self, sink: &str, shares: Sender<Parcel>, state: Arc<SinkState>) {
        if let Some(letter_channels) = &mut *self.lock() {
            letter_channels.insert(sink.to_owned(), LetterChannel { shares, state });
        }
    }

    /// Closes the way to a sink.
    pub(crate) fn close(&self, sink: &str) {
        if let Some(letter_channels) = &mut *self.lock() {
            letter_channels.remove(sink);
        }
    }

    fn to(&self, sink: &str) -> Option<Sender<Parcel>> {
        self.lock().as_ref()?.get(sink).map(|channel| channel.shares.clone())
    }

    /// The states of the sinks that have a way.
    fn states(&self) -> Vec<Arc<SinkState>> {
        let letter_channels = self.lock();
        let states = letter_channels
            .iter()
            .flat_map(HashMap::values)
            .map(|channel| Arc::clone(&channel.state));
        states.collect()
    }

    /// A map is never half changed.
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<String, LetterChannel>>> {
        lock::hold(&self.open)
    }
}

impl Default for LetterChannels {
    fn default() -> Self {
        LetterChannels::new()
    }
}

/// Closes all ways when replaying ends, also by a panic.
struct Closing(Arc<LetterChannels>);

impl Drop for Closing {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

/// Looks for marked letters and hands them over until `stop` is cancelled; then closes the ways and
/// waits for the receipts of the last ones.
pub(crate) async fn run(
    letters: Arc<DeadLetters>,
    letter_channels: Arc<LetterChannels>,
    state: Arc<State>,
    stop: CancellationToken,
) {
    let closing = Closing(Arc::clone(&letter_channels));
    let mut passes = Passes { letters, letter_channels, stop: stop.clone(), busy: Busy::default() };
    let mut tasks = JoinSet::new();
    while !stop.is_cancelled() {
        let trouble = blocking(|| passes.letters.heal());
        let shown = if trouble.is_none() { passes.show() } else { Ok(()) };
        if let Err(error) = shown.and_then(|()| passes.begin(&mut tasks)) {
            error!(error = chain(&error), "dead letters cannot be replayed");
        }
        state.set_trouble("dead letters cannot be kept", trouble);
        let _ = stop.run_until_cancelled(sleep(LOOK)).await;
        while let Some(ended) = tasks.try_join_next() {
            report(ended);
        }
    }
    // No spooler ends before, and some receipts come only when theirs ends.
    drop(closing);
    while let Some(ended) = tasks.join_next().await {
        report(ended);
    }
}

/// The handing over of each sink's letters.
struct Passes {
    letters: Arc<DeadLetters>,
    letter_channels: Arc<LetterChannels>,
    stop: CancellationToken,
    /// Sinks whose letters are on their way.
    busy: Busy,
}

type Busy = Arc<Mutex<HashSet<String>>>;

/// A sink's name, and how many of its letters were kept.
type Passed = (String, Result<usize, DeadLetterError>);

/// A sink whose letters are on their way. It is not busy any more once this is dropped, also by a
/// panic.
struct Pass {
    sink: String,
    busy: Busy,
}

impl Pass {
    /// `None` if the sink is busy.
    fn begin(sink: &str, busy: &Busy) -> Option<Self> {
        let is_new = lock(busy).insert(sink.to_owned());
        is_new.then(|| Pass { sink: sink.to_owned(), busy: Arc::clone(busy) })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        lock(&self.busy).remove(&self.sink);
    }
}

/// A set is never half changed.
fn lock(busy: &Busy) -> MutexGuard<'_, HashSet<String>> {
    lock::hold(busy)
}

impl Passes {
    /// Shows how many letters each sink has.
    fn show(&self) -> Result<(), DeadLetterError> {
        let counts = blocking(|| self.letters.counts())?;
        for state in self.letter_channels.states() {
            let count = counts.iter().find(|(sink, _)| *sink == state.name);
            let count = count.map_or(0, |(_, count)| *count);
            state.dead_letters.set_count(usize::try_from(count).unwrap_or(usize::MAX));
        }
        Ok(())
    }

    /// Begins to hand over the letters of each sink that has some and is not busy.
    fn begin(&mut self, tasks: &mut JoinSet<Passed>) -> Result<(), DeadLetterError> {
        for (sink, _) in blocking(|| self.letters.marked())? {
            if self.letter_channels.to(&sink).is_none() {
                continue;
            }
            let Some(busy) = Pass::begin(&sink, &self.busy) else { continue };
            let (letters, letter_channels) =
                (Arc::clone(&self.letters), Arc::clone(&self.letter_channels));
            let stop = self.stop.clone();
            tasks.spawn(async move {
                let passed = pass(&letters, &letter_channels, &sink, &stop).await;
                drop(busy);
                (sink, passed)
            });
        }
        Ok(())
    }
}

/// Logs the result of handing letters over.
fn report(ended: Result<Passed, JoinError>) {
    match ended {
        Ok((_, Ok(0))) => {}
        Ok((sink, Ok(events))) => info!(sink, events, "dead letters were handed to their sink"),
        Ok((sink, Err(error))) => {
            error!(sink, error = chain(&error), "dead letters cannot be replayed");
        }
        Err(error) => error!(%error, "handing over dead letters failed; a bug in saltern"),
    }
}

/// Hands a sink's letters over, some at a time; returns how many it has kept.
async fn pass(
    letters: &DeadLetters,
    letter_channels: &LetterChannels,
    sink: &str,
    stop: &CancellationToken,
) -> Result<usize, DeadLetterError> {
    let (mut after, mut kept) = (0, 0);
    loop {
        let next = blocking(|| letters.next_replays(sink, after))?;
        let Some(last) = next.last() else { return Ok(kept) };
        after = last.id;
        let mut receipts = Vec::new();
        for (share, ids) in shares(&next) {
            let Some(channel) = letter_channels.to(sink) else { break };
            let handing = stop.run_until_cancelled(hand_over(channel, share));
            let Some(Some(receipt)) = handing.await else { break };
            receipts.push((receipt, ids));
        }
        let (mut gone, mut stay) = (Vec::new(), 0);
        for (receipt, ids) in receipts {
            match receipt.await {
                Ok(true) => gone.extend(ids),
                _ => stay += ids.len(),
            }
        }
        if stay > 0 {
            warn!(sink, letters = stay, "dead letters were not kept; they stay");
        }
        blocking(|| letters.replayed(&gone))?;
        kept += gone.len();
        if stop.is_cancelled() || letter_channels.to(sink).is_none() {
            return Ok(kept);
        }
    }
}

/// The letters' events as shares, with the letters' numbers: those that come from one place and
/// were read at one time together. A letter that is damaged is in none and stays.
fn shares(letters: &[Letter]) -> Vec<(Share, Vec<i64>)> {
    let is_of_one = |a: &Letter, b: &Letter| {
        let whence = |letter: &Letter| (letter.received, letter.authority);
        (&a.source, &a.master_id, whence(a)) == (&b.source, &b.master_id, whence(b))
    };
    let mut shares = Vec::new();
    for together in letters.chunk_by(is_of_one) {
        let whole = together.iter().filter_map(|letter| Some((letter.event()?, letter.id)));
        let (events, ids): (Vec<_>, Vec<_>) = whole.unzip();
        let Some(first) = together.first().filter(|_| !events.is_empty()) else { continue };
        let (source, master_id) = (first.source.clone(), first.master_id.clone());
        let received = u64::try_from(first.received).unwrap_or_default();
        let chunk = Chunk::new(Arc::new(Origin { source, master_id }), received, events)
            .vouched_for_by(first.authority);
        shares.push((Share::all(Arc::new(chunk)), ids));
    }
    shares
}

/// Puts a share into a sink's channel. The receipt says whether the sink has kept it; `None` if the
/// sink is gone. A sink that is removed meanwhile does not wait for this sender.
async fn hand_over(channel: Sender<Parcel>, share: Share) -> Option<Receipt> {
    let (claim, receipt) = Claim::new();
    let mut parcel = Parcel::from(share).claimed(Some(claim));
    loop {
        match channel.try_send(parcel) {
            Ok(()) => return Some(receipt),
            Err(TrySendError::Full(back)) => parcel = back,
            Err(TrySendError::Disconnected(_)) => return None,
        }
        sleep(FULL_CHANNEL_WAIT).await;
    }
}

#[cfg(test)]
mod tests {
    use crate::delivery::dead_letter::{LetterSelection, Refused};
    use crate::event::batch::Entry;
    use crate::event::{Authority, Event};
    use crate::pipeline::replay_letters::*;
    use crate::sync::bell::{Bell, channel};

    /// The sinks `db` and `file` with 300 marked letters each.
    fn letters(folder: &tempfile::TempDir) -> Arc<DeadLetters> {
        let letters = DeadLetters::open(folder.path(), 1 << 20).unwrap();
        let origin = Origin { source: "bus".into(), master_id: "m".into() };
        for sink in ["db", "file"] {
            let events: Vec<_> = (0..300).map(|n| Event::new(&n.to_string(), b"\x80")).collect();
            let refused = events.iter().map(|event| Refused {
                entry: Entry { event, origin: &origin, received: 5, authority: Authority::Bus },
                reason: "no",
                attempts: 1,
            });
            letters.keep(sink, &refused.collect::<Vec<_>>()).unwrap();
        }
        letters.mark_for_replay(&LetterSelection::default()).unwrap();
        Arc::new(letters)
    }

    fn tags(share: &Share) -> Vec<String> {
        share.events().map(|event| event.tag().to_owned()).collect()
    }

    #[tokio::test]
    async fn a_sink_whose_letters_could_not_be_handed_over_for_a_panic_is_not_busy_for_ever() {
        let busy = Busy::default();
        let pass = Pass::begin("db", &busy).unwrap();
        assert!(Pass::begin("db", &busy).is_none());
        assert!(Pass::begin("file", &busy).is_some());
        let mut tasks = JoinSet::<Passed>::new();
        tasks.spawn(async move {
            let _busy = pass;
            panic!("out of luck")
        });
        assert!(tasks.join_next().await.unwrap().is_err());
        assert!(Pass::begin("db", &busy).is_some());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn letters_are_handed_over_together_in_order_and_leave_when_they_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let letters = letters(&folder);
        let (letter_channels, stop) = (Arc::new(LetterChannels::new()), CancellationToken::new());
        let (shares, shares_out) = channel(8, &Bell::default());
        letter_channels.open("db", shares, Arc::new(SinkState::new("db", "test")));
        // Its spooler never settles them.
        let (stuck, stuck_out) = channel(8, &Bell::default());
        letter_channels.open("file", stuck, Arc::new(SinkState::new("file", "test")));
        let state = Arc::new(State::default());
        let running = run(Arc::clone(&letters), Arc::clone(&letter_channels), state, stop.clone());
        let running = tokio::spawn(running);
        let taking = tokio::task::spawn_blocking(move || {
            let mut first = shares_out.recv().unwrap();
            first.take_claim().unwrap().honour();
            let mut second = shares_out.recv().unwrap();
            let refused = second.take_claim();
            // The sink loses an event that was not kept; it comes again.
            drop(refused);
            let mut again = shares_out.recv().unwrap();
            again.take_claim().unwrap().honour();
            (shares_out, [first, second, again].map(|parcel| tags(parcel.share())))
        });
        let (shares_out, [first, second, again]) = taking.await.unwrap();
        let numbers = |range: std::ops::Range<usize>| range.map(|n| n.to_string()).collect();
        let (expected, rest): (Vec<_>, Vec<_>) = (numbers(0..256), numbers(256..300));
        assert_eq!((first, &second, &again), (expected, &rest, &rest));
        stop.cancel();
        drop(stuck_out);
        running.await.unwrap();
        assert!(shares_out.recv().is_none(), "the ways are closed");
        assert_eq!(letters.counts().unwrap(), [("file".to_owned(), 300)]);
        assert_eq!(letters.marked().unwrap(), [("file".to_owned(), 300)]);
    }
}
