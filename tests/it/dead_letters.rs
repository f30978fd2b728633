//! Events that a sink refuses, through the real binary and a database that refuses
//! some.

use rusqlite::{Connection, OptionalExtension as _};
use serde_json::{Value, json};

use crate::harness::daemon::{DEADLINE, Daemon, saltern, until};
use crate::harness::numbered::Place;

const EVENTS: u64 = 20_000;
const POISON: u64 = 12_345;

struct Refusing {
    place: Place,
    config: String,
    database: Connection,
}

impl Refusing {
    /// A database with a trigger that refuses the tags `n/NUMBER`, and a daemon that has met them.
    fn met(poison: &[u64]) -> (Self, Daemon) {
        let place = Place::new(20, None);
        let path = place.path("salt.db");
        let sink = json!({ "sqlite3": { "database": path }, "batch": { "linger": "20ms" } });
        let config = place.configure(&json!({ "db": sink }), &json!({}));
        let daemon = Daemon::listening(&config);
        until("the tables are there", || daemon.metric("saltern_sink_up", &[]) > 0.0);
        let database = Connection::open(&path).unwrap();
        database.busy_timeout(DEADLINE).unwrap();
        let tags: Vec<_> = poison.iter().map(|number| format!("'n/{number}'")).collect();
        let trigger = format!(
            "CREATE TRIGGER poison BEFORE INSERT ON salt_events WHEN NEW.tag IN ({}) \
             BEGIN SELECT RAISE(ABORT, 'this one never'); END",
            tags.join(", ")
        );
        database.execute_batch(&trigger).unwrap();
        place.bus.send_up_to(EVENTS);
        let config = config.to_str().unwrap().to_owned();
        let met = Refusing { place, config, database };
        let stored = EVENTS - u64::try_from(poison.len()).unwrap();
        until("all others are stored", || met.count() == stored);
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

    /// The event id that was stored with this tag.
    fn stored_id(&self, tag: &str) -> Option<String> {
        let sql = "SELECT event_id FROM salt_events WHERE tag = ?";
        self.database.query_row(sql, [tag], |row| row.get(0)).optional().unwrap()
    }

    fn letters(&self) -> Vec<Value> {
        serde_json::from_str(&self.run(&["list", "--output", "json"])).unwrap()
    }
}

#[test]
fn invariant_5_one_event_in_10_000_is_refused_and_delivered_after_the_fix() {
    let (met, daemon) = Refusing::met(&[POISON]);
    until("it is a dead letter", || met.letters().len() == 1);
    let letter = met.letters().remove(0);
    assert_eq!(letter["tag"], format!("n/{POISON}"));
    assert_eq!(letter["sink"], "db");
    assert!(letter["reason"].as_str().unwrap().contains("this one never"), "{letter}");
    until("it is counted", || daemon.metric("saltern_sink_dead_letters", &["db"]) > 0.0);
    let status: Value = serde_json::from_str(&daemon.body("/api/v1/status")).unwrap();
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
    assert_eq!(met.stored_id(&format!("n/{POISON}")).as_deref(), Some(id));
    until("none is counted", || daemon.metric("saltern_sink_dead_letters", &["db"]) < 1.0);
}

#[test]
fn one_letter_of_several_is_replayed_by_its_id_and_no_other() {
    // Side by side and apart.
    let (met, daemon) = Refusing::met(&[POISON, POISON + 1, 77]);
    until("all are dead letters", || met.letters().len() == 3);
    met.database.execute_batch("DROP TRIGGER poison").unwrap();
    let of = |letters: &[Value], number: u64| {
        let tag = format!("n/{number}");
        letters.iter().find(|letter| letter["tag"] == *tag).cloned().unwrap()
    };
    let letters = met.letters();

    // By the event's id, and by the letter's number.
    let event_id = of(&letters, POISON + 1)["event_id"].as_str().unwrap().to_owned();
    assert!(met.run(&["replay", "--id", &event_id]).contains("1 letter marked"));
    until("it is stored", || met.count() == EVENTS - 2);
    until("it is a letter no more", || met.letters().len() == 2);
    assert_eq!(met.stored_id(&format!("n/{}", POISON + 1)), Some(event_id));
    assert_eq!(
        met.letters(),
        [of(&letters, 77), of(&letters, POISON)],
        "the others lie as they lay"
    );

    let number = of(&letters, 77)["id"].to_string();
    assert!(met.run(&["replay", "--id", &number]).contains("1 letter marked"));
    until("that is stored too", || met.count() == EVENTS - 1);
    until("it is a letter no more either", || met.letters().len() == 1);
    assert_eq!(met.stored_id("n/77").as_deref(), of(&letters, 77)["event_id"].as_str());
    assert_eq!(met.letters(), [of(&letters, POISON)]);
    assert_eq!(met.stored_id(&format!("n/{POISON}")), None);
    assert!(met.run(&["replay", "--id", "999999"]).starts_with("0 letters"));
    assert!(daemon.terminate().0.success());
    assert_eq!((met.count(), met.letters().len()), (EVENTS - 1, 1));
}

#[test]
fn letters_are_replayed_at_the_next_start_and_dropped_when_asked() {
    let (met, daemon) = Refusing::met(&[POISON]);
    until("it is a dead letter", || met.letters().len() == 1);
    assert!(daemon.terminate().0.success());
    let all = saltern(&["dead-letters", "drop", "--config", &met.config]);
    assert_eq!(all.status.code(), Some(2), "without a selection it wants --all");
    assert!(met.run(&["drop", "--tag", "other/*"]).starts_with("0 letters"));
    assert!(met.run(&["replay", "--reason", "this one"]).contains("no daemon runs"));
    assert_eq!(met.letters()[0]["replay"], true);

    met.database.execute_batch("DROP TRIGGER poison").unwrap();
    let daemon = Daemon::listening(met.place.path("saltern.yaml").as_path());
    until("it is stored", || met.count() == EVENTS);
    until("it is a letter no more", || met.letters().is_empty());
    assert!(daemon.terminate().0.success());
    assert!(met.run(&["drop", "--all"]).starts_with("0 letters"));
}
