//! Every kind of source, with its type erased.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use schemars::{Schema, SchemaGenerator};
use tokio_util::sync::CancellationToken;

use crate::client::stream::Stream;
use crate::source::contract::{JobCache, Source, SourceError};
use crate::source::frame_sender::FrameSender;
#[cfg(feature = "kafka")]
use crate::source::kafka;
use crate::source::{local_cache, replay, returner, returner_zeromq, salt_bus, zeromq};
use crate::yaml::{Node, Problem};

/// Every kind of source.
pub static KINDS: &[SourceKind] = &[
    SourceKind::of::<salt_bus::SaltBus>(),
    SourceKind::of::<returner::Returner>(),
    SourceKind::of::<returner_zeromq::ReturnerZeromq>(),
    SourceKind::of::<zeromq::Zeromq>(),
    #[cfg(feature = "kafka")]
    SourceKind::of::<kafka::Kafka>(),
    SourceKind::of::<replay::Replay>(),
    SourceKind::of::<local_cache::LocalCache>(),
];

/// Reads a kind's own part of the configuration, noting its mistakes.
pub(crate) type Read = fn(&Node, &mut Vec<Problem>) -> Option<Arc<dyn Reader>>;

/// A kind of source, with its type erased.
pub struct SourceKind {
    /// The name in the configuration.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// It may bring the same event twice.
    pub repeats: bool,
    /// The JSON Schema of its configuration.
    pub(crate) schema: fn(&mut SchemaGenerator) -> Schema,
    /// Reads its configuration and notes every problem in it.
    pub(crate) read: Read,
}

impl SourceKind {
    const fn of<S: Source>() -> Self {
        SourceKind {
            name: S::NAME,
            about: S::ABOUT,
            repeats: S::REPEATS,
            schema: |generator| generator.subschema_for::<S::Config>(),
            read: |node, problems| Some(Arc::new(Configured::<S>(node.read_noting(problems)?))),
        }
    }

    /// The kind of this name.
    pub(crate) fn named(name: &str) -> Option<&'static SourceKind> {
        KINDS.iter().find(|kind| kind.name == name)
    }
}

/// A future of a [`Reader`]. Sources share one thread, so it need not be `Send`.
pub(crate) type Reading<'a> = Pin<Box<dyn Future<Output = Result<(), SourceError>> + 'a>>;

/// A source's configuration together with the code that it is for.
pub(crate) trait Reader: Send + Sync {
    /// Reads until there is no more to read or `stop` is cancelled.
    fn run(self: Arc<Self>, sender: FrameSender, stop: CancellationToken) -> Reading<'static>;

    /// See [`Source::job_cache`].
    fn job_cache(&self) -> JobCache;

    /// See [`Source::ENDS`].
    fn ends(&self) -> bool;

    /// See [`Source::bus_socket`].
    fn bus_socket(&self) -> Option<PathBuf> {
        None
    }

    /// See [`Source::beside`].
    fn beside(&mut self, _buses: &[PathBuf]) -> bool {
        false
    }

    /// See [`Source::reads`].
    fn reads(&self) -> Vec<Stream> {
        Vec::new()
    }

    /// Connects once and lets go again.
    fn probe(&self) -> Reading<'_>;
}

struct Configured<S: Source>(S::Config);

impl<S: Source> Reader for Configured<S> {
    fn run(self: Arc<Self>, sender: FrameSender, stop: CancellationToken) -> Reading<'static> {
        Box::pin(async move { S::run(&self.0, sender, stop).await })
    }

    fn job_cache(&self) -> JobCache {
        S::job_cache(&self.0)
    }

    fn ends(&self) -> bool {
        S::ENDS
    }

    fn bus_socket(&self) -> Option<PathBuf> {
        S::bus_socket(&self.0)
    }

    fn beside(&mut self, buses: &[PathBuf]) -> bool {
        S::beside(&mut self.0, buses)
    }

    fn reads(&self) -> Vec<Stream> {
        S::reads(&self.0)
    }

    fn probe(&self) -> Reading<'_> {
        Box::pin(S::probe(&self.0))
    }
}
