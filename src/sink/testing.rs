//! The batches and contexts that unit tests hand to a kind.

use std::sync::Arc;
use std::time::Duration;

use crate::event::batch::{Batch, Entry};
use crate::event::chunk::{Chunk, Share};
use crate::event::{Authority, Event, Origin};
use crate::sink::contract::{Context, Reopen};

/// The context of the only writer of a sink.
pub(crate) fn context() -> Context {
    Context {
        name: "test".into(),
        writer: 0,
        master_id: "m".into(),
        state_dir: "/nowhere".into(),
        limit: Duration::from_secs(60),
        reopen: Reopen::never(),
        jobs: None,
    }
}

/// A batch of these events, read together off the bus `bus` of the master `m`.
pub(crate) fn batch(events: Vec<Event>) -> Batch {
    let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
    let chunk = Chunk::new(origin, READ, events);
    Batch::new(1, 0, vec![Share::all(Arc::new(chunk))])
}

/// The entry of an event that was read off that bus.
pub(crate) fn entry(event: &Event) -> Entry<'_> {
    Entry::of(event, Authority::Bus)
}

/// The time at which the events were read, in microseconds since 1970: in 2026.
const READ: u64 = 1_795_304_177_692_890;
