//! The requests of all clients that are not answered yet: how many that may be, and who does it.
//!
//! Nothing that a client does holds up the others, nor the other sources: what blocks has threads
//! of its own, and what is under way is bounded, for all and for each. What is beyond is refused,
//! to come later.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::budget::{Budget, Held};
use crate::event::Authority;
use crate::jobs::{Jobs, JobsError};
use crate::sink::chain;
use crate::source::Outlet;
use crate::source::returner_wire::{Answer, Asked, JobCall};

/// Requests with something to keep, and calls of the job cache, that may be under way.
const ALL: UnderWay = UnderWay { keeping: 192, asking: 256 };

/// How many of these a single client may have.
const EACH: UnderWay = UnderWay { keeping: 96, asking: 8 };

/// Questions that the job cache answers at the same time; it writes one after the other.
const QUESTIONS: usize = 2;

/// Numbers of requests.
#[derive(Debug, Clone, Copy, Default)]
struct UnderWay {
    keeping: usize,
    asking: usize,
}

impl UnderWay {
    fn of(&mut self, keeps: bool) -> &mut usize {
        if keeps { &mut self.keeping } else { &mut self.asking }
    }
}

/// The requests of all clients that are under way.
pub(in crate::source) struct Desk {
    pub(in crate::source) outlet: Outlet,
    under_way: Cell<UnderWay>,
    budget: Budget,
    questions: Semaphore,
    /// Writes of the job cache, one at a time and in the order in which they came.
    writes: Semaphore,
    /// The bytes of an answer that may be in memory.
    memory: usize,
}

/// The requests of one client that are under way.
pub(in crate::source) struct Share {
    under_way: Cell<UnderWay>,
    most: UnderWay,
    pub(super) budget: Budget,
}

impl Share {
    /// True if nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        let UnderWay { keeping, asking } = self.under_way.get();
        keeping + asking == 0
    }
}

/// The place of a request that is under way. It is free again when this is dropped.
pub(in crate::source) struct Place {
    desk: Rc<Desk>,
    share: Rc<Share>,
    keeps: bool,
    _held: Option<Held>,
}

impl Place {
    /// True of the place of a call of the job cache.
    pub(super) fn is_of_question(&self) -> bool {
        !self.keeps
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for under_way in [&self.desk.under_way, &self.share.under_way] {
            let mut now = under_way.get();
            *now.of(self.keeps) -= 1;
            under_way.set(now);
        }
    }
}

impl Desk {
    /// With at most `memory` bytes of an answer in memory.
    pub(in crate::source) fn new(outlet: Outlet, max_frame: usize, memory: usize) -> Rc<Self> {
        Rc::new(Desk {
            outlet,
            under_way: Cell::default(),
            budget: Budget::new(max_frame),
            questions: Semaphore::new(QUESTIONS),
            writes: Semaphore::new(1),
            memory,
        })
    }

    /// The share of another client.
    pub(super) fn client(&self) -> Rc<Share> {
        let budget = self.budget.of_client();
        Rc::new(Share { under_way: Cell::default(), most: EACH, budget })
    }

    /// The share of all clients, where they cannot be told apart.
    pub(in crate::source) fn everybody(&self) -> Rc<Share> {
        let budget = self.budget.of_client();
        Rc::new(Share { under_way: Cell::default(), most: ALL, budget })
    }

    /// A place for a request of so many bytes, of which some may be held; else the answer.
    pub(in crate::source) fn place(
        self: &Rc<Self>,
        share: &Rc<Share>,
        asked: &Asked,
        bytes: usize,
        held: Option<Held>,
    ) -> Result<Place, Answer> {
        let full = || later("too many requests are under way; see whether a sink is stuck");
        let keeps = !matches!(asked, Asked::Job(_));
        let (mut all, mut each) = (self.under_way.get(), share.under_way.get());
        let mut most = [ALL, share.most];
        let [most_of_all, most_of_each] = &mut most;
        if *all.of(keeps) >= *most_of_all.of(keeps) || *each.of(keeps) >= *most_of_each.of(keeps) {
            return Err(full());
        }
        let held = match held {
            None if keeps => Some(share.budget.try_take(bytes).map_err(|_| full())?),
            held => held,
        };
        *all.of(keeps) += 1;
        *each.of(keeps) += 1;
        self.under_way.set(all);
        share.under_way.set(each);
        Ok(Place { desk: Rc::clone(self), share: Rc::clone(share), keeps, _held: held })
    }

    /// Does what was asked by a client of this authority.
    pub(in crate::source) async fn serve(&self, asked: Asked, authority: Authority) -> Answer {
        match asked {
            // A master hands on what is on its bus, whoever put it there.
            Asked::Events { bodies } => self.keep(self.outlet.clone(), bodies).await,
            Asked::Return { body, load } => self.keep_return(body, load, authority).await,
            Asked::Job(call) if call.is_for_masters() && authority == Authority::Bus => {
                let why = "only a master may say this of a job, and the user who asks is none; see \
                           `masters` of the source";
                Answer::Refused { why: why.to_owned(), later: false }
            }
            Asked::Job(call) => self.ask(call, authority).await,
        }
    }

    /// Hands events on and waits until they are safe.
    async fn keep(&self, outlet: Outlet, bodies: Vec<Bytes>) -> Answer {
        let Some(receipt) = outlet.send_for_receipt(bodies, Vec::new()).await else {
            return later("the daemon is stopping");
        };
        match receipt.await {
            Ok(true) => Answer::Done(None),
            _ => later("a sink that wants the events has not kept them; see what it dropped"),
        }
    }

    /// Puts a return into the job cache, where it has to be as soon as Salt is answered, and hands
    /// its event on, which a master may hand over by `event_return` as well.
    async fn keep_return(&self, body: Bytes, load: Bytes, authority: Authority) -> Answer {
        let saved = self.blocking(&self.writes, move |jobs| {
            match jobs.save_return(&load, authority) {
                // It is an event all the same.
                Err(JobsError::Off) => Ok(()),
                saved => saved,
            }
        });
        if let Err(answer) = saved.await {
            return answer;
        }
        let outlet = Outlet { way: "returns", authority, ..self.outlet.clone() };
        self.keep(outlet, vec![body]).await
    }

    async fn ask(&self, call: JobCall, authority: Authority) -> Answer {
        let turn = if call.is_question() { &self.questions } else { &self.writes };
        let memory = self.memory;
        match self.blocking(turn, move |jobs| call.answer(jobs, authority, memory)).await {
            Ok(value) => Answer::Done(value),
            Err(answer) => answer,
        }
    }

    /// Asks the job cache on a thread of its own, in turn.
    async fn blocking<T: Send + 'static>(
        &self,
        turn: &Semaphore,
        ask: impl FnOnce(&Jobs) -> Result<T, JobsError> + Send + 'static,
    ) -> Result<T, Answer> {
        let jobs = self.outlet.jobs.clone();
        // The semaphore is never closed; without a permit the work would only be out of turn.
        let _permit = turn.acquire().await.ok();
        match spawn_blocking(move || ask(&jobs)).await {
            Ok(asked) => asked.map_err(Answer::from),
            Err(error) => Err(later(&chain(&error))),
        }
    }
}

pub(super) fn later(why: &str) -> Answer {
    Answer::Refused { why: why.to_owned(), later: true }
}
