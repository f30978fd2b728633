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
//! * `jids`, a row for each published job and each runner; the first wins: `jid`, `load` (JSON of
//!   the event's data).
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
//! Salt's own job cache: one row in `jids` and one in `salt_returns`, under the `master_id` of the
//! source, with the runner's whole event as `full_ret`. Salt's own id of a master is `HOST_master`
//! by default (`salt-run config.get id`): set `master_id` to it where rows of runners have to stand
//! under the same id.
//!
//! A return that the master handed over replaces one that the bus brought, and is never replaced by
//! it; of equal ones the first stays, unless it was trimmed ([Forged
//! returns](../jobs.md#forged-returns)). No other kind of sink ranks returns: they store each event
//! that comes.
//!
//! The database is made if it is missing (0640), and so are tables, columns and indexes; one that
//! Salt's returner wrote is taken as it is. Write-ahead logging is on, with `synchronous = NORMAL`.
//!
//! # Guarantee
//!
//! In order, and one return a minion and job. A power cut may lose the last batches, and never
//! harms the file.
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
//! and `event_id`, the event's content hash, by which a repeated batch leaves one copy. Salt's own
//! fails when a job is stored twice and keeps each repeated return; here both are settled. A `fun`
//! that is a list is stored as JSON. `outcome` and `authority` are more columns.
//!
//! # Moving
//!
//! Name the database of Salt's own: its tables are taken as they are, and what is missing of
//! columns is added. Salt goes on reading it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, ToSql, TransactionBehavior, params};
use schemars::JsonSchema;
use serde::Deserialize;
use tracing::warn;

use crate::codec::msgpack::{self, Item};
use crate::codec::{json, python};
use crate::event::batch::{Batch, BatchLimits, Entry};
use crate::event::job_return::JobReturn;
use crate::event::runner::RunnerJob;
use crate::event::standing::{Precedence, Standing};
use crate::event::step::Step;
use crate::event::{Event, EventKind, Fields};
use crate::files::unwritable::{advice, advised};
use crate::sink::contract::{
    ConnectError, Context, Defaults, Once, Refusal, SaltForm, SaltOption, SaltReturner, Sink,
    WriteError,
};
use crate::sync::blocking;
use crate::units::{ByteSize, Span};

/// An SQLite database with Salt's tables.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The database file. Its directory must exist, and be writable for SQLite's `-wal` and `-shm`
    /// files.
    database: PathBuf,
    /// How long to wait for a lock that another process holds before the batch is tried again
    /// later.
    #[serde(default = "default_timeout")]
    timeout: Span,
}

fn default_timeout() -> Span {
    Span::seconds(5)
}

/// The longest that SQLite waits: it counts milliseconds in 31 bits.
const LONGEST_WAIT: Duration = Duration::from_millis(i32::MAX as u64);

pub(super) struct Sqlite3 {
    database: PathBuf,
    connection: Connection,
    file: FileId,
    scratch: Scratch,
}

/// What tells a file from another one at the same path.
type FileId = (u64, u64);

/// Texts of one event while they are bound; kept for their memory. A long one is kept until the
/// batch is stored: the allocator holds what is freed for some milliseconds, and the next long text
/// would come on top of it.
#[derive(Default)]
struct Scratch {
    json: Vec<u8>,
    python: String,
    times: Times,
}

/// The two forms of when a chunk was read; its events share them.
#[derive(Default)]
struct Times {
    received: Option<u64>,
    utc: String,
    local: String,
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
    type Config = Config;

    async fn connect(config: &Config, _context: &Context) -> Result<Self, ConnectError> {
        Ok(blocking(|| Sqlite3::open(config))?)
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), WriteError> {
        blocking(|| self.store(batch))
    }

    async fn close(self) -> Result<(), WriteError> {
        let Sqlite3 { database, connection, .. } = self;
        blocking(|| connection.close().map_err(|(_, error)| error)).map_err(|error| {
            classified(format!("closing {}", database.display()), &database, error)
        })
    }
}

impl Sqlite3 {
    /// A new database, or one that is there, with everything else as it is by default.
    pub(super) fn create(path: &Path) -> Result<Self, WriteError> {
        Sqlite3::open(&Config { database: path.to_owned(), timeout: default_timeout() })
    }

    fn open(config: &Config) -> Result<Self, WriteError> {
        let doing = || format!("opening {}", config.database.display());
        // Absolute, so that no path means one of SQLite's names for a database without a file.
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
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags)
            .and_then(|connection| {
                connection.busy_timeout(config.timeout.0.min(LONGEST_WAIT))?;
                prepare(&connection, &path)?;
                Ok(connection)
            })
            .map_err(|error| match classified(doing(), &path, error) {
                // The tables are not ours to use: views of these names, say.
                WriteError::Reject { doing, cause, .. } => WriteError::Fatal { doing, cause },
                other => other,
            })?;
        Ok(Sqlite3 { database: path, connection, file, scratch: Scratch::default() })
    }

    pub(super) fn store(&mut self, batch: &Batch) -> Result<(), WriteError> {
        let doing = format!("writing to {}", self.database.display());
        self.check_file(&doing)?;
        let result = match self.store_together(batch) {
            Err(error) if is_refusal(&error) => self.store_apart(batch, &doing),
            other => other.map_err(|error| classified(doing.clone(), &self.database, error)),
        };
        self.scratch.json.shrink_to(Self::DEFAULTS.batch.max_bytes);
        self.scratch.python.shrink_to(Self::DEFAULTS.batch.max_bytes);
        // What was written to a file that is gone must be written again.
        match result {
            Ok(()) | Err(WriteError::Reject { .. } | WriteError::Partly(_)) => {
                self.check_file(&doing).and(result)
            }
            other => other,
        }
    }

    /// SQLite itself would go on writing to a file that was unlinked.
    fn check_file(&self, doing: &str) -> Result<(), WriteError> {
        match file_id(&self.database) {
            Ok(id) if id == self.file => Ok(()),
            Ok(_) => Err(WriteError::reconnect(doing, "the database was replaced by another file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(WriteError::reconnect(doing, "the database was removed"))
            }
            Err(error) => Err(WriteError::reconnect(doing, error)),
        }
    }

    fn store_together(&mut self, batch: &Batch) -> rusqlite::Result<()> {
        let behavior = TransactionBehavior::Immediate;
        let transaction = self.connection.transaction_with_behavior(behavior)?;
        for entry in batch.entries() {
            insert(&transaction, entry, &mut self.scratch)?;
        }
        transaction.commit()
    }

    /// Writes a batch of which some event is refused: all others.
    fn store_apart(&mut self, batch: &Batch, doing: &str) -> Result<(), WriteError> {
        let failed = |error| classified(doing.to_owned(), &self.database, error);
        let behavior = TransactionBehavior::Immediate;
        let mut transaction =
            self.connection.transaction_with_behavior(behavior).map_err(failed)?;
        let mut refused = Vec::new();
        for (place, entry) in batch.entries().enumerate() {
            let savepoint = transaction.savepoint().map_err(failed)?;
            match insert(&savepoint, entry, &mut self.scratch) {
                Ok(()) => savepoint.commit().map_err(failed)?,
                Err(error) if is_refusal(&error) => {
                    if savepoint.is_autocommit() {
                        // A trigger that rolls everything back: which event it was is found by
                        // halving.
                        return Err(WriteError::reject(doing, error));
                    }
                    // Dropping the savepoint rolls it back.
                    drop(savepoint);
                    refused.push(Refusal { place, cause: error.into() });
                }
                Err(error) => return Err(failed(error)),
            }
        }
        transaction.commit().map_err(failed)?;
        match refused.is_empty() {
            true => Ok(()),
            false => Err(WriteError::refused(doing, refused)),
        }
    }
}

fn file_id(path: &Path) -> io::Result<FileId> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok((metadata.dev(), metadata.ino()))
}

/// Makes an empty database with permissions of its own. A file that exists is not even opened:
/// closing it would drop the locks that another writer of this process holds on it.
fn create_if_missing(path: &Path) -> io::Result<()> {
    match file_id(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.map(drop),
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o640).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS jids (
    jid TEXT PRIMARY KEY,
    load TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS salt_returns (
    fun TEXT,
    jid TEXT,
    id TEXT,
    fun_args TEXT,
    date TEXT NOT NULL,
    full_ret TEXT NOT NULL,
    success TEXT NOT NULL,
    authority TEXT,
    outcome TEXT
);
CREATE TABLE IF NOT EXISTS salt_events (
    id INTEGER PRIMARY KEY,
    tag TEXT NOT NULL,
    data TEXT NOT NULL,
    alter_time TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    master_id TEXT NOT NULL,
    event_id TEXT UNIQUE
);
";

/// The columns that are written, for tables that are older than this.
const COLUMNS: &[(&str, &[&str])] = &[
    ("jids", &["jid", "load"]),
    (
        "salt_returns",
        &["fun", "jid", "id", "fun_args", "date", "full_ret", "success", "authority", "outcome"],
    ),
    ("salt_events", &["tag", "data", "alter_time", "master_id", "event_id"]),
];

/// What `get_jid`, `get_fun`, `get_minions` and looking for old rows need.
const INDEXES: &[(&str, &str)] = &[
    ("idx_jids_jid", "jids (jid)"),
    ("idx_salt_returns_jid", "salt_returns (jid, id)"),
    ("idx_salt_returns_fun", "salt_returns (fun, id, jid)"),
    ("idx_salt_returns_id", "salt_returns (id)"),
    ("idx_salt_returns_date", "salt_returns (date)"),
    ("idx_salt_events_tag", "salt_events (tag)"),
    ("idx_salt_events_alter_time", "salt_events (alter_time)"),
];

/// Sets the connection up and makes what the database lacks.
fn prepare(connection: &Connection, path: &Path) -> rusqlite::Result<()> {
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        warn!(database = %path.display(), mode, "write-ahead logging is not possible here");
    }
    // After a burst the log shrinks to this many bytes again.
    connection
        .execute_batch("PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 67108864")?;
    connection.execute_batch(TABLES)?;
    for (table, columns) in COLUMNS {
        for column in *columns {
            if !connection.column_exists(None, *table, *column)? {
                connection
                    .execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} TEXT"))?;
            }
        }
    }
    if !has_unique_index(connection, "salt_events", "event_id")? {
        connection.execute_batch(
            "CREATE UNIQUE INDEX idx_salt_events_event_id ON salt_events (event_id)",
        )?;
    }
    for (name, on) in INDEXES {
        if *name == "idx_jids_jid" && has_unique_index(connection, "jids", "jid")? {
            continue;
        }
        connection.execute_batch(&format!("CREATE INDEX IF NOT EXISTS {name} ON {on}"))?;
    }
    Ok(())
}

fn has_unique_index(connection: &Connection, table: &str, column: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM pragma_index_list(?1) AS list WHERE list.\"unique\" AND NOT \
               list.partial AND (SELECT group_concat(name) FROM pragma_index_info(list.name)) = ?2";
    connection.query_row(sql, [table, column], |row| row.get::<_, i64>(0)).map(|count| count > 0)
}

const INSERT_EVENT: &str = "INSERT INTO salt_events (tag, data, alter_time, master_id, event_id) \
     VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (event_id) DO NOTHING";
// Not by ON CONFLICT, for a table that somebody made without the key.
const INSERT_JID: &str = "INSERT INTO jids (jid, load) SELECT ?1, ?2 \
     WHERE NOT EXISTS (SELECT 1 FROM jids WHERE jid = ?1)";
// By statements of their own, since Salt's table has no key and may hold a return twice.
const SELECT_RETURNS: &str = "SELECT coalesce(authority, ''), instr(full_ret, '\"VALUE_TRIMMED\"') > 0 \
     FROM salt_returns WHERE jid = ?1 AND id = ?2";
const DELETE_RETURN: &str = "DELETE FROM salt_returns WHERE jid = ?1 AND id = ?2";
const INSERT_RETURN: &str = "INSERT INTO salt_returns \
     (fun, jid, id, fun_args, date, full_ret, success, authority, outcome) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

/// JSON, which is UTF-8, as TEXT without checking it once more.
struct Json<'a>(&'a [u8]);

impl ToSql for Json<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

fn insert(
    connection: &Connection,
    entry: Entry<'_>,
    scratch: &mut Scratch,
) -> rusqlite::Result<()> {
    let event = entry.event;
    scratch.times.set(entry.received);
    let mut statement = connection.prepare_cached(INSERT_EVENT)?;
    statement.raw_bind_parameter(1, event.tag())?;
    statement.raw_bind_parameter(2, Json(event.json(&mut scratch.json)))?;
    statement.raw_bind_parameter(3, &scratch.times.utc)?;
    statement.raw_bind_parameter(4, &entry.origin.master_id)?;
    statement.raw_bind_parameter(5, event.id().to_string())?;
    let is_repeated = statement.raw_execute()? == 0;
    // Lets go of what is bound.
    drop(statement);
    let (runner, step) = RunnerJob::of_event(event, &entry.origin.master_id).unzip();
    match (event.kind(), step) {
        (EventKind::JobNew, _) | (_, Some(Step::New)) => insert_job(connection, event, scratch),
        (EventKind::JobReturn, _) | (_, Some(Step::Return)) => {
            // A return of no job has no key by which a repeated one is known.
            let fields = event.fields();
            match is_repeated && fields.job().is_none() {
                true => Ok(()),
                false => insert_return(connection, entry, &fields, runner, scratch),
            }
        }
        _ => Ok(()),
    }
}

fn insert_job(
    connection: &Connection,
    event: &Event,
    scratch: &mut Scratch,
) -> rusqlite::Result<()> {
    // Salt makes no event whose tag contradicts it: it says nothing of either job.
    let Some(jid) = event.fields().job().filter(|_| !event.tag_contradicts_data()) else {
        return Ok(());
    };
    let mut statement = connection.prepare_cached(INSERT_JID)?;
    statement.raw_bind_parameter(1, jid)?;
    statement.raw_bind_parameter(2, Json(event.json(&mut scratch.json)))?;
    statement.raw_execute().map(drop)
}

fn insert_return(
    connection: &Connection,
    entry: Entry<'_>,
    fields: &Fields<'_>,
    runner: Option<RunnerJob<'_>>,
    scratch: &mut Scratch,
) -> rusqlite::Result<()> {
    let event = entry.event;
    let payload = event.payload();
    let standing = Standing::of(event, entry.authority);
    // As Salt's job cache has it, which gets a runner's event as what the master returned.
    let (id, value) = match runner {
        Some(runner) => (Some(runner.master), Some(runner.data)),
        None => (fields.minion, fields.job_return.value()),
    };
    let precedence = Precedence { standing, trimmed: is_trimmed(value, &mut scratch.json) };
    let stored = match fields.job() {
        Some(jid) => stored_worth(connection, jid, id)?,
        None => None,
    };
    match stored {
        None => {}
        Some(stored) if precedence.replaces(stored) => {
            let mut delete = connection.prepare_cached(DELETE_RETURN)?;
            delete.execute(params![fields.jid, id])?;
        }
        Some(_) => return Ok(()),
    }
    let listed_function;
    let function = match (fields.job_return.functions.single(), msgpack::find(payload, "fun")) {
        (None, Some(list)) => {
            let mut text = Vec::new();
            json::write(list, &mut text);
            listed_function = text;
            Some(Json(&listed_function))
        }
        (text, _) => text.map(|text| Json(text.as_bytes())),
    };
    scratch.python.clear();
    let args = msgpack::find(payload, "fun_args").filter(|args| is_true(args));
    let args = args.map(|args| {
        python::str(args, &mut scratch.python);
        scratch.python.as_str()
    });
    scratch.json.clear();
    scratch.json.reserve_exact(entry.event.long().unwrap_or_default());
    match value {
        Some(value) => _ = json::write(value, &mut scratch.json),
        None => scratch.json.extend_from_slice(b"null"),
    }
    let mut statement = connection.prepare_cached(INSERT_RETURN)?;
    statement.raw_bind_parameter(1, function)?;
    statement.raw_bind_parameter(2, fields.jid)?;
    statement.raw_bind_parameter(3, id)?;
    statement.raw_bind_parameter(4, args)?;
    statement.raw_bind_parameter(5, &scratch.times.local)?;
    statement.raw_bind_parameter(6, Json(&scratch.json))?;
    statement.raw_bind_parameter(7, success_text(&fields.job_return))?;
    statement.raw_bind_parameter(8, standing.name())?;
    statement.raw_bind_parameter(9, fields.job_return.outcome().name())?;
    statement.raw_execute().map(drop)
}

/// Tells if the master left something out of what was returned, by the JSON of it: the table keeps
/// nothing else by which the stored ones could be judged.
fn is_trimmed(value: Option<&[u8]>, scratch: &mut Vec<u8>) -> bool {
    let is_likely = |value: &&[u8]| memchr::memmem::find(value, b"VALUE_TRIMMED").is_some();
    let Some(value) = value.filter(is_likely) else { return false };
    scratch.clear();
    json::write(value, scratch);
    memchr::memmem::find(scratch, b"\"VALUE_TRIMMED\"").is_some()
}

/// The worth of the best of the rows of a return; `None` if there is none.
fn stored_worth(
    connection: &Connection,
    jid: &str,
    id: Option<&str>,
) -> rusqlite::Result<Option<Precedence>> {
    let mut select = connection.prepare_cached(SELECT_RETURNS)?;
    let mut rows = select.query(params![jid, id])?;
    let mut best: Option<Precedence> = None;
    while let Some(row) = rows.next()? {
        let standing = Standing::named(row.get_ref(0)?.as_str().unwrap_or_default());
        let precedence = Precedence { standing, trimmed: row.get(1)? };
        if best.is_none_or(|best| precedence.replaces(best)) {
            best = Some(precedence);
        }
    }
    Ok(best)
}

/// What `bool(value)` says in Python: Salt stores only arguments that are true.
fn is_true(value: &[u8]) -> bool {
    match msgpack::scalar(value) {
        None
        | Some(
            Item::Nil
            | Item::Bool(false)
            | Item::Array(0)
            | Item::Map(0)
            | Item::Int(0)
            | Item::Uint(0),
        ) => false,
        Some(Item::Str(bytes) | Item::Bin(bytes)) => !bytes.is_empty(),
        Some(Item::Float(float)) => float != 0.0,
        Some(_) => true,
    }
}

/// `ret.get("success", "")` as SQLite keeps it in a TEXT column.
fn success_text(job_return: &JobReturn<'_>) -> &'static str {
    match job_return.success() {
        Some(true) => "1",
        Some(false) => "0",
        None => "",
    }
}

impl Times {
    fn set(&mut self, received: u64) {
        if self.received.replace(received) == Some(received) {
            return;
        }
        let micros = i64::try_from(received).unwrap_or(i64::MAX);
        let time = Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX);
        let text = |zone| time.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S%.6f").to_string();
        self.utc = text(TimeZone::UTC);
        self.local = text(TimeZone::system());
    }
}

/// Whether the database refuses a value, rather than everything.
fn is_refusal(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                | ErrorCode::TooBig
                | ErrorCode::ParameterOutOfRange
        )
    )
}

fn classified(doing: String, database: &Path, error: rusqlite::Error) -> WriteError {
    if is_refusal(&error) {
        return WriteError::reject(doing, error);
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            let advice = "another process holds it; the batch comes again";
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
        // A damaged file may be repaired or put aside meanwhile, permissions be corrected, a table
        // that was dropped is made again: all of it over a fresh connection.
        _ => WriteError::reconnect(doing, error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rmpv::Value;

    use super::*;
    use crate::event::chunk::{Chunk, Share};
    use crate::event::{Authority, Event, Origin};
    use crate::sink::contract::Partly;

    const JID: &str = "20261121233336123456";

    fn config(database: &Path) -> Config {
        Config { database: database.to_owned(), timeout: Span::millis(20) }
    }

    fn open(database: &Path) -> Sqlite3 {
        Sqlite3::open(&config(database)).unwrap()
    }

    fn event(tag: &str, pairs: &[(&str, Value)]) -> Event {
        let pairs = pairs.iter().map(|(key, value)| (Value::from(*key), value.clone())).collect();
        let mut payload = Vec::new();
        rmpv::encode::write_value(&mut payload, &Value::Map(pairs)).unwrap();
        Event::new(tag, &payload)
    }

    fn job_return(minion: &str, more: &[(&str, Value)]) -> Event {
        let mut pairs = vec![
            ("fun", Value::from("cmd.run")),
            ("jid", Value::from(JID)),
            ("id", Value::from(minion)),
            ("return", Value::from("done")),
        ];
        for (key, value) in more {
            pairs.retain(|(name, _)| name != key);
            pairs.push((*key, value.clone()));
        }
        event(&format!("salt/job/{JID}/ret/{minion}"), &pairs)
    }

    fn batch(events: Vec<Event>) -> Batch {
        vouched(Authority::Bus, events)
    }

    fn vouched(authority: Authority, events: Vec<Event>) -> Batch {
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "master-1".into() });
        let chunk = Chunk::new(origin, 1_795_304_016_000_250, events).vouched_for_by(authority);
        Batch::new(1, 0, vec![Share::all(Arc::new(chunk))])
    }

    #[test]
    fn invariant_7_the_truth_stands_whenever_a_forgery_comes() {
        let said = |text: &str| job_return("web-1", &[("return", Value::from(text))]);
        let contradicted = || {
            let pairs = [("jid", Value::from(JID)), ("id", Value::from("web-1"))];
            event(&format!("salt/job/{JID}/ret/web-2"), &pairs)
        };
        let forged = || batch(vec![said("forged")]);
        let truth = || vouched(Authority::Master, vec![said("true")]);
        for (order, stands) in [
            (vec![forged(), truth()], "\"true\" | master"),
            (vec![truth(), forged(), truth()], "\"true\" | master"),
            // The master's word comes for an event that came by the bus before.
            (vec![forged(), batch(vec![said("true")]), truth()], "\"true\" | master"),
            (vec![forged(), batch(vec![said("true")])], "\"forged\" | bus"),
            (vec![batch(vec![contradicted()])], "null | contradicted"),
            (vec![batch(vec![contradicted()]), forged()], "\"forged\" | bus"),
            (vec![forged(), batch(vec![contradicted()])], "\"forged\" | bus"),
            (vec![batch(vec![said("VALUE_TRIMMED")]), forged()], "\"forged\" | bus"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let database = folder.path().join("salt.db");
            let mut sink = open(&database);
            for batch in &order {
                sink.store(batch).unwrap();
                sink.store(batch).unwrap();
            }
            assert_eq!(rows(&database, "SELECT full_ret, authority FROM salt_returns"), [stands]);
        }
    }

    /// Rows as text, `-` for NULL.
    fn rows(database: &Path, sql: &str) -> Vec<String> {
        let connection = Connection::open(database).unwrap();
        let mut statement = connection.prepare(sql).unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| {
            let cells = (0..columns).map(|n| match row.get_ref(n).unwrap() {
                ValueRef::Null => "-".to_owned(),
                ValueRef::Integer(int) => format!("#{int}"),
                ValueRef::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                other => panic!("{other:?}"),
            });
            Ok(cells.collect::<Vec<_>>().join(" | "))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn rows_are_what_salt_writes() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        let args = Value::Array(vec![
            Value::from("it's"),
            Value::Map(vec![(Value::from("__kwarg__"), Value::from(true))]),
        ]);
        let list = Value::Array(vec![Value::from("test.ping"), Value::from("test.arg")]);
        let load = [("jid", Value::from(JID)), ("fun", Value::from("cmd.run"))];
        open(&database)
            .store(&batch(vec![
                event(&format!("salt/job/{JID}/new"), &load),
                job_return("web-1", &[("fun_args", args), ("success", Value::from(true))]),
                job_return(
                    "web-2",
                    &[
                        ("fun_args", Value::Array(vec![])),
                        ("success", Value::from(false)),
                        ("return", Value::Binary(vec![b'a', 0xff])),
                    ],
                ),
                job_return("web-3", &[("fun", list)]),
                event("my/app", &[("n", Value::from(1))]),
            ]))
            .unwrap();
        assert_eq!(
            rows(&database, "SELECT jid, load FROM jids"),
            [format!(r#"{JID} | {{"jid": "{JID}", "fun": "cmd.run"}}"#)]
        );
        assert_eq!(
            rows(&database, "SELECT fun, jid, id, fun_args, full_ret, success FROM salt_returns"),
            [
                format!(
                    r#"cmd.run | {JID} | web-1 | ["it's", {{'__kwarg__': True}}] | "done" | 1"#
                ),
                format!("cmd.run | {JID} | web-2 | - | \"a\u{fffd}\" | 0"),
                format!(r#"["test.ping", "test.arg"] | {JID} | web-3 | - | "done" | "#),
            ]
        );
        let events = rows(
            &database,
            "SELECT id, tag, data, alter_time, master_id, length(event_id) FROM salt_events WHERE tag = 'my/app'",
        );
        assert_eq!(
            events,
            [r#"#5 | my/app | {"n": 1} | 2026-11-21 23:33:36.000250 | master-1 | #32"#]
        );
        // Local time, in the form of Python's `str(datetime.now())`.
        let local = Timestamp::from_microsecond(1_795_304_016_000_250).unwrap();
        let local = local.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S.000250");
        assert_eq!(rows(&database, "SELECT DISTINCT date FROM salt_returns"), [local.to_string()]);
        let metadata = std::fs::metadata(&database).unwrap();
        assert_eq!(metadata.mode() & 0o777 & !0o640, 0, "the database is for its owner and group");
        assert_eq!(rows(&database, "PRAGMA journal_mode"), ["wal"]);
    }

    #[test]
    fn invariant_4_a_repeated_batch_leaves_one_copy() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        let mut sink = open(&database);
        let tag = format!("salt/job/{JID}/new");
        let events = || {
            batch(vec![
                event(&tag, &[("jid", Value::from(JID)), ("fun", Value::from("first"))]),
                job_return("web-1", &[("success", Value::from(true))]),
            ])
        };
        sink.store(&events()).unwrap();
        sink.store(&events()).unwrap();
        sink.store(&batch(vec![
            event(&tag, &[("jid", Value::from(JID)), ("fun", Value::from("second"))]),
            job_return("web-1", &[("return", Value::from("anew")), ("success", Value::from(true))]),
        ]))
        .unwrap();
        assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#4"]);
        assert_eq!(rows(&database, "SELECT id, full_ret FROM salt_returns"), ["web-1 | \"done\""]);
        let loads = rows(&database, "SELECT load FROM jids");
        assert_eq!(loads, [format!(r#"{{"jid": "{JID}", "fun": "first"}}"#)]);
    }

    #[test]
    fn returns_of_no_job_all_stay_and_none_twice() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        let mut sink = open(&database);
        let nocache = |fun: &str, tag: &str| {
            let fields = [("jid", "nocache"), ("id", "web-1"), ("fun", fun), ("return", fun)];
            event(tag, &fields.map(|(key, text)| (key, Value::from(text))))
        };
        let events = || {
            let of = |fun| nocache(fun, "salt/job/nocache/ret/web-1");
            batch(vec![of("a.b"), of("c.d"), nocache("a.b", "salt/job/nocache/new")])
        };
        sink.store(&events()).unwrap();
        sink.store(&events()).unwrap();
        let stored = rows(&database, "SELECT fun, jid, full_ret FROM salt_returns");
        assert_eq!(stored, [r#"a.b | nocache | "a.b""#, r#"c.d | nocache | "c.d""#]);
        assert_eq!(rows(&database, "SELECT count(*) FROM jids"), ["#0"]);
    }

    #[test]
    fn a_runner_is_a_job_of_its_master() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        let mut sink = open(&database);
        let fields = [("jid", Value::from(JID)), ("fun", Value::from("runner.a.b"))];
        let ended = [&fields[..], &[("success", true.into()), ("return", 5.into())]].concat();
        let run = |part: &str, fields| event(&format!("salt/run/{JID}/{part}"), fields);
        let events = vec![run("new", &fields), run("args", &fields), run("ret", &ended)];
        sink.store(&batch(events)).unwrap();
        let load = format!(r#"{{"jid": "{JID}", "fun": "runner.a.b"}}"#);
        assert_eq!(rows(&database, "SELECT load FROM jids"), [load]);
        let stored =
            rows(&database, "SELECT fun, id, full_ret, success, outcome FROM salt_returns");
        let event =
            format!(r#"{{"jid": "{JID}", "fun": "runner.a.b", "success": true, "return": 5}}"#);
        assert_eq!(stored, [format!("runner.a.b | master-1 | {event} | 1 | worked")]);
    }

    #[test]
    fn a_job_of_several_functions_failed_if_one_did() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        let mut sink = open(&database);
        let several = |of: [Value; 2]| {
            let named =
                [("test.ping", 0), ("cmd.run", 1)].map(|(name, at)| (name.into(), of[at].clone()));
            Value::Map(named.to_vec())
        };
        let fun = Value::Array(vec!["test.ping".into(), "cmd.run".into()]);
        let fields = [
            ("fun", fun),
            ("success", several([true.into(), false.into()])),
            ("retcode", several([0.into(), 1.into()])),
        ];
        sink.store(&batch(vec![job_return("web-1", &fields)])).unwrap();
        let stored = rows(&database, "SELECT fun, success, outcome FROM salt_returns");
        assert_eq!(stored, [r#"["test.ping", "cmd.run"] | 0 | failed"#]);
    }

    #[test]
    fn an_event_of_a_job_whose_tag_names_another_one_is_no_load() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        let mut sink = open(&database);
        let forged = event("salt/job/20261121233336999999/new", &[("jid", Value::from(JID))]);
        sink.store(&batch(vec![forged])).unwrap();
        assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#1"]);
        assert_eq!(rows(&database, "SELECT count(*) FROM jids"), ["#0"]);
    }

    #[test]
    fn stored_and_new_returns_are_judged_alike() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        let mut sink = open(&database);
        let mut stored = |name: &str, value: Value| {
            let trimmed = Value::from("VALUE_TRIMMED");
            let load = [("return", value), ("fun_args", trimmed), ("name", Value::from(name))];
            sink.store(&batch(vec![job_return("web-1", &load)])).unwrap();
            rows(&database, "SELECT full_ret FROM salt_returns")
        };
        let trimmed = Value::Array(vec![Value::Binary(b"VALUE_TRIMMED".to_vec())]);
        assert_eq!(stored("a", trimmed.clone()), [r#"["VALUE_TRIMMED"]"#]);
        assert_eq!(stored("b", trimmed), [r#"["VALUE_TRIMMED"]"#]);
        // That something else of it was trimmed makes no difference to the table.
        assert_eq!(stored("c", Value::from("whole")), [r#""whole""#]);
        assert_eq!(stored("d", Value::from("forged")), [r#""whole""#]);
    }

    #[test]
    fn a_database_of_salt_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        // As the documentation of Salt's returner makes it, with a return stored twice.
        let connection = Connection::open(&database).unwrap();
        connection
            .execute_batch(&format!(
                "CREATE TABLE jids (jid TEXT PRIMARY KEY, load TEXT NOT NULL);
                 CREATE TABLE salt_returns (fun TEXT KEY, jid TEXT KEY, id TEXT KEY, fun_args TEXT,
                     date TEXT NOT NULL, full_ret TEXT NOT NULL, success TEXT NOT NULL);
                 INSERT INTO salt_returns VALUES ('a', '{JID}', 'old', NULL, 'then', '1', '1');
                 INSERT INTO salt_returns VALUES ('a', '{JID}', 'web-1', NULL, 'then', '1', '1');
                 INSERT INTO salt_returns VALUES ('a', '{JID}', 'web-1', NULL, 'then', '2', '1');
                 CREATE TABLE salt_events (id INTEGER PRIMARY KEY, tag TEXT, data TEXT);
                 INSERT INTO salt_events (tag, data) VALUES ('older', '{{}}');"
            ))
            .unwrap();
        drop(connection);
        // Who vouched for what is there is not known, and it was first.
        open(&database).store(&batch(vec![job_return("web-1", &[])])).unwrap();
        assert_eq!(rows(&database, "SELECT count(*) FROM salt_returns"), ["#3"]);
        for _ in 0..2 {
            let by_master = vouched(Authority::Master, vec![job_return("web-1", &[])]);
            open(&database).store(&by_master).unwrap();
        }
        assert_eq!(
            rows(&database, "SELECT fun, id, full_ret, authority FROM salt_returns ORDER BY id"),
            ["a | old | 1 | -", "cmd.run | web-1 | \"done\" | master"]
        );
        assert_eq!(
            rows(&database, "SELECT tag, master_id FROM salt_events ORDER BY id"),
            ["older | -".to_owned(), format!("salt/job/{JID}/ret/web-1 | master-1")]
        );
    }

    #[test]
    fn the_readers_queries_use_indexes() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        drop(open(&database));
        for query in [
            "SELECT load FROM jids WHERE jid = 'x'",
            "SELECT id, full_ret FROM salt_returns WHERE jid = 'x'",
            "SELECT id FROM salt_returns WHERE fun = 'x'",
            "SELECT MAX(jid) FROM salt_returns GROUP BY fun, id",
            "SELECT DISTINCT id FROM salt_returns",
            "DELETE FROM salt_returns WHERE date < 'x'",
            "DELETE FROM salt_returns WHERE jid = 'x' AND id = 'y'",
            "SELECT authority FROM salt_returns WHERE jid = 'x' AND id = 'y'",
            "SELECT data FROM salt_events WHERE tag = 'x'",
            "DELETE FROM salt_events WHERE alter_time < 'x'",
            "SELECT 1 FROM salt_events WHERE event_id = 'x'",
        ] {
            let plan = rows(&database, &format!("EXPLAIN QUERY PLAN {query}")).join("\n");
            assert!(plan.contains("INDEX") && !plan.contains("TEMP B-TREE"), "{query}: {plan}");
        }
    }

    fn guard(database: &Path, action: &str) {
        let connection = Connection::open(database).unwrap();
        let trigger = format!(
            "CREATE TRIGGER guard BEFORE INSERT ON salt_returns WHEN new.id = 'bad'
             BEGIN SELECT RAISE({action}, 'no bad ones'); END"
        );
        connection.execute_batch(&trigger).unwrap();
    }

    #[test]
    fn invariant_5_a_refused_event_is_named_and_the_others_are_stored() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        let mut sink = open(&database);
        guard(&database, "ABORT");
        let events = ["good", "bad", "fine"].map(|minion| job_return(minion, &[]));
        let error = sink.store(&batch(events.into())).unwrap_err();
        let WriteError::Partly(Partly { refused, again: None, .. }) = error else {
            panic!("{error:?}");
        };
        let [Refusal { place: 1, cause }] = refused.as_slice() else { panic!("{refused:?}") };
        assert!(cause.to_string().contains("no bad ones"), "{cause}");
        assert_eq!(rows(&database, "SELECT id FROM salt_returns ORDER BY rowid"), ["good", "fine"]);
        // Of the refused event nothing is stored.
        assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#2"]);
    }

    #[test]
    fn a_trigger_that_rolls_everything_back_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        let mut sink = open(&database);
        guard(&database, "ROLLBACK");
        let events = ["good", "bad", "fine"].map(|minion| job_return(minion, &[]));
        let error = sink.store(&batch(events.into())).unwrap_err();
        assert!(matches!(error, WriteError::Reject { .. }), "{error:?}");
        assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#0"]);
        sink.store(&batch(vec![job_return("good", &[])])).unwrap();
        assert_eq!(rows(&database, "SELECT id FROM salt_returns"), ["good"]);
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_may_not_is_fatal() {
        let folder = tempfile::tempdir().unwrap();
        let fails = |path: &Path| Sqlite3::open(&config(path)).err().unwrap();

        let error = fails(&folder.path().join("absent/salt.db"));
        assert!(matches!(error, WriteError::Retry { .. }), "{error:?}");
        assert!(error.chain().contains("create the directory"), "{}", error.chain());

        assert!(matches!(fails(folder.path()), WriteError::Fatal { .. }));

        let text = folder.path().join("text");
        std::fs::write(&text, "not a database, but long enough to be taken for one\n".repeat(99))
            .unwrap();
        assert!(matches!(fails(&text), WriteError::Fatal { .. }));

        let database = folder.path().join("salt.db");
        let mut sink = open(&database);
        let locker = Connection::open(&database).unwrap();
        locker.execute_batch("BEGIN IMMEDIATE").unwrap();
        let error = sink.store(&batch(vec![job_return("web-1", &[])])).unwrap_err();
        assert!(matches!(error, WriteError::Retry { .. }), "{error:?}");
        locker.execute_batch("COMMIT").unwrap();
        sink.store(&batch(vec![job_return("web-1", &[])])).unwrap();

        locker.execute_batch("DROP TABLE salt_events").unwrap();
        let error = sink.store(&batch(vec![job_return("web-1", &[])])).unwrap_err();
        assert!(matches!(error, WriteError::Reconnect { .. }), "{error:?}");
        drop(sink);
        open(&database).store(&batch(vec![job_return("web-1", &[])])).unwrap();
        assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#1"]);
    }

    #[test]
    fn a_database_without_room_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = open(&folder.path().join("salt.db"));
        let set = |sink: &Sqlite3, pages: &str| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            sink.connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap();
        };
        set(&sink, "1");
        let large = vec![job_return("web-1", &[("return", Value::from("x".repeat(100_000)))])];
        let large = batch(large);
        let error = sink.store(&large).unwrap_err();
        assert!(matches!(error, WriteError::Retry { .. }), "{error:?}");
        set(&sink, "1000000");
        sink.store(&large).unwrap();
    }

    #[test]
    fn a_database_that_is_removed_or_replaced_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        for replaced in [false, true] {
            let mut sink = open(&database);
            sink.store(&batch(vec![job_return("web-1", &[])])).unwrap();
            std::fs::remove_file(&database).unwrap();
            if replaced {
                std::fs::write(&database, "").unwrap();
            }
            let error = sink.store(&batch(vec![job_return("web-2", &[])])).unwrap_err();
            assert!(matches!(error, WriteError::Reconnect { .. }), "{error:?}");
            drop(sink);
            open(&database).store(&batch(vec![job_return("web-2", &[])])).unwrap();
            assert_eq!(rows(&database, "SELECT id FROM salt_returns"), ["web-2"]);
            std::fs::remove_file(&database).unwrap();
        }
    }

    #[test]
    fn two_writers_share_a_database() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("salt.db");
        let minions = ["web-1", "web-2", "web-3", "web-4"];
        std::thread::scope(|scope| {
            for minion in minions {
                let config = Config { timeout: Span::seconds(30), ..config(&database) };
                scope.spawn(move || {
                    let mut sink = Sqlite3::open(&config).unwrap();
                    for n in 0..20 {
                        let more = [("n", Value::from(n))];
                        sink.store(&batch(vec![job_return(minion, &more)])).unwrap();
                    }
                });
            }
        });
        assert_eq!(rows(&database, "SELECT count(*) FROM salt_events"), ["#80"]);
        assert_eq!(rows(&database, "SELECT id FROM salt_returns ORDER BY id"), minions);
    }
}
