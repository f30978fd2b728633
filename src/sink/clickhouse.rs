//! `clickhouse`: events, jobs, returns and states in tables of a ClickHouse database.

mod server;
