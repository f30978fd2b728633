//! `saltern sinks`: the kinds of sinks and sources.

use std::fmt::Write;

use clap::Args;
use serde::Serialize;

use crate::cli::output::{Failure, Output, print};
use crate::{sink, source};

#[derive(Args)]
pub(super) struct SinksCommand {
    /// A table, or JSON for machines.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Serialize)]
struct ListedKinds {
    sinks: Vec<ListedKind>,
    sources: Vec<ListedKind>,
}

#[derive(Serialize)]
struct ListedKind {
    name: &'static str,
    about: &'static str,
}

pub(super) fn sinks(arguments: &SinksCommand) -> Result<(), Failure> {
    let sinks =
        sink::registry::KINDS.iter().map(|kind| ListedKind { name: kind.name, about: kind.about });
    let sources = source::registry::KINDS
        .iter()
        .map(|kind| ListedKind { name: kind.name, about: kind.about });
    let kinds = ListedKinds { sinks: sinks.collect(), sources: sources.collect() };
    match arguments.output {
        Output::Text => print(&table(&kinds)),
        Output::Json => {
            let json = serde_json::to_string_pretty(&kinds)
                .map_err(|error| Failure::Running(error.to_string()))?;
            print(&(json + "\n"))
        }
    }
}

fn table(kinds: &ListedKinds) -> String {
    let all = kinds.sinks.iter().chain(&kinds.sources);
    let width = all.map(|kind| kind.name.len()).max().unwrap_or_default();
    let mut out = String::new();
    for (title, kinds) in [("SINKS", &kinds.sinks), ("SOURCES", &kinds.sources)] {
        if !out.is_empty() {
            out.push('\n');
        }
        let _ = writeln!(out, "{title}");
        for ListedKind { name, about } in kinds {
            let _ = writeln!(out, "  {name:width$}  {about}");
        }
    }
    out
}
