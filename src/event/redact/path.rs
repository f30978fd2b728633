//! A part of JSONPath: paths from the top of a payload, followed step by step while it is walked.
//!
//! A path is `$` and steps down from there: `.name` or `['name']` into a map, `[3]` into an array,
//! `.*` or `[*]` into everything, `..name`, `..*` and `..[3]` into it at any depth. Names match
//! whole and exactly; for a key that is no text they mean its JSON (`1`, `true`, `null`).
//!
//! The steps of all paths stand in one list. A set of places in that list says how far each path
//! has come on the way to a value. It takes no more than the list does, however deep the value is.

/// All paths of some rules.
#[derive(Debug, Default)]
pub(super) struct Paths {
    steps: Vec<Step>,
    /// The first step of each path, and the rule that it belongs to.
    starts: Vec<(usize, usize)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    takes: Takes,
    /// It may be any number of levels further down.
    descends: bool,
    /// The rule, if the path ends with this step.
    ends: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Takes {
    All,
    Name(Vec<u8>),
    Index(u64),
}

/// The way from a value to one that is in it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Edge<'a> {
    /// Under a key with this text.
    Name(&'a [u8]),
    /// Under a key of which the text is not known.
    Unnamed,
    /// At this place of an array, from 0.
    Index(u64),
}

impl Takes {
    fn takes(&self, edge: Edge<'_>) -> bool {
        match (self, edge) {
            (Takes::All, _) => true,
            (Takes::Name(name), Edge::Name(key)) => name == key,
            (Takes::Index(index), Edge::Index(place)) => *index == place,
            _ => false,
        }
    }
}

impl Paths {
    /// Adds a path of a rule; the error names the mistake in the path.
    pub(super) fn add(&mut self, path: &str, rule: usize) -> Result<(), String> {
        let mut steps = parse(path).map_err(|why| format!("`{path}` is no path: {why}"))?;
        if let Some(last) = steps.last_mut() {
            last.ends = Some(rule);
        }
        self.starts.push((self.steps.len(), rule));
        self.steps.append(&mut steps);
        Ok(())
    }

    /// The places at the top of a payload, of the paths whose rules are asked.
    pub(super) fn at_top(&self, is_asked: impl Fn(usize) -> bool) -> Vec<usize> {
        let asked = self.starts.iter().filter(|(_, rule)| is_asked(*rule));
        asked.map(|(start, _)| *start).collect()
    }

    /// Goes one level down from a value whose places are those of `places` from `from` on. Appends
    /// the places at the value there; returns the first rule with a path that ends at it.
    pub(super) fn follow(
        &self,
        places: &mut Vec<usize>,
        from: usize,
        edge: Edge<'_>,
    ) -> Option<usize> {
        let end = places.len();
        let mut found: Option<usize> = None;
        for at in from..end {
            let Some(&place) = places.get(at) else { break };
            let Some(step) = self.steps.get(place) else { continue };
            if step.descends {
                add(places, end, place);
            }
            if step.takes.takes(edge) {
                match step.ends {
                    Some(rule) => found = Some(found.map_or(rule, |other| other.min(rule))),
                    None => add(places, end, place + 1),
                }
            }
        }
        found
    }
}

/// Appends a place that is not among those from `from` on.
fn add(places: &mut Vec<usize>, from: usize, place: usize) {
    if !places.iter().skip(from).any(|known| *known == place) {
        places.push(place);
    }
}

fn parse(path: &str) -> Result<Vec<Step>, String> {
    let mut rest = path.strip_prefix('$').ok_or("it does not begin with `$`")?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let (takes, descends, behind) = step(rest)?;
        steps.push(Step { takes, descends, ends: None });
        rest = behind;
    }
    if steps.is_empty() { Err("there is nothing behind `$`".to_owned()) } else { Ok(steps) }
}

/// The step at the front, whether it descends, and the rest of the path.
fn step(rest: &str) -> Result<(Takes, bool, &str), String> {
    let (descends, named) = match rest.strip_prefix("..") {
        Some(named) => (true, Some(named)),
        None => (false, rest.strip_prefix('.')),
    };
    let bracket = named.filter(|_| descends).unwrap_or(rest).strip_prefix('[');
    let (takes, behind) = match (bracket, named) {
        (Some(inside), _) => bracketed(inside)?,
        (None, Some(name)) => dotted(name)?,
        (None, None) => return Err(format!("`.` or `[` belongs in front of `{rest}`")),
    };
    Ok((takes, descends, behind))
}

fn dotted(rest: &str) -> Result<(Takes, &str), String> {
    let (name, behind) = rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()));
    match name {
        "" => Err("there is no name behind `.`".to_owned()),
        "*" => Ok((Takes::All, behind)),
        _ if name.contains(['*', ']', '\'', '"']) => {
            Err(format!("`{name}` is no plain name; write `['{name}']` if it is meant so"))
        }
        _ => Ok((Takes::Name(name.into()), behind)),
    }
}

fn bracketed(inside: &str) -> Result<(Takes, &str), String> {
    let unclosed = || "a `]` is missing".to_owned();
    if let Some(quote) = inside.chars().next().filter(|first| ['\'', '"'].contains(first)) {
        let (name, behind) = quoted(inside.get(1..).unwrap_or_default(), quote)?;
        return Ok((Takes::Name(name.into()), behind.strip_prefix(']').ok_or_else(unclosed)?));
    }
    let (inner, behind) = inside.split_once(']').ok_or_else(unclosed)?;
    let takes = match inner {
        "*" => Takes::All,
        index => Takes::Index(index.parse().map_err(|_| {
            format!("`[{index}]` is neither a place from 0 on, nor `[*]`, nor a name in quotes")
        })?),
    };
    Ok((takes, behind))
}

/// The text up to the quote, without its backslashes, and the text behind the quote.
fn quoted(text: &str, quote: char) -> Result<(String, &str), String> {
    let mut name = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => name.extend(chars.next()),
            c if c == quote => return Ok((name, chars.as_str())),
            c => name.push(c),
        }
    }
    Err(format!("a quote ({quote}) is missing"))
}

#[cfg(test)]
mod tests {
    use crate::event::redact::path::*;

    #[test]
    fn paths_are_what_json_path_says() {
        let name = |name: &str| Takes::Name(name.into());
        for (path, expected) in [
            ("$.return.secrets", vec![(name("return"), false), (name("secrets"), false)]),
            ("$['a.b'][\"c\\\"d\"]", vec![(name("a.b"), false), (name("c\"d"), false)]),
            (
                "$.fun_args[*].pw",
                vec![(name("fun_args"), false), (Takes::All, false), (name("pw"), false)],
            ),
            ("$.*[12]", vec![(Takes::All, false), (Takes::Index(12), false)]),
            ("$..pw..[0]", vec![(name("pw"), true), (Takes::Index(0), true)]),
            ("$..*", vec![(Takes::All, true)]),
        ] {
            let steps = parse(path).unwrap();
            let steps: Vec<_> = steps.into_iter().map(|step| (step.takes, step.descends)).collect();
            assert_eq!(steps, expected, "{path}");
        }
        for (path, why) in [
            ("return.x", "it does not begin with `$`"),
            ("$", "there is nothing behind `$`"),
            ("$.", "there is no name behind `.`"),
            ("$.a..", "there is no name behind `.`"),
            ("$return", "`.` or `[` belongs in front of `return`"),
            ("$.a[1", "a `]` is missing"),
            ("$.a['b", "a quote (') is missing"),
            ("$.a['b'", "a `]` is missing"),
            ("$.a[-1]", "`[-1]` is neither a place from 0 on, nor `[*]`, nor a name in quotes"),
            ("$.*pw*", "`*pw*` is no plain name; write `['*pw*']` if it is meant so"),
        ] {
            assert_eq!(parse(path), Err(why.to_owned()), "{path}");
        }
    }
}
