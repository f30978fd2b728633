//! Stopping: signals, the drain deadline, and the notes to systemd.
//!
//! A thread of its own hears signals, keeps the time and watches the other threads, from the start
//! of the daemon to its very end. So the daemon can be stopped even if something hangs, in a
//! store's library or in a system call.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::observe::threads::{STUCK, Threads};

/// The time that everything may take to end after the drain deadline. Queues in memory are written
/// to disk in this time.
const END: Duration = Duration::from_secs(10);

/// The interval at which the threads are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// The time that a line of the log may take: standard error may be a pipe that nobody reads.
const SAY: Duration = Duration::from_secs(1);

/// The two steps of stopping.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown {
    /// Sources stop; events that were read are delivered.
    pub(crate) stop: CancellationToken,
    /// The drain deadline has passed: undelivered events stay behind.
    pub(crate) give_up: CancellationToken,
    /// Milliseconds between the two.
    deadline: Arc<AtomicU64>,
}

impl Shutdown {
    /// With this drain deadline.
    pub(crate) fn within(deadline: Duration) -> Self {
        let shutdown = Shutdown::default();
        shutdown.set_deadline(deadline);
        shutdown
    }

    /// From now on this is the drain deadline. It has no effect once the daemon is stopping.
    pub(crate) fn set_deadline(&self, deadline: Duration) {
        let millis = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        self.deadline.store(millis, Ordering::Relaxed);
    }

    /// Waits until the daemon stops, and gives up when the deadline has passed. Returns [`END`]
    /// after that.
    async fn run_out(&self) {
        self.stop.cancelled().await;
        let deadline = Duration::from_millis(self.deadline.load(Ordering::Relaxed));
        if timeout(deadline, self.give_up.cancelled()).await.is_err() {
            self.give_up.cancel();
            say(move || {
                warn!(
                    ?deadline,
                    "the shutdown deadline has passed; the daemon ends without delivering the rest"
                );
            })
            .await;
        }
        sleep(END).await;
    }

    /// Obeys signals, and keeps the time. Returns the reason why the process has to end at once.
    async fn obey(
        &self,
        told: &mut impl SignalListener,
        reopen: &watch::Sender<u64>,
    ) -> &'static str {
        let mut run_out = std::pin::pin!(self.run_out());
        let mut stops = 0;
        loop {
            let told = tokio::select! {
                told = told.next() => told,
                () = &mut run_out => return "parts of the daemon still hang after the deadline",
            };
            if told == Request::Reload {
                reopen.send_modify(|generation| *generation += 1);
                say(|| info!("SIGHUP: files are opened again")).await;
                continue;
            }
            // This comes before the log line: a thread that waits for it need not wait for the log.
            self.stop.cancel();
            stops += 1;
            match stops {
                1 => {}
                2 => {
                    self.give_up.cancel();
                    say(|| {
                        warn!("told to stop twice; the daemon ends without delivering the rest");
                    })
                    .await;
                }
                _ => return "told to stop three times",
            }
        }
    }
}

/// Logs, and does not wait long for it.
async fn say(line: impl FnOnce() + Send + 'static) {
    let _ = timeout(SAY, spawn_blocking(line)).await;
}

/// The request of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// SIGINT, SIGTERM: stop.
    Stop,
    /// SIGHUP: open files anew and read the configuration again.
    Reload,
}

/// It hears the signals.
trait SignalListener {
    /// Waits for the next. May be cancelled and called again.
    async fn next(&mut self) -> Request;
}

struct Kernel {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Kernel {
    fn listen() -> io::Result<Self> {
        Ok(Kernel {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

impl SignalListener for Kernel {
    async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.terminate.recv() => Request::Stop,
            _ = self.hangup.recv() => Request::Reload,
        }
    }
}

/// The thread that hears signals for as long as this lives: SIGINT and SIGTERM stop, a second one
/// gives up, a third one ends the process at once, with exit code 1. So does time, when something
/// has not ended [`END`] after it was given up.
pub(crate) struct Signals {
    /// The shutdown that they control.
    pub(crate) shutdown: Shutdown,
    /// The threads that are watched.
    pub(crate) threads: Arc<Threads>,
    reopen: watch::Receiver<u64>,
    done: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    /// Takes the signals over from their default actions.
    pub(crate) fn listen(shutdown: Shutdown) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let kernel = {
            let _entered = runtime.enter();
            Kernel::listen()?
        };
        let (reopen_in, reopen) = watch::channel(0);
        let done = CancellationToken::new();
        let (obeyed, until) = (shutdown.clone(), done.clone());
        let threads = Arc::new(Threads::default());
        let watched = Arc::clone(&threads);
        let thread = std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || hear(runtime, kernel, &obeyed, &watched, &reopen_in, &until))?;
        Ok(Signals { shutdown, threads, reopen, done, thread: Some(thread) })
    }

    /// Changes with each SIGHUP.
    pub(crate) fn reopen(&self) -> watch::Receiver<u64> {
        self.reopen.clone()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.done.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported.
            let _ = thread.join();
        }
    }
}

/// The work of the thread.
fn hear(
    runtime: Runtime,
    mut kernel: Kernel,
    shutdown: &Shutdown,
    threads: &Threads,
    reopen: &watch::Sender<u64>,
    done: &CancellationToken,
) {
    let obeying = async {
        tokio::select! {
            reason = shutdown.obey(&mut kernel, reopen) => reason,
            never = watch(threads) => match never {},
        }
    };
    let obeying = done.run_until_cancelled(obeying);
    if let Some(reason) = runtime.block_on(obeying) {
        runtime.block_on(say(move || error!(reason, "ending at once")));
        std::process::exit(1);
    }
    // A line of the log that hangs is not waited for.
    runtime.shutdown_background();
}

/// Tells systemd a state, if it listens.
pub(crate) fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd could not be notified");
    }
}

/// Tells systemd that the configuration is being read again; [`NotifyState::Ready`] ends that. The
/// message has the time, as `Type=notify-reload` demands.
pub(crate) fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => {
            warn!(%error, "the monotonic clock cannot be read");
            notify(&[NotifyState::Reloading]);
        }
    }
}

/// Looks at the threads, and tells systemd's watchdog that we live for as long as all of them move.
async fn watch(threads: &Threads) -> Infallible {
    let watchdog = sd_notify::watchdog_enabled();
    let pause = watchdog.map_or(LOOK, |interval| LOOK.min(interval / 2));
    let limit = watchdog.map_or(STUCK, |interval| STUCK.min(interval));
    loop {
        for (thread, is_stuck) in threads.look(Instant::now(), limit) {
            say(move || match is_stuck {
                true => error!(thread, "the thread is stuck; the watchdog is not fed"),
                false => info!(thread, "the thread moves again"),
            })
            .await;
        }
        if watchdog.is_some() && threads.stuck().is_empty() {
            notify(&[NotifyState::Watchdog]);
        }
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::time::Instant;

    use crate::pipeline::shutdown::*;

    /// The requests that are heard, each with the time since the one before.
    struct Script(VecDeque<(Duration, Request)>);

    impl SignalListener for Script {
        async fn next(&mut self) -> Request {
            let Some((wait, told)) = self.0.front().copied() else {
                return std::future::pending().await;
            };
            sleep(wait).await;
            self.0.pop_front();
            told
        }
    }

    /// The times in seconds of the stop, of giving up and of the end, and the reason of the end.
    async fn run(deadline: u64, heard: &[(u64, Request)]) -> (u64, u64, u64, &'static str) {
        let shutdown = Shutdown::within(Duration::from_secs(deadline));
        let heard = heard.iter().map(|(wait, told)| (Duration::from_secs(*wait), *told));
        let mut script = Script(heard.collect());
        let began = Instant::now();
        let at = async |token: &CancellationToken| {
            token.cancelled().await;
            began.elapsed().as_secs()
        };
        let (reopen, _seen) = watch::channel(0);
        let obeying = async {
            let reason = shutdown.obey(&mut script, &reopen).await;
            (reason, began.elapsed().as_secs())
        };
        let (stop, give_up, (reason, end)) =
            tokio::join!(at(&shutdown.stop), at(&shutdown.give_up), obeying);
        (stop, give_up, end, reason)
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_signal_gives_up_and_the_third_ends_the_process() {
        let (stop, give_up, end, reason) =
            run(25, &[(1, Request::Stop), (2, Request::Stop), (3, Request::Stop)]).await;
        assert_eq!((stop, give_up, end), (1, 3, 6));
        assert_eq!(reason, "told to stop three times");
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_hangs_ends_a_few_seconds_after_its_deadline() {
        for heard in [&[(1, Request::Stop)][..], &[(1, Request::Stop), (2, Request::Reload)]] {
            let (stop, give_up, end, reason) = run(25, heard).await;
            assert_eq!((stop, give_up, end), (1, 26, 36));
            assert_eq!(reason, "parts of the daemon still hang after the deadline");
        }
    }
}
