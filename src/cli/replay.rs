//! `saltern replay`: the past into the configured sinks.
//!
//! The sources of the configuration rest; a source that ends takes their place. It works on the
//! state directory as a daemon does, so none may run on it meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::run;
use crate::cli::logging::start_logging;
use crate::cli::output::Failure;
use crate::cli::target::load;
use crate::config::{Config, SourceConfig};
use crate::pipeline::Pipeline;

#[derive(Args)]
pub(super) struct Replay {
    /// A capture of a bus, or JSON lines as `rawfile_json` writes them; `-` is standard input.
    #[arg(required_unless_present = "from_local_cache")]
    file: Option<PathBuf>,
    /// Import the jobs in the job cache of a Salt master: `jobs` in its `cachedir`, or a copy of
    /// it.
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    from_local_cache: Option<PathBuf>,
    /// Only jobs of which something was written within this time, such as 7d.
    #[arg(long, value_name = "SPAN", requires = "from_local_cache")]
    max_age: Option<String>,
}

pub(super) fn replay(path: &Path, arguments: &Replay) -> Result<(), Failure> {
    let config = load(path)?;
    start_logging(config.general.log);
    config.log_warnings();
    let sources = sources(arguments, &config.general.master_id)?;
    let mut config = Config { sources, path: None, ..config };
    // Its address may be that of a daemon with another state directory.
    config.general.http.listen = None;
    let mut state = None;
    run::to_the_end(&config, async |signals| {
        let seen = |pipeline: &Pipeline| {
            state = Some(Arc::clone(&pipeline.state));
            std::future::pending()
        };
        run::serve(&config, signals, seen).await
    })?;
    let sinks = state.map(|state| state.sinks()).unwrap_or_default();
    let dropped: Vec<_> = sinks.iter().filter(|sink| sink.dropped() > 0).collect();
    if dropped.is_empty() {
        return Ok(());
    }
    let each = dropped.iter().map(|sink| format!("{} by the sink {}", sink.dropped(), sink.name));
    let each = each.collect::<Vec<_>>().join(", ");
    Err(Failure::Running(format!("events were dropped: {each}; the log says why")))
}

/// The one source that takes the place of all others.
fn sources(arguments: &Replay, master_id: &str) -> Result<Vec<SourceConfig>, Failure> {
    let text = |path: &Path| path.display().to_string().replace("${", "$${");
    let source = match (&arguments.from_local_cache, &arguments.file) {
        (Some(folder), _) => {
            json!({"local_cache": {"path": text(folder), "max_age": arguments.max_age}})
        }
        (None, file) => {
            json!({"replay": {"path": text(file.as_deref().unwrap_or(Path::new("-")))}})
        }
    };
    // Any sink will do to make it a configuration.
    let whole = json!({
        "master_id": master_id,
        "sources": {"replay": source},
        "sinks": {"none": {"blackhole": {}}},
    });
    let config = Config::parse(&whole.to_string()).map_err(|problems| {
        let problems: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
        Failure::Usage(problems.join("; "))
    })?;
    let mut sources = config.sources;
    for source in &mut sources {
        source.is_tried_once = true;
    }
    Ok(sources)
}
