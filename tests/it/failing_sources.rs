//! Sources that cannot do their work: they are tried again for as long as they are configured, and
//! `/readyz` says so meanwhile. A file that a command reads once fails at once instead.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::beside::{DEADLINE, Daemon};
use crate::harness::daemon::SALTERN;
use crate::harness::returner_peer::{Peer, done, events, packed};
use bytes::Bytes;
use rmpv::Value;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use zeromq::{PushSocket, Socket, SocketSend};

fn event(tag: &str) -> Bytes {
    Bytes::from([tag.as_bytes(), b"\n\n\x81\xa1a\x01"].concat())
}

async fn connected<S: Socket>(endpoint: &str) -> S {
    let mut socket = S::new();
    socket.connect(endpoint).await.unwrap();
    socket
}

/// Sends an event and waits until it is stored.
async fn send(socket: &mut impl SocketSend, message: Bytes, daemon: &Daemon, tag: &str) {
    socket.send(message.into()).await.unwrap();
    daemon.wait_for_event(tag).await;
}

fn assert_not_ready(daemon: &Daemon) {
    let answer = daemon.get("/readyz");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("the source bus is not connected\n"), "{answer}");
    assert!(daemon.known_metric("saltern_source_connected") < 0.5);
}

/// A source whose port is taken at the start; with `more` in its configuration.
async fn waits_for_its_port(kind: &str, more: &str) -> (Daemon, String) {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", other.local_addr().unwrap());
    let daemon = Daemon::start(&format!("{kind}: {{bind: '{endpoint}'{more}}}"));
    daemon.wait_for_log("cannot connect, trying again").await;
    assert_not_ready(&daemon);
    let status = daemon.get("/api/v1/status");
    assert!(status.contains(&format!("listening on {endpoint}: ")), "{status}");
    drop(other);
    daemon.wait_until_ready().await;
    (daemon, endpoint)
}

#[tokio::test]
async fn invariant_9_a_returner_whose_port_is_taken_is_not_ready_until_it_has_it() {
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "0123456789abcdef").unwrap();
    let more = format!(", token_file: '{}'", token.path().display());
    let (daemon, endpoint) = waits_for_its_port("returner", &more).await;
    let address = endpoint.trim_start_matches("tcp://");
    let mut peer = Peer { stream: TcpStream::connect(address).await.unwrap() };
    assert_eq!(peer.receive().await["v"], 2.into());
    daemon.stop().await;
}

#[tokio::test]
async fn invariant_9_a_zeromq_source_whose_port_is_taken_is_not_ready_until_it_has_it() {
    let (daemon, endpoint) = waits_for_its_port("zeromq", "").await;
    let mut push: PushSocket = connected(&endpoint).await;
    send(&mut push, event("one"), &daemon, "one").await;
    daemon.stop().await;
}

/// Removes the socket file of a source and waits for the new one.
async fn removed_and_made_again(path: &Path, daemon: &Daemon) {
    fs::remove_file(path).unwrap();
    daemon.until("the socket file", || path.exists()).await;
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    daemon.wait_until_ready().await;
}

#[tokio::test]
async fn a_removed_socket_file_is_made_anew_and_senders_stay() {
    let daemon = Daemon::start("zeromq: {bind: 'ipc://FOLDER/s'}");
    daemon.wait_until_ready().await;
    let path = daemon.path("s");
    let endpoint = format!("ipc://{}", path.display());
    let mut first: PushSocket = connected(&endpoint).await;
    send(&mut first, event("1"), &daemon, "1").await;
    removed_and_made_again(&path, &daemon).await;
    let mut second: PushSocket = connected(&endpoint).await;
    send(&mut second, event("2"), &daemon, "2").await;
    send(&mut first, event("3"), &daemon, "3").await;
    assert_eq!(daemon.lines().len(), 3);
    let folder = daemon.stop().await;
    assert!(!folder.path().join("s").exists());
}

#[tokio::test]
async fn a_removed_socket_file_is_made_anew_and_salt_goes_on() {
    let daemon = Daemon::start("returner: {bind: 'ipc://FOLDER/s'}");
    daemon.wait_until_ready().await;
    let path = daemon.path("s");
    let connect = async || {
        let mut peer = Peer::connect(&path).await;
        assert_eq!(peer.receive().await["v"], 2.into());
        peer
    };
    let mut first = connect().await;
    assert_eq!(first.ask(events(1, &["1"])).await, done(1));
    removed_and_made_again(&path, &daemon).await;
    let mut second = connect().await;
    assert_eq!(second.ask(events(2, &["2"])).await, done(2));
    assert_eq!(first.ask(events(3, &["3"])).await, done(3));
    for tag in ["1", "2", "3"] {
        daemon.wait_for_event(tag).await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn the_socket_of_another_process_is_left_alone_until_that_is_gone() {
    let daemon = Daemon::start("zeromq: {bind: 'ipc://FOLDER/s'}");
    daemon.wait_until_ready().await;
    let path = daemon.path("s");
    let mut push: PushSocket = connected(&format!("ipc://{}", path.display())).await;
    send(&mut push, event("1"), &daemon, "1").await;
    let other = UnixListener::bind(daemon.path("other")).unwrap();
    fs::rename(daemon.path("other"), &path).unwrap();
    daemon.wait_for_log("another process listens there").await;
    assert_not_ready(&daemon);
    send(&mut push, event("2"), &daemon, "2").await;
    drop(other);
    daemon.wait_until_ready().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_job_cache_that_is_missing_is_read_once_it_is_there() {
    let daemon = Daemon::start(
        "local_cache: {path: FOLDER/jobs}\n  other:\n    zeromq: {bind: 'ipc://FOLDER/s'}",
    );
    daemon.wait_for_log("cannot connect, trying again").await;
    assert_not_ready_beside_another(&daemon);
    let job = daemon.path("made/ab/cdef");
    fs::create_dir_all(job.join("web-1")).unwrap();
    let text = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        packed(&Value::Map(pairs.collect()))
    };
    let jid = "20261121233336123456";
    fs::write(job.join("jid"), jid).unwrap();
    fs::write(job.join(".load.p"), text(&[("cmd", "publish"), ("fun", "x"), ("ret", "")])).unwrap();
    fs::write(job.join("web-1/return.p"), text(&[("return", "x")])).unwrap();
    fs::rename(daemon.path("made"), daemon.path("jobs")).unwrap();
    daemon.wait_for_event(&format!("salt/job/{jid}/ret/web-1")).await;
    daemon.wait_until_ready().await;
    daemon.stop().await;
}

fn assert_not_ready_beside_another(daemon: &Daemon) {
    let answer = daemon.get("/readyz");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("the source bus is not connected\n"), "{answer}");
    assert!(!answer.contains("other"), "{answer}");
}

#[tokio::test]
async fn a_reload_tries_what_fails_again_and_says_so() {
    let daemon = Daemon::start("zeromq: {bind: 'ipc://FOLDER/missing/s'}");
    daemon.wait_for_log("cannot connect, trying again").await;
    fs::create_dir(daemon.path("missing")).unwrap();
    daemon.signal("HUP");
    daemon.wait_for_log("\"the configuration was reloaded\"").await;
    daemon.wait_until_ready().await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("was reloaded")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    // It may have been tried in the moment between.
    assert!(["source bus", ""].contains(&line["retried"].as_str().unwrap()), "{line}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_replay_that_breaks_off_has_failed_for_good_and_is_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), b"\x82\xa4head").unwrap();
    let path = file.path().display();
    let daemon = Daemon::start(&format!(
        "replay: {{path: '{path}'}}\n  other:\n    zeromq: {{bind: 'ipc://FOLDER/s'}}"
    ));
    daemon.wait_for_log("the source failed").await;
    daemon.signal("HUP");
    daemon.wait_for_log("\"the configuration was reloaded\"").await;
    assert_not_ready_beside_another(&daemon);
    assert!(!daemon.log().contains("\"retried\":\"source bus\""), "{}", daemon.log());
}

#[tokio::test]
async fn a_command_that_replays_what_is_missing_fails_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = "state_dir: state\nsources: {bus: {salt_bus: {address: bus}}}\n\
                  sinks: {out: {blackhole: {}}}\n";
    fs::write(folder.path().join("config.yaml"), config).unwrap();
    for arguments in [&["missing"][..], &["--from-local-cache", "missing"]] {
        let mut child = Command::new(SALTERN)
            .current_dir(folder.path())
            .args(["replay", "--config", "config.yaml"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ending = async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    return status;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let status = timeout(DEADLINE, ending).await;
        if status.is_err() {
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(status.unwrap().code(), Some(1), "{said}");
        assert!(said.contains("No such file or directory"), "{said}");
    }
}
