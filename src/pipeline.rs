//! The whole machine, put together from a configuration, and taken apart again.
//!
//! Sources share one thread with a runtime of its own, so that no sink's blocking can hold up the
//! bus. The dispatcher and each sink's spooler have a thread each. The writers are tasks of the
//! runtime that [`Pipeline::start`] is called on. Nothing outlives [`Pipeline::ended`].

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};
use thiserror::Error;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::breaker::Breaker;
use crate::config::{Config, SinkConfig, SourceConfig};
use crate::dead_letter::DeadLetters;
use crate::dedupe::Recent;
use crate::delivery::{RateLimit, Settled, Shared, Writer};
use crate::dispatch::{Dispatcher, Outgoing, Tapped};
use crate::event::{Origin, Share};
use crate::queue::{Fsync, Queue, SpillMode};
use crate::replay_letters::{self, Way};
use crate::shutdown::Shutdown;
use crate::sink::{Context, chain};
use crate::source::{Frames, Outlet, patience};
use crate::spill::Spill;
use crate::spill::disk::Folder;
use crate::spooler::{BATCHES_PER_WRITER, Spooler};
use crate::state::{SinkState, SourceState, State};
use tokio_util::sync::CancellationToken;

/// Chunks between the sources and the dispatcher, and between it and each spooler.
const CHANNEL: usize = 32;

/// Chunks that a live watcher may be behind before it misses some.
const TAP: usize = 64;

/// Why a pipeline could not start or did not do its work.
#[derive(Debug, Error)]
pub enum PipelineError {
    /// A thread or a runtime could not be started.
    #[error("cannot start the {what}")]
    Start {
        /// Which.
        what: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A part of the machine panicked.
    #[error("the {0} failed; this is a bug in saltern")]
    Panicked(String),
    /// A source cannot be read, or a sink cannot be written.
    #[error("{0}")]
    Failed(String),
}

/// A running pipeline.
pub struct Pipeline {
    /// Where everything stands.
    pub state: Arc<State>,
    /// Where live watchers get their copies.
    pub tap: broadcast::Sender<Tapped>,
    threads: Vec<(String, JoinHandle<Result<(), PipelineError>>)>,
    writers: JoinSet<()>,
    shutdown: Shutdown,
}

impl Pipeline {
    /// Starts every part.
    pub fn start(
        config: &Config,
        shutdown: &Shutdown,
        reopen: &watch::Receiver<u64>,
    ) -> Result<Self, PipelineError> {
        let (frames, frames_out) = bounded(CHANNEL);
        let (tap, _) = broadcast::channel(TAP);
        let mut pipeline = Pipeline {
            state: Arc::new(State {
                started: Instant::now(),
                sources: config.sources.iter().map(source_state).collect(),
                sinks: config.sinks.iter().map(sink_state).collect(),
            }),
            tap: tap.clone(),
            threads: Vec::new(),
            writers: JoinSet::new(),
            shutdown: shutdown.clone(),
        };
        let general = &config.general;
        // Without sinks nothing is refused, and nothing is to be written anywhere.
        let dead_letters = match config.sinks.is_empty() {
            true => None,
            false => Some(
                DeadLetters::open(&general.state_dir, general.dead_letters.max_bytes.0)
                    .map(Arc::new)
                    .map_err(|error| PipelineError::Failed(chain(&error)))?,
            ),
        };
        let mut sinks = Vec::new();
        let mut ways = Vec::new();
        for (sink, state) in config.sinks.iter().zip(pipeline.state.sinks.clone()) {
            let context = Context {
                name: sink.name.clone(),
                writer: 0,
                state_dir: config.general.state_dir.clone(),
                reopen: reopen.clone(),
            };
            let outgoing = pipeline.start_sink(sink, state, &context, dead_letters.as_ref())?;
            let (shares, state) = (outgoing.shares.clone(), Arc::clone(&outgoing.state));
            ways.push(Way { sink: sink.name.clone(), shares, state });
            sinks.push(outgoing);
        }
        // Ends with the sources, so that the spoolers see that nothing comes any more.
        let no_more = CancellationToken::new();
        if let Some(dead_letters) = dead_letters {
            pipeline.writers.spawn(replay_letters::run(dead_letters, ways, no_more.clone()));
        }
        let recent = config.dedupe_window().map(|window| Recent::new(window, Instant::now()));
        let dispatcher = Dispatcher { frames: frames_out, sinks, recent, tap };
        pipeline.thread("dispatcher", move || {
            dispatcher.run();
            Ok(())
        })?;
        pipeline.start_sources(&config.sources, frames, no_more)?;
        Ok(pipeline)
    }

    fn start_sink(
        &mut self,
        sink: &SinkConfig,
        state: Arc<SinkState>,
        context: &Context,
        dead_letters: Option<&Arc<DeadLetters>>,
    ) -> Result<Outgoing, PipelineError> {
        let (shares, shares_out) = bounded::<Share>(CHANNEL);
        let (settled, settled_out) = bounded::<Settled>(sink.writers * BATCHES_PER_WRITER);
        let shared = Arc::new(Shared {
            retry: sink.retry,
            breaker: Breaker::default(),
            rate_limit: sink.rate_limit.map(RateLimit::new),
            dead_letters: dead_letters.cloned(),
            state: Arc::clone(&state),
        });
        let mut writers = Vec::new();
        for number in 0..sink.writers {
            let (batches, batches_out) = mpsc::channel(BATCHES_PER_WRITER);
            writers.push(batches);
            let writer = Writer {
                context: Context { writer: number, ..context.clone() },
                batches: batches_out,
                settled: settled.clone(),
                shared: Arc::clone(&shared),
                stop: self.shutdown.give_up.clone(),
            };
            self.writers.spawn(Arc::clone(&sink.driver).drive(writer));
        }
        let (queue, fsync) = open_queue(sink, &context.state_dir)?;
        let spooler = Spooler {
            queue,
            limits: sink.limits,
            fsync,
            shares: shares_out,
            settled: settled_out,
            writers,
            state: Arc::clone(&state),
        };
        self.thread(&format!("spool {}", sink.name), move || {
            let state = Arc::clone(&spooler.state);
            let ran = spooler.run();
            ran.map_err(|cause| PipelineError::Start { what: "sync thread".into(), cause })?;
            match state.parked() {
                None => Ok(()),
                Some(reason) => {
                    Err(PipelineError::Failed(format!("the sink {}: {reason}", state.name)))
                }
            }
        })?;
        Ok(Outgoing { filter: sink.filter.clone(), shares, state })
    }

    fn start_sources(
        &mut self,
        sources: &[SourceConfig],
        frames: Sender<Frames>,
        no_more: CancellationToken,
    ) -> Result<(), PipelineError> {
        let mut readers = Vec::new();
        for (source, state) in sources.iter().zip(&self.state.sources) {
            let (name, master_id) = (source.name.clone(), source.master_id.clone());
            let origin = Arc::new(Origin { source: name, master_id });
            let outlet = Outlet { origin, state: Arc::clone(state), frames: frames.clone() };
            readers.push((Arc::clone(&source.reader), outlet));
        }
        drop(frames);
        let stop = self.shutdown.stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(patience::sleep)
            .build()
            .map_err(|cause| PipelineError::Start { what: "source runtime".into(), cause })?;
        self.thread("sources", move || {
            let _no_more = no_more.drop_guard();
            let local = tokio::task::LocalSet::new();
            let mut tasks = JoinSet::new();
            for (reader, outlet) in readers {
                let stop = stop.clone();
                let read = async move {
                    let state = Arc::clone(&outlet.state);
                    let result = reader.run(outlet, stop).await;
                    state.end();
                    result.map_err(|error| {
                        let reason = format!("the source {}: {}", state.name, chain(&error));
                        error!(source = state.name, error = chain(&error), "the source failed");
                        state.failed(&reason);
                        PipelineError::Failed(reason)
                    })
                };
                tasks.spawn_local_on(read, &local);
            }
            let mut outcome = Ok(());
            local.block_on(&runtime, async {
                while let Some(ended) = tasks.join_next().await {
                    let result =
                        ended.unwrap_or_else(|_| Err(PipelineError::Panicked("source".to_owned())));
                    if result.is_err() {
                        outcome = result;
                    }
                }
            });
            outcome
        })
    }

    fn thread(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<(), PipelineError> + Send + 'static,
    ) -> Result<(), PipelineError> {
        let handle = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .map_err(|cause| PipelineError::Start { what: format!("thread `{name}`"), cause })?;
        self.threads.push((name.to_owned(), handle));
        Ok(())
    }

    /// Waits until every part has ended: the sources because they were told to stop or had no more,
    /// the others because everything is settled or given up. The first failure is the result.
    pub async fn ended(mut self) -> Result<(), PipelineError> {
        let mut outcome = Ok(());
        while let Some(ended) = self.writers.join_next().await {
            if ended.is_err() && outcome.is_ok() {
                outcome = Err(PipelineError::Panicked("writer of a sink".to_owned()));
            }
        }
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || join_all(threads)).await;
        let joined = joined.unwrap_or_else(|_| Err(PipelineError::Panicked("shutdown".to_owned())));
        outcome.and(joined)
    }
}

fn join_all(
    threads: Vec<(String, JoinHandle<Result<(), PipelineError>>)>,
) -> Result<(), PipelineError> {
    let mut outcome = Ok(());
    for (name, handle) in threads {
        let result = handle.join().unwrap_or(Err(PipelineError::Panicked(name)));
        if outcome.is_ok() {
            outcome = result;
        }
    }
    outcome
}

/// The queue of a sink, with what its spill holds, and when that is synced.
fn open_queue(
    sink: &SinkConfig,
    state_dir: &Path,
) -> Result<(Queue, Option<Fsync>), PipelineError> {
    if sink.spill.mode == SpillMode::Memory {
        let id = u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..));
        return Ok((Queue::new(id, sink.spill, None), None));
    }
    let path = state_dir.join("spill").join(&sink.name);
    let failed = |cause: String| {
        PipelineError::Failed(format!("cannot open the spill {}: {cause}", path.display()))
    };
    let folder = Folder::create(&path).map_err(|error| failed(error.to_string()))?;
    let id = queue_id(&path).map_err(|error| failed(error.to_string()))?;
    let spill =
        Spill::open(folder, sink.spill.settings()).map_err(|error| failed(chain(&error)))?;
    if spill.torn_bytes() > 0 {
        warn!(sink = sink.name, bytes = spill.torn_bytes(), "a torn tail was cut off the spill");
    }
    let queue = Queue::new(id, sink.spill, Some(spill));
    if !queue.is_empty() {
        info!(sink = sink.name, events = queue.len(), "events wait in the spill");
    }
    Ok((queue, Some(sink.spill.fsync)))
}

/// The id of the queue whose spill is in a folder; made at random once.
fn queue_id(folder: &Path) -> std::io::Result<u128> {
    let path = folder.join("queue-id");
    if let Ok(text) = std::fs::read_to_string(&path)
        && let Ok(id) = u128::from_str_radix(text.trim(), 16)
    {
        return Ok(id);
    }
    let id = u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..));
    std::fs::write(&path, format!("{id:032x}\n"))?;
    Ok(id)
}

fn source_state(source: &SourceConfig) -> Arc<SourceState> {
    Arc::new(SourceState::new(&source.name, source.kind.name, &source.master_id))
}

fn sink_state(sink: &SinkConfig) -> Arc<SinkState> {
    Arc::new(SinkState::new(&sink.name, sink.kind.name))
}
