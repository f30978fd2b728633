//! A master's configuration, all of its files together.

use crate::yaml::{Node, Problem, Value};

use super::python::{is_false, scalar};
use super::salt_yaml::{self, Refusal, Room};

/// A master's configuration.
#[derive(Debug, Default)]
pub struct Master {
    /// Its keys, in the order in which the files have them.
    pub(super) keys: Vec<(String, Node)>,
    /// Remarks on its files: those that are missing, or that Salt does not take.
    pub(super) remarks: Vec<String>,
}

impl Master {
    /// A configuration of one file, which includes none.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let file = salt_yaml::parse(text, &mut Room::default()).map_err(Refusal::into_problem)?;
        let keys = keys_of(file);
        Ok(Master { keys, remarks: Vec::new() })
    }

    /// Its keys and their values.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.keys.iter().map(|(key, node)| (key.as_str(), node))
    }

    /// The value of a key.
    pub(super) fn get(&self, name: &str) -> Option<&Node> {
        self.keys.iter().find(|(key, _)| key == name).map(|(_, node)| node)
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        scalar(self.get(name)?)
    }

    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.text(name)?.parse().ok().filter(|number: &f64| !number.is_nan())
    }

    /// The texts of a list, or the one that stands in its place. A value that Python takes for
    /// false is none.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        match self.get(name) {
            None => Vec::new(),
            Some(Node { value: Value::List(nodes), .. }) => {
                nodes.iter().filter_map(scalar).collect()
            }
            Some(node) => self.text(name).filter(|_| !is_false(node)).into_iter().collect(),
        }
    }

    /// The name that a key holds; none where Python takes its value for false.
    pub(super) fn name(&self, key: &str) -> Option<String> {
        self.get(key).filter(|node| !is_false(node)).and_then(scalar)
    }

    /// A path, below `root_dir` as Salt puts it.
    pub(super) fn path(&self, name: &str, default: &str) -> String {
        let root = self.text("root_dir").unwrap_or_else(|| "/".to_owned());
        let root = root.trim_end_matches('/');
        let path = self.text(name).unwrap_or_else(|| default.to_owned());
        match path.starts_with(&format!("{root}/")) {
            true => path,
            false => format!("{root}/{}", path.trim_start_matches('/')),
        }
    }
}

/// The pairs of a file.
pub(super) fn keys_of(file: Node) -> Vec<(String, Node)> {
    match file.value {
        Value::Map(pairs) => pairs.into_iter().map(|(key, node)| (key.name, node)).collect(),
        _ => Vec::new(),
    }
}
