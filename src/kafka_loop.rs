//! Notices a daemon that would read from Kafka what it has written there itself, and write that
//! again, for ever.
//!
//! Looked for is the obvious case: a sink's topic by its name among a source's topics, and a broker
//! that both name. Regular expressions, templates of topics, and two names of one broker are the
//! operator's to keep apart.

use serde::Deserialize;

use crate::yaml::{Key, Node, Problem, Value};

/// What both kinds say of themselves. Whatever else they say, and mistakes, are no business of
/// this.
#[derive(Deserialize)]
struct Entry {
    brokers: Vec<String>,
    #[serde(default)]
    topic: Option<String>,
    #[serde(default)]
    topics: Vec<String>,
}

/// The problems of this kind in a whole configuration.
pub(crate) fn problems(root: &Node) -> Vec<Problem> {
    let sinks: Vec<_> = entries(root, "sinks").collect();
    let mut problems = Vec::new();
    for (source, node, reads) in entries(root, "sources") {
        for (sink, _, writes) in &sinks {
            let Some(topic) = &writes.topic else { continue };
            let Some(index) = reads.topics.iter().position(|read| read == topic) else { continue };
            if !reads.brokers.iter().any(|broker| writes.brokers.contains(broker)) {
                continue;
            }
            let place = node.place_of(&["topics", &index.to_string()]);
            let (source, sink) = (&source.name, &sink.name);
            let message = format!("`{source}` reads the topic `{topic}`, which `{sink}` writes");
            let help = "events would go round for ever; let one daemon write and another read";
            problems.push(Problem::at(place, message).help(help));
        }
    }
    problems
}

/// The entries of kind `kafka` in a section.
fn entries<'a>(
    root: &'a Node,
    section: &'a str,
) -> impl Iterator<Item = (&'a Key, &'a Node, Entry)> {
    let pairs_of = |node: &'a Node| match &node.value {
        Value::Map(pairs) => pairs.as_slice(),
        _ => &[],
    };
    let under = move |node, name: &'a str| {
        pairs_of(node).iter().filter(move |(key, _)| key.name == name).map(|(_, node)| node)
    };
    let names = under(root, section).flat_map(pairs_of);
    names.flat_map(move |(name, entry)| {
        under(entry, "kafka").filter_map(move |node| Some((name, node, node.read().ok()?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(source: &str, sink: &str) -> Vec<(usize, String)> {
        let text =
            format!("sources:\n  in: {{kafka: {source}}}\nsinks:\n  out: {{kafka: {sink}}}\n");
        let problems = problems(&Node::parse(&text).unwrap());
        problems.into_iter().map(|p| (p.place.unwrap().column, p.message)).collect()
    }

    #[test]
    fn a_topic_that_is_read_is_not_written() {
        let source = "{brokers: ['a:1', 'b:1'], topics: [x, salt.events], group: g}";
        let loops = found(source, "{brokers: ['b:1'], topic: salt.events, key: jid}");
        let message = "`in` reads the topic `salt.events`, which `out` writes".to_owned();
        assert_eq!(loops, [(53, message)]);
        for sink in [
            "{brokers: ['b:1'], topic: salt.other}",
            "{brokers: ['c:1'], topic: salt.events}",
            "{brokers: b, topic: salt.events}",
            "~",
        ] {
            assert_eq!(found(source, sink), [], "{sink}");
        }
    }
}
