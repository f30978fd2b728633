//! The pass over a payload beside a naive one over a tree: they say the same of every payload.

use std::fmt;

use proptest::prelude::*;
use rmpv::Value;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::codec::json::{self, MAX_KEY_BYTES};
use crate::codec::msgpack::{self, Item};
use crate::event::Event;
use crate::event::redact::Redaction;
use crate::event::redact::rules::HIDDEN;
use crate::event::redact::tests::rules;

/// The rules, and what [`naive`] makes of them.
const RULES: &str = "\
redact:
- keys: ['*pw*', '5']
- paths: ['$.a.b', '$.*[1]', '$..c', '$.a..d.*']
  with: path
- pattern: 's(e*)cret'
  with: '<$1>'
";

const SECRET: &str = "secret";

fn packed(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).unwrap();
    bytes
}

/// One step of a way: the text of a key, if it is known, or a place.
type Step = Result<Option<String>, usize>;

fn is_path(way: &[Step]) -> bool {
    let name = |step: &Step, name: &str| matches!(step, Ok(Some(key)) if key == name);
    match way {
        [a, b] if name(a, "a") && name(b, "b") => true,
        [_, Err(1)] => true,
        [.., last] if name(last, "c") => true,
        [a, .., d, _] if name(a, "a") && way.len() > 2 && name(d, "d") => true,
        _ => false,
    }
}

/// The texts of a key's JSON as it came and as it is written; `None` if one of them is cut.
fn texts_of(key: &Value, written: &Value, room: &mut usize) -> Option<[String; 2]> {
    let (key, written) = (packed(key), packed(written));
    let is_large = matches!(msgpack::scalar(&key), Some(Item::Array(_) | Item::Map(_)));
    if is_large {
        let left = room.checked_sub(key.len().max(written.len()));
        *room = left.unwrap_or_default();
        left?;
    }
    let text = |key| Some(String::from_utf8_lossy(&json::key_text(key, 0)?).into_owned());
    Some([text(&key)?, text(&written)?])
}

fn is_key(text: &str) -> bool {
    text.to_lowercase().contains("pw") || text == "5"
}

/// A text after the patterns, byte by byte.
fn text(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some((&first, behind)) = rest.split_first() {
        if first == b's' {
            let es = behind.iter().take_while(|byte| **byte == b'e').count();
            if behind[es..].starts_with(b"cret") {
                out.push(b'<');
                out.extend(&behind[..es]);
                out.push(b'>');
                rest = &behind[es + 4..];
                continue;
            }
        }
        out.push(first);
        rest = behind;
    }
    out
}

fn string(bytes: Vec<u8>) -> Value {
    let mut packed = Vec::new();
    crate::codec::msgpack::write_text(&bytes, &mut packed);
    rmpv::decode::read_value(&mut packed.as_slice()).unwrap()
}

/// The value at the end of a way, which is `None` within a key. There is room for so many bytes of
/// keys.
fn naive(value: &Value, way: Option<&[Step]>, room: &mut usize) -> Value {
    let inner = |step: Step| way.map(|way| [way, &[step]].concat());
    match value {
        Value::String(bytes) => string(text(bytes.as_bytes())),
        Value::Binary(bytes) => Value::Binary(text(bytes)),
        Value::Ext(kind, bytes) => Value::Ext(*kind, text(bytes)),
        Value::Array(values) => {
            let values = values.iter().enumerate();
            let value = |(place, value)| {
                let way = inner(Err(place));
                let is_path = way.as_deref().is_some_and(is_path);
                if is_path { Value::from("path") } else { naive(value, way.as_deref(), room) }
            };
            Value::Array(values.map(value).collect())
        }
        Value::Map(pairs) => {
            let pair = |(key, value): &(Value, Value)| {
                let written = naive(key, None, room);
                let texts = texts_of(key, &written, room);
                let is_key = texts.as_ref().is_none_or(|texts| texts.iter().any(|t| is_key(t)));
                let way = inner(Ok(texts.map(|[as_it_came, _]| as_it_came)));
                let is_path = way.as_deref().is_some_and(is_path);
                let value = match (is_key, is_path) {
                    (true, _) => Value::from(HIDDEN),
                    (false, true) => Value::from("path"),
                    (false, false) => naive(value, way.as_deref(), room),
                };
                (written, value)
            };
            Value::Map(pairs.iter().map(pair).collect())
        }
        other => other.clone(),
    }
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-d]",
        Just("5".to_owned()),
        "[a-z]{0,3}[pP][wW][a-z\n]{0,3}",
        "[a-z ]{0,20}s[e]{0,3}cret[a-z ]{0,300}",
        "[z-ü]{0,40}",
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::from),
        (-10..10_i64).prop_map(Value::from),
        any::<f64>().prop_filter("equal to itself", |f| !f.is_nan()).prop_map(Value::from),
        any_text().prop_map(Value::from),
        any_text().prop_map(|text| Value::Binary(text.into_bytes())),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Binary),
        (any::<i8>(), any_text()).prop_map(|(kind, text)| Value::Ext(kind, text.into_bytes())),
    ];
    scalar.prop_recursive(5, 60, 20, |inner| {
        let key = prop_oneof![4 => any_text().prop_map(Value::from), 1 => inner.clone()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(Value::Array),
            prop::collection::vec((key, inner), 0..20).prop_map(Value::Map),
        ]
    })
}

/// A JSON of which repeated keys are all kept.
#[derive(Debug, PartialEq)]
enum Shown {
    Null,
    Text(String),
    Map(Vec<(String, Shown)>),
    Array(Vec<Shown>),
    Other,
}

impl Shown {
    /// A key that matches beside a value that is not hidden.
    fn leak(&self, is_whole: bool) -> Option<&str> {
        match self {
            Shown::Map(pairs) => pairs.iter().find_map(|(key, value)| {
                // Nothing was made of the bytes that are cut off.
                let is_hidden = matches!(value, Shown::Text(text) if text == HIDDEN)
                    || !is_whole && *value == Shown::Null;
                if is_key(key) && !is_hidden { Some(key.as_str()) } else { value.leak(is_whole) }
            }),
            Shown::Array(values) => values.iter().find_map(|value| value.leak(is_whole)),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Showing)
    }
}

struct Showing;

impl<'de> Visitor<'de> for Showing {
    type Value = Shown;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Shown, E> {
        Ok(Shown::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shown, E> {
        Ok(Shown::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shown, E> {
        Ok(Shown::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shown, E> {
        Ok(Shown::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shown, E> {
        Ok(Shown::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Shown, E> {
        Ok(Shown::Text(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shown, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Shown::Map(pairs))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Shown, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = array.next_element()? {
            values.push(value);
        }
        Ok(Shown::Array(values))
    }
}

fn redacted(payload: &[u8]) -> Vec<u8> {
    let redaction = Redaction::new(&rules(RULES).unwrap(), "").unwrap();
    let event = Event::new("t", payload);
    redaction.of(&event).unwrap_or(event).payload().to_vec()
}

fn shows_secret(payload: &[u8]) -> bool {
    payload.windows(SECRET.len()).any(|bytes| bytes == SECRET.as_bytes())
}

proptest! {
    #[test]
    fn exactly_what_matches_is_replaced(value in any_value()) {
        let payload = redacted(&packed(&value));
        let mut rest = payload.as_slice();
        let naive = naive(&value, Some(&[]), &mut MAX_KEY_BYTES.clone());
        prop_assert_eq!(rmpv::decode::read_value(&mut rest).unwrap(), naive);
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn no_key_of_the_json_matches_beside_a_value_that_is_not_hidden(
        value in any_value(),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        for (payload, is_whole) in [(packed(&value), true), (bytes, false)] {
            let mut written = Vec::new();
            json::write(&redacted(&payload), &mut written);
            let shown: Shown = serde_json::from_slice(&written).unwrap();
            prop_assert_eq!(shown.leak(is_whole), None);
        }
    }

    #[test]
    fn invariant_7_damage_lets_no_secret_pass(
        value in any_value(),
        cut in any::<prop::sample::Index>(),
        tail in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let whole = packed(&Value::Array(vec![value, Value::from(SECRET)]));
        let cut_off = redacted(&whole[..cut.index(whole.len())]);
        prop_assert!(!shows_secret(&cut_off), "{cut_off:x?}");
        let with_tail = redacted(&[&whole, tail.as_slice(), SECRET.as_bytes()].concat());
        prop_assert_eq!(with_tail, redacted(&whole));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let once = redacted(&bytes);
        prop_assert_eq!(redacted(&once), once);
    }
}
