//! Damage: events that the job cache does not take, and values in its file that it leaves out of
//! its answers. Both are counted, and the first of each is logged.

use std::path::PathBuf;
use std::sync::Once;

use rusqlite::Row;
use rusqlite::types::ValueRef;
use tracing::{error, warn};

use super::load::{Load, NotALoad};
use crate::observe::metrics::{JOB_CACHE_LEFT_OUT, Tally};

pub(super) struct Damage {
    path: PathBuf,
    events: Tally,
    values: Tally,
    first_event: Once,
    first_value: Once,
}

impl Damage {
    /// The damage of the job cache at this path: none so far.
    pub(super) fn new(path: PathBuf) -> Self {
        Damage {
            path,
            events: Tally::new(JOB_CACHE_LEFT_OUT, &["event"]),
            values: Tally::new(JOB_CACHE_LEFT_OUT, &["value"]),
            first_event: Once::new(),
            first_value: Once::new(),
        }
    }

    /// An event with this tag is not taken.
    pub(super) fn event(&self, tag: &str, why: NotALoad) {
        self.events.add(1);
        let metric = JOB_CACHE_LEFT_OUT.name;
        self.first_event.call_once(|| {
            let reason = why.to_string();
            warn!(
                tag,
                reason, "an event is left out of the job cache; more are counted in {metric}"
            );
        });
    }

    /// The load in a column; `None` if there is none or it is damaged.
    pub(super) fn load<'a>(&self, row: &'a Row<'_>, column: usize) -> Option<Load<'a>> {
        match row.get_ref(column).ok()? {
            ValueRef::Null => None,
            ValueRef::Blob(bytes) => Load::of(bytes).map_err(|why| self.value(&why)).ok(),
            other => {
                self.value(&format_args!("a load is {}", other.data_type()));
                None
            }
        }
    }

    /// The text in a column; `None` if there is none or it is damaged.
    pub(super) fn text<'a>(&self, row: &'a Row<'_>, column: usize) -> Option<&'a str> {
        let text = row.get_ref(column).ok()?.as_str_or_null();
        text.map_err(|why| self.value(&why)).ok()?
    }

    /// The whole number in a column; 0 if it is damaged.
    pub(super) fn number(&self, row: &Row<'_>, column: usize) -> i64 {
        row.get(column).map_err(|why| self.value(&why)).unwrap_or_default()
    }

    /// The number of values that were left out of answers, again at each answer.
    #[cfg(test)]
    pub(super) fn values(&self) -> u64 {
        self.values.get()
    }

    /// The number of events that were not taken.
    #[cfg(test)]
    pub(super) fn events(&self) -> u64 {
        self.events.get()
    }

    fn value(&self, why: &dyn std::fmt::Display) {
        self.values.add(1);
        let (job_cache, metric) = (self.path.display(), JOB_CACHE_LEFT_OUT.name);
        self.first_value.call_once(|| {
            let reason = why.to_string();
            error!(
                %job_cache,
                reason,
                "a damaged value is left out of answers; more are counted in {metric}"
            );
        });
    }
}
