//! Looks at a spill without touching it: nothing is cut, removed or synced, so that it may belong
//! to a running daemon.
//!
//! Segments only grow, and go as a whole, so a reader sees the right bytes as far as it reads. The
//! files of a running daemon are seen as they are at that moment. The record that it is writing
//! looks cut off. A segment that goes during the look is left out. The daemon notes stored events
//! once a second; those stored since then still count as waiting.

use std::io;

use serde::Serialize;

use crate::event::chunk::Share;
use crate::files::disk::{Disk, DiskFile};
use crate::queue::spill::key::Key;
use crate::queue::spill::walk::{Extent, Record, Walk, read_body};
use crate::queue::spill::{PROGRESS, SequenceRange, first_of, name_of, read_progress};

/// The contents of a spill.
#[derive(Debug, Default, Serialize)]
pub struct Scan {
    /// Events that wait.
    pub events: u64,
    /// The time when the oldest of them was read, in microseconds since 1970.
    pub(crate) oldest: Option<u64>,
    /// The time when the newest of them was read, in microseconds since 1970.
    pub(crate) newest: Option<u64>,
    /// Bytes of all segments.
    pub(crate) bytes: u64,
    /// The number of segments.
    pub(crate) segments: u64,
    /// The damaged stretches.
    pub damage: Vec<Damaged>,
    /// Entries with the name of a file of the spill that cannot be read as one.
    pub(crate) unreadable: Vec<Unreadable>,
    /// Bytes of a record at the very end that is not whole: being written, or torn by a crash.
    pub tail_bytes: u64,
    /// The number of its events, as far as it says.
    pub tail_events: u64,
}

/// An entry with the name of a file of the spill that cannot be opened: a directory, for instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Unreadable {
    /// The file.
    pub(crate) file: String,
    /// The error of opening it.
    pub(crate) reason: String,
}

/// A stretch of a segment without records, or without those that the segment's name promises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damaged {
    /// The segment's file.
    pub(crate) file: String,
    /// The place where the stretch begins, in bytes.
    pub(crate) offset: u64,
    /// Its length in bytes.
    pub(crate) bytes: u64,
    /// The number of events that waited there.
    pub events: u64,
    /// There may have been more events; no record behind tells.
    pub(crate) or_more: bool,
}

/// The depth of the look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// At heads only; bodies may be damaged.
    Heads,
    /// At every body that waits.
    Waiting,
    /// At every body.
    All,
}

/// Looks at a spill. With [`Depth::Waiting`] or [`Depth::All`] each event that waits is shown to
/// `visit`, in order.
pub fn scan<D: Disk>(
    disk: &D,
    depth: Depth,
    mut visit: impl FnMut(Share) -> io::Result<()>,
) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let (acknowledged, _) = read_progress(disk).unwrap_or_else(|error| {
        let file = PROGRESS.to_owned();
        scan.unreadable.push(Unreadable { file, reason: error.to_string() });
        (0, Vec::new())
    });
    let mut firsts: Vec<u64> = disk.list()?.iter().filter_map(|name| first_of(name)).collect();
    firsts.sort_unstable();
    for (index, first) in firsts.iter().enumerate() {
        let file = match disk.open(&name_of(*first)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let file = name_of(*first);
                scan.unreadable.push(Unreadable { file, reason: error.to_string() });
                continue;
            }
        };
        let segment = Segment { file: &file, first: *first, next: firsts.get(index + 1).copied() };
        segment.scan(acknowledged, depth, &mut scan, &mut visit)?;
    }
    Ok(scan)
}

struct Segment<'a, F> {
    file: &'a F,
    first: u64,
    /// The first sequence of the segment behind it.
    next: Option<u64>,
}

impl<F: DiskFile> Segment<'_, F> {
    fn scan(
        &self,
        acknowledged: u64,
        depth: Depth,
        scan: &mut Scan,
        visit: &mut impl FnMut(Share) -> io::Result<()>,
    ) -> io::Result<()> {
        let len = self.file.len()?;
        scan.bytes += len;
        scan.segments += 1;
        let wanted = if depth == Depth::Heads { u64::MAX } else { acknowledged };
        let extent = Extent { bytes: len, next: self.next };
        let mut walk = Walk::new(Key::of_file(self.file)?, self.first);
        while let Some(record) = walk.find(self.file, extent, wanted)? {
            let Record { offset, head, end, .. } = record;
            if let Some(from) = walk.hole() {
                let lost =
                    SequenceRange { first: walk.sequence().max(acknowledged), end: head.sequence };
                scan.damage.push(self.damaged(from, offset, lost.len(), false));
            }
            walk.pass(&record);
            let is_passed = record.share.is_none() && depth == Depth::All;
            if is_passed && !self.is_whole(&record)? {
                // Acknowledged events are not read any more, so nothing is lost.
                scan.damage.push(self.damaged(offset, walk.offset(), 0, false));
            }
            if end <= acknowledged {
                continue;
            }
            let known = acknowledged.saturating_sub(head.sequence);
            scan.events += end - head.sequence - known;
            scan.oldest.get_or_insert(head.received);
            scan.newest = Some(head.received);
            if let Some(mut share) = record.share {
                share.split_front(usize::try_from(known).unwrap_or(usize::MAX));
                visit(share)?;
            }
        }
        let from = walk.hole().unwrap_or(len);
        if let Some(next) = self.next {
            let lost = SequenceRange { first: walk.sequence().max(acknowledged), end: next };
            if from < len || !lost.is_empty() {
                scan.damage.push(self.damaged(from, len, lost.len(), false));
            }
            return Ok(());
        }
        let torn = walk.torn_events(len, acknowledged);
        if walk.is_cut(len) {
            (scan.tail_bytes, scan.tail_events) = (len - from, torn);
        } else if from < len {
            scan.damage.push(self.damaged(from, len, torn, true));
        }
        Ok(())
    }

    fn is_whole(&self, record: &Record) -> io::Result<bool> {
        let body = read_body(self.file, record.offset, &record.head)?;
        Ok(body.is_some_and(|body| record.head.matches(&body)))
    }

    fn damaged(&self, from: u64, to: u64, events: u64, or_more: bool) -> Damaged {
        Damaged { file: name_of(self.first), offset: from, bytes: to - from, events, or_more }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Instant;

    use proptest::prelude::*;

    use crate::event::batch::BatchLimits;
    use crate::event::chunk::Chunk;
    use crate::event::{Event, Origin};
    use crate::files::disk::Folder;
    use crate::queue::Queue;
    use crate::queue::config::SpillConfig;
    use crate::queue::spill::key::FILE_HEAD;
    use crate::queue::spill::model::SimDisk;
    use crate::queue::spill::record::Body;
    use crate::queue::spill::scan::*;
    use crate::queue::spill::{Settings, Spill};
    use crate::units::{ByteSize, Span};

    const SETTINGS: Settings = Settings { segment_bytes: 300, max_bytes: 1 << 20, compress: false };

    /// Ten records of two events each, in several segments; the first three events are
    /// acknowledged.
    fn filled<D: Disk>(disk: &D) {
        let mut spill = Spill::open(disk.clone(), SETTINGS).unwrap();
        for first in (0..20).step_by(2) {
            let origin = Arc::new(Origin { source: "s".into(), master_id: "m".into() });
            let events = (first..first + 2).map(|n| Event::new(&n.to_string(), b"\x90")).collect();
            let share = Share::all(Arc::new(Chunk::new(origin, 100 + first, events)));
            spill.append(first, &share, &Body::encode(&share, false).unwrap()).unwrap();
        }
        spill.acknowledge(3).unwrap();
        spill.note_acknowledged().unwrap();
    }

    fn tags(folder: &Folder) -> (Scan, Vec<u64>) {
        let mut tags = Vec::new();
        let visit = |share: Share| {
            tags.extend(share.events().map(|event| event.tag().parse::<u64>().unwrap()));
            Ok(())
        };
        let scan = scan(folder, Depth::All, visit).unwrap();
        (scan, tags)
    }

    #[test]
    fn what_waits_is_seen_and_left_as_it_is() {
        let path = tempfile::tempdir().unwrap();
        let folder = Folder::create(path.path()).unwrap();
        filled(&folder);
        let names = folder.list().unwrap().len();
        let (scan, tags) = tags(&folder);
        assert_eq!(tags, (3..20).collect::<Vec<_>>());
        assert_eq!((scan.events, scan.oldest, scan.newest), (17, Some(102), Some(118)));
        assert!(scan.segments > 1 && scan.damage.is_empty() && scan.tail_bytes == 0);
        assert_eq!(folder.list().unwrap().len(), names);
    }

    /// Damages every byte of every segment, one at a time. Scan and spill find the damage and give
    /// the other events, and the spill counts the lost ones.
    #[test]
    fn invariant_7_any_flipped_byte_is_found_and_the_rest_comes() {
        let path = tempfile::tempdir().unwrap();
        let folder = Folder::create(path.path()).unwrap();
        filled(&folder);
        let names: Vec<String> =
            folder.list().unwrap().into_iter().filter(|name| first_of(name).is_some()).collect();
        let all: Vec<(String, Vec<u8>)> = names
            .into_iter()
            .map(|name| (name.clone(), std::fs::read(path.path().join(name)).unwrap()))
            .collect();
        for (name, bytes) in &all {
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 0x40;
                std::fs::write(path.path().join(name), &flipped).unwrap();
                let (scan, seen) = tags(&folder);
                if at < FILE_HEAD {
                    // There is another copy of it.
                    assert_eq!((scan.damage, seen.len()), (Vec::new(), 17), "{name} at {at}");
                    continue;
                }
                assert_eq!(scan.damage.len(), 1, "{name} at {at}: {:?}", scan.damage);
                let damage = &scan.damage[0];
                assert_eq!(&damage.file, name);
                assert!((damage.offset..damage.offset + damage.bytes).contains(&(at as u64)));
                assert!(seen.len() >= 15 && seen.is_sorted(), "{name} at {at}");

                let copy = tempfile::tempdir().unwrap();
                for entry in std::fs::read_dir(path.path()).unwrap() {
                    let entry = entry.unwrap();
                    std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
                }
                let disk = Folder::create(copy.path()).unwrap();
                let mut spill = Spill::open(disk, SETTINGS).unwrap();
                let (mut came, mut lost) = (Vec::new(), spill.torn_events());
                while let Some(read) = spill.read().unwrap() {
                    match read {
                        crate::queue::spill::Read::Events(_, share) => {
                            came.extend(share.events().map(|e| e.tag().parse::<u64>().unwrap()));
                        }
                        crate::queue::spill::Read::Damaged(range) => lost += range.len(),
                    }
                }
                assert_eq!(came, seen, "{name} at {at}");
                assert!(lost > 0 || came.len() == 17, "{name} at {at}");
                std::fs::write(path.path().join(name), bytes).unwrap();
            }
        }
    }

    type Files = BTreeMap<String, Vec<u8>>;

    fn spilled() -> Files {
        let disk = SimDisk::new();
        filled(&disk);
        disk.files()
    }

    fn nth(files: &Files, n: usize) -> String {
        let segments: Vec<_> = files.keys().filter(|name| first_of(name).is_some()).collect();
        segments[n % segments.len()].clone()
    }

    /// Scans the files, and then lets a queue open them and takes all events out. Returns the scan,
    /// and how many events came; the events that the scan misses are those that the queue counts.
    fn drained(files: &Files) -> (Scan, u64) {
        let disk = SimDisk::of(files);
        let scan = scan(&disk, Depth::All, |_| Ok(())).unwrap();
        let spill = Spill::open(disk, SETTINGS).unwrap();
        let mut queue = Queue::new(7, SpillConfig::default(), Some(spill));
        let limits = BatchLimits::new(1000, ByteSize(1 << 20), Span::seconds(1));
        let mut came = 0;
        while let Some(batch) = queue.take(&limits, Instant::now()) {
            came += batch.len() as u64;
            queue.settle(batch.first());
        }
        let missed: u64 = scan.damage.iter().map(|damaged| damaged.events).sum();
        let losses = queue.take_losses();
        assert_eq!(losses.damaged, missed + scan.tail_events, "{scan:?}");
        assert_eq!((losses.total(), came), (losses.damaged, scan.events), "{scan:?}");
        (scan, came)
    }

    /// One case each: the files, how many of the 17 events come, and how many are damaged.
    #[test]
    fn a_segment_that_does_not_hold_what_its_name_promises_is_damaged() {
        let whole = spilled();
        let [first, second, third] = [0, 1, 2].map(|n| nth(&whole, n));
        let until = |name: &str| first_of(name).unwrap();
        assert_eq!(drained(&whole).1, 17);

        let mut empty = whole.clone();
        empty.get_mut(&first).unwrap().clear();
        let (scan, came) = drained(&empty);
        let damaged = Damaged {
            file: first.clone(),
            offset: 0,
            bytes: 0,
            events: until(&second) - 3,
            or_more: false,
        };
        assert_eq!((scan.damage, came), (vec![damaged], 20 - until(&second)));

        let mut swapped = whole.clone();
        let [one, other] = [&whole[&first], &whole[&second]].map(Clone::clone);
        swapped.insert(first, other);
        swapped.insert(second.clone(), one);
        let (scan, came) = drained(&swapped);
        assert_eq!((scan.damage.len(), came), (2, 20 - until(&third)));

        let mut missing = whole.clone();
        missing.remove(&second);
        let (scan, came) = drained(&missing);
        let lost = until(&third) - until(&second);
        assert_eq!((scan.damage.len(), scan.damage[0].events, came), (1, lost, 17 - lost));
    }

    #[derive(Debug, Clone)]
    enum Damage {
        Flip(usize, usize),
        Cut(usize, usize),
        Remove(usize),
        /// Two files change places.
        SwapFiles(usize, usize),
        /// Bytes of a file are written over others of it.
        Copy(usize, usize, usize, usize),
        /// And over those of another file.
        Transplant(usize, usize),
    }

    fn wound(files: &mut Files, damage: &Damage) {
        match *damage {
            Damage::Flip(n, at) => {
                let bytes = files.get_mut(&nth(files, n)).unwrap();
                if let Some(byte) = bytes.len().checked_sub(1).map(|last| at % (last + 1)) {
                    bytes[byte] ^= 1 << (at % 8);
                }
            }
            Damage::Cut(n, at) => {
                let bytes = files.get_mut(&nth(files, n)).unwrap();
                bytes.truncate(at % (bytes.len() + 1));
            }
            Damage::Remove(n) if files.len() > 3 => {
                files.remove(&nth(files, n));
            }
            Damage::Remove(_) => {}
            Damage::SwapFiles(n, m) => {
                let (one, other) = (nth(files, n), nth(files, m));
                let bytes = files[&one].clone();
                let others = files.insert(other, bytes).unwrap();
                files.insert(one, others);
            }
            Damage::Copy(n, from, to, len) => {
                let bytes = files.get_mut(&nth(files, n)).unwrap();
                let (from, to) = (from % (bytes.len() + 1), to % (bytes.len() + 1));
                let len = len.min(bytes.len() - from).min(bytes.len() - to);
                bytes.copy_within(from..from + len, to);
            }
            Damage::Transplant(n, m) => {
                let bytes = files[&nth(files, n)].clone();
                files.get_mut(&nth(files, m)).unwrap().extend(bytes);
            }
        }
    }

    fn damage() -> impl Strategy<Value = Damage> {
        let (n, at) = (0..8usize, 0..600usize);
        prop_oneof![
            (n.clone(), at.clone()).prop_map(|(n, at)| Damage::Flip(n, at)),
            (n.clone(), at.clone()).prop_map(|(n, at)| Damage::Cut(n, at)),
            n.clone().prop_map(Damage::Remove),
            (n.clone(), n.clone()).prop_map(|(n, m)| Damage::SwapFiles(n, m)),
            (n.clone(), at.clone(), at.clone(), at)
                .prop_map(|(n, from, to, len)| Damage::Copy(n, from, to, len)),
            (n.clone(), n).prop_map(|(n, m)| Damage::Transplant(n, m)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn invariant_3_verify_finds_the_events_that_the_daemon_counts_as_lost(
            damage in proptest::collection::vec(damage(), 1..5),
        ) {
            let mut files = spilled();
            for damage in &damage {
                wound(&mut files, damage);
            }
            drained(&files);
        }
    }
}
