//! The runtime that commands work on.

use crate::cli::output::Failure;

/// The runtime that sinks and the HTTP side run on.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    // With a single thread a client that blocks it would stop the clock for all.
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .thread_name("saltern")
        .build()
        .map_err(|error| Failure::Running(format!("cannot start the runtime: {error}")))
}
