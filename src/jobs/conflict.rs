//! Returns that contradict each other, or their own tag. They are counted, and logged once a minute
//! at the most, because anybody who can fire events decides how many there are.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::observe::metrics::{JOB_RETURN_CONFLICTS, Tally};
use crate::sync::lock;

/// The time after a line in which nothing more is logged.
const QUIET: Duration = Duration::from_mins(1);

/// The two sides of a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Odds {
    /// Two returns of one minion of one job.
    Content,
    /// The tag of an event and its data.
    Tag,
}

/// One conflict.
#[derive(Debug)]
pub(super) struct Conflict {
    pub(super) odds: Odds,
    pub(super) jid: String,
    pub(super) minion: String,
}

pub(super) struct Conflicts {
    content: Tally,
    tag: Tally,
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    last: Option<Instant>,
    /// Conflicts since the last line.
    since: u64,
}

impl Conflicts {
    pub(super) fn new() -> Self {
        Conflicts {
            content: Tally::new(JOB_RETURN_CONFLICTS, &["content"]),
            tag: Tally::new(JOB_RETURN_CONFLICTS, &["tag"]),
            lines: Mutex::default(),
        }
    }

    /// Counts the conflicts, and logs them if nothing was logged a moment ago.
    pub(super) fn report(&self, found: &[Conflict]) {
        let Some(first) = found.first() else { return };
        for conflict in found {
            match conflict.odds {
                Odds::Content => self.content.add(1),
                Odds::Tag => self.tag.add(1),
            }
        }
        let conflicts = {
            let mut lines = lock::hold(&self.lines);
            lines.since += found.len() as u64;
            if lines.last.is_some_and(|last| last.elapsed() < QUIET) {
                return;
            }
            lines.last = Some(Instant::now());
            std::mem::take(&mut lines.since)
        };
        let (jid, minion) = (&first.jid, &first.minion);
        let metric = JOB_RETURN_CONFLICTS.name;
        match first.odds {
            Odds::Content => warn!(
                jid,
                minion,
                conflicts,
                "two returns of one minion for one job differ, so one may be forged; `saltern jobs \
                 show` has the one that was kept; more are counted in {metric}"
            ),
            Odds::Tag => warn!(
                jid,
                minion,
                conflicts,
                "the tag of a job's event contradicts its data, which Salt never does, so it may \
                 be forged; more are counted in {metric}"
            ),
        }
    }

    /// The numbers of conflicts: of content, and of tags.
    #[cfg(test)]
    pub(super) fn counted(&self) -> (u64, u64) {
        (self.content.get(), self.tag.get())
    }
}
