//! Events of messages, and how far a worker has read.
//!
//! The headers of a message hold its event's id (`event_id`) and master (`master`). Without headers
//! both are those that an event of the bus would have. Messages that are no events are passed over,
//! and count as read all the same: reading them again would not help.

use std::collections::BTreeMap;

use bytes::Bytes;
use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Headers as _};
use schemars::JsonSchema;
use serde::Deserialize;

use super::in_flight::{Offsets, Place};
use crate::codec::lenient_json::{MARK, Replaced};
use crate::event::EventId;
use crate::source::written::{self, NotAnEvent};

/// The form of the values of messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::source) enum Format {
    /// Told from the first byte of each.
    #[default]
    Auto,
    /// An object with `tag` and `data`.
    Json,
    /// A map of two, `tag` and `data`.
    Msgpack,
}

/// Events of one master, as the bus would have carried them, and the ids that they came with.
#[derive(Default)]
pub(super) struct Events {
    pub(super) frames: Vec<Bytes>,
    pub(super) ids: Vec<Option<EventId>>,
}

/// Messages that were read and are to be handed on together.
#[derive(Default)]
pub(super) struct Gathered {
    /// By master; `None` for that of the source.
    pub(super) events: BTreeMap<Option<String>, Events>,
    /// Behind the last message of each partition.
    pub(super) ends: Offsets,
    /// The place of the last message, which is likely that of the next.
    place: Option<Place>,
    messages: usize,
    pub(super) bytes: usize,
}

/// Messages of a lot at the most, and bytes; the last message may go over.
const MAX_MESSAGES: usize = 1000;
const MAX_BYTES: usize = 1 << 20;

/// The longest name of a master that is believed.
const MAX_MASTER: usize = 255;

impl Gathered {
    pub(super) fn is_full(&self) -> bool {
        self.messages >= MAX_MESSAGES || self.bytes >= MAX_BYTES
    }

    /// Takes a message, and returns the replaced parts of it; its offset counts as read whether or
    /// not it is an event.
    pub(super) fn take(
        &mut self,
        message: &BorrowedMessage<'_>,
        format: Format,
    ) -> Result<Replaced, NotAnEvent> {
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        let is_there = |place: &Place| &*place.0 == topic && place.1 == partition;
        let place = self.place.take().filter(is_there).unwrap_or_else(|| (topic.into(), partition));
        self.place = Some(place.clone());
        self.ends.insert(place, offset + 1);
        self.messages += 1;

        let (frame, replaced) = frame_of(message.payload().unwrap_or_default(), format)?;
        let (mut master, mut id) = (None, None);
        for header in message.headers().iter().flat_map(|headers| headers.iter()) {
            let value = header.value.unwrap_or_default();
            match header.key {
                "event_id" => id = EventId::from_hex(value),
                "master" => master = std::str::from_utf8(value).ok(),
                _ => {}
            }
        }
        let master = master.filter(|master| !master.is_empty() && master.len() <= MAX_MASTER);
        self.bytes += frame.len();
        let events = self.events.entry(master.map(str::to_owned)).or_default();
        events.frames.push(frame);
        events.ids.push(id);
        Ok(replaced)
    }
}

fn frame_of(value: &[u8], format: Format) -> Result<(Bytes, Replaced), NotAnEvent> {
    let is_json = match format {
        Format::Json => true,
        Format::Msgpack => false,
        Format::Auto => {
            value.starts_with(MARK)
                || matches!(value.first(), Some(b'{' | b' ' | b'\t' | b'\r' | b'\n'))
        }
    };
    match is_json {
        true => written::from_json(value),
        false => Ok((written::from_msgpack(value)?, Replaced::default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_python_is_told_from_msgpack() {
        let json = b"\xef\xbb\xbf {\"tag\": \"a\", \"data\": NaN}";
        for format in [Format::Auto, Format::Json] {
            let (frame, replaced) = frame_of(json, format).unwrap();
            assert_eq!((&frame[..], replaced.not_finite), (&b"a\n\n\xc0"[..], 1));
        }
        frame_of(json, Format::Msgpack).unwrap_err();
        let (frame, _) = frame_of(b"\x82\xa3tag\xa1a\xa4data\xc0", Format::Auto).unwrap();
        assert_eq!(frame, b"a\n\n\xc0"[..]);
    }
}
