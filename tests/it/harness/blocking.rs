//! The real binary in a folder of its own: started, watched through `/metrics`, and ended by pid.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Nothing that these tests wait for takes this long, not even what hangs once: saltern breaks a
/// write off after a minute (`retry.timeout`) and tries it again.
pub(crate) const DEADLINE: Duration = Duration::from_mins(6);

/// A stop with a `shutdown_deadline` of 3 s takes less, even on a slow, busy machine; one that
/// waits for its store takes the minute of `retry.timeout`.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(45);

/// Waits until `look` gives something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        #[allow(clippy::disallowed_methods)] // between looks at a condition with a deadline
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A running `saltern run`.
pub(crate) struct Daemon {
    child: Child,
    log: std::path::PathBuf,
    http: Option<String>,
}

impl Daemon {
    /// Starts the daemon with these sources and sinks (YAML) and its files in `folder`.
    pub(crate) fn start(folder: &Path, sections: &str) -> Self {
        Daemon::start_in(folder, sections, None)
    }

    /// As `start`; `before` is a shell command that runs first, in mount namespace of its own.
    pub(crate) fn start_in(folder: &Path, sections: &str, before: Option<&str>) -> Self {
        let config = folder.join("saltern.yaml");
        let state = folder.join("state");
        let general = format!(
            "master_id: master-1\nstate_dir: {}\nshutdown_deadline: 3s\n\
             http: {{listen: '127.0.0.1:0'}}\nlog: {{format: json}}\n",
            state.display()
        );
        std::fs::write(&config, general + sections).unwrap();
        Daemon::spawn(folder, before)
    }

    /// Starts the daemon with the configuration that is in `folder` already.
    pub(crate) fn spawn(folder: &Path, before: Option<&str>) -> Self {
        let config = folder.join("saltern.yaml");
        let log = folder.join("log");
        let saltern = env!("CARGO_BIN_EXE_saltern");
        let mut command = match before {
            None => Command::new(saltern),
            Some(before) => {
                let mut command = Command::new("unshare");
                // Without root a user namespace gives the right to mount.
                if !is_root() {
                    command.arg("--map-root-user");
                }
                command.args(["--mount", "sh", "-c"]);
                command.arg(format!("{before} && exec \"$0\" \"$@\"")).arg(saltern);
                command
            }
        };
        let child = command
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(File::create(folder.join("stdout")).unwrap())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Daemon { child, log, http: None }
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its HTTP side listens.
    pub(crate) fn address(&mut self) -> String {
        if self.http.is_none() {
            let found = wait_for("the HTTP side", || {
                let log = self.log();
                let line = log.lines().find(|line| line.contains("the HTTP side listens"));
                let fields =
                    line.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
                if let Some(status) = self.child.try_wait().unwrap() {
                    panic!("the daemon ended early, {status}: {log}");
                }
                fields.map(|line| line["address"].as_str().unwrap().to_owned())
            });
            self.http = Some(found);
        }
        self.http.clone().unwrap()
    }

    /// What it answers: head and body.
    pub(crate) fn get(&mut self, path: &str) -> String {
        let token = self.made_token().unwrap_or_default();
        self.get_with(path, &token)
    }

    /// The token that it has made, where none is configured.
    pub(crate) fn made_token(&self) -> Option<String> {
        let file = self.log.with_file_name("state").join("http-token");
        std::fs::read_to_string(file).ok().map(|token| token.trim().to_owned())
    }

    /// As `get`, with this token.
    pub(crate) fn get_with(&mut self, path: &str, token: &str) -> String {
        let address = self.address();
        let mut stream = TcpStream::connect(&address).unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Authorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The sum of a metric's values over all label sets that contain `label`.
    pub(crate) fn metric(&mut self, name: &str, label: &str) -> f64 {
        let answer = self.get("/metrics");
        let lines = answer.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && line.contains(label)
        });
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    /// Events that the sink has stored.
    pub(crate) fn stored(&mut self, sink: &str) -> f64 {
        self.metric("saltern_sink_events_total", &format!("sink=\"{sink}\""))
    }

    /// Waits until the sink has stored so many events.
    pub(crate) fn wait_stored(&mut self, sink: &str, count: u64) {
        let mut stored = 0.0;
        #[allow(clippy::cast_precision_loss)]
        let wanted = count as f64;
        wait_for(&format!("{count} events in {sink}"), || {
            stored = self.stored(sink);
            (stored >= wanted).then_some(())
        });
        assert!((stored - wanted).abs() < 0.5, "{stored} events in {sink}, not {count}");
    }

    /// Waits until something of the sink was tried again.
    pub(crate) fn wait_failing(&mut self, sink: &str) {
        let before = self.retries(sink);
        wait_for("a try that fails", || (self.retries(sink) > before).then_some(()));
    }

    fn retries(&mut self, sink: &str) -> f64 {
        self.metric("saltern_sink_retries_total", &format!("sink=\"{sink}\""))
    }

    /// Sends a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits until it has ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait_for("the daemon's end", || self.child.try_wait().unwrap())
    }

    /// Stops it as systemd does, and expects a clean end.
    pub(crate) fn stop(mut self) {
        self.signal("TERM");
        let status = self.ended();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Of a test that failed; an ended child is not killed again.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

pub(crate) fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout.trim_ascii() == b"0"
}
