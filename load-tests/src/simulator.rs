//! The events of a Salt estate of many minions, as its master's bus would carry them in an hour or
//! so.
//!
//! Minions come up, jobs run on groups of them and on all, most return and a few never do. Some
//! highstates fail, beacons tell of load and disks, presence events name the minions that are
//! there, keys come and go. The same number of minions and the same seed give the same events. The
//! events of a job carry its jid. [`Traffic`] gives it anew each time the hour is sent again.

use fastrand::Rng;
use serde_json::{Map, Value, json};

use crate::Failure;
use crate::traffic::{Framing, JID, Traffic, body};

/// One in so many minions does not return from a job.
const SILENT: usize = 200;

/// One in so many highstates has a failed state.
const FAILED: usize = 25;

/// Minions of a job on a group, at the most.
const GROUP: usize = 500;

/// Minions that a presence event names, at the most: about what an event of 1 MiB holds.
const NAMED: usize = 40_000;

const FUNCTIONS: [&str; 6] =
    ["test.ping", "cmd.run", "grains.items", "pkg.list_upgrades", "service.status", "disk.usage"];
const ROLES: [&str; 5] = ["web", "app", "db", "cache", "lb"];
const STAMP: &str = "2026-11-22T00:00:00.999999";

/// The events made so far, each with its job.
struct Story {
    rng: Rng,
    minions: Vec<String>,
    job: u64,
    bodies: Vec<(u64, Vec<u8>)>,
}

/// The traffic of an estate of so many minions.
pub(crate) fn traffic(minions: usize, seed: u64, framing: Framing) -> Result<Traffic, Failure> {
    let minions = (0..minions.max(1))
        .map(|n| format!("{}-{n}.example.com", ROLES.get(n % ROLES.len()).unwrap_or(&"web")))
        .collect();
    let mut story = Story { rng: Rng::with_seed(seed), minions, job: 0, bodies: Vec::new() };
    story.arrivals()?;
    // Jobs on groups until every minion has been in one, on average; then one on all.
    let groups = story.minions.len().div_ceil(GROUP);
    for _ in 0..groups {
        let first = story.rng.usize(..story.minions.len());
        let len = story.rng.usize(1..=GROUP.min(story.minions.len()));
        let is_highstate = story.rng.usize(..3) == 0;
        story.job(first, len, is_highstate)?;
        story.beacons(len / 4 + 1)?;
    }
    story.job(0, story.minions.len(), false)?;
    story.presence()?;
    Traffic::of(story.bodies, framing)
}

impl Story {
    fn tell(&mut self, tag: &str, data: &Value) -> Result<(), Failure> {
        self.bodies.push((self.job, body(tag, data)?));
        Ok(())
    }

    fn minion(&self, number: usize) -> String {
        self.minions.get(number % self.minions.len().max(1)).cloned().unwrap_or_default()
    }

    /// Keys are accepted and minions start: one in a hundred of the estate within the hour.
    fn arrivals(&mut self) -> Result<(), Failure> {
        for number in (0..self.minions.len()).step_by(100) {
            let minion = self.minion(number);
            let key = json!({
                "result": true, "act": "accept", "id": minion, "pub": "M".repeat(450),
                "_stamp": STAMP,
            });
            self.tell("salt/auth", &key)?;
            let start = json!({
                "cmd": "_minion_event", "id": minion, "pretag": Value::Null, "_stamp": STAMP,
                "data": format!("Minion {minion} started at Sun Nov 22 00:00:00 2026"),
            });
            self.tell(&format!("salt/minion/{minion}/start"), &start)?;
        }
        Ok(())
    }

    /// A job on `len` minions from `first` on; their returns come in no order.
    fn job(&mut self, first: usize, len: usize, is_highstate: bool) -> Result<(), Failure> {
        self.job += 1;
        let mut targets: Vec<String> = (first..first + len).map(|n| self.minion(n)).collect();
        let index = self.rng.usize(..FUNCTIONS.len());
        let fun =
            if is_highstate { "state.apply" } else { FUNCTIONS.get(index).unwrap_or(&"test.ping") };
        let named: Vec<_> = targets.iter().take(NAMED).collect();
        let new = json!({
            "jid": JID, "tgt_type": "list", "tgt": "*", "user": "root", "fun": fun, "arg": [],
            "minions": named, "missing": [], "_stamp": STAMP,
        });
        self.tell(&format!("salt/job/{JID}/new"), &new)?;
        self.rng.shuffle(&mut targets);
        for minion in targets {
            if self.rng.usize(..SILENT) == 0 {
                continue;
            }
            let has_failed = is_highstate && self.rng.usize(..FAILED) == 0;
            let value = match is_highstate {
                true => self.highstate(has_failed),
                false => json!("a".repeat(self.rng.usize(4..400))),
            };
            let ret = json!({
                "cmd": "_return", "id": minion, "success": !has_failed, "return": value,
                "retcode": if has_failed { 2 } else { 0 }, "jid": JID, "fun": fun, "fun_args": [],
                "_stamp": STAMP, "out": "highstate",
            });
            self.tell(&format!("salt/job/{JID}/ret/{minion}"), &ret)?;
        }
        Ok(())
    }

    fn highstate(&mut self, has_failed: bool) -> Value {
        let mut states = Map::new();
        let count = self.rng.u32(3..12);
        for run in 0..count {
            let is_last = run + 1 == count;
            let state = json!({
                "name": "/etc/app/app.conf", "changes": {}, "result": !(has_failed && is_last),
                "comment": "The file is in the correct state", "__sls__": "app.config",
                "__run_num__": run, "start_time": "23:33:36.123456",
                "duration": f64::from(self.rng.u32(1..40_000)) / 16.0, "__id__": format!("app_{run}"),
            });
            states.insert(format!("file_|-app_{run}_|-/etc/app/app.conf_|-managed"), state);
        }
        Value::Object(states)
    }

    fn beacons(&mut self, count: usize) -> Result<(), Failure> {
        for _ in 0..count {
            let number = self.rng.usize(..self.minions.len());
            let minion = self.minion(number);
            let load = f64::from(self.rng.u32(0..400)) / 64.0;
            let (kind, data) = match self.rng.usize(..3) {
                0 => (
                    "diskusage",
                    json!({"mount": "/", "diskusage": 93.5, "id": minion, "_stamp": STAMP}),
                ),
                _ => {
                    let averages = json!({"1-min": load, "5-min": load, "15-min": load});
                    ("status", json!({"loadavg": averages, "id": minion, "_stamp": STAMP}))
                }
            };
            self.tell(&format!("salt/beacon/{minion}/{kind}/{STAMP}"), &data)?;
        }
        Ok(())
    }

    fn presence(&mut self) -> Result<(), Failure> {
        let present: Vec<_> = self.minions.iter().take(NAMED).cloned().collect();
        self.tell("salt/presence/present", &json!({"present": present, "_stamp": STAMP}))?;
        let gone = self.rng.usize(..self.minions.len());
        let change = json!({"new": [], "lost": [self.minion(gone)], "_stamp": STAMP});
        self.tell("salt/presence/change", &change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_events_and_jobs_keep_theirs_together() {
        let estate = |seed| traffic(1000, seed, Framing::Plain).unwrap();
        let (one, same, other) = (estate(1), estate(1), estate(2));
        let frames = |traffic: &Traffic| -> Vec<_> {
            traffic.events.iter().map(|event| event.frame.clone()).collect()
        };
        assert!(frames(&one) == frames(&same));
        assert!(frames(&one) != frames(&other));
        // The second time the hour is sent, the jids are new, and still those of one job are one.
        let jid = |number| {
            let mut frame = Vec::new();
            one.append(number, &mut frame);
            let text = String::from_utf8_lossy(&frame).into_owned();
            text.split_once("salt/job/").map(|(_, rest)| rest[..20].to_owned())
        };
        let count = one.events.len() as u64;
        let first: Vec<_> = (0..count).filter_map(jid).collect();
        let second: Vec<_> = (count..2 * count).filter_map(jid).collect();
        assert_eq!(first.len(), second.len());
        assert!(first.iter().all(|jid| !second.contains(jid)));
        let mut different = first.clone();
        different.dedup();
        assert!(first.len() > 1000 && different.len() as u64 == one.jobs - 1);
    }
}
