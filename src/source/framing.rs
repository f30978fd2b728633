//! Cutting the bus's byte stream into frames.
//!
//! A Salt master publishes each event as a msgpack map `{head: {}, body: TAG \n\n PAYLOAD}`. How
//! the maps follow each other depends on the release, and the first byte of a connection tells:
//!
//! ```text
//! 0x80…0x8f 0xde 0xdf   bare maps, one after the other     before 3006.26, 3007, 3008
//! 0x00…0x7f             4 bytes big-endian length, a map   3006.26 and later 3006
//! 0xff                  ZMTP, ZeroMQ's own protocol        releases up to 2016, re-publishers
//! ```
//!
//! Frames come cut anywhere. The framer remembers how far it has looked, so it looks at each byte
//! once, for reads of any size, and says how many bytes it is waiting for.
//!
//! Seen on masters of 3006.28, 3007.15 and 3008.3; see also `salt.transport.ipc` and
//! `salt.transport.tcp` there.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use crate::codec::msgpack::{Item, Malformed, Skip, Walker};

/// A fault of the stream. The connection is of no more use after any of these.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// No master sends this first byte.
    #[error(
        "the first byte is {0:#04x}, with which no event bus of Salt begins; is this the address of the event bus?"
    )]
    UnknownFraming(u8),
    /// The peer speaks ZMTP.
    #[error("the peer speaks ZeroMQ's protocol")]
    Zmtp,
    /// A frame is longer than allowed.
    #[error(
        "a frame of at least {size} bytes is over max_frame ({max} bytes); raise max_frame if the master's max_event_size is that large"
    )]
    TooLarge {
        /// The length of the frame at the least, in bytes.
        size: u64,
        /// The limit.
        max: usize,
    },
    /// A frame is not msgpack.
    #[error("a frame is not msgpack: {0}")]
    Malformed(#[from] Malformed),
    /// A frame is msgpack, but no map.
    #[error("a frame is msgpack but not a map; the stream is out of step")]
    NotAMap,
}

/// The way in which maps follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Bare msgpack maps.
    Plain,
    /// A length before each map.
    Prefixed,
}

impl Framing {
    /// The framing of a stream that begins with `first`.
    pub(crate) fn detect(first: u8) -> Result<Self, FrameError> {
        match first {
            0x80..=0x8f | 0xde | 0xdf => Ok(Framing::Plain),
            0x00..=0x7f => Ok(Framing::Prefixed),
            0xff => Err(FrameError::Zmtp),
            other => Err(FrameError::UnknownFraming(other)),
        }
    }
}

/// A frame, cut out of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The body of an event: tag, empty line, payload.
    Body(Bytes),
    /// A map of so many bytes that has no body.
    Bodiless(usize),
}

/// Bytes of a length prefix.
const PREFIX: usize = 4;

/// Cuts frames out of one connection's bytes.
#[derive(Debug)]
pub struct Framer {
    framing: Option<Framing>,
    max_frame: usize,
    /// The bytes of the frame at the front of the buffer that were looked at; `skip` tells what is
    /// missing.
    looked_at: usize,
    skip: Skip,
    /// The bytes that the frame at the front needs to get any further.
    wanted: usize,
}

impl Framer {
    /// A framer at the start of a connection, for frames of at most `max_frame` bytes.
    pub fn new(max_frame: usize) -> Self {
        Framer { framing: None, max_frame, looked_at: 0, skip: Skip::default(), wanted: 1 }
    }

    /// The bytes that must be in the buffer before [`Framer::next`] can get any further.
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Moves the bytes that are left into a block of `block` bytes if a large frame had made a much
    /// larger one. So the small frames behind it do not hold the large block.
    pub(crate) fn release(&self, buffer: &mut BytesMut, block: usize) {
        if buffer.capacity() > 2 * block && self.wanted <= block && buffer.len() <= block {
            let mut small = BytesMut::with_capacity(block);
            small.extend_from_slice(buffer);
            *buffer = small;
        }
    }

    /// The framing, once the first byte has been seen.
    pub(crate) fn framing(&self) -> Option<Framing> {
        self.framing
    }

    /// Takes the next whole frame off the front of `buffer`; `None` when it is not all there.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if buffer.len() < self.wanted {
            return Ok(None);
        }
        let framing = match (self.framing, buffer.first()) {
            (Some(framing), _) => framing,
            (None, Some(first)) => *self.framing.insert(Framing::detect(*first)?),
            (None, None) => return Ok(None),
        };
        let complete = match framing {
            Framing::Plain => self.look_at_map(buffer)?,
            Framing::Prefixed => self.look_at_prefix(buffer)?,
        };
        let Some(len) = complete else { return Ok(None) };
        let mut frame = buffer.split_to(len).freeze();
        if framing == Framing::Prefixed {
            frame.advance(PREFIX);
        }
        self.looked_at = 0;
        self.skip = Skip::default();
        self.wanted = 1;
        body_of(&frame).map(Some)
    }

    fn look_at_prefix(&mut self, buffer: &[u8]) -> Result<Option<usize>, FrameError> {
        let Some(prefix) = buffer.first_chunk::<PREFIX>() else {
            self.wanted = PREFIX;
            return Ok(None);
        };
        let size = u32::from_be_bytes(*prefix);
        let len = self.allowed(u64::from(size))? + PREFIX;
        self.wanted = len;
        Ok((buffer.len() >= len).then_some(len))
    }

    fn look_at_map(&mut self, buffer: &[u8]) -> Result<Option<usize>, FrameError> {
        // The first byte decides, since a stream out of step may announce any number of megabytes.
        if !buffer.first().is_some_and(|first| Framing::detect(*first) == Ok(Framing::Plain)) {
            return Err(FrameError::NotAMap);
        }
        let mut walker = Walker::new(buffer.get(self.looked_at..).unwrap_or_default());
        let outcome = self.skip.run(&mut walker);
        self.looked_at += walker.offset();
        let missing = match outcome {
            Ok(()) => {
                self.allowed(self.looked_at as u64)?;
                return Ok(Some(self.looked_at));
            }
            Err(Malformed::Truncated { missing, .. }) => missing as u64,
            Err(Malformed::Reserved { .. }) => {
                return Err(Malformed::Reserved { at: self.looked_at }.into());
            }
        };
        let at_hand = buffer.len() as u64;
        // Each value that is still to come takes a byte at the least.
        self.allowed((at_hand + missing).max(self.looked_at as u64 + self.skip.at_least()))?;
        self.wanted = self.allowed(at_hand + missing)?;
        Ok(None)
    }

    fn allowed(&self, size: u64) -> Result<usize, FrameError> {
        match usize::try_from(size) {
            Ok(size) if size <= self.max_frame => Ok(size),
            _ => Err(FrameError::TooLarge { size, max: self.max_frame }),
        }
    }
}

fn body_of(frame: &Bytes) -> Result<Frame, FrameError> {
    let mut walker = Walker::new(frame);
    let Item::Map(pairs) = walker.item()? else { return Err(FrameError::NotAMap) };
    for _ in 0..pairs {
        let key = Walker::new(walker.skip()?).item()?;
        let is_body = key.bytes() == Some(b"body");
        let value = Walker::new(walker.skip()?).item()?;
        if let (true, Some(body)) = (is_body, value.bytes()) {
            return Ok(Frame::Body(frame.slice_ref(body)));
        }
    }
    Ok(Frame::Bodiless(frame.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1 << 20;

    fn map(body: &[u8], text: bool) -> Vec<u8> {
        let mut map = b"\x82\xa4head\x80\xa4body".to_vec();
        map.push(if text { 0xdb } else { 0xc6 });
        map.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        map.extend(body);
        map
    }

    fn prefixed(map: &[u8]) -> Vec<u8> {
        [&u32::try_from(map.len()).unwrap().to_be_bytes(), map].concat()
    }

    /// All bodies of a stream that comes in pieces of these sizes.
    fn bodies(stream: &[u8], mut cuts: impl Iterator<Item = usize>) -> Vec<Bytes> {
        let mut framer = Framer::new(MAX);
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        let mut rest = stream;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(cuts.next().unwrap_or(1).clamp(1, rest.len()));
            buffer.extend_from_slice(piece);
            rest = behind;
            while let Some(frame) = framer.next(&mut buffer).unwrap() {
                let Frame::Body(body) = frame else { panic!("no body") };
                found.push(body);
            }
        }
        assert!(buffer.is_empty());
        found
    }

    proptest! {
        #[test]
        fn frames_come_out_whole_however_they_are_cut(
            sent in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..20),
            text: bool,
            with_prefix: bool,
            cuts in proptest::collection::vec(1..400usize, 1..100),
        ) {
            let stream: Vec<u8> = sent
                .iter()
                .flat_map(|body| {
                    let map = map(body, text);
                    if with_prefix { prefixed(&map) } else { map }
                })
                .collect();
            let found = bodies(&stream, cuts.into_iter().cycle());
            prop_assert_eq!(found, sent);
        }
    }

    #[test]
    fn a_frame_of_many_reads_is_looked_at_once() {
        let stream = map(&vec![b'x'; MAX - 100], false);
        let mut framer = Framer::new(MAX);
        let mut buffer = BytesMut::from(&stream[..40]);
        assert_eq!(framer.next(&mut buffer), Ok(None));
        assert_eq!(framer.wanted(), stream.len());
        assert_eq!(framer.looked_at, b"\x82\xa4head\x80\xa4body".len());
    }

    #[test]
    fn errors_say_what_the_stream_is() {
        let error = |bytes: &[u8]| Framer::new(MAX).next(&mut BytesMut::from(bytes)).unwrap_err();
        assert_eq!(error(b"\xff\0\0\0"), FrameError::Zmtp);
        assert_eq!(error(b"\xc7abc"), FrameError::UnknownFraming(0xc7));
        let http = FrameError::TooLarge { size: 0x4854_5450, max: MAX };
        assert_eq!(error(b"HTTP/1.1 400 Bad Request"), http);
        let long = FrameError::TooLarge { size: 0xffff_ffff + 17, max: MAX };
        assert_eq!(error(b"\x82\xa4head\x80\xa4body\xc6\xff\xff\xff\xff"), long);
        let many = FrameError::TooLarge { size: 5 + 2 * 0xffff_ffff, max: MAX };
        assert_eq!(error(b"\xdf\xff\xff\xff\xff"), many);
        assert_eq!(error(b"\x81\xa1x\xc1"), FrameError::Malformed(Malformed::Reserved { at: 3 }));
        assert_eq!(error(b"\0\0\0\x01\x07"), FrameError::NotAMap);
    }

    #[test]
    fn a_stream_out_of_step_is_noticed_at_once() {
        let mut stream = BytesMut::from(&map(b"t\n\n\x80", false)[..]);
        stream.extend_from_slice(b"\xdb\0\x0f\0\0 a long text follows");
        let mut framer = Framer::new(MAX);
        assert!(matches!(framer.next(&mut stream), Ok(Some(Frame::Body(_)))));
        assert_eq!(framer.next(&mut stream), Err(FrameError::NotAMap));
    }

    #[test]
    fn only_the_key_body_is_the_body() {
        for stream in
            [&b"\x81\xa6nobody\xc4\x04t\n\n\x80"[..], b"\x81\x91\xa4body\xc4\x04t\n\n\x80"]
        {
            let mut framer = Framer::new(MAX);
            let frame = framer.next(&mut BytesMut::from(stream)).unwrap();
            assert_eq!(frame, Some(Frame::Bodiless(stream.len())));
        }
    }

    #[test]
    fn a_frame_of_100_mebibytes_is_looked_at_once() {
        const SIZE: usize = 100 << 20;
        let head = map(&[], false);
        let (head, _) = head.split_at(head.len() - 4);
        let mut framer = Framer::new(SIZE + 100);
        let mut buffer = BytesMut::with_capacity(SIZE + 100);
        buffer.extend_from_slice(head);
        buffer.extend_from_slice(&u32::try_from(SIZE).unwrap().to_be_bytes());
        let whole = buffer.len() + SIZE;
        let mut looks = 0;
        while buffer.len() < whole {
            // The wanted length does not change, and the framer walks over no byte again.
            if buffer.len() >= framer.wanted() {
                looks += 1;
            }
            assert_eq!(framer.next(&mut buffer), Ok(None));
            assert_eq!(framer.wanted(), whole);
            assert_eq!(framer.looked_at, head.len() - 1);
            buffer.resize((buffer.len() + (64 << 10)).min(whole), b'x');
        }
        assert_eq!(looks, 1);
        assert!(
            matches!(framer.next(&mut buffer), Ok(Some(Frame::Body(body))) if body.len() == SIZE)
        );
    }

    #[test]
    fn a_map_without_a_body_is_passed_over() {
        let mut stream = BytesMut::from(&b"\x81\xa4head\x80"[..]);
        stream.extend_from_slice(&map(b"t\n\n\x80", true));
        let mut framer = Framer::new(MAX);
        assert_eq!(framer.next(&mut stream), Ok(Some(Frame::Bodiless(7))));
        let body = Frame::Body(Bytes::from_static(b"t\n\n\x80"));
        assert_eq!(framer.next(&mut stream), Ok(Some(body)));
    }

    #[test]
    fn small_frames_do_not_hold_the_block_of_a_large_one_before_them() {
        let mut framer = Framer::new(MAX);
        let mut buffer = BytesMut::with_capacity(MAX);
        buffer.extend_from_slice(&map(&vec![b'x'; MAX / 2], false));
        let small = map(b"t\n\n\x80", false);
        buffer.extend_from_slice(&small[..5]);
        assert!(matches!(framer.next(&mut buffer), Ok(Some(Frame::Body(_)))));
        assert_eq!(framer.next(&mut buffer), Ok(None));
        framer.release(&mut buffer, 1000);
        assert!(buffer.capacity() < 2000);
        buffer.extend_from_slice(&small[5..]);
        let body = Frame::Body(Bytes::from_static(b"t\n\n\x80"));
        assert_eq!(framer.next(&mut buffer), Ok(Some(body)));
    }
}
