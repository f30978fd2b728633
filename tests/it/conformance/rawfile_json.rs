//! The sink `rawfile_json`.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::files::{Folder, tags_of_lines};
use super::lives::{self, Life, SIZE};
use super::{Repair, Store, for_good};
use crate::harness::bus::tag;
use crate::harness::daemon::{STOP_LIMIT, pause, until};

struct RawfileJson(Folder);

impl Store for RawfileJson {
    const BEFORE: Option<&'static str> = Some("mount -t tmpfs -o size=128k tmpfs FOLDER/store");

    fn start(folder: &Path) -> Self {
        RawfileJson(Folder::new(folder))
    }

    fn settings(&self) -> String {
        format!("{{filename: '{}'}}", self.0.path("events").display())
    }

    fn tags(&self) -> Option<Vec<String>> {
        Some(tags_of_lines(&self.0.path("events")))
    }

    fn look_inside(&mut self, pid: u32) {
        self.0.look_inside(pid);
    }
}

kind! { "rawfile_json" in RawfileJson:
    absent: { no_directory }
    killed: { none("a file has no server") }
    held: { hold_lock }
    hangs: { none("a wait for a file's lock ends with the lock") }
    refusing: { full }
    rejecting: { none("a file takes any line") }
    halving: { full_with_whole_lines }
    password: { none("a file has no password") }
    removed: { remove }
}

fn no_directory(store: &mut RawfileJson, _: Option<u32>) -> Repair<RawfileJson> {
    store.0.remove();
    Box::new(|store| store.0.make())
}

/// Another process holds the lock of the file.
fn hold_lock(store: &mut RawfileJson, _: Option<u32>) -> Repair<RawfileJson> {
    let file = File::options().append(true).open(store.0.path("events")).unwrap();
    file.lock().unwrap();
    Box::new(move |_| file.unlock().unwrap())
}

/// The file system is full.
fn full(store: &mut RawfileJson, pid: Option<u32>) -> Repair<RawfileJson> {
    let repair = store.0.fill(pid.unwrap());
    Box::new(move |_| repair())
}

/// The same, and whenever the file is looked at meanwhile, under its lock, its last line is whole.
/// The file's last page still takes some lines, so a batch begins to be written and cannot be
/// ended.
fn full_with_whole_lines(store: &mut RawfileJson, pid: Option<u32>) -> Repair<RawfileJson> {
    let events = store.0.inside(pid.unwrap()).join("events");
    let repair = store.0.fill(pid.unwrap());
    Box::new(move |_| {
        for _ in 0..200 {
            let mut file = File::open(&events).unwrap();
            file.lock_shared().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            file.unlock().unwrap();
            assert!(text.ends_with('\n'), "half a line: {:?}", text.lines().last());
            pause(Duration::from_millis(2));
        }
        repair();
    })
}

/// Somebody deletes the file.
fn remove(store: &mut RawfileJson, _: Option<u32>) -> Repair<RawfileJson> {
    fs::remove_file(store.0.path("events")).unwrap();
    for_good()
}

#[test]
fn invariant_1_the_bus_is_never_held_up() {
    for mode in ["durable", "overflow", "memory"] {
        lives::invariant_1_the_bus_is_never_held_up("rawfile_json", hold_lock, mode);
    }
}

/// A named pipe that nobody reads.
#[test]
fn invariant_8_stops_in_time_at_a_pipe() {
    let mut life = Life::<RawfileJson>::begin("rawfile_json");
    let pipe = life.store.0.path("events");
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    let daemon = life.daemon();
    life.bus.send(0..1000, SIZE);
    daemon.wait_stored("neighbour", 1000);
    assert!(daemon.stored("store") < 1000);
    let begin = Instant::now();
    daemon.stop();
    assert!(begin.elapsed() < STOP_LIMIT, "it took {:?}", begin.elapsed());
    life.assert_neighbour_holds(1000);
}

#[test]
fn sighup_opens_the_file_anew() {
    let mut life = Life::<RawfileJson>::begin("rawfile_json");
    let daemon = life.daemon();
    life.bus.send(0..50, SIZE);
    daemon.wait_stored("store", 50);
    let (file, aside) = (life.store.0.path("events"), life.path().join("aside"));
    fs::rename(&file, &aside).unwrap();
    life.bus.send(50..100, SIZE);
    daemon.wait_stored("store", 100);
    daemon.signal("HUP");
    until("a new file", || {
        // The sink opens it with its next batch.
        life.bus.send(100..101, SIZE);
        file.exists()
    });
    daemon.stop();
    let expected: Vec<_> = (0..100).map(tag).collect();
    assert_eq!(tags_of_lines(&aside)[..100], expected);
}
