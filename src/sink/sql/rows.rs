//! The rows of an event: one of `salt_events` for each event, and one of `jids` or `salt_returns`
//! for each about a job.

use std::borrow::Cow;
use std::io::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Values;
use super::tables::{EventField, JobField, ReturnField, Table};
use crate::codec::msgpack::{self, Item};
use crate::codec::{json, python};
use crate::event::batch::Entry;
use crate::event::job_load::JobLoad;
use crate::event::job_return::JobReturn;
use crate::event::runner::RunnerJob;
use crate::event::standing::{Precedence, Standing};
use crate::event::step::Step;
use crate::event::{Event, EventKind, Fields};

/// The facts of a job in an event.
pub(super) enum Said<'a> {
    /// Nothing.
    Nothing,
    /// Something of the job itself.
    Job(Job<'a>),
    /// A return of a minion, or of a runner.
    Return(Return<'a>),
}

/// The facts of a job itself.
pub(super) struct Job<'a> {
    entry: Entry<'a>,
    pub(super) jid: &'a str,
    /// The load, if it is said.
    pub(super) load: Option<Load<'a>>,
    pub(super) load_from: LoadFrom,
    /// The minions that it is meant for, as msgpack, if they are said.
    pub(super) minions: Option<&'a [u8]>,
    /// The time at which it ended, if it is said.
    pub(super) end_time: Option<&'a str>,
}

/// The load of a job.
pub(super) enum Load<'a> {
    /// The data of the event.
    Event,
    /// This msgpack.
    Published(Cow<'a, [u8]>),
}

/// The origin of the load of a job, from worse to better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::sink) enum LoadFrom {
    /// A return, of a job that nobody published.
    Return,
    /// The event of the new job, or an unknown origin: Salt's own returner does not say.
    Event,
    /// The master has published it.
    Published,
}

/// A return.
pub(super) struct Return<'a> {
    entry: Entry<'a>,
    fields: Fields<'a>,
    /// The minion, or the master of a runner.
    pub(super) minion: Option<&'a str>,
    value: Option<&'a [u8]>,
    pub(super) precedence: Precedence,
}

impl LoadFrom {
    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            LoadFrom::Return => "return",
            LoadFrom::Event => "event",
            LoadFrom::Published => "published",
        }
    }

    pub(super) fn named(name: Option<&[u8]>) -> Self {
        match name {
            Some(b"published") => LoadFrom::Published,
            Some(b"return") => LoadFrom::Return,
            _ => LoadFrom::Event,
        }
    }
}

/// Tells if the entry is an event of the bus, and no word of the master beside it.
pub(super) fn is_event(entry: &Entry<'_>) -> bool {
    !JobLoad::is(entry)
}

/// Tells if the entry is a return of no job: it has no key that recognises a repeated one.
pub(super) fn is_return_of_no_job(entry: &Entry<'_>) -> bool {
    entry.event.is_return() && entry.event.fields().job().is_none()
}

impl<'a> Said<'a> {
    pub(super) fn by(entry: Entry<'a>) -> Self {
        let event = entry.event;
        if let Some(said) = JobLoad::of(&entry) {
            return Said::Job(Job {
                entry,
                jid: said.jid,
                load: said.load.map(Load::Published),
                load_from: match said.is_return {
                    true => LoadFrom::Return,
                    false => LoadFrom::Published,
                },
                minions: said.minions,
                end_time: said.end_time,
            });
        }
        let (runner, step) = RunnerJob::of_event(event, &entry.origin.master_id).unzip();
        match (event.kind(), step) {
            (EventKind::JobNew, _) | (_, Some(Step::New)) => Said::of_new_job(entry),
            (EventKind::JobReturn, _) | (_, Some(Step::Return)) => {
                Said::Return(Return::of(entry, runner))
            }
            _ => Said::Nothing,
        }
    }

    fn of_new_job(entry: Entry<'a>) -> Self {
        // Salt makes no event whose tag contradicts it: such an event counts for neither job.
        let is_sound = !entry.event.tag_contradicts_data();
        match entry.event.fields().job().filter(|_| is_sound) {
            None => Said::Nothing,
            Some(jid) => Said::Job(Job {
                entry,
                jid,
                load: Some(Load::Event),
                load_from: LoadFrom::Event,
                minions: None,
                end_time: None,
            }),
        }
    }
}

/// Adds the row of an event.
pub(super) fn put_event<'a>(
    table: &Table<EventField>,
    entry: &Entry<'a>,
    times: &mut Times,
    values: &mut Values<'a>,
) {
    for (_, field) in table.written() {
        match field {
            EventField::Tag => values.text(Some(entry.event.tag())),
            EventField::Data => put_data(entry.event, values),
            EventField::Time => values.make(|out| out.extend(times.utc(entry.received).bytes())),
            EventField::Master => values.text(Some(&entry.origin.master_id)),
            // Writing to memory does not fail.
            EventField::Id => values.make(|out| _ = write!(out, "{}", entry.event.id())),
        }
    }
}

fn put_data<'a>(event: &'a Event, values: &mut Values<'a>) {
    match event.kept_json() {
        Some(json) => values.json(json),
        None => values.make(|out| event.write_json(out)),
    }
}

impl<'a> Job<'a> {
    /// Adds the row of the job. It is called with a load.
    pub(super) fn put(&self, table: &Table<JobField>, times: &mut Times, values: &mut Values<'a>) {
        for (_, field) in table.written() {
            self.put_field(field, times, values);
        }
    }

    /// Adds the value of one field.
    pub(super) fn put_field(&self, field: JobField, times: &mut Times, values: &mut Values<'a>) {
        match field {
            JobField::Jid => values.text(Some(self.jid)),
            JobField::Load => self.put_load(values),
            JobField::LoadFrom => values.text(Some(self.load_from.name())),
            JobField::Minions => match self.minions {
                Some(minions) => values.make(|out| _ = json::write(minions, out)),
                None => values.text(None),
            },
            JobField::EndTime => values.text(self.end_time),
            JobField::Time => values.make(|out| out.extend(times.utc(self.entry.received).bytes())),
        }
    }

    fn put_load(&self, values: &mut Values<'a>) {
        match &self.load {
            Some(Load::Published(load)) => values.make(|out| _ = json::write(load, out)),
            Some(Load::Event) | None => put_data(self.entry.event, values),
        }
    }
}

impl<'a> Return<'a> {
    fn of(entry: Entry<'a>, runner: Option<RunnerJob<'a>>) -> Self {
        let fields = entry.event.fields();
        // Salt's job cache gets a runner's event as a return of the master; so do the tables.
        let (minion, value) = match runner {
            Some(runner) => (Some(runner.master), Some(runner.data)),
            None => (fields.minion, fields.job_return.value()),
        };
        let standing = Standing::of(entry.event, entry.authority);
        let precedence = Precedence { standing, trimmed: is_trimmed(value) };
        Return { entry, fields, minion, value, precedence }
    }

    /// The job; `None` if it is of none.
    pub(super) fn job(&self) -> Option<&'a str> {
        self.fields.job()
    }

    /// Adds the row of the return.
    pub(super) fn put(
        &self,
        table: &Table<ReturnField>,
        times: &mut Times,
        values: &mut Values<'a>,
    ) {
        let Return { entry, fields, .. } = self;
        let job_return = &fields.job_return;
        for (_, field) in table.written() {
            match field {
                ReturnField::Function => self.put_function(values),
                ReturnField::Jid => values.text(fields.jid),
                ReturnField::Minion => values.text(self.minion),
                ReturnField::Arguments => self.put_arguments(values),
                ReturnField::LocalTime => {
                    values.make(|out| out.extend(times.local(entry.received).bytes()));
                }
                ReturnField::Value => values.make(|out| {
                    entry.event.make_room(out);
                    match self.value {
                        Some(value) => _ = json::write(value, out),
                        None => out.extend_from_slice(b"null"),
                    }
                }),
                ReturnField::Success => values.text(Some(success_text(job_return))),
                ReturnField::Authority => values.text(Some(self.precedence.standing.name())),
                ReturnField::Outcome => values.text(Some(job_return.outcome().name())),
            }
        }
    }

    /// The function; several as a JSON list.
    fn put_function(&self, values: &mut Values<'a>) {
        let listed = || msgpack::find(self.entry.event.payload(), "fun");
        match (self.fields.job_return.functions.single(), listed) {
            (Some(name), _) => values.text(Some(name)),
            (None, listed) => match listed() {
                Some(list) => values.make(|out| _ = json::write(list, out)),
                None => values.text(None),
            },
        }
    }

    /// Salt stores only arguments that are true, as Python has it.
    fn put_arguments(&self, values: &mut Values<'a>) {
        let arguments = msgpack::find(self.entry.event.payload(), "fun_args");
        match arguments.filter(|arguments| is_true(arguments)) {
            None => values.text(None),
            Some(arguments) => values.make(|out| {
                let mut text = String::new();
                python::str(arguments, &mut text);
                out.extend_from_slice(text.as_bytes());
            }),
        }
    }
}

/// Tells if the master left something out of the return, by its JSON: the tables keep nothing else
/// to judge stored returns by.
fn is_trimmed(value: Option<&[u8]>) -> bool {
    let is_likely = |value: &&[u8]| memchr::memmem::find(value, b"VALUE_TRIMMED").is_some();
    let Some(value) = value.filter(is_likely) else { return false };
    let mut text = Vec::new();
    json::write(value, &mut text);
    memchr::memmem::find(&text, b"\"VALUE_TRIMMED\"").is_some()
}

/// The same as `bool(value)` in Python.
fn is_true(value: &[u8]) -> bool {
    match msgpack::scalar(value) {
        None
        | Some(
            Item::Nil
            | Item::Bool(false)
            | Item::Array(0)
            | Item::Map(0)
            | Item::Int(0)
            | Item::Uint(0),
        ) => false,
        Some(Item::Str(bytes) | Item::Bin(bytes)) => !bytes.is_empty(),
        Some(Item::Float(float)) => float != 0.0,
        Some(_) => true,
    }
}

/// `ret.get("success", "")` as a column of text keeps it.
fn success_text(job_return: &JobReturn<'_>) -> &'static str {
    match job_return.success() {
        Some(true) => "1",
        Some(false) => "0",
        None => "",
    }
}

/// The two forms of the time when a chunk was read; its events share them.
#[derive(Debug, Default)]
pub(super) struct Times {
    received: Option<u64>,
    utc: String,
    local: String,
}

impl Times {
    /// The time in UTC, `2026-11-21 23:33:36.000250`.
    pub(super) fn utc(&mut self, micros: u64) -> &str {
        self.set(micros);
        &self.utc
    }

    /// The same in local time.
    pub(super) fn local(&mut self, micros: u64) -> &str {
        self.set(micros);
        &self.local
    }

    fn set(&mut self, received: u64) {
        if self.received.replace(received) == Some(received) {
            return;
        }
        let micros = i64::try_from(received).unwrap_or(i64::MAX);
        let time = Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX);
        let text = |zone| time.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S%.6f").to_string();
        self.utc = text(TimeZone::UTC);
        self.local = text(TimeZone::system());
    }
}
