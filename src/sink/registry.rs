//! Every kind of sink, with its type erased.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use schemars::{Schema, SchemaGenerator};

use super::contract::{
    ConnectError, Context, Defaults, Migrated, Once, SaltReturner, Sink, TableWish, WriteError,
};
#[cfg(feature = "kafka")]
use super::kafka;
use super::{blackhole, clickhouse, jobs, local, rawfile_json, sqlite3, webhook};
use crate::client::stream::Stream;
use crate::delivery::{self, Writer};
use crate::jobs::store::JobStore;
use crate::yaml::{Node, Problem};

/// The job cache's sink, which is not configured as the others are.
pub(crate) static JOB_CACHE: SinkKind = SinkKind::of::<jobs::JobCache>();

/// Every kind of sink, in the order of `saltern sinks`.
pub static KINDS: &[SinkKind] = &[
    SinkKind::of::<rawfile_json::RawfileJson>(),
    SinkKind::of::<sqlite3::Sqlite3>(),
    SinkKind::of::<clickhouse::ClickHouse>(),
    #[cfg(feature = "kafka")]
    SinkKind::of::<kafka::Kafka>(),
    SinkKind::of::<webhook::Webhook>(),
    SinkKind::of::<local::Local>(),
    SinkKind::of::<blackhole::Blackhole>(),
];

/// Reads a kind's own part of the configuration, noting its mistakes.
pub(crate) type Read = fn(&Node, &mut Vec<Problem>) -> Option<Arc<dyn Driver>>;

/// A kind of sink, with its type erased.
pub struct SinkKind {
    /// The name in the configuration.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// The settings for keys that the configuration leaves out.
    pub(crate) defaults: Defaults,
    /// The fate of an event that is written twice.
    pub once: Once,
    /// The returner of Salt's that it stands for.
    pub salt: Option<SaltReturner>,
    /// The statements that make its tables with the defaults.
    pub tables: fn(&TableWish) -> Option<String>,
    /// See [`Sink::RANKS`].
    pub ranks: bool,
    /// See [`Sink::KEEPS_JOBS`].
    pub(crate) keeps_jobs: bool,
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
            defaults: S::DEFAULTS,
            once: S::ONCE,
            salt: S::SALT,
            tables: |wish| S::tables(None, wish),
            ranks: S::RANKS,
            keeps_jobs: S::KEEPS_JOBS,
            schema: |generator| generator.subschema_for::<S::Config>(),
            read: |node, problems| Some(Arc::new(Configured::<S>(node.read_noting(problems)?))),
        }
    }

    /// The defaults of the settings beside the kind, as they are written. `writers` is the largest
    /// number.
    pub fn defaults_as_written(&self) -> serde_json::Value {
        let Defaults { batch, retry, spill, rate_limit, filter, max_writers } = self.defaults;
        serde_json::json!({
            "batch": batch.written(),
            "retry": retry,
            "spill": spill,
            "rate_limit": rate_limit,
            "filter": filter(),
            "writers": max_writers,
        })
    }

    /// True of the kind of the job cache's own sink, which `jobs` configures.
    pub(crate) fn is_job_cache(&self) -> bool {
        self.name == JOB_CACHE.name
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

    /// Connects once and lets go again.
    fn probe<'a>(&'a self, context: &'a Context) -> Driving<'a, Result<(), WriteError>>;

    /// See [`Sink::max_writers`].
    fn max_writers(&self) -> u16 {
        1
    }

    /// See [`Sink::writes`].
    fn writes(&self) -> Vec<Stream> {
        Vec::new()
    }

    /// See [`Sink::tables`].
    fn tables(&self, _wish: &TableWish) -> Option<String> {
        None
    }

    /// See [`Sink::migrate`].
    fn migrate<'a>(
        &'a self,
        _context: &'a Context,
        _wish: &'a TableWish,
    ) -> Driving<'a, Result<Vec<Migrated>, ConnectError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// See [`Sink::job_store`].
    fn job_store(&self) -> Option<Arc<dyn JobStore>> {
        None
    }

    /// See [`Sink::check`].
    fn check(&self, _limit: Duration) -> Vec<String> {
        Vec::new()
    }
}

struct Configured<S: Sink>(S::Config);

impl<S: Sink> Driver for Configured<S> {
    fn drive(self: Arc<Self>, writer: Writer) -> Driving<'static, ()> {
        Box::pin(async move { delivery::drive::<S>(&self.0, writer).await })
    }

    fn probe<'a>(&'a self, context: &'a Context) -> Driving<'a, Result<(), WriteError>> {
        Box::pin(async move { S::connect(&self.0, context).await?.close().await })
    }

    fn max_writers(&self) -> u16 {
        S::max_writers(&self.0)
    }

    fn writes(&self) -> Vec<Stream> {
        S::writes(&self.0)
    }

    fn tables(&self, wish: &TableWish) -> Option<String> {
        S::tables(Some(&self.0), wish)
    }

    fn migrate<'a>(
        &'a self,
        context: &'a Context,
        wish: &'a TableWish,
    ) -> Driving<'a, Result<Vec<Migrated>, ConnectError>> {
        Box::pin(S::migrate(&self.0, context, wish))
    }

    fn job_store(&self) -> Option<Arc<dyn JobStore>> {
        S::job_store(&self.0)
    }

    fn check(&self, limit: Duration) -> Vec<String> {
        S::check(&self.0, limit)
    }
}
