//! Makes the tables, columns and indexes that a database lacks: an empty one, an older one, or one
//! that Salt's returner has written. Nothing is ever removed. Two writers may do it at once: the
//! one that comes second finds its statement refused, looks again, and goes on.

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::dialect::Dialect;
use super::statements::Statements;
use super::tables::Table;
use super::{Database, Values};

/// Makes missing tables, columns and indexes.
pub(in crate::sink) async fn migrate<D: Database>(
    database: &mut D,
    statements: &Statements,
) -> Result<(), D::Error> {
    let Statements { tables, dialect, .. } = statements;
    migrate_table(database, &tables.jids, dialect).await?;
    migrate_table(database, &tables.returns, dialect).await?;
    migrate_table(database, &tables.events, dialect).await
}

async fn migrate_table<D: Database, F: Copy + PartialEq + Sync>(
    database: &mut D,
    table: &Table<F>,
    dialect: &Dialect,
) -> Result<(), D::Error> {
    let name = table.name;
    database.execute(&table.create(), &Values::default()).await?;

    let there = columns_of(database, dialect, name).await?;
    for column in table.columns {
        if column.field.is_some() && !there.contains(column.name) {
            let add = format!("ALTER TABLE {name} ADD COLUMN {} {}", column.name, column.kind);
            if let Err(error) = database.execute(&add, &Values::default()).await
                && !columns_of(database, dialect, name).await?.contains(column.name)
            {
                return Err(error);
            }
        }
    }

    let there = indexes_of(database, dialect, name).await?;
    for index in table.indexes {
        // A unique one serves as well.
        let serves =
            |one: &There| one.name == index.name || one.unique && one.columns == index.columns;
        if !there.iter().any(serves)
            && let Err(error) = database.execute(&index.create(name), &Values::default()).await
            && !indexes_of(database, dialect, name).await?.iter().any(serves)
        {
            return Err(error);
        }
    }
    Ok(())
}

/// The names of the columns that a table has now.
pub(super) async fn columns_of<D: Database>(
    database: &mut D,
    dialect: &Dialect,
    table: &str,
) -> Result<HashSet<String>, D::Error> {
    let mut names = HashSet::new();
    let mut each = |row: &[Option<&[u8]>]| {
        names.extend(row.iter().map(|name| text(*name)));
        ControlFlow::Continue(())
    };
    database.query(dialect.columns, &Values::of(&[table]), &mut each).await?;
    Ok(names)
}

/// An index that a table has now.
struct There {
    name: String,
    unique: bool,
    columns: String,
}

async fn indexes_of<D: Database>(
    database: &mut D,
    dialect: &Dialect,
    table: &str,
) -> Result<Vec<There>, D::Error> {
    let mut indexes = Vec::new();
    let mut each = |row: &[Option<&[u8]>]| {
        if let [name, unique, columns] = row {
            let (name, columns) = (text(*name), text(*columns));
            indexes.push(There { name, unique: *unique == Some(b"1"), columns });
        }
        ControlFlow::Continue(())
    };
    database.query(dialect.indexes, &Values::of(&[table]), &mut each).await?;
    Ok(indexes)
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}
