//! Opening the queue of a sink, with the events of its spill.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::error::chain;
use crate::files::disk::Folder;
use crate::files::random;
use crate::queue::Queue;
use crate::queue::config::{Fsync, SpillConfig, SpillMode};
use crate::queue::parcel::Parcel;
use crate::queue::spill::{Spill, queue_id};
use crate::sync::bell::Receiver;

/// A queue with the events of its spill, ready for a spooler.
pub(crate) struct OpenQueue {
    pub(crate) queue: Queue,
    pub(crate) fsync: Option<Fsync>,
}

/// The channels that a spooler's events come from.
pub(crate) struct Incoming {
    pub(crate) shares: Receiver<Parcel>,
    pub(crate) inherited: VecDeque<Parcel>,
}

/// The folder of a sink's spill.
pub(crate) fn spill_of(state_dir: &Path, sink: &str) -> PathBuf {
    state_dir.join("spill").join(sink)
}

/// The queue of a sink, with the events of its spill, and the time of its syncs; or the reason why
/// there is none.
pub(crate) fn open_queue(
    sink: &str,
    spill: SpillConfig,
    state_dir: &Path,
) -> Result<OpenQueue, String> {
    if spill.mode == SpillMode::Memory {
        let id =
            random::number().map_err(|error| format!("cannot make the queue's id: {error}"))?;
        return Ok(OpenQueue { queue: Queue::new(id, spill, None), fsync: None });
    }
    let path = spill_of(state_dir, sink);
    let failed = |cause: String| format!("cannot open the spill {}: {cause}", path.display());
    let folder = Folder::create(&path).map_err(|error| failed(error.to_string()))?;
    let id = queue_id::of(&folder).map_err(|error| failed(format!("the queue's id: {error}")))?;
    let opened = Spill::open(folder, spill.settings()).map_err(|error| failed(chain(&error)))?;
    if opened.torn_bytes() > 0 {
        warn!(sink, bytes = opened.torn_bytes(), "a torn tail was cut off the spill");
    }
    let queue = Queue::new(id, spill, Some(opened));
    if !queue.is_empty() {
        info!(sink, events = queue.len(), "events wait in the spill");
    }
    Ok(OpenQueue { queue, fsync: Some(spill.fsync) })
}
