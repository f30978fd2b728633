//! The messages between Salt's side and the sources `returner` and `returner_zeromq`: one msgpack
//! map each. `docs/returner.md` draws them. Version 2 has another transport than version 1, and
//! sends a long answer in parts.
//!
//! Data of Salt's own (events, loads, answers of the job cache) travels as msgpack inside a binary
//! value, so neither side decodes data that it only hands on.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::codec::msgpack::{self, Item};
use crate::codec::visible::capped;
use crate::error::chain;
use crate::event::{Authority, Event, job_load, return_tag};
use crate::jobs::load::Load;
use crate::jobs::spool::Spooled;
use crate::jobs::store::Question;
use crate::jobs::{Jobs, JobsError};

/// The version of the protocol that the source `returner` speaks.
pub(super) const VERSION: u64 = 2;

/// The version that the source `returner_zeromq` speaks.
pub(super) const VERSION_OVER_ZEROMQ: u64 = 1;

/// The longest value that is one message, and the length of a part of a longer one.
pub(super) const PART: usize = 64 << 10;

/// The deepest nesting of a request; none needs more than three. Reading recurses, and the depth
/// that the decoder would take by itself overflows a thread's stack.
const MAX_DEPTH: usize = 16;

/// The longest reason of a refusal, in bytes. It may repeat text of the sender's.
const LONGEST_WHY: usize = 1000;

/// The most items of a list: events of a message, or minions of a job.
const MOST_ITEMS: usize = 250_000;

/// The longest tag in such a reason.
const LONGEST_TAG: usize = 200;

/// A request of Salt's side.
#[derive(Debug)]
pub(super) struct Request {
    /// The sender's number for it, which the answers carry.
    pub(super) id: u64,
    pub(super) asked: Asked,
}

#[derive(Debug)]
pub(super) enum Asked {
    /// Keep these events.
    Events { bodies: Vec<Bytes> },
    /// Keep what a minion returned: the event that the master makes of it, and the load alone.
    Return { body: Bytes, load: Bytes },
    /// A question to the job cache, or something for it.
    Job(JobCall),
}

/// The first message of a client that has to show a token.
#[derive(Deserialize)]
struct Hello<'a> {
    token: &'a [u8],
}

/// The token in a message that greets; its number is 0.
pub(super) fn token_of(message: &[u8]) -> Option<&[u8]> {
    msgpack::whole(message).ok()?;
    let is_hello = read::<Head>(message, "hello").is_ok_and(|head| head.op == "hello");
    is_hello.then(|| read::<Hello>(message, "hello").ok()).flatten().map(|hello| hello.token)
}

/// A call of the job cache.
#[derive(Debug)]
pub(super) enum JobCall {
    SaveLoad {
        jid: String,
        load: Bytes,
        minions: Vec<String>,
    },
    SaveMinions {
        jid: String,
        minions: Vec<String>,
        syndic: Option<String>,
    },
    UpdateEndtime {
        jid: String,
        time: String,
    },
    Ask {
        question: Question,
        /// The sink that is asked before all others.
        store: Option<String>,
    },
    CleanOldJobs,
}

impl Asked {
    /// True if the authority of the client makes a difference.
    pub(super) fn needs_authority(&self) -> bool {
        match self {
            Asked::Events { .. } => false,
            Asked::Return { .. } | Asked::Job(JobCall::SaveLoad { .. }) => true,
            Asked::Job(call) => call.is_for_masters(),
        }
    }
}

/// The reason why a message is no request.
#[derive(Debug, Error)]
#[error("{why}")]
pub(super) struct Refusal {
    /// The sender's number for it, 0 if it has none.
    pub(super) id: u64,
    why: String,
    /// The same message may be taken later, by a newer daemon for instance.
    pub(super) later: bool,
}

impl Refusal {
    /// The refusal of a message that cannot be read for now.
    pub(super) fn later(why: &str) -> Self {
        Refusal { id: 0, why: capped(why, LONGEST_WHY), later: true }
    }
}

/// A list of items that are few: each takes more room once it is read than it took in the message.
struct Few<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FewVisitor(PhantomData)).map(Few)
    }
}

struct FewVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FewVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST_ITEMS} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            if items.len() == MOST_ITEMS {
                let why =
                    format!("a list has over {MOST_ITEMS} items; send it in several messages");
                return Err(A::Error::custom(why));
            }
            items.push(item);
        }
        Ok(items)
    }
}

#[derive(Deserialize)]
struct Head<'a> {
    op: &'a str,
}

#[derive(Deserialize)]
struct Events<'a> {
    #[serde(borrow)]
    events: Few<&'a [u8]>,
}

#[derive(Deserialize)]
struct Return<'a> {
    load: &'a [u8],
}

#[derive(Deserialize)]
struct SaveLoad<'a> {
    jid: String,
    load: &'a [u8],
    minions: Few<String>,
}

#[derive(Deserialize)]
struct SaveMinions {
    jid: String,
    minions: Few<String>,
    syndic_id: Option<String>,
}

#[derive(Deserialize)]
struct UpdateEndtime {
    jid: String,
    time: String,
}

/// The field that any question may have as well.
#[derive(Deserialize)]
struct Store {
    #[serde(default)]
    store: Option<String>,
}

#[derive(Deserialize)]
struct Jid {
    jid: String,
}

#[derive(Deserialize)]
struct Fun {
    fun: String,
}

#[derive(Deserialize)]
struct Filter {
    count: u64,
    filter_find_job: bool,
}

impl Request {
    /// Reads a message of `max_frame` bytes at the most, in this version of the protocol.
    pub(super) fn parse(message: &Bytes, max_frame: usize, version: u64) -> Result<Self, Refusal> {
        let number = |key| msgpack::find(message, key).and_then(msgpack::scalar);
        let id = match number("id") {
            Some(Item::Uint(id)) => id,
            _ => 0,
        };
        let refusal = |later, why: String| Refusal { id, why: capped(&why, LONGEST_WHY), later };
        if message.len() > max_frame {
            return Err(refusal(false, over_max_frame(message.len() as u64, max_frame)));
        }
        match number("v") {
            Some(Item::Uint(said)) if said == version => msgpack::whole(message)
                .map_err(|why| refusal(false, format!("the message is not whole: {why}")))?,
            Some(Item::Uint(other)) => {
                let why = format!(
                    "version {other} of the protocol is not known here, only {version}; install \
                     releases of saltern and saltext-saltern that belong together"
                );
                return Err(refusal(true, why));
            }
            _ => {
                let why = "the message is no msgpack map with a version `v`".to_owned();
                return Err(refusal(false, why));
            }
        }
        match Asked::parse(message) {
            Ok(asked) => Ok(Request { id, asked }),
            Err(why) => Err(refusal(false, why)),
        }
    }
}

/// The reason why a message that is too long is refused.
pub(super) fn over_max_frame(size: u64, max_frame: usize) -> String {
    format!("a message of {size} bytes is over max_frame ({max_frame} bytes)")
}

impl Asked {
    fn parse(message: &Bytes) -> Result<Self, String> {
        let op = read::<Head>(message, "the message")?.op;
        let call = match op {
            "events" => {
                let Events { events } = read(message, op)?;
                let bodies: Vec<_> =
                    events.0.into_iter().map(|event| message.slice_ref(event)).collect();
                bodies.iter().try_for_each(check_event)?;
                return Ok(Asked::Events { bodies });
            }
            "return" => {
                let load = message.slice_ref(read::<Return>(message, op)?.load);
                return Ok(Asked::Return { body: event_of_return(&load)?, load });
            }
            "save_load" => {
                let SaveLoad { jid, load, minions } = read(message, op)?;
                check_load(load, op)?;
                JobCall::SaveLoad { jid, load: message.slice_ref(load), minions: minions.0 }
            }
            "save_minions" => {
                let SaveMinions { jid, minions, syndic_id } = read(message, op)?;
                JobCall::SaveMinions { jid, minions: minions.0, syndic: syndic_id }
            }
            "update_endtime" => {
                let UpdateEndtime { jid, time } = read(message, op)?;
                JobCall::UpdateEndtime { jid, time }
            }
            "clean_old_jobs" => JobCall::CleanOldJobs,
            op => JobCall::Ask {
                question: question(op, message)?,
                store: read::<Store>(message, op)?.store,
            },
        };
        Ok(Asked::Job(call))
    }
}

fn question(op: &str, message: &[u8]) -> Result<Question, String> {
    let jid = || read::<Jid>(message, op).map(|asked| asked.jid);
    match op {
        "get_load" => Ok(Question::GetLoad { jid: jid()? }),
        "get_jid" => Ok(Question::GetJid { jid: jid()? }),
        "get_endtime" => Ok(Question::GetEndtime { jid: jid()? }),
        "get_fun" => Ok(Question::GetFun { fun: read::<Fun>(message, op)?.fun }),
        "get_jids" => Ok(Question::GetJids),
        "get_minions" => Ok(Question::GetMinions),
        "get_jids_filter" => {
            let Filter { count, filter_find_job } = read(message, op)?;
            Ok(Question::GetJidsFilter { count, filter_find_job })
        }
        other => Err(format!("there is no operation `{}`", capped(other, LONGEST_WHY))),
    }
}

fn read<'a, T: Deserialize<'a>>(message: &'a [u8], what: &str) -> Result<T, String> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(message);
    deserializer.set_max_depth(MAX_DEPTH);
    T::deserialize(&mut deserializer).map_err(|error| format!("{what}: {error}"))
}

/// Refuses an event that is cut off or has a tail: a later reader could only guess.
fn check_event(frame: &Bytes) -> Result<(), String> {
    let event = Event::parse(frame.clone()).map_err(|why| format!("events: {why}"))?;
    msgpack::whole(event.payload()).map_err(|why| {
        let tag = capped(event.tag(), LONGEST_TAG);
        format!("events: the data of `{tag}` is not whole: {why}")
    })
}

fn check_load<'a>(load: &'a [u8], op: &str) -> Result<Load<'a>, String> {
    Load::of(load).map_err(|why| format!("{op}: the load: {why}"))
}

/// The event that Salt's master puts onto its bus for a minion's return.
fn event_of_return(load: &[u8]) -> Result<Bytes, String> {
    let whole = check_load(load, "return")?;
    let text = |key| {
        whole
            .text(key)
            .filter(|text| !text.is_empty() && !text.contains('\n'))
            .ok_or_else(|| format!("return: the load has no `{key}` that is a line of text"))
    };
    let tag = return_tag(text("jid")?, text("id")?);
    Ok(Event::new(&tag, load).frame().clone())
}

impl JobCall {
    /// The event of the call for sinks that keep jobs, if it has news for them.
    pub(super) fn event(&self) -> Option<Event> {
        match self {
            JobCall::SaveLoad { jid, load, minions } => job_load::of_load(jid, load, minions),
            JobCall::SaveMinions { jid, minions, .. } => job_load::of_minions(jid, minions),
            JobCall::UpdateEndtime { jid, time } => job_load::of_end_time(jid, time),
            JobCall::Ask { .. } | JobCall::CleanOldJobs => None,
        }
    }

    /// True if it tells a fact of a job that no event of the bus could tell.
    pub(super) fn is_for_masters(&self) -> bool {
        matches!(self, JobCall::SaveMinions { .. } | JobCall::UpdateEndtime { .. })
    }

    /// Asks the job cache; blocks as long as that takes. The answer is msgpack, if there is any;
    /// `memory` bytes of it may be in memory.
    pub(super) fn answer(
        &self,
        jobs: &Jobs,
        authority: Authority,
        memory: usize,
    ) -> Result<Option<Spooled>, JobsError> {
        match self {
            JobCall::SaveLoad { jid, load, minions } => match authority {
                Authority::Master => jobs.save_load(jid, load, minions).map(|()| None),
                // The client's word is worth no more than the bus.
                Authority::Bus => jobs.save_load_of_bus(jid, load, minions).map(|()| None),
            },
            JobCall::SaveMinions { jid, minions, syndic } => {
                jobs.save_minions(jid, minions, syndic.as_deref()).map(|()| None)
            }
            JobCall::UpdateEndtime { jid, time } => jobs.update_endtime(jid, time).map(|()| None),
            JobCall::Ask { question, .. } => jobs.ask_now(question.clone(), memory),
            JobCall::CleanOldJobs => jobs.clean_old_jobs().map(|()| None),
        }
    }
}

/// An answer of the source.
#[derive(Debug)]
pub(super) enum Answer {
    /// Done; with the answer as msgpack, if there is one.
    Done(Option<Spooled>),
    /// Not done, why, and whether the same request may be taken later.
    Refused { why: String, later: bool },
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Answer::Refused { why: refusal.why, later: refusal.later }
    }
}

impl From<JobsError> for Answer {
    fn from(error: JobsError) -> Self {
        let later = !error.is_for_good();
        Answer::Refused { why: capped(&chain(&error), LONGEST_WHY), later }
    }
}

/// The parts of a message to Salt's side; an absent one is left out.
#[derive(Default, Serialize)]
struct Written<'a> {
    v: u64,
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_frame: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    later: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<Bin<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Bin<'a>>,
}

struct Bin<'a>(&'a [u8]);

impl Serialize for Bin<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl Written<'_> {
    fn packed(&self) -> Vec<u8> {
        // Writing to memory cannot fail if no map has an unknown length.
        rmp_serde::to_vec_named(self).unwrap_or_default()
    }
}

/// The daemon's first words on a connection: its version, and the longest message that it takes.
pub(super) fn greeting(max_frame: usize) -> Vec<u8> {
    Written { v: VERSION, max_frame: Some(max_frame as u64), ..Written::default() }.packed()
}

/// Says that the request of this number is not done yet.
pub(super) fn wait(id: u64, v: u64) -> Vec<u8> {
    Written { v, id, wait: Some(true), ..Written::default() }.packed()
}

/// Says that the request of this number failed, and why.
pub(super) fn refused(id: u64, v: u64, why: &str, later: bool) -> Vec<u8> {
    Written { v, id, error: Some(why), later: Some(later), ..Written::default() }.packed()
}

/// Says that the request of this number is done; `value` is its answer, or the end of it.
pub(super) fn done(id: u64, v: u64, value: Option<&[u8]>) -> Vec<u8> {
    Written { v, id, value: value.map(Bin), ..Written::default() }.packed()
}

/// A part of an answer; more follows.
pub(super) fn part(id: u64, v: u64, part: &[u8]) -> Vec<u8> {
    Written { v, id, part: Some(Bin(part)), ..Written::default() }.packed()
}

impl Answer {
    /// The one message that answers the request of this number, with the whole answer in memory.
    pub(super) fn message(self, id: u64, version: u64) -> Vec<u8> {
        match self {
            Answer::Done(None) => done(id, version, None),
            Answer::Done(Some(value)) => match value.into_memory() {
                Ok(value) => done(id, version, Some(&value)),
                Err(error) => refused(id, version, &chain(&error), true),
            },
            Answer::Refused { why, later } => refused(id, version, &why, later),
        }
    }
}

/// Handles a message as the source does, for the fuzz targets. Returns its events that have to be
/// kept, and the answer, as it is once the job cache was asked and the events are safe.
pub fn handled(message: &Bytes, max_frame: usize, jobs: &Jobs) -> (Vec<Bytes>, Bytes) {
    let Request { id, asked } = match Request::parse(message, max_frame, VERSION) {
        Ok(request) => request,
        Err(refusal) => {
            let id = refusal.id;
            return (Vec::new(), Answer::from(refusal).message(id, VERSION).into());
        }
    };
    let (bodies, asked) = match asked {
        Asked::Events { bodies } => (bodies, Ok(None)),
        Asked::Return { body, load } => {
            (vec![body], jobs.save_return_handed_on(&load, Authority::Master, "m").map(|()| None))
        }
        Asked::Job(call) => (Vec::new(), call.answer(jobs, Authority::Master, PART)),
    };
    let answer = match asked {
        Ok(value) => Answer::Done(value),
        Err(error) => Answer::from(error),
    };
    (bodies, answer.message(id, VERSION).into())
}

#[cfg(test)]
mod tests {
    use rmpv::Value;

    use super::*;

    fn packed(pairs: &[(&str, Value)]) -> Bytes {
        let pairs = pairs.iter().map(|(key, value)| (Value::from(*key), value.clone())).collect();
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &Value::Map(pairs)).unwrap();
        bytes.into()
    }

    fn request(op: &str, more: &[(&str, Value)]) -> Result<Request, Refusal> {
        let mut pairs =
            vec![("v", Value::from(VERSION)), ("id", Value::from(7)), ("op", op.into())];
        pairs.extend(more.iter().cloned());
        Request::parse(&packed(&pairs), 1000, VERSION)
    }

    #[test]
    fn events_are_not_copied() {
        let bodies =
            vec![Value::Binary(b"a\n\n\x80".to_vec()), Value::Binary(b"b\n\n\x80".to_vec())];
        let more = [("events", Value::Array(bodies))];
        let request = request("events", &more).unwrap();
        assert_eq!(request.id, 7);
        let Asked::Events { bodies } = request.asked else { panic!("no events") };
        assert_eq!((bodies[0].as_ref(), bodies.len()), (&b"a\n\n\x80"[..], 2));
    }

    #[test]
    fn a_return_becomes_the_event_of_the_bus() {
        let load = packed(&[("jid", "2026".into()), ("id", "web-1".into()), ("return", 1.into())]);
        let more = [("load", Value::Binary(load.to_vec()))];
        let Asked::Return { body, .. } = request("return", &more).unwrap().asked else {
            panic!("no return")
        };
        assert_eq!(body, [b"salt/job/2026/ret/web-1\n\n", load.as_ref()].concat());
    }

    #[test]
    fn what_is_no_request_is_refused_with_a_sentence() {
        let bin = |bytes: &[u8]| Value::Binary(bytes.to_vec());
        let line = packed(&[("jid", "1\n\n2".into()), ("id", "x".into())]);
        for (refused, says) in [
            (request("dance", &[]), "there is no operation `dance`"),
            (request("events", &[]), "events: missing field `events`"),
            (request("events", &[("events", 1.into())]), "events: invalid type: integer `1`"),
            (request("get_load", &[("jid", 1.into())]), "get_load: invalid type: integer `1`"),
            (request("return", &[("load", bin(b"\x80"))]), "return: the load has no `jid`"),
            (request("return", &[("load", bin(&line))]), "return: the load has no `jid`"),
            (request("x", &[("x", bin(&[0; 1000]))]), "is over max_frame (1000 bytes)"),
        ] {
            let refusal = refused.unwrap_err();
            assert_eq!((refusal.id, refusal.later), (7, false), "{says}");
            assert!(refusal.to_string().contains(says), "{refusal}");
        }
        let old = packed(&[("v", 1.into()), ("id", 9.into()), ("what", Value::Nil)]);
        let refusal = Request::parse(&old, 1000, VERSION).unwrap_err();
        assert_eq!((refusal.id, refusal.later), (9, true));
        for hostile in [&b""[..], b"\xc1", b"\xdf\xff\xff\xff\xff", b"hello", &[0x91; 900]] {
            let refusal =
                Request::parse(&Bytes::copy_from_slice(hostile), 1000, VERSION).unwrap_err();
            assert_eq!((refusal.id, refusal.later), (0, false));
        }
        // Nesting, and lengths that are not there.
        let mut deep = b"\x84\xa1v\x02\xa2id\x07\xa2op\xa6events\xa6events".to_vec();
        deep.extend([0x91; 900]);
        let refusal = Request::parse(&Bytes::from(deep.clone()), 10_000, VERSION).unwrap_err();
        assert_eq!(refusal.id, 7);
        deep.truncate(deep.len() - 900);
        deep.extend(b"\xdd\xff\xff\xff\xff");
        Request::parse(&Bytes::from(deep), 10_000, VERSION).unwrap_err();
    }

    #[test]
    fn what_is_not_whole_is_refused_at_the_door() {
        let load = packed(&[("jid", "2026".into()), ("id", "x".into()), ("return", 1.into())]);
        let cut = load.slice(..load.len() - 1);
        let tail = Bytes::from([&load[..], b"\x01"].concat());
        let bin = |bytes: &[u8]| Value::Binary(bytes.to_vec());
        let event = |data: &[u8]| bin(&[b"a/b\n\n", data].concat());
        let save_load = |load: &[u8]| {
            let more =
                [("jid", "2026".into()), ("load", bin(load)), ("minions", Value::Array(vec![]))];
            request("save_load", &more)
        };
        let events = |of| request("events", &[("events", Value::Array(vec![event(&load), of]))]);
        save_load(&load).unwrap();
        events(event(&load)).unwrap();
        for (refused, says) in [
            (request("return", &[("load", bin(&cut))]), "return: the load: it is not one whole"),
            (request("return", &[("load", bin(&tail))]), "it ends at byte"),
            (save_load(&cut), "save_load: the load: it is not one whole msgpack value: cut off"),
            (save_load(&tail), "1 more bytes follow"),
            (save_load(b"\x90"), "save_load: the load: it is no mapping"),
            (events(event(&cut)), "events: the data of `a/b` is not whole: cut off"),
            (events(event(&tail)), "1 more bytes follow"),
            (events(bin(b"a/b")), "events: the 3 byte frame has no empty line"),
        ] {
            let refusal = refused.unwrap_err();
            assert_eq!((refusal.id, refusal.later), (7, false), "{says}");
            assert!(refusal.to_string().contains(says), "{refusal}");
        }
        let whole = packed(&[("v", VERSION.into()), ("id", 7.into()), ("op", "get_jids".into())]);
        Request::parse(&whole, 1000, VERSION).unwrap();
        let message = Bytes::from([&whole[..], b"\xc0"].concat());
        let refusal = Request::parse(&message, 1000, VERSION).unwrap_err();
        assert_eq!((refusal.id, refusal.later), (7, false));
        assert!(refusal.to_string().starts_with("the message is not whole"), "{refusal}");
    }

    #[test]
    fn invariant_6_a_refusal_repeats_little_of_what_was_said() {
        let long = "x".repeat(100_000);
        let longest = "x".repeat(250) + "\u{202e}\n";
        for text in [long.as_str(), &longest.repeat(100)] {
            let event = Value::Binary([text.as_bytes(), b"\n\n\x81"].concat());
            let operation = packed(&[("v", VERSION.into()), ("op", text.into())]);
            let tag = [("v", VERSION.into()), ("op", "events".into())];
            let tag = [&tag[..], &[("events", Value::Array(vec![event]))]].concat();
            let kind = [("v", VERSION.into()), ("op", "get_jids_filter".into())];
            let kind = [&kind[..], &[("count", text.into())]].concat();
            for message in [operation, packed(&tag), packed(&kind)] {
                let refusal = Request::parse(&message, 1 << 20, VERSION).unwrap_err();
                assert!(refusal.why.len() <= LONGEST_WHY + '…'.len_utf8(), "{}", refusal.why.len());
            }
        }
    }

    #[test]
    fn invariant_6_a_list_has_a_bounded_number_of_items() {
        let message = |items: u32| {
            let mut message =
                b"\x84\xa1v\x02\xa2op\xacsave_minions\xa3jid\xa11\xa7minions".to_vec();
            msgpack::write_array_head(items, &mut message);
            message.resize(message.len() + items as usize, 0xa0);
            Bytes::from(message)
        };
        let most = u32::try_from(MOST_ITEMS).unwrap();
        Request::parse(&message(most), 1 << 20, VERSION).unwrap();
        let refusal = Request::parse(&message(most + 1), 1 << 20, VERSION).unwrap_err();
        assert!(refusal.why.contains("over 250000 items"), "{refusal}");
    }

    #[test]
    fn answers() {
        let read = |message: Vec<u8>| {
            rmpv::decode::read_value(&mut message.as_slice()).unwrap().to_string()
        };
        assert_eq!(read(Answer::Done(None).message(5, 1)), r#"{"v": 1, "id": 5}"#);
        let found =
            packed(&[("v", 2.into()), ("id", 5.into()), ("value", Value::Binary(vec![0x80]))]);
        let value = Some(Spooled::Memory(vec![0x80]));
        assert_eq!(Answer::Done(value).message(5, 2), found);
        assert_eq!(read(wait(5, 2)), r#"{"v": 2, "id": 5, "wait": true}"#);
        let refused = Answer::Refused { why: "no".to_owned(), later: true };
        assert_eq!(
            read(refused.message(5, 2)),
            r#"{"v": 2, "id": 5, "error": "no", "later": true}"#
        );
        assert_eq!(read(greeting(9)), r#"{"v": 2, "id": 0, "max_frame": 9}"#);
    }

    #[test]
    fn a_token_is_shown_by_a_greeting_alone() {
        let token = || ("token", Value::Binary(b"secret".to_vec()));
        let hello = packed(&[("v", 2.into()), ("op", "hello".into()), token()]);
        assert_eq!(token_of(&hello), Some(&b"secret"[..]));
        assert_eq!(token_of(&packed(&[("op", "get_jids".into()), token()])), None);
        for none in [packed(&[("op", "hello".into())]), hello.slice(1..), Bytes::new()] {
            assert_eq!(token_of(&none), None);
        }
    }
}
