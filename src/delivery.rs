//! The driver of a sink's writer: connect, write, back off, split, give up on what is refused.
//!
//! A writer takes one batch after the other and reports each back to the spooler when it is
//! settled: every event of it stored, or refused for good. A batch that fails comes again, the same
//! events under the same id, for as long as it takes. A batch that is refused is halved until the
//! refused events are alone; halves are written front first, so order is kept.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::batch::Batch;
use crate::breaker::Breaker;
use crate::event::Event;
use crate::json::Losses;
use crate::sink::{Context, Rejected, Sink, SinkError};
use crate::state::SinkState;
use crate::units::Span;

/// How a sink is tried again. There is no limit to the number of tries.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// The wait after the first failure; it doubles with each further one, with jitter.
    pub initial: Span,
    /// The longest wait.
    pub max: Span,
    /// How long one connect or write may take before it is broken off and tried again over a new
    /// connection.
    pub timeout: Span,
}

impl Default for RetryConfig {
    fn default() -> Self {
        RetryConfig {
            initial: Span::millis(500),
            max: Span::seconds(30),
            timeout: Span::seconds(60),
        }
    }
}

/// A batch is settled.
#[derive(Debug, Clone, Copy)]
pub struct Settled {
    /// Which writer settled it.
    pub writer: usize,
    /// The place of its first event in the queue.
    pub first: u64,
}

/// What the writers of one sink share.
pub struct Shared {
    /// How to try again.
    pub retry: RetryConfig,
    /// Lets one writer at a time try a server that is down.
    pub breaker: Breaker,
    /// The limit on events a second, where one is set.
    pub rate_limit: Option<RateLimit>,
    /// What the world sees.
    pub state: Arc<SinkState>,
}

/// One writer of a sink: where its batches come from and where it reports them.
pub struct Writer {
    /// What the sink is told.
    pub context: Context,
    /// Batches to write.
    pub batches: mpsc::Receiver<Batch>,
    /// Batches that are settled. Has room for every batch that can be in flight.
    pub settled: Sender<Settled>,
    /// What the sink's writers share.
    pub shared: Arc<Shared>,
    /// The drain deadline has passed: leave everything as it is.
    pub stop: CancellationToken,
}

/// Delivers batches until there are no more, the writer is stopped, or the configuration turns out
/// to be wrong.
pub(crate) async fn drive<S: Sink>(config: &S::Config, mut writer: Writer) {
    let stop = writer.stop.clone();
    let mut delivery = Delivery::<S>::new(config, &writer.context, &writer.shared);
    let delivering = async {
        if !delivery.connect().await {
            return;
        }
        while let Some(batch) = writer.batches.recv().await {
            let first = batch.first();
            if !delivery.deliver(batch).await {
                return;
            }
            let settled = Settled { writer: writer.context.writer, first };
            // Fails only when the spooler is gone, and then nobody waits for it.
            let _ = writer.settled.try_send(settled);
        }
    };
    let finished = stop.run_until_cancelled(delivering).await.is_some();
    if let (true, Some(sink)) = (finished, delivery.sink.take())
        && let Err(error) = sink.close().await
    {
        warn!(sink = writer.context.name, error = error.chain(), "closing failed");
    }
}

struct Delivery<'a, S: Sink> {
    config: &'a S::Config,
    context: &'a Context,
    shared: &'a Shared,
    backoff: Backoff,
    sink: Option<S>,
}

impl<'a, S: Sink> Delivery<'a, S> {
    fn new(config: &'a S::Config, context: &'a Context, shared: &'a Shared) -> Self {
        let RetryConfig { initial, max, .. } = shared.retry;
        let backoff = Backoff::new(initial.0, max.0);
        Delivery { config, context, shared, backoff, sink: None }
    }

    /// Connects, however long it takes; `false` if the configuration is wrong.
    async fn connect(&mut self) -> bool {
        loop {
            match self.attempt(None).await {
                Ok(()) => return true,
                Err(Failure::Fatal) => return false,
                Err(Failure::Later | Failure::Rejected(..)) => {}
            }
        }
    }

    /// Settles a batch, however long it takes; `false` if the configuration is wrong.
    async fn deliver(&mut self, batch: Batch) -> bool {
        let mut left = vec![batch];
        while let Some(batch) = left.pop() {
            if let Some(limit) = &self.shared.rate_limit {
                limit.wait_for(batch.len()).await;
            }
            match self.attempt(Some(&batch)).await {
                Ok(()) => self.stored(&batch, batch.len()),
                Err(Failure::Later) => left.push(batch),
                Err(Failure::Fatal) => return false,
                Err(Failure::Rejected(Rejected::These(places), reason)) => {
                    let refused = batch.events().enumerate().filter(|(n, _)| places.contains(n));
                    refused.for_each(|(_, event)| self.refused(event, &reason));
                    self.stored(&batch, batch.len() - places.len());
                }
                Err(Failure::Rejected(Rejected::Unknown, reason)) if batch.len() == 1 => {
                    batch.events().for_each(|event| self.refused(event, &reason));
                }
                Err(Failure::Rejected(Rejected::Unknown, _)) => {
                    let (front, back) = batch.split();
                    left.extend([back, front]);
                }
            }
        }
        true
    }

    /// Tries once, over a new connection if there is none: to write the batch, or only to connect.
    /// After a failure that may pass it has waited before it returns.
    async fn attempt(&mut self, batch: Option<&Batch>) -> Result<(), Failure> {
        let permit = self.shared.breaker.permit().await;
        let limit = self.shared.retry.timeout.0;
        let began = Instant::now();
        let result = match timeout(limit, self.connect_and_write(batch)).await {
            Ok(result) => result,
            Err(elapsed) => {
                self.sink = None;
                self.shared.state.timeouts.add(1);
                Err(SinkError::retry(format!("writing, for {limit:?}"), elapsed))
            }
        };
        match result {
            Ok(()) => {
                permit.succeeded();
                self.worked();
                if batch.is_some() {
                    self.shared.state.write_seconds.record(began.elapsed().as_secs_f64());
                }
                Ok(())
            }
            Err(SinkError::Reject { doing, cause, events }) => {
                // The server answered; nothing is wrong with it.
                permit.succeeded();
                self.worked();
                Err(Failure::Rejected(events, format!("{doing}: {cause}")))
            }
            Err(SinkError::Fatal { doing, cause }) => {
                let reason = format!("{doing}: {cause}");
                self.shared.state.failed(&reason);
                self.shared.state.park();
                error!(
                    sink = self.context.name,
                    error = reason,
                    "the sink is parked until its configuration is corrected"
                );
                Err(Failure::Fatal)
            }
            Err(failure) => {
                permit.failed();
                self.failed(&failure);
                let after = match failure {
                    SinkError::Retry { after, .. } => after,
                    _ => None,
                };
                sleep(self.backoff.delay(after)).await;
                Err(Failure::Later)
            }
        }
    }

    async fn connect_and_write(&mut self, batch: Option<&Batch>) -> Result<(), SinkError> {
        let sink = match &mut self.sink {
            Some(sink) => sink,
            None => self.sink.insert(S::connect(self.config, self.context).await?),
        };
        let Some(batch) = batch else { return Ok(()) };
        let result = sink.write(batch).await;
        if matches!(result, Err(SinkError::Reconnect { .. })) {
            self.sink = None;
        }
        result
    }

    fn worked(&mut self) {
        self.backoff.reset();
        let state = &self.shared.state;
        if state.worked() {
            info!(sink = self.context.name, kind = S::NAME, "the sink is up");
        }
        state.breaker_open.set_bool(false);
    }

    fn failed(&self, failure: &SinkError) {
        let state = &self.shared.state;
        match failure {
            SinkError::Reconnect { .. } => state.reconnects.add(1),
            _ => state.retries.add(1),
        }
        let was_up = state.up.get() > 0.0;
        let reason = failure.chain();
        if state.failed(&reason) || was_up {
            warn!(sink = self.context.name, error = reason, "the sink is down, trying again");
        }
        state.breaker_open.set_bool(self.shared.breaker.is_open());
    }

    fn stored(&self, batch: &Batch, count: usize) {
        let state = &self.shared.state;
        state.events.add(count as u64);
        state.batches.add(1);
        #[allow(clippy::cast_precision_loss)]
        state.batch_events.record(batch.len() as f64);
        let mut losses = Losses::default();
        for event in batch.events() {
            losses += event.json_losses().unwrap_or_default();
        }
        state.lost(losses);
    }

    fn refused(&self, event: &Event, reason: &str) {
        let state = &self.shared.state;
        state.rejected.add(1);
        if state.note_refusal(reason) {
            warn!(
                sink = self.context.name,
                tag = event.tag(),
                event = %event.id(),
                error = reason,
                "the sink refuses an event; it is counted and left out"
            );
        }
    }
}

/// Why an attempt did not settle its batch.
enum Failure {
    /// It may work later.
    Later,
    /// Some events are refused, for this reason.
    Rejected(Rejected, String),
    /// The configuration is wrong.
    Fatal,
}

/// A token bucket of one second's worth of events.
pub struct RateLimit {
    per_second: f64,
    bucket: Mutex<Bucket>,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl RateLimit {
    /// At most so many events a second.
    pub fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second.max(1));
        let bucket = Mutex::new(Bucket { tokens: per_second, filled: Instant::now() });
        RateLimit { per_second, bucket }
    }

    /// Waits until so many events may go. Takes them at once and then waits for the debt to pass,
    /// so that a batch larger than the bucket goes too.
    async fn wait_for(&self, events: usize) {
        let debt = {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let earned = now.duration_since(bucket.filled).as_secs_f64() * self.per_second;
            #[allow(clippy::cast_precision_loss)]
            let taken = events as f64;
            bucket.tokens = (bucket.tokens + earned).min(self.per_second) - taken;
            bucket.filled = now;
            -bucket.tokens
        };
        if debt > 0.0 {
            sleep(Duration::from_secs_f64(debt / self.per_second)).await;
        }
    }
}
