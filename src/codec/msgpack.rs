//! A msgpack walker that copies nothing and decodes nothing before it is asked to.
//!
//! Salt packs every event with msgpack (`use_bin_type`). Routing needs one or two values out of a
//! payload of several kilobytes, so the payload stays bytes and this module walks over it.
//! [`Walker::item`] reads one marker, [`Walker::skip`] steps over a whole value, however deep, and
//! [`find`] looks a key up in the top-level map.
//!
//! Skipping keeps one number, the count of values still to come, in place of a stack: a map of `n`
//! pairs adds `2n` to it, a scalar takes one away. Hostile nesting can therefore overflow nothing.
//! A skip that ran out of bytes can go on where it stopped ([`Skip`]), so the framing of the bus
//! looks at every byte of a frame once.
//!
//! Format: <https://github.com/msgpack/msgpack/blob/master/spec.md>.

use thiserror::Error;

use crate::codec::json_string::Text;

/// The fault of a msgpack value, with its offset in the bytes walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The value goes on after the last byte; `missing` more are needed at the least.
    #[error("cut off at byte {at}: at least {missing} more bytes are needed")]
    Truncated {
        /// Offset of the marker that is not complete.
        at: usize,
        /// Bytes needed to get any further.
        missing: usize,
    },
    /// The byte 0xc1, which msgpack never uses.
    #[error("byte {at} is 0xc1, which is not a msgpack marker")]
    Reserved {
        /// Offset of the byte.
        at: usize,
    },
}

/// The reason why bytes are not exactly one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotWhole {
    /// They are no value, or only the beginning of one.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// There is something behind it.
    #[error("it ends at byte {at}, and {more} more bytes follow")]
    Tail {
        /// Offset of the first byte behind the value.
        at: usize,
        /// The number of bytes that follow.
        more: usize,
    },
}

/// One marker with its scalar, or the head of an array or a map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Item<'a> {
    /// `nil`
    Nil,
    /// `true` or `false`
    Bool(bool),
    /// A negative integer, or a positive one that the writer marked as signed.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// A 32 or 64 bit float.
    Float(f64),
    /// Text. Not checked to be UTF-8: Python 2 masters sent bytes under this marker.
    Str(&'a [u8]),
    /// Bytes.
    Bin(&'a [u8]),
    /// An extension: its type and its bytes.
    Ext(i8, &'a [u8]),
    /// The head of an array of so many values.
    Array(u32),
    /// The head of a map of so many pairs.
    Map(u32),
}

impl<'a> Item<'a> {
    /// The bytes of a text or binary value.
    pub fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Item::Str(bytes) | Item::Bin(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The value as text, if it is text or bytes that are UTF-8.
    pub fn text(self) -> Option<&'a str> {
        self.bytes().and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The number of values that follow this item as its content.
    fn children(self) -> u64 {
        match self {
            Item::Array(n) => u64::from(n),
            Item::Map(n) => u64::from(n) * 2,
            _ => 0,
        }
    }
}

/// Reads items one after the other.
#[derive(Debug, Clone)]
pub struct Walker<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walker<'a> {
    /// A walker at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Walker { bytes, at: 0 }
    }

    /// The offset of the next item.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// Reads the next item and steps past it; of an array or a map past its head only.
    ///
    /// Inlined always: handed back through memory, the item's narrow fields would be read as wide
    /// words, for which the processor waits. That was half of the time of making JSON.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub fn item(&mut self) -> Result<Item<'a>, Malformed> {
        let at = self.at;
        let marker = self.be::<1>(at, 1)?[0];
        let item = match marker {
            0x00..=0x7f => Item::Uint(u64::from(marker)),
            0x80..=0x8f => Item::Map(u32::from(marker & 0x0f)),
            0x90..=0x9f => Item::Array(u32::from(marker & 0x0f)),
            0xa0..=0xbf => Item::Str(self.run(at, usize::from(marker & 0x1f))?),
            0xc0 => Item::Nil,
            0xc1 => {
                self.at = at;
                return Err(Malformed::Reserved { at });
            }
            0xc2 => Item::Bool(false),
            0xc3 => Item::Bool(true),
            0xc4 => Item::Bin(self.sized::<1>(at)?),
            0xc5 => Item::Bin(self.sized::<2>(at)?),
            0xc6 => Item::Bin(self.sized::<4>(at)?),
            0xc7 => self.ext_sized::<1>(at)?,
            0xc8 => self.ext_sized::<2>(at)?,
            0xc9 => self.ext_sized::<4>(at)?,
            0xca => Item::Float(f64::from(f32::from_be_bytes(self.be(at, 4)?))),
            0xcb => Item::Float(f64::from_be_bytes(self.be(at, 8)?)),
            0xcc => Item::Uint(u64::from(u8::from_be_bytes(self.be(at, 1)?))),
            0xcd => Item::Uint(u64::from(u16::from_be_bytes(self.be(at, 2)?))),
            0xce => Item::Uint(u64::from(u32::from_be_bytes(self.be(at, 4)?))),
            0xcf => Item::Uint(u64::from_be_bytes(self.be(at, 8)?)),
            0xd0 => Item::Int(i64::from(i8::from_be_bytes(self.be(at, 1)?))),
            0xd1 => Item::Int(i64::from(i16::from_be_bytes(self.be(at, 2)?))),
            0xd2 => Item::Int(i64::from(i32::from_be_bytes(self.be(at, 4)?))),
            0xd3 => Item::Int(i64::from_be_bytes(self.be(at, 8)?)),
            0xd4..=0xd8 => self.ext(at, 1 << (marker - 0xd4))?,
            0xd9 => Item::Str(self.sized::<1>(at)?),
            0xda => Item::Str(self.sized::<2>(at)?),
            0xdb => Item::Str(self.sized::<4>(at)?),
            0xdc => Item::Array(u32::from(u16::from_be_bytes(self.be(at, 2)?))),
            0xdd => Item::Array(u32::from_be_bytes(self.be(at, 4)?)),
            0xde => Item::Map(u32::from(u16::from_be_bytes(self.be(at, 2)?))),
            0xdf => Item::Map(u32::from_be_bytes(self.be(at, 4)?)),
            0xe0..=0xff => Item::Int(i64::from(i8::from_be_bytes([marker]))),
        };
        Ok(item)
    }

    /// Takes the next value if it is text of less than 256 bytes, as most are, and is all there.
    #[inline]
    pub(crate) fn short_text(&mut self) -> Option<Text<'a>> {
        let (&marker, rest) = self.bytes.get(self.at..)?.split_first()?;
        let (head, text) = match marker {
            0xa0..=0xbf => (1, Text::new(rest, usize::from(marker & 0x1f))?),
            0xd9 => {
                let (&len, rest) = rest.split_first()?;
                (2, Text::new(rest, usize::from(len))?)
            }
            _ => return None,
        };
        self.at += head + text.len();
        Some(text)
    }

    /// Steps over the next value, with its contents, and gives its bytes.
    #[inline]
    pub fn skip(&mut self) -> Result<&'a [u8], Malformed> {
        let from = self.at;
        if !self.step_over_small() {
            Skip::default().run(self)?;
        }
        Ok(self.bytes.get(from..self.at).unwrap_or_default())
    }

    /// Steps over the next value, with its contents, and gives its first item.
    #[inline]
    pub(crate) fn whole(&mut self) -> Result<Item<'a>, Malformed> {
        let item = self.item()?;
        self.skip_content(item)?;
        Ok(item)
    }

    /// Steps over a key, and gives its bytes; none if it is neither text nor bytes.
    #[inline]
    pub(crate) fn key(&mut self) -> Result<&'a [u8], Malformed> {
        match self.short_text() {
            Some(text) => Ok(text.bytes()),
            None => self.unusual_key(),
        }
    }

    #[cold]
    fn unusual_key(&mut self) -> Result<&'a [u8], Malformed> {
        Ok(self.whole()?.bytes().unwrap_or_default())
    }

    /// Steps over the next value, if it is a small one and is all there.
    #[inline]
    fn step_over_small(&mut self) -> bool {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(size) = small_size(rest).filter(|size| *size <= rest.len()) else {
            return false;
        };
        self.at += size;
        true
    }

    /// Steps over up to `left` values, as long as they are such, and counts down. The place stays
    /// in a register: each step waits for the one before it, and memory would make that longer.
    fn step_over_small_ones(&mut self, left: &mut u64) {
        let mut rest = self.bytes.get(self.at..).unwrap_or_default();
        let mut to_go = *left;
        while to_go > 0 {
            let behind = small_size(rest).and_then(|size| rest.get(size..));
            let Some(behind) = behind else { break };
            rest = behind;
            to_go -= 1;
        }
        self.at = self.bytes.len() - rest.len();
        *left = to_go;
    }

    /// Steps over the items of an array or a map whose head was read; does nothing for any other
    /// item.
    pub(crate) fn skip_content(&mut self, head: Item<'_>) -> Result<(), Malformed> {
        Skip { left: head.children() }.run(self)
    }

    /// Takes `len` bytes; on failure the walker stands on the marker at `at` again.
    #[inline]
    fn run(&mut self, at: usize, len: usize) -> Result<&'a [u8], Malformed> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(taken) = rest.get(..len) else {
            self.at = at;
            return Err(Malformed::Truncated { at, missing: len - rest.len() });
        };
        self.at += len;
        Ok(taken)
    }

    #[inline]
    fn be<const N: usize>(&mut self, at: usize, len: usize) -> Result<[u8; N], Malformed> {
        debug_assert_eq!(N, len);
        let mut array = [0; N];
        array.copy_from_slice(self.run(at, len)?);
        Ok(array)
    }

    /// Takes the bytes behind a big-endian length of `N` bytes.
    #[inline]
    fn sized<const N: usize>(&mut self, at: usize) -> Result<&'a [u8], Malformed> {
        let len = self.be::<N>(at, N)?.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
        self.run(at, len)
    }

    fn ext(&mut self, at: usize, len: usize) -> Result<Item<'a>, Malformed> {
        let kind = i8::from_be_bytes(self.be(at, 1)?);
        Ok(Item::Ext(kind, self.run(at, len)?))
    }

    fn ext_sized<const N: usize>(&mut self, at: usize) -> Result<Item<'a>, Malformed> {
        let len = self.be::<N>(at, N)?.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
        self.ext(at, len)
    }
}

/// The bytes of the value at the beginning of `rest`, its marker among them, if it has no contents
/// and its first two bytes tell.
#[inline]
fn small_size(rest: &[u8]) -> Option<usize> {
    let marker = *rest.first()?;
    match marker {
        // Two values of three in a state return, without waiting for the table.
        0xa0..=0xbf => Some(1 + usize::from(marker & 0x1f)),
        0xd9 => Some(2 + usize::from(*rest.get(1)?)),
        marker => match SIZES.get(usize::from(marker)) {
            Some(&size) if size > 0 => Some(usize::from(size)),
            _ => None,
        },
    }
}

/// The bytes of a value by its marker, which is among them; 0 if that alone does not tell, and for
/// text, of which [`small_size`] knows. A look into this table costs less than a jump for each
/// marker, which the processor has to guess.
static SIZES: [u8; 256] = sizes();

#[allow(clippy::indexing_slicing)] // it is done by the compiler
const fn sizes() -> [u8; 256] {
    let mut sizes = [0; 256];
    let mut marker = 0u8;
    loop {
        sizes[marker as usize] = match marker {
            // Numbers, empty maps and arrays, nil and truth values.
            0x00..=0x80 | 0x90 | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => 1,
            0xcc | 0xd0 => 2,
            0xcd | 0xd1 => 3,
            0xca | 0xce | 0xd2 => 5,
            0xcb | 0xcf | 0xd3 => 9,
            0xd4..=0xd8 => 2 + (1 << (marker - 0xd4)),
            _ => 0,
        };
        if marker == 0xff {
            return sizes;
        }
        marker += 1;
    }
}

/// A skip over one value that can go on after it ran out of bytes.
#[derive(Debug, Clone)]
pub(crate) struct Skip {
    /// Values still to step over.
    left: u64,
}

impl Default for Skip {
    fn default() -> Self {
        Skip { left: 1 }
    }
}

impl Skip {
    /// Steps on until the value has ended. After [`Malformed::Truncated`] the walker stands on the
    /// marker that was cut off; call again with more bytes behind it.
    pub(crate) fn run(&mut self, walker: &mut Walker<'_>) -> Result<(), Malformed> {
        loop {
            walker.step_over_small_ones(&mut self.left);
            if self.left == 0 {
                return Ok(());
            }
            let item = walker.item()?;
            self.left = (self.left - 1).saturating_add(item.children());
        }
    }

    /// The fewest bytes that the rest of the value can take.
    pub(crate) fn at_least(&self) -> u64 {
        self.left
    }
}

/// The bytes of the value under `key` in the map that `payload` is; `None` where there is no map,
/// no such key, or the bytes end before it.
pub fn find<'a>(payload: &'a [u8], key: &str) -> Option<&'a [u8]> {
    pairs(payload).find_map(|(name, value)| (name == key.as_bytes()).then_some(value))
}

/// The text under `key` in a map.
pub(crate) fn text<'a>(map: &'a [u8], key: &str) -> Option<&'a str> {
    find(map, key).and_then(scalar)?.text()
}

/// The map with another value under `key`, which keeps its place, or comes last.
pub(crate) fn with_value(map: &[u8], key: &str, value: &[u8]) -> Vec<u8> {
    let mut written = MapWriter::default();
    let mut is_there = false;
    for (name, old) in raw_pairs(map) {
        let is_key = is_named(name, key);
        is_there |= is_key;
        written.pair(name, if is_key { value } else { old });
    }
    if !is_there {
        written.value(key, value);
    }
    written.finished()
}

/// The map without these keys.
pub(crate) fn without(map: &[u8], keys: &[&str]) -> Vec<u8> {
    let mut written = MapWriter::default();
    for (name, value) in raw_pairs(map) {
        if !keys.iter().any(|key| is_named(name, key)) {
            written.pair(name, value);
        }
    }
    written.finished()
}

/// True if the msgpack of a key is this text.
fn is_named(name: &[u8], key: &str) -> bool {
    scalar(name).and_then(Item::bytes) == Some(key.as_bytes())
}

/// The pairs of the map `payload`, in order, as far as they are well formed: the key's text, and
/// the bytes of the value. Keys that are not text are passed over.
pub fn pairs(payload: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    raw_pairs(payload)
        .filter_map(|(key, value)| scalar(key).and_then(Item::bytes).map(|name| (name, value)))
}

/// The same as [`pairs`], with the msgpack of every key.
pub(crate) fn raw_pairs(payload: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut walker = Walker::new(payload);
    let mut left = match walker.item() {
        Ok(Item::Map(pairs)) => pairs,
        _ => 0,
    };
    std::iter::from_fn(move || {
        left = left.checked_sub(1)?;
        Some((walker.skip().ok()?, walker.skip().ok()?))
    })
}

/// Checks that `bytes` are exactly one value: nothing is missing, and nothing follows.
pub fn whole(bytes: &[u8]) -> Result<(), NotWhole> {
    let at = Walker::new(bytes).skip()?.len();
    match bytes.len() - at {
        0 => Ok(()),
        more => Err(NotWhole::Tail { at, more }),
    }
}

/// Appends the head of a map of so many pairs, in as few bytes as possible, as every writer does.
pub(crate) fn write_map_head(pairs: u32, out: &mut Vec<u8>) {
    match (u8::try_from(pairs), u16::try_from(pairs)) {
        (Ok(pairs @ 0..=15), _) => out.push(0x80 | pairs),
        (_, Ok(pairs)) => {
            out.push(0xde);
            out.extend(pairs.to_be_bytes());
        }
        _ => {
            out.push(0xdf);
            out.extend(pairs.to_be_bytes());
        }
    }
}

/// The items of the array that `value` is, as far as they are well formed.
pub(crate) fn items(value: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    let mut walker = Walker::new(value);
    let mut left = match walker.item() {
        Ok(Item::Array(items)) => items,
        _ => 0,
    };
    std::iter::from_fn(move || {
        left = left.checked_sub(1)?;
        walker.skip().ok()
    })
}

/// Appends the head of an array of so many items.
pub(crate) fn write_array_head(items: u32, out: &mut Vec<u8>) {
    match (u8::try_from(items), u16::try_from(items)) {
        (Ok(items @ 0..=15), _) => out.push(0x90 | items),
        (_, Ok(items)) => {
            out.push(0xdc);
            out.extend(items.to_be_bytes());
        }
        _ => {
            out.push(0xdd);
            out.extend(items.to_be_bytes());
        }
    }
}

/// Appends a text of less than 4 GiB.
pub(crate) fn write_str(text: &str, out: &mut Vec<u8>) {
    write_text(text.as_bytes(), out);
}

/// Appends a text of less than 4 GiB, which need not be UTF-8.
pub(crate) fn write_text(text: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(text.len()) {
        Ok(len @ 0..=31) => out.push(0xa0 | len),
        _ => write_length([0xd9, 0xda, 0xdb], text.len(), out),
    }
    out.extend_from_slice(text);
}

/// Appends bytes, less than 4 GiB.
pub(crate) fn write_bin(bytes: &[u8], out: &mut Vec<u8>) {
    write_length([0xc4, 0xc5, 0xc6], bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// Appends an extension of less than 4 GiB.
pub(crate) fn write_ext(kind: i8, bytes: &[u8], out: &mut Vec<u8>) {
    match bytes.len() {
        1 => out.push(0xd4),
        2 => out.push(0xd5),
        4 => out.push(0xd6),
        8 => out.push(0xd7),
        16 => out.push(0xd8),
        len => write_length([0xc7, 0xc8, 0xc9], len, out),
    }
    out.extend(kind.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a length behind that of these markers whose length has one, two or four bytes.
fn write_length([one, two, four]: [u8; 3], len: usize, out: &mut Vec<u8>) {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(len), _) => out.extend([one, len]),
        (_, Ok(len)) => {
            out.push(two);
            out.extend(len.to_be_bytes());
        }
        _ => {
            out.push(four);
            out.extend(len.to_be_bytes());
        }
    }
}

/// A map in the making: its head needs to know how many pairs there are.
#[derive(Debug, Default)]
pub(crate) struct MapWriter {
    count: u32,
    pairs: Vec<u8>,
}

impl MapWriter {
    /// A pair whose value is msgpack already.
    pub(crate) fn value(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        self.pairs.extend_from_slice(value);
    }

    /// A pair both of which are msgpack already.
    pub(crate) fn pair(&mut self, key: &[u8], value: &[u8]) {
        self.count += 1;
        self.pairs.extend_from_slice(key);
        self.pairs.extend_from_slice(value);
    }

    /// A pair with a text.
    pub(crate) fn text(&mut self, key: &str, text: &str) {
        self.key(key);
        write_str(text, &mut self.pairs);
    }

    /// A pair with an array of texts.
    pub(crate) fn texts(&mut self, key: &str, texts: &[String]) {
        self.key(key);
        write_array_head(u32::try_from(texts.len()).unwrap_or(u32::MAX), &mut self.pairs);
        for text in texts {
            write_str(text, &mut self.pairs);
        }
    }

    /// A pair with a truth value.
    pub(crate) fn bool(&mut self, key: &str, value: bool) {
        self.key(key);
        self.pairs.push(if value { 0xc3 } else { 0xc2 });
    }

    /// The map.
    pub(crate) fn finished(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.pairs.len() + 5);
        write_map_head(self.count, &mut out);
        out.extend(self.pairs);
        out
    }

    fn key(&mut self, key: &str) {
        self.count += 1;
        write_str(key, &mut self.pairs);
    }
}

/// The scalar that `value` is.
pub fn scalar(value: &[u8]) -> Option<Item<'_>> {
    Walker::new(value).item().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmpv::Value;

    use crate::codec::msgpack::*;

    /// The same as [`Walker::skip`], by way of [`Walker::item`] alone.
    fn skip_by_items(walker: &mut Walker<'_>) -> Result<(), Malformed> {
        let mut left = 1;
        while left > 0 {
            left = left - 1 + walker.item()?.children();
        }
        Ok(())
    }

    #[test]
    fn a_skip_knows_the_size_of_each_value() {
        for marker in 0..=u8::MAX {
            let mut bytes = vec![marker, 2];
            bytes.resize(300, 0);
            for end in 0..40 {
                // The second time it lies within another value.
                for bytes in [&bytes[..end], &[&[0x92, 0x00], &bytes[..end]].concat()] {
                    let (mut skipped, mut walked) = (Walker::new(bytes), Walker::new(bytes));
                    let result = skipped.skip().map(|_| ());
                    assert_eq!(result, skip_by_items(&mut walked), "{marker:#x} in {end} bytes");
                    assert_eq!(skipped.offset(), walked.offset(), "{marker:#x} in {end} bytes");
                }
            }
        }
    }

    fn packed(value: &Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value).unwrap();
        bytes
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(Value::Nil),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,40}".prop_map(Value::from),
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(Value::Binary),
            (any::<i8>(), proptest::collection::vec(any::<u8>(), 0..20))
                .prop_map(|(kind, bytes)| Value::Ext(kind, bytes)),
        ];
        scalar.prop_recursive(4, 60, 20, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..20).prop_map(Value::Array),
                proptest::collection::vec((inner.clone(), inner), 0..20).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn only_exactly_one_value_is_whole(value in any_value(), cut: prop::sample::Index, tail: u8) {
            let mut bytes = packed(&value);
            prop_assert_eq!(whole(&bytes), Ok(()));
            let at = bytes.len();
            let cut = bytes.get(..cut.index(at)).unwrap_or_default();
            prop_assert!(matches!(whole(cut), Err(NotWhole::Malformed(_))));
            bytes.push(tail);
            prop_assert_eq!(whole(&bytes), Err(NotWhole::Tail { at, more: 1 }));
        }

        #[test]
        fn skip_steps_over_exactly_one_value(value in any_value(), tail in any::<u8>()) {
            let mut bytes = packed(&value);
            let len = bytes.len();
            bytes.push(tail);
            let mut walker = Walker::new(&bytes);
            prop_assert_eq!(walker.skip().unwrap().len(), len);
            prop_assert_eq!(walker.offset(), len);
        }

        #[test]
        fn skip_goes_on_wherever_the_bytes_were_cut(value in any_value(), cut in 0.0..1.0f64) {
            let bytes = packed(&value);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let cut = (bytes.len() as f64 * cut) as usize;
            let mut skip = Skip::default();
            let mut walker = Walker::new(&bytes[..cut]);
            let error = skip.run(&mut walker).unwrap_err();
            let truncated = matches!(error, Malformed::Truncated { .. });
            prop_assert!(truncated);
            let mut walker = Walker { bytes: &bytes, at: walker.offset() };
            skip.run(&mut walker).unwrap();
            prop_assert_eq!(walker.offset(), bytes.len());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Walker::new(&bytes).skip();
            let _ = find(&bytes, "fun");
        }
    }

    #[test]
    fn a_length_of_four_gigabytes_is_only_a_number() {
        let error = Walker::new(&[0xdb, 0xff, 0xff, 0xff, 0xff, b'x']).skip().unwrap_err();
        assert_eq!(error, Malformed::Truncated { at: 0, missing: 0xffff_fffe });
        let error = Walker::new(&[0xdf, 0xff, 0xff, 0xff, 0xff]).skip().unwrap_err();
        assert_eq!(error, Malformed::Truncated { at: 5, missing: 1 });
    }

    #[test]
    fn nesting_takes_no_stack() {
        let mut bytes = vec![0x91; 1_000_000];
        bytes.push(0xc0);
        assert_eq!(Walker::new(&bytes).skip().unwrap().len(), bytes.len());
    }

    #[test]
    fn a_key_is_the_bytes_of_its_item() {
        let text = |len| Value::from("k".repeat(len));
        let map = Value::Map(vec![(text(3), Value::Array(vec![text(40), Value::Nil]))]);
        let keys = [
            Value::Nil,
            Value::from(true),
            Value::from(7),
            Value::from(-5),
            Value::from(u64::MAX),
            Value::from(1.5),
            Value::Binary(b"bytes".to_vec()),
            Value::Binary(vec![0xff; 300]),
            Value::Ext(78, b"20261121T23:33:36.123456".to_vec()),
            Value::Array(vec![map.clone(), text(1)]),
            map,
        ];
        let texts = [0, 1, 31, 32, 255, 256, 70_000].map(text);
        for key in keys.iter().chain(&texts) {
            let bytes = packed(key);
            let behind = [&bytes[..], b"\xa1v"].concat();
            for end in (0..bytes.len().min(64)).chain([bytes.len(), behind.len()]) {
                let bytes = &behind[..end];
                let (mut quick, mut walked) = (Walker::new(bytes), Walker::new(bytes));
                let expected = walked.item().and_then(|item| {
                    walked.skip_content(item)?;
                    Ok(item.bytes().unwrap_or_default())
                });
                assert_eq!(quick.key(), expected, "{key} in {end} bytes");
                assert_eq!(quick.offset(), walked.offset(), "{key} in {end} bytes");
            }
        }
    }

    #[test]
    fn finds_a_key_behind_other_values() {
        let payload = packed(&Value::Map(vec![
            (Value::from(7), Value::from("not text")),
            (Value::from("return"), Value::Array(vec![Value::from("fun"), Value::Nil])),
            (Value::from("fun"), Value::from("test.ping")),
        ]));
        let value = find(&payload, "fun").and_then(scalar).and_then(Item::text);
        assert_eq!(value, Some("test.ping"));
        assert_eq!(find(&payload, "jid"), None);
    }
}
