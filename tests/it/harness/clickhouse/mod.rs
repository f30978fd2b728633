//! A real ClickHouse, release 18.16, with ports, a folder and users of its own.
//!
//! | user | password | may |
//! |---|---|---|
//! | `default` | none | everything; the tests look with it |
//! | `saltern` | `secret` | everything, unless [`ClickHouse::limit`] says otherwise |

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use crate::harness::ports::free_ports;
use crate::harness::server::{LIMIT, Server, installed};

pub(crate) mod chdb;
pub(crate) mod stub;

pub(crate) struct ClickHouse {
    server: Server,
    pub(crate) http: u16,
    pub(crate) native: u16,
    pub(crate) https: Option<u16>,
    /// More elements of its configuration.
    more: String,
}

impl ClickHouse {
    /// Starts a server.
    pub(crate) fn start() -> Self {
        let mut server = ClickHouse::new();
        server.run();
        server
    }

    /// A server that is not started yet.
    pub(crate) fn new() -> Self {
        let [http, native] = free_ports();
        ClickHouse {
            server: Server::new("clickhouse"),
            http,
            native,
            https: None,
            more: String::new(),
        }
    }

    /// Lets it listen for TLS too, with the certificate `server.crt` and key `server.key` in
    /// `keys`.
    pub(crate) fn with_tls(mut self, keys: &Path) -> Self {
        for name in ["server.crt", "server.key"] {
            fs::copy(keys.join(name), self.server.folder().join(name)).unwrap();
        }
        let [https] = free_ports();
        self.https = Some(https);
        self
    }

    /// Adds elements to its configuration.
    pub(crate) fn with_config(mut self, elements: &str) -> Self {
        self.more += elements;
        self
    }

    /// Starts it (again) and waits until it answers.
    pub(crate) fn run(&mut self) {
        let path = self.server.folder();
        fs::write(path.join("config.xml"), self.config()).unwrap();
        if !path.join("users.xml").exists() {
            self.limit("");
        }
        let config = format!("--config-file={}", path.join("config.xml").display());
        let program = installed("clickhouse-18.16").join("run");
        self.server.start(&program, &["clickhouse-server".to_owned(), config]);
        self.server.until("an answer", || self.ask("SELECT 1").ok());
    }

    /// The settings of the sink for this server and database, without the braces.
    pub(crate) fn settings(&self, database: &str) -> String {
        format!(
            "url: 'http://127.0.0.1:{}', database: {database}, user: saltern, password: secret",
            self.http
        )
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.server.kill();
    }

    /// Does nothing for a while; its connections stay.
    pub(crate) fn pause(&self) {
        self.server.pause();
    }

    /// Goes on.
    pub(crate) fn resume(&self) {
        self.server.resume();
    }

    /// Sets the limits of the user `saltern`, as elements of its profile
    /// (`<readonly>1</readonly>`). A running server takes them up in some seconds.
    pub(crate) fn limit(&self, elements: &str) {
        let file = self.server.folder().join("users.xml");
        let users = format!(
            "<yandex><profiles><default>{DEFAULTS}</default>\
             <limited>{DEFAULTS}{elements}</limited></profiles>\
             <users>\
             <default><password></password><networks><ip>127.0.0.1</ip></networks>\
             <profile>default</profile><quota>default</quota></default>\
             <saltern><password>secret</password><networks><ip>127.0.0.1</ip></networks>\
             <profile>limited</profile><quota>default</quota></saltern></users>\
             <quotas><default></default></quotas></yandex>"
        );
        let new = file.with_extension("new");
        fs::write(&new, users).unwrap();
        // The server sees a change by whole seconds of the time, and tests write faster than that.
        if let Ok(before) = fs::metadata(&file) {
            let later = before.modified().unwrap() + Duration::from_secs(2);
            File::options().append(true).open(&new).unwrap().set_modified(later).unwrap();
        }
        // In one step, since the server may look at any time.
        fs::rename(new, file).unwrap();
    }

    /// Limits like [`ClickHouse::limit`], and waits until a running server has taken it up.
    pub(crate) fn limit_now(&self, name: &str, value: &str) {
        self.limit(&format!("<{name}>{value}</{name}>"));
        let sql = format!("SELECT value FROM system.settings WHERE name = '{name}'");
        self.server.until(&format!("it to take up {name}"), || {
            let found = ask(self.http, "saltern:secret", &sql);
            (!found.is_ok_and(|found| found.trim() != value)).then_some(())
        });
    }

    /// The answer to a query, rows of tab-separated values.
    pub(crate) fn query(&self, sql: &str) -> String {
        self.ask(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The same; or what the server has against it.
    pub(crate) fn ask(&self, sql: &str) -> Result<String, String> {
        ask(self.http, "default:", sql)
    }

    fn config(&self) -> String {
        let path = self.server.folder().display();
        let tls = self.https.map_or(String::new(), |port| {
            format!(
                "<https_port>{port}</https_port><openSSL><server>\
                 <certificateFile>{path}/server.crt</certificateFile>\
                 <privateKeyFile>{path}/server.key</privateKeyFile>\
                 <verificationMode>none</verificationMode>\
                 <loadDefaultCAFile>false</loadDefaultCAFile>\
                 </server></openSSL>"
            )
        });
        format!(
            "<yandex><logger><level>warning</level><console>1</console></logger>\
             <http_port>{}</http_port><tcp_port>{}</tcp_port>{tls}{}\
             <listen_host>127.0.0.1</listen_host>\
             <path>{path}/data/</path><tmp_path>{path}/tmp/</tmp_path>\
             <user_files_path>{path}/files/</user_files_path>\
             <users_config>users.xml</users_config><default_profile>default</default_profile>\
             <default_database>default</default_database><timezone>UTC</timezone>\
             <uncompressed_cache_size>0</uncompressed_cache_size>\
             <mark_cache_size>5368709</mark_cache_size></yandex>",
            self.http, self.native, self.more
        )
    }
}

/// Every user gets little memory and few threads.
const DEFAULTS: &str = "<max_memory_usage>1000000000</max_memory_usage><max_threads>2</max_threads>\
                        <background_pool_size>2</background_pool_size>\
                        <background_schedule_pool_size>2</background_schedule_pool_size>\
                        <log_queries>0</log_queries>";

/// Asks the server at a port as `login`, user and password with a colon between; the error is the
/// server's answer, or its absence.
fn ask(port: u16, login: &str, sql: &str) -> Result<String, String> {
    let (user, password) = login.split_once(':').unwrap();
    let no_answer = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(no_answer)?;
    stream.set_read_timeout(Some(LIMIT)).map_err(no_answer)?;
    let length = sql.len();
    // HTTP/1.0 makes the answer come in one piece that ends the connection.
    let head = format!(
        "POST / HTTP/1.0\r\nX-ClickHouse-User: {user}\r\nX-ClickHouse-Key: {password}\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    stream.write_all((head + sql).as_bytes()).map_err(no_answer)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(no_answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no head in the answer")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(body.to_owned()),
    }
}
