//! The daemon's hold on its `state_dir`: nobody else has it, and it is there.
//!
//! The lock is a file in the directory, and so it is another one when the directory is another: removed
//! while the daemon runs, or put in place of the one that was. The daemon then takes the new one, in
//! which all that has a file there begins anew; if somebody else has it already, the daemon must end.

use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::state_file;

/// Why the directory cannot be had.
#[derive(Debug, Error)]
pub enum StateDirError {
    /// It cannot be made.
    #[error("cannot create state_dir {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The lock in it cannot be opened.
    #[error("cannot take {lock}")]
    Lock {
        /// The file.
        lock: PathBuf,
        /// Why.
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
pub struct StateDir {
    path: PathBuf,
    /// The directory as it was taken, so that it is known again without its lock.
    directory: File,
    lock: File,
}

impl StateDir {
    /// Takes the directory, which is made if it is not there.
    pub fn take(path: &Path) -> Result<Self, StateDirError> {
        state_file::create_directory(path)
            .map_err(|cause| StateDirError::Create { path: path.to_owned(), cause })?;
        let name = lock_of(path);
        let failed = |cause| StateDirError::Lock { lock: name.clone(), cause };
        let lock = state_file::open_or_create(&name).map_err(failed)?;
        let directory = File::open(path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(StateDir { path: path.to_owned(), directory, lock }),
            Err(TryLockError::WouldBlock) => Err(StateDirError::Taken { lock: name }),
            Err(TryLockError::Error(cause)) => Err(failed(cause)),
        }
    }

    /// Takes the directory again if it is not the one that was taken; `true` if it was not. A lock
    /// that alone is gone is made anew, since all else is where it was.
    pub fn take_again(&mut self) -> Result<bool, StateDirError> {
        if is_same(&self.lock, lock_of(&self.path).symlink_metadata()) {
            return Ok(false);
        }
        let new = StateDir::take(&self.path)?;
        let is_new = !is_same(&self.directory, new.directory.metadata());
        *self = new;
        Ok(is_new)
    }
}

/// Whether a daemon has the directory.
pub fn is_taken(state_dir: &Path) -> bool {
    // Shared and let go of at once, so that it is in the way of nobody but a daemon that starts now.
    let file = File::open(lock_of(state_dir));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Whether what is there is what is held.
fn is_same(held: &File, there: io::Result<Metadata>) -> bool {
    let (Ok(held), Ok(there)) = (held.metadata(), there) else { return false };
    (held.dev(), held.ino()) == (there.dev(), there.ino())
}

fn lock_of(state_dir: &Path) -> PathBuf {
    state_dir.join("lock")
}

#[cfg(test)]
mod tests {
    use super::*;

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
