//! `local`: prints each event to standard output, one line an event.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   bus: {salt_bus: {}}
//! sinks:
//!   screen:
//!     local: {format: json}
//!     filter: {outcome: [failed]}
//! ```
//!
//! # Stored
//!
//! Nothing; each event is printed. `text` is for the eye: time, tag, minion, function, outcome,
//! coloured on a terminal. `json` is the line that [`rawfile_json`](rawfile_json.md) writes. On a
//! terminal it has nothing in it that does not show, and only the length of an event of more than 4
//! MiB. A batch is one write, unless an event's JSON is long, which goes in pieces.
//!
//! # Guarantee
//!
//! Lines are in order; printed lines are not remembered.
//!
//! # Failures
//!
//! * standard output is closed → nothing can ever be printed again, so the sink parks → `/readyz`
//!   says no and names the sink; the log says that nobody reads
//! * any other error of writing → the batch comes again, after 0.5 s to 30 s → `saltern_sink_up` is
//!   0, `saltern_sink_retries_total` rises
//!
//! # Differences
//!
//! Salt's `local` prints the event as Python does; here it is a line for the eye, or JSON.

use std::io::{self, IsTerminal, Write};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::codec::visible;
use crate::event::batch::{Batch, BatchLimits, Entry};
use crate::event::line::{self, Colour};
use crate::sink::contract::{
    ConnectError, Context, Defaults, Once, SaltReturner, Sink, WriteError,
};
use crate::sync::blocking;
use crate::units::{ByteSize, Span};

/// Lines on standard output.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The form of a line. Default: `text`.
    #[serde(default)]
    format: Format,
    /// The use of colours in `text`. Default: `auto`, which is on a terminal only.
    #[serde(default)]
    colour: Colour,
}

/// The form of a line.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// Time, tag, minion, function, outcome.
    #[default]
    Text,
    /// `{"tag": …, "data": …}`, as `rawfile_json` writes it.
    Json,
}

pub(super) struct Local {
    format: Format,
    colour: bool,
    is_terminal: bool,
    lines: Vec<u8>,
}

impl Sink for Local {
    const NAME: &'static str = "local";
    const ABOUT: &'static str = "prints events to standard output, coloured on a terminal";
    const DEFAULTS: Defaults =
        Defaults::store(BatchLimits::new(1000, ByteSize::mib(1), Span::millis(100)));
    const ONCE: Once = Once::No;
    const SALT: Option<SaltReturner> = Some(SaltReturner {
        names: &["local"],
        sections: &[],
        stores_events: true,
        options: &[],
        fixed: &[],
        file: None,
        note: None,
    });
    const STREAMS: bool = true;
    type Config = Config;
    type Prepared = ();

    async fn connect(config: &Config, _context: &Context) -> Result<Self, ConnectError> {
        let colour = config.colour.on_stdout();
        let is_terminal = io::stdout().is_terminal();
        Ok(Local { format: config.format, colour, is_terminal, lines: Vec::new() })
    }

    async fn write(&mut self, batch: &Batch, _: Option<()>) -> Result<(), WriteError> {
        blocking(|| {
            let result = self.print(batch, &mut io::stdout().lock());
            // A large batch must not hold its memory for ever.
            self.lines.shrink_to(2 * Self::DEFAULTS.batch.max_bytes);
            result
        })
    }

    async fn close(self) -> Result<(), WriteError> {
        Ok(())
    }
}

impl Local {
    fn print(&mut self, batch: &Batch, stdout: &mut impl Write) -> Result<(), WriteError> {
        self.lines.clear();
        let mut printed = Ok(());
        for entry in batch.entries() {
            match (self.format, entry.event.long()) {
                (Format::Json, Some(_)) if self.is_terminal => {
                    line::write_json(entry.event, entry.origin, entry.received, &mut self.lines);
                }
                (Format::Json, Some(_)) => {
                    entry.event.write_line_in_pieces(&mut self.lines, &mut |piece| {
                        if printed.is_ok() {
                            printed = stdout.write_all(piece);
                        }
                    });
                }
                _ => self.format.write(&entry, self.colour, &mut self.lines),
            }
        }
        if matches!(self.format, Format::Json) && self.is_terminal {
            self.lines = visible::json(&String::from_utf8_lossy(&self.lines)).into_bytes();
        }
        outcome(printed.and_then(|()| stdout.write_all(&self.lines)).and_then(|()| stdout.flush()))
    }
}

impl Format {
    fn write(self, entry: &Entry<'_>, colour: bool, out: &mut Vec<u8>) {
        match self {
            Format::Json => entry.event.write_line(out),
            Format::Text => {
                line::write_text(&line::local_time(entry.received), entry.event, colour, out);
            }
        }
    }
}

fn outcome(printed: io::Result<()>) -> Result<(), WriteError> {
    let Err(error) = printed else { return Ok(()) };
    if error.kind() == io::ErrorKind::BrokenPipe {
        let doing = "printing to standard output, which nobody reads any more (it is closed)";
        return Err(WriteError::fatal(doing, error));
    }
    Err(WriteError::retry("printing to standard output", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::sink::testing::entry;

    #[test]
    fn lines_of_both_formats() {
        let data = serde_json::json!({"id": "web-1", "fun": "test.ping", "success": true});
        let event = Event::new("salt/x", &rmp_serde::to_vec(&data).unwrap());
        let entry = entry(&event);
        let mut out = Vec::new();
        Format::Json.write(&entry, true, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"tag\": \"salt/x\", \"data\": {\"id\": \"web-1\", \"fun\": \"test.ping\", \"success\": true}}\n"
        );
        let mut out = Vec::new();
        Format::Text.write(&entry, false, &mut out);
        let line = String::from_utf8(out).unwrap();
        let words: Vec<_> = line.split_whitespace().skip(2).collect();
        assert_eq!(words, ["salt/x", "web-1", "test.ping", "ok"]);
        assert!(line.contains(":17.692 "), "{line}");
    }

    #[test]
    fn a_closed_output_is_fatal_and_a_full_one_is_not() {
        let label = |kind: io::ErrorKind| outcome(Err(kind.into())).unwrap_err().label();
        assert_eq!(label(io::ErrorKind::BrokenPipe), "fatal");
        assert_eq!(label(io::ErrorKind::StorageFull), "retry");
    }
}
