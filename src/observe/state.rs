//! The state of each source and each sink, for the status page, the metrics and the summary lines.
//! Written by the pipeline, read by everyone else.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::Notify;

use crate::codec::json::JsonLosses;
use crate::codec::lenient_json::Replaced;
use crate::observe::metrics::{self, Distribution, Level, Seconds, Tally};
use crate::observe::threads::Threads;
use crate::sync::lock;

/// Microseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Everything that the daemon shows of itself.
pub(crate) struct State {
    /// The start of the daemon.
    pub(crate) started: Instant,
    threads: Arc<Threads>,
    sources: RwLock<Vec<Arc<SourceState>>>,
    sinks: RwLock<Vec<Arc<SinkState>>>,
    /// The troubles of the daemon itself, by the part that they concern.
    troubles: Mutex<BTreeMap<&'static str, String>>,
}

/// The state of a source.
pub struct SourceState {
    /// Its name in the configuration.
    pub(crate) name: String,
    /// Its kind.
    pub(crate) kind: &'static str,
    /// The master whose events it reads.
    pub(crate) master_id: String,
    /// Events read.
    pub(crate) events: Tally,
    /// Bytes of frames read.
    pub(crate) bytes: Tally,
    /// 1 while connected.
    pub(crate) connected: Level,
    /// Connections made.
    pub(crate) connects: Tally,
    /// Connections lost.
    pub(crate) gaps: Tally,
    /// Time without a connection after one was lost.
    pub(crate) gap_seconds: Seconds,
    /// Frames that were no events, and streams given up for their contents.
    pub(crate) bad_frames: Tally,
    /// Values of JSON that were no numbers.
    pub(crate) lossy_not_finite: Tally,
    /// Integers of JSON that were too long.
    pub(crate) lossy_long_integer: Tally,
    /// Strings of JSON that were no text.
    pub(crate) lossy_not_utf8: Tally,
    /// Values of JSON cut because they were nested too deep.
    pub(crate) lossy_too_deep: Tally,
    /// `VALUE_TRIMMED` values.
    pub(crate) trimmed: Tally,
    /// Events dropped because they were seen a moment ago.
    pub(crate) duplicates: Tally,
    /// Events that a cluster peer forwarded.
    pub(crate) peer_events: Tally,
    /// Events made of the master's job cache.
    pub(crate) backfilled: Tally,
    /// Time spent waiting for the dispatcher.
    pub(crate) stalled: Seconds,
    last_error: Mutex<Option<LastError>>,
    ended: AtomicBool,
    try_now: Notify,
}

impl std::fmt::Debug for SourceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceState").field("name", &self.name).finish_non_exhaustive()
    }
}

impl SourceState {
    /// A source that has not begun.
    pub fn new(name: &str, kind: &'static str, master_id: &str) -> Self {
        let labels = &[name];
        let lossy = |reason| Tally::new(metrics::SOURCE_LOSSY_VALUES, &[name, reason]);
        SourceState {
            name: name.to_owned(),
            kind,
            master_id: master_id.to_owned(),
            events: Tally::new(metrics::SOURCE_EVENTS, labels),
            bytes: Tally::new(metrics::SOURCE_BYTES, labels),
            connected: Level::new(metrics::SOURCE_CONNECTED, labels),
            connects: Tally::new(metrics::SOURCE_CONNECTS, labels),
            gaps: Tally::new(metrics::SOURCE_GAPS, labels),
            gap_seconds: Seconds::new(metrics::SOURCE_GAP_SECONDS, labels),
            bad_frames: Tally::new(metrics::SOURCE_BAD_FRAMES, labels),
            lossy_not_finite: lossy("not_finite"),
            lossy_long_integer: lossy("long_integer"),
            lossy_not_utf8: lossy("not_utf8"),
            lossy_too_deep: lossy("too_deep"),
            trimmed: Tally::new(metrics::SOURCE_TRIMMED, labels),
            duplicates: Tally::new(metrics::SOURCE_DUPLICATES, labels),
            peer_events: Tally::new(metrics::SOURCE_PEER_EVENTS, labels),
            backfilled: Tally::new(metrics::SOURCE_BACKFILLED, labels),
            stalled: Seconds::new(metrics::SOURCE_STALLED_SECONDS, labels),
            last_error: Mutex::new(None),
            ended: AtomicBool::new(false),
            try_now: Notify::new(),
        }
    }

    /// Remembers an error; `true` if it is not the one remembered already.
    pub(crate) fn failed(&self, error: &str) -> bool {
        remember(&self.last_error, error)
    }

    /// Counts the values of an event that JSON could not hold.
    pub(crate) fn replaced(&self, replaced: Replaced) {
        self.lossy_not_finite.add(replaced.not_finite);
        self.lossy_long_integer.add(replaced.long_integer);
        self.lossy_not_utf8.add(replaced.not_utf8);
        self.lossy_too_deep.add(replaced.too_deep);
    }

    /// Values that were replaced, for any reason.
    pub(crate) fn lossy_values(&self) -> u64 {
        let of_numbers = self.lossy_not_finite.get() + self.lossy_long_integer.get();
        of_numbers + self.lossy_not_utf8.get() + self.lossy_too_deep.get()
    }

    /// The source begins, perhaps again.
    pub(crate) fn begin(&self) {
        self.ended.store(false, Ordering::Release);
    }

    /// The source has delivered everything, or was told to stop.
    pub(crate) fn end(&self) {
        self.connected.set_bool(false);
        self.ended.store(true, Ordering::Release);
    }

    /// True if it is neither connected nor at its end.
    pub(crate) fn is_failing(&self) -> bool {
        self.connected.get() < 1.0 && !self.ended.load(Ordering::Acquire)
    }

    /// Ends its wait for the next try to connect, if it waits.
    pub(crate) fn try_now(&self) {
        self.try_now.notify_waiters();
    }

    /// Waits until somebody wants a try to be made now.
    pub(crate) async fn asked_to_try(&self) {
        self.try_now.notified().await;
    }
}

/// The state of a sink.
pub struct SinkState {
    /// Its name in the configuration.
    pub(crate) name: String,
    /// Its kind.
    pub(crate) kind: &'static str,
    /// Events stored.
    pub(crate) events: Tally,
    /// Batches stored.
    pub(crate) batches: Tally,
    /// Events that the store will never accept.
    pub(crate) rejected: Tally,
    /// Dead letters of the sink.
    pub(crate) dead_letters: Level,
    /// Dead letters that were discarded.
    pub(crate) dead_letters_dropped: Tally,
    /// Events dropped because the queue was full.
    pub(crate) dropped_full: Tally,
    /// Events dropped because they waited longer than `max_age`.
    pub(crate) dropped_expired: Tally,
    /// Events dropped because the disk failed and memory had no room.
    pub(crate) dropped_disk: Tally,
    /// Events whose record on disk was damaged.
    pub(crate) dropped_damaged: Tally,
    /// Events dropped because an operator said so.
    pub(crate) dropped_operator: Tally,
    /// Events dropped because the daemon stopped before they were stored.
    pub(crate) dropped_stop: Tally,
    /// Events that were in memory alone when a thread panicked.
    pub(crate) dropped_panic: Tally,
    /// Errors after which it was tried again, over the same connection if there was one. A failed
    /// try is counted in one of these three.
    pub(crate) retries: Tally,
    /// Errors of writes after which the connection was made anew.
    pub(crate) reconnects: Tally,
    /// Connects and writes that took too long.
    pub(crate) timeouts: Tally,
    /// Writes that panicked; counted in none of the three.
    pub(crate) panics: Tally,
    /// Strings that were not UTF-8.
    pub(crate) lossy_replaced: Tally,
    /// Values nested too deep.
    pub(crate) lossy_cut: Tally,
    /// Payloads that ended early.
    pub(crate) lossy_torn: Tally,
    /// 1 while the last try worked.
    pub(crate) up: Level,
    /// 1 while the breaker is open.
    pub(crate) breaker_open: Level,
    /// Events in the queue.
    pub(crate) queue_events: Level,
    /// Memory of the queue.
    pub(crate) queue_bytes: Level,
    /// Events of sources that can wait, for which the queue has no room yet.
    pub(crate) held_back_events: Level,
    /// Events in the spill.
    pub(crate) spill_events: Level,
    /// Disk of the spill.
    pub(crate) spill_bytes: Level,
    /// Memory that the queue may take.
    pub(crate) queue_max_bytes: Level,
    /// Disk that the spill may take.
    pub(crate) spill_max_bytes: Level,
    /// Age of the oldest event in the queue.
    pub(crate) lag: Level,
    /// Time spent on a write.
    pub(crate) write_seconds: Distribution,
    /// Events in a batch.
    pub(crate) batch_events: Distribution,
    /// Time that the dispatcher waited for the spooler.
    pub(crate) stalled: Seconds,
    oldest: AtomicU64,
    parked: AtomicBool,
    /// The reason why the spill cannot be opened.
    waiting_for_spill: Mutex<Option<String>>,
    last_error: Mutex<Option<LastError>>,
    last_refusal: Mutex<Option<LastError>>,
}

impl SinkState {
    /// A sink that has not begun.
    pub fn new(name: &str, kind: &'static str) -> Self {
        let labels = &[name];
        let dropped = |reason| Tally::new(metrics::SINK_DROPPED_EVENTS, &[name, reason]);
        let retries = |cause| Tally::new(metrics::SINK_RETRIES, &[name, cause]);
        let lossy = |reason| Tally::new(metrics::SINK_LOSSY_VALUES, &[name, reason]);
        SinkState {
            name: name.to_owned(),
            kind,
            events: Tally::new(metrics::SINK_EVENTS, labels),
            batches: Tally::new(metrics::SINK_BATCHES, labels),
            rejected: Tally::new(metrics::SINK_REJECTED_EVENTS, labels),
            dead_letters: Level::new(metrics::SINK_DEAD_LETTERS, labels),
            dead_letters_dropped: Tally::new(metrics::SINK_DEAD_LETTERS_DROPPED, labels),
            dropped_full: dropped("queue_full"),
            dropped_expired: dropped("expired"),
            dropped_disk: dropped("disk"),
            dropped_damaged: dropped("damaged"),
            dropped_operator: dropped("operator"),
            dropped_stop: dropped("stopped"),
            dropped_panic: dropped("panic"),
            retries: retries("retry"),
            reconnects: retries("reconnect"),
            timeouts: retries("timeout"),
            panics: retries("panic"),
            lossy_replaced: lossy("not_utf8"),
            lossy_cut: lossy("too_deep"),
            lossy_torn: lossy("torn"),
            up: Level::new(metrics::SINK_UP, labels),
            breaker_open: Level::new(metrics::SINK_BREAKER_OPEN, labels),
            queue_events: Level::new(metrics::SINK_QUEUE_EVENTS, labels),
            queue_bytes: Level::new(metrics::SINK_QUEUE_BYTES, labels),
            held_back_events: Level::new(metrics::SINK_HELD_BACK_EVENTS, labels),
            spill_events: Level::new(metrics::SINK_SPILL_EVENTS, labels),
            spill_bytes: Level::new(metrics::SINK_SPILL_BYTES, labels),
            queue_max_bytes: Level::new(metrics::SINK_QUEUE_MAX_BYTES, labels),
            spill_max_bytes: Level::new(metrics::SINK_SPILL_MAX_BYTES, labels),
            lag: Level::new(metrics::SINK_LAG_SECONDS, labels),
            write_seconds: Distribution::new(metrics::SINK_WRITE_SECONDS, labels),
            batch_events: Distribution::new(metrics::SINK_BATCH_EVENTS, labels),
            stalled: Seconds::new(metrics::DISPATCH_STALLED_SECONDS, labels),
            oldest: AtomicU64::new(0),
            parked: AtomicBool::new(false),
            waiting_for_spill: Mutex::new(None),
            last_error: Mutex::new(None),
            last_refusal: Mutex::new(None),
        }
    }

    /// Remembers an error; `true` if it is not the one remembered already.
    pub(crate) fn failed(&self, error: &str) -> bool {
        self.up.set_bool(false);
        remember(&self.last_error, error)
    }

    /// A connect or write worked; `true` if the one before did not.
    pub(crate) fn worked(&self) -> bool {
        let was_down = self.up.get() < 1.0;
        if was_down {
            self.up.set_bool(true);
        }
        was_down
    }

    /// Remembers why an event was refused; `true` if that is not the reason remembered already.
    pub(crate) fn note_refusal(&self, reason: &str) -> bool {
        remember(&self.last_refusal, reason)
    }

    /// The configuration is wrong: nothing is tried until it changes.
    pub(crate) fn park(&self) {
        self.parked.store(true, Ordering::Release);
    }

    /// The configuration has changed: the sink is tried again.
    pub(crate) fn unpark(&self) {
        self.parked.store(false, Ordering::Release);
    }

    /// The spill cannot be opened, for this reason, or is open; `true` if that is new.
    pub(crate) fn set_waiting_for_spill(&self, reason: Option<&str>) -> bool {
        let before =
            std::mem::replace(&mut *lock::hold(&self.waiting_for_spill), reason.map(str::to_owned));
        before.as_deref() != reason
    }

    /// The error that parked the sink; `None` if it is not parked.
    pub(crate) fn parked(&self) -> Option<String> {
        if let Some(reason) = &*lock::hold(&self.waiting_for_spill) {
            return Some(reason.clone());
        }
        let parked = self.parked.load(Ordering::Acquire);
        parked.then(|| {
            lock::hold(&self.last_error).as_ref().map(|e| e.error.clone()).unwrap_or_default()
        })
    }

    /// Sets the time at which the oldest event of the queue was read, in microseconds since 1970;
    /// `None` when empty.
    pub(crate) fn set_oldest(&self, oldest: Option<u64>) {
        self.oldest.store(oldest.unwrap_or(0), Ordering::Relaxed);
    }

    /// The age of the oldest event that is not stored, in seconds.
    pub(crate) fn lag(&self) -> f64 {
        match self.oldest.load(Ordering::Relaxed) {
            0 => 0.0,
            #[allow(clippy::cast_precision_loss)]
            oldest => now().saturating_sub(oldest) as f64 / 1e6,
        }
    }

    /// Counts the values that the JSON of stored events left out.
    pub(crate) fn lost(&self, losses: JsonLosses) {
        self.lossy_replaced.add(losses.replaced);
        self.lossy_cut.add(losses.cut);
        self.lossy_torn.add(losses.torn);
    }

    /// Events dropped, for any reason.
    pub(crate) fn dropped(&self) -> u64 {
        let reasons = [
            &self.dropped_full,
            &self.dropped_expired,
            &self.dropped_disk,
            &self.dropped_damaged,
            &self.dropped_operator,
            &self.dropped_stop,
            &self.dropped_panic,
        ];
        reasons.iter().map(|reason| reason.get()).sum()
    }
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct LastError {
    pub(crate) error: String,
    pub(crate) time: String,
}

fn remember(last: &Mutex<Option<LastError>>, error: &str) -> bool {
    let mut last = lock::hold(last);
    let is_new = last.as_ref().is_none_or(|last| last.error != error);
    let time = jiff::Timestamp::now().to_string();
    *last = Some(LastError { error: error.to_owned(), time });
    is_new
}

/// The answer of `/api/v1/status`.
#[derive(Serialize)]
pub(crate) struct Status {
    pub(crate) version: &'static str,
    pub(crate) uptime_seconds: f64,
    pub(crate) healthy: bool,
    pub(crate) ready: bool,
    pub(crate) troubles: Vec<String>,
    pub(crate) sources: Vec<SourceStatus>,
    pub(crate) sinks: Vec<SinkStatus>,
}

#[derive(Serialize)]
pub(crate) struct SourceStatus {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) master_id: String,
    pub(crate) connected: bool,
    pub(crate) ended: bool,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) connects: u64,
    pub(crate) gaps: u64,
    pub(crate) gap_seconds: f64,
    pub(crate) bad_frames: u64,
    pub(crate) lossy_values: u64,
    pub(crate) trimmed_values: u64,
    pub(crate) duplicates: u64,
    pub(crate) peer_events: u64,
    pub(crate) backfilled: u64,
    pub(crate) last_error: Option<LastError>,
}

#[derive(Serialize)]
pub(crate) struct SinkStatus {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) up: bool,
    pub(crate) parked: bool,
    pub(crate) breaker: &'static str,
    pub(crate) events: u64,
    pub(crate) batches: u64,
    pub(crate) rejected_events: u64,
    pub(crate) dead_letters: f64,
    pub(crate) dropped_events: u64,
    pub(crate) retries: u64,
    pub(crate) queue_events: f64,
    pub(crate) queue_bytes: f64,
    pub(crate) held_back_events: f64,
    pub(crate) spill_events: f64,
    pub(crate) spill_bytes: f64,
    pub(crate) lag_seconds: f64,
    pub(crate) last_error: Option<LastError>,
    pub(crate) last_refusal: Option<LastError>,
}

impl Default for State {
    fn default() -> Self {
        State::new(Arc::default())
    }
}

impl State {
    /// A state without sources and sinks.
    pub(crate) fn new(threads: Arc<Threads>) -> Self {
        State {
            started: Instant::now(),
            threads,
            sources: RwLock::new(Vec::new()),
            sinks: RwLock::new(Vec::new()),
            troubles: Mutex::default(),
        }
    }

    /// The sources, in the order of the configuration.
    pub(crate) fn sources(&self) -> Vec<Arc<SourceState>> {
        lock::read(&self.sources).clone()
    }

    /// The sinks, in the order of the configuration.
    pub(crate) fn sinks(&self) -> Vec<Arc<SinkState>> {
        lock::read(&self.sinks).clone()
    }

    /// From now on these are the sources.
    pub(crate) fn set_sources(&self, sources: Vec<Arc<SourceState>>) {
        *lock::write(&self.sources) = sources;
    }

    /// From now on these are the sinks.
    pub(crate) fn set_sinks(&self, sinks: Vec<Arc<SinkState>>) {
        *lock::write(&self.sinks) = sinks;
    }

    /// A part of the daemon itself does not work, for this reason, or works; `true` if that is new.
    pub(crate) fn set_trouble(&self, what: &'static str, reason: Option<String>) -> bool {
        let mut troubles = lock::hold(&self.troubles);
        let before = match reason.clone() {
            Some(reason) => troubles.insert(what, reason),
            None => troubles.remove(what),
        };
        before != reason
    }

    /// The troubles of the daemon itself.
    pub(crate) fn troubles(&self) -> Vec<String> {
        lock::hold(&self.troubles)
            .iter()
            .map(|(what, reason)| format!("{what}: {reason}"))
            .collect()
    }

    /// The reasons why the daemon is not ready: its own troubles, stuck threads, sources that are
    /// neither connected nor at their end, and parked sinks. Empty if it is ready. They tell no
    /// more, since anybody may ask; the status gives the causes.
    pub(crate) fn unready(&self) -> Vec<String> {
        let mut unready: Vec<_> =
            lock::hold(&self.troubles).keys().map(|what| (*what).to_owned()).collect();
        let stuck = self.threads.stuck().into_iter();
        unready.extend(stuck.map(|thread| format!("the thread `{thread}` is stuck")));
        let (sources, sinks) = (self.sources(), self.sinks());
        let sources = sources.iter().filter(|source| source.is_failing());
        unready.extend(sources.map(|s| format!("the source {} is not connected", s.name)));
        let sinks = sinks.iter().filter(|sink| sink.parked().is_some());
        unready.extend(sinks.map(|sink| format!("the sink {} is parked", sink.name)));
        unready
    }

    /// Sets the gauges that depend on the time of looking.
    pub(crate) fn refresh(&self) {
        for sink in self.sinks() {
            sink.lag.set(sink.lag());
        }
    }

    /// The whole state, for machines.
    pub(crate) fn status(&self) -> Status {
        let (sources, sinks) = (self.sources(), self.sinks());
        let sources = sources.iter().map(|source| SourceStatus {
            name: source.name.clone(),
            kind: source.kind,
            master_id: source.master_id.clone(),
            connected: source.connected.get() > 0.0,
            ended: source.ended.load(Ordering::Acquire),
            events: source.events.get(),
            bytes: source.bytes.get(),
            connects: source.connects.get(),
            gaps: source.gaps.get(),
            gap_seconds: source.gap_seconds.get().as_secs_f64(),
            bad_frames: source.bad_frames.get(),
            lossy_values: source.lossy_values(),
            trimmed_values: source.trimmed.get(),
            duplicates: source.duplicates.get(),
            peer_events: source.peer_events.get(),
            backfilled: source.backfilled.get(),
            last_error: lock::hold(&source.last_error).clone(),
        });
        let sinks = sinks.iter().map(|sink| SinkStatus {
            name: sink.name.clone(),
            kind: sink.kind,
            up: sink.up.get() > 0.0,
            parked: sink.parked().is_some(),
            breaker: if sink.breaker_open.get() > 0.0 { "open" } else { "closed" },
            events: sink.events.get(),
            batches: sink.batches.get(),
            rejected_events: sink.rejected.get(),
            dead_letters: sink.dead_letters.get(),
            dropped_events: sink.dropped(),
            retries: sink.retries.get() + sink.reconnects.get() + sink.timeouts.get(),
            queue_events: sink.queue_events.get(),
            queue_bytes: sink.queue_bytes.get(),
            held_back_events: sink.held_back_events.get(),
            spill_events: sink.spill_events.get(),
            spill_bytes: sink.spill_bytes.get(),
            lag_seconds: sink.lag(),
            last_error: lock::hold(&sink.last_error).clone(),
            last_refusal: lock::hold(&sink.last_refusal).clone(),
        });
        Status {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            healthy: true,
            ready: self.unready().is_empty(),
            troubles: self.troubles(),
            sources: sources.collect(),
            sinks: sinks.collect(),
        }
    }
}
