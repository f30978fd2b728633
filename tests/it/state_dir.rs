use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::daemon::{Daemon, pause, saltern, until};
use crate::harness::numbered::{Place, numbers};

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
    let daemon = Daemon::listening(&config);
    until("the bus is read", || place.bus.base().1 > 0);
    place.bus.send_up_to(100);
    let all: Vec<u64> = (0..100).collect();
    until("the other sink has all", || numbers(&place.path("good")) == all);
    let ready = daemon.body("/readyz");
    assert_eq!(ready, "not ready, see /api/v1/status\nthe sink down is parked\n");
    let status: Value = serde_json::from_str(&daemon.body("/api/v1/status")).unwrap();
    let why = status["sinks"][1]["last_error"]["error"].as_str().unwrap();
    assert!(why.contains("cannot open the spill") && why.contains("spill/down"), "{why}");
    assert!(is_aside(&state_dir, "dead-letters.db") && is_aside(&spill.join("good"), "queue-id"));
    assert!(daemon.metric("saltern_state_files_put_aside_total", &[]) > 1.0);
    assert!(numbers(&place.path("down")).is_empty());

    fs::remove_file(spill.join("down")).unwrap();
    until("its spill is open", || daemon.body("/readyz") == "ready\n");
    until("it has what waited in memory", || numbers(&place.path("down")) == all);
    assert_eq!(daemon.dropped("down", ""), 0);
    assert!(daemon.terminate().0.success());
}

#[test]
fn a_sink_whose_spill_could_not_be_opened_is_ready_after_a_reload_that_needs_none() {
    let place = Place::new(20, None);
    let spill = place.state_dir().join("spill");
    fs::create_dir_all(&spill).unwrap();
    fs::write(spill.join("out"), "a file where a directory should be").unwrap();
    let mut sinks = json!({ "out": file(&place, "out") });
    let daemon = Daemon::listening(&place.configure(&sinks, &json!({})));
    let parked = "not ready, see /api/v1/status\nthe sink out is parked\n";
    until("it is parked", || place.bus.base().1 > 0 && daemon.body("/readyz") == parked);
    sinks["out"]["spill"] = json!({ "mode": "memory" });
    place.configure(&sinks, &json!({}));
    let mut hang_up = Command::new("kill");
    assert!(hang_up.arg("-HUP").arg(daemon.pid().to_string()).status().unwrap().success());
    place.bus.send_up_to(100);
    let all: Vec<u64> = (0..100).collect();
    until("all is stored", || numbers(&place.path("out")) == all);
    until("it is ready", || daemon.body("/readyz") == "ready\n");
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
    let daemon = Daemon::listening(&config);
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

/// A sink that is down until [`repair`] is called.
fn broken(place: &Place) -> Value {
    json!({ "out": file(place, "later/out") })
}

fn repair(place: &Place) {
    fs::create_dir(place.path("later")).unwrap();
}

fn stored(place: &Place) -> Vec<u64> {
    numbers(&place.path("later/out"))
}

/// Removes the state directory, and waits until it is there again.
fn remove(place: &Place, daemon: &Daemon) {
    // The daemon may just be making it again.
    until("it is removed", || {
        let _ = fs::remove_dir_all(place.state_dir());
        !place.state_dir().join("lock").exists()
    });
    let spill = place.state_dir().join("spill/out");
    until("it is there again", || {
        daemon.log().contains("state_dir was removed or replaced")
            && place.state_dir().join("lock").exists()
            && place.state_dir().join("dead-letters.db").exists()
            && spill.join("queue-id").exists()
            && spill.join("progress").exists()
    });
}

#[test]
fn a_state_dir_that_is_removed_while_a_sink_is_down_costs_no_event() {
    let place = Place::new(2000, None);
    // More than memory holds, so that some is read back from files that have no name any more.
    let mut sinks = broken(&place);
    sinks["out"]["spill"] = json!({ "memory": "64KiB", "max_bytes": "64MiB" });
    let daemon = Daemon::listening(&place.configure(&sinks, &json!({})));
    until("the bus is read", || place.bus.base().1 > 0);
    place.bus.send_up_to(500);
    until("they are in the spill", || daemon.metric("saltern_sink_spill_events", &[]) > 499.0);
    remove(&place, &daemon);
    place.bus.send_up_to(1000);
    until("more is in the spill", || daemon.metric("saltern_sink_spill_events", &[]) > 999.0);
    let segments = names(&place.state_dir().join("spill/out"));
    assert!(segments.iter().any(|name| name.strip_suffix(".seg").is_some()), "{segments:?}");
    repair(&place);
    let all: Vec<u64> = (0..1000).collect();
    until("all is stored, in order", || stored(&place) == all);
    until("it is ready", || daemon.body("/readyz") == "ready\n");
    assert_eq!(daemon.dropped("out", ""), 0);
    assert!(daemon.terminate().0.success());
}

#[test]
fn what_comes_after_a_state_dir_was_removed_survives_a_kill() {
    let place = Place::new(20, None);
    let config = place.configure(&broken(&place), &json!({}));
    let daemon = Daemon::listening(&config);
    until("the bus is read", || place.bus.base().1 > 0);
    place.bus.send_up_to(100);
    until("they are in the spill", || daemon.metric("saltern_sink_spill_events", &[]) > 99.0);
    remove(&place, &daemon);
    place.bus.send_up_to(200);
    until("more is in the spill", || daemon.metric("saltern_sink_spill_events", &[]) > 199.0);
    daemon.kill();
    repair(&place);
    let daemon = Daemon::listening(&config);
    until("what came after is stored", || stored(&place) == (100..200).collect::<Vec<_>>());
    assert!(daemon.terminate().0.success());
}

#[test]
fn a_state_dir_that_cannot_be_made_is_reported_once_and_then_says_that_a_process_runs() {
    let place = Place::new(20, None);
    let daemon = Daemon::listening(&place.configure(&broken(&place), &json!({})));
    let runs = || {
        let deaths = fs::read_to_string(place.state_dir().join("deaths"));
        deaths.is_ok_and(|deaths| deaths.contains("running"))
    };
    until("it says that a process runs", || runs() && place.state_dir().join("lock").exists());
    fs::rename(place.state_dir(), place.path("before")).unwrap();
    fs::write(place.state_dir(), "a file where a directory should be").unwrap();
    let reports = || {
        let log = daemon.log();
        log.matches("state_dir was removed and cannot be made again").count()
    };
    until("it is reported", || reports() > 0);
    pause(Duration::from_secs(4));
    assert_eq!(reports(), 1);
    fs::remove_file(place.state_dir()).unwrap();
    until("it says again that a process runs", runs);
    assert!(daemon.terminate().0.success());
    assert!(!runs(), "it has ended in order");
}

#[test]
fn a_state_dir_that_another_daemon_has_taken_ends_this_one() {
    let place = Place::new(20, None);
    let daemon = Daemon::listening(&place.configure(&broken(&place), &json!({})));
    until("it is there", || place.state_dir().join("dead-letters.db").exists());
    let other = place.path("other");
    fs::create_dir(&other).unwrap();
    let lock = fs::File::create(other.join("lock")).unwrap();
    lock.try_lock().unwrap();
    fs::rename(place.state_dir(), place.path("before")).unwrap();
    fs::rename(&other, place.state_dir()).unwrap();
    until("it says so", || daemon.log().contains("another saltern uses this state_dir"));
    assert!(!daemon.terminate().0.success());
    for name in ["dead-letters.db", "http-token", "http.sock"] {
        assert!(!place.state_dir().join(name).exists(), "{name}: it is the other's directory");
    }
}
