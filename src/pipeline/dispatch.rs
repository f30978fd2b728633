//! The dispatcher: one thread that makes events of frames and gives each sink its share of them.
//!
//! It splits tag from payload and hides what the rules name. It counts what a reader of the bus
//! should know of: values that the master trimmed, events of a cluster peer. It asks each sink's
//! filter, and hands each sink its events, shared by `Arc`. It waits for a sink only if that sink's
//! spooler does not take shares off its channel, which it always does.
//!
//! Sinks come and change while it works, by [`Change`]s. A sink that goes needs none. Its spooler
//! drops its end of the channel, and the dispatcher drops the sink at the next share for it.

use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use crossbeam_channel::TrySendError;
use memchr::memmem;
use tokio::sync::broadcast;
use tracing::debug;

use crate::estate::EstateSender;
use crate::event::Event;
use crate::event::chunk::{Chunk, Share};
use crate::event::filter::Filter;
use crate::event::job_load;
use crate::event::redact::Redaction;
use crate::event::trimmed::Trimmed;
use crate::observe::metrics::{self, Level};
use crate::observe::state::SinkState;
use crate::pipeline::dedupe::{Provenance, Recent, Seen};
use crate::pipeline::routes::Routes;
use crate::queue::parcel::Parcel;
use crate::queue::spill::record::Encoded;
use crate::source::frame_sender::Frames;
use crate::sync::bell::{Bell, IDLE, Receiver, Sender};
use crate::sync::receipt::Claim;

/// The text that is searched for before a payload is walked for a peer's id. It lacks the
/// underscores, which abound in Salt's states and would stop the search at each.
const PEER_HINT: &[u8] = b"peer";

/// One sink, as the dispatcher sees it.
pub struct SinkChannel {
    /// The filter of the sink.
    pub filter: Filter,
    /// To its spooler.
    pub shares: Sender<Parcel>,
    /// The sink wants an event again if the master vouches for it only now.
    pub ranks: bool,
    /// The sink is given a master's own calls about jobs.
    pub jobs: bool,
    /// The state of the sink that metrics and pages show.
    pub state: Arc<SinkState>,
}

/// All sinks.
pub struct SinkChannels {
    list: Vec<SinkChannel>,
    /// The routes to the sinks as they are now; `None` if they have changed.
    routes: Option<Routes>,
}

/// A chunk as a live watcher sees it.
#[derive(Debug, Clone)]
pub struct Tapped {
    /// Events that the dispatcher handled before this chunk, so that a watcher that was too slow
    /// can tell how many it missed.
    pub(crate) before: u64,
    /// The events.
    pub(crate) chunk: Arc<Chunk>,
}

/// A change of the sinks, or of other work on events.
pub enum Change {
    /// One more.
    Add(SinkChannel),
    /// Another filter for the sink of this name. Its channel stays, so that nothing is lost.
    Filter {
        /// The sink's name.
        sink: String,
        /// Its filter from now on.
        filter: Filter,
        /// Its state from now on.
        state: Arc<SinkState>,
    },
    /// The ids to compare with from now on; `None` to let repeats pass.
    Dedupe(Option<Recent>),
    /// The redaction of events from now on; `None` to hide nothing.
    Redact(Option<Arc<Redaction>>),
    /// The channel to the metrics of the estate; `None` if nothing is to be counted.
    Estate(Option<EstateSender>),
}

/// Everything that the dispatcher thread owns.
pub struct Dispatcher {
    /// Frames of the sources; closed when all have ended.
    pub frames: Receiver<Frames>,
    /// The sinks.
    pub sinks: SinkChannels,
    /// The ids that were seen a moment ago, if repeats are dropped.
    pub recent: Option<Recent>,
    /// The redaction of events, if something is hidden.
    pub redaction: Option<Arc<Redaction>>,
    /// Changes of the sinks, those of one reload together. Ring the bell of the frames.
    pub changes: Receiver<Vec<Change>>,
    /// Copies for the metrics of the estate, if they are wanted.
    pub estate: Option<EstateSender>,
    /// Copies for live watchers; a watcher that is too slow misses some.
    pub tap: broadcast::Sender<Tapped>,
}

impl Dispatcher {
    /// Works until every source has ended.
    pub fn run(mut self) {
        self.frames.bell().attend();
        let waiting = Level::new(metrics::DISPATCH_WAITING_CHUNKS, &[]);
        let trimmed = Trimmed::default();
        let peer = memmem::Finder::new(PEER_HINT);
        let mut before = 0;
        while let Some(mut frames) = self.next() {
            waiting.set_count(self.frames.len());
            let state = Arc::clone(&frames.state);
            let claim = frames.claim.take();
            let (via, authority) = (frames.via, frames.authority);
            let (origin, received) = (Arc::clone(&frames.origin), frames.received);
            let (mut events, read) = events_of(frames, self.sinks.list.len() > 1);
            let mut raised = Vec::new();
            if let Some(recent) = &mut self.recent {
                let (now, before) = (Instant::now(), events.len());
                let provenance = Provenance::of(&origin, via);
                let ranks = self.sinks.list.iter().any(|sink| sink.ranks);
                events.retain(|event| {
                    let seen = recent.see(event.id(), provenance, authority, now);
                    if ranks && seen == Seen::Raised {
                        raised.push(event.detached());
                    }
                    seen == Seen::New
                });
                state.duplicates.add((before - events.len()) as u64);
            }
            let (mut trimmed_values, mut peer_events) = (0, 0);
            for event in &events {
                trimmed_values += trimmed.count(event.payload());
                if peer.find(event.payload()).is_some() && event.peer().is_some() {
                    peer_events += 1;
                }
            }
            // This comes before any other thread sees the events.
            if let Some(redaction) = &self.redaction {
                for event in events.iter_mut().chain(&mut raised) {
                    if let Some(redacted) = redaction.of(event) {
                        *event = redacted;
                    }
                }
            }
            state.trimmed.add(trimmed_values);
            state.peer_events.add(peer_events);
            if !raised.is_empty() {
                let chunk = Chunk::new(Arc::clone(&origin), received, raised);
                let chunk = Arc::new(chunk.vouched_for_by(authority));
                self.sinks.raise(&chunk, claim.as_ref());
            }
            if events.is_empty() {
                honour(claim);
                continue;
            }
            let chunk = Chunk::new(origin, received, events).vouched_for_by(authority);
            let chunk = Arc::new(chunk.left_of(read));
            if job_load::is_of_job_loads(&chunk) {
                self.sinks.hand_over_job_loads(&chunk, claim.as_ref());
                honour(claim);
                continue;
            }
            let encoded = Arc::new(Encoded::default());
            if let Some(estate) = &self.estate {
                estate.offer(&chunk, trimmed_values > 0);
            }
            if self.tap.receiver_count() > 0 {
                // Fails only when the last watcher has just gone.
                let _ = self.tap.send(Tapped { before, chunk: Arc::clone(&chunk) });
            }
            before += chunk.events.len() as u64;
            self.sinks.hand_over(&chunk, &encoded, claim.as_ref());
            // Every sink that wants the events has a claim of its own now.
            honour(claim);
        }
    }

    /// The next frames; changes that come first are made first. `None` when every source has ended.
    fn next(&mut self) -> Option<Frames> {
        loop {
            match self.changes.take() {
                Poll::Ready(Some(changes)) => {
                    for change in changes {
                        self.change(change);
                    }
                }
                Poll::Ready(None) => self.changes.close(),
                Poll::Pending => {}
            }
            match self.frames.take() {
                Poll::Ready(frames) => return frames,
                Poll::Pending => Bell::wait(IDLE),
            }
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Add(sink) => self.sinks.add(sink),
            Change::Dedupe(recent) => self.recent = recent,
            Change::Redact(redaction) => self.redaction = redaction,
            Change::Estate(feed) => self.estate = feed,
            Change::Filter { sink, filter, state } => self.sinks.change(&sink, filter, state),
        }
    }
}

impl SinkChannels {
    /// These sinks.
    pub fn new(list: Vec<SinkChannel>) -> Self {
        SinkChannels { list, routes: None }
    }

    fn add(&mut self, sink: SinkChannel) {
        self.list.push(sink);
        self.routes = None;
    }

    fn change(&mut self, name: &str, filter: Filter, state: Arc<SinkState>) {
        if let Some(found) = self.list.iter_mut().find(|found| found.state.name == name) {
            found.filter = filter;
            found.state = state;
            self.routes = None;
        }
    }

    /// Gives each sink its share of the chunk, and forgets sinks whose spooler has ended.
    fn hand_over(&mut self, chunk: &Arc<Chunk>, encoded: &Arc<Encoded>, claim: Option<&Claim>) {
        self.give(chunk, encoded, claim, |_| true);
    }

    /// Hands over events again for which the master vouches only now. They go to sinks to which
    /// that makes a difference.
    fn raise(&mut self, chunk: &Arc<Chunk>, claim: Option<&Claim>) {
        self.give(chunk, &Arc::new(Encoded::default()), claim, |sink| sink.ranks);
    }

    /// Gives a master's own calls about jobs to the sinks that keep jobs and want the events of
    /// these jobs.
    fn hand_over_job_loads(&mut self, chunk: &Arc<Chunk>, claim: Option<&Claim>) {
        let announced: Vec<_> = chunk.events.iter().map(job_load::announced).collect();
        let mut gone = Vec::new();
        for (place, sink) in self.list.iter().enumerate().filter(|(_, sink)| sink.jobs) {
            let takes = |event: &Option<Event>| {
                event.as_ref().is_some_and(|event| sink.filter.takes(event))
            };
            let picks = (0_u32..).zip(&announced).filter(|(_, event)| takes(event));
            let picks: Vec<_> = picks.map(|(place, _)| place).collect();
            if picks.is_empty() {
                continue;
            }
            if !sink.send(Parcel::from(Share::of(Arc::clone(chunk), picks)).claimed(claim.cloned()))
            {
                gone.push(place);
            }
        }
        self.forget(gone);
    }

    /// Forgets the sinks at these places, ascending.
    fn forget(&mut self, gone: Vec<usize>) {
        for place in gone.into_iter().rev() {
            self.list.remove(place);
            self.routes = None;
        }
    }

    fn give(
        &mut self,
        chunk: &Arc<Chunk>,
        encoded: &Arc<Encoded>,
        claim: Option<&Claim>,
        concerns: impl Fn(&SinkChannel) -> bool,
    ) {
        let filters = self.list.iter().map(|sink| &sink.filter);
        let routes = self.routes.get_or_insert_with(|| Routes::new(filters.clone()));
        let picks = routes.picks(filters, &chunk.events);
        let mut gone = Vec::new();
        for (place, (sink, picks)) in self.list.iter().zip(picks).enumerate() {
            let parcel = if !concerns(sink) {
                continue;
            } else if sink.filter.takes_all() {
                Parcel::from(Share::all(Arc::clone(chunk))).encoded_with(encoded)
            } else if picks.is_empty() {
                continue;
            } else {
                Parcel::from(Share::of(Arc::clone(chunk), picks.clone()))
            };
            if !sink.send(parcel.claimed(claim.cloned())) {
                gone.push(place);
            }
        }
        self.forget(gone);
    }
}

impl SinkChannel {
    /// Hands a share to the spooler; `false` when that has ended.
    fn send(&self, parcel: Parcel) -> bool {
        let parcel = match self.shares.try_send(parcel) {
            Ok(()) => return true,
            Err(TrySendError::Disconnected(_)) => return false,
            Err(TrySendError::Full(parcel)) => parcel,
        };
        let since = Instant::now();
        let is_there = self.shares.send(parcel).is_ok();
        self.state.stalled.add(since.elapsed());
        is_there
    }
}

fn honour(claim: Option<Claim>) {
    if let Some(claim) = claim {
        claim.honour();
    }
}

/// The events in the frames, and the bytes of all frames.
fn events_of(frames: Frames, share_lines: bool) -> (Vec<Event>, usize) {
    let Frames { state, bodies, ids, .. } = frames;
    let mut events = Vec::with_capacity(bodies.len());
    let ids = ids.into_iter().chain(std::iter::repeat(None));
    let mut read = 0;
    for (body, id) in bodies.into_iter().zip(ids) {
        read += body.len();
        match Event::parse(body).map(|event| event.with_id(id)) {
            Ok(mut event) => {
                if share_lines {
                    event.share_line();
                }
                events.push(event);
            }
            Err(error) => {
                state.bad_frames.add(1);
                debug!(source = state.name, %error, "not an event");
            }
        }
    }
    (events, read)
}
