//! The file of a unix socket that the daemon listens on: put in place whole, watched, and removed.
//!
//! The file's group and mode decide who may connect ([`Access`]). A socket is bound beside its path
//! and renamed onto it once its mode is right, so there is always either the old file or the new
//! one. The file of a process that was killed is replaced; the file of one that listens is not. A
//! daemon that checks this and then acts holds a lock on the folder meanwhile, so no daemon takes
//! the address of another.

use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::unistd::Group;
use socket2::{Domain, SockAddr, Socket, Type};

/// The longest path that a unix socket can have, in bytes: `sun_path` of unix(7), without the zero
/// behind it.
pub(crate) const LONGEST_PATH: usize = 107;

/// The users who may connect to a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Access {
    /// The permissions of its file. Connecting takes the permission to write.
    pub(crate) mode: u32,
    /// Its group, by name or number. `None`: that of the process, or of a directory with the
    /// setgid bit.
    pub(crate) group: Option<String>,
}

impl Access {
    /// The owner and the group.
    pub(crate) const GROUP: Access = Access { mode: 0o660, group: None };

    fn give(&self, path: &Path) -> io::Result<()> {
        if let Some(group) = &self.group {
            lchown(path, None, Some(number_of(group)?)).map_err(|error| {
                let message = format!("giving the socket to the group `{group}`: {error}");
                io::Error::new(error.kind(), message)
            })?;
        }
        std::fs::set_permissions(path, Permissions::from_mode(self.mode))
    }
}

fn number_of(group: &str) -> io::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let found = Group::from_name(group)?;
    let message = || format!("there is no group `{group}` on this machine");
    let absent = || io::Error::new(io::ErrorKind::NotFound, message());
    found.map(|group| group.gid.as_raw()).ok_or_else(absent)
}

/// A socket's file that this process has made.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode. No other file has them while the socket is open.
    id: (u64, u64),
}

impl SocketFile {
    /// Listens at `path`, for those whom `access` lets.
    pub(crate) fn make(path: &Path, access: &Access) -> io::Result<(UnixListener, Self)> {
        let beside = beside(path, fastrand::u32(..1 << 24));
        fits_to_listen(path)?;
        let _folder_lock = lock_folder(path)?;
        free(path)?;
        let listener = UnixListener::bind(&beside)?;
        let placed = access
            .give(&beside)
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

    /// The path still leads to the socket.
    pub(crate) fn is_in_place(&self) -> bool {
        self.path.symlink_metadata().is_ok_and(|found| (found.dev(), found.ino()) == self.id)
    }

    /// The owner of the file, while it is in place.
    pub(crate) fn owner(&self) -> Option<u32> {
        let found = self.path.symlink_metadata().ok()?;
        ((found.dev(), found.ino()) == self.id).then(|| found.uid())
    }

    /// Removes the file, unless another is in its place. One that stays is in nobody's way.
    pub(crate) fn remove(&self) {
        if let Ok(_folder_lock) = lock_folder(&self.path)
            && self.is_in_place()
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The path at which a socket is made before it is put in place.
fn beside(path: &Path, number: u32) -> PathBuf {
    path.with_file_name(format!(".{number:06x}"))
}

/// Checks like [`fits`], for a socket that is bound beside the path and renamed onto it.
pub(crate) fn fits_to_listen(path: &Path) -> io::Result<()> {
    fits(path).and_then(|()| fits(&beside(path, 0)))
}

/// Refuses a path that no socket can have, with advice.
pub(crate) fn fits(path: &Path) -> io::Result<()> {
    let length = path.as_os_str().as_bytes().len();
    if length <= LONGEST_PATH {
        return Ok(());
    }
    let message = format!(
        "the path of a unix socket has at most {LONGEST_PATH} bytes, and {} has {length}; name a \
         shorter one",
        path.display()
    );
    Err(io::Error::new(io::ErrorKind::InvalidFilename, message))
}

/// Locks the folder of a socket. There is no lock where the folder may not be read; whether a
/// socket can be made there shows when it is tried.
fn lock_folder(path: &Path) -> io::Result<Option<File>> {
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

    use crate::files::socket_file::*;

    fn make(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
        SocketFile::make(path, &Access::GROUP)
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn stale_sockets_are_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (listener, _) = make(&path).unwrap();
        assert_eq!(mode(&path), 0o660);
        assert_eq!(make(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        drop(make(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(make(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "something was left behind");
    }

    #[test]
    fn of_many_that_want_a_stale_address_one_gets_it_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        for _ in 0..50 {
            drop(make(&path).unwrap());
            let barrier = Barrier::new(4);
            let all = std::thread::scope(|scope| {
                let one = || {
                    barrier.wait();
                    make(&path).ok()
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
    fn mode_and_group_are_those_that_were_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let group = rustix::process::getegid().as_raw();
        let access = Access { mode: 0o600, group: Some(group.to_string()) };
        let _made = SocketFile::make(&path, &access).unwrap();
        assert_eq!((mode(&path), path.metadata().unwrap().gid()), (0o600, group));
        let access = Access { group: Some("no-such-group".to_owned()), ..Access::GROUP };
        let error = SocketFile::make(&folder.path().join("t"), &access).unwrap_err();
        assert!(error.to_string().contains("no group `no-such-group`"), "{error}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "something was left behind");
    }

    #[test]
    fn a_path_that_is_too_long_is_refused_with_its_length() {
        let path = Path::new("/tmp").join("x".repeat(LONGEST_PATH - 4));
        let error = make(&path).unwrap_err();
        assert!(error.to_string().contains("at most 107 bytes"), "{error}");
        // The name beside it would be too long, though it is not.
        make(&Path::new("/tmp").join("y".repeat(LONGEST_PATH - 6)).join("s")).unwrap_err();
    }

    #[test]
    fn a_file_that_took_the_place_is_noticed_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (_listener, file) = make(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!file.is_in_place());
        let (_other_listener, other) = make(&path).unwrap();
        assert!(!file.is_in_place());
        file.remove();
        assert!(other.is_in_place());
        other.remove();
        assert!(!path.exists());
    }
}
