//! `saltern events`: events as they pass.
//!
//! Events come from a running daemon (`/api/v1/events`), or from a bus directly: then a pipeline
//! without sinks runs in this process.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use bytes::{Buf, Bytes, BytesMut};
use clap::Args;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use super::daemon::{Daemon, meant};
use super::run;
use crate::cli::logging::start_logging;
use crate::cli::output::{Failure, Output};
use crate::cli::runtime::runtime;
use crate::cli::target::Target;
use crate::codec::lenient_json;
use crate::codec::visible;
use crate::config::Config;
use crate::error::chain;
use crate::event::filter::{Filter, FilterConfig};
use crate::event::line::{self, Colour};
use crate::event::{Event, Origin};
use crate::observe::log_settings::{Log, LogLevel};
use crate::pipeline::Pipeline;
use crate::pipeline::dispatch::Tapped;
use crate::pipeline::shutdown::Shutdown;

/// The longest line to accept of a daemon: its largest frame as JSON, with room to spare.
const LONGEST_LINE: usize = 512 << 20;

#[derive(Args)]
pub(super) struct Events {
    /// Only events whose tag matches; may be given several times.
    #[arg(long, value_name = "GLOB")]
    tag: Vec<String>,
    /// Columns (age, tag, minion, function, outcome), or JSON for machines.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// The daemon's address. Default: its unix socket.
    #[arg(long, conflicts_with = "bus")]
    url: Option<String>,
    /// Read a bus and not a daemon: a path, unix:PATH or tcp://HOST:PORT.
    #[arg(long, value_name = "ADDRESS")]
    bus: Option<String>,
    /// End after so many events.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Colours.
    #[arg(long, value_enum, default_value_t)]
    colour: Colour,
}

pub(super) fn events(target: &Target, arguments: &Events) -> Result<(), Failure> {
    start_logging(Log { level: LogLevel::Warn, format: None });
    let filter = FilterConfig { tags: arguments.tag.clone(), ..FilterConfig::default() };
    let filter = Filter::new(&filter).map_err(|bad| Failure::Usage(bad.message))?;
    let printer = Printer {
        output: arguments.output,
        colour: arguments.colour.on_stdout(),
        left: arguments.count,
    };
    printer.head().map_err(unprintable)?;
    let signals = run::listen(Duration::ZERO)?;
    let tail = async {
        // Nothing is lost with the other arm: events are on their way to the screen only.
        tokio::select! {
            result = follow(target, arguments, filter, printer) => result,
            () = signals.shutdown.stop.cancelled() => Ok(()),
        }
    };
    let runtime = runtime()?;
    let result = runtime.block_on(tail);
    runtime.shutdown_background();
    result
}

async fn follow(
    target: &Target,
    arguments: &Events,
    filter: Filter,
    printer: Printer,
) -> Result<(), Failure> {
    if let Some(address) = &arguments.bus {
        // Reading the bus past the daemon shows no value that the daemon hides.
        let config = &target.config;
        let daemon = config.exists().then(|| crate::cli::target::load(config)).transpose()?;
        return follow_bus(address, daemon, &filter, printer).await;
    }
    let daemon = match arguments.url.as_deref() {
        Some(url) => Daemon::find(target, Some(url))?,
        None => Daemon::find(&meant(target, true)?, None)?,
    };
    follow_daemon(&daemon, &arguments.tag, printer).await
}

async fn follow_bus(
    address: &str,
    daemon: Option<Config>,
    filter: &Filter,
    mut printer: Printer,
) -> Result<(), Failure> {
    let wrong = |problems: Vec<crate::yaml::Problem>| {
        let problems: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
        Failure::Usage(format!("--bus {address}: {}", problems.join("; ")))
    };
    // Any sink will do to make it a configuration; none is kept.
    let text = json!({
        "http": {"listen": null},
        "sources": {"bus": {"salt_bus": {"address": address.replace("${", "$${")}}},
        "sinks": {"none": {"blackhole": {}}},
    });
    let mut config = Config::parse(&text.to_string()).map_err(wrong)?;
    config.sinks.clear();
    config.redact = daemon.map(|daemon| daemon.redact).unwrap_or_default();
    for source in &config.sources {
        let failed = |error| Failure::Running(chain(&error));
        source.reader.probe().await.map_err(failed)?;
    }
    let shutdown = Shutdown::default();
    // Sources end, and their thread with them, however this function ends.
    let _stop = shutdown.stop.clone().drop_guard();
    let (_reopen, reopen) = watch::channel(0);
    let failed = |error| Failure::Running(chain(&error));
    let pipeline = Pipeline::start(&config, &shutdown, &reopen, &Arc::default()).map_err(failed)?;
    let mut tap = pipeline.tap.subscribe();
    let mut next = None;
    loop {
        let Tapped { before, chunk } = match tap.recv().await {
            Ok(tapped) => tapped,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return Ok(()),
        };
        let missed = before - next.unwrap_or(before).min(before);
        next = Some(before + chunk.events.len() as u64);
        let mut out = Vec::new();
        if missed > 0 {
            printer.missed(missed, &mut out);
        }
        for event in chunk.events.iter().filter(|event| filter.takes(event)) {
            if printer.has_enough() {
                break;
            }
            printer.event(event, &chunk.origin, chunk.received, &mut out);
        }
        if !printer.print(&out)? {
            return Ok(());
        }
    }
}

/// Writes events to standard output until there were enough.
struct Printer {
    output: Output,
    colour: bool,
    left: Option<u64>,
}

impl Printer {
    fn head(&self) -> io::Result<()> {
        if self.output == Output::Json || !io::stdout().is_terminal() {
            return Ok(());
        }
        writeln!(io::stdout(), "{}", line::heading("    AGE"))
    }

    fn has_enough(&self) -> bool {
        self.left == Some(0)
    }

    fn counted(&mut self) {
        self.left = self.left.map(|left| left.saturating_sub(1));
    }

    fn event(&mut self, event: &Event, origin: &Origin, received: u64, out: &mut Vec<u8>) {
        self.counted();
        match self.output {
            Output::Json => {
                let mut line = Vec::new();
                line::write_json(event, origin, received, &mut line);
                out.extend_from_slice(visible::json(&String::from_utf8_lossy(&line)).as_bytes());
            }
            Output::Text => {
                let age = line::age(event, received, Timestamp::now());
                line::write_text(&age, event, self.colour, out);
            }
        }
    }

    /// A line as the daemon sent it.
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let read: Line = match self.output {
            // For machines the value is printed as it is, if it is an event.
            Output::Json if !line.starts_with(b"{\"missed\"") => {
                self.counted();
                match line.is_ascii() && !line.contains(&0x7f) {
                    true => out.extend_from_slice(line),
                    false => {
                        let line = String::from_utf8_lossy(line);
                        out.extend_from_slice(visible::json(&line).as_bytes());
                    }
                }
                out.push(b'\n');
                return Ok(());
            }
            _ => serde_json::from_value(lenient_json::read_answer(line)?.0)?,
        };
        match read {
            Line::Missed { missed } => self.missed(missed, out),
            Line::Event { tag, received, source, master_id, data } => {
                // JSON becomes msgpack and so an event: one place in the code reads its fields.
                let event = Event::new(&tag, &rmp_serde::to_vec(&data).unwrap_or_default());
                let received = received.parse().unwrap_or(Timestamp::UNIX_EPOCH).as_microsecond();
                let received = u64::try_from(received).unwrap_or_default();
                self.event(&event, &Origin { source, master_id }, received, out);
            }
        }
        Ok(())
    }

    fn missed(&self, missed: u64, out: &mut Vec<u8>) {
        let line = match self.output {
            Output::Json => format!("{{\"missed\": {missed}}}\n"),
            Output::Text => format!("        … {missed} events of the bus passed too fast\n"),
        };
        out.extend_from_slice(line.as_bytes());
    }

    /// Prints; `false` when that was enough, or when nobody reads any more.
    fn print(&self, lines: &[u8]) -> Result<bool, Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(lines).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(!self.has_enough()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(unprintable(error)),
        }
    }
}

fn unprintable(error: io::Error) -> Failure {
    Failure::Running(format!("cannot write to standard output: {error}"))
}

/// A line of `/api/v1/events`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Missed { missed: u64 },
    Event { tag: String, received: String, source: String, master_id: String, data: Value },
}

/// Prints what the daemon sends, until it stops or there was enough.
async fn follow_daemon(
    daemon: &Daemon,
    tags: &[String],
    mut printer: Printer,
) -> Result<(), Failure> {
    let query: Vec<_> = tags.iter().map(|tag| ("tag", tag.as_str())).collect();
    let mut response = daemon.ask(Method::GET, &["events"], &query).await?;
    let mut buffer = BytesMut::new();
    let mut looked_at = 0;
    loop {
        let piece: Bytes = match response.chunk().await {
            Ok(Some(piece)) => piece,
            Ok(None) => return Err(daemon.failed("the daemon has stopped")),
            Err(error) => return Err(daemon.failed(&chain(&error))),
        };
        buffer.extend_from_slice(&piece);
        let mut out = Vec::new();
        while let Some(at) = memchr::memchr(b'\n', buffer.get(looked_at..).unwrap_or_default()) {
            let line = buffer.split_to(looked_at + at);
            buffer.advance(1);
            looked_at = 0;
            if printer.has_enough() {
                break;
            }
            let read = printer.line(&line, &mut out);
            read.map_err(|error| {
                daemon.failed(&format!("cannot read a line of the daemon's answer: {error}"))
            })?;
        }
        looked_at = buffer.len();
        if looked_at > LONGEST_LINE {
            return Err(daemon.failed("a line is too long; is this saltern?"));
        }
        if !printer.print(&out)? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_daemon_become_columns() {
        let mut printer = Printer { output: Output::Text, colour: false, left: Some(1) };
        let mut out = Vec::new();
        printer.line(b"{\"missed\": 3}", &mut out).unwrap();
        assert!(!printer.has_enough());
        let line = json!({
            "tag": "salt/job/20261121233336123456/ret/web-1", "received": "2026-11-21T23:36:17Z",
            "source": "bus", "master_id": "m", "data": {"fun": "test.ping", "retcode": 1},
        });
        printer.line(line.to_string().as_bytes(), &mut out).unwrap();
        assert!(printer.has_enough());
        let out = String::from_utf8(out).unwrap();
        let lines: Vec<_> = out.lines().collect();
        assert!(lines[0].contains("3 events"), "{out}");
        let words: Vec<_> = lines[1].split_whitespace().skip(1).collect();
        assert_eq!(
            words,
            ["salt/job/20261121233336123456/ret/web-1", "web-1", "test.ping", "failed"]
        );
        printer.line(b"not json", &mut Vec::new()).unwrap_err();
        let deep = format!("{}1{}", "[".repeat(128), "]".repeat(128));
        let line = format!(
            r#"{{"tag": "a", "received": "", "source": "s", "master_id": "m", "data": {deep}}}"#
        );
        printer.line(line.as_bytes(), &mut Vec::new()).unwrap();
    }
}
