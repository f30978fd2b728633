//! Lines that Python writes, and worse ones, go through the real binary: each event is delivered,
//! and values that JSON lacks are counted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::beside::Daemon;
use crate::harness::daemon::saltern;
use crate::harness::server::installed;

/// Writes what `rawfile_json` of this Salt makes of such events, by its own function.
const SCRIPT: &str = r#"
import sys
import salt.returners.rawfile_json as returner
returner.__salt__ = {}
returner.__opts__ = {"rawfile_json.filename": sys.argv[1]}
inf = float("inf")
deep = []
for _ in range(200):
    deep = [deep]
returner.event_return([
    {"tag": "py/numbers", "data": {"x": float("nan"), "y": [inf, -inf], "s": "NaN Infinity -Infinity"}},
    {"tag": "py/long", "data": {"n": [2**64 - 1, -2**63, 2**64, -2**70]}},
    {"tag": "py/float", "data": [0.1 + 0.2, 1e300, 5e-324, -0.0, 1.7976931348623157e308]},
    {"tag": "py/nul", "data": "a\u0000b\u001f\u007f \u2028 \U0001f600"},
    {"tag": "py/keys", "data": {1: "a", "1": "b", None: "c", 1.5: "e"}},
    {"tag": "py/deep", "data": deep},
])
"#;

fn python() -> PathBuf {
    installed("salt-3007.15").join("bin/python")
}

fn nested(depth: usize, inner: &str) -> Value {
    let text = format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth));
    let mut reader = serde_json::Deserializer::from_str(&text);
    reader.disable_recursion_limit();
    serde::Deserialize::deserialize(&mut reader).unwrap()
}

/// The lines of a file, tag and data.
fn events(file: &Path) -> Vec<(String, Value)> {
    let read = |line: &str| {
        let mut reader = serde_json::Deserializer::from_str(line);
        reader.disable_recursion_limit();
        let value: Value = serde::Deserialize::deserialize(&mut reader).unwrap();
        (value["tag"].as_str().unwrap().to_owned(), value["data"].clone())
    };
    fs::read_to_string(file).unwrap_or_default().lines().map(read).collect()
}

/// The events in `out` after `saltern replay` of a file with these bytes.
fn replay(folder: &Path, bytes: &[u8]) -> Output {
    let show = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "state_dir: {}\nhttp: {{listen: null}}\n\
         sources: {{bus: {{salt_bus: {{address: 'unix:/nowhere'}}}}}}\n\
         sinks: {{out: {{rawfile_json: {{filename: {}}}}}}}\n",
        show("state"),
        show("out")
    );
    fs::write(folder.join("config.yaml"), config).unwrap();
    fs::write(folder.join("in"), bytes).unwrap();
    saltern(&["replay", &show("in"), "--config", &show("config.yaml")])
}

#[tokio::test]
async fn lines_of_real_python_are_delivered_and_what_json_lacks_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("lines");
    let written = Command::new(python()).args(["-c", SCRIPT]).arg(&lines).output().unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let text = fs::read_to_string(&lines).unwrap();
    assert!(text.contains("NaN,") || text.contains("NaN}"), "Python writes it bare: {text}");

    // A second source keeps the daemon.
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let source = format!(
        "replay: {{path: '{}'}}\n  idle:\n    replay: {{path: '{}'}}",
        lines.display(),
        fifo.display()
    );
    let daemon = Daemon::start(&source);
    daemon.wait_for_event("py/deep").await;
    let cut = nested(128, "null");
    let expected = [
        ("py/numbers", json!({"x": null, "y": [null, null], "s": "NaN Infinity -Infinity"})),
        (
            "py/long",
            json!({"n": [u64::MAX, i64::MIN, "18446744073709551616", "-1180591620717411303424"]}),
        ),
        ("py/float", json!([0.1 + 0.2, 1e300, 5e-324, -0.0, f64::MAX])),
        ("py/nul", json!("a\0b\u{1f}\u{7f} \u{2028} 😀")),
        ("py/keys", json!({"1": "b", "null": "c", "1.5": "e"})),
        ("py/deep", cut),
    ];
    let stored = events(&daemon.path("out"));
    assert_eq!(stored.len(), expected.len());
    for ((tag, data), (expected_tag, expected)) in stored.iter().zip(&expected) {
        assert_eq!((tag.as_str(), data), (*expected_tag, expected));
    }
    let metrics = daemon.get("/metrics");
    for (reason, count) in
        [("not_finite", 3), ("long_integer", 2), ("not_utf8", 0), ("too_deep", 1)]
    {
        let line = format!(
            "saltern_source_lossy_values_total{{source=\"bus\",reason=\"{reason}\"}} {count}\n"
        );
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    assert!(metrics.contains("saltern_source_bad_frames_total{source=\"bus\"} 0\n"), "{metrics}");
    let status = daemon.get("/api/v1/status");
    let (_, body) = status.split_once("\r\n\r\n").unwrap();
    let status: Value = serde_json::from_str(body).unwrap();
    assert_eq!(status["sources"][0]["lossy_values"], 6);
    daemon.wait_for_log("events had values that JSON lacks").await;
}

#[test]
fn what_python_escapes_and_windows_adds_is_delivered() {
    let folder = tempfile::tempdir().unwrap();
    // Python's own `json` writes halves of surrogate pairs as escapes.
    let script =
        "import json; print(json.dumps({'tag': 'half', 'data': ['\\ud800', '\\U0001f600']}))";
    let half = Command::new(python()).args(["-c", script]).output().unwrap().stdout;
    assert!(half.windows(6).any(|six| six == b"\\ud800"));
    let bytes = [
        &b"\xef\xbb\xbf\r\n\r\n"[..],
        &half,
        b"{\"tag\": \"bytes\", \"data\": \"\xff\"}\r\n",
        b"no event\r\n",
        b"{\"data\": 1e400, \"tag\": \"last\"}",
    ];
    let output = replay(folder.path(), &bytes.concat());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("line 5"), "{log}");
    let stored = events(&folder.path().join("out"));
    let expected = [
        ("half".to_owned(), json!(["\u{fffd}", "😀"])),
        ("bytes".to_owned(), json!("\u{fffd}")),
        ("last".to_owned(), json!(null)),
    ];
    assert_eq!(stored, expected, "{log}");
}

#[test]
fn a_file_without_events_is_no_error() {
    for bytes in [&b""[..], b"\n", b"\r\n\r\n \n\n\n\n\n\n\n", b"\xef\xbb\xbf\n"] {
        let folder = tempfile::tempdir().unwrap();
        let output = replay(folder.path(), bytes);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(events(&folder.path().join("out")), []);
    }
}
