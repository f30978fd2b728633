//! What the daemon does with a `state_dir` that is not as it left it, through the real binary.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use rusqlite::Connection;
use serde_json::{Value, json};

mod numbered;
use numbered::{Daemon, Place, numbers, saltern, until};

fn file(place: &Place, name: &str) -> Value {
    json!({ "rawfile_json": { "filename": place.path(name) }, "batch": { "linger": "10ms" } })
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn is_aside(folder: &Path, name: &str) -> bool {
    names(folder).iter().any(|found| found.starts_with(&format!("{name}.damaged-2")))
}

#[test]
fn damaged_files_are_put_aside_and_a_spill_that_cannot_be_opened_parks_its_sink_alone() {
    let place = Place::new(20, None);
    let (state_dir, spill) = (place.state_dir(), place.state_dir().join("spill"));
    fs::create_dir_all(spill.join("good")).unwrap();
    fs::write(state_dir.join("dead-letters.db"), "this is no database. ".repeat(100)).unwrap();
    fs::write(spill.join("good/queue-id"), "this is no id").unwrap();
    fs::write(spill.join("down"), "a file where a directory should be").unwrap();
    let sinks = json!({ "good": file(&place, "good"), "down": file(&place, "down") });
    let config = place.configure(&sinks, &json!({}));
    let daemon = Daemon::start(&config);
    until("the bus is read", || place.bus.base().1 > 0);
    place.bus.send_up_to(100);
    let all: Vec<u64> = (0..100).collect();
    until("the other sink has all", || numbers(&place.path("good")) == all);
    let ready = daemon.get("/readyz");
    assert_eq!(ready, "not ready, see /api/v1/status\nthe sink down is parked\n");
    let status: Value = serde_json::from_str(&daemon.get("/api/v1/status")).unwrap();
    let why = status["sinks"][1]["last_error"]["error"].as_str().unwrap();
    assert!(why.contains("cannot open the spill") && why.contains("spill/down"), "{why}");
    assert!(is_aside(&state_dir, "dead-letters.db") && is_aside(&spill.join("good"), "queue-id"));
    assert!(daemon.metric("saltern_state_files_put_aside_total", &[]) > 1.0);
    assert!(numbers(&place.path("down")).is_empty());

    fs::remove_file(spill.join("down")).unwrap();
    until("its spill is open", || daemon.get("/readyz") == "ready\n");
    until("it has what waited in memory", || numbers(&place.path("down")) == all);
    assert_eq!(daemon.dropped("down", ""), 0);
    assert!(daemon.terminate().0.success());
}

#[test]
fn commands_that_root_runs_leave_no_file_of_root_behind() {
    if !is_root() {
        eprintln!("skipped: only root makes files that the daemon's user cannot write");
        return;
    }
    let place = Place::new(20, None);
    let state_dir = place.state_dir();
    fs::create_dir(&state_dir).unwrap();
    chown(&state_dir, Some(12_345), Some(12_345)).unwrap();
    let config = place.configure(&json!({ "out": file(&place, "out") }), &json!({}));
    let daemon = Daemon::start(&config);
    until("the bus is read", || place.bus.base().1 > 0);
    place.bus.send_up_to(10);
    until("all is stored", || numbers(&place.path("out")).len() == 10);
    assert!(daemon.terminate().0.success());
    none_is_of_root(&state_dir);

    // Another process has the databases open, as a daemon would.
    let jobs = state_dir.join("job-cache.db");
    fs::write(&jobs, "").unwrap();
    chown(&jobs, Some(12_345), Some(12_345)).unwrap();
    fs::remove_file(state_dir.join("lock")).unwrap();
    let open: Vec<_> = ["job-cache.db", "dead-letters.db"]
        .map(|name| {
            let database = Connection::open(state_dir.join(name)).unwrap();
            let sql = "PRAGMA journal_mode = wal; CREATE TABLE mine (a); PRAGMA user_version = 1";
            database.execute_batch(sql).unwrap();
            database
        })
        .into();
    for arguments in [
        &["jobs", "list"][..],
        &["spill", "list"],
        &["spill", "drop", "--sink", "out", "--before", "1s"],
        &["dead-letters", "list"],
        &["dead-letters", "replay", "--all"],
        &["dead-letters", "drop", "--all"],
    ] {
        let config = config.to_str().unwrap();
        let output = saltern(&[arguments, &["--config", config]].concat());
        eprintln!("{arguments:?}: {output:?}");
        none_is_of_root(&state_dir);
    }
    drop(open);
    assert!(state_dir.join("lock").exists(), "`spill drop` has made it");
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

fn none_is_of_root(folder: &Path) {
    for name in names(folder) {
        let path = folder.join(name);
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (12_345, 12_345), "{}", path.display());
        if metadata.is_dir() {
            none_is_of_root(&path);
        }
    }
}
