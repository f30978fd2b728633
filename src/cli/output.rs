//! The output of commands, and their failures.

use std::io::{self, Write};

use clap::ValueEnum;

use crate::codec::visible;
use crate::config::ConfigError;

/// For whom a command writes.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// A failure of a command.
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

/// Prints to standard output. A reader that has gone (`saltern schema | head`) is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Running(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints JSON and a line feed like [`print`], with invisible characters escaped.
pub(super) fn print_json(json: &str) -> Result<(), Failure> {
    print(&format!("{}\n", visible::json(json)))
}
