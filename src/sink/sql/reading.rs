//! Answers what Salt asks of its jobs from the tables, whoever wrote them: a sink, or Salt's own
//! returner. A column that a table lacks is taken for NULL.

use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;

use super::dialect::Dialect;
use super::migration::columns_of;
use super::rows::LoadFrom;
use super::tables::{JobField, ReturnField, Table, Tables};
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

    /// Tells if the tables are there.
    pub(in crate::sink) fn has_tables(&self) -> bool {
        !self.job_columns.is_empty() && !self.return_columns.is_empty()
    }

    fn of_job(&self, field: JobField) -> &'static str {
        there(&self.tables.jids, &self.job_columns, field)
    }

    fn of_return(&self, field: ReturnField) -> &'static str {
        there(&self.tables.returns, &self.return_columns, field)
    }

    /// The query that finds what is asked, and its value.
    fn query<'a>(&self, question: &'a Question) -> (String, Option<&'a str>) {
        let (jids, returns) = (self.tables.jids.name, self.tables.returns.name);
        let (jid, load) = (self.of_job(JobField::Jid), self.of_job(JobField::Load));
        let (load_from, minions) =
            (self.of_job(JobField::LoadFrom), self.of_job(JobField::Minions));
        let end_time = self.of_job(JobField::EndTime);
        let job = self.of_return(ReturnField::Jid);
        let minion = self.of_return(ReturnField::Minion);
        let function = self.of_return(ReturnField::Function);
        let (value, success) =
            (self.of_return(ReturnField::Value), self.of_return(ReturnField::Success));
        let sign = (self.dialect.placeholder)(1);
        let asked_twice = (self.dialect.placeholder)(2);
        match question {
            Question::GetLoad { jid: asked } => {
                let query = format!(
                    "SELECT {jid}, {load}, {load_from}, {minions}, NULL FROM {jids} WHERE {jid} = \
                     {sign}"
                );
                (query, Some(asked))
            }
            Question::GetEndtime { jid: asked } => {
                (format!("SELECT {end_time} FROM {jids} WHERE {jid} = {sign}"), Some(asked))
            }
            Question::GetJid { jid: asked } => {
                let query = format!(
                    "SELECT {minion}, {value}, {success}, {job}, {function} FROM {returns} WHERE \
                     {job} = {sign}"
                );
                (query, Some(asked))
            }
            Question::GetFun { fun } => {
                let query = format!(
                    "SELECT said.{minion}, said.{value}, said.{success}, said.{job}, \
                     said.{function} FROM {returns} AS said JOIN (SELECT {minion} AS minion, \
                     MAX({job}) AS job FROM {returns} WHERE {function} = {sign} GROUP BY {minion}) \
                     AS last ON said.{job} = last.job AND said.{minion} = last.minion WHERE \
                     said.{function} = {asked_twice}"
                );
                (query, Some(fun))
            }
            // The last first: a list that takes too long ends early.
            Question::GetJids => {
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
        }
    }
}

/// A column of a table, or NULL if the table lacks it.
fn there<F: Copy + PartialEq>(
    table: &Table<F>,
    columns: &HashSet<String>,
    field: F,
) -> &'static str {
    table.column(field).filter(|column| columns.contains(*column)).unwrap_or("NULL")
}

/// Adds what the tables say to an answer.
pub(in crate::sink) async fn fill<D: Database>(
    database: &mut D,
    reading: &Reading,
    mut answer: Answer,
) -> Result<Answer, D::Error> {
    let question = answer.question().clone();
    let (query, asked) = reading.query(&question);
    let values = match (&question, asked) {
        (Question::GetFun { .. }, Some(fun)) => Values::of(&[fun, fun]),
        (_, Some(asked)) => Values::of(&[asked]),
        (_, None) => Values::default(),
    };
    let is_list = matches!(question, Question::GetJids);
    let mut before = None;
    let mut each = |row: &[Option<&[u8]>]| {
        match &question {
            Question::GetLoad { .. } | Question::GetJids | Question::GetJidsFilter { .. } => {
                put_job(row, &mut answer);
            }
            Question::GetJid { .. } | Question::GetFun { .. } => {
                put_return(row, &mut before, &mut answer);
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

/// Adds a return: minion, value, success, job, function. Salt's own table may hold one twice.
fn put_return(row: &[Option<&[u8]>], before: &mut Option<String>, answer: &mut Answer) {
    let Some(minion) = text(row, 0) else { return };
    if before.as_deref() == Some(minion) {
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
    answer.returned(minion, &load.finished());
    *before = Some(minion.to_owned());
}
