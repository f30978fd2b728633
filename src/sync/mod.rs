//! Waking one another, and knowing when something is safe.

pub mod bell;
pub(crate) mod lock;
pub(crate) mod receipt;

/// Runs work that blocks the thread, so that the other tasks of the thread go on elsewhere.
pub(crate) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
