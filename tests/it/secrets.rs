//! No secret leaves the process: one is planted in every option that the schema marks as secret,
//! and everything that the process shows or writes is searched for it.
//!
//! Each of the configurations runs. An option with a password gets a real server that refuses it,
//! so that the errors of the server and its client are searched too. [`settings`] has the options.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Map, Value, json};

use crate::harness::bus::Bus;
use crate::harness::clickhouse::ClickHouse;
use crate::harness::daemon::{Daemon, Launch, SALTERN, wait_for};
use crate::harness::kafka::{Kafka, NOBODY};

const SECRET: &str = "hunter2-correct-horse";

/// The options that the schema is known to have. A new option is found by itself; [`settings`] has
/// its other needs.
const KNOWN: [&str; 9] = [
    "http.token",
    "sinks.*.clickhouse.auth.password",
    "sinks.*.clickhouse.auth.token",
    "sinks.*.clickhouse.auth.value",
    "sinks.*.clickhouse.password",
    "sinks.*.kafka.sasl.password",
    "sinks.*.kafka.tls.key_password",
    "sources.*.kafka.sasl.password",
    "sources.*.kafka.tls.key_password",
];

/// Librdkafka's own settings, which the schema knows nothing of.
const PROPERTIES: [&str; 2] = [
    "sinks.*.kafka.properties.ssl#keystore#password",
    "sources.*.kafka.properties.ssl#keystore#password",
];

/// Servers that refuse clients with the secret.
struct Servers {
    kafka: Kafka,
    clickhouse: ClickHouse,
}

impl Servers {
    /// Settings that kinds need besides.
    fn settings(&self, place: &[String]) -> Value {
        let [section, _, kind, rest @ ..] = place else { return json!({}) };
        let mut settings = match kind.as_str() {
            "clickhouse" => {
                let url = format!("http://127.0.0.1:{}", self.clickhouse.http);
                json!({"url": url, "database": "salt", "user": "saltern"})
            }
            "kafka" => {
                let tls = json!({"ca": self.kafka.certificate()});
                let brokers = [format!("127.0.0.1:{}", self.kafka.secure(0))];
                let sasl = json!({"mechanism": "PLAIN", "user": NOBODY.0, "password": "wrong"});
                json!({"brokers": brokers, "tls": tls, "sasl": sasl})
            }
            _ => example(section, kind),
        };
        match (kind.as_str(), section.as_str()) {
            ("kafka", "sinks") => settings["topic"] = json!("events"),
            ("kafka", _) => settings["topics"] = json!(["events"]),
            _ => {}
        }
        if let [block, secret] = rest
            && block == "auth"
        {
            // In place of the user, in each form of the option.
            settings.as_object_mut().unwrap().remove("user");
            settings["auth"] = match secret.as_str() {
                "password" => json!({"user": "saltern"}),
                "value" => json!({"header": "X-ClickHouse-Key"}),
                _ => json!({}),
            };
        }
        if kind == "kafka" && rest == ["tls", "key_password"] {
            // No key: reading it fails.
            settings["tls"]["cert"] = settings["tls"]["ca"].clone();
            settings["tls"]["key"] = settings["tls"]["ca"].clone();
        }
        settings
    }
}

/// The settings of a kind in the example of its documentation, with nobody behind its addresses.
fn example(section: &str, kind: &str) -> Value {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/{section}/{kind}.md"));
    let page = fs::read_to_string(page).unwrap();
    let yaml = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let mut yaml: Value = serde_saphyr::from_str(yaml).unwrap();
    let entries = yaml[section].as_object_mut().unwrap();
    let mut settings = entries.values_mut().find_map(|entry| entry.get_mut(kind)).unwrap().take();
    for setting in settings.as_object_mut().into_iter().flat_map(|settings| settings.values_mut()) {
        if setting.as_str().is_some_and(|text| text.contains("://")) {
            *setting = json!("http://127.0.0.1:1");
        }
    }
    settings
}

#[test]
fn no_secret_leaves_the_process() {
    let schema = Command::new(SALTERN).arg("schema").output().unwrap();
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    let mut places = Vec::new();
    find(&schema, &schema, &mut Vec::new(), &mut places);
    let mut names: Vec<String> = places.iter().map(|place| place.join(".")).collect();
    for known in KNOWN {
        assert!(names.iter().any(|name| name == known), "no {known} in {names:?}");
    }
    for name in PROPERTIES {
        names.push(name.to_owned());
        places.push(name.split('.').map(|key| key.replace('#', ".")).collect());
    }
    let mut kafka = Kafka::new(1).secured();
    kafka.start();
    let servers = Servers { kafka, clickhouse: ClickHouse::start() };
    for (place, name) in places.iter().zip(&names) {
        let folder = tempfile::tempdir().unwrap();
        let config = config_with(place, &servers, folder.path());
        check_is_silent(folder.path(), &config, name);
        run_is_silent(folder.path(), &config, name);
    }
}

/// A key that an operator mistypes may stand beside a secret, or in place of the name of one.
#[test]
fn no_mistake_shows_the_secret_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saltern.yaml");
    for sink in [
        format!("{{clickhouse: {{url: 'http://h', password: {SECRET}, databas: salt}}}}"),
        format!("{{clickhouse: {{url: 'http://h', database: salt, password: [{SECRET}]}}}}"),
        format!("{{clickhouse: {{url: 'http://u:{SECRET}@h', database: salt}}}}"),
        format!(
            "{{clickhouse: {{url: 'http://h', database: d, auth: {{value: {SECRET}, x: 1}}}}}}"
        ),
        format!("{{clickhouse: {{url: 'http://h', database: d, auth: {{value: {SECRET}}}}}}}"),
        format!("{{webhook: {{url: 'http://h', auth: {{user: {SECRET}, token: {SECRET}}}}}}}"),
        format!(
            "{{webhook: {{url: 'http://h', auth: {{header: 'a {SECRET}', value: {SECRET}}}}}}}"
        ),
        format!("{{webhook: {{url: 'http://h', signature: {{secret: {SECRET}, header: 'a b'}}}}}}"),
        format!(
            "{{kafka: {{brokers: ['h:1'], topic: t, sasl: {{user: u, password: '{SECRET}', x: 1}}}}}}"
        ),
        format!(
            "{{kafka: {{brokers: ['h:1'], topic: t, properties: {{ssl.keystore.pasword: {SECRET}}}}}}}"
        ),
        format!(
            "{{kafka: {{brokers: ['h:1'], topic: t, properties: {{sasl.password: {SECRET}}}}}}}"
        ),
    ] {
        let config = format!("sources: {{bus: {{salt_bus: {{}}}}}}\nsinks: {{planted: {sink}}}\n");
        fs::write(&path, config).unwrap();
        let output = check(&path, folder.path(), &[]);
        assert_eq!(output.status.code(), Some(2), "{sink}: {output:?}");
        assert_silent(&said(&output), "`check`", &sink);
        let output = check(&path, folder.path(), &["--output", "json"]);
        assert_silent(&said(&output), "`check --output json`", &sink);
    }
}

/// Secrets of which the message, and not only the line, could tell.
#[test]
fn no_message_tells_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saltern.yaml");
    let (number, file) = ("7361627512", folder.path().join("secret"));
    let in_file = format!("http://u:{SECRET}@{number}");
    fs::write(&file, &in_file).unwrap();
    let file = format!("'${{file:{}}}'", file.display());
    let clickhouse = |more: &str| {
        format!("sinks:\n  planted:\n    clickhouse:\n      database: salt\n      {more}\n")
    };
    let kafka = |more: &str| {
        format!(
            "sinks: {{planted: {{kafka: {{brokers: ['h:1'], topic: t, properties: {{{more}}}}}}}}}\n"
        )
    };
    let on_top = |more: &str| format!("{more}\nsinks: {{out: {{blackhole: {{}}}}}}\n");
    for config in [
        on_top(&format!("http: {{token: {number}}}")),
        on_top(&format!("http:\n  token: |\n    a\n    {SECRET}\n  listne: 1")),
        on_top(&format!("http: {{listen: {file}}}")),
        on_top(&format!("memory: {file}")),
        on_top(&format!("api_key: {SECRET}")),
        on_top(&format!("hook: https://hooks.slack.com/services/T0/B0/{SECRET}")),
        on_top(&format!("headers: {{Authorization: Basic {SECRET}}}")),
        on_top(&format!("http: {{\"token\": [{SECRET}]}}")),
        on_top(&format!("http:\n  token: *{SECRET}")),
        on_top(&format!("http:\n  token: @{SECRET}")),
        on_top(&format!("http:\n  token: {SECRET}: x: y")),
        on_top(&format!("http:\n  token: \"{SECRET}")),
        clickhouse(&format!("url: ftp://u:{SECRET}@h")),
        clickhouse(&format!("url: {file}")),
        clickhouse(&format!("url: [{file}]")),
        clickhouse(&format!("url: 'http://h'\n      password: {number}")),
        clickhouse(&format!("url: 'http://h'\n      password: {{a: {SECRET}}}")),
        kafka(&format!("ssl.key.pem: {SECRET}, x: 1")),
        kafka(&format!("sasl.oauthbearer.config: '{SECRET}', x: 1")),
        kafka(&format!("sasl.password: {SECRET}")),
        kafka(&format!("\"ssl.key.password\": {SECRET}")),
    ] {
        let config = format!("sources: {{bus: {{salt_bus: {{}}}}}}\n{config}");
        fs::write(&path, &config).unwrap();
        for options in [&[][..], &["--output", "json"]] {
            let output = check(&path, folder.path(), options);
            assert_eq!(output.status.code(), Some(2), "{config}: {output:?}");
            assert_silent(&said(&output), "`check`", &config);
            assert!(!said(&output).contains(number), "{config}: {output:?}");
        }
    }
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

/// A configuration that is right, with the secret in this place. Events that a sink cannot store
/// become dead letters, with the reason.
fn config_with(place: &[String], servers: &Servers, folder: &Path) -> Value {
    let mut config = json!({
        "state_dir": folder.join("state"),
        "shutdown_deadline": "1s",
        "http": {"listen": "127.0.0.1:0"},
        "log": {"level": "debug", "format": "json"},
        "sources": {
            "bus": {"salt_bus": {"address": folder.join("bus.ipc")}},
            "away": {"salt_bus": {"address": folder.join("away.ipc")}},
        },
        "sinks": {"out": {"blackhole": {}}},
    });
    if let [section, _, kind, ..] = place {
        config[section]["planted"] = json!({ kind: servers.settings(place) });
        if section == "sinks" {
            config["sinks"]["planted"]["retry"] =
                json!({"initial": "100ms", "max": "200ms", "timeout": "3s", "give_up_after": "1s"});
        }
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

fn check(path: &Path, folder: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(SALTERN);
    command
        .args(["check", "--config"])
        .arg(path)
        .args(options)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said)).concat()
}

/// Searches what `saltern check` says.
fn check_is_silent(folder: &Path, config: &Value, name: &str) {
    let path = folder.join("check.yaml");
    // With a mistake in it too: the line of one is shown, and here it is the only one.
    let mut wrong = config.clone();
    wrong["nonsense"] = json!(1);
    fs::write(&path, wrong.to_string()).unwrap();
    assert_silent(&said(&check(&path, folder, &[])), "`check`", name);
    fs::write(&path, config.to_string()).unwrap();
    let output = check(&path, folder, &[]);
    assert!(output.status.success(), "{name}: {output:?}");
    assert_silent(&said(&output), "`check`", name);
    let output = check(&path, folder, &["--connect"]);
    assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
    assert_silent(&said(&output), "`check --connect`", name);
}

fn run_is_silent(folder: &Path, config: &Value, name: &str) {
    let mut bus = Bus::listen(folder);
    let path = folder.join("saltern.yaml");
    fs::write(&path, config.to_string()).unwrap();
    let mut daemon = Daemon::spawn(&folder.join("saltern.yaml"), &Launch::default());
    bus.send(0..20, 100);
    wait_for("what cannot be reached to be tried", || has_failed(&mut daemon).then_some(()));
    let word = refusal(name);
    wait_for(&format!("`{word}` in the log"), || daemon.log().contains(word).then_some(()));
    for page in ["/", "/metrics", "/api/v1/status", "/api/v1/spill", "/readyz", "/nowhere"] {
        assert_silent(&daemon.get(page), page, name);
        assert_silent(&daemon.get_with(page, SECRET), page, name);
    }
    daemon.signal("HUP");
    wait_for("the configuration to be read again", || {
        daemon.log().contains("the configuration was reloaded").then_some(())
    });
    let mut wrong = config.clone();
    wrong["nonsense"] = json!(1);
    fs::write(&path, wrong.to_string()).unwrap();
    daemon.signal("HUP");
    wait_for("the configuration to be refused", || {
        daemon.log().contains("the new configuration is refused").then_some(())
    });
    daemon.signal("TERM");
    daemon.ended();
    assert_silent(&daemon.log(), "the log", name);
    files_are_silent(&folder.join("state"), name);
}

/// There is an error of the source that is away, and of the place that the secret was planted in.
fn has_failed(daemon: &mut Daemon) -> bool {
    // A token is made unless the secret is it.
    let token = daemon.made_token().unwrap_or_else(|| SECRET.to_owned());
    let answer = daemon.get_with("/api/v1/status", &token);
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let status: Value = serde_json::from_str(body).unwrap();
    let parts =
        ["sources", "sinks"].into_iter().flat_map(|section| status[section].as_array().unwrap());
    let mut wanted =
        parts.filter(|part| ["away", "planted"].iter().any(|name| part["name"] == *name));
    wanted.all(|part| !part["last_error"].is_null())
}

/// A word of the error that the secret causes: it shows that the secret was used.
fn refusal(name: &str) -> &str {
    match name {
        _ if name.ends_with("clickhouse.auth.token") => "uthentication",
        _ if name.contains("kafka") && name.ends_with("key_password") => "ssl.key",
        _ if name.contains("kafka") => "uthentication",
        _ if name.contains("clickhouse") => "password",
        _ => "No such file",
    }
}

/// Searches everything on disk: spill, dead letters, and all other files.
fn files_are_silent(folder: &Path, name: &str) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_are_silent(&path, name);
        } else {
            let bytes = fs::read(&path).unwrap();
            assert_silent(&String::from_utf8_lossy(&bytes), &path.display().to_string(), name);
        }
    }
}
