//! The engines of a master: some hand its events to other systems, as saltern does.

use super::masked::{self, is_open, masked};
use super::master::Master;
use super::page::Page;
use super::python::{is_false, scalar};
use crate::yaml::{Node, Value};

/// The part that an engine has in events.
enum Doing {
    /// It hands events of the bus to another system.
    Exports(&'static str),
    /// It puts events onto the bus.
    Fires,
    /// It acts on events within the master.
    Reacts,
}

/// The engines of Salt 3006 to 3008.
const ENGINES: [(&str, Doing); 20] = [
    ("fluent", Doing::Exports("hands every event to fluentd")),
    ("http_logstash", Doing::Exports("posts events to Logstash over HTTP")),
    ("logentries", Doing::Exports("sends every event to Logentries")),
    ("logstash", Doing::Exports("sends every event to Logstash")),
    ("logstash_engine", Doing::Exports("sends every event to Logstash")),
    ("test", Doing::Exports("writes every event to the log of the master")),
    ("docker_events", Doing::Fires),
    ("ircbot", Doing::Fires),
    ("junos_syslog", Doing::Fires),
    ("libvirt_events", Doing::Fires),
    ("napalm_syslog", Doing::Fires),
    ("redis_sentinel", Doing::Fires),
    ("script", Doing::Fires),
    ("slack", Doing::Fires),
    ("slack_bolt", Doing::Fires),
    ("sqs_events", Doing::Fires),
    ("webhook", Doing::Fires),
    ("reactor", Doing::Reacts),
    ("stalekey", Doing::Reacts),
    ("thorium", Doing::Reacts),
];

/// Explains each engine.
pub(super) fn engines(master: &Master, page: &mut Page) {
    let Some(node) = master.get("engines") else { return };
    page.say("engines");
    let mut found = Vec::new();
    match &node.value {
        Value::List(nodes) => {
            for node in nodes {
                match &node.value {
                    // Salt takes the first pair of each.
                    Value::Map(pairs) => match pairs.as_slice() {
                        [] => {}
                        [(key, node), others @ ..] => {
                            found.push((key.name.clone(), Some(node)));
                            for (key, _) in others {
                                let name = name(&key.name);
                                page.line(0, &format!("# engines: {name} stands in one item with another; Salt leaves it out."));
                            }
                        }
                    },
                    _ => found.extend(scalar(node).map(|name| (name, None))),
                }
            }
        }
        Value::Map(pairs) => {
            found.extend(pairs.iter().map(|(key, node)| (key.name.clone(), Some(node))));
        }
        _ if is_false(node) => {}
        _ => page.line(
            0,
            &format!("# engines: {} is neither a list nor a mapping.", masked("engines", node)),
        ),
    }
    for (name, options) in found {
        engine(&name, options, page);
    }
}

fn engine(called: &str, options: Option<&Node>, page: &mut Page) {
    let pairs = options.and_then(|node| node.pairs().ok()).unwrap_or_default();
    // An engine may run under a name of the operator's own.
    let module = pairs.iter().find(|(key, _)| key.name == "engine_module");
    let module = module.and_then(|(_, node)| scalar(node)).unwrap_or_else(|| called.to_owned());
    let name = name(called);
    let shown_options = |page: &mut Page| {
        for (key, node) in pairs {
            page.line(0, &format!("#   {}: {}", masked::name(&key.name), masked(&key.name, node)));
        }
        if pairs.is_empty() {
            page.line(0, "#   (nothing)");
        }
        if let Some(node) = options.filter(|node| node.pairs().is_err()) {
            page.line(0, &format!("#   {}", masked(called, node)));
        }
    };
    match ENGINES.iter().find(|(known, _)| *known == module).map(|(_, doing)| doing) {
        Some(Doing::Exports(what)) => {
            page.line(
                0,
                &format!(
                    "# engines: {name} {what}. saltern does not replace it: keep it beside \
                     saltern. It is configured with:"
                ),
            );
            shown_options(page);
        }
        Some(Doing::Fires) => {
            page.line(
                0,
                &format!("# engines: {name} puts events onto the bus, where saltern reads them."),
            );
        }
        Some(Doing::Reacts) => {
            page.line(
                0,
                &format!("# engines: {name} acts within the master, and goes on doing so."),
            );
        }
        None => {
            page.line(
                0,
                &format!(
                    "# engines: {name} is none of Salt's own. If it hands events on, keep it \
                     beside saltern. It is configured with:"
                ),
            );
            shown_options(page);
        }
    }
}

/// The name of an engine as it may be printed.
fn name(name: &str) -> String {
    match is_open(name) {
        true => format!("`{name}`"),
        false => "one whose name may be a secret".to_owned(),
    }
}
