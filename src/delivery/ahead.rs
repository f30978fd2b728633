//! The batch behind the one that is being written, and the form that is made of it meanwhile.
//!
//! ```text
//! writes      │ batch 1       │ batch 2       │ batch 3
//! prepares    │ batch 2       │ batch 3       │ batch 4
//! ```
//!
//! A kind that encodes its batches gives the work to do so ([`Sink::preparer`]). It runs on a
//! thread that may block, while the kind waits for its store. These rules keep the rest as it is
//! without:
//!
//! - One batch is prepared ahead, of those that the writer holds anyway. So no more batches are
//!   begun, and they are settled in order.
//! - A form goes to the first attempt at its own whole batch, and to nothing else: to no part of
//!   it, and to no second attempt.
//! - An attempt that does not settle its batch ends the overlap. The form of the next batch is
//!   dropped before the failed one is tried again. So a store that is down holds no forms, and a
//!   form that has begun to go out comes again behind the batch before it.
//! - Forms count against a budget of the process by the bytes of their frames. A batch that does
//!   not fit is prepared by its own write. So is one with long JSON, which has to wait for a permit
//!   first ([`long_json`]).
//! - Nothing is prepared ahead while the process looks for the event that kills it
//!   ([`deaths`](super::deaths)).
//! - A panic is forgotten. The write of the batch makes the form itself, and panics where it is
//!   counted.

use std::pin::pin;

use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};

use crate::event::batch::Batch;
use crate::event::chunk::Share;
use crate::event::long_json;
use crate::sink::contract::Preparer;
#[cfg(doc)]
use crate::sink::contract::Sink;

/// Bytes of frames whose forms may be held ahead in the process.
const BUDGET: usize = 64 << 20;

/// The bytes of one permit; a semaphore counts no further than 32 bits at a time.
const KIB: usize = 1 << 10;

static FREE: Semaphore = Semaphore::const_new(BUDGET / KIB);

/// The batches of a writer.
pub(super) struct Ahead<P> {
    batches: mpsc::Receiver<Batch>,
    /// The next batch, if it was taken to be prepared.
    next: Option<Batch>,
    /// The work on its form.
    preparing: Option<Preparing<P>>,
    /// The batch that was taken last has not failed.
    is_going_well: bool,
}

struct Preparing<P> {
    task: JoinHandle<P>,
    permit: SemaphorePermit<'static>,
}

/// The form of a batch that was made ahead.
pub(super) struct Prepared<P> {
    /// The form.
    pub(super) form: P,
    /// Its part of the budget, to be held as long as the form is.
    pub(super) permit: SemaphorePermit<'static>,
}

/// The next thing that a writer does.
pub(super) enum Next {
    /// It delivers this.
    Batch(Batch),
    /// It calls the sink's `tick`.
    Due,
    /// There are no more batches.
    End,
}

impl<P: Send + 'static> Ahead<P> {
    pub(super) fn new(batches: mpsc::Receiver<Batch>) -> Self {
        Ahead { batches, next: None, preparing: None, is_going_well: false }
    }

    /// There is no batch, for now.
    pub(super) fn is_empty(&self) -> bool {
        self.next.is_none() && self.batches.is_empty()
    }

    /// No more batches come.
    pub(super) fn is_closed(&self) -> bool {
        self.batches.is_closed()
    }

    /// Waits for a batch, or until `due`. A due `tick` goes first, so that no stream of batches
    /// holds it up.
    pub(super) async fn next(&mut self, due: Option<Instant>) -> Next {
        let is_due = async {
            match due {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let next = async {
            match self.next.take() {
                Some(batch) => Some(batch),
                None => self.batches.recv().await,
            }
        };
        // Each takes a batch only if it ends first.
        let batch = tokio::select! {
            biased;
            () = is_due => return Next::Due,
            batch = next => batch,
        };
        self.is_going_well = true;
        batch.map_or(Next::End, Next::Batch)
    }

    /// The form of the batch that was taken last, if it was made.
    pub(super) async fn prepared(&mut self) -> Option<Prepared<P>> {
        let Preparing { task, permit } = self.preparing.take()?;
        Some(Prepared { form: task.await.ok()?, permit })
    }

    /// The batch that was taken last is not settled: drops the form of the next, and makes no more
    /// until another batch is taken.
    pub(super) async fn forget(&mut self) {
        self.is_going_well = false;
        drop(self.prepared().await);
    }

    /// Writes a batch and prepares the next meanwhile, if it comes.
    pub(super) async fn beside<T>(
        &mut self,
        write: impl Future<Output = T>,
        preparer: Option<Preparer<P>>,
    ) -> T {
        let mut write = pin!(write);
        let Some(preparer) = preparer.filter(|_| self.is_going_well) else { return write.await };
        // A batch that it takes stays in `self`, so nothing is lost if the write ends first.
        tokio::select! {
            biased;
            written = &mut write => return written,
            () = self.prepare(preparer) => {}
        }
        write.await
    }

    /// Begins to prepare the next batch, as soon as there is one.
    async fn prepare(&mut self, preparer: Preparer<P>) {
        if self.next.is_none() {
            self.next = self.batches.recv().await;
        }
        let Some(batch) = self.next.as_ref().filter(|_| self.preparing.is_none()) else { return };
        let Some(permit) = permit(batch) else { return };
        let batch = batch.clone();
        let task = spawn_blocking(move || preparer(&batch));
        self.preparing = Some(Preparing { task, permit });
    }
}

/// A part of the budget for the batch; `None` if there is too little now, or it is to be prepared
/// by its own write.
fn permit(batch: &Batch) -> Option<SemaphorePermit<'static>> {
    if long_json::may_need_permit(batch) {
        return None;
    }
    let bytes: usize = batch.shares().map(Share::bytes).sum();
    FREE.try_acquire_many(u32::try_from(bytes.div_ceil(KIB)).ok()?).ok()
}
