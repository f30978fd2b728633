//! `saltern run`: the daemon.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::cli::logging::start_logging;
use crate::cli::output::Failure;
use crate::cli::runtime::runtime;
use crate::cli::target::load;
use crate::config::Config;
use crate::error::chain;
use crate::files::state_dir::{StateDir, StateDirError};
use crate::http;
use crate::observe::metrics::{self, Tally};
use crate::observe::state::State;
use crate::pipeline::Pipeline;
use crate::pipeline::reload::ReloadError;
use crate::pipeline::shutdown::{self, Shutdown, Signals};
use crate::sync::blocking;

/// The time to wait for threads that still work for a store when all else has ended.
const THREADS: Duration = Duration::from_secs(2);

/// Runs the daemon that the file describes until it is told to stop or its sources have ended.
pub(super) fn run(path: &Path) -> Result<(), Failure> {
    let config = load(path)?;
    start_logging(config.general.log);
    config.log_warnings();
    to_the_end(&config, async |signals| serve(&config, signals, |_| std::future::pending()).await)
}

/// Runs a daemon on a runtime of its own. Signals are heard from before it until after its last
/// thread has ended or is left behind.
pub(super) fn to_the_end(
    config: &Config,
    daemon: impl AsyncFnOnce(&Signals) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let signals = listen(config.general.shutdown_deadline.0)?;
    let runtime = runtime()?;
    let result = runtime.block_on(daemon(&signals));
    runtime.shutdown_timeout(THREADS);
    result
}

/// Listens to signals, with this drain deadline.
pub(super) fn listen(deadline: Duration) -> Result<Signals, Failure> {
    Signals::listen(Shutdown::within(deadline))
        .map_err(|error| Failure::Running(format!("cannot listen to signals: {error}")))
}

/// Runs a configuration until a signal comes, its sources have ended, or `beside`, which runs with
/// it and sees the pipeline, has ended.
pub(super) async fn serve<F: Future<Output = ()>>(
    config: &Config,
    signals: &Signals,
    beside: impl FnOnce(&Pipeline) -> F,
) -> Result<(), Failure> {
    let bound = http::bind(&config.general.http).await;
    let bound = bound.map_err(|error| Failure::Running(chain(&error)))?;
    serve_on(config, bound, signals, beside).await
}

/// Serves like [`serve`], with the HTTP side on a listener that is bound already.
pub(super) async fn serve_on<F: Future<Output = ()>>(
    config: &Config,
    bound: Option<http::Bound>,
    signals: &Signals,
    beside: impl FnOnce(&Pipeline) -> F,
) -> Result<(), Failure> {
    let failed = |message: String| Failure::Running(message);
    let general = &config.general;
    let mut state_dir = take(&general.state_dir)?;
    let listeners = http::open(&general.http, &general.state_dir, bound);
    let listeners = listeners.map_err(|error| failed(chain(&error)))?;
    let recorder = metrics::install()
        .map_err(|error| failed(format!("cannot set up the metrics: {error}")))?;
    let shutdown = &signals.shutdown;
    let mut reopen = signals.reopen();

    let reloads = Reloads::new();
    let mut pipeline = Pipeline::start(config, shutdown, &reopen, &signals.threads)
        .map_err(|error| failed(chain(&error)))?;
    let served = http::Served {
        state: pipeline.state.clone(),
        tap: pipeline.tap.clone(),
        jobs: pipeline.jobs.clone(),
        inspector: pipeline.inspector.clone(),
        metrics: recorder,
        estate: pipeline.estate.clone(),
        state_dir: general.state_dir.clone(),
    };
    let closing = CancellationToken::new();
    let (looks, looked) = watch::channel(());
    let serving = {
        let (settings, closing) = (general.http.clone(), closing.clone());
        let told = http::News { reopen: reopen.clone(), look: looked };
        async move { http::serve(&settings, listeners, served, told, closing).await }
    };
    let http = tokio::spawn(serving);
    let beside = beside(&pipeline);
    info!(
        version = env!("CARGO_PKG_VERSION"),
        sources = config.sources.len(),
        sinks = config.sinks.len(),
        "started"
    );
    shutdown::notify(&[NotifyState::Ready]);

    let state = Arc::clone(&pipeline.state);
    let working = async {
        let mut beside = std::pin::pin!(beside);
        let mut deadline = general.shutdown_deadline;
        loop {
            tokio::select! {
                outcome = pipeline.ended() => return outcome,
                () = shutdown.stop.cancelled() => break,
                () = &mut beside => break,
                () = state_dir_changes(&mut state_dir, &state, &looks) => {
                    pipeline.renew().await;
                    continue;
                }
                // Never fails: the sender lives as long as the signals are heard.
                _ = reopen.changed() => {}
            }
            // A signal does not cancel this, but cuts short its waits.
            if let Some(path) = &config.path
                && let Some(new) = reloads.reload(path, &mut pipeline).await
            {
                deadline = new.general.shutdown_deadline;
                shutdown.set_deadline(deadline.0);
            }
        }
        shutdown.stop.cancel();
        // The remaining work goes to the new directory. A failure to make one has been reported.
        if take_again(&mut state_dir).is_ok_and(|is_new| is_new) {
            pipeline.renew().await;
        }
        info!(%deadline, "stopping");
        shutdown::notify(&[NotifyState::Stopping]);
        pipeline.ended().await
    };
    let threads = Arc::clone(&signals.threads);
    let runtime = tokio::spawn(async move { threads.answer("runtime").await });
    let outcome = tokio::select! {
        outcome = working => outcome,
        never = signals.threads.answer("main") => match never {},
    };
    runtime.abort();
    // From here on the time is kept, however the pipeline ended.
    shutdown.stop.cancel();
    closing.cancel();
    // It ends by itself once closed; a panic in a request has been answered already.
    let _ = http.await;
    info!("stopped");
    outcome.map_err(|error| failed(chain(&error)))
}

/// The counts of reloads, by result.
struct Reloads {
    ok: Tally,
    refused: Tally,
    failed: Tally,
}

impl Reloads {
    fn new() -> Self {
        let tally = |result| Tally::new(metrics::CONFIG_RELOADS, &[result]);
        Reloads { ok: tally("ok"), refused: tally("refused"), failed: tally("failed") }
    }

    /// Reads the file again and changes the pipeline to it. Returns the configuration that is then
    /// in force, if it is not the old one.
    async fn reload(&self, path: &Path, pipeline: &mut Pipeline) -> Option<Config> {
        shutdown::notify_reloading();
        let reloaded = match Config::load(path) {
            Ok(config) => {
                config.log_warnings();
                pipeline.reload(&config).await.map(|_| config)
            }
            Err(error) => Err(ReloadError::Refused(error.to_string())),
        };
        let new = self.note(reloaded);
        shutdown::notify(&[NotifyState::Ready]);
        new
    }

    fn note(&self, reloaded: Result<Config, ReloadError>) -> Option<Config> {
        match reloaded {
            Ok(config) => {
                self.ok.add(1);
                Some(config)
            }
            Err(ReloadError::Refused(error)) => {
                self.refused.add(1);
                error!(error, "the new configuration is refused; the old one stays in force");
                None
            }
            Err(ReloadError::Failed(error)) => {
                self.failed.add(1);
                error!(error, "only part of the new configuration is in force");
                None
            }
        }
    }
}

/// Takes the state directory for this process alone, for as long as the returned value lives.
pub(super) fn take(state_dir: &Path) -> Result<StateDir, Failure> {
    StateDir::take(state_dir).map_err(|error| Failure::Running(chain(&error)))
}

/// The interval at which to check that the state directory is still the one that was taken.
const LOOK: Duration = Duration::from_secs(1);

/// Waits until the state directory was removed or replaced, and has been taken anew.
async fn state_dir_changes(state_dir: &mut StateDir, state: &State, looks: &watch::Sender<()>) {
    const TROUBLE: &str = "state_dir was removed and cannot be made again";
    loop {
        sleep(LOOK).await;
        let taken = take_again(state_dir);
        let trouble = taken.as_ref().err().map(|error| chain(error));
        if state.set_trouble(TROUBLE, trouble.clone())
            && let Some(reason) = &trouble
        {
            error!(error = reason, "{TROUBLE}");
        }
        if taken.is_ok() {
            looks.send_replace(());
        }
        if taken.is_ok_and(|is_new| is_new) {
            error!("state_dir was removed or replaced while in use; it was made again");
            return;
        }
    }
}

/// Takes the directory like [`StateDir::take_again`]. If another daemon has it, this one ends at
/// once: its last writes would get among the other's files.
fn take_again(state_dir: &mut StateDir) -> Result<bool, StateDirError> {
    let taken = blocking(|| state_dir.take_again());
    if let Err(error @ StateDirError::Taken { .. }) = &taken {
        error!(
            error = chain(error),
            "state_dir was replaced, and another daemon has it; ending at once"
        );
        std::process::exit(1);
    }
    taken
}
