//! The events that a source has handed on and does not know to be safe yet. For sources that can
//! wait.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::source::contract::SourceError;
use crate::source::frame_sender::FrameSender;
use crate::sync::receipt::Receipt;

/// Bytes that may be read and not yet safe. Large enough that a sink's batch can fill.
const OUTSTANDING: usize = 16 << 20;

/// Frames that were handed on and are not known to be safe yet. A replay waits for them. So it is
/// never faster than the sinks' queues, and does not report success when events were lost.
#[derive(Default)]
pub(super) struct Outstanding {
    parts: VecDeque<Part>,
    bytes: usize,
    not_kept: usize,
}

/// Frames that were handed on together.
struct Part {
    receipt: Receipt,
    events: usize,
    bytes: usize,
}

impl Outstanding {
    /// Hands frames on once there is room; `false` when that is of no use any more.
    pub(super) async fn send(
        &mut self,
        sender: &FrameSender,
        bodies: Vec<Bytes>,
        stop: &CancellationToken,
    ) -> bool {
        let (events, bytes) = (bodies.len(), bodies.iter().map(Bytes::len).sum());
        if events == 0 {
            return true;
        }
        while self.bytes > OUTSTANDING {
            if stop.run_until_cancelled(self.settle()).await.is_none() {
                return false;
            }
        }
        let Some(receipt) = sender.send_for_receipt(bodies, Vec::new()).await else { return false };
        self.bytes += bytes;
        self.parts.push_back(Part { receipt, events, bytes });
        true
    }

    async fn settle(&mut self) {
        let Some(part) = self.parts.pop_front() else { return };
        self.bytes -= part.bytes;
        if !part.receipt.await.unwrap_or(false) {
            self.not_kept += part.events;
        }
    }

    /// Waits until everything is safe; an error if something was discarded.
    pub(super) async fn wait(&mut self, name: &str) -> Result<(), SourceError> {
        while !self.parts.is_empty() {
            self.settle().await;
        }
        if self.not_kept == 0 {
            return Ok(());
        }
        let cause = format!(
            "up to {} events were not kept by every sink that wants them; \
             saltern_sink_dropped_events_total says which sink and why",
            self.not_kept
        );
        Err(SourceError::new(format!("reading {name}"), cause))
    }
}
