//! The command line: one file a subcommand.
//!
//! Exit codes: 0 done, 1 failed while running, 2 wrong usage or configuration.

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tracing::error;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::codec::visible;
use crate::config::{Config, ConfigError, DEFAULT_PATH, Log, LogFormat, LogLevel};
use crate::observe::log_line::LogLine;
use crate::observe::log_repeats::RepeatFilter;

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
mod replay;
mod run;
mod schema;
mod sinks;
mod spill;
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

/// The daemon that is meant.
#[derive(Clone)]
struct Target {
    config: PathBuf,
    state_dir: Option<PathBuf>,
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
    /// Look at jobs: what ran where, who has not returned, what failed.
    Jobs(jobs::Arguments),
    /// Print the URL of the daemon's page, with the token that opens it in a browser.
    Console,
    /// Deliver what was recorded, or the jobs that a Salt master has kept.
    Replay(replay::Replay),
    /// Print the configuration that does what a Salt master's returners do.
    ImportMaster(import_master::ImportMaster),
    /// List the kinds of sinks and sources.
    Sinks(sinks::SinksCommand),
    /// Print the JSON Schema of the configuration, or print or apply the SQL of a store's tables.
    Schema(schema::Schema),
    /// Print completions for a shell.
    Completions(completions::Completions),
    /// Look at what waits for each sink on disk, check it, take it out, or discard it.
    Spill(spill::Arguments),
    /// Look at what sinks have refused, hand it to them once more, or discard it.
    DeadLetters(dead_letters::Arguments),
}

/// For whom a command writes.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// The longest error of a command that is shown, in bytes. A server may answer anything.
const LONGEST_ERROR: usize = 8192;

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
        Command::Completions(completions) => completions::completions(&completions),
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

/// Prints to standard output; that nobody reads it any more (`saltern schema | head`) is no
/// failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Running(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// As [`print`], of JSON and a line feed behind it, with all that does not show escaped.
fn print_json(json: &str) -> Result<(), Failure> {
    print(&format!("{}\n", visible::json(json)))
}

/// Begins to log as configured.
fn start_logging(log: Log) {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let is_terminal = io::stderr().is_terminal();
    let format = log.format.unwrap_or_else(|| match () {
        () if is_terminal => LogFormat::Text,
        () if is_journal() => LogFormat::Journald,
        () => LogFormat::Json,
    });
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(is_terminal);
    let lines = lines.event_format(LogLine(format));
    let rest = tracing_subscriber::registry().with(level);
    // Fails only when a logger is there already, which then goes on.
    let _ = rest.with(lines).with(RepeatFilter::default()).try_init();
    log_panics();
}

/// Logs panics like everything else, with the thread.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let message = panic.payload_as_str().unwrap_or_default();
        let place = panic.location().map(ToString::to_string);
        error!(
            thread = thread.name(),
            place,
            error = message,
            "a thread has panicked; this is a bug in saltern"
        );
    }));
}

/// Whether standard error goes to systemd's journal: systemd says which device and inode that is.
fn is_journal() -> bool {
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    let journal = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    journal == format!("{}:{}", stderr.dev(), stderr.ino())
}

/// The runtime that sinks and the HTTP side run on.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    // With one alone a client that blocks it would stop the clock for all.
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .thread_name("saltern")
        .build()
        .map_err(|error| Failure::Running(format!("cannot start the runtime: {error}")))
}

/// Makes sure that nothing is taken for empty that may only not be read.
fn look_into(state_dir: &Path, target: &Target) -> Result<(), Failure> {
    let Err(error) = std::fs::read_dir(state_dir) else { return Ok(()) };
    let shown = state_dir.display();
    match error.kind() {
        io::ErrorKind::NotFound if target.state_dir.is_none() => {
            eprintln!("there is no state_dir {shown} yet");
            Ok(())
        }
        io::ErrorKind::NotFound => Err(Failure::Usage(format!("there is no directory {shown}"))),
        io::ErrorKind::PermissionDenied => Err(Failure::Running(format!(
            "cannot look into state_dir {shown}: {error}; run this as root or as the daemon's user"
        ))),
        _ => Err(Failure::Running(format!("cannot look into state_dir {shown}: {error}"))),
    }
}

fn load(path: &Path) -> Result<Config, Failure> {
    Config::load(path).map_err(|error| match &error {
        ConfigError::Unreadable { cause, .. }
            if cause.kind() == io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) =>
        {
            Failure::Usage(format!(
                "{error}\n--config FILE names another one; docs/configuration.md says what stands in it. \
                 `saltern demo` needs none."
            ))
        }
        _ => error.into(),
    })
}
