//! `replay`: a recorded bus, or JSON lines, from a file or from standard input. It ends, and when
//! every source has ended, `saltern run` delivers the rest and exits 0. `saltern replay FILE` does
//! the same once.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   past: {replay: {path: /var/log/salt/events, rate: 2000}}
//! sinks:
//!   jobs: {sqlite3: {database: /var/lib/saltern/jobs.db}}
//! ```
//!
//! # Formats
//!
//! There are two formats, told apart by the first bytes. A *capture* is the bytes of a bus as they
//! came off its socket, in either framing. *JSON lines* are lines of Salt's `rawfile_json` or of
//! saltern. A line is an event (`{"tag": …, "data": …}`), or a return alone, as Salt writes it for
//! `--return rawfile_json`; it becomes the event of that return.
//!
//! Blank lines and a byte order mark may stand before the first line. Lines may end with CRLF, the
//! last one with nothing. A file without events is no error. Parts of a line that are not JSON are
//! replaced and counted ([What JSON lacks](../sources.md#what-json-lacks)). Dates and bytes come
//! back as the strings that were written.
//!
//! # Guarantee
//!
//! The whole file is delivered, in order; the source waits for a sink whose queue is nearly full,
//! so that sink loses nothing ([Spill](../spill.md#sources-that-can-wait)). A replay that breaks
//! off after it has begun is not begun anew, since that would bring everything twice.
//!
//! # Failures
//!
//! * the file is not there, or may not be read → tried again until it has begun →
//!   `saltern_source_connected` is 0, `/readyz` names the source; `saltern replay` fails at once
//! * a line is no event → passed over, the first one too → it is counted as a bad frame
//! * a capture is out of step → the source has failed for good → an error with the offset; not
//!   ready until it is removed or changed
//!
//! # Inside
//!
//! A line begins with a printable character, and no frame of a capture does unless it is longer
//! than 512 MiB. The file is read and cut block by block on the runtime's blocking threads, because
//! the sources share one thread and a disk may be slow. A pipe or a terminal may keep a reader
//! waiting, so the source waits before each read until there is something to read. No thread is
//! ever stuck in a read when the daemon stops. [`lenient_json`](crate::codec::lenient_json)
//! replaces values that are not JSON.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use memchr::memchr;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::framing::{Frame, FrameError, Framer};
use super::outstanding::Outstanding;
use super::written;
use crate::codec::lenient_json::{MARK, Replaced, without_mark};
use crate::observe::metrics::SOURCE_LOSSY_VALUES;
use crate::source::contract::{Source, SourceError};
use crate::source::frame_sender::FrameSender;
use crate::source::link::Link;
use crate::units::ByteSize;

/// A recorded bus.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The file: a capture of a bus, or JSON lines as `rawfile_json` writes them, Salt's or
    /// saltern's. `-` is standard input.
    path: PathBuf,
    /// Events a second, evenly spaced. Default: as fast as they are taken.
    #[serde(default)]
    rate: Option<NonZeroU32>,
    /// The longest frame or line to accept. A longer frame ends the replay with an error; a longer
    /// line is counted as a bad frame and passed over.
    #[serde(default = "crate::source::contract::default_max_frame")]
    max_frame: ByteSize,
}

pub(super) struct Replay;

impl Source for Replay {
    const NAME: &'static str = "replay";
    const ABOUT: &'static str = "a recorded bus or JSON lines, from a file or standard input";
    const ENDS: bool = true;
    type Config = Config;

    async fn run(
        config: &Config,
        sender: FrameSender,
        stop: CancellationToken,
    ) -> Result<(), SourceError> {
        let file = open(&config.path).await?;
        Link::new(sender.state.clone()).up(&shown(&config.path));
        let mut reader = Reader::new(file, config.max_frame.as_usize(), shown(&config.path));
        let mut pace = config.rate.map(Pace::new);
        let mut flaws = Flaws::default();
        let mut outstanding = Outstanding::default();
        loop {
            match stop.run_until_cancelled(reader.readable()).await {
                Some(ready) => ready?,
                None => return Ok(()),
            }
            let block = spawn_blocking(move || {
                let block = reader.block();
                (reader, block)
            });
            let (back, block) = block.await.map_err(|error| {
                SourceError::new(format!("reading {}", shown(&config.path)), error)
            })?;
            reader = back;
            flaws.note(&block, &sender, &reader.name);
            let mut bodies = block.bodies;
            if let Some(pace) = &mut pace {
                while !bodies.is_empty() {
                    let Some(due) = stop.run_until_cancelled(pace.due()).await else {
                        return Ok(());
                    };
                    let later = bodies.split_off(due.min(bodies.len()));
                    pace.taken(bodies.len());
                    let now = std::mem::replace(&mut bodies, later);
                    if !outstanding.send(&sender, now, &stop).await {
                        return Ok(());
                    }
                }
            } else if !outstanding.send(&sender, bodies, &stop).await {
                return Ok(());
            }
            match block.end {
                None if stop.is_cancelled() => return Ok(()),
                None => {}
                Some(outcome) => {
                    flaws.sum_up(&sender, &reader.name);
                    let waited = stop.run_until_cancelled(outstanding.wait(&reader.name)).await;
                    return outcome.and(waited.unwrap_or(Ok(())));
                }
            }
        }
    }

    async fn probe(config: &Config) -> Result<(), SourceError> {
        let file = open(&config.path).await?;
        if is_stdin(&config.path) {
            return Ok(());
        }
        let is_directory = file.metadata().is_ok_and(|metadata| metadata.is_dir());
        if is_directory {
            let cause = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(SourceError::new(format!("reading {}", shown(&config.path)), cause));
        }
        Ok(())
    }
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

fn shown(path: &Path) -> String {
    if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() }
}

async fn open(path: &Path) -> Result<File, SourceError> {
    let opened = if is_stdin(path) {
        // A second descriptor, so that the process's own stays open when this one is closed.
        io::stdin().as_fd().try_clone_to_owned().map(File::from)
    } else {
        let path = path.to_owned();
        // Opening can take as long as the disk or a network file system does.
        spawn_blocking(move || path.metadata().map(|metadata| (metadata, path)))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .and_then(|(metadata, path)| {
                if metadata.file_type().is_fifo() {
                    // A plain open would wait for a writer, and no signal could end the wait.
                    let receiver = pipe::OpenOptions::new().open_receiver(path)?;
                    receiver.into_nonblocking_fd().map(|fd: OwnedFd| File::from(fd))
                } else {
                    File::open(path)
                }
            })
    };
    opened.map_err(|error| SourceError::new(format!("opening {}", shown(path)), error))
}

/// The flaws of a whole replay: each is counted, the first is logged where an operator sees it, and
/// the end says how many there were.
#[derive(Default)]
struct Flaws {
    /// Lines and frames that were no events.
    bad: u64,
    /// Events of which something was replaced.
    lossy: u64,
}

impl Flaws {
    fn note(&mut self, block: &Block, sender: &FrameSender, name: &str) {
        sender.state.bad_frames.add(block.bad.len() as u64);
        sender.state.replaced(block.replaced);
        self.lossy += block.lossy;
        for bad in &block.bad {
            let (source, file, reason) = (&sender.state.name, name, bad.as_str());
            if self.bad == 0 {
                sender.state.failed(&format!("{name}: {bad}"));
                warn!(source, file, reason, "input that is no event is skipped; reading goes on");
            } else {
                debug!(source, file, reason, "input that is no event is skipped");
            }
            self.bad += 1;
        }
    }

    fn sum_up(&self, sender: &FrameSender, name: &str) {
        let (source, file) = (&sender.state.name, name);
        if self.bad > 1 {
            let count = self.bad;
            warn!(source, file, count, "lines or frames were no events and were skipped");
        }
        if self.lossy > 0 {
            let (count, metric) = (self.lossy, SOURCE_LOSSY_VALUES.name);
            warn!(
                source,
                file, count, metric, "events had values that JSON lacks, which were replaced"
            );
        }
    }
}

/// The pace at which events are due.
struct Pace {
    rate: f64,
    next: Instant,
}

/// The longest delay that is made up for. Without a limit, all events that became due while a sink
/// held the replay up would come in one burst.
const CATCH_UP: Duration = Duration::from_millis(50);

impl Pace {
    fn new(rate: NonZeroU32) -> Self {
        Pace { rate: f64::from(rate.get()), next: Instant::now() }
    }

    /// Waits until an event is due; returns how many are. At high rates that is several, since
    /// timers tick in milliseconds.
    async fn due(&mut self) -> usize {
        sleep_until(self.next).await;
        let now = Instant::now();
        self.next = self.next.max(now.checked_sub(CATCH_UP).unwrap_or(now));
        let late = now.saturating_duration_since(self.next).as_secs_f64();
        // Between nothing and a few hundred million.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let due = (late * self.rate) as usize;
        due + 1
    }

    fn taken(&mut self, count: usize) {
        #[allow(clippy::cast_precision_loss)]
        let step = count as f64 / self.rate;
        self.next += Duration::from_secs_f64(step);
    }
}

/// Bytes asked of the file at once, and about what one block of events comes to.
const READ: usize = 256 << 10;

/// The result of one read.
#[derive(Default)]
struct Block {
    bodies: Vec<Bytes>,
    /// The faults of lines and frames that were passed over.
    bad: Vec<String>,
    /// Events of which something was replaced.
    lossy: u64,
    /// The replaced values, by reason.
    replaced: Replaced,
    /// Set by the last block: whether the file ended as it should.
    end: Option<Result<(), SourceError>>,
}

/// Cuts a file into events.
struct Reader {
    file: File,
    /// The file, for people.
    name: String,
    buffer: BytesMut,
    /// The place where in the file the buffer begins.
    offset: u64,
    max_frame: usize,
    format: Option<Format>,
}

enum Format {
    Capture(Framer),
    JsonLines(Lines),
}

/// Blank bytes that are more than the length of a frame can be.
const BLANK: usize = 8;

impl Format {
    /// The format of a file with this beginning; `None` while the beginning is too short to tell.
    fn of(beginning: &[u8], max_frame: usize) -> Option<Self> {
        let text = without_mark(beginning);
        let is_part_of_mark = text.len() < MARK.len() && MARK.starts_with(text);
        match text.trim_ascii_start().first() {
            Some(byte) if is_of_text(*byte, max_frame) => Some(Format::JsonLines(Lines::default())),
            Some(_) if is_part_of_mark => None,
            Some(_) => Some(Format::Capture(Framer::new(max_frame))),
            None if text.len() < BLANK => None,
            None => Some(Format::JsonLines(Lines::default())),
        }
    }
}

/// True of a character with which no capture begins. As the first byte of a frame's length it would
/// make the frame longer than the limit.
fn is_of_text(byte: u8, max_frame: usize) -> bool {
    byte.is_ascii_graphic() && u64::from(byte) << 24 > max_frame as u64
}

/// The state of reading lines.
#[derive(Default)]
struct Lines {
    /// Lines behind us.
    number: u64,
    /// The number of the buffer's bytes that are known to have no line end.
    looked_at: usize,
    /// The rest of an overlong line is being passed over.
    is_overlong: bool,
}

impl Reader {
    fn new(file: File, max_frame: usize, name: String) -> Self {
        Reader { file, name, buffer: BytesMut::new(), offset: 0, max_frame, format: None }
    }

    /// Waits until a read would not.
    async fn readable(&self) -> Result<(), SourceError> {
        // It is registered anew each time, which reports bytes that are there already. A terminal
        // gives one line a read, and nothing would announce the lines behind it. The call is
        // deprecated because a descriptor may be closed while registered; the borrow of the file
        // rules that out.
        #[expect(deprecated, reason = "its successor is `unsafe`, which this crate forbids")]
        let registered = AsyncFd::with_interest(self.file.as_fd(), Interest::READABLE);
        let waiting = match registered {
            Ok(descriptor) => descriptor.readable().await.map(drop),
            // Files cannot be waited for: their reads never wait.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            Err(error) => Err(error),
        };
        waiting.map_err(|error| SourceError::new(format!("waiting for {}", self.name), error))
    }

    /// Reads once and cuts what has come.
    fn block(&mut self) -> Block {
        let mut block = Block::default();
        match self.fill() {
            Ok(0) => block.end = Some(self.rest(&mut block)),
            Ok(_) => block.end = self.cut(&mut block).err().map(Err),
            Err(error) => {
                let at = self.offset + self.buffer.len() as u64;
                block.end = Some(Err(self.error(at, error)));
            }
        }
        block
    }

    fn fill(&mut self) -> io::Result<usize> {
        if let Some(Format::Capture(framer)) = &self.format {
            framer.release(&mut self.buffer, 2 * READ);
        }
        let have = self.buffer.len();
        let missing = match &self.format {
            Some(Format::Capture(framer)) => framer.wanted().saturating_sub(have),
            _ => 0,
        };
        if self.buffer.capacity() - have < READ {
            self.buffer.reserve(missing.max(READ));
        }
        self.buffer.resize(have + READ, 0);
        let space = self.buffer.get_mut(have..).unwrap_or_default();
        let result = loop {
            match self.file.read(space) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The readiness was somebody else's.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(None),
                other => break other.map(Some),
            }
        };
        let count = match &result {
            Ok(Some(count)) => *count,
            _ => 0,
        };
        self.buffer.truncate(have + count);
        // A 1 means "not the end" for the caller, which has nothing to cut.
        result.map(|count| count.unwrap_or(1))
    }

    fn cut(&mut self, block: &mut Block) -> Result<(), SourceError> {
        if self.format.is_none() {
            self.format = Format::of(&self.buffer, self.max_frame);
        }
        match &mut self.format {
            None => Ok(()),
            Some(Format::JsonLines(lines)) => {
                let before = self.buffer.len();
                lines.cut(&mut self.buffer, self.max_frame, block);
                self.offset += (before - self.buffer.len()) as u64;
                Ok(())
            }
            Some(Format::Capture(framer)) => loop {
                let before = self.buffer.len();
                let frame = framer.next(&mut self.buffer);
                let start = self.offset;
                self.offset += (before - self.buffer.len()) as u64;
                match frame {
                    Ok(None) => break Ok(()),
                    Ok(Some(Frame::Body(body))) => block.bodies.push(body),
                    Ok(Some(Frame::Bodiless(size))) => {
                        let bad = format!("the frame at byte {start} ({size} bytes) has no body");
                        block.bad.push(bad);
                    }
                    Err(FrameError::UnknownFraming(byte)) => {
                        let cause = format!(
                            "it begins with {byte:#04x}, so it is neither a capture of an event bus nor text of \
                             JSON lines"
                        );
                        break Err(self.error(start, cause));
                    }
                    Err(FrameError::Zmtp) => {
                        let cause = "it begins as ZeroMQ's protocol does, which cannot be replayed";
                        break Err(self.error(start, cause));
                    }
                    Err(error) => break Err(self.error(start, error)),
                }
            },
        }
    }

    /// Handles the bytes that are left when the file has ended.
    fn rest(&mut self, block: &mut Block) -> Result<(), SourceError> {
        match &mut self.format {
            Some(Format::JsonLines(lines)) => {
                lines.last(&self.buffer, block);
                Ok(())
            }
            Some(Format::Capture(_)) if !self.buffer.is_empty() => {
                let end = self.offset + self.buffer.len() as u64;
                let cause = format!(
                    "the capture breaks off at byte {end}, {} bytes into a frame",
                    self.buffer.len()
                );
                Err(self.error(self.offset, cause))
            }
            // There is only a part of a mark; the framer refuses it.
            None if !without_mark(&self.buffer).trim_ascii().is_empty() => {
                self.format = Some(Format::Capture(Framer::new(self.max_frame)));
                self.cut(block)?;
                self.rest(block)
            }
            _ => Ok(()),
        }
    }

    fn error(
        &self,
        at: u64,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> SourceError {
        SourceError::new(format!("reading {} at byte {at}", self.name), cause)
    }
}

impl Lines {
    fn cut(&mut self, buffer: &mut BytesMut, max_line: usize, block: &mut Block) {
        while let Some(end) = memchr(b'\n', buffer.get(self.looked_at..).unwrap_or_default()) {
            let line = buffer.split_to(self.looked_at + end + 1);
            self.looked_at = 0;
            self.number += 1;
            if std::mem::take(&mut self.is_overlong) {
                continue;
            }
            if line.len() > max_line {
                self.overlong(max_line, block);
                continue;
            }
            self.take(&line, block);
        }
        self.looked_at = buffer.len();
        if self.looked_at > max_line {
            if !self.is_overlong {
                self.number += 1;
                self.overlong(max_line, block);
                self.number -= 1;
                self.is_overlong = true;
            }
            buffer.clear();
            self.looked_at = 0;
        }
    }

    /// A line that no line end follows.
    fn last(&mut self, line: &[u8], block: &mut Block) {
        if !self.is_overlong && !line.is_empty() {
            self.number += 1;
            self.take(line, block);
        }
    }

    fn take(&self, line: &[u8], block: &mut Block) {
        if without_mark(line).trim_ascii().is_empty() {
            return;
        }
        match written::from_json(line) {
            Ok((body, replaced)) => {
                block.bodies.push(body);
                block.lossy += u64::from(replaced != Replaced::default());
                block.replaced += replaced;
            }
            Err(error) => block.bad.push(format!("line {}: {error}", self.number)),
        }
    }

    fn overlong(&self, max_line: usize, block: &mut Block) {
        block.bad.push(format!("line {} is longer than max_frame ({max_line} bytes)", self.number));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use crate::sync::bell::{Bell, Receiver, channel};
    use tempfile::TempDir;

    use super::*;
    use crate::codec::json;
    use crate::event::{Authority, Event, Origin};
    use crate::jobs::Jobs;
    use crate::observe::state::SourceState;
    use crate::source::frame_sender::{Frames, Via};

    fn captures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures")
    }

    fn sender() -> (FrameSender, Receiver<Frames>) {
        let (frames, out) = channel(1000, &Bell::default());
        let origin = Arc::new(Origin { source: "s".into(), master_id: "m".into() });
        let state = Arc::new(SourceState::new("s", "replay", "m"));
        (
            FrameSender {
                origin,
                via: Via::Read,
                authority: Authority::Bus,
                state,
                frames,
                jobs: Jobs::new(Path::new("")),
            },
            out,
        )
    }

    /// Keeps every event, like a pipeline with healthy sinks.
    fn kept(out: &Receiver<Frames>) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(frames) = out.recv() {
            events.extend(frames.bodies.into_iter().map(|body| Event::parse(body).unwrap()));
            frames.claim.unwrap().honour();
        }
        events
    }

    #[tokio::test]
    async fn a_replay_of_which_something_is_lost_says_so() {
        let (_folder, path) = file(b"{\"tag\": \"a\", \"data\": 1}\n");
        let (sender, out) = sender();
        let dropper = std::thread::spawn(move || std::iter::from_fn(|| out.recv()).count());
        let outcome = Replay::run(&config(&path), sender, CancellationToken::new()).await;
        assert_eq!(dropper.join().unwrap(), 1);
        let error = crate::error::chain(&outcome.unwrap_err());
        assert!(error.contains("up to 1 events were not kept"), "{error}");
    }

    fn config(path: &Path) -> Config {
        Config {
            path: path.to_owned(),
            rate: None,
            max_frame: crate::source::contract::default_max_frame(),
        }
    }

    /// Replays the file to its end: tags and payloads as JSON, bad frames, outcome.
    async fn replayed(config: &Config) -> (Vec<serde_json::Value>, u64, Result<(), String>) {
        let (sender, out) = sender();
        let state = sender.state.clone();
        let keeper = std::thread::spawn(move || kept(&out));
        let outcome = Replay::run(config, sender, CancellationToken::new()).await;
        let events = keeper.join().unwrap().into_iter().map(|event| {
            let mut data = Vec::new();
            json::write(event.payload(), &mut data);
            let data: serde_json::Value = serde_json::from_slice(&data).unwrap();
            serde_json::json!({"tag": event.tag(), "data": data})
        });
        let events = events.collect();
        (events, state.bad_frames.get(), outcome.map_err(|error| crate::error::chain(&error)))
    }

    fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replayed");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[tokio::test]
    async fn captures_and_their_lines_hold_the_same_events() {
        for release in ["3006.28", "3007.15", "3008.3"] {
            let bus = captures().join(format!("salt-{release}.bus"));
            let lines = captures().join(format!("salt-{release}.events.jsonl"));
            let (from_bus, bad, outcome) = replayed(&config(&bus)).await;
            assert_eq!((bad, outcome), (0, Ok(())));
            let (from_lines, bad, outcome) = replayed(&config(&lines)).await;
            assert_eq!((bad, outcome), (0, Ok(())));
            assert!(from_bus.len() > 100, "{}", from_bus.len());
            // Salt's writer began a little earlier and later than the capture.
            for event in &from_bus {
                assert!(from_lines.contains(event), "{release}: {event} is not in the lines");
            }
        }
    }

    #[tokio::test]
    async fn a_capture_that_breaks_off_names_the_place_after_its_events() {
        let bytes = std::fs::read(captures().join("salt-3007.15.bus")).unwrap();
        let (_folder, path) = file(&bytes[..bytes.len() - 10]);
        let (all, ..) = replayed(&config(&captures().join("salt-3007.15.bus"))).await;
        let (events, _, outcome) = replayed(&config(&path)).await;
        assert_eq!(events, all[..all.len() - 1]);
        let error = outcome.unwrap_err();
        assert!(error.contains(&format!("breaks off at byte {}", bytes.len() - 10)), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }

    #[tokio::test]
    async fn a_capture_out_of_step_names_the_place_after_its_events() {
        let good = b"\x81\xa4body\xc4\x04t\n\n\x80";
        let (_folder, path) = file(&[good, &good[..], b"\xc1junk"].concat());
        let (events, _, outcome) = replayed(&config(&path)).await;
        assert_eq!(events.len(), 2);
        let error = outcome.unwrap_err();
        assert!(error.contains(&format!("at byte {}", 2 * good.len())), "{error}");
        for (bytes, says) in [(&b"\xc7abc"[..], "0xc7"), (b"\xff\0\0\0", "ZeroMQ")] {
            let (_folder, path) = file(bytes);
            let (_, _, outcome) = replayed(&config(&path)).await;
            let error = outcome.unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[tokio::test]
    async fn bad_lines_are_counted_and_passed_over() {
        let long = format!("{{\"tag\": \"long\", \"data\": \"{}\"}}\n", "x".repeat(600_000));
        let lines = [
            "{\"tag\": \"a\", \"data\": {\"n\": 18446744073709551615}}\r\n",
            "\n",
            "{\"tag\": \"no data\"}\n",
            &long,
            "not JSON\n",
            "{\"data\": 1.0, \"tag\": \"last\"}",
        ];
        let (_folder, path) = file(lines.concat().as_bytes());
        let config = Config { max_frame: ByteSize(1000), ..config(&path) };
        let (events, bad, outcome) = replayed(&config).await;
        assert_eq!(outcome, Ok(()));
        assert_eq!(bad, 3);
        let expected = [
            serde_json::json!({"tag": "a", "data": {"n": u64::MAX}}),
            serde_json::json!({"tag": "last", "data": 1.0}),
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn bad_lines_are_named_by_their_number() {
        let mut lines = Lines::default();
        let mut block = Block::default();
        let mut buffer = BytesMut::from(&b"\n{\"tag\": 1}\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"[..]);
        lines.cut(&mut buffer, 20, &mut block);
        buffer.extend_from_slice(b"xxxx\nxx\n");
        lines.cut(&mut buffer, 20, &mut block);
        let starts: Vec<_> = block.bad.iter().map(|bad| &bad[..6]).collect();
        assert_eq!(starts, ["line 2", "line 3", "line 4"]);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.bus");
        for path in [&missing, folder.path()] {
            let (events, _, outcome) = replayed(&config(path)).await;
            assert!(events.is_empty());
            let error = outcome.unwrap_err();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            Replay::probe(&config(path)).await.unwrap_err();
        }
        Replay::probe(&config(&captures().join("salt-3008.3.bus"))).await.unwrap();
    }

    #[tokio::test]
    async fn an_empty_file_is_no_events_and_so_are_blank_lines() {
        let blank = b"\r\n \t\n".repeat(100_000);
        for bytes in [&b""[..], b"\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n", &blank] {
            let (_folder, path) = file(bytes);
            assert_eq!(replayed(&config(&path)).await, (vec![], 0, Ok(())));
        }
    }

    #[tokio::test]
    async fn blank_lines_and_a_mark_may_stand_in_front() {
        let line = b"{\"tag\": \"a\", \"data\": 1}\r\n";
        let event = serde_json::json!({"tag": "a", "data": 1});
        let blank = b"\n".repeat(2 * READ);
        for front in [&b"\n"[..], b"\xef\xbb\xbf", b"\xef\xbb\xbf \r\n\n", &blank] {
            let (_folder, path) = file(&[front, line, b"\xef\xbb\xbf", line].concat());
            let events = vec![event.clone(), event.clone()];
            assert_eq!(replayed(&config(&path)).await, (events, 0, Ok(())));
        }
        for no_event in [&b"# note\n"[..], b"[1]\n", b"garbage\n", b"NaN\n", b"\xef\xbb\xbf\"x\"\n"]
        {
            let (_folder, path) = file(&[no_event, line].concat());
            assert_eq!(replayed(&config(&path)).await, (vec![event.clone()], 1, Ok(())));
        }
        for no_lines in [&b"\xef"[..], b"\xef\xbb", b"\xef\xbb\xbf\xef\xbb\xbf{}"] {
            let (_folder, path) = file(no_lines);
            let (_, _, outcome) = replayed(&config(&path)).await;
            assert!(outcome.unwrap_err().contains("0xef"));
        }
    }

    #[tokio::test]
    async fn what_json_lacks_is_replaced_and_counted_but_never_dropped() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let lines = [
            r#"{"tag":"a/1","data":{"x":NaN,"y":[Infinity,-Infinity,1e400],"NaN":"NaN"}}"#,
            r#"{"tag":"a/2","data":"\ud800"}"#,
            r#"{"tag":"a/3","data":18446744073709551616}"#,
            &format!(r#"{{"tag":"a/4","data":{deep}}}"#),
            r#"{"tag":"a/5","data":{"a":1,"a":"\u0000"}}"#,
        ];
        let (_folder, path) = file(lines.join("\n").as_bytes());
        let (sender, out) = sender();
        let state = sender.state.clone();
        let keeper = std::thread::spawn(move || kept(&out));
        Replay::run(&config(&path), sender, CancellationToken::new()).await.unwrap();
        let events = keeper.join().unwrap().into_iter().map(|event| {
            let mut data = Vec::new();
            json::write(event.payload(), &mut data);
            String::from_utf8(data).unwrap()
        });
        let cut = format!("{}null{}", "[".repeat(128), "]".repeat(128));
        let expected = [
            r#"{"x": null, "y": [null, null, null], "NaN": "NaN"}"#,
            "\"\u{fffd}\"",
            "\"18446744073709551616\"",
            &cut,
            r#"{"a": "\u0000"}"#,
        ];
        assert_eq!(events.collect::<Vec<_>>(), expected);
        assert_eq!(state.bad_frames.get(), 0);
        let counts = (state.lossy_not_finite.get(), state.lossy_long_integer.get());
        assert_eq!(counts, (4, 1));
        assert_eq!((state.lossy_not_utf8.get(), state.lossy_too_deep.get()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_spaces_events_evenly() {
        let mut pace = Pace::new(NonZeroU32::new(20).unwrap());
        let start = Instant::now();
        for count in 0..40 {
            assert_eq!(pace.due().await, 1);
            pace.taken(1);
            let expected = Duration::from_millis(50) * count;
            let off = start.elapsed().abs_diff(expected);
            assert!(off < Duration::from_millis(5), "event {count} came {off:?} off");
        }
        // A long delay is not made up for in one burst.
        tokio::time::advance(Duration::from_hours(1)).await;
        assert!(pace.due().await <= 2);
    }

    #[tokio::test]
    async fn high_rates_are_kept() {
        let (_folder, path) = file(&b"\x81\xa4body\xc4\x04t\n\n\x80".repeat(2000));
        let config = Config { rate: NonZeroU32::new(10_000), ..config(&path) };
        let start = Instant::now();
        let (events, ..) = replayed(&config).await;
        assert_eq!(events.len(), 2000);
        assert!(start.elapsed() >= Duration::from_millis(190), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn stops_while_a_pipe_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let (sender, out) = sender();
        let stop = CancellationToken::new();
        let (config, stopped) = (config(&path), stop.clone());
        let running = tokio::spawn(async move { Replay::run(&config, sender, stopped).await });
        let mut writer =
            spawn_blocking(move || File::options().write(true).open(path)).await.unwrap().unwrap();
        writer.write_all(b"{\"tag\": \"t\", \"data\": {}}\n").unwrap();
        let frames = spawn_blocking(move || out.recv()).await.unwrap().unwrap();
        assert_eq!(frames.bodies, [Bytes::from_static(b"t\n\n\x80")]);
        stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(20), running).await.unwrap();
        ended.unwrap().unwrap();
        drop(writer);
    }
}
