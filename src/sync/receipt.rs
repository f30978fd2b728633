//! Receipts: how a source that can wait learns that its events are safe.
//!
//! Events are safe when every sink that wants them has stored them or has them on disk. The source
//! makes a receipt and hands its claims on with the frames; each sink's share holds a claim. A
//! claim that is honoured says "kept"; one that is dropped without, because a queue was full or the
//! daemon stopped, says "not kept". The source hears once, when the last claim is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;

/// Tells a source what became of its events.
pub(crate) type Receipt = oneshot::Receiver<bool>;

#[derive(Debug)]
struct Pending {
    kept: AtomicBool,
    /// Taken in `drop` only.
    answer: Option<oneshot::Sender<bool>>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            // The source may no longer care.
            let _ = answer.send(self.kept.load(Ordering::Acquire));
        }
    }
}

/// One party's part in keeping events safe. A clone is another party's.
#[derive(Debug)]
pub struct Claim {
    pending: Arc<Pending>,
    honoured: bool,
}

impl Claim {
    /// A receipt, and the first claim of it. It answers `true` if every claim was honoured.
    pub(crate) fn new() -> (Claim, Receipt) {
        let (answer, receipt) = oneshot::channel();
        let pending = Pending { kept: AtomicBool::new(true), answer: Some(answer) };
        (Claim { pending: Arc::new(pending), honoured: false }, receipt)
    }

    /// This party has kept the events, or does not want them.
    pub(crate) fn honour(mut self) {
        self.honoured = true;
    }
}

impl Clone for Claim {
    fn clone(&self) -> Self {
        Claim { pending: Arc::clone(&self.pending), honoured: false }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.honoured {
            self.pending.kept.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::sync::receipt::*;

    #[test]
    fn a_receipt_comes_with_the_last_claim() {
        let (claim, mut receipt) = Claim::new();
        let other = claim.clone();
        claim.honour();
        assert!(receipt.try_recv().is_err());
        other.honour();
        assert_eq!(receipt.try_recv(), Ok(true));
    }

    #[test]
    fn one_claim_that_is_dropped_spoils_the_receipt() {
        let (claim, mut receipt) = Claim::new();
        drop(claim.clone());
        claim.honour();
        assert_eq!(receipt.try_recv(), Ok(false));
    }
}
