//! The source `kafka` and a real broker: the events of a topic are stored as if they came off the
//! bus. The workers come, go and are killed, and no event is left out.
//!
//! Tests of an invariant of the architecture have its number in their names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use rusqlite::Connection;
use saltern::event::Event;
use saltern::source::framing::{Frame, Framer};
use serde_json::Value;

use crate::harness::daemon::{Daemon, SALTERN, wait_for};
use crate::harness::kafka::Kafka;
use crate::harness::server::LIMIT;

/// A connection to write to topics with.
struct Writer {
    producer: BaseProducer,
    topic: String,
}

/// The form of a message's value.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Json,
    Msgpack,
}

impl Writer {
    fn new(brokers: &str, topic: &str) -> Self {
        Writer::with(brokers, topic, &[])
    }

    fn with(brokers: &str, topic: &str, settings: &[(&str, &str)]) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("reconnect.backoff.max.ms", "500");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        Writer { producer: config.create().unwrap(), topic: topic.to_owned() }
    }

    fn put(&self, key: &str, value: &[u8], headers: OwnedHeaders) {
        let record = BaseRecord::to(&self.topic).key(key).payload(value).headers(headers);
        assert!(self.producer.send(record).is_ok(), "the producer's queue is full");
    }

    /// Sends an event as the sink writes it.
    fn event(&self, event: &Event, value: Form, master: &str) {
        let id = event.id().to_string();
        let headers = [("tag", event.tag()), ("master", master), ("event_id", &id)];
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        self.put(event.tag(), &value_of(event, value), headers);
    }

    /// Events of these numbers: tag `n/NUMBER`.
    fn numbers(&self, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            self.event(&numbered(number), Form::Json, "master-1");
        }
        self.flush();
    }

    fn flush(&self) {
        self.producer.flush(LIMIT).unwrap();
    }
}

fn numbered(number: u32) -> Event {
    let data = serde_json::json!({"n": number, "pad": "x".repeat(200)});
    Event::new(&format!("n/{number}"), &rmp_serde::to_vec(&data).unwrap())
}

fn value_of(event: &Event, value: Form) -> Vec<u8> {
    let mut bytes = Vec::new();
    match value {
        Form::Json => {
            bytes.extend_from_slice(b"{\"tag\": ");
            bytes.extend(serde_json::to_vec(event.tag()).unwrap());
            bytes.extend_from_slice(b", \"data\": ");
            event.write_json(&mut bytes);
            bytes.push(b'}');
        }
        Form::Msgpack => {
            bytes.extend_from_slice(b"\x82\xa3tag");
            rmp_serde::encode::write(&mut bytes, event.tag()).unwrap();
            bytes.extend_from_slice(b"\xa4data");
            bytes.extend_from_slice(event.payload());
        }
    }
    bytes
}

/// The section `sources` of a worker, quick to notice that another is gone.
fn source(brokers: &str, topic: &str) -> String {
    let brokers = brokers.replace(',', "', '");
    format!(
        "sources:\n  topic:\n    kafka:\n      brokers: ['{brokers}']\n      topics: [{topic}]\n\
         \x20     group: {topic}-workers\n      properties: {{session.timeout.ms: 6000, \
         heartbeat.interval.ms: 500}}\n"
    )
}

/// A sink that keeps event ids.
fn store(folder: &Path, options: &str) -> String {
    format!(
        "sinks:\n  store:\n    sqlite3: {{database: '{}', timeout: 100ms}}\n\
         \x20   batch: {{linger: 20ms}}\n    retry: {{initial: 20ms, max: 200ms}}\n    {options}\n",
        database(folder).display()
    )
}

fn database(folder: &Path) -> PathBuf {
    folder.join("salt.db")
}

/// A store that nobody can write to until this is dropped.
fn locked(folder: &Path) -> Connection {
    let lock = Connection::open(database(folder)).unwrap();
    lock.busy_timeout(LIMIT).unwrap();
    lock.pragma_update(None, "journal_mode", "WAL").unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    lock
}

/// Events that a worker has read.
fn read(worker: &mut Daemon) -> f64 {
    worker.metric("saltern_source_events_total", &[])
}

/// Tags and ids in a store, by id.
fn stored(folder: &Path) -> BTreeMap<String, String> {
    let look = || {
        let connection = Connection::open(database(folder))?;
        connection.busy_timeout(LIMIT)?;
        let mut query = connection.prepare("SELECT event_id, tag FROM salt_events")?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<rusqlite::Result<BTreeMap<_, _>>>()
    };
    match database(folder).exists() {
        // Before the daemon has made the tables there are none.
        true => look().unwrap_or_default(),
        false => BTreeMap::new(),
    }
}

fn expected(numbers: impl IntoIterator<Item = u32>) -> BTreeMap<String, String> {
    let event = |number| {
        let event = numbered(number);
        (event.id().to_string(), event.tag().to_owned())
    };
    numbers.into_iter().map(event).collect()
}

fn wait_stored(folders: &[&Path], expected: &BTreeMap<String, String>) {
    let mut found = BTreeMap::new();
    let begin = Instant::now();
    while found != *expected {
        let late = begin.elapsed() > LIMIT;
        assert!(!late, "{} of {} events are stored", found.len(), expected.len());
        pause(Duration::from_millis(50));
        found = folders.iter().flat_map(|folder| stored(folder)).collect();
    }
}

#[allow(clippy::disallowed_methods)] // between looks, and to let time pass
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// The offsets that the workers of a topic have committed, partition by partition; `None` for
/// nothing.
fn committed(brokers: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
    let client: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", format!("{topic}-workers"))
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition(topic, partition);
    }
    let offsets = client.committed_offsets(list, LIMIT).unwrap();
    let offset = |element: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element
        .offset()
    {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    };
    offsets.elements().into_iter().map(offset).collect()
}

/// Behind the last message of each partition.
fn ends(brokers: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let end = |partition| {
        let (_, end) = client.fetch_watermarks(topic, partition, LIMIT).unwrap();
        (end > 0).then_some(end)
    };
    (0..partitions).map(end).collect()
}

/// The events of a recorded bus.
fn recorded(name: &str) -> Vec<Event> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures").join(name);
    let mut buffer = BytesMut::from(&std::fs::read(path).unwrap()[..]);
    let mut framer = Framer::new(1 << 20);
    let mut events = Vec::new();
    while let Some(frame) = framer.next(&mut buffer).unwrap() {
        if let Frame::Body(body) = frame {
            events.push(Event::parse(Bytes::copy_from_slice(&body)).unwrap());
        }
    }
    events
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A recorded bus goes through a topic, written by a collector or by a producer without headers.
/// The worker stores the same as a daemon that reads the recording itself.
fn comes_as_off_the_bus(value: Form, has_headers: bool) {
    let kafka = Kafka::shared();
    let topic = format!("parity-{value:?}-{has_headers}").to_lowercase();
    kafka.create(&topic, 1, &[]);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let sinks = |folder: &Path| {
        let file = folder.join("events");
        store(folder, "")
            + &format!("  archive: {{rawfile_json: {{filename: '{}'}}}}\n", file.display())
    };
    let recording = "salt-3008.3.bus";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures").join(recording);
    let direct = folder.join("direct");
    std::fs::create_dir(&direct).unwrap();
    let replay = format!("sources:\n  bus: {{replay: {{path: '{}'}}}}\n", path.display());
    assert!(Daemon::start(&direct, &(replay + &sinks(&direct))).ended().success());

    let events = recorded(recording);
    if has_headers {
        let collector = folder.join("collector");
        std::fs::create_dir(&collector).unwrap();
        let sections = format!(
            "sources:\n  bus: {{replay: {{path: '{}'}}, master_id: master-7}}\nsinks:\n  topic:\n\
             \x20   kafka: {{brokers: ['{}'], topic: {topic}, value: {}}}\n",
            path.display(),
            kafka.brokers(),
            format!("{value:?}").to_lowercase()
        );
        let collector = Daemon::start(&collector, &sections);
        assert!(collector.ended().success(), "{}", collector.log());
    } else {
        let writer = Writer::new(&kafka.brokers(), &topic);
        for event in &events {
            writer.put("", &value_of(event, value), OwnedHeaders::new());
        }
        writer.flush();
    }
    let through = folder.join("through");
    std::fs::create_dir(&through).unwrap();
    let worker = Daemon::start(&through, &(source(&kafka.brokers(), &topic) + &sinks(&through)));
    worker.wait_stored("archive", events.len() as u64);
    worker.wait_stored("store", events.len() as u64);
    worker.stop();

    assert_eq!(lines(&through.join("events")), lines(&direct.join("events")));
    if has_headers || value == Form::Msgpack {
        assert_eq!(stored(&through), stored(&direct));
    }
    let connection = Connection::open(database(&through)).unwrap();
    let sql = "SELECT DISTINCT master_id FROM salt_events";
    let master: String = connection.query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(master, if has_headers { "master-7" } else { "master-1" });
    assert_eq!(committed(&kafka.brokers(), &topic, 1), ends(&kafka.brokers(), &topic, 1));
}

#[test]
fn json_of_a_collector_comes_as_off_the_bus() {
    comes_as_off_the_bus(Form::Json, true);
}

#[test]
fn msgpack_of_a_collector_comes_as_off_the_bus() {
    comes_as_off_the_bus(Form::Msgpack, true);
}

#[test]
fn values_are_enough_without_headers() {
    comes_as_off_the_bus(Form::Json, false);
    comes_as_off_the_bus(Form::Msgpack, false);
}

/// Two workers share a topic. One is killed while both store, and comes back after the other has
/// taken its partitions over. The stored events, by id, are those that were written.
#[test]
fn invariant_3_a_worker_that_is_killed_leaves_nothing_out() {
    let kafka = Kafka::shared();
    let (topic, brokers) = ("killed-worker", kafka.brokers());
    kafka.create(topic, 4, &[]);
    let writer = Writer::new(&brokers, topic);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let folders: Vec<&Path> = folders.iter().map(tempfile::TempDir::path).collect();
    // The workers have no disk of their own: unstored events are Kafka's still.
    let config = |folder: &Path| source(&brokers, topic) + &store(folder, "spill: {mode: memory}");
    let mut first = Daemon::start(folders[0], &config(folders[0]));
    let second = Daemon::start(folders[1], &config(folders[1]));
    let mut written = 0;
    // Both have a part once both store something.
    wait_for("both workers at work", || {
        writer.numbers(written..written + 50);
        written += 50;
        folders.iter().all(|folder| !stored(folder).is_empty()).then_some(())
    });
    // The first reads and cannot store when it is killed.
    let lock = locked(folders[0]);
    let before = read(&mut first);
    writer.numbers(written..written + 2000);
    written += 2000;
    wait_for("the first to be in the middle", || (read(&mut first) > before).then_some(()));
    first.signal("KILL");
    assert!(!first.ended().success());
    drop(lock);
    writer.numbers(written..written + 500);
    written += 500;
    wait_stored(&folders, &expected(0..written));
    let first = Daemon::start(folders[0], &config(folders[0]));
    let before = stored(folders[0]).len();
    wait_for("the first to have a part again", || {
        writer.numbers(written..written + 50);
        written += 50;
        (stored(folders[0]).len() > before).then_some(())
    });
    wait_stored(&folders, &expected(0..written));
    first.stop();
    second.stop();
    assert_eq!(committed(&brokers, topic, 4), ends(&brokers, topic, 4));
}

/// Workers come and go while events flow.
#[test]
fn a_rebalance_leaves_nothing_out() {
    let kafka = Kafka::shared();
    let (topic, brokers) = ("rebalance", kafka.brokers());
    kafka.create(topic, 3, &[]);
    let writer = Writer::new(&brokers, topic);
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let folders: Vec<&Path> = folders.iter().map(tempfile::TempDir::path).collect();
    let mut written = 0;
    let mut workers: Vec<Daemon> = Vec::new();
    for folder in &folders {
        workers.push(Daemon::start(folder, &(source(&brokers, topic) + &store(folder, ""))));
        wait_for("the newcomer's part", || {
            writer.numbers(written..written + 100);
            written += 100;
            (!stored(folder).is_empty()).then_some(())
        });
    }
    for worker in workers {
        worker.stop();
        writer.numbers(written..written + 100);
        written += 100;
    }
    // The last batch came when nobody was there.
    let last = Daemon::start(folders[0], &(source(&brokers, topic) + &store(folders[0], "")));
    wait_stored(&folders, &expected(0..written));
    last.stop();
    assert_eq!(committed(&brokers, topic, 3), ends(&brokers, topic, 3));
}

/// A topic that fills librdkafka's queue several times over is stored once each, and librdkafka
/// itself tells how long a partition waits that found its queue full.
#[test]
fn a_topic_longer_than_the_queue_is_stored_once() {
    let kafka = Kafka::shared();
    let (topic, brokers) = ("longer-than-the-queue", kafka.brokers());
    kafka.create(topic, 4, &[]);
    let writer = Writer::new(&brokers, topic);
    let pad = "x".repeat(8 << 10);
    let count: u32 = 6000;
    for number in 0..count {
        let data = rmp_serde::to_vec(&serde_json::json!({"n": number, "pad": pad})).unwrap();
        let event = Event::new(&format!("n/{number}"), &data);
        writer.event(&event, Form::Msgpack, "master-1");
    }
    writer.flush();
    for (properties, backoff) in [("", "10"), (", fetch.queue.backoff.ms: 25", "25")] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (config, file) = (folder.join("saltern.yaml"), folder.join("events"));
        let sections = format!(
            "state_dir: {}\nhttp: {{listen: '127.0.0.1:0'}}\nlog: {{format: json, level: debug}}\n\
             sources:\n  topic:\n    kafka:\n      brokers: ['{brokers}']\n      topics: [{topic}]\n\
             \x20     group: waits-{backoff}\n      properties: {{debug: conf{properties}}}\n\
             sinks:\n  file:\n    rawfile_json: {{filename: '{}'}}\n\
             \x20   spill: {{mode: memory, when_full: block}}\n",
            folder.join("state").display(),
            file.display()
        );
        std::fs::write(&config, sections).unwrap();
        let worker = Daemon::listening(&config);
        worker.wait_stored("file", count.into());
        let told = format!("fetch.queue.backoff.ms = {backoff}\"");
        assert!(worker.log().contains(&told), "{}", worker.log());
        worker.stop();
        let number = |line: &Value| line["data"]["n"].as_u64();
        let mut numbers: Vec<_> = lines(&file).iter().filter_map(number).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..u64::from(count)));
    }
}

#[test]
fn what_a_transaction_took_back_is_not_read() {
    let kafka = Kafka::shared();
    let (topic, brokers) = ("transactions", kafka.brokers());
    kafka.create(topic, 1, &[]);
    let writer = Writer::with(&brokers, topic, &[("transactional.id", "transactions")]);
    writer.producer.init_transactions(LIMIT).unwrap();
    for (numbers, is_kept) in [(0..10, true), (10..20, false), (20..30, true)] {
        writer.producer.begin_transaction().unwrap();
        writer.numbers(numbers);
        match is_kept {
            true => writer.producer.commit_transaction(LIMIT).unwrap(),
            false => writer.producer.abort_transaction(LIMIT).unwrap(),
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let worker = Daemon::start(folder, &(source(&brokers, topic) + &store(folder, "")));
    wait_stored(&[folder], &expected((0..10).chain(20..30)));
    worker.stop();
    assert_eq!(stored(folder), expected((0..10).chain(20..30)));
}

#[test]
fn a_broker_that_comes_back_is_read_on() {
    let mut kafka = Kafka::started(1);
    let (topic, brokers) = ("restarted", kafka.brokers());
    kafka.create(topic, 2, &[]);
    let writer = Writer::new(&brokers, topic);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut worker = Daemon::start(folder, &(source(&brokers, topic) + &store(folder, "")));
    writer.numbers(0..100);
    wait_stored(&[folder], &expected(0..100));
    let is_connected = |worker: &mut Daemon| worker.metric("saltern_source_connected", &[]) > 0.5;
    wait_for("the connection", || is_connected(&mut worker).then_some(()));
    kafka.kill(0);
    wait_for("the loss to be seen", || (!is_connected(&mut worker)).then_some(()));
    kafka.start();
    writer.numbers(100..200);
    wait_stored(&[folder], &expected(0..200));
    wait_for("the connection again", || is_connected(&mut worker).then_some(()));
    assert!(worker.metric("saltern_source_gaps_total", &[]) >= 1.0);
    // A stop does not wait for a broker that is gone.
    kafka.kill(0);
    wait_for("the loss to be seen", || (!is_connected(&mut worker)).then_some(()));
    worker.stop();
}

/// With nothing on disk an event is safe when it is stored: as long as the store is stuck nothing
/// is committed, and a kill loses nothing.
#[test]
fn invariant_3_a_kill_loses_nothing_that_was_in_memory_alone() {
    killed_with_a_stuck_store("stuck-memory", "spill: {mode: memory}", &[None]);
}

/// With a spill on disk events are safe there, and a kill loses nothing either.
#[test]
fn invariant_3_a_kill_loses_nothing_that_was_committed() {
    killed_with_a_stuck_store("stuck-durable", "spill: {mode: durable}", &[Some(100)]);
}

fn killed_with_a_stuck_store(topic: &str, spill: &str, committed_then: &[Option<i64>]) {
    let kafka = Kafka::shared();
    let brokers = kafka.brokers();
    kafka.create(topic, 1, &[]);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let lock = locked(folder);
    let config = source(&brokers, topic) + &store(folder, spill);
    let mut worker = Daemon::start(folder, &config);
    Writer::new(&brokers, topic).numbers(0..100);
    wait_for("all events to be read", || (read(&mut worker) > 99.5).then_some(()));
    if committed_then == [None] {
        // Long enough for a commit that must not be.
        pause(Duration::from_millis(2500));
    } else {
        wait_for("the commit", || (committed(&brokers, topic, 1) == committed_then).then_some(()));
    }
    worker.signal("KILL");
    worker.ended();
    assert_eq!(committed(&brokers, topic, 1), committed_then);
    drop(lock);
    let worker = Daemon::start(folder, &config);
    wait_stored(&[folder], &expected(0..100));
    worker.stop();
    assert_eq!(committed(&brokers, topic, 1), [Some(100)]);
}

/// Events in flight and those behind the commits can be seen while the store is stuck.
#[test]
fn what_is_behind_can_be_seen() {
    let kafka = Kafka::shared();
    let (topic, brokers) = ("behind", kafka.brokers());
    kafka.create(topic, 2, &[]);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let lock = locked(folder);
    let source = source(&brokers, topic)
        .replace("properties: {", "properties: {statistics.interval.ms: 200, ");
    let mut worker = Daemon::start(folder, &(source + &store(folder, "spill: {mode: memory}")));
    let wait = |worker: &mut Daemon, what: &str, expected: f64| {
        let name = format!("saltern_source_kafka_{what}");
        wait_for(&format!("{what} {expected}"), || {
            ((worker.metric(&name, &["topic"]) - expected).abs() < 0.5).then_some(())
        });
    };
    let writer = Writer::new(&brokers, topic);
    writer.numbers(0..1000);
    wait_for("events to be in flight", || {
        (worker.metric("saltern_source_kafka_in_flight_bytes", &[]) > 200_000.0).then_some(())
    });
    wait(&mut worker, "partitions", 2.0);
    drop(lock);
    wait_stored(&[folder], &expected(0..1000));
    wait(&mut worker, "in_flight_bytes", 0.0);
    wait_for("the commit", || {
        let committed = committed(&brokers, topic, 2).into_iter().flatten().sum::<i64>();
        (committed == 1000).then_some(())
    });
    let lock = locked(folder);
    writer.numbers(1000..1150);
    wait(&mut worker, "lag_messages", 150.0);
    drop(lock);
    wait(&mut worker, "lag_messages", 0.0);
    worker.stop();
}

/// Events that a full queue has no room for wait, and Kafka keeps them: nothing is dropped.
#[test]
fn invariant_3_a_full_queue_holds_kafka_back_and_drops_nothing() {
    let kafka = Kafka::shared();
    let (topic, brokers) = ("full-queue", kafka.brokers());
    kafka.create(topic, 2, &[]);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let lock = locked(folder);
    let spill = "spill: {mode: memory, memory: 256KiB, when_full: drop_newest}";
    let worker = Daemon::start(folder, &(source(&brokers, topic) + &store(folder, spill)));
    let writer = Writer::new(&brokers, topic);
    for first in (0..3000).step_by(100) {
        writer.numbers(first..first + 100);
    }
    wait_for("the queue to hold something back", || {
        (worker.metric("saltern_sink_held_back_events", &["store"]) > 0.5).then_some(())
    });
    drop(lock);
    wait_stored(&[folder], &expected(0..3000));
    assert!(worker.metric("saltern_sink_dropped_events_total", &["store"]) < 0.5);
    worker.stop();
}

/// A message that is no event is counted and passed over. The events around it are stored, and its
/// offset is committed like theirs.
#[test]
fn invariant_7_messages_that_are_no_events_are_passed_over() {
    let kafka = Kafka::shared();
    let (topic, brokers) = ("poisoned", kafka.brokers());
    kafka.create(topic, 1, &[]);
    let writer = Writer::new(&brokers, topic);
    writer.numbers(0..10);
    let deep = [&b"{\"tag\": \"t\", \"data\": "[..], &b"[".repeat(50_000)].concat();
    let bad: [&[u8]; 7] =
        [b"", b"{}", b"{\"data\": 1}", b"\x82\xa3tag\xa1t", b"\xc1", b"plain text", &deep];
    for value in bad {
        writer.put("bad", value, OwnedHeaders::new());
    }
    // Headers that say nothing.
    let odd = OwnedHeaders::new()
        .insert(Header { key: "event_id", value: Some("not hex") })
        .insert(Header { key: "master", value: Some(&[0xff, 0xfe][..]) })
        .insert(Header { key: "master", value: None::<&[u8]> });
    writer.put("odd", &value_of(&numbered(10), Form::Msgpack), odd);
    writer.numbers(11..20);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let worker = Daemon::start(folder, &(source(&brokers, topic) + &store(folder, "")));
    wait_stored(&[folder], &expected(0..20));
    wait_for("the bad messages to be counted", || {
        let bad = worker.metric("saltern_source_bad_frames_total", &[]);
        (bad > 6.5).then_some(())
    });
    let warnings = worker.log().matches("is no event").count();
    assert_eq!(warnings, 1, "{}", worker.log());
    worker.stop();
    assert_eq!(committed(&brokers, topic, 1), ends(&brokers, topic, 1));
}

#[test]
fn check_says_whether_the_topic_is_there() {
    let kafka = Kafka::shared();
    kafka.create("there", 1, &[]);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let check = |brokers: &str, topic: &str| {
        let config = folder.join("check.yaml");
        let sections = source(brokers, topic) + &store(folder, "");
        std::fs::write(&config, format!("state_dir: {}\n{sections}", folder.display())).unwrap();
        let mut command = Command::new(SALTERN);
        let output = command.args(["check", "--connect", "--config"]).arg(config).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let brokers = kafka.brokers();
    assert!(check(&brokers, "there").contains("ok      source topic"));
    let told = check(&brokers, "missing");
    assert!(told.contains("failed  source topic") && told.contains("no such topic"), "{told}");
    let told = check("127.0.0.1:1", "there");
    assert!(told.contains("127.0.0.1:1") && told.contains("brokers"), "{told}");
}
