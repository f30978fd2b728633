//! The sink with all sorts of events, and with a database that is not as it should be.

use std::os::unix::fs::MetadataExt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rmpv::Value;
use rusqlite::types::ValueRef;
use serde_json::json;

use super::*;
use crate::event::{Authority, Event, job_load};
use crate::jobs::Jobs;
use crate::jobs::store::Question;
use crate::jobs::stores::JobStores;
use crate::sink::contract::Partly;
use crate::sink::sql::dialect::Dialect;
use crate::sink::testing::{READ, batch, batch_read};

const JID: &str = "20261121233336123456";

const LOADS: &str = "SELECT load, load_from FROM jids";

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

fn vouched(authority: Authority, events: Vec<Event>) -> Batch {
    batch_read(READ, authority, events)
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
        // The master vouches for an event that came by the bus before.
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
    assert_eq!(events, [r#"#5 | my/app | {"n": 1} | 2026-11-21 23:36:17.000001 | m | #32"#]);
    // Local time, in the form of Python's `str(datetime.now())`.
    let local = Timestamp::from_microsecond(i64::try_from(READ).unwrap()).unwrap();
    let local = local.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S.000001");
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
    assert_eq!(stored, [format!("runner.a.b | m | {event} | 1 | worked")]);
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
    // A value that was trimmed elsewhere in the return makes no difference to the table.
    assert_eq!(stored("c", Value::from("whole")), [r#""whole""#]);
    assert_eq!(stored("d", Value::from("forged")), [r#""whole""#]);
}

#[test]
fn a_database_of_salt_is_taken_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    // The documentation of Salt's returner makes it like this. One return is stored twice.
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
    // Nobody knows who vouched for the stored return, and it was first.
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
        ["older | -".to_owned(), format!("salt/job/{JID}/ret/web-1 | m")]
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
    let WriteError::Partly(Partly { refused, again: None, .. }) = error else {
        panic!("{error:?}");
    };
    let [Refusal { place: 1, cause }] = refused.as_slice() else { panic!("{refused:?}") };
    assert!(cause.to_string().contains("no bad ones"), "{cause}");
    assert_eq!(rows(&database, "SELECT id FROM salt_returns ORDER BY rowid"), ["good", "fine"]);
    // Nothing of the refused event is stored.
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
    assert!(matches!(error, WriteError::Reject { .. }), "{error:?}");
    assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#0"]);
    sink.store(&batch(vec![job_return("good", &[])])).unwrap();
    assert_eq!(rows(&database, "SELECT id FROM salt_returns"), ["good"]);
}

#[test]
fn what_may_pass_is_tried_again_and_what_may_not_is_fatal() {
    let folder = tempfile::tempdir().unwrap();
    let fails = |path: &Path| Sqlite3::open(&config(path)).err().unwrap();

    let error = fails(&folder.path().join("absent/salt.db"));
    assert!(matches!(error, WriteError::Retry { .. }), "{error:?}");
    assert!(error.chain().contains("create the directory"), "{}", error.chain());

    assert!(matches!(fails(folder.path()), WriteError::Fatal { .. }));

    let text = folder.path().join("text");
    std::fs::write(&text, "not a database, but long enough to be taken for one\n".repeat(99))
        .unwrap();
    assert!(matches!(fails(&text), WriteError::Fatal { .. }));

    let database = folder.path().join("salt.db");
    let mut sink = open(&database);
    let locker = Connection::open(&database).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = sink.store(&batch(vec![job_return("web-1", &[])])).unwrap_err();
    assert!(matches!(error, WriteError::Retry { .. }), "{error:?}");
    locker.execute_batch("COMMIT").unwrap();
    sink.store(&batch(vec![job_return("web-1", &[])])).unwrap();

    locker.execute_batch("DROP TABLE salt_events").unwrap();
    let error = sink.store(&batch(vec![job_return("web-1", &[])])).unwrap_err();
    assert!(matches!(error, WriteError::Reconnect { .. }), "{error:?}");
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
    assert!(matches!(error, WriteError::Retry { .. }), "{error:?}");
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
        assert!(matches!(error, WriteError::Reconnect { .. }), "{error:?}");
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

/// The rows of all tables, in an order of their own.
fn everything(database: &Path) -> Vec<String> {
    let mut all = rows(database, "SELECT * FROM jids ORDER BY jid");
    let columns = "fun, jid, id, fun_args, date, full_ret, success, authority, outcome";
    all.extend(rows(database, &format!("SELECT {columns} FROM salt_returns ORDER BY jid, id")));
    all.extend(rows(database, "SELECT tag, data, event_id FROM salt_events ORDER BY id"));
    all
}

#[test]
fn groups_of_any_size_leave_the_same_rows() {
    static SEVERAL: Dialect = Dialect { max_rows: 5, ..DIALECT };
    static FEW_VALUES: Dialect = Dialect { max_values: 20, max_rows: 100, ..DIALECT };
    let nocache = |fun: &str| {
        let fields = [("jid", "nocache"), ("id", "web-1"), ("fun", fun), ("return", fun)];
        let fields = fields.map(|(key, text)| (key, Value::from(text)));
        event("salt/job/nocache/ret/web-1", &fields)
    };
    let said = |minion: &str, text: &str| job_return(minion, &[("return", Value::from(text))]);
    let new = event(&format!("salt/job/{JID}/new"), &[("jid", Value::from(JID))]);
    let batches = || {
        let again = [nocache("a"), nocache("b")];
        vec![
            batch(vec![said("a", "1"), said("b", "VALUE_TRIMMED"), said("a", "2"), nocache("a")]),
            batch(vec![said("c", "1"), said("b", "VALUE_TRIMMED"), said("c", "2"), said("b", "3")]),
            vouched(Authority::Master, vec![said("a", "4"), said("d", "5"), said("a", "6")]),
            batch(Vec::from(again)),
            batch(vec![said("e", "1"), event("other", &[]), said("a", "7"), said("f", "1")]),
        ]
    };
    let folder = tempfile::tempdir().unwrap();
    let mut left = Vec::new();
    for (name, dialect) in [("one", &DIALECT), ("several", &SEVERAL), ("few", &FEW_VALUES)] {
        let database = folder.path().join(name);
        let mut sink = open(&database);
        sink.statements = Statements::new(&TABLES, dialect);
        sink.store(&batch(vec![Event::new(new.tag(), new.payload())])).unwrap();
        // Twice, as after an answer that was lost.
        for batch in batches().iter().chain(&batches()) {
            sink.store(batch).unwrap();
        }
        left.push(everything(&database));
    }
    assert_eq!(left[0], left[1]);
    assert_eq!(left[0], left[2]);
    let returns = |of: &str| left[0].iter().filter(|row| row.contains(of)).count();
    assert_eq!((returns("\"6\" |"), returns("\"4\" |"), returns("nocache |")), (0, 1, 2));
}

/// A batch of one call of a master.
fn told(event: Option<Event>) -> Batch {
    vouched(Authority::Master, vec![event.unwrap()])
}

#[test]
fn what_was_published_replaces_what_the_bus_said() {
    let folder = tempfile::tempdir().unwrap();
    let fields = [("jid", Value::from(JID)), ("fun", Value::from("test.ping"))];
    let load = [&fields[..], &[("ret", Value::from("")), ("to", Value::from(5))]].concat();
    let load = event("", &load);
    let new = || batch(vec![event(&format!("salt/job/{JID}/new"), &fields)]);
    let published = || told(job_load::of_load(JID, load.payload(), &["web-2".to_owned()]));
    let minions = || told(job_load::of_minions(JID, &["web-1".to_owned()]));
    let ended = || told(job_load::of_end_time(JID, "then"));
    let forged = || {
        let evil = event("", &[("jid", Value::from(JID)), ("fun", Value::from("evil"))]);
        batch(vec![job_load::of_load(JID, evil.payload(), &[]).unwrap()])
    };
    let orders = [
        vec![new(), published(), minions(), ended(), forged()],
        vec![forged(), published(), ended(), new(), minions(), published(), ended()],
    ];
    for (number, order) in orders.iter().enumerate() {
        let database = folder.path().join(number.to_string());
        let mut sink = open(&database);
        for batch in order {
            sink.store(batch).unwrap();
        }
        let stored = rows(&database, "SELECT load, load_from, minions, end_time FROM jids");
        let load = format!(r#"{{"jid": "{JID}", "fun": "test.ping", "ret": "", "to": 5}}"#);
        assert_eq!(stored, [format!(r#"{load} | published | ["web-1","web-2"] | then"#)]);
        // The forged one is an event like any other; the master's own is none.
        assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#2"]);
    }
    // A return that the master hands over as a load counts as long as nothing better is known.
    let returned = || {
        let load = event("", &[("fun", Value::from("test.echo")), ("return", Value::from(1))]);
        told(job_load::of_load(JID, load.payload(), &[]))
    };
    let kept = r#"{"fun": "test.echo", "return": 1} | return"#.to_owned();
    for (name, order, expected) in [
        ("alone", vec![returned()], vec![kept]),
        ("before", vec![returned(), published()], rows(&folder.path().join("0"), LOADS)),
        ("behind", vec![published(), returned()], rows(&folder.path().join("0"), LOADS)),
    ] {
        let database = folder.path().join(name);
        let mut sink = open(&database);
        for batch in order {
            sink.store(&batch).unwrap();
        }
        assert_eq!(rows(&database, LOADS), expected, "{name}");
    }
    // There is nothing to say of a job that is not known.
    let database = folder.path().join("other");
    open(&database).store(&ended()).unwrap();
    assert_eq!(rows(&database, "SELECT count(*) FROM jids"), ["#0"]);
}

#[test]
fn old_rows_go_in_small_steps_and_others_stay() {
    const YEAR: Span = Span::seconds(365 * 24 * 3600);
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let config = Config { keep: Some(YEAR), ..config(&database) };
    let mut sink = Sqlite3::open(&config).unwrap();
    let at = |read: u64, events: Vec<Event>| batch_read(read, Authority::Bus, events);
    let job = |jid: &str| event(&format!("salt/job/{jid}/new"), &[("jid", Value::from(jid))]);
    let now = crate::observe::state::now();
    let old = |n: usize| (0..n).map(|n| event(&format!("old/{n}"), &[])).collect::<Vec<_>>();
    let connection = Connection::open(&database).unwrap();
    // Salt's own returner writes it like this.
    connection
        .execute_batch(&format!(
            "INSERT INTO jids (jid, load) VALUES ('20201121233336123456', '{{}}');
             INSERT INTO jids (jid, load) VALUES ('{JID}', '{{}}');
             INSERT INTO salt_returns (fun, jid, id, date, full_ret, success)
             VALUES ('a', '{JID}', 'a', '2020-11-21 23:33:36.000000', '1', '1');"
        ))
        .unwrap();
    sink.store(&at(1, old(1800))).unwrap();
    // Twice as many as came may go, and that was all of them.
    assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#0"]);
    assert_eq!(rows(&database, "SELECT count(*) FROM salt_returns"), ["#0"]);
    assert_eq!(rows(&database, "SELECT jid FROM jids"), [JID]);

    let count = || rows(&database, "SELECT count(*) FROM salt_events");
    sink.retention = None;
    sink.store(&at(1, old(1800))).unwrap();
    sink.retention = Some(Retention::new(YEAR.0));
    sink.store(&at(now, vec![job(JID)])).unwrap();
    assert_eq!(count(), ["#1301"]);
    for tag in ["a", "b", "c", "d"] {
        sink.store(&at(now, vec![event(tag, &[])])).unwrap();
    }
    assert_eq!(count(), ["#5"]);
    assert_eq!(rows(&database, "SELECT jid FROM jids"), [JID]);
}

/// The answer of the store of jobs.
fn asked(database: &Path, question: Question) -> serde_json::Value {
    answered(&*Sqlite3::job_store(&config(database)).unwrap(), question).unwrap()
}

fn answered(store: &dyn JobStore, question: Question) -> Result<serde_json::Value, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let answer = Jobs::new(folder.path()).answer_to(question, 1 << 20);
    let answer = runtime.block_on(store.ask(answer)).map_err(|error| chain(&error))?;
    let Some(found) = answer.finished().unwrap() else { return Ok(json!(null)) };
    Ok(rmp_serde::from_slice(&found.into_memory().unwrap()).unwrap())
}

#[test]
fn jobs_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let load_of = |jid: &str| Question::GetLoad { jid: jid.to_owned() };
    assert_eq!(asked(&database, load_of(JID)), serde_json::Value::Null);
    std::fs::write(&database, "").unwrap();
    assert_eq!(asked(&database, Question::GetJids), serde_json::Value::Null);

    let other = "20261121233337000000";
    let fields = |jid: &str, fun: &str| {
        [("jid", Value::from(jid)), ("fun", Value::from(fun)), ("tgt", Value::from("*"))]
    };
    let load = event("", &fields(JID, "cmd.run"));
    let minions = Value::Array(vec!["web-2".into(), "web-1".into()]);
    let find_job = [&fields(other, "saltutil.find_job")[..], &[("minions", minions)]].concat();
    let mut sink = open(&database);
    sink.store(&told(job_load::of_load(JID, load.payload(), &["web-1".to_owned()]))).unwrap();
    sink.store(&told(job_load::of_end_time(JID, "then"))).unwrap();
    let ok = [("success", Value::from(true))];
    let events = vec![
        event(&format!("salt/job/{other}/new"), &find_job),
        job_return("web-1", &ok),
        job_return("web-2", &[("return", Value::Nil)]),
    ];
    sink.store(&batch(events)).unwrap();

    let described = json!({"jid": JID, "fun": "cmd.run", "tgt": "*", "Minions": ["web-1"]});
    assert_eq!(asked(&database, load_of(JID)), described);
    assert_eq!(asked(&database, load_of(other))["Minions"], json!(["web-1", "web-2"]));
    assert_eq!(asked(&database, load_of("x")), json!(null));
    let of_job = asked(&database, Question::GetJid { jid: JID.to_owned() });
    let one = json!({"return": "done", "success": true});
    assert_eq!(of_job, json!({"web-1": one, "web-2": {"return": null}}));
    let of_function = asked(&database, Question::GetFun { fun: "cmd.run".to_owned() });
    let whole = json!({"id": "web-1", "jid": JID, "fun": "cmd.run", "return": "done",
        "success": true});
    assert_eq!((&of_function["web-1"], of_function.as_object().unwrap().len()), (&whole, 2));
    let all = asked(&database, Question::GetJids);
    assert_eq!(all[JID]["EndTime"], "then");
    assert_eq!(all[other]["Function"], "saltutil.find_job");
    let last = |count, filter_find_job| {
        let last = asked(&database, Question::GetJidsFilter { count, filter_find_job });
        let jid = |job: &serde_json::Value| job["JID"].as_str().unwrap().to_owned();
        last.as_array().map(|jobs| jobs.iter().map(jid).collect::<Vec<_>>()).unwrap_or_default()
    };
    assert_eq!(last(9, false), [JID, other]);
    assert_eq!(last(1, false), [other]);
    assert_eq!(last(1, true), [JID]);
    assert_eq!(last(0, true), [""; 0]);
    assert_eq!(asked(&database, Question::GetMinions), json!(["web-1", "web-2"]));
    assert_eq!(asked(&database, Question::GetEndtime { jid: JID.to_owned() }), json!("then"));
    assert_eq!(asked(&database, Question::GetEndtime { jid: other.to_owned() }), json!(null));
}

#[test]
fn what_salts_own_returner_wrote_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    // A test of the whole program has Salt write it anew.
    let written = include_str!("../../../tests/fixtures/salt-sqlite3/written.sql");
    let connection = Connection::open(&database).unwrap();
    connection.execute_batch(written).unwrap();
    drop(connection);
    let [first, second, find] = [6, 7, 8].map(|second| format!("2026112123333{second}123456"));
    let of_job = |jid: &str| Question::GetJid { jid: jid.to_owned() };
    // It is asked before the sink has opened it, and after.
    for is_migrated in [false, true] {
        if is_migrated {
            drop(open(&database));
        }
        let load = asked(&database, Question::GetLoad { jid: second.clone() });
        assert_eq!(load["kwargs"]["metadata"], json!({"why": "a test"}));
        assert_eq!((&load["cmd"], &load["user"]), (&json!("publish"), &json!("sudo_root")));
        let returns = asked(&database, of_job(&first));
        assert_eq!(returns["web-1"], json!({"return": true, "success": true}));
        assert_eq!(returns["web-2"]["success"], json!(false));
        assert_eq!(returns["web-2"]["return"]["ä"][0], json!(1));
        let last = asked(&database, Question::GetFun { fun: "test.ping".to_owned() });
        assert_eq!(last["web-1"]["return"], "later");
        assert_eq!(last["web-2"]["jid"], first);
        let all = asked(&database, Question::GetJids);
        assert_eq!(all.as_object().unwrap().len(), 3);
        assert_eq!(all[&second]["Metadata"], json!({"why": "a test"}));
        let filter = Question::GetJidsFilter { count: 1, filter_find_job: true };
        assert_eq!(asked(&database, filter)[0]["JID"], second);
        assert_eq!(asked(&database, Question::GetMinions), json!(["web-1", "web-2"]));
        assert_eq!(asked(&database, Question::GetEndtime { jid: find.clone() }), json!(null));
    }
    // The bus changes nothing later.
    let new = event(&format!("salt/job/{first}/new"), &[("jid", Value::from(&*first))]);
    open(&database).store(&batch(vec![new])).unwrap();
    let load = asked(&database, Question::GetLoad { jid: first });
    assert_eq!(load["cmd"], "publish");
}

/// Salt's tables as its other returners have them: without any column of ours.
static PLAIN: Tables = Tables {
    jids: Table {
        name: "jids",
        columns: &[
            column("jid", JobField::Jid, "PRIMARY KEY"),
            column("load", JobField::Load, "NOT NULL"),
        ],
        indexes: &[],
    },
    returns: Table {
        name: "salt_returns",
        columns: &[
            column("fun", ReturnField::Function, ""),
            column("jid", ReturnField::Jid, ""),
            column("id", ReturnField::Minion, ""),
            column("full_ret", ReturnField::Value, "NOT NULL"),
        ],
        indexes: &[],
    },
    events: Table {
        name: "salt_events",
        columns: &[column("tag", EventField::Tag, ""), column("data", EventField::Data, "")],
        indexes: &[],
    },
    is_trimmed: "0",
};

#[test]
fn tables_without_a_column_of_ours_are_written_read_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let statements = Statements::new(&PLAIN, &DIALECT);
    let mut sqlite = Sqlite::new(Connection::open(&database).unwrap());
    at_once(migrate(&mut sqlite, &statements)).unwrap();
    let mut stored = |batch: &Batch| {
        at_once(write::store(&mut sqlite, &statements, batch, &mut Vec::new())).unwrap();
    };
    let fields = [("jid", Value::from(JID)), ("fun", Value::from("cmd.run"))];
    let load = event("", &[&fields[..], &[("to", Value::from(5))]].concat());
    stored(&batch(vec![event(&format!("salt/job/{JID}/new"), &fields), job_return("a", &[])]));
    stored(&told(job_load::of_load(JID, load.payload(), &["b".to_owned()])));
    stored(&told(job_load::of_minions(JID, &["c".to_owned()])));
    stored(&told(job_load::of_end_time(JID, "then")));
    let others = ["a", "b"].map(|minion| job_return(minion, &[("return", Value::from("more"))]));
    stored(&vouched(Authority::Master, Vec::from(others)));

    let published = json!({"jid": JID, "fun": "cmd.run", "to": 5});
    let left =
        [format!("{JID} | {}", r#"{"jid": "JID", "fun": "cmd.run", "to": 5}"#.replace("JID", JID))];
    assert_eq!(rows(&database, "SELECT jid, load FROM jids"), left);
    let returns = rows(&database, "SELECT id, full_ret FROM salt_returns ORDER BY id");
    assert_eq!(returns, ["a | \"more\"", "b | \"more\""]);
    assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#4"]);

    let store = job_store::SqliteJobs::new(&database, &PLAIN);
    let asked = |question: Question| answered(&store, question).unwrap();
    let (jid, fun) = (JID.to_owned(), "cmd.run".to_owned());
    assert_eq!(asked(Question::GetLoad { jid: jid.clone() }), published);
    let of_job = asked(Question::GetJid { jid: jid.clone() });
    assert_eq!(of_job, json!({"a": {"return": "more"}, "b": {"return": "more"}}));
    assert_eq!(asked(Question::GetFun { fun })["b"]["jid"], JID);
    assert_eq!(asked(Question::GetJids)[JID]["Function"], "cmd.run");
    let last = Question::GetJidsFilter { count: 1, filter_find_job: true };
    assert_eq!(asked(last)[0]["JID"], JID);
    assert_eq!(asked(Question::GetMinions), json!(["a", "b"]));
    assert_eq!(asked(Question::GetEndtime { jid }), json!(null));

    // A job is as old as its id, once no return of it is there.
    let mut retention = Retention::new(Duration::ZERO);
    at_once(retention.step(&mut sqlite, &statements, 1)).unwrap();
    assert_eq!(rows(&database, "SELECT count(*) FROM jids"), ["#1"]);
    sqlite.connection().execute_batch("DELETE FROM salt_returns").unwrap();
    let long_ago = crate::observe::state::now() - 1_795_000_000_000_000;
    let keep = |micros| Retention::new(Duration::from_micros(micros));
    at_once(keep(long_ago).step(&mut sqlite, &statements, 1)).unwrap();
    assert_eq!(rows(&database, "SELECT count(*) FROM jids"), ["#1"], "it is younger");
}

#[test]
fn a_return_that_stands_twice_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let connection = Connection::open(&database).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE jids (jid, load);
             CREATE TABLE salt_returns (fun, jid, id, full_ret);
             INSERT INTO salt_returns VALUES ('f', '1', 'a', '1'), ('f', '1', 'b', '2'),
                 ('f', '1', 'a', '3'), ('f', '1', 'b', '4');",
        )
        .unwrap();
    let all = json!({"a": {"return": 1}, "b": {"return": 2}});
    assert_eq!(asked(&database, Question::GetJid { jid: "1".to_owned() }), all);
    let of_function = asked(&database, Question::GetFun { fun: "f".to_owned() });
    assert_eq!(of_function["a"]["return"], 1);
    assert_eq!(of_function.as_object().unwrap().len(), 2);
}

#[test]
fn columns_that_come_later_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let store = Sqlite3::job_store(&config(&database)).unwrap();
    let connection = Connection::open(&database).unwrap();
    let asked = || {
        let question = Question::GetEndtime { jid: JID.to_owned() };
        answered(&*store, question).unwrap()
    };
    assert_eq!(asked(), json!(null));
    let written = include_str!("../../../tests/fixtures/salt-sqlite3/written.sql");
    connection.execute_batch(written).unwrap();
    assert_eq!(asked(), json!(null));
    let load = event("", &[("jid", Value::from(JID)), ("fun", Value::from("a"))]);
    let mut sink = open(&database);
    sink.store(&told(job_load::of_load(JID, load.payload(), &[]))).unwrap();
    sink.store(&told(job_load::of_end_time(JID, "then"))).unwrap();
    assert_eq!(asked(), json!("then"));
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    for path in [folder.path().to_owned(), folder.path().join("file/salt.db")] {
        let store = Sqlite3::job_store(&config(&path)).unwrap();
        let error = answered(&*store, Question::GetMinions).unwrap_err();
        assert!(error.contains("directory"), "{error}");
    }
}

#[tokio::test]
async fn people_see_how_the_sink_has_judged_a_return() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let claims = [("retcode", Value::from(1)), ("success", Value::from(true))];
    open(&database).store(&batch(vec![job_return("web-1", &claims)])).unwrap();
    let store = Sqlite3::job_store(&config(&database)).unwrap();
    let jobs = Jobs::new(folder.path());
    jobs.set_stores(JobStores::new(vec![("a".to_owned(), store)], &["a".to_owned()]).into());
    let found = jobs.find_stored(JID, 1 << 16).await.unwrap().unwrap();
    let shown = jobs.show_stored(found, 1 << 16).unwrap().into_memory().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    let of_minion = &shown["returns"]["web-1"];
    assert_eq!(
        (&of_minion["outcome"], &of_minion["vouched_by"]),
        (&json!("failed"), &json!("bus"))
    );
    assert_eq!((&of_minion["ok"], &shown["failed"]), (&json!(false), &json!(1)));
    // An id of no job has returns of many.
    assert!(jobs.find_stored("nocache", 1 << 16).await.unwrap().is_none());
}

#[tokio::test]
async fn a_question_that_nobody_waits_for_ends() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("salt.db");
    let connection = Connection::open(&database).unwrap();
    // It has no end.
    connection
        .execute_batch(
            "CREATE TABLE jids (jid, load);
             INSERT INTO jids VALUES ('1', '{}');
             CREATE VIEW salt_returns AS WITH RECURSIVE numbers (number) AS
                 (SELECT 1 UNION ALL SELECT 1 FROM numbers)
             SELECT 'f' AS fun, '1' AS jid, 'a' AS id, '1' AS full_ret FROM numbers;",
        )
        .unwrap();
    let store = Sqlite3::job_store(&config(&database)).unwrap();
    let stores = JobStores::new(vec![("a".to_owned(), store)], &[]);
    let jobs = Jobs::new(folder.path());
    let ask = async |question: Question, time: Duration| {
        let until = tokio::time::Instant::now() + time;
        stores.ask_one("a", until, || jobs.answer_to(question.clone(), 1 << 10)).await
    };
    for _ in 0..8 {
        assert!(ask(Question::GetMinions, Duration::from_millis(30)).await.is_err());
    }
    let began = std::time::Instant::now();
    let load = Question::GetLoad { jid: "1".to_owned() };
    while ask(load.clone(), Duration::from_secs(9)).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(120), "all turns are taken");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn the_script_makes_the_tables_that_the_sink_makes() {
    let folder = tempfile::tempdir().unwrap();
    let [made, scripted] = ["made", "scripted"].map(|name| folder.path().join(name));
    drop(open(&made));
    let script = Sqlite3::tables(None, &TableWish::default()).unwrap();
    Connection::open(&scripted).unwrap().execute_batch(&script).unwrap();
    let schema = "SELECT name, sql FROM sqlite_master ORDER BY name";
    assert_eq!(rows(&scripted, schema), rows(&made, schema));
}
