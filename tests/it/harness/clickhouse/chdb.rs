//! chDB, the engine of a current ClickHouse, behind an HTTP interface of ours: a test that uses it
//! says `chdb` in its name.

use std::path::Path;

use crate::harness::server::{Server, installed};

pub(crate) struct Chdb {
    pub(crate) http: u16,
    _server: Server,
}

impl Chdb {
    /// Starts the engine, with nothing stored.
    pub(crate) fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/it/harness/clickhouse/chdb_server.py");
        let mut server = Server::new("chdb");
        let arguments =
            [script, server.folder().join("data")].map(|path| path.display().to_string());
        server.start(&installed("chdb-26.9").join("bin/python"), &arguments);
        // It says its port first.
        let http = server.until("its port", || server.output().split_once('\n')?.0.parse().ok());
        Chdb { http, _server: server }
    }

    /// The settings of the sink for this server and database, without the braces.
    pub(crate) fn settings(&self, database: &str) -> String {
        format!("url: 'http://127.0.0.1:{}', database: {database}, compression: none", self.http)
    }

    /// The answer to a query, rows of tab-separated values.
    pub(crate) fn query(&self, sql: &str) -> String {
        super::ask(self.http, "default:", sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}
