//! Goes from record to record of one segment, and decides which are believed. Opening, reading and
//! looking at a spill all go this way, so that they agree on what is lost.
//!
//! A record is believed if its head and body have the right checksums and its sequence fits its
//! neighbours:
//!
//! - it goes on where the one before it ended; the first begins with the segment's first sequence;
//! - behind damaged bytes, it does not go back, and leaves out no more events than those bytes can
//!   have held;
//! - it begins before the next segment does. Its events beyond that belong to the next segment.
//!
//! In a segment of version 1 anybody can make a record. There, a record behind damaged bytes is
//! believed only if the record that follows it goes on where it ends. A payload that holds two such
//! records, at a sequence that fits, still passes: version 1 cannot do better.

use std::io;

use bytes::Bytes;
use memchr::memmem;

use crate::event::chunk::Share;
use crate::files::disk::DiskFile;
use crate::queue::spill::key::{FILE_HEAD, Key};
use crate::queue::spill::record::{EVENT_MIN, HEAD, Head, ZSTD_MAX};

/// More sequences than any queue will see. So far from the end of their type that sums do not
/// overflow.
pub(super) const SEQUENCES: u64 = 1 << 62;

/// The bytes that are read to look for a record: few at first, since damage is often to one record.
const LOOK_NEAR: usize = 4 << 10;
const LOOK_FAR: usize = 64 << 10;

/// The part of the disk and of the sequences that is the segment's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// The bytes of the file.
    pub(super) bytes: u64,
    /// The first sequence of the next segment.
    pub(super) next: Option<u64>,
}

impl Extent {
    fn bound(&self) -> u64 {
        self.next.unwrap_or(SEQUENCES)
    }
}

/// A record that is believed.
pub(super) struct Record {
    /// The place where it begins.
    pub(super) offset: u64,
    pub(super) head: Head,
    /// The sequence behind its last event that belongs to the segment.
    pub(super) end: u64,
    /// Its events, if they were wanted.
    pub(super) share: Option<Share>,
}

/// A place in a segment.
#[derive(Debug, Clone)]
pub(super) struct Walk {
    /// `None` if it is damaged: then there are no records.
    key: Option<Key>,
    offset: u64,
    /// The sequence behind the last record.
    sequence: u64,
    hole: Option<Hole>,
    /// Bytes of bodies that were read and are none.
    vain: u64,
}

/// Bytes that are no record, up to the place of the walk.
#[derive(Debug, Clone, Copy)]
struct Hole {
    from: u64,
    /// The sequence behind the last event of the heads among them; 0 if there is no head.
    claimed: u64,
    /// The place where that head's record would end.
    claimed_to: u64,
}

impl Walk {
    /// The beginning of the segment whose first event has the sequence `first`.
    pub(super) fn new(key: Option<Key>, first: u64) -> Self {
        let offset = key.map_or(0, |key| key.records_begin());
        Walk { key, offset, sequence: first, hole: None, vain: 0 }
    }

    /// Its end, where the event `sequence` will be written.
    pub(super) fn skip_all(&mut self, bytes: u64, sequence: u64) {
        (self.offset, self.sequence, self.hole) = (bytes, sequence, None);
    }

    /// The place where it is.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The sequence behind the last record.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The place where damaged bytes begin that reach up to here.
    pub(super) fn hole(&self) -> Option<u64> {
        self.hole.map(|hole| hole.from)
    }

    /// Goes to the next record, of which the body is read if it has events from `wanted` on; `None`
    /// behind the last. After an error the same can be tried again.
    pub(super) fn find<F: DiskFile>(
        &mut self,
        file: &F,
        extent: Extent,
        wanted: u64,
    ) -> io::Result<Option<Record>> {
        while self.offset < extent.bytes {
            if let Some(record) = self.look(file, extent, wanted)? {
                return Ok(Some(record));
            }
            // Real records do not overlap. If more was read in vain than they can be, each look may
            // cost as much again, so the search ends.
            let is_over = self.vain > 2 * extent.bytes;
            let next = if is_over { extent.bytes } else { self.next_head(file, extent)? };
            self.hole.get_or_insert(Hole { from: self.offset, claimed: 0, claimed_to: 0 });
            self.offset = next;
        }
        Ok(None)
    }

    /// Goes behind the record that was found.
    pub(super) fn pass(&mut self, record: &Record) {
        self.offset = record.offset + record.head.record_len();
        self.sequence = record.end;
        self.hole = None;
    }

    /// The number of events that the damaged bytes at the end of the last segment held, as far as
    /// their heads say; bytes behind the last head count as one. Only those from `wanted` on.
    pub(super) fn torn_events(&self, bytes: u64, wanted: u64) -> u64 {
        let Some(hole) = self.hole else { return 0 };
        let claimed = hole.claimed.saturating_sub(self.sequence.max(wanted));
        claimed + u64::from(hole.claimed_to < bytes)
    }

    /// The damaged bytes at the end are one record that is not whole.
    pub(super) fn is_cut(&self, bytes: u64) -> bool {
        let Some(hole) = self.hole else { return false };
        let is_short = bytes - hole.from < HEAD as u64 || bytes < FILE_HEAD as u64;
        is_short || hole.claimed_to > bytes
    }

    /// The record that begins here.
    fn look<F: DiskFile>(
        &mut self,
        file: &F,
        extent: Extent,
        wanted: u64,
    ) -> io::Result<Option<Record>> {
        let Some(head) = self.head_at(file, self.offset)? else { return Ok(None) };
        if !self.fits(&head, self.offset, extent) {
            return Ok(None);
        }
        let record = match self.offset + head.record_len() > extent.bytes {
            true => None,
            false => self.read(file, head, extent, wanted)?,
        };
        if record.is_none() && (self.is_secret() || self.hole.is_none()) {
            let from = self.hole.map_or(self.offset, |hole| hole.from);
            let claimed = head.end().min(extent.bound());
            let claimed_to = self.offset + head.record_len();
            self.hole = Some(Hole { from, claimed, claimed_to });
        }
        Ok(record)
    }

    fn read<F: DiskFile>(
        &mut self,
        file: &F,
        head: Head,
        extent: Extent,
        wanted: u64,
    ) -> io::Result<Option<Record>> {
        if !self.is_confirmed(file, &head, extent)? {
            return Ok(None);
        }
        let (offset, end) = (self.offset, head.end().min(extent.bound()));
        if end <= wanted {
            return Ok(Some(Record { offset, head, end, share: None }));
        }
        let Some(body) = read_body(file, offset, &head)? else { return Ok(None) };
        let Ok(mut share) = head.decode(body) else {
            self.vain += head.record_len();
            return Ok(None);
        };
        let own = usize::try_from(end - head.sequence).unwrap_or(usize::MAX);
        if own < share.len() {
            share = share.split_front(own);
        }
        Ok(Some(Record { offset, head, end, share: Some(share) }))
    }

    /// A head at `offset` has a sequence that it can have.
    fn fits(&self, head: &Head, offset: u64, extent: Extent) -> bool {
        let hole = offset - self.hole.map_or(self.offset, |hole| hole.from);
        let left_out = head.sequence.checked_sub(self.sequence);
        left_out.is_some_and(|left_out| left_out <= most_events(hole))
            && head.sequence < extent.bound()
    }

    /// A record behind damaged bytes is one: by its key or, without a key, by the next record.
    fn is_confirmed<F: DiskFile>(&self, file: &F, head: &Head, extent: Extent) -> io::Result<bool> {
        if self.is_secret() || self.hole.is_none_or(|hole| hole.from == self.offset) {
            return Ok(true);
        }
        let behind = self.offset + head.record_len();
        if behind == extent.bytes {
            return Ok(extent.next == Some(head.end()));
        }
        Ok(self.head_at(file, behind)?.is_some_and(|next| next.sequence == head.end()))
    }

    /// A head can be trusted, since only the spill can have made it.
    fn is_secret(&self) -> bool {
        self.key.is_some_and(|key| key.is_secret())
    }

    fn head_at<F: DiskFile>(&self, file: &F, offset: u64) -> io::Result<Option<Head>> {
        let Some(key) = &self.key else { return Ok(None) };
        let mut bytes = [0; HEAD];
        let read = file.read_at(&mut bytes, offset)?;
        Ok(Head::read(key, bytes.get(..read).unwrap_or_default()).ok())
    }

    /// The place of the next head that may be one, behind this place; the end if there is none.
    fn next_head<F: DiskFile>(&self, file: &F, extent: Extent) -> io::Result<u64> {
        let Some(key) = &self.key else { return Ok(extent.bytes) };
        let mut from = self.offset + 1;
        let mut block = vec![0; LOOK_NEAR];
        while from < extent.bytes {
            let read = file.read_at(&mut block, from)?;
            let bytes = block.get(..read).unwrap_or_default();
            if read < HEAD {
                break;
            }
            for at in memmem::find_iter(bytes, key.marker()) {
                let rest = bytes.get(at..).unwrap_or_default();
                let offset = from + at as u64;
                if Head::read(key, rest).is_ok_and(|head| self.fits(&head, offset, extent)) {
                    return Ok(offset);
                }
            }
            // A head may begin in this block and end in the next.
            from += (read - HEAD + 1) as u64;
            block.resize(LOOK_FAR, 0);
        }
        Ok(extent.bytes)
    }
}

/// The number of events that so many bytes can have held at the most.
fn most_events(bytes: u64) -> u64 {
    bytes.saturating_mul(ZSTD_MAX) / EVENT_MIN
}

/// The body of the record at `offset`, as stored; `None` if the file ends before it.
pub(super) fn read_body<F: DiskFile>(
    file: &F,
    offset: u64,
    head: &Head,
) -> io::Result<Option<Bytes>> {
    let mut body = vec![0; head.length];
    let read = file.read_at(&mut body, offset + HEAD as u64)?;
    Ok((read == head.length).then(|| Bytes::from(body)))
}
