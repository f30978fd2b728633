//! The spill: the part of a sink's queue that is on disk.
//!
//! A folder holds one sink's spill. The listing of the folder is the state; there is no ledger that
//! could disagree with it.
//!
//! ```text
//! 00000000000000000000.seg   records of events 0…, in order        (sealed: never written again)
//! 00000000000000041730.seg   records of events 41730…              (sealed)
//! 00000000000000083277.seg   records of events 83277…              (open: appended to)
//! progress                   batches begun, events acknowledged    (a hint)
//! ```
//!
//! A segment is the [`key`] of its file and a sequence of [`record`]s; its name is the sequence of
//! its first event. Space is freed by removing whole segments whose events are all acknowledged.
//!
//! This is version 2 of the format. Segments of version 1, which have no key, are still read;
//! nothing is appended to them.
//!
//! `progress` is appended to: 24 bytes an entry, kind and length (4), sequence (8), the length of
//! the batch (8), CRC32C (4). An entry says "a batch of so many events from this sequence on is
//! about to be tried" or "everything below this sequence is acknowledged". The last of the latter
//! holds, since events in flight whose segment was dropped are put elsewhere. The file is replaced
//! by rename when it has grown. It may be too old, or gone, and then events come again. It can
//! never be too new, since an acknowledgement is written after the fact.
//!
//! Invariants:
//!
//! 1. Events come out in the order in which they went in, each once in one run.
//! 2. An event that was acknowledged and noted does not come again. An event that was appended and
//!    synced, and is not acknowledged, does come again, after any crash.
//! 3. A torn tail is cut off the last segment. Damage elsewhere is skipped up to the next record
//!    that is believed. Records carry sequences, so the number of lost events is known exactly.
//! 4. A segment whose sync failed is never written or synced again, because the kernel may have
//!    dropped any of its pages. It is sealed, and appending goes on in a new one.
//! 5. A record is believed only if its checksum is right, which takes the file's key, and if its
//!    sequence fits its neighbours ([`walk`]). No length is allocated for before that, no loop can
//!    stand still, and no payload can pass for a record.
//! 6. Recovery reads heads of the unacknowledged part and bodies of the last segment's
//!    unacknowledged part only.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Weak};

use bytes::Buf;
use thiserror::Error;
use tracing::warn;

use crate::event::chunk::Share;

pub mod key;
pub(crate) mod queue_id;
pub mod record;
pub mod scan;
mod walk;

use crate::files::disk::{Disk, DiskFile};
use key::{FILE_HEAD, Key};
use record::{Body, HEAD, Head};
use walk::{Extent, Record, SEQUENCES, Walk};

const SUFFIX: &str = ".seg";
const PROGRESS: &str = "progress";
const PROGRESS_NEW: &str = "progress.new";

/// A new segment for events in flight whose own segment is given up.
const REFUGE_NEW: &str = "refuge.new";

/// Files of the spill beside its segments.
const OTHERS: [&str; 3] = [PROGRESS, PROGRESS_NEW, REFUGE_NEW];

/// Bytes of an entry of `progress`.
const ENTRY: usize = 24;

/// A segment is sealed at this fraction of the spill's space, so that little is given up with the
/// oldest.
const PARTS: u64 = 32;

/// It is not sealed before it has so many bytes: making files costs time.
const LEAST: u64 = 16 << 10;

/// From this size on `progress` is written anew, which is synced.
const PROGRESS_MAX: u64 = 1 << 20;

const BATCH_BEGUN: u32 = 0x4e47_4542;
const ACKNOWLEDGED: u32 = 0x444b_4341;

/// The way in which a spill is kept.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// A segment is sealed when it has this many bytes, and before if space is scarce.
    pub segment_bytes: u64,
    /// All segments together may take this many bytes.
    pub max_bytes: u64,
    /// Compress bodies with zstd.
    pub compress: bool,
}

/// An error of putting events on disk.
#[derive(Debug, Error)]
pub enum AppendError {
    /// All segments together have reached `max_bytes`.
    #[error("the spill has reached its max_bytes")]
    Full,
    /// The disk refused: no space, or it is broken.
    #[error("{doing}")]
    Disk {
        /// The operation, in words.
        doing: &'static str,
        /// The cause.
        #[source]
        cause: io::Error,
    },
}

impl AppendError {
    /// There would be room if something was given up.
    pub(crate) fn is_out_of_space(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match self {
            AppendError::Full => true,
            AppendError::Disk { cause, .. } => {
                matches!(cause.kind(), StorageFull | QuotaExceeded | FileTooLarge)
            }
        }
    }
}

/// An error of opening a spill.
#[derive(Debug, Error)]
#[error("{doing}")]
pub struct OpenError {
    doing: String,
    #[source]
    cause: io::Error,
}

/// A batch that was begun before and is not known to be settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// Sequence of its first event.
    pub first: u64,
    /// The number of its events.
    pub len: u64,
}

/// A range of sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceRange {
    /// The first that is lost.
    pub first: u64,
    /// The first behind them.
    pub end: u64,
}

impl SequenceRange {
    /// The number of lost ones.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.first)
    }

    /// Nothing is lost.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The part that was given up to make room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dropped {
    /// The events.
    pub(crate) lost: SequenceRange,
    /// Events in flight are on disk.
    pub(crate) keeps_in_flight: bool,
}

/// The result of reading.
#[derive(Debug)]
pub enum Read {
    /// The next events; the first has this sequence.
    Events(u64, Share),
    /// These events are damaged and cannot be read.
    Damaged(SequenceRange),
}

struct Segment<F> {
    file: Arc<F>,
    /// `None` if the file's head is damaged.
    key: Option<Key>,
    /// Sequence of the first event.
    first: u64,
    /// Sequence behind the last event.
    end: u64,
    bytes: u64,
    /// The time when its first event was read off the bus, in microseconds since 1970.
    since: u64,
    /// The time when the newest of them was; 0 where that was not looked up.
    until: u64,
}

impl<F> Segment<F> {
    /// It has no record.
    fn is_empty(&self) -> bool {
        self.end == self.first
    }
}

/// The place at which the next record is read.
#[derive(Debug)]
struct Cursor {
    /// The segment, by its first sequence.
    segment: u64,
    walk: Walk,
    /// The sequence of the next event wanted.
    sequence: u64,
}

/// One sink's spill.
pub struct Spill<D: Disk> {
    disk: D,
    settings: Settings,
    /// In order; the last may be open.
    segments: VecDeque<Segment<D::File>>,
    /// The last segment takes records.
    is_open: bool,
    /// Something was appended to the last segment since the last sync began.
    is_dirty: bool,
    /// Bytes with which the open segment is sealed.
    limit: u64,
    /// Segments that were sealed dirty since then, with the sequences behind them.
    sealed: Vec<(u64, Arc<D::File>)>,
    /// Names changed since they were last synced.
    names_changed: bool,
    cursor: Cursor,
    next: u64,
    acknowledged: u64,
    begun: Vec<Begun>,
    progress: Option<D::File>,
    progress_len: u64,
    /// Its name is known to last.
    progress_is_named: bool,
    bytes: u64,
    torn_bytes: u64,
    torn_events: u64,
    /// The folder of everything below this sequence is gone; those events are in open files only.
    gone_below: u64,
}

/// Bytes that are to be made to last, outside of the thread that appends.
pub struct SyncJob<D: Disk> {
    /// These are weak references: a removed file takes up space while it is open, and need not
    /// last.
    files: Vec<Weak<D::File>>,
    /// The folder, if names have changed.
    names: Option<D>,
    /// Everything below this sequence lasts once the job is done.
    pub(crate) up_to: u64,
}

impl<D: Disk> SyncJob<D> {
    /// Syncs. May take long; must be reported to [`Spill::condemn`] if it fails.
    pub fn run(&self) -> io::Result<()> {
        // All files are synced, also when one has failed.
        let files = self.files.iter().filter_map(Weak::upgrade);
        let files = files.map(|file| file.sync()).fold(Ok(()), Result::and);
        files.and(self.names.as_ref().map_or(Ok(()), Disk::sync_names))
    }
}

impl<D: Disk> Spill<D> {
    /// Opens the spill in a folder: cuts the torn tail, removes acknowledged segments, and reads
    /// which batches were begun.
    pub fn open(disk: D, settings: Settings) -> Result<Self, OpenError> {
        let failed = |doing: &str| {
            let doing = doing.to_owned();
            move |cause| OpenError { doing, cause }
        };
        let listing = "listing the spill's folder";
        for name in disk.list().map_err(failed(listing))? {
            if first_of(&name).is_some() || OTHERS.contains(&name.as_str()) {
                let doing = format!("putting {name} aside");
                disk.put_foreign_aside(&name).map_err(failed(&doing))?;
            }
        }
        let names = disk.list().map_err(failed(listing))?;
        let mut firsts: Vec<u64> = names.iter().filter_map(|name| first_of(name)).collect();
        firsts.sort_unstable();
        let mut spill = Spill {
            disk,
            settings,
            segments: VecDeque::new(),
            is_open: false,
            is_dirty: false,
            limit: 0,
            sealed: Vec::new(),
            names_changed: false,
            cursor: Cursor { segment: 0, walk: Walk::new(None, 0), sequence: 0 },
            next: 0,
            acknowledged: 0,
            begun: Vec::new(),
            progress: None,
            progress_len: 0,
            progress_is_named: false,
            bytes: 0,
            torn_bytes: 0,
            torn_events: 0,
            gone_below: 0,
        };
        for unfinished in names.iter().filter(|name| *name == REFUGE_NEW || *name == PROGRESS_NEW) {
            spill.disk.remove(unfinished).map_err(failed("removing an unfinished file"))?;
        }
        // Written anew before the first entry, since its tail may be torn.
        (spill.acknowledged, spill.begun) =
            read_progress(&spill.disk).map_err(failed("reading the spill's progress"))?;
        for (index, first) in firsts.iter().enumerate() {
            let name = name_of(*first);
            let end = firsts.get(index + 1).copied();
            if end.is_some_and(|end| end <= spill.acknowledged) {
                spill.disk.remove(&name).map_err(failed("removing an acknowledged segment"))?;
                continue;
            }
            let doing = format!("reading the segment {name}");
            spill.recover(*first, end).map_err(|cause| OpenError { doing, cause })?;
        }
        spill.next = spill.segments.back().map_or(0, |last| last.end).max(spill.acknowledged);
        let oldest = spill.segments.front().map_or(spill.next, |segment| segment.first);
        let sequence = spill.acknowledged.max(oldest);
        spill.acknowledged = sequence;
        let next = spill.next;
        let is_held = |begun: &Begun| begun.first >= sequence && begun.first + begun.len <= next;
        spill.begun.retain(is_held);
        spill.begun.sort_unstable_by_key(|begun| begun.first);
        spill.cursor.sequence = sequence;
        spill.enter(oldest);
        Ok(spill)
    }

    /// Takes a segment in whose end is known if another follows, and else is found by reading.
    fn recover(&mut self, first: u64, end: Option<u64>) -> io::Result<()> {
        let file = self.disk.open(&name_of(first))?;
        let mut bytes = file.len()?;
        let key = Key::of_file(&file)?;
        let since = first_head(&file, key.as_ref())?.map_or(0, |head| head.received);
        let (mut found_end, mut until) = (first, 0);
        if end.is_none() {
            let tail = find_tail(&file, Walk::new(key, first), self.acknowledged, bytes)?;
            if tail.len < bytes {
                // The cut need not last: a torn tail that comes back is cut off or passed over
                // again.
                file.truncate(tail.len)?;
                self.torn_bytes = bytes - tail.len;
                self.torn_events = tail.torn_events;
            }
            self.names_changed = true;
            (bytes, found_end, until) = (tail.len, tail.end, tail.until);
        }
        self.bytes += bytes;
        let (file, end) = (Arc::new(file), end.unwrap_or(found_end));
        // Records that a killed daemon had written are in the kernel's hands only.
        self.sealed.push((end, Arc::clone(&file)));
        self.segments.push_back(Segment { file, key, first, end, bytes, since, until });
        Ok(())
    }

    /// Moves reading to the beginning of a segment.
    fn enter(&mut self, segment: u64) {
        let key = self.segments.iter().find(|s| s.first == segment).and_then(|s| s.key);
        self.cursor.segment = segment;
        self.cursor.walk = Walk::new(key, segment);
    }

    /// Puts events behind the others. `sequence` is that of the first of them. It may leave a gap,
    /// which is always between two segments, so that it can be filled by [`Spill::insert`]. On
    /// failure nothing of it is there.
    pub fn append(&mut self, sequence: u64, share: &Share, body: &Body) -> Result<(), AppendError> {
        match self.try_append(sequence, share, body) {
            Err(full) if full.is_out_of_space() && self.is_used_up() && self.bytes > 0 => {
                self.begin_segment(sequence, share.received())?;
                self.remove_used_up().map_err(|cause| AppendError::Disk {
                    doing: "removing a used-up segment of the spill",
                    cause,
                })?;
                self.try_append(sequence, share, body)
            }
            appended => appended,
        }
    }

    /// Everything on disk is stored for good. One segment with events may be left then.
    pub(crate) fn is_used_up(&self) -> bool {
        let last = self.segments.iter().rfind(|segment| !segment.is_empty());
        last.is_none_or(|last| last.end <= self.acknowledged)
    }

    /// A quarter of `max_bytes` is left to others when so many bytes are appended. Always so if
    /// nothing is there.
    pub(crate) fn fits_with_reserve(&self, bytes: u64) -> bool {
        self.is_used_up() || self.bytes + bytes <= self.settings.max_bytes / 4 * 3
    }

    /// Removes all segments but the last, whose name gives the sequence that comes next.
    fn remove_used_up(&mut self) -> io::Result<()> {
        self.disk.sync_names()?;
        while self.segments.len() > 1 {
            self.remove_front()?;
        }
        Ok(())
    }

    /// The bound of a segment that is begun now: a part of the spill's room. An unknown amount of
    /// free space counts as none.
    fn segment_limit(&self) -> u64 {
        let free = self.disk.free().unwrap_or(0);
        let room = self.bytes.saturating_add(free).min(self.settings.max_bytes);
        (room / PARTS).max(LEAST).min(self.settings.segment_bytes)
    }

    fn try_append(&mut self, sequence: u64, share: &Share, body: &Body) -> Result<(), AppendError> {
        let len = body.record_len();
        let limit = self.limit;
        let is_full = |segment: &Segment<_>| segment.bytes > 0 && segment.bytes + len > limit;
        let fits_in_open = self.is_open && sequence == self.next && !self.segments.is_empty();
        let begins = !fits_in_open || self.segments.back().is_some_and(is_full);
        // The file's head is written with the first record.
        let with_head = len + FILE_HEAD as u64;
        if self.bytes + with_head > self.settings.max_bytes && self.bytes > 0 {
            return Err(AppendError::Full);
        }
        if begins {
            match self.begin_segment(sequence, share.received()) {
                // The open one grows beyond its bound where no more files can be made.
                Err(_) if fits_in_open => {}
                begun => begun?,
            }
        }
        let open = self.segments.back_mut().and_then(|last| last.key.map(|key| (last, key)));
        let Some((segment, key)) = open else { return Err(AppendError::Full) };
        let head = body.head(&key, sequence);
        let is_first = segment.bytes == 0;
        let file_head = if is_first { key.file_head() } else { Vec::new() };
        let mut slices = body.slices(&head);
        if is_first {
            slices.insert(0, IoSlice::new(&file_head));
        }
        let len = if is_first { with_head } else { len };
        if let Err(cause) = segment.file.append(&mut slices) {
            // The part that was written is cut off; if even that fails the segment is sealed and
            // its torn tail is skipped when it is read.
            let before = segment.bytes;
            if segment.file.truncate(before).is_err() {
                self.is_open = false;
            }
            return Err(AppendError::Disk { doing: "appending to the spill", cause });
        }
        segment.bytes += len;
        segment.end = sequence + share.len() as u64;
        segment.until = segment.until.max(share.received());
        self.next = segment.end;
        self.bytes += len;
        self.is_dirty = true;
        Ok(())
    }

    /// Puts events of memory alone between or in front of the others when the daemon stops, as a
    /// segment of their own. They last when this returns. Says how many of them are on disk, and
    /// why not all of them are. The spill must be opened anew before it is read.
    pub(crate) fn insert(
        &mut self,
        first: u64,
        shares: &[Share],
        compress: bool,
    ) -> (u64, Result<(), AppendError>) {
        let failed = |doing| move |cause| AppendError::Disk { doing, cause };
        let name = name_of(first);
        if let Some(empty) = self.segments.pop_back_if(|last| last.is_empty()) {
            // This is a segment that was made for such events and could not be written.
            self.is_open = false;
            if let Err(cause) = self.disk.remove(&name_of(empty.first)) {
                return (0, Err(failed("removing an empty segment of the spill")(cause)));
            }
        }
        if first < self.acknowledged {
            // Their segment was dropped while they were tried.
            let before = std::mem::replace(&mut self.acknowledged, first);
            if let Err(cause) = self.rewrite_progress() {
                self.acknowledged = before;
                return (
                    0,
                    Err(failed("noting that events are not acknowledged after all")(cause)),
                );
            }
        }
        let made = Key::random().and_then(|key| Ok((self.disk.create(&name)?, key)));
        let (file, key) = match made {
            Ok(made) => made,
            Err(cause) => return (0, Err(failed("making a segment of the spill")(cause))),
        };
        let (written, appended) = write_segment(&file, &key, first, shares, compress);
        // Records that were written before a failure are worth keeping; the torn one behind them is
        // cut off.
        let kept = file.sync().and_then(|()| self.disk.sync_names());
        (written, appended.and(kept).map_err(failed("writing events in memory to the spill")))
    }

    /// The event of this sequence is on disk.
    pub(crate) fn holds(&self, sequence: u64) -> bool {
        let mut segments = self.segments.iter();
        sequence >= self.gone_below && segments.any(|s| (s.first..s.end).contains(&sequence))
    }

    /// The first sequence of the first segment that begins behind this one.
    pub(crate) fn segment_behind(&self, sequence: u64) -> Option<u64> {
        let mut firsts = self.segments.iter().map(|segment| segment.first);
        firsts.find(|first| *first > sequence && *first >= self.gone_below)
    }

    /// The folder was removed, or another is in its place: it is made again, and new events go
    /// there. The old ones are read on from the files that are open. After an error nothing has
    /// changed, and it can be tried again.
    pub(crate) fn renew(&mut self, queue: u128) -> io::Result<()> {
        self.disk.renew()?;
        queue_id::note(&self.disk, queue)?;
        self.rewrite_progress()?;
        // An empty segment has a name that may be needed again.
        self.segments.pop_back_if(|last| last.is_empty());
        if std::mem::take(&mut self.is_dirty)
            && let Some(last) = self.segments.back()
        {
            self.sealed.push((last.end, Arc::clone(&last.file)));
        }
        self.is_open = false;
        self.gone_below = self.next;
        Ok(())
    }

    /// The sequence below which events are in no file that has a name, because the folder is gone.
    pub(crate) fn gone_below(&self) -> u64 {
        self.gone_below
    }

    fn begin_segment(&mut self, first: u64, since: u64) -> Result<(), AppendError> {
        let failed = |doing| move |cause| AppendError::Disk { doing, cause };
        // A segment without a record would keep its name from being used.
        if let Some(empty) = self.segments.pop_back_if(|last| last.is_empty()) {
            (self.is_open, self.is_dirty) = (false, false);
            let removed = self.disk.remove(&name_of(empty.first));
            removed.map_err(failed("removing an empty segment of the spill"))?;
        }
        let made = Key::random().and_then(|key| Ok((self.disk.create(&name_of(first))?, key)));
        let (file, key) = made.map_err(failed("making a segment of the spill"))?;
        let (file, key) = (Arc::new(file), Some(key));
        let is_dirty = std::mem::take(&mut self.is_dirty);
        if let Some(last) = self.segments.back().filter(|_| is_dirty) {
            self.sealed.push((last.end, Arc::clone(&last.file)));
        }
        let is_next = self.cursor.sequence >= first || self.segments.is_empty();
        self.segments.push_back(Segment {
            file,
            key,
            first,
            end: first,
            bytes: 0,
            since,
            until: since,
        });
        if is_next {
            self.enter(first);
        }
        self.is_open = true;
        self.limit = self.segment_limit();
        self.names_changed = true;
        Ok(())
    }

    /// Reads the next events; `None` when everything was read. An error is no damage: the disk may
    /// give the same bytes back later, so nothing is passed over and the same is tried again then.
    pub fn read(&mut self) -> io::Result<Option<Read>> {
        loop {
            let Some(index) = self.segments.iter().position(|s| s.first == self.cursor.segment)
            else {
                // It was empty, and is gone.
                let mut behind = self.segments.iter().filter(|s| s.end > self.cursor.sequence);
                let Some(next) = behind.next().map(|segment| segment.first) else {
                    return Ok(None);
                };
                self.enter(next);
                continue;
            };
            let Some(segment) = self.segments.get(index) else { return Ok(None) };
            let (end, next) = (segment.end, self.segments.get(index + 1).map(|next| next.first));
            let extent = Extent { bytes: segment.bytes, next };
            let Cursor { walk, sequence, .. } = &mut self.cursor;
            if let Some(record) = walk.find(&*segment.file, extent, *sequence)? {
                match self.events(record) {
                    Some(read) => return Ok(Some(read)),
                    None => continue,
                }
            }
            let lost = self.lost_before(end).map(Read::Damaged);
            let Some(next) = next else { return Ok(lost) };
            self.enter(next);
            if lost.is_some() {
                return Ok(lost);
            }
        }
    }

    /// The events of a record that are still wanted. If the record is further on than it should be,
    /// the events between are lost. The record is found again after that was reported.
    fn events(&mut self, mut record: Record) -> Option<Read> {
        if let Some(lost) = self.lost_before(record.head.sequence) {
            return Some(Read::Damaged(lost));
        }
        self.cursor.walk.pass(&record);
        let mut share = record.share.take()?;
        let known = self.cursor.sequence - record.head.sequence;
        share.split_front(usize::try_from(known).unwrap_or(usize::MAX));
        let sequence = std::mem::replace(&mut self.cursor.sequence, record.end);
        Some(Read::Events(sequence, share))
    }

    fn lost_before(&mut self, sequence: u64) -> Option<SequenceRange> {
        let lost = SequenceRange { first: self.cursor.sequence, end: sequence };
        if lost.is_empty() {
            return None;
        }
        self.cursor.sequence = sequence;
        Some(lost)
    }

    /// Everything below `sequence` is stored for good. Removes the segments that are needed no
    /// longer; the caller notes it later with [`Spill::note_acknowledged`].
    pub fn acknowledge(&mut self, sequence: u64) -> io::Result<()> {
        self.acknowledged = self.acknowledged.max(sequence);
        self.begun.retain(|begun| begun.first >= sequence);
        while let Some(front) = self.segments.front() {
            // The last one stays, also when it is used up: its name and its end say which sequence
            // comes next.
            if front.end > self.acknowledged || self.segments.len() == 1 {
                break;
            }
            self.remove_front()?;
        }
        Ok(())
    }

    /// Gives up the oldest segment in which events wait, and returns its events; `None` if there is
    /// none. Events wait from `head` on. Unsettled events before it, `in_flight`, must survive a
    /// crash. So they are put into a segment of their own first, up against the next segment or the
    /// events in memory up to `memory_end`. Events may come between by [`Spill::insert`]. If the
    /// disk has no room for that segment, it is written right after.
    pub(crate) fn drop_oldest(
        &mut self,
        head: u64,
        memory_end: u64,
        in_flight: &[Share],
        compress: bool,
    ) -> io::Result<Option<Dropped>> {
        let Some(index) = self.waiting_segment(head) else { return Ok(None) };
        let Some(victim) = self.segments.get(index) else { return Ok(None) };
        let lost = SequenceRange { first: victim.first.max(head), end: victim.end };
        let follows = match self.segments.get(index + 1) {
            Some(next) if memory_end <= lost.end => next.first,
            _ => lost.end,
        };
        let mut refuge = self.write_refuge(follows, in_flight, compress);
        let before = self.acknowledged;
        self.acknowledged = before.max(match &refuge {
            Ok(Some(refuge)) => refuge.first,
            _ => lost.end,
        });
        // Without any segment only `progress` says which sequence comes next.
        let is_empty = index + 1 == self.segments.len() && in_flight.is_empty();
        let noted = if is_empty { self.rewrite_progress() } else { Ok(()) };
        let kept = refuge.as_ref().ok().and_then(Option::as_ref).map(|refuge| refuge.first);
        // A power failure must leave either the old segment or its replacement.
        let named = match kept.is_some() || is_empty {
            true => noted.and_then(|()| self.disk.sync_names()),
            false => noted,
        };
        let replaces = kept.is_some_and(|kept| self.segments.iter().any(|s| s.first == kept));
        match named.and_then(|()| self.remove_through(index, kept)) {
            Ok(()) => {}
            Err(error) if replaces => {
                // One of them is gone already, since the refuge has its name.
                warn!(%error, "discarded events are still in the spill, and may come again");
                (0..=index).for_each(|_| self.forget_front());
            }
            Err(error) => {
                // They are still there, and must not be noted as acknowledged. The refuge would
                // hide some of them from the next run.
                self.acknowledged = before;
                kept.map_or(Ok(()), |kept| self.disk.remove(&name_of(kept)))?;
                return Err(error);
            }
        }
        if refuge.is_err() {
            refuge = self.write_refuge(follows, in_flight, compress);
        }
        let keeps_in_flight = refuge.is_ok();
        match refuge {
            Ok(Some(refuge)) => {
                self.bytes += refuge.bytes;
                self.acknowledged = self.acknowledged.min(refuge.first);
                self.segments.push_front(refuge);
                // An earlier one could not be written, and its events were given up on disk.
                if self.acknowledged < before
                    && let Err(error) = self.note_acknowledged()
                {
                    warn!(%error, "batches that are being written are lost if the daemon is killed");
                }
            }
            Ok(None) => {}
            Err(error) => warn!(%error, "batches that are being written are not on disk any more"),
        }
        self.cursor.sequence = self.cursor.sequence.max(lost.end);
        Ok(Some(Dropped { lost, keeps_in_flight }))
    }

    /// The first segment that holds events from `head` on.
    fn waiting_segment(&self, head: u64) -> Option<usize> {
        self.segments.iter().position(|segment| segment.end > head && !segment.is_empty())
    }

    /// Writes a segment of shares whose last event stands just before `end`. It may take the name
    /// of one that is about to be removed.
    fn write_refuge(
        &self,
        end: u64,
        shares: &[Share],
        compress: bool,
    ) -> io::Result<Option<Segment<D::File>>> {
        let count: u64 = shares.iter().map(|share| share.len() as u64).sum();
        let (Some(oldest), Some(newest)) = (shares.first(), shares.last()) else { return Ok(None) };
        match self.disk.remove(REFUGE_NEW) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (file, key) = (self.disk.create(REFUGE_NEW)?, Key::random()?);
        let first = end.saturating_sub(count);
        let written = write_segment(&file, &key, first, shares, compress).1;
        let written = written.and_then(|()| file.sync()).and_then(|()| file.len());
        let named = |bytes| self.disk.rename(REFUGE_NEW, &name_of(first)).map(|()| bytes);
        let bytes = written.and_then(named).inspect_err(|_| {
            // A part of it takes up space. It is removed before the next one too.
            let _ = self.disk.remove(REFUGE_NEW);
        })?;
        let (since, until) = (oldest.received(), newest.received());
        let (file, key) = (Arc::new(file), Some(key));
        Ok(Some(Segment { file, key, first, end, bytes, since, until }))
    }

    /// Removes the segments up to this one. The name of one of them may have been given away. After
    /// an error none of them is removed; one that cannot be removed after others have been is left
    /// over.
    fn remove_through(&mut self, index: usize, given_away: Option<u64>) -> io::Result<()> {
        for nth in 0..=index {
            let Some(front) = self.segments.front() else { break };
            if Some(front.first) != given_away
                && let Err(error) = self.disk.remove(&name_of(front.first))
            {
                if nth == 0 {
                    return Err(error);
                }
                warn!(%error, "discarded events are still in the spill, and may come again");
            }
            self.forget_front();
        }
        Ok(())
    }

    /// True if every event that waits in the oldest segment (from `head` on) was put in before
    /// `time`, in microseconds since 1970. The time when the file was last written counts. That
    /// needs no reading after a restart. A dead letter that is replayed may have been read long
    /// before it was put in.
    pub(crate) fn oldest_is_before(&self, head: u64, time: u64) -> bool {
        let segment = self.waiting_segment(head).and_then(|index| self.segments.get(index));
        segment.is_some_and(|segment| segment.file.modified().is_ok_and(|at| at < time))
    }

    /// The time when the oldest event was read, in microseconds since 1970, as far as heads say.
    pub(crate) fn oldest_since(&self) -> Option<u64> {
        self.segments.front().map(|segment| segment.since)
    }

    /// The time when the newest event was read, in microseconds since 1970, as far as is known.
    pub(crate) fn newest_until(&self) -> Option<u64> {
        self.segments.back().map(|segment| segment.until).filter(|until| *until > 0)
    }

    /// The number of segments.
    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    fn remove_front(&mut self) -> io::Result<()> {
        let Some(front) = self.segments.front() else { return Ok(()) };
        self.disk.remove(&name_of(front.first))?;
        self.forget_front();
        Ok(())
    }

    fn forget_front(&mut self) {
        let Some(front) = self.segments.pop_front() else { return };
        // A file that is open takes up space, also one that was removed.
        self.sealed.retain(|(end, _)| *end > front.end);
        self.names_changed = true;
        self.bytes -= front.bytes;
        let was_read = front.first == self.cursor.segment;
        if was_read {
            self.enter(self.segments.front().map_or(u64::MAX, |front| front.first));
        }
        if self.segments.is_empty() {
            self.is_open = false;
            self.is_dirty = false;
        }
    }

    /// Notes a batch before its first try, so that it comes again with the same bounds.
    pub fn note_begun(&mut self, begun: Begun) -> io::Result<()> {
        self.begun.push(begun);
        // The same write notes how far events are acknowledged. So a daemon that crashes often gets
        // on too.
        let acknowledged = entry(ACKNOWLEDGED, self.acknowledged, 0);
        self.note(&[acknowledged, entry(BATCH_BEGUN, begun.first, begun.len)])
    }

    /// Notes how far events are acknowledged.
    pub fn note_acknowledged(&mut self) -> io::Result<()> {
        self.note(&[entry(ACKNOWLEDGED, self.acknowledged, 0)])
    }

    /// Makes noted entries last through a power failure.
    pub(crate) fn sync_noted(&mut self) -> io::Result<()> {
        if let Some(progress) = &self.progress {
            progress.sync()?;
        }
        if !self.progress_is_named {
            self.disk.sync_names()?;
            self.progress_is_named = true;
        }
        Ok(())
    }

    fn note(&mut self, entries: &[[u8; ENTRY]]) -> io::Result<()> {
        if self.progress.is_none() || self.progress_len >= PROGRESS_MAX {
            return self.rewrite_progress();
        }
        let bytes = entries.as_flattened();
        if let Some(progress) = &self.progress {
            if let Err(error) = progress.append(&mut [IoSlice::new(bytes)]) {
                // Entries behind half an entry could not be read.
                self.progress = None;
                return Err(error);
            }
            self.progress_len += bytes.len() as u64;
        }
        Ok(())
    }

    /// Replaces `progress` by one that says the same in few entries.
    fn rewrite_progress(&mut self) -> io::Result<()> {
        let mut bytes = entry(ACKNOWLEDGED, self.acknowledged, 0).to_vec();
        for begun in &self.begun {
            bytes.extend(entry(BATCH_BEGUN, begun.first, begun.len));
        }
        let file = self.disk.replace(PROGRESS, &bytes)?;
        (self.names_changed, self.progress_is_named) = (true, false);
        self.progress = Some(file);
        self.progress_len = bytes.len() as u64;
        Ok(())
    }

    /// The files to sync so that everything appended lasts; `None` if everything does, or is stored
    /// for good.
    pub fn begin_sync(&mut self) -> Option<SyncJob<D>> {
        if !self.is_dirty() {
            return None;
        }
        let is_last_dirty = std::mem::take(&mut self.is_dirty);
        let mut files = std::mem::take(&mut self.sealed);
        let last = self.segments.back()?;
        if is_last_dirty {
            files.push((last.end, Arc::clone(&last.file)));
        }
        files.retain(|(end, _)| *end > self.acknowledged);
        if files.is_empty() {
            return None;
        }
        let names = std::mem::take(&mut self.names_changed).then(|| self.disk.clone());
        let files = files.iter().map(|(_, file)| Arc::downgrade(file)).collect();
        Some(SyncJob { files, names, up_to: last.end })
    }

    /// Something was appended since the last sync began.
    pub(crate) fn is_dirty(&self) -> bool {
        self.is_dirty || !self.sealed.is_empty()
    }

    /// A sync failed. Nothing is appended to its segments any more. They are not synced again
    /// either, because that would succeed without the pages that the kernel has dropped. Returns
    /// the sequence below which events last: those appended meanwhile are in doubt too.
    pub(crate) fn condemn(&mut self, job: &SyncJob<D>) -> u64 {
        self.names_changed |= job.names.is_some();
        let has_failed = |file: &Arc<D::File>| {
            job.files.iter().any(|failed| failed.as_ptr() == Arc::as_ptr(file))
        };
        self.sealed.retain(|(_, file)| !has_failed(file));
        if self.segments.back().is_some_and(|last| has_failed(&last.file)) {
            self.is_open = false;
            self.is_dirty = false;
        }
        let in_doubt = self.segments.iter().filter(|segment| has_failed(&segment.file));
        in_doubt.map(|segment| segment.end).fold(job.up_to, u64::max)
    }

    /// Batches that were begun before the restart and are not known to be settled, in order.
    pub fn begun(&self) -> &[Begun] {
        &self.begun
    }

    /// The sequence that the next event gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The sequence of the first event that is not acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Moves reading to `sequence`: events below are at hand in memory.
    pub(crate) fn skip_to(&mut self, sequence: u64) {
        if sequence <= self.cursor.sequence {
            return;
        }
        self.cursor.sequence = sequence;
        let holds = |segment: &&Segment<_>| segment.first <= sequence;
        let Some(segment) = self.segments.iter().rfind(holds) else { return };
        let (first, end, bytes) = (segment.first, segment.end, segment.bytes);
        if first != self.cursor.segment {
            self.enter(first);
        }
        if sequence >= end {
            self.cursor.walk.skip_all(bytes, end);
        }
    }

    /// Events of all segments that are not acknowledged.
    pub(crate) fn pending(&self) -> u64 {
        let waits =
            |segment: &Segment<_>| segment.end.saturating_sub(segment.first.max(self.acknowledged));
        self.segments.iter().map(waits).sum()
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that were cut off as a torn tail when the spill was opened.
    pub(crate) fn torn_bytes(&self) -> u64 {
        self.torn_bytes
    }

    /// The number of events in the torn tail, as far as it says; at least one if there was a tail.
    pub fn torn_events(&self) -> u64 {
        self.torn_events
    }
}

fn name_of(first: u64) -> String {
    format!("{first:020}{SUFFIX}")
}

fn first_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let first = (digits.len() == 20).then(|| digits.parse().ok())?;
    first.filter(|first| *first < SEQUENCES)
}

fn entry(kind: u32, sequence: u64, len: u64) -> [u8; ENTRY] {
    let mut bytes = Vec::with_capacity(ENTRY);
    bytes.extend(kind.to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    let mut entry = [0; ENTRY];
    entry.copy_from_slice(&bytes);
    entry
}

fn read_entry(bytes: &[u8]) -> Option<(u32, u64, u64)> {
    let (mut fields, crc) = bytes.split_at_checked(ENTRY - 4)?;
    if crc32c::crc32c(fields).to_le_bytes() != crc {
        return None;
    }
    let (kind, sequence, len) = (fields.get_u32_le(), fields.get_u64_le(), fields.get_u64_le());
    // Far from the end, so that there is room for more.
    let is_sane = sequence < SEQUENCES / 2 && len < SEQUENCES / 2;
    is_sane.then_some((kind, sequence, len))
}

/// The contents of `progress`: the sequence below which everything is acknowledged, and the batches
/// begun.
fn read_progress<D: Disk>(disk: &D) -> io::Result<(u64, Vec<Begun>)> {
    let (mut acknowledged, mut begun) = (0, Vec::<Begun>::new());
    let file = match disk.open(PROGRESS) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((acknowledged, begun)),
        Err(error) => return Err(error),
    };
    let len = file.len()?.min(4 * PROGRESS_MAX);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    let read = file.read_at(&mut bytes, 0)?;
    for entry in bytes.get(..read).unwrap_or_default().chunks_exact(ENTRY) {
        let Some((kind, sequence, len)) = read_entry(entry) else { break };
        match kind {
            ACKNOWLEDGED => acknowledged = sequence,
            BATCH_BEGUN => {
                begun.retain(|begun| begun.first != sequence);
                begun.push(Begun { first: sequence, len });
            }
            _ => break,
        }
    }
    Ok((acknowledged, begun))
}

/// Writes a segment of these shares into a new file. Says how many events are written, and why not
/// all of them are.
fn write_segment<F: DiskFile>(
    file: &F,
    key: &Key,
    first: u64,
    shares: &[Share],
    compress: bool,
) -> (u64, io::Result<()>) {
    let mut written = 0;
    let append = |share: &Share| {
        let body = Body::encode(share, compress).map_err(io::Error::other)?;
        let head = body.head(key, first + written);
        file.append(&mut body.slices(&head))?;
        written += share.len() as u64;
        Ok(())
    };
    let begun = file.append(&mut [IoSlice::new(&key.file_head())]);
    let appended = begun.and_then(|()| shares.iter().try_for_each(append));
    (written, appended)
}

/// The head of a segment's first record, if it is whole.
fn first_head<F: DiskFile>(file: &F, key: Option<&Key>) -> io::Result<Option<Head>> {
    let Some(key) = key else { return Ok(None) };
    let mut bytes = [0; HEAD];
    let read = file.read_at(&mut bytes, key.records_begin())?;
    Ok(Head::read(key, bytes.get(..read).unwrap_or_default()).ok())
}

struct Tail {
    /// Bytes up to the end of the last whole record.
    len: u64,
    /// The sequence behind it.
    end: u64,
    /// The time when the newest of its events was read.
    until: u64,
    /// Events behind it ([`Walk::torn_events`]).
    torn_events: u64,
}

/// Finds the end of a segment's last whole record. Bodies are checked only of events that are not
/// acknowledged; damage that a whole record follows is no tail.
fn find_tail<F: DiskFile>(
    file: &F,
    mut walk: Walk,
    acknowledged: u64,
    bytes: u64,
) -> io::Result<Tail> {
    let (mut len, mut until) = (walk.offset().min(bytes), 0);
    while let Some(record) = walk.find(file, Extent { bytes, next: None }, acknowledged)? {
        walk.pass(&record);
        (len, until) = (walk.offset(), until.max(record.head.received));
    }
    let torn_events = walk.torn_events(bytes, acknowledged);
    Ok(Tail { len, end: walk.sequence(), until, torn_events })
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
pub(crate) mod model;
