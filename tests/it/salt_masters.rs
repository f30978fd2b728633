//! Real masters of three releases with two real minions each, and `saltern run` on their bus.
//!
//! Every event that Salt's own `event_return: rawfile_json` stored while saltern was connected has
//! to be in saltern's files, equal as JSON and in the same order. Marker events tell when saltern
//! was connected: one is fired again and again until it shows up in both files. All lines between
//! two markers that both files have are compared, without exception.
//!
//! Salt cannot store values that Python's `json` cannot encode: bytes and dates. It logs that,
//! loses the event, and leaves half a line in its file. These events are provoked, and have to be
//! in saltern's.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::daemon::SALTERN;
use crate::harness::salt::{self, Group, Ipc, LIMIT, MINIONS, More, Salt, program, until};

#[test]
fn salt_3006() {
    everything_salt_stored_is_stored("3006.28", Ipc::Unix);
}

#[test]
fn salt_3007() {
    everything_salt_stored_is_stored("3007.15", Ipc::Unix);
}

#[test]
fn salt_3008() {
    everything_salt_stored_is_stored("3008.3", Ipc::Unix);
}

#[test]
fn salt_3008_over_tcp() {
    everything_salt_stored_is_stored("3008.3", Ipc::Tcp);
}

fn everything_salt_stored_is_stored(version: &'static str, ipc: Ipc) {
    let dir = salt::folder();
    let mut salt = Salt::start(version, dir.path(), ipc, &More::default());
    let mut daemon = Daemon::start(dir.path(), salt.bus());
    until("saltern to be ready", LIMIT, || daemon.is_ready().then_some(()));

    salt.run("saltutil.sync_modules", &[]);
    until("the minions to have taken up our module", LIMIT, || {
        // They load synchronised files a while after they have reported them.
        let jid = salt.run("sys.list_functions", &["raw"]);
        let returns = returns_of(&jid);
        until("the returns", LIMIT, || {
            let lines = daemon.lines();
            let mut values = returns.iter().map(|wanted| lines.iter().find(|l| tag(l) == wanted));
            let has_functions = |line: &Value| line["data"]["return"] != json!([]);
            values.try_fold(true, |all, line| Some(all && has_functions(line?)))
        })
        .then_some(())
    });
    let begin = common_marker(&mut salt, &daemon, "before");
    salt.run("test.ping", &[]);
    salt.run("grains.items", &[]);
    salt.run("cmd.run", &["echo Grüße; exit 3"]);
    let highstate = salt.run("state.apply", &["broken"]);
    let large = salt.run("cmd.run", &[r"head -c 204800 /dev/zero | tr '\0' x"]);
    let binary = salt.run("raw.data", &[]);
    let dated = salt.run("raw.dated", &[]);
    salt.run("cmd.run", &[r"printf '\377\376'"]);
    salt.send_from_minion("app/deployed");
    until("a beacon", LIMIT, || {
        let lines = daemon.lines();
        let between = &lines[position(&lines, &begin)..];
        between.iter().any(|line| tag(line).starts_with("salt/beacon/web-")).then_some(())
    });
    let end = common_marker(&mut salt, &daemon, "end");

    let (ours, salts) = (daemon.lines(), parse(&salt.stored()));
    let (ours, salts) = (between(&ours, &begin, &end), between(&salts, &begin, &end));
    let unstorable = [returns_of(&binary), returns_of(&dated)].concat();
    assert_equal(&ours, &salts, &unstorable);
    for minion in MINIONS {
        let data = |jid: &str| &find(&ours, &format!("salt/job/{jid}/ret/{minion}"))["data"];
        assert_eq!(data(&binary)["return"], "\u{fffd}\u{fffd} raw \0");
        let dates = json!({"sharp": "2026-11-21T23:33:36", "late": "2026-11-21T23:33:36.000005"});
        assert_eq!(data(&dated)["return"], dates);
        assert_eq!(data(&large)["return"].as_str().unwrap().len(), 204_800);
        let states = data(&highstate);
        assert_eq!(
            (&states["retcode"], &states["success"]),
            (&json!(2), &json!(false)),
            "{states}"
        );
    }
    assert_eq!(find(&ours, "app/deployed")["data"]["data"]["size"], 7);
    let log = salt.log();
    for kind in ["bytes", "datetime"] {
        let line = format!("Object of type {kind} is not JSON serializable");
        assert_eq!(log.matches(&line).count(), MINIONS.len(), "{line}");
    }
    assert!(daemon.metric("saltern_source_gaps_total") < 1.0);
    // Each sink has met the bytes of each minion.
    assert!(daemon.metric("saltern_sink_lossy_values_total") >= 4.0);

    salt.restart_master();
    until("saltern to be ready again", LIMIT, || daemon.is_ready().then_some(()));
    let begin = common_marker(&mut salt, &daemon, "after-restart");
    salt.run("test.ping", &[]);
    salt.run("state.apply", &["broken"]);
    salt.run("grains.items", &[]);
    let end = common_marker(&mut salt, &daemon, "after-restart-end");

    let (ours, salts) = (daemon.lines(), parse(&salt.stored()));
    assert_equal(&between(&ours, &begin, &end), &between(&salts, &begin, &end), &[]);
    assert!(daemon.metric("saltern_source_gaps_total") >= 1.0);
    assert!(daemon.metric("saltern_source_gap_seconds_total") > 0.0);
    assert!(daemon.metric("saltern_source_bad_frames_total") < 1.0);
    assert!(daemon.is_ready());

    daemon.group.stop(LIMIT);
    assert_eq!(daemon.rows(version), daemon.lines(), "the table differs from the file");
}

/// Fires markers until one is in saltern's file and in Salt's, and gives its tag.
fn common_marker(salt: &mut Salt, daemon: &Daemon, name: &str) -> String {
    for round in 0..30 {
        let marker = format!("marker/{name}/{round}");
        salt.fire(&marker);
        let has = |lines: &[Value]| lines.iter().any(|line| tag(line) == marker);
        // A subscriber that was not connected when it was fired will never have it.
        let patience = Duration::from_secs(if round < 5 { 2 } else { 10 });
        let began = std::time::Instant::now();
        let found = until("a marker, or the time for another", LIMIT, || {
            let found = has(&daemon.lines()) && has(&parse(&salt.stored()));
            (found || began.elapsed() > patience).then_some(found)
        });
        if found {
            return marker;
        }
    }
    panic!("no marker `{name}` reached both files:\n{}", daemon.log());
}

/// Everything that Salt stored is in ours, equal and in order; ours has the events with the tags
/// `unstorable` besides, and nothing else.
fn assert_equal(ours: &[Value], salts: &[Value], unstorable: &[String]) {
    let (extra, rest): (Vec<&Value>, Vec<&Value>) =
        ours.iter().partition(|line| unstorable.iter().any(|lost| tag(line) == lost));
    for (mine, salts) in rest.iter().zip(salts) {
        assert_eq!(*mine, salts);
    }
    assert_eq!(rest.len(), salts.len());
    let mut extra: Vec<&str> = extra.into_iter().map(tag).collect();
    extra.sort_unstable();
    let mut unstorable: Vec<&str> = unstorable.iter().map(String::as_str).collect();
    unstorable.sort_unstable();
    assert_eq!(extra, unstorable);
}

fn returns_of(jid: &str) -> Vec<String> {
    MINIONS.iter().map(|minion| format!("salt/job/{jid}/ret/{minion}")).collect()
}

fn tag(line: &Value) -> &str {
    line["tag"].as_str().unwrap()
}

fn position(lines: &[Value], marker: &str) -> usize {
    lines.iter().position(|line| tag(line) == marker).unwrap()
}

fn between(lines: &[Value], begin: &str, end: &str) -> Vec<Value> {
    lines[position(lines, begin)..=position(lines, end)].to_vec()
}

fn find<'a>(lines: &'a [Value], wanted: &str) -> &'a Value {
    lines.iter().find(|line| tag(line) == wanted).unwrap_or_else(|| panic!("there is no {wanted}"))
}

/// The whole lines of a file. An event that Salt could not encode is half a line with no line feed,
/// so the next event stands behind it on the same line. The longest end of such a line that is an
/// event counts. Half a line at the end is still being written.
fn parse(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes)
        .unwrap_or_else(|error| std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap());
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    let event = |text: &str| {
        let value: Value = serde_json::from_str(text).ok()?;
        value["tag"].is_string().then_some(value)
    };
    whole
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            event(line).unwrap_or_else(|| {
                let mut starts = line.match_indices(r#"{"data": "#).skip(1);
                starts.find_map(|(at, _)| event(&line[at..])).unwrap_or_else(|| {
                    panic!("no event in {}", line.chars().take(400).collect::<String>())
                })
            })
        })
        .collect()
}

/// `saltern run` with its files in a folder.
struct Daemon {
    group: Group,
    dir: PathBuf,
    http: SocketAddr,
}

impl Daemon {
    fn start(dir: &Path, bus: &str) -> Self {
        let dir = dir.join("saltern");
        fs::create_dir(&dir).unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        let config = json!({
            "state_dir": at("state"),
            "http": {"listen": "127.0.0.1:0"},
            "log": {"format": "json"},
            "sources": {"bus": {"salt_bus": {"address": bus}}},
            "sinks": {
                "file": {"rawfile_json": {"filename": at("events")}},
                "table": {"sqlite3": {"database": at("events.db")}},
            },
        });
        // JSON is YAML.
        fs::write(dir.join("saltern.yaml"), config.to_string()).unwrap();
        let mut command = Command::new(SALTERN);
        command.arg("run").arg("--config").arg(dir.join("saltern.yaml"));
        let group = Group::start(&mut command, &dir.join("log"));
        let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        let http = until("saltern to listen", LIMIT, || {
            let log = log();
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find_map(|line| line["address"].as_str()?.parse().ok())
        });
        Daemon { group, dir, http }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The lines of `rawfile_json`.
    fn lines(&self) -> Vec<Value> {
        parse(&fs::read(self.dir.join("events")).unwrap_or_default())
    }

    /// The rows of `sqlite3`.
    fn rows(&self, version: &str) -> Vec<Value> {
        let script = "\
import json, sqlite3, sys
for tag, data in sqlite3.connect(sys.argv[1]).execute('SELECT tag, data FROM salt_events ORDER BY id'):
    print(json.dumps({'tag': tag, 'data': json.loads(data)}))
";
        let mut python = Command::new(program(version, "python"));
        let output = python.args(["-c", script]).arg(self.dir.join("events.db")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        parse(&output.stdout)
    }

    fn is_ready(&self) -> bool {
        self.get("/readyz").starts_with("HTTP/1.1 200")
    }

    /// The sum of a metric over its labels.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let values = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let values: Vec<f64> =
            values.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!values.is_empty(), "there is no {name} in\n{text}");
        values.iter().sum()
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect_timeout(&self.http, LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: saltern\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}
