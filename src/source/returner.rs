//! `returner`: Salt itself, by way of its returner `saltern` (the package `saltext-saltern`).
//!
//! Where a bus only tells, this asks and is answered: events that `event_return` hands over, returns
//! of minions, and the calls of Salt's job cache. ZeroMQ carries it (ROUTER here, DEALER or REQ
//! there); `docs/returner.md` draws the protocol.
//!
//! Events and returns are answered when they are safe: stored, or on disk, by every sink that wants
//! them. Until then the sender hears once a second that it should wait, so that it can tell a daemon
//! that is slow from one that is gone. Events that were not kept are refused, and come again.
//!
//! Nothing that a peer does holds up the others, nor the other sources: what blocks has threads of
//! its own, and what is under way is bounded. What is beyond the bounds is refused, to come later.
//! Bytes that are not ZeroMQ cost their peer its connection. A frame that is announced with a
//! terabyte ends the process, before `max_frame` can be asked (see [`Bind`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use super::bind::{Bind, LOOK};
use super::returner_wire::{Answer, Asked, JobCall, Request};
use super::{JobCache, Link, Outlet, Source, SourceError};
use crate::event::Authority;
use crate::jobs::{Jobs, JobsError};
use crate::sink::chain;
use crate::units::ByteSize;

/// Salt's `event_return`, `--return` and job cache.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Where Salt's returner connects to: `ipc://PATH`, made with mode 0660, or
    /// `tcp://127.0.0.1:PORT`; any address but loopback is refused. The same as `saltern.address` on
    /// Salt's side.
    bind: Bind,
    /// The longest message to accept. A longer one is refused and counted as a bad frame.
    #[serde(default = "default_max_frame")]
    max_frame: ByteSize,
}

fn default_max_frame() -> ByteSize {
    ByteSize::mib(64)
}

/// Requests with events that may wait to become safe, and their bytes.
const KEEPING: (usize, usize) = (192, 64 << 20);

/// Calls of the job cache that may be under way.
const ASKING: usize = 64;

/// Questions that the job cache answers at the same time; it writes one after the other.
const QUESTIONS: usize = 4;

/// How often a sender hears that it should wait.
const WAIT: Duration = Duration::from_secs(1);

/// How long the last answers may take when the daemon stops.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

pub(super) struct Returner;

impl Source for Returner {
    const NAME: &'static str = "returner";
    const ABOUT: &'static str = "Salt's event_return, --return and job cache, by saltext-saltern";
    /// A return comes twice where Salt's master uses both `event_return` and the job cache.
    const REPEATS: bool = true;
    type Config = Config;

    fn job_cache(_config: &Config) -> JobCache {
        JobCache::Used
    }

    async fn run(
        config: &Config,
        outlet: Outlet,
        stop: CancellationToken,
    ) -> Result<(), SourceError> {
        let mut socket = RouterSocket::new();
        let mut bound = config.bind.listen(&mut socket).await?;
        // Salt's side keeps what it cannot hand over.
        let mut link = Link::keeping(outlet.state.clone());
        link.up(&config.bind.to_string());
        let mut desk = Desk::new(outlet, config.max_frame.as_usize());
        let (mut wait, mut look) = (interval(WAIT), interval(LOOK));
        wait.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Each of these may be dropped at any time: it has then taken nothing.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = desk.under_way.join_next() => {
                    if let Some(answer) = desk.settle(done.ok()) {
                        send(&mut socket, answer).await;
                    }
                }
                _ = wait.tick() => {
                    let may_hear = |pending: &&Pending| !pending.to.is_req();
                    for pending in desk.pending.values().filter(may_hear) {
                        send(&mut socket, pending.to.with(&Answer::Wait)).await;
                    }
                }
                _ = look.tick() => bound.look(&mut socket, &mut link).await,
                message = socket.recv() => match message {
                    Ok(message) => {
                        if let Some(answer) = desk.take(message) {
                            send(&mut socket, answer).await;
                        }
                    }
                    Err(error) => return Err(SourceError::new(format!("receiving at {}", config.bind), error)),
                }
            }
        }
        // Those that get no answer send again.
        let last = async {
            while let Some(done) = desk.under_way.join_next().await {
                if let Some(answer) = desk.settle(done.ok()) {
                    send(&mut socket, answer).await;
                }
            }
        };
        let _ = timeout(LAST_ANSWERS, last).await;
        desk.under_way.shutdown().await;
        bound.close(socket).await;
        Ok(())
    }

    async fn probe(config: &Config) -> Result<(), SourceError> {
        config.bind.probe()
    }
}

async fn send(socket: &mut RouterSocket, answer: ZmqMessage) {
    if let Err(error) = socket.send(answer).await {
        // Who asked has gone.
        debug!(%error, "an answer could not be sent");
    }
}

/// Who asked, and under which number.
#[derive(Debug)]
struct ReplyTo {
    /// The peer's identity, and the empty frame that REQ puts behind it.
    envelope: Vec<Bytes>,
    id: u64,
}

impl ReplyTo {
    /// REQ takes one answer to a request, so that it must be the last.
    fn is_req(&self) -> bool {
        self.envelope.len() > 1
    }

    fn with(&self, answer: &Answer) -> ZmqMessage {
        let mut message = ZmqMessage::from(answer.message(self.id));
        for frame in self.envelope.iter().rev() {
            message.push_front(frame.clone());
        }
        message
    }
}

/// A request that is not answered yet.
struct Pending {
    to: ReplyTo,
    /// The bytes of events that are to be kept; `None` for a call of the job cache.
    keeps: Option<usize>,
}

/// What is asked and not answered yet.
struct Desk {
    outlet: Outlet,
    max_frame: usize,
    pending: HashMap<u64, Pending>,
    /// The number of the next request, among those of all peers.
    next: u64,
    under_way: JoinSet<(u64, Answer)>,
    questions: Arc<Semaphore>,
    /// Writes of the job cache, one at a time and in the order in which they came.
    writes: Arc<Semaphore>,
}

impl Desk {
    fn new(outlet: Outlet, max_frame: usize) -> Self {
        Desk {
            outlet,
            max_frame,
            pending: HashMap::new(),
            next: 0,
            under_way: JoinSet::new(),
            questions: Arc::new(Semaphore::new(QUESTIONS)),
            writes: Arc::new(Semaphore::new(1)),
        }
    }

    /// Takes a request; the answer, if there is one already.
    fn take(&mut self, message: ZmqMessage) -> Option<ZmqMessage> {
        let mut envelope = message.into_vec();
        let body = envelope.pop().unwrap_or_default();
        let is_request = match envelope.as_slice() {
            [_] => true,
            [_, delimiter] => delimiter.is_empty(),
            _ => false,
        };
        if !is_request {
            envelope.truncate(1);
            let why = "a request is one frame".to_owned();
            let to = ReplyTo { envelope, id: 0 };
            return Some(self.refuse(&to, Answer::Refused { why, later: false }));
        }
        let Request { id, asked } = match Request::parse(&body, self.max_frame) {
            Ok(request) => request,
            Err(refusal) => {
                let to = ReplyTo { envelope, id: refusal.id };
                return Some(self.refuse(&to, refusal.into()));
            }
        };
        let to = ReplyTo { envelope, id };
        let keeps = match &asked {
            Asked::Events { .. } | Asked::Return { .. } => Some(body.len()),
            Asked::Job(_) => None,
        };
        if !self.has_room(keeps) {
            let answer = later("too many requests are under way; see whether a sink is stuck");
            return Some(to.with(&answer));
        }
        let number = self.next;
        self.next += 1;
        self.pending.insert(number, Pending { to, keeps });
        let (outlet, writes) = (self.outlet.clone(), Arc::clone(&self.writes));
        match asked {
            Asked::Events { bodies } => {
                self.under_way.spawn_local(async move { (number, keep(&outlet, bodies).await) });
            }
            Asked::Return { body, load } => {
                self.under_way.spawn_local(async move {
                    (number, keep_return(outlet, &writes, body, load).await)
                });
            }
            Asked::Job(call) => {
                let turn = if call.is_question() { Arc::clone(&self.questions) } else { writes };
                self.under_way
                    .spawn_local(async move { (number, ask(&outlet, &turn, call).await) });
            }
        }
        None
    }

    /// Whether another request fits in, which may have bytes to keep.
    fn has_room(&self, keeps: Option<usize>) -> bool {
        let kept = self.pending.values().filter_map(|pending| pending.keeps);
        match keeps {
            None => self.pending.len() - kept.count() < ASKING,
            Some(more) => {
                let (count, bytes) = kept.fold((0, 0), |(n, sum), bytes| (n + 1, sum + bytes));
                // A single one may be larger than what all may have together.
                count == 0 || count < KEEPING.0 && bytes + more <= KEEPING.1
            }
        }
    }

    fn refuse(&self, to: &ReplyTo, answer: Answer) -> ZmqMessage {
        let state = &self.outlet.state;
        state.bad_frames.add(1);
        if let Answer::Refused { why, .. } = &answer
            && state.failed(why)
        {
            warn!(source = state.name, reason = %why, "a request was refused");
        }
        to.with(&answer)
    }

    /// The answer to a request that is done.
    fn settle(&mut self, done: Option<(u64, Answer)>) -> Option<ZmqMessage> {
        let (number, answer) = done?;
        let pending = self.pending.remove(&number)?;
        if let Answer::Refused { why, .. } = &answer
            && self.outlet.state.failed(why)
        {
            warn!(source = self.outlet.state.name, reason = %why, "a request failed");
        }
        Some(pending.to.with(&answer))
    }
}

/// Hands events on and waits until they are safe.
async fn keep(outlet: &Outlet, bodies: Vec<Bytes>) -> Answer {
    let Some(receipt) = outlet.send_for_receipt(bodies, Vec::new()).await else {
        return later("the daemon is stopping");
    };
    match receipt.await {
        Ok(true) => Answer::Done(None),
        _ => later("a sink that wants the events has not kept them; see what it dropped"),
    }
}

/// Puts a return into the job cache, where it has to be as soon as Salt is answered, and hands its
/// event on, which a master may hand over by `event_return` as well.
async fn keep_return(outlet: Outlet, writes: &Semaphore, body: Bytes, load: Bytes) -> Answer {
    let outlet = Outlet { way: "returns", authority: Authority::Master, ..outlet };
    let saved =
        blocking(&outlet, writes, move |jobs| match jobs.save_return(&load, Authority::Master) {
            // It is an event all the same.
            Err(JobsError::Off) => Ok(()),
            saved => saved,
        });
    match saved.await {
        Ok(()) => keep(&outlet, vec![body]).await,
        Err(answer) => answer,
    }
}

async fn ask(outlet: &Outlet, turn: &Semaphore, call: JobCall) -> Answer {
    match blocking(outlet, turn, move |jobs| call.answer(jobs)).await {
        Ok(value) => Answer::Done(value),
        Err(answer) => answer,
    }
}

fn later(why: &str) -> Answer {
    Answer::Refused { why: why.to_owned(), later: true }
}

/// Asks the job cache on a thread of its own, in turn.
async fn blocking<T: Send + 'static>(
    outlet: &Outlet,
    turn: &Semaphore,
    ask: impl FnOnce(&Jobs) -> Result<T, JobsError> + Send + 'static,
) -> Result<T, Answer> {
    let jobs = outlet.jobs.clone();
    // The semaphore is never closed; without a permit the work would only be out of turn.
    let _permit = turn.acquire().await.ok();
    match spawn_blocking(move || ask(&jobs)).await {
        Ok(asked) => asked.map_err(Answer::from),
        Err(error) => Err(later(&chain(&error))),
    }
}
