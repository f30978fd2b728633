//! The real binary in a temporary folder, with one source and, unless told otherwise, one sink,
//! `rawfile_json`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How long anything may take that is waited for.
pub(crate) const DEADLINE: Duration = Duration::from_mins(2);

pub(crate) struct Daemon {
    pub(crate) folder: TempDir,
    child: Child,
}

impl Daemon {
    /// Starts with this as the source `bus`; `FOLDER` in it is the temporary folder.
    pub(crate) fn start(source: &str) -> Self {
        let sink = "rawfile_json: {filename: FOLDER/out}\n    batch: {linger: 10ms}\n    \
                    spill: {max_bytes: 512MiB}";
        Daemon::start_with(source, sink)
    }

    /// Starts beside the master in this folder: it reads its bus, and takes at the socket `r` what
    /// the master hands over.
    pub(crate) fn beside_master(dir: &Path) -> Self {
        let bus = dir.join("m/s/master_event_pub.ipc");
        Daemon::start(&format!(
            "returner: {{bind: 'ipc://FOLDER/r'}}\n  live:\n    salt_bus: {{address: {}}}",
            bus.display()
        ))
    }

    /// As [`Daemon::start`], with this as the sink `out`.
    pub(crate) fn start_with(source: &str, sink: &str) -> Self {
        Daemon::start_in(source, sink, &[])
    }

    /// As [`Daemon::start_with`], with these variables in its environment.
    pub(crate) fn start_in(source: &str, sink: &str, environment: &[(&str, &str)]) -> Self {
        Daemon::start_as(source, sink, "json", environment)
    }

    /// As [`Daemon::start_with`], with the log in this format.
    pub(crate) fn start_logging(source: &str, sink: &str, format: &str) -> Self {
        Daemon::start_as(source, sink, format, &[])
    }

    fn start_as(source: &str, sink: &str, format: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("st").tempdir_in("/tmp").unwrap();
        let config = format!(
            "state_dir: FOLDER/state\nhttp: {{listen: '127.0.0.1:0'}}\nlog: {{level: debug, format: {format}}}\n\
             sources:\n  bus:\n    {source}\nsinks:\n  out:\n    {sink}\n"
        );
        let config = config.replace("FOLDER", &folder.path().display().to_string());
        fs::write(folder.path().join("config.yaml"), config).unwrap();
        let child = run(&folder, environment);
        Daemon { folder, child }
    }

    /// Ends it without warning.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Starts it again after it was killed.
    pub(crate) fn start_again(&mut self) {
        self.child = run(&self.folder, &[]);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// The lines of the sink's file.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = fs::read(self.path("out")).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }

    /// How many events of this tag were stored.
    pub(crate) fn stored(&self, tag: &str) -> usize {
        let tag = format!("\"tag\": \"{tag}\"");
        self.lines().iter().filter(|line| line.contains(&tag)).count()
    }

    pub(crate) async fn wait_for_event(&self, tag: &str) {
        self.until(&format!("the event {tag}"), || self.stored(tag) > 0).await;
    }

    pub(crate) async fn wait_for_log(&self, words: &str) {
        self.until(&format!("`{words}` in the log"), || self.log().contains(words)).await;
    }

    /// Waits until the status says this of the last error of a source or a sink.
    pub(crate) async fn wait_for_error(&self, words: &str) {
        let waiting = async {
            while !self.get("/api/v1/status").await.contains(words) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let is_in_time = timeout(DEADLINE, waiting).await.is_ok();
        assert!(is_in_time, "waited in vain for `{words}`; the log:\n{}", self.log());
    }

    pub(crate) async fn until(&self, what: &str, mut is_there: impl FnMut() -> bool) {
        let waiting = async {
            while !is_there() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let is_in_time = timeout(DEADLINE, waiting).await.is_ok();
        assert!(is_in_time, "waited in vain for {what}; the log:\n{}", self.log());
    }

    /// What the HTTP side answers, head and body.
    pub(crate) async fn get(&self, path: &str) -> String {
        self.wait_for_log("the HTTP side listens").await;
        let log = self.log();
        let line = log.lines().rfind(|line| line.contains("the HTTP side listens")).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let mut stream = TcpStream::connect(line["address"].as_str().unwrap()).await.unwrap();
        let token = fs::read_to_string(self.path("state/http-token")).unwrap_or_default();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: Bearer {}\r\n\r\n",
            token.trim()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        unchunked(answer)
    }

    /// Waits until `/readyz` says yes.
    pub(crate) async fn wait_until_ready(&self) {
        let waiting = async {
            while !self.get("/readyz").await.starts_with("HTTP/1.1 200") {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let is_in_time = timeout(DEADLINE, waiting).await.is_ok();
        assert!(is_in_time, "waited in vain to be ready; the log:\n{}", self.log());
    }

    /// The sum of a metric's series.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let answer = self.get("/metrics").await;
        let series: Vec<_> = answer
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .collect();
        assert!(!series.is_empty(), "no metric {name} in:\n{answer}");
        series.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// The most memory that the process ever had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// SIGTERM; the process must end by itself and well.
    pub(crate) async fn stop(mut self) -> TempDir {
        self.signal("TERM");
        let status = self.ended().await;
        assert!(status.success(), "{status:?}; the log:\n{}", self.log());
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        let child = &mut self.child;
        let waiting = async {
            while status.is_none() {
                status = child.try_wait().unwrap();
                sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = timeout(DEADLINE, waiting).await;
        status.unwrap_or_else(|| panic!("it does not end; the log:\n{}", self.log()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(folder: &TempDir, environment: &[(&str, &str)]) -> Child {
    let log = File::options().create(true).append(true).open(folder.path().join("log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_saltern"))
        .args(["run", "--config"])
        .arg(folder.path().join("config.yaml"))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
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
