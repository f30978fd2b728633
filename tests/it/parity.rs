//! A Salt master's own `event_return: rawfile_json` and saltern stored the same events of the same
//! bus, recorded at the same time.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde_json::Value;

use crate::harness::daemon::Daemon;

/// A recording, and the lines of Salt's file that are not in it: the two at its start, fired before
/// the recorder had connected, and those fired after it had gone.
struct Capture {
    name: &'static str,
    events: usize,
    after: &'static [&'static str],
}

const BEFORE: [&str; 2] = ["salt/event_listen/start", "salt/presence/present"];

const CAPTURES: [Capture; 3] = [
    Capture {
        name: "salt-3006.28",
        events: 159,
        after: &[
            "salt/job/20261121233954963689/ret/web-3.example.com",
            "salt/job/20261121233954989372/ret/db-3.example.com",
            "salt/beacon/web-3.example.com/status/2026-11-21T23:39:56.896832",
            "salt/beacon/db-3.example.com/status/2026-11-21T23:39:56.910675",
        ],
    },
    Capture {
        name: "salt-3007.15",
        events: 177,
        after: &[
            "salt/job/20261121234146563653/ret/web-3.example.com",
            "salt/beacon/db-3.example.com/status/2026-11-21T23:41:48.415022",
            "salt/beacon/web-3.example.com/status/2026-11-21T23:41:48.480636",
        ],
    },
    Capture {
        name: "salt-3008.3",
        events: 169,
        after: &[
            "salt/job/20261121233741385692/ret/web-3.example.com",
            "salt/beacon/db-3.example.com/status/2026-11-21T23:37:43.217797",
        ],
    },
];

impl Capture {
    fn file(&self, ending: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
        folder.join(format!("{}.{ending}", self.name))
    }

    /// The events that Salt wrote while the recorder was connected.
    fn expected(&self) -> Vec<Value> {
        let all = lines(&self.file("events.jsonl"));
        let tags: Vec<_> = all.iter().map(|line| line["tag"].as_str().unwrap()).collect();
        assert_eq!(tags[..2], BEFORE);
        assert_eq!(tags[2 + self.events..], *self.after);
        all[2..2 + self.events].to_vec()
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs a finite source into both sinks; what each has stored, in order.
fn replayed(source: &Path, folder: &Path) -> (Vec<Value>, Vec<Value>) {
    let (file, database) = (folder.join("events"), folder.join("salt.db"));
    let daemon = Daemon::start(
        folder,
        &format!(
            "sources:\n  recording: {{replay: {{path: '{}'}}}}\n\
             sinks:\n  archive: {{rawfile_json: {{filename: '{}'}}}}\n\
             \x20 tables: {{sqlite3: {{database: '{}'}}}}\n",
            source.display(),
            file.display(),
            database.display()
        ),
    );
    let status = daemon.ended();
    assert!(status.success(), "{status}: {}", daemon.log());
    let connection = Connection::open(&database).unwrap();
    let mut query = connection.prepare("SELECT tag, data FROM salt_events ORDER BY id").unwrap();
    let rows = query.query_map([], |row| {
        let data: String = row.get(1)?;
        let data: Value = serde_json::from_str(&data).unwrap();
        Ok(serde_json::json!({"tag": row.get::<_, String>(0)?, "data": data}))
    });
    (lines(&file), rows.unwrap().map(Result::unwrap).collect())
}

fn check(found: &[Value], expected: &[Value], what: &str) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected, "{what}");
    }
    assert_eq!(found.len(), expected.len(), "{what}");
}

/// The job tables hold what the events say.
fn check_tables(folder: &Path, expected: &[Value]) {
    let connection = Connection::open(folder.join("salt.db")).unwrap();
    // `salt --batch` of 3008 publishes one job several times; the first load is kept.
    let mut jobs = std::collections::HashMap::new();
    let mut returns = std::collections::HashMap::new();
    for event in expected {
        let (tag, data) = (event["tag"].as_str().unwrap(), &event["data"]);
        let parts: Vec<_> = tag.split('/').collect();
        match parts[..] {
            ["salt", "job" | "run", jid, "new"] => {
                jobs.entry(jid).or_insert(data);
            }
            ["salt", "job", jid, "ret", minion] => {
                returns.insert((jid, Some(minion)), (data, &data["return"]));
            }
            // Salt's own job cache has a runner's whole event as what the master returned.
            ["salt", "run", jid, "ret"] => {
                returns.insert((jid, None), (data, data));
            }
            _ => {}
        }
    }
    let count = |table: &str| {
        let sql = format!("SELECT count(*) FROM {table}");
        connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert!(!jobs.is_empty() && !returns.is_empty());
    let expected = [jobs.len(), returns.len()].map(|len| i64::try_from(len).unwrap());
    assert_eq!([count("jids"), count("salt_returns")], expected);
    for (jid, data) in jobs {
        let load: String = connection
            .query_row("SELECT load FROM jids WHERE jid = ?1", [jid], |row| row.get(0))
            .unwrap();
        assert_eq!(serde_json::from_str::<Value>(&load).unwrap(), *data);
    }
    for ((jid, minion), (data, returned)) in returns {
        let sql = "SELECT fun, full_ret, success FROM salt_returns
                   WHERE jid = ?1 AND (?2 IS NULL OR id = ?2)";
        let (fun, value, success): (String, String, String) = connection
            .query_row(sql, rusqlite::params![jid, minion], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .unwrap();
        assert_eq!(fun, data["fun"].as_str().unwrap());
        assert_eq!(serde_json::from_str::<Value>(&value).unwrap(), *returned);
        let expected = data.get("success").map_or("", |ok| if ok == true { "1" } else { "0" });
        assert_eq!(success, expected);
    }
}

fn parity(capture: &Capture) {
    let expected = capture.expected();
    let folder = tempfile::tempdir().unwrap();
    let (archive, tables) = replayed(&capture.file("bus"), folder.path());
    check(&archive, &expected, "rawfile_json of the recorded bus");
    check(&tables, &expected, "sqlite3 of the recorded bus");
    check_tables(folder.path(), &expected);

    let folder = tempfile::tempdir().unwrap();
    let all = lines(&capture.file("events.jsonl"));
    let (archive, tables) = replayed(&capture.file("events.jsonl"), folder.path());
    check(&archive, &all, "rawfile_json of Salt's lines");
    check(&tables, &all, "sqlite3 of Salt's lines");
    check_tables(folder.path(), &all);
}

#[test]
fn parity_with_salt_3006() {
    parity(&CAPTURES[0]);
}

#[test]
fn parity_with_salt_3007() {
    parity(&CAPTURES[1]);
}

#[test]
fn parity_with_salt_3008() {
    parity(&CAPTURES[2]);
}
