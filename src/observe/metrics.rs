//! Every metric that saltern exports: name, kind, labels and help in one table.
//!
//! Labels are bounded by the configuration, never by data. Values are kept here as well, so that
//! the status page and the summary lines read the same numbers that Prometheus scrapes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, KeyName, Label, Level as MetricLevel, Metadata};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// A distribution over these upper bounds.
    Histogram(&'static [f64]),
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// The name, with unit and `_total` as Prometheus recommends.
    pub name: &'static str,
    /// The type.
    pub kind: MetricKind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The text for `# HELP` and the docs.
    pub help: &'static str,
}

pub(crate) const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: MetricKind::Counter, labels, help }
}

pub(crate) const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: MetricKind::Gauge, labels, help }
}

const SECONDS: &[f64] = &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0];
const EVENTS: &[f64] = &[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 30_000.0];
const SOURCE: &[&str] = &["source"];
const SINK: &[&str] = &["sink"];
/// Events read from the source.
pub(crate) const SOURCE_EVENTS: Metric =
    counter("saltern_source_events_total", SOURCE, "Events read from the source.");
/// Bytes of the frames read from the source.
pub(crate) const SOURCE_BYTES: Metric =
    counter("saltern_source_bytes_total", SOURCE, "Bytes of the frames read from the source.");
/// 1 while the source is connected or reading, else 0.
pub(crate) const SOURCE_CONNECTED: Metric = gauge(
    "saltern_source_connected",
    SOURCE,
    "1 while the source is connected or reading, else 0.",
);
/// Connections made to the source.
pub(crate) const SOURCE_CONNECTS: Metric =
    counter("saltern_source_connects_total", SOURCE, "Connections made to the source.");
/// Times that the connection was lost, so that events may have been missed.
pub(crate) const SOURCE_GAPS: Metric = counter(
    "saltern_source_gaps_total",
    SOURCE,
    "Times that the connection was lost, so that events may have been missed.",
);
/// Seconds without a connection after one was lost.
pub(crate) const SOURCE_GAP_SECONDS: Metric = counter(
    "saltern_source_gap_seconds_total",
    SOURCE,
    "Seconds without a connection after one was lost.",
);
/// Frames that were no events, and streams given up because of what was in them.
pub(crate) const SOURCE_BAD_FRAMES: Metric = counter(
    "saltern_source_bad_frames_total",
    SOURCE,
    "Frames that were no events, and streams given up because of what was in them.",
);
/// Values of events that came as JSON and that were replaced, by reason.
pub(crate) const SOURCE_LOSSY_VALUES: Metric = counter(
    "saltern_source_lossy_values_total",
    &["source", "reason"],
    "Values of events that came as JSON and that were replaced: not_finite (NaN, Infinity and numbers beyond a double, by null), long_integer (over 64 bits, by a string of its digits), not_utf8 (by U+FFFD), too_deep (over 128 levels, by null).",
);
/// Clients of a source `returner` that were turned away or cut off, by reason.
pub(crate) const SOURCE_CLIENTS_CUT_OFF: Metric = counter(
    "saltern_source_clients_cut_off_total",
    &["source", "reason"],
    "Clients of a source `returner` that were turned away or cut off, by reason.",
);
/// Values that the master replaced by VALUE_TRIMMED because the event was over its max_event_size.
pub(crate) const SOURCE_TRIMMED: Metric = counter(
    "saltern_source_trimmed_values_total",
    SOURCE,
    "Values that the master replaced by VALUE_TRIMMED because the event was over its max_event_size.",
);
/// Events dropped because they had been seen within dedupe_window.
pub(crate) const SOURCE_DUPLICATES: Metric = counter(
    "saltern_source_duplicates_total",
    SOURCE,
    "Events dropped because they had been seen within dedupe_window.",
);
/// Events that a peer of a master cluster forwarded (they carry __peer_id).
pub(crate) const SOURCE_PEER_EVENTS: Metric = counter(
    "saltern_source_peer_events_total",
    SOURCE,
    "Events that a peer of a master cluster forwarded (they carry __peer_id).",
);
/// Events that the bus did not bring and that were made of the master's job cache.
pub(crate) const SOURCE_BACKFILLED: Metric = counter(
    "saltern_source_backfilled_events_total",
    SOURCE,
    "Events that the bus did not bring and that were made of the master's job cache.",
);
/// Seconds that the source waited because the dispatcher's channel was full.
pub(crate) const SOURCE_STALLED_SECONDS: Metric = counter(
    "saltern_source_stalled_seconds_total",
    SOURCE,
    "Seconds that the source waited because the dispatcher's channel was full.",
);
/// Messages that are in the partitions that a source `kafka` reads, behind its commits.
pub(crate) const SOURCE_KAFKA_LAG: Metric = gauge(
    "saltern_source_kafka_lag_messages",
    SOURCE,
    "Messages that are in the partitions that a source `kafka` reads, behind its commits.",
);
/// Partitions that a source `kafka` reads.
pub(crate) const SOURCE_KAFKA_PARTITIONS: Metric =
    gauge("saltern_source_kafka_partitions", SOURCE, "Partitions that a source `kafka` reads.");
/// Bytes of messages that a source `kafka` has read and that not every sink has kept yet.
pub(crate) const SOURCE_KAFKA_IN_FLIGHT: Metric = gauge(
    "saltern_source_kafka_in_flight_bytes",
    SOURCE,
    "Bytes of messages that a source `kafka` has read and that not every sink has kept yet.",
);
/// Values that a rule of `redact` has replaced; `sink` is empty for the rules on top.
pub(crate) const REDACTED_VALUES: Metric = counter(
    "saltern_redacted_values_total",
    &["sink", "rule"],
    "Values that a rule of `redact` has replaced; `sink` is empty for the rules on top.",
);
/// Payloads and values that were taken out because `redact` could not search them: torn (behind
/// damage), too_deep (over 512 levels), too_long (after redaction).
pub(crate) const REDACT_CUT: Metric = counter(
    "saltern_redact_cut_total",
    &["sink", "reason"],
    "What was taken out of payloads because `redact` could not search it: torn (behind damage), too_deep (over 512 levels), too_long (what became of it).",
);
/// Chunks that wait in front of the dispatcher.
pub(crate) const DISPATCH_WAITING_CHUNKS: Metric =
    gauge("saltern_dispatch_waiting_chunks", &[], "Chunks that wait in front of the dispatcher.");
/// Seconds that the dispatcher waited for the sink's spooler.
pub(crate) const DISPATCH_STALLED_SECONDS: Metric = counter(
    "saltern_dispatch_stalled_seconds_total",
    SINK,
    "Seconds that the dispatcher waited for the sink's spooler.",
);
/// Events that the sink has stored.
pub(crate) const SINK_EVENTS: Metric =
    counter("saltern_sink_events_total", SINK, "Events that the sink has stored.");
/// Batches that the sink has stored.
pub(crate) const SINK_BATCHES: Metric =
    counter("saltern_sink_batches_total", SINK, "Batches that the sink has stored.");
/// Events that the sink will never accept.
pub(crate) const SINK_REJECTED_EVENTS: Metric =
    counter("saltern_sink_rejected_events_total", SINK, "Events that the sink will never accept.");
/// Events discarded before the sink stored them: queue_full, expired, disk (it failed), damaged,
/// operator (spill drop), stopped, digest (after it was stored for one).
pub(crate) const SINK_DROPPED_EVENTS: Metric = counter(
    "saltern_sink_dropped_events_total",
    &["sink", "reason"],
    "Events discarded before the sink stored them: queue_full, expired, disk (it failed), damaged, operator (spill drop), stopped, digest (after it was stored for one).",
);
/// Writes and connects that failed and were tried again.
pub(crate) const SINK_RETRIES: Metric = counter(
    "saltern_sink_retries_total",
    &["sink", "cause"],
    "Writes and connects that failed and were tried again, each counted once.",
);
/// Dead letters that the sink has.
pub(crate) const SINK_DEAD_LETTERS: Metric =
    gauge("saltern_sink_dead_letters", SINK, "Dead letters that the sink has.");
/// Dead letters of the sink that were discarded: over their bound in size, or impossible to keep.
pub(crate) const SINK_DEAD_LETTERS_DROPPED: Metric = counter(
    "saltern_sink_dead_letters_dropped_total",
    SINK,
    "Dead letters of the sink that were discarded: over their bound in size, or impossible to keep.",
);
/// Values that JSON could not hold as they were: bytes that are not UTF-8, nesting over 128, torn
/// payloads.
pub(crate) const SINK_LOSSY_VALUES: Metric = counter(
    "saltern_sink_lossy_values_total",
    &["sink", "reason"],
    "Values that JSON could not hold as they were: bytes that are not UTF-8, nesting over 128, torn payloads.",
);
/// 1 while the last connect or write of the sink worked, else 0.
pub(crate) const SINK_UP: Metric =
    gauge("saltern_sink_up", SINK, "1 while the last connect or write of the sink worked, else 0.");
/// 1 while the sink's circuit breaker lets only a single probe through, else 0.
pub(crate) const SINK_BREAKER_OPEN: Metric = gauge(
    "saltern_sink_breaker_open",
    SINK,
    "1 while the sink's circuit breaker lets only a single probe through, else 0.",
);
/// Events in the sink's queue, those being written included.
pub(crate) const SINK_QUEUE_EVENTS: Metric = gauge(
    "saltern_sink_queue_events",
    SINK,
    "Events in the sink's queue, those being written included.",
);
/// Memory that the sink's queue is counted with, in bytes.
pub(crate) const SINK_QUEUE_BYTES: Metric = gauge(
    "saltern_sink_queue_bytes",
    SINK,
    "Memory that the sink's queue is counted with, in bytes.",
);
/// Events of sources that can wait, for which the sink's queue has no room yet.
pub(crate) const SINK_HELD_BACK_EVENTS: Metric = gauge(
    "saltern_sink_held_back_events",
    SINK,
    "Events of sources that can wait, for which the sink's queue has no room yet.",
);
/// Events in the sink's spill, those being written included.
pub(crate) const SINK_SPILL_EVENTS: Metric = gauge(
    "saltern_sink_spill_events",
    SINK,
    "Events in the sink's spill, those being written included.",
);
/// Events that the sink has stored for a digest that is not sent yet.
pub(crate) const SINK_GATHERED_EVENTS: Metric = gauge(
    "saltern_sink_gathered_events",
    SINK,
    "Events that the sink has stored for a digest that is not sent yet.",
);
/// Disk that the sink's spill takes, in bytes.
pub(crate) const SINK_SPILL_BYTES: Metric =
    gauge("saltern_sink_spill_bytes", SINK, "Disk that the sink's spill takes, in bytes.");
/// Memory that the sink's queue may be counted with, in bytes.
pub(crate) const SINK_QUEUE_MAX_BYTES: Metric = gauge(
    "saltern_sink_queue_max_bytes",
    SINK,
    "Memory that the sink's queue may be counted with, in bytes.",
);
/// Disk that the sink's spill may take, in bytes; 0 without one.
pub(crate) const SINK_SPILL_MAX_BYTES: Metric = gauge(
    "saltern_sink_spill_max_bytes",
    SINK,
    "Disk that the sink's spill may take, in bytes; 0 without one.",
);
/// Age of the oldest event that the sink has not yet stored.
pub(crate) const SINK_LAG_SECONDS: Metric = gauge(
    "saltern_sink_lag_seconds",
    SINK,
    "Age of the oldest event that the sink has not yet stored.",
);
/// The time that writing a batch took, without what was made ahead.
pub(crate) const SINK_WRITE_SECONDS: Metric = Metric {
    name: "saltern_sink_write_seconds",
    kind: MetricKind::Histogram(SECONDS),
    labels: SINK,
    help: "How long writing a batch took, without what was done of it while the batch before was \
           written.",
};
/// Transactions of a sink `kafka`: committed, taken_back (they are tried again), known (the batch
/// had been committed before).
pub(crate) const SINK_KAFKA_TRANSACTIONS: Metric = counter(
    "saltern_sink_kafka_transactions_total",
    &["sink", "outcome"],
    "Transactions of a sink `kafka`: committed, taken_back (they are tried again), known (the batch had been committed before).",
);
/// Events in a batch.
pub(crate) const SINK_BATCH_EVENTS: Metric = Metric {
    name: "saltern_sink_batch_events",
    kind: MetricKind::Histogram(EVENTS),
    labels: SINK,
    help: "Events in a batch.",
};
/// Data that the job cache leaves out because it is damaged: event (not taken), value (in its file,
/// left out of an answer, at each answer).
pub(crate) const JOB_CACHE_LEFT_OUT: Metric = counter(
    "saltern_job_cache_left_out_total",
    &["reason"],
    "What the job cache leaves out because it is damaged: event (not taken), value (in its file, left out of an answer, at each answer).",
);
/// Returns of jobs that contradict each other, and events of jobs that contradict their own tag.
pub(crate) const JOB_RETURN_CONFLICTS: Metric = counter(
    "saltern_job_return_conflicts_total",
    &["odds"],
    "Returns that the job cache was told and that are at odds: content (another return of the same minion and job says something else), tag (the event's tag names another minion or job than its data). Either is a sign of forged events.",
);
/// Events that the metrics of the estate leave out, because counting could not keep up.
pub(crate) const ESTATE_MISSED_EVENTS: Metric = counter(
    "saltern_estate_missed_events_total",
    &[],
    "Events that the metrics of the estate leave out, because counting could not keep up.",
);
/// Files of `state_dir` that were damaged, and were put aside and begun anew.
pub(crate) const STATE_FILES_PUT_ASIDE: Metric = counter(
    "saltern_state_files_put_aside_total",
    &["file"],
    "Files of `state_dir` that were damaged, and were put aside and begun anew.",
);
/// 1 while a thread neither does anything nor waits for anything to do, else 0.
pub(crate) const THREAD_STUCK: Metric = gauge(
    "saltern_thread_stuck",
    &["thread"],
    "1 while a thread neither does anything nor waits for anything to do, else 0.",
);
/// Times that the configuration was read again on SIGHUP: ok, refused (it was wrong), failed (not
/// all of it could be done).
pub(crate) const CONFIG_RELOADS: Metric = counter(
    "saltern_config_reloads_total",
    &["result"],
    "Times that the configuration was read again on SIGHUP: ok, refused (it was wrong), failed (not all of it could be done).",
);
/// Always 1; the label says which version runs.
pub(crate) const BUILD_INFO: Metric =
    gauge("saltern_build_info", &["version"], "Always 1; the label says which version runs.");
/// Resident memory of the process.
pub(crate) const PROCESS_RSS: Metric =
    gauge("process_resident_memory_bytes", &[], "Resident memory of the process.");
/// User and system time of the process.
pub(crate) const PROCESS_CPU: Metric =
    counter("process_cpu_seconds_total", &[], "User and system time of the process.");
/// Open file descriptors of the process.
pub(crate) const PROCESS_FDS: Metric =
    gauge("process_open_fds", &[], "Open file descriptors of the process.");
/// The start of the process, in seconds since 1970.
pub(crate) const PROCESS_START: Metric =
    gauge("process_start_time_seconds", &[], "When the process started, in seconds since 1970.");

/// All of them, in the order of the docs.
pub static METRICS: &[Metric] = &[
    SOURCE_EVENTS,
    SOURCE_BYTES,
    SOURCE_CONNECTED,
    SOURCE_CONNECTS,
    SOURCE_GAPS,
    SOURCE_GAP_SECONDS,
    SOURCE_BAD_FRAMES,
    SOURCE_LOSSY_VALUES,
    SOURCE_CLIENTS_CUT_OFF,
    SOURCE_TRIMMED,
    SOURCE_DUPLICATES,
    SOURCE_PEER_EVENTS,
    SOURCE_BACKFILLED,
    SOURCE_STALLED_SECONDS,
    SOURCE_KAFKA_LAG,
    SOURCE_KAFKA_PARTITIONS,
    SOURCE_KAFKA_IN_FLIGHT,
    REDACTED_VALUES,
    REDACT_CUT,
    DISPATCH_WAITING_CHUNKS,
    DISPATCH_STALLED_SECONDS,
    SINK_EVENTS,
    SINK_BATCHES,
    SINK_REJECTED_EVENTS,
    SINK_DROPPED_EVENTS,
    SINK_RETRIES,
    SINK_DEAD_LETTERS,
    SINK_DEAD_LETTERS_DROPPED,
    SINK_LOSSY_VALUES,
    SINK_UP,
    SINK_BREAKER_OPEN,
    SINK_QUEUE_EVENTS,
    SINK_QUEUE_BYTES,
    SINK_HELD_BACK_EVENTS,
    SINK_SPILL_EVENTS,
    SINK_GATHERED_EVENTS,
    SINK_SPILL_BYTES,
    SINK_QUEUE_MAX_BYTES,
    SINK_SPILL_MAX_BYTES,
    SINK_LAG_SECONDS,
    SINK_WRITE_SECONDS,
    SINK_BATCH_EVENTS,
    SINK_KAFKA_TRANSACTIONS,
    JOB_CACHE_LEFT_OUT,
    JOB_RETURN_CONFLICTS,
    ESTATE_MISSED_EVENTS,
    STATE_FILES_PUT_ASIDE,
    THREAD_STUCK,
    CONFIG_RELOADS,
    BUILD_INFO,
    PROCESS_RSS,
    PROCESS_CPU,
    PROCESS_FDS,
    PROCESS_START,
];

const METADATA: Metadata<'static> =
    Metadata::new("saltern", MetricLevel::INFO, Some(module_path!()));

impl Metric {
    fn key(&self, values: &[&str]) -> metrics::Key {
        let labels = self.labels.iter().zip(values);
        let labels: Vec<Label> =
            labels.map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
        metrics::Key::from_parts(self.name, labels)
    }
}

/// Makes the Prometheus recorder the process's own and describes every metric to it. Later calls
/// in one process fail.
pub(crate) fn install() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in METRICS {
        if let MetricKind::Histogram(buckets) = metric.kind {
            builder =
                builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    let handle = builder.install_recorder()?;
    metrics::with_recorder(|recorder| {
        for metric in METRICS {
            let name = KeyName::from_const_str(metric.name);
            match metric.kind {
                MetricKind::Counter => recorder.describe_counter(name, None, metric.help.into()),
                MetricKind::Gauge => recorder.describe_gauge(name, None, metric.help.into()),
                MetricKind::Histogram(_) => {
                    recorder.describe_histogram(name, None, metric.help.into());
                }
            }
        }
    });
    Ok(handle)
}

/// A counter, and its value.
pub(crate) struct Tally {
    counter: Counter,
    value: AtomicU64,
}

impl Tally {
    /// The counter of `metric` with these label values.
    pub(crate) fn new(metric: Metric, labels: &[&str]) -> Self {
        let key = metric.key(labels);
        let counter = metrics::with_recorder(|recorder| recorder.register_counter(&key, &METADATA));
        Tally { counter, value: AtomicU64::new(0) }
    }

    /// Adds to it.
    pub(crate) fn add(&self, count: u64) {
        if count > 0 {
            self.counter.increment(count);
            self.value.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// The count since the start.
    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// A gauge, and its value.
pub(crate) struct Level {
    gauge: Gauge,
    value: AtomicU64,
}

impl Level {
    /// The gauge of `metric` with these label values.
    pub(crate) fn new(metric: Metric, labels: &[&str]) -> Self {
        let key = metric.key(labels);
        let gauge = metrics::with_recorder(|recorder| recorder.register_gauge(&key, &METADATA));
        Level { gauge, value: AtomicU64::new(0) }
    }

    /// Sets it.
    pub(crate) fn set(&self, value: f64) {
        self.gauge.set(value);
        self.value.store(value.to_bits(), Ordering::Relaxed);
    }

    /// Sets it to a count.
    pub(crate) fn set_count(&self, count: usize) {
        #[allow(clippy::cast_precision_loss)]
        self.set(count as f64);
    }

    /// Sets it to a whole number.
    pub(crate) fn set_whole(&self, number: u64) {
        #[allow(clippy::cast_precision_loss)]
        self.set(number as f64);
    }

    /// Sets it to 1 or 0.
    pub(crate) fn set_bool(&self, value: bool) {
        self.set(if value { 1.0 } else { 0.0 });
    }

    /// The value that was set last; 0 before.
    pub(crate) fn get(&self) -> f64 {
        f64::from_bits(self.value.load(Ordering::Relaxed))
    }
}

/// The metrics in Prometheus' text format.
pub(crate) fn render(handle: &PrometheusHandle) -> String {
    let mut text = handle.render();
    // Counters of seconds are gauges to the exporter, whose counters are whole numbers.
    for metric in METRICS.iter().filter(|metric| metric.kind == MetricKind::Counter) {
        let (gauge, counter) =
            (format!("# TYPE {} gauge", metric.name), format!("# TYPE {} counter", metric.name));
        if text.contains(&gauge) {
            text = text.replace(&gauge, &counter);
        }
    }
    text
}

/// Seconds that only grow. Counters of the exporter are whole numbers, so to it this is a gauge;
/// see [`render`].
pub(crate) struct Seconds {
    gauge: Gauge,
    micros: AtomicU64,
}

impl Seconds {
    /// The metric with these label values.
    pub(crate) fn new(metric: Metric, labels: &[&str]) -> Self {
        let key = metric.key(labels);
        let gauge = metrics::with_recorder(|recorder| recorder.register_gauge(&key, &METADATA));
        gauge.set(0.0);
        Seconds { gauge, micros: AtomicU64::new(0) }
    }

    /// Adds a duration.
    pub(crate) fn add(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.gauge.increment(duration.as_secs_f64());
    }

    /// The sum since the start.
    pub(crate) fn get(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

/// A histogram.
pub(crate) struct Distribution(Histogram);

impl Distribution {
    /// The histogram of `metric` with these label values.
    pub(crate) fn new(metric: Metric, labels: &[&str]) -> Self {
        let key = metric.key(labels);
        Distribution(metrics::with_recorder(|recorder| {
            recorder.register_histogram(&key, &METADATA)
        }))
    }

    /// Records a value.
    pub(crate) fn record(&self, value: f64) {
        self.0.record(value);
    }
}

#[cfg(test)]
mod tests {
    use crate::observe::metrics::*;

    #[test]
    fn names_follow_the_recommendations() {
        let mut names = std::collections::HashSet::new();
        for metric in METRICS {
            assert!(names.insert(metric.name), "{} stands twice", metric.name);
            let is_counter = metric.kind == MetricKind::Counter;
            assert_eq!(metric.name.ends_with("_total"), is_counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
