//! The thread that reads from Kafka, hands messages on, and commits them when they are safe.
//!
//! librdkafka calls back on the thread that polls, and a rebalance waits for receipts. So the
//! consumer has a blocking thread of the sources' runtime to itself. When it may not read it still
//! polls, with its partitions paused, because a group throws out a consumer that does not poll.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::group::{Context, commit};
use super::in_flight::{Front, Lot};
use super::messages::{Events, Format, Gathered};
use super::seen::Seen;
use super::settings::Config;
use crate::client::backoff::Backoff;
use crate::client::kafka::{explained, not_made};
use crate::event::{EventId, Origin};
use crate::source::contract::SourceError;
use crate::source::frame_sender::FrameSender;
use crate::source::link::Link;
use crate::sync::receipt::Receipt;

/// The thread that reads.
pub(super) struct Worker {
    consumer: BaseConsumer<Context>,
    format: Format,
    /// A topic to ask for, to see whether brokers are there; `None` for all.
    topic: Option<String>,
    topics: Vec<String>,
    brokers: String,
    sender: FrameSender,
    runtime: Handle,
    link: Link,
    is_up: bool,
    gathered: Gathered,
    committed: Instant,
    /// The waits before messages are read again that were not kept.
    backoff: Backoff,
    has_seen_bad: bool,
}

/// The time to wait for a message before looking at the receipts.
const IDLE: Duration = Duration::from_millis(100);

/// The time to wait for room before the group is told that this worker lives.
const HELD_UP: Duration = Duration::from_secs(1);

/// The interval at which offsets are committed.
const COMMIT: Duration = Duration::from_secs(1);

/// The wait before events that were not kept are read again, and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

impl Worker {
    pub(super) fn join(
        config: &Config,
        sender: FrameSender,
        runtime: Handle,
    ) -> Result<Self, SourceError> {
        let failed = |error: &KafkaError| {
            SourceError::new(format!("subscribing at {}", config.brokers), explained(error))
        };
        let seen = Seen::new(&sender.state.name);
        let context = Context::new(runtime.clone(), Some(seen));
        let consumer = config.client.create_with_context(context).map_err(|error| {
            let doing = format!("subscribing at {}", config.brokers);
            SourceError::new(doing, not_made(&error, &config.client))
        })?;
        let worker = Worker {
            consumer,
            format: config.format,
            topic: config.names().next().map(str::to_owned),
            topics: config.topics.clone(),
            brokers: config.brokers.clone(),
            link: Link::keeping(sender.state.clone()),
            sender,
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

    pub(super) fn run(mut self, stop: &CancellationToken) -> Result<(), SourceError> {
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
        // The next reader takes the rest again. The consumer leaves its group when it is dropped,
        // and need not wait for the rest once more.
        self.consumer.context().in_flight().forget();
        Ok(())
    }

    /// Takes what has become safe, and commits it now and then.
    fn settle(&mut self) -> Front {
        let mut in_flight = self.consumer.context().in_flight();
        let front = in_flight.settle_all().now_or_never().unwrap_or(Front::Safe);
        if front == Front::None {
            self.backoff.reset();
        }
        if self.committed.elapsed() >= COMMIT {
            self.committed = Instant::now();
            commit(&self.consumer, &mut in_flight, CommitMode::Async);
        }
        self.consumer.context().show(&in_flight);
        front
    }

    /// Reads messages that are there, and waits for a moment if there are none.
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

    /// Polls once; returns true if there was a message.
    fn poll(&mut self, wait: Duration) -> Result<bool, SourceError> {
        match self.consumer.poll(wait) {
            None => return Ok(false),
            Some(Err(error)) => {
                self.note(&error)?;
                return Ok(false);
            }
            Some(Ok(message)) => match self.gathered.take(&message, self.format) {
                Ok(replaced) => self.sender.state.replaced(replaced),
                Err(error) => {
                    let (source, topic) = (&self.sender.state.name, message.topic());
                    let (partition, offset) = (message.partition(), message.offset());
                    self.sender.state.bad_frames.add(1);
                    if std::mem::replace(&mut self.has_seen_bad, true) {
                        debug!(source, topic, partition, offset, %error, "a message is no event");
                    } else {
                        let reason = format!("{topic} {partition}@{offset} is no event: {error}");
                        self.sender.state.failed(&reason);
                        warn!(source, reason, "reading goes on, more of them are counted");
                    }
                }
            },
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

    /// Hands on the gathered messages; `false` if that is of no use any more.
    fn hand_on(&mut self) -> Result<bool, SourceError> {
        let Gathered { events, ends, bytes, .. } = std::mem::take(&mut self.gathered);
        if ends.is_empty() {
            return Ok(true);
        }
        let mut receipts = Vec::with_capacity(events.len());
        for (master, Events { frames, ids }) in events {
            let mut sender = self.sender.clone();
            if let Some(master_id) = master {
                let source = sender.origin.source.clone();
                sender.origin = Arc::new(Origin { source, master_id });
            }
            let Some(receipt) = self.send(&sender, frames, ids)? else { return Ok(false) };
            receipts.push(receipt);
        }
        self.consumer.context().in_flight().push(Lot::new(receipts, ends, bytes));
        Ok(true)
    }

    fn send(
        &mut self,
        sender: &FrameSender,
        frames: Vec<Bytes>,
        ids: Vec<Option<EventId>>,
    ) -> Result<Option<Receipt>, SourceError> {
        let runtime = self.runtime.clone();
        let mut sending = pin!(sender.send_for_receipt(frames, ids));
        loop {
            match runtime.block_on(async { timeout(HELD_UP, &mut sending).await }) {
                Ok(receipt) => return Ok(receipt),
                Err(_) => self.serve()?,
            }
        }
    }

    /// Leaves the group and joins it again, so that everything behind the last commit is read
    /// again.
    fn begin_again(&mut self, stop: &CancellationToken) -> Result<(), SourceError> {
        let context = self.consumer.context();
        let reason = "events were not kept by every sink that wants them, and are read again";
        if self.sender.state.failed(reason) {
            warn!(
                source = self.sender.state.name,
                "{reason}; saltern_sink_dropped_events_total says which sink and why"
            );
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

    /// Notes an error that librdkafka will get over by itself, and fails with any other.
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
        } else if self.sender.state.failed(&reason) {
            warn!(source = self.sender.state.name, reason, "Kafka reports an error");
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
