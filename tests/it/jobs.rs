//! The job cache against real masters of three releases. It tells of a job what Salt's own
//! `local_cache` tells. A job that ran while the daemon was killed, or cut off from the bus, is in
//! every sink afterwards, once. The past can be imported.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::daemon::SALTERN;
use crate::harness::proxy::Proxy;
use crate::harness::salt::{self, ANSWER, Group, Ipc, LIMIT, MINIONS, More, Salt, until};

/// Jobs that are written into the master's cache while the daemon is away.
const WRITTEN: usize = 200;

#[test]
fn salt_3006() {
    jobs_are_as_local_cache_has_them("3006.28");
}

#[test]
fn salt_3007() {
    jobs_are_as_local_cache_has_them("3007.15");
}

#[test]
fn salt_3008() {
    jobs_are_as_local_cache_has_them("3008.3");
}

fn jobs_are_as_local_cache_has_them(version: &'static str) {
    let dir = salt::folder();
    let mut salt = Salt::start(version, dir.path(), Ipc::Unix, &More::default());
    let saltern = Saltern::new(dir.path(), &salt);
    let daemon = saltern.start();
    until("saltern to be ready", LIMIT, || daemon.is_ready().then_some(()));
    daemon.await_compared(1);

    // Longer than it takes to ask for it.
    let slow = salt.drive(&json!({"publish": "test.sleep", "arg": ["8"]}));
    let slow = slow.as_str().unwrap();
    until("a job that minions are missing from", LIMIT, || {
        (daemon.job(slow)["missing"] == 2).then_some(())
    });
    let missing = saltern.output(&["jobs", "missing", slow]);
    assert_eq!(missing.lines().collect::<Vec<_>>(), MINIONS);
    let listed = saltern.json(&["jobs", "missing"]);
    assert!(jids(&listed).contains(&slow.to_owned()), "{listed}");

    let ping = salt.run("test.ping", &[]);
    let failing = salt.run("state.apply", &["broken"]);
    let exits = salt.run("cmd.run", &["echo Grüße; exit 3"]);
    assert_eq!(salt.drive(&json!({"batch": "test.version"})), json!(MINIONS.len()));
    // One job a part, or one for all, depending on the release.
    let batch = until("both returns of the batch", LIMIT, || {
        let listed = jids(&saltern.json(&["jobs", "list", "--function", "test.version"]));
        let returned = |jid: &String| daemon.job(jid)["returned"].as_u64().unwrap();
        (listed.iter().map(returned).sum::<u64>() >= 2).then_some(listed)
    });
    let before = [slow.to_owned(), ping.clone(), failing.clone(), exits.clone()];
    for jid in before.iter().chain(&batch) {
        let job = until("all returns of a job", LIMIT, || {
            Some(daemon.job(jid)).filter(|job| job["missing"] == 0 && job["returned"] != 0)
        });
        // The master writes to its cache after it has put the return onto the bus.
        let returns = until("the master to have written all", LIMIT, || {
            let returns = salt.drive(&json!({"job_cache": "get_jid", "arg": [jid]}));
            (json!(returns.as_object().unwrap().len()) == job["returned"]).then_some(returns)
        });
        let load = salt.drive(&json!({"job_cache": "get_load", "arg": [jid]}));
        assert_same(&job, &load, &returns, batch.contains(jid));
        assert_eq!(saltern.json(&["jobs", "show", jid]), job);
    }
    let failed = jids(&saltern.json(&["jobs", "failed"]));
    assert_eq!(failed, [exits.clone(), failing.clone()]);
    let of_one = saltern.json(&["jobs", "failed", &failing]);
    assert_eq!(of_one["failed"].as_object().unwrap().len(), 2);
    let several = salt.drive(&json!({
        "run": ["test.ping", "cmd.run"], "arg": [[], ["exit 3"]], "timeout": ANSWER,
    }));
    let several = several["jid"].as_str().unwrap().to_owned();
    let runner = run_runner(&mut salt, "state.orchestrate", "nothing.here");
    several_functions_are_one_job(&saltern, &daemon, &several);
    a_runner_is_a_job(&mut salt, &saltern, &daemon, &runner);
    let failed = [vec![runner, several], failed].concat();
    assert_eq!(jids(&saltern.json(&["jobs", "failed"])), failed);
    let table = saltern.output(&["jobs", "list", "--outcome", "ok"]);
    assert!(table.contains(&ping) && !table.contains(&failing), "{table}");

    // Killed, so that it cannot say goodbye.
    drop(daemon);
    // Without the daemon its file answers.
    assert_eq!(jids(&saltern.json(&["jobs", "failed"])), failed);
    let real: Vec<_> = (0..3).map(|_| salt.run("test.ping", &[])).collect();
    let written = salt.drive(&json!({"write_jobs": WRITTEN, "minions": MINIONS}));
    let written = written.as_array().unwrap().iter().map(|jid| jid.as_str().unwrap().to_owned());
    let missed: Vec<String> = real.into_iter().chain(written).collect();
    let missed_runner = run_runner(&mut salt, "test.arg", "while nobody listens");

    let daemon = saltern.start();
    daemon.await_compared(1);
    // Salt's own jobs, such as those that ask for others, are missed besides.
    #[allow(clippy::cast_precision_loss)]
    let least = (missed.len() * 3) as f64;
    assert!(daemon.metric("saltern_source_backfilled_events_total") >= least);
    until("every event in the file", LIMIT, || {
        let stored = saltern.counted_in_file();
        missed.iter().all(|jid| is_whole(&stored, jid)).then_some(())
    });
    until("every event in the database", LIMIT, || {
        let stored = saltern.counted_in_table();
        missed.iter().all(|jid| is_whole(&stored, jid)).then_some(())
    });
    until("every job in the job cache", LIMIT, || {
        missed.iter().all(|jid| daemon.job(jid)["returned"] == 2).then_some(())
    });
    let tag = format!("salt/run/{missed_runner}/ret");
    until("the runner's event, once", LIMIT, || {
        let stored = [saltern.counted_in_file(), saltern.counted_in_table()];
        stored.iter().all(|stored| stored.get(&tag) == Some(&1)).then_some(())
    });
    until("the runner in the job cache", LIMIT, || {
        (daemon.job(&missed_runner)["returned"] == 1).then_some(())
    });
    assert_eq!(daemon.job(&missed_runner)["arguments"], json!(["while nobody listens"]));
    for jid in &missed {
        let load = salt.drive(&json!({"job_cache": "get_load", "arg": [jid]}));
        let returns = salt.drive(&json!({"job_cache": "get_jid", "arg": [jid]}));
        assert_same(&daemon.job(jid), &load, &returns, false);
    }
    drop(daemon);

    // A third time there is nothing left to fill.
    let daemon = saltern.start();
    daemon.await_compared(1);
    assert!(daemon.metric("saltern_source_backfilled_events_total") < 1.0);
    drop(daemon);
    for jid in before.iter().chain(&missed) {
        for stored in [saltern.counted_in_file(), saltern.counted_in_table()] {
            assert!(is_whole(&stored, jid), "{jid}: {stored:?}");
        }
    }

    // The whole past, into another place.
    let other = Saltern::beside(dir.path(), &salt);
    let cache = salt.job_cache();
    other.output(&["replay", "--from-local-cache", cache.to_str().unwrap()]);
    let stored = other.counted_in_file();
    assert!(before.iter().chain(&missed).all(|jid| is_whole(&stored, jid)), "{stored:?}");
}

/// Runs a runner and gives the id of its job, once the master has written it to its job cache.
fn run_runner(salt: &mut Salt, fun: &str, arg: &str) -> String {
    let known = |salt: &mut Salt| {
        let jobs = salt.drive(&json!({"job_cache": "get_jids"}));
        let jobs = jobs.as_object().unwrap().iter();
        let of_fun = jobs.filter(|(_, job)| job["Function"] == format!("runner.{fun}"));
        of_fun.map(|(jid, _)| jid.clone()).collect::<BTreeSet<_>>()
    };
    let before = known(salt);
    salt.drive(&json!({"runner": fun, "arg": [arg], "timeout": ANSWER}));
    until("the runner's job", LIMIT, || known(salt).difference(&before).next().cloned())
}

/// A job of several functions has failed if one of them has, and is found by each.
fn several_functions_are_one_job(saltern: &Saltern, daemon: &Daemon, jid: &str) {
    let job = until("both returns of several functions", LIMIT, || {
        Some(daemon.job(jid)).filter(|job| job["returned"] == 2)
    });
    assert_eq!((&job["function"], &job["failed"]), (&json!("test.ping,cmd.run"), &json!(2)));
    assert_eq!(job["functions"], json!(["test.ping", "cmd.run"]));
    for ret in job["returns"].as_object().unwrap().values() {
        assert_eq!((&ret["outcome"], &ret["ok"]), (&json!("failed"), &json!(false)));
        assert_eq!(ret["retcode"]["cmd.run"], 3, "as Salt says it");
    }
    for glob in ["cmd.run", "test.p*"] {
        let listed = jids(&saltern.json(&["jobs", "list", "--function", glob]));
        assert!(listed.iter().any(|listed| listed == jid), "{glob}: {listed:?}");
        let listed = jids(&saltern.json(&["jobs", "list", "--not-function", glob]));
        assert!(!listed.iter().any(|listed| listed == jid), "{glob}: {listed:?}");
    }
    let shown = saltern.output(&["jobs", "show", jid]);
    assert!(shown.contains("test.ping,cmd.run") && shown.contains("failed"), "{shown}");
}

/// The bus tells of a runner the same as Salt's own cache, but for the name of the master.
fn a_runner_is_a_job(salt: &mut Salt, saltern: &Saltern, daemon: &Daemon, jid: &str) {
    let job = until("the return of a runner", LIMIT, || {
        Some(daemon.job(jid)).filter(|job| job["returned"] == 1)
    });
    let load = salt.drive(&json!({"job_cache": "get_load", "arg": [jid]}));
    let returns = salt.drive(&json!({"job_cache": "get_jid", "arg": [jid]}));
    let of_salt = returns.as_object().unwrap().values().next().unwrap();
    let ret = job["returns"].as_object().unwrap().values().next().unwrap();
    assert_eq!((&job["function"], &job["user"]), (&load["fun"], &load["user"]));
    assert_eq!(job["arguments"], of_salt["return"]["fun_args"]);
    assert_eq!(ret["return"], of_salt["return"]["return"]);
    assert_eq!((&ret["runner"], &ret["outcome"]), (&json!(true), &json!("failed")), "{ret}");
    assert_eq!([&job["expected"], &job["failed"], &job["missing"]], [0, 1, 0]);
    assert_eq!(load.get("Minions"), None);
    assert_eq!((&job["minions"], &job["missing_minions"]), (&json!([]), &json!([])));
    let without = jids(&saltern.json(&["jobs", "list", "--not-function", "runner.*"]));
    assert!(!without.is_empty() && !without.iter().any(|listed| listed == jid), "{without:?}");
}

#[test]
fn a_cut_is_filled_in_3006() {
    a_cut_is_filled("3006.28");
}

#[test]
fn a_cut_is_filled_in_3008() {
    a_cut_is_filled("3008.3");
}

/// The daemon stays up while the bus is out of its reach: the connection cut, then the master gone
/// and come again. Events that the bus did not bring come from the master's files, marked, and
/// nothing comes twice.
fn a_cut_is_filled(version: &'static str) {
    let dir = salt::folder();
    let mut salt = Salt::start(version, dir.path(), Ipc::Tcp, &More::default());
    let proxy = Proxy::start(salt.bus().strip_prefix("tcp://").unwrap().parse().unwrap());
    let bus = format!("tcp://{}", proxy.address());
    let saltern = Saltern::at(dir.path().join("saltern"), &salt, &bus);
    let daemon = saltern.start();
    daemon.await_compared(1);
    let before = salt.run("test.ping", &[]);
    saltern.await_whole(&[&before]);

    // Published while there is a bus, returned when there is none.
    let split = salt.drive(&json!({"publish": "test.sleep", "arg": ["8"]}));
    let split = split.as_str().unwrap().to_owned();
    until("the job to be known", LIMIT, || (daemon.job(&split)["missing"] == 2).then_some(()));
    proxy.refuse();
    proxy.reset();
    until("the daemon to notice", LIMIT, || (!daemon.is_ready()).then_some(()));
    let missed = [
        salt.run("test.ping", &[]),
        salt.run("state.apply", &["broken"]),
        salt.run("cmd.run", &["echo Grüße; exit 3"]),
    ];
    for jid in missed.iter().chain([&split]) {
        written(&mut salt, jid);
    }
    proxy.heal();
    daemon.await_compared(2);
    let after = salt.run("test.ping", &[]);
    // A master that ends does not finish its writes.
    written(&mut salt, &after);

    proxy.refuse();
    salt.restart_master();
    until("the daemon to notice", LIMIT, || (!daemon.is_ready()).then_some(()));
    let of_restart = salt.run("test.version", &[]);
    written(&mut salt, &of_restart);
    proxy.heal();
    daemon.await_compared(3);
    let last = salt.run("test.ping", &[]);

    let all = [&[&before, &split, &after, &of_restart, &last][..], &missed.each_ref()[..]].concat();
    saltern.await_whole(&all);
    let marked = saltern.backfilled_in_table();
    let has = |tag: &str| marked.iter().any(|marked| marked == tag);
    for jid in missed.iter().chain([&of_restart]) {
        assert!(has(&format!("salt/job/{jid}/new")), "{jid}: {marked:?}");
        assert!(MINIONS.iter().all(|minion| has(&format!("salt/job/{jid}/ret/{minion}"))));
    }
    assert!(!has(&format!("salt/job/{split}/new")), "{marked:?}");
    assert!(MINIONS.iter().all(|minion| has(&format!("salt/job/{split}/ret/{minion}"))));
    for jid in [&before, &after, &last] {
        assert!(!marked.iter().any(|tag| tag.contains(jid)), "{jid}: {marked:?}");
    }
    // Nothing was handed on and then dropped as a repeat, or stored twice.
    #[allow(clippy::cast_precision_loss)]
    let count = marked.len() as f64;
    assert!((daemon.metric("saltern_source_backfilled_events_total") - count).abs() < 0.5);
    assert!(saltern.counted_in_table().iter().all(|(tag, count)| *count == 1 || !is_of_job(tag)));
    until("every job in the job cache", LIMIT, || {
        all.iter().all(|jid| daemon.job(jid)["returned"] == 2).then_some(())
    });
    for jid in all {
        let returns = written(&mut salt, jid);
        let load = salt.drive(&json!({"job_cache": "get_load", "arg": [jid]}));
        assert_same(&daemon.job(jid), &load, &returns, false);
    }
}

/// The minions' returns, once the master has written them to its job cache, which it does after it
/// has put them onto its bus.
fn written(salt: &mut Salt, jid: &str) -> Value {
    until("the master to have written all", LIMIT, || {
        let returns = salt.drive(&json!({"job_cache": "get_jid", "arg": [jid]}));
        (returns.as_object().unwrap().len() == MINIONS.len()).then_some(returns)
    })
}

fn is_of_job(tag: &str) -> bool {
    tag.starts_with("salt/job/")
}

/// The daemon tells of a job the same as Salt's own cache.
fn assert_same(job: &Value, load: &Value, returns: &Value, is_batch: bool) {
    for key in ["jid", "fun", "arg", "tgt", "tgt_type", "user"] {
        assert_eq!(job["load"][key], load[key], "{key}: {job} {load}");
    }
    assert_eq!(job["function"], load["fun"]);
    if is_batch {
        // Before 3008 Salt keeps the minions of the last part only.
        let all = job["minions"].as_array().unwrap();
        assert!(load["Minions"].as_array().unwrap().iter().all(|minion| all.contains(minion)));
    } else {
        assert_eq!(job["minions"], load["Minions"]);
    }
    let kept = |ret: &Value| json!({"return": ret["return"], "retcode": ret["retcode"], "success": ret["success"]});
    let map = |returns: &Value| -> BTreeMap<String, Value> {
        let returns = returns.as_object().unwrap().iter();
        returns.map(|(minion, ret)| (minion.clone(), kept(ret))).collect()
    };
    assert_eq!(map(&job["returns"]), map(returns));
}

fn jids(page: &Value) -> Vec<String> {
    let jobs = page["jobs"].as_array().unwrap_or_else(|| panic!("{page}")).iter();
    jobs.map(|job| job["jid"].as_str().unwrap().to_owned()).collect()
}

/// The job's events are there, and no other in place of one.
fn is_whole(stored: &BTreeMap<String, usize>, jid: &str) -> bool {
    let once = |tag: String| stored.get(&tag) == Some(&1);
    once(format!("salt/job/{jid}/new"))
        && MINIONS.iter().all(|minion| once(format!("salt/job/{jid}/ret/{minion}")))
}

/// A configuration and what belongs to it.
struct Saltern {
    dir: PathBuf,
}

impl Saltern {
    fn new(dir: &Path, salt: &Salt) -> Self {
        Saltern::at(dir.join("saltern"), salt, salt.bus())
    }

    fn beside(dir: &Path, salt: &Salt) -> Self {
        Saltern::at(dir.join("other"), salt, salt.bus())
    }

    fn at(dir: PathBuf, salt: &Salt, bus: &str) -> Self {
        fs::create_dir(&dir).unwrap();
        // Free for as long as this looks; the commands need to know it before the daemon runs.
        let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        let backfill = json!({"cache_dir": salt.job_cache(), "settle": "2s"});
        let config = json!({
            "state_dir": at("state"),
            "http": {"listen": http.to_string()},
            "log": {"format": "json"},
            "sources": {"bus": {"salt_bus": {"address": bus, "backfill": backfill}}},
            "sinks": {
                "file": {"rawfile_json": {"filename": at("events")}},
                "table": {"sqlite3": {"database": at("events.db")}},
            },
        });
        fs::write(dir.join("saltern.yaml"), config.to_string()).unwrap();
        Saltern { dir }
    }

    fn start(&self) -> Daemon {
        let log = self.dir.join("log");
        let group = Group::start(&mut self.command(&["run"]), &log);
        let http = until("saltern to listen", LIMIT, || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find_map(|line| line["address"].as_str()?.parse().ok())
        });
        Daemon { _group: group, log, http }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(SALTERN);
        command.args(arguments).arg("--config").arg(self.dir.join("saltern.yaml"));
        command
    }

    fn output(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--output", "json"]].concat();
        serde_json::from_str(&self.output(&arguments)).unwrap()
    }

    /// The number of events of each tag in the file; its last line may still be being written. A
    /// batch that was written just before the kill is there twice, line by line the same.
    fn counted_in_file(&self) -> BTreeMap<String, usize> {
        let bytes = fs::read(self.dir.join("events")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let events: BTreeSet<&str> = whole.lines().collect();
        let lines = events.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        counted(lines.map(|line| line["tag"].as_str().unwrap().to_owned()))
    }

    /// Waits until every event of these jobs is in both sinks.
    fn await_whole(&self, jids: &[&String]) {
        until("every event of the jobs", LIMIT, || {
            let stored = [self.counted_in_file(), self.counted_in_table()];
            let is_there = |jid: &&String| stored.iter().all(|stored| is_whole(stored, jid));
            jids.iter().all(is_there).then_some(())
        });
    }

    /// The tags of the events in the table that say that they are backfilled.
    fn backfilled_in_table(&self) -> Vec<String> {
        let database = Connection::open(self.dir.join("events.db")).unwrap();
        database.busy_timeout(LIMIT).unwrap();
        let sql = "SELECT tag FROM salt_events WHERE json_extract(data, '$._backfilled')";
        let mut select = database.prepare(sql).unwrap();
        select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// The number of events of each tag in the table.
    fn counted_in_table(&self) -> BTreeMap<String, usize> {
        let database = Connection::open(self.dir.join("events.db")).unwrap();
        database.busy_timeout(LIMIT).unwrap();
        let mut select = database.prepare("SELECT tag FROM salt_events").unwrap();
        counted(select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap))
    }
}

fn counted(tags: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for tag in tags {
        *counts.entry(tag).or_default() += 1;
    }
    counts
}

/// A running daemon, killed when it is dropped.
struct Daemon {
    _group: Group,
    log: PathBuf,
    http: SocketAddr,
}

impl Daemon {
    fn is_ready(&self) -> bool {
        self.get("/readyz").0 == 200
    }

    /// Waits until the bus and the master's job cache were compared so many times.
    fn await_compared(&self, times: usize) {
        until("the backfill to be done", LIMIT, || {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let found = log.matches("were taken from the master's job cache").count();
            (found >= times).then_some(())
        });
    }

    fn job(&self, jid: &str) -> Value {
        match self.get(&format!("/api/v1/jobs/{jid}")) {
            (200, body) => serde_json::from_str(&body).unwrap(),
            (404, _) => Value::Null,
            other => panic!("{other:?}"),
        }
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let values = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        values.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect_timeout(&self.http, LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let token = fs::read_to_string(self.log.with_file_name("state").join("http-token"));
        let token = format!("Authorization: Bearer {}\r\n", token.unwrap_or_default().trim());
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n{token}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}
