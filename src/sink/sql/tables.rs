//! The tables of a kind: their columns, the values of these, and their indexes. All SQL is made of
//! them ([`super::statements`]), and so are the rows ([`super::rows`]): neither can drift from the
//! other.

/// The three tables.
#[derive(Debug)]
pub(in crate::sink) struct Tables {
    /// A row for each job.
    pub(in crate::sink) jids: Table<JobField>,
    /// A row for each return.
    pub(in crate::sink) returns: Table<ReturnField>,
    /// A row for each event.
    pub(in crate::sink) events: Table<EventField>,
    /// A condition of a row of the returns: its master had left a value out of it.
    pub(in crate::sink) is_trimmed: &'static str,
}

/// A table, whose columns hold fields of this type.
#[derive(Debug)]
pub(in crate::sink) struct Table<F: 'static> {
    /// The table's name.
    pub(in crate::sink) name: &'static str,
    /// Its columns.
    pub(in crate::sink) columns: &'static [Column<F>],
    /// Its indexes, besides those that are constraints of columns.
    pub(in crate::sink) indexes: &'static [Index],
}

/// A column.
#[derive(Debug)]
pub(in crate::sink) struct Column<F> {
    /// Its name.
    pub(in crate::sink) name: &'static str,
    /// The field that it holds; `None` if the database makes it.
    pub(in crate::sink) field: Option<F>,
    /// Its type, with which it is added to a table that lacks it.
    pub(in crate::sink) kind: &'static str,
    /// Its constraints in a new table.
    pub(in crate::sink) constraint: &'static str,
}

/// An index.
#[derive(Debug)]
pub(in crate::sink) struct Index {
    /// Its name.
    pub(in crate::sink) name: &'static str,
    /// Its columns, with commas between them.
    pub(in crate::sink) columns: &'static str,
    /// Each value in it stands once.
    pub(in crate::sink) unique: bool,
}

/// The field that a column of `jids` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sink) enum JobField {
    /// The job's id.
    Jid,
    /// The load, as JSON.
    Load,
    /// The origin of the load ([`super::rows::LoadFrom`]).
    LoadFrom,
    /// The minions that the master has named for the job, as a JSON list.
    Minions,
    /// The time at which the job ended, as Salt says it.
    EndTime,
    /// The time at which the job was first heard of, in UTC.
    Time,
}

/// The field that a column of `salt_returns` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sink) enum ReturnField {
    /// The function.
    Function,
    /// The job's id.
    Jid,
    /// The minion.
    Minion,
    /// The arguments, as Python prints them; NULL if there are none.
    Arguments,
    /// The time at which the return was read, in local time.
    LocalTime,
    /// The value that was returned, as JSON.
    Value,
    /// `1`, `0`, or nothing if the return does not say.
    Success,
    /// The authority that vouches for it.
    Authority,
    /// The outcome, by [`crate::event::job_return`].
    Outcome,
}

/// The field that a column of `salt_events` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sink) enum EventField {
    /// The tag.
    Tag,
    /// The data, as JSON.
    Data,
    /// The time at which the event was read, in UTC.
    Time,
    /// The id of the master.
    Master,
    /// The event's own id, by which a repeated one is known.
    Id,
}

impl<F: Copy + PartialEq> Table<F> {
    /// The columns that are written, with their fields.
    pub(super) fn written(&self) -> impl Iterator<Item = (&'static str, F)> + Clone {
        self.columns.iter().filter_map(|column| Some((column.name, column.field?)))
    }

    /// The column that holds this; `None` in a table without it.
    pub(super) fn column(&self, field: F) -> Option<&'static str> {
        self.written().find(|(_, held)| *held == field).map(|(name, _)| name)
    }

    /// The statement that makes the table where it is missing.
    pub(super) fn create(&self) -> String {
        let columns = self.columns.iter().map(|column| {
            let text = format!("\n    {} {} {}", column.name, column.kind, column.constraint);
            text.trim_end().to_owned()
        });
        let columns = columns.collect::<Vec<_>>().join(",");
        format!("CREATE TABLE IF NOT EXISTS {} ({columns}\n)", self.name)
    }

    /// The statements that make a new table with its indexes.
    fn script(&self) -> Vec<String> {
        // A constraint of a column makes an index by itself.
        let has_its_own = |index: &&Index| {
            let is_key = |text: &str| text.contains("PRIMARY KEY") || text.contains("UNIQUE");
            let mut columns = self.columns.iter();
            columns.any(|column| column.name == index.columns && is_key(column.constraint))
        };
        let indexes = self.indexes.iter().filter(|index| !has_its_own(index));
        let indexes = indexes.map(|index| index.create(self.name));
        std::iter::once(self.create()).chain(indexes).collect()
    }
}

impl Index {
    /// The statement that makes it, of this table.
    pub(super) fn create(&self, table: &str) -> String {
        let unique = if self.unique { "UNIQUE " } else { "" };
        format!("CREATE {unique}INDEX {} ON {table} ({})", self.name, self.columns)
    }
}

/// The statements that make the tables of an empty database.
pub(in crate::sink) fn script(tables: &Tables) -> String {
    let Tables { jids, returns, events, .. } = tables;
    let tables = [jids.script(), returns.script(), events.script()];
    tables.map(|statements| statements.join(";\n") + ";\n").join("\n")
}
