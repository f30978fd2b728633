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

/// The time at which the events of [`batch`] were read, in microseconds since 1970: in 2026.
pub(crate) const READ: u64 = 1_795_304_177_000_001;

/// A batch of these events, read together off the bus `bus` of the master `m`.
pub(crate) fn batch(events: Vec<Event>) -> Batch {
    batch_read(READ, Authority::Bus, events)
}

/// The same, read at this time, in microseconds since 1970, off the bus or told by the master.
pub(crate) fn batch_read(read: u64, authority: Authority, events: Vec<Event>) -> Batch {
    let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
    let chunk = Chunk::new(origin, read, events).vouched_for_by(authority);
    Batch::new(1, 0, vec![Share::all(Arc::new(chunk))])
}

/// The entry of an event that was read off that bus.
pub(crate) fn entry(event: &Event) -> Entry<'_> {
    Entry::of(event, Authority::Bus)
}
