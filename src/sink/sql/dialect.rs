//! The differences between the SQL of one database and of another.

/// The SQL of a database.
#[derive(Debug)]
pub(in crate::sink) struct Dialect {
    /// Begins a transaction.
    pub(in crate::sink) begin: &'static str,
    /// The placeholder of the value at this place of a statement, from 1.
    pub(in crate::sink) placeholder: fn(usize) -> String,
    /// Stands behind an `INSERT`: a row whose key is there already, in this column, stays as it is.
    pub(in crate::sink) unless_there: fn(key: &str) -> String,
    /// Deletes rows of a table for which the condition holds, this many at the most.
    pub(in crate::sink) delete_some: fn(table: &str, condition: &str, most: usize) -> String,
    /// Lists the names of the columns of the table that is its one value.
    pub(in crate::sink) columns: &'static str,
    /// Lists the indexes of the table that is its one value: name; `1` if each value in it stands
    /// once; its columns, with commas between them.
    pub(in crate::sink) indexes: &'static str,
    /// The most values that a statement may have.
    pub(in crate::sink) max_values: usize,
    /// The most rows that a statement should insert. One, where a statement costs no way
    /// over a network.
    pub(in crate::sink) max_rows: usize,
}
