//! `returner`: Salt itself, by way of its returner `saltern` (the package `saltext-saltern`):
//! `event_return`, `--return` and the job cache. [Salt's returner](../returner.md) has Salt's side
//! and draws the protocol.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   bus: {salt_bus: {}}
//!   salt: {returner: {bind: ipc:///run/saltern/returner.ipc}}
//! sinks:
//!   archive: {rawfile_json: {filename: /var/log/saltern/events.jsonl}}
//! ```
//!
//! # Who may come in
//!
//! Clients connect over a unix stream socket, or over loopback TCP with a token. `bind` refuses
//! addresses beyond this host, because nothing here is encrypted. To connect to the socket a user
//! needs the right to write to its file, and has to be one of `allow` or `masters`.
//!
//! # Guarantee
//!
//! Events and returns are answered when they are safe: stored, or on disk, by every sink that wants
//! them. Until then the sender hears once a second that it should wait. So it can tell a slow
//! daemon from one that is gone. Events that were not kept are refused, and come again.
//!
//! # Failures
//!
//! * another process has the address → tried again → `saltern_source_connected` is 0, `/readyz`
//!   names the source
//! * the socket's file was removed or replaced → noticed within a second and made anew; peers that
//!   are connected stay → a line in the log
//! * a client says nothing, half a message, or does not read → it is cut off → a warning in the log
//! * a message is longer than `max_frame` → refused before it is read → it is counted as a bad
//!   frame
//! * a client has used up the bounds of its kind → others of it are told to come later; masters are
//!   one kind and all others another → the sender waits
//!
//! # Inside
//!
//! A bus only tells; clients of this source ask and are answered. Each client has a task of its own
//! ([`connection`]). Its work under way is bounded ([`handler`], [`budget`]), and other sources are
//! not held up. [`access`] decides which clients may connect.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::access::{AccessRules, Peer, UserId};
use self::connection::{Client, ConnectionContext, serve};
use self::requests::LAST_ANSWERS;
use self::turned_away::{Reason, TurnedAway};
use super::bind::{Bind, LOOK, Opened};
use super::prefixed::framed;
use super::returner_wire::{PART, VERSION, refused};
use crate::error::chain;
use crate::event::Authority;
use crate::files::socket_file::{Access, SocketFile};
use crate::source::contract::{JobCache, Source, SourceError};
use crate::source::frame_sender::FrameSender;
use crate::source::link::Link;
use crate::units::{ByteSize, Mode};

mod access;
mod budget;
mod connection;
mod messages;
pub(super) mod requests;
mod turned_away;

/// The source as an operator writes it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Written {
    /// The address for Salt's returner: `ipc://PATH` or `unix:PATH`, a unix socket, or
    /// `tcp://127.0.0.1:PORT` with `token_file`; any address but loopback is refused. The same as
    /// `saltern.address` on Salt's side.
    bind: Bind,
    /// Permissions of the socket's file, as text in octal. Connecting takes the right to write.
    /// Default: `"0660"`.
    #[serde(default)]
    mode: Option<Mode>,
    /// The group of the socket's file, by name or number. Default: that of the process, or of a
    /// directory with the setgid bit.
    #[serde(default)]
    group: Option<String>,
    /// The users, by number or name, whose processes may connect, besides `masters`. The kernel
    /// says which user a process has. Default: root, the user that saltern runs as, and the owner
    /// of the socket's file.
    #[serde(default)]
    allow: Option<Vec<UserId>>,
    /// The users, by number or name, as which a Salt master runs. Their word on a job outranks the
    /// bus; that of others does not. A client that shows the token is a master. Until one of the
    /// sockets of the default was there, returns and loads are to come later. Default: the owners
    /// of the sockets of all sources `salt_bus`, as they were last seen, else the owner of the
    /// socket's file.
    #[serde(default)]
    masters: Option<Vec<UserId>>,
    /// With `tcp://`: a file with a token of 16 to 4096 bytes that clients have to show, which is
    /// `saltern.token_file` on Salt's side. A regular file that is not open to everybody:
    /// `(umask 077; openssl rand -hex 32 > FILE)`.
    #[serde(default)]
    token_file: Option<PathBuf>,
    /// The longest message to accept. A longer one is refused before it is read, and counted as a
    /// bad frame.
    #[serde(default = "crate::source::contract::default_max_frame")]
    max_frame: ByteSize,
}

/// Salt's `event_return`, `--return` and job cache.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written")]
pub(super) struct Config {
    bind: Bind,
    access: Access,
    allow: Option<Vec<UserId>>,
    masters: Option<Vec<UserId>>,
    token_file: Option<PathBuf>,
    max_frame: usize,
    /// The sockets of the buses that are read beside it.
    buses: Vec<PathBuf>,
}

impl TryFrom<Written> for Config {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { bind, mode, group, allow, masters, token_file, max_frame } = written;
        let is_tcp = matches!(bind, Bind::Loopback(_));
        if is_tcp && token_file.is_none() {
            return Err(format!(
                "{bind} is open to every user of this machine: add `token_file: FILE`, made by \
                 `(umask 077; openssl rand -hex 32 > FILE)`, or bind ipc://PATH"
            ));
        }
        if is_tcp && (mode.is_some() || group.is_some() || allow.is_some() || masters.is_some()) {
            return Err("`mode`, `group`, `allow` and `masters` belong to a path; over TCP only \
                        `token_file` counts, and every client with the token is a master"
                .to_owned());
        }
        if !is_tcp && token_file.is_some() {
            return Err(
                "`token_file` belongs to tcp://; on a path the kernel names the client's user, see \
                 `allow`"
                    .to_owned(),
            );
        }
        let access = Access { mode: mode.map_or(Access::GROUP.mode, |mode| mode.0), group };
        // The length before a message has 32 bits, of which 0xff and zeros are ZeroMQ's.
        let max_frame = max_frame.as_usize().min(0xfeff_ffff);
        Ok(Config { bind, access, allow, masters, token_file, max_frame, buses: Vec::new() })
    }
}

/// Connections at a time. When there are as many, the one that has been idle for longest has to go.
const CONNECTIONS: usize = 256;

/// The number of these that may be no masters.
const OTHERS: usize = CONNECTIONS / 2;

/// The time to leave the listener alone after it failed, for lack of descriptors for instance.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

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

    fn beside(config: &mut Config, buses: &[PathBuf]) -> bool {
        config.buses = buses.to_vec();
        config.masters.is_none()
    }

    async fn run(
        config: &Config,
        sender: FrameSender,
        stop: CancellationToken,
    ) -> Result<(), SourceError> {
        let context = Rc::new(context(config, sender, &stop)?);
        let state = context.handler.sender.state.clone();
        let mut listening = Listening::open(config)?;
        context.access.owner.set(listening.owner());
        // Salt's side keeps events that it cannot hand over.
        let mut link = Link::keeping(state);
        link.up(&config.bind.to_string());
        let mut clients = Clients { tasks: JoinSet::new(), open: Vec::new(), context };
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Each of these may be dropped at any time: it has then taken nothing.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = clients.tasks.join_next() => clients.ended(ended),
                _ = look.tick() => {
                    listening.look(config, &mut link);
                    clients.context.access.owner.set(listening.owner());
                    clients.context.access.look_at_buses();
                }
                accepted = listening.accept() => match accepted {
                    Ok(Accepted::Unix(stream, user)) => {
                        clients.come(stream, Peer::User(user), |stream, last| {
                            stream.into_std().and_then(|mut stream| stream.write_all(last))
                        }).await;
                    }
                    Ok(Accepted::Tcp(stream)) => {
                        clients.come(stream, Peer::Token, |stream, last| {
                            stream.into_std().and_then(|mut stream| stream.write_all(last))
                        }).await;
                    }
                    Err(error) => {
                        let why = format!("a client cannot be accepted: {error}");
                        clients.context.turned_away.note(Reason::Full, &why);
                        stop.run_until_cancelled(sleep(AFTER_FAILURE)).await;
                    }
                }
            }
        }
        listening.close();
        // Clients that get no answer send again.
        let last = async {
            while let Some(ended) = clients.tasks.join_next().await {
                clients.ended(ended);
            }
        };
        let _ = timeout(LAST_ANSWERS, last).await;
        clients.tasks.shutdown().await;
        Ok(())
    }

    async fn probe(config: &Config) -> Result<(), SourceError> {
        token(config)?;
        config.bind.probe(&config.access)
    }
}

fn token(config: &Config) -> Result<Option<Vec<u8>>, SourceError> {
    let Some(path) = &config.token_file else { return Ok(None) };
    let doing = || format!("reading the token in {}", path.display());
    access::read_token(path).map(Some).map_err(|error| SourceError::new(doing(), error))
}

fn context(
    config: &Config,
    sender: FrameSender,
    stop: &CancellationToken,
) -> Result<ConnectionContext, SourceError> {
    let access = AccessRules {
        allow: config.allow.clone(),
        masters: config.masters.clone(),
        buses: config.buses.clone(),
        bus_owners: RefCell::default(),
        owner: Cell::new(rustix::process::geteuid().as_raw()),
        token: token(config)?,
    };
    let turned_away = TurnedAway::new(sender.state.clone());
    let max_frame = config.max_frame;
    let handler = requests::RequestHandler::new(sender, max_frame, PART);
    Ok(ConnectionContext { handler, access, turned_away, max_frame, stop: stop.clone() })
}

/// The place where clients come in.
struct Listening {
    listener: Listener,
    file: Option<SocketFile>,
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

enum Accepted {
    /// A client on a path, and the user that it is of.
    Unix(UnixStream, u32),
    Tcp(TcpStream),
}

impl Listening {
    fn open(config: &Config) -> Result<Self, SourceError> {
        let (opened, file) = config.bind.open(&config.access)?;
        let listener = match opened {
            Opened::Unix(listener) => listener
                .set_nonblocking(true)
                .and_then(|()| UnixListener::from_std(listener))
                .map(Listener::Unix),
            Opened::Tcp(listener) => listener
                .set_nonblocking(true)
                .and_then(|()| TcpListener::from_std(listener))
                .map(Listener::Tcp),
        };
        let doing = || format!("listening on {}", config.bind);
        let listener = listener.map_err(|error| SourceError::new(doing(), error))?;
        Ok(Listening { listener, file })
    }

    async fn accept(&self) -> std::io::Result<Accepted> {
        match &self.listener {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let user = stream.peer_cred()?.uid();
                Ok(Accepted::Unix(stream, user))
            }
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers are short, and the other side waits for each.
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream))
            }
        }
    }

    /// The owner of the socket's file.
    fn owner(&self) -> u32 {
        let owner = self.file.as_ref().and_then(SocketFile::owner);
        owner.unwrap_or_else(|| rustix::process::geteuid().as_raw())
    }

    /// Looks whether the socket file is there, and listens anew if it is not. Clients that are
    /// connected stay connected.
    fn look(&mut self, config: &Config, link: &mut Link) {
        if self.file.as_ref().is_none_or(SocketFile::is_in_place) {
            return;
        }
        if link.is_up() {
            link.lost(&format!("the socket file of {} was removed or replaced", config.bind));
        }
        match Listening::open(config) {
            Ok(next) => {
                link.up(&config.bind.to_string());
                *self = next;
            }
            Err(error) => link.absent(&chain(&error)),
        }
    }

    fn close(self) {
        if let Some(file) = &self.file {
            file.remove();
        }
    }
}

/// All clients.
struct Clients {
    tasks: JoinSet<()>,
    open: Vec<Rc<Client>>,
    context: Rc<ConnectionContext>,
}

impl Clients {
    /// Lets a client in, or tells it why not by `tell`, without waiting for it.
    async fn come<S, T>(&mut self, stream: S, peer: Peer, tell: T)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
        T: FnOnce(S, &[u8]) -> std::io::Result<()>,
    {
        let kind = self.context.access.authority(peer).unwrap_or(Authority::Bus);
        let admitted = match self.context.access.admit(peer) {
            Err(why) => Err((Reason::NotAllowed, why)),
            Ok(()) if self.has_room(kind).await => Ok(()),
            Ok(()) => {
                let why = "too many clients are connected and none is idle".to_owned();
                Err((Reason::Full, why))
            }
        };
        if let Err((reason, why)) = admitted {
            self.context.turned_away.note(reason, &why);
            let last = framed(&refused(0, VERSION, &why, true)).unwrap_or_default();
            // It fits into what the kernel keeps for a connection; a client that has gone hears
            // nothing.
            let _ = tell(stream, &last);
            return;
        }
        let client = Rc::new(Client {
            peer,
            kind,
            share: self.context.handler.client(kind),
            heard: Cell::new(Instant::now()),
            has_spoken: Cell::new(false),
            leave: CancellationToken::new(),
        });
        self.open.push(Rc::clone(&client));
        let context = Rc::clone(&self.context);
        self.tasks.spawn_local(serve(stream, client, context));
    }

    /// Makes room for one more, for which one that is idle may have to go; false if there is none.
    /// A client that is no master takes no room of a master.
    async fn has_room(&mut self, kind: Authority) -> bool {
        let connected = || self.open.iter().filter(|client| Rc::strong_count(client) > 1);
        let others = || connected().filter(|client| client.kind == Authority::Bus);
        let is_master = kind == Authority::Master;
        if self.tasks.len() < CONNECTIONS && (is_master || others().count() < OTHERS) {
            return true;
        }
        let idle = connected().filter(|client| client.share.is_idle());
        let idle = idle.filter(|client| is_master || client.kind == Authority::Bus);
        let longest = idle.min_by_key(|client| {
            let is_master = client.kind == Authority::Master;
            (client.has_spoken.get(), is_master, client.heard.get())
        });
        let Some(longest) = longest else { return false };
        longest.leave.cancel();
        if let Some(ended) = self.tasks.join_next().await {
            self.ended(ended);
        }
        true
    }

    /// A client's task has ended.
    fn ended(&mut self, ended: Result<(), JoinError>) {
        self.open.retain(|client| Rc::strong_count(client) > 1);
        if let Err(error) = ended
            && error.is_panic()
        {
            let why = format!("{}; this is a bug in saltern", chain(&error));
            self.context.turned_away.note(Reason::Panic, &why);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio::task::LocalSet;

    use super::*;
    use crate::yaml::Node;

    fn read(text: &str) -> Result<Config, String> {
        let mut problems = Vec::new();
        let config = Node::parse(text).unwrap().read_noting(&mut problems);
        config.ok_or_else(|| problems.iter().map(|problem| problem.message.clone()).collect())
    }

    #[test]
    fn a_path_has_a_mode_and_users_and_tcp_a_token() {
        let config =
            read("bind: unix:/run/x\nmode: '0600'\ngroup: salt\nallow: [root, 12]").unwrap();
        assert_eq!(config.bind, Bind::Ipc("/run/x".into()));
        assert_eq!(config.access, Access { mode: 0o600, group: Some("salt".to_owned()) });
        assert_eq!(read("bind: ipc:///run/x").unwrap().access, Access::GROUP);
        read("bind: tcp://127.0.0.1:1\ntoken_file: /x").unwrap();
        for (text, says) in [
            ("bind: tcp://127.0.0.1:1", "add `token_file: FILE`"),
            ("bind: tcp://127.0.0.1:1\ntoken_file: /x\nallow: [0]", "belong to a path"),
            ("bind: ipc:///run/x\ntoken_file: /x", "belongs to tcp://"),
            ("bind: tcp://10.0.0.1:1\ntoken_file: /x", "is not loopback"),
            ("bind: ipc:///run/x\nallow: [65534]", "token_file"),
            ("bind: ipc:///run/x\nmode: '0999'", "0999"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn invariant_1_who_is_no_master_leaves_half_of_the_connections_to_masters() {
        let config = read("bind: ipc:///run/x\nallow: [81]\nmasters: [82]").unwrap();
        let sender = requests::tests::handler().sender.clone();
        let context = Rc::new(context(&config, sender, &CancellationToken::new()).unwrap());
        let mut clients = Clients { tasks: JoinSet::new(), open: Vec::new(), context };
        let mut ends = Vec::new();
        let connecting = async {
            for (user, come, masters, others) in [
                (81, OTHERS + 20, 0, OTHERS),
                (82, CONNECTIONS - OTHERS, CONNECTIONS - OTHERS, OTHERS),
                (82, 20, CONNECTIONS - OTHERS + 20, OTHERS - 20),
                (82, CONNECTIONS, CONNECTIONS, 0),
                (81, 20, CONNECTIONS, 0),
            ] {
                for _ in 0..come {
                    let (here, there) = duplex(1 << 16);
                    clients.come(there, Peer::User(user), |_, _| Ok(())).await;
                    ends.push(here);
                }
                let of = |kind| {
                    let alive = clients.open.iter().filter(|client| Rc::strong_count(client) > 1);
                    alive.filter(|client| client.kind == kind).count()
                };
                assert_eq!((of(Authority::Master), of(Authority::Bus)), (masters, others));
            }
        };
        LocalSet::new().run_until(connecting).await;
    }
}
