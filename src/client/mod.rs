//! The connections to stores of any kind.

pub(crate) mod auth;
pub(crate) mod backoff;
pub(crate) mod http;
#[cfg(feature = "kafka")]
pub(crate) mod kafka;
pub(crate) mod owned_headers;
pub(crate) mod servers;
pub(crate) mod signature;
pub(crate) mod stream;
pub(crate) mod tls;

/// Kinds that this build leaves out, with their native libraries.
pub(crate) const LEFT_OUT: &[&str] = if cfg!(feature = "kafka") { &[] } else { &["kafka"] };
