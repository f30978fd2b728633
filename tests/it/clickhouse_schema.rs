//! ClickHouse's tables on real servers: ClickHouse 18.16, and the engine of 26.9 in chDB. They are
//! made, made again, brought up to date, filled from recorded buses, and read back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::clickhouse::ClickHouse;
use crate::harness::clickhouse::chdb::Chdb;
use crate::harness::daemon::{Daemon, SALTERN};

/// A server of one of the releases.
enum Store {
    Old(ClickHouse),
    New(Chdb),
}

impl Store {
    fn old() -> Self {
        Store::Old(ClickHouse::start())
    }

    fn new() -> Self {
        Store::New(Chdb::start())
    }

    fn release(&self) -> &'static str {
        match self {
            Store::Old(_) => "18.16",
            Store::New(_) => "26.9",
        }
    }

    fn settings(&self, database: &str) -> String {
        match self {
            Store::Old(server) => server.settings(database),
            Store::New(server) => server.settings(database),
        }
    }

    /// The answer, rows of tab-separated values.
    fn query(&self, sql: &str) -> String {
        match self {
            Store::Old(server) => server.query(sql),
            Store::New(server) => server.query(sql),
        }
    }

    /// The rows, each value as text, in the order of the text.
    fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        let answer = self.query(&format!("{sql} FORMAT JSONCompact"));
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let rows = answer["data"].as_array().unwrap().iter();
        let mut rows: Vec<Vec<_>> =
            rows.map(|row| row.as_array().unwrap().iter().map(shown).collect()).collect();
        rows.sort();
        rows
    }

    /// The expression for `time` to the microsecond.
    fn time(&self) -> &'static str {
        match self {
            Store::Old(_) => {
                "concat(toString(time), '.', substring(toString(1000000 + time_us), 2))"
            }
            Store::New(_) => "toString(time)",
        }
    }

    fn script(&self, file: &Path, database: &str) {
        let script = fs::read_to_string(file).unwrap();
        for statement in script.split(";\n").filter(|statement| !statement.trim().is_empty()) {
            self.query(&statement.replace("`salt_", &format!("{database}.`salt_")));
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // Servers write 1 where 1.0 is meant, and one of 2018 1.1360000000000001 for 1.136.
        Value::Number(number) => {
            let number = format!("{:.9}", number.as_f64().unwrap());
            number.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        other => other.to_string(),
    }
}

/// A configuration with this sink.
fn config(folder: &TempDir, sink: &str) -> PathBuf {
    let config = folder.path().join("schema.yaml");
    let text = format!(
        "state_dir: {}\nsources: {{bus: {{salt_bus: {{address: /nowhere}}}}}}\n\
         sinks: {{analytics: {{clickhouse: {{{sink}}}}}}}\n",
        folder.path().join("state").display()
    );
    fs::write(&config, text).unwrap();
    config
}

/// `saltern schema clickhouse …`
fn schema(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(SALTERN);
    command.args(["schema", "clickhouse"]).args(arguments).arg("--config").arg(config);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The output of `saltern schema clickhouse --apply` with this sink.
fn applied(sink: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    printed(&schema(&config(&folder, sink), &["--apply"]).output().unwrap())
}

fn printed(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The definition of the tables. A comment stays as it was when its column was made.
fn tables(store: &Store, database: &str) -> Vec<Vec<String>> {
    let of_columns = "SELECT table, name, type FROM system.columns";
    let of_tables = "SELECT name, engine FROM system.tables";
    let at = format!("WHERE database = '{database}'");
    [store.rows(&format!("{of_columns} {at}")), store.rows(&format!("{of_tables} {at}"))].concat()
}

const TABLES: [&str; 8] = [
    "salt_events",
    "salt_jobs",
    "salt_returns",
    "salt_states",
    "salt_rates",
    "salt_failures",
    "salt_durations",
    "salt_schema",
];

fn applies_and_changes_nothing_the_second_time(store: &Store) {
    let settings = store.settings("twice") + ", ttl: 90d";
    let first = applied(&settings);
    for table in TABLES {
        assert!(
            first.contains(&format!("CREATE TABLE IF NOT EXISTS `twice`.`{table}` (")),
            "{first}"
        );
    }
    let made = tables(store, "twice");
    let second = applied(&settings);
    assert!(second.trim_end().ends_with("nothing is missing"), "{second}");
    assert_eq!(tables(store, "twice"), made);
    assert_eq!(store.query("SELECT version FROM twice.salt_schema"), "3\n");
    let silent = "SELECT count() FROM system.columns WHERE database = 'twice' AND comment = '' \
                  AND table NOT LIKE '%_mv'";
    assert_eq!(store.query(silent), "0\n");
    if let Store::New(_) = store {
        let aging = "SELECT count() FROM system.tables WHERE database = 'twice' \
                     AND create_table_query LIKE '% TTL toDateTime(time) + toIntervalDay(90) %'";
        assert_eq!(store.query(aging), "4\n");
    }
    // The printed statements are those that are applied, and do no harm a second time.
    let version = ["--sink", "analytics", "--server-version", store.release()];
    let folder = tempfile::tempdir().unwrap();
    let printed = printed(&schema(&config(&folder, &settings), &version).output().unwrap());
    let is_note = |line: &&str| line.starts_with("--");
    assert_eq!(printed.lines().any(|line| is_note(&line)), matches!(store, Store::Old(_)));
    let statements: String =
        printed.lines().filter(|line| !is_note(line)).collect::<Vec<_>>().join("\n");
    for statement in statements.split(";\n").filter(|statement| !statement.trim().is_empty()) {
        store.query(statement.trim_end_matches(';'));
    }
    assert_eq!(tables(store, "twice"), made);
}

#[test]
fn schema_applies_once_on_18_16() {
    applies_and_changes_nothing_the_second_time(&Store::old());
}

#[test]
fn schema_applies_once_on_chdb() {
    applies_and_changes_nothing_the_second_time(&Store::new());
}

#[test]
fn which_sink_is_meant_has_to_be_clear() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = "url: 'http://127.0.0.1:1', database: salt";
    let config = config(&folder, nowhere);
    let refused = |arguments: &[&str]| {
        let output = schema(&config, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let unknown = refused(&["--apply", "--sink", "archive"]);
    assert!(unknown.contains("no sink `archive` of the kind clickhouse"), "{unknown}");
    let text = fs::read_to_string(&config).unwrap();
    let second = format!("sinks: {{second: {{clickhouse: {{{nowhere}}}}}, ");
    let two = text.replace("sinks: {", &second);
    assert_ne!(two, text);
    fs::write(&config, two).unwrap();
    let several = refused(&["--apply"]);
    assert!(several.contains("say which with --sink: second, analytics"), "{several}");
    fs::write(&config, text.replace(nowhere, "X").replace("clickhouse: {X}", "blackhole: {}"))
        .unwrap();
    let none = refused(&["--apply"]);
    assert!(none.contains("no sink of the kind clickhouse"), "{none}");
    let no_version = refused(&["--server-version", "new"]);
    assert!(no_version.contains("two numbers, such as 18.16 or 25.8"), "{no_version}");
}

/// Six at once, on an empty database or one of version 1.
fn applied_by_many_at_once(store: &Store, is_empty: bool) {
    if !is_empty {
        store.query("CREATE DATABASE many");
        store.script(&version(store, 1), "many");
    }
    let folder = tempfile::tempdir().unwrap();
    let config = config(&folder, &store.settings("many"));
    let start = |_| schema(&config, &["--apply"]).spawn().unwrap();
    let running: Vec<_> = (0..6).map(start).collect();
    for child in running {
        printed(&child.wait_with_output().unwrap());
    }
    applied(&store.settings("one"));
    assert_eq!(tables(store, "many"), tables(store, "one"));
}

#[test]
fn many_daemons_make_the_tables_at_once_on_18_16() {
    applied_by_many_at_once(&Store::old(), true);
}

#[test]
fn many_daemons_add_the_columns_at_once_on_18_16() {
    applied_by_many_at_once(&Store::old(), false);
}

fn version(store: &Store, version: u32) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    folder.join(format!("clickhouse-schema-{version}/{}.sql", store.release()))
}

fn versions_behind(store: &Store) {
    for older in [1, 2] {
        store.query("CREATE DATABASE behind");
        store.script(&version(store, older), "behind");
        migrated(store);
        store.query("DROP DATABASE behind");
    }
}

fn migrated(store: &Store) {
    store.query(
        "INSERT INTO behind.salt_events (time, tag, kind, minion, event_id) \
         VALUES ('2026-11-20 10:00:00', 'salt/auth', 'auth', 'old-1', '0123456789abcdef0123456789abcdef')",
    );
    let folder = tempfile::tempdir().unwrap();
    let capture = &CAPTURES[2];
    replay(folder.path(), &[capture], &store.settings("behind"));
    let found = store.query(
        "SELECT minion, act, user, kind FROM behind.salt_events WHERE event_id = \
         '0123456789abcdef0123456789abcdef'",
    );
    assert_eq!(found, "old-1\t\t\tauth\n");
    assert_eq!(count(store, "behind.salt_events FINAL"), capture.events + 1);
    let acted = "behind.salt_events FINAL WHERE act = 'accept' AND kind = 'auth'";
    assert_eq!(count(store, acted), capture.count(|tag| tag == "salt/auth"));
    assert_eq!(store.query("SELECT max(version) FROM behind.salt_schema"), "3\n");
    // The result has to be the same as of tables made anew.
    applied(&store.settings("anew"));
    let of = |database| {
        let rows = tables(store, database).into_iter();
        rows.map(|row| row.join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(of("behind"), of("anew"));
}

#[test]
fn a_schema_of_an_older_version_is_migrated_and_keeps_its_rows_on_18_16() {
    versions_behind(&Store::old());
}

#[test]
fn a_schema_of_an_older_version_is_migrated_and_keeps_its_rows_on_chdb() {
    versions_behind(&Store::new());
}

/// There is no cluster here, so this only shows that the statements are well formed.
#[test]
fn the_cluster_variant_is_valid_syntax_to_chdb() {
    let store = Store::new();
    let folder = tempfile::tempdir().unwrap();
    let sink = format!("{}, cluster: main, ttl: 90d", store.settings("salt"));
    let printed =
        printed(&schema(&config(&folder, &sink), &["--sink", "analytics"]).output().unwrap());
    let statements: Vec<_> =
        printed.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()).collect();
    // They are: the database; for each table one that holds rows and one that spreads them; a view
    // of each summary; two columns of version 2 and four of version 3, each in two tables; the
    // version.
    assert_eq!(statements.len(), 1 + 2 * TABLES.len() + 3 + 2 * 6 + 1, "{printed}");
    for statement in &statements {
        store.query(&format!("EXPLAIN AST {statement}"));
    }
    let count = |what: &str| statements.iter().filter(|statement| statement.contains(what)).count();
    assert_eq!(count(" ON CLUSTER `main`"), statements.len() - 1);
    assert_eq!(count("ENGINE = Distributed('main', 'salt', 'salt_"), TABLES.len());
    assert_eq!(count("ENGINE = Replicated"), TABLES.len());
    assert_eq!(count(" TTL toDateTime(time) + toIntervalDay(90) "), 4);
}

/// A recording, and how many events it has behind the two that Salt's file has before them.
struct Capture {
    release: &'static str,
    events: usize,
}

const CAPTURES: [Capture; 3] = [
    Capture { release: "3006.28", events: 159 },
    Capture { release: "3007.15", events: 177 },
    Capture { release: "3008.3", events: 169 },
];

impl Capture {
    fn file(&self, ending: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
        folder.join(format!("salt-{}.{ending}", self.release))
    }

    /// Salt's own record of the same events.
    fn expected(&self) -> Vec<(String, Value)> {
        let text = fs::read_to_string(self.file("events.jsonl")).unwrap();
        let lines = text.lines().skip(2).take(self.events);
        lines
            .map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                (line["tag"].as_str().unwrap().to_owned(), line["data"].clone())
            })
            .collect()
    }

    fn count(&self, is_meant: impl Fn(&str) -> bool) -> usize {
        self.expected().iter().filter(|(tag, _)| is_meant(tag)).count()
    }
}

fn count(store: &Store, from: &str) -> usize {
    store.query(&format!("SELECT count() FROM {from}")).trim().parse().unwrap()
}

/// Runs saltern over the recordings, each as the bus of a master of its own.
fn replay(folder: &Path, captures: &[&Capture], sink: &str) {
    let mut sources = String::new();
    for capture in captures {
        let (name, path) = (capture.release.replace('.', "-"), capture.file("bus"));
        sources += &format!(
            "  m{name}: {{master_id: salt-{name}, replay: {{path: '{}'}}}}\n",
            path.display()
        );
    }
    let sections = format!("sources:\n{sources}sinks: {{analytics: {{clickhouse: {{{sink}}}}}}}\n");
    let daemon = Daemon::start(folder, &sections);
    let status = daemon.ended();
    assert!(status.success(), "{status}: {}", daemon.log());
}

/// `2026-11-21T23:36:01.794467+00:00` as the tables have it.
fn time(data: &Value) -> String {
    let stamp = data["_stamp"].as_str().unwrap().replace('T', " ");
    let stamp = stamp.trim_end_matches("+00:00");
    if stamp.contains('.') { stamp.to_owned() } else { format!("{stamp}.000000") }
}

/// The fields of each, as [`shown`], in the order of the text.
fn sorted(rows: impl IntoIterator<Item = Vec<Value>>) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<_>> =
        rows.into_iter().map(|row| row.iter().map(shown).collect()).collect();
    rows.sort();
    rows
}

/// The return says that it failed, as Salt's command line would.
fn failed(data: &Value) -> bool {
    data["retcode"].as_i64().is_some_and(|code| code != 0) || data["success"] == false
}

fn bit(value: &Value) -> Value {
    value.as_bool().map_or(Value::Null, |bit| u8::from(bit).into())
}

/// The states of an event: minion, and what Salt returned under the state's key.
fn states<'a>(tag: &str, data: &'a Value) -> Vec<(&'a str, &'a String, &'a Value)> {
    let maps: Vec<_> = match tag.split('/').collect::<Vec<_>>()[..] {
        ["salt", "job", _, "ret", _] => vec![(data["id"].as_str().unwrap(), &data["return"])],
        ["salt", "run", _, "ret"] => match data["return"]["data"].as_object() {
            Some(minions) => minions.iter().map(|(id, map)| (id.as_str(), map)).collect(),
            None => Vec::new(),
        },
        _ => Vec::new(),
    };
    let of = |(minion, map): (&'a str, &'a Value)| {
        let states = map.as_object().into_iter().flatten();
        states.filter(|(key, _)| key.contains("_|-")).map(move |(key, state)| (minion, key, state))
    };
    maps.into_iter().flat_map(of).collect()
}

fn captures_are_read_back(store: &Store) {
    let folder = tempfile::tempdir().unwrap();
    replay(folder.path(), &CAPTURES.each_ref(), &store.settings("captured"));
    let events: Vec<_> = CAPTURES.iter().flat_map(Capture::expected).collect();
    let time_column = store.time();

    let found = store.rows(&format!("SELECT tag, {time_column} FROM captured.salt_events"));
    let tag_and_time = |(tag, data): &(String, Value)| vec![tag.clone().into(), time(data).into()];
    assert_eq!(found, sorted(events.iter().map(tag_and_time)));

    let of = |ending: &str| {
        let is_of = move |tag: &str| {
            let parts: Vec<_> = tag.split('/').collect();
            parts.len() > 3 && parts[..2] == ["salt", "job"] && parts[3] == ending
        };
        events.iter().filter(move |(tag, _)| is_of(tag)).map(|(_, data)| data).collect::<Vec<_>>()
    };
    let found = store.rows(&format!(
        "SELECT jid, {time_column}, user, function, target_type, arrayStringConcat(minions, ',') \
         FROM captured.salt_jobs"
    ));
    let expected = of("new").into_iter().map(|data| {
        let minions: Vec<_> =
            data["minions"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
        let field = |name: &str| data[name].clone();
        vec![
            field("jid"),
            time(data).into(),
            field("user"),
            field("fun"),
            field("tgt_type"),
            minions.join(",").into(),
        ]
    });
    assert_eq!(found, sorted(expected));

    let found = store.rows(
        "SELECT jid, minion, function, arrayStringConcat(functions, ','), retcode, success, failed, \
                outcome, states, schedule, return \
         FROM captured.salt_returns",
    );
    let found = found.into_iter().map(|mut row| {
        let value = row.pop().unwrap();
        let value: Value = serde_json::from_str(&value).unwrap();
        row.push(value.to_string());
        row
    });
    let expected = of("ret").into_iter().map(|data| {
        let tag = "salt/job/x/ret/x";
        let states = states(tag, data).len();
        let field = |name: &str| data.get(name).cloned().unwrap_or_default();
        let schedule = data.get("schedule").cloned().unwrap_or("".into());
        vec![
            field("jid"),
            field("id"),
            field("fun"),
            field("fun"),
            field("retcode"),
            bit(&field("success")),
            u8::from(failed(data)).into(),
            if failed(data) { "failed" } else { "worked" }.into(),
            states.into(),
            schedule,
            data["return"].to_string().into(),
        ]
    });
    let mut found: Vec<_> = found.collect();
    found.sort();
    assert_eq!(found, sorted(expected));

    let found = store.rows(
        "SELECT jid, minion, id, sls, state, name, result, changed, duration, run, comment \
         FROM captured.salt_states",
    );
    let expected = events.iter().flat_map(|(tag, data)| {
        states(tag, data).into_iter().map(|(minion, key, state)| {
            let parts: Vec<_> = key.split("_|-").collect();
            let changed = !state["changes"].as_object().unwrap().is_empty();
            vec![
                data["jid"].clone(),
                minion.into(),
                state["__id__"].clone(),
                state["__sls__"].clone(),
                format!("{}.{}", parts[0], parts[3]).into(),
                state["name"].clone(),
                bit(&state["result"]),
                u8::from(changed).into(),
                state["duration"].clone(),
                state["__run_num__"].clone(),
                state["comment"].clone(),
            ]
        })
    });
    let expected = sorted(expected);
    assert_eq!(found, expected);

    summaries_answer(store, expected.len());
}

/// The summaries say what their tables say.
fn summaries_answer(store: &Store, states: usize) {
    let summed = "SELECT master, kind, toFloat64(sum(events)), toFloat64(sum(failures)) \
                  FROM captured.salt_rates GROUP BY master, kind";
    let counted = "SELECT master, kind, toFloat64(count()), toFloat64(sum(failed)) \
                   FROM captured.salt_events GROUP BY master, kind";
    let rates = store.rows(summed);
    assert_eq!(rates, store.rows(counted));
    assert!(rates.iter().any(|row| row[..2] == ["salt-3008-3", "batch"]), "{rates:?}");

    let summed = "SELECT minute, function, toFloat64(sum(returns)), toFloat64(sum(failures)) \
                  FROM captured.salt_failures GROUP BY minute, function";
    let counted = "SELECT toStartOfMinute(time) AS minute, function, toFloat64(count()), \
                   toFloat64(sum(failed)) FROM captured.salt_returns GROUP BY minute, function";
    let failures = store.rows(summed);
    assert_eq!(failures, store.rows(counted));
    assert!(failures.iter().any(|row| row[3] != "0"), "{failures:?}");

    let summed = "SELECT sls, state, countMerge(runs), sumMerge(failures), \
                  arrayMap(x -> round(x, 1), quantilesTDigestMerge(0.5, 0.95, 0.99)(durations)) \
                  FROM captured.salt_durations GROUP BY sls, state";
    let counted = "SELECT sls, state, count(), sum(ifNull(result = 0, 0)), \
                   arrayMap(x -> round(x, 1), quantilesTDigest(0.5, 0.95, 0.99)(assumeNotNull(duration))) \
                   FROM captured.salt_states GROUP BY sls, state";
    let durations = store.rows(summed);
    assert_eq!(durations, store.rows(counted));
    let runs: f64 = durations.iter().map(|row| row[2].parse::<f64>().unwrap()).sum();
    #[allow(clippy::cast_precision_loss)]
    let states = states as f64;
    assert!((runs - states).abs() < 0.5, "{durations:?}");
}

#[test]
fn captures_are_read_back_as_salt_wrote_them_from_18_16() {
    captures_are_read_back(&Store::old());
}

#[test]
fn captures_are_read_back_as_salt_wrote_them_from_chdb() {
    captures_are_read_back(&Store::new());
}
