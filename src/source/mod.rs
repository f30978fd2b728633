//! What a source is: one kind of place that events come from, one file.
//!
//! A source hands frames on through its [`FrameSender`] and reports what happens to its connection
//! through its [`Link`]. It knows nothing of sinks. To add one, write the file, name it in `mod`
//! below and add its line to [`KINDS`].

use std::error::Error;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use crossbeam_channel::TrySendError;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::client::backoff::Backoff;
use crate::client::stream::Stream;
use crate::event::{Authority, Event, EventId, Origin};
use crate::jobs::Jobs;
use crate::observe::state::{self, SourceState};
use crate::sync::bell::Sender;
use crate::sync::receipt::{Claim, Receipt};
use crate::units::ByteSize;
use crate::yaml::{Node, Problem};

mod backfill;
mod bind;
pub(crate) mod coalesce;
pub mod framing;
mod kafka;
mod local_cache;
mod outstanding;
pub mod prefixed;
mod replay;
mod returner;
pub mod returner_wire;
mod returner_zeromq;
mod salt_bus;
mod written;
mod zeromq;

/// The longest frame or message that a source takes unless it is told.
fn default_max_frame() -> ByteSize {
    ByteSize::mib(64)
}

/// Every kind of source.
pub(crate) static KINDS: &[SourceKind] = &[
    SourceKind::of::<salt_bus::SaltBus>(),
    SourceKind::of::<returner::Returner>(),
    SourceKind::of::<returner_zeromq::ReturnerZeromq>(),
    SourceKind::of::<zeromq::Zeromq>(),
    SourceKind::of::<kafka::Kafka>(),
    SourceKind::of::<replay::Replay>(),
    SourceKind::of::<local_cache::LocalCache>(),
];

/// A place that events come from.
pub(crate) trait Source: Send + Sync + 'static {
    /// The kind's name in the configuration.
    const NAME: &'static str;
    /// What it reads, in one line.
    const ABOUT: &'static str;
    /// Whether it may bring the same event twice, so that repeats are dropped also where it is the
    /// only source.
    const REPEATS: bool = false;
    /// Whether it ends when there is no more to read. After an error it then begins anew only if it
    /// had not begun, since it would bring everything again.
    const ENDS: bool = false;
    /// The source's own part of the configuration; its doc comments are the reference manual.
    type Config: DeserializeOwned + JsonSchema + Send + Sync + 'static;

    /// Reads until there is no more to read or `stop` is cancelled. A source that can lose its
    /// connection makes it again by itself; after an error it is run again.
    fn run(
        config: &Self::Config,
        sender: FrameSender,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<(), SourceError>>;

    /// What the source wants with the job cache.
    fn job_cache(_config: &Self::Config) -> JobCache {
        JobCache::NotUsed
    }

    /// The socket file of a Salt master's bus, if that is what it reads.
    fn bus_socket(_config: &Self::Config) -> Option<PathBuf> {
        None
    }

    /// Hears of the buses that are read beside it; whether that makes a difference to it.
    fn beside(_config: &mut Self::Config, _buses: &[PathBuf]) -> bool {
        false
    }

    /// Event streams that it reads and that a sink could write.
    fn reads(_config: &Self::Config) -> Vec<Stream> {
        Vec::new()
    }

    /// Connects once and lets go again.
    fn probe(config: &Self::Config) -> impl Future<Output = Result<(), SourceError>>;
}

/// What a source wants with the job cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobCache {
    /// Nothing.
    NotUsed,
    /// Some of its work needs it: it is on unless it is turned off.
    Used,
    /// It cannot do its work without: it may not be turned off.
    Needed,
}

/// Why a source cannot be read: what was being done, to what, and the cause.
#[derive(Debug, Error)]
#[error("{doing}")]
pub(crate) struct SourceError {
    doing: String,
    #[source]
    cause: Box<dyn Error + Send + Sync>,
}

impl SourceError {
    /// An error while `doing`.
    pub(crate) fn new(
        doing: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        SourceError { doing: doing.into(), cause: cause.into() }
    }
}

/// Frames that a source read together.
#[derive(Debug)]
pub struct Frames {
    /// The source's state, where the dispatcher counts what it finds in the frames.
    pub state: Arc<SourceState>,
    /// The source and its master.
    pub origin: Arc<Origin>,
    /// See [`FrameSender::via`].
    pub via: &'static str,
    /// Who vouches for them.
    pub authority: Authority,
    /// When they were read, in microseconds since 1970.
    pub received: u64,
    /// Tag, empty line, payload, of each event.
    pub bodies: Vec<Bytes>,
    /// The ids that the events came with, in the order of the bodies; those behind the last came
    /// with none.
    pub ids: Vec<Option<EventId>>,
    /// Where the source waits until they are safe.
    pub claim: Option<Claim>,
}

/// Where a source puts its frames.
#[derive(Debug, Clone)]
pub(crate) struct FrameSender {
    /// The source and its master.
    pub(crate) origin: Arc<Origin>,
    /// Which of the ways that lead into the source, if there are several by which it may get the
    /// same event. What came by another way is a repeat.
    pub(crate) via: &'static str,
    /// Who vouches for what is handed on.
    pub(crate) authority: Authority,
    /// What the world sees of the source.
    pub(crate) state: Arc<SourceState>,
    /// To the dispatcher.
    pub(crate) frames: Sender<Frames>,
    /// The job cache, for sources that ask it or write to it.
    pub(crate) jobs: Jobs,
}

/// How long to wait for room in the dispatcher's channel before looking again.
const FULL_CHANNEL_WAIT: Duration = Duration::from_millis(1);

/// Frames of fewer bytes are copied into a block of their own. More than that is a fair part of the
/// block that they were read into, all of which a single frame holds: 256 KiB for most sources.
const FAIR: usize = 64 << 10;

/// The same frames in a block that has room for nothing else.
fn in_own_block(bodies: &[Bytes], bytes: usize) -> Vec<Bytes> {
    let mut block = BytesMut::with_capacity(bytes);
    for body in bodies {
        block.extend_from_slice(body);
    }
    let mut block = block.freeze();
    bodies.iter().map(|body| block.split_to(body.len())).collect()
}

impl FrameSender {
    /// Hands frames to the dispatcher; waits while its channel is full. Returns `false` when the
    /// dispatcher is gone and reading on is of no use.
    pub(crate) async fn send(&self, bodies: Vec<Bytes>) -> bool {
        bodies.is_empty() || self.hand_over(bodies, Vec::new(), None).await
    }

    /// As [`FrameSender::send`], with the `ids` that the events came with; the receipt says when
    /// the frames are safe, and whether they are.
    pub(crate) async fn send_for_receipt(
        &self,
        bodies: Vec<Bytes>,
        ids: Vec<Option<EventId>>,
    ) -> Option<Receipt> {
        let (claim, receipt) = Claim::new();
        self.hand_over(bodies, ids, Some(claim)).await.then_some(receipt)
    }

    /// Hands on an event that the daemon itself has made: none of those that the source has read.
    /// Returns `false` as [`FrameSender::send`] does.
    pub(crate) async fn tell(&self, event: &Event) -> bool {
        self.put(vec![event.frame().clone()], Vec::new(), None).await
    }

    async fn hand_over(
        &self,
        bodies: Vec<Bytes>,
        ids: Vec<Option<EventId>>,
        claim: Option<Claim>,
    ) -> bool {
        self.state.events.add(bodies.len() as u64);
        self.state.bytes.add(bodies.iter().map(Bytes::len).sum::<usize>() as u64);
        self.put(bodies, ids, claim).await
    }

    async fn put(
        &self,
        bodies: Vec<Bytes>,
        ids: Vec<Option<EventId>>,
        claim: Option<Claim>,
    ) -> bool {
        let bytes = bodies.iter().map(Bytes::len).sum();
        let bodies = if bytes < FAIR { in_own_block(&bodies, bytes) } else { bodies };
        let (state, origin) = (Arc::clone(&self.state), Arc::clone(&self.origin));
        let (via, authority, received) = (self.via, self.authority, state::now());
        let mut frames = Frames { state, origin, via, authority, received, bodies, ids, claim };
        let mut stalled_since = None;
        loop {
            match self.frames.try_send(frames) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => frames = back,
                Err(TrySendError::Disconnected(_)) => return false,
            }
            stalled_since.get_or_insert_with(Instant::now);
            sleep(FULL_CHANNEL_WAIT).await;
        }
        if let Some(since) = stalled_since {
            self.state.stalled.add(since.elapsed());
        }
        true
    }
}

/// The history of a source's connection: what is counted and logged when it comes and goes.
#[derive(Debug)]
pub(crate) struct Link {
    state: Arc<SourceState>,
    backoff: Backoff,
    lost_since: Option<Instant>,
    /// Whether what comes meanwhile is kept for when the link is up again.
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

    /// Whether the connection is there.
    pub(crate) fn is_up(&self) -> bool {
        self.state.connected.get() > 0.0
    }

    /// Waits for the next try, which somebody may ask for before its time.
    pub(crate) async fn wait(&mut self) {
        if timeout(self.backoff.delay(None), self.state.asked_to_try()).await.is_ok() {
            self.backoff.reset();
        }
    }
}

impl std::fmt::Debug for SourceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceState").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Reads a kind's own part of the configuration, noting what is wrong with it.
pub(crate) type Read = fn(&Node, &mut Vec<Problem>) -> Option<Arc<dyn Reader>>;

/// A kind of source, with its type erased.
pub(crate) struct SourceKind {
    /// The name in the configuration.
    pub(crate) name: &'static str,
    /// One line for people.
    pub(crate) about: &'static str,
    /// Whether it may bring the same event twice.
    pub(crate) repeats: bool,
    /// The JSON Schema of its configuration.
    pub(crate) schema: fn(&mut SchemaGenerator) -> Schema,
    /// Reads its configuration and notes every problem in it.
    pub(crate) read: Read,
}

impl SourceKind {
    const fn of<S: Source>() -> Self {
        SourceKind {
            name: S::NAME,
            about: S::ABOUT,
            repeats: S::REPEATS,
            schema: |generator| generator.subschema_for::<S::Config>(),
            read: |node, problems| Some(Arc::new(Configured::<S>(node.read_noting(problems)?))),
        }
    }

    /// The kind of this name.
    pub(crate) fn named(name: &str) -> Option<&'static SourceKind> {
        KINDS.iter().find(|kind| kind.name == name)
    }
}

/// A future of a [`Reader`]. Sources share one thread, so it need not be `Send`.
pub(crate) type Reading<'a> = Pin<Box<dyn Future<Output = Result<(), SourceError>> + 'a>>;

/// A source's configuration together with the code that it is for.
pub(crate) trait Reader: Send + Sync {
    /// Reads until there is no more to read or `stop` is cancelled.
    fn run(self: Arc<Self>, sender: FrameSender, stop: CancellationToken) -> Reading<'static>;

    /// See [`Source::job_cache`].
    fn job_cache(&self) -> JobCache;

    /// See [`Source::ENDS`].
    fn ends(&self) -> bool;

    /// See [`Source::bus_socket`].
    fn bus_socket(&self) -> Option<PathBuf> {
        None
    }

    /// See [`Source::beside`].
    fn beside(&mut self, _buses: &[PathBuf]) -> bool {
        false
    }

    /// See [`Source::reads`].
    fn reads(&self) -> Vec<Stream> {
        Vec::new()
    }

    /// Connects once and lets go again.
    fn probe(&self) -> Reading<'_>;
}

struct Configured<S: Source>(S::Config);

impl<S: Source> Reader for Configured<S> {
    fn run(self: Arc<Self>, sender: FrameSender, stop: CancellationToken) -> Reading<'static> {
        Box::pin(async move { S::run(&self.0, sender, stop).await })
    }

    fn job_cache(&self) -> JobCache {
        S::job_cache(&self.0)
    }

    fn ends(&self) -> bool {
        S::ENDS
    }

    fn bus_socket(&self) -> Option<PathBuf> {
        S::bus_socket(&self.0)
    }

    fn beside(&mut self, buses: &[PathBuf]) -> bool {
        S::beside(&mut self.0, buses)
    }

    fn reads(&self) -> Vec<Stream> {
        S::reads(&self.0)
    }

    fn probe(&self) -> Reading<'_> {
        Box::pin(S::probe(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::event::chunk::{Chunk, Share};
    use crate::queue::{Queue, SpillConfig, SpillMode, WhenFull};
    use crate::sync::bell::{Bell, channel};

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

    /// A block of memory that knows when it is let go of.
    struct Block {
        bytes: Vec<u8>,
        _alive: Arc<()>,
    }

    impl AsRef<[u8]> for Block {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }

    /// The bus reads events in ones and twos into blocks of 256 KiB, and a sink wants one of 64.
    #[tokio::test]
    async fn invariant_6_a_queue_of_few_events_holds_few_of_the_blocks_they_were_read_into() {
        const BLOCK: usize = 256 << 10;
        const EVENT: usize = BLOCK / 64;
        const BOUND: usize = 1 << 20;
        let spill = SpillConfig {
            mode: SpillMode::Memory,
            memory: Some(ByteSize(BOUND as u64)),
            when_full: WhenFull::DropNewest,
            ..SpillConfig::default()
        };
        let mut queue: Queue = Queue::new(1, spill, None);
        let state = Arc::new(SourceState::new("bus", "salt_bus", "m"));
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        let (frames, out) = channel(1, &Bell::default());
        let jobs = Jobs::new(std::path::Path::new("/nowhere"));
        let authority = Authority::Bus;
        let sender = FrameSender { origin, via: "", authority, state, frames, jobs };
        let alive = Arc::new(());
        while queue.take_losses().full == 0 {
            let mut bytes = vec![0xc0; BLOCK];
            for event in bytes.chunks_mut(EVENT) {
                event[..3].copy_from_slice(b"t\n\n");
            }
            let block = Bytes::from_owner(Block { bytes, _alive: Arc::clone(&alive) });
            let events = (0..64).map(|place| block.slice(place * EVENT..(place + 1) * EVENT));
            for (place, event) in events.enumerate() {
                assert!(sender.send(vec![event]).await);
                let Frames { origin, received, bodies, .. } = out.recv().unwrap();
                let events = bodies.into_iter().map(|body| Event::parse(body).unwrap()).collect();
                if place == 32 {
                    let chunk = Arc::new(Chunk::new(origin, received, events));
                    queue.push(Share::all(chunk), std::time::Instant::now());
                }
            }
        }
        assert!(queue.waiting() > 50);
        let held = (Arc::strong_count(&alive) - 1) * BLOCK;
        assert!(held <= 4 * BOUND, "{held} bytes are held by {} events", queue.waiting());
    }
}
