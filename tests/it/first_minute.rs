//! Commands without a daemon named: they find the one of the system, or else a demo, or say what to
//! do. Through the real binary, on file systems of its own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::harness::daemon::{SALTERN, until};
use serde_json::Value;

/// The commands that ask a daemon, and if they have `--url`.
const COMMANDS: [(&[&str], bool); 5] = [
    (&["jobs", "list"], true),
    (&["events", "--count", "1"], true),
    (&["spill"], false),
    (&["dead-letters", "list"], false),
    (&["console"], false),
];

/// A mount namespace without a daemon and without a configuration, for as long as this is there. A
/// user's commands in it have `FOLDER` for their temp directory.
struct Machine {
    keeper: Child,
    folder: tempfile::TempDir,
}

const PREPARED: &str = r#"
set -e
for place in /run /var/lib; do mount -t tmpfs none $place; done
if [ -d /etc/saltern ]; then mount -t tmpfs none /etc/saltern; fi
touch "$FOLDER/prepared"
exec sleep 3600
"#;

impl Machine {
    /// `None` where a test may not mount.
    fn new() -> Option<Self> {
        if !is_root() {
            eprintln!("not root: nothing is tested");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("st").tempdir_in("/tmp").unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", PREPARED]);
        command.env("FOLDER", folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
        let keeper = command.spawn().unwrap();
        let machine = Machine { keeper, folder };
        let prepared = machine.path().join("prepared");
        until("the file systems", || prepared.exists());
        Some(machine)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A command in there.
    fn saltern(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--mount").arg("--target").arg(self.keeper.id().to_string());
        command.arg(format!("--wdns={}", self.path().display())).arg(SALTERN).args(arguments);
        for variable in ["XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET"] {
            command.env_remove(variable);
        }
        command.env("TMPDIR", self.path()).stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.saltern(arguments).output().unwrap()
    }

    /// Starts what runs on.
    fn start(&self, arguments: &[&str], log: &str) -> Running {
        let log = fs::File::create(self.path().join(log)).unwrap();
        let mut command = self.saltern(arguments);
        Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    /// A path in there.
    fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.keeper.id()))
    }

    /// A daemon that is ready, in the default `state_dir`, with this in its section `http`.
    fn daemon(&self, http: &str) -> Running {
        self.configure(http);
        let running = self.start(&["run", "--config", "real.yaml"], "daemon.log");
        self.wait_for("daemon.log", "the HTTP side listens");
        running
    }

    fn configure(&self, http: &str) {
        let config = format!(
            "master_id: real.example.com\nsources: {{bus: {{salt_bus: {{address: 'unix:/nowhere'}}}}}}\n\
             sinks: {{none: {{blackhole: {{}}}}}}\njobs: {{enabled: true}}\n\
             http: {{listen: '127.0.0.1:0'{http}}}\nlog: {{format: json}}\n"
        );
        fs::write(self.path().join("real.yaml"), config).unwrap();
    }

    fn demo(&self) -> Running {
        let demo = ["demo", "--listen", "127.0.0.1:0", "--rate", "500"];
        let running = self.start(&demo, "demo.log");
        self.wait_for("demo.log", "Ctrl-C ends it");
        running
    }

    fn wait_for(&self, log: &str, words: &str) {
        let log = self.path().join(log);
        until(words, || fs::read_to_string(&log).unwrap_or_default().contains(words));
    }

    /// Waits until jobs are listed; returns the notes beside them.
    fn wait_for_jobs(&self) -> String {
        let mut said = String::new();
        until("jobs", || {
            let output = self.output(&["jobs", "list", "--output", "json"]);
            said = text(&output.stderr);
            let page: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            page["jobs"].as_array().is_some_and(|jobs| !jobs.is_empty())
        });
        said
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// A process that is ended with the test.
struct Running(Child);

impl Running {
    fn stop(mut self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
        until("the end", || self.0.try_wait().unwrap().is_some());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    text(&id.stdout).trim() == "0"
}

fn text_of(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn without_a_daemon_every_command_says_what_to_do() {
    let Some(machine) = Machine::new() else { return };
    for (command, has_url) in COMMANDS {
        let output = machine.output(command);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
        for words in [
            "/etc/saltern/saltern.yaml",
            "/run/saltern/http.sock",
            "/var/lib/saltern/http.sock",
            "--config",
            "--state-dir",
            "saltern demo",
        ] {
            assert!(said.contains(words), "{command:?} does not name {words}: {said}");
        }
        assert_eq!(said.contains("--url"), has_url, "{said}");
    }
}

#[test]
fn the_daemon_of_the_system_is_found_without_a_configuration_and_before_a_demo() {
    let Some(machine) = Machine::new() else { return };
    let demo = machine.demo();
    assert!(machine.wait_for_jobs().contains("the demo in"));
    let in_state_dir = "";
    let in_runtime_directory = ", socket: {path: /run/saltern/http.sock}";
    fs::create_dir(machine.inside("/run/saltern")).unwrap();
    for socket in [in_state_dir, in_runtime_directory] {
        let daemon = machine.daemon(socket);
        for command in [&["jobs", "list"][..], &["spill"], &["dead-letters", "list"], &["console"]]
        {
            let output = machine.output(command);
            let said = text(&output.stderr);
            assert!(output.status.success(), "{command:?}: {said}");
            assert!(!said.contains("the demo"), "{command:?}: {said}");
        }
        daemon.stop();
    }
    assert!(machine.wait_for_jobs().contains("the demo in"));
    demo.stop();
}

#[test]
fn a_demo_is_found_by_every_command_and_takes_its_sign_down() {
    let Some(machine) = Machine::new() else { return };
    let demo = machine.demo();
    let said = fs::read_to_string(machine.path().join("demo.log")).unwrap();
    assert!(said.contains("`saltern jobs list` in another terminal"), "{said}");
    machine.wait_for_jobs();
    for (command, _) in COMMANDS {
        let output = machine.output(command);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{command:?}: {said}");
        assert!(said.contains("the demo in"), "{command:?}: {said}");
    }
    let sign = machine.path().join("saltern-demo-0");
    assert_eq!(fs::metadata(&sign).unwrap().permissions().mode() & 0o777, 0o700);
    demo.stop();
    assert!(!sign.exists());
    assert_eq!(machine.output(&["jobs", "list"]).status.code(), Some(2));
}

#[test]
fn a_runtime_directory_is_the_daemons_and_not_the_demos() {
    let Some(machine) = Machine::new() else { return };
    fs::create_dir(machine.inside("/run/other")).unwrap();
    let with_directory = |arguments: &[&str]| {
        let mut command = machine.saltern(arguments);
        command.env("RUNTIME_DIRECTORY", "/run/other");
        command
    };
    let log = |name: &str| fs::File::create(machine.path().join(name)).unwrap();
    let demo = ["demo", "--listen", "127.0.0.1:0"];
    let mut demo = with_directory(&demo);
    let demo = Running(demo.stdout(Stdio::null()).stderr(log("demo.log")).spawn().unwrap());
    machine.wait_for_jobs();
    assert!(!machine.inside("/run/other/http.sock").exists());

    machine.configure("");
    let mut daemon = with_directory(&["run", "--config", "real.yaml"]);
    let daemon = Running(daemon.stdout(Stdio::null()).stderr(log("daemon.log")).spawn().unwrap());
    machine.wait_for("daemon.log", "the HTTP side listens");
    assert!(machine.inside("/run/other/http.sock").exists());
    let output = with_directory(&["jobs", "list"]).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success() && !said.contains("the demo"), "{said}");
    daemon.stop();
    demo.stop();
}

#[test]
fn a_demo_keeps_its_state_where_it_is_told_to() {
    let Some(machine) = Machine::new() else { return };
    let demo = ["demo", "--state-dir", "elsewhere", "--listen", "127.0.0.1:0"];
    let demo = machine.start(&demo, "demo.log");
    machine.wait_for("demo.log", "Ctrl-C ends it");
    assert!(machine.wait_for_jobs().contains("elsewhere"));
    assert!(!machine.path().join("saltern-demo/state").exists());
    demo.stop();
}

#[test]
fn a_second_demo_leaves_the_sign_of_the_first_in_its_place() {
    let Some(machine) = Machine::new() else { return };
    let first = machine.demo();
    let is_of_first = |said: String| assert!(said.contains("saltern-demo/state"), "{said}");
    is_of_first(machine.wait_for_jobs());
    let second = ["demo", "--directory", "second", "--listen", "127.0.0.1:0"];
    let second = machine.start(&second, "second.log");
    machine.wait_for("second.log", "Ctrl-C ends it");
    let said = fs::read_to_string(machine.path().join("second.log")).unwrap();
    assert!(said.contains("`saltern jobs list --state-dir second/state`"), "{said}");
    let listed = || machine.output(&["jobs", "list", "--state-dir", "second/state"]);
    until("the second one's socket", || listed().status.success());
    is_of_first(machine.wait_for_jobs());
    second.stop();
    is_of_first(machine.wait_for_jobs());
    first.stop();
    assert!(!machine.path().join("saltern-demo-0").exists());
}

#[test]
fn a_demo_in_a_long_place_leaves_the_runtime_directory_alone_and_is_found() {
    let Some(machine) = Machine::new() else { return };
    fs::create_dir(machine.inside("/run/other")).unwrap();
    let user = machine.path().join("user");
    fs::create_dir(&user).unwrap();
    let long = "x".repeat(90);
    let with_directories = |arguments: &[&str]| {
        let mut command = machine.saltern(arguments);
        command.env("RUNTIME_DIRECTORY", "/run/other").env("XDG_RUNTIME_DIR", &user);
        command
    };
    let mut demo = with_directories(&["demo", "--directory", &long, "--listen", "127.0.0.1:0"]);
    let log = fs::File::create(machine.path().join("demo.log")).unwrap();
    let demo = Running(demo.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    machine.wait_for("demo.log", "Ctrl-C ends it");
    let relative = format!("{long}/state");
    let whole = machine.path().join(&relative).display().to_string();
    for named in [&[][..], &["--state-dir", &relative], &["--state-dir", &whole]] {
        let arguments = [&["jobs", "list"], named].concat();
        until(&format!("an answer to {named:?}"), || {
            with_directories(&arguments).output().unwrap().status.success()
        });
    }
    assert!(!machine.inside("/run/other/http.sock").exists());
    demo.stop();
}

#[test]
fn no_files_are_read_or_dropped_but_those_of_the_daemon_that_answers() {
    let Some(machine) = Machine::new() else { return };
    let with_directory = |arguments: &[&str]| {
        let mut command = machine.saltern(arguments);
        command.env("RUNTIME_DIRECTORY", "/run/saltern");
        command
    };
    // Another daemon has left something there.
    machine.daemon("").stop();
    fs::create_dir(machine.inside("/run/saltern")).unwrap();
    machine.configure("");
    let config = machine.path().join("real.yaml");
    let elsewhere = machine.path().join("elsewhere").display().to_string();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}state_dir: {elsewhere}\n")).unwrap();
    let log = fs::File::create(machine.path().join("elsewhere.log")).unwrap();
    let mut daemon = with_directory(&["run", "--config", "real.yaml"]);
    let daemon = Running(daemon.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    machine.wait_for("elsewhere.log", "the HTTP side listens");
    let commands: [&[&str]; 5] = [
        &["dead-letters", "list"],
        &["dead-letters", "drop", "--all"],
        &["spill", "list"],
        &["spill", "verify"],
        &["console"],
    ];
    for command in commands {
        let output = machine.output(command);
        let said = text_of(&output);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
        for words in [elsewhere.as_str(), "--state-dir", "--config", "/var/lib/saltern"] {
            assert!(said.contains(words), "{command:?} does not name {words}: {said}");
        }
        for named in [["--state-dir", &elsewhere], ["--config", "real.yaml"]] {
            let output = machine.output(&[command, &named].concat());
            assert!(output.status.success(), "{command:?} {named:?}: {}", text_of(&output));
        }
    }
    assert!(machine.output(&["jobs", "list"]).status.success());
    daemon.stop();
}

#[test]
fn a_sign_that_another_user_put_up_is_not_followed() {
    let Some(machine) = Machine::new() else { return };
    let demo = machine.demo();
    machine.wait_for_jobs();
    let sign = machine.path().join("saltern-demo-0");
    let state_dir = fs::read_link(sign.join("state")).unwrap();
    fs::remove_dir_all(&sign).unwrap();
    let refused = |why: &str| {
        let output = machine.output(&["jobs", "list"]);
        assert_eq!(output.status.code(), Some(2), "{why}: {}", text(&output.stderr));
    };
    fs::create_dir(&sign).unwrap();
    fs::set_permissions(&sign, fs::Permissions::from_mode(0o700)).unwrap();
    symlink(&state_dir, sign.join("state")).unwrap();
    chown(&sign, Some(65534), Some(65534)).unwrap();
    refused("the folder is another user's");
    chown(&sign, Some(0), Some(0)).unwrap();
    assert!(machine.output(&["jobs", "list"]).status.success());
    fs::set_permissions(&sign, fs::Permissions::from_mode(0o777)).unwrap();
    refused("all may write there");
    demo.stop();
}
