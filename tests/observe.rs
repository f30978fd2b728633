//! What can be seen of a running daemon: metrics of the estate, the page, and what scrapers can do
//! to it.

// Clippy's allow-…-in-tests knows the tests, but not the functions that they call.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "conformance/bus.rs"]
mod bus;
#[path = "conformance/daemon.rs"]
mod daemon;
#[path = "observe/estate.rs"]
mod estate;
#[path = "observe/logs.rs"]
mod logs;
#[path = "observe/page.rs"]
mod page;
#[path = "observe/scrapers.rs"]
mod scrapers;
