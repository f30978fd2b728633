//! `saltern import-master`: a Salt master's returners as a configuration of saltern.

use std::path::PathBuf;

use clap::Args;

use crate::cli::output::{Failure, print};
use crate::import_master::{Master, import};

#[derive(Args)]
pub(super) struct ImportMaster {
    /// The master's configuration, `/etc/salt/master` as a rule. Files that it includes are read
    /// too, and those that they include; `master.d/*.conf` beside it unless it says otherwise.
    file: PathBuf,
}

pub(super) fn import_master(arguments: &ImportMaster) -> Result<(), Failure> {
    let file = &arguments.file;
    let master = Master::read(file).map_err(|error| Failure::Usage(error.to_string()))?;
    print(&import(&master, &file.display().to_string()))
}
