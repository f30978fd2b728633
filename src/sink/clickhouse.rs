//! `clickhouse`: events, jobs, returns and states in tables of a ClickHouse database.

mod body;
mod rows;
mod server;
mod states;
mod tables;
