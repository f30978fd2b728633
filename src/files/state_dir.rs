//! The daemon's lock on its `state_dir`: no other daemon has the directory, and it is there.
//!
//! The lock is a file in the directory. So another directory has another lock: the old one may be
//! removed while the daemon runs, or replaced. The daemon then takes the new one, and all that has
//! a file there begins anew. If another daemon has it already, this one must end.
//!
//! A directory that others can write is not taken: they could put anything in the place of any
//! file. A directory that others can only look into is taken. Each file in it is readable for its
//! owner alone, and an operator may mean it, as when a group reaches a socket there.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tracing::warn;

use crate::files::regular_file::{self, Links};
use crate::files::state_file;
use crate::files::unwritable::advised;

/// The reason why the directory cannot be had.
#[derive(Debug, Error)]
pub(crate) enum StateDirError {
    /// It cannot be made.
    #[error("cannot create state_dir {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// Others can write into it.
    #[error(
        "others can write into state_dir {path}, whose mode is {mode:04o}: `chmod 0700 {path}`, or \
         name a directory within it, which saltern makes with mode 0700"
    )]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "state_dir {path} belongs to the user {owner}, but this process runs as {user}: if {owner} \
         is the daemon's user, run this as {owner} or root; else `chown {user} {path}`, or name \
         another directory"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// The lock in it cannot be opened.
    #[error("cannot take {lock}")]
    Lock {
        /// The file.
        lock: PathBuf,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// Another process has it.
    #[error(
        "cannot take {lock}: another saltern uses this state_dir; stop it, or give this one a \
         state_dir of its own"
    )]
    Taken {
        /// The file.
        lock: PathBuf,
    },
}

/// A `state_dir` that is this process's alone for as long as this lives.
pub(crate) struct StateDir {
    path: PathBuf,
    /// The directory as it was taken, so that it is known again without its lock.
    directory: File,
    lock: File,
}

impl StateDir {
    /// Takes the directory, which is made if it is not there.
    pub(crate) fn take(path: &Path) -> Result<Self, StateDirError> {
        state_file::create_directory(path)
            .map_err(|cause| advised(&lock_of(path), cause))
            .map_err(|cause| StateDirError::Create { path: path.to_owned(), cause })?;
        let name = lock_of(path);
        let failed =
            |cause| StateDirError::Lock { lock: name.clone(), cause: advised(&name, cause) };
        let directory = File::open(path).map_err(failed)?;
        for advice in examine(path, &directory.metadata().map_err(failed)?)? {
            warn!(state_dir = %path.display(), "{advice}");
        }
        let lock = state_file::open_or_replace(&name).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(StateDir { path: path.to_owned(), directory, lock }),
            Err(TryLockError::WouldBlock) => Err(StateDirError::Taken { lock: name }),
            Err(TryLockError::Error(cause)) => Err(failed(cause)),
        }
    }

    /// Takes the directory again if it is not the one that was taken; `true` if it was not. A lock
    /// that alone is gone is made anew, since all else is where it was.
    pub(crate) fn take_again(&mut self) -> Result<bool, StateDirError> {
        if is_same(&self.lock, lock_of(&self.path).symlink_metadata()) {
            return Ok(false);
        }
        let new = StateDir::take(&self.path)?;
        let is_new = !is_same(&self.directory, new.directory.metadata());
        *self = new;
        Ok(is_new)
    }
}

/// A daemon has the directory.
pub(crate) fn is_taken(state_dir: &Path) -> bool {
    // Shared and let go of at once, so that it is in the way of nobody but a daemon that starts
    // now.
    let file =
        regular_file::open(&lock_of(state_dir), OpenOptions::new().read(true), Links::Refuse);
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Examines a directory as a daemon does that takes it. A missing one will be made with the right
/// mode.
pub(crate) fn check(path: &Path) -> Result<Vec<String>, StateDirError> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => examine(path, &metadata),
        _ => Ok(Vec::new()),
    }
}

/// Refuses a directory that is not safe to use; returns advice on one that is.
fn examine(path: &Path, directory: &Metadata) -> Result<Vec<String>, StateDirError> {
    let (mode, owner) = (directory.mode() & 0o7777, directory.uid());
    let path = path.to_owned();
    if mode & 0o022 != 0 {
        return Err(StateDirError::Writable { path, mode });
    }
    let user = rustix::process::geteuid();
    // Root works beside a daemon of another user, whose files it makes.
    if !user.is_root() && owner != 0 && owner != user.as_raw() {
        return Err(StateDirError::Foreign { path, owner, user: user.as_raw() });
    }
    let mut advice = Vec::new();
    if mode & 0o007 != 0 {
        advice.push(format!(
            "others can look into state_dir; better is `chmod 0700 {}`",
            path.display()
        ));
    }
    let real = path.canonicalize().unwrap_or(path);
    advice.extend(real.ancestors().skip(1).find_map(|above| {
        let mode = above.metadata().ok()?.mode();
        (mode & 0o1002 == 0o002).then(|| {
            let above = above.display();
            format!("others can put another directory in place of state_dir; `chmod o-w {above}`")
        })
    }));
    Ok(advice)
}

/// The directory that is there is the one that is held.
fn is_same(held: &File, there: io::Result<Metadata>) -> bool {
    let (Ok(held), Ok(there)) = (held.metadata(), there) else { return false };
    (held.dev(), held.ino()) == (there.dev(), there.ino())
}

fn lock_of(state_dir: &Path) -> PathBuf {
    state_dir.join("lock")
}

#[cfg(test)]
mod tests {
    use crate::files::state_dir::*;

    #[test]
    fn the_lock_follows_the_directory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut taken = StateDir::take(&path).unwrap();
        assert!(is_taken(&path));
        assert!(matches!(StateDir::take(&path), Err(StateDirError::Taken { .. })));
        assert!(!taken.take_again().unwrap());

        std::fs::remove_dir_all(&path).unwrap();
        assert!(!is_taken(&path));
        assert!(taken.take_again().unwrap(), "it was removed");
        assert!(is_taken(&path));
        assert!(!taken.take_again().unwrap());

        std::fs::rename(&path, folder.path().join("before")).unwrap();
        let other = StateDir::take(&path).unwrap();
        assert!(matches!(taken.take_again(), Err(StateDirError::Taken { .. })));
        drop(other);
        assert!(taken.take_again().unwrap(), "it was replaced");
        assert!(!is_taken(&folder.path().join("before")));
    }

    #[test]
    fn a_lock_that_alone_is_removed_is_made_anew_and_the_directory_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut taken = StateDir::take(&path).unwrap();
        std::fs::remove_file(path.join("lock")).unwrap();
        assert!(!taken.take_again().unwrap(), "the directory is the one that was taken");
        assert!(is_taken(&path));
        assert!(!taken.take_again().unwrap());

        std::fs::remove_file(path.join("lock")).unwrap();
        let other = StateDir::take(&path).unwrap();
        assert!(matches!(taken.take_again(), Err(StateDirError::Taken { .. })));
        drop(other);
        std::fs::remove_dir_all(&path).unwrap();
        assert!(taken.take_again().unwrap(), "it was removed");
    }
}
