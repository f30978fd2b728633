//! Writes a batch: all of it together. If the database refuses something of it, the batch is
//! written once more with each event apart, so that only the refused events are left out.
//!
//! Events go in groups, one statement for the rows of a group in each table. If there is no network
//! before the database a group is one event ([`Dialect::max_rows`](super::dialect::Dialect)).

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;

use super::rows::{self, Job, LoadFrom, Return, Said, Times};
use super::statements::{LOAD, Statements};
use super::{Database, Values};
use crate::codec::msgpack;
use crate::event::batch::{Batch, Entry};
use crate::event::standing::{Precedence, Standing};

/// The bytes of frames from which on a group has no more events.
const GROUP_BYTES: usize = 1 << 20;

/// The failure to store a batch, or a part of it.
#[derive(Debug)]
pub(in crate::sink) enum Failure<E> {
    /// The database refuses the events at these places, each for its own reason; all others are
    /// stored.
    Refused(Vec<(usize, E)>),
    /// It refuses some event and rolls everything back: nothing is stored.
    RefusedSome(E),
    /// It cannot be written to; nothing is stored.
    Failed(E),
}

/// Stores a batch. Texts are made in `buffer`, which is kept for its memory.
pub(in crate::sink) async fn store<D: Database>(
    database: &mut D,
    statements: &Statements,
    batch: &Batch,
    buffer: &mut Vec<u8>,
) -> Result<(), Failure<D::Error>> {
    let entries: Vec<_> = batch.entries().collect();
    let values = Values::made_in(std::mem::take(buffer));
    let mut writing = Writing { statements, values, times: Times::default() };
    let stored = match together(database, &mut writing, &entries).await {
        Err(error) if D::is_refusal(&error) => apart(database, &mut writing, &entries).await,
        other => other.map_err(Failure::Failed),
    };
    *buffer = writing.values.into_buffer();
    stored
}

async fn together<'a, D: Database>(
    database: &mut D,
    writing: &mut Writing<'a>,
    entries: &[Entry<'a>],
) -> Result<(), D::Error> {
    run(database, writing.statements.dialect.begin).await?;
    let done = match all(database, writing, entries).await {
        Ok(()) => run(database, "COMMIT").await,
        Err(error) => Err(error),
    };
    if done.is_err() {
        // It fails where the database has rolled back by itself.
        let _ = run(database, "ROLLBACK").await;
    }
    done
}

async fn all<'a, D: Database>(
    database: &mut D,
    writing: &mut Writing<'a>,
    entries: &[Entry<'a>],
) -> Result<(), D::Error> {
    let most = writing.statements.group();
    let mut rest = entries;
    while !rest.is_empty() {
        let (group, behind) = rest.split_at(first_group(rest, most));
        writing.group(database, group).await?;
        rest = behind;
    }
    Ok(())
}

/// The number of entries in the next group, at least one.
fn first_group(entries: &[Entry<'_>], most: usize) -> usize {
    let mut bytes = 0;
    let fits = |entry: &&Entry<'_>| {
        let is_first = bytes == 0;
        bytes += entry.event.frame().len();
        is_first || bytes <= GROUP_BYTES && !rows::is_return_of_no_job(entry)
    };
    match entries.first() {
        Some(first) if most > 1 && !rows::is_return_of_no_job(first) => {
            entries.iter().take(most).take_while(fits).count()
        }
        _ => 1,
    }
}

async fn apart<'a, D: Database>(
    database: &mut D,
    writing: &mut Writing<'a>,
    entries: &[Entry<'a>],
) -> Result<(), Failure<D::Error>> {
    run(database, writing.statements.dialect.begin).await.map_err(Failure::Failed)?;
    let stored = each_apart(database, writing, entries).await;
    if let Err(Failure::RefusedSome(_) | Failure::Failed(_)) = stored {
        // It fails where the database has rolled back by itself.
        let _ = run(database, "ROLLBACK").await;
    }
    stored
}

async fn each_apart<'a, D: Database>(
    database: &mut D,
    writing: &mut Writing<'a>,
    entries: &[Entry<'a>],
) -> Result<(), Failure<D::Error>> {
    let mut refused = Vec::new();
    for (place, entry) in entries.iter().enumerate() {
        run(database, "SAVEPOINT event").await.map_err(Failure::Failed)?;
        match writing.group(database, std::slice::from_ref(entry)).await {
            Ok(()) => {}
            Err(error) if !D::is_refusal(&error) => return Err(Failure::Failed(error)),
            // Halving finds the event.
            Err(error) if !database.is_in_transaction() => return Err(Failure::RefusedSome(error)),
            Err(error) => {
                run(database, "ROLLBACK TO SAVEPOINT event").await.map_err(Failure::Failed)?;
                refused.push((place, error));
            }
        }
        run(database, "RELEASE SAVEPOINT event").await.map_err(Failure::Failed)?;
    }
    run(database, "COMMIT").await.map_err(Failure::Failed)?;
    if refused.is_empty() { Ok(()) } else { Err(Failure::Refused(refused)) }
}

async fn run<D: Database>(database: &mut D, sql: &str) -> Result<(), D::Error> {
    database.execute(sql, &Values::default()).await.map(drop)
}

/// The state of writing the entries of a batch.
struct Writing<'a> {
    statements: &'a Statements,
    values: Values<'a>,
    times: Times,
}

impl<'a> Writing<'a> {
    /// Writes these entries. A return of no job has to be alone.
    async fn group<D: Database>(
        &mut self,
        database: &mut D,
        entries: &[Entry<'a>],
    ) -> Result<(), D::Error> {
        let events = &self.statements.tables.events;
        let mut rows = 0;
        self.values.clear();
        for entry in entries.iter().filter(|entry| rows::is_event(entry)) {
            rows += 1;
            rows::put_event(events, entry, &mut self.times, &mut self.values);
        }
        let mut are_new = true;
        if rows > 0 {
            let insert = self.statements.insert_events(rows);
            are_new = database.execute(&insert, &self.values).await? > 0;
        }
        let mut returns = Vec::new();
        for entry in entries {
            match Said::by(*entry) {
                Said::Nothing => {}
                Said::Job(job) => self.job(database, &job).await?,
                Said::Return(said) if !are_new && said.job().is_none() => {}
                Said::Return(said) => returns.push(said),
            }
        }
        if returns.is_empty() { Ok(()) } else { self.returns(database, &returns).await }
    }

    /// Writes the facts of a job. The load that comes first stays, unless a better one comes; the
    /// minions are those of all times. Nothing is stored of a job without a load.
    async fn job<D: Database>(&mut self, database: &mut D, job: &Job<'a>) -> Result<(), D::Error> {
        let statements = self.statements;
        let jids = &statements.tables.jids;
        let mut stored = None;
        self.values.clear();
        self.values.text(Some(job.jid));
        let mut each = |row: &[Option<&[u8]>]| {
            let of = |place: usize| row.get(place).copied().flatten();
            let minions: BTreeSet<String> =
                of(1).and_then(|list| serde_json::from_slice(list).ok()).unwrap_or_default();
            stored = Some((LoadFrom::named(of(0)), minions));
            ControlFlow::Break(())
        };
        if let Some(select) = &statements.select_job {
            database.query(select, &self.values, &mut each).await?;
        }
        let Some((load_from, mut minions)) = stored else {
            if job.load.is_none() {
                return Ok(());
            }
            self.values.clear();
            job.put(jids, &mut self.times, &mut self.values);
            return database.execute(&statements.insert_job, &self.values).await.map(drop);
        };
        if let Some(update) = &statements.update_load
            && job.load.is_some()
            && job.load_from > load_from
        {
            self.values.clear();
            for field in LOAD.iter().filter(|field| jids.column(**field).is_some()) {
                job.put_field(*field, &mut self.times, &mut self.values);
            }
            self.values.text(Some(job.jid));
            database.execute(update, &self.values).await?;
        }
        if let (Some(update), Some(said)) = (&statements.update_minions, job.minions) {
            let known = minions.len();
            let names = msgpack::items(said).filter_map(|name| msgpack::scalar(name)?.text());
            minions.extend(names.map(str::to_owned));
            if minions.len() > known {
                self.values.clear();
                // Writing texts to memory does not fail.
                self.values.make(|out| _ = serde_json::to_writer(out, &minions));
                self.values.text(Some(job.jid));
                database.execute(update, &self.values).await?;
            }
        }
        if let (Some(update), Some(end_time)) = (&statements.update_end_time, job.end_time) {
            self.values.clear();
            self.values.text(Some(end_time));
            self.values.text(Some(job.jid));
            database.execute(update, &self.values).await?;
        }
        Ok(())
    }

    /// Writes those returns that hold beside stored ones ([`crate::event::standing`]).
    async fn returns<D: Database>(
        &mut self,
        database: &mut D,
        returns: &[Return<'a>],
    ) -> Result<(), D::Error> {
        let statements = self.statements;
        let stored = self.stored(database, returns).await?;
        let Choice { kept, replaced } = choose(returns, stored);
        for (jid, minion) in replaced {
            let Some(delete) = &statements.delete_return else { break };
            self.values.clear();
            self.values.text(Some(jid));
            self.values.text(Some(minion));
            database.execute(delete, &self.values).await?;
        }
        self.values.clear();
        for said in &kept {
            said.put(&statements.tables.returns, &mut self.times, &mut self.values);
        }
        if kept.is_empty() {
            return Ok(());
        }
        database.execute(&statements.insert_returns(kept.len()), &self.values).await.map(drop)
    }

    /// The worth of the best of the stored rows of each job and minion that has returned.
    async fn stored<D: Database>(
        &mut self,
        database: &mut D,
        returns: &[Return<'a>],
    ) -> Result<HashMap<Key<'a>, Precedence>, D::Error> {
        self.values.clear();
        let mut keys: Vec<_> = returns.iter().filter_map(key).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut best = vec![None; keys.len()];
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        for (jid, minion) in &keys {
            self.values.text(Some(*jid));
            self.values.text(Some(*minion));
        }
        let mut each = |row: &[Option<&[u8]>]| {
            let text = |place: usize| {
                let text = row.get(place).copied().flatten().unwrap_or_default();
                std::str::from_utf8(text).unwrap_or_default()
            };
            let key = (text(0), text(1));
            let precedence =
                Precedence { standing: Standing::named(text(2)), trimmed: text(3) == "1" };
            if let Ok(place) = keys.binary_search_by(|known| Key::cmp(known, &key))
                && let Some(best) = best.get_mut(place)
                && best.is_none_or(|best| precedence.replaces(best))
            {
                *best = Some(precedence);
            }
            ControlFlow::Continue(())
        };
        if let Some(select) = self.statements.select_returns(keys.len()) {
            database.query(&select, &self.values, &mut each).await?;
        }
        Ok(keys.into_iter().zip(best).filter_map(|(key, best)| Some((key, best?))).collect())
    }
}

/// A job and a minion.
type Key<'a> = (&'a str, &'a str);

/// The key of a return; `None` if nothing can be told to be the same.
fn key<'a>(said: &Return<'a>) -> Option<Key<'a>> {
    Some((said.job()?, said.minion?))
}

/// The returns to insert, and the keys of stored rows to delete first.
struct Choice<'r, 'a> {
    kept: Vec<&'r Return<'a>>,
    replaced: Vec<Key<'a>>,
}

/// Chooses between returns of one job and minion, in the order in which they came.
fn choose<'r, 'a>(
    returns: &'r [Return<'a>],
    stored: HashMap<Key<'a>, Precedence>,
) -> Choice<'r, 'a> {
    let mut best: HashMap<Key<'a>, (Precedence, Option<usize>)> =
        stored.into_iter().map(|(key, precedence)| (key, (precedence, None))).collect();
    let (mut kept, mut replaced) = (Vec::with_capacity(returns.len()), Vec::new());
    for said in returns {
        let Some(key) = key(said) else {
            kept.push(Some(said));
            continue;
        };
        match best.get(&key) {
            Some((precedence, _)) if !said.precedence.replaces(*precedence) => continue,
            Some((_, None)) => replaced.push(key),
            Some((_, Some(place))) => {
                if let Some(worse) = kept.get_mut(*place) {
                    *worse = None;
                }
            }
            None => {}
        }
        best.insert(key, (said.precedence, Some(kept.len())));
        kept.push(Some(said));
    }
    Choice { kept: kept.into_iter().flatten().collect(), replaced }
}
