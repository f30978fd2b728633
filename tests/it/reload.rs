//! SIGHUP: a new configuration changes what differs and nothing else, while events go on passing.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rmpv::Value;
use serde_json::Value as Json;
use tempfile::TempDir;

use crate::harness::daemon::SALTERN;

/// Nothing that is waited for may take longer.
const DEADLINE: Duration = Duration::from_mins(2);

/// Between two looks at a condition, and between two events.
#[allow(clippy::disallowed_methods)]
fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

/// A master's bus that sends numbered events all the time, to the newest subscriber.
struct Bus {
    path: PathBuf,
    connections: Arc<AtomicUsize>,
    sent: Arc<AtomicU64>,
    rests: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bus {
    fn start(path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let sent = Arc::new(AtomicU64::new(0));
        let rests = Arc::new(AtomicBool::new(false));
        let ends = Arc::new(AtomicBool::new(false));
        let (accepted, count) = (connections.clone(), sent.clone());
        let (resting, ending) = (rests.clone(), ends.clone());
        let thread = std::thread::spawn(move || {
            let mut subscriber = None;
            while !ending.load(Ordering::SeqCst) {
                pause();
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).unwrap();
                    accepted.fetch_add(1, Ordering::SeqCst);
                    subscriber = Some(stream);
                }
                let Some(stream) = &mut subscriber else { continue };
                if resting.load(Ordering::SeqCst) {
                    continue;
                }
                // The socket's buffer takes a small frame whole or not at all.
                let number = count.load(Ordering::SeqCst);
                if stream.write_all(&frame(number)).is_ok() {
                    count.store(number + 1, Ordering::SeqCst);
                }
            }
        });
        Bus { path, connections, sent, rests, ends, thread: Some(thread) }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Sends no more but stays connected.
    fn rest(&self) {
        self.rests.store(true, Ordering::SeqCst);
    }

    fn go_on(&self) {
        self.rests.store(false, Ordering::SeqCst);
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `even/0`, `odd/1`, `even/2`, …
fn frame(number: u64) -> Vec<u8> {
    let tag = if number.is_multiple_of(2) { "even" } else { "odd" };
    let mut body = format!("{tag}/{number}\n\n").into_bytes();
    rmpv::encode::write_value(&mut body, &Value::Map(vec![("n".into(), number.into())])).unwrap();
    let head = ("head".into(), Value::Map(vec![]));
    let frame = Value::Map(vec![head, ("body".into(), Value::Binary(body))]);
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &frame).unwrap();
    bytes
}

struct Daemon {
    folder: TempDir,
    child: Child,
    notified: UnixDatagram,
}

impl Daemon {
    fn start(folder: TempDir, config: &str) -> Self {
        write_config(folder.path(), config);
        let notify = folder.path().join("notify");
        let notified = UnixDatagram::bind(&notify).unwrap();
        notified.set_read_timeout(Some(DEADLINE)).unwrap();
        let child = Command::new(SALTERN)
            .args(["run", "--config"])
            .arg(folder.path().join("config.yaml"))
            .env("NOTIFY_SOCKET", notify)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let daemon = Daemon { folder, child, notified };
        assert_eq!(daemon.notification(), "READY=1");
        daemon
    }

    fn notification(&self) -> String {
        let mut buffer = [0; 1000];
        let length = self.notified.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> Vec<Json> {
        let text = fs::read_to_string(self.path("log")).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The last line of the log with these words.
    fn line(&self, words: &str) -> Option<Json> {
        let has = |line: &&Json| line["message"].as_str().is_some_and(|m| m.contains(words));
        self.log().iter().rev().find(has).cloned()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Puts another configuration in place and waits until the daemon has dealt with it.
    fn reload(&self, config: &str) {
        write_config(self.folder.path(), config);
        self.signal("-HUP");
        let reloading = self.notification();
        let (state, time) = reloading.split_once('\n').unwrap();
        assert_eq!(state, "RELOADING=1");
        assert!(time.strip_prefix("MONOTONIC_USEC=").unwrap().parse::<u64>().unwrap() > 0);
        assert_eq!(self.notification(), "READY=1");
    }

    /// The numbers of the events in a sink's file, in its order.
    fn stored(&self, file: &str) -> Vec<u64> {
        let text = fs::read_to_string(self.path(file)).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let number = |line: &str| serde_json::from_str::<Json>(line).unwrap()["data"]["n"].as_u64();
        whole.lines().map(|line| number(line).unwrap()).collect()
    }

    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let began = Instant::now();
        while !is_so() {
            let log = || fs::read_to_string(self.path("log")).unwrap();
            assert!(began.elapsed() < DEADLINE, "waited in vain for {what}; the log:\n{}", log());
            pause();
        }
    }

    /// Waits until the file holds events that were sent after this was called.
    fn until_new_events_in(&self, file: &str, bus: &Bus) {
        let now = bus.sent();
        self.until(&format!("new events in {file}"), || {
            self.stored(file).last().is_some_and(|last| *last > now + 5)
        });
    }

    fn metrics(&self) -> String {
        let listens = "the HTTP side listens";
        self.until(listens, || self.line(listens).is_some());
        let line = self.line(listens).unwrap();
        let mut stream = TcpStream::connect(line["address"].as_str().unwrap()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn metric(&self, series: &str) -> Option<f64> {
        let metrics = self.metrics();
        let mut values = metrics.lines().filter_map(|line| line.strip_prefix(series));
        values.next().map(|value| value.trim().parse().unwrap())
    }

    /// SIGTERM; the process must end by itself and well.
    fn stop(&mut self) {
        self.signal("-TERM");
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}: {:?}", self.log());
                return;
            }
            assert!(began.elapsed() < DEADLINE, "does not stop: {:?}", self.log());
            pause();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("st").tempdir_in("/tmp").unwrap()
}

/// By rename, as editors and configuration management do it.
fn write_config(folder: &Path, text: &str) {
    let new = folder.join("config.new");
    fs::write(&new, text).unwrap();
    fs::rename(new, folder.join("config.yaml")).unwrap();
}

fn general(folder: &Path) -> String {
    format!(
        "state_dir: {}/state\nhttp: {{listen: '127.0.0.1:0'}}\nlog: {{format: json}}\n\
         shutdown_deadline: 1s\n",
        folder.display()
    )
}

fn source(name: &str, bus: &Bus, options: &str) -> String {
    format!("  {name}: {{salt_bus: {{address: '{}'{options}}}}}\n", bus.path.display())
}

fn sink(folder: &Path, name: &str, file: &str, options: &str) -> String {
    let file = folder.join(file);
    format!(
        "  {name}: {{rawfile_json: {{filename: '{}'}}, batch: {{linger: 10ms}}{options}}}\n",
        file.display()
    )
}

fn config(folder: &Path, sources: &[String], sinks: &[String]) -> String {
    format!("{}sources:\n{}sinks:\n{}", general(folder), sources.concat(), sinks.concat())
}

fn all(end: u64) -> Vec<u64> {
    (0..end).collect()
}

#[test]
fn the_estate_is_counted_changed_and_left_alone_without_a_restart() {
    let folder = folder();
    let at = folder.path().to_owned();
    let bus = Bus::start(at.join("bus"));
    let plain = config(&at, &[source("bus", &bus, "")], &[sink(&at, "kept", "kept", "")]);
    let with = |estate: &str| format!("estate: {estate}\n{plain}");
    let mut daemon = Daemon::start(folder, &plain);
    daemon.until_new_events_in("kept", &bus);
    let events = "salt_events_total{kind=\"custom\"}";
    assert_eq!(daemon.metric(events), None);

    daemon.reload(&with("{}"));
    daemon.until("events to be counted", || daemon.metric(events) > Some(50.0));
    daemon.reload(&with("{}"));
    assert!(daemon.metric(events) > Some(50.0), "what has not changed counts on");

    bus.rest();
    daemon.until("all events", || daemon.stored("kept") == all(bus.sent()));
    daemon.reload(&with("{silent_after: 2h}"));
    assert!(daemon.metric(events) < Some(50.0), "counters begin anew, but for what was on its way");
    assert_eq!(daemon.metric("salt_minions_silent"), Some(0.0));
    bus.go_on();
    daemon.until("events to be counted again", || daemon.metric(events) > Some(50.0));

    daemon.reload(&plain);
    assert_eq!(daemon.metric(events), None);
    daemon.until_new_events_in("kept", &bus);
    assert_eq!(bus.connections(), 1);
    assert_eq!(daemon.line("need a restart"), None);
    bus.rest();
    daemon.until("all events at last", || daemon.stored("kept") == all(bus.sent()));
    daemon.stop();
}

#[test]
fn sinks_come_change_and_go_and_nothing_else_notices() {
    let folder = folder();
    let at = folder.path().to_owned();
    let bus = Bus::start(at.join("bus"));
    let source = source("bus", &bus, "");
    let kept = sink(&at, "kept", "kept", "");
    let first = [
        kept.clone(),
        sink(&at, "changed", "changed", ""),
        sink(&at, "stuck", "missing/stuck", ""),
    ];
    let mut daemon = Daemon::start(folder, &config(&at, std::slice::from_ref(&source), &first));
    daemon.until_new_events_in("kept", &bus);
    daemon.until_new_events_in("changed", &bus);

    let second = [
        sink(&at, "added", "added", ""),
        "  # Elsewhere, with a comment.\n".to_owned(),
        kept,
        sink(&at, "changed", "changed", ", filter: {tags: ['even/*']}"),
    ];
    let second_config = config(&at, std::slice::from_ref(&source), &second);
    let before = bus.sent();
    daemon.reload(&second_config);
    let after = bus.sent();
    let line = daemon.line("the configuration was reloaded").unwrap();
    assert_eq!(line["kept"], "source bus, sink kept");
    assert_eq!(line["added"], "sink added");
    assert_eq!(line["changed"], "sink changed");
    assert_eq!(line["removed"], "sink stuck");
    daemon.until_new_events_in("added", &bus);
    daemon.until_new_events_in("changed", &bus);

    let report = "leaves events in its spill";
    daemon.until("the report of the removed sink", || daemon.line(report).is_some());
    let line = daemon.line(report).unwrap();
    let spill = at.join("state/spill/stuck");
    assert_eq!(line["spill"], spill.to_str().unwrap());
    let left = line["events"].as_u64().unwrap();
    let around = before.saturating_sub(50)..=after + 50;
    assert!(around.contains(&left), "{left} of {around:?}");
    let is_segment = |entry: fs::DirEntry| entry.path().extension().is_some_and(|e| e == "seg");
    assert!(fs::read_dir(&spill).unwrap().any(|entry| is_segment(entry.unwrap())));

    daemon.reload(&second_config.replace("filter", "filtre"));
    let line = daemon.line("the new configuration is refused").unwrap();
    let error = line["error"].as_str().unwrap();
    let file = at.join("config.yaml");
    assert!(error.contains(&format!("--> {}:", file.display())), "{error}");
    assert!(error.lines().any(|line| line.ends_with('^')), "{error}");
    assert!(error.contains("did you mean `filter`?"), "{error}");
    daemon.until_new_events_in("kept", &bus);
    daemon.until_new_events_in("changed", &bus);

    let third = [second.concat(), sink(&at, "stuck", "unstuck", "")];
    let third = config(&at, &[source], &third).replace("format: json", "format: text");
    daemon.reload(&third);
    assert_eq!(daemon.line("need a restart").unwrap()["settings"], "log.format");
    daemon.until_new_events_in("unstuck", &bus);
    for (result, count) in [("ok", 2.0), ("refused", 1.0), ("failed", 0.0)] {
        let series = format!("saltern_config_reloads_total{{result=\"{result}\"}}");
        assert_eq!(daemon.metric(&series), Some(count), "{result}");
    }

    bus.rest();
    daemon.until("all that was sent", || daemon.stored("kept").last() == Some(&(bus.sent() - 1)));
    daemon.stop();
    let sent = bus.sent();
    assert_eq!(bus.connections(), 1, "the bus connection stays");
    assert_eq!(daemon.stored("kept"), all(sent));
    let added = daemon.stored("added");
    assert_eq!(added, (added[0]..sent).collect::<Vec<_>>());
    let changed = daemon.stored("changed");
    assert!(changed.is_sorted_by(|a, b| a < b), "{changed:?}");
    let (even, odd): (Vec<u64>, Vec<u64>) = changed.iter().partition(|n| *n % 2 == 0);
    assert_eq!(even, (0..sent).step_by(2).collect::<Vec<_>>());
    let last = *odd.last().unwrap();
    assert!(around.contains(&last), "{last} of {around:?}");
    assert_eq!(odd, (1..=last).step_by(2).collect::<Vec<_>>());
    let unstuck = daemon.stored("unstuck");
    assert!(unstuck.is_sorted_by(|a, b| a < b), "{unstuck:?}");
    assert_eq!(unstuck[..usize::try_from(left).unwrap()], all(left));
    assert_eq!(unstuck.last(), Some(&(sent - 1)));
}

#[test]
fn a_sink_that_is_mended_gets_all_that_waited_in_every_mode() {
    let folder = folder();
    let at = folder.path().to_owned();
    let bus = Bus::start(at.join("bus"));
    let modes = ["durable", "overflow", "memory"];
    let config = |folder: &str, more: &str| {
        let mut sinks = vec![sink(&at, "beside", "beside", "")];
        sinks.extend(modes.map(|mode| {
            let spill = format!(", spill: {{mode: {mode}}}{more}");
            sink(&at, mode, &format!("{folder}{mode}"), &spill)
        }));
        config(&at, &[source("bus", &bus, "")], &sinks)
    };
    let mut daemon = Daemon::start(folder, &config("missing/", ""));
    for more in [", writers: 2", ", retry: {initial: 10ms}"] {
        daemon.until_new_events_in("beside", &bus);
        daemon.reload(&config("missing/", more));
    }
    daemon.until_new_events_in("beside", &bus);
    daemon.reload(&config("", ""));
    for mode in modes {
        daemon.until_new_events_in(mode, &bus);
    }
    // Over and over, while they work.
    for n in 1..6 {
        daemon.reload(&config("", &format!(", rate_limit: {n}00000")));
    }
    bus.rest();
    for file in ["beside", "durable", "overflow", "memory"] {
        daemon.until(file, || daemon.stored(file).last() == Some(&(bus.sent() - 1)));
    }
    daemon.stop();
    for file in ["beside", "durable", "overflow", "memory"] {
        assert_eq!(daemon.stored(file), all(bus.sent()), "{file}");
    }
    assert_eq!(bus.connections(), 1);
}

#[test]
fn a_sink_that_holds_everything_up_can_be_mended_and_removed() {
    let folder = folder();
    let at = folder.path().to_owned();
    let bus = Bus::start(at.join("bus"));
    let small = ", spill: {mode: memory, memory: 4KiB, when_full: block}";
    let with = |files: &[&str]| {
        let mut sinks = vec![sink(&at, "beside", "beside", "")];
        sinks.extend(files.iter().map(|file| sink(&at, "s", file, small)));
        config(&at, &[source("bus", &bus, "")], &sinks)
    };
    let mut daemon = Daemon::start(folder, &with(&["missing/s"]));
    let is_held_up = || daemon.stored("beside").last().is_some_and(|n| n + 150 < bus.sent());
    daemon.until("everything to be held up", is_held_up);
    daemon.reload(&with(&["s"]));
    daemon.until_new_events_in("s", &bus);
    daemon.until_new_events_in("beside", &bus);
    daemon.reload(&with(&["missing/s"]));
    daemon.until("everything to be held up", is_held_up);
    daemon.reload(&with(&[]));
    daemon.until_new_events_in("beside", &bus);
    bus.rest();
    daemon.until("the rest", || daemon.stored("beside").last() == Some(&(bus.sent() - 1)));
    daemon.stop();
    assert_eq!(daemon.stored("beside"), all(bus.sent()));
    let through = daemon.stored("s");
    assert_eq!(through, all(through.len() as u64));
    assert_eq!(bus.connections(), 1);
}

#[test]
fn a_daemon_that_is_held_up_stops_in_time() {
    let folder = folder();
    let at = folder.path().to_owned();
    let bus = Bus::start(at.join("bus"));
    let small = ", spill: {mode: memory, memory: 4KiB, when_full: block}";
    let sinks = [sink(&at, "beside", "beside", ""), sink(&at, "s", "missing/s", small)];
    let mut daemon = Daemon::start(folder, &config(&at, &[source("bus", &bus, "")], &sinks));
    let is_held_up = || daemon.stored("beside").last().is_some_and(|n| n + 150 < bus.sent());
    daemon.until("everything to be held up", is_held_up);
    daemon.stop();
    let lost = daemon.line("events that were left in memory are lost").unwrap();
    assert_eq!(lost["sink"], "s");
}

#[test]
fn sources_come_change_and_go() {
    let folder = folder();
    let at = folder.path().to_owned();
    let (one, two) = (Bus::start(at.join("one")), Bus::start(at.join("two")));
    let sinks = [sink(&at, "out", "out", "")];
    let config = |source: String| config(&at, &[source], &sinks);
    let mut daemon = Daemon::start(folder, &config(source("a", &one, "")));
    daemon.until_new_events_in("out", &one);
    // The only source changes, which must not be taken for the end of all sources.
    daemon.reload(&config(source("a", &one, ", coalesce: 2ms")));
    daemon.until("a second connection", || one.connections() == 2);
    daemon.until_new_events_in("out", &one);
    // And it is replaced by another.
    daemon.reload(&config(source("b", &two, "")));
    for (name, value) in [("b", 1.0), ("a", 0.0)] {
        let series = format!("saltern_source_connected{{source=\"{name}\"}}");
        daemon.until(&series, || daemon.metric(&series) == Some(value));
    }
    daemon.until("the other bus", || two.connections() == 1);
    assert_eq!(one.connections(), 2);
    daemon.stop();
}
