//! `blackhole`: takes every event and keeps none. For measuring, and for trying filters.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{ConnectError, Context, Sink, SinkError};
use crate::event::batch::{Batch, BatchLimits};
use crate::units::ByteSize;

/// Discards every event.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {}

pub(super) struct Blackhole;

impl Sink for Blackhole {
    const NAME: &'static str = "blackhole";
    const ABOUT: &'static str = "takes every event and keeps none";
    const BATCH: BatchLimits = BatchLimits::new(10_000, ByteSize::mib(8), 100);
    const STREAMS: bool = true;
    type Config = Config;

    async fn connect(_config: &Config, _context: &Context) -> Result<Self, ConnectError> {
        Ok(Blackhole)
    }

    async fn write(&mut self, _batch: &Batch) -> Result<(), SinkError> {
        Ok(())
    }

    async fn close(self) -> Result<(), SinkError> {
        Ok(())
    }
}
