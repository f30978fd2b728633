//! All tests of the whole program, in one binary: a module a subject, and `harness` for what they
//! share. Tests of one subject: `cargo test --test it SUBJECT::`.

// Clippy's allow-…-in-tests knows the tests, but not the functions that they call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod harness;

mod alerts;
mod broken_wires;
mod cli;
mod clickhouse_questions;
mod clickhouse_schema;
mod clickhouse_sink;
mod conformance;
mod dead_letters;
mod deaths;
mod digests;
mod doc_links;
mod docs;
mod failing_sources;
mod first_minute;
mod forged_returns;
mod fuzz_targets;
mod hostile_input;
mod house;
mod http;
mod import_master;
mod job_stores;
mod jobs;
mod kafka_sink;
mod kafka_source;
mod long_events;
mod make_kind;
mod observe;
mod oracle;
mod outcomes;
mod parity;
mod read_only_places;
mod redact;
mod reload;
mod replayed_json;
mod returner;
mod returner_attacks;
mod salt_job_caches;
mod salt_masters;
mod salt_outcomes;
mod salt_reads_sqlite3;
mod salt_returner;
mod salt_sqlite3_jobs;
mod secrets;
mod spill;
mod state_dir;
mod state_files;
mod stopping;
mod systemd_unit;
mod terminal;
mod test_runner;
mod watched;
mod zeromq;
