//! Files in places that the shipped unit keeps read-only: the errors say what to add to the unit.

use std::process::Command;

use crate::harness::daemon::{Daemon, Launch, SALTERN, is_root, wait_for};

/// A file system that is read-only, with a database of an earlier day in it.
fn read_only(database: &str) -> String {
    format!(
        "mount -t tmpfs none /mnt && mkdir /mnt/log /mnt/state && cp {database} /mnt/log/old.db \
         && mount -o remount,ro /mnt"
    )
}

#[test]
fn sinks_in_a_read_only_place_say_what_to_add_to_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old.db");
    let connection = rusqlite::Connection::open(&old).unwrap();
    connection.execute_batch("CREATE TABLE jids (jid TEXT PRIMARY KEY, load TEXT)").unwrap();
    drop(connection);
    let recording =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/captures/salt-3006.28.events.jsonl");
    let sections = format!(
        "sources: {{recording: {{replay: {{path: '{recording}'}}}}}}\n\
         sinks:\n  lines: {{rawfile_json: {{filename: /mnt/log/events}}}}\n  \
         tables: {{sqlite3: {{database: /mnt/log/new.db}}}}\n  \
         before: {{sqlite3: {{database: /mnt/log/old.db}}}}\n"
    );
    let before = read_only(&old.display().to_string());
    let launch = Launch { before: Some(&before), ..Launch::default() };
    let daemon = Daemon::start_as(folder.path(), &sections, &launch);
    for sink in ["lines", "tables", "before"] {
        wait_for(&format!("the error of {sink}"), || {
            let log = daemon.log();
            let of_sink = |line: &&str| line.contains(&format!("\"sink\":\"{sink}\""));
            let line = log.lines().filter(of_sink).find(|line| line.contains("ReadWritePaths"))?;
            assert!(line.contains("ReadWritePaths=/mnt/log`"), "{line}");
            assert!(line.contains("systemctl edit saltern"), "{line}");
            Some(())
        });
    }
}

#[test]
fn a_state_dir_in_a_read_only_place_says_what_to_add_to_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("saltern.yaml");
    for state_dir in ["/mnt/state", "/mnt/new"] {
        let text = format!(
            "state_dir: {state_dir}\nhttp: null\nsources: {{bus: {{salt_bus: {{}}}}}}\n\
             sinks: {{out: {{blackhole: {{}}}}}}\n"
        );
        std::fs::write(&config, text).unwrap();
        let script = format!("{} && exec \"$0\" \"$@\"", read_only("/dev/null"));
        let mut command = Command::new("unshare");
        if !is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--mount", "sh", "-c", &script, SALTERN, "run"]);
        let output = command.arg("--config").arg(&config).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{said}");
        assert!(said.contains(&format!("ReadWritePaths={state_dir}`")), "{said}");
    }
}
