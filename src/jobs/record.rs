//! Records jobs, and decides which of two records wins.
//!
//! * The *load* of a job comes from up to three. The best is the publication (Salt's `save_load`).
//!   The event `salt/job/<jid>/new` lacks some of it. The worst is the first return, which Salt's
//!   master also hands to `save_load`. The better replaces the worse, whichever comes first. A job
//!   that is published again, as each part of a batch is, is described by the last time. An event
//!   replaces an earlier one only as a part of a batch, which differs in its minions: anybody may
//!   fire a later one. The first of several returns in place of a load stays.
//! * A minion can have two *returns*: the one that the master vouches for holds, else the first, as
//!   in Salt's `local_cache` ([`crate::event::standing`]). The row is marked if the two differ.
//! * Lists of *expected minions* are united: those of a batch, or of several syndics. An event adds
//!   no minions to a publication.
//! * A job that was published with `nocache` keeps the minions that returned and their outcomes,
//!   but not their returns.
//! * A *runner* is a job with one return, that of the master, which is no minion and expected
//!   nowhere. It is stored as Salt hands it to a job cache ([`RunnerJob`]), also where only the bus
//!   tells of it. Then it stands under the id that the source has for its master, until Salt says
//!   the true one. Without the master's word no job that was published becomes one.
//! * Returns under the id of no job (`nocache`, `req`) are not stored here.

use std::borrow::Cow;

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::began::began;
use super::conflict::{Conflict, Odds};
use super::damage::Damage;
use super::load::Load;
use super::{Jobs, JobsError, functions};
use crate::codec::msgpack::{self, Item, MapWriter};
use crate::event::batch::Entry;
use crate::event::job_return::{Functions, JobReturn, Verdict};
use crate::event::runner::RunnerJob;
use crate::event::standing::{self, Compared, Precedence, Standing};
use crate::event::step::Step;
use crate::event::{Authority, Event, EventKind, is_job, return_tag};
use crate::observe::state;

/// The origin of a job's load, from worse to better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i64)]
pub(super) enum Rank {
    /// A return, in place of the load.
    Return = 1,
    /// The event of a new job.
    Event = 2,
    /// The load that was published.
    Published = 3,
}

impl Jobs {
    /// Salt's `save_load`: a job was published for these minions. Salt's master calls it once more
    /// for each return, with the return as the load; that changes nothing.
    pub(crate) fn save_load(
        &self,
        jid: &str,
        load: &[u8],
        minions: &[String],
    ) -> Result<(), JobsError> {
        let load = Load::of(load)?.bytes();
        if !is_job(jid) {
            return Ok(());
        }
        let is_return = msgpack::find(load, "return").is_some();
        let rank = if is_return { Rank::Return } else { Rank::Published };
        let runner = RunnerJob::in_load(load);
        // The master is no minion, even if one has its name.
        let minions = if runner.is_some() { &[] } else { minions };
        let redacted = match runner {
            Some(runner) => self.redacted_return_of_runner(&runner, load),
            None if is_return => {
                let minion = msgpack::text(load, "id").unwrap_or_default();
                self.redacted_load(&return_tag(jid, minion), load)
            }
            None => self.redacted_load(&format!("salt/job/{jid}/new"), load),
        };
        let load = match is_return && says_nocache(load) {
            true => Cow::Owned(without_return(&redacted)),
            false => redacted,
        };
        self.write("store a load", |tx| {
            let now = state::now();
            let job = job(tx, jid, now)?;
            put_load(tx, job, &load, rank)?;
            expect(tx, job, minions.iter().map(String::as_str))
        })
    }

    /// Salt's `save_minions`: the job is meant for these minions too. Their syndic makes no
    /// difference to any answer.
    pub(crate) fn save_minions(
        &self,
        jid: &str,
        minions: &[String],
        _syndic: Option<&str>,
    ) -> Result<(), JobsError> {
        if !is_job(jid) {
            return Ok(());
        }
        self.write("store minions", |tx| {
            let job = job(tx, jid, state::now())?;
            expect(tx, job, minions.iter().map(String::as_str))
        })
    }

    /// Salt's `returner`: a minion has returned. The load says of which job.
    pub(crate) fn save_return(&self, load: &[u8], authority: Authority) -> Result<(), JobsError> {
        let load = Load::of(load)?;
        let (Some(jid), Some(minion)) = (load.text("jid"), load.text("id")) else {
            return Err(JobsError::Malformed("a return must have `jid` and `id`"));
        };
        if !is_job(jid) {
            return Ok(());
        }
        let load = load.bytes();
        let verdict = JobReturn::of(load).verdict();
        let load = self.redacted_load(&return_tag(jid, minion), load);
        self.put(&Return {
            jid,
            minion,
            load: &load,
            verdict,
            received: state::now(),
            standing: authority.into(),
            tag: None,
            is_of_runner: false,
        })
    }

    /// The same of a return that Salt has handed on, which may be that of a runner: the master's
    /// own. `master_id` is the master's id, as far as it is known.
    pub(crate) fn save_return_handed_on(
        &self,
        load: &[u8],
        authority: Authority,
        master_id: &str,
    ) -> Result<(), JobsError> {
        let load = Load::of(load)?.bytes();
        let Some(runner) = RunnerJob::handed_on(load, master_id) else {
            return self.save_return(load, authority);
        };
        let redacted = self.redacted_return_of_runner(&runner, load);
        self.put(&Return {
            jid: runner.jid,
            minion: runner.master,
            load: &redacted,
            verdict: JobReturn::of(load).verdict(),
            received: state::now(),
            standing: authority.into(),
            tag: None,
            is_of_runner: true,
        })
    }

    fn put(&self, said: &Return<'_>) -> Result<(), JobsError> {
        let conflict = self.write("store a return", |tx| put_return(tx, said))?;
        self.0.conflicts.report(conflict.as_slice());
        Ok(())
    }

    /// The load of a runner's return as it is stored, with the same hidden as in its event.
    fn redacted_return_of_runner<'a>(
        &self,
        runner: &RunnerJob<'_>,
        load: &'a [u8],
    ) -> Cow<'a, [u8]> {
        match self.redacted(&runner.tag(), runner.data) {
            Some(new) => Cow::Owned(msgpack::with_value(load, "return", new.payload())),
            None => Cow::Borrowed(load),
        }
    }

    /// The load as it is stored, which is a map again. Redaction replaces a load as a whole that
    /// would become too long. Its job, minion, function and outcome are then kept.
    fn redacted_load<'a>(&self, tag: &str, load: &'a [u8]) -> Cow<'a, [u8]> {
        let redacted = |load: &[u8]| self.redacted(tag, load).map(|new| new.payload().to_vec());
        let is_load = |bytes: &Vec<u8>| Load::of(bytes).is_ok();
        let Some(new) = redacted(load) else { return Cow::Borrowed(load) };
        if is_load(&new) {
            return Cow::Owned(new);
        }
        let mut outline = MapWriter::default();
        for key in ["jid", "id", "fun", "retcode", "success"] {
            if let Some(value) = msgpack::find(load, key) {
                outline.value(key, value);
            }
        }
        if msgpack::find(load, "return").is_some() {
            // Without a return the minion would not be among those that have returned.
            outline.value("return", &new);
        }
        let outline = outline.finished();
        let outline = Some(redacted(&outline).unwrap_or(outline)).filter(is_load);
        Cow::Owned(outline.unwrap_or_else(|| MapWriter::default().finished()))
    }

    /// Salt's `update_endtime`.
    pub(crate) fn update_endtime(&self, jid: &str, time: &str) -> Result<(), JobsError> {
        if !is_job(jid) {
            return Ok(());
        }
        self.write("store an end time", |tx| {
            let job = job(tx, jid, state::now())?;
            let mut update = tx.prepare_cached("UPDATE jobs SET end_time = ? WHERE id = ?")?;
            update.execute(params![time, job]).map(drop)
        })
    }

    /// The missing parts of a job: true if its load is, and those of these minions that have no
    /// return.
    pub(crate) fn lacking(
        &self,
        jid: &str,
        minions: Vec<String>,
    ) -> Result<(bool, Vec<String>), JobsError> {
        let known = self.read("look for missing returns", |db, damage| {
            let mut select = db.prepare_cached("SELECT id, rank FROM jobs WHERE jid = ?")?;
            let row = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, damage.number(row, 1)));
            let Some((job, rank)) = select.query_row([jid], row).optional()? else {
                return Ok((true, minions.clone()));
            };
            let mut returned = db.prepare_cached(
                "SELECT 1 FROM returns WHERE job = ? AND NOT trimmed
                 AND minion = (SELECT id FROM minions WHERE name = ?)",
            )?;
            let mut lacking = Vec::new();
            for minion in &minions {
                if !returned.exists(params![job, minion])? {
                    lacking.push(minion.clone());
                }
            }
            Ok((rank < Rank::Event as i64, lacking))
        })?;
        Ok(known.unwrap_or((true, minions)))
    }

    /// Tells if no return of the runner with this id is known.
    pub(crate) fn lacks_runner(&self, jid: &str) -> Result<bool, JobsError> {
        let known = self.read("look for a runner's return", |db, _| {
            let mut select = db.prepare_cached(
                "SELECT 1 FROM returns WHERE job = (SELECT id FROM jobs WHERE jid = ?)
                 AND runner AND NOT trimmed",
            )?;
            select.exists([jid])
        })?;
        Ok(!known.unwrap_or(false))
    }

    /// Takes events about jobs. Other events are passed over. So are those whose payload is no
    /// load; they are counted. All or nothing is stored.
    pub fn record<'a>(&self, events: impl Iterator<Item = Entry<'a>>) -> Result<(), JobsError> {
        let conflicts = self.write("store job events", |tx| {
            let mut conflicts = Vec::new();
            for entry in events {
                conflicts.extend(record_event(tx, &entry, &self.0.damage)?);
            }
            Ok(conflicts)
        })?;
        self.0.conflicts.report(&conflicts);
        Ok(())
    }

    /// Saves like [`Jobs::save_load`], with a word worth no more than the bus's. The load is taken
    /// as the data of the event that the bus would have brought. A return in place of a load is
    /// worth the least anyway.
    pub(crate) fn save_load_of_bus(
        &self,
        jid: &str,
        load: &[u8],
        minions: &[String],
    ) -> Result<(), JobsError> {
        if msgpack::find(Load::of(load)?.bytes(), "return").is_some() {
            return self.save_load(jid, load, &[]);
        }
        if !is_job(jid) {
            return Ok(());
        }
        let event = event_of_load(jid, load, minions);
        let load = self.redacted_load(event.tag(), event.payload());
        let event = Event::new(event.tag(), &load);
        let conflict = self.write("store a load", |tx| {
            record_new_job(tx, &event, jid, event.payload(), state::now())
        })?;
        self.0.conflicts.report(conflict.as_slice());
        Ok(())
    }
}

fn record_event(
    tx: &Transaction<'_>,
    entry: &Entry<'_>,
    damage: &Damage,
) -> rusqlite::Result<Option<Conflict>> {
    let Entry { event, received, authority, .. } = *entry;
    let is_of_job = match event.kind() {
        EventKind::JobNew | EventKind::JobReturn => true,
        _ => Step::in_tag(event.tag()).is_some(),
    };
    if !is_of_job {
        return Ok(None);
    }
    let load = match Load::of(event.payload()) {
        Ok(load) => load.bytes(),
        Err(why) => {
            damage.event(event.tag(), why);
            return Ok(None);
        }
    };
    let fields = event.fields();
    let Some(jid) = fields.job() else { return Ok(None) };
    match event.kind() {
        EventKind::JobNew => record_new_job(tx, event, jid, load, received),
        EventKind::JobReturn => {
            let Some(minion) = fields.minion else { return Ok(None) };
            let (verdict, standing) = (fields.job_return.verdict(), Standing::of(event, authority));
            let tag = (standing == Standing::Contradicted).then(|| event.tag());
            let is_of_runner = false;
            let said = Return { jid, minion, load, verdict, received, standing, tag, is_of_runner };
            put_return(tx, &said)
        }
        _ => record_runner(tx, entry, jid),
    }
}

fn record_new_job(
    tx: &Transaction<'_>,
    event: &Event,
    jid: &str,
    load: &[u8],
    received: u64,
) -> rusqlite::Result<Option<Conflict>> {
    if event.tag_contradicts_data() {
        return Ok(Some(contradiction(jid)));
    }
    // Minions learn the ids of their jobs and hardly those of runners, so this one of two such
    // events is more likely to be true.
    let conflict = is_of_runner(tx, jid)?.then(|| two_jobs(jid));
    let job = job(tx, jid, received)?;
    let (rank, known) = known_load(tx, job)?;
    if rank == Rank::Published as i64 {
        return Ok(conflict);
    }
    if rank < Rank::Event as i64 || is_same_but_for_target(&known, load) {
        put_load(tx, job, load, Rank::Event)?;
    }
    expect(tx, job, texts_of(load, "minions")).map(|()| conflict)
}

/// Takes the facts of a runner from an event.
fn record_runner(
    tx: &Transaction<'_>,
    entry: &Entry<'_>,
    jid: &str,
) -> rusqlite::Result<Option<Conflict>> {
    let Some((runner, step)) = RunnerJob::of_event(entry.event, &entry.origin.master_id) else {
        return Ok(entry.event.tag_contradicts_data().then(|| contradiction(jid)));
    };
    if step == Step::New {
        if entry.authority == Authority::Bus && is_of_minions(tx, runner.jid)? {
            return Ok(Some(two_jobs(runner.jid)));
        }
        let job = job(tx, runner.jid, entry.received)?;
        return put_announcement(tx, job, &runner.load_of_new()).map(|()| None);
    }
    let load = runner.load_of_return(runner.data);
    put_return(
        tx,
        &Return {
            jid: runner.jid,
            minion: runner.master,
            load: &load,
            verdict: JobReturn::of(&load).verdict(),
            received: entry.received,
            standing: entry.authority.into(),
            tag: None,
            is_of_runner: true,
        },
    )
}

/// Salt makes no event whose tag names another job than its data: such an event counts for neither.
fn contradiction(jid: &str) -> Conflict {
    Conflict { odds: Odds::Tag, jid: jid.to_owned(), minion: String::new() }
}

/// One event gives this job to a runner, and another to minions.
fn two_jobs(jid: &str) -> Conflict {
    Conflict { odds: Odds::Content, jid: jid.to_owned(), minion: String::new() }
}

/// Tells if a job is known to be a runner's.
fn is_of_runner(tx: &Transaction<'_>, jid: &str) -> rusqlite::Result<bool> {
    let mut select = tx.prepare_cached(
        "SELECT 1 FROM jobs WHERE jid = ? AND (rank = 0 AND load NOT NULL
         OR EXISTS (SELECT 1 FROM returns WHERE job = jobs.id AND runner))",
    )?;
    select.exists([jid])
}

/// Tells if a job was published for minions.
fn is_of_minions(tx: &Transaction<'_>, jid: &str) -> rusqlite::Result<bool> {
    let mut select =
        tx.prepare_cached("SELECT 1 FROM jobs WHERE jid = ? AND (rank >= ? OR expected > 0)")?;
    select.exists(params![jid, Rank::Event as i64])
}

/// The texts of the array under a key.
pub(super) fn texts_of<'a>(load: &'a [u8], key: &str) -> impl Iterator<Item = &'a str> {
    let value = msgpack::find(load, key).unwrap_or_default();
    msgpack::items(value).filter_map(|item| msgpack::scalar(item).and_then(Item::text))
}

/// The job's row, made if there is none; it was heard of at `now`.
fn job(tx: &Transaction<'_>, jid: &str, now: u64) -> rusqlite::Result<i64> {
    let mut upsert = tx.prepare_cached(
        "INSERT INTO jobs (jid, first_seen, last_seen, began) VALUES (?1, ?2, ?2, ?3)
         ON CONFLICT (jid) DO UPDATE SET last_seen = max(last_seen, ?2) RETURNING id",
    )?;
    let now = micros(now);
    upsert.query_row(params![jid, now, began(jid, now)], |row| row.get(0))
}

/// The event by which the bus tells of a new job.
fn event_of_load(jid: &str, load: &[u8], minions: &[String]) -> Event {
    let mut told = MapWriter::default();
    for (key, value) in msgpack::raw_pairs(load) {
        if msgpack::scalar(key).and_then(Item::text) != Some("minions") {
            told.pair(key, value);
        }
    }
    told.texts("minions", minions);
    Event::new(&format!("salt/job/{jid}/new"), &told.finished())
}

/// The rank and the load of a job; damaged ones are as none.
fn known_load(tx: &Transaction<'_>, job: i64) -> rusqlite::Result<(i64, Vec<u8>)> {
    let mut select = tx.prepare_cached("SELECT rank, load FROM jobs WHERE id = ?")?;
    select.query_row([job], |row| {
        Ok((row.get(0).unwrap_or_default(), row.get(1).unwrap_or_default()))
    })
}

/// Tells if two events may be of parts of one batch, which differ in their minions.
fn is_same_but_for_target(known: &[u8], new: &[u8]) -> bool {
    let is_same = |key| msgpack::find(known, key) == msgpack::find(new, key);
    ["fun", "arg", "user", "tgt_type"].into_iter().all(is_same)
        && says_nocache(known) == says_nocache(new)
}

fn put_load(tx: &Transaction<'_>, job: i64, load: &[u8], rank: Rank) -> rusqlite::Result<()> {
    let mut update = tx.prepare_cached(
        "UPDATE jobs SET load = ?2, rank = ?3, user = coalesce(?4, user)
         WHERE id = ?1 AND (rank < ?3 OR rank = ?3 AND NOT ?5)",
    )?;
    let stays = rank == Rank::Return;
    if update.execute(params![job, load, rank as i64, msgpack::text(load, "user"), stays])? > 0 {
        functions::store(tx, job, functions_of(load))?;
    }
    Ok(())
}

/// Stores the first word on a runner, until there is a better one.
fn put_announcement(tx: &Transaction<'_>, job: i64, load: &[u8]) -> rusqlite::Result<()> {
    let mut update = tx.prepare_cached(
        "UPDATE jobs SET load = ?2, user = coalesce(user, ?3)
         WHERE id = ?1 AND rank = 0 AND load IS NULL",
    )?;
    if update.execute(params![job, load, msgpack::text(load, "user")])? > 0 {
        functions::store(tx, job, functions_of(load))?;
    }
    Ok(())
}

fn functions_of(load: &[u8]) -> Functions<'_> {
    Functions::of(msgpack::find(load, "fun").unwrap_or_default())
}

fn expect<'a>(
    tx: &Transaction<'_>,
    job: i64,
    minions: impl Iterator<Item = &'a str>,
) -> rusqlite::Result<()> {
    let mut insert =
        tx.prepare_cached("INSERT OR IGNORE INTO expected (job, minion) VALUES (?, ?)")?;
    let mut returned = tx.prepare_cached("SELECT 1 FROM returns WHERE job = ? AND minion = ?")?;
    let (mut more, mut missing) = (0_i64, 0_i64);
    for minion in minions {
        let minion = minion_id(tx, minion)?;
        if insert.execute(params![job, minion])? > 0 {
            more += 1;
            missing += i64::from(!returned.exists(params![job, minion])?);
        }
    }
    if more > 0 {
        let mut count = tx.prepare_cached(
            "UPDATE jobs SET expected = expected + ?2, missing = missing + ?3 WHERE id = ?1",
        )?;
        count.execute(params![job, more, missing])?;
    }
    Ok(())
}

/// The number that stands for a minion's name.
fn minion_id(tx: &Transaction<'_>, name: &str) -> rusqlite::Result<i64> {
    let mut select = tx.prepare_cached("SELECT id FROM minions WHERE name = ?")?;
    if let Some(id) = select.query_row([name], |row| row.get(0)).optional()? {
        return Ok(id);
    }
    tx.prepare_cached("INSERT INTO minions (name) VALUES (?)")?.execute([name])?;
    Ok(tx.last_insert_rowid())
}

struct Return<'a> {
    jid: &'a str,
    /// The minion, or the master of a runner.
    minion: &'a str,
    load: &'a [u8],
    verdict: Verdict,
    /// In microseconds since 1970.
    received: u64,
    standing: Standing,
    /// The tag, if it contradicts the load.
    tag: Option<&'a str>,
    is_of_runner: bool,
}

impl Return<'_> {
    fn conflict(&self, odds: Odds) -> Conflict {
        Conflict { odds, jid: self.jid.to_owned(), minion: self.minion.to_owned() }
    }
}

/// A row of a return.
struct Stored {
    row: i64,
    precedence: Precedence,
    had_failed: bool,
    /// The new one says something else.
    differs: bool,
}

fn put_return(tx: &Transaction<'_>, new: &Return<'_>) -> rusqlite::Result<Option<Conflict>> {
    let is_vouched_for = new.standing == Standing::Master;
    if new.is_of_runner && !is_vouched_for && is_of_minions(tx, new.jid)? {
        return Ok(Some(new.conflict(Odds::Content)));
    }
    let job = job(tx, new.jid, new.received)?;
    let minion = minion_id(tx, new.minion)?;
    let (load, compared) = match is_kept(tx, job)? {
        true => (Cow::Borrowed(new.load), Compared::All),
        false => (Cow::Owned(without_return(new.load)), Compared::AllButReturn),
    };
    let trimmed = standing::is_trimmed(&load);
    let (received, standing) = (micros(new.received), new.standing as i64);
    let (outcome, test) = (new.verdict.outcome.worked(), new.verdict.test);
    let failed = outcome == Some(false);
    let mut stored = match new.is_of_runner {
        true => stored_of_runner(tx, job, &load, compared)?,
        false => None,
    };
    if stored.is_none() {
        let mut insert = tx.prepare_cached(
            "INSERT INTO returns
             (job, minion, received, outcome, trimmed, load, standing, tag, runner, test)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (job, minion) DO NOTHING",
        )?;
        let (tag, runner) = (new.tag, new.is_of_runner);
        let values =
            params![job, minion, received, outcome, trimmed, load, standing, tag, runner, test];
        if insert.execute(values)? > 0 {
            count_return(tx, job, minion, failed)?;
            name_by(tx, job, new, &load, "SELECT 1 FROM jobs WHERE id = ? AND fun IS NULL")?;
            return Ok(new.tag.map(|_| new.conflict(Odds::Tag)));
        }
        stored = stored_of_minion(tx, job, minion, &load, compared)?;
    }
    let Some(Stored { row, precedence, had_failed, differs }) = stored else { return Ok(None) };
    if (Precedence { standing: new.standing, trimmed }).replaces(precedence) {
        make_room(tx, job, minion, row)?;
        let mut replace = tx.prepare_cached(
            "UPDATE returns SET minion = ?2, load = ?3, trimmed = ?4, outcome = ?5, standing = ?6,
             tag = ?7, conflict = conflict OR ?8, received = iif(?8, ?9, received), runner = ?10,
             test = ?11 WHERE rowid = ?1",
        )?;
        let (tag, runner) = (new.tag, new.is_of_runner);
        replace.execute(params![
            row, minion, load, trimmed, outcome, standing, tag, differs, received, runner, test
        ])?;
        let mut count = tx.prepare_cached("UPDATE jobs SET failed = failed + ? WHERE id = ?")?;
        count.execute(params![i64::from(failed) - i64::from(had_failed), job])?;
        // A job without a load had its function from the return that is gone.
        name_by(tx, job, new, &load, "SELECT 1 FROM jobs WHERE id = ? AND rank = 0")?;
    } else if differs {
        let mut mark =
            tx.prepare_cached("UPDATE returns SET conflict = 1 WHERE rowid = ? AND NOT conflict")?;
        mark.execute([row])?;
    }
    Ok(differs.then(|| new.conflict(Odds::Content)).or(new.tag.map(|_| new.conflict(Odds::Tag))))
}

/// Counts a return that was not there.
fn count_return(tx: &Transaction<'_>, job: i64, minion: i64, failed: bool) -> rusqlite::Result<()> {
    let mut count = tx.prepare_cached(
        "UPDATE jobs SET returned = returned + 1, failed = failed + ?3,
         missing = missing - EXISTS (SELECT 1 FROM expected WHERE job = ?1 AND minion = ?2)
         WHERE id = ?1",
    )?;
    count.execute(params![job, minion, failed]).map(drop)
}

/// Takes functions and user of a job from a return of it, if `lacks_name` finds the job.
fn name_by(
    tx: &Transaction<'_>,
    job: i64,
    new: &Return<'_>,
    load: &[u8],
    lacks_name: &str,
) -> rusqlite::Result<()> {
    if !tx.prepare_cached(lacks_name)?.exists([job])? {
        return Ok(());
    }
    functions::store(tx, job, functions_of(load))?;
    if new.is_of_runner {
        let mut update =
            tx.prepare_cached("UPDATE jobs SET user = coalesce(user, ?) WHERE id = ?")?;
        update.execute(params![msgpack::text(load, "user"), job])?;
    }
    Ok(())
}

fn stored_of_minion(
    tx: &Transaction<'_>,
    job: i64,
    minion: i64,
    load: &[u8],
    compared: Compared,
) -> rusqlite::Result<Option<Stored>> {
    let mut select = tx.prepare_cached(
        "SELECT rowid, trimmed, standing, outcome, load FROM returns WHERE job = ? AND minion = ?",
    )?;
    select
        .query_row(params![job, minion], |row| {
            stored(row, |known| standing::differ(known, load, compared))
        })
        .optional()
}

/// The return of the runner that this job is, under any name of its master. Salt hands it on with
/// another stamp than it fires, so its inside is compared.
fn stored_of_runner(
    tx: &Transaction<'_>,
    job: i64,
    load: &[u8],
    compared: Compared,
) -> rusqlite::Result<Option<Stored>> {
    let mut select = tx.prepare_cached(
        "SELECT rowid, trimmed, standing, outcome, load FROM returns WHERE job = ? AND runner",
    )?;
    select
        .query_row([job], |row| {
            stored(row, |known| standing::differ(inside(known), inside(load), compared))
        })
        .optional()
}

/// The runner's own words in the load in which Salt hands them on.
fn inside(load: &[u8]) -> &[u8] {
    msgpack::find(load, "return").unwrap_or(load)
}

fn stored(row: &Row<'_>, differs: impl FnOnce(&[u8]) -> bool) -> rusqlite::Result<Stored> {
    // A damaged value must not keep the others from being stored.
    let precedence = Precedence {
        trimmed: row.get(1).unwrap_or_default(),
        standing: Standing::of_number(row.get(2).unwrap_or_default()),
    };
    let outcome: Option<bool> = row.get(3).unwrap_or_default();
    let known = row.get_ref(4)?.as_blob_or_null().unwrap_or_default().unwrap_or_default();
    let (row, had_failed) = (row.get(0)?, outcome == Some(false));
    Ok(Stored { row, precedence, had_failed, differs: differs(known) })
}

/// Removes another row under the name that this row gets. Somebody has forged a minion's return
/// under the name of the master of a runner.
fn make_room(tx: &Transaction<'_>, job: i64, minion: i64, row: i64) -> rusqlite::Result<()> {
    let mut delete = tx.prepare_cached(
        "DELETE FROM returns WHERE job = ? AND minion = ? AND rowid <> ? RETURNING outcome",
    )?;
    let outcome = |row: &Row<'_>| Ok(row.get::<_, Option<bool>>(0).unwrap_or_default());
    let gone = delete.query_row(params![job, minion, row], outcome).optional()?;
    let Some(outcome) = gone else { return Ok(()) };
    let mut count = tx.prepare_cached(
        "UPDATE jobs SET returned = returned - 1, failed = failed - ? WHERE id = ?",
    )?;
    count.execute(params![outcome == Some(false), job]).map(drop)
}

/// Tells if the returns of a job are to be kept whole. Its publisher may have said `nocache`.
fn is_kept(tx: &Transaction<'_>, job: i64) -> rusqlite::Result<bool> {
    let mut select = tx.prepare_cached("SELECT load FROM jobs WHERE id = ?")?;
    select.query_row([job], |row| {
        // A damaged one must not keep returns from being stored.
        let load = row.get_ref(0)?.as_blob_or_null().unwrap_or_default();
        Ok(!says_nocache(load.unwrap_or_default()))
    })
}

/// Tells if a load has the option for which Salt's master calls `prep_jid(nocache=True)`.
fn says_nocache(load: &[u8]) -> bool {
    let says = |map| msgpack::find(map, "nocache").and_then(msgpack::scalar);
    let in_kwargs = || msgpack::find(load, "kwargs").and_then(says);
    says(load).or_else(in_kwargs) == Some(Item::Bool(true))
}

/// The load without its return: it still says that a minion has returned, and with which outcome.
fn without_return(load: &[u8]) -> Vec<u8> {
    msgpack::without(load, &["return"])
}

pub(super) fn micros(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::jobs::listing::JobSelection;

    #[derive(Debug, Clone)]
    enum Said {
        Published { job: usize, minions: BTreeSet<usize> },
        New { job: usize, minions: BTreeSet<usize> },
        Minions { job: usize, minions: BTreeSet<usize> },
        ReturnInPlaceOfLoad { job: usize, minion: usize },
        Returned { job: usize, minion: usize, retcode: u8, standing: Standing },
    }

    fn said() -> impl Strategy<Value = Said> {
        let (job, minion) = (0..3_usize, 0..4_usize);
        let minions = proptest::collection::btree_set(0..4_usize, 0..4);
        prop_oneof![
            (job.clone(), minions.clone())
                .prop_map(|(job, minions)| Said::Published { job, minions }),
            (job.clone(), minions.clone()).prop_map(|(job, minions)| Said::New { job, minions }),
            (job.clone(), minions).prop_map(|(job, minions)| Said::Minions { job, minions }),
            (job.clone(), minion.clone())
                .prop_map(|(job, minion)| Said::ReturnInPlaceOfLoad { job, minion }),
            (job, minion, 0..2_u8, 0..3_i64).prop_map(|(job, minion, retcode, standing)| {
                let standing = Standing::of_number(standing);
                Said::Returned { job, minion, retcode, standing }
            }),
        ]
    }

    /// The expected data of a job.
    #[derive(Default)]
    struct Model {
        load: Option<(Rank, Value)>,
        expected: BTreeSet<String>,
        returns: BTreeMap<String, Known>,
    }

    /// An expected return.
    struct Known {
        standing: Standing,
        retcode: u8,
        conflict: bool,
    }

    impl Model {
        fn returned(&mut self, minion: String, standing: Standing, retcode: u8) {
            let known = Known { standing, retcode, conflict: false };
            let known = self.returns.entry(minion).or_insert(known);
            known.conflict |= known.retcode != retcode;
            if standing > known.standing {
                (known.standing, known.retcode) = (standing, retcode);
            }
        }

        fn load(&mut self, rank: Rank, load: &Value) {
            let is_better = self
                .load
                .as_ref()
                .is_none_or(|(known, _)| rank > *known || rank == *known && rank != Rank::Return);
            if is_better {
                self.load = Some((rank, load.clone()));
            }
        }
    }

    fn jid(job: usize) -> String {
        format!("2026112123333{job}123456")
    }

    fn packed(value: &Value) -> Vec<u8> {
        rmp_serde::to_vec(value).unwrap()
    }

    fn say(jobs: &Jobs, model: &mut [Model; 3], number: usize, said: &Said) {
        let names = |minions: &BTreeSet<usize>| -> Vec<String> {
            minions.iter().map(|minion| format!("web-{minion}")).collect()
        };
        let event = |tag: String, data: &Value| {
            let event = Event::new(&tag, &packed(data));
            jobs.record([Entry::of(&event, Authority::Bus)].into_iter()).unwrap();
        };
        match said {
            Said::Published { job, minions } => {
                let load = json!({"cmd": "publish", "jid": jid(*job), "number": number});
                jobs.save_load(&jid(*job), &packed(&load), &names(minions)).unwrap();
                model[*job].load(Rank::Published, &load);
                model[*job].expected.extend(names(minions));
            }
            Said::New { job, minions } => {
                let load = json!({"jid": jid(*job), "number": number, "minions": names(minions)});
                event(format!("salt/job/{}/new", jid(*job)), &load);
                let known = model[*job].load.as_ref();
                if known.is_none_or(|(rank, _)| *rank != Rank::Published) {
                    model[*job].load(Rank::Event, &load);
                    model[*job].expected.extend(names(minions));
                }
            }
            Said::Minions { job, minions } => {
                jobs.save_minions(&jid(*job), &names(minions), Some("lower")).unwrap();
                model[*job].expected.extend(names(minions));
            }
            Said::ReturnInPlaceOfLoad { job, minion } => {
                let load = json!({"jid": jid(*job), "id": minion, "return": number});
                jobs.save_load(&jid(*job), &packed(&load), &[]).unwrap();
                model[*job].load(Rank::Return, &load);
            }
            Said::Returned { job, minion, retcode, standing } => {
                let name = format!("web-{minion}");
                let load = json!({"jid": jid(*job), "id": name, "return": 1, "retcode": retcode});
                match standing {
                    Standing::Contradicted => event(format!("salt/job/{}/ret/x", jid(*job)), &load),
                    Standing::Bus => event(format!("salt/job/{}/ret/{name}", jid(*job)), &load),
                    Standing::Master => {
                        jobs.save_return(&packed(&load), Authority::Master).unwrap();
                    }
                }
                model[*job].returned(name, *standing, *retcode);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn whatever_is_said_in_whatever_order_adds_up(
            all in proptest::collection::vec(said(), 0..24)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let jobs = Jobs::new(folder.path());
            jobs.keep(Some(Duration::from_secs(3600)));
            let mut models = <[Model; 3]>::default();
            for (number, said) in all.iter().enumerate() {
                say(&jobs, &mut models, number, said);
            }
            let page: Value =
                serde_json::from_slice(&jobs.page(&JobSelection::default()).unwrap()).unwrap();
            for (number, model) in models.iter().enumerate() {
                let Some(job) = jobs.job(&jid(number)).unwrap() else {
                    prop_assert!(model.load.is_none() && model.returns.is_empty());
                    prop_assert!(model.expected.is_empty());
                    continue;
                };
                let job: Value = serde_json::from_slice(&job).unwrap();
                let listed = page["jobs"].as_array().unwrap();
                prop_assert!(listed.iter().any(|listed| listed["jid"] == job["jid"]));
                let missing: Vec<_> =
                    model.expected.iter().filter(|m| !model.returns.contains_key(*m)).collect();
                let failed = model.returns.values().filter(|known| known.retcode != 0).count();
                prop_assert_eq!(&job["minions"], &json!(model.expected));
                prop_assert_eq!(&job["missing_minions"], &json!(missing));
                prop_assert_eq!(&job["expected"], &json!(model.expected.len()));
                prop_assert_eq!(&job["missing"], &json!(missing.len()));
                prop_assert_eq!(&job["returned"], &json!(model.returns.len()));
                prop_assert_eq!(&job["failed"], &json!(failed));
                for (minion, known) in &model.returns {
                    let ret = &job["returns"][minion];
                    prop_assert_eq!(&ret["retcode"], &json!(known.retcode));
                    prop_assert_eq!(&ret["vouched_by"], &json!(known.standing.name()));
                    prop_assert_eq!(&ret["conflict"], &json!(known.conflict));
                    let is_contradicted = known.standing == Standing::Contradicted;
                    prop_assert_eq!(ret["contradicting_tag"].is_string(), is_contradicted);
                }
                if let Some((_, load)) = &model.load {
                    prop_assert_eq!(&job["load"], load);
                }
            }
        }
    }

    fn cache() -> (tempfile::TempDir, Jobs) {
        let folder = tempfile::tempdir().unwrap();
        let jobs = Jobs::new(folder.path());
        jobs.keep(Some(Duration::from_secs(3600)));
        (folder, jobs)
    }

    fn shown(jobs: &Jobs) -> Value {
        serde_json::from_slice(&jobs.job(&jid(1)).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn conflicts_are_counted_and_repeats_are_none() {
        let (_folder, jobs) = cache();
        let load = |text: &str| {
            packed(&json!({"jid": jid(1), "id": "web-1", "return": text, "retcode": 0}))
        };
        let by_bus = |text: &str, tag: &str| {
            let event = Event::new(&format!("salt/job/{}/ret/{tag}", jid(1)), &load(text));
            jobs.record([Entry::of(&event, Authority::Bus)].into_iter()).unwrap();
        };
        by_bus("true", "web-1");
        by_bus("true", "web-1");
        jobs.save_return(&load("true"), Authority::Master).unwrap();
        by_bus("VALUE_TRIMMED", "web-1");
        assert_eq!(jobs.0.conflicts.counted(), (0, 0));
        by_bus("forged", "web-1");
        jobs.save_return(&load("forged"), Authority::Bus).unwrap();
        assert_eq!(jobs.0.conflicts.counted(), (2, 0));
        by_bus("true", "web-2");
        assert_eq!(jobs.0.conflicts.counted(), (2, 1));
        let ret = &shown(&jobs)["returns"]["web-1"];
        assert_eq!((&ret["return"], &ret["conflict"]), (&json!("true"), &json!(true)));
        // Salt never makes this.
        let event = Event::new(&format!("salt/job/{}/new", jid(1)), &packed(&json!({"jid": "2"})));
        jobs.record([Entry::of(&event, Authority::Bus)].into_iter()).unwrap();
        assert_eq!(jobs.0.conflicts.counted(), (2, 2));
        assert!(jobs.job("2").unwrap().is_none());
    }

    #[test]
    fn invariant_7_an_event_changes_nothing_of_what_was_published() {
        let (_folder, jobs) = cache();
        let event = |data: &Value| {
            let event = Event::new(&format!("salt/job/{}/new", jid(1)), &packed(data));
            jobs.record([Entry::of(&event, Authority::Bus)].into_iter()).unwrap();
        };
        let by_event = |fun: &str, minion: &str| {
            event(&json!({"jid": jid(1), "fun": fun, "minions": [minion]}));
        };
        by_event("test.ping", "web-1");
        by_event("test.ping", "web-1");
        event(&json!({"jid": jid(1), "fun": "forged", "nocache": true, "minions": ["web-2"]}));
        let job = shown(&jobs);
        assert_eq!((&job["function"], &job["expected"]), (&json!("test.ping"), &json!(2)));
        let published = json!({"jid": jid(1), "fun": "test.echo"});
        jobs.save_load(&jid(1), &packed(&published), &["web-2".to_owned()]).unwrap();
        by_event("forged", "web-3");
        let names = ["web-4".to_owned()];
        jobs.save_load_of_bus(&jid(1), &packed(&json!({"fun": "forged"})), &names).unwrap();
        let job = shown(&jobs);
        assert_eq!((&job["load"], &job["function"]), (&published, &json!("test.echo")));
        assert_eq!(job["minions"], json!(["web-1", "web-2"]));
        let load = json!({"jid": jid(1), "id": "web-1", "return": "kept"});
        jobs.save_return(&packed(&load), Authority::Bus).unwrap();
        assert_eq!(shown(&jobs)["returns"]["web-1"]["return"], "kept");
    }

    #[test]
    fn a_return_in_place_of_a_load_is_the_same_whoever_says_it() {
        let load = packed(&json!({"jid": jid(1), "id": "web-1", "nocache": true, "return": 1}));
        let shown = [Authority::Master, Authority::Bus].map(|authority| {
            let (_folder, jobs) = cache();
            match authority {
                Authority::Master => jobs.save_load(&jid(1), &load, &[]).unwrap(),
                Authority::Bus => jobs.save_load_of_bus(&jid(1), &load, &[]).unwrap(),
            }
            let job = shown(&jobs)["load"].clone();
            // An event is worth more.
            let new = packed(&json!({"jid": jid(1), "fun": "test.ping"}));
            let event = Event::new(&format!("salt/job/{}/new", jid(1)), &new);
            jobs.record([Entry::of(&event, Authority::Bus)].into_iter()).unwrap();
            (job, super::tests::shown(&jobs)["load"].clone())
        });
        let [of_master, of_bus] = shown;
        assert_eq!(of_master, of_bus);
        assert!(of_bus.0.get("return").is_none(), "{}", of_bus.0);
        assert_eq!(of_bus.1["fun"], "test.ping");
    }

    #[test]
    fn the_event_of_a_load_names_its_minions() {
        let load = packed(&json!({"fun": "test.ping", "minions": null}));
        let event = event_of_load("2026", &load, &["web-1".to_owned()]);
        assert_eq!(event.tag(), "salt/job/2026/new");
        assert_eq!(event.payload(), packed(&json!({"fun": "test.ping", "minions": ["web-1"]})));
    }

    #[test]
    fn a_return_that_was_trimmed_and_differs_from_the_whole_one_is_a_conflict() {
        let (_folder, jobs) = cache();
        let saved = |name: &str, text: &str| {
            let ret = json!({"name": name, "text": text});
            let load = json!({"jid": jid(1), "id": "web-1", "return": ret});
            jobs.save_return(&packed(&load), Authority::Bus).unwrap();
        };
        saved("a", "VALUE_TRIMMED");
        saved("a", "VALUE_TRIMMED");
        assert_eq!(jobs.0.conflicts.counted(), (0, 0));
        saved("b", "whole");
        assert_eq!(jobs.0.conflicts.counted(), (1, 0));
        let ret = &shown(&jobs)["returns"]["web-1"];
        assert_eq!((&ret["return"]["name"], &ret["conflict"]), (&json!("b"), &json!(true)));
        saved("c", "VALUE_TRIMMED");
        assert_eq!(jobs.0.conflicts.counted(), (2, 0));
    }

    fn of_runner(fun: &str, stamp: &str, success: bool) -> Value {
        json!({"fun": fun, "jid": jid(1), "user": "root", "fun_args": ["a"], "_stamp": stamp,
            "return": "x", "success": success})
    }

    /// The load of a runner's return as Salt hands it to a job cache.
    fn handed_on(data: &Value) -> Value {
        json!({"id": "true_master", "tgt": "true_master", "jid": jid(1), "return": data,
            "fun": data["fun"], "user": "root"})
    }

    fn fired(jobs: &Jobs, tag: &str, data: &Value) {
        let event = Event::new(&tag.replace("JID", &jid(1)), &packed(data));
        jobs.record([Entry::of(&event, Authority::Bus)].into_iter()).unwrap();
    }

    #[test]
    fn a_runner_is_a_job_of_the_master_whoever_tells_of_it_first() {
        for fun in ["runner.test.arg", "wheel.key.list_all"] {
            let base = if fun.starts_with("wheel.") { "wheel" } else { "run" };
            for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
                let (_folder, jobs) = cache();
                for step in order {
                    match step {
                        0 => {
                            let mut new = of_runner(fun, "then", true);
                            let new = new.as_object_mut().unwrap();
                            new.retain(|key, _| key != "return" && key != "success");
                            fired(&jobs, &format!("salt/{base}/JID/new"), &json!(new));
                        }
                        1 => {
                            let data = of_runner(fun, "fired", true);
                            fired(&jobs, &format!("salt/{base}/JID/ret"), &data);
                        }
                        _ => {
                            let load = packed(&handed_on(&of_runner(fun, "then", true)));
                            let minions = ["true_master".to_owned()];
                            jobs.save_load(&jid(1), &load, &minions).unwrap();
                            jobs.save_return_handed_on(&load, Authority::Master, "m").unwrap();
                        }
                    }
                    let job = shown(&jobs);
                    assert_eq!((&job["function"], &job["user"]), (&json!(fun), &json!("root")));
                    assert_eq!(job["arguments"], json!(["a"]), "{order:?}");
                    assert_eq!([&job["expected"], &job["missing"], &job["failed"]], [0, 0, 0]);
                    assert_eq!(job["minions"], json!([]));
                }
                assert_eq!(jobs.0.conflicts.counted(), (0, 0), "{order:?}");
                let job = shown(&jobs);
                assert_eq!(job["returned"], 1, "{order:?}");
                let ret = &job["returns"]["true_master"];
                let said = json!({"runner": ret["runner"], "outcome": ret["outcome"],
                    "return": ret["return"], "by": ret["vouched_by"]});
                let expected =
                    json!({"runner": true, "outcome": "worked", "return": "x", "by": "master"});
                assert_eq!(said, expected, "{order:?}");
            }
        }
    }

    #[test]
    fn the_bus_alone_makes_a_runner_a_job() {
        let (_folder, jobs) = cache();
        fired(&jobs, "salt/run/JID/args", &json!({"fun": "runner.a.b", "args": 1}));
        assert!(jobs.job(&jid(1)).unwrap().is_none());
        fired(&jobs, "salt/run/JID/ret", &of_runner("runner.a.b", "x", false));
        let job = shown(&jobs);
        let known = [&job["function"], &job["user"], &job["target"], &job["arguments"]];
        let expected = json!(["runner.a.b", "root", "m", ["a"]]);
        assert_eq!((json!(known), &job["failed"]), (expected, &json!(1)));
        assert_eq!(job["returns"]["m"]["outcome"], "failed");
    }

    #[test]
    fn invariant_7_the_bus_makes_no_runner_of_a_minions_job_and_no_minion_of_a_runner() {
        let (_folder, jobs) = cache();
        let published = json!({"jid": jid(1), "fun": "test.ping", "minions": ["web-1"]});
        fired(&jobs, "salt/job/JID/new", &published);
        fired(&jobs, "salt/run/JID/ret", &of_runner("runner.a.b", "x", false));
        fired(&jobs, "salt/run/JID/new", &of_runner("runner.a.b", "x", false));
        let forged = packed(&handed_on(&of_runner("runner.a.b", "x", false)));
        jobs.save_return_handed_on(&forged, Authority::Bus, "m").unwrap();
        let job = shown(&jobs);
        assert_eq!((&job["returned"], &job["function"]), (&json!(0), &json!("test.ping")));
        assert_eq!(jobs.0.conflicts.counted().0, 3);
        // A minion that returns like a runner, over the bus and over the master, stays a minion.
        let mut forged = handed_on(&of_runner("runner.a.b", "x", true));
        forged["id"] = json!("web-1");
        forged["tgt"] = json!("web-1");
        fired(&jobs, "salt/job/JID/ret/web-1", &forged);
        forged["cmd"] = json!("_return");
        jobs.save_return_handed_on(&packed(&forged), Authority::Master, "m").unwrap();
        let job = shown(&jobs);
        assert_eq!(job["returns"]["web-1"]["runner"], false, "{job}");
        assert_eq!((&job["returned"], &job["missing"]), (&json!(1), &json!(0)));
        // Nor does an event whose tag names another job.
        let event = Event::new(
            "salt/run/20200101000000000000/ret",
            &packed(&of_runner("runner.a.b", "x", true)),
        );
        jobs.record([Entry::of(&event, Authority::Bus)].into_iter()).unwrap();
        assert!(jobs.job("20200101000000000000").unwrap().is_none());
        assert_eq!(jobs.0.conflicts.counted().1, 1);
    }

    #[test]
    fn a_forged_minion_under_the_masters_name_gives_way_to_the_runner() {
        let (_folder, jobs) = cache();
        fired(&jobs, "salt/run/JID/ret", &of_runner("runner.a.b", "x", true));
        let forged = json!({"jid": jid(1), "id": "true_master", "fun": "a.b", "retcode": 1});
        fired(&jobs, "salt/job/JID/ret/true_master", &forged);
        assert_eq!(shown(&jobs)["returned"], 2);
        let load = packed(&handed_on(&of_runner("runner.a.b", "x", true)));
        jobs.save_return_handed_on(&load, Authority::Master, "m").unwrap();
        let job = shown(&jobs);
        assert_eq!([&job["returned"], &job["failed"], &job["missing"]], [1, 0, 0], "{job}");
        assert_eq!(job["returns"]["true_master"]["runner"], true);
    }

    #[test]
    fn a_job_of_several_functions_is_found_by_each() {
        let (_folder, jobs) = cache();
        let load = |fun: Value| json!({"jid": jid(1), "fun": fun, "tgt": "*", "user": "root"});
        let several = load(json!(["test.ping", "cmd.run"]));
        jobs.save_load(&jid(1), &packed(&several), &["web-1".to_owned()]).unwrap();
        let ret = json!({"jid": jid(1), "id": "web-1", "fun": ["test.ping", "cmd.run"],
            "retcode": {"test.ping": 0, "cmd.run": 1}, "success": [true, false],
            "return": {"test.ping": true, "cmd.run": "no"}});
        jobs.save_return(&packed(&ret), Authority::Master).unwrap();
        let listed = |selection: JobSelection| {
            let page: Value = serde_json::from_slice(&jobs.page(&selection).unwrap()).unwrap();
            page["jobs"].as_array().unwrap().len()
        };
        let by = |glob: &str| {
            listed(JobSelection { function: Some(glob.to_owned()), ..JobSelection::default() })
        };
        assert_eq!(["cmd.run", "test.*", "cmd.*", "*"].map(by), [1; 4]);
        assert_eq!(["test.*run", "test.ping,cmd.run", "state.*"].map(by), [0; 3]);
        let without = |glob: &str| {
            listed(JobSelection {
                not_function: vec!["x".to_owned(), glob.to_owned()],
                ..JobSelection::default()
            })
        };
        assert_eq!(["cmd.*", "state.*"].map(without), [0, 1]);
        let failed = Some(crate::jobs::listing::JobOutcome::Failed);
        assert_eq!(listed(JobSelection { outcome: failed, ..JobSelection::default() }), 1);
        let job = shown(&jobs);
        assert_eq!(job["function"], "test.ping,cmd.run");
        assert_eq!(job["functions"], json!(["test.ping", "cmd.run"]));
        let shown_ret = &job["returns"]["web-1"];
        assert_eq!(shown_ret["retcode"], ret["retcode"]);
        assert_eq!(
            (&shown_ret["success"], &shown_ret["outcome"]),
            (&ret["success"], &json!("failed"))
        );
        for fun in ["cmd.run", "test.ping"] {
            let mut map = rmpv::decode::read_value(&mut &jobs.get_fun(fun).unwrap()[..]).unwrap();
            assert!(map.as_map().is_some_and(|map| map.len() == 1), "{fun}");
            map = jobs
                .get_fun("test.ping,cmd.run")
                .map(|bytes| rmpv::decode::read_value(&mut &bytes[..]).unwrap())
                .unwrap();
            assert!(map.as_map().is_some_and(Vec::is_empty));
        }
        // Published once more, with one.
        jobs.save_load(&jid(1), &packed(&load(json!("state.apply"))), &[]).unwrap();
        assert_eq!(["cmd.run", "state.*"].map(by), [0, 1]);
        assert_eq!(shown(&jobs)["functions"], json!(["state.apply"]));
    }

    #[test]
    fn invariant_6_a_forged_list_of_functions_is_bounded() {
        let (folder, jobs) = cache();
        let names: Vec<_> = (0..100_000).map(|n| format!("a.f{n}")).collect();
        let forged = json!({"jid": jid(1), "fun": names, "minions": ["web-1"]});
        fired(&jobs, "salt/job/JID/new", &forged);
        assert_eq!(shown(&jobs)["functions"].as_array().unwrap().len(), 100);
        assert!(shown(&jobs)["function"].as_str().unwrap().len() < 1000);
        let forged = json!({"jid": jid(2), "id": "web-1", "fun": names, "return": 1});
        jobs.save_return(&packed(&forged), Authority::Bus).unwrap();
        let db = rusqlite::Connection::open(folder.path().join("job-cache.db")).unwrap();
        let rows: u32 =
            db.query_row("SELECT count(*) FROM functions", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 200);
    }

    #[test]
    fn what_is_no_jobs_id_makes_no_job() {
        let (folder, jobs) = cache();
        for id in ["nocache", "req", ""] {
            let load = packed(&json!({"jid": id, "id": "web-1", "fun": "test.ping", "return": 1}));
            jobs.save_return(&load, Authority::Master).unwrap();
            jobs.save_load(id, &load, &[]).unwrap();
            jobs.save_load_of_bus(id, &packed(&json!({"jid": id, "fun": "a.b"})), &[]).unwrap();
            jobs.save_minions(id, &["web-1".to_owned()], None).unwrap();
            jobs.update_endtime(id, "now").unwrap();
            for tag in [format!("salt/job/{id}/ret/web-1"), format!("salt/job/{id}/new")] {
                let event = Event::new(&tag, &load);
                jobs.record([Entry::of(&event, Authority::Bus)].into_iter()).unwrap();
            }
            assert!(jobs.job(id).unwrap().is_none(), "{id}");
        }
        // One that an older release has stored is forgotten.
        jobs.save_load(&jid(1), &packed(&json!({"fun": "a.b"})), &["web-1".to_owned()]).unwrap();
        let ret = packed(&json!({"jid": jid(1), "id": "web-1", "return": 1}));
        jobs.save_return(&ret, Authority::Master).unwrap();
        drop(jobs);
        let db = rusqlite::Connection::open(folder.path().join("job-cache.db")).unwrap();
        db.execute_batch("UPDATE jobs SET jid = 'nocache'; PRAGMA user_version = 2;").unwrap();
        let jobs = Jobs::new(folder.path());
        jobs.keep(Some(Duration::from_secs(3600)));
        assert!(jobs.job("nocache").unwrap().is_none());
        let left = ["jobs", "returns", "expected"].map(|table| {
            let sql = format!("SELECT count(*) FROM {table}");
            db.query_row(&sql, [], |row| row.get::<_, u32>(0)).unwrap()
        });
        assert_eq!(left, [0; 3]);
    }

    #[test]
    fn what_an_older_release_has_stored_is_judged_once_more() {
        let (folder, jobs) = cache();
        let states = |result: bool| json!({"test_|-a_|-a_|-nop": {"result": result}});
        let ret = |job: usize, more: Value| {
            let mut load = json!({"jid": jid(job), "id": "web-1", "fun": "state.apply",
                "retcode": 0, "success": true});
            load.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            jobs.save_return(&packed(&load), Authority::Master).unwrap();
        };
        ret(0, json!({"return": states(false)}));
        ret(2, json!({"fun": ["a.b", "test.ping"], "retcode": [0, 1], "return": [1, 1]}));
        jobs.save_return(
            &packed(&handed_on(&of_runner("runner.a.b", "x", false))),
            Authority::Master,
        )
        .unwrap();
        drop(jobs);
        // The database of the release before: scheduled states whose `success` said that they had
        // worked.
        let db = rusqlite::Connection::open(folder.path().join("job-cache.db")).unwrap();
        db.execute_batch(
            "UPDATE returns SET outcome = 1; UPDATE jobs SET failed = 0;
             UPDATE jobs SET fun = NULL WHERE functions > 0;
             DROP INDEX returns_unjudged; ALTER TABLE returns DROP COLUMN test;
             ALTER TABLE returns DROP COLUMN runner; DROP INDEX jobs_started; DROP INDEX jobs_undated;
             ALTER TABLE jobs DROP COLUMN began; ALTER TABLE jobs DROP COLUMN functions;
             DROP TABLE functions; PRAGMA user_version = 2;",
        )
        .unwrap();
        drop(db);
        let jobs = Jobs::new(folder.path());
        jobs.keep(Some(Duration::from_secs(3600)));
        let of = |job: usize| -> Value {
            serde_json::from_slice(&jobs.job(&jid(job)).unwrap().unwrap()).unwrap()
        };
        // Readers do not wait for the rest.
        for job in 0..3 {
            assert_eq!(of(job)["started"], of(job)["first_seen"]);
        }
        let page: Value =
            serde_json::from_slice(&jobs.page(&JobSelection::default()).unwrap()).unwrap();
        assert_eq!(page["jobs"].as_array().unwrap().len(), 3);
        while jobs.catch_up_some().unwrap() {}
        while jobs.judge_some().unwrap() {}
        for (job, name) in [(0, "web-1"), (1, "true_master"), (2, "web-1")] {
            let found = of(job);
            assert_eq!(found["failed"], 1, "{found}");
            assert_eq!(found["returns"][name]["outcome"], "failed", "{found}");
            assert_eq!(found["returns"][name]["runner"], job == 1, "{found}");
            assert_eq!(found["started"], format!("2026-11-21T23:33:3{job}.123456Z"));
        }
        assert_eq!(of(2)["functions"], json!(["a.b", "test.ping"]));
        assert!(!jobs.judge_some().unwrap());
    }

    #[test]
    fn a_failure_is_judged_no_better_by_what_is_left_of_its_load() {
        let (folder, jobs) = cache();
        let ret = json!({"jid": jid(1), "id": "web-1", "fun": "state.apply", "retcode": 0,
            "success": true, "return": "**redacted**"});
        jobs.save_return(&packed(&ret), Authority::Master).unwrap();
        let db = rusqlite::Connection::open(folder.path().join("job-cache.db")).unwrap();
        db.execute_batch("UPDATE returns SET outcome = 0, test = NULL; UPDATE jobs SET failed = 1")
            .unwrap();
        while jobs.judge_some().unwrap() {}
        assert_eq!(shown(&jobs)["failed"], 1);
        assert_eq!(shown(&jobs)["returns"]["web-1"]["outcome"], "failed");
    }

    #[test]
    fn a_file_of_the_release_before_is_read_and_written() {
        let (folder, jobs) = cache();
        let load = |text: &str| packed(&json!({"jid": jid(1), "id": "web-1", "return": text}));
        jobs.save_return(&load("old"), Authority::Bus).unwrap();
        drop(jobs);
        let db = rusqlite::Connection::open(folder.path().join("job-cache.db")).unwrap();
        db.execute_batch(
            "ALTER TABLE returns DROP COLUMN standing; ALTER TABLE returns DROP COLUMN conflict;
             ALTER TABLE returns DROP COLUMN tag; PRAGMA user_version = 1;",
        )
        .unwrap();
        drop(db);
        for reads_first in [true, false] {
            let jobs = Jobs::new(folder.path());
            jobs.keep(Some(Duration::from_secs(3600)));
            if reads_first {
                let ret = &shown(&jobs)["returns"]["web-1"];
                assert_eq!((&ret["return"], &ret["vouched_by"]), (&json!("old"), &json!("bus")));
                // An older release that ran meanwhile.
                let db = rusqlite::Connection::open(folder.path().join("job-cache.db")).unwrap();
                db.pragma_update(None, "user_version", 1).unwrap();
                continue;
            }
            jobs.save_return(&load("forged"), Authority::Bus).unwrap();
            assert_eq!(shown(&jobs)["returns"]["web-1"]["return"], "old");
            jobs.save_return(&load("true"), Authority::Master).unwrap();
            assert_eq!(shown(&jobs)["returns"]["web-1"]["return"], "true");
        }
    }
}
