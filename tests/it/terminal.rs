//! No terminal and no log gets more than text from minions, users and peers. Commands show it made
//! visible. The log caps it, keeps it on its line and folds it.

use std::process::Command;
use std::time::Duration;

use crate::harness::beside::{self, Daemon};
use crate::harness::daemon::SALTERN;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use zeromq::{PushSocket, Socket, SocketSend};

/// A title, the clipboard (OSC 52), a line of its own, C1, another direction, nothing to see.
const HOSTILE: &str =
    "x\x1b]0;t\x07\x1b]52;c;aGk=\x07\n<0>y\u{9b}31m\u{202e}\u{2066}\u{200b}\u{feff}\u{2028}z";

const SHOWN: &str = "x\\u{1b}]0;t\\u{7}\\u{1b}]52;c;aGk=\\u{7}\\n<0>y\\u{9b}31m\\u{202e}\\u{2066}\\u{200b}\\u{feff}\\u{2028}z";

const JID: &str = "20261121233336123456";

fn frame(tag: &str, data: &[u8]) -> Vec<u8> {
    let body = [tag.as_bytes(), b"\n\n", data].concat();
    let len = u32::try_from(body.len()).unwrap().to_be_bytes();
    [b"\x82\xa4head\x80\xa4body\xc6", &len[..], &body].concat()
}

fn event(tag: &str, data: &Value) -> Vec<u8> {
    frame(tag, &rmp_serde::to_vec(data).unwrap())
}

async fn accepted(daemon: &Daemon, listener: &UnixListener) -> UnixStream {
    let accepted = timeout(beside::DEADLINE, listener.accept()).await;
    accepted.unwrap_or_else(|_| panic!("no connection; the log:\n{}", daemon.log())).unwrap().0
}

/// The text that a command prints, on both outputs.
fn said(daemon: &Daemon, arguments: &[&str]) -> (String, String) {
    let mut command = Command::new(SALTERN);
    let output = command.args(arguments).arg("--config").arg(daemon.path("config.yaml"));
    let output = output.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

fn is_plain(text: &str) -> bool {
    let hidden = ['\u{202e}', '\u{2066}', '\u{200b}', '\u{feff}', '\u{2028}'];
    !text.contains(hidden) && !text.contains(|c: char| c.is_control() && c != '\n')
}

#[tokio::test]
async fn invariant_7_no_job_drives_the_terminal() {
    let source = "salt_bus: {address: FOLDER/bus}\njobs: {enabled: true}";
    let daemon = Daemon::start(source);
    let listener = UnixListener::bind(daemon.path("bus")).unwrap();
    let mut stream = accepted(&daemon, &listener).await;
    let new = json!({"jid": JID, "fun": HOSTILE, "tgt": HOSTILE, "tgt_type": "glob",
        "user": HOSTILE, "arg": [], "minions": [HOSTILE, "away"]});
    stream.write_all(&event(&format!("salt/job/{JID}/new"), &new)).await.unwrap();
    let ret = json!({"jid": JID, "fun": HOSTILE, "id": HOSTILE, "retcode": 1, "success": false,
        "return": HOSTILE});
    stream.write_all(&event(&format!("salt/job/{JID}/ret/{HOSTILE}"), &ret)).await.unwrap();
    stream.write_all(&event("last", &json!({}))).await.unwrap();
    daemon.wait_for_event("last").await;
    // The job cache has stored everything before it ends.
    daemon.signal("TERM");
    assert!(daemon.ended().await.success());

    // The file is read, as the daemon is gone.
    for (arguments, shows) in [
        (&["jobs", "list"][..], true),
        (&["jobs", "failed"], true),
        (&["jobs", "missing"], true),
        (&["jobs", "show", JID], true),
        (&["jobs", "failed", JID], true),
        (&["jobs", "missing", JID], false),
        (&["jobs", "show", HOSTILE], false),
        (&["spill", "list"], false),
    ] {
        let (out, error) = said(&daemon, arguments);
        assert!(is_plain(&out) && is_plain(&error), "{arguments:?}: {out}{error}");
        assert!(!shows || out.contains(&SHOWN[..60]), "{arguments:?}: {out}");
        let lines = out.lines().filter(|line| line.starts_with("<0>"));
        assert_eq!(lines.count(), 0, "{arguments:?}: {out}");
    }
    let (out, _) = said(&daemon, &["jobs", "missing", JID]);
    assert_eq!(out, "away\n");
    let (_, error) = said(&daemon, &["jobs", "show", HOSTILE]);
    assert!(error.lines().count() == 1 && error.contains(SHOWN), "{error}");
    // JSON has no such character either, and keeps the value.
    for arguments in
        [&["jobs", "show", JID, "--output", "json"][..], &["jobs", "list", "--output", "json"]]
    {
        let (out, _) = said(&daemon, arguments);
        assert!(is_plain(&out), "{out}");
        let read: Value = serde_json::from_str(&out).unwrap();
        let job = read.get("jobs").map_or(&read, |jobs| &jobs[0]);
        assert_eq!(job["function"], HOSTILE, "{out}");
    }
}

#[tokio::test]
async fn invariant_7_no_text_forges_a_line_of_the_log() {
    let source = "salt_bus: {address: FOLDER/bus}\njobs: {enabled: true}";
    for format in ["journald", "text", "json"] {
        let sink = "blackhole: {}";
        let daemon = Daemon::start_logging(source, sink, format);
        let listener = UnixListener::bind(daemon.path("bus")).unwrap();
        let mut stream = accepted(&daemon, &listener).await;
        // No map, so it is no return, which is logged with its tag.
        let tag = format!("salt/job/{JID}/ret/{HOSTILE}{}", "long".repeat(10_000));
        stream.write_all(&frame(&tag, b"\xa1x")).await.unwrap();
        daemon.wait_for_log("left out of the job cache").await;
        let log = daemon.log();
        assert!(is_plain(&log) && log.contains("<0>y"), "{log}");
        assert!(!log.lines().any(|line| line.starts_with("<0>")), "{log}");
        assert!(log.len() < 20_000, "{} bytes", log.len());
        drop(stream);
    }
}

#[tokio::test]
async fn whoever_sends_something_else_each_time_does_not_fill_the_log() {
    const MESSAGES: usize = 5000;
    let daemon = Daemon::start("zeromq: {bind: 'ipc://FOLDER/push', max_frame: 1KiB}");
    daemon.until("the socket", || daemon.path("push").exists()).await;
    let mut socket = PushSocket::new();
    socket.connect(&format!("ipc://{}", daemon.path("push").display())).await.unwrap();
    let sending = async {
        for number in 0..MESSAGES {
            socket.send(Bytes::from(vec![b'x'; 1025 + number]).into()).await.unwrap();
        }
        socket.send(Bytes::from_static(b"last\n\n\x81\xa1a\x01").into()).await.unwrap();
        daemon.wait_for_event("last").await;
    };
    timeout(Duration::from_mins(3), sending).await.unwrap();
    let refused = daemon.known_metric("saltern_source_bad_frames_total");
    assert!(refused > 4999.0, "{refused}");
    let log = daemon.log();
    assert!(log.lines().count() < 100 && log.len() < 50_000, "{} bytes", log.len());
    daemon.stop().await;
}
