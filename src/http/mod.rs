//! The HTTP side: `/metrics`, `/healthz`, `/readyz`, `/api/v1/…`, and a page for people.
//!
//! Where a token is configured everything wants it but what probes and scrapers read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State as Extract};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::Http;
use crate::dispatch::Tapped;
use crate::estate::Estate;
use crate::jobs::Jobs;
use crate::process::Process;
use crate::spill_desk::Desks;
use crate::state::{State, Status};
use crate::units::Secret;
use scrapes::{Answer, Scrapes};

mod connections;
mod events;
mod jobs;
mod page;
mod queries;
mod scrapes;
mod spill;

pub use queries::{QUERIES, read_query};

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
    pub tap: broadcast::Sender<Tapped>,
    /// The job cache.
    pub jobs: Jobs,
    /// Where sinks are asked what waits for them.
    pub desks: Arc<Desks>,
    /// The metrics.
    pub metrics: PrometheusHandle,
    /// What is counted of the Salt estate.
    pub estate: Arc<Estate>,
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
    let site = Site {
        served,
        process: Arc::new(Process::new()),
        streams: Arc::new(Semaphore::new(events::STREAMS)),
        scrapes: Arc::default(),
        stop: stop.clone(),
    };
    let upkeep = stop.run_until_cancelled(upkeep(&site));
    let serving = async {
        let Some(listener) = listener else { return };
        if let Ok(address) = listener.local_addr() {
            info!(%address, "the HTTP side listens");
        }
        connections::serve(listener, routes(site.clone()), stop.clone()).await;
    };
    tokio::join!(upkeep, serving);
}

/// What the routes share.
#[derive(Clone)]
struct Site {
    served: Served,
    process: Arc<Process>,
    /// A permit for each client that reads events.
    streams: Arc<Semaphore>,
    scrapes: Arc<Scrapes>,
    stop: CancellationToken,
}

impl Site {
    fn refresh(&self) {
        self.served.state.refresh();
        self.process.refresh();
    }
}

fn routes(site: Site) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/api/v1/status", get(status))
        .route("/api/v1/events", get(events::events))
        .route("/api/v1/jobs", get(jobs::list))
        .route("/api/v1/jobs/{jid}", get(jobs::show))
        .route("/api/v1/spill", get(spill::list).delete(spill::discard))
        .fallback(async || (StatusCode::NOT_FOUND, "there is nothing here, see /\n"))
        .layer(from_fn_with_state(site.clone(), authorize))
        .with_state(site)
}

/// What is served without a token, for probes and scrapers.
const OPEN: &[&str] = &["/metrics", "/healthz", "/readyz"];

/// Lets a request through if it carries the token, where one is wanted.
async fn authorize(Extract(site): Extract<Site>, request: Request, next: Next) -> Response {
    let Some(token) = &site.served.token else { return next.run(request).await };
    let is_open = OPEN.contains(&request.uri().path());
    if is_open || bearer(request.headers()).is_some_and(|sent| is_same(sent, token.expose())) {
        return next.run(request).await;
    }
    let wanted = [(header::WWW_AUTHENTICATE, "Bearer realm=\"saltern\"")];
    let message = "send `Authorization: Bearer TOKEN` with the token of http.token\n";
    (StatusCode::UNAUTHORIZED, wanted, message).into_response()
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// Compares in a time that depends on the lengths alone, so that answers do not tell how much of a
/// guess was right.
fn is_same(sent: &[u8], token: &str) -> bool {
    let differences = sent.iter().zip(token.as_bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    sent.len() == token.len() && std::hint::black_box(differences) == 0
}

async fn upkeep(site: &Site) {
    let mut ticks = interval(UPKEEP);
    loop {
        ticks.tick().await;
        site.refresh();
        site.served.metrics.run_upkeep();
    }
}

/// Nothing from elsewhere, also should an error of a store ever hold markup that got through.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

async fn page(Extract(site): Extract<Site>) -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(page::page(&site.served.state.status())))
}

async fn metrics(Extract(site): Extract<Site>) -> Response {
    let make = || {
        site.refresh();
        let mut text = crate::metrics::render(&site.served.metrics);
        site.served.estate.render(&mut text);
        text
    };
    let asked = Instant::now();
    loop {
        match site.scrapes.answer(asked, Instant::now(), make) {
            Answer::Text(text) => {
                return ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
                    .into_response();
            }
            Answer::Later(wait) => sleep(wait).await,
            Answer::TooMany => {
                let message = "too many scrapers have not read their answers; try again later\n";
                return (StatusCode::SERVICE_UNAVAILABLE, message).into_response();
            }
        }
    }
}

async fn readyz(Extract(site): Extract<Site>) -> impl IntoResponse {
    let unready = site.served.state.unready();
    if unready.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let reasons = unready.join("\n");
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready, see /api/v1/status\n{reasons}\n"))
}

async fn status(Extract(site): Extract<Site>) -> Json<Status> {
    Json(site.served.state.status())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_the_token() {
        let headers = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            headers
        };
        for (value, expected) in [
            ("Bearer hunter2", true),
            ("bearer hunter2", true),
            ("Bearer hunter", false),
            ("Bearer hunter22", false),
            ("Bearer ", false),
            ("Basic hunter2", false),
            ("hunter2", false),
        ] {
            let headers = headers(value);
            let sent = bearer(&headers);
            assert_eq!(sent.is_some_and(|sent| is_same(sent, "hunter2")), expected, "{value}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
