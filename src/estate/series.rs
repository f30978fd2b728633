//! Series with a cap: label values come from events, but the number of series does not.
//!
//! A metric at its cap folds every new series into the series `other`, and counts that. The text of
//! a series up to its value is made once, so that rendering copies it and formats a number.
//!
//! Minions write the keys. The standard hasher, with a random key, keeps them from choosing such as
//! collide, and a faster one would not.

use std::collections::HashMap;
use std::fmt::Write;

use super::table::{ByMinion, Declared};
use crate::observe::metrics::MetricKind;

/// The value that stands for all those for which there is no room.
pub(super) const OTHER: &str = "other";

/// The longest value of a label, in bytes. A longer one is folded: nothing in Salt that is worth
/// looking at has such a name.
pub(super) const LONGEST: usize = 200;

/// Between the values of a key. Not to be found in UTF-8.
const BETWEEN: u8 = 0xff;

/// The series of a metric.
pub(super) struct Series {
    declared: Declared,
    labels: Vec<&'static str>,
    /// The number of labels, from the first on, whose values come from events.
    open: usize,
    max: usize,
    lines: HashMap<Box<[u8]>, Line>,
    /// The keys of each minion's series, if there is a label `minion`.
    of_minions: HashMap<Box<str>, Vec<Box<[u8]>>>,
    /// Updates of the series `other`.
    pub(super) folded: u64,
    key: Vec<u8>,
}

struct Line {
    /// Name and labels.
    text: Box<str>,
    value: f64,
}

impl Series {
    /// No series yet; events can make at most `max` of them.
    pub(super) fn new(declared: Declared, by_minion: bool, max: usize) -> Self {
        let minion = by_minion.then_some("minion");
        let labels: Vec<_> = minion.into_iter().chain(declared.metric.labels.to_vec()).collect();
        let open = declared.open + usize::from(by_minion);
        Series {
            declared,
            labels,
            open,
            max,
            lines: HashMap::new(),
            of_minions: HashMap::new(),
            folded: 0,
            key: Vec::new(),
        }
    }

    /// The name of the metric.
    pub(super) fn name(&self) -> &'static str {
        self.declared.metric.name
    }

    /// Adds to the series of these values. The minion is left out where there is no such label, and
    /// nothing happens if the metric is nothing without it.
    pub(super) fn add(&mut self, minion: &str, values: &[&str], count: f64) {
        self.update(minion, values, |value| *value += count);
    }

    /// Sets the value instead of adding to it, else like [`Self::add`].
    pub(super) fn set(&mut self, minion: &str, values: &[&str], to: f64) {
        self.update(minion, values, |value| *value = to);
    }

    /// Forgets the series of a minion.
    pub(super) fn forget(&mut self, minion: &str) {
        for key in self.of_minions.remove(minion).unwrap_or_default() {
            self.lines.remove(&key);
        }
    }

    /// Changes the value of the series of these values, or of `other` if there is no room for it.
    fn update(&mut self, minion: &str, values: &[&str], change: impl FnOnce(&mut f64)) {
        let has_minion = self.labels.len() > self.declared.metric.labels.len();
        if !has_minion && self.declared.by_minion == ByMinion::Only {
            return;
        }
        let minion = has_minion.then_some(minion);
        let all = || minion.into_iter().chain(values.iter().copied());
        self.key.clear();
        for value in all() {
            self.key.extend_from_slice(value.as_bytes());
            self.key.push(BETWEEN);
        }
        // Nearly always it is there, and one look at the map is enough.
        if let Some(line) = self.lines.get_mut(self.key.as_slice()) {
            change(&mut line.value);
            return;
        }
        let is_too_long = || all().any(|value| value.len() > LONGEST);
        if self.open > 0 && (self.lines.len() >= self.max || is_too_long()) {
            self.folded += 1;
            let open = self.open;
            let folded = move |(place, value)| if place < open { OTHER } else { value };
            let values: Vec<_> = all().enumerate().map(folded).collect();
            change(self.line(&values));
            return;
        }
        if let Some(minion) = minion {
            let keys = self.of_minions.entry(minion.into()).or_default();
            keys.push(self.key.as_slice().into());
        }
        let values: Vec<_> = all().collect();
        change(self.line(&values));
    }

    /// The series of all these values, made if it is not there.
    fn line(&mut self, values: &[&str]) -> &mut f64 {
        let mut key = Vec::new();
        for value in values {
            key.extend_from_slice(value.as_bytes());
            key.push(BETWEEN);
        }
        let text = || text(self.declared.metric.name, &self.labels, values);
        let line = self.lines.entry(key.into());
        &mut line.or_insert_with(|| Line { text: text(), value: 0.0 }).value
    }

    /// Appends the series in Prometheus' text format.
    pub(super) fn render(&self, out: &mut String) {
        if self.lines.is_empty() {
            return;
        }
        let metric = self.declared.metric;
        let kind = if metric.kind == MetricKind::Counter { "counter" } else { "gauge" };
        // Writing to a String does not fail.
        let _ =
            writeln!(out, "# HELP {} {}\n# TYPE {} {kind}", metric.name, metric.help, metric.name);
        let mut buffer = itoa::Buffer::new();
        for line in self.lines.values() {
            out.push_str(&line.text);
            out.push(' ');
            #[allow(clippy::cast_possible_truncation)] // it is whole and small
            if line.value.fract() == 0.0 && line.value.abs() < 1e15 {
                out.push_str(buffer.format(line.value as i64));
            } else {
                let _ = write!(out, "{}", line.value);
            }
            out.push('\n');
        }
    }
}

/// `name{label="value",…}`, escaped as Prometheus wants it.
fn text(name: &str, labels: &[&str], values: &[&str]) -> Box<str> {
    let mut text = name.to_owned();
    for (place, (label, value)) in labels.iter().zip(values).enumerate() {
        text.push(if place == 0 { '{' } else { ',' });
        text.push_str(label);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    if !labels.is_empty() {
        text.push('}');
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::super::table::{FUNCTION_STATUS, NEW_JOBS, RESPONSES_BY_FUNCTION};
    use super::*;

    fn lines(series: &Series) -> Vec<String> {
        let mut out = String::new();
        series.render(&mut out);
        let lines = out.lines().filter(|line| !line.starts_with('#'));
        let mut lines: Vec<_> = lines.map(str::to_owned).collect();
        lines.sort();
        lines
    }

    #[test]
    fn what_is_too_much_goes_into_other() {
        let mut series = Series::new(RESPONSES_BY_FUNCTION, true, 2);
        let long = "x".repeat(LONGEST + 1);
        for (minion, function, success) in [
            ("a", "test.ping", "true"),
            ("a", &*long, "true"),
            ("b", "test.ping", "true"),
            ("c", "test.ping", "true"),
            ("c", "test.ping", "false"),
            ("a", "test.ping", "true"),
        ] {
            series.add(minion, &[function, "", success], 1.0);
        }
        let name = "salt_function_responses_total";
        let expected = [
            format!(r#"{name}{{minion="a",function="test.ping",state="",success="true"}} 2"#),
            format!(r#"{name}{{minion="other",function="other",state="other",success="false"}} 1"#),
            format!(r#"{name}{{minion="other",function="other",state="other",success="true"}} 3"#),
        ];
        assert_eq!(lines(&series), expected);
        assert_eq!(series.folded, 4);
    }

    #[test]
    fn a_minion_that_goes_makes_room() {
        let mut series = Series::new(FUNCTION_STATUS, true, 2);
        series.set("a", &["state.highstate", "highstate"], 1.0);
        series.set("b", &["state.highstate", "highstate"], 0.0);
        series.forget("a");
        series.forget("nobody");
        series.set("c", &["state.highstate", "highstate"], 1.0);
        assert_eq!(lines(&series).len(), 2);
        assert!(series.of_minions.len() == 2 && series.folded == 0);
        let mut without = Series::new(FUNCTION_STATUS, false, 2);
        without.set("a", &["state.highstate", "highstate"], 1.0);
        assert!(lines(&without).is_empty());
    }

    #[test]
    fn hostile_values_stay_values() {
        let mut series = Series::new(NEW_JOBS, false, 9);
        series.add("", &["a\"} 1\nb\\", "ä"], 0.5);
        assert_eq!(
            lines(&series),
            ["salt_new_job_total{function=\"a\\\"} 1\\nb\\\\\",state=\"ä\"} 0.5"]
        );
    }
}
