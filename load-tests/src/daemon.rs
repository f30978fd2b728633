//! A saltern of its own, as a process in a folder of its own.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::traffic::Framing;
use crate::{Failure, process};

/// A folder that goes with its owner.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Result<Self, Failure> {
        let nanos = std::time::UNIX_EPOCH.elapsed()?.as_nanos();
        let path = std::env::temp_dir().join(format!("saltern-load-{nanos}"));
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Folder(path))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The place where the bus is that a [`Daemon`] of this folder reads.
    pub(crate) fn bus(&self) -> PathBuf {
        self.path("bus.ipc")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with its owner.
pub(crate) struct Reader(pub(crate) Child);

impl Reader {
    pub(crate) fn start(command: &mut Command) -> Result<Self, Failure> {
        let program = command.get_program().display().to_string();
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Reader(child.map_err(|error| format!("cannot start {program}: {error}"))?))
    }

    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        process::cpu(self.0.id())
    }

    pub(crate) fn memory(&self, name: &str) -> Result<u64, Failure> {
        process::memory(self.0.id(), name)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The setup that a saltern is started with.
pub(crate) struct Setup<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) framing: Framing,
    /// Sections of the configuration besides those that every one has: lines of YAML.
    pub(crate) sections: &'a str,
    /// The sinks, each the inside of a map in YAML: `blackhole: {}, spill: {mode: memory}`.
    /// `FOLDER` stands for the daemon's folder.
    pub(crate) sinks: &'a [String],
    /// A variable of its environment.
    pub(crate) variable: Option<(&'a str, &'a Path)>,
    /// Its standard output is read here.
    pub(crate) is_read: bool,
}

impl<'a> Setup<'a> {
    /// These sinks behind a plain bus, and nothing special.
    pub(crate) fn new(binary: &'a Path, sinks: &'a [String]) -> Self {
        Setup {
            binary,
            framing: Framing::Plain,
            sections: "",
            sinks,
            variable: None,
            is_read: false,
        }
    }
}

/// A running saltern.
pub(crate) struct Daemon {
    pub(crate) reader: Reader,
    pub(crate) http: SocketAddr,
}

impl Daemon {
    /// Starts it behind the bus of the folder; it is not ready yet.
    pub(crate) fn start(folder: &Folder, setup: &Setup<'_>) -> Result<Self, Failure> {
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let bus = folder.bus();
        let source = match setup.framing {
            Framing::Zmtp => format!("zeromq: {{connect: ['ipc://{}']}}", bus.display()),
            _ => format!("salt_bus: {{address: {}}}", bus.display()),
        };
        let mut config = format!(
            "state_dir: {}\nlog: {{level: error}}\nhttp: {{listen: '{http}', token: {TOKEN}}}\n\
             sources: {{bus: {{{source}}}}}\n{}\nsinks:\n",
            folder.path("state").display(),
            setup.sections,
        );
        for (number, sink) in setup.sinks.iter().enumerate() {
            let sink = sink.replace("FOLDER", &folder.0.display().to_string());
            writeln!(config, "  s{number}: {{{sink}}}")?;
        }
        let path = folder.path("saltern.yaml");
        std::fs::write(&path, config)?;
        let mut command = Command::new(setup.binary);
        command.arg("--config").arg(&path).arg("run");
        command.stdout(if setup.is_read { Stdio::piped() } else { Stdio::null() });
        if let Some((name, value)) = setup.variable {
            command.env(name, value);
        }
        Ok(Daemon { reader: Reader::start(&mut command)?, http })
    }

    pub(crate) fn wait_until_ready(&self) -> Result<(), Failure> {
        wait_until(|| Ok(self.status().is_ok()))
    }

    pub(crate) fn stdout(&mut self) -> Result<ChildStdout, Failure> {
        self.reader.0.stdout.take().ok_or_else(|| "its output is not read".into())
    }

    /// The answer of `/api/v1/status`.
    pub(crate) fn status(&self) -> Result<Value, Failure> {
        let answer = self.get("/api/v1/status")?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or("an answer without a body")?;
        Ok(serde_json::from_str(body)?)
    }

    /// The whole answer, from its status line on.
    pub(crate) fn get(&self, path: &str) -> Result<String, Failure> {
        let mut stream = TcpStream::connect(self.http)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let head = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}");
        stream.write_all(format!("GET {path} HTTP/1.0\r\n{head}\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Waits until every sink has settled so many events; the status then.
    pub(crate) fn wait_until_settled(&self, events: u64) -> Result<Value, Failure> {
        let mut last = Value::Null;
        wait_until(|| {
            last = self.status()?;
            Ok(sinks(&last).map(settled).min().is_some_and(|settled| settled >= events))
        })
        .map_err(|error| format!("{error}; it stands at {last}"))?;
        Ok(last)
    }
}

/// The token that the HTTP side wants.
const TOKEN: &str = "measured";

/// The time that the process may take to connect, and to store the rest when all is sent.
const LIMIT: Duration = Duration::from_mins(10);

/// Between two looks at how far the sinks are, which cost the measured process something too.
const LOOK: Duration = Duration::from_millis(25);

pub(crate) fn wait_until(mut is_so: impl FnMut() -> Result<bool, Failure>) -> Result<(), Failure> {
    let deadline = Instant::now() + LIMIT;
    while !is_so()? {
        if Instant::now() > deadline {
            return Err(format!("not done after {LIMIT:?}").into());
        }
        pause(LOOK);
    }
    Ok(())
}

/// There is nothing to wait on but the answers and files of another process.
#[allow(clippy::disallowed_methods)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// The sinks of a status.
pub(crate) fn sinks(status: &Value) -> impl Iterator<Item = &Value> {
    status.get("sinks").and_then(Value::as_array).into_iter().flatten()
}

/// A number of a sink.
pub(crate) fn count(sink: &Value, key: &str) -> u64 {
    sink.get(key).and_then(Value::as_u64).unwrap_or(0)
}

/// Events that a sink has stored, refused or dropped.
pub(crate) fn settled(sink: &Value) -> u64 {
    count(sink, "events") + lost(sink)
}

/// Events that a sink has refused or dropped.
pub(crate) fn lost(sink: &Value) -> u64 {
    count(sink, "dropped_events") + count(sink, "rejected_events")
}
