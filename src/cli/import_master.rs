//! `saltern import-master`: a Salt master's returners as a configuration of saltern.

use std::path::{Path, PathBuf};

use clap::Args;
use globset::Glob;

use super::{Failure, print};
use crate::config::read_text;
use crate::import_master::{Master, import};
use crate::visible;
use crate::yaml::{Node, Value};

#[derive(Args)]
pub(super) struct ImportMaster {
    /// The master's configuration, `/etc/salt/master` as a rule. Files that it includes are read too,
    /// `master.d/*.conf` beside it unless it says otherwise.
    file: PathBuf,
}

pub(super) fn import_master(arguments: &ImportMaster) -> Result<(), Failure> {
    let file = &arguments.file;
    let first = read(file)?;
    let mut master = Master::new();
    let wrong = |problem: crate::yaml::Problem| Failure::Usage(problem.message);
    master.add(&first).map_err(wrong)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    for pattern in included(&first) {
        for path in matching(&folder.join(pattern))? {
            master.add(&read(&path)?).map_err(wrong)?;
        }
    }
    print(&visible::json(&import(&master, &file.display().to_string())))
}

fn read(path: &Path) -> Result<Node, Failure> {
    let text = read_text(path)
        .map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))?;
    Node::parse(&text)
        .map_err(|problem| Failure::Usage(problem.render(&path.display().to_string(), &text)))
}

/// The patterns of the files that a configuration includes.
fn included(file: &Node) -> Vec<String> {
    let value = |name: &str| {
        let pairs = file.pairs().unwrap_or_default();
        pairs.iter().find(|(key, _)| key.name == name).map(|(_, node)| &node.value)
    };
    let texts = |value: Option<&Value>| match value {
        Some(Value::Text(text)) => vec![text.clone()],
        Some(Value::List(nodes)) => {
            let texts = nodes.iter().filter_map(|node| match &node.value {
                Value::Text(text) => Some(text.clone()),
                _ => None,
            });
            texts.collect()
        }
        _ => Vec::new(),
    };
    let mut patterns = match value("default_include") {
        None => vec!["master.d/*.conf".to_owned()],
        given => texts(given),
    };
    patterns.extend(texts(value("include")));
    patterns
}

/// The files whose name matches the last part of the pattern, sorted; as in Salt, none is no mistake.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>, Failure> {
    let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name()) else {
        return Ok(Vec::new());
    };
    let wrong = |error: String| Failure::Usage(format!("include {}: {error}", pattern.display()));
    let glob = Glob::new(&name.to_string_lossy()).map_err(|error| wrong(error.to_string()))?;
    let glob = glob.compile_matcher();
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut paths: Vec<_> = entries
        .flatten()
        .filter(|entry| glob.is_match(entry.file_name()))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    Ok(paths)
}
