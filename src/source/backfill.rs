//! Filling a gap of the bus from the master's own job cache
//! ([`crate::source::local_cache::format`]).
//!
//! Jobs that the master wrote meanwhile are read when the bus is there again, and at the start.
//! Their events are handed on, with `_backfilled: true`, unless the job cache or the bus has
//! brought them. Reading goes on beside the bus and never holds it up.
//!
//! Events that must not be repeated are known in two ways. Those from before the gap are in the job
//! cache; the backfill waits until it has stored them. Those since then are remembered here, by
//! tag. The master puts a return onto its bus a moment before it writes the file. So only files
//! older than the connection, or a little younger, are looked at. The younger ones wait until their
//! events would have come: after `settle`.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use xxhash_rust::xxh3::xxh3_64;

use super::outstanding::Outstanding;
use crate::error::chain;
use crate::source::frame_sender::FrameSender;
use crate::source::local_cache::format::{Walk, Window};
use crate::units::Span;

/// The master's job cache, to fill gaps from.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The directory `jobs` in the master's `cachedir`. The daemon must be able to read it.
    #[serde(default = "default_cache_dir")]
    cache_dir: PathBuf,
    /// The time to look back at the start of the daemon, which does not know for how long it was
    /// away. Events that were stored already are not read again.
    #[serde(default = "default_max_age")]
    max_age: Span,
    /// The time to wait once the bus is there, so that events on their way come first.
    #[serde(default = "default_settle")]
    settle: Span,
}

fn default_cache_dir() -> PathBuf {
    "/var/cache/salt/master/jobs".into()
}

fn default_max_age() -> Span {
    Span::seconds(24 * 3600)
}

fn default_settle() -> Span {
    Span::seconds(5)
}

/// Tags that are remembered of one connection at the most: 32 MiB or so.
const MAX_TAGS: usize = 1_000_000;

/// The time for which the job cache may be behind before that is worth a line in the log.
const WARN_AFTER: Duration = Duration::from_secs(60);

/// The interval at which to look whether the job cache has caught up.
const LOOK: Duration = Duration::from_millis(100);

/// The time by which clocks and writes may lie apart at the beginning of a gap.
const SLACK: Duration = Duration::from_secs(60);

/// A time without the bus, and its end.
#[derive(Debug, Clone, Copy)]
struct Gap {
    /// The time when the bus was lost; `None` at the start.
    since: Option<SystemTime>,
    /// The time when it was there again.
    until: SystemTime,
    connected: Instant,
}

/// The history of a source's connection, for its backfill.
pub(super) struct Tracker {
    gaps: watch::Sender<Option<Gap>>,
    seen: RefCell<Seen>,
}

#[derive(Default)]
struct Seen {
    lost: Option<SystemTime>,
    /// Hashes of the tags of job events since the last gap, until that is filled.
    tags: Option<HashSet<u64>>,
}

impl Tracker {
    pub(super) fn new() -> Self {
        Tracker { gaps: watch::channel(None).0, seen: RefCell::default() }
    }

    /// The bus is there.
    pub(super) fn up(&self) {
        let mut seen = self.seen.borrow_mut();
        // The rest of a gap is left to do if the bus was lost again before the gap was filled.
        let unfilled = seen.tags.is_some().then(|| self.gaps.borrow().and_then(|gap| gap.since));
        let since = unfilled.unwrap_or(seen.lost);
        seen.tags.get_or_insert_default();
        let gap = Gap { since, until: SystemTime::now(), connected: Instant::now() };
        self.gaps.send_replace(Some(gap));
    }

    /// These events came.
    pub(super) fn read(&self, bodies: &[Bytes]) {
        let mut seen = self.seen.borrow_mut();
        let Some(tags) = &mut seen.tags else { return };
        let is_of_job = |body: &&Bytes| {
            [&b"salt/job/"[..], b"salt/run/", b"salt/wheel/"]
                .iter()
                .any(|tag| body.starts_with(tag))
        };
        for body in bodies.iter().filter(is_of_job) {
            if tags.len() < MAX_TAGS {
                tags.insert(tag_hash(body));
            }
        }
    }

    /// The bus was lost.
    pub(super) fn lost(&self) {
        self.seen.borrow_mut().lost = Some(SystemTime::now());
    }

    /// Fills gaps until `stop` is cancelled.
    pub(super) async fn fill(
        &self,
        config: &Config,
        sender: &FrameSender,
        stop: &CancellationToken,
    ) {
        let mut gaps = self.gaps.subscribe();
        loop {
            // A gap that came while another was filled begins where that one began.
            let gap = match stop.run_until_cancelled(gaps.wait_for(Option::is_some)).await {
                Some(Ok(gap)) => *gap,
                None | Some(Err(_)) => return,
            };
            let Some(gap) = gap else { continue };
            let filling = self.fill_one(config, sender, gap, stop);
            let Some(filled) = stop.run_until_cancelled(filling).await else { return };
            match filled {
                Ok(events) => info!(
                    source = sender.state.name,
                    events,
                    "events that the bus did not bring were taken from the master's job cache"
                ),
                Err(error) => {
                    let error = format!("backfill from {}: {error}", config.cache_dir.display());
                    warn!(source = sender.state.name, error, "a gap of the bus stays unfilled");
                    sender.state.failed(&error);
                }
            }
            let is_last = self.gaps.send_if_modified(|last| {
                let is_last = last.is_some_and(|last| last.connected == gap.connected);
                if is_last {
                    *last = None;
                }
                is_last
            });
            if is_last {
                self.seen.borrow_mut().tags = None;
            }
        }
    }

    async fn fill_one(
        &self,
        config: &Config,
        sender: &FrameSender,
        gap: Gap,
        stop: &CancellationToken,
    ) -> Result<u64, String> {
        sleep(config.settle.0).await;
        caught_up(sender, gap.connected).await;
        let from = match gap.since {
            Some(lost) => lost.checked_sub(SLACK),
            None => SystemTime::now().checked_sub(config.max_age.0),
        };
        let window = Window {
            from: from.unwrap_or(SystemTime::UNIX_EPOCH),
            until: gap.until + config.settle.0 / 2,
        };
        let (cache, jobs) = (config.cache_dir.clone(), sender.jobs.clone());
        let panicked = |error: tokio::task::JoinError| error.to_string();
        let walk = spawn_blocking(move || Walk::new(&cache, window, jobs)).await;
        let mut walk = walk.map_err(panicked)?.map_err(|error| chain(&error))?;
        let (mut events, mut outstanding) = (0, Outstanding::default());
        while !stop.is_cancelled() {
            let reading = spawn_blocking(move || {
                let frames = walk.next_frames();
                (walk, frames)
            });
            let (back, frames) = reading.await.map_err(panicked)?;
            walk = back;
            let Some(mut frames) = frames.map_err(|error| chain(&error))? else { break };
            frames.retain(|frame| !self.has_seen(frame));
            events += frames.len() as u64;
            sender.state.backfilled.add(frames.len() as u64);
            if !outstanding.send(sender, frames, stop).await {
                return Ok(events);
            }
        }
        let waited = outstanding.wait("the master's job cache").await;
        waited.map_err(|error| chain(&error))?;
        if walk.unreadable > 0 {
            warn!(
                source = sender.state.name,
                files = walk.unreadable,
                "files of the master's job cache could not be read"
            );
        }
        Ok(events)
    }

    fn has_seen(&self, frame: &[u8]) -> bool {
        self.seen.borrow().tags.as_ref().is_some_and(|tags| tags.contains(&tag_hash(frame)))
    }
}

/// Waits until the job cache has stored the events that were read before the bus was there again.
async fn caught_up(sender: &FrameSender, connected: Instant) {
    let began = Instant::now();
    let mut has_warned = false;
    while sender.jobs.is_behind(connected.elapsed()) {
        if began.elapsed() > WARN_AFTER && !has_warned {
            has_warned = true;
            warn!(
                source = sender.state.name,
                "the backfill waits until the job cache has stored the events from before the gap"
            );
        }
        sleep(LOOK).await;
    }
}

fn tag_hash(frame: &[u8]) -> u64 {
    let end = memchr::memmem::find(frame, b"\n\n").unwrap_or(frame.len());
    xxh3_64(frame.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::sync::bell::{Bell, channel};

    use super::*;
    use crate::event::{Authority, Origin};
    use crate::jobs::Jobs;
    use crate::observe::state::SourceState;
    use crate::source::frame_sender::Via;
    use crate::source::local_cache::format::tests::{JID, cache};

    #[tokio::test]
    async fn a_gap_is_filled_with_what_did_not_come() {
        let (cache, folder) = (cache(), tempfile::tempdir().unwrap());
        let config = Config {
            cache_dir: cache.path().to_owned(),
            max_age: default_max_age(),
            settle: Span::millis(50),
        };
        let (frames, out) = channel(8, &Bell::default());
        let jobs = Jobs::new(folder.path());
        jobs.keep(Some(Duration::from_secs(3600)));
        let state = Arc::new(SourceState::new("bus", "salt_bus", "m"));
        let origin = Arc::new(Origin { source: "bus".into(), master_id: "m".into() });
        let sender = FrameSender {
            origin,
            via: Via::Read,
            authority: Authority::Bus,
            state: Arc::clone(&state),
            frames,
            jobs,
        };
        let (tracker, stop) = (Tracker::new(), CancellationToken::new());
        // The files were written before the bus was there, but this event came all the same.
        tracker.up();
        tracker.read(&[format!("salt/job/{JID}/ret/web-1\n\n\u{0}").into()]);
        let taking = async {
            let frames = spawn_blocking(move || out.recv());
            let mut frames = frames.await.unwrap().unwrap();
            frames.claim.take().unwrap().honour();
            while tracker.seen.borrow().tags.is_some() {
                sleep(Duration::from_millis(5)).await;
            }
            stop.cancel();
            frames.bodies
        };
        let ((), bodies) = tokio::join!(tracker.fill(&config, &sender, &stop), taking);
        let tags: Vec<_> = bodies
            .iter()
            .map(|body| std::str::from_utf8(body.split(|b| *b == b'\n').next().unwrap()).unwrap())
            .collect();
        assert_eq!(tags, [format!("salt/job/{JID}/new"), format!("salt/job/{JID}/ret/web-2")]);
        assert_eq!(state.backfilled.get(), 2);
    }

    #[test]
    fn a_gap_that_was_not_filled_goes_on_in_the_next() {
        let tracker = Tracker::new();
        let since = || tracker.gaps.borrow().and_then(|gap| gap.since);
        tracker.up();
        assert_eq!(since(), None);
        tracker.lost();
        tracker.up();
        assert_eq!(since(), None, "the start was not filled yet");
        tracker.gaps.send_replace(None);
        tracker.seen.borrow_mut().tags = None;
        tracker.lost();
        let lost = tracker.seen.borrow().lost;
        tracker.up();
        assert!(lost.is_some());
        assert_eq!(since(), lost);
    }
}
