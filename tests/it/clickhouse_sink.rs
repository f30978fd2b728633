//! The sink `clickhouse` against servers that fail it: real ones of release 18.16, chDB for
//! features that only newer ones have, and a stub for rare answers. (`tests/it/conformance` has the
//! tests of every sink.)

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::bus::{Bus, msgpack};
use crate::harness::clickhouse::ClickHouse;
use crate::harness::clickhouse::chdb::Chdb;
use crate::harness::clickhouse::stub::Stub;
use crate::harness::daemon::{Daemon, wait_for};
use crate::harness::proxy::{Proxy, Way};
use rmpv::Value;
use tempfile::TempDir;

/// Bytes of an event's text.
const SIZE: usize = 300;

/// A bus, and a daemon that writes its events to ClickHouse.
struct Life {
    bus: Bus,
    daemon: Daemon,
    folder: TempDir,
}

impl Life {
    /// With these settings of the sink, and batches of so many events.
    fn begin(settings: &str, batch: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bus = Bus::listen(folder.path());
        let sink = format!(
            "sinks:\n  store:\n    clickhouse: {{{settings}}}\n    \
             retry: {{initial: 20ms, max: 200ms}}\n    \
             batch: {{linger: 10ms, max_events: {batch}}}\n"
        );
        let daemon = Daemon::start(folder.path(), &(bus.source() + &sink));
        Life { bus, daemon, folder }
    }

    /// Sends events and waits until all are stored.
    fn store(&mut self, numbers: std::ops::Range<u64>) {
        self.bus.send(numbers.clone(), SIZE);
        self.daemon.wait_stored("store", numbers.end);
    }

    /// Sends a return of a job, which has rows in two tables, and waits until it is stored.
    fn store_return(&mut self) {
        let (tag, data) = job_return(1, true.into());
        self.bus.send_event(&tag, &data);
        self.daemon.wait_stored("store", 1);
    }

    /// Waits for words in the daemon's log.
    fn says(&self, words: &str) {
        wait_for(&format!("`{words}` in the log"), || {
            self.daemon.log().contains(words).then_some(())
        });
    }
}

/// The number of different events.
const DISTINCT: &str = "SELECT uniqExact(event_id) FROM salt.salt_events";

#[track_caller]
fn assert_all(server: &ClickHouse, count: u64) {
    assert_eq!(server.query(DISTINCT), format!("{count}\n"));
}

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

#[test]
fn a_server_that_is_killed_in_the_middle_of_inserts() {
    let mut server = ClickHouse::start();
    let mut life = Life::begin(&server.settings("salt"), 200);
    life.store(0..1000);
    for round in 1..4 {
        life.bus.send(round * 5000 - 4000..round * 5000, SIZE);
        let some = round * 5000 - 3000;
        wait_for("some of them to be stored", || {
            (life.daemon.stored("store") >= some).then_some(())
        });
        server.kill();
        // All of them may have been stored before the kill; these are not.
        life.bus.send(round * 5000..round * 5000 + 1000, SIZE);
        life.daemon.wait_failing("store");
        server.run();
    }
    life.daemon.wait_stored("store", 16_000);
    life.daemon.stop();
    assert_all(&server, 16_000);
}

#[test]
fn too_many_parts() {
    let limits = "<merge_tree><parts_to_delay_insert>10</parts_to_delay_insert>\
                  <parts_to_throw_insert>10</parts_to_throw_insert></merge_tree>";
    let mut server = ClickHouse::new().with_config(limits);
    server.run();
    let mut life = Life::begin(&server.settings("salt"), 1);
    life.store(0..1);
    server.query("SYSTEM STOP MERGES");
    life.bus.send(1..30, SIZE);
    life.says("merges fall behind: set a longer `batch.linger`");
    life.daemon.wait_failing("store");
    assert!(life.daemon.stored("store") < 30);
    server.query("SYSTEM START MERGES");
    server.query("OPTIMIZE TABLE salt.salt_events FINAL");
    life.daemon.wait_stored("store", 30);
    life.daemon.stop();
    assert_all(&server, 30);
}

#[test]
fn a_read_only_user_is_named_and_waited_for() {
    let server = ClickHouse::start();
    let mut life = Life::begin(&server.settings("salt"), 50);
    life.store(0..50);
    server.limit_now("readonly", "1");
    life.bus.send(50..100, SIZE);
    life.says("the server, the table or the user is read-only");
    server.limit("");
    life.daemon.wait_stored("store", 100);
    life.daemon.stop();
    assert_all(&server, 100);
}

#[test]
fn tables_that_are_missing_and_then_created_by_hand() {
    let server = ClickHouse::start();
    // The tables that a sink makes are the pattern.
    let mut pattern = Life::begin(&server.settings("pattern"), 50);
    pattern.store(0..1);
    pattern.daemon.stop();

    let mut life = Life::begin(&(server.settings("salt") + ", create: false"), 50);
    life.bus.send(0..50, SIZE);
    life.says("apply `saltern schema clickhouse`");
    server.query("CREATE DATABASE salt");
    life.daemon.wait_failing("store");
    server.query("CREATE TABLE salt.salt_events AS pattern.salt_events");
    life.daemon.wait_stored("store", 50);
    life.daemon.stop();
    assert_all(&server, 50);
}

#[test]
fn a_column_that_is_missing_is_added() {
    let server = ClickHouse::start();
    let mut life = Life::begin(&server.settings("salt"), 50);
    life.store(0..50);
    server.query("ALTER TABLE salt.salt_events DROP COLUMN act");
    life.store(50..100);
    life.daemon.stop();
    assert_all(&server, 100);
    assert_eq!(server.query("SELECT DISTINCT act FROM salt.salt_events"), "\n");
}

#[test]
fn a_wrong_password_parks_the_sink_until_it_is_corrected() {
    let server = ClickHouse::start();
    let wrong = server.settings("salt").replace("secret", "guess");
    let mut life = Life::begin(&wrong, 50);
    life.bus.send(0..50, SIZE);
    life.says("the sink is parked until its configuration is corrected");
    life.says("Wrong password for user saltern; correct `user` and `password`");
    assert!(!life.daemon.log().contains("guess"));

    let config = life.folder.path().join("saltern.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("guess", "secret")).unwrap();
    life.daemon.signal("HUP");
    life.daemon.wait_stored("store", 50);
    life.daemon.stop();
    assert_all(&server, 50);
}

#[test]
fn a_setting_that_the_server_does_not_know_is_left_away() {
    let server = ClickHouse::start();
    let settings = ", settings: {of_a_release_to_come: 1, max_insert_block_size: 1000}";
    let mut life = Life::begin(&(server.settings("salt") + settings), 50);
    life.store(0..100);
    life.says("ClickHouse refuses a setting; going on without");
    assert_eq!(life.daemon.log().matches("going on without").count(), 1);
    life.daemon.stop();
    assert_all(&server, 100);
}

/// The outcome of an insert is unknown, the events are sent again, and the other server is asked
/// meanwhile where one is down.
#[test]
fn servers_take_turns_and_one_may_be_down() {
    let mut servers = [ClickHouse::start(), ClickHouse::start()];
    let [first, second] = [servers[0].http, servers[1].http];
    let settings = servers[0].settings("salt").replace(
        &format!("url: 'http://127.0.0.1:{first}'"),
        &format!("url: ['http://127.0.0.1:{first}', 'http://127.0.0.1:{second}/']"),
    );
    let mut life = Life::begin(&settings, 10);
    life.store(0..200);
    let ids = |server: &ClickHouse| {
        let ids = server.query("SELECT DISTINCT event_id FROM salt.salt_events");
        ids.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let before: Vec<_> = servers.iter().map(|server| ids(server).len()).collect();
    assert!(before.iter().all(|count| *count > 50), "{before:?} events at the servers");

    servers[0].kill();
    life.store(200..400);
    assert!(ids(&servers[1]).len() >= before[1] + 190);
    servers[0].run();
    life.daemon.stop();
    let mut all: Vec<_> = servers.iter().flat_map(ids).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 400);
}

#[test]
fn faults_on_the_wire() {
    let server = ClickHouse::start();
    let proxy = Proxy::start(address(server.http));
    let settings = server
        .settings("salt")
        .replace(&server.http.to_string(), &proxy.address().port().to_string());
    let mut life = Life::begin(&(settings + ", timeout: 1s, compression: none"), 100);
    life.store(0..100);
    let mut sent = 100;
    let mut more = |life: &mut Life| {
        life.bus.send(sent..sent + 200, SIZE);
        sent += 200;
        sent
    };

    // A reset in the middle of the rows; of the answer.
    for (via, bytes) in [(Way::ToServer, 20_000), (Way::ToServer, 100), (Way::ToClient, 10)] {
        proxy.reset_after(via, bytes);
        let all = more(&mut life);
        life.daemon.wait_stored("store", all);
    }
    // Every answer takes its time, but not too long.
    proxy.delay(Duration::from_millis(50));
    let all = more(&mut life);
    life.daemon.wait_stored("store", all);
    proxy.heal();
    // Nothing goes through, either way or one way; nobody lets us in.
    let faults: [fn(&Proxy); 4] = [
        Proxy::black_hole,
        |proxy| proxy.half_open(Way::ToServer),
        |proxy| proxy.half_open(Way::ToClient),
        |proxy| {
            proxy.refuse();
            proxy.reset();
        },
    ];
    for fault in faults {
        fault(&proxy);
        let all = more(&mut life);
        life.daemon.wait_failing("store");
        proxy.heal();
        life.daemon.wait_stored("store", all);
    }
    life.daemon.stop();
    assert_all(&server, 1700);
}

/// A return of a job, with this `return`.
fn job_return(number: u64, value: Value) -> (String, Vec<u8>) {
    let jid = format!("20261121{number:012}");
    let data = Value::Map(vec![
        ("jid".into(), jid.as_str().into()),
        ("id".into(), "web-1".into()),
        ("fun".into(), "test.ping".into()),
        ("fun_args".into(), Value::Array(vec![])),
        ("success".into(), true.into()),
        ("retcode".into(), 0.into()),
        ("return".into(), value),
        ("_stamp".into(), "2026-11-21T23:38:10.518437".into()),
    ]);
    (format!("salt/job/{jid}/ret/web-1"), msgpack(&data))
}

/// The engine of a current release drops batches that it has stored already. No event is twice in a
/// table or a summary, although answers are lost on the wire.
#[test]
fn chdb_stores_nothing_twice_within_its_window() {
    let server = Chdb::start();
    let proxy = Proxy::start(address(server.http));
    let settings = server
        .settings("salt")
        .replace(&server.http.to_string(), &proxy.address().port().to_string());
    let mut life = Life::begin(&(settings + ", timeout: 5s"), 20);
    for round in 0..5 {
        if round > 0 {
            proxy.reset_after(Way::ToClient, 10);
        }
        for number in round * 100..round * 100 + 100 {
            let (tag, data) = job_return(number, true.into());
            life.bus.send_event(&tag, &data);
        }
        life.daemon.wait_stored("store", round * 100 + 100);
    }
    let retries = life.daemon.metric("saltern_sink_retries_total", &["sink=\"store\""]);
    assert!(retries > 3.5, "{retries} retries");
    life.daemon.stop();
    for sql in [
        "SELECT count() FROM salt.salt_events",
        "SELECT count() FROM salt.salt_returns",
        "SELECT sum(events) FROM salt.salt_rates",
        "SELECT sum(returns) FROM salt.salt_failures",
    ] {
        assert_eq!(server.query(sql), "500\n", "{sql}");
    }
}

/// Payloads that stores choke on, each between two harmless ones.
fn strange_payloads() -> Vec<Value> {
    let wide = (0..3000).map(|n| (format!("key-{n}").into(), n.into())).collect();
    let deep = (0..100).fold(Value::from(1), |inner, _| Value::Map(vec![("a".into(), inner)]));
    vec![
        Value::Map(wide),
        "x".repeat(1 << 20).into(),
        Value::Binary(b"not UTF-8: \xff\xfe\xc3".to_vec()),
        Value::from("a \0 in the middle"),
        Value::Map(vec![(Value::from("key\0with\u{1}"), Value::from("\u{2028}\u{fffd}😀\\\""))]),
        Value::Map(vec![(Value::from(""), 1.into()), (Value::from("a.b"), 2.into())]),
        Value::Map(vec![(1.into(), 2.into()), (Value::Nil, 3.into())]),
        Value::Map(vec![("a".into(), 1.into()), ("a".into(), "twice".into())]),
        Value::Array(vec![1.into(), "mixed".into(), Value::Nil, Value::Array(vec![])]),
        Value::from(u64::MAX),
        Value::from(f64::NAN),
        Value::from(f64::MIN_POSITIVE),
        deep,
    ]
}

/// Sends them, and waits until each is stored or a dead letter; gives how many are dead letters.
fn send_strange_payloads(life: &mut Life) -> u64 {
    let payloads = strange_payloads();
    let mut sent = 0;
    for value in payloads {
        for value in [value, true.into()] {
            let (tag, data) = job_return(sent, value);
            life.bus.send_event(&tag, &data);
            sent += 1;
        }
    }
    let rejected = |life: &mut Life| {
        life.daemon.count("saltern_sink_rejected_events_total", &["sink=\"store\""])
    };
    wait_for("all to be stored or refused", || {
        let settled = life.daemon.stored("store") + rejected(life);
        (settled >= sent).then_some(())
    });
    rejected(life)
}

#[test]
fn strange_payloads_are_stored() {
    let server = ClickHouse::start();
    let mut life = Life::begin(&server.settings("salt"), 7);
    let refused = send_strange_payloads(&mut life);
    life.daemon.stop();
    assert_eq!(refused, 0);
    assert_all(&server, 26);
    let sql = "SELECT count() FROM salt.salt_returns WHERE length(return) > 1048576";
    assert_eq!(server.query(sql), "1\n");
}

#[test]
fn strange_payloads_are_stored_in_chdb() {
    let server = Chdb::start();
    let mut life = Life::begin(&server.settings("salt"), 7);
    let refused = send_strange_payloads(&mut life);
    life.daemon.stop();
    assert_eq!(refused, 0);
    assert_eq!(server.query(DISTINCT), "26\n");
}

#[test]
fn chdb_gathers_inserts() {
    let server = Chdb::start();
    let mut life = Life::begin(&(server.settings("salt") + ", async_insert: true"), 20);
    life.store(0..100);
    life.daemon.stop();
    assert_eq!(server.query(DISTINCT), "100\n");
}

/// Statuses lie: an answer of 200 may carry an exception in a header, or behind an answer that was
/// begun.
#[test]
fn exceptions_behind_a_200_are_seen_of_a_stub() {
    let mut inserts = 0;
    let exception = "Code: 241. DB::Exception: Memory limit exceeded (MEMORY_LIMIT_EXCEEDED) (version 26.9.1.1 (official build))";
    let stub = Stub::start(move |target, _| {
        if !target.contains("INSERT") {
            return ("200 OK", "", "26.9.1.1\n".to_owned());
        }
        inserts += 1;
        match inserts {
            1 => ("200 OK", "X-ClickHouse-Exception-Code: 241\r\n", exception.to_owned()),
            2 => ("200 OK", "", format!("{exception}\n")),
            3 => {
                let length = exception.len() + 1;
                let body = format!(
                    "\r\n__exception__\r\nabcdefghijklmnop\r\n{exception}\n{length} abcdefghijklmnop\r\n__exception__\r\n"
                );
                ("200 OK", "X-ClickHouse-Exception-Tag: abcdefghijklmnop\r\n", body)
            }
            _ => ("200 OK", "", String::new()),
        }
    });
    let settings = format!("url: 'http://127.0.0.1:{}', database: salt, create: false", stub.http);
    let mut life = Life::begin(&settings, 10);
    life.store(0..10);
    let retries = life.daemon.metric("saltern_sink_retries_total", &["sink=\"store\""]);
    assert!((retries - 3.0).abs() < 0.5, "{retries} retries");
    assert!(life.daemon.log().contains("allow the user more memory"));
    life.daemon.stop();
}

/// The tables that a stub was asked to insert into, one after the other.
type Inserted = Arc<Mutex<Vec<String>>>;

fn table(target: &str) -> Option<String> {
    // Spaces stand in a URL as `+` or `%20`.
    let target = target.replace("%20", "+");
    let (_, behind) = target.split_once("INSERT+INTO+")?;
    Some(behind.split('+').next()?.to_owned())
}

/// A daemon that writes to the stub what can be read.
fn life_of(stub: &Stub) -> Life {
    let settings = "database: salt, create: false, compression: none";
    Life::begin(&format!("url: 'http://127.0.0.1:{}', {settings}", stub.http), 100)
}

fn count_of(inserted: &Inserted, table: &str) -> usize {
    inserted.lock().unwrap().iter().filter(|inserted| *inserted == table).count()
}

/// The tables of a batch go side by side. A server that does not take so many at a time gets the
/// refused ones again, one after the other, and nothing of what it has stored.
#[test]
fn too_many_queries_at_a_time_for_a_stub() {
    let inserted = Inserted::default();
    let notes = Arc::clone(&inserted);
    let stub = Stub::start(move |target, _| {
        let Some(table) = table(target) else { return ("200 OK", "", "18.16.1\n".to_owned()) };
        let mut inserted = notes.lock().unwrap();
        inserted.push(table);
        let is_refused = inserted.len() == 1;
        match is_refused {
            true => {
                let text = "Code: 202. DB::Exception: Too many simultaneous queries";
                ("500 Internal Server Error", "", text.to_owned())
            }
            false => ("200 OK", "", String::new()),
        }
    });
    let mut life = life_of(&stub);
    life.store_return();
    let retries = life.daemon.metric("saltern_sink_retries_total", &["sink=\"store\""]);
    assert!(retries < 0.5, "{retries} retries");
    let counts = ["salt_events", "salt_returns"].map(|table| count_of(&inserted, table));
    assert!(counts == [1, 2] || counts == [2, 1], "{counts:?}");
    life.daemon.stop();
}

/// Several tables of a batch have the same setting refused. It is left away once, and no other.
#[test]
fn a_setting_that_all_tables_have_refused_by_a_stub() {
    let inserted = Inserted::default();
    let notes = Arc::clone(&inserted);
    let stub = Stub::start(move |target, _| {
        let Some(table) = table(target) else { return ("200 OK", "", "26.9.1.1\n".to_owned()) };
        if target.contains("wait_for_async_insert") {
            let text = "Code: 115. DB::Exception: Unknown setting wait_for_async_insert";
            return ("404 Not Found", "", text.to_owned());
        }
        assert!(target.contains("async_insert=0"), "{target}");
        notes.lock().unwrap().push(table);
        ("200 OK", "", String::new())
    });
    let mut life = life_of(&stub);
    life.store_return();
    let counts = ["salt_events", "salt_returns"].map(|table| count_of(&inserted, table));
    assert_eq!(counts, [1, 1]);
    assert_eq!(life.daemon.log().matches("refuses a setting").count(), 1);
    life.daemon.stop();
}

/// The first table refuses an event. The others take the batch once before that is known, and then
/// its parts one after the other: no row is there more than twice, and the refused one once.
#[test]
fn a_poison_is_stored_by_few_tables_of_a_stub() {
    let rows = Inserted::default();
    let notes = Arc::clone(&rows);
    let stub = Stub::start(move |target, body| {
        let Some(table) = table(target) else { return ("200 OK", "", "18.16.1\n".to_owned()) };
        let body = String::from_utf8_lossy(body);
        if table == "salt_events" && body.contains("poison") {
            let text = "Code: 27. DB::Exception: Cannot parse input";
            return ("400 Bad Request", "", text.to_owned());
        }
        let jid = |row: &str| row.split("\"jid\":\"").nth(1).map(|jid| jid[..20].to_owned());
        notes.lock().unwrap().extend(body.lines().filter_map(jid).map(|jid| table.clone() + &jid));
        ("200 OK", "", String::new())
    });
    let mut life = life_of(&stub);
    for number in 0..64 {
        let text = if number == 37 { "poison" } else { "well" };
        let (tag, data) = job_return(number, text.into());
        life.bus.send_event(&tag, &data);
    }
    life.daemon.wait_stored("store", 63);
    life.daemon.stop();
    for number in 0..64 {
        let jid = format!("20261121{number:012}");
        let counts = ["salt_events", "salt_returns"]
            .map(|table| count_of(&rows, &(table.to_owned() + &jid)));
        match number {
            37 => assert!(counts[0] == 0 && counts[1] <= 1, "{number}: {counts:?}"),
            _ => assert!(counts[0] == 1 && (1..=2).contains(&counts[1]), "{number}: {counts:?}"),
        }
    }
}

/// A proxy in front of the server takes small bodies only: batches are halved, and a single event
/// that is too large is a dead letter.
#[test]
fn bodies_that_are_too_large_are_halved_for_a_stub() {
    let stub = Stub::start(|target, body| match target.contains("INSERT") {
        true if body.len() > 5000 => ("413 Payload Too Large", "", String::new()),
        true => ("200 OK", "", String::new()),
        false => ("200 OK", "", "18.16.1\n".to_owned()),
    });
    let settings = format!(
        "url: 'http://127.0.0.1:{}', database: salt, create: false, compression: none",
        stub.http
    );
    let mut life = Life::begin(&settings, 100);
    life.bus.send_event("test/large", &msgpack(&"x".repeat(6000).into()));
    life.store(0..100);
    wait_for("the large one to be refused", || {
        let name = "saltern_sink_rejected_events_total";
        (life.daemon.metric(name, &["sink=\"store\""]) > 0.5).then_some(())
    });
    life.daemon.stop();
}

/// A CA and a certificate for 127.0.0.1 that it has signed.
fn make_certificates(folder: &Path) {
    std::fs::write(folder.join("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    for arguments in [
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca",
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=server",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out server.crt \
         -extfile extensions",
    ] {
        let openssl = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(folder)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&openssl.stderr);
        assert!(openssl.status.success(), "openssl {arguments}: {error}");
    }
}

#[test]
fn tls_is_verified() {
    let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_certificates(ours.path());
    make_certificates(others.path());
    let mut server = ClickHouse::new().with_tls(ours.path());
    server.run();
    let settings = |ca: &Path| {
        let tls = format!(", tls: {{ca: '{}'}}", ca.join("ca.crt").display());
        let url = format!("https://127.0.0.1:{}", server.https.unwrap());
        server.settings("salt").replace(&format!("http://127.0.0.1:{}", server.http), &url) + &tls
    };

    let mut life = Life::begin(&settings(others.path()), 50);
    life.bus.send(0..50, SIZE);
    life.daemon.wait_failing("store");
    life.says("invalid peer certificate");
    assert_eq!(life.daemon.stored("store"), 0);
    life.daemon.stop();

    let mut life = Life::begin(&settings(ours.path()), 50);
    life.store(0..50);
    life.daemon.stop();
    let unverified = settings(others.path()).replace("tls: {", "tls: {verify: false, ");
    let mut life = Life::begin(&unverified, 50);
    life.store(0..50);
    life.daemon.stop();
    assert_all(&server, 50);
}
