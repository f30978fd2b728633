//! Holding back log lines that repeat.
//!
//! A failure is often repeated a thousand times. The first [`SHOWN`] warnings or errors of a kind
//! are shown within a minute, and the others are counted. Once the minute is over and anything is
//! logged, a line says how many there were, with the first of them.
//!
//! The kind is the place in the program and the fields of [`OWN`], which have few values. Any other
//! field may hold a text that somebody sends. Nobody may fill the log by sending another text each
//! time.

use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, info};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::observe::log_line::Fields;
use crate::sync::lock;

/// Lines that are shown before the others are held back: a sink that comes and goes a few times is
/// no flood.
const SHOWN: u64 = 5;

/// The time in which lines count as repeats of the first.
const WINDOW: Duration = Duration::from_mins(1);

/// Kinds that are remembered at a time; lines of further kinds are shown.
const MAX_KINDS: usize = 1024;

/// The target of lines that say who did something. They are never held back.
pub(crate) const AUDIT: &str = "saltern::audit";

/// Fields whose texts are the operator's or the program's own.
const OWN: [&str; 4] = ["sink", "source", "thread", "file"];

/// A layer that holds repeats back from all other layers.
#[derive(Default)]
pub(crate) struct RepeatFilter(Mutex<RecentLines>);

#[derive(Default)]
struct RecentLines {
    kinds: HashMap<LineKind, Repeats>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct LineKind {
    place: Identifier,
    own: String,
}

struct Repeats {
    first: Instant,
    count: u64,
    /// The first that was held back.
    sample: Option<String>,
}

impl RecentLines {
    /// True if a line of this kind is to be shown.
    fn see(&mut self, kind: LineKind, line: impl FnOnce() -> String, now: Instant) -> bool {
        if self.kinds.len() >= MAX_KINDS && !self.kinds.contains_key(&kind) {
            return true;
        }
        let begun = Repeats { first: now, count: 0, sample: None };
        let lines = self.kinds.entry(kind).or_insert(begun);
        lines.count += 1;
        if lines.count <= SHOWN {
            return true;
        }
        lines.sample.get_or_insert_with(line);
        false
    }

    /// Forgets kinds whose time is over. Returns the first line of each that was held back, and how
    /// many were.
    fn over(&mut self, now: Instant) -> Vec<(String, u64)> {
        let is_over = |lines: &Repeats| now.saturating_duration_since(lines.first) >= WINDOW;
        let over = self.kinds.extract_if(|_, lines| is_over(lines));
        let over = over.filter_map(|(_, lines)| Some((lines.sample?, lines.count - SHOWN)));
        over.collect()
    }
}

impl<S: Subscriber> Layer<S> for RepeatFilter {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // These lines are this module's own, or have to be found later.
        if [module_path!(), AUDIT].contains(&metadata.target()) {
            return true;
        }
        let now = Instant::now();
        let (is_shown, over) = {
            let mut seen = lock::hold(&self.0);
            let over = seen.over(now);
            let line = || Fields::of(event).to_string();
            let is_shown =
                *metadata.level() > Level::WARN || seen.see(LineKind::of(event), line, now);
            (is_shown, over)
        };
        for (line, times) in over {
            info!(times, line, "lines like this one were held back in the last minute");
        }
        is_shown
    }
}

impl LineKind {
    fn of(event: &Event<'_>) -> Self {
        let mut own = OwnTexts(String::new());
        event.record(&mut own);
        LineKind { place: event.metadata().callsite(), own: own.0 }
    }
}

/// The fields of an event that are of [`OWN`].
struct OwnTexts(String);

impl Visit for OwnTexts {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if OWN.contains(&field.name()) {
            // Writing to a String does not fail.
            let _ = write!(self.0, "{}={value:?};", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::{error, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use crate::observe::log_line::LogLine;
    use crate::observe::log_line::tests::Written;
    use crate::observe::log_repeats::*;
    use crate::observe::log_settings::LogFormat;

    fn kind(own: &str) -> LineKind {
        let metadata =
            tracing::callsite!(name: "x", kind: tracing::metadata::Kind::EVENT, fields: a);
        LineKind { place: Identifier(metadata), own: own.to_owned() }
    }

    #[test]
    fn the_sixth_of_the_same_is_held_back() {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt::layer().with_ansi(false);
        let lines = lines.with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(lines).with(RepeatFilter::default());
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..20 {
                warn!(number, sink = "a", "it is down");
                warn!(number, sink = "b", "it is down");
                info!("it is up");
                warn!(target: AUDIT, sink = "c", "discarded");
            }
            error!("something else");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let count = |part: &str| text.lines().filter(|line| line.contains(part)).count();
        assert_eq!((count("sink=\"a\""), count("sink=\"b\"")), (5, 5), "{text}");
        assert_eq!((count("it is up"), count("something else")), (20, 1), "{text}");
        assert_eq!(count("discarded"), 20, "{text}");
    }

    #[test]
    fn what_was_held_back_is_told_once() {
        let mut seen = RecentLines::default();
        let begin = Instant::now();
        let mut see = |own: &str, line: &str| seen.see(kind(own), || line.to_owned(), begin);
        let shown = (0..100).filter(|number| see("x", &format!("text {number}"))).count();
        assert_eq!(shown, 5);
        assert!(see("y", ""));
        assert!(seen.over(begin + Duration::from_secs(59)).is_empty());
        assert_eq!(seen.over(begin + WINDOW), [("text 5".to_owned(), 95)]);
        assert!(seen.kinds.is_empty());
        for number in 0..MAX_KINDS {
            seen.see(kind(&number.to_string()), String::new, begin);
        }
        assert!((0..100).all(|_| seen.see(kind("one more"), String::new, begin)));
    }

    #[test]
    fn who_sends_something_else_each_time_does_not_fill_the_log() {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt::layer().with_ansi(false);
        let lines = lines.with_writer(move || writer.clone());
        let lines = lines.event_format(LogLine(LogFormat::Journald));
        let subscriber = tracing_subscriber::registry().with(lines).with(RepeatFilter::default());
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..5000 {
                let op = format!("{number}\n<0>{}", "x".repeat(4000));
                warn!(
                    source = "a",
                    reason = format!("there is no `{op}`"),
                    op,
                    "a request was refused"
                );
            }
            warn!(source = "b", "a request was refused");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(text.lines().count() <= 10 && text.len() < 20_000, "{} bytes", text.len());
        assert!(text.lines().all(|line| line.starts_with("<4>")), "{text}");
        assert!(text.contains("source=\"b\""), "{text}");
    }
}
