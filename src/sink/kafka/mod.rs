//! `kafka`: each event a message in a topic of Apache Kafka, by librdkafka, which is part of the
//! binary.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   bus: {salt_bus: {}}
//! sinks:
//!   analytics:
//!     kafka: {brokers: [kafka-1:9092, kafka-2:9092], topic: salt.events}
//! ```
//!
//! # Stored
//!
//! A message for each event:
//!
//! * topic: by template. `{kind}` stands for the event's kind (`job_return`), `{master}` for the
//!   master's id, with `_` for characters that cannot be in a name. It is made if it is missing;
//!   with `create: false` the sink waits until somebody makes it
//! * key: the minion's id, the jid, the tag, or nothing. Messages with the same key stay in order;
//!   an event without a minion has no key. The partition is the one that Java's producers choose
//!   (`murmur2_random`)
//! * value: with `json` the object that `rawfile_json` writes, `{"tag": …, "data": …}`; with
//!   `msgpack` a map of `tag` (text) and `data`, the payload byte by byte; with `salt_returner` the
//!   return alone as JSON, as Salt's returner `kafka` sends it (other events are not sent)
//! * headers: `tag`, `kind`, `master`, `event_id` (32 hexadecimal digits), `stamp` (the event's
//!   `_stamp`, else when it was read, ISO 8601); of returns of minions and runners `outcome`
//!   (`worked`, `failed`, `unknown`: the [one rule](../configuration.md#how-a-return-went))
//! * timestamp: when the event was read
//!
//! `saltern check` refuses unknown `properties`, and those that have a key here.
//!
//! # Guarantee
//!
//! Events are in order for each key, and unique by the header `event_id`; with `transactional:
//! true` a reader with `isolation.level=read_committed` sees each event once. `acks=all`,
//! idempotent: a batch comes again if a part of it could not be delivered.
//!
//! Without transactions each writer has up to two batches under way, and after a failure both may
//! come again: first the one that failed, whole, then the next, whole. So a copy of a later event
//! may stand before the repeat of an earlier one. The last copies of a key's events are in order,
//! with one exception: the events that were in one request with a refused message are sent again
//! alone, and may stand behind later ones of their batch.
//!
//! With `transactional` that holds over restarts and `kill -9` of brokers, and over those of
//! saltern with `spill.mode: durable` and one writer. With more writers a batch that was under way
//! when saltern was killed may come back to a writer that does not know it. The transaction also
//! notes the ids of the last 16 batches. They are the metadata of an offset of the group
//! `saltern/MASTER_ID/SINK/WRITER` in partition 0 of the topic (of `{kind}` = `custom`). So do not
//! delete that group; brokers forget it after `offsets.retention.minutes` (7 days) without events.
//! That name is the transactional id too. Two daemons of one `master_id` with a sink of one name
//! end each other's transactions, and the one that finds another's note parks and says so.
//!
//! # Failures
//!
//! * brokers gone, a leader moved, too few in-sync replicas, a full disk → the batch comes again
//!   until it is stored; librdkafka itself gives up after 30 s (`message.timeout.ms`) →
//!   `saltern_sink_up` is 0, `saltern_sink_retries_total` rises
//! * librdkafka's queue (64 MiB) is full → the sink waits → `saltern_sink_lag_seconds` rises
//! * a message is too large (32 MiB, or `max.message.bytes` of the topic when compressed) or
//!   invalid → the brokers refuse its whole request, so its messages are sent again one by one, and
//!   a batch that was under way behind it is sent again → the ones refused alone are dead letters
//! * wrong password, not allowed by access lists → the sink parks until the configuration is
//!   corrected → `/readyz` says no and names the sink
//! * untrusted certificate → tried again → the log has the reason
//! * another daemon has the transactional id → the sink parks → the log names the other's note
//!
//! A topic with a `max.message.bytes` below 1 MB should have the property `batch.size` below it,
//! too.
//!
//! # Differences
//!
//! All events are sent, not only returns, over one connection. The key is the minion instead of
//! Python's `repr` of the whole return, so that a minion's events stay in one partition.
//!
//! # Inside
//!
//! librdkafka sends. A batch is settled when there is a report of each of its messages. The next
//! batch is handed over before that, unless there are transactions (`kafka/flight.rs`). So
//! librdkafka holds two batches of a writer: 16 MiB of events with the default size, and as JSON
//! about as much. Its own bound of 64 MiB holds for both. Where it has no room the next batch waits
//! for its turn. As the next batch is there under load, librdkafka may wait for full requests
//! (`linger.ms`) at no cost.
//!
//! After a failure nothing is purged from librdkafka's queue. A purge leaves a gap in the numbers
//! that make the producer idempotent, and librdkafka mends such a gap only in transactions. The
//! messages of the next batch that still go out are copies that come too early; the last copies
//! follow in order.
//!
//! In transactions the values alone of the next batch are made ahead (`kafka/values.rs`), unless
//! they take more than twice the memory of its events. So those of two batches are in memory: 20
//! MiB with the default size, 32 MiB at the most, besides librdkafka's copies.
//! `kafka/transaction.rs` notes the batch in its transaction. The brokers refuse a whole request
//! for one message that is too large, so a refused message is sent once more alone. If it is
//! refused alone it becomes a dead letter.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseRecord, Producer, PurgeConfig, ThreadedProducer};
use tokio::time::sleep;
use tracing::info;

use crate::client::kafka::not_made;
use crate::client::stream::Stream;
use crate::event::batch::{Batch, BatchLimits, Entry};
use crate::sink::contract::{
    ConnectError, Context, Defaults, Once, Preparer, Refusal, SaltForm, SaltOption, SaltReturner,
    Sink, WriteError,
};
use crate::sync::blocking;
use crate::units::{ByteSize, Span};

mod flight;
mod message;
mod outcome;
mod reports;
mod settings;
mod topics;
mod transaction;
mod unbounded_call;
mod values;

use flight::{Failed, Flight};
pub(super) use message::Format;
use outcome::{Outcome, sink_error};
use reports::Reports;
use settings::Config;
use topics::{LOOK, Topics};
use transaction::{Counts, Transactions, transactional_id};
use values::Values;

/// The time to wait while librdkafka's queue is full.
const FULL: Duration = Duration::from_millis(1);

/// A batch that was begun while the one before it was written.
pub(crate) enum Begun {
    /// Some of its messages are handed over, or all.
    Flight(Flight),
    /// The values of its messages, to be handed over in a transaction.
    Values(Values),
}

pub(super) struct Kafka {
    config: Arc<Config>,
    context: Context,
    producer: Arc<ThreadedProducer<Reports>>,
    topics: Topics,
    transactions: Option<Transactions>,
    counts: Counts,
    /// A message's value while it is handed over; kept for its memory.
    value: Vec<u8>,
}

/// The messages of a batch.
#[derive(Clone, Copy)]
struct Messages<'a> {
    batch: &'a Batch,
    /// Their values, if they were made ahead.
    values: Option<&'a Values>,
}

/// Appends the values of a batch's messages one after the other; returns their length.
pub(super) fn encode(batch: &Batch, format: Format, out: &mut Vec<u8>) -> usize {
    for entry in batch.entries().filter(|entry| format.takes(entry.event.kind())) {
        format.write(&entry, out);
    }
    out.len()
}

impl Sink for Kafka {
    const NAME: &'static str = "kafka";
    const ABOUT: &'static str = "messages in topics of Apache Kafka, in transactions if wanted";
    const DEFAULTS: Defaults =
        Defaults::store(BatchLimits::new(10_000, ByteSize::mib(8), Span::millis(200)));
    const ONCE: Once = Once::No;
    const SALT: Option<SaltReturner> = Some(SaltReturner {
        names: &["kafka"],
        sections: &["returner.kafka"],
        stores_events: false,
        options: &[
            SaltOption {
                name: "bootstrap",
                setting: "brokers",
                is_needed: true,
                form: SaltForm::Servers { port: 9092, each: "BROKER" },
            },
            SaltOption {
                name: "topic",
                setting: "topic",
                is_needed: true,
                form: SaltForm::Name { longest: 249 },
            },
        ],
        fixed: &[("value", "salt_returner")],
        file: None,
        note: Some(
            "Salt's `kafka` makes the return's text in Python the message's key; here it is the \
             minion's id.",
        ),
    });
    type Config = Config;
    type Prepared = Begun;

    fn check(config: &Config, _limit: Duration) -> Vec<String> {
        config.shows_password().into_iter().collect()
    }

    fn writes(config: &Config) -> Vec<Stream> {
        config.writes.clone()
    }

    async fn connect(config: &Config, context: &Context) -> Result<Self, ConnectError> {
        let config = Arc::new(config.clone());
        blocking(|| Kafka::open(&config, context)).map_err(WriteError::while_connecting)
    }

    async fn write(&mut self, batch: &Batch, prepared: Option<Begun>) -> Result<(), WriteError> {
        let committed = self.transactions.as_ref().and_then(|t| t.committed(batch.id()));
        if let Some(refused) = committed {
            self.counts.known.add(1);
            info!(batch = %batch.id(), "the batch was committed before, and is not sent again");
            return verdict(refused.to_vec());
        }
        let result = self.store(batch, prepared).await;
        match (result, &self.transactions) {
            (Err(failed), Some(transactions)) if self.is_fenced() => {
                Err(blocking(|| transactions.fenced(batch.id(), failed)))
            }
            (result, _) => result,
        }
    }

    fn preparer(&self) -> Option<Preparer<Begun>> {
        let config = Arc::clone(&self.config);
        if self.transactions.is_some() {
            return Some(Box::new(move |batch| Values::of(batch, config.value).map(Begun::Values)));
        }
        // The producer is to be dropped where that may block, so this must not keep it.
        let producer = Arc::downgrade(&self.producer);
        let reports = Arc::clone(self.producer.context());
        let topics = self.topics.clone();
        Some(Box::new(move |batch| {
            let begun = reports.ahead(|| {
                // Its write looks for topics.
                if !topics_of(&config, batch).all(|topic| topics.knows(&topic)) {
                    return None;
                }
                let producer = producer.upgrade()?;
                let mut flight = reports.flights().begin_ahead(batch.len())?;
                // A flight that is disturbed is thrown away.
                let is_wanted = |flight: &Flight, _: usize| !flight.is_disturbed();
                let (messages, value) = (Messages { batch, values: None }, &mut Vec::new());
                // Its write goes on from where this stops: at a full queue, at any error.
                let _ = hand_over(&config, &producer, messages, is_wanted, &mut flight, value);
                Some(Begun::Flight(flight))
            });
            begun.flatten()
        }))
    }

    async fn close(self) -> Result<(), WriteError> {
        // Messages of a batch that was begun ahead go with the producer. It is not settled, so it
        // comes again.
        blocking(|| drop(self));
        Ok(())
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // The producer ends here, and not on the thread that hands over ahead.
        self.producer.context().close();
        if self.transactions.as_mut().is_some_and(|t| t.leave(&self.producer)) {
            self.counts.taken_back.add(1);
        }
    }
}

impl Kafka {
    fn open(config: &Arc<Config>, context: &Context) -> Result<Self, WriteError> {
        let mut settings = config.producer.clone();
        // A message that waits longer than the engine does is sent twice.
        let given: u64 =
            settings.get("message.timeout.ms").and_then(|ms| ms.parse().ok()).unwrap_or(0);
        let half = u64::try_from(context.limit.as_millis() / 2).unwrap_or(u64::MAX).max(1);
        if half < given {
            settings.set("message.timeout.ms", half.to_string());
        }
        if config.is_transactional {
            settings.set("transactional.id", transactional_id(context));
        }
        let producer: ThreadedProducer<Reports> =
            settings.create_with_context(Reports::default()).map_err(|error| {
                WriteError::fatal("setting up a Kafka producer", not_made(&error, &settings))
            })?;
        let mut topics = Topics::default();
        match config.topic.fixed() {
            Some(topic) => topics.ensure(topic, &producer, &config.client, config.create)?,
            None => {
                let answer = producer.client().fetch_metadata(None, LOOK);
                answer.map_err(|error| sink_error("connecting to Kafka", error, &producer))?;
            }
        }
        let transactions = match config.is_transactional {
            false => None,
            true => {
                // The topic of the marks must not depend on the events.
                let notes = config.topic.name(crate::event::EventKind::Custom, &context.master_id);
                if !topics.knows(&notes) {
                    topics.ensure(&notes, &producer, &config.client, config.create)?;
                }
                Some(Transactions::open(&producer, &config.client, context, &notes)?)
            }
        };
        let context = context.clone();
        let producer = Arc::new(producer);
        let counts = Counts::new(&context.name);
        let config = Arc::clone(config);
        Ok(Kafka { config, context, producer, topics, transactions, counts, value: Vec::new() })
    }

    async fn store(&mut self, batch: &Batch, begun: Option<Begun>) -> Result<(), WriteError> {
        if !batch.events().any(|event| self.config.value.takes(event.kind())) {
            return Ok(());
        }
        blocking(|| self.find_topics(batch))?;
        let (mut refused, mut taken) = (BTreeSet::new(), BTreeSet::new());
        let (mut flight, values) = match begun {
            Some(Begun::Flight(flight)) => (Some(flight).filter(|f| self.is_good(f)), None),
            Some(Begun::Values(values)) => (None, Some(values)),
            None => (None, None),
        };
        let messages = Messages { batch, values: values.as_ref() };
        loop {
            let suspects = self.attempt(messages, flight.take(), &refused, &taken).await?;
            if suspects.is_empty() {
                return verdict(refused.into_iter().collect());
            }
            let guilty = self.refused_alone(messages, &suspects).await?;
            if self.transactions.is_none() {
                return verdict(guilty.into_iter().collect());
            }
            // Messages tried alone were taken back; they are still to be stored, with the others.
            if guilty.is_empty() && suspects.is_subset(&taken) {
                let cause = "the brokers refuse messages that they have just taken";
                return Err(WriteError::retry("writing to Kafka", cause));
            }
            taken.extend(suspects.difference(&guilty));
            refused.extend(guilty);
        }
    }

    /// A flight that was begun ahead can go on.
    fn is_good(&self, flight: &Flight) -> bool {
        flight.is_of(self.producer.context().flights()) && !flight.is_disturbed()
    }

    /// A flight for a batch, or for a part of it; another may be begun behind it if it `leads`.
    fn new_flight(&self, batch: &Batch, leads: bool) -> Flight {
        let reports = self.producer.context();
        reports.forget_trouble();
        reports.flights().begin(batch.len(), leads)
    }

    fn find_topics(&mut self, batch: &Batch) -> Result<(), WriteError> {
        let Config { create, client, .. } = &*self.config;
        for topic in topics_of(&self.config, batch) {
            if !self.topics.knows(&topic) {
                self.topics.ensure(&topic, &self.producer, client, *create)?;
            }
        }
        Ok(())
    }

    /// Sends the batch without the events of `left_out`, in a transaction if wanted. Returns the
    /// places of refused events; the transaction is committed if there are none.
    async fn attempt(
        &mut self,
        messages: Messages<'_>,
        begun: Option<Flight>,
        left_out: &BTreeSet<usize>,
        alone: &BTreeSet<usize>,
    ) -> Result<BTreeSet<usize>, WriteError> {
        if let Some(transactions) = &mut self.transactions {
            transactions.begin(&self.producer)?;
        }
        let is_with_others = |place| !left_out.contains(&place) && !alone.contains(&place);
        let flight = begun.unwrap_or_else(|| self.new_flight(messages.batch, true));
        let mut refused = self.send(messages, flight, is_with_others).await?;
        for place in alone {
            if refused.is_empty() {
                refused = self.send_one(messages, *place).await?;
            }
        }
        if let Some(transactions) = &mut self.transactions {
            if refused.is_empty() {
                let left_out: Vec<_> = left_out.iter().copied().collect();
                transactions.commit(&self.producer, messages.batch.id(), &left_out).await?;
                self.counts.committed.add(1);
            } else {
                self.renew()?;
            }
        }
        Ok(refused)
    }

    /// Sends each of these alone; returns those that are refused even so. A transaction, if wanted,
    /// is taken back.
    async fn refused_alone(
        &mut self,
        messages: Messages<'_>,
        suspects: &BTreeSet<usize>,
    ) -> Result<BTreeSet<usize>, WriteError> {
        let mut all_refused = BTreeSet::new();
        for place in suspects {
            if let Some(transactions) = &mut self.transactions
                && !transactions.is_open()
            {
                transactions.begin(&self.producer)?;
            }
            let refused = self.send_one(messages, *place).await?;
            if !refused.is_empty() && self.transactions.is_some() {
                self.renew()?;
            }
            all_refused.extend(refused);
        }
        if self.transactions.as_ref().is_some_and(Transactions::is_open) {
            self.renew()?;
        }
        Ok(all_refused)
    }

    /// Takes the transaction back over a new producer: that is sure, and quick. After a failed
    /// message librdkafka itself asks for a new epoch. Brokers from 4.0 on may let it wait for long
    /// and then say that it is fenced.
    fn renew(&mut self) -> Result<(), WriteError> {
        if let Some(transactions) = &mut self.transactions {
            transactions.give_up();
            self.counts.taken_back.add(1);
        }
        blocking(|| {
            *self = Kafka::open(&self.config, &self.context)?;
            Ok(())
        })
    }

    /// Sends an event alone.
    async fn send_one(
        &mut self,
        messages: Messages<'_>,
        place: usize,
    ) -> Result<BTreeSet<usize>, WriteError> {
        let flight = self.new_flight(messages.batch, false);
        self.send(messages, flight, |other| other == place).await
    }

    /// Sends the events at the places that `is_wanted`, from where the flight stands, and waits for
    /// all reports; returns the places of events that the brokers refuse.
    async fn send(
        &mut self,
        messages: Messages<'_>,
        mut flight: Flight,
        is_wanted: impl Fn(usize) -> bool,
    ) -> Result<BTreeSet<usize>, WriteError> {
        // The place of the message that waits for room in a queue that is empty.
        let mut alone = None;
        loop {
            let handed_over = blocking(|| {
                let is_wanted = |_: &Flight, place| is_wanted(place);
                let (config, producer, value) = (&self.config, &self.producer, &mut self.value);
                hand_over(config, producer, messages, is_wanted, &mut flight, value)
            });
            let Err((place, code)) = handed_over else { break };
            let is_empty = self.producer.in_flight_count() == 0;
            match code {
                Code::QueueFull if !is_empty => sleep(FULL).await,
                // The queue may have run empty only after it was full.
                Code::QueueFull if alone != Some(place) => alone = Some(place),
                // It will never have room.
                Code::QueueFull => flight.fail(place, Code::MessageSizeTooLarge),
                code => flight.fail(place, code),
            }
        }
        let in_transaction = self.transactions.is_some();
        let failed = self.producer.context().end(flight, || {
            // It cannot be committed any more, and the rest would wait until its time is out. Do
            // not wait for it here: librdkafka would wait for ever for the thread of a broker that
            // has just left the cluster. The reports tell when it is done.
            if in_transaction {
                self.producer.purge(PurgeConfig::default().queue().inflight().non_blocking());
            }
        });
        let failed = failed.await;
        self.judge(&failed)
    }

    /// The places of refused events, if there was no other failure.
    fn judge(&mut self, failed: &[Failed]) -> Result<BTreeSet<usize>, WriteError> {
        let is_refused = |failed: &&Failed| Outcome::of(failed.code) == Outcome::Refused;
        let refused: BTreeSet<_> = failed.iter().filter(is_refused).map(|f| f.place).collect();
        let is_gone = |code| {
            matches!(
                code,
                Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition
            )
        };
        if failed.iter().any(|failed| is_gone(failed.code)) {
            self.topics.forget();
        }
        // After a refusal a transaction takes nothing more, so later failures tell nothing.
        let follows = |failed: &&Failed| {
            let is_doomed = self.transactions.is_some() && !refused.is_empty();
            is_doomed && (failed.code == Code::State || Outcome::of(failed.code) == Outcome::Later)
        };
        let others = failed.iter().filter(|failed| !is_refused(failed) && !follows(failed));
        match others.map(|failed| failed.code).min_by_key(|code| Outcome::of(*code)) {
            None => Ok(refused),
            Some(code) => {
                let error = KafkaError::MessageProduction(code);
                let failed = sink_error("writing to Kafka", error, &self.producer);
                Err(if self.transactions.is_some() {
                    failed.over_a_new_connection()
                } else {
                    failed
                })
            }
        }
    }

    fn is_fenced(&self) -> bool {
        let fatal = self.producer.client().fatal_error();
        fatal.is_some_and(|(code, _)| Outcome::of(code) == Outcome::Fenced)
    }
}

/// The topics of a batch's events: the only one, or one for each event.
fn topics_of<'a>(config: &'a Config, batch: &'a Batch) -> impl Iterator<Item = Cow<'a, str>> {
    let count = if config.topic.fixed().is_some() { 1 } else { usize::MAX };
    let entries = batch.entries().take(count);
    entries.map(|entry| config.topic.name(entry.event.kind(), &entry.origin.master_id))
}

/// Hands over the events at the places that `is_wanted`, from where the flight stands, and never
/// waits. Stops at one that is not taken. A value that was not made ahead is made in `out`.
fn hand_over(
    config: &Config,
    producer: &ThreadedProducer<Reports>,
    messages: Messages<'_>,
    is_wanted: impl Fn(&Flight, usize) -> bool,
    flight: &mut Flight,
    out: &mut Vec<u8>,
) -> Result<(), (usize, Code)> {
    for (place, entry) in messages.batch.entries().enumerate().skip(flight.next) {
        if !config.value.takes(entry.event.kind()) || !is_wanted(flight, place) {
            continue;
        }
        let topic = config.topic.name(entry.event.kind(), &entry.origin.master_id);
        let made = messages.values.and_then(|values| values.get(place));
        produce(config, producer, &topic, flight.number(place), &entry, made, out)
            .map_err(|code| (place, code))?;
        flight.handed_over(place);
    }
    Ok(())
}

/// Hands a message of this number to librdkafka, with the value that is `made`, or with one that it
/// makes in `out`.
fn produce(
    config: &Config,
    producer: &ThreadedProducer<Reports>,
    topic: &str,
    number: usize,
    entry: &Entry<'_>,
    made: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> Result<(), Code> {
    let event = entry.event;
    let fields = event.fields();
    if made.is_none() {
        config.value.write(entry, out);
    }
    let mut record = BaseRecord::with_opaque_to(topic, number)
        .payload(made.unwrap_or(out))
        .timestamp(i64::try_from(entry.received / 1000).unwrap_or(i64::MAX))
        .headers(message::headers(entry, &fields));
    if let Some(key) = config.key.of(event.tag(), &fields) {
        record = record.key(key);
    }
    let sent = producer.send(record).map_err(|(error, _)| error);
    // A large event must not hold its memory while the others are sent.
    out.clear();
    out.shrink_to(Kafka::DEFAULTS.batch.max_bytes);
    sent.map_err(|error| error.rdkafka_error_code().unwrap_or(Code::Fail))
}

/// The result of a batch that is stored except for refused events.
fn verdict(refused: Vec<usize>) -> Result<(), WriteError> {
    if refused.is_empty() {
        return Ok(());
    }
    let cause = "the message is too large, or not what the topic takes; the topic's \
                 `max.message.bytes` limits its compressed size";
    let refusal = |place| Refusal { place, cause: cause.into() };
    Err(WriteError::refused("writing to Kafka", refused.into_iter().map(refusal).collect()))
}
