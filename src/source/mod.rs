//! Sources: where events come from, one file a kind.
//!
//! A source hands frames on through its [`FrameSender`](frame_sender::FrameSender) and reports what
//! happens to its connection through its [`Link`](link::Link). It knows nothing of sinks. To add
//! one, write a file that implements [`Source`](contract::Source), name it below, and add its line
//! to [`KINDS`](registry::KINDS).

mod backfill;
mod bind;
mod bus_address;
pub(crate) mod coalesce;
pub(crate) mod contract;
pub mod frame_sender;
pub mod framing;
#[cfg(feature = "kafka")]
mod kafka;
pub(crate) mod link;
mod local_cache;
mod outstanding;
pub mod prefixed;
pub mod registry;
mod replay;
mod returner;
pub mod returner_wire;
mod returner_zeromq;
mod salt_bus;
mod written;
mod zeromq;
