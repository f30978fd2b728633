//! Reads jobs back, over a read-only connection of its own, on a thread that may block.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio::task::spawn_blocking;

use super::database::{DIALECT, Sqlite};
use super::file::{FileId, file_id};
use crate::jobs::store::{Answer, AskError, Asking, JobStore};
use crate::sink::sql::at_once;
use crate::sink::sql::reading::{Reading, fill};
use crate::sink::sql::tables::Tables;
use crate::sync::lock;

/// The longest wait for a lock of another process. Salt waits for three seconds.
const BUSY: Duration = Duration::from_secs(1);

/// The jobs of a database.
pub(super) struct SqliteJobs(Arc<Database>);

struct Database {
    path: PathBuf,
    tables: &'static Tables,
    /// The connection of the last question, if no other uses it now.
    idle: Mutex<Option<Open>>,
}

/// A connection to a file.
struct Open {
    file: FileId,
    sqlite: Sqlite,
    reading: Reading,
}

impl SqliteJobs {
    pub(super) fn new(database: &Path, tables: &'static Tables) -> Self {
        // The sink opens this path. If the folder of the process is not known there is nothing to
        // read.
        let path = std::path::absolute(database).unwrap_or_default();
        SqliteJobs(Arc::new(Database { path, tables, idle: Mutex::default() }))
    }
}

impl JobStore for SqliteJobs {
    fn ask(&self, answer: Answer) -> Asking<'_> {
        let database = Arc::clone(&self.0);
        let doing = || format!("reading jobs of {}", self.0.path.display());
        Box::pin(async move {
            match spawn_blocking(move || database.answer(answer)).await {
                Ok(filled) => filled.map_err(|error| AskError::new(doing(), error)),
                Err(error) => Err(AskError::new(doing(), error)),
            }
        })
    }
}

impl Database {
    fn answer(&self, answer: Answer) -> Result<Answer, Box<dyn Error + Send + Sync>> {
        let file = match file_id(&self.path) {
            Ok(file) => file,
            // Nothing is known of jobs as long as there is no file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(answer),
            Err(error) => return Err(error.into()),
        };
        let idle = lock::hold(&self.idle).take();
        let mut open = match idle.filter(|open| open.file == file) {
            Some(open) => open,
            None => Open::new(&self.path, file, self.tables)?,
        };
        open.sqlite.give_up_at(answer.until())?;
        if !open.reading.is_whole() {
            // A sink may have added missing columns meanwhile.
            open.reading = at_once(Reading::of(&mut open.sqlite, self.tables, &DIALECT))?;
        }
        let answer = at_once(fill(&mut open.sqlite, &open.reading, answer))?;
        *lock::hold(&self.idle) = Some(open);
        Ok(answer)
    }
}

impl Open {
    fn new(path: &Path, file: FileId, tables: &'static Tables) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        let mut sqlite = Sqlite::new(connection);
        let reading = at_once(Reading::of(&mut sqlite, tables, &DIALECT))?;
        Ok(Open { file, sqlite, reading })
    }
}
