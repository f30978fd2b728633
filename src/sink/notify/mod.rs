//! Notifications that gather: several events in one message.
//!
//! A sink that gathers puts each event into a [`Digests`] instead of sending it, and says that it
//! is [due](crate::sink::contract::Sink::due) when a digest is. [`message`] is what a digest says,
//! [`file`] where its events wait, and [`digest`] decides which events are in which digest.

pub(super) mod digest;
mod file;
pub(super) mod message;
