//! The two listeners of the HTTP side: an address, and a unix socket.
//!
//! The daemon checks the socket's file while it runs, and makes it anew if it was removed or
//! replaced. A socket that cannot be made in its usual place is an error that shows, and is tried
//! again. A configured one must be there at the start.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tracing::{error, info, warn};

use super::place::Place;
use super::token;
use crate::client::tls::{TlsError, server};
use crate::config::http::{Http, HttpSocket, HttpTls};
use crate::error::chain;
use crate::files::socket_file::{Access, SocketFile};
use crate::files::state_file;
use crate::observe::state::State;
use crate::sync::blocking;
use crate::sync::lock;
use crate::units::Secret;

/// The reason for which the HTTP side cannot start.
#[derive(Debug, Error)]
pub(crate) enum BindError {
    /// The address cannot be had.
    #[error("cannot listen on {listen} (http.listen)")]
    Address {
        /// The address.
        listen: SocketAddr,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// The unix socket cannot be made.
    #[error("cannot listen on {} (http.socket)", path.display())]
    Socket {
        /// Its file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// There is no certificate to show.
    #[error(
        "cannot serve TLS with http.tls: `cert` and `key` must be PEM files that the daemon's user \
         can read"
    )]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The certificate, as it was last read.
pub(super) struct Tls {
    files: HttpTls,
    current: Mutex<Arc<ServerConfig>>,
}

impl Tls {
    fn read(files: &HttpTls) -> Result<Arc<ServerConfig>, TlsError> {
        server(&files.cert, &files.key).map(Arc::new)
    }

    fn acceptor(&self) -> TlsAcceptor {
        let current = lock::hold(&self.current);
        Arc::clone(&current).into()
    }

    fn reload(&self) {
        match Tls::read(&self.files) {
            Ok(new) => *lock::hold(&self.current) = new,
            Err(error) => {
                let error = chain(&error);
                error!(
                    error,
                    "the certificate of http.tls cannot be read; the old one stays in use"
                );
            }
        }
    }
}

/// A door that is open.
pub(super) enum Listening {
    Address { listener: TcpListener, tls: Option<Tls>, token: Option<TokenFile> },
    Socket(Socket),
}

/// Says where the doors are.
pub(super) fn announce(open: &[Listening]) {
    for listening in open {
        match listening {
            Listening::Address { listener, tls, .. } => {
                if let Ok(address) = listener.local_addr() {
                    info!(%address, tls = tls.is_some(), "the HTTP side listens");
                }
            }
            Listening::Socket(Socket { place: Place::Short(path), bound: Some(_), .. }) => info!(
                socket = %path.display(),
                "commands reach the daemon here, because a path in state_dir would be too long for \
                 a socket"
            ),
            Listening::Socket(Socket { place, bound: Some(_), .. }) => {
                info!(socket = %place.path().display(), "commands reach the daemon here");
            }
            // The first look reports the fault.
            Listening::Socket(_) => {}
        }
    }
}

/// A new connection.
pub(super) enum Accepted {
    User { stream: UnixStream, uid: u32 },
    Address { stream: TcpStream, address: SocketAddr, tls: Option<TlsAcceptor> },
}

impl Listening {
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Listening::Address { listener, tls, .. } => {
                let (stream, address) = listener.accept().await?;
                let tls = tls.as_ref().map(Tls::acceptor);
                Ok(Accepted::Address { stream, address, tls })
            }
            Listening::Socket(Socket { bound: Some((listener, _)), .. }) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred()?.uid();
                Ok(Accepted::User { stream, uid })
            }
            Listening::Socket(_) => std::future::pending().await,
        }
    }

    /// Puts back a removed socket.
    pub(super) fn look(&mut self, state: &State) {
        match self {
            Listening::Address { token, .. } => {
                if let Some(token) = token {
                    blocking(|| token.look());
                }
            }
            Listening::Socket(socket) => blocking(|| socket.look(state)),
        }
    }

    /// Reads files again.
    pub(super) fn reload(&mut self) {
        if let Listening::Address { tls: Some(tls), .. } = self {
            blocking(|| tls.reload());
        }
    }

    pub(super) fn close(self) {
        if let Listening::Socket(Socket { bound: Some((_, file)), .. }) = self {
            blocking(|| file.remove());
        }
    }
}

/// A token that was made and is in a file.
pub(super) struct TokenFile {
    file: PathBuf,
    token: Secret,
    /// Device and inode of the directory that it was written to.
    directory: Option<(u64, u64)>,
}

impl TokenFile {
    fn new(file: PathBuf, token: Secret) -> Self {
        let directory = directory_of(&file);
        TokenFile { file, token, directory }
    }

    /// A file that went with its directory is written again. A file that was removed alone is not:
    /// an operator removes it to get a new token at the next start.
    fn look(&mut self) {
        let directory = directory_of(&self.file);
        if directory.is_none() || directory == self.directory {
            return;
        }
        let gone = self.file.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        match gone.then(|| token::keep(&self.file, &self.token)) {
            Some(Err(error)) => {
                let file = self.file.display();
                warn!(%file, %error, "the token's file was removed and cannot be written again");
            }
            _ => self.directory = directory,
        }
    }
}

fn directory_of(file: &Path) -> Option<(u64, u64)> {
    let metadata = file.parent()?.metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The unix socket.
pub(super) struct Socket {
    place: Place,
    access: Access,
    bound: Option<(UnixListener, SocketFile)>,
}

impl Socket {
    fn open(settings: &HttpSocket, state_dir: &Path) -> Result<Self, BindError> {
        let place = Place::of(settings, state_dir);
        let access = Access { mode: settings.mode.0, group: settings.group.clone() };
        let mut socket = Socket { place, access, bound: None };
        match socket.bind() {
            Err(cause) if matches!(socket.place, Place::Configured(_)) => {
                Err(BindError::Socket { path: socket.path().to_owned(), cause })
            }
            // The first look tries failed parts again, and logs it.
            _ => Ok(socket),
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.place.path()
    }

    fn bind(&mut self) -> io::Result<()> {
        self.place.prepare()?;
        // In a directory of our own nothing else belongs there.
        if let Place::Usual(path) | Place::Short(path) = &self.place
            && path.symlink_metadata().is_ok_and(|there| !there.file_type().is_socket())
        {
            state_file::put_aside(path, &"it is no socket")?;
        }
        let (listener, file) = SocketFile::make(self.path(), &self.access)?;
        listener.set_nonblocking(true)?;
        self.bound = Some((UnixListener::from_std(listener)?, file));
        Ok(())
    }

    /// Listens anew where the file was removed or replaced. Clients that are connected stay.
    fn look(&mut self, state: &State) {
        if self.bound.as_ref().is_some_and(|(_, file)| file.is_in_place()) {
            return;
        }
        match self.bind() {
            Ok(()) => {
                self.trouble(None, state);
                info!(
                    socket = %self.path().display(),
                    "the unix socket was removed and is made again"
                );
            }
            Err(error) => self.trouble(Some(&error), state),
        }
    }

    fn trouble(&self, error: Option<&io::Error>, state: &State) {
        const TROUBLE: &str = "the unix socket for commands cannot be made";
        let reason = error.map(|error| format!("{}: {error}", self.path().display()));
        if state.set_trouble(TROUBLE, reason.clone())
            && let Some(reason) = reason
        {
            error!(error = reason, "{TROUBLE} (http.socket)");
        }
    }
}

/// The address, bound before anything is started.
pub(crate) struct Bound {
    listener: TcpListener,
    tls: Option<Tls>,
}

impl Bound {
    /// A listener of the caller's, without TLS.
    pub(crate) fn of(listener: TcpListener) -> Self {
        Bound { listener, tls: None }
    }
}

/// Binds the configured address and reads the certificate; `None` if there is no address.
pub(crate) async fn bind(http: &Http) -> Result<Option<Bound>, BindError> {
    let Some(listen) = http.listen else { return Ok(None) };
    let tls = http.tls.as_ref().map(|files| match Tls::read(files) {
        Ok(config) => Ok(Tls { files: files.clone(), current: Mutex::new(config) }),
        Err(error) => Err(BindError::Tls(Box::new(error))),
    });
    let tls = tls.transpose()?;
    let bound = TcpListener::bind(listen).await;
    let listener = bound.map_err(|cause| BindError::Address { listen, cause })?;
    if !listen.ip().is_loopback() && tls.is_none() {
        warn!(
            %listen,
            "http.listen is not loopback and there is no http.tls: tokens and events go over the \
             network unencrypted"
        );
    }
    Ok(Some(Bound { listener, tls }))
}

/// Both doors, open.
pub(crate) struct Listeners {
    pub(super) open: Vec<Listening>,
    pub(super) token: Option<Secret>,
    /// The address.
    pub(super) listen: Option<SocketAddr>,
    /// The file of the socket.
    pub(super) socket: Option<PathBuf>,
}

/// Opens the rest: the unix socket, and the token's file. Both may be in `state_dir`, which has
/// been taken.
pub(crate) fn open(
    http: &Http,
    state_dir: &Path,
    bound: Option<Bound>,
) -> Result<Listeners, BindError> {
    let mut listeners =
        Listeners { open: Vec::new(), token: http.token.clone(), listen: None, socket: None };
    if let Some(Bound { listener, tls }) = bound {
        let mut file = None;
        if listeners.token.is_none() {
            match token::take(state_dir) {
                Ok(token) => {
                    listeners.token = Some(token.clone());
                    file = Some(TokenFile::new(token::file_of(state_dir), token));
                }
                Err(error) => error!(
                    error = chain(&error),
                    "there is no token, so over TCP nothing but /metrics, /healthz and /readyz is \
                     served; set http.token, or fix the file and restart"
                ),
            }
        }
        if let Ok(address) = listener.local_addr() {
            listeners.listen = Some(address);
        }
        listeners.open.push(Listening::Address { listener, tls, token: file });
    }
    if let Some(settings) = &http.socket {
        let socket = blocking(|| Socket::open(settings, state_dir))?;
        listeners.socket = Some(socket.path().to_owned());
        listeners.open.push(Listening::Socket(socket));
    }
    Ok(listeners)
}
