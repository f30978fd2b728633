//! What the scenarios of faults and the soak are played on: stores that are checked, and a lock that
//! makes one of them unusable.
//!
//! A checked store is a pipe into which the sink `rawfile_json` writes and which is read here, event by
//! event: half an hour of events would be 27 GB of files. The store that fails is a database of the
//! sink `sqlite3` which is held locked.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;

use crate::Failure;
use crate::daemon::pause;
use crate::lines::{self, Seen};

/// Linux's flag for reads that do not wait.
const O_NONBLOCK: i32 = 0o4000;

/// A pipe that is read by a thread until it is told that nothing more comes.
pub(crate) struct Pipe {
    is_over: Arc<AtomicBool>,
    reading: JoinHandle<Result<Seen, String>>,
}

impl Pipe {
    pub(crate) fn make(path: &Path) -> Result<Self, Failure> {
        if !Command::new("mkfifo").arg(path).status()?.success() {
            return Err(format!("cannot make the pipe {}", path.display()).into());
        }
        // For writing too, so that opening does not wait for the daemon.
        let pipe = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(path)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let reading = std::thread::spawn(move || read(pipe, &told).map_err(|e| e.to_string()));
        Ok(Pipe { is_over, reading })
    }

    /// What has come, once everything is written.
    pub(crate) fn end(self) -> Result<Seen, Failure> {
        self.is_over.store(true, Ordering::Release);
        Ok(self.reading.join().map_err(|_| "the thread that reads a pipe panicked")??)
    }
}

fn read(mut pipe: impl Read, is_over: &AtomicBool) -> std::io::Result<Seen> {
    let mut seen = Seen::default();
    let (mut text, mut block) = (Vec::new(), vec![0; 256 << 10]);
    loop {
        // Asked before the pipe is found empty, so that nothing is written in between.
        let was_over = is_over.load(Ordering::Acquire);
        match pipe.read(&mut block) {
            Ok(count) => text.extend_from_slice(block.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock && was_over => return Ok(seen),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                pause(Duration::from_micros(500));
                continue;
            }
            Err(error) => return Err(error),
        }
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', &text) {
            if let Some(number) = lines::number(text.get(start..end).unwrap_or_default()) {
                seen.note(number);
            }
            start = end + 1;
        }
        text.drain(..start);
    }
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

/// The events in the database of a sink `sqlite3` that takes every `every`th event, from `first` on.
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
