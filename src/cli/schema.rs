//! `saltern schema`: the JSON Schema of the configuration, for editors and for Salt's renderers,
//! and the tables of a store that has to have them made.

use std::path::Path;

use clap::{Args, Subcommand};

use crate::cli::output::{Failure, print};
use crate::cli::runtime::runtime;
use crate::cli::target::load;
use crate::config::{self, Config};
use crate::sink::clickhouse::{self, Features, Options};

#[derive(Args)]
pub(super) struct Schema {
    #[command(subcommand)]
    of: Option<Of>,
}

#[derive(Subcommand)]
enum Of {
    /// The tables of the sink `clickhouse`, as SQL.
    Clickhouse(ClickHouse),
}

#[derive(Args)]
struct ClickHouse {
    /// Create what is missing at the servers of the sink, and print what that took.
    #[arg(long)]
    apply: bool,
    /// The sink in the configuration whose database, `ttl` and `cluster` to take. With --apply it
    /// may be left out if there is one sink of this kind.
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    /// Replicated tables on every host of this cluster, and Distributed tables before them.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Print for a server of this release instead of a current one.
    #[arg(long, value_name = "X.Y", value_parser = version, conflicts_with = "apply")]
    server_version: Option<(u32, u32)>,
}

/// The release that the SQL is printed for if none is given: the newest that the tests know.
const CURRENT: (u32, u32) = (26, 9);

pub(super) fn schema(path: &Path, arguments: &Schema) -> Result<(), Failure> {
    match &arguments.of {
        None => json_schema(),
        Some(Of::Clickhouse(arguments)) => clickhouse(path, arguments),
    }
}

fn json_schema() -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(config::schema().as_value())
        .map_err(|error| Failure::Running(format!("cannot write the schema: {error}")))?;
    print(&(text + "\n"))
}

fn clickhouse(path: &Path, arguments: &ClickHouse) -> Result<(), Failure> {
    let wants_config = arguments.apply || arguments.sink.is_some();
    let config = wants_config.then(|| load(path)).transpose()?;
    let sink =
        config.as_ref().map(|config| chosen(config, arguments.sink.as_deref())).transpose()?;
    let mut tables = match sink {
        Some(sink) => sink.tables(),
        None => Options { database: "salt".into(), keep_days: None, cluster: None },
    };
    if let Some(cluster) = &arguments.cluster {
        tables.cluster = Some(cluster.clone());
    }
    match sink.filter(|_| arguments.apply) {
        Some(sink) => runtime()?.block_on(apply(sink, &tables)),
        None => {
            let version = arguments.server_version.unwrap_or(CURRENT);
            print(&clickhouse::script(&Features::of(version), &tables))
        }
    }
}

async fn apply(sink: &clickhouse::Config, tables: &Options) -> Result<(), Failure> {
    let migrated = sink.migrate(tables).await.map_err(|error| Failure::Running(error.chain()))?;
    for server in migrated {
        match server.statements.as_slice() {
            [] => print(&format!("-- {}: nothing is missing\n", server.url))?,
            statements => print(&format!("-- {}\n{};\n", server.url, statements.join(";\n\n")))?,
        }
    }
    Ok(())
}

/// The sink of this name, or the only one there is of the kind.
fn chosen<'a>(config: &'a Config, name: Option<&str>) -> Result<&'a clickhouse::Config, Failure> {
    let of_kind = config.sinks.iter().filter_map(|sink| {
        let own = sink.driver.config().downcast_ref::<clickhouse::Config>()?;
        Some((sink.name.as_str(), own))
    });
    let sinks: Vec<_> = of_kind.filter(|(sink, _)| name.is_none_or(|name| name == *sink)).collect();
    match (sinks.as_slice(), name) {
        ([(_, sink)], _) => Ok(sink),
        (_, Some(name)) => Err(Failure::Usage(format!(
            "the configuration has no sink `{name}` of the kind clickhouse"
        ))),
        ([], None) => {
            Err(Failure::Usage("the configuration has no sink of the kind clickhouse".into()))
        }
        (several, None) => {
            let names: Vec<_> = several.iter().map(|(sink, _)| *sink).collect();
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
