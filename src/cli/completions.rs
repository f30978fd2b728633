//! `saltern completions`: completions of `saltern` for a shell.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::cli::output::{Failure, print};

#[derive(Args)]
pub(super) struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn completions(arguments: &Completions, command: &mut Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, command, "saltern", &mut script);
    print(&String::from_utf8_lossy(&script))
}
