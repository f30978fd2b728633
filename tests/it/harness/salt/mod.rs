//! A real Salt master with two real minions, on this machine and for one test.
//!
//! `tests/servers/install.sh` has put each release of Salt into a Python environment of its own;
//! this module starts it. A master in a test needs more than a configuration:
//!
//! * Salt puts `root_dir` in front of every path that does not lie below it, the sockets' too, so
//!   everything has to be below `root_dir`. That has to be short, since the address of a unix
//!   socket holds 108 bytes.
//! * The grains that ask name servers are off: without a network they take minutes.
//! * Master and minions fork. Each is a process group of its own and is ended as one, also when the
//!   test panics.
//! * After a restart the master has a new AES key. A minion finds out by failing to decrypt, so the
//!   first job after it may reach nobody.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::ports::free_ports;
use crate::harness::server::installed;

/// The minions' ids.
pub(crate) const MINIONS: [&str; 2] = ["web-1", "web-2"];

/// A program of the environment of this release of Salt.
pub(crate) fn program(version: &str, name: &str) -> PathBuf {
    installed(&format!("salt-{version}")).join("bin").join(name)
}

/// A temporary folder for [`Salt::start`], with a short name.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("st").tempdir_in("/tmp").unwrap()
}

/// The output of a program that has to succeed.
pub(crate) fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A folder for `returner_dirs` with the single file in it.
pub(crate) fn single_file(version: &str, dir: &Path) -> PathBuf {
    let returners = dir.join("returners");
    fs::create_dir(&returners).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("salt/single_file.py");
    let file = said(Command::new(program(version, "python")).arg(script));
    fs::write(returners.join("saltern.py"), file).unwrap();
    returners
}

/// The options of a master that hands over to a daemon at this socket.
pub(crate) fn handing_over(version: &str, dir: &Path, socket: &Path) -> String {
    let returners = single_file(version, dir);
    format!(
        "returner_dirs: [{}]\nsaltern.address: ipc://{}\nsaltern.timeout: 60\n",
        returners.display(),
        socket.display()
    )
}

/// Nothing that is waited for here takes this long: a master and its minions on a slow, busy
/// machine.
pub(crate) const LIMIT: Duration = Duration::from_mins(6);

/// Seconds that Salt's client waits for the returns of a job.
pub(crate) const ANSWER: u32 = 120;

/// Asks again and again until there is an answer; panics after `limit`.
pub(crate) fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < limit, "waited {limit:?} for {what}");
        pause();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks at a condition with a deadline"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

/// A process with all its children, ended when this is dropped.
pub(crate) struct Group(Child);

impl Group {
    /// Starts it with its output in the file `output`.
    pub(crate) fn start(command: &mut Command, output: &Path) -> Self {
        let output = File::create(output).unwrap();
        command.stderr(output.try_clone().unwrap());
        // The caller may have asked for a pipe.
        Group(command.stdout(output).stdin(Stdio::null()).process_group(0).spawn().unwrap())
    }

    /// Waits until it has ended by itself.
    pub(crate) fn ended(&mut self, limit: Duration) {
        until("a process to end", limit, || self.0.try_wait().unwrap());
    }

    /// Ends it as an operator would, and waits until all of it is gone.
    pub(crate) fn stop(&mut self, limit: Duration) {
        signal("TERM", self.0.id().to_string());
        until("a process to end after SIGTERM", limit, || self.0.try_wait().unwrap());
        // All its children should be gone with it; some of Salt's are slower, or forget.
        signal("KILL", format!("-{}", self.0.id()));
        let gone = || (!signal("0", format!("-{}", self.0.id()))).then_some(());
        until("a process group to end", limit, gone);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        signal("KILL", format!("-{}", self.0.id()));
        let _ = self.0.wait();
    }
}

/// Sends a signal to a process, or to the group of one if the id is negative; whether there was
/// one.
fn signal(name: &str, id: String) -> bool {
    // The shell's own `kill`: the program of that name is not on every machine.
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("kill -s {name} -- {id}"));
    shell.stderr(Stdio::null()).status().unwrap().success()
}

/// The way in which the master serves its bus.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Ipc {
    /// On a unix socket.
    Unix,
    /// On a port of the loopback address.
    Tcp,
}

/// Options beyond those that every test needs.
#[derive(Default)]
pub(crate) struct More {
    /// `, NAME` for another returner of the master's events.
    pub(crate) event_return: String,
    /// Lines for the master.
    pub(crate) master: String,
    /// Lines for the master and the minions.
    pub(crate) all: String,
}

/// The error when `drive.py` has ended itself, since Salt's client hung.
const HUNG: &str = "drive.py has ended";

/// A master and its minions.
pub(crate) struct Salt {
    version: &'static str,
    dir: PathBuf,
    bus: String,
    master: Option<Group>,
    minions: Vec<Group>,
    driver: Option<Driver>,
}

impl Salt {
    /// Starts a master and its minions in `dir`, whose path must be short, and waits until the
    /// minions answer. The configuration of the master ends with `more.master`, that of all three
    /// with `more.all`.
    pub(crate) fn start(version: &'static str, dir: &Path, ipc: Ipc, more: &More) -> Self {
        let More { event_return, master: more_of_master, all: more } = more;
        let [publish, ret, master_pub, master_pull, publish_pull, workers] = free_ports();
        let common = "\
user: USER
interface: 127.0.0.1
enable_fqdns_grains: false
enable_gpu_grains: false
log_level_logfile: info
";
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let common = common.replace("USER", std::str::from_utf8(&user).unwrap().trim());
        let paths = |root: &Path, name: &str| {
            let root = root.display();
            format!(
                "root_dir: {root}\nconf_file: {root}/{name}\npki_dir: {root}/pki\n\
                 cachedir: {root}/cache\nsock_dir: {root}/s\npidfile: {root}/pid\n\
                 log_file: {root}/log\nkey_logfile: {root}/key\nextension_modules: {root}/ext\n{common}"
            )
        };
        let master = dir.join("m");
        fs::create_dir_all(&master).unwrap();
        let (srv, events) = (dir.join("srv"), dir.join("salt-events"));
        let bus = match ipc {
            Ipc::Unix => master.join("s/master_event_pub.ipc").display().to_string(),
            Ipc::Tcp => format!("tcp://127.0.0.1:{master_pub}"),
        };
        let ipc_mode = match ipc {
            Ipc::Unix => "ipc",
            Ipc::Tcp => "tcp",
        };
        let text = format!(
            "{}publish_port: {publish}\nret_port: {ret}\nauto_accept: true\nworker_threads: 2\n\
             ipc_mode: {ipc_mode}\ntcp_master_pub_port: {master_pub}\n\
             tcp_master_pull_port: {master_pull}\ntcp_master_publish_pull: {publish_pull}\n\
             tcp_master_workers: {workers}\n\
             event_return: [rawfile_json{event_return}]\nevent_return_queue: 0\n\
             rawfile_json.filename: {}\nfile_roots: {{base: [{}]}}\n{more_of_master}{more}",
            paths(&master, "master"),
            events.display(),
            srv.display(),
        );
        fs::write(master.join("master"), text).unwrap();
        write_file_roots(&srv);
        for minion in MINIONS {
            let root = dir.join(minion);
            fs::create_dir_all(&root).unwrap();
            let text = format!(
                "{}id: {minion}\nmaster: 127.0.0.1\nmaster_port: {ret}\npublish_port: {publish}\n\
                 acceptance_wait_time: 1\nrandom_startup_delay: 0\nauth_timeout: 10\n\
                 request_channel_timeout: 20\n\
                 beacons: {{status: [{{interval: 2}}, {{loadavg: [all]}}]}}\n\
                 rawfile_json.filename: {}\n{more}",
                paths(&root, "minion"),
                root.join("returns").display()
            );
            fs::write(root.join("minion"), text).unwrap();
        }
        let dir = dir.to_owned();
        let mut salt = Salt { version, dir, bus, master: None, minions: Vec::new(), driver: None };
        salt.start_master();
        for minion in MINIONS {
            let root = salt.dir.join(minion);
            let mut command = Command::new(program(version, "salt-minion"));
            command.arg("-c").arg(&root);
            salt.minions.push(Group::start(&mut command, &root.join("output")));
        }
        salt.await_minions();
        salt
    }

    fn start_master(&mut self) {
        let root = self.dir.join("m");
        let mut command = Command::new(program(self.version, "salt-master"));
        command.arg("-c").arg(&root);
        self.master = Some(Group::start(&mut command, &root.join("output")));
    }

    /// Stops the master and starts it again; returns when the minions answer.
    pub(crate) fn restart_master(&mut self) {
        let mut master = self.master.take().unwrap();
        master.stop(LIMIT);
        self.start_master();
        self.await_minions();
    }

    fn await_minions(&mut self) {
        until("both minions to answer test.ping", LIMIT, || {
            let answer = self.ask(&json!({"run": "test.ping", "timeout": 10}));
            (answer["ok"]["returned"] == json!(MINIONS)).then_some(())
        });
    }

    /// The address of the bus, as saltern is told it.
    pub(crate) fn bus(&self) -> &str {
        &self.bus
    }

    /// Runs a job on both minions, waits for both returns, and gives the job's id.
    pub(crate) fn run(&mut self, fun: &str, arg: &[&str]) -> String {
        let answer = self.ask(&json!({"run": fun, "arg": arg, "timeout": ANSWER}));
        assert_eq!(answer["ok"]["returned"], json!(MINIONS), "{fun}: {answer}");
        answer["ok"]["jid"].as_str().unwrap().to_owned()
    }

    /// Puts an event onto the master's bus.
    pub(crate) fn fire(&mut self, tag: &str) {
        let answer = self.ask(&json!({"fire": tag, "data": {"text": "ä \u{1f9c2} \u{0}"}}));
        assert_eq!(answer, json!({"ok": true}), "{tag}");
    }

    /// Runs a command as a user does in a shell, and gives its output once it has ended.
    pub(crate) fn shell(&self, name: &str, arg: &[&str]) -> String {
        let mut command = Command::new(program(self.version, name));
        command.arg("-c").arg(self.dir.join("m")).args(arg);
        let output = self.dir.join("shell");
        Group::start(&mut command, &output).ended(LIMIT);
        String::from_utf8_lossy(&fs::read(output).unwrap()).into_owned()
    }

    /// The directories of the master's job cache.
    pub(crate) fn job_cache(&self) -> PathBuf {
        self.dir.join("m/cache/jobs")
    }

    /// Has `drive.py` do something that must succeed, and gives its answer. A call that hung in
    /// Salt's client is tried once more, and may have been done twice then.
    pub(crate) fn drive(&mut self, request: &Value) -> Value {
        let mut answer = self.ask(request);
        if answer["error"] == HUNG {
            answer = self.ask(request);
        }
        assert!(answer.get("ok").is_some(), "{request}: {answer}");
        answer["ok"].take()
    }

    fn ask(&mut self, request: &Value) -> Value {
        let (version, dir) = (self.version, &self.dir);
        let driver = self.driver.get_or_insert_with(|| Driver::start(version, dir));
        let answer = driver.ask(request);
        if answer.is_none() {
            self.driver = None;
        }
        answer.unwrap_or_else(|| {
            let log = fs::read_to_string(dir.join("drive.log")).unwrap_or_default();
            json!({"error": HUNG, "log": log})
        })
    }

    /// Sends an event as a user on a minion does.
    pub(crate) fn send_from_minion(&self, tag: &str) {
        self.call(&["event.send", tag, r#"{"size": 7}"#]);
    }

    /// Does what a user on a minion does with `salt-call`.
    pub(crate) fn call(&self, arg: &[&str]) {
        let output = self.called(arg);
        assert!(output.status.success(), "salt-call: {output:?}");
    }

    /// The same for calls that may fail.
    pub(crate) fn called(&self, arg: &[&str]) -> Output {
        let mut command = Command::new(program(self.version, "salt-call"));
        command.arg("-c").arg(self.dir.join(MINIONS[0]));
        command.args(arg).output().unwrap()
    }

    /// The file that Salt's own `event_return: rawfile_json` has written.
    pub(crate) fn stored(&self) -> Vec<u8> {
        fs::read(self.dir.join("salt-events")).unwrap_or_default()
    }

    /// The master's log.
    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(self.dir.join("m/log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// States and an execution module for the minions.
fn write_file_roots(srv: &Path) {
    fs::create_dir_all(srv.join("_modules")).unwrap();
    let module = "\
import datetime

def data():
    return b\"\\xff\\xfe raw \\x00\"

def dated():
    sharp = datetime.datetime(2026, 11, 21, 23, 33, 36)
    return {\"sharp\": sharp, \"late\": sharp.replace(microsecond=5)}
";
    fs::write(srv.join("_modules/raw.py"), module).unwrap();
    let states = "\
works:
  test.succeed_with_changes: []
fails:
  test.fail_without_changes: []
";
    fs::write(srv.join("broken.sls"), states).unwrap();
}

/// `drive.py` in the Python of a release of Salt.
struct Driver {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Driver {
    fn start(version: &str, dir: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/harness/salt/drive.py");
        let mut command = Command::new(program(version, "python"));
        command.arg(script).arg(dir.join("m/master")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let log = File::options().create(true).append(true).open(dir.join("drive.log")).unwrap();
        let mut child = command.stderr(log).spawn().unwrap();
        let requests = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Driver { child, requests, answers }
    }

    /// The answer; `None` if the process has ended, as it does when a request of its hangs.
    fn ask(&mut self, request: &Value) -> Option<Value> {
        writeln!(self.requests, "{request}").ok()?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).ok()?;
        serde_json::from_str(&answer).ok()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
