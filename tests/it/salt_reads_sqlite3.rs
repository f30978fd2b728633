//! Salt's own `sqlite3` returner reads what saltern wrote: the functions that `salt-run jobs.*` and
//! `salt '*' ret.*` call.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::daemon::Daemon;
use crate::harness::server::installed;

const SCRIPT: &str = r#"
import json, sys
import salt.returners.sqlite3_return as returner
returner.__opts__ = {"sqlite3.database": sys.argv[1], "sqlite3.timeout": 5.0}
returner.__salt__ = {}
jids = returner.get_jids()
print(json.dumps({
    "jids": jids,
    "loads": {jid: returner.get_load(jid) for jid in jids},
    "returns": {jid: returner.get_jid(jid) for jid in jids},
    "minions": returner.get_minions(),
    # A function with no return: the form of Salt's query, without the fault in what follows it.
    "none": returner.get_fun("no.such"),
}))
"#;

/// The Python of the Salt 3006.28 that `make test` installs.
fn python() -> PathBuf {
    installed("salt-3006.28").join("bin/python")
}

#[test]
fn salt_3006_reads_jobs_and_returns() {
    let python = python();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let recording =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/captures/salt-3006.28.events.jsonl");
    let database = folder.join("salt.db");
    let daemon = Daemon::start(
        folder,
        &format!(
            "sources: {{recording: {{replay: {{path: '{recording}'}}, master_id: the_master}}}}\n\
             sinks: {{tables: {{sqlite3: {{database: '{}'}}}}}}\n",
            database.display()
        ),
    );
    let status = daemon.ended();
    assert!(status.success(), "{status}: {}", daemon.log());

    let output = Command::new(python).args(["-c", SCRIPT]).arg(&database).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();

    let text = std::fs::read_to_string(recording).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut minions = std::collections::BTreeSet::new();
    let mut jobs = 0;
    for event in &events {
        let tag: Vec<_> = event["tag"].as_str().unwrap().split('/').collect();
        let data = &event["data"];
        match tag[..] {
            ["salt", "job", jid, "new"] => {
                jobs += 1;
                assert_eq!(read["loads"][jid], *data);
                let job = &read["jids"][jid];
                assert_eq!(job["Function"], data["fun"]);
                assert_eq!(job["Arguments"], data["arg"]);
                assert_eq!(job["Target"], data["tgt"]);
                assert_eq!(job["User"], data["user"]);
            }
            // In Salt's own job cache a runner is a job that its master has returned.
            ["salt", "run", jid, "new"] => {
                jobs += 1;
                minions.insert("the_master");
                assert_eq!(read["loads"][jid], *data);
                assert_eq!(read["jids"][jid]["Function"], data["fun"]);
            }
            ["salt", "run", jid, "ret"] => {
                assert_eq!(read["returns"][jid], json!({"the_master": {"return": data}}));
            }
            ["salt", "job", jid, "ret", minion] => {
                minions.insert(minion);
                // Salt's get_jid gives one minion of a job.
                let Some(returns) = read["returns"].get(jid).and_then(Value::as_object) else {
                    continue;
                };
                assert_eq!(returns.len(), 1, "{jid}");
                if let Some(found) = returns.get(minion) {
                    assert_eq!(*found, json!({"return": data["return"]}), "{jid} {minion}");
                }
            }
            _ => {}
        }
    }
    assert_eq!(read["jids"].as_object().unwrap().len(), jobs);
    let mut found: Vec<_> =
        read["minions"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, minions.into_iter().collect::<Vec<_>>());
    assert_eq!(read["none"], json!({}));
}
