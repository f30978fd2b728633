//! The job cache: jobs, the minions that they were for, and their returns.
//!
//! Salt calls this a master job cache. It is one SQLite file, `job-cache.db` in `state_dir`. Two
//! write to it: a sink of its own takes job events off the bus, and the returner source hands on
//! Salt's own calls. The two describe one job in different words and in any order; [`record`] tells
//! which wins. Three read it: Salt, by way of the returner source ([`salt`]), the HTTP side and the
//! command line ([`listing`]), and a backfill, which asks for jobs that the bus has not brought
//! ([`Jobs::lacks`]).
//!
//! One connection writes. Readers have connections of their own and see the last commit, so no
//! question, however large, holds up a write. Jobs older than `keep_jobs` go in small steps
//! ([`retention`]).
//!
//! The file is made of events and can be made again. So a power cut may cost it the last commits
//! (write-ahead log, `synchronous=NORMAL`), and a damaged file is put aside for a new one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use schemars::JsonSchema;
use serde::Deserialize;
use thiserror::Error;
use tracing::error;

use self::asker::Waiting;
use self::conflict::Conflicts;
use self::damage::Damage;
use self::spool::{Spool, SpoolFiles};
use self::stores::JobStores;
use crate::event::Event;
use crate::event::redact::Redaction;
use crate::files::state_file;
use crate::observe::state::SinkState;
use crate::sync::lock;
use crate::units::Span;

mod answer;
pub(crate) mod asker;
pub(crate) mod began;
mod conflict;
mod damage;
mod file;
mod functions;
pub(crate) mod judging;
pub mod listing;
pub(crate) mod load;
mod record;
pub(crate) mod retention;
mod salt;
pub(crate) mod spool;
pub mod store;
pub(crate) mod stored;
pub(crate) mod stores;

/// The tags of the events that the job cache wants.
pub(crate) const TAGS: [&str; 6] = [
    "salt/job/*/new",
    "salt/job/*/ret/*",
    "salt/run/*/new",
    "salt/run/*/ret",
    "salt/wheel/*/new",
    "salt/wheel/*/ret",
];

/// The job cache.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct JobsConfig {
    /// `true` to keep jobs. Default: only if a source asks for it, as `returner` and `salt_bus`
    /// with `backfill` do.
    pub(crate) enabled: Option<bool>,
    /// The time that a job is kept after the last news of it.
    pub(crate) keep_jobs: Span,
    /// The sink or sinks whose stores answer Salt's questions about a job that the job cache does
    /// not know: `db`, or `[db, archive]`. The first that knows anything answers. Default: none.
    pub(crate) store: StoreNames,
}

/// The names of sinks that keep jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "OneOrSeveral")]
#[schemars(with = "OneOrSeveral")]
pub(crate) struct StoreNames(pub(crate) Vec<String>);

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a name of a sink, or a list of them, belongs here")]
enum OneOrSeveral {
    One(Option<String>),
    Several(Vec<String>),
}

impl TryFrom<OneOrSeveral> for StoreNames {
    type Error = &'static str;

    fn try_from(written: OneOrSeveral) -> Result<Self, Self::Error> {
        match written {
            OneOrSeveral::One(name) => Ok(StoreNames(name.into_iter().collect())),
            OneOrSeveral::Several(names) if names.is_empty() => {
                Err("there is no name in this list")
            }
            OneOrSeveral::Several(names) => Ok(StoreNames(names)),
        }
    }
}

impl Default for JobsConfig {
    fn default() -> Self {
        JobsConfig {
            enabled: None,
            keep_jobs: Span::seconds(24 * 3600),
            store: StoreNames::default(),
        }
    }
}

/// The failure of the job cache to answer, or to store.
#[derive(Debug, Error)]
pub enum JobsError {
    /// It is not enabled.
    #[error("there is no job cache here; set `jobs: {{enabled: true}}`")]
    Off,
    /// The value to store does not have the required form.
    #[error("{0}")]
    Malformed(&'static str),
    /// The value to store is no load.
    #[error("the load: {0}")]
    NotALoad(#[from] load::NotALoad),
    /// The file cannot be opened.
    #[error("cannot open the job cache {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
    /// The database refused.
    #[error("cannot {doing} in the job cache {path}")]
    Database {
        /// The operation, in words.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: rusqlite::Error,
    },
    /// A store besides gave none.
    #[error(transparent)]
    Store(#[from] store::AskError),
    /// An answer has no place until it is read.
    #[error("cannot write an answer to a file beside the job cache {path}")]
    Answer {
        /// The job cache.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
}

impl JobsError {
    /// True if the data can never be stored.
    pub(crate) fn is_for_good(&self) -> bool {
        matches!(self, JobsError::Malformed(_) | JobsError::NotALoad(_))
    }
}

/// The job cache; a clone is the same one. Its methods block for as long as the disk takes, and
/// those that write, while another one writes.
#[derive(Clone)]
pub struct Jobs(Arc<Cache>);

struct Cache {
    path: PathBuf,
    /// `None` while it is off.
    keep: RwLock<Option<Duration>>,
    /// Hides values of data that Salt itself writes; events of the bus come without them.
    redaction: RwLock<Option<Arc<Redaction>>>,
    /// The stores of sinks that are asked besides.
    stores: RwLock<Arc<JobStores>>,
    /// The sink that feeds it, if one does.
    feed: Mutex<Option<Arc<SinkState>>>,
    writer: Mutex<Option<Connection>>,
    readers: Mutex<Readers>,
    damage: Damage,
    conflicts: Conflicts,
    /// Long answers to Salt that are not read yet.
    answers: SpoolFiles,
    /// Long answers to people and scripts, which must not take the room of Salt's.
    listings: SpoolFiles,
}

/// Connections that nobody reads with now.
#[derive(Default)]
struct Readers {
    idle: Vec<Connection>,
    /// The number of times that the file was replaced: connections to an older one are of no use.
    replaced: u64,
}

/// A connection that somebody reads with.
struct Reader {
    connection: Connection,
    /// The number of times that the file had been replaced when it was opened, at the most.
    replaced: u64,
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Jobs").field(&self.0.path).finish()
    }
}

/// Connections to keep for the next readers.
const IDLE_READERS: usize = 4;

/// Steps of the database between two checks that the client still waits: some microseconds.
const STEPS: i32 = 1000;

impl Jobs {
    /// The cache in this directory; off until [`Jobs::keep`] says otherwise. Nothing is opened
    /// before something is asked.
    pub fn new(state_dir: &Path) -> Self {
        let path = state_dir.join("job-cache.db");
        Jobs(Arc::new(Cache {
            damage: Damage::new(path.clone()),
            conflicts: Conflicts::new(),
            path,
            keep: RwLock::new(None),
            redaction: RwLock::new(None),
            stores: RwLock::default(),
            feed: Mutex::new(None),
            writer: Mutex::new(None),
            readers: Mutex::default(),
            answers: SpoolFiles::default(),
            listings: SpoolFiles::default(),
        }))
    }

    /// Turns it on, with how long a job is kept, or off.
    pub fn keep(&self, keep: Option<Duration>) {
        *lock::write(&self.0.keep) = keep;
    }

    /// The time that a job is kept; `None` while the cache is off.
    pub(crate) fn kept_for(&self) -> Option<Duration> {
        *lock::read(&self.0.keep)
    }

    /// True if a job began, by its id, longer ago than jobs are kept. The cache knows of it only if
    /// something was said of it since then: a late return, or a forged one.
    pub(crate) fn began_before_keep(&self, jid: &str) -> bool {
        let began = began::time_in(jid);
        began.zip(self.kept_for()).is_some_and(|(began, kept)| {
            let age = Timestamp::now().duration_since(began);
            Duration::try_from(age).is_ok_and(|age| age > kept)
        })
    }

    /// Sets the rules that hide values of Salt's own data from now on.
    pub(crate) fn redact(&self, redaction: Option<Arc<Redaction>>) {
        *lock::write(&self.0.redaction) = redaction;
    }

    /// Names the stores that are asked besides, from now on.
    pub(crate) fn set_stores(&self, stores: Arc<JobStores>) {
        *lock::write(&self.0.stores) = stores;
    }

    /// The stores that are asked besides.
    pub(crate) fn stores(&self) -> Arc<JobStores> {
        Arc::clone(&lock::read(&self.0.stores))
    }

    /// The redacted form of a load that the master hands over in an event of this tag; `None` if it
    /// stays as it is.
    fn redacted(&self, tag: &str, load: &[u8]) -> Option<Event> {
        let redaction = lock::read(&self.0.redaction).clone();
        redaction.and_then(|redaction| redaction.of(&Event::new(tag, load)))
    }

    /// Names the sink that feeds it.
    pub(crate) fn fed_by(&self, sink: Arc<SinkState>) {
        *lock::hold(&self.0.feed) = Some(sink);
    }

    /// True if events that were read longer ago than this wait to be stored here.
    pub(crate) fn is_behind(&self, by: Duration) -> bool {
        lock::hold(&self.0.feed).as_ref().is_some_and(|sink| sink.lag() > by.as_secs_f64())
    }

    /// True if there is a file to read.
    pub(crate) fn has_file(&self) -> bool {
        self.0.path.exists()
    }

    /// Writes as one transaction.
    fn write<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, rusqlite::Error>,
    ) -> Result<T, JobsError> {
        if self.kept_for().is_none() {
            return Err(JobsError::Off);
        }
        let mut writer = lock::hold(&self.0.writer);
        let mut connection = match writer.take() {
            Some(connection) => connection,
            None => self.open_or_replace()?,
        };
        let done = connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(
            |transaction| work(&transaction).and_then(|t| transaction.commit().map(|()| t)),
        );
        match done {
            Ok(done) => {
                *writer = Some(connection);
                Ok(done)
            }
            // The connection goes; the next write opens the file anew, or a new file.
            Err(cause) => {
                if state_file::is_damaged(&cause) {
                    drop(connection);
                    self.put_aside(&cause);
                }
                Err(self.failed(doing, cause))
            }
        }
    }

    /// Reads the committed state; `None` if nothing was ever stored.
    fn read<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Connection, &Damage) -> Result<T, rusqlite::Error>,
    ) -> Result<Option<T>, JobsError> {
        let Some(reader) = self.reader()? else { return Ok(None) };
        self.read_with(reader, doing, work).map(Some)
    }

    /// Reads like [`Jobs::read`], but fails soon after nobody is `waiting` any more.
    fn read_while<T>(
        &self,
        waiting: &Waiting,
        doing: &'static str,
        work: impl FnOnce(&Connection, &Damage) -> Result<T, rusqlite::Error>,
    ) -> Result<Option<T>, JobsError> {
        let Some(mut reader) = self.reader()? else { return Ok(None) };
        let waiting = waiting.clone();
        let watched = reader.connection.progress_handler(STEPS, Some(move || waiting.is_over()));
        watched.map_err(|cause| self.failed(doing, cause))?;
        self.read_with(reader, doing, work).map(Some)
    }

    fn read_with<T>(
        &self,
        reader: Reader,
        doing: &'static str,
        work: impl FnOnce(&Connection, &Damage) -> Result<T, rusqlite::Error>,
    ) -> Result<T, JobsError> {
        let Reader { mut connection, replaced } = reader;
        // A transaction, so that all statements see the same commit. It ends when it is dropped.
        let read = connection
            .unchecked_transaction()
            .and_then(|_transaction| work(&connection, &self.0.damage));
        let read = read.map_err(|cause| self.failed(doing, cause))?;
        let unwatched = connection.progress_handler(0, None::<fn() -> bool>);
        unwatched.map_err(|cause| self.failed(doing, cause))?;
        let mut readers = lock::hold(&self.0.readers);
        if readers.idle.len() < IDLE_READERS && readers.replaced == replaced {
            readers.idle.push(connection);
        }
        Ok(read)
    }

    /// A connection to read with; `None` if there is no file.
    fn reader(&self) -> Result<Option<Reader>, JobsError> {
        if self.kept_for().is_none() {
            return Err(JobsError::Off);
        }
        // It is taken out before it is used, so that readers do not wait for each other.
        let (idle, replaced) = {
            let mut readers = lock::hold(&self.0.readers);
            (readers.idle.pop(), readers.replaced)
        };
        let connection = match idle {
            Some(connection) => Some(connection),
            None if !self.has_file() => None,
            // A file elsewhere is not read: a command may run as root.
            None if state_file::is_foreign(&self.0.path) => None,
            None => file::open_to_read(&self.0.path)
                .map_err(|cause| self.failed("open it to read", cause))?,
        };
        Ok(connection.map(|connection| Reader { connection, replaced }))
    }

    /// An answer to Salt to be written, of which `memory` bytes may be in memory.
    fn spool(&self, memory: usize) -> Spool {
        self.spool_of(memory, &self.0.answers)
    }

    /// The same to people and scripts.
    fn listing_spool(&self, memory: usize) -> Spool {
        self.spool_of(memory, &self.0.listings)
    }

    fn spool_of(&self, memory: usize, files: &SpoolFiles) -> Spool {
        let folder = self.0.path.parent().unwrap_or(Path::new("."));
        Spool::new(folder, memory, files.clone())
    }

    fn unkept(&self, cause: std::io::Error) -> JobsError {
        JobsError::Answer { path: self.0.path.clone(), cause }
    }

    fn open_or_replace(&self) -> Result<Connection, JobsError> {
        let path = &self.0.path;
        if state_file::is_foreign(path) {
            self.put_aside(&"it is no regular file");
        }
        state_file::put_foreign_beside_aside(path)
            .map_err(|cause| JobsError::Open { path: path.clone(), cause })?;
        let create = || {
            let created = state_file::open_or_create(path);
            created.map_err(|cause| JobsError::Open { path: path.clone(), cause })
        };
        create()?;
        match file::open(path) {
            Err(cause) if state_file::is_damaged(&cause) => {
                self.put_aside(&cause);
                create()?;
                file::open(path)
            }
            other => other,
        }
        .map_err(|cause| self.failed("make the tables", cause))
    }

    /// The state directory was removed or replaced: the file that is open is not the one that is
    /// there.
    pub(crate) fn renew(&self) {
        *lock::hold(&self.0.writer) = None;
        self.forget_readers();
    }

    fn forget_readers(&self) {
        let mut readers = lock::hold(&self.0.readers);
        readers.idle.clear();
        readers.replaced += 1;
    }

    /// A damaged file would fail for ever, and its jobs are not worth that.
    fn put_aside(&self, why: &dyn fmt::Display) {
        self.forget_readers();
        if let Err(error) = state_file::put_aside(&self.0.path, why) {
            // It fails again at the next write.
            error!(job_cache = %self.0.path.display(), %error, "it is damaged and cannot be put aside");
        }
    }

    fn failed(&self, doing: &'static str, cause: rusqlite::Error) -> JobsError {
        JobsError::Database { doing, path: self.0.path.clone(), cause }
    }
}
