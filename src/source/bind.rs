//! Where a source listens for ZeroMQ peers: on a path or on the loopback address, and nowhere else.
//!
//! The `zeromq` crate has neither encryption nor a limit for what a peer may announce: a frame of a
//! terabyte is asked of the allocator before a byte of it has come, and ends the process. So only this
//! machine's own users may reach the socket, and of these, with a path, only those whom its mode lets.

use std::fs::Permissions;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;
use zeromq::Listener;

use super::SourceError;

/// `ipc://PATH` or `tcp://127.0.0.1:PORT`.
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
        if let Some(path) = text.strip_prefix("ipc://").filter(|path| !path.is_empty()) {
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
            "`{text}` is not loopback: ZeroMQ here has neither encryption nor a limit for what a \
             peer may send, so bind ipc://PATH or tcp://127.0.0.1:PORT, and use Kafka between hosts"
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
    /// Listens; on a path with mode 0660, in place of what a process that was killed left behind.
    pub(super) fn listen(&self) -> Result<Listener, SourceError> {
        let listening = match self {
            Bind::Loopback(host_port) => TcpListener::bind(host_port).map(Listener::from),
            Bind::Ipc(path) => remove_stale(path).and_then(|()| {
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
                Ok(Listener::from(listener))
            }),
        };
        listening.map_err(|error| SourceError::new(format!("listening on {self}"), error))
    }

    /// Listens once and lets go again.
    pub(super) fn probe(&self) -> Result<(), SourceError> {
        drop(self.listen()?);
        if let Bind::Ipc(path) = self {
            // What was made for the try must not be in the way of the real one.
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }
}

/// Removes a socket that a process left behind when it was killed.
fn remove_stale(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"))
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
            Err(_) => std::fs::remove_file(path),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_sockets_are_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let bind = Bind::Ipc(path.clone());
        let first = bind.listen().unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        bind.listen().unwrap_err();
        drop(first);
        drop(bind.listen().unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        bind.listen().unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
