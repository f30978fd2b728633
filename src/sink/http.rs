//! What a failure over HTTP means to the engine.

use super::SinkError;
use crate::client::http::{self, Failed};

impl SinkError {
    /// The error in the engine's terms. `doing` is the operation, in words.
    pub(crate) fn over_http(doing: impl Into<String>, error: http::Error) -> Self {
        let (doing, after) = (doing.into(), error.after);
        match error.failed {
            Failed::Retry => SinkError::Retry { doing, cause: error.into(), after },
            Failed::Reconnect => SinkError::Reconnect { doing, cause: error.into() },
            Failed::Reject => {
                SinkError::Reject { doing, cause: error.into(), events: super::Rejected::Unknown }
            }
            Failed::Fatal => SinkError::Fatal { doing, cause: error.into() },
        }
    }
}
