//! The file in which events wait for their digest, and its tables.
//!
//! * `gathered`, a row for each event that waits: `place`; `at` (microseconds since 1970); `note`,
//!   its line of the digest (JSON).
//! * `seen`, a row for each of the last events: `place`, `id`. A batch that comes again after a
//!   crash is known by them.
//! * `digest`, one row: `key` and `last` (the place of its last event) of the digest that is being
//!   sent, if one is; `counted`, the dropped events that it tells; `dropped`, those that it does
//!   not tell; `sent_at`, when the one before was accepted.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction, params};

use super::message::Note;
use crate::event::EventId;
use crate::files::state_file;
use crate::sink::contract::Cause;

/// A command may look at the file for a moment.
const BUSY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 5000 });

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS gathered (
    place INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, note BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS seen (
    place INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE
);
CREATE TABLE IF NOT EXISTS digest (
    one INTEGER PRIMARY KEY CHECK (one = 1), key TEXT, last INTEGER,
    counted INTEGER NOT NULL DEFAULT 0, dropped INTEGER NOT NULL DEFAULT 0, sent_at INTEGER
);
INSERT OR IGNORE INTO digest (one) VALUES (1);
";

/// An open file.
pub(super) struct File {
    path: PathBuf,
    /// The device and the number of the opened file.
    opened: (u64, u64),
    connection: Connection,
}

/// An event that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) place: i64,
    /// The time of its coming, in microseconds since 1970.
    pub(super) at: i64,
    pub(super) bytes: usize,
}

/// The digest that is being sent. Neither its key nor its events change any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) key: String,
    /// The place of its last event.
    pub(super) last: i64,
    /// The dropped events that it tells.
    pub(super) counted: i64,
}

/// The contents of a file besides the events' notes.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) waiting: Vec<Waiting>,
    pub(super) sealed: Option<Sealed>,
    pub(super) dropped: i64,
    pub(super) sent_at: Option<i64>,
}

/// A transaction.
pub(super) struct Change<'a>(Transaction<'a>);

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl File {
    /// Opens a file, and makes it if it is not there. A damaged one is put aside.
    pub(super) fn open(path: &Path) -> Result<(Self, Found), Cause> {
        if let Some(folder) = path.parent() {
            state_file::create_directory(folder)?;
        }
        state_file::put_foreign_beside_aside(path)?;
        // SQLite has it from then on. Closing this handle would drop no lock, as none is held yet.
        drop(state_file::open_or_replace(path)?);
        match File::opened(path) {
            Err(Unopened::Sqlite(error)) if state_file::is_damaged(&error) => {
                state_file::put_aside(path, &error)?;
                drop(state_file::create(path)?);
                Ok(File::opened(path)?)
            }
            opened => Ok(opened?),
        }
    }

    /// The number of events that wait in a file, which stays as it is.
    pub(super) fn count(path: &Path) -> rusqlite::Result<i64> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.query_row("SELECT count(*) FROM gathered", [], |row| row.get(0))
    }

    fn opened(path: &Path) -> Result<(Self, Found), Unopened> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = identity(path)?;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        // An event that is stored here is stored nowhere else.
        connection.pragma_update(None, "synchronous", "full")?;
        connection.execute_batch(TABLES)?;
        let found = found(&connection)?;
        Ok((File { path: path.to_owned(), opened, connection }, found))
    }

    /// True if the file that is open is the one that has its name.
    pub(super) fn is_in_place(&self) -> bool {
        identity(&self.path).is_ok_and(|found| found == self.opened)
    }

    /// Commits all changes of `change`, or none.
    pub(super) fn change<T>(
        &mut self,
        change: impl FnOnce(&Change<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let change_in = Change(self.connection.transaction()?);
        let done = change(&change_in)?;
        change_in.0.commit()?;
        Ok(done)
    }

    /// The notes of the events up to this place.
    pub(super) fn notes(&self, last: i64) -> rusqlite::Result<Vec<Note>> {
        let sql = "SELECT note FROM gathered WHERE place <= ? ORDER BY place";
        let mut select = self.connection.prepare_cached(sql)?;
        let rows = select.query_map([last], |row| row.get::<_, Vec<u8>>(0))?;
        // A note that cannot be read is still an event of the digest.
        rows.map(|note| Ok(serde_json::from_slice(&note?).unwrap_or_default())).collect()
    }
}

/// The reason why a file could not be opened.
#[derive(Debug, thiserror::Error)]
enum Unopened {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

fn found(connection: &Connection) -> rusqlite::Result<Found> {
    let mut select =
        connection.prepare("SELECT place, at, length(note) FROM gathered ORDER BY place")?;
    let waiting = select.query_map([], |row| {
        let bytes = usize::try_from(row.get::<_, i64>(2)?).unwrap_or_default();
        Ok(Waiting { place: row.get(0)?, at: row.get(1)?, bytes })
    })?;
    let waiting = waiting.collect::<rusqlite::Result<_>>()?;
    let sql = "SELECT key, last, counted, dropped, sent_at FROM digest";
    let row = connection.query_row(sql, [], |row| {
        let (key, last) = (row.get::<_, Option<String>>(0)?, row.get::<_, Option<i64>>(1)?);
        let counted = row.get(2)?;
        let sealed = key.zip(last).map(|(key, last)| Sealed { key, last, counted });
        Ok((sealed, row.get(3)?, row.get(4)?))
    });
    let (sealed, dropped, sent_at) = row.optional()?.unwrap_or_default();
    Ok(Found { waiting, sealed, dropped, sent_at })
}

impl Change<'_> {
    /// Stores an event; `None` if it was seen before.
    pub(super) fn gather(
        &self,
        id: EventId,
        at: i64,
        note: &[u8],
    ) -> rusqlite::Result<Option<Waiting>> {
        let mut see = self.0.prepare_cached("INSERT OR IGNORE INTO seen (id) VALUES (?)")?;
        if see.execute([id.0.to_be_bytes()])? == 0 {
            return Ok(None);
        }
        let mut insert = self.0.prepare_cached("INSERT INTO gathered (at, note) VALUES (?, ?)")?;
        insert.execute(params![at, note])?;
        Ok(Some(Waiting { place: self.0.last_insert_rowid(), at, bytes: note.len() }))
    }

    /// Forgets all seen events but the last so many.
    pub(super) fn forget_seen(&self, keep: usize) -> rusqlite::Result<()> {
        let sql = "DELETE FROM seen WHERE place <= (SELECT max(place) FROM seen) - ?";
        self.0.execute(sql, [i64::try_from(keep).unwrap_or(i64::MAX)]).map(drop)
    }

    /// Removes the events between these places, without the first.
    pub(super) fn remove(&self, after: i64, up_to: i64) -> rusqlite::Result<()> {
        let sql = "DELETE FROM gathered WHERE place > ? AND place <= ?";
        self.0.execute(sql, [after, up_to]).map(drop)
    }

    /// Notes how many dropped events no digest has counted, and which digest is being sent.
    pub(super) fn say(&self, dropped: i64, sealed: Option<&Sealed>) -> rusqlite::Result<()> {
        let sql = "UPDATE digest SET dropped = ?, key = ?, last = ?, counted = ?";
        let (key, last) = (sealed.map(|sealed| &sealed.key), sealed.map(|sealed| sealed.last));
        let counted = sealed.map_or(0, |sealed| sealed.counted);
        self.0.execute(sql, params![dropped, key, last, counted]).map(drop)
    }

    /// Notes when the last digest was accepted.
    pub(super) fn sent(&self, at: i64) -> rusqlite::Result<()> {
        self.0.execute("UPDATE digest SET sent_at = ?", [at]).map(drop)
    }
}
