//! The daemon ends when it is told to, in any state and with any store that hangs.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::beside::{DEADLINE, Daemon};
use crate::harness::daemon::SALTERN;
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

/// A bus that is not there.
const NOTHING: &str = "salt_bus: {address: 'unix:FOLDER/bus'}";

/// Takes the database for itself, so that who wants to write to it waits in its library.
fn occupy(daemon: &Daemon) -> Connection {
    let connection = Connection::open(daemon.path("database")).unwrap();
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    connection
}

/// A daemon with a sink that hangs in a call that nothing can break off.
async fn with_a_hanging_sink(deadline: &str) -> (Daemon, Connection) {
    let sink = format!("blackhole: {{}}\nshutdown_deadline: {deadline}");
    let daemon = Daemon::start_with(NOTHING, &sink);
    daemon.wait_for_log("the sink is up").await;
    let connection = occupy(&daemon);
    let config = fs::read_to_string(daemon.path("config.yaml")).unwrap();
    let database = daemon.path("database");
    let hanging = format!("sqlite3: {{database: '{}', timeout: 1h}}", database.display());
    fs::write(daemon.path("config.yaml"), config.replace("blackhole: {}", &hanging)).unwrap();
    daemon.signal("HUP");
    daemon.wait_for_log("the configuration was reloaded").await;
    (daemon, connection)
}

#[tokio::test]
async fn two_stop_signals_close_together_end_the_daemon() {
    for round in 0..6 {
        let mut daemons: Vec<_> = (0..8).map(|_| Daemon::start(NOTHING)).collect();
        for (place, daemon) in daemons.iter().enumerate() {
            daemon.wait_for_log("the sink is up").await;
            let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
            kill_process(pid, Signal::TERM).unwrap();
            // From none to a millisecond and a half, each another one.
            let distance = Duration::from_micros(33 * (8 * round + place as u64));
            let began = std::time::Instant::now();
            while began.elapsed() < distance {
                std::hint::spin_loop();
            }
            // It may have ended by then, and is not waited for yet.
            kill_process(pid, Signal::TERM).unwrap();
        }
        for daemon in &mut daemons {
            let status = daemon.ended().await;
            assert!(status.success(), "{status:?}; the log:\n{}", daemon.log());
        }
    }
}

#[tokio::test]
async fn a_sink_that_hangs_delays_the_end_by_seconds() {
    let (daemon, _connection) = with_a_hanging_sink("1s").await;
    daemon.signal("TERM");
    assert_eq!(daemon.ended().await.code(), Some(1));
    let log = daemon.log();
    assert!(log.contains("the shutdown deadline has passed"), "{log}");
    assert!(log.contains("parts of the daemon still hang after the deadline"), "{log}");
}

#[tokio::test]
async fn the_third_stop_signal_ends_the_process_at_once() {
    let (daemon, _connection) = with_a_hanging_sink("1h").await;
    daemon.signal("TERM");
    daemon.wait_for_log("stopping").await;
    daemon.signal("INT");
    daemon.wait_for_log("told to stop twice").await;
    daemon.signal("TERM");
    assert_eq!(daemon.ended().await.code(), Some(1));
    assert!(daemon.log().contains("told to stop three times"), "{}", daemon.log());
}

#[tokio::test]
async fn a_stop_signal_cuts_short_what_a_reload_waits_for() {
    let (daemon, _connection) = with_a_hanging_sink("1s").await;
    let config = fs::read_to_string(daemon.path("config.yaml")).unwrap();
    let changed = config.replace("timeout: 1h", "timeout: 2h");
    fs::write(daemon.path("config.yaml"), changed).unwrap();
    daemon.signal("HUP");
    daemon.until("the second SIGHUP", || daemon.log().matches("SIGHUP").count() == 2).await;
    daemon.signal("TERM");
    assert_eq!(daemon.ended().await.code(), Some(1));
    let log = daemon.log();
    assert!(log.contains("stopping"), "{log}");
}

/// The configuration is a pipe into which nobody writes, so that the reload waits in the kernel.
#[tokio::test]
async fn a_stop_signal_is_heard_while_a_reload_hangs_in_a_system_call() {
    let daemon = Daemon::start_with(NOTHING, "blackhole: {}\nshutdown_deadline: 1s");
    daemon.wait_for_log("the sink is up").await;
    let config = daemon.path("config.yaml");
    fs::remove_file(&config).unwrap();
    assert!(Command::new("mkfifo").arg(&config).status().unwrap().success());
    daemon.signal("HUP");
    daemon.wait_for_log("SIGHUP").await;
    daemon.signal("TERM");
    assert_eq!(daemon.ended().await.code(), Some(1));
}

/// A replay reads from a pipe into which nobody writes any more.
#[tokio::test]
async fn a_replay_that_waits_for_its_input_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    let text = format!(
        "state_dir: {}\nsources: {{bus: {{salt_bus: {{}}}}}}\nsinks: {{out: {{blackhole: {{}}}}}}\n",
        folder.path().join("state").display()
    );
    fs::write(&config, text).unwrap();
    let log = folder.path().join("log");
    let mut child = Command::new(SALTERN)
        .args(["replay", "-", "--config"])
        .arg(&config)
        .stdin(Stdio::piped())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let log = || fs::read_to_string(&log).unwrap();
    let stopping = async {
        while !log().contains("the sink is up") {
            sleep(Duration::from_millis(5)).await;
        }
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        while child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let has_ended = timeout(DEADLINE, stopping).await.is_ok();
    let _ = child.kill();
    let status = child.wait().unwrap();
    assert!(has_ended && status.success(), "{status:?}; the log:\n{}", log());
}
