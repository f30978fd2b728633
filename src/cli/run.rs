//! `saltern run`: the daemon.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{Failure, load, runtime, start_logging};
use crate::config::Config;
use crate::http;
use crate::metrics::{self, Tally};
use crate::pipeline::Pipeline;
use crate::reload::ReloadError;
use crate::shutdown::{self, Shutdown, Signals};
use crate::sink::chain;
use crate::state_file;

/// How long to wait for threads that still work for a store when all else has ended.
const THREADS: Duration = Duration::from_secs(2);

/// Runs the daemon that the file describes until it is told to stop or its sources have ended.
pub(super) fn run(path: &Path) -> Result<(), Failure> {
    let config = load(path)?;
    start_logging(config.general.log);
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
    let listener = http::bind(&config.general.http).await;
    let listener = listener.map_err(|error| Failure::Running(chain(&error)))?;
    serve_on(config, listener, signals, beside).await
}

/// As [`serve`], with the HTTP side on a listener that is bound already.
pub(super) async fn serve_on<F: Future<Output = ()>>(
    config: &Config,
    listener: Option<TcpListener>,
    signals: &Signals,
    beside: impl FnOnce(&Pipeline) -> F,
) -> Result<(), Failure> {
    let failed = |message: String| Failure::Running(message);
    let general = &config.general;
    state_file::create_directory(&general.state_dir).map_err(|error| {
        failed(format!("cannot create state_dir {}: {error}", general.state_dir.display()))
    })?;
    let _lock = lock(&general.state_dir)?;
    let recorder = metrics::install()
        .map_err(|error| failed(format!("cannot set up the metrics: {error}")))?;
    let shutdown = &signals.shutdown;
    let mut reopen = signals.reopen();

    let reloads = Reloads::new();
    let mut pipeline =
        Pipeline::start(config, shutdown, &reopen).map_err(|error| failed(chain(&error)))?;
    let served = http::Served {
        state: pipeline.state.clone(),
        tap: pipeline.tap.clone(),
        jobs: pipeline.jobs.clone(),
        desks: pipeline.desks.clone(),
        metrics: recorder,
        estate: pipeline.estate.clone(),
        token: general.http.token.clone(),
    };
    let closing = CancellationToken::new();
    let http = tokio::spawn(http::serve(listener, served, closing.clone()));
    let beside = beside(&pipeline);
    info!(
        version = env!("CARGO_PKG_VERSION"),
        sources = config.sources.len(),
        sinks = config.sinks.len(),
        "started"
    );
    shutdown::notify(&[NotifyState::Ready]);

    let working = async {
        let mut beside = std::pin::pin!(beside);
        let mut deadline = general.shutdown_deadline;
        loop {
            tokio::select! {
                outcome = pipeline.ended() => return outcome,
                () = shutdown.stop.cancelled() => break,
                () = &mut beside => break,
                // Never fails: the sender lives as long as the signals are heard.
                _ = reopen.changed() => {}
            }
            // Not broken off by a signal, which cuts short what it waits for.
            if let Some(path) = &config.path
                && let Some(new) = reloads.reload(path, &mut pipeline).await
            {
                deadline = new.general.shutdown_deadline;
                shutdown.set_deadline(deadline.0);
            }
        }
        shutdown.stop.cancel();
        info!(%deadline, "stopping");
        shutdown::notify(&[NotifyState::Stopping]);
        pipeline.ended().await
    };
    let outcome = tokio::select! {
        outcome = working => outcome,
        never = shutdown::pet_watchdog() => match never {},
    };
    // From here on the time is kept, whatever had the pipeline end.
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

    /// Reads the file again and makes the pipeline what it says; the configuration that is in force
    /// then, if it is not the old one.
    async fn reload(&self, path: &Path, pipeline: &mut Pipeline) -> Option<Config> {
        shutdown::notify_reloading();
        let reloaded = match Config::load(path) {
            Ok(config) => pipeline.reload(&config).await.map(|_| config),
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
                error!(error, "the new configuration is refused, the old one goes on");
                None
            }
            Err(ReloadError::Failed(error)) => {
                self.failed.add(1);
                error!(error, "not all of the new configuration could be put in force");
                None
            }
        }
    }
}

/// Whether a daemon has the state directory.
pub(super) fn is_running(state_dir: &Path) -> bool {
    // Shared and let go of at once, so that it is in the way of nobody but a daemon that starts now.
    let file = File::open(state_dir.join("lock"));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Takes the state directory for this process alone, for as long as the file is open.
pub(super) fn lock(state_dir: &Path) -> Result<File, Failure> {
    let path = state_dir.join("lock");
    let failed =
        |error: String| Failure::Running(format!("cannot take {}: {error}", path.display()));
    let file = state_file::open_or_create(&path).map_err(|error| failed(error.to_string()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(failed(
            "another saltern uses this state_dir; stop it, or give this one a state_dir of its own"
                .to_owned(),
        )),
        Err(TryLockError::Error(error)) => Err(failed(error.to_string())),
    }
}
