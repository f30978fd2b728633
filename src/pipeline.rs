//! The whole machine, put together from a configuration, and taken apart again.
//!
//! Sources share one thread with a runtime of its own, so that no sink's blocking can hold up the
//! bus. The dispatcher and each sink's spooler have a thread each. The writers are tasks of the
//! runtime that [`Pipeline::start`] is called on. Nothing outlives [`Pipeline::ended`].

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};
use thiserror::Error;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tracing::error;

use crate::breaker::Breaker;
use crate::config::{Config, SinkConfig, SourceConfig};
use crate::delivery::{RateLimit, Settled, Shared, Writer};
use crate::dispatch::{Dispatcher, Outgoing, Tapped};
use crate::event::{Origin, Share};
use crate::queue::Queue;
use crate::shutdown::Shutdown;
use crate::sink::{Context, chain};
use crate::source::{Frames, Outlet, patience};
use crate::spooler::{BATCHES_PER_WRITER, Spooler};
use crate::state::{SinkState, SourceState, State};

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
        let mut sinks = Vec::new();
        for (sink, state) in config.sinks.iter().zip(pipeline.state.sinks.clone()) {
            let context = Context {
                name: sink.name.clone(),
                writer: 0,
                state_dir: config.general.state_dir.clone(),
                reopen: reopen.clone(),
            };
            sinks.push(pipeline.start_sink(sink, state, &context)?);
        }
        let dispatcher = Dispatcher { frames: frames_out, sinks, tap };
        pipeline.thread("dispatcher", move || {
            dispatcher.run();
            Ok(())
        })?;
        pipeline.start_sources(&config.sources, frames)?;
        Ok(pipeline)
    }

    fn start_sink(
        &mut self,
        sink: &SinkConfig,
        state: Arc<SinkState>,
        context: &Context,
    ) -> Result<Outgoing, PipelineError> {
        let (shares, shares_out) = bounded::<Share>(CHANNEL);
        let (settled, settled_out) = bounded::<Settled>(sink.writers * BATCHES_PER_WRITER);
        let shared = Arc::new(Shared {
            retry: sink.retry,
            breaker: Breaker::default(),
            rate_limit: sink.rate_limit.map(RateLimit::new),
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
        let run_id = u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..));
        let spooler = Spooler {
            queue: Queue::new(run_id, sink.spill),
            limits: sink.limits,
            shares: shares_out,
            settled: settled_out,
            writers,
            state: Arc::clone(&state),
        };
        self.thread(&format!("spool {}", sink.name), move || {
            let state = Arc::clone(&spooler.state);
            spooler.run();
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
                    let result = ended
                        .unwrap_or_else(|_| Err(PipelineError::Panicked("source".to_owned())));
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
        let joined =
            joined.unwrap_or_else(|_| Err(PipelineError::Panicked("shutdown".to_owned())));
        outcome.and(joined)
    }
}

fn join_all(
    threads: Vec<(String, JoinHandle<Result<(), PipelineError>>)>,
) -> Result<(), PipelineError> {
    let mut outcome = Ok(());
    for (name, handle) in threads {
        let result = handle.join().unwrap_or_else(|_| Err(PipelineError::Panicked(name)));
        if outcome.is_ok() {
            outcome = result;
        }
    }
    outcome
}

fn source_state(source: &SourceConfig) -> Arc<SourceState> {
    Arc::new(SourceState::new(&source.name, source.kind.name, &source.master_id))
}

fn sink_state(sink: &SinkConfig) -> Arc<SinkState> {
    Arc::new(SinkState::new(&sink.name, sink.kind.name))
}
