//! The systemd unit: its lines, its score by `systemd-analyze security`, and a test that it cuts
//! off nothing that the daemon needs beside a real master.
//!
//! systemd itself is not started. The tools of util-linux put the daemon into the state that the
//! unit describes, and `strace` shows its system calls, sockets and memory.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rusqlite::Connection;

use crate::harness::daemon::SALTERN;
use crate::harness::salt::{self, Ipc, LIMIT, More, Salt, until};

const UNIT: &str = include_str!("../../config/saltern.service");

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/saltern.service")
}

/// The values of a setting of the unit, in order.
fn values(key: &str) -> Vec<&'static str> {
    let settings = UNIT.lines().filter(|line| !line.starts_with('#'));
    settings
        .filter_map(|line| line.split_once('='))
        .filter(|(k, _)| *k == key)
        .map(|(_, v)| v)
        .collect()
}

fn value(key: &str) -> &'static str {
    let values = values(key);
    assert_eq!(values.len(), 1, "{key}");
    values[0]
}

/// Tells if all of these programs can be run, and says loudly which cannot.
fn has(programs: &[&str]) -> bool {
    let is_missing = |program: &&&str| {
        let search = std::env::var_os("PATH").unwrap_or_default();
        !std::env::split_paths(&search).any(|folder| folder.join(program).is_file())
    };
    let missing: Vec<_> = programs.iter().filter(is_missing).collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED, NOTHING WAS TESTED: {missing:?} is not installed here");
    }
    missing.is_empty()
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn the_unit_says_what_matters() {
    // Type=notify-reload is not known before systemd 253.
    assert_eq!(value("Type"), "notify");
    assert_eq!(value("ExecReload"), "/bin/kill -HUP $MAINPID");
    assert_eq!(value("Restart"), "always");
    assert_eq!(value("RestartPreventExitStatus"), "2");
    assert!(value("LimitNOFILE").parse::<u32>().unwrap() >= 65536);
    assert!(UNIT.lines().any(|line| line.starts_with("#MemoryMax=")));
    assert_eq!(value("UMask"), "0027");
    assert_eq!(value("StateDirectoryMode"), "0700");
    assert_eq!(value("RuntimeDirectoryMode"), "0755");
    assert_eq!(value("CapabilityBoundingSet"), "");
    assert_eq!(value("NoNewPrivileges"), "yes");
    assert_eq!(value("ProtectSystem"), "strict");
    // The default of `shutdown_deadline`, and the ten seconds behind it.
    assert!(value("TimeoutStopSec").parse::<u32>().unwrap() > 25 + 10);
    // These would cut off needed calls; the unit says why.
    for key in ["PrivateNetwork", "PrivateUsers", "RemoveIPC", "ProcSubset"] {
        assert_eq!(values(key), [""; 0], "{key}");
    }
}

#[test]
fn systemd_scores_the_unit_under_1_5_and_knows_all_of_it() {
    if !has(&["systemd-analyze"]) {
        return;
    }
    let unit = path();
    let text = said("systemd-analyze", &["security", "--offline=true", unit.to_str().unwrap()]);
    let score =
        text.lines().find_map(|line| line.split_once("exposure level for saltern.service: "));
    let score = score.unwrap_or_else(|| panic!("no score in: {text}")).1;
    let score: f64 = score.split_whitespace().next().unwrap().parse().unwrap();
    assert!(score < 1.5, "{score}: {text}");
    for complaint in ["Failed to parse", "Unknown key", "Unknown section"] {
        assert!(!text.contains(complaint), "{text}");
    }
}

/// The system calls that a filter's words stand for.
fn calls(words: &str) -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    for word in words.split_whitespace() {
        if !word.starts_with('@') {
            calls.insert(word.to_owned());
            continue;
        }
        let text = said("systemd-analyze", &["syscall-filter", word]);
        let inside = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', '@']));
        calls.extend(inside.filter(|line| !line.is_empty()).map(str::to_owned));
        for set in text.lines().skip(1).map(str::trim).filter(|line| line.starts_with('@')) {
            calls.append(&mut self::calls(set));
        }
    }
    calls
}

/// The system calls that the unit allows, in the way of systemd.exec(5).
fn allowed() -> BTreeSet<String> {
    let mut allowed = calls("@default");
    for words in values("SystemCallFilter") {
        match words.strip_prefix('~') {
            Some(words) => {
                let denied = calls(words);
                allowed.retain(|call| !denied.contains(call));
            }
            None => allowed.append(&mut calls(words)),
        }
    }
    allowed
}

/// A process that is ended when this is dropped, with its children.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.0.wait();
    }
}

impl Daemon {
    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }
}

/// Everything visible is read-only but one folder, other users' processes are hidden, and the
/// command has no capability and will get none. Then `strace`, as a child of the traced process.
const CONFINED: &str = r#"
set -e
mount --bind "$OWN" "$OWN"
while read -r _ place _; do
    case $place in
        "$OWN" | /proc* | /sys* | /dev*) ;;
        *) mount -o remount,bind,ro "$place" 2>/dev/null || true ;;
    esac
done </proc/self/mounts
mount -t proc -o hidepid=invisible proc /proc
if touch "$MASTER/is-writable" 2>/dev/null; then echo "the master's folder can be written" >&2; exit 1; fi
umask "$UMASK"
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all \
    strace -D -f -q -o "$OWN/trace" -s 0 "$SALTERN" run --config "$OWN/saltern.yaml"
"#;

fn confined(own: &Path, master: &Path) -> Daemon {
    let log = fs::File::create(own.join("log")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", CONFINED]);
    command.env("OWN", own).env("MASTER", master).env("UMASK", value("UMask"));
    command.env("SALTERN", SALTERN);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
    Daemon(command.spawn().unwrap())
}

fn get(own: &Path, path: &str) -> Option<String> {
    let log = fs::read_to_string(own.join("log")).unwrap();
    let line = log.lines().rfind(|line| line.contains("the HTTP side listens"))?;
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let mut stream = TcpStream::connect(line["address"].as_str()?).ok()?;
    let token = fs::read_to_string(own.join("state/http-token")).unwrap_or_default();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Authorization: Bearer {}\r\n\r\n",
        token.trim()
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn configure(own: &Path, salt: &Salt) {
    let text = format!(
        "master_id: m\nstate_dir: OWN/state\nhttp: {{listen: '127.0.0.1:0'}}\n\
         log: {{format: json}}\nshutdown_deadline: 2s\nestate: {{}}\n\
         sources:\n  bus: {{salt_bus: {{address: {}, backfill: {{cache_dir: {}}}}}}}\n  \
         salt: {{returner: {{bind: 'ipc://OWN/r'}}}}\n\
         sinks:\n  file: {{rawfile_json: {{filename: OWN/events}}}}\n  \
         tables: {{sqlite3: {{database: OWN/salt.db}}}}\n  \
         away: {{clickhouse: {{url: 'http://127.0.0.1:1', database: x}}}}\n",
        salt.bus(),
        salt.job_cache().display()
    );
    let text = text.replace("OWN", &own.display().to_string());
    fs::write(own.join("saltern.yaml"), text).unwrap();
}

/// All in the trace that the unit would not let pass.
fn cut_off(trace: &str) -> BTreeSet<String> {
    let allowed = allowed();
    assert!(allowed.contains("connect") && !allowed.contains("mount"), "{allowed:?}");
    let families: Vec<_> = value("RestrictAddressFamilies").split(' ').collect();
    let mut cut_off = BTreeSet::new();
    for line in trace.lines() {
        let Some((_, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        let Some((name, arguments)) = call.split_once('(') else { continue };
        let is_call =
            name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !is_call {
            continue;
        }
        if !allowed.contains(name) {
            cut_off.insert(name.to_owned());
        }
        let is_socket = name == "socket" || name == "socketpair";
        let is_of_family = |family: &&str| arguments.starts_with(&format!("{family},"));
        let is_executable_memory =
            (name == "mmap" || name == "mprotect" || name == "pkey_mprotect")
                && arguments.contains("PROT_WRITE|PROT_EXEC");
        let makes_namespace = name.starts_with("clone") && arguments.contains("CLONE_NEW");
        if is_socket && !families.iter().any(is_of_family)
            || is_executable_memory
            || makes_namespace
        {
            cut_off.insert(call.to_owned());
        }
    }
    cut_off
}

#[test]
fn nothing_that_is_needed_beside_a_real_master_is_cut_off() {
    if !has(&["systemd-analyze", "strace", "unshare", "setpriv"]) {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED, NOTHING WAS TESTED: only root can make the namespaces of the unit");
        return;
    }
    let dir = salt::folder();
    let mut salt = Salt::start("3006.28", dir.path(), Ipc::Unix, &More::default());
    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    configure(&own, &salt);
    let mut daemon = confined(&own, &dir.path().join("m"));
    let log = || fs::read_to_string(own.join("log")).unwrap();
    until("the daemon to be ready", LIMIT, || {
        assert!(daemon.0.try_wait().unwrap().is_none(), "it has ended: {}", log());
        get(&own, "/readyz").filter(|answer| answer.starts_with("HTTP/1.1 200"))
    });

    let jid = salt.run("test.echo", &["through the walls"]);
    let returned = || {
        let database = Connection::open(own.join("salt.db")).ok()?;
        let sql = "SELECT count(*) FROM salt_returns WHERE jid = ?1 AND full_ret LIKE '%walls%'";
        database.query_row(sql, [&jid], |row| row.get::<_, i64>(0)).ok().filter(|count| *count == 2)
    };
    until("the returns in the tables", LIMIT, returned);
    until("the job", LIMIT, || {
        get(&own, &format!("/api/v1/jobs/{jid}")).filter(|job| job.contains("\"returned\":2"))
    });
    // Files are for the owner and, where they are for reading, the group.
    let mode = |name: &str| own.join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("events"), mode("salt.db"), mode("r")), (0o640, 0o640, 0o660));

    daemon.signal("HUP");
    until("the reload", LIMIT, || log().contains("reload").then_some(()));
    daemon.signal("TERM");
    let status = until("the end", LIMIT, || daemon.0.try_wait().unwrap());
    // One sink never had its store.
    assert!(status.code().is_some(), "{status}: {}", log());
    let trace = || fs::read_to_string(own.join("trace")).unwrap();
    // Short ids stand in a column of five places.
    let (pid, end) = (daemon.0.id().to_string(), "+++ exited");
    let is_end =
        |line: &str| line.strip_prefix(&pid).is_some_and(|rest| rest.trim_start().starts_with(end));
    until("the end of the trace", LIMIT, || trace().lines().any(is_end).then_some(()));
    let trace = trace();
    assert!(trace.contains("connect("), "this is no trace: {trace}");
    assert_eq!(cut_off(&trace), BTreeSet::new());
}
