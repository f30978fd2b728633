//! Deaths of the process, and what is done so that one event does not cause them for ever.
//!
//! An event may kill the process that handles it: a bug, or more memory than there is. It waits in the
//! spill, so it would kill the next process too. Nobody inside can tell such a death from a `kill -9`
//! or a power cut, so one death accuses nobody. What can be known is written to a small file,
//! `deaths` in `state_dir`:
//!
//! ```text
//! running                                     a process began and has not ended in order
//! died 1795304016000250                       one was found to have died, in microseconds since 1970
//! under_way 0123…cdef                         this part of a batch, by its id, is being tried alone
//! suspect 2 0123…cdef                         it was, at so many deaths
//! ```
//!
//! A start that finds `running` notes a death. After [`DEATHS`] within [`WHILE`] the process is careful:
//!
//! - Batches that were begun before (the spill knows them) are tried alone: nothing else is written at
//!   that time, by any sink. The batch is noted before, and the note goes when the attempt returns,
//!   whatever it returns.
//! - A whole batch that was under way at [`DEATHS`] deaths is cut into parts. Not before, since a store
//!   that knows batches by their ids does not know a part, and stores again what it has.
//! - A part that was under way at a death is cut further before it is tried again. In the end a single
//!   event is alone.
//! - A single event that was under way at [`DEATHS`] deaths, and whose attempt never returned in between,
//!   is not tried again: it becomes a dead letter. Nothing else ever does for this reason.
//! - What was not begun goes as ever, only not while a part is tried alone.
//!
//! A process that has lived for [`WHILE`] forgets all of it. Without three deaths all that this costs is
//! a file written at the start and at the end. Only `durable` sinks know what was begun; in the other modes
//! what was in flight is lost with the process, and so is what killed it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tracing::{info, warn};

use crate::batch::{Batch, BatchId};
use crate::sink::blocking;
use crate::state_file;

/// The file, in `state_dir`.
const FILE: &str = "deaths";

/// So many deaths are no accident.
const DEATHS: usize = 3;

/// The time within which they count, and after which a process that lives forgets them.
pub(crate) const WHILE: Duration = Duration::from_mins(10);

/// Halvings at once: a part is a sixteenth, so that few deaths lead to a single event.
const HALVINGS: usize = 4;

/// Parts remembered at the most; the oldest are forgotten first.
const SUSPECTS: usize = 64;

/// Why an event is a dead letter.
pub(crate) const DEADLY: &str =
    "the process died three times while it tried this event alone; it is not tried again";

/// What the file says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Record {
    is_running: bool,
    /// When deaths were found, in microseconds since 1970.
    died: Vec<u64>,
    under_way: Option<BatchId>,
    /// Parts that were under way at deaths, and at how many.
    suspects: Vec<(BatchId, usize)>,
}

/// What to do with a part of a batch that was begun before.
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

    fn is_careful(&self) -> bool {
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

    /// The attempt that was under way has returned: it does not kill.
    fn returned(&mut self) {
        if let Some(part) = self.under_way.take() {
            self.suspects.retain(|(suspect, _)| *suspect != part);
        }
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

    /// What a text says; lines that say nothing are passed over.
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

/// What is known of the deaths of processes before this one.
pub(crate) struct Deaths {
    path: PathBuf,
    record: Mutex<Record>,
    /// Held by those who write, and by one who writes alone.
    writing: RwLock<()>,
    is_careful: bool,
}

impl Deaths {
    /// Notes that a process begins, at `now` in microseconds since 1970. Whoever calls it owns `state_dir`.
    pub(crate) fn begin(state_dir: &Path, now: u64) -> Self {
        let path = state_dir.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                warn!(%error, file = %path.display(), "whether the process has died is not known");
                String::new()
            }
        };
        let mut record = Record::parse(&text);
        record.begin(now);
        let is_careful = record.is_careful();
        if is_careful {
            warn!(
                deaths = record.died.len(),
                "the process has died again and again within ten minutes: batches that were under way are \
                 tried one at a time, to find out whether an event kills it"
            );
        }
        let deaths =
            Deaths { path, record: Mutex::new(record), writing: RwLock::new(()), is_careful };
        deaths.save(&deaths.record());
        deaths
    }

    /// Whether there were so many that what was begun is tried alone.
    pub(crate) fn is_careful(&self) -> bool {
        self.is_careful
    }

    /// What to do with a part of a batch that was begun before.
    pub(crate) fn verdict(&self, part: &Batch, is_whole: bool) -> Verdict {
        self.record().verdict(part.id(), part.len(), is_whole)
    }

    /// Waits until a batch may be written, and lets nothing else be written meanwhile if it was begun
    /// before.
    pub(crate) async fn attempt(&self, batch: &Batch) -> Attempt<'_> {
        if !batch.was_begun() {
            return Attempt::Beside { _writing: self.writing.read().await };
        }
        let alone = self.writing.write().await;
        self.change(|record| record.under_way = Some(batch.id()));
        Attempt::Alone { deaths: self, _writing: alone }
    }

    /// The process has lived for [`WHILE`].
    pub(crate) fn forget(&self) {
        self.change(|record| *record = Record { is_running: true, ..Record::default() });
        if self.is_careful {
            info!("the process has lived for ten minutes; its deaths before are forgotten");
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
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Record)) {
        blocking(|| {
            let mut record = self.record();
            change(&mut record);
            self.save(&record);
        });
    }

    /// Without the file a death is not noticed, and nothing worse.
    fn save(&self, record: &Record) {
        let saved = (|| {
            let new = self.path.with_extension("new");
            match std::fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = state_file::create(&new)?;
            file.write_all(record.to_text().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &self.path)?;
            let folder = self.path.parent().unwrap_or(Path::new("."));
            File::open(folder)?.sync_all()
        })();
        if let Err(error) = saved {
            warn!(%error, file = %self.path.display(), "a death of the process would not be noticed");
        }
    }
}

/// A write that is under way; dropped when it returns.
pub(crate) enum Attempt<'a> {
    /// Others may write too.
    Beside {
        /// Keeps those out that write alone.
        _writing: RwLockReadGuard<'a, ()>,
    },
    /// Nobody else writes.
    Alone {
        /// Where it is noted.
        deaths: &'a Deaths,
        /// Keeps all others out.
        _writing: RwLockWriteGuard<'a, ()>,
    },
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Attempt::Alone { deaths, .. } = self {
            deaths.change(Record::returned);
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
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::chunk::{Chunk, Share};
    use crate::event::{Event, Origin};

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
            assert!(!deaths.is_careful());
            deaths.end();
        }
        let careful = |at| Deaths::begin(folder.path(), minutes(at)).is_careful();
        assert_eq!([1, 2, 8, 13, 14].map(careful), [false, false, false, false, true]);
        assert!(careful(15));
        assert!(!careful(60));
        let lived = Deaths::begin(folder.path(), minutes(61));
        lived.forget();
        assert_eq!([62, 63].map(careful), [false, false]);
    }

    /// How a life ends.
    enum End {
        /// It has settled everything.
        Done,
        Died,
    }

    /// One life of the process. The sinks' batches are tried in turn, as `Delivery::deliver` does it.
    struct World {
        batches: Vec<Batch>,
        poison: String,
        stored: BTreeSet<String>,
        /// An event that was given up may come again, as any may.
        letters: BTreeSet<String>,
    }

    impl World {
        fn live(&mut self, record: &mut Record, mut is_killed: impl FnMut(&Batch) -> bool) -> End {
            let is_careful = record.is_careful();
            for batch in self.batches.clone() {
                let whole = batch.id();
                let mut left = vec![batch];
                while let Some(part) = left.pop() {
                    match record.verdict(part.id(), part.len(), part.id() == whole) {
                        Verdict::Cut if is_careful => {
                            left.extend(parts(part).into_iter().rev());
                            continue;
                        }
                        Verdict::Deadly if is_careful => {
                            self.letters.extend(tags(&part));
                            continue;
                        }
                        _ => {}
                    }
                    if is_careful {
                        record.under_way = Some(part.id());
                    }
                    if is_killed(&part) || tags(&part).any(|tag| tag == self.poison) {
                        return End::Died;
                    }
                    record.returned();
                    self.stored.extend(tags(&part));
                }
            }
            End::Done
        }
    }

    proptest! {
        /// Several sinks, one event that kills, and an operator who kills besides, but not one and the
        /// same event again and again before its attempt has returned once.
        #[test]
        fn invariant_5_an_event_that_kills_the_process_is_the_only_dead_letter(
            lens in proptest::collection::vec(1..300u64, 1..4),
            poison in any::<prop::sample::Index>(),
            kills in proptest::collection::btree_set(0..200usize, 0..2),
        ) {
            let batches: Vec<_> =
                lens.iter().zip(1..).map(|(len, queue)| batch(queue, *len)).collect();
            let all: BTreeSet<_> = batches.iter().flat_map(tags).collect();
            let poison = all.iter().nth(poison.index(all.len())).unwrap().clone();
            let (stored, letters) = (BTreeSet::new(), BTreeSet::new());
            let mut world = World { batches, poison: poison.clone(), stored, letters };
            let (mut record, mut attempts, mut starts) = (Record::default(), 0, 0);
            loop {
                starts += 1;
                // Three to find it out, three for the batch, three to cut 300 events down, three for the
                // event.
                prop_assert!(starts <= 13 + kills.len(), "not settled after {} starts", starts - 1);
                record.begin(starts as u64 * SECOND);
                record = Record::parse(&record.to_text());
                let is_killed = |_: &Batch| {
                    attempts += 1;
                    kills.contains(&attempts)
                };
                if let End::Done = world.live(&mut record, is_killed) {
                    break;
                }
            }
            prop_assert_eq!(&world.letters, &BTreeSet::from([poison.clone()]));
            world.stored.insert(poison);
            prop_assert_eq!(world.stored, all);
        }

        /// However often, as long as no event is met three times.
        #[test]
        fn invariant_5_kills_of_an_operator_make_no_dead_letter(
            lens in proptest::collection::vec(1..100u64, 1..4),
            lives in proptest::collection::vec(0..40usize, 0..12),
        ) {
            let batches: Vec<_> =
                lens.iter().zip(1..).map(|(len, queue)| batch(queue, *len)).collect();
            let all: BTreeSet<_> = batches.iter().flat_map(tags).collect();
            let (stored, letters, poison) = (BTreeSet::new(), BTreeSet::new(), String::new());
            let mut world = World { batches, poison, stored, letters };
            let mut record = Record::default();
            let mut met = BTreeMap::<_, u32>::new();
            for (now, life) in lives.iter().enumerate() {
                record.begin(now as u64 * SECOND);
                let mut left = *life;
                let is_killed = |part: &Batch| {
                    left = left.saturating_sub(1);
                    let times = met.entry(part.id().0).or_default();
                    *times += u32::from(left == 0);
                    left == 0 && *times <= 2
                };
                if let End::Done = world.live(&mut record, is_killed) {
                    record.is_running = false;
                }
            }
            record.begin(100 * SECOND);
            world.live(&mut record, |_| false);
            prop_assert_eq!(world.letters, BTreeSet::new());
            prop_assert_eq!(world.stored, all);
        }
    }
}
