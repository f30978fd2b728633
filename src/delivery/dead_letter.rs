//! Dead letters: events that a sink will never accept, kept for people to look at.
//!
//! They are rows of a SQLite database in `state_dir`. The daemon and the command line may have it
//! open at the same time. The daemon hands a letter that is marked for replay to its sink once
//! more, as the same event with the same id. The letter leaves when the sink has kept it. If it is
//! refused again it becomes a letter again.
//!
//! Triggers of the database keep the table `totals`, so it is true whichever process changes the
//! letters. The daemon's queries read that table or an index: their cost does not grow with the
//! number of letters. The command line works in pages, each a transaction of its own.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use globset::{Glob, GlobMatcher};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params, params_from_iter};
use serde::Serialize;
use thiserror::Error;
use tracing::{error, info};

use crate::client::backoff::Backoff;
use crate::error::chain;
use crate::event::batch::Entry;
use crate::event::{Authority, Event, EventId};
use crate::files::state_file;
use crate::observe::state;
use crate::sync::lock;

/// The database, in `state_dir`.
pub(crate) const FILE: &str = "dead-letters.db";

/// The value of `user_version` once the tables are there.
const VERSION: i64 = 2;

/// Makes the tables, or those that an older file lacks.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sink TEXT NOT NULL,
    event_id TEXT NOT NULL,
    tag TEXT NOT NULL,
    reason TEXT NOT NULL,
    time INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    source TEXT NOT NULL,
    master_id TEXT NOT NULL,
    received INTEGER NOT NULL,
    frame BLOB NOT NULL,
    replay INTEGER NOT NULL DEFAULT 0,
    authority INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS dead_letters_sink ON dead_letters (sink, id);
CREATE INDEX IF NOT EXISTS dead_letters_marked ON dead_letters (sink, id) WHERE replay > 0;
DROP INDEX IF EXISTS dead_letters_replay;
CREATE TABLE IF NOT EXISTS totals (
    sink TEXT PRIMARY KEY,
    letters INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    marked INTEGER NOT NULL
) WITHOUT ROWID;
DELETE FROM totals;
INSERT INTO totals
    SELECT sink, count(*), sum(length(frame)), sum(replay) FROM dead_letters GROUP BY sink;
CREATE TRIGGER IF NOT EXISTS letter_comes AFTER INSERT ON dead_letters BEGIN
    INSERT INTO totals VALUES (NEW.sink, 1, length(NEW.frame), NEW.replay)
    ON CONFLICT (sink) DO UPDATE SET letters = letters + 1,
        bytes = bytes + excluded.bytes, marked = marked + excluded.marked;
END;
CREATE TRIGGER IF NOT EXISTS letter_goes AFTER DELETE ON dead_letters BEGIN
    UPDATE totals SET letters = letters - 1, bytes = bytes - length(OLD.frame),
        marked = marked - OLD.replay WHERE sink = OLD.sink;
END;
CREATE TRIGGER IF NOT EXISTS letter_is_marked AFTER UPDATE OF replay ON dead_letters BEGIN
    UPDATE totals SET marked = marked + NEW.replay - OLD.replay WHERE sink = NEW.sink;
END;
";

/// The column that a file of version 1 lacks.
const ADD_AUTHORITY: &str =
    "ALTER TABLE dead_letters ADD COLUMN authority INTEGER NOT NULL DEFAULT 0";

const INSERT: &str = "INSERT INTO dead_letters (sink, event_id, tag, reason, time, attempts, \
                      source, master_id, received, authority, frame) VALUES (?,?,?,?,?,?,?,?,?,?,?)";
const BYTES: &str = "SELECT coalesce(sum(bytes), 0) FROM totals";
const OLDEST: &str = "SELECT id, length(frame) FROM dead_letters WHERE id > 0 ORDER BY id";
const DELETE_OLDEST: &str = "DELETE FROM dead_letters WHERE id <= ?";
const DELETE: &str = "DELETE FROM dead_letters WHERE id = ?";
const MARK: &str = "UPDATE dead_letters SET replay = 1 WHERE id = ?";
const MARKED: &str = "SELECT id, sink, event_id, tag, reason, time, attempts, source, master_id, \
                      received, replay, authority, frame FROM dead_letters \
                      WHERE sink = ? AND replay > 0 AND id > ? ORDER BY id";
const LETTER: &str = "SELECT id, sink, event_id, tag, reason, time, attempts, source, master_id, \
                      received, replay, authority, frame FROM dead_letters WHERE id = ?";

/// Old letters that may go for one write besides as many as come: a lowered bound is reached in
/// steps.
const STEP: usize = 1000;

/// Rows that are looked at, or changed, in one go.
const PAGE: usize = 1000;

/// The pause between two pages in which the command line lets others write.
const BETWEEN_PAGES: Duration = Duration::from_millis(2);

/// Letters that are handed to a sink together.
const TOGETHER: usize = 256;

/// Bytes of their events, at the most, unless one alone has more.
const TOGETHER_BYTES: usize = 1 << 20;

/// The failure to read or write the dead letters.
#[derive(Debug, Error)]
#[error("{doing}")]
pub struct DeadLetterError {
    doing: &'static str,
    #[source]
    cause: Box<dyn std::error::Error + Send + Sync>,
}

impl DeadLetterError {
    /// True if the file is damaged, or no database.
    fn says_damaged(&self) -> bool {
        self.cause.downcast_ref().is_some_and(state_file::is_damaged)
    }
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    doing: &'static str,
) -> impl Fn(E) -> DeadLetterError {
    move |cause| DeadLetterError { doing, cause: cause.into() }
}

/// A refused event.
#[derive(Debug, Clone, Serialize)]
pub struct Letter {
    /// Its number among the dead letters.
    pub(crate) id: i64,
    /// The sink that refused it.
    pub(crate) sink: String,
    /// The event's id.
    pub(crate) event_id: String,
    /// The event's tag.
    pub(crate) tag: String,
    /// The reason of the refusal.
    pub(crate) reason: String,
    /// The time of the refusal, in microseconds since 1970.
    pub(crate) time: i64,
    /// The number of tries.
    pub(crate) attempts: i64,
    /// The source that read it.
    pub(crate) source: String,
    /// The master whose event it is.
    pub(crate) master_id: String,
    /// The time at which it was read, in microseconds since 1970.
    pub(crate) received: i64,
    /// The authority that vouches for it.
    pub(crate) authority: Authority,
    /// True if it waits to be handed to its sink again.
    pub(crate) replay: bool,
    /// Tag, empty line, payload.
    #[serde(skip)]
    pub(crate) frame: Vec<u8>,
}

impl Letter {
    /// The event itself, with the id that it had.
    pub(crate) fn event(&self) -> Option<Event> {
        let event = Event::parse(Bytes::copy_from_slice(&self.frame)).ok()?;
        Some(event.with_id(EventId::from_hex(self.event_id.as_bytes())))
    }

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Letter {
            id: row.get(0)?,
            sink: row.get(1)?,
            event_id: row.get(2)?,
            tag: row.get(3)?,
            reason: row.get(4)?,
            time: row.get(5)?,
            attempts: row.get(6)?,
            source: row.get(7)?,
            master_id: row.get(8)?,
            received: row.get(9)?,
            replay: row.get::<_, i64>(10)? > 0,
            authority: Authority::of_number(row.get(11)?),
            frame: row.get(12)?,
        })
    }
}

/// An event that was refused.
pub struct Refused<'a> {
    /// The event.
    pub entry: Entry<'a>,
    /// The reason of the refusal.
    pub reason: &'a str,
    /// The number of tries.
    pub attempts: u32,
}

/// A choice of letters. Every condition that is given must match.
#[derive(Debug, Default, Clone)]
pub struct LetterSelection {
    /// The sink's name.
    pub(crate) sink: Option<String>,
    /// A glob of the tag.
    pub(crate) tag: Option<String>,
    /// A part of the reason.
    pub(crate) reason: Option<String>,
    /// The letter's number, or the event's id.
    pub(crate) id: Option<String>,
}

impl LetterSelection {
    fn matcher(&self) -> Result<Option<GlobMatcher>, DeadLetterError> {
        let Some(tag) = &self.tag else { return Ok(None) };
        let glob = Glob::new(tag).map_err(failed("reading the glob of tags"))?;
        Ok(Some(glob.compile_matcher()))
    }

    /// The conditions that SQL can check, and the values that they need, as text.
    fn conditions(&self) -> (String, Vec<&str>) {
        let id_is = |id: &str| match id.parse::<i64>() {
            Ok(_) => " AND id = CAST(? AS INTEGER)",
            Err(_) => " AND event_id = ?",
        };
        let wanted = [
            (&self.sink, " AND sink = ?"),
            (&self.reason, " AND instr(reason, ?) > 0"),
            (&self.id, self.id.as_deref().map_or("", id_is)),
        ];
        let wanted = wanted.iter().filter_map(|(value, sql)| Some((value.as_deref()?, *sql)));
        let (values, conditions): (Vec<_>, Vec<_>) = wanted.unzip();
        (conditions.concat(), values)
    }
}

/// The dead letters of one `state_dir`.
pub struct DeadLetters {
    path: PathBuf,
    max_bytes: u64,
    /// They are a daemon's, which has to go on. A damaged file is put aside and begun anew. A file
    /// that cannot be opened is tried again.
    repairs: bool,
    database: Mutex<Database>,
}

/// The open database, and the reason why letters cannot be kept, if any.
struct Database {
    connection: Option<Connection>,
    trouble: Option<String>,
    backoff: Backoff,
    /// The time of the next try to open the database. A letter is always tried.
    again: Instant,
}

/// The waits between two tries.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

impl DeadLetters {
    /// Opens them, or begins them. Together they may take `max_bytes` of events; the oldest go
    /// first.
    pub fn open(state_dir: &Path, max_bytes: u64) -> Result<Self, DeadLetterError> {
        let letters = DeadLetters::closed(state_dir, max_bytes, false);
        letters.with("opening the dead letters' database", |_| Ok(()))?;
        Ok(letters)
    }

    /// Opens a daemon's. Faults of the file are logged, counted and shown, and the daemon goes on;
    /// see [`DeadLetters::heal`].
    pub(crate) fn of_daemon(state_dir: &Path, max_bytes: u64) -> Self {
        let letters = DeadLetters::closed(state_dir, max_bytes, true);
        // `with` notes a failure.
        let _ = letters.with("opening the dead letters' database", |_| Ok(()));
        letters
    }

    /// Opens those that are there; `None` if there never were any.
    pub(crate) fn existing(state_dir: &Path) -> Result<Option<Self>, DeadLetterError> {
        if !state_dir.join(FILE).exists() {
            return Ok(None);
        }
        DeadLetters::open(state_dir, u64::MAX).map(Some)
    }

    fn closed(state_dir: &Path, max_bytes: u64, repairs: bool) -> Self {
        let backoff = Backoff::new(FIRST, LONGEST);
        let database = Database { connection: None, trouble: None, backoff, again: Instant::now() };
        DeadLetters {
            path: state_dir.join(FILE),
            max_bytes,
            repairs,
            database: Mutex::new(database),
        }
    }

    /// Tries again to open the database, when it is time. Returns the reason why letters cannot be
    /// kept, if any.
    pub(crate) fn heal(&self) -> Option<String> {
        {
            let database = self.lock();
            if database.trouble.is_none() || Instant::now() < database.again {
                return database.trouble.clone();
            }
        }
        // Something has to be written, because a full disk can still be read.
        let written = self.with("writing to the dead letters' database", |connection| {
            connection.pragma_update(None, "user_version", VERSION)
        });
        if written.is_err() {
            return self.lock().trouble.clone();
        }
        let mut database = self.lock();
        database.trouble = None;
        database.backoff.reset();
        info!("dead letters can be kept again");
        None
    }

    /// The state directory was removed or replaced: the letters, which are in an open file without
    /// a name, are copied into a new file, unless there is one already.
    pub(crate) fn renew(&self) {
        let mut database = self.lock();
        let Some(connection) = database.connection.take().filter(|_| !self.path.exists()) else {
            return;
        };
        let copied =
            state_file::create(&self.path).map_err(|error| error.to_string()).and_then(|_| {
                let path = self.path.to_string_lossy();
                connection.execute("VACUUM INTO ?", [path]).map_err(|error| error.to_string())
            });
        if let Err(error) = copied {
            error!(error, "the dead letters of the state directory that was removed are lost");
        }
    }

    /// Keeps all others waiting until its guard is dropped.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        self.lock()
    }

    /// Works with the database, which is opened for it if it is not open.
    fn with<T>(
        &self,
        doing: &'static str,
        mut work: impl FnMut(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, DeadLetterError> {
        let mut database = self.lock();
        let mut done = self.attempt(&mut database, doing, &mut work);
        if let Err(error) = &done
            && self.repairs
            && (error.says_damaged() || state_file::is_foreign(&self.path))
        {
            database.connection = None;
            done = match state_file::put_aside(&self.path, &chain(error)) {
                Ok(()) => self.attempt(&mut database, doing, &mut work),
                Err(error) => Err(failed("putting a damaged file aside")(error)),
            };
        }
        if let Err(error) = &done
            && self.repairs
        {
            let reason = chain(error);
            if database.trouble.as_ref() != Some(&reason) {
                error!(error = reason, "dead letters cannot be kept; trying again");
            }
            (database.connection, database.trouble) = (None, Some(reason));
            database.again = Instant::now() + database.backoff.delay(None);
        }
        done
    }

    fn attempt<T>(
        &self,
        database: &mut Database,
        doing: &'static str,
        work: &mut impl FnMut(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, DeadLetterError> {
        let connection = match &mut database.connection {
            Some(connection) => connection,
            none => {
                if self.repairs {
                    state_file::put_foreign_beside_aside(&self.path)
                        .map_err(failed("putting aside something that is no file"))?;
                }
                none.insert(connect(&self.path)?)
            }
        };
        work(connection).map_err(failed(doing))
    }

    fn lock(&self) -> MutexGuard<'_, Database> {
        lock::hold(&self.database)
    }

    /// Keeps refused events, all of them or none; returns how many older ones had to go for them.
    pub fn keep(&self, sink: &str, refused: &[Refused<'_>]) -> Result<u64, DeadLetterError> {
        let now = i64::try_from(state::now()).unwrap_or(i64::MAX);
        self.with("keeping a dead letter", |connection| {
            let transaction = connection.transaction()?;
            let mut insert = transaction.prepare_cached(INSERT)?;
            for Refused { entry, reason, attempts } in refused {
                let Entry { event, origin, received, authority } = entry;
                insert.execute(params![
                    sink,
                    event.id().to_string(),
                    event.tag(),
                    reason,
                    now,
                    attempts,
                    origin.source,
                    origin.master_id,
                    i64::try_from(*received).unwrap_or(i64::MAX),
                    *authority as i64,
                    event.frame().as_ref(),
                ])?;
            }
            drop(insert);
            let dropped = make_room(&transaction, self.max_bytes, refused.len() + STEP)?;
            transaction.commit()?;
            Ok(dropped)
        })
    }

    /// The selected letters behind letter `after`, the oldest first, at most `limit`.
    pub(crate) fn list(
        &self,
        selection: &LetterSelection,
        after: i64,
        limit: usize,
    ) -> Result<Vec<Letter>, DeadLetterError> {
        let (tags, mut found) = (selection.matcher()?, Vec::new());
        let mut from = Some(after);
        while let Some(after) = from.filter(|_| found.len() < limit) {
            from = self.with("reading the dead letters", |connection| {
                let (ids, next) = matching(connection, selection, tags.as_ref(), after)?;
                let mut letter = connection.prepare_cached(LETTER)?;
                for id in ids.iter().take(limit - found.len()) {
                    found.extend(letter.query_row([id], Letter::from_row).optional()?);
                }
                Ok(next)
            })?;
        }
        Ok(found)
    }

    /// The number of letters, by sink.
    pub fn counts(&self) -> Result<Vec<(String, u64)>, DeadLetterError> {
        self.totals("SELECT sink, letters FROM totals WHERE letters > 0 ORDER BY sink")
    }

    /// The number of letters that wait to be handed to their sinks again, by sink.
    pub fn marked(&self) -> Result<Vec<(String, u64)>, DeadLetterError> {
        self.totals("SELECT sink, marked FROM totals WHERE marked > 0 ORDER BY sink")
    }

    fn totals(&self, sql: &str) -> Result<Vec<(String, u64)>, DeadLetterError> {
        self.with("counting the dead letters", |connection| {
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| {
                Ok((row.get(0)?, u64::try_from(row.get::<_, i64>(1)?).unwrap_or_default()))
            })?;
            rows.collect()
        })
    }

    /// Marks letters to be handed to their sinks again. Returns how many.
    pub fn mark_for_replay(&self, selection: &LetterSelection) -> Result<usize, DeadLetterError> {
        self.change_matching(selection, MARK)
    }

    /// Discards letters. Returns how many.
    pub(crate) fn discard(&self, selection: &LetterSelection) -> Result<usize, DeadLetterError> {
        self.change_matching(selection, DELETE)
    }

    fn change_matching(
        &self,
        selection: &LetterSelection,
        sql: &str,
    ) -> Result<usize, DeadLetterError> {
        let tags = selection.matcher()?;
        let (mut from, mut changed) = (Some(0), 0);
        while let Some(after) = from {
            let (ids, next) = self.with("reading the dead letters", |connection| {
                matching(connection, selection, tags.as_ref(), after)
            })?;
            changed += self.change(&ids, sql)?;
            from = next;
            if from.is_some() {
                // A daemon that keeps a letter meanwhile must find a moment to write. It tries now
                // and then, and gives no signal to wait for.
                #[allow(clippy::disallowed_methods)]
                std::thread::sleep(BETWEEN_PAGES);
            }
        }
        Ok(changed)
    }

    fn change(&self, ids: &[i64], sql: &str) -> Result<usize, DeadLetterError> {
        self.with("changing the dead letters", |connection| {
            let transaction = connection.transaction()?;
            let mut changed = 0;
            for id in ids {
                changed += transaction.prepare_cached(sql)?.execute([id])?;
            }
            transaction.commit()?;
            Ok(changed)
        })
    }

    /// The next letters for this sink behind letter `after`, the oldest first. There are as many as
    /// may be handed over together.
    pub fn next_replays(&self, sink: &str, after: i64) -> Result<Vec<Letter>, DeadLetterError> {
        self.with("reading the dead letters", |connection| {
            let (mut found, mut bytes) = (Vec::new(), 0);
            let mut statement = connection.prepare_cached(MARKED)?;
            let mut rows = statement.query(params![sink, after])?;
            while found.len() < TOGETHER
                && bytes < TOGETHER_BYTES
                && let Some(row) = rows.next()?
            {
                let letter = Letter::from_row(row)?;
                bytes += letter.frame.len();
                found.push(letter);
            }
            Ok(found)
        })
    }

    /// The sink has kept the letters' events, so the letters are removed.
    pub(crate) fn replayed(&self, ids: &[i64]) -> Result<(), DeadLetterError> {
        self.change(ids, DELETE).map(drop)
    }
}

/// Opens the database, and makes missing tables.
fn connect(path: &Path) -> Result<Connection, DeadLetterError> {
    // The file is made here, for its owner and permissions.
    state_file::open_or_create(path).map_err(failed("making the dead letters' database"))?;
    let mut connection =
        Connection::open(path).map_err(failed("opening the dead letters' database"))?;
    let prepared = (|| {
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version < VERSION { make_tables(&mut connection) } else { Ok(()) }
    })();
    prepared.map_err(failed("preparing the dead letters' database"))?;
    Ok(connection)
}

/// Makes the tables, or the parts that an older file lacks.
fn make_tables(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(SCHEMA)?;
    if !transaction.column_exists(None, "dead_letters", "authority")? {
        transaction.execute_batch(ADD_AUTHORITY)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

/// The next letters behind `after` that match, and the letter to go on behind, unless that was the
/// last.
fn matching(
    connection: &Connection,
    selection: &LetterSelection,
    tags: Option<&GlobMatcher>,
    after: i64,
) -> rusqlite::Result<(Vec<i64>, Option<i64>)> {
    let (conditions, values) = selection.conditions();
    let sql = format!(
        "SELECT id, tag FROM dead_letters WHERE id > {after}{conditions} ORDER BY id LIMIT {PAGE}"
    );
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let (mut ids, mut seen, mut last) = (Vec::new(), 0, after);
    while let Some(row) = rows.next()? {
        (seen, last) = (seen + 1, row.get(0)?);
        let tag = row.get_ref(1)?.as_bytes()?;
        if tags.is_none_or(|tags| tags.is_match(&*String::from_utf8_lossy(tag))) {
            ids.push(last);
        }
    }
    Ok((ids, (seen == PAGE).then_some(last)))
}

/// Removes the oldest letters until the rest takes no more than `max_bytes`; at most `limit`.
fn make_room(connection: &Connection, max_bytes: u64, limit: usize) -> rusqlite::Result<u64> {
    let bytes = connection.prepare_cached(BYTES)?.query_row([], |row| row.get::<_, i64>(0))?;
    let mut over = bytes.saturating_sub(i64::try_from(max_bytes).unwrap_or(i64::MAX));
    if over <= 0 {
        return Ok(0);
    }
    let (mut last, mut count) = (0, 0);
    let mut statement = connection.prepare_cached(OLDEST)?;
    let mut rows = statement.query([])?;
    while over > 0
        && count < limit
        && let Some(row) = rows.next()?
    {
        last = row.get(0)?;
        over -= row.get::<_, i64>(1)?;
        count += 1;
    }
    drop(rows);
    connection.prepare_cached(DELETE_OLDEST)?.execute([last]).map(|dropped| dropped as u64)
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use crate::delivery::dead_letter::*;
    use crate::event::Origin;

    /// Keeps `count` events of `size` bytes together.
    fn keep(letters: &DeadLetters, sink: &str, tag: &str, size: usize, count: usize) -> u64 {
        let origin = Origin { source: "bus".into(), master_id: "m".into() };
        let event = Event::new(tag, &vec![0xc0; size]);
        let refused = (0..count).map(|_| Refused {
            entry: Entry {
                event: &event,
                origin: &origin,
                received: 5,
                authority: Authority::Master,
            },
            reason: "too long",
            attempts: 3,
        });
        letters.keep(sink, &refused.collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn who_vouches_for_a_letter_is_kept_and_a_file_of_version_1_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(folder.path(), 1 << 20).unwrap();
        keep(&letters, "db", "a", 10, 1);
        drop(letters);
        let db = Connection::open(folder.path().join(FILE)).unwrap();
        let older = "ALTER TABLE dead_letters DROP COLUMN authority; PRAGMA user_version = 1";
        db.execute_batch(older).unwrap();
        drop(db);
        let letters = DeadLetters::open(folder.path(), 1 << 20).unwrap();
        keep(&letters, "db", "b", 10, 1);
        letters.mark_for_replay(&LetterSelection::default()).unwrap();
        let replays = letters.next_replays("db", 0).unwrap();
        let vouched: Vec<_> = replays.iter().map(|letter| letter.authority).collect();
        assert_eq!(vouched, [Authority::Bus, Authority::Master]);
    }

    fn select(sink: &str, tag: &str) -> LetterSelection {
        LetterSelection {
            sink: Some(sink.into()),
            tag: Some(tag.into()),
            ..LetterSelection::default()
        }
    }

    fn owned(counts: &[(&str, u64)]) -> Vec<(String, u64)> {
        counts.iter().map(|(sink, count)| ((*sink).to_owned(), *count)).collect()
    }

    #[test]
    fn letters_are_found_replayed_and_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(folder.path(), 1 << 20).unwrap();
        for (sink, tag) in [("db", "a/1"), ("db", "b/1"), ("file", "a/2")] {
            keep(&letters, sink, tag, 10, 1);
        }
        let found = letters.list(&select("db", "a/*"), 0, 10).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].attempts, found[0].reason.as_str()), (3, "too long"));
        assert_eq!(letters.counts().unwrap(), owned(&[("db", 2), ("file", 1)]));
        assert_eq!(letters.mark_for_replay(&select("db", "*")).unwrap(), 2);
        assert_eq!(letters.mark_for_replay(&select("db", "*")).unwrap(), 2);
        assert_eq!(letters.marked().unwrap(), owned(&[("db", 2)]));
        let next = letters.next_replays("db", 0).unwrap();
        assert_eq!(next.iter().map(|letter| letter.id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(next[0].event().unwrap().id().to_string(), next[0].event_id);
        assert!(letters.next_replays("file", 0).unwrap().is_empty());
        letters.replayed(&[1]).unwrap();
        assert_eq!(letters.marked().unwrap(), owned(&[("db", 1)]));
        let by_id = LetterSelection { id: Some("3".into()), ..LetterSelection::default() };
        assert_eq!(letters.discard(&by_id).unwrap(), 1);
        assert_eq!(letters.counts().unwrap(), owned(&[("db", 1)]));
        let by_event =
            LetterSelection { id: Some(next[1].event_id.clone()), ..LetterSelection::default() };
        assert_eq!(letters.list(&by_event, 0, 10).unwrap().len(), 1);
        assert_eq!(letters.list(&by_event, 2, 10).unwrap().len(), 0);
        let other =
            LetterSelection { reason: Some("too short".into()), ..LetterSelection::default() };
        assert_eq!(letters.discard(&other).unwrap(), 0);
    }

    #[test]
    fn only_as_many_of_the_oldest_letters_go_as_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(folder.path(), 250_000).unwrap();
        let size = |tag: &str| Event::new(tag, &[0xc0; 1000]).frame().len();
        let dropped: u64 = (100..400).map(|n| keep(&letters, "db", &n.to_string(), 1000, 1)).sum();
        let left = letters.list(&LetterSelection::default(), 0, usize::MAX).unwrap();
        assert_eq!(left.len(), 250_000 / size("100"));
        assert_eq!(left.len() as u64 + dropped, 300);
        assert_eq!(left.last().unwrap().tag, "399");
        // A letter larger than the bound leaves nothing, itself included.
        assert_eq!(keep(&letters, "db", "huge", 300_000, 1), left.len() as u64 + 1);
        assert_eq!(letters.counts().unwrap(), []);
    }

    #[test]
    fn more_letters_than_a_page_are_listed_marked_and_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(folder.path(), u64::MAX).unwrap();
        for tag in ["a", "b"] {
            keep(&letters, "db", tag, 10, PAGE + 10);
        }
        let selection = select("db", "b");
        let listed = letters.list(&selection, 0, usize::MAX).unwrap();
        assert!(listed.iter().all(|letter| letter.tag == "b"));
        assert_eq!(listed.len(), PAGE + 10);
        assert_eq!(letters.list(&selection, 0, 7).unwrap().len(), 7);
        assert_eq!(letters.mark_for_replay(&selection).unwrap(), PAGE + 10);
        assert_eq!(letters.next_replays("db", 0).unwrap().len(), TOGETHER);
        assert_eq!(letters.discard(&selection).unwrap(), PAGE + 10);
        assert_eq!(letters.counts().unwrap(), owned(&[("db", PAGE as u64 + 10)]));
        assert_eq!(letters.marked().unwrap(), []);
    }

    #[test]
    fn what_another_process_changes_is_counted_too() {
        let folder = tempfile::tempdir().unwrap();
        let daemon = DeadLetters::open(folder.path(), 10_000).unwrap();
        keep(&daemon, "db", "a", 1000, 8);
        let command = DeadLetters::existing(folder.path()).unwrap().unwrap();
        let seven = LetterSelection { id: Some("7".into()), ..LetterSelection::default() };
        assert_eq!(command.mark_for_replay(&seven).unwrap(), 1);
        assert_eq!(daemon.marked().unwrap(), owned(&[("db", 1)]));
        assert_eq!(command.discard(&select("db", "a")).unwrap(), 8);
        assert_eq!((daemon.counts().unwrap(), daemon.marked().unwrap()), (vec![], vec![]));
        assert_eq!(keep(&daemon, "db", "a", 1000, 8), 0, "there is room again");
    }

    #[test]
    fn letters_of_an_older_file_are_counted_when_it_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let file = Connection::open(folder.path().join(FILE)).unwrap();
        file.execute_batch(
            "CREATE TABLE dead_letters (id INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL,
                event_id TEXT NOT NULL, tag TEXT NOT NULL, reason TEXT NOT NULL,
                time INTEGER NOT NULL, attempts INTEGER NOT NULL, source TEXT NOT NULL,
                master_id TEXT NOT NULL, received INTEGER NOT NULL, frame BLOB NOT NULL,
                replay INTEGER NOT NULL DEFAULT 0);
             CREATE INDEX dead_letters_replay ON dead_letters (replay) WHERE replay > 0;
             INSERT INTO dead_letters VALUES (1, 'db', 'e', 'a', 'r', 1, 1, 's', 'm', 5, x'0a', 1),
                (2, 'db', 'e', 'a', 'r', 1, 1, 's', 'm', 5, zeroblob(9000), 0);",
        )
        .unwrap();
        drop(file);
        for _ in 0..2 {
            let letters = DeadLetters::open(folder.path(), 10_000).unwrap();
            assert_eq!(letters.counts().unwrap(), owned(&[("db", 2)]));
            assert_eq!(letters.marked().unwrap(), owned(&[("db", 1)]));
        }
        let letters = DeadLetters::open(folder.path(), 10_000).unwrap();
        assert_eq!(keep(&letters, "db", "b", 2000, 1), 2, "its bytes count");
        assert_eq!(letters.marked().unwrap(), []);
    }

    /// The statements that the daemon runs for a letter.
    const OF_THE_DAEMON: [&str; 6] = [INSERT, BYTES, OLDEST, DELETE_OLDEST, DELETE, MARKED];

    #[test]
    fn no_statement_of_the_daemon_scans_the_letters() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(folder.path(), 10_000).unwrap();
        let database = letters.lock();
        let connection = database.connection.as_ref().unwrap();
        for sql in OF_THE_DAEMON {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let count = statement.parameter_count();
            let plan = statement.query_map(params_from_iter(vec![1; count]), |row| row.get(3));
            let plan: Vec<String> = plan.unwrap().collect::<Result<_, _>>().unwrap();
            let is_bad =
                |step: &&String| step.contains("SCAN dead_letters") || step.contains("TEMP");
            assert_eq!(plan.iter().find(is_bad), None, "{sql}");
        }
    }

    #[test]
    fn a_letter_costs_the_same_however_many_there_are() {
        let steps_among = |count: usize| {
            let folder = tempfile::tempdir().unwrap();
            let max_bytes = Event::new("a", &[0xc0; 100]).frame().len() * count;
            let letters = DeadLetters::open(folder.path(), max_bytes as u64).unwrap();
            keep(&letters, "db", "a", 100, count);
            letters.mark_for_replay(&LetterSelection::default()).unwrap();
            let steps = || {
                let database = letters.lock();
                let connection = database.connection.as_ref().unwrap();
                OF_THE_DAEMON.map(|sql| {
                    let statement = connection.prepare_cached(sql).unwrap();
                    statement.reset_status(StatementStatus::VmStep)
                })
            };
            steps();
            assert_eq!(keep(&letters, "db", "b", 100, 1), 1);
            assert_eq!(letters.next_replays("db", 400).unwrap().len(), TOGETHER);
            letters.replayed(&[500]).unwrap();
            steps()
        };
        let among_few = steps_among(1000);
        assert!(among_few.iter().all(|steps| *steps > 0), "{among_few:?}");
        assert_eq!(among_few, steps_among(10_000));
    }

    #[test]
    fn a_damaged_file_is_put_aside_and_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let damages: [&dyn Fn(); 3] = [
            &|| std::fs::write(&path, "no database at all, but rather long. ".repeat(99)).unwrap(),
            &|| std::fs::create_dir(&path).unwrap(),
            &|| std::os::unix::fs::symlink("/elsewhere", &path).unwrap(),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            damage();
            if number == 0 {
                assert!(DeadLetters::existing(folder.path()).is_err(), "a command leaves it");
            }
            let letters = DeadLetters::of_daemon(folder.path(), 10_000);
            keep(&letters, "db", "a", 10, 1);
            assert_eq!(letters.counts().unwrap(), owned(&[("db", 1)]));
            assert_eq!(letters.heal(), None);
            drop(letters);
            std::fs::remove_file(&path).unwrap();
            let names = std::fs::read_dir(folder.path()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let aside = names.filter(|name| name.starts_with("dead-letters.db.damaged-")).count();
            assert_eq!(aside, number + 1);
        }
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_tried_again_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("state");
        let letters = DeadLetters::of_daemon(&state_dir, 10_000);
        let trouble = letters.heal().unwrap();
        assert!(trouble.contains("making the dead letters' database: No such file"), "{trouble}");
        assert!(letters.counts().is_err());
        std::fs::create_dir(&state_dir).unwrap();
        letters.lock().again = Instant::now();
        assert_eq!(letters.heal(), None);
        keep(&letters, "db", "a", 10, 1);
        assert_eq!(letters.counts().unwrap(), owned(&[("db", 1)]));
        assert_eq!(
            std::fs::read_dir(&state_dir).unwrap().count(),
            3,
            "the file, its log and index"
        );
    }
}
