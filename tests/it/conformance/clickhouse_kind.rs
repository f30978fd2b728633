//! The sink `clickhouse` for the suite: each test has a server of its own, of release 18.16.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::kinds::{Copies, Kind, Mend};
use crate::harness::clickhouse::ClickHouse;

thread_local! {
    /// The server of the test that runs on this thread, and the test's folder. Ends with the
    /// thread.
    static SERVER: RefCell<Option<(PathBuf, ClickHouse)>> = const { RefCell::new(None) };
}

pub(crate) const CLICKHOUSE: Kind = Kind {
    name: "clickhouse",
    settings: |folder| {
        let is_there = |(of, _): &(PathBuf, _)| of == folder;
        if !SERVER.with_borrow(|server| server.as_ref().is_some_and(is_there)) {
            SERVER.set(Some((folder.to_owned(), ClickHouse::start())));
        }
        format!("{{{}}}", with(|server| server.settings("salt")))
    },
    // A repeat is merged away some time, so it does not count.
    read: Some(|_| {
        let sql = "SELECT tag FROM salt.salt_events GROUP BY tag, event_id \
                   ORDER BY toUInt64(splitByChar('/', tag)[2])";
        with(|server| server.query(sql).lines().map(str::to_owned).collect())
    }),
    copies: Copies::One,
};

fn with<T>(act: impl FnOnce(&mut ClickHouse) -> T) -> T {
    SERVER.with_borrow_mut(|server| act(&mut server.as_mut().unwrap().1))
}

/// The server does not run yet.
pub(crate) fn not_started(folder: &Path, _: Option<u32>) -> Mend {
    SERVER.set(Some((folder.to_owned(), ClickHouse::new())));
    Box::new(|| with(ClickHouse::run))
}

/// kill -9; it is started again.
pub(crate) fn kill(_: &Path, _: Option<u32>) -> Mend {
    with(ClickHouse::kill);
    Box::new(|| with(ClickHouse::run))
}

/// The server does nothing for a while, and its connections stay.
pub(crate) fn hold(_: &Path, _: Option<u32>) -> Mend {
    with(|server| server.signal("STOP"));
    Box::new(|| with(|server| server.signal("CONT")))
}

/// The user may only read.
pub(crate) fn read_only(_: &Path, _: Option<u32>) -> Mend {
    with(|server| server.limit_now("readonly", "1"));
    Box::new(|| with(|server| server.limit("")))
}

/// The table takes any event but number 13.
pub(crate) fn refuse_number_13(_: &Path, _: Option<u32>) -> Mend {
    let sql = "ALTER TABLE salt.salt_events ADD COLUMN guard UInt8 \
               MATERIALIZED toUInt8(if(tag = 'test/13', 'bad luck', '1'))";
    with(|server| server.query(sql));
    Box::new(|| {})
}

/// Somebody drops the table.
pub(crate) fn drop_table(_: &Path, _: Option<u32>) -> Mend {
    with(|server| server.query("DROP TABLE salt.salt_events"));
    Box::new(|| {})
}
