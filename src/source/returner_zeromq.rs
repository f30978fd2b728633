//! `returner_zeromq`: version 1 of the source [`returner`](returner.md), over ZeroMQ.
//! **Deprecated**: it is there for one release, for Salt masters whose package `saltext-saltern` is
//! older than saltern. It is on only where it is configured, on a path of its own. Upgrade the
//! package and use `returner`.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   bus: {salt_bus: {}}
//!   old: {returner_zeromq: {bind: ipc:///run/saltern/returner-1.ipc}}
//! sinks:
//!   archive: {rawfile_json: {filename: /var/log/saltern/events.jsonl}}
//! ```
//!
//! # Weaknesses
//!
//! It does what `returner` does, and stays weak where the `zeromq` crate is:
//!
//! * Any client that may write to the socket can announce a frame of a terabyte, which ends the
//!   process.
//! * Answers to a peer that does not read are queued in memory. Once that queue is full the source
//!   closes all connections and begins anew.
//! * Half-open connections stay.
//! * The source cannot tell which user has connected. On a path all users that its mode lets in
//!   count as masters, over TCP nobody does.
//!
//! No other source is held up by that, nor is a stop.
//!
//! # Guarantee
//!
//! Events and returns are answered when they are safe, as by `returner`.
//!
//! # Failures
//!
//! * another process has the address → tried again → `saltern_source_connected` is 0, `/readyz`
//!   names the source
//! * the socket's file was removed or replaced → noticed within a second and made anew → a line in
//!   the log
//! * a peer does not read what it has asked for → all connections end and the source begins anew →
//!   an error in the log
//! * a message is longer than `max_frame`, or no request → refused → it is counted as a bad frame

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use super::bind::{Bind, LOOK};
use super::returner::requests::{LAST_ANSWERS, RequestHandler, Share, WAIT};
use super::returner_wire::{Answer, Request, VERSION_OVER_ZEROMQ as VERSION, refused, wait};
use crate::event::Authority;
use crate::files::socket_file::Access;
use crate::source::contract::{JobCache, Source, SourceError};
use crate::source::frame_sender::FrameSender;
use crate::source::link::Link;
use crate::units::ByteSize;

/// Salt's `event_return`, `--return` and job cache, by an older package. Deprecated.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The address for Salt's returner: `ipc://PATH`, made with mode 0660, or
    /// `tcp://127.0.0.1:PORT`; any address but loopback is refused. The same as `saltern.address`
    /// on Salt's side, and another one than that of a source `returner`.
    bind: Bind,
    /// The longest message to accept. A longer one is refused and counted as a bad frame.
    #[serde(default = "crate::source::contract::default_max_frame")]
    max_frame: ByteSize,
}

/// The time for which a peer that does not read may hold up the others.
const SEND: Duration = Duration::from_secs(2);

pub(super) struct ReturnerZeromq;

impl Source for ReturnerZeromq {
    const NAME: &'static str = "returner_zeromq";
    const ABOUT: &'static str = "as returner, for an older saltext-saltern (deprecated)";
    /// A return comes twice where Salt's master uses both `event_return` and the job cache.
    const REPEATS: bool = true;
    type Config = Config;

    fn job_cache(_config: &Config) -> JobCache {
        JobCache::Used
    }

    async fn run(
        config: &Config,
        sender: FrameSender,
        stop: CancellationToken,
    ) -> Result<(), SourceError> {
        let mut socket = RouterSocket::new();
        let mut bound = config.bind.listen(&mut socket).await?;
        // Salt's side keeps events that it cannot hand over.
        let mut link = Link::keeping(sender.state.clone());
        link.up(&config.bind.to_string());
        let mut counter = Counter::new(sender, config);
        let (mut wait, mut look) = (interval(WAIT), interval(LOOK));
        wait.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Each of these may be dropped at any time: it has then taken nothing.
            let answers = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = counter.under_way.join_next() => {
                    done.ok().and_then(|done| counter.settle(done)).into_iter().collect()
                }
                _ = wait.tick() => counter.waits(),
                _ = look.tick() => {
                    bound.look(&mut socket, &mut link).await;
                    continue;
                }
                message = socket.recv() => match message {
                    Ok(message) => counter.take(message).into_iter().collect(),
                    Err(error) => return Err(SourceError::new(format!("receiving at {}", config.bind), error)),
                }
            };
            for answer in answers {
                let sending = timeout(SEND, send(&mut socket, answer));
                match stop.run_until_cancelled(sending).await {
                    None | Some(Ok(())) => {}
                    Some(Err(_)) => {
                        let doing = format!("sending an answer at {}", config.bind);
                        let why = "a peer does not read its answers; all peers are disconnected";
                        return Err(SourceError::new(doing, why));
                    }
                }
            }
        }
        // Clients that get no answer send again.
        let last = async {
            while let Some(done) = counter.under_way.join_next().await {
                if let Some(answer) = done.ok().and_then(|done| counter.settle(done)) {
                    send(&mut socket, answer).await;
                }
            }
        };
        let _ = timeout(LAST_ANSWERS, last).await;
        counter.under_way.shutdown().await;
        bound.close(socket).await;
        Ok(())
    }

    async fn probe(config: &Config) -> Result<(), SourceError> {
        config.bind.probe(&Access::GROUP)
    }
}

async fn send(socket: &mut RouterSocket, answer: ZmqMessage) {
    if let Err(error) = socket.send(answer).await {
        // The client has gone.
        debug!(%error, "an answer could not be sent");
    }
}

/// The client that asked, and the number of its request.
#[derive(Debug)]
struct ReplyTo {
    /// The peer's identity, and the empty frame that REQ puts behind it.
    envelope: Vec<Bytes>,
    id: u64,
}

impl ReplyTo {
    /// REQ takes one answer to a request, so this must be the last.
    fn is_req(&self) -> bool {
        self.envelope.len() > 1
    }

    fn with(&self, message: Vec<u8>) -> ZmqMessage {
        let mut message = ZmqMessage::from(message);
        for frame in self.envelope.iter().rev() {
            message.push_front(frame.clone());
        }
        message
    }
}

/// A request that is not answered yet.
struct Pending {
    to: ReplyTo,
}

/// The requests that are not answered yet.
struct Counter {
    handler: Rc<RequestHandler>,
    share: Rc<Share>,
    authority: Authority,
    max_frame: usize,
    pending: HashMap<u64, Pending>,
    /// The number of the next request, among those of all peers.
    next: u64,
    under_way: JoinSet<(u64, Answer)>,
}

impl Counter {
    fn new(sender: FrameSender, config: &Config) -> Self {
        let authority = match config.bind {
            Bind::Ipc(_) => Authority::Master,
            Bind::Loopback(_) => Authority::Bus,
        };
        let max_frame = config.max_frame.as_usize();
        // An answer is one message, and in memory.
        let handler = RequestHandler::new(sender, max_frame, usize::MAX);
        Counter {
            share: handler.everybody(),
            handler,
            authority,
            max_frame,
            pending: HashMap::new(),
            next: 0,
            under_way: JoinSet::new(),
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
            let to = ReplyTo { envelope, id: 0 };
            return Some(self.refuse(&to, "a request is one frame", false));
        }
        let Request { id, asked } = match Request::parse(&body, self.max_frame, VERSION) {
            Ok(request) => request,
            Err(refusal) => {
                let to = ReplyTo { envelope, id: refusal.id };
                return Some(self.refuse(&to, &refusal.to_string(), refusal.later));
            }
        };
        let to = ReplyTo { envelope, id };
        let place = match self.handler.place(&self.share, &asked, body.len(), None) {
            Ok(place) => place,
            Err(answer) => return Some(to.with(answer.message(id, VERSION))),
        };
        let number = self.next;
        self.next += 1;
        self.pending.insert(number, Pending { to });
        let handler = Rc::clone(&self.handler);
        let authority = Some(self.authority);
        let serving = async move {
            let (answer, _place) = handler.serve(asked, authority, place).await;
            (number, answer)
        };
        self.under_way.spawn_local(serving);
        None
    }

    /// The messages to clients that have to wait.
    fn waits(&self) -> Vec<ZmqMessage> {
        let may_hear = self.pending.values().filter(|pending| !pending.to.is_req());
        may_hear.map(|pending| pending.to.with(wait(pending.to.id, VERSION))).collect()
    }

    fn refuse(&self, to: &ReplyTo, why: &str, later: bool) -> ZmqMessage {
        let state = &self.handler.sender.state;
        state.bad_frames.add(1);
        if state.failed(why) {
            warn!(source = state.name, reason = why, "a request was refused");
        }
        to.with(refused(to.id, VERSION, why, later))
    }

    /// The answer to a request that is done.
    fn settle(&mut self, (number, answer): (u64, Answer)) -> Option<ZmqMessage> {
        let pending = self.pending.remove(&number)?;
        if let Answer::Refused { why, .. } = &answer
            && self.handler.sender.state.failed(why)
        {
            warn!(source = self.handler.sender.state.name, reason = why, "a request failed");
        }
        let id = pending.to.id;
        Some(pending.to.with(answer.message(id, VERSION)))
    }
}
