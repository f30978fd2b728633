//! A server of a store, as a process: started, waited for, killed, held, started again. It is gone,
//! with its files, when its owner is dropped, and when the process of the tests ends in any way.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::daemon::pause;

/// Nothing that servers are waited for takes this long.
pub(crate) const LIMIT: Duration = Duration::from_mins(4);

/// The folder in which `tests/servers/install.sh` has put this server.
pub(crate) fn installed(name: &str) -> PathBuf {
    let cache = std::env::var_os("SALTERN_TEST_CACHE").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/saltern-tests");
    let folder = cache.unwrap_or_else(home).join(name);
    assert!(folder.exists(), "there is no {}; run tests/servers/install.sh", folder.display());
    folder
}

pub(crate) struct Server {
    name: &'static str,
    folder: TempDir,
    leash: Option<Child>,
}

impl Server {
    /// A server with an empty folder, which does not run yet.
    pub(crate) fn new(name: &'static str) -> Self {
        let folder = tempfile::Builder::new().prefix(name).tempdir().unwrap();
        Server { name, folder, leash: None }
    }

    /// Its folder, which it keeps over restarts.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.leash.is_some()
    }

    /// Starts this program with these arguments, in the server's folder.
    pub(crate) fn start(&mut self, program: &Path, arguments: &[String]) {
        assert!(self.leash.is_none(), "{} runs", self.name);
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        // The standard input is the leash: it ends with the process of the tests. A word on it ends
        // the server alone, and its files stay.
        let script = "folder=$1; shift; exec 3<&0; \"$@\" 3<&- & echo $! >pid; read -r word <&3; \
                      kill -9 $!; wait; [ -n \"$word\" ] || rm -rf \"$folder\"";
        let _ = fs::remove_file(self.folder().join("pid"));
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "leash"]).arg(self.folder()).arg(program).args(arguments);
        shell.current_dir(self.folder()).process_group(0);
        shell.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        self.leash = Some(shell.spawn().unwrap());
        self.until("its start", || self.pid());
    }

    fn pid(&self) -> Option<u32> {
        fs::read_to_string(self.folder().join("pid")).ok()?.trim().parse().ok()
    }

    /// True if it has ended by itself.
    fn has_ended(&self) -> bool {
        self.pid().is_some_and(|pid| {
            matches!(state(Path::new(&format!("/proc/{pid}"))), None | Some('Z'))
        })
    }

    /// True if none of its threads runs.
    fn is_held(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid().unwrap())).unwrap();
        threads.flatten().all(|thread| state(&thread.path()).is_none_or(|state| state == 'T'))
    }

    /// Waits until `look` finds something, for as long as the server runs.
    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(!self.has_ended(), "{} has ended before {what}\n{}", self.name, self.log());
            let is_late = began.elapsed() > LIMIT;
            assert!(!is_late, "{}: waited {LIMIT:?} for {what}\n{}", self.name, self.log());
            pause(Duration::from_millis(20));
        }
    }

    /// `kill -9`; its files stay. Does nothing to one that does not run.
    pub(crate) fn kill(&mut self) {
        let Some(mut leash) = self.leash.take() else { return };
        leash.stdin.take().unwrap().write_all(b"end\n").unwrap();
        leash.wait().unwrap();
    }

    /// Holds it: it does nothing, and its connections stay.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
        self.until("it to be held", || self.is_held().then_some(()));
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        // The shell's own `kill`: the program of that name is not on every machine.
        let kill = format!("kill -s {name} {}", self.pid().unwrap());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
    }

    fn log_file(&self) -> PathBuf {
        self.folder().join("log")
    }

    /// Its whole log.
    pub(crate) fn output(&self) -> String {
        fs::read(self.log_file())
            .map_or(String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        let output = self.output();
        let lines: Vec<_> = output.lines().collect();
        let end = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("the end of the log of {}:\n{end}\n", self.name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        if let Some(mut leash) = self.leash.take() {
            drop(leash.stdin.take());
            let _ = leash.wait();
        }
    }
}

/// The state of a process or a thread, from its folder in `/proc`; `None` if it is gone.
fn state(folder: &Path) -> Option<char> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// A server that the tests of a process share, one after the other. It is started by the first, and
/// started anew after a test that failed.
pub(crate) struct Shared<T>(Mutex<Option<T>>);

/// The server, lent to a test.
pub(crate) struct Lent<'a, T>(MutexGuard<'a, Option<T>>);

impl<T> Shared<T> {
    pub(crate) const fn new() -> Self {
        Shared(Mutex::new(None))
    }

    /// Waits until no other test has it.
    pub(crate) fn lend(&self, start: impl FnOnce() -> T) -> Lent<'_, T> {
        let mut server = self.0.lock().unwrap_or_else(|poisoned| {
            self.0.clear_poison();
            let mut server = PoisonError::into_inner(poisoned);
            *server = None;
            server
        });
        server.get_or_insert_with(start);
        Lent(server)
    }
}

impl<T> std::ops::Deref for Lent<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().unwrap()
    }
}

impl<T> std::ops::DerefMut for Lent<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().unwrap()
    }
}
