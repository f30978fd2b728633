//! The values of a batch's messages, made ahead.
//!
//! In a transaction no message of the next batch may be handed over before the one before is
//! committed. The values can be made, which is half of the work.
//!
//! They take no more than twice the memory of the frames. Hostile text becomes eight times as long
//! in JSON; of such a batch no values are made ahead, and its write makes each by itself.

use super::message::Format;
use crate::event::batch::Batch;

/// The values one after the other.
#[derive(Debug)]
pub(crate) struct Values {
    bytes: Vec<u8>,
    /// The end of the value of each event; that of an event that is not sent is empty.
    ends: Vec<usize>,
}

impl Values {
    /// The values of a batch; `None` if they are longer than its frames twice.
    pub(super) fn of(batch: &Batch, format: Format) -> Option<Self> {
        // The room is taken at once, since a buffer that grows would double. Memory that nothing
        // is written to costs nothing.
        let room = 2 * batch.bytes();
        let bytes = Vec::with_capacity(room);
        let mut values = Values { bytes, ends: Vec::with_capacity(batch.len()) };
        let mut value = Vec::new();
        for entry in batch.entries() {
            if format.takes(entry.event.kind()) {
                format.write(&entry, &mut value);
                if value.len() > room - values.bytes.len() {
                    return None;
                }
                values.bytes.append(&mut value);
            }
            values.ends.push(values.bytes.len());
        }
        Some(values)
    }

    /// The value of the event at this place.
    pub(super) fn get(&self, place: usize) -> Option<&[u8]> {
        let start = match place.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.bytes.get(start..*self.ends.get(place)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::sink::testing::batch;

    #[test]
    fn each_event_has_its_own_value() {
        let event = |tag: &str, text: &str| {
            Event::new(tag, &rmp_serde::to_vec(&serde_json::json!({"text": text})).unwrap())
        };
        let ret = "salt/job/20261121233336123456/ret/web-1";
        let long = "x".repeat(100);
        let batch = batch(vec![event("a", &long), event(ret, "y"), event("b", "z")]);
        let values = Values::of(&batch, Format::SaltReturner).unwrap();
        let text = |place| values.get(place).map(String::from_utf8_lossy);
        assert_eq!(text(0).as_deref(), Some(""));
        assert_eq!(text(1).as_deref(), Some(r#"{"text": "y"}"#));
        assert_eq!(text(2).as_deref(), Some(""));
        assert_eq!(text(3), None);
        let values = Values::of(&batch, Format::Json).unwrap();
        let text = |place| values.get(place).map(String::from_utf8_lossy);
        let first = format!(r#"{{"tag": "a", "data": {{"text": "{long}"}}}}"#);
        assert_eq!(text(0).as_deref(), Some(&*first));
        assert_eq!(text(2).as_deref(), Some(r#"{"tag": "b", "data": {"text": "z"}}"#));
    }

    #[test]
    fn values_that_are_much_longer_than_the_events_are_not_made_ahead() {
        let event = |text: String| {
            Event::new("a", &rmp_serde::to_vec(&serde_json::json!({"text": text})).unwrap())
        };
        let hostile = batch(vec![event("x".repeat(1000)), event("\u{1}".repeat(1000))]);
        assert!(Values::of(&hostile, Format::Json).is_none());
        let values = Values::of(&hostile, Format::Msgpack).unwrap();
        let most = 2 * hostile.bytes();
        assert!(values.bytes.capacity() <= most, "{}", values.bytes.capacity());
    }
}
