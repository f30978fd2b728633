//! The pass over a payload beside a naive one over a tree: they say the same of every payload.

use proptest::prelude::*;
use rmpv::Value;

use super::tests::rules;
use super::{HIDDEN, Redaction};
use crate::event::Event;

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

/// One step of a way: the text of a key, if it has one, or a place.
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

fn text_of(key: &Value) -> Option<String> {
    match key {
        Value::String(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        Value::Binary(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::Integer(_) | Value::Boolean(_) => Some(key.to_string()),
        Value::Nil => Some("null".to_owned()),
        _ => None,
    }
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
    crate::msgpack::write_text(&bytes, &mut packed);
    rmpv::decode::read_value(&mut packed.as_slice()).unwrap()
}

/// The value at the end of a way, which is `None` within a key.
fn naive(value: &Value, way: Option<&[Step]>) -> Value {
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
                if is_path { Value::from("path") } else { naive(value, way.as_deref()) }
            };
            Value::Array(values.map(value).collect())
        }
        Value::Map(pairs) => {
            let pair = |(key, value): &(Value, Value)| {
                let name = text_of(key);
                let is_key =
                    name.as_ref().is_some_and(|n| n.to_lowercase().contains("pw") || n == "5");
                let way = inner(Ok(name));
                let is_path = way.as_deref().is_some_and(is_path);
                let value = match (is_key, is_path) {
                    (true, _) => Value::from(HIDDEN),
                    (false, true) => Value::from("path"),
                    (false, false) => naive(value, way.as_deref()),
                };
                (naive(key, None), value)
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
        prop_assert_eq!(rmpv::decode::read_value(&mut rest).unwrap(), naive(&value, Some(&[])));
        prop_assert!(rest.is_empty());
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
