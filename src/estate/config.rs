//! The configuration of the metrics of the Salt estate.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::units::{ByteSize, Span};

/// Metrics of the Salt estate, from the events: jobs, returns, states, minions, keys.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EstateConfig {
    /// With `true` there are series for single minions: the label `minion` of
    /// `salt_responses_total`, and all of `salt_function_status`, `salt_health_last_heartbeat` and
    /// `salt_responses_last_received_response`.
    pub minions: bool,
    /// With `true` `salt_function_responses_total`, `salt_scheduled_job_return_total` and
    /// `salt_job_duration_seconds` have the label `minion` too: a series for each function of each
    /// minion.
    pub minion_label: bool,
    /// The most series of each metric. Further ones go into one series whose labels are `other`.
    pub max_series: u64,
    /// Minions that are remembered at the most.
    pub max_minions: u64,
    /// The memory that events which wait to be counted may take. Events of a burst that do not fit
    /// are left out of the counts, and counted in `saltern_estate_missed_events_total`.
    pub memory: ByteSize,
    /// Leaves jobs with `test=True` out, by their arguments.
    pub ignore_test: bool,
    /// Leaves jobs with `mock=True` out, by their arguments.
    pub ignore_mock: bool,
    /// Functions with a `salt_function_status`; `*` for all.
    pub status_functions: Vec<String>,
    /// States with a `salt_function_status`; `*` for all.
    pub status_states: Vec<String>,
    /// The time that the returns of a job may take before they are missing.
    pub returns_within: Span,
    /// The time for which a minion may be silent before it counts as such.
    pub silent_after: Span,
}

impl Default for EstateConfig {
    fn default() -> Self {
        EstateConfig {
            minions: false,
            minion_label: false,
            max_series: 5000,
            max_minions: 50_000,
            memory: ByteSize::mib(384),
            ignore_test: false,
            ignore_mock: false,
            status_functions: vec!["state.highstate".to_owned()],
            status_states: vec!["highstate".to_owned()],
            returns_within: Span::seconds(15 * 60),
            silent_after: Span::seconds(3600),
        }
    }
}

impl EstateConfig {
    pub(super) fn series_bound(&self) -> usize {
        usize::try_from(self.max_series).unwrap_or(usize::MAX)
    }

    pub(super) fn minions_bound(&self) -> usize {
        usize::try_from(self.max_minions).unwrap_or(usize::MAX)
    }
}
