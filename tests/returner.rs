//! The source `returner`, asked by peers that say what Salt's side says, or what nobody should.

// A test that fails does so by panicking, in its functions beside `#[test]` too.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod daemon;

use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use daemon::{DEADLINE, Daemon};
use rmpv::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use zeromq::{DealerSocket, ReqSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

const SOURCE: &str = "returner: {bind: 'ipc://FOLDER/r', max_frame: 4KiB}";

fn packed(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).unwrap();
    bytes
}

fn map(pairs: &[(&str, Value)]) -> Value {
    Value::Map(pairs.iter().map(|(key, value)| (Value::from(*key), value.clone())).collect())
}

fn request(id: u64, op: &str, more: &[(&str, Value)]) -> Vec<u8> {
    let mut pairs = vec![("v", Value::from(1)), ("id", id.into()), ("op", op.into())];
    pairs.extend(more.iter().cloned());
    packed(&map(&pairs))
}

fn events(id: u64, tags: &[&str]) -> Vec<u8> {
    let event = |tag: &&str| Value::Binary([tag.as_bytes(), b"\n\n\x81\xa1a\x01"].concat());
    let events = Value::Array(tags.iter().map(event).collect());
    request(id, "events", &[("events", events)])
}

async fn connected<S: Socket>(daemon: &Daemon) -> S {
    let path = daemon.path("r");
    daemon.until("the socket", || path.exists()).await;
    let mut socket = S::new();
    socket.connect(&format!("ipc://{}", path.display())).await.unwrap();
    socket
}

async fn receive(socket: &mut impl SocketRecv) -> Value {
    let message = timeout(DEADLINE, socket.recv()).await.unwrap().unwrap();
    assert_eq!(message.len(), 1);
    rmpv::decode::read_value(&mut message.get(0).unwrap().as_ref()).unwrap()
}

/// The answer, after however many that say to wait.
async fn ask<S: SocketSend + SocketRecv>(socket: &mut S, request: Vec<u8>) -> Value {
    socket.send(request.into()).await.unwrap();
    loop {
        let answer = receive(socket).await;
        if answer["wait"].is_nil() {
            return answer;
        }
    }
}

#[tokio::test]
async fn events_are_safe_when_they_are_acknowledged() {
    let mut daemon = Daemon::start(SOURCE);
    let mode = {
        let mut dealer: DealerSocket = connected(&daemon).await;
        let answer = ask(&mut dealer, events(7, &["a/1", "a/2"])).await;
        assert_eq!(answer, map(&[("v", 1.into()), ("id", 7.into())]));
        daemon.path("r").metadata().unwrap().permissions().mode()
    };
    assert_eq!(mode & 0o777, 0o660);
    // Whether they were written already, or are in the spill only.
    daemon.kill();
    daemon.start_again();
    for tag in ["a/1", "a/2"] {
        daemon.wait_for_event(tag).await;
    }
    // REQ puts an empty frame in front.
    let mut req: ReqSocket = connected(&daemon).await;
    let answer = ask(&mut req, events(8, &["a/3"])).await;
    assert_eq!(answer, map(&[("v", 1.into()), ("id", 8.into())]));
    daemon.wait_for_event("a/3").await;
    daemon.stop().await;
}

/// Salt sends again what it does not know to be safe, so that it must not be dropped as a repeat.
#[tokio::test]
async fn what_comes_again_is_kept_again() {
    let daemon = Daemon::start(SOURCE);
    let mut dealer: DealerSocket = connected(&daemon).await;
    for (id, tag) in [(1, "same"), (2, "same"), (3, "last")] {
        let answer = ask(&mut dealer, events(id, &[tag])).await;
        assert_eq!(answer, map(&[("v", 1.into()), ("id", id.into())]));
    }
    daemon.wait_for_event("last").await;
    assert_eq!(daemon.stored("same"), 2);
    daemon.stop().await;
}

#[tokio::test]
async fn a_return_is_an_event_and_in_the_job_cache_at_once() {
    let daemon = Daemon::start(SOURCE);
    let mut dealer: DealerSocket = connected(&daemon).await;
    let jid = "20261121233336123456";
    let load = |minion: &str| {
        let load = [("jid", jid.into()), ("id", minion.into()), ("fun", "test.ping".into())];
        let more = [("return", true.into()), ("retcode", 0.into()), ("success", true.into())];
        Value::Binary(packed(&map(&[&load[..], &more].concat())))
    };
    for (id, minion) in [(1, "web-1"), (2, "web-2")] {
        let answer = ask(&mut dealer, request(id, "return", &[("load", load(minion))])).await;
        assert_eq!(answer, map(&[("v", 1.into()), ("id", id.into())]));
    }
    let answer = ask(&mut dealer, request(3, "get_jid", &[("jid", jid.into())])).await;
    let returns = rmpv::decode::read_value(&mut answer["value"].as_slice().unwrap()).unwrap();
    assert_eq!(returns["web-2"]["return"], Value::from(true), "{returns}");
    daemon.wait_for_event(&format!("salt/job/{jid}/ret/web-1")).await;
    daemon.wait_for_event(&format!("salt/job/{jid}/ret/web-2")).await;
    daemon.stop().await;
}

/// A load that is cut off or has a tail would make every answer that holds it unreadable.
#[tokio::test]
async fn invariant_7_a_load_that_is_not_whole_is_refused_and_later_answers_are_whole() {
    let daemon = Daemon::start(SOURCE);
    let mut dealer: DealerSocket = connected(&daemon).await;
    let load = |minion: &str| {
        packed(&map(&[("jid", "1".into()), ("id", minion.into()), ("return", 1.into())]))
    };
    let hand_over = |id, load: Vec<u8>| request(id, "return", &[("load", Value::Binary(load))]);
    let tail = [load("web-2"), vec![0xc0]].concat();
    let cut = load("web-3")[..load("web-3").len() - 1].to_vec();
    for (id, load) in [(1, tail), (2, cut)] {
        let answer = ask(&mut dealer, hand_over(id, load)).await;
        assert!(answer["error"].as_str().unwrap().contains("not one whole"), "{answer}");
        assert_eq!(answer["later"], false.into());
    }
    ask(&mut dealer, hand_over(3, load("web-1"))).await;
    let answer = ask(&mut dealer, request(4, "get_jid", &[("jid", "1".into())])).await;
    let returns = rmpv::decode::read_value(&mut answer["value"].as_slice().unwrap()).unwrap();
    assert_eq!(returns, map(&[("web-1", map(&[("return", 1.into())]))]));
    daemon.wait_for_event("salt/job/1/ret/web-1").await;
    assert_eq!(daemon.stored("salt/job/1/ret/web-2") + daemon.stored("salt/job/1/ret/web-3"), 0);
    daemon.stop().await;
}

/// A master whose job cache saltern is hands over a return, and then its event.
#[tokio::test]
async fn a_return_and_its_event_are_stored_once() {
    let daemon = Daemon::start(SOURCE);
    let mut dealer: DealerSocket = connected(&daemon).await;
    let load = packed(&map(&[("jid", "1".into()), ("id", "web-1".into())]));
    let event = [b"salt/job/1/ret/web-1\n\n", &load[..]].concat();
    let event = |id| {
        let events = Value::Array(vec![Value::Binary(event.clone())]);
        request(id, "events", &[("events", events)])
    };
    let handed_over = request(1, "return", &[("load", Value::Binary(load))]);
    for (id, request) in [(1, handed_over), (2, event(2)), (3, events(3, &["last"]))] {
        let answer = ask(&mut dealer, request).await;
        assert_eq!(answer, map(&[("v", 1.into()), ("id", id.into())]));
    }
    daemon.wait_for_event("last").await;
    assert_eq!(daemon.stored("salt/job/1/ret/web-1"), 1);
    daemon.stop().await;
}

#[tokio::test]
async fn without_a_job_cache_it_says_so() {
    let daemon = Daemon::start(&format!("{SOURCE}\njobs: {{enabled: false}}"));
    let mut dealer: DealerSocket = connected(&daemon).await;
    let answer = ask(&mut dealer, request(1, "get_jids", &[])).await;
    assert!(answer["error"].as_str().unwrap().contains("jobs: {enabled: true}"), "{answer}");
    let load = packed(&map(&[("jid", "1".into()), ("id", "web-1".into())]));
    let answer = ask(&mut dealer, request(2, "return", &[("load", Value::Binary(load))])).await;
    assert_eq!(answer, map(&[("v", 1.into()), ("id", 2.into())]));
    daemon.wait_for_event("salt/job/1/ret/web-1").await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_counted() {
    let daemon = Daemon::start(SOURCE);
    let mut dealer: DealerSocket = connected(&daemon).await;
    let wrong_version = packed(&map(&[("v", 2.into()), ("id", 1.into()), ("op", "events".into())]));
    let head = b"\x84\xa1v\x01\xa2id\x01\xa2op\xa6events\xa6events";
    let nested = [&head[..], &[0x91; 2000], b"\xc0"].concat();
    let lying = [&head[..], b"\xdd\xff\xff\xff\xff"].concat();
    let hostile = [
        (wrong_version, "version 2 of the protocol is not known", true),
        (request(1, "dance", &[]), "no operation `dance`", false),
        (request(1, "events", &[]), "events: missing field", false),
        (
            request(1, "x", &[("x", Value::Binary(vec![0; 5000]))]),
            "over max_frame (4096 bytes)",
            false,
        ),
        (nested, "depth limit exceeded", false),
        (lying, "the message is not whole", false),
        (b"hello".to_vec(), "no msgpack map", false),
        (Vec::new(), "no msgpack map", false),
    ];
    let count = u32::try_from(hostile.len()).unwrap();
    for (message, says, later) in hostile {
        let answer = ask(&mut dealer, message).await;
        assert!(answer["error"].as_str().unwrap().contains(says), "{answer}");
        assert_eq!(answer["later"], Value::from(later), "{answer}");
    }
    let frames: Vec<Bytes> = vec![Bytes::from_static(b"a"), events(1, &["a"]).into()];
    dealer.send(ZmqMessage::try_from(frames).unwrap()).await.unwrap();
    let answer = receive(&mut dealer).await;
    assert_eq!(answer["error"], Value::from("a request is one frame"));
    let counted = daemon.metric("saltern_source_bad_frames_total").await;
    assert!((counted - f64::from(count + 1)).abs() < 0.1, "{counted}");
    // Bytes that are not ZeroMQ end their connection, and nobody else's.
    let mut stranger = UnixStream::connect(daemon.path("r")).await.unwrap();
    stranger.write_all(&[b'x'; 200]).await.unwrap();
    let mut said = Vec::new();
    let _ = timeout(DEADLINE, stranger.read_to_end(&mut said)).await.unwrap();
    let answer = ask(&mut dealer, events(9, &["fine"])).await;
    assert_eq!(answer, map(&[("v", 1.into()), ("id", 9.into())]));
    daemon.wait_for_event("fine").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_stuck_sink_holds_up_its_events_and_no_question() {
    // Nothing is safe before it is stored, and the folder is not there.
    let sink = "rawfile_json: {filename: FOLDER/missing/out}\n    batch: {linger: 10ms}\n    \
                retry: {max: 100ms}\n    spill: {mode: memory}";
    let daemon = Daemon::start_with(SOURCE, sink);
    let mut sender: DealerSocket = connected(&daemon).await;
    let wait = map(&[("v", 1.into()), ("id", 1.into()), ("wait", true.into())]);
    sender.send(events(1, &["stuck"]).into()).await.unwrap();
    assert_eq!(receive(&mut sender).await, wait);
    let mut asker: DealerSocket = connected(&daemon).await;
    let answer = ask(&mut asker, request(5, "get_minions", &[])).await;
    assert_eq!((&answer["id"], &answer["value"]), (&5.into(), &Value::Binary(vec![0x90])));
    // More events than may wait at the same time: the rest is told to come later, at once.
    for id in 100..300 {
        asker.send(events(id, &[&format!("more/{id}")]).into()).await.unwrap();
    }
    let refused = loop {
        let answer = receive(&mut asker).await;
        if !answer["error"].is_nil() {
            break answer;
        }
        assert_eq!(answer["wait"], Value::from(true));
    };
    assert!(refused["error"].as_str().unwrap().contains("too many requests"), "{refused}");
    assert_eq!(refused["later"], Value::from(true));
    std::fs::create_dir(daemon.path("missing")).unwrap();
    let done = map(&[("v", 1.into()), ("id", 1.into())]);
    loop {
        let answer = receive(&mut sender).await;
        if answer == done {
            break;
        }
        assert_eq!(answer, wait);
    }
    let stored = std::fs::read_to_string(daemon.path("missing/out")).unwrap();
    assert!(stored.contains("\"tag\": \"stuck\""), "{stored}");
    daemon.stop().await;
}
