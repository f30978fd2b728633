//! Clients of the source `returner` that want to stop everybody else: the bus goes on, memory stays
//! bounded, `/healthz` answers, and SIGTERM is heard.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::beside::{DEADLINE, Daemon};
use crate::harness::returner_peer::{self, Peer, done, events, map, request, returned};
use nix::time::ClockId;
use nix::unistd::Pid;
use rmpv::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use zeromq::{DealerSocket, Socket, SocketSend};

/// The most memory that the daemon may have had.
const MEMORY: u64 = 200 << 20;

/// A daemon that reads a bus beside the source that is attacked.
struct Attacked {
    daemon: Daemon,
    bus: UnixStream,
    sent: u32,
    _folder: TempDir,
}

impl Attacked {
    async fn begin() -> Self {
        Attacked::with("returner").await
    }

    /// The same with this kind of source.
    async fn with(kind: &str) -> Self {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let path = folder.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        // The harness names the first source `bus`; the second is beside it.
        let source = format!(
            "{kind}: {{bind: 'ipc://FOLDER/r'}}\n  salt:\n    salt_bus: {{address: '{}'}}",
            path.display()
        );
        let daemon = Daemon::start(&source);
        let (bus, _) = timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
        let mut attacked = Attacked { daemon, bus, sent: 0, _folder: folder };
        attacked.bus_goes_on().await;
        attacked
    }

    /// An event of the bus is stored, and the daemon is well.
    async fn bus_goes_on(&mut self) {
        self.sent += 1;
        let tag = format!("bus/{}", self.sent);
        let body = Value::Binary([tag.as_bytes(), b"\n\n\x80"].concat());
        let frame = map(&[("head", Value::Map(vec![])), ("body", body)]);
        self.bus.write_all(&returner_peer::packed(&frame)).await.unwrap();
        self.daemon.wait_for_event(&tag).await;
        let began = Instant::now();
        let answer = self.daemon.get("/healthz");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        let memory = self.daemon.peak_memory();
        assert!(memory < MEMORY, "{} MiB", memory >> 20);
    }

    /// A client that behaves is answered.
    async fn others_are_served(&self, id: u64) {
        let mut other = Peer::at(&self.daemon).await;
        assert_eq!(other.ask(events(id, &[&format!("other/{id}")])).await, done(id));
        let answer = other.ask(request(id, "get_minions", &[])).await;
        assert!(answer["error"].is_nil(), "{answer}");
    }

    /// SIGTERM ends it, with the attackers still there.
    async fn ends(mut self) {
        self.bus_goes_on().await;
        let began = Instant::now();
        self.daemon.stop().await;
        assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn invariant_1_a_client_that_asks_and_never_reads_holds_up_nobody() {
    let mut attacked = Attacked::begin().await;
    let mut attackers = Vec::new();
    for _ in 0..8 {
        let mut attacker = Peer::at(&attacked.daemon).await;
        // Until the daemon reads no more of it.
        let asking = async {
            for id in 1.. {
                attacker.send(&request(id, "get_jids", &[])).await;
                attacker.send(&events(id, &["flood"])).await;
            }
        };
        let _ = timeout(Duration::from_secs(1), asking).await;
        attackers.push(attacker);
    }
    attacked.bus_goes_on().await;
    attacked.others_are_served(1).await;
    let cut_off = "saltern_source_clients_cut_off_total{source=\"bus\",reason=\"unread\"}";
    let waiting = async {
        while !attacked.daemon.get("/metrics").contains(&format!("{cut_off} 8")) {
            sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(DEADLINE, waiting).await.unwrap();
    attacked.ends().await;
}

#[tokio::test]
async fn invariant_6_sixty_unread_answers_of_20_mib_are_not_in_memory() {
    let mut attacked = Attacked::begin().await;
    let mut master = Peer::at(&attacked.daemon).await;
    for minion in 0..20 {
        // The sink would make six times as much JSON of bytes, and that is not measured here.
        let value = Value::from("x".repeat(1 << 20));
        let message = returned(1, "20261121233336123456", &format!("web-{minion}"), value);
        assert_eq!(master.ask(message).await, done(1));
    }
    let question = |id| request(id, "get_jid", &[("jid", "20261121233336123456".into())]);
    let mut attackers = Vec::new();
    for _ in 0..60 {
        let mut attacker = Peer::at(&attacked.daemon).await;
        attacker.send(&question(7)).await;
        attackers.push(attacker);
    }
    // One that reads has all of it meanwhile.
    let answer = master.ask(question(8)).await;
    let value = answer["value"].as_slice().unwrap();
    assert!(value.len() > 20 << 20);
    let returns = rmpv::decode::read_value(&mut &value[..]).unwrap();
    assert_eq!(returns.as_map().unwrap().len(), 20);
    assert_eq!(returns["web-7"]["return"].as_str().unwrap(), "x".repeat(1 << 20));
    attacked.others_are_served(2).await;
    attacked.bus_goes_on().await;
    attacked.ends().await;
}

#[tokio::test]
async fn invariant_7_connections_that_say_nothing_are_dropped() {
    let mut attacked = Attacked::begin().await;
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(UnixStream::connect(attacked.daemon.path("r")).await.unwrap());
    }
    attacked.others_are_served(1).await;
    attacked.bus_goes_on().await;
    for mut stream in silent {
        let mut said = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut said)).await.unwrap().unwrap();
    }
    let folder = format!("/proc/{}/fd", attacked.daemon.pid());
    let descriptors = std::fs::read_dir(folder).unwrap().count();
    assert!(descriptors < 200, "{descriptors} descriptors are left");
    attacked.ends().await;
}

#[tokio::test]
async fn invariant_7_a_length_of_four_gigabytes_is_refused_before_it_is_believed() {
    let mut attacked = Attacked::begin().await;
    let mut attacker = Peer::at(&attacked.daemon).await;
    attacker.stream.write_all(&[0xff; 4]).await.unwrap();
    let answer = attacker.receive().await;
    let why = answer["error"].as_str().unwrap();
    assert!(why.contains("a message of 4294967295 bytes is over max_frame"), "{answer}");
    assert!(attacker.is_closed().await);
    // An announcement costs nothing before the message comes.
    let mut announced = Vec::new();
    for _ in 0..40 {
        let mut attacker = Peer::at(&attacked.daemon).await;
        attacker.stream.write_u32(60 << 20).await.unwrap();
        attacker.stream.write_all(b"\x84\xa1v\x02").await.unwrap();
        announced.push(attacker);
    }
    attacked.others_are_served(1).await;
    attacked.bus_goes_on().await;
    // Half a message, and silence.
    for mut attacker in announced {
        let answer = attacker.receive().await;
        assert!(answer["error"].as_str().unwrap().contains("did not come within"), "{answer}");
        assert!(attacker.is_closed().await);
    }
    attacked.ends().await;
}

#[tokio::test]
async fn invariant_1_a_long_message_that_does_not_end_takes_nothing_from_short_ones() {
    let mut attacked = Attacked::begin().await;
    let mut attackers = Vec::new();
    for _ in 0..3 {
        // The message is as long as the default allows, and only some bytes of it are missing.
        let mut attacker = Peer::at(&attacked.daemon).await;
        attacker.stream.write_u32(64 << 20).await.unwrap();
        let much = vec![0xc0; 40 << 20];
        let sending = attacker.stream.write_all(&much);
        let _ = timeout(Duration::from_secs(1), sending).await;
        attackers.push(attacker);
    }
    let mut master = Peer::at(&attacked.daemon).await;
    for id in 1..20 {
        let value = Value::from("x".repeat(if id == 1 { 500 << 10 } else { 10 }));
        let message = returned(id, &format!("202611212333361234{id:02}"), "web-1", value);
        assert_eq!(master.ask(message).await, done(id));
    }
    attacked.others_are_served(1).await;
    attacked.bus_goes_on().await;
    attacked.ends().await;
}

#[tokio::test]
async fn invariant_6_a_refusal_does_not_repeat_what_was_said() {
    let mut attacked = Attacked::begin().await;
    let mut attacker = Peer::at(&attacked.daemon).await;
    let operation = "x".repeat(10 << 20);
    for id in 1..20 {
        let answer = attacker.ask(request(id, &operation, &[])).await;
        let why = answer["error"].as_str().unwrap();
        assert!(why.len() < 1100 && why.contains("there is no operation `xxx"), "{why}");
    }
    attacked.others_are_served(1).await;
    attacked.bus_goes_on().await;
    attacked.ends().await;
}

#[tokio::test]
async fn a_client_that_speaks_zeromq_is_told_apart_and_the_log_says_what_to_do() {
    let mut attacked = Attacked::begin().await;
    for _ in 0..20 {
        let mut old = UnixStream::connect(attacked.daemon.path("r")).await.unwrap();
        old.write_all(b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL").await.unwrap();
        let mut said = Vec::new();
        timeout(DEADLINE, old.read_to_end(&mut said)).await.unwrap().unwrap();
    }
    attacked.daemon.wait_for_log("upgrade the package saltext-saltern").await;
    let log = attacked.daemon.log();
    assert_eq!(log.matches("upgrade the package saltext-saltern").count(), 1, "{log}");
    attacked.bus_goes_on().await;
    attacked.ends().await;
}

/// The library queues answers of a peer that does not read, and then waits.
#[tokio::test]
async fn invariant_8_over_zeromq_too_a_peer_that_never_reads_does_not_stop_the_daemon() {
    let mut attacked = Attacked::with("returner_zeromq").await;
    let path = attacked.daemon.path("r");
    attacked.daemon.until("the socket", || path.exists()).await;
    let mut attacker = DealerSocket::new();
    attacker.connect(&format!("ipc://{}", path.display())).await.unwrap();
    let asking = async {
        // Until it is disconnected.
        while attacker.send(request(1, "dance", &[]).into()).await.is_ok() {}
    };
    let _ = timeout(Duration::from_secs(20), asking).await;
    attacked.bus_goes_on().await;
    attacked.ends().await;
}

#[tokio::test]
async fn invariant_9_who_finds_no_descriptors_is_accepted_once_there_are_some() {
    let attacked = Attacked::begin().await;
    let pid = attacked.daemon.pid();
    let open = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limit = |most: usize| {
        let mut prlimit = Command::new("prlimit");
        prlimit.arg(format!("--pid={pid}")).arg(format!("--nofile={most}:1000"));
        assert!(prlimit.status().unwrap().success());
    };
    limit(open() + 10);
    let mut many = Vec::new();
    for _ in 0..40 {
        many.push(UnixStream::connect(attacked.daemon.path("r")).await.unwrap());
    }
    attacked.daemon.wait_for_log("a client cannot be accepted").await;
    let before = processor_time(pid);
    sleep(Duration::from_secs(3)).await;
    let spent = processor_time(pid) - before;
    assert!(spent < 1.0, "{spent} s of CPU in 3 s");
    drop(many);
    limit(1000);
    attacked.others_are_served(1).await;
    attacked.ends().await;
}

/// The CPU that a process has used, in seconds.
fn processor_time(pid: u32) -> f64 {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.try_into().unwrap())).unwrap();
    Duration::from(clock.now().unwrap()).as_secs_f64()
}

/// A user whom the file's mode lets, but nobody else.
#[tokio::test]
async fn invariant_7_another_user_is_refused_by_what_the_kernel_says() {
    if !is_root() {
        return;
    }
    for (user, says) in [(4242, "user 4242 is refused"), (65534, "`token_file`")] {
        let daemon = Daemon::start("returner: {bind: 'unix:FOLDER/r', mode: '0666'}");
        let path = daemon.path("r");
        daemon.until("the socket", || path.exists()).await;
        std::fs::set_permissions(daemon.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let script = "import socket, sys\n\
                      s = socket.socket(socket.AF_UNIX)\n\
                      s.connect(sys.argv[1])\n\
                      m = b'\\x83\\xa1v\\x02\\xa2id\\x01\\xa2op\\xa8get_jids'\n\
                      try: s.sendall(len(m).to_bytes(4, 'big') + m)\n\
                      except OSError: pass\n\
                      f = s.makefile('rb')\n\
                      sys.stdout.buffer.write(f.read(int.from_bytes(f.read(4), 'big')))";
        let mut other = Command::new("setpriv");
        other.args([format!("--reuid={user}"), format!("--regid={user}")]);
        other.args(["--clear-groups", "/usr/bin/python3", "-c", script]).arg(&path);
        let output = tokio::task::spawn_blocking(move || other.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.stdout.is_empty(), "{said}; the log:\n{}", daemon.log());
        let answer = rmpv::decode::read_value(&mut output.stdout.as_slice()).unwrap();
        assert!(answer["error"].as_str().unwrap().contains(says), "{answer}");
        assert_eq!((&answer["id"], &answer["later"]), (&0.into(), &true.into()));
        daemon.wait_for_log(says).await;
        daemon.stop().await;
    }
}

/// Only root can become somebody else.
fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}
