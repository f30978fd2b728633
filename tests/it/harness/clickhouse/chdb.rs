//! chDB, the engine of a current ClickHouse, behind an HTTP interface of ours: a test that uses it
//! says `chdb` in its name.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

pub(crate) struct Chdb {
    pub(crate) http: u16,
    child: Child,
    _folder: TempDir,
}

impl Chdb {
    /// Starts the engine, with nothing stored.
    pub(crate) fn start() -> Self {
        let installed = super::cache().join("chdb-26.9");
        assert!(installed.exists(), "no {}; run tests/servers/install.sh", installed.display());
        let folder = tempfile::Builder::new().prefix("chdb").tempdir().unwrap();
        let server = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/it/harness/clickhouse/chdb_server.py");
        let mut child = Command::new(installed.join("bin/python"))
            .arg(server)
            .arg(folder.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Chdb { http: line.trim().parse().unwrap(), child, _folder: folder }
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

impl Drop for Chdb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
