//! The part that all sinks with Salt's SQL tables have in common.
//!
//! A kind names its tables ([`tables::Tables`]) and its dialect ([`dialect::Dialect`]), and says
//! how a statement is run ([`Database`]). The rest is here:
//!
//! * [`rows`]: an event as values of `jids`, `salt_returns` and `salt_events`.
//! * [`write`](mod@write): a batch as one transaction, and again event by event if the database
//!   refuses something in it.
//! * [`migration`]: makes the tables, columns and indexes that are missing.
//! * [`retention`]: forgets old rows in small steps.
//! * [`reading`]: answers Salt's questions about its jobs.
//!
//! All of it is async. A store that blocks implements [`Database`] with functions that never wait,
//! and [`at_once`] runs them to their end.

use std::error::Error;
use std::ops::{ControlFlow, Range};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

pub(super) mod dialect;
pub(super) mod migration;
pub(super) mod reading;
pub(super) mod retention;
pub(super) mod rows;
pub(super) mod statements;
pub(super) mod tables;
pub(super) mod write;

/// A connection to a database.
///
/// A dropped future may leave a transaction open: close the connection then.
pub(super) trait Database: Send {
    /// The failure of a statement.
    type Error: Error + Send + Sync + 'static;

    /// Runs a statement; returns the number of rows that it changed.
    fn execute(
        &mut self,
        sql: &str,
        values: &Values<'_>,
    ) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    /// Runs a query and hands its rows to `each` until that breaks.
    fn query(
        &mut self,
        sql: &str,
        values: &Values<'_>,
        each: &mut Each<'_>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Tells if the database refuses a value, rather than everything.
    fn is_refusal(error: &Self::Error) -> bool;

    /// Tells if a transaction that was begun is still open: a trigger may have rolled it back.
    fn is_in_transaction(&self) -> bool;
}

/// Takes the texts of a row.
pub(super) type Each<'a> = dyn FnMut(&[Option<&[u8]>]) -> ControlFlow<()> + Send + 'a;

/// The values of a statement, in order: texts in UTF-8, or NULL.
///
/// A text is borrowed from the event if it stands there, and else made in one buffer. The buffer is
/// kept for its memory, from one statement to the next.
#[derive(Debug, Default)]
pub(super) struct Values<'a> {
    cells: Vec<Cell<'a>>,
    made: Vec<u8>,
}

#[derive(Debug)]
enum Cell<'a> {
    Null,
    Borrowed(&'a [u8]),
    /// A part of the buffer.
    Made(Range<usize>),
}

impl<'a> Values<'a> {
    /// No values, to be made in this buffer.
    pub(super) fn made_in(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Values { cells: Vec::new(), made: buffer }
    }

    /// The buffer, for the next values.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.made
    }

    /// These texts.
    pub(super) fn of(texts: &[&'a str]) -> Self {
        let cells = texts.iter().map(|text| Cell::Borrowed(text.as_bytes())).collect();
        Values { cells, made: Vec::new() }
    }

    /// Leaves out all values.
    pub(super) fn clear(&mut self) {
        self.cells.clear();
        self.made.clear();
    }

    /// Adds a text, or NULL.
    pub(super) fn text(&mut self, text: Option<&'a str>) {
        self.cells.push(text.map_or(Cell::Null, |text| Cell::Borrowed(text.as_bytes())));
    }

    /// Adds JSON.
    pub(super) fn json(&mut self, json: &'a [u8]) {
        self.cells.push(Cell::Borrowed(json));
    }

    /// Adds the bytes that `write` appends to the buffer. They have to be UTF-8.
    pub(super) fn make(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.made.len();
        write(&mut self.made);
        self.cells.push(Cell::Made(start..self.made.len()));
    }

    /// The values.
    pub(super) fn iter(&self) -> impl Iterator<Item = Option<&[u8]>> {
        self.cells.iter().map(|cell| match cell {
            Cell::Null => None,
            Cell::Borrowed(text) => Some(*text),
            Cell::Made(range) => Some(self.made.get(range.clone()).unwrap_or_default()),
        })
    }
}

/// Runs a future that never waits, as those of a store that blocks.
pub(super) fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return done;
        }
        std::thread::yield_now();
    }
}
