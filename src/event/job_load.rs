//! `job_load`: facts of a job that only Salt's calls of a job cache tell, as events of our own.
//!
//! The bus does not carry the whole publication (`kwargs`, `ret`, `to`), nor the minions that a
//! syndic names later, nor the time when a job ended. A master that hands these to its job cache
//! hands them on here. They go the way of all events to the sinks that keep jobs, and to no other.
//!
//! The tag is `saltern/job/<jid>/` with `load`, `minions` or `end_time` behind it. The data of a
//! load is the publication, with the minions that it is meant for under `minions`. An event of the
//! bus may have such a tag too: it is believed only if the master vouches for it, and else is an
//! event like any other.

use std::borrow::Cow;

use super::batch::Entry;
use super::chunk::Chunk;
use super::{Authority, Event, EventKind, JOB_LOAD_TAGS, is_job};
use crate::codec::msgpack::{self, MapWriter};

/// The key of the minions in the data.
const MINIONS: &str = "minions";

/// The key of the end of a job in the data.
const END_TIME: &str = "end_time";

/// A master's call of its job cache about a job.
#[derive(Debug)]
pub(crate) struct JobLoad<'a> {
    /// The job.
    pub(crate) jid: &'a str,
    /// The load that was published, as msgpack.
    pub(crate) load: Option<Cow<'a, [u8]>>,
    /// The load is the return of a job that nobody published (`salt-call`), as Salt stores it.
    pub(crate) is_return: bool,
    /// The minions that it is meant for, as msgpack.
    pub(crate) minions: Option<&'a [u8]>,
    /// The time when it ended.
    pub(crate) end_time: Option<&'a str>,
}

impl<'a> JobLoad<'a> {
    /// Tells if this entry has facts of a job, and the master vouches for it.
    pub(crate) fn is(entry: &Entry<'_>) -> bool {
        job_and_part(entry).is_some()
    }

    /// The facts of this entry, if the master vouches for it.
    pub(crate) fn of(entry: &Entry<'a>) -> Option<Self> {
        let (jid, part) = job_and_part(entry)?;
        let data = entry.event.payload();
        // Redaction leaves no map of a load that would become too long.
        let is_load = part == "load" && msgpack::raw_pairs(data).next().is_some();
        Some(JobLoad {
            jid,
            is_return: is_load && msgpack::find(data, "return").is_some(),
            load: is_load.then(|| Cow::Owned(msgpack::without(data, &[MINIONS]))),
            minions: msgpack::find(data, MINIONS).filter(|_| part != END_TIME),
            end_time: msgpack::text(data, END_TIME).filter(|_| part == END_TIME),
        })
    }
}

/// The job and the part of it that this entry is about, if the master vouches for it.
fn job_and_part<'a>(entry: &Entry<'a>) -> Option<(&'a str, &'a str)> {
    let (event, is_of_master) = (entry.event, entry.authority == Authority::Master);
    if event.kind() != EventKind::JobLoad || !is_of_master {
        return None;
    }
    event.tag().strip_prefix(JOB_LOAD_TAGS)?.split_once('/')
}

/// The event of a load that was published for these minions, or of a return in its place.
pub(crate) fn of_load(jid: &str, load: &[u8], minions: &[String]) -> Option<Event> {
    let tag = tag(jid, "load")?;
    let mut list = MapWriter::default();
    list.texts(MINIONS, minions);
    let list = list.finished();
    let minions = msgpack::find(&list, MINIONS)?;
    Some(Event::new(&tag, &msgpack::with_value(load, MINIONS, minions)))
}

/// The event of minions that a job is meant for too.
pub(crate) fn of_minions(jid: &str, minions: &[String]) -> Option<Event> {
    let mut data = MapWriter::default();
    data.text("jid", jid);
    data.texts(MINIONS, minions);
    Some(Event::new(&tag(jid, MINIONS)?, &data.finished()))
}

/// The event of the end of a job.
pub(crate) fn of_end_time(jid: &str, time: &str) -> Option<Event> {
    let mut data = MapWriter::default();
    data.text("jid", jid);
    data.text(END_TIME, time);
    Some(Event::new(&tag(jid, END_TIME)?, &data.finished()))
}

/// The tag of an event about a job; `None` for an id that no tag can hold.
fn tag(jid: &str, part: &str) -> Option<String> {
    (is_job(jid) && !jid.contains(['/', '\n'])).then(|| format!("{JOB_LOAD_TAGS}{jid}/{part}"))
}

/// Tells if there are events here, and all are a master's own calls about jobs.
pub(crate) fn is_of_job_loads(chunk: &Chunk) -> bool {
    let mut kinds = chunk.events.iter().map(Event::kind);
    chunk.authority == Authority::Master
        && !chunk.events.is_empty()
        && kinds.all(|kind| kind == EventKind::JobLoad)
}

/// The event by which the bus tells of the same job: filters and redaction treat both alike.
pub(crate) fn announced(event: &Event) -> Option<Event> {
    let (jid, _) = event.tag().strip_prefix(JOB_LOAD_TAGS)?.split_once('/')?;
    Some(Event::new(&format!("salt/job/{jid}/new"), event.payload()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::event::Origin;

    const JID: &str = "20261121233336123456";

    fn packed(value: &Value) -> Vec<u8> {
        rmp_serde::to_vec(value).unwrap()
    }

    #[test]
    fn a_load_comes_back_as_it_was_published() {
        let load = packed(&json!({"fun": "test.ping", "jid": JID, "kwargs": {"a": 1}, "ret": ""}));
        let event = of_load(JID, &load, &["web-1".to_owned()]).unwrap();
        assert_eq!(event.kind(), EventKind::JobLoad);
        let said = Event::parse(event.frame().clone()).unwrap();
        let said = JobLoad::of(&Entry::of(&said, Authority::Master)).map(|said| {
            let minions = msgpack::items(said.minions.unwrap()).filter_map(msgpack::scalar);
            let minions: Vec<_> = minions.map(|item| item.text().unwrap().to_owned()).collect();
            (said.jid.to_owned(), said.load.unwrap().into_owned(), minions, said.end_time.is_none())
        });
        assert_eq!(said, Some((JID.to_owned(), load, vec!["web-1".to_owned()], true)));
    }

    #[test]
    fn minions_and_the_end_come_alone() {
        let minions = of_minions(JID, &["a".to_owned()]).unwrap();
        let end = of_end_time(JID, "then").unwrap();
        let said = JobLoad::of(&Entry::of(&minions, Authority::Master)).unwrap();
        assert!(said.load.is_none() && said.minions.is_some() && said.end_time.is_none());
        let said = JobLoad::of(&Entry::of(&end, Authority::Master)).unwrap();
        assert!(said.load.is_none() && said.minions.is_none());
        assert_eq!((said.jid, said.end_time), (JID, Some("then")));
    }

    #[test]
    fn a_return_may_stand_for_a_load() {
        let ret = packed(&json!({"jid": JID, "fun": "test.ping", "return": 1}));
        for (load, is_return) in [(&ret[..], true), (b"\x80", false)] {
            let event = of_load(JID, load, &[]).unwrap();
            let said = JobLoad::of(&Entry::of(&event, Authority::Master)).unwrap();
            assert_eq!(said.is_return, is_return);
        }
    }

    #[test]
    fn what_is_no_load_makes_no_event() {
        for jid in ["", "req", "nocache", "a/b", "a\n\nb"] {
            assert!(of_load(jid, b"\x80", &[]).is_none(), "{jid}");
        }
    }

    #[test]
    fn invariant_7_the_bus_says_no_load() {
        let event = of_load(JID, b"\x80", &[]).unwrap();
        assert!(JobLoad::of(&Entry::of(&event, Authority::Bus)).is_none());
        assert!(!JobLoad::is(&Entry::of(&event, Authority::Bus)));
        assert!(JobLoad::is(&Entry::of(&event, Authority::Master)));
    }

    #[test]
    fn a_chunk_is_of_job_loads_if_it_has_nothing_else() {
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "master-1".into() });
        let is_of_job_loads = |authority, tags: &[&str]| {
            let events = tags.iter().map(|tag| Event::new(tag, b"\x80")).collect();
            is_of_job_loads(&Chunk::new(Arc::clone(&origin), 1, events).vouched_for_by(authority))
        };
        let load = "saltern/job/20261121233336123456/load";
        assert!(is_of_job_loads(Authority::Master, &[load, load]));
        assert!(!is_of_job_loads(Authority::Master, &[load, "salt/auth"]));
        assert!(!is_of_job_loads(Authority::Bus, &[load]));
        assert!(!is_of_job_loads(Authority::Master, &[]));
    }
}
