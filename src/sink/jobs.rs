//! `job-cache`: the job cache, as far as the bus feeds it.
//!
//! Not for the configuration's `sinks`: it is there when `jobs` is enabled, under this name, with
//! queue, spill and retry like any other sink. What it stores is in [`crate::jobs`].

use schemars::JsonSchema;
use serde::Deserialize;

use super::{ConnectError, Context, Sink, SinkError};
use crate::event::batch::{Batch, BatchLimits};
use crate::jobs::{Jobs, JobsError};
use crate::sync::blocking;
use crate::units::ByteSize;

/// Nothing can be set here: see the section `jobs`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {}

pub(super) struct JobCache {
    jobs: Jobs,
}

impl Sink for JobCache {
    const NAME: &'static str = "job-cache";
    const ABOUT: &'static str = "the job cache";
    const BATCH: BatchLimits = BatchLimits::new(1000, ByteSize::mib(4), 200);
    const STREAMS: bool = true;
    type Config = Config;

    async fn connect(_config: &Config, context: &Context) -> Result<Self, ConnectError> {
        Ok(JobCache { jobs: context.jobs.clone() })
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let events = batch.entries();
        match blocking(|| self.jobs.record(events)) {
            // It was turned off, and the sink is about to go.
            Ok(()) | Err(JobsError::Off) => Ok(()),
            Err(error) => Err(SinkError::retry("storing job events", error)),
        }
    }

    async fn close(self) -> Result<(), SinkError> {
        Ok(())
    }
}
