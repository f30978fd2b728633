//! An entry under `sources` or `sinks`: a name, one kind, and options.

use std::cell::LazyCell;

use schemars::{Schema, SchemaGenerator};

use super::schema_of_type::keys_of_kind;
use crate::client::LEFT_OUT;
use crate::yaml::{Node, Problem, listed, nearest};

/// The one key of an entry that names a kind, and what stands under it.
pub(super) fn kind_of<'a>(
    what: &str,
    name: &str,
    entry: &'a Node,
    known: &[&'static str],
    options: &[String],
    problems: &mut Vec<Problem>,
) -> Option<(&'static str, &'a Node)> {
    let mut found = None;
    let mut has_unknown = false;
    for (key, node) in noted(entry.pairs(), problems)? {
        let Some(kind) = known.iter().find(|kind| **kind == key.name) else {
            if LEFT_OUT.contains(&key.name.as_str()) {
                has_unknown = true;
                let message = format!("this build has no {}", key.name);
                let help = format!("install a build of saltern with the feature `{}`", key.name);
                problems.push(Problem::at(key.place, message).help(help));
            } else if !options.contains(&key.name) {
                has_unknown = true;
                let all: Vec<_> =
                    known.iter().copied().chain(options.iter().map(String::as_str)).collect();
                let help = match nearest(&key.name, &all) {
                    Some(nearest) => format!("did you mean `{nearest}`?"),
                    None => format!(
                        "kinds are {}; besides one of them an entry takes {}",
                        listed(known),
                        listed(options)
                    ),
                };
                problems.push(Problem::of_unknown(key).help(help));
            }
            continue;
        };
        if let Some((first, _)) = found {
            let message =
                format!("the {what} `{name}` has the kind {first} already, and can have only one");
            problems.push(Problem::at(key.place, message));
            continue;
        }
        found = Some((*kind, node));
    }
    // A mistake in the name of the kind has just been reported.
    if found.is_none() && !has_unknown {
        let problem = Problem::at(entry.place, format!("the {what} `{name}` has no kind"));
        problems.push(problem.help(format!("write one of these under it: {}", known.join(", "))));
    }
    found
}

/// Says of unknown keys beside a kind that they belong below it, where its schema has them.
pub(super) fn tell_keys_below(
    kind: &str,
    entry: &Node,
    schema: fn(&mut SchemaGenerator) -> Schema,
    problems: &mut [Problem],
) {
    let keys: LazyCell<Vec<String>, _> = LazyCell::new(|| keys_of_kind(schema));
    for (key, _) in entry.pairs().unwrap_or_default() {
        if let Some(problem) = problems.iter_mut().find(|problem| problem.is_of_unknown(key))
            && keys.contains(&key.name)
        {
            let help = format!("`{}` belongs below `{kind}:`, not beside it", key.name);
            problem.help = Some(help);
        }
    }
}

/// Reads the settings below a kind. A key in it that belongs beside the kind is told so.
pub(super) fn read_kind<T>(
    kind: &str,
    node: &Node,
    options: &[String],
    problems: &mut Vec<Problem>,
    read: impl FnOnce(&Node, &mut Vec<Problem>) -> T,
) -> T {
    let mut found = Vec::new();
    let result = read(&node.or_defaults(), &mut found);
    for (key, _) in node.pairs().unwrap_or_default() {
        if options.contains(&key.name)
            && let Some(problem) = found.iter_mut().find(|problem| problem.is_of_unknown(key))
        {
            let help = format!("`{}` belongs beside `{kind}:`, not below it", key.name);
            problem.help = Some(help);
        }
    }
    problems.append(&mut found);
    result
}

pub(super) fn noted<T>(result: Result<T, Problem>, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    /// The helps of a configuration with this sink.
    fn helps(sink: &str) -> Vec<String> {
        let text = format!("sources: {{b: {{salt_bus: {{}}}}}}\nsinks:\n  x: {sink}\n");
        let problems = Config::parse(&text).err().unwrap();
        problems.into_iter().map(|problem| problem.help.unwrap_or_default()).collect()
    }

    #[test]
    fn a_key_at_the_wrong_level_is_told_its_place() {
        for (sink, help) in [
            ("{blackhole: {batch: {}}}", "`batch` belongs beside `blackhole:`, not below it"),
            (
                "{sqlite3: {database: /x, retry: {max: 1s}}}",
                "`retry` belongs beside `sqlite3:`, not below it",
            ),
            (
                "\n    webhook:\n      filter: {tags: [a]}\n      url: http://h/",
                "`filter` belongs beside `webhook:`, not below it",
            ),
            (
                "{rawfile_json: {filename: /x}, rotate: {keep: 3}}",
                "`rotate` belongs below `rawfile_json:`, not beside it",
            ),
            (
                "{tls: {}, webhook: {url: 'http://h/'}}",
                "`tls` belongs below `webhook:`, not beside it",
            ),
            ("{webhook: {url: 'http://h/', token: a}}", "write `token` below `auth`"),
            ("{webhook: {url: 'http://h/', user: a}}", "write `user` below `auth`"),
        ] {
            assert_eq!(helps(sink), [help], "{sink}");
        }
    }

    #[test]
    fn kinds_and_other_keys_are_told_apart() {
        let [help] = <[String; 1]>::try_from(helps("{elasticsearch: {}}")).unwrap();
        let (kinds, others) = help.split_once("; besides one of them an entry takes ").unwrap();
        assert!(kinds.starts_with("kinds are `rawfile_json`, `sqlite3`, "), "{help}");
        assert!(!kinds.contains("`batch`"), "{help}");
        assert!(others.contains("`batch`") && !others.contains("`sqlite3`"), "{help}");
    }
}
