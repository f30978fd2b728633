//! A real ClickHouse, release 18.16, with ports, a folder and users of its own.
//!
//! | user | password | may |
//! |---|---|---|
//! | `default` | none | everything; the tests look with it |
//! | `saltern` | `secret` | everything, unless [`ClickHouse::limit`] says otherwise |

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::ports::free_ports;

pub(crate) mod chdb;
pub(crate) mod stub;

/// Nothing that these tests wait for takes this long.
const DEADLINE: Duration = Duration::from_mins(2);

pub(crate) struct ClickHouse {
    folder: TempDir,
    pub(crate) http: u16,
    pub(crate) native: u16,
    pub(crate) https: Option<u16>,
    /// More elements of its configuration.
    more: String,
    child: Option<Child>,
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
        let folder = tempfile::Builder::new().prefix("ch").tempdir().unwrap();
        let [http, native] = free_ports();
        ClickHouse { folder, http, native, https: None, more: String::new(), child: None }
    }

    /// Lets it listen for TLS too, with the certificate `server.crt` and key `server.key` in
    /// `keys`.
    pub(crate) fn with_tls(mut self, keys: &Path) -> Self {
        for name in ["server.crt", "server.key"] {
            fs::copy(keys.join(name), self.folder.path().join(name)).unwrap();
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
        assert!(self.child.is_none(), "it runs");
        let path = self.folder.path();
        fs::write(path.join("config.xml"), self.config()).unwrap();
        if !path.join("users.xml").exists() {
            self.limit("");
        }
        let log = |name| File::options().create(true).append(true).open(path.join(name)).unwrap();
        let child = Command::new(installed().join("run"))
            .arg("clickhouse-server")
            .arg(format!("--config-file={}", path.join("config.xml").display()))
            .current_dir(path)
            .stdin(Stdio::null())
            .stdout(log("stdout"))
            .stderr(log("stderr"))
            .spawn()
            .unwrap();
        self.child = Some(child);
        let begin = Instant::now();
        while self.ask("SELECT 1").is_err() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "ClickHouse ended, {ended:?}: {}", self.log());
            assert!(begin.elapsed() < DEADLINE, "ClickHouse does not answer: {}", self.log());
            pause();
        }
    }

    /// The settings of the sink for this server and database, without the braces.
    pub(crate) fn settings(&self, database: &str) -> String {
        format!(
            "url: 'http://127.0.0.1:{}', database: {database}, user: saltern, password: secret",
            self.http
        )
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Sets the limits of the user `saltern`, as elements of its profile
    /// (`<readonly>1</readonly>`). A running server takes them up in some seconds.
    pub(crate) fn limit(&self, elements: &str) {
        let file = self.folder.path().join("users.xml");
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

    /// As [`ClickHouse::limit`], and waits until a running server has taken it up.
    pub(crate) fn limit_now(&self, name: &str, value: &str) {
        self.limit(&format!("<{name}>{value}</{name}>"));
        let sql = format!("SELECT value FROM system.settings WHERE name = '{name}'");
        let begin = Instant::now();
        while ask(self.http, "saltern:secret", &sql).is_ok_and(|found| found.trim() != value) {
            assert!(begin.elapsed() < DEADLINE, "the server does not take up {name}");
            pause();
        }
    }

    /// The answer to a query, rows of tab-separated values.
    pub(crate) fn query(&self, sql: &str) -> String {
        self.ask(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The same; or what the server has against it.
    pub(crate) fn ask(&self, sql: &str) -> Result<String, String> {
        ask(self.http, "default:", sql)
    }

    fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        format!("{}\n{}", read("stderr"), read("server.log"))
    }

    fn config(&self) -> String {
        let path = self.folder.path().display();
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
            "<yandex><logger><level>warning</level><log>{path}/server.log</log></logger>\
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

/// What every user gets: little memory, few threads.
const DEFAULTS: &str = "<max_memory_usage>1000000000</max_memory_usage><max_threads>2</max_threads>\
                        <background_pool_size>2</background_pool_size>\
                        <background_schedule_pool_size>2</background_schedule_pool_size>\
                        <log_queries>0</log_queries>";

impl Drop for ClickHouse {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("ClickHouse's log:\n{}", self.log());
        }
    }
}

/// Asks the server at a port as `login`, user and password with a colon between; the error is the
/// server's answer, or that there is none.
fn ask(port: u16, login: &str, sql: &str) -> Result<String, String> {
    let (user, password) = login.split_once(':').unwrap();
    let no_answer = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(no_answer)?;
    stream.set_read_timeout(Some(DEADLINE)).map_err(no_answer)?;
    let length = sql.len();
    // Of HTTP/1.0, so that the answer is in one piece and ends the connection.
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

/// Where `tests/servers/install.sh` has put ClickHouse.
fn installed() -> PathBuf {
    let folder = cache().join("clickhouse-18.16");
    assert!(folder.exists(), "no {}; run tests/servers/install.sh", folder.display());
    folder
}

/// The folder of the installed servers.
fn cache() -> PathBuf {
    std::env::var_os("SALTERN_TEST_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/saltern-tests"),
        PathBuf::from,
    )
}

/// Between two looks at a condition with a deadline.
#[allow(clippy::disallowed_methods)]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
