//! `local_cache`: the past, from the job cache of a Salt master. Every job and return in the
//! directories becomes its event again, marked `_backfilled: true`, in the order of the jobs'
//! publication. It ends, like [`replay`](replay.md); `saltern replay --from-local-cache DIR` runs
//! it once. [Jobs](../jobs.md#backfill) describes the files.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   past: {local_cache: {path: /var/cache/salt/master/jobs, max_age: 30d}}
//! sinks:
//!   jobs: {sqlite3: {database: /var/lib/saltern/jobs.db}}
//! ```
//!
//! # Guarantee
//!
//! Each job in the directories is delivered, except events that the daemon's own job cache has
//! already. So it can be run again where the job cache is on.
//!
//! # Failures
//!
//! * the directory is missing, or may not be read → tried again until it has begun →
//!   `saltern_source_connected` is 0, `/readyz` names the source
//! * it breaks off in the middle → it has failed for good, since to begin anew would bring
//!   everything twice → not ready until it is removed or changed

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::outstanding::Outstanding;
use crate::source::contract::{Source, SourceError};
use crate::source::frame_sender::FrameSender;
use crate::source::link::Link;
use crate::source::local_cache::format::{Walk, Window};
use crate::units::Span;

pub(super) mod format;

/// The job cache of a Salt master.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The directory `jobs` in the master's `cachedir`, or a copy of it.
    path: PathBuf,
    /// Only jobs of which something was written within this time. Default: all.
    #[serde(default)]
    max_age: Option<Span>,
}

pub(super) struct LocalCache;

impl Source for LocalCache {
    const NAME: &'static str = "local_cache";
    const ABOUT: &'static str = "the past, from the job cache of a Salt master";
    const ENDS: bool = true;
    type Config = Config;

    async fn run(
        config: &Config,
        sender: FrameSender,
        stop: CancellationToken,
    ) -> Result<(), SourceError> {
        let name = config.path.display().to_string();
        let failed = |error: io::Error| SourceError::new(format!("reading {name}"), error);
        let from = config.max_age.and_then(|age| SystemTime::now().checked_sub(age.0));
        let window =
            Window { from: from.unwrap_or(SystemTime::UNIX_EPOCH), until: SystemTime::now() };
        let (path, jobs) = (config.path.clone(), sender.jobs.clone());
        let walk = spawn_blocking(move || Walk::new(&path, window, jobs)).await;
        let mut walk = walk.map_err(|error| failed(error.into()))?.map_err(failed)?;
        Link::new(sender.state.clone()).up(&name);
        let mut outstanding = Outstanding::default();
        let mut events = 0;
        while !stop.is_cancelled() {
            let reading = spawn_blocking(move || {
                let frames = walk.next_frames();
                (walk, frames)
            });
            let (back, frames) = reading.await.map_err(|error| failed(error.into()))?;
            walk = back;
            let frames = frames.map_err(|error| failed(io::Error::other(error)))?;
            let Some(frames) = frames else { break };
            events += frames.len();
            sender.state.backfilled.add(frames.len() as u64);
            if !outstanding.send(&sender, frames, &stop).await {
                return Ok(());
            }
        }
        if walk.unreadable > 0 {
            sender.state.bad_frames.add(walk.unreadable);
            warn!(source = sender.state.name, files = walk.unreadable, "files could not be read");
        }
        info!(source = sender.state.name, events, "the job cache was read");
        let waited = stop.run_until_cancelled(outstanding.wait(&name)).await;
        waited.unwrap_or(Ok(()))
    }

    async fn probe(config: &Config) -> Result<(), SourceError> {
        let failed = |error| SourceError::new(format!("reading {}", config.path.display()), error);
        std::fs::read_dir(&config.path).map(drop).map_err(failed)
    }
}
