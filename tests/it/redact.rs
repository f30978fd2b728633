//! A value that `redact` names is nowhere: not in a file of any sink, not in the daemon's own
//! files, not on a screen.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::beside::Daemon;
use crate::harness::daemon::SALTERN;
use crate::harness::returner_peer::{Peer, request};
use rmpv::Value as Packed;
use saltern::event::Event;
use serde_json::{Value, json};

const SECRET: &[u8] = b"hunter2-correct-horse";
const JID: &str = "20261121233336123456";

/// Salt's side of a returner.
struct Salt(Peer);

impl Salt {
    async fn connect(daemon: &Daemon) -> Self {
        Salt(Peer::at(daemon).await)
    }

    /// Asks for something, and waits until it is done.
    async fn ask(&mut self, op: &str, more: &[(&str, Packed)]) {
        let answer = self.0.ask(request(1, op, more)).await;
        assert!(answer["error"].is_nil(), "{op}: {answer}");
    }

    async fn event(&mut self, tag: &str, data: &Value) {
        let frame = [tag.as_bytes(), b"\n\n", &packed(data)].concat();
        self.ask("events", &[("events", Packed::Array(vec![Packed::Binary(frame)]))]).await;
    }
}

fn packed(data: &Value) -> Vec<u8> {
    rmp_serde::to_vec(data).unwrap()
}

fn secret() -> &'static str {
    std::str::from_utf8(SECRET).unwrap()
}

/// The events of the test: what a pillar holds, a command with a token, a key within a list.
fn secretive() -> Vec<(String, Value)> {
    let secret = secret();
    let returned = |minion: &str, fun: &str, fun_args: Value, value: Value| {
        let data = json!({
            "id": minion, "jid": JID, "fun": fun, "fun_args": fun_args, "return": value,
            "retcode": 0, "success": true,
        });
        (format!("salt/job/{JID}/ret/{minion}"), data)
    };
    let command = format!("curl -H 'X: token={secret}' http://h/");
    let kwarg = json!({"__kwarg__": true, "db_password": secret});
    vec![
        returned("web-1", "pillar.items", json!([]), json!({"ssl": {"key": secret}, "a": 1})),
        returned("web-2", "cmd.run", json!([command]), json!(format!("token={secret}\nok"))),
        returned("web-3", "x.y", json!([kwarg]), json!([1, [{"Password": [secret]}]])),
        (format!("salt/job/{JID}/new"), json!({"jid": JID, "fun": "cmd.run", "arg": [command]})),
    ]
}

const RULES: &str = "
redact:
  - {name: keys, keys: ['*password*']}
  - {name: pillars, paths: [$.return], functions: ['pillar.*'], tags: ['salt/job/*']}
  - {name: tokens, pattern: '(token=)[^\\s'']+', with: '${1}**redacted**'}";

/// The files at a path and below that hold these bytes.
fn files_with(path: &Path, bytes: &[u8]) -> Vec<String> {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap();
        return entries.flat_map(|entry| files_with(&entry.unwrap().path(), bytes)).collect();
    }
    let holds = fs::read(path).is_ok_and(|content| memchr::memmem::find(&content, bytes).is_some());
    if holds { vec![path.display().to_string()] } else { Vec::new() }
}

#[tokio::test]
async fn a_secret_is_on_no_disk_and_no_screen_and_ids_stay() {
    let source = format!("returner: {{bind: 'ipc://FOLDER/r'}}{RULES}\njobs: {{enabled: true}}");
    let sinks = "rawfile_json: {filename: FOLDER/out}\n    batch: {linger: 10ms}\n  \
                 down:\n    rawfile_json: {filename: FOLDER/missing/out}\n  \
                 refuses:\n    rawfile_json: {filename: FOLDER/missing/too}\n    \
                 batch: {linger: 10ms}\n    \
                 retry: {initial: 10ms, max: 10ms, give_up_after: 100ms}";
    let daemon = Daemon::start_with(&source, sinks);
    let mut salt = Salt::connect(&daemon).await;
    daemon.wait_for_log("the HTTP side listens").await;
    let watching = Command::new(SALTERN)
        .args(["events", "--output", "json", "--count", "4", "--tag", "salt/*", "--state-dir"])
        .arg(daemon.path("state"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Events are shown from when the watcher is there.
    let beat = ["beat".to_owned(), "salt/beat".to_owned()];
    salt.event(&beat[0], &json!({})).await;

    let load = json!({"jid": JID, "fun": "cmd.run", "kwargs": {"password": secret()}, "arg": []});
    let minions = ["web-1", "web-2", "web-3"].map(Packed::from).to_vec();
    let load = [
        ("jid", JID.into()),
        ("load", Packed::Binary(packed(&load))),
        ("minions", Packed::Array(minions)),
    ];
    salt.ask("save_load", &load).await;
    for (tag, data) in secretive() {
        if data["return"].is_null() {
            salt.event(&tag, &data).await;
        } else {
            salt.ask("return", &[("load", Packed::Binary(packed(&data)))]).await;
        }
        daemon.wait_for_event(&tag).await;
    }
    let letters = || {
        let database = rusqlite::Connection::open(daemon.path("state/dead-letters.db")).unwrap();
        let mut select = database.prepare("SELECT tag, event_id FROM dead_letters").unwrap();
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let rows = select.query_map([], row).unwrap();
        rows.collect::<Result<Vec<(String, String)>, _>>().unwrap()
    };
    daemon.until("dead letters", || letters().len() == 5).await;
    for (tag, data) in secretive() {
        let id = Event::new(&tag, &packed(&data)).id().to_string();
        assert!(letters().contains(&(tag, id)), "{:?}", letters());
    }

    let everything = daemon.folder.path();
    assert_eq!(files_with(everything, SECRET), Vec::<String>::new());
    // It was looked for in the right places.
    let hidden = files_with(everything, b"**redacted**").join("\n");
    for place in ["/out", "/spill/down/", "dead-letters.db", "job-cache.db"] {
        assert!(hidden.contains(place), "no {place} in\n{hidden}");
    }
    let lines = daemon.lines().join("\n");
    for kept in [
        r#""return": "**redacted**""#,
        r#""db_password": "**redacted**""#,
        r#"[1, [{"Password": "**redacted**"}]]"#,
        r"token=**redacted**' http://h/",
        r#""token=**redacted**\nok""#,
    ] {
        assert!(lines.contains(kept), "no {kept} in\n{lines}");
    }
    // Once in the job cache, once as events; the load of the job is an event of saltern's own.
    for (rule, count) in [("keys", 6.0), ("pillars", 2.0), ("tokens", 5.0)] {
        let name = format!("saltern_redacted_values_total{{sink=\"\",rule=\"{rule}\"}}");
        let counted = daemon.known_metric(&name);
        assert!((counted - count).abs() < 0.1, "{rule}: {counted}");
    }
    let shown = tokio::task::spawn_blocking(|| watching.wait_with_output().unwrap());
    let mut more = 0;
    let shown = loop {
        if shown.is_finished() {
            break shown.await.unwrap();
        }
        // The watcher may have missed so many at the beginning.
        more += 1;
        salt.event(&beat[1], &json!({"n": more, "password": secret()})).await;
    };
    assert!(memchr::memmem::find(&shown.stdout, b"**redacted**").is_some());
    assert!(memchr::memmem::find(&shown.stdout, SECRET).is_none());
    assert_eq!(files_with(everything, SECRET), Vec::<String>::new());
    daemon.stop().await;
}

#[tokio::test]
async fn a_sink_hides_what_others_get_and_sighup_changes_the_rules() {
    let source = "returner: {bind: 'ipc://FOLDER/r'}";
    let sinks = "rawfile_json: {filename: FOLDER/out}\n    batch: {linger: 10ms}\n  \
                 hides:\n    rawfile_json: {filename: FOLDER/hidden}\n    \
                 batch: {linger: 10ms}\n    filter: {functions: [one]}\n    \
                 redact: [{keys: [fun, a]}]";
    let daemon = Daemon::start_with(source, sinks);
    let mut salt = Salt::connect(&daemon).await;
    let hidden = || fs::read_to_string(daemon.path("hidden")).unwrap_or_default();
    salt.event("t/1", &json!({"fun": "one", "a": 1, "b": 2})).await;
    salt.event("t/2", &json!({"fun": "two", "a": 1, "b": 2})).await;
    salt.event("t/3", &json!({"fun": "one", "c": 1})).await;
    daemon.wait_for_event("t/3").await;
    daemon.until("the sink that hides", || hidden().lines().count() == 2).await;
    assert!(hidden().contains(r#"{"fun": "**redacted**", "a": "**redacted**", "b": 2}"#));
    assert!(daemon.lines()[0].contains(r#"{"fun": "one", "a": 1, "b": 2}"#));
    let counted = daemon.known_metric("saltern_redacted_values_total{sink=\"hides\",rule=\"1\"}");
    assert!((counted - 3.0).abs() < 0.1, "{counted}");

    let path = daemon.path("config.yaml");
    let config = fs::read_to_string(&path).unwrap().replace("[fun, a]", "[b]");
    fs::write(&path, format!("{config}\nredact: [{{keys: [a], name: top}}]\n")).unwrap();
    daemon.signal("HUP");
    daemon.wait_for_log("the configuration was reloaded").await;
    salt.event("t/4", &json!({"fun": "one", "a": 1, "b": 2})).await;
    daemon.wait_for_event("t/4").await;
    daemon.until("the sink that hides", || hidden().lines().count() == 3).await;
    assert!(hidden().contains(r#"{"fun": "one", "a": "**redacted**", "b": "**redacted**"}"#));
    assert!(daemon.lines()[3].contains(r#"{"fun": "one", "a": "**redacted**", "b": 2}"#));
    let counted = daemon.known_metric("saltern_redacted_values_total{sink=\"\",rule=\"top\"}");
    assert!((counted - 1.0).abs() < 0.1, "{counted}");
    daemon.stop().await;
}
