//! Sinks: one kind of store, one file.
//!
//! [`contract`] is the trait of a kind, [`registry`] the list of all.

mod blackhole;
pub(crate) mod clickhouse;
pub mod contract;
pub mod encoding;
mod envelope;
mod http;
mod jobs;
#[cfg(feature = "kafka")]
mod kafka;
mod local;
mod notify;
mod one_by_one;
mod rawfile_json;
pub mod registry;
mod sql;
mod sqlite3;
#[cfg(test)]
pub(crate) mod testing;
mod webhook;
