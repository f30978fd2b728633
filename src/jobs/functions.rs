//! The functions of a job: one, or several that minions run after each other (`salt '*'
//! test.ping,cmd.run`). A job of several is found by each of them.

use rusqlite::{Connection, Transaction, params};

use super::damage::Damage;
use crate::event::job_return::Functions;

/// The most names of one job. Anybody may name as many as fit into an event.
const MOST: usize = 100;

/// Writes down which functions a job has. Without any, the known ones stay.
pub(super) fn store(
    tx: &Transaction<'_>,
    job: i64,
    functions: Functions<'_>,
) -> rusqlite::Result<()> {
    if let Some(name) = functions.single() {
        return name_job(tx, job, name, 0);
    }
    let names: Vec<_> = functions.listed().take(MOST).collect();
    if names.is_empty() {
        return Ok(());
    }
    name_job(tx, job, &names.join(","), names.len())?;
    let mut insert =
        tx.prepare_cached("INSERT INTO functions (job, place, fun) VALUES (?, ?, ?)")?;
    for (place, name) in (0_i64..).zip(names) {
        insert.execute(params![job, place, name])?;
    }
    Ok(())
}

/// Sets the name that is shown, and how many names there are in a list.
fn name_job(tx: &Transaction<'_>, job: i64, name: &str, listed: usize) -> rusqlite::Result<()> {
    let mut update = tx.prepare_cached("UPDATE jobs SET fun = ?2, functions = ?3 WHERE id = ?1")?;
    update.execute(params![job, name, i64::try_from(listed).unwrap_or_default()])?;
    forget(tx, job)
}

/// Forgets the list of a job.
pub(super) fn forget(tx: &Transaction<'_>, job: i64) -> rusqlite::Result<()> {
    tx.prepare_cached("DELETE FROM functions WHERE job = ?")?.execute([job]).map(drop)
}

/// The names of a job that has several, in order.
pub(super) fn listed(db: &Connection, job: i64, damage: &Damage) -> rusqlite::Result<Vec<String>> {
    let mut select = db.prepare_cached("SELECT fun FROM functions WHERE job = ? ORDER BY place")?;
    let mut rows = select.query([job])?;
    let mut names = Vec::new();
    while let Some(row) = rows.next()? {
        names.extend(damage.text(row, 0).map(str::to_owned));
    }
    Ok(names)
}
