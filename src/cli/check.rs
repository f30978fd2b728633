//! `saltern check`: says what is wrong with a configuration.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Failure, load, runtime};
use crate::config::Config;
use crate::jobs::Jobs;
use crate::sink::{Context, chain};

/// How long one source or sink may take to connect.
const CONNECT: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(super) struct Check {
    /// Connect to every source and sink once.
    #[arg(long)]
    connect: bool,
}

pub(super) fn check(path: &Path, arguments: &Check) -> Result<(), Failure> {
    let config = load(path)?;
    println!(
        "{}: {} and {}, no mistakes",
        path.display(),
        counted(config.sources.len(), "source"),
        counted(config.sinks.len(), "sink")
    );
    if arguments.connect { runtime()?.block_on(connect(&config)) } else { Ok(()) }
}

async fn connect(config: &Config) -> Result<(), Failure> {
    let mut failed = 0;
    let mut report = |what: &str, name: &str, result: Result<(), String>| match result {
        Ok(()) => println!("ok      {what} {name}"),
        Err(error) => {
            failed += 1;
            println!("failed  {what} {name}: {error}");
        }
    };
    for source in &config.sources {
        let result = match timeout(CONNECT, source.reader.probe()).await {
            Ok(result) => result.map_err(|error| chain(&error)),
            Err(_) => Err(format!("no answer within {CONNECT:?}")),
        };
        report("source", &source.name, result);
    }
    let (_reopen, reopen) = watch::channel(0);
    for sink in &config.sinks {
        let context = Context {
            name: sink.name.clone(),
            writer: 0,
            master_id: config.general.master_id.clone(),
            state_dir: config.general.state_dir.clone(),
            jobs: Jobs::new(&config.general.state_dir),
            reopen: reopen.clone(),
        };
        let result = match timeout(CONNECT, sink.driver.probe(&context)).await {
            Ok(result) => result.map_err(|error| error.chain()),
            Err(_) => Err(format!("no answer within {CONNECT:?}")),
        };
        report("sink", &sink.name, result);
    }
    match failed {
        0 => Ok(()),
        failed => Err(Failure::Running(format!("{} cannot be reached", counted(failed, "part")))),
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
