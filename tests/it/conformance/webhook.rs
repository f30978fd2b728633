//! The sink `webhook`: each test has a receiver of its own, which checks signatures.

use std::fs;
use std::net::TcpStream;
use std::path::Path;

use super::{Copies, Repair, Store, for_good};
use crate::harness::ports::free_ports;
use crate::harness::server::Server;

struct Receiver {
    port: u16,
    server: Server,
}

impl Receiver {
    fn run(&mut self) {
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/harness/servers/webhook.py");
        let arguments = [script.display().to_string(), self.port.to_string(), "secret".to_owned()];
        self.server.start(Path::new("python3"), &arguments);
        self.server.until("its port", || TcpStream::connect(("127.0.0.1", self.port)).ok());
    }

    /// Tells it what to do until that is taken back.
    fn tell(&mut self, order: &'static str, value: &str) -> Repair<Receiver> {
        fs::write(self.server.folder().join(order), value).unwrap();
        Box::new(move |receiver| fs::remove_file(receiver.server.folder().join(order)).unwrap())
    }
}

impl Store for Receiver {
    /// It knows events by their keys.
    const COPIES: Copies = Copies::One;

    fn start(_: &Path) -> Self {
        let [port] = free_ports();
        let mut receiver = Receiver { port, server: Server::new("webhook") };
        receiver.run();
        receiver
    }

    fn settings(&self) -> String {
        let url = format!("http://127.0.0.1:{}/hook/{{tag}}", self.port);
        format!("{{url: '{url}', body: event, signature: {{secret: secret}}}}")
    }

    fn tags(&self) -> Option<Vec<String>> {
        let events = fs::read_to_string(self.server.folder().join("events")).unwrap();
        Some(events.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect())
    }
}

kind! { "webhook" in Receiver:
    absent: { kill }
    killed: { kill }
    held: { hold }
    hangs: { hold }
    refusing: { |receiver, _| receiver.tell("refusing", "") }
    rejecting: { reject_number_13 }
    halving: { |receiver, _| receiver.tell("taking", "20") }
    password: { |receiver: &Receiver| receiver.settings().replace("secret: secret", "secret: no") }
    removed: { none("a receiver holds nothing that could be removed") }
}

/// It comes back with its data.
fn kill(receiver: &mut Receiver, _: Option<u32>) -> Repair<Receiver> {
    receiver.server.kill();
    Box::new(Receiver::run)
}

fn hold(receiver: &mut Receiver, _: Option<u32>) -> Repair<Receiver> {
    receiver.server.pause();
    Box::new(|receiver| receiver.server.resume())
}

fn reject_number_13(receiver: &mut Receiver, _: Option<u32>) -> Repair<Receiver> {
    let _mend = receiver.tell("rejecting", "");
    for_good()
}
