//! What can be seen of a running daemon: metrics of the estate, the page, what scrapers can do to it,
//! and that no secret is among it.

// Clippy's allow-…-in-tests knows the tests, but not the functions that they call.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "conformance/bus.rs"]
mod bus;
mod clickhouse;
#[path = "conformance/daemon.rs"]
mod daemon;
#[path = "observe/estate.rs"]
mod estate;
mod kafka;
#[path = "observe/logs.rs"]
mod logs;
#[path = "observe/page.rs"]
mod page;
mod ports;
#[path = "observe/scrapers.rs"]
mod scrapers;
#[path = "observe/secrets.rs"]
mod secrets;
