//! Metrics of the Salt estate, from the events: jobs, returns, states, minions, keys.
//!
//! A thread of its own counts, so that the dispatcher does no more than hand each chunk on, and only
//! if there is room: what there is no room for is counted and left out. The sinks do not suffer for
//! the sake of a number.
//!
//! [`table`] has the metrics, `facts` reads an event, `books` says what is counted of it, `series`
//! keeps the counts within their caps.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::chunk::Chunk;
use crate::doorbell::{Bell, Receiver, Sender, channel};
use crate::metrics::{self, Tally};
use crate::state::now;
use crate::threads;
use crate::units::Span;
use books::Books;

mod books;
mod facts;
mod jobs;
mod series;
pub mod table;

/// Chunks that may wait to be counted.
const CHANNEL: usize = 64;

/// How long chunks may gather once there were few, so that not each of them costs a wake-up.
const GATHER: Duration = Duration::from_millis(5);

/// Chunks in a round up to which there were few.
const FEW: usize = 4;

/// Metrics of the Salt estate, from the events: jobs, returns, states, minions, keys.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EstateConfig {
    /// Whether there are series for single minions: the label `minion` of `salt_responses_total`,
    /// and all of `salt_function_status`, `salt_health_last_heartbeat` and
    /// `salt_responses_last_received_response`.
    pub minions: bool,
    /// Whether `salt_function_responses_total`, `salt_scheduled_job_return_total` and
    /// `salt_job_duration_seconds` have the label `minion` too: a series for each function of each
    /// minion.
    pub minion_label: bool,
    /// Series that each metric has at the most; what is over it goes into one whose labels are
    /// `other`.
    pub max_series: u64,
    /// Minions that are remembered at the most.
    pub max_minions: u64,
    /// Leaves jobs with `test=True` out.
    pub ignore_test: bool,
    /// Leaves jobs with `mock=True` out.
    pub ignore_mock: bool,
    /// Functions that `salt_function_status` is kept of; `*` for all.
    pub status_functions: Vec<String>,
    /// States that `salt_function_status` is kept of; `*` for all.
    pub status_states: Vec<String>,
    /// How long the returns of a job may take before they are missing.
    pub returns_within: Span,
    /// How long a minion may be silent before it counts as such.
    pub silent_after: Span,
}

impl Default for EstateConfig {
    fn default() -> Self {
        EstateConfig {
            minions: false,
            minion_label: false,
            max_series: 5000,
            max_minions: 50_000,
            ignore_test: false,
            ignore_mock: false,
            status_functions: vec!["state.highstate".to_owned()],
            status_states: vec!["highstate".to_owned()],
            returns_within: Span::seconds(15 * 60),
            silent_after: Span::seconds(3600),
        }
    }
}

impl EstateConfig {
    fn series_bound(&self) -> usize {
        usize::try_from(self.max_series).unwrap_or(usize::MAX)
    }

    fn minions_bound(&self) -> usize {
        usize::try_from(self.max_minions).unwrap_or(usize::MAX)
    }
}

/// The counts, for whoever shows them; none while they are not wanted.
pub struct Estate(Mutex<Option<Books>>);

impl Estate {
    /// Counts as this says, from nothing on.
    pub fn new(config: Option<EstateConfig>) -> Arc<Self> {
        Arc::new(Estate(Mutex::new(config.map(Books::new))))
    }

    /// Whether anything is counted.
    pub fn is_on(&self) -> bool {
        self.books().is_some()
    }

    /// Counts as this says, from now on; whether that is something else than before. If so the counters
    /// begin at zero; which minions there are and which returns are waited for is still known.
    pub fn configure(&self, config: Option<EstateConfig>) -> bool {
        let mut books = self.books();
        if books.as_ref().map(Books::config) == config.as_ref() {
            return false;
        }
        *books = match (books.take(), config) {
            (Some(books), Some(config)) => Some(books.continued(config)),
            (_, config) => config.map(Books::new),
        };
        true
    }

    /// The way in for chunks, and the work of counting them.
    pub fn feed(self: &Arc<Self>) -> (Feed, Counter) {
        let (chunks, chunks_out) = channel(CHANNEL, &Bell::default());
        let missed = Tally::new(metrics::ESTATE_MISSED_EVENTS, &[]);
        (Feed { chunks, missed }, Counter { chunks: chunks_out, estate: Arc::clone(self) })
    }

    /// Appends the metrics in Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        if let Some(books) = self.books().as_mut() {
            books.render(now() / 1_000_000, out);
        }
    }

    /// Counts the events of a chunk. Whether any of them has a trimmed value was found out before.
    pub fn count(&self, chunk: &Chunk, has_trimmed: bool) {
        let mut books = self.books();
        let Some(books) = books.as_mut() else { return };
        let read = chunk.received / 1_000_000;
        books.give_up(read);
        for event in &chunk.events {
            books.count(event, read);
            if has_trimmed {
                books.count_trimmed(event.payload());
            }
        }
    }

    /// A panic within would leave counts, and those stay true enough.
    fn books(&self) -> std::sync::MutexGuard<'_, Option<Books>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A chunk, and whether any of its events has a trimmed value.
type Fed = (Arc<Chunk>, bool);

/// Where the dispatcher hands chunks in to be counted.
pub struct Feed {
    chunks: Sender<Fed>,
    missed: Tally,
}

impl Feed {
    /// Hands a chunk in, if there is room; as [`Estate::count`].
    pub fn offer(&self, chunk: &Arc<Chunk>, has_trimmed: bool) {
        if self.chunks.try_send((Arc::clone(chunk), has_trimmed)).is_err() {
            self.missed.add(chunk.events.len() as u64);
        }
    }
}

/// Counts what is fed until the feed is dropped.
pub struct Counter {
    chunks: Receiver<Fed>,
    estate: Arc<Estate>,
}

impl Counter {
    /// The work of a thread.
    pub fn run(self) {
        let count = |(chunk, has_trimmed): Fed| self.estate.count(&chunk, has_trimmed);
        while let Some(fed) = self.chunks.recv() {
            // Taken, so that it is not held on to while nothing comes.
            count(fed);
            let more = self.chunks.try_iter().map(count).count();
            if more < FEW {
                #[allow(clippy::disallowed_methods)] // the thread has nothing else to do
                threads::waiting(|| std::thread::sleep(GATHER));
            }
        }
    }
}
