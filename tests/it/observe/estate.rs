//! The metrics of the estate after the events of real masters. Counters are compared with counts of
//! the same events as JSON, by the rules that salt-exporter documents and by no code of saltern.
//! Every series is compared with the one of salt-exporter v0.13. A burst is counted in full.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::bus::Bus;
use crate::harness::daemon::{Daemon, wait_for};

type Counts = BTreeMap<String, f64>;

/// The counters that salt-exporter has too.
const COUNTERS: [&str; 5] = [
    "salt_new_job_total",
    "salt_expected_responses_total",
    "salt_function_responses_total",
    "salt_scheduled_job_return_total",
    "salt_responses_total",
];

#[test]
fn the_estate_of_salt_3006() {
    counters_are_those_of_the_events("3006.28", 159);
}

#[test]
fn the_estate_of_salt_3007() {
    counters_are_those_of_the_events("3007.15", 177);
}

#[test]
fn the_estate_of_salt_3008() {
    counters_are_those_of_the_events("3008.3", 169);
}

#[test]
fn the_series_of_salt_exporter_with_salt_3007() {
    series_are_those_of_salt_exporter("3007.15", 177);
}

#[test]
fn the_series_of_salt_exporter_with_salt_3008() {
    series_are_those_of_salt_exporter("3008.3", 169);
}

/// Metrics of salt-exporter that its recordings lack: their values are times, or depend on
/// the files of its host.
const NOT_RECORDED: [&str; 3] = [
    "salt_health_minions_total",
    "salt_health_last_heartbeat",
    "salt_responses_last_received_response",
];

/// Sentences of the docs that say in what ours differs.
const IN_SECONDS: &str =
    "`salt_job_duration_seconds` is in seconds; salt-exporter has the milliseconds of Salt there.";
const DELETED: &str = "When a key is deleted or rejected, all series of its minion go";

/// The sentence of the docs by which ours may differ from salt-exporter's, if one allows it.
fn may_differ(
    series: &str,
    ours: Option<f64>,
    theirs: Option<f64>,
    gone: &str,
) -> Option<&'static str> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if series.starts_with("salt_job_duration_seconds{") => {
            (ours * 1000.0 - theirs).abs().lt(&1e-6).then_some(IN_SECONDS)
        }
        (ours, Some(theirs)) if series.contains(gone) => {
            (ours.unwrap_or_default() < theirs).then_some(DELETED)
        }
        _ => None,
    }
}

fn series_are_those_of_salt_exporter(version: &str, count: usize) {
    let read =
        |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let parse = |text: &str| -> Counts {
        let lines = text.lines().filter(|line| line.starts_with("salt_"));
        lines
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').unwrap();
                (series.to_owned(), value.parse().unwrap())
            })
            .collect()
    };
    let theirs = parse(&read(&format!("tests/captures/salt-{version}.salt-exporter.prom")));
    let docs = read("docs/estate.md").split_whitespace().collect::<Vec<_>>().join(" ");
    let name = |series: &str| series.split('{').next().unwrap().to_owned();
    let mut names: BTreeSet<_> = theirs.keys().map(|series| name(series)).collect();
    names.insert("salt_function_status".to_owned());
    assert!(names.len() >= 7 && !names.iter().any(|name| NOT_RECORDED.contains(&&**name)));

    let folder = tempfile::tempdir().unwrap();
    let mut bus = Bus::listen(folder.path());
    let mut daemon = counting(folder.path(), "{minions: true}", &bus.source());
    bus.send_bytes(&fs::read(capture(version, "bus")).unwrap());
    wait_until_counted(&mut daemon, count);
    let mut ours = parse(&daemon.get("/metrics"));
    ours.retain(|series, _| names.contains(&name(series)));
    daemon.stop();

    let gone = "minion=\"db-3.example.com\"";
    let all: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    for series in all {
        let (ours, theirs) = (ours.get(series).copied(), theirs.get(series).copied());
        if ours == theirs {
            continue;
        }
        let why = may_differ(series, ours, theirs, gone);
        let why = why.unwrap_or_else(|| panic!("{series}: {ours:?}, salt-exporter {theirs:?}"));
        assert!(docs.contains(why), "docs/estate.md does not say: {why}");
    }
}

/// Far more than the counter has read when the last of it is there.
#[test]
fn a_burst_is_counted_in_full() {
    const EVENTS: usize = 100_000;
    let states: serde_json::Map<_, _> = (0..10)
        .map(|number| {
            let state = serde_json::json!({"__sls__": "web", "result": true, "duration": 1.5,
                "comment": "x".repeat(180), "changes": {}});
            (format!("pkg_|-a-{number}_|-a_|-installed"), state)
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("burst.jsonl");
    let mut lines = std::io::BufWriter::new(fs::File::create(&path).unwrap());
    for number in 0..EVENTS {
        let data = serde_json::json!({"jid": "20261121234020411515", "id": format!("web-{number}"),
            "fun": "state.apply", "fun_args": ["web"], "retcode": 0, "success": true,
            "return": states});
        let tag = format!("salt/job/20261121234020411515/ret/web-{number}");
        writeln!(lines, "{}", serde_json::json!({"tag": tag, "data": data})).unwrap();
    }
    lines.into_inner().unwrap();
    // The bus keeps the daemon there once the file has been read.
    let bus = Bus::listen(folder.path());
    let mut sources = bus.source();
    sources.push_str(&format!("  burst: {{replay: {{path: '{}'}}}}\n", path.display()));
    let mut daemon = counting(folder.path(), "{}", &sources);
    wait_until_counted(&mut daemon, EVENTS);
    let answer = daemon.get("/metrics");
    daemon.stop();
    for series in [
        "salt_events_total{kind=\"job_return\"} 100000",
        "salt_responses_total{success=\"true\"} 100000",
        "salt_states_total{sls=\"web\",result=\"true\"} 1000000",
        "saltern_estate_missed_events_total 0",
    ] {
        assert!(answer.lines().any(|line| line == series), "no {series}");
    }
}

/// A daemon that counts, beside a sink that takes everything.
fn counting(folder: &Path, estate: &str, sources: &str) -> Daemon {
    let sinks = "sinks: {out: {blackhole: {}}}";
    Daemon::start(folder, &format!("estate: {estate}\n{sources}{sinks}\n"))
}

fn wait_until_counted(daemon: &mut Daemon, events: usize) {
    wait_for("all events to be counted", || {
        #[allow(clippy::cast_precision_loss)]
        let all = events as f64;
        (daemon.metric("salt_events_total", &[]) >= all).then_some(())
    });
}

fn capture(version: &str, ending: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    folder.join(format!("salt-{version}.{ending}"))
}

/// The recorder of this bus saw so many events, behind two that the master fired before.
fn counters_are_those_of_the_events(version: &str, count: usize) {
    let lines = fs::read_to_string(capture(version, "events.jsonl")).unwrap();
    let events: Vec<Value> =
        lines.lines().skip(2).take(count).map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = counts_of(&events);
    assert!(expected.len() > 20, "{expected:#?}");

    let folder = tempfile::tempdir().unwrap();
    let mut bus = Bus::listen(folder.path());
    let mut daemon = counting(folder.path(), "{}", &bus.source());
    bus.send_bytes(&fs::read(capture(version, "bus")).unwrap());
    wait_until_counted(&mut daemon, events.len());
    let answer = daemon.get("/metrics");
    assert_eq!(series(&answer), expected);
    assert!(daemon.metric("saltern_estate_missed_events_total", &[]) < 1.0);
    for series in [
        "salt_key_events_total{act=\"delete\",result=\"true\"} 1",
        "salt_minion_starts_total 2",
        "salt_auth_events_total{act=\"accept\",result=\"true\"}",
        "salt_beacons_total{beacon=\"status\"}",
        "salt_states_total{sls=",
        "salt_job_duration_seconds{function=",
    ] {
        assert!(answer.contains(series), "no {series} in {answer}");
    }
    daemon.stop();
}

/// The series of the counters in an answer of `/metrics`.
fn series(answer: &str) -> Counts {
    let is_wanted = |name: &str| COUNTERS.contains(&name);
    let lines = answer.lines().filter(|line| is_wanted(line.split('{').next().unwrap()));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn counts_of(events: &[Value]) -> Counts {
    let mut counts = Counts::new();
    let mut add = |series: String, count: f64| *counts.entry(series).or_default() += count;
    for event in events {
        let (tag, data) = (event["tag"].as_str().unwrap(), &event["data"]);
        let parts: Vec<_> = tag.split('/').collect();
        if parts[0] != "salt" || parts.len() < 4 || !["job", "run"].contains(&parts[1]) {
            continue;
        }
        let function = data["fun"].as_str().unwrap_or_default();
        let job = format!("function=\"{function}\",state=\"{}\"", state(function, data));
        match parts[3] {
            "new" => {
                let minions = data["minions"].as_array().map_or(0, Vec::len);
                add(format!("salt_new_job_total{{{job}}}"), 1.0);
                #[allow(clippy::cast_precision_loss)]
                add(format!("salt_expected_responses_total{{{job}}}"), minions as f64);
            }
            "ret" => {
                let is_scheduled = data["schedule"].as_str().is_some_and(|name| !name.is_empty());
                let success = success(function, data);
                let name = match is_scheduled {
                    true => "salt_scheduled_job_return_total",
                    false => "salt_function_responses_total",
                };
                add(format!("{name}{{{job},success=\"{success}\"}}"), 1.0);
                add(format!("salt_responses_total{{success=\"{success}\"}}"), 1.0);
            }
            _ => {}
        }
    }
    counts
}

/// The outcome of the return of a single function.
fn success(function: &str, data: &Value) -> &'static str {
    let (retcode, success) = (&data["retcode"], &data["success"]);
    let is_failed = |state: &Value| state["result"] == false;
    let states = data["return"].as_object().filter(|_| function.starts_with("state."));
    if retcode.as_i64().is_some_and(|code| code != 0)
        || *success == false
        || states.is_some_and(|states| states.values().any(is_failed))
    {
        return "false";
    }
    if retcode.is_null() && success.is_null() { "unknown" } else { "true" }
}

fn state<'a>(function: &str, data: &'a Value) -> &'a str {
    let (key, without) = match function {
        "state.highstate" => return "highstate",
        "state.apply" => ("mods", "highstate"),
        "state.sls" => ("mods", ""),
        "state.single" => ("fun", ""),
        _ => return "",
    };
    let first = |name: &str| data[name].as_array().and_then(|arguments| arguments.first());
    match first("arg").or(first("fun_args")) {
        None => without,
        Some(Value::String(text)) => text,
        Some(keywords) => keywords[key].as_str().unwrap_or_default(),
    }
}
