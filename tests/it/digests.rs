//! Events that are gathered into digests, through the real binary and a receiver of requests.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::harness::daemon::{Daemon, saltern, until};
use crate::harness::numbered::Place;

/// A request that came: its key, and its body.
type Request = (String, Value);

/// A server that takes every request, and answers or only closes the connection.
struct Receiver {
    url: String,
    came: Arc<Mutex<Vec<(bool, Request)>>>,
    answers: Arc<AtomicBool>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let came = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(AtomicBool::new(false));
        let (takes, answering) = (Arc::clone(&came), Arc::clone(&answers));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answered = answering.load(Ordering::SeqCst);
                // A daemon that is killed leaves half a request.
                if let Some(request) = take(stream.unwrap(), answered) {
                    takes.lock().unwrap().push((answered, request));
                }
            }
        });
        Receiver { url, came, answers }
    }

    /// The requests that came and were answered, or were not.
    fn came(&self, answered: bool) -> Vec<Request> {
        let came = self.came.lock().unwrap();
        came.iter().filter(|(was, _)| *was == answered).map(|(_, came)| came.clone()).collect()
    }

    fn accepted_events(&self) -> usize {
        self.came(true).iter().map(|(_, body)| body["events"].as_array().unwrap().len()).sum()
    }
}

fn take(stream: TcpStream, answers: bool) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let (mut key, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else {
            match line.trim() {
                "" => break,
                _ => continue,
            }
        };
        match name.to_lowercase().as_str() {
            "idempotency-key" => value.clone_into(&mut key),
            "content-length" => length = value.parse().ok()?,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).ok()?;
    if answers {
        let answer = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
        reader.get_mut().write_all(answer.as_bytes()).ok()?;
    }
    Some((key, body))
}

fn tags(body: &Value) -> Vec<String> {
    let events = body["events"].as_array().unwrap();
    events.iter().map(|event| event["tag"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn invariant_4_a_kill_between_event_and_digest_loses_nothing_and_repeats_one_digest() {
    let receiver = Receiver::start();
    let place = Place::new(20, None);
    let hook = json!({
        "webhook": {
            "url": receiver.url,
            "body": "digest",
            "digest": {"max_events": 20, "after": "1s", "interval": "10ms"},
        },
        "batch": {"max_events": 7, "linger": "10ms"},
        "retry": {"initial": "50ms", "max": "200ms"},
    });
    let config = place.configure(&json!({ "hook": hook }), &json!({}));
    let mut daemon = Daemon::listening(&config);
    until("it reads the bus", || place.bus.base().1 > 0);
    place.bus.send_up_to(50);
    daemon.wait_stored("hook", 50);
    until("a digest is tried again", || receiver.came(false).len() >= 2);
    daemon.kill();
    let tried = receiver.came(false);
    assert!(tried.iter().all(|request| *request == tried[0]), "each try is the same: {tried:?}");
    daemon.start_again();
    until("it is tried after the restart", || receiver.came(false).len() > tried.len() + 1);
    receiver.answers.store(true, Ordering::SeqCst);
    until("all events are accepted", || receiver.accepted_events() >= 50);
    let tried = receiver.came(false);
    assert!(tried.iter().all(|request| *request == tried[0]), "each try is the same: {tried:?}");
    let accepted = receiver.came(true);
    assert_eq!(accepted[0], tried[0]);
    let all: Vec<_> = accepted.iter().flat_map(|(_, body)| tags(body)).collect();
    assert_eq!(all, (0..50).map(|n| format!("n/{n}")).collect::<Vec<_>>());
    assert!(accepted.iter().all(|(_, body)| body["dropped"] == 0 && body["count"] != 0));
    daemon.stop();
}

#[test]
fn a_digest_has_one_writer() {
    let place = Place::new(20, None);
    let config = place.path("saltern.yaml");
    let text = "sources:\n  bus: {salt_bus: {}}\nsinks:\n  chat:\n    webhook:\n      \
                url: http://127.0.0.1:1/\n      body: digest\n    writers: 2\n";
    std::fs::write(&config, text).unwrap();
    let output = saltern(&["check", "--config", config.to_str().unwrap()]);
    let said = format!("{output:?}");
    assert!(!output.status.success() && said.contains("this sink has one"), "{said}");
}
