//! The metrics of the estate: name, kind, labels and help in one table.
//!
//! Metrics named `salt_…` up to [`MINIONS`] are salt-exporter's, under its names and labels, so
//! that dashboards made for it go on. The label `minion` is not listed: see [`ByMinion`].

use crate::observe::metrics::{Metric, counter, gauge};

/// The conditions under which a metric has the label `minion`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByMinion {
    /// It never has.
    Never,
    /// It has with `estate.minions`.
    Labelled,
    /// The metric is there only with `estate.minions`, and then has the label.
    Only,
    /// It has with `estate.minion_label`.
    Added,
}

/// A metric of the estate.
#[derive(Debug, Clone, Copy)]
pub struct Declared {
    /// The metric, without the label `minion`.
    pub metric: Metric,
    /// The condition under which it has the label `minion`.
    pub by_minion: ByMinion,
    /// The number of its labels, from the first on, whose values come from events. This program
    /// bounds the values of the others.
    pub(crate) open: usize,
}

const fn declared(metric: Metric, by_minion: ByMinion, open: usize) -> Declared {
    Declared { metric, by_minion, open }
}

const NONE: &[&str] = &[];
const JOB: &[&str] = &["function", "state"];
const RETURN: &[&str] = &["function", "state", "success"];

/// New jobs.
pub(crate) const NEW_JOBS: Declared = declared(
    counter("salt_new_job_total", JOB, "New jobs; each function of a job of several counts."),
    ByMinion::Never,
    2,
);
/// Minions that new jobs were meant for.
pub(crate) const EXPECTED: Declared = declared(
    counter("salt_expected_responses_total", JOB, "Minions that new jobs were meant for."),
    ByMinion::Never,
    2,
);
/// Returns of jobs that were not scheduled.
pub(crate) const RESPONSES_BY_FUNCTION: Declared = declared(
    counter(
        "salt_function_responses_total",
        RETURN,
        "Returns of jobs and runners, without those of scheduled jobs; success is true, false or unknown.",
    ),
    ByMinion::Added,
    2,
);
/// Returns of scheduled jobs.
pub(crate) const SCHEDULED: Declared = declared(
    counter(
        "salt_scheduled_job_return_total",
        RETURN,
        "Returns of scheduled jobs; success is true, false or unknown.",
    ),
    ByMinion::Added,
    2,
);
/// All returns.
pub(crate) const RESPONSES: Declared = declared(
    counter(
        "salt_responses_total",
        &["success"],
        "Returns, with those of scheduled jobs; success is true, false or unknown.",
    ),
    ByMinion::Labelled,
    0,
);
/// The outcome of the last run of a watched function.
pub(crate) const FUNCTION_STATUS: Declared = declared(
    gauge(
        "salt_function_status",
        JOB,
        "1 if the minion's last run of the function worked, 0 if it failed.",
    ),
    ByMinion::Only,
    2,
);
/// The time that the last run took.
pub(crate) const JOB_DURATION: Declared = declared(
    gauge(
        "salt_job_duration_seconds",
        JOB,
        "Time that the states of the last return took together.",
    ),
    ByMinion::Added,
    2,
);
/// The last status beacon of a minion.
pub(crate) const HEARTBEAT: Declared = declared(
    gauge(
        "salt_health_last_heartbeat",
        NONE,
        "When the minion's last status beacon came, in seconds since 1970.",
    ),
    ByMinion::Only,
    0,
);
/// The last return of a minion.
pub(crate) const LAST_RESPONSE: Declared = declared(
    gauge(
        "salt_responses_last_received_response",
        NONE,
        "When the minion's last return came, in seconds since 1970.",
    ),
    ByMinion::Only,
    0,
);
/// Minions known.
pub(crate) const MINIONS: Declared = declared(
    gauge(
        "salt_health_minions_total",
        NONE,
        "Minions that were heard of since the start and not deleted.",
    ),
    ByMinion::Never,
    0,
);
/// Minions that have been silent.
pub(crate) const SILENT: Declared = declared(
    gauge("salt_minions_silent", NONE, "Minions not heard of for estate.silent_after."),
    ByMinion::Never,
    0,
);
/// Minions that the master sees connected.
pub(crate) const PRESENT: Declared = declared(
    gauge(
        "salt_minions_present",
        NONE,
        "Minions connected to the master, by its last presence event.",
    ),
    ByMinion::Never,
    0,
);
/// Minions that came and went.
pub(crate) const PRESENCE_CHANGES: Declared = declared(
    counter(
        "salt_presence_changes_total",
        &["change"],
        "Minions that came (new) and went (lost), by the master's presence events.",
    ),
    ByMinion::Never,
    0,
);
/// Events by kind.
pub(crate) const EVENTS: Declared = declared(
    counter("salt_events_total", &["kind"], "Events, by what their tags say they are."),
    ByMinion::Never,
    0,
);
/// Results of states.
pub(crate) const STATES: Declared = declared(
    counter(
        "salt_states_total",
        &["sls", "result"],
        "States that were run, by the file they stand in and their result: true, false, none (with test=True).",
    ),
    ByMinion::Never,
    1,
);
/// The time that states took.
pub(crate) const STATE_SECONDS: Declared = declared(
    counter(
        "salt_state_seconds_total",
        &["sls"],
        "Time that states took, by the file they stand in.",
    ),
    ByMinion::Never,
    1,
);
/// Authentications.
pub(crate) const AUTH: Declared = declared(
    counter("salt_auth_events_total", &["act", "result"], "Authentications of minions."),
    ByMinion::Never,
    1,
);
/// Changes of keys.
pub(crate) const KEYS: Declared = declared(
    counter(
        "salt_key_events_total",
        &["act", "result"],
        "Keys of minions that were accepted, rejected or deleted.",
    ),
    ByMinion::Never,
    1,
);
/// Starts of minions.
pub(crate) const STARTS: Declared =
    declared(counter("salt_minion_starts_total", NONE, "Starts of minions."), ByMinion::Never, 0);
/// Beacons.
pub(crate) const BEACONS: Declared =
    declared(counter("salt_beacons_total", &["beacon"], "Events of beacons."), ByMinion::Never, 1);
/// Jobs that wait for returns.
pub(crate) const WAITING: Declared = declared(
    gauge(
        "salt_jobs_waiting",
        NONE,
        "Jobs that have not had all their returns and are not older than estate.returns_within.",
    ),
    ByMinion::Never,
    0,
);
/// Returns that never came.
pub(crate) const MISSING: Declared = declared(
    counter(
        "salt_missing_returns_total",
        &["function"],
        "Returns that did not come within estate.returns_within.",
    ),
    ByMinion::Never,
    1,
);
/// Jobs whose returns were not waited for.
pub(crate) const UNTRACKED: Declared = declared(
    counter(
        "saltern_estate_untracked_jobs_total",
        NONE,
        "Jobs whose returns are not waited for, because too many are already.",
    ),
    ByMinion::Never,
    0,
);
/// Values that the master trimmed.
pub(crate) const TRIMMED: Declared = declared(
    counter(
        "salt_trimmed_values_total",
        &["function"],
        "Values that the master replaced by VALUE_TRIMMED, of events that say their function.",
    ),
    ByMinion::Never,
    1,
);
/// Updates that went to `other`.
pub(crate) const FOLDED: Declared = declared(
    counter(
        "saltern_estate_folded_total",
        &["metric"],
        "Updates of the metric that went into its series `other`, because it had estate.max_series or a value was too long.",
    ),
    ByMinion::Never,
    0,
);

/// All of them, in the order of the docs.
pub const ESTATE: &[Declared] = &[
    NEW_JOBS,
    EXPECTED,
    RESPONSES_BY_FUNCTION,
    SCHEDULED,
    RESPONSES,
    FUNCTION_STATUS,
    JOB_DURATION,
    HEARTBEAT,
    LAST_RESPONSE,
    MINIONS,
    SILENT,
    PRESENT,
    PRESENCE_CHANGES,
    EVENTS,
    STATES,
    STATE_SECONDS,
    AUTH,
    KEYS,
    STARTS,
    BEACONS,
    WAITING,
    MISSING,
    UNTRACKED,
    TRIMMED,
    FOLDED,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::MetricKind;

    #[test]
    fn names_follow_the_recommendations() {
        let mut names = std::collections::HashSet::new();
        for Declared { metric, open, .. } in ESTATE {
            assert!(names.insert(metric.name), "{} stands twice", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert!(*open <= metric.labels.len(), "{}", metric.name);
            // salt-exporter's name for a gauge.
            let is_counter = metric.kind == MetricKind::Counter || *metric == MINIONS.metric;
            assert_eq!(metric.name.ends_with("_total"), is_counter, "{}", metric.name);
        }
    }
}
