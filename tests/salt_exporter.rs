//! salt-exporter and saltern on the bus of one real master: their counters grow alike.
//!
//! Not every machine can build salt-exporter, so that this runs on demand:
//!
//! ```sh
//! go install github.com/kpetremann/salt-exporter/cmd/salt-exporter@latest
//! SALT_EXPORTER=~/go/bin/salt-exporter cargo test --test salt_exporter -- --ignored
//! ```
//!
//! Without it, `tests/observe/estate.rs` holds the counters against the rules that it documents.

// Clippy's allow-…-in-tests knows the tests, but not the functions that they call.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

#[path = "conformance/daemon.rs"]
mod daemon;
#[allow(dead_code)] // Each test crate uses a part of it.
mod salt;

use daemon::Daemon;
use salt::{Group, Ipc, Salt, until};

const MINUTE: Duration = Duration::from_mins(1);

const COUNTERS: [&str; 5] = [
    "salt_new_job_total",
    "salt_expected_responses_total",
    "salt_function_responses_total",
    "salt_scheduled_job_return_total",
    "salt_responses_total",
];

type Counts = BTreeMap<String, f64>;

#[test]
#[ignore = "needs salt-exporter, see above"]
fn counters_grow_as_salt_exporters_do() {
    let exporter = std::env::var("SALT_EXPORTER").unwrap_or_else(|_| {
        panic!("set SALT_EXPORTER to the path of salt-exporter");
    });
    let dir = tempfile::Builder::new().prefix("st").tempdir_in("/tmp").unwrap();
    let mut salt = Salt::start("3008.3", dir.path(), Ipc::Unix);
    let folder = dir.path().join("saltern");
    fs::create_dir(&folder).unwrap();
    let sections = format!(
        "estate: {{minions: true}}\nsources: {{bus: {{salt_bus: {{address: '{}'}}}}}}\n\
         sinks: {{out: {{blackhole: {{}}}}}}\n",
        salt.bus()
    );
    let mut daemon = Daemon::start(&folder, &sections);
    let address = daemon.address();
    let (_exporter, theirs) = start(&exporter, dir.path(), salt.bus());
    // Both are there once both have counted one and the same.
    let has_ping = |counts: &Counts| counts.keys().any(|series| series.contains("test.ping"));
    until("both to count a job", MINUTE, || {
        salt.run("test.ping", &[]);
        (has_ping(&counts(&address)) && has_ping(&counts(&theirs))).then_some(())
    });
    let (ours_before, theirs_before) = (settled(&address), settled(&theirs));

    salt.run("test.ping", &[]);
    salt.run("grains.items", &[]);
    salt.run("cmd.run", &["exit 3"]);
    salt.run("state.apply", &["broken"]);
    salt.run("state.sls", &["broken", "test=True"]);
    salt.run("state.single", &["test.nop", "name=x"]);
    salt.run("state.highstate", &[]);
    let grown = until("the counters to have grown alike", MINUTE, || {
        let ours = difference(&counts(&address), &ours_before);
        let theirs = difference(&counts(&theirs), &theirs_before);
        println!("ours {ours:#?}\ntheirs {theirs:#?}");
        let jobs: f64 = ours
            .iter()
            .filter(|(name, _)| name.starts_with(COUNTERS[0]))
            .map(|(_, count)| count)
            .sum();
        (ours == theirs && jobs >= 7.0).then_some(ours)
    });
    assert!(grown.len() > 15, "{grown:#?}");
    daemon.stop();
}

/// Starts salt-exporter, which looks for its configuration in its folder; where it listens.
fn start(program: &str, dir: &Path, bus: &str) -> (Group, String) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = dir.join("exporter");
    fs::create_dir(&folder).unwrap();
    let config = format!(
        "listen-address: 127.0.0.1\nlisten-port: {port}\nipc-file: {bus}\npki-dir: {}\n",
        dir.join("m/pki").display()
    );
    fs::write(folder.join("config.yml"), config).unwrap();
    let mut command = Command::new(program);
    let group = Group::start(command.current_dir(&folder), &folder.join("output"));
    (group, format!("127.0.0.1:{port}"))
}

/// The counters, once they have not changed for a moment.
fn settled(address: &str) -> Counts {
    let mut last = counts(address);
    let mut same = 0;
    until("the counters to rest", MINUTE, || {
        let now = counts(address);
        same = if now == last { same + 1 } else { 0 };
        last.clone_from(&now);
        (same > 20).then_some(now)
    })
}

/// The counters now; none while nobody answers.
fn counts(address: &str) -> Counts {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        stream.read_to_string(&mut text).unwrap();
    }
    let lines = text.lines().filter(|line| COUNTERS.iter().any(|name| line.starts_with(name)));
    lines
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((sorted(series), value.parse().ok()?))
        })
        .collect()
}

/// The series with its labels in the order of the alphabet.
fn sorted(series: &str) -> String {
    let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
    let mut labels: Vec<_> = labels.split("\",").map(|label| label.trim_end_matches('"')).collect();
    labels.sort_unstable();
    format!("{name} {}", labels.join(" "))
}

/// What has been added to each series.
fn difference(after: &Counts, before: &Counts) -> Counts {
    let before = |series: &String| before.get(series).copied().unwrap_or_default();
    let grown = after.iter().map(|(series, count)| (series.clone(), count - before(series)));
    grown.filter(|(_, grown)| *grown > 0.0).collect()
}
