//! The spooler: the thread that owns a sink's queue.
//!
//! It takes shares from the dispatcher as fast as they come, so that nothing upstream ever waits
//! for this sink, and hands batches to the sink's writers as they become free. It blocks on its two
//! channels and the linger of the next batch only.
//!
//! ```text
//! dispatcher ──share──▶ ┌─────────┐ ──batch──▶ writer 0
//!                       │ spooler │ ──batch──▶ writer 1
//!    writers ─settled─▶ └─────────┘
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use tokio::sync::mpsc;
use tracing::warn;

use crate::batch::{Batch, BatchLimits};
use crate::delivery::Settled;
use crate::event::Share;
use crate::queue::Queue;
use crate::state::SinkState;

/// Batches that one writer may hold: the one it writes and the one it writes next.
pub const BATCHES_PER_WRITER: usize = 2;

/// How long to sleep when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// Everything that a spooler thread owns.
pub struct Spooler {
    /// The queue.
    pub queue: Queue,
    /// When a batch is due.
    pub limits: BatchLimits,
    /// Shares from the dispatcher; closed when there are no more.
    pub shares: Receiver<Share>,
    /// Batches that writers have settled.
    pub settled: Receiver<Settled>,
    /// The writers.
    pub writers: Vec<mpsc::Sender<Batch>>,
    /// What the world sees.
    pub state: Arc<SinkState>,
}

impl Spooler {
    /// Works until there are no more shares and everything is settled, or the writers are gone.
    pub fn run(mut self) {
        let mut held = vec![0; self.writers.len()];
        let mut draining = false;
        // Writers end before the spooler does when they are told to give up or their sink is parked.
        let mut writers_gone = false;
        while !(draining && (writers_gone || self.queue.is_empty())) {
            self.hand_out(&mut held, draining);
            self.show();
            let wait = self.wait(&held, draining);
            select! {
                recv(self.shares) -> share => match share {
                    Ok(share) => self.take(share),
                    Err(_) => {
                        draining = true;
                        self.shares = crossbeam_channel::never();
                    }
                },
                recv(self.settled) -> settled => match settled {
                    Ok(Settled { writer, first }) => {
                        self.queue.settle(first);
                        if let Some(held) = held.get_mut(writer) {
                            *held -= 1;
                        }
                    }
                    Err(_) => {
                        writers_gone = true;
                        self.settled = crossbeam_channel::never();
                    }
                },
                default(wait) => {}
            }
        }
        let left = self.queue.len();
        if left > 0 {
            self.state.dropped_stop.add(left as u64);
            warn!(sink = self.state.name, events = left, "events were left and are lost");
        }
        self.state.set_oldest(None);
    }

    /// Takes a share and whatever else is at hand, so that a burst costs one round.
    fn take(&mut self, share: Share) {
        let now = Instant::now();
        let mut dropped = self.queue.push(share, now);
        while let Ok(share) = self.shares.try_recv() {
            dropped += self.queue.push(share, now);
        }
        if dropped > 0 {
            if self.state.dropped_full.get() == 0 {
                warn!(sink = self.state.name, "the queue is full and events are dropped");
            }
            self.state.dropped_full.add(dropped as u64);
        }
    }

    fn hand_out(&mut self, held: &mut [usize], draining: bool) {
        loop {
            let free = held.iter_mut().zip(&self.writers).min_by_key(|(held, _)| **held);
            let Some((held, writer)) = free.filter(|(held, _)| **held < BATCHES_PER_WRITER) else {
                return;
            };
            let is_due = match self.queue.due(&self.limits) {
                Some(due) => draining || due <= Instant::now(),
                None => false,
            };
            if !is_due {
                return;
            }
            // Reserved first: a batch must not leave the queue for a writer that cannot take it.
            let Ok(slot) = writer.try_reserve() else { return };
            let Some(batch) = self.queue.take(&self.limits) else { return };
            *held += 1;
            slot.send(batch);
        }
    }

    /// How long nothing can be due.
    fn wait(&self, held: &[usize], draining: bool) -> Duration {
        let has_free_writer = held.iter().any(|held| *held < BATCHES_PER_WRITER);
        match self.queue.due(&self.limits) {
            Some(due) if has_free_writer && !draining => {
                due.saturating_duration_since(Instant::now())
            }
            _ => IDLE,
        }
    }

    fn show(&self) {
        self.state.queue_events.set_count(self.queue.len());
        self.state.queue_bytes.set_count(self.queue.weight());
        self.state.set_oldest(self.queue.oldest());
    }
}
