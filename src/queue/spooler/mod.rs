//! The spooler: the thread that owns a sink's queue.
//!
//! It takes shares from the dispatcher as fast as they come, so nothing upstream ever waits for
//! this sink. It puts them into the queue, and so on disk, and hands batches to the sink's writers
//! as they become free. Syncing takes long and has a thread of its own. Events that are stored for
//! good when their sync is due are not synced: while the sink keeps up, nothing is.
//!
//! ```text
//! dispatcher ──share──▶ ┌─────────┐ ──batch──▶ writer 0
//!                       │ spooler │ ──batch──▶ writer 1
//!    writers ─settled─▶ └─────────┘
//!                        │       ▲
//!                        └ sync ─┘
//! ```
//!
//! A spooler ends in one of three ways. Its channel is closed, and it drains. Its sink is removed
//! ([`Order::End`]), and it drops the channel itself and drains. Or its sink has changed
//! ([`Order::Leave`]), and it hands channel and queue on to the next spooler. Until that one is
//! there, and while the last batches are being written, events are taken as ever.
//!
//! The spooler is two functions: [`Spooler::round`] does what is due, and [`Spooler::handle`] takes
//! a message. The thread only waits between them. `spooler/model.rs` calls the two itself to
//! explore the orders of messages.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::delivery::Settled;
use crate::event::batch::{Batch, BatchLimits};
use crate::event::redact::Redaction;
use crate::files::disk::{Disk, Folder};
use crate::observe::state::SinkState;
use crate::observe::threads;
use crate::queue::Queue;
use crate::queue::config::Fsync;
use crate::queue::inspect::{Inspected, Inspection, QueueContents};
use crate::queue::parcel::Parcel;
use crate::queue::spill::SyncJob;
use crate::sync::bell::{Bell, IDLE, Receiver, Sender, channel};

#[cfg(test)]
mod model;

/// Batches that one writer may hold: the one it writes and the one it writes next.
pub(crate) const BATCHES_PER_WRITER: usize = 2;

/// Acknowledgements are noted on disk, and expired events are looked for, at these intervals.
const NOTE: Duration = Duration::from_secs(1);

/// Events that a full queue holds back are tried again at these intervals.
const BLOCKED: Duration = Duration::from_millis(20);

/// The shares, and the bytes of their frames, that one round takes at the most. They are enough for
/// a burst to cost one round, and so few that handing out, settling and syncing never wait for
/// long.
const ROUND: (usize, usize) = (32, 4 << 20);

/// Everything that a spooler thread owns.
pub(crate) struct Spooler<D: Disk = Folder> {
    /// The queue.
    pub(crate) queue: Queue<D>,
    /// The limits at which a batch is due.
    pub(crate) limits: BatchLimits,
    /// The time at which written events are synced; `None` if nothing is on disk.
    pub(crate) fsync: Option<Fsync>,
    /// Shares from the dispatcher; closed when there are no more. All other channels ring the bell
    /// of this one.
    pub(crate) shares: Receiver<Parcel>,
    /// Batches that writers have settled.
    pub(crate) settled: Receiver<Settled>,
    /// The rules that hide values of this sink's events, if there are any.
    pub(crate) redaction: Option<Arc<Redaction>>,
    /// The writers.
    pub(crate) writers: Vec<mpsc::Sender<Batch>>,
    /// The state that the world sees.
    pub(crate) state: Arc<SinkState>,
    /// Orders. There is room for every one that a spooler can get.
    pub(crate) orders: Receiver<Order>,
    /// Questions of others.
    pub(crate) inspections: Receiver<Inspection>,
    /// The daemon has begun to stop.
    pub(crate) stop: CancellationToken,
    /// The drain deadline has passed.
    pub(crate) give_up: CancellationToken,
    /// Events that the spooler before this one could not leave on disk; they come before new ones.
    pub(crate) inherited: VecDeque<Parcel>,
    /// Set when the spill's folder was removed or replaced.
    pub(crate) renew: Arc<AtomicBool>,
    /// Cancelled when a writer has panicked.
    pub(crate) writer_died: CancellationToken,
    /// Nothing comes any more: the spooler before this one has let go of the channel.
    pub(crate) is_draining: bool,
}

/// Orders that one spooler can get: to leave, and to leave at once.
pub(crate) const ORDERS: usize = 2;

/// An order to a spooler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// The sink is removed: take no more, deliver what there is, and end.
    End,
    /// Begin no more batches, wait for those that are begun, and end.
    Leave,
    /// Leave without waiting; batches that are begun come again.
    LeaveAtOnce,
}

/// The things that a spooler leaves behind.
#[derive(Debug)]
pub(crate) struct Leftover {
    /// Events that are in the spill.
    pub(crate) on_disk: u64,
    /// The channel, for the next spooler; `None` unless told to leave.
    pub(crate) shares: Option<Receiver<Parcel>>,
    /// The events that are not on disk, for the next spooler, in order. Empty unless told to leave.
    pub(crate) in_memory: Vec<Parcel>,
}

/// The end of a spooler before its time: itself, a writer or the sync thread has panicked.
#[derive(Debug)]
pub(crate) struct Death {
    /// The cause.
    pub(crate) reason: String,
    /// Events that it had and that are not in `inherited`. Those of them that the spill does not
    /// have are lost.
    pub(crate) events: u64,
    /// The same field of [`Spooler`], for the next one.
    pub(crate) shares: Receiver<Parcel>,
    /// The same field of [`Spooler`].
    pub(crate) inherited: VecDeque<Parcel>,
    /// The same field of [`Spooler`].
    pub(crate) orders: Receiver<Order>,
    /// The same field of [`Spooler`].
    pub(crate) inspections: Receiver<Inspection>,
    /// The same field of [`Spooler`].
    pub(crate) is_draining: bool,
}

/// The state of a spooler's work.
struct Progress<D: Disk> {
    /// Batches that each writer holds.
    held: Vec<usize>,
    /// There are no more shares.
    draining: bool,
    /// The writers have ended.
    abandoned: bool,
    /// Another spooler comes.
    leaving: bool,
    /// The batches that are begun are not waited for.
    at_once: bool,
    /// Appended since the last sync began, and perhaps not stored yet.
    unsynced: VecDeque<Unsynced>,
    /// The time to try again to put in parcels that are held back.
    retry_at: Instant,
    /// It was said that sources are held back.
    has_told: bool,
    /// The time to note acknowledgements, and to look for expired events; `None` while there is
    /// neither.
    note_at: Option<Instant>,
    /// The time to begin the spill anew; `None` while its folder is there.
    renew_at: Option<Instant>,
    /// Events of the share that is being put in.
    coming: usize,
    /// The sync thread has panicked.
    sync_died: bool,
    syncer: Syncer<D>,
}

impl<D: Disk> Progress<D> {
    fn new(writers: usize, now: Instant, syncer: Syncer<D>) -> Self {
        Progress {
            held: vec![0; writers],
            draining: false,
            abandoned: false,
            leaving: false,
            at_once: false,
            unsynced: VecDeque::new(),
            retry_at: now,
            has_told: false,
            note_at: Some(now + NOTE),
            renew_at: None,
            coming: 0,
            sync_died: false,
            syncer,
        }
    }
}

/// Events that were put in at about the same time, to be synced together.
struct Unsynced {
    /// The time when the first of them was put in.
    since: Instant,
    /// The sequence behind the last.
    end: u64,
}

/// The part of the interval between two syncs within which events count as put in together.
const TOGETHER: u32 = 8;

/// The things that a spooler waits for.
enum Input<D: Disk> {
    Share(Parcel),
    NoMoreShares,
    Settled(Settled),
    WritersGone,
    Order(Order),
    NoMoreOrders,
    Inspection(Inspection),
    NoMoreInspections,
    Synced(SyncJob<D>, io::Result<()>),
    NoMoreSyncs,
    /// Something is due.
    Time,
}

impl<D: Disk> Spooler<D> {
    /// Works until there are no more shares and everything is settled, or the writers are gone, or
    /// it is told to leave. A panic ends it too; the next spooler then has all that it needs.
    pub(crate) fn run(mut self) -> Result<Leftover, Box<Death>> {
        self.shares.bell().attend();
        let (syncer, jobs, done) = Syncer::new(self.shares.bell());
        let (threads, name) = (threads::own(), format!("sync {}", self.state.name));
        let syncing = move || {
            if let Some(threads) = threads {
                threads.join(&name);
            }
            run_jobs(&jobs, &done);
        };
        let sync_thread = std::thread::Builder::new().name("sync".to_owned()).spawn(syncing);
        let sync_thread = match sync_thread {
            Ok(sync_thread) => sync_thread,
            Err(error) => return Err(self.dead(format!("starting the sync thread: {error}"))),
        };
        let mut progress = Progress::new(self.writers.len(), Instant::now(), syncer);
        progress.draining = self.is_draining;
        let worked = catch_unwind(AssertUnwindSafe(|| self.work(&mut progress)));
        self.is_draining = progress.draining;
        let Progress { leaving, syncer, coming, .. } = progress;
        drop(syncer.jobs);
        // A panic there has been reported; appended events are synced below.
        let _ = sync_thread.join();
        let Ok(ended) = worked else { return Err(self.panicked(coming)) };
        // A sync that failed would succeed the next time, without the pages that the kernel has
        // dropped.
        if let Poll::Ready(Some((job, result))) = syncer.done.take() {
            self.queue.end_sync(&job, result);
        }
        match ended {
            Ok(()) => Ok(self.leave(leaving)),
            Err(reason) => Err(self.dead(reason.to_owned())),
        }
    }

    /// The work itself; an error names the part that has died beside this thread.
    fn work(&mut self, progress: &mut Progress<D>) -> Result<(), &'static str> {
        // A spooler before this one may have left something unsynced.
        self.plan_sync(progress, Instant::now());
        while let Some(wait) = self.round(progress, Instant::now()) {
            if self.writer_died.is_cancelled() {
                return Err("a writer has panicked; this is a bug in saltern");
            }
            if progress.sync_died {
                return Err("the sync thread has panicked; this is a bug in saltern");
            }
            let input = self.wait_for(progress, wait);
            self.handle(input, progress, Instant::now());
        }
        Ok(())
    }

    /// A writer or the sync thread has died: everything is left to the next one as at a reload.
    fn dead(mut self, reason: String) -> Box<Death> {
        match catch_unwind(AssertUnwindSafe(|| self.finish(true))) {
            Ok((on_disk, in_memory)) => self.death(reason, on_disk, in_memory.into()),
            Err(_) => self.panicked(0),
        }
    }

    /// The spooler itself has panicked, so that its queue may be half changed. Events of the spill
    /// are read from it again. Without a spill, the queue gives its events in memory.
    fn panicked(mut self, coming: usize) -> Box<Death> {
        let reason = "its spooler has panicked; this is a bug in saltern".to_owned();
        let held = catch_unwind(AssertUnwindSafe(|| self.queue.len())).unwrap_or_default();
        let inherited = std::mem::take(&mut self.inherited);
        let salvaged = catch_unwind(AssertUnwindSafe(|| self.queue.hand_on())).unwrap_or_default();
        let count: usize = salvaged.iter().map(|parcel| parcel.share().len()).sum();
        let events = (held + coming).saturating_sub(count) as u64;
        self.death(reason, events, salvaged.into_iter().chain(inherited).collect())
    }

    fn death(self, reason: String, events: u64, inherited: VecDeque<Parcel>) -> Box<Death> {
        let Spooler { shares, orders, inspections, is_draining, .. } = self;
        let death = Death { reason, events, shares, inherited, orders, inspections, is_draining };
        Box::new(death)
    }

    fn wait_for(&self, progress: &Progress<D>, limit: Duration) -> Input<D> {
        let until = Instant::now() + limit;
        loop {
            if let Poll::Ready(input) = self.look(progress) {
                return input;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Input::Time;
            }
            Bell::wait(left);
        }
    }

    /// The next thing that has happened, shares last: there may be no end of them.
    fn look(&self, progress: &Progress<D>) -> Poll<Input<D>> {
        if self.renew.load(Ordering::Acquire) || self.writer_died.is_cancelled() {
            return Poll::Ready(Input::Time);
        }
        if let Poll::Ready(order) = self.orders.take() {
            return Poll::Ready(order.map_or(Input::NoMoreOrders, Input::Order));
        }
        if let Poll::Ready(settled) = self.settled.take() {
            return Poll::Ready(settled.map_or(Input::WritersGone, Input::Settled));
        }
        if let Poll::Ready(done) = progress.syncer.done.take() {
            let synced = |(job, result)| Input::Synced(job, result);
            return Poll::Ready(done.map_or(Input::NoMoreSyncs, synced));
        }
        if let Poll::Ready(inspection) = self.inspections.take() {
            return Poll::Ready(inspection.map_or(Input::NoMoreInspections, Input::Inspection));
        }
        if !self.takes_shares(progress) {
            return Poll::Pending;
        }
        self.shares.take().map(|share| share.map_or(Input::NoMoreShares, Input::Share))
    }

    /// Does the work that is due. Returns the time until more is due; `None` when the spooler's
    /// work is done.
    fn round(&mut self, progress: &mut Progress<D>, now: Instant) -> Option<Duration> {
        self.renew(progress, now);
        self.inherit(progress, now);
        // Orders come before later messages: the writers are cut off behind `Leave`.
        while let Poll::Ready(Some(order)) = self.orders.take() {
            self.obey(order, progress, now);
        }
        if self.is_done(progress) {
            return None;
        }
        self.hand_out(progress, now);
        self.upkeep(progress, now);
        self.show();
        Some(self.wait(progress, now))
    }

    /// Begins the spill anew if its folder was removed or replaced.
    fn renew(&mut self, progress: &mut Progress<D>, now: Instant) {
        if self.renew.swap(false, Ordering::AcqRel) {
            progress.renew_at = Some(now);
        }
        if progress.renew_at.take_if(|at| *at <= now).is_some()
            && let Err(error) = self.queue.renew()
        {
            let sink = &self.state.name;
            error!(
                sink,
                %error,
                "the spill's folder was removed or replaced and cannot be made again; trying again"
            );
            progress.renew_at = Some(now + NOTE);
        }
    }

    /// Takes what has happened.
    fn handle(&mut self, input: Input<D>, progress: &mut Progress<D>, now: Instant) {
        match input {
            Input::Share(share) => self.take(share, progress, now),
            Input::NoMoreShares => {
                progress.draining = true;
                self.shares.close();
            }
            Input::Settled(Settled { writer, first }) => {
                self.queue.settle(first);
                progress.retry_at = now;
                progress.note_at.get_or_insert(now + NOTE);
                if let Some(held) = progress.held.get_mut(writer) {
                    *held -= 1;
                }
            }
            Input::WritersGone => {
                progress.abandoned = true;
                self.settled.close();
            }
            Input::Order(order) => self.obey(order, progress, now),
            Input::NoMoreOrders => self.orders.close(),
            Input::Inspection(inspection) => self.answer(inspection, now),
            Input::NoMoreInspections => self.inspections.close(),
            Input::Synced(job, result) => {
                progress.syncer.is_busy = false;
                self.queue.end_sync(&job, result);
            }
            Input::NoMoreSyncs => {
                progress.syncer.done.close();
                progress.sync_died = true;
            }
            Input::Time => {}
        }
    }

    /// While it is false shares wait in the channel.
    fn takes_shares(&self, progress: &Progress<D>) -> bool {
        self.is_stuck(progress) || !self.queue.is_blocked() && self.inherited.is_empty()
    }

    /// The queue blocks and nothing more will be stored before the daemon ends, for lack of time or
    /// because the sink is parked. An order that is not obeyed yet may say otherwise.
    fn is_stuck(&self, progress: &Progress<D>) -> bool {
        let is_parked = progress.abandoned && self.stop.is_cancelled();
        let has_end = is_parked || self.give_up.is_cancelled();
        has_end && !progress.leaving && self.orders.is_empty() && self.queue.is_blocked()
    }

    fn is_done(&self, progress: &Progress<D>) -> bool {
        if progress.leaving {
            let settled = progress.abandoned || progress.held.iter().all(|held| *held == 0);
            return settled || progress.at_once;
        }
        let is_empty = self.queue.is_empty() && self.inherited.is_empty();
        progress.draining && (progress.abandoned || is_empty)
    }

    fn obey(&mut self, order: Order, progress: &mut Progress<D>, now: Instant) {
        match order {
            Order::Leave => progress.leaving = true,
            Order::LeaveAtOnce => (progress.leaving, progress.at_once) = (true, true),
            Order::End => {
                // It takes only shares that have come so far, because the dispatcher may put in
                // more without end.
                for _ in 0..self.shares.len() {
                    let Poll::Ready(Some(parcel)) = self.shares.take() else { break };
                    match self.queue.is_blocked() {
                        true => self.state.dropped_stop.add(parcel.share().len() as u64),
                        false => self.keep(parcel, progress, now),
                    }
                }
                self.plan_sync(progress, now);
                self.count_losses();
                for parcel in self.shares.try_iter() {
                    self.state.dropped_stop.add(parcel.share().len() as u64);
                }
                // From here on the dispatcher finds that nobody is there.
                self.shares.close();
                progress.draining = true;
            }
        }
    }

    fn answer(&mut self, Inspection { discard_before, answer }: Inspection, now: Instant) {
        if answer.is_closed() {
            // The client was told that nothing came of it.
            return;
        }
        let discarded = discard_before.map_or(0, |before| self.queue.discard_before(before, now));
        self.state.dropped_operator.add(discarded);
        self.count_losses();
        let contents = QueueContents {
            sink: self.state.name.clone(),
            events: self.queue.len() as u64,
            oldest: self.queue.oldest(),
            newest: self.queue.newest(),
            bytes: self.queue.disk_bytes(),
            segments: self.queue.segments() as u64,
        };
        // The client may be gone.
        let _ = answer.send(Inspected { discarded, contents });
    }

    /// Puts in the events that the spooler before this one left, as far as there is room.
    fn inherit(&mut self, progress: &mut Progress<D>, now: Instant) {
        while !self.queue.is_blocked()
            && let Some(share) = self.inherited.pop_front()
        {
            self.keep(share, progress, now);
            self.plan_sync(progress, now);
        }
    }

    /// Takes a share and further ones that are there, as far as they fit into one round.
    fn take(&mut self, parcel: Parcel, progress: &mut Progress<D>, now: Instant) {
        if self.is_stuck(progress) {
            // There is no room for it, but the dispatcher must come to its end.
            self.state.dropped_stop.add(parcel.share().len() as u64);
            return;
        }
        let (mut count, mut bytes) = (1, parcel.share().bytes());
        self.keep(parcel, progress, now);
        while !self.queue.is_blocked()
            && count < ROUND.0
            && bytes < ROUND.1
            && let Poll::Ready(Some(parcel)) = self.shares.take()
        {
            count += 1;
            bytes += parcel.share().bytes();
            self.keep(parcel, progress, now);
        }
        self.plan_sync(progress, now);
        self.count_losses();
    }

    /// Puts a parcel into the queue, with values hidden.
    fn keep(&mut self, parcel: Parcel, progress: &mut Progress<D>, now: Instant) {
        progress.coming = parcel.share().len();
        let redacted =
            self.redaction.as_ref().and_then(|redaction| redaction.of_share(parcel.share()));
        let parcel = match redacted {
            Some(share) => parcel.with_share(share),
            None => parcel,
        };
        self.queue.push(parcel, now);
        progress.coming = 0;
    }

    /// Something was put into the queue; it is to be synced in time.
    fn plan_sync(&self, progress: &mut Progress<D>, now: Instant) {
        let Some(interval) = self.sync_interval() else { return };
        let end = self.queue.next();
        match progress.unsynced.back_mut() {
            Some(last) if now < last.since + interval / TOGETHER => last.end = end,
            _ => progress.unsynced.push_back(Unsynced { since: now, end }),
        }
    }

    /// The longest time for events to be on disk without being synced; `None` for ever.
    fn sync_interval(&self) -> Option<Duration> {
        match self.fsync? {
            Fsync::Interval(interval) => Some(interval),
            Fsync::Always => Some(Duration::ZERO),
            Fsync::Never => None,
        }
    }

    /// The time at which the next sync is due; `None` while there is nothing to sync.
    fn sync_due(&self, progress: &Progress<D>) -> Option<Instant> {
        let oldest = progress.unsynced.front().filter(|_| !progress.syncer.is_busy)?;
        Some(oldest.since + self.sync_interval()?)
    }

    fn count_losses(&mut self) {
        let losses = self.queue.take_losses();
        if losses.total() == 0 {
            return;
        }
        if self.state.dropped_full.get() == 0 && losses.full > 0 {
            warn!(sink = self.state.name, "the queue is full and events are dropped");
        }
        self.state.dropped_full.add(losses.full);
        self.state.dropped_expired.add(losses.expired);
        self.state.dropped_disk.add(losses.disk);
        self.state.dropped_damaged.add(losses.damaged);
    }

    fn hand_out(&mut self, progress: &mut Progress<D>, now: Instant) {
        while !progress.leaving {
            let free = progress.held.iter_mut().zip(&self.writers);
            let free = free.filter(|(held, writer)| has_room(**held, writer));
            let Some((held, writer)) = free.min_by_key(|(held, _)| **held) else { return };
            let is_due = match self.queue.due(&self.limits, now) {
                Some(due) => progress.draining || due <= now,
                None => false,
            };
            if !is_due {
                return;
            }
            // The place is reserved first: a batch must not leave the queue for a writer that
            // cannot take it.
            let Ok(slot) = writer.try_reserve() else { return };
            let Some(batch) = self.queue.take(&self.limits, now) else { return };
            *held += 1;
            slot.send(batch);
        }
    }

    /// Does the regular work: syncs, notes acknowledgements, drops expired events, and tries again
    /// to put in parcels that are held back.
    fn upkeep(&mut self, progress: &mut Progress<D>, now: Instant) {
        if self.queue.holds_back() && progress.retry_at <= now {
            progress.retry_at = now + BLOCKED;
            self.queue.unblock(now);
            self.plan_sync(progress, now);
        }
        if self.queue.held_back() > 0 && !std::mem::replace(&mut progress.has_told, true) {
            let sink = &self.state.name;
            info!(
                sink,
                "the queue is full; sources that can wait hold their events back until there is \
                 room"
            );
        }
        // Events that are stored for good by the time that their sync is due are not synced: while
        // the sink works, nothing is.
        let settled = self.queue.settled();
        while progress.unsynced.front().is_some_and(|unsynced| unsynced.end <= settled) {
            progress.unsynced.pop_front();
        }
        if self.sync_due(progress).is_some_and(|at| at <= now) {
            progress.unsynced.clear();
            if let Some(job) = self.queue.begin_sync() {
                progress.syncer.begin(job);
            }
        }
        if progress.note_at.is_some_and(|at| at <= now) {
            progress.note_at = None;
            self.queue.note_acknowledged();
            self.queue.expire();
        }
        if self.queue.expires() {
            progress.note_at.get_or_insert(now + NOTE);
        }
        self.count_losses();
    }

    /// The time for which nothing can be due.
    fn wait(&self, progress: &Progress<D>, now: Instant) -> Duration {
        let mut writers = progress.held.iter().zip(&self.writers);
        let may_begin = !progress.leaving && writers.any(|(held, writer)| has_room(*held, writer));
        let batch = self.queue.due(&self.limits, now).filter(|_| may_begin);
        let sync = self.sync_due(progress);
        let unblock = self.queue.holds_back().then_some(progress.retry_at);
        let first =
            [batch, sync, progress.note_at, progress.renew_at, unblock].into_iter().flatten().min();
        first.map_or(IDLE, |at| at.saturating_duration_since(now))
    }

    fn show(&self) {
        self.state.queue_events.set_count(self.queue.len());
        self.state.queue_bytes.set_count(self.queue.weight());
        self.state.held_back_events.set_count(self.queue.held_back());
        self.state.spill_events.set_whole(self.queue.disk_events());
        self.state.spill_bytes.set_whole(self.queue.disk_bytes());
        self.state.set_oldest(self.queue.oldest());
    }

    /// Ends in order.
    fn leave(mut self, leaving: bool) -> Leftover {
        let (on_disk, in_memory) = self.finish(leaving);
        Leftover { on_disk, shares: leaving.then_some(self.shares), in_memory }
    }

    /// Leaves unsettled events on disk, and hands on those that cannot be there. Returns how many
    /// events are on disk, and those that are handed on.
    fn finish(&mut self, leaving: bool) -> (u64, Vec<Parcel>) {
        let mut in_memory = Vec::new();
        if leaving {
            in_memory = self.queue.hand_on();
            in_memory.extend(std::mem::take(&mut self.inherited));
        }
        let (left, mut lost) = self.queue.persist();
        lost += self.inherited.iter().map(|parcel| parcel.share().len() as u64).sum::<u64>();
        self.queue.note_acknowledged();
        if let Some(job) = self.queue.begin_sync() {
            let result = job.run();
            self.queue.end_sync(&job, result);
        }
        self.queue.honour_what_lasts();
        self.state.dropped_stop.add(lost);
        // These include events for which there was no room any more.
        let lost = self.state.dropped_stop.get();
        if left > 0 && !leaving {
            info!(sink = self.state.name, events = left, "events are left in the spill");
        }
        if lost > 0 {
            warn!(
                sink = self.state.name,
                events = lost,
                "events that were left in memory are lost"
            );
        }
        self.count_losses();
        self.show();
        self.state.set_oldest(None);
        (left, in_memory)
    }
}

/// A writer that holds so many batches takes another. A writer that has ended takes none. When the
/// sink is parked the others may end much later, since one may hang in a write.
fn has_room(held: usize, writer: &mpsc::Sender<Batch>) -> bool {
    held < BATCHES_PER_WRITER && !writer.is_closed()
}

/// The thread that syncs, one job at a time, as the spooler sees it.
struct Syncer<D: Disk> {
    jobs: Sender<SyncJob<D>>,
    done: Receiver<Synced<D>>,
    is_busy: bool,
}

type Synced<D> = (SyncJob<D>, io::Result<()>);

impl<D: Disk> Syncer<D> {
    /// With the thread's ends of the channels.
    fn new(bell: &Bell) -> (Self, Receiver<SyncJob<D>>, Sender<Synced<D>>) {
        let (jobs, jobs_out) = channel(1, &Bell::default());
        let (done_in, done) = channel(1, bell);
        (Syncer { jobs, done, is_busy: false }, jobs_out, done_in)
    }

    /// Begins a job; none may be under way.
    fn begin(&mut self, job: SyncJob<D>) {
        self.is_busy = self.jobs.try_send(job).is_ok();
    }
}

/// The sync thread, until there are no more jobs.
fn run_jobs<D: Disk>(jobs: &Receiver<SyncJob<D>>, done: &Sender<Synced<D>>) {
    while let Some(job) = jobs.recv() {
        let result = job.run();
        if done.send((job, result)).is_err() {
            return;
        }
    }
}
