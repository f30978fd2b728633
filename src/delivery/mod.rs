//! The driver of a sink's writer: connect, write, back off, split, give up on refused events.
//!
//! A writer takes one batch after the other. It reports each back to the spooler when it is
//! settled: every event of it stored, or refused for good. A batch that fails comes again, the same
//! events under the same id, for as long as it takes. A batch that is refused is halved until the
//! refused events are alone. Halves are written front first, so order is kept. A write that panics
//! is tried again over a new connection. A batch at which it panics three times in a row counts as
//! refused.
//!
//! A sink that gathers events says when it is due. Its writer waits for that as well as for a
//! batch. A `tick` that fails comes again after a back-off, and batches are written meanwhile.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::client::backoff::Backoff;
use crate::codec::json::JsonLosses;
use crate::delivery::ahead::{Ahead, Next};
use crate::delivery::breaker::{Breaker, Permit};
use crate::delivery::dead_letter::DeadLetters;
use crate::delivery::deaths::{Deaths, Verdict};
use crate::delivery::retry::RetryConfig;
use crate::error::chain;
use crate::event::batch::{Batch, BatchId};
use crate::event::long_json;
use crate::observe::metrics::Tally;
use crate::observe::state::SinkState;
use crate::sink::contract::{Cause, Context, Partly, Sink, WriteError};
use crate::sync::bell::Sender;
use crate::sync::blocking;
use crate::sync::lock;

mod ahead;
pub(crate) mod breaker;
pub mod dead_letter;
pub(crate) mod deaths;
pub(crate) mod retry;

/// A batch is settled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settled {
    /// The number of the writer that settled it.
    pub(crate) writer: usize,
    /// The place of its first event in the queue.
    pub(crate) first: u64,
}

/// The state that the writers of one sink share.
pub(crate) struct Shared {
    /// The settings of retries.
    pub(crate) retry: RetryConfig,
    /// Lets one writer at a time try a server that is down.
    pub(crate) breaker: Breaker,
    /// The limit on events a second, where one is set.
    pub(crate) rate_limit: Option<RateLimit>,
    /// The database of refused events.
    pub(crate) dead_letters: Option<Arc<DeadLetters>>,
    /// The state of the sink that metrics and pages show.
    pub(crate) state: Arc<SinkState>,
    /// The deaths of the process, if there were so many that begun batches are tried with care.
    pub(crate) deaths: Option<Arc<Deaths>>,
    /// The configuration has turned out to be wrong: no writer tries anything more.
    pub(crate) parked: CancellationToken,
}

/// One writer of a sink, with its channels.
pub(crate) struct Writer {
    /// The environment of the sink.
    pub(crate) context: Context,
    /// Batches to write.
    pub(crate) batches: mpsc::Receiver<Batch>,
    /// Batches that are settled. Has room for every batch that can be in flight.
    pub(crate) settled: Sender<Settled>,
    /// The state that the sink's writers share.
    pub(crate) shared: Arc<Shared>,
    /// The drain deadline has passed: leave everything as it is.
    pub(crate) stop: CancellationToken,
}

/// Delivers batches until there are no more, the writer is stopped, or the configuration turns out
/// to be wrong.
pub(crate) async fn drive<S: Sink>(config: &S::Config, writer: Writer) {
    let Writer { context, batches, settled, shared, stop } = writer;
    let mut delivery = Delivery::<S>::new(config, &context, &shared, batches);
    let delivering = async {
        // It connects before the first batch, so that tables are made and mistakes show.
        while delivery.sink.is_none() && delivery.ahead.is_empty() {
            if delivery.ahead.is_closed() || !delivery.connect().await {
                return;
            }
        }
        loop {
            let due = delivery.due();
            let batch = match shared.parked.run_until_cancelled(delivery.ahead.next(due)).await {
                Some(Next::Batch(batch)) => batch,
                Some(Next::Due) if delivery.tick().await => continue,
                Some(Next::Due | Next::End) | None => return,
            };
            let first = batch.first();
            if !delivery.deliver(batch).await {
                return;
            }
            // Fails only when the spooler is gone, and then nobody waits for it.
            let _ = settled.try_send(Settled { writer: context.writer, first });
        }
    };
    let finished = stop.run_until_cancelled(delivering).await.is_some();
    delivery.ahead.forget().await;
    if !finished {
        delivery.disconnect().await;
    }
    if let Some(sink) = delivery.sink.take() {
        let mut closing = Box::pin(sink.close());
        match stop.run_until_cancelled(closing.as_mut()).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                warn!(sink = context.name, error = error.chain(), "closing failed");
            }
            None => delivery.release(closing).await,
        }
    }
}

/// A thing to try at a store.
#[derive(Clone, Copy)]
enum Work<'a> {
    /// A connect, and no more.
    Connect,
    /// A write of this batch.
    Write(&'a Batch),
    /// A `tick` that is due.
    Tick,
}

impl<'a> Work<'a> {
    fn batch(self) -> Option<&'a Batch> {
        match self {
            Work::Write(batch) => Some(batch),
            Work::Connect | Work::Tick => None,
        }
    }
}

struct Delivery<'a, S: Sink> {
    config: &'a S::Config,
    context: &'a Context,
    shared: &'a Shared,
    backoff: Backoff,
    sink: Option<S>,
    ahead: Ahead<S::Prepared>,
    /// The form of the batch that is tried next, if it was made ahead.
    prepared: Option<S::Prepared>,
    /// The time of the next `tick`, if the last one failed or lost its connection.
    late_until: Option<Instant>,
    /// The batch at which the last write panicked, and how often in a row.
    panicked: Option<(BatchId, u32)>,
    /// Clients that hang while they are dropped.
    hanging: JoinSet<()>,
}

/// The time to wait for a client that is dropped before it is left behind.
const LET_GO: Duration = Duration::from_secs(5);

/// So many panics in a row at one batch are no accident.
const PANICS: u32 = 3;

/// Clients that a writer may leave behind. Each has a thread, of which there are not many.
const HANGING: usize = 4;

impl<'a, S: Sink> Delivery<'a, S> {
    fn new(
        config: &'a S::Config,
        context: &'a Context,
        shared: &'a Shared,
        batches: mpsc::Receiver<Batch>,
    ) -> Self {
        let RetryConfig { initial, max, .. } = shared.retry;
        let backoff = Backoff::new(initial.0, max.0);
        Delivery {
            config,
            context,
            shared,
            backoff,
            sink: None,
            ahead: Ahead::new(batches),
            prepared: None,
            late_until: None,
            panicked: None,
            hanging: JoinSet::new(),
        }
    }

    /// Tries to connect; `false` if the configuration is wrong.
    async fn connect(&mut self) -> bool {
        !matches!(self.attempt(Work::Connect).await, Err(Failure::Fatal))
    }

    /// The time at which there is something to do besides writing.
    fn due(&self) -> Option<Instant> {
        match &self.sink {
            Some(sink) => Some(sink.due()?.max(self.late_until.unwrap_or_else(Instant::now))),
            // It is still to be done.
            None => self.late_until,
        }
    }

    /// Calls a due `tick`; `false` if the configuration is wrong.
    async fn tick(&mut self) -> bool {
        !matches!(self.attempt(Work::Tick).await, Err(Failure::Fatal))
    }

    /// Settles a batch, however long it takes; `false` if the configuration is wrong.
    async fn deliver(&mut self, batch: Batch) -> bool {
        let give_up_after = self.shared.retry.give_up_after;
        let give_up = || give_up_after.map(|span| Instant::now() + span.0);
        let mut give_up_at = give_up();
        let whole = batch.id();
        self.prepared = self.ahead.prepared().await;
        let mut left = vec![batch];
        let mut dead = Vec::new();
        let mut attempts = 0;
        while let Some(batch) = left.pop() {
            let is_whole = batch.id() == whole;
            let verdict = |deaths: &Deaths| deaths.verdict(&batch, is_whole);
            match self.watched(&batch).map_or(Verdict::Try, verdict) {
                Verdict::Try => {}
                Verdict::Cut => {
                    self.prepared = None;
                    left.extend(deaths::parts(batch).into_iter().rev());
                    continue;
                }
                Verdict::Deadly => {
                    let reason = deaths::DEADLY.to_owned();
                    dead.push(self.refused(batch, Refused::All(reason), attempts));
                    continue;
                }
            }
            if let Some(limit) = &self.shared.rate_limit {
                limit.wait_for(batch.len()).await;
            }
            attempts += 1;
            let tried = self.connect_and_attempt(&batch).await;
            let is_settled = matches!(tried, Ok(()) | Err(Failure::Partly { again: None, .. }));
            if !is_settled {
                self.prepared = None;
                self.ahead.forget().await;
            }
            match tried {
                Ok(()) => self.stored(&batch, &BTreeSet::new()),
                Err(Failure::Later(reason)) => {
                    if give_up_at.is_some_and(|at| at <= Instant::now()) {
                        dead.push(self.given_up(batch, reason, attempts));
                    } else {
                        left.push(batch);
                    }
                }
                Err(Failure::Fatal) => return false,
                Err(Failure::Partly { refused, again }) => {
                    let places = again.iter().flat_map(|again| again.places.iter());
                    let missing: BTreeSet<_> = refused.keys().chain(places).copied().collect();
                    let is_some_stored = missing.len() < batch.len();
                    if is_some_stored {
                        self.stored(&batch, &missing);
                    }
                    if let Some(Later { places, reason }) = again {
                        let is_whole = places.len() == batch.len();
                        let part = if is_whole { batch.clone() } else { batch.part(&places) };
                        match reason {
                            None => {
                                give_up_at = give_up();
                                left.push(part);
                            }
                            Some(reason) if give_up_at.is_some_and(|at| at <= Instant::now()) => {
                                dead.push(self.given_up(part, reason, attempts));
                            }
                            Some(_) => left.push(part),
                        }
                    }
                    if !refused.is_empty() {
                        dead.push(self.refused(batch, Refused::These(refused), attempts));
                    }
                }
                Err(Failure::Rejected(reason)) if batch.len() == 1 => {
                    dead.push(self.refused(batch, Refused::All(reason), attempts));
                }
                Err(Failure::Rejected(_)) => {
                    let (front, back) = batch.split();
                    left.extend([back, front]);
                }
            }
        }
        // Together, since a batch may be refused to the last event; if it is not settled it comes
        // again.
        self.keep(&dead);
        true
    }

    /// The deaths of the process, if the batch may have caused them.
    fn watched(&self, batch: &Batch) -> Option<&Deaths> {
        self.shared.deaths.as_deref().filter(|deaths| batch.was_begun() && deaths.must_isolate())
    }

    /// Tries once to write the batch. A batch that has to be tried alone connects first, so that a
    /// missing server holds up nobody.
    async fn connect_and_attempt(&mut self, batch: &Batch) -> Result<(), Failure> {
        if self.sink.is_none() && self.watched(batch).is_some() {
            self.attempt(Work::Connect).await?;
        }
        self.attempt(Work::Write(batch)).await
    }

    /// Tries once, over a new connection if there is none. After a passing failure it waits before
    /// it returns, unless another writer parked the sink, or it was a `tick`.
    async fn attempt(&mut self, work: Work<'_>) -> Result<(), Failure> {
        let batch = work.batch();
        let parked = &self.shared.parked;
        let Some(permit) = parked.run_until_cancelled(self.shared.breaker.permit()).await else {
            return Err(Failure::Fatal);
        };
        let limit = self.shared.retry.timeout.0;
        // Waiting for it is no fault of the store.
        let long_json_permit = match batch {
            Some(batch) if !S::STREAMS => long_json::permit(batch).await,
            _ => None,
        };
        let under_way = match (&self.shared.deaths, batch) {
            (Some(deaths), Some(batch)) => Some(deaths.attempt(batch).await),
            _ => None,
        };
        let began = Instant::now();
        let overdue = async {
            match &under_way {
                Some(under_way) => under_way.overdue().await,
                None => std::future::pending().await,
            }
        };
        let tried = tokio::select! {
            biased;
            tried = timeout(limit, self.connect_and_do(work)) => {
                tried.map_err(|elapsed| WriteError::retry(format!("writing, for {limit:?}"), elapsed))
            }
            () = overdue => {
                let cause = "the process has died several times, so one batch is written at a \
                             time, and others wait";
                Err(WriteError::retry("writing, for too long", cause))
            }
        };
        // Others do not wait for the connection to close.
        drop((long_json_permit, under_way));
        let is_late = tried.is_err();
        if is_late {
            self.disconnect().await;
        }
        let result = tried.map_err(Unwritten::Failed).flatten();
        let Err(unwritten) = result else {
            permit.succeeded();
            if matches!(work, Work::Tick) {
                self.late_until = None;
            }
            // A sink that gathers events takes more without asking its server.
            if self.late_until.is_none() {
                self.worked();
            }
            if batch.is_some() {
                self.shared.state.write_seconds.record(began.elapsed().as_secs_f64());
            }
            return Ok(());
        };
        let failure = match unwritten {
            Unwritten::Failed(failure) => failure,
            Unwritten::Panicked(batch, reason) => {
                return Err(self.panicked(&permit, work, batch, reason).await);
            }
        };
        let reason = failure.chain();
        let failure = match (work, failure) {
            (Work::Tick, WriteError::Reject { doing, cause }) => WriteError::retry(doing, cause),
            (Work::Tick, WriteError::Partly(partly)) => {
                WriteError::retry(partly.doing.clone(), partly.to_string())
            }
            (_, failure) => failure,
        };
        match failure {
            WriteError::Reject { .. } => {
                // The server answered; nothing is wrong with it.
                permit.succeeded();
                self.worked();
                Err(Failure::Rejected(reason))
            }
            WriteError::Partly(partly) => {
                let events = batch.map_or(0, Batch::len);
                Err(self.partly(&permit, partly, events).await)
            }
            WriteError::Fatal { .. } => {
                self.shared.state.failed(&reason);
                self.shared.state.park();
                self.shared.parked.cancel();
                error!(
                    sink = self.context.name,
                    error = reason,
                    "the sink is parked until its configuration is corrected"
                );
                Err(Failure::Fatal)
            }
            WriteError::Retry { after, .. } => {
                permit.failed();
                let state = &self.shared.state;
                let count = if is_late { &state.timeouts } else { &state.retries };
                self.failed(count, &reason);
                self.wait(work, after).await;
                Err(Failure::Later(reason))
            }
            WriteError::Reconnect { .. } => {
                permit.failed();
                self.failed(&self.shared.state.reconnects, &reason);
                self.wait(work, None).await;
                Err(Failure::Later(reason))
            }
        }
    }

    /// Backs off. A `tick` that failed does not hold up batches.
    async fn wait(&mut self, work: Work<'_>, after: Option<Duration>) {
        match work {
            Work::Tick => self.late_until = Some(Instant::now() + self.backoff.delay(after)),
            Work::Connect | Work::Write(_) => self.pause(after).await,
        }
    }

    async fn connect_and_do(&mut self, work: Work<'_>) -> Result<(), Unwritten> {
        let sink = match &mut self.sink {
            Some(sink) => sink,
            None => {
                let connecting = AssertUnwindSafe(S::connect(self.config, self.context));
                match connecting.catch_unwind().await {
                    Ok(connected) => {
                        let connected = connected.map_err(|error| Unwritten::Failed(error.into()));
                        self.sink.insert(connected?)
                    }
                    Err(panic) => return Err(Unwritten::Panicked(None, message(panic.as_ref()))),
                }
            }
        };
        let done = match work {
            Work::Connect => return Ok(()),
            Work::Write(batch) => {
                let Shared { deaths, rate_limit, .. } = self.shared;
                let is_careful = deaths.as_deref().is_some_and(Deaths::must_isolate);
                let waits = is_careful || rate_limit.is_some();
                let preparer = if waits { None } else { sink.preparer() };
                let writing = sink.write(batch, self.prepared.take());
                let writing = AssertUnwindSafe(writing).catch_unwind();
                self.ahead.beside(writing, preparer).await
            }
            Work::Tick => AssertUnwindSafe(sink.tick()).catch_unwind().await,
        };
        let result = match done {
            Ok(result) => result,
            Err(panic) => {
                self.disconnect().await;
                let id = work.batch().map(Batch::id);
                return Err(Unwritten::Panicked(id, message(panic.as_ref())));
            }
        };
        if work.batch().is_some() {
            self.panicked = None;
        }
        if matches!(result, Err(WriteError::Reconnect { .. })) {
            self.disconnect().await;
        }
        result.map_err(Unwritten::Failed)
    }

    /// A write of so many events has stored some of them. Waits if some failed for now.
    async fn partly(&mut self, permit: &Permit<'_>, partly: Partly, events: usize) -> Failure {
        let Partly { doing, refused, again } = partly;
        let mut places = refused.iter().map(|refusal| refusal.place);
        let mut again_places = again.iter().flat_map(|again| again.places.iter().copied());
        if let Some(place) = places.find(|p| *p >= events).or(again_places.find(|p| *p >= events)) {
            let reason = format!("{doing}: there is no event {place} in a batch of {events}");
            error!(sink = self.context.name, error = reason, "this is a bug in saltern");
            return self.again_later(permit, reason, None).await;
        }
        let reason = |cause: &Cause| format!("{doing}: {}", chain(cause.as_ref()));
        let refused: BTreeMap<_, _> = refused.iter().map(|r| (r.place, reason(&r.cause))).collect();
        let again = again.map(|mut again| {
            again.places.retain(|place| !refused.contains_key(place));
            again
        });
        let Some(again) = again.filter(|again| !again.places.is_empty()) else {
            permit.succeeded();
            self.worked();
            return Failure::Partly { refused, again: None };
        };
        let is_nothing_done = again.places.len() == events;
        let reason = match &again.cause {
            Some(cause) => Some(reason(cause)),
            // Without a pause it would try in a busy loop.
            None if is_nothing_done => Some(format!("{doing}: nothing of the batch was tried")),
            None => None,
        };
        match &reason {
            None => {
                permit.succeeded();
                self.worked();
            }
            Some(reason) if is_nothing_done => {
                self.again_later(permit, reason.clone(), again.after).await;
            }
            // The server is there, but has not taken all.
            Some(reason) => {
                permit.succeeded();
                self.backoff.reset();
                self.failed(&self.shared.state.retries, reason);
                self.pause(again.after).await;
            }
        }
        Failure::Partly { refused, again: Some(Later { places: again.places, reason }) }
    }

    /// An attempt failed. Waits before the next.
    async fn again_later(
        &mut self,
        permit: &Permit<'_>,
        reason: String,
        after: Option<Duration>,
    ) -> Failure {
        permit.failed();
        self.failed(&self.shared.state.retries, &reason);
        self.pause(after).await;
        Failure::Later(reason)
    }

    /// Waits as the back-off says, unless another writer parks the sink.
    async fn pause(&mut self, after: Option<Duration>) {
        let waiting = sleep(self.backoff.delay(after));
        self.shared.parked.run_until_cancelled(waiting).await;
    }

    /// A write or a connect has panicked, for this reason. An event may be to blame; the store or
    /// chance may be as well, until it has happened some times at the same batch.
    async fn panicked(
        &mut self,
        permit: &Permit<'_>,
        work: Work<'_>,
        batch: Option<BatchId>,
        reason: String,
    ) -> Failure {
        error!(
            sink = self.context.name,
            error = reason,
            "writing failed; this is a bug in saltern"
        );
        let before = self.panicked.filter(|(other, _)| Some(*other) == batch).map_or(0, |(_, n)| n);
        if let Some(batch) = batch {
            self.panicked = Some((batch, before + 1));
        }
        self.failed(&self.shared.state.panics, &reason);
        if batch.is_some() && before + 1 >= PANICS {
            permit.succeeded();
            self.backoff.reset();
            return Failure::Rejected(reason);
        }
        permit.failed();
        self.wait(work, None).await;
        Failure::Later(reason)
    }

    /// Drops the connection.
    async fn disconnect(&mut self) {
        if let Some(sink) = self.sink.take() {
            if sink.due().is_some() && self.late_until.is_none() {
                self.late_until = Some(Instant::now());
            }
            self.release(sink).await;
        }
    }

    /// Drops a client on a thread that may wait: some clients end threads of their own then. A
    /// client that takes longer than [`LET_GO`] is left behind. Once there are [`HANGING`] of
    /// these, one of them is waited for.
    async fn release(&mut self, client: impl Send + 'static) {
        self.hanging.spawn_blocking(move || drop(client));
        let sink = &self.context.name;
        let gone = async {
            while let Some(ended) = self.hanging.join_next().await {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    warn!(sink, %error, "closing the connection failed");
                }
            }
        };
        if timeout(LET_GO, gone).await.is_ok() {
            return;
        }
        warn!(sink, "closing the connection hangs; saltern goes on without waiting");
        if self.hanging.len() > HANGING {
            self.shared.state.failed("closing the connections to the store hangs");
            self.hanging.join_next().await;
        }
    }

    fn worked(&mut self) {
        self.backoff.reset();
        let state = &self.shared.state;
        if state.worked() {
            info!(sink = self.context.name, kind = S::NAME, "the sink is up");
        }
        state.breaker_open.set_bool(false);
    }

    /// An attempt failed and is made again. Each is counted once, in `count`.
    fn failed(&self, count: &Tally, reason: &str) {
        let state = &self.shared.state;
        count.add(1);
        let was_up = state.up.get() > 0.0;
        if state.failed(reason) || was_up {
            warn!(sink = self.context.name, error = reason, "the sink is down, trying again");
        }
        state.breaker_open.set_bool(self.shared.breaker.is_open());
    }

    /// The batch is stored, except for the events at the places `missing`.
    fn stored(&self, batch: &Batch, missing: &BTreeSet<usize>) {
        let state = &self.shared.state;
        let count = batch.len() - missing.len();
        state.events.add(count as u64);
        state.batches.add(1);
        #[allow(clippy::cast_precision_loss)]
        state.batch_events.record(count as f64);
        let mut losses = JsonLosses::default();
        for (place, event) in batch.events().enumerate() {
            if !missing.contains(&place) {
                losses += event.json_losses().unwrap_or_default();
            }
        }
        state.lost(losses);
    }

    /// A batch has been tried for as long as it may be.
    fn given_up(&self, batch: Batch, reason: String, attempts: u32) -> Dead {
        self.refused(batch, Refused::All(format!("given up: {reason}")), attempts)
    }

    /// Counts and reports the refused events of a batch.
    fn refused(&self, batch: Batch, refused: Refused, attempts: u32) -> Dead {
        let dead = Dead { batch, refused, attempts };
        let state = &self.shared.state;
        let count = dead.letters().count();
        state.rejected.add(count as u64);
        if let Some(first) = dead.letters().next()
            && state.note_refusal(first.reason)
        {
            warn!(
                sink = self.context.name,
                events = count,
                tag = first.entry.event.tag(),
                error = first.reason,
                "the sink refuses events; they become dead letters"
            );
        }
        dead
    }

    /// Makes dead letters of refused events.
    fn keep(&self, dead: &[Dead]) {
        let Some(dead_letters) = self.shared.dead_letters.as_ref().filter(|_| !dead.is_empty())
        else {
            return;
        };
        let refused: Vec<_> = dead.iter().flat_map(Dead::letters).collect();
        let (state, name) = (&self.shared.state, &self.context.name);
        match blocking(|| dead_letters.keep(name, &refused)) {
            Ok(dropped) => state.dead_letters_dropped.add(dropped),
            Err(error) => {
                state.dead_letters_dropped.add(refused.len() as u64);
                error!(sink = name, error = chain(&error), "dead letters could not be kept");
            }
        }
    }
}

/// Events that a sink has refused.
struct Dead {
    /// The batch that they are of.
    batch: Batch,
    refused: Refused,
    attempts: u32,
}

/// The events of a batch that are refused, with their reasons.
enum Refused {
    /// All, for this reason.
    All(String),
    /// The events at these places, each with its own reason.
    These(BTreeMap<usize, String>),
}

impl Dead {
    fn letters(&self) -> impl Iterator<Item = dead_letter::Refused<'_>> {
        self.batch.entries().enumerate().filter_map(|(place, entry)| {
            let reason = match &self.refused {
                Refused::All(reason) => reason,
                Refused::These(reasons) => reasons.get(&place)?,
            };
            Some(dead_letter::Refused { entry, reason, attempts: self.attempts })
        })
    }
}

/// The failure of a connect or a write.
enum Unwritten {
    /// The sink says why.
    Failed(WriteError),
    /// The write of this batch, or a connect, panicked, for this reason.
    Panicked(Option<BatchId>, String),
}

/// The text of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("it does not say why"))
}

/// Events of a batch that come again.
struct Later {
    places: BTreeSet<usize>,
    /// The reason; `None` if they were not tried.
    reason: Option<String>,
}

/// The outcome of an attempt that did not settle its batch.
enum Failure {
    /// It may work later; the reason why it did not now.
    Later(String),
    /// Some event is refused, for this reason.
    Rejected(String),
    /// All but these events are stored.
    Partly {
        /// Refused events, by their places, with reasons.
        refused: BTreeMap<usize, String>,
        /// Events that come again.
        again: Option<Later>,
    },
    /// The configuration is wrong.
    Fatal,
}

/// A token bucket of one second's worth of events.
pub(crate) struct RateLimit {
    per_second: f64,
    bucket: Mutex<Bucket>,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl RateLimit {
    /// At most so many events a second.
    pub(crate) fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second.max(1));
        let bucket = Mutex::new(Bucket { tokens: per_second, filled: Instant::now() });
        RateLimit { per_second, bucket }
    }

    /// Waits until so many events may go. Takes them at once and then waits for the debt to pass,
    /// so that a batch larger than the bucket goes too.
    async fn wait_for(&self, events: usize) {
        let debt = {
            let mut bucket = lock::hold(&self.bucket);
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

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use schemars::JsonSchema;
    use serde::Deserialize;
    use tokio::time::sleep_until;

    use super::*;
    use crate::delivery::dead_letter::LetterSelection;
    use crate::event::batch::BatchLimits;
    use crate::event::chunk::{Chunk, Share};
    use crate::event::{Event, Origin};
    use crate::sink::contract::{Again, Cause, ConnectError, Defaults, Once, Refusal};
    use crate::sink::testing::context;
    use crate::sync::bell::{Bell, Receiver, channel};
    use crate::units::{ByteSize, Span};

    /// No batches, for a driver that is handed its batch.
    fn none() -> mpsc::Receiver<Batch> {
        mpsc::channel(1).1
    }

    /// The answer of a store to one connect or write.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Answer {
        Fine,
        Busy,
        Gone,
        Silence,
        Refused,
        Wrong,
        Panic,
    }

    /// A store that answers as it is told, refuses events tagged `bad`, and logs every call.
    #[derive(Debug, Default)]
    struct Store {
        connects: VecDeque<Answer>,
        writes: VecDeque<Answer>,
        names_the_bad: bool,
        /// It panics instead of refusing.
        panics_at_the_bad: bool,
        /// Clients hang when they are dropped until the other end is.
        hangs: Option<Arc<std::sync::mpsc::SyncSender<()>>>,
        log: Vec<String>,
    }

    struct Scripted(Arc<Mutex<Store>>);

    impl Drop for Scripted {
        fn drop(&mut self) {
            let hangs = self.0.lock().unwrap().hangs.clone();
            // Nobody receives, so it waits until the other end is dropped.
            let _ = hangs.map(|hangs| hangs.send(()));
        }
    }

    async fn obey(answer: Option<Answer>) -> Result<(), WriteError> {
        match answer.unwrap_or(Answer::Fine) {
            Answer::Fine => Ok(()),
            Answer::Busy => Err(WriteError::retry("writing", "busy")),
            Answer::Gone => Err(WriteError::reconnect("writing", "gone")),
            Answer::Silence => std::future::pending().await,
            Answer::Refused => {
                let (doing, cause) = ("making tables".into(), underlain("no such type"));
                Err(WriteError::Reject { doing, cause })
            }
            Answer::Panic => panic!("out of luck"),
            Answer::Wrong => Err(WriteError::fatal("logging in", underlain("wrong password"))),
        }
    }

    /// A cause whose text leaves out its own cause.
    fn underlain(cause: &'static str) -> Cause {
        #[derive(Debug, thiserror::Error)]
        #[error("the server said no")]
        struct No(#[source] std::io::Error);
        No(std::io::Error::other(cause)).into()
    }

    impl Sink for Scripted {
        const NAME: &'static str = "scripted";
        const ABOUT: &'static str = "answers as it is told";
        const DEFAULTS: Defaults =
            Defaults::store(BatchLimits::new(10, ByteSize(1000), Span::millis(0)));
        const ONCE: Once = Once::No;
        type Config = Unconfigurable<Store>;
        type Prepared = ();

        async fn connect(config: &Self::Config, _: &Context) -> Result<Self, ConnectError> {
            let answer = config.0.lock().unwrap().connects.pop_front();
            config.0.lock().unwrap().log.push("connect".into());
            obey(answer).await.map_err(WriteError::while_connecting)?;
            Ok(Scripted(Arc::clone(&config.0)))
        }

        async fn write(&mut self, batch: &Batch, _: Option<()>) -> Result<(), WriteError> {
            let tags: Vec<_> = batch.events().map(Event::tag).collect();
            self.0.lock().unwrap().log.push(format!("write {}", tags.join(" ")));
            let answer = self.0.lock().unwrap().writes.pop_front();
            obey(answer).await?;
            let bad: Vec<_> =
                tags.iter().enumerate().filter(|(_, tag)| **tag == "bad").map(|(n, _)| n).collect();
            if bad.is_empty() {
                return Ok(());
            }
            let panics = self.0.lock().unwrap().panics_at_the_bad;
            assert!(!panics, "cannot write {}", tags.join(" "));
            let mut store = self.0.lock().unwrap();
            store.log.push("refused".into());
            if !store.names_the_bad {
                return Err(WriteError::reject("writing", "bad"));
            }
            let refusal = |place| Refusal { place, cause: "bad".into() };
            Err(WriteError::refused("writing", bad.into_iter().map(refusal).collect()))
        }

        async fn close(self) -> Result<(), WriteError> {
            self.0.lock().unwrap().log.push("close".into());
            Ok(())
        }
    }

    /// The configuration of a scripted sink, which no text can express.
    pub(crate) struct Unconfigurable<T>(pub(crate) Arc<Mutex<T>>);

    impl<'de, T> Deserialize<'de> for Unconfigurable<T> {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom("only for tests"))
        }
    }

    impl<T> JsonSchema for Unconfigurable<T> {
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "Unconfigurable".into()
        }

        fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
            schemars::Schema::default()
        }
    }

    pub(crate) fn batch(first: u64, tags: &[&str]) -> Batch {
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        let events = tags.iter().map(|tag| Event::new(tag, b"\x80")).collect();
        Batch::new(1, first, vec![Share::all(Arc::new(Chunk::new(origin, 1, events)))])
    }

    struct Run {
        log: Vec<String>,
        settled: Receiver<Settled>,
        state: Arc<SinkState>,
    }

    pub(crate) fn shared(retry: RetryConfig) -> Shared {
        Shared {
            retry,
            breaker: Breaker::default(),
            rate_limit: None,
            dead_letters: None,
            deaths: None,
            state: Arc::new(SinkState::new("test", "scripted")),
            parked: CancellationToken::new(),
        }
    }

    async fn run(store: Store, batches: Vec<Batch>) -> Run {
        run_with(RetryConfig::default(), store, batches).await
    }

    async fn run_with(retry: RetryConfig, store: Store, batches: Vec<Batch>) -> Run {
        let store = Arc::new(Mutex::new(store));
        let (sender, receiver) = mpsc::channel(10);
        for batch in batches {
            sender.send(batch).await.unwrap();
        }
        drop(sender);
        let (settled, settled_out) = channel(10, &Bell::default());
        let shared = Arc::new(shared(retry));
        let (state, stop) = (Arc::clone(&shared.state), CancellationToken::new());
        let writer = Writer { context: context(), batches: receiver, settled, shared, stop };
        drive::<Scripted>(&Unconfigurable(Arc::clone(&store)), writer).await;
        let log = std::mem::take(&mut store.lock().unwrap().log);
        Run { log, settled: settled_out, state }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_comes_again_until_it_is_stored() {
        let store = Store {
            connects: [Answer::Busy].into(),
            writes: [Answer::Busy, Answer::Gone, Answer::Silence].into(),
            ..Store::default()
        };
        let run = run(store, vec![batch(0, &["a", "b"]), batch(2, &["c"])]).await;
        let expected = [
            "connect",
            "connect",
            "write a b",
            "write a b",
            "connect",
            "write a b",
            "connect",
            "write a b",
            "write c",
            "close",
        ];
        assert_eq!(run.log, expected);
        assert_eq!(run.settled.try_iter().map(|settled| settled.first).collect::<Vec<_>>(), [0, 2]);
        let state = &run.state;
        let tries = (state.retries.get(), state.reconnects.get(), state.timeouts.get());
        assert_eq!((state.events.get(), state.batches.get(), tries), (3, 2, (2, 1, 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_5_one_bad_event_never_stops_a_sink() {
        let tags = ["a", "b", "bad", "c", "d"];
        let run = run(Store::default(), vec![batch(0, &tags), batch(5, &["e"])]).await;
        let expected = [
            "connect",
            "write a b bad c d",
            "refused",
            "write a b bad",
            "refused",
            "write a b",
            "write bad",
            "refused",
            "write c d",
            "write e",
            "close",
        ];
        assert_eq!(run.log, expected);
        assert_eq!((run.state.events.get(), run.state.rejected.get()), (5, 1));
        assert_eq!(run.settled.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_5_an_event_at_which_a_writer_panics_does_not_stop_its_sink() {
        let store = Store { panics_at_the_bad: true, ..Store::default() };
        let run = run(store, vec![batch(0, &["a", "bad", "b"]), batch(3, &["c"])]).await;
        let panicking = |batch| [["connect", batch]; 3].concat();
        let mut expected = [panicking("write a bad b"), panicking("write a bad")].concat();
        expected.extend(["connect", "write a", "write bad", "connect", "write bad", "connect"]);
        expected.extend(["write bad", "connect", "write b", "write c", "close"]);
        assert_eq!(run.log, expected);
        let state = &run.state;
        assert_eq!((state.events.get(), state.rejected.get(), state.panics.get()), (3, 1, 9));
        assert_eq!((run.settled.len(), state.up.get() > 0.0), (2, true));
        assert!(!state.note_refusal("panic: cannot write bad"), "it is the last one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_that_panics_now_and_then_refuses_nothing() {
        let writes = [Answer::Panic, Answer::Panic, Answer::Busy, Answer::Panic, Answer::Panic];
        let store = Store { writes: writes.into(), ..Store::default() };
        let run = run(store, vec![batch(0, &["a", "b"])]).await;
        assert_eq!((run.state.events.get(), run.state.rejected.get()), (2, 0));
        assert_eq!((run.state.panics.get(), run.state.retries.get()), (4, 1));
        // A sink that is parked shows its last error.
        run.state.park();
        assert_eq!(run.state.parked().unwrap(), "panic: out of luck");
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_5_a_connect_refuses_no_events() {
        let store = Store { connects: [Answer::Refused; 3].into(), ..Store::default() };
        let run = run(store, vec![batch(0, &["a", "b"])]).await;
        assert_eq!(run.log, ["connect", "connect", "connect", "connect", "write a b", "close"]);
        let state = &run.state;
        assert_eq!((state.events.get(), state.rejected.get(), state.retries.get()), (2, 0, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_counted_once_whatever_it_was() {
        for (answer, expected) in
            [(Answer::Busy, (1, 0, 0)), (Answer::Gone, (0, 1, 0)), (Answer::Silence, (0, 0, 1))]
        {
            let store = Store { writes: [answer].into(), ..Store::default() };
            let run = run(store, vec![batch(0, &["a"])]).await;
            let state = &run.state;
            let counts = (state.retries.get(), state.reconnects.get(), state.timeouts.get());
            assert_eq!(counts, expected, "{answer:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_refusal_is_shown_with_all_its_causes() {
        let folder = tempfile::tempdir().unwrap();
        let letters = Arc::new(DeadLetters::open(folder.path(), 1 << 20).unwrap());
        let (initial, give_up_after) = (Span::millis(1), Some(Span::seconds(0)));
        let retry = RetryConfig { initial, give_up_after, ..RetryConfig::default() };
        let shared = Shared { dead_letters: Some(Arc::clone(&letters)), ..shared(retry) };
        let context = context();
        let writes = [Answer::Refused, Answer::Gone].into();
        let store = Unconfigurable(Arc::new(Mutex::new(Store { writes, ..Store::default() })));
        let mut delivery = Delivery::<Scripted>::new(&store, &context, &shared, none());
        for tag in ["refused", "given up"] {
            assert!(delivery.deliver(batch(0, &[tag])).await);
        }
        let found = letters.list(&LetterSelection::default(), 0, 9).unwrap();
        let reasons: Vec<_> = found.iter().map(|letter| letter.reason.as_str()).collect();
        let expected =
            ["making tables: the server said no: no such type", "given up: writing: gone"];
        assert_eq!(reasons, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_names_the_bad_events_is_asked_once() {
        let store = Store { names_the_bad: true, ..Store::default() };
        let run = run(store, vec![batch(0, &["bad", "a", "bad"])]).await;
        assert_eq!(run.log, ["connect", "write bad a bad", "refused", "close"]);
        assert_eq!((run.state.events.get(), run.state.rejected.get()), (1, 2));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_batch_has_refused_is_kept_together_before_it_is_settled() {
        let folder = tempfile::tempdir().unwrap();
        let letters = Arc::new(DeadLetters::open(folder.path(), 1 << 20).unwrap());
        let shared = shared(RetryConfig::default());
        let shared = Arc::new(Shared { dead_letters: Some(Arc::clone(&letters)), ..shared });
        let (batches, batches_out) = mpsc::channel(2);
        let (settled, settled_out) = channel(10, &Bell::default());
        batches.send(batch(0, &["bad", "a", "bad", "bad"])).await.unwrap();
        let stop = CancellationToken::new();
        let writer = Writer { context: context(), batches: batches_out, settled, shared, stop };
        let driving = tokio::spawn(async move {
            let config = Unconfigurable(Arc::new(Mutex::new(Store::default())));
            drive::<Scripted>(&config, writer).await;
        });
        tokio::task::spawn_blocking(move || settled_out.recv().unwrap()).await.unwrap();
        let kept = letters.list(&LetterSelection::default(), 0, 10).unwrap();
        assert_eq!(kept.iter().map(|letter| letter.attempts).collect::<Vec<_>>(), [3, 6, 7]);
        assert!(kept.iter().all(|letter| letter.time == kept[0].time), "in one transaction");
        drop(batches);
        driving.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_configuration_parks_the_sink() {
        let store = Store { connects: [Answer::Wrong].into(), ..Store::default() };
        let run = run(store, vec![batch(0, &["a"])]).await;
        assert_eq!(run.log, ["connect"]);
        assert_eq!(
            run.state.parked().as_deref(),
            Some("logging in: the server said no: wrong password")
        );
        assert_eq!(run.settled.len(), 0);
    }

    /// Advances time until it is so. The clock of the test stands still while a blocking thread
    /// works.
    async fn until(is_so: impl Fn() -> bool) {
        let began = std::time::Instant::now();
        while !is_so() {
            assert!(began.elapsed().as_secs() < 60, "waited in vain");
            tokio::time::advance(Duration::from_millis(100)).await;
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_hangs_while_it_is_dropped_holds_up_neither_the_sink_nor_its_end() {
        let (hangs, release) = std::sync::mpsc::sync_channel(0);
        let writes = [Answer::Gone, Answer::Fine, Answer::Silence].into();
        let store = Store { writes, hangs: Some(Arc::new(hangs)), ..Store::default() };
        let store = Arc::new(Mutex::new(store));
        let (sender, receiver) = mpsc::channel(10);
        let (settled, settled_out) = channel(10, &Bell::default());
        let shared = Arc::new(shared(RetryConfig::default()));
        let stop = CancellationToken::new();
        let writer =
            Writer { context: context(), batches: receiver, settled, shared, stop: stop.clone() };
        let config = Unconfigurable(Arc::clone(&store));
        let driving = tokio::spawn(async move { drive::<Scripted>(&config, writer).await });
        sender.send(batch(0, &["a"])).await.unwrap();
        sender.send(batch(1, &["b"])).await.unwrap();
        let log = ["connect", "write a", "connect", "write a", "write b"];
        until(|| store.lock().unwrap().log == log).await;
        stop.cancel();
        until(|| driving.is_finished()).await;
        assert_eq!(settled_out.try_iter().count(), 1);
        drop(release);
    }

    /// One writer is told that the configuration is wrong while the other backs off; neither hangs
    /// on its batch.
    #[tokio::test(start_paused = true)]
    async fn the_writers_of_a_parked_sink_end_together() {
        let stop = CancellationToken::new();
        let shared = Arc::new(shared(RetryConfig::default()));
        let (settled, settled_out) = channel(10, &Bell::default());
        let writes = [[Answer::Busy; 100].to_vec(), vec![Answer::Fine, Answer::Wrong]];
        let (mut batches, mut driving) = (Vec::new(), tokio::task::JoinSet::new());
        for (number, writes) in writes.into_iter().enumerate() {
            let store = Store { writes: writes.into(), ..Store::default() };
            let (sender, receiver) = mpsc::channel(2);
            batches.push(sender);
            let (settled, shared, stop) = (settled.clone(), Arc::clone(&shared), stop.clone());
            let context = Context { writer: number, ..context() };
            let writer = Writer { context, batches: receiver, settled, shared, stop };
            let config = Unconfigurable(Arc::new(Mutex::new(store)));
            driving.spawn(async move { drive::<Scripted>(&config, writer).await });
        }
        drop(settled);
        for (place, writer) in [(0, 0), (1, 1), (2, 1)] {
            batches[writer].send(batch(place, &["a"])).await.unwrap();
        }
        driving.join_all().await;
        assert_eq!(settled_out.try_iter().map(|settled| settled.first).collect::<Vec<_>>(), [1]);
        assert!(batches.iter().all(mpsc::Sender::is_closed));
    }

    #[tokio::test(start_paused = true)]
    async fn batches_are_given_up_after_their_time() {
        let store = Store { writes: [Answer::Busy; 100].into(), ..Store::default() };
        let give_up_after = Some(Span::seconds(20));
        let retry = RetryConfig { give_up_after, ..RetryConfig::default() };
        let began = Instant::now();
        let run = run_with(retry, store, vec![batch(0, &["a"]), batch(1, &["b"])]).await;
        let took = Instant::now().duration_since(began).as_secs();
        assert!((40..110).contains(&took), "{took} s");
        let tries = run.log.iter().filter(|line| *line == "write a").count();
        assert!((5..=9).contains(&tries), "{:?}", run.log);
        assert_eq!((run.state.rejected.get(), run.state.events.get()), (2, 0));
        assert_eq!(run.settled.len(), 2);
    }

    /// Delivers one batch as a writer does; `false` if the configuration is wrong.
    pub(crate) async fn deliver<S: Sink>(
        config: &S::Config,
        deaths: Option<Arc<Deaths>>,
        letters: Arc<DeadLetters>,
        batch: Batch,
    ) -> bool {
        let shared =
            Shared { deaths, dead_letters: Some(letters), ..shared(RetryConfig::default()) };
        Delivery::<S>::new(config, &context(), &shared, none()).deliver(batch).await
    }

    /// Waits like `until`, by the clock on the wall.
    async fn soon(is_so: impl Fn() -> bool) {
        let began = std::time::Instant::now();
        while !is_so() {
            assert!(began.elapsed().as_secs() < 60, "waited in vain");
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// The deaths as they are noted after three in a row.
    fn isolating(folder: &std::path::Path, alone: Duration) -> Arc<Deaths> {
        let mut deaths = None;
        for now in 1..=4 {
            deaths = Some(Deaths::begin_with(folder, now, alone));
        }
        let deaths = deaths.unwrap();
        assert!(deaths.must_isolate());
        Arc::new(deaths)
    }

    fn isolating_shared(deaths: &Arc<Deaths>) -> Shared {
        let retry = RetryConfig { initial: Span::millis(1), ..RetryConfig::default() };
        Shared { deaths: Some(Arc::clone(deaths)), ..shared(retry) }
    }

    /// Delivers a batch to a store of its own, with care; the task, and the store.
    fn delivering(
        deaths: &Arc<Deaths>,
        store: Store,
        batch: Batch,
    ) -> (tokio::task::JoinHandle<bool>, Arc<Mutex<Store>>) {
        let store = Arc::new(Mutex::new(store));
        let (shared, config) = (isolating_shared(deaths), Unconfigurable(Arc::clone(&store)));
        let task = async move {
            Delivery::<Scripted>::new(&config, &context(), &shared, none()).deliver(batch).await
        };
        (tokio::spawn(task), store)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn invariant_2_a_store_that_hangs_while_alone_holds_up_no_other_sink() {
        let folder = tempfile::tempdir().unwrap();
        let deaths = isolating(folder.path(), Duration::from_millis(50));
        let hanging = Store { writes: [Answer::Silence; 1000].into(), ..Store::default() };
        let begun = batch(0, &["a", "b"]).begun_before();
        let (hangs, store) = delivering(&deaths, hanging, begun);
        soon(|| store.lock().unwrap().log.contains(&"write a b".to_owned())).await;
        let began = std::time::Instant::now();
        for place in 0..200 {
            let (delivers, _) = delivering(&deaths, Store::default(), batch(place, &["c"]));
            assert!(delivers.await.unwrap());
            sleep(Duration::from_millis(5)).await;
        }
        // The other has half of the time at the most.
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        // It goes on trying the whole batch.
        let tries = store.lock().unwrap().log.iter().filter(|line| *line == "write a b").count();
        assert!(tries > 1, "{:?}", store.lock().unwrap().log);
        hangs.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn invariant_2_a_server_that_is_not_there_holds_up_no_other_sink() {
        let folder = tempfile::tempdir().unwrap();
        let deaths = isolating(folder.path(), Duration::from_secs(600));
        let hanging = Store { connects: [Answer::Silence].into(), ..Store::default() };
        let (hangs, store) = delivering(&deaths, hanging, batch(0, &["a"]).begun_before());
        soon(|| !store.lock().unwrap().log.is_empty()).await;
        let begun = batch(0, &["b"]).begun_before();
        let (delivers, _) = delivering(&deaths, Store::default(), begun);
        assert!(timeout(Duration::from_secs(20), delivers).await.unwrap().unwrap());
        hangs.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn invariant_2_nothing_is_tried_alone_any_more_once_deaths_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let deaths = isolating(folder.path(), Duration::from_secs(600));
        let hanging = Store { writes: [Answer::Silence].into(), ..Store::default() };
        let (hangs, store) = delivering(&deaths, hanging, batch(0, &["a"]).begun_before());
        soon(|| store.lock().unwrap().log.contains(&"write a".to_owned())).await;
        let (waits, _) = delivering(&deaths, Store::default(), batch(0, &["b"]));
        sleep(Duration::from_millis(20)).await;
        assert!(!waits.is_finished(), "nothing else is written meanwhile");
        deaths.forget();
        for begun in [batch(0, &["c"]).begun_before(), batch(0, &["d"])] {
            let (delivers, _) = delivering(&deaths, Store::default(), begun);
            assert!(timeout(Duration::from_secs(20), delivers).await.unwrap().unwrap());
        }
        assert!(timeout(Duration::from_secs(20), waits).await.unwrap().unwrap());
        hangs.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_limit_spreads_batches() {
        let limit = RateLimit::new(10);
        let began = Instant::now();
        for _ in 0..5 {
            limit.wait_for(10).await;
        }
        let took = Instant::now().duration_since(began).as_secs_f64();
        assert!((3.9..4.2).contains(&took), "{took}");
    }

    /// A store that stores, refuses or postpones each event, as it is told.
    struct Choosy(Arc<Mutex<Choices>>);

    #[derive(Default)]
    struct Choices {
        /// The answers for the events of each write, over and over: 0 stored, 1 refused, 2 again.
        answers: VecDeque<Vec<u8>>,
        /// Events come again because they failed, not for lack of time.
        has_time: bool,
        stored: Vec<String>,
        tried: Vec<(BatchId, Vec<String>)>,
    }

    impl Sink for Choosy {
        const NAME: &'static str = "choosy";
        const ABOUT: &'static str = "stores some of a batch";
        const DEFAULTS: Defaults =
            Defaults::store(BatchLimits::new(10, ByteSize(1000), Span::millis(0)));
        const ONCE: Once = Once::No;
        type Config = Unconfigurable<Choices>;
        type Prepared = ();

        async fn connect(config: &Self::Config, _: &Context) -> Result<Self, ConnectError> {
            Ok(Choosy(Arc::clone(&config.0)))
        }

        async fn write(&mut self, batch: &Batch, _: Option<()>) -> Result<(), WriteError> {
            let mut choices = self.0.lock().unwrap();
            let tags: Vec<_> = batch.events().map(|event| event.tag().to_owned()).collect();
            choices.tried.push((batch.id(), tags.clone()));
            let answer = choices.answers.pop_front().unwrap_or_else(|| vec![0]);
            let (mut refused, mut places) = (Vec::new(), BTreeSet::new());
            for (place, (tag, answer)) in tags.into_iter().zip(answer.iter().cycle()).enumerate() {
                match answer {
                    0 => choices.stored.push(tag),
                    1 => refused.push(Refusal { place, cause: "bad".into() }),
                    _ => drop(places.insert(place)),
                }
            }
            if refused.is_empty() && places.is_empty() {
                return Ok(());
            }
            // An event in both lists must not cost any event.
            places.extend(refused.first().map(|refusal| refusal.place));
            let cause = choices.has_time.then(|| "busy".into());
            let again = Some(Again { places, cause, after: None });
            Err(WriteError::Partly(Partly { doing: "writing".into(), refused, again }))
        }
    }

    async fn run_choosy(
        has_time: bool,
        answers: Vec<Vec<u8>>,
        batches: Vec<Batch>,
    ) -> (Choices, Arc<SinkState>, usize) {
        let choices = Choices { answers: answers.into(), has_time, ..Choices::default() };
        let store = Arc::new(Mutex::new(choices));
        let (sender, receiver) = mpsc::channel(10);
        for batch in batches {
            sender.send(batch).await.unwrap();
        }
        drop(sender);
        let (settled, settled_out) = channel(10, &Bell::default());
        let shared = Arc::new(shared(RetryConfig::default()));
        let (state, stop) = (Arc::clone(&shared.state), CancellationToken::new());
        let writer = Writer { context: context(), batches: receiver, settled, shared, stop };
        drive::<Choosy>(&Unconfigurable(Arc::clone(&store)), writer).await;
        let choices = std::mem::take(&mut *store.lock().unwrap());
        (choices, state, settled_out.len())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_partly_stored_comes_again_before_later_batches() {
        let batches = vec![batch(0, &["a", "b", "c", "d"]), batch(4, &["e"])];
        let whole = batches[0].id();
        let (choices, state, settled) =
            run_choosy(true, vec![vec![0, 2, 1, 2], vec![2, 0], vec![0]], batches).await;
        let tried: Vec<_> = choices.tried.iter().map(|(_, tags)| tags.concat()).collect();
        assert_eq!(tried, ["abcd", "bd", "b", "e"]);
        assert_eq!(choices.stored, ["a", "d", "b", "e"]);
        let ids: BTreeSet<_> = choices.tried.iter().map(|(id, _)| id.0).collect();
        assert_eq!((ids.len(), choices.tried[0].0), (4, whole), "each part has an id of its own");
        assert_eq!((state.events.get(), state.rejected.get(), state.retries.get()), (4, 1, 2));
        assert_eq!(settled, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_has_no_time_for_all_of_a_batch_is_not_down() {
        let began = Instant::now();
        let (choices, state, settled) =
            run_choosy(false, vec![vec![0, 2, 2], vec![0, 2]], vec![batch(0, &["a", "b", "c"])])
                .await;
        assert_eq!((choices.stored.concat().as_str(), settled), ("abc", 1));
        assert_eq!((state.retries.get(), state.up.get() > 0.0), (0, true));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn invariant_4_events_of_a_batch_that_is_partly_stored_are_settled_once(
            answers in proptest::collection::vec(proptest::collection::vec(0u8..3, 1..8), 0..12),
            sizes in proptest::collection::vec(1usize..9, 1..4),
            has_time: bool,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let (mut first, mut batches) = (0, Vec::new());
            for size in sizes {
                let tags: Vec<_> = (0..size).map(|n| format!("{}", first + n as u64)).collect();
                let tags: Vec<_> = tags.iter().map(String::as_str).collect();
                batches.push(batch(first, &tags));
                first += size as u64;
            }
            let count = batches.len();
            let (choices, state, settled) = runtime.block_on(run_choosy(has_time, answers, batches));
            let stored: BTreeSet<_> = choices.stored.iter().collect();
            prop_assert_eq!(stored.len(), choices.stored.len(), "nothing is stored twice");
            prop_assert_eq!(stored.len() as u64, state.events.get());
            prop_assert_eq!(stored.len() as u64 + state.rejected.get(), first);
            prop_assert_eq!(settled, count);
            // The same id stands for the same events.
            let mut ids = BTreeMap::new();
            for (id, tags) in choices.tried {
                prop_assert_eq!(ids.entry(id.0).or_insert_with(|| tags.clone()), &tags);
            }
        }
    }

    /// A store that gathers tags, and sends them a minute after the first.
    struct Gathering(Arc<Mutex<Gathered>>);

    #[derive(Default)]
    struct Gathered {
        waiting: Vec<String>,
        since: Option<Instant>,
        /// The answers to ticks.
        ticks: VecDeque<Answer>,
        /// The log of calls, each with its second.
        log: Vec<(u64, String)>,
        began: Option<Instant>,
    }

    impl Gathered {
        fn note(&mut self, what: impl Into<String>) {
            let began = *self.began.get_or_insert_with(Instant::now);
            self.log.push((began.elapsed().as_secs(), what.into()));
        }
    }

    impl Sink for Gathering {
        const NAME: &'static str = "gathering";
        const ABOUT: &'static str = "gathers";
        const DEFAULTS: Defaults =
            Defaults::store(BatchLimits::new(10, ByteSize(1000), Span::millis(0)));
        const ONCE: Once = Once::No;
        type Config = Unconfigurable<Gathered>;
        type Prepared = ();

        async fn connect(config: &Self::Config, _: &Context) -> Result<Self, ConnectError> {
            config.0.lock().unwrap().note("connect");
            Ok(Gathering(Arc::clone(&config.0)))
        }

        async fn write(&mut self, batch: &Batch, _: Option<()>) -> Result<(), WriteError> {
            let mut gathered = self.0.lock().unwrap();
            gathered.waiting.extend(batch.events().map(|event| event.tag().to_owned()));
            gathered.since.get_or_insert_with(Instant::now);
            let written = format!("write {}", gathered.waiting.concat());
            gathered.note(written);
            Ok(())
        }

        fn due(&self) -> Option<Instant> {
            self.0.lock().unwrap().since.map(|since| since + Duration::from_secs(60))
        }

        async fn tick(&mut self) -> Result<(), WriteError> {
            if self.due().is_none_or(|due| due > Instant::now()) {
                return Ok(());
            }
            let answer = self.0.lock().unwrap().ticks.pop_front();
            self.0.lock().unwrap().note(format!("tick {:?}", answer.unwrap_or(Answer::Fine)));
            obey(answer).await?;
            let mut gathered = self.0.lock().unwrap();
            gathered.since = None;
            let sent = format!("send {}", std::mem::take(&mut gathered.waiting).concat());
            gathered.note(sent);
            Ok(())
        }
    }

    /// Runs a writer over a store that gathers, with batches at these seconds, until the last
    /// events were due. Returns the log, and the sink's state.
    async fn gather(
        ticks: &[Answer],
        batches: &[(u64, &str)],
        until: u64,
    ) -> (Vec<(u64, String)>, Arc<SinkState>) {
        let gathered = Gathered {
            ticks: ticks.iter().copied().collect(),
            began: Some(Instant::now()),
            ..Gathered::default()
        };
        let (store, began) = (Arc::new(Mutex::new(gathered)), Instant::now());
        let (sender, receiver) = mpsc::channel(10);
        let (settled, _settled_out) = channel(10, &Bell::default());
        let retry = RetryConfig {
            initial: Span::seconds(8),
            max: Span::seconds(8),
            timeout: Span::seconds(5),
            ..RetryConfig::default()
        };
        let shared = Arc::new(shared(retry));
        let (state, stop) = (Arc::clone(&shared.state), CancellationToken::new());
        let writer = Writer { context: context(), batches: receiver, settled, shared, stop };
        let config = Unconfigurable(Arc::clone(&store));
        let sends = async {
            for (place, (at, tag)) in (0..).zip(batches) {
                sleep_until(began + Duration::from_secs(*at)).await;
                // A writer that is parked has ended.
                let _ = sender.send(batch(place, &[tag])).await;
            }
            sleep_until(began + Duration::from_secs(until)).await;
            drop(sender);
        };
        tokio::join!(drive::<Gathering>(&config, writer), sends);
        let log = std::mem::take(&mut store.lock().unwrap().log);
        (log, state)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_is_done_beside_batches() {
        let batches = [(1, "a"), (30, "b"), (61, "c"), (70, "d")];
        let (log, _) = gather(&[], &batches, 200).await;
        let expected = [
            (0, "connect"),
            (1, "write a"),
            (30, "write ab"),
            (61, "tick Fine"),
            (61, "send ab"),
            (61, "write c"),
            (70, "write cd"),
            (121, "tick Fine"),
            (121, "send cd"),
        ];
        let log: Vec<_> = log.iter().map(|(at, what)| (*at, what.as_str())).collect();
        assert_eq!(log, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_and_fails_comes_again_and_holds_up_no_batch() {
        for (answer, reconnects) in [
            (Answer::Busy, false),
            (Answer::Refused, false),
            (Answer::Gone, true),
            (Answer::Silence, true),
            (Answer::Panic, true),
        ] {
            let batches = [(1, "a"), (67, "b")];
            let (log, state) = gather(&[answer, answer], &batches, 200).await;
            let words: Vec<_> = log.iter().map(|(_, what)| what.as_str()).collect();
            let tries = log.iter().filter(|(_, what)| what.starts_with("tick"));
            let tries: Vec<_> = tries.map(|(at, _)| *at).collect();
            assert_eq!(tries.len(), 3, "{answer:?}: {log:?}");
            assert!(tries.windows(2).all(|pair| pair[1] - pair[0] >= 3), "{answer:?}: {log:?}");
            assert_eq!(words.last(), Some(&"send ab"), "{answer:?}: {log:?}");
            let connects = words.iter().filter(|word| **word == "connect").count();
            assert_eq!(connects, if reconnects { 3 } else { 1 }, "{answer:?}: {log:?}");
            let written = log.iter().find(|(_, what)| what == "write ab").unwrap().0;
            assert!((67..75).contains(&written), "{answer:?}: {log:?}");
            assert!(state.up.get() > 0.0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_gathers_is_not_up_before_what_is_due_worked() {
        let ticks = [Answer::Busy; 1000];
        let (log, state) = gather(&ticks, &[(1, "a"), (67, "b"), (80, "c")], 100).await;
        assert!(log.iter().any(|(_, what)| what == "write abc"), "{log:?}");
        assert!(state.up.get() == 0.0 && state.retries.get() > 2);
        let (log, state) = gather(&[Answer::Wrong], &[(1, "a"), (100, "b")], 200).await;
        assert_eq!(log.last().unwrap().1, "tick Wrong");
        assert!(state.parked().is_some());
    }
}
