//! The daemon notices its own faults.

#![allow(clippy::float_cmp)] // counts

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use crate::harness::beside::{DEADLINE, Daemon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A bus that is not there.
const NOTHING: &str = "salt_bus: {address: 'unix:FOLDER/bus'}";

/// The next words for systemd, if there are any.
fn heard(socket: &UnixDatagram) -> Option<String> {
    let mut buffer = [0; 1000];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned())
}

async fn readyz(daemon: &Daemon) -> String {
    daemon.wait_for_log("the HTTP side listens").await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("the HTTP side listens")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let mut stream = TcpStream::connect(line["address"].as_str().unwrap()).await.unwrap();
    let request = b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The configuration is a pipe, so that what carries it out waits in the kernel.
#[tokio::test]
async fn the_watchdog_is_fed_while_everything_moves_and_then_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "1000000")];
    let daemon = Daemon::start_in(NOTHING, "blackhole: {}", &environment);
    let fed = |what: &str| {
        let mut fed = 0;
        while fed < 3 {
            let heard = heard(&socket);
            assert!(heard.is_some(), "the watchdog is not fed {what}: {}", daemon.log());
            fed += usize::from(heard.as_deref() == Some("WATCHDOG=1"));
        }
    };
    fed("at first");

    let file = daemon.path("config.yaml");
    let config = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    daemon.signal("HUP");
    daemon.wait_for_log("the thread is stuck").await;
    let answer = readyz(&daemon).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("the thread `main` is stuck"), "{answer}");
    assert_eq!(daemon.known_metric("saltern_thread_stuck"), 1.0);
    socket.set_nonblocking(true).unwrap();
    while heard(&socket).is_some() {}
    // Four meals would take so long.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(heard(&socket), None);

    socket.set_nonblocking(false).unwrap();
    fs::write(&file, config).unwrap();
    fed("again");
    daemon.stop().await;
}

/// Each option that is a length of time, as long as it may be.
#[tokio::test]
async fn the_longest_lengths_of_time_wait_for_the_end_and_nothing_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    fs::write(folder.path().join("events"), "{\"tag\": \"a\", \"data\": {}}\n").unwrap();
    let bus = "salt_bus: {address: 'unix:FOLDER/bus', coalesce: 3650d, \
               backfill: {cache_dir: FOLDER, max_age: 3650d, settle: 3650d}}";
    let source = format!(
        "{bus}\n  past:\n    local_cache: {{path: '{here}', max_age: 3650d}}\n  \
         replay:\n    replay: {{path: '{here}/events'}}"
    );
    let all = "batch: {linger: 3650d}\n    \
               retry: {initial: 3650d, max: 3650d, timeout: 3650d, give_up_after: 3650d}\n    \
               spill: {max_age: 3650d, fsync: 3650d}";
    let sink = format!(
        "rawfile_json: {{filename: FOLDER/out, rotate: {{max_age: 3650d}}}}\n    {all}\n  \
         rows:\n    sqlite3: {{database: FOLDER/rows, timeout: 3650d}}\n    {all}\n\
         dedupe_window: 3650d\nshutdown_deadline: 3650d\njobs: {{keep_jobs: 3650d}}\n\
         estate: {{returns_within: 3650d, silent_after: 3650d}}"
    );
    let daemon = Daemon::start_with(&source, &sink);
    let waiting = async {
        while daemon.known_metric("saltern_sink_queue_events") < 2.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let is_in_time = tokio::time::timeout(DEADLINE, waiting).await.is_ok();
    assert!(is_in_time, "the event does not wait: {}", daemon.log());
    assert_eq!(daemon.stored_as("a"), 0);
    // Ends well.
    let folder = daemon.stop().await;
    let stored = fs::read_to_string(folder.path().join("out")).unwrap();
    assert_eq!(stored.lines().count(), 1, "{stored}");
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}
