//! The thread that all sources share, and the sources on it.
//!
//! Sources can be started at any time as long as one is left; when the last has ended the thread
//! ends too, and with it everything behind. A source that has changed is told to stop once its
//! successor is on the list, so that the list is never empty in between; the successor begins when
//! the old one has let go of its address.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::config::SourceConfig;
use crate::doorbell::Sender;
use crate::event::Origin;
use crate::jobs::Jobs;
use crate::pipeline::PipelineError;
use crate::sink::chain;
use crate::source::{Frames, Outlet, Reader};
use crate::state::SourceState;

/// Sources that may wait to be started.
pub(crate) const STARTS: usize = 16;

/// A source as the pipeline knows it.
pub(crate) struct RunningSource {
    pub(crate) fingerprint: u128,
    pub(crate) state: Arc<SourceState>,
    pub(crate) stop: CancellationToken,
    ended: CancellationToken,
}

/// A source that is to run.
pub(crate) struct Starting {
    reader: Arc<dyn Reader>,
    origin: Arc<Origin>,
    state: Arc<SourceState>,
    stop: CancellationToken,
    ended: CancellationToken,
    /// What has to end before.
    after: Option<CancellationToken>,
}

impl RunningSource {
    /// A source and what the thread has to start for it; `after` is the one that it replaces.
    pub(crate) fn new(
        source: &SourceConfig,
        state: Arc<SourceState>,
        stop: CancellationToken,
        after: Option<&RunningSource>,
    ) -> (Self, Starting) {
        let ended = CancellationToken::new();
        let (name, master_id) = (source.name.clone(), source.master_id.clone());
        let starting = Starting {
            reader: Arc::clone(&source.reader),
            origin: Arc::new(Origin { source: name, master_id }),
            state: Arc::clone(&state),
            stop: stop.clone(),
            ended: ended.clone(),
            after: after.map(|source| source.ended.clone()),
        };
        (RunningSource { fingerprint: source.fingerprint, state, stop, ended }, starting)
    }
}

/// Runs sources until all have ended. The first failure that no reload has mended is the result.
pub(crate) fn run(
    runtime: &tokio::runtime::Runtime,
    first: Vec<Starting>,
    mut starts: mpsc::Receiver<Starting>,
    frames: Sender<Frames>,
    jobs: &Jobs,
) -> Result<(), PipelineError> {
    let local = LocalSet::new();
    let mut tasks = JoinSet::new();
    let mut failures: HashMap<String, PipelineError> = HashMap::new();
    for starting in first {
        tasks.spawn_local_on(read(starting, frames.clone(), jobs.clone()), &local);
    }
    local.block_on(runtime, async {
        loop {
            tokio::select! {
                // First, so that a successor is on the list before the last task has ended.
                biased;
                Some(starting) = starts.recv() => {
                    tasks.spawn_local_on(read(starting, frames.clone(), jobs.clone()), &local);
                }
                ended = tasks.join_next() => match ended {
                    Some(Ok((name, Ok(())))) => drop(failures.remove(&name)),
                    Some(Ok((name, Err(error)))) => drop(failures.insert(name, error)),
                    Some(Err(_)) => {
                        let name = "source".to_owned();
                        failures.insert(name.clone(), PipelineError::Panicked(name));
                    }
                    None => return,
                },
            }
        }
    });
    failures.into_values().next().map_or(Ok(()), Err)
}

async fn read(
    starting: Starting,
    frames: Sender<Frames>,
    jobs: Jobs,
) -> (String, Result<(), PipelineError>) {
    let Starting { reader, origin, state, stop, ended, after } = starting;
    let _ended = ended.drop_guard();
    if let Some(after) = after {
        after.cancelled().await;
    }
    state.begin();
    let outlet = Outlet { origin, way: "", state: Arc::clone(&state), frames, jobs };
    let result = reader.run(outlet, stop).await;
    state.end();
    let result = result.map_err(|error| {
        let reason = format!("the source {}: {}", state.name, chain(&error));
        error!(source = state.name, error = chain(&error), "the source failed");
        state.failed(&reason);
        PipelineError::Failed(reason)
    });
    (state.name.clone(), result)
}
