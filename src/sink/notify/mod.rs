//! Notifications that gather: several events in one message.
//!
//! A sink that gathers puts each event into a [`Digests`] instead of sending it. It is
//! [due](crate::sink::contract::Sink::due) when a digest is. [`digest`] decides which events are in
//! which digest, [`file`] keeps them until then, and [`message`] is the text of a digest.

pub(super) mod digest;
mod file;
pub(super) mod message;
