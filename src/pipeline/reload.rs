//! The changes that a new configuration makes in a running pipeline.
//!
//! Sources and sinks are told apart by name and compared by fingerprint, a hash of everything that
//! is configured for them, secrets included. One with the same name and fingerprint in both is not
//! touched at all: its connection, queue and metrics stay. Only a source that fails is tried again
//! at once. [`crate::pipeline::Pipeline::reload`] carries a plan out.

use thiserror::Error;

/// The reason why a new configuration is not in force, or only in part.
#[derive(Debug, Error)]
pub(crate) enum ReloadError {
    /// Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// Some of it could not be done; the rest is in force.
    #[error("{0}")]
    Failed(String),
}

/// The plan for the sources or the sinks, by name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The same in both.
    pub(crate) kept: Vec<String>,
    /// The kept ones that fail and are tried again at once.
    pub(crate) retried: Vec<String>,
    /// Only in the new one.
    pub(crate) added: Vec<String>,
    /// Different in the new one.
    pub(crate) changed: Vec<String>,
    /// Only in the old one.
    pub(crate) removed: Vec<String>,
}

impl Plan {
    /// The plan from the running ones to the wanted ones, both as names and fingerprints.
    pub(crate) fn new(running: &[(&str, u128)], wanted: &[(&str, u128)]) -> Self {
        let mut plan = Plan::default();
        for (name, fingerprint) in wanted {
            let names = match running.iter().find(|(running, _)| running == name) {
                None => &mut plan.added,
                Some((_, running)) if running == fingerprint => &mut plan.kept,
                Some(_) => &mut plan.changed,
            };
            names.push((*name).to_owned());
        }
        let gone = running.iter().filter(|(name, _)| wanted.iter().all(|(other, _)| other != name));
        plan.removed.extend(gone.map(|(name, _)| (*name).to_owned()));
        plan
    }

    /// Something new is to be started.
    pub(crate) fn starts(&self) -> bool {
        !self.added.is_empty() || !self.changed.is_empty()
    }
}

/// The changes that a reload has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reloaded {
    /// With the sources.
    pub(crate) sources: Plan,
    /// With the sinks.
    pub(crate) sinks: Plan,
}

impl Reloaded {
    /// The names in one part of both plans, for a log line.
    pub(crate) fn names(&self, part: impl Fn(&Plan) -> &Vec<String>) -> String {
        let sources = part(&self.sources).iter().map(|name| format!("source {name}"));
        let sinks = part(&self.sinks).iter().map(|name| format!("sink {name}"));
        sources.chain(sinks).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use crate::pipeline::reload::*;

    #[test]
    fn a_plan_goes_by_name_and_fingerprint() {
        let running = [("a", 1), ("b", 2), ("c", 3)];
        let wanted = [("d", 1), ("c", 3), ("b", 4)];
        let plan = Plan::new(&running, &wanted);
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let expected = Plan {
            kept: names(&["c"]),
            retried: vec![],
            added: names(&["d"]),
            changed: names(&["b"]),
            removed: names(&["a"]),
        };
        assert_eq!(plan, expected);
        assert!(!Plan::new(&running, &running).starts());
        let reloaded = Reloaded { sources: Plan::default(), sinks: expected };
        assert_eq!(reloaded.names(|plan| &plan.added), "sink d");
    }
}
