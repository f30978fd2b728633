//! Bounds the bytes of requests in memory: of one client, and of all clients of its kind.
//!
//! A long message takes all of its bytes at once and in turn: no two of them wait for bytes that
//! the other holds. Short messages have bytes of their own besides, so they never wait for long
//! ones. Masters and other clients have separate budgets.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// The unit in which bytes are counted.
const UNIT: usize = 1 << 10;

/// The longest message that is a short one.
pub(super) const SHORT: usize = 1 << 20;

/// The numbers of bytes that clients may have under way.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Bytes of all clients together, and of a single one. A single message may be larger than
    /// either.
    all: usize,
    each: usize,
    /// Bytes for short messages alone, besides those above: of all clients, and of a single one.
    short: usize,
    short_of_each: usize,
}

const MASTERS: Limits =
    Limits { all: 64 << 20, each: 32 << 20, short: 16 << 20, short_of_each: 4 << 20 };
const OTHERS: Limits =
    Limits { all: 32 << 20, each: 16 << 20, short: 8 << 20, short_of_each: 2 << 20 };

/// The bytes that one client, and all of them, may still take.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    limits: Limits,
    all: Pool,
    short: Pool,
}

/// Some of the bytes.
#[derive(Debug, Clone)]
struct Pool {
    all: Arc<Semaphore>,
    each: Arc<Semaphore>,
}

/// Bytes that are taken. They are given back when it is dropped.
#[derive(Debug)]
pub(in crate::source) struct Held {
    _all: OwnedSemaphorePermit,
    _each: OwnedSemaphorePermit,
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

fn semaphore(bytes: usize) -> Arc<Semaphore> {
    let permits = bytes.div_ceil(UNIT) + 1;
    Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)))
}

impl Pool {
    fn new(all: usize, each: usize) -> Self {
        Pool { all: semaphore(all), each: semaphore(each) }
    }

    fn try_take(&self, bytes: usize) -> Result<Held, TryAcquireError> {
        let each = Arc::clone(&self.each).try_acquire_many_owned(units(bytes))?;
        let all = Arc::clone(&self.all).try_acquire_many_owned(units(bytes))?;
        Ok(Held { _all: all, _each: each })
    }

    async fn take(&self, bytes: usize) -> Result<Held, AcquireError> {
        let each = Arc::clone(&self.each).acquire_many_owned(units(bytes)).await?;
        let all = Arc::clone(&self.all).acquire_many_owned(units(bytes)).await?;
        Ok(Held { _all: all, _each: each })
    }
}

impl Budget {
    /// The budget of masters, whose messages have at most `max_frame` bytes.
    pub(super) fn of_masters(max_frame: usize) -> Self {
        Budget::new(MASTERS, max_frame)
    }

    /// The budget of all other clients.
    pub(super) fn of_others(max_frame: usize) -> Self {
        Budget::new(OTHERS, max_frame)
    }

    fn new(limits: Limits, max_frame: usize) -> Self {
        let Limits { all, each, short, short_of_each } = limits;
        let (all, each) = (all.max(max_frame), each.max(max_frame));
        let limits = Limits { all, each, ..limits };
        Budget { limits, all: Pool::new(all, each), short: Pool::new(short, short_of_each) }
    }

    /// The budget of another client.
    pub(super) fn of_client(&self) -> Self {
        let of = |pool: &Pool, each| Pool { each: semaphore(each), ..pool.clone() };
        let (all, short) =
            (of(&self.all, self.limits.each), of(&self.short, self.limits.short_of_each));
        Budget { limits: self.limits, all, short }
    }

    /// Takes so many bytes if they are free now.
    pub(super) fn try_take(&self, bytes: usize) -> Result<Held, TryAcquireError> {
        match self.all.try_take(bytes) {
            Err(_) if bytes <= SHORT => self.short.try_take(bytes),
            taken => taken,
        }
    }

    /// Takes so many bytes, and waits for them if there is no other way.
    pub(super) async fn take(&self, bytes: usize) -> Result<Held, AcquireError> {
        match self.try_take(bytes) {
            Ok(held) => Ok(held),
            Err(_) if bytes <= SHORT => self.short.take(bytes).await,
            Err(_) => self.all.take(bytes).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// The default.
    const MAX_FRAME: usize = 64 << 20;

    #[tokio::test]
    async fn one_client_leaves_room_for_the_others() {
        let first = Budget::of_masters(1 << 20);
        let second = first.of_client();
        let mut held = Vec::new();
        while let Ok(more) = first.try_take(1 << 20) {
            held.push(more);
        }
        assert_eq!(held.len(), 32 + 4);
        second.take(1 << 20).await.unwrap();
        second.take(8 << 20).await.unwrap();
        held.clear();
        first.try_take(32 << 20).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn short_messages_do_not_wait_for_long_ones() {
        let first = Budget::of_masters(MAX_FRAME).of_client();
        let second = first.of_client();
        let _all = first.take(MAX_FRAME).await.unwrap();
        let short = second.try_take(100).unwrap();
        let longer = second.take(SHORT).await.unwrap();
        let waits = timeout(Duration::from_secs(100), second.take(SHORT + 1)).await;
        assert!(waits.is_err());
        // The client itself has some as well, and then no more.
        first.try_take(SHORT).unwrap();
        drop((short, longer));
        let mut held = Vec::new();
        while let Ok(more) = second.try_take(SHORT) {
            held.push(more);
        }
        assert_eq!(held.len(), 4);
        second.of_client().try_take(SHORT).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn long_messages_come_one_after_the_other() {
        let budget = Budget::of_masters(MAX_FRAME);
        let clients: Vec<_> = (0..5).map(|_| budget.of_client()).collect();
        let takes = clients.iter().map(|client| async {
            let held = client.take(40 << 20).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(held);
        });
        let all = futures_util::future::join_all(takes);
        timeout(Duration::from_secs(60), all).await.unwrap();
    }

    #[tokio::test]
    async fn a_message_that_is_larger_than_all_of_it_has_room_alone() {
        let budget = Budget::of_others(MAX_FRAME * 2);
        let _held = budget.of_client().take(MAX_FRAME * 2 + 4).await.unwrap();
        assert!(budget.try_take(2 << 20).is_err());
    }
}
