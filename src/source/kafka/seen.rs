//! The metrics of a worker: its lag, its messages in flight, its partitions.

use rdkafka::Statistics;
use rdkafka::statistics::Partition;

use super::in_flight::InFlight;
use crate::observe::metrics::{self, Level};

/// The metrics of a source that reads. They are empty once it has ended.
pub(super) struct Seen {
    lag: Level,
    partitions: Level,
    in_flight: Level,
}

impl Seen {
    pub(super) fn new(source: &str) -> Self {
        let level = |metric| Level::new(metric, &[source]);
        Seen {
            lag: level(metrics::SOURCE_KAFKA_LAG),
            partitions: level(metrics::SOURCE_KAFKA_PARTITIONS),
            in_flight: level(metrics::SOURCE_KAFKA_IN_FLIGHT),
        }
    }

    pub(super) fn show(&self, in_flight: &InFlight) {
        self.partitions.set_count(in_flight.partitions());
        self.in_flight.set_count(in_flight.bytes());
    }

    /// Adds up how far the partitions are behind that are read here. librdkafka tells of others
    /// too.
    pub(super) fn show_lag(&self, statistics: &Statistics, in_flight: &InFlight) {
        let mut lag = 0;
        for (name, topic) in &statistics.topics {
            let here = topic.partitions.values().filter(|p| in_flight.reads(name, p.partition));
            lag += here.map(behind).sum::<u64>();
        }
        self.lag.set_whole(lag);
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        for level in [&self.lag, &self.partitions, &self.in_flight] {
            level.set(0.0);
        }
    }
}

/// Messages behind the group's commits. Where the group has committed nothing yet, the messages
/// behind those read, which are fewer.
fn behind(partition: &Partition) -> u64 {
    let since_read = match partition.app_offset {
        read if read < 0 => 0,
        read => partition.ls_offset.saturating_sub(read),
    };
    u64::try_from(partition.consumer_lag).or_else(|_| u64::try_from(since_read)).unwrap_or(0)
}
