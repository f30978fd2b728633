//! Holding back log lines that repeat.
//!
//! What goes wrong often goes wrong a thousand times. Of the same warning or error (the same place in
//! the program, the same texts; numbers may differ) the first [`SHOWN`] within a minute are shown.
//! The others are counted, and a line says how many there were once the minute is over and anything
//! is logged.

use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, info};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines that are shown before the others are held back: a sink that comes and goes a few times is
/// no flood.
const SHOWN: u64 = 5;

/// How long lines count as repeats of the first.
const WINDOW: Duration = Duration::from_mins(1);

/// Different lines that are remembered at a time; what is over is shown.
const LINES: usize = 256;

/// A layer that holds repeats back from all other layers.
#[derive(Default)]
pub struct Fold(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    lines: HashMap<String, Line>,
}

struct Line {
    first: Instant,
    count: u64,
}

impl Seen {
    /// Whether the line is to be shown.
    fn see(&mut self, line: String, now: Instant) -> bool {
        if self.lines.len() >= LINES && !self.lines.contains_key(&line) {
            return true;
        }
        let line = self.lines.entry(line).or_insert(Line { first: now, count: 0 });
        line.count += 1;
        line.count <= SHOWN
    }

    /// Forgets what is over: the lines that were held back, and how often.
    fn over(&mut self, now: Instant) -> Vec<(String, u64)> {
        let is_over = |line: &Line| now.saturating_duration_since(line.first) >= WINDOW;
        let over = self.lines.extract_if(|_, line| is_over(line));
        let over = over.map(|(text, line)| (text, line.count.saturating_sub(SHOWN)));
        over.filter(|(_, held_back)| *held_back > 0).collect()
    }
}

impl<S: Subscriber> Layer<S> for Fold {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // What this module says itself.
        if metadata.target() == module_path!() {
            return true;
        }
        let now = Instant::now();
        let (is_shown, over) = {
            let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let over = seen.over(now);
            let is_shown = *metadata.level() > Level::WARN || seen.see(texts(event), now);
            (is_shown, over)
        };
        for (line, times) in over {
            info!(times, line, "this was held back in the last minute");
        }
        is_shown
    }
}

/// The texts of an event, numbers left out.
fn texts(event: &Event<'_>) -> String {
    let mut texts = Texts(String::new());
    event.record(&mut texts);
    texts.0
}

struct Texts(String);

impl Visit for Texts {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let between = if self.0.is_empty() { "" } else { ", " };
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{between}{value:?}"),
            name => write!(self.0, "{between}{name}={value:?}"),
        };
    }

    fn record_f64(&mut self, _: &Field, _: f64) {}
    fn record_i64(&mut self, _: &Field, _: i64) {}
    fn record_u64(&mut self, _: &Field, _: u64) {}
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use tracing::{error, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_sixth_of_the_same_is_held_back() {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt::layer().with_ansi(false);
        let lines = lines.with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(lines).with(Fold::default());
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..20 {
                warn!(number, sink = "a", "it is down");
                warn!(number, sink = "b", "it is down");
                info!("it is up");
            }
            error!("something else");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let count = |part: &str| text.lines().filter(|line| line.contains(part)).count();
        assert_eq!((count("sink=\"a\""), count("sink=\"b\"")), (5, 5), "{text}");
        assert_eq!((count("it is up"), count("something else")), (20, 1), "{text}");
    }

    #[test]
    fn what_was_held_back_is_told_once() {
        let mut seen = Seen::default();
        let begin = Instant::now();
        let shown = (0..100).filter(|_| seen.see("x".to_owned(), begin)).count();
        assert_eq!(shown, 5);
        assert!(seen.see("y".to_owned(), begin));
        assert!(seen.over(begin + Duration::from_secs(59)).is_empty());
        assert_eq!(seen.over(begin + WINDOW), [("x".to_owned(), 95)]);
        assert!(seen.lines.is_empty());
        for number in 0..LINES {
            seen.see(number.to_string(), begin);
        }
        assert!((0..100).all(|_| seen.see("one more".to_owned(), begin)));
    }
}
