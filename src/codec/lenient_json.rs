//! JSON as Python writes it, and worse: values that JSON lacks do not make an event unreadable.
//!
//! Python's `json.dumps` writes `NaN`, `Infinity` and `-Infinity`, which are not JSON. It also
//! writes halves of surrogate pairs, and integers without bounds. Programs write bytes as they have
//! them. `serde_json` refuses a whole line for any of these. So a refused text is repaired and
//! given to it once more. It alone decides what JSON is: the pass in front of it knows strings,
//! words and brackets, and leaves all the rest as it stands.
//!
//! | text | value |
//! |---|---|
//! | `NaN`, `Infinity`, `-Infinity`, numbers that no double can hold | `null` |
//! | an integer over 64 bits | a string of its digits, as Salt's bus carries it |
//! | half a surrogate pair, bytes that are not UTF-8 | U+FFFD |
//! | an array or object nested too deep | `null` |
//! | a control character in a string | itself |
//! | a byte order mark in front | nothing |
//!
//! The first four are counted ([`Replaced`]). The last of two equal keys counts, as for Python.

use std::ops::AddAssign;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::codec::json::MAX_DEPTH;

/// The deepest nesting of a text. The payload of an event may be [`MAX_DEPTH`] deep, and it stands
/// in an object.
const DEEPEST: usize = MAX_DEPTH + 1;

/// The deepest nesting of an answer of the HTTP side. The data of an event stands a few levels
/// further in.
const DEEPEST_ANSWER: usize = MAX_DEPTH + 8;

/// The values that JSON, or msgpack, could not hold as they were, as counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// Numbers that are none, or beyond a double.
    pub not_finite: u64,
    /// Integers over 64 bits.
    pub long_integer: u64,
    /// Strings with parts that are no text.
    pub not_utf8: u64,
    /// Arrays and objects nested too deep.
    pub too_deep: u64,
}

impl AddAssign for Replaced {
    fn add_assign(&mut self, other: Replaced) {
        self.not_finite += other.not_finite;
        self.long_integer += other.long_integer;
        self.not_utf8 += other.not_utf8;
        self.too_deep += other.too_deep;
    }
}

/// The text without a byte order mark in front.
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(MARK).unwrap_or(text)
}

/// The byte order mark that some programs of Windows begin a file with.
pub(crate) const MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads one value, and counts the replaced parts of it.
pub fn read(text: &[u8]) -> Result<(Value, Replaced), serde_json::Error> {
    read_within(text, DEEPEST)
}

/// Reads an answer of the HTTP side. It cuts nothing that a daemon may send.
pub(crate) fn read_answer(text: &[u8]) -> Result<(Value, Replaced), serde_json::Error> {
    read_within(text, DEEPEST_ANSWER)
}

fn read_within(text: &[u8], deepest: usize) -> Result<(Value, Replaced), serde_json::Error> {
    let text = without_mark(text);
    let refused = match serde_json::from_slice(text) {
        Ok(value) if !has_long_integer(&value) => return Ok((value, Replaced::default())),
        Ok(_) => None,
        Err(error) => Some(error),
    };
    let mut repair = Repair::new(text, deepest);
    repair.repair();
    let mut reader = serde_json::Deserializer::from_slice(&repair.out);
    // The repair has cut values that are nested deeper than a stack can take.
    reader.disable_recursion_limit();
    match Value::deserialize(&mut reader).and_then(|value| reader.end().map(|()| value)) {
        Ok(value) => Ok((value, repair.replaced)),
        // Its places are those of the text as it came.
        Err(error) => Err(refused.unwrap_or(error)),
    }
}

/// Says if it may hold an integer of which a double has lost digits.
fn has_long_integer(value: &Value) -> bool {
    const LONG: f64 = 9.2e18;
    match value {
        Value::Number(number) => {
            number.is_f64() && number.as_f64().is_some_and(|float| float.abs() > LONG)
        }
        Value::Array(values) => values.iter().any(has_long_integer),
        Value::Object(pairs) => pairs.values().any(has_long_integer),
        _ => false,
    }
}

/// Rewrites a text into one that `serde_json` takes, if there is such a one.
struct Repair<'a> {
    rest: &'a [u8],
    out: Vec<u8>,
    deepest: usize,
    /// The brackets that are open.
    open: Vec<u8>,
    /// The last byte that is no space.
    last: u8,
    replaced: Replaced,
}

impl<'a> Repair<'a> {
    fn new(text: &'a [u8], deepest: usize) -> Self {
        Repair {
            rest: text,
            out: Vec::with_capacity(text.len()),
            deepest,
            open: Vec::new(),
            last: 0,
            replaced: Replaced::default(),
        }
    }

    fn repair(&mut self) {
        while let Some((&first, behind)) = self.rest.split_first() {
            match first {
                b'"' => {
                    let string = self.split_off(string_len(self.rest));
                    self.string(string);
                    self.last = first;
                    continue;
                }
                b'[' | b'{' if self.open.len() == self.deepest => {
                    let len = self.rest.len() - behind_brackets(self.rest).len();
                    let cut = self.split_off(len);
                    self.cut(cut);
                    self.last = first;
                    continue;
                }
                b'[' | b'{' => self.open.push(first),
                b']' | b'}' => drop(self.open.pop()),
                byte if is_of_word(byte) => {
                    let len = self.rest.iter().take_while(|byte| is_of_word(**byte)).count();
                    let word = self.split_off(len);
                    self.word(word);
                    self.last = first;
                    continue;
                }
                _ => {}
            }
            if !first.is_ascii_whitespace() {
                self.last = first;
            }
            self.out.push(first);
            self.rest = behind;
        }
    }

    fn split_off(&mut self, len: usize) -> &'a [u8] {
        let (front, behind) = self.rest.split_at(len);
        self.rest = behind;
        front
    }

    /// Writes `null` for an array or object. If it is neither, writes text that is no JSON.
    fn cut(&mut self, cut: &[u8]) {
        let mut repair = Repair::new(cut, usize::MAX);
        repair.repair();
        // Nothing is built, so nested values take nothing of the stack.
        match serde_json::from_slice::<IgnoredAny>(&repair.out) {
            Ok(_) => {
                self.replaced.too_deep += 1;
                self.out.extend_from_slice(b"null");
            }
            Err(_) => self.out.push(b'!'),
        }
    }

    /// Says if a key stands next, of which a string alone can be one.
    fn is_before_key(&self) -> bool {
        self.open.last() == Some(&b'{') && matches!(self.last, b'{' | b',')
    }

    /// Writes a number or a name.
    fn word(&mut self, word: &[u8]) {
        let text = std::str::from_utf8(word).unwrap_or_default();
        let digits = text.strip_prefix('-').unwrap_or(text);
        // `serde_json` knows the shape of a number, however large it is.
        let is_number = digits.starts_with(|first: char| first.is_ascii_digit())
            && !self.is_before_key()
            && serde_json::from_str::<IgnoredAny>(text).is_ok();
        let is_integer = is_number && digits.bytes().all(|byte| byte.is_ascii_digit());
        let is_infinite = || text.parse().is_ok_and(f64::is_infinite);
        if matches!(text, "NaN" | "Infinity" | "-Infinity") {
            self.replaced.not_finite += 1;
            self.out.extend_from_slice(b"null");
        } else if is_integer && !is_of_64_bits(text) {
            self.replaced.long_integer += 1;
            self.out.push(b'"');
            self.out.extend_from_slice(word);
            self.out.push(b'"');
        } else if is_number && !is_integer && is_infinite() {
            self.replaced.not_finite += 1;
            self.out.extend_from_slice(b"null");
        } else {
            self.out.extend_from_slice(word);
        }
    }

    /// Writes a string, of which the quotes are part.
    fn string(&mut self, string: &[u8]) {
        let is_utf8 = std::str::from_utf8(string).is_ok();
        let text = String::from_utf8_lossy(string);
        let mut has_half = false;
        let mut rest = text.as_bytes();
        while let Some((&first, behind)) = rest.split_first() {
            let len = match (first, behind.first()) {
                (b'\\', Some(b'u')) => match escaped(rest) {
                    Some(0xd800..=0xdbff) => {
                        let low = rest.get(ESCAPE..).and_then(escaped);
                        let is_pair = low.is_some_and(|low| (0xdc00..=0xdfff).contains(&low));
                        if is_pair { 2 * ESCAPE } else { 0 }
                    }
                    Some(0xdc00..=0xdfff) => 0,
                    _ => 2,
                },
                (b'\\', Some(_)) => 2,
                (control, _) if control < 0x20 => {
                    self.out.extend_from_slice(format!("\\u{control:04x}").as_bytes());
                    rest = behind;
                    continue;
                }
                _ => 1,
            };
            if len == 0 {
                has_half = true;
                self.out.extend_from_slice("\u{fffd}".as_bytes());
                rest = rest.get(ESCAPE..).unwrap_or_default();
                continue;
            }
            let (same, further) = rest.split_at(len);
            self.out.extend_from_slice(same);
            rest = further;
        }
        self.replaced.not_utf8 += u64::from(has_half || !is_utf8);
    }
}

/// Bytes of `\uXXXX`.
const ESCAPE: usize = 6;

/// The unit of UTF-16 that the escape at the start stands for.
fn escaped(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.first_chunk::<4>()?;
    let all_hex = digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| all_hex)?;
    u16::from_str_radix(digits, 16).ok()
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

fn is_of_64_bits(digits: &str) -> bool {
    digits.parse::<i64>().is_ok() || digits.parse::<u64>().is_ok()
}

/// The length of the string at the start, with its quotes.
fn string_len(text: &[u8]) -> usize {
    let mut at = 1;
    loop {
        match text.get(at) {
            None => return text.len(),
            Some(b'"') => return at + 1,
            Some(b'\\') => at = (at + 2).min(text.len()),
            Some(_) => at += 1,
        }
    }
}

/// The text behind the array or object at the start.
fn behind_brackets(text: &[u8]) -> &[u8] {
    let (mut depth, mut rest) = (0_usize, text);
    while let Some((first, behind)) = rest.split_first() {
        match first {
            b'"' => {
                rest = rest.get(string_len(rest)..).unwrap_or_default();
                continue;
            }
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        rest = behind;
        if depth == 0 {
            break;
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use crate::codec::lenient_json::*;

    fn replaced(text: &str) -> (Value, Replaced) {
        read(text.as_bytes()).unwrap()
    }

    #[test]
    fn numbers_that_json_lacks() {
        let (value, counts) = replaced(
            r#"{"a": [NaN,Infinity , -Infinity, 1e400, -1e999], "b": "NaN, Infinity", "NaN": 1}"#,
        );
        let expected = json!({"a": [null, null, null, null, null], "b": "NaN, Infinity", "NaN": 1});
        assert_eq!((value, counts), (expected, Replaced { not_finite: 5, ..Replaced::default() }));
        let (value, counts) = replaced(
            "[18446744073709551615, -9223372036854775808, 18446744073709551616, -9223372036854775809, 1e300, 1e-400]",
        );
        let expected =
            json!([u64::MAX, i64::MIN, "18446744073709551616", "-9223372036854775809", 1e300, 0.0]);
        assert_eq!(
            (value, counts),
            (expected, Replaced { long_integer: 2, ..Replaced::default() })
        );
    }

    #[test]
    fn text_that_is_none() {
        let (value, counts) = replaced(
            r#"["\ud800", "a\udc00b\ud83d\ude00", "\ud800\u0041\\ud800", "\u0000", "\ud83d\ude00"]"#,
        );
        let expected = json!(["\u{fffd}", "a\u{fffd}b😀", "\u{fffd}A\\ud800", "\0", "😀"]);
        assert_eq!((value, counts), (expected, Replaced { not_utf8: 3, ..Replaced::default() }));
        let (value, counts) = read(b"[\"a\xffb\xed\xa0\x80\", \"\t\"]").unwrap();
        assert_eq!(value, json!(["a\u{fffd}b\u{fffd}\u{fffd}\u{fffd}", "\t"]));
        assert_eq!(counts, Replaced { not_utf8: 1, ..Replaced::default() });
    }

    #[test]
    fn what_is_too_deep_is_cut_where_the_codec_cuts_it() {
        let nested = |depth: usize, inner: &str| {
            format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth))
        };
        let (value, counts) = replaced(&nested(DEEPEST, ""));
        assert_eq!(counts, Replaced::default());
        assert_eq!(value.to_string(), nested(DEEPEST, ""));
        let (value, counts) = replaced(&nested(100_000, "\"]]\""));
        assert_eq!(counts, Replaced { too_deep: 1, ..Replaced::default() });
        assert_eq!(value.to_string(), nested(DEEPEST, "null"));
        replaced(&nested(100_000, "NaN, {\"a\": 18446744073709551616}"));
        for wrong in ["1 2", "nan", "{1: 2}", "\"a\" \"b\"", "{]", ",", "01"] {
            read(nested(100_000, wrong).as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn a_long_integer_is_a_value_wherever_one_may_stand() {
        let long = "18446744073709551616";
        let (value, counts) = replaced(&format!(
            "{{\"a\" : {long}, \"b\":[ {long} ,{long}], \"c\": {{\"d\":-{long}}}, \"e\": [{{}}, {long}]}}"
        ));
        let negative = format!("-{long}");
        let expected = json!({"a": long, "b": [long, long], "c": {"d": negative}, "e": [{}, long]});
        assert_eq!((value, counts.long_integer), (expected, 5));
    }

    #[test]
    fn an_answer_may_hold_the_deepest_event() {
        let deep = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        let answer = format!("{{\"returns\":{{\"minion\":{{\"return\":{deep}}}}}}}");
        let (value, counts) = read_answer(answer.as_bytes()).unwrap();
        assert_eq!((value.to_string(), counts), (answer, Replaced::default()));
        let endless = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(read_answer(endless.as_bytes()).unwrap().1.too_deep, 1);
    }

    #[test]
    fn marks_and_keys_that_stand_twice() {
        let (value, counts) = replaced("\u{feff}{\"a\": 1, \"a\": NaN, \"a\": 2}\r\n");
        assert_eq!(value, json!({"a": 2}));
        assert_eq!(counts.not_finite, 1);
    }

    #[test]
    fn what_is_no_json_stays_none() {
        for wrong in [
            "",
            "{",
            "[NaN",
            "[nan]",
            "[NaNa]",
            "[+1]",
            "[01]",
            "[\"\\u12\"]",
            "[\"\\x\"]",
            "[\"\\",
            "[1 2]",
            "NaN NaN",
            "[}",
            "{1: NaN}",
            "{18446744073709551616: 1}",
            "{\"a\": 1, -18446744073709551616 : 1}",
            "[{\"a\": [1], 18446744073709551616: NaN}]",
            "{1e400: 1}",
            "{NaN: 1}",
            "[1.e400]",
            "[01e400]",
            "[1e+400e1]",
            "[1-e400]",
            "[018446744073709551616]",
            "[-018446744073709551616]",
            "[1 18446744073709551616]",
            "-",
            "[-Infinity -]",
        ] {
            read(wrong.as_bytes()).unwrap_err();
        }
        let error = read(b"{\"a\": 1, NaN}").unwrap_err();
        assert_eq!(error.column(), 10, "{error}");
    }

    proptest! {
        #[test]
        fn good_json_is_as_it_is(text in "[\\[\\]{}\",:0-9a-z\\\\ .eNI+-]{0,40}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let (lenient, counts) = read(text.as_bytes()).unwrap();
                if counts == Replaced::default() {
                    prop_assert_eq!(lenient, value);
                } else {
                    prop_assert!(counts.long_integer > 0);
                }
            }
        }

        /// The repair changes nothing that is right already.
        #[test]
        fn repairing_keeps_what_is_good(text in ".{0,60}", number in any::<f64>(), whole in any::<i64>()) {
            prop_assume!(number.is_finite());
            let value = json!({"text": text, "number": number, "more": [whole, null, true]});
            let broken = format!("[{value}, NaN]");
            let (lenient, _) = read(broken.as_bytes()).unwrap();
            prop_assert_eq!(lenient, json!([value, null]));
        }

        #[test]
        fn invariant_7_any_bytes_are_a_value_or_an_error(
            bytes in proptest::collection::vec(
                prop_oneof![any::<u8>(), prop::sample::select(b"[]{}\",:\\u1dNaIn-+e".to_vec())],
                0..200,
            ),
        ) {
            let _ = read(&bytes);
        }
    }
}
