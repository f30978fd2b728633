//! `saltern check`: reports the mistakes of a configuration.

use std::iter;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::timeout;

use crate::cli::output::{Failure, Output, print_json};
use crate::cli::runtime::runtime;
use crate::client::tls;
use crate::codec::visible::Visible;
use crate::config::{Config, ConfigError, SinkConfig};
use crate::error::chain;
use crate::files::state_dir;
use crate::jobs::Jobs;
use crate::sink::contract::{Context, Reopen};
use crate::yaml::Problem;

/// The time in which one source or sink has to connect.
const CONNECT: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(super) struct Check {
    /// Connect to every source and sink once.
    #[arg(long)]
    connect: bool,
    /// Lines, or a JSON document for machines. Standard error is the same.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The findings, for machines.
#[derive(Serialize)]
struct Report {
    findings: Vec<Finding>,
    /// With `--connect`, if nothing was wrong before.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<Vec<Connection>>,
}

/// A mistake in the configuration, or a warning.
#[derive(Serialize)]
struct Finding {
    level: Level,
    file: String,
    line: Option<usize>,
    column: Option<usize>,
    message: String,
    hint: Option<String>,
}

/// The severity of a [`Finding`].
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    /// The configuration cannot be used.
    Error,
    /// The configuration is in force all the same.
    Warning,
}

/// The outcome of one try to connect.
#[derive(Serialize)]
struct Connection {
    part: &'static str,
    name: String,
    error: Option<String>,
}

pub(super) fn check(path: &Path, arguments: &Check) -> Result<(), Failure> {
    let output = arguments.output;
    let mut report = Report { findings: Vec::new(), connections: None };
    let result = match Config::load(path) {
        Err(error) => {
            report.findings = findings(path, &error);
            Err(error.into())
        }
        Ok(config) => {
            let file = path.display().to_string();
            for warning in &config.warnings {
                eprintln!("warning: {}", Visible(&warning.on_one_line(&file)));
                report.findings.push(finding(Level::Warning, &file, warning));
            }
            let advice = state_dir::check(&config.general.state_dir).map_err(|error| chain(&error));
            let advice = advice.and_then(|advice| certificate(&config).map(|()| advice));
            for advice in advice.iter().flatten() {
                eprintln!("warning: {}", Visible(advice));
                let warning = Problem::unplaced(advice.clone());
                report.findings.push(finding(Level::Warning, &file, &warning));
            }
            for sink in &config.sinks {
                for advice in sink.driver.check(sink.retry.timeout.0) {
                    let advice = format!("sinks.{}: {advice}", sink.name);
                    let warning = Problem::at(sink.place, advice);
                    eprintln!("warning: {}", Visible(&warning.on_one_line(&file)));
                    report.findings.push(finding(Level::Warning, &file, &warning));
                }
            }
            if advice.is_ok() && output == Output::Text {
                // That of the job cache is in no file.
                let sinks = config.sinks.iter().filter(|sink| !sink.kind.is_job_cache()).count();
                println!(
                    "{}: {} and {}, no mistakes",
                    Visible(&path.display().to_string()),
                    counted(config.sources.len(), "source"),
                    counted(sinks, "sink")
                );
                say_redacted(&config);
            }
            if let Err(message) = advice {
                let error = Failure::Usage(format!("error: {message}"));
                report.findings.push(finding(Level::Error, &file, &Problem::unplaced(message)));
                Err(error)
            } else if arguments.connect {
                let connections = runtime()?.block_on(connect(&config, output));
                let failed = connections.iter().filter(|tried| tried.error.is_some()).count();
                report.connections = Some(connections);
                none_of(failed)
            } else {
                Ok(())
            }
        }
    };
    if output == Output::Json {
        let json = serde_json::to_string_pretty(&report)
            .map_err(|error| Failure::Running(format!("cannot write JSON: {error}")))?;
        print_json(&json)?;
    }
    result
}

/// Reads the certificate that the HTTP side is to show.
fn certificate(config: &Config) -> Result<(), String> {
    let Some(files) = &config.general.http.tls else { return Ok(()) };
    let read = tls::server(&files.cert, &files.key);
    read.map(drop).map_err(|error| format!("http.tls: {}", chain(&error)))
}

/// Names the rules that hide values of events, so that a rule under the wrong sink shows.
fn say_redacted(config: &Config) {
    let lists = config.sinks.iter().map(|sink| (format!("sink {}", sink.name), &sink.redact));
    for (of, rules) in iter::once(("all events".to_owned(), &config.redact)).chain(lists) {
        if !rules.is_empty() {
            let names = rules.names().collect::<Vec<_>>().join(", ");
            println!("redact  {of}: {}", Visible(&names));
        }
    }
}

fn findings(path: &Path, error: &ConfigError) -> Vec<Finding> {
    let file = path.display().to_string();
    match error {
        ConfigError::Unreadable { .. } => {
            vec![finding(Level::Error, &file, &Problem::unplaced(error.to_string()))]
        }
        ConfigError::Wrong { problems, warnings, .. } => {
            let errors = problems.iter().map(|problem| finding(Level::Error, &file, problem));
            let warnings = warnings.iter().map(|warning| finding(Level::Warning, &file, warning));
            errors.chain(warnings).collect()
        }
    }
}

fn finding(level: Level, file: &str, problem: &Problem) -> Finding {
    let place = problem.place.filter(|place| place.line > 0);
    Finding {
        level,
        file: file.to_owned(),
        line: place.map(|place| place.line),
        column: place.map(|place| place.column),
        message: problem.message.clone(),
        hint: problem.help.clone(),
    }
}

fn none_of(failed: usize) -> Result<(), Failure> {
    match failed {
        0 => Ok(()),
        failed => Err(Failure::Running(format!("{} cannot be reached", counted(failed, "part")))),
    }
}

async fn connect(config: &Config, output: Output) -> Vec<Connection> {
    let mut connections = Vec::new();
    let mut report = |part: &'static str, name: &str, result: Result<(), String>| {
        let error = result.err();
        if output == Output::Text {
            match &error {
                None => println!("ok      {part} {name}"),
                Some(error) => println!("failed  {part} {name}: {}", Visible(error)),
            }
        }
        connections.push(Connection { part, name: name.to_owned(), error });
    };
    for source in &config.sources {
        let result = match timeout(CONNECT, source.reader.probe()).await {
            Ok(result) => result.map_err(|error| chain(&error)),
            Err(_) => Err(format!("no answer within {CONNECT:?}")),
        };
        report("source", &source.name, result);
    }
    for sink in &config.sinks {
        let context = probing(config, sink);
        let result = match timeout(CONNECT, sink.driver.probe(&context)).await {
            Ok(result) => result.map_err(|error| error.chain()),
            Err(_) => Err(format!("no answer within {CONNECT:?}")),
        };
        report("sink", &sink.name, result);
    }
    connections
}

/// The context of a sink that is connected to once, by a command.
pub(super) fn probing(config: &Config, sink: &SinkConfig) -> Context {
    Context {
        name: sink.name.clone(),
        writer: 0,
        master_id: config.general.master_id.clone(),
        state_dir: config.general.state_dir.clone(),
        limit: CONNECT,
        reopen: Reopen::never(),
        jobs: sink.kind.is_job_cache().then(|| Jobs::new(&config.general.state_dir)),
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
