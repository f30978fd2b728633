//! YAML with places: a tree with the line and column of every value. It reads into typed structs,
//! and its errors point at the wrong value.
//!
//! `serde-saphyr` parses. The tree stands between it and the structs for three reasons. `${NAME}`
//! and `${file:PATH}` are replaced in values after parsing, so a secret can hold any character.
//! Each sink and source is read on its own, so one run reports every mistake. A mistake that shows
//! only later, such as a bad glob, can still be reported with its place.

use std::fmt;
use std::path::Path;

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer};
use serde::{Deserialize, Deserializer, Serialize, forward_to_deserialize_any};
use serde_saphyr::Spanned;
use xxhash_rust::xxh3::Xxh3Default;

use crate::codec::visible;
use crate::files::regular_file;

pub(crate) mod hide;

/// The most that is read of the file of a `${file:PATH}`, in bytes.
const LONGEST_FILE: u64 = 64 << 10;

/// The longest message that is shown, in bytes.
const LONGEST_MESSAGE: usize = 1000;

/// A shorter text is not replaced in a message.
const SHORTEST: usize = 4;

/// Line and column, both from 1; line 0 is a place that is not known.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub(crate) column: usize,
}

impl From<serde_saphyr::Location> for Place {
    fn from(location: serde_saphyr::Location) -> Self {
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Place { line: number(location.line()), column: number(location.column()) }
    }
}

/// Something wrong with the configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The place, if it is known.
    pub place: Option<Place>,
    /// The mistake.
    pub message: String,
    /// Advice on what to do.
    pub(crate) help: Option<String>,
    /// The kind of mistake.
    mistake: Mistake,
}

/// A kind of mistake, as far as it matters for what else is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    /// A rule is broken, in words that quote no value.
    Rule,
    /// The message quotes a value, which has this type or that.
    Value,
    /// The message quotes a key or a word that is not known.
    Unknown,
    /// A key is missing, so the place is not that of the mistake.
    Missing,
}

impl Problem {
    /// A problem at a place.
    pub(crate) fn at(place: Place, message: impl Into<String>) -> Self {
        Problem { place: Some(place), ..Problem::unplaced(message) }
    }

    /// A problem with the whole.
    pub(crate) fn unplaced(message: impl Into<String>) -> Self {
        Problem { place: None, message: message.into(), help: None, mistake: Mistake::Rule }
    }

    fn of(mistake: Mistake, message: impl Into<String>) -> Self {
        Problem { mistake, ..Problem::unplaced(message) }
    }

    /// The same problem with advice.
    #[must_use]
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Problem { help: Some(help.into()), ..self }
    }

    /// The same problem in other words.
    #[must_use]
    pub(crate) fn saying(self, message: impl Into<String>) -> Self {
        Problem { message: message.into(), ..self }
    }

    /// Nobody knows this key.
    pub(crate) fn of_unknown(key: &Key) -> Self {
        let problem = Problem::of(Mistake::Unknown, unknown_key(&key.name));
        Problem { place: Some(key.place), ..problem }
    }

    /// True if nobody knows this key.
    pub(crate) fn is_of_unknown(&self, key: &Key) -> bool {
        self.mistake == Mistake::Unknown && self.place == Some(key.place)
    }

    fn located(self, place: Place) -> Self {
        Problem { place: self.place.or(Some(place)), ..self }
    }

    /// The place, the message and the help, on one line.
    pub(crate) fn on_one_line(&self, file: &str) -> String {
        let mut out = file.to_owned();
        if let Some(Place { line, column }) = self.place.filter(|place| place.line > 0) {
            out += &format!(":{line}:{column}");
        }
        out + ": " + &self.with_help()
    }

    /// The message and what to do.
    pub(crate) fn with_help(&self) -> String {
        match &self.help {
            Some(help) => format!("{}; {help}", self.message),
            None => self.message.clone(),
        }
    }

    /// The problem with the line it is in and a caret under the place.
    pub fn render(&self, file: &str, text: &str) -> String {
        let mut out = format!("error: {}", self.message);
        if let Some(Place { line, column }) = self.place.filter(|place| place.line > 0) {
            let shown = hide::shown(text, line, column);
            let (source, indent) = (shown.line, " ".repeat(shown.indent));
            let margin = " ".repeat(line.to_string().len());
            out += &format!("\n{margin}--> {file}:{line}:{column}");
            out += &format!("\n{margin} |\n{line} | {source}\n{margin} | {indent}^");
        } else {
            out += &format!("\n --> {file}");
        }
        if let Some(help) = &self.help {
            out += &format!("\n  = help: {help}");
        }
        out
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Problem::unplaced(message.to_string())
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let problem = Problem::of(Mistake::Unknown, unknown_key(field));
        // Kinds that have a block for who we are.
        if ["user", "password", "token"].contains(&field) && expected.contains(&"auth") {
            return problem.help(format!("write `{field}` below `auth`"));
        }
        problem.help(suggest(field, expected))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let problem = Problem::of(Mistake::Unknown, format!("unknown value `{variant}`"));
        problem.help(suggest(variant, expected))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Problem::of(Mistake::Unknown, format!("the key `{field}` is here twice"))
    }

    fn invalid_length(length: usize, expected: &dyn de::Expected) -> Self {
        let expected = in_words(expected);
        Problem::of(Mistake::Value, format!("invalid length {length}, expected {expected}"))
    }

    fn invalid_value(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = in_words(expected);
        Problem::of(Mistake::Value, format!("invalid value: {unexpected}, expected {expected}"))
    }

    fn invalid_type(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = in_words(expected);
        let unexpected = match unexpected {
            de::Unexpected::Unit => {
                let message = format!("there is no value here, expected {expected}");
                return Problem::of(Mistake::Value, message)
                    .help("leave the key out for its default");
            }
            // A key and its value, written together, may hold a secret.
            de::Unexpected::Str(text) if expected == "a mapping" => {
                let message = "invalid type: a text, expected a mapping";
                let problem = Problem::of(Mistake::Value, message);
                return match text.contains(':') {
                    true => problem.help("write a space behind the `:` of a key"),
                    false => problem,
                };
            }
            de::Unexpected::Seq => "a list".to_owned(),
            de::Unexpected::Map => "a mapping".to_owned(),
            other => other.to_string(),
        };
        Problem::of(Mistake::Value, format!("invalid type: {unexpected}, expected {expected}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Problem::of(Mistake::Missing, format!("the key `{field}` is missing"))
    }
}

fn unknown_key(name: &str) -> String {
    format!("unknown key `{name}`")
}

/// Serde's words for an expected type, in those of YAML.
fn in_words(expected: &dyn de::Expected) -> String {
    let expected = expected.to_string();
    let up_to = |most: u64| format!("a whole number from 0 to {most}");
    match expected.as_str() {
        "a map" => "a mapping".to_owned(),
        name if name.starts_with("struct ") => "a mapping".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "u16" => up_to(u64::from(u16::MAX)),
        "u32" => up_to(u64::from(u32::MAX)),
        "u64" | "usize" => up_to(u64::MAX),
        "i64" => "a whole number".to_owned(),
        "f64" => "a number".to_owned(),
        _ => expected,
    }
}

/// Advice for a name that is none of `known`: the nearest of them, or all of them.
pub(crate) fn suggest<S: AsRef<str>>(name: &str, known: &[S]) -> String {
    match nearest(name, known) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None if known.is_empty() => "nothing can be set here".to_owned(),
        None => format!("known are {}", listed(known)),
    }
}

/// The name that was probably meant, if one is near.
pub(crate) fn nearest<'a, S: AsRef<str>>(name: &str, known: &'a [S]) -> Option<&'a str> {
    let known = known.iter().map(AsRef::as_ref);
    let distances = known.map(|known| (strsim::damerau_levenshtein(name, known), known));
    let (distance, nearest) = distances.min()?;
    (distance <= 2.max(name.len() / 3)).then_some(nearest)
}

/// The names, each as it is written.
pub(crate) fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
    names.join(", ")
}

/// The text of a template. The replacement of a `${…}` stands in it as it is, whatever braces it
/// has.
#[derive(Deserialize)]
pub(crate) struct TemplateText(pub(crate) String);

/// The name by which [`Node`] knows [`TemplateText`].
const TEMPLATE_TEXT: &str = "TemplateText";

/// A value and where it is.
#[derive(Debug, Clone)]
pub struct Node {
    /// The place where it begins.
    pub(crate) place: Place,
    /// The value itself.
    pub value: Value,
}

/// A YAML value.
#[derive(Debug, Clone)]
pub enum Value {
    /// `null` or `~`, so that somebody means none.
    Null,
    /// Nothing at all, as behind a key whose own keys are comments.
    Nothing,
    /// `true` or `false`.
    Bool(bool),
    /// A negative integer.
    Int(i64),
    /// A positive integer.
    Uint(u64),
    /// A number with a point or an exponent.
    Float(f64),
    /// Text.
    Text(String),
    /// Text in which `${…}` was replaced; it may be read as a number or a bool too.
    Replaced {
        /// The text.
        text: String,
        /// The same for a template: braces of what was put in are doubled.
        literal: String,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<(Key, Node)>),
}

/// The key of a mapping, with its place.
#[derive(Debug, Clone)]
pub struct Key {
    /// The key.
    pub name: String,
    /// The place where it begins.
    pub(crate) place: Place,
}

impl Node {
    /// The node of a value that can be serialized, without a place; `None` if it cannot be.
    pub(crate) fn of(value: &impl Serialize) -> Option<Node> {
        serde_json::to_value(value).ok().map(Node::from_json)
    }

    fn from_json(json: serde_json::Value) -> Node {
        let place = Place::default();
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(value),
            serde_json::Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => Value::Uint(number),
                (None, Some(number)) => Value::Int(number),
                (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Value::Text(text),
            serde_json::Value::Array(values) => {
                Value::List(values.into_iter().map(Node::from_json).collect())
            }
            serde_json::Value::Object(pairs) => {
                let pair = |(name, value)| (Key { name, place }, Node::from_json(value));
                Value::Map(pairs.into_iter().map(pair).collect())
            }
        };
        Node { place, value }
    }

    /// The mapping, with the values of `below` for keys that it does not have, also in its inner
    /// mappings. A key with nothing behind it counts as not there.
    pub(crate) fn over(&self, below: &Node) -> Node {
        let (Value::Map(pairs), Value::Map(below)) = (&self.value, &below.value) else {
            return self.clone();
        };
        let mut pairs = pairs.clone();
        for (key, below) in below {
            match pairs.iter_mut().find(|(known, _)| known.name == key.name) {
                None => pairs.push((key.clone(), below.clone())),
                Some((_, node)) if matches!(node.value, Value::Nothing) => {
                    node.value = below.value.clone();
                }
                Some((_, node)) => *node = node.over(below),
            }
        }
        Node { place: self.place, value: Value::Map(pairs) }
    }

    /// Parses one YAML document.
    pub fn parse(text: &str) -> Result<Node, Problem> {
        let is_blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
        if hide::lines_of(text).all(is_blank) {
            return Ok(Node { place: Place::default(), value: Value::Map(Vec::new()) });
        }
        // YAML 1.2 is meant, where `yes`, `on` and `y` are words. Comments would be kept, a hundred
        // or so at the most.
        let options = serde_saphyr::options! { strict_booleans: true, emit_comments: false };
        let parsed = serde_saphyr::from_str_with_options::<Spanned<Value>>(text, options);
        parsed.map(Node::from).map_err(|error| not_yaml(&error, text))
    }

    /// Replaces `${NAME}` by the environment variable and `${file:PATH}` by the file's content
    /// without its last line feed, in every text of the tree. The file is a regular one of at
    /// most 64 KiB. `$${` stands for `${`, and `${1}`, a
    /// number, stays as it is.
    pub(crate) fn interpolate(&mut self, problems: &mut Vec<Problem>) {
        match &mut self.value {
            Value::Text(text) if text.contains("${") => match interpolated(text) {
                Ok((text, literal)) => self.value = Value::Replaced { text, literal },
                Err(message) => problems.push(Problem::at(self.place, message)),
            },
            Value::List(nodes) => nodes.iter_mut().for_each(|node| node.interpolate(problems)),
            Value::Map(pairs) => pairs.iter_mut().for_each(|(_, node)| node.interpolate(problems)),
            _ => {}
        }
    }

    /// Reads the value into a type.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        // A type that checks itself after reading knows no place.
        T::deserialize(self).map_err(|problem: Problem| problem.located(self.place))
    }

    /// Reads the value into a type and notes every problem in it, not only the first. A wrong part
    /// is left out and the rest is read again.
    pub(crate) fn read_noting<T: DeserializeOwned>(
        &self,
        problems: &mut Vec<Problem>,
    ) -> Option<T> {
        let mut rest = self.clone();
        let mut noted: Vec<Problem> = Vec::new();
        loop {
            let problem = match rest.read() {
                Ok(value) if noted.is_empty() => return Some(value),
                Ok(_) => break,
                Err(problem) => problem,
            };
            // A key that is missing now may be one that was left out before, and a rule about a
            // mapping is broken without it.
            let is_missing = problem.mistake == Mistake::Missing;
            let place = problem.place;
            let is_rule = problem.mistake == Mistake::Rule
                && place.is_some_and(|place| {
                    noted.iter().any(|other| self.has_in_mapping_at(place, other.place))
                });
            if !(noted.contains(&problem) || is_missing && !noted.is_empty() || is_rule) {
                noted.push(problem);
            }
            if is_missing || !place.is_some_and(|place| rest.leave_out(place)) {
                break;
            }
        }
        problems.append(&mut noted);
        None
    }

    /// True if a mapping begins at `place`, with a key or value in it, however deep, that begins
    /// at `inner`.
    fn has_in_mapping_at(&self, place: Place, inner: Option<Place>) -> bool {
        let Some(inner) = inner else { return false };
        match &self.value {
            Value::Map(_) if self.place == place && self.has_at(inner) => true,
            Value::Map(pairs) => {
                pairs.iter().any(|(_, node)| node.has_in_mapping_at(place, Some(inner)))
            }
            Value::List(nodes) => {
                nodes.iter().any(|node| node.has_in_mapping_at(place, Some(inner)))
            }
            _ => false,
        }
    }

    /// True if a key or value in this one begins at the place.
    fn has_at(&self, place: Place) -> bool {
        match &self.value {
            Value::Map(pairs) => pairs
                .iter()
                .any(|(key, node)| key.place == place || node.place == place || node.has_at(place)),
            Value::List(nodes) => {
                nodes.iter().any(|node| node.place == place || node.has_at(place))
            }
            _ => false,
        }
    }

    /// The key of the mapping that begins at the place.
    fn mapping_at(&self, place: Place) -> Option<&str> {
        match &self.value {
            Value::Map(pairs) => pairs.iter().find_map(|(key, node)| match node.value {
                Value::Map(_) if node.place == place => Some(key.name.as_str()),
                _ => node.mapping_at(place),
            }),
            Value::List(nodes) => nodes.iter().find_map(|node| node.mapping_at(place)),
            _ => None,
        }
    }

    /// Takes possible secrets out of a problem's message: values under keys of secrets, and values
    /// in which `${…}` was replaced. A rule about a mapping is shown, without the secrets.
    pub(crate) fn hide_secrets(&self, problem: &mut Problem) {
        let mut secrets = Vec::new();
        self.find_secrets_of_root(&mut secrets);
        let here = secrets.iter().filter(|secret| Some(secret.place) == problem.place);
        let here: Vec<_> = here.collect();
        let is_hidden = match problem.mistake {
            Mistake::Value | Mistake::Unknown => !here.is_empty(),
            Mistake::Rule | Mistake::Missing => here.iter().any(|secret| secret.is_scalar),
        };
        if is_hidden {
            let is_of_value = problem.mistake == Mistake::Value;
            let expected = problem.message.rfind(", expected ").filter(|_| is_of_value);
            let expected = expected.and_then(|at| problem.message.get(at..)).unwrap_or_default();
            problem.message = format!(
                "this value is wrong{expected}; it is not shown, because it may be a secret"
            );
            return;
        }
        // The line of the block is shown without its contents.
        let block = problem.place.filter(|_| !here.is_empty());
        if let Some(block) = block.and_then(|place| self.mapping_at(place)) {
            problem.message = format!("`{block}`: {}", problem.message);
        }
        for secret in secrets.iter().filter(|secret| secret.text.len() >= SHORTEST) {
            for text in [secret.text.to_owned(), secret.text.escape_debug().to_string()] {
                problem.message = problem.message.replace(&text, "***");
            }
        }
        problem.message = visible::capped(&hide::message(&problem.message), LONGEST_MESSAGE);
        problem.help = problem.help.as_deref().map(|help| visible::capped(help, LONGEST_MESSAGE));
    }

    /// The possible secrets in a whole configuration. The names of entries are the operator's, and
    /// tell nothing of their contents.
    fn find_secrets_of_root<'a>(&'a self, found: &mut Vec<FoundSecret<'a>>) {
        let Value::Map(sections) = &self.value else { return self.find_secrets(false, found) };
        for (section, entries) in sections {
            match &entries.value {
                Value::Map(entries) if hide::SECTIONS.contains(&section.name.as_str()) => {
                    for (name, entry) in entries {
                        let is_entry = matches!(entry.value, Value::Map(_));
                        let is_secret = !is_entry && hide::is_secret(&name.name);
                        entry.find_secrets(is_secret, found);
                    }
                }
                _ => entries.find_secrets(hide::is_secret(&section.name), found),
            }
        }
    }

    /// The possible secrets in it.
    fn find_secrets<'a>(&'a self, is_secret: bool, found: &mut Vec<FoundSecret<'a>>) {
        let place = self.place;
        match &self.value {
            Value::Replaced { text, .. } => {
                found.push(FoundSecret { place, text, is_scalar: true });
            }
            Value::Text(text) if is_secret => {
                found.push(FoundSecret { place, text, is_scalar: true });
            }
            Value::List(nodes) => {
                for node in nodes {
                    node.find_secrets(is_secret, found);
                }
            }
            Value::Map(pairs) => {
                for (key, node) in pairs {
                    if is_secret {
                        // Rules name the keys that they are about.
                        let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
                        let text = match key.name.chars().all(is_word) {
                            true => "",
                            false => key.name.as_str(),
                        };
                        let place = key.place;
                        found.push(FoundSecret { place, text, is_scalar: false });
                    }
                    let names_secret = match &node.value {
                        Value::Map(_) => hide::holds_secrets(&key.name),
                        _ => hide::is_secret(&key.name),
                    };
                    node.find_secrets(is_secret || names_secret, found);
                }
            }
            _ => {}
        }
        if is_secret {
            let is_scalar = !matches!(self.value, Value::List(_) | Value::Map(_));
            found.push(FoundSecret { place, text: "", is_scalar });
        }
    }

    /// The place of the list that has an item at this place.
    pub(crate) fn list_around(&self, item: Place) -> Option<Place> {
        match &self.value {
            Value::List(nodes) if nodes.iter().any(|node| node.place == item) => Some(self.place),
            Value::List(nodes) => nodes.iter().find_map(|node| node.list_around(item)),
            Value::Map(pairs) => pairs.iter().find_map(|(_, node)| node.list_around(item)),
            _ => None,
        }
    }

    /// Reads as much of the value as possible: mistakes are left out of it. `None` if that does
    /// not help.
    pub(crate) fn read_rest<T: DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            match self.read() {
                Ok(value) => return Some(value),
                Err(problem) if !problem.place.is_some_and(|place| self.leave_out(place)) => {
                    return None;
                }
                Err(_) => {}
            }
        }
    }

    /// Removes the innermost pair or item whose key or value begins at the place.
    pub(crate) fn leave_out(&mut self, place: Place) -> bool {
        match &mut self.value {
            Value::Map(pairs) => {
                if pairs.iter_mut().any(|(_, node)| node.leave_out(place)) {
                    return true;
                }
                let found = pairs
                    .iter()
                    .position(|(key, _)| key.place == place)
                    .or_else(|| pairs.iter().position(|(_, node)| node.place == place));
                found.map(|index| pairs.remove(index)).is_some()
            }
            Value::List(nodes) => {
                if nodes.iter_mut().any(|node| node.leave_out(place)) {
                    return true;
                }
                let found = nodes.iter().position(|node| node.place == place);
                found.map(|index| nodes.remove(index)).is_some()
            }
            _ => false,
        }
    }

    /// The pairs of a mapping; `~` counts as an empty one.
    pub(crate) fn pairs(&self) -> Result<&[(Key, Node)], Problem> {
        match &self.value {
            Value::Map(pairs) => Ok(pairs),
            Value::Null | Value::Nothing => Ok(&[]),
            _ => Err(Problem::at(self.place, "a mapping (`key: value`) belongs here")),
        }
    }

    /// A hash of the value, in any place. It is equal for equal values with keys in any order, and
    /// ignores comments and layout. It covers replaced values, so that a changed secret shows
    /// without being kept.
    pub(crate) fn fingerprint(&self) -> u128 {
        let mut hasher = Xxh3Default::new();
        self.hash_into(&mut hasher);
        hasher.digest128()
    }

    fn hash_into(&self, hasher: &mut Xxh3Default) {
        let mut scalar = |kind: u8, bytes: &[u8]| {
            hasher.update(&[kind]);
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        match &self.value {
            Value::Null | Value::Nothing => scalar(0, &[]),
            Value::Bool(value) => scalar(1, &[u8::from(*value)]),
            Value::Int(value) => scalar(2, &value.to_le_bytes()),
            Value::Uint(value) => scalar(3, &value.to_le_bytes()),
            Value::Float(value) => scalar(4, &value.to_le_bytes()),
            Value::Text(text) => scalar(5, text.as_bytes()),
            // It tells the text too: braces are doubled, or they are not.
            Value::Replaced { literal, .. } => scalar(6, literal.as_bytes()),
            Value::List(nodes) => {
                scalar(7, &(nodes.len() as u64).to_le_bytes());
                for node in nodes {
                    node.hash_into(hasher);
                }
            }
            Value::Map(pairs) => {
                scalar(8, &(pairs.len() as u64).to_le_bytes());
                let mut pairs: Vec<_> = pairs.iter().collect();
                pairs.sort_by_key(|(key, _)| &key.name);
                for (key, node) in pairs {
                    hasher.update(&(key.name.len() as u64).to_le_bytes());
                    hasher.update(key.name.as_bytes());
                    node.hash_into(hasher);
                }
            }
        }
    }

    /// The place of the value at a path of keys and indices, or of the last part of it that is
    /// there.
    pub(crate) fn place_of(&self, path: &[&str]) -> Place {
        let Some((first, rest)) = path.split_first() else { return self.place };
        let inner = match &self.value {
            Value::Map(pairs) => pairs.iter().find(|(key, _)| key.name == *first).map(|(_, n)| n),
            Value::List(nodes) => first.parse::<usize>().ok().and_then(|index| nodes.get(index)),
            _ => None,
        };
        inner.map_or(self.place, |node| node.place_of(rest))
    }
}

/// Something that may be a secret.
struct FoundSecret<'a> {
    place: Place,
    /// Its text; empty of one that is no text.
    text: &'a str,
    /// It is a value, and neither a key nor a list or mapping.
    is_scalar: bool,
}

/// The problem with a text that cannot be parsed.
fn not_yaml(error: &serde_saphyr::Error, text: &str) -> Problem {
    const TABS: [&str; 4] = [
        "tabs disallowed",
        "tab cannot be used",
        "a block scalar content cannot start with a tab",
        "while scanning a plain scalar, found a tab",
    ];
    let place = error.location().map(Place::from);
    let problem = |message: String, help: Option<&str>| Problem {
        place,
        help: help.map(str::to_owned),
        ..Problem::unplaced(message)
    };
    if let serde_saphyr::Error::DuplicateMappingKey { key, .. } = error.without_snippet() {
        // A key may be a secret too; the line is shown without one.
        let is_shown = |key: &&String| {
            let line = place.map(|place| hide::shown(text, place.line, place.column).line);
            line.is_some_and(|line| line.contains(key.as_str()))
        };
        let message = match key.as_ref().filter(is_shown) {
            Some(key) => format!("the key `{key}` is here twice"),
            None => "a key is here twice".to_owned(),
        };
        return problem(message, Some("remove one"));
    }
    let message = error.without_snippet().to_string();
    if TABS.iter().any(|tab| message.starts_with(tab)) {
        let message = "this is not YAML: a tab cannot indent it".to_owned();
        let place = place.map(|place| indenting_tab(text, place).unwrap_or(place));
        return Problem { place, ..problem(message, Some("indent with spaces")) };
    }
    // The parser's message may quote a part of the line.
    if place.is_some_and(|place| hide::hides(text, place.line)) {
        let message = "this is not YAML, in a line that holds a secret".to_owned();
        let help = "put quotes around a value that contains one of :#&*!|>%@`{}[]";
        return problem(message, Some(help));
    }
    problem(format!("this is not YAML: {message}"), None)
}

/// The text with its `${…}` replaced, and the same for a template.
fn interpolated(text: &str) -> Result<(String, String), String> {
    let (mut out, mut literal) = (String::new(), String::new());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        let behind = from.get(2..).unwrap_or_default();
        if let Some(before) = before.strip_suffix('$') {
            for text in [&mut out, &mut literal] {
                text.push_str(before);
                text.push_str("${");
            }
            rest = behind;
            continue;
        }
        let (name, behind) = behind.split_once('}').ok_or("`${` without `}`")?;
        rest = behind;
        // A group of a pattern, and no variable's name.
        let is_group = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
        let value = match name.strip_prefix("file:") {
            _ if is_group => format!("${{{name}}}"),
            Some(path) => regular_file::read_text(Path::new(path), LONGEST_FILE)
                .map_err(|error| format!("cannot read {path} for ${{file:{path}}}: {error}"))?
                .trim_end_matches(['\n', '\r'])
                .to_owned(),
            None => std::env::var(name)
                .map_err(|_| format!("the environment variable {name} is not set"))?,
        };
        out += before;
        out += &value;
        literal += before;
        literal += &match is_group {
            true => value,
            false => value.replace('{', "{{").replace('}', "}}"),
        };
    }
    Ok((out + rest, literal + rest))
}

/// The first tab that indents a line, at a place or below: the parser tells of it where a value
/// before it ends.
fn indenting_tab(text: &str, from: Place) -> Option<Place> {
    let mut lines = (1..).zip(hide::lines_of(text)).skip(from.line.saturating_sub(1));
    let tab = |(number, line): (usize, &str)| {
        let indent = line.len() - line.trim_start().len();
        let column = line.get(..indent)?.find('\t')? + 1;
        Some(Place { line: number, column })
    };
    lines.find_map(tab)
}

impl From<Spanned<Value>> for Node {
    fn from(Spanned { value, referenced, defined }: Spanned<Value>) -> Self {
        // The parser has one value for `null` and for nothing, and the second has no text. That of
        // an alias is where its anchor is.
        let value = match value {
            Value::Null if defined.span().is_empty() => Value::Nothing,
            value => value,
        };
        Node { place: referenced.into(), value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> de::Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value).map_or(Value::Int(value), Value::Uint))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Uint(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = seq.next_element::<Spanned<Value>>()? {
            nodes.push(node.into());
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let place = key.referenced.into();
            let node = map.next_value::<Spanned<Value>>()?.into();
            pairs.push((Key { name: key.value, place }, node));
        }
        Ok(Value::Map(pairs))
    }
}

impl<'de> Deserializer<'de> for &Node {
    type Error = Problem;

    fn deserialize_any<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.value {
            Value::Null | Value::Nothing => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::Uint(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) | Value::Replaced { text, .. } => visitor.visit_str(text),
            Value::List(nodes) => visitor.visit_seq(Items { nodes: nodes.iter() }),
            Value::Map(pairs) => visitor.visit_map(Pairs { pairs: pairs.iter(), value: None }),
        }
        .map_err(|problem: Problem| problem.located(self.place))
    }

    fn deserialize_option<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.value {
            Value::Null | Value::Nothing => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: de::Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match &self.value {
            Value::Replaced { literal, .. } if name == TEMPLATE_TEXT => {
                let text = IntoDeserializer::<Problem>::into_deserializer(literal.as_str());
                visitor.visit_newtype_struct(text)
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: de::Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let result = match &self.value {
            Value::Text(text) | Value::Replaced { text, .. } => {
                visitor.visit_enum(text.as_str().into_deserializer())
            }
            _ => Err(Problem::at(self.place, "a single word belongs here")),
        };
        result.map_err(|problem| problem.located(self.place))
    }

    /// An empty value where a mapping belongs is a mapping without keys: `blackhole:` is one.
    /// `null` may be meant as none, which a section that has to be there cannot be.
    fn deserialize_struct<V: de::Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match self.value {
            Value::Nothing => visitor.visit_map(Pairs { pairs: [].iter(), value: None }),
            Value::Null => {
                let problem = Problem::at(self.place, "this section cannot be null");
                Err(problem.help("leave it out, or write `{}`, for its defaults"))
            }
            // The items would be taken for the values of its keys.
            Value::List(_) => Err(de::Error::invalid_type(de::Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
        .map_err(|problem: Problem| problem.located(self.place))
    }

    fn deserialize_u64<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.value {
            Value::Replaced { text, .. } if text.parse::<u64>().is_ok() => {
                visitor.visit_u64(text.parse().unwrap_or_default())
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_bool<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.value {
            Value::Replaced { text, .. } if text.parse::<bool>().is_ok() => {
                visitor.visit_bool(text == "true")
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_u16<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u32<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_u64(visitor)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'a> {
    nodes: std::slice::Iter<'a, Node>,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Problem> {
        let Some(node) = self.nodes.next() else { return Ok(None) };
        seed.deserialize(node).map(Some).map_err(|problem| problem.located(node.place))
    }
}

struct Pairs<'a> {
    pairs: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a Node>,
}

impl<'de> de::MapAccess<'de> for Pairs<'_> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Problem> {
        let Some((key, value)) = self.pairs.next() else { return Ok(None) };
        self.value = Some(value);
        let name = IntoDeserializer::<Problem>::into_deserializer(key.name.as_str());
        seed.deserialize(name).map(Some).map_err(|problem| problem.located(key.place))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        match self.value.take() {
            // A conversion behind the value (`try_from`) fails without knowing where.
            Some(node) => seed.deserialize(node).map_err(|problem| problem.located(node.place)),
            None => Err(de::Error::custom("a value was asked for before its key")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Server {
        host: String,
        #[serde(default)]
        port: Option<u16>,
        #[serde(default)]
        names: Vec<String>,
    }

    fn read(text: &str) -> Result<Server, Problem> {
        let mut node = Node::parse(text)?;
        let mut problems = Vec::new();
        node.interpolate(&mut problems);
        match problems.pop() {
            Some(problem) => Err(problem),
            None => node.read(),
        }
    }

    #[test]
    fn mistakes_below_names_that_look_like_secrets_are_told_without_the_secrets() {
        let text = "sinks: {tokens: {webhook: {url: http://h/hunter2, signature: {secret: hunter3}}, \
                    bdy: hunter4}, password: hunter5}";
        let root = Node::parse(text).unwrap();
        let place = |path: &[&str]| Some(root.place_of(path));
        let hidden = |place, message: &str| {
            let mut problem = Problem { place, ..de::Error::custom(message) };
            root.hide_secrets(&mut problem);
            problem.message
        };
        let url = place(&["sinks", "tokens", "webhook", "url"]);
        assert_eq!(hidden(url, "`minon` is not a field"), "`minon` is not a field");
        assert!(!hidden(url, "`http://h/hunter2` is wrong").contains("hunter2"));
        assert_eq!(hidden(place(&["sinks", "tokens", "bdy"]), "unknown"), "unknown");
        let secret = place(&["sinks", "tokens", "webhook", "signature", "secret"]);
        assert!(!hidden(secret, "hunter3").contains("hunter3"));
        assert!(!hidden(place(&["sinks", "password"]), "hunter5").contains("hunter5"));
    }

    #[test]
    fn a_rule_about_a_block_of_secrets_is_told() {
        let root = Node::parse("auth: {Hunter2: 1}").unwrap();
        let mut problem = Problem::at(root.place_of(&["auth"]), "`Hunter2` is no header");
        root.hide_secrets(&mut problem);
        assert_eq!(problem.message, "`auth`: `***` is no header");
        for text in ["auth: {user: hunter2, token: hunter3}", "auth:\n  user: hunter2\n  token: x"]
        {
            let root = Node::parse(text).unwrap();
            let hidden_of = |place, problem: Problem| {
                let mut problem = problem.located(place);
                root.hide_secrets(&mut problem);
                problem.message
            };
            let hidden = |place, message: &str| hidden_of(place, de::Error::custom(message));
            let block = root.place_of(&["auth"]);
            let rule = "write one of {user, password} and {token}";
            assert_eq!(hidden(block, rule), format!("`auth`: {rule}"), "{text}");
            assert_eq!(hidden(block, "not `hunter2`"), "`auth`: not `***`", "{text}");
            let wrong = de::Error::unknown_field("hunter4", &[]);
            assert!(!hidden_of(block, wrong).contains("hunter4"), "{text}");
            let wrong = de::Error::invalid_type(de::Unexpected::Unsigned(4711), &"a map");
            let said = hidden_of(block, wrong);
            assert!(said.contains("expected a mapping") && !said.contains("4711"), "{said}");
            let user = root.place_of(&["auth", "user"]);
            assert!(!hidden(user, "`4711` is no user").contains("4711"), "{text}");
        }
    }

    #[test]
    fn no_rule_is_broken_by_what_was_left_out() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            host: Option<String>,
        }
        #[derive(Debug, Deserialize)]
        #[serde(try_from = "Written")]
        #[expect(dead_code, reason = "it is read and not looked at")]
        struct Checked(String);
        impl TryFrom<Written> for Checked {
            type Error = &'static str;

            fn try_from(written: Written) -> Result<Self, Self::Error> {
                written.host.map(Checked).ok_or("there is no host")
            }
        }
        for (text, expected) in [
            ("{a: {hst: x}}", "unknown key `hst`"),
            ("a:\n  hst: x", "unknown key `hst`"),
            ("a: {host: [1]}", "invalid type: a list, expected a string"),
            ("a: {}", "there is no host"),
        ] {
            let mut problems = Vec::new();
            let read: Option<std::collections::BTreeMap<String, Checked>> =
                Node::parse(text).unwrap().read_noting(&mut problems);
            let messages: Vec<_> =
                problems.iter().map(|problem| problem.message.as_str()).collect();
            assert_eq!((read.is_none(), messages), (true, vec![expected]), "{text}");
        }
    }

    #[test]
    fn types_have_the_names_of_yaml() {
        for (text, message) in [
            ("3", "invalid type: integer `3`, expected a mapping"),
            ("[a]", "invalid type: a list, expected a mapping"),
            ("{host: {a: 1}}", "invalid type: a mapping, expected a string"),
            ("host:hunter2", "invalid type: a text, expected a mapping"),
            ("host=hunter2", "invalid type: a text, expected a mapping"),
            ("{host: a, names: b}", "invalid type: string \"b\", expected a list"),
        ] {
            assert_eq!(read(text).unwrap_err().message, message, "{text}");
        }
    }

    #[test]
    fn a_key_that_is_here_twice_and_a_tab_are_told_beside_a_secret_too() {
        for (text, line, message, help) in [
            ("host: a\nport: 1\nhost: b", 3, "the key `host` is here twice", "remove one"),
            ("token: a\ntoken: b", 2, "the key `token` is here twice", "remove one"),
            ("token: {hunter2: a, hunter2: b}", 1, "a key is here twice", "remove one"),
            (
                "http:\n\ttoken: a",
                2,
                "this is not YAML: a tab cannot indent it",
                "indent with spaces",
            ),
            (
                "http:\n\tlisten: a",
                2,
                "this is not YAML: a tab cannot indent it",
                "indent with spaces",
            ),
            (
                "http:\n  listen: a\n  \ttoken: b",
                3,
                "this is not YAML: a tab cannot indent it",
                "indent with spaces",
            ),
            (
                "token: @a",
                1,
                "this is not YAML, in a line that holds a secret",
                "put quotes around a value that contains one of :#&*!|>%@`{}[]",
            ),
        ] {
            let problem = Node::parse(text).unwrap_err();
            assert_eq!(problem.message, message, "{text}");
            assert_eq!(problem.help.as_deref(), Some(help), "{text}");
            assert_eq!(problem.place.unwrap().line, line, "{text}");
        }
    }

    #[test]
    fn what_is_put_into_a_template_is_no_template() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a{b}c{{\n").unwrap();
        let text = format!("'{{{{x}}}} ${{file:{}}} $${{1}}'", file.path().display());
        let mut node = Node::parse(&text).unwrap();
        node.interpolate(&mut Vec::new());
        let TemplateText(template) = node.read().unwrap();
        assert_eq!(template, "{{x}} a{{b}}c{{{{ ${1}");
        assert_eq!(node.read::<String>().unwrap(), "{{x}} a{b}c{{ ${1}");
        assert_eq!(Node::parse("'{x}'").unwrap().read::<TemplateText>().unwrap().0, "{x}");
    }

    #[test]
    fn the_line_of_a_mistake_is_shown_whatever_ends_the_lines() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["a: 1", "b: 2", "", "c: ]"].join(end);
            let problem = Node::parse(&text).unwrap_err();
            let shown = problem.render("x", &text);
            assert!(shown.contains("4 | c: ]"), "{end:?}: {shown}");
        }
    }

    #[test]
    fn reads_structs() {
        let server = read("host: a\nport: 1\nnames: [x, y]").unwrap();
        let names = vec!["x".to_owned(), "y".to_owned()];
        assert_eq!(server, Server { host: "a".into(), port: Some(1), names });
    }

    #[test]
    fn errors_point_at_the_value() {
        for (text, place, message) in [
            ("host: a\nprot: 1", (2, 1), "unknown key `prot`"),
            (
                "host: a\nport: many",
                (2, 7),
                "invalid type: string \"many\", expected a whole number from 0 to 65535",
            ),
            (
                "host: a\nport: 70000",
                (2, 7),
                "invalid value: integer `70000`, expected a whole number from 0 to 65535",
            ),
            (
                "host: a\nnames:\n  - x\n  - 3",
                (4, 5),
                "invalid type: integer `3`, expected a string",
            ),
            ("port: 3", (1, 1), "the key `host` is missing"),
            (
                "host: ${SALTERN_NOT_SET}",
                (1, 7),
                "the environment variable SALTERN_NOT_SET is not set",
            ),
            (
                "host: ${file:/nowhere}",
                (1, 7),
                "cannot read /nowhere for ${file:/nowhere}: No such file or directory (os error 2)",
            ),
        ] {
            let problem = read(text).unwrap_err();
            assert_eq!(problem.message, message);
            assert_eq!(problem.place, Some(Place { line: place.0, column: place.1 }), "{text}");
        }
        let help = read("host: a\nprot: 1").unwrap_err().help;
        assert_eq!(help.as_deref(), Some("did you mean `port`?"));
    }

    #[test]
    fn there_may_be_any_number_of_comments() {
        let text = format!("a:\n{}  b: 1\n", "  # none of these is of interest\n".repeat(500));
        assert_eq!(Node::parse(&text).unwrap().pairs().unwrap().len(), 1);
    }

    #[test]
    fn nothing_is_told_from_null_wherever_it_stands() {
        let is_null = |text: &str| {
            let node = Node::parse(text).unwrap();
            let (_, last) = node.pairs().unwrap().last().unwrap();
            match last.value {
                Value::Null => true,
                Value::Nothing => false,
                ref other => panic!("{text:?}: {other:?}"),
            }
        };
        for null in [
            "a: null",
            "a: ~",
            "a: Null # or so",
            "a:\n  NULL",
            "# one\r# two\ra: null",
            "b: 1\r\n\ra: ~\r",
            "{a: null}",
            "b: &none null\na: *none",
            "b: &none ~\n# null\na: *none",
            "a: &none null",
            "é: 'ü'\na: null",
            "\u{feff}a: null",
        ] {
            assert!(is_null(null), "{null:?}");
        }
        for nothing in [
            "a:",
            "a: # null",
            "a:\n# null",
            "b: ~\ra:\r# null",
            "# null\ra:",
            "{a: }",
            "{a}",
            "b: null\na: &none",
            "b: &none\na: *none",
        ] {
            assert!(!is_null(nothing), "{nothing:?}");
        }
    }

    #[test]
    fn many_nulls_on_a_line_cost_no_more_than_on_many() {
        let text = format!("[{}]", "null,".repeat(30_000));
        let Value::List(nodes) = Node::parse(&text).unwrap().value else { panic!("it is a list") };
        assert!(nodes.len() == 30_000 && nodes.iter().all(|n| matches!(n.value, Value::Null)));
    }

    #[test]
    fn what_is_no_yaml_says_where() {
        let problem = read("host: [a\nport: 1").unwrap_err();
        assert!(problem.message.starts_with("this is not YAML"), "{problem}");
        assert_eq!(problem.place.unwrap().line, 2);
    }

    #[test]
    fn a_problem_shows_its_line() {
        let text = "host: a\nprot: 1";
        let shown = read(text).unwrap_err().render("x.yaml", text);
        let expected = "error: unknown key `prot`\n --> x.yaml:2:1\n  |\n2 | prot: 1\n  | ^\n  = help: did you mean `port`?";
        assert_eq!(shown, expected);
    }

    #[test]
    fn replaced_text_may_be_a_number_and_hold_anything() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "4507\n").unwrap();
        let path = file.path().display();
        let server = read(&format!("host: 'a$${{b}}${{file:{path}}}'\nport: '${{file:{path}}}'"));
        let server = server.unwrap();
        assert_eq!((server.host.as_str(), server.port), ("a${b}4507", Some(4507)));
        std::fs::write(file.path(), "a: \"#b").unwrap();
        assert_eq!(read(&format!("host: ${{file:{path}}}")).unwrap().host, "a: \"#b");
    }
}
