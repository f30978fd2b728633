//! A TCP proxy that breaks connections as networks do, for tests against real servers.
//!
//! It stands between a client and a server and forwards, until a test tells it otherwise. All of it
//! runs on one thread, which ends when the [`Proxy`] is dropped.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// A way through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The client's bytes.
    ToServer,
    /// The server's answers.
    ToClient,
}

/// The faults of connections.
#[derive(Debug, Clone)]
struct Faults {
    server: SocketAddr,
    /// The number of times that all connections were reset; a connection ends when it changes.
    resets: u64,
    /// Reset all after so many more bytes this way.
    reset_after: Option<(Way, usize)>,
    dead: [bool; 2],
    latency: Duration,
}

/// The port is to be open or shut; answered once it is so.
type Door = (bool, SyncSender<()>);

/// The proxy. Its methods may be called from any thread, in async code too.
pub(crate) struct Proxy {
    address: SocketAddr,
    faults: watch::Sender<Faults>,
    door: Option<mpsc::Sender<Door>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy before `server`, on a free port of the loopback interface.
    pub(crate) fn start(server: SocketAddr) -> Self {
        Self::start_at(0, server)
    }

    /// The same on a given port, for servers that tell clients where to find them.
    pub(crate) fn start_at(port: u16, server: SocketAddr) -> Self {
        let faults = Faults {
            server,
            resets: 0,
            reset_after: None,
            dead: [false; 2],
            latency: Duration::ZERO,
        };
        let faults = watch::Sender::new(faults);
        let (door, doors) = mpsc::channel(1);
        let (address_in, address) = sync_channel(1);
        let seen = faults.clone();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(accept(port, &seen, doors, &address_in));
        };
        let thread = std::thread::Builder::new().name("proxy".to_owned()).spawn(run).unwrap();
        let address = address.recv().unwrap();
        Proxy { address, faults, door: Some(door), thread: Some(thread) }
    }

    /// The address at which clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Forwards new connections to another server.
    pub(crate) fn forward_to(&self, server: SocketAddr) {
        self.faults.send_modify(|faults| faults.server = server);
    }

    /// Resets all connections that are open (RST, not FIN).
    pub(crate) fn reset(&self) {
        self.faults.send_modify(|faults| faults.resets += 1);
    }

    /// Resets all connections once, when so many more bytes went this way. The bytes before are
    /// forwarded, but a reset makes the peer forget bytes that it has not read yet.
    pub(crate) fn reset_after(&self, via: Way, bytes: usize) {
        self.faults.send_modify(|faults| faults.reset_after = Some((via, bytes)));
    }

    /// Swallows everything; connections are still accepted. A connection that lost bytes is reset
    /// when the proxy heals, as by a router that has forgotten it.
    pub(crate) fn black_hole(&self) {
        self.faults.send_modify(|faults| faults.dead = [true; 2]);
    }

    /// Swallows what goes this way, as above; the other way works.
    pub(crate) fn half_open(&self, dead: Way) {
        self.faults.send_modify(|faults| faults.dead[dead as usize] = true);
    }

    /// Holds everything that is read back for so long.
    pub(crate) fn delay(&self, latency: Duration) {
        self.faults.send_modify(|faults| faults.latency = latency);
    }

    /// Refuses new connections; those that are open stay.
    pub(crate) fn refuse(&self) {
        self.set_door(false);
    }

    /// Takes all faults away.
    pub(crate) fn heal(&self) {
        self.faults.send_modify(|faults| {
            faults.reset_after = None;
            faults.dead = [false; 2];
            faults.latency = Duration::ZERO;
        });
        self.set_door(true);
    }

    fn set_door(&self, open: bool) {
        let (done, is_done) = sync_channel(1);
        let sent = self.door.as_ref().unwrap().try_send((open, done));
        sent.unwrap();
        is_done.recv().unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.door = None;
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the proxy panicked");
    }
}

/// Takes the port without listening: it refuses, and nobody else gets it.
fn bind(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into())?;
    Ok(socket)
}

/// Runs until the door is let go of.
async fn accept(
    port: u16,
    faults: &watch::Sender<Faults>,
    mut doors: mpsc::Receiver<Door>,
    address: &SyncSender<SocketAddr>,
) {
    let mut listener = Some(bind(port).unwrap().listen(BACKLOG).unwrap());
    let port = listener.as_ref().unwrap().local_addr().unwrap();
    address.send(port).unwrap();
    let mut closed = None;
    // Dropped at the end, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            door = doors.recv() => match door {
                None => return,
                Some((true, done)) => {
                    if let Some(socket) = closed.take() {
                        listener = Some(TcpSocket::listen(socket, BACKLOG).unwrap());
                    }
                    done.send(()).unwrap();
                }
                Some((false, done)) => {
                    listener = None;
                    // Twice on one port is no harm while nobody listens.
                    closed = Some(bind(port.port()).unwrap());
                    done.send(()).unwrap();
                }
            },
            client = next(listener.as_ref()) => {
                connections.spawn(serve(client, faults.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn next(listener: Option<&TcpListener>) -> TcpStream {
    match listener {
        Some(listener) => listener.accept().await.unwrap().0,
        None => std::future::pending().await,
    }
}

/// One connection, until it ends by itself or is reset.
async fn serve(mut client: TcpStream, faults: watch::Sender<Faults>) {
    let mut changes = faults.subscribe();
    let (resets, server) = {
        let faults = changes.borrow_and_update();
        (faults.resets, faults.server)
    };
    let lost = AtomicBool::new(false);
    let is_over = |faults: &Faults| {
        let is_healed = faults.dead == [false; 2] && lost.load(Ordering::Relaxed);
        faults.resets != resets || is_healed
    };
    let forwarding = async {
        let mut server = TcpStream::connect(server).await?;
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = pump(Way::ToServer, from_client, to_server, &faults, &lost);
        let down = pump(Way::ToClient, from_server, to_client, &faults, &lost);
        let ended = tokio::select! {
            ended = async { tokio::try_join!(up, down) } => ended.map(|_| ()),
            _ = changes.wait_for(is_over) => Err(io::ErrorKind::ConnectionReset.into()),
        };
        if ended.is_err() {
            server.set_zero_linger()?;
        }
        ended
    };
    if forwarding.await.is_err() {
        // The client may have gone already.
        let _ = client.set_zero_linger();
    }
}

/// Forwards one way until its end, and passes that on.
async fn pump(
    via: Way,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    faults: &watch::Sender<Faults>,
    lost: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        let latency = faults.borrow().latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if faults.borrow().dead[via as usize] {
            lost.store(true, Ordering::Relaxed);
            if count == 0 {
                // The end is lost too; only a reset ends this.
                return std::future::pending().await;
            }
            continue;
        }
        if count == 0 {
            return to.shutdown().await;
        }
        let (allowed, is_last) = allow(via, count, faults);
        to.write_all(&buffer[..allowed]).await?;
        if is_last {
            faults.send_modify(|faults| faults.resets += 1);
        }
    }
}

/// The number of bytes, of so many, that may pass, and whether all is reset then.
fn allow(via: Way, count: usize, faults: &watch::Sender<Faults>) -> (usize, bool) {
    let mut allowed = (count, false);
    faults.send_if_modified(|faults| {
        if let Some((limited, left)) = &mut faults.reset_after
            && *limited == via
        {
            allowed = (count.min(*left), count >= *left);
            *left -= allowed.0;
            if allowed.1 {
                faults.reset_after = None;
            }
        }
        false
    });
    allowed
}
