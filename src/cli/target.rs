//! The configuration and the state directory that a command is about.

use std::io;
use std::path::{Path, PathBuf};

use crate::cli::output::Failure;
use crate::config::{Config, ConfigError, DEFAULT_PATH};

/// The daemon that is meant.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) config: PathBuf,
    pub(super) state_dir: Option<PathBuf>,
}

/// Makes sure that an unreadable directory is not taken for an empty one.
pub(super) fn look_into(state_dir: &Path, target: &Target) -> Result<(), Failure> {
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

pub(super) fn load(path: &Path) -> Result<Config, Failure> {
    Config::load(path).map_err(|error| match &error {
        ConfigError::Unreadable { cause, .. }
            if cause.kind() == io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) =>
        {
            Failure::Usage(format!(
                "{error}\nName another file with --config FILE; docs/configuration.md describes \
                 it. `saltern demo` needs none."
            ))
        }
        _ => error.into(),
    })
}
