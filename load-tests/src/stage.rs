//! The stage of the scenarios of faults and the soak: stores that are checked, and a lock that
//! makes one of them unusable.
//!
//! The checked store is the sink `local`. Its output is a pipe that is read here, event by event:
//! half an hour of events would be 27 GB of files. The store that fails is a database of the sink
//! `sqlite3` which is held locked.

use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;

use crate::Failure;
use crate::daemon::pause;
use crate::lines::{self, Seen};

/// The configuration of the sink that an [`Output`] reads.
pub(crate) const READ: &str = "local: {format: json}";

/// The standard output of a daemon, read by a thread until the daemon ends.
pub(crate) struct Output(JoinHandle<std::io::Result<Seen>>);

impl Output {
    pub(crate) fn of(output: ChildStdout) -> Self {
        Output(std::thread::spawn(move || read(output)))
    }

    /// All events that have come. The daemon has ended.
    pub(crate) fn end(self) -> Result<Seen, Failure> {
        Ok(self.0.join().map_err(|_| "the thread that reads the sink's output panicked")??)
    }
}

fn read(output: ChildStdout) -> std::io::Result<Seen> {
    let mut seen = Seen::default();
    lines::each(output, |line, _| {
        if let Some(number) = lines::number(line) {
            seen.note(number);
        }
        Ok(true)
    })?;
    Ok(seen)
}

/// For how long a database is held locked, and for how long it is let go, in turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lock {
    pub(crate) held: Duration,
    pub(crate) free: Duration,
}

impl Lock {
    /// Holds and lets go until it is over.
    pub(crate) fn hold(self, database: &Path, is_over: &AtomicBool) -> Result<(), String> {
        let run = || -> rusqlite::Result<()> {
            let connection = Connection::open(database)?;
            connection.busy_timeout(Duration::from_secs(30))?;
            while !is_over.load(Ordering::Acquire) {
                connection.execute_batch("BEGIN IMMEDIATE")?;
                wait(self.held, is_over);
                connection.execute_batch("ROLLBACK")?;
                wait(self.free, is_over);
            }
            Ok(())
        };
        run().map_err(|error| format!("holding {}: {error}", database.display()))
    }
}

/// Waits, but not beyond the end.
fn wait(time: Duration, is_over: &AtomicBool) {
    const STEP: Duration = Duration::from_millis(10);
    let mut left = time;
    while !left.is_zero() && !is_over.load(Ordering::Acquire) {
        pause(left.min(STEP));
        left = left.saturating_sub(STEP);
    }
}

/// The events in the database of a sink `sqlite3` that takes every `every`th event, from `first`
/// on.
pub(crate) fn stored(database: &Path, every: u64, first: u64) -> Result<Seen, Failure> {
    let connection = Connection::open(database)?;
    let mut rows = connection.prepare("SELECT tag FROM salt_events ORDER BY id")?;
    let mut rows = rows.query([])?;
    let mut seen = Seen::default();
    while let Some(row) = rows.next()? {
        let tag: String = row.get(0)?;
        let number = lines::number(tag.as_bytes()).ok_or("an event without a jid")?;
        seen.note(number.saturating_sub(first) / every);
    }
    Ok(seen)
}

/// Builds the library that makes a disk slow for one program.
pub(crate) fn slow_disk(folder: &Path) -> Result<PathBuf, Failure> {
    let library = folder.join("slow_disk.so");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(compiler);
    command.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("slow_disk.c")).arg("-ldl");
    if !command.status()?.success() {
        return Err("the C compiler could not build slow_disk.c".into());
    }
    Ok(library)
}
