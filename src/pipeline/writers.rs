//! The writers of one sink. They are started together, beside its spooler, and made anew with it
//! when the spooler or one of them has died.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::SinkConfig;
use crate::delivery::breaker::Breaker;
use crate::delivery::dead_letter::DeadLetters;
use crate::delivery::deaths::Deaths;
use crate::delivery::{RateLimit, Settled, Shared, Writer};
use crate::event::batch::Batch;
use crate::jobs::Jobs;
use crate::observe::state::SinkState;
use crate::observe::threads::Threads;
use crate::queue::inspect::Inspector;
use crate::queue::spooler::BATCHES_PER_WRITER;
use crate::sink::contract::{Context, Reopen};
use crate::sink::registry::Driver;
use crate::sync::bell::{Bell, Receiver, channel};

/// The environment that every sink is started in.
pub(crate) struct SinkEnvironment {
    pub(crate) state_dir: PathBuf,
    pub(crate) master_id: String,
    pub(crate) jobs: Jobs,
    pub(crate) reopen: watch::Receiver<u64>,
    pub(crate) dead_letters: Option<Arc<DeadLetters>>,
    /// The deaths of the process, if there were so many that a batch begun before is tried with
    /// care.
    pub(crate) deaths: Option<Arc<Deaths>>,
    /// The daemon has begun to stop.
    pub(crate) stop: CancellationToken,
    /// Its drain deadline has passed.
    pub(crate) give_up: CancellationToken,
    pub(crate) inspector: Arc<Inspector>,
    pub(crate) threads: Arc<Threads>,
}

/// The parts that writers are started with.
pub(crate) struct Starter {
    driver: Arc<dyn Driver>,
    contexts: Vec<Context>,
    shared: Box<dyn Fn() -> Shared + Send>,
    /// The spooler's.
    bell: Bell,
    runtime: Handle,
}

/// Writers that run.
pub(crate) struct Writers {
    pub(crate) tasks: JoinSet<()>,
    /// The channel that each takes its batches from.
    pub(crate) batches: Vec<mpsc::Sender<Batch>>,
    pub(crate) settled: Receiver<Settled>,
    /// Cancelled when one has panicked.
    pub(crate) died: CancellationToken,
}

impl Starter {
    /// A starter for the writers of this sink, on the current runtime.
    pub(crate) fn new(
        environment: &SinkEnvironment,
        sink: &SinkConfig,
        state: &Arc<SinkState>,
        bell: &Bell,
    ) -> Self {
        let context = |number| Context {
            name: sink.name.clone(),
            writer: number,
            master_id: environment.master_id.clone(),
            state_dir: environment.state_dir.clone(),
            limit: sink.retry.timeout.0,
            reopen: Reopen::new(environment.reopen.clone()),
            // Others have no business with it.
            jobs: sink.kind.is_job_cache().then(|| environment.jobs.clone()),
        };
        let (retry, rate_limit) = (sink.retry, sink.rate_limit);
        let (dead_letters, deaths) = (environment.dead_letters.clone(), environment.deaths.clone());
        let state = Arc::clone(state);
        let shared = move || Shared {
            retry,
            breaker: Breaker::default(),
            rate_limit: rate_limit.map(RateLimit::new),
            dead_letters: dead_letters.clone(),
            deaths: deaths.clone(),
            state: Arc::clone(&state),
            parked: CancellationToken::new(),
        };
        Starter {
            driver: Arc::clone(&sink.driver),
            contexts: (0..sink.writers).map(context).collect(),
            shared: Box::new(shared),
            bell: bell.clone(),
            runtime: Handle::current(),
        }
    }

    /// Starts them. They leave everything as it is once `stop` is cancelled.
    pub(crate) fn start(&self, stop: &CancellationToken) -> Writers {
        let capacity = self.contexts.len() * BATCHES_PER_WRITER;
        let (settled_in, settled) = channel::<Settled>(capacity, &self.bell);
        let shared = Arc::new((self.shared)());
        let died = CancellationToken::new();
        let (mut tasks, mut batches) = (JoinSet::new(), Vec::new());
        for context in &self.contexts {
            let (batches_in, batches_out) = mpsc::channel(BATCHES_PER_WRITER);
            batches.push(batches_in);
            let writer = Writer {
                context: context.clone(),
                batches: batches_out,
                settled: settled_in.clone(),
                shared: Arc::clone(&shared),
                stop: stop.clone(),
            };
            let driving = Arc::clone(&self.driver).drive(writer);
            let (rings, died) = (settled_in.clone(), died.clone());
            let driving = async move {
                // This is dropped after the guard, so that the spooler wakes up when the token is
                // cancelled.
                let _rings = rings;
                let panicked = died.drop_guard();
                driving.await;
                panicked.disarm();
            };
            tasks.spawn_on(driving, &self.runtime);
        }
        Writers { tasks, batches, settled, died }
    }

    /// Waits until the writers have ended, or `limit` has passed. Not for async code.
    pub(crate) fn join(&self, tasks: &mut JoinSet<()>, limit: Duration) {
        self.runtime.block_on(async {
            let ended = async { while tasks.join_next().await.is_some() {} };
            // The others hang, and are joined when the sink ends.
            let _ = timeout(limit, ended).await;
        });
    }
}
