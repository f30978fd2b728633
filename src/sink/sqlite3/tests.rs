//! What the sink makes of events, and of a database that is not as it should be.

use std::os::unix::fs::MetadataExt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rmpv::Value;
use rusqlite::types::ValueRef;

use super::*;
use crate::event::chunk::{Chunk, Share};
use crate::event::{Authority, Event, Origin};

const JID: &str = "20261121233336123456";

fn config(database: &Path) -> Config {
    Config { database: database.to_owned(), timeout: Span::millis(20), keep: None }
}

fn open(database: &Path) -> Sqlite3 {
    Sqlite3::open(&config(database)).unwrap()
}

fn event(tag: &str, pairs: &[(&str, Value)]) -> Event {
    let pairs = pairs.iter().map(|(key, value)| (Value::from(*key), value.clone())).collect();
    let mut payload = Vec::new();
    rmpv::encode::write_value(&mut payload, &Value::Map(pairs)).unwrap();
    Event::new(tag, &payload)
}

fn job_return(minion: &str, more: &[(&str, Value)]) -> Event {
    let mut pairs = vec![
        ("fun", Value::from("cmd.run")),
        ("jid", Value::from(JID)),
        ("id", Value::from(minion)),
        ("return", Value::from("done")),
    ];
    for (key, value) in more {
        pairs.retain(|(name, _)| name != key);
        pairs.push((*key, value.clone()));
    }
    event(&format!("salt/job/{JID}/ret/{minion}"), &pairs)
}

fn batch(events: Vec<Event>) -> Batch {
    vouched(Authority::Bus, events)
}

fn vouched(authority: Authority, events: Vec<Event>) -> Batch {
    let origin = Arc::new(Origin { source: "bus".into(), master_id: "master-1".into() });
    let chunk = Chunk::new(origin, 1_795_304_016_000_250, events).vouched_for_by(authority);
    Batch::new(1, 0, vec![Share::all(Arc::new(chunk))])
}

#[test]
fn invariant_7_the_truth_stands_whenever_a_forgery_comes() {
    let said = |text: &str| job_return("web-1", &[("return", Value::from(text))]);
    let contradicted = || {
        let pairs = [("jid", Value::from(JID)), ("id", Value::from("web-1"))];
        event(&format!("salt/job/{JID}/ret/web-2"), &pairs)
    };
    let forged = || batch(vec![said("forged")]);
    let truth = || vouched(Authority::Master, vec![said("true")]);
    for (order, stands) in [
        (vec![forged(), truth()], "\"true\" | master"),
        (vec![truth(), forged(), truth()], "\"true\" | master"),
        // The master's word comes for an event that came by the bus before.
        (vec![forged(), batch(vec![said("true")]), truth()], "\"true\" | master"),
        (vec![forged(), batch(vec![said("true")])], "\"forged\" | bus"),
        (vec![batch(vec![contradicted()])], "null | contradicted"),
        (vec![batch(vec![contradicted()]), forged()], "\"forged\" | bus"),
        (vec![forged(), batch(vec![contradicted()])], "\"forged\" | bus"),
        (vec![batch(vec![said("VALUE_TRIMMED")]), forged()], "\"forged\" | bus"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        let mut sink = open(&database);
        for batch in &order {
            sink.store(batch).unwrap();
            sink.store(batch).unwrap();
        }
        assert_eq!(rows(&database, "SELECT full_ret, authority FROM salt_returns"), [stands]);
    }
}

/// Rows as text, `-` for NULL.
fn rows(database: &Path, sql: &str) -> Vec<String> {
    let connection = Connection::open(database).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let cells = (0..columns).map(|n| match row.get_ref(n).unwrap() {
            ValueRef::Null => "-".to_owned(),
            ValueRef::Integer(int) => format!("#{int}"),
            ValueRef::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        });
        Ok(cells.collect::<Vec<_>>().join(" | "))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

#[test]
fn rows_are_what_salt_writes() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let args = Value::Array(vec![
        Value::from("it's"),
        Value::Map(vec![(Value::from("__kwarg__"), Value::from(true))]),
    ]);
    let list = Value::Array(vec![Value::from("test.ping"), Value::from("test.arg")]);
    let load = [("jid", Value::from(JID)), ("fun", Value::from("cmd.run"))];
    open(&database)
        .store(&batch(vec![
            event(&format!("salt/job/{JID}/new"), &load),
            job_return("web-1", &[("fun_args", args), ("success", Value::from(true))]),
            job_return(
                "web-2",
                &[
                    ("fun_args", Value::Array(vec![])),
                    ("success", Value::from(false)),
                    ("return", Value::Binary(vec![b'a', 0xff])),
                ],
            ),
            job_return("web-3", &[("fun", list)]),
            event("my/app", &[("n", Value::from(1))]),
        ]))
        .unwrap();
    assert_eq!(
        rows(&database, "SELECT jid, load FROM jids"),
        [format!(r#"{JID} | {{"jid": "{JID}", "fun": "cmd.run"}}"#)]
    );
    assert_eq!(
        rows(&database, "SELECT fun, jid, id, fun_args, full_ret, success FROM salt_returns"),
        [
            format!(r#"cmd.run | {JID} | web-1 | ["it's", {{'__kwarg__': True}}] | "done" | 1"#),
            format!("cmd.run | {JID} | web-2 | - | \"a\u{fffd}\" | 0"),
            format!(r#"["test.ping", "test.arg"] | {JID} | web-3 | - | "done" | "#),
        ]
    );
    let events = rows(
        &database,
        "SELECT id, tag, data, alter_time, master_id, length(event_id) FROM salt_events WHERE tag = 'my/app'",
    );
    assert_eq!(events, [r#"#5 | my/app | {"n": 1} | 2026-11-21 23:33:36.000250 | master-1 | #32"#]);
    // Local time, in the form of Python's `str(datetime.now())`.
    let local = Timestamp::from_microsecond(1_795_304_016_000_250).unwrap();
    let local = local.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S.000250");
    assert_eq!(rows(&database, "SELECT DISTINCT date FROM salt_returns"), [local.to_string()]);
    let metadata = std::fs::metadata(&database).unwrap();
    assert_eq!(metadata.mode() & 0o777 & !0o640, 0, "the database is for its owner and group");
    assert_eq!(rows(&database, "PRAGMA journal_mode"), ["wal"]);
}

#[test]
fn invariant_4_a_repeated_batch_leaves_one_copy() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let mut sink = open(&database);
    let tag = format!("salt/job/{JID}/new");
    let events = || {
        batch(vec![
            event(&tag, &[("jid", Value::from(JID)), ("fun", Value::from("first"))]),
            job_return("web-1", &[("success", Value::from(true))]),
        ])
    };
    sink.store(&events()).unwrap();
    sink.store(&events()).unwrap();
    sink.store(&batch(vec![
        event(&tag, &[("jid", Value::from(JID)), ("fun", Value::from("second"))]),
        job_return("web-1", &[("return", Value::from("anew")), ("success", Value::from(true))]),
    ]))
    .unwrap();
    assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#4"]);
    assert_eq!(rows(&database, "SELECT id, full_ret FROM salt_returns"), ["web-1 | \"done\""]);
    let loads = rows(&database, "SELECT load FROM jids");
    assert_eq!(loads, [format!(r#"{{"jid": "{JID}", "fun": "first"}}"#)]);
}

#[test]
fn returns_of_no_job_all_stay_and_none_twice() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let mut sink = open(&database);
    let nocache = |fun: &str, tag: &str| {
        let fields = [("jid", "nocache"), ("id", "web-1"), ("fun", fun), ("return", fun)];
        event(tag, &fields.map(|(key, text)| (key, Value::from(text))))
    };
    let events = || {
        let of = |fun| nocache(fun, "salt/job/nocache/ret/web-1");
        batch(vec![of("a.b"), of("c.d"), nocache("a.b", "salt/job/nocache/new")])
    };
    sink.store(&events()).unwrap();
    sink.store(&events()).unwrap();
    let stored = rows(&database, "SELECT fun, jid, full_ret FROM salt_returns");
    assert_eq!(stored, [r#"a.b | nocache | "a.b""#, r#"c.d | nocache | "c.d""#]);
    assert_eq!(rows(&database, "SELECT count(*) FROM jids"), ["#0"]);
}

#[test]
fn a_runner_is_a_job_of_its_master() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let mut sink = open(&database);
    let fields = [("jid", Value::from(JID)), ("fun", Value::from("runner.a.b"))];
    let ended = [&fields[..], &[("success", true.into()), ("return", 5.into())]].concat();
    let run = |part: &str, fields| event(&format!("salt/run/{JID}/{part}"), fields);
    let events = vec![run("new", &fields), run("args", &fields), run("ret", &ended)];
    sink.store(&batch(events)).unwrap();
    let load = format!(r#"{{"jid": "{JID}", "fun": "runner.a.b"}}"#);
    assert_eq!(rows(&database, "SELECT load FROM jids"), [load]);
    let stored = rows(&database, "SELECT fun, id, full_ret, success, outcome FROM salt_returns");
    let event = format!(r#"{{"jid": "{JID}", "fun": "runner.a.b", "success": true, "return": 5}}"#);
    assert_eq!(stored, [format!("runner.a.b | master-1 | {event} | 1 | worked")]);
}

#[test]
fn a_job_of_several_functions_failed_if_one_did() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let mut sink = open(&database);
    let several = |of: [Value; 2]| {
        let named =
            [("test.ping", 0), ("cmd.run", 1)].map(|(name, at)| (name.into(), of[at].clone()));
        Value::Map(named.to_vec())
    };
    let fun = Value::Array(vec!["test.ping".into(), "cmd.run".into()]);
    let fields = [
        ("fun", fun),
        ("success", several([true.into(), false.into()])),
        ("retcode", several([0.into(), 1.into()])),
    ];
    sink.store(&batch(vec![job_return("web-1", &fields)])).unwrap();
    let stored = rows(&database, "SELECT fun, success, outcome FROM salt_returns");
    assert_eq!(stored, [r#"["test.ping", "cmd.run"] | 0 | failed"#]);
}

#[test]
fn an_event_of_a_job_whose_tag_names_another_one_is_no_load() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let mut sink = open(&database);
    let forged = event("salt/job/20261121233336999999/new", &[("jid", Value::from(JID))]);
    sink.store(&batch(vec![forged])).unwrap();
    assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#1"]);
    assert_eq!(rows(&database, "SELECT count(*) FROM jids"), ["#0"]);
}

#[test]
fn stored_and_new_returns_are_judged_alike() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let mut sink = open(&database);
    let mut stored = |name: &str, value: Value| {
        let trimmed = Value::from("VALUE_TRIMMED");
        let load = [("return", value), ("fun_args", trimmed), ("name", Value::from(name))];
        sink.store(&batch(vec![job_return("web-1", &load)])).unwrap();
        rows(&database, "SELECT full_ret FROM salt_returns")
    };
    let trimmed = Value::Array(vec![Value::Binary(b"VALUE_TRIMMED".to_vec())]);
    assert_eq!(stored("a", trimmed.clone()), [r#"["VALUE_TRIMMED"]"#]);
    assert_eq!(stored("b", trimmed), [r#"["VALUE_TRIMMED"]"#]);
    // That something else of it was trimmed makes no difference to the table.
    assert_eq!(stored("c", Value::from("whole")), [r#""whole""#]);
    assert_eq!(stored("d", Value::from("forged")), [r#""whole""#]);
}

#[test]
fn a_database_of_salt_is_taken_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    // As the documentation of Salt's returner makes it, with a return stored twice.
    let connection = Connection::open(&database).unwrap();
    connection
        .execute_batch(&format!(
            "CREATE TABLE jids (jid TEXT PRIMARY KEY, load TEXT NOT NULL);
             CREATE TABLE salt_returns (fun TEXT KEY, jid TEXT KEY, id TEXT KEY, fun_args TEXT,
                 date TEXT NOT NULL, full_ret TEXT NOT NULL, success TEXT NOT NULL);
             INSERT INTO salt_returns VALUES ('a', '{JID}', 'old', NULL, 'then', '1', '1');
             INSERT INTO salt_returns VALUES ('a', '{JID}', 'web-1', NULL, 'then', '1', '1');
             INSERT INTO salt_returns VALUES ('a', '{JID}', 'web-1', NULL, 'then', '2', '1');
             CREATE TABLE salt_events (id INTEGER PRIMARY KEY, tag TEXT, data TEXT);
             INSERT INTO salt_events (tag, data) VALUES ('older', '{{}}');"
        ))
        .unwrap();
    drop(connection);
    // Who vouched for what is there is not known, and it was first.
    open(&database).store(&batch(vec![job_return("web-1", &[])])).unwrap();
    assert_eq!(rows(&database, "SELECT count(*) FROM salt_returns"), ["#3"]);
    for _ in 0..2 {
        let by_master = vouched(Authority::Master, vec![job_return("web-1", &[])]);
        open(&database).store(&by_master).unwrap();
    }
    assert_eq!(
        rows(&database, "SELECT fun, id, full_ret, authority FROM salt_returns ORDER BY id"),
        ["a | old | 1 | -", "cmd.run | web-1 | \"done\" | master"]
    );
    assert_eq!(
        rows(&database, "SELECT tag, master_id FROM salt_events ORDER BY id"),
        ["older | -".to_owned(), format!("salt/job/{JID}/ret/web-1 | master-1")]
    );
}

#[test]
fn the_readers_queries_use_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    drop(open(&database));
    for query in [
        "SELECT load FROM jids WHERE jid = 'x'",
        "SELECT id, full_ret FROM salt_returns WHERE jid = 'x'",
        "SELECT id FROM salt_returns WHERE fun = 'x'",
        "SELECT MAX(jid) FROM salt_returns GROUP BY fun, id",
        "SELECT DISTINCT id FROM salt_returns",
        "DELETE FROM salt_returns WHERE date < 'x'",
        "DELETE FROM salt_returns WHERE jid = 'x' AND id = 'y'",
        "SELECT authority FROM salt_returns WHERE jid = 'x' AND id = 'y'",
        "SELECT data FROM salt_events WHERE tag = 'x'",
        "DELETE FROM salt_events WHERE alter_time < 'x'",
        "SELECT 1 FROM salt_events WHERE event_id = 'x'",
    ] {
        let plan = rows(&database, &format!("EXPLAIN QUERY PLAN {query}")).join("\n");
        assert!(plan.contains("INDEX") && !plan.contains("TEMP B-TREE"), "{query}: {plan}");
    }
}

fn guard(database: &Path, action: &str) {
    let connection = Connection::open(database).unwrap();
    let trigger = format!(
        "CREATE TRIGGER guard BEFORE INSERT ON salt_returns WHEN new.id = 'bad'
         BEGIN SELECT RAISE({action}, 'no bad ones'); END"
    );
    connection.execute_batch(&trigger).unwrap();
}

#[test]
fn invariant_5_a_refused_event_is_named_and_the_others_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let mut sink = open(&database);
    guard(&database, "ABORT");
    let events = ["good", "bad", "fine"].map(|minion| job_return(minion, &[]));
    let error = sink.store(&batch(events.into())).unwrap_err();
    assert!(error.chain().contains("no bad ones"), "{}", error.chain());
    let SinkError::Reject { events: Rejected::These(places), .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(places, [1]);
    assert_eq!(rows(&database, "SELECT id FROM salt_returns ORDER BY rowid"), ["good", "fine"]);
    // Of the refused event nothing is stored.
    assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#2"]);
}

#[test]
fn a_trigger_that_rolls_everything_back_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let mut sink = open(&database);
    guard(&database, "ROLLBACK");
    let events = ["good", "bad", "fine"].map(|minion| job_return(minion, &[]));
    let error = sink.store(&batch(events.into())).unwrap_err();
    assert!(matches!(error, SinkError::Reject { events: Rejected::Unknown, .. }), "{error:?}");
    assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#0"]);
    sink.store(&batch(vec![job_return("good", &[])])).unwrap();
    assert_eq!(rows(&database, "SELECT id FROM salt_returns"), ["good"]);
}

#[test]
fn what_may_pass_is_tried_again_and_what_may_not_is_fatal() {
    let folder = tempfile::tempdir().unwrap();
    let fails = |path: &Path| Sqlite3::open(&config(path)).err().unwrap();

    let error = fails(&folder.path().join("absent/salt.db"));
    assert!(matches!(error, SinkError::Retry { .. }), "{error:?}");
    assert!(error.chain().contains("create the directory"), "{}", error.chain());

    assert!(matches!(fails(folder.path()), SinkError::Fatal { .. }));

    let text = folder.path().join("text");
    std::fs::write(&text, "not a database, but long enough to be taken for one\n".repeat(99))
        .unwrap();
    assert!(matches!(fails(&text), SinkError::Fatal { .. }));

    let database = folder.path().join("salt.db");
    let mut sink = open(&database);
    let locker = Connection::open(&database).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = sink.store(&batch(vec![job_return("web-1", &[])])).unwrap_err();
    assert!(matches!(error, SinkError::Retry { .. }), "{error:?}");
    locker.execute_batch("COMMIT").unwrap();
    sink.store(&batch(vec![job_return("web-1", &[])])).unwrap();

    locker.execute_batch("DROP TABLE salt_events").unwrap();
    let error = sink.store(&batch(vec![job_return("web-1", &[])])).unwrap_err();
    assert!(matches!(error, SinkError::Reconnect { .. }), "{error:?}");
    drop(sink);
    open(&database).store(&batch(vec![job_return("web-1", &[])])).unwrap();
    assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#1"]);
}

#[test]
fn a_database_without_room_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = open(&folder.path().join("salt.db"));
    let set = |sink: &Sqlite3, pages: &str| {
        let sql = format!("PRAGMA max_page_count = {pages}");
        sink.sqlite.connection().query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap();
    };
    set(&sink, "1");
    let large = vec![job_return("web-1", &[("return", Value::from("x".repeat(100_000)))])];
    let large = batch(large);
    let error = sink.store(&large).unwrap_err();
    assert!(matches!(error, SinkError::Retry { .. }), "{error:?}");
    set(&sink, "1000000");
    sink.store(&large).unwrap();
}

#[test]
fn a_database_that_is_removed_or_replaced_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    for replaced in [false, true] {
        let mut sink = open(&database);
        sink.store(&batch(vec![job_return("web-1", &[])])).unwrap();
        std::fs::remove_file(&database).unwrap();
        if replaced {
            std::fs::write(&database, "").unwrap();
        }
        let error = sink.store(&batch(vec![job_return("web-2", &[])])).unwrap_err();
        assert!(matches!(error, SinkError::Reconnect { .. }), "{error:?}");
        drop(sink);
        open(&database).store(&batch(vec![job_return("web-2", &[])])).unwrap();
        assert_eq!(rows(&database, "SELECT id FROM salt_returns"), ["web-2"]);
        std::fs::remove_file(&database).unwrap();
    }
}

#[test]
fn two_writers_share_a_database() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let minions = ["web-1", "web-2", "web-3", "web-4"];
    std::thread::scope(|scope| {
        for minion in minions {
            let config = Config { timeout: Span::seconds(30), ..config(&database) };
            scope.spawn(move || {
                let mut sink = Sqlite3::open(&config).unwrap();
                for n in 0..20 {
                    let more = [("n", Value::from(n))];
                    sink.store(&batch(vec![job_return(minion, &more)])).unwrap();
                }
            });
        }
    });
    assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#80"]);
    assert_eq!(rows(&database, "SELECT id FROM salt_returns ORDER BY id"), minions);
}
