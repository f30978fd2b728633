//! One database of Salt's `sqlite3` returner, written and read by Salt and by saltern. Salt's own
//! returner reads the jobs that a master hands to the job cache. Its own rows are those that the
//! sink's unit tests read.

use std::path::PathBuf;
use std::process::Command;

use rmpv::Value;
use rusqlite::Connection;
use serde_json::json;

use crate::harness::beside::Daemon;
use crate::harness::returner_peer::{Peer, done, map, packed, request, returned};
use crate::harness::server::installed;

const JID: &str = "20261121233336123456";

const READ: &str = r#"
import json, sys
import salt.returners.sqlite3_return as returner
returner.__opts__ = {"sqlite3.database": sys.argv[1], "sqlite3.timeout": 5.0}
returner.__salt__ = {}
jid = sys.argv[2]
print(json.dumps({
    "load": returner.get_load(jid),
    "returns": returner.get_jid(jid),
    "jids": returner.get_jids(),
    "minions": returner.get_minions(),
    # It leaves out the last return of a function, and fails if there is another.
    "function": returner.get_fun("test.ping"),
}))
"#;

/// The Python of the Salt 3006.28 that `make test` installs.
fn python() -> PathBuf {
    installed("salt-3006.28").join("bin/python")
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A load as it is published; the bus does not carry all of it.
fn published() -> Value {
    let kwargs = map(&[("delimiter", ":".into()), ("metadata", map(&[("why", "a test".into())]))]);
    map(&[
        ("cmd", "publish".into()),
        ("tgt", "web-*".into()),
        ("jid", JID.into()),
        ("ret", "mysql".into()),
        ("kwargs", kwargs),
        ("tgt_type", "glob".into()),
        ("user", "root".into()),
        ("fun", "test.ping".into()),
        ("arg", Value::Array(vec!["x".into()])),
    ])
}

#[tokio::test]
async fn what_a_master_tells_the_job_cache_is_read_by_salts_own_returner() {
    let source = "returner: {bind: 'unix:FOLDER/r'}";
    let sinks = "rawfile_json: {filename: FOLDER/out}\n    batch: {linger: 10ms}\n  \
                 db:\n    sqlite3: {database: FOLDER/salt.db}\n    batch: {linger: 10ms}\n    \
                 filter: {kinds: [job_new, job_return]}\n  \
                 others:\n    sqlite3: {database: FOLDER/others.db}\n    batch: {linger: 10ms}\n    \
                 filter: {functions: ['state.*']}";
    let daemon = Daemon::start_with(source, sinks);
    let mut master = Peer::at(&daemon).await;
    let jid = ("jid", Value::from(JID));
    let minions = |names: &[&str]| {
        ("minions", Value::Array(names.iter().map(|name| Value::from(*name)).collect()))
    };
    let new = [b"salt/job/20261121233336123456/new\n\n", &packed(&published())[..]].concat();
    let events = Value::Array(vec![Value::Binary(new)]);
    assert_eq!(master.ask(request(1, "events", &[("events", events)])).await, done(1));
    let load = ("load", Value::Binary(packed(&published())));
    let save = [jid.clone(), load.clone(), minions(&["web-1"])];
    assert_eq!(master.ask(request(2, "save_load", &save)).await, done(2));
    assert_eq!(master.ask(returned(3, JID, "web-1", true.into())).await, done(3));
    // Salt's master hands the return over in the place of a load as well.
    let of_return = map(&[jid.clone(), ("id", "web-1".into()), ("return", true.into())]);
    let save = [jid.clone(), ("load", Value::Binary(packed(&of_return))), minions(&[])];
    assert_eq!(master.ask(request(4, "save_load", &save)).await, done(4));
    let more = [jid.clone(), minions(&["web-2"]), ("syndic_id", Value::Nil)];
    assert_eq!(master.ask(request(5, "save_minions", &more)).await, done(5));
    let end = [jid.clone(), ("time", Value::from("2026, Nov 21 23:33:40.000001"))];
    assert_eq!(master.ask(request(6, "update_endtime", &end)).await, done(6));

    let database = daemon.path("salt.db");
    let job = || {
        let sql = "SELECT load_from, minions, end_time FROM jids";
        Connection::open(&database)
            .ok()?
            .query_row(sql, [], |row| Ok([row.get::<_, String>(0)?, row.get(1)?, row.get(2)?]))
            .ok()
    };
    daemon.until("the end of the job in the table", || job().is_some()).await;
    let whole = ["published", r#"["web-1","web-2"]"#, "2026, Nov 21 23:33:40.000001"];
    assert_eq!(job().unwrap(), whole);
    daemon.wait_for_event(&format!("salt/job/{JID}/ret/web-1")).await;
    // Only sinks that keep jobs get events that are not of the bus.
    let tags: Vec<_> = daemon.lines().iter().map(|line| line.contains("saltern/job")).collect();
    assert_eq!(tags, [false, false], "{:?}", daemon.lines());
    let others = Connection::open(daemon.path("others.db")).unwrap();
    let count = |table: &str| {
        let sql = format!("SELECT count(*) FROM {table}");
        others.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(["jids", "salt_returns", "salt_events"].map(count), [0, 0, 0]);
    let _folder = daemon.stop().await;

    let read = output(Command::new(python()).args(["-c", READ]).arg(&database).arg(JID));
    let read: serde_json::Value = serde_json::from_str(&read).unwrap();
    let load: serde_json::Value = rmp_serde::from_slice(&packed(&published())).unwrap();
    assert_eq!(read["load"], load);
    assert_eq!(read["returns"], json!({"web-1": {"return": true}}));
    assert_eq!(read["minions"], json!(["web-1"]));
    let listed = &read["jids"][JID];
    assert_eq!(listed["Metadata"], json!({"why": "a test"}));
    assert_eq!((&listed["Function"], &listed["Target"]), (&json!("test.ping"), &json!("web-*")));
    assert_eq!(read["function"], json!({}));
}

#[test]
fn salts_own_returner_writes_what_the_sink_is_tested_to_read() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/salt-sqlite3");
    let mut write = Command::new(python());
    let written = output(write.arg(format!("{fixture}/write.py")).arg(folder.path().join("db")));
    let known = std::fs::read_to_string(format!("{fixture}/written.sql")).unwrap();
    assert_eq!(written, known);
}
