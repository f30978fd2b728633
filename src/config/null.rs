//! The meaning of `null`, and of no value at all.

use std::borrow::Cow;

use crate::yaml::{Key, Node, Value};

/// The keys of the whole whose `null` means none, besides those that have none by default.
pub(super) const NULL_IN_GENERAL: [&str; 3] = ["http", "jobs", "redact"];

/// The same of a sink.
pub(super) const NULL_IN_SINK: [&str; 2] = ["filter", "redact"];

impl Node {
    /// The mapping without some of its keys.
    pub(super) fn without(&self, leave_out: impl Fn(&str) -> bool) -> Node {
        let pairs = self.pairs().unwrap_or_default();
        let kept = pairs.iter().filter(|(key, _)| !leave_out(&key.name)).cloned().collect();
        Node { place: self.place, value: Value::Map(kept) }
    }

    /// The mapping with the `null` of these keys put in other words: nothing listens, jobs are not
    /// kept, every event is taken, nothing is hidden.
    pub(super) fn with_none_said(mut self, keys: &[&str]) -> Node {
        let Value::Map(pairs) = &mut self.value else { return self };
        for (key, node) in pairs {
            if !matches!(node.value, Value::Null) || !keys.contains(&key.name.as_str()) {
                continue;
            }
            let place = node.place;
            let only = |name: &str, value| {
                let key = Key { name: name.to_owned(), place };
                Value::Map(vec![(key, Node { place, value })])
            };
            node.value = match key.name.as_str() {
                "http" => only("listen", Value::Null),
                "jobs" => only("enabled", Value::Bool(false)),
                "redact" => Value::List(Vec::new()),
                _ => Value::Map(Vec::new()),
            };
        }
        self
    }

    /// The settings of a kind, of which there may be none: `salt_bus: null` has its defaults.
    pub(super) fn or_defaults(&self) -> Cow<'_, Node> {
        match self.value {
            Value::Null => Cow::Owned(Node { place: self.place, value: Value::Nothing }),
            _ => Cow::Borrowed(self),
        }
    }
}
