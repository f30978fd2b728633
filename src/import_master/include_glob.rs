//! The files that a pattern of `include` matches, as Python's `glob` finds them for Salt.

use std::fs;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

/// The most paths that one pattern may match; the rest is not looked for.
pub(super) const MOST: usize = 10_000;

/// The most names that are not UTF-8 that are reported.
const MOST_NO_TEXTS: usize = 10;

/// The matches of a pattern.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The paths, sorted as Salt sorts them: as texts.
    pub(super) paths: Vec<String>,
    /// True if there are more than [`MOST`].
    pub(super) is_cut: bool,
    /// Paths that are not UTF-8, as they may be shown; the first ones.
    pub(super) no_texts: Vec<String>,
}

/// The paths that match. `*` is not `/`, and no file is matched by a `*` whose name begins with a
/// point.
pub(super) fn matching(pattern: &str) -> Found {
    let mut all = Found::default();
    let mut found = match pattern.starts_with('/') {
        true => vec!["/".to_owned()],
        false => vec![String::new()],
    };
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for folder in &found {
            match part.contains(['*', '?', '[']) {
                true => next.extend(names(folder, part, &mut all.no_texts)),
                false => next.push(joined(folder, part)),
            }
            if next.len() > MOST {
                all.is_cut = true;
                break;
            }
        }
        next.truncate(MOST);
        next.retain(|path| fs::symlink_metadata(path).is_ok());
        found = next;
    }
    found.sort();
    all.paths = found;
    all
}

fn joined(folder: &str, name: &str) -> String {
    match folder {
        "" | "/" => format!("{folder}{name}"),
        _ => format!("{folder}/{name}"),
    }
}

/// The paths in a folder whose names match a pattern, one more than [`MOST`] at most.
fn names(folder: &str, pattern: &str, no_texts: &mut Vec<String>) -> Vec<String> {
    let Some(glob) = one_name(pattern) else { return Vec::new() };
    let place = if folder.is_empty() { "." } else { folder };
    let Ok(entries) = fs::read_dir(Path::new(place)) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let masked = name.to_string_lossy();
        if masked.starts_with('.') && !pattern.starts_with('.') || !glob.is_match(Path::new(&name))
        {
            continue;
        }
        match name.to_str() {
            Some(name) => found.push(joined(folder, name)),
            None if no_texts.len() < MOST_NO_TEXTS => no_texts.push(joined(folder, &masked)),
            None => {}
        }
        if found.len() > MOST {
            break;
        }
    }
    found
}

/// Python's pattern for one name: it knows no braces, no escapes, and a `[` without `]` is itself.
fn one_name(pattern: &str) -> Option<GlobMatcher> {
    let mut glob = String::new();
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
        match c {
            '*' if glob.ends_with('*') => {}
            '{' | '}' => glob.extend(['[', c, ']']),
            '[' => {
                let inner = rest.trim_start_matches('!');
                let first = rest.len() - inner.len();
                // A `]` that comes first is one of the characters.
                let end = inner.get(1..).and_then(|inner| inner.find(']'));
                let Some(end) = end.map(|end| first + end + 2).filter(|_| first < 2) else {
                    glob.push_str("[[]");
                    continue;
                };
                let (class, behind) = rest.split_at_checked(end)?;
                glob.push('[');
                glob.push_str(class);
                rest = behind;
            }
            c => glob.push(c),
        }
    }
    let built = GlobBuilder::new(&glob).backslash_escape(false).literal_separator(true).build();
    built.ok().map(|glob| glob.compile_matcher())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_names() {
        for (pattern, name, expected) in [
            ("*.conf", "a.conf", true),
            ("*.conf", "a.txt", false),
            ("**", "a", true),
            ("{a}", "{a}", true),
            ("[ab]?", "bx", true),
            ("[!ab]", "a", false),
            ("[!ab]", "c", true),
            ("a[", "a[", true),
            ("[]]", "]", true),
            ("a\\*", "a\\b", true),
        ] {
            let glob = one_name(pattern).unwrap();
            assert_eq!(glob.is_match(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn more_paths_than_are_looked_for_are_said() {
        let folder = tempfile::tempdir().unwrap();
        for name in 0..=MOST {
            fs::write(folder.path().join(name.to_string()), "").unwrap();
        }
        let all = format!("{}/*", folder.path().display());
        let found = matching(&all);
        assert!(found.is_cut && found.paths.len() == MOST);
        fs::remove_file(folder.path().join("0")).unwrap();
        let found = matching(&all);
        assert!(!found.is_cut && found.paths.len() == MOST);
    }

    #[test]
    fn files_in_folders_whose_names_match() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display().to_string();
        for name in ["sub1", "sub2", "sub-3", ".sub4"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("y.conf"), "").unwrap();
        }
        fs::write(folder.path().join("sub1/.hidden.conf"), "").unwrap();
        let found = |pattern: &str| {
            let found = matching(&format!("{root}/{pattern}"));
            assert!(!found.is_cut && found.no_texts.is_empty());
            found.paths.iter().map(|path| path.replace(&format!("{root}/"), "")).collect::<Vec<_>>()
        };
        assert_eq!(found("sub*/y.conf"), ["sub-3/y.conf", "sub1/y.conf", "sub2/y.conf"]);
        assert_eq!(found("*/*"), ["sub-3/y.conf", "sub1/y.conf", "sub2/y.conf"]);
        assert_eq!(found("sub1/../sub2/*.conf"), ["sub1/../sub2/y.conf"]);
        assert_eq!(found(".sub4/y.conf"), [".sub4/y.conf"]);
        assert!(found("nowhere/*").is_empty() && found("sub1/n.conf").is_empty());
    }
}
