//! A minion fires a return of another one onto the bus. The return that the master itself hands
//! over holds, whichever comes first, in the job cache and in the tables of `sqlite3`.

use std::path::Path;
use std::process::Command;

use crate::harness::beside::{DEADLINE, Daemon};
use crate::harness::daemon::SALTERN;
use crate::harness::returner_peer::{Peer, map, packed, request};
use rmpv::Value;
use rusqlite::Connection;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

const JID: &str = "20261121233336123456";

const SOURCES: &str = "salt_bus: {address: FOLDER/bus}\n  salt:\n    \
                       returner: {bind: 'ipc://FOLDER/r'}";

const SINKS: &str = "rawfile_json: {filename: FOLDER/out}\n    batch: {linger: 10ms}\n  tables:\n    \
                     sqlite3: {database: FOLDER/db/salt.db}\n    batch: {linger: 10ms}\n    \
                     retry: {initial: 20ms, max: 100ms}";

/// Asks the returner's socket, and gives the answer's value.
async fn ask(daemon: &Daemon, op: &str, more: &[(&str, Value)]) -> Option<Value> {
    let answer = Peer::at(daemon).await.ask(request(1, op, more)).await;
    assert!(answer["error"].is_nil(), "{answer}");
    let mut value = answer["value"].as_slice()?;
    Some(rmpv::decode::read_value(&mut value).unwrap())
}

/// A daemon, and the bus of the master that it reads.
struct Estate {
    daemon: Daemon,
    bus: UnixListener,
    reader: Option<UnixStream>,
}

/// The load of a return.
fn load(text: &str, retcode: u8) -> Value {
    map(&[
        ("jid", JID.into()),
        ("id", "victim".into()),
        ("fun", "cmd.run".into()),
        ("return", text.into()),
        ("retcode", retcode.into()),
        ("success", (retcode == 0).into()),
    ])
}

fn truth() -> Value {
    load("true", 0)
}

fn forgery() -> Value {
    load("forged", 1)
}

fn tag_of(minion: &str) -> String {
    format!("salt/job/{JID}/ret/{minion}")
}

impl Estate {
    fn start() -> Self {
        let daemon = Daemon::start_with(SOURCES, SINKS);
        let bus = UnixListener::bind(daemon.path("bus")).unwrap();
        Estate { daemon, bus, reader: None }
    }

    /// Lets the tables be written.
    fn heal(&self) {
        std::fs::create_dir_all(self.daemon.path("db")).unwrap();
    }

    /// Fires an event and waits until `count` of its tag are stored.
    async fn fire(&mut self, tag: &str, data: &Value, count: usize) {
        if self.reader.is_none() {
            self.reader = Some(timeout(DEADLINE, self.bus.accept()).await.unwrap().unwrap().0);
        }
        let body = [tag.as_bytes(), b"\n\n", &packed(data)].concat();
        let frame = map(&[("head", map(&[])), ("body", Value::Binary(body))]);
        self.reader.as_mut().unwrap().write_all(&packed(&frame)).await.unwrap();
        self.daemon.until(tag, || self.daemon.stored_as(tag) == count).await;
    }

    /// The master hands over what the victim returned.
    async fn hand_over(&self, load: &Value) {
        let load = Value::Binary(packed(load));
        assert_eq!(ask(&self.daemon, "return", &[("load", load)]).await, None);
    }

    /// Waits until Salt is told that the victim returned this.
    async fn wait_until_salt_is_told(&self, text: &str) {
        let waiting = async {
            loop {
                let returns = ask(&self.daemon, "get_jid", &[("jid", JID.into())]).await.unwrap();
                if returns["victim"]["return"] == Value::from(text) {
                    break;
                }
            }
        };
        let is_told = timeout(DEADLINE, waiting).await.is_ok();
        assert!(is_told, "waited in vain for `{text}`; the log:\n{}", self.daemon.log());
    }

    /// Waits until the table holds this, as `full_ret authority`, and all events are stored.
    async fn wait_for_row(&self, row: &str, events: i64) {
        let database = self.daemon.path("db/salt.db");
        let mut found = None;
        let is_there = || {
            found = rows(&database);
            found == Some((vec![row.to_owned()], events))
        };
        self.daemon.until(&format!("the row {row}"), is_there).await;
    }

    /// The return of the victim as people are shown it.
    fn shown(&self) -> serde_json::Value {
        let answer = self.daemon.get(&format!("/api/v1/jobs/{JID}"));
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let job: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&job["returned"], &job["missing"]), (&json!(1), &json!(0)), "{job}");
        assert_eq!(job["failed"], json!(u8::from(job["returns"]["victim"]["ok"] == false)));
        job["returns"]["victim"].clone()
    }

    /// The same on the command line.
    fn table(&self) -> String {
        let mut saltern = Command::new(SALTERN);
        saltern.args(["jobs", "show", JID, "--config"]).arg(self.daemon.path("config.yaml"));
        let output = saltern.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn conflicts(&self) -> f64 {
        self.daemon.known_metric("saltern_job_return_conflicts_total")
    }

    async fn wait_for_a_conflict(&self) {
        self.daemon.until("a conflict", || self.conflicts() > 0.5).await;
    }

    fn warnings(&self) -> usize {
        self.daemon.log().matches("two returns of one minion for one job differ").count()
    }
}

/// The returns of a database, and how many events it has; `None` while it cannot be read.
fn rows(database: &Path) -> Option<(Vec<String>, i64)> {
    let database = Connection::open(database).ok()?;
    let sql = "SELECT full_ret || ' ' || authority FROM salt_returns ORDER BY rowid";
    let mut select = database.prepare(sql).ok()?;
    let rows = select.query_map([], |row| row.get(0)).ok()?.collect::<Result<_, _>>().ok()?;
    let sql = "SELECT count(*) FROM salt_events";
    Some((rows, database.query_row(sql, [], |row| row.get(0)).ok()?))
}

#[tokio::test]
async fn invariant_7_a_forgery_gives_way_to_the_return_that_the_master_hands_over() {
    let mut estate = Estate::start();
    estate.heal();
    estate.fire(&tag_of("victim"), &forgery(), 1).await;
    estate.wait_until_salt_is_told("forged").await;
    estate.wait_for_row("\"forged\" bus", 1).await;
    // Salt's master fires the event, and hands the same over to its job cache.
    estate.fire(&tag_of("victim"), &truth(), 2).await;
    estate.hand_over(&truth()).await;
    estate.wait_until_salt_is_told("true").await;
    estate.wait_for_row("\"true\" master", 2).await;
    let shown = estate.shown();
    assert_eq!((&shown["conflict"], &shown["vouched_by"]), (&json!(true), &json!("master")));
    assert!(estate.conflicts() > 0.5);
    assert_eq!(estate.warnings(), 1);
    assert!(estate.table().contains("worked (conflict)"), "{}", estate.table());
    // Nobody else has the same event twice.
    estate.fire("last", &map(&[]), 1).await;
    assert_eq!(estate.daemon.stored_as(&tag_of("victim")), 2);
    estate.daemon.stop().await;
}

#[tokio::test]
async fn invariant_7_a_forgery_comes_too_late() {
    let mut estate = Estate::start();
    estate.heal();
    estate.hand_over(&truth()).await;
    estate.wait_until_salt_is_told("true").await;
    estate.fire(&tag_of("victim"), &forgery(), 2).await;
    estate.wait_for_row("\"true\" master", 2).await;
    // The job cache has it at its leisure.
    estate.wait_for_a_conflict().await;
    estate.wait_until_salt_is_told("true").await;
    assert_eq!(estate.shown()["conflict"], json!(true));
    // A repeat of the truth is no conflict.
    estate.hand_over(&truth()).await;
    assert!((estate.conflicts() - 1.0).abs() < 0.1);
    estate.daemon.stop().await;
}

#[tokio::test]
async fn invariant_7_of_two_that_the_bus_alone_brings_the_first_stays_and_the_conflict_shows() {
    for (first, second, text) in [(truth(), forgery(), "true"), (forgery(), truth(), "forged")] {
        let mut estate = Estate::start();
        estate.heal();
        estate.fire(&tag_of("victim"), &first, 1).await;
        estate.fire(&tag_of("victim"), &second, 2).await;
        estate.wait_for_a_conflict().await;
        estate.wait_until_salt_is_told(text).await;
        estate.wait_for_row(&format!("\"{text}\" bus"), 2).await;
        let shown = estate.shown();
        assert_eq!((&shown["conflict"], &shown["vouched_by"]), (&json!(true), &json!("bus")));
        estate.daemon.stop().await;
    }
}

/// The tables cannot be written at first, so that everything waits in the spill when the daemon
/// dies.
#[tokio::test]
async fn invariant_7_who_vouches_for_a_return_is_known_after_a_restart() {
    for is_truth_first in [true, false] {
        let mut estate = Estate::start();
        if is_truth_first {
            estate.hand_over(&truth()).await;
        }
        estate.fire(&tag_of("victim"), &forgery(), 1 + usize::from(is_truth_first)).await;
        if !is_truth_first {
            estate.fire(&tag_of("victim"), &truth(), 2).await;
            estate.hand_over(&truth()).await;
        }
        estate.daemon.kill();
        estate.daemon.start_again();
        estate.heal();
        estate.wait_for_row("\"true\" master", 2).await;
        estate.wait_until_salt_is_told("true").await;
        estate.daemon.stop().await;
    }
}

#[tokio::test]
async fn invariant_7_a_return_whose_tag_names_another_minion_gives_way_to_any_other() {
    let mut estate = Estate::start();
    estate.heal();
    estate.fire(&tag_of("other"), &forgery(), 1).await;
    estate.wait_until_salt_is_told("forged").await;
    estate.wait_for_row("\"forged\" contradicted", 1).await;
    let shown = estate.shown();
    assert_eq!(shown["contradicting_tag"], json!(tag_of("other")));
    assert!(estate.table().contains("failed (its tag differs)"), "{}", estate.table());
    assert_eq!(shown["vouched_by"], json!("contradicted"));
    assert!((estate.conflicts() - 1.0).abs() < 0.1);
    estate.fire(&tag_of("victim"), &truth(), 1).await;
    estate.wait_until_salt_is_told("true").await;
    estate.wait_for_row("\"true\" bus", 2).await;
    let shown = estate.shown();
    assert_eq!((&shown["contradicting_tag"], &shown["conflict"]), (&json!(null), &json!(true)));
    // The same once more, under the tag of another job.
    let elsewhere = "salt/job/20261121233336999999/ret/victim";
    estate.fire(elsewhere, &forgery(), 1).await;
    estate.wait_for_row("\"true\" bus", 3).await;
    estate.wait_until_salt_is_told("true").await;
    estate.daemon.stop().await;
}

#[tokio::test]
async fn invariant_7_a_forged_new_job_does_not_replace_what_was_published() {
    let mut estate = Estate::start();
    estate.heal();
    let published = |fun: &str| map(&[("jid", JID.into()), ("fun", fun.into())]);
    let load = Value::Binary(packed(&published("test.ping")));
    let more = [("jid", JID.into()), ("load", load), ("minions", Value::Array(Vec::new()))];
    ask(&estate.daemon, "save_load", &more).await;
    estate.fire(&format!("salt/job/{JID}/new"), &published("cmd.run"), 1).await;
    // A return behind it, by the same way: the job cache has had both.
    estate.fire(&tag_of("victim"), &truth(), 1).await;
    estate.wait_until_salt_is_told("true").await;
    let load = ask(&estate.daemon, "get_load", &[("jid", JID.into())]).await.unwrap();
    assert_eq!(load["fun"], Value::from("test.ping"), "{load}");
    estate.daemon.stop().await;
}
