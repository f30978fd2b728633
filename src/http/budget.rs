//! Memory for answers that can be long: one budget for all clients together.
//!
//! An answer takes room for the part of it that is held at a time, and the room is free again once
//! the client has taken it, or is gone.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Bytes that are held of all answers together. A single thing that is longer is served alone.
const TOGETHER: usize = 64 << 20;

/// How long to wait for room.
const WAIT: Duration = Duration::from_secs(2);

/// The bytes of a permit; a semaphore counts no further than 32 bits at a time.
const KIB: usize = 1 << 10;

#[derive(Clone)]
pub(super) struct Budget(Arc<Semaphore>);

/// The right to hold some of an answer.
pub(super) struct Room(#[allow(dead_code)] OwnedSemaphorePermit); // which is given back when dropped

impl Default for Budget {
    fn default() -> Self {
        Budget(Arc::new(Semaphore::new(TOGETHER / KIB)))
    }
}

impl Budget {
    /// Room for so many bytes; `None` if there is none for a while.
    pub(super) async fn room(&self, bytes: usize) -> Option<Room> {
        let permits = u32::try_from(bytes.min(TOGETHER).div_ceil(KIB)).unwrap_or(u32::MAX);
        let permit = timeout(WAIT, Arc::clone(&self.0).acquire_many_owned(permits)).await;
        permit.ok()?.ok().map(Room)
    }
}

/// Bytes of an answer, with the room that they take.
pub(super) fn held(bytes: Vec<u8>, room: Room) -> Bytes {
    Bytes::from_owner(Held { bytes, _room: room })
}

struct Held {
    bytes: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn invariant_6_answers_share_one_budget() {
        let budget = Budget::default();
        let half = budget.room(TOGETHER / 2).await.unwrap();
        let bytes = held(vec![0; 10], budget.room(TOGETHER / 2).await.unwrap());
        assert!(budget.room(1).await.is_none());
        let copy = bytes.clone();
        drop(bytes);
        assert!(budget.room(1).await.is_none());
        drop(copy);
        drop(half);
        assert!(budget.room(10 * TOGETHER).await.is_some());
    }
}
