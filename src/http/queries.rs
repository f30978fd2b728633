//! The query strings of the routes, read as the routes read them but without a socket, for the fuzz
//! targets.

use axum::extract::Query;
use axum::http::Uri;
use serde::de::DeserializeOwned;

use super::{events, jobs, spill};
use crate::jobs::listing::JobSelection;

/// The routes that have one.
pub const QUERIES: [&str; 3] = ["events", "jobs", "spill"];

/// Reads the query string of a route. For `jobs` it returns the selection. An error is the message
/// to the client.
pub fn read_query(route: &str, query: &str) -> Result<Option<JobSelection>, String> {
    match route {
        "events" => events::filter_of(pairs(query)?).map(|_filter| None),
        "jobs" => jobs::selection(pairs(query)?).map(Some),
        _ => pairs::<spill::Discard>(query)?.time().map(|_time| None),
    }
}

fn pairs<T: DeserializeOwned>(query: &str) -> Result<T, String> {
    let uri: Uri = format!("/?{query}").parse().map_err(|error| format!("{error}"))?;
    let Query(pairs) = Query::try_from_uri(&uri).map_err(|error| error.body_text())?;
    Ok(pairs)
}
