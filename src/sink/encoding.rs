//! The sinks' encodings of a batch, without a store behind them, so that benches measure the code
//! that runs. `local` writes [`crate::event::line`]'s text, and `blackhole` makes nothing.

use std::path::Path;

#[cfg(feature = "kafka")]
use super::kafka;
use super::{clickhouse, sqlite3};
use crate::event::batch::Batch;
use crate::sink::contract::WriteError;

/// Makes bytes of a batch and says how many.
pub type Encode = fn(&Batch, &mut Vec<u8>) -> usize;

/// The encodings of the sinks that make bytes, by name.
pub static ENCODINGS: &[(&str, Encode)] = &[
    ("rawfile_json", |batch, out| {
        batch.events().for_each(|event| event.write_line(out));
        out.len()
    }),
    #[cfg(feature = "kafka")]
    ("kafka json", |batch, out| kafka::encode(batch, kafka::Format::Json, out)),
    #[cfg(feature = "kafka")]
    ("kafka msgpack", |batch, out| kafka::encode(batch, kafka::Format::Msgpack, out)),
    ("clickhouse 18.16 JSONEachRow", |batch, _| clickhouse::encode(batch, (18, 16))),
    ("clickhouse 26.9 RowBinary", |batch, _| clickhouse::encode(batch, (26, 9))),
];

/// A database of the sink `sqlite3`. It makes no bytes of a batch: it binds values and SQLite makes
/// pages of them, so the transaction is measured.
pub struct Database(sqlite3::Sqlite3);

impl Database {
    /// Makes the database.
    pub fn create(path: &Path) -> Result<Self, WriteError> {
        sqlite3::Sqlite3::create(path).map(Database)
    }

    /// Stores a batch in one transaction.
    pub fn store(&mut self, batch: &Batch) -> Result<(), WriteError> {
        self.0.store(batch)
    }
}
