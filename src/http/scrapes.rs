//! What scrapers get: a text that is made at most ten times a second, and shared by all who read it.
//!
//! Who scrapes more often gets the same text again. Who reads slowly holds a text that would else
//! be gone; there are [`VERSIONS`] of them at the most, and then scrapers are turned away until
//! somebody has read to the end, or is cut off. So no scraper can make the daemon work or keep much.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;

/// How long a text is good for.
const FRESH: Duration = Duration::from_millis(100);

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

impl Scrapes {
    /// A text that is fresh, made by `make` unless there is one; `None` if too many are being read.
    pub(super) fn text(&self, now: Instant, make: impl FnOnce() -> String) -> Option<Bytes> {
        // A panic in `make` leaves nothing half done.
        let mut texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = texts.made.is_some_and(|made| now.saturating_duration_since(made) < FRESH);
        if let Some(last) = texts.texts.last().filter(|_| is_fresh) {
            return Some(last.clone());
        }
        texts.texts.retain(|text| !text.is_unique());
        if texts.texts.len() >= VERSIONS {
            return None;
        }
        let text = Bytes::from(make());
        texts.texts.push(text.clone());
        texts.made = Some(now);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shared_and_bounded() {
        let scrapes = Scrapes::default();
        let begin = Instant::now();
        let mut made = 0;
        let mut scrape = |millis| {
            let now = begin + Duration::from_millis(millis);
            scrapes.text(now, || {
                made += 1;
                format!("text {made}")
            })
        };
        for millis in 0..100 {
            assert_eq!(scrape(millis).unwrap(), "text 1");
        }
        let mut held: Vec<_> = (1..=8).map(|n| scrape(n * 100).unwrap()).collect();
        assert_eq!(held.last().unwrap(), "text 9");
        assert_eq!(scrape(850).unwrap(), "text 9");
        assert_eq!(scrape(900), None);
        held.remove(3);
        assert_eq!(scrape(900).unwrap(), "text 10");
    }
}
