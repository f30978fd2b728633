//! The rules that hide values, as they are configured and as they are applied.

use globset::GlobBuilder;
use regex_automata::meta::{BuildError, Regex};
use regex_automata::util::primitives::PatternID;
use regex_automata::util::{interpolate, syntax};
use regex_automata::{Anchored, Input, MatchKind, PatternSet};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::event::Event;
use crate::event::filter::{Filter, FilterConfig};
use crate::event::redact::path::Paths;
use crate::yaml::{Node, Problem};

/// The text in place of a value unless a rule says otherwise.
pub(super) const HIDDEN: &str = "**redacted**";

/// A rule that hides values: one of `keys`, `paths` and `pattern`. Without `tags` and `functions`
/// it is for all events. The first rule that matches a value replaces it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RuleConfig {
    /// The name of the rule in the metrics. Default: its place in the list, from 1.
    pub(crate) name: Option<String>,
    /// Globs of keys, as `*password*`, in upper or lower case. The value under such a key is
    /// replaced as a whole, at any depth. The same is done behind the `=` of a text `name=value` or
    /// `--name=value`, as arguments are written.
    pub(crate) keys: Vec<String>,
    /// Paths of values to replace as a whole: `$.return.secrets`, `$.fun_args[*].pw`,
    /// `$.return['a.b'][0]`, `$..pw`. They are JSONPath with names, places, `*` and `..` alone.
    pub(crate) paths: Vec<String>,
    /// A regular expression. Its matches within a text, a key or bytes are replaced. It sees bytes:
    /// `\w`, `\d`, `\s`, `\b` and `(?i)` mean ASCII, and `.` is one byte.
    pub(crate) pattern: Option<String>,
    /// The text to write in its place. With a `pattern`, `$1` or `${1}` stands for the match of its
    /// first group, `$name` for a group with a name, and `$$` for `$`. Default: `**redacted**`.
    pub(crate) with: Option<String>,
    /// Only in events whose tag matches one of these globs.
    pub(crate) tags: Vec<String>,
    /// Only in events with a function that matches one of these globs.
    pub(crate) functions: Vec<String>,
}

/// The rules of one list, compiled.
#[derive(Debug, Default)]
pub struct Rules {
    configs: Vec<RuleConfig>,
    list: Vec<Rule>,
    keys: Option<Keys>,
    pub(super) paths: Paths,
    /// Matches if one of the patterns does.
    patterns: Option<Regex>,
}

/// Two lists are the same if they are configured the same.
impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        self.configs == other.configs
    }
}

#[derive(Debug)]
struct Rule {
    name: String,
    with: String,
    /// `None` if it is for all events.
    limits: Option<Filter>,
    pattern: Option<Regex>,
}

/// The globs of keys of all rules.
#[derive(Debug)]
struct Keys {
    globs: Regex,
    /// The rule of each glob.
    rules: Vec<usize>,
}

impl Rules {
    /// Compiles the list under `redact` in `parent`, and notes everything that is wrong with it.
    pub(crate) fn new(configs: &[RuleConfig], parent: &Node, problems: &mut Vec<Problem>) -> Self {
        let mut all = Rules { configs: configs.to_vec(), ..Rules::default() };
        let (mut globs, mut rules) = (Vec::new(), Vec::new());
        let before = problems.len();
        for (place, config) in configs.iter().enumerate() {
            let mut noted = |path: &[&str], message: String| {
                let place = place.to_string();
                let path = [&["redact", &place][..], path].concat();
                problems.push(Problem::at(parent.place_of(&path), message));
            };
            let kinds = [!config.keys.is_empty(), !config.paths.is_empty()];
            let kinds = kinds.into_iter().chain([config.pattern.is_some()]);
            if kinds.filter(|is_given| *is_given).count() != 1 {
                noted(&[], "a rule has one of `keys`, `paths` and `pattern`".to_owned());
            }
            for (index, glob) in config.keys.iter().enumerate() {
                match GlobBuilder::new(glob).case_insensitive(true).build() {
                    Ok(glob) => globs.push(glob.regex().to_owned()),
                    Err(error) => {
                        let message = format!("`{glob}` is no glob: {}", error.kind());
                        noted(&["keys", &index.to_string()], message);
                    }
                }
                rules.push(place);
            }
            for (index, path) in config.paths.iter().enumerate() {
                if let Err(message) = all.paths.add(path, place) {
                    noted(&["paths", &index.to_string()], message);
                }
            }
            let rule = Rule::new(place, config, &mut noted);
            if all.list.iter().any(|other| other.name == rule.name) {
                noted(&["name"], format!("two rules are called `{}`", rule.name));
            }
            all.list.push(rule);
        }
        if problems.len() > before {
            return all;
        }
        let patterns: Vec<_> = configs.iter().filter_map(|rule| rule.pattern.as_ref()).collect();
        let mut together = |regex: Result<Regex, Box<BuildError>>| {
            let noted = |error: Box<BuildError>| {
                let message = format!("the rules together are too large: {}", said(&error));
                problems.push(Problem::at(parent.place_of(&["redact"]), message));
            };
            regex.map_err(noted).ok()
        };
        if !globs.is_empty() {
            let globs = together(regex(&globs, MatchKind::All));
            all.keys = globs.map(|globs| Keys { globs, rules });
        }
        if !patterns.is_empty() {
            all.patterns = together(regex(&patterns, MatchKind::LeftmostFirst));
        }
        all
    }

    /// There are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Their names, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|rule| rule.name.as_str())
    }

    /// The rules that are for this event.
    pub(super) fn asked(&self, event: &Event) -> Asked {
        if self.list.iter().all(|rule| rule.limits.is_none()) {
            return Asked(None);
        }
        let is_for = |rule: &Rule| rule.limits.as_ref().is_none_or(|limits| limits.takes(event));
        Asked(Some(self.list.iter().map(is_for).collect()))
    }

    /// The first rule that replaces the value under this key.
    pub(super) fn rule_of_key(&self, key: &[u8], asked: &Asked) -> Option<usize> {
        let Keys { globs, rules } = self.keys.as_ref()?;
        let input = Input::new(key).anchored(Anchored::Yes);
        if !globs.is_match(input.clone()) {
            return None;
        }
        let mut found = PatternSet::new(globs.pattern_len());
        globs.which_overlapping_matches(&input, &mut found);
        let rules = found.iter().filter_map(|glob| rules.get(glob.as_usize()).copied());
        rules.filter(|rule| asked.has(*rule)).min()
    }

    /// The first rule that looks for keys: it hides the value under an unknown key.
    pub(super) fn first_of_keys(&self, asked: &Asked) -> Option<usize> {
        let rules = self.keys.iter().flat_map(|keys| keys.rules.iter().copied());
        rules.filter(|rule| asked.has(*rule)).min()
    }

    /// The text that a rule writes in place of a whole value.
    pub(super) fn with(&self, rule: usize) -> &str {
        self.list.get(rule).map_or(HIDDEN, |rule| &rule.with)
    }

    /// Applies the rules to a text; `None` if it stays as it is. A result of more than `longest`
    /// bytes is not complete.
    pub(super) fn text(
        &self,
        text: &[u8],
        asked: &Asked,
        hits: &mut Vec<u64>,
        longest: usize,
    ) -> Option<Vec<u8>> {
        let mut new = self.argument(text, asked, hits);
        let is_match = |any: &Regex| any.is_match(new.as_deref().unwrap_or(text));
        if !self.patterns.as_ref().is_some_and(is_match) {
            return new;
        }
        for (place, rule) in self.list.iter().enumerate().filter(|(place, _)| asked.has(*place)) {
            let before = new.as_deref().unwrap_or(text);
            if before.len() > longest {
                break;
            }
            let Some(pattern) = &rule.pattern else { continue };
            let replaced = replaced(pattern, before, &rule.with, longest);
            if let Some(replaced) = replaced.filter(|replaced| replaced != before) {
                hit(hits, place);
                new = Some(replaced);
            }
        }
        new
    }

    /// The same as [`Rules::text`], with the rules that look for keys.
    fn argument(&self, text: &[u8], asked: &Asked, hits: &mut Vec<u64>) -> Option<Vec<u8>> {
        self.keys.as_ref()?;
        let (name, value) = argument(text)?;
        let rule = self.rule_of_key(name, asked)?;
        let with = self.with(rule).as_bytes();
        if value == with {
            return None;
        }
        hit(hits, rule);
        Some([text.strip_suffix(value)?, with].concat())
    }
}

impl Rule {
    fn new(place: usize, config: &RuleConfig, noted: &mut impl FnMut(&[&str], String)) -> Self {
        let name = config.name.clone().unwrap_or_else(|| (place + 1).to_string());
        if name.is_empty() {
            noted(&["name"], "a rule's name cannot be empty".to_owned());
        }
        let with = config.with.as_deref().unwrap_or(HIDDEN).to_owned();
        let pattern = config.pattern.as_ref().and_then(|pattern| {
            let built = regex(&[pattern], MatchKind::LeftmostFirst);
            let said = |error: Box<_>| format!("this is no pattern: {}", said(&error));
            built.map_err(|error| noted(&["pattern"], said(error))).ok()
        });
        if let Some(pattern) = &pattern {
            if pattern.is_match("") {
                noted(&["pattern"], "the pattern matches the empty text".to_owned());
            }
            if let Some(group) = unknown_group(&with, pattern) {
                let message = format!("the pattern has no group `{group}`");
                noted(&["with"], message);
            }
        }
        let (tags, functions) = (config.tags.clone(), config.functions.clone());
        let is_limited = !(tags.is_empty() && functions.is_empty());
        let limits = Filter::new(&FilterConfig { tags, functions, ..FilterConfig::default() });
        let limits = limits.map_err(|bad| noted(&[bad.key, &bad.index.to_string()], bad.message));
        Rule { name, with, limits: limits.ok().filter(|_| is_limited), pattern }
    }
}

/// The rules that are for an event; `None` if all are.
pub(super) struct Asked(Option<Vec<bool>>);

impl Asked {
    pub(super) fn has(&self, rule: usize) -> bool {
        self.0.as_ref().is_none_or(|asked| asked.get(rule).copied().unwrap_or_default())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_some_and(|asked| !asked.contains(&true))
    }
}

/// Counts one more value that a rule has replaced.
pub(super) fn hit(hits: &mut Vec<u64>, rule: usize) {
    if hits.len() <= rule {
        hits.resize(rule + 1, 0);
    }
    if let Some(hits) = hits.get_mut(rule) {
        *hits += 1;
    }
}

/// Payloads may be anything, so the patterns match bytes, and see ASCII letters only.
fn regex(patterns: &[impl AsRef<str>], kind: MatchKind) -> Result<Regex, Box<BuildError>> {
    // The `*` of a glob matches a line feed too.
    let dot_is_all = kind == MatchKind::All;
    let syntax = syntax::Config::new().unicode(false).utf8(false).dot_matches_new_line(dot_is_all);
    let config = Regex::config().match_kind(kind).utf8_empty(false);
    Ok(Regex::builder().configure(config).syntax(syntax).build_many(patterns)?)
}

/// The mistake in a pattern, in one line and without the pattern, which may hold a secret.
fn said(error: &BuildError) -> String {
    let said = error.syntax_error().map_or_else(|| error.to_string(), ToString::to_string);
    let last = said.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// A group that a replacement names and the pattern does not have.
fn unknown_group(with: &str, pattern: &Regex) -> Option<String> {
    let groups = pattern.group_info();
    let (mut number, mut name) = (None, None);
    interpolate::string(
        with,
        |index, _| {
            if index >= groups.group_len(PatternID::ZERO) {
                number.get_or_insert(index);
            }
        },
        |group| {
            let index = groups.to_index(PatternID::ZERO, group);
            if index.is_none() {
                name.get_or_insert_with(|| group.to_owned());
            }
            index
        },
        &mut String::new(),
    );
    name.or(number.map(|number| number.to_string()))
}

/// The text with the matches of the pattern replaced; `None` if it matches nothing. Stops when it
/// has become longer than `longest` bytes.
fn replaced(pattern: &Regex, text: &[u8], with: &str, longest: usize) -> Option<Vec<u8>> {
    let (mut out, mut copied) = (Vec::new(), 0);
    for found in pattern.captures_iter(text) {
        let Some(place) = found.get_match().filter(|place| !place.is_empty()) else { continue };
        out.extend_from_slice(text.get(copied..place.start()).unwrap_or_default());
        found.interpolate_bytes_into(text, with.as_bytes(), &mut out);
        copied = place.end();
        if out.len() > longest {
            return Some(out);
        }
    }
    out.extend_from_slice(text.get(copied..).unwrap_or_default());
    (copied > 0).then_some(out)
}

/// Name and value of an argument, `name=value` as Salt takes it or `--name=value`.
fn argument(text: &[u8]) -> Option<(&[u8], &[u8])> {
    const LONGEST_NAME: usize = 256;
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.".contains(byte);
    let end = text.iter().take(LONGEST_NAME).position(|byte| !is_name(byte))?;
    let (name, value) = text.split_at_checked(end)?;
    let value = value.strip_prefix(b"=").filter(|value| !value.is_empty())?;
    // `a==b` is a comparison.
    let dashes = name.iter().take_while(|byte| **byte == b'-').count();
    (!value.starts_with(b"=")).then_some((name.get(dashes..)?, value))
}
