//! Salt's word on how each return went, which every reader of saltern has to repeat.
//!
//! `tests/fixtures/outcomes/` holds events from the buses of masters of three releases. With each
//! stands the word of `salt`, `salt-run` or `salt-call`: worked, failed, or nothing. Beside them
//! stand the recordings in `tests/captures/`, whose outcomes the oracle below gives. It reads JSON
//! and shares no code with saltern.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::clickhouse::chdb::Chdb;
use crate::harness::daemon::{Daemon, saltern, until};
use rusqlite::Connection;
use saltern::event::job_return::JobReturn;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The master whose bus this is.
const MASTER: &str = "lower";

/// An event and its expected outcome.
struct Line {
    /// The file, and the command to the master.
    case: String,
    /// It came by the bus of a master of masters.
    is_above: bool,
    event: Value,
    outcome: String,
    is_test: bool,
    /// The job that this is a return of.
    job: Option<String>,
}

impl Line {
    fn tag(&self) -> &str {
        self.event["tag"].as_str().unwrap()
    }

    /// The minion that has returned.
    fn minion(&self) -> Option<&str> {
        let (_, minion) = self.tag().strip_prefix("salt/job/")?.split_once("/ret/")?;
        Some(minion)
    }

    /// True of a return of a runner or a wheel function.
    fn is_of_runner(&self) -> bool {
        let tag = self.tag();
        (tag.starts_with("salt/run/") || tag.starts_with("salt/wheel/")) && tag.ends_with("/ret")
    }

    /// The minion that has returned, or the master, which runs runners itself.
    fn returned_by(&self) -> Option<&str> {
        if self.is_of_runner() { Some(MASTER) } else { self.minion() }
    }

    /// The job, and who has returned of it.
    fn part(&self) -> Option<(&str, &str)> {
        Some((self.job.as_deref()?, self.returned_by()?))
    }
}

fn in_tests(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn files(folder: &str, end: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(in_tests(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("salt-") && name.ends_with(end)
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {folder}");
    files
}

fn values(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The word of real masters. An event that is no return says nothing.
fn said_by_salt() -> Vec<Line> {
    let mut lines = Vec::new();
    for path in files("fixtures/outcomes", ".jsonl") {
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        for line in values(&path) {
            lines.push(Line {
                case: format!("{file}: {}", line["case"].as_str().unwrap()),
                is_above: line["bus"] == "master of masters",
                event: json!({"tag": line["tag"], "data": line["data"]}),
                outcome: line["outcome"].as_str().unwrap_or("unknown").to_owned(),
                is_test: line["test"] == true,
                job: line["job"].as_str().map(str::to_owned),
            });
        }
    }
    lines
}

/// The recordings, judged by the oracle.
fn recorded() -> Vec<Line> {
    let mut lines = Vec::new();
    for path in files("captures", ".events.jsonl") {
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        for event in values(&path) {
            let data = &event["data"];
            let (outcome, is_test) = oracle::judged(data);
            let job = data["jid"].as_str().filter(|jid| jid.len() == 20).map(str::to_owned);
            let case = format!("{file}: {}", event["tag"]);
            let outcome = outcome.to_owned();
            lines.push(Line { case, is_above: false, event, outcome, is_test, job });
        }
    }
    lines
}

/// The rule for how a return went, once more and over JSON.
mod oracle {
    use super::Value;

    #[derive(Default)]
    struct Signs {
        bad: bool,
        said: bool,
        test: bool,
    }

    pub(super) fn judged(data: &Value) -> (&'static str, bool) {
        let mut signs = Signs::default();
        look(data, &mut signs);
        let outcome = match (signs.bad, signs.said) {
            (true, _) => "failed",
            (false, true) => "worked",
            (false, false) => "unknown",
        };
        (outcome, signs.test)
    }

    fn look(data: &Value, signs: &mut Signs) {
        for code in each(&data["retcode"]).filter(|code| code.is_number()) {
            signs.said = true;
            signs.bad |= code != 0;
        }
        for success in each(&data["success"]).filter_map(Value::as_bool) {
            signs.said = true;
            signs.bad |= !success;
        }
        match &data["fun"] {
            Value::String(fun) if fun.starts_with("runner.state.orch") => {
                for states in each(&data["return"]["data"]) {
                    look_at_states(states, signs);
                }
            }
            Value::String(fun) if fun.starts_with("state.") => {
                look_at_states(&data["return"], signs);
            }
            Value::Array(functions) => {
                for (place, fun) in functions.iter().filter_map(Value::as_str).enumerate() {
                    let value = match &data["return"] {
                        Value::Array(values) => &values[place],
                        by_name => &by_name[fun],
                    };
                    if fun.starts_with("state.") {
                        look_at_states(value, signs);
                    }
                }
            }
            _ => {}
        }
    }

    fn look_at_states(value: &Value, signs: &mut Signs) {
        let states = value.as_object().into_iter().flatten();
        for (_, state) in states.filter(|(key, _)| key.contains("_|-")) {
            signs.bad |= state["result"] == false;
            signs.test |= state.get("result") == Some(&Value::Null);
        }
    }

    fn each(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
        match value {
            Value::Object(values) => Box::new(values.values()),
            Value::Array(values) => Box::new(values.iter()),
            value => Box::new(std::iter::once(value)),
        }
    }
}

#[test]
fn returns_went_as_salt_said() {
    let mut wrong = Vec::new();
    for line in said_by_salt().iter().chain(&recorded()) {
        let payload = rmp_serde::to_vec(&line.event["data"]).unwrap();
        let verdict = JobReturn::of(&payload).verdict();
        let found = (verdict.outcome.name(), verdict.test);
        if found != (line.outcome.as_str(), line.is_test) {
            let expected = (&line.outcome, line.is_test);
            wrong.push(format!("{} {}: {found:?}, Salt {expected:?}", line.case, line.tag()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A job cache is handed the same returns in another dress, and changed.
#[test]
fn what_is_handed_to_a_job_cache_went_as_salt_said() {
    for line in values(&in_tests("fixtures/outcomes/handed-3008.jsonl")) {
        let Some(outcome) = line["outcome"].as_str() else { continue };
        let payload = rmp_serde::to_vec(&line["load"]).unwrap();
        let verdict = JobReturn::of(&payload).verdict();
        assert_eq!(verdict.outcome.name(), outcome, "{line}");
    }
}

/// All events, written as a recording.
struct Recording {
    folder: TempDir,
    lines: Vec<Line>,
}

impl Recording {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<_> = said_by_salt().into_iter().chain(recorded()).collect();
        let write = |name: &str, takes: &dyn Fn(&Line) -> bool| {
            let lines = lines.iter().filter(|line| takes(line));
            let texts: Vec<_> = lines.map(|line| line.event.to_string()).collect();
            fs::write(folder.path().join(name), texts.join("\n") + "\n").unwrap();
        };
        write("events", &|_| true);
        write("below", &|line| !line.is_above);
        write("above", &|line| line.is_above);
        Recording { folder, lines }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a configuration with these sinks and this beside them.
    fn configure(&self, sinks: &Value, more: &Value) -> PathBuf {
        let mut config = json!({
            "master_id": MASTER,
            "state_dir": self.path("state"),
            "shutdown_deadline": "3s",
            "log": {"format": "json"},
            "sources": {"bus": {"replay": {"path": self.path("events")}}},
            "sinks": sinks,
        });
        let fields = config.as_object_mut().unwrap();
        fields.extend(more.as_object().cloned().unwrap());
        let path = self.path("saltern.yaml");
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// The last return of each job by each that has returned of it.
    fn parts(&self) -> BTreeMap<(&str, &str), &Line> {
        let mut parts = BTreeMap::new();
        for line in &self.lines {
            let Some(part) = line.part() else { continue };
            let known: Option<&Line> = parts.insert(part, line);
            let is_same = |known: &Line| known.outcome == line.outcome;
            assert!(known.is_none_or(is_same), "{}: there are two outcomes", line.case);
        }
        parts
    }
}

/// The events of a file that `rawfile_json` wrote, without repeats.
fn events_in(path: &Path) -> BTreeSet<String> {
    values(path).iter().map(in_order).collect()
}

/// Tag and data as text.
fn in_order(event: &Value) -> String {
    json!([event["tag"], event["data"]]).to_string()
}

#[test]
fn every_reader_tells_what_salt_said() {
    let recording = Recording::new();
    let mut sinks = json!({"database": {"sqlite3": {"database": recording.path("events.db")}}});
    let filters = [
        ("worked", json!({"outcome": ["worked"]})),
        ("failed", json!({"outcome": ["failed"]})),
        ("unknown", json!({"outcome": ["unknown"]})),
        ("true", json!({"success": true})),
        ("false", json!({"success": false})),
    ];
    for (name, filter) in &filters {
        let file = json!({"filename": recording.path(name)});
        sinks[*name] = json!({"rawfile_json": file, "filter": filter});
    }
    let config = recording.configure(
        &sinks,
        &json!({
            "http": {"listen": "127.0.0.1:0"},
            "jobs": {"enabled": true, "keep_jobs": "3650d"},
            // Series of minions would go with their keys.
            "estate": {"minions": false},
            "sources": {
                "bus": {"replay": {"path": recording.path("below")}},
                "above": {"replay": {"path": recording.path("above")}, "master_id": "above"},
                // This one goes on, so that the daemon stays to be asked.
                "other": {"returner": {"bind": format!("ipc://{}", recording.path("r").display())}},
            },
        }),
    );
    let daemon = Daemon::listening(&config);
    let count = recording.lines.len() as u64;
    until("everything is stored", || daemon.stored("database") == count);
    let counted = |outcomes: &[&str]| {
        let lines = recording.lines.iter();
        lines.filter(|line| outcomes.contains(&&*line.outcome)).count() as u64
    };
    for (name, outcomes) in [
        ("worked", &["worked"][..]),
        ("failed", &["failed"]),
        ("unknown", &["unknown"]),
        ("true", &["worked"]),
        ("false", &["failed"]),
    ] {
        until(&format!("`{name}` is stored"), || daemon.stored(name) == counted(outcomes));
        let chosen = recording.lines.iter().filter(|line| outcomes.contains(&&*line.outcome));
        let expected: BTreeSet<_> = chosen.map(|line| in_order(&line.event)).collect();
        assert_eq!(events_in(&recording.path(name)), expected, "the filter {name}");
    }
    in_tables(&recording);
    in_the_job_cache(&recording, &daemon, &config);
    in_the_metrics(&recording, &daemon);
}

/// `sqlite3` has the outcome in a column of its own, and Salt's word in Salt's.
fn in_tables(recording: &Recording) {
    let database = Connection::open(recording.path("events.db")).unwrap();
    let rows = |sql: &str, parameters: &[&str]| -> Vec<(String, String)> {
        let mut select = database.prepare_cached(sql).unwrap();
        let parameters = rusqlite::params_from_iter(parameters);
        let rows = select.query_map(parameters, |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let of_job = "SELECT outcome, success FROM salt_returns WHERE jid = ? AND id = ?";
    for line in &recording.lines {
        let jid = line.event["data"]["jid"].as_str().unwrap_or_default();
        let Some(id) = line.returned_by().filter(|_| line.job.is_some()) else { continue };
        let success = match &line.event["data"]["success"] {
            Value::Bool(success) => Some(*success),
            Value::Array(each) => Some(each.iter().all(|one| one == true)),
            Value::Object(each) => Some(each.values().all(|one| one == true)),
            _ => None,
        };
        let success = success.map_or("", |success| if success { "1" } else { "0" });
        let expected = vec![(line.outcome.clone(), success.to_owned())];
        assert_eq!(rows(of_job, &[jid, id]), expected, "{}: {}", line.case, line.tag());
    }
    let of_none = "SELECT outcome, id FROM salt_returns WHERE jid = 'nocache'";
    let without = recording.lines.iter().filter(|line| line.job.is_none());
    let mut expected: Vec<_> = without
        .filter_map(|line| Some((line.outcome.clone(), line.minion()?.to_owned())))
        .collect();
    let mut found = rows(of_none, &[]);
    expected.sort();
    found.sort();
    assert!(!expected.is_empty());
    assert_eq!(found, expected, "the returns of no job");
}

/// The job cache says it of each minion, and of each job, to all who ask.
fn in_the_job_cache(recording: &Recording, daemon: &Daemon, config: &Path) {
    let mut jobs: BTreeMap<&str, BTreeMap<&str, &Line>> = BTreeMap::new();
    for ((jid, returned_by), line) in recording.parts() {
        jobs.entry(jid).or_default().insert(returned_by, line);
    }
    // A job that is not known yet is answered with a text.
    let job = |jid: &str| -> Value {
        serde_json::from_str(&daemon.body(&format!("/api/v1/jobs/{jid}"))).unwrap_or_default()
    };
    let config = config.to_str().unwrap();
    for (jid, parts) in &jobs {
        let is_there = |found: &Value| {
            found["returns"].as_object().is_some_and(|returns| returns.len() == parts.len())
        };
        until(&format!("the returns of {jid} are in the job cache"), || is_there(&job(jid)));
        let found = job(jid);
        for (returned_by, line) in parts {
            let ret = &found["returns"][returned_by];
            let said = json!([ret["outcome"], ret["test"], ret["runner"], ret["conflict"]]);
            let expected = json!([line.outcome, line.is_test, line.is_of_runner(), false]);
            assert_eq!(said, expected, "{}: {found}", line.case);
        }
    }
    let failed: BTreeSet<_> = jobs
        .iter()
        .filter(|(_, parts)| parts.values().any(|line| line.outcome == "failed"))
        .map(|(jid, _)| (*jid).to_owned())
        .collect();
    let listed: Value =
        serde_json::from_str(&daemon.body("/api/v1/jobs?outcome=failed&limit=1000")).unwrap();
    assert_eq!(listed["next"], Value::Null);
    let listed = listed["jobs"].as_array().unwrap().iter();
    let listed: BTreeSet<_> = listed.map(|job| job["jid"].as_str().unwrap().to_owned()).collect();
    assert_eq!(listed, failed, "the jobs that failed");
    // The command line says the same. A process for each would take long.
    let some = jobs.keys().step_by(jobs.len() / 10 + 1);
    for jid in some {
        let said = saltern(&["jobs", "show", jid, "--config", config, "--output", "json"]);
        assert!(said.status.success(), "{said:?}");
        let said: Value = serde_json::from_slice(&said.stdout).unwrap();
        assert_eq!(said["returns"], job(jid)["returns"], "{jid}");
    }
}

/// The estate counts each return once, and so what came by both buses. Wheel functions are no jobs
/// to it.
fn in_the_metrics(recording: &Recording, daemon: &Daemon) {
    let below: BTreeSet<_> =
        recording.lines.iter().filter(|line| !line.is_above).filter_map(Line::part).collect();
    for (outcome, success) in [("worked", "true"), ("failed", "false"), ("unknown", "unknown")] {
        let lines = recording.lines.iter().filter(|line| line.outcome == outcome);
        let counted = lines.filter(|line| {
            line.returned_by().is_some()
                && !line.tag().starts_with("salt/wheel/")
                && !(line.is_above && line.part().is_some_and(|part| below.contains(&part)))
        });
        let expected = u32::try_from(counted.count()).unwrap();
        let label = format!("success=\"{success}\"");
        let found = || daemon.metric("salt_responses_total", &[&label]);
        until(&format!("{expected} returns are counted as {outcome}, not {}", found()), || {
            (found() - f64::from(expected)).abs() < 0.5
        });
    }
}

/// The lines for people.
#[test]
fn the_terminal_shows_what_salt_said() {
    let recording = Recording::new();
    let config = recording.configure(&json!({"out": {"local": {"format": "text"}}}), &json!({}));
    let events = recording.path("events");
    let arguments = ["replay", events.to_str().unwrap(), "--config", config.to_str().unwrap()];
    let said = saltern(&arguments);
    assert!(said.status.success(), "{said:?}");
    let printed = String::from_utf8(said.stdout).unwrap();
    assert_eq!(printed.lines().count(), recording.lines.len());
    for (line, printed) in recording.lines.iter().zip(printed.lines()) {
        let word = match line.outcome.as_str() {
            "worked" => "ok",
            "failed" => "failed",
            _ => "-",
        };
        assert!(printed.contains(line.tag()), "{printed}");
        assert_eq!(printed.split_whitespace().last(), Some(word), "{}: {printed}", line.case);
    }
}

/// The tables of a current ClickHouse.
#[test]
fn chdb_has_what_salt_said() {
    let recording = Recording::new();
    let server = Chdb::start();
    let settings = format!("{{{}}}", server.settings("salt"));
    let config = recording.configure(&json!({}), &json!({}));
    let text = fs::read_to_string(&config).unwrap();
    // The settings are YAML.
    let sinks = format!("\"sinks\":{{\"analytics\":{{\"clickhouse\":{settings}}}}}");
    let text = text.replace("\"sinks\":{}", &sinks);
    fs::write(&config, text).unwrap();
    let events = recording.path("events");
    let arguments = ["replay", events.to_str().unwrap(), "--config", config.to_str().unwrap()];
    let said = saltern(&arguments);
    assert!(said.status.success(), "{said:?}");
    let sql = "SELECT DISTINCT tag, outcome FROM salt.salt_events";
    let found: BTreeSet<Vec<String>> = rows_of(&server.query(sql));
    let expected: BTreeSet<Vec<String>> = recording
        .lines
        .iter()
        .map(|line| [line.tag(), &line.outcome].map(str::to_owned).to_vec())
        .collect();
    assert_eq!(found, expected);
    let sql = "SELECT DISTINCT jid, minion, outcome FROM salt.salt_returns WHERE jid != 'nocache'";
    let lines = recording.lines.iter();
    let expected: BTreeSet<Vec<String>> = lines
        .filter_map(|line| Some([line.job.as_deref()?, line.minion()?, &line.outcome]))
        .map(|row| row.map(str::to_owned).to_vec())
        .collect();
    assert_eq!(rows_of(&server.query(sql)), expected);
}

/// Rows of tab-separated values.
fn rows_of(answer: &str) -> BTreeSet<Vec<String>> {
    answer.lines().map(|row| row.split('\t').map(str::to_owned).collect()).collect()
}
