//! The files that a pattern of `include` matches, as Python's `glob` finds them for Salt.

use std::fs;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

/// The most paths that one pattern may match; the rest is not looked for.
const MOST: usize = 10_000;

/// The paths that match, sorted as Salt sorts them: as texts. `*` is not `/`, and no file is
/// matched by a `*` whose name begins with a point.
pub(super) fn matching(pattern: &str) -> Vec<String> {
    let mut found = match pattern.starts_with('/') {
        true => vec!["/".to_owned()],
        false => vec![String::new()],
    };
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for folder in &found {
            match part.contains(['*', '?', '[']) {
                true => next.extend(names(folder, part).iter().map(|name| joined(folder, name))),
                false => next.push(joined(folder, part)),
            }
        }
        next.retain(|path| fs::symlink_metadata(path).is_ok());
        next.truncate(MOST);
        found = next;
    }
    found.sort();
    found
}

fn joined(folder: &str, name: &str) -> String {
    match folder {
        "" | "/" => format!("{folder}{name}"),
        _ => format!("{folder}/{name}"),
    }
}

/// The names in a folder that match a pattern.
fn names(folder: &str, pattern: &str) -> Vec<String> {
    let Some(glob) = one_name(pattern) else { return Vec::new() };
    let folder = if folder.is_empty() { "." } else { folder };
    let Ok(entries) = fs::read_dir(Path::new(folder)) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let is_shown = |name: &String| !name.starts_with('.') || pattern.starts_with('.');
    names.filter(is_shown).filter(|name| glob.is_match(name)).collect()
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
            found.iter().map(|path| path.replace(&format!("{root}/"), "")).collect::<Vec<_>>()
        };
        assert_eq!(found("sub*/y.conf"), ["sub-3/y.conf", "sub1/y.conf", "sub2/y.conf"]);
        assert_eq!(found("*/*"), ["sub-3/y.conf", "sub1/y.conf", "sub2/y.conf"]);
        assert_eq!(found("sub1/../sub2/*.conf"), ["sub1/../sub2/y.conf"]);
        assert_eq!(found(".sub4/y.conf"), [".sub4/y.conf"]);
        assert!(found("nowhere/*").is_empty() && found("sub1/n.conf").is_empty());
    }
}
