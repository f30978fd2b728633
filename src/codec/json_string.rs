//! Text as a string of JSON: in quotes, escaped as Python's `json.dumps(…, ensure_ascii=False)`
//! does, with U+FFFD for bytes that are not UTF-8.
//!
//! Text is looked at and copied in blocks of fixed size. Nearly all text is ASCII without anything
//! to escape, and most is shorter than a block. Such a text takes one look at a block, and one copy
//! of it whose size the compiler knows. A block reaches beyond the end of its text, into the bytes
//! that follow in the payload; the surplus is cut off behind the copy.

use wide::u8x16;

/// The size of a block.
const BLOCK: usize = 32;

/// The size of the blocks for the shortest texts, as most keys are.
const HALF: usize = BLOCK / 2;

/// Bytes of room that writing takes behind the text and gives back. A buffer that has them besides
/// its text does not grow for them.
pub(crate) const SLACK: usize = 2 * BLOCK;

/// Text, with the bytes that follow it in the payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    /// The bytes from the first of the text on; at least `len`.
    rest: &'a [u8],
    /// The number of bytes of the text.
    len: usize,
}

impl<'a> Text<'a> {
    /// The first `len` of these bytes, if there are so many.
    #[inline]
    pub(crate) fn new(rest: &'a [u8], len: usize) -> Option<Self> {
        (len <= rest.len()).then_some(Text { rest, len })
    }

    /// The number of bytes of the text.
    #[inline]
    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// The text itself.
    #[inline]
    pub(crate) fn bytes(self) -> &'a [u8] {
        self.rest.get(..self.len).unwrap_or_default()
    }

    /// The text without its first `count` bytes.
    #[inline]
    fn from(self, count: usize) -> Self {
        let rest = self.rest.get(count..).unwrap_or_default();
        Text { rest, len: self.len.saturating_sub(count) }
    }
}

impl<'a> From<&'a [u8]> for Text<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Text { rest: bytes, len: bytes.len() }
    }
}

/// Appends `bytes` as a JSON string; `true` if bytes that are not UTF-8 had to be replaced.
#[inline]
pub(crate) fn write_string(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    write_between(b"\"", bytes.into(), b"\"", out)
}

/// Appends a text, escaped, between `before` and `after`, which have its quotes; `true` if bytes
/// that are not UTF-8 had to be replaced.
///
/// Everything around the text is written in one go with it, so that `out` has to make room once.
#[inline]
pub(crate) fn write_between<const BEFORE: usize, const AFTER: usize>(
    before: &[u8; BEFORE],
    text: Text<'_>,
    after: &[u8; AFTER],
    out: &mut Vec<u8>,
) -> bool {
    if write_block::<BEFORE, AFTER, HALF, { HALF + 8 }>(before, text, after, out)
        || write_block::<BEFORE, AFTER, BLOCK, { BLOCK + 8 }>(before, text, after, out)
    {
        return false;
    }
    write_any(before, text, after, out)
}

/// Does the work of [`write_between`] if the text is shorter than a block of `N` bytes, with as
/// many bytes behind it, and plain; else nothing. `ROOM` has `before` and `after` besides a block.
#[inline]
fn write_block<const BEFORE: usize, const AFTER: usize, const N: usize, const ROOM: usize>(
    before: &[u8; BEFORE],
    text: Text<'_>,
    after: &[u8; AFTER],
    out: &mut Vec<u8>,
) -> bool {
    const { assert!(BEFORE + N + AFTER <= ROOM && ROOM <= SLACK) };
    let Some(block) = text.rest.first_chunk::<N>().filter(|_| text.len < N) else { return false };
    if specials::<N, false>(block) & !(u32::MAX << text.len) != 0 {
        return false;
    }
    // By the remainder, the compiler knows that the room is large enough.
    let len = text.len % N;
    let end = out.len() + BEFORE + len + AFTER;
    out.extend_from_slice(&[0; ROOM]);
    if let Some(room) = out.last_chunk_mut::<ROOM>() {
        put(before, room, 0);
        put(block, room, BEFORE);
        put(after, room, BEFORE + len);
    }
    out.truncate(end);
    true
}

/// Writes bytes at a place of the room, which has enough behind it.
#[inline]
fn put<const N: usize>(bytes: &[u8; N], room: &mut [u8], at: usize) {
    if let Some(place) = room.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = *bytes;
    }
}

/// Does the work of [`write_between`] for any text.
#[inline(never)]
fn write_any<const BEFORE: usize, const AFTER: usize>(
    before: &[u8; BEFORE],
    text: Text<'_>,
    after: &[u8; AFTER],
    out: &mut Vec<u8>,
) -> bool {
    out.reserve(BEFORE + text.len + BLOCK);
    out.extend_from_slice(before);
    let bytes = text.bytes();
    let is_replaced = if is_plain(bytes) {
        out.extend_from_slice(bytes);
        false
    } else {
        let rest = copy::<false>(text, out);
        rest.len > 0 && write_beyond_ascii(rest, out)
    };
    out.extend_from_slice(after);
    is_replaced
}

/// Appends a text that is not ASCII, escaped; `true` if bytes that are not UTF-8 were replaced.
#[inline(never)]
fn write_beyond_ascii(text: Text<'_>, out: &mut Vec<u8>) -> bool {
    let bytes = text.bytes();
    if std::str::from_utf8(bytes).is_ok() {
        copy::<true>(text, out);
        return false;
    }
    for chunk in bytes.utf8_chunks() {
        write_escaped(chunk.valid().as_bytes(), out);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    true
}

/// Appends bytes of text that is UTF-8, escaped.
pub(crate) fn write_escaped(text: &[u8], out: &mut Vec<u8>) {
    copy::<true>(text.into(), out);
}

/// Appends a text, escaped. Text that is not known to be UTF-8 ends at the first byte that is not
/// ASCII. Gives the rest.
#[inline]
fn copy<'a, const IS_UTF8: bool>(mut text: Text<'a>, out: &mut Vec<u8>) -> Text<'a> {
    while text.len > 0 {
        let mut padded = [0; BLOCK];
        let block = text.rest.first_chunk::<BLOCK>().unwrap_or_else(|| {
            // The text ends here, and so do the bytes.
            if let Some(start) = padded.get_mut(..text.rest.len()) {
                start.copy_from_slice(text.rest);
            }
            &padded
        });
        let len = text.len.min(BLOCK);
        let mut places = specials::<BLOCK, IS_UTF8>(block) & (u32::MAX >> (BLOCK - len));
        if places == 0 {
            append(block, len, out);
            text = text.from(len);
            continue;
        }
        // Short lines end in many places of a block; it is looked at once for all of them.
        let mut done = 0;
        while places != 0 {
            let at = places.trailing_zeros() as usize;
            append_run(text.from(done), at - done, out);
            let Some((escape, escape_len)) =
                block.get(at).and_then(|byte| ESCAPES.get(usize::from(*byte)))
            else {
                return text.from(at);
            };
            append(escape, *escape_len, out);
            done = at + 1;
            places &= places - 1;
        }
        append_run(text.from(done), len - done, out);
        text = text.from(len);
    }
    text
}

/// Appends the first `len` bytes of the text, which are less than a block.
#[inline]
fn append_run(text: Text<'_>, len: usize, out: &mut Vec<u8>) {
    match text.rest.first_chunk::<BLOCK>() {
        Some(block) => append(block, len, out),
        None => out.extend_from_slice(text.rest.get(..len).unwrap_or_default()),
    }
}

/// Appends the first `len` of these bytes.
#[inline]
fn append<const N: usize>(bytes: &[u8; N], len: usize, out: &mut Vec<u8>) {
    let end = out.len() + len;
    out.extend_from_slice(bytes);
    out.truncate(end);
}

/// True if the bytes are plain: ASCII without anything to escape. `false` also if they are fewer
/// than a block.
fn is_plain(bytes: &[u8]) -> bool {
    let Some(last) = bytes.last_chunk::<BLOCK>() else { return false };
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    blocks.iter().chain([last]).all(|block| specials::<BLOCK, false>(block) == 0)
}

/// The places of bytes that have to be escaped, as bits; also of those that are not ASCII, unless
/// the text is known to be UTF-8. A block has 32 bytes at the most.
#[inline]
fn specials<const N: usize, const IS_UTF8: bool>(block: &[u8; N]) -> u32 {
    let (halves, _) = block.as_chunks::<HALF>();
    halves.iter().rev().fold(0, |places, half| {
        let bytes = u8x16::new(*half);
        let escaped = bytes.simd_eq(u8x16::splat(b'"'))
            | bytes.simd_eq(u8x16::splat(b'\\'))
            | bytes.simd_le(u8x16::splat(0x1f));
        // The bits are the highest of the bytes.
        let special = if IS_UTF8 { escaped } else { escaped | bytes };
        places << HALF | special.to_bitmask()
    })
}

/// An escape, and its length. It has the size of a word, so that it is copied as one.
type Escape = ([u8; 8], usize);

/// The escapes of ASCII.
#[allow(clippy::cast_lossless, clippy::indexing_slicing)]
static ESCAPES: [Escape; 128] = {
    let mut escapes = [([0; 8], 0); 128];
    let mut byte = 0;
    while byte < 128 {
        escapes[byte as usize] = escape(byte);
        byte += 1;
    }
    escapes
};

const fn escape(byte: u8) -> Escape {
    let letter = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            let (high, low) = (hex_digit(byte >> 4), hex_digit(byte & 0x0f));
            return ([b'\\', b'u', b'0', b'0', high, low, 0, 0], 6);
        }
    };
    ([b'\\', letter, 0, 0, 0, 0, 0, 0], 2)
}

const fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::codec::json_string::*;

    /// The text of any bytes as a look at each character gives it, and if bytes were replaced.
    fn naive(bytes: &[u8]) -> (String, bool) {
        let text = String::from_utf8_lossy(bytes);
        let is_replaced = matches!(text, std::borrow::Cow::Owned(_));
        (serde_json::to_string(&text).unwrap(), is_replaced)
    }

    /// Bytes with few of those that are special, near to each other and to the ends of blocks.
    fn any_text() -> impl Strategy<Value = Vec<u8>> {
        let special = prop_oneof![
            any::<u8>().prop_map(|byte| vec![byte]),
            Just(b"\"".to_vec()),
            Just(b"\\".to_vec()),
            Just(b"\n".to_vec()),
            Just("é".as_bytes().to_vec()),
            Just("\u{1f642}".as_bytes().to_vec()),
        ];
        (0..140_usize, proptest::collection::vec((0..140_usize, special), 0..6)).prop_map(
            |(len, specials)| {
                let mut text = vec![b'x'; len];
                for (at, special) in specials {
                    let at = at.min(text.len());
                    text.splice(at..at, special);
                }
                text
            },
        )
    }

    proptest! {
        #[test]
        fn strings_are_as_a_naive_writer_makes_them(
            bytes in any_text(),
            behind in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let (json, is_replaced) = naive(&bytes);
            let mut out = b"before".to_vec();
            prop_assert_eq!(write_string(&bytes, &mut out), is_replaced);
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("before{json}"));

            // The bytes behind a text change nothing, however many there are.
            let rest = [&bytes[..], &behind].concat();
            let text = Text::new(&rest, bytes.len()).unwrap();
            let mut out = Vec::new();
            prop_assert_eq!(write_between(b", \"", text, b"\": ", &mut out), is_replaced);
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!(", {json}: "));
        }

        #[test]
        fn strings_come_back(text in ".{0,200}") {
            let mut out = Vec::new();
            prop_assert!(!write_string(text.as_bytes(), &mut out));
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn every_byte_of_ascii_is_escaped_as_by_serde() {
        for byte in 0..128 {
            for len in [1, 15, 16, 31, 32, 33, 70] {
                let bytes = [vec![b'x'; len - 1], vec![byte]].concat();
                let mut out = Vec::new();
                assert!(!write_string(&bytes, &mut out));
                assert_eq!(String::from_utf8(out).unwrap(), naive(&bytes).0);
            }
        }
    }

    #[test]
    fn the_slack_is_enough() {
        for len in 0..100 {
            let bytes = vec![b'x'; len];
            let mut out = Vec::with_capacity(len + 2 + SLACK);
            let room = out.capacity();
            write_string(&bytes, &mut out);
            assert_eq!(out.capacity(), room, "of {len} bytes");
        }
    }
}
