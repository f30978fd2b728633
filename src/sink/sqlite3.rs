//! `sqlite3`: events, jobs and returns in the tables of Salt's returner of that name.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   bus: {salt_bus: {}}
//! sinks:
//!   jobs:
//!     sqlite3: {database: /var/lib/saltern/jobs.db}
//!     filter: {kinds: [job_new, job_return, run]}
//! ```
//!
//! # Stored
//!
//! * `jids`, a row for each published job and each runner: `jid`; `load` (JSON of the event's data,
//!   or of the load that the master hands to its job cache: that replaces the event, and else the
//!   first wins); `load_from` (`event`, `published`, `return`); `minions` (a JSON list of those
//!   that the master has named for the job) and `end_time`, if it says them; `alter_time` (UTC).
//! * `salt_returns`, a row for each return of a minion of a job, or of a runner. Returns without a
//!   job (`nocache`) all stay. `fun`, `jid`, `id`; `fun_args` (as Python prints the list; NULL if
//!   it is empty); `date` (local time); `full_ret` (JSON of the return value alone); `success`
//!   (`1`, `0`, or empty if the return does not say; of several functions `1` if all say so);
//!   `outcome` (`worked`, `failed`, `unknown` by the [one
//!   rule](../configuration.md#how-a-return-went)); `authority` (who vouches for it: `master`,
//!   `bus`, or `contradicted` if its tag names another job or minion than its data).
//! * `salt_events`, a row for each event: `id`, `tag`, `data` (JSON), `alter_time` (UTC),
//!   `master_id`, `event_id`.
//!
//! A job of several functions has one row, whose `fun` is the list as JSON. Runners are jobs, as in
//! Salt's own job cache: one row in `jids` and one in `salt_returns`. They stand under the
//! `master_id` of the source, with the runner's whole event as `full_ret`. Salt's own id of a
//! master is `HOST_master` by default (`salt-run config.get id`): set `master_id` to it where rows
//! of runners have to stand under the same id.
//!
//! `jids.load` of an event `salt/job/JID/new` lacks some of the published load (`kwargs`, `ret`,
//! `to`). If the master's `master_job_cache` or `ext_job_cache` is saltern it becomes the published
//! load, and `load_from` says so. A filter that takes `salt/job/*/new` takes these too. A job that
//! nobody published (`salt-call`) has a row only there: its load is its return, as with Salt's own
//! returner, and `load_from` is `return`. The minions and the end of a job without a row are not
//! stored. A row needs a load, and Salt would take a row without it for a job that nobody
//! published.
//!
//! Old rows (`keep`), also those of Salt, go in small steps after each batch. The file does not
//! shrink.
//!
//! A return that the master handed over replaces one that the bus brought, and is never replaced by
//! it. The first of equal ones stays, unless it was trimmed ([Forged
//! returns](../jobs.md#forged-returns)). No other kind of sink ranks returns: they store each event
//! that comes.
//!
//! The database is made if it is missing (0640), and so are tables, columns and indexes. A database
//! of Salt's returner is taken as it is. Write-ahead logging is on, with `synchronous = NORMAL`.
//!
//! # Guarantee
//!
//! Events are in order, and there is one return a minion and job. A power cut may lose the last
//! batches, and never harms the file.
//!
//! # Failures
//!
//! * locked by another process for longer than `timeout` → the batch comes again, after 0.5 s to 30
//!   s → `saltern_sink_up` is 0, `saltern_sink_retries_total` rises, the log has the reason
//! * full disk, read-only, directory missing, damaged → the same → the same; the log says what to
//!   do
//! * the file was removed or replaced → noticed at the next batch, and opened or made anew →
//!   nothing
//! * a constraint or a trigger refuses an event → the batch is rolled back and written again with a
//!   savepoint around each event → that event is a dead letter, the others are stored
//! * the file is no database → the sink parks until the configuration is changed → `/readyz` says
//!   no and names the sink
//!
//! # Differences
//!
//! Salt's own keeps no events; `salt_events` has the columns that its `mysql` returner gives it,
//! and `event_id`, the event's content hash: a repeated batch leaves one copy. Salt's own fails
//! when a job is stored twice and keeps each repeated return; here both are settled. A `fun` that
//! is a list is stored as JSON. `outcome` and `authority` are more columns.
//!
//! # Moving
//!
//! Compare with a database of its own: two that write the same rows to one are in each other's way.
//! Then name the database of Salt's own, once its returner no longer writes: its rows are taken as
//! they are, and missing columns are added. Salt's own returner goes on reading all of it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use schemars::JsonSchema;
use serde::Deserialize;
use tracing::warn;

use self::database::{DIALECT, Sqlite};
use self::file::{FileId, create_if_missing, file_id};
use super::sql::migration::migrate;
use super::sql::retention::Retention;
use super::sql::statements::Statements;
use super::sql::tables::{self, Column, EventField, Index, JobField, ReturnField, Table, Tables};
use super::sql::write::{self, Failure};
use super::sql::{Database, Values, at_once};
use crate::error::chain;
use crate::event::batch::{Batch, BatchLimits};
use crate::files::unwritable::{advice, advised};
use crate::jobs::store::JobStore;
use crate::sink::contract::{
    ConnectError, Context, Defaults, Once, Refusal, SaltForm, SaltOption, SaltReturner, Sink,
    TableWish, WriteError,
};
use crate::sync::blocking;
use crate::units::{ByteSize, Span};

mod database;
mod file;
mod job_store;
#[cfg(test)]
mod tests;

/// An SQLite database with Salt's tables.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The database file. Its directory must exist, and be writable for SQLite's `-wal` and `-shm`
    /// files.
    database: PathBuf,
    /// The time to wait for a lock that another process holds before the batch is tried again
    /// later.
    #[serde(default = "default_timeout")]
    timeout: Span,
    /// The time that rows are kept, `30d`, also those of others. They go in small steps after each
    /// batch; the file does not shrink. Default: for ever.
    #[serde(default, deserialize_with = "crate::units::positive_or_none")]
    keep: Option<Span>,
}

fn default_timeout() -> Span {
    Span::seconds(5)
}

/// Salt's tables, with columns of ours behind Salt's.
static TABLES: Tables = Tables {
    jids: Table {
        name: "jids",
        columns: &[
            column("jid", JobField::Jid, "PRIMARY KEY"),
            column("load", JobField::Load, "NOT NULL"),
            column("load_from", JobField::LoadFrom, ""),
            column("minions", JobField::Minions, ""),
            column("end_time", JobField::EndTime, ""),
            column("alter_time", JobField::Time, ""),
        ],
        indexes: &[index("idx_jids_jid", "jid"), index("idx_jids_alter_time", "alter_time")],
    },
    returns: Table {
        name: "salt_returns",
        columns: &[
            column("fun", ReturnField::Function, ""),
            column("jid", ReturnField::Jid, ""),
            column("id", ReturnField::Minion, ""),
            column("fun_args", ReturnField::Arguments, ""),
            column("date", ReturnField::LocalTime, "NOT NULL"),
            column("full_ret", ReturnField::Value, "NOT NULL"),
            column("success", ReturnField::Success, "NOT NULL"),
            column("authority", ReturnField::Authority, ""),
            column("outcome", ReturnField::Outcome, ""),
        ],
        indexes: &[
            index("idx_salt_returns_jid", "jid, id"),
            index("idx_salt_returns_fun", "fun, id, jid"),
            index("idx_salt_returns_id", "id"),
            index("idx_salt_returns_date", "date"),
        ],
    },
    events: Table {
        name: "salt_events",
        columns: &[
            Column { name: "id", field: None, kind: "INTEGER", constraint: "PRIMARY KEY" },
            column("tag", EventField::Tag, "NOT NULL"),
            column("data", EventField::Data, "NOT NULL"),
            column("alter_time", EventField::Time, "NOT NULL DEFAULT CURRENT_TIMESTAMP"),
            column("master_id", EventField::Master, "NOT NULL"),
            column("event_id", EventField::Id, "UNIQUE"),
        ],
        indexes: &[
            Index { name: "idx_salt_events_event_id", columns: "event_id", unique: true },
            index("idx_salt_events_tag", "tag"),
            index("idx_salt_events_alter_time", "alter_time"),
        ],
    },
    is_trimmed: "instr(full_ret, '\"VALUE_TRIMMED\"') > 0",
};

const fn column<F>(name: &'static str, field: F, constraint: &'static str) -> Column<F> {
    Column { name, field: Some(field), kind: "TEXT", constraint }
}

const fn index(name: &'static str, columns: &'static str) -> Index {
    Index { name, columns, unique: false }
}

/// The longest that SQLite waits: it counts milliseconds in 31 bits.
const LONGEST_WAIT: Duration = Duration::from_millis(i32::MAX as u64);

pub(super) struct Sqlite3 {
    path: PathBuf,
    file: FileId,
    sqlite: Sqlite,
    statements: Statements,
    retention: Option<Retention>,
    /// Texts of an event while they are bound, kept for its memory. A long one is kept until the
    /// batch is stored: the allocator holds freed memory for some milliseconds, and the next long
    /// text would come on top of it.
    buffer: Vec<u8>,
}

impl Sink for Sqlite3 {
    const NAME: &'static str = "sqlite3";
    const ABOUT: &'static str =
        "an SQLite database with Salt's tables jids, salt_returns, salt_events";
    const DEFAULTS: Defaults =
        Defaults::store(BatchLimits::new(2000, ByteSize::mib(2), Span::millis(200)));
    const ONCE: Once = Once::ByEvent;
    const SALT: Option<SaltReturner> = Some(SaltReturner {
        names: &["sqlite3"],
        sections: &["sqlite3"],
        stores_events: false,
        options: &[
            SaltOption {
                name: "database",
                setting: "database",
                is_needed: true,
                form: SaltForm::Path,
            },
            SaltOption {
                name: "timeout",
                setting: "timeout",
                is_needed: false,
                form: SaltForm::Seconds,
            },
        ],
        fixed: &[],
        file: Some(("database", "")),
        note: None,
    });
    const RANKS: bool = true;
    const KEEPS_JOBS: bool = true;
    type Config = Config;
    type Prepared = ();

    async fn connect(config: &Config, _context: &Context) -> Result<Self, ConnectError> {
        blocking(|| Sqlite3::open(config)).map_err(WriteError::while_connecting)
    }

    async fn write(&mut self, batch: &Batch, _: Option<()>) -> Result<(), WriteError> {
        blocking(|| self.store(batch))
    }

    async fn close(self) -> Result<(), WriteError> {
        let Sqlite3 { path, sqlite, .. } = self;
        let closed = blocking(|| sqlite.into_connection().close().map_err(|(_, error)| error));
        closed.map_err(|error| classified(format!("closing {}", path.display()), &path, error))
    }

    fn tables(_config: Option<&Config>, _wish: &TableWish) -> Option<String> {
        Some(tables::script(&TABLES))
    }

    fn job_store(config: &Config) -> Option<Arc<dyn JobStore>> {
        Some(Arc::new(job_store::SqliteJobs::new(&config.database, &TABLES)))
    }
}

impl Sqlite3 {
    /// A new or an existing database, with all other settings as by default.
    pub(super) fn create(path: &Path) -> Result<Self, WriteError> {
        let database = path.to_owned();
        Sqlite3::open(&Config { database, timeout: default_timeout(), keep: None })
    }

    fn open(config: &Config) -> Result<Self, WriteError> {
        let doing = || format!("opening {}", config.database.display());
        // The path is absolute, so that it is none of SQLite's names for a database without a file.
        let path = std::path::absolute(&config.database)
            .map_err(|error| WriteError::fatal(doing(), error))?;
        create_if_missing(&path).map_err(|error| match error.kind() {
            io::ErrorKind::IsADirectory => WriteError::fatal(doing(), error),
            io::ErrorKind::NotFound => {
                let missing = path.parent().unwrap_or(&path).display();
                WriteError::retry(doing(), format!("{error}: create the directory {missing}"))
            }
            _ => WriteError::retry(doing(), advised(&path, error)),
        })?;
        let file = file_id(&path).map_err(|error| WriteError::retry(doing(), error))?;
        let statements = Statements::new(&TABLES, &DIALECT);
        let sqlite = connected(&path, config.timeout.0, &statements).map_err(|error| {
            match classified(doing(), &path, error) {
                // The tables cannot be used: views of these names, for example.
                WriteError::Reject { doing, cause, .. } => WriteError::Fatal { doing, cause },
                other => other,
            }
        })?;
        let retention = config.keep.map(|keep| Retention::new(keep.0));
        Ok(Sqlite3 { path, file, sqlite, statements, retention, buffer: Vec::new() })
    }

    pub(super) fn store(&mut self, batch: &Batch) -> Result<(), WriteError> {
        let doing = format!("writing to {}", self.path.display());
        self.check_file(&doing)?;
        if self.sqlite.is_in_transaction() {
            // A write before this one panicked. Its transaction fails with the next statement, if
            // at all.
            let _ = at_once(self.sqlite.execute("ROLLBACK", &Values::default()));
        }
        let Sqlite3 { sqlite, statements, buffer, .. } = self;
        let stored = at_once(write::store(sqlite, statements, batch, buffer));
        buffer.shrink_to(Self::DEFAULTS.batch.max_bytes);
        let result = stored.map_err(|failure| match failure {
            Failure::Refused(events) => WriteError::refused(doing.clone(), refusals(events)),
            Failure::RefusedSome(cause) => WriteError::reject(doing.clone(), cause),
            Failure::Failed(error) => classified(doing.clone(), &self.path, error),
        });
        // A batch that went to a file that is gone must be written again.
        match result {
            Ok(()) | Err(WriteError::Reject { .. } | WriteError::Partly(_)) => {
                self.check_file(&doing)?;
            }
            Err(error) => return Err(error),
        }
        self.forget_some(batch.len());
        result
    }

    /// Forgets some old rows. The batch is stored, so an error here is no error of the batch.
    fn forget_some(&mut self, written: usize) {
        let Some(retention) = &mut self.retention else { return };
        if let Err(error) = at_once(retention.step(&mut self.sqlite, &self.statements, written)) {
            let (database, error) = (self.path.display(), chain(&error));
            warn!(%database, error, "old rows stay in the database for now");
        }
    }

    /// SQLite itself would go on writing to a file that was unlinked.
    fn check_file(&self, doing: &str) -> Result<(), WriteError> {
        match file_id(&self.path) {
            Ok(id) if id == self.file => Ok(()),
            Ok(_) => Err(WriteError::reconnect(doing, "the database was replaced by another file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(WriteError::reconnect(doing, "the database was removed"))
            }
            Err(error) => Err(WriteError::reconnect(doing, error)),
        }
    }
}

/// A connection to a database that lacks nothing.
fn connected(path: &Path, timeout: Duration, statements: &Statements) -> rusqlite::Result<Sqlite> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(timeout.min(LONGEST_WAIT))?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        warn!(
            database = %path.display(),
            mode,
            "SQLite cannot use write-ahead logging for this database"
        );
    }
    // After a burst the log shrinks to this many bytes again.
    connection
        .execute_batch("PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 67108864")?;
    let mut sqlite = Sqlite::new(connection);
    at_once(migrate(&mut sqlite, statements))?;
    Ok(sqlite)
}

fn refusals(events: Vec<(usize, rusqlite::Error)>) -> Vec<Refusal> {
    let refusal = |(place, cause): (usize, rusqlite::Error)| Refusal { place, cause: cause.into() };
    events.into_iter().map(refusal).collect()
}

fn classified(doing: String, database: &Path, error: rusqlite::Error) -> WriteError {
    if Sqlite::is_refusal(&error) {
        return WriteError::reject(doing, error);
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            let advice = "another process holds it; the batch is tried again";
            WriteError::retry(doing, format!("{error}: {advice}"))
        }
        Some(ErrorCode::DiskFull | ErrorCode::OutOfMemory) => WriteError::retry(doing, error),
        Some(ErrorCode::NotADatabase) => {
            let advice = "name another file as `database`, or move this one away";
            WriteError::fatal(doing, format!("{error}: {advice}"))
        }
        // Its journal stands beside the file, so the directory has to be writable as well.
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied)
            if let Some(advice) = advice(database) =>
        {
            WriteError::reconnect(doing, format!("{error}; {advice}"))
        }
        // A damaged file may be repaired or put aside meanwhile, permissions be corrected, a
        // dropped table be made again. All of that takes a fresh connection.
        _ => WriteError::reconnect(doing, error),
    }
}
