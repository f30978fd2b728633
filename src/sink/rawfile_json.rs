//! `rawfile_json`: one JSON object a line in a file, as Salt's returner of that name writes them.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   bus: {salt_bus: {}}
//! sinks:
//!   archive:
//!     rawfile_json:
//!       filename: /var/log/saltern/events.jsonl
//!       rotate: {max_bytes: 1GiB, max_age: 7d, keep: 12}
//! ```
//!
//! # Stored
//!
//! A line for each event, `{"tag": …, "data": …}`, as Salt's own writes it: see
//! [JSON](../sinks.md#json).
//!
//! The file is opened for appending and locked (flock) for each batch, so that it may be shared
//! with Salt's own returner. A batch is stored whole: on a full disk the part that was written is
//! cut off again. A half line that a crash left is cut off when the file is opened. So there is
//! never half a line.
//!
//! # Rotation
//!
//! SIGHUP opens the file anew, for logrotate; a file that was deleted is begun anew by itself.
//! `rotate` needs no logrotate. A file is compressed beside itself, takes its number (`FILE.1.zst`
//! is the newest), and only then is removed, all under the lock. So a crash or a full disk at any
//! point loses nothing. If the file cannot be rotated, events go on into it and rotation is tried
//! again a minute later.
//!
//! # Guarantee
//!
//! Lines are in order, and never half. A batch that was written just before a crash is written
//! again after it.
//!
//! # Failures
//!
//! * the directory is missing, or may not be written to → the batch comes again, after 0.5 s to 30
//!   s → `saltern_sink_up` is 0; the log names the file and what to do
//! * the disk is full → the written part of the batch is cut off again; it comes again →
//!   `saltern_sink_retries_total` rises, the log names the file
//! * another process holds the lock → it is waited for, up to `retry.timeout` →
//!   `saltern_sink_lag_seconds` rises
//! * the file was deleted → it is begun anew at the next batch → nothing
//! * the file was renamed → it is written to until SIGHUP, or with `rotate` begun anew → nothing
//! * rotation fails → events go on into the file; tried again a minute later → a warning in the log
//!
//! # Differences
//!
//! Events with bytes that are not UTF-8, dates and the like are written; Salt's own drops them.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::OFlags;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::event::Event;
use crate::event::batch::{Batch, BatchLimits};
use crate::event::long_json;
use crate::files::unwritable::advised;
use crate::sink::contract::{
    ConnectError, Context, Defaults, Once, Reopen, SaltForm, SaltOption, SaltReturner, Sink,
    WriteError,
};
use crate::sync::blocking;
use crate::units::{ByteSize, Mode, Span};

/// A file of JSON lines.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The file. Its directory must exist.
    #[serde(default = "default_filename")]
    filename: PathBuf,
    /// Permissions of a new file, as text in octal. Default: `"0640"`.
    #[serde(default = "default_mode")]
    mode: Mode,
    /// Rotation without logrotate. Default: none.
    #[serde(default)]
    rotate: Option<Rotate>,
}

fn default_filename() -> PathBuf {
    "/var/log/salt/events".into()
}

fn default_mode() -> Mode {
    Mode(0o640)
}

/// The conditions to put a file aside and begin a new one, and the number of files to keep.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Rotate {
    /// The size from which a file is put aside.
    max_bytes: ByteSize,
    /// The age from which a file is put aside. Default: no limit.
    max_age: Option<Span>,
    /// Files kept besides the current one: `events.1.zst` is the newest.
    keep: u32,
    /// Compress files that are put aside with zstd.
    compress: bool,
}

impl Default for Rotate {
    fn default() -> Self {
        Rotate { max_bytes: ByteSize::mib(256), max_age: None, keep: 9, compress: true }
    }
}

pub(super) struct RawfileJson {
    config: Config,
    file: File,
    began: SystemTime,
    reopen: Reopen,
    lines: Vec<u8>,
    /// Rotation failed and waits until then.
    rotate_after: Option<Instant>,
}

/// The time to wait for the lock of another process before looking again.
const LOCK_WAIT: Duration = Duration::from_millis(5);

/// The time after which a rotation that failed is tried again.
const ROTATE_AGAIN: Duration = Duration::from_mins(1);

impl Sink for RawfileJson {
    const NAME: &'static str = "rawfile_json";
    const ABOUT: &'static str = "JSON lines in a file, as Salt's rawfile_json writes them";
    const DEFAULTS: Defaults =
        Defaults::store(BatchLimits::new(1000, ByteSize::mib(1), Span::millis(200)));
    const ONCE: Once = Once::No;
    const SALT: Option<SaltReturner> = Some(SaltReturner {
        names: &["rawfile_json"],
        sections: &["rawfile_json"],
        stores_events: true,
        options: &[SaltOption {
            name: "filename",
            setting: "filename",
            is_needed: false,
            form: SaltForm::Path,
        }],
        fixed: &[],
        file: Some(("filename", "/var/log/salt/events")),
        note: None,
    });
    const STREAMS: bool = true;
    type Config = Config;
    type Prepared = ();

    async fn connect(config: &Config, context: &Context) -> Result<Self, ConnectError> {
        Self::open(config, context).await.map_err(WriteError::while_connecting)
    }

    async fn write(&mut self, batch: &Batch, _: Option<()>) -> Result<(), WriteError> {
        if self.reopen.take() {
            blocking(|| self.begin_anew())?;
        }
        self.lock().await?;
        while blocking(|| self.is_gone() || self.rotate_if_due()) {
            blocking(|| self.begin_anew())?;
            self.lock().await?;
        }
        let has_long = !batch.events().all(Event::is_surely_short)
            && blocking(|| batch.events().any(|event| event.long().is_some()));
        let result = match self.file.metadata() {
            Ok(metadata) if !metadata.is_file() => {
                // Writing may have to wait, which cannot be done in the middle of making JSON.
                let _permit = long_json::permit(batch).await;
                push(&mut self.file, &mut lines_of(batch, &mut self.lines)).await
            }
            _ if has_long => blocking(|| {
                or_nothing(&mut self.file, |file| write_in_pieces(file, batch, &mut self.lines))
            }),
            _ => blocking(|| {
                let mut lines = lines_of(batch, &mut self.lines);
                or_nothing(&mut self.file, |file| write_all(file, &mut lines))
            }),
        };
        let result = self.file.unlock().and(result);
        // A large batch must not hold its memory for ever.
        self.lines.shrink_to(2 * Self::DEFAULTS.batch.max_bytes);
        result.map_err(|error| {
            let doing = format!("appending to {}", self.config.filename.display());
            WriteError::retry(doing, advised(&self.config.filename, error))
        })
    }

    async fn close(self) -> Result<(), WriteError> {
        blocking(|| self.file.sync_data()).or_else(|error| {
            // A terminal, a pipe: there is nothing to sync.
            if error.kind() == io::ErrorKind::InvalidInput {
                return Ok(());
            }
            let doing = format!("syncing {}", self.config.filename.display());
            Err(WriteError::retry(doing, error))
        })
    }
}

impl RawfileJson {
    async fn open(config: &Config, context: &Context) -> Result<Self, WriteError> {
        let mut reopen = context.reopen.clone();
        reopen.take();
        let file = blocking(|| open(config)).map_err(|error| opening(config, error))?;
        let began = began(&file);
        let lines = Vec::new();
        let mut sink =
            RawfileJson { config: config.clone(), file, began, reopen, lines, rotate_after: None };
        sink.lock().await?;
        let result = blocking(|| {
            let result = cut_half_line(&mut sink.file, &config.filename);
            sink.file.unlock().and(result)
        });
        result.map_err(|error| opening(config, error))?;
        Ok(sink)
    }

    /// Takes the lock. It is tried again and again, since nothing could stop a thread that waits
    /// for it in the kernel, not even the end of the daemon.
    async fn lock(&self) -> Result<(), WriteError> {
        loop {
            match self.file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => sleep(LOCK_WAIT).await,
                Err(TryLockError::Error(error)) => {
                    let doing = format!("locking {}", self.config.filename.display());
                    return Err(WriteError::retry(doing, error));
                }
            }
        }
    }

    /// True if the file was deleted, or put aside by another writer of this sink. A file that
    /// logrotate has renamed is written to until SIGHUP comes.
    fn is_gone(&self) -> bool {
        let Ok(own) = self.file.metadata() else { return true };
        if own.nlink() == 0 {
            return true;
        }
        self.config.rotate.is_some()
            && std::fs::metadata(&self.config.filename)
                .is_ok_and(|there| (there.dev(), there.ino()) != (own.dev(), own.ino()))
    }

    fn begin_anew(&mut self) -> Result<(), WriteError> {
        self.file = open(&self.config).map_err(|error| opening(&self.config, error))?;
        self.began = began(&self.file);
        Ok(())
    }

    /// Puts the file aside if it is time; `true` if it did. Holds the lock.
    fn rotate_if_due(&mut self) -> bool {
        let Some(rotate) = &self.config.rotate else { return false };
        let Ok(metadata) = self.file.metadata() else { return false };
        let size = metadata.len();
        let age = self.began.elapsed().unwrap_or_default();
        let is_old = rotate.max_age.is_some_and(|max| age >= max.0);
        if !metadata.is_file() || size == 0 || (size < rotate.max_bytes.0 && !is_old) {
            return false;
        }
        if self.rotate_after.is_some_and(|after| Instant::now() < after) {
            return false;
        }
        let file = self.config.filename.display();
        match put_aside(&self.config.filename, rotate) {
            Ok(()) => {
                info!(%file, bytes = size, "the file was rotated");
                self.rotate_after = None;
                true
            }
            Err(error) => {
                let error = advised(&self.config.filename, error);
                warn!(
                    %file,
                    %error,
                    "the file cannot be rotated; it keeps growing, next try in a minute"
                );
                self.rotate_after = Some(Instant::now() + ROTATE_AGAIN);
                false
            }
        }
    }
}

fn opening(config: &Config, error: io::Error) -> WriteError {
    let doing = format!("opening {}", config.filename.display());
    match (error.kind(), config.filename.parent()) {
        (io::ErrorKind::NotFound, Some(folder)) => {
            WriteError::retry(doing, format!("{error}: create the directory {}", folder.display()))
        }
        _ => WriteError::retry(doing, advised(&config.filename, error)),
    }
}

/// Writes do not wait, which is of no effect on regular files.
fn open(config: &Config) -> io::Result<File> {
    // A symbolic link may be the operator's own, unless everybody can put one there.
    let folder = config.filename.parent().and_then(|folder| folder.metadata().ok());
    let links = match folder.is_some_and(|folder| folder.mode() & 0o002 != 0) {
        true => OFlags::NOFOLLOW,
        false => OFlags::empty(),
    };
    let flags = links | OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(config.mode.0)
        .custom_flags(flags.bits().cast_signed())
        .open(&config.filename)
}

/// Cuts a line without an end off a regular file; a crash in the middle of a write leaves one.
/// Holds the lock.
fn cut_half_line(file: &mut File, path: &Path) -> io::Result<()> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(());
    }
    let len = metadata.len();
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
        warn!(file = %path.display(), bytes = len - end, "an incomplete last line was cut off");
        file.set_len(end)?;
    }
    Ok(())
}

/// The lines of a batch. Lines that are kept for other sinks too are not copied. If some are not
/// kept, all go into `own`.
fn lines_of<'a>(batch: &'a Batch, own: &'a mut Vec<u8>) -> Vec<IoSlice<'a>> {
    own.clear();
    let shared = batch.events().map(|event| event.shared_line().map(IoSlice::new));
    shared.collect::<Option<_>>().unwrap_or_else(|| {
        batch.events().for_each(|event| event.write_line(own));
        vec![IoSlice::new(own)]
    })
}

/// Lets `write` append all of it or nothing. Holds the lock.
fn or_nothing(file: &mut File, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let len = file.metadata()?.len();
    write(file).inspect_err(|_| {
        // This fails if it is no regular file, which keeps the part that was written.
        let _ = file.set_len(len);
    })
}

/// Writes the lines of a batch with long ones; one piece of a long one is held at a time.
fn write_in_pieces(file: &mut File, batch: &Batch, lines: &mut Vec<u8>) -> io::Result<()> {
    lines.clear();
    let mut written = Ok(());
    for event in batch.events() {
        event.write_line_in_pieces(lines, &mut |piece| {
            if written.is_ok() {
                written = file.write_all(piece);
            }
        });
    }
    written.and_then(|()| file.write_all(lines))
}

fn write_all(file: &mut File, mut lines: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !lines.is_empty() {
        lines = behind(file.write_vectored(lines), lines)?;
    }
    Ok(())
}

/// Writes to a pipe, whose reader may be slow or gone. Like the lock it is tried again and again.
async fn push(file: &mut File, mut lines: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !lines.is_empty() {
        match file.write_vectored(lines) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(LOCK_WAIT).await,
            written => lines = behind(written, lines)?,
        }
    }
    Ok(())
}

/// The lines that are left after a write.
fn behind<'a, 'b>(
    written: io::Result<usize>,
    mut lines: &'a mut [IoSlice<'b>],
) -> io::Result<&'a mut [IoSlice<'b>]> {
    match written {
        Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
        Ok(written) => IoSlice::advance_slices(&mut lines, written),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) => return Err(error),
    }
    Ok(lines)
}

fn began(file: &File) -> SystemTime {
    let metadata = file.metadata();
    metadata.and_then(|metadata| metadata.created()).unwrap_or_else(|_| SystemTime::now())
}

/// Renames `events` to `events.1` (or compresses it to `events.1.zst`) and those before it to one
/// higher number each; the last is removed. Steps that need room come first.
fn put_aside(path: &Path, rotate: &Rotate) -> io::Result<()> {
    let beside = |suffix: &str| {
        let mut name = OsString::from(path);
        name.push(suffix);
        PathBuf::from(name)
    };
    let ending = if rotate.compress { ".zst" } else { "" };
    let numbered = |number: u32| beside(&format!(".{number}{ending}"));
    if rotate.keep == 0 {
        return std::fs::remove_file(path);
    }
    let unfinished = beside(".zst.part");
    if rotate.compress {
        compress(path, &unfinished).inspect_err(|_| {
            // It is of no use, and it may be what fills the disk.
            let _ = std::fs::remove_file(&unfinished);
        })?;
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
    std::fs::rename(&unfinished, numbered(1))?;
    std::fs::remove_file(path)
}

fn compress(path: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(path)?;
    // A file that was left over, or that somebody else has put there, is not written to.
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    target.set_permissions(source.metadata()?.permissions())?;
    zstd::stream::copy_encode(&mut source, &target, 3)?;
    target.sync_all()
}

#[cfg(test)]
mod tests {

    use tokio::sync::watch;

    use super::*;
    use crate::sink::testing::{self, context};

    fn config(folder: &Path, rotate: Option<Rotate>) -> Config {
        Config { filename: folder.join("events"), mode: Mode(0o600), rotate }
    }

    async fn connect(config: &Config) -> RawfileJson {
        RawfileJson::connect(config, &context()).await.unwrap()
    }

    /// One event for each number; its line is `{"tag": "t", "data": <number>}`.
    fn batch(numbers: std::ops::Range<u8>) -> Batch {
        testing::batch(numbers.map(|n| Event::new("t", &[n])).collect())
    }

    fn lines(numbers: std::ops::Range<u8>) -> String {
        let line = |n| format!("{{\"tag\": \"t\", \"data\": {n}}}\n");
        numbers.map(line).collect::<Vec<_>>().concat()
    }

    fn text(path: impl AsRef<Path>) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    fn unpacked(path: PathBuf) -> String {
        String::from_utf8(zstd::decode_all(File::open(path).unwrap()).unwrap()).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn half_a_line_is_cut_off_when_the_file_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), None);
        let long = "x".repeat(200_000);
        for (before, kept) in [
            ("", ""),
            ("{\"tag\"", ""),
            (long.as_str(), ""),
            ("{}\n", "{}\n"),
            ("{}\n{\"tag\": \"a", "{}\n"),
            (&format!("{{}}\n{long}"), "{}\n"),
        ] {
            std::fs::write(&config.filename, before).unwrap();
            connect(&config).await.write(&batch(0..2), None).await.unwrap();
            assert_eq!(text(&config.filename), format!("{kept}{}", lines(0..2)));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_new_file_has_the_mode_that_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), None);
        connect(&config).await;
        let mode = std::fs::metadata(&config.filename).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_large_file_is_compressed_and_numbered() {
        let folder = tempfile::tempdir().unwrap();
        let rotate = Rotate { max_bytes: ByteSize(1), keep: 2, ..Rotate::default() };
        let config = config(folder.path(), Some(rotate));
        let mut sink = connect(&config).await;
        for n in 0..4 {
            sink.write(&batch(n..n + 1), None).await.unwrap();
        }
        assert_eq!(text(&config.filename), lines(3..4));
        assert_eq!(unpacked(folder.path().join("events.1.zst")), lines(2..3));
        assert_eq!(unpacked(folder.path().join("events.2.zst")), lines(1..2));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        let mode = std::fs::metadata(folder.path().join("events.1.zst")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_old_file_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let max_age = Some(Span::seconds(3600));
        let rotate = Rotate { max_age, compress: false, ..Rotate::default() };
        let config = config(folder.path(), Some(rotate));
        let mut sink = connect(&config).await;
        sink.write(&batch(0..1), None).await.unwrap();
        sink.write(&batch(1..2), None).await.unwrap();
        sink.began = SystemTime::now() - Duration::from_secs(3601);
        sink.write(&batch(2..3), None).await.unwrap();
        assert_eq!(text(folder.path().join("events.1")), lines(0..2));
        assert_eq!(text(&config.filename), lines(2..3));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_rotation_that_fails_holds_nothing_up_and_drops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let rotate = Rotate { max_bytes: ByteSize(1), keep: 3, ..Rotate::default() };
        let config = config(folder.path(), Some(rotate));
        std::fs::write(folder.path().join("events.1.zst"), "older").unwrap();
        // This is in the way of the compressed file.
        std::fs::create_dir(folder.path().join("events.zst.part")).unwrap();
        let mut sink = connect(&config).await;
        for n in 0..3 {
            sink.write(&batch(n..n + 1), None).await.unwrap();
        }
        assert_eq!(text(&config.filename), lines(0..3));
        assert_eq!(text(folder.path().join("events.1.zst")), "older");
        std::fs::remove_dir(folder.path().join("events.zst.part")).unwrap();
        sink.rotate_after = Some(Instant::now());
        sink.write(&batch(3..4), None).await.unwrap();
        assert_eq!(unpacked(folder.path().join("events.1.zst")), lines(0..3));
        assert_eq!(text(folder.path().join("events.2.zst")), "older");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn writers_that_rotate_lose_nothing_of_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let rotate = Rotate { max_bytes: ByteSize(100), keep: 99, ..Rotate::default() };
        let config = config(folder.path(), Some(rotate));
        let (mut first, mut second) = (connect(&config).await, connect(&config).await);
        for n in 0..20 {
            first.write(&batch(n..n + 1), None).await.unwrap();
            second.write(&batch(n + 100..n + 101), None).await.unwrap();
        }
        let mut found = text(&config.filename);
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "zst") {
                found += &unpacked(path);
            }
        }
        let mut found: Vec<_> = found.lines().collect();
        let (low, high) = (lines(0..20), lines(100..120));
        let mut expected: Vec<_> = low.lines().chain(high.lines()).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_deleted_file_is_begun_anew_and_a_renamed_one_waits_for_sighup() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), None);
        let (hup, reopen) = watch::channel(0);
        let context = Context { reopen: Reopen::new(reopen), ..context() };
        let mut sink = RawfileJson::connect(&config, &context).await.unwrap();
        sink.write(&batch(0..1), None).await.unwrap();
        std::fs::remove_file(&config.filename).unwrap();
        sink.write(&batch(1..2), None).await.unwrap();
        assert_eq!(text(&config.filename), lines(1..2));

        let aside = folder.path().join("events-20261121");
        std::fs::rename(&config.filename, &aside).unwrap();
        sink.write(&batch(2..3), None).await.unwrap();
        hup.send(1).unwrap();
        sink.write(&batch(3..4), None).await.unwrap();
        assert_eq!((text(aside), text(&config.filename)), (lines(1..3), lines(3..4)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_lock_of_another_process_is_respected() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), None);
        let mut sink = connect(&config).await;
        let other = File::options().append(true).open(&config.filename).unwrap();
        other.lock().unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(50), async {
            sink.write(&batch(0..1), None).await
        });
        waiting.await.unwrap_err();
        assert_eq!(text(&config.filename), "");
        other.unlock().unwrap();
        sink.write(&batch(0..1), None).await.unwrap();
        assert_eq!(text(&config.filename), lines(0..1));
        // And it is given back.
        other.try_lock().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_device_without_room_is_tried_again() {
        let config = Config { filename: "/dev/full".into(), mode: Mode(0o600), rotate: None };
        let mut sink = connect(&config).await;
        let error = sink.write(&batch(0..1), None).await.unwrap_err();
        assert!(matches!(error, WriteError::Retry { .. }), "{error:?}");
    }
}
