//! The file of a unix socket that a source listens on: put in place whole, watched, and removed.
//!
//! A socket is bound beside its path and renamed onto it once its mode is right, so there is always
//! either the old file or the new one. The file of a process that was killed is replaced; that of
//! one that listens is not. Who asks which of the two it is and then acts holds a lock on the
//! folder meanwhile, so that of two daemons none takes the other's address.

use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// A socket's file that this process has made.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode. No other file has them while the socket is open.
    id: (u64, u64),
}

impl SocketFile {
    /// Listens at `path`, with mode 0660.
    pub(super) fn make(path: &Path) -> io::Result<(UnixListener, Self)> {
        let _turn = turn(path)?;
        free(path)?;
        let beside = path.with_file_name(format!(".{:06x}", fastrand::u32(..1 << 24)));
        let listener = UnixListener::bind(&beside)?;
        let placed = std::fs::set_permissions(&beside, Permissions::from_mode(0o660))
            .and_then(|()| beside.symlink_metadata())
            .and_then(|metadata| std::fs::rename(&beside, path).map(|()| metadata));
        match placed {
            Ok(metadata) => {
                let id = (metadata.dev(), metadata.ino());
                Ok((listener, SocketFile { path: path.to_owned(), id }))
            }
            Err(error) => {
                let _ = std::fs::remove_file(&beside);
                Err(error)
            }
        }
    }

    /// Whether the path still leads to the socket.
    pub(super) fn is_in_place(&self) -> bool {
        self.path.symlink_metadata().is_ok_and(|found| (found.dev(), found.ino()) == self.id)
    }

    /// Removes the file, unless another is in its place. One that stays is in nobody's way.
    pub(super) fn remove(&self) {
        if let Ok(_turn) = turn(&self.path)
            && self.is_in_place()
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Locks the folder of a socket. There is no lock where the folder may not be read; whether a
/// socket can be made there shows when it is tried.
fn turn(path: &Path) -> io::Result<Option<File>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) else { return Ok(None) };
    match folder.try_lock() {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another process has locked the folder, perhaps to make a socket there",
        )),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Sees to it that there is nothing at `path` that may not be replaced.
fn free(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let message = "there is a file that is no socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Ok(_) => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A process that listens and accepts nothing must not hold up this one.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?).map_err(|error| (error.kind(), error)) {
        Err((io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound, _)) => Ok(()),
        Ok(()) | Err((io::ErrorKind::WouldBlock, _)) => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"))
        }
        Err((kind, error)) => {
            let message = format!("asking whether a process listens there: {error}");
            Err(io::Error::new(kind, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn stale_sockets_are_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (listener, _) = SocketFile::make(&path).unwrap();
        assert_eq!(mode(&path), 0o660);
        assert_eq!(SocketFile::make(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        drop(SocketFile::make(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(SocketFile::make(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "something was left behind");
    }

    #[test]
    fn of_many_that_want_a_stale_address_one_gets_it_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        for _ in 0..50 {
            drop(SocketFile::make(&path).unwrap());
            let barrier = Barrier::new(4);
            let all = std::thread::scope(|scope| {
                let one = || {
                    barrier.wait();
                    SocketFile::make(&path).ok()
                };
                let threads = [(); 4].map(|()| scope.spawn(one));
                threads.map(|thread| thread.join().unwrap())
            });
            let made: Vec<_> = all.iter().flatten().collect();
            assert_eq!(made.len(), 1);
            assert!(made[0].1.is_in_place());
        }
    }

    #[test]
    fn a_file_that_took_the_place_is_noticed_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (_listener, file) = SocketFile::make(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!file.is_in_place());
        let (_other_listener, other) = SocketFile::make(&path).unwrap();
        assert!(!file.is_in_place());
        file.remove();
        assert!(other.is_in_place());
        other.remove();
        assert!(!path.exists());
    }
}
