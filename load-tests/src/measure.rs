//! Sends events to a reader of the bus that is a process of its own, and asks the kernel what they
//! cost it.
//!
//! The costs are those between the moment before the first event is sent and the moment when the
//! last is stored. Starting and ending are left out; other work in between is not. The bus is this
//! process, so that a machine with two cores has one for the reader.
//!
//! A bus that is not slowed down runs away from a sink that writes files, and then the memory of
//! the queue is measured. So with files to look at the bus always has more to send but waits while
//! saltern is more than [`WINDOW`] events ahead of one of them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::bus::{self, Bus, Rate, SINGLE};
use crate::daemon::{self, Daemon, Folder, Reader, Setup, lost, pause};
use crate::traffic::{Framing, Traffic};

/// A sink of the measured saltern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Sink {
    /// JSON lines in a file.
    RawfileJson,
    /// JSON lines into `/dev/null`: without what the kernel's page cache costs.
    DevNull,
    /// A database in a file.
    Sqlite3,
    /// Printed to standard output, which is `/dev/null`.
    Local,
    /// Nowhere.
    Blackhole,
}

/// The place where the sinks' events wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Spill {
    /// On disk, before they are stored.
    Durable,
    /// In memory only.
    Memory,
}

impl fmt::Display for Spill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Spill::Durable => "durable",
            Spill::Memory => "memory",
        })
    }
}

impl Sink {
    /// The sink as the configuration has it; `FOLDER` is where its daemon lives.
    fn config(self, number: usize) -> String {
        match self {
            Sink::RawfileJson => {
                format!("rawfile_json: {{filename: FOLDER/events-{number}.jsonl}}")
            }
            Sink::DevNull => "rawfile_json: {filename: /dev/null}".to_owned(),
            Sink::Sqlite3 => format!("sqlite3: {{database: FOLDER/events-{number}.db}}"),
            Sink::Local => "local: {}".to_owned(),
            Sink::Blackhole => "blackhole: {}".to_owned(),
        }
    }

    /// The file in which its progress can be seen.
    fn file(self, number: usize, folder: &Folder) -> Option<PathBuf> {
        (self == Sink::RawfileJson).then(|| folder.path(&format!("events-{number}.jsonl")))
    }
}

/// The events that are sent.
#[derive(Clone, Copy)]
pub(crate) struct Load<'a> {
    pub(crate) traffic: &'a Traffic,
    pub(crate) framing: Framing,
    pub(crate) rate: Rate,
    pub(crate) events: u64,
}

/// The saltern that is measured.
#[derive(Clone, Copy)]
pub(crate) struct Measured<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) sinks: &'a [Sink],
    /// A sink in their place, as the configuration has it.
    pub(crate) other: Option<&'a str>,
    pub(crate) spill: Spill,
    /// More of its configuration.
    pub(crate) sections: &'a str,
}

/// The cost of the events.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) events: u64,
    pub(crate) dropped: u64,
    /// Bytes a second, until the last byte was read off the socket.
    pub(crate) read_rate: f64,
    /// Events a second, until the last event was stored.
    pub(crate) stored_rate: f64,
    /// CPU of an event, in microseconds.
    pub(crate) cpu: f64,
    /// The most memory that was resident, in bytes, and the memory resident at the end.
    pub(crate) peak: u64,
    pub(crate) resident: u64,
}

impl fmt::Display for Cost {
    #[allow(clippy::cast_precision_loss)]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events ({} dropped): {:.2} µs CPU an event, {:.0} MB/s read, {:.0} events/s stored, \
             {:.1} MiB resident, {:.1} MiB at the most",
            self.events,
            self.dropped,
            self.cpu,
            self.read_rate / 1e6,
            self.stored_rate,
            self.resident as f64 / f64::from(1 << 20),
            self.peak as f64 / f64::from(1 << 20),
        )
    }
}

/// Events sent before a saturated run, so that neither side starts cold.
const WARM_UP: u64 = 10_000;

/// The number of events that saltern may be ahead of a file before a saturated bus waits.
const WINDOW: u64 = 5000;

/// Measures a saltern.
pub(crate) fn saltern(measured: &Measured<'_>, load: &Load<'_>) -> Result<Cost, Failure> {
    with_saltern(measured, load, |_| Ok(())).map(|(cost, ())| cost)
}

/// Measures a saltern and asks it something once everything is stored, while it still runs.
pub(crate) fn with_saltern<T>(
    measured: &Measured<'_>,
    load: &Load<'_>,
    ask: impl FnOnce(&Daemon) -> Result<T, Failure>,
) -> Result<(Cost, T), Failure> {
    let folder = Folder::new()?;
    let kinds = match measured.other {
        Some(kind) => vec![kind.to_owned()],
        None => (0..).zip(measured.sinks).map(|(number, sink)| sink.config(number)).collect(),
    };
    // Room for all events that a saturated bus can be ahead of a sink. The cost of storing is
    // measured, and dropping is cheaper than that.
    let is_fast = match load.rate {
        Rate::Max => true,
        Rate::PerSecond(rate) => rate > SINGLE,
    };
    let (room, room_of_all) = match measured.spill {
        Spill::Memory if is_fast => (", memory: 4GiB", "memory: 1024GiB\n"),
        _ => ("", ""),
    };
    let sections = format!("{room_of_all}{}", measured.sections);
    let sinks: Vec<_> = kinds
        .iter()
        .map(|kind| format!("{kind}, spill: {{mode: {}{room}}}", measured.spill))
        .collect();
    let bus = Bus::listen(&folder.bus(), load.framing)?;
    let setup =
        Setup { framing: load.framing, sections: &sections, ..Setup::new(measured.binary, &sinks) };
    let daemon = Daemon::start(&folder, &setup)?;
    let mut stream = [bus.accept()?];
    daemon.wait_until_ready()?;
    let warm_up = if load.rate == Rate::Max { WARM_UP.min(load.events) } else { 0 };
    bus::send(&mut stream, load.traffic, load.rate, 0..warm_up, &mut |_| Ok(()))?;
    daemon.wait_until_settled(warm_up)?;

    let mut files = Vec::new();
    for (number, sink) in measured.sinks.iter().enumerate().filter(|_| warm_up > 0) {
        let Some(path) = sink.file(number, &folder) else { continue };
        let length = std::fs::metadata(&path).map_or(0, |file| file.len());
        if length > 0 {
            files.push((path, length, length.div_ceil(warm_up)));
        }
    }
    let mut gate = |number: u64| {
        for (path, before, line) in &files {
            while number - warm_up > (std::fs::metadata(path)?.len() - before) / line + WINDOW {
                pause(Duration::from_micros(200));
            }
        }
        Ok(())
    };
    let numbers = warm_up..warm_up + load.events;
    let before = daemon.reader.cpu()?;
    let began = Instant::now();
    let sent = bus::send(&mut stream, load.traffic, load.rate, numbers, &mut gate)?;
    let last = daemon.wait_until_settled(warm_up + load.events)?;
    let elapsed = began.elapsed();
    let cpu = daemon.reader.cpu()?.saturating_sub(before);
    #[allow(clippy::cast_precision_loss)]
    let cost = Cost {
        events: load.events,
        dropped: daemon::sinks(&last).map(lost).sum(),
        read_rate: sent.bytes as f64 / sent.elapsed.as_secs_f64(),
        stored_rate: load.events as f64 / elapsed.as_secs_f64(),
        cpu: cpu.as_secs_f64() * 1e6 / load.events as f64,
        peak: daemon.reader.memory("VmHWM")?,
        resident: daemon.reader.memory("VmRSS")?,
    };
    Ok((cost, ask(&daemon)?))
}

/// Measures a reader that only drains the socket.
pub(crate) fn drain(load: &Load<'_>) -> Result<Cost, Failure> {
    let folder = Folder::new()?;
    // It answers nothing, so nothing is said to it but the frames.
    let bus = Bus::listen(&folder.bus(), Framing::Plain)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("drain").arg("--socket").arg(folder.bus()).stdout(Stdio::null());
    let reader = Reader::start(&mut command)?;
    let mut stream = [bus.accept()?];
    let before = reader.cpu()?;
    let sent = bus::send(&mut stream, load.traffic, load.rate, 0..load.events, &mut |_| Ok(()))?;
    let cpu = reader.cpu()?.saturating_sub(before);
    #[allow(clippy::cast_precision_loss)]
    Ok(Cost {
        events: load.events,
        read_rate: sent.bytes as f64 / sent.elapsed.as_secs_f64(),
        stored_rate: load.events as f64 / sent.elapsed.as_secs_f64(),
        cpu: cpu.as_secs_f64() * 1e6 / load.events as f64,
        peak: reader.memory("VmHWM")?,
        resident: reader.memory("VmRSS")?,
        ..Cost::default()
    })
}
