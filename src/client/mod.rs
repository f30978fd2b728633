//! How any store is reached.

pub(crate) mod backoff;
#[cfg(feature = "kafka")]
pub(crate) mod kafka;
pub(crate) mod tls;

/// Kinds that this build was made without, since their native libraries were not wanted.
pub(crate) const LEFT_OUT: &[&str] = if cfg!(feature = "kafka") { &[] } else { &["kafka"] };
