//! The kinds under test: how each is configured and read back, and how its store is broken. A fault
//! gives back what mends it.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::harness::blocking::DEADLINE;
use crate::harness::kafka::{Isolation, Kafka};

/// A kind of sink and its store, which lives in `store/` of the test's folder.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// What stands under the kind in the configuration. Called once, before the daemon starts;
    /// makes `store/`.
    pub(crate) settings: fn(&Path) -> String,
    /// The tags of the events that the store holds, in order. `None` if it keeps nothing.
    pub(crate) read: Option<fn(&Path) -> Vec<String>>,
    /// How often an event may be there that was sent twice.
    pub(crate) copies: Copies,
}

pub(crate) enum Copies {
    One,
    AtLeastOne,
}

/// Breaks the store in the test's folder; of the daemon with this pid if it has started.
pub(crate) type Fault = fn(&Path, Option<u32>) -> Mend;

/// Mends it again.
pub(crate) type Mend = Box<dyn FnOnce()>;

pub(crate) const RAWFILE_JSON: Kind = Kind {
    name: "rawfile_json",
    settings: |folder| format!("{{filename: '{}'}}", store(folder).join("events").display()),
    read: Some(|folder| tags_of_lines(&folder.join("store/events"))),
    copies: Copies::AtLeastOne,
};

pub(crate) const SQLITE3: Kind = Kind {
    name: "sqlite3",
    settings: |folder| {
        format!("{{database: '{}', timeout: 50ms}}", store(folder).join("salt.db").display())
    },
    read: Some(tags_of_rows),
    copies: Copies::One,
};

pub(crate) const BLACKHOLE: Kind = Kind {
    name: "blackhole",
    settings: |_| "{}".to_owned(),
    read: None,
    copies: Copies::AtLeastOne,
};

pub(crate) const LOCAL: Kind =
    Kind { name: "local", settings: |_| "{}".to_owned(), read: None, copies: Copies::AtLeastOne };

thread_local! {
    /// The test's broker. A test is a thread, and the broker ends with it.
    static BROKER: RefCell<Kafka> = RefCell::new(Kafka::new(1));
}

pub(crate) const KAFKA: Kind = Kind {
    name: "kafka",
    settings: |folder| broker(folder, ""),
    read: Some(tags_of_messages),
    copies: Copies::AtLeastOne,
};

/// After what fails for a while these hold each event once.
pub(crate) const KAFKA_TRANSACTIONS: Kind = Kind {
    name: "kafka",
    settings: |folder| broker(folder, ", transactional: true"),
    read: Some(tags_of_messages),
    copies: Copies::AtLeastOne,
};

/// Starts the broker, unless a fault has taken it away.
fn broker(folder: &Path, more: &str) -> String {
    let properties = "{message.timeout.ms: 3000, socket.timeout.ms: 2000}";
    BROKER.with_borrow_mut(|kafka| {
        if !folder.join("no-store").exists() {
            kafka.start();
        }
        let brokers = kafka.brokers();
        format!("{{brokers: ['{brokers}'], topic: events, properties: {properties}{more}}}")
    })
}

/// The tags of the topic's messages.
fn tags_of_messages(_: &Path) -> Vec<String> {
    let messages = BROKER.with_borrow(|kafka| kafka.read("events", Isolation::Committed));
    messages.into_iter().map(|mut message| message.headers.remove("tag").unwrap()).collect()
}

/// The broker is not there yet.
pub(crate) fn no_broker(folder: &Path, _: Option<u32>) -> Mend {
    std::fs::write(folder.join("no-store"), "").unwrap();
    Box::new(|| BROKER.with_borrow_mut(Kafka::start))
}

/// `kill -9`; the broker comes back with what it had.
pub(crate) fn kill_broker(_: &Path, _: Option<u32>) -> Mend {
    BROKER.with_borrow_mut(|kafka| kafka.kill(0));
    Box::new(|| BROKER.with_borrow_mut(|kafka| kafka.run(0)))
}

/// The broker does not answer.
pub(crate) fn hold_broker(_: &Path, _: Option<u32>) -> Mend {
    BROKER.with_borrow(|kafka| kafka.signal(0, "STOP"));
    Box::new(|| BROKER.with_borrow(|kafka| kafka.signal(0, "CONT")))
}

/// The store's directory, made unless a fault has taken it away.
fn store(folder: &Path) -> PathBuf {
    let store = folder.join("store");
    if !folder.join("no-store").exists() {
        std::fs::create_dir_all(&store).unwrap();
    }
    store
}

/// The tags of a file of JSON lines; every line must be whole.
pub(crate) fn tags_of_lines(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "half a line at the end");
    let tag = |line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["tag"].as_str().unwrap().to_owned()
    };
    text.lines().map(tag).collect()
}

fn tags_of_rows(folder: &Path) -> Vec<String> {
    let connection = Connection::open(folder.join("store/salt.db")).unwrap();
    let mut query = connection.prepare("SELECT tag FROM salt_events ORDER BY id").unwrap();
    let rows = query.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// The test's folder as the daemon sees it in its mount namespace.
fn inside(pid: u32, folder: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root{}", folder.display()))
}

/// The store's files as the daemon sees them, copied to a folder out here. (SQLite resolves links
/// in paths, `/proc/<pid>/root` too, and so would look outside.)
pub(crate) fn copied_out(pid: u32, folder: &Path) -> PathBuf {
    let copied = folder.join("copied");
    std::fs::create_dir_all(copied.join("store")).unwrap();
    for entry in std::fs::read_dir(inside(pid, folder).join("store")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copied.join("store").join(entry.file_name())).unwrap();
    }
    copied
}

/// The directory of the store is missing.
pub(crate) fn no_directory(folder: &Path, _: Option<u32>) -> Mend {
    let folder = folder.to_owned();
    std::fs::write(folder.join("no-store"), "").unwrap();
    Box::new(move || std::fs::create_dir(folder.join("store")).unwrap())
}

/// Nothing more can be written to the file system of the store.
pub(crate) fn full(folder: &Path, pid: Option<u32>) -> Mend {
    let ballast = inside(pid.unwrap(), folder).join("store/ballast");
    let mut file = File::create(&ballast).unwrap();
    for size in [4096, 1] {
        while file.write_all(&vec![b'x'; size]).is_ok() {}
    }
    Box::new(move || std::fs::remove_file(ballast).unwrap())
}

/// The same, and whenever the file is looked at meanwhile, under its lock, its last line is whole.
pub(crate) fn full_with_whole_lines(folder: &Path, pid: Option<u32>) -> Mend {
    let events = inside(pid.unwrap(), folder).join("store/events");
    let mend = full(folder, pid);
    // The file's last page still takes some lines, so a batch begins to be written and cannot be
    // ended.
    Box::new(move || {
        for _ in 0..200 {
            let mut file = File::open(&events).unwrap();
            file.lock_shared().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            file.unlock().unwrap();
            assert!(text.ends_with('\n'), "half a line: {:?}", text.lines().last());
            #[allow(clippy::disallowed_methods)] // between looks
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        mend();
    })
}

/// Another process holds the lock of the file.
pub(crate) fn hold_flock(folder: &Path, _: Option<u32>) -> Mend {
    let file = File::options().append(true).open(folder.join("store/events")).unwrap();
    file.lock().unwrap();
    Box::new(move || file.unlock().unwrap())
}

/// Another process writes to the database.
pub(crate) fn hold_transaction(folder: &Path, _: Option<u32>) -> Mend {
    let connection = Connection::open(folder.join("store/salt.db")).unwrap();
    connection.busy_timeout(DEADLINE).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    Box::new(move || connection.execute_batch("COMMIT").unwrap())
}

/// The database takes any event but number 13.
pub(crate) fn refuse_number_13(folder: &Path, _: Option<u32>) -> Mend {
    let connection = Connection::open(folder.join("store/salt.db")).unwrap();
    connection.busy_timeout(DEADLINE).unwrap();
    connection
        .execute_batch(
            "CREATE TRIGGER guard BEFORE INSERT ON salt_events WHEN new.tag = 'test/13'
             BEGIN SELECT RAISE(ABORT, 'bad luck'); END",
        )
        .unwrap();
    Box::new(|| {})
}

/// Somebody deletes the file.
pub(crate) fn remove_file(folder: &Path, _: Option<u32>) -> Mend {
    std::fs::remove_file(folder.join("store/events")).unwrap();
    Box::new(|| {})
}

/// Somebody deletes the database, and not SQLite's files beside it.
pub(crate) fn remove_database(folder: &Path, _: Option<u32>) -> Mend {
    std::fs::remove_file(folder.join("store/salt.db")).unwrap();
    Box::new(|| {})
}
