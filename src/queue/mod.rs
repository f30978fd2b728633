//! A sink's queue: the events that it wants and has not stored yet, in the order of the bus.
//!
//! ```text
//!            ┌──────── waits ────────┐
//! settle ◀── in flight ◀── take ◀── memory │ disk only ◀── push
//!                                   head … memory_end … next      (sequences)
//! ```
//!
//! Every event gets a sequence when it comes. The events from `head` to `next` wait. The first part
//! of them is in memory. The rest, if any, is on disk alone and is read back when memory has run
//! out. Once everything was read back, new events go to memory again. The modes differ in what is
//! on disk. `durable` puts every event there before it is tried, `overflow` those for which memory
//! had no room, `memory` none. The order is the same in all of them.
//!
//! The queue belongs to the sink's spooler thread alone. Invariants:
//!
//! - batches leave in the order of the sequences, each event in one batch;
//! - a batch that was begun before a restart comes again with the same events and the same id;
//! - memory is bounded: the events that wait in memory or are in flight count by weight (a frame
//!   twice, for its JSON, and the structs). An event larger than the bound is still taken when
//!   nothing else is there, so no event is undeliverable for its size;
//! - discarded events are counted in [`DropCounts`], with the reason;
//! - events of a source that can wait come with a claim and never push others out. If they find no
//!   room they are held back, beside the queue. A part of the room is left to events that cannot
//!   wait. The number held back is bounded by what each such source may have under way.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::event::batch::{Batch, BatchLimits};
use crate::event::chunk::Share;
use crate::files::disk::{Disk, Folder};
use crate::observe::state;
use crate::queue::config::{Fsync, SpillCompression, SpillConfig, SpillMode, WhenFull};
use crate::queue::parcel::Parcel;
use crate::queue::spill::{Begun, Dropped, Read, SequenceRange, Spill, SyncJob};
use crate::sync::receipt::Claim;

pub mod config;
pub(crate) mod inspect;
pub(crate) mod open;
pub mod parcel;
pub mod spill;
pub(crate) mod spooler;
pub(crate) mod waiting_for_spill;

/// Events that were discarded, by reason. Counted up; the spooler takes the counts away.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DropCounts {
    /// The queue was full.
    pub(crate) full: u64,
    /// They waited longer than `max_age`.
    pub(crate) expired: u64,
    /// The disk failed and memory had no room.
    pub(crate) disk: u64,
    /// Their record was damaged.
    pub(crate) damaged: u64,
}

impl DropCounts {
    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        self.full + self.expired + self.disk + self.damaged
    }
}

/// The time at which a spill that could not be read is tried again, and how long that was put off.
#[derive(Debug, Clone, Copy)]
struct ReadAgain {
    at: Instant,
    pause: Duration,
}

/// A spill that cannot be read is left alone for so long: at first, and at most.
const READ_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// The queue of one sink.
pub struct Queue<D: Disk = Folder> {
    id: u128,
    config: SpillConfig,
    memory_bound: usize,
    spill: Option<Spill<D>>,
    memory: VecDeque<Waiting>,
    /// Events that wait in memory.
    memory_events: u64,
    /// Sequence of the first event that waits.
    head: u64,
    /// Sequence of the next event that comes.
    next: u64,
    /// A share that waits for room under `when_full: block`.
    held: Option<Parcel>,
    /// Events without room whose source can wait.
    held_back: HeldBack,
    /// Batches begun before the restart, to be taken with the same bounds.
    begun: VecDeque<Begun>,
    in_flight: VecDeque<InFlight>,
    /// Claims of sources that wait, in order.
    claims: VecDeque<Claimed>,
    /// Weight of the events in memory and in flight.
    weight: usize,
    /// Bytes of frames that wait in memory.
    memory_bytes: usize,
    /// Everything below this sequence lasts through a power failure.
    synced: u64,
    losses: DropCounts,
    disk_works: bool,
    /// The last try to read the spill failed.
    read_again: Option<ReadAgain>,
}

/// Shares of sources that can wait, in order, until there is room.
#[derive(Debug, Default)]
struct HeldBack {
    shares: VecDeque<Parcel>,
    events: usize,
    weight: usize,
}

impl HeldBack {
    fn push(&mut self, mut parcel: Parcel) {
        parcel.forget_encoding();
        self.events += parcel.share().len();
        self.weight += parcel.share().weight();
        self.shares.push_back(parcel);
    }

    /// Puts a parcel that was taken out back in front.
    fn put_back(&mut self, parcel: Parcel) {
        self.events += parcel.share().len();
        self.weight += parcel.share().weight();
        self.shares.push_front(parcel);
    }

    fn pop(&mut self) -> Option<Parcel> {
        let parcel = self.shares.pop_front()?;
        self.events -= parcel.share().len();
        self.weight -= parcel.share().weight();
        Some(parcel)
    }
}

#[derive(Debug)]
struct Waiting {
    share: Share,
    since: Instant,
}

/// Events whose source waits until they are safe.
#[derive(Debug)]
struct Claimed {
    /// Their sequences.
    events: Range<u64>,
    claim: Claim,
    /// They were appended to the spill. Those in memory alone are safe only once they are stored.
    is_on_disk: bool,
}

#[derive(Debug)]
struct InFlight {
    batch: Batch,
    weight: usize,
    received: u64,
    /// It is on disk in another place than its sequences say, since its segment was dropped.
    has_refuge: bool,
}

impl<D: Disk> Queue<D> {
    /// A queue over `spill`, with its events; without one it is in memory alone. `id` names the
    /// queue in the ids of its batches and must be the same after a restart.
    pub fn new(id: u128, config: SpillConfig, spill: Option<Spill<D>>) -> Self {
        let mut begun = VecDeque::new();
        let (mut head, mut next) = (0, 0);
        let mut losses = DropCounts::default();
        if let Some(spill) = &spill {
            losses.damaged = spill.torn_events();
            begun.extend(spill.begun());
            (head, next) = (spill.acknowledged(), spill.next());
        }
        Queue {
            id,
            config,
            memory_bound: config.memory_bound(),
            spill,
            memory: VecDeque::new(),
            memory_events: 0,
            head,
            next,
            held: None,
            held_back: HeldBack::default(),
            begun,
            in_flight: VecDeque::new(),
            claims: VecDeque::new(),
            weight: 0,
            memory_bytes: 0,
            synced: next,
            losses,
            disk_works: true,
            read_again: None,
        }
    }

    /// Puts a share behind the others. Events that are discarded for it are counted in the losses.
    pub fn push(&mut self, parcel: Parcel, now: Instant) {
        if parcel.share().is_empty() {
            return;
        }
        if parcel.can_wait() && self.held_back.events > 0 {
            self.held_back.push(parcel);
            return;
        }
        match self.put_in(parcel, now) {
            Some(parcel) if parcel.can_wait() => self.held_back.push(parcel),
            held => self.held = held,
        }
    }

    /// Returns the share if it has to wait for room.
    fn put_in(&mut self, mut parcel: Parcel, now: Instant) -> Option<Parcel> {
        let weight = parcel.share().weight();
        let has_room = self.weight == 0 || self.weight + weight <= self.memory_bound;
        let fits = self.memory_end() == self.next && has_room;
        let on_disk = match self.config.mode {
            SpillMode::Memory => return self.put_into_memory_only(parcel, weight, now),
            SpillMode::Overflow if fits => false,
            SpillMode::Overflow | SpillMode::Durable => match self.write(&mut parcel) {
                Written::Yes => true,
                Written::No => false,
                // Nothing on disk can make room, so memory has to.
                Written::Later
                    if self.memory_end() == self.next
                        && self.spill.as_ref().is_none_or(Spill::is_used_up) =>
                {
                    return self.put_into_memory_only(parcel, weight, now);
                }
                Written::Later => return Some(parcel),
                Written::NoRoom
                    if self.config.when_full == WhenFull::DropOldest
                        && self.memory_end() == self.next =>
                {
                    return self.put_into_memory_only(parcel, weight, now);
                }
                Written::NoRoom => {
                    self.losses.full += parcel.share().len() as u64;
                    return None;
                }
            },
        };
        if !fits && !on_disk {
            // It has a place neither on disk nor, in order, in memory.
            if parcel.can_wait() {
                return Some(parcel);
            }
            self.losses.disk += parcel.share().len() as u64;
            return None;
        }
        // `write` may have dropped older events, so look again.
        let fits = self.memory_end() == self.next && has_room;
        let claim = parcel.take_claim();
        let first = self.next;
        self.next += parcel.share().len() as u64;
        if fits {
            self.remember(parcel.unpack(), now);
        }
        match claim {
            Some(claim) if on_disk && self.config.fsync != Fsync::Always => claim.honour(),
            Some(claim) => {
                let events = first..self.next;
                self.claims.push_back(Claimed { events, claim, is_on_disk: on_disk });
            }
            None => {}
        }
        None
    }

    /// The fate of this share when there is no room for it.
    fn when_full(&self, parcel: &Parcel) -> WhenFull {
        if parcel.can_wait() { WhenFull::Block } else { self.config.when_full }
    }

    /// Honours the claims on everything below `sequence`, which is stored or given up.
    fn honour_claims(&mut self, sequence: u64) {
        while let Some(safe) = self.claims.pop_front_if(|claimed| claimed.events.end <= sequence) {
            safe.claim.honour();
        }
    }

    /// Honours the claims on events on disk below `sequence`, which are all synced.
    fn honour_claims_on_disk(&mut self, sequence: u64) {
        for claimed in std::mem::take(&mut self.claims) {
            if claimed.is_on_disk && claimed.events.end <= sequence {
                claimed.claim.honour();
            } else {
                self.claims.push_back(claimed);
            }
        }
    }

    /// Lets go of the claims on discarded events below `sequence`.
    fn spoil_claims(&mut self, sequence: u64) {
        self.claims.retain(|claimed| claimed.events.end > sequence);
    }

    fn put_into_memory_only(
        &mut self,
        mut parcel: Parcel,
        weight: usize,
        now: Instant,
    ) -> Option<Parcel> {
        parcel.forget_encoding();
        let reserve = if parcel.can_wait() { self.memory_bound / 4 } else { 0 };
        while self.weight > 0 && self.weight + weight > self.memory_bound - reserve {
            match self.when_full(&parcel) {
                WhenFull::DropOldest => {
                    let Some(oldest) = self.forget_front() else { break };
                    self.losses.full += oldest.share.len() as u64;
                    self.spoil_claims(self.head);
                }
                WhenFull::DropNewest => {
                    self.losses.full += parcel.share().len() as u64;
                    return None;
                }
                WhenFull::Block => return Some(parcel),
            }
        }
        let first = self.next;
        self.next += parcel.share().len() as u64;
        if let Some(claim) = parcel.take_claim() {
            self.claims.push_back(Claimed { events: first..self.next, claim, is_on_disk: false });
        }
        self.remember(parcel.unpack(), now);
        None
    }

    fn remember(&mut self, share: Share, since: Instant) {
        self.weight += share.weight();
        self.memory_bytes += share.bytes();
        self.memory_events += share.len() as u64;
        self.memory.push_back(Waiting { share, since });
    }

    /// Takes the oldest share off memory.
    fn forget_front(&mut self) -> Option<Waiting> {
        let oldest = self.memory.pop_front()?;
        self.head += oldest.share.len() as u64;
        self.memory_events -= oldest.share.len() as u64;
        self.memory_bytes -= oldest.share.bytes();
        self.weight -= oldest.share.weight();
        Some(oldest)
    }

    /// Appends a share to the spill, making room as configured.
    fn write(&mut self, parcel: &mut Parcel) -> Written {
        let Some(spill) = &self.spill else { return Written::No };
        // This is asked before it is encoded: parcels that are held back come here again and again.
        if parcel.can_wait() && !spill.fits_with_reserve(parcel.share().bytes() as u64) {
            return Written::Later;
        }
        let compress = self.config.compression == SpillCompression::Zstd;
        let Ok(body) = parcel.encode(compress) else { return Written::No };
        let when_full = self.when_full(parcel);
        loop {
            let Some(spill) = &mut self.spill else { return Written::No };
            let failure = match spill.append(self.next, parcel.share(), &body) {
                Ok(()) => {
                    if !std::mem::replace(&mut self.disk_works, true) {
                        info!("the spill can be written again");
                    }
                    return Written::Yes;
                }
                Err(failure) => failure,
            };
            if !failure.is_out_of_space() {
                if std::mem::replace(&mut self.disk_works, false) {
                    error!(
                        error = crate::error::chain(&failure),
                        "the spill cannot be written; events stay in memory"
                    );
                }
                return Written::No;
            }
            if when_full == WhenFull::Block {
                return Written::Later;
            }
            if when_full == WhenFull::DropNewest || !self.drop_oldest(|losses| &mut losses.full) {
                return Written::NoRoom;
            }
        }
    }

    /// Discards the oldest segment of the spill; `false` if there is none to discard.
    fn drop_oldest(&mut self, reason: fn(&mut DropCounts) -> &mut u64) -> bool {
        let memory_end = self.memory_end();
        let Some(spill) = &mut self.spill else { return false };
        // They are in order, since batches leave in order and are removed in place.
        let flying = self.in_flight.iter().flat_map(|flying| flying.batch.shares());
        let flying: Vec<Share> = flying.cloned().collect();
        let compress = self.config.compression == SpillCompression::Zstd;
        let lost = match spill.drop_oldest(self.head, memory_end, &flying, compress) {
            Ok(Some(Dropped { lost, keeps_in_flight })) => {
                self.in_flight.iter_mut().for_each(|f| f.has_refuge = keeps_in_flight);
                lost
            }
            Ok(None) => return false,
            Err(error) => {
                warn!(%error, "the oldest segment of the spill cannot be removed");
                return false;
            }
        };
        // Events that wait in memory alone may be older still, and go too: the order is kept.
        *reason(&mut self.losses) +=
            self.waiting_in(SequenceRange { first: self.head, end: lost.end });
        self.spoil_claims(lost.end);
        while self.head < lost.end {
            let Some(front) = self.memory.front_mut() else {
                self.head = lost.end;
                break;
            };
            let count = usize::try_from(lost.end - self.head).unwrap_or(usize::MAX);
            if count >= front.share.len() {
                self.forget_front();
                continue;
            }
            let gone = front.share.split_front(count);
            self.memory_bytes -= gone.bytes();
            self.weight -= gone.weight();
            self.memory_events -= gone.len() as u64;
            self.head = lost.end;
        }
        true
    }

    fn waiting_in(&self, lost: SequenceRange) -> u64 {
        SequenceRange { first: lost.first.max(self.head), end: lost.end.min(self.next) }.len()
    }

    /// Discards what has waited on disk for longer than `max_age`, by whole segments.
    pub(crate) fn expire(&mut self) {
        let Some(max_age) = self.config.max_age else { return };
        let age = u64::try_from(max_age.0.as_micros()).unwrap_or(u64::MAX);
        let before = state::now().saturating_sub(age);
        while self.spill.as_ref().is_some_and(|spill| spill.oldest_is_before(self.head, before)) {
            let left = self.waiting() > 0;
            if !left || !self.drop_oldest(|losses| &mut losses.expired) {
                return;
            }
        }
    }

    /// Discards waiting events that were read before `before`, in microseconds since 1970, up to
    /// the first that was not. Returns how many. Events in flight stay.
    pub(crate) fn discard_before(&mut self, before: u64, now: Instant) -> u64 {
        let head = self.head;
        let damaged = self.losses.damaged;
        // Whole segments go first, without being read. They do not count as dropped by a full
        // queue.
        let full = self.losses.full;
        while self.spill.as_ref().is_some_and(|spill| spill.oldest_is_before(self.head, before))
            && self.waiting() > 0
            && self.drop_oldest(|losses| &mut losses.full)
        {}
        self.losses.full = full;
        while self.read_back(now) {
            if self.memory.front().is_none_or(|front| front.share.received() >= before) {
                break;
            }
            self.forget_front();
        }
        self.spoil_claims(self.head);
        self.acknowledge();
        self.note_acknowledged();
        // Events that could not be read are counted by themselves.
        (self.head - head).saturating_sub(self.losses.damaged - damaged)
    }

    /// Events may expire, so [`Queue::expire`] should be called now and then.
    pub(crate) fn expires(&self) -> bool {
        self.config.max_age.is_some() && self.disk_bytes() > 0
    }

    /// `block` holds a share back, so no more should come.
    pub(crate) fn is_blocked(&self) -> bool {
        self.held.is_some()
    }

    /// Something is held back, so [`Queue::unblock`] should be called now and then.
    pub(crate) fn holds_back(&self) -> bool {
        self.is_blocked() || self.held_back.events > 0
    }

    /// Events that wait beside the queue, because their source can wait.
    pub(crate) fn held_back(&self) -> usize {
        self.held_back.events
    }

    /// Tries again to put in parcels that are held back.
    pub(crate) fn unblock(&mut self, now: Instant) {
        if let Some(share) = self.held.take() {
            self.held = self.put_in(share, now);
        }
        while let Some(share) = self.held_back.pop() {
            if let Some(share) = self.put_in(share, now) {
                self.held_back.put_back(share);
                return;
            }
        }
    }

    /// The time at which the next batch is due, or was; `None` while nothing waits.
    pub(crate) fn due(&self, limits: &BatchLimits, now: Instant) -> Option<Instant> {
        if self.ready() == 0 {
            return None;
        }
        // A batch that was begun before needs all of its events.
        let is_begun = self.begun.front().is_some_and(|begun| begun.first == self.head);
        if let Some(again) = self.read_again.filter(|_| is_begun || self.memory.is_empty()) {
            return Some(again.at);
        }
        match self.memory.front() {
            // An event that was read back, or waits behind memory, has waited long enough.
            Some(oldest) if self.memory_end() < self.next => Some(oldest.since),
            Some(oldest) => Some(limits.due(self.waiting(), self.memory_bytes, oldest.since)),
            None => Some(now),
        }
    }

    /// The number of events that may be tried now.
    fn ready(&self) -> usize {
        let end = match self.config.fsync {
            // Waiting does not help if a broken disk takes nothing. And `overflow` does not promise
            // that an event is on disk.
            Fsync::Always if self.config.mode == SpillMode::Durable && self.disk_works => {
                self.synced.min(self.next)
            }
            _ => self.next,
        };
        usize::try_from(end.saturating_sub(self.head)).unwrap_or(usize::MAX)
    }

    /// Takes the next batch, as large as the limits allow; `None` while nothing waits or the disk
    /// does not give it back. In `durable` mode its bounds are on disk before it is returned.
    pub fn take(&mut self, limits: &BatchLimits, now: Instant) -> Option<Batch> {
        if !self.read_back(now) {
            return None;
        }
        let mut again = None;
        let mut limits = *limits;
        while let Some(begun) = self.begun.front().copied() {
            let len = usize::try_from(begun.len).unwrap_or(usize::MAX);
            if begun.first < self.head || self.in_reach(begun) < begun.len {
                self.begun.pop_front();
                continue;
            }
            if begun.first == self.head {
                self.begun.pop_front();
                limits = BatchLimits { max_events: len, max_bytes: usize::MAX, ..limits };
                again = Some(begun);
            } else {
                let before = usize::try_from(begun.first - self.head).unwrap_or(usize::MAX);
                limits.max_events = limits.max_events.min(before);
            }
            break;
        }
        limits.max_events = limits.max_events.min(self.ready());
        let (mut shares, mut events, mut bytes) = (Vec::new(), 0, 0);
        let mut first = self.head;
        while events < limits.max_events && self.read_back(now) {
            if events == 0 {
                first = self.head;
            } else if self.head != first + events as u64 {
                // A batch has no gap in its sequences, so it ends at a gap that damage made.
                break;
            }
            let room = limits.max_events - events;
            let Some((share, share_bytes)) =
                self.take_front(room, limits.max_bytes.saturating_sub(bytes), events == 0)
            else {
                break;
            };
            events += share.len();
            bytes += share_bytes;
            shares.push(share);
        }
        if let Some(begun) = again.filter(|begun| begun.len > events as u64)
            && self.read_again.is_some()
        {
            // It comes with its bounds when the rest of it can be read.
            self.put_back(first, shares, now);
            self.begun.push_front(begun);
            return None;
        }
        let received = shares.first()?.received();
        let weight = shares.iter().map(Share::weight).sum();
        let mut batch = Batch::new(self.id, first, shares);
        if again.is_some() {
            batch = batch.begun_before();
        }
        self.weight += weight;
        self.in_flight.push_back(InFlight {
            batch: batch.clone(),
            weight,
            received,
            has_refuge: false,
        });
        let begun = Begun { first, len: events as u64 };
        // Noted before, unless damage has changed its bounds.
        let is_noted = again == Some(begun);
        if let (SpillMode::Durable, Some(spill), false) =
            (self.config.mode, &mut self.spill, is_noted)
            && let Err(error) = spill.note_begun(begun).and_then(|()| match self.config.fsync {
                Fsync::Always => spill.sync_noted(),
                _ => Ok(()),
            })
        {
            warn!(%error, "the bounds of a batch could not be noted; after a crash they may differ");
        }
        Some(batch)
    }

    fn in_reach(&self, begun: Begun) -> u64 {
        self.next.saturating_sub(begun.first)
    }

    /// Takes up to `room` events and `max_bytes` from the front of memory; at least one if `force`.
    fn take_front(&mut self, room: usize, max_bytes: usize, force: bool) -> Option<(Share, usize)> {
        let front = self.memory.front_mut()?;
        let count = front.share.fitting(max_bytes).max(usize::from(force)).min(room);
        if count == 0 {
            return None;
        }
        let share = front.share.split_front(count);
        let (bytes, weight) = (share.bytes(), share.weight());
        if front.share.is_empty() {
            self.memory.pop_front();
        }
        self.head += count as u64;
        self.memory_events -= count as u64;
        self.memory_bytes -= bytes;
        self.weight -= weight;
        Some((share, bytes))
    }

    /// Undoes [`Queue::take_front`].
    fn put_back(&mut self, first: u64, shares: Vec<Share>, since: Instant) {
        self.head = first;
        for share in shares.into_iter().rev() {
            self.weight += share.weight();
            self.memory_bytes += share.bytes();
            self.memory_events += share.len() as u64;
            self.memory.push_front(Waiting { share, since });
        }
    }

    /// Makes sure that the next event that waits is in memory; `false` if nothing waits, or the
    /// disk does not give it back now.
    fn read_back(&mut self, now: Instant) -> bool {
        while self.memory.is_empty() {
            if self.head >= self.next || self.read_again.is_some_and(|again| now < again.at) {
                return false;
            }
            let Some(spill) = &mut self.spill else { return false };
            spill.skip_to(self.head);
            let read = spill.read();
            if read.is_ok() && self.read_again.take().is_some() {
                info!("the spill can be read again");
            }
            match read {
                Ok(Some(Read::Events(sequence, share))) => {
                    self.skip_damaged(SequenceRange { first: self.head, end: sequence });
                    self.remember(share, now);
                }
                Ok(Some(Read::Damaged(lost))) => self.skip_damaged(lost),
                Ok(None) => self.skip_damaged(SequenceRange { first: self.head, end: self.next }),
                Err(error) => {
                    let (first, most) = READ_PAUSE;
                    if self.read_again.is_none() {
                        error!(%error, "the spill cannot be read; trying again");
                    }
                    let pause = self.read_again.map_or(first, |again| most.min(2 * again.pause));
                    self.read_again = Some(ReadAgain { at: now + pause, pause });
                    return false;
                }
            }
        }
        true
    }

    fn skip_damaged(&mut self, lost: SequenceRange) {
        let count = self.waiting_in(lost);
        if count > 0 {
            self.losses.damaged += count;
            self.head = self.head.max(lost.end);
            error!(events = count, "events in the spill are damaged and lost");
        }
    }

    /// The batch that begins at `first` is no longer in flight: stored, or given up.
    pub fn settle(&mut self, first: u64) {
        let Some(index) = self.in_flight.iter().position(|flying| flying.batch.first() == first)
        else {
            return;
        };
        if let Some(flying) = self.in_flight.remove(index) {
            self.weight -= flying.weight;
        }
        self.acknowledge();
    }

    /// Every event before those in flight and those that wait is settled.
    fn acknowledge(&mut self) {
        let low = self.settled();
        self.honour_claims(low);
        if let Some(spill) = &mut self.spill
            && let Err(error) = spill.acknowledge(low)
        {
            warn!(%error, "a segment of the spill that is used up cannot be removed");
        }
    }

    /// Notes on disk how far events are acknowledged, so that fewer come again after a crash.
    pub(crate) fn note_acknowledged(&mut self) {
        if let Some(spill) = &mut self.spill
            && let Err(error) = spill.note_acknowledged()
        {
            warn!(
                %error,
                "acknowledged events could not be noted; after a crash more of them come again"
            );
        }
    }

    /// The sequence that the next event gets.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// The sequence below which everything is stored for good, or given up.
    pub(crate) fn settled(&self) -> u64 {
        let flying = self.in_flight.iter().map(|flying| flying.batch.first()).min();
        flying.unwrap_or(self.head).min(self.head)
    }

    /// The job of a sync that is needed now; `None` if there is none. No other sync may be under
    /// way.
    pub(crate) fn begin_sync(&mut self) -> Option<SyncJob<D>> {
        let job = self.spill.as_mut()?.begin_sync();
        if job.is_none() {
            // Events that the disk had no room for are in memory alone, and not to be waited for.
            self.synced = self.next;
        }
        job
    }

    /// A sync has ended.
    pub(crate) fn end_sync(&mut self, job: &SyncJob<D>, result: io::Result<()>) {
        let is_safe = result.is_ok();
        if let Err(error) = result {
            error!(%error, "syncing a segment of the spill failed; nothing more is written to it");
            // The sources that wait for these are told that they are not safe.
            let in_doubt = self.spill.as_mut().map_or(job.up_to, |spill| spill.condemn(job));
            self.spoil_claims(in_doubt);
        }
        // Also after a failure: holding events back would not make them safer. Events behind that
        // were not appended since are in memory alone, and not to be waited for.
        let is_all = self.spill.as_ref().is_none_or(|spill| !spill.is_dirty());
        self.synced = if is_all { self.next } else { self.synced.max(job.up_to) };
        if is_safe {
            self.honour_claims_on_disk(job.up_to);
        }
    }

    /// Honours the claims on all events on disk, once the last sync has ended. Events that it could
    /// not make last have no claims any more.
    pub(crate) fn honour_what_lasts(&mut self) {
        self.honour_claims_on_disk(u64::MAX);
    }

    /// Takes out the events that no spill keeps, in order, for the queue that takes over in the
    /// same run. These are all events in `memory` mode, else those held back.
    pub(crate) fn hand_on(&mut self) -> Vec<Parcel> {
        let held = self.held.take().into_iter().chain(std::mem::take(&mut self.held_back).shares);
        if self.config.mode != SpillMode::Memory && self.spill.is_some() {
            return held.collect();
        }
        let mut flying: Vec<InFlight> = self.in_flight.drain(..).collect();
        flying.sort_by_key(|flying| flying.batch.first());
        let mut shares = Vec::new();
        for InFlight { batch, .. } in flying {
            let mut end = batch.first();
            for share in batch.shares() {
                end += share.len() as u64;
                shares.push((end, share.clone()));
            }
        }
        let mut end = self.head;
        for waiting in self.memory.drain(..) {
            end += waiting.share.len() as u64;
            shares.push((end, waiting.share));
        }
        (self.head, self.memory_events, self.memory_bytes, self.weight) = (self.next, 0, 0, 0);
        // Each part of a claimed share gets a claim of its own; the rest of it is stored.
        let mut claims = std::mem::take(&mut self.claims);
        let claimed = shares.into_iter().map(|(end, share)| {
            let first = end - share.len() as u64;
            while let Some(stored) = claims.pop_front_if(|stored| stored.events.end <= first) {
                stored.claim.honour();
            }
            let claimed = claims.front().filter(|claimed| claimed.events.contains(&first));
            Parcel::from(share).claimed(claimed.map(|claimed| claimed.claim.clone()))
        });
        let claimed: Vec<Parcel> = claimed.collect();
        for stored in claims {
            stored.claim.honour();
        }
        claimed.into_iter().chain(held).collect()
    }

    /// Puts the events on disk that are in memory alone, for the next run, and counts those that
    /// cannot be put there. Returns how many events are left behind on disk, and how many are lost.
    pub(crate) fn persist(&mut self) -> (u64, u64) {
        let held = self.held.take().map_or(0, |parcel| parcel.share().len() as u64);
        let held = held + std::mem::take(&mut self.held_back).events as u64;
        let left = self.len() as u64;
        let lost = match self.config.mode {
            SpillMode::Memory => left,
            SpillMode::Overflow | SpillMode::Durable => self.save_memory() + self.gone(),
        };
        (left.saturating_sub(lost), lost + held)
    }

    /// Events that were on disk alone, in a folder that was removed.
    fn gone(&self) -> u64 {
        let gone_below = self.spill.as_ref().map_or(0, Spill::gone_below);
        gone_below.saturating_sub(self.memory_end())
    }

    /// The spill's folder was removed or replaced; it goes on in a new one.
    pub(crate) fn renew(&mut self) -> io::Result<()> {
        self.in_flight.iter_mut().for_each(|flying| flying.has_refuge = false);
        self.spill.as_mut().map_or(Ok(()), |spill| spill.renew(self.id))
    }

    /// Makes segments of the events in memory alone. Returns how many events could not be saved.
    fn save_memory(&mut self) -> u64 {
        let memory_end = self.memory_end();
        let Some(spill) = &mut self.spill else { return self.len() as u64 };
        let mut entries = Vec::new();
        for flying in self.in_flight.iter().filter(|flying| !flying.has_refuge) {
            let mut first = flying.batch.first();
            for share in flying.batch.shares() {
                entries.push((first, share.clone()));
                first += share.len() as u64;
            }
        }
        let mut first = self.head;
        for waiting in &self.memory {
            entries.push((first, waiting.share.clone()));
            first += waiting.share.len() as u64;
        }
        entries.sort_by_key(|(first, _)| *first);
        // This goes from the back, and puts each run up against the events that follow it. Several
        // writers settle events out of turn, and a gap that they leave would look like damage.
        let mut runs: Vec<(u64, Vec<Share>)> = Vec::new();
        let mut end = memory_end;
        for (first, share) in entries.into_iter().rev() {
            if spill.holds(first) {
                end = first;
                continue;
            }
            end = spill.segment_behind(first).map_or(end, |behind| end.min(behind));
            let start = end.saturating_sub(share.len() as u64);
            match runs.last_mut().filter(|(run, _)| *run == end) {
                Some((run, shares)) => {
                    *run = start;
                    shares.push(share);
                }
                None => runs.push((start, vec![share])),
            }
            end = start;
        }
        let compress = self.config.compression == SpillCompression::Zstd;
        let mut lost = 0;
        for (first, mut shares) in runs.into_iter().rev() {
            shares.reverse();
            let events: u64 = shares.iter().map(|share| share.len() as u64).sum();
            let (written, result) = spill.insert(first, &shares, compress);
            lost += events - written;
            if let Err(error) = result {
                error!(
                    error = crate::error::chain(&error),
                    "events in memory could not be written to the spill"
                );
            }
        }
        if lost == 0 {
            self.claims.iter_mut().for_each(|claimed| claimed.is_on_disk = true);
        }
        lost
    }

    /// Events that wait or are in flight.
    pub(crate) fn len(&self) -> usize {
        let held =
            self.held.as_ref().map_or(0, |parcel| parcel.share().len()) + self.held_back.events;
        self.waiting() + held + self.in_flight.iter().map(|f| f.batch.len()).sum::<usize>()
    }

    /// Nothing waits and nothing is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Events that wait.
    pub(crate) fn waiting(&self) -> usize {
        usize::try_from(self.next - self.head).unwrap_or(usize::MAX)
    }

    /// The sequence behind the last event in memory.
    fn memory_end(&self) -> u64 {
        self.head + self.memory_events
    }

    /// The memory that the queue is counted with, in bytes, with events that are held back.
    pub(crate) fn weight(&self) -> usize {
        self.weight + self.held_back.weight
    }

    /// Events of the spill on disk that are not stored.
    pub(crate) fn disk_events(&self) -> u64 {
        self.spill.as_ref().map_or(0, Spill::pending)
    }

    /// Bytes of the spill on disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.spill.as_ref().map_or(0, Spill::bytes)
    }

    /// The time when the oldest event of the queue was read, in microseconds since 1970.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let in_flight = self.in_flight.iter().map(|flying| flying.received).min();
        let waiting = self.memory.front().map(|waiting| waiting.share.received());
        let on_disk = || self.spill.as_ref().filter(|_| self.waiting() > 0)?.oldest_since();
        in_flight.or(waiting).or_else(on_disk)
    }

    /// The time when the newest event of the queue was read, in microseconds since 1970.
    pub(crate) fn newest(&self) -> Option<u64> {
        let in_flight = || self.in_flight.iter().map(|flying| flying.received).max();
        let waiting = self.memory.back().map(|waiting| waiting.share.received());
        let is_on_disk = self.memory_end() < self.next;
        let on_disk = self.spill.as_ref().filter(|_| is_on_disk).and_then(Spill::newest_until);
        on_disk.or(waiting).or_else(in_flight)
    }

    /// The number of the spill's segments.
    pub(crate) fn segments(&self) -> usize {
        self.spill.as_ref().map_or(0, Spill::segments)
    }

    /// Takes the counts of discarded events.
    pub(crate) fn take_losses(&mut self) -> DropCounts {
        std::mem::take(&mut self.losses)
    }
}

enum Written {
    Yes,
    /// The disk does not work, or the share cannot be encoded.
    No,
    /// There is no room, and the configuration says to wait for it.
    Later,
    /// There is no room, and none can be made.
    NoRoom,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::event::chunk::Chunk;
    use crate::event::{Event, Origin};
    use crate::queue::spill::Settings;
    use crate::queue::spill::model::SimDisk;
    use crate::units::{ByteSize, Span};

    fn share(numbers: Range<u64>, size: usize) -> Share {
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        let events = numbers.map(|n| Event::new(&n.to_string(), &vec![0xc0; size])).collect();
        Share::all(Arc::new(Chunk::new(origin, 1, events)))
    }

    fn numbers(batch: &Batch) -> Vec<u64> {
        batch.events().map(|event| event.tag().parse().unwrap()).collect()
    }

    fn queue(max_bytes: u64, when_full: WhenFull) -> Queue {
        let memory = Some(ByteSize(max_bytes));
        let config =
            SpillConfig { mode: SpillMode::Memory, memory, when_full, ..SpillConfig::default() };
        Queue::new(1, config, None)
    }

    const ONE_SECOND: BatchLimits = BatchLimits::new(10, ByteSize(1000), Span::millis(1000));

    #[test]
    fn what_no_spill_keeps_is_handed_on_in_order_with_its_claims() {
        let now = Instant::now();
        let mut old = queue(1 << 20, WhenFull::Block);
        let (claim, mut receipt) = Claim::new();
        let (other_claim, mut other) = Claim::new();
        old.push(share(0..15, 10).into(), now);
        old.push(Parcel::from(share(15..20, 10)).claimed(Some(claim)), now);
        old.push(Parcel::from(share(20..30, 10)).claimed(Some(other_claim)), now);
        let first = old.take(&ONE_SECOND, Instant::now()).unwrap();
        assert_eq!(numbers(&first).len(), 10);
        old.take(&ONE_SECOND, Instant::now()).unwrap();
        old.settle(first.first());
        let handed_on = old.hand_on();
        assert_eq!(old.persist(), (0, 0));
        let mut new = queue(1 << 20, WhenFull::Block);
        for share in handed_on {
            new.push(share, now);
        }
        let second = new.take(&ONE_SECOND, Instant::now()).unwrap();
        assert_eq!(numbers(&second), (10..20).collect::<Vec<_>>());
        assert!(receipt.try_recv().is_err());
        new.settle(second.first());
        assert_eq!(receipt.try_recv(), Ok(true));
        let third = new.take(&ONE_SECOND, Instant::now()).unwrap();
        assert_eq!(numbers(&third), (20..30).collect::<Vec<_>>());
        drop(new);
        assert_eq!(other.try_recv(), Ok(false));
    }

    #[test]
    fn what_a_full_queue_holds_back_is_handed_on_or_counted_as_lost() {
        let now = Instant::now();
        let full = || {
            let mut queue = queue(1, WhenFull::Block);
            queue.push(share(0..3, 10).into(), now);
            queue.push(share(3..5, 10).into(), now);
            assert!(queue.is_blocked());
            queue
        };
        let handed_on: usize = full().hand_on().iter().map(|parcel| parcel.share().len()).sum();
        assert_eq!(handed_on, 5);
        assert_eq!(full().persist(), (0, 5));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u64, usize),
        Take,
        Settle,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..8u64, 0..300usize).prop_map(|(count, size)| Step::Push(count, size)),
            Just(Step::Take),
            Just(Step::Settle),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Against the simplest model: a list of numbers.
        #[test]
        fn every_event_leaves_once_in_order_or_is_counted(steps in steps(), newest: bool) {
            let when_full = if newest { WhenFull::DropNewest } else { WhenFull::DropOldest };
            let mut queue = queue(4000, when_full);
            let mut pushed = 0;
            let mut dropped = 0;
            let mut taken = Vec::new();
            let mut in_flight = Vec::new();
            for step in steps {
                match step {
                    Step::Push(count, size) => {
                        queue.push(share(pushed..pushed + count, size).into(), Instant::now());
                        dropped += usize::try_from(queue.take_losses().full).unwrap();
                        pushed += count;
                    }
                    Step::Take => {
                        let Some(batch) = queue.take(&ONE_SECOND, Instant::now()) else {
                            prop_assert_eq!(queue.waiting(), 0);
                            continue;
                        };
                        prop_assert!(batch.len() <= 10);
                        in_flight.push(batch.first());
                        taken.extend(numbers(&batch));
                    }
                    Step::Settle => {
                        if let Some(first) = in_flight.pop() {
                            queue.settle(first);
                        }
                    }
                }
                prop_assert!(taken.is_sorted_by(|a, b| a < b));
                prop_assert_eq!(taken.len() + dropped + queue.waiting(), usize::try_from(pushed).unwrap());
            }
            for first in in_flight {
                queue.settle(first);
            }
            while let Some(batch) = queue.take(&ONE_SECOND, Instant::now()) {
                queue.settle(batch.first());
            }
            prop_assert_eq!((queue.len(), queue.weight(), queue.oldest()), (0, 0, None));
        }
    }

    /// A life of a queue over a disk.
    #[derive(Debug, Clone)]
    enum Turn {
        /// So many events of so many bytes, of the bus or of a source that can wait.
        Push(u64, usize, bool),
        Unblock,
        /// Everything on disk was written long ago.
        GrowOld,
        Expire,
        /// No file can be made, or again.
        NoNewFiles(bool),
        Take,
        /// Settles the oldest batch in flight, or the youngest.
        Settle(bool),
        Note,
        Sync,
        /// A clean stop and a start.
        Stop,
        /// `kill -9` and a start.
        Kill,
        /// Appending to the disk fails, or works again.
        Failing(bool),
        /// So many bytes of disk are left; none: as many as you like.
        Space(Option<usize>),
    }

    fn turns() -> impl Strategy<Value = Vec<Turn>> {
        let turn = prop_oneof![
            12 => (1..8u64, 0..300usize, prop::bool::weighted(0.3))
                .prop_map(|(count, size, can_wait)| Turn::Push(count, size, can_wait)),
            4 => Just(Turn::Unblock),
            1 => Just(Turn::GrowOld),
            1 => Just(Turn::Expire),
            1 => any::<bool>().prop_map(Turn::NoNewFiles),
            8 => Just(Turn::Take),
            6 => prop::bool::weighted(0.8).prop_map(Turn::Settle),
            2 => Just(Turn::Note),
            2 => Just(Turn::Sync),
            1 => Just(Turn::Stop),
            1 => Just(Turn::Kill),
            1 => any::<bool>().prop_map(Turn::Failing),
            1 => prop::option::of(0..3000usize).prop_map(Turn::Space),
        ];
        proptest::collection::vec(turn, 1..200)
    }

    const MAX_BYTES: u64 = 20_000;

    /// The numbers of events whose source can wait begin here; those of the bus at 0. Each has an
    /// order of its own.
    const CAN_WAIT: u64 = 1 << 40;

    /// The duties of a queue over a disk, as a list of numbers.
    struct Life {
        config: SpillConfig,
        disk: SimDisk,
        queue: Queue<SimDisk>,
        /// The numbers that come next, of the bus and of sources that can wait.
        next: [u64; 2],
        /// Events in the queue when it was opened, pushed, taken, and counted as lost in this run.
        run: [u64; 4],
        last: [Option<u64>; 2],
        in_flight: Vec<Batch>,
        /// Not settled, and neither counted as lost for certain nor forgiven.
        owed: std::collections::BTreeSet<u64>,
        lost: u64,
        /// In memory alone while the disk is broken, so that a kill may take them.
        risky: std::collections::BTreeSet<u64>,
        is_failing: bool,
        is_short: bool,
        has_no_files: bool,
        /// Events of an earlier run are missing between those on disk.
        has_holes: bool,
        /// In this run.
        had_trouble: bool,
        was_broken: bool,
        begun: std::collections::HashMap<u64, (crate::event::batch::BatchId, Vec<u64>)>,
    }

    impl Life {
        fn begin(mode: SpillMode, when_full: WhenFull) -> Self {
            let memory = Some(ByteSize(3000));
            let max_age = Some(Span(Duration::from_hours(1)));
            let config = SpillConfig { mode, max_age, when_full, memory, ..SpillConfig::default() };
            let disk = SimDisk::new();
            Life {
                config,
                queue: open(&disk, config),
                disk,
                next: [0, CAN_WAIT],
                run: [0; 4],
                last: [None; 2],
                in_flight: Vec::new(),
                owed: std::collections::BTreeSet::new(),
                lost: 0,
                risky: std::collections::BTreeSet::new(),
                is_failing: false,
                is_short: false,
                has_no_files: false,
                has_holes: false,
                had_trouble: false,
                was_broken: false,
                begun: std::collections::HashMap::new(),
            }
        }

        fn live(&mut self, turn: Turn) {
            match turn {
                Turn::Push(count, size, can_wait) => {
                    let next = &mut self.next[usize::from(can_wait)];
                    let numbers = *next..*next + count;
                    *next += count;
                    self.owed.extend(numbers.clone());
                    let is_broken = self.is_failing || self.is_short || self.has_no_files;
                    if is_broken || self.config.mode == SpillMode::Overflow {
                        self.risky.extend(numbers.clone());
                    }
                    let claim = can_wait.then(|| Claim::new().0);
                    let share = Parcel::from(share(numbers.clone(), size)).claimed(claim);
                    self.queue.push(share, Instant::now());
                    // Memory has to do if the events in flight fill the spill.
                    let is_full = self.queue.disk_bytes() + count * 400 > MAX_BYTES;
                    let last = self.queue.next.saturating_sub(1);
                    if is_full && !self.queue.spill.as_ref().unwrap().holds(last)
                        || self.queue.held_back() > 0
                    {
                        self.risky.extend(numbers);
                    }
                    self.run[1] += count;
                }
                Turn::Unblock => self.queue.unblock(Instant::now()),
                Turn::GrowOld => self.disk.grow_old(),
                Turn::Expire => self.queue.expire(),
                Turn::NoNewFiles(no) => {
                    self.disk.set_no_new_files(no);
                    self.has_no_files = no;
                    self.had_trouble |= no;
                    self.was_broken |= no;
                }
                Turn::Take => {
                    self.take();
                }
                Turn::Settle(oldest) => {
                    if !self.in_flight.is_empty() {
                        let at = if oldest { 0 } else { self.in_flight.len() - 1 };
                        let batch = self.in_flight.remove(at);
                        self.queue.settle(batch.first());
                        self.owed.retain(|n| !numbers(&batch).contains(n));
                    }
                }
                Turn::Note => self.queue.note_acknowledged(),
                Turn::Sync => {
                    if let Some(job) = self.queue.begin_sync() {
                        let result = job.run();
                        self.queue.end_sync(&job, result);
                    }
                }
                Turn::Stop => self.stop(),
                Turn::Kill => {
                    self.has_holes = true;
                    let mut risky = std::mem::take(&mut self.risky);
                    // Their segment was dropped, and the disk did not take them elsewhere.
                    let spill = self.queue.spill.as_ref().unwrap();
                    let is_gone = |flying: &&InFlight| {
                        !flying.has_refuge && !spill.holds(flying.batch.first())
                    };
                    let gone = self.queue.in_flight.iter().filter(|_| self.had_trouble);
                    risky.extend(gone.filter(is_gone).flat_map(|flying| numbers(&flying.batch)));
                    self.had_trouble = self.is_short || self.is_failing || self.has_no_files;
                    self.owed.retain(|n| !risky.contains(n));
                    self.open();
                }
                Turn::Failing(failing) => {
                    self.disk.set_failing(failing);
                    self.is_failing = failing;
                    self.was_broken |= failing;
                    self.had_trouble |= failing;
                }
                Turn::Space(space) => {
                    self.disk.set_space(space.unwrap_or(usize::MAX));
                    self.is_short = space.is_some();
                    self.had_trouble |= self.is_short;
                    self.was_broken = true;
                }
            }
            // Events in flight that are not on disk any more are saved anew at a stop, elsewhere.
            let kept = self.queue.spill.as_ref().unwrap().acknowledged();
            self.was_broken |= self.in_flight.iter().any(|batch| batch.first() < kept);
            self.count();
        }

        /// Every event that came is in the queue, was taken, or was counted.
        fn count(&mut self) {
            let losses = self.queue.take_losses();
            assert!(losses.damaged == 0 || self.has_holes, "{} are damaged", losses.damaged);
            let losses = losses.total();
            self.lost += losses;
            self.run[3] += losses;
            let [at_start, pushed, taken, lost] = self.run;
            let waiting = self.queue.waiting() + self.queue.held_back();
            assert_eq!(at_start + pushed, taken + lost + waiting as u64);
        }

        fn take(&mut self) -> bool {
            let Some(batch) = self.queue.take(&ONE_SECOND, Instant::now()) else {
                assert_eq!(self.queue.waiting(), 0);
                return false;
            };
            let numbers = numbers(&batch);
            for number in &numbers {
                let last = self.last[usize::from(*number >= CAN_WAIT)].replace(*number);
                assert!(last.is_none_or(|last| last < *number), "order, or twice in one run");
            }
            self.run[2] += batch.len() as u64;
            let is_exact = self.config.mode == SpillMode::Durable && !self.was_broken;
            if is_exact && self.lost == 0 {
                let again = (batch.id(), numbers.clone());
                let before = self.begun.insert(numbers[0], again.clone());
                assert!(before.is_none_or(|before| before == again), "a batch changed its bounds");
            }
            self.in_flight.push(batch);
            true
        }

        fn stop(&mut self) {
            let (len, held_back) = (self.queue.len() as u64, self.queue.held_back() as u64);
            let (left, lost) = self.queue.persist();
            assert_eq!(left + lost, len);
            self.lost += lost;
            // Events that were settled out of turn and were in memory alone leave holes.
            self.has_holes |= lost > 0 || self.was_broken || !self.in_flight.is_empty();
            if !self.was_broken {
                assert_eq!(lost, held_back);
            }
            self.queue.note_acknowledged();
            self.open();
        }

        fn open(&mut self) {
            self.queue = open(&self.disk, self.config);
            self.in_flight.clear();
            self.last = [None; 2];
            self.run = [self.queue.waiting() as u64, 0, 0, 0];
            let torn = self.queue.take_losses().total();
            self.lost += torn;
        }

        fn end(mut self) {
            self.disk.set_failing(false);
            self.disk.set_space(usize::MAX);
            self.disk.set_no_new_files(false);
            self.stop();
            let mut came = std::collections::BTreeSet::new();
            while self.take() {
                came.extend(self.in_flight.last().map(numbers).unwrap_or_default());
                self.count();
            }
            self.count();
            let missing: Vec<_> = self.owed.difference(&came).collect();
            assert!(missing.len() as u64 <= self.lost, "{} counted, lost: {missing:?}", self.lost);
        }
    }

    fn open(disk: &SimDisk, config: SpillConfig) -> Queue<SimDisk> {
        let settings = Settings { segment_bytes: 1500, max_bytes: MAX_BYTES, compress: false };
        Queue::new(7, config, Some(Spill::open(disk.clone(), settings).unwrap()))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn invariant_3_nothing_in_a_queue_on_disk_is_lost_without_being_counted(
            turns in turns(), is_durable: bool, newest: bool,
        ) {
            let mode = if is_durable { SpillMode::Durable } else { SpillMode::Overflow };
            let when_full = if newest { WhenFull::DropNewest } else { WhenFull::DropOldest };
            let mut life = Life::begin(mode, when_full);
            for turn in turns {
                life.live(turn);
            }
            life.end();
        }
    }

    #[test]
    fn invariant_4_a_batch_keeps_its_events_and_its_id_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            let disk = Folder::create(folder.path()).unwrap();
            let config = SpillConfig::default();
            Queue::new(7, config, Some(Spill::open(disk, config.settings()).unwrap()))
        };
        let mut queue = open();
        queue.push(share(0..25, 10).into(), Instant::now());
        let first = queue.take(&ONE_SECOND, Instant::now()).unwrap();
        queue.settle(first.first());
        queue.note_acknowledged();
        let second = queue.take(&ONE_SECOND, Instant::now()).unwrap();
        drop(queue);
        let mut queue = open();
        queue.push(share(25..60, 10).into(), Instant::now());
        let limits = BatchLimits { max_events: 40, ..ONE_SECOND };
        let again = queue.take(&limits, Instant::now()).unwrap();
        assert_eq!((again.id(), numbers(&again)), (second.id(), numbers(&second)));
        assert_eq!(numbers(&again), (10..20).collect::<Vec<_>>());
        assert_eq!(
            numbers(&queue.take(&limits, Instant::now()).unwrap()),
            (20..60).collect::<Vec<_>>()
        );
    }

    /// A queue over a disk, with little in memory.
    fn on(disk: &SimDisk, fsync: Fsync) -> Queue<SimDisk> {
        let memory = Some(ByteSize(2000));
        open(disk, SpillConfig { fsync, memory, ..SpillConfig::default() })
    }

    #[test]
    fn invariant_3_what_the_disk_does_not_give_back_now_is_waited_for() {
        let disk = SimDisk::new();
        let mut queue = on(&disk, Fsync::Never);
        let mut now = Instant::now();
        for first in (0..60).step_by(6) {
            queue.push(share(first..first + 6, 60).into(), now);
        }
        // A batch of which only the first part can be read, after a restart.
        let whole = queue.take(&ONE_SECOND, now).unwrap();
        drop(queue);
        let mut queue = on(&disk, Fsync::Never);
        disk.set_failing_reads_after(1);
        assert!(queue.take(&ONE_SECOND, now).is_none());
        assert!(queue.take(&ONE_SECOND, now).is_none());
        assert!(queue.due(&ONE_SECOND, now).unwrap() > now);
        assert_eq!((queue.waiting(), queue.take_losses().total()), (60, 0));
        disk.set_failing_reads(false);
        now = queue.due(&ONE_SECOND, now).unwrap();
        let again = queue.take(&ONE_SECOND, now).unwrap();
        assert_eq!((again.id(), numbers(&again)), (whole.id(), numbers(&whole)));
        let mut came = numbers(&again);
        while let Some(batch) = queue.take(&ONE_SECOND, now) {
            came.extend(numbers(&batch));
        }
        assert_eq!((came, queue.take_losses().total()), ((0..60).collect(), 0));
    }

    #[test]
    fn invariant_4_with_fsync_always_a_batch_keeps_its_id_over_a_power_failure() {
        for luck in 0..64 {
            let disk = SimDisk::new();
            let mut queue = on(&disk, Fsync::Always);
            let now = Instant::now();
            let mut taken = Vec::new();
            for first in [0, 20] {
                queue.push(share(first..first + 20, 10).into(), now);
                let job = queue.begin_sync().unwrap();
                let result = job.run();
                queue.end_sync(&job, result);
                let limits = BatchLimits { max_events: 7, ..ONE_SECOND };
                taken.push(queue.take(&limits, now).unwrap());
            }
            drop(queue);
            disk.lose_power(luck);
            let mut queue = on(&disk, Fsync::Always);
            for before in taken {
                let again = queue.take(&ONE_SECOND, now).unwrap();
                assert_eq!((again.id(), numbers(&again)), (before.id(), numbers(&before)));
            }
        }
    }

    #[test]
    fn invariant_3_what_was_appended_during_a_sync_that_failed_is_not_said_to_last() {
        let disk = SimDisk::new();
        let mut queue = on(&disk, Fsync::Always);
        let now = Instant::now();
        let push = |queue: &mut Queue<SimDisk>, first: u64| {
            let (claim, receipt) = Claim::new();
            // Large enough that the third needs another segment.
            queue.push(Parcel::from(share(first..first + 1, 600)).claimed(Some(claim)), now);
            receipt
        };
        let mut receipts = vec![push(&mut queue, 0)];
        let job = queue.begin_sync().unwrap();
        receipts.push(push(&mut queue, 1));
        receipts.push(push(&mut queue, 2));
        disk.set_failing_syncs(true);
        let result = job.run();
        disk.set_failing_syncs(false);
        queue.end_sync(&job, result);
        receipts.push(push(&mut queue, 3));
        let job = queue.begin_sync().unwrap();
        let result = job.run();
        queue.end_sync(&job, result);
        let said: Vec<_> =
            receipts.iter_mut().map(crate::sync::receipt::Receipt::try_recv).collect();
        assert_eq!(said, [Ok(false), Ok(false), Ok(true), Ok(true)]);
    }

    #[test]
    fn invariant_3_a_sync_does_not_speak_for_events_that_are_in_memory_alone() {
        let now = Instant::now();
        for fsync in [Fsync::Always, Fsync::Interval(Duration::from_millis(500))] {
            let disk = SimDisk::new();
            let mut queue = on(&disk, fsync);
            let (claim, mut receipt) = Claim::new();
            disk.set_failing(true);
            queue.push(Parcel::from(share(0..2, 10)).claimed(Some(claim)), now);
            disk.set_failing(false);
            queue.push(share(2..4, 10).into(), now);
            let job = queue.begin_sync().unwrap();
            let result = job.run();
            queue.end_sync(&job, result);
            receipt.try_recv().unwrap_err();
            let batch = queue.take(&ONE_SECOND, now).unwrap();
            assert_eq!(numbers(&batch), [0, 1, 2, 3]);
            queue.settle(batch.first());
            assert_eq!(receipt.try_recv(), Ok(true));
        }
    }

    #[test]
    fn invariant_3_what_is_left_at_a_stop_is_said_to_last_only_after_its_last_sync() {
        let now = Instant::now();
        for is_fine in [true, false] {
            let disk = SimDisk::new();
            let mut queue = on(&disk, Fsync::Always);
            let (claim, mut receipt) = Claim::new();
            queue.push(Parcel::from(share(0..2, 10)).claimed(Some(claim)), now);
            assert_eq!(queue.persist(), (2, 0));
            receipt.try_recv().unwrap_err();
            disk.set_failing_syncs(!is_fine);
            let job = queue.begin_sync().unwrap();
            let result = job.run();
            queue.end_sync(&job, result);
            queue.honour_what_lasts();
            assert_eq!(receipt.try_recv(), Ok(is_fine));
        }
    }

    #[test]
    fn a_full_disk_leaves_all_of_memory_to_be_used() {
        let now = Instant::now();
        let disk = SimDisk::new();
        let memory = Some(ByteSize(1 << 20));
        let mut queue = open(&disk, SpillConfig { memory, ..SpillConfig::default() });
        disk.set_space(0);
        queue.push(share(0..2, 100).into(), now);
        let flying = queue.take(&ONE_SECOND, now).unwrap();
        for n in 1..20 {
            queue.push(share(2 * n..2 * n + 2, 100).into(), now);
        }
        assert_eq!(queue.take_losses(), DropCounts::default());
        queue.settle(flying.first());
        let mut came = Vec::new();
        while let Some(batch) = queue.take(&ONE_SECOND, now) {
            came.extend(numbers(&batch));
            queue.settle(batch.first());
        }
        assert_eq!(came, (2..40).collect::<Vec<_>>());
    }

    /// This holds for every kind of queue, although the sink takes nothing at first.
    #[test]
    fn events_whose_source_can_wait_wait_for_room_and_leave_some_to_the_bus() {
        let now = Instant::now();
        for mode in [SpillMode::Durable, SpillMode::Overflow, SpillMode::Memory] {
            for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Block] {
                let (memory, max_bytes) = (Some(ByteSize(3000)), ByteSize(20_000));
                let config =
                    SpillConfig { mode, max_bytes, when_full, memory, ..SpillConfig::default() };
                let settings = Settings { segment_bytes: 1500, ..config.settings() };
                let settings = Settings { max_bytes: 20_000, ..settings };
                let spill = || Spill::open(SimDisk::new(), settings).unwrap();
                let mut queue = Queue::new(7, config, (mode != SpillMode::Memory).then(spill));
                let mut receipts = Vec::new();
                for n in 0..200 {
                    let (claim, receipt) = Claim::new();
                    receipts.push(receipt);
                    queue
                        .push(Parcel::from(share(2 * n..2 * n + 2, 100)).claimed(Some(claim)), now);
                }
                assert!(queue.held_back() > 100, "{mode:?}");
                // The bus goes past.
                queue.push(share(1000..1001, 10).into(), now);
                assert!(!queue.is_blocked(), "{mode:?} {when_full:?}");
                let mut came = Vec::new();
                while let Some(batch) = queue.take(&ONE_SECOND, now) {
                    came.extend(numbers(&batch));
                    queue.settle(batch.first());
                    queue.unblock(now);
                }
                assert_eq!(queue.take_losses(), DropCounts::default(), "{mode:?} {when_full:?}");
                came.retain(|n| *n != 1000);
                assert_eq!(came, (0..400).collect::<Vec<_>>(), "{mode:?} {when_full:?}");
                assert!(receipts.iter_mut().all(|receipt| receipt.try_recv() == Ok(true)));
            }
        }
    }

    #[test]
    fn a_queue_that_blocks_takes_a_record_that_is_larger_than_what_is_left() {
        let now = Instant::now();
        for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Block] {
            let config = SpillConfig { when_full, ..SpillConfig::default() };
            let settings = Settings { segment_bytes: 1500, max_bytes: 2000, compress: false };
            let spill = Spill::open(SimDisk::new(), settings).unwrap();
            let mut queue = Queue::new(7, config, Some(spill));
            for n in 0..5 {
                // The second is larger than the bound on disk.
                let size = if n == 1 { 5000 } else { 1200 };
                queue.push(share(n..n + 1, size).into(), now);
                assert!(!queue.is_blocked(), "{when_full:?}: {n}");
                let batch = queue.take(&ONE_SECOND, now).unwrap();
                assert_eq!(numbers(&batch), [n]);
                queue.settle(batch.first());
            }
            assert_eq!(queue.take_losses(), DropCounts::default());
        }
    }

    #[test]
    fn one_old_letter_does_not_let_fresh_events_expire() {
        let now = Instant::now();
        let config =
            SpillConfig { max_age: Some(Span(Duration::from_hours(1))), ..SpillConfig::default() };
        let disk = SimDisk::new();
        let mut queue = open(&disk, config);
        let read_at = |received, numbers: Range<u64>| {
            let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
            let events = numbers.map(|n| Event::new(&n.to_string(), &[0xc0; 100])).collect();
            Share::all(Arc::new(Chunk::new(origin, received, events)))
        };
        for first in (0..30).step_by(2) {
            // A letter of 1970 is the last of each segment, and the first.
            queue.push(read_at(state::now(), first..first + 1).into(), now);
            queue.push(read_at(1, first + 1..first + 2).into(), now);
        }
        let an_hour_ago = state::now() - 3_600_000_000;
        queue.expire();
        assert_eq!((queue.waiting(), queue.discard_before(an_hour_ago, now)), (30, 0));
        drop(queue);
        let mut queue = open(&disk, config);
        queue.expire();
        assert_eq!((queue.waiting(), queue.take_losses()), (30, DropCounts::default()));
        disk.grow_old();
        queue.expire();
        assert_eq!((queue.waiting(), queue.take_losses().expired), (0, 30));
    }

    #[test]
    fn a_batch_is_due_when_full_or_after_its_linger() {
        let mut queue = queue(1 << 20, WhenFull::DropOldest);
        let now = Instant::now();
        assert_eq!(queue.due(&ONE_SECOND, now), None);
        queue.push(share(0..9, 1).into(), now);
        assert_eq!(queue.due(&ONE_SECOND, now), Some(now + Duration::from_secs(1)));
        queue.push(share(9..10, 1).into(), now);
        assert_eq!(queue.due(&ONE_SECOND, now), Some(now));
        assert_eq!(queue.take(&ONE_SECOND, Instant::now()).unwrap().len(), 10);
        queue.push(share(10..11, 5000).into(), now);
        assert_eq!(queue.due(&ONE_SECOND, now), Some(now));
    }

    #[test]
    fn a_full_queue_drops_what_waits_but_not_what_is_in_flight() {
        let weight = share(0..1, 100).weight() as u64;
        let mut queue = queue(weight * 4, WhenFull::DropOldest);
        queue.push(share(0..2, 100).into(), Instant::now());
        let batch = queue.take(&ONE_SECOND, Instant::now()).unwrap();
        queue.push(share(2..4, 100).into(), Instant::now());
        queue.push(share(4..6, 100).into(), Instant::now());
        assert_eq!(queue.take_losses().full, 2);
        assert_eq!(numbers(&batch), [0, 1]);
        assert_eq!(numbers(&queue.take(&ONE_SECOND, Instant::now()).unwrap()), [4, 5]);
    }

    #[test]
    fn an_event_over_the_bound_is_still_taken() {
        let mut queue = queue(10, WhenFull::DropNewest);
        queue.push(share(0..1, 100).into(), Instant::now());
        assert_eq!(queue.take_losses().full, 0);
        queue.push(share(1..2, 100).into(), Instant::now());
        assert_eq!(queue.take_losses().full, 1);
        assert_eq!(numbers(&queue.take(&ONE_SECOND, Instant::now()).unwrap()), [0]);
    }
}
