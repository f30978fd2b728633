//! The settings of the log.

use schemars::JsonSchema;
use serde::Deserialize;

/// The log.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// The least important line that is logged.
    pub(crate) level: LogLevel,
    /// The look of lines. Default: text on a terminal, `journald` where they go to the journal,
    /// JSON elsewhere.
    pub(crate) format: Option<LogFormat>,
}

/// The importance of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogLevel {
    /// Something is broken for good.
    Error,
    /// Something is broken for now.
    Warn,
    /// A change of state.
    #[default]
    Info,
    /// Details of single frames and requests.
    Debug,
}

/// The look of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
    /// For people, without time and with the priority in front, which journald takes off.
    Journald,
}
