//! Forgetting jobs older than `keep_jobs`, a little at a time.
//!
//! A step is one short transaction, so that an event waits no longer for it than for another batch.
//! SQLite uses the space again but does not give it back: the file stays as large as it was at its
//! fullest.

use std::time::{Duration, Instant};

use rusqlite::{OptionalExtension, Transaction, params};
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::record::micros;
use super::{Jobs, JobsError, functions};
use crate::error::chain;
use crate::observe::state;
use crate::sync::blocking;

/// The interval at which to look for old jobs.
const LOOK: Duration = Duration::from_secs(60);

/// Rows that go in one step.
const STEP: u32 = 500;

/// The pause between two steps, in which others write.
const PAUSE: Duration = Duration::from_millis(20);

/// The time for Salt's own cleaning; it is called once a minute, and the daemon cleans too.
const SALTS_TURN: Duration = Duration::from_millis(500);

/// Forgets old jobs until `stop` is cancelled.
pub(crate) async fn run(jobs: Jobs, stop: CancellationToken) {
    let mut ticks = interval(LOOK);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        // Rows of an older release are judged before they are forgotten, step by step as well.
        for step in [Jobs::catch_up_some, Jobs::judge_some, Jobs::forget_some] {
            loop {
                match blocking(|| step(&jobs)) {
                    Ok(true) if !stop.is_cancelled() => sleep(PAUSE).await,
                    Ok(_) | Err(JobsError::Off) => break,
                    Err(error) => {
                        warn!(
                            error = chain(&error),
                            "old jobs in the job cache cannot be judged again or deleted; trying \
                             again later"
                        );
                        break;
                    }
                }
            }
        }
    }
}

impl Jobs {
    /// Salt's `clean_old_jobs`: forgets old jobs for half a second at the most.
    pub(crate) fn clean_old_jobs(&self) -> Result<(), JobsError> {
        let began = Instant::now();
        while self.forget_some()? && began.elapsed() < SALTS_TURN {}
        Ok(())
    }

    /// Forgets some of the old jobs; `true` if there may be more.
    pub fn forget_some(&self) -> Result<bool, JobsError> {
        let Some(keep) = self.kept_for() else { return Err(JobsError::Off) };
        let keep = u64::try_from(keep.as_micros()).unwrap_or(u64::MAX);
        let before = state::now().saturating_sub(keep);
        self.step("forget old jobs", |tx| forget(tx, before))
    }

    /// Does a step of work on the stored jobs; `true` if there may be more.
    pub(super) fn step(
        &self,
        doing: &'static str,
        step: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<bool>,
    ) -> Result<bool, JobsError> {
        if !self.has_file() {
            return Ok(false);
        }
        self.write(doing, step)
    }
}

fn forget(tx: &Transaction<'_>, before: u64) -> rusqlite::Result<bool> {
    let mut left = STEP;
    while left > 0 {
        let mut oldest = tx
            .prepare_cached("SELECT id FROM jobs WHERE last_seen < ? ORDER BY last_seen LIMIT 1")?;
        let job: Option<i64> = oldest.query_row([micros(before)], |row| row.get(0)).optional()?;
        let Some(job) = job else {
            forget_minions(tx)?;
            return Ok(false);
        };
        for sql in [
            "DELETE FROM returns
             WHERE rowid IN (SELECT rowid FROM returns WHERE job = ? LIMIT ?)",
            "DELETE FROM expected WHERE (job, minion) IN
             (SELECT job, minion FROM expected WHERE job = ? LIMIT ?)",
        ] {
            let gone = tx.prepare_cached(sql)?.execute(params![job, left])?;
            left = left.saturating_sub(u32::try_from(gone).unwrap_or(u32::MAX));
        }
        if left > 0 {
            functions::forget(tx, job)?;
            tx.prepare_cached("DELETE FROM jobs WHERE id = ?")?.execute([job])?;
            left -= 1;
        }
    }
    Ok(true)
}

/// Names that no job mentions any more.
fn forget_minions(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    let mut delete = tx.prepare_cached(
        "DELETE FROM minions WHERE NOT EXISTS (SELECT 1 FROM returns WHERE minion = minions.id)
         AND NOT EXISTS (SELECT 1 FROM expected WHERE minion = minions.id)",
    )?;
    delete.execute([]).map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::event::batch::Entry;
    use crate::event::{Authority, Event};

    fn publish(jobs: &Jobs, jid: &str, minions: std::ops::Range<u32>, received: u64) {
        let packed = |value: &Value| rmp_serde::to_vec(value).unwrap();
        let names: Vec<_> = minions.map(|n| format!("web-{n}")).collect();
        let new = json!({"jid": jid, "fun": "test.ping", "minions": names});
        let mut events = vec![Event::new(&format!("salt/job/{jid}/new"), &packed(&new))];
        for name in names {
            let ret = json!({"jid": jid, "id": name, "return": true});
            events.push(Event::new(&format!("salt/job/{jid}/ret/{name}"), &packed(&ret)));
        }
        let entry = |event| Entry { received, ..Entry::of(event, Authority::Bus) };
        jobs.record(events.iter().map(entry)).unwrap();
    }

    #[test]
    fn old_jobs_go_step_by_step_and_new_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let jobs = Jobs::new(folder.path());
        assert!(matches!(jobs.forget_some(), Err(JobsError::Off)));
        jobs.keep(Some(Duration::from_secs(3600)));
        assert!(!jobs.forget_some().unwrap(), "there is no file yet");
        publish(&jobs, "20261120000000000001", 0..400, 1);
        // A job with an id of ten years later, and old all the same.
        publish(&jobs, "20361120000000000002", 0..400, 2);
        publish(&jobs, "20261120000000000003", 399..401, state::now());
        let rows = || {
            let db = rusqlite::Connection::open(folder.path().join("job-cache.db")).unwrap();
            ["jobs", "returns", "expected", "minions"].map(|table| {
                let sql = format!("SELECT count(*) FROM {table}");
                db.query_row(&sql, [], |row| row.get::<_, u32>(0)).unwrap()
            })
        };
        assert_eq!(rows(), [3, 802, 802, 401]);
        let mut before = 1604;
        let mut steps = 0;
        while jobs.forget_some().unwrap() {
            let [_, returns, expected, _] = rows();
            assert!(before - (returns + expected) <= STEP, "a step is small");
            before = returns + expected;
            steps += 1;
        }
        assert!(steps >= 3, "{steps} steps");
        assert_eq!(rows(), [1, 2, 2, 2]);
        jobs.clean_old_jobs().unwrap();
        assert_eq!(rows(), [1, 2, 2, 2]);
    }
}
