//! The client that waits for an answer of the job cache: a question ends once nobody waits for it.

use std::sync::{Arc, Weak};

/// The client that asked. It is dropped when the answer is of no use any more.
#[derive(Debug, Default)]
pub(crate) struct Asker(Arc<()>);

impl Asker {
    /// The side of it that goes along with the question.
    pub(crate) fn waiting(&self) -> Waiting {
        Waiting(Arc::downgrade(&self.0))
    }
}

/// Says if the client still waits.
#[derive(Debug, Clone)]
pub(crate) struct Waiting(Weak<()>);

impl Waiting {
    pub(super) fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}
