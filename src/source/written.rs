//! Events as files and messages hold them: an object of `tag` and `data`, in JSON or in msgpack.
//!
//! A JSON object of a return alone, as Salt's `rawfile_json` and `kafka` write it for
//! `--return`, is the event of that return.
//!
//! Either becomes the bytes that the bus would have carried: tag, empty line, msgpack. JSON has
//! less to say than msgpack, so the bytes differ from those that the bus did carry. Msgpack is
//! taken as it is, with all its mistakes.

use bytes::Bytes;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::codec::lenient_json::{self, Replaced};
use crate::codec::msgpack::{Item, Malformed, Walker};
use crate::event::return_tag;
use crate::event::runner::RunnerJob;

/// The reason why bytes are no event.
#[derive(Debug, Error)]
pub(super) enum NotAnEvent {
    /// It is not JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It is another JSON.
    #[error(
        "it is neither a JSON object of `tag`, which is a string, and `data`, nor a return of `jid`, \
         `id` and `return`"
    )]
    NotTheTwo,
    /// The data cannot be written as msgpack.
    #[error("the data cannot be msgpack: {0}")]
    Data(#[from] rmp_serde::encode::Error),
    /// It is not msgpack.
    #[error("it is not msgpack: {0}")]
    Msgpack(#[from] Malformed),
    /// It is another msgpack.
    #[error("it is not a msgpack map of `tag` and `data`")]
    NotAPair,
    /// The bus could not have carried it.
    #[error("the tag has an empty line in it")]
    Tag,
}

/// The place where the payload of a frame begins.
const TAG_END: &[u8] = b"\n\n";

/// The frame of a JSON object, and the values that JSON could not hold. Keys besides the two are
/// passed over.
pub(super) fn from_json(text: &[u8]) -> Result<(Bytes, Replaced), NotAnEvent> {
    let (value, replaced) = lenient_json::read(text)?;
    let Value::Object(mut pairs) = value else { return Err(NotAnEvent::NotTheTwo) };
    if let Some(tag) = tag_of_return(&pairs) {
        let load = rmp_serde::to_vec(&pairs)?;
        return match RunnerJob::handed_on(&load, "") {
            Some(runner) => Ok((runner.event().frame().clone(), replaced)),
            None => Ok(([head(tag.as_bytes(), load.len())?, load].concat().into(), replaced)),
        };
    }
    let (tag, data) = (pairs.swap_remove("tag"), pairs.swap_remove("data"));
    let (Some(Value::String(tag)), Some(data)) = (tag, data) else {
        return Err(NotAnEvent::NotTheTwo);
    };
    let mut frame = head(tag.as_bytes(), text.len())?;
    rmp_serde::encode::write(&mut frame, &data)?;
    Ok((frame.into(), replaced))
}

/// The tag under which the bus carries a return that stands alone.
fn tag_of_return(pairs: &Map<String, Value>) -> Option<String> {
    let text = |key: &str| pairs.get(key).and_then(Value::as_str);
    let is_return = pairs.contains_key("return") && !pairs.contains_key("data");
    let (jid, minion) = (text("jid")?, text("id")?);
    is_return.then(|| return_tag(jid, minion))
}

/// The frame of a msgpack map of the two. `data` at the end takes all remaining bytes, so a payload
/// that broke off on the bus comes back as it was.
#[cfg_attr(not(feature = "kafka"), expect(dead_code, reason = "the kind kafka alone uses it"))]
pub(super) fn from_msgpack(bytes: &[u8]) -> Result<Bytes, NotAnEvent> {
    let mut walker = Walker::new(bytes);
    let (mut tag, mut data) = (None, None);
    let Item::Map(2) = walker.item()? else { return Err(NotAnEvent::NotAPair) };
    for is_last in [false, true] {
        match walker.item()?.bytes() {
            Some(b"tag") => tag = walker.item()?.bytes(),
            Some(b"data") if is_last => data = bytes.get(walker.offset()..),
            Some(b"data") => data = Some(walker.skip()?),
            _ => return Err(NotAnEvent::NotAPair),
        }
    }
    let (Some(tag), Some(data)) = (tag, data) else { return Err(NotAnEvent::NotAPair) };
    let mut frame = head(tag, data.len() + tag.len())?;
    frame.extend_from_slice(data);
    Ok(frame.into())
}

fn head(tag: &[u8], capacity: usize) -> Result<Vec<u8>, NotAnEvent> {
    let mut frame = Vec::with_capacity(capacity + TAG_END.len());
    frame.extend_from_slice(tag);
    frame.extend_from_slice(TAG_END);
    // Readers of the frame take the first empty line for the end of the tag.
    match memchr::memmem::find(&frame, TAG_END) == Some(tag.len()) {
        true => Ok(frame),
        false => Err(NotAnEvent::Tag),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::Event;

    fn msgpack(tag: &str, payload: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x82\xa3tag".to_vec();
        rmp_serde::encode::write(&mut bytes, tag).unwrap();
        bytes.extend_from_slice(b"\xa4data");
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_return_alone_is_the_event_of_that_return() {
        let read = |text: &str| from_json(text.as_bytes()).map(|(frame, _)| Event::parse(frame));
        let returned = r#"{"jid": "20261101120000000000", "id": "w1", "return": {"tag": 1}}"#;
        let event = read(returned).unwrap().unwrap();
        assert_eq!(event.tag(), "salt/job/20261101120000000000/ret/w1");
        assert_eq!(event.json(&mut Vec::new()), returned.as_bytes());
        let runner = r#"{"jid": "1", "id": "m", "tgt": "m", "fun": "runner.a.b",
            "return": {"fun": "runner.a.b", "jid": "1", "return": 5, "success": true}}"#;
        assert_eq!(read(runner).unwrap().unwrap().tag(), "salt/run/1/ret");
        for other in [r#"{"jid": "1", "id": "w1"}"#, r#"{"id": "w1", "return": 1}"#, "[1]"] {
            assert!(matches!(read(other), Err(NotAnEvent::NotTheTwo)), "{other}");
        }
    }

    proptest! {
        #[test]
        fn msgpack_comes_back_byte_by_byte(
            tag in "[a-z/ü]{0,60}",
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let event = Event::new(&tag, &payload);
            prop_assert_eq!(&from_msgpack(&msgpack(&tag, &payload)).unwrap(), event.frame());
        }

        #[test]
        fn any_bytes_are_an_event_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let of_json = from_json(&bytes).map(|(frame, _)| frame);
            for frame in [from_msgpack(&bytes), of_json].into_iter().flatten() {
                Event::parse(frame).unwrap();
            }
        }
    }

    #[test]
    fn json_becomes_what_the_bus_would_have_carried() {
        let text = br#"{"data": {"n": [1, null]}, "tag": "a/b", "more": 1}"#;
        let (frame, replaced) = from_json(text).unwrap();
        assert_eq!(frame, b"a/b\n\n\x81\xa1n\x92\x01\xc0"[..]);
        assert_eq!(replaced, Replaced::default());
    }

    #[test]
    fn the_order_of_the_two_does_not_matter() {
        let bytes = b"\x82\xa4data\x91\x01\xa3tag\xa1t";
        assert_eq!(from_msgpack(bytes).unwrap(), b"t\n\n\x91\x01"[..]);
    }

    #[test]
    fn what_is_no_event_is_an_error() {
        let nested = |depth| {
            format!("{{\"tag\": \"t\", \"data\": {}{}}}", "[".repeat(depth), "]".repeat(depth))
        };
        for (depth, cut) in [(128, 0), (129, 1), (100_000, 1)] {
            let (_, replaced) = from_json(nested(depth).as_bytes()).unwrap();
            assert_eq!(replaced.too_deep, cut, "{depth}");
        }
        for wrong in [
            "",
            "{}",
            "[]",
            r#"["a", 1]"#,
            r#"{"tag": "a"}"#,
            r#"{"tag": 1, "data": 1}"#,
            r#"{"tag": "a\n\nb", "data": 1}"#,
        ] {
            from_json(wrong.as_bytes()).unwrap_err();
        }
        for wrong in [
            &b""[..],
            b"\x80",
            b"\x82\xa3tag\xa1t",
            b"\x82\xa3tag\xa1t\xa3tag\xa1t",
            b"\x82\xa3tag\x01\xa4data\x01",
            b"\x83\xa3tag\xa1t\xa4data\x01\xa1x\x01",
            b"\x82\xa3tag\xa3\n\na\xa4data\x01",
            b"\x82\xa3tag\xa2a\n\xa4data\x01",
        ] {
            from_msgpack(wrong).unwrap_err();
        }
    }
}
