//! `job-cache`: the job cache, as far as the bus feeds it.
//!
//! It does not belong under the configuration's `sinks`: it is there when `jobs` is enabled, under
//! this name, with queue, spill and retry like any other sink. [`crate::jobs`] has its contents.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::event::batch::{Batch, BatchLimits};
use crate::event::filter::FilterConfig;
use crate::jobs::{Jobs, JobsError, TAGS};
use crate::sink::contract::{ConnectError, Context, Defaults, Once, Sink, WriteError};
use crate::sync::blocking;
use crate::units::{ByteSize, Span};

/// Nothing can be set here: see the section `jobs`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {}

pub(super) struct JobCache {
    jobs: Jobs,
}

const BATCH: BatchLimits = BatchLimits::new(1000, ByteSize::mib(4), Span::millis(200));

fn of_jobs() -> FilterConfig {
    FilterConfig { tags: TAGS.map(str::to_owned).to_vec(), ..FilterConfig::default() }
}

impl Sink for JobCache {
    const NAME: &'static str = "job-cache";
    const ABOUT: &'static str = "the job cache";
    const DEFAULTS: Defaults =
        Defaults { filter: of_jobs, max_writers: 1, ..Defaults::store(BATCH) };
    const ONCE: Once = Once::ByEvent;
    const STREAMS: bool = true;
    type Config = Config;
    type Prepared = ();

    async fn connect(_config: &Config, context: &Context) -> Result<Self, ConnectError> {
        match &context.jobs {
            Some(jobs) => Ok(JobCache { jobs: jobs.clone() }),
            None => {
                let cause = "it was not handed the job cache; this is a bug in saltern".into();
                let doing = "opening the job cache".to_owned();
                Err(ConnectError::Fatal { doing, cause })
            }
        }
    }

    async fn write(&mut self, batch: &Batch, _: Option<()>) -> Result<(), WriteError> {
        let events = batch.entries();
        match blocking(|| self.jobs.record(events)) {
            // The job cache was turned off, and the sink is about to end.
            Ok(()) | Err(JobsError::Off) => Ok(()),
            Err(error) => Err(WriteError::retry("storing job events", error)),
        }
    }
}
