//! The sink `kafka` and real brokers: the topics and the reported errors after brokers, networks
//! and saltern itself have failed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rmpv::Value;
use tempfile::TempDir;

use crate::harness::bus::{Bus, msgpack, tag};
use crate::harness::daemon::{Daemon, wait_for};
use crate::harness::kafka::{ADMIN, Isolation, Kafka, Message, NOBODY};
use crate::harness::proxy::{Proxy, Way};

/// Bytes of an event's text.
const SIZE: usize = 300;

/// librdkafka gives a message up soon, so that a batch comes again while a test waits.
const IMPATIENT: &str = "properties: {message.timeout.ms: 3000, socket.timeout.ms: 2000}";

/// A bus, and a daemon that reads it into Kafka.
struct Setup {
    /// Before the folder, which holds its log.
    daemon: Option<Daemon>,
    bus: Bus,
    name: &'static str,
    sections: String,
    folder: TempDir,
}

impl Setup {
    /// Starts a daemon with these settings of the sink of this name. Brokers know writers of
    /// transactions by that name.
    fn start(name: &'static str, settings: &str) -> Self {
        Setup::start_with_linger("10ms", name, settings)
    }

    /// The same; a batch that is not full waits for so long.
    fn start_with_linger(linger: &str, name: &'static str, settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bus = Bus::listen(folder.path());
        let sections = format!(
            "{}sinks:\n  {name}:\n    kafka: {{{settings}}}\n    retry: {{initial: 20ms, max: 200ms}}\n    \
             batch: {{linger: {linger}, max_events: 50}}\n",
            bus.source()
        );
        let daemon = Some(Daemon::start(folder.path(), &sections));
        Setup { daemon, bus, name, sections, folder }
    }

    fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().unwrap()
    }

    fn wait_stored(&mut self, count: u64) {
        let name = self.name;
        self.daemon().wait_stored(name, count);
    }

    /// Waits until the sink has stored at least so many, which may grow on.
    fn wait_stored_some(&mut self, count: u64) {
        let name = self.name;
        let daemon = self.daemon();
        wait_for("some events", || (daemon.stored(name) >= count).then_some(()));
    }

    /// Waits until something was tried again.
    fn wait_failing(&mut self) {
        let daemon = self.daemon();
        let failures = || daemon.metric("saltern_sink_retries_total", &[]);
        let before = failures();
        wait_for("a try that fails", || (failures() > before).then_some(()));
    }

    fn wait_log(&mut self, words: &str) -> String {
        let daemon = self.daemon();
        let find = || daemon.log().lines().find(|line| line.contains(words)).map(str::to_owned);
        wait_for(&format!("`{words}` in the log"), find)
    }

    /// Events that the daemon has taken since it runs: stored, or on disk. Never more than there
    /// are.
    fn on_disk(&mut self) -> u64 {
        let name = self.name;
        let stored = self.daemon().stored(name);
        stored + self.daemon().count("saltern_sink_queue_events", &[])
    }

    /// `kill -9` and the same again, with its files.
    fn kill_and_restart(&mut self) {
        let daemon = self.daemon.take().unwrap();
        daemon.signal("KILL");
        daemon.ended();
        self.bus.hang_up();
        self.daemon = Some(Daemon::start(self.folder.path(), &self.sections));
    }

    /// Waits until the sink is up and has nothing left to store.
    fn wait_empty(&mut self) {
        let daemon = self.daemon();
        wait_for("an empty queue", || {
            let queue = daemon.metric("saltern_sink_queue_events", &[]);
            (daemon.metric("saltern_sink_up", &[]) > 0.5 && queue < 0.5).then_some(())
        });
    }

    /// Sends so many events while the sink cannot store them, and waits until they are on disk.
    fn send_held(&mut self, numbers: std::ops::Range<u64>) {
        // One look may fall between the two numbers that it adds.
        let before = (0..3).map(|_| self.on_disk()).max().unwrap();
        let count = numbers.end - numbers.start;
        self.bus.send(numbers, SIZE);
        wait_for("the events", || (self.on_disk() >= before + count).then_some(()));
    }

    fn stop(mut self) {
        self.daemon.take().unwrap().stop();
    }

    /// Stops it, and the same again, with its files.
    fn stop_and_restart(&mut self) {
        self.daemon.take().unwrap().stop();
        self.bus.hang_up();
        self.daemon = Some(Daemon::start(self.folder.path(), &self.sections));
    }

    /// Stops a daemon with a parked sink, so its exit code is not 0.
    fn stop_parked(mut self) {
        self.daemon().signal("TERM");
        assert_eq!(self.daemon().ended().code(), Some(1));
    }
}

/// Brokers and topic as the sink's settings.
fn to(brokers: &str, topic: &str) -> String {
    format!("brokers: [\"{}\"], topic: {topic}", brokers.replace(',', "\", \""))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The number of copies of each event in the topic, by its id; every id belongs to one tag.
fn counts(messages: &[Message]) -> BTreeMap<String, usize> {
    let mut tags = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for message in messages {
        let (id, tag) = (&message.headers["event_id"], &message.headers["tag"]);
        assert_eq!(tags.entry(id.clone()).or_insert_with(|| tag.clone()), tag);
        *counts.entry(tag.clone()).or_default() += 1;
    }
    assert_eq!(tags.len(), counts.len(), "an id for each event");
    counts
}

/// The last copies of events are in order in each partition.
fn assert_last_copies_in_order(messages: &[Message]) {
    let mut last = BTreeMap::new();
    for message in messages {
        let tag = message.headers["tag"].strip_prefix("test/").unwrap();
        last.insert((message.partition, tag.parse::<u64>().unwrap()), message.offset);
    }
    let offsets: Vec<_> = last.iter().collect();
    for pair in offsets.windows(2) {
        let [((partition, before), first), ((other, after), second)] = pair else { unreachable!() };
        let is_in_order = partition != other || first < second;
        assert!(
            is_in_order,
            "the last copy of {before} is at {first}, that of {after} at {second}"
        );
    }
}

/// The topic holds the events of these numbers: all of them, in a partition in order, and with
/// transactions each once.
fn assert_holds(kafka: &Kafka, topic: &str, count: u64, is_transactional: bool) {
    let committed = kafka.read(topic, Isolation::Committed);
    let found = counts(&committed);
    let expected: BTreeSet<_> = (0..count).map(tag).collect();
    assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), expected);
    if is_transactional {
        let twice: Vec<_> = found.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "more than once: {twice:?}");
        let tags: Vec<_> = committed.iter().map(|message| &message.headers["tag"]).collect();
        assert_eq!(tags, (0..count).map(tag).collect::<Vec<_>>().iter().collect::<Vec<_>>());
    }
    assert_last_copies_in_order(&committed);
    let uncommitted = kafka.read(topic, Isolation::Uncommitted);
    assert!(uncommitted.len() >= committed.len());
}

#[test]
fn events_become_messages() {
    let kafka = Kafka::shared();
    let mut setup = Setup::start("plain", &(to(&kafka.brokers(), "json") + ", partitions: 3"));
    setup.bus.send(0..1, 5);
    for minion in ["web-1", "web-2", "web-1"] {
        let data = Value::Map(vec![("id".into(), minion.into())]);
        let mut payload = Vec::new();
        rmpv::encode::write_value(&mut payload, &data).unwrap();
        setup.bus.send_event(&format!("salt/job/20261121233336123456/ret/{minion}"), &payload);
    }
    setup.wait_stored(4);
    setup.stop();
    let messages = kafka.read("json", Isolation::Committed);
    let first = messages.iter().find(|message| message.headers["tag"] == "test/0").unwrap();
    assert_eq!(
        String::from_utf8_lossy(&first.value),
        r#"{"tag": "test/0", "data": {"n": 0, "text": "xxxxx", "_stamp": "2026-11-21T23:38:10.518437"}}"#
    );
    let headers: Vec<_> = ["kind", "master", "stamp"].map(|name| &*first.headers[name]).into();
    assert_eq!(headers, ["custom", "master-1", "2026-11-21T23:38:10.518437"]);
    assert_eq!(first.headers["event_id"].len(), 32);
    assert_eq!((first.key.as_deref(), first.headers.len()), (None, 5));
    assert!(first.timestamp > 1_700_000_000_000);
    let of_web_1: Vec<_> =
        messages.iter().filter(|message| message.key.as_deref() == Some("web-1")).collect();
    assert_eq!(of_web_1.len(), 2);
    assert_eq!(of_web_1[0].partition, of_web_1[1].partition);
}

/// The events of masters' buses, with Salt's own word on them.
#[test]
fn a_header_of_each_return_says_how_it_went() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/outcomes");
    let mut expected = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with("salt-") {
            continue;
        }
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let outcome = line["outcome"].as_str().map(str::to_owned);
            expected.insert((line["tag"].to_string(), line["data"].to_string()), outcome);
        }
    }
    let kafka = Kafka::shared();
    let mut setup = Setup::start("outcomes", &to(&kafka.brokers(), "outcomes"));
    for (tag, data) in expected.keys() {
        let text = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        let payload = rmp_serde::to_vec(&text(data)).unwrap();
        setup.bus.send_event(text(tag).as_str().unwrap(), &payload);
    }
    setup.wait_stored(u64::try_from(expected.len()).unwrap());
    setup.stop();
    let mut returns = 0;
    for message in kafka.read("outcomes", Isolation::Committed) {
        let event: serde_json::Value = serde_json::from_slice(&message.value).unwrap();
        let outcome = &expected[&(event["tag"].to_string(), event["data"].to_string())];
        assert_eq!(message.headers.get("outcome"), outcome.as_ref(), "{event}");
        returns += usize::from(outcome.is_some());
    }
    assert_eq!(returns, expected.values().flatten().count());
}

#[test]
fn topics_by_kind_and_the_other_values() {
    let kafka = Kafka::shared();
    let payload = b"\x81\xa2id\xa3w-1";
    for value in ["msgpack", "salt_returner"] {
        let topic = format!("'{value}-{{kind}}'");
        let settings = to(&kafka.brokers(), &topic)
            + &format!(", value: {value}, key: jid, compression: zstd");
        let mut setup = Setup::start("kinds", &settings);
        setup.bus.send(0..1, 5);
        setup.bus.send_event("salt/job/20261121233336123456/ret/w-1", payload);
        setup.wait_stored(2);
        setup.stop();
        let returns = kafka.read(&format!("{value}-job_return"), Isolation::Committed);
        assert_eq!(returns.len(), 1);
        assert_eq!(returns[0].key.as_deref(), Some("20261121233336123456"));
        if value == "salt_returner" {
            assert_eq!(returns[0].value, br#"{"id": "w-1"}"#);
            continue;
        }
        assert_eq!(returns[0].value[returns[0].value.len() - payload.len()..], payload[..]);
        assert_eq!(kafka.read("msgpack-custom", Isolation::Committed).len(), 1);
    }
}

/// Large, odd and deep payloads are stored or become dead letters, and the next event is stored.
fn odd_payloads(topic: &'static str, more: &str) {
    let kafka = Kafka::shared();
    kafka.create(topic, 1, &[]);
    let mut setup = Setup::start(topic, &(to(&kafka.brokers(), topic) + more));
    let mut noise = 7_u64;
    let mut random = |_| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b' ' + u8::try_from(noise >> 33 & 63).unwrap())
    };
    let text = |text: String| {
        let mut payload = Vec::new();
        rmpv::encode::write_value(&mut payload, &Value::from(text)).unwrap();
        payload
    };
    let payloads = [
        ("small", text("x".into())),
        ("2 MiB, smaller when compressed", text("x".repeat(2 << 20))),
        ("2 MiB of noise", text((0..2 << 20).map(&mut random).collect())),
        ("not UTF-8", b"\xa3\xff\xfe\x00".to_vec()),
        ("U+0000", text("a\0b".into())),
        ("deep", [vec![0x91; 5000], vec![0xc0]].concat()),
        ("broken off", b"\x82\xa1a\x01".to_vec()),
        ("40 MiB", text("x".repeat(40 << 20))),
        ("last", text("x".into())),
    ];
    for (name, payload) in &payloads {
        setup.bus.send_event(name, payload);
    }
    let refused = ["2 MiB of noise", "40 MiB"];
    setup.wait_stored(u64::try_from(payloads.len() - refused.len()).unwrap());
    let daemon = setup.daemon();
    wait_for("dead letters", || {
        let count = daemon.metric("saltern_sink_rejected_events_total", &[]);
        (count > 1.5).then_some(())
    });
    setup.stop();
    let committed = counts(&kafka.read(topic, Isolation::Committed));
    let expected: BTreeSet<_> =
        payloads.iter().map(|(name, _)| *name).filter(|name| !refused.contains(name)).collect();
    assert_eq!(committed.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    // A batch that was under way behind a refused message comes again.
    let is_once = committed.values().all(|count| *count == 1);
    assert!(is_once || !more.contains("transactional"), "{committed:?}");
}

#[test]
fn odd_payloads_are_stored_or_dead_letters() {
    odd_payloads("odd", "");
}

#[test]
fn odd_payloads_are_stored_or_dead_letters_in_transactions() {
    odd_payloads("odd-transactional", ", transactional: true");
}

/// A topic that takes less than a request of many events: each is sent alone, and none is refused.
#[test]
fn a_narrow_topic_takes_events_one_by_one() {
    let kafka = Kafka::shared();
    for more in ["", ", transactional: true"] {
        let topic = format!("narrow-{}", more.len());
        kafka.create(&topic, 1, &[("max.message.bytes", "2000")]);
        let settings = to(&kafka.brokers(), &topic) + ", compression: none";
        let mut setup = Setup::start("narrow", &(settings + more));
        setup.bus.send(0..20, 1000);
        setup.bus.send(20..21, 3000);
        setup.bus.send(21..30, 1000);
        setup.wait_stored(29);
        setup.stop();
        let found = counts(&kafka.read(&topic, Isolation::Committed));
        let expected: BTreeSet<_> = (0..30).filter(|number| *number != 20).map(tag).collect();
        assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), expected);
        let is_transactional = more.contains("transactional");
        assert!(found.values().all(|count| *count == 1) || !is_transactional);
        // Messages that were sent alone were taken back. Only a reader of committed messages knows
        // that.
        let all = kafka.read(&topic, Isolation::Uncommitted).len();
        assert_eq!(all > found.values().sum(), is_transactional, "{all} messages");
    }
}

#[test]
fn a_missing_topic_is_waited_for_if_it_may_not_be_created() {
    let kafka = Kafka::shared();
    let mut setup = Setup::start("later", &(to(&kafka.brokers(), "later") + ", create: false"));
    setup.bus.send(0..10, SIZE);
    setup.wait_log("there is no such topic: create it, or set `create: true`");
    kafka.create("later", 1, &[]);
    setup.wait_stored(10);
    setup.stop();
    assert_holds(kafka, "later", 10, true);
}

/// saltern is killed again and again in mid-work: a reader of committed messages sees each event
/// once.
#[test]
fn exactly_once_over_kill_9_in_transactions() {
    let kafka = Kafka::shared();
    kafka.create("killed", 1, &[]);
    let mut setup =
        Setup::start("killed", &(to(&kafka.brokers(), "killed") + ", transactional: true"));
    let mut sent = 0;
    for _ in 0..4 {
        let before = (0..3).map(|_| setup.on_disk()).max().unwrap();
        setup.bus.send(sent..sent + 1000, SIZE);
        sent += 1000;
        wait_for("the spill", || (setup.on_disk() >= before + 1000).then_some(()));
        setup.kill_and_restart();
    }
    let daemon = setup.daemon();
    wait_for("an empty queue", || {
        let queue = daemon.metric("saltern_sink_queue_events", &[]);
        (daemon.metric("saltern_sink_up", &[]) > 0.5 && queue < 0.5).then_some(())
    });
    setup.stop();
    assert_holds(kafka, "killed", sent, true);
}

/// Two daemons of one name: the brokers let one work, and the other says why it does not.
#[test]
fn a_second_saltern_of_the_same_name_ends_the_first() {
    let kafka = Kafka::shared();
    kafka.create("fenced", 1, &[]);
    let settings = to(&kafka.brokers(), "fenced") + ", transactional: true";
    let mut first = Setup::start("fenced", &settings);
    first.bus.send(0..10, SIZE);
    first.wait_stored(10);
    let mut second = Setup::start("fenced", &settings);
    second.bus.send(10..20, SIZE);
    second.wait_stored(10);
    first.bus.send(100..110, SIZE);
    let line = first.wait_log("the sink is parked");
    assert!(
        line.contains("another saltern uses the transactional id `saltern/master-1/fenced/0`"),
        "{line}"
    );
    second.bus.send(20..30, SIZE);
    second.wait_stored(20);
    first.stop_parked();
    second.stop();
    assert_holds(kafka, "fenced", 30, true);
}

/// The broker is killed and restarted in the middle, twice.
fn broker_killed(more: &str, is_transactional: bool) {
    let mut kafka = Kafka::started(1);
    kafka.create("t", 1, &[]);
    let mut setup = Setup::start("t", &(to(&kafka.brokers(), "t") + more));
    setup.bus.send(0..500, SIZE);
    setup.wait_stored_some(100);
    for round in 1..3 {
        kafka.kill(0);
        setup.bus.send(round * 500..round * 500 + 500, SIZE);
        kafka.run(0);
        setup.wait_stored(round * 500 + 500);
    }
    setup.stop();
    assert_holds(&kafka, "t", 1500, is_transactional);
}

#[test]
fn broker_killed_and_restarted() {
    broker_killed(&format!(", {IMPATIENT}"), false);
}

#[test]
fn broker_killed_and_restarted_in_transactions() {
    broker_killed(", transactional: true", true);
}

/// The leader of `topic`, one of three brokers, is killed while events come: another one leads.
fn leader_moved(topic: &str, more: &str, is_transactional: bool) {
    let mut kafka = Kafka::started(3);
    kafka.create("t", 1, &[("min.insync.replicas", "2")]);
    let mut setup = Setup::start("t", &(to(&kafka.brokers(), "t") + more));
    setup.bus.send(0..500, SIZE);
    setup.wait_stored_some(100);
    let leader = kafka.leader(topic, 0);
    kafka.kill(leader);
    setup.bus.send(500..1000, SIZE);
    setup.wait_stored(1000);
    assert_ne!(kafka.leader(topic, 0), leader);
    setup.stop();
    assert_holds(&kafka, "t", 1000, is_transactional);
}

#[test]
fn leader_moved_of_three_brokers() {
    leader_moved("t", "", false);
}

#[test]
fn leader_moved_of_three_brokers_in_transactions() {
    leader_moved("t", &format!(", transactional: true, {IMPATIENT}"), true);
}

/// The coordinator keeps the marks of committed batches. librdkafka may wait for ever for one that
/// has left. That must hold up no batch for longer than another producer needs.
#[test]
fn the_coordinator_of_the_marks_leaves_in_transactions() {
    leader_moved("__consumer_offsets", &format!(", transactional: true, {IMPATIENT}"), true);
}

/// The network between saltern and the broker breaks in each way, in the middle of a batch.
fn network_broken(more: &str, is_transactional: bool) {
    let mut kafka = Kafka::new(1);
    let proxy = Proxy::start(local(kafka.through(0)));
    kafka.advertise(0, proxy.address().port());
    kafka.start();
    kafka.create("t", 1, &[]);
    let mut setup = Setup::start("t", &(to(&proxy.address().to_string(), "t") + more));
    let mut sent = 0;
    let mut send = |setup: &mut Setup| {
        setup.bus.send(sent..sent + 200, SIZE);
        sent += 200;
        sent
    };
    let count = send(&mut setup);
    setup.wait_stored(count);
    // The break is in the middle of a request, and then of an answer.
    for (via, bytes) in [(Way::ToServer, 5000), (Way::ToClient, 100), (Way::ToServer, 20)] {
        proxy.reset_after(via, bytes);
        let count = send(&mut setup);
        setup.wait_stored(count);
    }
    // The reports get lost, and so do the messages.
    for dead in [Way::ToClient, Way::ToServer] {
        proxy.half_open(dead);
        let count = send(&mut setup);
        setup.wait_failing();
        proxy.heal();
        setup.wait_stored(count);
    }
    proxy.black_hole();
    send(&mut setup);
    setup.wait_failing();
    proxy.heal();
    proxy.delay(Duration::from_millis(100));
    let count = send(&mut setup);
    setup.wait_stored(count);
    proxy.heal();
    setup.stop();
    assert_holds(&kafka, "t", count, is_transactional);
}

#[test]
fn network_broken_in_mid_batch() {
    network_broken(&format!(", {IMPATIENT}"), false);
}

#[test]
fn network_broken_in_mid_batch_in_transactions() {
    network_broken(&format!(", transactional: true, {IMPATIENT}"), true);
}

#[test]
fn tls_and_passwords() {
    let mut kafka = Kafka::new(1).secured();
    kafka.start();
    kafka.create("t", 1, &[]);
    let certificate = kafka.certificate();
    let secure = |tls: &str, user: &str, password: &str, topic: &str| {
        let sasl = format!("sasl: {{mechanism: PLAIN, user: {user}, password: {password}}}");
        to(&local(kafka.secure(0)).to_string(), topic) + &format!(", {tls}, {sasl}")
    };
    let trusting = format!("tls: {{ca: '{}'}}", certificate.display());

    let mut setup = Setup::start("t", &secure(&trusting, ADMIN.0, ADMIN.1, "t"));
    setup.bus.send(0..10, SIZE);
    setup.wait_stored(10);
    setup.stop();
    assert_holds(&kafka, "t", 10, true);

    for (user, password, words) in [
        (ADMIN.0, "wrong", "look at `sasl` and at the user's password"),
        (NOBODY.0, NOBODY.1, "the brokers' access lists do not allow it to this user"),
    ] {
        let mut setup = Setup::start("t", &secure(&trusting, user, password, "t"));
        let line = setup.wait_log("the sink is parked");
        assert!(line.contains(words), "{line}");
        assert!(!setup.daemon().log().contains(password), "the password is in the log");
        setup.stop_parked();
    }

    // A broker whose certificate is not trusted may have a better one tomorrow.
    let mut setup = Setup::start("t", &secure("tls: {}", ADMIN.0, ADMIN.1, "t"));
    let line = setup.wait_log("the sink is down, trying again");
    assert!(line.contains("look at `tls`"), "{line}");
    setup.stop();
}

/// Sends numbered events of ten minions.
fn send_of_minions(bus: &mut Bus, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let data = Value::Map(vec![
            ("id".into(), format!("web-{}", number % 10).into()),
            ("text".into(), "x".repeat(SIZE).into()),
        ]);
        bus.send_event(&tag(number), &msgpack(&data));
    }
}

/// The brokers take two batches and their reports get lost, again and again: both come again, and
/// the last copies of each minion's events are in order.
#[test]
fn two_batches_in_flight_come_again_in_order() {
    let mut kafka = Kafka::new(1);
    let proxy = Proxy::start(local(kafka.through(0)));
    kafka.advertise(0, proxy.address().port());
    kafka.start();
    kafka.create("t", 3, &[]);
    let settings = to(&proxy.address().to_string(), "t") + &format!(", {IMPATIENT}");
    // All batches of a round are full.
    let mut setup = Setup::start_with_linger("2s", "t", &settings);
    send_of_minions(&mut setup.bus, 0..10);
    setup.wait_stored(10);
    let rounds = [10..510, 510..1010, 1010..1510];
    for round in rounds.clone() {
        proxy.half_open(Way::ToClient);
        send_of_minions(&mut setup.bus, round.clone());
        setup.wait_failing();
        proxy.heal();
        setup.wait_stored(round.end);
    }
    setup.stop();
    assert_holds(&kafka, "t", 1510, false);
    let messages = kafka.read("t", Isolation::Committed);
    let found = counts(&messages);
    // On a busy machine the second batch of a round may run out of time before it goes out.
    let twice = rounds.into_iter().flatten().filter(|number| found[&tag(*number)] > 1).count();
    assert!(twice > 150, "{twice} came again, which is no more than one batch a round");
    for key in (0..10).map(|minion| format!("web-{minion}")) {
        let of_key = messages.iter().filter(|message| message.key.as_deref() == Some(&key));
        assert_eq!(of_key.map(|message| message.partition).collect::<BTreeSet<_>>().len(), 1);
    }
}

/// A message is too large in the first, in the second, or in both of two batches in flight.
#[test]
fn a_message_is_refused_in_either_of_two_batches() {
    let kafka = Kafka::started(1);
    let noise = |length: u64| {
        let mut noise = length;
        let mut next = || {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b' ' + u8::try_from(noise >> 33 & 63).unwrap())
        };
        (0..length).map(|_| next()).collect::<String>()
    };
    for (topic, refused) in
        [("first", &[20][..]), ("second", &[70]), ("both", &[20, 70]), ("ends", &[49, 50])]
    {
        kafka.create(topic, 1, &[("max.message.bytes", "200000")]);
        let settings = to(&kafka.brokers(), topic) + &format!(", {IMPATIENT}");
        let mut setup = Setup::start("refused", &settings);
        setup.wait_log("the sink is up");
        // Several batches wait when the broker begins to take them.
        kafka.pause(0);
        for number in 0..300 {
            let text = if refused.contains(&number) { noise(300_000) } else { noise(300) };
            let data = Value::Map(vec![("text".into(), text.into())]);
            setup.bus.send_event(&tag(number), &msgpack(&data));
        }
        wait_for("the events", || (setup.on_disk() >= 300).then_some(()));
        kafka.resume(0);
        setup.wait_stored(300 - u64::try_from(refused.len()).unwrap());
        setup.stop();
        let found = counts(&kafka.read(topic, Isolation::Committed));
        let expected: BTreeSet<_> =
            (0..300).filter(|number| !refused.contains(number)).map(tag).collect();
        assert_eq!(found.into_keys().collect::<BTreeSet<_>>(), expected, "{topic}");
    }
}

/// saltern is killed while the broker is held, with two batches on their way.
#[test]
fn killed_with_two_batches_in_flight() {
    let kafka = Kafka::started(1);
    kafka.create("t", 1, &[]);
    let mut setup = Setup::start("t", &(to(&kafka.brokers(), "t") + &format!(", {IMPATIENT}")));
    setup.wait_log("the sink is up");
    for sent in [0, 500, 1000] {
        kafka.pause(0);
        setup.send_held(sent..sent + 500);
        setup.kill_and_restart();
        kafka.resume(0);
        setup.wait_empty();
    }
    setup.stop();
    assert_holds(&kafka, "t", 1500, false);
}

/// The sink gets other settings, and later saltern is stopped, while batches are on their way.
#[test]
fn reloaded_and_stopped_with_two_batches_in_flight() {
    let kafka = Kafka::started(1);
    kafka.create("t", 1, &[]);
    let mut setup = Setup::start("t", &(to(&kafka.brokers(), "t") + &format!(", {IMPATIENT}")));
    setup.wait_log("the sink is up");
    kafka.pause(0);
    setup.send_held(0..500);
    let sections = setup.sections.replace("kafka: {", "kafka: {compression: zstd, ");
    setup.daemon().reload(&sections);
    setup.wait_log("reloaded");
    kafka.resume(0);
    setup.wait_empty();
    kafka.pause(0);
    setup.send_held(500..1000);
    setup.stop_and_restart();
    kafka.resume(0);
    setup.wait_empty();
    setup.stop();
    assert_holds(&kafka, "t", 1000, false);
}
