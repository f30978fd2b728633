//! The jobs of runners and wheel functions, which the master runs itself.
//!
//! The bus tells of one as `salt/run/<jid>/new` and `salt/run/<jid>/ret` (`salt/wheel/…`). Salt
//! hands the data of the second to its job cache just before, in the place of a minion's data:
//! `{id: MASTER, tgt: MASTER, jid: …, return: DATA}`. The data still has the stamp of the first
//! event then, so the stamp is no part of the id of such an event ([`Event::id`]).
//!
//! A minion can return the same under its own name. The return of a minion says `cmd`, like all
//! that minions send to the master, and a return from below a syndic has no `tgt`. The master's own
//! has a `tgt` and no `cmd`. Older packages of ours add `cmd` to everything. Of their returns, only
//! those under the master's known id are taken for its own.
//!
//! Salt fires the return of a runner that does not exist with the bare name (`a.b`, not
//! `runner.a.b`) and the code 254. A minion's return says `id` and `cmd`, and this one neither.

use std::borrow::Cow;

use super::job_id::is_job;
use super::job_return::JobReturn;
use super::step::{STAMP, Step};
use super::{Event, EventKind};
use crate::codec::msgpack::{self, MapWriter};

/// The job of a runner or of a wheel function.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunnerJob<'a> {
    /// Its id.
    pub(crate) jid: &'a str,
    /// The id of the master that ran it.
    pub(crate) master: &'a str,
    /// The data of its event, as msgpack.
    pub(crate) data: &'a [u8],
    function: &'a str,
    /// The time at which the master handed it on, as msgpack.
    stamp: Option<&'a [u8]>,
}

impl<'a> RunnerJob<'a> {
    /// The job whose return this is, as Salt hands it to a job cache; `None` if it is a minion's.
    /// `master_id` is the master's id, as far as it is known.
    pub(crate) fn handed_on(load: &'a [u8], master_id: &str) -> Option<Self> {
        let job = Self::in_load(load)?;
        let is_without_cmd = msgpack::find(load, "cmd").is_none();
        let is_own = is_without_cmd && msgpack::text(load, "tgt") == Some(job.master);
        (is_own || job.master == master_id).then_some(job)
    }

    /// The job that this load returns, if it is one of a runner.
    pub(crate) fn in_load(load: &'a [u8]) -> Option<Self> {
        let job_return = JobReturn::of(load);
        let data = job_return.runner_within().filter(|_| job_return.is_of_runner())?;
        let (jid, master) = (msgpack::text(load, "jid")?, msgpack::text(load, "id")?);
        if !is_job(jid) || msgpack::text(data, "jid").is_some_and(|said| said != jid) {
            return None;
        }
        let function = msgpack::text(data, "fun")?;
        Some(RunnerJob { jid, master, data, function, stamp: msgpack::find(load, STAMP) })
    }

    /// The job that this event tells of, on the bus of that master. An event whose data names
    /// another job than its tag is of none: Salt makes no such event.
    pub(crate) fn of_event(event: &'a Event, master_id: &'a str) -> Option<(Self, Step)> {
        let (step, jid) = Step::in_tag(event.tag())?;
        let data = event.payload();
        let function = msgpack::text(data, "fun")?;
        let is_of_kind = match event.kind() {
            EventKind::Run => {
                let is_bare = !function.starts_with("wheel.");
                function.starts_with("runner.")
                    || is_bare && step == Step::Return && is_of_missing(data)
            }
            _ => function.starts_with("wheel."),
        };
        if !is_of_kind || msgpack::text(data, "jid").is_some_and(|said| said != jid) {
            return None;
        }
        Some((RunnerJob { jid, master: master_id, data, function, stamp: None }, step))
    }

    /// The tag of the event by which the bus tells of its return.
    pub(crate) fn tag(&self) -> String {
        let base = if self.function.starts_with("wheel.") { "wheel" } else { "run" };
        format!("salt/{base}/{}/ret", self.jid)
    }

    /// The event by which the bus tells of its return. It is stamped when it was handed on.
    pub(crate) fn event(&self) -> Event {
        match self.stamp {
            Some(stamp) => Event::new(&self.tag(), &msgpack::with_value(self.data, STAMP, stamp)),
            None => Event::new(&self.tag(), self.data),
        }
    }

    /// The load that Salt hands to a job cache for a return with this data.
    pub(crate) fn load_of_return(&self, data: &[u8]) -> Vec<u8> {
        let mut load = self.head();
        load.value("return", data);
        load.text("fun", &self.function());
        if let Some(user) = msgpack::find(self.data, "user") {
            load.value("user", user);
        }
        load.finished()
    }

    /// The same as far as it is known while the job runs.
    pub(crate) fn load_of_new(&self) -> Vec<u8> {
        let mut load = self.head();
        for key in ["fun", "user", "fun_args"] {
            if let Some(value) = msgpack::find(self.data, key) {
                load.value(key, value);
            }
        }
        load.finished()
    }

    /// The function with its prefix.
    fn function(&self) -> Cow<'a, str> {
        let is_whole = ["runner.", "wheel."].iter().any(|kind| self.function.starts_with(kind));
        if is_whole { self.function.into() } else { format!("runner.{}", self.function).into() }
    }

    fn head(&self) -> MapWriter {
        let mut load = MapWriter::default();
        load.text("id", self.master);
        load.text("tgt", self.master);
        load.text("jid", self.jid);
        load
    }
}

/// Salt's return code for a runner that does not exist.
const NOT_THERE: i64 = 254;

/// Tells if this is what Salt fires of a runner that is not there.
fn is_of_missing(data: &[u8]) -> bool {
    let said = JobReturn::of(data);
    said.success() == Some(false)
        && said.retcode() == Some(NOT_THERE)
        && ["id", "cmd"].into_iter().all(|key| msgpack::find(data, key).is_none())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const JID: &str = "20261121233336123456";

    fn packed(value: &Value) -> Vec<u8> {
        rmp_serde::to_vec(value).unwrap()
    }

    fn data(stamp: &str) -> Value {
        json!({"fun": "runner.test.arg", "jid": JID, "user": "root", "fun_args": ["a"],
            "_stamp": stamp, "return": {"args": ["a"]}, "success": true})
    }

    fn load() -> Value {
        json!({"id": "m_master", "tgt": "m_master", "jid": JID, "return": data("begun"),
            "fun": "runner.test.arg", "user": "root"})
    }

    #[test]
    fn what_salt_hands_on_is_the_event_of_the_bus() {
        let mut stamped = load();
        stamped["_stamp"] = json!("handed on");
        let stamped = packed(&stamped);
        let event = RunnerJob::handed_on(&stamped, "other").unwrap().event();
        assert_eq!(event.tag(), format!("salt/run/{JID}/ret"));
        assert_eq!(event.payload(), packed(&data("handed on")));
        let of_bus = Event::new(&format!("salt/run/{JID}/ret"), &packed(&data("fired")));
        assert_eq!(event.id(), of_bus.id());
        let (job, step) = RunnerJob::of_event(&of_bus, "m_master").unwrap();
        assert_eq!(step, Step::Return);
        let mut expected = load();
        expected["return"] = data("fired");
        assert_eq!(job.load_of_return(job.data), packed(&expected));
        // The event of its beginning is another one at another time.
        let new = |stamp| Event::new(&format!("salt/run/{JID}/new"), &packed(&data(stamp)));
        assert_ne!(new("a").id(), new("b").id());
        let mut other = data("fired");
        other["return"] = json!("other");
        let other = Event::new(&format!("salt/run/{JID}/ret"), &packed(&other));
        assert_ne!(other.id(), of_bus.id());
    }

    #[test]
    fn a_minion_that_returns_the_same_is_no_master() {
        let with = |changes: Value| {
            let mut load = load();
            for (key, value) in changes.as_object().unwrap() {
                load[key] = value.clone();
            }
            load.as_object_mut().unwrap().retain(|_, value| !value.is_null());
            packed(&load)
        };
        let is_runner = |load: &[u8]| RunnerJob::handed_on(load, "known").is_some();
        assert!(is_runner(&with(json!({}))));
        assert!(is_runner(&with(json!({"fun": null}))));
        assert!(is_runner(&with(json!({"id": "known", "cmd": "_return"}))));
        assert!(!is_runner(&with(json!({"cmd": "_return"}))), "over the master");
        assert!(!is_runner(&with(json!({"tgt": null}))), "below a syndic");
        assert!(!is_runner(&with(json!({"fun": "test.echo"}))));
        assert!(!is_runner(&with(json!({"jid": "20261121233336123457"}))));
        assert!(!is_runner(&with(json!({"return": {"fun": "test.ping"}}))));
        for jid in ["req", "nocache", ""] {
            let mut inner = data("x");
            inner["jid"] = json!(jid);
            assert!(!is_runner(&with(json!({"jid": jid, "return": inner}))), "{jid}");
        }
    }

    #[test]
    fn a_runner_that_is_not_there_has_failed() {
        let told = |step: &str, changes: Value| {
            let mut data = json!({"success": false, "return": "'a.b' is not available.",
                "retcode": 254, "fun": "a.b", "fun_args": [], "jid": JID});
            data.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let event = Event::new(&format!("salt/run/{JID}/{step}"), &packed(&data));
            let (job, _) = RunnerJob::of_event(&event, "m")?;
            Some((job.tag(), job.load_of_return(job.data)))
        };
        let (tag, load) = told("ret", json!({})).unwrap();
        assert_eq!(tag, format!("salt/run/{JID}/ret"));
        assert_eq!(msgpack::text(&load, "fun"), Some("runner.a.b"));
        let said = JobReturn::of(&load);
        assert!(said.is_of_runner());
        assert_eq!(said.outcome().name(), "failed");
        assert_eq!(told("new", json!({})), None);
        for changes in [
            json!({"id": "web-1"}),
            json!({"cmd": "_return"}),
            json!({"retcode": 0}),
            json!({"success": true}),
            json!({"fun": "wheel.a.b"}),
        ] {
            assert_eq!(told("ret", changes.clone()), None, "{changes}");
        }
    }

    #[test]
    fn only_the_events_of_a_job_tell_of_it() {
        let told = |tag: &str, fun: &str| {
            let data = packed(&json!({"fun": fun, "jid": JID}));
            let event = Event::new(&tag.replace("JID", JID), &data);
            RunnerJob::of_event(&event, "m").map(|(_, step)| step)
        };
        assert_eq!(told("salt/run/JID/new", "runner.a.b"), Some(Step::New));
        assert_eq!(told("salt/run/JID/ret", "runner.a.b"), Some(Step::Return));
        assert_eq!(told("salt/wheel/JID/ret", "wheel.a.b"), Some(Step::Return));
        for (tag, fun) in [
            ("salt/run/JID/args", "runner.a.b"),
            ("salt/run/JID/progress/ret", "runner.a.b"),
            ("salt/run/JID/ret/more", "runner.a.b"),
            ("salt/run/JID/ret", "wheel.a.b"),
            ("salt/wheel/JID/ret", "runner.a.b"),
            ("salt/run/JID/ret", "test.ping"),
            ("salt/run/20200101000000000000/ret", "runner.a.b"),
            ("salt/job/JID/ret/m", "runner.a.b"),
            ("salt/run/req/ret", "runner.a.b"),
            ("salt/run", "runner.a.b"),
        ] {
            assert_eq!(told(tag, fun), None, "{tag} {fun}");
        }
    }
}
