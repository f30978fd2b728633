//! Threads whose end can be awaited.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::observe::threads::Threads;
use crate::pipeline::error::PipelineError;

/// A thread whose end can be awaited.
pub(crate) struct Thread<T> {
    name: String,
    handle: JoinHandle<()>,
    result: oneshot::Receiver<T>,
}

impl<T: Send + 'static> Thread<T> {
    pub(crate) fn start(
        name: &str,
        threads: &Arc<Threads>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, PipelineError> {
        let (result_in, result) = oneshot::channel();
        let (threads, own) = (Arc::clone(threads), name.to_owned());
        let work = move || {
            threads.join(&own);
            // Fails only when nobody waits.
            let _ = result_in.send(work());
        };
        let handle = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .map_err(|cause| PipelineError::Start { what: format!("thread `{name}`"), cause })?;
        Ok(Thread { name: name.to_owned(), handle, result })
    }

    pub(crate) async fn ended(self) -> Result<T, PipelineError> {
        let result = self.result.await;
        // The result was the last that the thread had to do, so this takes no time.
        let joined = self.handle.join();
        match (result, joined) {
            (Ok(result), Ok(())) => Ok(result),
            _ => Err(PipelineError::Panicked(self.name)),
        }
    }
}
