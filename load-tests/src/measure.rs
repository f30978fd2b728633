//! Starts a reader of the bus as a process of its own, sends it events and reads from `/proc` what
//! they cost it.
//!
//! The costs are those between the moment before the first event is sent and the moment when the
//! last is stored: starting and ending are left out, whatever runs besides is not. The bus is this
//! process, so that a machine with two cores has one for the reader.
//!
//! A bus that is not slowed down runs away from a sink that writes files, and then what is measured
//! is the memory of the queue. So with a file to look at the bus always has more to send but waits
//! while saltern is more than [`WINDOW`] events ahead of its file.

use std::fmt::{self, Write as _};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bus::{self, Bus, Rate};
use crate::traffic::Traffic;
use crate::{Failure, process};

/// A sink of the measured saltern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Sink {
    /// JSON lines in a file.
    RawfileJson,
    /// A database in a file.
    Sqlite3,
    /// Printed to standard output, which is `/dev/null`.
    Local,
    /// Nowhere.
    Blackhole,
}

/// Where the sinks' events wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Spill {
    /// On disk, before they are stored.
    Durable,
    /// In memory only.
    Memory,
}

impl std::fmt::Display for Spill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Spill::Durable => "durable",
            Spill::Memory => "memory",
        })
    }
}

impl Sink {
    fn config(self, folder: &Path) -> String {
        let file = |name: &str| folder.join(name).display().to_string();
        match self {
            Sink::RawfileJson => format!("rawfile_json: {{filename: {}}}", file("events.jsonl")),
            Sink::Sqlite3 => format!("sqlite3: {{database: {}}}", file("events.db")),
            Sink::Local => "local: {}".to_owned(),
            Sink::Blackhole => "blackhole: {}".to_owned(),
        }
    }
}

/// What is sent.
#[derive(Clone, Copy)]
pub(crate) struct Load<'a> {
    pub(crate) traffic: &'a Traffic,
    pub(crate) rate: Rate,
    pub(crate) events: u64,
    pub(crate) spill: Spill,
}

/// What the events cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) events: u64,
    pub(crate) dropped: u64,
    /// Bytes a second, until the last byte was read off the socket.
    pub(crate) read_rate: f64,
    /// Events a second, until the last event was stored.
    pub(crate) stored_rate: f64,
    /// User and system time of an event, in microseconds.
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

/// Ends with its process.
struct Reader(Child);

impl Reader {
    fn start(command: &mut Command) -> Result<Self, Failure> {
        let program = command.get_program().display().to_string();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Reader(child.map_err(|error| format!("cannot start {program}: {error}"))?))
    }

    fn cpu(&self) -> Result<Duration, Failure> {
        process::cpu(&self.0.id().to_string())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that goes with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Failure> {
        let nanos = std::time::UNIX_EPOCH.elapsed()?.as_nanos();
        let path = std::env::temp_dir().join(format!("saltern-load-{nanos}"));
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How long the process may take to connect, and to store what is left when all is sent.
const PATIENCE: Duration = Duration::from_mins(1);

/// Between two looks at how far the sinks are, which cost the measured process something too.
const LOOK: Duration = Duration::from_millis(25);

/// Events sent before a saturated run, so that neither side starts cold.
const WARM_UP: u64 = 10_000;

/// How many events saltern may be ahead of its file before a saturated bus waits.
const WINDOW: u64 = 5000;

/// Measures a saltern with these sinks, or with `other` (YAML) in their place.
pub(crate) fn saltern(
    binary: &Path,
    sinks: &[Sink],
    other: Option<&str>,
    load: &Load<'_>,
) -> Result<Cost, Failure> {
    let folder = Folder::new()?;
    let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let socket = folder.0.join("bus.ipc");
    let mut config = format!(
        "state_dir: {}\nlog: {{level: warn}}\nhttp: {{listen: \"{http}\"}}\nsources:\n  bus:\n    salt_bus: {{address: {}}}\nsinks:\n",
        folder.0.join("state").display(),
        socket.display(),
    );
    let kinds = match other {
        Some(kind) => vec![kind.to_owned()],
        None => sinks.iter().map(|sink| sink.config(&folder.0)).collect(),
    };
    for (number, kind) in kinds.iter().enumerate() {
        // Room for all that a saturated bus can be ahead of a sink: what is measured is the cost of
        // storing, and dropping is cheaper than that.
        let room = match (load.spill, load.rate) {
            (Spill::Memory, Rate::Max) => ", memory: 4GiB",
            _ => "",
        };
        let mode = load.spill;
        writeln!(config, "  s{number}:\n    {kind}\n    spill: {{mode: {mode}{room}}}")?;
    }
    let path = folder.0.join("saltern.yaml");
    std::fs::write(&path, config)?;

    let bus = Bus::listen(&socket)?;
    let reader = Reader::start(Command::new(binary).arg("--config").arg(&path).arg("run"))?;
    let mut stream = [bus.accept()?];
    wait_until(|| Ok(status(http).is_ok()))?;
    let written = || std::fs::metadata(folder.0.join("events.jsonl")).map(|file| file.len());
    let warm_up = if load.rate == Rate::Max { WARM_UP } else { 0 };
    bus::send(&mut stream, load.traffic, load.rate, warm_up, &mut |_| Ok(()))?;
    wait_until_settled(http, warm_up)?;
    let base = written().unwrap_or(0);
    let line = base / warm_up.max(1);
    let mut gate = |sent: u64| {
        while line > 0 && sent.saturating_sub((written()? - base) / line) > WINDOW {
            // The file is all that there is to see of the progress of another process.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    };
    let before = reader.cpu()?;
    let began = Instant::now();
    let sent = bus::send(&mut stream, load.traffic, load.rate, load.events, &mut gate)?;
    let last = wait_until_settled(http, warm_up + load.events)?;
    let elapsed = began.elapsed();
    let cpu = reader.cpu()?.saturating_sub(before);
    let dropped = sum(&last, "dropped_events") + sum(&last, "rejected_events");
    #[allow(clippy::cast_precision_loss)]
    Ok(Cost {
        events: load.events,
        dropped,
        read_rate: sent.bytes as f64 / sent.elapsed.as_secs_f64(),
        stored_rate: load.events as f64 / elapsed.as_secs_f64(),
        cpu: cpu.as_secs_f64() * 1e6 / load.events as f64,
        peak: process::memory(reader.0.id(), "VmHWM")?,
        resident: process::memory(reader.0.id(), "VmRSS")?,
    })
}

/// Measures a reader that only drains the socket.
pub(crate) fn drain(load: &Load<'_>) -> Result<Cost, Failure> {
    let folder = Folder::new()?;
    let socket = folder.0.join("bus.ipc");
    let bus = Bus::listen(&socket)?;
    let own = std::env::current_exe()?;
    let reader = Reader::start(Command::new(own).arg("drain").arg("--socket").arg(&socket))?;
    let mut stream = [bus.accept()?];
    let before = reader.cpu()?;
    let sent = bus::send(&mut stream, load.traffic, load.rate, load.events, &mut |_| Ok(()))?;
    let cpu = reader.cpu()?.saturating_sub(before);
    #[allow(clippy::cast_precision_loss)]
    Ok(Cost {
        events: load.events,
        read_rate: sent.bytes as f64 / sent.elapsed.as_secs_f64(),
        stored_rate: load.events as f64 / sent.elapsed.as_secs_f64(),
        cpu: cpu.as_secs_f64() * 1e6 / load.events as f64,
        peak: process::memory(reader.0.id(), "VmHWM")?,
        resident: process::memory(reader.0.id(), "VmRSS")?,
        ..Cost::default()
    })
}

/// Waits until every sink has settled so many events; the status then.
fn wait_until_settled(http: SocketAddr, events: u64) -> Result<Value, Failure> {
    let mut last = Value::Null;
    wait_until(|| {
        last = status(http)?;
        Ok(settled(&last).is_some_and(|settled| settled >= events))
    })
    .map_err(|error| format!("{error}; it stands at {last}"))?;
    Ok(last)
}

fn wait_until(mut is_so: impl FnMut() -> Result<bool, Failure>) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > deadline {
            return Err(format!("not done after {PATIENCE:?}").into());
        }
        // There is nothing to wait on but the answer of another process.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// What `/api/v1/status` says.
fn status(http: SocketAddr) -> Result<Value, Failure> {
    let mut stream = TcpStream::connect(http)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /api/v1/status HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("an answer without a body")?;
    Ok(serde_json::from_str(body)?)
}

/// Events that every sink has stored, refused or dropped.
fn settled(status: &Value) -> Option<u64> {
    let count = |sink: &Value, key: &str| sink.get(key).and_then(Value::as_u64).unwrap_or(0);
    let of = |sink| {
        count(sink, "events") + count(sink, "dropped_events") + count(sink, "rejected_events")
    };
    status.get("sinks")?.as_array()?.iter().map(of).min()
}

fn sum(status: &Value, key: &str) -> u64 {
    let sinks = status.get("sinks").and_then(Value::as_array);
    sinks.into_iter().flatten().filter_map(|sink| sink.get(key)?.as_u64()).sum()
}
