//! The checks of the fuzz targets; shared with `tests/it/fuzz_targets.rs`.

use bytes::{Bytes, BytesMut};
use saltern::codec::json;
use saltern::codec::lenient_json::{self, Replaced};
use saltern::codec::msgpack::{self, Item, Malformed, Walker};
use saltern::config::Config;
use saltern::http;
use saltern::import_master::{self, Master};
use saltern::jobs::Jobs;
use saltern::source::framing::{Frame, FrameError, Framer};
use saltern::source::prefixed::{PREFIX, PrefixError, Prefixed};
use saltern::source::returner_wire;
use saltern::yaml::Node;

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
            // The part of a frame at hand decides which fault is noticed first: its length, or one
            // further in. The length is only known from below.
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

/// Any text is a value or an error. JSON keeps its value, except for integers over 64 bits.
pub(crate) fn lenient_json(data: &[u8]) {
    let strict = serde_json::from_slice::<serde_json::Value>(lenient_json::without_mark(data));
    match (lenient_json::read(data), strict) {
        (Ok((lenient, replaced)), Ok(strict)) if replaced == Replaced::default() => {
            assert_eq!(lenient, strict);
        }
        (Ok((_, replaced)), Ok(_)) => {
            let of_integers =
                Replaced { long_integer: replaced.long_integer, ..Replaced::default() };
            assert_eq!(replaced, of_integers);
        }
        (Err(error), Ok(_)) => panic!("JSON is refused: {error}"),
        (_, Err(_)) => {}
    }
}

/// The same as [`framing`], for the messages of Salt's side.
pub(crate) fn prefixed(data: &[u8]) {
    let [pace, limit, stream @ ..] = data else { return };
    let max_frame = 16_usize << (limit % 12);
    let whole = messages(stream, stream.len().max(1), max_frame);
    for piece in [1, usize::from(*pace) + 1] {
        assert_eq!(whole, messages(stream, piece, max_frame), "pieces of {piece}");
    }
}

fn messages(stream: &[u8], piece: usize, max_frame: usize) -> (Vec<Bytes>, Option<PrefixError>) {
    let mut prefixed = Prefixed::new(max_frame);
    let mut buffer = BytesMut::new();
    let mut found = Vec::new();
    for piece in stream.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match prefixed.next(&mut buffer) {
                Ok(Some(message)) => found.push(message),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
        match prefixed.wanted(&buffer) {
            Ok(Some(wanted)) => {
                assert!(wanted <= max_frame + PREFIX, "waits for {wanted}");
                assert!(wanted > buffer.len(), "stands still with all that it wants");
            }
            wanted => assert!(wanted == Ok(None) && buffer.len() < PREFIX),
        }
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
        // Bytes that are said to be missing are missing: one byte less is not enough either.
        assert!(missing > 0 && at <= data.len());
        if missing <= 1 << 20 {
            let longer = [data, &vec![0; missing - 1]].concat();
            assert!(Walker::new(&longer).skip().is_err());
        }
    }
    // Only two keys are looked up, since each look walks over the whole map.
    let mut ends = [None, None];
    for (key, value) in msgpack::pairs(data) {
        assert_eq!(msgpack::whole(value), Ok(()));
        if let Ok(key) = std::str::from_utf8(key) {
            ends = [ends[0].or(Some(key)), Some(key)];
        }
    }
    for key in ends.into_iter().flatten() {
        assert!(msgpack::find(data, key).is_some(), "{key} is not found");
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
/// cache was given it can give out again. Returns true if it was done.
pub(crate) fn request(data: &[u8], jobs: &Jobs) -> bool {
    let message = Bytes::copy_from_slice(data);
    let (events, answer) = returner_wire::handled(&message, MAX_REQUEST, jobs);
    assert_eq!(Walker::new(&answer).skip(), Ok(&answer[..]), "the answer is no msgpack");
    let number = |message, key| match msgpack::find(message, key).and_then(msgpack::scalar) {
        Some(Item::Uint(number)) => number,
        _ => 0,
    };
    assert_eq!((number(&answer, "v"), number(&answer, "id")), (2, number(data, "id")));
    for event in &events {
        // A return gets a tag with its job and minion.
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

/// The password in the configuration that a target begins with.
const SECRET: &str = "hunter2-is-secret";

/// Longer texts only take longer: the search for mistakes begins again after each one.
const MAX_TEXT: usize = 16 << 10;

/// The text of an input that the targets of YAML take. It must not read files of this machine.
fn yaml(data: &[u8]) -> Option<&str> {
    let is_taken = |text: &&str| text.len() <= MAX_TEXT && !text.contains("${file:");
    std::str::from_utf8(data).ok().filter(is_taken)
}

/// Any text behind a section with a password is a configuration or has mistakes, each with a place
/// in the text where there is one, and none tells the password.
pub(crate) fn config(data: &[u8]) {
    let Some(rest) = yaml(data).filter(|rest| !rest.contains(SECRET)) else { return };
    let text = format!("sinks:\n  store:\n    clickhouse: {{password: '{SECRET}'}}\n{rest}");
    let Err(problems) = Config::parse(&text) else { return };
    assert!(!problems.is_empty());
    // To YAML a carriage return alone ends a line too.
    let lines = text.split(['\n', '\r']).count();
    for problem in problems {
        assert!(!problem.message.is_empty());
        let place = problem.place.expect("a mistake has no place");
        // A place behind the last line is that of a missing end.
        assert!(place.line <= lines + 1, "line {} of {lines}", place.line);
        let shown = problem.render("saltern.yaml", &text);
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

/// Any configuration of a master becomes a page that is YAML, or is refused with a place.
pub(crate) fn import_master(data: &[u8]) {
    let Some(text) = yaml(data) else { return };
    let master = match Master::parse(text) {
        Ok(master) => master,
        Err(problem) => {
            assert!(!problem.render("master", text).is_empty());
            return;
        }
    };
    let page = import_master::import(&master, "master");
    if let Err(problem) = Node::parse(&page) {
        panic!("{}", problem.render("the page", &page));
    }
}

/// The query string of any route is taken, or refused with a sentence that is in proportion. The
/// first byte chooses the route.
pub(crate) fn query(data: &[u8], jobs: &Jobs) {
    let [route, query @ ..] = data else { return };
    let Ok(query) = std::str::from_utf8(query) else { return };
    let route = http::QUERIES[usize::from(*route) % http::QUERIES.len()];
    match http::read_query(route, query) {
        Ok(None) => {}
        Ok(Some(selection)) => {
            // A pattern may be too much for SQLite.
            if let Ok(page) = jobs.page(&selection) {
                serde_json::from_slice::<serde_json::Value>(&page).expect("the page is no JSON");
            }
        }
        Err(why) => {
            assert!(!why.is_empty() && why.len() <= 1000 + 10 * query.len(), "{why}");
        }
    }
}

/// The depth to which the brackets of a JSON text nest; they have to match.
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
