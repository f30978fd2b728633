//! A sink that waits for its spill to open. The disk may be full, a file may stand where a
//! directory should be, a permission may be missing, or the spooler has just died. The sink is
//! parked with the reason, and nobody else is held up. Its events wait in memory, as far as that
//! goes, and the spill is tried again. Events of sources that can wait do so beside that, as beside
//! a full queue: the source bounds their number. A full memory holds up new events if `when_full`
//! is `block`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::client::backoff::Backoff;
use crate::observe::state::SinkState;
use crate::queue::config::{SpillConfig, WhenFull};
use crate::queue::open::Incoming;
use crate::queue::parcel::Parcel;
use crate::queue::spooler::{Leftover, Order};
use crate::sync::bell::{Bell, Receiver};

/// The waits between two tries.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// It takes a sink's events until its spill can be opened. All of its parts belong to the sink's
/// thread.
pub(crate) struct WaitingForSpill {
    pub(crate) state: Arc<SinkState>,
    /// The memory that events may take, and what to do when that is full.
    pub(crate) spill: SpillConfig,
    /// It is the disk that keeps the spill from being open; else its spooler has died.
    pub(crate) disk_fails: bool,
    /// The drain deadline has passed.
    pub(crate) give_up: CancellationToken,
    /// The wait before the first try, if it is to be longer than [`FIRST`].
    pub(crate) wait: Duration,
}

/// The events that wait in memory.
#[derive(Default)]
struct Held {
    events: usize,
    weight: usize,
    /// The events among these whose source can wait; they count for no bound.
    beside_events: usize,
    beside_weight: usize,
    disk_fails: bool,
}

impl Held {
    fn note(&mut self, parcel: &Parcel) {
        self.events += parcel.share().len();
        self.weight += parcel.share().weight();
        if parcel.can_wait() {
            self.beside_events += parcel.share().len();
            self.beside_weight += parcel.share().weight();
        }
    }

    /// The weight that counts for the bound.
    fn bounded_weight(&self) -> usize {
        self.weight - self.beside_weight
    }
}

impl WaitingForSpill {
    /// Tries until the spill is open, or the sink has to end or to leave. The order that says so is
    /// left to the next owner of the spill, with the events that came meanwhile.
    pub(crate) fn wait<T>(
        &self,
        mut reason: String,
        mut incoming: Incoming,
        orders: &Receiver<Order>,
        open: impl Fn() -> Result<T, String>,
    ) -> Result<(T, Incoming), Leftover> {
        let mut backoff = Backoff::new(FIRST.max(self.wait), LONGEST.max(self.wait));
        incoming.shares.bell().attend();
        let mut held = Held { disk_fails: self.disk_fails, ..Held::default() };
        incoming.inherited.iter().for_each(|parcel| held.note(parcel));
        loop {
            self.state.failed(&reason);
            if self.state.set_waiting_for_spill(Some(&reason)) {
                error!(sink = self.state.name, error = reason, "the sink is parked; trying again");
            }
            let until = Instant::now() + backoff.delay(None);
            let must_end = self.gather(&mut incoming, &mut held, orders, until);
            match open() {
                Ok(opened) => {
                    self.state.set_waiting_for_spill(None);
                    info!(sink = self.state.name, "the spill is open and the sink works again");
                    return Ok((opened, incoming));
                }
                Err(_) if must_end => return Err(self.end(incoming, orders)),
                Err(error) => (reason, held.disk_fails) = (error, true),
            }
        }
    }

    /// Takes what comes until then; `true` if the sink has to end, or to leave.
    fn gather(
        &self,
        incoming: &mut Incoming,
        held: &mut Held,
        orders: &Receiver<Order>,
        until: Instant,
    ) -> bool {
        loop {
            if !orders.is_empty() || self.give_up.is_cancelled() {
                return true;
            }
            let taken = match self.is_blocked(held) {
                true => Poll::Pending,
                false => incoming.shares.take(),
            };
            match taken {
                Poll::Ready(Some(parcel)) => self.take(parcel, &mut incoming.inherited, held),
                Poll::Ready(None) => return true,
                Poll::Pending => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    // The token rings no bell.
                    Bell::wait(left.min(FIRST));
                }
            }
        }
    }

    /// Shares are to stay in the channel.
    fn is_blocked(&self, held: &Held) -> bool {
        self.spill.when_full == WhenFull::Block && held.bounded_weight() > self.spill.memory_bound()
    }

    fn take(&self, mut parcel: Parcel, waiting: &mut VecDeque<Parcel>, held: &mut Held) {
        parcel.forget_encoding();
        let weight = held.bounded_weight();
        let has_room = weight == 0 || weight + parcel.share().weight() <= self.spill.memory_bound();
        // The last one that `block` lets in goes beyond the bound.
        if !has_room && !parcel.can_wait() && self.spill.when_full != WhenFull::Block {
            let state = &self.state;
            let dropped = if held.disk_fails { &state.dropped_disk } else { &state.dropped_full };
            dropped.add(parcel.share().len() as u64);
            return;
        }
        held.note(&parcel);
        waiting.push_back(parcel);
        self.state.queue_events.set_count(held.events);
        self.state.queue_bytes.set_count(held.weight);
        self.state.held_back_events.set_count(held.beside_events);
        self.state.set_oldest(waiting.front().map(|parcel| parcel.share().received()));
    }

    /// Hands the events that came to the next owner, or gives them up.
    fn end(&self, incoming: Incoming, orders: &Receiver<Order>) -> Leftover {
        let Incoming { shares, inherited } = incoming;
        let leaves = matches!(orders.take(), Poll::Ready(Some(order)) if order != Order::End);
        if leaves {
            return Leftover { on_disk: 0, shares: Some(shares), in_memory: inherited.into() };
        }
        let mut lost = 0;
        for parcel in inherited.into_iter().chain(shares.try_iter()) {
            let state = &self.state;
            // A source that can wait is told, and has lost nothing.
            let dropped = if parcel.can_wait() { &state.dropped_stop } else { &state.dropped_disk };
            dropped.add(parcel.share().len() as u64);
            lost += parcel.share().len();
        }
        self.state.queue_events.set_count(0);
        self.state.queue_bytes.set_count(0);
        self.state.held_back_events.set_count(0);
        self.state.set_oldest(None);
        error!(
            sink = self.state.name,
            events = lost,
            "the spill could not be opened before the daemon ended; the events that waited in \
             memory are lost"
        );
        Leftover { on_disk: 0, shares: None, in_memory: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use tokio::sync::oneshot::error::TryRecvError;

    use crate::event::chunk::{Chunk, Share};
    use crate::event::{Event, Origin};
    use crate::queue::waiting_for_spill::*;
    use crate::sync::bell::channel;
    use crate::sync::receipt::Claim;
    use crate::units::ByteSize;

    fn share(tag: &str) -> Parcel {
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        Share::all(Arc::new(Chunk::new(origin, 7, vec![Event::new(tag, b"\x80")]))).into()
    }

    fn waiting_for_spill(memory_bound: usize) -> WaitingForSpill {
        let state = Arc::new(SinkState::new("db", "test"));
        let give_up = CancellationToken::new();
        let memory = Some(ByteSize(memory_bound as u64));
        let spill = SpillConfig { memory, ..SpillConfig::default() };
        WaitingForSpill { state, spill, disk_fails: true, give_up, wait: Duration::ZERO }
    }

    /// The events of a sink that can be opened at once after these have come, and its state.
    fn opened(waiting_for_spill: &WaitingForSpill, shares: Vec<Parcel>) -> Vec<String> {
        let (shares_in, shares_out) = channel(100, &Bell::default());
        let (_orders, orders_out) = channel(2, shares_out.bell());
        for share in shares {
            shares_in.send(share).unwrap();
        }
        drop(shares_in);
        let incoming = Incoming { shares: shares_out, inherited: VecDeque::new() };
        let Ok(((), incoming)) =
            waiting_for_spill.wait("no".to_owned(), incoming, &orders_out, || Ok(()))
        else {
            panic!("it must be open")
        };
        incoming
            .inherited
            .iter()
            .flat_map(|parcel| parcel.share().events())
            .map(|event| event.tag().to_owned())
            .collect()
    }

    #[test]
    fn invariant_3_events_whose_source_can_wait_do_so_beside_a_full_memory_and_are_not_dropped() {
        let waiting_for_spill = waiting_for_spill(1);
        let (claim, mut receipt) = Claim::new();
        let claimed = |tag| share(tag).claimed(Some(claim.clone()));
        let coming = vec![claimed("a"), share("b"), claimed("c"), share("d"), claimed("e")];
        assert_eq!(opened(&waiting_for_spill, coming).concat(), "abce");
        assert_eq!(
            (waiting_for_spill.state.dropped_disk.get(), waiting_for_spill.state.dropped()),
            (1, 1)
        );
        assert!(receipt.try_recv().is_err_and(|error| error == TryRecvError::Empty));
    }

    #[test]
    fn a_memory_that_is_full_while_a_spooler_is_begun_anew_is_no_failure_of_the_disk() {
        let waiting_for_spill = WaitingForSpill { disk_fails: false, ..waiting_for_spill(1) };
        assert_eq!(opened(&waiting_for_spill, vec![share("a"), share("b")]).concat(), "a");
        assert_eq!(
            (waiting_for_spill.state.dropped_full.get(), waiting_for_spill.state.dropped()),
            (1, 1)
        );
    }

    #[test]
    fn a_full_memory_holds_up_what_comes_where_the_configuration_says_so() {
        let mut waiting_for_spill = waiting_for_spill(share("a").share().weight());
        waiting_for_spill.spill.when_full = WhenFull::Block;
        let (shares, shares_out) = channel(100, &Bell::default());
        let (orders, orders_out) = channel(2, shares_out.bell());
        for tag in ["a", "b", "c"] {
            shares.send(share(tag)).unwrap();
        }
        let open = || {
            orders.send(Order::Leave).unwrap();
            Err::<(), _>("no space".to_owned())
        };
        let incoming = Incoming { shares: shares_out, inherited: VecDeque::new() };
        let Err(left) = waiting_for_spill.wait("no space".to_owned(), incoming, &orders_out, open)
        else {
            panic!("it cannot be open")
        };
        assert_eq!((left.in_memory.len(), left.shares.unwrap().len()), (2, 1));
        assert_eq!(waiting_for_spill.state.dropped(), 0);
    }

    #[test]
    fn events_wait_in_memory_until_the_spill_can_be_opened() {
        let waiting_for_spill = waiting_for_spill(1 << 20);
        let state = Arc::clone(&waiting_for_spill.state);
        let (shares, shares_out) = channel(4, &Bell::default());
        let (_orders, orders_out) = channel(2, shares_out.bell());
        let incoming = Incoming { shares: shares_out, inherited: VecDeque::new() };
        let repaired = Arc::new(AtomicBool::new(false));
        let is_repaired = Arc::clone(&repaired);
        let open = move || match is_repaired.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err("no space".to_owned()),
        };
        let waiting = thread::spawn(move || {
            waiting_for_spill.wait("no space".to_owned(), incoming, &orders_out, open)
        });
        shares.send(share("a")).unwrap();
        shares.send(share("b")).unwrap();
        while state.queue_events.get() < 2.0 {
            thread::yield_now();
        }
        assert_eq!(state.parked().as_deref(), Some("no space"));
        repaired.store(true, Ordering::SeqCst);
        let Ok(((), incoming)) = waiting.join().unwrap() else { panic!("it must be open") };
        let tags: Vec<_> = incoming
            .inherited
            .iter()
            .flat_map(|parcel| parcel.share().events())
            .map(Event::tag)
            .collect();
        assert_eq!((tags, state.parked(), state.dropped()), (vec!["a", "b"], None, 0));
    }

    #[test]
    fn what_memory_cannot_hold_and_what_is_left_at_the_end_is_counted() {
        let one = share("a").share().weight();
        let waiting_for_spill = waiting_for_spill(one);
        let (shares, shares_out) = channel(4, &Bell::default());
        let (_orders, orders_out) = channel(2, shares_out.bell());
        for tag in ["a", "b", "c"] {
            shares.send(share(tag)).unwrap();
        }
        drop(shares);
        let incoming = Incoming { shares: shares_out, inherited: VecDeque::new() };
        let open = || Err::<(), _>("no space".to_owned());
        let Err(left) = waiting_for_spill.wait("no space".to_owned(), incoming, &orders_out, open)
        else {
            panic!("it cannot be open")
        };
        assert_eq!((left.on_disk, left.in_memory.len()), (0, 0));
        assert_eq!(
            (waiting_for_spill.state.dropped_disk.get(), waiting_for_spill.state.dropped()),
            (3, 3)
        );
    }

    #[test]
    fn a_sink_that_changes_hands_on_what_waits() {
        let waiting_for_spill = waiting_for_spill(1 << 20);
        let (shares, shares_out) = channel(4, &Bell::default());
        let (orders, orders_out) = channel(2, shares_out.bell());
        let incoming = Incoming { shares: shares_out, inherited: [share("a")].into() };
        orders.send(Order::Leave).unwrap();
        let open = || Err::<(), _>("no space".to_owned());
        let Err(left) = waiting_for_spill.wait("no space".to_owned(), incoming, &orders_out, open)
        else {
            panic!("it cannot be open")
        };
        shares.send(share("b")).unwrap();
        assert_eq!(left.in_memory.len(), 1);
        assert_eq!(left.shares.unwrap().recv().unwrap().share().len(), 1);
    }
}
