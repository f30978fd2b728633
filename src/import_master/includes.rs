//! The files of a master's configuration, read in Salt's order and merged in Salt's way.
//!
//! `default_include` and then `include` of the main file are read. Their values replace those of
//! the main file. Files that are included together are merged: a later one wins, lists are joined
//! and mappings merged. Values of an included file replace those of the file that includes it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use super::include_glob;
use super::master::{Master, keys_of};
use super::python::is_false;
use super::salt_yaml::{self, Refusal, Room};
use crate::files::regular_file;
use crate::yaml::{Key, Node, Problem, Value};

/// The most files that are read: files that include others many times could go on without end.
const MOST_FILES: usize = 1000;

/// The most files that stand within each other, each included by the one before.
const DEEPEST: usize = 100;

/// The most that is read of all files together, in bytes.
const LONGEST: u64 = 64 << 20;

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
    /// Salt does not take the main file. Its lines are not shown, since they may hold secrets.
    #[error("{file}: {message}; a master does not start with it either")]
    Wrong {
        /// The main file with the place of the mistake.
        file: String,
        /// The mistake.
        message: String,
    },
    /// The main file cannot be read here, though Salt may take it.
    #[error("{file}: {message}; it cannot be read here, and Salt may read it")]
    NotHere {
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
    /// Reads the main file, which may be missing as for Salt, and the files that it includes.
    pub fn read(path: &Path) -> Result<Self, MasterError> {
        let mut files = Files::default();
        let text = match files.text(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(MasterError::Unreadable { path: path.to_owned(), cause }),
        };
        let name = path.display().to_string();
        let mut keys = match &text {
            Some(text) => {
                let file = salt_yaml::parse(text, &mut files.room);
                keys_of(file.map_err(|refusal| wrong(&name, refusal))?)
            }
            None => Vec::new(),
        };
        files.trail.push(real(&name));
        if text.is_none() {
            let remark = format!("{name} is not there; what it includes by default was read.");
            files.remarks.push(remark);
        }
        let default = value_of(&keys, "default_include");
        let is_said = default.is_some();
        let first = match default {
            Some(node) => patterns("default_include", node, &mut files.remarks),
            None => vec!["master.d/*.conf".to_owned()],
        };
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

fn wrong(file: &str, refusal: Refusal) -> MasterError {
    match refusal {
        Refusal::BySalt(problem) => {
            MasterError::Wrong { file: at(file, &problem), message: problem.message }
        }
        Refusal::Here(problem) => {
            MasterError::NotHere { file: at(file, &problem), message: problem.message }
        }
    }
}

/// A file with the place of a mistake in it.
fn at(file: &str, problem: &Problem) -> String {
    match problem.place {
        Some(place) => format!("{file}:{}:{}", place.line, place.column),
        None => file.to_owned(),
    }
}

type Keys = Vec<(String, Node)>;

struct Files {
    /// The files that are being read, each included by the one before.
    trail: Vec<PathBuf>,
    /// The number of files that were read.
    read: usize,
    /// The number of bytes that may still be read.
    left: u64,
    room: Room,
    /// True once no more files are read.
    is_full: bool,
    remarks: Vec<String>,
}

impl Default for Files {
    fn default() -> Self {
        Files {
            trail: Vec::new(),
            read: 0,
            left: LONGEST,
            room: Room::default(),
            is_full: false,
            remarks: Vec::new(),
        }
    }
}

impl Files {
    /// The keys of the files that match these patterns of the file `from`.
    fn included(&mut self, patterns: &[String], from: &str, says_none: bool) -> Keys {
        let mut keys = Vec::new();
        for pattern in patterns {
            if self.is_full {
                break;
            }
            let path = beside(from, pattern);
            let found = include_glob::matching(&path);
            for name in &found.no_texts {
                self.remarks.push(format!("{name} was not read: its name is not UTF-8."));
            }
            if found.is_cut {
                let most = include_glob::MOST;
                let remark = format!("which matches more than {most} paths: not all were read.");
                self.remarks.push(format!("{from} includes {path}, {remark}"));
            }
            if found.paths.is_empty() && found.no_texts.is_empty() && says_none {
                self.remarks.push(format!("{from} includes {path}, which matches no file."));
            }
            for file in found.paths {
                if self.is_full {
                    break;
                }
                keys.extend(self.file(&file, from));
            }
        }
        merged(keys.into_iter(), |name| name)
    }

    /// The text of a file, within the bytes that all files may have together.
    fn text(&mut self, path: &Path) -> io::Result<String> {
        let text = regular_file::read_text(path, self.left)?;
        self.left = self.left.saturating_sub(text.len() as u64);
        Ok(text)
    }

    /// The keys of a file and of the files that it includes; none if Salt does not take it.
    fn file(&mut self, file: &str, from: &str) -> Keys {
        let path = real(file);
        if self.trail.contains(&path) {
            let remark = "which includes it in turn: Salt does not come to an end with that.";
            self.remarks.push(format!("{from} includes {file}, {remark}"));
            return Vec::new();
        }
        let is_too_deep = self.trail.len() > DEEPEST;
        if is_too_deep || self.read >= MOST_FILES {
            self.is_full = true;
            let remark = match is_too_deep {
                true => format!("more than {DEEPEST} files include each other there."),
                false => format!("they would be more than {MOST_FILES} files."),
            };
            self.remarks.push(format!("{file} and those behind it were not read: {remark}"));
            return Vec::new();
        }
        self.read += 1;
        let text = match self.text(Path::new(file)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                let most = LONGEST >> 20;
                let remark = format!("all files together would have more than {most} MiB.");
                self.remarks.push(format!("{file} was not read: {remark}"));
                return Vec::new();
            }
            Err(error) => {
                let remark = "A master that cannot read it either does not start.";
                self.remarks.push(format!("{file} cannot be read: {error}. {remark}"));
                return Vec::new();
            }
        };
        let mut keys = match salt_yaml::parse(&text, &mut self.room) {
            Ok(node) => keys_of(node),
            Err(Refusal::Here(problem)) => {
                let (at, message) = (at(file, &problem), problem.message);
                let remark = format!(
                    "{at} is left out: it cannot be read here: {message}; Salt may read it."
                );
                self.remarks.push(remark);
                return Vec::new();
            }
            Err(Refusal::BySalt(problem)) => {
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
        _ if is_false(node) => Vec::new(),
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
    let mut places: HashMap<_, _> =
        keys.iter().enumerate().map(|(place, (name, _))| (name.clone(), place)).collect();
    for (name, node) in more {
        match places.get(&name).and_then(|place| keys.get_mut(*place)) {
            Some((_, old)) => *old = node,
            None => {
                places.insert(name.clone(), keys.len());
                keys.push((name, node));
            }
        }
    }
}

/// Pairs of files in their order: of a key that is there again the later value counts, with lists
/// joined and mappings merged.
fn merged<K>(pairs: impl Iterator<Item = (K, Node)>, name_of: fn(&K) -> &String) -> Vec<(K, Node)> {
    let mut places = HashMap::new();
    // Each key with its values, in the order in which the keys come first.
    let mut groups: Vec<(K, Vec<Node>)> = Vec::new();
    for (key, node) in pairs {
        let place = *places.entry(name_of(&key).clone()).or_insert(groups.len());
        match groups.get_mut(place) {
            Some((_, nodes)) => nodes.push(node),
            None => groups.push((key, vec![node])),
        }
    }
    let one = |(key, nodes): (K, Vec<Node>)| {
        let mut nodes = nodes.into_iter();
        let first = nodes.next()?;
        Some((key, merged_values(first, nodes)))
    };
    groups.into_iter().filter_map(one).collect()
}

/// The value of a key for which these stand one after the other. All of them are merged at once, so
/// that none is gone through more than once.
fn merged_values(first: Node, more: impl Iterator<Item = Node>) -> Node {
    let mut place = first.place;
    // The nodes since the last that replaced those before it.
    let mut last = vec![first.value];
    for node in more {
        let joins = matches!(
            (last.last(), &node.value),
            (Some(Value::Map(_)), Value::Map(_)) | (Some(Value::List(_)), Value::List(_))
        );
        if !joins {
            place = node.place;
            last.clear();
        }
        last.push(node.value);
    }
    let value = match last.first() {
        Some(Value::Map(_)) if last.len() > 1 => merged_maps(last),
        Some(Value::List(_)) if last.len() > 1 => joined_lists(last),
        _ => last.pop().unwrap_or(Value::Null),
    };
    Node { place, value }
}

fn merged_maps(maps: Vec<Value>) -> Value {
    let pairs = maps.into_iter().flat_map(|value| match value {
        Value::Map(pairs) => pairs,
        _ => Vec::new(),
    });
    Value::Map(merged(pairs, |key: &Key| &key.name))
}

/// The first list, with items of the others that are not there yet.
fn joined_lists(lists: Vec<Value>) -> Value {
    let mut joined: Vec<Node> = Vec::new();
    let mut prints = HashSet::new();
    for (index, list) in lists.into_iter().enumerate() {
        let Value::List(nodes) = list else { continue };
        for node in nodes {
            if prints.insert(node.fingerprint()) || index == 0 {
                joined.push(node);
            }
        }
    }
    Value::List(joined)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::fs;
    use std::time::{Duration, Instant};

    use super::*;

    /// A master whose `master.d` has these files.
    fn read(files: &[(&str, &str)]) -> Master {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("master");
        fs::write(&main, "id: x\n").unwrap();
        fs::create_dir(folder.path().join("master.d")).unwrap();
        for (name, text) in files {
            fs::write(folder.path().join("master.d").join(name), text).unwrap();
        }
        Master::read(&main).unwrap()
    }

    #[test]
    fn files_are_merged_in_their_order() {
        let master = read(&[
            ("1.conf", "a: [1, 1, 2]\nb: {x: 1, y: {z: [1]}}\nc: [1]\nd: 1\n"),
            ("2.conf", "a: [2, 3, 3]\nb: {y: {z: [2], w: 1}, x: 2}\nc: 5\ne: 1\n"),
            ("3.conf", "c: [2]\nd: {a: b}\n"),
        ]);
        let text: Vec<_> =
            master.keys().map(|(key, node)| format!("{key}: {}", plain(node))).collect();
        let expected = [
            "id: x",
            "a: [1, 1, 2, 3]",
            "b: {x: 2, y: {z: [1, 2], w: 1}}",
            "c: [2]",
            "d: {a: b}",
            "e: 1",
        ];
        assert_eq!(text, expected);
    }

    fn plain(node: &Node) -> String {
        match &node.value {
            Value::List(nodes) => {
                format!("[{}]", nodes.iter().map(plain).collect::<Vec<_>>().join(", "))
            }
            Value::Map(pairs) => {
                let pairs =
                    pairs.iter().map(|(key, node)| format!("{}: {}", key.name, plain(node)));
                format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
            }
            _ => crate::import_master::python::scalar(node).unwrap_or_default(),
        }
    }

    #[test]
    fn long_lists_and_mappings_are_merged_in_one_pass() {
        let file = |from: usize| {
            let mut text = "tags:\n".to_owned();
            (from..from + 20_000).for_each(|n| writeln!(text, "- t{n}").unwrap());
            text += "map:\n";
            (from..from + 20_000).for_each(|n| writeln!(text, "  k{n}: 1").unwrap());
            text
        };
        let texts: Vec<_> = (0..5).map(|n| file(n * 10_000)).collect();
        let files: Vec<Keys> = texts
            .iter()
            .map(|text| {
                keys_of(salt_yaml::parse(text, &mut Room::default()).map_err(|_| ()).unwrap())
            })
            .collect();
        let begin = Instant::now();
        let keys = merged(files.into_iter().flatten(), |name| name);
        // Comparing each with each would be 10 billion comparisons.
        assert!(begin.elapsed() < Duration::from_mins(1));
        for name in ["tags", "map"] {
            let length = match &value_of(&keys, name).unwrap().value {
                Value::List(nodes) => nodes.len(),
                Value::Map(pairs) => pairs.len(),
                _ => 0,
            };
            assert_eq!(length, 60_000, "{name}");
        }
    }

    #[test]
    fn too_many_files_are_one_remark() {
        let names: Vec<_> = (0..MOST_FILES + 50).map(|n| format!("{n:05}.conf")).collect();
        let files: Vec<_> = names.iter().map(|name| (name.as_str(), "a: 1\n")).collect();
        let remarks = read(&files).remarks;
        assert_eq!(remarks.len(), 1, "{remarks:?}");
        assert!(remarks[0].contains("more than 1000 files"), "{remarks:?}");
        let files: Vec<_> = names.iter().map(|n| (n.as_str(), "include: '*.conf'\n")).collect();
        let remarks = read(&files).remarks;
        let said = remarks.iter().filter(|remark| remark.contains("not read"));
        assert_eq!(said.count(), 1, "{remarks:?}");
        assert!(remarks.iter().any(|remark| remark.contains("more than 100 files include each")));
    }

    #[test]
    fn files_that_are_too_long_together_are_a_remark() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("master");
        fs::write(&main, "include: ['*.conf']\n").unwrap();
        for name in ["a.conf", "b.conf", "c.conf"] {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            // Longer by far than the bytes that are read, and without a block on the disk.
            file.set_len(LONGEST / 2).unwrap();
        }
        fs::write(folder.path().join("d.conf"), "state_events: true\n").unwrap();
        let master = Master::read(&main).unwrap();
        let remarks = &master.remarks;
        assert!(remarks.iter().any(|remark| remark.contains("more than 64 MiB")), "{remarks:?}");
        assert!(master.get("state_events").is_some(), "{remarks:?}");
        fs::File::create(&main).unwrap().set_len(LONGEST + 1).unwrap();
        let error = Master::read(&main).unwrap_err().to_string();
        assert!(error.contains("it has more than the"), "{error}");
    }

    #[test]
    fn the_main_file_and_those_included_are_regular_files() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("master");
        let fifo = folder.path().join("fifo.conf");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.path().join("zero.conf")).unwrap();
        fs::write(&main, "include: ['*.conf']\n").unwrap();
        let remarks = Master::read(&main).unwrap().remarks;
        assert!(remarks[0].contains("fifo.conf cannot be read: it is a FIFO"), "{remarks:?}");
        assert!(remarks[1].contains("zero.conf cannot be read: it is a device"), "{remarks:?}");
        for (file, what) in [(fifo.as_path(), "a FIFO"), (Path::new("/dev/zero"), "a device")] {
            let error = Master::read(file).unwrap_err().to_string();
            assert!(error.contains(&format!("it is {what}")), "{error}");
        }
    }

    #[test]
    fn a_file_of_more_than_a_few_mib_is_read() {
        let text = format!("# {}\nstate_events: true\n", "x".repeat(5 << 20));
        let master = read(&[("a.conf", &text)]);
        assert!(master.get("state_events").is_some(), "{:?}", master.remarks);
    }

    #[test]
    fn a_file_that_salt_may_read_is_not_said_to_be_left_out_by_it() {
        let master = read(&[("a.conf", "a: [\n\tb]\n"), ("b.conf", "a: 1\na: 2\n")]);
        let [tab, twice] = master.remarks.as_slice() else { panic!("{:?}", master.remarks) };
        assert!(tab.contains("cannot be read here: this is not YAML: "), "{tab}");
        assert!(tab.ends_with("; Salt may read it."), "{tab}");
        assert!(twice.contains("is left out, as by Salt: the key `a` is here twice"), "{twice}");
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("master");
        for (text, whose) in [
            ("a: [\n\tb]\n", "; it cannot be read here, and Salt may read it"),
            ("a: 1\na: 2\n", "; a master does not start with it either"),
        ] {
            fs::write(&main, text).unwrap();
            let error = Master::read(&main).unwrap_err().to_string();
            assert!(error.ends_with(whose), "{error}");
        }
    }

    #[test]
    fn names_that_are_no_utf_8_are_a_remark() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("master");
        fs::write(&main, "include: ['*.conf']\n").unwrap();
        fs::write(folder.path().join(OsStr::from_bytes(b"a\xff.conf")), "a: 1\n").unwrap();
        fs::write(folder.path().join(OsStr::from_bytes(b"b\xff.txt")), "a: 1\n").unwrap();
        let remarks = Master::read(&main).unwrap().remarks;
        assert!(remarks[0].contains("a\u{fffd}.conf"), "{remarks:?}");
        assert!(remarks[0].contains("its name is not UTF-8"), "{remarks:?}");
        assert!(!remarks.iter().any(|remark| remark.contains(".txt")), "{remarks:?}");
    }
}
