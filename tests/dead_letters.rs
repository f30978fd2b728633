//! What becomes of events that a sink refuses, through the real binary and a database that refuses
//! one event in 10 000.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use rusqlite::Connection;
use serde_json::{Value, json};

mod numbered;
use numbered::{Daemon, Place, saltern, until};

const EVENTS: u64 = 20_000;
const POISON: u64 = 12_345;

struct Refusing {
    place: Place,
    config: String,
    database: Connection,
}

impl Refusing {
    /// A database with a trigger that refuses the tag `n/12345`, and a daemon that has met it.
    fn met() -> (Self, Daemon) {
        let place = Place::new(20, None);
        let path = place.path("salt.db");
        let sink = json!({ "sqlite3": { "database": path }, "batch": { "linger": "20ms" } });
        let config = place.configure(&json!({ "db": sink }), &json!({}));
        let daemon = Daemon::start(&config);
        until("the tables are there", || daemon.metric("saltern_sink_up", &[]) > 0.0);
        let database = Connection::open(&path).unwrap();
        database.busy_timeout(numbered::PATIENCE).unwrap();
        let trigger = format!(
            "CREATE TRIGGER poison BEFORE INSERT ON salt_events WHEN NEW.tag = 'n/{POISON}' \
             BEGIN SELECT RAISE(ABORT, 'this one never'); END"
        );
        database.execute_batch(&trigger).unwrap();
        place.bus.send_up_to(EVENTS);
        let config = config.to_str().unwrap().to_owned();
        let met = Refusing { place, config, database };
        until("all but one are stored", || met.count() == EVENTS - 1);
        (met, daemon)
    }

    fn count(&self) -> u64 {
        let sql = "SELECT count(*) FROM salt_events";
        let count: i64 = self.database.query_row(sql, [], |row| row.get(0)).unwrap();
        u64::try_from(count).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = saltern(&[&["dead-letters"], arguments, &["--config", &self.config]].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn letters(&self) -> Vec<Value> {
        serde_json::from_str(&self.run(&["list", "--output", "json"])).unwrap()
    }
}

#[test]
fn invariant_5_one_event_in_10_000_is_refused_and_delivered_after_the_fix() {
    let (met, daemon) = Refusing::met();
    until("it is a dead letter", || met.letters().len() == 1);
    let letter = met.letters().remove(0);
    assert_eq!(letter["tag"], format!("n/{POISON}"));
    assert_eq!(letter["sink"], "db");
    assert!(letter["reason"].as_str().unwrap().contains("this one never"), "{letter}");
    until("it is counted", || daemon.metric("saltern_sink_dead_letters", &["db"]) > 0.0);
    let status: Value = serde_json::from_str(&daemon.get("/api/v1/status")).unwrap();
    assert_eq!(status["sinks"][0]["dead_letters"], 1.0);
    let shown: Value = serde_json::from_str(&met.run(&["show", "--output", "json"])).unwrap();
    assert_eq!(shown["data"]["n"], POISON);
    assert!(met.run(&["list"]).contains("this one never"));
    assert!(met.run(&["show"]).contains(letter["event_id"].as_str().unwrap()));

    // Nothing is fixed yet: it comes back, as a new letter.
    met.run(&["replay", "--sink", "db"]);
    until("it comes back", || met.letters().first().is_some_and(|new| new["id"] != letter["id"]));
    let again = met.letters().remove(0);
    assert_eq!(again["event_id"], letter["event_id"]);

    met.database.execute_batch("DROP TRIGGER poison").unwrap();
    let id = again["event_id"].as_str().unwrap();
    assert!(met.run(&["replay", "--id", id]).contains("1 letter marked"));
    until("it is stored", || met.count() == EVENTS);
    assert!(met.letters().is_empty());
    let sql = "SELECT event_id FROM salt_events WHERE tag = ?";
    let tag = format!("n/{POISON}");
    let stored: String = met.database.query_row(sql, [&tag], |row| row.get(0)).unwrap();
    assert_eq!(stored, id);
    until("none is counted", || daemon.metric("saltern_sink_dead_letters", &["db"]) < 1.0);
}

#[test]
fn letters_are_replayed_at_the_next_start_and_dropped_when_asked() {
    let (met, daemon) = Refusing::met();
    until("it is a dead letter", || met.letters().len() == 1);
    assert!(daemon.terminate().0.success());
    let all = saltern(&["dead-letters", "drop", "--config", &met.config]);
    assert_eq!(all.status.code(), Some(2), "without a selection it wants --all");
    assert!(met.run(&["drop", "--tag", "other/*"]).starts_with("0 letters"));
    assert!(met.run(&["replay", "--reason", "this one"]).contains("no daemon runs"));
    assert_eq!(met.letters()[0]["replay"], true);

    met.database.execute_batch("DROP TRIGGER poison").unwrap();
    let daemon = Daemon::start(met.place.path("saltern.yaml").as_path());
    until("it is stored", || met.count() == EVENTS);
    until("it is a letter no more", || met.letters().is_empty());
    assert!(daemon.terminate().0.success());
    assert!(met.run(&["drop", "--all"]).starts_with("0 letters"));
}
