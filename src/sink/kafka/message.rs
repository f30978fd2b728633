//! The message of an event: topic, key, value, headers.

use std::borrow::Cow;

use jiff::Timestamp;
use rdkafka::message::{Header, OwnedHeaders};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::event::batch::Entry;
use crate::event::template::{Field, Part, Template, Values};
use crate::event::{EventKind, Fields};
use crate::yaml::TemplateText;

/// The name of a topic, in which `{kind}` stands for the event's kind and `{master}` for the id of
/// its master. Other fields of an event are not for it: minions choose them, and so could have any
/// number of topics made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "TemplateText")]
#[schemars(with = "String")]
pub(super) struct Topic(Template);

/// Kafka's own limit.
const LONGEST_NAME: usize = 249;

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
}

impl TryFrom<TemplateText> for Topic {
    type Error = String;

    fn try_from(TemplateText(text): TemplateText) -> Result<Self, String> {
        let template = Template::try_from(text.clone())
            .map_err(|error| format!("`{text}` cannot be the name of a topic: {error}"))?;
        for part in template.parts() {
            match part {
                Part::Text(fixed) if !fixed.chars().all(is_plain) => {
                    let help = "letters, digits, `.`, `_` and `-` can be in it";
                    return Err(format!("`{text}` cannot be the name of a topic; {help}"));
                }
                Part::Text(_) | Part::Field(Field::Kind | Field::Master) => {}
                Part::Field(_) => {
                    let help = "`{kind}` and `{master}` are the fields that can be in it";
                    return Err(format!("`{text}` cannot be the name of a topic; {help}"));
                }
            }
        }
        if ["", ".", ".."].contains(&text.as_str()) || text.len() > LONGEST_NAME {
            return Err(format!("`{text}` cannot be the name of a topic"));
        }
        Ok(Topic(template))
    }
}

impl Topic {
    /// The name, where it is one for all events.
    pub(super) fn fixed(&self) -> Option<&str> {
        self.0.fixed()
    }

    /// The topic for events of this kind and master. Characters that cannot be in a name become
    /// `_`.
    pub(super) fn name(&self, kind: EventKind, master: &str) -> Cow<'_, str> {
        if let Some(text) = self.fixed() {
            return Cow::Borrowed(text);
        }
        let plain = |value: Option<&str>| {
            value.unwrap_or("_").chars().map(|c| if is_plain(c) { c } else { '_' }).collect()
        };
        let mut name = self.0.render_with(&Values::of_kind(kind, master), plain);
        // Its characters are a byte each.
        name.truncate(LONGEST_NAME);
        Cow::Owned(name)
    }
}

/// The key of a message. Messages of one key are in one partition, in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Key {
    /// The minion's id; none where the event has none.
    #[default]
    Minion,
    /// The job's id; none where the event has none.
    Jid,
    /// The tag.
    Tag,
    /// None: messages are spread over the partitions.
    None,
}

impl Key {
    /// The key of an event with these fields.
    pub(super) fn of<'a>(self, tag: &'a str, fields: &Fields<'a>) -> Option<&'a str> {
        match self {
            Key::Minion => fields.minion,
            Key::Jid => fields.jid,
            Key::Tag => Some(tag),
            Key::None => None,
        }
    }
}

/// The value of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::sink) enum Format {
    /// The object that `rawfile_json` writes: `{"tag": …, "data": …}`.
    #[default]
    Json,
    /// A msgpack map of `tag` and `data`; `data` is the event's payload, byte by byte.
    Msgpack,
    /// The return as JSON, as Salt's returner `kafka` sends it. Other events are not sent.
    SaltReturner,
}

impl Format {
    /// Events of this kind are sent.
    pub(super) fn takes(self, kind: EventKind) -> bool {
        self != Format::SaltReturner || kind == EventKind::JobReturn
    }

    /// Appends the value.
    pub(super) fn write(self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        match self {
            Format::Json => entry.event.write_object(out),
            Format::SaltReturner => entry.event.write_json(out),
            Format::Msgpack => {
                out.extend_from_slice(b"\x82\xa3tag");
                write_text(entry.event.tag(), out);
                out.extend_from_slice(b"\xa4data");
                out.extend_from_slice(entry.event.payload());
            }
        }
    }
}

/// Appends a msgpack string.
fn write_text(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    match u32::try_from(bytes.len()) {
        Ok(len @ 0..=31) => out.push(0xa0 | len.to_be_bytes()[3]),
        Ok(len) => {
            out.push(0xdb);
            out.extend_from_slice(&len.to_be_bytes());
        }
        // Longer than any frame can be.
        Err(_) => return out.push(0xa0),
    }
    out.extend_from_slice(bytes);
}

/// The headers of an event's message: `tag`, `kind`, `master`, `event_id`, `stamp`, and of a return
/// its `outcome`.
pub(super) fn headers(entry: &Entry<'_>, fields: &Fields<'_>) -> OwnedHeaders {
    let read;
    let stamp = match fields.stamp {
        Some(stamp) => stamp,
        None => {
            let micros = i64::try_from(entry.received).unwrap_or(i64::MAX);
            read = Timestamp::from_microsecond(micros).unwrap_or_default().to_string();
            &read
        }
    };
    let header = |headers: OwnedHeaders, key: &str, value: &str| {
        headers.insert(Header { key, value: Some(value) })
    };
    let headers = OwnedHeaders::new_with_capacity(6);
    let headers = header(headers, "tag", entry.event.tag());
    let headers = header(headers, "kind", entry.event.kind().name());
    let headers = header(headers, "master", &entry.origin.master_id);
    let id = entry.event.id().digits();
    let headers = headers.insert(Header { key: "event_id", value: Some(&id) });
    let headers = header(headers, "stamp", stamp);
    match entry.event.is_return() {
        true => header(headers, "outcome", fields.job_return.outcome().name()),
        false => headers,
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers;

    use super::*;
    use crate::event::Event;
    use crate::sink::testing::entry;

    fn topic(text: &str) -> Result<Topic, String> {
        Topic::try_from(TemplateText(text.to_owned()))
    }

    #[test]
    fn topics_by_template() {
        let name = |text| topic(text).unwrap().name(EventKind::JobReturn, "salt/ä.1").into_owned();
        assert_eq!(name("salt.events"), "salt.events");
        assert_eq!(name("salt.{kind}"), "salt.job_return");
        assert_eq!(name("{master}-{kind}"), "salt__.1-job_return");
        assert_eq!(topic("a").unwrap().fixed(), Some("a"));
        assert_eq!(topic("{kind}").unwrap().fixed(), None);
        let long = topic(&format!("{}{{kind}}", "x".repeat(240))).unwrap();
        assert_eq!(long.name(EventKind::Custom, "m").len(), 246);
        assert_eq!(long.name(EventKind::JobProgress, "m").len(), 249);
    }

    #[test]
    fn what_cannot_be_a_topic() {
        for wrong in ["", "a b", "a/b", "ä", "{kind", "{tag}", "{}", ".", "..", &"x".repeat(250)] {
            assert!(topic(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_keys_and_headers() {
        let data = serde_json::json!({"id": "web-1", "fun": "test.ping", "_stamp": "now"});
        let payload = rmp_serde::to_vec(&data).unwrap();
        let event = Event::new("salt/job/20261121233336123456/ret/web-1", &payload);
        let entry = entry(&event);
        let value = |format: Format| {
            let mut out = Vec::new();
            format.write(&entry, &mut out);
            out
        };
        let json = r#"{"id": "web-1", "fun": "test.ping", "_stamp": "now"}"#;
        assert_eq!(value(Format::SaltReturner), json.as_bytes());
        assert_eq!(
            String::from_utf8(value(Format::Json)).unwrap(),
            format!("{{\"tag\": \"{}\", \"data\": {json}}}", event.tag())
        );
        let value = rmpv::decode::read_value(&mut value(Format::Msgpack).as_slice()).unwrap();
        assert_eq!(value["tag"].as_str(), Some(event.tag()));
        assert_eq!(value["data"]["fun"].as_str(), Some("test.ping"));
        assert!(!Format::SaltReturner.takes(EventKind::JobNew));

        let fields = event.fields();
        assert_eq!(Key::Minion.of(event.tag(), &fields), Some("web-1"));
        assert_eq!(Key::Jid.of(event.tag(), &fields), Some("20261121233336123456"));
        assert_eq!(Key::Tag.of(event.tag(), &fields), Some(event.tag()));
        assert_eq!(Key::None.of(event.tag(), &fields), None);

        let text = |headers: &OwnedHeaders, at| {
            let Header { key, value } = headers.get_as::<str>(at).unwrap();
            format!("{key}={}", value.unwrap())
        };
        let of_event = headers(&entry, &fields);
        let id = format!("event_id={}", event.id());
        let expected = [format!("tag={}", event.tag()), "kind=job_return".into()];
        assert_eq!([text(&of_event, 0), text(&of_event, 1)], expected);
        let expected = ["master=m".into(), id, "stamp=now".into(), "outcome=unknown".into()];
        assert_eq!([2, 3, 4, 5].map(|at| text(&of_event, at)), expected);
        let unstamped = headers(&entry, &Fields::default());
        assert_eq!(text(&unstamped, 4), "stamp=2026-11-21T23:36:17.69289Z");
    }
}
