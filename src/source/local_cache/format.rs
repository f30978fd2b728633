//! A Salt master's own job cache, `local_cache`: the contents of its directories, as events.
//!
//! A job is the directory `<h[0:2]>/<h[2:]>` of `<cachedir>/jobs`, where `h` is a digest of its id,
//! the same from Salt 3006 to 3008:
//!
//! | file | what |
//! |---|---|
//! | `jid` | the id, as text |
//! | `.load.p` | what was published, or of a job that a minion began by itself, its return |
//! | `.minions.p`, `.minions.<syndic>.p` | the minions that it was meant for |
//! | `<minion>/return.p` | a map of `return`, `retcode`, `success`; before 2016.3 the return |
//! | `<minion>/out.p` | the outputter that the minion asked for |
//!
//! All but `jid` are msgpack. From them come the events that the master put onto its bus then, as
//! far as the files tell. `_stamp` is the time in the job's id, or of the file. The events say
//! `_backfilled: true`. The load of a runner is what Salt hands to a job cache, and becomes the
//! event `salt/run/<jid>/ret` (`salt/wheel/…`).
//!
//! An id may be any text (`salt '*' test.ping --jid deploy-42`). If an id tells no time, the name
//! of its directories has to be its digest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use jiff::Timestamp;

use ring::digest;

use crate::codec::hex::hex;
use crate::codec::msgpack::{self, MapWriter};
use crate::event::runner::RunnerJob;
use crate::event::{is_jid, is_job, return_tag};
use crate::files::regular_file::{self, Links};
use crate::jobs::{Jobs, JobsError, began};

/// The key that marks an event as one that comes from the master's files.
pub(crate) const MARK: &str = "_backfilled";

/// `true` as msgpack.
const TRUE: &[u8] = b"\xc3";

/// Files larger than this are no part of a job cache.
const LARGEST: u64 = 512 << 20;

/// Longer than a file with a job's id.
const LONGEST_JID: u64 = 1 << 10;

/// The jobs to look at, by time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Only jobs of which something was written then or later.
    pub(crate) from: SystemTime,
    /// Only files that were written before.
    pub(crate) until: SystemTime,
}

/// A walk over the jobs of a cache, in the order in which they began.
pub(crate) struct Walk {
    jobs: std::vec::IntoIter<Found>,
    window: Window,
    known: Jobs,
    /// Files that could not be read or were damaged.
    pub(crate) unreadable: u64,
}

struct Found {
    jid: String,
    path: PathBuf,
    began: Timestamp,
}

impl Walk {
    /// Looks for jobs. Jobs that `known` has already are left out, if it is on.
    pub(crate) fn new(cache: &Path, window: Window, known: Jobs) -> io::Result<Self> {
        let (mut jobs, mut unreadable) = (Vec::new(), 0);
        for folder in fs::read_dir(cache)? {
            let Ok(inner) = fs::read_dir(folder?.path()) else { continue };
            for job in inner.flatten() {
                let path = job.path();
                // Each return makes a directory in that of the job.
                let Some(written) = modified(&path).filter(|time| *time >= window.from) else {
                    continue;
                };
                match regular_file::read_text(&path.join("jid"), LONGEST_JID) {
                    Ok(jid) if is_id(jid.trim(), &path) => {
                        let jid = jid.trim().to_owned();
                        let began = began(&jid, written);
                        jobs.push(Found { jid, path, began });
                    }
                    // The master is just making or removing it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Ok(_) | Err(_) => unreadable += 1,
                }
            }
        }
        jobs.sort_by(|a, b| (a.began, &a.jid).cmp(&(b.began, &b.jid)));
        Ok(Walk { jobs: jobs.into_iter(), window, known, unreadable })
    }

    /// The frames of the next jobs, some hundred of them or a few megabytes; `None` when there are
    /// no more jobs.
    pub(crate) fn next_frames(&mut self) -> Result<Option<Vec<Bytes>>, JobsError> {
        let (mut frames, mut bytes) = (Vec::new(), 0);
        while frames.len() < 500 && bytes < 4 << 20 {
            let Some(job) = self.jobs.next() else {
                return Ok((!frames.is_empty()).then_some(frames));
            };
            for frame in self.frames_of(&job)? {
                bytes += frame.len();
                frames.push(frame);
            }
        }
        Ok(Some(frames))
    }

    fn frames_of(&mut self, job: &Found) -> Result<Vec<Bytes>, JobsError> {
        let minions = returned(&job.path);
        let (lacks_load, lacking) = match self.known.lacking(&job.jid, minions) {
            Ok(lacking) => lacking,
            Err(JobsError::Off) => (true, returned(&job.path)),
            Err(error) => return Err(error),
        };
        if !lacks_load && lacking.is_empty() {
            return Ok(Vec::new());
        }
        let Some((load, written)) = self.read(&job.path.join(".load.p")) else {
            return Ok(Vec::new());
        };
        if let Some(runner) = RunnerJob::handed_on(&load, "") {
            let is_lacking = match self.known.lacks_runner(&job.jid) {
                Err(JobsError::Off) => true,
                known => known?,
            };
            let is_wanted = is_lacking && written < self.window.until;
            return Ok(is_wanted.then(|| runner_frame(&runner, written)).into_iter().collect());
        }
        let is_return = msgpack::find(&load, "return").is_some();
        if is_return && msgpack::find(&load, "cmd").is_none() {
            return Ok(Vec::new());
        }
        let mut frames = Vec::new();
        if lacks_load && !is_return && written < self.window.until {
            let names = self.expected(&job.path);
            frames.push(new_frame(job, &load, &names));
        }
        for minion in lacking {
            // It would end the event's tag, and the text behind it would be taken for data.
            if minion.contains('\n') {
                self.unreadable += 1;
                continue;
            }
            let folder = job.path.join(&minion);
            // Perhaps no return was complete when the directory was listed.
            if !folder.join("return.p").exists() {
                continue;
            }
            let Some((ret, written)) = self.read(&folder.join("return.p")) else { continue };
            if written >= self.window.until {
                continue;
            }
            let out = folder.join("out.p");
            let out = out.exists().then(|| self.read(&out)).flatten().map(|(out, _)| out);
            frames.push(return_frame(&job.jid, &minion, &load, &ret, out.as_deref(), written));
        }
        Ok(frames)
    }

    /// The minions that the job was meant for.
    fn expected(&mut self, job: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(job) else { return Vec::new() };
        let mut names = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_list = name
                .to_str()
                .is_some_and(|name| name.starts_with(".minions.") && name.ends_with('p'));
            if let Some((list, _)) = is_list.then(|| self.read(&entry.path())).flatten() {
                let list = msgpack::items(&list).filter_map(|item| msgpack::scalar(item)?.text());
                names.extend(list.map(str::to_owned));
            }
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// A msgpack file and when it was written; `None`, and counted, if it is not one.
    fn read(&mut self, path: &Path) -> Option<(Vec<u8>, SystemTime)> {
        let read = || {
            let written = fs::metadata(path).ok()?.modified().ok()?;
            let bytes = regular_file::read(path, Links::Follow, LARGEST).ok()?;
            msgpack::whole(&bytes).ok()?;
            Some((bytes, written))
        };
        let file = read();
        if file.is_none() {
            self.unreadable += 1;
        }
        file
    }
}

/// The minions that have returned.
fn returned(job: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(job) else { return Vec::new() };
    let folders = entries.flatten().filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut names: Vec<_> =
        folders.filter_map(|folder| folder.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// Tells if this is the id of the job whose directory this is.
fn is_id(jid: &str, path: &Path) -> bool {
    if is_jid(jid) {
        return true;
    }
    // It becomes a part of a tag.
    let is_part = jid.chars().all(|c| c != '/' && !c.is_control());
    let mut names = path.iter().rev().filter_map(|name| name.to_str());
    let (Some(rest), Some(start)) = (names.next(), names.next()) else { return false };
    let name = format!("{start}{rest}");
    let digests =
        [&digest::SHA1_FOR_LEGACY_USE_ONLY, &digest::SHA256, &digest::SHA384, &digest::SHA512];
    let is_digest = |algorithm| hex(digest::digest(algorithm, jid.as_bytes()).as_ref()) == name;
    is_part && is_job(jid) && digests.into_iter().any(is_digest)
}

/// The time at which a job began, by its id or else by the time when its directory was written.
fn began(jid: &str, written: SystemTime) -> Timestamp {
    let written = Timestamp::try_from(written).unwrap_or_default();
    Timestamp::from_microsecond(began::began(jid, written.as_microsecond())).unwrap_or(written)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok().filter(fs::Metadata::is_dir)?.modified().ok()
}

/// `salt/job/<jid>/new`, with the keys that the master gives it.
fn new_frame(job: &Found, load: &[u8], minions: &[String]) -> Bytes {
    let mut data = MapWriter::default();
    for key in ["jid", "tgt_type", "tgt", "user", "fun", "arg"] {
        if let Some(value) = msgpack::find(load, key) {
            data.value(key, value);
        }
    }
    data.texts("minions", minions);
    data.texts("missing", &[]);
    data.text("_stamp", &stamp(job.began));
    data.bool(MARK, true);
    frame(&format!("salt/job/{}/new", job.jid), &data.finished())
}

/// `salt/job/<jid>/ret/<minion>`, with the keys that the master gives it.
fn return_frame(
    jid: &str,
    minion: &str,
    load: &[u8],
    ret: &[u8],
    out: Option<&[u8]>,
    written: SystemTime,
) -> Bytes {
    let mut data = MapWriter::default();
    data.text("cmd", "_return");
    data.text("id", minion);
    data.text("jid", jid);
    if msgpack::find(ret, "return").is_some() {
        for key in ["return", "retcode", "success"] {
            if let Some(value) = msgpack::find(ret, key) {
                data.value(key, value);
            }
        }
    } else {
        data.value("return", ret);
    }
    if let Some(out) = out {
        data.value("out", out);
    }
    if let Some(fun) = msgpack::find(load, "fun") {
        data.value("fun", fun);
    }
    if let Some(arg) = msgpack::find(load, "fun_args").or_else(|| msgpack::find(load, "arg")) {
        data.value("fun_args", arg);
    }
    data.text("_stamp", &stamp(Timestamp::try_from(written).unwrap_or_default()));
    data.bool(MARK, true);
    frame(&return_tag(jid, minion), &data.finished())
}

/// `salt/run/<jid>/ret`, or the same of a wheel function.
fn runner_frame(runner: &RunnerJob<'_>, written: SystemTime) -> Bytes {
    let written = Timestamp::try_from(written).unwrap_or_default();
    let mut text = Vec::new();
    msgpack::write_str(&stamp(written), &mut text);
    let data = msgpack::with_value(runner.data, "_stamp", &text);
    let data = msgpack::with_value(&data, MARK, TRUE);
    frame(&runner.tag(), &data)
}

fn frame(tag: &str, data: &[u8]) -> Bytes {
    Bytes::from([tag.as_bytes(), b"\n\n", data].concat())
}

/// A time as the master stamps its events.
fn stamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::event::batch::Entry;
    use crate::event::{Authority, Event};

    pub(crate) const JID: &str = "20261121233336123456";

    fn write(path: &Path, value: &Value) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, rmp_serde::to_vec(value).unwrap()).unwrap();
    }

    /// A cache with one job that `web-1` and `web-2` have returned.
    pub(crate) fn cache() -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        let job = cache.path().join("ab/cdef");
        let load = json!({
            "cmd": "publish", "fun": "test.echo", "arg": ["x"], "tgt": "*", "tgt_type": "glob",
            "jid": JID, "user": "root", "ret": "", "kwargs": {},
        });
        write(&job.join(".load.p"), &load);
        write(&job.join(".minions.p"), &json!(["web-2", "web-1"]));
        write(&job.join(".minions.lower.p"), &json!(["db-1", "web-1"]));
        let ret = json!({"return": "x", "retcode": 0, "success": true});
        write(&job.join("web-1/return.p"), &ret);
        write(&job.join("web-1/out.p"), &json!("nested"));
        // Salt before 2016.3 wrote it like this.
        write(&job.join("web-2/return.p"), &json!("x"));
        fs::write(job.join("jid"), JID).unwrap();
        cache
    }

    fn always() -> Window {
        let until = SystemTime::now() + Duration::from_secs(60);
        Window { from: SystemTime::UNIX_EPOCH, until }
    }

    fn walked(cache: &Path, window: Window, known: &Jobs) -> (Vec<(String, Value)>, u64) {
        let mut walk = Walk::new(cache, window, known.clone()).unwrap();
        let mut events = Vec::new();
        while let Some(frames) = walk.next_frames().unwrap() {
            for frame in frames {
                let event = Event::parse(frame).unwrap();
                let mut data: Value = serde_json::from_slice(event.json(&mut Vec::new())).unwrap();
                assert_eq!(data[MARK], true);
                let stamp = data["_stamp"].take();
                assert_eq!(stamp.as_str().unwrap().len(), "2026-11-21T23:33:36.123456".len());
                data.as_object_mut().unwrap().retain(|key, _| !key.starts_with('_'));
                events.push((event.tag().to_owned(), data));
            }
        }
        (events, walk.unreadable)
    }

    fn off() -> Jobs {
        Jobs::new(Path::new("/nowhere"))
    }

    #[test]
    fn a_job_becomes_the_events_that_it_was() {
        let cache = cache();
        let (events, unreadable) = walked(cache.path(), always(), &off());
        let new = json!({
            "jid": JID, "tgt_type": "glob", "tgt": "*", "user": "root", "fun": "test.echo",
            "arg": ["x"], "minions": ["db-1", "web-1", "web-2"], "missing": [],
        });
        let ret = json!({
            "cmd": "_return", "id": "web-1", "jid": JID, "return": "x", "retcode": 0,
            "success": true, "out": "nested", "fun": "test.echo", "fun_args": ["x"],
        });
        let old = json!({
            "cmd": "_return", "id": "web-2", "jid": JID, "return": "x", "fun": "test.echo",
            "fun_args": ["x"],
        });
        let expected = [
            (format!("salt/job/{JID}/new"), new),
            (format!("salt/job/{JID}/ret/web-1"), ret),
            (format!("salt/job/{JID}/ret/web-2"), old),
        ];
        assert_eq!(events, expected);
        assert_eq!(unreadable, 0);
    }

    #[test]
    fn what_is_known_is_left_out() {
        let (cache, folder) = (cache(), tempfile::tempdir().unwrap());
        let jobs = Jobs::new(folder.path());
        jobs.keep(Some(Duration::from_secs(3600)));
        assert_eq!(walked(cache.path(), always(), &jobs).0.len(), 3);
        let ret = json!({"jid": JID, "id": "web-1", "return": "x"});
        jobs.save_return(&rmp_serde::to_vec(&ret).unwrap(), Authority::Master).unwrap();
        let (events, _) = walked(cache.path(), always(), &jobs);
        let tags: Vec<_> = events.iter().map(|(tag, _)| tag.as_str()).collect();
        assert_eq!(tags, [format!("salt/job/{JID}/new"), format!("salt/job/{JID}/ret/web-2")]);
        let mut frames = Walk::new(cache.path(), always(), jobs.clone()).unwrap();
        let frames = frames.next_frames().unwrap().unwrap();
        let events: Vec<_> = frames.into_iter().map(|f| Event::parse(f).unwrap()).collect();
        jobs.record(events.iter().map(|event| Entry::of(event, Authority::Bus))).unwrap();
        assert_eq!(walked(cache.path(), always(), &jobs).0, []);
    }

    #[test]
    fn only_a_window_is_looked_at() {
        let cache = cache();
        let (past, future) = (
            SystemTime::now() - Duration::from_secs(60),
            SystemTime::now() + Duration::from_secs(60),
        );
        let from_later = Window { from: future, until: future };
        assert_eq!(walked(cache.path(), from_later, &off()).0, []);
        let until_before = Window { from: past, until: past };
        assert_eq!(walked(cache.path(), until_before, &off()).0, []);
    }

    #[test]
    fn a_return_that_is_not_whole_or_of_a_minion_that_is_no_line_is_passed_over() {
        let cache = cache();
        let job = cache.path().join("ab/cdef");
        let ret = rmp_serde::to_vec(&json!({"return": "x"})).unwrap();
        write(&job.join("web-3\n\n\u{1}/return.p"), &json!({"return": "x"}));
        fs::write(job.join("web-1/return.p"), &ret[..ret.len() - 1]).unwrap();
        fs::write(job.join("web-2/return.p"), [&ret[..], b"\xc0"].concat()).unwrap();
        let (events, unreadable) = walked(cache.path(), always(), &off());
        let tags: Vec<_> = events.iter().map(|(tag, _)| tag.as_str()).collect();
        assert_eq!((tags, unreadable), (vec![format!("salt/job/{JID}/new").as_str()], 3));
    }

    #[test]
    fn a_runner_becomes_the_event_of_its_return() {
        let cache = tempfile::tempdir().unwrap();
        let jid = "20261121233337123456";
        let runner = |folder: &str, fun: &str| {
            let job = cache.path().join(folder);
            let data = json!({"fun": fun, "jid": jid, "user": "root", "fun_args": [],
                "_stamp": "then", "return": "x", "success": true});
            let load = json!({"id": "m_master", "tgt": "m_master", "jid": jid, "return": data,
                "fun": fun, "user": "root"});
            write(&job.join(".load.p"), &load);
            write(&job.join(".minions.p"), &json!([]));
            write(&job.join("m_master/return.p"), &json!({"return": data}));
            fs::write(job.join("jid"), jid).unwrap();
        };
        runner("12/34", "runner.test.arg");
        let data = |fun: &str| {
            json!({"fun": fun, "jid": jid, "user": "root", "fun_args": [], "return": "x",
                "success": true})
        };
        let expected = (format!("salt/run/{jid}/ret"), data("runner.test.arg"));
        assert_eq!(walked(cache.path(), always(), &off()), (vec![expected], 0));
        // It is known under any name of the master.
        let folder = tempfile::tempdir().unwrap();
        let jobs = Jobs::new(folder.path());
        jobs.keep(Some(Duration::from_secs(3600)));
        let packed = rmp_serde::to_vec(&data("runner.test.arg")).unwrap();
        let event = Event::new(&format!("salt/run/{jid}/ret"), &packed);
        jobs.record([Entry::of(&event, Authority::Bus)].into_iter()).unwrap();
        assert_eq!(walked(cache.path(), always(), &jobs).0, []);
        runner("12/34", "wheel.key.list_all");
        let expected = (format!("salt/wheel/{jid}/ret"), data("wheel.key.list_all"));
        assert_eq!(walked(cache.path(), always(), &off()), (vec![expected], 0));
    }

    #[test]
    fn a_forged_runner_keeps_no_job_from_being_backfilled() {
        let (cache, folder) = (cache(), tempfile::tempdir().unwrap());
        let jobs = Jobs::new(folder.path());
        jobs.keep(Some(Duration::from_secs(3600)));
        let forged = json!({"fun": "runner.a.b", "jid": JID, "return": "x", "success": true});
        let forged = rmp_serde::to_vec(&forged).unwrap();
        let event = Event::new(&format!("salt/run/{JID}/ret"), &forged);
        jobs.record([Entry::of(&event, Authority::Bus)].into_iter()).unwrap();
        assert_eq!(walked(cache.path(), always(), &jobs).0.len(), 3);
    }

    #[test]
    fn a_job_is_found_under_an_id_that_tells_no_time() {
        let cache = tempfile::tempdir().unwrap();
        let jid = "deploy-42";
        // Its SHA-256.
        let hash = "8f3e39850c0f5251fc6d36845f3d69a4cb12963e96e9ee95c935b33b68d893f6";
        let job = cache.path().join(&hash[..2]).join(&hash[2..]);
        write(&job.join(".load.p"), &json!({"cmd": "publish", "fun": "test.ping", "jid": jid}));
        write(&job.join("web-1/return.p"), &json!({"return": true}));
        fs::write(job.join("jid"), jid).unwrap();
        // In a directory of another name this is no job.
        let other = cache.path().join("ab/cdef");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("jid"), "deploy-43").unwrap();
        let (events, unreadable) = walked(cache.path(), always(), &off());
        let tags: Vec<_> = events.iter().map(|(tag, _)| tag.as_str()).collect();
        assert_eq!(tags, ["salt/job/deploy-42/new", "salt/job/deploy-42/ret/web-1"]);
        assert_eq!(unreadable, 1);
    }

    #[test]
    fn what_is_no_job_is_passed_over() {
        let cache = cache();
        let runner = cache.path().join("12/34");
        let load = json!({"id": "m_master", "tgt": "m_master", "jid": "1", "return": {}});
        write(&runner.join(".load.p"), &load);
        write(&runner.join("m_master/return.p"), &json!({"return": {}}));
        fs::write(runner.join("jid"), "20261121233337123456").unwrap();
        let torn = cache.path().join("56/78");
        fs::create_dir_all(torn.join("web-1")).unwrap();
        fs::write(torn.join("jid"), "20261121233338123456").unwrap();
        fs::write(torn.join(".load.p"), [0xdf, 0xff, 0xff, 0xff, 0xff]).unwrap();
        fs::create_dir_all(cache.path().join("90/new")).unwrap();
        fs::write(cache.path().join("file"), "").unwrap();
        let (events, unreadable) = walked(cache.path(), always(), &off());
        assert_eq!(events.len(), 3);
        assert_eq!(unreadable, 1);
    }
}
