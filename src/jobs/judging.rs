//! Judges returns that an older release has stored once more, by the rule of today.
//!
//! A return that was not judged by it has no `test`. Judging goes in small steps, beside the
//! forgetting of old jobs, until there is no such return left.

use rusqlite::{Transaction, params};

use super::{Jobs, JobsError, file, functions};
use crate::event::job_return::JobReturn;
use crate::event::runner::RunnerJob;
use crate::event::standing::Standing;

/// Returns of one step.
const STEP: u32 = 200;

/// The bytes of returns from which on a step ends.
const MOST_BYTES: usize = 4 << 20;

impl Jobs {
    /// Judges some returns; `true` if there may be more.
    pub(super) fn judge_some(&self) -> Result<bool, JobsError> {
        self.step("judge returns", judge)
    }

    /// Adds some of the data that a file of an older release lacks; `true` if there may be more.
    pub(super) fn catch_up_some(&self) -> Result<bool, JobsError> {
        self.step("complete the rows of an older release", file::catch_up)
    }
}

fn judge(tx: &Transaction<'_>) -> rusqlite::Result<bool> {
    let mut select = tx.prepare_cached(
        "SELECT rowid, job, outcome, standing, load FROM returns WHERE test IS NULL LIMIT ?",
    )?;
    let mut is_nameless = tx.prepare_cached("SELECT 1 FROM jobs WHERE id = ? AND fun IS NULL")?;
    let mut judged = Vec::new();
    let mut bytes = 0;
    let mut rows = select.query([STEP])?;
    while let Some(row) = rows.next()? {
        if bytes >= MOST_BYTES {
            break;
        }
        // A damaged value must not keep the others from being judged.
        let before: Option<bool> = row.get(2).unwrap_or_default();
        let standing = Standing::of_number(row.get(3).unwrap_or_default());
        let load = row.get_ref(4)?.as_blob_or_null().unwrap_or_default().unwrap_or_default();
        bytes += load.len();
        let known = JobReturn::of(load);
        let verdict = known.verdict();
        let is_runner = standing == Standing::Master && RunnerJob::in_load(load).is_some();
        let (row, job) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)?);
        // It knew no job of several functions by any of them.
        if known.functions.single().is_none() && is_nameless.exists([job])? {
            functions::store(tx, job, known.functions)?;
        }
        // The stored return has less than the judged one if there is no cache, or if redaction left
        // an outline.
        let after = match before {
            Some(false) => before,
            _ => known.value().map_or(before, |_| verdict.outcome.worked()),
        };
        let failed = i64::from(after == Some(false)) - i64::from(before == Some(false));
        judged.push((row, job, after, verdict.test, is_runner, failed));
    }
    let mut update =
        tx.prepare_cached("UPDATE returns SET outcome = ?, test = ?, runner = ? WHERE rowid = ?")?;
    let mut count = tx.prepare_cached("UPDATE jobs SET failed = failed + ? WHERE id = ?")?;
    for (row, job, outcome, test, is_runner, failed) in &judged {
        update.execute(params![outcome, test, is_runner, row])?;
        if *failed != 0 {
            count.execute(params![failed, job])?;
        }
    }
    Ok(!judged.is_empty())
}
