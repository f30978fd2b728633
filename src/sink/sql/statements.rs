//! The statements that write the tables of a kind, made once a connection.

use std::borrow::Cow;

use super::dialect::Dialect;
use super::tables::{EventField, JobField, ReturnField, Table, Tables};

/// Statements of a kind. The placeholders of each are numbered in the order of their values. A
/// statement is `None` where the tables lack a column that it is about.
#[derive(Debug)]
pub(in crate::sink) struct Statements {
    pub(super) tables: &'static Tables,
    pub(super) dialect: &'static Dialect,
    insert_event: String,
    insert_return: String,
    select_return: Option<String>,
    /// A job of this id: the origin of its load, and its minions.
    pub(super) select_job: Option<String>,
    pub(super) insert_job: String,
    /// Replaces what the columns of [`LOAD`] hold: these in order, the job.
    pub(super) update_load: Option<String>,
    pub(super) update_minions: Option<String>,
    pub(super) update_end_time: Option<String>,
    /// A return of this job and minion.
    pub(super) delete_return: Option<String>,
}

/// The columns that hold a load, as far as they are there.
pub(super) const LOAD: &[JobField] = &[JobField::Load, JobField::LoadFrom];

impl Statements {
    pub(in crate::sink) fn new(tables: &'static Tables, dialect: &'static Dialect) -> Self {
        let Tables { jids, returns, .. } = tables;
        let sign = dialect.placeholder;
        let jid = jids.column(JobField::Jid);
        let set = |fields: &[JobField]| {
            let columns: Vec<_> = fields.iter().filter_map(|field| jids.column(*field)).collect();
            let values = (1..).zip(&columns).map(|(at, column)| format!("{column} = {}", sign(at)));
            let values = values.collect::<Vec<_>>().join(", ");
            let (jid, of_job) = (jid.filter(|_| !columns.is_empty())?, sign(columns.len() + 1));
            Some(format!("UPDATE {} SET {values} WHERE {jid} = {of_job}", jids.name))
        };
        let select_job = |jid| {
            let load_from = selected(jids.name, jids.column(JobField::LoadFrom));
            let minions = selected(jids.name, jids.column(JobField::Minions));
            format!("SELECT {load_from}, {minions} FROM {} WHERE {jid} = {}", jids.name, sign(1))
        };
        Statements {
            tables,
            dialect,
            insert_event: insert_event(tables, dialect, 1),
            insert_return: insert(returns, dialect, 1),
            select_return: select_returns(tables, dialect, 1),
            select_job: jid.map(select_job),
            insert_job: insert(jids, dialect, 1) + &unless_there(jid, dialect),
            update_load: set(LOAD),
            update_minions: set(&[JobField::Minions]),
            update_end_time: set(&[JobField::EndTime]),
            delete_return: is_of_minion(returns, dialect, 1)
                .map(|condition| format!("DELETE FROM {} WHERE {condition}", returns.name)),
        }
    }

    /// Inserts this many events, except those that are there.
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

    /// The stored returns of this many jobs and minions, whose ids are its values in turn. Columns:
    /// job, minion, authority, `1` if it is trimmed.
    pub(super) fn select_returns(&self, pairs: usize) -> Option<Cow<'_, str>> {
        match pairs {
            1 => self.select_return.as_deref().map(Cow::Borrowed),
            _ => select_returns(self.tables, self.dialect, pairs).map(Cow::Owned),
        }
    }

    /// The number of events that are written together.
    pub(super) fn group(&self) -> usize {
        let Tables { returns, events, .. } = self.tables;
        let widest = returns.written().count().max(events.written().count()).max(2);
        (self.dialect.max_values / widest).clamp(1, self.dialect.max_rows)
    }
}

/// A column as a query selects it, of the table that has this name there: NULL where it is missing.
pub(super) fn selected(table: &str, column: Option<&str>) -> String {
    column.map_or_else(|| "NULL".to_owned(), |column| format!("{table}.{column}"))
}

fn insert_event(tables: &Tables, dialect: &Dialect, rows: usize) -> String {
    let key = tables.events.column(EventField::Id);
    insert(&tables.events, dialect, rows) + &unless_there(key, dialect)
}

fn unless_there(key: Option<&str>, dialect: &Dialect) -> String {
    key.map_or_else(String::new, dialect.unless_there)
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
fn is_of_minion(table: &Table<ReturnField>, dialect: &Dialect, place: usize) -> Option<String> {
    let (job, minion) = (table.column(ReturnField::Jid)?, table.column(ReturnField::Minion)?);
    let sign = dialect.placeholder;
    Some(format!("{job} = {} AND {minion} = {}", sign(place), sign(place + 1)))
}

fn select_returns(tables: &Tables, dialect: &Dialect, pairs: usize) -> Option<String> {
    let table = &tables.returns;
    let any = (0..pairs).map(|pair| is_of_minion(table, dialect, pair * 2 + 1));
    let any: Vec<_> = any.collect::<Option<_>>()?;
    let any = match &any[..] {
        [only] => only.clone(),
        several => format!("({})", several.join(") OR (")),
    };
    let column = |field| selected(table.name, table.column(field));
    Some(format!(
        "SELECT {}, {}, {}, CASE WHEN {} THEN '1' END FROM {} WHERE {any}",
        column(ReturnField::Jid),
        column(ReturnField::Minion),
        column(ReturnField::Authority),
        tables.is_trimmed,
        table.name,
    ))
}
