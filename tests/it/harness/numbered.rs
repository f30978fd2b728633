//! A running saltern, and the bus that it reads, for the tests of the real binary.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// A stop with a `shutdown_deadline` of 3 s takes less, even on a slow, busy machine.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(45);

pub(crate) fn pause(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|t| !t.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// Waits for a condition, with a deadline.
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(PATIENCE, what, condition);
}

/// The same, with a deadline of one's own.
pub(crate) fn until_within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        pause(Duration::from_millis(20));
    }
}

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

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    /// The file of the token that it made, if it made one.
    token: PathBuf,
    pub(crate) address: String,
    pub(crate) log: Arc<Mutex<String>>,
}

pub(crate) fn saltern(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_saltern")).args(arguments).output().unwrap()
}

impl Daemon {
    /// Starts one and waits until its HTTP side listens.
    pub(crate) fn start(config: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_saltern"))
            .arg("run")
            .arg("--config")
            .arg(config)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, into) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut log = into.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut address = String::new();
        let deadline = Instant::now() + PATIENCE;
        while address.is_empty() {
            let text = log.lock().unwrap().clone();
            assert!(Instant::now() < deadline, "the daemon does not listen: {text}");
            assert!(child.try_wait().unwrap().is_none(), "the daemon has ended: {text}");
            for line in text.lines().filter(|line| line.contains("HTTP side listens")) {
                let line: Value = serde_json::from_str(line).unwrap();
                line["address"].as_str().unwrap().clone_into(&mut address);
            }
            pause(Duration::from_millis(5));
        }
        let token = config.with_file_name("state").join("http-token");
        Daemon { child, token, address, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let token = std::fs::read_to_string(&self.token).unwrap_or_default();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: Bearer {}\r\n\r\n",
            token.trim()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// The sum of a metric's values whose labels contain all of `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.get("/metrics");
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    /// Events that it has read.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn taken(&self) -> u64 {
        self.metric("saltern_source_events_total", &[]) as u64
    }

    /// Events that `sink` has stored.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn stored(&self, sink: &str) -> u64 {
        self.metric("saltern_sink_events_total", &[&format!("sink=\"{sink}\"")]) as u64
    }

    /// Events of `sink` that were dropped for this reason.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn dropped(&self, sink: &str, reason: &str) -> u64 {
        let labels = [format!("sink=\"{sink}\""), format!("reason=\"{reason}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        self.metric("saltern_sink_dropped_events_total", &labels) as u64
    }

    /// Resident memory in bytes.
    pub(crate) fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; says how it ended and how long that took.
    pub(crate) fn terminate(mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, began.elapsed());
            }
            let log = self.log.lock().unwrap().clone();
            assert!(began.elapsed() < PATIENCE, "the daemon does not stop: {log}");
            pause(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
