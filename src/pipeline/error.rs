//! The errors of a pipeline.

use thiserror::Error;

/// The reason why a pipeline could not start or did not do its work.
#[derive(Debug, Error)]
pub(crate) enum PipelineError {
    /// A thread or a runtime could not be started.
    #[error("cannot start the {what}")]
    Start {
        /// The thread or runtime.
        what: String,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
    /// A part of the machine panicked.
    #[error("the {0} failed; this is a bug in saltern")]
    Panicked(String),
    /// A sink does not let go of its queue.
    #[error("the sink {0} hangs and does not release its queue")]
    Hangs(String),
    /// A source cannot be read, or a sink cannot be written.
    #[error("{0}")]
    Failed(String),
}
