//! Apache Kafka, real brokers on this machine, for all tests of a process or for one test.
//!
//! `tests/servers/install.sh` has fetched its jars; this module starts them. Each node is broker
//! and controller at once (KRaft). Some facts:
//!
//! * A broker tells its clients where it can be reached. So it listens twice: at
//!   [`Kafka::brokers`], and at [`Kafka::through`], where it names the address of a proxy. A
//!   secured one listens at [`Kafka::secure`] too, with TLS and a password.
//! * Ports are chosen before the broker is started, so that it comes back at the same ones.
//! * A killed broker is taken back when the controller has given up its last session; hence a short
//!   `broker.session.timeout.ms`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Headers;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;

use crate::harness::daemon::pause;
use crate::harness::ports::free_ports;
use crate::harness::server::{LIMIT, Server, installed};

/// A question to a broker is asked again after this long.
const ASK: Duration = Duration::from_secs(20);

/// The user that may do anything at the secure port, and its password.
pub(crate) const ADMIN: (&str, &str) = ("admin", "admin-secret");

/// The user that may do nothing at the secure port but log in.
pub(crate) const NOBODY: (&str, &str) = ("nobody", "nobody-secret");

/// Nodes that make one Kafka.
pub(crate) struct Kafka {
    folder: TempDir,
    nodes: Vec<Node>,
    is_secured: bool,
}

struct Node {
    direct: u16,
    through: u16,
    advertised: u16,
    secure: u16,
    controller: u16,
    server: Server,
}

/// The transactions that a reader sees.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Isolation {
    Committed,
    Uncommitted,
}

/// A message as a topic holds it.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Milliseconds since 1970.
    pub(crate) timestamp: i64,
    pub(crate) key: Option<String>,
    pub(crate) value: Vec<u8>,
    pub(crate) headers: HashMap<String, String>,
}

impl Kafka {
    /// One broker for all tests of a process, which must use topics and groups of their own and
    /// leave it running.
    pub(crate) fn shared() -> &'static Kafka {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| Kafka::started(1))
    }

    /// So many nodes, running.
    pub(crate) fn started(nodes: usize) -> Self {
        let mut kafka = Kafka::new(nodes);
        kafka.start();
        kafka
    }

    /// So many nodes, not running yet; their ports are known.
    pub(crate) fn new(nodes: usize) -> Self {
        let node = |_| {
            let [direct, through, secure, controller] = free_ports();
            let server = Server::new("kafka");
            Node { direct, through, advertised: through, secure, controller, server }
        };
        let folder = tempfile::Builder::new().prefix("saltern-kafka").tempdir().unwrap();
        Kafka { folder, nodes: (0..nodes).map(node).collect(), is_secured: false }
    }

    /// Tells clients of [`Kafka::through`] that this node is reached at `port`.
    pub(crate) fn advertise(&mut self, node: usize, port: u16) {
        self.nodes[node].advertised = port;
    }

    /// Makes a key and a certificate, for the port at [`Kafka::secure`].
    pub(crate) fn secured(mut self) -> Self {
        self.is_secured = true;
        let folder = self.folder.path();
        let keytool = |arguments: &[&str]| {
            let mut command = Command::new("keytool");
            command.args(arguments).args(["-alias", "broker", "-storepass", "key-secret"]);
            let output = command.args(["-keystore", "keys.p12"]).current_dir(folder).output();
            let output = output.unwrap();
            assert!(output.status.success(), "keytool: {output:?}");
        };
        let key = ["-genkeypair", "-keyalg", "EC", "-dname", "CN=saltern tests", "-validity", "30"];
        keytool(&[&key[..], &["-ext", "SAN=IP:127.0.0.1"]].concat());
        keytool(&["-exportcert", "-rfc", "-file", "ca.pem"]);
        self
    }

    /// The certificate that [`Kafka::secured`] has made.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Starts all nodes and waits until they know each other.
    pub(crate) fn start(&mut self) {
        for node in 0..self.nodes.len() {
            self.run(node);
        }
        self.await_all();
    }

    /// Starts a node, or starts it again with its stored messages; leaves one that runs alone.
    pub(crate) fn run(&mut self, node: usize) {
        if self.nodes[node].server.is_running() {
            return;
        }
        let data = self.nodes[node].server.folder().join("data");
        fs::create_dir_all(&data).unwrap();
        let identity =
            format!("version=1\ncluster.id=c2FsdGVybi10ZXN0cy0wMQ\nnode.id={}\n", node + 1);
        let metadata = data.join("meta.properties");
        if !metadata.exists() {
            fs::write(metadata, identity).unwrap();
        }
        let properties = self.nodes[node].server.folder().join("properties");
        fs::write(&properties, self.properties(node, &data)).unwrap();
        let mut arguments = java(384);
        arguments.extend(["kafka.Kafka".to_owned(), properties.display().to_string()]);
        self.nodes[node].server.start(Path::new("java"), &arguments);
    }

    fn properties(&self, node: usize, data: &Path) -> String {
        let Node { direct, through, advertised, secure, controller, .. } = &self.nodes[node];
        let local = "127.0.0.1";
        let voter = |(id, node): (usize, &Node)| format!("{}@{local}:{}", id + 1, node.controller);
        let voters: Vec<_> = self.nodes.iter().enumerate().map(voter).collect();
        let copies = self.nodes.len();
        let mut text = format!(
            "process.roles=broker,controller\n\
             node.id={}\n\
             controller.quorum.voters={}\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=DIRECT\n\
             listener.security.protocol.map=\
             CONTROLLER:PLAINTEXT,DIRECT:PLAINTEXT,THROUGH:PLAINTEXT,SECURE:SASL_SSL\n\
             log.dirs={}\n\
             offsets.topic.num.partitions=1\n\
             offsets.topic.replication.factor={copies}\n\
             transaction.state.log.num.partitions=1\n\
             transaction.state.log.replication.factor={copies}\n\
             transaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n\
             broker.heartbeat.interval.ms=500\n\
             broker.session.timeout.ms=3000\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS;User:{}\n",
            node + 1,
            voters.join(","),
            data.display(),
            ADMIN.0,
        );
        let mut listeners = format!("DIRECT://{local}:{direct},THROUGH://{local}:{through}");
        let mut addresses = format!("DIRECT://{local}:{direct},THROUGH://{local}:{advertised}");
        if self.is_secured {
            let address = format!(",SECURE://{local}:{secure}");
            listeners += &address;
            addresses += &address;
            let user = |(name, password)| format!(" user_{name}=\"{password}\"");
            text += &format!(
                "ssl.keystore.type=PKCS12\n\
                 ssl.keystore.location={}\n\
                 ssl.keystore.password=key-secret\n\
                 listener.name.secure.sasl.enabled.mechanisms=PLAIN\n\
                 listener.name.secure.plain.sasl.jaas.config=\
                 org.apache.kafka.common.security.plain.PlainLoginModule required{}{};\n",
                self.folder.path().join("keys.p12").display(),
                user(ADMIN),
                user(NOBODY),
            );
        }
        text + &format!(
            "listeners={listeners},CONTROLLER://{local}:{controller}\n\
             advertised.listeners={addresses}\n"
        )
    }

    /// Waits until every node is there and one of them leads.
    pub(crate) fn await_all(&self) {
        let client = self.client(Isolation::Committed);
        self.until("all nodes to be there", || {
            let metadata = client.fetch_metadata(None, ASK).ok()?;
            (metadata.brokers().len() == self.nodes.len()).then_some(())
        });
    }

    /// `kill -9`; returns when it is gone.
    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node].server.kill();
    }

    /// Holds a node, which does not answer then.
    pub(crate) fn pause(&self, node: usize) {
        self.nodes[node].server.pause();
    }

    /// Lets it go on.
    pub(crate) fn resume(&self, node: usize) {
        self.nodes[node].server.resume();
    }

    /// The addresses at which clients begin that come without a proxy, with commas between.
    pub(crate) fn brokers(&self) -> String {
        let addresses: Vec<_> =
            self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.direct)).collect();
        addresses.join(",")
    }

    /// The port of a node for a proxy to connect to.
    pub(crate) fn through(&self, node: usize) -> u16 {
        self.nodes[node].through
    }

    /// The port of a node that wants TLS and a password.
    pub(crate) fn secure(&self, node: usize) -> u16 {
        self.nodes[node].secure
    }

    /// Creates a topic, a copy of it on each node, with these settings, and waits until all its
    /// partitions have leaders.
    pub(crate) fn create(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> =
            self.config(Isolation::Committed).create().unwrap();
        let copies = i32::try_from(self.nodes.len()).unwrap();
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(copies));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        self.until(&format!("the topic {topic}"), || {
            let options = AdminOptions::new().operation_timeout(Some(ASK));
            let results = runtime.block_on(admin.create_topics([&new], &options)).ok()?;
            let exists = |result: &Result<_, (_, _)>| {
                matches!(result, Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)))
            };
            results.iter().all(exists).then_some(())
        });
        let partitions = usize::try_from(partitions).unwrap();
        self.until(&format!("leaders of {topic}"), || {
            (self.leaders(topic).len() == partitions).then_some(())
        });
    }

    /// The node that leads a partition of a topic, now.
    pub(crate) fn leader(&self, topic: &str, partition: usize) -> usize {
        self.until("a leader", || self.leaders(topic).get(partition).copied())
    }

    fn leaders(&self, topic: &str) -> Vec<usize> {
        let client = self.client(Isolation::Committed);
        let Ok(metadata) = client.fetch_metadata(Some(topic), ASK) else {
            return Vec::new();
        };
        let partitions = metadata.topics()[0].partitions();
        let leads = |partition: &rdkafka::metadata::MetadataPartition| {
            usize::try_from(partition.leader()).ok()?.checked_sub(1)
        };
        let mut leaders: Vec<_> = partitions.iter().map(|p| (p.id(), leads(p))).collect();
        leaders.sort_unstable();
        leaders.into_iter().filter_map(|(_, leader)| leader).collect()
    }

    /// All messages of a topic, partition by partition in order; none if there is no such topic.
    pub(crate) fn read(&self, topic: &str, isolation: Isolation) -> Vec<Message> {
        let client = self.client(isolation);
        let metadata =
            self.until("the topic's partitions", || client.fetch_metadata(Some(topic), ASK).ok());
        let mut open = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            open.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
        }
        let mut left = open.count();
        client.assign(&open).unwrap();
        let mut messages = Vec::new();
        let began = Instant::now();
        while left > 0 {
            assert!(began.elapsed() < LIMIT, "reading {topic} takes more than {LIMIT:?}");
            match client.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => messages.push(Message::from(&message)),
                Some(Err(KafkaError::PartitionEOF(_))) => left -= 1,
                // A broker is just gone or coming; the client tries again by itself.
                Some(Err(_)) | None => {}
            }
        }
        messages.sort_by_key(|message| (message.partition, message.offset));
        messages
    }

    /// A consumer of no group yet, at the direct ports.
    pub(crate) fn client(&self, isolation: Isolation) -> BaseConsumer {
        self.config(isolation).create().unwrap()
    }

    fn config(&self, isolation: Isolation) -> ClientConfig {
        let mut config = ClientConfig::new();
        let level = match isolation {
            Isolation::Committed => "read_committed",
            Isolation::Uncommitted => "read_uncommitted",
        };
        config
            .set("bootstrap.servers", self.brokers())
            .set("group.id", "tests")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", level)
            .set("reconnect.backoff.max.ms", "500");
        config
    }

    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            let logs = || self.nodes.iter().map(|node| node.server.log()).collect::<String>();
            assert!(began.elapsed() < LIMIT, "waited {LIMIT:?} for {what}\n{}", logs());
            pause(Duration::from_millis(50));
        }
    }
}

impl<M: rdkafka::Message> From<&M> for Message {
    fn from(message: &M) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut headers = HashMap::new();
        for header in message.headers().iter().flat_map(|headers| headers.iter()) {
            headers.insert(header.key.to_owned(), text(header.value.unwrap_or_default()));
        }
        Message {
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis().unwrap_or_default(),
            key: message.key().map(text),
            value: message.payload().unwrap_or_default().to_vec(),
            headers,
        }
    }
}

/// The words that start a class of Kafka's with a heap of so many mebibytes.
fn java(heap: u32) -> Vec<String> {
    let jars = installed(&format!("kafka-{}", release())).join("libs");
    let heap = format!("-Xmx{heap}m");
    let level = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn";
    let jars = format!("{}/*", jars.display());
    // These make a short life cheap.
    let options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", level, "-cp", &jars];
    [&heap].into_iter().map(String::as_str).chain(options).map(str::to_owned).collect()
}

/// The release that is tested, which `make test-full` chooses.
fn release() -> String {
    std::env::var("SALTERN_TEST_KAFKA").unwrap_or_else(|_| "4.1.0".to_owned())
}
