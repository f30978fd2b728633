//! Permits for long JSON, so that no event can break the bound on memory.
//!
//! A return of 60 MiB of control characters is 360 MiB of JSON. The line of such an event is never
//! kept ([`crate::event::LONG`]). Sinks that write a stream write it in pieces. The others need it
//! whole, and often a second time in a client of theirs. They wait for a permit before each
//! attempt. So all JSON that is made at one time is at most [`TOGETHER`], or one batch whose own is
//! longer. A batch has at most `batch.max_bytes` of frames, and six times as much JSON.
//!
//! A store that hangs keeps its permit until `retry.timeout` has passed, and gives it back while it
//! backs off. Only long events of other sinks wait meanwhile.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::event::Event;
use crate::event::batch::Batch;
use crate::sync::blocking;

/// Bytes of long JSON that may be made at one time in the process.
const TOGETHER: usize = 64 << 20;

/// The bytes of one permit; a semaphore counts no further than 32 bits at a time.
const KIB: usize = 1 << 10;

static FREE: Semaphore = Semaphore::const_new(TOGETHER / KIB);

/// The right to hold a batch's long JSON.
pub(crate) type LongJsonPermit = SemaphorePermit<'static>;

/// Some event of the batch may have long JSON. This is quick, and errs on the safe side.
pub(crate) fn may_need_permit(batch: &Batch) -> bool {
    !batch.events().all(Event::is_surely_short)
}

/// Waits until the long JSON of a batch may be made; `None` at once if it has none.
pub(crate) async fn permit(batch: &Batch) -> Option<LongJsonPermit> {
    if !may_need_permit(batch) {
        return None;
    }
    let bytes: usize = blocking(|| batch.events().filter_map(Event::long).sum());
    let permits = u32::try_from(bytes.min(TOGETHER).div_ceil(KIB)).unwrap_or(u32::MAX);
    if permits == 0 {
        return None;
    }
    // It is never closed.
    FREE.acquire_many(permits).await.ok()
}
