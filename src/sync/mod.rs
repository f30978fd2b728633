//! Waking one another, and knowing when something is safe.

pub mod bell;
pub(crate) mod receipt;
