//! A store that answers Salt's questions about its jobs.
//!
//! Each sink whose tables Salt could read is one. A store finds loads and returns and hands them to
//! the [`Answer`], which alone knows how Salt wants to have them. The embedded job cache fills the
//! same answers, before any store is asked.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::warn;

use super::answer::{self, FIND_JOB};
use super::spool::{Spool, Spooled};
use crate::codec::msgpack::{self, MapWriter};

/// The key of the outcome in a return of an answer [with verdicts](Answer::with_verdicts).
pub(super) const OUTCOME: &str = "outcome";

/// The key of who vouches for it.
pub(super) const AUTHORITY: &str = "authority";

/// A store of jobs.
pub(crate) trait JobStore: Send + Sync {
    /// Adds the store's data to the answer. Work that blocks goes to a thread of its own.
    fn ask(&self, answer: Answer) -> Asking<'_>;
}

/// A store at work. It fails as a whole: the answer is gone with it.
pub(crate) type Asking<'a> = Pin<Box<dyn Future<Output = Result<Answer, AskError>> + Send + 'a>>;

/// The reason why a store gave no answer.
#[derive(Debug, Error)]
#[error("{doing}")]
pub struct AskError {
    doing: String,
    #[source]
    cause: Box<dyn Error + Send + Sync>,
}

impl AskError {
    /// An error while `doing`.
    pub(crate) fn new(
        doing: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        AskError { doing: doing.into(), cause: cause.into() }
    }
}

/// A question of Salt's to its job cache, under the name of Salt's function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// The load of a job, and the minions that it was meant for.
    GetLoad {
        /// The job.
        jid: String,
    },
    /// The return of each minion of a job.
    GetJid {
        /// The job.
        jid: String,
    },
    /// The last return of each minion of a function.
    GetFun {
        /// The function.
        fun: String,
    },
    /// All jobs.
    GetJids,
    /// The last jobs, oldest first.
    GetJidsFilter {
        /// So many at the most.
        count: u64,
        /// True if those that ask for other jobs are left out.
        filter_find_job: bool,
    },
    /// The minions that have returned something.
    GetMinions,
    /// The end of a job.
    GetEndtime {
        /// The job.
        jid: String,
    },
}

/// The form of an answer.
#[derive(Debug, Clone, Copy)]
enum Form {
    Value,
    Map,
    Array,
}

impl Question {
    fn form(&self) -> Form {
        match self {
            Question::GetLoad { .. } | Question::GetEndtime { .. } => Form::Value,
            Question::GetJid { .. } | Question::GetFun { .. } | Question::GetJids => Form::Map,
            Question::GetJidsFilter { .. } | Question::GetMinions => Form::Array,
        }
    }

    /// The job that it is about, if it is about one.
    pub(crate) fn job(&self) -> Option<&str> {
        match self {
            Question::GetLoad { jid } | Question::GetJid { jid } | Question::GetEndtime { jid } => {
                Some(jid)
            }
            Question::GetFun { .. }
            | Question::GetJids
            | Question::GetJidsFilter { .. }
            | Question::GetMinions => None,
        }
    }

    /// The answer if nobody knows anything, as msgpack.
    pub(crate) fn nothing(&self) -> Option<Spooled> {
        match self.form() {
            Form::Value => None,
            Form::Map => Some(Spooled::Memory(vec![0x80])),
            Form::Array => Some(Spooled::Memory(vec![0x90])),
        }
    }
}

/// The time that a large store may take to list jobs. Salt waits for three seconds.
const LONGEST_LIST: Duration = Duration::from_secs(1);

/// The part of an answer's time that is kept for the steps behind a list.
const REMAINDER: Duration = Duration::from_millis(200);

/// An answer in the making, as msgpack.
#[derive(Debug)]
pub(crate) struct Answer {
    question: Question,
    spool: Spool,
    parts: u32,
    began: Instant,
    /// Nobody waits for it any more from this time on.
    until: Option<Instant>,
    is_over: bool,
    is_cut: bool,
    /// Returns have with them how they were judged.
    has_verdicts: bool,
    /// Taken while a thread works on it, even if nobody waits for it any more.
    _turn: Option<OwnedSemaphorePermit>,
}

/// A job as a store knows it.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// Its id.
    pub(crate) jid: &'a str,
    /// Its load, as msgpack.
    pub(crate) load: &'a [u8],
    /// The load is the data of its event, which has more fields than the publication.
    pub(crate) is_event: bool,
    /// The minions that it was meant for, sorted, if that is asked for.
    pub(crate) minions: &'a [String],
    /// The time at which it ended.
    pub(crate) end_time: Option<&'a str>,
}

impl Answer {
    /// An answer to be written.
    pub(super) fn new(question: Question, spool: Spool) -> Self {
        Answer {
            question,
            spool,
            parts: 0,
            began: Instant::now(),
            until: None,
            is_over: false,
            is_cut: false,
            has_verdicts: false,
            _turn: None,
        }
    }

    /// The same in a turn that ends with it.
    pub(super) fn in_turn(self, turn: Option<OwnedSemaphorePermit>) -> Self {
        Answer { _turn: turn, ..self }
    }

    /// The same with a deadline, begun now.
    pub(super) fn by(self, until: Instant) -> Self {
        Answer { began: Instant::now(), until: Some(until), ..self }
    }

    /// The same with the outcome and the authority of each return, for others than Salt.
    pub(super) fn with_verdicts(self) -> Self {
        Answer { has_verdicts: true, ..self }
    }

    /// The time at which nobody waits for it any more, if there is one.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// The question.
    pub(crate) fn question(&self) -> &Question {
        &self.question
    }

    /// Adds the job that is asked for, or one of a list.
    pub(crate) fn job(&mut self, job: &Job<'_>) {
        match self.question {
            Question::GetLoad { .. } => {
                self.part(&answer::described(job.load, job.is_event, job.minions));
            }
            Question::GetJids => {
                let mut listed = answer::instance(job.load);
                listed.text("StartTime", &answer::start_time(job.jid));
                if let Some(end_time) = job.end_time {
                    listed.text("EndTime", end_time);
                }
                self.key(job.jid);
                self.spool.push(&listed.finished());
            }
            Question::GetJidsFilter { filter_find_job, .. } => {
                if filter_find_job && msgpack::text(job.load, "fun") == Some(FIND_JOB) {
                    return;
                }
                let mut listed = answer::instance(job.load);
                listed.text("JID", job.jid);
                listed.text("StartTime", &answer::start_time(job.jid));
                self.part(&listed.finished());
            }
            _ => {}
        }
    }

    /// Adds what a minion has returned: the whole return as msgpack.
    pub(crate) fn returned(&mut self, minion: &str, load: &[u8]) {
        if msgpack::find(load, "return").is_none() {
            return;
        }
        self.key(minion);
        match self.question {
            Question::GetJid { .. } => answer::kept(load, &mut self.spool),
            _ => self.spool.push(load),
        }
    }

    /// Adds a return that the store has judged: its outcome, and who vouches for it.
    pub(crate) fn judged_return(
        &mut self,
        minion: &str,
        load: &[u8],
        outcome: Option<&str>,
        authority: Option<&str>,
    ) {
        if !self.has_verdicts {
            return self.returned(minion, load);
        }
        let mut judged = MapWriter::default();
        for (key, value) in msgpack::raw_pairs(load) {
            judged.pair(key, value);
        }
        for (key, word) in [(OUTCOME, outcome), (AUTHORITY, authority)] {
            if let Some(word) = word {
                judged.text(key, word);
            }
        }
        self.key(minion);
        self.spool.push(&judged.finished());
    }

    /// Adds the name of a minion, or the time when a job ended.
    pub(crate) fn text(&mut self, text: &str) {
        let mut packed = Vec::new();
        msgpack::write_str(text, &mut packed);
        self.part(&packed);
    }

    /// Tells if there is room for more, and a client that waits for it.
    pub(crate) fn goes_on(&mut self) -> bool {
        self.is_over |= self.until.is_some_and(|until| until <= Instant::now());
        self.spool.is_sound() && !self.is_over
    }

    /// Tells if a list of jobs took so long that it has to end here. The last jobs have to come
    /// first then.
    pub(crate) fn is_late(&mut self) -> bool {
        let time = self.until.map(|until| until.saturating_duration_since(self.began));
        let time = time.map_or(LONGEST_LIST, |time| time.saturating_sub(REMAINDER));
        self.is_cut |= self.began.elapsed() > time.min(LONGEST_LIST);
        self.is_cut
    }

    /// The whole answer; `None` if nothing was known.
    pub(crate) fn finished(self) -> io::Result<Option<Spooled>> {
        if self.is_over {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"));
        }
        if self.is_cut {
            let jobs = self.parts;
            warn!(jobs, "a list of all jobs takes too long; Salt gets only the newest jobs");
        }
        match (self.parts, self.question.form()) {
            (0, _) if self.spool.is_sound() => Ok(None),
            (_, Form::Value) => self.spool.value().map(Some),
            (parts, Form::Map) => self.spool.map(parts).map(Some),
            (parts, Form::Array) => self.spool.array(parts).map(Some),
        }
    }

    fn part(&mut self, part: &[u8]) {
        self.parts += 1;
        self.spool.push(part);
    }

    fn key(&mut self, key: &str) {
        self.text(key);
    }
}
