//! A model of the spooler: every order of events to a bounded depth, and long random orders.
//!
//! The spooler, its queue over a simulated disk, the receipts and the code of the writers
//! ([`drive`], with back-off, breaker and splitting) are the real ones. A [`World`] holds them on
//! one thread and does one [`Action`] after the other, so that an order of actions is one
//! interleaving of the threads and tasks. Shares come. One of the things that the spooler waits for
//! is served. Time passes. A store answers a writer or not. A sync ends well or badly. The disk
//! fails or fills. The daemon stops, is killed, or its sink changes.
//!
//! Afterwards everything broken is repaired. Then each event must have been stored, refused or
//! counted as lost, in order, by one writer in one run, and not again once it was settled. Every
//! source must have its receipt, and no receipt may have promised too much. Memory must have been
//! bounded, and all must end by itself.
//!
//! Some things are not explored. No other thread touches what happens between two calls of `round`
//! and `handle`. The channels are taken to do what they say. The order of memory accesses in
//! receipts and counters is left out, and so is the reload itself, whose part the world plays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::delivery::breaker::Breaker;
use crate::delivery::retry::RetryConfig;
use crate::delivery::tests::Unconfigurable;
use crate::delivery::{Shared, Writer, drive};
use crate::event::chunk::{Chunk, Share};
use crate::event::{Event, Origin};
use crate::queue::config::{SpillConfig, SpillMode, WhenFull};
use crate::queue::spill::model::SimDisk;
use crate::queue::spill::{Settings, Spill};
use crate::queue::spooler::*;
use crate::sink::contract::{
    ConnectError, Context, Defaults, Once, Preparer, Refusal, Sink, WriteError,
};
use crate::sink::testing::context;
use crate::sync::receipt::{Claim, Receipt};
use crate::units::{ByteSize, Span};

const LIMITS: BatchLimits = BatchLimits::new(3, ByteSize(1000), Span::millis(50));

/// Memory for each queue; a few shares.
const MEMORY: usize = 4000;

/// Shares that a source which can wait may have under way.
const UNDER_WAY: usize = 4;

/// The numbers of events of such a source begin here; those of the bus at 0. Each has an order of
/// its own.
const CAN_WAIT: u64 = 1 << 40;

/// Shares that the channel takes.
const CHANNEL: usize = 2;

/// Steps within which everything must have come to rest.
const REST: usize = 5000;

/// Rounds in which something may be due one after the other.
const RESTLESS: usize = 10;

/// Longer than any time that something waits for.
const LONG: Duration = Duration::from_secs(61);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    Stored,
    /// It is stored, and the answer is lost.
    Unheard,
    Busy,
    /// The first event is refused, the others are stored.
    FirstIsBad,
    /// Something is refused.
    SomethingIsBad,
    /// The configuration is wrong.
    Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Arm {
    Shares,
    Settled,
    Orders,
    Synced,
    /// This is served only if none of the others is ready.
    Time,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Action {
    /// So many events of so many bytes, of the bus or of a source that can wait.
    Send(u64, usize, bool),
    /// A round of the spooler, and the arm of its wait.
    Round(Arm),
    /// Time passes until something is due, or long.
    Pass(bool),
    Answer(usize, Answer),
    /// The sync that is under way ends, well or not.
    EndSync(bool),
    /// Appending fails, or works again and has room.
    DiskFails(bool),
    DiskIsFull,
    /// All files were written long ago.
    GrowOld,
    /// The dispatcher ends.
    Close,
    /// The drain deadline passes.
    GiveUp,
    Order(Order),
    Kill,
    /// The next spooler, after the last has ended.
    Start,
}

/// The nature of a world.
#[derive(Debug, Clone, Copy)]
struct Nature {
    mode: SpillMode,
    when_full: WhenFull,
    fsync: Fsync,
    writers: usize,
    max_bytes: u64,
}

impl Nature {
    fn spill(&self) -> SpillConfig {
        SpillConfig {
            mode: self.mode,
            when_full: self.when_full,
            fsync: self.fsync,
            memory: Some(ByteSize(MEMORY as u64)),
            max_bytes: ByteSize(self.max_bytes),
            max_age: Some(Span(Duration::from_hours(1))),
            ..SpillConfig::default()
        }
    }

    fn queue(&self, disk: &SimDisk) -> Queue<SimDisk> {
        let settings = Settings { segment_bytes: 700, max_bytes: self.max_bytes, compress: false };
        let spill = || Spill::open(disk.clone(), settings).unwrap();
        Queue::new(7, self.spill(), (self.mode != SpillMode::Memory).then(spill))
    }
}

/// The sink's store, and what its writers do.
#[derive(Default)]
struct Store {
    pending: BTreeMap<usize, (Vec<u64>, oneshot::Sender<Answer>)>,
    stored: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    /// Batches of this run by the place of their first event.
    batches: BTreeMap<u64, Vec<u64>>,
    /// The writer that had an event, in this run.
    writers: BTreeMap<u64, usize>,
    /// The last of each writer, of the bus or not.
    last: BTreeMap<(usize, bool), u64>,
    /// Settled, and the spooler knows; must not come again.
    settled: BTreeSet<u64>,
    /// Their sources were told that they are safe.
    promised: BTreeSet<u64>,
}

impl Store {
    fn begin_write(&mut self, writer: usize, batch: &Batch) -> oneshot::Receiver<Answer> {
        let numbers = numbers(batch);
        let again = numbers.iter().find(|n| self.settled.contains(n));
        assert_eq!(again, None, "an event comes again after it was settled");
        self.batches.entry(batch.first()).or_insert_with(|| numbers.clone());
        for number in &numbers {
            match self.writers.insert(*number, writer) {
                Some(before) => assert_eq!(before, writer, "event {number} went to two writers"),
                None => {
                    let last = self.last.insert((writer, *number < CAN_WAIT), *number);
                    assert!(last.is_none_or(|last| last < *number), "{number} after {last:?}");
                }
            }
        }
        let (answer, answered) = oneshot::channel();
        self.pending.insert(writer, (numbers, answer));
        answered
    }

    /// Writers that wait for an answer.
    fn waiting(&mut self) -> Vec<usize> {
        self.pending.retain(|_, (_, answer)| !answer.is_closed());
        self.pending.keys().copied().collect()
    }

    fn answer(&mut self, writer: usize, answer: Answer) {
        let Some((numbers, waits)) = self.pending.remove(&writer) else { return };
        if waits.is_closed() {
            return; // the write was broken off
        }
        match answer {
            Answer::Stored | Answer::Unheard => self.stored.extend(&numbers),
            Answer::FirstIsBad => {
                self.refused.insert(numbers[0]);
                self.stored.extend(&numbers[1..]);
            }
            Answer::SomethingIsBad if numbers.len() == 1 => self.refused.extend(&numbers),
            Answer::SomethingIsBad | Answer::Busy | Answer::Wrong => {}
        }
        waits.send(answer).unwrap();
    }

    /// Another spooler comes. Events that it cannot know to be settled may come again: none after a
    /// crash, else those behind an event that is not settled.
    fn begin_run(&mut self, is_noted: bool) {
        let is_open = |n: &u64| !self.settled.contains(n);
        let is_settled = |numbers: &&Vec<u64>| !numbers.iter().any(is_open);
        let behind = self.batches.values().skip_while(is_settled).flatten().copied();
        let behind: BTreeSet<u64> = behind.collect();
        self.settled.retain(|n| is_noted && !behind.contains(n));
        self.writers.clear();
        self.batches.clear();
        self.last.clear();
    }
}

struct Gated(Arc<Mutex<Store>>, usize);

/// Batches that were written by a form that was made ahead.
static FORMS: AtomicUsize = AtomicUsize::new(0);

impl Sink for Gated {
    const NAME: &'static str = "gated";
    const ABOUT: &'static str = "answers when it is told to";
    const DEFAULTS: Defaults = Defaults::store(LIMITS);
    const ONCE: Once = Once::No;
    type Config = Unconfigurable<Store>;
    /// The numbers of its events.
    type Prepared = Vec<u64>;

    async fn connect(config: &Self::Config, context: &Context) -> Result<Self, ConnectError> {
        Ok(Gated(Arc::clone(&config.0), context.writer))
    }

    async fn write(&mut self, batch: &Batch, prepared: Option<Vec<u64>>) -> Result<(), WriteError> {
        if let Some(prepared) = prepared {
            assert_eq!(prepared, numbers(batch));
            FORMS.fetch_add(1, Ordering::Relaxed);
        }
        let answered = self.0.lock().unwrap().begin_write(self.1, batch);
        match answered.await.unwrap() {
            Answer::Stored => Ok(()),
            Answer::Unheard => Err(WriteError::reconnect("writing", "gone")),
            Answer::Busy => Err(WriteError::retry("writing", "busy")),
            Answer::FirstIsBad => {
                let refusal = Refusal { place: 0, cause: "bad".into() };
                Err(WriteError::refused("writing", vec![refusal]))
            }
            Answer::SomethingIsBad => Err(WriteError::reject("writing", "bad")),
            Answer::Wrong => Err(WriteError::fatal("logging in", "wrong password")),
        }
    }

    fn preparer(&self) -> Option<Preparer<Vec<u64>>> {
        Some(Box::new(|batch| Some(numbers(batch))))
    }
}

/// The numbers of a batch's events.
fn numbers(batch: &Batch) -> Vec<u64> {
    batch.events().map(|event| event.tag().parse().unwrap()).collect()
}

/// A spooler at work, with the other ends of its channels.
struct Run {
    spooler: Spooler<SimDisk>,
    progress: Progress<SimDisk>,
    /// The wait that the last round asked for.
    wait: Duration,
    /// Successive rounds with work due although nothing happened.
    restless: usize,
    jobs: Receiver<SyncJob<SimDisk>>,
    done: Sender<(SyncJob<SimDisk>, io::Result<()>)>,
    orders: Sender<Order>,
    /// The last order.
    ordered: Option<Order>,
    writers: JoinSet<()>,
}

struct World {
    nature: Nature,
    runtime: Runtime,
    now: Instant,
    disk: SimDisk,
    disk_works: bool,
    /// The disk was full or failed since the last crash.
    had_trouble: bool,
    state: Arc<SinkState>,
    store: Arc<Mutex<Store>>,
    /// `None` when the dispatcher has ended.
    dispatcher: Option<Sender<Parcel>>,
    stop: CancellationToken,
    run: Option<Run>,
    left: Option<Leftover>,
    /// The numbers that come next, of the bus and of the source that can wait.
    next: [u64; 2],
    /// The events to be stored or counted: those that were sent, less those that a crash may take.
    owed: BTreeSet<u64>,
    receipts: Vec<(std::ops::Range<u64>, Receipt)>,
    was_killed: bool,
}

impl World {
    fn new(nature: Nature) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            // In order, so that those that were begun have ended when a later one has.
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let mut world = World {
            nature,
            runtime,
            // Code that looked at the real clock would find it ahead, and all of this early.
            now: Instant::now(),
            disk: SimDisk::new(),
            disk_works: true,
            had_trouble: false,
            state: Arc::new(SinkState::new("test", "gated")),
            store: Arc::default(),
            dispatcher: None,
            stop: CancellationToken::new(),
            run: None,
            left: None,
            next: [0, CAN_WAIT],
            owed: BTreeSet::new(),
            receipts: Vec::new(),
            was_killed: false,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        let left = self.left.take();
        let (inherited, shares) = left.map_or((Vec::new(), None), |l| (l.in_memory, l.shares));
        let shares = shares.unwrap_or_else(|| {
            let (dispatcher, shares) = channel(CHANNEL, &Bell::default());
            self.dispatcher = Some(dispatcher);
            self.stop = CancellationToken::new();
            shares
        });
        let count = self.nature.writers;
        let (settled, settled_out) = channel(count * BATCHES_PER_WRITER, shares.bell());
        let (orders, orders_out) = channel(ORDERS, shares.bell());
        let (_, inspections) = channel(1, shares.bell());
        let give_up = CancellationToken::new();
        let shared = Arc::new(Shared {
            retry: RetryConfig::default(),
            breaker: Breaker::default(),
            rate_limit: None,
            dead_letters: None,
            deaths: None,
            state: Arc::clone(&self.state),
            parked: CancellationToken::new(),
        });
        let (mut writers, mut batches) = (JoinSet::new(), Vec::new());
        for writer in 0..count {
            let (batches_in, batches_out) = mpsc::channel(BATCHES_PER_WRITER);
            batches.push(batches_in);
            let context = Context { writer, ..context() };
            let writer = Writer {
                context,
                batches: batches_out,
                settled: settled.clone(),
                shared: Arc::clone(&shared),
                stop: give_up.clone(),
            };
            let config = Unconfigurable(Arc::clone(&self.store));
            let driving = async move { drive::<Gated>(&config, writer).await };
            writers.spawn_on(driving, self.runtime.handle());
        }
        let spooler = Spooler {
            queue: self.nature.queue(&self.disk),
            limits: LIMITS,
            fsync: (self.nature.mode != SpillMode::Memory).then_some(self.nature.fsync),
            shares,
            settled: settled_out,
            redaction: None,
            writers: batches,
            state: Arc::clone(&self.state),
            orders: orders_out,
            inspections,
            stop: self.stop.clone(),
            give_up,
            inherited: inherited.into(),
            renew: Arc::default(),
            writer_died: CancellationToken::new(),
            is_draining: false,
        };
        let (syncer, jobs, done) = Syncer::new(spooler.shares.bell());
        let mut progress = Progress::new(count, self.now, syncer);
        spooler.plan_sync(&mut progress, self.now);
        let (wait, restless, ordered) = (Duration::ZERO, 0, None);
        let run = Run { spooler, progress, wait, restless, jobs, done, orders, ordered, writers };
        self.run = Some(run);
    }

    /// The inputs that the spooler waits for and could be served.
    fn ready(&self) -> Vec<Arm> {
        let Some(Run { spooler, progress, .. }) = &self.run else { return Vec::new() };
        // A closed channel is ready too; that it is closed is seen by its disconnected sender.
        let has_shares =
            !spooler.shares.is_empty() || (self.dispatcher.is_none() && !progress.draining);
        let has_settled = !spooler.settled.is_empty() || self.writers_are_gone();
        let mut ready = Vec::new();
        ready.extend((spooler.takes_shares(progress) && has_shares).then_some(Arm::Shares));
        ready.extend((has_settled && !progress.abandoned).then_some(Arm::Settled));
        ready.extend((!spooler.orders.is_empty()).then_some(Arm::Orders));
        ready.extend((!progress.syncer.done.is_empty()).then_some(Arm::Synced));
        if ready.is_empty() {
            ready.push(Arm::Time);
        }
        ready
    }

    fn writers_are_gone(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.writers.is_empty())
    }

    /// The actions that are possible now; `all` of them, or those worth trying in every order.
    fn possible(&self, all: bool) -> Vec<Action> {
        let Some(run) = &self.run else { return vec![Action::Start] };
        let mut actions = vec![Action::Send(1, 20, true), Action::Send(4, 200, false)];
        actions.extend(self.ready().into_iter().map(Action::Round));
        actions.extend([Action::Pass(false)]);
        for writer in self.store.lock().unwrap().waiting() {
            let answers = [Answer::Stored, Answer::Busy, Answer::SomethingIsBad, Answer::Unheard];
            actions.extend(answers.map(|answer| Action::Answer(writer, answer)));
            if all {
                let rare = [Answer::Stored, Answer::FirstIsBad, Answer::Wrong];
                actions.extend(rare.map(|answer| Action::Answer(writer, answer)));
            }
        }
        if !run.jobs.is_empty() {
            actions.extend([true, false].map(Action::EndSync));
        }
        if self.nature.mode != SpillMode::Memory {
            actions.push(Action::DiskFails(self.disk_works));
        }
        actions.extend(self.dispatcher.as_ref().map(|_| Action::Close));
        actions.push(Action::GiveUp);
        let orders: &[Order] = match run.ordered {
            None => &[Order::Leave, Order::End],
            Some(Order::Leave) => &[Order::LeaveAtOnce],
            Some(Order::LeaveAtOnce | Order::End) => &[],
        };
        actions.extend(orders.iter().copied().map(Action::Order));
        actions.push(Action::Kill);
        if all {
            // Actions that end a run are rarer than those that go on.
            let usual: Vec<Action> = actions
                .iter()
                .copied()
                .filter(|a| matches!(a, Action::Send(..) | Action::Round(_) | Action::Answer(..)))
                .collect();
            actions.extend(usual.repeat(3));
            actions.extend([Action::Send(1, 20, false), Action::Send(4, 200, true)]);
            actions.extend([Action::Pass(true), Action::DiskIsFull, Action::GrowOld]);
        }
        actions
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send(count, size, can_wait) => self.send(count, size, can_wait),
            Action::Round(arm) => self.round(arm),
            Action::Pass(is_long) => {
                let wait = self.run.as_ref().map_or(LONG, |run| run.wait);
                self.pass(if is_long { LONG } else { wait.min(LONG) });
            }
            Action::Answer(writer, answer) => self.store.lock().unwrap().answer(writer, answer),
            Action::EndSync(is_fine) => self.end_sync(is_fine),
            Action::DiskFails(fails) => {
                self.disk.set_failing(fails);
                self.disk.set_space(usize::MAX);
                self.disk_works = !fails;
                self.had_trouble |= fails;
            }
            Action::DiskIsFull => {
                self.disk.set_space(100);
                self.had_trouble = true;
                self.disk_works = false;
            }
            Action::GrowOld => self.disk.grow_old(),
            Action::Close => {
                self.stop.cancel();
                self.dispatcher = None;
            }
            Action::GiveUp => self.give_up(),
            Action::Order(order) => {
                let run = self.run.as_mut().unwrap();
                run.ordered = Some(order);
                run.orders.try_send(order).unwrap();
            }
            Action::Kill => self.kill(),
            Action::Start => self.start(),
        }
        self.let_tasks_run();
    }

    fn send(&mut self, count: u64, size: usize, can_wait: bool) {
        let Some(dispatcher) = &self.dispatcher else { return };
        if dispatcher.is_full() || can_wait && self.receipts.len() >= UNDER_WAY {
            return;
        }
        let first = self.next[usize::from(can_wait)];
        let numbers = first..first + count;
        let share = share_of(first, count, size);
        let (claim, receipt) = Claim::new();
        let claim = can_wait.then_some(claim);
        if dispatcher.try_send(share.claimed(claim)).is_ok() {
            self.owed.extend(numbers.clone());
            if can_wait {
                self.receipts.push((numbers, receipt));
            }
            self.next[usize::from(can_wait)] += count;
        }
    }

    fn round(&mut self, arm: Arm) {
        let Some(mut run) = self.run.take() else { return };
        let Some(wait) = run.spooler.round(&mut run.progress, self.now) else {
            return self.end_run(run);
        };
        run.wait = wait;
        // Batches that a writer may hold, each of one share or more, and the queue itself.
        let flying = (self.nature.writers * BATCHES_PER_WRITER + 1 + UNDER_WAY) * 3500;
        let weight = run.spooler.queue.weight();
        assert!(weight <= MEMORY + flying, "{weight} bytes of memory");
        let input = match arm {
            Arm::Shares if !run.spooler.takes_shares(&run.progress) => None,
            Arm::Shares => match run.spooler.shares.take() {
                Poll::Ready(Some(share)) => Some(Input::Share(share)),
                _ => self.dispatcher.is_none().then_some(Input::NoMoreShares),
            },
            Arm::Settled => match run.spooler.settled.take() {
                Poll::Ready(Some(settled)) => {
                    let mut store = self.store.lock().unwrap();
                    let numbers = store.batches[&settled.first].clone();
                    store.settled.extend(numbers);
                    Some(Input::Settled(settled))
                }
                _ => run.writers.is_empty().then_some(Input::WritersGone),
            },
            Arm::Orders => run.spooler.orders.try_iter().next().map(Input::Order),
            Arm::Synced => {
                let done = run.progress.syncer.done.try_iter().next();
                done.map(|(job, result)| Input::Synced(job, result))
            }
            Arm::Time => None,
        };
        let is_restless = matches!((&input, wait), (None, Duration::ZERO));
        run.restless = if is_restless { run.restless + 1 } else { 0 };
        assert!(run.restless < RESTLESS, "the spooler spins");
        let input = input.unwrap_or(Input::Time);
        run.spooler.handle(input, &mut run.progress, self.now);
        self.run = Some(run);
    }

    /// The spooler's work is done. The syncer's work under way ends first.
    fn end_run(&mut self, run: Run) {
        self.run = Some(run);
        self.end_sync(true);
        let Some(Run { mut spooler, progress, .. }) = self.run.take() else { return };
        if let Some((job, result)) = progress.syncer.done.try_iter().next() {
            spooler.queue.end_sync(&job, result);
        }
        let left = spooler.leave(progress.leaving);
        if left.shares.is_none() {
            self.dispatcher = None;
        }
        self.left = Some(left);
        self.let_tasks_run();
        let is_exact = self.disk_works && self.state.dropped() == 0;
        self.store.lock().unwrap().begin_run(is_exact);
    }

    fn end_sync(&mut self, is_fine: bool) {
        let Some(run) = &self.run else { return };
        if let Some(job) = run.jobs.try_iter().next() {
            let result = if is_fine { job.run() } else { Err(io::Error::other("EIO")) };
            run.done.try_send((job, result)).unwrap();
        }
    }

    fn give_up(&mut self) {
        if let Some(run) = &self.run {
            run.spooler.give_up.cancel();
        }
    }

    /// Promised events are owed still; the rest may be gone.
    fn kill(&mut self) {
        self.hear();
        self.was_killed = true;
        self.run = None;
        self.left = None;
        self.dispatcher = None;
        self.let_tasks_run();
        self.store.lock().unwrap().begin_run(false);
        self.receipts.clear();
        let store = self.store.lock().unwrap();
        // The disk may take nothing. Events in flight whose segment is dropped then cannot be kept
        // elsewhere.
        let is_owed = |n: &u64| !self.had_trouble && store.promised.contains(n);
        self.owed.retain(|n| store.stored.contains(n) || is_owed(n));
        self.had_trouble = !self.disk_works;
    }

    /// Looks which receipts have come.
    fn hear(&mut self) {
        let mut store = self.store.lock().unwrap();
        self.receipts.retain_mut(|(numbers, receipt)| match receipt.try_recv() {
            Ok(true) => {
                store.promised.extend(numbers.clone());
                false
            }
            Ok(false) => false,
            Err(_) => true,
        });
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.runtime.block_on(tokio::time::advance(time));
    }

    fn let_tasks_run(&mut self) {
        self.let_tasks_go_on();
        self.let_blocking_work_end();
        self.let_tasks_go_on();
        if let Some(run) = &mut self.run {
            while run.writers.try_join_next().map(Result::unwrap).is_some() {}
        }
    }

    fn let_tasks_go_on(&self) {
        self.runtime.block_on(async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        });
    }

    /// Writers drop their connections and prepare batches on a thread of the machine's, which takes
    /// real time.
    fn let_blocking_work_end(&self) {
        self.runtime.block_on(async { tokio::task::spawn_blocking(|| {}).await.unwrap() });
    }

    /// A writer has ended. If that was the drain deadline the dispatcher ends too; else the sink is
    /// parked and an operator reloads, as `hand_over` does.
    fn go_on_without_writers(&mut self) {
        let Some(run) = &self.run else { return };
        match run.ordered {
            None if run.spooler.give_up.is_cancelled() => self.dispatcher = None,
            None => self.act(Action::Order(Order::Leave)),
            Some(Order::Leave) => {
                self.give_up();
                self.act(Action::Order(Order::LeaveAtOnce));
            }
            Some(Order::LeaveAtOnce | Order::End) => self.give_up(),
        }
    }

    /// Repairs everything, lets all come to rest, stops, and looks.
    fn end(mut self) {
        self.disk.set_failing(false);
        self.disk.set_space(usize::MAX);
        self.disk_works = true;
        for step in 0.. {
            assert!(step < REST, "it does not come to rest");
            let Some(run) = &self.run else {
                self.act(Action::Start);
                continue;
            };
            if run.writers.len() < self.nature.writers {
                self.go_on_without_writers();
            }
            self.end_sync(true);
            let waiting = self.store.lock().unwrap().waiting();
            for writer in waiting {
                self.act(Action::Answer(writer, Answer::Stored));
            }
            let arm = self.ready()[0];
            self.act(Action::Round(arm));
            let Some(run) = &self.run else { continue };
            let is_syncing = !run.jobs.is_empty();
            if arm != Arm::Time || is_syncing || run.wait.is_zero() || self.ready() != [Arm::Time] {
                continue;
            }
            let is_idle = run.progress.held.iter().all(|held| *held == 0);
            let is_empty = run.spooler.queue.is_empty() && run.spooler.shares.is_empty();
            if is_idle && is_empty && self.dispatcher.is_some() {
                break;
            }
            assert!(!is_idle || run.wait < IDLE, "events wait and nothing is due");
            // A writer may be backing off.
            let wait = if is_idle { run.wait } else { run.wait.min(Duration::from_secs(1)) };
            self.let_blocking_work_end();
            self.pass(wait);
            self.let_tasks_run();
        }
        self.hear();
        assert!(self.receipts.is_empty(), "a source waits for ever: {:?}", self.receipts);
        self.dispatcher = None;
        for step in 0.. {
            assert!(step < REST, "it does not end");
            if self.run.is_none() {
                break;
            }
            self.end_sync(true);
            let arm = self.ready()[0];
            self.act(Action::Round(arm));
        }
        let store = self.store.lock().unwrap();
        let came: BTreeSet<u64> = store.stored.union(&store.refused).copied().collect();
        let missing: Vec<_> = self.owed.difference(&came).collect();
        let lost = self.state.dropped();
        assert!(missing.len() as u64 <= lost, "{lost} counted, lost: {missing:?}");
    }
}

fn share_of(first: u64, count: u64, size: usize) -> Parcel {
    let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
    let event = |n: u64| Event::new(&n.to_string(), &vec![0xc0; size]);
    Share::all(Arc::new(Chunk::new(origin, 1, (first..first + count).map(event).collect()))).into()
}

/// A world in which so much has happened already that the next few actions matter.
#[derive(Debug, Clone, Copy)]
enum Past {
    Nothing,
    /// Every writer has a batch that its store has not answered, and more waits.
    Busy,
    /// The spill is as full as it may be.
    Full,
    /// Another spooler is about to come.
    Leaving,
}

impl Past {
    fn of(self, world: &mut World) {
        let fill = |world: &mut World, shares: usize| {
            for share in 0..shares {
                world.act(Action::Send(3, 100, share % 2 == 0));
                world.act(Action::Round(Arm::Shares));
            }
            world.act(Action::Round(Arm::Time));
        };
        match self {
            Past::Nothing => {}
            Past::Busy => fill(world, 3),
            Past::Full => fill(world, 12),
            Past::Leaving => {
                fill(world, 3);
                world.act(Action::Order(Order::Leave));
                world.act(Action::Round(Arm::Orders));
            }
        }
    }
}

/// The actions that were done, told if it ends badly.
struct Story(Nature, Past, Vec<Action>);

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{self:?}", self = (self.0, self.1, &self.2));
        }
    }
}

/// Does every sequence of `depth` actions, each in a world of its own.
fn explore(nature: Nature, past: Past, depth: usize) -> usize {
    let (mut path, mut count) = (vec![0; depth], 0);
    loop {
        let mut world = World::new(nature);
        past.of(&mut world);
        let mut widths = Vec::new();
        let mut story = Story(nature, past, Vec::new());
        for choice in &path {
            let possible = world.possible(false);
            widths.push(possible.len());
            // Writers that are woken together may run in another order than the last time, and then
            // there may be less to do next.
            let Some(action) = possible.get(*choice).copied() else { break };
            story.2.push(action);
            world.act(action);
        }
        world.end();
        count += 1;
        let next = (0..widths.len()).rev().find(|n| path[*n] + 1 < widths[*n]);
        let Some(next) = next else { return count };
        path[next] += 1;
        path[next + 1..].fill(0);
    }
}

const DURABLE: Nature = Nature {
    mode: SpillMode::Durable,
    when_full: WhenFull::DropOldest,
    fsync: Fsync::Interval(Duration::from_millis(500)),
    writers: 2,
    max_bytes: 1 << 20,
};

#[test]
fn invariant_3_every_order_of_a_few_happenings_loses_nothing() {
    let always = Nature { fsync: Fsync::Always, writers: 1, ..DURABLE };
    let overflow = Nature { mode: SpillMode::Overflow, ..DURABLE };
    let memory = Nature { mode: SpillMode::Memory, ..DURABLE };
    let blocks = Nature { when_full: WhenFull::Block, writers: 1, max_bytes: 3000, ..DURABLE };
    let drops = Nature { max_bytes: 3000, ..DURABLE };
    let worlds = [
        (DURABLE, Past::Nothing),
        (DURABLE, Past::Busy),
        (DURABLE, Past::Leaving),
        (always, Past::Busy),
        (overflow, Past::Full),
        (memory, Past::Busy),
        (blocks, Past::Full),
        (drops, Past::Full),
    ];
    let count: usize = worlds.into_iter().map(|(nature, past)| explore(nature, past, 3)).sum();
    println!("{count} histories");
    assert!(FORMS.load(Ordering::Relaxed) > 0, "nothing was made ahead");
}

/// One writer parks the sink while another hangs in a write.
#[test]
fn a_parked_sink_of_several_writers_does_not_spin() {
    let mut world = World::new(DURABLE);
    Past::Busy.of(&mut world);
    let writer = world.store.lock().unwrap().waiting()[0];
    world.act(Action::Answer(writer, Answer::Wrong));
    world.act(Action::Send(4, 200, false));
    world.act(Action::Round(Arm::Shares));
    assert_eq!(world.store.lock().unwrap().waiting().len(), 1, "the other one hangs");
    world.pass(LONG);
    for _ in 0..RESTLESS {
        world.act(Action::Round(Arm::Time));
    }
    world.end();
}

/// Shares wait in the channel as fast as they are taken out.
#[test]
fn a_flood_of_shares_holds_up_nothing_else_that_a_spooler_does() {
    let mut world = World::new(DURABLE);
    let (flood, shares) = channel(4 * ROUND.0, &Bell::default());
    for _ in 0..4 * ROUND.0 {
        flood.try_send(share_of(0, 1, 20)).unwrap();
    }
    let Run { spooler, progress, .. } = world.run.as_mut().unwrap();
    spooler.shares = shares;
    let Poll::Ready(Some(first)) = spooler.shares.take() else { panic!("there is one") };
    spooler.handle(Input::Share(first), progress, world.now);
    assert_eq!(spooler.shares.len(), 3 * ROUND.0);
    // The batches that this makes due are handed out by the next round.
    spooler.round(progress, world.now);
    assert!(progress.held.iter().all(|held| *held == BATCHES_PER_WRITER));
    let large = (ROUND.1 / 2).next_power_of_two();
    while spooler.shares.take().is_ready() {}
    for _ in 0..10 {
        flood.try_send(share_of(0, 1, large)).unwrap();
    }
    let Poll::Ready(Some(first)) = spooler.shares.take() else { panic!("there is one") };
    spooler.handle(Input::Share(first), progress, world.now);
    assert_eq!(spooler.shares.len(), 8);
}

#[test]
fn what_nobody_waits_for_any_more_is_not_discarded() {
    let mut world = World::new(Nature { mode: SpillMode::Memory, ..DURABLE });
    world.act(Action::Send(4, 100, false));
    world.act(Action::Round(Arm::Shares));
    let Run { spooler, progress, .. } = world.run.as_mut().unwrap();
    let waiting = spooler.queue.len();
    let mut ask = |is_heard: bool| {
        let (answer, answered) = oneshot::channel();
        let answered = Some(answered).filter(|_| is_heard);
        let inspection = Inspection { discard_before: Some(u64::MAX), answer };
        spooler.handle(Input::Inspection(inspection), progress, world.now);
        (spooler.queue.len(), answered.map(|mut answered| answered.try_recv().unwrap().discarded))
    };
    assert_eq!(ask(false), (waiting, None));
    let (left, discarded) = ask(true);
    assert!(left < waiting);
    assert_eq!(discarded, Some((waiting - left) as u64));
}

/// Nothing is on disk when it is looked for the first time, and the sink stores nothing from then
/// on.
#[test]
fn what_is_too_old_is_looked_for_although_there_was_nothing_at_first() {
    let mut world = World::new(DURABLE);
    for _ in 0..3 {
        world.act(Action::Round(Arm::Time));
        world.pass(NOTE);
    }
    for _ in 0..20 {
        world.act(Action::Send(3, 100, false));
        world.act(Action::Round(Arm::Shares));
    }
    world.act(Action::GrowOld);
    world.pass(NOTE);
    world.act(Action::Round(Arm::Time));
    assert!(world.state.dropped_expired.get() > 0);
    world.end();
}

fn natures() -> impl Strategy<Value = Nature> {
    let modes = [SpillMode::Durable, SpillMode::Overflow, SpillMode::Memory];
    let full = [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Block];
    let syncs = [Fsync::Interval(Duration::from_millis(500)), Fsync::Always, Fsync::Never];
    let one_of = |count: usize| 0..count;
    (one_of(3), one_of(3), one_of(3), 1..4usize, any::<bool>()).prop_map(
        move |(mode, when_full, fsync, writers, is_small)| Nature {
            mode: modes[mode],
            when_full: full[when_full],
            fsync: syncs[fsync],
            writers,
            max_bytes: if is_small { 5000 } else { 1 << 20 },
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn invariant_3_long_lives_of_a_spooler_lose_nothing(
        nature in natures(), choices in proptest::collection::vec(any::<u16>(), 1..250),
    ) {
        let mut world = World::new(nature);
        let mut story = Story(nature, Past::Nothing, Vec::new());
        for choice in choices {
            let possible = world.possible(true);
            let action = possible[usize::from(choice) % possible.len()];
            story.2.push(action);
            world.act(action);
        }
        world.end();
    }
}
