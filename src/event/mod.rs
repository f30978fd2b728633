//! An event as it came off the bus, and the chunks that events travel in.
//!
//! Nothing is decoded before a reader asks. An [`Event`] is the frame's bytes (tag, two line feeds,
//! msgpack payload), the end of the tag, and the kind that the tag names. Its line of JSON is made
//! by the first sink that wants it and shared by the others.
//!
//! Events travel in chunks ([`crate::event::chunk`]).

use std::sync::OnceLock;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec::json::{self, JsonLosses};
use crate::codec::msgpack;
use job_return::JobReturn;
use step::{STAMP, Step};

pub(crate) mod as_fired;
pub mod batch;
pub mod chunk;
pub(crate) mod escape;
pub mod filter;
mod job_id;
pub(crate) mod job_load;
pub mod job_return;
pub mod line;
pub(crate) mod long_json;
pub mod redact;
pub(crate) mod runner;
pub(crate) mod standing;
pub(crate) mod step;
pub(crate) mod template;
pub(crate) mod trimmed;
pub(crate) mod url_template;

pub(crate) use job_id::{is_jid, is_job};

/// The reason why a frame is not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotAnEvent {
    /// There is no `\n\n` in the frame.
    #[error("the {0} byte frame has no empty line between tag and payload")]
    NoTag(usize),
}

/// The authority that vouches for an event, from less to more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(i64)]
pub enum Authority {
    /// The bus. Every minion can fire anything onto it, under any tag.
    #[default]
    Bus = 0,
    /// The master. It has checked from which minion a return comes.
    Master = 1,
}

impl Authority {
    /// The authority that a file keeps as this number. An unknown number is worth no more than the
    /// bus.
    pub(crate) fn of_number(number: i64) -> Self {
        if number == Authority::Master as i64 { Authority::Master } else { Authority::Bus }
    }
}

/// The origin of events.
#[derive(Debug, PartialEq, Eq)]
pub struct Origin {
    /// The source's name in the configuration.
    pub source: String,
    /// The id of the master whose bus it is.
    pub master_id: String,
}

/// One event of the bus.
#[derive(Debug)]
pub struct Event {
    frame: Bytes,
    tag_len: usize,
    kind: EventKind,
    /// The id that it came with. As bytes, which need no alignment.
    given: Option<[u8; 16]>,
    /// Several sinks will want the line, so it is worth keeping.
    shares_line: bool,
    line: OnceLock<Line>,
    losses: OnceLock<JsonLosses>,
}

/// An event as a line of JSON.
#[derive(Debug)]
enum Line {
    /// Worth keeping.
    Kept {
        text: Vec<u8>,
        /// The place where the payload begins.
        data: usize,
    },
    /// So long, in bytes, that each who wants it makes it for itself and lets go of it.
    Apart(usize),
}

/// A line of more bytes than this is long: it is never held without a turn
/// ([`crate::event::long_json`]), if it is held at all.
pub(crate) const LONG: usize = 4 << 20;

/// A frame of at most this many bytes has no long line, since JSON takes eight bytes a byte at the
/// most, or hardly more.
const SURELY_SHORT: usize = LONG / 8;

/// The text before the tag in a line, and the text between it and the payload.
const LINE_BEGIN: &[u8] = b"{\"tag\": ";
const LINE_MIDDLE: &[u8] = b", \"data\": ";

/// The text after the payload in a line.
const LINE_END: &[u8] = b"}\n";

/// The separator of tag and payload in a frame (`salt.utils.event.TAGEND`).
const TAG_END: &[u8] = b"\n\n";

/// The key under which a cluster peer's events name the peer (3007 and later).
const PEER: &str = "__peer_id";

impl Event {
    /// Splits a frame into tag and payload. Bytes of the tag that are not UTF-8 become U+FFFD.
    pub fn parse(frame: Bytes) -> Result<Self, NotAnEvent> {
        // Tags hold no line feed, so the first is where the search ends.
        let is_end = |at: &usize| frame.get(*at..).is_some_and(|rest| rest.starts_with(TAG_END));
        let end = memchr::memchr_iter(b'\n', &frame)
            .find(is_end)
            .ok_or(NotAnEvent::NoTag(frame.len()))?;
        let tag = frame.get(..end).unwrap_or_default();
        let Ok(tag) = std::str::from_utf8(tag) else {
            let payload = frame.slice(end + TAG_END.len()..);
            return Ok(Event::new(&String::from_utf8_lossy(tag), &payload));
        };
        let kind = EventKind::of(tag);
        Ok(Event::of(frame, end, kind))
    }

    /// An event of a tag and a msgpack payload.
    pub fn new(tag: &str, payload: &[u8]) -> Self {
        let frame = [tag.as_bytes(), TAG_END, payload].concat();
        let kind = EventKind::of(tag);
        Event::of(Bytes::from(frame), tag.len(), kind)
    }

    fn of(frame: Bytes, tag_len: usize, kind: EventKind) -> Self {
        let (line, losses) = (OnceLock::new(), OnceLock::new());
        Event { frame, tag_len, kind, given: None, shares_line: false, line, losses }
    }

    /// The event with the id that it came with, if any. An event that was read back from JSON has
    /// other bytes than on the bus, and is still the same event.
    pub(crate) fn with_id(self, given: Option<EventId>) -> Self {
        Event { given: given.map(EventId::to_bytes), ..self }
    }

    /// The id that the event came with.
    pub(crate) fn given_id(&self) -> Option<EventId> {
        self.given.map(EventId::from_bytes)
    }

    /// The event's tag, `salt/job/20261121233336123456/ret/web-1`.
    pub fn tag(&self) -> &str {
        let tag = self.frame.get(..self.tag_len).unwrap_or_default();
        std::str::from_utf8(tag).unwrap_or_default()
    }

    /// The msgpack of the event's data.
    pub fn payload(&self) -> &[u8] {
        self.frame.get(self.tag_len + TAG_END.len()..).unwrap_or_default()
    }

    /// Tag and payload as the bus carried them.
    pub(crate) fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// The kind of the event, by its tag.
    pub(crate) fn kind(&self) -> EventKind {
        self.kind
    }

    /// The payload as JSON; made once and kept, or made in `scratch` if it is not worth keeping.
    /// [`json`] says how values that JSON lacks are written.
    pub(crate) fn json<'a>(&'a self, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        match self.line() {
            Line::Kept { text, data } => {
                text.get(*data..text.len() - LINE_END.len()).unwrap_or_default()
            }
            Line::Apart(len) => {
                scratch.clear();
                scratch.reserve_exact(*len + json::SLACK);
                self.make_json(scratch);
                scratch
            }
        }
    }

    /// The payload as JSON, made once and kept; `None` if it is not worth keeping.
    pub(crate) fn kept_json(&self) -> Option<&[u8]> {
        match self.line() {
            Line::Kept { text, data } => text.get(*data..text.len() - LINE_END.len()),
            Line::Apart(_) => None,
        }
    }

    /// Appends the payload as JSON. It is kept only if other sinks will want it too.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        match self.shared_line() {
            Some(_) => out.extend_from_slice(self.json(&mut Vec::new())),
            None => {
                self.make_room(out);
                self.make_json(out);
            }
        }
    }

    /// Appends the line of the event, `{"tag": …, "data": …}` with a line feed behind it, as Salt's
    /// `rawfile_json` writes it.
    pub(crate) fn write_line(&self, out: &mut Vec<u8>) {
        match self.shared_line() {
            Some(line) => out.extend_from_slice(line),
            None => {
                self.make_room(out);
                self.make_line(out);
            }
        }
    }

    /// Writes like [`Event::write_line`], but hands `out` to `take` and empties it whenever it has
    /// grown to some 64 KiB. The rest is in it at the end.
    pub(crate) fn write_line_in_pieces(&self, out: &mut Vec<u8>, take: &mut dyn FnMut(&[u8])) {
        out.extend_from_slice(LINE_BEGIN);
        json::write_string_in_pieces(self.tag().as_bytes(), out, take);
        out.extend_from_slice(LINE_MIDDLE);
        let _ = self.losses.set(json::write_in_pieces(self.payload(), out, take));
        out.extend_from_slice(LINE_END);
    }

    /// The number of bytes that the line has, if it is long.
    pub(crate) fn long(&self) -> Option<usize> {
        if self.is_surely_short() {
            return None;
        }
        match self.line() {
            Line::Apart(len) if *len > LONG => Some(*len),
            _ => None,
        }
    }

    /// The line is short, as far as the frame alone says.
    pub(crate) fn is_surely_short(&self) -> bool {
        self.frame.len() <= SURELY_SHORT
    }

    /// Appends the object of the line.
    pub(crate) fn write_object(&self, out: &mut Vec<u8>) {
        self.write_line(out);
        out.pop();
    }

    /// The line, if it is kept because other sinks will want it too, or have made it.
    pub(crate) fn shared_line(&self) -> Option<&[u8]> {
        if !self.shares_line && self.line.get().is_none() {
            return None;
        }
        match self.line() {
            Line::Kept { text, .. } => Some(text),
            Line::Apart(_) => None,
        }
    }

    fn line(&self) -> &Line {
        self.line.get_or_init(|| {
            if !self.is_surely_short() {
                let len = self.line_len();
                if len > LONG {
                    return Line::Apart(len);
                }
            }
            let mut text = Vec::with_capacity(self.frame.len() * 5 / 4 + 64 + json::SLACK);
            let data = self.make_line(&mut text);
            // Queues count a frame twice, and no more than that for its line.
            let most = self.frame.len() * 2 + 64;
            if text.len() > most {
                return Line::Apart(text.len());
            }
            text.shrink_to(most);
            Line::Kept { text, data }
        })
    }

    /// The number of bytes that the line has, without holding it.
    fn line_len(&self) -> usize {
        let (mut len, mut rest) = (0, Vec::new());
        self.write_line_in_pieces(&mut rest, &mut |piece| len += piece.len());
        len + rest.len()
    }

    /// Appends the line and says where in it the payload begins.
    fn make_line(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.extend_from_slice(LINE_BEGIN);
        json::write_string(self.tag().as_bytes(), out);
        out.extend_from_slice(LINE_MIDDLE);
        let data = out.len() - start;
        self.make_json(out);
        out.extend_from_slice(LINE_END);
        data
    }

    /// Makes room for the line, or a part of it, if it is long: a growing buffer would take twice
    /// as much.
    pub(crate) fn make_room(&self, out: &mut Vec<u8>) {
        if let Some(len) = self.long() {
            out.reserve_exact(len + json::SLACK);
        }
    }

    fn make_json(&self, out: &mut Vec<u8>) {
        // Set already if the JSON is made anew, which loses the same.
        let _ = self.losses.set(json::write(self.payload(), out));
    }

    /// Says that several sinks will want the line, so that it is worth keeping.
    pub(crate) fn share_line(&mut self) {
        self.shares_line = true;
    }

    /// The losses of the payload as JSON; `None` if nobody has asked for it yet.
    pub(crate) fn json_losses(&self) -> Option<JsonLosses> {
        self.losses.get().copied()
    }

    /// The id that the event came with. Else 128 bits that are the same for the same tag and
    /// payload, on every master and in every run (XXH3). Salt's `_stamp` of a microsecond is part
    /// of the payload, so that two events that say the same keep two ids. The fields that a cluster
    /// peer adds when it forwards an event are left out. So is the stamp of a runner's return, of
    /// which there is one for each job.
    pub fn id(&self) -> EventId {
        if let Some(given) = self.given_id() {
            return given;
        }
        let is_runners = self.is_runners_return() && msgpack::whole(self.payload()).is_ok();
        let hashed = match (self.peer().is_some(), is_runners) {
            (false, false) => None,
            (true, false) => Some(self.without(&[PEER])),
            (false, true) => Some(self.without(&[STAMP])),
            (true, true) => Some(self.without(&[PEER, STAMP])),
        };
        EventId(xxhash_rust::xxh3::xxh3_128(hashed.as_deref().unwrap_or(&self.frame)))
    }

    /// Tells if the tag of a job's event names another job, or another minion, than its data. Salt
    /// makes such a tag of the data.
    pub(crate) fn tag_contradicts_data(&self) -> bool {
        let differ =
            |tag: Option<&str>, data: Option<&str>| tag.is_some() && data.is_some() && tag != data;
        let ((jid, minion), data) =
            (self.kind.names_in(self.tag()), Fields::in_payload(self.payload()));
        match self.kind {
            EventKind::JobReturn => differ(jid, data.jid) || differ(minion, data.minion),
            EventKind::JobNew | EventKind::Run | EventKind::Wheel => differ(jid, data.jid),
            _ => false,
        }
    }

    /// True of a return of a minion, a runner or a wheel function.
    pub(crate) fn is_return(&self) -> bool {
        self.kind == EventKind::JobReturn || self.is_runners_return()
    }

    fn is_runners_return(&self) -> bool {
        matches!(Step::in_tag(self.tag()), Some((Step::Return, _)))
    }

    /// The peer of a master cluster that forwarded the event (`__peer_id`).
    pub(crate) fn peer(&self) -> Option<&[u8]> {
        memchr::memmem::find(self.payload(), PEER.as_bytes())?;
        msgpack::find(self.payload(), PEER)
    }

    /// The frame without these keys of its data.
    fn without(&self, keys: &[&str]) -> Vec<u8> {
        let head = self.frame.get(..self.tag_len + TAG_END.len()).unwrap_or_default();
        [head, &msgpack::without(self.payload(), keys)].concat()
    }

    /// The fields of the payload's top level that routing and tables ask for.
    pub(crate) fn fields(&self) -> Fields<'_> {
        Fields::of(self)
    }

    /// The event, under the id that it has, with another payload.
    pub(crate) fn with_payload(&self, payload: &[u8]) -> Self {
        let (given, shares_line) = (Some(self.id().to_bytes()), self.shares_line);
        Event { given, shares_line, ..Event::new(self.tag(), payload) }
    }

    /// A copy with memory of its own, for an event that outlives the rest of its read buffer.
    pub(crate) fn detached(&self) -> Self {
        let frame = Bytes::copy_from_slice(&self.frame);
        let (given, shares_line) = (self.given, self.shares_line);
        Event { given, shares_line, ..Event::of(frame, self.tag_len, self.kind) }
    }
}

/// An event's id: its content hash where it was first read. Shown as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId(pub(crate) u128);

impl EventId {
    /// The id of 32 hexadecimal digits.
    pub(crate) fn from_hex(digits: &[u8]) -> Option<Self> {
        let is_hex = digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit);
        let digits = std::str::from_utf8(digits).ok().filter(|_| is_hex)?;
        u128::from_str_radix(digits, 16).ok().map(EventId)
    }

    /// The id of these bytes, the most significant first.
    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        EventId(u128::from_be_bytes(bytes))
    }

    /// The bytes of the id, the most significant first.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl EventId {
    /// The id as 32 hexadecimal digits.
    pub(crate) fn digits(self) -> [u8; 32] {
        let mut digits = [0; 32];
        for (place, digit) in digits.iter_mut().rev().enumerate() {
            #[allow(clippy::cast_possible_truncation)] // four bits
            let nibble = (self.0 >> (place * 4)) as u8 & 0x0f;
            *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        }
        digits
    }
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Fields of a payload's top level, borrowed from it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Fields<'a> {
    /// `id`: the minion, or the one that the tag names.
    pub(crate) minion: Option<&'a str>,
    /// `jid`, or the one that the tag names.
    pub(crate) jid: Option<&'a str>,
    /// `_stamp`: when the master put the event on its bus.
    pub(crate) stamp: Option<&'a str>,
    /// The functions, and the fields that tell their outcome.
    pub(crate) job_return: JobReturn<'a>,
}

impl<'a> Fields<'a> {
    fn of(event: &'a Event) -> Self {
        let mut fields = Fields::in_payload(event.payload());
        let (jid, minion) = event.kind.names_in(event.tag());
        fields.jid = fields.jid.or(jid);
        fields.minion = fields.minion.or(minion);
        fields
    }

    /// The fields of a payload whose tag is not known.
    pub(crate) fn in_payload(payload: &'a [u8]) -> Self {
        let mut fields = Fields::default();
        for (name, value) in msgpack::pairs(payload) {
            let text = || msgpack::scalar(value).and_then(msgpack::Item::text);
            match name {
                b"id" => fields.minion = text(),
                b"jid" => fields.jid = text(),
                b"_stamp" => fields.stamp = text(),
                _ => fields.job_return.take(name, value),
            }
        }
        fields
    }

    /// The job that the event is about. A minion's schedule with `return_job: nocache` returns
    /// under `nocache`, and what has no id yet under `req`: neither is a job.
    pub(crate) fn job(&self) -> Option<&'a str> {
        self.jid.filter(|jid| is_job(jid))
    }

    /// The time when the master put the event on its bus. [`Fields::stamp`] is UTC, with an offset
    /// since 3008 and without one before.
    pub(crate) fn stamped(&self) -> Option<Timestamp> {
        let stamp = self.stamp?;
        stamp.parse::<Timestamp>().ok().or_else(|| {
            let time = stamp.parse::<DateTime>().ok()?;
            time.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
        })
    }
}

/// The kind of an event, told from its tag alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// `salt/job/<jid>/new`: a job was published.
    JobNew,
    /// `salt/job/<jid>/publish` (3007 and later).
    JobPublish,
    /// `<jid>` alone: the minions that a job is expected to reach.
    JobMinions,
    /// `saltern/job/<jid>/…`: what a master tells its job cache, for sinks that keep jobs. Filters
    /// take it as `job_new`.
    JobLoad,
    /// `salt/job/<jid>/ret/<minion>`: a minion returned.
    JobReturn,
    /// `salt/job/<jid>/prog/<minion>/<n>`: one state of a running highstate.
    JobProgress,
    /// `salt/run/…`: a runner.
    Run,
    /// `salt/wheel/…`: a wheel function.
    Wheel,
    /// `salt/auth`: a minion authenticated.
    Auth,
    /// `salt/key` or `key`: a minion's key was accepted, rejected or deleted.
    Key,
    /// `salt/minion/<minion>/start` or `minion_start`.
    Start,
    /// `minion/refresh/…` or `resource/refresh/…`: a minion's data cache was renewed.
    Refresh,
    /// `salt/beacon/<minion>/<beacon>/…`.
    Beacon,
    /// `salt/presence/…`.
    Presence,
    /// `salt/batch/…`.
    Batch,
    /// `salt/cloud/…`.
    Cloud,
    /// `salt/fileserver/…`.
    Fileserver,
    /// `salt/syndic/…` or `syndic/…`: a lower master.
    Syndic,
    /// `salt/stats/…` and `salt/event_listen/…`: the master about itself.
    Master,
    /// Any other tag.
    Custom,
}

/// The tag of the event that a master makes of a minion's return of a job.
pub(crate) fn return_tag(jid: &str, minion: &str) -> String {
    format!("salt/job/{jid}/ret/{minion}")
}

/// The beginning of the tags of the events [`job_load`].
const JOB_LOAD_TAGS: &str = "saltern/job/";

impl EventKind {
    /// Its name in filters, tables, headers and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            EventKind::JobNew => "job_new",
            EventKind::JobPublish => "job_publish",
            EventKind::JobMinions => "job_minions",
            EventKind::JobLoad => "job_load",
            EventKind::JobReturn => "job_return",
            EventKind::JobProgress => "job_progress",
            EventKind::Run => "run",
            EventKind::Wheel => "wheel",
            EventKind::Auth => "auth",
            EventKind::Key => "key",
            EventKind::Start => "start",
            EventKind::Refresh => "refresh",
            EventKind::Beacon => "beacon",
            EventKind::Presence => "presence",
            EventKind::Batch => "batch",
            EventKind::Cloud => "cloud",
            EventKind::Fileserver => "fileserver",
            EventKind::Syndic => "syndic",
            EventKind::Master => "master",
            EventKind::Custom => "custom",
        }
    }

    /// The kind of the event with this tag.
    pub(crate) fn of(tag: &str) -> Self {
        let mut parts = tag.splitn(5, '/');
        let first = parts.next().unwrap_or_default();
        if first != "salt" {
            return match first {
                "minion_start" => EventKind::Start,
                "key" => EventKind::Key,
                "minion" | "resource" if parts.next() == Some("refresh") => EventKind::Refresh,
                "syndic" => EventKind::Syndic,
                "saltern" if tag.starts_with(JOB_LOAD_TAGS) => EventKind::JobLoad,
                jid if jid.len() == tag.len() && is_jid(jid) => EventKind::JobMinions,
                _ => EventKind::Custom,
            };
        }
        match parts.next().unwrap_or_default() {
            "job" => match (parts.next(), parts.next()) {
                (Some(_), Some("ret")) => EventKind::JobReturn,
                (Some(_), Some("new")) => EventKind::JobNew,
                (Some(_), Some("prog")) => EventKind::JobProgress,
                (Some(_), Some("publish")) => EventKind::JobPublish,
                _ => EventKind::Custom,
            },
            "run" => EventKind::Run,
            "wheel" => EventKind::Wheel,
            "auth" => EventKind::Auth,
            "key" => EventKind::Key,
            "minion" => match (parts.next(), parts.next()) {
                (Some(_), Some("start")) => EventKind::Start,
                _ => EventKind::Custom,
            },
            "beacon" => EventKind::Beacon,
            "presence" => EventKind::Presence,
            "batch" => EventKind::Batch,
            "cloud" => EventKind::Cloud,
            "fileserver" => EventKind::Fileserver,
            "syndic" => EventKind::Syndic,
            "stats" | "event_listen" => EventKind::Master,
            _ => EventKind::Custom,
        }
    }

    /// The jid and the minion that a tag of this kind names.
    fn names_in(self, tag: &str) -> (Option<&str>, Option<&str>) {
        let mut parts = tag.splitn(5, '/').skip(2);
        match self {
            EventKind::JobReturn => (parts.next(), parts.nth(1)),
            EventKind::JobProgress => {
                let jid = parts.next();
                // `<minion>/<run number>`: the number is the last part.
                (jid, parts.nth(1).and_then(|rest| rest.rsplit_once('/')).map(|(id, _)| id))
            }
            EventKind::JobNew | EventKind::JobPublish | EventKind::Run | EventKind::Wheel => {
                (parts.next().filter(|jid| is_jid(jid)), None)
            }
            EventKind::JobMinions => (Some(tag), None),
            EventKind::JobLoad => (parts.next(), None),
            EventKind::Start | EventKind::Beacon => (None, parts.next()),
            _ => (None, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_come_from_the_tag_alone() {
        for (tag, kind) in [
            ("20261121233336123456", EventKind::JobMinions),
            ("20261121233336123456_4711", EventKind::JobMinions),
            ("2026112123333612345", EventKind::Custom),
            ("salt/job/20261121233336123456/new", EventKind::JobNew),
            ("salt/job/20261121233336123456/publish", EventKind::JobPublish),
            ("saltern/job/20261121233336123456/load", EventKind::JobLoad),
            ("saltern/jobs", EventKind::Custom),
            ("salt/job/20261121233336123456/ret/web-1", EventKind::JobReturn),
            ("salt/job/20261121233336123456/prog/web-1/3", EventKind::JobProgress),
            ("salt/run/20261121233336123456/ret", EventKind::Run),
            ("salt/wheel/20261121233336123456/new", EventKind::Wheel),
            ("salt/auth", EventKind::Auth),
            ("salt/key", EventKind::Key),
            ("key", EventKind::Key),
            ("salt/minion/web-1/start", EventKind::Start),
            ("minion_start", EventKind::Start),
            ("minion/refresh/web-1", EventKind::Refresh),
            ("salt/beacon/web-1/status/2026-11-21T23:38:21.898181", EventKind::Beacon),
            ("salt/presence/change", EventKind::Presence),
            ("salt/batch/20261121233336123456/new", EventKind::Batch),
            ("salt/cloud/web-9/creating", EventKind::Cloud),
            ("salt/fileserver/gitfs/update", EventKind::Fileserver),
            ("salt/event_listen/start", EventKind::Master),
            ("my/app/deploy", EventKind::Custom),
            ("", EventKind::Custom),
        ] {
            assert_eq!(EventKind::of(tag), kind, "{tag}");
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }

    #[test]
    fn fields_fall_back_on_the_tag() {
        let event = Event::new("salt/job/20261121233336123456/ret/web-1", b"\x80");
        assert_eq!(event.fields().minion, Some("web-1"));
        assert_eq!(event.fields().jid, Some("20261121233336123456"));
        let event = Event::new("salt/job/20261121233336123456/prog/web/1/3", b"\x80");
        assert_eq!(event.fields().minion, Some("web/1"));
        let event = Event::new("salt/job/x/ret/web-1", b"\x82\xa2id\xa2db\xa7retcode\x02");
        assert_eq!(event.fields().minion, Some("db"));
        assert_eq!(event.fields().job_return.outcome(), job_return::Outcome::Failed);
    }

    #[test]
    fn a_frame_is_split_at_the_first_empty_line() {
        let event = Event::parse(Bytes::from_static(b"a/b\n\n\xa2\n\n")).unwrap();
        assert_eq!((event.tag(), event.payload()), ("a/b", &b"\xa2\n\n"[..]));
        assert_eq!(event.json(&mut Vec::new()), br#""\n\n""#);
        let error = Event::parse(Bytes::from_static(b"a/b\n")).unwrap_err();
        assert_eq!(error, NotAnEvent::NoTag(4));
        let event = Event::parse(Bytes::from_static(b"a\xff\n\n\xc0")).unwrap();
        assert_eq!((event.tag(), event.payload()), ("a\u{fffd}", &b"\xc0"[..]));
    }

    #[test]
    fn invariant_6_a_kept_line_takes_no_more_than_the_queues_count() {
        for (text, len) in [("x", 0), ("x", 3000), ("\\", 40), ("\\", 3000), ("\\\"xx", 3000)] {
            let mut payload = Vec::new();
            msgpack::write_str(&text.repeat(len), &mut payload);
            let event = Event::new("salt/a", &payload);
            let frame = event.frame.len();
            let Line::Kept { text: line, .. } = event.line() else { panic!("{text} {len}") };
            assert!(line.capacity() <= frame * 2 + 64, "{text} {len}: {}", line.capacity());
            if line.len() <= frame * 5 / 4 + 64 {
                let room = frame * 5 / 4 + 64 + json::SLACK;
                assert!(line.capacity() <= room, "{text} {len}: it grew to {}", line.capacity());
            }
        }
    }

    #[test]
    fn an_event_that_a_peer_forwarded_keeps_its_id() {
        let original = Event::new("a", b"\x82\xa1x\x01\xa1y\xa2__");
        let forwarded = Event::new("a", b"\x83\xa1x\x01\xa9__peer_id\xa1m\xa1y\xa2__");
        assert_eq!(forwarded.id(), original.id());
        assert_eq!(forwarded.peer(), Some(&b"\xa1m"[..]));
        assert_eq!(original.peer(), None);
        assert_ne!(Event::new("b", original.payload()).id(), original.id());
    }

    #[test]
    fn an_event_keeps_the_id_that_it_came_with() {
        let content = Event::new("a", b"\x80").id();
        let hex = content.to_string();
        assert_eq!(EventId::from_hex(hex.as_bytes()), Some(content));
        for wrong in ["", &hex[1..], &format!("+{}", &hex[1..]), &format!("{hex}0")] {
            assert_eq!(EventId::from_hex(wrong.as_bytes()), None, "{wrong}");
        }
        let event = Event::new("b", b"\x80").with_id(Some(content));
        assert_eq!((event.id(), event.detached().id()), (content, content));
        assert_ne!(event.with_id(None).id(), content);
    }
}
