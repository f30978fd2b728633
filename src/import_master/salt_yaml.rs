//! YAML as Salt reads its configuration: YAML 1.1 with Salt's own rules for numbers and mappings.
//!
//! In it `yes` and `off` are truths, `1:30` is ninety and `1e3` is text. `0644` is 644, since Salt
//! takes leading zeros away. A mapping that has a key twice is a mistake. A test asks Salt itself.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use granit_parser::StructureStyle::Flow;
use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, Tag};

use super::{masked, python};
use crate::yaml::hide;
use crate::yaml::{Key, Node, Place, Problem, Value};

/// The most values of a file, with those behind aliases.
const MOST_VALUES: usize = 100_000;

/// The deepest nesting of values, with those behind aliases.
const DEEPEST: usize = 300;

/// The beginning of the tags of YAML itself.
const CORE: &str = "tag:yaml.org,2002:";

/// The memory that a value takes besides its text, in bytes.
const VALUE: usize = size_of::<(Key, Node)>();

/// The memory that files may take together, in bytes. A value counts again at each alias.
pub(super) struct Room {
    left: usize,
}

impl Room {
    /// The most that all files take.
    const MOST: usize = 128 << 20;
}

impl Default for Room {
    fn default() -> Self {
        Room { left: Room::MOST }
    }
}

/// The reason for not taking a file.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Salt does not take it either.
    BySalt(Problem),
    /// It is not read here, and Salt may read it.
    Here(Problem),
}

impl Refusal {
    pub(super) fn into_problem(self) -> Problem {
        let (Refusal::BySalt(problem) | Refusal::Here(problem)) = self;
        problem
    }

    /// The same without secrets.
    fn without_secrets(self, text: &str) -> Self {
        match self {
            Refusal::BySalt(problem) => Refusal::BySalt(without_secrets(problem, text)),
            Refusal::Here(problem) => Refusal::Here(without_secrets(problem, text)),
        }
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Refusal::BySalt(problem)
    }
}

/// Reads a file. One without content is an empty mapping, as for Salt.
pub(super) fn parse(text: &str, room: &mut Room) -> Result<Node, Refusal> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader::new(text, room);
    let node = reader.document().and_then(|node| Ok(reader.without_tabs().map(|()| node)?));
    let node = node.map_err(|refusal| refusal.without_secrets(text))?;
    match node.value {
        Value::Map(_) => Ok(node),
        _ if python::is_false(&node) => {
            Ok(Node { place: node.place, value: Value::Map(Vec::new()) })
        }
        _ => Err(Problem::at(node.place, "a mapping (`key: value`) belongs here")
            .help("Salt takes no other configuration")
            .into()),
    }
}

/// The parser quotes the text at which it stumbles, which may be a secret.
fn without_secrets(problem: Problem, text: &str) -> Problem {
    if problem.place.is_some_and(|place| hide::hides(text, place.line)) {
        let message = "this is not YAML as Salt reads it, in a line that holds a secret";
        return problem.saying(message);
    }
    problem
}

type Next<'a> = (Event<'a>, Span);
type Pairs = Vec<(Key, Node)>;

struct Reader<'a, 'b> {
    text: &'a str,
    events: Parser<'a, granit_parser::StrInput<'a>>,
    /// The nodes with an anchor.
    anchors: HashMap<usize, Anchored>,
    values: usize,
    /// The memory that the values take, in bytes.
    bytes: usize,
    room: &'b mut Room,
    /// The first and last lines of texts and brackets.
    spans: Vec<(usize, usize)>,
}

struct Anchored {
    node: Node,
    depth: usize,
    values: usize,
    bytes: usize,
}

impl<'a, 'b> Reader<'a, 'b> {
    fn new(text: &'a str, room: &'b mut Room) -> Self {
        let options = granit_parser::options! { emit_comments: false };
        let events = Parser::new_from_str_with_options(text, options);
        let anchors = HashMap::new();
        Reader { text, events, anchors, values: 0, bytes: 0, room, spans: Vec::new() }
    }

    fn next(&mut self) -> Result<Option<Next<'a>>, Refusal> {
        self.events.next_event().transpose().map_err(|error| self.not_yaml(&error))
    }

    /// The parser refuses tabs in places where Salt takes them, and brackets within many others.
    fn not_yaml(&self, error: &ScanError) -> Refusal {
        let problem = not_yaml(error);
        // The place of the mistake may be a line before or behind the tab.
        let before = error.marker().line().saturating_sub(2);
        let has_tab = hide::lines_of(self.text).skip(before).take(3).any(|l| l.contains('\t'));
        let is_limit = matches!(error.kind(), ErrorKind::RecursionLimitExceeded);
        if has_tab || is_limit { Refusal::Here(problem) } else { Refusal::BySalt(problem) }
    }

    fn document(&mut self) -> Result<Node, Refusal> {
        let mut found = None;
        while let Some((event, span)) = self.next()? {
            match event {
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                _ if found.is_some() => {
                    let message = "a second document begins here, and Salt takes one";
                    return Err(Problem::at(place(span), message).into());
                }
                event => found = Some(self.node(event, span, 0)?.0),
            }
        }
        Ok(found.unwrap_or(Node { place: Place::default(), value: Value::Null }))
    }

    /// An error for a line that begins with a tab, other than within a text or brackets. Salt takes
    /// no such line, even if nothing else is in it; the parser passes over some.
    fn without_tabs(&self) -> Result<(), Problem> {
        let mut covered: Vec<bool> = Vec::new();
        for (index, line) in hide::lines_of(self.text).enumerate() {
            if !line.starts_with('\t') {
                continue;
            }
            if covered.is_empty() {
                covered = self.covered();
            }
            if covered.get(index) != Some(&true) {
                let message = "this is not YAML as Salt reads it: the line begins with a tab";
                return Err(Problem::at(Place { line: index + 1, column: 1 }, message));
            }
        }
        Ok(())
    }

    /// Marks each line that is within a text or brackets that began on a line before.
    fn covered(&self) -> Vec<bool> {
        let mut covered = vec![false; hide::lines_of(self.text).count()];
        for (first, last) in &self.spans {
            if let Some(lines) = covered.get_mut(*first..*last) {
                lines.fill(true);
            }
        }
        covered
    }

    /// The node that begins with this event, and how deep it is.
    fn node(
        &mut self,
        event: Event<'a>,
        span: Span,
        above: usize,
    ) -> Result<(Node, usize), Refusal> {
        let place = place(span);
        let (values_before, bytes_before) = (self.values, self.bytes);
        let length = if let Event::Scalar(text, ..) = &event { text.len() } else { 0 };
        self.grow(1, VALUE + length, above, place)?;
        let (value, depth, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.spans.push((span.start.line(), span.end.line()));
                (scalar(&text, style, tag.as_deref(), place)?, 0, anchor)
            }
            Event::SequenceStart(style, anchor, tag) => {
                takes(tag.as_deref(), &["seq", "omap", "pairs"], place)?;
                let (nodes, depth, end) = self.list(above)?;
                self.spans.extend((style == Flow).then(|| (span.start.line(), end)));
                (Value::List(nodes), depth, anchor)
            }
            Event::MappingStart(style, anchor, tag) => {
                takes(tag.as_deref(), &["map", "set", "omap"], place)?;
                let (pairs, depth, end) = self.map(above)?;
                self.spans.extend((style == Flow).then(|| (span.start.line(), end)));
                (Value::Map(pairs), depth, anchor)
            }
            Event::Alias(id) => {
                let Some(Anchored { depth, values, bytes, .. }) = self.anchors.get(&id) else {
                    return Err(Problem::at(place, "this value holds itself").into());
                };
                let (depth, values, bytes) = (*depth, *values, *bytes);
                self.grow(values, bytes, above + depth, place)?;
                let value = self.anchors.get(&id).map(|anchored| anchored.node.value.clone());
                return Ok((Node { place, value: value.unwrap_or(Value::Null) }, depth));
            }
            _ => return Err(Problem::at(place, "this is not YAML: no value is here").into()),
        };
        let node = Node { place, value };
        if anchor > 0 {
            let (values, bytes) = (self.values - values_before, self.bytes - bytes_before);
            // An alias copies from a copy.
            self.take(bytes, place)?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), depth, values, bytes });
        }
        Ok((node, depth))
    }

    /// Counts values that take so many bytes, the deepest at this depth.
    fn grow(
        &mut self,
        values: usize,
        bytes: usize,
        depth: usize,
        place: Place,
    ) -> Result<(), Refusal> {
        self.values = self.values.saturating_add(values);
        if self.values > MOST_VALUES {
            let message = format!("the file has more than {MOST_VALUES} values");
            return Err(Refusal::Here(Problem::at(place, message)));
        }
        if depth > DEEPEST {
            let message = format!("more than {DEEPEST} values stand within each other here");
            return Err(Refusal::Here(Problem::at(place, message)));
        }
        self.take(bytes, place)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Takes memory out of the room.
    fn take(&mut self, bytes: usize, place: Place) -> Result<(), Refusal> {
        let Some(left) = self.room.left.checked_sub(bytes) else {
            let most = Room::MOST >> 20;
            let message =
                format!("the values are more than {most} MiB together, with all aliases expanded");
            return Err(Refusal::Here(Problem::at(place, message)));
        };
        self.room.left = left;
        Ok(())
    }

    /// The values of a list, how deep they are, and the line where they end.
    fn list(&mut self, above: usize) -> Result<(Vec<Node>, usize, usize), Refusal> {
        let (mut nodes, mut deepest, mut end) = (Vec::new(), 0, 0);
        while let Some((event, span)) = self.next()? {
            end = span.end.line();
            if matches!(event, Event::SequenceEnd) {
                break;
            }
            let (node, depth) = self.node(event, span, above + 1)?;
            deepest = deepest.max(depth + 1);
            nodes.push(node);
        }
        Ok((nodes, deepest, end))
    }

    /// The pairs of a mapping, how deep they are, and the line where they end.
    fn map(&mut self, above: usize) -> Result<(Pairs, usize, usize), Refusal> {
        let (mut pairs, mut merged, mut deepest, mut end) = (Vec::new(), Vec::new(), 0, 0);
        while let Some((event, span)) = self.next()? {
            end = span.end.line();
            if matches!(event, Event::MappingEnd) {
                break;
            }
            if matches!(&event, Event::Scalar(_, ScalarStyle::Plain, 0, None)) && span.is_empty() {
                return Err(Problem::at(place(span), "a key is missing in front of `:`").into());
            }
            let is_merge = matches!(
                &event,
                Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<"
            );
            let (key, _) = self.node(event, span, above + 1)?;
            let Some((event, span)) = self.next()? else { break };
            let (node, depth) = self.node(event, span, above + 1)?;
            deepest = deepest.max(depth + 1);
            if is_merge {
                merged.extend(merge_of(node)?);
                continue;
            }
            let Some(name) = python::scalar(&key).or_else(|| {
                matches!(key.value, Value::Null | Value::Nothing).then(|| "null".to_owned())
            }) else {
                return Err(Problem::at(key.place, "a key is a single word or number").into());
            };
            pairs.push((Key { name, place: key.place }, node));
        }
        let own: HashSet<_> = pairs.iter().map(|(key, _): &(Key, Node)| key.name.clone()).collect();
        merged.retain(|(key, _): &(Key, Node)| !own.contains(&key.name));
        merged.append(&mut pairs);
        let mut seen = HashSet::new();
        if let Some((key, _)) = merged.iter().find(|(key, _)| !seen.insert(key.name.as_str())) {
            let message = format!("the key `{}` is here twice", masked::name(&key.name));
            return Err(Problem::at(key.place, message)
                .help("Salt takes no mapping with a key twice")
                .into());
        }
        Ok((merged, deepest, end))
    }
}

/// An error for a tag that Salt does not know on a value of this kind.
fn takes(tag: Option<&Tag>, known: &[&str], place: Place) -> Result<(), Problem> {
    match tag.map(name_of) {
        Some(tag) if tag != "!" && !known.contains(&tag.as_ref()) => Err(unknown_tag(place)),
        _ => Ok(()),
    }
}

/// The pairs that `<<` brings into a mapping; of a list the last one comes first, as in Salt.
fn merge_of(node: Node) -> Result<Vec<(Key, Node)>, Problem> {
    match node.value {
        Value::Map(pairs) => Ok(pairs),
        Value::List(nodes) => {
            let mut pairs = Vec::new();
            for node in nodes.into_iter().rev() {
                match node.value {
                    Value::Map(inner) => pairs.extend(inner),
                    _ => return Err(Problem::at(node.place, "`<<` takes mappings")),
                }
            }
            Ok(pairs)
        }
        _ => Err(Problem::at(node.place, "`<<` takes mappings")),
    }
}

fn not_yaml(error: &ScanError) -> Problem {
    let mark = error.marker();
    let place = Place { line: mark.line(), column: mark.col() + 1 };
    Problem::at(place, format!("this is not YAML: {}", error.info()))
}

fn place(span: Span) -> Place {
    Place { line: span.start.line(), column: span.start.col() + 1 }
}

/// A tag without the prefix of YAML's own tags; `!` alone stands for itself.
fn name_of(tag: &Tag) -> Cow<'_, str> {
    let (handle, suffix) = tag.parts();
    match format!("{handle}{suffix}").strip_prefix(CORE) {
        Some(name) => name.to_owned().into(),
        None => format!("{handle}{suffix}").into(),
    }
}

fn unknown_tag(place: Place) -> Problem {
    Problem::at(place, "Salt knows no tag like this one".to_owned())
}

fn scalar(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    place: Place,
) -> Result<Value, Problem> {
    let as_text = || Value::Text(text.to_owned());
    let wrong = |what: &str| Problem::at(place, format!("the tag says {what}, and this is none"));
    // A `!` alone has no meaning, unlike in YAML 1.2.
    let Some(tag) = tag.map(name_of).filter(|tag| tag != "!") else {
        return match style {
            ScalarStyle::Plain if text == "=" => Err(unknown_tag(place)),
            ScalarStyle::Plain => Ok(plain(text)),
            _ => Ok(as_text()),
        };
    };
    match tag.as_ref() {
        "str" | "timestamp" | "binary" | "python/unicode" | "python/str" => Ok(as_text()),
        "null" => Ok(Value::Null),
        "bool" => truth(text).map(Value::Bool).ok_or_else(|| wrong("a truth")),
        "int" => whole(text).ok_or_else(|| wrong("a whole number")),
        "float" => fraction(text)
            .or_else(|| text.parse().ok())
            .map(Value::Float)
            .ok_or_else(|| wrong("a number")),
        _ => Err(unknown_tag(place)),
    }
}

/// The value of a text without quotes.
fn plain(text: &str) -> Value {
    if matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    if let Some(truth) = truth(text) {
        return Value::Bool(truth);
    }
    whole(text)
        .or_else(|| fraction(text).map(Value::Float))
        .unwrap_or_else(|| Value::Text(text.to_owned()))
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Some(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

fn whole(text: &str) -> Option<Value> {
    // Salt takes the zeros away only if there is no sign before them.
    let bare = match text.trim_start_matches('0') {
        _ if text.starts_with("0b") || text.starts_with("0x") => text,
        "" => "0",
        bare => bare,
    };
    let is_octal = |text: &str| text.chars().all(|c| matches!(c, '0'..='7' | '_'));
    if text.len() > 1 && text.starts_with('0') && bare != text && !is_octal(text) {
        return None;
    }
    let (is_negative, digits) = match bare.strip_prefix(['-', '+']) {
        Some(digits) => (bare.starts_with('-'), digits),
        None => (false, bare),
    };
    let parse = |digits: &str, radix| {
        let digits = digits.replace('_', "");
        i128::from_str_radix(&digits, radix).ok().filter(|_| !digits.starts_with(['-', '+']))
    };
    let number = if let Some(binary) = digits.strip_prefix("0b") {
        parse(binary, 2)?
    } else if let Some(hex) = digits.strip_prefix("0x") {
        parse(hex, 16)?
    } else if digits.len() > 1 && digits.starts_with('0') {
        parse(digits, 8)?
    } else if digits.contains(':') {
        sixties(digits).filter(|_| !digits.starts_with('0'))?
    } else {
        // A number that began with a zero may go on with a line: `0_7`.
        let begins = digits.starts_with(|c: char| c.is_ascii_digit() || bare != text && c == '_');
        parse(digits, 10).filter(|_| begins)?
    };
    let number = if is_negative { -number } else { number };
    Some(match (u64::try_from(number), i64::try_from(number)) {
        (Ok(number), _) => Value::Uint(number),
        (_, Ok(number)) => Value::Int(number),
        _ => Value::Text(number.to_string()),
    })
}

/// A number to the base of sixty: `1:30` is ninety.
fn sixties(digits: &str) -> Option<i128> {
    let mut parts = digits.split(':');
    let first = parts.next().filter(|first| first.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut number: i128 = first.replace('_', "").parse().ok()?;
    for part in parts {
        let is_part = matches!(part.len(), 1 | 2) && part.bytes().all(|c| c.is_ascii_digit());
        let part: i128 = part.parse().ok().filter(|part| is_part && *part < 60)?;
        number = number.checked_mul(60)?.checked_add(part)?;
    }
    Some(number)
}

/// A number with a point; an exponent needs its sign.
fn fraction(text: &str) -> Option<f64> {
    let (sign, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (if text.starts_with('-') { -1.0 } else { 1.0 }, digits),
        None => (1.0, text),
    };
    match digits {
        ".inf" | ".Inf" | ".INF" => return Some(sign * f64::INFINITY),
        ".nan" | ".NaN" | ".NAN" if digits == text => return Some(f64::NAN),
        _ => {}
    }
    let (number, behind) = digits.split_once('.')?;
    let of = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_digit() || more.contains(c));
    if number.contains(':') {
        let number = sixties(number)?;
        let behind: f64 = format!("0.{behind}0").replace('_', "").parse().ok()?;
        #[expect(clippy::cast_precision_loss, reason = "Salt loses it as well")]
        return Some(sign * (number as f64 + behind));
    }
    let (behind, exponent) = match behind.split_once(['e', 'E']) {
        Some((behind, exponent)) => {
            let digits = exponent.strip_prefix(['-', '+'])?;
            (behind, Some(exponent).filter(|_| !digits.is_empty() && of(digits, ""))?)
        }
        None => (behind, "+0"),
    };
    let begins = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    let is_number = match number.is_empty() {
        true => begins(behind) && digits == text,
        false => begins(number),
    };
    if !is_number || !of(number, "_") || !of(behind, "_") {
        return None;
    }
    let number: f64 = format!("{number}.{behind}0e{exponent}").replace('_', "").parse().ok()?;
    Some(sign * number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Node, Problem> {
        super::parse(text, &mut Room::default()).map_err(Refusal::into_problem)
    }

    fn value(text: &str) -> String {
        match parse(&format!("a: {text}")) {
            Ok(Node { value: Value::Map(pairs), .. }) => match pairs.into_iter().next() {
                Some((_, node)) => format!("{:?}", node.value),
                None => "nothing".to_owned(),
            },
            Ok(_) => "no mapping".to_owned(),
            Err(problem) => problem.message,
        }
    }

    #[test]
    fn values() {
        for (text, expected) in [
            ("yes", "Bool(true)"),
            ("Off", "Bool(false)"),
            ("y", "Text(\"y\")"),
            ("'yes'", "Text(\"yes\")"),
            ("!!str yes", "Text(\"yes\")"),
            ("0644", "Uint(644)"),
            ("-0644", "Int(-420)"),
            ("0o644", "Text(\"0o644\")"),
            ("089", "Text(\"089\")"),
            ("00", "Uint(0)"),
            ("1:30", "Uint(90)"),
            ("1:60", "Text(\"1:60\")"),
            ("1_000", "Uint(1000)"),
            ("0x1F", "Uint(31)"),
            ("0b11", "Uint(3)"),
            ("1e3", "Text(\"1e3\")"),
            ("1.5e+3", "Float(1500.0)"),
            ("5.", "Float(5.0)"),
            ("1:30.5", "Float(90.5)"),
            ("2026-01-02", "Text(\"2026-01-02\")"),
            ("~", "Null"),
            ("", "Null"),
            ("!!python/object:x {}", "Salt knows no tag like this one"),
            ("!vault x", "Salt knows no tag like this one"),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn files_without_content_are_empty_and_others_are_not_taken() {
        for text in ["", "\u{feff}", "# a\n", "---\n", "--- ~\n...\n", "[]", "''"] {
            let node = parse(text).unwrap();
            assert!(matches!(node.value, Value::Map(pairs) if pairs.is_empty()), "{text}");
        }
        for (text, expected) in [
            ("- a", "a mapping"),
            ("a: 1\na: 2", "the key `a` is here twice"),
            ("a: 1\n---\nb: 2", "a second document"),
            ("a: *b", "this is not YAML"),
            ("a: &a [*a]", "this value holds itself"),
            ("a: {b", "this is not YAML"),
            ("a:\n\t- b", "this is not YAML"),
            ("a: 1\n\t\nb: 2", "the line begins with a tab"),
            ("\t# a\nb: 2", "the line begins with a tab"),
            ("? [a]\n: b", "a key is a single word"),
            ("<<: 1", "`<<` takes mappings"),
            ("password: hunter2\npassword: hunter2", "a line that holds a secret"),
        ] {
            let message = parse(text).unwrap_err().message;
            assert!(message.contains(expected), "{text}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn tabs_within_texts_and_brackets_are_taken() {
        for text in ["a: |\n  b\n  \tc\n", "a: [b,\n\tc]\n"] {
            assert!(parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn aliases_do_not_grow_without_end() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..9 {
            let before = format!("*a{}, ", n - 1).repeat(10);
            text += &format!("a{n}: &a{n} [{before}]\n");
        }
        assert!(parse(&text).unwrap_err().message.contains("values"));
        let mut text = format!("a0: &a0 {}x{}\n", "[".repeat(200), "]".repeat(200));
        text += &format!("a1: {}*a0{}\n", "[".repeat(200), "]".repeat(200));
        assert!(parse(&text).unwrap_err().message.contains("stand within each other"));
    }

    #[test]
    fn aliases_of_a_long_text_do_not_fill_the_memory() {
        let long = "x".repeat(3 << 20);
        let text = format!("a: &a {long}\nb: [{}]\n", "*a, ".repeat(90_000));
        let refusal = super::parse(&text, &mut Room::default()).unwrap_err();
        assert!(matches!(refusal, Refusal::Here(_)), "{refusal:?}");
        let message = refusal.into_problem().message;
        assert!(message.contains("more than 128 MiB"), "{message}");
    }

    #[test]
    fn anchors_within_each_other_do_not_fill_the_memory() {
        let nested = (0..200).map(|n| format!("&a{n} [")).collect::<Vec<_>>().concat();
        let long = "x".repeat(3 << 20);
        let text = format!("a: {nested}{long}{}\n", "]".repeat(200));
        assert!(parse(&text).unwrap_err().message.contains("more than 128 MiB"));
        // Short ones may stand within each other.
        let text = format!("a: {nested}x{}\n", "]".repeat(200));
        assert!(parse(&text).is_ok());
    }

    #[test]
    fn files_have_one_room_together() {
        let mut room = Room { left: 5 << 19 };
        let text = format!("a: {}\n", "x".repeat(1 << 20));
        assert!(super::parse(&text, &mut room).is_ok());
        assert!(super::parse(&text, &mut room).is_ok());
        assert!(super::parse(&text, &mut room).is_err());
    }

    #[test]
    fn a_refusal_says_whose_it_is() {
        let is_by_salt = |text: &str| {
            matches!(super::parse(text, &mut Room::default()).unwrap_err(), Refusal::BySalt(_))
        };
        for text in ["a: {b", "a: 1\na: 2", "- a", "\t# a\nb: 2", "a: &a [*a]"] {
            assert!(is_by_salt(text), "{text}");
        }
        let deep = format!("a: {}{}\n", "[".repeat(400), "]".repeat(400));
        for text in ["a: [\n\tb]\n", "a: \"x\n\ty\"\n", deep.as_str()] {
            assert!(!is_by_salt(text), "{text}");
        }
    }

    #[test]
    fn mappings_are_merged() {
        let node = parse("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n").unwrap();
        let Value::Map(pairs) = &node.value else { panic!() };
        let Value::Map(inner) = &pairs.last().unwrap().1.value else { panic!() };
        let inner: Vec<_> =
            inner.iter().map(|(key, node)| format!("{} {:?}", key.name, node.value)).collect();
        assert_eq!(inner, ["x Uint(1)", "y Uint(3)"]);
    }
}
