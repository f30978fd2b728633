//! Stopping: signals, the drain deadline, and what systemd is told.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The two steps of stopping.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Sources stop; what was read is delivered.
    pub stop: CancellationToken,
    /// The drain deadline has passed: whatever is not delivered stays behind.
    pub give_up: CancellationToken,
}

impl Shutdown {
    /// Begins to stop, and gives up `deadline` later. Returns when everything has ended, or once
    /// the deadline has passed.
    pub async fn drain(&self, deadline: Duration, ended: impl Future<Output = ()>) {
        self.stop.cancel();
        if timeout(deadline, ended).await.is_err() {
            warn!(?deadline, "the shutdown deadline has passed, leaving what is not delivered");
            self.give_up.cancel();
        }
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// SIGINT, SIGTERM: stop.
    Stop,
    /// SIGHUP: open files anew and read the configuration again.
    Reload,
}

/// The signals that the daemon listens to.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes the signals over from their default actions.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal.
    pub async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.terminate.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    /// Waits for SIGINT or SIGTERM; SIGHUP means nothing.
    pub async fn until_stop(&mut self) {
        while self.next().await == Told::Reload {}
    }
}

/// Tells systemd a state, if it listens.
pub fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd could not be notified");
    }
}

/// Tells systemd that the configuration is being read again; [`NotifyState::Ready`] ends that. With
/// the time, which `Type=notify-reload` asks for.
pub fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => {
            warn!(%error, "the monotonic clock cannot be read");
            notify(&[NotifyState::Reloading]);
        }
    }
}

/// Half of systemd's watchdog interval, if it watches.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|interval| interval / 2)
}

/// Tells systemd's watchdog that we live, for as long as it is polled.
pub async fn pet_watchdog() -> Infallible {
    let Some(interval) = watchdog_interval() else { return std::future::pending().await };
    loop {
        notify(&[NotifyState::Watchdog]);
        sleep(interval).await;
    }
}
