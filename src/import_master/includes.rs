//! The files of a master's configuration, read in the order and put together in the way of Salt.
//!
//! `default_include` and then `include` of the main file are read; what they say replaces what the
//! main file says. Files that are included together are merged: a later one wins, lists are joined
//! and mappings merged. What a file includes replaces what that file says.

use std::io;
use std::path::{Path, PathBuf};

use super::file_glob;
use super::master::{Master, keys_of};
use super::salt_yaml;
use crate::config::read_text;
use crate::regular_file;
use crate::yaml::{Key, Node, Problem, Value};

/// The most files that are read; files that include others many times over could be without end.
const MOST_FILES: usize = 1000;

/// The longest file that is included, in bytes.
const LONGEST: u64 = 4 << 20;

/// A master's configuration cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// The main file is there and cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The main file.
        path: PathBuf,
        /// The reason.
        cause: io::Error,
    },
    /// The main file is not what Salt takes. Its lines are not shown, since secrets stand in them.
    #[error("{file}: {message}; a master does not start with it either")]
    Wrong {
        /// The main file with the place of the mistake.
        file: String,
        /// The mistake.
        message: String,
    },
    /// There is no main file, and none in `master.d` either.
    #[error("cannot read {}: it is not there, and no file of master.d/*.conf beside it", path.display())]
    Nothing {
        /// The main file.
        path: PathBuf,
    },
}

impl Master {
    /// Reads the main file, which may be missing as for Salt, with all that it includes.
    pub fn read(path: &Path) -> Result<Self, MasterError> {
        let text = match read_text(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(MasterError::Unreadable { path: path.to_owned(), cause }),
        };
        let name = path.display().to_string();
        let mut keys = match &text {
            Some(text) => keys_of(salt_yaml::parse(text).map_err(|problem| wrong(&name, problem))?),
            None => Vec::new(),
        };
        let mut files = Files { trail: vec![real(&name)], ..Files::default() };
        if text.is_none() {
            let remark = format!("{name} is not there; what it includes by default was read.");
            files.remarks.push(remark);
        }
        let first = match value_of(&keys, "default_include") {
            Some(node) => patterns("default_include", node, &mut files.remarks),
            None => vec!["master.d/*.conf".to_owned()],
        };
        let is_said = value_of(&keys, "default_include").is_some();
        let second = value_of(&keys, "include")
            .map(|node| patterns("include", node, &mut files.remarks))
            .unwrap_or_default();
        let first = files.included(&first, &name, is_said);
        let second = files.included(&second, &name, true);
        replace(&mut keys, first);
        replace(&mut keys, second);
        if text.is_none() && files.read == 0 {
            return Err(MasterError::Nothing { path: path.to_owned() });
        }
        keys.retain(|(key, _)| !["include", "default_include"].contains(&key.as_str()));
        Ok(Master { keys, remarks: files.remarks })
    }
}

fn wrong(file: &str, problem: Problem) -> MasterError {
    MasterError::Wrong { file: at(file, &problem), message: problem.message }
}

/// A file with the place of a mistake in it.
fn at(file: &str, problem: &Problem) -> String {
    match problem.place {
        Some(place) => format!("{file}:{}:{}", place.line, place.column),
        None => file.to_owned(),
    }
}

type Keys = Vec<(String, Node)>;

#[derive(Default)]
struct Files {
    /// The files that are being read, each included by the one before.
    trail: Vec<PathBuf>,
    /// How many were read.
    read: usize,
    remarks: Vec<String>,
}

impl Files {
    /// The keys of the files that match these patterns of the file `from`.
    fn included(&mut self, patterns: &[String], from: &str, says_none: bool) -> Keys {
        let mut keys = Vec::new();
        for pattern in patterns {
            let path = beside(from, pattern);
            let found = file_glob::matching(&path);
            if found.is_empty() && says_none {
                self.remarks.push(format!("{from} includes {path}, which matches no file."));
            }
            for file in found {
                merge(&mut keys, self.file(&file, from));
            }
        }
        keys
    }

    /// The keys of a file with all that it includes; none of one that Salt does not take.
    fn file(&mut self, file: &str, from: &str) -> Keys {
        let path = real(file);
        if self.trail.contains(&path) {
            let remark = "which includes it in turn: Salt does not come to an end with that.";
            self.remarks.push(format!("{from} includes {file}, {remark}"));
            return Vec::new();
        }
        if self.read >= MOST_FILES {
            let remark = format!("{file} was not read: it would be more than {MOST_FILES} files.");
            self.remarks.push(remark);
            return Vec::new();
        }
        self.read += 1;
        let text = match regular_file::read_text(Path::new(file), LONGEST) {
            Ok(text) => text,
            Err(error) => {
                let remark = "A master that cannot read it either does not start.";
                self.remarks.push(format!("{file} cannot be read: {error}. {remark}"));
                return Vec::new();
            }
        };
        let mut keys = match salt_yaml::parse(&text) {
            Ok(node) => keys_of(node),
            Err(problem) => {
                let remark =
                    format!("{} is left out, as by Salt: {}.", at(file, &problem), problem.message);
                self.remarks.push(remark);
                return Vec::new();
            }
        };
        if let Some(node) = value_of(&keys, "include") {
            let patterns = patterns("include", node, &mut self.remarks);
            self.trail.push(path);
            let inner = self.included(&patterns, file, true);
            self.trail.pop();
            replace(&mut keys, inner);
        }
        keys
    }
}

fn value_of<'a>(keys: &'a Keys, name: &str) -> Option<&'a Node> {
    keys.iter().find(|(key, _)| key == name).map(|(_, node)| node)
}

/// The patterns of an `include`.
fn patterns(key: &str, node: &Node, remarks: &mut Vec<String>) -> Vec<String> {
    let mut wrong = |node: &Node| {
        let line = node.place.line;
        remarks.push(format!("`{key}` in line {line} is neither a text nor a list of texts."));
    };
    match &node.value {
        Value::Text(text) if text.is_empty() => Vec::new(),
        Value::Text(text) => vec![text.clone()],
        Value::List(nodes) => {
            let texts = nodes.iter().filter_map(|node| match &node.value {
                Value::Text(text) => Some(text.clone()),
                _ => {
                    wrong(node);
                    None
                }
            });
            texts.collect()
        }
        _ if super::master::is_false(node) => Vec::new(),
        _ => {
            wrong(node);
            Vec::new()
        }
    }
}

/// A pattern as seen from the folder of a file, with `~` for the home directory.
fn beside(file: &str, pattern: &str) -> String {
    let home = std::env::var("HOME").ok();
    if let (Some(home), Some(rest)) = (home, pattern.strip_prefix("~/")) {
        return format!("{home}/{rest}");
    }
    match file.rsplit_once('/') {
        _ if pattern.starts_with('/') => pattern.to_owned(),
        Some((folder, _)) => format!("{folder}/{pattern}"),
        None => pattern.to_owned(),
    }
}

fn real(file: &str) -> PathBuf {
    std::fs::canonicalize(file).unwrap_or_else(|_| PathBuf::from(file))
}

/// Each key of `more` in place of the one that is there.
fn replace(keys: &mut Keys, more: Keys) {
    for (name, node) in more {
        match keys.iter_mut().find(|(key, _)| *key == name) {
            Some((_, old)) => *old = node,
            None => keys.push((name, node)),
        }
    }
}

/// Does as [`replace`], with lists joined and mappings merged.
fn merge(keys: &mut Keys, more: Keys) {
    for (name, node) in more {
        match keys.iter_mut().find(|(key, _)| *key == name) {
            Some((_, old)) => merge_values(old, node),
            None => keys.push((name, node)),
        }
    }
}

fn merge_values(old: &mut Node, new: Node) {
    match (&mut old.value, new.value) {
        (Value::Map(pairs), Value::Map(more)) => {
            for (key, node) in more {
                match pairs.iter_mut().find(|(Key { name, .. }, _)| *name == key.name) {
                    Some((_, old)) => merge_values(old, node),
                    None => pairs.push((key, node)),
                }
            }
        }
        (Value::List(nodes), Value::List(more)) => {
            for node in more {
                let print = node.fingerprint();
                if nodes.iter().all(|node| node.fingerprint() != print) {
                    nodes.push(node);
                }
            }
        }
        (_, value) => *old = Node { place: new.place, value },
    }
}
