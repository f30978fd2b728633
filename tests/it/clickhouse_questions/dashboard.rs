//! The queries of the dashboard `salt-clickhouse`, with macros and variables replaced as Grafana
//! and its plugin for ClickHouse do: each finds something.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// The time that is shown: from two hours before noon of 2026-11-21 until noon, in intervals of ten
/// minutes.
const TO: u64 = 1_795_262_400;
const FROM: u64 = TO - 7200;
const INTERVAL: u64 = 600;

/// Asks what every panel and every variable asks.
pub(crate) fn every_panel_has_data(ask: impl Fn(&str) -> String) {
    let path = "dashboards/grafana/salt-clickhouse.json";
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut count = 0;
    let mut expect = |title: &str, sql: &str| {
        let answer = ask(&expanded(sql));
        let mut rows = answer.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        let names = rows.next().unwrap();
        let first = rows.next().unwrap_or_else(|| panic!("{title}: no rows"));
        for (name, value) in names.iter().zip(first) {
            let is_something = !["", "\\N", "nan", "0"].contains(&value);
            // No state that worked has failed, and a job of the master's own has no user.
            let may_be_nothing = ["failed", "count", "user"].contains(name);
            assert!(is_something || may_be_nothing, "{title}: {name} is {value} in\n{answer}");
        }
        count += 1;
    };
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let is_over_time = panel["type"] == "timeseries";
            assert_eq!(target["queryType"] == "timeseries", is_over_time, "{target}");
            let sql = target["rawSql"].as_str().unwrap();
            assert_eq!(sql.contains("$__interval_s"), is_over_time, "{sql}");
            expect(panel["title"].as_str().unwrap(), sql);
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            expect(variable["name"].as_str().unwrap(), variable["query"].as_str().unwrap());
        }
    }
    assert!(count > 18, "{count} queries");
}

/// The query for the database `salt`, without macros and variables.
fn expanded(sql: &str) -> String {
    let mut sql = sql.replace("${master:sqlstring}", "'master-1','master-2'");
    for column in ["time", "minute"] {
        let filter = format!("{column} >= toDateTime({FROM}) AND {column} <= toDateTime({TO})");
        sql = sql.replace(&format!("$__timeFilter({column})"), &filter);
    }
    sql = sql.replace("$__toTime", &format!("toDateTime({TO})"));
    sql = sql.replace("$__interval_s", &INTERVAL.to_string());
    assert!(!sql.contains('$'), "{sql}");
    sql.replace("FROM salt_", "FROM salt.salt_") + "\nFORMAT TabSeparatedWithNames"
}
