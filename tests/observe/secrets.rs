//! No secret leaves the process: one is planted in every option that the schema says holds one, and
//! everything that the process shows is searched for it.
//!
//! A kind that needs more than secrets to run has what it needs in [`settings`]. Without that its
//! configuration is wrong, and only what `saltern check` says of it is searched.

use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

use crate::daemon::{Daemon, wait_for};

const SECRET: &str = "hunter2-correct-horse";

/// What kinds of sinks need besides.
fn settings(kind: &str) -> Value {
    match kind {
        "rawfile_json" => json!({"filename": "out"}),
        "sqlite3" => json!({"database": "out.db"}),
        _ => json!({}),
    }
}

#[test]
fn no_secret_leaves_the_process() {
    let schema = Command::new(env!("CARGO_BIN_EXE_saltern")).arg("schema").output().unwrap();
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    let mut places = Vec::new();
    find(&schema, &schema, &mut Vec::new(), &mut places);
    let names: Vec<String> = places.iter().map(|place| place.join(".")).collect();
    assert!(names.contains(&"http.token".to_owned()), "{names:?}");
    let mut have_run = Vec::new();
    for (place, name) in places.iter().zip(&names) {
        let folder = tempfile::tempdir().unwrap();
        let config = config_with(place, folder.path());
        if !check_is_silent(folder.path(), &config, name) {
            continue;
        }
        run_is_silent(folder.path(), &config, name);
        have_run.push(name.as_str());
    }
    assert!(have_run.contains(&"http.token"), "{have_run:?}");
}

/// The places of secrets in the configuration: keys from the top, `*` for a name of the operator's.
fn find(root: &Value, schema: &Value, path: &mut Vec<String>, places: &mut Vec<Vec<String>>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = root.pointer(reference.trim_start_matches('#')).unwrap();
        return find(root, target, path, places);
    }
    if schema["format"] == "password" && !places.contains(path) {
        places.push(path.clone());
    }
    for several in ["anyOf", "allOf", "oneOf"] {
        for part in schema[several].as_array().into_iter().flatten() {
            find(root, part, path, places);
        }
    }
    let properties = schema["properties"].as_object().into_iter().flatten();
    let any =
        schema["additionalProperties"].is_object().then(|| ("*", &schema["additionalProperties"]));
    for (name, part) in properties.map(|(name, part)| (name.as_str(), part)).chain(any) {
        path.push(name.to_owned());
        find(root, part, path, places);
        path.pop();
    }
}

/// A configuration that is right, as far as can be told, with the secret in this place.
fn config_with(place: &[String], folder: &Path) -> Value {
    let mut config = json!({
        "state_dir": folder.join("state"),
        "shutdown_deadline": "3s",
        "http": {"listen": "127.0.0.1:0"},
        "log": {"level": "debug", "format": "json"},
        "sources": {"planted": {"salt_bus": {"address": folder.join("away.ipc")}}},
        "sinks": {"planted": {"blackhole": {}}},
    });
    if let [section, _, kind, ..] = place
        && section == "sinks"
    {
        config["sinks"]["planted"] = json!({ kind: settings(kind) });
    } else if let [section, _, kind, ..] = place
        && section == "sources"
    {
        config["sources"]["planted"] = json!({ kind: {} });
    }
    let mut at = &mut config;
    for key in place {
        let key = if key == "*" { "planted" } else { key };
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[key];
    }
    *at = json!(SECRET);
    config
}

fn assert_silent(text: &str, what: &str, name: &str) {
    assert!(!text.contains(SECRET), "{what} shows what is in {name}:\n{text}");
}

/// Searches what `saltern check` says; whether it found the configuration right.
fn check_is_silent(folder: &Path, config: &Value, name: &str) -> bool {
    let mut is_right = false;
    // With a mistake in it too: the lines around one are shown.
    let mut wrong = config.clone();
    wrong["nonsense"] = json!(1);
    for config in [&wrong, config] {
        let path = folder.join("check.yaml");
        std::fs::write(&path, serde_json::to_string_pretty(config).unwrap()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_saltern"));
        command.args(["check", "--config"]).arg(&path).current_dir(folder);
        let output = command.output().unwrap();
        assert_silent(&String::from_utf8_lossy(&output.stdout), "`check`", name);
        assert_silent(&String::from_utf8_lossy(&output.stderr), "`check`", name);
        is_right = output.status.success();
    }
    is_right
}

fn run_is_silent(folder: &Path, config: &Value, name: &str) {
    std::fs::write(folder.join("saltern.yaml"), config.to_string()).unwrap();
    let mut daemon = Daemon::spawn(folder, None);
    wait_for("the source to be tried", || daemon.log().contains("cannot connect").then_some(()));
    for page in ["/", "/metrics", "/api/v1/status", "/readyz", "/nowhere"] {
        assert_silent(&daemon.get(page), page, name);
        assert_silent(&daemon.get_with(page, SECRET), page, name);
    }
    daemon.signal("HUP");
    wait_for("the configuration to be read again", || {
        daemon.log().contains("the configuration was reloaded").then_some(())
    });
    daemon.signal("TERM");
    assert!(daemon.ended().success(), "{}", daemon.log());
    assert_silent(&daemon.log(), "the log", name);
}
