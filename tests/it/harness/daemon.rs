//! The real binary in a folder of its own: started, asked, signalled, and ended by its pid.
//!
//! Everything here blocks. Tests that play a peer of the daemon in the same task use
//! [`crate::harness::beside`], which waits without blocking.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The binary under test.
pub(crate) const SALTERN: &str = env!("CARGO_BIN_EXE_saltern");

/// No wait of a test takes this long, not even with a store that hangs once: saltern breaks a write
/// off after a minute (`retry.timeout`) and tries it again.
pub(crate) const DEADLINE: Duration = Duration::from_mins(6);

/// A stop with a `shutdown_deadline` of 3 s takes less, even on a slow, busy machine; one that
/// waits for its store takes the minute of `retry.timeout`.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(45);

/// Between two looks at a condition with a deadline.
pub(crate) fn pause(time: Duration) {
    #[allow(clippy::disallowed_methods)]
    std::thread::sleep(time);
}

/// Waits until `look` gives something.
pub(crate) fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_within(DEADLINE, what, look)
}

/// The same, with a deadline of one's own.
pub(crate) fn wait_within<T>(
    deadline: Duration,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < deadline, "waited {deadline:?} for {what}");
        pause(Duration::from_millis(10));
    }
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Runs a command of saltern to its end.
pub(crate) fn saltern(arguments: &[&str]) -> Output {
    Command::new(SALTERN).args(arguments).output().unwrap()
}

/// The way in which a daemon is started.
#[derive(Default)]
pub(crate) struct Launch<'a> {
    pub(crate) environment: &'a [(&'a str, &'a str)],
    /// A shell command that runs first, in a mount namespace of its own.
    pub(crate) before: Option<&'a str>,
    /// The name of its log, where a test looks for it.
    pub(crate) log: Option<&'a str>,
}

/// A running `saltern run`; killed when it is dropped.
pub(crate) struct Daemon {
    child: Mutex<Child>,
    pid: u32,
    config: PathBuf,
    log: PathBuf,
    http: OnceLock<String>,
}

impl Daemon {
    /// Starts it with these sources and sinks (YAML) and its files in `folder`.
    pub(crate) fn start(folder: &Path, sections: &str) -> Self {
        Daemon::start_as(folder, sections, &Launch::default())
    }

    /// Starts like [`Daemon::start`], in this way.
    pub(crate) fn start_as(folder: &Path, sections: &str, launch: &Launch) -> Self {
        let config = folder.join("saltern.yaml");
        configure(&config, sections);
        Daemon::spawn(&config, launch)
    }

    /// Has it go on with these sources and sinks.
    pub(crate) fn reload(&self, sections: &str) {
        configure(&self.config, sections);
        self.signal("HUP");
    }

    /// Starts it with this configuration. Its state is in `state` beside it, and its log too.
    pub(crate) fn spawn(config: &Path, launch: &Launch) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        // Two may run in one folder.
        let own = format!("daemon-{}.log", STARTED.fetch_add(1, Ordering::Relaxed));
        let log = config.with_file_name(launch.log.unwrap_or(&own));
        let child = run(config, &log, launch);
        let (pid, child) = (child.id(), Mutex::new(child));
        Daemon { child, pid, config: config.to_owned(), log, http: OnceLock::new() }
    }

    /// Starts it with this configuration, and waits until its HTTP side listens.
    pub(crate) fn listening(config: &Path) -> Self {
        let daemon = Daemon::spawn(config, &Launch::default());
        daemon.address();
        daemon
    }

    /// Starts it again after it has ended. Its new log follows on the old one.
    pub(crate) fn start_again(&mut self) {
        let child = run(&self.config, &self.log, &Launch::default());
        (self.pid, self.child) = (child.id(), Mutex::new(child));
        self.http = OnceLock::new();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The address of its HTTP side.
    pub(crate) fn address(&self) -> &str {
        self.http.get_or_init(|| {
            wait_for("the HTTP side", || {
                let status = self.has_ended();
                let log = self.log();
                let line = log.lines().rfind(|line| line.contains("the HTTP side listens"));
                assert!(line.is_some() || status.is_none(), "it ended early, {status:?}: {log}");
                let line: serde_json::Value = serde_json::from_str(line?).unwrap();
                line["address"].as_str().map(str::to_owned)
            })
        })
    }

    /// Its answer, head and body.
    pub(crate) fn get(&self, path: &str) -> String {
        self.get_with(path, &self.made_token().unwrap_or_default())
    }

    /// Its answer without the head.
    pub(crate) fn body(&self, path: &str) -> String {
        self.get(path).split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// The token that it has made, where none is configured.
    pub(crate) fn made_token(&self) -> Option<String> {
        let file = self.config.with_file_name("state").join("http-token");
        fs::read_to_string(file).ok().map(|token| token.trim().to_owned())
    }

    /// Gets like [`Daemon::get`], with this token.
    pub(crate) fn get_with(&self, path: &str, token: &str) -> String {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        unchunked(answer)
    }

    /// The sum of a metric's values over all series whose labels contain all of `labels`; zero if
    /// there is none.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        sum(&self.series(name, labels))
    }

    /// The sum like [`Daemon::metric`] over all series, of which there must be one.
    pub(crate) fn known_metric(&self, name: &str) -> f64 {
        let series = self.series(name, &[]);
        assert!(!series.is_empty(), "no metric {name}");
        sum(&series)
    }

    fn series(&self, name: &str, labels: &[&str]) -> Vec<f64> {
        let answer = self.get("/metrics");
        let lines = answer.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect()
    }

    /// The value of [`Daemon::metric`] as a whole number.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn count(&self, name: &str, labels: &[&str]) -> u64 {
        self.metric(name, labels).round() as u64
    }

    /// Events that it has read.
    pub(crate) fn taken(&self) -> u64 {
        self.count("saltern_source_events_total", &[])
    }

    /// Events that `sink` has stored.
    pub(crate) fn stored(&self, sink: &str) -> u64 {
        self.count("saltern_sink_events_total", &[&of_sink(sink)])
    }

    /// Events of `sink` that were dropped for this reason.
    pub(crate) fn dropped(&self, sink: &str, reason: &str) -> u64 {
        let reason = format!("reason=\"{reason}\"");
        self.count("saltern_sink_dropped_events_total", &[&of_sink(sink), &reason])
    }

    /// Waits until the sink has stored so many events.
    pub(crate) fn wait_stored(&self, sink: &str, count: u64) {
        let mut stored = 0;
        until(&format!("{count} events in {sink}"), || {
            stored = self.stored(sink);
            stored >= count
        });
        assert_eq!(stored, count, "events in {sink}");
    }

    /// Waits until something of the sink was tried again.
    pub(crate) fn wait_failing(&self, sink: &str) {
        let retries = || self.count("saltern_sink_retries_total", &[&of_sink(sink)]);
        let before = retries();
        until("a try that fails", || retries() > before);
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most memory that the process ever had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        value.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Sends a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// `kill -9`.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The status that it has ended with, if it has.
    pub(crate) fn has_ended(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    /// Waits until it has ended.
    pub(crate) fn ended(&self) -> ExitStatus {
        wait_for("the daemon's end", || self.has_ended())
    }

    /// SIGTERM; says how it ended and how long that took.
    pub(crate) fn terminate(self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        self.signal("TERM");
        (self.ended(), began.elapsed())
    }

    /// Stops it as systemd does, and expects a clean end.
    pub(crate) fn stop(self) {
        self.signal("TERM");
        let status = self.ended();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The test may have failed; an ended child is not killed again.
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

fn configure(config: &Path, sections: &str) {
    let general = format!(
        "master_id: master-1\nstate_dir: {}\nshutdown_deadline: 3s\n\
         http: {{listen: '127.0.0.1:0'}}\nlog: {{format: json}}\n",
        config.with_file_name("state").display()
    );
    fs::write(config, general + sections).unwrap();
}

fn run(config: &Path, log: &Path, launch: &Launch) -> Child {
    let mut command = match launch.before {
        None => Command::new(SALTERN),
        Some(before) => {
            let mut command = Command::new("unshare");
            // Without root a user namespace gives the right to mount.
            if !is_root() {
                command.arg("--map-root-user");
            }
            command.args(["--mount", "sh", "-c"]);
            command.arg(format!("{before} && exec \"$0\" \"$@\"")).arg(SALTERN);
            command
        }
    };
    command
        .args(["run", "--config"])
        .arg(config)
        .envs(launch.environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(File::create(config.with_file_name("stdout")).unwrap())
        .stderr(File::options().create(true).append(true).open(log).unwrap())
        .spawn()
        .unwrap()
}

fn sum(series: &[f64]) -> f64 {
    series.iter().sum()
}

fn of_sink(sink: &str) -> String {
    format!("sink=\"{sink}\"")
}

/// An answer with its body in one piece.
fn unchunked(answer: String) -> String {
    let Some((head, mut rest)) = answer.split_once("\r\n\r\n") else { return answer };
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return answer;
    }
    let mut whole = format!("{head}\r\n\r\n");
    while let Some((length, chunk)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole.push_str(&chunk[..length]);
        rest = chunk[length..].trim_start_matches("\r\n");
    }
    whole
}

pub(crate) fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout.trim_ascii() == b"0"
}
