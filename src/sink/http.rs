//! The meaning of a failure over HTTP to the engine.

use std::time::Duration;

use super::contract::WriteError;
use crate::client::http::{self, Failed};

/// The finding that a request has no time for its `timeout` within a write, for `saltern check`.
pub(super) fn late(timeout: Duration, limit: Duration) -> Option<String> {
    (timeout >= limit).then(|| {
        format!(
            "a request can never take the whole `timeout`, because a write may take {limit:?} \
             (`retry.timeout`); write a shorter one, or a longer `retry.timeout`"
        )
    })
}

impl WriteError {
    /// The error in the engine's terms. `doing` is the operation, in words.
    pub(crate) fn over_http(doing: impl Into<String>, error: http::Error) -> Self {
        let (doing, after) = (doing.into(), error.after);
        match error.failed {
            Failed::Retry => WriteError::Retry { doing, cause: error.into(), after },
            Failed::Reconnect => WriteError::reconnect(doing, error),
            Failed::Reject => WriteError::reject(doing, error),
            Failed::Fatal => WriteError::fatal(doing, error),
        }
    }
}
