//! Salt's side, the package in `salt/`, in three releases of Salt, and the daemon behind it.
//!
//! The package is used in both of its forms: installed by pip, and as the single file for
//! `_returners`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::harness::beside::Daemon;
use crate::harness::daemon::saltern;
use crate::harness::salt::{
    ANSWER, Ipc, LIMIT, MINIONS, More, Salt, folder, program, said, single_file, until,
};
use crate::harness::server;
use rusqlite::Connection;
use serde_json::{Value, json};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder for Python's path with the package in it, as pip installs it.
fn installed(dir: &Path) -> PathBuf {
    // Building leaves files beside the sources.
    let source = dir.join("source");
    said(Command::new("cp").arg("-r").arg(repository().join("salt")).arg(&source));
    let target = dir.join("installed");
    let mut pip = Command::new(server::installed("python-build").join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--no-index", "--no-deps"]);
    pip.args(["--no-build-isolation", "--disable-pip-version-check", "--target"]);
    said(pip.arg(&target).arg(&source));
    target
}

/// The configuration of a master that does not run, and its path.
fn master(dir: &Path, more: &str) -> PathBuf {
    let root = dir.display();
    let path = dir.join("master");
    let text = format!("root_dir: {root}\nextension_modules: {root}/ext\nuser: root\n{more}");
    fs::write(&path, text).unwrap();
    path
}

fn unit_tests(version: &str) {
    let mut python = Command::new(program(version, "python"));
    python.env("PYTHONPATH", repository().join("salt/src")).env("PYTHONDONTWRITEBYTECODE", "1");
    said(python.arg(repository().join("salt/tests/test_saltern.py")));
}

#[test]
fn unit_tests_in_3006() {
    unit_tests("3006.28");
}

#[test]
fn unit_tests_in_3007() {
    unit_tests("3007.15");
}

#[test]
fn unit_tests_in_3008() {
    unit_tests("3008.3");
}

const SOURCE: &str = "returner: {bind: 'ipc://FOLDER/r'}";

/// `push_events.py`.
struct Pusher {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Pusher {
    fn push(&mut self, count: usize) -> usize {
        writeln!(self.child.stdin.as_mut().unwrap(), "{count}").unwrap();
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pusher(version: &str, first: usize, config: &Path, path: &Path, log: &Path) -> Pusher {
    let mut python = Command::new(program(version, "python"));
    python.arg(repository().join("tests/it/harness/salt/push_events.py")).arg(config);
    python.args([first.to_string(), EVENTS.to_string()]);
    python.env("PYTHONPATH", path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let log = fs::File::options().create(true).append(true).open(log).unwrap();
    let mut child = python.stderr(log).spawn().unwrap();
    let said = BufReader::new(child.stdout.take().unwrap());
    Pusher { child, said }
}

const EVENTS: usize = 10_000;

/// Events handed to `event_return` while the daemon is killed and comes up again, and Salt as well:
/// each is stored, and once.
fn events_survive(version: &str) {
    let sink = "sqlite3: {database: FOLDER/events.db}\n    batch: {linger: 10ms}";
    let mut daemon = Daemon::start_with(SOURCE, sink);
    let dir = folder();
    let path = installed(dir.path());
    let address = format!("saltern.address: ipc://{}\n", daemon.path("r").display());
    let config = master(dir.path(), &address);
    let log = dir.path().join("log");
    let mut salt = pusher(version, 0, &config, &path, &log);
    let stored = |daemon: &Daemon| {
        let database = daemon.path("events.db");
        let count = Connection::open(database).and_then(|database| {
            let sql = "SELECT count(*) FROM salt_events";
            database.query_row(sql, [], |row| row.get::<_, u32>(0))
        });
        count.unwrap_or(0) as usize
    };
    let mut handed_over = 0;
    // Calls of up to 50 events, so that the daemon dies while they come.
    while handed_over < EVENTS / 3 {
        handed_over = salt.push(20);
    }
    until("the first events", LIMIT, || (stored(&daemon) > 0).then_some(()));
    salt.push(20);
    daemon.kill();
    while handed_over < EVENTS / 2 {
        handed_over = salt.push(20);
    }
    // The master is killed too; its unsent events are in the journal for the next one.
    drop(salt);
    let mut salt = pusher(version, handed_over, &config, &path, &log);
    handed_over = salt.push(20);
    let journal = dir.path().join("var/cache/salt/master/saltern");
    let waits = fs::read_dir(journal).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    assert!(waits.sum::<u64>() > 0, "nothing waits for the daemon");
    daemon.start_again();
    while handed_over < EVENTS {
        handed_over = salt.push(20);
    }
    until("all events to be stored", LIMIT, || (stored(&daemon) >= EVENTS).then_some(()));
    let database = Connection::open(daemon.path("events.db")).unwrap();
    let mut select = database.prepare("SELECT tag, data FROM salt_events ORDER BY tag").unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let rows: Vec<(String, String)> = rows.map(Result::unwrap).collect();
    let mut expected: Vec<_> = (0..EVENTS).map(|number| format!("push/{number}")).collect();
    expected.sort();
    assert_eq!(
        rows.iter().map(|(tag, _)| tag).collect::<Vec<_>>(),
        expected.iter().collect::<Vec<_>>()
    );
    let data: Value = serde_json::from_str(&rows[0].1).unwrap();
    assert_eq!(data["text"], "event 0 of 10000, ä \u{2744}");
}

#[test]
fn events_survive_in_3006() {
    events_survive("3006.28");
}

#[test]
fn events_survive_in_3007() {
    events_survive("3007.15");
}

#[test]
fn events_survive_in_3008() {
    events_survive("3008.3");
}

/// Salt's side is upgraded, and then the daemon, while events come; and the other way round.
fn an_upgrade_loses_nothing(version: &str) {
    let sink = "sqlite3: {database: FOLDER/events.db}\n    batch: {linger: 10ms}";
    // The release before listens as this source does.
    let older = SOURCE.replace("returner:", "returner_zeromq:");
    let mut daemon = Daemon::start_with(&older, sink);
    let dir = folder();
    let address = daemon.path("r");
    let config = |returners: &Path| {
        let (address, returners) = (address.display(), returners.display());
        master(
            dir.path(),
            &format!("saltern.address: ipc://{address}\nreturner_dirs: [{returners}]\n"),
        )
    };
    let old = repository().join("tests/fixtures/saltext-saltern-1");
    let new = single_file(version, dir.path());
    let (nowhere, log) = (dir.path().join("nowhere"), dir.path().join("log"));
    let database = daemon.path("events.db");
    let stored = || {
        let count = Connection::open(&database).and_then(|database| {
            let sql = "SELECT count(DISTINCT tag) FROM salt_events";
            database.query_row(sql, [], |row| row.get::<_, u32>(0))
        });
        count.unwrap_or(0) as usize
    };
    let all = |count: usize| until("all to be stored", LIMIT, || (stored() == count).then_some(()));

    let mut salt = pusher(version, 0, &config(&old), &nowhere, &log);
    let count = salt.push(20);
    all(count);
    drop(salt);
    // The new package speaks to the old daemon.
    let mut salt = pusher(version, count, &config(&new), &nowhere, &log);
    let count = salt.push(20);
    all(count);
    daemon.kill();
    let path = daemon.path("config.yaml");
    let text = fs::read_to_string(&path).unwrap().replace("returner_zeromq:", "returner:");
    fs::write(&path, text).unwrap();
    salt.push(20);
    daemon.start_again();
    let count = salt.push(20);
    all(count);
    drop(salt);
    // The old package cannot speak to the new daemon, and keeps its events.
    let mut salt = pusher(version, count, &config(&old), &nowhere, &log);
    let waiting = salt.push(20);
    let is_said = || daemon.log().contains("upgrade the package saltext-saltern").then_some(());
    until("what to do in the log", LIMIT, is_said);
    assert_eq!(stored(), count);
    drop(salt);
    let mut salt = pusher(version, waiting, &config(&new), &nowhere, &log);
    let count = salt.push(20);
    all(count);
    let log = fs::read_to_string(&log).unwrap();
    assert!(!log.contains("Traceback"), "{log}");
}

#[test]
fn an_upgrade_from_version_1_loses_nothing_in_3006() {
    an_upgrade_loses_nothing("3006.28");
}

#[test]
fn an_upgrade_from_version_1_loses_nothing_in_3008() {
    an_upgrade_loses_nothing("3008.3");
}

/// The job cache answers as Salt's own `local_cache` does.
fn job_caches_agree(version: &str) {
    let daemon = Daemon::start(SOURCE);
    daemon_listens(&daemon);
    let dir = folder();
    let returners = single_file(version, dir.path());
    let more = format!(
        "saltern: {{address: 'ipc://{}', timeout: 60}}\nreturner_dirs: [{}]\njob_cache_store_endtime: true\n",
        daemon.path("r").display(),
        returners.display()
    );
    let mut python = Command::new(program(version, "python"));
    python
        .arg(repository().join("tests/it/harness/salt/job_cache.py"))
        .arg(master(dir.path(), &more));
    assert!(said(&mut python).ends_with("the same\n"));
}

fn daemon_listens(daemon: &Daemon) {
    until("the socket", LIMIT, || daemon.path("r").exists().then_some(()));
}

#[test]
fn job_caches_agree_in_3006() {
    job_caches_agree("3006.28");
}

#[test]
fn job_caches_agree_in_3007() {
    job_caches_agree("3007.15");
}

#[test]
fn job_caches_agree_in_3008() {
    job_caches_agree("3008.3");
}

/// Publishes a job for both minions, which hand their returns to these returners too. Gives the
/// job's id at once.
fn publish(salt: &mut Salt, fun: &str, returners: &str) -> String {
    let jid = salt.drive(&json!({"publish": fun, "ret": returners}));
    jid.as_str().unwrap_or_else(|| panic!("{fun}: {jid}")).to_owned()
}

/// The returns of a job on both minions, by minion.
fn values(salt: &mut Salt, fun: &str, arg: &[&str]) -> Value {
    salt.drive(&json!({"run": fun, "arg": arg, "timeout": ANSWER}))["values"].take()
}

/// The answer of `salt-run`.
fn runner(salt: &mut Salt, fun: &str, arg: &[&str]) -> Value {
    salt.drive(&json!({"runner": fun, "arg": arg}))
}

/// The return of a runner is handed over by the job cache, by `event_return` and by the bus: it is
/// one event, and one job.
fn runners_are_jobs(daemon: &Daemon, salt: &mut Salt) {
    let data_of = |tag_end: &str, arg: &str| {
        until("the event of a runner", LIMIT, || {
            let lines = daemon.lines();
            let events = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut events = events.filter(|event| {
                let tag = event["tag"].as_str().unwrap();
                tag.starts_with("salt/run/")
                    && tag.ends_with(tag_end)
                    && event["data"]["fun_args"] == json!([arg])
            });
            events.next().map(|mut event| event["data"].take())
        })
    };
    for (fun, arg, has_worked) in
        [("test.arg", "of a runner", true), ("state.orchestrate", "nothing.here", false)]
    {
        runner(salt, fun, &[arg]);
        let data = data_of("/ret", arg);
        let jid = data["jid"].as_str().unwrap();
        let (new, ret) = (format!("salt/run/{jid}/new"), format!("salt/run/{jid}/ret"));
        until("the runner's start", LIMIT, || (daemon.stored_as(&new) == 1).then_some(()));
        let looked_up = salt.drive(&json!({"job_cache": "get_jid", "arg": [jid]}));
        let returns = looked_up.as_object().unwrap();
        assert_eq!(returns.len(), 1, "{looked_up}");
        let (master, returned) = returns.iter().next().unwrap();
        assert_eq!(returned["return"]["return"], data["return"]);
        let load = salt.drive(&json!({"job_cache": "get_load", "arg": [jid]}));
        assert_eq!(load["fun"], format!("runner.{fun}"));
        assert_eq!((&load["id"], load.get("Minions")), (&json!(master), None));
        let listed = runner(salt, "jobs.list_jobs", &[]);
        assert_eq!(listed[jid]["Function"], format!("runner.{fun}"));
        let found = runner(salt, "jobs.lookup_jid", &[jid]);
        assert_eq!(found[master], returned["return"], "{jid}");
        // All events have come by now.
        assert_eq!(daemon.stored_as(&ret), 1);
        assert_eq!(daemon.stored_as(&format!("salt/job/{jid}/ret/{master}")), 0);
        let job = shown(daemon, jid);
        let ret = &job["returns"][master];
        assert_eq!((&ret["runner"], &ret["ok"]), (&json!(true), &json!(has_worked)), "{job}");
        assert_eq!(ret["vouched_by"], "master");
        assert_eq!((&job["returned"], &job["arguments"]), (&json!(1), &json!([arg])));
    }
}

/// A job as the command shows it.
fn shown(daemon: &Daemon, jid: &str) -> Value {
    let config = daemon.path("config.yaml").display().to_string();
    let output = saltern(&["jobs", "show", jid, "--output", "json", "--config", &config]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A master with two minions that uses it for everything, with the daemon there, away, and hanging.
fn a_master_and_its_minions(version: &'static str) {
    let dir = folder();
    let bus = dir.path().join("m/s/master_event_pub.ipc");
    let source = format!("{SOURCE}\n  live:\n    salt_bus: {{address: {}}}", bus.display());
    let mut daemon = Daemon::start(&source);
    daemon_listens(&daemon);
    let returners = single_file(version, dir.path());
    let address = daemon.path("r");
    // A minion of 3007.15 does not hear that its return has arrived, and calls returners only when
    // it has given up waiting.
    let all = format!(
        "return_retry_tries: 1\nreturn_retry_timer: 3\nreturn_retry_timer_max: 3\n\
         returner_dirs: [{}]\nsaltern.address: ipc://{}\n",
        returners.display(),
        address.display()
    );
    let master = "master_job_cache: saltern\n".to_owned();
    let more = More { event_return: ", saltern".to_owned(), master, all };
    let mut salt = Salt::start(version, dir.path(), Ipc::Unix, &more);

    // Bus, `event_return` and job cache bring the same events: each is stored once.
    let jid = salt.run("test.arg", &["what was published"]);
    // Minions that hand over what they return themselves say it in other words.
    let twice = publish(&mut salt, "test.version", "saltern,rawfile_json");
    for minion in MINIONS {
        let tag = format!("salt/job/{twice}/ret/{minion}");
        until(&tag, LIMIT, || (daemon.stored_as(&tag) == 2).then_some(()));
        let returns = dir.path().join(minion).join("returns");
        let written = || fs::read_to_string(&returns).is_ok_and(|text| text.contains(&twice));
        until("rawfile_json beside it", LIMIT, || written().then_some(()));
        assert_eq!(daemon.stored_as(&format!("salt/job/{jid}/ret/{minion}")), 1);
    }
    assert_eq!(daemon.stored_as(&format!("salt/job/{jid}/new")), 1);

    let versions = json!({"web-1": version, "web-2": version});
    assert_eq!(runner(&mut salt, "jobs.lookup_jid", &[&twice]), versions);
    assert_eq!(
        runner(&mut salt, "jobs.exit_success", &[&jid]),
        json!({"web-1": true, "web-2": true})
    );
    let printed = runner(&mut salt, "jobs.print_job", &[&jid])[&jid].clone();
    let expected = json!(["test.arg", ["what was published"], "*", MINIONS]);
    let found = ["Function", "Arguments", "Target", "Minions"].map(|key| printed[key].clone());
    assert_eq!(json!(found), expected, "{printed}");
    assert_eq!(runner(&mut salt, "jobs.list_jobs", &[])[&jid]["Function"], "test.arg");
    let last = runner(&mut salt, "jobs.last_run", &["function=test.version"]);
    assert_eq!(last[&twice]["Target"], "*", "{last}");
    let last = runner(&mut salt, "jobs.list_jobs_filter", &["1", "False"]);
    assert_eq!(last.as_array().map_or(0, Vec::len), 1, "{last}");
    let looked_up = values(&mut salt, "ret.get_jid", &["saltern", &twice]);
    assert_eq!(looked_up["web-1"]["web-2"]["return"], version, "{looked_up}");
    // The master is none, though its runners return as well.
    let known = values(&mut salt, "ret.get_minions", &["saltern"])["web-2"].clone();
    assert_eq!(known, json!(MINIONS));
    runners_are_jobs(&daemon, &mut salt);
    let last = values(&mut salt, "ret.get_fun", &["saltern", "test.arg"]);
    assert_eq!(last["web-1"]["web-2"]["jid"], jid, "{last}");
    assert_eq!(
        values(&mut salt, "ret.get_jids", &["saltern"])["web-2"][&twice]["Function"],
        "test.version"
    );

    daemon.kill();
    let nobody = "does it run, and is saltern.address right?";
    let listed = salt.shell("salt-run", &["jobs.list_jobs"]);
    assert!(listed.contains(nobody), "{listed}");
    let published = salt.shell("salt", &["*", "test.ping"]);
    assert!(published.contains(nobody), "{published}");
    let alone = publish(&mut salt, "test.version", "saltern");
    let log = |minion: &str| fs::read_to_string(dir.path().join(minion).join("log")).unwrap();
    for minion in MINIONS {
        let line = format!("the return of {minion} for job {alone} is not stored");
        until(&line, LIMIT, || log(minion).contains(&line).then_some(()));
    }
    let lines = salt.log();
    let about: Vec<_> =
        lines.lines().filter(|line| line.contains(&format!("load of job {alone}"))).collect();
    assert!(about.iter().all(|line| line.contains(nobody)) && !about.is_empty(), "{about:?}");
    assert!(!lines.contains("threw a stack trace"), "{lines}");

    // The events that the bus carried meanwhile come from the journal.
    daemon.start_again();
    for minion in MINIONS {
        let tag = format!("salt/job/{alone}/ret/{minion}");
        until(&tag, LIMIT, || (daemon.stored_as(&tag) == 1).then_some(()));
    }

    let hung = while_it_hangs(&mut salt, &daemon, dir.path());
    assert_eq!(runner(&mut salt, "jobs.lookup_jid", &[&twice]), versions);
    // The events that the bus carried while it hung are in the journal; those that nobody waited
    // for any more come too.
    for minion in MINIONS {
        let tag = format!("salt/job/{hung}/ret/{minion}");
        until(&tag, LIMIT, || (daemon.stored_as(&tag) >= 1).then_some(()));
    }
}

/// The daemon hangs: a caller hears of that when `saltern.timeout` has passed, and goes on. Gives
/// the id of a job that ran meanwhile.
fn while_it_hangs(salt: &mut Salt, daemon: &Daemon, dir: &Path) -> String {
    const WHY: [&str; 2] = ["within 3 s", "has not answered"];
    let says_why = |text: &str| WHY.iter().any(|why| text.contains(why));
    let before = salt.log().len();
    daemon.signal("STOP");
    let listed = salt.shell("salt-run", &["jobs.list_jobs"]);
    let pinged = salt.shell("salt", &["--out", "json", "--static", "*", "test.ping"]);
    let hung = publish(salt, "test.version", "saltern");
    let log = |minion: &str| fs::read_to_string(dir.join(minion).join("log")).unwrap();
    for minion in MINIONS {
        let line = format!("the return of {minion} for job {hung} is not stored");
        let line = until(&line, LIMIT, || {
            log(minion).lines().find(|logged| logged.contains(&line)).map(str::to_owned)
        });
        assert!(says_why(&line), "{line}");
    }
    daemon.signal("CONT");
    assert!(says_why(&listed), "{listed}");
    // The minions were asked, and have answered.
    let answered = MINIONS.map(|minion| format!("\"{minion}\": true"));
    assert!(answered.iter().all(|answer| pinged.contains(answer)), "{pinged}");
    let lines = salt.log().split_off(before);
    let about: Vec<_> = lines.lines().filter(|line| line.contains("is not stored")).collect();
    for what in ["the load of job", "the return of web-1", "the return of web-2"] {
        assert!(about.iter().any(|line| line.contains(what)), "{what}: {about:?}");
    }
    assert!(about.iter().all(|line| says_why(line)), "{about:?}");
    assert!(!lines.contains("threw a stack trace"), "{lines}");
    hung
}

#[test]
fn a_master_of_3006_and_its_minions() {
    a_master_and_its_minions("3006.28");
}

#[test]
fn a_master_of_3007_and_its_minions() {
    a_master_and_its_minions("3007.15");
}

#[test]
fn a_master_of_3008_and_its_minions() {
    a_master_and_its_minions("3008.3");
}
