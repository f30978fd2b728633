//! What can be seen of the daemon.

pub(crate) mod log_line;
pub(crate) mod log_repeats;
pub(crate) mod log_settings;
pub mod metrics;
pub(crate) mod process;
pub mod state;
pub(crate) mod threads;
