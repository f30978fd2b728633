//! Hands the events of a source on to the dispatcher.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use crossbeam_channel::TrySendError;
use tokio::time::{Instant, sleep};

use crate::event::{Authority, Event, EventId, Origin};
use crate::jobs::Jobs;
use crate::observe::state::{self, SourceState};
use crate::sync::bell::Sender;
use crate::sync::receipt::{Claim, Receipt};

/// The way by which something came into its source. A source may get the same event by several: by
/// another way it is a repeat, and by the same way it comes again for a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// It was read as an event.
    Read,
    /// Salt's master handed it to its job cache as a return.
    JobCacheReturns,
    /// The daemon made it of a master's call of its job cache.
    JobLoads,
}

/// Frames that a source read together.
#[derive(Debug)]
pub struct Frames {
    /// The source's state, where the dispatcher counts what it finds in the frames.
    pub state: Arc<SourceState>,
    /// The source and its master.
    pub origin: Arc<Origin>,
    /// The way by which they came into the source.
    pub via: Via,
    /// The authority that vouches for them.
    pub authority: Authority,
    /// The time when they were read, in microseconds since 1970.
    pub received: u64,
    /// Tag, empty line, payload, of each event.
    pub bodies: Vec<Bytes>,
    /// The ids that the events came with, in the order of the bodies; those behind the last came
    /// with none.
    pub ids: Vec<Option<EventId>>,
    /// The source waits at it until they are safe.
    pub claim: Option<Claim>,
}

/// The place where a source puts its frames.
#[derive(Debug, Clone)]
pub(crate) struct FrameSender {
    /// The source and its master.
    pub(crate) origin: Arc<Origin>,
    /// The way by which frames came into the source.
    pub(crate) via: Via,
    /// The authority that vouches for the frames.
    pub(crate) authority: Authority,
    /// The state of the source that metrics and pages show.
    pub(crate) state: Arc<SourceState>,
    /// To the dispatcher.
    pub(crate) frames: Sender<Frames>,
    /// The job cache, for sources that ask it or write to it.
    pub(crate) jobs: Jobs,
}

/// The time to wait for room in the dispatcher's channel before looking again.
const FULL_CHANNEL_WAIT: Duration = Duration::from_millis(1);

/// Frames of fewer bytes are copied into a block of their own. A single frame holds the whole block
/// that it was read into, 256 KiB for most sources; frames of more bytes are a fair part of it.
const FAIR: usize = 64 << 10;

/// The same frames in a block that has room for nothing else.
fn in_own_block(bodies: &[Bytes], bytes: usize) -> Vec<Bytes> {
    let mut block = BytesMut::with_capacity(bytes);
    for body in bodies {
        block.extend_from_slice(body);
    }
    let mut block = block.freeze();
    bodies.iter().map(|body| block.split_to(body.len())).collect()
}

impl FrameSender {
    /// Hands frames to the dispatcher; waits while its channel is full. Returns `false` when the
    /// dispatcher is gone and reading on is of no use.
    pub(crate) async fn send(&self, bodies: Vec<Bytes>) -> bool {
        bodies.is_empty() || self.hand_over(bodies, Vec::new(), None).await
    }

    /// Sends like [`FrameSender::send`], with the `ids` that the events came with. The receipt
    /// tells when the frames are safe, or that they are not.
    pub(crate) async fn send_for_receipt(
        &self,
        bodies: Vec<Bytes>,
        ids: Vec<Option<EventId>>,
    ) -> Option<Receipt> {
        let (claim, receipt) = Claim::new();
        self.hand_over(bodies, ids, Some(claim)).await.then_some(receipt)
    }

    /// Hands on an event that the daemon itself has made, not one that the source has read. Returns
    /// `false` as [`FrameSender::send`] does.
    pub(crate) async fn tell(&self, event: &Event) -> bool {
        self.put(vec![event.frame().clone()], Vec::new(), None).await
    }

    /// Tells like [`FrameSender::tell`]. The receipt tells when the event is safe, or that it is
    /// not.
    pub(crate) async fn tell_for_receipt(&self, event: &Event) -> Option<Receipt> {
        let (claim, receipt) = Claim::new();
        let told = self.put(vec![event.frame().clone()], Vec::new(), Some(claim)).await;
        told.then_some(receipt)
    }

    async fn hand_over(
        &self,
        bodies: Vec<Bytes>,
        ids: Vec<Option<EventId>>,
        claim: Option<Claim>,
    ) -> bool {
        self.state.events.add(bodies.len() as u64);
        self.state.bytes.add(bodies.iter().map(Bytes::len).sum::<usize>() as u64);
        self.put(bodies, ids, claim).await
    }

    async fn put(
        &self,
        bodies: Vec<Bytes>,
        ids: Vec<Option<EventId>>,
        claim: Option<Claim>,
    ) -> bool {
        let bytes = bodies.iter().map(Bytes::len).sum();
        let bodies = if bytes < FAIR { in_own_block(&bodies, bytes) } else { bodies };
        let (state, origin) = (Arc::clone(&self.state), Arc::clone(&self.origin));
        let (via, authority, received) = (self.via, self.authority, state::now());
        let mut frames = Frames { state, origin, via, authority, received, bodies, ids, claim };
        let mut stalled_since = None;
        loop {
            match self.frames.try_send(frames) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => frames = back,
                Err(TrySendError::Disconnected(_)) => return false,
            }
            stalled_since.get_or_insert_with(Instant::now);
            sleep(FULL_CHANNEL_WAIT).await;
        }
        if let Some(since) = stalled_since {
            self.state.stalled.add(since.elapsed());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::event::chunk::{Chunk, Share};
    use crate::queue::Queue;
    use crate::queue::config::{SpillConfig, SpillMode, WhenFull};
    use crate::source::frame_sender::*;
    use crate::sync::bell::{Bell, channel};
    use crate::units::ByteSize;

    /// A block of memory that knows when it is let go of.
    struct Block {
        bytes: Vec<u8>,
        _alive: Arc<()>,
    }

    impl AsRef<[u8]> for Block {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }

    /// The bus reads one or two events at a time into blocks of 256 KiB, and a sink wants one event
    /// of 64.
    #[tokio::test]
    async fn invariant_6_a_queue_of_few_events_holds_few_of_the_blocks_they_were_read_into() {
        const BLOCK: usize = 256 << 10;
        const EVENT: usize = BLOCK / 64;
        const BOUND: usize = 1 << 20;
        let spill = SpillConfig {
            mode: SpillMode::Memory,
            memory: Some(ByteSize(BOUND as u64)),
            when_full: WhenFull::DropNewest,
            ..SpillConfig::default()
        };
        let mut queue: Queue = Queue::new(1, spill, None);
        let state = Arc::new(SourceState::new("bus", "salt_bus", "m"));
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        let (frames, out) = channel(1, &Bell::default());
        let jobs = Jobs::new(std::path::Path::new("/nowhere"));
        let authority = Authority::Bus;
        let sender = FrameSender { origin, via: Via::Read, authority, state, frames, jobs };
        let alive = Arc::new(());
        while queue.take_losses().full == 0 {
            let mut bytes = vec![0xc0; BLOCK];
            for event in bytes.chunks_mut(EVENT) {
                event[..3].copy_from_slice(b"t\n\n");
            }
            let block = Bytes::from_owner(Block { bytes, _alive: Arc::clone(&alive) });
            let events = (0..64).map(|place| block.slice(place * EVENT..(place + 1) * EVENT));
            for (place, event) in events.enumerate() {
                assert!(sender.send(vec![event]).await);
                let Frames { origin, received, bodies, .. } = out.recv().unwrap();
                let events = bodies.into_iter().map(|body| Event::parse(body).unwrap()).collect();
                if place == 32 {
                    let chunk = Arc::new(Chunk::new(origin, received, events));
                    queue.push(Share::all(chunk).into(), std::time::Instant::now());
                }
            }
        }
        assert!(queue.waiting() > 50);
        let held = (Arc::strong_count(&alive) - 1) * BLOCK;
        assert!(held <= 4 * BOUND, "{held} bytes are held by {} events", queue.waiting());
    }
}
