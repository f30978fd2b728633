//! Channels that end in one thread, which waits for all of them at once.
//!
//! The thread looks at each of its channels and then waits for its [`Bell`]; a sender rings it.
//! `select!` of crossbeam-channel does the same at a higher price. There a sender wakes the
//! receiver while it holds a lock that the receiver takes first thing, so every second wait is two.
//! Each wait has to be entered at every channel too. Here it is one wake-up, and none at all if the
//! thread is awake.
//!
//! Each use of a channel shows that the thread moves ([`threads`]).
//!
//! A ring is never lost: one that comes while the thread does not wait ends its next wait at once.

use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread::{self, Thread};
use std::time::Duration;

use crossbeam_channel::{SendError, TryRecvError, TrySendError};

use crate::observe::threads;
use crate::sync::lock;

/// The time to wait where there is nothing to do without a ring.
pub(crate) const IDLE: Duration = Duration::from_secs(3600);

/// The signal that a thread waits for. Clones ring in the same place.
#[derive(Debug, Clone, Default)]
pub struct Bell(Arc<Mutex<Option<Thread>>>);

impl Bell {
    /// From now on the bell rings for this thread. It has not heard earlier rings, so it looks at
    /// its channels before it waits.
    pub(crate) fn attend(&self) {
        *lock::hold(&self.0) = Some(thread::current());
    }

    /// Lets the thread that attends to a bell wait for a ring, or for as long as `limit`, or now
    /// and then for nothing.
    pub(crate) fn wait(limit: Duration) {
        threads::waiting(|| thread::park_timeout(limit));
    }

    /// Lets the thread look, for something that is in no channel.
    pub(crate) fn ring(&self) {
        if let Some(thread) = &*lock::hold(&self.0) {
            thread.unpark();
        }
    }
}

/// A bounded channel into the thread that attends to the bell.
pub fn channel<T>(capacity: usize, bell: &Bell) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    let sender = Sender { channel: sender, hang_up: HangUp(bell.clone()) };
    (sender, Receiver { channel: receiver, bell: bell.clone() })
}

/// The end that things are put into.
#[derive(Debug)]
pub struct Sender<T> {
    // Dropped in this order: the bell rings when the channel is closed.
    channel: crossbeam_channel::Sender<T>,
    hang_up: HangUp,
}

/// Rings when it is dropped, since the thread has to learn that a channel was closed too.
#[derive(Debug, Clone)]
struct HangUp(Bell);

impl Drop for HangUp {
    fn drop(&mut self) {
        self.0.ring();
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender { channel: self.channel.clone(), hang_up: self.hang_up.clone() }
    }
}

impl<T> Sender<T> {
    /// Puts something in, or gives it back if there is no room or nobody there.
    pub(crate) fn try_send(&self, thing: T) -> Result<(), TrySendError<T>> {
        self.channel.try_send(thing)?;
        threads::beat();
        self.hang_up.0.ring();
        Ok(())
    }

    /// There is no room now.
    pub(crate) fn is_full(&self) -> bool {
        self.channel.is_full()
    }

    /// Puts something in, and waits for room if there is none. Not for async code.
    pub fn send(&self, thing: T) -> Result<(), SendError<T>> {
        // Waiting and not stuck: a queue that blocks may make it last, and a receiver that hangs is
        // stuck itself.
        threads::waiting(|| self.channel.send(thing))?;
        self.hang_up.0.ring();
        Ok(())
    }
}

/// The end that things are taken from.
#[derive(Debug)]
pub struct Receiver<T> {
    channel: crossbeam_channel::Receiver<T>,
    bell: Bell,
}

impl<T> Receiver<T> {
    /// The bell of the channel, for more channels into the same thread.
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Takes out what came first: pending while there is nothing, `None` when the channel was
    /// closed and there is nothing left in it.
    pub(crate) fn take(&self) -> Poll<Option<T>> {
        match self.channel.try_recv() {
            Ok(thing) => {
                threads::beat();
                Poll::Ready(Some(thing))
            }
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
        }
    }

    /// Takes out what comes next and waits for it; `None` when the channel was closed and there is
    /// nothing left in it. For a thread that waits for nothing else.
    pub(crate) fn recv(&self) -> Option<T> {
        self.bell.attend();
        loop {
            match self.take() {
                Poll::Ready(thing) => return thing,
                Poll::Pending => Bell::wait(IDLE),
            }
        }
    }

    /// Takes out what there is.
    pub(crate) fn try_iter(&self) -> impl Iterator<Item = T> {
        self.channel.try_iter()
    }

    /// There is nothing to take out now.
    pub(crate) fn is_empty(&self) -> bool {
        self.channel.is_empty()
    }

    /// The number of things to take out now.
    pub(crate) fn len(&self) -> usize {
        self.channel.len()
    }

    /// Lets go of the channel: who sends learns that nobody is there, and nothing comes any more.
    pub(crate) fn close(&mut self) {
        self.channel = crossbeam_channel::never();
    }
}

#[cfg(test)]
mod tests {
    use crate::sync::bell::*;

    /// Takes from both channels until both are closed.
    fn drain(bell: &Bell, one: &mut Receiver<u32>, two: &mut Receiver<u32>) -> u32 {
        bell.attend();
        let (mut sum, mut open) = (0, 2);
        while open > 0 {
            let mut is_idle = true;
            for receiver in [&mut *one, &mut *two] {
                match receiver.take() {
                    Poll::Ready(Some(number)) => sum += number,
                    Poll::Ready(None) => {
                        receiver.close();
                        open -= 1;
                    }
                    Poll::Pending => continue,
                }
                is_idle = false;
            }
            if is_idle {
                Bell::wait(IDLE);
            }
        }
        sum
    }

    #[test]
    fn nothing_that_is_sent_and_no_end_of_a_channel_is_missed() {
        for _ in 0..200 {
            let bell = Bell::default();
            let (one, mut one_out) = channel(1, &bell);
            let (two, mut two_out) = channel(1, &bell);
            let taking = thread::spawn(move || drain(&bell, &mut one_out, &mut two_out));
            let sending = thread::spawn(move || (0..100).for_each(|_| one.send(1).unwrap()));
            (0..100).for_each(|_| two.send(1000).unwrap());
            drop(two);
            sending.join().unwrap();
            assert_eq!(taking.join().unwrap(), 100_100);
        }
    }

    #[test]
    fn who_takes_over_a_channel_hears_its_bell() {
        let bell = Bell::default();
        let (sender, receiver) = channel(1, &bell);
        let first = thread::spawn(move || {
            receiver.bell().attend();
            receiver
        });
        let receiver = first.join().unwrap();
        let second = thread::spawn(move || receiver.recv());
        sender.send("it").unwrap();
        assert_eq!(second.join().unwrap(), Some("it"));
        assert_eq!(sender.try_send("more"), Err(TrySendError::Disconnected("more")));
    }
}
