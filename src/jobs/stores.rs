//! The stores of jobs that are asked beside the job cache: those of sinks, by the sinks' names.
//!
//! A store may hang or fail for as long as it likes. Each is given a moment and a few questions at
//! a time. A store that let its whole moment pass is left alone for a while, so the others answer
//! before Salt gives up. One deadline holds for all stores of a question together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::spool::Spooled;
use super::store::{Answer, AskError, JobStore};
use crate::error::chain;
use crate::event::is_job;
use crate::sync::lock;

/// The time that a store may take.
const EACH: Duration = Duration::from_secs(2);

/// The time that all may take that are asked for one question. Salt waits for three seconds.
const ALL: Duration = Duration::from_millis(2500);

/// The time for which a store is left alone that gave no answer in its time.
const REST: Duration = Duration::from_secs(10);

/// Questions that a store works on at the same time.
const QUESTIONS: usize = 4;

/// The time by which a question that is put now has to be answered.
pub(crate) fn deadline() -> Instant {
    Instant::now() + ALL
}

/// The stores that can be asked.
#[derive(Default)]
pub(crate) struct JobStores {
    all: Vec<NamedStore>,
    /// The places of the stores that answer behind the job cache, in order.
    order: Vec<usize>,
}

struct NamedStore {
    name: String,
    store: Arc<dyn JobStore>,
    turns: Arc<Semaphore>,
    rests_until: Mutex<Option<Instant>>,
    is_failing: AtomicBool,
}

impl JobStores {
    /// These stores. Those named in `order` answer behind the job cache.
    pub(crate) fn new(all: Vec<(String, Arc<dyn JobStore>)>, order: &[String]) -> Self {
        let place = |name: &String| all.iter().position(|(other, _)| other == name);
        let order = order.iter().filter_map(place).collect();
        let all = all.into_iter().map(|(name, store)| NamedStore::new(name, store)).collect();
        JobStores { all, order }
    }

    /// Tells if none answers behind the job cache.
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Tells if one has this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.all.iter().any(|store| store.name == name)
    }

    /// The names of all stores.
    pub(crate) fn names(&self) -> String {
        let names: Vec<_> = self.all.iter().map(|store| store.name.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }

    /// Asks the store of this name, until a deadline. `None` if it knows nothing, or if there is
    /// none.
    pub(crate) async fn ask_one(
        &self,
        name: &str,
        until: Instant,
        answer: impl Fn() -> Answer + Send,
    ) -> Result<Option<Spooled>, AskError> {
        match self.all.iter().find(|store| store.name == name) {
            Some(store) => store.ask(answer(), until).await,
            None => Ok(None),
        }
    }

    /// Asks those behind the job cache one after the other, until a deadline; the first that knows
    /// anything answers. A store that fails is passed over, and its error is the answer if nobody
    /// knows anything.
    pub(crate) async fn ask_in_turn(
        &self,
        until: Instant,
        answer: impl Fn() -> Answer + Send,
    ) -> Result<Option<Spooled>, AskError> {
        let mut failure = None;
        for store in self.order.iter().filter_map(|place| self.all.get(*place)) {
            match store.ask(answer(), until).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => _ = failure.get_or_insert(error),
            }
        }
        failure.map_or(Ok(None), Err)
    }
}

impl NamedStore {
    fn new(name: String, store: Arc<dyn JobStore>) -> Self {
        let turns = Arc::new(Semaphore::new(QUESTIONS));
        let is_failing = AtomicBool::new(false);
        NamedStore { name, store, turns, rests_until: Mutex::default(), is_failing }
    }

    async fn ask(&self, answer: Answer, until: Instant) -> Result<Option<Spooled>, AskError> {
        // A store may hold returns under such an id, of many jobs that nobody published.
        if answer.question().job().is_some_and(|jid| !is_job(jid)) {
            return Ok(None);
        }
        let now = Instant::now();
        if lock::hold(&self.rests_until).is_some_and(|until| now < until) {
            return Err(self.failed("it gave no answer in time; it is asked again in some seconds"));
        }
        if until <= now {
            return Err(self.failed("the stores before it used up the time of the question"));
        }
        let end = until.min(now + EACH);
        let asking = async {
            // The semaphore is never closed; without a permit the work would only be out of turn.
            let turn = Arc::clone(&self.turns).acquire_owned().await.ok();
            let answer = self.store.ask(answer.in_turn(turn).by(end)).await?;
            answer.finished().map_err(|cause| AskError::new("keeping an answer", cause))
        };
        let asked = match timeout_at(end, asking).await {
            // A store that sees its time pass gives up by itself.
            Ok(asked) if asked.is_ok() || Instant::now() < end => asked,
            _ => {
                let seconds = now.elapsed().as_secs_f32();
                let late = self.failed(&format!("it gave no answer within {seconds:.1} s"));
                // A store to which others left too little time has not failed.
                if end < now + EACH {
                    return Err(late);
                }
                *lock::hold(&self.rests_until) = Some(Instant::now() + REST);
                Err(late)
            }
        };
        match &asked {
            Ok(_) if self.is_failing.swap(false, Ordering::Relaxed) => {
                info!(sink = self.name, "the store of jobs answers again");
            }
            Err(error) if !self.is_failing.swap(true, Ordering::Relaxed) => {
                let error = chain(error);
                warn!(
                    sink = self.name,
                    error, "the store of jobs gives no answer; others are asked"
                );
            }
            _ => {}
        }
        asked
    }

    fn failed(&self, why: &str) -> AskError {
        AskError::new(format!("asking the sink {} for jobs", self.name), why)
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::spawn_blocking;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::jobs::Jobs;
    use crate::jobs::store::{Asking, Question};

    /// A store that knows these minions, fails, or never answers.
    #[derive(Clone, Copy)]
    enum Known {
        These(&'static [&'static str]),
        Fails(&'static str),
        Hangs,
        /// It knows this minion, in so many milliseconds.
        Takes(u64, &'static str),
    }

    impl JobStore for Known {
        fn ask(&self, mut answer: Answer) -> Asking<'_> {
            Box::pin(async move {
                match self {
                    Known::These(minions) => minions.iter().for_each(|minion| answer.text(minion)),
                    Known::Fails(why) => return Err(AskError::new("asking a test", *why)),
                    Known::Hangs => std::future::pending().await,
                    Known::Takes(millis, minion) => {
                        sleep(Duration::from_millis(*millis)).await;
                        answer.text(minion);
                    }
                }
                Ok(answer)
            })
        }
    }

    fn stores(known: &[Known]) -> JobStores {
        let named = |(place, known): (usize, &Known)| {
            (place.to_string(), Arc::new(*known) as Arc<dyn JobStore>)
        };
        let all: Vec<_> = known.iter().enumerate().map(named).collect();
        let order: Vec<_> = all.iter().map(|(name, _)| name.clone()).collect();
        JobStores::new(all, &order)
    }

    async fn asked(stores: &JobStores) -> Result<Option<Vec<u8>>, String> {
        let folder = tempfile::tempdir().unwrap();
        let jobs = Jobs::new(folder.path());
        let found = stores.ask_in_turn(deadline(), || answer(&jobs)).await;
        let whole = |found: Option<Spooled>| found.map(|found| found.into_memory().unwrap());
        found.map(whole).map_err(|error| chain(&error))
    }

    fn answer(jobs: &Jobs) -> Answer {
        jobs.answer_to(Question::GetMinions, 1 << 10)
    }

    #[tokio::test]
    async fn the_first_store_that_knows_answers() {
        let (none, a, b) = (Known::These(&[]), Known::These(&["a"]), Known::These(&["b"]));
        let broken = Known::Fails("broken");
        assert_eq!(asked(&stores(&[none, a, b])).await.unwrap().unwrap(), b"\x91\xa1a");
        assert_eq!(asked(&stores(&[broken, none, b])).await.unwrap().unwrap(), b"\x91\xa1b");
        assert_eq!(asked(&stores(&[none])).await.unwrap(), None);
        assert_eq!(asked(&stores(&[broken, none])).await.unwrap_err(), "asking a test: broken");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_passed_over_and_left_alone_for_a_while() {
        let stores = stores(&[Known::Hangs, Known::These(&["b"])]);
        let began = Instant::now();
        assert_eq!(asked(&stores).await.unwrap().unwrap(), b"\x91\xa1b");
        assert_eq!(began.elapsed().as_secs(), EACH.as_secs());
        for _ in 0..3 {
            assert_eq!(asked(&stores).await.unwrap().unwrap(), b"\x91\xa1b");
        }
        assert_eq!(began.elapsed().as_secs(), EACH.as_secs(), "it is not asked again");
        tokio::time::advance(REST).await;
        asked(&stores).await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 2 * EACH.as_secs() + REST.as_secs());
        let alone = self::stores(&[Known::Hangs]);
        let error = asked(&alone).await.unwrap_err();
        assert!(error.contains("no answer within 2.0 s"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_puts_no_other_to_rest() {
        let stores = stores(&[Known::Hangs, Known::Takes(600, "b"), Known::These(&["c"])]);
        let error = asked(&stores).await.unwrap_err();
        assert!(error.contains("the sink 0"), "{error}");
        // The first rests now, and the others do not.
        assert_eq!(asked(&stores).await.unwrap().unwrap(), b"\x91\xa1b");
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_one_question_costs_has_one_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let jobs = Jobs::new(folder.path());
        let stores = stores(&[Known::Takes(1900, "a"), Known::Hangs]);
        let (began, until) = (Instant::now(), deadline());
        assert!(stores.ask_one("1", until, || answer(&jobs)).await.is_err());
        assert!(stores.ask_in_turn(until, || answer(&jobs)).await.is_err());
        assert!(stores.ask_in_turn(until, || answer(&jobs)).await.is_err());
        assert_eq!(began.elapsed().as_millis(), ALL.as_millis());
    }

    /// A store that works on a thread, for as long as there is room and time.
    struct Works;

    impl JobStore for Works {
        fn ask(&self, mut answer: Answer) -> Asking<'_> {
            Box::pin(async move {
                let working = spawn_blocking(move || {
                    while answer.goes_on() {
                        std::thread::yield_now();
                    }
                    answer
                });
                working.await.map_err(|error| AskError::new("working", error))
            })
        }
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_ends() {
        let folder = tempfile::tempdir().unwrap();
        let jobs = Jobs::new(folder.path());
        let stores = JobStores::new(vec![("a".to_owned(), Arc::new(Works))], &[]);
        let until = Instant::now() + Duration::from_millis(50);
        assert!(stores.ask_one("a", until, || answer(&jobs)).await.is_err());
        let all = u32::try_from(QUESTIONS).unwrap();
        let turns = stores.all[0].turns.acquire_many(all);
        drop(timeout(Duration::from_secs(60), turns).await.unwrap().unwrap());
        let mut late = answer(&jobs).by(Instant::now());
        late.text("a");
        assert!(!late.goes_on());
        assert!(late.finished().is_err(), "a part is no answer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_ends_before_its_time_does() {
        let folder = tempfile::tempdir().unwrap();
        let jobs = Jobs::new(folder.path());
        let list = || jobs.answer_to(Question::GetJids, 1 << 10);
        let (mut short, mut long) = (list(), list());
        tokio::time::advance(EACH).await;
        let now = Instant::now();
        (short, long) = (short.by(now + Duration::from_millis(500)), long.by(now + EACH));
        assert!(!short.is_late() && !long.is_late());
        tokio::time::advance(Duration::from_millis(400)).await;
        assert!(short.is_late() && !long.is_late());
        assert!(short.goes_on() && short.finished().is_ok(), "it is cut");
        tokio::time::advance(Duration::from_millis(700)).await;
        assert!(long.is_late() && long.goes_on());
    }
}
