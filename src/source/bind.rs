//! The address at which a source listens: a path or the loopback address, and no other.
//!
//! Nothing here is encrypted, so only this machine's own users may reach the socket. On a path only
//! those users may whom its mode lets. Over TCP every user may, so the source `returner` has them
//! show a token. A source that speaks ZeroMQ has no token, and the `zeromq` crate has no limit for
//! the length that a peer may announce. It asks the allocator for a frame of a terabyte before a
//! byte of it has come, and the process ends. Use a path there.

use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::timeout;
use tracing::{debug, warn};
use zeromq::{Endpoint, Listener, Socket};

use crate::error::chain;
use crate::files::socket_file::{Access, SocketFile, fits_to_listen};
use crate::source::contract::SourceError;
use crate::source::link::Link;

/// `ipc://PATH`, `unix:PATH` or `tcp://127.0.0.1:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub(super) enum Bind {
    Ipc(PathBuf),
    Loopback(String),
}

impl TryFrom<String> for Bind {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let path = text.strip_prefix("ipc://").or_else(|| text.strip_prefix("unix:"));
        if let Some(path) = path.filter(|path| !path.is_empty()) {
            fits_to_listen(Path::new(path)).map_err(|error| error.to_string())?;
            return Ok(Bind::Ipc(path.into()));
        }
        let form = || format!("`{text}` is no address to bind: ipc://PATH or tcp://127.0.0.1:PORT");
        let host_port = text.strip_prefix("tcp://").ok_or_else(form)?;
        let (host, port) = host_port.rsplit_once(':').ok_or_else(form)?;
        port.parse::<u16>().map_err(|_| form())?;
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        if host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback()) {
            return Ok(Bind::Loopback(host_port.to_owned()));
        }
        Err(format!(
            "`{text}` is not loopback: there is no encryption here, so bind ipc://PATH or \
             tcp://127.0.0.1:PORT, and use Kafka between hosts"
        ))
    }
}

impl std::fmt::Display for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bind::Ipc(path) => write!(f, "ipc://{}", path.display()),
            Bind::Loopback(host_port) => write!(f, "tcp://{host_port}"),
        }
    }
}

impl Bind {
    /// Lets a socket listen; on a path with mode 0660, in place of the file of a process that was
    /// killed.
    pub(super) async fn listen(&self, socket: &mut impl Socket) -> Result<Bound, SourceError> {
        let doing = || format!("listening on {self}");
        let (opened, file) = self.open(&Access::GROUP)?;
        let listener: Listener = match opened {
            Opened::Unix(listener) => listener.into(),
            Opened::Tcp(listener) => listener.into(),
        };
        let bound = socket.bind_listener(listener).await;
        let endpoint = bound.map_err(|error| SourceError::new(doing(), error))?;
        Ok(Bound { bind: self.clone(), endpoint, file })
    }

    /// Listens once and lets go again.
    pub(super) fn probe(&self, access: &Access) -> Result<(), SourceError> {
        let (_, file) = self.open(access)?;
        if let Some(file) = file {
            // The probe's file must not be in the way of the real one.
            file.remove();
        }
        Ok(())
    }

    /// Listens; on a path for users with `access`.
    pub(super) fn open(
        &self,
        access: &Access,
    ) -> Result<(Opened, Option<SocketFile>), SourceError> {
        let opened = match self {
            Bind::Loopback(host_port) => {
                // By name it could be `::1`, where clients that mean 127.0.0.1 find nobody.
                let address = match host_port.strip_prefix("localhost:") {
                    Some(port) => format!("127.0.0.1:{port}"),
                    None => host_port.clone(),
                };
                TcpListener::bind(address).map(|listener| (Opened::Tcp(listener), None))
            }
            Bind::Ipc(path) => SocketFile::make(path, access)
                .map(|(listener, file)| (Opened::Unix(listener), Some(file))),
        };
        opened.map_err(|error| SourceError::new(format!("listening on {self}"), error))
    }
}

/// A socket that listens.
pub(super) enum Opened {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// An address that a socket listens on.
pub(super) struct Bound {
    bind: Bind,
    endpoint: Endpoint,
    file: Option<SocketFile>,
}

/// The interval at which to [look](Bound::look).
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// The time that letting go of an address may take.
const CLOSE: Duration = Duration::from_secs(5);

impl Bound {
    /// Looks whether the socket file is there, and listens anew if it is not. Peers that are
    /// connected stay connected.
    pub(super) async fn look(&mut self, socket: &mut impl Socket, link: &mut Link) {
        if self.file.as_ref().is_none_or(SocketFile::is_in_place) {
            return;
        }
        if link.is_up() {
            link.lost(&format!("the socket file of {} was removed or replaced", self.bind));
        }
        match self.bind.listen(socket).await {
            Ok(next) => {
                link.up(&self.bind.to_string());
                let before = std::mem::replace(self, next);
                if timeout(CLOSE, socket.unbind(before.endpoint)).await.is_err() {
                    debug!(bind = %self.bind, "the old socket did not close in time");
                }
            }
            Err(error) => link.absent(&chain(&error)),
        }
    }

    /// Closes the address and all connections, and removes the socket file.
    pub(super) async fn close(self, socket: impl Socket) {
        if let Some(file) = &self.file {
            file.remove();
        }
        // It waits for the task that accepts, which ends when told to.
        if timeout(CLOSE, socket.close()).await.is_err() {
            warn!(bind = %self.bind, "the socket did not close in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_the_address_that_clients_mean() {
        let bind = Bind::try_from("tcp://localhost:0".to_owned()).unwrap();
        let (opened, _) = bind.open(&Access::GROUP).unwrap();
        let Opened::Tcp(listener) = opened else { panic!("no TCP") };
        assert_eq!(listener.local_addr().unwrap().ip().to_string(), "127.0.0.1");
    }
}
