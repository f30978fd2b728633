//! Reading the messages of a client. Memory grows with the bytes that have come, to twice as much
//! at the most, and time is bounded. A message of up to [`UNCOUNTED`] bytes counts once it is
//! whole; all bytes of a longer one are taken from the budget once half of [`UNCOUNTED`] have come.

use std::io;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::budget::{Budget, Held};
use crate::source::prefixed::{PrefixError, Prefixed};

/// The time that a client may take from its connection to its first message.
const FIRST: Duration = Duration::from_secs(5);

/// The time that a client may pause within a message, and how long a whole message may take.
const PAUSE: Duration = Duration::from_secs(10);
const WHOLE: Duration = Duration::from_secs(60);

/// Bytes that a client may have in memory beside those that are counted.
const UNCOUNTED: usize = 64 << 10;

/// The reason why no more is read of a client.
#[derive(Debug, Error)]
pub(super) enum Broken {
    /// It has closed the connection, and said whole messages.
    #[error("it has closed the connection")]
    Ended,
    #[error("it closed the connection within a message")]
    CutOff,
    #[error("it said nothing for {} s after it connected", FIRST.as_secs())]
    Silent,
    #[error("its message did not come within {} s, or paused for {} s", WHOLE.as_secs(), PAUSE.as_secs())]
    Slow,
    #[error("there was no room for its message within {} s; see whether a sink is stuck", PAUSE.as_secs())]
    NoRoom,
    #[error("it has not shown the token")]
    Token,
    #[error("{0}")]
    Prefix(#[from] PrefixError),
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// The messages of a client.
pub(super) struct Messages<R> {
    read: R,
    buffer: BytesMut,
    prefixed: Prefixed,
    budget: Budget,
    has_spoken: bool,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    pub(super) fn new(read: R, max_frame: usize, budget: Budget) -> Self {
        let prefixed = Prefixed::new(max_frame);
        Messages { read, buffer: BytesMut::new(), prefixed, budget, has_spoken: false }
    }

    /// The next message, and its bytes of the budget if it is long. It may be waited for as long as
    /// the client likes, except for the first.
    pub(super) async fn next(&mut self) -> Result<(Bytes, Option<Held>), Broken> {
        let mut held = None;
        if self.buffer.is_empty() {
            let has_spoken = self.has_spoken;
            let first = self.read_some(UNCOUNTED);
            let bytes = match has_spoken {
                true => first.await?,
                false => timeout(FIRST, first).await.map_err(|_| Broken::Silent)??,
            };
            if bytes == 0 {
                return Err(Broken::Ended);
            }
        }
        let mut until = Instant::now() + WHOLE;
        loop {
            if let Some(message) = self.prefixed.next(&mut self.buffer)? {
                self.has_spoken = true;
                if held.is_some() {
                    // The block of a long message is dropped with it.
                    self.buffer = BytesMut::from(&self.buffer[..]);
                }
                return Ok((message, held));
            }
            let have = self.buffer.len();
            let wanted = self.prefixed.wanted(&self.buffer)?.unwrap_or(have + 1);
            // The room is twice what has come: a client that announces much and sends little has
            // little.
            let room = wanted.min((2 * have).max(UNCOUNTED));
            // A client that has sent next to nothing takes no room from those that send.
            if room > UNCOUNTED && held.is_none() {
                let taken = timeout(PAUSE, self.budget.take(wanted)).await;
                held = Some(taken.map_err(|_| Broken::NoRoom)?.map_err(|_| Broken::NoRoom)?);
                until = Instant::now() + WHOLE;
            }
            let pause = until.min(Instant::now() + PAUSE);
            let some =
                timeout_at(pause, self.read_some(room.max(UNCOUNTED).saturating_sub(have).max(1)))
                    .await;
            if some.map_err(|_| Broken::Slow)?? == 0 {
                return Err(Broken::CutOff);
            }
        }
    }

    /// Takes messages of at most so many bytes from now on.
    pub(super) fn take_up_to(&mut self, max_frame: usize) {
        self.prefixed.take_up_to(max_frame);
    }

    async fn read_some(&mut self, at_most: usize) -> io::Result<usize> {
        self.buffer.reserve(at_most);
        self.read.read_buf(&mut (&mut self.buffer).limit(at_most)).await
    }

    /// Reads on without looking, until the client has closed the connection.
    pub(super) async fn discard(&mut self) {
        let mut nothing = [0; 4096];
        while self.read.read(&mut nothing).await.is_ok_and(|bytes| bytes > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn pair() -> (tokio::io::DuplexStream, Messages<tokio::io::DuplexStream>) {
        let (here, there) = tokio::io::duplex(1 << 20);
        (here, Messages::new(there, 8 << 20, Budget::of_masters(8 << 20)))
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_half_a_message_end_in_time() {
        let (_here, mut messages) = pair();
        assert!(matches!(messages.next().await, Err(Broken::Silent)));
        let (mut here, mut messages) = pair();
        here.write_all(b"\0\0\0\x01a\0\0").await.unwrap();
        assert_eq!(messages.next().await.unwrap().0, b"a"[..]);
        assert!(matches!(messages.next().await, Err(Broken::Slow)));
        let (mut here, mut messages) = pair();
        here.write_all(b"\0\0\0\x01a").await.unwrap();
        messages.next().await.unwrap();
        let waiting = timeout(WHOLE * 100, messages.next()).await;
        assert!(waiting.is_err(), "who has spoken may be silent");
        drop(here);
        assert!(matches!(messages.next().await, Err(Broken::Ended)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_too_slow_too() {
        let (mut here, mut messages) = pair();
        let dripping = async {
            here.write_all(b"\0\0\x10\0").await.unwrap();
            for _ in 0..100 {
                tokio::time::sleep(PAUSE / 2).await;
                let _ = here.write_all(b"x").await;
            }
        };
        let (ended, ()) = tokio::join!(messages.next(), dripping);
        assert!(matches!(ended, Err(Broken::Slow)));
    }

    #[tokio::test]
    async fn invariant_6_memory_grows_with_what_has_come() {
        let (mut here, mut messages) = pair();
        here.write_all(b"\0\x7f\0\0\0").await.unwrap();
        let _ = timeout(Duration::from_millis(50), messages.next()).await;
        assert!(messages.buffer.capacity() <= 2 * UNCOUNTED, "{}", messages.buffer.capacity());
        let long = vec![7; 5 << 20];
        let (mut here, mut messages) = pair();
        let sending = async {
            here.write_u32(5 << 20).await.unwrap();
            here.write_all(&long).await.unwrap();
        };
        let (read, ()) = tokio::join!(messages.next(), sending);
        let (message, held) = read.unwrap();
        assert!(message == long && held.is_some());
        assert!(messages.buffer.capacity() <= 2 * UNCOUNTED, "{}", messages.buffer.capacity());
        drop((message, held));
        here.write_all(b"\0\0\0\x01a").await.unwrap();
        assert_eq!(messages.next().await.unwrap().0, b"a"[..]);
        assert!(messages.buffer.capacity() <= 2 * UNCOUNTED, "{}", messages.buffer.capacity());
    }
}
