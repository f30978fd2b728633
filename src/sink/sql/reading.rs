//! Answers Salt's questions about jobs from the tables of a sink, or of Salt's own returner. A
//! column that a table lacks is taken for NULL. Tables without the ids, the loads or the returned
//! values answer nothing.

use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;

use super::dialect::Dialect;
use super::migration::columns_of;
use super::rows::LoadFrom;
use super::statements::selected;
use super::tables::{JobField, ReturnField, Tables};
use super::{Database, Values};
use crate::codec::lenient_json;
use crate::codec::msgpack::{self, MapWriter};
use crate::jobs::store::{Answer, Job, Question};

/// The tables of a database as they are there.
#[derive(Debug)]
pub(in crate::sink) struct Reading {
    tables: &'static Tables,
    dialect: &'static Dialect,
    job_columns: HashSet<String>,
    return_columns: HashSet<String>,
}

impl Reading {
    /// Looks what columns there are.
    pub(in crate::sink) async fn of<D: Database>(
        database: &mut D,
        tables: &'static Tables,
        dialect: &'static Dialect,
    ) -> Result<Self, D::Error> {
        let job_columns = columns_of(database, dialect, tables.jids.name).await?;
        let return_columns = columns_of(database, dialect, tables.returns.name).await?;
        Ok(Reading { tables, dialect, job_columns, return_columns })
    }

    /// Tells if all columns are there that the kind writes.
    pub(in crate::sink) fn is_whole(&self) -> bool {
        let Tables { jids, returns, .. } = self.tables;
        jids.written().all(|(name, _)| self.job_columns.contains(name))
            && returns.written().all(|(name, _)| self.return_columns.contains(name))
    }

    fn of_job(&self, field: JobField) -> Option<&'static str> {
        self.tables.jids.column(field).filter(|column| self.job_columns.contains(*column))
    }

    fn of_return(&self, field: ReturnField) -> Option<&'static str> {
        self.tables.returns.column(field).filter(|column| self.return_columns.contains(*column))
    }

    /// The query for a question, and its value. `None` if the tables cannot know it.
    fn query<'a>(&self, question: &'a Question) -> Option<(String, Option<&'a str>)> {
        let (jids, returns) = (self.tables.jids.name, self.tables.returns.name);
        let (jid, load) = (self.of_job(JobField::Jid)?, self.of_job(JobField::Load)?);
        let job = self.of_return(ReturnField::Jid)?;
        let minion = self.of_return(ReturnField::Minion)?;
        let value = self.of_return(ReturnField::Value)?;
        let function = self.of_return(ReturnField::Function);
        let load_from = selected(jids, self.of_job(JobField::LoadFrom));
        let said = |column| selected("said", column);
        let all_of_return = format!(
            "said.{minion}, said.{value}, {}, said.{job}, {}, {}, {}",
            said(self.of_return(ReturnField::Success)),
            said(function),
            said(self.of_return(ReturnField::Outcome)),
            said(self.of_return(ReturnField::Authority))
        );
        let sign = (self.dialect.placeholder)(1);
        let asked_twice = (self.dialect.placeholder)(2);
        Some(match question {
            Question::GetLoad { jid: asked } => {
                let minions = selected(jids, self.of_job(JobField::Minions));
                let query = format!(
                    "SELECT {jid}, {load}, {load_from}, {minions}, NULL FROM {jids} WHERE {jid} = \
                     {sign}"
                );
                (query, Some(asked))
            }
            Question::GetEndtime { jid: asked } => {
                let end_time = self.of_job(JobField::EndTime)?;
                (format!("SELECT {end_time} FROM {jids} WHERE {jid} = {sign}"), Some(asked))
            }
            Question::GetJid { jid: asked } => {
                let query = format!(
                    "SELECT {all_of_return} FROM {returns} AS said WHERE said.{job} = {sign}"
                );
                (query, Some(asked))
            }
            Question::GetFun { fun } => {
                let function = function?;
                let query = format!(
                    "SELECT {all_of_return} FROM {returns} AS said JOIN (SELECT {minion} AS minion, \
                     MAX({job}) AS job FROM {returns} WHERE {function} = {sign} GROUP BY {minion}) \
                     AS last ON said.{job} = last.job AND said.{minion} = last.minion WHERE \
                     said.{function} = {asked_twice}"
                );
                (query, Some(fun))
            }
            // The last first: a list that takes too long ends early.
            Question::GetJids => {
                let end_time = selected(jids, self.of_job(JobField::EndTime));
                let query = format!(
                    "SELECT {jid}, {load}, {load_from}, NULL, {end_time} FROM {jids} ORDER BY \
                     {jid} DESC"
                );
                (query, None)
            }
            Question::GetJidsFilter { count, filter_find_job } => {
                let wanted = match filter_find_job {
                    true => format!("{load} NOT LIKE '%\"fun\": \"saltutil.find_job\"%'"),
                    false => "1 = 1".to_owned(),
                };
                let count = i64::try_from(*count).unwrap_or(i64::MAX);
                let query = format!(
                    "SELECT {jid}, {load}, {load_from}, NULL, NULL FROM {jids} WHERE {jid} >= \
                     (SELECT MIN({jid}) FROM (SELECT {jid} FROM {jids} WHERE {wanted} ORDER BY \
                     {jid} DESC LIMIT {count}) AS last) AND {wanted} ORDER BY {jid}"
                );
                (query, None)
            }
            Question::GetMinions => {
                (format!("SELECT DISTINCT {minion} FROM {returns} ORDER BY {minion}"), None)
            }
        })
    }
}

/// Adds what the tables say to an answer.
pub(in crate::sink) async fn fill<D: Database>(
    database: &mut D,
    reading: &Reading,
    mut answer: Answer,
) -> Result<Answer, D::Error> {
    let question = answer.question().clone();
    let Some((query, asked)) = reading.query(&question) else { return Ok(answer) };
    let values = match (&question, asked) {
        (Question::GetFun { .. }, Some(fun)) => Values::of(&[fun, fun]),
        (_, Some(asked)) => Values::of(&[asked]),
        (_, None) => Values::default(),
    };
    let is_list = matches!(question, Question::GetJids);
    let mut known = HashSet::new();
    let mut each = |row: &[Option<&[u8]>]| {
        match &question {
            Question::GetLoad { .. } | Question::GetJids | Question::GetJidsFilter { .. } => {
                put_job(row, &mut answer);
            }
            Question::GetJid { .. } | Question::GetFun { .. } => {
                put_return(row, &mut known, &mut answer);
            }
            Question::GetMinions | Question::GetEndtime { .. } => {
                if let Some(name) = text(row, 0) {
                    answer.text(name);
                }
            }
        }
        match answer.goes_on() && !(is_list && answer.is_late()) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    };
    database.query(&query, &values, &mut each).await?;
    Ok(answer)
}

fn text<'a>(row: &[Option<&'a [u8]>], place: usize) -> Option<&'a str> {
    std::str::from_utf8(row.get(place).copied().flatten()?).ok()
}

/// JSON as msgpack; `None` if it is none.
fn packed(json: &str) -> Option<Vec<u8>> {
    let (value, _) = lenient_json::read(json.as_bytes()).ok()?;
    rmp_serde::to_vec(&value).ok()
}

/// Adds a job: id, load, where that comes from, minions, end.
fn put_job(row: &[Option<&[u8]>], answer: &mut Answer) {
    let Some(jid) = text(row, 0) else { return };
    let Some(load) = text(row, 1).and_then(packed) else { return };
    let is_event = LoadFrom::named(row.get(2).copied().flatten()) == LoadFrom::Event;
    let mut minions: BTreeSet<String> =
        text(row, 3).and_then(|list| serde_json::from_str(list).ok()).unwrap_or_default();
    if is_event {
        let named = msgpack::items(msgpack::find(&load, "minions").unwrap_or_default());
        minions.extend(named.filter_map(|name| Some(msgpack::scalar(name)?.text()?.to_owned())));
    }
    let minions: Vec<_> = minions.into_iter().collect();
    answer.job(&Job { jid, load: &load, is_event, minions: &minions, end_time: text(row, 4) });
}

/// Adds a return: minion, value, success, job, function, outcome, authority. Salt's own table may
/// hold one twice, and rows come in any order. Further rows of a known minion are not added.
fn put_return(row: &[Option<&[u8]>], known: &mut HashSet<String>, answer: &mut Answer) {
    let Some(minion) = text(row, 0) else { return };
    if known.contains(minion) {
        return;
    }
    let Some(value) = text(row, 1).and_then(packed) else { return };
    let mut load = MapWriter::default();
    load.text("id", minion);
    for (key, place) in [("jid", 3), ("fun", 4)] {
        if let Some(text) = text(row, place) {
            load.text(key, text);
        }
    }
    load.value("return", &value);
    match text(row, 2) {
        Some("1") => load.bool("success", true),
        Some("0") => load.bool("success", false),
        _ => {}
    }
    answer.judged_return(minion, &load.finished(), text(row, 5), text(row, 6));
    known.insert(minion.to_owned());
}
