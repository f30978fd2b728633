//! `rawfile_json`: one JSON object a line in a file, as Salt's returner of that name writes them.
//!
//! A line is `{"tag": …, "data": …}`. The file is opened for appending and locked (flock) for each
//! batch, so that it may be shared with Salt's own returner. A batch is one write; if the disk is
//! full the part that was written is cut off again, so there is never half a line, and a half line
//! that a crash left is cut off when the file is opened. SIGHUP opens the file anew, for logrotate;
//! `rotate` needs no logrotate.
//!
//! At least once: a batch that was written just before a crash is written again after it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Context, Sink, SinkError, blocking};
use crate::batch::{Batch, BatchLimits};
use crate::event::Event;
use crate::json::write_string;
use crate::units::{ByteSize, Span};

/// A file of JSON lines.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The file. Its directory must exist.
    #[serde(default = "default_filename")]
    filename: PathBuf,
    /// Permissions of a new file, as text in octal.
    #[serde(default)]
    mode: Mode,
    /// Rotation without logrotate. Default: none.
    #[serde(default)]
    rotate: Option<Rotate>,
}

fn default_filename() -> PathBuf {
    "/var/log/salt/events".into()
}

/// When a file is put aside and a new one begun, and how many are kept.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Rotate {
    /// The size from which a file is put aside.
    max_bytes: ByteSize,
    /// The age from which a file is put aside. Default: no limit.
    max_age: Option<Span>,
    /// Files kept besides the current one: `events.1.zst` is the newest.
    keep: u32,
    /// Compress what is put aside with zstd.
    compress: bool,
}

impl Default for Rotate {
    fn default() -> Self {
        Rotate { max_bytes: ByteSize::mib(256), max_age: None, keep: 9, compress: true }
    }
}

/// Permissions: `"0640"`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
struct Mode(u32);

impl Default for Mode {
    fn default() -> Self {
        Mode(0o640)
    }
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Mode(mode)),
            _ => Err(format!("`{text}` are no permissions; write them in octal, \"0640\"")),
        }
    }
}

pub(super) struct RawfileJson {
    config: Config,
    file: File,
    began: SystemTime,
    reopen: watch::Receiver<u64>,
    lines: Vec<u8>,
}

impl Sink for RawfileJson {
    const NAME: &'static str = "rawfile_json";
    const ABOUT: &'static str = "JSON lines in a file, as Salt's rawfile_json writes them";
    const BATCH: BatchLimits = BatchLimits::new(1000, ByteSize::mib(1), 200);
    type Config = Config;

    async fn connect(config: &Config, context: &Context) -> Result<Self, SinkError> {
        let mut reopen = context.reopen.clone();
        reopen.mark_unchanged();
        let file = blocking(|| open(config)).map_err(|error| opening(config, error))?;
        let began = began(&file);
        Ok(RawfileJson { config: config.clone(), file, began, reopen, lines: Vec::new() })
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        blocking(|| self.append(batch))
    }

    async fn close(self) -> Result<(), SinkError> {
        blocking(|| self.file.sync_data()).map_err(|error| {
            SinkError::retry(format!("syncing {}", self.config.filename.display()), error)
        })
    }
}

impl RawfileJson {
    fn append(&mut self, batch: &Batch) -> Result<(), SinkError> {
        if self.reopen.has_changed().unwrap_or(false) {
            self.reopen.mark_unchanged();
            self.begin_anew()?;
        }
        self.rotate_if_due()?;
        self.lines.clear();
        for event in batch.events() {
            write_line(event, &mut self.lines);
        }
        let result = append_whole(&mut self.file, &self.lines);
        // A large batch must not hold its memory for ever.
        self.lines.shrink_to(2 * Self::BATCH.max_bytes);
        result.map_err(|error| {
            SinkError::retry(format!("appending to {}", self.config.filename.display()), error)
        })
    }

    fn begin_anew(&mut self) -> Result<(), SinkError> {
        self.file = open(&self.config).map_err(|error| opening(&self.config, error))?;
        self.began = began(&self.file);
        Ok(())
    }

    fn rotate_if_due(&mut self) -> Result<(), SinkError> {
        let Some(rotate) = self.config.rotate.clone() else { return Ok(()) };
        let size = self.file.metadata().map_or(0, |metadata| metadata.len());
        let age = self.began.elapsed().unwrap_or_default();
        let is_old = rotate.max_age.is_some_and(|max| age >= max.0);
        if size == 0 || (size < rotate.max_bytes.0 && !is_old) {
            return Ok(());
        }
        put_aside(&self.config.filename, &rotate).map_err(|error| {
            SinkError::retry(format!("rotating {}", self.config.filename.display()), error)
        })?;
        info!(file = %self.config.filename.display(), bytes = size, "the file was rotated");
        self.begin_anew()
    }
}

/// Appends the line of an event, as Salt's `rawfile_json` writes it.
pub(crate) fn write_line(event: &Event, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"tag\": ");
    write_string(event.tag().as_bytes(), out);
    out.extend_from_slice(b", \"data\": ");
    out.extend_from_slice(event.json());
    out.extend_from_slice(b"}\n");
}

fn opening(config: &Config, error: io::Error) -> SinkError {
    SinkError::retry(format!("opening {}", config.filename.display()), error)
}

fn open(config: &Config) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(config.mode.0)
        .open(&config.filename)?;
    cut_half_line(&mut file, &config.filename)?;
    Ok(file)
}

/// Cuts a line without an end off a regular file; a crash in the middle of a write leaves one.
fn cut_half_line(file: &mut File, path: &Path) -> io::Result<()> {
    if !file.metadata()?.is_file() {
        return Ok(());
    }
    file.lock()?;
    let result = (|| {
        let len = file.metadata()?.len();
        let mut end = len;
        let mut block = vec![0; 64 << 10];
        while end > 0 {
            let start = end.saturating_sub(block.len() as u64);
            file.seek(SeekFrom::Start(start))?;
            let read = usize::try_from(end - start).unwrap_or(block.len());
            let part = block.get_mut(..read).unwrap_or_default();
            file.read_exact(part)?;
            if let Some(last) = memchr::memrchr(b'\n', part) {
                end = start + last as u64 + 1;
                break;
            }
            end = start;
        }
        if end < len {
            warn!(file = %path.display(), bytes = len - end, "half a line was cut off the end");
            file.set_len(end)?;
        }
        Ok(())
    })();
    file.unlock()?;
    result
}

/// Writes all of it or nothing.
fn append_whole(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.lock()?;
    let len = file.metadata()?.len();
    let result = file.write_all(bytes);
    if result.is_err() {
        // Fails for what is no regular file, which keeps what it got.
        let _ = file.set_len(len);
    }
    file.unlock()?;
    result
}

fn began(file: &File) -> SystemTime {
    let metadata = file.metadata();
    metadata.and_then(|metadata| metadata.created()).unwrap_or_else(|_| SystemTime::now())
}

/// Renames `events` to `events.1` (or compresses it to `events.1.zst`) and those before it to one
/// higher number each; the last is removed.
fn put_aside(path: &Path, rotate: &Rotate) -> io::Result<()> {
    let numbered = |number: u32| {
        let mut name = OsString::from(path);
        name.push(format!(".{number}{}", if rotate.compress { ".zst" } else { "" }));
        PathBuf::from(name)
    };
    if rotate.keep == 0 {
        return std::fs::remove_file(path);
    }
    for number in (1..rotate.keep).rev() {
        match std::fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    if !rotate.compress {
        return std::fs::rename(path, numbered(1));
    }
    let mut unfinished = OsString::from(path);
    unfinished.push(".zst.part");
    let mut source = File::open(path)?;
    let target = File::create(&unfinished)?;
    target.set_permissions(source.metadata()?.permissions())?;
    zstd::stream::copy_encode(&mut source, &target, 3)?;
    target.sync_all()?;
    std::fs::rename(&unfinished, numbered(1))?;
    std::fs::remove_file(path)
}
