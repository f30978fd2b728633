//! What a sink is: one kind of store, one file.
//!
//! A sink knows how to connect to its store and how to write a batch to it. Queueing, batching,
//! retrying, splitting, filtering and metrics are the engine's ([`crate::delivery`]). To add a
//! sink, write the file, name it in `mod` below and add its line to [`KINDS`].

use std::any::Any;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::sync::watch;

use crate::delivery::{self, Writer};
use crate::error::chain;
use crate::event::batch::{Batch, BatchLimits};
use crate::jobs::Jobs;
use crate::yaml::{Node, Problem};

mod blackhole;
pub(crate) mod clickhouse;
pub mod encoding;
mod jobs;
#[cfg(feature = "kafka")]
mod kafka;
mod local;
mod rawfile_json;
mod sqlite3;

/// The job cache's sink, which is not configured as the others are.
pub(crate) static JOBS: SinkKind = SinkKind::of::<jobs::JobCache>();

/// Every kind of sink, in the order of `saltern sinks`.
pub(crate) static KINDS: &[SinkKind] = &[
    SinkKind::of::<rawfile_json::RawfileJson>(),
    SinkKind::of::<sqlite3::Sqlite3>(),
    SinkKind::of::<clickhouse::ClickHouse>(),
    #[cfg(feature = "kafka")]
    SinkKind::of::<kafka::Kafka>(),
    SinkKind::of::<local::Local>(),
    SinkKind::of::<blackhole::Blackhole>(),
];

/// A store that takes batches of events.
///
/// One value is one connection of one writer; it is never called twice at the same time. Work that
/// blocks (files, embedded databases) goes inside [`blocking`].
pub(crate) trait Sink: Sized + Send + 'static {
    /// The kind's name in the configuration.
    const NAME: &'static str;
    /// What it writes and where, in one line.
    const ABOUT: &'static str;
    /// Batches as this store likes them.
    const BATCH: BatchLimits;
    /// Whether it never holds the JSON of a long event whole, so that it waits for no turn
    /// ([`crate::event::long_json`]).
    const STREAMS: bool = false;
    /// The store keeps, of two events that contradict each other, the one with more
    /// [`Authority`](crate::event::Authority). Such a sink has an event once more when the master
    /// vouches for it only then, and has to recognise it by its id.
    const RANKS: bool = false;
    /// The sink's own part of the configuration; its doc comments are the reference manual.
    type Config: DeserializeOwned + JsonSchema + Send + Sync + 'static;

    /// Connects to the store and prepares it. Tried again, with back-off, until it succeeds.
    fn connect(
        config: &Self::Config,
        context: &Context,
    ) -> impl Future<Output = Result<Self, ConnectError>> + Send;

    /// Writes a batch; returns when every event of it is settled. After an error the same batch
    /// comes again, so what was stored of it should be recognised, by [`Batch::id`] or the events'
    /// own ids, where the store can.
    fn write(&mut self, batch: &Batch) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Flushes what is buffered below and lets go of the store.
    fn close(self) -> impl Future<Output = Result<(), SinkError>> + Send;
}

/// What a sink is told about where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// The sink's name in the configuration.
    pub(crate) name: String,
    /// Which of the sink's writers this is, from 0.
    pub(crate) writer: usize,
    /// The `master_id` of the whole.
    pub(crate) master_id: String,
    /// The job cache.
    pub(crate) jobs: Jobs,
    /// Changes when files are to be opened anew (SIGHUP).
    pub(crate) reopen: watch::Receiver<u64>,
}

/// The cause of a [`SinkError`].
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// Why a connect or a write did not succeed, and so what happens next.
#[derive(Debug, Error)]
pub enum SinkError {
    /// Nothing is wrong with the batch; it comes again later.
    #[error("{doing}")]
    Retry {
        /// The operation, in words: `appending to /var/log/events`.
        doing: String,
        /// What went wrong.
        #[source]
        cause: Cause,
        /// How long the store asked us to wait.
        after: Option<Duration>,
    },
    /// As `Retry`, over a fresh connection.
    #[error("{doing}")]
    Reconnect {
        /// The operation, in words.
        doing: String,
        /// What went wrong.
        #[source]
        cause: Cause,
    },
    /// The store will never accept some of the events.
    #[error("{doing}")]
    Reject {
        /// The operation, in words.
        doing: String,
        /// What went wrong.
        #[source]
        cause: Cause,
        /// Which events.
        events: Rejected,
    },
    /// The configuration is wrong: trying again is of no use before it changes.
    #[error("{doing}")]
    Fatal {
        /// The operation, in words.
        doing: String,
        /// What went wrong.
        #[source]
        cause: Cause,
    },
}

/// Why a connect did not succeed. It was handed no events, so there are none that it could refuse.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    /// It is tried again later.
    #[error("{doing}")]
    Retry {
        /// The operation, in words.
        doing: String,
        /// What went wrong.
        #[source]
        cause: Cause,
        /// How long the store asked us to wait.
        after: Option<Duration>,
    },
    /// The configuration is wrong: trying again is of no use before it changes.
    #[error("{doing}")]
    Fatal {
        /// The operation, in words.
        doing: String,
        /// What went wrong.
        #[source]
        cause: Cause,
    },
}

/// Connecting may run statements whose refusal would mean something else in a write.
impl From<SinkError> for ConnectError {
    fn from(error: SinkError) -> Self {
        match error {
            SinkError::Retry { doing, cause, after } => ConnectError::Retry { doing, cause, after },
            SinkError::Reconnect { doing, cause } | SinkError::Reject { doing, cause, .. } => {
                ConnectError::Retry { doing, cause, after: None }
            }
            SinkError::Fatal { doing, cause } => ConnectError::Fatal { doing, cause },
        }
    }
}

impl From<ConnectError> for SinkError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Retry { doing, cause, after } => SinkError::Retry { doing, cause, after },
            ConnectError::Fatal { doing, cause } => SinkError::Fatal { doing, cause },
        }
    }
}

/// Which events of a batch a store refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejected {
    /// Some, and the store does not say which; nothing of the batch is stored. The engine splits
    /// the batch until the bad events are alone.
    Unknown,
    /// Those at these places of the batch, from 0; all others are stored.
    These(Vec<usize>),
}

impl SinkError {
    /// A [`SinkError::Retry`] without a wish of the store.
    pub(crate) fn retry(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
        SinkError::Retry { doing: doing.into(), cause: cause.into(), after: None }
    }

    /// A [`SinkError::Reconnect`].
    pub(crate) fn reconnect(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
        SinkError::Reconnect { doing: doing.into(), cause: cause.into() }
    }

    /// A [`SinkError::Fatal`].
    pub(crate) fn fatal(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
        SinkError::Fatal { doing: doing.into(), cause: cause.into() }
    }

    /// The same as a [`SinkError::Reconnect`] if it is a [`SinkError::Retry`].
    pub(crate) fn over_a_new_connection(self) -> Self {
        match self {
            SinkError::Retry { doing, cause, .. } => SinkError::Reconnect { doing, cause },
            other => other,
        }
    }

    /// The variant's name.
    #[cfg(test)]
    pub(crate) fn label(&self) -> &'static str {
        match self {
            SinkError::Retry { .. } => "retry",
            SinkError::Reconnect { .. } => "reconnect",
            SinkError::Reject { .. } => "reject",
            SinkError::Fatal { .. } => "fatal",
        }
    }

    /// The operation and every cause behind it, on one line.
    pub(crate) fn chain(&self) -> String {
        chain(self)
    }
}

/// Reads a kind's own part of the configuration, noting what is wrong with it.
pub(crate) type Read = fn(&Node, &mut Vec<Problem>) -> Option<Arc<dyn Driver>>;

/// A kind of sink, with its type erased.
pub(crate) struct SinkKind {
    /// The name in the configuration.
    pub(crate) name: &'static str,
    /// One line for people.
    pub(crate) about: &'static str,
    /// Batches as the kind likes them.
    pub(crate) batch: BatchLimits,
    /// See [`Sink::RANKS`].
    pub(crate) ranks: bool,
    /// The JSON Schema of its configuration.
    pub(crate) schema: fn(&mut SchemaGenerator) -> Schema,
    /// Reads its configuration and notes every problem in it.
    pub(crate) read: Read,
}

impl SinkKind {
    const fn of<S: Sink>() -> Self {
        SinkKind {
            name: S::NAME,
            about: S::ABOUT,
            batch: S::BATCH,
            ranks: S::RANKS,
            schema: |generator| generator.subschema_for::<S::Config>(),
            read: |node, problems| Some(Arc::new(Configured::<S>(node.read_noting(problems)?))),
        }
    }

    /// The kind of this name.
    pub(crate) fn named(name: &str) -> Option<&'static SinkKind> {
        KINDS.iter().find(|kind| kind.name == name)
    }
}

/// A future of a [`Driver`].
pub(crate) type Driving<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A sink's configuration together with the code that it is for.
pub(crate) trait Driver: Send + Sync {
    /// Delivers what `writer` receives until there is no more or it is stopped.
    fn drive(self: Arc<Self>, writer: Writer) -> Driving<'static, ()>;

    /// The kind's own configuration, for a command that is about one kind.
    fn config(&self) -> &(dyn Any + Send + Sync);

    /// Connects once and lets go again.
    fn probe<'a>(&'a self, context: &'a Context) -> Driving<'a, Result<(), SinkError>>;
}

struct Configured<S: Sink>(S::Config);

impl<S: Sink> Driver for Configured<S> {
    fn drive(self: Arc<Self>, writer: Writer) -> Driving<'static, ()> {
        Box::pin(async move { delivery::drive::<S>(&self.0, writer).await })
    }

    fn config(&self) -> &(dyn Any + Send + Sync) {
        &self.0
    }

    fn probe<'a>(&'a self, context: &'a Context) -> Driving<'a, Result<(), SinkError>> {
        Box::pin(async move { S::connect(&self.0, context).await?.close().await })
    }
}
