//! Events of a master that does not exist, for `saltern demo`: they have the tags, keys, order and
//! proportions of the events of masters of 3008.
//!
//! Events come in stories: a job is published, its minions return one after the other while other
//! stories go on, a highstate fails here and there. A story is planned as a whole. Each of its
//! events is due after a number of others. A new story begins whenever nothing is due. The same
//! seed and the same clock give the same events.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use fastrand::Rng;
use jiff::{Span, Timestamp};
use serde_json::{Map, Value, json};

/// Makes events up.
pub struct Generator {
    rng: Rng,
    planned: BinaryHeap<Reverse<Planned>>,
    given_out: u64,
    order: u64,
    last_jid: Timestamp,
}

/// An event without its stamp, due once so many events have been given out.
struct Planned {
    due: u64,
    order: u64,
    tag: String,
    data: Value,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

/// Kinds of minions and how many there are of each.
const MINIONS: &[(&str, u32)] = &[("web", 16), ("app", 12), ("db", 6), ("cache", 4), ("lb", 2)];
const MINION_COUNT: u32 = 40;

/// Functions, their arguments, and how often they are run in comparison.
const FUNCTIONS: &[(&str, &[&str], u32)] = &[
    ("test.ping", &[], 8),
    ("cmd.run", &["uptime"], 5),
    ("disk.usage", &[], 3),
    ("pkg.version", &["openssl"], 4),
    ("service.status", &["nginx"], 4),
    ("grains.item", &["os", "osrelease", "kernelrelease"], 3),
    ("pkg.upgrade", &[], 1),
    ("cmd.run_all", &["/usr/local/bin/backup-check"], 2),
    ("saltutil.sync_all", &[], 1),
];

/// A state of the highstate: module, id, name, function, sls, its comments without work and after a
/// failure.
struct State {
    module: &'static str,
    id: &'static str,
    name: &'static str,
    function: &'static str,
    sls: &'static str,
    fine: &'static str,
    fails: &'static str,
}

const STATES: &[State] = &[
    State {
        module: "pkg",
        id: "base-packages",
        name: "base-packages",
        function: "installed",
        sls: "base",
        fine: "All specified packages are already installed",
        fails: "Problem encountered installing package(s). Additional info follows:\n\nerrors:\n    - E: Unable to fetch some archives, maybe run apt-get update or try with --fix-missing?",
    },
    State {
        module: "file",
        id: "/etc/motd",
        name: "/etc/motd",
        function: "managed",
        sls: "base",
        fine: "File /etc/motd is in the correct state",
        fails: "Unable to manage file: Jinja variable 'dict object' has no attribute 'contact'",
    },
    State {
        module: "file",
        id: "/etc/ssh/sshd_config",
        name: "/etc/ssh/sshd_config",
        function: "managed",
        sls: "ssh",
        fine: "File /etc/ssh/sshd_config is in the correct state",
        fails: "Source file salt://ssh/files/sshd_config.j2 not found in saltenv 'base'",
    },
    State {
        module: "service",
        id: "sshd",
        name: "ssh",
        function: "running",
        sls: "ssh",
        fine: "The service ssh is already running",
        fails: "Job for ssh.service failed because the control process exited with error code.",
    },
    State {
        module: "user",
        id: "deploy",
        name: "deploy",
        function: "present",
        sls: "users",
        fine: "User deploy is present and up to date",
        fails: "Failed to create new user deploy",
    },
    State {
        module: "pkg",
        id: "nginx",
        name: "nginx",
        function: "installed",
        sls: "nginx",
        fine: "All specified packages are already installed",
        fails: "The following packages failed to install/update: nginx=1.26.3-1",
    },
    State {
        module: "file",
        id: "nginx-site",
        name: "/etc/nginx/sites-enabled/shop.conf",
        function: "managed",
        sls: "nginx",
        fine: "File /etc/nginx/sites-enabled/shop.conf is in the correct state",
        fails: "check_cmd execution failed: nginx: [emerg] host not found in upstream \"app-07.example.com\"",
    },
    State {
        module: "service",
        id: "nginx",
        name: "nginx",
        function: "running",
        sls: "nginx",
        fine: "The service nginx is already running",
        fails: "Failed to start nginx.service: Unit nginx.service is masked.",
    },
    State {
        module: "cron",
        id: "logrotate-shop",
        name: "/usr/local/bin/rotate-shop",
        function: "present",
        sls: "shop",
        fine: "Cron /usr/local/bin/rotate-shop already present",
        fails: "Cron /usr/local/bin/rotate-shop for user root failed to commit with error new",
    },
    State {
        module: "cmd",
        id: "warm the cache",
        name: "curl -fsS http://127.0.0.1:8080/warm",
        function: "run",
        sls: "shop",
        fine: "Command \"curl -fsS http://127.0.0.1:8080/warm\" run",
        fails: "Command \"curl -fsS http://127.0.0.1:8080/warm\" run",
    },
];

impl Generator {
    /// A generator; the same seed gives the same events.
    pub fn new(seed: u64) -> Self {
        Generator {
            rng: Rng::with_seed(seed),
            planned: BinaryHeap::new(),
            given_out: 0,
            order: 0,
            last_jid: Timestamp::UNIX_EPOCH,
        }
    }

    /// The next event, stamped with `now`: its tag and its data.
    pub(crate) fn next(&mut self, now: Timestamp) -> (String, Value) {
        let planned = loop {
            match self.planned.peek() {
                Some(Reverse(planned)) if planned.due <= self.given_out => {}
                _ => self.begin_story(now),
            }
            if let Some(Reverse(planned)) = self.planned.pop() {
                break planned;
            }
        };
        self.given_out += 1;
        let mut data = planned.data;
        if let Value::Object(pairs) = &mut data {
            pairs.insert("_stamp".into(), stamp(now).into());
            if pairs.contains_key("cmd") {
                pairs.insert("ts".into(), now.as_second().into());
            }
        }
        (planned.tag, data)
    }

    /// The next event as a frame of the bus, as masters of 3007 and later send it.
    pub fn next_frame(&mut self, now: Timestamp) -> Vec<u8> {
        let (tag, data) = self.next(now);
        let mut body = tag.into_bytes();
        body.extend_from_slice(b"\n\n");
        // A JSON value is always msgpack too.
        body.extend(rmp_serde::to_vec(&data).unwrap_or_default());
        let mut frame = b"\x82\xa4head\x80\xa4body\xc6".to_vec();
        frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
        frame.extend(body);
        frame
    }

    fn plan(&mut self, after: u64, tag: String, data: Value) {
        let due = self.given_out + after;
        self.order += 1;
        self.planned.push(Reverse(Planned { due, order: self.order, tag, data }));
    }

    fn begin_story(&mut self, now: Timestamp) {
        match self.rng.u32(..100) {
            0..20 => self.scheduled_ping(now),
            20..45 => self.job(now),
            45..57 => self.highstate(now),
            57..85 => self.beacon(now),
            85..88 => self.presence(),
            88..92 => self.minion_start(now),
            92..95 => self.runner(now),
            95..97 => self.orchestration(now),
            97..98 => self.key(),
            _ => self.deployment(now),
        }
    }

    fn scheduled_ping(&mut self, now: Timestamp) {
        let minion = self.minion();
        let jid = self.jid(now);
        let data = json!({
            "cmd": "_return", "id": minion, "fun": "test.ping", "fun_args": [], "schedule": "ping",
            "jid": jid, "pid": self.pid(), "return": true, "retcode": 0, "success": true,
            "arg": [], "tgt_type": "glob", "tgt": minion,
        });
        self.plan(0, format!("salt/job/{jid}/ret/{minion}"), data);
    }

    /// Someone runs a function on a few minions.
    fn job(&mut self, now: Timestamp) {
        let total: u32 = FUNCTIONS.iter().map(|(_, _, weight)| weight).sum();
        let mut drawn = self.rng.u32(..total);
        let chosen = FUNCTIONS.iter().find(|(_, _, weight)| {
            let is_it = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            is_it
        });
        let Some((function, arguments, _)) = chosen else { return };
        let minions = self.some_minions();
        let jid = self.publish(now, function, &json!(arguments), &minions);
        for minion in &minions {
            let (result, code) = self.result_of(function);
            self.planned_return(&jid, minion, function, &json!(arguments), result, code);
        }
    }

    fn result_of(&mut self, function: &str) -> (Value, u8) {
        if self.rng.u32(..100) < 2 {
            let text =
                format!("Passed invalid arguments to {function}: unexpected keyword 'quiet'");
            return (json!(text), 1);
        }
        let (rng, mut code) = (&mut self.rng, 0);
        let result = match function {
            "cmd.run" => {
                let (days, load) = (rng.u32(1..200), f64::from(rng.u32(..300)) / 100.0);
                json!(format!(
                    " 10:42:07 up {days} days,  3:11,  0 user,  load average: {load}, 0.41, 0.38"
                ))
            }
            "disk.usage" => {
                let used = rng.u64(4_000_000..19_000_000);
                json!({
                    "/": {
                        "filesystem": "/dev/vda1", "1K-blocks": "20509264", "used": used.to_string(),
                        "available": (20_509_264 - used).to_string(), "capacity": format!("{}%", used / 205_093),
                    },
                    "/var/lib": {
                        "filesystem": "/dev/vdb1", "1K-blocks": "102687672", "used": (used * 4).to_string(),
                        "available": (102_687_672 - used * 4).to_string(), "capacity": format!("{}%", used / 256_720),
                    },
                })
            }
            "pkg.version" => json!(format!("3.0.{}-1~deb12u2", rng.u32(15..18))),
            "service.status" => json!(rng.u32(..30) > 0),
            "grains.item" => {
                json!({"os": "Debian", "osrelease": "12", "kernelrelease": "6.1.0-28-amd64"})
            }
            "pkg.upgrade" => json!({
                "libssl3": {"old": "3.0.15-1~deb12u1", "new": "3.0.17-1~deb12u2"},
                "openssl": {"old": "3.0.15-1~deb12u1", "new": "3.0.17-1~deb12u2"},
            }),
            "cmd.run_all" => {
                let is_stale = rng.u32(..8) == 0;
                code = if is_stale { 3 } else { 0 };
                let stderr = if is_stale { "last backup is 41 hours old" } else { "" };
                json!({"pid": rng.u32(900..60_000), "retcode": code, "stdout": "checked 3 volumes", "stderr": stderr})
            }
            "saltutil.sync_all" => json!({
                "beacons": [], "grains": ["grains.roles"], "modules": ["modules.shop"], "states": [],
            }),
            _ => json!(true),
        };
        (result, code)
    }

    /// A highstate on a few minions; on some of them a state fails, and what requires it with it.
    fn highstate(&mut self, now: Timestamp) {
        let minions = self.some_minions();
        let jid = self.publish(now, "state.apply", &json!([]), &minions);
        for (index, minion) in minions.iter().enumerate() {
            let is_failing = self.rng.u32(..100) < 18;
            let states = self.states(now, is_failing);
            // One of the minions reports each state while it runs (`state_events`).
            if index == 0 {
                let count = states.len();
                for (run, state) in states.values().enumerate() {
                    let tag = format!("salt/job/{jid}/prog/{minion}/{run}");
                    let data = json!({
                        "id": minion, "jid": jid, "cmd": "_minion_event", "pretag": null,
                        "data": {"ret": state, "len": count}, "tag": tag,
                    });
                    self.plan(5 + 3 * run as u64, tag, data);
                }
            }
            let code = if is_failing { 2 } else { 0 };
            self.planned_return(&jid, minion, "state.apply", &json!([]), states.into(), code);
        }
    }

    fn states(&mut self, now: Timestamp, is_failing: bool) -> Map<String, Value> {
        let count = self.rng.usize(4..=STATES.len());
        let failing = if is_failing { self.rng.usize(..count) } else { count };
        let mut states = Map::new();
        let mut failed_id = None;
        let mut at = now;
        for (run, state) in STATES.iter().take(count).enumerate() {
            let State { module, id, name, function, sls, fine, fails } = state;
            let micros = self.rng.u32(300..900_000);
            let duration = f64::from(micros) / 1000.0;
            let start = at.strftime("%H:%M:%S%.6f").to_string();
            at = at.checked_add(Span::new().microseconds(micros)).unwrap_or(at);
            let requisite = failed_id.filter(|(failed, _)| *failed == sls);
            let (is_fine, changes, comment) = match requisite {
                _ if run == failing => (false, json!({}), (*fails).to_owned()),
                Some((_, required)) => {
                    (false, json!({}), format!("One or more requisite failed: {sls}.{required}"))
                }
                None if self.rng.u32(..6) == 0 => {
                    (true, changes(module, name), format!("{name} updated"))
                }
                None => (true, json!({}), (*fine).to_owned()),
            };
            let mut result = json!({
                "name": name, "changes": changes, "result": is_fine, "comment": comment,
                "__sls__": sls, "__run_num__": run, "start_time": start, "duration": duration,
                "__id__": id,
            });
            if run == failing {
                failed_id = Some((sls, id));
            } else if requisite.is_some() {
                result =
                    with(with(result, "__state_ran__", json!(false)), "duration", json!(0.003));
            }
            states.insert(format!("{module}_|-{id}_|-{name}_|-{function}"), result);
        }
        states
    }

    fn beacon(&mut self, now: Timestamp) {
        let minion = self.minion();
        let hundredths = |rng: &mut Rng, below: u32| f64::from(rng.u32(..below)) / 100.0;
        let rng = &mut self.rng;
        let (beacon, data) = match rng.u32(..10) {
            0..6 => {
                let stamp = now.strftime("%Y-%m-%dT%H:%M:%S%.6f");
                let load = json!({
                    "1-min": hundredths(rng, 400), "5-min": hundredths(rng, 300), "15-min": hundredths(rng, 200),
                });
                (format!("status/{stamp}"), json!({"id": minion, "data": {"loadavg": load}}))
            }
            6..8 => (
                "diskusage/".into(),
                json!({"id": minion, "mount": "/", "diskusage": rng.u32(80..99)}),
            ),
            8 => {
                let running = rng.bool();
                (
                    "service/nginx".into(),
                    json!({"id": minion, "service_name": "nginx", "nginx": {"running": running}}),
                )
            }
            _ => (
                "inotify//etc/ssh/sshd_config".into(),
                json!({"id": minion, "path": "/etc/ssh/sshd_config", "change": "IN_MODIFY"}),
            ),
        };
        self.plan(0, format!("salt/beacon/{minion}/{beacon}"), data);
    }

    fn presence(&mut self) {
        let gone = self.minion();
        let present: Vec<_> = all_minions().filter(|minion| *minion != gone).collect();
        self.plan(0, "salt/presence/present".into(), json!({"present": present}));
        self.plan(0, "salt/presence/change".into(), json!({"new": [], "lost": [gone]}));
    }

    /// A minion comes back: it authenticates, sends its data and says that it is there.
    fn minion_start(&mut self, now: Timestamp) {
        let minion = self.minion();
        let key = (0..6).map(|_| (0..64).map(|_| self.rng.alphanumeric()).collect::<String>());
        let key = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----",
            key.collect::<Vec<_>>().join("\n")
        );
        self.plan(
            0,
            "salt/auth".into(),
            json!({"result": true, "act": "accept", "id": minion, "pub": key}),
        );
        let refreshed = json!({"Minion data cache refresh": minion});
        self.plan(20, format!("minion/refresh/{minion}"), refreshed);
        let said = format!("Minion {minion} started at {}", now.strftime("%a %b %d %H:%M:%S %Y"));
        for tag in ["minion_start".to_owned(), format!("salt/minion/{minion}/start")] {
            let data = json!({
                "id": minion, "cmd": "_minion_event", "pretag": null, "data": said, "tag": tag,
            });
            self.plan(30, tag, data);
        }
        self.plan(31, "salt/presence/change".into(), json!({"new": [minion], "lost": []}));
    }

    fn runner(&mut self, now: Timestamp) {
        let jid = self.jid(now);
        let down = self.minion();
        let up: Vec<_> = all_minions().filter(|minion| *minion != down).collect();
        let start =
            json!({"fun": "runner.manage.status", "jid": jid, "user": "root", "fun_args": []});
        let end = with(start.clone(), "return", json!({"up": up, "down": [down]}));
        let end = with(end, "success", json!(true));
        self.plan(0, format!("salt/run/{jid}/new"), start);
        self.plan(90, format!("salt/run/{jid}/ret"), end);
    }

    fn orchestration(&mut self, now: Timestamp) {
        let jid = self.jid(now);
        let minion = self.minion();
        let arguments = json!(["orch.deploy", {"orchestration_jid": jid}]);
        let start = json!({"fun": "runner.state.orchestrate", "jid": jid, "user": "root", "fun_args": arguments});
        let is_failing = self.rng.u32(..5) == 0;
        let comment = if is_failing {
            format!("Run failed on minions: {minion}")
        } else {
            format!("States ran successfully. No changes made to {minion}.")
        };
        let step = json!({
            "name": "shop", "changes": {}, "comment": comment, "result": !is_failing,
            "__sls__": "orch.deploy", "__run_num__": 0, "duration": 537.077, "__id__": "shop",
        });
        let result = json!({
            "data": {"salt.example.com_master": {"salt_|-shop_|-shop_|-state": step}},
            "outputter": "highstate", "retcode": u8::from(is_failing),
        });
        let end = with(with(start.clone(), "return", result), "success", json!(!is_failing));
        let step_arguments = json!({
            "type": "state", "tgt": minion, "name": "shop",
            "args": {"arg": ["shop"], "kwarg": {"queue": false}, "ret": "", "timeout": null, "tgt_type": "glob"},
        });
        self.plan(0, format!("salt/run/{jid}/new"), start);
        self.plan(40, format!("salt/run/{jid}/args"), step_arguments);
        let job = self.publish(now, "state.sls", &json!(["shop"]), std::slice::from_ref(&minion));
        let states = self.states(now, is_failing);
        let code = if is_failing { 2 } else { 0 };
        self.planned_return(&job, &minion, "state.sls", &json!(["shop"]), states.into(), code);
        self.plan(450, format!("salt/run/{jid}/ret"), end);
    }

    fn key(&mut self) {
        let id = format!("build-{:03}.example.com", self.rng.u32(..1000));
        let pending = json!({"result": true, "act": "pend", "id": id});
        let accepted = json!({"result": true, "act": "accept", "id": id});
        self.plan(0, "salt/auth".into(), pending);
        self.plan(60, "salt/key".into(), accepted);
    }

    /// An application's own event.
    fn deployment(&mut self, now: Timestamp) {
        let minion = self.minion();
        let jid = self.jid(now);
        let version = format!("4.{}.{}", self.rng.u32(..20), self.rng.u32(..10));
        let data = json!({
            "id": minion, "tag": "shop/deploy/finished", "cmd": "_minion_event", "pretag": null,
            "data": {
                "version": version, "seconds": self.rng.u32(10..400), "__pub_fun": "event.send",
                "__pub_jid": jid, "__pub_pid": self.pid(), "__pub_tgt": "salt-call",
            },
        });
        self.plan(0, "shop/deploy/finished".into(), data);
    }

    /// Plans the events of a new job and returns its id.
    fn publish(
        &mut self,
        now: Timestamp,
        function: &str,
        arguments: &Value,
        minions: &[String],
    ) -> String {
        let jid = self.jid(now);
        let user = if self.rng.bool() { "root" } else { "sudo_anna" };
        let new = json!({
            "jid": jid, "tgt_type": "list", "tgt": minions, "user": user, "fun": function,
            "arg": arguments, "minions": minions, "missing": [],
        });
        let publish = json!({
            "fun": function, "arg": arguments, "tgt": minions, "jid": jid, "ret": "",
            "tgt_type": "list", "user": user,
        });
        self.plan(0, format!("salt/job/{jid}/new"), new);
        self.plan(0, format!("salt/job/{jid}/publish"), publish);
        jid
    }

    fn planned_return(
        &mut self,
        jid: &str,
        minion: &str,
        function: &str,
        arguments: &Value,
        result: Value,
        code: u8,
    ) {
        let mut data = json!({
            "cmd": "_return", "id": minion, "success": code == 0, "return": result, "retcode": code,
            "jid": jid, "fun": function, "fun_args": arguments, "user": "root",
        });
        if function.starts_with("state.") {
            data = with(data, "out", json!("highstate"));
        }
        let after = self.rng.u64(10..400);
        self.plan(after, format!("salt/job/{jid}/ret/{minion}"), data);
    }

    fn minion(&mut self) -> String {
        let index = self.rng.u32(..MINION_COUNT) as usize;
        all_minions().nth(index).unwrap_or_default()
    }

    fn some_minions(&mut self) -> Vec<String> {
        let count = self.rng.usize(1..=12);
        let mut minions = self.rng.choose_multiple(all_minions(), count);
        minions.sort();
        minions
    }

    /// A job id: the time to the microsecond, and never the same twice.
    fn jid(&mut self, now: Timestamp) -> String {
        let next = self.last_jid.checked_add(Span::new().microseconds(1)).unwrap_or(now);
        self.last_jid = now.max(next);
        self.last_jid.strftime("%Y%m%d%H%M%S%6f").to_string()
    }

    fn pid(&mut self) -> u32 {
        self.rng.u32(900..60_000)
    }
}

fn all_minions() -> impl Iterator<Item = String> {
    MINIONS
        .iter()
        .flat_map(|(role, count)| (1..=*count).map(move |n| format!("{role}-{n:02}.example.com")))
}

fn with(mut data: Value, key: &str, value: Value) -> Value {
    if let Value::Object(pairs) = &mut data {
        pairs.insert(key.to_owned(), value);
    }
    data
}

fn changes(module: &str, name: &str) -> Value {
    match module {
        "pkg" => json!({"curl": {"old": "7.88.1-10+deb12u8", "new": "7.88.1-10+deb12u9"}}),
        "service" => json!({name: true}),
        "cmd" => json!({"pid": 4711, "retcode": 0, "stdout": "warm: 312 pages", "stderr": ""}),
        "file" => {
            json!({"diff": "--- \n+++ \n@@ -12,7 +12,7 @@\n # managed by Salt\n-worker_connections 512;\n+worker_connections 1024;\n"})
        }
        _ => json!({name: "Present"}),
    }
}

/// `_stamp` as 3008 writes it.
fn stamp(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::event::job_return::Outcome;
    use crate::event::{Event, EventKind};

    fn events(seed: u64, count: i64) -> Vec<(String, Value)> {
        let start: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let mut generator = Generator::new(seed);
        (0..count).map(|n| generator.next(start + Span::new().microseconds(3333 * n))).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_events() {
        assert_eq!(events(1, 500), events(1, 500));
        assert_ne!(events(1, 500), events(2, 500));
    }

    #[test]
    fn the_events_are_those_of_a_busy_master() {
        let events = events(7, 20_000);
        let (mut kinds, mut jids, mut failed) = (HashSet::new(), HashSet::new(), 0);
        for (tag, data) in &events {
            let event = Event::new(tag, &rmp_serde::to_vec(data).unwrap());
            let written: Value = serde_json::from_slice(event.json(&mut Vec::new())).unwrap();
            assert_eq!(written, *data);
            let fields = event.fields();
            assert_eq!(fields.stamp.unwrap().len(), "2026-11-22T10:00:00.000000+00:00".len());
            kinds.insert(event.kind());
            match event.kind() {
                EventKind::JobNew => assert!(jids.insert(fields.jid.unwrap().to_owned())),
                EventKind::JobReturn if data.get("schedule").is_none() => {
                    assert!(jids.contains(fields.jid.unwrap()), "{tag} came before its job");
                    failed += usize::from(fields.job_return.outcome() == Outcome::Failed);
                }
                _ => {}
            }
        }
        for kind in [
            EventKind::JobNew,
            EventKind::JobPublish,
            EventKind::JobReturn,
            EventKind::JobProgress,
            EventKind::Beacon,
            EventKind::Presence,
            EventKind::Auth,
            EventKind::Key,
            EventKind::Start,
            EventKind::Refresh,
            EventKind::Run,
            EventKind::Custom,
        ] {
            assert!(kinds.contains(&kind), "{kind:?}");
        }
        assert!(failed > 100, "{failed}");
    }

    #[test]
    fn stories_do_not_pile_up() {
        let mut generator = Generator::new(3);
        let now = Timestamp::UNIX_EPOCH;
        for _ in 0..50_000 {
            generator.next(now);
        }
        assert!(generator.planned.len() < 5000, "{}", generator.planned.len());
    }
}
