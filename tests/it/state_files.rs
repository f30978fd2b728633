//! Things that somebody puts in the place of the daemon's files: links to files of others, FIFOs
//! that make a reader wait, devices without an end, directories. None of them keeps the daemon from
//! starting, and nothing elsewhere is touched.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::beside::{self, Daemon};
use crate::harness::daemon::SALTERN;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

const SOURCE: &str = "salt_bus: {address: FOLDER/bus}\njobs: {enabled: true}";

fn frame(tag: &str) -> Vec<u8> {
    let body = [tag.as_bytes(), b"\n\n\x81\xa1a\x01"].concat();
    let len = u32::try_from(body.len()).unwrap().to_be_bytes();
    [b"\x82\xa4head\x80\xa4body\xc6", &len[..], &body].concat()
}

async fn pass(daemon: &Daemon, listener: &UnixListener, tag: &str) -> UnixStream {
    let accepted = timeout(beside::DEADLINE, listener.accept()).await;
    let accepted = accepted.unwrap_or_else(|_| panic!("no connection; {}", daemon.log()));
    let mut stream = accepted.unwrap().0;
    stream.write_all(&frame(tag)).await.unwrap();
    daemon.wait_for_event(tag).await;
    stream
}

/// Every file under the folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn invariant_7_nothing_in_place_of_a_state_file_stops_the_daemon_or_is_followed() {
    let mut daemon = Daemon::start(SOURCE);
    let listener = UnixListener::bind(daemon.path("bus")).unwrap();
    drop(pass(&daemon, &listener, "begin").await);
    let decoy = daemon.path("decoy");
    fs::write(&decoy, "precious").unwrap();
    fs::set_permissions(&decoy, Permissions::from_mode(0o644)).unwrap();
    for kind in ["link", "FIFO", "zero", "directory", "dangling"] {
        daemon.kill();
        let state = files(&daemon.path("state"));
        let state: Vec<_> = state
            .into_iter()
            .filter(|path| !path.to_str().unwrap().contains(".damaged-"))
            .collect();
        let has = |ending: &str| state.iter().any(|path| path.to_str().unwrap().ends_with(ending));
        for ending in
            ["lock", "deaths", "queue-id", "progress", ".seg", "dead-letters.db", "-wal", "-shm"]
        {
            assert!(has(ending), "{kind}: no {ending} in {state:?}");
        }
        for path in &state {
            fs::remove_file(path).unwrap();
            match kind {
                "link" => symlink(&decoy, path).unwrap(),
                "zero" => symlink("/dev/zero", path).unwrap(),
                "dangling" => symlink(daemon.path("nothing"), path).unwrap(),
                "directory" => {
                    fs::create_dir(path).unwrap();
                    fs::write(path.join("x"), "y").unwrap();
                }
                _ => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
            }
        }
        let before = daemon.log().len();
        daemon.start_again();
        let tag = format!("after/{kind}");
        drop(pass(&daemon, &listener, &tag).await);
        daemon
            .until("all to be put aside", || {
                state.iter().all(|path| {
                    path.symlink_metadata()
                        .is_ok_and(|there| there.is_file() || there.file_type().is_socket())
                        || !path.exists() && {
                            let name = path.to_str().unwrap();
                            ["-wal", "-shm", ".seg"].iter().any(|ending| name.ends_with(ending))
                        }
                })
            })
            .await;
        let log = daemon.log()[before..].to_owned();
        for name in [
            "state/lock",
            "state/deaths",
            "out/queue-id",
            "out/progress",
            "dead-letters.db",
            ".seg",
        ] {
            let named = log.lines().any(|line| line.contains("put aside") && line.contains(name));
            assert!(named, "{kind}: {name} is not named in {log}");
        }
        assert_eq!(fs::read_to_string(&decoy).unwrap(), "precious", "{kind}");
        assert_eq!(decoy.metadata().unwrap().permissions().mode() & 0o777, 0o644, "{kind}");
        assert!(!daemon.path("nothing").exists(), "{kind}");
    }
    daemon.stop().await;
}

/// `saltern` with this configuration in the folder.
fn saltern(arguments: &[&str], folder: &Path, config: &str) -> Output {
    let path = folder.join("config.yaml");
    fs::write(&path, config.replace("FOLDER", folder.to_str().unwrap())).unwrap();
    let mut command = Command::new("timeout");
    command.args(["120", SALTERN]).args(arguments).arg("--config").arg(path);
    command.output().unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const CONFIG: &str = "state_dir: FOLDER/state\nhttp: {listen: null}\n\
    sources: {bus: {salt_bus: {address: FOLDER/bus}}}\nsinks: {out: {blackhole: {}}}\n";

#[test]
fn a_state_dir_that_others_can_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    for mode in [0o777, 0o770, 0o1777, 0o702] {
        fs::set_permissions(&state, Permissions::from_mode(mode)).unwrap();
        let remedy = format!("`chmod 0700 {}`", state.display());
        let run = saltern(&["run"], folder.path(), CONFIG);
        assert_eq!(run.status.code(), Some(1), "{mode:o}: {run:?}");
        assert!(error(&run).contains(&remedy), "{}", error(&run));
        let check = saltern(&["check"], folder.path(), CONFIG);
        assert_eq!(check.status.code(), Some(2), "{mode:o}: {check:?}");
        assert!(error(&check).contains(&remedy), "{}", error(&check));
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0, "nothing was made in it");
    }
    for (mode, advice) in [(0o755, true), (0o750, false), (0o700, false)] {
        fs::set_permissions(&state, Permissions::from_mode(mode)).unwrap();
        let check = saltern(&["check"], folder.path(), CONFIG);
        assert!(check.status.success(), "{mode:o}: {check:?}");
        assert_eq!(error(&check).contains("others can look into"), advice, "{mode:o}: {check:?}");
    }
}

#[test]
fn a_state_dir_of_somebody_else_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give a directory away and be somebody else");
        return;
    }
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, Permissions::from_mode(0o755)).unwrap();
    chown(&state, Some(12_345), Some(12_345)).unwrap();
    let config = folder.path().join("config.yaml");
    fs::write(&config, CONFIG.replace("FOLDER", folder.path().to_str().unwrap())).unwrap();
    // A copy, since nobody may reach the one that was built.
    let binary = folder.path().join("saltern");
    fs::copy(SALTERN, &binary).unwrap();
    for (arguments, code) in [("run", 1), ("check", 2)] {
        let output = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(&binary)
            .args([arguments, "--config"])
            .arg(&config)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(error(&output).contains("belongs to the user 12345"), "{}", error(&output));
        assert!(error(&output).contains("`chown 65534 "), "{}", error(&output));
    }
}

#[test]
fn a_secret_that_is_no_file_is_a_mistake_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    fs::write(at("long"), vec![b'x'; (64 << 10) + 1]).unwrap();
    fs::write(at("longest"), vec![b'x'; 64 << 10]).unwrap();
    symlink(at("longest"), at("link")).unwrap();
    for (path, says) in [
        ("/dev/zero", "it is a device"),
        ("FOLDER/fifo", "it is a FIFO"),
        ("FOLDER", "it is a directory"),
        ("FOLDER/long", "more than the 65536 bytes"),
        ("FOLDER/link", ""),
    ] {
        let config =
            CONFIG.replace("listen: null", &format!("listen: null, token: '${{file:{path}}}'"));
        let output = saltern(&["check"], folder.path(), &config);
        let code = if says.is_empty() { 0 } else { 2 };
        assert_eq!(output.status.code(), Some(code), "{path}: {output:?}");
        assert!(error(&output).contains(says), "{path}: {}", error(&output));
    }
    // The configuration itself.
    let mut command = Command::new("timeout");
    let zero = command.args(["120", SALTERN, "check", "--config", "/dev/zero"]);
    let zero = zero.output().unwrap();
    assert_eq!(zero.status.code(), Some(2), "{zero:?}");
}
