//! What is counted of each event.

use std::collections::HashMap;

use super::EstateConfig;
use super::facts::{Facts, texts};
use super::jobs::Jobs;
use super::series::Series;
use super::table::{self, ByMinion, Declared};
use crate::event::{Event, EventKind};
use crate::trimmed::Trimmed;

/// The salt-exporter's name for the minion of a runner.
const MASTER: &str = "master";

/// All series of the estate, and what it takes to keep them.
pub(super) struct Books {
    config: EstateConfig,
    new_jobs: Series,
    expected: Series,
    responses_by_function: Series,
    scheduled: Series,
    responses: Series,
    function_status: Series,
    job_duration: Series,
    heartbeat: Series,
    last_response: Series,
    presence_changes: Series,
    events: Series,
    states: Series,
    state_seconds: Series,
    auth: Series,
    keys: Series,
    starts: Series,
    beacons: Series,
    missing: Series,
    untracked: Series,
    trimmed: Series,
    /// Looks for values that were trimmed.
    finder: Trimmed,
    /// When each minion was last heard of, in seconds since 1970.
    minions: HashMap<Box<str>, u64>,
    /// Minions that there was no room for.
    minions_folded: u64,
    present: Option<usize>,
    jobs: Jobs,
}

impl Books {
    pub(super) fn new(config: EstateConfig) -> Self {
        let series = |declared| series(&config, declared);
        Books {
            new_jobs: series(table::NEW_JOBS),
            expected: series(table::EXPECTED),
            responses_by_function: series(table::RESPONSES_BY_FUNCTION),
            scheduled: series(table::SCHEDULED),
            responses: series(table::RESPONSES),
            function_status: series(table::FUNCTION_STATUS),
            job_duration: series(table::JOB_DURATION),
            heartbeat: series(table::HEARTBEAT),
            last_response: series(table::LAST_RESPONSE),
            presence_changes: series(table::PRESENCE_CHANGES),
            events: series(table::EVENTS),
            states: series(table::STATES),
            state_seconds: series(table::STATE_SECONDS),
            auth: series(table::AUTH),
            keys: series(table::KEYS),
            starts: series(table::STARTS),
            beacons: series(table::BEACONS),
            missing: series(table::MISSING),
            untracked: series(table::UNTRACKED),
            trimmed: series(table::TRIMMED),
            finder: Trimmed::default(),
            minions: HashMap::new(),
            minions_folded: 0,
            present: None,
            jobs: Jobs::new(config.returns_within.0.as_secs()),
            config,
        }
    }

    /// What they are kept by.
    pub(super) fn config(&self) -> &EstateConfig {
        &self.config
    }

    /// Books by another configuration, which know the minions and the jobs that these know.
    pub(super) fn continued(self, config: EstateConfig) -> Self {
        let mut books = Books::new(config);
        let room = books.config.minions_bound();
        books.minions_folded = self.minions.len().saturating_sub(room) as u64;
        books.minions = self.minions.into_iter().take(room).collect();
        books.present = self.present;
        books.jobs = self.jobs.waiting_for(books.config.returns_within.0.as_secs());
        books
    }

    /// Counts an event that was read at `now`, in seconds since 1970.
    pub(super) fn count(&mut self, event: &Event, now: u64) {
        let kind = event.kind();
        self.events.add("", &[kind.name()], 1.0);
        let part = |place| event.tag().split('/').nth(place).unwrap_or_default();
        match kind {
            EventKind::JobNew => self.count_new(&Facts::of(event.payload()), now),
            EventKind::JobReturn => self.count_return(&Facts::of(event.payload()), now),
            EventKind::Run if part(3) == "new" => {
                self.count_new(&Facts::of(event.payload()), now);
            }
            EventKind::Run if part(3) == "ret" => {
                let mut facts = Facts::of(event.payload());
                if facts.id.is_empty() {
                    facts.id = MASTER;
                }
                self.count_return(&facts, now);
            }
            EventKind::Beacon => {
                let facts = Facts::of(event.payload());
                self.beacons.add("", &[part(3)], 1.0);
                self.heard(facts.id, now);
                if part(3) == "status" {
                    self.heartbeat.set(facts.id, &[], seconds(now));
                }
            }
            EventKind::Auth => {
                let facts = Facts::of(event.payload());
                self.auth.add("", &[facts.act, flag(facts.result)], 1.0);
                if facts.act == "accept" && facts.result == Some(true) {
                    self.heard(facts.id, now);
                }
            }
            EventKind::Key => self.count_key(&Facts::of(event.payload()), now),
            // Each start is announced by two tags.
            EventKind::Start if event.tag() != "minion_start" => {
                self.starts.add("", &[], 1.0);
                self.heard(part(2), now);
            }
            EventKind::Presence => self.count_presence(&Facts::of(event.payload()), now),
            _ => {}
        }
    }

    /// Counts the values of an event that were trimmed.
    pub(super) fn count_trimmed(&mut self, payload: &[u8]) {
        let values = self.finder.count(payload);
        if values == 0 {
            return;
        }
        let function = Facts::of(payload).function;
        if !function.is_empty() {
            self.trimmed.add("", &[function], count(values));
        }
    }

    fn is_ignored(&self, facts: &Facts<'_>) -> bool {
        self.config.ignore_test && facts.is_test() || self.config.ignore_mock && facts.is_mock()
    }

    fn count_new(&mut self, facts: &Facts<'_>, now: u64) {
        if self.is_ignored(facts) {
            return;
        }
        let labels = &[facts.function, facts.state()];
        let expected = texts(facts.minions).count();
        self.new_jobs.add("", labels, 1.0);
        self.expected.add("", labels, number(expected));
        // There from the start: what begins at its first count has not grown, to Prometheus.
        self.missing.add("", &[facts.function], 0.0);
        if !self.jobs.begin(now, facts.jid, facts.function, texts(facts.minions)) {
            self.untracked.add("", &[], 1.0);
        }
    }

    fn count_return(&mut self, facts: &Facts<'_>, now: u64) {
        self.jobs.returned(facts.jid, facts.id);
        if facts.id != MASTER {
            self.heard(facts.id, now);
        }
        if self.is_ignored(facts) {
            return;
        }
        let state = facts.state();
        // A scheduled job says that it succeeded also when its states failed.
        let success = facts.success
            && !(facts.is_scheduled && (facts.has_failed || facts.states_worked == Some(false)));
        let labels = &[facts.function, state, flag(Some(success))];
        if facts.is_scheduled {
            self.scheduled.add(facts.id, labels, 1.0);
        } else {
            self.responses_by_function.add(facts.id, labels, 1.0);
        }
        self.responses.add(facts.id, &[flag(Some(success))], 1.0);
        self.last_response.set(facts.id, &[], seconds(now));
        let watches = |names: &[String], name| names.iter().any(|n| n == name || n == "*");
        if watches(&self.config.status_functions, facts.function)
            && watches(&self.config.status_states, state)
        {
            let status = if success { 1.0 } else { 0.0 };
            self.function_status.set(facts.id, &[facts.function, state], status);
        }
        let mut millis = 0.0;
        for states in &facts.states {
            millis += states.millis;
            let labels = &[states.sls, flag(states.result)];
            self.states.add("", labels, f64::from(states.count));
            self.state_seconds.add("", &[states.sls], states.millis / 1000.0);
        }
        if !facts.states.is_empty() {
            self.job_duration.set(facts.id, &[facts.function, state], millis / 1000.0);
        }
    }

    fn count_key(&mut self, facts: &Facts<'_>, now: u64) {
        if facts.act.is_empty() {
            // The master's own key was changed.
            return;
        }
        self.keys.add("", &[facts.act, flag(facts.result)], 1.0);
        match facts.act {
            "accept" => self.heard(facts.id, now),
            "delete" | "reject" => self.forget(facts.id),
            _ => {}
        }
    }

    fn count_presence(&mut self, facts: &Facts<'_>, now: u64) {
        for (change, minions) in [("new", facts.new), ("lost", facts.lost)] {
            let count = texts(minions).count();
            if count > 0 {
                self.presence_changes.add("", &[change], number(count));
            }
        }
        if facts.present.is_empty() {
            return;
        }
        self.present = Some(texts(facts.present).count());
        for minion in texts(facts.present) {
            self.heard(std::str::from_utf8(minion).unwrap_or_default(), now);
        }
    }

    fn heard(&mut self, minion: &str, now: u64) {
        if minion.is_empty() {
            return;
        }
        if let Some(heard) = self.minions.get_mut(minion) {
            *heard = now;
        } else if self.minions.len() < self.config.minions_bound() {
            self.minions.insert(minion.into(), now);
        } else {
            self.minions_folded += 1;
        }
    }

    fn forget(&mut self, minion: &str) {
        self.minions.remove(minion);
        for series in [
            &mut self.responses_by_function,
            &mut self.scheduled,
            &mut self.responses,
            &mut self.function_status,
            &mut self.job_duration,
            &mut self.heartbeat,
            &mut self.last_response,
        ] {
            series.forget(minion);
        }
    }

    /// Stops waiting for returns that have been due for too long.
    pub(super) fn give_up(&mut self, now: u64) {
        for (function, count) in self.jobs.give_up(now) {
            self.missing.add("", &[&function], number(count));
        }
    }

    /// Appends all of it in Prometheus' text format, as it is at `now`.
    pub(super) fn render(&mut self, now: u64, out: &mut String) {
        self.give_up(now);
        let since = now.saturating_sub(self.config.silent_after.0.as_secs());
        let silent = self.minions.values().filter(|heard| **heard < since).count();
        let gauges = [
            (table::MINIONS, Some(self.minions.len())),
            (table::SILENT, Some(silent)),
            (table::PRESENT, self.present),
            (table::WAITING, Some(self.jobs.waiting())),
        ];
        for (declared, value) in gauges {
            let mut gauge = series(&self.config, declared);
            if let Some(value) = value {
                gauge.set("", &[], number(value));
            }
            gauge.render(out);
        }
        let mut folded = series(&self.config, table::FOLDED);
        folded.add("", &[table::MINIONS.metric.name], count(self.minions_folded));
        for series in self.all() {
            series.render(out);
            if series.folded > 0 {
                folded.add("", &[series.name()], count(series.folded));
            }
        }
        folded.render(out);
    }

    fn all(&self) -> [&Series; 20] {
        [
            &self.new_jobs,
            &self.expected,
            &self.responses_by_function,
            &self.scheduled,
            &self.responses,
            &self.function_status,
            &self.job_duration,
            &self.heartbeat,
            &self.last_response,
            &self.presence_changes,
            &self.events,
            &self.states,
            &self.state_seconds,
            &self.auth,
            &self.keys,
            &self.starts,
            &self.beacons,
            &self.missing,
            &self.untracked,
            &self.trimmed,
        ]
    }
}

fn series(config: &EstateConfig, declared: Declared) -> Series {
    let by_minion = match declared.by_minion {
        ByMinion::Never => false,
        ByMinion::Labelled | ByMinion::Only => config.minions,
        ByMinion::Added => config.minion_label,
    };
    Series::new(declared, by_minion, config.series_bound())
}

fn flag(flag: Option<bool>) -> &'static str {
    match flag {
        Some(true) => "true",
        Some(false) => "false",
        None => "none",
    }
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn number(count: usize) -> f64 {
    count as f64
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn count(count: u64) -> f64 {
    count as f64
}

/// A time as Prometheus has it.
fn seconds(time: u64) -> f64 {
    count(time)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::units::Span;

    fn event(tag: &str, data: &Value) -> Event {
        Event::new(tag, &rmp_serde::to_vec(data).unwrap())
    }

    fn returned(jid: &str, minion: &str, mut data: Value) -> Event {
        data["jid"] = json!(jid);
        data["id"] = json!(minion);
        event(&format!("salt/job/{jid}/ret/{minion}"), &data)
    }

    /// The value of a series, `None` if it is not there.
    fn value(books: &mut Books, now: u64, series: &str) -> Option<f64> {
        let mut out = String::new();
        books.render(now, &mut out);
        let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok();
        out.lines().find_map(value)
    }

    fn per_minion() -> EstateConfig {
        EstateConfig { minions: true, minion_label: true, ..EstateConfig::default() }
    }

    #[test]
    fn a_job_and_its_returns() {
        let mut books = Books::new(EstateConfig::default());
        let data =
            json!({"jid": "1", "fun": "state.apply", "arg": ["web"], "minions": ["a", "b", "c"]});
        books.count(&event("salt/job/1/new", &data), 1000);
        let worked = json!({
            "fun": "state.apply", "fun_args": ["web"], "success": true, "retcode": 0,
            "return": {"x_|-a_|-b_|-c": {"__sls__": "web.nginx", "result": true, "duration": 250.0}},
        });
        books.count(&returned("1", "a", worked.clone()), 1001);
        let mut failed = worked;
        failed["success"] = json!(false);
        books.count(&returned("1", "b", failed), 1002);
        for (series, expected) in [
            (r#"salt_new_job_total{function="state.apply",state="web"}"#, 1.0),
            (r#"salt_expected_responses_total{function="state.apply",state="web"}"#, 3.0),
            (
                r#"salt_function_responses_total{function="state.apply",state="web",success="true"}"#,
                1.0,
            ),
            (r#"salt_responses_total{success="false"}"#, 1.0),
            (r#"salt_job_duration_seconds{function="state.apply",state="web"}"#, 0.25),
            (r#"salt_states_total{sls="web.nginx",result="true"}"#, 2.0),
            (r#"salt_state_seconds_total{sls="web.nginx"}"#, 0.5),
            ("salt_health_minions_total", 2.0),
            ("salt_jobs_waiting", 1.0),
        ] {
            assert_eq!(value(&mut books, 1003, series), Some(expected), "{series}");
        }
        let missing = r#"salt_missing_returns_total{function="state.apply"}"#;
        assert_eq!(value(&mut books, 1003, missing), Some(0.0));
        assert_eq!(value(&mut books, 1000 + 15 * 60, missing), Some(1.0));
        assert_eq!(value(&mut books, 1002 + 3600, "salt_minions_silent"), Some(1.0));
    }

    #[test]
    fn trimmed_values_are_counted_by_function_and_capped() {
        let mut books = Books::new(EstateConfig { max_series: 1, ..EstateConfig::default() });
        let trimmed = json!({"a": "VALUE_TRIMMED", "b": ["VALUE_TRIMMED", "VALUE_TRIMMED, no"]});
        for function in ["grains.items", "pillar.items", "state.apply"] {
            let data = json!({"fun": function, "return": trimmed, "success": true});
            books.count_trimmed(returned("1", "a", data).payload());
        }
        books.count_trimmed(event("my/event", &json!({"data": "VALUE_TRIMMED"})).payload());
        for (function, expected) in [("grains.items", 2.0), ("other", 4.0)] {
            let series = format!("salt_trimmed_values_total{{function=\"{function}\"}}");
            assert_eq!(value(&mut books, 5, &series), Some(expected), "{function}");
        }
        assert_eq!(value(&mut books, 5, r#"salt_trimmed_values_total{function=""}"#), None);
    }

    #[test]
    fn another_configuration_begins_anew_and_remembers_minions_and_jobs() {
        let mut books = Books::new(EstateConfig::default());
        let job = json!({"jid": "1", "fun": "test.ping", "minions": ["a", "b"]});
        books.count(&event("salt/job/1/new", &job), 1000);
        books.count(&returned("1", "a", json!({"fun": "test.ping", "success": true})), 1001);
        let returns_within = Span::seconds(60);
        let mut books = books.continued(EstateConfig { returns_within, ..per_minion() });
        assert_eq!(value(&mut books, 1002, "salt_health_minions_total"), Some(1.0));
        assert_eq!(value(&mut books, 1002, "salt_jobs_waiting"), Some(1.0));
        assert_eq!(
            value(&mut books, 1002, r#"salt_responses_total{minion="a",success="true"}"#),
            None
        );
        books.count(&returned("2", "a", json!({"fun": "test.ping", "success": true})), 1003);
        let responses = r#"salt_responses_total{minion="a",success="true"}"#;
        assert_eq!(value(&mut books, 1004, responses), Some(1.0));
        let missing = r#"salt_missing_returns_total{function="test.ping"}"#;
        assert_eq!(value(&mut books, 1060, missing), Some(1.0));
    }

    #[test]
    fn a_scheduled_job_has_failed_if_its_states_have() {
        let mut books = Books::new(per_minion());
        let data = |retcode: i32, result: bool| {
            json!({
                "fun": "state.highstate", "schedule": "every hour", "success": true, "retcode": retcode,
                "return": {"x_|-a_|-b_|-c": {"__sls__": "web", "result": result}},
            })
        };
        for (retcode, result) in [(0, true), (2, true), (0, false)] {
            books.count(&returned("1", "a", data(retcode, result)), 5);
        }
        let labels = r#"minion="a",function="state.highstate",state="highstate""#;
        for (series, expected) in [
            (format!(r#"salt_scheduled_job_return_total{{{labels},success="true"}}"#), 1.0),
            (format!(r#"salt_scheduled_job_return_total{{{labels},success="false"}}"#), 2.0),
            (format!("salt_function_status{{{labels}}}"), 0.0),
            (r#"salt_responses_total{minion="a",success="false"}"#.to_owned(), 2.0),
            (r#"salt_responses_last_received_response{minion="a"}"#.to_owned(), 5.0),
        ] {
            assert_eq!(value(&mut books, 6, &series), Some(expected), "{series}");
        }
    }

    #[test]
    fn a_deleted_minion_takes_its_series_along() {
        let mut books = Books::new(per_minion());
        for minion in ["a", "b"] {
            let data = json!({"fun": "state.highstate", "success": true, "return": {}});
            books.count(&returned("1", minion, data), 5);
            let beacon = event(&format!("salt/beacon/{minion}/status/x"), &json!({"id": minion}));
            books.count(&beacon, 6);
        }
        let mut out = String::new();
        books.render(7, &mut out);
        assert_eq!(out.matches(r#"minion="a""#).count(), 5, "{out}");
        books.count(&event("salt/key", &json!({"act": "delete", "id": "a", "result": true})), 7);
        out.clear();
        books.render(8, &mut out);
        assert_eq!(
            (out.matches(r#"minion="a""#).count(), out.matches(r#"minion="b""#).count()),
            (0, 5)
        );
        assert_eq!(value(&mut books, 8, "salt_health_minions_total"), Some(1.0));
        assert_eq!(
            value(&mut books, 8, r#"salt_key_events_total{act="delete",result="true"}"#),
            Some(1.0)
        );
    }

    #[test]
    fn tests_and_mocks_can_be_left_out() {
        let config =
            EstateConfig { ignore_test: true, ignore_mock: true, ..EstateConfig::default() };
        let mut books = Books::new(config);
        for kwargs in [json!({"test": true}), json!({"mock": true}), json!({"test": false})] {
            let new = json!({"jid": "1", "fun": "state.apply", "arg": [kwargs], "minions": ["a"]});
            books.count(&event("salt/job/1/new", &new), 5);
            books
                .count(&returned("1", "a", json!({"fun": "state.apply", "fun_args": [kwargs]})), 5);
        }
        for series in [
            r#"salt_new_job_total{function="state.apply",state=""}"#,
            r#"salt_function_responses_total{function="state.apply",state="",success="false"}"#,
        ] {
            assert_eq!(value(&mut books, 6, series), Some(1.0), "{series}");
        }
    }

    #[test]
    fn presence_and_authentication() {
        let mut books = Books::new(EstateConfig::default());
        books.count(&event("salt/presence/present", &json!({"present": ["a", "b"]})), 5);
        books.count(&event("salt/presence/change", &json!({"new": ["b"], "lost": ["x", "y"]})), 5);
        books.count(&event("salt/auth", &json!({"act": "pend", "id": "c", "result": true})), 5);
        books.count(&event("salt/auth", &json!({"act": "accept", "id": "d", "result": true})), 5);
        books.count(&event("key", &json!({"rotate_aes_key": true})), 5);
        books.count(&event("salt/minion/a/start", &json!({"id": "a"})), 5);
        books.count(&event("minion_start", &json!({"id": "a"})), 5);
        for (series, expected) in [
            ("salt_minions_present", 2.0),
            ("salt_health_minions_total", 3.0),
            (r#"salt_presence_changes_total{change="lost"}"#, 2.0),
            (r#"salt_auth_events_total{act="pend",result="true"}"#, 1.0),
            ("salt_minion_starts_total", 1.0),
            (r#"salt_events_total{kind="key"}"#, 1.0),
        ] {
            assert_eq!(value(&mut books, 6, series), Some(expected), "{series}");
        }
    }

    /// The largest estate there may be, and names made to hurt.
    #[test]
    fn invariant_6_series_have_caps() {
        let config = EstateConfig { max_series: 1000, max_minions: 20_000, ..per_minion() };
        let mut books = Books::new(config);
        for number in 0..50_000 {
            let minion = format!("web-{number}");
            let state = format!("state-{}", number % 5000);
            let data = json!({
                "fun": "state.apply", "fun_args": [state], "success": true, "schedule": number % 3,
                "return": {"x_|-a_|-b_|-c": {"__sls__": state, "result": true, "duration": 1.0}},
            });
            books.count(&returned(&number.to_string(), &minion, data), 5);
            books.count(
                &event(&format!("salt/beacon/{minion}/status/x"), &json!({"id": minion})),
                5,
            );
            books.count(&event(&format!("salt/beacon/x/b{number}"), &json!({})), 5);
            let act = format!("{}\n\"\u{0}{{}}", "\\".repeat(number % 300));
            books.count(&event("salt/auth", &json!({"act": act, "id": minion})), 5);
            books
                .count(&event(&format!("salt/job/{number}/new/{act}"), &json!({"fun": minion})), 5);
        }
        let mut out = String::new();
        books.render(6, &mut out);
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for line in out.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            *counts.entry(name).or_default() += 1;
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
        for (name, count) in &counts {
            assert!(*count <= 1000 + 2, "{name} has {count} series");
        }
        assert_eq!(counts["salt_responses_total"], 1001);
        // 200 bytes of label for each series, and what stands around them, at the most.
        assert!(out.len() < counts.values().sum::<usize>() * 400, "{} bytes", out.len());
        assert_eq!(books.minions.len(), 20_000);
        for (metric, folded) in [
            ("salt_responses_total", 49_000.0),
            ("salt_health_last_heartbeat", 49_000.0),
            ("salt_states_total", 45_000.0 - 5_000.0),
            ("salt_health_minions_total", 60_000.0),
        ] {
            let series = format!("saltern_estate_folded_total{{metric=\"{metric}\"}}");
            assert_eq!(value(&mut books, 6, &series), Some(folded), "{series}");
        }
    }
}
