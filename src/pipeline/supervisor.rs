//! The thread of a sink: it runs the sink's spooler, and another one when that has died.
//!
//! A spooler dies when it panics, or when a writer or its sync thread does. That is a bug, and no
//! reason to lose events. The sink is parked for a moment and its events wait in memory. Then its
//! spill is opened again, as after a crash of the daemon, and spooler and writers start anew. The
//! moment grows with each death. Events that were in memory alone and went down with the spooler
//! are counted as dropped, for the reason `panic`.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::event::batch::BatchLimits;
use crate::event::redact::Redaction;
use crate::observe::state::SinkState;
use crate::pipeline::writers::{Starter, Writers};
use crate::queue::config::SpillConfig;
use crate::queue::inspect::Inspection;
use crate::queue::open::{Incoming, OpenQueue, open_queue};
use crate::queue::spooler::{Leftover, Order, Spooler};
use crate::queue::waiting_for_spill::WaitingForSpill;
use crate::sync::bell::Receiver;

/// The time for which a death is remembered.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The wait after the first death; it doubles with each further one.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// The time to wait for the writers of a spooler that has died.
const CUT_OFF: Duration = Duration::from_secs(1);

/// The parts that spoolers of one sink are made of, and the state that outlives them.
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
    /// Runs spoolers until one ends in order. Returns its leftovers, and the writers that may not
    /// have ended yet.
    pub(crate) fn run(
        self,
        queue: Result<OpenQueue, String>,
        mut incoming: Incoming,
        mut orders: Receiver<Order>,
        mut inspections: Receiver<Inspection>,
    ) -> (Leftover, Vec<JoinSet<()>>) {
        let mut all_writers = Vec::new();
        let (mut opened, mut is_draining, mut events) = (queue, false, 0);
        let mut restarts = Restarts::default();
        loop {
            let (wait, disk_fails) = (restarts.pause(), restarts.0.is_empty());
            let (OpenQueue { queue, fsync }, Incoming { shares, inherited }) =
                match self.opened(opened, incoming, &orders, (wait, disk_fails)) {
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
                inspections,
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
            restarts.note(Instant::now());
            self.state.up.set_bool(false);
            cut_off.cancel();
            self.starter.join(&mut tasks, CUT_OFF);
            all_writers.push(tasks);
            // A reason to park it will be found again.
            self.state.unpark();
            opened = Err(format!("the sink {}: {}", self.name, death.reason));
            incoming = Incoming { shares: death.shares, inherited: death.inherited };
            (orders, inspections) = (death.orders, death.inspections);
            (is_draining, events) = (death.is_draining, death.events);
        }
    }

    /// The queue, as soon as it can be opened.
    fn opened(
        &self,
        opened: Result<OpenQueue, String>,
        incoming: Incoming,
        orders: &Receiver<Order>,
        (wait, disk_fails): (Duration, bool),
    ) -> Result<(OpenQueue, Incoming), Leftover> {
        let reason = match opened {
            Ok(queue) => {
                // The sink may have been parked because it was missing.
                self.state.set_waiting_for_spill(None);
                return Ok((queue, incoming));
            }
            Err(reason) => reason,
        };
        let waiting_for_spill = WaitingForSpill {
            state: Arc::clone(&self.state),
            spill: self.spill,
            disk_fails,
            give_up: self.give_up.clone(),
            wait,
        };
        waiting_for_spill
            .wait(reason, incoming, orders, || open_queue(&self.name, self.spill, &self.state_dir))
    }

    /// Counts the events that a dead spooler had and the next one has not.
    fn count_lost(&self, had: u64, has: u64) {
        let lost = had.saturating_sub(has);
        if lost > 0 {
            self.state.dropped_panic.add(lost);
            let sink = &self.name;
            error!(sink, events = lost, "events were in memory alone and are lost");
        }
    }
}

/// The times at which spoolers of one sink have died.
#[derive(Default)]
struct Restarts(VecDeque<Instant>);

impl Restarts {
    fn note(&mut self, now: Instant) {
        self.0.retain(|at| now.saturating_duration_since(*at) < REMEMBERED);
        self.0.push_back(now);
    }

    /// The time to wait before the next one is begun.
    fn pause(&self) -> Duration {
        let doublings = u32::try_from(self.0.len().saturating_sub(1)).unwrap_or(u32::MAX).min(16);
        (PAUSE * 2u32.pow(doublings)).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::watch;

    use crate::config::Config;
    use crate::delivery::{Settled, Writer};
    use crate::pipeline::Pipeline;
    use crate::pipeline::shutdown::Shutdown;
    use crate::pipeline::supervisor::*;
    use crate::sink::contract::{Context, WriteError};
    use crate::sink::registry::{Driver, Driving};

    /// A fault that occurs a few times, when a batch is written.
    #[derive(Clone, Copy)]
    enum Wrong {
        /// The writer panics before it has stored the batch.
        Writer,
        /// The batch is reported as settled twice, which no spooler survives.
        Spooler,
    }

    /// A store that is written by drivers that go wrong.
    struct Unlucky {
        wrong: Wrong,
        times: AtomicU32,
        stored: Mutex<BTreeSet<String>>,
    }

    impl Driver for Unlucky {
        fn drive(self: Arc<Self>, mut writer: Writer) -> Driving<'static, ()> {
            Box::pin(async move {
                while let Some(batch) = writer.batches.recv().await {
                    let goes_wrong = self.times.load(Ordering::Relaxed) > 0;
                    if goes_wrong {
                        self.times.fetch_sub(1, Ordering::Relaxed);
                    }
                    assert!(!goes_wrong || matches!(self.wrong, Wrong::Spooler), "out of luck");
                    let tags = batch.events().map(|event| event.tag().to_owned());
                    self.stored.lock().unwrap().extend(tags);
                    let settled = Settled { writer: 0, first: batch.first() };
                    for _ in 0..if goes_wrong { 4 } else { 1 } {
                        let _ = writer.settled.send(settled);
                    }
                }
            })
        }

        fn probe<'a>(&'a self, _: &'a Context) -> Driving<'a, Result<(), WriteError>> {
            Box::pin(async { Ok(()) })
        }
    }

    const EVENTS: usize = 2000;

    /// Sends two thousand events through a sink that goes wrong so often. Returns the stored events
    /// and the sink's state, and checks that the status shows the panics.
    async fn run(mode: &str, wrong: Wrong, times: u32) -> (usize, Arc<SinkState>, bool) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let line = |n| format!("{{\"tag\": \"t/{n}\", \"data\": {{}}}}\n");
        let lines: Vec<_> = (0..EVENTS).map(line).collect();
        std::fs::write(path.join("events"), lines.concat()).unwrap();
        std::fs::create_dir(path.join("state")).unwrap();
        let text = format!(
            "state_dir: {0}/state\nhttp: {{listen: null}}\n\
             sources: {{past: {{replay: {{path: {0}/events}}}}}}\n\
             sinks: {{out: {{blackhole: {{}}, spill: {{mode: {mode}}}, batch: {{max_events: 50}}}}}}\n",
            path.display()
        );
        let mut config = Config::parse(&text).unwrap_or_else(|problems| panic!("{problems:?}"));
        let (times, stored) = (AtomicU32::new(times), Mutex::default());
        let store = Arc::new(Unlucky { wrong, times, stored });
        let driver: Arc<dyn Driver> = Arc::clone(&store) as _;
        config.sinks[0].driver = driver;
        let shutdown = Shutdown::within(Duration::from_secs(60));
        let reopen = watch::channel(0).1;
        let mut pipeline = Pipeline::start(&config, &shutdown, &reopen, &Arc::default()).unwrap();
        let state = Arc::clone(&pipeline.state);
        let ended = tokio::time::timeout(Duration::from_secs(120), pipeline.ended()).await;
        // A replay reports events that were not kept.
        let kept = ended.expect("it hangs").is_ok();
        let sinks = state.status().sinks;
        let said = sinks[0].last_error.as_ref().is_some_and(|last| last.error.contains("panicked"));
        let stored = store.stored.lock().unwrap().len();
        assert!(kept || state.sinks()[0].dropped_panic.get() > 0);
        (stored, Arc::clone(&state.sinks()[0]), said)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn invariant_9_a_sink_whose_spooler_panics_shows_it_and_goes_on_without_a_loss() {
        let (stored, state, said) = run("durable", Wrong::Spooler, 2).await;
        assert_eq!((stored, state.dropped(), said), (EVENTS, 0, true));
        assert_eq!(state.parked(), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn invariant_9_a_sink_whose_writer_panics_shows_it_and_loses_nothing() {
        for mode in ["durable", "overflow", "memory"] {
            let (stored, state, said) = run(mode, Wrong::Writer, 2).await;
            assert_eq!((stored, state.dropped(), said), (EVENTS, 0, true), "{mode}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn invariant_3_what_is_in_memory_alone_survives_a_panic_of_the_spooler_or_is_counted() {
        for mode in ["memory", "overflow"] {
            let (stored, state, _) = run(mode, Wrong::Spooler, 1).await;
            assert!(stored as u64 + state.dropped_panic.get() >= EVENTS as u64, "{mode}");
        }
    }

    #[test]
    fn the_more_often_a_spooler_dies_the_longer_is_the_pause() {
        let mut restarts = Restarts::default();
        let now = Instant::now();
        let mut pauses = Vec::new();
        for n in 0..9 {
            restarts.note(now + Duration::from_secs(n));
            pauses.push(restarts.pause().as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        restarts.note(now + REMEMBERED * 2);
        assert_eq!(restarts.pause(), PAUSE);
    }
}
