//! Alerts and dashboards, with a real Prometheus that watches a real run.
//!
//! `tests/servers/install.sh` has put Prometheus where these tests find it. The rules are those of
//! `dashboards/prometheus`, with seconds in place of minutes.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::bus::Bus;
use crate::harness::daemon::{Daemon, wait_for};
use crate::harness::kafka::Kafka;
use crate::harness::ports::free_ports;
use crate::harness::server::{Server, installed};

const RULES: [&str; 2] = ["recording.yaml", "alerts.yaml"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rules() -> PathBuf {
    root().join("dashboards/prometheus")
}

fn promtool() -> Command {
    Command::new(installed("prometheus").join("usr/bin/promtool"))
}

fn assert_succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
}

#[test]
fn the_rules_are_rules_and_do_what_their_tests_say() {
    assert_succeeds(promtool().args(["check", "rules"]).args(RULES).current_dir(rules()));
    assert_succeeds(promtool().args(["test", "rules", "tests.yaml"]).current_dir(rules()));
}

#[test]
fn every_alert_is_tested_and_has_its_section_in_the_runbook() {
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    let alerts = read(rules().join("alerts.yaml"));
    let tests = read(rules().join("tests.yaml"));
    let runbook = read(root().join("docs/runbook.md"));
    let mut count = 0;
    for alert in alerts.split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap();
        let url = format!("runbook_url: docs/runbook.md#{}\n", name.to_lowercase());
        assert!(alert.contains(&url), "{name} has no `{url}`");
        assert!(runbook.contains(&format!("\n## {name}\n")), "{name} has no section");
        let start = format!("alertname: {name}\n");
        let fires =
            tests.split(&start).skip(1).any(|test| test.trim_start().starts_with("exp_alerts:"));
        assert!(fires, "no test lets {name} fire");
        count += 1;
    }
    assert_eq!(count, 12);
}

#[test]
fn the_dashboards_are_of_grafanas_schema() {
    let dashboards = dashboards();
    let check = root().join("tests/servers/grafana_schema.py");
    assert_succeeds(
        Command::new(installed("grafana-schema").join("bin/python")).arg(check).args(&dashboards),
    );
}

#[test]
fn the_dashboards_are_what_their_sources_say() {
    let make = root().join("dashboards/grafana/make.py");
    assert_succeeds(Command::new("python3").arg(make).arg("--check"));
}

fn dashboards() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("dashboards/grafana")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

/// A Prometheus with its files in a folder.
struct Prometheus {
    address: String,
    _server: Server,
}

impl Prometheus {
    /// Watches daemons twice a second.
    fn start(daemons: &[&str]) -> Self {
        let mut server = Server::new("prometheus");
        let folder = server.folder().to_owned();
        for name in RULES {
            let mut text = fs::read_to_string(rules().join(name)).unwrap();
            for minutes in 1..=60 {
                text = text.replace(&format!("[{minutes}m]"), "[6s]");
                text = text.replace(&format!("for: {minutes}m"), "for: 1s");
            }
            fs::write(folder.join(name), text).unwrap();
        }
        let targets = daemons.join("', '");
        let config = format!(
            "global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}\n\
             rule_files: [recording.yaml, alerts.yaml]\n\
             scrape_configs:\n  - {{job_name: saltern, static_configs: [{{targets: ['{targets}']}}]}}\n"
        );
        fs::write(folder.join("prometheus.yaml"), config).unwrap();
        let [port] = free_ports();
        let address = format!("127.0.0.1:{port}");
        let arguments = [
            format!("--config.file={}", folder.join("prometheus.yaml").display()),
            format!("--storage.tsdb.path={}", folder.join("tsdb").display()),
            format!("--web.listen-address={address}"),
        ];
        server.start(&installed("prometheus").join("usr/bin/prometheus"), &arguments);
        Prometheus { address, _server: server }
    }

    /// The data of an answer of its API; `None` while there is none.
    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        // HTTP/1.0 makes the answer come in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let answer: Value = serde_json::from_str(body).ok()?;
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        Some(answer["data"].clone())
    }

    /// The series that a query finds.
    fn query(&self, query: &str) -> Vec<Value> {
        let mut path = "/api/v1/query?query=".to_owned();
        for byte in query.bytes() {
            write!(path, "%{byte:02x}").unwrap();
        }
        let data = self.get(&path);
        data.map(|data| data["result"].as_array().unwrap().clone()).unwrap_or_default()
    }

    fn wait_until_finds(&self, query: &str) {
        wait_for(query, || (!self.query(query).is_empty()).then_some(()));
    }

    /// An alert fires for this sink or source.
    fn fires(&self, alert: &str, label: &str, value: &str) -> bool {
        let data = self.get("/api/v1/alerts").unwrap_or_default();
        data["alerts"].as_array().into_iter().flatten().any(|found| {
            let labels = &found["labels"];
            found["state"] == "firing" && labels["alertname"] == alert && labels[label] == value
        })
    }

    fn wait_until_fires(&self, alert: &str, label: &str, value: &str) {
        wait_for(&format!("{alert} to fire"), || self.fires(alert, label, value).then_some(()));
    }

    fn wait_until_silent(&self, alert: &str, label: &str, value: &str) {
        wait_for(&format!("{alert} to end"), || (!self.fires(alert, label, value)).then_some(()));
    }
}

#[test]
fn a_real_prometheus_sees_it_all() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bus = Bus::listen(folder);
    // A file stands in the place of the store's folder.
    let store = folder.join("store");
    fs::write(&store, "").unwrap();
    let sections = format!(
        "estate: {{minions: true, status_functions: ['*'], status_states: ['*']}}\n{}sinks:\n  store:\n    \
         rawfile_json: {{filename: '{}/events'}}\n    retry: {{initial: 20ms, max: 200ms}}\n    \
         batch: {{linger: 10ms}}\n",
        bus.source(),
        store.display()
    );
    let daemon = Daemon::start(folder, &sections);
    let capture = fs::read(root().join("tests/captures/salt-3008.3.bus")).unwrap();
    bus.send_bytes(&capture);
    let prometheus = Prometheus::start(&[daemon.address()]);

    prometheus.wait_until_fires("SalternSinkDown", "sink", "store");
    let on_disk = |count| format!("saltern_sink_spill_events{{sink=\"store\"}} == {count}");
    prometheus.wait_until_finds(&on_disk(169));
    fs::remove_file(&store).unwrap();
    fs::create_dir(&store).unwrap();
    daemon.wait_stored("store", 169);
    prometheus.wait_until_silent("SalternSinkDown", "sink", "store");
    prometheus.wait_until_finds(&on_disk(0));

    assert!(!prometheus.fires("SalternBusGap", "source", "bus"));
    bus.hang_up();
    prometheus.wait_until_fires("SalternBusGap", "source", "bus");
    prometheus.wait_until_silent("SalternBusGap", "source", "bus");

    metrics_are_as_promtool_wants_them(&daemon.get("/metrics"));
    let mut queries = queries_of(&["saltern-pipeline", "salt-estate"]);
    queries.extend(of_salt_exporters_dashboard());
    let trimmed = serde_json::json!({"fun": "grains.items", "return": "VALUE_TRIMMED"});
    let trimmed = rmp_serde::to_vec(&trimmed).unwrap();
    every_query_finds_something(&prometheus, queries, || {
        bus.send_bytes(&capture);
        bus.send_event("salt/job/1/ret/web-1", &trimmed);
    });
    daemon.stop();
}

#[test]
fn a_real_prometheus_sees_kafka() {
    let kafka = Kafka::shared();
    kafka.create("dashboards", 2, &[]);
    let brokers = kafka.brokers();
    let (into, out_of) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut bus = Bus::listen(into.path());
    let sections = format!(
        "dedupe_window: 0s\n{}sinks:\n  topic:\n    kafka: {{brokers: ['{brokers}'], topic: dashboards, \
         transactional: true}}\n    batch: {{linger: 10ms}}\n  other: {{blackhole: {{}}}}\n",
        bus.source()
    );
    let collector = Daemon::start(into.path(), &sections);
    let sections = format!(
        "sources:\n  topic: {{kafka: {{brokers: ['{brokers}'], topics: [dashboards]}}}}\n\
         sinks:\n  store: {{blackhole: {{}}}}\n"
    );
    let worker = Daemon::start(out_of.path(), &sections);
    let capture = fs::read(root().join("tests/captures/salt-3008.3.bus")).unwrap();
    bus.send_bytes(&capture);
    let prometheus = Prometheus::start(&[collector.address(), worker.address()]);
    every_query_finds_something(&prometheus, queries_of(&["saltern-kafka"]), || {
        bus.send_bytes(&capture);
    });
    // The variables offer the sinks and sources of this kind alone.
    for (metric, label) in [
        ("saltern_sink_kafka_transactions_total", "sink"),
        ("saltern_source_kafka_partitions", "source"),
    ] {
        let found = prometheus.query(&format!("count by ({label}) ({metric})"));
        let found: Vec<_> = found.iter().map(|series| &series["metric"][label]).collect();
        assert_eq!(found, ["topic"], "{metric}");
    }
    for query in [
        "saltern_source_kafka_partitions == 2",
        "saltern_sink_kafka_transactions_total{outcome=\"committed\"} > 0",
    ] {
        prometheus.wait_until_finds(query);
    }
    worker.stop();
    collector.stop();
}

/// The metrics that salt-exporter's published dashboard asks for, and the labels that it asks by.
const OF_SALT_EXPORTERS_DASHBOARD: [(&str, &[&str]); 4] = [
    ("salt_new_job_total", &["function", "state"]),
    ("salt_expected_responses_total", &["instance", "function", "state"]),
    ("salt_function_responses_total", &["instance", "function", "state", "success"]),
    ("salt_scheduled_job_return_total", &["function", "state"]),
];

/// All queries of some dashboards to Prometheus.
fn queries_of(dashboards: &[&str]) -> Vec<String> {
    let mut queries = Vec::new();
    for name in dashboards {
        let path = root().join(format!("dashboards/grafana/{name}.json"));
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let before = queries.len();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                queries.push(target["expr"].as_str().unwrap().to_owned());
            }
        }
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            let query = variable["query"].as_str().unwrap();
            if let Some(of) = query.strip_prefix("label_values(") {
                queries.push(of.rsplit_once(',').unwrap().0.to_owned());
            }
        }
        assert!(queries.len() > before + 20, "{name}: {}", queries.len() - before);
    }
    queries
}

fn of_salt_exporters_dashboard() -> Vec<String> {
    let mut queries = Vec::new();
    for (metric, labels) in OF_SALT_EXPORTERS_DASHBOARD {
        let by = labels.join(", ");
        let selector: Vec<_> = labels.iter().map(|label| format!("{label}=~\".*\"")).collect();
        let selector = selector.join(", ");
        queries.push(format!("sum by ({by}) (increase({metric}{{{selector}}}[6s]))"));
        for success in ["true", "false"].iter().filter(|_| labels.contains(&"success")) {
            queries.push(format!("{metric}{{success=\"{success}\"}}"));
        }
    }
    queries
}

/// Waits until each of the queries has found something, while `more` makes events.
fn every_query_finds_something(
    prometheus: &Prometheus,
    mut queries: Vec<String>,
    mut more: impl FnMut(),
) {
    for query in &mut queries {
        *query = query.replace("$__rate_interval", "6s");
        for variable in ["$instance", "$sink", "$source", "$function"] {
            *query = query.replace(variable, ".*");
        }
        assert!(!query.contains('$'), "{query}");
    }
    wait_for("data for every query", || {
        more();
        queries.retain(|query| prometheus.query(query).is_empty());
        if queries.is_empty() { Some(()) } else { note(&queries) }
    });
}

/// Shown when the test fails.
fn note(queries: &[String]) -> Option<()> {
    println!("without data: {queries:#?}");
    None
}

fn metrics_are_as_promtool_wants_them(answer: &str) {
    let (_, text) = answer.split_once("\r\n\r\n").unwrap();
    let mut check = promtool();
    check.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut check = check.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    // The name is salt-exporter's.
    let expected =
        "salt_health_minions_total non-counter metrics should not have \"_total\" suffix";
    assert_eq!(said.trim(), expected);
}
