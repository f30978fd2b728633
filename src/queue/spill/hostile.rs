//! Payloads that hold records. A minion chooses the bytes of its return, and the spill looks for
//! records among these bytes if a file is damaged.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::chunk::Chunk;
use crate::event::{Event, Origin};
use crate::queue::spill::key::Key;
use crate::queue::spill::model::SimDisk;
use crate::queue::spill::record::Body;
use crate::queue::spill::*;

const SETTINGS: Settings = Settings { segment_bytes: 1 << 20, max_bytes: 1 << 24, compress: false };

/// The number of events in the spill, two in a record.
const EVENTS: u64 = 20;

/// Sequences that somebody may want us to believe.
const LIES: [u64; 7] = [0, 5, 12, 1000, 1 << 60, 1 << 62, u64::MAX - 1];

fn share(master: &str, events: Vec<Event>) -> Share {
    let origin = Arc::new(Origin { source: "bus".into(), master_id: master.into() });
    Share::all(Arc::new(Chunk::new(origin, 1, events)))
}

fn bytes_of(share: &Share, key: &Key, sequence: u64) -> Vec<u8> {
    let body = Body::encode(share, false).unwrap();
    body.slices(&body.head(key, sequence)).iter().flat_map(|slice| slice.to_vec()).collect()
}

/// A whole record of an event that was never on the bus.
fn forged(sequence: u64) -> Vec<u8> {
    let auth = Event::new("salt/auth", b"\x81\xa3act\xa6accept");
    bytes_of(&share("foreign", vec![auth]), &Key::VERSION_1, sequence)
}

/// The record of two events whose payloads hold forged ones. Behind these are a few more bytes.
fn record(first: u64, lie: u64) -> Share {
    let payload = [b"\xc6\0\0\0\0".to_vec(), forged(lie), b"rest".to_vec()].concat();
    let events = (first..first + 2).map(|n| Event::new(&format!("{n:02}"), &payload)).collect();
    share("m", events)
}

/// The files of a spill with one segment, in version 1 or 2.
fn spilled(lie: u64, is_version_1: bool) -> BTreeMap<String, Vec<u8>> {
    let firsts = (0..EVENTS).step_by(2);
    if is_version_1 {
        let bytes = firsts.flat_map(|n| bytes_of(&record(n, lie), &Key::VERSION_1, n)).collect();
        return BTreeMap::from([(name_of(0), bytes)]);
    }
    let disk = SimDisk::new();
    let mut spill = Spill::open(disk.clone(), SETTINGS).unwrap();
    for first in firsts {
        let share = record(first, lie);
        spill.append(first, &share, &Body::encode(&share, false).unwrap()).unwrap();
    }
    disk.files()
}

/// Opens the files, reads everything, appends a hundred events and reads these. Each event that
/// comes was appended, and is in its place. Returns the events that came, and how many were counted
/// as lost.
fn recovered(files: &BTreeMap<String, Vec<u8>>) -> (Vec<u64>, u64) {
    let mut spill = Spill::open(SimDisk::of(files), SETTINGS).unwrap();
    let next = spill.next();
    assert!(next <= EVENTS, "{next} would be next");
    let (mut came, mut lost) = (Vec::new(), spill.torn_events());
    drain(&mut spill, &mut came, &mut lost);
    let share = share("m", (next..next + 100).map(|n| Event::new(&n.to_string(), b"")).collect());
    spill.append(next, &share, &Body::encode(&share, false).unwrap()).unwrap();
    let mut new = Vec::new();
    drain(&mut spill, &mut new, &mut lost);
    assert_eq!(new, (next..next + 100).collect::<Vec<_>>());
    assert_eq!(came.len() as u64 + lost, EVENTS, "all that was cut off was in one record");
    (came, lost)
}

fn drain(spill: &mut Spill<SimDisk>, came: &mut Vec<u64>, lost: &mut u64) {
    while let Some(read) = spill.read().unwrap() {
        match read {
            Read::Damaged(range) => *lost += range.len(),
            Read::Events(sequence, share) => {
                assert_eq!(share.origin().master_id, "m");
                let tags = share.events().map(|event| event.tag().parse::<u64>().unwrap());
                let tags: Vec<u64> = tags.collect();
                assert_eq!(tags, (sequence..sequence + share.len() as u64).collect::<Vec<_>>());
                came.extend(tags);
            }
        }
    }
}

/// A byte flips at any place in the middle: its record is lost and nothing else. With a torn tail,
/// the last record is.
#[test]
fn invariant_7_a_record_inside_a_payload_is_never_believed() {
    for lie in LIES {
        for is_version_1 in [false, true] {
            let whole = spilled(lie, is_version_1);
            let bytes = &whole[&name_of(0)];
            let len = bytes_of(&record(0, lie), &Key::VERSION_1, 0).len();
            let begin = bytes.len() - 10 * len;
            let fifth = begin + 4 * len..begin + 5 * len;
            for at in fifth.step_by(3) {
                let mut flipped = bytes.clone();
                flipped[at] ^= 0x20;
                let (came, lost) = recovered(&BTreeMap::from([(name_of(0), flipped)]));
                let all_but: Vec<u64> = (0..8).chain(10..EVENTS).collect();
                assert_eq!((came, lost), (all_but, 2), "{lie} in version 1: {is_version_1}");
            }
            // A head that is whole says how many were in it.
            for cut in (1..len - record::HEAD).step_by(3) {
                let torn = bytes[..bytes.len() - cut].to_vec();
                let (came, lost) = recovered(&BTreeMap::from([(name_of(0), torn)]));
                assert_eq!((came, lost), ((0..18).collect(), 2), "{lie}: {is_version_1}");
            }
        }
    }
}

/// The maker of the payload knows the sequences and adds a record behind. With the key that does
/// not help. In version 1 it would.
#[test]
fn invariant_7_a_run_of_records_inside_a_payload_is_not_believed_in_version_2() {
    let run = [forged(8), forged(9), forged(10)].concat();
    let disk = SimDisk::new();
    let mut spill = Spill::open(disk.clone(), SETTINGS).unwrap();
    for n in 0..EVENTS {
        let share = share("m", vec![Event::new(&n.to_string(), &run)]);
        spill.append(n, &share, &Body::encode(&share, false).unwrap()).unwrap();
    }
    let whole = disk.files();
    let bytes = &whole[&name_of(0)];
    for at in (key::FILE_HEAD..bytes.len()).step_by(101) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        let (came, lost) = recovered(&BTreeMap::from([(name_of(0), flipped)]));
        assert_eq!((came.len() as u64, lost), (EVENTS - 1, 1));
    }
}

/// A file without its key holds no record that is believed. A record belongs to no file but its
/// own.
#[test]
fn invariant_7_records_of_another_file_are_not_believed() {
    let mut files = spilled(5, false);
    let bytes = files.get_mut(&name_of(0)).unwrap();
    bytes[..key::FILE_HEAD].fill(0);
    let mut spill = Spill::open(SimDisk::of(&files), SETTINGS).unwrap();
    assert_eq!((spill.torn_events(), spill.next()), (1, 0));
    assert!(spill.read().unwrap().is_none());

    let (mut files, others) = (spilled(5, false), spilled(6, false));
    let bytes = files.get_mut(&name_of(0)).unwrap();
    let others = &others[&name_of(0)];
    let half = bytes.len() / 2;
    bytes.truncate(half);
    bytes.extend(&others[half..]);
    let spill = Spill::open(SimDisk::of(&files), SETTINGS).unwrap();
    assert!(spill.next() <= EVENTS / 2);
}

/// Heads are right and bodies are not. Each body is as long as the rest of the file. Looking must
/// not take the square of the file's length.
#[test]
fn invariant_7_looking_for_records_takes_no_longer_than_reading_the_file_a_few_times() {
    let whole = bytes_of(&record(0, 0), &Key::VERSION_1, 0);
    let body = Body::encode(&share("m", vec![Event::new("t", &vec![7; 4 << 20])]), false).unwrap();
    let lures = body.head(&Key::VERSION_1, 2).repeat(100_000);
    let bytes = [whole, lures, vec![0; 4 << 20]].concat();
    let disk = SimDisk::of(&BTreeMap::from([(name_of(0), bytes)]));
    let spill = Spill::open(disk.clone(), SETTINGS).unwrap();
    assert_eq!(spill.next(), 2);
    assert!(disk.bytes_read() < 1 << 30, "{} bytes were read", disk.bytes_read());
}
