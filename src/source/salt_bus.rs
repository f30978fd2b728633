//! `salt_bus`: the event bus of a Salt master, `master_event_pub.ipc`.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   bus:
//!     salt_bus:
//!       address: /var/run/salt/master/master_event_pub.ipc
//!       backfill: {cache_dir: /var/cache/salt/master/jobs}
//! sinks:
//!   archive: {rawfile_json: {filename: /var/log/saltern/events.jsonl}}
//! ```
//!
//! # Framing
//!
//! The first byte of each connection tells the framing: bare msgpack maps (before 3006.26, 3007,
//! 3008), a length before each (3006.26 and later), or ZeroMQ's protocol (releases up to about
//! 2016, re-publishers).
//!
//! `VALUE_TRIMMED` values are counted. The master puts them in place of values over its
//! `max_event_size`; these cannot be recovered from the bus.
//!
//! # Gathering
//!
//! At a thousand events a second each event would be a wake-up of its own, which costs more than
//! the event. After a small read the source lets its thread sleep for as long as a few events take
//! to come, and then reads them together: `coalesce` is the longest.
//!
//! # Guarantee
//!
//! The bus keeps nothing: events that the master publishes while saltern is not connected are
//! missed, unless `backfill` finds them in the master's job cache ([Jobs](../jobs.md#backfill)). A
//! subscriber connects and reads; it sends nothing. A master cuts off a subscriber that reads too
//! slowly, so this source does nothing but read and hand on. Each gap is counted, in number and
//! seconds, and logged once.
//!
//! # Failures
//!
//! * the master is absent, restarts, or cuts us off → connected again for ever, after 100 ms to 10
//!   s → `saltern_source_connected` is 0, `/readyz` names the source
//! * a frame is longer than `max_frame` → the connection ends and is made again → an error that
//!   names the size
//! * the socket may not be opened → tried again → `saltern check --connect` says as which user or
//!   group to run

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use schemars::JsonSchema;
use serde::Deserialize;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use super::backfill::{self, Tracker};
use super::coalesce;
use super::framing::{Frame, FrameError, Framer};
use super::zeromq::{self, SessionEnd};
use crate::error::chain;
use crate::source::bus_address::Address;
use crate::source::contract::{JobCache, Source, SourceError};
use crate::source::frame_sender::FrameSender;
use crate::source::link::Link;
use crate::units::{ByteSize, Span};

/// The event bus of a Salt master.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The master's event socket: a path, `unix:PATH`, or `tcp://HOST:PORT` for a master with
    /// `ipc_mode: tcp` (port 4512 by default). The path is `master_event_pub.ipc` in the master's
    /// `sock_dir`. Default: `/var/run/salt/master/master_event_pub.ipc`.
    #[serde(default)]
    address: Address,
    /// The longest frame to accept; a longer one ends the connection with an error that names its
    /// size. At least the master's `max_event_size`.
    #[serde(default = "crate::source::contract::default_max_frame")]
    max_frame: ByteSize,
    /// The longest time to let events gather after a read that brought few. They gather for as long
    /// as sixteen take to come, and for a tenth of the shortest `linger` of the sinks at the most.
    /// 0 reads each as it comes.
    #[serde(default = "default_coalesce")]
    coalesce: Span,
    /// The place where to look for the jobs of a time in which the bus was not read. Default:
    /// nowhere. Not for a bus that speaks ZeroMQ.
    #[serde(default)]
    backfill: Option<backfill::Config>,
}

fn default_coalesce() -> Span {
    Span::millis(20)
}

pub(super) struct SaltBus;

impl Source for SaltBus {
    const NAME: &'static str = "salt_bus";
    const ABOUT: &'static str = "the event bus of a Salt master, over its unix socket or TCP";
    type Config = Config;

    fn bus_socket(config: &Config) -> Option<PathBuf> {
        match &config.address {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp(_) => None,
        }
    }

    async fn run(
        config: &Config,
        sender: FrameSender,
        stop: CancellationToken,
    ) -> Result<(), SourceError> {
        match &config.backfill {
            None => follow(config, &sender, None, &stop).await,
            Some(backfill) => {
                let tracker = Tracker::new();
                let over = stop.child_token();
                let following = async {
                    follow(config, &sender, Some(&tracker), &stop).await;
                    over.cancel();
                };
                tokio::join!(following, tracker.fill(backfill, &sender, &over));
            }
        }
        Ok(())
    }

    fn job_cache(config: &Config) -> JobCache {
        if config.backfill.is_some() { JobCache::Needed } else { JobCache::NotUsed }
    }

    async fn probe(config: &Config) -> Result<(), SourceError> {
        let doing = || format!("connecting to the event bus at {}", config.address);
        match &config.address {
            Address::Unix(path) => UnixStream::connect(path).await.map(drop),
            Address::Tcp(host_port) => TcpStream::connect(host_port).await.map(drop),
        }
        .map_err(|error| SourceError::new(doing(), explained(error)))
    }
}

/// The end of one connection.
enum End {
    /// The daemon stops, or the dispatcher is gone.
    Done,
    /// The peer speaks ZeroMQ.
    Zmtp,
    /// The master closed it, or it broke.
    Lost(String),
}

/// Follows the bus from connection to connection. `stop` cuts only waiting short: events that have
/// been read are handed on.
async fn follow(
    config: &Config,
    sender: &FrameSender,
    tracker: Option<&Tracker>,
    stop: &CancellationToken,
) {
    let mut link = Link::new(sender.state.clone());
    loop {
        match session(config, sender, &mut link, tracker, stop).await {
            Ok(End::Done) => return,
            Ok(End::Zmtp) => {
                let max_frame = config.max_frame.as_usize();
                let address = &config.address;
                let left =
                    zeromq::follow_publisher(address, max_frame, sender, &mut link, stop).await;
                match left {
                    SessionEnd::Done => return,
                    // The connection that showed the framing was there, so this is a gap too.
                    SessionEnd::Absent(reason) | SessionEnd::Lost(reason) => link.lost(&reason),
                }
            }
            Ok(End::Lost(reason)) => {
                if let Some(tracker) = tracker {
                    tracker.lost();
                }
                link.lost(&reason);
            }
            Err(error) => {
                link.absent(&format!("{}: {}", config.address, explained(error)));
            }
        }
        if stop.run_until_cancelled(link.wait()).await.is_none() {
            return;
        }
    }
}

/// Connects and reads until the connection ends; an error if it could not be made.
async fn session(
    config: &Config,
    sender: &FrameSender,
    link: &mut Link,
    tracker: Option<&Tracker>,
    stop: &CancellationToken,
) -> io::Result<End> {
    match &config.address {
        Address::Unix(path) => {
            let connecting = UnixStream::connect(path);
            let Some(stream) = stop.run_until_cancelled(connecting).await else {
                return Ok(End::Done);
            };
            Ok(read(stream?, config, sender, link, tracker, stop).await)
        }
        Address::Tcp(host_port) => {
            let connecting = TcpStream::connect(host_port);
            let Some(stream) = stop.run_until_cancelled(connecting).await else {
                return Ok(End::Done);
            };
            let stream = stream?;
            // A master that vanished without a word is noticed within a minute.
            let keepalive = TcpKeepalive::new()
                .with_time(Duration::from_secs(30))
                .with_interval(Duration::from_secs(10))
                .with_retries(3);
            SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
            Ok(read(stream, config, sender, link, tracker, stop).await)
        }
    }
}

/// Bytes asked of the kernel at once: what a unix socket's buffer holds.
const READ: usize = 256 << 10;

/// The least room to offer the kernel.
const ROOM: usize = 16 << 10;

/// The bytes of a read from which on events come so fast that waiting for more would only let the
/// socket fill.
const MUCH: usize = 64 << 10;

async fn read(
    mut stream: impl AsyncRead + Unpin,
    config: &Config,
    sender: &FrameSender,
    link: &mut Link,
    tracker: Option<&Tracker>,
    stop: &CancellationToken,
) -> End {
    let address = config.address.to_string();
    let mut framer = Framer::new(config.max_frame.as_usize());
    let mut buffer = BytesMut::with_capacity(READ);
    let mut pace = Pace { last: None };
    link.up(&address);
    if let Some(tracker) = tracker {
        tracker.up();
    }
    loop {
        framer.release(&mut buffer, READ);
        let missing = framer.wanted().saturating_sub(buffer.len());
        if buffer.capacity() - buffer.len() < missing.max(ROOM) {
            buffer.reserve(missing.max(READ));
        }
        let reading = stop.run_until_cancelled(stream.read_buf(&mut buffer));
        let Some(count) = reading.await else { return End::Done };
        let count = match count {
            Ok(0) => return End::Lost(format!("{address}: {}", closed(&framer, &buffer))),
            Ok(count) => count,
            Err(error) => return End::Lost(format!("{address}: {error}")),
        };
        let mut bodies = Vec::new();
        let outcome = loop {
            match framer.next(&mut buffer) {
                Ok(Some(Frame::Body(body))) => bodies.push(body),
                Ok(Some(Frame::Bodiless(_))) => sender.state.bad_frames.add(1),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let events = bodies.len();
        if events > 0 {
            link.works();
        }
        if let Some(tracker) = tracker {
            tracker.read(&bodies);
        }
        if !sender.send(bodies).await {
            return End::Done;
        }
        match outcome {
            Ok(()) => {}
            Err(FrameError::Zmtp) => return End::Zmtp,
            Err(error) => {
                sender.state.bad_frames.add(1);
                return End::Lost(format!("{address}: {error}"));
            }
        }
        if let Some(wish) = pace.wish(count, events) {
            coalesce::ask(wish.min(config.coalesce.0));
        }
    }
}

/// Events that one wake-up should serve where they come one by one.
const TOGETHER: u32 = 16;

/// The rate at which events come.
struct Pace {
    /// The time when the last read ended, if it was a small one.
    last: Option<Instant>,
}

impl Pace {
    /// The time for which a few events take to come, after small reads. A large read shows that the
    /// bus is fast. The time since then may have been a wait for the dispatcher.
    fn wish(&mut self, bytes: usize, events: usize) -> Option<Duration> {
        let now = Instant::now();
        let last = std::mem::replace(&mut self.last, (bytes < MUCH).then_some(now))?;
        self.last?;
        let events = u32::try_from(events.max(1)).unwrap_or(u32::MAX);
        Some(now.duration_since(last) / events * TOGETHER)
    }
}

fn closed(framer: &Framer, buffer: &BytesMut) -> String {
    match (framer.framing(), buffer.len()) {
        (None, _) => "the master closed the connection before it sent anything".to_owned(),
        (Some(_), 0) => "the master closed the connection".to_owned(),
        (Some(_), cut) => format!("the master closed the connection {cut} bytes into a frame"),
    }
}

/// Adds advice to the errors that operators meet.
fn explained(error: io::Error) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::NotFound => "is the master running, and is this its sock_dir?",
        io::ErrorKind::PermissionDenied => {
            "the socket belongs to the master's user (0600 on 3006, 0660 on 3007 and later): run saltern as that user or in its group"
        }
        io::ErrorKind::ConnectionRefused => "nobody listens there; is the master running?",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{}: {advice}", chain(&error)))
}
