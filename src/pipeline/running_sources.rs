//! The thread that all sources share, and the sources on it.
//!
//! Sources can be started at any time as long as one is left. When the last has ended the thread
//! ends too, and with it everything behind. A source that has changed is told to stop once its
//! successor is on the list, so the list is never empty in between. The successor begins when the
//! old one has given up its address.
//!
//! A source that fails or panics is started again after a while, for as long as it is configured,
//! and touches no other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::config::SourceConfig;
use crate::error::chain;
use crate::event::{Authority, Origin};
use crate::jobs::Jobs;
use crate::observe::state::SourceState;
use crate::pipeline::error::PipelineError;
use crate::source::frame_sender::{FrameSender, Frames, Via};
use crate::source::link::{Link, RECONNECT};
use crate::source::registry::Reader;
use crate::sync::bell::Sender;

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
    /// The end of the source that it replaces. It starts after that.
    after: Option<CancellationToken>,
    is_tried_once: bool,
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
            is_tried_once: source.is_tried_once,
        };
        (RunningSource { fingerprint: source.fingerprint, state, stop, ended }, starting)
    }

    /// It is started no more.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }
}

/// Runs sources until all have ended. The first that failed for good, and that no reload has
/// corrected, is the result.
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
                // This comes first, so that a successor is on the list before the last task has
                // ended.
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
    let Starting { reader, origin, state, stop, ended, after, is_tried_once } = starting;
    let _ended = ended.drop_guard();
    if let Some(after) = after {
        after.cancelled().await;
    }
    state.begin();
    let mut link = Link::new(Arc::clone(&state));
    let error = loop {
        let (state, origin) = (Arc::clone(&state), Arc::clone(&origin));
        let (connects, began) = (state.connects.get(), Instant::now());
        let (frames, jobs) = (frames.clone(), jobs.clone());
        let sender = FrameSender {
            origin,
            via: Via::Read,
            authority: Authority::Bus,
            state: Arc::clone(&state),
            frames,
            jobs,
        };
        // The source is a task of its own, since it may panic.
        let running = tokio::task::spawn_local(Arc::clone(&reader).run(sender, stop.clone()));
        let error = match running.await {
            Ok(Ok(())) => break None,
            Ok(Err(error)) => chain(&error),
            Err(error) => format!("{}; this is a bug in saltern", chain(&error)),
        };
        let has_begun = state.connects.get() > connects;
        if is_tried_once || stop.is_cancelled() || (reader.ends() && has_begun) {
            break Some(error);
        }
        if began.elapsed() > RECONNECT.1 {
            link.works();
        }
        if link.is_up() {
            link.lost(&error);
        } else {
            link.absent(&error);
        }
        if stop.run_until_cancelled(link.wait()).await.is_none() {
            break None;
        }
    };
    let result = match error {
        None => {
            state.end();
            Ok(())
        }
        Some(error) => {
            state.connected.set_bool(false);
            let reason = format!("the source {}: {error}", state.name);
            error!(source = state.name, error, "the source failed");
            state.failed(&reason);
            Err(PipelineError::Failed(reason))
        }
    };
    (state.name.clone(), result)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    use crate::pipeline::running_sources::*;
    use crate::source::contract::{JobCache, SourceError};
    use crate::source::registry::{Reading, SourceKind};
    use crate::sync::bell::{Bell, channel};

    /// Panics, then fails once it is connected, then ends.
    #[derive(Default)]
    struct Unlucky(AtomicU32);

    impl Reader for Unlucky {
        fn run(self: Arc<Self>, sender: FrameSender, _stop: CancellationToken) -> Reading<'static> {
            Box::pin(async move {
                match self.0.fetch_add(1, Ordering::Relaxed) {
                    0 => panic!("out of luck"),
                    1 => {
                        Link::new(sender.state).up("somewhere");
                        Err(SourceError::new("reading", "it is gone"))
                    }
                    _ => Ok(()),
                }
            })
        }

        fn job_cache(&self) -> JobCache {
            JobCache::NotUsed
        }

        fn ends(&self) -> bool {
            false
        }

        fn probe(&self) -> Reading<'_> {
            Box::pin(async { Ok(()) })
        }
    }

    #[test]
    fn invariant_9_a_source_that_panics_or_fails_is_not_ready_and_is_started_again() {
        let reader = Arc::new(Unlucky::default());
        let source = SourceConfig {
            name: "bus".into(),
            kind: SourceKind::named("salt_bus").unwrap(),
            reader: Arc::clone(&reader) as Arc<dyn Reader>,
            master_id: "m".into(),
            fingerprint: 0,
            is_tried_once: false,
        };
        let state = Arc::new(SourceState::new("bus", "salt_bus", "m"));
        assert!(state.is_failing());
        let (running, starting) =
            RunningSource::new(&source, Arc::clone(&state), CancellationToken::new(), None);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        let (frames, _frames_out) = channel(1, &Bell::default());
        let (_starts, starts_out) = mpsc::channel(1);
        let jobs = Jobs::new(Path::new("/nowhere"));
        run(&runtime, vec![starting], starts_out, frames, &jobs).unwrap();
        assert_eq!(reader.0.load(Ordering::Relaxed), 3);
        assert_eq!((state.connects.get(), state.gaps.get()), (1, 1));
        assert!(running.has_ended() && !state.is_failing());
    }
}
