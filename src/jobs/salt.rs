//! Answers from our job cache to the questions that Salt asks one.
//!
//! Answers that can be long are written as the database gives their parts. At most one row of the
//! database is there beside them.

use rusqlite::{Connection, OptionalExtension, Rows, params};

use super::answer::FIND_JOB;
use super::damage::Damage;
use super::record::Rank;
use super::spool::Spooled;
use super::store::{Answer, Job, Question};
use super::{Jobs, JobsError};

/// A job whose load is not known is described by a return of it, as Salt's master does it. The
/// loads themselves are not sorted, which would copy all of them.
pub(super) const LOAD: &str = "coalesce(jobs.load, (SELECT load FROM returns WHERE rowid = \
     (SELECT min(rowid) FROM returns WHERE job = jobs.id)))";

/// The same for Salt, to whose job cache nobody announces a runner before it has returned.
const SALTS_LOAD: &str = "coalesce(iif(jobs.rank = 0, NULL, jobs.load), (SELECT load FROM returns \
     WHERE rowid = (SELECT min(rowid) FROM returns WHERE job = jobs.id)))";

impl Jobs {
    /// An answer to be written, of which `memory` bytes may be in memory.
    pub(crate) fn answer_to(&self, question: Question, memory: usize) -> Answer {
        Answer::new(question, self.spool(memory))
    }

    /// Answers from the jobs stored here; blocks as long as that takes. `None` if nothing is known
    /// and the question has no empty answer.
    pub fn ask_now(&self, question: Question, memory: usize) -> Result<Option<Spooled>, JobsError> {
        let nothing = question.nothing();
        Ok(self.known(question, memory)?.or(nothing))
    }

    /// The same, and `None` whenever nothing is known.
    pub(crate) fn known(
        &self,
        question: Question,
        memory: usize,
    ) -> Result<Option<Spooled>, JobsError> {
        let answer = self.fill(self.answer_to(question, memory))?;
        answer.finished().map_err(|cause| self.unkept(cause))
    }

    fn fill(&self, mut answer: Answer) -> Result<Answer, JobsError> {
        let doing = match answer.question() {
            Question::GetLoad { .. } => "look up a load",
            Question::GetJid { .. } => "look up returns",
            Question::GetFun { .. } => "look up a function",
            Question::GetJids | Question::GetJidsFilter { .. } => "list jobs",
            Question::GetMinions => "list minions",
            Question::GetEndtime { .. } => "look up an end time",
        };
        self.read(doing, |db, damage| match answer.question().clone() {
            Question::GetLoad { jid } => load(db, damage, &jid, &mut answer),
            Question::GetJid { jid } => returns_of_job(db, damage, &jid, &mut answer),
            Question::GetFun { fun } => returns_of_function(db, damage, &fun, &mut answer),
            Question::GetJids => all_jobs(db, damage, &mut answer),
            Question::GetJidsFilter { count, filter_find_job } => {
                last_jobs(db, damage, count, filter_find_job, &mut answer)
            }
            Question::GetMinions => minions(db, damage, &mut answer),
            Question::GetEndtime { jid } => end_time(db, damage, &jid, &mut answer),
        })?;
        Ok(answer)
    }
}

fn load(db: &Connection, damage: &Damage, jid: &str, answer: &mut Answer) -> rusqlite::Result<()> {
    let sql = format!("SELECT id, rank, {SALTS_LOAD} FROM jobs WHERE jid = ?");
    let mut select = db.prepare_cached(&sql)?;
    let mut rows = select.query([jid])?;
    let Some(row) = rows.next()? else { return Ok(()) };
    let Some(load) = damage.load(row, 2) else { return Ok(()) };
    let minions = expected(db, row.get(0)?, damage)?;
    let is_event = damage.number(row, 1) == Rank::Event as i64;
    answer.job(&Job { jid, load: load.bytes(), is_event, minions: &minions, end_time: None });
    Ok(())
}

fn returns_of_job(
    db: &Connection,
    damage: &Damage,
    jid: &str,
    answer: &mut Answer,
) -> rusqlite::Result<()> {
    let mut select = db.prepare_cached(
        "SELECT minions.name, returns.rowid FROM jobs
         JOIN returns ON returns.job = jobs.id JOIN minions ON minions.id = returns.minion
         WHERE jobs.jid = ? ORDER BY minions.name",
    )?;
    returns(db, damage, select.query([jid])?, answer)
}

fn returns_of_function(
    db: &Connection,
    damage: &Damage,
    fun: &str,
    answer: &mut Answer,
) -> rusqlite::Result<()> {
    // Beside a single max() the other columns are those of its row.
    let mut select = db.prepare_cached(
        "SELECT minions.name, returns.rowid, max(coalesce(jobs.began, jobs.first_seen))
         FROM jobs
         JOIN returns ON returns.job = jobs.id JOIN minions ON minions.id = returns.minion
         WHERE jobs.fun = ?1 AND jobs.functions = 0 OR jobs.functions > 0 AND jobs.id IN (
             SELECT job FROM functions WHERE fun = ?1)
         GROUP BY minions.name",
    )?;
    returns(db, damage, select.query([fun])?, answer)
}

/// Adds what these rows name, each a minion and the row of a return. The loads are fetched one by
/// one, because SQLite copies the rows that it sorts, into files if they are many.
fn returns(
    db: &Connection,
    damage: &Damage,
    mut rows: Rows<'_>,
    answer: &mut Answer,
) -> rusqlite::Result<()> {
    let mut select = db.prepare_cached("SELECT load FROM returns WHERE rowid = ?")?;
    while answer.goes_on()
        && let Some(row) = rows.next()?
    {
        let mut found = select.query([row.get::<_, i64>(1)?])?;
        let Some(found) = found.next()? else { continue };
        if let (Some(minion), Some(load)) = (damage.text(row, 0), damage.load(found, 0)) {
            answer.returned(minion, load.bytes());
        }
    }
    Ok(())
}

fn all_jobs(db: &Connection, damage: &Damage, answer: &mut Answer) -> rusqlite::Result<()> {
    let sql = format!(
        "SELECT jid, {SALTS_LOAD}, end_time FROM jobs ORDER BY coalesce(began, first_seen), jid"
    );
    let mut select = db.prepare_cached(&sql)?;
    let mut rows = select.query([])?;
    while answer.goes_on()
        && let Some(row) = rows.next()?
    {
        let Some(load) = damage.load(row, 1) else { continue };
        let Some(jid) = damage.text(row, 0) else { continue };
        let end_time = damage.text(row, 2);
        answer.job(&Job { jid, load: load.bytes(), is_event: false, minions: &[], end_time });
    }
    Ok(())
}

fn last_jobs(
    db: &Connection,
    damage: &Damage,
    count: u64,
    filter_find_job: bool,
    answer: &mut Answer,
) -> rusqlite::Result<()> {
    // The last are chosen by their ids alone, and then read in order.
    let mut select = db.prepare_cached(
        "SELECT jid, id FROM (
             SELECT jid, id, coalesce(began, first_seen) AS started FROM jobs
             WHERE (load NOT NULL AND rank > 0
                    OR EXISTS (SELECT 1 FROM returns WHERE job = jobs.id))
                 AND (NOT ?2 OR fun IS NOT ?3)
             ORDER BY coalesce(began, first_seen) DESC, jid DESC LIMIT ?1
         ) ORDER BY started, jid",
    )?;
    let mut load_of = db.prepare_cached(&format!("SELECT {SALTS_LOAD} FROM jobs WHERE id = ?"))?;
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let mut rows = select.query(params![count, filter_find_job, FIND_JOB])?;
    while answer.goes_on()
        && let Some(row) = rows.next()?
    {
        let mut found = load_of.query([row.get::<_, i64>(1)?])?;
        let Some(found) = found.next()? else { continue };
        let Some(load) = damage.load(found, 0) else { continue };
        let Some(jid) = damage.text(row, 0) else { continue };
        answer.job(&Job { jid, load: load.bytes(), is_event: false, minions: &[], end_time: None });
    }
    Ok(())
}

fn minions(db: &Connection, damage: &Damage, answer: &mut Answer) -> rusqlite::Result<()> {
    let mut select = db.prepare_cached(
        "SELECT name FROM minions
         WHERE EXISTS (SELECT 1 FROM returns WHERE minion = minions.id AND NOT runner)
         ORDER BY name",
    )?;
    let mut rows = select.query([])?;
    while answer.goes_on()
        && let Some(row) = rows.next()?
    {
        if let Some(minion) = damage.text(row, 0) {
            answer.text(minion);
        }
    }
    Ok(())
}

fn end_time(
    db: &Connection,
    damage: &Damage,
    jid: &str,
    answer: &mut Answer,
) -> rusqlite::Result<()> {
    let mut select = db.prepare_cached("SELECT end_time FROM jobs WHERE jid = ?")?;
    let time = select.query_row([jid], |row| Ok(damage.text(row, 0).map(str::to_owned)));
    if let Some(time) = time.optional()?.flatten() {
        answer.text(&time);
    }
    Ok(())
}

/// The names of the minions that a job was meant for, sorted.
fn expected(db: &Connection, job: i64, damage: &Damage) -> rusqlite::Result<Vec<String>> {
    let mut select = db.prepare_cached(
        "SELECT minions.name FROM expected JOIN minions ON minions.id = expected.minion
         WHERE expected.job = ? ORDER BY minions.name",
    )?;
    let mut rows = select.query([job])?;
    let mut names = Vec::new();
    while let Some(row) = rows.next()? {
        names.extend(damage.text(row, 0).map(str::to_owned));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::codec::json as json_of;
    use crate::event::batch::Entry;
    use crate::event::redact::{Redaction, RuleConfig, Rules};
    use crate::event::{Authority, Event};
    use crate::jobs::listing::JobSelection;
    use crate::yaml::Node;

    fn jobs() -> (tempfile::TempDir, Jobs) {
        let folder = tempfile::tempdir().unwrap();
        let jobs = Jobs::new(folder.path());
        jobs.keep(Some(Duration::from_secs(3600)));
        (folder, jobs)
    }

    /// The answers as they are, whether they were short or long.
    impl Jobs {
        fn asked(&self, question: Question) -> Result<Option<Vec<u8>>, JobsError> {
            Ok(self.ask_now(question, 64)?.map(|spooled| spooled.into_memory().unwrap()))
        }

        fn whole(&self, question: Question) -> Result<Vec<u8>, JobsError> {
            Ok(self.asked(question)?.unwrap())
        }

        pub(in crate::jobs) fn get_load(&self, jid: &str) -> Result<Option<Vec<u8>>, JobsError> {
            self.asked(Question::GetLoad { jid: jid.to_owned() })
        }

        pub(in crate::jobs) fn get_jid(&self, jid: &str) -> Result<Vec<u8>, JobsError> {
            self.whole(Question::GetJid { jid: jid.to_owned() })
        }

        pub(in crate::jobs) fn get_fun(&self, fun: &str) -> Result<Vec<u8>, JobsError> {
            self.whole(Question::GetFun { fun: fun.to_owned() })
        }

        pub(in crate::jobs) fn get_jids(&self) -> Result<Vec<u8>, JobsError> {
            self.whole(Question::GetJids)
        }

        pub(in crate::jobs) fn get_minions(&self) -> Result<Vec<u8>, JobsError> {
            self.whole(Question::GetMinions)
        }

        pub(in crate::jobs) fn get_jids_filter(
            &self,
            count: u64,
            filter_find_job: bool,
        ) -> Result<Vec<u8>, JobsError> {
            self.whole(Question::GetJidsFilter { count, filter_find_job })
        }

        fn get_endtime(&self, jid: &str) -> Result<Option<String>, JobsError> {
            let time = self.asked(Question::GetEndtime { jid: jid.to_owned() })?;
            Ok(time.map(|time| read(&time).as_str().unwrap().to_owned()))
        }
    }

    fn packed(value: &Value) -> Vec<u8> {
        rmp_serde::to_vec(value).unwrap()
    }

    fn read(payload: &[u8]) -> Value {
        let mut text = Vec::new();
        assert_eq!(json_of::write(payload, &mut text), json_of::JsonLosses::default());
        serde_json::from_slice(&text).unwrap()
    }

    const JID: &str = "20261121233336123456";

    fn published() -> Value {
        json!({
            "cmd": "publish", "fun": "test.echo", "arg": ["x"], "tgt": "web-*", "tgt_type": "glob",
            "jid": JID, "user": "ops", "ret": "", "kwargs": {"metadata": {"why": "a test"}},
        })
    }

    fn returned(minion: &str) -> Value {
        json!({
            "cmd": "_return", "id": minion, "jid": JID, "fun": "test.echo", "fun_args": ["x"],
            "return": "x", "retcode": 0, "success": true, "out": "nested",
        })
    }

    fn bus(jobs: &Jobs, tag: &str, data: &Value) {
        let event = Event::new(tag, &packed(data));
        jobs.record([Entry::of(&event, Authority::Bus)].into_iter()).unwrap();
    }

    #[test]
    fn what_redaction_replaces_as_a_whole_is_stored_as_an_outline() {
        let mut problems = Vec::new();
        let rules = [RuleConfig { pattern: Some("y".to_owned()), ..RuleConfig::default() }];
        let root = Node::parse("redact: []").unwrap();
        let rules = Arc::new(Rules::new(&rules, &root, &mut problems));
        assert!(problems.is_empty());
        let (_folder, jobs) = jobs();
        jobs.redact(Redaction::new(&rules, ""));
        let long = |mut load: Value, key: &str| {
            // Each letter would become twelve.
            load[key] = json!("y".repeat(1 << 20));
            load
        };
        let load = packed(&long(published(), "arg"));
        jobs.save_load(JID, &load, &["web-1".to_owned()]).unwrap();
        jobs.save_return(&packed(&long(returned("web-1"), "return")), Authority::Master).unwrap();
        let load = jobs.get_load(JID).unwrap().unwrap();
        let load = read(&load);
        assert_eq!((&load["jid"], &load["fun"]), (&json!(JID), &json!("test.echo")));
        assert_eq!(load.get("arg"), None);
        let returns = read(&jobs.get_jid(JID).unwrap());
        assert_eq!(returns["web-1"]["return"], "**redacted**", "{returns}");
        assert_eq!(returns["web-1"]["retcode"], 0, "{returns}");
        assert_eq!(returns["web-1"]["success"], true, "{returns}");
        // A name that is too long by itself leaves no answer.
        let load = packed(&long(published(), "fun"));
        jobs.save_load("20261121233336123457", &load, &[]).unwrap();
        assert!(jobs.get_load("20261121233336123457").unwrap().is_some());
        assert_eq!(jobs.0.damage.values(), 0);
    }

    #[test]
    fn nothing_was_ever_stored() {
        let (_folder, jobs) = jobs();
        assert_eq!(jobs.get_load(JID).unwrap(), None);
        assert_eq!(read(&jobs.get_jid(JID).unwrap()), json!({}));
        assert_eq!(read(&jobs.get_fun("test.echo").unwrap()), json!({}));
        assert_eq!(read(&jobs.get_jids().unwrap()), json!({}));
        assert_eq!(read(&jobs.get_jids_filter(10, true).unwrap()), json!([]));
        assert_eq!(read(&jobs.get_minions().unwrap()), json!([]));
        assert_eq!(jobs.get_endtime(JID).unwrap(), None);
        jobs.keep(None);
        assert!(matches!(jobs.get_load(JID), Err(JobsError::Off)));
        assert!(matches!(jobs.save_minions(JID, &[], None), Err(JobsError::Off)));
    }

    #[test]
    fn a_job_is_told_as_local_cache_tells_it() {
        let (_folder, jobs) = jobs();
        let minions = ["web-2".to_owned(), "web-1".to_owned()];
        jobs.save_load(JID, &packed(&published()), &minions).unwrap();
        for minion in ["web-2", "web-1"] {
            // Salt's master stores the load once more with each return.
            jobs.save_load(JID, &packed(&returned(minion)), &[]).unwrap();
            jobs.save_return(&packed(&returned(minion)), Authority::Master).unwrap();
        }
        jobs.save_minions(JID, &["db-1".to_owned()], Some("lower")).unwrap();
        jobs.update_endtime(JID, "2026, Nov 21 23:33:40.000001").unwrap();

        let mut load = published();
        load["Minions"] = json!(["db-1", "web-1", "web-2"]);
        assert_eq!(read(&jobs.get_load(JID).unwrap().unwrap()), load);
        let kept = json!({"return": "x", "retcode": 0, "success": true, "out": "nested"});
        assert_eq!(read(&jobs.get_jid(JID).unwrap()), json!({"web-1": kept, "web-2": kept}));
        let mut listed = json!({
            "Function": "test.echo", "Arguments": ["x"], "Target": "web-*", "Target-type": "glob",
            "User": "ops", "Metadata": {"why": "a test"},
            "StartTime": "2026, Nov 21 23:33:36.123456",
            "EndTime": "2026, Nov 21 23:33:40.000001",
        });
        assert_eq!(read(&jobs.get_jids().unwrap()), json!({JID: listed}));
        listed.as_object_mut().unwrap().remove("EndTime");
        listed["JID"] = json!(JID);
        assert_eq!(read(&jobs.get_jids_filter(5, true).unwrap()), json!([listed]));
        assert_eq!(
            read(&jobs.get_fun("test.echo").unwrap()),
            json!({"web-1": returned("web-1"), "web-2": returned("web-2")})
        );
        assert_eq!(read(&jobs.get_minions().unwrap()), json!(["web-1", "web-2"]));
        let end_time = jobs.get_endtime(JID).unwrap();
        assert_eq!(end_time.as_deref(), Some("2026, Nov 21 23:33:40.000001"));
    }

    #[test]
    fn what_a_job_without_cache_returns_is_not_kept() {
        let (folder, jobs) = jobs();
        let mut secret = published();
        secret["kwargs"] = json!({"nocache": true});
        jobs.save_load(JID, &packed(&secret), &["web-1".to_owned()]).unwrap();
        let mut ret = returned("web-1");
        ret["return"] = json!("hunter2");
        ret["retcode"] = json!(3);
        ret["success"] = json!(false);
        bus(&jobs, &format!("salt/job/{JID}/ret/web-1"), &ret);
        jobs.save_load(JID, &packed(&ret), &[]).unwrap();
        jobs.save_return(&packed(&ret), Authority::Master).unwrap();
        assert_eq!(read(&jobs.get_jid(JID).unwrap()), json!({}));
        assert_eq!(read(&jobs.get_fun("test.echo").unwrap()), json!({}));
        assert_eq!(read(&jobs.get_load(JID).unwrap().unwrap())["kwargs"], json!({"nocache": true}));
        // The minions that returned and their outcomes are no secret.
        let job: Value = serde_json::from_slice(&jobs.job(JID).unwrap().unwrap()).unwrap();
        assert_eq!([&job["missing"], &job["returned"], &job["failed"]], [0, 1, 1]);
        assert_eq!(job["returns"]["web-1"]["retcode"], 3);
        // A minion that returns by itself says it in the return.
        let mut alone = returned("web-2");
        alone["jid"] = json!("20261121233337123456");
        alone["nocache"] = json!(true);
        alone["return"] = json!("hunter2");
        jobs.save_load("20261121233337123456", &packed(&alone), &[]).unwrap();
        jobs.save_return(&packed(&alone), Authority::Master).unwrap();
        assert_eq!(read(&jobs.get_jid("20261121233337123456").unwrap()), json!({}));
        drop(jobs);
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(memchr::memmem::find(&bytes, b"hunter2").is_none());
        }
    }

    #[test]
    fn what_was_published_wins_whenever_it_comes() {
        let (_folder, jobs) = jobs();
        let load = || read(&jobs.get_load(JID).unwrap().unwrap());
        jobs.save_return(&packed(&returned("web-1")), Authority::Master).unwrap();
        assert_eq!(load(), returned("web-1"));
        jobs.save_load(JID, &packed(&returned("web-2")), &[]).unwrap();
        assert_eq!(load(), returned("web-2"));
        let new = json!({
            "jid": JID, "fun": "test.echo", "arg": ["x"], "tgt": "web-*", "tgt_type": "glob",
            "user": "ops", "minions": ["web-1", "web-3"], "missing": [], "_stamp": "2026-11-21",
        });
        bus(&jobs, &format!("salt/job/{JID}/new"), &new);
        let described = json!({
            "jid": JID, "fun": "test.echo", "arg": ["x"], "tgt": "web-*", "tgt_type": "glob",
            "user": "ops", "Minions": ["web-1", "web-3"],
        });
        assert_eq!(load(), described);
        jobs.save_load(JID, &packed(&published()), &["web-1".to_owned()]).unwrap();
        let mut whole = published();
        whole["Minions"] = json!(["web-1", "web-3"]);
        assert_eq!(load(), whole);
        bus(&jobs, &format!("salt/job/{JID}/new"), &new);
        jobs.save_load(JID, &packed(&returned("web-1")), &[]).unwrap();
        assert_eq!(load(), whole);
    }

    #[test]
    fn the_first_return_stays_unless_the_master_had_trimmed_it() {
        let (_folder, jobs) = jobs();
        let mut trimmed = returned("web-1");
        trimmed["return"] = json!("VALUE_TRIMMED");
        let tag = format!("salt/job/{JID}/ret/web-1");
        let kept = || read(&jobs.get_jid(JID).unwrap())["web-1"]["return"].clone();
        bus(&jobs, &tag, &trimmed);
        assert_eq!(kept(), json!("VALUE_TRIMMED"));
        jobs.save_return(&packed(&returned("web-1")), Authority::Master).unwrap();
        assert_eq!(kept(), json!("x"));
        bus(&jobs, &tag, &trimmed);
        let mut other = returned("web-1");
        other["return"] = json!("y");
        jobs.save_return(&packed(&other), Authority::Master).unwrap();
        assert_eq!(kept(), json!("x"));
    }

    #[test]
    fn a_runner_is_told_as_local_cache_tells_it() {
        let data = json!({"fun": "runner.test.arg", "jid": JID, "user": "root",
            "fun_args": ["a"], "_stamp": "then", "return": {"args": ["a"]}, "success": true});
        let load = json!({"id": "m", "tgt": "m", "jid": JID, "return": data,
            "fun": "runner.test.arg", "user": "root"});
        for is_of_bus in [true, false] {
            let (_folder, jobs) = jobs();
            if is_of_bus {
                let mut new = data.clone();
                new.as_object_mut().unwrap().retain(|key, _| key != "return" && key != "success");
                bus(&jobs, &format!("salt/run/{JID}/new"), &new);
                // `local_cache` knows nothing of it yet.
                assert_eq!(jobs.get_load(JID).unwrap(), None);
                assert_eq!(read(&jobs.get_jids().unwrap()), json!({}));
                assert_eq!(read(&jobs.get_jids_filter(9, true).unwrap()), json!([]));
                bus(&jobs, &format!("salt/run/{JID}/ret"), &data);
            } else {
                jobs.save_load(JID, &packed(&load), &[]).unwrap();
                jobs.save_return_handed_on(&packed(&load), Authority::Master, "m").unwrap();
            }
            assert_eq!(read(&jobs.get_load(JID).unwrap().unwrap()), load);
            assert_eq!(read(&jobs.get_jid(JID).unwrap()), json!({"m": {"return": data}}));
            let listed = json!({
                "Function": "runner.test.arg", "Arguments": [], "Target": "m",
                "Target-type": "list", "User": "root",
                "StartTime": "2026, Nov 21 23:33:36.123456",
            });
            assert_eq!(read(&jobs.get_jids().unwrap()), json!({JID: listed}));
            assert_eq!(read(&jobs.get_minions().unwrap()), json!([]));
            let found = read(&jobs.get_fun("runner.test.arg").unwrap());
            assert_eq!(found["m"]["return"], data);
        }
    }

    #[test]
    fn lists_can_do_without_find_job() {
        let (_folder, jobs) = jobs();
        for (second, fun) in [(1, "test.ping"), (2, FIND_JOB), (3, "state.apply"), (4, FIND_JOB)] {
            let jid = format!("202611212333{second:02}123456");
            let load = json!({"fun": fun, "jid": jid, "tgt": "*"});
            jobs.save_load(&jid, &packed(&load), &[]).unwrap();
        }
        let functions = |count, filter| {
            let list = read(&jobs.get_jids_filter(count, filter).unwrap());
            let list = list.as_array().unwrap().iter();
            list.map(|job| job["Function"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(functions(10, true), ["test.ping", "state.apply"]);
        assert_eq!(functions(1, true), ["state.apply"]);
        assert_eq!(functions(2, false), ["state.apply", FIND_JOB]);
        assert_eq!(functions(0, false), [""; 0]);
    }

    #[test]
    fn invariant_7_an_event_that_is_not_whole_is_not_taken_and_is_counted() {
        let (_folder, jobs) = jobs();
        let load = packed(&returned("web-1"));
        let tag = format!("salt/job/{JID}/ret/web-1");
        let tail = [&load[..], b"\xc0"].concat();
        for payload in [&load[..load.len() - 1], &tail, b"\xc0"] {
            for tag in [&tag, &format!("salt/job/{JID}/new"), "some/thing/else"] {
                let event = Event::new(tag, payload);
                jobs.record([Entry::of(&event, Authority::Bus)].into_iter()).unwrap();
            }
        }
        assert_eq!(jobs.0.damage.events(), 6);
        assert_eq!(read(&jobs.get_jids().unwrap()), json!({}));
        assert!(matches!(jobs.save_return(&tail, Authority::Master), Err(JobsError::NotALoad(_))));
        assert!(matches!(jobs.save_load(JID, &tail, &[]), Err(JobsError::NotALoad(_))));
    }

    #[test]
    fn invariant_7_what_lies_damaged_in_the_file_is_left_out_of_answers_and_counted() {
        let (folder, jobs) = jobs();
        let other = "20261121233337123456";
        for jid in [JID, other] {
            jobs.save_load(jid, &packed(&published()), &["web-1".to_owned()]).unwrap();
            for minion in ["web-1", "web-2"] {
                let load = json!({"jid": jid, "id": minion, "fun": "test.echo", "return": "x"});
                jobs.save_return(&packed(&load), Authority::Master).unwrap();
            }
        }
        let db = Connection::open(folder.path().join("job-cache.db")).unwrap();
        let damage = |sql: &str| db.execute_batch(sql).unwrap();
        let of_job = format!("job = (SELECT id FROM jobs WHERE jid = '{JID}')");
        // A tail, a cut, another type; the damage is to one job and one minion.
        for load in ["load || x'c0'", "substr(load, 1, length(load) - 1)", "'text'", "17", "x''"] {
            let before = jobs.0.damage.values();
            damage(&format!(
                "UPDATE returns SET load = {load} WHERE {of_job}
                 AND minion = (SELECT id FROM minions WHERE name = 'web-2')"
            ));
            let returns = read(&jobs.get_jid(JID).unwrap());
            assert_eq!(returns, json!({"web-1": {"return": "x"}}), "{load}");
            let job: Value = serde_json::from_slice(&jobs.job(JID).unwrap().unwrap()).unwrap();
            assert_eq!(job["returns"]["web-1"]["return"], "x");
            assert_eq!(job["returns"]["web-2"]["return"], Value::Null);
            assert_eq!(jobs.0.damage.values(), before + 2, "{load}");
            damage(&format!("UPDATE jobs SET load = {load} WHERE jid = '{JID}'"));
            assert_eq!(jobs.get_load(JID).unwrap(), None);
            let all = read(&jobs.get_jids().unwrap());
            assert_eq!(all.as_object().unwrap().keys().collect::<Vec<_>>(), [other]);
            assert_eq!(read(&jobs.get_jids_filter(9, false).unwrap()).as_array().unwrap().len(), 1);
            let page = jobs.page(&JobSelection::default()).unwrap();
            let page: Value = serde_json::from_slice(&page).unwrap();
            assert_eq!(page["jobs"][1]["jid"], JID);
            assert_eq!(page["jobs"][1]["target"], Value::Null);
            // A whole load replaces a damaged one, and another minion can return.
            jobs.save_load(JID, &packed(&published()), &[]).unwrap();
            assert!(jobs.get_load(JID).unwrap().is_some());
            let load = json!({"jid": JID, "id": "web-3", "return": 3});
            jobs.save_return(&packed(&load), Authority::Master).unwrap();
            damage(&format!(
                "DELETE FROM returns WHERE {of_job}
                 AND minion = (SELECT id FROM minions WHERE name = 'web-3')"
            ));
        }
        // The return of the later job is whole.
        let last = read(&jobs.get_fun("test.echo").unwrap());
        assert_eq!(last["web-2"]["jid"], other);
        // Names and ids that are no text.
        damage("UPDATE minions SET name = x'ff' WHERE name = 'web-2'");
        assert_eq!(read(&jobs.get_minions().unwrap()), json!(["web-1"]));
        damage(&format!("UPDATE jobs SET jid = CAST(x'ff' AS TEXT) WHERE jid = '{other}'"));
        let jids = read(&jobs.get_jids().unwrap());
        assert_eq!(jids.as_object().unwrap().keys().collect::<Vec<_>>(), [JID]);
        jobs.page(&JobSelection::default()).unwrap();
    }

    #[test]
    fn a_damaged_file_is_put_aside() {
        let (folder, jobs) = jobs();
        std::fs::write(
            folder.path().join("job-cache.db"),
            "not a database at all, but long enough",
        )
        .unwrap();
        jobs.save_load(JID, &packed(&published()), &[]).unwrap();
        assert!(jobs.get_load(JID).unwrap().is_some());
        let names = std::fs::read_dir(folder.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| name.starts_with("job-cache.db.damaged-")).count(), 1);
    }
}
