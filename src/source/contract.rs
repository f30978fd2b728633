//! The contract of a source.
//!
//! `docs/sources/KIND.md` is made of the head of a kind's file and of its `Config`, as for sinks
//! ([`crate::sink::contract`]). The sections `# Example`, `# Guarantee` and `# Failures` have to be
//! there.

use std::error::Error;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::client::stream::Stream;
use crate::source::frame_sender::FrameSender;
use crate::units::ByteSize;

/// The longest frame or message that a source takes unless it is told.
pub(crate) fn default_max_frame() -> ByteSize {
    ByteSize::mib(64)
}

/// A place that events come from.
pub(crate) trait Source: Send + Sync + 'static {
    /// The kind's name in the configuration.
    const NAME: &'static str;
    /// The input that it reads, in one line.
    const ABOUT: &'static str;
    /// It may bring the same event twice, so that repeats are dropped also where it is the only
    /// source.
    const REPEATS: bool = false;
    /// It ends when there is no more to read. After an error it then begins anew only if it had not
    /// begun, since it would bring everything again.
    const ENDS: bool = false;
    /// The source's own part of the configuration; its doc comments are the reference manual.
    type Config: DeserializeOwned + JsonSchema + Send + Sync + 'static;

    /// Reads until there is no more to read or `stop` is cancelled. A source that can lose its
    /// connection makes it again by itself; after an error it is run again.
    fn run(
        config: &Self::Config,
        sender: FrameSender,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<(), SourceError>>;

    /// The use that the source makes of the job cache.
    fn job_cache(_config: &Self::Config) -> JobCache {
        JobCache::NotUsed
    }

    /// The socket file of a Salt master's bus, if it reads one.
    fn bus_socket(_config: &Self::Config) -> Option<PathBuf> {
        None
    }

    /// Tells it of the buses that are read beside it. Returns true if that makes a difference to
    /// it.
    fn beside(_config: &mut Self::Config, _buses: &[PathBuf]) -> bool {
        false
    }

    /// Event streams that it reads and that a sink could write.
    fn reads(_config: &Self::Config) -> Vec<Stream> {
        Vec::new()
    }

    /// Connects once and lets go again.
    fn probe(config: &Self::Config) -> impl Future<Output = Result<(), SourceError>>;
}

/// The use that a source makes of the job cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobCache {
    /// Nothing.
    NotUsed,
    /// Some of its work needs it: it is on unless it is turned off.
    Used,
    /// It cannot work without it: it may not be turned off.
    Needed,
}

/// The reason why a source cannot be read: the action, its object, and the cause.
#[derive(Debug, Error)]
#[error("{doing}")]
pub(crate) struct SourceError {
    doing: String,
    #[source]
    cause: Box<dyn Error + Send + Sync>,
}

impl SourceError {
    /// An error while `doing`.
    pub(crate) fn new(
        doing: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        SourceError { doing: doing.into(), cause: cause.into() }
    }
}
