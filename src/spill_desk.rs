//! Where a running sink is asked what waits for it, and told to discard some of it.
//!
//! The spooler's thread owns the queue and answers between two rounds, so that the answer is true
//! of one moment and nothing else changes the files.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::doorbell::Sender;

/// Enquiries that may wait for one spooler.
pub const ENQUIRIES: usize = 4;

/// How long an answer may take. Discarding reads what is left of the last segment.
const ANSWER: Duration = Duration::from_secs(30);

/// What waits for a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Its name.
    pub sink: String,
    /// Events that wait or are being written, those in memory alone included.
    pub events: u64,
    /// When the oldest of them was read, in microseconds since 1970.
    pub oldest: Option<u64>,
    /// When the newest of them was read, in microseconds since 1970.
    pub newest: Option<u64>,
    /// Bytes of all segments on disk.
    pub bytes: u64,
    /// How many segments there are.
    pub segments: u64,
}

/// What a spooler answers.
#[derive(Debug)]
pub struct Answer {
    /// Events that were discarded.
    pub discarded: u64,
    /// What is left.
    pub holding: Holding,
}

/// What a spooler is asked.
#[derive(Debug)]
pub struct Enquiry {
    /// Discard what waits and was read before this, in microseconds since 1970.
    pub discard_before: Option<u64>,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
}

/// The ways to the spoolers, by the sinks' names.
#[derive(Default)]
pub struct Desks(Mutex<BTreeMap<String, Sender<Enquiry>>>);

impl Desks {
    /// From now on the sink of this name is asked here.
    pub fn open(&self, sink: &str, enquiries: Sender<Enquiry>) {
        self.lock().insert(sink.to_owned(), enquiries);
    }

    /// Asks one sink; `None` if it is not there, is just being changed, or does not answer in time.
    pub async fn ask(&self, sink: &str, discard_before: Option<u64>) -> Option<Answer> {
        let enquiries = self.lock().get(sink)?.clone();
        let (answer, answered) = oneshot::channel();
        enquiries.try_send(Enquiry { discard_before, answer }).ok()?;
        drop(enquiries);
        timeout(ANSWER, answered).await.ok()?.ok()
    }

    /// A map is never half changed.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Sender<Enquiry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
