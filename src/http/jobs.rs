//! `GET /api/v1/jobs` and `GET /api/v1/jobs/{jid}`: the job cache.
//!
//! Of the list: `function` (a glob), `minion`, `user`, `outcome` (`ok`, `failed`, `missing`), `since`
//! and `until` (RFC 3339), `find_job=true`, `limit`, and `cursor`, which is the `next` of the page
//! before.
//!
//! Both are written row by row while the client reads, so that of a long answer little is held.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, timeout_at};

use super::Site;
use super::budget::{Budget, full};
use crate::jobs::JobsError;
use crate::jobs::listing::{Outcome, PAGE, Selection};
use crate::sink::chain;

pub(super) async fn list(
    Extract(site): Extract<Site>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response {
    let selection = match selection(query) {
        Ok(selection) => selection,
        Err(message) => return (StatusCode::BAD_REQUEST, format!("{message}\n")).into_response(),
    };
    let (jobs, measured) = (site.served.jobs, selection.clone());
    let longest = {
        let jobs = jobs.clone();
        spawn_blocking(move || jobs.longest_on_page(&measured)).await
    };
    stream(&site.budget, longest, move |take| jobs.write_page(&selection, take).map(|()| true))
        .await
}

pub(super) async fn show(Extract(site): Extract<Site>, Path(jid): Path<String>) -> Response {
    let (jobs, measured) = (site.served.jobs, jid.clone());
    let longest = {
        let jobs = jobs.clone();
        spawn_blocking(move || jobs.longest_of_job(&measured)).await
    };
    stream(&site.budget, longest, move |take| jobs.write_job(&jid, take)).await
}

/// The bytes that an answer holds besides its longest row: pieces on their way, and pages of the
/// database.
const BESIDE: usize = 3 << 20;

/// Pieces that may wait for the client.
const PIECES: usize = 2;

/// How long an answer may take as a whole, however slowly its client reads.
const WHOLE: Duration = Duration::from_mins(5);

/// Streams the output of `write`, which says if there was something to write.
/// It ends soon after the client is gone.
async fn stream(
    budget: &Budget,
    longest: Result<Result<u64, JobsError>, JoinError>,
    write: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> Result<bool, JobsError> + Send + 'static,
) -> Response {
    let longest = match longest {
        Ok(Ok(longest)) => usize::try_from(longest).unwrap_or(usize::MAX),
        Ok(Err(error)) => return failed(&error),
        Err(error) => return broken(&error),
    };
    let Some(room) = budget.room(longest.saturating_add(BESIDE)).await else { return full() };
    let (pieces_in, mut pieces) = mpsc::channel::<Bytes>(PIECES);
    let (runtime, end) = (Handle::current(), Instant::now() + WHOLE);
    let mut writing = spawn_blocking(move || {
        let mut is_cut = false;
        let written = write(&mut |piece| {
            let sending = pieces_in.send(Bytes::copy_from_slice(piece));
            let is_taken = runtime.block_on(timeout_at(end, sending));
            is_cut = !matches!(is_taken, Ok(Ok(())));
            !is_cut
        });
        drop(room);
        written.map(|is_there| (is_there, is_cut))
    });
    // An empty piece stands for nothing at all.
    let first = pieces.recv().await.filter(|piece| !piece.is_empty());
    let Some(first) = first else {
        pieces.close();
        return match (&mut writing).await {
            Ok(Ok(_)) => (StatusCode::NOT_FOUND, "there is no such job\n").into_response(),
            Ok(Err(error)) => failed(&error),
            Err(error) => broken(&error),
        };
    };
    let rest = stream::unfold(Some((pieces, writing)), async |state| {
        let (mut pieces, writing) = state?;
        if let Some(piece) = pieces.recv().await {
            return Some((Ok(piece), Some((pieces, writing))));
        }
        // An answer that was cut must not pass for a whole one.
        match writing.await {
            Ok(Ok((_, false))) => None,
            Ok(Ok((_, true))) => Some((Err(io::ErrorKind::TimedOut.into()), None)),
            Ok(Err(error)) => Some((Err(io::Error::other(error)), None)),
            Err(error) => Some((Err(io::Error::other(error)), None)),
        }
    });
    let whole = stream::once(std::future::ready(Ok::<_, io::Error>(first))).chain(rest);
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(whole)).into_response()
}

fn failed(error: &JobsError) -> Response {
    match error {
        JobsError::Off => (StatusCode::NOT_FOUND, format!("{error}\n")).into_response(),
        error => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", chain(error))).into_response(),
    }
}

fn broken(error: &JoinError) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

pub(super) fn selection(query: Vec<(String, String)>) -> Result<Selection, String> {
    let mut selection = Selection::default();
    for (name, value) in query {
        let time = || value.parse().map_err(|error| format!("`{name}`: {error}"));
        match name.as_str() {
            "function" => selection.function = Some(value),
            "minion" => selection.minion = Some(value),
            "user" => selection.user = Some(value),
            "outcome" => {
                let named = Outcome::named(&value);
                let outcome = named.ok_or_else(|| {
                    format!("`{value}` is no outcome; there are ok, failed and missing")
                });
                selection.outcome = Some(outcome?);
            }
            "since" => selection.since = Some(time()?),
            "until" => selection.until = Some(time()?),
            "find_job" => selection.find_job = value == "true",
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=PAGE.1).contains(limit));
                let limit = limit.ok_or_else(|| format!("`limit` is from 1 to {}", PAGE.1));
                selection.limit = Some(limit?);
            }
            "cursor" => selection.cursor = Some(value),
            _ => {
                return Err(format!(
                    "`{name}` is not known here; there are function, minion, user, outcome, since, \
                     until, find_job, limit and cursor"
                ));
            }
        }
    }
    Ok(selection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_is_wrong_says_so() {
        let read = |name: &str, value: &str| selection(vec![(name.into(), value.into())]);
        assert_eq!(read("outcome", "failed").unwrap().outcome, Some(Outcome::Failed));
        assert_eq!(read("limit", "7").unwrap().limit, Some(7));
        for (name, value, expected) in [
            ("outcome", "bad", "no outcome"),
            ("limit", "0", "from 1 to 1000"),
            ("limit", "1001", "from 1 to 1000"),
            ("since", "yesterday", "since"),
            ("fun", "x", "not known"),
        ] {
            let error = read(name, value).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
