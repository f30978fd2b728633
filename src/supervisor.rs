//! What a sink's thread does: it runs the sink's spooler, and another one when that has died.
//!
//! A spooler dies when it panics, or when a writer or its sync thread does. That is a bug, and no
//! reason to lose events: the sink is parked for a moment, its events gather in memory, then its spill
//! is opened again, as after a crash of the daemon, and spooler and writers are begun anew. The more
//! often that happens, the longer the moment is. Events that were in memory alone and went down with
//! the spooler are counted as dropped, for the reason `panic`.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::batch::BatchLimits;
use crate::doorbell::Receiver;
use crate::queue::SpillConfig;
use crate::redact::Redaction;
use crate::running_sink::{Feed, OpenQueue, open_queue};
use crate::spill_desk::Enquiry;
use crate::spooler::{Death, Left, Order, Spooler};
use crate::state::SinkState;
use crate::unopened::Unopened;
use crate::writers::{Starter, Writers};

/// How long a death is remembered.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The wait after the first death; it doubles with each further one.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// How long to wait for the writers of a spooler that has died.
const CUT_OFF: Duration = Duration::from_secs(1);

/// All that spoolers of one sink are made of, and what outlives them.
pub(crate) struct Supervisor {
    pub(crate) name: String,
    pub(crate) spill: SpillConfig,
    pub(crate) limits: BatchLimits,
    pub(crate) redaction: Option<Arc<Redaction>>,
    pub(crate) state_dir: PathBuf,
    pub(crate) state: Arc<SinkState>,
    pub(crate) starter: Starter,
    /// The daemon has begun to stop.
    pub(crate) stop: CancellationToken,
    /// The drain deadline has passed.
    pub(crate) give_up: CancellationToken,
    /// Set when the spill's folder was removed or replaced.
    pub(crate) renew: Arc<AtomicBool>,
}

impl Supervisor {
    /// Runs spoolers until one ends in order. Gives what it leaves behind, and the writers that may
    /// not have ended yet.
    pub(crate) fn run(
        self,
        queue: Result<OpenQueue, String>,
        mut feed: Feed,
        mut orders: Receiver<Order>,
        mut enquiries: Receiver<Enquiry>,
    ) -> (Left, Vec<JoinSet<()>>) {
        let mut all_writers = Vec::new();
        let (mut opened, mut is_draining, mut events) = (queue, false, 0);
        let mut deaths = Deaths::default();
        loop {
            let wait = deaths.pause();
            let (OpenQueue { queue, fsync }, Feed { shares, inherited }) =
                match self.opened(opened, feed, &orders, wait) {
                    Ok(opened) => opened,
                    Err(left) => return (left, all_writers),
                };
            self.count_lost(events, queue.len() as u64);
            let cut_off = self.give_up.child_token();
            let Writers { mut tasks, batches, settled, died } = self.starter.start(&cut_off);
            let spooler = Spooler {
                queue,
                limits: self.limits,
                fsync,
                shares,
                redaction: self.redaction.clone(),
                settled,
                writers: batches,
                state: Arc::clone(&self.state),
                orders,
                enquiries,
                stop: self.stop.clone(),
                give_up: self.give_up.clone(),
                inherited,
                renew: Arc::clone(&self.renew),
                writer_died: died,
                is_draining,
            };
            let death = match spooler.run() {
                Ok(left) => {
                    all_writers.push(tasks);
                    return (left, all_writers);
                }
                Err(death) => death,
            };
            deaths.note(Instant::now());
            self.state.up.set_bool(false);
            cut_off.cancel();
            self.starter.join(&mut tasks, CUT_OFF);
            all_writers.push(tasks);
            // Whatever had parked it is found out again.
            self.state.unpark();
            let Death { reason, shares, inherited, .. } = death;
            (orders, enquiries) = (death.orders, death.enquiries);
            (is_draining, events) = (death.is_draining, death.events);
            feed = Feed { shares, inherited };
            opened = Err(format!("the sink {}: {reason}", self.name));
        }
    }

    /// The queue, as soon as it can be opened.
    fn opened(
        &self,
        opened: Result<OpenQueue, String>,
        feed: Feed,
        orders: &Receiver<Order>,
        wait: Duration,
    ) -> Result<(OpenQueue, Feed), Left> {
        let reason = match opened {
            Ok(queue) => return Ok((queue, feed)),
            Err(reason) => reason,
        };
        let unopened = Unopened {
            state: Arc::clone(&self.state),
            memory_bound: self.spill.memory_bound(),
            give_up: self.give_up.clone(),
            wait,
        };
        unopened.wait(reason, feed, orders, || open_queue(&self.name, self.spill, &self.state_dir))
    }

    /// Counts what a spooler that died had and the next one has not.
    fn count_lost(&self, had: u64, has: u64) {
        let lost = had.saturating_sub(has);
        if lost > 0 {
            self.state.dropped_panic.add(lost);
            let sink = &self.name;
            error!(sink, events = lost, "events were in memory alone and are lost");
        }
    }
}

/// When spoolers of one sink have died.
#[derive(Default)]
struct Deaths(VecDeque<Instant>);

impl Deaths {
    fn note(&mut self, now: Instant) {
        self.0.retain(|at| now.saturating_duration_since(*at) < REMEMBERED);
        self.0.push_back(now);
    }

    /// How long to wait before the next one is begun.
    fn pause(&self) -> Duration {
        let doublings = u32::try_from(self.0.len().saturating_sub(1)).unwrap_or(u32::MAX).min(16);
        (PAUSE * 2u32.pow(doublings)).min(LONGEST)
    }
}
