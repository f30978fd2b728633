//! A worker's part in its group: callbacks of librdkafka when partitions come and go, and commits.
//!
//! All of it runs on the thread that polls. Before partitions go, the worker waits for the receipts
//! of messages in flight, so that another worker begins where this one has ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, Statistics, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::in_flight::{InFlight, Place};
use super::seen::Seen;
use crate::client::kafka::{self as kafka_client, explained};
use crate::sync::lock;

/// The callbacks of librdkafka, and their state.
pub(super) struct Context {
    in_flight: Mutex<InFlight>,
    runtime: Handle,
    /// Partitions are paused, also those that come.
    pub(super) is_paused: AtomicBool,
    /// The group has given this consumer its part.
    pub(super) has_joined: AtomicBool,
    /// librdkafka's own words for the last error.
    reason: Mutex<Option<String>>,
    /// The progress of a source that runs.
    seen: Option<Seen>,
}

/// The time for which a rebalance or a stop waits for receipts. Well below the time after which a
/// group goes on without a member, and below the default deadline for stopping.
const LET_GO: Duration = Duration::from_secs(10);

impl Context {
    pub(super) fn new(runtime: Handle, seen: Option<Seen>) -> Self {
        Context {
            in_flight: Mutex::default(),
            runtime,
            is_paused: AtomicBool::new(false),
            has_joined: AtomicBool::new(false),
            reason: Mutex::default(),
            seen,
        }
    }

    /// Taken by the thread that polls alone; the lock is for the callbacks' `&self`.
    pub(super) fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        lock::hold(&self.in_flight)
    }

    /// Shows the messages in flight.
    pub(super) fn show(&self, in_flight: &InFlight) {
        if let Some(seen) = &self.seen {
            seen.show(in_flight);
        }
    }

    pub(super) fn reason(&self) -> Option<String> {
        lock::hold(&self.reason).take()
    }

    /// Waits for so long until messages in flight are safe, and commits those that are.
    pub(super) fn bring_home(&self, consumer: &BaseConsumer<Context>) {
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

    fn stats(&self, statistics: Statistics) {
        if let Some(seen) = &self.seen {
            seen.show_lag(&statistics, &self.in_flight());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "librdkafka reports an error");
        let reason = format!("{reason}: {}", explained(&error));
        *lock::hold(&self.reason) = Some(reason);
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Revoke(partitions) = rebalance else { return };
        debug!(partitions = partitions.count(), "partitions go to another worker");
        // Partitions that are lost already cannot be committed.
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
pub(super) fn commit(consumer: &BaseConsumer<Context>, in_flight: &mut InFlight, mode: CommitMode) {
    let Some(offsets) = in_flight.news() else { return };
    let mut list = TopicPartitionList::new();
    let added = offsets.iter().try_for_each(|((topic, partition), next)| {
        list.add_partition_offset(topic, *partition, Offset::Offset(*next))
    });
    if let Err(error) = added.and_then(|()| consumer.commit(&list, mode)) {
        debug!(%error, "offsets were not committed");
        in_flight.not_committed();
    }
}
