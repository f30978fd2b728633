//! Forgets old rows, a little at a time. Some go after each batch, in transactions of their own, so
//! that events hardly wait for it.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::rows::Times;
use super::statements::Statements;
use super::tables::{EventField, JobField, ReturnField};
use super::{Database, Values};
use crate::observe::state;

/// The time from one look for old rows to the next, once there are no more.
const LOOK: Duration = Duration::from_secs(60);

/// The fewest rows of a table that go in one step.
const STEP: usize = 500;

/// Forgets old rows.
#[derive(Debug)]
pub(in crate::sink) struct Retention {
    keep: Duration,
    due: Instant,
}

impl Retention {
    /// Rows that are older than this go.
    pub(in crate::sink) fn new(keep: Duration) -> Self {
        Retention { keep, due: Instant::now() }
    }

    /// Forgets some old rows, if it is time to look. So many were `written` just now. Twice as many
    /// of each table may go, so that it does not grow.
    pub(in crate::sink) async fn step<D: Database>(
        &mut self,
        database: &mut D,
        statements: &Statements,
        written: usize,
    ) -> Result<(), D::Error> {
        if Instant::now() < self.due {
            return Ok(());
        }
        // After an error as well.
        self.due = Instant::now() + LOOK;
        let keep = u64::try_from(self.keep.as_micros()).unwrap_or(u64::MAX);
        let most = STEP.max(written * 2);
        if forget(database, statements, state::now().saturating_sub(keep), most).await? {
            self.due = Instant::now();
        }
        Ok(())
    }
}

/// Forgets rows that were stored before a time; `true` if there may be more of them.
async fn forget<D: Database>(
    database: &mut D,
    statements: &Statements,
    before: u64,
    most: usize,
) -> Result<bool, D::Error> {
    let Statements { tables, dialect, .. } = statements;
    let sign = (dialect.placeholder)(1);
    let (jids, returns, events) = (&tables.jids, &tables.returns, &tables.events);
    let mut times = Times::default();
    let (utc, local) = (times.utc(before).to_owned(), times.local(before).to_owned());
    let jid = jid_at(before);
    let old = |time: &str| format!("{time} < {sign}");
    let mut steps = Vec::new();
    if let Some(time) = events.column(EventField::Time) {
        steps.push((events.name, old(time), &utc));
    }
    let job_of_return = returns.column(ReturnField::Jid);
    if let Some(time) = returns.column(ReturnField::LocalTime) {
        steps.push((returns.name, old(time), &local));
    }
    if let (Some(job), Some(job_of_return)) = (jids.column(JobField::Jid), job_of_return) {
        // A load stays for as long as a return of its job does.
        let has_no_return = format!(
            "NOT EXISTS (SELECT 1 FROM {} WHERE {0}.{job_of_return} = {}.{job})",
            returns.name, jids.name
        );
        // A row of Salt's own returner is as old as its id.
        let mut has_no_time = String::new();
        if let Some(time) = jids.column(JobField::Time) {
            steps.push((jids.name, format!("{} AND {has_no_return}", old(time)), &utc));
            has_no_time = format!("{time} IS NULL AND ");
        }
        steps.push((jids.name, format!("{has_no_time}{} AND {has_no_return}", old(job)), &jid));
    }
    let mut is_more = false;
    for (table, condition, value) in steps {
        let delete = (dialect.delete_some)(table, &condition, most);
        let gone = database.execute(&delete, &Values::of(&[value])).await?;
        is_more |= gone >= most as u64;
    }
    Ok(is_more)
}

/// The id of a job that is published at this time.
fn jid_at(micros: u64) -> String {
    let micros = i64::try_from(micros).unwrap_or(i64::MAX);
    let time = Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX);
    time.to_zoned(TimeZone::UTC).strftime("%Y%m%d%H%M%S%6f").to_string()
}
