//! The counters of the estate, after what real masters sent, against counts of the same events as
//! JSON, made by the rules that salt-exporter documents and by nothing of saltern.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bus::Bus;
use crate::daemon::{Daemon, wait_for};

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

/// The recorder of this bus saw so many events, behind two that the master fired before.
fn counters_are_those_of_the_events(version: &str, count: usize) {
    let capture = |ending: &str| -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
        folder.join(format!("salt-{version}.{ending}"))
    };
    let lines = fs::read_to_string(capture("events.jsonl")).unwrap();
    let events: Vec<Value> =
        lines.lines().skip(2).take(count).map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = counts_of(&events);
    assert!(expected.len() > 20, "{expected:#?}");

    let folder = tempfile::tempdir().unwrap();
    let mut bus = Bus::listen(folder.path());
    let sections = format!("estate: {{}}\n{}sinks: {{out: {{blackhole: {{}}}}}}\n", bus.source());
    let mut daemon = Daemon::start(folder.path(), &sections);
    bus.send_bytes(&fs::read(capture("bus")).unwrap());
    wait_for("all events to be counted", || {
        #[allow(clippy::cast_precision_loss)]
        let all = events.len() as f64;
        (daemon.metric("salt_events_total", "") >= all).then_some(())
    });
    let answer = daemon.get("/metrics");
    assert_eq!(series(&answer), expected);
    assert!(daemon.metric("saltern_estate_missed_events_total", "") < 1.0);
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
                let mut success = data["success"] == true;
                let is_scheduled = data["schedule"].as_str().is_some_and(|name| !name.is_empty());
                if is_scheduled {
                    let states = data["return"].as_object();
                    let failed = |states: &serde_json::Map<String, Value>| {
                        states.values().any(|state| state["result"] == false)
                    };
                    success &= data["retcode"] == 0 && !states.is_some_and(failed);
                }
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
