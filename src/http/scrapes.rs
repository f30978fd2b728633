//! What scrapers get: a text that is made at most ten times a second, and shared by all who read it.
//!
//! Who asks when one was just made waits for the next, with all others who do: nobody gets a text that
//! is older than the question. Who reads slowly holds a text that would else be gone; there are
//! [`VERSIONS`] of them at the most, and then scrapers are turned away until somebody has read to the
//! end, or is cut off. So no scraper can make the daemon work or keep much.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;

/// From one text to the next, at the least.
const BETWEEN: Duration = Duration::from_millis(100);

/// Texts that are being read at a time, at the most.
const VERSIONS: usize = 8;

/// The texts that are being read.
#[derive(Default)]
pub(super) struct Scrapes(Mutex<Texts>);

#[derive(Default)]
struct Texts {
    /// When the last of them was made.
    made: Option<Instant>,
    texts: Vec<Bytes>,
}

/// What becomes of a question.
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
    /// The answer, now, to who asked at `asked`; a text is made by `make` if it is time for one.
    pub(super) fn answer(
        &self,
        asked: Instant,
        now: Instant,
        make: impl FnOnce() -> String,
    ) -> Answer {
        // A panic in `make` leaves nothing half done.
        let mut texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(made), Some(last)) = (texts.made, texts.texts.last()) {
            if made >= asked {
                return Answer::Text(last.clone());
            }
            let wait = BETWEEN.saturating_sub(now.saturating_duration_since(made));
            if !wait.is_zero() {
                return Answer::Later(wait);
            }
        }
        texts.texts.retain(|text| !text.is_unique());
        if texts.texts.len() >= VERSIONS {
            return Answer::TooMany;
        }
        let text = Bytes::from(make());
        texts.texts.push(text.clone());
        texts.made = Some(now);
        Answer::Text(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shared_bounded_and_never_older_than_the_question() {
        let scrapes = Scrapes::default();
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut made = 0;
        let mut scrape = |asked, now| {
            scrapes.answer(at(asked), at(now), || {
                made += 1;
                format!("text {made}")
            })
        };
        let text = |number: u32| Answer::Text(format!("text {number}").into());
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
        assert_eq!(scrape(900, 900), Answer::TooMany);
        held.remove(3);
        assert_eq!(scrape(900, 900), text(10));
    }
}
