//! How any store is reached.

pub mod backoff;
pub mod kafka;
pub mod tls;
