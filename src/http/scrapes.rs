//! Answers to scrapers: a text is made at most ten times a second, and all readers share it.
//!
//! A scraper that asks just after a text was made waits for the next, with all others that do: no
//! text is older than its question. A slow reader holds a text that would else be gone; there are
//! at most [`VERSIONS`] of them. A scraper that asks when they are used up waits a little. Readers
//! that hold the oldest and do not read it are cut off meanwhile. So no scraper can make the daemon
//! work or keep much, or keep the others out.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use axum::body::Bytes;

use super::connection_slots::Seen;
use crate::sync::lock;

/// From one text to the next, at the least.
const BETWEEN: Duration = Duration::from_millis(100);

/// Texts that are being read at a time, at the most.
const VERSIONS: usize = 8;

/// The time that a text may be read once others have no room.
const READING: Duration = Duration::from_secs(10);

/// The time that a scraper waits for room. Some scrapers give up after five seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);

/// The texts that are being read.
#[derive(Default)]
pub(super) struct Scrapes(Mutex<Texts>);

#[derive(Default)]
struct Texts {
    /// The time at which the last of them was made.
    made: Option<Instant>,
    /// The oldest first.
    versions: Vec<Version>,
}

struct Version {
    text: Bytes,
    readings: Vec<Weak<Reading>>,
}

/// One answer with this text, which is not sent yet.
struct Reading {
    text: Bytes,
    slot: Seen,
    since: Instant,
}

/// The text, for as long as it is being read.
struct Held(Arc<Reading>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0.text
    }
}

impl Version {
    fn read_by(&mut self, slot: Seen, now: Instant) -> Bytes {
        let reading = Arc::new(Reading { text: self.text.clone(), slot, since: now });
        self.readings.retain(|reading| reading.strong_count() > 0);
        self.readings.push(Arc::downgrade(&reading));
        Bytes::from_owner(Held(reading))
    }

    fn is_read(&self) -> bool {
        self.readings.iter().any(|reading| reading.strong_count() > 0)
    }

    /// The clients that read it too slowly, with a token or without one.
    fn late(&self, is_known: bool, now: Instant) -> Vec<Arc<Reading>> {
        let readings = self.readings.iter().filter_map(Weak::upgrade);
        let is_late = |reading: &Arc<Reading>| {
            let took = now.saturating_duration_since(reading.since);
            reading.slot.is_known() == is_known && (took >= READING || reading.slot.is_stuck(now))
        };
        readings.filter(is_late).collect()
    }
}

impl Texts {
    /// Cuts off clients that are late with the oldest text.
    fn cut_off(&self, now: Instant) {
        let late = [false, true].into_iter().find_map(|is_known| {
            let late = self.versions.iter().map(|version| version.late(is_known, now));
            late.into_iter().find(|late| !late.is_empty())
        });
        late.iter().flatten().for_each(|reading| reading.slot.free());
    }
}

/// The outcome of a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A text that was made since.
    Text(Bytes),
    /// Ask again when this has passed.
    Later(Duration),
    /// Too many are being read.
    TooMany,
}

impl Scrapes {
    /// The answer, now, to a client that asked at `asked` from this slot. `make` makes a text if it
    /// is time for one.
    pub(super) fn answer(
        &self,
        asked: Instant,
        now: Instant,
        slot: Seen,
        make: impl FnOnce() -> String,
    ) -> Answer {
        // A panic in `make` leaves nothing half done.
        let mut texts = lock::hold(&self.0);
        if let (Some(made), Some(last)) = (texts.made, texts.versions.last_mut()) {
            if made >= asked {
                return Answer::Text(last.read_by(slot, now));
            }
            let wait = BETWEEN.saturating_sub(now.saturating_duration_since(made));
            if !wait.is_zero() {
                return Answer::Later(wait);
            }
        }
        texts.versions.retain(Version::is_read);
        if texts.versions.len() >= VERSIONS {
            texts.cut_off(now);
            let is_over = now.saturating_duration_since(asked) >= ANSWER_LIMIT;
            return if is_over { Answer::TooMany } else { Answer::Later(BETWEEN) };
        }
        let mut version = Version { text: Bytes::from(make()), readings: Vec::new() };
        let text = version.read_by(slot, now);
        texts.versions.push(version);
        texts.made = Some(now);
        Answer::Text(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::connection_slots::{Slot, Slots};

    fn text(number: u32) -> Answer {
        Answer::Text(format!("text {number}").into())
    }

    #[test]
    fn texts_are_shared_bounded_and_never_older_than_the_question() {
        let scrapes = Scrapes::default();
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let slot = Slots::new(1).take(begin).unwrap();
        let mut made = 0;
        let mut scrape = |asked, now| {
            scrapes.answer(at(asked), at(now), slot.seen(), || {
                made += 1;
                format!("text {made}")
            })
        };
        assert_eq!(scrape(0, 0), text(1));
        for asked in 1..100 {
            assert_eq!(scrape(asked, asked), Answer::Later(Duration::from_millis(100 - asked)));
        }
        let mut held = vec![scrape(1, 100)];
        for asked in 1..100 {
            assert_eq!(scrape(asked, 101), text(2));
        }
        held.extend((2..=8).map(|n| scrape(n * 100, n * 100)));
        assert_eq!(held.last(), Some(&text(9)));
        assert_eq!(scrape(900, 900), Answer::Later(BETWEEN));
        assert_eq!(scrape(900, 4900), Answer::TooMany);
        assert!(!slot.is_asked_to_leave(), "it reads");
        held.remove(3);
        assert_eq!(scrape(900, 5000), text(10));
    }

    #[test]
    fn scrapers_that_do_not_read_keep_nobody_out() {
        let scrapes = Scrapes::default();
        let begin = Instant::now();
        let mut slots = Slots::new(20);
        let deaf: Vec<Slot> = (0..8).map(|_| slots.take(begin).unwrap()).collect();
        let mut now = begin;
        let mut unread = Vec::new();
        for slot in &deaf {
            let Answer::Text(text) = scrapes.answer(now, now, slot.seen(), || "x".into()) else {
                panic!("there is room");
            };
            slot.reads(false);
            unread.push(text);
            now += BETWEEN;
        }
        let scraper = slots.take(now).unwrap();
        let scrape = |now| scrapes.answer(begin + READING / 2, now, scraper.seen(), || "y".into());
        // They are not cut off before they have read nothing for a while.
        let later = Instant::now() + Duration::from_secs(5);
        assert_eq!(scrape(later), Answer::Later(BETWEEN));
        assert!(deaf[0].is_asked_to_leave() && !deaf[1].is_asked_to_leave());
        unread.remove(0);
        assert_eq!(scrape(later), Answer::Text("y".into()));
        assert!(!scraper.is_asked_to_leave());
    }
}
