//! Metrics of the Salt estate, from the events: jobs, returns, states, minions, keys.
//!
//! A thread of its own counts, so the dispatcher only hands each chunk on. A burst waits in a queue
//! of so many bytes (`queue`). Events for which there is no room are counted and left out: sinks do
//! not suffer for the sake of a number.
//!
//! [`table`] has the metrics, `facts` reads an event, `counters` counts it, `firsts` remembers who
//! reported a thing first, `jobs` waits for returns, and `series` keeps the counts within their
//! caps.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::event::chunk::Chunk;
use crate::observe::metrics::{self, Tally};
use crate::observe::state::now;
use crate::observe::threads;
use crate::sync::lock;
use counters::{Counters, Reporter};
use queue::{QueueReceiver, QueueSender, queue};

mod config;
mod counters;
mod facts;
mod firsts;
mod jobs;
mod queue;
mod series;
pub mod table;

pub use config::EstateConfig;

/// The time for which chunks may gather after a round with few, so that not each of them costs a
/// wake-up.
const GATHER: Duration = Duration::from_millis(5);

/// Chunks in a round up to which there were few.
const FEW: usize = 4;

/// The counts, for their readers; none while they are not wanted.
pub struct Estate {
    counters: Mutex<Option<Counters>>,
    /// Held by a thread that waits for the counters. A counting thread with much to do wants them
    /// again as soon as it has released them, so it waits behind rendering threads.
    turn: Mutex<()>,
    /// Bytes of events that may wait to be counted.
    memory: Arc<AtomicUsize>,
}

impl Estate {
    /// Counts by this configuration, from nothing on.
    pub fn new(config: Option<EstateConfig>) -> Arc<Self> {
        let memory = config.as_ref().map_or(0, |config| config.memory.as_usize());
        let counters = Mutex::new(config.map(Counters::new));
        Arc::new(Estate {
            counters,
            turn: Mutex::default(),
            memory: Arc::new(AtomicUsize::new(memory)),
        })
    }

    /// Anything is counted.
    pub(crate) fn is_on(&self) -> bool {
        self.counters().is_some()
    }

    /// Counts by this configuration from now on. Returns true if it differs from the one before.
    /// The counters then begin at zero, and the known minions and the awaited returns stay.
    pub(crate) fn configure(&self, config: Option<EstateConfig>) -> bool {
        let mut counters = self.counters();
        if counters.as_ref().map(Counters::config) == config.as_ref() {
            return false;
        }
        if let Some(config) = &config {
            self.memory.store(config.memory.as_usize(), Ordering::Relaxed);
        }
        *counters = match (counters.take(), config) {
            (Some(counters), Some(config)) => Some(counters.continued(config)),
            (_, config) => config.map(Counters::new),
        };
        true
    }

    /// The way in for chunks, and the work of counting them.
    pub fn channel(self: &Arc<Self>) -> (EstateSender, Counter) {
        let (chunks, chunks_out) = queue(Arc::clone(&self.memory));
        let missed = Tally::new(metrics::ESTATE_MISSED_EVENTS, &[]);
        (EstateSender { chunks, missed }, Counter { chunks: chunks_out, estate: Arc::clone(self) })
    }

    /// Appends the metrics in Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        if let Some(counters) = self.counters().as_mut() {
            counters.render(now() / 1_000_000, out);
        }
    }

    /// Counts the events of a chunk. `has_trimmed` says if any of them has a trimmed value.
    pub fn count(&self, chunk: &Chunk, has_trimmed: bool) {
        let mut counters = self.counters();
        let Some(counters) = counters.as_mut() else { return };
        let read = chunk.received / 1_000_000;
        counters.give_up(read);
        let reporter = Reporter::of(&chunk.origin);
        for event in &chunk.events {
            counters.count(event, reporter, read);
            if has_trimmed {
                counters.count_trimmed(event.payload());
            }
        }
    }

    /// A panic within would leave counts, which stay nearly true.
    fn counters(&self) -> std::sync::MutexGuard<'_, Option<Counters>> {
        let _turn = lock::hold(&self.turn);
        lock::hold(&self.counters)
    }
}

/// The place where the dispatcher hands chunks in to be counted.
pub struct EstateSender {
    chunks: QueueSender,
    missed: Tally,
}

impl EstateSender {
    /// Hands a chunk in, if there is room; as [`Estate::count`].
    pub fn offer(&self, chunk: &Arc<Chunk>, has_trimmed: bool) {
        if !self.chunks.put(chunk, has_trimmed) {
            self.missed.add(chunk.events.len() as u64);
        }
    }
}

/// Counts fed chunks until the feed is dropped.
pub struct Counter {
    chunks: QueueReceiver,
    estate: Arc<Estate>,
}

impl Counter {
    /// The work of a thread.
    pub fn run(self) {
        while let Some(chunks) = self.chunks.take() {
            let is_little = chunks.len() < FEW;
            for (chunk, has_trimmed) in chunks {
                self.estate.count(&chunk, has_trimmed);
                let size = chunk.size();
                drop(chunk);
                self.chunks.release(size);
            }
            if is_little {
                #[allow(clippy::disallowed_methods)] // the thread has nothing else to do
                threads::waiting(|| std::thread::sleep(GATHER));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::{Event, Origin};
    use crate::units::ByteSize;

    /// Chunks of returns of some 3 KB each, from number 0 on.
    fn chunks(events: usize) -> impl Iterator<Item = Arc<Chunk>> {
        const EACH: usize = 80;
        let states: serde_json::Map<_, _> = (0..10)
            .map(|number| {
                let state = json!({"__sls__": "web", "result": true, "duration": 1.5,
                    "comment": "x".repeat(180), "changes": {}});
                (format!("pkg_|-a-{number}_|-a_|-installed"), state)
            })
            .collect();
        let origin = Arc::new(Origin { source: "bus".to_owned(), master_id: "m".to_owned() });
        (0..events).step_by(EACH).map(move |first| {
            let numbers = first..(first + EACH).min(events);
            let events = numbers.map(|number| {
                let minion = format!("web-{number}");
                let data = json!({"jid": "1", "id": minion, "fun": "state.apply", "retcode": 0,
                    "success": true, "return": states});
                let data = rmp_serde::to_vec(&data).unwrap();
                Event::new(&format!("salt/job/1/ret/{minion}"), &data)
            });
            Arc::new(Chunk::new(Arc::clone(&origin), 1, events.collect()))
        })
    }

    fn returns(estate: &Estate) -> Option<u64> {
        let mut out = String::new();
        estate.render(&mut out);
        let name = "salt_responses_total{success=\"true\"} ";
        out.lines().find_map(|line| line.strip_prefix(name)?.parse().ok())
    }

    /// All of the burst is there before any of it is counted, and it shows how far that has come.
    #[test]
    fn a_burst_is_counted_in_full() {
        let estate = Estate::new(Some(EstateConfig::default()));
        let (sender, counter) = estate.channel();
        for chunk in chunks(100_000) {
            sender.offer(&chunk, false);
        }
        assert_eq!(sender.missed.get(), 0);
        drop(sender);
        let counting = std::thread::spawn(move || counter.run());
        let mut shown = std::collections::BTreeSet::new();
        while !counting.is_finished() {
            shown.extend(returns(&estate));
            std::thread::yield_now();
        }
        counting.join().unwrap();
        assert_eq!(returns(&estate), Some(100_000));
        assert!(shown.len() > 5, "{shown:?}");
    }

    #[test]
    fn invariant_6_what_waits_to_be_counted_is_within_its_bound() {
        let memory = ByteSize::mib(1);
        let estate = Estate::new(Some(EstateConfig { memory, ..EstateConfig::default() }));
        let (sender, counter) = estate.channel();
        let offered: Vec<_> = chunks(8000).collect();
        for chunk in &offered {
            sender.offer(chunk, false);
        }
        let held = offered.iter().filter(|chunk| Arc::strong_count(chunk) > 1);
        let held: Vec<_> = held.map(|chunk| (chunk.size(), chunk.events.len())).collect();
        let bytes: usize = held.iter().map(|(size, _)| size).sum();
        assert!((800_000..=1 << 20).contains(&bytes), "{bytes} bytes in {} chunks", held.len());
        let events: u64 = held.iter().map(|(_, events)| *events as u64).sum();
        assert_eq!(sender.missed.get(), 8000 - events);

        // There is room again for as much once it has been counted.
        let counting = std::thread::spawn(move || counter.run());
        let deadline = std::time::Instant::now() + Duration::from_secs(120);
        while returns(&estate) != Some(events) || Arc::strong_count(&offered[0]) > 1 {
            assert!(std::time::Instant::now() < deadline, "nothing is counted");
            std::thread::yield_now();
        }
        let missed = sender.missed.get();
        sender.offer(&offered[0], false);
        assert_eq!(sender.missed.get(), missed);
        drop(sender);
        counting.join().unwrap();
        assert_eq!(returns(&estate), Some(events + 80));
    }
}
