//! Memory for live tails: some for each alone, and one budget for all long pieces.
//!
//! A tail may pause for minutes with a piece in its hands. No other waits for that: there is room
//! at once, or the piece passes by. A short piece needs nothing of the budget.

use std::sync::Arc;

use axum::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that each tail may hold without asking.
const EACH: usize = 1 << 20;

/// Bytes that are held of all longer pieces together. A single one that is longer is held alone.
const TOGETHER: usize = 32 << 20;

/// The bytes of a permit; a semaphore counts no further than 32 bits at a time.
const KIB: usize = 1 << 10;

#[derive(Clone)]
pub(super) struct Budget(Arc<Semaphore>);

/// The right to hold a piece; a short one takes nothing of the budget.
pub(super) struct Room(#[allow(dead_code)] Option<OwnedSemaphorePermit>); // given back when dropped

impl Default for Budget {
    fn default() -> Self {
        Budget(Arc::new(Semaphore::new(TOGETHER / KIB)))
    }
}

impl Budget {
    /// Room for so many bytes; `None` if there is none now.
    pub(super) fn room(&self, bytes: usize) -> Option<Room> {
        if bytes <= EACH {
            return Some(Room(None));
        }
        let permits = u32::try_from(bytes.min(TOGETHER).div_ceil(KIB)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.0).try_acquire_many_owned(permits);
        permit.ok().map(|permit| Room(Some(permit)))
    }
}

/// Bytes of a piece, with the room that they take.
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

    #[test]
    fn invariant_6_long_pieces_share_one_budget_and_keep_no_short_one_out() {
        let budget = Budget::default();
        let half = budget.room(TOGETHER / 2).unwrap();
        let bytes = held(vec![0; 10], budget.room(TOGETHER / 2).unwrap());
        assert!(budget.room(EACH + 1).is_none());
        assert!(budget.room(EACH).is_some());
        let copy = bytes.clone();
        drop(bytes);
        assert!(budget.room(EACH + 1).is_none());
        drop(copy);
        assert!(budget.room(EACH + 1).is_some());
        assert!(budget.room(10 * TOGETHER).is_none());
        drop(half);
        assert!(budget.room(10 * TOGETHER).is_some());
    }
}
