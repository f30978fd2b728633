//! `GET /api/v1/spill`: the events that wait for each sink. `DELETE
//! /api/v1/spill?sink=NAME&before=TIME` discards those of one sink that were read before a time.

use axum::extract::{Query, State as Extract};
use axum::http::StatusCode;
use axum::{Extension, Json};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::authorize::Asker;
use super::site::Site;
use crate::observe::log_repeats::AUDIT;
use crate::queue::inspect::{Inspected, QueueContents};

/// A sink that is just being changed does not answer and is left out.
pub(super) async fn list(Extract(site): Extract<Site>) -> Json<Vec<QueueContents>> {
    let sinks: Vec<_> = site.served.state.sinks().iter().map(|sink| sink.name.clone()).collect();
    Json(site.served.inspector.ask_all(&sinks).await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Discard {
    sink: String,
    before: String,
}

impl Discard {
    /// In microseconds since 1970.
    pub(super) fn time(&self) -> Result<u64, String> {
        let Ok(before) = self.before.parse::<Timestamp>() else {
            let message = "`before` is a time with its zone, such as 2026-11-21T23:00:00Z\n";
            return Err(message.to_owned());
        };
        Ok(u64::try_from(before.as_microsecond()).unwrap_or_default())
    }
}

/// The answer to a request to discard.
#[derive(Serialize)]
pub(super) struct Discarded {
    /// The number of events that are gone.
    discarded: u64,
}

pub(super) async fn discard(
    Extract(site): Extract<Site>,
    Extension(asker): Extension<Asker>,
    Query(asked): Query<Discard>,
) -> Result<Json<Discarded>, (StatusCode, String)> {
    let sink = &asked.sink;
    if !site.served.state.sinks().iter().any(|state| state.name == *sink) {
        return Err((StatusCode::NOT_FOUND, format!("there is no sink `{sink}`\n")));
    }
    let before = asked.time().map_err(|message| (StatusCode::BAD_REQUEST, message))?;
    let until = &asked.before;
    // This is logged first: the client may go away, and the code below is then never reached.
    warn!(target: AUDIT, %asker, sink, until, "events of a sink are discarded by request");
    match site.served.inspector.ask(sink, Some(before)).await {
        Some(Inspected { discarded, .. }) => {
            warn!(target: AUDIT, %asker, sink, until, discarded, "events of a sink were discarded");
            Ok(Json(Discarded { discarded }))
        }
        None => {
            warn!(target: AUDIT, %asker, sink, until, "the sink does not answer, nothing is discarded");
            let message = format!("the sink `{sink}` does not answer; try again\n");
            Err((StatusCode::SERVICE_UNAVAILABLE, message))
        }
    }
}
