//! An entry under `sources` or `sinks`: a name, one kind, and options.

use crate::client::LEFT_OUT;
use crate::yaml::{Node, Problem, suggest};

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
                let problem = Problem::at(key.place, format!("unknown key `{}`", key.name));
                problems.push(problem.help(suggest(&key.name, &all)));
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

pub(super) fn noted<T>(result: Result<T, Problem>, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}
