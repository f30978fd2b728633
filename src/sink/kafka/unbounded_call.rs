//! A call of librdkafka that may not return.
//!
//! `rd_kafka_send_offsets_to_transaction` does not keep to its timeout. If the coordinator of the
//! group leaves at the wrong moment, it may wait for as long as no other broker comes or goes
//! (issues 5456 and 5511 of librdkafka). So the call has a thread of its own, and its caller goes
//! on without it after a time. It is still waited for when it is dropped: the engine drops clients
//! on a thread that may wait, and leaves few of those behind.

use std::convert::Infallible;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// The call that is under way, if there is one.
#[derive(Default)]
pub(super) struct UnboundedCall {
    /// Closed when it has returned.
    running: Option<Receiver<Infallible>>,
}

impl UnboundedCall {
    /// Makes the call and waits for its result, for so long at the most.
    pub(super) async fn make(
        &mut self,
        limit: Duration,
        call: impl FnOnce() -> KafkaResult<()> + Send + 'static,
    ) -> KafkaResult<()> {
        let (runs, running) = channel();
        self.running = Some(running);
        let returned = spawn_blocking(move || {
            // Dropped once the call and all that it holds are gone.
            let _runs = runs;
            call()
        });
        match timeout(limit, returned).await {
            Ok(Ok(result)) => result,
            // It panicked.
            Ok(Err(_)) => Err(KafkaError::Canceled),
            Err(_) => Err(KafkaError::Global(Code::OperationTimedOut)),
        }
    }

    /// Waits until it has returned, however long that takes. Blocks.
    pub(super) fn wait(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.recv();
        }
    }
}

impl Drop for UnboundedCall {
    fn drop(&mut self) {
        self.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_does_not_return_is_waited_for_no_longer_than_wanted() {
        let mut call = UnboundedCall::default();
        call.make(Duration::from_mins(2), || Ok(())).await.unwrap();
        call.wait();

        let (answer, asked) = channel::<()>();
        let held = std::sync::Arc::new(());
        let holds = std::sync::Arc::clone(&held);
        let hangs = move || {
            let _ = asked.recv();
            drop(holds);
            Ok(())
        };
        let failed = call.make(Duration::from_millis(20), hangs).await.unwrap_err();
        assert_eq!(failed, KafkaError::Global(Code::OperationTimedOut));
        let dropping = spawn_blocking(move || drop(call));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!dropping.is_finished());
        drop(answer);
        timeout(Duration::from_mins(2), dropping).await.unwrap().unwrap();
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }
}
