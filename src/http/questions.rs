//! Questions about jobs, as many at a time as there are threads for them.
//!
//! No other threads ask the database: its memory comes from the C library, which keeps some for
//! each thread that ever had a long row.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tracing::warn;

/// Questions at a time. Each has a row of the database in memory, however long that is.
const AT_A_TIME: usize = 2;

/// The time that a question waits for its turn.
const TURN: Duration = Duration::from_secs(2);

/// The time that an idle thread stays.
const IDLE: Duration = Duration::from_hours(1);

pub(super) struct Questions {
    turns: Arc<Semaphore>,
    /// `None` if they could not be made; any other then does the work. It has nothing to drive.
    threads: Option<Runtime>,
}

impl Default for Questions {
    fn default() -> Self {
        let mut threads = Builder::new_current_thread();
        threads.max_blocking_threads(AT_A_TIME).thread_keep_alive(IDLE);
        let threads = threads.thread_name("questions").build();
        let threads = threads.inspect_err(|error| warn!(%error, "no threads for questions"));
        Questions { turns: Arc::new(Semaphore::new(AT_A_TIME)), threads: threads.ok() }
    }
}

impl Questions {
    /// Asks when it is time; `None` if that takes too long. The turn lasts for as long as the work,
    /// even if nobody waits for it any more.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce() -> T + Send + 'static,
    ) -> Option<JoinHandle<T>> {
        let turn = timeout(TURN, Arc::clone(&self.turns).acquire_owned()).await.ok()?.ok()?;
        let asking = move || {
            let answer = ask();
            drop(turn);
            answer
        };
        Some(match &self.threads {
            Some(threads) => threads.spawn_blocking(asking),
            None => spawn_blocking(asking),
        })
    }
}

impl Drop for Questions {
    fn drop(&mut self) {
        // Nobody waits for an answer any more, so none is looked for.
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_lasts_for_as_long_as_the_work() {
        let questions = Questions::default();
        let (ends, mut asked) =
            (0..AT_A_TIME).map(|_| mpsc::channel::<()>()).unzip::<_, _, Vec<_>, Vec<_>>();
        for end in asked.drain(..) {
            // Nobody waits for this one.
            drop(questions.ask(move || end.recv()).await.unwrap());
        }
        assert!(questions.ask(|| ()).await.is_none());
        drop(ends);
        while questions.ask(|| ()).await.is_none() {}
    }
}
