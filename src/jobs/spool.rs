//! An answer of the job cache that is written piece by piece: in memory while it is short, in a
//! file without a name once it is long.
//!
//! A client may read slowly or not at all. A file costs no memory meanwhile, and the database is
//! free before the first byte is sent. The files of all answers to Salt together are bounded, and
//! so are those of all answers to people and scripts.

use std::fs::{File, remove_file};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Handle;

use crate::codec::msgpack;
use crate::files::state_file;

/// The bytes that the files of one [`SpoolFiles`] may have together.
const FILES: u64 = 2 << 30;

/// The bytes of files that are there now.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpoolFiles(Arc<AtomicU64>);

impl SpoolFiles {
    fn take(&self, bytes: u64) -> io::Result<()> {
        if self.0.fetch_add(bytes, Ordering::Relaxed) + bytes <= FILES {
            return Ok(());
        }
        self.0.fetch_sub(bytes, Ordering::Relaxed);
        let message =
            format!("clients have not read {FILES} bytes of answers yet; ask again later");
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, message))
    }
}

/// An answer that is whole.
#[derive(Debug)]
pub enum Spooled {
    /// A short one.
    Memory(Vec<u8>),
    /// A long one.
    File(SpoolFile),
}

/// A file without a name. Its bytes are given back when it is dropped.
#[derive(Debug)]
pub struct SpoolFile {
    file: File,
    length: u64,
    files: SpoolFiles,
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        self.files.0.fetch_sub(self.length, Ordering::Relaxed);
        // Freeing the blocks of a long file takes time, which no task has. Closing the file empties
        // it on a thread of its own.
        if let (Ok(runtime), Ok(file)) = (Handle::try_current(), self.file.try_clone()) {
            runtime.spawn_blocking(move || file.set_len(0).is_ok());
        }
    }
}

impl SpoolFile {
    fn create(folder: &Path, files: SpoolFiles) -> io::Result<Self> {
        let path = folder.join(format!(".answer-{:016x}", fastrand::u64(..)));
        let file = state_file::create_to_rewrite(&path)?;
        remove_file(&path)?;
        Ok(SpoolFile { file, length: 0, files })
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.files.take(bytes.len() as u64)?;
        self.length += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    /// Its length in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The file, to read it from its start.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }
}

/// An answer that is being written. Errors on the way are reported at the end.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: PathBuf,
    /// Longer ones go to a file.
    limit: usize,
    files: SpoolFiles,
    memory: Vec<u8>,
    file: Option<SpoolFile>,
    error: Option<io::Error>,
}

/// The head of a map with room for any number of pairs.
const HEAD: usize = 5;

impl Spool {
    /// An answer of which `limit` bytes may be in memory, beside a file in `folder`.
    pub(super) fn new(folder: &Path, limit: usize, files: SpoolFiles) -> Self {
        let folder = folder.to_owned();
        Spool { folder, limit, files, memory: vec![0; HEAD], file: None, error: None }
    }

    /// True while nothing has gone wrong, so that writing on is of use.
    pub(super) fn is_sound(&self) -> bool {
        self.error.is_none()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.error.is_none()
            && let Err(error) = self.put(bytes)
        {
            self.error = Some(error);
        }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            return file.push(bytes);
        }
        if self.memory.len() + bytes.len() <= self.limit {
            self.memory.extend_from_slice(bytes);
            return Ok(());
        }
        let file = self.file.insert(SpoolFile::create(&self.folder, self.files.clone())?);
        file.push(&self.memory)?;
        self.memory = Vec::new();
        file.push(bytes)
    }

    /// The map of so many pairs, made of the bytes that were written.
    pub(super) fn map(self, pairs: u32) -> io::Result<Spooled> {
        let (mut short, mut long) = (Vec::new(), [0xdf, 0, 0, 0, 0]);
        msgpack::write_map_head(pairs, &mut short);
        long[1..].copy_from_slice(&pairs.to_be_bytes());
        self.finished(&short, long)
    }

    /// The array of so many items, made of the bytes that were written.
    pub(super) fn array(self, items: u32) -> io::Result<Spooled> {
        let (mut short, mut long) = (Vec::new(), [0xdd, 0, 0, 0, 0]);
        msgpack::write_array_head(items, &mut short);
        long[1..].copy_from_slice(&items.to_be_bytes());
        self.finished(&short, long)
    }

    /// The bytes that were written, which are one value.
    pub(super) fn value(self) -> io::Result<Spooled> {
        // A file keeps the place of a head at its start, which is left out here.
        let mut spooled = self.finished(&[], [0; HEAD])?;
        if let Spooled::File(file) = &mut spooled {
            file.file.seek(SeekFrom::Start(HEAD as u64))?;
            file.length -= HEAD as u64;
            file.files.0.fetch_sub(HEAD as u64, Ordering::Relaxed);
        }
        Ok(spooled)
    }

    fn finished(self, short: &[u8], long: [u8; HEAD]) -> io::Result<Spooled> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let Some(mut file) = self.file else {
            let mut memory = self.memory;
            memory.splice(..HEAD, short.iter().copied());
            return Ok(Spooled::Memory(memory));
        };
        file.file.rewind()?;
        file.file.write_all(&long)?;
        file.file.rewind()?;
        Ok(Spooled::File(file))
    }
}

impl Spooled {
    /// All of it, in memory.
    pub(crate) fn into_memory(self) -> io::Result<Vec<u8>> {
        match self {
            Spooled::Memory(bytes) => Ok(bytes),
            Spooled::File(mut file) => {
                let mut bytes = Vec::new();
                io::Read::read_to_end(file.file(), &mut bytes)?;
                Ok(bytes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(limit: usize, pieces: usize) -> (Spooled, SpoolFiles, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let files = SpoolFiles::default();
        let mut spool = Spool::new(folder.path(), limit, files.clone());
        for _ in 0..pieces {
            spool.push(b"\xa1k\x01");
        }
        (spool.map(u32::try_from(pieces).unwrap()).unwrap(), files, folder)
    }

    #[test]
    fn a_long_answer_is_in_a_file_without_a_name_and_says_the_same() {
        let (long, files, folder) = written(64, 1000);
        assert!(matches!(&long, Spooled::File(file) if file.length() == 3005));
        assert_eq!(files.0.load(Ordering::Relaxed), 3005);
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        let long = long.into_memory().unwrap();
        assert_eq!(files.0.load(Ordering::Relaxed), 0, "its bytes are given back");
        let short = written(1 << 20, 1000).0.into_memory().unwrap();
        assert_eq!((&short[..3], &short[3..]), (&[0xde, 3, 0xe8][..], &long[5..]));
        assert_eq!(&long[..5], &[0xdf, 0, 0, 3, 0xe8]);
        assert_eq!(written(64, 0).0.into_memory().unwrap(), [0x80]);
    }

    #[test]
    fn one_value_has_no_head_before_it() {
        for limit in [10, 1000] {
            let folder = tempfile::tempdir().unwrap();
            let files = SpoolFiles::default();
            let mut spool = Spool::new(folder.path(), limit, files.clone());
            spool.push(b"abcdefghij");
            assert_eq!(spool.value().unwrap().into_memory().unwrap(), b"abcdefghij");
            assert_eq!(files.0.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn invariant_6_the_files_of_all_answers_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let files = SpoolFiles::default();
        files.take(FILES - 10).unwrap();
        let mut spool = Spool::new(folder.path(), 16, files.clone());
        spool.push(&[0; 100]);
        spool.push(&[0; 100]);
        assert!(!spool.is_sound());
        let error = spool.map(1).unwrap_err();
        assert!(error.to_string().contains("ask again later"), "{error}");
        assert!(files.take(10).is_ok(), "what it had taken is given back");
    }
}
