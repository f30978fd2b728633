//! The command line: one file a subcommand.
//!
//! Exit codes: 0 done, 1 failed while running, 2 wrong usage or configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::cli::output::Failure;
use crate::cli::target::Target;
use crate::codec::visible;
use crate::config::DEFAULT_PATH;

mod check;
mod completions;
mod console;
mod daemon;
mod dead_letters;
mod demo;
mod demo_sign;
mod events;
mod import_master;
mod job_table;
mod jobs;
mod logging;
mod output;
mod replay;
mod run;
mod runtime;
mod schema;
mod sinks;
mod spill;
mod target;
mod tcp_listener;

/// Reads every event off a Salt master's bus and delivers it, in batches, to many stores.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// The configuration file.
    #[arg(long, short, global = true, default_value = DEFAULT_PATH, value_name = "FILE")]
    config: PathBuf,
    /// The daemon's state directory. Default: as the configuration says.
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon.
    Run,
    /// Check the configuration; with --connect try its sources and sinks too.
    Check(check::Check),
    /// Try it out: a made-up master's events into a database and a file, for as long as you like.
    Demo(demo::Demo),
    /// Show events as they pass, of a running daemon or of a bus.
    Events(events::Events),
    /// Look at jobs: where they ran, which minions have not returned, and which failed.
    Jobs(jobs::Arguments),
    /// Print the URL of the daemon's page, with the token that opens it in a browser.
    Console,
    /// Deliver a recording, or the jobs that a Salt master has kept.
    Replay(replay::Replay),
    /// Print the configuration that does what a Salt master's returners do.
    ImportMaster(import_master::ImportMaster),
    /// List the kinds of sinks and sources.
    Sinks(sinks::SinksCommand),
    /// Print the JSON Schema of the configuration, or print or apply the SQL of a store's tables.
    Schema(schema::Schema),
    /// Print completions for a shell.
    Completions(completions::Completions),
    /// Look at the events that wait for each sink on disk, check them, take them out, or discard
    /// them.
    Spill(spill::Arguments),
    /// Look at the events that sinks have refused, hand them over once more, or discard them.
    DeadLetters(dead_letters::Arguments),
}

/// The longest error of a command that is shown, in bytes. A server may answer anything.
const LONGEST_ERROR: usize = 8192;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let Arguments { config, state_dir, command } = Arguments::parse();
    let target = Target { config, state_dir };
    let config = &target.config;
    let result = match command {
        Command::Run => run::run(config),
        Command::Check(check) => check::check(config, &check),
        Command::Demo(demo) => demo::demo(&demo, target.state_dir.as_deref()),
        Command::Events(events) => events::events(&target, &events),
        Command::Jobs(jobs) => jobs::jobs(&target, &jobs),
        Command::Console => console::console(&target),
        Command::Replay(replay) => replay::replay(config, &replay),
        Command::ImportMaster(import) => import_master::import_master(&import),
        Command::Sinks(sinks) => sinks::sinks(&sinks),
        Command::Schema(schema) => schema::schema(config, &schema),
        Command::Completions(completions) => {
            completions::completions(&completions, &mut Arguments::command())
        }
        Command::Spill(spill) => spill::spill(&target, &spill),
        Command::DeadLetters(letters) => dead_letters::dead_letters(&target, &letters),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Running(message)) => {
            eprintln!("saltern: {}", visible::capped(&message, LONGEST_ERROR));
            ExitCode::from(1)
        }
        Err(Failure::Usage(message)) => {
            eprintln!("{}", visible::lines(&message));
            ExitCode::from(2)
        }
    }
}
