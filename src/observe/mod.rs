//! What can be seen of the daemon.

pub mod log_line;
pub mod log_repeats;
pub mod metrics;
pub mod process;
pub mod state;
pub mod threads;
