//! msgpack to JSON, total: every payload becomes one JSON value, even a damaged one.
//!
//! The text is that of Python's `json.dumps(…, ensure_ascii=False)`, with `": "` and `", "` as
//! separators, because readers of Salt's tables match on it (`LIKE '%"fun": "test.ping"%'`). Values
//! that Python cannot write, or writes as something that is not JSON, become:
//!
//! | payload | JSON |
//! |---|---|
//! | bytes, or text that is not UTF-8 | a string, U+FFFD for bad bytes ([`JsonLosses::replaced`]) |
//! | Salt's date (ext 78) | a string, `2026-11-21T23:33:36.123456`; no fraction of zero |
//! | msgpack's timestamp (ext -1) | a string, `2026-11-21T23:33:36.123456Z` |
//! | any other extension | its bytes as a string |
//! | NaN and the infinities | `null` |
//! | a map key that is no string | the text of Python (`1`, `true`, `null`), of a map its JSON |
//! | nesting deeper than [`MAX_DEPTH`] | `null`; counted in [`JsonLosses::cut`] |
//! | keys in keys deeper than [`MAX_KEY_DEPTH`] | the same |
//! | arrays and maps as keys beyond 16 KiB of payload | the same |
//! | bytes that end too early, or byte 0xc1 | what was there, closed ([`JsonLosses::torn`]) |
//!
//! JSON may be many times as long as its payload: a control character takes six bytes. JSON that
//! would be too long to hold is handed on in pieces ([`write_in_pieces`]).
//!
//! Integers keep all 64 bits. Repeated map keys are all written, and readers take the last, as
//! Python's decoder does.

use std::borrow::Cow;

pub(crate) use crate::codec::json_string::{SLACK, write_string};
use crate::codec::json_string::{Text, write_between, write_escaped};
use crate::codec::msgpack::{Item, Malformed, Walker};

/// The deepest nesting of arrays and maps; JSON readers of the stores stop at about this depth.
pub const MAX_DEPTH: usize = 128;

/// The losses of a payload that became JSON, as counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct JsonLosses {
    /// Strings in which bytes that are not UTF-8 were replaced by U+FFFD.
    pub(crate) replaced: u64,
    /// Values cut because they were nested too deep.
    pub cut: u64,
    /// Payloads that ended early or held a byte that is not msgpack.
    pub torn: u64,
}

impl std::ops::AddAssign for JsonLosses {
    fn add_assign(&mut self, other: JsonLosses) {
        self.replaced += other.replaced;
        self.cut += other.cut;
        self.torn += other.torn;
    }
}

/// The deepest nesting of arrays and maps as keys of maps. A key in a key is escaped once more for
/// each map around it, and each time its backslashes double. Without a limit a payload of a hundred
/// bytes could become more text than there is memory.
pub(crate) const MAX_KEY_DEPTH: usize = 4;

/// The bytes of payload for all arrays and maps that are keys of maps. Keys for which there is no
/// room are cut. A byte of a key may become 37, a byte of anything else eight at the most.
pub(crate) const MAX_KEY_BYTES: usize = 16 << 10;

/// The bytes from which JSON in the making is handed on, where it is not held whole.
const PIECE: usize = 64 << 10;

/// Appends the JSON of the value at the start of `payload` to `out`.
pub fn write(payload: &[u8], out: &mut Vec<u8>) -> JsonLosses {
    Writer::new(payload, out, None).write()
}

/// Writes like [`write`], but hands `out` to `take` and empties it whenever it has grown to some 64
/// KiB. The rest is in it at the end.
pub(crate) fn write_in_pieces(
    payload: &[u8],
    out: &mut Vec<u8>,
    take: &mut dyn FnMut(&[u8]),
) -> JsonLosses {
    Writer::new(payload, out, Some(take)).write()
}

/// The text that the JSON has in place of a map's key, of the key's msgpack, at this depth of
/// arrays and maps. `None` if the key is cut or torn, because its text would then name another key.
pub(crate) fn key_text(key: &[u8], depth: usize) -> Option<Cow<'_, [u8]>> {
    let lossy = |bytes| match String::from_utf8_lossy(bytes) {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    };
    let mut text = Vec::new();
    let mut writer = Writer::new(key, &mut text, None);
    let item = writer.walker.item().ok()?;
    match item {
        Item::Str(bytes) | Item::Bin(bytes) => return Some(lossy(bytes)),
        Item::Ext(kind, bytes) => {
            let text = ext_text(kind, bytes).map(|text| Cow::Owned(text.into_bytes()));
            return Some(text.unwrap_or_else(|| lossy(bytes)));
        }
        Item::Float(float) if !float.is_finite() => {
            return Some(Cow::Borrowed(not_finite(float)));
        }
        Item::Array(_) | Item::Map(_) if !writer.has_room_for_key(item) => return None,
        _ => {}
    }
    writer.key_depth = 1;
    writer.written(item, depth).ok()?;
    (writer.losses.cut == 0).then_some(Cow::Owned(text))
}

/// The name that a float which is no number has as a key.
fn not_finite(float: f64) -> &'static [u8] {
    match float {
        f64::INFINITY => b"Infinity",
        f64::NEG_INFINITY => b"-Infinity",
        _ => b"NaN",
    }
}

/// Writes like [`write_string`], in pieces like [`write_in_pieces`].
pub(crate) fn write_string_in_pieces(
    bytes: &[u8],
    out: &mut Vec<u8>,
    take: &mut dyn FnMut(&[u8]),
) -> bool {
    let mut is_replaced = false;
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        for part in chunk.valid().as_bytes().chunks(PIECE) {
            write_escaped(part, out);
            hand_on(out, take);
        }
        if !chunk.invalid().is_empty() {
            is_replaced = true;
            out.extend_from_slice("\u{fffd}".as_bytes());
            hand_on(out, take);
        }
    }
    out.push(b'"');
    is_replaced
}

fn hand_on(out: &mut Vec<u8>, take: &mut dyn FnMut(&[u8])) {
    if out.len() >= PIECE {
        take(out);
        out.clear();
    }
}

/// The receiver of pieces.
type Take<'o> = &'o mut dyn FnMut(&[u8]);

struct Writer<'a, 'o> {
    walker: Walker<'a>,
    out: &'o mut Vec<u8>,
    losses: JsonLosses,
    /// The number of keys that are arrays or maps and that the walker is in.
    key_depth: usize,
    /// Bytes of payload that such keys may still take.
    key_bytes: usize,
    /// The receiver of `out` from time to time, if there is one.
    take: Option<Take<'o>>,
    /// The length of `out`, and of a string, from which it is handed on.
    piece: usize,
}

impl<'a, 'o> Writer<'a, 'o> {
    fn new(payload: &'a [u8], out: &'o mut Vec<u8>, take: Option<Take<'o>>) -> Self {
        let (walker, losses) = (Walker::new(payload), JsonLosses::default());
        let piece = if take.is_some() { PIECE } else { usize::MAX };
        Writer { walker, out, losses, key_depth: 0, key_bytes: MAX_KEY_BYTES, take, piece }
    }

    fn write(mut self) -> JsonLosses {
        // The losses tell the same as this result.
        let _ = self.value(0);
        self.losses
    }

    /// Hands on the JSON so far, if it is long enough and does not end within a key.
    fn hand_on(&mut self) {
        if self.out.len() >= self.piece
            && self.key_depth == 0
            && let Some(take) = &mut self.take
        {
            hand_on(self.out, &mut **take);
        }
    }

    /// There is room for an array or a map as a key, whose head was just read.
    fn has_room_for_key(&mut self, head: Item<'_>) -> bool {
        let before = self.walker.offset();
        let mut walker = self.walker.clone();
        // A torn value ends with the payload.
        let _ = walker.skip_content(head);
        let Some(left) = self.key_bytes.checked_sub(walker.offset() - before) else { return false };
        self.key_bytes = left;
        true
    }

    /// Writes the next value. After an error the JSON is complete, and nothing more can be read.
    ///
    /// Inlined always, as the others on the way from a pair to its value: only a container in a
    /// container is worth a call.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn value(&mut self, depth: usize) -> Result<(), Malformed> {
        if let Some(text) = self.walker.short_text() {
            self.short_string(b"\"", text, b"\"");
            return Ok(());
        }
        let item = self.walker.item().inspect_err(|_| {
            self.losses.torn += 1;
            self.out.extend_from_slice(b"null");
        })?;
        self.written(item, depth)
    }

    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn written(&mut self, item: Item<'_>, depth: usize) -> Result<(), Malformed> {
        match item {
            Item::Str(bytes) | Item::Bin(bytes) => self.string(bytes),
            Item::Array(len) => return self.array(len, depth),
            Item::Map(len) => return self.map(len, depth),
            Item::Bool(true) => self.out.extend_from_slice(b"true"),
            Item::Bool(false) => self.out.extend_from_slice(b"false"),
            Item::Int(int) => self.number(int),
            Item::Uint(int) => match u8::try_from(int) {
                Ok(digit @ 0..10) => self.out.push(b'0' + digit),
                _ => self.number(int),
            },
            Item::Float(float) if float.is_finite() => write_float(float, self.out),
            Item::Float(_) | Item::Nil => self.out.extend_from_slice(b"null"),
            Item::Ext(kind, bytes) => match ext_text(kind, bytes) {
                Some(text) => self.string(text.as_bytes()),
                None => self.string(bytes),
            },
        }
        Ok(())
    }

    /// An array or a map at this depth is too deep.
    fn is_too_deep(&self, depth: usize) -> bool {
        depth >= MAX_DEPTH || self.key_depth > MAX_KEY_DEPTH
    }

    /// Writes `null` in place of the array or the map with this head.
    fn cut(&mut self, head: Item<'_>) -> Result<(), Malformed> {
        self.losses.cut += 1;
        self.out.extend_from_slice(b"null");
        let skipped = self.walker.skip_content(head);
        skipped.inspect_err(|_| self.losses.torn += 1)
    }

    fn array(&mut self, len: u32, depth: usize) -> Result<(), Malformed> {
        if self.is_too_deep(depth) {
            return self.cut(Item::Array(len));
        }
        self.out.push(b'[');
        let mut result = Ok(());
        for index in 0..len {
            self.separator(index == 0);
            result = self.value(depth + 1);
            if result.is_err() {
                break;
            }
            self.hand_on();
        }
        self.out.push(b']');
        result
    }

    fn map(&mut self, len: u32, depth: usize) -> Result<(), Malformed> {
        if self.is_too_deep(depth) {
            return self.cut(Item::Map(len));
        }
        self.out.push(b'{');
        let mut result = Ok(());
        for index in 0..len {
            result = self.pair(index == 0, depth + 1);
            if result.is_err() {
                break;
            }
            self.hand_on();
        }
        self.out.push(b'}');
        result
    }

    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn pair(&mut self, is_first: bool, depth: usize) -> Result<(), Malformed> {
        if let Some(key) = self.walker.short_text() {
            match is_first {
                true => self.short_string(b"\"", key, b"\": "),
                false => self.short_string(b", \"", key, b"\": "),
            }
            return self.value(depth);
        }
        self.any_key(is_first, depth)?;
        self.value(depth)
    }

    /// Writes the next key, whatever it is. After an error the pair is complete, if it was begun.
    #[inline(never)]
    fn any_key(&mut self, is_first: bool, depth: usize) -> Result<(), Malformed> {
        let key = self.walker.item().inspect_err(|_| self.losses.torn += 1)?;
        self.separator(is_first);
        let result = self.key(key, depth);
        self.out.extend_from_slice(b": ");
        if result.is_err() {
            self.out.extend_from_slice(b"null");
        }
        result
    }

    fn separator(&mut self, is_first: bool) {
        if !is_first {
            self.out.extend_from_slice(b", ");
        }
    }

    fn key(&mut self, key: Item<'_>, depth: usize) -> Result<(), Malformed> {
        let text: &[u8] = match key {
            Item::Str(bytes) | Item::Bin(bytes) => {
                self.string(bytes);
                return Ok(());
            }
            Item::Float(float) if !float.is_finite() => not_finite(float),
            Item::Ext(..) => return self.written(key, depth),
            Item::Array(_) | Item::Map(_) if self.key_depth == 0 && !self.has_room_for_key(key) => {
                self.losses.cut += 1;
                self.string(b"null");
                let skipped = self.walker.skip_content(key);
                return skipped.inspect_err(|_| self.losses.torn += 1);
            }
            scalar_or_container => {
                let start = self.out.len();
                self.key_depth += 1;
                let result = self.written(scalar_or_container, depth);
                self.key_depth -= 1;
                let json = self.out.split_off(start);
                write_string(&json, self.out);
                return result;
            }
        };
        self.string(text);
        Ok(())
    }

    /// Writes text of less than 256 bytes, which is never handed on in pieces.
    #[inline]
    fn short_string<const BEFORE: usize, const AFTER: usize>(
        &mut self,
        before: &[u8; BEFORE],
        text: Text<'_>,
        after: &[u8; AFTER],
    ) {
        if write_between(before, text, after, self.out) {
            self.losses.replaced += 1;
        }
    }

    fn string(&mut self, bytes: &[u8]) {
        let is_replaced = match &mut self.take {
            Some(take) if bytes.len() > self.piece && self.key_depth == 0 => {
                write_string_in_pieces(bytes, self.out, &mut **take)
            }
            _ => write_string(bytes, self.out),
        };
        if is_replaced {
            self.losses.replaced += 1;
        }
    }

    fn number(&mut self, int: impl itoa::Integer) {
        self.out.extend_from_slice(itoa::Buffer::new().format(int).as_bytes());
    }
}

/// Writes a finite float as Python's `repr` does: the shortest digits that read back the same, an
/// exponent below 1e-4 and from 1e16 on.
pub(crate) fn write_float(float: f64, out: &mut Vec<u8>) {
    if let Some(thousandths) = thousandths(float) {
        return write_thousandths(float.is_sign_negative(), thousandths, out);
    }
    let size = float.abs();
    if size == 0.0 || (1e-4..1e16).contains(&size) {
        out.extend_from_slice(zmij::Buffer::new().format_finite(float).as_bytes());
        return;
    }
    // `1.5e-7` to `1.5e-07`, `1e16` to `1e+16`.
    let text = format!("{float:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, power) = match exponent.strip_prefix('-') {
        Some(power) => ('-', power),
        None => ('+', exponent),
    };
    out.extend_from_slice(format!("{digits}e{sign}{power:0>2}").as_bytes());
}

/// The float as a count of thousandths, if it is the nearest to that. Durations of states are.
///
/// Of two numbers with up to 15 digits, no float is the nearest to both. The digits of this one are
/// therefore the shortest that read back the same.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::float_cmp
)]
fn thousandths(float: f64) -> Option<u64> {
    let size = float.abs();
    let count = (size * 1e3 + 0.5) as u64;
    let is_exact = (1..1_000_000_000_000_000).contains(&count) && count as f64 / 1e3 == size;
    is_exact.then_some(count)
}

fn write_thousandths(is_negative: bool, count: u64, out: &mut Vec<u8>) {
    if is_negative {
        out.push(b'-');
    }
    out.extend_from_slice(itoa::Buffer::new().format(count / 1000).as_bytes());
    let digit = |number: u64| u8::try_from(number % 10).map_or(b'0', |digit| b'0' + digit);
    match [count / 100, count / 10, count].map(digit) {
        [tenths, b'0', b'0'] => out.extend_from_slice(&[b'.', tenths]),
        [tenths, hundredths, b'0'] => out.extend_from_slice(&[b'.', tenths, hundredths]),
        [tenths, hundredths, last] => out.extend_from_slice(&[b'.', tenths, hundredths, last]),
    }
}

/// The text of extensions with a text: Salt's date and msgpack's timestamp.
fn ext_text(kind: i8, bytes: &[u8]) -> Option<String> {
    match kind {
        78 => salt_date(bytes),
        -1 => timestamp(bytes),
        _ => None,
    }
}

/// `20261121T23:33:36.123456`, as `salt.payload` packs a `datetime`, to what Python's `isoformat`
/// gives: six digits of a second's fraction, or no fraction where it is zero.
fn salt_date(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (date, time) = text.split_once('T')?;
    if date.len() != 8 || !date.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let date = format!("{}-{}-{}", date.get(..4)?, date.get(4..6)?, date.get(6..)?);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, ""));
    Some(match fraction.trim_end_matches('0') {
        "" => format!("{date}T{clock}"),
        digits => format!("{date}T{clock}.{digits:0<6}"),
    })
}

fn timestamp(bytes: &[u8]) -> Option<String> {
    let (seconds, nanos) = match bytes.len() {
        4 => (i64::from(u32::from_be_bytes(bytes.try_into().ok()?)), 0),
        8 => {
            let packed = u64::from_be_bytes(bytes.try_into().ok()?);
            (i64::try_from(packed & 0x3_ffff_ffff).ok()?, i32::try_from(packed >> 34).ok()?)
        }
        12 => {
            let nanos = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?);
            let seconds = i64::from_be_bytes(bytes.get(4..)?.try_into().ok()?);
            (seconds, i32::try_from(nanos).ok()?)
        }
        _ => return None,
    };
    jiff::Timestamp::new(seconds, nanos).ok().map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmpv::Value;

    use crate::codec::json::*;

    fn json_of(value: &Value) -> (String, JsonLosses) {
        let mut payload = Vec::new();
        rmpv::encode::write_value(&mut payload, value).unwrap();
        let mut out = Vec::new();
        let losses = write(&payload, &mut out);
        (String::from_utf8(out).unwrap(), losses)
    }

    #[test]
    fn writes_as_python_does() {
        let value = Value::Map(vec![
            (Value::from("fun"), Value::from("test.ping")),
            (Value::from(1), Value::Array(vec![Value::Nil, Value::from(true), Value::from(-5)])),
            (Value::Nil, Value::from(1.0)),
            (Value::from(true), Value::from(1e16)),
            (Value::from(1.5e-7), Value::from("ä\u{0}\n\"\\\u{1f}")),
            (Value::Array(vec![Value::from(1), Value::from("x")]), Value::from(u64::MAX)),
        ]);
        let (json, losses) = json_of(&value);
        assert_eq!(
            json,
            r#"{"fun": "test.ping", "1": [null, true, -5], "null": 1.0, "true": 1e+16, "1.5e-07": "ä\u0000\n\"\\\u001f", "[1, \"x\"]": 18446744073709551615}"#
        );
        assert_eq!(losses, JsonLosses::default());
    }

    #[test]
    fn bytes_dates_and_numbers_that_json_lacks() {
        let value = Value::Array(vec![
            Value::Binary(b"plain".to_vec()),
            Value::Binary(vec![b'a', 0xff, 0xfe, b'b']),
            Value::Ext(78, b"20261121T23:33:36.123456".to_vec()),
            Value::Ext(78, b"20261121T23:33:36.000000".to_vec()),
            Value::Ext(78, b"yesterday".to_vec()),
            Value::Ext(-1, vec![0, 0, 0, 1]),
            Value::Ext(79, b"NOT_SET".to_vec()),
            Value::from(f64::NAN),
            Value::from(f64::INFINITY),
        ]);
        let (json, losses) = json_of(&value);
        assert_eq!(
            json,
            "[\"plain\", \"a\u{fffd}\u{fffd}b\", \"2026-11-21T23:33:36.123456\", \
             \"2026-11-21T23:33:36\", \"yesterday\", \"1970-01-01T00:00:01Z\", \"NOT_SET\", null, null]"
        );
        assert_eq!(losses, JsonLosses { replaced: 1, ..JsonLosses::default() });
    }

    #[test]
    fn deep_values_are_cut_and_counted() {
        let mut payload = vec![0x91; 10_000];
        payload.push(0xc0);
        let mut out = Vec::new();
        let losses = write(&payload, &mut out);
        assert_eq!(losses, JsonLosses { cut: 1, ..JsonLosses::default() });
        assert_eq!(out.len(), MAX_DEPTH * 2 + 4);
        serde_json::from_slice::<serde_json::Value>(&out).unwrap_err(); // its own limit is 128 too
        let shallow = &out[1..out.len() - 1];
        serde_json::from_slice::<serde_json::Value>(shallow).unwrap();
    }

    #[test]
    fn keys_in_keys_do_not_explode() {
        let mut payload = vec![0x81; 10_000];
        payload.push(0xc0);
        let mut out = Vec::new();
        let losses = write(&payload, &mut out);
        assert_eq!(losses, JsonLosses { cut: 1, torn: 1, ..JsonLosses::default() });
        assert!(out.len() < 1000, "{}", out.len());
        serde_json::from_slice::<serde_json::Value>(&out).unwrap();
    }

    #[test]
    fn torn_payloads_are_closed() {
        for (payload, json) in [
            (&b""[..], "null"),
            (b"\x93\x01", "[1, null]"),
            (b"\x82\xa1a\x01\xa1b", r#"{"a": 1, "b": null}"#),
            (b"\x82\xa1a\x01\xa5b", r#"{"a": 1}"#),
            (b"\x81\x91\xc1\x01", r#"{"[null]": null}"#),
        ] {
            let mut out = Vec::new();
            let losses = write(payload, &mut out);
            assert_eq!(std::str::from_utf8(&out).unwrap(), json);
            assert_eq!(losses, JsonLosses { torn: 1, ..JsonLosses::default() });
        }
    }

    #[test]
    fn invariant_6_a_byte_becomes_eight_at_the_most() {
        // Keys of which each level doubles the backslashes, again and again.
        let key = [&[0x81; MAX_KEY_DEPTH + 1][..], b"\xd9\x40", &[1; 64], &[0xc0; 5]].concat();
        let keys = [b"\xde\xff\xff".to_vec(), key.repeat(10_000)].concat();
        let falses = [b"\xde\xff\xff".to_vec(), vec![0xc2; 130_000]].concat();
        let controls = [b"\xc6\x00\x01\x00\x00".to_vec(), vec![1; 65_536]].concat();
        for payload in [keys, falses, controls] {
            let mut out = Vec::new();
            write(&payload, &mut out);
            let most = 8 * payload.len() + 37 * MAX_KEY_BYTES;
            assert!(out.len() <= most, "{} of {}", out.len(), payload.len());
            serde_json::from_slice::<serde_json::Value>(&out).unwrap();
        }
    }

    #[test]
    fn invariant_6_pieces_are_small_and_make_up_the_whole() {
        let values = vec![
            Value::from("\u{1}".repeat(1 << 20)),
            Value::Binary(vec![0xff; 1 << 20]),
            Value::from("ä".repeat(200_001)),
            Value::Array(vec![Value::Nil; 300_000]),
            Value::Map((0..50_000).map(|n| (Value::from(n), Value::from("x"))).collect()),
            Value::Map(vec![(Value::Array(vec![Value::from("y".repeat(9000)); 2]), Value::Nil)]),
        ];
        let mut payload = Vec::new();
        rmpv::encode::write_value(&mut payload, &Value::Array(values)).unwrap();
        let (mut whole, mut pieces, mut out) = (Vec::new(), Vec::new(), Vec::new());
        let losses = write(&payload, &mut whole);
        let mut take = |piece: &[u8]| {
            assert!(piece.len() < 8 * PIECE, "{}", piece.len());
            pieces.extend_from_slice(piece);
        };
        assert_eq!(write_in_pieces(&payload, &mut out, &mut take), losses);
        assert!(out.capacity() < 16 * PIECE, "{}", out.capacity());
        pieces.extend(out);
        assert!(pieces == whole);
    }

    proptest! {
        #[test]
        fn any_bytes_become_json(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut out = Vec::new();
            write(&bytes, &mut out);
            serde_json::from_slice::<serde_json::Value>(&out).unwrap();
        }

        #[test]
        fn pairs_are_as_their_strings(keys in proptest::collection::vec("[ -~é]{0,14}", 0..4)) {
            let pairs = keys.iter().map(|key| (Value::from(key.as_str()), Value::from(1)));
            let (json, _) = json_of(&Value::Map(pairs.collect()));
            let pair = |key: &String| format!("{}: 1", serde_json::to_string(key).unwrap());
            let expected = keys.iter().map(pair).collect::<Vec<_>>().join(", ");
            prop_assert_eq!(json, format!("{{{expected}}}"));
        }

        /// The digits are the shortest, and of two of them the nearer, in the shortcut too.
        #[test]
        fn short_floats_are_written_shortest(digits in any::<i64>(), power in 0..18_i32) {
            let digits = digits >> (digits & 0x3f);
            #[allow(clippy::cast_precision_loss)]
            for float in [digits as f64 / 10_f64.powi(power), digits as f64 / 1e3] {
                let mut out = Vec::new();
                write_float(float, &mut out);
                let size = float.abs();
                if size == 0.0 || (1e-4..1e16).contains(&size) {
                    let mut buffer = zmij::Buffer::new();
                    let shortest = buffer.format_finite(float);
                    prop_assert_eq!(String::from_utf8(out).unwrap(), shortest);
                }
            }
        }

        #[test]
        fn floats_come_back(float in any::<f64>()) {
            prop_assume!(float.is_finite());
            let mut out = Vec::new();
            write_float(float, &mut out);
            let text = std::str::from_utf8(&out).unwrap();
            prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), float.to_bits());
        }
    }
}
