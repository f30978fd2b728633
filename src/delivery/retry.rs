//! Retries of writes that failed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Span;

/// Retries of connects and writes that failed. There is no limit to their number unless
/// `give_up_after` sets one.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RetryConfig {
    /// The wait after the first failure; it doubles with each further one, with jitter.
    pub(crate) initial: Span,
    /// The longest wait.
    pub(crate) max: Span,
    /// The time that one connect or write may take before it is cut off and tried again over a new
    /// connection.
    pub(crate) timeout: Span,
    /// The time that a batch is tried before its events become dead letters. Default: for ever.
    pub(crate) give_up_after: Option<Span>,
}

impl RetryConfig {
    /// The retries of a store that keeps everything: for as long as it takes.
    pub(crate) const STORE: RetryConfig = RetryConfig {
        initial: Span::millis(500),
        max: Span::seconds(30),
        timeout: Span::seconds(60),
        give_up_after: None,
    };
}

impl Default for RetryConfig {
    fn default() -> Self {
        RetryConfig::STORE
    }
}
