//! The sink `clickhouse` against real servers: ClickHouse 18.16, and chDB for what newer ones can.

// Clippy's allow-…-in-tests knows the tests, but not the functions that they call.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod clickhouse;

use clickhouse::ClickHouse;
use clickhouse::chdb::Chdb;

#[test]
fn servers_start() {
    let mut server = ClickHouse::start();
    assert_eq!(server.query("SELECT 1+1"), "2\n");
    println!("{}", server.query("SELECT version()"));
    server.kill();
    assert!(server.ask("SELECT 1").is_err());
    server.run();
    println!("{:?}", server.ask("SELECT * FROM nowhere"));
    let chdb = Chdb::start();
    assert_eq!(chdb.query("SELECT 1+1"), "2\n");
    println!("{}", chdb.query("SELECT version()"));
}
