//! The transcoder against Python's `msgpack` and `json` and Salt's own decoder, over generated
//! payloads.
//!
//! One Python process (that of the newest Salt of `tests/servers/install.sh`) answers for all
//! payloads; `oracle.py` describes the answers. Every payload has to come out byte for byte by the
//! rules of `saltern::codec::json`, and, if Python can encode it without help, as `json.dumps`
//! writes it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use rmpv::Value;
use saltern::codec::json;

use crate::harness::server::installed;

const GENERATED: usize = 3000;

#[test]
fn the_transcoder_writes_what_python_writes() {
    let mut payloads = by_hand();
    let mut runner = TestRunner::deterministic();
    let strategy = any_value();
    for _ in 0..GENERATED {
        let value = strategy.new_tree(&mut runner).unwrap().current();
        let mut payload = Vec::new();
        rmpv::encode::write_value(&mut payload, &value).unwrap();
        payloads.push(payload);
    }

    let answers = ask_python(&payloads);
    assert_eq!(answers.len(), payloads.len());
    let mut native = 0;
    for (payload, (by_rule, natively)) in payloads.iter().zip(answers) {
        let mut out = Vec::new();
        let losses = json::write(payload, &mut out);
        let ours = String::from_utf8(out).unwrap();
        assert_eq!(ours, by_rule, "payload {payload:02x?}");
        assert_eq!((losses.torn, losses.cut), (0, 0), "payload {payload:02x?}");
        if !natively.is_empty() {
            native += 1;
            assert_eq!(ours, natively, "payload {payload:02x?}");
        }
    }
    // Too few would mean that the generator has come to make only what Python cannot encode.
    assert!(native > GENERATED / 4, "Python encoded only {native} payloads by itself");
}

/// Integers at which msgpack's markers or JSON's readers change.
const EDGES: &[i64] =
    &[0, 1, 23, 127, 128, 255, 256, 32_767, 32_768, 65_535, 65_536, 1 << 31, 1 << 32, 1 << 53];

/// Floats at which Python changes between digits and an exponent, and the ends of their range.
const FLOATS: &[f64] = &[
    0.0,
    -0.0,
    1e-4,
    9.999e-5,
    1e15,
    1e16,
    123_456_789_012_345_680.0,
    5e-324,
    1.797e308,
    0.1,
    100.0,
];

/// Any value that a msgpack writer can produce; floats and lengths favour the edges of their kinds.
fn any_value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        4 => "[a-z_./-]{0,12}",
        2 => ".{0,40}",
        1 => "[\\x00-\\x1f\"\\\\\\x7f\\u{2028}\\u{fffd}\\u{1f9c2}]{0,8}",
        1 => "[a-z\"]{30,70}",
    ];
    let scalar = prop_oneof![
        1 => Just(Value::Nil),
        1 => any::<bool>().prop_map(Value::from),
        2 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        2 => proptest::sample::select(EDGES).prop_map(Value::from),
        2 => proptest::sample::select(EDGES).prop_map(|edge: i64| Value::from(-edge - 1)),
        2 => proptest::num::f64::ANY.prop_map(Value::from),
        1 => proptest::num::f32::ANY.prop_map(Value::from),
        2 => proptest::sample::select(FLOATS).prop_map(Value::from),
        2 => (-1e6..1e6).prop_map(Value::from),
        8 => text.prop_map(Value::from),
        1 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::Binary),
        1 => ".{0,20}".prop_map(|text| Value::Binary(text.into_bytes())),
        1 => date().prop_map(|text| Value::Ext(78, text.into_bytes())),
        1 => (0..127i8, proptest::collection::vec(any::<u8>(), 0..20))
            .prop_filter("dates have a strategy of their own", |(kind, _)| *kind != 78)
            .prop_map(|(kind, bytes)| Value::Ext(kind, bytes)),
    ];
    // Mostly what Salt sends, so that most payloads are ones that Python can encode by itself.
    let key = prop_oneof![
        12 => "[a-z_|-]{1,12}".prop_map(Value::from),
        1 => any::<i16>().prop_map(Value::from),
        1 => scalar.clone(),
    ];
    scalar.prop_recursive(5, 40, 8, move |inner| {
        let rare_key = prop_oneof![30 => key.clone(), 1 => inner.clone()];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
            proptest::collection::vec((rare_key, inner), 0..8).prop_map(Value::Map),
        ]
    })
}

/// A date as Salt packs it.
fn date() -> impl Strategy<Value = String> {
    let micros = prop_oneof![Just(0), Just(5), Just(120_000), 0..1_000_000u32];
    (1000..10_000u32, 1..13u32, 1..29u32, 0..24u32, 0..60u32, micros).prop_map(
        |(year, month, day, hour, minute, micros)| {
            format!("{year}{month:02}{day:02}T{hour:02}:{minute:02}:07.{micros:06}")
        },
    )
}

/// Every marker of msgpack in its longest form too, which encoders do not choose for small values,
/// and payloads that are easier to write by hand than to generate.
fn by_hand() -> Vec<Vec<u8>> {
    let mut payloads: Vec<Vec<u8>> = [
        &b"\xd3\x00\x00\x00\x00\x00\x00\x00\x05"[..],
        b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
        b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xcc\x05",
        b"\xcd\x00\x05",
        b"\xce\x00\x00\x00\x05",
        b"\xd0\xff",
        b"\xd1\xff\xff",
        b"\xd2\xff\xff\xff\xff",
        b"\xca\x3d\xcc\xcc\xcd",
        b"\xca\x7f\x80\x00\x00",
        b"\xd9\x01a",
        b"\xda\x00\x01a",
        b"\xdb\x00\x00\x00\x01a",
        b"\xc4\x01a",
        b"\xc5\x00\x01a",
        b"\xc6\x00\x00\x00\x01a",
        b"\xc7\x01\x05a",
        b"\xc8\x00\x01\x05a",
        b"\xc9\x00\x00\x00\x01\x05a",
        b"\xd4\x05a",
        b"\xd5\x05ab",
        b"\xdc\x00\x01\x05",
        b"\xdd\x00\x00\x00\x01\x05",
        b"\xde\x00\x01\x05\x06",
        b"\xdf\x00\x00\x00\x01\x05\x06",
        // Text that is not UTF-8: alone, cut off, an encoded surrogate, too long a form.
        b"\xa3a\xffb",
        b"\xa2\xe2\x82",
        b"\xa3\xed\xa0\x80",
        b"\xa2\xc0\x80",
        b"\xa5\xf0\x90\x80a\xff",
        // msgpack's timestamp in its three forms.
        b"\xd6\xff\x00\x00\x00\x01",
        b"\xd7\xff\x1d\xcd\x65\x00\x65\x00\x00\x00",
        b"\xc7\x0c\xff\x00\x00\x00\x07\xff\xff\xff\xff\xff\xff\xff\xff",
        // Keys: nil, booleans, numbers, bytes, a timestamp, arrays, maps, and repeated ones.
        b"\x88\xc0\x01\xc2\x01\xc3\x01\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00\x01\xcb\xff\xf0\x00\x00\x00\x00\x00\x00\x01\x92\x01\xa1\"\x01\x81\xa1a\x01\x02\xc4\x01\xff\x01",
        b"\x84\x01\x01\xa1\x31\x02\xc3\x03\x01\x04",
        b"\x81\xd6\xff\x00\x00\x00\x01\x01",
    ]
    .map(<[u8]>::to_vec)
    .into();
    // The deepest nesting that goes through uncut.
    let mut deep = vec![0x91; json::MAX_DEPTH];
    deep.push(0xc0);
    payloads.push(deep);
    payloads
}

/// For each payload the JSON by rule, and Python's own or nothing.
fn ask_python(payloads: &[Vec<u8>]) -> Vec<(String, String)> {
    let dir = tempfile::tempdir().unwrap();
    let questions = dir.path().join("payloads");
    let mut file = File::create(&questions).unwrap();
    for payload in payloads {
        file.write_all(&u32::try_from(payload.len()).unwrap().to_be_bytes()).unwrap();
        file.write_all(payload).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle.py");
    // From a file, so that neither side can wait for the other.
    let stdin = Stdio::from(File::open(&questions).unwrap());
    let output = Command::new(python()).arg(script).stdin(stdin).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let mut rest = output.stdout.as_slice();
    let mut texts = Vec::new();
    while let Some((head, behind)) = rest.split_first_chunk::<4>() {
        let (text, behind) = behind.split_at(u32::from_be_bytes(*head).try_into().unwrap());
        texts.push(String::from_utf8(text.to_vec()).unwrap());
        rest = behind;
    }
    texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

fn python() -> PathBuf {
    installed("salt-3008.3").join("bin/python")
}
