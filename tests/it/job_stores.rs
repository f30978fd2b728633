//! Stores of sinks that answer questions about jobs, behind the job cache.

use std::fs;
use std::path::Path;
use std::process::Command;

use rmpv::Value;
use rusqlite::Connection;
use serde_json::json;

use crate::harness::beside::Daemon;
use crate::harness::daemon::saltern;
use crate::harness::returner_peer::{Peer, done, map, packed, request, returned};
use crate::harness::salt::{program, said};

const SOURCE: &str = "returner: {bind: 'unix:FOLDER/r'}";

/// The first job of the fixture, which three minions were meant to do.
const JID: &str = "20261121233336123456";

/// A database that Salt's own returner has written.
fn write_database(path: &Path) {
    let written = include_str!("../fixtures/salt-sqlite3/written.sql");
    Connection::open(path).unwrap().execute_batch(written).unwrap();
}

/// A database with the tables of Salt's returner and one job of this id and function.
fn write_job(path: &Path, jid: &str, fun: &str) {
    let db = Connection::open(path).unwrap();
    db.execute_batch(
        "CREATE TABLE jids (jid TEXT PRIMARY KEY, load TEXT NOT NULL);
         CREATE TABLE salt_returns (
             fun TEXT KEY, jid TEXT KEY, id TEXT KEY, fun_args TEXT, date TEXT NOT NULL,
             full_ret TEXT NOT NULL, success TEXT NOT NULL);",
    )
    .unwrap();
    let load = json!({"jid": jid, "fun": fun, "tgt": "*", "tgt_type": "glob"}).to_string();
    db.execute("INSERT INTO jids VALUES (?, ?)", [jid, &load]).unwrap();
}

fn sinks(folder: &Path, stores: &[&str], more: &str) -> String {
    let mut sinks = "rawfile_json: {filename: FOLDER/out}\n    batch: {linger: 10ms}".to_owned();
    for store in stores {
        let path = folder.join(store);
        sinks += &format!("\n  {store}:\n    sqlite3: {{database: {}}}", path.display());
    }
    format!("{sinks}\n{more}")
}

/// The answer as JSON; null if it is nothing.
async fn ask(peer: &mut Peer, op: &str, more: &[(&str, Value)]) -> serde_json::Value {
    let answer = peer.ask(request(7, op, more)).await;
    assert!(answer["error"].is_nil(), "{answer}");
    let value = answer["value"].as_slice();
    value.map_or(serde_json::Value::Null, |value| rmp_serde::from_slice(value).unwrap())
}

/// The reason of a refusal, and whether the question may be asked later.
async fn refused(peer: &mut Peer, op: &str, more: &[(&str, Value)]) -> (String, bool) {
    let answer = peer.ask(request(8, op, more)).await;
    let why = answer["error"].as_str().unwrap_or_else(|| panic!("{answer}"));
    (why.to_owned(), answer["later"].as_bool().unwrap())
}

#[tokio::test]
async fn a_job_that_only_a_store_has_is_answered_by_it() {
    let folder = tempfile::tempdir().unwrap();
    write_database(&folder.path().join("db"));
    let sinks = sinks(folder.path(), &["db"], "jobs: {store: db}");
    let daemon = Daemon::start_with(SOURCE, &sinks);
    let mut peer = Peer::at(&daemon).await;
    let jid = [("jid", Value::from(JID))];
    let load = ask(&mut peer, "get_load", &jid).await;
    assert_eq!((&load["fun"], &load["tgt"]), (&json!("test.ping"), &json!("web-*")));
    let returns = ask(&mut peer, "get_jid", &jid).await;
    assert_eq!(returns["web-1"]["return"], json!(true));
    let minions = ask(&mut peer, "get_minions", &[]).await;
    assert_eq!(minions, json!(["web-1", "web-2"]));
    let function = ask(&mut peer, "get_fun", &[("fun", "test.ping".into())]).await;
    assert!(function["web-2"].is_object(), "{function}");
    assert_eq!(ask(&mut peer, "get_jids", &[]).await.as_object().unwrap().len(), 3);
    let filter = [("count", Value::from(9)), ("filter_find_job", true.into())];
    let last = ask(&mut peer, "get_jids_filter", &filter).await;
    assert_eq!(last.as_array().unwrap().len(), 2);
    let unknown = [("jid", Value::from("20200101000000000000"))];
    assert_eq!(ask(&mut peer, "get_load", &unknown).await, json!(null));
    assert_eq!(ask(&mut peer, "get_jid", &unknown).await, json!({}));

    // People and scripts see it too.
    let shown: serde_json::Value =
        serde_json::from_str(&daemon.body(&format!("/api/v1/jobs/{JID}"))).unwrap();
    assert_eq!((&shown["function"], &shown["returned"]), (&json!("test.ping"), &json!(2)));
    assert_eq!(shown["returns"]["web-1"]["return"], json!(true), "{shown}");
    assert_eq!(shown["load"]["tgt"], json!("web-*"));
    let config = daemon.path("config.yaml");
    let shown = saltern(&["jobs", "show", JID, "--config", config.to_str().unwrap()]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("test.ping") && shown.contains("web-2"), "{shown}");

    // The job cache is asked first, and a question may name a store that is asked before it.
    let of_cache = "20261121233400000000";
    assert_eq!(peer.ask(returned(3, of_cache, "web-9", 1.into())).await, done(3));
    assert_eq!(ask(&mut peer, "get_minions", &[]).await, json!(["web-9"]));
    let store = |name: &str| [("store", Value::from(name))];
    assert_eq!(ask(&mut peer, "get_minions", &store("db")).await[0], json!("web-1"));
    let both = [("jid", Value::from(of_cache)), ("store", "db".into())];
    assert_eq!(ask(&mut peer, "get_jid", &both).await["web-9"]["return"], json!(1));
    let (why, later) = refused(&mut peer, "get_minions", &store("out")).await;
    assert_eq!(why, "there is no sink `out` that keeps jobs; there are: db");
    assert!(!later);
    daemon.stop().await;
}

#[tokio::test]
async fn stores_are_asked_in_their_order_and_a_damaged_one_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("bad"), "no database at all, but long enough to be one".repeat(99)).unwrap();
    write_job(&path("one"), JID, "first");
    write_job(&path("two"), JID, "second");
    let stores = sinks(folder.path(), &["bad", "one", "two"], "jobs: {store: [bad, two, one]}");
    let daemon = Daemon::start_with(SOURCE, &stores);
    let mut peer = Peer::at(&daemon).await;
    let jid = [("jid", Value::from(JID))];
    for _ in 0..3 {
        assert_eq!(ask(&mut peer, "get_load", &jid).await["fun"], json!("second"));
    }
    let unknown = [("jid", Value::from("20200101000000000000"))];
    let (why, later) = refused(&mut peer, "get_load", &unknown).await;
    assert!(why.contains("reading jobs of") && later, "{why}");
    let said = daemon.log().matches("the store of jobs gives no answer").count();
    assert_eq!(said, 1, "it is logged once");

    let config = daemon.path("config.yaml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[bad, two, one]", "one")).unwrap();
    daemon.signal("HUP");
    daemon.wait_for_log("the configuration was reloaded").await;
    assert_eq!(ask(&mut peer, "get_load", &jid).await["fun"], json!("first"));
    assert_eq!(ask(&mut peer, "get_load", &unknown).await, json!(null));
    // It would say that a sink is parked.
    daemon.kill();
}

#[tokio::test]
async fn without_a_job_cache_the_store_answers_alone() {
    let folder = tempfile::tempdir().unwrap();
    write_database(&folder.path().join("db"));
    let sinks = sinks(folder.path(), &["db"], "jobs: {enabled: false, store: db}");
    let sinks = sinks.replace("/db}", "/db}\n    batch: {linger: 10ms}");
    let daemon = Daemon::start_with(SOURCE, &sinks);
    let mut peer = Peer::at(&daemon).await;
    let returns = ask(&mut peer, "get_jid", &[("jid", JID.into())]).await;
    assert_eq!(returns["web-1"]["return"], json!(true));
    assert!(daemon.get(&format!("/api/v1/jobs/{JID}")).starts_with("HTTP/1.1 200"));
    // The sink keeps every fact that a master tells of a job.
    let jid = "20261121233400000000";
    let load = map(&[("jid", jid.into()), ("fun", "test.echo".into()), ("tgt", "*".into())]);
    let save = [
        ("jid", Value::from(jid)),
        ("load", Value::Binary(packed(&load))),
        ("minions", Value::Array(vec!["web-1".into()])),
    ];
    assert_eq!(peer.ask(request(3, "save_load", &save)).await, done(3));
    assert_eq!(peer.ask(returned(4, jid, "web-1", 1.into())).await, done(4));
    let db = Connection::open(folder.path().join("db")).unwrap();
    let sql = "SELECT count(*) FROM salt_returns WHERE jid = ?";
    let count = || db.query_row(sql, [jid], |row| row.get::<_, i64>(0)).unwrap();
    daemon.until("the return in the store", || count() == 1).await;
    assert_eq!(ask(&mut peer, "get_load", &[("jid", jid.into())]).await["fun"], "test.echo");
    assert_eq!(ask(&mut peer, "get_jid", &[("jid", jid.into())]).await["web-1"]["return"], 1);
    daemon.stop().await;
}

/// Salt's own commands, with the name of one of its returners and options of it.
#[tokio::test]
async fn a_file_stands_for_a_returner_of_salts_in_three_releases() {
    let folder = tempfile::Builder::new().prefix("st").tempdir_in("/tmp").unwrap();
    let path = |name: &str| folder.path().join(name);
    write_database(&path("db"));
    let daemon = Daemon::start_with(SOURCE, &sinks(folder.path(), &["db"], ""));
    drop(Peer::at(&daemon).await);
    fs::create_dir(path("returners")).unwrap();
    let minion = format!(
        "id: web-7\nroot_dir: {root}\nextension_modules: {root}/ext\nuser: root\n\
         returner_dirs: [{root}/returners]\nsaltern.address: ipc://{socket}\n\
         saltern.timeout: 60\nalternative.mysql.host: gone.example\nmysql.host: gone.example\n",
        root = folder.path().display(),
        socket = daemon.path("r").display(),
    );
    fs::write(path("minion"), minion).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("salt/single_file.py");
    for (place, version) in ["3006.28", "3007.15", "3008.3"].into_iter().enumerate() {
        let mut make = Command::new(program(version, "python"));
        let file = said(make.arg(&script).args(["--as", "mysql", "--sink", "db"]));
        fs::write(path("returners/mysql.py"), file).unwrap();
        let call = |arguments: &[&str]| -> serde_json::Value {
            let mut call = Command::new(program(version, "salt-call"));
            call.args(["--local", "--out", "json", "--config-dir"]).arg(folder.path());
            serde_json::from_str(&said(call.args(arguments))).unwrap()
        };
        let found = call(&["ret.get_jid", "mysql", JID]);
        assert_eq!(found["local"]["web-1"]["return"], json!(true), "{version}: {found}");
        let listed = call(&["ret.get_jids", "mysql"]);
        assert_eq!(listed["local"].as_object().unwrap().len(), 3, "{version}: {listed}");
        call(&["test.ping", "--return", "mysql"]);
        let events = || daemon.lines().iter().filter(|line| line.contains("/ret/web-7")).count();
        daemon.until("the return", || events() == place + 1).await;
    }
    daemon.stop().await;
}
