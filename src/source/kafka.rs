//! `kafka`: events that the `kafka` sink of another saltern wrote to a topic, or that somebody else
//! did in the same form.
//!
//! Workers of one group share the partitions of the topics. A worker commits an offset only once
//! every sink that wants the events before it has them, stored or on disk ([`kafka_in_flight`]
//! (super::kafka_in_flight)), so that whoever reads a partition next begins with what is not safe.
//! Events may come twice therefore, with the same ids, and are never left out.
//!
//! A message says in its headers which event it is (`event_id`) and whose (`master`); without
//! headers both are what a bus event's would be. What is no event is counted, and its offset is
//! committed, for reading it again would not mend it.
//!
//! librdkafka calls back on the thread that polls, and a rebalance waits for receipts; so the
//! consumer has a blocking thread of the sources' runtime to itself. When it may not read on it still
//! polls, with its partitions paused, because a consumer that does not is thrown out of its group.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::kafka_in_flight::{Front, InFlight, Lot, Offsets, Place};
use super::written::{self, NotAnEvent};
use super::{Link, Outlet, Source, SourceError};
use crate::backoff::Backoff;
use crate::event::{EventId, Origin};
use crate::kafka_client::{self, ANSWER, Brokers, Properties, Sasl, Tls, explained};
use crate::receipt::Receipt;

/// Events from topics of Kafka, as an operator writes it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Written {
    /// Brokers to begin with, `HOST:PORT` each; they name the others.
    brokers: Brokers,
    /// Topics to read: names, or regular expressions that begin with `^`.
    topics: Vec<String>,
    /// The consumer group. Workers of one group share the topics; each group reads everything.
    #[serde(default = "default_group")]
    group: String,
    /// What the messages' values are.
    #[serde(default)]
    format: Format,
    /// TLS towards the brokers. Default: none.
    #[serde(default)]
    tls: Option<Tls>,
    /// Who logs in, and how. Default: nobody.
    #[serde(default)]
    sasl: Option<Sasl>,
    /// Settings of librdkafka by their own names.
    #[serde(default)]
    properties: Properties,
}

fn default_group() -> String {
    "saltern".to_owned()
}

/// What the values of messages are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// Told from the first byte of each.
    #[default]
    Auto,
    /// An object with `tag` and `data`.
    Json,
    /// A map of two, `tag` and `data`.
    Msgpack,
}

/// Events from topics of Kafka.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written")]
pub(super) struct Config {
    /// For people.
    brokers: String,
    topics: Vec<String>,
    format: Format,
    client: ClientConfig,
}

/// What the source sets itself, and why nobody else may.
const OWNED: &[(&str, &str)] = &[
    ("group.id", "group"),
    ("enable.auto.commit", "the manual: offsets are committed when the events are safe"),
    ("enable.auto.offset.store", "the manual: offsets are committed when the events are safe"),
    ("enable.partition.eof", "the manual: the source never ends"),
    ("isolation.level", "the manual: what a transaction took back is no event"),
];

impl TryFrom<Written> for Config {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { brokers, topics, group, format, tls, sasl, properties } = written;
        if topics.is_empty() || topics.iter().any(String::is_empty) {
            return Err("there is no topic; write topics: [salt.events]".to_owned());
        }
        let mut client = kafka_client::config(&brokers, tls.as_ref(), sasl.as_ref());
        for (name, value) in [
            ("group.id", group.as_str()),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", "read_committed"),
            // From here on `properties` may say otherwise.
            ("auto.offset.reset", "earliest"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            // Few answers with many messages each, and at most so much waiting in memory.
            ("fetch.min.bytes", "16384"),
            ("fetch.wait.max.ms", "50"),
            ("queued.max.messages.kbytes", "16384"),
            // Topics that come later are found within this.
            ("topic.metadata.refresh.interval.ms", "30000"),
        ] {
            client.set(name, value);
        }
        properties.set_on(&mut client, OWNED)?;
        Ok(Config { brokers: brokers.to_string(), topics, format, client })
    }
}

pub(super) struct Kafka;

impl Source for Kafka {
    const NAME: &'static str = "kafka";
    const ABOUT: &'static str = "events that a kafka sink wrote, shared by the workers of a group";
    type Config = Config;

    async fn run(
        config: &Config,
        outlet: Outlet,
        stop: CancellationToken,
    ) -> Result<(), SourceError> {
        let config = config.clone();
        let runtime = Handle::current();
        let reading = spawn_blocking(move || Worker::join(&config, outlet, runtime)?.run(&stop));
        reading.await.unwrap_or_else(|error| {
            Err(SourceError::new("reading from Kafka, on a thread of its own", error))
        })
    }

    async fn probe(config: &Config) -> Result<(), SourceError> {
        let config = config.clone();
        let asking = spawn_blocking(move || ask(&config));
        asking.await.unwrap_or_else(|error| Err(SourceError::new("asking Kafka", error)))
    }
}

/// Asks the brokers for each topic that has a name.
fn ask(config: &Config) -> Result<(), SourceError> {
    let doing = |topic: &str| format!("asking {} for {topic}", config.brokers);
    let context = Context::new(Handle::current());
    let client: BaseConsumer<Context> = config
        .client
        .create_with_context(context)
        .map_err(|error| SourceError::new(doing("anything"), explained(&error)))?;
    let names = || config.topics.iter().filter(|topic| !topic.starts_with('^'));
    if names().next().is_none() {
        let answer = client.fetch_metadata(None, ANSWER);
        return answer.map(drop).map_err(|error| {
            let cause = client.context().reason().unwrap_or_else(|| explained(&error));
            SourceError::new(doing("its topics"), cause)
        });
    }
    for name in names() {
        let failed = |error: &KafkaError| {
            let cause = client.context().reason().unwrap_or_else(|| explained(error));
            SourceError::new(doing(&format!("the topic `{name}`")), cause)
        };
        let metadata = client.fetch_metadata(Some(name), ANSWER).map_err(|e| failed(&e))?;
        let found = metadata.topics().iter().find(|topic| topic.name() == name);
        if let Some(error) = found.and_then(rdkafka::metadata::MetadataTopic::error) {
            return Err(failed(&KafkaError::MetadataFetch(error.into())));
        }
    }
    Ok(())
}

/// What librdkafka calls back.
struct Context {
    in_flight: Mutex<InFlight>,
    runtime: Handle,
    /// Partitions are paused, also those that come.
    is_paused: AtomicBool,
    /// The group has given this consumer its part.
    has_joined: AtomicBool,
    /// librdkafka's own words for the last error.
    reason: Mutex<Option<String>>,
}

/// How long a rebalance or a stop waits for receipts. Well below the time after which a group goes
/// on without a member, and below the default deadline for stopping.
const LET_GO: Duration = Duration::from_secs(10);

impl Context {
    fn new(runtime: Handle) -> Self {
        Context {
            in_flight: Mutex::default(),
            runtime,
            is_paused: AtomicBool::new(false),
            has_joined: AtomicBool::new(false),
            reason: Mutex::default(),
        }
    }

    /// Taken by the thread that polls alone; the lock is for the callbacks' `&self`.
    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reason(&self) -> Option<String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits until what is in flight is safe, for so long, and commits what is.
    fn bring_home(&self, consumer: &BaseConsumer<Context>) {
        let mut in_flight = self.in_flight();
        let waiting = async { timeout(LET_GO, in_flight.settle_all()).await };
        if self.runtime.block_on(waiting).is_err() {
            info!("the sinks have not kept everything yet; it will be read again");
        }
        commit(consumer, &mut in_flight, CommitMode::Sync);
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        kafka_client::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "librdkafka reports an error");
        let reason = format!("{reason}: {}", explained(&error));
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Revoke(partitions) = rebalance else { return };
        debug!(partitions = partitions.count(), "partitions go to another worker");
        // What is lost already cannot be committed.
        if partitions.count() > 0 && !consumer.assignment_lost() {
            self.bring_home(consumer);
        }
        self.in_flight().revoke(places(partitions));
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(partitions) = rebalance else { return };
        debug!(partitions = partitions.count(), "partitions come to this worker");
        self.in_flight().assign(places(partitions));
        self.has_joined.store(true, Ordering::Relaxed);
        if self.is_paused.load(Ordering::Relaxed)
            && let Err(error) = consumer.pause(partitions)
        {
            warn!(%error, "partitions cannot be paused");
        }
    }

    fn commit_callback(&self, result: Result<(), KafkaError>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // Sent again with the next.
            debug!(%error, "offsets were not committed");
            self.in_flight().not_committed();
        }
    }
}

fn places(partitions: &TopicPartitionList) -> impl Iterator<Item = Place> {
    let elements = partitions.elements();
    elements.into_iter().map(|element| (element.topic().into(), element.partition()))
}

/// Commits what has become safe.
fn commit(consumer: &BaseConsumer<Context>, in_flight: &mut InFlight, mode: CommitMode) {
    let Some(offsets) = in_flight.to_commit() else { return };
    let mut list = TopicPartitionList::new();
    let added = offsets.iter().try_for_each(|((topic, partition), next)| {
        list.add_partition_offset(topic, *partition, Offset::Offset(*next))
    });
    if let Err(error) = added.and_then(|()| consumer.commit(&list, mode)) {
        debug!(%error, "offsets were not committed");
        in_flight.not_committed();
    }
}

/// Messages that were read and are to be handed on together.
#[derive(Default)]
struct Gathered {
    /// By master; `None` for that of the source.
    events: BTreeMap<Option<String>, (Vec<Bytes>, Vec<Option<EventId>>)>,
    /// Behind the last message of each partition.
    ends: Offsets,
    /// The place of the last message, which is likely that of the next.
    place: Option<Place>,
    messages: usize,
    bytes: usize,
}

/// Messages of a lot at the most, and bytes; the last message may go over.
const MAX_MESSAGES: usize = 1000;
const MAX_BYTES: usize = 1 << 20;

/// The longest name of a master that is believed.
const MAX_MASTER: usize = 255;

impl Gathered {
    fn is_full(&self) -> bool {
        self.messages >= MAX_MESSAGES || self.bytes >= MAX_BYTES
    }

    /// Takes a message; its offset counts as read whether or not it is an event.
    fn take(&mut self, message: &BorrowedMessage<'_>, format: Format) -> Result<(), NotAnEvent> {
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        let is_there = |place: &Place| &*place.0 == topic && place.1 == partition;
        let place = self.place.take().filter(is_there).unwrap_or_else(|| (topic.into(), partition));
        self.place = Some(place.clone());
        self.ends.insert(place, offset + 1);
        self.messages += 1;

        let frame = frame_of(message.payload().unwrap_or_default(), format)?;
        let (mut master, mut id) = (None, None);
        for header in message.headers().iter().flat_map(|headers| headers.iter()) {
            let value = header.value.unwrap_or_default();
            match header.key {
                "event_id" => id = EventId::from_hex(value),
                "master" => master = std::str::from_utf8(value).ok(),
                _ => {}
            }
        }
        let master = master.filter(|master| !master.is_empty() && master.len() <= MAX_MASTER);
        self.bytes += frame.len();
        let (frames, ids) = self.events.entry(master.map(str::to_owned)).or_default();
        frames.push(frame);
        ids.push(id);
        Ok(())
    }
}

fn frame_of(value: &[u8], format: Format) -> Result<Bytes, NotAnEvent> {
    match (format, value.first()) {
        (Format::Json, _) | (Format::Auto, Some(b'{' | b' ' | b'\t' | b'\r' | b'\n')) => {
            written::from_json(value)
        }
        (Format::Msgpack | Format::Auto, _) => written::from_msgpack(value),
    }
}

/// The thread that reads.
struct Worker {
    consumer: BaseConsumer<Context>,
    format: Format,
    /// A topic to ask for, to see whether brokers are there; `None` for all.
    topic: Option<String>,
    topics: Vec<String>,
    brokers: String,
    outlet: Outlet,
    runtime: Handle,
    link: Link,
    is_up: bool,
    gathered: Gathered,
    committed: Instant,
    /// Waits before what was not kept is read again.
    backoff: Backoff,
    has_seen_bad: bool,
}

/// How long to wait for a message before looking at the receipts.
const IDLE: Duration = Duration::from_millis(100);

/// How long to wait for room before the group is told that this worker lives.
const HELD_UP: Duration = Duration::from_secs(1);

/// How often offsets are committed.
const COMMIT: Duration = Duration::from_secs(1);

/// The wait before events that were not kept are read again, and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

impl Worker {
    fn join(config: &Config, outlet: Outlet, runtime: Handle) -> Result<Self, SourceError> {
        let failed = |error: &KafkaError| {
            SourceError::new(format!("subscribing at {}", config.brokers), explained(error))
        };
        let context = Context::new(runtime.clone());
        let consumer = config.client.create_with_context(context).map_err(|e| failed(&e))?;
        let worker = Worker {
            consumer,
            format: config.format,
            topic: config.topics.iter().find(|topic| !topic.starts_with('^')).cloned(),
            topics: config.topics.clone(),
            brokers: config.brokers.clone(),
            link: Link::keeping(outlet.state.clone()),
            outlet,
            runtime,
            is_up: false,
            gathered: Gathered::default(),
            committed: Instant::now(),
            backoff: Backoff::new(AGAIN.0, AGAIN.1),
            has_seen_bad: false,
        };
        worker.subscribe().map_err(|e| failed(&e))?;
        Ok(worker)
    }

    fn subscribe(&self) -> Result<(), KafkaError> {
        let topics: Vec<_> = self.topics.iter().map(String::as_str).collect();
        self.consumer.subscribe(&topics)
    }

    fn run(mut self, stop: &CancellationToken) -> Result<(), SourceError> {
        while !stop.is_cancelled() {
            self.look_at_brokers();
            match self.settle() {
                Front::NotKept => self.begin_again(stop)?,
                _ if self.consumer.context().in_flight().is_full() => self.wait_for_room()?,
                _ => {
                    self.gather()?;
                    if !self.hand_on()? {
                        break;
                    }
                }
            }
        }
        if self.is_up {
            self.consumer.context().bring_home(&self.consumer);
        }
        // What is left is read again by whoever comes next; the consumer leaves its group when it is
        // dropped, and need not wait for it once more.
        self.consumer.context().in_flight().forget();
        Ok(())
    }

    /// Takes what has become safe, and commits it now and then.
    fn settle(&mut self) -> Front {
        let mut in_flight = self.consumer.context().in_flight();
        let front = in_flight.settle_all().now_or_never().unwrap_or(Front::Safe);
        if self.committed.elapsed() >= COMMIT {
            self.committed = Instant::now();
            commit(&self.consumer, &mut in_flight, CommitMode::Async);
        }
        front
    }

    /// Reads what is there, and waits for a moment if there is nothing.
    fn gather(&mut self) -> Result<(), SourceError> {
        if self.consumer.context().is_paused.swap(false, Ordering::Relaxed) {
            let all = self.consumer.assignment();
            if let Err(error) = all.and_then(|all| self.consumer.resume(&all)) {
                warn!(%error, "partitions cannot be resumed");
            }
        }
        let mut wait = IDLE;
        while !self.gathered.is_full() && self.poll(wait)? {
            wait = Duration::ZERO;
        }
        Ok(())
    }

    /// Polls once; whether there was a message.
    fn poll(&mut self, wait: Duration) -> Result<bool, SourceError> {
        match self.consumer.poll(wait) {
            None => return Ok(false),
            Some(Err(error)) => {
                self.note(&error)?;
                return Ok(false);
            }
            Some(Ok(message)) => {
                if let Err(error) = self.gathered.take(&message, self.format) {
                    let (source, topic) = (&self.outlet.state.name, message.topic());
                    let (partition, offset) = (message.partition(), message.offset());
                    self.outlet.state.bad_frames.add(1);
                    if std::mem::replace(&mut self.has_seen_bad, true) {
                        debug!(source, topic, partition, offset, %error, "a message is no event");
                    } else {
                        let reason = format!("{topic} {partition}@{offset} is no event: {error}");
                        self.outlet.state.failed(&reason);
                        warn!(source, "{reason}; reading goes on, more of them are counted");
                    }
                }
            }
        }
        Ok(true)
    }

    /// Lets librdkafka work while this worker may not read on. A message that comes in spite of the
    /// pause is handed on with the next.
    fn serve(&mut self) -> Result<(), SourceError> {
        if !self.consumer.context().is_paused.swap(true, Ordering::Relaxed) {
            let all = self.consumer.assignment();
            if let Err(error) = all.and_then(|all| self.consumer.pause(&all)) {
                warn!(%error, "partitions cannot be paused");
            }
        }
        self.poll(Duration::ZERO).map(drop)
    }

    fn wait_for_room(&mut self) -> Result<(), SourceError> {
        let mut in_flight = self.consumer.context().in_flight();
        let waiting = async { timeout(HELD_UP, in_flight.settle()).await };
        let has_settled = self.runtime.block_on(waiting).is_ok();
        drop(in_flight);
        if has_settled { Ok(()) } else { self.serve() }
    }

    /// Hands on what was gathered; `false` if that is of no use any more.
    fn hand_on(&mut self) -> Result<bool, SourceError> {
        let Gathered { events, ends, bytes, .. } = std::mem::take(&mut self.gathered);
        if ends.is_empty() {
            return Ok(true);
        }
        let mut receipts = Vec::with_capacity(events.len());
        for (master, (frames, ids)) in events {
            let mut outlet = self.outlet.clone();
            if let Some(master_id) = master {
                let source = outlet.origin.source.clone();
                outlet.origin = Arc::new(Origin { source, master_id });
            }
            let Some(receipt) = self.send(&outlet, frames, ids)? else { return Ok(false) };
            receipts.push(receipt);
        }
        self.consumer.context().in_flight().push(Lot::new(receipts, ends, bytes));
        Ok(true)
    }

    fn send(
        &mut self,
        outlet: &Outlet,
        frames: Vec<Bytes>,
        ids: Vec<Option<EventId>>,
    ) -> Result<Option<Receipt>, SourceError> {
        let runtime = self.runtime.clone();
        let mut sending = pin!(outlet.send_for_receipt(frames, ids));
        loop {
            match runtime.block_on(async { timeout(HELD_UP, &mut sending).await }) {
                Ok(receipt) => return Ok(receipt),
                Err(_) => self.serve()?,
            }
        }
    }

    /// Leaves the group and joins it again, so that everything behind the last commit is read again.
    fn begin_again(&mut self, stop: &CancellationToken) -> Result<(), SourceError> {
        let context = self.consumer.context();
        let reason = "events were not kept by every sink that wants them, and are read again";
        if self.outlet.state.failed(reason) {
            warn!(source = self.outlet.state.name, "{reason}; see what each sink dropped");
        }
        commit(&self.consumer, &mut context.in_flight(), CommitMode::Sync);
        context.in_flight().forget();
        self.gathered = Gathered::default();
        self.consumer.unsubscribe();
        let waiting = stop.run_until_cancelled(sleep(self.backoff.delay(None)));
        self.runtime.block_on(waiting);
        self.subscribe().map_err(|error| {
            SourceError::new(format!("subscribing at {}", self.brokers), explained(&error))
        })
    }

    /// Notes an error that librdkafka will get over by itself, and fails of one that it will not.
    fn note(&mut self, error: &KafkaError) -> Result<(), SourceError> {
        let reason = self.consumer.context().reason().unwrap_or_else(|| explained(error));
        if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            return Err(SourceError::new(format!("reading from {}", self.brokers), reason));
        }
        let is_lost = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
        if !self.is_up {
            self.link.absent(&reason);
        } else if is_lost {
            self.is_up = false;
            self.link.lost(&reason);
        } else if self.outlet.state.failed(&reason) {
            warn!(source = self.outlet.state.name, reason, "Kafka reports an error");
        }
        Ok(())
    }

    /// Sees whether the brokers are there, or there again.
    fn look_at_brokers(&mut self) {
        let has_joined = self.consumer.context().has_joined.load(Ordering::Relaxed);
        if self.is_up || !has_joined {
            return;
        }
        if self.consumer.fetch_metadata(self.topic.as_deref(), HELD_UP).is_ok() {
            self.is_up = true;
            self.link.up(&self.brokers);
        }
    }
}
