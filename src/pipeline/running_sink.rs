//! One sink that runs: its spooler thread and its writers, started and ended as a whole.
//!
//! A sink that is removed drains for as long as a stopping daemon would, and leaves the rest in its
//! spill. A sink that has changed hands over:
//!
//! 1. the old spooler begins no more batches, but goes on taking shares from the dispatcher, so
//!    nothing upstream waits;
//! 2. the batches that are begun are finished, if the sink works and within [`HAND_OVER`]. Else
//!    their writers are cut off, and the new ones get the batches again under the same ids;
//! 3. the old spooler leaves its queue in the spill, or in memory if there is no spill. It gives
//!    back its end of the channel, in which events gather meanwhile;
//! 4. the new spooler opens the spill and goes on with that channel.
//!
//! The dispatcher's end of the channel stays where it is all the time, so no event can fall between
//! two spoolers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::SinkConfig;
use crate::event::redact::Redaction;
use crate::observe::state::SinkState;
use crate::pipeline::error::PipelineError;
use crate::pipeline::supervisor::Supervisor;
use crate::pipeline::thread::Thread;
use crate::pipeline::writers::{SinkEnvironment, Starter};
use crate::queue::inspect::MAX_INSPECTIONS;
use crate::queue::open::{Incoming, OpenQueue, spill_of};
use crate::queue::spooler::{Leftover, ORDERS, Order};
use crate::sync::bell::{Bell, Receiver, Sender, channel};

/// The time that the writers of a changed sink may take to finish what they have begun.
const HAND_OVER: Duration = Duration::from_secs(3);

/// The time to wait for writers that were cut off. Only those that block their thread take any
/// time.
const CUT_OFF: Duration = Duration::from_secs(1);

/// A sink that runs.
pub(crate) struct RunningSink {
    pub(crate) fingerprint: u128,
    pub(crate) state: Arc<SinkState>,
    orders: Sender<Order>,
    give_up: CancellationToken,
    left: oneshot::Receiver<Leftover>,
    gone: CancellationToken,
    /// The spill's folder was removed or replaced.
    renew: Arc<AtomicBool>,
    bell: Bell,
}

/// A sink that was removed and has not ended yet.
pub(crate) struct Leaving {
    give_up: CancellationToken,
    gone: CancellationToken,
}

impl RunningSink {
    /// Starts a sink. A task of `parts` waits for its end.
    pub(crate) fn start(
        environment: &SinkEnvironment,
        sink: &SinkConfig,
        state: Arc<SinkState>,
        queue: Result<OpenQueue, String>,
        incoming: Incoming,
        parts: &mut JoinSet<Result<(), PipelineError>>,
    ) -> Result<Self, PipelineError> {
        let give_up = environment.give_up.child_token();
        state.queue_max_bytes.set_count(sink.spill.memory_bound());
        state.spill_max_bytes.set_whole(sink.spill.disk_bound());
        let bell = incoming.shares.bell().clone();
        let (orders, orders_out) = channel(ORDERS, &bell);
        let (inspections, inspections_out) = channel(MAX_INSPECTIONS, &bell);
        environment.inspector.open(&sink.name, inspections);
        let renew = Arc::new(AtomicBool::new(false));
        let supervisor = Supervisor {
            name: sink.name.clone(),
            spill: sink.spill,
            limits: sink.limits,
            redaction: Redaction::new(&sink.redact, &sink.name),
            state_dir: environment.state_dir.clone(),
            state: Arc::clone(&state),
            starter: Starter::new(environment, sink, &state, &bell),
            stop: environment.stop.clone(),
            give_up: give_up.clone(),
            renew: Arc::clone(&renew),
        };
        let spooler =
            Thread::start(&format!("spool {}", sink.name), &environment.threads, move || {
                supervisor.run(queue, incoming, orders_out, inspections_out)
            })?;
        let (left_in, left) = oneshot::channel();
        let leaver = Arc::clone(&state);
        let gone = CancellationToken::new();
        let is_gone = gone.clone().drop_guard();
        parts.spawn(async move {
            let _is_gone = is_gone;
            let (left, writers) = spooler.ended().await?;
            if let Err(Leftover { shares, in_memory, .. }) = left_in.send(left) {
                // The daemon stops, and the successor waits no more.
                let in_channel = shares.iter().flat_map(Receiver::try_iter);
                let lost = in_memory.into_iter().chain(in_channel);
                leaver.dropped_stop.add(lost.map(|parcel| parcel.share().len() as u64).sum());
            }
            for mut writers in writers {
                // A panic there has been reported.
                while writers.join_next().await.is_some() {}
            }
            Ok(())
        });
        let fingerprint = sink.fingerprint;
        Ok(RunningSink { fingerprint, state, orders, give_up, left, gone, renew, bell })
    }

    /// The state directory was removed or replaced: the spill goes on in a new folder.
    pub(crate) fn renew(&self) {
        self.renew.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Ends the sink for another to take over. Once `stop` is cancelled it is not waited for.
    pub(crate) async fn hand_over(
        mut self,
        stop: &CancellationToken,
    ) -> Result<Leftover, PipelineError> {
        let order = |order| {
            // Fails only when the spooler has ended.
            let _ = self.orders.try_send(order);
        };
        order(Order::Leave);
        // A sink that does not work is not waited for.
        let limit = if self.state.up.get() > 0.0 { HAND_OVER } else { Duration::ZERO };
        let mut left = in_time(limit, stop, &mut self.left).await;
        if left.is_none() {
            self.give_up.cancel();
            left = timeout(CUT_OFF, &mut self.left).await.ok();
        }
        let left = match left {
            Some(left) => left,
            None => {
                order(Order::LeaveAtOnce);
                let is_late = async {
                    stop.cancelled().await;
                    sleep(CUT_OFF).await;
                };
                tokio::select! {
                    left = &mut self.left => left,
                    () = is_late => return Err(PipelineError::Hangs(self.state.name.clone())),
                }
            }
        };
        // The old writers let go of the store before the new ones come.
        if in_time(HAND_OVER, stop, self.gone.cancelled()).await.is_none() {
            self.give_up.cancel();
            if timeout(CUT_OFF, self.gone.cancelled()).await.is_err() {
                warn!(sink = self.state.name, "a writer of the old configuration still hangs");
            }
        }
        left.map_err(|_| PipelineError::Panicked(format!("spooler of {}", self.state.name)))
    }

    /// Ends the sink for good. It delivers events within `deadline`; the rest stays in the spill
    /// and is reported.
    pub(crate) fn remove(
        self,
        deadline: Duration,
        state_dir: &Path,
        parts: &mut JoinSet<Result<(), PipelineError>>,
    ) -> Leaving {
        let RunningSink { state, orders, give_up, left, gone, .. } = self;
        // Fails only when the spooler has ended.
        let _ = orders.try_send(Order::End);
        let leaving = Leaving { give_up: give_up.clone(), gone: gone.clone() };
        let spill = spill_of(state_dir, &state.name);
        parts.spawn(async move {
            if timeout(deadline, gone.cancelled()).await.is_err() {
                give_up.cancel();
                gone.cancelled().await;
            }
            state.up.set_bool(false);
            state.breaker_open.set_bool(false);
            state.lag.set(0.0);
            let events = left.await.map_or(0, |left| left.on_disk);
            if events > 0 {
                warn!(
                    sink = state.name,
                    events,
                    spill = %spill.display(),
                    "the removed sink leaves events in its spill; a new sink of this name delivers \
                     them"
                );
            } else {
                info!(sink = state.name, "the removed sink has ended; nothing waits in its spill");
            }
            Ok(())
        });
        leaving
    }
}

impl Leaving {
    /// The sink has ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// Ends the sink now, since another of its name wants the spill; `false` if it hangs. Once
    /// `stop` is cancelled it is not waited for.
    pub(crate) async fn make_way(&self, stop: &CancellationToken) -> bool {
        self.give_up.cancel();
        in_time(HAND_OVER, stop, self.gone.cancelled()).await.is_some()
    }
}

/// The result of waiting, if it comes within `limit` and before `stop` is cancelled.
async fn in_time<T>(
    limit: Duration,
    stop: &CancellationToken,
    waiting: impl Future<Output = T>,
) -> Option<T> {
    timeout(limit, stop.run_until_cancelled(waiting)).await.ok().flatten()
}
