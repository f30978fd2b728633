//! What the fuzz targets check; shared with `tests/fuzz_targets.rs`.

use bytes::{Bytes, BytesMut};
use saltern::jobs::Jobs;
use saltern::json;
use saltern::msgpack::{self, Item, Malformed, Walker};
use saltern::source::framing::{Frame, FrameError, Framer};
use saltern::source::returner_wire;

/// Any cutting of a stream gives the frames and the error that the stream gives in one piece. The
/// first two bytes choose the cutting and the limit.
pub(crate) fn framing(data: &[u8]) {
    let [pace, limit, stream @ ..] = data else { return };
    let max_frame = 16_usize << (limit % 12);
    let (whole, whole_error) = frames(stream, stream.len().max(1), max_frame);
    for piece in [1, usize::from(*pace) + 1] {
        let (cut, cut_error) = frames(stream, piece, max_frame);
        assert_eq!(whole, cut, "pieces of {piece}");
        let same = match (&whole_error, &cut_error) {
            // How much of a frame is at hand decides what is noticed first: its length, or what is
            // wrong further in. And the length is only known from below.
            (Some(FrameError::TooLarge { .. }), Some(_))
            | (Some(_), Some(FrameError::TooLarge { .. })) => true,
            (one, other) => one == other,
        };
        assert!(same, "{whole_error:?} in one piece, {cut_error:?} in pieces of {piece}");
    }
}

fn frames(stream: &[u8], piece: usize, max_frame: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut framer = Framer::new(max_frame);
    let mut buffer = BytesMut::new();
    let mut found = Vec::new();
    for piece in stream.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match framer.next(&mut buffer) {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
        // The length before a frame is not part of it.
        assert!(framer.wanted() <= max_frame + 4, "waits for {}", framer.wanted());
        assert!(framer.wanted() > buffer.len(), "stands still with all that it wants");
    }
    (found, None)
}

/// Skipping a value consumes what its items do, and fails where they do.
pub(crate) fn walker(data: &[u8]) {
    let mut skipping = Walker::new(data);
    let skipped = skipping.skip();
    let mut reading = Walker::new(data);
    let read = items(&mut reading);
    assert_eq!(skipped.map(<[u8]>::len), read.map(|()| reading.offset()));
    assert_eq!(skipping.offset(), reading.offset());
    if let Err(Malformed::Truncated { at, missing }) = read {
        // What is said to be missing is missing: one byte less is not enough either.
        assert!(missing > 0 && at <= data.len());
        if missing <= 1 << 20 {
            let longer = [data, &vec![0; missing - 1]].concat();
            assert!(Walker::new(&longer).skip().is_err());
        }
    }
    for (key, value) in msgpack::pairs(data) {
        assert_eq!(Walker::new(value).skip(), Ok(value));
        if let Ok(key) = std::str::from_utf8(key) {
            let found = msgpack::find(data, key);
            assert!(found.is_some(), "{key} is not found");
        }
    }
}

fn items(walker: &mut Walker<'_>) -> Result<(), Malformed> {
    let mut left = 1_u64;
    while left > 0 {
        left -= 1;
        left += match walker.item()? {
            Item::Array(len) => u64::from(len),
            Item::Map(len) => u64::from(len) * 2,
            _ => 0,
        };
    }
    Ok(())
}

/// Any payload becomes JSON. `serde_json` reads 127 levels, so deeper text is only looked at.
pub(crate) fn transcoder(data: &[u8]) {
    let mut out = Vec::new();
    let losses = json::write(data, &mut out);
    let text = std::str::from_utf8(&out).expect("the JSON is not UTF-8");
    let depth = depth(text);
    assert!(depth <= json::MAX_DEPTH, "{depth} levels");
    if depth < 128
        && let Err(error) = serde_json::from_str::<serde_json::Value>(text)
    {
        panic!("{error}: {text}");
    }
    // The worst is a quote that is escaped once for each key that it is in a key of.
    assert!(out.len() <= 100 * (data.len() + 1), "{} bytes of {}", out.len(), data.len());
    let is_whole = Walker::new(data).skip().is_ok();
    assert_eq!(losses.torn == 0, is_whole, "{losses:?}");
}

/// The longest request that is taken here.
const MAX_REQUEST: usize = 4096;

/// Any message to the returner source gets one answer, with the number of the request; what the job
/// cache was given it can give out again. Whether it was done.
pub(crate) fn request(data: &[u8], jobs: &Jobs) -> bool {
    let message = Bytes::copy_from_slice(data);
    let (events, answer) = returner_wire::handled(&message, MAX_REQUEST, jobs);
    assert_eq!(Walker::new(&answer).skip(), Ok(&answer[..]), "the answer is no msgpack");
    let number = |message, key| match msgpack::find(message, key).and_then(msgpack::scalar) {
        Some(Item::Uint(number)) => number,
        _ => 0,
    };
    assert_eq!((number(&answer, "v"), number(&answer, "id")), (1, number(data, "id")));
    for event in &events {
        // A return gets a tag, which says what is in it.
        assert!(data.len() <= MAX_REQUEST && event.len() <= 2 * data.len() + 32);
    }
    let text = |key| msgpack::find(&answer, key).and_then(msgpack::scalar);
    if let Some(why) = text("error").and_then(Item::text) {
        assert!(!why.is_empty() && matches!(text("later"), Some(Item::Bool(_))));
        return false;
    }
    if let Some(value) = text("value").and_then(Item::bytes) {
        assert_eq!(Walker::new(value).skip(), Ok(value), "the value is no msgpack");
    }
    true
}

/// How deep the brackets of a JSON text nest; they have to match.
fn depth(text: &str) -> usize {
    let (mut open, mut deepest) = (Vec::new(), 0);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => loop {
                match bytes.next() {
                    Some(b'"') => break,
                    Some(b'\\') => drop(bytes.next()),
                    Some(_) => {}
                    None => panic!("a string without an end: {text}"),
                }
            },
            b'[' | b'{' => {
                open.push(byte);
                deepest = deepest.max(open.len());
            }
            b']' => assert_eq!(open.pop(), Some(b'['), "{text}"),
            b'}' => assert_eq!(open.pop(), Some(b'{'), "{text}"),
            _ => {}
        }
    }
    assert!(open.is_empty(), "{text}");
    deepest
}
