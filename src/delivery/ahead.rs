//! The batch behind the one that is being written, and the form that is made of it meanwhile.
//!
//! ```text
//! writes      │ batch 1       │ batch 2       │ batch 3
//! prepares    │ batch 2       │ batch 3       │ batch 4
//! ```
//!
//! A kind that encodes its batches gives the work to do so ([`Sink::preparer`]). It runs on a
//! thread that may block, while the kind waits for its store. These rules keep the rest as it is
//! without:
//!
//! - One batch is prepared ahead, of those that the writer holds anyway. So no more batches are
//!   begun, and they are settled in order.
//! - A form goes to the first attempt at its own whole batch, and to nothing else: to no part of
//!   it, and to no second attempt.
//! - An attempt that does not settle its batch ends the overlap. The form of the next batch is
//!   dropped before the failed one is tried again. So a store that is down holds no forms, and a
//!   form that has begun to go out comes again behind the batch before it.
//! - Forms count against a budget of the process by the bytes of their frames, until their own
//!   write begins. A form may be larger than its frames: most JSON is by a tenth, and that of
//!   control characters is six times as large. A batch that does not fit is prepared by its own
//!   write. So is one that may have long JSON, which has to wait for a permit first
//!   ([`long_json`]).
//! - Nothing is prepared ahead while the process looks for the event that kills it
//!   ([`deaths`](super::deaths)), nor where a rate limit holds batches back.
//! - A panic is forgotten. The write of the batch makes the form itself, and panics where it is
//!   counted.

use std::pin::pin;

use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};

use crate::event::batch::Batch;
use crate::event::long_json;
use crate::sink::contract::Preparer;
#[cfg(doc)]
use crate::sink::contract::Sink;

/// Bytes of frames whose forms may be held ahead in the process.
const BUDGET: usize = 64 << 20;

/// The bytes of one permit; a semaphore counts no further than 32 bits at a time.
const KIB: usize = 1 << 10;

static FREE: Semaphore = Semaphore::const_new(BUDGET / KIB);

/// The batches of a writer.
pub(super) struct Ahead<P> {
    batches: mpsc::Receiver<Batch>,
    /// The next batch, if it was taken to be prepared.
    next: Option<Batch>,
    /// The work on its form.
    preparing: Option<Preparing<P>>,
    /// The batch that was taken last has not failed.
    is_going_well: bool,
}

struct Preparing<P> {
    task: JoinHandle<Option<P>>,
    _permit: SemaphorePermit<'static>,
}

/// The next thing that a writer does.
pub(super) enum Next {
    /// It delivers this.
    Batch(Batch),
    /// It calls the sink's `tick`.
    Due,
    /// There are no more batches.
    End,
}

impl<P: Send + 'static> Ahead<P> {
    pub(super) fn new(batches: mpsc::Receiver<Batch>) -> Self {
        Ahead { batches, next: None, preparing: None, is_going_well: false }
    }

    /// There is no batch, for now.
    pub(super) fn is_empty(&self) -> bool {
        self.next.is_none() && self.batches.is_empty()
    }

    /// No more batches come.
    pub(super) fn is_closed(&self) -> bool {
        self.batches.is_closed()
    }

    /// Waits for a batch, or until `due`. A due `tick` goes first, so that no stream of batches
    /// holds it up.
    pub(super) async fn next(&mut self, due: Option<Instant>) -> Next {
        let is_due = async {
            match due {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let next = async {
            match self.next.take() {
                Some(batch) => Some(batch),
                None => self.batches.recv().await,
            }
        };
        // Each takes a batch only if it ends first.
        let batch = tokio::select! {
            biased;
            () = is_due => return Next::Due,
            batch = next => batch,
        };
        self.is_going_well = true;
        batch.map_or(Next::End, Next::Batch)
    }

    /// The form of the batch that was taken last, if it was made.
    pub(super) async fn prepared(&mut self) -> Option<P> {
        // It is left in its place until it has ended: this may be cut off, and then it is waited
        // for again.
        let ended = (&mut self.preparing.as_mut()?.task).await;
        self.preparing = None;
        ended.ok()?
    }

    /// The batch that was taken last is not settled: drops the form of the next, and makes no more
    /// until another batch is taken.
    pub(super) async fn forget(&mut self) {
        self.is_going_well = false;
        drop(self.prepared().await);
    }

    /// Writes a batch and prepares the next meanwhile, if it comes.
    pub(super) async fn beside<T>(
        &mut self,
        write: impl Future<Output = T>,
        preparer: Option<Preparer<P>>,
    ) -> T {
        let mut write = pin!(write);
        let Some(preparer) = preparer.filter(|_| self.is_going_well) else { return write.await };
        // A batch that it takes stays in `self`, so nothing is lost if the write ends first.
        tokio::select! {
            biased;
            written = &mut write => return written,
            () = self.prepare(preparer) => {}
        }
        write.await
    }

    /// Begins to prepare the next batch, as soon as there is one.
    async fn prepare(&mut self, preparer: Preparer<P>) {
        if self.next.is_none() {
            self.next = self.batches.recv().await;
        }
        let Some(batch) = self.next.as_ref().filter(|_| self.preparing.is_none()) else { return };
        let Some(permit) = permit(&FREE, batch) else { return };
        let batch = batch.clone();
        let task = spawn_blocking(move || preparer(&batch));
        self.preparing = Some(Preparing { task, _permit: permit });
    }
}

/// A part of the budget for the batch; `None` if there is too little now, or it is to be prepared
/// by its own write.
fn permit(free: &'static Semaphore, batch: &Batch) -> Option<SemaphorePermit<'static>> {
    if long_json::may_need_permit(batch) {
        return None;
    }
    free.try_acquire_many(u32::try_from(batch.bytes().div_ceil(KIB)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tokio::sync::Notify;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::delivery::deaths::Deaths;
    use crate::delivery::retry::RetryConfig;
    use crate::delivery::tests::{Unconfigurable, batch, shared};
    use crate::delivery::{RateLimit, Shared, Writer, drive};
    use crate::event::Event;
    use crate::event::batch::BatchLimits;
    use crate::sink::contract::{
        Again, ConnectError, Context, Defaults, Once, Partly, Refusal, Sink, WriteError,
    };
    use crate::sink::testing::context;
    use crate::sync::bell::{Bell, channel};
    use crate::units::{ByteSize, Span};

    /// The answer to one write.
    #[derive(Debug, Clone, Copy)]
    enum Answer {
        Stored,
        Busy,
        Gone,
        Refused,
        FirstRefused,
        FirstAgain,
        Panic,
    }

    /// A store that answers as it is told, each time once the next batch is prepared or cannot be.
    #[derive(Default)]
    struct Store {
        answers: VecDeque<Answer>,
        /// The work on forms of batches with such an event panics.
        poison: Option<String>,
        log: Vec<String>,
        prepared: Arc<Notify>,
    }

    type Log = Arc<Mutex<Store>>;

    fn tags(batch: &Batch) -> String {
        batch.events().map(Event::tag).collect()
    }

    fn note(store: &Log, line: String) {
        store.lock().unwrap().log.push(line);
    }

    struct Encoding(Log);

    /// The form of a batch: the tags of its events.
    struct Form(String, Log);

    impl Drop for Form {
        fn drop(&mut self) {
            note(&self.1, format!("drop {}", self.0));
        }
    }

    impl Sink for Encoding {
        const NAME: &'static str = "encoding";
        const ABOUT: &'static str = "makes forms of batches";
        const DEFAULTS: Defaults =
            Defaults::store(BatchLimits::new(10, ByteSize(1000), Span::millis(0)));
        const ONCE: Once = Once::No;
        type Config = Unconfigurable<Store>;
        type Prepared = Form;

        async fn connect(config: &Self::Config, _: &Context) -> Result<Self, ConnectError> {
            Ok(Encoding(Arc::clone(&config.0)))
        }

        async fn write(&mut self, batch: &Batch, form: Option<Form>) -> Result<(), WriteError> {
            let how = match &form {
                None => "plain",
                Some(form) => {
                    assert_eq!(form.0, tags(batch));
                    "formed"
                }
            };
            note(&self.0, format!("write {} {how}", tags(batch)));
            let prepared = Arc::clone(&self.0.lock().unwrap().prepared);
            // Nothing is prepared behind the last batch, in care, and behind a failure.
            let _ = tokio::time::timeout(Span::seconds(1).0, prepared.notified()).await;
            let answer = self.0.lock().unwrap().answers.pop_front();
            match answer.unwrap_or(Answer::Stored) {
                Answer::Stored => Ok(()),
                Answer::Busy => Err(WriteError::retry("writing", "busy")),
                Answer::Gone => Err(WriteError::reconnect("writing", "gone")),
                Answer::Refused => Err(WriteError::reject("writing", "bad")),
                Answer::FirstRefused => {
                    let refusal = Refusal { place: 0, cause: "bad".into() };
                    Err(WriteError::refused("writing", vec![refusal]))
                }
                Answer::FirstAgain => {
                    let again = Again { places: [0].into(), cause: None, after: None };
                    let (doing, refused) = ("writing".into(), Vec::new());
                    Err(WriteError::Partly(Partly { doing, refused, again: Some(again) }))
                }
                Answer::Panic => panic!("out of luck"),
            }
        }

        fn preparer(&self) -> Option<Preparer<Form>> {
            let store = Arc::clone(&self.0);
            Some(Box::new(move |batch| {
                let (is_poison, prepared) = {
                    let store = store.lock().unwrap();
                    let is_poison = store.poison.as_ref().is_some_and(|p| tags(batch).contains(p));
                    (is_poison, Arc::clone(&store.prepared))
                };
                note(&store, format!("prepare {}", tags(batch)));
                prepared.notify_one();
                assert!(!is_poison, "poison");
                Some(Form(tags(batch), store))
            }))
        }
    }

    async fn run(shared: Shared, store: Store, batches: Vec<Batch>) -> (Vec<String>, Vec<u64>) {
        let store = Arc::new(Mutex::new(store));
        let (sender, receiver) = mpsc::channel(batches.len());
        for batch in batches {
            sender.send(batch).await.unwrap();
        }
        drop(sender);
        let (settled, settled_out) = channel(10, &Bell::default());
        let (shared, stop) = (Arc::new(shared), CancellationToken::new());
        let writer = Writer { context: context(), batches: receiver, settled, shared, stop };
        drive::<Encoding>(&Unconfigurable(Arc::clone(&store)), writer).await;
        let settled = settled_out.try_iter().map(|settled| settled.first).collect();
        let log = std::mem::take(&mut store.lock().unwrap().log);
        (log, settled)
    }

    fn three() -> Vec<Batch> {
        vec![batch(0, &["a", "b"]), batch(2, &["c", "d"]), batch(4, &["e"])]
    }

    async fn run_three(store: Store) -> Vec<String> {
        let (log, settled) = run(shared(RetryConfig::default()), store, three()).await;
        assert_eq!(settled, [0, 2, 4]);
        log
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_batch_is_prepared_while_one_is_written() {
        let log = run_three(Store::default()).await;
        let expected = [
            "write ab plain",
            "prepare cd",
            "write cd formed",
            "prepare e",
            "drop cd",
            "write e formed",
            "drop e",
        ];
        assert_eq!(log, expected);
    }

    /// The event that the store does not take may be anywhere; the others come in order, and none
    /// by a form of before.
    #[tokio::test(start_paused = true)]
    async fn a_form_is_dropped_before_a_batch_that_failed_comes_again() {
        for (answer, again) in [
            (Answer::Busy, &["write ab plain"][..]),
            (Answer::Gone, &["write ab plain"]),
            (Answer::Panic, &["write ab plain"]),
            (Answer::Refused, &["write a plain", "write b plain"]),
            (Answer::FirstAgain, &["write a plain"]),
        ] {
            let answers = [answer].into();
            let log = run_three(Store { answers, ..Store::default() }).await;
            let before = ["write ab plain", "prepare cd", "drop cd"];
            let after = ["write cd plain", "prepare e", "write e formed", "drop e"];
            assert_eq!(log, [&before[..], again, &after].concat(), "{answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_form_stays_if_the_batch_before_it_is_settled_with_dead_letters() {
        let answers = [Answer::FirstRefused].into();
        let log = run_three(Store { answers, ..Store::default() }).await;
        assert!(log.contains(&"write cd formed".to_owned()), "{log:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_over_a_form_costs_nothing() {
        let poison = Some("c".to_owned());
        let shared = shared(RetryConfig::default());
        let state = Arc::clone(&shared.state);
        let (log, settled) = run(shared, Store { poison, ..Store::default() }, three()).await;
        assert_eq!(settled, [0, 2, 4]);
        assert!(log.contains(&"write cd plain".to_owned()), "{log:?}");
        assert_eq!((state.panics.get(), state.retries.get(), state.events.get()), (0, 0, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_prepared_ahead_of_a_rate_limit() {
        let rate_limit = Some(RateLimit::new(1));
        let shared = Shared { rate_limit, ..shared(RetryConfig::default()) };
        let (log, _) = run(shared, Store::default(), three()).await;
        assert_eq!(log, ["write ab plain", "write cd plain", "write e plain"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_prepared_while_an_event_that_kills_is_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            Deaths::begin(folder.path(), 1);
        }
        let deaths = Some(Arc::new(Deaths::begin(folder.path(), 1)));
        let shared = Shared { deaths, ..shared(RetryConfig::default()) };
        let (log, settled) = run(shared, Store::default(), three()).await;
        assert_eq!(settled, [0, 2, 4]);
        assert_eq!(log, ["write ab plain", "write cd plain", "write e plain"]);
    }

    #[test]
    fn a_batch_beyond_the_budget_and_one_with_long_json_are_not_prepared() {
        static ONE_KIB: Semaphore = Semaphore::const_new(1);
        let long = Event::new("long", &vec![0xc3; crate::event::LONG + 1]);
        let fits = batch(0, &["a"]);
        let held = permit(&ONE_KIB, &fits);
        assert!(held.is_some());
        assert!(permit(&ONE_KIB, &fits).is_none());
        drop(held);
        assert!(permit(&ONE_KIB, &fits).is_some());
        assert!(permit(&FREE, &crate::sink::testing::batch(vec![long])).is_none());
    }

    proptest! {
        /// Whatever the store answers, every batch is settled in order, a form goes to the first
        /// attempt at its own batch, and none is left.
        #[test]
        fn forms_change_nothing_about_the_fate_of_events(
            answers in prop::collection::vec(0..6_u8, 0..12),
            lens in prop::collection::vec(1..4_usize, 1..6),
        ) {
            let answers = answers.into_iter().map(|answer| match answer {
                0 => Answer::Busy,
                1 => Answer::Gone,
                2 => Answer::Refused,
                3 => Answer::FirstRefused,
                4 => Answer::FirstAgain,
                _ => Answer::Stored,
            });
            let (mut batches, mut first) = (Vec::new(), 0);
            for len in &lens {
                let tags: Vec<_> = (0..*len).map(|n| format!("<{}>", first + n)).collect();
                let tags: Vec<_> = tags.iter().map(String::as_str).collect();
                batches.push(batch(first as u64, &tags));
                first += len;
            }
            let firsts: Vec<_> = batches.iter().map(Batch::first).collect();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let shared = shared(RetryConfig::default());
            let state = Arc::clone(&shared.state);
            let store = Store { answers: answers.collect(), ..Store::default() };
            let (log, settled) = runtime.block_on(run(shared, store, batches));
            prop_assert_eq!(settled, firsts);
            prop_assert_eq!(state.events.get() + state.rejected.get(), first as u64);
            let count = |word: &str| log.iter().filter(|line| line.starts_with(word)).count();
            prop_assert_eq!(count("prepare"), count("drop"));
        }
    }
}
