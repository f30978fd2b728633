//! Inspections of a running sink: the events that wait for it, and an order to discard some.
//!
//! The spooler's thread owns the queue and answers between two rounds. So the answer is true of one
//! moment, and nothing else changes the files.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::sync::bell::Sender;
use crate::sync::lock;

/// The number of inspections that may wait for one spooler.
pub(crate) const MAX_INSPECTIONS: usize = 4;

/// An answer may take no longer. Discarding reads the rest of the last segment.
const ANSWER: Duration = Duration::from_secs(30);

/// The events that wait for a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueueContents {
    /// Its name.
    pub(crate) sink: String,
    /// Events that wait or are being written, those in memory alone included.
    pub(crate) events: u64,
    /// The time when the oldest of them was read, in microseconds since 1970.
    pub(crate) oldest: Option<u64>,
    /// The time when the newest of them was read, in microseconds since 1970.
    pub(crate) newest: Option<u64>,
    /// Bytes of all segments on disk.
    pub(crate) bytes: u64,
    /// The number of segments.
    pub(crate) segments: u64,
}

/// A spooler's answer.
#[derive(Debug)]
pub(crate) struct Inspected {
    /// Events that were discarded.
    pub(crate) discarded: u64,
    /// The contents that are left.
    pub(crate) contents: QueueContents,
}

/// A question to a spooler.
#[derive(Debug)]
pub(crate) struct Inspection {
    /// Discard waiting events that were read before this, in microseconds since 1970.
    pub(crate) discard_before: Option<u64>,
    /// The channel for the answer.
    pub(crate) answer: oneshot::Sender<Inspected>,
}

/// The ways to the spoolers, by the sinks' names.
#[derive(Default)]
pub(crate) struct Inspector(Mutex<BTreeMap<String, Sender<Inspection>>>);

impl Inspector {
    /// From now on the sink of this name is asked here.
    pub(crate) fn open(&self, sink: &str, inspections: Sender<Inspection>) {
        self.lock().insert(sink.to_owned(), inspections);
    }

    /// Asks one sink; `None` if it is not there, is just being changed, or does not answer in time.
    pub(crate) async fn ask(&self, sink: &str, discard_before: Option<u64>) -> Option<Inspected> {
        let inspections = self.lock().get(sink)?.clone();
        let (answer, answered) = oneshot::channel();
        inspections.try_send(Inspection { discard_before, answer }).ok()?;
        drop(inspections);
        timeout(ANSWER, answered).await.ok()?.ok()
    }

    /// Asks all of these sinks at once. One that does not answer is left out.
    pub(crate) async fn ask_all(&self, sinks: &[String]) -> Vec<QueueContents> {
        let answers = join_all(sinks.iter().map(|sink| self.ask(sink, None))).await;
        answers.into_iter().flatten().map(|answer| answer.contents).collect()
    }

    /// A map is never half changed.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Sender<Inspection>>> {
        lock::hold(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use crate::queue::inspect::*;
    use crate::sync::bell::{Bell, channel};

    #[tokio::test(start_paused = true)]
    async fn sinks_that_do_not_answer_are_waited_for_together() {
        let inspector = Inspector::default();
        let sinks = ["a", "b", "c"].map(str::to_owned);
        let (mut kept, began) = (Vec::new(), Instant::now());
        for sink in &sinks {
            let (inspections, inspections_out) = channel(MAX_INSPECTIONS, &Bell::default());
            inspector.open(sink, inspections);
            kept.push(inspections_out);
        }
        assert_eq!(inspector.ask_all(&sinks).await, []);
        assert_eq!(began.elapsed().as_secs(), ANSWER.as_secs());
    }
}
