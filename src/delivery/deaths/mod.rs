//! Deaths of the process, and the measures that keep one event from causing them for ever.
//!
//! An event may kill the process that handles it: a bug, or more memory than there is. It waits in
//! the spill, so it would kill the next process too. The process cannot tell such a death from a
//! `kill -9` or a power cut, so one death proves nothing against an event. A small file, `deaths`
//! in `state_dir`, holds the known facts:
//!
//! ```text
//! running                                     a process began and has not ended in order
//! died 1795304016000250                       one was found dead, in microseconds since 1970
//! under_way 0123…cdef                         a part of a batch, by its id, is tried alone
//! suspect 2 0123…cdef                         it was, at so many deaths
//! ```
//!
//! A start that finds `running` notes a death. After [`DEATHS`] within [`WHILE`] the process is
//! careful:
//!
//! - Batches that were begun before (the spill knows them) are tried alone: no sink writes anything
//!   else at that time. The batch is noted first. The note goes when the attempt returns, with any
//!   result.
//! - A whole batch that was under way at [`DEATHS`] deaths is cut into parts, and not before. A
//!   store that knows batches by their ids does not know a part, and stores its events again.
//! - A part that was under way at a death is cut further before it is tried again. In the end a
//!   single event is alone.
//! - A single event becomes a dead letter if it was under way at [`DEATHS`] deaths and its attempt
//!   never returned in between. It is not tried again. Nothing else becomes a dead letter for this
//!   reason.
//! - Batches that were not begun go as usual, but not while a part is tried alone.
//! - The connection is made first, and not alone. An attempt that runs alone ends after [`ALONE`],
//!   and then others write for at least as long. So a store that hangs takes no more than half of
//!   the time, and one that is not reached takes none.
//!
//! A process that has lived for [`WHILE`] forgets all of it, and nothing is tried alone any more.
//! Without three deaths the cost is one file written at the start and at the end. Only `durable`
//! sinks know which batches were begun. In the other modes the batches in flight are lost with the
//! process, and so is the event that killed it.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tracing::{info, warn};

use crate::event::batch::{Batch, BatchId};
use crate::files::disk::{Disk, Folder};
use crate::files::state_file;
use crate::sync::blocking;
use crate::sync::lock;

use self::gate::{Gate, Pass};

mod gate;

/// The file, in `state_dir`.
const FILE: &str = "deaths";

/// Longer than it is ever written.
const LONGEST: u64 = 1 << 20;

/// So many deaths are no accident.
const DEATHS: usize = 3;

/// The time within which deaths count. A process that lives for so long forgets them.
pub(crate) const WHILE: Duration = Duration::from_mins(10);

/// The longest time of an attempt that runs alone, or beside which another waits to run alone.
const ALONE: Duration = Duration::from_secs(10);

/// Halvings at once: a part is a sixteenth, so that few deaths lead to a single event.
const HALVINGS: usize = 4;

/// Parts remembered at the most; the oldest are forgotten first.
const SUSPECTS: usize = 64;

/// The reason of the dead letter.
pub(crate) const DEADLY: &str =
    "the process died three times while it tried this event alone; it is not tried again";

/// The contents of the file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Record {
    is_running: bool,
    /// The times at which deaths were found, in microseconds since 1970.
    died: Vec<u64>,
    under_way: Option<BatchId>,
    /// Parts that were under way at deaths, with their numbers of deaths.
    suspects: Vec<(BatchId, usize)>,
}

/// The decision on a part of a batch that was begun before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Try it, alone.
    Try,
    /// It was under way at a death: cut it.
    Cut,
    /// It is the event that kills.
    Deadly,
}

impl Record {
    /// Another process begins.
    fn begin(&mut self, now: u64) {
        let accused = self.under_way.take();
        if std::mem::replace(&mut self.is_running, true) {
            self.died.push(now);
            if let Some(part) = accused {
                self.accuse(part);
            }
        }
        let most = u64::try_from(WHILE.as_micros()).unwrap_or(u64::MAX);
        self.died.retain(|died| now.saturating_sub(*died) <= most);
    }

    fn accuse(&mut self, part: BatchId) {
        let before = self.deaths_of(part);
        self.suspects.retain(|(suspect, _)| *suspect != part);
        self.suspects.push((part, before + 1));
        let excess = self.suspects.len().saturating_sub(SUSPECTS);
        self.suspects.drain(..excess);
    }

    fn deaths_of(&self, part: BatchId) -> usize {
        self.suspects.iter().find(|(suspect, _)| *suspect == part).map_or(0, |(_, deaths)| *deaths)
    }

    fn must_isolate(&self) -> bool {
        self.died.len() >= DEATHS
    }

    fn verdict(&self, part: BatchId, len: usize, is_whole: bool) -> Verdict {
        match self.deaths_of(part) {
            0 => Verdict::Try,
            deaths if is_whole && deaths < DEATHS => Verdict::Try,
            _ if len > 1 => Verdict::Cut,
            deaths if deaths < DEATHS => Verdict::Try,
            _ => Verdict::Deadly,
        }
    }

    /// The attempt at this part has returned: it does not kill.
    fn returned(&mut self, part: BatchId) {
        self.under_way.take_if(|under_way| *under_way == part);
        self.suspects.retain(|(suspect, _)| *suspect != part);
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = (|| {
            if self.is_running {
                writeln!(text, "running")?;
            }
            for died in &self.died {
                writeln!(text, "died {died}")?;
            }
            if let Some(part) = self.under_way {
                writeln!(text, "under_way {part}")?;
            }
            for (part, deaths) in &self.suspects {
                writeln!(text, "suspect {deaths} {part}")?;
            }
            std::fmt::Result::Ok(())
        })();
        text
    }

    /// Reads the contents of the file; lines that say nothing are passed over.
    fn parse(text: &str) -> Self {
        let id = |digits: &str| u128::from_str_radix(digits, 16).ok().map(BatchId);
        let mut record = Record::default();
        for line in text.lines() {
            let words: Vec<_> = line.split(' ').collect();
            match words.as_slice() {
                ["running"] => record.is_running = true,
                ["died", time] => record.died.extend(time.parse::<u64>()),
                ["under_way", part] => record.under_way = id(part),
                ["suspect", deaths, part] => {
                    let deaths = deaths.parse().unwrap_or_default();
                    record.suspects.extend(id(part).map(|part| (part, deaths)));
                }
                _ => {}
            }
        }
        record
    }
}

/// A batch in parts that follow one another.
pub(crate) fn parts(batch: Batch) -> Vec<Batch> {
    let mut parts = vec![batch];
    for _ in 0..HALVINGS {
        let halves = parts.into_iter().flat_map(|part| {
            let (front, back) = part.split();
            [front, back].into_iter().filter(|half| !half.is_empty())
        });
        parts = halves.collect();
    }
    parts
}

/// The deaths of processes before this one.
pub(crate) struct Deaths {
    path: PathBuf,
    record: Mutex<Record>,
    /// Open for ever while nothing is tried alone.
    gate: Gate,
}

impl Deaths {
    /// Notes that a process begins, at `now` in microseconds since 1970. The caller owns
    /// `state_dir`.
    pub(crate) fn begin(state_dir: &Path, now: u64) -> Self {
        Deaths::begin_with(state_dir, now, ALONE)
    }

    /// Begins like [`Deaths::begin`], with another time limit for attempts that run alone.
    pub(crate) fn begin_with(state_dir: &Path, now: u64, alone: Duration) -> Self {
        let path = state_dir.join(FILE);
        if let Err(error) = state_file::put_foreign_aside(&path) {
            warn!(%error, file = %path.display(), "something that is no file cannot be put aside");
        }
        let text = match state_file::read(&path, LONGEST) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                warn!(%error, file = %path.display(), "cannot read if the process died before");
                String::new()
            }
        };
        let mut record = Record::parse(&text);
        record.begin(now);
        let must_isolate = record.must_isolate();
        if must_isolate {
            warn!(
                deaths = record.died.len(),
                "the process has died again and again within ten minutes: batches that were under way are \
                 tried one at a time, to find out whether an event kills it"
            );
        }
        let gate = Gate::new(!must_isolate, alone);
        let deaths = Deaths { path, record: Mutex::new(record), gate };
        deaths.save(&deaths.record());
        deaths
    }

    /// True while batches that were begun are tried alone. Ends with [`Deaths::forget`].
    pub(crate) fn must_isolate(&self) -> bool {
        !self.gate.is_over()
    }

    /// Decides on a part of a batch that was begun before.
    pub(crate) fn verdict(&self, part: &Batch, is_whole: bool) -> Verdict {
        self.record().verdict(part.id(), part.len(), is_whole)
    }

    /// Waits until a batch may be written, and lets nothing else be written meanwhile if it was
    /// begun before.
    pub(crate) async fn attempt(&self, batch: &Batch) -> Attempt<'_> {
        if !self.must_isolate() {
            return Attempt { deaths: self, noted: None, pass: None };
        }
        let pass = match batch.was_begun() {
            true => self.gate.alone().await,
            false => self.gate.beside().await,
        };
        let part = pass.is_alone().then(|| batch.id());
        if part.is_some() || pass.has_forced {
            // A part that does not run alone any more must not be blamed for another's death.
            self.change(|record| record.under_way = part.filter(|_| self.must_isolate()));
        }
        Attempt { deaths: self, noted: part, pass: Some(pass) }
    }

    /// The process has lived for [`WHILE`].
    pub(crate) fn forget(&self) {
        let had_to_isolate = self.must_isolate();
        self.gate.end();
        self.change(|record| *record = Record { is_running: true, ..Record::default() });
        if had_to_isolate {
            info!("the process has run for ten minutes; its earlier deaths are forgotten");
        }
    }

    /// Writes the file anew, in a directory that is new.
    pub(crate) fn renew(&self) {
        self.change(|_| ());
    }

    /// The process ends in order.
    pub(crate) fn end(&self) {
        self.change(|record| record.is_running = false);
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock::hold(&self.record)
    }

    fn change(&self, change: impl FnOnce(&mut Record)) {
        blocking(|| {
            let mut record = self.record();
            change(&mut record);
            self.save(&record);
        });
    }

    /// Without the file deaths are not noticed; nothing worse happens.
    fn save(&self, record: &Record) {
        let saved = (|| {
            let folder = Folder::open(self.path.parent().unwrap_or(Path::new(".")))?;
            folder.put_foreign_aside(&format!("{FILE}.new"))?;
            folder.replace(FILE, record.to_text().as_bytes())?;
            folder.sync_names()
        })();
        if let Err(error) = saved {
            warn!(
                %error,
                file = %self.path.display(),
                "the file of deaths cannot be written; a death of the process would not be noticed"
            );
        }
    }
}

/// A write that is under way; dropped when it returns.
pub(crate) struct Attempt<'a> {
    deaths: &'a Deaths,
    /// The part that is noted, if nobody else writes.
    noted: Option<BatchId>,
    /// Keeps out those that must not write meanwhile.
    pass: Option<Pass<'a>>,
}

impl Attempt<'_> {
    /// Returns when the write has held up others for so long that it must be cut off.
    pub(crate) async fn overdue(&self) {
        match &self.pass {
            Some(pass) => pass.overdue().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(part) = self.noted {
            self.deaths.change(|record| record.returned(part));
        }
    }
}

/// Notes when it is dropped that the process ends in order.
pub(crate) struct Life(pub(crate) std::sync::Arc<Deaths>);

impl Drop for Life {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::{Arc, Mutex, MutexGuard};

    use proptest::prelude::*;

    use crate::delivery::dead_letter::{DeadLetters, LetterSelection};
    use crate::delivery::deaths::*;
    use crate::delivery::tests::{Unconfigurable, deliver};
    use crate::event::batch::BatchLimits;
    use crate::event::chunk::{Chunk, Share};
    use crate::event::{Event, Origin};
    use crate::sink::contract::{ConnectError, Context, Defaults, Once, Sink, WriteError};
    use crate::units::{ByteSize, Span};

    const SECOND: u64 = 1_000_000;

    fn batch(queue: u128, len: u64) -> Batch {
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        let events = (0..len).map(|n| Event::new(&format!("{queue}/{n}"), b"\x80")).collect();
        Batch::new(queue, 0, vec![Share::all(Arc::new(Chunk::new(origin, 1, events)))])
    }

    fn tags(batch: &Batch) -> impl Iterator<Item = String> {
        batch.events().map(|event| event.tag().to_owned())
    }

    #[test]
    fn a_file_says_what_was_written_whatever_else_is_in_it() {
        let record = Record {
            is_running: true,
            died: vec![7, 8],
            under_way: Some(BatchId(1)),
            suspects: vec![(BatchId(u128::MAX), 2)],
        };
        assert_eq!(Record::parse(&record.to_text()), record);
        let damaged = format!("died\nsuspect x\u{fffd}\n{}died soon\n", record.to_text());
        assert_eq!(Record::parse(&damaged), record);
    }

    #[test]
    fn deaths_are_those_without_an_end_within_ten_minutes() {
        let folder = tempfile::tempdir().unwrap();
        let minutes = |n: u64| n * 60 * SECOND;
        // In order, however often: no death.
        for _ in 0..5 {
            let deaths = Deaths::begin(folder.path(), minutes(1));
            assert!(!deaths.must_isolate());
            deaths.end();
        }
        let isolating = |at| Deaths::begin(folder.path(), minutes(at)).must_isolate();
        assert_eq!([1, 2, 8, 13, 14].map(isolating), [false, false, false, false, true]);
        assert!(isolating(15));
        assert!(!isolating(60));
        let lived = Deaths::begin(folder.path(), minutes(61));
        lived.forget();
        assert_eq!([62, 63].map(isolating), [false, false]);
    }

    type Killer = Box<dyn FnMut(&Batch) -> bool + Send>;

    /// A store at which the process dies. It outlives the process.
    #[derive(Default)]
    struct Store {
        folder: PathBuf,
        /// The event that kills.
        poison: String,
        /// True for an attempt at which an operator kills the process.
        is_killed: Option<Killer>,
        stored: BTreeSet<String>,
        /// The batches, or parts of them, that were tried.
        tried: BTreeSet<u128>,
        /// The contents of the file when the process died.
        died: Option<Vec<u8>>,
    }

    struct Deadly(Arc<Mutex<Store>>);

    impl Sink for Deadly {
        const NAME: &'static str = "deadly";
        const ABOUT: &'static str = "the process dies at it";
        const DEFAULTS: Defaults =
            Defaults::store(BatchLimits::new(1000, ByteSize(1000), Span::millis(0)));
        const ONCE: Once = Once::No;
        type Config = Unconfigurable<Store>;
        type Prepared = ();

        async fn connect(config: &Self::Config, _: &Context) -> Result<Self, ConnectError> {
            Ok(Deadly(Arc::clone(&config.0)))
        }

        async fn write(&mut self, batch: &Batch, _: Option<()>) -> Result<(), WriteError> {
            let has_died = {
                let mut store = self.0.lock().unwrap();
                store.tried.insert(batch.id().0);
                let is_killed = store.is_killed.as_mut().is_some_and(|is_killed| is_killed(batch));
                let dies = is_killed || tags(batch).any(|tag| tag == store.poison);
                if dies {
                    store.died = Some(std::fs::read(store.folder.join(FILE)).unwrap());
                } else {
                    store.stored.extend(tags(batch));
                }
                dies
            };
            if has_died {
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    }

    /// The batches of some sinks, which the driver of writers delivers in one life after the other.
    struct World {
        runtime: tokio::runtime::Runtime,
        /// In memory, since each attempt syncs the file.
        folder: tempfile::TempDir,
        batches: Vec<Batch>,
        letters: Arc<DeadLetters>,
        store: Arc<Mutex<Store>>,
        lives: u64,
    }

    impl World {
        fn new(
            lens: &[u64],
            poison: impl FnOnce(&BTreeSet<String>) -> String,
        ) -> (Self, BTreeSet<String>) {
            let memory = Path::new("/dev/shm");
            let folder = match memory.is_dir() {
                true => tempfile::tempdir_in(memory),
                false => tempfile::tempdir(),
            };
            let folder = folder.unwrap();
            let batches: Vec<_> =
                lens.iter().zip(1..).map(|(len, queue)| batch(queue, *len)).collect();
            let all: BTreeSet<_> = batches.iter().flat_map(tags).collect();
            let store =
                Store { folder: folder.path().into(), poison: poison(&all), ..Store::default() };
            let runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = { runtime }.worker_threads(1).enable_time().build().unwrap();
            let letters = Arc::new(DeadLetters::open(folder.path(), 1 << 20).unwrap());
            let store = Arc::new(Mutex::new(store));
            (World { runtime, folder, batches, letters, store, lives: 0 }, all)
        }

        fn store(&self) -> MutexGuard<'_, Store> {
            self.store.lock().unwrap()
        }

        /// One life of the process, in which nothing was noted as stored before. Says whether
        /// everything is settled, and the process has ended in order.
        fn live(&mut self) -> bool {
            self.lives += 1;
            let deaths = Arc::new(Deaths::begin(self.folder.path(), self.lives * SECOND));
            for batch in self.batches.clone() {
                let isolating = Some(Arc::clone(&deaths)).filter(|deaths| deaths.must_isolate());
                let config = Unconfigurable(Arc::clone(&self.store));
                let letters = Arc::clone(&self.letters);
                let batch = batch.begun_before();
                let died = || self.store().died.take();
                let died = self.runtime.block_on(async {
                    let mut delivering =
                        Box::pin(deliver::<Deadly>(&config, isolating, letters, batch));
                    loop {
                        // The store never answers once the process has died.
                        let a_while = Duration::from_millis(1);
                        let settled = tokio::time::timeout(a_while, delivering.as_mut()).await;
                        match died() {
                            None if settled.is_ok() => return None,
                            None => {}
                            died => return died,
                        }
                    }
                });
                if let Some(file) = died {
                    // Undoes the notes at the end of the attempt, which a dead process does not
                    // make.
                    std::fs::write(self.folder.path().join(FILE), file).unwrap();
                    return false;
                }
            }
            deaths.end();
            true
        }

        /// The events that are dead letters. One may be more than once.
        fn dead(&self) -> BTreeSet<String> {
            let letters = self.letters.list(&LetterSelection::default(), 0, 10_000).unwrap();
            letters.iter().map(|letter| letter.event().unwrap().tag().to_owned()).collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Several sinks, one event that kills, and an operator who kills besides. The operator
        /// does not hit one event again and again before its attempt has returned once.
        #[test]
        fn invariant_5_an_event_that_kills_the_process_is_the_only_dead_letter(
            lens in proptest::collection::vec(1..300u64, 1..4),
            poison in any::<prop::sample::Index>(),
            kills in proptest::collection::btree_set(0..200usize, 0..2),
        ) {
            let pick = |all: &BTreeSet<String>| {
                all.iter().nth(poison.index(all.len())).unwrap().clone()
            };
            let (mut world, all) = World::new(&lens, pick);
            let (mut attempts, times) = (0, kills.len());
            world.store().is_killed = Some(Box::new(move |_| {
                attempts += 1;
                kills.contains(&attempts)
            }));
            // Three to find it out, three for the batch, three to cut 300 events down, three for
            // the event.
            let starts = 13 + times;
            prop_assert!((0..starts).any(|_| world.live()), "not settled after {starts} starts");
            let poison = world.store().poison.clone();
            prop_assert_eq!(world.dead(), BTreeSet::from([poison.clone()]));
            world.store().stored.insert(poison);
            prop_assert_eq!(&world.store().stored, &all);
        }

        /// However often, as long as no event is met three times.
        #[test]
        fn invariant_5_kills_of_an_operator_make_no_dead_letter(
            lens in proptest::collection::vec(1..100u64, 1..4),
            lives in proptest::collection::vec(0..40usize, 0..12),
        ) {
            let (mut world, all) = World::new(&lens, |_| String::new());
            let met = Arc::new(Mutex::new(BTreeMap::<_, u32>::new()));
            for life in lives {
                let (mut left, met) = (life, Arc::clone(&met));
                world.store().is_killed = Some(Box::new(move |part| {
                    left = left.saturating_sub(1);
                    let mut met = met.lock().unwrap();
                    let times = met.entry(part.id().0).or_default();
                    *times += u32::from(left == 0);
                    left == 0 && *times <= 2
                }));
                world.live();
            }
            world.store().is_killed = None;
            prop_assert!(world.live());
            prop_assert_eq!(world.dead(), BTreeSet::new());
            prop_assert_eq!(&world.store().stored, &all);
            // A store that knows batches by their ids has had no part of one.
            let whole: BTreeSet<_> = world.batches.iter().map(|batch| batch.id().0).collect();
            prop_assert_eq!(&world.store().tried, &whole);
        }
    }
}
