//! How any store is reached.

pub(crate) mod auth;
pub(crate) mod backoff;
pub(crate) mod http;
pub(crate) mod kafka;
pub(crate) mod servers;
pub(crate) mod stream;
pub(crate) mod tls;
