//! The page that is printed: lines of YAML, with comments.

use std::collections::HashSet;
use std::fmt::Write;

use crate::codec::visible;

/// Lines of YAML.
#[derive(Default)]
pub(super) struct Page {
    pub(super) text: String,
    /// Keys of the master's configuration that the page already speaks of.
    said: HashSet<String>,
}

impl Page {
    pub(super) fn line(&mut self, indent: usize, line: &str) {
        // Writing to a string cannot fail. A comment is always one line.
        let line = visible::json(&line.replace(['\n', '\r'], " "));
        let _ = writeln!(self.text, "{:indent$}{line}", "");
    }

    pub(super) fn pair(&mut self, indent: usize, key: &str, value: &str) {
        self.line(indent, &format!("{key}: {}", quoted(value)));
    }

    pub(super) fn say(&mut self, key: &str) {
        self.said.insert(key.to_owned());
    }

    pub(super) fn has_said(&self, key: &str) -> bool {
        self.said.contains(key)
    }
}

/// Text as a YAML value, in which `${` stands for itself.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text.replace("${", "$${")).to_string()
}
