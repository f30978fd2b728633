//! Cuts messages of Salt's side out of a stream: a length of 4 bytes, big-endian, is before each.
//!
//! A length is checked before a byte is allocated for it. A peer that speaks ZeroMQ is known by its
//! first bytes: its greeting begins with 0xff and zeros. No accepted length does.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// The bytes of a length.
pub const PREFIX: usize = 4;

/// The beginning of ZeroMQ's greeting.
const ZMTP: [u8; PREFIX] = [0xff, 0, 0, 0];

/// The reason why a stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PrefixError {
    /// The peer speaks ZeroMQ.
    #[error("the client speaks ZeroMQ")]
    ZeroMq,
    /// A message is announced that is too long.
    #[error("a message of {0} bytes was announced")]
    TooLong(u32),
}

/// Cuts messages out of a stream.
#[derive(Debug)]
pub struct Prefixed {
    max_frame: usize,
    has_begun: bool,
}

impl Prefixed {
    /// At the beginning of a stream of messages of at most `max_frame` bytes.
    pub fn new(max_frame: usize) -> Self {
        Prefixed { max_frame, has_begun: false }
    }

    /// Takes messages of at most so many bytes from now on.
    pub(super) fn take_up_to(&mut self, max_frame: usize) {
        self.max_frame = max_frame;
    }

    /// The length of the next message and its prefix; `None` while that is not known.
    pub fn wanted(&self, buffer: &[u8]) -> Result<Option<usize>, PrefixError> {
        let Some(prefix) = buffer.first_chunk::<PREFIX>() else { return Ok(None) };
        if !self.has_begun && *prefix == ZMTP {
            return Err(PrefixError::ZeroMq);
        }
        let length = u32::from_be_bytes(*prefix);
        match usize::try_from(length) {
            Ok(length) if length <= self.max_frame => Ok(Some(PREFIX + length)),
            _ => Err(PrefixError::TooLong(length)),
        }
    }

    /// Takes the next message, if all of it is there.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, PrefixError> {
        let Some(wanted) = self.wanted(buffer)? else { return Ok(None) };
        if buffer.len() < wanted {
            return Ok(None);
        }
        self.has_begun = true;
        let mut message = buffer.split_to(wanted);
        message.advance(PREFIX);
        Ok(Some(message.freeze()))
    }
}

/// A message with its length before it; `None` if it has no length that fits.
pub(super) fn framed(message: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(message.len()).ok()?;
    Some([&length.to_be_bytes(), message].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(bytes: &[u8]) -> Result<Option<Bytes>, PrefixError> {
        Prefixed::new(1000).next(&mut BytesMut::from(bytes))
    }

    #[test]
    fn messages_are_cut_out_one_by_one() {
        let mut stream = BytesMut::from(&b"\0\0\0\x02ab\0\0\0\0\0\0\0\x01"[..]);
        let mut prefixed = Prefixed::new(1000);
        assert_eq!(prefixed.next(&mut stream), Ok(Some(Bytes::from_static(b"ab"))));
        assert_eq!(prefixed.next(&mut stream), Ok(Some(Bytes::new())));
        assert_eq!(prefixed.next(&mut stream), Ok(None));
        assert_eq!(prefixed.wanted(&stream), Ok(Some(5)));
        assert_eq!(framed(b"ab").unwrap(), b"\0\0\0\x02ab");
    }

    #[test]
    fn invariant_7_a_length_is_judged_before_anything_of_the_message_is_there() {
        assert_eq!(first(b"\xff\xff\xff\xff"), Err(PrefixError::TooLong(u32::MAX)));
        assert_eq!(first(b"\0\0\x03\xe9"), Err(PrefixError::TooLong(1001)));
        assert_eq!(first(b"\0\0\x03\xe8"), Ok(None));
        assert_eq!(first(b"\xff\0\0\0\0\0\0\0\x01\x7f"), Err(PrefixError::ZeroMq));
        assert_eq!(first(b"\xff"), Ok(None));
    }
}
