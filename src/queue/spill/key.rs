//! The head of a segment's file. It holds the key that marks the file's own records.
//!
//! ```text
//!   0  magic    4  "\xc3sg\x02"; the last byte is the version of the format
//!   4  key     16  random, another one in each file
//!  20  crc      4  CRC32C of the 20 bytes before
//!  24  the same 24 bytes once more, so that one damaged byte does not cost the segment
//! ```
//!
//! Minions write events, and an event may look like a record. A record of version 2 begins with a
//! marker that is a part of the key, and the checksum of its head begins with the whole key. A
//! payload would have to guess these 64 bits. It has one try for each of its bytes, and only if the
//! file is damaged.
//!
//! Files of version 1 have no head. Their first bytes are those of a record. Anybody can make its
//! marker and checksum.

use std::io;

use crate::files::disk::DiskFile;
use crate::files::random;

/// Bytes of a file's head.
pub(crate) const FILE_HEAD: usize = 48;

/// Bytes of one of its two copies.
const COPY: usize = FILE_HEAD / 2;

const MAGIC: [u8; 4] = *b"\xc3sg\x02";

/// The beginning of a record of version 1.
const MARKER_1: [u8; 4] = *b"\xa5SR\x01";

/// The sign that tells the records of a file from everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// `None` in a file of version 1.
    secret: Option<[u8; 16]>,
    /// The beginning of a record.
    marker: [u8; 4],
    /// The checksum of the secret, with which that of a record's head begins.
    seed: u32,
}

impl Key {
    /// The key of a file of version 1.
    pub const VERSION_1: Key = Key { secret: None, marker: MARKER_1, seed: 0 };

    /// A new one.
    pub(crate) fn random() -> io::Result<Self> {
        random::bytes().map(Key::new)
    }

    fn new(secret: [u8; 16]) -> Self {
        let [a, b, c, d, ..] = secret;
        Key { secret: Some(secret), marker: [a, b, c, d], seed: crc32c::crc32c(&secret) }
    }

    /// The key of a file; `None` if its head is damaged, and nothing in it can be believed.
    pub(crate) fn of_file<F: DiskFile>(file: &F) -> io::Result<Option<Self>> {
        let mut bytes = [0; FILE_HEAD];
        let read = file.read_at(&mut bytes, 0)?;
        Ok(Key::read(bytes.get(..read).unwrap_or_default()))
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        if let Some(secret) = bytes.chunks_exact(COPY).find_map(read_copy) {
            return Some(Key::new(secret));
        }
        // One of the four may be damaged; none of them is as in a file of version 2.
        let alike = bytes.iter().zip(&MARKER_1).filter(|(one, other)| one == other).count();
        (alike >= MARKER_1.len() - 1).then_some(Key::VERSION_1)
    }

    /// The head of a file with this key; empty in version 1.
    pub(crate) fn file_head(&self) -> Vec<u8> {
        let Some(secret) = self.secret else { return Vec::new() };
        let mut copy = [&MAGIC[..], &secret].concat();
        copy.extend(crc32c::crc32c(&copy).to_le_bytes());
        copy.repeat(2)
    }

    /// Only a reader of the file can make a record of it.
    pub(crate) fn is_secret(&self) -> bool {
        self.secret.is_some()
    }

    /// The place of the first record.
    pub(crate) fn records_begin(&self) -> u64 {
        if self.is_secret() { FILE_HEAD as u64 } else { 0 }
    }

    /// The beginning of a record.
    pub(crate) fn marker(&self) -> &[u8; 4] {
        &self.marker
    }

    /// The checksum of a record's head.
    pub(crate) fn checksum(&self, head: &[u8]) -> u32 {
        crc32c::crc32c_append(self.seed, head)
    }
}

fn read_copy(copy: &[u8]) -> Option<[u8; 16]> {
    let (checked, crc) = copy.split_at_checked(COPY - 4)?;
    let secret = checked.strip_prefix(&MAGIC)?;
    (crc32c::crc32c(checked).to_le_bytes() == crc).then(|| secret.try_into().ok())?
}

#[cfg(test)]
mod tests {
    use crate::queue::spill::key::*;

    #[test]
    fn a_key_survives_any_one_damaged_byte_and_no_two_are_alike() {
        let key = Key::random().unwrap();
        assert_ne!(key, Key::random().unwrap());
        for at in 0..FILE_HEAD {
            let mut head = key.file_head();
            head[at] ^= 0x10;
            assert_eq!(Key::read(&head), Some(key));
            head[(at + COPY) % FILE_HEAD] ^= 0x10;
            assert_eq!(Key::read(&head), None);
        }
    }

    #[test]
    fn a_file_of_version_1_is_known_with_a_damaged_byte_too() {
        assert_eq!(Key::read(b"\xa5SR\x01..."), Some(Key::VERSION_1));
        assert_eq!(Key::read(b"\xa5SR\x41..."), Some(Key::VERSION_1));
        assert_eq!(Key::read(b"\xa5ZR\x41..."), None);
        assert_eq!(Key::read(b""), None);
    }
}
