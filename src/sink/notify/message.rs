//! The text and the JSON of a digest: the number of events, in all and of each kind, and a line for
//! each.
//!
//! A minion chooses most values. So each is cut, and characters that a terminal or a chat would
//! obey are made visible ([`visible::capped`]).

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::visible;
use crate::event::EventKind;
use crate::event::batch::Entry;
use crate::event::escape::Place;
use crate::event::job_return::Outcome;
use crate::event::template::{Part, parts};
use crate::yaml::{TemplateText, suggest};

/// Bytes of a value, at the most. Longer than any id of Salt's.
const LONGEST: usize = 512;

/// Names that a text lists, and lines that it has. The others are counted.
const LISTED: usize = 10;

/// One event, as a digest shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Note {
    /// The time of its reading, in UTC.
    time: String,
    tag: String,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    minion: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fun: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
}

impl Note {
    /// The note of this event.
    pub(super) fn of(entry: &Entry<'_>) -> Self {
        let fields = entry.event.fields();
        let shown = |text: &str| visible::capped(text, LONGEST);
        let fun = fields.job_return.functions.shown();
        let received = i64::try_from(entry.received).unwrap_or(i64::MAX);
        let outcome = fields.job_return.outcome();
        Note {
            time: Timestamp::from_microsecond(received)
                .map_or_else(|_| String::new(), |time| time.to_string()),
            tag: shown(entry.event.tag()),
            kind: entry.event.kind().name().to_owned(),
            minion: fields.minion.map(shown),
            fun: Some(shown(&fun)).filter(|fun| !fun.is_empty()),
            jid: fields.jid.map(shown),
            outcome: (outcome != Outcome::Unknown).then(|| outcome.name().to_owned()),
        }
    }

    /// The event in one line.
    fn line(&self) -> String {
        let known = [&self.minion, &self.fun, &self.outcome];
        let words: Vec<_> = known.into_iter().flatten().map(String::as_str).collect();
        match words.is_empty() {
            true => self.tag.clone(),
            false if self.kind == EventKind::JobReturn.name() => words.join(" "),
            false => format!("{} {}", self.kind, words.join(" ")),
        }
    }
}

/// A digest, as its receiver gets it.
#[derive(Debug, Serialize)]
pub(crate) struct Message {
    /// Events in it.
    pub(super) count: usize,
    /// Events since the digest before that are in no digest.
    pub(super) dropped: u64,
    by: Counts,
    pub(super) events: Vec<Note>,
}

/// The numbers of events, by each field's values.
#[derive(Debug, Default, Serialize)]
struct Counts {
    kind: BTreeMap<String, u64>,
    outcome: BTreeMap<String, u64>,
    fun: BTreeMap<String, u64>,
    minion: BTreeMap<String, u64>,
}

impl Message {
    /// A digest of these events, after so many that are in no digest.
    pub(super) fn of(events: Vec<Note>, dropped: u64) -> Self {
        let mut by = Counts::default();
        for note in &events {
            let values = [Some(&note.kind), note.outcome.as_ref(), note.fun.as_ref()];
            let values = values.into_iter().chain([note.minion.as_ref()]);
            let counts = [&mut by.kind, &mut by.outcome, &mut by.fun, &mut by.minion];
            for (value, counts) in values.zip(counts) {
                if let Some(value) = value {
                    *counts.entry(value.clone()).or_default() += 1;
                }
            }
        }
        Message { count: events.len(), dropped, by, events }
    }

    /// The message as JSON.
    pub(crate) fn json(&self) -> Vec<u8> {
        // Numbers and strings can always be written.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn value(&self, field: Field) -> String {
        match field {
            Field::Count => self.count.to_string(),
            Field::Dropped => self.dropped.to_string(),
            Field::Kinds => listed(&self.by.kind),
            Field::Outcomes => listed(&self.by.outcome),
            Field::Funs => listed(&self.by.fun),
            Field::Minions => listed(&self.by.minion),
            Field::First => self.events.first().map_or_else(String::new, |note| note.time.clone()),
            Field::Last => self.events.last().map_or_else(String::new, |note| note.time.clone()),
            Field::Lines => {
                let mut lines: Vec<_> = self.events.iter().take(LISTED).map(Note::line).collect();
                if let Some(more @ 1..) = self.events.len().checked_sub(LISTED) {
                    lines.push(format!("and {more} more"));
                }
                lines.join("\n")
            }
        }
    }
}

/// `3 state.apply, 1 test.ping`: the most frequent first.
fn listed(counts: &BTreeMap<String, u64>) -> String {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let mut words: Vec<_> =
        sorted.iter().take(LISTED).map(|(name, count)| format!("{count} {name}")).collect();
    if let Some(more @ 1..) = sorted.len().checked_sub(LISTED) {
        words.push(format!("{more} others"));
    }
    words.join(", ")
}

/// The text of a digest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "TemplateText")]
#[schemars(with = "String")]
pub(crate) struct DigestText(Vec<Part<Field>>);

/// A fact of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Count,
    Dropped,
    Kinds,
    Outcomes,
    Funs,
    Minions,
    First,
    Last,
    Lines,
}

const FIELDS: [(&str, Field); 9] = [
    ("count", Field::Count),
    ("dropped", Field::Dropped),
    ("kinds", Field::Kinds),
    ("outcomes", Field::Outcomes),
    ("funs", Field::Funs),
    ("minions", Field::Minions),
    ("first", Field::First),
    ("last", Field::Last),
    ("lines", Field::Lines),
];

impl Field {
    fn named(name: &str) -> Result<Self, String> {
        let found = FIELDS.iter().find(|(known, _)| *known == name);
        found.map(|(_, field)| *field).ok_or_else(|| {
            let suggestion = suggest(name, &FIELDS.map(|(known, _)| known));
            format!("`{{{name}}}` is not a field of a digest, {suggestion}")
        })
    }
}

impl TryFrom<TemplateText> for DigestText {
    type Error = String;

    fn try_from(TemplateText(written): TemplateText) -> Result<Self, String> {
        DigestText::try_from(written)
    }
}

impl TryFrom<String> for DigestText {
    type Error = String;

    fn try_from(written: String) -> Result<Self, String> {
        parts(&written, Field::named).map(DigestText)
    }
}

impl DigestText {
    /// The text for this digest, in this place.
    pub(crate) fn of(&self, message: &Message, place: Place) -> String {
        let written = |part: &Part<Field>| match part {
            Part::Text(text) => text.clone(),
            Part::Field(field) => escaped(&message.value(*field), place),
        };
        self.0.iter().map(written).collect()
    }
}

/// The value as it is written there. Lines stay lines.
fn escaped(value: &str, place: Place) -> String {
    match place {
        Place::Text | Place::Markup => {
            let lines: Vec<_> = value.lines().map(|line| place.escape(Some(line))).collect();
            lines.join("\n")
        }
        Place::Json | Place::Form | Place::Url | Place::Header => place.escape(Some(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::sink::testing::entry;

    fn note(minion: &str, retcode: i64) -> Note {
        let data = serde_json::json!({"id": minion, "fun": "test.ping", "retcode": retcode});
        let event = Event::new("salt/job/1/ret/x", &rmp_serde::to_vec(&data).unwrap());
        Note::of(&entry(&event))
    }

    #[test]
    fn events_are_counted_and_hostile_values_are_bounded_and_visible() {
        let long = "x".repeat(2000);
        let notes = vec![note("a\u{202e}\"\n", 1), note(&long, 0), note("b", 1)];
        let message = Message::of(notes, 7);
        let json: serde_json::Value = serde_json::from_slice(&message.json()).unwrap();
        assert_eq!((&json["count"], &json["dropped"]), (&3.into(), &7.into()));
        assert_eq!(json["by"]["fun"], serde_json::json!({"test.ping": 3}));
        assert_eq!(json["by"]["outcome"]["failed"], 2);
        assert_eq!(json["events"][0]["minion"], "a\\u{202e}\"\\n");
        assert!(json["events"][1]["minion"].as_str().unwrap().len() < 520);
        assert!(json["events"][0]["time"].as_str().unwrap().starts_with("2026-"));
    }

    #[test]
    fn a_text_is_still_json_and_lists_ten() {
        let text = DigestText::try_from("{{\"t\": \"{count} {outcomes}\n{lines}\"}}".to_owned());
        let text = text.unwrap();
        let empty = text.of(&Message::of(Vec::new(), 0), Place::Json);
        assert_eq!(empty, "{\"t\": \"0 \n\"}");
        let text = DigestText::try_from("{{\"t\": \"{count}: {minions}; {lines}\"}}".to_owned());
        let notes = (0..12).map(|n| note(&format!("\"{n}"), 1)).collect();
        let json = text.unwrap().of(&Message::of(notes, 0), Place::Json);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let text = json["t"].as_str().unwrap();
        assert!(text.starts_with("12: 1 \"0, "), "{text}");
        assert!(text.contains("2 others; \"0 test.ping failed\n"), "{text}");
        assert!(text.ends_with("and 2 more"), "{text}");
    }

    #[test]
    fn a_mistake_is_told_when_the_text_is_read() {
        let error = DigestText::try_from("{cuont}".to_owned()).unwrap_err();
        assert!(error.contains("did you mean `count`?"), "{error}");
    }
}
