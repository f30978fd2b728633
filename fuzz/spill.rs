//! The checks of the fuzz target `spill`; shared with `tests/it/fuzz_targets.rs`.
//!
//! The input is a life of a spill, byte by byte: events with payloads that a minion might write to
//! deceive, and damage to the files between two starts. After any life a start ends, and `scan`
//! reports the same losses as the spill counts. No event comes that was not put in, and events that
//! are put in afterwards come out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use saltern::event::chunk::{Chunk, Share};
use saltern::event::{Event, Origin};
use saltern::files::disk::Folder;
use saltern::queue::spill::key::Key;
use saltern::queue::spill::record::Body;
use saltern::queue::spill::scan::{Depth, Scan, scan};
use saltern::queue::spill::{Begun, Read, Settings, Spill};

const SETTINGS: Settings = Settings { segment_bytes: 600, max_bytes: 1 << 20, compress: false };

/// The spill is opened so often at the most.
const STARTS: usize = 4;

/// A life of a spill in an empty folder, which is left as it ends.
pub(crate) fn spill(data: &[u8], folder: &Path) {
    let mut life = Life {
        input: data,
        folder: folder.to_owned(),
        appended: BTreeMap::new(),
        waiting: 0,
        is_ours: true,
        is_all_there: true,
    };
    for _ in 0..STARTS {
        life.start();
        if life.input.is_empty() {
            break;
        }
        life.damage();
    }
    life.input = &[];
    life.start();
}

struct Life<'a> {
    input: &'a [u8],
    folder: PathBuf,
    /// All events that were ever put in, by sequence. After a tail was cut off, sequences are given
    /// once more.
    appended: BTreeMap<u64, BTreeSet<(String, Vec<u8>)>>,
    /// Events that were put in and neither came nor were counted as lost.
    waiting: u64,
    /// No file was replaced by one of somebody else's making.
    is_ours: bool,
    /// No bytes were removed since the last start.
    is_all_there: bool,
}

impl Life<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.input.split_first() else { return 0 };
        self.input = rest;
        *first
    }

    fn below(&mut self, bound: usize) -> usize {
        let number = usize::from(self.byte()) << 8 | usize::from(self.byte());
        number % bound.max(1)
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = usize::from(self.byte()).min(self.input.len());
        let (bytes, rest) = self.input.split_at(len);
        self.input = rest;
        bytes.to_vec()
    }

    /// A sequence that somebody would like us to believe.
    fn lie(&mut self) -> u64 {
        let number = u64::from(self.byte());
        match self.byte() % 4 {
            0 => number,
            1 => 1 << (number % 64),
            2 => u64::MAX - number,
            _ => number << 8,
        }
    }

    fn payload(&mut self) -> Vec<u8> {
        let kind = self.byte();
        let mut payload = self.bytes();
        if kind.is_multiple_of(2) {
            let mut sequence = self.lie();
            for _ in 0..=kind % 3 {
                let record = record(&share("foreign", vec![Event::new("forged", b"")]), sequence);
                payload.extend(record);
                sequence = sequence.wrapping_add(1);
            }
            payload.extend(self.bytes());
        }
        payload
    }

    /// Looks at the spill, opens it, takes everything out of it, and puts new events in.
    fn start(&mut self) {
        let disk = Folder::open(&self.folder).expect("the folder is there");
        let seen = scan(&disk, Depth::All, |_| Ok(())).expect("the disk works");
        let mut spill = Spill::open(disk, SETTINGS).expect("the disk works");
        self.drain(&mut spill, &seen);
        let first = spill.next();
        for _ in 0..self.byte() % 8 {
            let count = u64::from(self.byte() % 3) + 1;
            let next = spill.next();
            let events = (next..next + count).map(|n| (n.to_string(), self.payload()));
            let events: Vec<_> = events.collect();
            self.append(&mut spill, events);
        }
        self.waiting = spill.next() - first;
        if self.byte().is_multiple_of(2) {
            let stored = first + self.below(usize::try_from(self.waiting).unwrap_or(0) + 1) as u64;
            spill.acknowledge(stored).expect("the disk works");
            spill.note_begun(Begun { first: stored, len: 1 }).expect("the disk works");
            self.waiting = spill.next() - stored;
        } else {
            spill.acknowledge(first).expect("the disk works");
            spill.note_acknowledged().expect("the disk works");
        }
    }

    fn append(&mut self, spill: &mut Spill<Folder>, events: Vec<(String, Vec<u8>)>) {
        let sequence = spill.next();
        for (place, event) in events.iter().enumerate() {
            self.appended.entry(sequence + place as u64).or_default().insert(event.clone());
        }
        let events = events.iter().map(|(tag, payload)| Event::new(tag, payload)).collect();
        let share = share("m", events);
        let body = Body::encode(&share, self.byte().is_multiple_of(4)).expect("it is small");
        spill.append(sequence, &share, &body).expect("the disk works");
    }

    fn drain(&mut self, spill: &mut Spill<Folder>, seen: &Scan) {
        let (head, next) = (spill.acknowledged(), spill.next());
        let (mut came, mut damaged, mut reads) = (0, 0, 0);
        let mut expected = head;
        while let Some(read) = spill.read().expect("the disk works") {
            match read {
                Read::Damaged(lost) => {
                    assert_eq!(lost.first, expected);
                    damaged += lost.len();
                    expected = lost.end;
                }
                Read::Events(sequence, share) => {
                    assert_eq!(sequence, expected);
                    came += share.len() as u64;
                    expected += share.len() as u64;
                    if self.is_ours {
                        self.check(sequence, &share);
                    }
                }
            }
            reads += 1;
            assert!(reads < 10_000, "it goes on for ever");
        }
        assert_eq!(expected, next, "all that waits came or is counted");
        let missed: u64 = seen.damage.iter().map(|damaged| damaged.events).sum();
        assert_eq!(damaged + spill.torn_events(), missed + seen.tail_events, "{seen:?}");
        assert_eq!(came, seen.events, "{seen:?}");
        if self.is_ours && self.is_all_there {
            // A tail without a head counts as one, also where nothing in it waited.
            let counted = came + damaged + spill.torn_events();
            assert!(counted <= self.waiting + 1, "{counted} of {}", self.waiting);
        }
        (self.is_all_there, self.is_ours) = (true, true);
    }

    fn check(&self, sequence: u64, share: &Share) {
        assert_eq!(share.origin().master_id, "m");
        for (place, event) in share.events().enumerate() {
            let event = (event.tag().to_owned(), event.payload().to_vec());
            let appended = self.appended.get(&(sequence + place as u64));
            assert!(appended.is_some_and(|known| known.contains(&event)), "{event:?} came");
        }
    }

    fn damage(&mut self) {
        for _ in 0..self.byte() % 4 {
            let mut files: Vec<PathBuf> = fs::read_dir(&self.folder)
                .expect("the folder is there")
                .map(|entry| entry.expect("the disk works").path())
                .filter(|path| path.extension().is_some_and(|ending| ending == "seg"))
                .collect();
            files.sort();
            if files.is_empty() {
                return;
            }
            let file = files[self.below(files.len())].clone();
            let other = files[self.below(files.len())].clone();
            let mut bytes = fs::read(&file).expect("the disk works");
            match self.byte() % 8 {
                0 | 1 if !bytes.is_empty() => {
                    let at = self.below(bytes.len());
                    bytes[at] ^= self.byte();
                }
                2 => {
                    let len = self.below(bytes.len() + 1);
                    bytes.truncate(len);
                    self.is_all_there = false;
                }
                3 => {
                    let (from, to) = (self.below(bytes.len() + 1), self.below(bytes.len() + 1));
                    let len = self.below(bytes.len() + 1);
                    let len = len.min(bytes.len() - from).min(bytes.len() - to);
                    bytes.copy_within(from..from + len, to);
                }
                4 => {
                    let others = fs::read(&other).expect("the disk works");
                    fs::write(&other, &bytes).expect("the disk works");
                    bytes = others;
                }
                5 => {
                    fs::remove_file(&file).expect("the disk works");
                    self.is_all_there = false;
                    continue;
                }
                6 => {
                    // A whole file of somebody else's making.
                    bytes = self.payload();
                    self.is_ours = false;
                }
                _ => {
                    self.write_progress();
                    self.is_all_there = false;
                }
            }
            fs::write(&file, bytes).expect("the disk works");
        }
    }

    /// Any bytes, or what a spill of other sequences would write.
    fn write_progress(&mut self) {
        let progress = self.folder.join("progress");
        if self.byte().is_multiple_of(2) {
            let bytes = self.bytes();
            return fs::write(progress, bytes).expect("the disk works");
        }
        let other = self.folder.join("other");
        let disk = Folder::create(&other).expect("the disk works");
        let mut spill = Spill::open(disk, SETTINGS).expect("the disk works");
        spill.acknowledge(self.lie()).expect("the disk works");
        let begun = Begun { first: self.lie(), len: self.lie() };
        spill.note_begun(begun).expect("the disk works");
        fs::rename(other.join("progress"), progress).expect("the disk works");
        fs::remove_dir_all(other).expect("the disk works");
    }
}

fn share(master: &str, events: Vec<Event>) -> Share {
    let origin = Origin { source: "bus".to_owned(), master_id: master.to_owned() };
    Share::all(Arc::new(Chunk::new(Arc::new(origin), 1, events)))
}

/// A record as anybody can make it, of version 1.
fn record(share: &Share, sequence: u64) -> Vec<u8> {
    let body = Body::encode(share, false).expect("it is small");
    let head = body.head(&Key::VERSION_1, sequence);
    body.slices(&head).iter().flat_map(|slice| slice.to_vec()).collect()
}
