//! Rows of one table as the body of an INSERT.
//!
//! The caller puts the values of a row in the order of the table's columns. Text is made UTF-8: bad
//! bytes become U+FFFD, as in [`json`].

use std::slice;

use bytes::Bytes;
use jiff::Timestamp;

use super::features::{Features, Format};
use super::tables::{Column, Holds, Table};
use crate::codec::json;

/// The rows of one table that a batch becomes.
#[derive(Debug)]
pub(super) struct Insert {
    /// The table's name.
    pub(super) table: &'static str,
    /// The columns that are written, as they stand between parentheses in SQL.
    pub(super) columns: String,
    /// The format of the body.
    pub(super) format: Format,
    /// The rows; never none.
    pub(super) body: Bytes,
}

/// Rows while they are written.
pub(super) struct Rows {
    table: &'static Table,
    datetime64: bool,
    format: Format,
    columns: Vec<&'static Column>,
    body: Vec<u8>,
    is_empty: bool,
}

impl Rows {
    /// No rows yet.
    pub(super) fn new(table: &'static Table, features: &Features) -> Self {
        let mut body = Vec::new();
        let columns: Vec<_> = table.columns_in(features).collect();
        if features.format() == Format::RowBinary {
            write_length(columns.len(), &mut body);
            for (column, _) in &columns {
                write_bytes(column.name.as_bytes(), &mut body);
            }
            for (_, kind) in &columns {
                write_bytes(kind.as_bytes(), &mut body);
            }
        }
        Rows {
            table,
            datetime64: features.datetime64,
            format: features.format(),
            columns: columns.into_iter().map(|(column, _)| column).collect(),
            body,
            is_empty: true,
        }
    }

    /// Begins a row. Every column wants a value, then [`Row::end`].
    pub(super) fn row(&mut self) -> Row<'_> {
        self.is_empty = false;
        let columns = self.columns.iter();
        if self.format == Format::JsonEachRow {
            self.body.push(b'{');
        }
        let (datetime64, format) = (self.datetime64, self.format);
        Row { datetime64, format, is_first: true, columns, body: &mut self.body }
    }

    /// The body; `None` without rows.
    pub(super) fn finish(self) -> Option<Insert> {
        let names: Vec<_> = self.columns.iter().map(|column| column.name).collect();
        (!self.is_empty).then(|| Insert {
            table: self.table.name,
            columns: names.join(", "),
            format: self.format,
            body: self.body.into(),
        })
    }
}

/// One row while it is written.
pub(super) struct Row<'a> {
    datetime64: bool,
    format: Format,
    is_first: bool,
    columns: slice::Iter<'a, &'static Column>,
    body: &'a mut Vec<u8>,
}

impl Row<'_> {
    /// Steps to the next column.
    fn next(&mut self, holds: &[Holds]) {
        let Some(column) = self.columns.next() else {
            debug_assert!(false, "a value after the last column");
            return;
        };
        debug_assert!(holds.contains(&column.holds), "{} is no {holds:?}", column.name);
        if self.format == Format::JsonEachRow {
            if !self.is_first {
                self.body.push(b',');
            }
            self.body.push(b'"');
            self.body.extend_from_slice(column.name.as_bytes());
            self.body.extend_from_slice(b"\":");
        }
        self.is_first = false;
    }

    /// A time in microseconds since 1970, with the column for them where there is one.
    pub(super) fn time(&mut self, micros: i64) {
        self.next(&[Holds::Time]);
        let seconds = u32::try_from(micros.div_euclid(1_000_000)).unwrap_or(u32::MAX);
        match (self.format, self.datetime64) {
            (Format::RowBinary, true) => self.body.extend_from_slice(&micros.to_le_bytes()),
            (Format::RowBinary, false) => self.body.extend_from_slice(&seconds.to_le_bytes()),
            (Format::JsonEachRow, true) => {
                let time = Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH);
                let text = time.strftime("\"%Y-%m-%d %H:%M:%S%.6f\"").to_string();
                self.body.extend_from_slice(text.as_bytes());
            }
            (Format::JsonEachRow, false) => self.digits(seconds),
        }
        if self.columns.as_slice().first().is_some_and(|next| next.holds == Holds::Micros) {
            self.next(&[Holds::Micros]);
            self.number(u32::try_from(micros.rem_euclid(1_000_000)).unwrap_or_default());
        }
    }

    /// Text, or bytes that were meant to be text.
    pub(super) fn text(&mut self, bytes: &[u8]) {
        self.next(&[Holds::Text, Holds::Symbol]);
        self.string(bytes);
    }

    /// JSON in a column that holds JSON or text.
    pub(super) fn json(&mut self, json: &[u8]) {
        self.next(&[Holds::Json, Holds::Text]);
        self.string(json);
    }

    /// The 32 digits of an event's id.
    pub(super) fn id(&mut self, digits: &[u8; 32]) {
        self.next(&[Holds::Id]);
        match self.format {
            Format::RowBinary => self.body.extend_from_slice(digits),
            Format::JsonEachRow => self.string(digits),
        }
    }

    /// 0 or 1.
    pub(super) fn flag(&mut self, flag: bool) {
        self.next(&[Holds::Flag]);
        self.bit(flag);
    }

    /// 0, 1, or NULL.
    pub(super) fn maybe_flag(&mut self, flag: Option<bool>) {
        self.next(&[Holds::MaybeFlag]);
        if self.is_there(flag.is_some()) {
            self.bit(flag == Some(true));
        }
    }

    /// A number or NULL.
    pub(super) fn maybe_int(&mut self, int: Option<i64>) {
        self.next(&[Holds::MaybeInt]);
        let (true, Some(int)) = (self.is_there(int.is_some()), int) else { return };
        match self.format {
            Format::RowBinary => self.body.extend_from_slice(&int.to_le_bytes()),
            Format::JsonEachRow => self.digits(int),
        }
    }

    /// A finite number or NULL.
    pub(super) fn maybe_float(&mut self, float: Option<f64>) {
        self.next(&[Holds::MaybeFloat]);
        let float = float.filter(|float| float.is_finite());
        let (true, Some(float)) = (self.is_there(float.is_some()), float) else { return };
        match self.format {
            Format::RowBinary => self.body.extend_from_slice(&float.to_le_bytes()),
            Format::JsonEachRow => json::write_float(float, self.body),
        }
    }

    /// A number.
    pub(super) fn count(&mut self, count: u32) {
        self.next(&[Holds::Count]);
        self.number(count);
    }

    /// A list of texts.
    pub(super) fn texts<'t>(&mut self, texts: impl Iterator<Item = &'t [u8]> + Clone) {
        self.next(&[Holds::Texts]);
        match self.format {
            Format::RowBinary => {
                write_length(texts.clone().count(), self.body);
                texts.for_each(|text| self.string(text));
            }
            Format::JsonEachRow => {
                self.body.push(b'[');
                for (place, text) in texts.enumerate() {
                    if place > 0 {
                        self.body.push(b',');
                    }
                    self.string(text);
                }
                self.body.push(b']');
            }
        }
    }

    /// Ends the row.
    pub(super) fn end(mut self) {
        debug_assert!(self.columns.next().is_none(), "a row lacks values");
        if self.format == Format::JsonEachRow {
            self.body.extend_from_slice(b"}\n");
        }
    }

    /// Writes whether there is a value, and NULL if there is none.
    fn is_there(&mut self, is_there: bool) -> bool {
        match self.format {
            Format::RowBinary => self.body.push(u8::from(!is_there)),
            Format::JsonEachRow if !is_there => self.body.extend_from_slice(b"null"),
            Format::JsonEachRow => {}
        }
        is_there
    }

    fn bit(&mut self, bit: bool) {
        match self.format {
            Format::RowBinary => self.body.push(u8::from(bit)),
            Format::JsonEachRow => self.body.push(if bit { b'1' } else { b'0' }),
        }
    }

    fn number(&mut self, number: u32) {
        match self.format {
            Format::RowBinary => self.body.extend_from_slice(&number.to_le_bytes()),
            Format::JsonEachRow => self.digits(number),
        }
    }

    fn digits(&mut self, int: impl itoa::Integer) {
        self.body.extend_from_slice(itoa::Buffer::new().format(int).as_bytes());
    }

    fn string(&mut self, bytes: &[u8]) {
        match self.format {
            Format::RowBinary => write_bytes(String::from_utf8_lossy(bytes).as_bytes(), self.body),
            Format::JsonEachRow => _ = json::write_string(bytes, self.body),
        }
    }
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_length(bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// Seven bits a byte, the lowest first; the top bit says that more come.
fn write_length(mut length: usize, out: &mut Vec<u8>) {
    loop {
        #[allow(clippy::cast_possible_truncation)] // seven bits
        let low = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}
