//! The contract between one kind of store and the engine.
//!
//! A sink knows how to connect to its store and how to write a batch to it. Queueing, batching,
//! retrying, splitting, filtering and metrics are the engine's ([`crate::delivery`]). A kind is one
//! file beside this one: its `Config`, whose doc comments are the reference manual, and its
//! `impl Sink`. To add it, declare the file in `sink/mod.rs` and name it in
//! [`KINDS`](super::registry::KINDS).
//!
//! `docs/sinks/KIND.md` is made of the head of that file, its `//!` comment, and of the comments of
//! its types and constants. The head begins with a paragraph on the kind. Its sections, in any
//! order:
//!
//! * `# Example`: a whole configuration in a block `yaml`. A test reads it.
//! * `# Stored`: the form in which events are stored.
//! * `# Failures`: a list of `* WHAT HAPPENS → WHAT SALTERN DOES → WHAT AN OPERATOR SEES`.
//! * `# Guarantee`, if there is more to say than [`Sink::ONCE`] does. Its first sentence stands in
//!   the table of all kinds.
//! * `# Differences` from Salt's returner, and `# Moving`, besides what [`Sink::SALT`] says.
//! * Any other, which stands behind `# Stored`; `# Inside` is left out, for readers of the code.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::stream::Stream;
use crate::delivery::retry::RetryConfig;
use crate::error::chain;
use crate::event::batch::{Batch, BatchLimits};
use crate::event::filter::FilterConfig;
use crate::jobs::Jobs;
use crate::jobs::store::JobStore;
use crate::queue::config::SpillConfig;

/// A store that takes batches of events.
///
/// One value is one connection of one writer; it is never called twice at the same time. Work that
/// blocks (files, embedded databases) goes inside [`crate::sync::blocking`].
pub(crate) trait Sink: Sized + Send + 'static {
    /// The kind's name in the configuration.
    const NAME: &'static str;
    /// The store and its contents, in one line.
    const ABOUT: &'static str;
    /// The defaults of this store for keys that the configuration leaves out.
    const DEFAULTS: Defaults;
    /// The fate of an event that is written twice.
    const ONCE: Once;
    /// The returner of Salt's that this kind stands for.
    const SALT: Option<SaltReturner> = None;
    /// It never holds the JSON of a long event whole, so it waits for no turn
    /// ([`crate::event::long_json`]).
    const STREAMS: bool = false;
    /// The store keeps, of two events that contradict each other, the one with more
    /// [`Authority`](crate::event::Authority). Such a sink gets an event once more if the master
    /// vouches for it only later, and has to recognise it by its id.
    const RANKS: bool = false;
    /// The store keeps jobs, so the sink gets the master's own calls about them
    /// ([`crate::event::job_load`]).
    const KEEPS_JOBS: bool = false;
    /// The sink's own part of the configuration; its doc comments are the reference manual.
    type Config: DeserializeOwned + JsonSchema + Send + Sync + 'static;
    /// The form of a batch that is made ahead ([`Sink::preparer`]); `()` if none is made.
    type Prepared: Send + 'static;

    /// Connects to the store and prepares it. Tried again, with back-off, until it succeeds.
    fn connect(
        config: &Self::Config,
        context: &Context,
    ) -> impl Future<Output = Result<Self, ConnectError>> + Send;

    /// Writes a batch; returns when every event of it is settled. After an error the same batch
    /// comes again, so the store should recognise events that it has, by [`Batch::id`] or by their
    /// own ids, if it can. `prepared` is the batch's form if it was made ahead; else the write
    /// makes it.
    fn write(
        &mut self,
        batch: &Batch,
        prepared: Option<Self::Prepared>,
    ) -> impl Future<Output = Result<(), WriteError>> + Send;

    /// The work that makes the form of the next batch while one is being written: the part of a
    /// write that needs the processor and no answer. It is asked for before each write, and has a
    /// thread to itself. It must not wait for the store: no timeout would end that. `None` for a
    /// kind, or for now: nothing is made ahead.
    ///
    /// A form may come to nothing: it is dropped if the batch before it fails. It may have begun to
    /// go out by then, if the store keeps order and a repeat does no harm; its batch comes again
    /// behind the one that failed.
    fn preparer(&self) -> Option<Preparer<Self::Prepared>> {
        None
    }

    /// The time to call [`Sink::tick`], for a sink that gathers events and sends them later. Such a
    /// sink has stored the gathered events, so that neither a stop nor a crash loses them.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Does the work that is [due](Sink::due), if any. After an error it is called again, with
    /// back-off; events are written meanwhile. There is no batch that an error could refuse, so
    /// [`WriteError::Reject`] and [`WriteError::Partly`] mean the same as [`WriteError::Retry`].
    fn tick(&mut self) -> impl Future<Output = Result<(), WriteError>> + Send {
        async { Ok(()) }
    }

    /// Flushes buffers and lets go of the store.
    fn close(self) -> impl Future<Output = Result<(), WriteError>> + Send {
        async { Ok(()) }
    }

    /// The largest number of writers that may work side by side, with this configuration.
    fn max_writers(_config: &Self::Config) -> u16 {
        Self::DEFAULTS.max_writers
    }

    /// Event streams that it writes and that a source could read.
    fn writes(_config: &Self::Config) -> Vec<Stream> {
        Vec::new()
    }

    /// The statements that make the store's tables, for `saltern schema KIND`: for a sink that is
    /// configured, or with the defaults. `None` if the kind has no tables.
    fn tables(_config: Option<&Self::Config>, _wish: &TableWish) -> Option<String> {
        None
    }

    /// Makes the tables and columns that are missing and returns the statements, for `saltern
    /// schema KIND --apply`.
    fn migrate(
        config: &Self::Config,
        context: &Context,
        _wish: &TableWish,
    ) -> impl Future<Output = Result<Vec<Migrated>, ConnectError>> + Send {
        // A sink that has tables makes them when it connects.
        async { Self::connect(config, context).await.map(|_| Vec::new()) }
    }

    /// Reads jobs back from the store; `None` if the kind cannot.
    fn job_store(_config: &Self::Config) -> Option<Arc<dyn JobStore>> {
        None
    }

    /// Checks a configuration for mistakes and risks that its types do not show. Each finding is a
    /// sentence for `saltern check`. `limit` is the time for one write, the `retry.timeout`.
    fn check(_config: &Self::Config, _limit: Duration) -> Vec<String> {
        Vec::new()
    }
}

/// Work that makes the form of a batch; `None` if there is none to be made ahead of its write.
pub(crate) type Preparer<P> = Box<dyn FnOnce(&Batch) -> Option<P> + Send>;

/// The settings of a kind of sink for keys that its entry in the configuration leaves out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    /// Batches.
    pub(crate) batch: BatchLimits,
    /// Retries of writes that failed.
    pub(crate) retry: RetryConfig,
    /// The place and the size of the queue.
    pub(crate) spill: SpillConfig,
    /// Events a second at the most.
    pub(crate) rate_limit: Option<u32>,
    /// The events that it takes.
    pub(crate) filter: fn() -> FilterConfig,
    /// The largest number of writers that may work side by side.
    pub(crate) max_writers: u16,
}

impl Defaults {
    /// The defaults of a store that keeps everything, with batches of this size.
    pub(crate) const fn store(batch: BatchLimits) -> Self {
        Defaults {
            batch,
            retry: RetryConfig::STORE,
            spill: SpillConfig::STORE,
            rate_limit: None,
            filter: FilterConfig::default,
            max_writers: 64,
        }
    }
}

/// The fate of an event that is written twice. That happens after a crash, and after an answer that
/// was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once {
    /// The store keeps one copy, which it knows by the event's id.
    ByEvent,
    /// The store drops a batch that it has seen, which it knows by the batch's id.
    ByBatch,
    /// It is there twice.
    No,
    /// The store keeps no event at all.
    NothingKept,
}

/// The server that tables are made for.
#[derive(Debug, Clone, Default)]
pub struct TableWish {
    /// The cluster that they are replicated in, where the store has clusters.
    pub(crate) cluster: Option<String>,
    /// The release of the server. Default: a current one.
    pub(crate) server_version: Option<(u32, u32)>,
}

/// The migration of one server.
#[derive(Debug, Clone)]
pub(crate) struct Migrated {
    /// The server.
    pub(crate) server: String,
    /// The statements that it took; none if nothing was missing.
    pub(crate) statements: Vec<String>,
}

/// A returner of Salt's and how its options become the settings of a sink, for `saltern
/// import-master` and the docs.
#[derive(Debug, Clone, Copy)]
pub struct SaltReturner {
    /// Its name, and other names that Salt knows it by.
    pub names: &'static [&'static str],
    /// The names in front of its options, with a point between or as a mapping.
    pub sections: &'static [&'static str],
    /// `event_return` can name it.
    pub stores_events: bool,
    /// Its options that are carried over.
    pub options: &'static [SaltOption],
    /// Settings that make the sink store the same as the returner.
    pub fixed: &'static [(&'static str, &'static str)],
    /// The option that names the file that is written, and the file without it.
    pub file: Option<(&'static str, &'static str)>,
    /// A difference that is left.
    pub note: Option<&'static str>,
}

/// An option of a returner.
#[derive(Debug, Clone, Copy)]
pub struct SaltOption {
    /// Its name behind the section.
    pub name: &'static str,
    /// The sink's setting.
    pub setting: &'static str,
    /// Nothing is carried over without it.
    pub is_needed: bool,
    /// The form in which it is written.
    pub form: SaltForm,
}

/// The form in which an option of a returner is written. It decides how the option is carried over.
#[derive(Debug, Clone, Copy)]
pub enum SaltForm {
    /// The path of a file.
    Path,
    /// A number of seconds.
    Seconds,
    /// Servers, as a list or with commas between.
    Servers {
        /// The port of servers that name none.
        port: u16,
        /// The word for one of them, for the name of a variable.
        each: &'static str,
    },
    /// A name of letters, digits, points, underscores and hyphens.
    Name {
        /// So many at the most.
        longest: usize,
    },
}

/// The environment of a sink.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// The sink's name in the configuration.
    pub(crate) name: String,
    /// The number of this writer among the sink's writers, from 0.
    pub(crate) writer: usize,
    /// The `master_id` of the whole.
    #[cfg_attr(not(feature = "kafka"), expect(dead_code, reason = "the kind kafka alone uses it"))]
    pub(crate) master_id: String,
    /// The folder of the daemon's state.
    pub(crate) state_dir: PathBuf,
    /// The time that one connect or write may take before it is cut off.
    pub(crate) limit: Duration,
    /// Says when files are to be opened anew.
    pub(crate) reopen: Reopen,
    /// The job cache, for its own sink alone.
    pub(crate) jobs: Option<Jobs>,
}

/// Says when files are to be opened anew (SIGHUP).
#[derive(Debug, Clone)]
pub(crate) struct Reopen(watch::Receiver<u64>);

impl Reopen {
    /// Due whenever this changes.
    pub(crate) fn new(hangups: watch::Receiver<u64>) -> Self {
        let mut reopen = Reopen(hangups);
        reopen.take();
        reopen
    }

    /// Never due.
    pub(crate) fn never() -> Self {
        Reopen(watch::channel(0).1)
    }

    /// `true` once for all signals since the last time. A clone begins where its original stood.
    pub(crate) fn take(&mut self) -> bool {
        let is_due = self.0.has_changed().unwrap_or(false);
        if is_due {
            // A signal that comes in between is served by the work that follows.
            self.0.mark_unchanged();
        }
        is_due
    }
}

/// The cause of a failure.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// The failure of a connect. A connect has no events, so it can refuse none.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    /// It is tried again later.
    #[error("{doing}")]
    Retry {
        /// The operation, in words: `opening /var/log/events`.
        doing: String,
        /// The cause.
        #[source]
        cause: Cause,
        /// The wait that the store asked for.
        after: Option<Duration>,
    },
    /// The configuration is wrong: trying again is of no use before it changes.
    #[error("{doing}")]
    Fatal {
        /// The operation, in words.
        doing: String,
        /// The cause.
        #[source]
        cause: Cause,
    },
}

/// The failure of a write. It decides what happens next with the batch.
#[derive(Debug, Error)]
pub enum WriteError {
    /// Nothing is wrong with the batch; it comes again later.
    #[error("{doing}")]
    Retry {
        /// The operation, in words: `appending to /var/log/events`.
        doing: String,
        /// The cause.
        #[source]
        cause: Cause,
        /// The wait that the store asked for.
        after: Option<Duration>,
    },
    /// The same as `Retry`, over a fresh connection.
    #[error("{doing}")]
    Reconnect {
        /// The operation, in words.
        doing: String,
        /// The cause.
        #[source]
        cause: Cause,
    },
    /// The store will never accept some event of the batch, and does not say which; nothing of it
    /// is stored. The engine splits the batch until the bad events are alone.
    #[error("{doing}")]
    Reject {
        /// The operation, in words.
        doing: String,
        /// The cause.
        #[source]
        cause: Cause,
    },
    /// Some events are not stored, all others are.
    #[error("{0}")]
    Partly(Partly),
    /// The configuration is wrong: trying again is of no use before it changes.
    #[error("{doing}")]
    Fatal {
        /// The operation, in words.
        doing: String,
        /// The cause.
        #[source]
        cause: Cause,
    },
}

impl WriteError {
    /// A [`WriteError::Retry`] without a wait that the store asked for.
    pub(crate) fn retry(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
        WriteError::Retry { doing: doing.into(), cause: cause.into(), after: None }
    }

    /// A [`WriteError::Reconnect`].
    pub(crate) fn reconnect(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
        WriteError::Reconnect { doing: doing.into(), cause: cause.into() }
    }

    /// A [`WriteError::Reject`].
    pub(crate) fn reject(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
        WriteError::Reject { doing: doing.into(), cause: cause.into() }
    }

    /// A [`WriteError::Partly`] where the events at these places are refused and all others stored.
    pub(crate) fn refused(doing: impl Into<String>, refused: Vec<Refusal>) -> Self {
        WriteError::Partly(Partly { doing: doing.into(), refused, again: None })
    }

    /// A [`WriteError::Fatal`].
    pub(crate) fn fatal(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
        WriteError::Fatal { doing: doing.into(), cause: cause.into() }
    }

    /// The same as a [`WriteError::Reconnect`] if it is a [`WriteError::Retry`].
    #[cfg_attr(not(feature = "kafka"), expect(dead_code, reason = "the kind kafka alone uses it"))]
    pub(crate) fn over_a_new_connection(self) -> Self {
        match self {
            WriteError::Retry { doing, cause, .. } => WriteError::Reconnect { doing, cause },
            other => other,
        }
    }

    /// The operation and every cause behind it, on one line.
    pub(crate) fn chain(&self) -> String {
        chain(self)
    }

    /// The variant's name.
    #[cfg(test)]
    pub(crate) fn label(&self) -> &'static str {
        match self {
            WriteError::Retry { .. } => "retry",
            WriteError::Reconnect { .. } => "reconnect",
            WriteError::Reject { .. } => "reject",
            WriteError::Partly(_) => "partly",
            WriteError::Fatal { .. } => "fatal",
        }
    }
}

impl ConnectError {
    /// A [`ConnectError::Retry`] without a wait that the store asked for.
    pub(crate) fn retry(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
        ConnectError::Retry { doing: doing.into(), cause: cause.into(), after: None }
    }

    /// A [`ConnectError::Fatal`].
    pub(crate) fn fatal(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
        ConnectError::Fatal { doing: doing.into(), cause: cause.into() }
    }
}

impl WriteError {
    /// The same for a statement that was run while connecting, without events that it could refuse.
    pub(crate) fn while_connecting(self) -> ConnectError {
        match self {
            WriteError::Retry { doing, cause, after } => {
                ConnectError::Retry { doing, cause, after }
            }
            WriteError::Reconnect { doing, cause } | WriteError::Reject { doing, cause } => {
                ConnectError::retry(doing, cause)
            }
            WriteError::Partly(partly) => ConnectError::retry(&partly.doing, partly.to_string()),
            WriteError::Fatal { doing, cause } => ConnectError::Fatal { doing, cause },
        }
    }
}

impl From<ConnectError> for WriteError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Retry { doing, cause, after } => {
                WriteError::Retry { doing, cause, after }
            }
            ConnectError::Fatal { doing, cause } => WriteError::Fatal { doing, cause },
        }
    }
}

/// The events of a batch that are not stored. A place is that of an event in the batch, from 0. An
/// event that is both refused and to come again is refused.
#[derive(Debug)]
pub struct Partly {
    /// The operation, in words.
    pub(crate) doing: String,
    /// Events that the store will never accept.
    pub(crate) refused: Vec<Refusal>,
    /// Events that come again, before any later batch.
    pub(crate) again: Option<Again>,
}

impl std::fmt::Display for Partly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let again = self.again.as_ref().map_or(0, |again| again.places.len());
        write!(f, "{}: {} refused, {again} not stored yet", self.doing, self.refused.len())
    }
}

/// An event that a store will never accept.
#[derive(Debug)]
pub struct Refusal {
    /// Its place in the batch.
    pub(crate) place: usize,
    /// The reason.
    pub(crate) cause: Cause,
}

/// Events that a store did not accept for now.
#[derive(Debug)]
pub struct Again {
    /// Their places in the batch.
    pub(crate) places: BTreeSet<usize>,
    /// The cause; `None` if they were not tried, for lack of time. Those come again at once.
    pub(crate) cause: Option<Cause>,
    /// The wait that the store asked for.
    pub(crate) after: Option<Duration>,
}
