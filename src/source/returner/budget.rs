//! How many bytes of requests may be there at a time: of a client, and of all.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// The unit in which bytes are counted.
const UNIT: usize = 1 << 10;

/// The bytes that all clients may have under way, and of these a single one. A single message may
/// be larger than either.
const ALL: usize = 64 << 20;
const EACH: usize = 32 << 20;

/// The bytes that one client, and all of them, may still take.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    all: Arc<Semaphore>,
    each: Arc<Semaphore>,
    most: usize,
}

/// Bytes that are taken. They are given back when it is dropped.
#[derive(Debug)]
pub(in crate::source) struct Held {
    all: OwnedSemaphorePermit,
    each: OwnedSemaphorePermit,
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

impl Budget {
    pub(super) fn new(max_frame: usize) -> Self {
        let semaphore = |bytes: usize| {
            let permits = bytes.max(max_frame).div_ceil(UNIT) + 1;
            Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)))
        };
        Budget { all: semaphore(ALL), each: semaphore(EACH), most: EACH.max(max_frame) }
    }

    /// That of another client.
    pub(super) fn of_client(&self) -> Self {
        let each = Arc::new(Semaphore::new(self.most.div_ceil(UNIT) + 1));
        Budget { each, ..self.clone() }
    }

    /// Takes so many bytes if they are to be had now.
    pub(super) fn try_take(&self, bytes: usize) -> Result<Held, TryAcquireError> {
        let each = Arc::clone(&self.each).try_acquire_many_owned(units(bytes))?;
        let all = Arc::clone(&self.all).try_acquire_many_owned(units(bytes))?;
        Ok(Held { all, each })
    }

    /// Waits until so many bytes are held.
    pub(super) async fn grow(
        &self,
        held: &mut Option<Held>,
        bytes: usize,
    ) -> Result<(), AcquireError> {
        let have = held.as_ref().map_or(0, |held| held.all.num_permits());
        let more = units(bytes).saturating_sub(u32::try_from(have).unwrap_or(u32::MAX));
        if more == 0 {
            return Ok(());
        }
        let each = Arc::clone(&self.each).acquire_many_owned(more).await?;
        let all = Arc::clone(&self.all).acquire_many_owned(more).await?;
        match held {
            Some(held) => {
                held.all.merge(all);
                held.each.merge(each);
            }
            None => *held = Some(Held { all, each }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_client_leaves_room_for_the_others() {
        let first = Budget::new(1 << 20);
        let second = first.of_client();
        let mut held = Vec::new();
        while let Ok(more) = first.try_take(1 << 20) {
            held.push(more);
        }
        assert_eq!(held.len(), 32);
        let mut grown = None;
        second.grow(&mut grown, 1 << 20).await.unwrap();
        second.grow(&mut grown, 8 << 20).await.unwrap();
        assert_eq!(grown.unwrap().all.num_permits(), 8 << 10);
        held.clear();
        first.try_take(32 << 20).unwrap();
    }

    #[tokio::test]
    async fn a_message_that_is_larger_than_all_of_it_has_room_alone() {
        let budget = Budget::new(ALL * 2);
        let mut held = None;
        budget.of_client().grow(&mut held, ALL * 2 + 4).await.unwrap();
        assert!(budget.try_take(1 << 20).is_err());
    }
}
