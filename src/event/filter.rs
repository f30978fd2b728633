//! The filter of a sink: the events that it takes.

use std::cell::OnceCell;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::job_return::Outcome;
use crate::event::{Event, EventKind, Fields};

/// The conditions for a sink to take an event. Each key that is given must match; a list matches
/// when one of its entries does. Globs know `*`, `?`, `[a-z]` and `{a,b}`, and `*` matches `/` too,
/// as in Salt's own event filters.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FilterConfig {
    /// Globs of tags to take: `["salt/job/*/ret/*"]`. Default: all.
    pub tags: Vec<String>,
    /// Globs of tags to leave out; they win over `tags`.
    pub not_tags: Vec<String>,
    /// Globs of functions: `["state.*", "test.ping"]`. A job of several functions matches by any of
    /// them, an event without a function does not match.
    pub functions: Vec<String>,
    /// Globs of minion ids. Events without a minion do not match.
    pub minions: Vec<String>,
    /// Outcomes to take: `[worked]`, `[failed]`, `[unknown]`, or several of them. Events without an
    /// outcome are `unknown`; so are most that are no returns.
    pub outcome: Vec<Outcome>,
    /// Take only returns that worked (`true`) or failed (`false`). `unknown` matches neither.
    pub success: Option<bool>,
    /// Kinds of events: `[job_return, job_new, beacon]`.
    pub kinds: Vec<EventKind>,
}

/// A pattern that is no glob: its key, its index and the mistake in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadGlob {
    /// `tags`, `not_tags`, `functions` or `minions`.
    pub(crate) key: &'static str,
    /// The place in that list, from 0.
    pub(crate) index: usize,
    /// The mistake.
    pub(crate) message: String,
}

/// A compiled [`FilterConfig`].
#[derive(Debug, Clone)]
pub struct Filter {
    tags: Option<Globs>,
    not_tags: Option<Globs>,
    functions: Option<Globs>,
    minions: Option<Globs>,
    outcomes: Vec<Outcome>,
    success: Option<bool>,
    /// A bit for each kind; 0 for all.
    kinds: u32,
}

/// The fields of an event that filters ask for, each looked up once however many ask.
pub(crate) struct Asked<'a> {
    fields: Fields<'a>,
    outcome: OnceCell<Outcome>,
}

impl<'a> Asked<'a> {
    /// The fields of this event.
    pub(crate) fn of(event: &'a Event) -> Self {
        Asked { fields: event.fields(), outcome: OnceCell::new() }
    }

    fn outcome(&self) -> Outcome {
        *self.outcome.get_or_init(|| self.fields.job_return.outcome())
    }
}

/// The globs of one list.
#[derive(Debug, Clone)]
struct Globs {
    set: GlobSet,
    each: Vec<Glob>,
}

/// The list of a filter that a glob of tags is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TagGlob {
    /// `tags`.
    Take,
    /// `not_tags`.
    LeaveOut,
}

/// The matches of a filter's globs with a tag. Without `tags`, `take` says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tagged {
    /// One of `tags` matches.
    pub(crate) take: bool,
    /// One of `not_tags` matches.
    pub(crate) leave_out: bool,
}

impl Filter {
    /// Compiles the globs.
    pub fn new(config: &FilterConfig) -> Result<Self, BadGlob> {
        Ok(Filter {
            tags: globs("tags", &config.tags)?,
            not_tags: globs("not_tags", &config.not_tags)?,
            functions: globs("functions", &config.functions)?,
            minions: globs("minions", &config.minions)?,
            outcomes: config.outcome.clone(),
            success: config.success,
            kinds: config.kinds.iter().fold(0, |kinds, kind| kinds | bit(*kind)),
        })
    }

    /// The filter takes every event.
    pub(crate) fn takes_all(&self) -> bool {
        self.tags.is_none() && self.not_tags.is_none() && self.kinds == 0 && !self.reads_fields()
    }

    /// The filter takes the event.
    pub fn takes(&self, event: &Event) -> bool {
        let asked = OnceCell::new();
        let ask = || asked.get_or_init(|| Asked::of(event));
        self.takes_tagged(event, self.tagged(event.tag()), ask)
    }

    /// The same as [`Filter::takes`], with the fields and the globs that match the tag known
    /// already.
    pub(crate) fn takes_tagged<'e: 'a, 'a>(
        &self,
        event: &Event,
        tagged: Tagged,
        asked: impl FnOnce() -> &'a Asked<'e>,
    ) -> bool {
        (self.kinds == 0 || self.kinds & bit(event.kind()) != 0)
            && (tagged.take || self.tags.is_none())
            && !tagged.leave_out
            && (!self.reads_fields() || self.takes_fields(asked()))
    }

    /// Matches the globs with a tag.
    pub(crate) fn tagged(&self, tag: &str) -> Tagged {
        let matches =
            |globs: &Option<Globs>| globs.as_ref().is_some_and(|globs| globs.set.is_match(tag));
        Tagged { take: matches(&self.tags), leave_out: matches(&self.not_tags) }
    }

    /// The globs of tags as regular expressions of bytes that match a whole tag or nothing.
    pub(crate) fn tag_patterns(&self) -> impl Iterator<Item = (TagGlob, &str)> {
        let lists = [(TagGlob::Take, &self.tags), (TagGlob::LeaveOut, &self.not_tags)];
        lists.into_iter().flat_map(|(list, globs)| {
            let each = globs.iter().flat_map(|globs| &globs.each);
            each.map(move |glob| (list, glob.regex()))
        })
    }

    fn reads_fields(&self) -> bool {
        self.functions.is_some()
            || self.minions.is_some()
            || !self.outcomes.is_empty()
            || self.success.is_some()
    }

    fn takes_fields(&self, asked: &Asked<'_>) -> bool {
        let Asked { fields, .. } = asked;
        let is_match = |globs: &Globs, text| globs.set.is_match(text);
        let mut functions = fields.job_return.functions.iter();
        self.functions.as_ref().is_none_or(|globs| functions.any(|name| is_match(globs, name)))
            && self
                .minions
                .as_ref()
                .is_none_or(|globs| fields.minion.is_some_and(|minion| is_match(globs, minion)))
            && (self.outcomes.is_empty() || self.outcomes.contains(&asked.outcome()))
            && self.success.is_none_or(|success| asked.outcome().worked() == Some(success))
    }
}

fn bit(kind: EventKind) -> u32 {
    1 << kind as u32
}

fn globs(key: &'static str, patterns: &[String]) -> Result<Option<Globs>, BadGlob> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let (mut set, mut each) = (GlobSetBuilder::new(), Vec::new());
    for (index, pattern) in patterns.iter().enumerate() {
        let glob = GlobBuilder::new(pattern).literal_separator(false).build();
        let glob = glob.map_err(|error| BadGlob {
            key,
            index,
            message: format!("`{pattern}` is no glob: {}", error.kind()),
        })?;
        set.add(glob.clone());
        each.push(glob);
    }
    let set = set.build().map_err(|error| BadGlob {
        key,
        index: 0,
        message: format!("the globs cannot be compiled together: {error}"),
    })?;
    Ok(Some(Globs { set, each }))
}

#[cfg(test)]
mod tests {
    use crate::event::filter::*;

    fn event(tag: &str, fun: &str, id: &str, success: bool) -> Event {
        let data = serde_json::json!({"fun": fun, "id": id, "success": success});
        Event::new(tag, &rmp_serde::to_vec(&data).unwrap())
    }

    fn filter(json: serde_json::Value) -> Filter {
        Filter::new(&serde_json::from_value(json).unwrap()).unwrap()
    }

    #[test]
    fn every_key_must_match() {
        let ret = event("salt/job/20261121233336123456/ret/web-1", "state.apply", "web-1", true);
        let beacon = Event::new("salt/beacon/web-1/status/", b"\x80");
        for (config, takes_ret, takes_beacon) in [
            (serde_json::json!({}), true, true),
            (serde_json::json!({"tags": ["salt/job/*"]}), true, false),
            (serde_json::json!({"tags": ["salt/*"], "not_tags": ["*/ret/*"]}), false, true),
            (serde_json::json!({"functions": ["state.*"]}), true, false),
            (serde_json::json!({"functions": ["test.*"]}), false, false),
            (serde_json::json!({"minions": ["web-[0-9]"]}), true, true),
            (serde_json::json!({"success": true}), true, false),
            (serde_json::json!({"success": false}), false, false),
            (serde_json::json!({"kinds": ["beacon"]}), false, true),
            (serde_json::json!({"kinds": ["beacon"], "success": true}), false, false),
        ] {
            let filter = filter(config.clone());
            assert_eq!(filter.takes(&ret), takes_ret, "{config}");
            assert_eq!(filter.takes(&beacon), takes_beacon, "{config}");
        }
    }

    #[test]
    fn how_it_went_and_each_function_are_asked_for() {
        let several = serde_json::json!({
            "fun": ["test.ping", "cmd.run"], "id": "web-1",
            "retcode": {"test.ping": 0, "cmd.run": 1},
        });
        let tag = "salt/job/20261121233336123456/ret/web-1";
        let several = Event::new(tag, &rmp_serde::to_vec(&several).unwrap());
        let silent = Event::new(tag, b"\x80");
        let worked = event(tag, "test.ping", "web-1", true);
        for (config, taken) in [
            (serde_json::json!({"functions": ["cmd.*"]}), [true, false, false]),
            (serde_json::json!({"functions": ["test.ping"]}), [true, false, true]),
            (serde_json::json!({"outcome": ["failed"]}), [true, false, false]),
            (serde_json::json!({"outcome": ["failed", "unknown"]}), [true, true, false]),
            (serde_json::json!({"outcome": ["worked"]}), [false, false, true]),
            (serde_json::json!({"success": false}), [true, false, false]),
            (serde_json::json!({"success": true}), [false, false, true]),
            (serde_json::json!({"success": true, "outcome": ["failed"]}), [false; 3]),
        ] {
            let filter = filter(config.clone());
            let takes = [&several, &silent, &worked].map(|event| filter.takes(event));
            assert_eq!(takes, taken, "{config}");
        }
    }

    #[test]
    fn a_bad_glob_says_which() {
        let config = serde_json::json!({"not_tags": ["a*", "b[", "c"]});
        let error = Filter::new(&serde_json::from_value(config).unwrap()).unwrap_err();
        assert_eq!((error.key, error.index), ("not_tags", 1));
        assert!(error.message.contains("`b[`"), "{}", error.message);
    }
}
