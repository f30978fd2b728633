//! A line of the log, in each of its formats.
//!
//! Texts of fields come from anywhere: from minions, users, peers and servers. So every text is
//! capped and made visible here. No text can begin a line of its own, or one with a priority of
//! journald's in front. In JSON a text keeps its value, up to the cap.

use std::fmt::{self, Debug};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::codec::visible;
use crate::observe::log_settings::LogFormat;

/// The longest text of a field, in bytes.
const LONGEST: usize = 200;

/// The longest message, or text of one of [`DETAILED`].
const LONGEST_DETAIL: usize = 2048;

/// Fields with reasons and all their causes, and with lines that were held back.
const DETAILED: [&str; 3] = ["error", "reason", "line"];

/// Writes events of the log in this format.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogLine(pub(crate) LogFormat);

/// The message and the other fields of an event, with texts that are capped.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    /// The fields of an event.
    pub(crate) fn of(event: &Event<'_>) -> Self {
        let mut fields = Fields::default();
        event.record(&mut fields);
        fields
    }

    fn text(&mut self, field: &Field, text: &str) {
        match field.name() {
            "message" => self.message = cut(text, LONGEST_DETAIL),
            name if DETAILED.contains(&name) => {
                self.others.push((name, cut(text, LONGEST_DETAIL).into()));
            }
            name => self.others.push((name, cut(text, LONGEST).into())),
        }
    }
}

/// The text, or its beginning of at most so many bytes with `…` behind it.
fn cut(text: &str, most: usize) -> String {
    match text.len() <= most {
        true => text.to_owned(),
        false => {
            let end = text.floor_char_boundary(most);
            text.get(..end).unwrap_or_default().to_owned() + "…"
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.others.push((field.name(), value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.push((field.name(), value.into()));
    }
}

/// The fields as text for people: `message name="text" number=1`.
impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_fields(self, false, f)
    }
}

fn write_fields(fields: &Fields, colour: bool, out: &mut impl fmt::Write) -> fmt::Result {
    write!(out, "{}", visible::capped(&fields.message, LONGEST_DETAIL))?;
    for (name, value) in &fields.others {
        match colour {
            true => write!(out, " \x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
            false => write!(out, " {name}=")?,
        }
        let Value::String(text) = value else {
            write!(out, "{value}")?;
            continue;
        };
        let most = if DETAILED.contains(name) { LONGEST_DETAIL } else { LONGEST };
        // Neither a quote in it nor a backslash before one must look like its end.
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        write!(out, "\"{}\"", visible::capped(&text, most))?;
    }
    Ok(())
}

impl<S, N> FormatEvent<S, N> for LogLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        let fields = Fields::of(event);
        match self.0 {
            LogFormat::Text => write_text(level, &fields, &mut writer),
            LogFormat::Journald => {
                write!(writer, "<{}>", priority(level))?;
                write_fields(&fields, false, &mut writer)
            }
            LogFormat::Json => write_json(level, fields, &mut writer),
        }?;
        writeln!(writer)
    }
}

/// The priority of sd-daemon(3). journald itself shows time and level.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

fn write_text(level: Level, fields: &Fields, writer: &mut Writer<'_>) -> fmt::Result {
    let colour = writer.has_ansi_escapes();
    let paint = match level {
        _ if !colour => "",
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[34m",
    };
    let (dim, reset) = if colour { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    write!(writer, "{dim}")?;
    SystemTime.format_time(writer)?;
    write!(writer, "{reset} {paint}{:>5}{reset} ", level.as_str())?;
    write_fields(fields, colour, writer)
}

fn write_json(level: Level, fields: Fields, writer: &mut Writer<'_>) -> fmt::Result {
    let mut timestamp = String::new();
    SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
    let mut line = Map::new();
    line.insert("timestamp".to_owned(), timestamp.into());
    line.insert("level".to_owned(), level.as_str().into());
    line.insert("message".to_owned(), fields.message.into());
    for (name, value) in fields.others {
        line.insert(name.to_owned(), value);
    }
    writer.write_str(&visible::json(&Value::Object(line).to_string()))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::{info, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// The bytes of the lines that were logged; a clone is the same one.
    #[derive(Clone, Default)]
    pub(crate) struct Written(pub(crate) Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, work: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt::layer().with_ansi(false);
        let lines = lines.with_writer(move || writer.clone()).event_format(LogLine(format));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), work);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const HOSTILE: &str = "x\n<0>forged\x1b[2J\u{202e}\u{9b}\u{2028}";

    fn hostile() {
        let cause = io::Error::other(HOSTILE);
        warn!(op = HOSTILE, error = %cause, count = 3, "refused: {HOSTILE}");
    }

    #[test]
    fn no_text_begins_a_line_in_any_format() {
        for format in [LogFormat::Text, LogFormat::Journald, LogFormat::Json] {
            let text = logged(format, hostile);
            assert_eq!(text.matches(char::is_control).collect::<Vec<_>>(), ["\n"], "{text}");
            assert!(!text.contains(['\u{202e}', '\u{2028}']), "{text}");
        }
        let line = logged(LogFormat::Journald, hostile);
        assert!(line.starts_with("<4>refused: x\\n<0>forged\\u{1b}[2J"), "{line}");
        assert!(line.ends_with("\" count=3\n"), "{line}");
        let line: Value = serde_json::from_str(&logged(LogFormat::Json, hostile)).unwrap();
        assert_eq!((&line["op"], &line["error"]), (&HOSTILE.into(), &HOSTILE.into()));
        assert_eq!((&line["level"], &line["count"]), (&"WARN".into(), &3.into()));
    }

    #[test]
    fn no_text_is_long() {
        let long = "ä".repeat(1 << 20);
        for format in [LogFormat::Text, LogFormat::Journald, LogFormat::Json] {
            let line = logged(format, || info!(op = long, "it was refused"));
            assert!(line.len() < 350 && line.contains('…'), "{} bytes", line.len());
            let line = logged(format, || info!(error = long, tag = %long, "{long}"));
            assert!(line.len() < 5000, "{} bytes", line.len());
        }
        let controls = "\x1b".repeat(1 << 20);
        for format in [LogFormat::Text, LogFormat::Journald, LogFormat::Json] {
            let line = logged(format, || info!(op = controls, "it was refused"));
            assert!(line.len() < 1500, "{} bytes", line.len());
        }
    }

    #[test]
    fn a_quote_does_not_end_a_text() {
        let line = logged(LogFormat::Journald, || info!(op = "a\" sink=\"b", "m"));
        assert_eq!(line, "<6>m op=\"a\\\" sink=\\\"b\"\n");
        let line = logged(LogFormat::Journald, || info!(op = r#"a\" sink="b"#, "m"));
        assert_eq!(line, "<6>m op=\"a\\\\\\\" sink=\\\"b\"\n");
    }
}
