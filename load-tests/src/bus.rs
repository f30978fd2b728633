//! A unix socket that behaves as a master's event bus, but sends as fast as it is read.

use std::fmt;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::traffic::{Traffic, patch};

/// How fast events are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rate {
    /// As fast as they are read, many in a write.
    Max,
    /// So many a second, evenly, each in a write of its own.
    PerSecond(f64),
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            _ if text == "max" => Ok(Rate::Max),
            Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(Rate::PerSecond(rate)),
            _ => Err("a number of events a second, or `max`".to_owned()),
        }
    }
}

/// What was sent to each subscriber, and how long that took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sent { events, bytes, elapsed } = self;
        let seconds = elapsed.as_secs_f64();
        #[allow(clippy::cast_precision_loss)]
        let (rate, mega) = (*events as f64 / seconds, *bytes as f64 / seconds / 1e6);
        write!(
            f,
            "{events} events, {bytes} bytes in {seconds:.3} s: {rate:.0} events/s, {mega:.0} MB/s"
        )
    }
}

/// A socket that is listened on; its file goes with it.
pub(crate) struct Bus {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Bytes of a write at [`Rate::Max`], about.
const WRITE: usize = 256 << 10;

impl Bus {
    pub(crate) fn listen(path: &Path) -> Result<Self, Failure> {
        let _ = std::fs::remove_file(path);
        let listener =
            UnixListener::bind(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Bus { listener, path: path.to_owned() })
    }

    /// Waits for a subscriber.
    pub(crate) fn accept(&self) -> Result<UnixStream, Failure> {
        Ok(self.listener.accept()?.0)
    }

    /// Waits for so many subscribers and sends every event to each of them, then closes.
    pub(crate) fn serve(
        &self,
        traffic: &Traffic,
        rate: Rate,
        events: u64,
        connections: usize,
    ) -> Result<Sent, Failure> {
        let mut streams = Vec::new();
        for _ in 0..connections {
            streams.push(self.accept()?);
        }
        send(&mut streams, traffic, rate, events, &mut |_| Ok(()))
    }
}

/// Called with the number of events sent so far, before more are; may wait.
pub(crate) type Gate<'a> = &'a mut dyn FnMut(u64) -> Result<(), Failure>;

/// Sends every event to every stream. At [`Rate::Max`] it asks the gate before each write.
pub(crate) fn send(
    streams: &mut [UnixStream],
    traffic: &Traffic,
    rate: Rate,
    events: u64,
    gate: Gate<'_>,
) -> Result<Sent, Failure> {
    let began = Instant::now();
    let mut bytes = 0;
    let mut write = |block: &[u8]| -> std::io::Result<()> {
        for stream in &mut *streams {
            stream.write_all(block)?;
        }
        bytes += block.len() as u64;
        Ok(())
    };
    match rate {
        Rate::Max => {
            let mut block = Vec::with_capacity(2 * WRITE);
            for (number, event) in (0..events).zip(traffic.events.iter().cycle()) {
                let start = block.len();
                block.extend_from_slice(&event.frame);
                patch(block.get_mut(start..).unwrap_or_default(), &event.jids, number);
                if block.len() >= WRITE {
                    gate(number)?;
                    write(&block)?;
                    block.clear();
                }
            }
            write(&block)?;
        }
        Rate::PerSecond(rate) => {
            let mut frame = Vec::new();
            for (number, event) in (0..events).zip(traffic.events.iter().cycle()) {
                frame.clone_from(&event.frame);
                patch(&mut frame, &event.jids, number);
                #[allow(clippy::cast_precision_loss)]
                let due = began + Duration::from_secs_f64(number as f64 / rate);
                // Pacing is what this is for.
                #[allow(clippy::disallowed_methods)]
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                write(&frame)?;
            }
        }
    }
    Ok(Sent { events, bytes, elapsed: began.elapsed() })
}
