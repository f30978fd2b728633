//! The events that the real binary keeps when it is killed, when a sink is down, when the disk is
//! full, and over an update.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use saltern::event::chunk::{Chunk, Share};
use saltern::event::{Event, Origin};
use saltern::files::disk::Folder;
use saltern::queue::spill::record::Body;
use saltern::queue::spill::scan::{Depth, scan};
use saltern::queue::spill::{Read, Settings, Spill};
use serde_json::{Value, json};

use crate::harness::daemon::{DEADLINE, Daemon, STOP_LIMIT, pause, saltern, until, wait_within};
use crate::harness::numbered::{self, Place};

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Killed at random moments under load: events that the daemon had read `SALTERN_KILL_GRACE_MS`
/// before are in the store in the end. `SALTERN_KILL_ROUNDS` makes it longer, `SALTERN_KILL_SEED`
/// another.
#[test]
fn invariant_3_kill_9_loses_nothing_that_was_taken() {
    let rounds = variable("SALTERN_KILL_ROUNDS", 15);
    let grace = Duration::from_millis(variable("SALTERN_KILL_GRACE_MS", 1000));
    let mut random = fastrand::Rng::with_seed(variable("SALTERN_KILL_SEED", 3));
    let place = Place::new(500, Some(Duration::from_millis(1)));
    place.heal("out");
    let config =
        place.configure(&json!({ "file": place.file_sink("out", &json!({})) }), &json!({}));
    place.bus.send_up_to(u64::MAX - 1);
    let mut owed = BTreeSet::new();
    for round in 0..rounds {
        let daemon = Daemon::listening(&config);
        until("the daemon reads", || daemon.taken() > 0);
        assert_eq!(place.bus.base().1 as u64, round + 1, "one connection a run");
        pause(Duration::from_millis(random.u64(0..300)));
        let taken = daemon.taken();
        pause(grace);
        daemon.kill();
        let base = place.bus.base().0;
        owed.extend(base..base + taken);
    }
    place.bus.send_up_to(0);
    let daemon = Daemon::listening(&config);
    until("everything is delivered", || daemon.metric("saltern_sink_queue_events", &[]) == 0.0);
    let damaged = daemon.dropped("file", "damaged");
    let (status, _) = daemon.terminate();
    assert!(status.success());
    let stored: BTreeSet<u64> = place.stored("out").into_iter().collect();
    let lost: Vec<_> = owed.difference(&stored).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}; {damaged} damaged", lost.len(), owed.len());
    println!("{rounds} kills: {} events owed, 0 lost", owed.len());
}

/// A sink is down while 200 000 events come, and then it is back.
#[test]
fn invariant_2_and_6_an_outage_costs_no_event_no_other_sinks_time_and_bounded_memory() {
    let events = variable("SALTERN_OUTAGE_EVENTS", 200_000);
    // The same without an outage, to compare with.
    if variable("SALTERN_OUTAGE_SIDE_BY_SIDE", 0) > 0 {
        outage(events, false);
    }
    outage(events, true);
}

fn outage(events: u64, is_down: bool) {
    const RSS_BOUND: u64 = 160 << 20;
    // A busy machine stores some thousands a second.
    let patience = DEADLINE.max(Duration::from_millis(events / 2));
    let place = Place::new(0, None);
    place.heal("up");
    if !is_down {
        place.heal("down");
    }
    let spill = json!({ "memory": "2MiB" });
    let sinks = json!({
        "down": place.file_sink("down", &spill),
        "up": place.file_sink("up", &spill),
    });
    let config = place.configure(&sinks, &json!({}));
    let daemon = Daemon::listening(&config);
    place.bus.send_up_to(events);
    let (mut rss, mut lag) = (0, 0.0_f64);
    wait_within(patience, "the other sink has everything", || {
        rss = rss.max(daemon.memory());
        lag = lag.max(daemon.metric("saltern_sink_lag_seconds", &["sink=\"up\""]));
        (daemon.stored("up") == events).then_some(())
    });
    if is_down {
        assert_eq!(daemon.stored("down"), 0);
        place.heal("down");
    }
    wait_within(patience, "the sink that was down has everything", || {
        rss = rss.max(daemon.memory());
        (daemon.stored("down") == events).then_some(())
    });
    let in_order: Vec<u64> = (0..events).collect();
    assert!(place.stored("up") == in_order && place.stored("down") == in_order);
    assert!(lag < 5.0, "the other sink's lag rose to {lag} s");
    assert!(rss < RSS_BOUND, "{rss} bytes of memory");
    let what = if is_down { "an outage" } else { "no outage" };
    println!("{what}: {events} events, lag of the other sink {lag:.2} s, RSS {} MiB", rss >> 20);
}

/// SIGTERM while a sink is down: done within the deadline, and the rest comes after the restart.
#[test]
fn invariant_8_a_stop_leaves_the_rest_in_the_spill() {
    for mode in ["durable", "overflow"] {
        let place = Place::new(100, None);
        let spill = json!({ "mode": mode, "memory": "64KiB" });
        let config =
            place.configure(&json!({ "file": place.file_sink("out", &spill) }), &json!({}));
        let daemon = Daemon::listening(&config);
        place.bus.send_up_to(3000);
        until("all is read", || daemon.taken() == 3000);
        let (status, took) = daemon.terminate();
        assert_eq!(status.code(), Some(0));
        assert!(took < STOP_LIMIT, "{mode}: the deadline is 3 s, it took {took:?}");
        place.heal("out");
        let daemon = Daemon::listening(&config);
        until("the rest is delivered", || daemon.stored("file") == 3000);
        assert_eq!(place.stored("out"), (0..3000).collect::<Vec<_>>(), "{mode}");
    }
}

/// A daemon that runs is asked what waits, in memory too, and discards it itself.
#[test]
fn a_running_daemon_lists_and_discards_what_waits() {
    for mode in ["durable", "memory"] {
        let place = Place::new(100, None);
        let spill = json!({ "mode": mode });
        let config =
            place.configure(&json!({ "file": place.file_sink("out", &spill) }), &json!({}));
        let daemon = Daemon::listening(&config);
        // The daemon chose its port itself; who asks it must know.
        let asked = place.path("asked.yaml");
        let text = std::fs::read_to_string(&config).unwrap();
        let mut asks: Value = serde_json::from_str(&text).unwrap();
        asks["http"] = json!({ "listen": daemon.address() });
        std::fs::write(&asked, asks.to_string()).unwrap();
        let ask = |arguments: &[&str]| {
            let output = saltern(&[arguments, &["--config", asked.to_str().unwrap()]].concat());
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let waiting = || {
            let listed = ask(&["spill", "list", "--output", "json"]);
            serde_json::from_str::<Value>(&listed).unwrap()[0]["events"].as_u64().unwrap()
        };
        place.bus.send_up_to(3000);
        until("all is in the queue", || waiting() == 3000);
        let said = ask(&["spill", "drop", "--sink", "file", "--before", "0s"]);
        let discarded: u64 = said.split_once(' ').unwrap().0.parse().unwrap();
        let in_flight = waiting();
        assert_eq!(discarded + in_flight, 3000, "{mode}");
        assert!(discarded > 0, "{mode}: {said}");
        until("it is counted", || daemon.dropped("file", "operator") == discarded);
        place.bus.send_up_to(3010);
        place.heal("out");
        until("the rest is stored", || daemon.stored("file") == in_flight + 10);
        let kept: Vec<u64> = (0..in_flight).chain(3000..3010).collect();
        assert_eq!(place.stored("out"), kept, "{mode}");
    }
}

#[test]
fn a_state_dir_has_one_daemon() {
    let place = Place::new(0, None);
    let config =
        place.configure(&json!({ "file": place.file_sink("out", &json!({})) }), &json!({}));
    let _daemon = Daemon::listening(&config);
    let second = saltern(&["run", "--config", config.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8(second.stderr).unwrap();
    assert!(error.contains("another saltern uses this state_dir"), "{error}");
    let state_dir = place.state_dir();
    let drop = ["spill", "drop", "--sink", "file", "--before", "1d", "--state-dir"];
    let asked = saltern(&[&drop[..], &[state_dir.to_str().unwrap()]].concat());
    assert!(asked.status.success(), "the daemon is asked, and its files are left alone: {asked:?}");
}

/// A small file system in memory; unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `size` may be followed by more options.
    fn mount(path: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let options = format!("size={size},mode=0700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path);
        let mounted = mount.status().is_ok_and(|status| status.success());
        assert!(mounted, "this test fills a disk and mounts a tmpfs for it: run it as root");
        Tmpfs(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A full disk: what `when_full` says, counted; and it heals when there is room again.
fn full_disk(when_full: &str, events: u64, check: impl Fn(&Daemon)) {
    let place = Place::new(1000, None);
    let tmpfs = Tmpfs::mount(place.state_dir(), "2m");
    let spill = json!({ "when_full": when_full, "max_bytes": "4MiB", "memory": "64KiB" });
    let config = place.configure(&json!({ "file": place.file_sink("out", &spill) }), &json!({}));
    let daemon = Daemon::listening(&config);
    place.bus.send_up_to(events);
    check(&daemon);
    // The sink is back, which frees the disk; from now on everything is delivered.
    place.heal("out");
    let settled = |daemon: &Daemon| daemon.stored("file") + daemon.dropped("file", "queue_full");
    until("the backlog is gone", || settled(&daemon) == events);
    let before = daemon.dropped("file", "queue_full");
    place.bus.send_up_to(events + 500);
    until("new events are stored", || settled(&daemon) == events + 500);
    assert_eq!(daemon.dropped("file", "queue_full"), before);
    assert_eq!(daemon.dropped("file", "disk") + daemon.dropped("file", "damaged"), 0);
    let stored = place.stored("out");
    assert!(stored.is_sorted_by(|a, b| a < b), "order, each once");
    assert_eq!(stored.len() as u64, events + 500 - before);
    match when_full {
        "drop_oldest" => assert!(stored.contains(&(events - 1))),
        "drop_newest" => assert!(stored.starts_with(&[0, 1, 2])),
        _ => assert_eq!(before, 0),
    }
    assert!(stored.ends_with(&[events + 498, events + 499]));
    drop(daemon);
    drop(tmpfs);
}

/// It has read something and reads no more.
fn stalls(daemon: &Daemon) -> bool {
    let taken = daemon.taken();
    pause(Duration::from_millis(300));
    taken > 0 && daemon.taken() == taken
}

#[test]
fn a_full_disk_drops_the_oldest() {
    full_disk("drop_oldest", 4000, |daemon| {
        until("all is read", || daemon.taken() == 4000);
        until("it drops", || daemon.dropped("file", "queue_full") > 1000);
    });
}

#[test]
fn a_full_disk_drops_the_newest() {
    full_disk("drop_newest", 4000, |daemon| {
        until("all is read", || daemon.taken() == 4000);
        until("it drops", || daemon.dropped("file", "queue_full") > 1000);
    });
}

#[test]
fn a_full_disk_blocks() {
    // More than the channels and the socket hold.
    full_disk("block", 40_000, |daemon| {
        until("it stalls", || stalls(daemon));
        assert!(daemon.taken() < 40_000);
        assert_eq!(daemon.dropped("file", "queue_full"), 0);
    });
}

/// A full disk that blocks is no reason not to stop.
#[test]
fn invariant_8_a_queue_that_blocks_can_be_stopped() {
    let place = Place::new(1000, None);
    let spill = json!({ "when_full": "block", "max_bytes": "64KiB" });
    let config = place.configure(&json!({ "file": place.file_sink("out", &spill) }), &json!({}));
    let daemon = Daemon::listening(&config);
    place.bus.send_up_to(40_000);
    until("it stalls", || stalls(&daemon));
    assert!(daemon.taken() < 40_000);
    let (status, took) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(took < STOP_LIMIT, "the deadline is 3 s, it took {took:?}");
}

/// Numbered events as JSON lines.
fn record(place: &Place, events: u64) -> PathBuf {
    let line = |n| json!({ "tag": format!("n/{n}"), "data": { "n": n, "pad": "x".repeat(300) } });
    let lines: Vec<String> = (0..events).map(|n| line(n).to_string()).collect();
    let path = place.path("recorded.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

/// `saltern replay` of numbered events into a sink that stores fewer than it could be given.
fn replay(mode: &str, when_full: &str) {
    const EVENTS: u64 = 6000;
    let place = Place::new(0, None);
    place.heal("out");
    let mut sink = place.file_sink(
        "out",
        &json!({
            "mode": mode, "when_full": when_full, "max_bytes": "64KiB", "memory": "64KiB",
        }),
    );
    sink["rate_limit"] = json!(4000);
    let config = place.configure(&json!({ "file": sink }), &json!({}));
    let recorded = record(&place, EVENTS);
    let paths = [recorded.to_str().unwrap(), config.to_str().unwrap()];
    let output = saltern(&["replay", paths[0], "--config", paths[1]]);
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{mode} {when_full}: {log}");
    assert!(
        log.contains("sources that can wait hold their events back"),
        "{mode} {when_full}: {log}"
    );
    let stored = place.stored("out");
    assert!(stored == (0..EVENTS).collect::<Vec<_>>(), "{mode} {when_full}: {}", stored.len());
}

#[test]
fn a_replay_waits_for_a_durable_queue_and_loses_nothing() {
    for when_full in ["drop_oldest", "drop_newest", "block"] {
        replay("durable", when_full);
    }
}

#[test]
fn a_replay_waits_for_an_overflowing_queue_and_loses_nothing() {
    for when_full in ["drop_oldest", "drop_newest", "block"] {
        replay("overflow", when_full);
    }
}

#[test]
fn a_replay_waits_for_a_queue_in_memory_and_loses_nothing() {
    for when_full in ["drop_oldest", "drop_newest", "block"] {
        replay("memory", when_full);
    }
}

/// A replay waits for a sink that is down; the bus and the other sink go on, and SIGTERM is heard.
#[test]
fn invariant_1_and_2_a_replay_that_waits_holds_up_nobody_else() {
    const REPLAYED: u64 = 4000;
    for ends in ["heals", "is told to stop"] {
        let place = Place::new(0, None);
        place.heal("up");
        let spill = json!({ "max_bytes": "256KiB", "memory": "64KiB" });
        let sinks = json!({
            "down": place.file_sink("down", &spill),
            "up": place.file_sink("up", &json!({})),
        });
        let recorded = record(&place, REPLAYED);
        let sources = json!({
            "bus": { "salt_bus": { "address": place.bus.path } },
            "past": { "replay": { "path": recorded, "rate": 50_000 } },
        });
        let config = place.configure(&sinks, &json!({ "sources": sources }));
        let daemon = Daemon::listening(&config);
        let held_back = || daemon.metric("saltern_sink_held_back_events", &["sink=\"down\""]) > 0.0;
        until("the replay waits", held_back);
        place.bus.send_up_to(100);
        until("the other sink has everything", || daemon.stored("up") == REPLAYED + 100);
        assert!(held_back());
        assert_eq!(daemon.stored("down"), 0);
        let is_told = daemon.log().contains("sources that can wait hold their events back");
        assert!(is_told);
        if ends == "heals" {
            place.heal("down");
            until("the sink has everything", || daemon.stored("down") == REPLAYED + 100);
            assert!(daemon.metric("saltern_sink_dropped_events_total", &[]) < 1.0);
            until("nothing waits", || !held_back());
        } else {
            let (_, took) = daemon.terminate();
            assert!(took < Duration::from_secs(30), "the deadline is 3 s, it took {took:?}");
        }
    }
}

/// No inodes are left, but space is: nothing is dropped that the open segment can take.
#[test]
fn a_disk_that_takes_no_new_file_takes_events() {
    let place = Place::new(500, None);
    let tmpfs = Tmpfs::mount(place.state_dir(), "64m,nr_inodes=24");
    let config = place.configure(
        &json!({ "file": place.file_sink("out", &json!({ "max_bytes": "48MiB" })) }),
        &json!({}),
    );
    let daemon = Daemon::listening(&config);
    place.bus.send_up_to(100);
    let in_spill = || daemon.metric("saltern_sink_spill_events", &[]);
    until("there is a segment", || in_spill() >= 100.0);
    // The rest of the inodes.
    for number in 0.. {
        if std::fs::write(place.state_dir().join(format!("filler-{number}")), "").is_err() {
            break;
        }
    }
    place.bus.send_up_to(20_000);
    until("all is read", || daemon.taken() == 20_000);
    until("all is on disk", || in_spill() >= 20_000.0);
    assert!(daemon.metric("saltern_sink_dropped_events_total", &[]) < 1.0);
    place.heal("out");
    until("all is stored", || daemon.stored("file") == 20_000);
    assert_eq!(place.stored("out"), (0..20_000).collect::<Vec<_>>());
    drop(daemon);
    drop(tmpfs);
}

/// The default `max_bytes` is much larger than this disk.
#[test]
fn a_small_disk_is_used_although_max_bytes_is_large() {
    let place = Place::new(500, None);
    let tmpfs = Tmpfs::mount(place.state_dir(), "4m");
    let spill = json!({ "memory": "64KiB" });
    let config = place.configure(&json!({ "file": place.file_sink("out", &spill) }), &json!({}));
    let daemon = Daemon::listening(&config);
    place.bus.send_up_to(30_000);
    until("all is read", || daemon.taken() == 30_000);
    until("it drops", || daemon.dropped("file", "queue_full") > 5000);
    let bytes = daemon.metric("saltern_sink_spill_bytes", &[]);
    assert!(bytes > 0.75 * f64::from(4 << 20), "{bytes} bytes of 4 MiB are used");
    place.heal("out");
    let gone = || daemon.stored("file") + daemon.dropped("file", "queue_full");
    until("the backlog is gone", || gone() == 30_000);
    assert!(place.stored("out").ends_with(&[29_998, 29_999]));
    drop(daemon);
    drop(tmpfs);
}

/// Leaves 1000 events in the spill of a stopped daemon.
fn stopped_with_backlog() -> (Place, PathBuf) {
    let place = Place::new(200, Some(Duration::from_millis(2)));
    let spill = json!({ "max_bytes": "1MiB" });
    let config = place.configure(&json!({ "file": place.file_sink("out", &spill) }), &json!({}));
    let daemon = Daemon::listening(&config);
    place.bus.send_up_to(1000);
    until("all is read", || daemon.taken() == 1000);
    assert!(daemon.terminate().0.success());
    (place, config)
}

fn segments(place: &Place) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(place.state_dir().join("spill/file")).unwrap();
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "seg"));
    files.sort();
    files
}

#[test]
fn verify_names_a_directory_in_place_of_a_segment_and_goes_on() {
    let (place, config) = stopped_with_backlog();
    let files = segments(&place);
    assert!(files.len() > 3);
    std::fs::remove_file(&files[1]).unwrap();
    std::fs::create_dir(&files[1]).unwrap();
    let mut bytes = std::fs::read(&files[2]).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 0xff;
    std::fs::write(&files[2], bytes).unwrap();
    let found = saltern(&["spill", "verify", "--config", config.to_str().unwrap()]);
    assert_eq!(found.status.code(), Some(1));
    let text = String::from_utf8(found.stdout).unwrap();
    let line = |file: &PathBuf| {
        let name = file.to_str().unwrap();
        text.lines().find(|line| line.contains(name)).unwrap_or_default().to_owned()
    };
    assert!(line(&files[1]).contains("it is a directory"), "{text}");
    assert!(line(&files[2]).contains("events lost"), "{text}");
    place.heal("out");
    let daemon = Daemon::listening(&config);
    let settled = || daemon.stored("file") + daemon.dropped("file", "damaged");
    until("the rest is delivered", || settled() == 1000);
    assert!(!files[1].exists(), "it was put aside");
    assert!(daemon.terminate().0.success());
}

#[test]
fn invariant_7_a_damaged_spill_is_shown_and_the_rest_is_delivered() {
    let (place, config) = stopped_with_backlog();
    let verify = || saltern(&["spill", "verify", "--config", config.to_str().unwrap()]);
    assert!(verify().status.success());
    let files = segments(&place);
    assert!(files.len() > 2);
    for file in &files[..2] {
        let mut bytes = std::fs::read(file).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 0xff;
        std::fs::write(file, bytes).unwrap();
    }
    let found = verify();
    assert_eq!(found.status.code(), Some(1));
    let text = String::from_utf8(found.stdout).unwrap();
    for file in &files[..2] {
        assert!(text.contains(file.to_str().unwrap()), "{text}");
    }
    place.heal("out");
    let daemon = Daemon::listening(&config);
    let settled = || daemon.stored("file") + daemon.dropped("file", "damaged");
    until("the rest is delivered", || settled() == 1000);
    let damaged = daemon.dropped("file", "damaged");
    assert!(damaged > 0);
    assert!(text.contains(" events lost"), "{text}");
    let stored = place.stored("out");
    assert_eq!(stored.len() as u64, 1000 - damaged);
    assert!(stored.is_sorted_by(|a, b| a < b));
}

#[test]
fn what_waits_is_listed_exported_and_dropped() {
    let (place, config) = stopped_with_backlog();
    let config = config.to_str().unwrap();
    let run = |arguments: &[&str]| {
        let output = saltern(&[arguments, &["--config", config]].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let listed: Value = serde_json::from_str(&run(&["spill", "list", "--output", "json"])).unwrap();
    assert_eq!(listed[0]["sink"], "file");
    assert_eq!(listed[0]["events"], 1000);
    assert_eq!(listed[0]["configured"], true);
    assert!(run(&["spill"]).contains("1000"));
    let exported = place.path("exported");
    std::fs::write(&exported, run(&["spill", "export", "--sink", "file"])).unwrap();
    assert_eq!(numbered::numbers(&exported), (0..1000).collect::<Vec<_>>());

    // In the middle of the waiting events.
    let folder = Folder::open(&place.state_dir().join("spill/file")).unwrap();
    let mut times = Vec::new();
    scan(&folder, Depth::Waiting, |share| {
        times.extend(share.events().map(|_| share.received()));
        Ok(())
    })
    .unwrap();
    let time = i64::try_from(times[500]).unwrap();
    let older = times.iter().filter(|other| **other < times[500]).count();
    assert!(older > 0);
    let time = jiff::Timestamp::from_microsecond(time).unwrap().to_string();
    let drop = ["spill", "drop", "--sink", "file", "--before"];
    assert!(run(&[&drop[..], &[&time]].concat()).starts_with(&format!("{older} events")));
    let listed: Value = serde_json::from_str(&run(&["spill", "list", "--output", "json"])).unwrap();
    assert_eq!(listed[0]["events"], 1000 - older);
    assert!(run(&[&drop[..], &["0s"]].concat()).starts_with(&format!("{} events", 1000 - older)));
    let wrong =
        saltern(&["spill", "drop", "--sink", "nobody", "--before", "1d", "--config", config]);
    assert_eq!(wrong.status.code(), Some(2));
}

/// One segment is empty, and two have changed places. The daemon counts their events as lost, and
/// `verify` reports the same number.
#[test]
fn invariant_3_verify_says_how_many_events_the_daemon_will_count_as_lost() {
    for is_swapped in [false, true] {
        let (place, config) = stopped_with_backlog();
        let files = segments(&place);
        if is_swapped {
            let aside = files[1].with_extension("aside");
            std::fs::rename(&files[1], &aside).unwrap();
            std::fs::rename(&files[2], &files[1]).unwrap();
            std::fs::rename(&aside, &files[2]).unwrap();
        } else {
            std::fs::write(&files[0], b"").unwrap();
        }
        let verify = ["spill", "verify", "--output", "json", "--config", config.to_str().unwrap()];
        let found = saltern(&verify);
        assert_eq!(found.status.code(), Some(1));
        let found: Value = serde_json::from_slice(&found.stdout).unwrap();
        let damage = found[0]["spill"]["damage"].as_array().unwrap();
        let events: u64 = damage.iter().map(|damaged| damaged["events"].as_u64().unwrap()).sum();
        assert!(events > 0, "{found}");
        place.heal("out");
        let daemon = Daemon::listening(&config);
        let settled = || daemon.stored("file") + daemon.dropped("file", "damaged");
        until("the rest is delivered", || settled() == 1000);
        assert_eq!(daemon.dropped("file", "damaged"), events);
    }
}

/// A spill as the first release that wrote this version of the format left it.
fn fixture(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/spill-v{version}"))
}

fn fixture_events() -> Vec<(String, Vec<u8>)> {
    let event = |n: usize| {
        let data = json!({ "n": n, "text": "salt ".repeat(n * 3), "list": [n, null, true] });
        (format!("fixture/{n}/ü"), rmp_serde::to_vec(&data).unwrap())
    };
    (0..60).map(event).collect()
}

const FIXTURE: Settings = Settings { segment_bytes: 4000, max_bytes: 1 << 20, compress: false };

/// Writes the fixture anew; only for a new version of the format, into a new folder:
/// `cargo test --test it -- --ignored spill::write_the_fixture`.
#[test]
#[ignore = "writes the fixture that the other test reads"]
fn write_the_fixture() {
    let folder = Folder::create(&fixture(2)).unwrap();
    let mut spill = Spill::open(folder, FIXTURE).unwrap();
    let origin = Arc::new(Origin { source: "bus".into(), master_id: "master-1".into() });
    for (index, events) in fixture_events().chunks(4).enumerate() {
        let events = events.iter().map(|(tag, payload)| Event::new(tag, payload)).collect();
        let received = 1_795_000_000_000_000 + index as u64;
        let share = Share::all(Arc::new(Chunk::new(Arc::clone(&origin), received, events)));
        let body = Body::encode(&share, index % 2 == 1).unwrap();
        spill.append(index as u64 * 4, &share, &body).unwrap();
    }
    spill.note_begun(saltern::queue::spill::Begun { first: 10, len: 7 }).unwrap();
    spill.acknowledge(10).unwrap();
    spill.note_acknowledged().unwrap();
}

/// A copy of a fixture.
fn copied(version: u32) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(version)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

#[test]
fn spills_of_versions_1_and_2_are_read() {
    for version in [1, 2] {
        let copy = copied(version);
        let folder = Folder::open(copy.path()).unwrap();
        let looked = scan(&folder, Depth::All, |_| Ok(())).unwrap();
        assert_eq!((looked.events, looked.damage.len(), looked.tail_bytes), (50, 0, 0));
        let mut spill = Spill::open(folder, FIXTURE).unwrap();
        assert_eq!((spill.acknowledged(), spill.next()), (10, 60));
        assert_eq!(spill.begun(), [saltern::queue::spill::Begun { first: 10, len: 7 }]);
        assert_eq!(came(&mut spill), fixture_events()[10..]);
    }
}

fn came(spill: &mut Spill<Folder>) -> Vec<(String, Vec<u8>)> {
    let mut came = Vec::new();
    while let Some(read) = spill.read().unwrap() {
        let Read::Events(_, share) = read else { panic!("damaged: {read:?}") };
        assert_eq!(share.origin().master_id, "master-1");
        came.extend(share.events().map(|e| (e.tag().to_owned(), e.payload().to_vec())));
    }
    came
}

/// Events that come after an update go into segments of their own.
#[test]
fn nothing_is_appended_to_segments_of_version_1() {
    let copy = copied(1);
    let mut spill = Spill::open(Folder::open(copy.path()).unwrap(), FIXTURE).unwrap();
    let origin = Arc::new(Origin { source: "bus".into(), master_id: "master-1".into() });
    let new = Share::all(Arc::new(Chunk::new(origin, 1, vec![Event::new("new", b"\x80")])));
    spill.append(60, &new, &Body::encode(&new, false).unwrap()).unwrap();
    drop(spill);
    for entry in std::fs::read_dir(fixture(1)).unwrap() {
        let entry = entry.unwrap();
        let now = std::fs::read(copy.path().join(entry.file_name())).ok();
        assert!(now.is_none_or(|now| now == std::fs::read(entry.path()).unwrap()));
    }
    let mut spill = Spill::open(Folder::open(copy.path()).unwrap(), FIXTURE).unwrap();
    let came = came(&mut spill);
    assert_eq!((came.len(), came.last().unwrap().0.as_str()), (51, "new"));
}
