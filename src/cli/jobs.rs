//! `saltern jobs`: the jobs of the job cache.
//!
//! A running daemon is asked, over its unix socket. If none runs, the file is read.

use std::collections::HashMap;
use std::time::Duration;

use axum::http::Method;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::sleep;

use super::daemon::{Answer, Daemon, general_of, meant};
use super::job_table::{Job, Objects, Page, heading, return_heading};
use super::run;
use super::spill::table;
use crate::cli::output::{Failure, Output, print, print_json};
use crate::cli::runtime::runtime;
use crate::cli::target::{Target, look_into};
use crate::codec::lenient_json;
use crate::codec::visible::Visible;
use crate::config::{Config, ConfigError};
use crate::error::chain;
use crate::files::state_dir::is_taken;
use crate::jobs::Jobs;
use crate::jobs::listing::{JobOutcome, JobSelection, PAGE};

/// The interval at which a watch looks.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(super) struct Arguments {
    /// The daemon's address. Default: its unix socket.
    #[arg(long, global = true)]
    url: Option<String>,
    /// A table, or JSON for machines.
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List jobs, the last one first.
    List(Which),
    /// Show a job and what each minion returned.
    Show {
        /// Its id.
        jid: String,
    },
    /// Show jobs as they come and go on, or one until every minion has returned.
    Watch {
        /// Its id.
        jid: Option<String>,
    },
    /// List jobs that minions have not returned from, or the minions missing from one.
    Missing {
        /// Its id.
        jid: Option<String>,
    },
    /// List jobs that failed on a minion, or what failed in one.
    Failed {
        /// Its id.
        jid: Option<String>,
    },
}

/// A selection of jobs. A job has to match everything that is given.
#[derive(Args, Default)]
struct Which {
    /// Jobs of functions that match.
    #[arg(long, value_name = "GLOB")]
    function: Option<String>,
    /// Without functions that match, such as `runner.*`; may be given several times.
    #[arg(long, value_name = "GLOB")]
    not_function: Vec<String>,
    /// For this minion.
    #[arg(long, value_name = "ID")]
    minion: Option<String>,
    /// Published by this user.
    #[arg(long)]
    user: Option<String>,
    /// Jobs with this outcome.
    #[arg(long, value_enum)]
    outcome: Option<JobOutcome>,
    /// Begun then or later (RFC 3339).
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Begun before (RFC 3339).
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// `saltutil.find_job` too.
    #[arg(long)]
    find_job: bool,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = PAGE.0,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(PAGE.1)))]
    limit: u32,
    /// Jobs behind a page: its `next`.
    #[arg(long, value_name = "JID")]
    cursor: Option<String>,
}

pub(super) fn jobs(target: &Target, arguments: &Arguments) -> Result<(), Failure> {
    let cache = Cache::find(target, arguments.url.as_deref())?;
    let output = arguments.output;
    let asking = async {
        match &arguments.action {
            Action::List(which) => list(&cache, &which.selection(), output).await,
            Action::Show { jid } => show(&cache, jid, output).await,
            Action::Watch { jid: None } => watch(&cache, output).await,
            Action::Watch { jid: Some(jid) } => watch_one(&cache, jid, output).await,
            Action::Missing { jid: Some(jid) } => missing(&cache, jid, output).await,
            Action::Failed { jid: Some(jid) } => failed(&cache, jid, output).await,
            Action::Missing { jid: None } => {
                let outcome = Some(JobOutcome::Missing);
                list(&cache, &JobSelection { outcome, ..JobSelection::default() }, output).await
            }
            Action::Failed { jid: None } => {
                let outcome = Some(JobOutcome::Failed);
                list(&cache, &JobSelection { outcome, ..JobSelection::default() }, output).await
            }
        }
    };
    let signals = run::listen(Duration::ZERO)?;
    runtime()?.block_on(async {
        // Nothing is lost with the other arm: the answer is on its way to the screen only.
        tokio::select! {
            result = asking => result,
            () = signals.shutdown.stop.cancelled() => Ok(()),
        }
    })
}

impl Which {
    fn selection(&self) -> JobSelection {
        JobSelection {
            function: self.function.clone(),
            not_function: self.not_function.clone(),
            minion: self.minion.clone(),
            user: self.user.clone(),
            outcome: self.outcome,
            since: self.since,
            until: self.until,
            find_job: self.find_job,
            limit: Some(self.limit),
            cursor: self.cursor.clone(),
        }
    }
}

/// The job cache, asked through the daemon or read from its file.
enum Cache {
    Daemon(Daemon),
    File(Jobs),
}

impl Cache {
    fn find(target: &Target, url: Option<&str>) -> Result<Self, Failure> {
        if url.is_some() {
            return Daemon::find(target, url).map(Cache::Daemon);
        }
        let target = &meant(target, true)?;
        if let Some(daemon) = Daemon::running(target)? {
            return Ok(Cache::Daemon(daemon));
        }
        let general = general_of(target, false)?;
        if is_taken(&general.state_dir) {
            return Daemon::find(target, None).map(Cache::Daemon);
        }
        look_into(&general.state_dir, target)?;
        let jobs = Jobs::new(&general.state_dir);
        let keep = match target.state_dir {
            // All jobs in the file are shown, even those that a configuration would not keep.
            Some(_) => Some(general.jobs.keep_jobs.0),
            None => match Config::load(&target.config) {
                Ok(config) => config.keep_jobs,
                // There may be some, if nobody can tell.
                Err(ConfigError::Wrong { .. }) => Some(general.jobs.keep_jobs.0),
                Err(error) => return Err(error.into()),
            },
        };
        jobs.keep(keep);
        Ok(Cache::File(jobs))
    }

    async fn page(&self, selection: &JobSelection) -> Result<Vec<u8>, Failure> {
        match self {
            Cache::Daemon(daemon) => {
                let query = query(selection);
                let query: Vec<_> =
                    query.iter().map(|(name, value)| (*name, value.as_str())).collect();
                read(daemon, daemon.ask(Method::GET, &["jobs"], &query).await?).await
            }
            Cache::File(jobs) => {
                jobs.page(selection).map_err(|error| Failure::Running(chain(&error)))
            }
        }
    }

    async fn job(&self, jid: &str) -> Result<Vec<u8>, Failure> {
        match self {
            Cache::Daemon(daemon) => {
                read(daemon, daemon.ask(Method::GET, &["jobs", jid], &[]).await?).await
            }
            Cache::File(jobs) => {
                let found = jobs.job(jid).map_err(|error| Failure::Running(chain(&error)))?;
                found.ok_or_else(|| Failure::Running(format!("there is no job {jid}")))
            }
        }
    }
}

async fn read(daemon: &Daemon, response: Answer) -> Result<Vec<u8>, Failure> {
    response.bytes().await.map_err(|error| daemon.failed(&chain(&error)))
}

/// The selection as the daemon reads it.
fn query(selection: &JobSelection) -> Vec<(&'static str, String)> {
    let outcome = selection.outcome.map(|outcome| outcome.name().to_owned());
    let find_job = selection.find_job.then(|| "true".to_owned());
    let pairs = [
        ("function", selection.function.clone()),
        ("minion", selection.minion.clone()),
        ("user", selection.user.clone()),
        ("outcome", outcome),
        ("since", selection.since.map(|time| time.to_string())),
        ("until", selection.until.map(|time| time.to_string())),
        ("find_job", find_job),
        ("limit", selection.limit.map(|limit| limit.to_string())),
        ("cursor", selection.cursor.clone()),
    ];
    let not_function = selection.not_function.iter().map(|glob| ("not_function", glob.clone()));
    let pairs = pairs.into_iter().filter_map(|(name, value)| Some((name, value?)));
    pairs.chain(not_function).collect()
}

fn parsed<T: DeserializeOwned>(answer: &[u8]) -> Result<T, Failure> {
    let wrong = |why: String| Failure::Running(format!("cannot read the daemon's answer: {why}"));
    let read = lenient_json::read_answer(answer).map_err(|error| wrong(error.to_string()))?;
    let (value, replaced) = read;
    if replaced.too_deep > 0 {
        let why = "it is nested too deeply; `--output json` of list and show prints it as it is";
        return Err(wrong(why.to_owned()));
    }
    serde_json::from_value(value).map_err(|error| wrong(error.to_string()))
}

/// Prints an answer on a line.
fn print_answer(answer: &[u8]) -> Result<(), Failure> {
    print_json(&String::from_utf8_lossy(answer))
}

async fn list(cache: &Cache, selection: &JobSelection, output: Output) -> Result<(), Failure> {
    let answer = cache.page(selection).await?;
    if output == Output::Json {
        return print_answer(&answer);
    }
    let page: Page = parsed(&answer)?;
    let rows: Vec<_> = std::iter::once(heading()).chain(page.jobs.iter().map(Job::row)).collect();
    print(&table(&rows))?;
    match page.next {
        Some(next) => print(&format!("there are more: --cursor {}\n", Visible(&next))),
        None => Ok(()),
    }
}

async fn show(cache: &Cache, jid: &str, output: Output) -> Result<(), Failure> {
    let answer = cache.job(jid).await?;
    if output == Output::Json {
        return print_answer(&answer);
    }
    let job: Job = parsed(&answer)?;
    print(&table(&[heading(), job.row()]))?;
    let missing = job.missing_minions.iter().map(|minion| {
        [minion.clone(), "missing".to_owned(), String::new(), String::new(), String::new()]
    });
    let returns = job.returns.iter().map(|(minion, ret)| job.return_row(minion, ret));
    let rows: Vec<_> = std::iter::once(return_heading()).chain(missing).chain(returns).collect();
    print(&format!("\n{}", table(&rows)))
}

async fn missing(cache: &Cache, jid: &str, output: Output) -> Result<(), Failure> {
    let answer = cache.job(jid).await?;
    let job: Job = parsed(&answer)?;
    match output {
        Output::Json => {
            print_json(&json!({"jid": jid, "missing_minions": job.missing_minions}).to_string())
        }
        Output::Text if job.missing_minions.is_empty() => Ok(()),
        Output::Text => {
            let lines = job.missing_minions.iter().map(|minion| format!("{}\n", Visible(minion)));
            print(&lines.collect::<String>())
        }
    }
}

async fn failed(cache: &Cache, jid: &str, output: Output) -> Result<(), Failure> {
    let answer = cache.job(jid).await?;
    let mut job: Job = parsed(&answer)?;
    job.returns.retain(|_, ret| ret["ok"] == json!(false));
    if output == Output::Json {
        return print_json(&json!({"jid": jid, "failed": job.returns}).to_string());
    }
    let returns = job.returns.iter().map(|(minion, ret)| job.return_row(minion, ret));
    print(&table(&std::iter::once(return_heading()).chain(returns).collect::<Vec<_>>()))
}

/// Prints each job of the first page again whenever it has changed.
async fn watch(cache: &Cache, output: Output) -> Result<(), Failure> {
    let mut before: HashMap<String, (u64, u64)> = HashMap::new();
    let mut is_first = true;
    loop {
        let answer = cache.page(&JobSelection::default()).await?;
        let page: Page = parsed(&answer)?;
        let whole: Objects = parsed(&answer)?;
        let mut rows = Vec::new();
        if std::mem::take(&mut is_first) && output == Output::Text {
            rows.push(heading());
        }
        // The last one is printed last.
        for (job, object) in page.jobs.iter().zip(&whole.jobs).rev() {
            if before.get(&job.jid) == Some(&(job.expected, job.returned)) {
                continue;
            }
            match output {
                Output::Json => print_json(&object.to_string())?,
                Output::Text => rows.push(job.row()),
            }
        }
        print(&table(&rows))?;
        before = page.jobs.into_iter().map(|job| (job.jid, (job.expected, job.returned))).collect();
        sleep(LOOK).await;
    }
}

/// Prints each return of a job once, until none is missing.
async fn watch_one(cache: &Cache, jid: &str, output: Output) -> Result<(), Failure> {
    let mut seen: Vec<String> = Vec::new();
    loop {
        let answer = cache.job(jid).await?;
        let job: Job = parsed(&answer)?;
        let mut rows = Vec::new();
        for (minion, ret) in job.returns.iter().filter(|(minion, _)| !seen.contains(minion)) {
            match output {
                Output::Json => {
                    print_json(&json!({"minion": minion, "return": ret}).to_string())?;
                }
                Output::Text => rows.push(job.return_row(minion, ret)),
            }
        }
        print(&table(&rows))?;
        seen = job.returns.keys().cloned().collect();
        if job.missing == 0 && job.expected > 0 {
            return Ok(());
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::codec::json::MAX_DEPTH;

    fn answer(ret: &str) -> String {
        format!(
            "{{\"jid\":\"1\",\"target\":null,\"last_seen\":\"\",\"expected\":1,\"returned\":1,\
             \"failed\":0,\"missing\":0,\"returns\":{{\"web\":{{\"return\":{ret}}}}}}}"
        )
    }

    #[test]
    fn the_deepest_return_is_shown_whole_and_a_deeper_one_is_no_null() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        let deep = nested(MAX_DEPTH - 1);
        let Ok(job) = parsed::<Job>(answer(&deep).as_bytes()) else { panic!("it is an answer") };
        let ret: &Value = &job.returns["web"]["return"];
        assert_eq!(ret.to_string(), deep);
        let Err(Failure::Running(why)) = parsed::<Job>(answer(&nested(5000)).as_bytes()) else {
            panic!("it is cut without a word")
        };
        assert!(why.contains("nested too deeply"), "{why}");
    }
}
