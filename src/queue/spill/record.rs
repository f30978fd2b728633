//! A record of the spill: the events of one chunk that one sink wants.
//!
//! ```text
//! head, 44 bytes, little-endian
//!   0  marker      4  a part of the file's key; in version 1 "\xa5SR\x01"
//!   4  flags       4  bit 0: the body is compressed with zstd; bit 1: the events have their ids;
//!                  bit 2: the master vouches for the events ([`Authority`])
//!   8  length      4  bytes of the body as stored
//!  12  plain       4  bytes of the body before compression
//!  16  events      4  how many events the body holds, at least 1
//!  20  sequence    8  place of the first event in the sink's queue
//!  28  received    8  when the events were read, in microseconds since 1970
//!  36  body crc    4  CRC32C of the body as stored
//!  40  head crc    4  CRC32C of the file's key and the 40 bytes before; in version 1 without key
//! body
//!   source      2  length, then the source's name
//!   master      2  length, then the master's id
//!   per event  16  with bit 1 of the flags: the event's id, the most significant byte first
//!               4  length, then the frame: tag, empty line, payload
//! ```
//!
//! An id is the hash of the frame and is not written, unless an event came with one.
//!
//! The sequence is the sink's own and stands in the head alone, so that sinks that take the same
//! events share one encoded body and its checksum. The head has a checksum of its own: a length is
//! believed, and memory set aside for it, only after the check.
//!
//! The head is tied to its file by the [`Key`], so that nothing inside of a payload can pass for a
//! record. The body's checksum needs no key: it stands in the head.

use std::io::IoSlice;
use std::sync::{Arc, OnceLock};

use bytes::{Buf, Bytes};
use thiserror::Error;

use crate::event::chunk::{Chunk, Share};
use crate::event::{Authority, Event, EventId, Origin};
use crate::queue::spill::key::Key;

/// The least that an event takes in a body: its length, an empty tag and its end.
pub(super) const EVENT_MIN: u64 = 6;

/// The number of bytes that zstd makes of one, at most: a block of 128 KiB is at least 4 bytes.
pub(super) const ZSTD_MAX: u64 = 1 << 15;

/// Bytes of a head.
pub(crate) const HEAD: usize = 44;

const ZSTD: u32 = 1;

const IDS: u32 = 2;

const BY_MASTER: u32 = 4;

/// Bytes of an id.
const ID: usize = 16;

/// The effort of zstd: its fastest ordinary level.
const ZSTD_LEVEL: i32 = 1;

/// The most that a body may be, before compression too.
pub(crate) const MAX_BODY: usize = 1 << 30;

/// Frames of so many bytes are written without a copy. Smaller ones are cheaper to copy than to
/// pass to the kernel one by one.
const LARGE: usize = 1 << 10;

/// The body of a record and what its head says of it.
#[derive(Debug)]
pub struct Body {
    /// The pieces of the body, in order. Large frames are not copied.
    pieces: Vec<Bytes>,
    length: u32,
    plain: u32,
    events: u32,
    received: u64,
    crc: u32,
    flags: u32,
}

/// The bodies of one chunk, made by the first sink that wants one and shared by the others.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    plain: OnceLock<Arc<Body>>,
    compressed: OnceLock<Arc<Body>>,
}

impl Encoded {
    /// The body of `share`, which is the same for every sink that holds this.
    pub(crate) fn body(&self, share: &Share, compress: bool) -> Result<Arc<Body>, TooLarge> {
        let made = if compress { &self.compressed } else { &self.plain };
        if let Some(body) = made.get() {
            return Ok(Arc::clone(body));
        }
        let body = Arc::new(Body::encode(share, compress)?);
        // Another sink may have been quicker, with the same body.
        Ok(Arc::clone(made.get_or_init(|| body)))
    }
}

/// The reason why a share cannot be a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{0} bytes of events are too many for one record")]
pub struct TooLarge(usize);

/// The fault of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Damage {
    /// The bytes end before the record does.
    #[error("the record is cut off")]
    Cut,
    /// The head is none.
    #[error("the head is damaged")]
    Head,
    /// The body does not match its checksum, or is none.
    #[error("the body is damaged")]
    Body,
}

impl Body {
    /// Encodes the events of a share.
    pub fn encode(share: &Share, compress: bool) -> Result<Self, TooLarge> {
        let has_ids = share.events().any(|event| event.given_id().is_some());
        let before = if has_ids { ID + 4 } else { 4 };
        let frames: usize = share.events().map(|event| before + event.frame().len()).sum();
        let origin = share.origin();
        let size = 4 + origin.source.len() + origin.master_id.len() + frames;
        let plain = u32::try_from(size).ok().filter(|_| size <= MAX_BODY).ok_or(TooLarge(size))?;
        let mut pieces = Pieces::default();
        for name in [&origin.source, &origin.master_id] {
            let name = name.as_bytes().get(..name.len().min(0xffff)).unwrap_or_default();
            let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
            pieces.copied.extend(length.to_le_bytes());
            pieces.copied.extend_from_slice(name);
        }
        for event in share.events() {
            if has_ids {
                pieces.copied.extend(event.id().to_bytes());
            }
            let length = u32::try_from(event.frame().len()).unwrap_or(u32::MAX);
            pieces.copied.extend(length.to_le_bytes());
            pieces.push(event.frame());
        }
        let mut pieces = pieces.end();
        let events = u32::try_from(share.len()).map_err(|_| TooLarge(size))?;
        let (mut flags, mut length) = (if has_ids { IDS } else { 0 }, plain);
        if share.authority() == Authority::Master {
            flags |= BY_MASTER;
        }
        if compress {
            // A body that does not shrink is kept as it is.
            let packed = zstd::bulk::compress(&pieces.concat(), ZSTD_LEVEL);
            if let Ok(packed) = packed
                && let Some(shorter) = u32::try_from(packed.len()).ok().filter(|len| *len < plain)
            {
                (length, pieces) = (shorter, vec![packed.into()]);
                flags |= ZSTD;
            }
        }
        let crc = pieces.iter().fold(0, |crc, piece| crc32c::crc32c_append(crc, piece));
        let received = share.received();
        Ok(Body { pieces, length, plain, events, received, crc, flags })
    }

    /// The head of the record in a file with this key, where its first event has this sequence.
    pub fn head(&self, key: &Key, sequence: u64) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let fields = [
            &key.marker()[..],
            &self.flags.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.plain.to_le_bytes(),
            &self.events.to_le_bytes(),
            &sequence.to_le_bytes(),
            &self.received.to_le_bytes(),
            &self.crc.to_le_bytes(),
        ];
        let (checked, crc) = head.split_at_mut(HEAD - 4);
        let mut rest = &mut *checked;
        for field in fields {
            let (place, behind) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = behind;
        }
        crc.copy_from_slice(&key.checksum(checked).to_le_bytes());
        head
    }

    /// The bytes to write: the head, and the body behind it.
    pub fn slices<'a>(&'a self, head: &'a [u8; HEAD]) -> Vec<IoSlice<'a>> {
        let mut slices = Vec::with_capacity(1 + self.pieces.len());
        slices.push(IoSlice::new(head));
        slices.extend(self.pieces.iter().map(|piece| IoSlice::new(piece)));
        slices
    }

    /// The bytes of the whole record.
    pub fn record_len(&self) -> u64 {
        HEAD as u64 + u64::from(self.length)
    }
}

/// A body in the making.
#[derive(Default)]
struct Pieces {
    /// Payloads that are too small to be pieces of their own.
    copied: Vec<u8>,
    /// The other pieces, each with how much of `copied` stands before it.
    large: Vec<(usize, Bytes)>,
}

impl Pieces {
    fn push(&mut self, frame: &Bytes) {
        if frame.len() < LARGE {
            self.copied.extend_from_slice(frame);
        } else {
            self.large.push((self.copied.len(), frame.clone()));
        }
    }

    fn end(self) -> Vec<Bytes> {
        let mut rest = Bytes::from(self.copied);
        let mut pieces = Vec::with_capacity(2 * self.large.len() + 1);
        let mut before = 0;
        for (end, frame) in self.large {
            pieces.push(rest.split_to(end - before));
            pieces.push(frame);
            before = end;
        }
        pieces.push(rest);
        pieces
    }
}

/// A head whose checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    flags: u32,
    /// Bytes of the body as stored.
    pub(crate) length: usize,
    plain: usize,
    /// Events in the body.
    pub(crate) events: u64,
    /// Sequence of the first event.
    pub(crate) sequence: u64,
    /// The time when the events were read, in microseconds since 1970.
    pub(crate) received: u64,
    crc: u32,
}

impl Head {
    /// Reads a head of a file with this key and checks it.
    pub(crate) fn read(key: &Key, bytes: &[u8]) -> Result<Self, Damage> {
        let head = bytes.first_chunk::<HEAD>().ok_or(Damage::Cut)?;
        let (checked, crc) = head.split_at(HEAD - 4);
        let mut rest = checked;
        if checked.get(..4) != Some(key.marker()) || key.checksum(checked).to_le_bytes() != crc {
            return Err(Damage::Head);
        }
        rest.advance(4);
        let size = |size: u32| usize::try_from(size).unwrap_or(usize::MAX);
        let head = Head {
            flags: rest.get_u32_le(),
            length: size(rest.get_u32_le()),
            plain: size(rest.get_u32_le()),
            events: u64::from(rest.get_u32_le()),
            sequence: rest.get_u64_le(),
            received: rest.get_u64_le(),
            crc: rest.get_u32_le(),
        };
        head.is_sane().then_some(head).ok_or(Damage::Head)
    }

    /// The sizes go together. This bounds all counts and allocations that go by them.
    fn is_sane(&self) -> bool {
        let (length, plain) = (self.length as u64, self.plain as u64);
        let makes = if self.flags & ZSTD == 0 { length } else { length.saturating_mul(ZSTD_MAX) };
        self.length <= MAX_BODY
            && self.plain <= MAX_BODY
            && plain <= makes
            && (1..=plain / EVENT_MIN).contains(&self.events)
    }

    /// The sequence behind the last event.
    pub(crate) fn end(&self) -> u64 {
        self.sequence.saturating_add(self.events)
    }

    /// Bytes of the whole record.
    pub(crate) fn record_len(&self) -> u64 {
        (HEAD + self.length) as u64
    }

    /// The body matches its checksum.
    pub(crate) fn matches(&self, body: &[u8]) -> bool {
        body.len() == self.length && crc32c::crc32c(body) == self.crc
    }

    /// The events of the body.
    pub(crate) fn decode(&self, stored: Bytes) -> Result<Share, Damage> {
        if !self.matches(&stored) {
            return Err(Damage::Body);
        }
        let body = match self.flags & ZSTD {
            0 => stored,
            _ => {
                let plain = zstd::bulk::decompress(&stored, self.plain);
                Bytes::from(plain.map_err(|_| Damage::Body)?)
            }
        };
        let share = self.events_in(body);
        share.filter(|share| share.len() as u64 == self.events).ok_or(Damage::Body)
    }

    fn events_in(&self, mut body: Bytes) -> Option<Share> {
        let source = name(&mut body)?;
        let master_id = name(&mut body)?;
        let mut events = Vec::new();
        while !body.is_empty() {
            let mut given = None;
            if self.flags & IDS != 0 {
                given = Some(EventId::from_bytes(*body.first_chunk::<ID>()?));
                body.advance(ID);
            }
            let len = usize::try_from(body.try_get_u32_le().ok()?).ok()?;
            if len > body.len() {
                return None;
            }
            events.push(Event::parse(body.split_to(len)).ok()?.with_id(given));
        }
        let authority = match self.flags & BY_MASTER {
            0 => Authority::Bus,
            _ => Authority::Master,
        };
        let origin = Arc::new(Origin { source, master_id });
        let chunk = Chunk::new(origin, self.received, events).vouched_for_by(authority);
        Some(Share::all(Arc::new(chunk)))
    }
}

fn name(body: &mut Bytes) -> Option<String> {
    let len = usize::from(body.try_get_u16_le().ok()?);
    let name = (len <= body.len()).then(|| body.split_to(len))?;
    Some(String::from_utf8_lossy(&name).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::queue::spill::record::*;

    fn share(payloads: &[Vec<u8>]) -> Share {
        vouched(payloads, Authority::Bus)
    }

    fn vouched(payloads: &[Vec<u8>], authority: Authority) -> Share {
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "mäster".into() });
        let events = payloads.iter().map(|payload| Event::new("a/b", payload)).collect();
        Share::all(Arc::new(Chunk::new(origin, 17, events).vouched_for_by(authority)))
    }

    /// A head of an older release has no bit for it.
    #[test]
    fn what_was_written_before_is_vouched_for_by_nobody_but_the_bus() {
        let record = record(&share(&[vec![7]]), false);
        assert_eq!(record[4] & 4, 0);
        let read = Head::read(&KEY, &record).unwrap().decode(Bytes::from(record).slice(HEAD..));
        assert_eq!(read.unwrap().authority(), Authority::Bus);
    }

    const KEY: Key = Key::VERSION_1;

    fn record(share: &Share, compress: bool) -> Vec<u8> {
        let body = Body::encode(share, compress).unwrap();
        body.slices(&body.head(&KEY, 41)).iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn ids_that_events_came_with_come_back() {
        let origin = Arc::new(Origin { source: "topic".into(), master_id: "m".into() });
        let given = [Some(EventId(7)), None, Some(EventId(u128::MAX))];
        let events = given.map(|id| Event::new("a/b", b"\xa3abc").with_id(id)).into();
        let share = Share::all(Arc::new(Chunk::new(origin, 17, events)));
        let ids = |share: &Share| share.events().map(Event::id).collect::<Vec<_>>();
        for compress in [false, true] {
            let record = record(&share, compress);
            let read = Head::read(&KEY, &record).unwrap().decode(Bytes::from(record).slice(HEAD..));
            assert_eq!(ids(&read.unwrap()), ids(&share));
        }
    }

    fn payloads(share: &Share) -> Vec<Vec<u8>> {
        share.events().map(|event| event.payload().to_vec()).collect()
    }

    proptest! {
        #[test]
        fn records_come_back(
            sent in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20),
            compress: bool,
            by_master: bool,
        ) {
            let authority = if by_master { Authority::Master } else { Authority::Bus };
            let share = vouched(&sent, authority);
            let record = record(&share, compress);
            let head = Head::read(&KEY, &record).unwrap();
            prop_assert_eq!((head.sequence, head.end()), (41, 41 + sent.len() as u64));
            let read = head.decode(Bytes::from(record).slice(HEAD..)).unwrap();
            prop_assert_eq!(payloads(&read), sent);
            prop_assert_eq!(read.origin(), share.origin());
            prop_assert_eq!(read.received(), 17);
            prop_assert_eq!(read.authority(), authority);
        }

        #[test]
        fn any_flipped_bit_is_noticed(bit in 0..8 * 200usize, compress: bool) {
            let mut record = record(&share(&[vec![7; 300], vec![9; 100]]), compress);
            let bit = bit % (record.len() * 8);
            record[bit / 8] ^= 1 << (bit % 8);
            let damaged = match Head::read(&KEY, &record) {
                Err(_) => true,
                Ok(head) => head.decode(Bytes::from(record).slice(HEAD..)).is_err(),
            };
            prop_assert!(damaged);
        }

        #[test]
        fn random_bytes_are_no_record(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(Head::read(&KEY, &bytes).is_err());
        }
    }
}
