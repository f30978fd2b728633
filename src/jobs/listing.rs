//! Jobs for people and scripts: pages of them by filter, and one of them whole, as JSON.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Rows, Statement, params};
use serde::Serialize;

use super::asker::{Asker, Waiting};
use super::began::time_in;
use super::damage::Damage;
use super::load::Load;
use super::salt::LOAD;
use super::spool::{Spool, Spooled};
use super::{Jobs, JobsError, functions};
use crate::codec::{json, msgpack};
use crate::event::job_return::{JobReturn, Outcome};
use crate::event::standing::Standing;

/// Jobs on a page unless asked otherwise, and at the most.
pub(crate) const PAGE: (u32, u32) = (50, 1000);

/// A selection of jobs. A job has to match everything that is given.
#[derive(Debug, Clone, Default)]
pub struct JobSelection {
    /// A glob of the function: `state.*`. One function of a job of several has to match.
    pub function: Option<String>,
    /// Globs of functions that are left out: `runner.*`.
    pub not_function: Vec<String>,
    /// A minion that the job was meant for, or that returned.
    pub minion: Option<String>,
    /// The user who published it.
    pub user: Option<String>,
    /// The outcome.
    pub outcome: Option<JobOutcome>,
    /// Begun then or later.
    pub since: Option<Timestamp>,
    /// Begun before.
    pub until: Option<Timestamp>,
    /// List jobs that only ask for other jobs (`saltutil.find_job`) too.
    pub find_job: bool,
    /// At most so many; [`PAGE`] if it is not said.
    pub limit: Option<u32>,
    /// Only jobs before the one of this id, which was the last of another page.
    pub cursor: Option<String>,
}

/// The outcome of a job as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum JobOutcome {
    /// Every minion expected has returned, and none said that it failed.
    Ok,
    /// A minion said that it failed.
    Failed,
    /// A minion expected has not returned.
    Missing,
}

impl JobOutcome {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            JobOutcome::Ok => "ok",
            JobOutcome::Failed => "failed",
            JobOutcome::Missing => "missing",
        }
    }

    /// The outcome of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [JobOutcome::Ok, JobOutcome::Failed, JobOutcome::Missing]
            .into_iter()
            .find(|o| o.name() == name)
    }

    fn number(self) -> i64 {
        match self {
            JobOutcome::Ok => 0,
            JobOutcome::Failed => 1,
            JobOutcome::Missing => 2,
        }
    }
}

/// A job without its returns.
#[derive(Serialize)]
struct Summary {
    jid: String,
    /// The functions, with commas between them if there are several.
    function: Option<String>,
    functions: Vec<String>,
    user: Option<String>,
    /// The time in its id, or when it was first seen.
    started: String,
    first_seen: String,
    last_seen: String,
    /// The time that Salt gave (`job_cache_store_endtime`).
    end_time: Option<String>,
    expected: i64,
    returned: i64,
    failed: i64,
    missing: i64,
}

const COLUMNS: &str = "jid, fun, user, first_seen, last_seen, end_time, expected, returned, \
     failed, missing, coalesce(began, first_seen), functions, id";

/// The column behind these.
const BEHIND: usize = 13;

impl Summary {
    /// `None` for a row whose id is damaged.
    fn of(db: &Connection, row: &Row<'_>, damage: &Damage) -> rusqlite::Result<Option<Self>> {
        let text = |column| damage.text(row, column).map(str::to_owned);
        let Some(jid) = text(0) else { return Ok(None) };
        let function = text(1);
        let functions = match damage.number(row, 11) {
            0 => function.iter().cloned().collect(),
            _ => functions::listed(db, row.get(12)?, damage)?,
        };
        Ok(Some(Summary {
            jid,
            function,
            functions,
            user: text(2),
            started: timestamp(damage.number(row, 10)),
            first_seen: timestamp(damage.number(row, 3)),
            last_seen: timestamp(damage.number(row, 4)),
            end_time: text(5),
            expected: damage.number(row, 6),
            returned: damage.number(row, 7),
            failed: damage.number(row, 8),
            missing: damage.number(row, 9),
        }))
    }

    /// Its members without braces, and some of its load.
    fn write(&self, load: Option<Load<'_>>, out: &mut Pieces) {
        let text = serde_json::to_vec(self).unwrap_or_default();
        let inside = text.strip_prefix(b"{").and_then(|text| text.strip_suffix(b"}"));
        out.plain(inside.unwrap_or_default());
        let find = |key| load.and_then(|load| msgpack::find(load.bytes(), key));
        for (name, value) in [
            ("arguments", find("arg").or_else(|| load.and_then(|load| fun_args(load.bytes())))),
            ("target", find("tgt")),
            ("target_type", find("tgt_type")),
        ] {
            out.plain(format!(",\"{name}\":").as_bytes());
            out.json(value);
        }
    }
}

/// The arguments as a return names them, which may describe a job in place of its load.
fn fun_args(load: &[u8]) -> Option<&[u8]> {
    let in_runner = || msgpack::find(JobReturn::of(load).runner_within()?, "fun_args");
    msgpack::find(load, "fun_args").or_else(in_runner)
}

/// An answer that goes to its spool piece by piece while it is written.
pub(super) struct Pieces {
    buffer: Vec<u8>,
    spool: Spool,
}

/// The bytes from which on a piece is handed on.
const PIECE: usize = 64 << 10;

impl Pieces {
    pub(super) fn new(spool: Spool) -> Self {
        Pieces { buffer: Vec::new(), spool }
    }

    /// True while writing on is of use.
    fn is_wanted(&self) -> bool {
        self.spool.is_sound()
    }

    pub(super) fn plain(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.hand_on();
        }
    }

    /// The JSON of a value. Values that JSON cannot hold are replaced, as in every other answer.
    pub(super) fn json(&mut self, value: Option<&[u8]>) {
        let Some(value) = value.filter(|_| self.is_wanted()) else { return self.plain(b"null") };
        let Pieces { buffer, spool } = self;
        json::write_in_pieces(value, buffer, &mut |piece| spool.push(piece));
        self.plain(b"");
    }

    pub(super) fn text(&mut self, text: Option<&str>) {
        let Some(text) = text else { return self.plain(b"null") };
        json::write_string(text.as_bytes(), &mut self.buffer);
        self.plain(b"");
    }

    fn hand_on(&mut self) {
        self.spool.push(&self.buffer);
        self.buffer.clear();
    }

    pub(super) fn finished(mut self) -> std::io::Result<Spooled> {
        self.hand_on();
        self.spool.value()
    }
}

impl Jobs {
    /// A page of jobs, the last begun first: `{"jobs": [...], "next": CURSOR}`, where `next` is
    /// null on the last page. `memory` says how many bytes of it may be in memory. The search ends
    /// when nobody is `waiting` any more.
    pub(crate) fn answer_page(
        &self,
        selection: &JobSelection,
        memory: usize,
        waiting: &Waiting,
    ) -> Result<Spooled, JobsError> {
        let mut out = Pieces::new(self.listing_spool(memory));
        let page = self
            .read_while(waiting, "list jobs", |db, damage| page(db, damage, selection, &mut out))?;
        match page {
            Some(true) => {}
            Some(false) => return Err(JobsError::Malformed(CURSOR_IS_GONE)),
            None => out.plain(b"{\"jobs\":[],\"next\":null}"),
        }
        out.finished().map_err(|cause| self.unkept(cause))
    }

    /// The same as [`Jobs::answer_page`], in memory.
    pub fn page(&self, selection: &JobSelection) -> Result<Vec<u8>, JobsError> {
        let asker = Asker::default();
        let page = self.answer_page(selection, usize::MAX, &asker.waiting())?;
        page.into_memory().map_err(|cause| self.unkept(cause))
    }

    /// A job with its load, the minions that it was meant for, the missing ones, and the returns;
    /// `None` if there is no such job. The rest is as with [`Jobs::answer_page`].
    pub(crate) fn answer_job(
        &self,
        jid: &str,
        memory: usize,
        waiting: &Waiting,
    ) -> Result<Option<Spooled>, JobsError> {
        let mut out = Pieces::new(self.listing_spool(memory));
        let found =
            self.read_while(waiting, "look up a job", |db, damage| job(db, damage, jid, &mut out))?;
        if !found.unwrap_or(false) {
            return Ok(None);
        }
        out.finished().map(Some).map_err(|cause| self.unkept(cause))
    }

    /// The same as [`Jobs::answer_job`], in memory.
    pub(crate) fn job(&self, jid: &str) -> Result<Option<Vec<u8>>, JobsError> {
        let asker = Asker::default();
        let Some(job) = self.answer_job(jid, usize::MAX, &asker.waiting())? else {
            return Ok(None);
        };
        job.into_memory().map(Some).map_err(|cause| self.unkept(cause))
    }
}

/// The reason why there is no page.
const CURSOR_IS_GONE: &str =
    "the job of the `cursor` is not known any more; begin with the first page again";

/// The jobs that a [`JobSelection`] takes, with its values as parameters.
const SELECTED: &str = "FROM jobs
     WHERE (?1 IS NULL OR iif(functions = 0, fun GLOB ?1, EXISTS (
             SELECT 1 FROM functions AS f WHERE f.job = jobs.id AND f.fun GLOB ?1)))
       AND (?2 IS NULL OR EXISTS (SELECT 1 FROM minions AS m WHERE m.name = ?2 AND (
             EXISTS (SELECT 1 FROM returns AS r
                     WHERE r.job = jobs.id AND r.minion = m.id AND NOT r.runner)
             OR EXISTS (SELECT 1 FROM expected AS e WHERE e.job = jobs.id AND e.minion = m.id))))
       AND (?3 IS NULL OR user = ?3)
       AND (?4 IS NULL OR CASE ?4 WHEN 0 THEN failed = 0 AND missing = 0 AND returned > 0
                                  WHEN 1 THEN failed > 0 ELSE missing > 0 END)
       AND (?5 IS NULL OR coalesce(began, first_seen) >= ?5) AND (?6 IS NULL OR coalesce(began, first_seen) < ?6)
       AND (?7 OR fun IS NOT 'saltutil.find_job')
       AND (?8 IS NULL OR (coalesce(began, first_seen), jid) < (?8, ?9))
       AND (?11 IS NULL OR NOT EXISTS (SELECT 1 FROM json_each(?11) AS g WHERE
             iif(functions = 0, fun GLOB g.value, EXISTS (
                 SELECT 1 FROM functions AS f WHERE f.job = jobs.id AND f.fun GLOB g.value))))
     ORDER BY coalesce(began, first_seen) DESC, jid DESC LIMIT ?10";

impl JobSelection {
    fn limit(&self) -> u32 {
        self.limit.unwrap_or(PAGE.0).clamp(1, PAGE.1)
    }

    /// Asks for these jobs behind one that began `behind`, and for one more, to know whether there
    /// is another page.
    fn rows<'s>(
        &self,
        select: &'s mut Statement<'_>,
        behind: Option<i64>,
    ) -> rusqlite::Result<Rows<'s>> {
        let not_function = (!self.not_function.is_empty())
            .then(|| serde_json::to_string(&self.not_function).unwrap_or_default());
        select.query(params![
            self.function,
            self.minion,
            self.user,
            self.outcome.map(JobOutcome::number),
            self.since.map(Timestamp::as_microsecond),
            self.until.map(Timestamp::as_microsecond),
            self.find_job,
            behind,
            self.cursor,
            i64::from(self.limit()) + 1,
            not_function,
        ])
    }
}

/// The time at which the job of a cursor began. One that was forgotten meanwhile began at the time
/// in its id. It is not known if the id tells no time, or one to come.
fn began_of(db: &Connection, jid: &str) -> rusqlite::Result<Option<i64>> {
    let mut select =
        db.prepare_cached("SELECT coalesce(began, first_seen) FROM jobs WHERE jid = ?")?;
    let known = select.query_row([jid], |row| row.get(0)).optional()?;
    let past = || time_in(jid).filter(|time| *time <= Timestamp::now());
    Ok(known.or_else(|| past().map(Timestamp::as_microsecond)))
}

/// Writes a page; `false` if it is not known where it begins.
fn page(
    db: &Connection,
    damage: &Damage,
    selection: &JobSelection,
    out: &mut Pieces,
) -> rusqlite::Result<bool> {
    let behind = match &selection.cursor {
        Some(cursor) => match began_of(db, cursor)? {
            None => return Ok(false),
            began => began,
        },
        None => None,
    };
    let mut select = db.prepare_cached(&format!("SELECT {COLUMNS}, {LOAD} {SELECTED}"))?;
    let mut rows = selection.rows(&mut select, behind)?;
    out.plain(b"{\"jobs\":[");
    let mut last: Option<String> = None;
    let mut has_more = false;
    for place in 0.. {
        let Some(row) = rows.next()?.filter(|_| out.is_wanted()) else { break };
        if place == selection.limit() {
            has_more = true;
            break;
        }
        let Some(summary) = Summary::of(db, row, damage)? else { continue };
        out.plain(if last.is_none() { b"{" } else { b",{" });
        summary.write(damage.load(row, BEHIND), out);
        out.plain(b"}");
        last = Some(summary.jid);
    }
    out.plain(b"],\"next\":");
    out.text(last.filter(|_| has_more).as_deref());
    out.plain(b"}");
    Ok(true)
}

/// Writes a job, if there is one.
fn job(db: &Connection, damage: &Damage, jid: &str, out: &mut Pieces) -> rusqlite::Result<bool> {
    let mut select =
        db.prepare_cached(&format!("SELECT {COLUMNS}, {LOAD} FROM jobs WHERE jid = ?"))?;
    let mut rows = select.query([jid])?;
    let Some(row) = rows.next()? else { return Ok(false) };
    let Some(summary) = Summary::of(db, row, damage)? else { return Ok(false) };
    let (load, id) = (damage.load(row, BEHIND), row.get::<_, i64>(12)?);
    out.plain(b"{");
    summary.write(load, out);
    out.plain(b",\"load\":");
    out.json(load.map(Load::bytes));
    // The row holds its load until it is given back.
    drop(rows);
    for (name, condition) in [
        ("minions", ""),
        (
            "missing_minions",
            "AND NOT EXISTS (SELECT 1 FROM returns AS r WHERE r.job = e.job AND r.minion = e.minion)",
        ),
    ] {
        let mut names = db.prepare_cached(&format!(
            "SELECT m.name FROM expected AS e JOIN minions AS m ON m.id = e.minion
             WHERE e.job = ? {condition} ORDER BY m.name"
        ))?;
        let mut rows = names.query([id])?;
        out.plain(format!(",\"{name}\":[").as_bytes());
        let mut is_first = true;
        while let Some(row) = rows.next()?.filter(|_| out.is_wanted()) {
            let Some(name) = damage.text(row, 0) else { continue };
            out.plain(if std::mem::take(&mut is_first) { b"" } else { b"," });
            out.text(Some(name));
        }
        out.plain(b"]");
    }
    out.plain(b",\"returns\":{");
    // Sorted without the loads, which would all be held together.
    let mut returns = db.prepare_cached(
        "SELECT m.name, r.rowid FROM returns AS r
         JOIN minions AS m ON m.id = r.minion WHERE r.job = ? ORDER BY m.name",
    )?;
    let mut one = db.prepare_cached(
        "SELECT received, outcome, load, standing, conflict, tag, runner, test FROM returns
         WHERE rowid = ?",
    )?;
    let mut rows = returns.query([id])?;
    let mut is_first = true;
    while let Some(row) = rows.next()?.filter(|_| out.is_wanted()) {
        let Some(minion) = damage.text(row, 0) else { continue };
        let mut found = one.query([row.get::<_, i64>(1)?])?;
        let Some(ret) = found.next()? else { continue };
        out.plain(if std::mem::take(&mut is_first) { b"" } else { b"," });
        out.text(Some(minion));
        let ok: Option<bool> = ret.get(1).unwrap_or_default();
        let is_of_runner = ret.get(6).unwrap_or_default();
        let is_test: Option<bool> = ret.get(7).unwrap_or_default();
        let head = serde_json::json!({
            "received": timestamp(damage.number(ret, 0)),
            "outcome": Outcome::of_worked(ok),
            "test": is_test.unwrap_or_default(),
            "ok": ok,
            "runner": is_of_runner,
            "vouched_by": Standing::of_number(damage.number(ret, 3)).name(),
            "conflict": damage.number(ret, 4) != 0,
            "contradicting_tag": damage.text(ret, 5),
        });
        out.plain(b":");
        out.plain(head.to_string().trim_end_matches('}').as_bytes());
        // The minion has returned, even if the data of its return is damaged.
        let load = damage.load(ret, 2).map(Load::bytes);
        let within = load.and_then(|load| JobReturn::of(load).runner_within());
        let said = within.filter(|_| is_of_runner).or(load);
        for key in ["retcode", "success", "return"] {
            out.plain(format!(",\"{key}\":").as_bytes());
            out.json(said.and_then(|said| msgpack::find(said, key)));
        }
        out.plain(b"}");
    }
    out.plain(b"}}");
    Ok(true)
}

fn timestamp(micros: i64) -> String {
    Timestamp::from_microsecond(micros).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::event::Authority;

    fn packed(value: &Value) -> Vec<u8> {
        rmp_serde::to_vec(value).unwrap()
    }

    /// Job `n` was published at second `n`, for `web-1` and `web-2`.
    fn jid(n: u32) -> String {
        format!("202611212333{n:02}123456")
    }

    fn filled() -> (tempfile::TempDir, Jobs) {
        let folder = tempfile::tempdir().unwrap();
        let jobs = Jobs::new(folder.path());
        jobs.keep(Some(Duration::from_secs(3600)));
        let minions = ["web-1".to_owned(), "web-2".to_owned()];
        let publish = |n: u32, fun: &str, user: &str| {
            let load = json!({"fun": fun, "jid": jid(n), "tgt": "web-*", "tgt_type": "glob",
                "arg": [n], "user": user});
            jobs.save_load(&jid(n), &packed(&load), &minions).unwrap();
        };
        let give = |n: u32, minion: &str, retcode: u32| {
            let load = json!({"jid": jid(n), "id": minion, "return": n, "retcode": retcode});
            jobs.save_return(&packed(&load), Authority::Master).unwrap();
        };
        publish(1, "test.ping", "root");
        give(1, "web-1", 0);
        give(1, "web-2", 0);
        publish(2, "state.apply", "ops");
        give(2, "web-1", 2);
        give(2, "web-1", 0);
        publish(3, "saltutil.find_job", "root");
        // A return before the load, and one that nobody expected.
        give(4, "web-2", 0);
        give(4, "db-1", 0);
        publish(4, "state.sls", "root");
        (folder, jobs)
    }

    fn listed(jobs: &Jobs, selection: &JobSelection) -> (Vec<String>, Option<String>) {
        let page: Value = serde_json::from_slice(&jobs.page(selection).unwrap()).unwrap();
        let jids = page["jobs"].as_array().unwrap().iter();
        let jids = jids.map(|job| job["jid"].as_str().unwrap().to_owned()).collect();
        (jids, page["next"].as_str().map(str::to_owned))
    }

    #[test]
    fn filters() {
        let (_folder, jobs) = filled();
        let all = JobSelection::default;
        let text = |text: &str| Some(text.to_owned());
        let time = |text: &str| Some(text.parse().unwrap());
        for (selection, expected) in [
            (all(), vec![4, 2, 1]),
            (JobSelection { find_job: true, ..all() }, vec![4, 3, 2, 1]),
            (JobSelection { function: text("state.*"), ..all() }, vec![4, 2]),
            (JobSelection { minion: text("web-2"), ..all() }, vec![4, 2, 1]),
            (JobSelection { minion: text("db-1"), ..all() }, vec![4]),
            (JobSelection { minion: text("db-2"), ..all() }, vec![]),
            (JobSelection { user: text("ops"), ..all() }, vec![2]),
            (JobSelection { outcome: Some(JobOutcome::Ok), ..all() }, vec![1]),
            (JobSelection { outcome: Some(JobOutcome::Failed), ..all() }, vec![2]),
            (JobSelection { outcome: Some(JobOutcome::Missing), ..all() }, vec![4, 2]),
            (JobSelection { since: time("2026-11-21T23:33:02.123456Z"), ..all() }, vec![4, 2]),
            (JobSelection { until: time("2026-11-21T23:33:02.123456Z"), ..all() }, vec![1]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(jid).collect();
            assert_eq!(listed(&jobs, &selection), (expected, None), "{selection:?}");
        }
    }

    #[test]
    fn pages_follow_each_other() {
        let (_folder, jobs) = filled();
        let mut selection = JobSelection { limit: Some(2), ..JobSelection::default() };
        let (first, next) = listed(&jobs, &selection);
        assert_eq!(first, [jid(4), jid(2)]);
        selection.cursor = next;
        assert_eq!(listed(&jobs, &selection), (vec![jid(1)], None));
    }

    #[test]
    fn ids_that_tell_no_time_or_one_to_come_are_listed_when_they_were_seen() {
        let folder = tempfile::tempdir().unwrap();
        let jobs = Jobs::new(folder.path());
        jobs.keep(Some(Duration::from_secs(3600)));
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        let tell = |jid: &str, time: &str| {
            let data = packed(&json!({"jid": jid, "fun": "test.ping", "minions": []}));
            let event = crate::event::Event::new(&format!("salt/job/{jid}/new"), &data);
            let received = u64::try_from(at(time).as_microsecond()).unwrap();
            let entry = crate::event::batch::Entry::of(&event, Authority::Bus);
            jobs.record([crate::event::batch::Entry { received, ..entry }].into_iter()).unwrap();
        };
        tell("20261121100000000000", "2026-11-21T10:00:00Z");
        for deploy in ["deploy-1", "deploy-2", "deploy-3"] {
            tell(deploy, "2026-11-21T11:00:00Z");
        }
        tell("20361121100000000000", "2026-11-21T12:00:00Z");
        tell("20261121130000000000", "2026-11-21T13:00:00Z");
        let sorted = [
            "20261121130000000000",
            "20361121100000000000",
            "deploy-3",
            "deploy-2",
            "deploy-1",
            "20261121100000000000",
        ];
        assert_eq!(listed(&jobs, &JobSelection::default()).0, sorted);
        // Pages, with ties between them.
        for limit in 1..=6 {
            let mut selection = JobSelection { limit: Some(limit), ..JobSelection::default() };
            let mut found = Vec::new();
            loop {
                let (jids, next) = listed(&jobs, &selection);
                found.extend(jids);
                selection.cursor = next;
                if selection.cursor.is_none() {
                    break;
                }
            }
            assert_eq!(found, sorted, "{limit} a page");
        }
        let since =
            JobSelection { since: Some(at("2026-11-21T12:30:00Z")), ..JobSelection::default() };
        assert_eq!(listed(&jobs, &since).0, sorted[..1]);
        let until =
            JobSelection { until: Some(at("2026-11-21T11:00:00Z")), ..JobSelection::default() };
        assert_eq!(listed(&jobs, &until).0, sorted[5..]);
        let last = jobs.get_jids_filter(2, true).unwrap();
        let last = rmpv::decode::read_value(&mut &last[..]).unwrap();
        let last = last.as_array().unwrap().iter();
        let last: Vec<_> = last.map(|job| job["JID"].as_str().unwrap().to_owned()).collect();
        assert_eq!(last, [sorted[1], sorted[0]]);
        // A page can begin at a forgotten job, if its id tells a time.
        let gone = |cursor: &str| {
            let cursor = Some(cursor.to_owned());
            jobs.page(&JobSelection { cursor, ..JobSelection::default() })
        };
        assert!(gone("20261121120000000000").is_ok());
        for jid in ["deploy-9", "99981231235959000000"] {
            assert!(matches!(gone(jid), Err(JobsError::Malformed(_))), "{jid}");
        }
    }

    #[test]
    fn an_answer_that_is_not_read_yet_holds_no_transaction() {
        let (folder, jobs) = filled();
        let asker = Asker::default();
        let page = jobs.answer_page(&JobSelection::default(), 16, &asker.waiting()).unwrap();
        let job = jobs.answer_job(&jid(2), 16, &asker.waiting()).unwrap().unwrap();
        assert!(matches!((&page, &job), (Spooled::File(_), Spooled::File(_))));
        let db = Connection::open(folder.path().join("job-cache.db")).unwrap();
        let is_busy: bool =
            db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
        assert!(!is_busy, "the log can be reset");
        assert_eq!(page.into_memory().unwrap(), jobs.page(&JobSelection::default()).unwrap());
        assert_eq!(job.into_memory().unwrap(), jobs.job(&jid(2)).unwrap().unwrap());
    }

    #[test]
    fn nothing_is_looked_for_once_who_asked_is_gone() {
        let (_folder, jobs) = filled();
        for number in 0..2000 {
            let id = format!("20261121{number:012}");
            let load = json!({"fun": "test.ping", "jid": id});
            jobs.save_load(&id, &packed(&load), &[]).unwrap();
        }
        let none = JobSelection { function: Some("no.such".to_owned()), ..JobSelection::default() };
        let asker = Asker::default();
        let waiting = asker.waiting();
        assert!(jobs.answer_page(&none, 16, &waiting).is_ok());
        drop(asker);
        let error = jobs.answer_page(&none, 16, &waiting).unwrap_err();
        assert!(crate::error::chain(&error).contains("interrupted"), "{error:?}");
        assert!(jobs.page(&none).is_ok(), "the next who asks is answered");
    }

    #[test]
    fn a_job_is_shown_whole() {
        let (_folder, jobs) = filled();
        let mut job: Value = serde_json::from_slice(&jobs.job(&jid(2)).unwrap().unwrap()).unwrap();
        for time in ["first_seen", "last_seen"] {
            let text = job.as_object_mut().unwrap().remove(time).unwrap();
            text.as_str().unwrap().parse::<Timestamp>().unwrap();
        }
        let received = job["returns"]["web-1"].as_object_mut().unwrap().remove("received");
        received.unwrap().as_str().unwrap().parse::<Timestamp>().unwrap();
        let load = json!({"fun": "state.apply", "jid": jid(2), "tgt": "web-*", "tgt_type": "glob",
            "arg": [2], "user": "ops"});
        let expected = json!({
            "jid": jid(2), "function": "state.apply", "functions": ["state.apply"], "user": "ops",
            "started": "2026-11-21T23:33:02.123456Z", "end_time": null,
            "expected": 2, "returned": 1, "failed": 1, "missing": 1,
            "arguments": [2], "target": "web-*", "target_type": "glob", "load": load,
            "minions": ["web-1", "web-2"], "missing_minions": ["web-2"],
            "returns": {"web-1": {"outcome": "failed", "test": false, "ok": false,
                "runner": false, "retcode": 2, "success": null, "return": 2,
                "vouched_by": "master", "conflict": true, "contradicting_tag": null}},
        });
        assert_eq!(job, expected);
        assert!(jobs.job(&jid(9)).unwrap().is_none());
    }
}
