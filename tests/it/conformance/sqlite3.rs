//! The sink `sqlite3`.

use std::path::Path;

use rusqlite::Connection;

use super::files::Folder;
use super::{Copies, Repair, Store, for_good};
use crate::harness::bus::{Bus, frame_of, msgpack};
use crate::harness::daemon::{DEADLINE, Daemon, Launch, until};

struct Sqlite3(Folder);

impl Sqlite3 {
    fn connect(&self) -> Connection {
        let connection = Connection::open(self.0.path("salt.db")).unwrap();
        connection.busy_timeout(DEADLINE).unwrap();
        connection
    }
}

impl Store for Sqlite3 {
    const COPIES: Copies = Copies::One;
    const BEFORE: Option<&'static str> = Some("mount -t tmpfs -o size=8m tmpfs FOLDER/store");

    fn start(folder: &Path) -> Self {
        Sqlite3(Folder::new(folder))
    }

    fn settings(&self) -> String {
        format!("{{database: '{}', timeout: 50ms}}", self.0.path("salt.db").display())
    }

    fn tags(&self) -> Option<Vec<String>> {
        let connection = self.connect();
        let mut query = connection.prepare("SELECT tag FROM salt_events ORDER BY id").unwrap();
        let rows = query.query_map([], |row| row.get(0)).unwrap();
        Some(rows.map(Result::unwrap).collect())
    }

    fn look_inside(&mut self, pid: u32) {
        self.0.look_inside(pid);
    }
}

kind! { "sqlite3" in Sqlite3:
    absent: { no_directory }
    killed: { none("a database in a file has no server") }
    held: { hold_transaction }
    hangs: { hold_transaction }
    refusing: { full }
    rejecting: { refuse_number_13 }
    halving: { none("a batch is one transaction") }
    password: { none("the database has no password") }
    removed: { remove }
}

fn no_directory(store: &mut Sqlite3, _: Option<u32>) -> Repair<Sqlite3> {
    store.0.remove();
    Box::new(|store| store.0.make())
}

/// Another process writes to the database.
fn hold_transaction(store: &mut Sqlite3, _: Option<u32>) -> Repair<Sqlite3> {
    let connection = store.connect();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    Box::new(move |_| connection.execute_batch("COMMIT").unwrap())
}

/// The file system is full.
fn full(store: &mut Sqlite3, pid: Option<u32>) -> Repair<Sqlite3> {
    let repair = store.0.fill(pid.unwrap());
    Box::new(move |_| repair())
}

fn refuse_number_13(store: &mut Sqlite3, _: Option<u32>) -> Repair<Sqlite3> {
    let trigger = "CREATE TRIGGER guard BEFORE INSERT ON salt_events WHEN new.tag = 'test/13'
                   BEGIN SELECT RAISE(ABORT, 'bad luck'); END";
    store.connect().execute_batch(trigger).unwrap();
    for_good()
}

/// Somebody deletes the database, and not SQLite's files beside it.
fn remove(store: &mut Sqlite3, _: Option<u32>) -> Repair<Sqlite3> {
    std::fs::remove_file(store.0.path("salt.db")).unwrap();
    for_good()
}

#[test]
fn invariant_8_a_parked_sink_is_not_waited_for() {
    a_parked_sink_is_not_waited_for("durable");
    a_parked_sink_is_not_waited_for("memory");
}

/// A sink that is parked stores nothing any more, and its queue is full and blocks. The daemon does
/// not wait until its deadline, and accounts for every event that it read.
fn a_parked_sink_is_not_waited_for(mode: &str) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bus = Bus::listen(folder);
    let database = folder.join("no.db");
    std::fs::write(&database, "this is no database, however long one looks at it ".repeat(100))
        .unwrap();
    let at = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "state_dir: {}\nshutdown_deadline: 1h\nhttp: {{listen: '127.0.0.1:0'}}\nlog: {{format: json}}\n{}\
         sinks:\n  store:\n    sqlite3: {{database: '{}'}}\n    writers: 1\n\
         \x20   spill: {{mode: {mode}, when_full: block, memory: 1MiB, max_bytes: 4MiB}}\n\
         \x20 neighbour:\n    rawfile_json: {{filename: '{}'}}\n",
        at("state"),
        bus.source(),
        database.display(),
        at("neighbour.jsonl"),
    );
    std::fs::write(folder.join("saltern.yaml"), config).unwrap();
    let daemon = Daemon::spawn(&folder.join("saltern.yaml"), &Launch::default());
    // Sends until nobody listens any more, so it ends with the daemon.
    std::thread::spawn(move || {
        let frame = frame_of("app/held-up", &msgpack(&"x".repeat(2000).into()));
        while bus.try_send_bytes(&frame).is_ok() {}
    });
    // The number of events read stays the same for as long as nothing makes room: nobody ever will.
    let (mut last, mut same) = (0, 0);
    until("the queue to hold up the bus", || {
        let read = daemon.taken();
        same = if read > last { 0 } else { same + 1 };
        last = read;
        read > 0 && same == 20
    });
    daemon.signal("TERM");
    let status = daemon.ended();
    let log = daemon.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("the sink store: opening") && !log.contains("deadline has passed"),
        "{log}"
    );
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let of_store = lines.filter(|line| line["sink"] == "store");
    let accounted: u64 = of_store.filter_map(|line| line["events"].as_u64()).sum();
    let neighbour = std::fs::read_to_string(folder.join("neighbour.jsonl")).unwrap();
    assert_eq!(accounted, neighbour.lines().count() as u64, "{log}");
}
