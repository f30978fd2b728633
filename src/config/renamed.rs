//! Keys that had another name in an earlier release. They are still read, with a warning that names
//! the new key.
//!
//! The tree is changed before it is read, so that types, schema and manual know new names only. To
//! rename a key, add a line to [`RENAMED`].

use crate::yaml::{Key, Node, Problem, Value};

/// A key under its old name.
struct Renamed {
    /// The keys that lead to the mapping it stands in; `*` is any key.
    within: &'static [&'static str],
    old: &'static str,
    new: &'static str,
    /// Makes the new value of the old one, where the two differ.
    value: fn(&Value) -> Value,
}

const RENAMED: &[Renamed] = &[
    same(&["sinks", "*", "clickhouse", "tls"], "certificate", "cert"),
    same(&["sinks", "*", "kafka", "tls"], "certificate", "cert"),
    same(&["sources", "*", "kafka", "tls"], "certificate", "cert"),
    same(&["sources", "*", "salt_bus"], "patience", "coalesce"),
    Renamed {
        within: &["sinks", "*", "clickhouse", "tls"],
        old: "insecure",
        new: "verify",
        value: negated,
    },
];

const fn same(within: &'static [&'static str], old: &'static str, new: &'static str) -> Renamed {
    Renamed { within, old, new, value: Value::clone }
}

fn negated(value: &Value) -> Value {
    match value {
        Value::Bool(value) => Value::Bool(!value),
        Value::Replaced { text, .. } => match text.parse::<bool>() {
            Ok(value) => Value::Bool(!value),
            Err(_) => value.clone(),
        },
        other => other.clone(),
    }
}

/// Gives every renamed key its new name. Each is a warning, and a problem where the new key is
/// there as well.
pub(super) fn apply(root: &mut Node, warnings: &mut Vec<Problem>, problems: &mut Vec<Problem>) {
    for renamed in RENAMED {
        renamed.apply(root, renamed.within, warnings, problems);
    }
    warnings.sort_by_key(|warning| warning.place.map(|place| (place.line, place.column)));
}

impl Renamed {
    fn apply(
        &self,
        node: &mut Node,
        within: &[&str],
        warnings: &mut Vec<Problem>,
        problems: &mut Vec<Problem>,
    ) {
        let Value::Map(pairs) = &mut node.value else { return };
        if let Some((first, rest)) = within.split_first() {
            let inner = pairs.iter_mut().filter(|(key, _)| *first == "*" || key.name == *first);
            inner.for_each(|(_, node)| self.apply(node, rest, warnings, problems));
            return;
        }
        let has_both = pairs.iter().any(|(key, _)| key.name == self.new);
        let Some(index) = pairs.iter().position(|(key, _)| key.name == self.old) else { return };
        let (old, new) = (self.old, self.new);
        if has_both {
            let (key, _) = pairs.remove(index);
            let message = format!("`{old}` is the old name of `{new}`, which is there as well");
            problems.push(Problem::at(key.place, message).help(format!("remove `{old}`")));
            return;
        }
        let Some((key, node)) = pairs.get_mut(index) else { return };
        *key = Key { name: new.to_owned(), place: key.place };
        let value = (self.value)(&node.value);
        let instead = match &value {
            Value::Bool(value) => format!("`{new}: {value}`"),
            _ => format!("`{new}`"),
        };
        node.value = value;
        let message = format!("`{old}` is the old name of this key");
        let help = format!("write {instead} instead; a later release no longer reads `{old}`");
        warnings.push(Problem::at(key.place, message).help(help));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str) -> (Node, Vec<Problem>, Vec<Problem>) {
        let within: &[&str] = &["sinks", "*", "kind"];
        let known = [
            same(within, "old", "new"),
            Renamed { within, old: "loose", new: "strict", value: negated },
        ];
        let mut root = Node::parse(text).unwrap();
        let (mut warnings, mut problems) = (Vec::new(), Vec::new());
        for renamed in known {
            renamed.apply(&mut root, renamed.within, &mut warnings, &mut problems);
        }
        (root, warnings, problems)
    }

    #[test]
    fn an_old_key_is_read_with_a_warning() {
        let text = "sinks: {a: {kind: {old: 1, loose: true}}, b: {kind: {old: 2}}}\nold: 3";
        let (root, warnings, problems) = applied(text);
        let new =
            Node::parse("sinks: {a: {kind: {new: 1, strict: false}}, b: {kind: {new: 2}}}\nold: 3");
        assert_eq!(root.fingerprint(), new.unwrap().fingerprint());
        assert!(problems.is_empty());
        let help: Vec<_> = warnings.iter().map(|warning| warning.help.clone().unwrap()).collect();
        assert_eq!(help.len(), 3);
        assert!(help[0].contains("write `new` instead"), "{help:?}");
        assert!(help[2].contains("write `strict: false` instead"), "{help:?}");
        assert_eq!(warnings[0].place.unwrap().column, 20);
    }

    #[test]
    fn both_names_at_once_are_a_mistake() {
        let (root, warnings, problems) = applied("sinks: {a: {kind: {old: 1, new: 2}}}");
        assert!(warnings.is_empty());
        // No second problem: nobody knows the old name.
        let new = Node::parse("sinks: {a: {kind: {new: 2}}}").unwrap();
        assert_eq!(root.fingerprint(), new.fingerprint());
        assert!(problems[0].message.contains("`old` is the old name of `new`"));
    }

    #[test]
    fn what_is_no_mapping_is_left_alone() {
        for text in ["sinks: 1", "sinks: {a: null}", "sinks: {a: {kind: [old]}}", "sinks:"] {
            let (_, warnings, problems) = applied(text);
            assert!(warnings.is_empty() && problems.is_empty(), "{text}");
        }
    }
}
