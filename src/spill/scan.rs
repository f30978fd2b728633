//! Looks at a spill without touching it: nothing is cut, removed or synced, so that it may belong
//! to a running daemon.
//!
//! Segments only grow, and go as a whole, so what is read is right as far as it goes. What a
//! running daemon is in the middle of is seen as it is at that moment: the record that it is
//! writing looks cut off, a segment that goes while it is looked at is left out, and what was stored
//! since the daemon last noted it (it does so every second) still counts as waiting.

use std::io;

use serde::Serialize;

use super::disk::{Disk, DiskFile};
use super::record::HEAD;
use super::{Found, find_record, first_of, name_of, read_head, read_progress, read_record};
use crate::chunk::Share;

/// What a spill holds.
#[derive(Debug, Default, Serialize)]
pub struct Scan {
    /// Events that wait.
    pub events: u64,
    /// When the oldest of them was read, in microseconds since 1970.
    pub oldest: Option<u64>,
    /// When the newest of them was read, in microseconds since 1970.
    pub newest: Option<u64>,
    /// Bytes of all segments.
    pub bytes: u64,
    /// How many segments there are.
    pub segments: u64,
    /// What is damaged.
    pub damage: Vec<Damaged>,
    /// Bytes of a record at the very end that is not whole: being written, or torn by a crash.
    pub tail_bytes: u64,
}

/// A stretch of a segment that holds no whole record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damaged {
    /// The segment's file.
    pub file: String,
    /// Where the stretch begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub bytes: u64,
    /// How many events were there.
    pub events: u64,
    /// Whether it may have been more events, since nothing behind tells.
    pub or_more: bool,
}

/// How closely to look.
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
    let (acknowledged, _) = read_progress(disk)?;
    let mut firsts: Vec<u64> = disk.list()?.iter().filter_map(|name| first_of(name)).collect();
    firsts.sort_unstable();
    let mut scan = Scan::default();
    for (index, first) in firsts.iter().enumerate() {
        let file = match disk.open(&name_of(*first)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
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
        let from = match depth {
            Depth::Heads => u64::MAX,
            Depth::Waiting => acknowledged,
            Depth::All => 0,
        };
        let (mut offset, mut sequence) = (0, self.first);
        // A stretch without a record, and the events that heads in it speak of.
        let mut bad: Option<(u64, u64)> = None;
        while offset < len {
            let (head, share) = match read_record(self.file, offset, len, from)? {
                Found::Passed(head) => (head, None),
                Found::Events(head, share) => (head, Some(share)),
                Found::Nothing => {
                    let head = read_head(self.file, offset, u64::MAX)?.ok();
                    let is_cut = head.is_some_and(|head| offset + head.record_len() > len)
                        || len - offset < HEAD as u64;
                    if is_cut && self.next.is_none() && bad.is_none() {
                        scan.tail_bytes += len - offset;
                        return Ok(());
                    }
                    let (_, events) = bad.get_or_insert((offset, 0));
                    *events += head.map_or(1, |head| head.events);
                    offset = find_record(self.file, offset + 1, len)?;
                    continue;
                }
            };
            if let Some((began, _)) = bad.take() {
                let events = head.sequence.saturating_sub(sequence);
                scan.damage.push(self.damaged(began, offset, events, false));
            }
            offset += head.record_len();
            sequence = head.end();
            if head.end() <= acknowledged {
                continue;
            }
            let known = acknowledged.saturating_sub(head.sequence);
            scan.events += head.events - known;
            scan.oldest.get_or_insert(head.received);
            scan.newest = Some(head.received);
            if let Some(mut share) = share {
                share.split_front(usize::try_from(known).unwrap_or(usize::MAX));
                visit(share)?;
            }
        }
        if let Some((began, events)) = bad {
            let damaged = match self.next {
                Some(next) => self.damaged(began, len, next.saturating_sub(sequence), false),
                None => self.damaged(began, len, events, true),
            };
            scan.damage.push(damaged);
        }
        Ok(())
    }

    fn damaged(&self, from: u64, to: u64, events: u64, or_more: bool) -> Damaged {
        Damaged { file: name_of(self.first), offset: from, bytes: to - from, events, or_more }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::chunk::Chunk;
    use crate::event::{Event, Origin};
    use crate::spill::disk::Folder;
    use crate::spill::record::Body;
    use crate::spill::{Settings, Spill};

    const SETTINGS: Settings = Settings { segment_bytes: 400, max_bytes: 1 << 20, compress: false };

    /// Ten records of two events each, in several segments; the first three events are acknowledged.
    fn filled(folder: &Folder) {
        let mut spill = Spill::open(folder.clone(), SETTINGS).unwrap();
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

    /// Every byte of every segment, one at a time: it is found, and the rest comes, from the scan
    /// and from the spill, which counts the damage.
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
                        crate::spill::Read::Events(_, share) => {
                            came.extend(share.events().map(|e| e.tag().parse::<u64>().unwrap()));
                        }
                        crate::spill::Read::Damaged(range) => lost += range.len(),
                    }
                }
                assert_eq!(came, seen, "{name} at {at}");
                assert!(lost > 0 || came.len() == 17, "{name} at {at}");
                std::fs::write(path.path().join(name), bytes).unwrap();
            }
        }
    }
}
