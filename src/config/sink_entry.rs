//! A sink in the configuration.

use std::sync::{Arc, LazyLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::entry::{kind_of, noted, read_kind, tell_keys_below};
use super::null::NULL_IN_SINK;
use super::schema_of_type::keys_of;
use crate::delivery::retry::RetryConfig;
use crate::event::batch::{BatchConfig, BatchLimits};
use crate::event::filter::{Filter, FilterConfig};
use crate::event::redact::{RuleConfig, Rules};
use crate::jobs::store::JobStore;
use crate::queue::config::SpillConfig;
use crate::sink::contract::Defaults;
use crate::sink::registry::{self, Driver, SinkKind};
use crate::units::ByteSize;
use crate::yaml::{Node, Place, Problem, Value};

/// A sink.
pub(crate) struct SinkConfig {
    /// Its name.
    pub(crate) name: String,
    /// Its kind.
    pub(crate) kind: &'static SinkKind,
    /// The place of its kind in the file.
    pub(crate) place: Place,
    /// Its kind's own settings, ready to run.
    pub(crate) driver: Arc<dyn Driver>,
    /// The events that it takes.
    pub(crate) filter: Filter,
    /// The rules that hide values of these events.
    pub redact: Arc<Rules>,
    /// The limits at which its batches are due.
    pub(crate) limits: BatchLimits,
    /// Its retries of writes that failed.
    pub(crate) retry: RetryConfig,
    /// The place and the size of its queue.
    pub(crate) spill: SpillConfig,
    /// The number of its writers; at least one.
    pub(crate) writers: usize,
    /// Events a second at the most.
    pub(crate) rate_limit: Option<u32>,
    /// Differs from that of another configuration if anything of the sink does.
    pub(crate) fingerprint: u128,
}

impl SinkConfig {
    /// Reads jobs back from the sink's store, if it can.
    pub(crate) fn job_store(&self) -> Option<Arc<dyn JobStore>> {
        self.driver.job_store()
    }
}

/// The settings that every sink takes besides its kind.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SinkOptions {
    /// The events that the sink takes. A given filter replaces the kind's as a whole. Default: all,
    /// or those that the kind is for.
    #[schemars(with = "FilterConfig")]
    filter: Option<FilterConfig>,
    /// Rules that hide values of the events that the sink takes, besides the rules for all events.
    /// The filter sees the events before these rules. Default: nothing.
    redact: Vec<RuleConfig>,
    /// The size of batches, and the time that they wait to fill.
    batch: BatchConfig,
    /// Retries of writes that failed.
    retry: RetryConfig,
    /// The place and the size of the sink's queue.
    spill: SpillConfig,
    /// Writers that work side by side, 1 to 64, or as many as the kind can have. With more than
    /// one, order is kept within a batch only.
    writers: u64,
    /// Events a second at the most. Default: no limit, or the kind's own.
    rate_limit: Option<u32>,
}

impl Default for SinkOptions {
    fn default() -> Self {
        SinkOptions {
            filter: None,
            redact: Vec::new(),
            batch: BatchConfig::default(),
            retry: RetryConfig::default(),
            spill: SpillConfig::default(),
            writers: 1,
            rate_limit: None,
        }
    }
}

/// The keys that every entry takes besides its kind.
static KEYS: LazyLock<Vec<String>> = LazyLock::new(keys_of::<SinkOptions>);

pub(super) fn sink_of(name: &str, entry: &Node, problems: &mut Vec<Problem>) -> Option<SinkConfig> {
    let known: Vec<_> = registry::KINDS.iter().map(|kind| kind.name).collect();
    let (kind, node) = kind_of("sink", name, entry, &known, &KEYS, problems)?;
    let kind = SinkKind::named(kind)?;
    tell_keys_below(kind.name, entry, kind.schema, problems);
    let driver = read_kind(kind.name, node, &KEYS, problems, kind.read);
    let options = entry.without(|key| key == kind.name || !KEYS.iter().any(|known| known == key));
    let options = options.with_none_said(&NULL_IN_SINK);
    let fingerprint = entry.fingerprint();
    let written = entry.pairs().unwrap_or_default().iter().find(|(key, _)| key.name == kind.name);
    let place = written.map_or(entry.place, |(key, _)| key.place);
    Some(SinkConfig { place, fingerprint, ..configured(name, kind, driver, options, problems)? })
}

/// The sink by which the bus feeds the job cache; nothing of it can be configured.
pub(super) fn job_cache(place: Place, problems: &mut Vec<Problem>) -> Option<SinkConfig> {
    let nothing = Node { place, value: Value::Map(Vec::new()) };
    let driver = (registry::JOB_CACHE.read)(&nothing, problems);
    configured(registry::JOB_CACHE.name, &registry::JOB_CACHE, driver, nothing, problems)
}

/// A sink with these options, and the kind's own where they are silent.
fn configured(
    name: &str,
    kind: &'static SinkKind,
    driver: Option<Arc<dyn Driver>>,
    written: Node,
    problems: &mut Vec<Problem>,
) -> Option<SinkConfig> {
    let defaults = &kind.defaults;
    let options: SinkOptions = with_defaults(&written, defaults).read_noting(problems)?;
    let filter = options.filter.unwrap_or_else(defaults.filter);
    let filter = Filter::new(&filter).map_err(|bad| {
        let index = bad.index.to_string();
        Problem::at(written.place_of(&["filter", bad.key, &index]), bad.message)
    });
    let filter = noted(filter, problems);
    let redact = Rules::new(&options.redact, &written, problems);
    let max_writers = driver.as_ref().map_or(defaults.max_writers, |driver| driver.max_writers());
    let writers = match options.writers {
        n if (1..=u64::from(max_writers)).contains(&n) => usize::try_from(n).ok(),
        other => {
            let message = match max_writers {
                1 => format!("{other} writers are not possible; this sink has one"),
                most => format!("{other} writers are not possible; write 1 to {most}"),
            };
            problems.push(Problem::at(written.place_of(&["writers"]), message));
            None
        }
    };
    Some(SinkConfig {
        name: name.to_owned(),
        kind,
        place: written.place,
        driver: driver?,
        filter: filter?,
        redact: Arc::new(redact),
        limits: defaults.batch.or(options.batch),
        retry: options.retry,
        spill: options.spill,
        writers: writers?,
        rate_limit: options.rate_limit,
        fingerprint: 0,
    })
}

/// The options, with the kind's defaults for missing ones.
fn with_defaults(written: &Node, defaults: &Defaults) -> Node {
    let own = OwnDefaults {
        retry: &defaults.retry,
        spill: &defaults.spill,
        rate_limit: defaults.rate_limit,
    };
    Node::of(&own).map_or_else(|| written.clone(), |own| written.over(&own))
}

#[derive(Serialize)]
struct OwnDefaults<'a> {
    retry: &'a RetryConfig,
    spill: &'a SpillConfig,
    rate_limit: Option<u32>,
}

/// Cuts what the sinks' queues may take of memory down to `limit` together, in proportion.
pub(super) fn share_memory(limit: ByteSize, sinks: &mut [SinkConfig]) {
    let wanted: u64 = sinks.iter().map(|sink| sink.spill.memory_bound() as u64).sum();
    if wanted <= limit.0 {
        return;
    }
    for sink in sinks {
        let bound = u128::from(sink.spill.memory_bound() as u64);
        let part = bound * u128::from(limit.0) / u128::from(wanted);
        sink.spill.memory = Some(ByteSize(u64::try_from(part).unwrap_or(limit.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Span;

    #[test]
    fn an_entry_that_is_silent_has_the_defaults_of_its_kind() {
        let text = |retry: RetryConfig, spill: SpillConfig, rate: Option<u32>| {
            format!("{retry:?} {spill:?} {rate:?}")
        };
        let own = Defaults {
            retry: RetryConfig { give_up_after: Some(Span::seconds(90)), ..RetryConfig::STORE },
            spill: SpillConfig { max_age: Some(Span::seconds(3600)), ..SpillConfig::STORE },
            rate_limit: Some(7),
            ..registry::JOB_CACHE.defaults
        };
        let all = registry::KINDS.iter().map(|kind| kind.defaults);
        for defaults in all.chain([own]) {
            let nothing = Node::parse("{}").unwrap();
            let read: SinkOptions = with_defaults(&nothing, &defaults).read().unwrap();
            let expected = text(defaults.retry, defaults.spill, defaults.rate_limit);
            assert_eq!(text(read.retry, read.spill, read.rate_limit), expected);
        }
        let written = "{retry: {give_up_after: null, max: 9s}, spill: , rate_limit: null}";
        let written = Node::parse(written).unwrap();
        let read: SinkOptions = with_defaults(&written, &own).read().unwrap();
        let retry = RetryConfig { give_up_after: None, max: Span::seconds(9), ..own.retry };
        assert_eq!(text(read.retry, read.spill, read.rate_limit), text(retry, own.spill, None));
    }
}
