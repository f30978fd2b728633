//! The rights of clients over HTTP, from outside, and attacks that must not harm the daemon.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::daemon::{DEADLINE, Daemon, SALTERN, STOP_LIMIT, pause, saltern, until};
use crate::harness::numbered::Place;

const SPILL: &str = "/api/v1/spill?sink=out&before=2026-11-21T23:00:00Z";

/// The daemon's answer: status, head in lower case, body.
fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if headers.iter().all(|(name, _)| *name != "Host") {
        request.push_str("Host: localhost\r\n");
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{request}\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
}

fn code(address: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
    ask(address, method, path, headers).0
}

/// A place with one sink, `out`, and this `http`.
fn configured(http: Value) -> (Place, std::path::PathBuf) {
    let place = Place::new(10, None);
    place.heal("out");
    let mut http = http;
    http["listen"] = json!("127.0.0.1:0");
    let more = json!({ "http": http, "jobs": { "enabled": true } });
    let config = place.configure(&json!({ "out": place.file_sink("out", &json!({})) }), &more);
    (place, config)
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A command as nobody, in this group alone.
fn as_nobody(group: &str, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", group, "--clear-groups", program]);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn another_user_gets_nothing_over_tcp_and_changes_nothing() {
    let (place, config) = configured(json!({}));
    let daemon = Daemon::listening(&config);
    let token = place.state_dir().join("http-token");
    assert_eq!(token.metadata().unwrap().mode() & 0o777, 0o600);
    for path in ["/", "/api/v1/status", "/api/v1/events", "/api/v1/jobs", "/api/v1/spill", "/x"] {
        let (code, head, body) = ask(daemon.address(), "GET", path, &[]);
        assert_eq!(code, 401, "{path}");
        assert!(body.contains("saltern console"), "{body}");
        for header in ["cache-control: no-store", "nosniff", "frame-ancestors 'none'"] {
            assert!(head.contains(header), "{head}");
        }
    }
    assert_eq!(code(daemon.address(), "DELETE", SPILL, &[]), 401);
    until("the log says so", || daemon.log().contains("a request that acts is refused"));
    if !is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    // The folder can be entered, the state directory not.
    std::fs::set_permissions(place.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let curl = |arguments: &[&str], path: &str| {
        let mut curl = as_nobody("65534", "curl");
        curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "60"]).args(arguments);
        said(&curl.arg(format!("http://{}{path}", daemon.address())).output().unwrap())
    };
    assert_eq!(curl(&[], "/healthz"), "200");
    assert_eq!(curl(&[], "/api/v1/events"), "401");
    assert_eq!(curl(&["-X", "DELETE"], SPILL), "401");
    let foreign = ["-X", "DELETE", "-H", "Host: evil.example", "-H", "Origin: http://evil.example"];
    assert_eq!(curl(&foreign, SPILL), "421");
    let socket = place.state_dir().join("http.sock");
    let socket = ["--unix-socket", socket.to_str().unwrap()];
    assert_eq!(curl(&socket, "/api/v1/status"), "000", "it cannot even be opened");
    let cat = as_nobody("65534", "cat").arg(&token).output().unwrap();
    assert!(!cat.status.success());
}

#[test]
fn a_foreign_name_is_refused_and_a_scraper_comes_by_any() {
    let (_place, config) = configured(json!({ "token": "hunter2", "hosts": ["salt.example.com"] }));
    let daemon = Daemon::listening(&config);
    let port = daemon.address().rsplit(':').next().unwrap();
    let cookie = format!("saltern-{port}=68756e74657232");
    let (cookie, token) = (("Cookie", cookie.as_str()), ("Authorization", "Bearer hunter2"));
    let get = |headers: &[(&str, &str)]| code(daemon.address(), "GET", "/api/v1/status", headers);
    assert_eq!(get(&[cookie]), 200);
    for shown in [cookie, token] {
        assert_eq!(get(&[("Host", "evil.example"), shown]), 421);
        assert_eq!(get(&[("Origin", "http://evil.example"), shown]), 403);
        assert_eq!(get(&[("Host", "salt.example.com:4507"), shown]), 200);
    }
    let rebound = [("Host", "evil.example"), ("Origin", "http://evil.example"), cookie];
    assert_eq!(code(daemon.address(), "DELETE", SPILL, &rebound), 421);

    for path in ["/metrics", "/healthz"] {
        let (code, _, body) = ask(daemon.address(), "GET", path, &[("Host", "salt-7.dc.example")]);
        assert_eq!(code, 200, "{path}: {body}");
    }
}

#[test]
fn one_token_reads_and_the_other_acts_and_a_browser_logs_in() {
    let (_place, config) = configured(json!({ "read_token": "reader" }));
    let daemon = Daemon::listening(&config);
    let address = daemon.address();
    let reader = ("Authorization", "Bearer reader");
    assert_eq!(code(address, "GET", "/api/v1/spill", &[reader]), 200);
    let (refused, _, body) = ask(address, "DELETE", SPILL, &[reader]);
    assert_eq!(refused, 403, "{body}");
    assert!(body.contains("may only read"), "{body}");

    let console = saltern(&["console", "--config", config.to_str().unwrap()]);
    assert!(console.status.success(), "{}", said(&console));
    let url = String::from_utf8(console.stdout).unwrap();
    let path = url.trim().strip_prefix(&format!("http://{address}")).unwrap();
    let (redirected, head, _) = ask(address, "GET", path, &[]);
    assert_eq!(redirected, 303);
    assert!(head.contains("location: /\r\n") && head.contains("referrer-policy: no-referrer"));
    let (_, cookie) = head.split_once("set-cookie: ").unwrap();
    assert!(cookie.contains("httponly") && cookie.contains("samesite=strict"), "{cookie}");
    let cookie = ("Cookie", cookie.split(';').next().unwrap());
    let (shown, _, page) = ask(address, "GET", "/", &[cookie]);
    assert!(shown == 200 && page.contains("<h1>saltern</h1>"));

    // A browser acts for the daemon's own page alone.
    assert_eq!(code(address, "DELETE", SPILL, &[cookie]), 403);
    let own = ("Origin", "http://localhost");
    assert_eq!(code(address, "DELETE", SPILL, &[cookie, own]), 200);
    until("the log says who", || {
        let log = daemon.log();
        log.contains("are discarded by request") && log.contains("the cookie of http.token")
    });
}

#[test]
fn the_group_of_the_socket_reads_and_root_acts() {
    if !is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    let (place, config) = configured(json!({}));
    let socket = place.path("run/http.sock");
    std::fs::create_dir(place.path("run")).unwrap();
    for (path, mode) in [(place.folder.path(), 0o755), (socket.parent().unwrap(), 0o755)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let mut with: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    with["http"]["socket"] = json!({ "path": socket, "group": "65533" });
    // A client of the socket needs no secret, and none may read this one.
    let secret = place.path("token");
    std::fs::write(&secret, "hunter2").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    with["http"]["token"] = json!(format!("${{file:{}}}", secret.display()));
    std::fs::write(&config, with.to_string()).unwrap();
    let daemon = Daemon::listening(&config);
    until("the socket is there", || socket.exists());
    let found = socket.metadata().unwrap();
    assert_eq!((found.mode() & 0o777, found.gid()), (0o660, 65_533));

    // Another user may have no way to the place of the build.
    let program = place.path("saltern");
    std::fs::copy(SALTERN, &program).unwrap();
    let run = |group: &str, arguments: &[&str]| {
        let mut command = as_nobody(group, program.to_str().unwrap());
        command.args(arguments).arg("--config").arg(&config).output().unwrap()
    };
    let drop = ["spill", "drop", "--sink", "out", "--before", "1d"];
    let listed = run("65533", &["jobs", "list"]);
    assert!(listed.status.success(), "{}", said(&listed));
    let waiting = run("65533", &["spill", "list"]);
    assert!(waiting.status.success() && said(&waiting).contains("out"), "{}", said(&waiting));
    let dropped = run("65533", &drop);
    assert_eq!(dropped.status.code(), Some(1));
    assert!(said(&dropped).contains("may only read"), "{}", said(&dropped));
    let console = run("65533", &["console"]);
    assert_eq!(console.status.code(), Some(1));
    assert!(said(&console).contains("cannot read http.token"), "{}", said(&console));
    let outside = run("65534", &["jobs", "list"]);
    assert_eq!(outside.status.code(), Some(1));
    assert!(said(&outside).contains("members of the group 65533"), "{}", said(&outside));

    let root = saltern(&[&drop[..], &["--config", config.to_str().unwrap()]].concat());
    assert!(root.status.success(), "{}", said(&root));
    until("the log says who", || daemon.log().contains("user root (0)"));

    // A page by way of somebody who has made the socket a port of theirs.
    let mut stream = UnixStream::connect(&socket).unwrap();
    let request = format!(
        "DELETE {SPILL} HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[test]
fn a_decoy_in_a_public_directory_is_not_believed() {
    if !is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    let (place, config) = configured(json!({}));
    std::fs::set_permissions(place.folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let socket = place.path("http.sock");
    let mut with: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    with["http"]["socket"] = json!({ "path": socket });
    std::fs::write(&config, with.to_string()).unwrap();
    // The stranger's daemon is as good a decoy as any.
    let program = place.path("saltern");
    std::fs::copy(SALTERN, &program).unwrap();
    let own = json!({
        "state_dir": place.path("decoy"), "http": { "listen": null, "socket": { "path": socket } },
        "log": { "format": "json" }, "sources": { "bus": { "salt_bus": { "address": "none" } } },
        "sinks": { "none": { "blackhole": {} } },
    });
    let configured = place.path("decoy.yaml");
    std::fs::write(&configured, own.to_string()).unwrap();
    let mut decoy = as_nobody("65534", program.to_str().unwrap())
        .args(["run", "--config"])
        .arg(&configured)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("the decoy listens", || UnixStream::connect(&socket).is_ok());
    let asked = saltern(&["jobs", "list", "--config", config.to_str().unwrap()]);
    decoy.kill().unwrap();
    decoy.wait().unwrap();
    assert_eq!(asked.status.code(), Some(1));
    assert!(said(&asked).contains("may be a decoy"), "{}", said(&asked));
}

#[test]
fn the_socket_is_made_anew_and_a_long_state_dir_has_a_short_one() {
    let (place, config) = configured(json!({}));
    let long = place.path(&"x".repeat(100));
    for state_dir in [place.state_dir(), long] {
        let mut with: Value =
            serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
        with["state_dir"] = json!(state_dir);
        std::fs::write(&config, with.to_string()).unwrap();
        let daemon = Daemon::listening(&config);
        let socket = || {
            let log = daemon.log();
            let line = log.lines().find(|line| line.contains("commands reach the daemon here"))?;
            let line: Value = serde_json::from_str(line).unwrap();
            Some(std::path::PathBuf::from(line["socket"].as_str().unwrap()))
        };
        until("it says where its socket is", || socket().is_some());
        let socket = socket().unwrap();
        assert_eq!(socket.starts_with(&state_dir), state_dir == place.state_dir(), "{socket:?}");
        let list = ["jobs", "list", "--state-dir", state_dir.to_str().unwrap()];
        let listed = saltern(&list);
        assert!(listed.status.success(), "{}", said(&listed));
        let before = socket.metadata().unwrap().ino();
        let file = state_dir.join("http-token");
        let token = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::remove_file(&socket).unwrap();
        until("it is made anew", || socket.metadata().is_ok_and(|new| new.ino() != before));
        assert!(!file.exists(), "who removed the token wants another");
        let bearer = format!("Bearer {}", token.trim());
        let headers = [("Authorization", bearer.as_str())];
        assert_eq!(code(daemon.address(), "GET", "/api/v1/status", &headers), 200);
        until("commands get through", || saltern(&list).status.success());
        let (status, _) = daemon.terminate();
        assert!(status.success() && !socket.exists());
        let again = Daemon::listening(&config);
        assert_ne!(std::fs::read_to_string(&file).unwrap(), token);
        assert_eq!(code(again.address(), "GET", "/api/v1/status", &headers), 401);
        assert!(again.terminate().0.success());
        let nobody = saltern(&["events", "--state-dir", state_dir.to_str().unwrap()]);
        assert_eq!(nobody.status.code(), Some(1));
        assert!(said(&nobody).contains("there is no daemon at"), "{}", said(&nobody));
        if !socket.starts_with(place.folder.path()) {
            std::fs::remove_dir(socket.parent().unwrap()).unwrap();
        }
    }
}

#[test]
fn tls_is_spoken_with_a_certificate_of_ones_own() {
    let (place, config) = configured(json!({ "token": "hunter2" }));
    let (cert, key) = (place.path("cert.pem"), place.path("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", said(&made));
    let mut with: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    with["http"]["tls"] = json!({ "cert": cert, "key": place.path("absent.pem") });
    std::fs::write(&config, with.to_string()).unwrap();
    let refused = saltern(&["run", "--config", config.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    let text = said(&refused);
    assert!(text.contains("absent.pem") && text.contains("http.tls"), "{text}");

    with["http"]["tls"]["key"] = json!(key);
    std::fs::write(&config, with.to_string()).unwrap();
    let daemon = Daemon::listening(&config);
    let port = daemon.address().rsplit(':').next().unwrap();
    let curl = |arguments: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-S", "-m", "60", "-H", "Authorization: Bearer hunter2", "--cacert"]);
        curl.arg(&cert).args(arguments).output().unwrap()
    };
    let answer = curl(&[&format!("https://localhost:{port}/api/v1/status")]);
    assert!(answer.status.success() && said(&answer).contains("\"sinks\""), "{}", said(&answer));
    assert!(
        curl(&["--tlsv1.1", "--tls-max", "1.1", &format!("https://localhost:{port}/healthz")])
            .status
            .code()
            .is_some_and(|code| code != 0)
    );
    let plain = curl(&[&format!("http://localhost:{port}/healthz")]);
    assert!(!plain.status.success(), "{}", said(&plain));
    let url = format!("https://localhost:{port}");
    let listed = saltern(&["jobs", "list", "--url", &url, "--config", config.to_str().unwrap()]);
    assert!(listed.status.success(), "{}", said(&listed));
    // One that begins and goes on no further is in nobody's way.
    let _slow = TcpStream::connect(daemon.address()).unwrap();
    assert!(curl(&[&format!("https://localhost:{port}/healthz")]).status.success());
}

/// A bus that has one job to tell of, in returns that are so long, and then nothing.
fn serve_job(path: &Path, jid: &str, minions: usize, bytes: usize) {
    let listener = UnixListener::bind(path).unwrap();
    let jid = jid.to_owned();
    std::thread::spawn(move || {
        // The one connection ends with the daemon.
        let (mut stream, _) = listener.accept().unwrap();
        let frame = |tag: &str, data: &Value| {
            let mut body = format!("{tag}\n\n").into_bytes();
            body.extend(rmp_serde::to_vec(data).unwrap());
            let mut frame = b"\x82\xa4head\x80\xa4body\xc6".to_vec();
            frame.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
            frame.extend(body);
            frame
        };
        for minion in 0..minions {
            let id = format!("m{minion}");
            let data = json!({
                "jid": jid, "id": id, "fun": "cmd.run", "fun_args": [], "cmd": "_return",
                "retcode": 0, "success": true, "return": "x".repeat(bytes),
            });
            stream.write_all(&frame(&format!("salt/job/{jid}/ret/{id}"), &data)).unwrap();
        }
        let _ = stream.read(&mut [0]);
    });
}

/// 128 clients that ask nothing and 40 that read nothing of an answer of 20 MiB.
fn nobody_reads(minions: usize, bytes: usize) {
    const JID: &str = "20261127090000123456";
    let (place, config) = configured(json!({ "token": "hunter2" }));
    let file = place.path("jobs.ipc");
    serve_job(&file, JID, minions, bytes);
    let mut with: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    with["sources"]["jobs"] = json!({ "salt_bus": { "address": file } });
    std::fs::write(&config, with.to_string()).unwrap();
    let token = ("Authorization", "Bearer hunter2");
    let job = format!("/api/v1/jobs/{JID}");
    let filling = Daemon::listening(&config);
    until("the job is stored", || {
        let (code, _, body) = ask(filling.address(), "GET", &job, &[token]);
        code == 200 && serde_json::from_str::<Value>(&body).unwrap()["returned"] == minions
    });
    assert!(filling.terminate().0.success());

    let daemon = Daemon::listening(&config);
    let before = daemon.memory();
    let mut deaf = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(daemon.address()).unwrap();
        let request = format!(
            "GET {job} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer hunter2\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        deaf.push(stream);
    }
    let idle: Vec<_> = (0..128).map(|_| TcpStream::connect(daemon.address()).unwrap()).collect();
    let (began, mut most, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    let mut sent = 0;
    while began.elapsed() < Duration::from_secs(6) {
        sent += 100;
        place.bus.send_up_to(sent);
        let asked = Instant::now();
        assert_eq!(code(daemon.address(), "GET", "/healthz", &[]), 200);
        slowest = slowest.max(asked.elapsed());
        most = most.max(daemon.memory());
        pause(Duration::from_millis(50));
    }
    until("the bus goes on", || daemon.stored("out") >= sent);
    assert_eq!(code(daemon.address(), "GET", "/metrics", &[]), 200);
    println!("RSS {before} before, {most} at the most; /healthz took {slowest:?} at the most");
    assert!(slowest < Duration::from_secs(10), "/healthz took {slowest:?}");
    assert!(most < 200 << 20, "RSS is {most}");
    // No client that does not read holds the database: its log can be begun anew.
    let db = rusqlite::Connection::open(place.state_dir().join("job-cache.db")).unwrap();
    let is_busy: bool =
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    assert!(!is_busy, "somebody holds the log of the job cache");
    drop(db);
    // Some of the 40 are answered, and others may be told to come again.
    let mut heads = [0, 0];
    for stream in &mut deaf {
        let mut head = [0; 12];
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.read_exact(&mut head).unwrap();
        heads[usize::from(&head == b"HTTP/1.1 503")] += 1;
    }
    println!("{} were answered, {} were told to come again", heads[0], heads[1]);
    assert!(heads[0] > 0, "{heads:?}");
    let (status, took) = daemon.terminate();
    assert!(status.success() && took < STOP_LIMIT, "{status} after {took:?}");
    drop((deaf, idle));
}

#[test]
fn invariant_6_many_returns_that_nobody_reads() {
    nobody_reads(80, 256 << 10);
}

#[test]
fn invariant_6_one_long_return_that_nobody_reads() {
    nobody_reads(1, 20 << 20);
}
