//! Counts each event for the metrics of the estate.

use std::collections::{HashMap, HashSet};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::config::EstateConfig;
use super::facts::{Call, Facts, Run, texts};
use super::firsts::{Firsts, Seen};
use super::jobs::PendingJobs;
use super::series::{LONGEST, OTHER, Series};
use super::table::{self, ByMinion, Declared};
use crate::event::job_return::Outcome;
use crate::event::runner::RunnerJob;
use crate::event::step::Step;
use crate::event::trimmed::Trimmed;
use crate::event::{Event, EventKind, Origin, is_job};

/// The salt-exporter's name for the minion of a runner.
const MASTER: &str = "master";

/// The longest id of a minion, in bytes: it is the name of a file on the master.
const LONGEST_ID: usize = 255;

/// Jobs whose first reporter is remembered: 512 KiB.
const KNOWN_JOBS: usize = 1 << 16;

/// Returns, their outcomes, and minions of jobs whose first reporter is remembered: 2 MiB each.
const KNOWN_RETURNS: usize = 1 << 18;

/// The reporter of an event, as a hash: a source with its master, or a syndic behind these.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reporter(u64);

impl Reporter {
    /// The one with this origin.
    pub(super) fn of(origin: &Origin) -> Self {
        let master = xxh3_64(origin.master_id.as_bytes());
        Reporter(xxh3_64_with_seed(origin.source.as_bytes(), master))
    }

    /// The same reporter by another way.
    fn by_way_of(self, way: &str) -> Self {
        Reporter(xxh3_64_with_seed(way.as_bytes(), self.0))
    }
}

/// The minion or master that returned.
#[derive(Debug, Clone, Copy)]
enum Who<'a> {
    Minion(&'a str),
    /// The master, what a runner gave.
    Master,
}

impl<'a> Who<'a> {
    /// Its name in the label `minion`.
    fn label(self) -> &'a str {
        match self {
            Who::Minion(id) => id,
            Who::Master => MASTER,
        }
    }
}

/// A job, as a hash.
fn job_hash(jid: &str) -> u64 {
    xxh3_64(jid.as_bytes())
}

/// A minion of a job, as a hash.
fn minion_hash(job: u64, minion: &[u8]) -> u64 {
    xxh3_64_with_seed(minion, job)
}

/// A job with its functions, as a hash. Another word on the same job is about another one.
fn functions_hash(job: u64, facts: &Facts<'_>) -> u64 {
    facts.functions().fold(job, |hash, name| xxh3_64_with_seed(name.as_bytes(), hash))
}

/// The tag of an event that syndics passed on, and their prefix.
fn passed_on(tag: &str) -> Option<(&str, &str)> {
    let mut rest = tag;
    while let Some(behind) = rest.strip_prefix("syndic/") {
        rest = behind.split_once('/')?.1;
    }
    tag.split_at_checked(tag.len() - rest.len()).filter(|(way, _)| !way.is_empty())
}

/// All series of the estate, and the state behind them.
pub(super) struct Counters {
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
    /// The time when each minion was last heard of, in seconds since 1970.
    minions: HashMap<Box<str>, u64>,
    /// Minions for which there was no room.
    minions_folded: u64,
    present: Option<usize>,
    jobs: PendingJobs,
    known: Known,
}

/// The jobs and returns that came, and their first reporters.
struct Known {
    jobs: Firsts,
    /// Minions that jobs were meant for.
    expected: Firsts,
    returns: Firsts,
    /// Returns with their functions and how they went.
    said: Firsts,
}

impl Counters {
    pub(super) fn new(config: EstateConfig) -> Self {
        let series = |declared| series(&config, declared);
        Counters {
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
            jobs: PendingJobs::new(config.returns_within.0.as_secs()),
            known: Known {
                jobs: Firsts::new(KNOWN_JOBS),
                expected: Firsts::new(KNOWN_RETURNS),
                returns: Firsts::new(KNOWN_RETURNS),
                said: Firsts::new(KNOWN_RETURNS),
            },
            config,
        }
    }

    /// The configuration that they are kept by.
    pub(super) fn config(&self) -> &EstateConfig {
        &self.config
    }

    /// Counters by another configuration, with the minions and the jobs of these.
    pub(super) fn continued(self, config: EstateConfig) -> Self {
        let mut counters = Counters::new(config);
        let room = counters.config.minions_bound();
        counters.minions_folded = self.minions.len().saturating_sub(room) as u64;
        counters.minions = self.minions.into_iter().take(room).collect();
        counters.present = self.present;
        counters.known = self.known;
        counters.jobs = self.jobs.waiting_for(counters.config.returns_within.0.as_secs());
        counters
    }

    /// Counts an event that was read at `now`, in seconds since 1970.
    pub(super) fn count(&mut self, event: &Event, from: Reporter, now: u64) {
        let kind = event.kind();
        self.events.add("", &[kind.name()], 1.0);
        let part = |place| event.tag().split('/').nth(place).unwrap_or_default();
        match kind {
            EventKind::JobNew | EventKind::JobReturn => {
                self.count_job(kind, event.tag(), event.payload(), from, now);
            }
            EventKind::Run => self.count_runner(event, from, now),
            EventKind::Syndic => {
                let Some((way, tag)) = passed_on(event.tag()) else { return };
                let kind = EventKind::of(tag);
                if matches!(kind, EventKind::JobNew | EventKind::JobReturn) {
                    self.count_job(kind, tag, event.payload(), from.by_way_of(way), now);
                }
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
        let facts = Facts::of(payload);
        if let Some(call) = facts.call().filter(|call| !call.function.is_empty()) {
            self.trimmed.add("", &[call.function], count(values));
        }
        for part in facts.parts() {
            let values = self.finder.count(part.value().unwrap_or_default());
            if values > 0 {
                self.trimmed.add("", &[part.call.function], count(values));
            }
        }
    }

    /// Counts what a job or a minion says, under a tag of this kind.
    fn count_job(&mut self, kind: EventKind, tag: &str, payload: &[u8], from: Reporter, now: u64) {
        let mut facts = Facts::of(payload);
        if facts.jid.is_empty() {
            facts.jid = tag.split('/').nth(2).unwrap_or_default();
        }
        match kind {
            EventKind::JobNew => self.count_new(&facts, from, now),
            _ => self.count_return(&facts, from, now),
        }
    }

    /// Counts what a runner says.
    fn count_runner(&mut self, event: &Event, from: Reporter, now: u64) {
        let Some((runner, step)) = RunnerJob::of_event(event, MASTER) else { return };
        let mut facts = Facts::of(runner.data);
        facts.jid = runner.jid;
        match step {
            Step::New => self.count_new(&facts, from, now),
            Step::Return => {
                let outcome = facts.outcome();
                if is_job(facts.jid) {
                    // No minion has this id.
                    let returned = minion_hash(job_hash(facts.jid), b"\0");
                    if !self.is_told_first(returned, &facts, outcome, from) {
                        return;
                    }
                }
                self.count_results(&facts, outcome, Who::Master);
            }
        }
    }

    fn is_ignored(&self, call: &Call<'_>) -> bool {
        self.config.ignore_test && call.is_test || self.config.ignore_mock && call.is_mock
    }

    fn count_new(&mut self, facts: &Facts<'_>, from: Reporter, now: u64) {
        let mut calls: Vec<Call<'_>> = match facts.call() {
            Some(call) => vec![call],
            None => facts.parts().into_iter().map(|part| part.call).collect(),
        };
        calls.retain(|call| !self.is_ignored(call));
        let job = job_hash(facts.jid);
        let is_job = is_job(facts.jid);
        let said = functions_hash(job, facts);
        let seen = if is_job { self.known.jobs.see(said, from.0) } else { Seen::First };
        let mut waiting = HashSet::new();
        let mut expected = 0;
        for minion in texts(facts.minions) {
            let expects = minion_hash(said, minion);
            if is_job && self.known.expected.see(expects, from.0) == Seen::Elsewhere {
                continue;
            }
            let minion = minion_hash(job, minion);
            expected += 1;
            // The return of a job that is published again is still to come.
            if seen == Seen::Again || !self.known.returns.knows(minion) {
                waiting.insert(minion);
            }
        }
        for call in &calls {
            let labels = &[call.function, call.state];
            self.new_jobs.add("", labels, if seen == Seen::Elsewhere { 0.0 } else { 1.0 });
            self.expected.add("", labels, number(expected));
            // The series is there from the start: Prometheus sees no growth in a series that begins
            // with its first count.
            self.missing.add("", &[call.function], 0.0);
        }
        let name = |call: &Call<'_>| call.function.len() <= LONGEST;
        let functions: Vec<_> =
            calls.iter().map(|call| if name(call) { call.function } else { OTHER }).collect();
        if is_job && !functions.is_empty() && !self.jobs.begin(now, job, &functions, &waiting) {
            self.untracked.add("", &[], 1.0);
        }
    }

    fn count_return(&mut self, facts: &Facts<'_>, from: Reporter, now: u64) {
        self.heard(facts.id, now);
        let outcome = facts.outcome();
        if is_job(facts.jid) {
            let job = job_hash(facts.jid);
            let returned = minion_hash(job, facts.id.as_bytes());
            if !self.is_told_first(returned, facts, outcome, from) {
                return;
            }
            self.jobs.returned(job, returned);
        }
        if self.count_results(facts, outcome, Who::Minion(facts.id)) {
            self.last_response.set(facts.id, &[], seconds(now));
        }
    }

    /// Tells if no other reporter brought the same outcome before; `returned` is the minion of the
    /// job, as a hash. A forged return with another outcome does not stand for the true one.
    fn is_told_first(
        &mut self,
        returned: u64,
        facts: &Facts<'_>,
        outcome: Outcome,
        from: Reporter,
    ) -> bool {
        self.known.returns.see(returned, from.0);
        let name = outcome.name().as_bytes();
        let said = xxh3_64_with_seed(name, functions_hash(returned, facts));
        self.known.said.see(said, from.0) != Seen::Elsewhere
    }

    /// Counts the outcome of each function of a job, and the return, whose outcome is `outcome`;
    /// `false` if all of it is ignored.
    fn count_results(&mut self, facts: &Facts<'_>, outcome: Outcome, who: Who<'_>) -> bool {
        if let Some(call) = facts.call() {
            if self.is_ignored(&call) {
                return false;
            }
            self.count_result(facts.is_scheduled, who, call, outcome, &facts.runs);
        } else {
            let (mut outcomes, mut runs) = (Vec::new(), Vec::new());
            let mut is_counted = false;
            for part in facts.parts() {
                let outcome = part.judge(&outcomes, &mut runs);
                outcomes.push(outcome);
                if self.is_ignored(&part.call) {
                    continue;
                }
                is_counted = true;
                self.count_result(facts.is_scheduled, who, part.call, outcome, &runs);
            }
            if !is_counted {
                return false;
            }
        }
        self.responses.add(who.label(), &[success(outcome)], 1.0);
        true
    }

    fn count_result(
        &mut self,
        is_scheduled: bool,
        who: Who<'_>,
        call: Call<'_>,
        outcome: Outcome,
        runs: &[Run<'_>],
    ) {
        let (function, state) = (call.function, call.state);
        let labels = &[function, state, success(outcome)];
        let by_function =
            if is_scheduled { &mut self.scheduled } else { &mut self.responses_by_function };
        by_function.add(who.label(), labels, 1.0);
        let watches = |names: &[String], name| names.iter().any(|n| n == name || n == "*");
        if let Some(worked) = outcome.worked()
            && watches(&self.config.status_functions, function)
            && watches(&self.config.status_states, state)
        {
            let status = if worked { 1.0 } else { 0.0 };
            self.function_status.set(who.label(), &[function, state], status);
        }
        let mut millis = 0.0;
        for run in runs {
            millis += run.millis;
            self.states.add("", &[run.sls, flag(run.result)], f64::from(run.count));
            self.state_seconds.add("", &[run.sls], run.millis / 1000.0);
        }
        if !runs.is_empty() {
            self.job_duration.set(who.label(), &[function, state], millis / 1000.0);
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
        if minion.len() > LONGEST_ID {
            self.minions_folded += 1;
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

/// The value of the label `success`.
fn success(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Worked => "true",
        Outcome::Failed => "false",
        Outcome::Unknown => "unknown",
    }
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

    const BUS: Reporter = Reporter(1);

    /// The bus of another master.
    const OTHER_BUS: Reporter = Reporter(2);

    /// The value of a series, `None` if it is not there.
    fn value(counters: &mut Counters, now: u64, series: &str) -> Option<f64> {
        let mut out = String::new();
        counters.render(now, &mut out);
        let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok();
        out.lines().find_map(value)
    }

    fn per_minion() -> EstateConfig {
        EstateConfig { minions: true, minion_label: true, ..EstateConfig::default() }
    }

    #[test]
    fn a_job_and_its_returns() {
        let mut counters = Counters::new(EstateConfig::default());
        let data =
            json!({"jid": "1", "fun": "state.apply", "arg": ["web"], "minions": ["a", "b", "c"]});
        counters.count(&event("salt/job/1/new", &data), BUS, 1000);
        let worked = json!({
            "fun": "state.apply", "fun_args": ["web"], "success": true, "retcode": 0,
            "return": {"x_|-a_|-b_|-c": {"__sls__": "web.nginx", "result": true, "duration": 250.0}},
        });
        counters.count(&returned("1", "a", worked.clone()), BUS, 1001);
        let mut failed = worked;
        failed["success"] = json!(false);
        counters.count(&returned("1", "b", failed), BUS, 1002);
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
            assert_eq!(value(&mut counters, 1003, series), Some(expected), "{series}");
        }
        let missing = r#"salt_missing_returns_total{function="state.apply"}"#;
        assert_eq!(value(&mut counters, 1003, missing), Some(0.0));
        assert_eq!(value(&mut counters, 1000 + 15 * 60, missing), Some(1.0));
        assert_eq!(value(&mut counters, 1002 + 3600, "salt_minions_silent"), Some(1.0));
    }

    #[test]
    fn trimmed_values_are_counted_by_function_and_capped() {
        let mut counters = Counters::new(EstateConfig { max_series: 1, ..EstateConfig::default() });
        let trimmed = json!({"a": "VALUE_TRIMMED", "b": ["VALUE_TRIMMED", "VALUE_TRIMMED, no"]});
        for function in ["grains.items", "pillar.items", "state.apply"] {
            let data = json!({"fun": function, "return": trimmed, "success": true});
            counters.count_trimmed(returned("1", "a", data).payload());
        }
        counters.count_trimmed(event("my/event", &json!({"data": "VALUE_TRIMMED"})).payload());
        for (function, expected) in [("grains.items", 2.0), ("other", 4.0)] {
            let series = format!("salt_trimmed_values_total{{function=\"{function}\"}}");
            assert_eq!(value(&mut counters, 5, &series), Some(expected), "{function}");
        }
        assert_eq!(value(&mut counters, 5, r#"salt_trimmed_values_total{function=""}"#), None);
    }

    #[test]
    fn another_configuration_begins_anew_and_remembers_minions_and_jobs() {
        let mut counters = Counters::new(EstateConfig::default());
        let job = json!({"jid": "1", "fun": "test.ping", "minions": ["a", "b"]});
        counters.count(&event("salt/job/1/new", &job), BUS, 1000);
        counters.count(
            &returned("1", "a", json!({"fun": "test.ping", "success": true})),
            BUS,
            1001,
        );
        let returns_within = Span::seconds(60);
        let mut counters = counters.continued(EstateConfig { returns_within, ..per_minion() });
        assert_eq!(value(&mut counters, 1002, "salt_health_minions_total"), Some(1.0));
        assert_eq!(value(&mut counters, 1002, "salt_jobs_waiting"), Some(1.0));
        assert_eq!(
            value(&mut counters, 1002, r#"salt_responses_total{minion="a",success="true"}"#),
            None
        );
        counters.count(
            &returned("2", "a", json!({"fun": "test.ping", "success": true})),
            BUS,
            1003,
        );
        let responses = r#"salt_responses_total{minion="a",success="true"}"#;
        assert_eq!(value(&mut counters, 1004, responses), Some(1.0));
        let missing = r#"salt_missing_returns_total{function="test.ping"}"#;
        assert_eq!(value(&mut counters, 1060, missing), Some(1.0));
    }

    /// The values of these series after events from these buses.
    fn values_are(events: &[(Reporter, Event)], expected: &[(&str, f64)]) {
        let mut counters = Counters::new(per_minion());
        for (from, event) in events {
            counters.count(event, *from, 5);
        }
        for (series, expected) in expected {
            let value = value(&mut counters, 6, series).unwrap_or_default();
            assert!((value - expected).abs() < 1e-9, "{series} is {value}");
        }
    }

    #[test]
    fn a_return_is_judged_by_the_one_rule() {
        let state = |result: bool| json!({"test_|-a_|-a_|-nop": {"result": result}});
        let mut events = Vec::new();
        for (minion, data) in [
            // `salt-call` returned these.
            ("w1", json!({"retcode": 0, "return": state(true)})),
            ("w2", json!({"retcode": 0, "return": state(false)})),
            ("w3", json!({"retcode": 0, "success": true, "return": ["no such file"]})),
            ("w4", json!({"return": state(true)})),
        ] {
            let mut data = data;
            data["fun"] = json!("state.highstate");
            events.push((BUS, returned("1", minion, data)));
        }
        values_are(
            &events,
            &[
                (r#"salt_responses_total{minion="w1",success="true"}"#, 1.0),
                (r#"salt_responses_total{minion="w2",success="false"}"#, 1.0),
                (r#"salt_responses_total{minion="w3",success="false"}"#, 1.0),
                (r#"salt_responses_total{minion="w4",success="unknown"}"#, 1.0),
                (r#"salt_responses_total{minion="w4",success="false"}"#, 0.0),
                (
                    r#"salt_function_status{minion="w1",function="state.highstate",state="highstate"}"#,
                    1.0,
                ),
            ],
        );
    }

    #[test]
    fn each_function_of_a_job_of_several_is_a_job_of_its_own() {
        let both = json!(["test.ping", "state.apply"]);
        let new = json!({"jid": "1", "fun": both, "arg": [[], ["web"]], "minions": ["a", "b"]});
        let states = json!({"x_|-a_|-b_|-c": {"__sls__": "web", "result": false, "duration": 2.0}});
        let of = |returned: Value| {
            json!({"fun": both, "fun_args": [[], ["web"]], "retcode": {"test.ping": 0, "state.apply": 2},
                "success": {"test.ping": true, "state.apply": false}, "return": returned})
        };
        let returned = returned("1", "a", of(json!({"test.ping": true, "state.apply": states})));
        let events = [(BUS, event("salt/job/1/new", &new)), (BUS, returned)];
        values_are(
            &events,
            &[
                (r#"salt_new_job_total{function="test.ping",state=""}"#, 1.0),
                (r#"salt_new_job_total{function="state.apply",state="web"}"#, 1.0),
                (r#"salt_expected_responses_total{function="state.apply",state="web"}"#, 2.0),
                (
                    r#"salt_function_responses_total{minion="a",function="test.ping",state="",success="true"}"#,
                    1.0,
                ),
                (
                    r#"salt_function_responses_total{minion="a",function="state.apply",state="web",success="false"}"#,
                    1.0,
                ),
                (r#"salt_responses_total{minion="a",success="false"}"#, 1.0),
                (r#"salt_states_total{sls="web",result="false"}"#, 1.0),
                ("salt_jobs_waiting", 1.0),
            ],
        );
        let mut counters = Counters::new(per_minion());
        for (from, event) in &events {
            counters.count(event, *from, 5);
        }
        for function in ["test.ping", "state.apply"] {
            let series = format!("salt_missing_returns_total{{function=\"{function}\"}}");
            assert_eq!(value(&mut counters, 5 + 15 * 60, &series), Some(1.0), "{function}");
        }
    }

    #[test]
    fn what_has_no_job_is_a_return_that_no_job_waits_for() {
        let mut events = Vec::new();
        for jid in ["nocache", "req"] {
            let new = json!({"jid": jid, "fun": "test.ping", "minions": ["a"]});
            events.push((BUS, event(&format!("salt/job/{jid}/new"), &new)));
            for from in [BUS, OTHER_BUS] {
                let data = json!({"fun": "test.ping", "retcode": 0});
                events.push((from, returned(jid, "a", data)));
            }
        }
        values_are(
            &events,
            &[
                (r#"salt_responses_total{minion="a",success="true"}"#, 4.0),
                ("salt_jobs_waiting", 0.0),
            ],
        );
    }

    #[test]
    fn a_runner_counts_once_and_its_master_is_no_minion() {
        let runner = json!({"jid": "7", "fun": "runner.state.orchestrate", "success": true,
            "return": {"data": {"m": {"salt_|-a_|-a_|-state": {"result": false}}}}});
        let new = json!({"jid": "7", "fun": "runner.state.orchestrate"});
        let own = |from| (from, event("salt/run/7/ret", &runner));
        let wheel = json!({"fun": "wheel.key.list_all", "jid": "8", "success": true});
        let no_runner = |tag: &str, data: Value| (BUS, event(tag, &data));
        for events in [
            vec![own(BUS)],
            vec![own(OTHER_BUS), own(BUS)],
            vec![own(BUS), (BUS, event("salt/wheel/8/ret", &wheel))],
            // The job cache takes none of these for an event of a runner.
            vec![
                no_runner("salt/run/7/ret", json!({"fun": "test.ping", "success": true})),
                no_runner("salt/run/7/ret", json!({"fun": "runner.a.b", "jid": "8", "retcode": 0})),
                no_runner("salt/run/7/ret/x", json!({"fun": "runner.a.b", "retcode": 0})),
                no_runner("salt/run/7/ret", json!({"fun": "wheel.a.b", "retcode": 0})),
                own(BUS),
            ],
        ] {
            let mut all = vec![(BUS, event("salt/run/7/new", &new))];
            all.extend(events);
            values_are(
                &all,
                &[
                    (r#"salt_new_job_total{function="runner.state.orchestrate",state=""}"#, 1.0),
                    (
                        r#"salt_function_responses_total{minion="master",function="runner.state.orchestrate",state="",success="false"}"#,
                        1.0,
                    ),
                    (r#"salt_responses_total{minion="master",success="false"}"#, 1.0),
                    (r#"salt_responses_total{minion="master",success="true"}"#, 0.0),
                    (r#"salt_responses_total{minion="m",success="true"}"#, 0.0),
                    (r#"salt_responses_last_received_response{minion="master"}"#, 0.0),
                    (r#"salt_responses_last_received_response{minion="m"}"#, 0.0),
                    ("salt_health_minions_total", 0.0),
                ],
            );
        }
    }

    #[test]
    fn a_runner_that_is_not_there_has_failed() {
        let data = json!({"fun": "a.b", "jid": "7", "retcode": 254, "success": false});
        values_are(
            &[(BUS, event("salt/run/7/ret", &data))],
            &[(r#"salt_responses_total{minion="master",success="false"}"#, 1.0)],
        );
    }

    #[test]
    fn a_minion_that_returns_a_runner_is_no_master() {
        let data = json!({"fun": "runner.a.b", "retcode": 0});
        values_are(
            &[(BUS, returned("7", "m", data))],
            &[
                (r#"salt_responses_total{minion="master",success="true"}"#, 0.0),
                (r#"salt_responses_total{minion="m",success="true"}"#, 1.0),
            ],
        );
    }

    #[test]
    fn invariant_7_a_forged_return_does_not_stand_for_the_true_one() {
        let said =
            |success: bool| json!({"fun": "test.ping", "jid": "7", "id": "a", "success": success});
        let forged = || event("syndic/z/salt/job/7/ret/a", &said(true));
        let failed = (r#"salt_responses_total{minion="a",success="false"}"#, 1.0);
        let truth = || event("salt/job/7/ret/a", &said(false));
        values_are(&[(BUS, forged()), (BUS, truth())], &[failed]);
        values_are(
            &[(OTHER_BUS, event("salt/job/7/ret/a", &said(true))), (BUS, truth())],
            &[failed],
        );
        // Nor do forged functions of the job.
        let new = |fun: &str| json!({"jid": "7", "fun": fun, "minions": ["a"]});
        values_are(
            &[
                (BUS, event("syndic/z/salt/job/7/new", &new("a.b"))),
                (BUS, event("salt/job/7/new", &new("test.ping"))),
            ],
            &[
                (r#"salt_new_job_total{function="test.ping",state=""}"#, 1.0),
                (r#"salt_expected_responses_total{function="test.ping",state=""}"#, 1.0),
            ],
        );
    }

    #[test]
    fn a_job_on_two_buses_is_one_job_and_its_returns_are_counted_once() {
        let new =
            |minions: Value| json!({"jid": "deploy-42", "fun": "test.ping", "minions": minions});
        let data = || json!({"fun": "test.ping", "retcode": 0});
        let tag = "salt/job/deploy-42/new";
        let below = "syndic/s1/salt/job/deploy-42";
        let passed_on = || {
            let mut data = data();
            data["jid"] = json!("deploy-42");
            data["id"] = json!("b");
            event(&format!("{below}/ret/b"), &data)
        };
        let other_bus = [
            (OTHER_BUS, event(tag, &new(json!(["a", "b"])))),
            (OTHER_BUS, returned("deploy-42", "b", data())),
        ];
        let by_syndic =
            [(BUS, event(&format!("{below}/new"), &new(json!(["a", "b"])))), (BUS, passed_on())];
        for second in [other_bus, by_syndic] {
            // Two parts of a batch, of which a minion of the second is on both buses.
            let mut events = vec![(BUS, event(tag, &new(json!(["a"]))))];
            events.push((BUS, returned("deploy-42", "a", data())));
            events.extend(second);
            events.push((BUS, event(tag, &new(json!(["c"])))));
            for minion in ["b", "c"] {
                events.push((BUS, returned("deploy-42", minion, data())));
            }
            values_are(
                &events,
                &[
                    (r#"salt_new_job_total{function="test.ping",state=""}"#, 2.0),
                    (r#"salt_expected_responses_total{function="test.ping",state=""}"#, 3.0),
                    (r#"salt_responses_total{minion="a",success="true"}"#, 1.0),
                    (r#"salt_responses_total{minion="b",success="true"}"#, 1.0),
                    (r#"salt_responses_total{minion="c",success="true"}"#, 1.0),
                    ("salt_jobs_waiting", 0.0),
                ],
            );
        }
    }

    #[test]
    fn a_scheduled_job_has_failed_if_its_states_have() {
        let mut counters = Counters::new(per_minion());
        let data = |retcode: i32, result: bool| {
            json!({
                "fun": "state.highstate", "schedule": "every hour", "success": true, "retcode": retcode,
                "return": {"x_|-a_|-b_|-c": {"__sls__": "web", "result": result}},
            })
        };
        for (retcode, result) in [(0, true), (2, true), (0, false)] {
            counters.count(&returned("1", "a", data(retcode, result)), BUS, 5);
        }
        let labels = r#"minion="a",function="state.highstate",state="highstate""#;
        for (series, expected) in [
            (format!(r#"salt_scheduled_job_return_total{{{labels},success="true"}}"#), 1.0),
            (format!(r#"salt_scheduled_job_return_total{{{labels},success="false"}}"#), 2.0),
            (format!("salt_function_status{{{labels}}}"), 0.0),
            (r#"salt_responses_total{minion="a",success="false"}"#.to_owned(), 2.0),
            (r#"salt_responses_last_received_response{minion="a"}"#.to_owned(), 5.0),
        ] {
            assert_eq!(value(&mut counters, 6, &series), Some(expected), "{series}");
        }
    }

    #[test]
    fn a_deleted_minion_takes_its_series_along() {
        let mut counters = Counters::new(per_minion());
        for minion in ["a", "b"] {
            let data = json!({"fun": "state.highstate", "success": true, "return": {}});
            counters.count(&returned("1", minion, data), BUS, 5);
            let beacon = event(&format!("salt/beacon/{minion}/status/x"), &json!({"id": minion}));
            counters.count(&beacon, BUS, 6);
        }
        let mut out = String::new();
        counters.render(7, &mut out);
        assert_eq!(out.matches(r#"minion="a""#).count(), 5, "{out}");
        counters.count(
            &event("salt/key", &json!({"act": "delete", "id": "a", "result": true})),
            BUS,
            7,
        );
        out.clear();
        counters.render(8, &mut out);
        assert_eq!(
            (out.matches(r#"minion="a""#).count(), out.matches(r#"minion="b""#).count()),
            (0, 5)
        );
        assert_eq!(value(&mut counters, 8, "salt_health_minions_total"), Some(1.0));
        assert_eq!(
            value(&mut counters, 8, r#"salt_key_events_total{act="delete",result="true"}"#),
            Some(1.0)
        );
    }

    #[test]
    fn tests_and_mocks_can_be_left_out() {
        let config =
            EstateConfig { ignore_test: true, ignore_mock: true, ..EstateConfig::default() };
        let mut counters = Counters::new(config);
        for kwargs in [json!({"test": true}), json!({"mock": true}), json!({"test": false})] {
            let new = json!({"jid": "1", "fun": "state.apply", "arg": [kwargs], "minions": ["a"]});
            counters.count(&event("salt/job/1/new", &new), BUS, 5);
            counters.count(
                &returned(
                    "1",
                    "a",
                    json!({"fun": "state.apply", "retcode": 1, "fun_args": [kwargs]}),
                ),
                BUS,
                5,
            );
        }
        for series in [
            r#"salt_new_job_total{function="state.apply",state=""}"#,
            r#"salt_function_responses_total{function="state.apply",state="",success="false"}"#,
        ] {
            assert_eq!(value(&mut counters, 6, series), Some(1.0), "{series}");
        }
    }

    #[test]
    fn presence_and_authentication() {
        let mut counters = Counters::new(EstateConfig::default());
        counters.count(&event("salt/presence/present", &json!({"present": ["a", "b"]})), BUS, 5);
        counters.count(
            &event("salt/presence/change", &json!({"new": ["b"], "lost": ["x", "y"]})),
            BUS,
            5,
        );
        counters.count(
            &event("salt/auth", &json!({"act": "pend", "id": "c", "result": true})),
            BUS,
            5,
        );
        counters.count(
            &event("salt/auth", &json!({"act": "accept", "id": "d", "result": true})),
            BUS,
            5,
        );
        counters.count(&event("key", &json!({"rotate_aes_key": true})), BUS, 5);
        counters.count(&event("salt/minion/a/start", &json!({"id": "a"})), BUS, 5);
        counters.count(&event("minion_start", &json!({"id": "a"})), BUS, 5);
        for (series, expected) in [
            ("salt_minions_present", 2.0),
            ("salt_health_minions_total", 3.0),
            (r#"salt_presence_changes_total{change="lost"}"#, 2.0),
            (r#"salt_auth_events_total{act="pend",result="true"}"#, 1.0),
            ("salt_minion_starts_total", 1.0),
            (r#"salt_events_total{kind="key"}"#, 1.0),
        ] {
            assert_eq!(value(&mut counters, 6, series), Some(expected), "{series}");
        }
    }

    /// The largest estate there may be, and names made to hurt.
    #[test]
    fn invariant_6_series_have_caps() {
        let config = EstateConfig { max_series: 1000, max_minions: 20_000, ..per_minion() };
        let mut counters = Counters::new(config);
        for number in 0..50_000 {
            let minion = format!("web-{number}");
            let state = format!("state-{}", number % 5000);
            let data = json!({
                "fun": "state.apply", "fun_args": [state], "success": true, "schedule": number % 3,
                "return": {"x_|-a_|-b_|-c": {"__sls__": state, "result": true, "duration": 1.0}},
            });
            counters.count(&returned(&number.to_string(), &minion, data), BUS, 5);
            counters.count(
                &event(&format!("salt/beacon/{minion}/status/x"), &json!({"id": minion})),
                BUS,
                5,
            );
            counters.count(&event(&format!("salt/beacon/x/b{number}"), &json!({})), BUS, 5);
            let act = format!("{}\n\"\u{0}{{}}", "\\".repeat(number % 300));
            counters.count(&event("salt/auth", &json!({"act": act, "id": minion})), BUS, 5);
            counters.count(
                &event(&format!("salt/job/{number}/new/{act}"), &json!({"fun": minion})),
                BUS,
                5,
            );
        }
        let mut out = String::new();
        counters.render(6, &mut out);
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
        // At the most 200 bytes of label for each series, and the text around them.
        assert!(out.len() < counts.values().sum::<usize>() * 400, "{} bytes", out.len());
        assert_eq!(counters.minions.len(), 20_000);
        for (metric, folded) in [
            ("salt_responses_total", 49_000.0),
            ("salt_health_last_heartbeat", 49_000.0),
            ("salt_states_total", 45_000.0 - 5_000.0),
            ("salt_health_minions_total", 60_000.0),
        ] {
            let series = format!("saltern_estate_folded_total{{metric=\"{metric}\"}}");
            assert_eq!(value(&mut counters, 6, &series), Some(folded), "{series}");
        }
    }
}
