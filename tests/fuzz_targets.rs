//! The fuzz targets on the stable compiler, with generated input.

// A test that fails does so by panicking, in its functions beside `#[test]` too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use proptest::prelude::*;

#[path = "../fuzz/targets.rs"]
mod targets;

/// Bytes of which many are msgpack markers, short lengths and what a frame consists of, so that
/// most inputs get past the first few bytes.
fn nearly_msgpack() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"\x82\xa4head\x80\xa4body".to_vec()),
        2 => Just(b"\x81\xa4body\xc4\x05tag\n\n".to_vec()),
        1 => Just(vec![0, 0, 0]),
        8 => (0x80..=0x84_u8).prop_map(|map| vec![map]),
        8 => (0x90..=0x94_u8).prop_map(|array| vec![array]),
        6 => (0xa0..=0xa6_u8).prop_map(|text| vec![text]),
        6 => (0xc0..=0xdf_u8).prop_map(|marker| vec![marker]),
        6 => (0..0x20_u8).prop_map(|number| vec![number]),
        2 => prop_oneof![Just(b'"'), Just(b'\\'), Just(0xff)].prop_map(|byte| vec![0xa1, byte]),
        2 => any::<u8>().prop_map(|byte| vec![byte]),
        1 => (0..300_usize).prop_map(|depth| vec![0x91; depth]),
        1 => (0..300_usize).prop_map(|depth| vec![0x81; depth]),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn framing(data in nearly_msgpack(), pace: u8, limit: u8) {
        targets::framing(&[&[pace, limit], &data[..]].concat());
    }

    #[test]
    fn framing_of_noise(data in proptest::collection::vec(any::<u8>(), 0..500)) {
        targets::framing(&data);
    }

    #[test]
    fn walker(data in nearly_msgpack()) {
        targets::walker(&data);
    }

    #[test]
    fn transcoder(data in nearly_msgpack()) {
        targets::transcoder(&data);
    }

    #[test]
    fn transcoder_of_noise(data in proptest::collection::vec(any::<u8>(), 0..500)) {
        targets::transcoder(&data);
    }
}

#[test]
fn captures() {
    for release in ["3006.28", "3007.15", "3008.3"] {
        let path = format!("{}/tests/captures/salt-{release}.bus", env!("CARGO_MANIFEST_DIR"));
        let capture = std::fs::read(path).unwrap();
        targets::framing(&[&[200, 11], &capture[..20_000]].concat());
        let after_prefix = if capture[0] == 0 { &capture[4..] } else { &capture[..] };
        targets::walker(after_prefix);
        targets::transcoder(after_prefix);
    }
}
