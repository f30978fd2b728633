//! Stopping: signals, the drain deadline, and what systemd is told.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

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

    /// Waits for SIGINT or SIGTERM; each SIGHUP meanwhile asks the sinks to open their files anew.
    pub async fn until_stop(&mut self, reopen: &watch::Sender<u64>) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = self.hangup.recv() => {
                    info!("SIGHUP: files are opened anew");
                    reopen.send_modify(|generation| *generation += 1);
                }
            }
        }
    }
}

/// Tells systemd a state, if it listens.
pub fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd could not be notified");
    }
}

/// Half of systemd's watchdog interval, if it watches.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|interval| interval / 2)
}

/// Tells systemd's watchdog that we live, for as long as it is polled.
pub async fn pet_watchdog() {
    let Some(interval) = watchdog_interval() else { return std::future::pending().await };
    loop {
        notify(&[sd_notify::NotifyState::Watchdog]);
        sleep(interval).await;
    }
}
