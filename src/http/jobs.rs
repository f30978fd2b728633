//! `GET /api/v1/jobs` and `GET /api/v1/jobs/{jid}`: the job cache.
//!
//! Of the list: `function` (a glob), `minion`, `user`, `outcome` (`ok`, `failed`, `missing`), `since`
//! and `until` (RFC 3339), `find_job=true`, `limit`, and `cursor`, which is the `next` of the page
//! before.

use axum::extract::{Path, Query, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::task::spawn_blocking;

use super::Site;
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
    let jobs = site.served.jobs;
    answer(spawn_blocking(move || jobs.page(&selection).map(Some)).await)
}

pub(super) async fn show(Extract(site): Extract<Site>, Path(jid): Path<String>) -> Response {
    let jobs = site.served.jobs;
    answer(spawn_blocking(move || jobs.job(&jid)).await)
}

fn answer(found: Result<Result<Option<Vec<u8>>, JobsError>, tokio::task::JoinError>) -> Response {
    match found {
        Ok(Ok(Some(json))) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Ok(Ok(None)) => (StatusCode::NOT_FOUND, "there is no such job\n").into_response(),
        Ok(Err(error @ JobsError::Off)) => {
            (StatusCode::NOT_FOUND, format!("{error}\n")).into_response()
        }
        Ok(Err(error)) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", chain(&error))).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
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
