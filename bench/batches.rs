//! Shares of a chunk, as the dispatcher makes them.

use std::sync::Arc;

use bytes::Bytes;
use saltern::event::chunk::{Chunk, Share};
use saltern::event::{Event, Origin};

use crate::traffic;

/// Events of a chunk: what a read of 256 KiB brings of 3 KB each.
pub(crate) const EVENTS: usize = 80;

pub(crate) fn origin() -> Arc<Origin> {
    Arc::new(Origin { source: "bus".to_owned(), master_id: "master".to_owned() })
}

/// Frames of a chunk, made of these bodies again and again.
pub(crate) fn frames(bodies: &[Vec<u8>]) -> Vec<Bytes> {
    let bodies = bodies.iter().cycle().take(EVENTS);
    bodies.map(|body| Bytes::copy_from_slice(body)).collect()
}

/// A whole chunk of these bodies.
pub(crate) fn share(bodies: &[Vec<u8>]) -> Share {
    let events = frames(bodies).into_iter();
    let events = events.map(|body| Event::parse(body).expect("a body has a tag")).collect();
    Share::all(Arc::new(Chunk::new(origin(), 1_795_304_177_692_890, events)))
}

/// A chunk of returns of about `size` bytes, of minions that no other number has.
pub(crate) fn share_of(size: usize, number: usize) -> Share {
    let bodies: Result<Vec<_>, _> = (number..number + EVENTS)
        .map(|n| if size == 0 { traffic::ping(n) } else { traffic::highstate(n, size) })
        .collect();
    share(&bodies.expect("JSON is msgpack too"))
}
