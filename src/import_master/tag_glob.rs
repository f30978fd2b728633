//! Salt's patterns of tags as globs.
//!
//! Salt takes a pattern as a glob (`fnmatch`) and, if that does not match, as a regular expression.

use globset::Glob;

/// The glob that matches the same as the pattern; `None` for a regular expression without such a
/// glob.
pub(super) fn glob(pattern: &str) -> Option<String> {
    let glob = if is_regex(pattern) { of_regex(pattern) } else { Some(escaped(pattern)) };
    glob.filter(|glob| Glob::new(glob).is_ok())
}

fn of_regex(pattern: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = pattern.trim_start_matches('^').trim_end_matches('$').chars().peekable();
    while let Some(c) = rest.next() {
        match (c, rest.peek()) {
            ('.', Some('*')) => {
                rest.next();
                out.push('*');
            }
            // At least one of any; a glob needs the one besides.
            ('.', Some('+')) => {
                rest.next();
                out += "?*";
            }
            ('.', _) => out.push('?'),
            ('\\', Some(&next)) if next.is_ascii_punctuation() => {
                rest.next();
                match next {
                    '*' | '?' | '[' | ']' | '{' | '}' | '\\' => out.extend(['\\', next]),
                    next => out.push(next),
                }
            }
            ('\\' | '(' | ')' | '|' | '+' | '*' | '?' | '[' | ']' | '{' | '}' | '^' | '$', _) => {
                return None;
            }
            (c, _) => out.push(c),
        }
    }
    Some(out)
}

/// True if the pattern is meant as a regular expression: it has characters that are rare in tags
/// and no part of a glob.
fn is_regex(pattern: &str) -> bool {
    pattern.contains(".*")
        || pattern.contains(".+")
        || pattern.contains(['\\', '(', '|', '+', '^', '$'])
}

/// The glob for a pattern of `fnmatch`, which takes some characters as they are.
fn escaped(pattern: &str) -> String {
    let mut out = String::new();
    for (place, c) in pattern.char_indices() {
        let is_open = c == '[' && !pattern.get(place + 2..).is_some_and(|rest| rest.contains(']'));
        match c {
            '*' if out.ends_with('*') => {}
            _ if is_open => out.extend(['\\', c]),
            '{' | '}' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, expected) in [
            ("salt/job/*/ret/*", Some("salt/job/*/ret/*")),
            ("salt/job/**", Some("salt/job/*")),
            ("app/[!a-c]?", Some("app/[!a-c]?")),
            ("app/{x}", Some("app/\\{x\\}")),
            ("salt/job/.*", Some("salt/job/*")),
            ("^salt/auth$", Some("salt/auth")),
            ("salt/minion/.+/start", Some("salt/minion/?*/start")),
            (r"app\.example/\*", Some("app.example/\\*")),
            ("app/[", Some("app/\\[")),
            ("app/[z-a]", None),
            (r"salt/job/\d+/new", None),
            ("salt/(auth|key)", None),
        ] {
            assert_eq!(glob(pattern).as_deref(), expected, "{pattern}");
        }
    }
}
