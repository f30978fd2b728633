//! `zeromq`: events that something else publishes over ZeroMQ, a relay or a re-publisher of a bus.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   relay: {zeromq: {connect: ["tcp://127.0.0.1:5556"], topics: [salt/job/]}}
//! sinks:
//!   archive: {rawfile_json: {filename: /var/log/saltern/events.jsonl}}
//! ```
//!
//! # Patterns
//!
//! With `connect` it subscribes (SUB) at each publisher named, to all events or to those whose tag
//! begins with one of `topics`. With `bind` senders push to it (PULL). A message is one event: `TAG
//! \n\n MSGPACK` in one frame, as Salt's bus carries it, or two frames, tag and payload (the
//! payload alone or once more with its tag).
//!
//! # Limits
//!
//! ZeroMQ has no limit for the length of a message here: one over `max_frame` is counted and
//! dropped, but only once it has been received. The library asks the allocator for any length that
//! is announced, and has no setting against it. So a sender or publisher that announces a terabyte
//! ends the process. There is no encryption either. Connect to publishers that you trust, bind only
//! where the machine's own users can reach, and use [`kafka`](kafka.md) between hosts.
//!
//! # Guarantee
//!
//! ZeroMQ's PUB keeps nothing: events that were published while saltern was not connected are gone,
//! and each gap is counted. If a publisher goes away, the source connects again. Senders that push
//! keep the events that they cannot send, so their coming and going is no gap.
//!
//! # Failures
//!
//! * a publisher is absent or goes away → connected to again for ever, after 100 ms to 10 s →
//!   `saltern_source_connected` is 0, `/readyz` names the source
//! * another process has the address to `bind` → tried again → `saltern_source_connected` is 0,
//!   `/readyz` names the source
//! * the socket's file was removed or replaced → noticed within a second and made anew → a line in
//!   the log
//! * a message is longer than `max_frame`, or has more than two frames → dropped → it is counted as
//!   a bad frame
//! * a sender breaks off in the middle of a message → the others go on → a warning in the log, and
//!   a bad frame
//!
//! # Inside
//!
//! The reconnecting of the `zeromq` crate is not used, because it waits up to 30 s and says
//! nothing. A session here is one socket, which ends when its monitor reports the disconnect.

use std::cell::Cell;
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use zeromq::{
    Endpoint, PullSocket, Socket, SocketEvent, SocketOptions, SocketRecv, SubSocket, ZmqError,
    ZmqMessage,
};

use super::bind::{Bind, LOOK};
use crate::files::socket_file::{Access, fits};
use crate::source::bus_address::Address;
use crate::source::contract::{Source, SourceError};
use crate::source::frame_sender::FrameSender;
use crate::source::link::Link;
use crate::units::ByteSize;

/// The two patterns as an operator writes them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Written {
    /// Publishers to subscribe to: `tcp://HOST:PORT` or `ipc://PATH`. Either this or `bind`.
    /// Default: none.
    #[serde(default)]
    connect: Vec<Publisher>,
    /// With `connect`: the beginnings of the tags of the events wanted. Default: all events.
    #[serde(default)]
    topics: Vec<String>,
    /// The address that senders push to: `ipc://PATH`, made with mode 0660, or
    /// `tcp://127.0.0.1:PORT`; any address but loopback is refused. Either this or `connect`.
    #[serde(default)]
    bind: Option<Bind>,
    /// The longest message to accept. A longer one is counted as a bad frame and dropped.
    #[serde(default = "crate::source::contract::default_max_frame")]
    max_frame: ByteSize,
}

/// Events published or pushed over ZeroMQ.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written")]
pub(super) struct Config {
    pattern: Pattern,
    max_frame: usize,
}

#[derive(Debug, Clone)]
enum Pattern {
    Subscribe { publishers: Vec<Publisher>, topics: Arc<[String]> },
    Pull(Bind),
}

impl TryFrom<Written> for Config {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { connect: publishers, topics, bind, max_frame } = written;
        let pattern = match bind {
            Some(_) if !publishers.is_empty() => {
                return Err("there are both `connect` and `bind`; write two sources".to_owned());
            }
            Some(_) if !topics.is_empty() => {
                return Err(
                    "`topics` belongs to `connect`; with `bind` the sender chooses its events"
                        .to_owned(),
                );
            }
            Some(bind) => Pattern::Pull(bind),
            None if publishers.is_empty() => {
                return Err("there is neither `connect: [tcp://HOST:PORT]` nor `bind: ipc://PATH`"
                    .to_owned());
            }
            None if topics.is_empty() => {
                Pattern::Subscribe { publishers, topics: [String::new()].into() }
            }
            None => Pattern::Subscribe { publishers, topics: topics.into() },
        };
        Ok(Config { pattern, max_frame: max_frame.as_usize() })
    }
}

/// The address of a publisher.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
struct Publisher(String);

impl TryFrom<String> for Publisher {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.parse::<Endpoint>() {
            Ok(_) => {
                if let Some(path) = text.strip_prefix("ipc://") {
                    fits(Path::new(path)).map_err(|error| error.to_string())?;
                }
                Ok(Publisher(text))
            }
            Err(_) => {
                Err(format!("`{text}` is no address of a publisher: tcp://HOST:PORT or ipc://PATH"))
            }
        }
    }
}

pub(super) struct Zeromq;

impl Source for Zeromq {
    const NAME: &'static str = "zeromq";
    const ABOUT: &'static str = "events published (SUB) or pushed (PULL) over ZeroMQ";
    type Config = Config;

    async fn run(
        config: &Config,
        sender: FrameSender,
        stop: CancellationToken,
    ) -> Result<(), SourceError> {
        match &config.pattern {
            Pattern::Pull(bind) => pull(bind, config.max_frame, &sender, &stop).await,
            Pattern::Subscribe { publishers, topics } => {
                let missing = Rc::new(Cell::new(publishers.len()));
                let mut subscriptions = JoinSet::new();
                for publisher in publishers {
                    subscriptions.spawn_local(follow(Subscription {
                        publisher: publisher.0.clone(),
                        topics: Arc::clone(topics),
                        missing: Rc::clone(&missing),
                        max_frame: config.max_frame,
                        sender: sender.clone(),
                        stop: stop.clone(),
                    }));
                }
                while let Some(ended) = subscriptions.join_next().await {
                    ended.map_err(|error| SourceError::new("following a publisher", error))?;
                }
                Ok(())
            }
        }
    }

    async fn probe(config: &Config) -> Result<(), SourceError> {
        match &config.pattern {
            Pattern::Pull(bind) => bind.probe(&Access::GROUP),
            Pattern::Subscribe { publishers, .. } => {
                for publisher in publishers {
                    let mut socket = subscriber();
                    socket.connect(&publisher.0).await.map_err(|error| {
                        SourceError::new(format!("connecting to {}", publisher.0), error)
                    })?;
                }
                Ok(())
            }
        }
    }
}

/// One publisher and the topics that are wanted of it.
struct Subscription {
    publisher: String,
    topics: Arc<[String]>,
    /// The number of the source's publishers that are not connected.
    missing: Rc<Cell<usize>>,
    max_frame: usize,
    sender: FrameSender,
    stop: CancellationToken,
}

/// The end of a session with a publisher.
pub(super) enum SessionEnd {
    /// The daemon stops, or the dispatcher is gone.
    Done,
    /// There was no publisher.
    Absent(String),
    /// The publisher went away.
    Lost(String),
}

/// Stays subscribed until told to stop.
async fn follow(subscription: Subscription) {
    let Subscription { publisher, topics, missing, max_frame, sender, stop } = subscription;
    let mut link = Link::new(sender.state.clone());
    loop {
        let up = |link: &mut Link| {
            link.up(&publisher);
            missing.set(missing.get() - 1);
            // The source is connected once all its publishers are.
            sender.state.connected.set_bool(missing.get() == 0);
        };
        let left = session(&publisher, &topics, max_frame, &sender, &mut link, up, &stop).await;
        match left {
            SessionEnd::Done => return,
            SessionEnd::Absent(reason) => link.absent(&reason),
            SessionEnd::Lost(reason) => {
                link.lost(&reason);
                missing.set(missing.get() + 1);
            }
        }
        if stop.run_until_cancelled(link.wait()).await.is_none() {
            return;
        }
    }
}

/// Follows a bus that turned out to speak ZeroMQ, until it goes away. The link is up already.
pub(super) async fn follow_publisher(
    address: &Address,
    max_frame: usize,
    sender: &FrameSender,
    link: &mut Link,
    stop: &CancellationToken,
) -> SessionEnd {
    let publisher = match address {
        Address::Unix(path) => format!("ipc://{}", path.display()),
        Address::Tcp(host_port) => format!("tcp://{host_port}"),
    };
    debug!(source = sender.state.name, publisher, "the bus speaks ZeroMQ, subscribing");
    session(&publisher, &[String::new()], max_frame, sender, link, |_| {}, stop).await
}

/// The time that a publisher may take to answer and to shake hands.
const CONNECT: Duration = Duration::from_secs(5);

fn subscriber() -> SubSocket {
    let mut options = SocketOptions::default();
    options.connect_timeout(CONNECT);
    SubSocket::with_options(options)
}

/// Connects, subscribes, and reads until the publisher goes away.
async fn session(
    publisher: &str,
    topics: &[String],
    max_frame: usize,
    sender: &FrameSender,
    link: &mut Link,
    up: impl FnOnce(&mut Link),
    stop: &CancellationToken,
) -> SessionEnd {
    let mut socket = subscriber();
    let mut monitor = socket.monitor();
    let connected = stop.run_until_cancelled(async {
        for topic in topics {
            socket.subscribe(topic).await?;
        }
        socket.connect(publisher).await
    });
    match connected.await {
        None => return SessionEnd::Done,
        Some(Err(error)) => {
            let reason = format!("{publisher}: {error}; does a publisher listen there?");
            return SessionEnd::Absent(reason);
        }
        Some(Ok(())) => up(link),
    }
    loop {
        let Some(arrived) = stop.run_until_cancelled(next(&mut socket, &mut monitor)).await else {
            return SessionEnd::Done;
        };
        let mut bodies = Vec::new();
        let mut outcome = arrived.map(|message| bodies.extend(body_of(message, max_frame, sender)));
        while outcome.is_ok() && bodies.len() < TOGETHER {
            let Some(more) = at_hand(&mut socket).await else { break };
            outcome = more
                .map(|message| bodies.extend(body_of(message, max_frame, sender)))
                .map_err(|error| error.to_string());
        }
        if !bodies.is_empty() {
            link.works();
        }
        if !sender.send(bodies).await {
            return SessionEnd::Done;
        }
        if let Err(reason) = outcome {
            return SessionEnd::Lost(format!("{publisher}: {reason}"));
        }
    }
}

/// Messages that are handed on together at the most.
const TOGETHER: usize = 256;

/// The next message, or the reason why there are no more. The monitor is asked only when no message
/// is at hand, so messages before a disconnect are read before it.
async fn next(
    socket: &mut SubSocket,
    monitor: &mut (impl Stream<Item = SocketEvent> + Unpin),
) -> Result<ZmqMessage, String> {
    std::future::poll_fn(|context| {
        if let Poll::Ready(message) = pin!(socket.recv()).poll(context) {
            return Poll::Ready(message.map_err(|error| error.to_string()));
        }
        while let Poll::Ready(event) = Pin::new(&mut *monitor).poll_next(context) {
            match event {
                Some(SocketEvent::Disconnected(_)) => {
                    return Poll::Ready(Err("the publisher closed the connection".to_owned()));
                }
                Some(_) => {}
                None => return Poll::Ready(Err("the socket was closed".to_owned())),
            }
        }
        Poll::Pending
    })
    .await
}

/// A message that is there already.
async fn at_hand(socket: &mut impl SocketRecv) -> Option<Result<ZmqMessage, ZmqError>> {
    std::future::poll_fn(|context| match pin!(socket.recv()).poll(context) {
        Poll::Ready(message) => Poll::Ready(Some(message)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// The event in a message; a message that is no event is counted.
fn body_of(message: ZmqMessage, max_frame: usize, sender: &FrameSender) -> Option<Bytes> {
    let size: usize = message.iter().map(Bytes::len).sum();
    let frames = message.into_vec();
    let refused = match frames.as_slice() {
        _ if size > max_frame => {
            format!("a message of {size} bytes is over max_frame ({max_frame} bytes)")
        }
        [body] => return Some(body.clone()),
        [tag, payload] => return Some(joined(tag, payload)),
        _ => format!("a message has {} frames; an event has one or two", frames.len()),
    };
    sender.state.bad_frames.add(1);
    if sender.state.failed(&refused) {
        warn!(source = sender.state.name, reason = refused, "a message was dropped");
    }
    None
}

fn joined(tag: &[u8], payload: &Bytes) -> Bytes {
    const EMPTY_LINE: &[u8] = b"\n\n";
    if payload.strip_prefix(tag).is_some_and(|rest| rest.starts_with(EMPTY_LINE)) {
        return payload.clone();
    }
    let mut body = BytesMut::with_capacity(tag.len() + EMPTY_LINE.len() + payload.len());
    body.extend_from_slice(tag);
    body.extend_from_slice(EMPTY_LINE);
    body.extend_from_slice(payload);
    body.freeze()
}

async fn pull(
    bind: &Bind,
    max_frame: usize,
    sender: &FrameSender,
    stop: &CancellationToken,
) -> Result<(), SourceError> {
    let mut socket = PullSocket::new();
    let mut bound = bind.listen(&mut socket).await?;
    // Senders keep what they cannot send.
    let mut link = Link::keeping(sender.state.clone());
    link.up(&bind.to_string());
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Each of these may be dropped at any time: it has then taken nothing.
        let message = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = look.tick() => {
                bound.look(&mut socket, &mut link).await;
                continue;
            }
            message = socket.recv() => message,
        };
        let mut bodies = Vec::new();
        let mut message = Some(message);
        while let Some(received) = message.take() {
            match received {
                Ok(received) => bodies.extend(body_of(received, max_frame, sender)),
                // One sender's connection broke; those of the others are whole.
                Err(error) => {
                    sender.state.bad_frames.add(1);
                    warn!(source = sender.state.name, %error, "a sender broke off");
                }
            }
            if bodies.len() < TOGETHER {
                message = at_hand(&mut socket).await;
            }
        }
        if !sender.send(bodies).await {
            break;
        }
    }
    bound.close(socket).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::Node;

    fn read(text: &str) -> Result<Config, String> {
        Node::parse(text).unwrap().read::<Config>().map_err(|problem| {
            let place = problem.place.unwrap();
            format!("{}:{}: {}", place.line, place.column, problem.message)
        })
    }

    #[test]
    fn exactly_one_pattern() {
        for (text, says) in [
            ("max_frame: 1MiB", "1:1: there is neither"),
            ("bind: ipc:///run/x\nconnect: [tcp://h:1]", "1:1: there are both"),
            ("bind: ipc:///run/x\ntopics: [salt/]", "1:1: `topics` belongs to `connect`"),
            ("connect: [tcp://h:1, h]", "1:22: `h` is no address of a publisher"),
            ("bind: tcp://0.0.0.0:4000", "1:7: `tcp://0.0.0.0:4000` is not loopback"),
            ("bind: tcp://*:4000", "1:7: `tcp://*:4000` is not loopback"),
            ("bind: tcp://[::]:4000", "1:7: `tcp://[::]:4000` is not loopback"),
            ("bind: tcp://salt.example.com:4000", "use Kafka between hosts"),
            ("bind: tcp://127.0.0.1", "1:7: `tcp://127.0.0.1` is no address to bind"),
            ("bind: ipc://", "1:7: `ipc://` is no address to bind"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        for text in [
            "connect: [tcp://h:1, 'ipc:///run/p']\ntopics: [salt/job/]",
            "bind: ipc:///run/x",
            "bind: tcp://127.0.0.1:4000",
            "bind: tcp://[::1]:4000",
            "bind: tcp://localhost:4000",
        ] {
            read(text).unwrap();
        }
    }

    #[test]
    fn two_frames_are_one_event() {
        let payload = Bytes::from_static(b"\x80");
        assert_eq!(joined(b"tag", &payload), &b"tag\n\n\x80"[..]);
        let whole = Bytes::from_static(b"tag\n\n\x80");
        assert_eq!(joined(b"tag", &whole), whole);
    }
}
