//! The HTTP side: `/metrics`, `/healthz`, `/readyz`, `/api/v1/…`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Http;
use crate::event::Chunk;
use crate::state::{State, Status};
use crate::units::Secret;

/// How often histograms are folded, so that they stay small when nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why the HTTP side cannot start.
#[derive(Debug, Error)]
#[error("cannot listen on {listen} (http.listen)")]
pub struct BindError {
    listen: SocketAddr,
    #[source]
    cause: std::io::Error,
}

/// What the HTTP side serves.
#[derive(Clone)]
pub struct Served {
    /// Where everything stands.
    pub state: Arc<State>,
    /// Copies of what passes.
    pub tap: broadcast::Sender<Arc<Chunk>>,
    /// The metrics.
    pub metrics: PrometheusHandle,
    /// What clients must send.
    pub token: Option<Secret>,
}

/// Binds the configured address; `None` if there is none.
pub async fn bind(http: &Http) -> Result<Option<TcpListener>, BindError> {
    let Some(listen) = http.listen else { return Ok(None) };
    let listener = TcpListener::bind(listen).await.map_err(|cause| BindError { listen, cause })?;
    Ok(Some(listener))
}

/// Serves until `stop` is cancelled.
pub async fn serve(listener: Option<TcpListener>, served: Served, stop: CancellationToken) {
    let upkeep = upkeep(served.clone());
    let serving = async {
        let Some(listener) = listener else { return std::future::pending().await };
        if let Ok(address) = listener.local_addr() {
            info!(%address, "the HTTP side listens");
        }
        if let Err(error) = axum::serve(listener, routes(served)).await {
            warn!(%error, "the HTTP side has ended");
        }
    };
    tokio::select! {
        () = upkeep => {}
        () = serving => {}
        () = stop.cancelled() => {}
    }
}

fn routes(served: Served) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/api/v1/status", get(status))
        .with_state(served)
}

async fn upkeep(served: Served) {
    let mut ticks = interval(UPKEEP);
    loop {
        ticks.tick().await;
        served.state.refresh();
        served.metrics.run_upkeep();
    }
}

async fn metrics(Extract(served): Extract<Served>) -> impl IntoResponse {
    served.state.refresh();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], served.metrics.render())
}

async fn readyz(Extract(served): Extract<Served>) -> impl IntoResponse {
    match served.state.is_ready() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready, see /api/v1/status\n"),
    }
}

async fn status(Extract(served): Extract<Served>) -> Json<Status> {
    Json(served.state.status())
}
