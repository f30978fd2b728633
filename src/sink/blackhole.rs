//! `blackhole`: takes every event and keeps none. For measuring, and for trying filters.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   bus: {salt_bus: {}}
//! sinks:
//!   nothing:
//!     blackhole: {}
//!     filter: {kinds: [beacon]}
//! ```
//!
//! # Stored
//!
//! Nothing. Each event counts as stored, in `saltern_sink_events_total`.
//!
//! # Failures
//!
//! * nothing can fail → each batch counts as stored → `saltern_sink_up` is 1

use schemars::JsonSchema;
use serde::Deserialize;

use crate::event::batch::{Batch, BatchLimits};
use crate::sink::contract::{ConnectError, Context, Defaults, Once, Sink, WriteError};
use crate::units::{ByteSize, Span};

/// Discards every event.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {}

pub(super) struct Blackhole;

impl Sink for Blackhole {
    const NAME: &'static str = "blackhole";
    const ABOUT: &'static str = "takes every event and keeps none";
    const DEFAULTS: Defaults =
        Defaults::store(BatchLimits::new(10_000, ByteSize::mib(8), Span::millis(100)));
    const ONCE: Once = Once::NothingKept;
    const STREAMS: bool = true;
    type Config = Config;
    type Prepared = ();

    async fn connect(_config: &Config, _context: &Context) -> Result<Self, ConnectError> {
        Ok(Blackhole)
    }

    async fn write(&mut self, _batch: &Batch, _: Option<()>) -> Result<(), WriteError> {
        Ok(())
    }

    async fn close(self) -> Result<(), WriteError> {
        Ok(())
    }
}
