//! The requests of all clients that are not answered yet: their number, and the threads for them.
//!
//! No client holds up another, nor another source. Work that blocks has threads of its own, and
//! work under way is bounded, for all clients and for each. Requests beyond that are refused, to
//! come later. Clients that are no masters have at most half of the places, and bytes of their own.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use super::budget::{Budget, Held, SHORT};
use crate::codec::visible::capped;
use crate::error::chain;
use crate::event::as_fired::as_fired;
use crate::event::runner::RunnerJob;
use crate::event::{Authority, Event};
use crate::jobs::spool::Spooled;
use crate::jobs::store::Question;
use crate::jobs::stores::deadline;
use crate::jobs::{Jobs, JobsError};
use crate::source::frame_sender::{FrameSender, Via};
use crate::source::returner_wire::{Answer, Asked, JobCall, Refusal, Request, VERSION};
use crate::sync::receipt::Receipt;

/// Requests with something to keep, and calls of the job cache, that may be under way.
const ALL: Places<usize> = Places { keeping: 192, asking: 256 };

/// The shares of these for a single client, and for all clients that are no masters.
const EACH: Places<usize> = Places { keeping: 96, asking: 8 };
const OTHERS: Places<usize> = Places { keeping: ALL.keeping / 2, asking: ALL.asking / 2 };

/// Questions that the job cache answers at the same time; it writes one after the other.
const QUESTIONS: usize = 2;

/// Long messages that are read at the same time.
const READINGS: usize = 2;

/// The bytes of long answers that a client has not read, from which on it gets no more of them.
const UNREAD: u64 = 256 << 20;

/// The bytes that are shown of the name of a sink.
const LONGEST_NAME: usize = 64;

/// The interval at which a sender hears that it should wait.
pub(in crate::source) const WAIT: Duration = Duration::from_secs(1);

/// The time that the last answers may take when the daemon stops.
pub(in crate::source) const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Something for both kinds of requests.
#[derive(Debug, Clone)]
struct Places<T> {
    keeping: T,
    asking: T,
}

impl<T> Places<T> {
    fn of(&self, keeps: bool) -> &T {
        if keeps { &self.keeping } else { &self.asking }
    }
}

impl Places<Arc<Semaphore>> {
    fn new(most: &Places<usize>) -> Self {
        let semaphore = |most: usize| Arc::new(Semaphore::new(most));
        Places { keeping: semaphore(most.keeping), asking: semaphore(most.asking) }
    }
}

/// The requests of all clients that are under way.
pub(in crate::source) struct RequestHandler {
    pub(in crate::source) sender: FrameSender,
    all: Places<Arc<Semaphore>>,
    /// The places of clients that are no masters.
    others: Places<Arc<Semaphore>>,
    budget: Budget,
    budget_of_others: Budget,
    questions: Arc<Semaphore>,
    /// Writes of the job cache, one at a time and in the order in which they came.
    writes: Arc<Semaphore>,
    readings: Arc<Semaphore>,
    max_frame: usize,
    /// The bytes of an answer that may be in memory.
    memory: usize,
}

/// The requests of one client that are under way.
pub(in crate::source) struct Share {
    places: Places<Arc<Semaphore>>,
    most: Places<usize>,
    /// The places of all clients of its kind, if they are bounded.
    others: Option<Places<Arc<Semaphore>>>,
    pub(super) budget: Budget,
    /// The bytes of its long answers that are not sent yet.
    unread: Arc<AtomicU64>,
}

impl Share {
    /// True if nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        [true, false]
            .into_iter()
            .all(|keeps| self.places.of(keeps).available_permits() == *self.most.of(keeps))
    }
}

/// The place of a request that is under way. It is free again when this is dropped.
#[derive(Debug)]
pub(in crate::source) struct Place {
    keeps: bool,
    unread: Unread,
    _permits: Vec<OwnedSemaphorePermit>,
    _held: Option<Held>,
}

impl Place {
    /// True of the place of a call of the job cache.
    pub(super) fn is_of_question(&self) -> bool {
        !self.keeps
    }
}

/// The bytes of a long answer among those of its client. They are taken off when it is dropped.
#[derive(Debug)]
struct Unread {
    all: Arc<AtomicU64>,
    bytes: u64,
}

impl Unread {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.all.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl RequestHandler {
    /// With at most `memory` bytes of an answer in memory.
    pub(in crate::source) fn new(sender: FrameSender, max_frame: usize, memory: usize) -> Rc<Self> {
        Rc::new(RequestHandler {
            sender,
            all: Places::new(&ALL),
            others: Places::new(&OTHERS),
            budget: Budget::of_masters(max_frame),
            budget_of_others: Budget::of_others(max_frame),
            questions: Arc::new(Semaphore::new(QUESTIONS)),
            writes: Arc::new(Semaphore::new(1)),
            readings: Arc::new(Semaphore::new(READINGS)),
            max_frame,
            memory,
        })
    }

    /// The share of another client, of this authority.
    pub(super) fn client(&self, authority: Authority) -> Rc<Share> {
        let (budget, others) = match authority {
            Authority::Master => (&self.budget, None),
            Authority::Bus => (&self.budget_of_others, Some(self.others.clone())),
        };
        Rc::new(Share { others, ..share(&EACH, budget) })
    }

    /// The share of all clients, where they cannot be told apart.
    pub(in crate::source) fn everybody(&self) -> Rc<Share> {
        Rc::new(share(&ALL, &self.budget))
    }

    /// Reads a message, a long one on a thread of its own: that may take long.
    pub(super) async fn read(
        &self,
        message: &Bytes,
        held: Option<Held>,
    ) -> Result<(Request, Option<Held>), Refusal> {
        let max_frame = self.max_frame;
        if message.len() <= SHORT {
            return Request::parse(message, max_frame, VERSION).map(|request| (request, held));
        }
        // The semaphore is never closed; without a permit the work would only be out of turn.
        let permit = Arc::clone(&self.readings).acquire_owned().await.ok();
        let message = message.clone();
        let parsing = spawn_blocking(move || {
            let _permit = permit;
            Request::parse(&message, max_frame, VERSION).map(|request| (request, held))
        });
        match parsing.await {
            Ok(parsed) => parsed,
            Err(error) => Err(Refusal::later(&chain(&error))),
        }
    }

    /// A place for a request of so many bytes, of which some may be held; else the answer.
    pub(in crate::source) fn place(
        &self,
        share: &Share,
        asked: &Asked,
        bytes: usize,
        held: Option<Held>,
    ) -> Result<Place, Answer> {
        let full = || later("too many requests are under way; see whether a sink is stuck");
        let keeps = !matches!(asked, Asked::Job(_));
        let of_kind = share.others.iter().map(|others| others.of(keeps));
        let permits = [share.places.of(keeps), self.all.of(keeps)].into_iter().chain(of_kind);
        let permits: Result<_, _> =
            permits.map(|places| Arc::clone(places).try_acquire_owned()).collect();
        let permits = permits.map_err(|_| full())?;
        let held = match held {
            None if keeps => Some(share.budget.try_take(bytes).map_err(|_| full())?),
            held => held,
        };
        let unread = Unread { all: Arc::clone(&share.unread), bytes: 0 };
        if !keeps && unread.all.load(Ordering::Relaxed) >= UNREAD {
            return Err(later("long answers are not read yet; read them and ask again"));
        }
        Ok(Place { keeps, unread, _permits: permits, _held: held })
    }

    /// Does a request of a client of this authority, if that is known. The place of the request is
    /// given back with the answer.
    pub(in crate::source) async fn serve(
        &self,
        asked: Asked,
        authority: Option<Authority>,
        place: Place,
    ) -> (Answer, Option<Place>) {
        let authority = match authority {
            Some(authority) => authority,
            None if !asked.needs_authority() => Authority::Bus,
            None => {
                let why = "the masters are not known yet, because there was no socket of a bus; \
                           start Salt's master, or set `masters` of the source";
                return (later(why), Some(place));
            }
        };
        match asked {
            // A master hands on every event of its bus, also those of minions.
            Asked::Events { bodies } => (self.keep(self.sender.clone(), bodies).await, Some(place)),
            Asked::Return { body, load } => self.keep_return(body, load, authority, place).await,
            Asked::Job(call) if call.is_for_masters() && authority == Authority::Bus => {
                let why = "only a master may do this, and this user is none; see `masters` of the \
                           source";
                (Answer::Refused { why: why.to_owned(), later: false }, Some(place))
            }
            Asked::Job(JobCall::Ask { question, store }) => {
                self.answer(question, store.as_deref(), place).await
            }
            Asked::Job(call) => self.tell(call, authority, place).await,
        }
    }

    /// Hands events on and waits until they are safe.
    async fn keep(&self, sender: FrameSender, bodies: Vec<Bytes>) -> Answer {
        when_safe(sender.send_for_receipt(bodies, Vec::new()).await).await
    }

    /// Puts a return into the job cache, where it has to be as soon as Salt is answered. Then hands
    /// its event on, which a master may hand over by `event_return` as well. A job cache that fails
    /// keeps no event from the sinks.
    async fn keep_return(
        &self,
        body: Bytes,
        load: Bytes,
        authority: Authority,
        place: Place,
    ) -> (Answer, Option<Place>) {
        let origin = Arc::clone(&self.sender.origin);
        let saved = self.blocking(&self.writes, place, move |jobs| {
            let failure = match jobs.save_return_handed_on(&load, authority, &origin.master_id) {
                // The event is handed on all the same.
                Ok(()) | Err(JobsError::Off) => None,
                Err(error) if error.is_for_good() => return Err(error),
                Err(error) => Some(error),
            };
            Ok((event_of_return(body, &load, &origin.master_id), failure))
        });
        let (saved, place) = saved.await;
        let (body, failure) = match saved {
            Ok(saved) => saved,
            Err(answer) => return (answer, place),
        };
        let sender = FrameSender { via: Via::JobCacheReturns, authority, ..self.sender.clone() };
        let answer = self.keep(sender, vec![body]).await;
        (failure.map_or(answer, Answer::from), place)
    }

    /// Puts a question to the store that it names, if any, then to the job cache, then to the
    /// stores behind that. The first that knows anything answers. The stores come before the job
    /// cache for a job that it may have forgotten, because they know more.
    async fn answer(
        &self,
        question: Question,
        store: Option<&str>,
        place: Place,
    ) -> (Answer, Option<Place>) {
        let (stores, until) = (self.sender.jobs.stores(), deadline());
        let memory = self.memory;
        let answer = || self.sender.jobs.answer_to(question.clone(), memory);
        let mut failure = None;
        if let Some(name) = store {
            if !stores.has(name) {
                let (name, names) = (capped(name, LONGEST_NAME), stores.names());
                let why = format!("there is no sink `{name}` that keeps jobs; there are: {names}");
                return (Answer::Refused { why, later: false }, Some(place));
            }
            match stores.ask_one(name, until, answer).await {
                Ok(Some(found)) => return found_in(found, Some(place)),
                Ok(None) => {}
                Err(error) => failure = Some(later(&chain(&error))),
            }
        }
        let in_turn =
            async || stores.ask_in_turn(until, answer).await.map_err(|e| later(&chain(&e)));
        let jid = question.job().unwrap_or_default();
        let is_old = self.sender.jobs.began_before_keep(jid);
        if is_old {
            match in_turn().await {
                Ok(Some(found)) => return found_in(found, Some(place)),
                Ok(None) => {}
                Err(error) => _ = failure.get_or_insert(error),
            }
        }
        let asked = question.clone();
        let is_alone = stores.is_empty() && store.is_none();
        let asking = self.blocking(&self.questions, place, move |jobs| {
            match jobs.known(asked, memory) {
                // Others are asked.
                Err(JobsError::Off) if !is_alone => Ok(None),
                known => known,
            }
        });
        let (known, place) = asking.await;
        match known {
            Ok(Some(found)) => return found_in(found, place),
            Ok(None) => {}
            Err(error) => _ = failure.get_or_insert(error),
        }
        if !is_old {
            match in_turn().await {
                Ok(Some(found)) => return found_in(found, place),
                Ok(None) => {}
                Err(error) => _ = failure.get_or_insert(error),
            }
        }
        (failure.unwrap_or_else(|| Answer::Done(question.nothing())), place)
    }

    /// Tells the job cache something, and the sinks that keep jobs as well, even if the job cache
    /// fails: Salt asks them later.
    async fn tell(
        &self,
        call: JobCall,
        authority: Authority,
        place: Place,
    ) -> (Answer, Option<Place>) {
        let memory = self.memory;
        let is_of_master = authority == Authority::Master;
        let event = if is_of_master { call.event() } else { None };
        let telling = self.blocking(&self.writes, place, move |jobs| {
            match call.answer(jobs, authority, memory) {
                Ok(found) => Ok(Told::JobCache(found)),
                Err(JobsError::Off) if !jobs.stores().is_empty() => Ok(Told::SinksAlone),
                Err(error) => Err(error),
            }
        });
        let (told, place) = telling.await;
        let sender = FrameSender { via: Via::JobLoads, authority, ..self.sender.clone() };
        let answer = match (told, event) {
            (Err(refused @ Answer::Refused { later: false, .. }), _) => refused,
            (Ok(Told::SinksAlone), Some(event)) => {
                when_safe(sender.tell_for_receipt(&event).await).await
            }
            // Salt's master waits for the answer, and knows whether the job cache has it: no sink
            // is waited for.
            (_, Some(event)) if !sender.tell(&event).await => later("the daemon is stopping"),
            (Ok(Told::JobCache(found)), _) => Answer::Done(found),
            (Ok(Told::SinksAlone), None) => Answer::Done(None),
            (Err(refused), _) => refused,
        };
        (answer, place)
    }

    /// Asks the job cache on a thread of its own, in turn. The turn and the place are taken until
    /// the answer is there, even if nobody waits for it any more.
    async fn blocking<T: Send + 'static>(
        &self,
        turn: &Arc<Semaphore>,
        place: Place,
        ask: impl FnOnce(&Jobs) -> Result<T, JobsError> + Send + 'static,
    ) -> (Result<T, Answer>, Option<Place>) {
        let jobs = self.sender.jobs.clone();
        // The semaphore is never closed; without a permit the work would only be out of turn.
        let permit = Arc::clone(turn).acquire_owned().await.ok();
        let asking = spawn_blocking(move || {
            let asked = ask(&jobs);
            drop(permit);
            (asked, place)
        });
        match asking.await {
            Ok((asked, place)) => (asked.map_err(Answer::from), Some(place)),
            Err(error) => (Err(later(&chain(&error))), None),
        }
    }
}

/// The receiver of a call about a job.
enum Told {
    /// The job cache, which answered this.
    JobCache(Option<Spooled>),
    /// There is no job cache: only sinks keep jobs.
    SinksAlone,
}

/// The answer for events, as soon as their fate is known.
async fn when_safe(receipt: Option<Receipt>) -> Answer {
    let Some(receipt) = receipt else { return later("the daemon is stopping") };
    match receipt.await {
        Ok(true) => Answer::Done(None),
        _ => later(
            "a sink that wants the events has not kept them; saltern_sink_dropped_events_total \
             says which and why",
        ),
    }
}

/// The event of a return that a master hands to its job cache: the one that its bus brings. `body`
/// is the one that the load makes as it is.
fn event_of_return(body: Bytes, load: &[u8], master_id: &str) -> Bytes {
    if let Some(runner) = RunnerJob::handed_on(load, master_id) {
        return runner.event().frame().clone();
    }
    let Cow::Owned(fired) = as_fired(load) else { return body };
    match Event::parse(body.clone()) {
        Ok(event) => Event::new(event.tag(), &fired).frame().clone(),
        Err(_) => body,
    }
}

/// An answer, whose bytes count for its client until they are sent.
fn found_in(found: Spooled, mut place: Option<Place>) -> (Answer, Option<Place>) {
    if let (Spooled::File(file), Some(place)) = (&found, &mut place) {
        place.unread.add(file.length());
    }
    (Answer::Done(Some(found)), place)
}

fn share(most: &Places<usize>, budget: &Budget) -> Share {
    Share {
        places: Places::new(most),
        most: most.clone(),
        others: None,
        budget: budget.of_client(),
        unread: Arc::default(),
    }
}

pub(super) fn later(why: &str) -> Answer {
    Answer::Refused { why: why.to_owned(), later: true }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::mpsc;

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::event::Origin;
    use crate::jobs::store::{self, JobStore};
    use crate::jobs::stores::JobStores;
    use crate::observe::state::SourceState;
    use crate::source::frame_sender::Frames;
    use crate::sync::bell::{Bell, Receiver, channel};
    use crate::sync::receipt::Claim;

    pub(in crate::source::returner) fn handler() -> Rc<RequestHandler> {
        handler_of(Jobs::new(std::path::Path::new("/nowhere"))).0
    }

    /// A handler with this job cache, and the channel of its events.
    fn handler_of(jobs: Jobs) -> (Rc<RequestHandler>, Receiver<Frames>) {
        let (frames, events) = channel(1, &Bell::default());
        let sender = FrameSender {
            origin: Arc::new(Origin { source: "salt".into(), master_id: "m".into() }),
            via: Via::Read,
            authority: Authority::Bus,
            state: Arc::new(SourceState::new("salt", "returner", "m")),
            frames,
            jobs,
        };
        (RequestHandler::new(sender, 64 << 20, 64 << 10), events)
    }

    /// A sink that keeps jobs and knows none.
    struct Empty;

    impl JobStore for Empty {
        fn ask(&self, answer: store::Answer) -> store::Asking<'_> {
            Box::pin(async { Ok(answer) })
        }
    }

    fn save_load() -> Asked {
        let load = [("jid", "1"), ("fun", "test.ping")];
        let load = rmp_serde::to_vec(&std::collections::BTreeMap::from(load)).unwrap();
        let jid = "20261121233336123456".to_owned();
        Asked::Job(JobCall::SaveLoad { jid, load: load.into(), minions: Vec::new() })
    }

    #[tokio::test]
    async fn invariant_3_without_a_job_cache_a_load_is_stored_when_the_sinks_have_it() {
        for is_kept in [true, false] {
            let jobs = Jobs::new(std::path::Path::new("/nowhere"));
            let empty: Arc<dyn JobStore> = Arc::new(Empty);
            let stores = JobStores::new(vec![("sql".to_owned(), empty)], &["sql".to_owned()]);
            jobs.set_stores(Arc::new(stores));
            let (handler, events) = handler_of(jobs);
            let share = handler.client(Authority::Master);
            let place = handler.place(&share, &save_load(), 10, None).unwrap();
            let mut serving =
                std::pin::pin!(handler.serve(save_load(), Some(Authority::Master), place));
            let claim = loop {
                assert!(timeout(Duration::from_millis(20), &mut serving).await.is_err());
                if let std::task::Poll::Ready(Some(frames)) = events.take() {
                    break frames.claim.unwrap();
                }
            };
            assert!(timeout(Duration::from_millis(20), &mut serving).await.is_err());
            if is_kept {
                claim.honour();
            } else {
                drop(claim);
            }
            let (answer, _) = serving.await;
            assert_eq!(matches!(answer, Answer::Done(None)), is_kept, "{answer:?}");
            assert!(is_kept || matches!(answer, Answer::Refused { later: true, .. }));
        }
    }

    #[tokio::test]
    async fn invariant_2_a_job_cache_that_fails_keeps_nothing_from_the_sinks() {
        let returned = [("jid", "20261121233336123456"), ("id", "web-1"), ("return", "x")];
        let load = rmp_serde::to_vec(&std::collections::BTreeMap::from(returned)).unwrap();
        let body = Event::new("salt/job/20261121233336123456/ret/web-1", &load).frame().clone();
        for asked in [save_load(), Asked::Return { body, load: load.into() }] {
            // Its file has no place.
            let jobs = Jobs::new(std::path::Path::new("/nowhere"));
            jobs.keep(Some(Duration::from_secs(60)));
            let (handler, events) = handler_of(jobs);
            let share = handler.client(Authority::Master);
            let place = handler.place(&share, &asked, 10, None).unwrap();
            let mut serving = std::pin::pin!(handler.serve(asked, Some(Authority::Master), place));
            let (answer, frames) = loop {
                let answer = timeout(Duration::from_millis(20), &mut serving).await;
                let std::task::Poll::Ready(Some(mut frames)) = events.take() else {
                    assert!(answer.is_err(), "no event has come");
                    continue;
                };
                frames.claim.take().into_iter().for_each(Claim::honour);
                break match answer {
                    Ok((answer, _)) => (answer, frames),
                    Err(_) => (serving.await.0, frames),
                };
            };
            assert_eq!(frames.bodies.len(), 1);
            let says = format!("{answer:?}");
            assert!(says.contains("later: true") && says.contains("job cache"), "{says}");
        }
    }

    fn question() -> Asked {
        Asked::Job(JobCall::Ask { question: Question::GetJids, store: None })
    }

    fn events() -> Asked {
        Asked::Events { bodies: Vec::new() }
    }

    #[tokio::test]
    async fn invariant_6_what_is_at_work_keeps_turn_and_place_when_its_client_goes() {
        let handler = handler();
        let share = handler.client(Authority::Master);
        let place = handler.place(&share, &question(), 10, None).unwrap();
        let (go_on, wait) = mpsc::channel::<()>();
        let asking = handler.blocking(&handler.writes, place, move |_| {
            let _ = wait.recv();
            Ok(())
        });
        timeout(Duration::from_millis(50), asking).await.unwrap_err();
        assert!(!share.is_idle());
        assert_eq!(handler.writes.available_permits(), 0);
        drop(go_on);
        let freed = async {
            while !share.is_idle() || handler.writes.available_permits() == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(60), freed).await.unwrap();
    }

    #[tokio::test]
    async fn invariant_1_who_is_no_master_leaves_half_of_the_places_to_masters() {
        let handler = handler();
        for (asked, most) in [(question as fn() -> Asked, 128), (events, 96)] {
            let mut places = Vec::new();
            for _ in 0..100 {
                let share = handler.client(Authority::Bus);
                while let Ok(place) = handler.place(&share, &asked(), 10, None) {
                    places.push(place);
                }
            }
            assert_eq!(places.len(), most);
            handler.place(&handler.client(Authority::Master), &asked(), 10, None).unwrap();
            places.clear();
            handler.place(&handler.client(Authority::Bus), &asked(), 10, None).unwrap();
        }
    }

    #[tokio::test]
    async fn invariant_6_who_does_not_read_long_answers_gets_no_more_of_them() {
        let handler = handler();
        let share = handler.client(Authority::Master);
        let mut place = handler.place(&share, &question(), 10, None).unwrap();
        place.unread.add(UNREAD);
        let refused = handler.place(&share, &question(), 10, None).unwrap_err();
        assert!(matches!(refused, Answer::Refused { later: true, .. }), "{refused:?}");
        handler.place(&share, &events(), 10, None).unwrap();
        handler.place(&handler.client(Authority::Master), &question(), 10, None).unwrap();
        drop(place);
        handler.place(&share, &question(), 10, None).unwrap();
    }

    #[tokio::test]
    async fn what_a_master_has_to_say_waits_until_it_is_known_who_is_one() {
        let handler = handler();
        let share = handler.client(Authority::Bus);
        let load = Bytes::from_static(b"\x80");
        let save = JobCall::SaveLoad { jid: "1".to_owned(), load, minions: Vec::new() };
        for (asked, is_refused) in [(Asked::Job(save), true), (question(), false)] {
            let place = handler.place(&share, &asked, 10, None).unwrap();
            let (answer, _) = handler.serve(asked, None, place).await;
            let says = format!("{answer:?}");
            assert_eq!(says.contains("the masters are not known yet"), is_refused, "{says}");
            assert!(!is_refused || says.contains("later: true"), "{says}");
        }
    }
}
