//! `saltern schema`: the JSON Schema of the configuration, for editors and for Salt's renderers.
//! Also the tables of a store that an operator has to make.

use std::path::Path;

use clap::Args;

use super::check::probing;
use crate::cli::output::{Failure, print};
use crate::cli::runtime::runtime;
use crate::cli::target::load;
use crate::config::{self, Config, SinkConfig};
use crate::error::chain;
use crate::sink::contract::{Migrated, TableWish};
use crate::sink::registry::{KINDS, SinkKind};

#[derive(Args)]
pub(super) struct Schema {
    /// The kind of sink whose tables to print, as SQL. Without it the JSON Schema of the
    /// configuration is printed.
    #[arg(value_parser = with_tables())]
    kind: Option<String>,
    /// Create missing tables and columns at the servers of the sink, and print the statements.
    #[arg(long, requires = "kind")]
    apply: bool,
    /// The sink in the configuration whose settings to take. With --apply it may be left out if
    /// there is one sink of this kind.
    #[arg(long, value_name = "NAME", requires = "kind")]
    sink: Option<String>,
    /// Replicated tables on every host of this cluster, and Distributed tables before them, for
    /// ClickHouse.
    #[arg(long, value_name = "NAME", requires = "kind")]
    cluster: Option<String>,
    /// Print for a server of this release instead of a current one.
    #[arg(long, value_name = "X.Y", value_parser = version, conflicts_with = "apply", requires = "kind")]
    server_version: Option<(u32, u32)>,
}

/// The kinds of sinks that have tables.
fn with_tables() -> clap::builder::PossibleValuesParser {
    let wish = TableWish::default();
    KINDS.iter().filter(|kind| (kind.tables)(&wish).is_some()).map(|kind| kind.name).into()
}

pub(super) fn schema(path: &Path, arguments: &Schema) -> Result<(), Failure> {
    match arguments.kind.as_deref().and_then(SinkKind::named) {
        None => json_schema(),
        Some(kind) => tables(path, kind, arguments),
    }
}

fn json_schema() -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(config::schema().as_value())
        .map_err(|error| Failure::Running(format!("cannot write the schema: {error}")))?;
    print(&(text + "\n"))
}

fn tables(path: &Path, kind: &SinkKind, arguments: &Schema) -> Result<(), Failure> {
    let Schema { apply, sink, cluster, server_version, .. } = arguments;
    let wish = TableWish { cluster: cluster.clone(), server_version: *server_version };
    let differ = |wish| (kind.tables)(&wish) != (kind.tables)(&TableWish::default());
    if cluster.is_some() && !differ(TableWish { server_version: None, ..wish.clone() }) {
        return Err(Failure::Usage(format!("the tables of {} know no clusters", kind.name)));
    }
    // No server is so old.
    let of_old = TableWish { cluster: None, server_version: Some((0, 0)) };
    if server_version.is_some() && !differ(of_old) {
        let message = format!("the tables of {} are the same for every release", kind.name);
        return Err(Failure::Usage(message));
    }
    if !apply && sink.is_none() {
        return print(&(kind.tables)(&wish).unwrap_or_default());
    }
    let config = load(path)?;
    let sink = chosen(&config, kind, sink.as_deref())?;
    match apply {
        true => runtime()?.block_on(migrate(&config, sink, &wish)),
        false => print(&sink.driver.tables(&wish).unwrap_or_default()),
    }
}

async fn migrate(config: &Config, sink: &SinkConfig, wish: &TableWish) -> Result<(), Failure> {
    let context = probing(config, sink);
    let migrated = sink.driver.migrate(&context, wish).await;
    for Migrated { server, statements } in
        migrated.map_err(|error| Failure::Running(chain(&error)))?
    {
        match statements.as_slice() {
            [] => print(&format!("-- {server}: nothing is missing\n"))?,
            statements => print(&format!("-- {server}\n{};\n", statements.join(";\n\n")))?,
        }
    }
    Ok(())
}

/// The sink of this name, or the only one there is of the kind.
fn chosen<'a>(
    config: &'a Config,
    kind: &SinkKind,
    name: Option<&str>,
) -> Result<&'a SinkConfig, Failure> {
    let of_kind = config.sinks.iter().filter(|sink| sink.kind.name == kind.name);
    let sinks: Vec<_> = of_kind.filter(|sink| name.is_none_or(|name| name == sink.name)).collect();
    let of = kind.name;
    match (sinks.as_slice(), name) {
        ([sink], _) => Ok(sink),
        (_, Some(name)) => {
            Err(Failure::Usage(format!("the configuration has no sink `{name}` of the kind {of}")))
        }
        ([], None) => {
            Err(Failure::Usage(format!("the configuration has no sink of the kind {of}")))
        }
        (several, None) => {
            let names: Vec<_> = several.iter().map(|sink| sink.name.as_str()).collect();
            Err(Failure::Usage(format!("say which with --sink: {}", names.join(", "))))
        }
    }
}

fn version(text: &str) -> Result<(u32, u32), String> {
    let numbers = text.split_once('.').and_then(|(major, minor)| {
        let minor = minor.split('.').next()?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    numbers.ok_or_else(|| "two numbers, such as 18.16 or 25.8".to_owned())
}
