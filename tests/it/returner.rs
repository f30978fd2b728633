//! The source `returner`, asked by peers that speak as Salt's side does, or as nobody should.

use std::fs::{Permissions, set_permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use crate::harness::beside::{DEADLINE, Daemon};
use crate::harness::returner_peer::{Peer, done, events, map, packed, request, returned};
use rmpv::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use zeromq::{DealerSocket, ReqSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

const SOURCE: &str = "returner: {bind: 'ipc://FOLDER/r', max_frame: 4KiB}";

#[tokio::test]
async fn events_are_safe_when_they_are_acknowledged() {
    let mut daemon = Daemon::start(SOURCE);
    let mode = {
        let mut dealer = Peer::at(&daemon).await;
        let answer = dealer.ask(events(7, &["a/1", "a/2"])).await;
        assert_eq!(answer, done(7));
        daemon.path("r").metadata().unwrap().permissions().mode()
    };
    assert_eq!(mode & 0o777, 0o660);
    // They were written already, or are in the spill only.
    daemon.kill();
    daemon.start_again();
    for tag in ["a/1", "a/2"] {
        daemon.wait_for_event(tag).await;
    }
    daemon.stop().await;
}

/// Salt sends events again that it does not know to be safe, so they must not be dropped as
/// repeats.
#[tokio::test]
async fn what_comes_again_is_kept_again() {
    let daemon = Daemon::start(SOURCE);
    let mut dealer = Peer::at(&daemon).await;
    for (id, tag) in [(1, "same"), (2, "same"), (3, "last")] {
        let answer = dealer.ask(events(id, &[tag])).await;
        assert_eq!(answer, done(id));
    }
    daemon.wait_for_event("last").await;
    assert_eq!(daemon.stored_as("same"), 2);
    daemon.stop().await;
}

#[tokio::test]
async fn a_return_is_an_event_and_in_the_job_cache_at_once() {
    let daemon = Daemon::start(SOURCE);
    let mut dealer = Peer::at(&daemon).await;
    let jid = "20261121233336123456";
    let load = |minion: &str| {
        let load = [("jid", jid.into()), ("id", minion.into()), ("fun", "test.ping".into())];
        let more = [("return", true.into()), ("retcode", 0.into()), ("success", true.into())];
        Value::Binary(packed(&map(&[&load[..], &more].concat())))
    };
    for (id, minion) in [(1, "web-1"), (2, "web-2")] {
        let answer = dealer.ask(request(id, "return", &[("load", load(minion))])).await;
        assert_eq!(answer, done(id));
    }
    let answer = dealer.ask(request(3, "get_jid", &[("jid", jid.into())])).await;
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
    let mut dealer = Peer::at(&daemon).await;
    let load = |minion: &str| {
        packed(&map(&[("jid", "1".into()), ("id", minion.into()), ("return", 1.into())]))
    };
    let hand_over = |id, load: Vec<u8>| request(id, "return", &[("load", Value::Binary(load))]);
    let tail = [load("web-2"), vec![0xc0]].concat();
    let cut = load("web-3")[..load("web-3").len() - 1].to_vec();
    for (id, load) in [(1, tail), (2, cut)] {
        let answer = dealer.ask(hand_over(id, load)).await;
        assert!(answer["error"].as_str().unwrap().contains("not one whole"), "{answer}");
        assert_eq!(answer["later"], false.into());
    }
    dealer.ask(hand_over(3, load("web-1"))).await;
    let answer = dealer.ask(request(4, "get_jid", &[("jid", "1".into())])).await;
    let returns = rmpv::decode::read_value(&mut answer["value"].as_slice().unwrap()).unwrap();
    assert_eq!(returns, map(&[("web-1", map(&[("return", 1.into())]))]));
    daemon.wait_for_event("salt/job/1/ret/web-1").await;
    assert_eq!(
        daemon.stored_as("salt/job/1/ret/web-2") + daemon.stored_as("salt/job/1/ret/web-3"),
        0
    );
    daemon.stop().await;
}

/// A master whose job cache saltern is hands over a return, and then its event.
#[tokio::test]
async fn a_return_and_its_event_are_stored_once() {
    let daemon = Daemon::start(SOURCE);
    let mut dealer = Peer::at(&daemon).await;
    let load = packed(&map(&[("jid", "1".into()), ("id", "web-1".into())]));
    let event = [b"salt/job/1/ret/web-1\n\n", &load[..]].concat();
    let event = |id| {
        let events = Value::Array(vec![Value::Binary(event.clone())]);
        request(id, "events", &[("events", events)])
    };
    let handed_over = request(1, "return", &[("load", Value::Binary(load))]);
    for (id, request) in [(1, handed_over), (2, event(2)), (3, events(3, &["last"]))] {
        let answer = dealer.ask(request).await;
        assert_eq!(answer, done(id));
    }
    daemon.wait_for_event("last").await;
    assert_eq!(daemon.stored_as("salt/job/1/ret/web-1"), 1);
    daemon.stop().await;
}

#[tokio::test]
async fn without_a_job_cache_it_says_so() {
    let daemon = Daemon::start(&format!("{SOURCE}\njobs: {{enabled: false}}"));
    let mut dealer = Peer::at(&daemon).await;
    let answer = dealer.ask(request(1, "get_jids", &[])).await;
    assert!(answer["error"].as_str().unwrap().contains("jobs: {enabled: true}"), "{answer}");
    let load = packed(&map(&[("jid", "1".into()), ("id", "web-1".into())]));
    let answer = dealer.ask(request(2, "return", &[("load", Value::Binary(load))])).await;
    assert_eq!(answer, done(2));
    daemon.wait_for_event("salt/job/1/ret/web-1").await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_counted() {
    let daemon = Daemon::start(SOURCE);
    let mut dealer = Peer::at(&daemon).await;
    let wrong_version = packed(&map(&[("v", 3.into()), ("id", 1.into()), ("op", "events".into())]));
    let head = b"\x84\xa1v\x02\xa2id\x01\xa2op\xa6events\xa6events";
    let nested = [&head[..], &[0x91; 2000], b"\xc0"].concat();
    let lying = [&head[..], b"\xdd\xff\xff\xff\xff"].concat();
    let hostile = [
        (wrong_version, "version 3 of the protocol is not known", true),
        (request(1, "dance", &[]), "no operation `dance`", false),
        (request(1, "events", &[]), "events: missing field", false),
        (nested, "depth limit exceeded", false),
        (lying, "the message is not whole", false),
        (b"hello".to_vec(), "no msgpack map", false),
        (Vec::new(), "no msgpack map", false),
    ];
    let count = u32::try_from(hostile.len()).unwrap();
    for (message, says, later) in hostile {
        let answer = dealer.ask(message).await;
        assert!(answer["error"].as_str().unwrap().contains(says), "{answer}");
        assert_eq!(answer["later"], Value::from(later), "{answer}");
    }
    // A message that is too long is not read, so that it is the last.
    let mut long = Peer::at(&daemon).await;
    let answer = long.ask(request(1, "x", &[("x", Value::Binary(vec![0; 5000]))])).await;
    assert!(answer["error"].as_str().unwrap().contains("over max_frame (4096 bytes)"), "{answer}");
    assert_eq!(answer["later"], Value::from(false));
    assert!(long.is_closed().await);
    let counted = daemon.known_metric("saltern_source_bad_frames_total");
    assert!((counted - f64::from(count + 1)).abs() < 0.1, "{counted}");
    // Bytes that are nothing end their connection, and nobody else's.
    let mut stranger = UnixStream::connect(daemon.path("r")).await.unwrap();
    stranger.write_all(&[b'x'; 200]).await.unwrap();
    let mut said = Vec::new();
    let _ = timeout(DEADLINE, stranger.read_to_end(&mut said)).await.unwrap();
    let answer = dealer.ask(events(9, &["fine"])).await;
    assert_eq!(answer, done(9));
    daemon.wait_for_event("fine").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_stuck_sink_holds_up_its_events_and_no_question() {
    // Nothing is safe before it is stored, and the folder is not there.
    let sink = "rawfile_json: {filename: FOLDER/missing/out}\n    batch: {linger: 10ms}\n    \
                retry: {max: 100ms}\n    spill: {mode: memory}";
    let daemon = Daemon::start_with(SOURCE, sink);
    let mut sender = Peer::at(&daemon).await;
    let wait = map(&[("v", 2.into()), ("id", 1.into()), ("wait", true.into())]);
    sender.send(&events(1, &["stuck"])).await;
    assert_eq!(sender.receive().await, wait);
    let mut asker = Peer::at(&daemon).await;
    let answer = asker.ask(request(5, "get_minions", &[])).await;
    assert_eq!((&answer["id"], &answer["value"]), (&5.into(), &Value::Binary(vec![0x90])));
    // More events than may wait at the same time: the rest is told to come later, at once.
    for id in 100..300 {
        asker.send(&events(id, &[&format!("more/{id}")])).await;
    }
    let refused = loop {
        let answer = asker.receive().await;
        if !answer["error"].is_nil() {
            break answer;
        }
        assert_eq!(answer["wait"], Value::from(true));
    };
    assert!(refused["error"].as_str().unwrap().contains("too many requests"), "{refused}");
    assert_eq!(refused["later"], Value::from(true));
    std::fs::create_dir(daemon.path("missing")).unwrap();
    let done = done(1);
    loop {
        let answer = sender.receive().await;
        if answer == done {
            break;
        }
        assert_eq!(answer, wait);
    }
    let stored = std::fs::read_to_string(daemon.path("missing/out")).unwrap();
    assert!(stored.contains("\"tag\": \"stuck\""), "{stored}");
    daemon.stop().await;
}

/// A free port of the loopback address.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn over_tcp_nothing_is_done_before_the_token_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    set_permissions(&token, Permissions::from_mode(0o600)).unwrap();
    let address = format!("127.0.0.1:{}", port());
    let token = token.display();
    let source = format!("returner: {{bind: 'tcp://{address}', token_file: '{token}'}}");
    let daemon = Daemon::start(&source);
    daemon.wait_for_log("\"connected\"").await;
    let hello = |token: &[u8]| request(0, "hello", &[("token", Value::Binary(token.to_vec()))]);
    for first in [events(1, &["stolen"]), hello(b"0123456789abcdeX"), hello(b"")] {
        let mut peer = Peer { stream: TcpStream::connect(&address).await.unwrap() };
        assert_eq!(peer.receive().await["v"], 2.into());
        let answer = peer.ask(first).await;
        let why = answer["error"].as_str().unwrap();
        assert!(why.contains("the token is missing or wrong"), "{answer}");
        assert_eq!((&answer["id"], &answer["later"]), (&0.into(), &true.into()));
        assert!(peer.is_closed().await);
    }
    let mut peer = Peer { stream: TcpStream::connect(&address).await.unwrap() };
    peer.receive().await;
    assert_eq!(peer.ask(hello(b"0123456789abcdef")).await, done(0));
    assert_eq!(peer.ask(events(1, &["welcome"])).await, done(1));
    daemon.wait_for_event("welcome").await;
    assert_eq!(daemon.stored_as("stolen"), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn who_is_no_master_is_no_better_than_the_bus() {
    let source = "returner: {bind: 'unix:FOLDER/r', masters: [4242], mode: '0600'}";
    let daemon = Daemon::start(source);
    let mut peer = Peer::at(&daemon).await;
    let mode = daemon.path("r").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let jid = ("jid", Value::from("20261121233336123456"));
    let minions = ("minions", Value::Array(vec!["web-1".into()]));
    let time = ("time", Value::from("now"));
    let syndic = ("syndic_id", Value::Nil);
    for message in [
        request(1, "update_endtime", &[jid.clone(), time]),
        request(1, "save_minions", &[jid.clone(), minions.clone(), syndic]),
    ] {
        let answer = peer.ask(message).await;
        assert!(answer["error"].as_str().unwrap().contains("only a master"), "{answer}");
        assert_eq!(answer["later"], false.into());
    }
    // A load is taken as if the bus had told of it.
    let load = map(&[jid.clone(), ("fun", "test.ping".into()), ("tgt", "*".into())]);
    let load = ("load", Value::Binary(packed(&load)));
    assert_eq!(peer.ask(request(2, "save_load", &[jid.clone(), load, minions])).await, done(2));
    let value = Value::from(true);
    assert_eq!(peer.ask(returned(3, "20261121233336123456", "web-1", value)).await, done(3));
    let answer = peer.ask(request(4, "get_load", &[jid])).await;
    let load = rmpv::decode::read_value(&mut answer["value"].as_slice().unwrap()).unwrap();
    assert_eq!(load["fun"], "test.ping".into());
    assert_eq!(load["Minions"], Value::Array(vec!["web-1".into()]));
    daemon.stop().await;
}

/// Two sockets, with the words of the package of the release before.
#[tokio::test]
async fn the_release_before_is_answered_by_a_source_of_its_own() {
    let daemon = Daemon::start("returner_zeromq: {bind: 'ipc://FOLDER/r', max_frame: 4KiB}");
    let path = daemon.path("r");
    daemon.until("the socket", || path.exists()).await;
    let address = format!("ipc://{}", path.display());
    let (mut dealer, mut req) = (DealerSocket::new(), ReqSocket::new());
    dealer.connect(&address).await.unwrap();
    req.connect(&address).await.unwrap();
    let of_version_1 = |message: Vec<u8>| -> ZmqMessage {
        let mut message = message;
        assert_eq!(message[..4], *b"\x84\xa1v\x02");
        message[3] = 1;
        message.into()
    };
    let read = |message: ZmqMessage| {
        rmpv::decode::read_value(&mut message.get(0).unwrap().as_ref()).unwrap()
    };
    dealer.send(of_version_1(events(1, &["old/1"]))).await.unwrap();
    req.send(of_version_1(events(2, &["old/2"]))).await.unwrap();
    let answer = timeout(DEADLINE, dealer.recv()).await.unwrap().unwrap();
    assert_eq!(read(answer), map(&[("v", 1.into()), ("id", 1.into())]));
    let answer = timeout(DEADLINE, req.recv()).await.unwrap().unwrap();
    assert_eq!(read(answer), map(&[("v", 1.into()), ("id", 2.into())]));
    dealer.send(events(3, &["new"]).into()).await.unwrap();
    let answer = read(timeout(DEADLINE, dealer.recv()).await.unwrap().unwrap());
    assert!(answer["error"].as_str().unwrap().contains("version 2 of the protocol"), "{answer}");
    for tag in ["old/1", "old/2"] {
        daemon.wait_for_event(tag).await;
    }
    daemon.stop().await;
}

/// An answer's JSON.
fn json_of(answer: &str) -> serde_json::Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// Salt hands a runner's return to its job cache, with the stamp of its start, and fires it right
/// after.
#[tokio::test]
async fn a_runner_is_one_event_and_one_job_of_the_master() {
    let daemon = Daemon::start(SOURCE);
    let mut peer = Peer::at(&daemon).await;
    let jid = "20261121233336123456";
    let data = |stamp: &str| {
        let result = map(&[("retcode", 1.into()), ("outputter", "highstate".into())]);
        map(&[
            ("fun", "runner.state.orchestrate".into()),
            ("jid", jid.into()),
            ("user", "sudo_ops".into()),
            ("fun_args", Value::Array(vec!["deploy".into()])),
            ("_stamp", stamp.into()),
            ("return", result),
            ("success", true.into()),
        ])
    };
    let load = |more: &[(&str, Value)]| {
        let load = [
            ("id", "salt-1_master".into()),
            ("tgt", "salt-1_master".into()),
            ("jid", jid.into()),
            ("return", data("2026-11-21T23:33:36.123456")),
            ("fun", "runner.state.orchestrate".into()),
            ("user", "sudo_ops".into()),
        ];
        Value::Binary(packed(&map(&[&load[..], more].concat())))
    };
    let stamped = load(&[("_stamp", "2026-11-21T23:33:39.000001".into())]);
    let saved = [("jid", jid.into()), ("load", load(&[])), ("minions", Value::Array(Vec::new()))];
    assert_eq!(peer.ask(request(1, "save_load", &saved)).await, done(1));
    assert_eq!(peer.ask(request(2, "return", &[("load", stamped)])).await, done(2));
    let (tag, fired) = (format!("salt/run/{jid}/ret"), packed(&data("2026-11-21T23:33:39.000777")));
    let event = Value::Binary([tag.as_bytes(), b"\n\n", &fired[..]].concat());
    let events_of_bus = request(3, "events", &[("events", Value::Array(vec![event]))]);
    assert_eq!(peer.ask(events_of_bus).await, done(3));
    // A minion that returns the same, over the master, stays a minion.
    let forged = load(&[("cmd", "_return".into())]);
    assert_eq!(peer.ask(request(4, "return", &[("load", forged)])).await, done(4));
    assert_eq!(peer.ask(events(5, &["last"])).await, done(5));
    daemon.wait_for_event("last").await;
    assert_eq!(daemon.stored_as(&tag), 1, "{:?}", daemon.lines());
    let line = daemon.lines().into_iter().find(|line| line.contains(&tag)).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["data"]["_stamp"], "2026-11-21T23:33:39.000001");
    assert_eq!(line["data"]["return"]["retcode"], 1);
    assert_eq!(daemon.stored_as(&format!("salt/job/{jid}/ret/salt-1_master")), 1, "the forged one");

    let job = json_of(&daemon.get(&format!("/api/v1/jobs/{jid}")));
    assert_eq!(job["function"], "runner.state.orchestrate");
    assert_eq!(job["arguments"], serde_json::json!(["deploy"]));
    let counts = ["expected", "returned", "failed", "missing"].map(|key| job[key].clone());
    assert_eq!(serde_json::json!(counts), serde_json::json!([0, 1, 1, 0]), "{job}");
    let none = serde_json::json!([]);
    assert_eq!((&job["minions"], &job["missing_minions"]), (&none, &none));
    let ret = &job["returns"]["salt-1_master"];
    let said = ["runner", "outcome", "ok", "vouched_by"].map(|key| ret[key].clone());
    let expected = serde_json::json!([true, "failed", false, "master"]);
    assert_eq!((serde_json::json!(said), &ret["success"]), (expected, &true.into()));
    assert_eq!(ret["return"]["retcode"], 1);

    let list = |query: &str| {
        let page = json_of(&daemon.get(&format!("/api/v1/jobs?{query}")));
        page["jobs"].as_array().unwrap().len()
    };
    assert_eq!(list(""), 1);
    assert_eq!(list("outcome=failed&function=runner.*"), 1);
    assert_eq!(list("not_function=wheel.*&not_function=runner.*"), 0);
    let answer = peer.ask(request(6, "get_minions", &[])).await;
    assert_eq!(answer["value"].as_slice().unwrap(), b"\x90");
    let answer = peer.ask(request(7, "get_jid", &[("jid", jid.into())])).await;
    let returns = rmpv::decode::read_value(&mut answer["value"].as_slice().unwrap()).unwrap();
    assert_eq!(returns["salt-1_master"]["return"]["fun"], "runner.state.orchestrate".into());

    // A scheduled return without a job is an event, and no job.
    let value = Value::from(true);
    assert_eq!(peer.ask(returned(8, "nocache", "web-1", value)).await, done(8));
    daemon.wait_for_event("salt/job/nocache/ret/web-1").await;
    assert!(daemon.get("/api/v1/jobs/nocache").starts_with("HTTP/1.1 404"));
    assert_eq!(list(""), 1);
    daemon.kill();
}
