//! Dead letters: events that a sink will never accept, kept for people to look at.
//!
//! They are rows of a SQLite database in `state_dir`, which the daemon and the command line may
//! have open at the same time. A letter that is marked for replay is handed to its sink once more
//! by the daemon, as the same event with the same id, and leaves when the sink has kept it; if it
//! is refused again it becomes a letter again.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use globset::{Glob, GlobMatcher};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use thiserror::Error;

use crate::batch::Entry;
use crate::chunk::{Chunk, Share};
use crate::event::{Event, EventId, Origin};
use crate::state;

/// The database, in `state_dir`.
pub const FILE: &str = "dead-letters.db";

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
    replay INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS dead_letters_sink ON dead_letters (sink, id);
CREATE INDEX IF NOT EXISTS dead_letters_replay ON dead_letters (replay) WHERE replay > 0;
";

/// Why the dead letters cannot be read or written.
#[derive(Debug, Error)]
#[error("{doing}")]
pub struct DeadLetterError {
    doing: &'static str,
    #[source]
    cause: Box<dyn std::error::Error + Send + Sync>,
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
    pub id: i64,
    /// The sink that refused it.
    pub sink: String,
    /// The event's id.
    pub event_id: String,
    /// The event's tag.
    pub tag: String,
    /// Why it was refused.
    pub reason: String,
    /// When it was refused, in microseconds since 1970.
    pub time: i64,
    /// How often it was tried.
    pub attempts: i64,
    /// Where it came from.
    pub source: String,
    /// The master whose event it is.
    pub master_id: String,
    /// When it was read, in microseconds since 1970.
    pub received: i64,
    /// Whether it waits to be handed to its sink again.
    pub replay: bool,
    /// Tag, empty line, payload.
    #[serde(skip)]
    pub frame: Vec<u8>,
}

impl Letter {
    /// The event itself, with the id that it had.
    pub fn event(&self) -> Option<Event> {
        let event = Event::parse(Bytes::copy_from_slice(&self.frame)).ok()?;
        Some(event.with_id(EventId::from_hex(self.event_id.as_bytes())))
    }

    /// The event as a share for its sink.
    fn share(&self) -> Option<Share> {
        let origin = Origin { source: self.source.clone(), master_id: self.master_id.clone() };
        let received = u64::try_from(self.received).unwrap_or_default();
        let chunk = Chunk::new(Arc::new(origin), received, vec![self.event()?]);
        Some(Share::all(Arc::new(chunk)))
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
            frame: row.get(11)?,
        })
    }
}

const COLUMNS: &str = "id, sink, event_id, tag, reason, time, attempts, source, master_id, \
                       received, replay, frame";

/// Which letters are meant. Whatever is given must match.
#[derive(Debug, Default, Clone)]
pub struct Selection {
    /// The sink's name.
    pub sink: Option<String>,
    /// A glob of the tag.
    pub tag: Option<String>,
    /// A part of the reason.
    pub reason: Option<String>,
    /// The letter's number, or the event's id.
    pub id: Option<String>,
}

impl Selection {
    fn matcher(&self) -> Result<Option<GlobMatcher>, DeadLetterError> {
        let Some(tag) = &self.tag else { return Ok(None) };
        let glob = Glob::new(tag).map_err(failed("reading the glob of tags"))?;
        Ok(Some(glob.compile_matcher()))
    }

    fn takes(&self, letter: &Letter, tags: Option<&GlobMatcher>) -> bool {
        let is_id = |id: &String| *id == letter.id.to_string() || *id == letter.event_id;
        self.sink.as_ref().is_none_or(|sink| *sink == letter.sink)
            && tags.is_none_or(|tags| tags.is_match(&letter.tag))
            && self.reason.as_ref().is_none_or(|reason| letter.reason.contains(reason.as_str()))
            && self.id.as_ref().is_none_or(is_id)
    }
}

/// The dead letters of one `state_dir`.
pub struct DeadLetters {
    connection: Mutex<Connection>,
    max_bytes: u64,
}

impl DeadLetters {
    /// Opens them, or begins them. Together they may take `max_bytes` of events; the oldest go first.
    pub fn open(state_dir: &Path, max_bytes: u64) -> Result<Self, DeadLetterError> {
        let path = state_dir.join(FILE);
        // Made here, for its permissions.
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("making the dead letters' database"))?;
        let connection =
            Connection::open(&path).map_err(failed("opening the dead letters' database"))?;
        let prepared = (|| {
            connection.busy_timeout(Duration::from_secs(10))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.execute_batch(SCHEMA)
        })();
        prepared.map_err(failed("preparing the dead letters' database"))?;
        Ok(DeadLetters { connection: Mutex::new(connection), max_bytes })
    }

    /// Opens those that are there; `None` if there never were any.
    pub fn existing(state_dir: &Path) -> Result<Option<Self>, DeadLetterError> {
        if !state_dir.join(FILE).exists() {
            return Ok(None);
        }
        DeadLetters::open(state_dir, u64::MAX).map(Some)
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps refused events; returns how many older ones had to go for them.
    pub fn keep<'a>(
        &self,
        sink: &str,
        refused: impl Iterator<Item = Entry<'a>>,
        reason: &str,
        attempts: u32,
    ) -> Result<u64, DeadLetterError> {
        let mut connection = self.connection();
        let kept = (|| {
            let transaction = connection.transaction()?;
            for Entry { event, origin, received } in refused {
                let sql = "INSERT INTO dead_letters (sink, event_id, tag, reason, time, attempts, \
                           source, master_id, received, frame) VALUES (?,?,?,?,?,?,?,?,?,?)";
                transaction.prepare_cached(sql)?.execute(params![
                    sink,
                    event.id().to_string(),
                    event.tag(),
                    reason,
                    i64::try_from(state::now()).unwrap_or(i64::MAX),
                    attempts,
                    origin.source,
                    origin.master_id,
                    i64::try_from(received).unwrap_or(i64::MAX),
                    event.frame().as_ref(),
                ])?;
            }
            let dropped = make_room(&transaction, self.max_bytes)?;
            transaction.commit()?;
            Ok::<_, rusqlite::Error>(dropped)
        })();
        kept.map_err(failed("keeping a dead letter"))
    }

    /// The letters that are meant, the oldest first, at most `limit`.
    pub fn list(
        &self,
        selection: &Selection,
        limit: usize,
    ) -> Result<Vec<Letter>, DeadLetterError> {
        let tags = selection.matcher()?;
        let connection = self.connection();
        let found = (|| {
            let mut found = Vec::new();
            let sql = format!("SELECT {COLUMNS} FROM dead_letters ORDER BY id");
            let mut statement = connection.prepare_cached(&sql)?;
            for letter in statement.query_map([], Letter::from_row)? {
                let letter = letter?;
                if selection.takes(&letter, tags.as_ref()) {
                    found.push(letter);
                }
                if found.len() >= limit {
                    break;
                }
            }
            Ok::<_, rusqlite::Error>(found)
        })();
        found.map_err(failed("reading the dead letters"))
    }

    /// How many letters there are, by sink.
    pub fn counts(&self) -> Result<Vec<(String, u64)>, DeadLetterError> {
        let connection = self.connection();
        let counted = (|| {
            let sql = "SELECT sink, count(*) FROM dead_letters GROUP BY sink ORDER BY sink";
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| {
                Ok((row.get(0)?, u64::try_from(row.get::<_, i64>(1)?).unwrap_or_default()))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })();
        counted.map_err(failed("counting the dead letters"))
    }

    /// Two numbers that are others whenever letters have come, changed or gone, by whichever process.
    pub fn version(&self) -> Result<(i64, i64), DeadLetterError> {
        let connection = self.connection();
        let number = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        number("PRAGMA data_version")
            .and_then(|others| Ok((others, number("SELECT total_changes()")?)))
            .map_err(failed("reading the version of the dead letters"))
    }

    /// Marks letters to be handed to their sinks again. Returns how many.
    pub fn mark_for_replay(&self, selection: &Selection) -> Result<usize, DeadLetterError> {
        self.each(selection, "UPDATE dead_letters SET replay = 1 WHERE id = ?")
    }

    /// Discards letters. Returns how many.
    pub fn discard(&self, selection: &Selection) -> Result<usize, DeadLetterError> {
        self.each(selection, "DELETE FROM dead_letters WHERE id = ?")
    }

    fn each(&self, selection: &Selection, sql: &str) -> Result<usize, DeadLetterError> {
        let letters = self.list(selection, usize::MAX)?;
        let ids: Vec<i64> = letters.iter().map(|letter| letter.id).collect();
        self.change(&ids, sql)?;
        Ok(ids.len())
    }

    fn change(&self, ids: &[i64], sql: &str) -> Result<(), DeadLetterError> {
        let mut connection = self.connection();
        let changed = (|| {
            let transaction = connection.transaction()?;
            for id in ids {
                transaction.prepare_cached(sql)?.execute([id])?;
            }
            transaction.commit()
        })();
        changed.map_err(failed("changing the dead letters"))
    }

    /// How many letters still wait to be handed to their sinks again.
    pub fn waiting_for_replay(&self) -> Result<u64, DeadLetterError> {
        let sql = "SELECT count(*) FROM dead_letters WHERE replay > 0";
        let count = self.connection().query_row(sql, [], |row| row.get::<_, i64>(0));
        count
            .map(|count| u64::try_from(count).unwrap_or_default())
            .map_err(failed("counting the dead letters"))
    }

    /// Takes one letter that waits to be handed to one of these sinks, behind letter `after`.
    pub fn next_replay(&self, after: i64) -> Result<Option<Replay>, DeadLetterError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM dead_letters WHERE replay > 0 AND id > ? ORDER BY id LIMIT 1"
        );
        let letter = self.connection().query_row(&sql, [after], Letter::from_row).optional();
        let letter = letter.map_err(failed("reading the dead letters"))?;
        Ok(letter.map(|letter| Replay { share: letter.share(), letter }))
    }

    /// The sink has kept the letter's event: it is dead no more.
    pub fn replayed(&self, id: i64) -> Result<(), DeadLetterError> {
        self.change(&[id], "DELETE FROM dead_letters WHERE id = ?")
    }
}

/// A letter on its way to its sink.
pub struct Replay {
    /// The letter.
    pub letter: Letter,
    /// Its event; `None` if it is damaged.
    pub share: Option<Share>,
}

/// Removes the oldest letters until the rest takes no more than `max_bytes`.
fn make_room(connection: &Connection, max_bytes: u64) -> rusqlite::Result<u64> {
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    let sum = "SELECT coalesce(sum(length(frame)), 0) FROM dead_letters";
    let mut dropped = 0;
    while connection.query_row(sum, [], |row| row.get::<_, i64>(0))? > max_bytes {
        let sql = "DELETE FROM dead_letters WHERE id IN \
                   (SELECT id FROM dead_letters ORDER BY id LIMIT 100)";
        match connection.execute(sql, [])? {
            0 => break,
            removed => dropped += removed as u64,
        }
    }
    Ok(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(letters: &DeadLetters, sink: &str, tag: &str, size: usize) -> u64 {
        let origin = Origin { source: "bus".into(), master_id: "m".into() };
        let event = Event::new(tag, &vec![0xc0; size]);
        let entry = Entry { event: &event, origin: &origin, received: 5 };
        letters.keep(sink, std::iter::once(entry), "too long", 3).unwrap()
    }

    #[test]
    fn letters_are_found_replayed_and_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(folder.path(), 1 << 20).unwrap();
        for (sink, tag) in [("db", "a/1"), ("db", "b/1"), ("file", "a/2")] {
            keep(&letters, sink, tag, 10);
        }
        let select = |sink: &str, tag: &str| Selection {
            sink: Some(sink.into()),
            tag: Some(tag.into()),
            ..Selection::default()
        };
        let found = letters.list(&select("db", "a/*"), 10).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].attempts, found[0].reason.as_str()), (3, "too long"));
        assert_eq!(letters.counts().unwrap(), [("db".into(), 2), ("file".into(), 1)]);
        assert_eq!(letters.mark_for_replay(&select("db", "*")).unwrap(), 2);
        let first = letters.next_replay(0).unwrap().unwrap();
        let event = first.share.unwrap();
        let ids: Vec<_> = event.events().map(|event| event.id().to_string()).collect();
        assert_eq!(ids, [first.letter.event_id]);
        letters.replayed(first.letter.id).unwrap();
        assert_eq!(letters.waiting_for_replay().unwrap(), 1);
        let by_id = Selection { id: Some("3".into()), ..Selection::default() };
        assert_eq!(letters.discard(&by_id).unwrap(), 1);
        assert_eq!(letters.counts().unwrap(), [("db".into(), 1)]);
    }

    #[test]
    fn the_oldest_letters_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(folder.path(), 250_000).unwrap();
        let dropped: u64 = (0..300).map(|n| keep(&letters, "db", &n.to_string(), 1000)).sum();
        let left = letters.list(&Selection::default(), usize::MAX).unwrap();
        assert_eq!(left.len() as u64 + dropped, 300);
        assert_eq!(left.last().unwrap().tag, "299");
        assert!(left.len() <= 250 && left.len() >= 100, "{}", left.len());
    }
}
