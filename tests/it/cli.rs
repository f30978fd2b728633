//! The command line, through the real binary: its output, its exit codes, and the HTTP side of its
//! daemon.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::daemon::{Daemon, SALTERN, until};

/// Nothing may take longer here.
const DEADLINE: Duration = Duration::from_mins(2);

/// A stop with a `shutdown_deadline` of a few seconds takes less, even on a slow, busy machine.
const STOP_LIMIT: Duration = Duration::from_secs(45);

fn saltern(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(SALTERN);
    command.args(arguments).current_dir(directory).env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
    // A demo puts up its sign there, which is the test's business alone.
    command.env("TMPDIR", directory).env_remove("XDG_RUNTIME_DIR");
    command
}

fn output(directory: &Path, arguments: &[&str]) -> Output {
    Running::start(&mut saltern(directory, arguments)).output()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A process and the lines that it prints; killed when the test ends before it does.
struct Running {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = lines_of(child.stdout.take().unwrap());
        let stderr = lines_of(child.stderr.take().unwrap());
        Running { child, stdout, stderr }
    }

    /// The first line on standard error with `part` in it.
    fn says(&self, part: &str) -> String {
        line_with(&self.stderr, part)
    }

    /// The address that the HTTP side said it listens on, behind `before`.
    fn address(&self, before: &str) -> String {
        let line = self.says(before);
        let (_, behind) = line.split_once(before).unwrap();
        behind.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect()
    }

    fn interrupt(&self) {
        let kill = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "the process does not end");
            // Polling with a deadline; there is no portable wait with a timeout.
            pause();
        }
    }

    fn output(mut self) -> Output {
        let joined = |lines: &Receiver<String>| {
            let lines = std::iter::from_fn(|| lines.recv_timeout(DEADLINE).ok());
            lines.flat_map(|line| (line + "\n").into_bytes()).collect()
        };
        let (stdout, stderr) = (joined(&self.stdout), joined(&self.stderr));
        Output { status: self.wait(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pause() {
    std::thread::park_timeout(Duration::from_millis(20));
}

/// Reads lines on a thread of its own, so that the process never waits for the test.
fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (lines, received) = sync_channel(100_000);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    received
}

fn line_with(lines: &Receiver<String>, part: &str) -> String {
    let start = Instant::now();
    let mut seen = Vec::new();
    loop {
        match lines.recv_timeout(DEADLINE.saturating_sub(start.elapsed())) {
            Ok(line) if line.contains(part) => return line,
            Ok(line) => seen.push(line),
            Err(RecvTimeoutError::Timeout) => panic!("no line with {part:?} among {seen:#?}"),
            Err(RecvTimeoutError::Disconnected) => panic!("ended without {part:?}: {seen:#?}"),
        }
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "not in time: {what}");
        pause();
    }
}

/// Status code, head and body of an answer.
fn get(address: &str, path: &str, token: Option<&str>) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_lowercase(), body.to_owned())
}

fn same_as_golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(found, golden, "{name} differs; UPDATE_GOLDEN=1 writes it anew");
}

/// A master's bus that the test drives.
struct Bus {
    listener: UnixListener,
    generator: saltern::demo::Generator,
}

impl Bus {
    fn listen(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        Bus { listener, generator: saltern::demo::Generator::new(5) }
    }

    fn accept(&self) -> UnixStream {
        self.listener.set_nonblocking(true).unwrap();
        let mut accepted = None;
        eventually("a subscriber", || {
            accepted = self.listener.accept().ok();
            accepted.is_some()
        });
        accepted.unwrap().0
    }

    fn send(&mut self, to: &mut UnixStream, count: usize) {
        for _ in 0..count {
            let frame = self.generator.next_frame(jiff::Timestamp::now());
            to.set_nonblocking(false).unwrap();
            to.write_all(&frame).unwrap();
        }
    }
}

#[test]
fn check_shows_every_mistake_where_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let config = "\
master_id: salt.example.com
shutdown_deadlin: 3s
http: {listen: '0.0.0.0:4507'}
sources:
  bus:
    salt_bus: {adress: /run/salt/x.ipc, max_frame: many}
sinks:
  archive:
    rawfile_json: {filename: '${NOT_SET_ANYWHERE}'}
    filter: {tags: ['salt/job/*', 'b[']}
    writers: 0
  other: {rawfile_jsn: {}}
";
    std::fs::write(directory.path().join("saltern.yaml"), config).unwrap();
    let output = output(directory.path(), &["check", "--config", "saltern.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let mistakes = text(&output.stderr);
    same_as_golden("check-mistakes.txt", &mistakes);

    // The same for machines, place for place.
    let output = check_as_json(directory.path(), &[]);
    assert_eq!((output.0, output.1.as_str()), (Some(2), mistakes.as_str()));
    let findings = output.2["findings"].as_array().unwrap();
    assert_eq!(findings.len(), mistakes.matches("error: ").count());
    for finding in findings {
        let (message, hint) = (finding["message"].as_str().unwrap(), finding["hint"].as_str());
        let place = format!("{}:{}:{}", "saltern.yaml", finding["line"], finding["column"]);
        let shown = mistakes.split("\n\n").find(|shown| {
            shown.starts_with(&format!("error: {message}\n")) && shown.contains(&place)
        });
        let shown = shown.unwrap_or_else(|| panic!("{finding}"));
        let shown_hint = shown.trim_end().split_once("= help: ").map(|(_, hint)| hint);
        assert_eq!(shown_hint, hint, "{finding}");
        assert_eq!(finding["file"], "saltern.yaml");
    }
    let first = serde_json::json!({
        "level": "error", "file": "saltern.yaml", "line": 2, "column": 1,
        "message": "unknown key `shutdown_deadlin`", "hint": "did you mean `shutdown_deadline`?",
    });
    assert_eq!(findings[0], first);
}

#[test]
fn check_says_what_to_write_in_place_of_a_key_of_an_earlier_release() {
    let directory = tempfile::tempdir().unwrap();
    let config = "sources: {bus: {salt_bus: {}}}\nsinks:\n  out:\n    clickhouse:\n      \
                  {url: 'https://a', database: d, tls: {insecure: true}}\n";
    std::fs::write(directory.path().join("saltern.yaml"), config).unwrap();
    let (code, shown, document) = check_as_json(directory.path(), &[]);
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("warning: saltern.yaml:5:"), "{shown}");
    assert!(shown.contains("write `verify: false` instead"), "{shown}");
    let finding = &document["findings"][0];
    assert_eq!((&finding["level"], &finding["line"]), (&"warning".into(), &5.into()), "{finding}");
}

#[test]
fn check_refuses_a_length_of_time_that_no_clock_can_tell() {
    let directory = tempfile::tempdir().unwrap();
    let config = "sources: {bus: {salt_bus: {}}}\nsinks:\n  out:\n    blackhole: {}\n    \
                  batch: {linger: 600000000000s}\n";
    std::fs::write(directory.path().join("saltern.yaml"), config).unwrap();
    let (code, shown, document) = check_as_json(directory.path(), &[]);
    let finding = &document["findings"][0];
    let place = (finding["line"].as_u64(), finding["column"].as_u64());
    assert_eq!((code, place), (Some(2), (Some(5), Some(21))), "{finding}");
    assert!(shown.contains("of at most 3650d"), "{shown}");
}

/// Exit code, standard error, and the document that `check` prints for machines.
fn check_as_json(directory: &Path, options: &[&str]) -> (Option<i32>, String, serde_json::Value) {
    let arguments = ["check", "--config", "saltern.yaml", "--output", "json"];
    let output = output(directory, &[&arguments[..], options].concat());
    let document = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code(), text(&output.stderr), document)
}

#[test]
fn check_of_what_is_not_there_or_not_yaml() {
    let directory = tempfile::tempdir().unwrap();
    let missing = output(directory.path(), &["check", "--config", "none.yaml"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("cannot read the configuration none.yaml"));
    std::fs::write(directory.path().join("saltern.yaml"), "sources: {bus: [}\n").unwrap();
    let torn = output(directory.path(), &["check", "--config", "saltern.yaml"]);
    assert_eq!(torn.status.code(), Some(2));
    assert!(text(&torn.stderr).contains("saltern.yaml:1:"), "{}", text(&torn.stderr));
    let (code, _, torn) = check_as_json(directory.path(), &[]);
    assert_eq!((code, &torn["findings"][0]["line"]), (Some(2), &serde_json::json!(1)));
    std::fs::remove_file(directory.path().join("saltern.yaml")).unwrap();
    let (code, _, missing) = check_as_json(directory.path(), &[]);
    let finding = &missing["findings"][0];
    assert_eq!((code, finding["line"].is_null()), (Some(2), true));
    assert!(finding["message"].as_str().unwrap().contains("cannot read"), "{missing}");
}

#[test]
fn check_connects_to_every_part() {
    let directory = tempfile::tempdir().unwrap();
    let _bus = UnixListener::bind(directory.path().join("up.ipc")).unwrap();
    let config = "\
sources:
  up: {salt_bus: {address: up.ipc}}
  down: {salt_bus: {address: down.ipc}}
sinks:
  writable: {rawfile_json: {filename: events.jsonl}}
  lost: {rawfile_json: {filename: no/such/directory/events.jsonl}}
";
    std::fs::write(directory.path().join("saltern.yaml"), config).unwrap();
    let checked = output(directory.path(), &["check", "--config", "saltern.yaml"]);
    assert_eq!(checked.status.code(), Some(0));
    assert_eq!(text(&checked.stdout), "saltern.yaml: 2 sources and 2 sinks, no mistakes\n");

    let tried = output(directory.path(), &["check", "--connect", "--config", "saltern.yaml"]);
    assert_eq!(tried.status.code(), Some(1));
    let said = text(&tried.stdout);
    let lines: Vec<_> = said.lines().skip(1).collect();
    assert_eq!(lines.len(), 4, "{said}");
    assert_eq!((lines[0], lines[2]), ("ok      source up", "ok      sink writable"));
    assert!(lines[1].starts_with("failed  source down: "), "{said}");
    assert!(lines[1].ends_with("is the master running, and is this its sock_dir?"), "{said}");
    assert!(lines[3].starts_with("failed  sink lost: opening no/such/directory"), "{said}");
    assert_eq!(text(&tried.stderr), "saltern: 2 parts cannot be reached\n");

    let (code, said, checked) = check_as_json(directory.path(), &[]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert_eq!(checked, serde_json::json!({"findings": []}));
    let (code, said, tried) = check_as_json(directory.path(), &["--connect"]);
    assert_eq!((code, said.as_str()), (Some(1), "saltern: 2 parts cannot be reached\n"));
    let of = |place: usize| {
        let tried = &tried["connections"][place];
        let said = tried["error"].as_str().map(|error| format!("failed {error}"));
        let said = said.unwrap_or_else(|| "ok".to_owned());
        format!("{} {}: {said}", tried["part"].as_str().unwrap(), tried["name"].as_str().unwrap())
    };
    assert_eq!((of(0), of(2)), ("source up: ok".to_owned(), "sink writable: ok".to_owned()));
    assert!(of(1).starts_with("source down: failed "), "{tried}");
    assert!(of(3).starts_with("sink lost: failed opening no/such/directory"), "{tried}");
}

#[test]
fn check_counts_what_is_in_the_file_and_places_its_warnings() {
    let directory = tempfile::tempdir().unwrap();
    let config = "\
jobs: {enabled: true}
sources:
  bus: {salt_bus: {}}
sinks:
  out:
    webhook: {url: 'http://127.0.0.1:1/', tls: {verify: false}}
";
    std::fs::write(directory.path().join("saltern.yaml"), config).unwrap();
    let checked = output(directory.path(), &["check", "--config", "saltern.yaml"]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    assert_eq!(text(&checked.stdout), "saltern.yaml: 1 source and 1 sink, no mistakes\n");
    let said = text(&checked.stderr);
    assert!(said.contains("warning: saltern.yaml:6:5: sinks.out: `tls` is not used"), "{said}");
    let (_, _, found) = check_as_json(directory.path(), &[]);
    let findings = found["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["line"] == 6).unwrap();
    assert_eq!(finding["column"], 5);
}

#[test]
fn each_key_under_an_old_name_has_its_line_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let source =
        |number| format!("  s{number}: {{salt_bus: {{address: s{number}.ipc, patience: 1s}}}}\n");
    let sources = (1..=8).map(source).collect::<Vec<_>>().concat();
    let config = format!("sources:\n{sources}sinks: {{out: {{blackhole: {{}}}}}}");
    let daemon = Daemon::start(directory.path(), &config);
    let told = || daemon.log().matches("`patience` is the old name of this key").count();
    until("each warning", || told() == 8);
    let log = daemon.log();
    let mut places: Vec<_> = log
        .lines()
        .filter(|line| line.contains("is the old name of this key"))
        .filter_map(|line| line.split("saltern.yaml:").nth(1)?.split(':').next()?.parse().ok())
        .collect::<Vec<usize>>();
    assert_eq!(places.len(), 8, "{log}");
    assert!(places.is_sorted(), "{log}");
    places.dedup();
    assert_eq!(places.len(), 8, "{log}");
    daemon.stop();
}

#[test]
fn a_missing_ca_file_is_named_with_the_reason_wherever_it_shows() {
    let directory = tempfile::tempdir().unwrap();
    let config = "\
state_dir: state
http: {listen: '127.0.0.1:0'}
log: {format: json}
sources:
  bus: {salt_bus: {address: bus.ipc}}
sinks:
  tables: {clickhouse: {url: 'https://127.0.0.1:1', database: x, tls: {ca: absent.pem}}}
  topics: {kafka: {brokers: ['127.0.0.1:1'], topic: x, tls: {ca: absent.pem}}}
";
    std::fs::write(directory.path().join("saltern.yaml"), config).unwrap();
    let says_all = |said: &str| said.contains("absent.pem") && said.contains("No such file");

    let tried = output(directory.path(), &["check", "--connect", "--config", "saltern.yaml"]);
    let said = text(&tried.stdout);
    for sink in ["tables", "topics"] {
        let line = said.lines().find(|line| line.starts_with(&format!("failed  sink {sink}: ")));
        assert!(line.is_some_and(says_all), "{said}");
    }

    let run = Running::start(&mut saltern(directory.path(), &["run", "--config", "saltern.yaml"]));
    let address = run.address("\"address\":\"");
    let token = std::fs::read_to_string(directory.path().join("state/http-token")).unwrap();
    let token = Some(token.trim());
    let status =
        || serde_json::from_str::<Value>(&get(&address, "/api/v1/status", token).2).unwrap();
    eventually("both are parked", || {
        status()["sinks"].as_array().unwrap().iter().all(|sink| sink["parked"] == true)
    });
    for sink in status()["sinks"].as_array().unwrap() {
        assert!(says_all(&sink["last_error"].to_string()), "{sink}");
    }
}

#[test]
fn wrong_usage_is_2() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in
        [&["nonsense"][..], &["events", "--tag", "b["], &["events", "--bus", "http://x"]]
    {
        let output = output(directory.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn sinks_and_schema_name_every_kind() {
    let directory = tempfile::tempdir().unwrap();
    let kinds = output(directory.path(), &["sinks", "--output", "json"]);
    let kinds: Value = serde_json::from_slice(&kinds.stdout).unwrap();
    let table = output(directory.path(), &["sinks"]);
    let table = text(&table.stdout);
    let schema = output(directory.path(), &["schema"]);
    assert!(schema.status.success());
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    for (section, expected) in [
        ("sinks", &["rawfile_json", "sqlite3", "local", "blackhole"][..]),
        ("sources", &["salt_bus", "zeromq", "replay"]),
    ] {
        let listed = kinds[section].as_array().unwrap();
        let names: Vec<_> = listed.iter().map(|kind| kind["name"].as_str().unwrap()).collect();
        for name in expected {
            assert!(names.contains(name), "{name} is not in {names:?}");
        }
        let entry = &schema["properties"][section]["additionalProperties"];
        for (name, kind) in names.iter().zip(listed) {
            let about = kind["about"].as_str().unwrap();
            assert!(
                table.lines().any(|line| line.contains(name) && line.contains(about)),
                "{table}"
            );
            assert!(entry["properties"][name].is_object(), "{entry:#}");
        }
        assert_eq!(entry["oneOf"].as_array().unwrap().len(), names.len());
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = saltern(directory.path(), &["schema"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert_eq!(said, "");
}

#[test]
fn completions_know_the_commands() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = output(directory.path(), &["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let script = text(&output.stdout);
        for word in ["demo", "events", "check", "completions"] {
            assert!(script.contains(word), "{word} is not in the script for {shell}");
        }
    }
}

fn stored(directory: &Path) -> (u32, u32) {
    let lines = std::fs::read_to_string(directory.join("demo/events.jsonl")).unwrap();
    for line in lines.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event["tag"].is_string() && event["data"]["_stamp"].is_string(), "{line}");
    }
    let database = rusqlite::Connection::open(directory.join("demo/events.db")).unwrap();
    let rows = database.query_row("SELECT count(*) FROM salt_events", [], |row| row.get(0));
    (lines.lines().count().try_into().unwrap(), rows.unwrap())
}

const DEMO: &[&str] = &["demo", "--listen", "127.0.0.1:0", "--directory", "demo"];

#[test]
fn a_demo_fills_its_files_and_a_second_one_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut before = 0;
    for seconds in ["3", "1"] {
        let output = output(directory.path(), &[DEMO, &["--seconds", seconds]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        assert!(
            said.contains("What to look at next") && said.contains("sqlite3 demo/events.db"),
            "{said}"
        );
        let (lines, rows) = stored(directory.path());
        assert_eq!(lines, rows);
        assert!(lines > before + 100, "{lines} after {before}");
        before = lines;
    }
}

#[test]
fn a_demo_ends_at_an_interrupt_and_its_bus_can_be_watched() {
    let directory = tempfile::tempdir().unwrap();
    let mut demo = Running::start(&mut saltern(directory.path(), DEMO));
    let url = format!("http://{}", demo.address("http://"));

    // The token is in a file of the state directory.
    let jobs = ["events", "--url", &url, "--state-dir", "demo/state", "--count", "5"];
    let jobs = [&jobs[..], &["--output", "json", "--tag", "salt/job/*"]].concat();
    let jobs = output(directory.path(), &jobs);
    assert!(jobs.status.success(), "{}", text(&jobs.stderr));
    let jobs = text(&jobs.stdout);
    assert_eq!(jobs.lines().count(), 5, "{jobs}");
    for line in jobs.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event["tag"].as_str().unwrap().starts_with("salt/job/"), "{line}");
        assert_eq!(
            (&event["source"], &event["master_id"]),
            (&"bus".into(), &"salt.example.com".into())
        );
        assert!(event["received"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
        assert!(event["data"]["_stamp"].is_string());
    }

    // The demo says to open a browser with this.
    let console = output(directory.path(), &["console", "--state-dir", "demo/state"]);
    let page = text(&console.stdout);
    assert!(page.starts_with(&format!("{url}/?token=")), "{page} {}", text(&console.stderr));

    let returns = ["events", "--bus", "demo/bus.ipc", "--count", "3", "--tag", "salt/job/*/ret/*"];
    let returns = output(directory.path(), &returns);
    assert!(returns.status.success(), "{}", text(&returns.stderr));
    for line in text(&returns.stdout).lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words.len(), 5, "{line}");
        assert!(words[1].ends_with(words[2]), "{line}");
        assert!(["ok", "failed"].contains(&words[4]), "{line}");
    }

    let mut tail =
        Running::start(&mut saltern(directory.path(), &["events", "--state-dir", "demo/state"]));
    tail.stdout.recv_timeout(DEADLINE).unwrap();
    tail.interrupt();
    assert_eq!(tail.wait().code(), Some(0));

    demo.interrupt();
    assert_eq!(demo.wait().code(), Some(0));
    let (lines, rows) = stored(directory.path());
    assert_eq!(lines, rows);
    assert!(!directory.path().join("demo/bus.ipc").exists());
}

#[test]
fn http_null_is_no_address_and_leaves_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let config = "state_dir: state\nhttp: null\nlog: {format: json}\n\
                  sources: {bus: {salt_bus: {address: 'unix:nowhere'}}}\nsinks: {out: {blackhole: {}}}\n";
    std::fs::write(directory.path().join("saltern.yaml"), config).unwrap();
    let run = ["run", "--config", "saltern.yaml"];
    let mut daemon = Running::start(&mut saltern(directory.path(), &run));
    let socket = directory.path().join("state/http.sock");
    eventually("the socket", || UnixStream::connect(&socket).is_ok());
    let spill = output(directory.path(), &["spill", "--config", "saltern.yaml"]);
    assert!(spill.status.success(), "{}", text(&spill.stderr));
    // The daemon itself says so.
    let console = output(directory.path(), &["console", "--config", "saltern.yaml"]);
    let said = text(&console.stderr);
    assert!(said.contains("http.listen is null"), "{said}");
    let tables = ["tcp", "tcp6"].map(|table| format!("/proc/{}/net/{table}", daemon.child.id()));
    let inodes = std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap();
    let inodes = inodes.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    let inodes: Vec<_> = inodes.map(|link| link.display().to_string()).collect();
    for line in tables.iter().flat_map(|table| {
        let table = std::fs::read_to_string(table).unwrap_or_default();
        table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    }) {
        let inode = line.split_whitespace().nth(9).unwrap();
        assert!(!inodes.contains(&format!("socket:[{inode}]")), "{line}");
    }
    daemon.interrupt();
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn events_of_nobody() {
    let directory = tempfile::tempdir().unwrap();
    // A port that was free a moment ago and that nobody else is given while it lingers.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let daemon = output(directory.path(), &["events", "--url", &url]);
    assert_eq!(daemon.status.code(), Some(1));
    let said = text(&daemon.stderr);
    assert!(said.contains("is the daemon running"), "{said}");
    let bus = output(directory.path(), &["events", "--bus", "none.ipc"]);
    assert_eq!(bus.status.code(), Some(1));
    let said = text(&bus.stderr);
    assert!(said.contains("none.ipc") && said.contains("is the master running"), "{said}");
}

#[test]
fn the_http_side_of_run() {
    let directory = tempfile::tempdir().unwrap();
    let config = "\
state_dir: state
http: {listen: '127.0.0.1:0', token: hunter2}
log: {format: json}
shutdown_deadline: 5s
sources:
  bus: {salt_bus: {address: bus.ipc}}
sinks:
  archive: {rawfile_json: {filename: events.jsonl}, batch: {linger: 10ms}}
";
    let file = directory.path().join("saltern.yaml");
    std::fs::write(&file, config).unwrap();
    let mut run =
        Running::start(&mut saltern(directory.path(), &["run", "--config", "saltern.yaml"]));
    let address = run.address("\"address\":\"");

    // Probes and scrapers read without the token, everything else wants it.
    assert_eq!(get(&address, "/healthz", None).0, 200);
    assert_eq!(get(&address, "/readyz", None).0, 503, "the bus is not there");
    for path in ["/", "/api/v1/status", "/api/v1/events", "/nothing"] {
        for token in [None, Some("hunter"), Some("hunter22"), Some("")] {
            let (code, head, _) = get(&address, path, token);
            assert_eq!(code, 401, "{path} {token:?}");
            assert!(head.contains("www-authenticate: bearer"), "{head}");
        }
    }
    let token = Some("hunter2");
    assert!(get(&address, "/", token).2.contains("/api/v1/status"));
    assert_eq!(get(&address, "/nothing", token).0, 404);
    assert_eq!(get(&address, "/api/v1/events?tag=b%5B", token).0, 400);
    let status =
        || serde_json::from_str::<Value>(&get(&address, "/api/v1/status", token).2).unwrap();
    assert_eq!(status()["sources"][0]["connected"], false);

    let mut bus = Bus::listen(&directory.path().join("bus.ipc"));
    let mut master = bus.accept();
    eventually("ready", || get(&address, "/readyz", None).0 == 200);

    // The token of the configuration lets `saltern events` in.
    std::fs::write(&file, config.replace("127.0.0.1:0", &address)).unwrap();
    let tail = ["events", "--config", "saltern.yaml", "--output", "json", "--count", "2"];
    let tail = Running::start(&mut saltern(directory.path(), &tail));
    let seen = loop {
        bus.send(&mut master, 10);
        match tail.stdout.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => break line,
            Err(RecvTimeoutError::Timeout) => {}
            Err(error) => panic!("{error}: {}", text(&tail.output().stderr)),
        }
    };
    assert!(serde_json::from_str::<Value>(&seen).unwrap()["tag"].is_string());
    assert!(tail.output().status.success());
    let other = format!("http://{address}");
    let refused = output(directory.path(), &["events", "--config", "none.yaml", "--url", &other]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("needs its token"), "{}", text(&refused.stderr));

    let stored = || status()["sinks"][0]["events"].as_u64().unwrap();
    eventually("stored", || stored() > 0 && status()["sinks"][0]["queue_events"] == 0.0);
    let metrics = get(&address, "/metrics", None).2;
    for metric in [
        "saltern_source_events_total{source=\"bus\"}",
        "saltern_sink_events_total{sink=\"archive\"}",
        "saltern_build_info{version=",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        let line = metrics.lines().find(|line| line.starts_with(metric));
        let value: f64 = line
            .unwrap_or_else(|| panic!("no {metric}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(value > 0.0, "{metric}");
    }

    // A request that never ends does not hold the end up, nor does a stream that nobody reads.
    let mut slow = TcpStream::connect(&address).unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHo").unwrap();
    let mut deaf = TcpStream::connect(&address).unwrap();
    let request =
        "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer hunter2\r\n\r\n";
    deaf.write_all(request.as_bytes()).unwrap();
    let mut first = [0; 12];
    deaf.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    bus.send(&mut master, 20_000);
    let start = Instant::now();
    run.interrupt();
    assert_eq!(run.wait().code(), Some(0));
    assert!(start.elapsed() < STOP_LIMIT, "{:?}", start.elapsed());
}

#[test]
fn local_prints_until_nobody_reads() {
    let directory = tempfile::tempdir().unwrap();
    let config = "\
state_dir: state
http: {listen: '127.0.0.1:0'}
log: {format: json}
shutdown_deadline: 2s
sources:
  bus: {salt_bus: {address: bus.ipc}}
sinks:
  screen: {local: {format: json}, batch: {linger: 10ms}}
";
    std::fs::write(directory.path().join("saltern.yaml"), config).unwrap();
    let mut bus = Bus::listen(&directory.path().join("bus.ipc"));
    let mut command = saltern(directory.path(), &["run", "--config", "saltern.yaml"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let stderr = lines_of(child.stderr.take().unwrap());
    let mut run = Running { child, stdout: sync_channel(1).1, stderr };
    let address = run.address("\"address\":\"");
    let mut master = bus.accept();
    bus.send(&mut master, 3);
    for _ in 0..3 {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        assert!(event["tag"].is_string() && event["data"].is_object(), "{line}");
    }
    drop(stdout);
    bus.send(&mut master, 3);
    let token = std::fs::read_to_string(directory.path().join("state/http-token")).unwrap();
    let token = token.trim();
    eventually("parked", || get(&address, "/readyz", None).0 == 503);
    let status: Value =
        serde_json::from_str(&get(&address, "/api/v1/status", Some(token)).2).unwrap();
    assert_eq!(status["sinks"][0]["parked"], true);
    run.interrupt();
    assert_eq!(run.wait().code(), Some(1));
    run.says("saltern: the sink screen: printing to standard output, which nobody reads any more");
}

#[test]
fn import_master_prints_what_saltern_takes() {
    let masters = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/masters");
    let folder = tempfile::tempdir().unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&masters)
        .unwrap()
        .map(|entry| entry.unwrap())
        // Tests of several files are in folders, and have tests of their own.
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut pages = String::new();
    for name in &names {
        let printed = output(&masters, &["import-master", name]);
        assert!(printed.status.success(), "{name}: {}", text(&printed.stderr));
        let page = text(&printed.stdout);
        std::fs::write(folder.path().join("saltern.yaml"), &page).unwrap();
        let checked = output(folder.path(), &["check", "--config", "saltern.yaml"]);
        assert!(checked.status.success(), "{name}: {}\n{page}", text(&checked.stderr));
        pages += &format!("{page}\n");
    }
    same_as_golden("import-master.txt", &pages);

    // A file that is included is read too.
    std::fs::create_dir(folder.path().join("master.d")).unwrap();
    std::fs::write(folder.path().join("master"), "event_return: mysql\n").unwrap();
    std::fs::write(folder.path().join("master.d/a.conf"), "event_return: rawfile_json\n").unwrap();
    std::fs::write(folder.path().join("master.d/b.txt"), "event_return: splunk\n").unwrap();
    let printed = text(&output(folder.path(), &["import-master", "master"]).stdout);
    assert!(printed.contains("    rawfile_json: {}\n"), "{printed}");
    let missing = output(folder.path(), &["import-master", "nowhere/master"]);
    assert_eq!(missing.status.code(), Some(2));
}
