//! A bus whose events are numbered, and a folder with it and a configuration, for the tests that
//! count.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::daemon::pause;

/// An event bus with numbered events: tag `n/NUMBER`, data `{"n": NUMBER, "pad": …}`.
pub(crate) struct Bus {
    pub(crate) path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Numbers below this are sent.
    limit: AtomicU64,
    /// The next number.
    next: AtomicU64,
    /// The number that each connection began with.
    bases: Mutex<Vec<u64>>,
    pad: usize,
    pace: Option<Duration>,
}

const STOP: u64 = u64::MAX;

impl Bus {
    /// Serves at `path`. With a `pace` it waits that long after every twenty events.
    pub(crate) fn serve(path: &Path, pad: usize, pace: Option<Duration>) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let shared = Arc::new(Shared {
            limit: AtomicU64::new(0),
            next: AtomicU64::new(0),
            bases: Mutex::new(Vec::new()),
            pad,
            pace,
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.limit.load(Ordering::Acquire) == STOP {
                    return;
                }
                serving.bases.lock().unwrap().push(serving.next.load(Ordering::Acquire));
                serving.feed(stream.unwrap());
            }
        });
        Bus { path: path.to_owned(), shared, thread: Some(thread) }
    }

    /// Sends events up to, and without, this number.
    pub(crate) fn send_up_to(&self, limit: u64) {
        self.shared.limit.store(limit, Ordering::Release);
    }

    /// The number that the last connection began with, and how many connections there were.
    pub(crate) fn base(&self) -> (u64, usize) {
        let bases = self.shared.bases.lock().unwrap();
        (bases.last().copied().unwrap_or(0), bases.len())
    }
}

impl Shared {
    /// Writes until the reader is gone.
    fn feed(&self, mut stream: UnixStream) {
        stream.set_nonblocking(false).unwrap();
        loop {
            let (next, limit) =
                (self.next.load(Ordering::Acquire), self.limit.load(Ordering::Acquire));
            if limit == STOP {
                return;
            }
            let end = limit.min(next + 20);
            if end <= next {
                if is_gone(&stream) {
                    return;
                }
                pause(Duration::from_millis(2));
                continue;
            }
            let frames: Vec<u8> = (next..end).flat_map(|n| frame(n, self.pad)).collect();
            self.next.store(end, Ordering::Release);
            if stream.write_all(&frames).is_err() {
                return;
            }
            if let Some(pace) = self.pace {
                pause(pace);
            }
        }
    }
}

fn is_gone(stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = (&mut &*stream).read(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    match read {
        Ok(count) => count == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

fn frame(n: u64, pad: usize) -> Vec<u8> {
    let data = json!({ "n": n, "pad": "x".repeat(pad) });
    let mut body = format!("n/{n}\n\n").into_bytes();
    body.extend(rmp_serde::to_vec(&data).unwrap());
    let mut frame = b"\x82\xa4head\x80\xa4body\xc6".to_vec();
    frame.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    frame.extend(body);
    frame
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.shared.limit.store(STOP, Ordering::Release);
        // Wakes it up if it waits for a connection.
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The numbers in a file of JSON lines, in its order.
pub(crate) fn numbers(file: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    // The last line may be half written.
    let text = text.rfind('\n').and_then(|end| text.get(..end)).unwrap_or_default();
    let number = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let n = line["data"]["n"].as_u64().unwrap();
        assert_eq!(line["tag"], format!("n/{n}"));
        n
    };
    text.lines().map(number).collect()
}

/// A folder with a bus in it and a configuration beside.
pub(crate) struct Place {
    // The bus first: it ends by way of its socket, which is in the folder.
    pub(crate) bus: Bus,
    pub(crate) folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new(pad: usize, pace: Option<Duration>) -> Self {
        let folder = tempfile::Builder::new().prefix("s").tempdir().unwrap();
        let bus = Bus::serve(&folder.path().join("bus"), pad, pace);
        Place { bus, folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    /// Writes a configuration with these sinks, and `more` at the top.
    pub(crate) fn configure(&self, sinks: &Value, more: &Value) -> PathBuf {
        let mut config = json!({
            "master_id": "m",
            "state_dir": self.state_dir(),
            "http": { "listen": "127.0.0.1:0" },
            "log": { "format": "json" },
            "shutdown_deadline": "3s",
            "sources": { "bus": { "salt_bus": { "address": self.bus.path } } },
            "sinks": sinks,
        });
        let fields = config.as_object_mut().unwrap();
        fields.extend(more.as_object().cloned().unwrap_or_default());
        let path = self.path("saltern.yaml");
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// A sink that writes into `DIR/events`; it is down for as long as that directory is missing.
    pub(crate) fn file_sink(&self, dir: &str, spill: &Value) -> Value {
        json!({
            "rawfile_json": { "filename": self.path(dir).join("events") },
            "retry": { "initial": "50ms", "max": "200ms" },
            "batch": { "linger": "20ms" },
            "spill": spill,
        })
    }

    pub(crate) fn heal(&self, dir: &str) {
        std::fs::create_dir_all(self.path(dir)).unwrap();
    }

    pub(crate) fn stored(&self, dir: &str) -> Vec<u64> {
        numbers(&self.path(dir).join("events"))
    }
}
