//! The sink `kafka`: each test has a topic of its own, on the broker that they use one after the
//! other.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Repair, Store, lives};
use crate::harness::kafka::{Isolation, Kafka};
use crate::harness::server::{Lent, Shared};

static BROKER: Shared<Kafka> = Shared::new();

struct Topic {
    broker: Lent<'static, Kafka>,
    name: String,
    more: &'static str,
}

impl Topic {
    fn new(more: &'static str) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let broker = BROKER.lend(|| Kafka::started(1));
        let name = format!("events-{}", MADE.fetch_add(1, Ordering::Relaxed));
        Topic { broker, name, more }
    }
}

impl Store for Topic {
    fn start(_: &Path) -> Self {
        Topic::new("")
    }

    fn settings(&self) -> String {
        format!(
            "{{brokers: ['{}'], topic: {}, \
             properties: {{message.timeout.ms: 3000, socket.timeout.ms: 2000}}{}}}",
            self.broker.brokers(),
            self.name,
            self.more
        )
    }

    fn tags(&self) -> Option<Vec<String>> {
        let messages = self.broker.read(&self.name, Isolation::Committed);
        Some(
            messages
                .into_iter()
                .map(|mut message| message.headers.remove("tag").unwrap())
                .collect(),
        )
    }
}

kind! { "kafka" in Topic:
    absent: { kill }
    killed: { none("what was acknowledged last may be there twice then: see `transactions`") }
    held: { hold }
    hangs: { none("what a broker has taken before it hung is there twice then: see `transactions`") }
    refusing: { none("a broker that refuses is as good as one that is gone") }
    rejecting: { none("a topic takes any message that is short enough: see tests/it/kafka_sink.rs") }
    halving: { none("messages are told apart by the broker: see tests/it/kafka_sink.rs") }
    password: { none("it takes a broker with TLS: see tests/it/kafka_sink.rs") }
    removed: { none("a client finds a new topic of the same name only after minutes") }
}

/// It comes back with its data.
fn kill(topic: &mut Topic, _: Option<u32>) -> Repair<Topic> {
    topic.broker.kill(0);
    Box::new(|topic| topic.broker.start())
}

fn hold(topic: &mut Topic, _: Option<u32>) -> Repair<Topic> {
    topic.broker.pause(0);
    Box::new(|topic| topic.broker.resume(0))
}

/// The same in transactions: each event is there once after faults that last for a while.
mod transactions {
    use std::path::Path;

    use super::{Repair, Store, Topic, lives};

    struct InTransactions(Topic);

    impl Store for InTransactions {
        fn start(_: &Path) -> Self {
            InTransactions(Topic::new(", transactional: true"))
        }

        fn settings(&self) -> String {
            self.0.settings()
        }

        fn tags(&self) -> Option<Vec<String>> {
            self.0.tags()
        }
    }

    fn kill(topic: &mut InTransactions, pid: Option<u32>) -> Repair<InTransactions> {
        let repair = super::kill(&mut topic.0, pid);
        Box::new(|topic| repair(&mut topic.0))
    }

    fn hold(topic: &mut InTransactions, pid: Option<u32>) -> Repair<InTransactions> {
        let repair = super::hold(&mut topic.0, pid);
        Box::new(|topic| repair(&mut topic.0))
    }

    #[test]
    fn invariant_2_killed_in_mid_batch() {
        lives::invariant_2_killed_in_mid_batch("kafka", kill);
    }

    #[test]
    fn invariant_2_hanging() {
        lives::invariant_2_hanging("kafka", hold);
    }

    #[test]
    fn invariant_8_stops_in_time() {
        lives::invariant_8_stops_in_time("kafka", hold);
    }
}
