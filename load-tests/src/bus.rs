//! A unix socket that behaves as a master's event bus, but sends as fast as it is read.

use std::fmt;
use std::io::Write;
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::traffic::{Framing, Traffic};
use crate::{Failure, zmtp};

/// The rate at which events are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rate {
    /// The rate at which they are read, many in a write.
    Max,
    /// So many a second, evenly: each in a write of its own, as masters do, up to [`SINGLE`].
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

/// The events that were sent to each subscriber, and how long that took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    /// The longest that a write was held up.
    pub(crate) longest: Duration,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sent { events, bytes, elapsed, longest: _ } = self;
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
    framing: Framing,
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Bytes of a write at [`Rate::Max`], about.
const WRITE: usize = 256 << 10;

/// Events a second up to which each has a write of its own. Above, events that are due together are
/// written together: a thread cannot be woken so often.
pub(crate) const SINGLE: f64 = 20_000.0;

impl Bus {
    pub(crate) fn listen(path: &Path, framing: Framing) -> Result<Self, Failure> {
        let _ = std::fs::remove_file(path);
        let listener =
            UnixListener::bind(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Bus { listener, path: path.to_owned(), framing })
    }

    /// Waits for a subscriber.
    pub(crate) fn accept(&self) -> Result<UnixStream, Failure> {
        let (mut stream, _) = self.listener.accept()?;
        if self.framing == Framing::Zmtp {
            zmtp::welcome(&mut stream)?;
        }
        Ok(stream)
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
        send(&mut streams, traffic, rate, 0..events, &mut |_| Ok(()))
    }
}

/// Called with the number of the event that is sent next, before each write; may wait.
pub(crate) type Gate<'a> = &'a mut dyn FnMut(u64) -> Result<(), Failure>;

/// Sends the events of these numbers to every stream.
pub(crate) fn send(
    streams: &mut [UnixStream],
    traffic: &Traffic,
    rate: Rate,
    numbers: Range<u64>,
    gate: Gate<'_>,
) -> Result<Sent, Failure> {
    let began = Instant::now();
    let (mut bytes, mut longest) = (0, Duration::ZERO);
    let mut write = |block: &mut Vec<u8>| -> std::io::Result<()> {
        let asked = Instant::now();
        for stream in &mut *streams {
            stream.write_all(block)?;
        }
        longest = longest.max(asked.elapsed());
        bytes += block.len() as u64;
        block.clear();
        Ok(())
    };
    let mut block = Vec::with_capacity(2 * WRITE);
    let events = numbers.end.saturating_sub(numbers.start);
    match rate {
        Rate::Max => {
            for number in numbers {
                traffic.append(number, &mut block);
                if block.len() >= WRITE {
                    gate(number)?;
                    write(&mut block)?;
                }
            }
        }
        Rate::PerSecond(rate) => {
            #[allow(clippy::cast_precision_loss)]
            let due = |sent: u64| began + Duration::from_secs_f64(sent as f64 / rate);
            for (sent, number) in (1..).zip(numbers) {
                if block.is_empty() {
                    // Pacing is what this is for.
                    #[allow(clippy::disallowed_methods)]
                    std::thread::sleep(due(sent - 1).saturating_duration_since(Instant::now()));
                    gate(number)?;
                }
                traffic.append(number, &mut block);
                let is_alone = rate <= SINGLE || block.len() >= WRITE;
                if is_alone || due(sent) > Instant::now() {
                    write(&mut block)?;
                }
            }
        }
    }
    write(&mut block)?;
    Ok(Sent { events, bytes, elapsed: began.elapsed(), longest })
}
