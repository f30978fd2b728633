//! The command line: one file a subcommand.
//!
//! Exit codes: 0 done, 1 failed while running, 2 wrong usage or configuration.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Config, ConfigError, Log, LogFormat, LogLevel};

mod check;
mod run;

/// Reads every event off a Salt master's bus and delivers it, in batches, to many stores.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// The configuration file.
    #[arg(long, short, global = true, default_value = crate::config::DEFAULT_PATH, value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon.
    Run,
    /// Check the configuration; with --connect try its sources and sinks too.
    Check(check::Check),
}

/// Why a command failed.
pub(crate) enum Failure {
    /// While it ran: exit code 1.
    Running(String),
    /// Usage or configuration: exit code 2.
    Usage(String),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::Usage(error.to_string())
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Run => run::run(&arguments.config),
        Command::Check(check) => check::check(&arguments.config, &check),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Running(message)) => {
            eprintln!("saltern: {message}");
            ExitCode::from(1)
        }
        Err(Failure::Usage(message)) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

/// Begins to log as configured.
fn start_logging(log: Log) {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let is_terminal = std::io::stderr().is_terminal();
    let format = log.format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json });
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal)
        .with_target(false);
    // Fails only when a logger is there already, which then goes on.
    let _ = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}

/// The runtime that sinks and the HTTP side run on.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("saltern")
        .build()
        .map_err(|error| Failure::Running(format!("cannot start the runtime: {error}")))
}

fn load(path: &std::path::Path) -> Result<Config, Failure> {
    Ok(Config::load(path)?)
}
