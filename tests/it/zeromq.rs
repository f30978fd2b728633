//! The daemon against ZeroMQ publishers and senders, which go away and come back.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::harness::beside::{self, Daemon};
use bytes::Bytes;
use tokio::time::sleep;
use zeromq::{PubSocket, PushSocket, Socket, SocketSend, ZmqMessage};

fn event(tag: &str) -> Bytes {
    Bytes::from([tag.as_bytes(), b"\n\n\x81\xa1a\x01"].concat())
}

async fn publisher(endpoint: &str) -> PubSocket {
    let mut socket = PubSocket::new();
    socket.bind(endpoint).await.unwrap();
    socket
}

/// Publishes until it has arrived: a publisher keeps nothing for subscribers that are not there
/// yet.
async fn publish(socket: &mut PubSocket, daemon: &Daemon, tag: &str) {
    while daemon.stored_as(tag) == 0 {
        socket.send(event(tag).into()).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        assert!(!daemon.log().contains("\"ERROR\""), "{}", daemon.log());
    }
}

/// A publisher at `FOLDER/pub` that is restarted in the middle.
async fn follows_a_publisher_through_a_restart(source: &str) -> Daemon {
    let daemon = Daemon::start(source);
    let endpoint = format!("ipc://{}", daemon.path("pub").display());
    let following = async {
        let mut first = publisher(&endpoint).await;
        publish(&mut first, &daemon, "salt/job/1").await;
        assert!(first.close().await.is_empty());
        daemon.wait_for_log("the connection was lost").await;
        let mut second = publisher(&endpoint).await;
        publish(&mut second, &daemon, "salt/job/2").await;
        second
    };
    let in_time = tokio::time::timeout(beside::DEADLINE, following).await;
    let second = in_time.unwrap_or_else(|_| panic!("too late; the log:\n{}", daemon.log()));
    let gaps = daemon.known_metric("saltern_source_gaps_total");
    let connects = daemon.known_metric("saltern_source_connects_total");
    let connected = daemon.known_metric("saltern_source_connected");
    let expected = [1.0, 2.0, 1.0];
    let is_near = |(found, expected): (f64, &f64)| (found - expected).abs() < 0.1;
    assert!(
        [gaps, connects, connected].into_iter().zip(&expected).all(is_near),
        "{gaps} {connects}"
    );
    assert!(daemon.known_metric("saltern_source_gap_seconds_total") > 0.0);
    drop(second);
    daemon
}

#[tokio::test]
async fn subscribes() {
    let source = "zeromq: {connect: ['ipc://FOLDER/pub'], topics: [salt/job/, salt/run/]}";
    follows_a_publisher_through_a_restart(source).await.stop().await;
}

#[tokio::test]
async fn a_bus_that_speaks_zeromq() {
    let source = "salt_bus: {address: FOLDER/pub}";
    follows_a_publisher_through_a_restart(source).await.stop().await;
}

#[tokio::test]
async fn topics_are_prefixes() {
    let daemon = Daemon::start("zeromq: {connect: ['ipc://FOLDER/pub'], topics: [salt/job/]}");
    let mut socket = publisher(&format!("ipc://{}", daemon.path("pub").display())).await;
    publish(&mut socket, &daemon, "salt/job/1").await;
    socket.send(event("salt/auth").into()).await.unwrap();
    socket.send(event("salt/job/2").into()).await.unwrap();
    daemon.wait_for_event("salt/job/2").await;
    assert_eq!(daemon.stored_as("salt/auth"), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn one_publisher_of_two_is_not_connected() {
    let daemon = Daemon::start("zeromq: {connect: ['ipc://FOLDER/pub', 'ipc://FOLDER/absent']}");
    let mut socket = publisher(&format!("ipc://{}", daemon.path("pub").display())).await;
    publish(&mut socket, &daemon, "salt/job/1").await;
    daemon.wait_for_log("cannot connect").await;
    assert!(daemon.known_metric("saltern_source_connected") < 0.5);
    daemon.stop().await;
}

#[tokio::test]
async fn senders_push() {
    let daemon = Daemon::start("zeromq: {bind: 'ipc://FOLDER/pull', max_frame: 1MiB}");
    daemon.wait_for_log("\"connected\"").await;
    let path = daemon.path("pull");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let endpoint = format!("ipc://{}", path.display());

    let mut first = PushSocket::new();
    first.connect(&endpoint).await.unwrap();
    first.send(event("one").into()).await.unwrap();
    let parts = |parts: &[&'static [u8]]| {
        let parts: Vec<_> = parts.iter().map(|part| Bytes::from_static(part)).collect();
        ZmqMessage::try_from(parts).unwrap()
    };
    first.send(parts(&[b"two", b"\x80"])).await.unwrap();
    first.send(parts(&[b"three", b"three\n\n\x80"])).await.unwrap();
    first.send(parts(&[b"four", b"\x80", b"\x80"])).await.unwrap();
    first.send(vec![b'x'; 2 << 20].into()).await.unwrap();
    first.send(event("five").into()).await.unwrap();
    daemon.wait_for_event("five").await;
    drop(first);

    let mut second = PushSocket::new();
    second.connect(&endpoint).await.unwrap();
    second.send(event("six").into()).await.unwrap();
    daemon.wait_for_event("six").await;
    for tag in ["one", "two", "three"] {
        assert_eq!(daemon.stored_as(tag), 1, "{tag}");
    }
    assert_eq!(daemon.lines().len(), 5);
    assert!((daemon.known_metric("saltern_source_bad_frames_total") - 2.0).abs() < 0.1);
    assert!(daemon.known_metric("saltern_source_gaps_total") < 0.1);
    let peak = daemon.peak_memory();
    assert!(peak < 64 << 20, "{peak} bytes of memory");
    let folder = daemon.stop().await;
    assert!(!folder.path().join("pull").exists());
}
