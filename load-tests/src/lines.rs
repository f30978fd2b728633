//! The events in a store, in order: an event is known by the number in its jid.

use std::fmt;
use std::io::{self, Read};
use std::time::Instant;

/// The beginning of the jids of [`crate::traffic`]; the number follows.
const BEFORE: &[u8] = b"2026112200";

/// The number in the first jid of a line.
pub(crate) fn number(line: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(line, BEFORE)? + BEFORE.len();
    std::str::from_utf8(line.get(at..at + 10)?).ok()?.parse().ok()
}

/// Hands each line of an output on, with the time at which its end was read, until `take` wants no
/// more or the output ends.
pub(crate) fn each(
    mut output: impl Read,
    mut take: impl FnMut(&[u8], Instant) -> io::Result<bool>,
) -> io::Result<()> {
    let (mut text, mut block) = (Vec::new(), vec![0; 256 << 10]);
    loop {
        let count = output.read(&mut block)?;
        let now = Instant::now();
        if count == 0 {
            return Ok(());
        }
        text.extend_from_slice(block.get(..count).unwrap_or_default());
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', &text) {
            if !take(text.get(start..end).unwrap_or_default(), now)? {
                return Ok(());
            }
            start = end + 1;
        }
        text.drain(..start);
    }
}

/// The events that a store was seen to hold, one after the other.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    /// The number of events.
    pub(crate) events: u64,
    /// The number of events that came a second time.
    pub(crate) repeated: u64,
    /// The number of events that were missing when a later one came.
    pub(crate) skipped: u64,
    next: u64,
}

impl Seen {
    /// The event of this number is the next in the store. The numbers are without gaps.
    pub(crate) fn note(&mut self, number: u64) {
        self.events += 1;
        if number < self.next {
            self.repeated += 1;
            return;
        }
        self.skipped += number - self.next;
        self.next = number + 1;
    }

    /// All of so many are there, each once and in order.
    pub(crate) fn is_all(&self, events: u64) -> bool {
        self.next == events && self.skipped == 0 && self.repeated == 0
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { events, repeated, skipped, .. } = self;
        write!(f, "{events} stored, {repeated} of them again, {skipped} missing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_again_is_noticed() {
        let seen = |numbers: &[u64]| {
            let mut seen = Seen::default();
            for number in numbers {
                seen.note(*number);
            }
            (seen.is_all(4), seen.skipped, seen.repeated)
        };
        assert_eq!(seen(&[0, 1, 2, 3]), (true, 0, 0));
        assert_eq!(seen(&[0, 1, 0, 1, 2, 3]), (false, 0, 2));
        assert_eq!(seen(&[0, 2, 3]), (false, 1, 0));
        assert_eq!(seen(&[0, 1, 2]), (false, 0, 0));
        // An event that comes late is one that was skipped.
        assert_eq!(seen(&[0, 2, 1, 3]), (false, 1, 1));
    }

    #[test]
    fn the_number_is_that_of_the_jid() {
        let line = b"{\"tag\": \"salt/job/20261122000000000042/ret/web-7\", \"data\": {}}";
        assert_eq!(number(line), Some(42));
        assert_eq!(number(b"{\"tag\": \"salt/auth\"}"), None);
    }
}
