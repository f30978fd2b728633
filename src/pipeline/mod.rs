//! The pipeline: started from a configuration, changed by another, and stopped.
//!
//! Sources share one thread with a runtime of its own, so no sink that blocks can hold up the bus.
//! The dispatcher and each sink's spooler have a thread each. The writers are tasks of the runtime
//! that [`Pipeline::start`] is called on. Nothing outlives [`Pipeline::ended`].

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{Config, General, SinkConfig, SourceConfig};
use crate::delivery::dead_letter::DeadLetters;
use crate::delivery::deaths::{self, Deaths, Life};
use crate::error::chain;
use crate::estate::{self, Estate};
use crate::event::redact::{Redaction, Rules};
use crate::jobs::{self, Jobs};
use crate::observe::state::{SinkState, SourceState, State, now};
use crate::observe::threads::{self, Threads};
use crate::pipeline::dedupe::Recent;
use crate::pipeline::dispatch::{Change, Dispatcher, SinkChannel, SinkChannels, Tapped};
use crate::pipeline::error::PipelineError;
use crate::pipeline::reload::{Plan, ReloadError, Reloaded};
use crate::pipeline::replay_letters::LetterChannels;
use crate::pipeline::running_sink::{Leaving, RunningSink};
use crate::pipeline::running_sources::{RunningSource, STARTS, Starting};
use crate::pipeline::shutdown::Shutdown;
use crate::pipeline::thread::Thread;
use crate::pipeline::writers::SinkEnvironment;
use crate::queue::config::SpillMode;
use crate::queue::inspect::Inspector;
use crate::queue::open::{Incoming, OpenQueue, open_queue};
use crate::queue::spooler::Leftover;
use crate::source::coalesce;
use crate::sync::bell::{Bell, Sender, channel};

pub(crate) mod dedupe;
pub mod dispatch;
mod error;
pub(crate) mod reload;
pub(crate) mod replay_letters;
pub mod routes;
pub(crate) mod running_sink;
pub(crate) mod running_sources;
pub(crate) mod shutdown;
pub(crate) mod supervisor;
mod thread;
pub(crate) mod writers;

/// Chunks between the sources and the dispatcher, and between it and each spooler.
const CHANNEL: usize = 32;

/// Reloads whose changes the dispatcher may not have made yet.
const CHANGES: usize = 8;

/// Chunks that a live watcher may be behind before it misses some.
const TAP: usize = 64;

/// The time to wait for reads that block when the sources have ended.
const READS: Duration = Duration::from_secs(1);

/// A running pipeline.
pub(crate) struct Pipeline {
    /// The state of everything.
    pub(crate) state: Arc<State>,
    /// The channel by which live watchers get their copies.
    pub(crate) tap: broadcast::Sender<Tapped>,
    /// The job cache.
    pub(crate) jobs: Jobs,
    /// The place where sinks are asked what waits for them.
    pub(crate) inspector: Arc<Inspector>,
    /// The metrics of the Salt estate.
    pub(crate) estate: Arc<Estate>,
    /// The general settings as they were at the start.
    general: General,
    /// The time for which events are remembered so that repeats are dropped, now.
    dedupe_window: Option<Duration>,
    /// The rules that hide values of all events, now.
    redact: Arc<Rules>,
    environment: SinkEnvironment,
    sinks: Vec<RunningSink>,
    /// Sinks that were removed and may not have ended yet.
    leaving: HashMap<String, Leaving>,
    sources: Vec<RunningSource>,
    /// The time for which events may gather before the sources look again.
    coalesce: coalesce::CoalesceLimit,
    changes: Sender<Vec<Change>>,
    starts: mpsc::Sender<Starting>,
    letter_channels: Arc<LetterChannels>,
    /// Every thread and task, each as a task that waits for its end.
    parts: JoinSet<Result<(), PipelineError>>,
    failure: Option<PipelineError>,
    shutdown: Shutdown,
    /// Notes an end in order when the pipeline is dropped; `None` without sinks.
    life: Option<Life>,
}

impl Pipeline {
    /// Starts every part.
    pub(crate) fn start(
        config: &Config,
        shutdown: &Shutdown,
        reopen: &watch::Receiver<u64>,
        threads: &Arc<Threads>,
    ) -> Result<Self, PipelineError> {
        let (frames, frames_out) = channel(CHANNEL, &Bell::default());
        let (changes, changes_out) = channel(CHANGES, frames_out.bell());
        let (starts, starts_out) = mpsc::channel(STARTS);
        let (tap, _) = broadcast::channel(TAP);
        let general = &config.general;
        // Without sinks nothing is refused, and no database is made.
        let dead_letters = match config.sinks.is_empty() {
            true => None,
            false => {
                let max_bytes = general.dead_letters.max_bytes.0;
                Some(Arc::new(DeadLetters::of_daemon(&general.state_dir, max_bytes)))
            }
        };
        let has_sinks = dead_letters.is_some();
        let life = has_sinks.then(|| Life(Arc::new(Deaths::begin(&general.state_dir, now()))));
        let deaths = life.as_ref().map(|life| Arc::clone(&life.0));
        let jobs = Jobs::new(&general.state_dir);
        jobs.keep(config.keep_jobs);
        jobs.set_stores(Arc::clone(&config.job_stores));
        let redaction = Redaction::new(&config.redact, "");
        jobs.redact(redaction.clone());
        let inspector = Arc::new(Inspector::default());
        let mut pipeline = Pipeline {
            inspector: Arc::clone(&inspector),
            state: Arc::new(State::new(Arc::clone(threads))),
            tap: tap.clone(),
            jobs: jobs.clone(),
            estate: Estate::new(general.estate.clone()),
            general: general.clone(),
            dedupe_window: config.dedupe_window(),
            redact: Arc::clone(&config.redact),
            environment: SinkEnvironment {
                state_dir: general.state_dir.clone(),
                master_id: general.master_id.clone(),
                jobs: jobs.clone(),
                reopen: reopen.clone(),
                dead_letters: dead_letters.clone(),
                deaths: deaths.clone().filter(|deaths| deaths.must_isolate()),
                stop: shutdown.stop.clone(),
                give_up: shutdown.give_up.clone(),
                inspector: Arc::clone(&inspector),
                threads: Arc::clone(threads),
            },
            sinks: Vec::new(),
            leaving: HashMap::new(),
            sources: Vec::new(),
            coalesce: coalesce::CoalesceLimit::of(config.shortest_linger()),
            changes,
            starts,
            letter_channels: Arc::new(LetterChannels::new()),
            parts: JoinSet::new(),
            failure: None,
            shutdown: shutdown.clone(),
            life,
        };
        let mut sinks = Vec::new();
        for sink in &config.sinks {
            let queue = open_queue(&sink.name, sink.spill, &general.state_dir);
            sinks.push(pipeline.start_sink(sink, queue)?);
        }
        // Ends with the sources, so that the spoolers see that nothing comes any more.
        let no_more = CancellationToken::new();
        if let Some(dead_letters) = dead_letters {
            let letter_channels = Arc::clone(&pipeline.letter_channels);
            let state = Arc::clone(&pipeline.state);
            let replaying =
                replay_letters::run(dead_letters, letter_channels, state, no_more.clone());
            pipeline.parts.spawn(async move {
                replaying.await;
                Ok(())
            });
        }
        if let Some(deaths) = deaths {
            let until = no_more.clone();
            pipeline.parts.spawn(async move {
                let lived = until.run_until_cancelled(tokio::time::sleep(deaths::WHILE)).await;
                if lived.is_some() {
                    deaths.forget();
                }
                Ok(())
            });
        }
        let recent = recent(pipeline.dedupe_window);
        let (forgetting, until) = (jobs.clone(), no_more.clone());
        pipeline.parts.spawn(async move {
            jobs::retention::run(forgetting, until).await;
            Ok(())
        });
        let incoming = pipeline.estate.is_on().then(|| pipeline.start_counting()).transpose()?;
        let changes = changes_out;
        let dispatcher = Dispatcher {
            frames: frames_out,
            sinks: SinkChannels::new(sinks),
            recent,
            redaction,
            changes,
            estate: incoming,
            tap,
        };
        pipeline.thread("dispatcher", move || {
            dispatcher.run();
            Ok(())
        })?;
        let mut first = Vec::new();
        for source in &config.sources {
            let stop = shutdown.stop.child_token();
            let (source, starting) = RunningSource::new(source, source_state(source), stop, None);
            pipeline.sources.push(source);
            first.push(starting);
        }
        let coalesce = pipeline.coalesce.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(move || {
                threads::set_waiting(true);
                coalesce.sleep();
            })
            .on_thread_unpark(|| threads::set_waiting(false))
            .build()
            .map_err(|cause| PipelineError::Start { what: "source runtime".into(), cause })?;
        pipeline.thread("sources", move || {
            let _no_more = no_more.drop_guard();
            let result = running_sources::run(&runtime, first, starts_out, frames, &jobs);
            // A read of standard input, for example, ends only when somebody writes.
            runtime.shutdown_timeout(READS);
            result
        })?;
        pipeline.state.set_sources(pipeline.sources.iter().map(|s| Arc::clone(&s.state)).collect());
        pipeline.state.set_sinks(pipeline.sinks.iter().map(|s| Arc::clone(&s.state)).collect());
        Ok(pipeline)
    }

    /// Starts a sink that is new to the pipeline; the dispatcher has to be told of it.
    fn start_sink(
        &mut self,
        sink: &SinkConfig,
        queue: Result<OpenQueue, String>,
    ) -> Result<SinkChannel, PipelineError> {
        let (shares, shares_out) = channel(CHANNEL, &Bell::default());
        let incoming = Incoming { shares: shares_out, inherited: VecDeque::new() };
        let state = sink_state(sink);
        if sink.kind.is_job_cache() {
            self.jobs.fed_by(Arc::clone(&state));
        }
        let environment = &self.environment;
        let parts = &mut self.parts;
        let running =
            RunningSink::start(environment, sink, Arc::clone(&state), queue, incoming, parts)?;
        self.sinks.push(running);
        self.letter_channels.open(&sink.name, shares.clone(), Arc::clone(&state));
        let (filter, kind) = (sink.filter.clone(), sink.kind);
        Ok(SinkChannel { filter, shares, ranks: kind.ranks, jobs: kind.keeps_jobs, state })
    }

    /// Starts the thread that counts for the estate.
    fn start_counting(&mut self) -> Result<estate::EstateSender, PipelineError> {
        let (sender, counter) = self.estate.channel();
        self.thread("estate", move || {
            counter.run();
            Ok(())
        })?;
        Ok(sender)
    }

    fn thread(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<(), PipelineError> + Send + 'static,
    ) -> Result<(), PipelineError> {
        let thread = Thread::start(name, &self.environment.threads, work)?;
        self.parts.spawn(async move { thread.ended().await? });
        Ok(())
    }

    /// Changes the pipeline to another configuration. Parts that are the same in both go on
    /// untouched. Not to be cut short: a sink that has handed over would not be started again. Once
    /// the daemon is told to stop, no sink is waited for any longer.
    pub(crate) async fn reload(&mut self, config: &Config) -> Result<Reloaded, ReloadError> {
        let mut plan = self.plan(config);
        let added = self.open_added(config, &plan).await?;
        let for_restart = self.general.needs_restart(&config.general);
        if !for_restart.is_empty() {
            let settings = for_restart.join(", ");
            warn!(settings, "these settings have changed and need a restart to take effect");
        }
        // From here on the new configuration is in force.
        self.jobs.keep(config.keep_jobs);
        self.jobs.set_stores(Arc::clone(&config.job_stores));
        self.coalesce.set(config.shortest_linger());
        let deadline = config.general.shutdown_deadline.0;
        let mut failures = Vec::new();
        self.remove_sinks(&plan.sinks.removed, deadline);
        let mut changes = Vec::new();
        for (sink, queue) in added {
            match self.start_sink(sink, queue) {
                Ok(outgoing) => changes.push(Change::Add(outgoing)),
                Err(error) => failures.push(format!("the sink {}: {}", sink.name, chain(&error))),
            }
        }
        let changed: Vec<_> = config
            .sinks
            .iter()
            .filter(|sink| plan.sinks.changed.contains(&sink.name))
            .map(|sink| (sink, self.state_of(sink)))
            .collect();
        for (sink, state) in &changed {
            let (filter, state) = (sink.filter.clone(), Arc::clone(state));
            changes.push(Change::Filter { sink: sink.name.clone(), filter, state });
        }
        let window = config.dedupe_window();
        if window != self.dedupe_window {
            changes.push(Change::Dedupe(recent(window)));
            self.dedupe_window = window;
        }
        if config.redact != self.redact {
            let redaction = Redaction::new(&config.redact, "");
            self.jobs.redact(redaction.clone());
            changes.push(Change::Redact(redaction));
            self.redact = Arc::clone(&config.redact);
        }
        let was_on = self.estate.is_on();
        if self.estate.configure(config.general.estate.clone()) {
            info!("the metrics of the estate begin at zero, because their configuration changed");
        }
        if was_on != self.estate.is_on() {
            match self.estate.is_on().then(|| self.start_counting()).transpose() {
                Ok(sender) => changes.push(Change::Estate(sender)),
                Err(error) => {
                    // Off, so that another reload tries again.
                    self.estate.configure(None);
                    failures.push(format!("the metrics of the estate: {}", chain(&error)));
                }
            }
        }
        if !changes.is_empty() && self.changes.try_send(changes).is_err() {
            // There was room, and nobody else sends: the dispatcher has ended.
            failures.push("every source has ended; nothing reaches the sinks any more".to_owned());
        }
        let broken = self.change_sinks(&changed, &mut failures).await;
        self.change_sources(config, &plan.sources, &mut failures).await;
        plan.sources.retried = self.retry_sources(&plan.sources.kept);
        self.put_in_order(config, &broken);
        let reloaded = plan;
        info!(
            retried = reloaded.names(|plan| &plan.retried),
            kept = reloaded.names(|plan| &plan.kept),
            added = reloaded.names(|plan| &plan.added),
            changed = reloaded.names(|plan| &plan.changed),
            removed = reloaded.names(|plan| &plan.removed),
            "the configuration was reloaded"
        );
        if failures.is_empty() {
            Ok(reloaded)
        } else {
            Err(ReloadError::Failed(failures.join("; ")))
        }
    }

    fn plan(&self, config: &Config) -> Reloaded {
        let running: Vec<_> =
            self.sources.iter().map(|s| (s.state.name.as_str(), s.fingerprint)).collect();
        let wanted: Vec<_> =
            config.sources.iter().map(|s| (s.name.as_str(), s.fingerprint)).collect();
        let sources = Plan::new(&running, &wanted);
        let running: Vec<_> =
            self.sinks.iter().map(|s| (s.state.name.as_str(), s.fingerprint)).collect();
        let wanted: Vec<_> =
            config.sinks.iter().map(|s| (s.name.as_str(), s.fingerprint)).collect();
        Reloaded { sources, sinks: Plan::new(&running, &wanted) }
    }

    /// Everything that can go wrong before anything is changed.
    async fn open_added<'a>(
        &mut self,
        config: &'a Config,
        plan: &Reloaded,
    ) -> Result<Vec<(&'a SinkConfig, Result<OpenQueue, String>)>, ReloadError> {
        let refused = |reason: String| Err(ReloadError::Refused(reason));
        if plan.sources.starts() && self.starts.is_closed() {
            return refused("every source has ended; the daemon is about to end".to_owned());
        }
        let changes = plan.sinks.starts()
            || config.dedupe_window() != self.dedupe_window
            || config.redact != self.redact
            || config.general.estate.is_some() != self.estate.is_on();
        if changes && self.changes.is_full() {
            return refused(
                "a sink with a full queue and `spill.when_full: block` holds everything up, \
                 earlier reloads too; make room for it or remove it first"
                    .to_owned(),
            );
        }
        self.leaving.retain(|_, leaving| !leaving.is_gone());
        let mut opened = Vec::new();
        for sink in config.sinks.iter().filter(|sink| plan.sinks.added.contains(&sink.name)) {
            if let Some(leaving) = self.leaving.get(&sink.name)
                && !leaving.make_way(&self.shutdown.stop).await
            {
                return refused(format!(
                    "the sink {} that was removed before hangs and still uses its spill; try again \
                     later",
                    sink.name
                ));
            }
            // A spill that cannot be opened parks its sink and holds up nothing else.
            opened.push((sink, open_queue(&sink.name, sink.spill, &self.environment.state_dir)));
        }
        Ok(opened)
    }

    fn remove_sinks(&mut self, names: &[String], deadline: Duration) {
        for name in names {
            let Some(sink) = self.take_sink(name) else { continue };
            self.letter_channels.close(name);
            info!(sink = name, "the sink is removed");
            let leaving = sink.remove(deadline, &self.environment.state_dir, &mut self.parts);
            self.leaving.insert(name.clone(), leaving);
        }
    }

    fn take_sink(&mut self, name: &str) -> Option<RunningSink> {
        let place = self.sinks.iter().position(|sink| sink.state.name == name)?;
        Some(self.sinks.remove(place))
    }

    /// The state of a sink that has changed: the one that it had, unless it is of another kind.
    fn state_of(&self, sink: &SinkConfig) -> Arc<SinkState> {
        let before = self.sinks.iter().find(|running| running.state.name == sink.name);
        match before {
            Some(before) if before.state.kind == sink.kind.name => Arc::clone(&before.state),
            _ => sink_state(sink),
        }
    }

    /// Lets the new spoolers and writers take over from the old ones. Returns the states of the
    /// sinks for which that failed.
    async fn change_sinks(
        &mut self,
        changed: &[(&SinkConfig, Arc<SinkState>)],
        failures: &mut Vec<String>,
    ) -> Vec<Arc<SinkState>> {
        let mut handing_over = JoinSet::new();
        for (sink, _) in changed {
            let Some(running) = self.take_sink(&sink.name) else { continue };
            let name = sink.name.clone();
            let stop = self.shutdown.stop.clone();
            handing_over.spawn(async move { (name, running.hand_over(&stop).await) });
        }
        let mut broken = Vec::new();
        while let Some(ended) = handing_over.join_next().await {
            let Ok((name, left)) = ended else {
                failures.push(chain(&PipelineError::Panicked("hand-over".to_owned())));
                continue;
            };
            let Some((sink, state)) = changed.iter().find(|(sink, _)| sink.name == name) else {
                continue;
            };
            let taken_over = left.and_then(|left| self.take_over(sink, state, left));
            if let Err(error) = taken_over {
                let reason = format!("the sink {name}: {}", chain(&error));
                error!(sink = name, error = reason, "the changed sink could not be started");
                self.letter_channels.close(&name);
                state.failed(&reason);
                state.park();
                broken.push(Arc::clone(state));
                failures.push(reason);
            }
        }
        broken
    }

    fn take_over(
        &mut self,
        sink: &SinkConfig,
        state: &Arc<SinkState>,
        left: Leftover,
    ) -> Result<(), PipelineError> {
        let ended = || PipelineError::Panicked(format!("spooler of {}", sink.name));
        let shares = left.shares.ok_or_else(ended)?;
        if left.on_disk > 0 && sink.spill.mode == SpillMode::Memory {
            warn!(
                sink = sink.name,
                events = left.on_disk,
                "events stay in the spill and are not delivered while spill.mode is `memory`"
            );
        }
        let queue = open_queue(&sink.name, sink.spill, &self.environment.state_dir);
        state.unpark();
        state.up.set_bool(false);
        state.breaker_open.set_bool(false);
        let (environment, state) = (&self.environment, Arc::clone(state));
        let incoming = Incoming { shares, inherited: left.in_memory.into() };
        let running =
            RunningSink::start(environment, sink, state, queue, incoming, &mut self.parts)?;
        self.sinks.push(running);
        Ok(())
    }

    /// New sources start before old ones stop, so that the sources' thread never ends.
    async fn change_sources(&mut self, config: &Config, plan: &Plan, failures: &mut Vec<String>) {
        let mut started = Vec::new();
        for source in &config.sources {
            let is_changed = plan.changed.contains(&source.name);
            if !is_changed && !plan.added.contains(&source.name) {
                continue;
            }
            let before = self.sources.iter().find(|running| running.state.name == source.name);
            let state = match before.map(|before| &before.state) {
                Some(state)
                    if state.kind == source.kind.name && state.master_id == source.master_id =>
                {
                    Arc::clone(state)
                }
                _ => source_state(source),
            };
            let stop = self.shutdown.stop.child_token();
            let (running, starting) = RunningSource::new(source, state, stop, before);
            let sent = self.starts.send(starting);
            if !matches!(self.shutdown.stop.run_until_cancelled(sent).await, Some(Ok(()))) {
                failures.push(format!("the source {}: the sources have ended", source.name));
                continue;
            }
            started.push(running);
        }
        let goes = |source: &RunningSource| {
            plan.removed.contains(&source.state.name) || plan.changed.contains(&source.state.name)
        };
        for source in self.sources.extract_if(.., |source| goes(source)) {
            source.stop.cancel();
        }
        self.sources.extend(started);
    }

    /// Tries waiting sinks and sources at once. Returns their names.
    fn retry_sources(&self, kept: &[String]) -> Vec<String> {
        let failing = self.sources.iter().filter(|source| {
            kept.contains(&source.state.name) && source.state.is_failing() && !source.has_ended()
        });
        failing
            .map(|source| {
                source.state.try_now();
                source.state.name.clone()
            })
            .collect()
    }

    /// Sources and sinks in the order of the configuration, and their states for all to see.
    fn put_in_order(&mut self, config: &Config, broken: &[Arc<SinkState>]) {
        let place = |name: &str| config.sinks.iter().position(|sink| sink.name == name);
        self.sinks.sort_by_key(|sink| place(&sink.state.name));
        let running = self.sinks.iter().map(|sink| &sink.state);
        let mut states: Vec<_> = running.chain(broken).map(Arc::clone).collect();
        states.sort_by_key(|state| place(&state.name));
        self.state.set_sinks(states);
        let place = |name: &str| config.sources.iter().position(|source| source.name == name);
        self.sources.sort_by_key(|source| place(&source.state.name));
        let states = self.sources.iter().map(|source| Arc::clone(&source.state));
        self.state.set_sources(states.collect());
    }

    /// The state directory was removed or replaced: the owners of files there begin them anew. That
    /// may take long, and does not block the caller's thread.
    pub(crate) async fn renew(&self) {
        self.sinks.iter().for_each(RunningSink::renew);
        let (jobs, letters) = (self.jobs.clone(), self.environment.dead_letters.clone());
        let deaths = self.life.as_ref().map(|Life(deaths)| Arc::clone(deaths));
        let renewing = tokio::task::spawn_blocking(move || {
            if let Some(deaths) = deaths {
                deaths.renew();
            }
            jobs.renew();
            if let Some(letters) = letters {
                letters.renew();
            }
        });
        if let Err(error) = renewing.await {
            error!(%error, "not all files could be opened again; this is a bug in saltern");
        }
    }

    /// Waits until every part has ended: the sources because they were told to stop or had no more,
    /// the others because everything is settled or given up. The first failure is the result; a
    /// sink that is parked is one. A part that has panicked ends all others. May be cancelled and
    /// called again.
    pub(crate) async fn ended(&mut self) -> Result<(), PipelineError> {
        while let Some(ended) = self.parts.join_next().await {
            let ended =
                ended.unwrap_or_else(|_| Err(PipelineError::Panicked("waiting".to_owned())));
            let Err(failure) = ended else { continue };
            if matches!(failure, PipelineError::Panicked(_)) && !self.shutdown.stop.is_cancelled() {
                // The rest would do half of its work unnoticed.
                error!(
                    error = chain(&failure),
                    "a part of the daemon has panicked; the daemon ends"
                );
                self.shutdown.stop.cancel();
            }
            self.failure.get_or_insert(failure);
        }
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        for sink in &self.sinks {
            if let Some(reason) = sink.state.parked() {
                let name = &sink.state.name;
                return Err(PipelineError::Failed(format!("the sink {name}: {reason}")));
            }
        }
        Ok(())
    }
}

fn recent(window: Option<Duration>) -> Option<Recent> {
    window.map(|window| Recent::new(window, Instant::now()))
}

fn source_state(source: &SourceConfig) -> Arc<SourceState> {
    Arc::new(SourceState::new(&source.name, source.kind.name, &source.master_id))
}

fn sink_state(sink: &SinkConfig) -> Arc<SinkState> {
    Arc::new(SinkState::new(&sink.name, sink.kind.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(folder: &tempfile::TempDir, shutdown: &Shutdown) -> Pipeline {
        let text = format!(
            "state_dir: {0}/state\nhttp: {{listen: null}}\n\
             sources: {{salt: {{returner: {{bind: 'ipc://{0}/bus'}}}}}}\n\
             sinks: {{out: {{blackhole: {{}}}}}}\n",
            folder.path().display()
        );
        let config = Config::parse(&text).unwrap_or_else(|problems| panic!("{problems:?}"));
        std::fs::create_dir(folder.path().join("state")).unwrap();
        let reopen = watch::channel(0).1;
        Pipeline::start(&config, shutdown, &reopen, &Arc::default()).unwrap()
    }

    /// The main task answers the thread that watches over it.
    #[tokio::test(flavor = "multi_thread")]
    async fn invariant_9_files_that_are_begun_anew_do_not_block_the_task_that_waits_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let shutdown = Shutdown::within(Duration::from_secs(60));
        let mut pipeline = pipeline(&folder, &shutdown);
        let letters = pipeline.environment.dead_letters.clone().unwrap();
        let (release, told) = std::sync::mpsc::channel::<()>();
        let (held_in, held) = tokio::sync::oneshot::channel();
        let holding = std::thread::spawn(move || {
            let _held = letters.hold();
            held_in.send(()).unwrap();
            // Whichever comes first.
            let _ = told.recv_timeout(Duration::from_secs(20));
        });
        held.await.unwrap();
        let began = Instant::now();
        {
            let mut renewing = std::pin::pin!(pipeline.renew());
            let soon = Duration::from_millis(100);
            assert!(tokio::time::timeout(soon, renewing.as_mut()).await.is_err());
            assert!(began.elapsed() < Duration::from_secs(10));
            release.send(()).unwrap();
            renewing.await;
        }
        holding.join().unwrap();
        shutdown.stop.cancel();
        pipeline.ended().await.unwrap();
    }

    /// The parts that a panic leaves behind would do half of their work.
    #[tokio::test(flavor = "multi_thread")]
    async fn invariant_9_a_part_that_panics_ends_the_others_and_is_the_outcome() {
        let folder = tempfile::tempdir().unwrap();
        let shutdown = Shutdown::within(Duration::from_secs(60));
        let mut pipeline = pipeline(&folder, &shutdown);
        pipeline.thread("unlucky", || panic!("out of luck")).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(60), pipeline.ended()).await;
        let failure = ended.expect("it goes on without the part").unwrap_err();
        assert!(
            matches!(&failure, PipelineError::Panicked(part) if part == "unlucky"),
            "{failure}"
        );
        assert!(shutdown.stop.is_cancelled());
    }
}
