//! A daemon beside a test that plays its peer in the same task: with one source and, unless told
//! otherwise, one sink, `rawfile_json`, in a temporary folder. Its `async` functions wait without
//! blocking. The others block, and the daemon answers them at once.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::harness::daemon::{self, Launch};

/// Nothing that is waited for may take longer.
pub(crate) const DEADLINE: Duration = Duration::from_mins(2);

pub(crate) struct Daemon {
    // The process ends before its folder is removed.
    process: daemon::Daemon,
    pub(crate) folder: TempDir,
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

    /// Starts like [`Daemon::start`], with this as the sink `out`.
    pub(crate) fn start_with(source: &str, sink: &str) -> Self {
        Daemon::start_in(source, sink, &[])
    }

    /// Starts like [`Daemon::start_with`], with these variables in its environment.
    pub(crate) fn start_in(source: &str, sink: &str, environment: &[(&str, &str)]) -> Self {
        Daemon::start_as(source, sink, "json", environment)
    }

    /// Starts like [`Daemon::start_with`], with the log in this format.
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
        let path = folder.path().join("config.yaml");
        fs::write(&path, config).unwrap();
        let launch = Launch { environment, log: Some("log"), ..Launch::default() };
        Daemon { process: daemon::Daemon::spawn(&path, &launch), folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The lines of the sink's file.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = fs::read(self.path("out")).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }

    /// The number of events of this tag that were stored.
    pub(crate) fn stored_as(&self, tag: &str) -> usize {
        let tag = format!("\"tag\": \"{tag}\"");
        self.lines().iter().filter(|line| line.contains(&tag)).count()
    }

    pub(crate) async fn wait_for_event(&self, tag: &str) {
        self.until(&format!("the event {tag}"), || self.stored_as(tag) > 0).await;
    }

    pub(crate) async fn wait_for_log(&self, words: &str) {
        self.until(&format!("`{words}` in the log"), || self.log().contains(words)).await;
    }

    /// Waits until the status says this of the last error of a source or a sink.
    pub(crate) async fn wait_for_error(&self, words: &str) {
        let is_told = || self.get("/api/v1/status").contains(words);
        self.until(&format!("`{words}`"), is_told).await;
    }

    /// Waits until `/readyz` says yes.
    pub(crate) async fn wait_until_ready(&self) {
        let is_ready = || self.get("/readyz").starts_with("HTTP/1.1 200");
        self.until("it to be ready", is_ready).await;
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

    /// SIGTERM; the process must end by itself and well.
    pub(crate) async fn stop(self) -> TempDir {
        self.signal("TERM");
        let status = self.ended().await;
        assert!(status.success(), "{status:?}; the log:\n{}", self.log());
        self.folder
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn ended(&self) -> ExitStatus {
        self.until("its end", || self.has_ended().is_some()).await;
        self.has_ended().unwrap()
    }
}

impl Deref for Daemon {
    type Target = daemon::Daemon;

    fn deref(&self) -> &daemon::Daemon {
        &self.process
    }
}

impl DerefMut for Daemon {
    fn deref_mut(&mut self) -> &mut daemon::Daemon {
        &mut self.process
    }
}
