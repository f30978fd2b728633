//! Every kind of sink goes through the same life: its store absent at the start, refusing for a
//! while, slow, refusing one event, removed, killed in the middle, draining at the end; and after
//! each the store holds every event. The stores are real: files, databases, a full file system,
//! brokers.
//!
//! A kind is a [`Kind`] in `tests/it/conformance/kinds.rs`; what it cannot go through is `None`
//! there. Tests of an invariant of the architecture have its number in their names.

use std::path::Path;

mod clickhouse_kind;
mod kinds;

use crate::harness::blocking::{Daemon, STOP_LIMIT, wait_for};
use crate::harness::bus::{self, Bus, tag};
use clickhouse_kind::CLICKHOUSE;
use kinds::{
    BLACKHOLE, Copies, Fault, KAFKA, KAFKA_TRANSACTIONS, Kind, LOCAL, RAWFILE_JSON, SQLITE3,
};

/// Bytes of an event's text.
const SIZE: usize = 300;

const RETRY: &str = "retry: {initial: 20ms, max: 200ms}";

/// The kind under test as `store`, and a neighbour that is never disturbed.
fn sinks(kind: &Kind, folder: &Path) -> String {
    format!(
        "sinks:\n  store:\n    {}: {}\n    {RETRY}\n    batch: {{linger: 10ms, max_events: 50}}\n\
         \x20 neighbour:\n    rawfile_json: {{filename: '{}'}}\n    batch: {{linger: 10ms}}\n",
        kind.name,
        (kind.settings)(folder),
        folder.join("neighbour").display()
    )
}

/// What the store holds is just the events of these numbers, in order.
fn assert_holds(kind: &Kind, folder: &Path, numbers: impl IntoIterator<Item = u64>) {
    let Some(read) = kind.read else { return };
    let expected: Vec<_> = numbers.into_iter().map(tag).collect();
    assert_eq!(read(folder), expected, "what the {} holds", kind.name);
}

fn assert_neighbour_holds(folder: &Path, count: u64) {
    let expected: Vec<_> = (0..count).map(tag).collect();
    assert_eq!(kinds::tags_of_lines(&folder.join("neighbour")), expected);
}

/// The store cannot be reached when the daemon starts, and comes later.
fn absent_at_start(kind: &Kind, absent: Fault) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bus = Bus::listen(folder);
    let mend = absent(folder, None);
    let mut daemon = Daemon::start(folder, &(bus.source() + &sinks(kind, folder)));
    bus.send(0..200, SIZE);
    daemon.wait_stored("neighbour", 200);
    daemon.wait_failing("store");
    mend();
    daemon.wait_stored("store", 200);
    daemon.stop();
    assert_holds(kind, folder, 0..200);
    assert_neighbour_holds(folder, 200);
}

/// The store stops taking events while they come, and takes them again later. The neighbour has
/// all of them before the store is mended.
fn broken_for_a_while(kind: &Kind, fault: Fault, before: Option<&str>) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bus = Bus::listen(folder);
    let before = before.map(|command| command.replace("FOLDER", &folder.display().to_string()));
    let sections = bus.source() + &sinks(kind, folder);
    let mut daemon = Daemon::start_in(folder, &sections, before.as_deref());
    bus.send(0..100, SIZE);
    daemon.wait_stored("store", 100);
    let mend = fault(folder, Some(daemon.pid()));
    bus.send(100..200, SIZE);
    daemon.wait_stored("neighbour", 200);
    daemon.wait_failing("store");
    bus.send(200..300, SIZE);
    daemon.wait_stored("neighbour", 300);
    assert!(daemon.stored("store") < 300.0);
    mend();
    daemon.wait_stored("store", 300);
    if let (Some(read), Some(_)) = (kind.read, &before) {
        // In the daemon's own mount namespace, which ends with it.
        let copied = kinds::copied_out(daemon.pid(), folder);
        assert_eq!(read(&copied), (0..300).map(tag).collect::<Vec<_>>());
        daemon.stop();
        return;
    }
    daemon.stop();
    assert_holds(kind, folder, 0..300);
    assert_neighbour_holds(folder, 300);
}

/// The store does not answer for a while, which is no error.
fn slow(kind: &Kind, hold: Fault) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bus = Bus::listen(folder);
    let mut daemon = Daemon::start(folder, &(bus.source() + &sinks(kind, folder)));
    bus.send(0..10, SIZE);
    daemon.wait_stored("store", 10);
    for round in 1..4 {
        let release = hold(folder, None);
        bus.send(round * 10..round * 10 + 10, SIZE);
        daemon.wait_stored("neighbour", round * 10 + 10);
        #[allow(clippy::cast_precision_loss)]
        let stored = (round * 10) as f64;
        assert!((daemon.stored("store") - stored).abs() < 0.5, "it wrote to a locked store");
        release();
        daemon.wait_stored("store", round * 10 + 10);
    }
    daemon.stop();
    assert_holds(kind, folder, 0..40);
}

/// The store refuses one event of a batch; all others are in it.
fn rejecting_one(kind: &Kind, refuse: Fault) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bus = Bus::listen(folder);
    let mut daemon = Daemon::start(folder, &(bus.source() + &sinks(kind, folder)));
    bus.send(0..1, SIZE);
    daemon.wait_stored("store", 1);
    // Of number 13.
    let _mend = refuse(folder, None);
    bus.send(1..50, SIZE);
    daemon.wait_stored("store", 49);
    let refused = daemon.metric("saltern_sink_rejected_events_total", "sink=\"store\"");
    assert!((refused - 1.0).abs() < 0.5, "{refused} events refused");
    daemon.stop();
    assert_holds(kind, folder, (0..50).filter(|number| *number != 13));
    assert_neighbour_holds(folder, 50);
}

/// What the store held is removed while the daemon runs: a new one is begun with the next event.
fn removed(kind: &Kind, remove: Fault) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bus = Bus::listen(folder);
    let mut daemon = Daemon::start(folder, &(bus.source() + &sinks(kind, folder)));
    bus.send(0..50, SIZE);
    daemon.wait_stored("store", 50);
    let _mend = remove(folder, None);
    bus.send(50..100, SIZE);
    daemon.wait_stored("store", 100);
    daemon.stop();
    assert_holds(kind, folder, 50..100);
}

/// kill -9 in the middle; the same recording again. (What is in memory is lost with the daemon, so
/// this is about what the store is left with: nothing torn, nothing twice that can be known.)
fn killed_and_restarted(kind: &Kind) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let recording = folder.join("recording.jsonl");
    let line =
        |number| format!("{{\"tag\": \"{}\", \"data\": {{\"n\": {number}}}}}\n", tag(number));
    std::fs::write(&recording, (0..3000).map(line).collect::<String>()).unwrap();
    let source = |rate| {
        let path = recording.display();
        format!("sources:\n  recording: {{replay: {{path: '{path}'{rate}}}}}\n")
    };
    let mut daemon = Daemon::start(folder, &(source(", rate: 2000") + &sinks(kind, folder)));
    wait_for("some events", || (daemon.stored("store") > 100.0).then_some(()));
    daemon.signal("KILL");
    assert!(!daemon.ended().success());
    drop(daemon);
    if let (Some(read), Copies::One) = (kind.read, &kind.copies) {
        assert!(read(folder).len() < 3000, "it was killed too late");
    }

    let mut daemon = Daemon::start(folder, &(source("") + &sinks(kind, folder)));
    let status = daemon.ended();
    assert!(status.success(), "{status}: {}", daemon.log());
    let Some(read) = kind.read else { return };
    let found = read(folder);
    match kind.copies {
        Copies::One => assert_eq!(found, (0..3000).map(tag).collect::<Vec<_>>()),
        Copies::AtLeastOne => {
            assert!((3001..6000).contains(&found.len()), "{} events", found.len());
            assert_eq!(found[found.len() - 3000..], (0..3000).map(tag).collect::<Vec<_>>());
        }
    }
}

/// SIGTERM while a batch waits to fill: what was read is stored before the daemon ends.
fn invariant_8_drains(kind: &Kind) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bus = Bus::listen(folder);
    let sinks = sinks(kind, folder).replacen("linger: 10ms, max_events: 50", "linger: 1h", 1);
    let mut daemon = Daemon::start(folder, &(bus.source() + &sinks));
    bus.send(0..500, SIZE);
    daemon.wait_stored("neighbour", 500);
    assert!(daemon.stored("store") < 0.5);
    daemon.stop();
    assert_holds(kind, folder, 0..500);
}

/// A store that never answers: the daemon ends all the same, in its deadline.
fn invariant_8_stops_in_time(kind: &Kind, hold: Fault) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bus = Bus::listen(folder);
    let mut daemon = Daemon::start(folder, &(bus.source() + &sinks(kind, folder)));
    bus.send(0..1, SIZE);
    daemon.wait_stored("store", 1);
    let release = hold(folder, None);
    bus.send(1..50, SIZE);
    daemon.wait_stored("neighbour", 50);
    let begin = std::time::Instant::now();
    daemon.stop();
    assert!(begin.elapsed() < STOP_LIMIT, "it took {:?}", begin.elapsed());
    release();
    assert_neighbour_holds(folder, 50);
}

/// A sink that is parked stores nothing any more, and its queue is full and blocks: the daemon does
/// not wait until its deadline, and says of every event that it read where it is.
fn invariant_8_a_parked_sink_is_not_waited_for(mode: &str) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bus = Bus::listen(folder);
    let database = folder.join("no.db");
    std::fs::write(&database, "this is no database, however long one looks at it ".repeat(100))
        .unwrap();
    let at = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "state_dir: {}\nshutdown_deadline: 1h\nhttp: {{listen: '127.0.0.1:0'}}\nlog: {{format: json}}\n{}\
         sinks:\n  store:\n    sqlite3: {{database: '{}'}}\n    writers: 1\n\
         \x20   spill: {{mode: {mode}, when_full: block, memory: 1MiB, max_bytes: 4MiB}}\n\
         \x20 neighbour:\n    rawfile_json: {{filename: '{}'}}\n",
        at("state"),
        bus.source(),
        database.display(),
        at("neighbour.jsonl"),
    );
    std::fs::write(folder.join("saltern.yaml"), config).unwrap();
    let mut daemon = Daemon::spawn(folder, None);
    // Sends until nobody listens any more, so it ends with the daemon.
    std::thread::spawn(move || {
        let frame = bus::frame_of("app/held-up", &bus::msgpack(&"x".repeat(2000).into()));
        while bus.try_send_bytes(&frame).is_ok() {}
    });
    // What is read stays the same for as long as nothing makes room: nobody ever will.
    let (mut last, mut same) = (0.0, 0);
    wait_for("the queue to hold up the bus", || {
        let read = daemon.metric("saltern_source_events_total", "source=\"bus\"");
        same = if read > last { 0 } else { same + 1 };
        last = read;
        (read > 0.0 && same == 20).then_some(())
    });
    daemon.signal("TERM");
    let status = daemon.ended();
    let log = daemon.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("the sink store: opening") && !log.contains("deadline has passed"),
        "{log}"
    );
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let of_store = lines.filter(|line| line["sink"] == "store");
    let accounted: u64 = of_store.filter_map(|line| line["events"].as_u64()).sum();
    let neighbour = std::fs::read_to_string(folder.join("neighbour.jsonl")).unwrap();
    assert_eq!(accounted, neighbour.lines().count() as u64, "{log}");
}

/// The only store never answers, its spill is full, and the bus is read to the last event all the
/// same: a master that waited for us would not have got rid of them.
fn invariant_1_the_bus_is_never_held_up(kind: &Kind, hold: Fault, mode: &str) {
    const EVENTS: u64 = 40_000;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bus = Bus::listen(folder);
    let sinks = format!(
        "sinks:\n  store:\n    {}: {}\n    {RETRY}\n    spill: {{mode: {mode}, max_bytes: 4MiB}}\n",
        kind.name,
        (kind.settings)(folder)
    );
    let mut daemon = Daemon::start(folder, &(bus.source() + &sinks));
    bus.send(0..1, SIZE);
    daemon.wait_stored("store", 1);
    let release = hold(folder, None);
    bus.send(1..EVENTS, 2000);
    wait_for("the bus to be read", || {
        let read = daemon.metric("saltern_source_events_total", "source=\"bus\"");
        #[allow(clippy::cast_precision_loss)]
        let all = EVENTS as f64;
        (read > all - 0.5).then_some(())
    });
    // The last chunks may still be on their way to the queue.
    wait_for("most to be dropped", || {
        let dropped = daemon.metric("saltern_sink_dropped_events_total", "sink=\"store\"");
        (dropped > 10_000.0).then_some(())
    });
    assert!(daemon.stored("store") < 1000.0, "the store was held");
    release();
    daemon.stop();
}

/// A store that never answers, and many more events than may wait for it: the neighbour has all in
/// order, memory stays under its bound, and what is dropped is counted.
fn invariants_2_and_6_back_pressure(kind: &Kind, hold: Fault) {
    const EVENTS: u64 = 40_000;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bus = Bus::listen(folder);
    let sinks = sinks(kind, folder).replacen(
        RETRY,
        &format!("{RETRY}\n    spill: {{mode: memory, max_bytes: 4MiB}}"),
        1,
    );
    let mut daemon = Daemon::start(folder, &(bus.source() + &sinks));
    bus.send(0..1, SIZE);
    daemon.wait_stored("store", 1);
    let release = hold(folder, None);
    // 80 MB, with their JSON twice that, through a bound of 4 MiB.
    let mut most = 0.0_f64;
    for from in (1..EVENTS).step_by(1000) {
        bus.send(from..(from + 1000).min(EVENTS), 2000);
        daemon.wait_stored("neighbour", (from + 1000).min(EVENTS));
        most = most.max(daemon.metric("process_resident_memory_bytes", ""));
        let queued = daemon.metric("saltern_sink_queue_bytes", "sink=\"store\"");
        assert!(queued <= f64::from(4 << 20), "{queued} bytes wait");
    }
    assert!(most < f64::from(120 << 20), "{most} bytes of memory");
    let dropped = daemon.metric("saltern_sink_dropped_events_total", "sink=\"store\"");
    assert!(dropped > 10_000.0, "{dropped} events dropped");
    release();
    wait_for("the rest", || {
        let queue = daemon.metric("saltern_sink_queue_events", "sink=\"store\"");
        (queue < 0.5).then_some(())
    });
    #[allow(clippy::cast_precision_loss)]
    let all = EVENTS as f64;
    let dropped = daemon.metric("saltern_sink_dropped_events_total", "sink=\"store\"");
    let stored = daemon.stored("store");
    assert!((dropped + stored - all).abs() < 0.5, "{dropped} dropped and {stored} stored of {all}");
    let neighbour = daemon.metric("saltern_sink_dropped_events_total", "sink=\"neighbour\"");
    assert!(neighbour < 0.5);
    daemon.stop();
    assert_neighbour_holds(folder, EVENTS);
}

/// One test for each part of the life that the kind can go through.
mod rawfile_json {
    use super::*;

    #[test]
    fn absent_at_start() {
        super::absent_at_start(&RAWFILE_JSON, kinds::no_directory);
    }

    #[test]
    fn invariant_2_full_file_system() {
        let before = "mount -t tmpfs -o size=128k tmpfs FOLDER/store";
        broken_for_a_while(&RAWFILE_JSON, kinds::full_with_whole_lines, Some(before));
    }

    #[test]
    fn invariant_2_slow() {
        slow(&RAWFILE_JSON, kinds::hold_flock);
    }

    #[test]
    fn removed() {
        super::removed(&RAWFILE_JSON, kinds::remove_file);
    }

    #[test]
    fn invariant_4_killed_and_restarted() {
        killed_and_restarted(&RAWFILE_JSON);
    }

    #[test]
    fn invariant_8_drains() {
        super::invariant_8_drains(&RAWFILE_JSON);
    }

    #[test]
    fn invariant_8_stops_in_time() {
        super::invariant_8_stops_in_time(&RAWFILE_JSON, kinds::hold_flock);
    }

    #[test]
    fn invariants_2_and_6_back_pressure() {
        super::invariants_2_and_6_back_pressure(&RAWFILE_JSON, kinds::hold_flock);
    }

    #[test]
    fn invariant_1_the_bus_is_never_held_up() {
        for mode in ["durable", "overflow", "memory"] {
            super::invariant_1_the_bus_is_never_held_up(&RAWFILE_JSON, kinds::hold_flock, mode);
        }
    }

    /// A named pipe that nobody reads.
    #[test]
    fn invariant_8_stops_in_time_at_a_pipe() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut bus = Bus::listen(folder);
        let sinks = sinks(&RAWFILE_JSON, folder);
        let pipe = folder.join("store/events");
        assert!(std::process::Command::new("mkfifo").arg(pipe).status().unwrap().success());
        let mut daemon = Daemon::start(folder, &(bus.source() + &sinks));
        bus.send(0..1000, SIZE);
        daemon.wait_stored("neighbour", 1000);
        assert!(daemon.stored("store") < 1000.0);
        let begin = std::time::Instant::now();
        daemon.stop();
        assert!(begin.elapsed() < STOP_LIMIT, "it took {:?}", begin.elapsed());
        assert_neighbour_holds(folder, 1000);
    }

    #[test]
    fn sighup_opens_the_file_anew() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut bus = Bus::listen(folder);
        let mut daemon = Daemon::start(folder, &(bus.source() + &sinks(&RAWFILE_JSON, folder)));
        bus.send(0..50, SIZE);
        daemon.wait_stored("store", 50);
        let (file, aside) = (folder.join("store/events"), folder.join("aside"));
        std::fs::rename(&file, &aside).unwrap();
        bus.send(50..100, SIZE);
        daemon.wait_stored("store", 100);
        daemon.signal("HUP");
        wait_for("a new file", || {
            // The sink opens it with its next batch.
            bus.send(100..101, SIZE);
            file.exists().then_some(())
        });
        daemon.stop();
        let expected: Vec<_> = (0..100).map(tag).collect();
        assert_eq!(kinds::tags_of_lines(&aside)[..100], expected);
    }
}

mod sqlite3 {
    use super::*;

    #[test]
    fn absent_at_start() {
        super::absent_at_start(&SQLITE3, kinds::no_directory);
    }

    #[test]
    fn invariant_2_locked() {
        broken_for_a_while(&SQLITE3, kinds::hold_transaction, None);
    }

    #[test]
    fn invariant_2_full_file_system() {
        let before = "mount -t tmpfs -o size=8m tmpfs FOLDER/store";
        broken_for_a_while(&SQLITE3, kinds::full, Some(before));
    }

    #[test]
    fn invariant_5_rejecting_one() {
        rejecting_one(&SQLITE3, kinds::refuse_number_13);
    }

    #[test]
    fn removed() {
        super::removed(&SQLITE3, kinds::remove_database);
    }

    #[test]
    fn invariant_4_killed_and_restarted() {
        killed_and_restarted(&SQLITE3);
    }

    #[test]
    fn invariant_8_drains() {
        super::invariant_8_drains(&SQLITE3);
    }

    #[test]
    fn invariant_8_stops_in_time() {
        super::invariant_8_stops_in_time(&SQLITE3, kinds::hold_transaction);
    }

    #[test]
    fn invariant_8_a_parked_sink_is_not_waited_for() {
        super::invariant_8_a_parked_sink_is_not_waited_for("durable");
        super::invariant_8_a_parked_sink_is_not_waited_for("memory");
    }

    #[test]
    fn invariants_2_and_6_back_pressure() {
        super::invariants_2_and_6_back_pressure(&SQLITE3, kinds::hold_transaction);
    }
}

mod clickhouse_18_16 {
    use super::*;

    #[test]
    fn absent_at_start() {
        super::absent_at_start(&CLICKHOUSE, clickhouse_kind::not_started);
    }

    #[test]
    fn invariant_2_killed() {
        broken_for_a_while(&CLICKHOUSE, clickhouse_kind::kill, None);
    }

    #[test]
    fn invariant_2_read_only() {
        broken_for_a_while(&CLICKHOUSE, clickhouse_kind::read_only, None);
    }

    #[test]
    fn invariant_2_slow() {
        slow(&CLICKHOUSE, clickhouse_kind::hold);
    }

    #[test]
    fn invariant_5_rejecting_one() {
        rejecting_one(&CLICKHOUSE, clickhouse_kind::refuse_number_13);
    }

    #[test]
    fn removed() {
        super::removed(&CLICKHOUSE, clickhouse_kind::drop_table);
    }

    #[test]
    fn invariant_4_killed_and_restarted() {
        killed_and_restarted(&CLICKHOUSE);
    }

    #[test]
    fn invariant_8_drains() {
        super::invariant_8_drains(&CLICKHOUSE);
    }

    #[test]
    fn invariant_8_stops_in_time() {
        super::invariant_8_stops_in_time(&CLICKHOUSE, clickhouse_kind::hold);
    }

    #[test]
    fn invariants_2_and_6_back_pressure() {
        super::invariants_2_and_6_back_pressure(&CLICKHOUSE, clickhouse_kind::hold);
    }
}

/// With a broker of its own for each test.
mod kafka {
    use super::*;

    #[test]
    fn absent_at_start() {
        super::absent_at_start(&KAFKA, kinds::no_broker);
    }

    #[test]
    fn invariant_2_broker_killed() {
        broken_for_a_while(&KAFKA_TRANSACTIONS, kinds::kill_broker, None);
    }

    #[test]
    fn invariant_2_slow() {
        slow(&KAFKA, kinds::hold_broker);
    }

    #[test]
    fn invariant_4_killed_and_restarted() {
        killed_and_restarted(&KAFKA);
    }

    #[test]
    fn invariant_8_drains() {
        super::invariant_8_drains(&KAFKA);
    }

    #[test]
    fn invariant_8_stops_in_time() {
        super::invariant_8_stops_in_time(&KAFKA, kinds::hold_broker);
    }

    #[test]
    fn invariant_8_stops_in_time_in_a_transaction() {
        super::invariant_8_stops_in_time(&KAFKA_TRANSACTIONS, kinds::hold_broker);
    }

    #[test]
    fn invariants_2_and_6_back_pressure() {
        super::invariants_2_and_6_back_pressure(&KAFKA, kinds::hold_broker);
    }
}

mod blackhole {
    use super::*;

    #[test]
    fn killed_and_restarted() {
        super::killed_and_restarted(&BLACKHOLE);
    }

    #[test]
    fn invariant_8_drains() {
        super::invariant_8_drains(&BLACKHOLE);
    }
}

mod local {
    use super::*;

    #[test]
    fn killed_and_restarted() {
        super::killed_and_restarted(&LOCAL);
    }

    #[test]
    fn invariant_8_drains() {
        super::invariant_8_drains(&LOCAL);
    }
}
