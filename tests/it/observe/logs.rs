//! The log as journald reads it.

use std::fs;

use crate::harness::daemon::{Daemon, Launch, wait_for};

#[test]
fn lines_for_journald_begin_with_their_priority() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let config = format!(
        "state_dir: {}\nhttp: {{listen: null}}\nlog: {{format: journald}}\n\
         sources: {{away: {{salt_bus: {{address: /nowhere/at/all.ipc}}}}}}\nsinks: {{out: {{blackhole: {{}}}}}}\n",
        folder.join("state").display()
    );
    fs::write(folder.join("saltern.yaml"), config).unwrap();
    let daemon = Daemon::spawn(&folder.join("saltern.yaml"), &Launch::default());
    wait_for("the warning", || daemon.log().contains("cannot connect").then_some(()));
    daemon.signal("TERM");
    assert!(daemon.ended().success());
    let log = daemon.log();
    assert!(log.contains("<6>started version="), "{log}");
    assert!(log.contains("<4>cannot connect, trying again source=\"away\""), "{log}");
    assert!(log.lines().all(|line| line.starts_with("<6>") || line.starts_with("<4>")), "{log}");
}
