//! The same jobs on two real masters: one keeps them in Salt's own `local_cache`, the other in
//! saltern. `salt-run jobs.*` and `ret.*` answer the same, but for ids and times.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::harness::beside::Daemon;
use crate::harness::salt::{ANSWER, Ipc, LIMIT, MINIONS, More, Salt, folder, handing_over, until};
use serde_json::{Value, json};

#[test]
fn masters_agree_in_3006() {
    masters_agree("3006.28");
}

#[test]
fn masters_agree_in_3007() {
    masters_agree("3007.15");
}

#[test]
fn masters_agree_in_3008() {
    masters_agree("3008.3");
}

fn masters_agree(version: &'static str) {
    // One after the other: both would want the processors at once.
    let (of_salt, ours) = (with_local_cache(version), with_saltern(version));
    assert_eq!(of_salt.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
    let mut differences = Vec::new();
    for (question, answer) in &of_salt {
        if *answer != ours[question] {
            differences.push(format!("{question}: Salt's {answer}, saltern's {}", ours[question]));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// By question, without ids and times.
type Answers = BTreeMap<String, Value>;

fn with_local_cache(version: &'static str) -> Answers {
    let dir = folder();
    let master = "job_cache_store_endtime: true\n".to_owned();
    let mut salt = Salt::start(version, dir.path(), Ipc::Unix, &More { master, ..More::default() });
    let jids = run_jobs(&mut salt);
    let mut answers = asked(&mut salt, &jids);
    // It has no `get_fun` and `get_minions`: what they have to be follows from the rest.
    let mut returns = |jid: &str| salt.drive(&json!({"job_cache": "get_jid", "arg": [jid]}));
    let by_job: Vec<_> = jids.iter().map(|jid| (jid.clone(), returns(jid))).collect();
    let functions = salt.drive(&json!({"job_cache": "get_jids"}));
    let all = functions.as_object().unwrap().keys();
    let all = all.map(|jid| salt.drive(&json!({"job_cache": "get_jid", "arg": [jid]})));
    let minions: BTreeSet<_> = all
        .flat_map(|returns| {
            let returns = returns.as_object().unwrap().iter();
            let of_minions = returns.filter(|(_, ret)| !is_of_runner(&ret["return"]));
            of_minions.map(|(minion, _)| minion.clone()).collect::<Vec<_>>()
        })
        .collect();
    let mut last = serde_json::Map::new();
    for (jid, returns) in &by_job {
        if functions[jid]["Function"] == "test.ping" {
            let returns = returns.as_object().unwrap().iter();
            last.extend(returns.map(|(minion, ret)| (minion.clone(), ret["return"].clone())));
        }
    }
    let loads: Vec<_> = by_job.iter().map(|(_, returns)| plain(returns, &jids)).collect();
    answers.insert("ret.get_jid".to_owned(), json!(loads));
    answers.insert("ret.get_fun".to_owned(), Value::Object(last));
    answers.insert("ret.get_jids".to_owned(), plain(&of_script(&functions, &jids), &jids));
    answers.insert("ret.get_minions".to_owned(), json!(minions));
    answers
}

fn with_saltern(version: &'static str) -> Answers {
    let dir = folder();
    let daemon = Daemon::beside_master(dir.path());
    let socket = daemon.path("r");
    until("the socket", LIMIT, || socket.exists().then_some(()));
    let all = handing_over(version, dir.path(), &socket);
    let master = "job_cache_store_endtime: true\nmaster_job_cache: saltern\n".to_owned();
    let more = More { master, all, ..More::default() };
    let mut salt = Salt::start(version, dir.path(), Ipc::Unix, &more);
    let jids = run_jobs(&mut salt);
    let mut answers = asked(&mut salt, &jids);
    // Nothing answers in its place; Salt 3008 puts the state of a batch there in any case.
    let folders = fs::read_dir(salt.job_cache()).into_iter().flatten().map(Result::unwrap);
    let jobs = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap().map(Result::unwrap));
    assert!(jobs.into_iter().all(|job| !job.path().join(".load.p").exists()));
    let mut on_a_minion = |fun: &str, arg: &[&str]| {
        let arg = [&["saltern"], arg].concat();
        let request =
            json!({"run": fun, "arg": arg, "timeout": ANSWER, "more": {"tgt": MINIONS[1]}});
        salt.drive(&request)["values"][MINIONS[1]].take()
    };
    // Each costs a job.
    let some = [&jids[0], jids.last().unwrap()];
    let loads = some.map(|jid| plain(&on_a_minion("ret.get_jid", &[jid]), &jids));
    let all = answers["results"].as_array().unwrap().clone();
    assert_eq!([&all[0], all.last().unwrap()], [&loads[0], &loads[1]]);
    let last = on_a_minion("ret.get_fun", &["test.ping"]);
    let last = last.as_object().unwrap().iter();
    let last = last.map(|(minion, ret)| (minion.clone(), ret["return"].clone())).collect();
    answers.insert("ret.get_jid".to_owned(), Value::Array(all));
    answers.insert("ret.get_fun".to_owned(), Value::Object(last));
    let listed = of_script(&on_a_minion("ret.get_jids", &[]), &jids);
    answers.insert("ret.get_jids".to_owned(), plain(&listed, &jids));
    answers.insert("ret.get_minions".to_owned(), on_a_minion("ret.get_minions", &[]));
    answers
}

/// Arguments by which the jobs of batches are known.
const IN_BATCH: [&str; 2] = ["one after the other", "by the command line"];

/// Runs every sort of job and gives their ids, in order; those that the master makes besides are
/// not among them.
fn run_jobs(salt: &mut Salt) -> Vec<String> {
    let first = salt.run("test.arg", &["Grüße", "1.5", "{deep: [1, null]}"]);
    let mut returns = 2;
    for (fun, arg, kwarg, more, count) in [
        ("test.ping", json!([]), json!({}), json!({}), 2),
        ("test.kwarg", json!([]), json!({"one": 1, "two": {"deep": [null, true]}}), json!({}), 2),
        ("cmd.run", json!(["echo Grüße; exit 3"]), json!({}), json!({}), 2),
        ("test.false", json!([]), json!({}), json!({}), 2),
        ("nothing.here", json!([]), json!({}), json!({}), 2),
        ("test.ping", json!([1]), json!({}), json!({}), 2),
        ("state.apply", json!(["broken"]), json!({}), json!({}), 2),
        ("test.ping", json!([]), json!({}), json!({"metadata": {"why": "a test"}}), 2),
        ("test.version", json!([]), json!({"metadata": {"why": "another"}}), json!({}), 2),
        ("test.ping", json!([]), json!({}), json!({"tgt": ["web-2"], "tgt_type": "list"}), 1),
        (
            "test.ping",
            json!([]),
            json!({}),
            json!({"tgt": "web-* and not web-2", "tgt_type": "compound"}),
            1,
        ),
    ] {
        let request =
            json!({"run": fun, "arg": arg, "kwarg": kwarg, "more": more, "timeout": ANSWER});
        let answer = salt.drive(&request);
        assert_eq!(answer["returned"].as_array().unwrap().len(), count, "{request}: {answer}");
        returns += count;
    }
    // Its return is told to who waits for it, and not kept.
    let secret = json!({"run": "test.arg", "arg": ["hunter2"], "more": {"nocache": true}});
    let secret = salt.drive(&secret);
    assert_eq!(secret["returned"], json!(MINIONS));
    // Published, and looked up later.
    let later = salt.drive(&json!({"publish": "test.echo", "arg": ["--async"]}));
    salt.drive(&json!({"batch": "test.arg", "arg": [IN_BATCH[0]]}));
    let batch = salt.shell("salt", &["-b", "1", "*", "test.arg", IN_BATCH[1]]);
    assert!(MINIONS.iter().all(|minion| batch.contains(minion)), "{batch}");
    salt.call(&["test.arg", "a minion's own idea"]);
    let syndic = salt.run("test.ping", &[]);
    salt.drive(&json!({"behind_syndic": "far-1", "of": syndic}));
    salt.drive(&json!({"runner": "test.arg", "arg": ["a runner"]}));
    salt.drive(&json!({"runner": "state.orchestrate", "arg": ["nothing.here"]}));
    returns += 2 + 2 + 2 + 1 + 3 + 2;
    let ids = |salt: &mut Salt| -> Vec<String> {
        let listed = salt.drive(&json!({"ask": [["jobs.list_jobs", [], {}]]}))[0].take();
        let jobs = listed.as_object().unwrap().iter();
        let jobs = jobs.filter(|(jid, job)| **jid >= first && job["Function"] != FIND_JOB);
        let mut jids: Vec<_> = jobs.map(|(jid, _)| jid.clone()).collect();
        jids.sort();
        // The order of minions in a batch is its own affair, if each part is a job.
        let job = |jid: &String| (&listed[jid]["Arguments"], listed[jid]["Target"].to_string());
        for batch in jids.chunk_by_mut(|a, b| {
            job(a).0 == job(b).0 && IN_BATCH.iter().any(|arg| job(a).0[0] == *arg)
        }) {
            batch.sort_by_key(|jid| job(jid).1);
        }
        jids
    };
    // The master stores a return after it has put it onto its bus.
    let jids = until("all returns to be in the job cache", LIMIT, || {
        let jids = ids(salt);
        let found = jids.iter().map(|jid| {
            let found = salt.drive(&json!({"job_cache": "get_jid", "arg": [jid]}));
            found.as_object().unwrap().len()
        });
        (found.sum::<usize>() >= returns).then_some(jids)
    });
    assert!([&later, &secret["jid"]].iter().all(|known| jids.iter().any(|jid| **known == **jid)));
    jids
}

/// By which Salt's client asks whether a job still runs.
const FIND_JOB: &str = "saltutil.find_job";

/// The runners' answers about the jobs.
fn asked(salt: &mut Salt, jids: &[String]) -> Answers {
    let mut questions = Vec::new();
    for jid in jids {
        for (fun, kwarg) in [
            ("jobs.lookup_jid", json!({})),
            ("jobs.lookup_jid", json!({"missing": true})),
            ("jobs.list_job", json!({})),
            ("jobs.print_job", json!({})),
            ("jobs.exit_success", json!({})),
        ] {
            questions.push(json!([fun, [jid], kwarg]));
        }
    }
    for (fun, kwarg) in [
        ("jobs.lookup_jid", json!({"jid": "20200101000000000000"})),
        ("jobs.print_job", json!({"jid": "20200101000000000000"})),
        ("jobs.exit_success", json!({"jid": "20200101000000000000"})),
        ("jobs.list_jobs", json!({})),
        ("jobs.list_jobs", json!({"search_function": "test.*,state.*"})),
        ("jobs.list_jobs", json!({"search_target": "web-*"})),
        ("jobs.list_jobs", json!({"search_metadata": {"why": "a test"}})),
        ("jobs.list_jobs", json!({"search_metadata": {"why": "another"}})),
        ("jobs.list_jobs_filter", json!({"count": 2})),
        ("jobs.list_jobs_filter", json!({"count": 1000})),
        ("jobs.list_jobs_filter", json!({"count": 1000, "filter_find_job": false})),
        ("jobs.last_run", json!({})),
        ("jobs.last_run", json!({"function": "state.apply"})),
        ("jobs.last_run", json!({"function": "runner.test.arg"})),
        ("jobs.last_run", json!({"target": "web-* and not web-2"})),
        ("jobs.last_run", json!({"metadata": {"why": "a test"}})),
        ("jobs.last_run", json!({"function": "no.such"})),
    ] {
        questions.push(json!([fun, [], kwarg]));
    }
    let found = salt.drive(&json!({"ask": questions, "timeout": ANSWER}));
    let mut answers = Answers::new();
    for (question, found) in questions.iter().zip(found.as_array().unwrap()) {
        answers.insert(plain(question, jids).to_string(), plain(&of_script(found, jids), jids));
    }
    let results = jids.iter().map(|jid| {
        let question = plain(&json!(["jobs.print_job", [jid], {}]), jids).to_string();
        let job = answers[&question].as_object().unwrap().values().next().unwrap();
        job["Result"].clone()
    });
    let results = results.collect();
    answers.insert("results".to_owned(), Value::Array(results));
    // The command itself, once.
    let said =
        salt.shell("salt-run", &["-l", "quiet", "--out", "json", "jobs.print_job", &jids[0]]);
    // Salt complains of itself beside it.
    let (from, to) = (said.find('{').unwrap_or(0), said.rfind('}').map_or(0, |end| end + 1));
    let said = serde_json::from_str(&said[from..to]).unwrap_or_else(|_| panic!("{said}"));
    answers.insert("salt-run".to_owned(), plain(&said, jids));
    answers
}

/// The jobs of a list that are compared.
fn of_script(listed: &Value, jids: &[String]) -> Value {
    let is_ours = |jid: &str| jids.iter().any(|known| known == jid);
    match listed {
        Value::Object(jobs) => {
            let jobs = jobs.iter().filter(|(key, _)| !is_jid(key) || is_ours(key));
            Value::Object(jobs.map(|(key, job)| (key.clone(), job.clone())).collect())
        }
        Value::Array(jobs) => {
            assert!(jobs.is_sorted_by_key(|job| job["JID"].as_str()), "{jobs:?}");
            let place = |job: &Value| jids.iter().position(|jid| job["JID"] == **jid);
            let mut jobs: Vec<_> =
                jobs.iter().filter(|job| place(job).is_some()).cloned().collect();
            jobs.sort_by_key(place);
            Value::Array(jobs)
        }
        other => other.clone(),
    }
}

/// The master is no minion.
fn is_of_runner(returned: &Value) -> bool {
    returned["fun"].as_str().is_some_and(|fun| fun.starts_with("runner."))
}

fn is_of_batch(arguments: &Value) -> bool {
    IN_BATCH.iter().any(|arg| arguments[0] == *arg)
}

fn is_jid(text: &str) -> bool {
    text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The same with numbers for the ids, and without what differs from one moment to the next.
fn plain(value: &Value, jids: &[String]) -> Value {
    let mut text = value.to_string();
    for (number, jid) in jids.iter().enumerate() {
        text = text.replace(jid, &format!("job {number:02}"));
    }
    let mut value = serde_json::from_str(&text).unwrap();
    without_times(&mut value);
    value
}

fn without_times(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // The target of a batch under one id is that of the last part, whichever that was.
            if map.get("Arguments").is_some_and(is_of_batch) {
                map.insert("Target".to_owned(), json!("…"));
            }
            for (key, value) in map {
                match key.as_str() {
                    "StartTime" | "EndTime" | "start_time" | "duration" | "__pub_pid"
                    | "_stamp" => {
                        *value = json!("…");
                    }
                    // The id is that of `salt-call`, which the master does not know.
                    "__pub_jid" if value.as_str().is_some_and(is_jid) => *value = json!("…"),
                    _ => without_times(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(without_times),
        _ => {}
    }
}
