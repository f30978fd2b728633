//! The world around the tests: the daemon, stores, masters, peers and broken wires.

pub(crate) mod beside;
pub(crate) mod bus;
pub(crate) mod clickhouse;
pub(crate) mod daemon;
pub(crate) mod kafka;
pub(crate) mod numbered;
pub(crate) mod ports;
pub(crate) mod proxy;
pub(crate) mod returner_peer;
pub(crate) mod salt;
pub(crate) mod server;
