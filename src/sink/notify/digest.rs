//! Digests: the events in each, and the time when it is sent.
//!
//! Every event that is gathered is in exactly one digest, in order, or is counted as dropped. A
//! digest is *sealed* before it is sent for the first time: its key and its events are written down
//! and do not change any more. So one that is sent twice, after an answer that was lost or a crash,
//! is the same both times. Events that come meanwhile wait for the next.
//!
//! There are bounds on what waits. Beyond them the oldest events are dropped, but none of a sealed
//! digest. The next digest says how many.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;
use tracing::{info, warn};

use super::file::{File, Found, Sealed, Waiting};
use super::message::{DigestText, Message, Note};
use crate::error::chain;
use crate::event::batch::Batch;
use crate::event::escape::Place;
use crate::files::state_file;
use crate::observe::metrics::{self, Level, Tally};
use crate::sink::contract::{Cause, ConnectError, Context, WriteError};
use crate::units::Span;

/// The settings of digests.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Events in a digest, at the most, 1 to 1000. It does not wait for `after` when it is full.
    max_events: usize,
    /// The time that the first event of a digest waits for others.
    after: Span,
    /// The time between two digests. More than `max_events` in that time pile up.
    interval: Span,
    /// The body, a text. `{count}` and `{dropped}` are numbers of events; `{outcomes}`, `{kinds}`,
    /// `{funs}` and `{minions}` say how many there are of each; `{first}` and `{last}` are times;
    /// `{lines}` has a line for each of the first ten events. A literal brace is written twice.
    /// Default: JSON that counts the events and lists them.
    template: Option<DigestText>,
}

impl Default for Settings {
    fn default() -> Self {
        let (after, interval) = (Span::seconds(60), Span::seconds(10));
        Settings { max_events: 100, after, interval, template: None }
    }
}

/// The settings of digests, checked.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Settings")]
#[schemars(with = "Settings")]
pub(crate) struct DigestConfig {
    max_events: usize,
    after: Duration,
    interval: Duration,
    /// The body, where it is no JSON of ours.
    template: Option<DigestText>,
}

impl DigestConfig {
    /// A body of an empty digest.
    pub(crate) fn example(&self, place: Place) -> String {
        String::from_utf8_lossy(&self.body(&Message::of(Vec::new(), 0), place)).into_owned()
    }

    fn body(&self, message: &Message, place: Place) -> Vec<u8> {
        match &self.template {
            Some(text) => text.of(message, place).into_bytes(),
            None => message.json(),
        }
    }
}

impl TryFrom<Settings> for DigestConfig {
    type Error = String;

    fn try_from(settings: Settings) -> Result<Self, String> {
        let Settings { max_events, after, interval, template } = settings;
        if !(1..=1000).contains(&max_events) {
            return Err(format!("`max_events` is 1 to 1000, not {max_events}"));
        }
        Ok(DigestConfig { max_events, after: after.0, interval: interval.0, template })
    }
}

impl Default for DigestConfig {
    fn default() -> Self {
        let Settings { max_events, after, interval, template } = Settings::default();
        DigestConfig { max_events, after: after.0, interval: interval.0, template }
    }
}

/// The most that may wait, besides a sealed digest.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    events: usize,
    bytes: usize,
}

const BOUNDS: Bounds = Bounds { events: 10_000, bytes: 16 << 20 };

/// Events that are known again after a crash. A batch has fewer, by far.
const SEEN: usize = 20_000;

const GATHERING: &str = "storing events for the next digest";

/// The digests of a sink.
pub(crate) struct Digests {
    config: DigestConfig,
    sink: String,
    path: PathBuf,
    /// It is made with the first event.
    file: Option<File>,
    clock: Clock,
    bounds: Bounds,
    /// Events that wait, those of the sealed digest in front.
    waiting: VecDeque<Waiting>,
    sealed: Option<Sealed>,
    /// Dropped events that no digest has counted yet.
    dropped: i64,
    sent_at: Option<i64>,
    /// Events in the next digest, at the most: fewer after one was refused.
    most: usize,
    /// The sealed digest was accepted, though the file may not say so yet.
    is_accepted: bool,
    /// No more events come, so that those that wait are due.
    is_last: bool,
    dropped_in_all: Tally,
    waiting_now: Level,
}

/// A digest that is to be sent.
pub(crate) struct Due {
    /// The key is known before the first try, and is the same for each.
    pub(crate) key: String,
    pub(crate) body: Vec<u8>,
}

/// The time of day by a clock that is never set back.
#[derive(Debug, Clone, Copy)]
struct Clock {
    began: Instant,
    /// The time of day then, in microseconds since 1970.
    at: i64,
}

impl Clock {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { began: Instant::now(), at: micros(now) }
    }

    fn now(&self) -> i64 {
        self.at.saturating_add(micros(self.began.elapsed()))
    }

    /// So long after this time of day.
    fn after(&self, at: i64, wait: Duration) -> Instant {
        let later = at.saturating_add(micros(wait)).saturating_sub(self.at);
        self.began + Duration::from_micros(u64::try_from(later).unwrap_or_default())
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

impl Digests {
    /// Opens what a sink has gathered before.
    pub(crate) fn open(config: &DigestConfig, context: &Context) -> Result<Self, ConnectError> {
        let path = path_of(context);
        let mut digests = Digests {
            config: config.clone(),
            sink: context.name.clone(),
            file: None,
            clock: Clock::new(),
            bounds: BOUNDS,
            waiting: VecDeque::new(),
            sealed: None,
            dropped: 0,
            sent_at: None,
            most: config.max_events,
            is_accepted: false,
            is_last: false,
            waiting_now: Level::new(metrics::SINK_GATHERED_EVENTS, &[&context.name]),
            dropped_in_all: Tally::new(metrics::SINK_DROPPED_EVENTS, &[&context.name, "digest"]),
            path,
        };
        if digests.path.symlink_metadata().is_ok() {
            let opened = File::open(&digests.path);
            let (file, found) = opened.map_err(|cause| cannot_open(&digests.path, cause))?;
            digests.take(file, found);
        }
        digests.say_waiting();
        Ok(digests)
    }

    fn take(&mut self, file: File, found: Found) {
        let Found { waiting, sealed, dropped, sent_at } = found;
        // The clock may have been set back since.
        let now = self.clock.now();
        let past = |waiting: Waiting| Waiting { at: waiting.at.min(now), ..waiting };
        self.waiting = waiting.into_iter().map(past).collect();
        (self.sealed, self.dropped) = (sealed, dropped);
        self.sent_at = sent_at.map(|at| at.min(now));
        self.file = Some(file);
    }

    /// Stores the events, except those that are stored already.
    pub(crate) fn gather(&mut self, batch: &Batch) -> Result<(), WriteError> {
        if self.file.is_none() {
            let opened = File::open(&self.path);
            let (file, found) = opened.map_err(|cause| cannot_open(&self.path, cause))?;
            self.take(file, found);
        }
        let Some(file) = self.file.as_mut().filter(|file| file.is_in_place()) else {
            let cause = format!("{} was replaced or removed", self.path.display());
            self.tell_dropped(self.waiting.len(), &cause);
            return Err(WriteError::reconnect(GATHERING, cause));
        };
        let (now, bounds) = (self.clock.now(), self.bounds);
        let (sealed, dropped) = (self.sealed.as_ref(), self.dropped);
        let last_sealed = sealed.map_or(0, |sealed| sealed.last);
        let mut waiting = self.waiting.clone();
        let changed = file.change(|change| {
            for entry in batch.entries() {
                let note = serde_json::to_vec(&Note::of(&entry)).unwrap_or_default();
                waiting.extend(change.gather(entry.event.id(), now, &note)?);
            }
            change.forget_seen(SEEN.max(4 * batch.len()))?;
            let over = over(&waiting, last_sealed, bounds);
            if over > 0 {
                let in_sealed = waiting.partition_point(|one| one.place <= last_sealed);
                let gone: Vec<_> = waiting.drain(in_sealed..in_sealed + over).collect();
                let up_to = gone.last().map_or(last_sealed, |one| one.place);
                change.remove(last_sealed, up_to)?;
            }
            let dropped = dropped.saturating_add(i64::try_from(over).unwrap_or_default());
            change.say(dropped, sealed)?;
            Ok((dropped, over))
        });
        let (dropped, over) = changed.map_err(|error| not_kept(GATHERING, error))?;
        (self.waiting, self.dropped) = (waiting, dropped);
        self.waiting_now.set_count(self.waiting.len());
        self.tell_dropped(over, "too many events wait for a digest");
        Ok(())
    }

    fn tell_dropped(&self, events: usize, why: &str) {
        if events == 0 {
            return;
        }
        self.dropped_in_all.add(events as u64);
        warn!(
            sink = self.sink,
            events,
            error = why,
            "events are dropped from those that wait for a digest"
        );
    }

    /// The time to send a digest, if events wait.
    pub(crate) fn due(&self) -> Option<Instant> {
        if self.sealed.is_some() || self.is_last && !self.waiting.is_empty() {
            return Some(self.clock.began);
        }
        let first = self.waiting.front()?;
        let is_full = self.waiting.len() >= self.most;
        let wait = if is_full { Duration::ZERO } else { self.config.after };
        let gathered = self.clock.after(first.at, wait);
        let paced = self.sent_at.map(|at| self.clock.after(at, self.config.interval));
        Some(paced.map_or(gathered, |paced| paced.max(gathered)))
    }

    /// The digest that is due, if one is, as a body for this place. It is sealed then.
    pub(crate) fn seal(&mut self, place: Place) -> Result<Option<Due>, WriteError> {
        if self.due().is_none_or(|due| due > Instant::now()) {
            return Ok(None);
        }
        if self.is_accepted {
            return self.sent().map(|()| None);
        }
        let failed = |error| not_kept("making a digest", error);
        let Some(file) = &mut self.file else { return Ok(None) };
        let sealed = match &self.sealed {
            Some(sealed) => sealed.clone(),
            None => {
                let events = self.waiting.len().min(self.most);
                let Some(last) = self.waiting.get(events.saturating_sub(1)) else {
                    return Ok(None);
                };
                let key = key(&self.sink, self.clock.now(), last.place);
                let sealed = Sealed { key, last: last.place, counted: self.dropped };
                file.change(|change| change.say(0, Some(&sealed))).map_err(failed)?;
                (self.sealed, self.dropped) = (Some(sealed.clone()), 0);
                sealed
            }
        };
        let notes = file.notes(sealed.last).map_err(failed)?;
        let dropped = u64::try_from(sealed.counted).unwrap_or_default();
        let body = self.config.body(&Message::of(notes, dropped), place);
        Ok(Some(Due { key: sealed.key, body }))
    }

    /// Notes the result of sending the sealed digest, and hands on an error that is to be tried
    /// again.
    pub(crate) fn settle(&mut self, sent: Result<(), WriteError>) -> Result<(), WriteError> {
        match sent {
            Ok(()) => self.sent(),
            Err(refused @ WriteError::Reject { .. }) => self.refused(&refused.chain()),
            Err(later) => Err(later),
        }
    }

    /// The sealed digest was accepted. It is not sent again over this connection, also if the file
    /// cannot take that for now.
    fn sent(&mut self) -> Result<(), WriteError> {
        self.is_accepted = true;
        let failed = |error| not_kept("noting that a digest was sent", error);
        let (Some(sealed), Some(file)) = (&self.sealed, &mut self.file) else { return Ok(()) };
        let (last, now, dropped) = (sealed.last, self.clock.now(), self.dropped);
        let changed = file.change(|change| {
            change.remove(0, last)?;
            change.say(dropped, None)?;
            change.sent(now)
        });
        changed.map_err(failed)?;
        self.sent_at = Some(now);
        self.let_go(last);
        self.most = (2 * self.most).min(self.config.max_events);
        Ok(())
    }

    /// The sealed digest will never be accepted. The next is half of it; an event alone is dropped.
    fn refused(&mut self, why: &str) -> Result<(), WriteError> {
        let failed = |error| not_kept("noting that a digest was refused", error);
        let (Some(sealed), Some(file)) = (&self.sealed, &mut self.file) else { return Ok(()) };
        let (last, counted) = (sealed.last, sealed.counted);
        let events = self.waiting.partition_point(|one| one.place <= last);
        let gone = usize::from(events <= 1);
        let untold = self.dropped.saturating_add(counted);
        let dropped = untold.saturating_add(i64::try_from(gone).unwrap_or_default());
        let changed = file.change(|change| {
            if gone > 0 {
                change.remove(0, last)?;
            }
            change.say(dropped, None)
        });
        changed.map_err(failed)?;
        self.dropped = dropped;
        if gone > 0 {
            self.let_go(last);
            self.tell_dropped(gone, why);
        }
        self.sealed = None;
        self.most = (events / 2).max(1);
        Ok(())
    }

    /// The events up to this place wait no more.
    fn let_go(&mut self, last: i64) {
        let events = self.waiting.partition_point(|one| one.place <= last);
        self.waiting.drain(..events);
        self.waiting_now.set_count(self.waiting.len());
        (self.sealed, self.is_accepted) = (None, false);
    }

    /// From now on all that waits is due: no more events come.
    pub(crate) fn hurry(&mut self) {
        self.is_last = true;
    }

    /// Tells of events that wait when the sink begins.
    fn say_waiting(&self) {
        let (events, file) = (self.waiting.len(), self.path.display());
        self.waiting_now.set_count(events);
        if events > 0 {
            info!(sink = self.sink, events, %file, "events from before wait for a digest");
        }
    }

    /// Tells of events that still wait when the sink ends.
    pub(crate) fn say_left(&self) {
        let (events, file) = (self.waiting.len(), self.path.display());
        warn!(sink = self.sink, events, %file, "events still wait for a digest; they stay in its file");
    }

    /// Tells of events that the sink gathered when it still sent digests.
    pub(crate) fn say_left_behind(context: &Context) {
        let path = path_of(context);
        let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
        if !is_file || context.writer > 0 {
            return;
        }
        let (sink, file) = (&context.name, path.display());
        match File::count(&path) {
            Ok(0) => {}
            Ok(events) => {
                let help = "`body: digest` sends them; or remove the file";
                warn!(sink, events, %file, help, "events wait for a digest, which is never sent");
            }
            Err(error) => {
                let error = chain(&error);
                warn!(sink, %file, error, "cannot see whether events wait for a digest");
            }
        }
    }
}

fn path_of(context: &Context) -> PathBuf {
    context.state_dir.join("digests").join(format!("{}.db", context.name))
}

/// The number of events to drop behind those of the sealed digest.
fn over(waiting: &VecDeque<Waiting>, last_sealed: i64, bounds: Bounds) -> usize {
    let in_sealed = waiting.partition_point(|one| one.place <= last_sealed);
    let (mut events, mut bytes) = (0, 0);
    let kept = waiting.iter().skip(in_sealed).rev().take_while(|one| {
        events += 1;
        bytes += one.bytes;
        events <= bounds.events && bytes <= bounds.bytes
    });
    waiting.len() - in_sealed - kept.count()
}

/// A key that no other digest has.
fn key(sink: &str, now: i64, last: i64) -> String {
    let text = format!("{sink} {now} {last} {}", fastrand::u64(..));
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes()))
}

/// The failure of the file. A damaged one is put aside when it is opened anew.
fn not_kept(doing: &str, error: rusqlite::Error) -> WriteError {
    match state_file::is_damaged(&error) {
        true => WriteError::reconnect(doing, error),
        false => WriteError::retry(doing, error),
    }
}

fn cannot_open(path: &Path, cause: Cause) -> ConnectError {
    let doing = format!("opening the digest's file {}", path.display());
    ConnectError::Retry { doing, cause, after: None }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::event::Event;
    use crate::sink::testing::{batch, context};

    fn config(max_events: usize) -> DigestConfig {
        let (after, interval) = (Duration::from_secs(60), Duration::from_secs(10));
        DigestConfig { max_events, after, interval, template: None }
    }

    fn open(folder: &Path, max_events: usize) -> Digests {
        let context = Context { state_dir: folder.into(), ..context() };
        Digests::open(&config(max_events), &context).unwrap()
    }

    fn events(numbers: std::ops::Range<u64>) -> Batch {
        batch(numbers.map(|n| Event::new(&format!("n/{n}"), b"\x80")).collect())
    }

    /// The digest that is due: the numbers of its events, its count of dropped ones, its key.
    fn sealed(digests: &mut Digests) -> Option<(Vec<u64>, u64, String)> {
        let due = digests.seal(Place::Json).unwrap()?;
        let body: Value = serde_json::from_slice(&due.body).unwrap();
        let events = body["events"].as_array().unwrap();
        assert_eq!(body["count"], events.len());
        let number = |event: &Value| event["tag"].as_str().unwrap()[2..].parse().unwrap();
        Some((events.iter().map(number).collect(), body["dropped"].as_u64().unwrap(), due.key))
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    fn refusal() -> Result<(), WriteError> {
        Err(WriteError::reject("sending", "no"))
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_accepted_is_not_sent_again_where_the_file_cannot_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let mut digests = open(folder.path(), 3);
        digests.gather(&events(0..3)).unwrap();
        assert!(sealed(&mut digests).is_some());
        // The file refuses: another writer has it.
        let other = rusqlite::Connection::open(&digests.path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert!(digests.settle(Ok(())).is_err());
        assert!(digests.seal(Place::Json).is_err());
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(sealed(&mut digests), None);
        assert!(digests.waiting.is_empty());
    }

    #[test]
    fn a_damaged_file_is_opened_anew_and_a_full_one_is_not() {
        for (code, label) in [
            (rusqlite::ffi::SQLITE_CORRUPT, "reconnect"),
            (rusqlite::ffi::SQLITE_NOTADB, "reconnect"),
            (rusqlite::ffi::SQLITE_FULL, "retry"),
        ] {
            let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
            assert_eq!(not_kept("", error).label(), label);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_waits_is_due_once_nothing_more_comes() {
        let folder = tempfile::tempdir().unwrap();
        let mut digests = open(folder.path(), 3);
        digests.gather(&events(0..4)).unwrap();
        digests.hurry();
        for numbers in [vec![0, 1, 2], vec![3]] {
            assert_eq!(sealed(&mut digests).unwrap().0, numbers);
            digests.settle(Ok(())).unwrap();
        }
        assert_eq!(digests.due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_digest_waits_for_more_events_and_for_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let mut digests = open(folder.path(), 3);
        assert_eq!(digests.due(), None);
        assert!(!folder.path().join("digests").exists(), "no file without an event");
        let began = Instant::now();
        digests.gather(&events(0..1)).unwrap();
        pass(20).await;
        digests.gather(&events(1..2)).unwrap();
        assert_eq!(digests.due(), Some(began + Duration::from_secs(60)));
        assert_eq!(sealed(&mut digests), None);
        pass(40).await;
        assert_eq!(sealed(&mut digests).unwrap().0, [0, 1]);
        digests.settle(Ok(())).unwrap();
        // The digest is full at once, and held back by the interval.
        digests.gather(&events(2..7)).unwrap();
        assert_eq!(digests.due(), Some(began + Duration::from_secs(70)));
        pass(10).await;
        assert_eq!(sealed(&mut digests).unwrap().0, [2, 3, 4]);
        digests.settle(Ok(())).unwrap();
        assert_eq!(digests.due(), Some(began + Duration::from_secs(120)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_digest_is_the_same_after_a_crash_until_it_was_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let mut digests = open(folder.path(), 3);
        digests.gather(&events(0..3)).unwrap();
        let first = sealed(&mut digests).unwrap();
        digests.settle(Err(WriteError::retry("sending", "busy"))).unwrap_err();
        digests.gather(&events(3..4)).unwrap();
        drop(digests);
        let mut digests = open(folder.path(), 3);
        assert!(digests.due().unwrap() <= Instant::now());
        // The batch that was stored but not settled comes again.
        digests.gather(&events(3..4)).unwrap();
        assert_eq!(sealed(&mut digests).unwrap(), first);
        digests.settle(Ok(())).unwrap();
        drop(digests);
        let mut digests = open(folder.path(), 3);
        digests.gather(&events(0..4)).unwrap();
        pass(60).await;
        let second = sealed(&mut digests).unwrap();
        assert_eq!(second.0, [3]);
        assert_ne!(second.2, first.2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_event_is_found_and_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut digests = open(folder.path(), 4);
        digests.gather(&events(0..8)).unwrap();
        let (mut accepted, mut told) = (Vec::new(), 0);
        while accepted.len() < 7 {
            pass(60).await;
            let (numbers, dropped, _) = sealed(&mut digests).unwrap();
            if numbers.contains(&5) {
                digests.settle(refusal()).unwrap();
                continue;
            }
            digests.settle(Ok(())).unwrap();
            accepted.extend(numbers);
            told += dropped;
        }
        assert_eq!((accepted, told), (vec![0, 1, 2, 3, 4, 6, 7], 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_damaged_or_gone_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("digests/test.db");
        let mut digests = open(folder.path(), 1);
        digests.gather(&events(0..1)).unwrap();
        std::fs::remove_dir_all(folder.path().join("digests")).unwrap();
        assert_eq!(digests.gather(&events(1..2)).unwrap_err().label(), "reconnect");
        let mut digests = open(folder.path(), 1);
        digests.gather(&events(1..2)).unwrap();
        drop(digests);
        std::fs::write(&path, "this is no database, it is some text".repeat(100)).unwrap();
        let mut digests = open(folder.path(), 1);
        digests.gather(&events(2..3)).unwrap();
        assert_eq!(sealed(&mut digests).unwrap().0, [2]);
        let names = std::fs::read_dir(folder.path().join("digests")).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().any(|name| name.to_str().unwrap().contains("damaged")), "{names:?}");
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Gather(u64),
        /// The last batch comes again, as after a crash.
        Again,
        Pass(u64),
        Accept,
        Lose,
        Refuse,
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1u64..9).prop_map(Step::Gather),
            1 => Just(Step::Again),
            3 => (1u64..80).prop_map(Step::Pass),
            4 => Just(Step::Accept),
            1 => Just(Step::Lose),
            1 => Just(Step::Refuse),
            1 => Just(Step::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn invariant_3_what_is_gathered_is_in_one_digest_in_order_or_counted_as_dropped(
            steps in proptest::collection::vec(step(), 1..60),
            most in 1usize..6,
            bound in 1usize..20,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let folder = tempfile::tempdir().unwrap();
                let opened = || {
                    let mut digests = open(folder.path(), most);
                    digests.bounds = Bounds { events: bound, ..BOUNDS };
                    digests
                };
                let mut digests = opened();
                let (mut next, mut last) = (0, 0..0);
                let (mut told, mut accepted) = (0, Vec::new());
                let mut keys = BTreeMap::new();
                let ending = [Step::Pass(80), Step::Accept].repeat(40);
                for step in steps.into_iter().chain(ending) {
                    match step {
                        Step::Gather(count) => {
                            last = next..next + count;
                            next += count;
                            digests.gather(&events(last.clone())).unwrap();
                        }
                        Step::Again if last.is_empty() => {}
                        Step::Again => digests.gather(&events(last.clone())).unwrap(),
                        Step::Pass(seconds) => pass(seconds).await,
                        Step::Reopen => digests = opened(),
                        Step::Accept | Step::Lose | Step::Refuse => {
                            let Some((numbers, dropped, key)) = sealed(&mut digests) else {
                                continue;
                            };
                            let same = keys.entry(key).or_insert_with(|| numbers.clone());
                            assert_eq!(*same, numbers, "a key stands for one digest");
                            assert!(numbers.len() <= most);
                            match step {
                                Step::Accept => {
                                    digests.settle(Ok(())).unwrap();
                                    accepted.extend(numbers);
                                    told += dropped;
                                }
                                Step::Refuse => digests.settle(refusal()).unwrap(),
                                _ => {}
                            }
                        }
                    }
                }
                assert!(accepted.is_sorted_by(|a, b| a < b), "{accepted:?}");
                // The next digest would count the events that were dropped after the last.
                told += u64::try_from(digests.dropped).unwrap();
                assert_eq!(accepted.len() as u64 + told, next);
                assert_eq!((digests.due(), digests.sealed), (None, None));
            });
        }
    }
}
