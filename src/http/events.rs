//! `GET /api/v1/events?tag=GLOB`: events as they pass, as JSON lines.
//!
//! `tag` may stand several times; an event whose tag matches any of the globs is sent. The stream
//! holds no more than one chunk, and a long one only within the budget of all tails. While the
//! client does not read, events pass by, and so do long chunks that find no room. The line
//! `{"missed": N}` then tells how many events of the bus it did not get. It ends when the client
//! goes away and when the daemon stops.

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio_util::sync::CancellationToken;

use super::budget::{Budget, held};
use super::connection_slots::Slot;
use super::site::Site;
use crate::event::filter::{Filter, FilterConfig};
use crate::event::line;
use crate::pipeline::dispatch::Tapped;

/// Streams at a time.
pub(super) const STREAMS: usize = 16;

pub(super) async fn events(
    Extract(site): Extract<Site>,
    Extension(connection): Extension<Slot>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response {
    let filter = match filter_of(query) {
        Ok(filter) => filter,
        Err(message) => return (StatusCode::BAD_REQUEST, message).into_response(),
    };
    let Ok(slot) = Arc::clone(&site.streams).try_acquire_owned() else {
        let message = format!("{STREAMS} clients read events already; try again later\n");
        return (StatusCode::SERVICE_UNAVAILABLE, message).into_response();
    };
    connection.pauses();
    let watch = Watch {
        tap: site.served.tap.subscribe(),
        filter,
        next: None,
        budget: site.budget.clone(),
        stop: site.stop.clone(),
        _slot: slot,
    };
    let lines = stream::unfold(watch, async |mut watch| {
        let lines = watch.lines().await?;
        Some((Ok::<_, Infallible>(lines), watch))
    });
    ([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response()
}

pub(super) fn filter_of(query: Vec<(String, String)>) -> Result<Filter, String> {
    let mut tags = Vec::new();
    for (name, value) in query {
        if name != "tag" {
            return Err(format!("the parameter `{name}` is not known; there is only `tag=GLOB`\n"));
        }
        tags.push(value);
    }
    let config = FilterConfig { tags, ..FilterConfig::default() };
    Filter::new(&config).map_err(|bad| format!("{}\n", bad.message))
}

/// One client's view of the tap.
struct Watch {
    tap: broadcast::Receiver<Tapped>,
    filter: Filter,
    /// The number of the next event, counted by the dispatcher; `None` before the first.
    next: Option<u64>,
    budget: Budget,
    stop: CancellationToken,
    _slot: OwnedSemaphorePermit,
}

impl Watch {
    /// The next lines; `None` when there will be no more.
    async fn lines(&mut self) -> Option<Bytes> {
        loop {
            let tapped = match self.stop.run_until_cancelled(self.tap.recv()).await? {
                Ok(tapped) => tapped,
                // The number of the next chunk tells how many events were missed.
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return None,
            };
            let lines = self.written(&tapped);
            // A chunk for which there is no room is missed too.
            let Some(room) = self.budget.room(lines.capacity()) else { continue };
            self.next = Some(tapped.before + tapped.chunk.events.len() as u64);
            if !lines.is_empty() {
                return Some(held(lines, room));
            }
        }
    }

    /// The lines of a chunk, and how many events were missed before it.
    fn written(&self, tapped: &Tapped) -> Vec<u8> {
        let mut out = Vec::new();
        let chunk = &tapped.chunk;
        let missed = tapped.before - self.next.unwrap_or(tapped.before).min(tapped.before);
        if missed > 0 {
            out.extend_from_slice(format!("{{\"missed\": {missed}}}\n").as_bytes());
        }
        for event in chunk.events.iter().filter(|event| self.filter.takes(event)) {
            line::write_json(event, &chunk.origin, chunk.received, &mut out);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::chunk::Chunk;
    use crate::event::{Event, Origin};
    use tokio::sync::Semaphore;

    fn tapped(before: u64, tags: &[&str]) -> Tapped {
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        let events = tags.iter().map(|tag| Event::new(tag, b"\x80")).collect();
        Tapped { before, chunk: Arc::new(Chunk::new(origin, 1, events)) }
    }

    fn tags(lines: &[u8]) -> Vec<String> {
        let lines = std::str::from_utf8(lines).unwrap().lines();
        lines
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                line["tag"].as_str().map_or_else(|| line.to_string(), str::to_owned)
            })
            .collect()
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_missed() {
        let (tap, receiver) = broadcast::channel(2);
        let slots = Arc::new(Semaphore::new(1));
        let stop = CancellationToken::new();
        let mut watch = Watch {
            tap: receiver,
            filter: filter_of(vec![("tag".into(), "a*".into())]).unwrap(),
            next: None,
            budget: Budget::default(),
            stop: stop.clone(),
            _slot: Arc::clone(&slots).try_acquire_owned().unwrap(),
        };
        tap.send(tapped(0, &["a1", "b1"])).unwrap();
        assert_eq!(tags(&watch.lines().await.unwrap()), ["a1"]);
        for chunk in
            [tapped(2, &["a2"]), tapped(3, &["a3", "b3"]), tapped(5, &["a4"]), tapped(6, &["b4"])]
        {
            tap.send(chunk).unwrap();
        }
        assert_eq!(tags(&watch.lines().await.unwrap()), ["{\"missed\":3}", "a4"]);
        stop.cancel();
        assert!(watch.lines().await.is_none());
        drop(watch);
        assert_eq!(slots.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_tail_that_pauses_with_a_long_piece_lets_others_have_all_that_is_short() {
        let (tap, _) = broadcast::channel(4);
        let (budget, stop) = (Budget::default(), CancellationToken::new());
        let slots = Arc::new(Semaphore::new(2));
        let watch = || Watch {
            tap: tap.subscribe(),
            filter: filter_of(Vec::new()).unwrap(),
            next: None,
            budget: budget.clone(),
            stop: stop.clone(),
            _slot: Arc::clone(&slots).try_acquire_owned().unwrap(),
        };
        let (mut paused, mut reading) = (watch(), watch());
        // Each is short, and all of them are not.
        let text = "x".repeat(60 << 10);
        let text = rmp_serde::to_vec(&serde_json::json!({ "data": text })).unwrap();
        let many = (0..350).map(|_| Event::new("many", &text)).collect();
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        tap.send(tapped(0, &["a"])).unwrap();
        let chunk = Arc::new(Chunk::new(origin, 1, many));
        tap.send(Tapped { before: 1, chunk }).unwrap();
        tap.send(tapped(351, &["b"])).unwrap();
        assert_eq!(tags(&paused.lines().await.unwrap()), ["a"]);
        let unread = paused.lines().await.unwrap();
        assert!(unread.len() > 20 << 20, "{}", unread.len());
        assert_eq!(tags(&reading.lines().await.unwrap()), ["a"]);
        assert_eq!(tags(&reading.lines().await.unwrap()), ["{\"missed\":350}", "b"]);
    }

    #[test]
    fn a_query_that_is_wrong_says_so() {
        let error = |name: &str, value: &str| filter_of(vec![(name.into(), value.into())]).err();
        assert!(error("tag", "salt/*").is_none());
        assert!(error("tag", "b[").unwrap().contains("`b[` is no glob"));
        assert!(error("tags", "x").unwrap().contains("`tags`"));
    }
}
