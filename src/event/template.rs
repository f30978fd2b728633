//! Text with fields of an event in it: `salt.{kind}`, `https://host/{minion}?job={jid}`.
//!
//! | field | stands for |
//! |---|---|
//! | `{minion}` | the minion's id |
//! | `{fun}` | the function; of several, their names with commas between |
//! | `{jid}` | the job's id |
//! | `{outcome}` | `worked`, `failed` or `unknown` |
//! | `{kind}` | the event's kind: `job_return` |
//! | `{master}` | the id of its master |
//! | `{tag}` | the tag |
//! | `{date:%Y-%m-%d}` | when the event was read, in UTC, as `strftime` writes it |
//!
//! A literal brace is written twice: `{{`, `}}`.
//!
//! A minion chooses most of these values, so they are hostile. A template gives them as they are;
//! the place that the text is for escapes them ([`Template::render_with`]).

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::event::batch::Entry;
use crate::event::{EventKind, Fields};
use crate::yaml::{TemplateText, suggest};

/// Text in which `{minion}`, `{fun}`, `{jid}`, `{outcome}`, `{kind}`, `{master}`, `{tag}` and
/// `{date:%Y-%m-%d}` stand for values of an event. A literal brace is written twice.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "TemplateText")]
#[schemars(with = "String")]
pub(crate) struct Template(Vec<Part>);

/// A part of a text with fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part<F = Field> {
    /// Text, as it is written in the configuration.
    Text(String),
    /// Something that stands for a value.
    Field(F),
}

/// A field of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Field {
    /// The minion's id.
    Minion,
    /// The functions.
    Fun,
    /// The job's id.
    Jid,
    /// The outcome.
    Outcome,
    /// The event's kind.
    Kind,
    /// The id of its master.
    Master,
    /// The tag.
    Tag,
    /// The time at which it was read, in this format of `strftime`.
    Date(String),
}

/// The fields, as a message names them.
const NAMES: [&str; 8] =
    ["minion", "fun", "jid", "outcome", "kind", "master", "tag", "date:%Y-%m-%d"];

impl Field {
    /// The field of this name.
    fn named(name: &str) -> Result<Self, String> {
        if let Some(format) = name.strip_prefix("date:") {
            let is_written = date(format, 0).is_some_and(|text| !text.is_empty());
            return match is_written {
                true => Ok(Field::Date(format.to_owned())),
                false => Err(format!("`{format}` is not a format of strftime for a date")),
            };
        }
        match name {
            "minion" => Ok(Field::Minion),
            "fun" => Ok(Field::Fun),
            "jid" => Ok(Field::Jid),
            "outcome" => Ok(Field::Outcome),
            "kind" => Ok(Field::Kind),
            "master" => Ok(Field::Master),
            "tag" => Ok(Field::Tag),
            _ => Err(format!(
                "`{{{name}}}` is not a field of an event, {}; a literal brace is written twice, \
                 `{{{{`",
                suggest(name, &NAMES)
            )),
        }
    }
}

/// The parts of a text in which fields stand between braces; `named` knows a field by its name.
pub(crate) fn parts<F>(
    written: &str,
    named: impl Fn(&str) -> Result<F, String>,
) -> Result<Vec<Part<F>>, String> {
    let (mut parts, mut text) = (Vec::new(), String::new());
    let mut rest = written;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        text += before;
        if let Some((brace, behind)) =
            ["{{", "}}"].iter().find_map(|twice| Some((twice, from.strip_prefix(twice)?)))
        {
            text += brace.get(..1).unwrap_or_default();
            rest = behind;
            continue;
        }
        let Some(behind) = from.strip_prefix('{') else {
            return Err("there is a `}` without `{`; a literal brace is written twice".into());
        };
        let (name, behind) = behind
            .split_once('}')
            .ok_or("there is a `{` without `}`; a literal brace is written twice")?;
        parts.push(Part::Text(std::mem::take(&mut text)));
        parts.push(Part::Field(named(name)?));
        rest = behind;
    }
    parts.push(Part::Text(text + rest));
    parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
    Ok(parts)
}

impl TryFrom<TemplateText> for Template {
    type Error = String;

    fn try_from(TemplateText(written): TemplateText) -> Result<Self, String> {
        Template::try_from(written)
    }
}

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(written: String) -> Result<Self, String> {
        parts(&written, Field::named).map(Template)
    }
}

impl Template {
    /// The parts, in order. There are none in a template of no text.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.0
    }

    /// The text, where it is the same for all events.
    pub(crate) fn fixed(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The text for these values. `escape` makes a value fit for the place of the text. It gets
    /// `None` if the event has no such value.
    pub(crate) fn render_with(
        &self,
        values: &Values<'_>,
        escape: impl Fn(Option<&str>) -> String,
    ) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out += text,
                Part::Field(field) => out += &escape(values.get(field).as_deref()),
            }
        }
        out
    }
}

/// The values of a template's fields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values<'a> {
    kind: EventKind,
    master: &'a str,
    tag: Option<&'a str>,
    received: Option<u64>,
    fields: Option<Fields<'a>>,
}

impl<'a> Values<'a> {
    /// The values of an event.
    pub(crate) fn of(entry: &Entry<'a>) -> Self {
        Values {
            tag: Some(entry.event.tag()),
            received: Some(entry.received),
            fields: Some(entry.event.fields()),
            ..Values::of_kind(entry.event.kind(), &entry.origin.master_id)
        }
    }

    /// The values of no event, for a template that has no fields.
    pub(crate) fn none() -> Values<'static> {
        Values::of_kind(EventKind::Custom, "")
    }

    /// The values that all events of a kind and a master have.
    pub(crate) fn of_kind(kind: EventKind, master: &'a str) -> Self {
        Values { kind, master, tag: None, received: None, fields: None }
    }

    fn get(&self, field: &Field) -> Option<Cow<'a, str>> {
        match field {
            Field::Kind => Some(self.kind.name().into()),
            Field::Master => Some(self.master.into()),
            Field::Tag => Some(self.tag?.into()),
            Field::Minion => Some(self.fields?.minion?.into()),
            Field::Jid => Some(self.fields?.jid?.into()),
            Field::Outcome => Some(self.fields?.job_return.outcome().name().into()),
            Field::Fun => {
                let functions = self.fields?.job_return.functions.shown();
                Some(functions).filter(|functions| !functions.is_empty())
            }
            Field::Date(format) => Some(date(format, self.received?)?.into()),
        }
    }
}

/// A time in microseconds since 1970, in UTC. `None` if that is no format.
fn date(format: &str, micros: u64) -> Option<String> {
    let time = Timestamp::from_microsecond(i64::try_from(micros).ok()?).ok()?;
    strtime::format(format, &time.to_zoned(TimeZone::UTC)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::sink::testing::entry;
    use crate::yaml::Node;

    fn template(text: &str) -> Result<Template, String> {
        Template::try_from(text.to_owned())
    }

    fn rendered(text: &str, tag: &str, data: &serde_json::Value) -> String {
        let event = Event::new(tag, &rmp_serde::to_vec(data).unwrap());
        let escape = |value: Option<&str>| value.map_or("none".to_owned(), |v| format!("<{v}>"));
        template(text).unwrap().render_with(&Values::of(&entry(&event)), escape)
    }

    #[test]
    fn every_field_has_its_value_and_only_values_are_escaped() {
        let tag = "salt/job/20261121233336123456/ret/web-1";
        let data = serde_json::json!({"id": "web\n{jid}", "fun": ["a.b", "c.d"], "retcode": 1});
        for (text, expected) in [
            ("a<b {minion}", "a<b <web\n{jid}>"),
            ("{fun}", "<a.b,c.d>"),
            ("{jid}/{outcome}", "<20261121233336123456>/<failed>"),
            ("{kind}{master}", "<job_return><m>"),
            ("{tag}", &format!("<{tag}>")),
            ("{date:%Y-%m-%dT%H}", "<2026-11-21T23>"),
            ("{{\"a\": {{}}}} {{{kind}}}", "{\"a\": {}} {<job_return>}"),
            ("", ""),
        ] {
            assert_eq!(rendered(text, tag, &data), expected, "{text}");
        }
        let text = "{minion} {fun} {jid} {outcome}";
        assert_eq!(rendered(text, "x", &serde_json::json!([1])), "none none none <unknown>");
    }

    #[test]
    fn a_mistake_is_told_when_the_template_is_read() {
        for (wrong, says) in [
            ("{minon}", "did you mean `minion`?"),
            ("{\"text\": 1}", "known are `minion`, `fun`"),
            ("{}", "a literal brace is written twice, `{{`"),
            ("{minion", "without `}`"),
            ("a}", "without `{`"),
            ("{date}", "`{date}` is not a field"),
            ("{date:}", "not a format"),
            ("{date:%!}", "not a format"),
        ] {
            let error = template(wrong).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_secret_may_hold_braces() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a{b}c").unwrap();
        let text = format!("'{{kind}} ${{file:{}}}'", file.path().display());
        let mut node = Node::parse(&text).unwrap();
        node.interpolate(&mut Vec::new());
        let expected = Template::try_from("{kind} a{{b}}c".to_owned()).unwrap();
        assert_eq!(node.read::<Template>().unwrap(), expected);
    }

    #[test]
    fn a_template_says_if_its_text_is_fixed() {
        assert_eq!(template("a{{b").unwrap().fixed(), Some("a{b"));
        assert_eq!(template("").unwrap().fixed(), Some(""));
        assert_eq!(template("a{kind}").unwrap().fixed(), None);
    }
}
