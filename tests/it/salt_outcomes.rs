//! A real master with saltern as its job cache, and saltern on its bus. `saltern jobs` and
//! `salt-run jobs.*` both give the outcome of each job that Salt's own command gave. A return that
//! comes both ways is one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use crate::harness::beside::Daemon;
use crate::harness::daemon::SALTERN;
use crate::harness::salt::{ANSWER, Ipc, LIMIT, MINIONS, More, Salt, folder, handing_over, until};
use serde_json::{Value, json};

#[test]
fn salt_3006_and_saltern_agree_on_how_jobs_went() {
    jobs_went_as_salt_said("3006.28");
}

#[test]
fn salt_3008_and_saltern_agree_on_how_jobs_went() {
    jobs_went_as_salt_said("3008.3");
}

/// An orchestration of which a step fails.
const FAILING: &str = "\
apply:
  salt.state:
    - tgt: '*'
    - sls: broken
";

/// An orchestration that works.
const WORKING: &str = "\
ping:
  salt.function:
    - name: test.ping
    - tgt: '*'
";

/// The jobs for minions: function, arguments, keyword arguments, and whether Salt's command
/// would say that it worked.
fn questions() -> Vec<(Value, Value, Value, bool)> {
    let none = json!({});
    let several = |second: &str, arg: &str| (json!(["test.ping", second]), json!([[], [arg]]));
    let (both_fun, both_arg) = several("test.echo", "both");
    let (one_fun, one_arg) = several("cmd.run", "exit 1");
    let test = json!({"name": "x", "test": true});
    vec![
        (json!("test.ping"), json!([]), none.clone(), true),
        (json!("test.false"), json!([]), none.clone(), true),
        (json!("cmd.run"), json!(["exit 3"]), none.clone(), false),
        (json!("nothing.here"), json!([]), none.clone(), false),
        (json!("test.exception"), json!(["boom"]), none.clone(), false),
        (both_fun, both_arg, none.clone(), true),
        (one_fun, one_arg, none.clone(), false),
        (json!("state.apply"), json!(["broken"]), none.clone(), false),
        // The master writes into the states of these before it hands them to the job cache.
        (json!("state.sls"), json!(["broken"]), none.clone(), false),
        (json!("state.apply"), json!(["not_there"]), none.clone(), false),
        (json!("state.single"), json!(["test.succeed_with_changes"]), test, true),
        (json!("state.show_states"), json!([]), none.clone(), true),
        (json!("state.running"), json!([]), none, true),
    ]
}

fn jobs_went_as_salt_said(version: &'static str) {
    let dir = folder();
    let daemon = Daemon::beside_master(dir.path());
    let socket = daemon.path("r");
    until("the socket", LIMIT, || socket.exists().then_some(()));
    let all = handing_over(version, dir.path(), &socket);
    let srv = dir.path().join("srv");
    fs::create_dir_all(&srv).unwrap();
    fs::write(srv.join("working.sls"), WORKING).unwrap();
    fs::write(srv.join("failing.sls"), FAILING).unwrap();
    fs::write(srv.join("top.sls"), "base: {'*': [broken]}\n").unwrap();
    let master = "master_job_cache: saltern\n".to_owned();
    let more = More { master, all, ..More::default() };
    let mut salt = Salt::start(version, dir.path(), Ipc::Unix, &more);

    let mut expected = BTreeMap::new();
    for (fun, arg, kwarg, has_worked) in questions() {
        let request = json!({"run": fun, "arg": arg, "kwarg": kwarg, "timeout": ANSWER});
        let answer = salt.drive(&request);
        assert_eq!(answer["returned"], json!(MINIONS), "{request}: {answer}");
        let jid = answer["jid"].as_str().unwrap().to_owned();
        expected.insert(jid, (fun, has_worked));
    }
    let known: BTreeSet<String> = listed(&daemon, "").into_iter().collect();
    assert!(!salt.called(&["state.apply", "broken"]).status.success());
    for runner in ["working", "failing"] {
        salt.drive(&json!({"runner": "state.orchestrate", "arg": [runner]}));
    }
    salt.drive(&json!({"batch": "cmd.run", "arg": ["exit 4"]}));
    // These run by a schedule, whose jobs always say that they succeeded.
    for (name, cache) in [("kept", true), ("not-kept", false)] {
        let mut kwarg = json!({"function": "cmd.run", "job_args": ["exit 5"], "seconds": 3600,
            "run_on_start": true, "persist": false});
        if !cache {
            kwarg["return_job"] = json!("nocache");
        }
        let request = json!({"run": "schedule.add", "arg": [name], "kwarg": kwarg,
            "timeout": ANSWER});
        assert_eq!(salt.drive(&request)["returned"], json!(MINIONS));
    }
    let of = |fun: &str, count: usize| {
        until(&format!("{count} returns of {fun} that are new"), LIMIT, || {
            let jids = listed(&daemon, fun);
            let new: Vec<_> = jids.into_iter().filter(|jid| !known.contains(jid)).collect();
            let returns = |jid: &String| shown(&daemon, jid)["returns"].as_object().unwrap().len();
            (new.iter().map(returns).sum::<usize>() == count).then_some(new)
        })
    };
    for jid in of("state.apply", 1).into_iter().chain(of("state.sls", 2)) {
        expected.insert(jid, (json!("state"), false));
    }
    // The batch, and each minion's own of the schedule.
    for jid in of("cmd.run", 4) {
        expected.insert(jid, (json!("cmd.run"), false));
    }
    let nocache = "salt/job/nocache/ret/";
    until("the returns that are not kept", LIMIT, || {
        let lines = daemon.lines();
        let count = |minion: &str| {
            let tag = format!("\"tag\": \"{nocache}{minion}\"");
            lines.iter().filter(|line| line.contains(&tag)).count()
        };
        MINIONS.iter().all(|minion| count(minion) == 1).then_some(())
    });
    assert!(!listed(&daemon, "").contains(&"nocache".to_owned()));
    for runner in of("runner.state.orchestrate", 2) {
        let has_worked = shown(&daemon, &runner)["load"].to_string().contains("working");
        expected.insert(runner, (json!("runner.state.orchestrate"), has_worked));
    }

    // Each job, asked of both.
    let jids: Vec<&String> = expected.keys().collect();
    // Salt cannot choose by function where a job of several is among them.
    let mut questions = vec![json!(["jobs.list_jobs", [], {}]), json!(["jobs.last_run", [], {}])];
    for jid in &jids {
        questions.push(json!(["jobs.lookup_jid", [jid], {}]));
        questions.push(json!(["jobs.exit_success", [jid], {}]));
    }
    let answers = salt.drive(&json!({"ask": questions, "timeout": ANSWER}));
    let answers = answers.as_array().unwrap();
    let all = answers[0].as_object().unwrap();
    for (place, jid) in jids.iter().enumerate() {
        let (fun, has_worked) = &expected[*jid];
        let job = shown(&daemon, jid);
        let listed = &all[*jid];
        let (looked_up, exit) = (&answers[2 + 2 * place], &answers[3 + 2 * place]);
        // With the name of an outputter they stand one level deeper.
        let looked_up = match looked_up.get("outputter") {
            Some(_) => &looked_up["data"],
            None => looked_up,
        };
        for (minion, ret) in job["returns"].as_object().unwrap() {
            let outcome = if *has_worked { "worked" } else { "failed" };
            assert_eq!(ret["outcome"], outcome, "{fun} of {minion}: {job}");
            assert_eq!(ret["conflict"], false, "{fun} of {minion}: {ret}");
            assert_eq!(ret["vouched_by"], "master", "{fun} of {minion}: {ret}");
            // Salt has the whole event of a runner in the place of its return.
            let value = &looked_up[minion];
            let came_back = if ret["runner"] == true { &value["return"] } else { value };
            assert_eq!(*came_back, ret["return"], "{fun} of {minion}");
            // Salt's runner asks no more than whether a value came back that is true.
            assert_eq!(exit[minion], is_true(value), "{fun} of {minion}: {exit}");
        }
        assert_eq!(listed["Function"], job["load"]["fun"], "{listed} {job}");
        let failed = saltern(&daemon, &["jobs", "failed"]);
        assert_eq!(failed.contains(jid.as_str()), !has_worked, "{fun}: {failed}");
    }
    let last = &listed(&daemon, "")[0];
    assert!(answers[1][last].is_object(), "{last}: {}", answers[1]);
}

/// The truth of a value, to Python.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        Value::String(value) => !value.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(values) => !values.is_empty(),
    }
}

fn saltern(daemon: &Daemon, arguments: &[&str]) -> String {
    let mut command = Command::new(SALTERN);
    command.args(arguments).arg("--config").arg(daemon.path("config.yaml"));
    let output = command.args(["--output", "json"]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn shown(daemon: &Daemon, jid: &str) -> Value {
    serde_json::from_str(&saltern(daemon, &["jobs", "show", jid])).unwrap()
}

/// The ids of the jobs of this function, the last first; of all jobs if none is named.
fn listed(daemon: &Daemon, function: &str) -> Vec<String> {
    let mut arguments = vec!["jobs", "list", "--limit", "1000"];
    if !function.is_empty() {
        arguments.extend(["--function", function]);
    }
    let page: Value = serde_json::from_str(&saltern(daemon, &arguments)).unwrap();
    let jobs = page["jobs"].as_array().unwrap().iter();
    jobs.map(|job| job["jid"].as_str().unwrap().to_owned()).collect()
}
