//! The statements that write the tables of a kind, made once a connection.

use std::borrow::Cow;

use super::dialect::Dialect;
use super::tables::{EventField, JobField, ReturnField, Table, Tables};

/// Statements of a kind. The placeholders of each are numbered in the order of their values.
#[derive(Debug)]
pub(in crate::sink) struct Statements {
    pub(super) tables: &'static Tables,
    pub(super) dialect: &'static Dialect,
    insert_event: String,
    insert_return: String,
    select_return: String,
    /// A job of this id: where its load comes from, and its minions.
    pub(super) select_job: String,
    pub(super) insert_job: String,
    /// Replaces the load: its text, where it comes from, the job.
    pub(super) update_load: String,
    pub(super) update_minions: String,
    pub(super) update_end_time: String,
    /// A return of this job and minion.
    pub(super) delete_return: String,
}

impl Statements {
    pub(in crate::sink) fn new(tables: &'static Tables, dialect: &'static Dialect) -> Self {
        let Tables { jids, returns, .. } = tables;
        let sign = dialect.placeholder;
        let jid = column(jids, JobField::Jid);
        let set = |fields: &[JobField]| {
            let values: Vec<_> = (1..)
                .zip(fields)
                .map(|(place, field)| format!("{} = {}", column(jids, *field), sign(place)))
                .collect();
            let of_job = sign(fields.len() + 1);
            format!("UPDATE {} SET {} WHERE {jid} = {of_job}", jids.name, values.join(", "))
        };
        let (load_from, minions) =
            (column(jids, JobField::LoadFrom), column(jids, JobField::Minions));
        Statements {
            tables,
            dialect,
            insert_event: insert_event(tables, dialect, 1),
            insert_return: insert(returns, dialect, 1),
            select_return: select_returns(tables, dialect, 1),
            select_job: format!(
                "SELECT {load_from}, {minions} FROM {} WHERE {jid} = {}",
                jids.name,
                sign(1)
            ),
            insert_job: insert(jids, dialect, 1) + &(dialect.unless_there)(jid),
            update_load: set(&[JobField::Load, JobField::LoadFrom]),
            update_minions: set(&[JobField::Minions]),
            update_end_time: set(&[JobField::EndTime]),
            delete_return: format!(
                "DELETE FROM {} WHERE {}",
                returns.name,
                is_of_minion(returns, dialect, 1)
            ),
        }
    }

    /// Inserts this many events, but for those that are there.
    pub(super) fn insert_events(&self, rows: usize) -> Cow<'_, str> {
        match rows {
            1 => Cow::Borrowed(&self.insert_event),
            _ => Cow::Owned(insert_event(self.tables, self.dialect, rows)),
        }
    }

    /// Inserts this many returns.
    pub(super) fn insert_returns(&self, rows: usize) -> Cow<'_, str> {
        match rows {
            1 => Cow::Borrowed(&self.insert_return),
            _ => Cow::Owned(insert(&self.tables.returns, self.dialect, rows)),
        }
    }

    /// The stored returns of this many jobs and minions, whose ids are its values in turn: job,
    /// minion, who vouches for it, `1` if it is trimmed.
    pub(super) fn select_returns(&self, pairs: usize) -> Cow<'_, str> {
        match pairs {
            1 => Cow::Borrowed(&self.select_return),
            _ => Cow::Owned(select_returns(self.tables, self.dialect, pairs)),
        }
    }

    /// How many events are written together.
    pub(super) fn group(&self) -> usize {
        let Tables { returns, events, .. } = self.tables;
        let widest = returns.written().count().max(events.written().count()).max(2);
        (self.dialect.max_values / widest).clamp(1, self.dialect.max_rows)
    }
}

/// The name of a column, or NULL in a table without it.
pub(super) fn column<F: Copy + PartialEq>(table: &Table<F>, field: F) -> &'static str {
    table.column(field).unwrap_or("NULL")
}

fn insert_event(tables: &Tables, dialect: &Dialect, rows: usize) -> String {
    let key = column(&tables.events, EventField::Id);
    insert(&tables.events, dialect, rows) + &(dialect.unless_there)(key)
}

fn insert<F: Copy + PartialEq>(table: &Table<F>, dialect: &Dialect, rows: usize) -> String {
    let names: Vec<_> = table.written().map(|(name, _)| name).collect();
    let row = |row: usize| {
        let signs = (1..=names.len()).map(|at| (dialect.placeholder)(row * names.len() + at));
        format!("({})", signs.collect::<Vec<_>>().join(", "))
    };
    let rows = (0..rows).map(row).collect::<Vec<_>>().join(", ");
    format!("INSERT INTO {} ({}) VALUES {rows}", table.name, names.join(", "))
}

/// The condition of a return of the job and the minion that are the values from this place on.
fn is_of_minion(table: &Table<ReturnField>, dialect: &Dialect, place: usize) -> String {
    let is = |field, place| format!("{} = {}", column(table, field), (dialect.placeholder)(place));
    format!("{} AND {}", is(ReturnField::Jid, place), is(ReturnField::Minion, place + 1))
}

fn select_returns(tables: &Tables, dialect: &Dialect, pairs: usize) -> String {
    let table = &tables.returns;
    let any: Vec<_> = (0..pairs).map(|pair| is_of_minion(table, dialect, pair * 2 + 1)).collect();
    let any = match &any[..] {
        [only] => only.clone(),
        several => format!("({})", several.join(") OR (")),
    };
    format!(
        "SELECT {}, {}, {}, CASE WHEN {} THEN '1' END FROM {} WHERE {any}",
        column(table, ReturnField::Jid),
        column(table, ReturnField::Minion),
        column(table, ReturnField::Authority),
        tables.is_trimmed,
        table.name,
    )
}
