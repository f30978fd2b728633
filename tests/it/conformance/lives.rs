//! The lives that every kind of sink goes through. Each begins with an empty store and ends with
//! one that holds every event.

use std::path::Path;
use std::time::Instant;

use tempfile::TempDir;

use super::{Copies, Fault, Store, files};
use crate::harness::bus::{Bus, tag};
use crate::harness::daemon::{Daemon, Launch, STOP_LIMIT, until};

/// Bytes of an event's text.
pub(crate) const SIZE: usize = 300;

const RETRY: &str = "retry: {initial: 20ms, max: 200ms}";

const BATCH: &str = "batch: {linger: 10ms, max_events: 50}";

/// A bus, a store under test, and a daemon between them; the folder that all this is in.
pub(crate) struct Life<S> {
    kind: &'static str,
    pub(crate) bus: Bus,
    pub(crate) store: S,
    pub(crate) folder: TempDir,
}

impl<S: Store> Life<S> {
    pub(crate) fn begin(kind: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bus = Bus::listen(folder.path());
        Life { kind, bus, store: S::start(folder.path()), folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The kind under test as `store` with these settings, and a neighbour that is never disturbed.
    fn sinks(&self, settings: &str) -> String {
        format!(
            "sinks:\n  store:\n    {}: {settings}\n    {RETRY}\n    {BATCH}\n\
             \x20 neighbour:\n    rawfile_json: {{filename: '{}'}}\n    batch: {{linger: 10ms}}\n",
            self.kind,
            self.path().join("neighbour").display()
        )
    }

    /// The configuration, with this changed in it.
    fn sections(&self, from: &str, to: &str) -> String {
        self.bus.source() + &self.sinks(&self.store.settings()).replacen(from, to, 1)
    }

    pub(crate) fn daemon(&self) -> Daemon {
        Daemon::start(self.path(), &self.sections("", ""))
    }

    /// The store holds just the events of these numbers, in order.
    pub(crate) fn assert_holds(&self, numbers: impl IntoIterator<Item = u64>) {
        let Some(found) = self.store.tags() else { return };
        let expected: Vec<_> = numbers.into_iter().map(tag).collect();
        assert_eq!(found, expected, "what the {} holds", self.kind);
    }

    pub(crate) fn assert_neighbour_holds(&self, count: u64) {
        let expected: Vec<_> = (0..count).map(tag).collect();
        assert_eq!(files::tags_of_lines(&self.path().join("neighbour")), expected);
    }
}

/// The store cannot be reached when the daemon starts, and comes later.
pub(crate) fn absent_at_start<S: Store>(kind: &'static str, absent: Fault<S>) {
    let mut life = Life::begin(kind);
    let repair = absent(&mut life.store, None);
    let daemon = life.daemon();
    life.bus.send(0..200, SIZE);
    daemon.wait_stored("neighbour", 200);
    daemon.wait_failing("store");
    repair(&mut life.store);
    daemon.wait_stored("store", 200);
    daemon.stop();
    life.assert_holds(0..200);
    life.assert_neighbour_holds(200);
}

pub(crate) fn invariant_2_killed_in_mid_batch<S: Store>(kind: &'static str, kill: Fault<S>) {
    broken_for_a_while(Life::begin(kind), kill, RETRY, None);
}

/// A write that gets no answer is broken off.
pub(crate) fn invariant_2_hanging<S: Store>(kind: &'static str, hold: Fault<S>) {
    let retry = "retry: {initial: 20ms, max: 200ms, timeout: 2s}";
    broken_for_a_while(Life::begin(kind), hold, retry, None);
}

pub(crate) fn invariant_2_refusing<S: Store>(kind: &'static str, refuse: Fault<S>) {
    broken_for_a_while(Life::begin(kind), refuse, RETRY, S::BEFORE);
}

pub(crate) fn invariant_3_partly_storing<S: Store>(kind: &'static str, halve: Fault<S>) {
    broken_for_a_while(Life::begin(kind), halve, RETRY, S::BEFORE);
}

/// The store stops taking events while they come, and takes them again later. The neighbour has
/// all of them before the store is repaired.
fn broken_for_a_while<S: Store>(
    mut life: Life<S>,
    fault: Fault<S>,
    retry: &str,
    before: Option<&str>,
) {
    let folder = life.path().display().to_string();
    let before = before.map(|command| command.replace("FOLDER", &folder));
    let launch = Launch { before: before.as_deref(), ..Launch::default() };
    let daemon = Daemon::start_as(life.path(), &life.sections(RETRY, retry), &launch);
    life.bus.send(0..100, SIZE);
    daemon.wait_stored("store", 100);
    let repair = fault(&mut life.store, Some(daemon.pid()));
    life.bus.send(100..200, SIZE);
    daemon.wait_stored("neighbour", 200);
    daemon.wait_failing("store");
    life.bus.send(200..300, SIZE);
    daemon.wait_stored("neighbour", 300);
    assert!(daemon.stored("store") < 300);
    repair(&mut life.store);
    daemon.wait_stored("store", 300);
    if before.is_some() {
        // The namespace ends with the daemon.
        life.store.look_inside(daemon.pid());
    }
    daemon.stop();
    life.assert_holds(0..300);
    life.assert_neighbour_holds(300);
}

/// The store does not answer for a while, which is no error.
pub(crate) fn invariant_2_slow<S: Store>(kind: &'static str, hold: Fault<S>) {
    let mut life = Life::begin(kind);
    let daemon = life.daemon();
    life.bus.send(0..10, SIZE);
    daemon.wait_stored("store", 10);
    for round in 1..4 {
        let release = hold(&mut life.store, None);
        life.bus.send(round * 10..round * 10 + 10, SIZE);
        daemon.wait_stored("neighbour", round * 10 + 10);
        assert_eq!(daemon.stored("store"), round * 10, "it wrote to a store that is held");
        release(&mut life.store);
        daemon.wait_stored("store", round * 10 + 10);
    }
    daemon.stop();
    life.assert_holds(0..40);
}

/// The store refuses one event of a batch; all others are in it.
pub(crate) fn invariant_5_rejecting_one<S: Store>(kind: &'static str, refuse: Fault<S>) {
    let mut life = Life::begin(kind);
    let daemon = life.daemon();
    life.bus.send(0..1, SIZE);
    daemon.wait_stored("store", 1);
    // This refuses number 13.
    let _mend = refuse(&mut life.store, None);
    life.bus.send(1..50, SIZE);
    daemon.wait_stored("store", 49);
    let refused = daemon.count("saltern_sink_rejected_events_total", &["sink=\"store\""]);
    assert_eq!(refused, 1, "events refused");
    daemon.stop();
    life.assert_holds((0..50).filter(|number| *number != 13));
    life.assert_neighbour_holds(50);
}

/// The password is wrong until the configuration is corrected.
pub(crate) fn wrong_password<S: Store>(kind: &'static str, settings: fn(&S) -> String) {
    let mut life = Life::<S>::begin(kind);
    let sections = life.bus.source() + &life.sinks(&settings(&life.store));
    let daemon = Daemon::start(life.path(), &sections);
    life.bus.send(0..100, SIZE);
    daemon.wait_stored("neighbour", 100);
    until("a word on it", || {
        let log = daemon.log();
        let mut of_store = log.lines().filter(|line| line.contains("\"sink\":\"store\""));
        of_store.any(|line| line.contains("\"WARN\"") || line.contains("\"ERROR\""))
    });
    assert_eq!(daemon.stored("store"), 0);
    daemon.reload(&life.sections("", ""));
    daemon.wait_stored("store", 100);
    daemon.stop();
    life.assert_holds(0..100);
    life.assert_neighbour_holds(100);
}

/// The contents of the store are removed while the daemon runs: a new one is begun with the next
/// event.
pub(crate) fn removed<S: Store>(kind: &'static str, remove: Fault<S>) {
    let mut life = Life::begin(kind);
    let daemon = life.daemon();
    life.bus.send(0..50, SIZE);
    daemon.wait_stored("store", 50);
    let _mend = remove(&mut life.store, None);
    life.bus.send(50..100, SIZE);
    daemon.wait_stored("store", 100);
    daemon.stop();
    life.assert_holds(50..100);
}

/// kill -9 in the middle; the same recording again. The events in memory are lost with the daemon.
/// So this checks what the store is left with: nothing torn, and nothing twice that can be known.
pub(crate) fn invariant_4_killed_and_restarted<S: Store>(kind: &'static str) {
    let life = Life::<S>::begin(kind);
    let recording = life.path().join("recording.jsonl");
    let line =
        |number| format!("{{\"tag\": \"{}\", \"data\": {{\"n\": {number}}}}}\n", tag(number));
    std::fs::write(&recording, (0..3000).map(line).collect::<String>()).unwrap();
    let sections = |rate| {
        let path = recording.display();
        let sinks = life.sinks(&life.store.settings());
        format!("sources:\n  recording: {{replay: {{path: '{path}'{rate}}}}}\n{sinks}")
    };
    let daemon = Daemon::start(life.path(), &sections(", rate: 2000"));
    until("some events", || daemon.stored("store") > 100);
    daemon.signal("KILL");
    assert!(!daemon.ended().success());
    drop(daemon);
    if let (Some(found), true) = (life.store.tags(), S::COPIES == Copies::One) {
        assert!(found.len() < 3000, "it was killed too late");
    }

    let daemon = Daemon::start(life.path(), &sections(""));
    let status = daemon.ended();
    assert!(status.success(), "{status}: {}", daemon.log());
    let Some(found) = life.store.tags() else { return };
    match S::COPIES {
        Copies::One => assert_eq!(found, (0..3000).map(tag).collect::<Vec<_>>()),
        Copies::AtLeastOne => {
            assert!((3001..6000).contains(&found.len()), "{} events", found.len());
            assert_eq!(found[found.len() - 3000..], (0..3000).map(tag).collect::<Vec<_>>());
        }
    }
}

/// SIGTERM while a batch waits to fill: read events are stored before the daemon ends.
pub(crate) fn invariant_8_drains<S: Store>(kind: &'static str) {
    let mut life = Life::<S>::begin(kind);
    let daemon =
        Daemon::start(life.path(), &life.sections(BATCH, "batch: {linger: 1h, max_events: 1000}"));
    life.bus.send(0..500, SIZE);
    daemon.wait_stored("neighbour", 500);
    assert_eq!(daemon.stored("store"), 0);
    daemon.stop();
    life.assert_holds(0..500);
}

/// A store that never answers: the daemon ends all the same, in its deadline.
pub(crate) fn invariant_8_stops_in_time<S: Store>(kind: &'static str, hold: Fault<S>) {
    let mut life = Life::begin(kind);
    let daemon = life.daemon();
    life.bus.send(0..1, SIZE);
    daemon.wait_stored("store", 1);
    let release = hold(&mut life.store, None);
    life.bus.send(1..50, SIZE);
    daemon.wait_stored("neighbour", 50);
    let begin = Instant::now();
    daemon.stop();
    assert!(begin.elapsed() < STOP_LIMIT, "it took {:?}", begin.elapsed());
    release(&mut life.store);
    life.assert_neighbour_holds(50);
}

/// A store that never answers, and many more events than may wait for it. The neighbour has all in
/// order, memory stays under its bound, and dropped events are counted.
pub(crate) fn invariants_2_and_6_back_pressure<S: Store>(kind: &'static str, hold: Fault<S>) {
    const EVENTS: u64 = 40_000;
    let mut life = Life::begin(kind);
    let spill = format!("{RETRY}\n    spill: {{mode: memory, max_bytes: 4MiB}}");
    let daemon = Daemon::start(life.path(), &life.sections(RETRY, &spill));
    life.bus.send(0..1, SIZE);
    daemon.wait_stored("store", 1);
    let release = hold(&mut life.store, None);
    // 80 MB, with their JSON twice that, through a bound of 4 MiB.
    let of_store = ["sink=\"store\""];
    let mut most = 0;
    for from in (1..EVENTS).step_by(1000) {
        life.bus.send(from..(from + 1000).min(EVENTS), 2000);
        daemon.wait_stored("neighbour", (from + 1000).min(EVENTS));
        most = most.max(daemon.memory());
        let queued = daemon.count("saltern_sink_queue_bytes", &of_store);
        assert!(queued <= 4 << 20, "{queued} bytes wait");
    }
    assert!(most < 120 << 20, "{most} bytes of memory");
    let dropped = || daemon.count("saltern_sink_dropped_events_total", &of_store);
    assert!(dropped() > 10_000, "{} events dropped", dropped());
    release(&mut life.store);
    until("the rest", || daemon.count("saltern_sink_queue_events", &of_store) == 0);
    assert_eq!(dropped() + daemon.stored("store"), EVENTS, "dropped and stored");
    let of_neighbour = ["sink=\"neighbour\""];
    assert_eq!(daemon.count("saltern_sink_dropped_events_total", &of_neighbour), 0);
    daemon.stop();
    life.assert_neighbour_holds(EVENTS);
}

/// The only store never answers, and its spill is full. The bus is read to the last event all the
/// same: a master that waited for us would not have got rid of them.
pub(crate) fn invariant_1_the_bus_is_never_held_up<S: Store>(
    kind: &'static str,
    hold: Fault<S>,
    mode: &str,
) {
    const EVENTS: u64 = 40_000;
    let mut life = Life::<S>::begin(kind);
    let sinks = format!(
        "sinks:\n  store:\n    {kind}: {}\n    {RETRY}\n    spill: {{mode: {mode}, max_bytes: 4MiB}}\n",
        life.store.settings()
    );
    let daemon = Daemon::start(life.path(), &(life.bus.source() + &sinks));
    life.bus.send(0..1, SIZE);
    daemon.wait_stored("store", 1);
    let release = hold(&mut life.store, None);
    life.bus.send(1..EVENTS, 2000);
    until("the bus to be read", || daemon.taken() == EVENTS);
    // The last chunks may still be on their way to the queue.
    until("most to be dropped", || {
        daemon.count("saltern_sink_dropped_events_total", &["sink=\"store\""]) > 10_000
    });
    assert!(daemon.stored("store") < 1000, "the store was held");
    release(&mut life.store);
    daemon.stop();
}
