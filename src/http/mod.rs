//! The HTTP side: `/metrics`, `/healthz`, `/readyz`, `/api/v1/…`, and a page for people.
//!
//! It listens at two places ([`listen`]): an address for scrapers and browsers, and a unix socket
//! for the commands. [`authorize`] has the rights of clients.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State as Extract};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use futures_util::future::join_all;
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

use self::authorize::{AccessPolicy, authorize};
use self::budget::Budget;
use self::connection_slots::{Answering, Slot};
use self::scrapes::Answer;
use self::site::{Reached, Site};
use crate::config::http::Http;
use crate::observe::process::Process;
use crate::observe::state::Status;

pub(crate) mod authorize;
mod budget;
mod connection_slots;
mod connections;
mod events;
mod jobs;
mod listen;
mod page;
pub(crate) mod place;
mod queries;
mod questions;
mod scrapes;
mod site;
mod spill;
pub(crate) mod token;

pub(crate) use connections::News;
pub(crate) use listen::{Bound, Listeners, bind, open};
pub use queries::{QUERIES, read_query};
pub(crate) use site::Served;

/// The interval at which histograms are compacted, also when nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Serves until `stop` is cancelled.
pub(crate) async fn serve(
    http: &Http,
    listeners: Listeners,
    served: Served,
    told: News,
    stop: CancellationToken,
) {
    let Listeners { open, token, listen, socket } = listeners;
    let site = Site {
        policy: Arc::new(AccessPolicy::new(http, &served.state_dir, token, listen)),
        reached: Reached { listen, socket, tls: http.tls.is_some() },
        served,
        process: Arc::new(Process::new()),
        streams: Arc::new(Semaphore::new(events::STREAMS)),
        scrapes: Arc::default(),
        questions: Arc::default(),
        budget: Budget::default(),
        stop: stop.clone(),
    };
    listen::announce(&open);
    let upkeep = stop.run_until_cancelled(upkeep(&site));
    let routes = routes(site.clone());
    let state = &site.served.state;
    let serving = open.into_iter().map(|listener| {
        let (routes, state) = (routes.clone(), Arc::clone(state));
        connections::serve(listener, routes, state, told.clone(), stop.clone())
    });
    tokio::join!(upkeep, join_all(serving));
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
        .layer(from_fn_with_state(Arc::clone(&site.policy), authorize))
        .layer(from_fn(dress))
        .with_state(site)
}

/// Nothing is loaded from elsewhere, even if the error of a store had markup that got through.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; \
                      base-uri 'none'; form-action 'none'";

/// Headers of every answer: no other client and no other page may have it.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
];

/// Notes that an answer is being made until it is taken, and puts the headers of all answers on it.
async fn dress(request: Request, next: Next) -> Response {
    let answering = request.extensions().get::<Slot>().map(Slot::begin);
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.map(|body| Body::new(Taken { body, _answering: answering }))
}

/// A body that says when it is taken.
struct Taken {
    body: Body,
    _answering: Option<Answering>,
}

impl HttpBody for Taken {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn upkeep(site: &Site) {
    let mut ticks = interval(UPKEEP);
    loop {
        ticks.tick().await;
        site.refresh();
        site.served.metrics.run_upkeep();
    }
}

async fn page(Extract(site): Extract<Site>) -> impl IntoResponse {
    Html(page::page(&site.served.state.status()))
}

async fn metrics(Extract(site): Extract<Site>, Extension(slot): Extension<Slot>) -> Response {
    let make = || {
        site.refresh();
        let mut text = crate::observe::metrics::render(&site.served.metrics);
        site.served.estate.render(&mut text);
        text
    };
    let asked = Instant::now();
    loop {
        match site.scrapes.answer(asked, Instant::now(), slot.seen(), make) {
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

/// The answer of `/api/v1/status`.
#[derive(Serialize)]
struct StatusAnswer {
    #[serde(flatten)]
    status: Status,
    http: Reached,
}

async fn status(Extract(site): Extract<Site>) -> Json<StatusAnswer> {
    Json(StatusAnswer { status: site.served.state.status(), http: site.reached })
}
