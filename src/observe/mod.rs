//! The state of the daemon as others see it: metrics, status, log.

pub(crate) mod log_line;
pub(crate) mod log_repeats;
pub(crate) mod log_settings;
pub mod metrics;
pub(crate) mod process;
pub mod state;
pub(crate) mod threads;
