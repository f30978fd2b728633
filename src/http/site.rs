//! The state that the routes share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

use crate::estate::Estate;
use crate::http::authorize::AccessPolicy;
use crate::http::budget::Budget;
use crate::http::questions::Questions;
use crate::http::scrapes::Scrapes;
use crate::jobs::Jobs;
use crate::observe::process::Process;
use crate::observe::state::State;
use crate::pipeline::dispatch::Tapped;
use crate::queue::inspect::Inspector;

/// The parts of the daemon that the HTTP side serves.
#[derive(Clone)]
pub(crate) struct Served {
    /// The state of the sources, the sinks and the daemon.
    pub(crate) state: Arc<State>,
    /// Copies of the events that pass.
    pub(crate) tap: broadcast::Sender<Tapped>,
    /// The job cache.
    pub(crate) jobs: Jobs,
    /// Asks sinks for the events that wait for them.
    pub(crate) inspector: Arc<Inspector>,
    /// The metrics.
    pub(crate) metrics: PrometheusHandle,
    /// The metrics of the Salt estate.
    pub(crate) estate: Arc<Estate>,
    /// The directory of the daemon's files.
    pub(crate) state_dir: PathBuf,
}

/// The state that the routes share.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) served: Served,
    pub(super) policy: Arc<AccessPolicy>,
    pub(super) reached: Reached,
    pub(super) process: Arc<Process>,
    /// A permit for each client that reads events.
    pub(super) streams: Arc<Semaphore>,
    pub(super) scrapes: Arc<Scrapes>,
    pub(super) questions: Arc<Questions>,
    pub(super) budget: Budget,
    pub(super) stop: CancellationToken,
}

/// The places at which the HTTP side is reached.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Reached {
    pub(super) listen: Option<SocketAddr>,
    pub(super) socket: Option<PathBuf>,
    pub(super) tls: bool,
}

impl Site {
    pub(super) fn refresh(&self) {
        self.served.state.refresh();
        self.process.refresh();
    }
}
