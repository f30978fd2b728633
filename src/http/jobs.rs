//! `GET /api/v1/jobs` and `GET /api/v1/jobs/{jid}`: the job cache. The stores that are named to
//! answer are asked for a job that it does not know.
//!
//! Parameters of the list are `function` (a glob), `not_function` (the same, any number of times),
//! `minion`, `user`, `outcome` (`ok`, `failed`, `missing`), `since` and `until` (RFC 3339),
//! `find_job=true`, `limit`, and `cursor`. `cursor` is the `next` of the page before.
//!
//! An answer is whole before its first byte is sent; a long one is in a file without a name. So a
//! client that reads slowly holds neither memory nor the database.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::{Instant, timeout, timeout_at};

use super::questions::Questions;
use super::site::Site;
use crate::error::chain;
use crate::jobs::asker::{Asker, Waiting};
use crate::jobs::listing::{JobOutcome, JobSelection, PAGE};
use crate::jobs::spool::{SpoolFile, Spooled};
use crate::jobs::{Jobs, JobsError};

/// The answer for a job that nobody knows.
const NO_JOB: &str = "there is no such job\n";

/// The time in which an answer has to be found: less than the commands wait for it.
const LOOKING: Duration = Duration::from_secs(30);

/// The bytes of an answer that may be in memory, and of a part of a longer one.
const PART: usize = 64 << 10;

/// The time that an answer may take as a whole, however slowly its client reads.
const WHOLE: Duration = Duration::from_mins(5);

pub(super) async fn list(
    Extract(site): Extract<Site>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response {
    let selection = match selection(query) {
        Ok(selection) => selection,
        Err(message) => return (StatusCode::BAD_REQUEST, format!("{message}\n")).into_response(),
    };
    let jobs = site.served.jobs;
    answer(site.questions, move |waiting| jobs.answer_page(&selection, PART, waiting).map(Some))
        .await
}

pub(super) async fn show(Extract(site): Extract<Site>, Path(jid): Path<String>) -> Response {
    let jobs = site.served.jobs;
    let is_alone = jobs.stores().is_empty();
    let stored = async || show_stored(&site.questions, jobs.clone(), &jid).await;
    let mut found = None;
    // The job cache may have forgotten such a job, and the stores know more of it.
    if !is_alone && jobs.began_before_keep(&jid) {
        let stored = stored().await;
        if stored.status() == StatusCode::OK {
            return stored;
        }
        found = Some(stored);
    }
    let (cache, sought) = (jobs.clone(), jid.clone());
    let known = answer(Arc::clone(&site.questions), move |waiting| {
        match cache.answer_job(&sought, PART, waiting) {
            // Others are asked.
            Err(JobsError::Off) if !is_alone => Ok(None),
            known => known,
        }
    });
    let known = known.await;
    if is_alone || known.status() == StatusCode::OK {
        return known;
    }
    let found = match found {
        Some(found) => found,
        None => stored().await,
    };
    // The job cache's answer holds if nobody knows more.
    if found.status() == StatusCode::NOT_FOUND { known } else { found }
}

/// Shows a job as the stores have it.
async fn show_stored(questions: &Arc<Questions>, jobs: Jobs, jid: &str) -> Response {
    match jobs.find_stored(jid, PART).await {
        Ok(Some(job)) => {
            let show = move |_: &Waiting| jobs.show_stored(job, PART).map(Some);
            answer(Arc::clone(questions), show).await
        }
        Ok(None) => (StatusCode::NOT_FOUND, NO_JOB).into_response(),
        Err(error) => unavailable(&error),
    }
}

/// Asks in turn, while the client is there, and sends the answer.
async fn answer(
    questions: Arc<Questions>,
    ask: impl FnOnce(&Waiting) -> Result<Option<Spooled>, JobsError> + Send + 'static,
) -> Response {
    // It is dropped with this future, which ends when the client leaves.
    let asker = Asker::default();
    let waiting = asker.waiting();
    let Some(asking) = questions.ask(move || ask(&waiting)).await else {
        return later("other questions about jobs are being answered; try again in a moment\n");
    };
    let Ok(asked) = timeout(LOOKING, asking).await else {
        return later("looking for the answer took too long; ask for less at a time\n");
    };
    drop(asker);
    match asked {
        Ok(Ok(Some(Spooled::Memory(bytes)))) => sent(bytes.len() as u64, bytes.into()),
        Ok(Ok(Some(Spooled::File(file)))) => sent(file.length(), parts_of(file)),
        Ok(Ok(None)) => (StatusCode::NOT_FOUND, NO_JOB).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(error) => broken(&error),
    }
}

/// An answer of this length, so that a cut one does not pass for a whole one.
fn sent(length: u64, body: Body) -> Response {
    let length = length.to_string();
    let head = [(header::CONTENT_TYPE, "application/json"), (header::CONTENT_LENGTH, &length)];
    (head, body).into_response()
}

/// Sends a long answer part by part. The file is gone when it is sent, when the client is gone, and
/// after [`WHOLE`].
fn parts_of(file: SpoolFile) -> Body {
    let (parts_in, parts) = mpsc::channel(1);
    let mut sending = JoinSet::new();
    sending.spawn(hand_on(file, parts_in, Instant::now() + WHOLE));
    Body::from_stream(stream::unfold((parts, sending), async |(mut parts, sending)| {
        let part = parts.recv().await?;
        Some((part, (parts, sending)))
    }))
}

async fn hand_on(mut file: SpoolFile, parts: mpsc::Sender<io::Result<Bytes>>, end: Instant) {
    let mut left = file.length();
    while left > 0 {
        let reading = spawn_blocking(move || {
            let mut part = vec![0; PART.min(usize::try_from(left).unwrap_or(PART))];
            file.file().read_exact(&mut part).map(|()| (file, part))
        });
        let part;
        (file, part) = match reading.await.map_err(io::Error::other).flatten() {
            Ok(read) => read,
            Err(error) => {
                // Nobody is there to hear it, or time is up: the answer is cut all the same.
                let _ = timeout_at(end, parts.send(Err(error))).await;
                return;
            }
        };
        left -= part.len() as u64;
        let sent = timeout_at(end, parts.send(Ok(Bytes::from(part)))).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

fn later(message: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], message).into_response()
}

fn failed(error: &JobsError) -> Response {
    match error {
        JobsError::Off => (StatusCode::NOT_FOUND, format!("{error}\n")).into_response(),
        JobsError::Malformed(_) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
        error => unavailable(error),
    }
}

fn unavailable(error: &(dyn std::error::Error + 'static)) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", chain(error))).into_response()
}

fn broken(error: &JoinError) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

pub(super) fn selection(query: Vec<(String, String)>) -> Result<JobSelection, String> {
    let mut selection = JobSelection::default();
    for (name, value) in query {
        let time = || value.parse().map_err(|error| format!("`{name}`: {error}"));
        match name.as_str() {
            "function" => selection.function = Some(value),
            "not_function" => selection.not_function.push(value),
            "minion" => selection.minion = Some(value),
            "user" => selection.user = Some(value),
            "outcome" => {
                let named = JobOutcome::named(&value);
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
                    "the parameter `{name}` is not known; there are function, not_function, \
                     minion, user, outcome, since, until, find_job, limit and cursor"
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
        assert_eq!(read("outcome", "failed").unwrap().outcome, Some(JobOutcome::Failed));
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
