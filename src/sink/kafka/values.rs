//! The values of a batch's messages, made ahead.
//!
//! In a transaction no message of the next batch may be handed over before the one before is
//! committed. The values can be made, which is half of the work.

use super::message::Format;
use crate::event::batch::Batch;
use crate::event::chunk::Share;

/// The values one after the other.
#[derive(Debug)]
pub(crate) struct Values {
    bytes: Vec<u8>,
    /// The end of the value of each event; that of an event that is not sent is empty.
    ends: Vec<usize>,
}

impl Values {
    pub(super) fn of(batch: &Batch, format: Format) -> Self {
        // JSON is a little longer than the frames; a buffer that grows would double.
        let frames: usize = batch.shares().map(Share::bytes).sum();
        let bytes = Vec::with_capacity(frames + frames / 4);
        let mut values = Values { bytes, ends: Vec::with_capacity(batch.len()) };
        for entry in batch.entries() {
            if format.takes(entry.event.kind()) {
                format.write(&entry, &mut values.bytes);
            }
            values.ends.push(values.bytes.len());
        }
        values
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
        let event = |tag: &str, n: u8| Event::new(tag, &[0x81, 0xa1, b'n', n]);
        let ret = "salt/job/20261121233336123456/ret/web-1";
        let batch = batch(vec![event("a", 1), event(ret, 2), event("b", 3)]);
        let values = Values::of(&batch, Format::SaltReturner);
        let text = |place| values.get(place).map(String::from_utf8_lossy);
        assert_eq!(text(0).as_deref(), Some(""));
        assert_eq!(text(1).as_deref(), Some(r#"{"n": 2}"#));
        assert_eq!(text(2).as_deref(), Some(""));
        assert_eq!(text(3), None);
        let values = Values::of(&batch, Format::Json);
        let text = |place| values.get(place).map(String::from_utf8_lossy);
        assert_eq!(text(0).as_deref(), Some(r#"{"tag": "a", "data": {"n": 1}}"#));
        assert_eq!(text(2).as_deref(), Some(r#"{"tag": "b", "data": {"n": 3}}"#));
    }
}
