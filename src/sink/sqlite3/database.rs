//! SQLite as a [`Database`]: all of it blocks, and nothing waits.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, ErrorCode, ToSql};
use tokio::time::Instant;

use crate::sink::sql::dialect::Dialect;
use crate::sink::sql::{Database, Each, Values};

/// The SQL of SQLite.
pub(super) static DIALECT: Dialect = Dialect {
    begin: "BEGIN IMMEDIATE",
    placeholder: |_| "?".to_owned(),
    unless_there: |key| match key {
        "event_id" => " ON CONFLICT (event_id) DO NOTHING".to_owned(),
        // Somebody may have made the table without the key, so it cannot be named.
        _ => " ON CONFLICT DO NOTHING".to_owned(),
    },
    delete_some: |table, condition, most| {
        format!(
            "DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE {condition} LIMIT \
             {most})"
        )
    },
    columns: "SELECT name FROM pragma_table_info(?)",
    indexes: "SELECT name, CASE WHEN \"unique\" AND NOT partial THEN '1' END, (SELECT \
              group_concat(name, ', ') FROM pragma_index_info(list.name)) FROM \
              pragma_index_list(?) AS list",
    max_values: 32_766,
    max_rows: 1,
};

/// Statements of a connection that stay prepared.
const STATEMENTS: usize = 32;

/// The columns that a query may have.
const COLUMNS: usize = 8;

/// Steps of the database from one look at the time to the next: some microseconds.
const STEPS: i32 = 1000;

/// A connection.
pub(super) struct Sqlite(Connection);

impl Sqlite {
    pub(super) fn new(connection: Connection) -> Self {
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        Sqlite(connection)
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.0
    }

    /// A statement that still runs at this time fails.
    pub(super) fn give_up_at(&mut self, until: Option<Instant>) -> rusqlite::Result<()> {
        let is_over = until.map(|until| move || until <= Instant::now());
        self.0.progress_handler(STEPS, is_over)
    }

    pub(super) fn into_connection(self) -> Connection {
        self.0
    }

    fn bound(&self, sql: &str, values: &Values<'_>) -> rusqlite::Result<CachedStatement<'_>> {
        let mut statement = self.0.prepare_cached(sql)?;
        for (place, value) in (1..).zip(values.iter()) {
            statement.raw_bind_parameter(place, Text(value))?;
        }
        Ok(statement)
    }
}

impl Database for Sqlite {
    type Error = rusqlite::Error;

    async fn execute(&mut self, sql: &str, values: &Values<'_>) -> rusqlite::Result<u64> {
        self.bound(sql, values)?.raw_execute().map(|rows| rows as u64)
    }

    async fn query(
        &mut self,
        sql: &str,
        values: &Values<'_>,
        each: &mut Each<'_>,
    ) -> rusqlite::Result<()> {
        let mut statement = self.bound(sql, values)?;
        let columns = statement.column_count().min(COLUMNS);
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            let mut texts = [None; COLUMNS];
            for (place, text) in texts.iter_mut().enumerate().take(columns) {
                *text = match row.get_ref(place)? {
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes),
                    _ => None,
                };
            }
            if each(texts.get(..columns).unwrap_or_default()).is_break() {
                break;
            }
        }
        Ok(())
    }

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

    fn is_in_transaction(&self) -> bool {
        !self.0.is_autocommit()
    }
}

/// UTF-8 as TEXT without checking it once more, or NULL.
struct Text<'a>(Option<&'a [u8]>);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.0.map_or(ValueRef::Null, ValueRef::Text)))
    }
}
