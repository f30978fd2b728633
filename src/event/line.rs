//! An event as one line: for the eye (`local`, `saltern events`) and for machines
//! (`/api/v1/events`, `saltern events --output json`).
//!
//! A line for the eye shows what minions sent, so it is made visible and cut where it is long.

use std::io::{self, IsTerminal};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::codec::json::write_string;
use crate::codec::visible;
use crate::event::job_return::Outcome;
use crate::event::{Event, Origin};

/// The use of colours in lines.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    serde::Deserialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Colour {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Also in files and pipes.
    Always,
    /// Not even on a terminal.
    Never,
}

impl Colour {
    /// Standard output gets colours.
    pub(crate) fn on_stdout(self) -> bool {
        match self {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => {
                io::stdout().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        }
    }
}

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

/// Widths of the columns; a wider text pushes the rest of its line to the right.
const TAG: usize = 54;
const MINION: usize = 22;
const FUNCTION: usize = 20;

/// The head of the columns that [`write_text`] writes, under `first`.
pub(crate) fn heading(first: &str) -> String {
    format!("{first} {:TAG$} {:MINION$} {:FUNCTION$} {}", "TAG", "MINION", "FUNCTION", "OUTCOME")
}

/// Appends a line for the eye: `first` (a time or an age), tag, minion, function, outcome.
pub fn write_text(first: &str, event: &Event, colour: bool, out: &mut Vec<u8>) {
    let fields = event.fields();
    let (outcome, paint) = match fields.job_return.outcome() {
        Outcome::Worked => ("ok", GREEN),
        Outcome::Failed => ("failed", RED),
        Outcome::Unknown => ("-", DIM),
    };
    let tag = shown(event.tag());
    let minion = shown(fields.minion.unwrap_or("-"));
    let functions = fields.job_return.functions.shown();
    let function = shown(if functions.is_empty() { "-" } else { &functions });
    let line = if colour {
        format!(
            "{DIM}{first}{RESET} {BOLD}{tag:TAG$}{RESET} {minion:MINION$} {function:FUNCTION$} {paint}{outcome}{RESET}\n"
        )
    } else {
        format!("{first} {tag:TAG$} {minion:MINION$} {function:FUNCTION$} {outcome}\n")
    };
    out.extend_from_slice(line.as_bytes());
}

/// Longer than any tag or id of Salt's.
const LONGEST: usize = 512;

fn shown(text: &str) -> String {
    visible::capped(text, LONGEST)
}

/// Appends a line for machines: tag, time of receipt, source, master and data as a JSON object.
/// `received` is in microseconds since 1970. Data of more than 4 MiB of JSON is shown as its
/// length.
pub(crate) fn write_json(event: &Event, origin: &Origin, received: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"tag\": ");
    write_string(event.tag().as_bytes(), out);
    out.extend_from_slice(b", \"received\": ");
    write_string(timestamp(received).to_string().as_bytes(), out);
    out.extend_from_slice(b", \"source\": ");
    write_string(origin.source.as_bytes(), out);
    out.extend_from_slice(b", \"master_id\": ");
    write_string(origin.master_id.as_bytes(), out);
    out.extend_from_slice(b", \"data\": ");
    match event.long() {
        None => out.extend_from_slice(event.json(&mut Vec::new())),
        Some(len) => out.extend_from_slice(format!("null, \"data_bytes\": {len}").as_bytes()),
    }
    out.extend_from_slice(b"}\n");
}

/// A time of receipt on the clock of this machine.
pub(crate) fn local_time(received: u64) -> String {
    let zoned = timestamp(received).to_zoned(TimeZone::system());
    zoned.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

/// The time since the master put the event on its bus (since `received` if the event does not say),
/// in seven columns.
pub(crate) fn age(event: &Event, received: u64, now: Timestamp) -> String {
    let since = event.fields().stamped().unwrap_or_else(|| timestamp(received));
    #[allow(clippy::cast_precision_loss)]
    let millis = now.duration_since(since).as_millis().max(0) as f64;
    let text = match millis {
        ..1000.0 => format!("{millis:.0}ms"),
        ..60_000.0 => format!("{:.1}s", millis / 1e3),
        ..3_600_000.0 => format!("{:.0}m", millis / 60e3),
        ..172_800_000.0 => format!("{:.0}h", millis / 3600e3),
        _ => format!("{:.0}d", millis / 86_400e3),
    };
    format!("{text:>7}")
}

fn timestamp(micros: u64) -> Timestamp {
    i64::try_from(micros)
        .ok()
        .and_then(|micros| Timestamp::from_microsecond(micros).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use crate::event::line::*;

    fn event(tag: &str, data: &serde_json::Value) -> Event {
        Event::new(tag, &rmp_serde::to_vec(data).unwrap())
    }

    fn text(event: &Event, colour: bool) -> String {
        let mut out = Vec::new();
        write_text("now", event, colour, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_has_its_columns() {
        let data =
            serde_json::json!({"id": "web-1", "fun": "state.apply", "success": true, "retcode": 2});
        let failed = event("salt/job/20261121233336123456/ret/web-1", &data);
        let words: Vec<_> = text(&failed, false).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["now", failed.tag(), "web-1", "state.apply", "failed"]);
        assert!(text(&failed, true).ends_with("\x1b[31mfailed\x1b[0m\n"));
        let custom = event("my/tag", &serde_json::json!([1]));
        let words: Vec<_> = text(&custom, false).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["now", "my/tag", "-", "-", "-"]);
    }

    #[test]
    fn no_minion_drives_the_terminal() {
        let data = serde_json::json!({"id": "web\x1b]0;gotcha\x07", "fun": "a\nb"});
        let line = text(&event("x\x1b[2J", &data), false);
        assert_eq!(line.matches(char::is_control).collect::<Vec<_>>(), ["\n"]);
    }

    #[test]
    fn the_line_for_machines_is_json() {
        let data = serde_json::json!({"id": "web-1", "n": 9_007_199_254_740_993_u64});
        let origin = Origin { source: "bus".into(), master_id: "m \"1\"".into() };
        let mut out = Vec::new();
        write_json(&event("a/b", &data), &origin, 1_795_304_177_692_890, &mut out);
        let read: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let expected = serde_json::json!({
            "tag": "a/b", "received": "2026-11-21T23:36:17.69289Z",
            "source": "bus", "master_id": "m \"1\"", "data": data,
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn ages_count_from_the_stamp() {
        let now: Timestamp = "2026-11-21T23:36:17Z".parse().unwrap();
        let received = 1_795_304_170_000_000;
        for (data, expected) in [
            (serde_json::json!({"_stamp": "2026-11-21T23:36:16.950000"}), "   50ms"),
            (serde_json::json!({"_stamp": "2026-11-21T23:36:14.500000+00:00"}), "   2.5s"),
            (serde_json::json!({"_stamp": "2026-11-21T23:06:17.000000"}), "    30m"),
            (serde_json::json!({"_stamp": "2026-11-21T23:59:59"}), "    0ms"),
            (serde_json::json!({"_stamp": "soon"}), "   7.0s"),
        ] {
            assert_eq!(age(&event("x", &data), received, now), expected, "{data}");
        }
    }
}
