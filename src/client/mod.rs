//! How any store is reached.

pub(crate) mod backoff;
pub(crate) mod kafka;
pub(crate) mod stream;
pub(crate) mod tls;
