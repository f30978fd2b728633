//! The chunks that wait to be counted, bounded by the bytes that they hold.
//!
//! A burst waits here until the counter has come to it. The dispatcher puts a chunk in or learns at
//! once that there is no room; it waits for nothing but the move of a pointer. The counter takes
//! everything there is in one go. A chunk holds its bytes until it has been counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::event::chunk::Chunk;
use crate::observe::threads;
use crate::sync::bell::{Bell, IDLE};
use crate::sync::lock;

/// A chunk, and whether any of its events has a trimmed value.
pub(super) type Fed = (Arc<Chunk>, bool);

/// Both ends of a queue. Its chunks hold no more bytes than `limit` says at the time.
pub(super) fn queue(limit: Arc<AtomicUsize>) -> (QueueSender, QueueReceiver) {
    let (waiting, bell) = (Arc::default(), Bell::default());
    let exit = QueueReceiver { waiting: Arc::clone(&waiting), bell: bell.clone() };
    (QueueSender { waiting, bell, limit }, exit)
}

#[derive(Default)]
struct Waiting {
    chunks: VecDeque<Fed>,
    /// Bytes of the chunks, and of chunks that are being counted.
    bytes: usize,
    is_closed: bool,
}

/// Nothing panics under this lock.
fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    lock::hold(waiting)
}

/// The end that chunks are put into. The queue closes when it is dropped.
pub(super) struct QueueSender {
    waiting: Arc<Mutex<Waiting>>,
    bell: Bell,
    limit: Arc<AtomicUsize>,
}

impl QueueSender {
    /// Puts a chunk in; `false` if there is no room for it.
    pub(super) fn put(&self, chunk: &Arc<Chunk>, has_trimmed: bool) -> bool {
        let size = chunk.size();
        {
            let mut waiting = lock(&self.waiting);
            let bytes = waiting.bytes.saturating_add(size);
            if bytes > self.limit.load(Ordering::Relaxed) {
                return false;
            }
            waiting.bytes = bytes;
            waiting.chunks.push_back((Arc::clone(chunk), has_trimmed));
        }
        self.bell.ring();
        true
    }
}

impl Drop for QueueSender {
    fn drop(&mut self) {
        lock(&self.waiting).is_closed = true;
        self.bell.ring();
    }
}

/// The end that chunks are taken from.
pub(super) struct QueueReceiver {
    waiting: Arc<Mutex<Waiting>>,
    bell: Bell,
}

impl QueueReceiver {
    /// Takes everything there is and waits until there is something; `None` when the queue was
    /// closed and is empty. For a thread that waits for nothing else.
    pub(super) fn take(&self) -> Option<VecDeque<Fed>> {
        self.bell.attend();
        loop {
            {
                let mut waiting = lock(&self.waiting);
                if !waiting.chunks.is_empty() {
                    threads::beat();
                    return Some(std::mem::take(&mut waiting.chunks));
                }
                if waiting.is_closed {
                    return None;
                }
            }
            Bell::wait(IDLE);
        }
    }

    /// A chunk of this size that was taken is dropped.
    pub(super) fn release(&self, size: usize) {
        threads::beat();
        let mut waiting = lock(&self.waiting);
        waiting.bytes = waiting.bytes.saturating_sub(size);
    }
}
