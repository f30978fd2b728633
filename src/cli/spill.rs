//! `saltern spill`: the events that wait for each sink on disk.
//!
//! `list` and `drop` ask the daemon if one runs, and work on the files if none does. `verify` and
//! `export` only read the files, also while a daemon runs. They then see half of what it is writing
//! (see [`crate::queue::spill::scan`]).

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use axum::http::Method;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::daemon::{Daemon, meant, state_dir_of};
use super::run;
use crate::cli::output::{Failure, Output, print, print_json};
use crate::cli::runtime::runtime;
use crate::cli::target::{Target, load, look_into};
use crate::codec::visible::{self, Visible};
use crate::config::{Config, ConfigError};
use crate::error::chain;
use crate::files::disk::Folder;
use crate::files::state_dir::is_taken;
use crate::queue::config::SpillConfig;
use crate::queue::inspect::QueueContents;
use crate::queue::spill::scan::{Depth, Scan, Unreadable, scan};
use crate::queue::spill::{Read, Spill};
use crate::units::{ByteSize, Span};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Show what each sink's spill holds (default).
    List {
        /// A table, or JSON for machines.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Check every checksum and sequence; exit code 1 if something is damaged or missing.
    Verify {
        /// Only this sink's.
        #[arg(long, value_name = "NAME")]
        sink: Option<String>,
        /// Lines, or JSON for machines.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Write the events that wait to standard output as JSON lines, as rawfile_json writes them.
    Export {
        /// Only this sink's.
        #[arg(long, value_name = "NAME")]
        sink: Option<String>,
    },
    /// Discard the oldest events that wait for a sink.
    Drop {
        /// The sink.
        #[arg(long, value_name = "NAME")]
        sink: String,
        /// Events read before this: a time (2026-11-21T23:00:00Z), or an age (7d, 12h).
        #[arg(long, value_name = "TIME", value_parser = before)]
        before: Timestamp,
    },
}

/// A time, or an age as the time that long ago.
fn before(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let age = serde_json::from_value::<Span>(json!(text)).map_err(|_| {
        "write a time with its zone, such as 2026-11-21T23:00:00Z, or an age such as 7d".to_owned()
    })?;
    Timestamp::now().checked_sub(age.0).map_err(|error| error.to_string())
}

pub(super) fn spill(target: &Target, arguments: &Arguments) -> Result<(), Failure> {
    let place = Place::find(target)?;
    let list = Action::List { output: Output::Text };
    match arguments.action.as_ref().unwrap_or(&list) {
        Action::List { output } => place.list(*output),
        Action::Verify { sink, output } => place.verify(sink.as_deref(), *output),
        Action::Export { sink } => place.export(sink.as_deref()),
        Action::Drop { sink, before } => place.drop_before(sink, *before),
    }
}

/// The state directory, the sinks that the configuration has, if it was read, and the daemon.
struct Place {
    state_dir: PathBuf,
    sinks: Option<Vec<String>>,
    running: Running,
}

/// The daemon that has the state directory, if one runs.
enum Running {
    No,
    /// It can be asked.
    Yes(Daemon),
    /// It cannot be asked, for this reason.
    Mute(String),
}

#[derive(Deserialize)]
struct Discarded {
    discarded: u64,
}

#[derive(Serialize)]
struct Listed {
    sink: String,
    events: u64,
    oldest: Option<String>,
    newest: Option<String>,
    bytes: u64,
    segments: u64,
    /// True if the configuration has the sink; `null` if none was read.
    configured: Option<bool>,
}

impl Place {
    fn find(target: &Target) -> Result<Self, Failure> {
        let target = &meant(target, false)?;
        let state_dir = state_dir_of(target)?;
        let running = match Daemon::running(target)? {
            Some(daemon) => Running::Yes(daemon),
            None if !is_taken(&state_dir) => Running::No,
            None => match Daemon::find(target, None) {
                Ok(daemon) => Running::Yes(daemon),
                Err(Failure::Running(why) | Failure::Usage(why)) => Running::Mute(why),
            },
        };
        if !matches!(running, Running::Yes(_)) {
            look_into(&state_dir, target)?;
        }
        let sinks = match (&target.state_dir, &running) {
            (Some(_), _) => None,
            // The daemon may be asked also by users who may not read the configuration.
            (None, Running::Yes(_)) => load(&target.config).ok().map(|config| config.sinks),
            (None, _) => match Config::load(&target.config) {
                Ok(config) => Some(config.sinks),
                Err(ConfigError::Wrong { .. }) => None,
                Err(error) => return Err(error.into()),
            },
        };
        let sinks = sinks.map(|sinks| sinks.into_iter().map(|sink| sink.name).collect());
        Ok(Place { state_dir, sinks, running })
    }

    /// The queues as the daemon describes them. If it cannot be asked, the files alone are read.
    fn held(&self) -> Vec<QueueContents> {
        let said = match &self.running {
            Running::No => return Vec::new(),
            Running::Mute(why) => Err(format!("a daemon runs and cannot be asked: {why}")),
            Running::Yes(daemon) => ask(daemon, Method::GET, &[])
                .map_err(|(Failure::Running(why) | Failure::Usage(why))| why),
        };
        said.unwrap_or_else(|why| {
            eprintln!("{}; the files are shown as they are", Visible(&why));
            Vec::new()
        })
    }

    /// The sinks that have a spill, by name, or the one that was asked for.
    fn spills(&self, wanted: Option<&str>) -> Result<Vec<(String, Folder)>, Failure> {
        let path = self.state_dir.join("spill");
        let mut names = match Folder::names(&path) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(Failure::Running(format!("cannot list {}: {error}", path.display())));
            }
        };
        names.sort_unstable();
        names.retain(|name| wanted.is_none_or(|wanted| wanted == name));
        if let (Some(wanted), true) = (wanted, names.is_empty()) {
            let message = format!("there is no spill of a sink `{wanted}` in {}", path.display());
            return Err(Failure::Usage(message));
        }
        let mut spills = Vec::new();
        for name in names {
            let folder = path.join(&name);
            let opened = Folder::open(&folder).map_err(|error| failed(&name, &error))?;
            spills.push((name, opened));
        }
        Ok(spills)
    }

    fn list(&self, output: Output) -> Result<(), Failure> {
        let listed = |contents: QueueContents| Listed {
            configured: self.sinks.as_ref().map(|sinks| sinks.contains(&contents.sink)),
            sink: contents.sink,
            events: contents.events,
            oldest: contents.oldest.map(rfc3339),
            newest: contents.newest.map(rfc3339),
            bytes: contents.bytes,
            segments: contents.segments,
        };
        let mut all: Vec<Listed> = self.held().into_iter().map(listed).collect();
        // The daemon has named the events of its sinks; only the owner may see other folders there.
        let may_look = std::fs::read_dir(&self.state_dir).is_ok();
        let asked = matches!(self.running, Running::Yes(_));
        let spills = if asked && !may_look { Vec::new() } else { self.spills(None)? };
        for (sink, folder) in spills {
            if all.iter().any(|held| held.sink == sink) {
                continue;
            }
            let scan = scan(&folder, Depth::Heads, |_| Ok(()));
            let scan = scan.map_err(|error| failed(&sink, &error))?;
            warn_of_unreadable(&sink, &scan);
            let Scan { events, oldest, newest, bytes, segments, .. } = scan;
            all.push(listed(QueueContents { sink, events, oldest, newest, bytes, segments }));
        }
        all.sort_by(|a, b| a.sink.cmp(&b.sink));
        if output == Output::Json {
            return print_json(&json!(all).to_string());
        }
        let mut rows = vec![
            ["SINK", "EVENTS", "OLDEST", "NEWEST", "BYTES", "SEGMENTS", ""].map(str::to_owned),
        ];
        for listed in all {
            let or_none = |time: Option<String>| time.unwrap_or_else(|| "-".to_owned());
            let note = match listed.configured {
                Some(false) => "not in the configuration",
                _ => "",
            };
            rows.push([
                listed.sink,
                listed.events.to_string(),
                or_none(listed.oldest),
                or_none(listed.newest),
                ByteSize(listed.bytes).to_string(),
                listed.segments.to_string(),
                note.to_owned(),
            ]);
        }
        print(&table(&rows))
    }

    fn verify(&self, wanted: Option<&str>, output: Output) -> Result<(), Failure> {
        let (mut text, mut all, mut stretches) = (String::new(), Vec::new(), 0);
        for (sink, folder) in self.spills(wanted)? {
            let scan =
                scan(&folder, Depth::All, |_| Ok(())).map_err(|error| failed(&sink, &error))?;
            // Beside a daemon, the record at the end is the one that it is writing.
            let is_torn = scan.tail_bytes > 0 && matches!(self.running, Running::No);
            stretches += scan.damage.len() + scan.unreadable.len() + usize::from(is_torn);
            let path = |file: &str| folder.path().join(file).display().to_string();
            let sink_shown = Visible(&sink);
            for Unreadable { file, reason } in &scan.unreadable {
                let (path, reason) = (path(file), Visible(reason));
                let path = Visible(&path);
                text.push_str(&format!("damaged  {sink_shown}: {path} cannot be read: {reason}\n"));
            }
            for damaged in &scan.damage {
                let or_more = if damaged.or_more { " or more" } else { "" };
                text.push_str(&format!(
                    "damaged  {sink_shown}: {} at byte {}: {} bytes, {} events{or_more} lost\n",
                    Visible(&path(&damaged.file)),
                    damaged.offset,
                    damaged.bytes,
                    damaged.events,
                ));
            }
            if scan.damage.is_empty() && scan.unreadable.is_empty() && !is_torn {
                let Scan { events, segments, .. } = scan;
                text.push_str(&format!(
                    "ok       {sink_shown}: {segments} segments, {events} events\n"
                ));
            }
            if is_torn {
                text.push_str(&format!(
                    "torn     {sink_shown}: the last {} bytes are a record that a crash tore; the next \
                     start cuts it off and counts {} events as lost\n",
                    scan.tail_bytes, scan.tail_events,
                ));
            } else if scan.tail_bytes > 0 {
                text.push_str(&format!(
                    "         {sink_shown}: the last {} bytes are a record that is being written\n",
                    scan.tail_bytes
                ));
            }
            all.push(json!({ "sink": sink, "spill": scan }));
        }
        match output {
            Output::Text => print(&text)?,
            Output::Json => print_json(&json!(all).to_string())?,
        }
        match stretches {
            0 => Ok(()),
            count => Err(Failure::Running(format!(
                "the spill is damaged in {count} {}; the daemon delivers the undamaged events",
                if count == 1 { "place" } else { "places" }
            ))),
        }
    }

    fn export(&self, wanted: Option<&str>) -> Result<(), Failure> {
        let is_terminal = io::stdout().is_terminal();
        let mut out = BufWriter::new(io::stdout().lock());
        let mut line = Vec::new();
        for (sink, folder) in self.spills(wanted)? {
            let scanned = scan(&folder, Depth::Waiting, |share| {
                for event in share.events() {
                    line.clear();
                    event.write_line(&mut line);
                    match is_terminal {
                        true => write!(out, "{}", visible::json(&String::from_utf8_lossy(&line)))?,
                        false => out.write_all(&line)?,
                    }
                }
                Ok(())
            });
            match scanned {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(failed(&sink, &error)),
                Ok(scan) => {
                    warn_of_unreadable(&sink, &scan);
                    if !scan.damage.is_empty() {
                        let sink = Visible(&sink);
                        eprintln!("{sink}: some of it is damaged, see `saltern spill verify`");
                    }
                }
            }
        }
        match out.flush() {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::Running(format!("cannot write to standard output: {error}")))
            }
            _ => Ok(()),
        }
    }

    fn drop_before(&self, sink: &str, before: Timestamp) -> Result<(), Failure> {
        match &self.running {
            Running::Yes(daemon) => {
                let time = before.to_string();
                let query = [("sink", sink), ("before", &time)];
                let Discarded { discarded } = ask(daemon, Method::DELETE, &query)?;
                return print(&format!("{discarded} events of {} were discarded\n", Visible(sink)));
            }
            Running::Mute(why) => {
                return Err(Failure::Running(format!(
                    "a daemon uses {} and must discard them itself, but cannot be asked: {why}",
                    self.state_dir.display()
                )));
            }
            Running::No => {}
        }
        let spills = self.spills(Some(sink))?;
        // The daemon keeps in memory where it reads and writes, so its files are its own.
        let _lock = run::take(&self.state_dir)?;
        let before = u64::try_from(before.as_microsecond()).unwrap_or_default();
        let mut dropped = 0;
        for (_, folder) in spills {
            let opened = Spill::open(folder, SpillConfig::default().settings());
            let mut spill = opened.map_err(|error| Failure::Running(chain(&error)))?;
            dropped += drop_from(&mut spill, before).map_err(|error| failed(sink, &error))?;
        }
        print(&format!("{dropped} events of {} were discarded\n", Visible(sink)))
    }
}

/// Asks the daemon for the waiting events, or to discard some of them.
fn ask<T: DeserializeOwned>(
    daemon: &Daemon,
    method: Method,
    query: &[(&str, &str)],
) -> Result<T, Failure> {
    let asking = async {
        let response = daemon.ask(method, &["spill"], query).await?;
        let body = response.bytes().await.map_err(|error| daemon.failed(&chain(&error)))?;
        serde_json::from_slice(&body)
            .map_err(|error| daemon.failed(&format!("cannot read the daemon's answer: {error}")))
    };
    runtime()?.block_on(asking)
}

/// Discards events that were read before `before`, and damage between them. Returns how many.
fn drop_from(spill: &mut Spill<Folder>, before: u64) -> io::Result<u64> {
    let (mut end, mut dropped) = (spill.acknowledged(), 0);
    while let Some(read) = spill.read()? {
        match read {
            Read::Events(_, share) if share.received() >= before => break,
            Read::Events(first, share) => {
                dropped += share.len() as u64;
                end = first + share.len() as u64;
            }
            Read::Damaged(_) => {}
        }
    }
    spill.acknowledge(end)?;
    // The note comes first, and lasts when this returns.
    spill.note_acknowledged()?;
    if let Some(job) = spill.begin_sync() {
        job.run()?;
    }
    Ok(dropped)
}

fn warn_of_unreadable(sink: &str, scan: &Scan) {
    for Unreadable { file, reason } in &scan.unreadable {
        eprintln!("{}: {} cannot be read: {}", Visible(sink), Visible(file), Visible(reason));
    }
}

fn failed(sink: &str, error: &io::Error) -> Failure {
    Failure::Running(format!("cannot read the spill of {sink}: {error}"))
}

/// A time in microseconds since 1970, to the second.
pub(super) fn rfc3339(micros: u64) -> String {
    let seconds = i64::try_from(micros / 1_000_000).unwrap_or_default();
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// The longest text of a cell, in bytes. A minion may send one of megabytes.
const LONGEST_CELL: usize = 200;

/// Rows in columns as wide as their widest cell, with invisible characters made visible.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let shown = |row: &[String; N]| row.each_ref().map(|cell| visible::capped(cell, LONGEST_CELL));
    let rows: Vec<_> = rows.iter().map(shown).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(visible::width(cell));
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_a_cell_of_any_length() {
        let long = "x".repeat(1 << 20);
        let text = table(&[["ID".to_owned(), "TAG".to_owned()], [long, "t".to_owned()]]);
        assert!(text.len() < 1000 && text.contains("…"), "{} bytes", text.len());
    }
}
