//! The file of the job cache and its tables.
//!
//! * `jobs`, a row for each job: `jid`, `fun`, `user`; `load` (msgpack) and `rank`, which says
//!   where it comes from; `end_time` as Salt gave it; `began`, `first_seen`, `last_seen`
//!   (microseconds since 1970); `functions`, the number of its rows in that table; the numbers of
//!   minions that are `expected`, have `returned`, have `failed`, and of the expected that are
//!   `missing`. `began` is NULL in rows of an older release until it is looked up.
//! * `functions`, a row for each function of a job of several: `job`, `place`, `fun`.
//! * `minions`, a row for each name of a minion: `id`, `name`.
//! * `expected`, a row for each minion that a job was meant for: `job`, `minion`.
//! * `returns`, a row for each return: `job`, `minion`, `received`; `outcome` (1, 0, NULL if it
//!   does not say); `trimmed`; `load` (msgpack of the whole return); `standing` (who vouches for
//!   it, see [`crate::event::standing`]); `conflict` (1 if another return of this minion said
//!   something else); `tag` (of a return whose tag contradicts it); `runner` (1 if the master
//!   itself returned it); `test` (1 if it says what it would change; NULL in rows that an older
//!   release has judged).

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};

use super::began::began;

/// Another process, a reader of the file for instance, may hold a lock for a moment.
const BUSY: Duration = Duration::from_secs(5);

/// Statements of a connection that stay prepared.
const STATEMENTS: usize = 64;

/// The `user_version` once the tables are there, with all columns.
const VERSION: i64 = 3;

/// Columns that a file of an older release lacks, with their tables. It does not tell who vouched
/// for its rows.
const ADDED: [(&str, &str, &str); 7] = [
    ("returns", "standing", "INTEGER NOT NULL DEFAULT 1"),
    ("returns", "conflict", "INTEGER NOT NULL DEFAULT 0"),
    ("returns", "tag", "TEXT"),
    ("returns", "runner", "INTEGER NOT NULL DEFAULT 0"),
    ("returns", "test", "INTEGER"),
    ("jobs", "began", "INTEGER"),
    ("jobs", "functions", "INTEGER NOT NULL DEFAULT 0"),
];

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY,
    jid TEXT NOT NULL UNIQUE,
    fun TEXT,
    user TEXT,
    load BLOB,
    rank INTEGER NOT NULL DEFAULT 0,
    end_time TEXT,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    expected INTEGER NOT NULL DEFAULT 0,
    returned INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    missing INTEGER NOT NULL DEFAULT 0,
    began INTEGER,
    functions INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS jobs_fun ON jobs (fun, jid);
CREATE INDEX IF NOT EXISTS jobs_last_seen ON jobs (last_seen);
CREATE TABLE IF NOT EXISTS minions (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS expected (
    job INTEGER NOT NULL, minion INTEGER NOT NULL, PRIMARY KEY (job, minion)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS expected_minion ON expected (minion);
CREATE TABLE IF NOT EXISTS returns (
    job INTEGER NOT NULL,
    minion INTEGER NOT NULL,
    received INTEGER NOT NULL,
    outcome INTEGER,
    trimmed INTEGER NOT NULL,
    load BLOB NOT NULL,
    standing INTEGER NOT NULL DEFAULT 1,
    conflict INTEGER NOT NULL DEFAULT 0,
    tag TEXT,
    runner INTEGER NOT NULL DEFAULT 0,
    test INTEGER
);
CREATE UNIQUE INDEX IF NOT EXISTS returns_job ON returns (job, minion);
CREATE INDEX IF NOT EXISTS returns_minion ON returns (minion);
CREATE TABLE IF NOT EXISTS functions (
    job INTEGER NOT NULL, place INTEGER NOT NULL, fun TEXT NOT NULL, PRIMARY KEY (job, place)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS functions_fun ON functions (fun, job);
";

/// Indexes of columns that are added. Each takes seconds for a million rows.
const INDEXES: [&str; 3] = [
    "CREATE INDEX IF NOT EXISTS jobs_started ON jobs (coalesce(began, first_seen), jid)",
    "CREATE INDEX IF NOT EXISTS jobs_undated ON jobs (id) WHERE began IS NULL",
    "CREATE INDEX IF NOT EXISTS returns_unjudged ON returns (job) WHERE test IS NULL",
];

/// Removes rows that an older release has written meanwhile: returns under an id of no job, and
/// functions of jobs that are listed with none.
const LEFT_BEHIND: &str = "
DELETE FROM returns WHERE job IN (SELECT id FROM jobs WHERE jid IN ('', 'nocache', 'req'));
DELETE FROM expected WHERE job IN (SELECT id FROM jobs WHERE jid IN ('', 'nocache', 'req'));
DELETE FROM jobs WHERE jid IN ('', 'nocache', 'req');
DELETE FROM functions
    WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = functions.job AND jobs.functions > 0);
";

/// Jobs whose beginning is looked up together.
const SOME_JOBS: usize = 2000;

pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "normal")?;
    make_tables(&mut connection)?;
    Ok(connection)
}

/// Makes the tables, or the columns that a file of an older release lacks. An older release reads
/// and writes what this makes, and sets the version back. The first answer waits for no more:
/// [`catch_up`] does the work that takes long in a large file.
fn make_tables(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    for (table, column, kind) in ADDED {
        if !transaction.column_exists(None, table, column)? {
            transaction
                .execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} {kind}"))?;
        }
    }
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == 0 {
        INDEXES.iter().try_for_each(|index| transaction.execute_batch(index))?;
    }
    if version < VERSION {
        transaction.execute_batch(LEFT_BEHIND)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}

/// Makes an index that a file of an older release lacks, or says of some of its jobs when they
/// began; `true` if there may be more to do. Until then a job is taken to have begun when it was
/// first heard of.
pub(super) fn catch_up(transaction: &Transaction<'_>) -> rusqlite::Result<bool> {
    for index in INDEXES {
        let before = indexes(transaction)?;
        transaction.execute_batch(index)?;
        if indexes(transaction)? != before {
            return Ok(true);
        }
    }
    Ok(fill_began(transaction)? == SOME_JOBS)
}

/// The number of indexes.
fn indexes(transaction: &Transaction<'_>) -> rusqlite::Result<i64> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'index'";
    transaction.query_row(sql, [], |row| row.get(0))
}

/// Stores the beginning of some jobs. Returns their number.
fn fill_began(transaction: &Transaction<'_>) -> rusqlite::Result<usize> {
    let mut select = transaction.prepare_cached(
        "SELECT id, CAST(jid AS BLOB), first_seen FROM jobs WHERE began IS NULL LIMIT ?",
    )?;
    let mut update = transaction.prepare_cached("UPDATE jobs SET began = ? WHERE id = ?")?;
    let jobs = select.query_map([i64::try_from(SOME_JOBS).unwrap_or(i64::MAX)], |row| {
        // Damaged values must not keep the file from being opened.
        let jid = row.get::<_, Vec<u8>>(1).unwrap_or_default();
        let first_seen = row.get::<_, i64>(2).unwrap_or_default();
        Ok((row.get::<_, i64>(0)?, began(&String::from_utf8_lossy(&jid), first_seen)))
    })?;
    let jobs = jobs.collect::<rusqlite::Result<Vec<_>>>()?;
    for (job, began) in &jobs {
        update.execute(params![began, job])?;
    }
    Ok(jobs.len())
}

/// `None` while the tables are not there yet.
pub(super) fn open_to_read(path: &Path) -> rusqlite::Result<Option<Connection>> {
    // Not read-only: the reader of a write-ahead log takes part in its bookkeeping.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == 0 {
        return Ok(None);
    }
    if version < VERSION {
        make_tables(&mut connection)?;
    }
    connection.pragma_update(None, "query_only", true)?;
    Ok(Some(connection))
}
