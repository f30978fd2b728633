//! msgpack to the text that Python's `str` and `repr` give the same value.
//!
//! Some of Salt's returners store a value as Python prints it, `['--test', {'__kwarg__': True}]`,
//! and readers of their tables expect that. Total, like [`json`](crate::codec::json): text comes
//! out of any bytes.
//!
//! | msgpack | text |
//! |---|---|
//! | string | quoted as Python does: `'it'`, `"it's"`, `'\n'`, `'\x7f'`, `'\u200b'` |
//! | bytes | `b'..'` |
//! | Salt's date (ext 78) | `datetime.datetime(2026, 11, 21, 23, 33, 36, 123456)` |
//! | any other extension | its bytes |
//! | what is nested deeper than [`MAX_DEPTH`] | `...` |
//! | bytes that end too early, or byte 0xc1 | what was there, closed properly |
//!
//! The Unicode tables of the Rust standard library decide which characters are printable. They may
//! know characters that an older Python would still escape. A repeated key of a map is written each
//! time.

use crate::codec::json::{MAX_DEPTH, write_float};
use crate::codec::msgpack::{Item, Malformed, Walker};

/// Appends `str(value)`: of a string the string itself, of anything else its [`repr`].
pub(crate) fn str(payload: &[u8], out: &mut String) {
    match Walker::new(payload).item() {
        Ok(Item::Str(bytes)) => out.push_str(&String::from_utf8_lossy(bytes)),
        _ => repr(payload, out),
    }
}

/// Appends `repr(value)` of the value at the start of `payload`.
pub(crate) fn repr(payload: &[u8], out: &mut String) {
    let mut writer = Writer { walker: Walker::new(payload), out };
    // After bytes that are no msgpack the text is closed and there is no more to say.
    let _ = writer.value(0);
}

struct Writer<'a, 'o> {
    walker: Walker<'a>,
    out: &'o mut String,
}

impl Writer<'_, '_> {
    /// Writes the next value. After an error the text is complete, and nothing more can be read.
    fn value(&mut self, depth: usize) -> Result<(), Malformed> {
        let item = self.walker.item().inspect_err(|_| self.out.push_str("None"))?;
        match item {
            Item::Nil => self.out.push_str("None"),
            Item::Bool(true) => self.out.push_str("True"),
            Item::Bool(false) => self.out.push_str("False"),
            Item::Int(int) => self.out.push_str(itoa::Buffer::new().format(int)),
            Item::Uint(int) => self.out.push_str(itoa::Buffer::new().format(int)),
            Item::Float(float) => write_any_float(float, self.out),
            Item::Str(bytes) => write_str(&String::from_utf8_lossy(bytes), self.out),
            Item::Ext(78, bytes) => match datetime(bytes) {
                Some(text) => self.out.push_str(&text),
                None => write_bytes(bytes, self.out),
            },
            Item::Bin(bytes) | Item::Ext(_, bytes) => write_bytes(bytes, self.out),
            Item::Array(_) | Item::Map(_) if depth >= MAX_DEPTH => {
                self.out.push_str("...");
                return self.walker.skip_content(item);
            }
            Item::Array(len) => return self.list(len, depth + 1),
            Item::Map(len) => return self.dict(len, depth + 1),
        }
        Ok(())
    }

    fn list(&mut self, len: u32, depth: usize) -> Result<(), Malformed> {
        self.out.push('[');
        let mut result = Ok(());
        for index in 0..len {
            if index > 0 {
                self.out.push_str(", ");
            }
            result = self.value(depth);
            if result.is_err() {
                break;
            }
        }
        self.out.push(']');
        result
    }

    fn dict(&mut self, len: u32, depth: usize) -> Result<(), Malformed> {
        self.out.push('{');
        let mut result = Ok(());
        for index in 0..len {
            if index > 0 {
                self.out.push_str(", ");
            }
            result = self.value(depth);
            self.out.push_str(": ");
            if result.is_err() {
                self.out.push_str("None");
                break;
            }
            result = self.value(depth);
            if result.is_err() {
                break;
            }
        }
        self.out.push('}');
        result
    }
}

fn write_any_float(float: f64, out: &mut String) {
    if float.is_nan() {
        out.push_str("nan");
    } else if float.is_infinite() {
        out.push_str(if float > 0.0 { "inf" } else { "-inf" });
    } else {
        let mut digits = Vec::new();
        write_float(float, &mut digits);
        out.push_str(&String::from_utf8_lossy(&digits));
    }
}

/// Single quotes, unless they would have to be escaped and double ones would not.
fn quote_for(has_single: bool, has_double: bool) -> char {
    if has_single && !has_double { '"' } else { '\'' }
}

fn write_str(text: &str, out: &mut String) {
    let quote = quote_for(text.contains('\''), text.contains('"'));
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c if is_printable(c) => out.push(c),
            c => out.push_str(&escaped(c)),
        }
    }
    out.push(quote);
}

fn escaped(c: char) -> String {
    match u32::from(c) {
        code @ 0..=0xff => format!("\\x{code:02x}"),
        code @ 0x100..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
}

/// The rule is that of Python's `str.isprintable`: anything but controls, format characters,
/// surrogates, private and unassigned code points, and spaces other than the space. The standard
/// library's `escape_debug` escapes just these, and marks that would join a character before the
/// string. So there is a letter before it here.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return matches!(c, ' '..='~');
    }
    let mut buffer = [b'a', 0, 0, 0, 0];
    let [_, rest @ ..] = &mut buffer;
    let len = c.encode_utf8(rest).len();
    let text = buffer.get(..=len).and_then(|bytes| std::str::from_utf8(bytes).ok());
    text.is_some_and(|text| text.escape_debug().nth(1) == Some(c))
}

fn write_bytes(bytes: &[u8], out: &mut String) {
    let quote = quote_for(bytes.contains(&b'\''), bytes.contains(&b'"'));
    out.extend(['b', quote]);
    for &byte in bytes {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            byte if char::from(byte) == quote => out.extend(['\\', quote]),
            b' '..=b'~' => out.push(char::from(byte)),
            byte => out.push_str(&escaped(char::from(byte))),
        }
    }
    out.push(quote);
}

/// `20261121T23:33:36.123456`, as `salt.payload` packs a `datetime`. Python leaves a zero fraction
/// out, and then zero seconds.
fn datetime(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H:%M:%S%.f", text).ok()?;
    let mut parts = vec![
        i32::from(time.year()),
        i32::from(time.month()),
        i32::from(time.day()),
        i32::from(time.hour()),
        i32::from(time.minute()),
    ];
    let micros = time.subsec_nanosecond() / 1000;
    if time.second() > 0 || micros > 0 {
        parts.push(i32::from(time.second()));
    }
    if micros > 0 {
        parts.push(micros);
    }
    let parts: Vec<String> = parts.iter().map(i32::to_string).collect();
    Some(format!("datetime.datetime({})", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::codec::python::*;

    /// msgpack and what Python 3.11's `repr` makes of the value; written by a Python script.
    #[rustfmt::skip]
    #[allow(clippy::needless_raw_string_hashes, clippy::needless_raw_strings, clippy::unicode_not_nfc)]
    const TABLE: &[(&[u8], &str)] = &[
        (b"\xc0", r#"None"#),
        (b"\xc3", r#"True"#),
        (b"\xc2", r#"False"#),
        (b"\x00", r#"0"#),
        (b"\xd3\xff\xff\xff\xff\xff\xff\xff\xff", r#"-1"#),
        (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", r#"18446744073709551615"#),
        (b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", r#"-9223372036854775808"#),
        (b"\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00", r#"1.0"#),
        (b"\xcb\x80\x00\x00\x00\x00\x00\x00\x00", r#"-0.0"#),
        (b"\xcb\x43\x41\xc3\x79\x37\xe0\x80\x00", r#"1e+16"#),
        (b"\xcb\x3e\x84\x21\xf5\xf4\x0d\x83\x76", r#"1.5e-07"#),
        (b"\xcb\x3f\xb9\x99\x99\x99\x99\x99\x9a", r#"0.1"#),
        (b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", r#"nan"#),
        (b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00", r#"inf"#),
        (b"\xcb\xff\xf0\x00\x00\x00\x00\x00\x00", r#"-inf"#),
        (b"\xd9\x00", r#"''"#),
        (b"\xd9\x05\x70\x6c\x61\x69\x6e", r#"'plain'"#),
        (b"\xd9\x04\x69\x74\x27\x73", r#""it's""#),
        (b"\xd9\x08\x73\x61\x79\x20\x22\x68\x69\x22", r#"'say "hi"'"#),
        (b"\xd9\x0c\x62\x6f\x74\x68\x20\x27\x20\x61\x6e\x64\x20\x22", r#"'both \' and "'"#),
        (b"\xd9\x0a\x62\x61\x63\x6b\x5c\x73\x6c\x61\x73\x68", r#"'back\\slash'"#),
        (b"\xd9\x10\x74\x61\x62\x09\x6c\x69\x6e\x65\x0a\x72\x65\x74\x75\x72\x6e\x0d", r#"'tab\tline\nreturn\r'"#),
        (b"\xd9\x0f\x6e\x75\x6c\x00\x20\x62\x65\x6c\x6c\x07\x20\x64\x65\x6c\x7f", r#"'nul\x00 bell\x07 del\x7f'"#),
        (b"\xd9\x0a\xc2\x80\xc2\x9f\xc2\xa0\xc2\xad\xc3\xbf", r#"'\x80\x9f\xa0\xadÿ'"#),
        (b"\xd9\x09\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", r#"'ä€😀'"#),
        (b"\xd9\x0f\xe2\x80\x8b\xe2\x80\xa8\xe3\x80\x80\xef\xbb\xbf\xee\x80\x80", r#"'\u200b\u2028\u3000\ufeff\ue000'"#),
        (b"\xd9\x03\x65\xcc\x81", r#"'é'"#),
        (b"\xd9\x02\xcc\x81", r#"'́'"#),
        (b"\xd9\x08\xf3\xa0\x80\x81\xf4\x8f\xbf\xbf", r#"'\U000e0001\U0010ffff'"#),
        (b"\xc4\x00", r#"b''"#),
        (b"\xc4\x05\x70\x6c\x61\x69\x6e", r#"b'plain'"#),
        (b"\xc4\x04\x69\x74\x27\x73", r#"b"it's""#),
        (b"\xc4\x08\x73\x61\x79\x20\x22\x68\x69\x22", r#"b'say "hi"'"#),
        (b"\xc4\x0c\x62\x6f\x74\x68\x20\x27\x20\x61\x6e\x64\x20\x22", r#"b'both \' and "'"#),
        (b"\xc4\x09\x5c\x20\x09\x0a\x0d\x00\x7f\x80\xff", r#"b'\\ \t\n\r\x00\x7f\x80\xff'"#),
        (b"\x90", r#"[]"#),
        (b"\x80", r#"{}"#),
        (b"\x94\x01\xd9\x01\x61\xc4\x01\x62\x92\xc0\x81\xd9\x01\x6b\x91\xc3", r#"[1, 'a', b'b', [None, {'k': [True]}]]"#),
        (b"\x85\xd9\x01\x61\x01\x02\xd9\x03\x74\x77\x6f\xc0\xc0\xc3\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\xc4\x01\x62\x81\xd9\x01\x78\x90", r#"{'a': 1, 2: 'two', None: None, True: 1.5, b'b': {'x': []}}"#),
        (b"\x92\xd9\x03\x63\x6d\x64\x82\xd9\x09\x5f\x5f\x6b\x77\x61\x72\x67\x5f\x5f\xc3\xd9\x04\x6e\x61\x6d\x65\xd9\x07\x4f\x27\x4e\x65\x69\x6c\x6c", r#"['cmd', {'__kwarg__': True, 'name': "O'Neill"}]"#),
        (b"\x91\xc7\x18\x4e\x32\x30\x32\x36\x31\x31\x32\x31\x54\x32\x33\x3a\x33\x33\x3a\x33\x36\x2e\x31\x32\x33\x34\x35\x36", r#"[datetime.datetime(2026, 11, 21, 23, 33, 36, 123456)]"#),
        (b"\x91\xc7\x18\x4e\x32\x30\x32\x36\x31\x31\x32\x31\x54\x32\x33\x3a\x33\x33\x3a\x33\x36\x2e\x30\x30\x30\x30\x30\x30", r#"[datetime.datetime(2026, 11, 21, 23, 33, 36)]"#),
        (b"\x91\xc7\x18\x4e\x32\x30\x32\x36\x31\x31\x30\x31\x54\x30\x33\x3a\x30\x30\x3a\x30\x30\x2e\x30\x30\x30\x30\x30\x30", r#"[datetime.datetime(2026, 11, 1, 3, 0)]"#),
    ];

    fn repr_of(payload: &[u8]) -> String {
        let mut out = String::new();
        repr(payload, &mut out);
        out
    }

    #[test]
    fn writes_as_python_does() {
        for (payload, expected) in TABLE {
            assert_eq!(repr_of(payload), *expected);
        }
    }

    #[test]
    fn str_of_a_string_is_the_string() {
        let mut out = String::new();
        str(b"\xa4it's", &mut out);
        str(b"\x91\xa4it's", &mut out);
        assert_eq!(out, r#"it's["it's"]"#);
    }

    #[test]
    fn deep_and_torn_values_are_closed() {
        let mut deep = vec![0x91; 10_000];
        deep.push(0xc0);
        let text = repr_of(&deep);
        assert_eq!(text.len(), MAX_DEPTH * 2 + 3);
        assert!(text.contains("[...]"), "{text}");
        assert_eq!(repr_of(b"\x82\xa1a\x01\xa1b"), "{'a': 1, 'b': None}");
        assert_eq!(repr_of(b"\x82\xa1a\x01\xa5b"), "{'a': 1, None: None}");
        assert_eq!(repr_of(b"\x93\x01\xc1"), "[1, None]");
        assert_eq!(repr_of(b""), "None");
    }

    proptest! {
        #[test]
        fn any_bytes_become_text(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(!repr_of(&bytes).is_empty());
        }
    }
}
