//! The few calls of a file system that the spill uses. Its tests can put a disk under it that loses
//! unsynced writes, tears them, fills up and fails.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::files::state_file;

/// A folder of files. A clone is the same folder.
pub trait Disk: Clone + Send + 'static {
    /// One open file.
    type File: DiskFile;

    /// The names of the files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a new, empty file; fails if there is one.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Opens a file that is there.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Gives a file another name, in place of the one that has it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Gives a damaged file another name, which says so.
    fn put_aside(&self, name: &str, _why: &dyn Display) -> io::Result<()> {
        self.rename(name, &format!("{name}.damaged"))
    }
    /// Puts aside anything but a file that is in the place of one: a directory, a symbolic link, a
    /// device.
    fn put_foreign_aside(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }
    /// Puts a new file with these bytes in place of the one that has the name, if one has: whole,
    /// or not at all. Its bytes last, and its name once names are synced. It stays open.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<Self::File> {
        let new = format!("{name}.new");
        match self.remove(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.create(&new)?;
        if !bytes.is_empty() {
            file.append(&mut [IoSlice::new(bytes)])?;
        }
        file.sync()?;
        self.rename(&new, name)?;
        Ok(file)
    }
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes the folder again, if it is gone.
    fn renew(&self) -> io::Result<()> {
        Ok(())
    }
    /// Makes creating, renaming and removing of files last through a power failure.
    fn sync_names(&self) -> io::Result<()>;
    /// The number of bytes that it still takes.
    fn free(&self) -> io::Result<u64>;
}

/// An open file that is written at its end and read anywhere.
#[allow(clippy::len_without_is_empty)] // nobody asks
pub trait DiskFile: Send + Sync + 'static {
    /// Appends the slices one after the other. After an error some of the bytes may be there.
    fn append(&self, slices: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Reads into `buffer` from `offset` on and returns how many bytes there were.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// The time when it was last written, in microseconds since 1970.
    fn modified(&self) -> io::Result<u64>;
    /// Cuts the file.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes the bytes last through a power failure.
    fn sync(&self) -> io::Result<()>;
}

/// A folder of the real file system. Files are made 0600 in a folder of 0700, with the owner of the
/// folder above.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder at `path`, made if it is not there.
    pub fn create(path: &Path) -> io::Result<Self> {
        state_file::create_directory(path)?;
        for link in [path.parent(), Some(path)].into_iter().flatten() {
            state_file::examine_link(link)?;
        }
        Ok(Folder(path.to_owned()))
    }

    /// The folder at `path`, which must be there.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::read_dir(path).map(|_| Folder(path.to_owned()))
    }

    /// The names of the folders at `path`.
    pub(crate) fn names(path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        Ok(names)
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Disk for Folder {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        state_file::create(&self.0.join(name))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        state_file::open(&self.0.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn put_aside(&self, name: &str, why: &dyn Display) -> io::Result<()> {
        state_file::put_aside(&self.0.join(name), why)
    }

    fn put_foreign_aside(&self, name: &str) -> io::Result<()> {
        state_file::put_foreign_aside(&self.0.join(name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.0.join(name)) {
            // Somebody removed it, perhaps with the whole folder.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn renew(&self) -> io::Result<()> {
        state_file::create_directory(&self.0)
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn free(&self) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.0)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

impl DiskFile for File {
    fn append(&self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut file = self;
        while !slices.is_empty() {
            match file.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut slices, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while let Some(rest) = buffer.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(self, rest, offset + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn len(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn modified(&self) -> io::Result<u64> {
        let since = self.metadata()?.modified()?.duration_since(SystemTime::UNIX_EPOCH);
        Ok(u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX))
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
