//! Salt's returners, and where each reads its options.

use super::{Master, quoted, scalar};
use crate::sink;
use crate::yaml::{Node, Value};

/// One of Salt's returners.
pub(super) struct Returner {
    /// Its name, and other names that Salt knows it by.
    pub(super) name: &'static str,
    aliases: &'static [&'static str],
    /// What stands in front of its options, with a point between or as a mapping.
    pub(super) sections: &'static [&'static str],
    /// Whether `event_return` can name it.
    pub(super) stores_events: bool,
    /// The options that the sink of the same name takes under the same name. `None` where there is
    /// no such sink.
    carried: Option<&'static [&'static str]>,
    /// Why it is not carried over where it is not.
    why_not: &'static str,
}

const NO_SINK: &str = "saltern has no sink of this kind yet; its options carry over once it has.";
const OTHER_OPTIONS: &str =
    "saltern has a sink of this kind, whose options have names of their own (`saltern schema`).";
const NOTICES: &str = "It sends notices to people, for which saltern has no sink yet.";
const INSTEAD: &str = "Use `saltern` in its place on the master, and a sink for each store here.";

const fn store(
    name: &'static str,
    sections: &'static [&'static str],
    stores_events: bool,
) -> Returner {
    Returner { name, aliases: &[], sections, stores_events, carried: None, why_not: NO_SINK }
}

const fn notices(
    name: &'static str,
    sections: &'static [&'static str],
    stores_events: bool,
) -> Returner {
    Returner { name, aliases: &[], sections, stores_events, carried: None, why_not: NOTICES }
}

const fn carried(
    name: &'static str,
    stores_events: bool,
    options: &'static [&'static str],
    sections: &'static [&'static str],
) -> Returner {
    let why_not = "An option that the sink cannot do without is missing.";
    Returner { name, aliases: &[], sections, stores_events, carried: Some(options), why_not }
}

/// All returners of Salt 3006 to 3008.
pub(super) const RETURNERS: &[Returner] = &[
    carried("rawfile_json", true, &["filename"], &["rawfile_json"]),
    carried("sqlite3", false, &["database", "timeout"], &["sqlite3"]),
    carried("local", true, &[], &[]),
    store("mysql", &["mysql"], true),
    store("pgjsonb", &["returner.pgjsonb"], true),
    store("postgres", &["returner.postgres"], true),
    store("postgres_local_cache", &["master_job_cache.postgres"], true),
    store("odbc", &["returner.odbc"], false),
    Returner { aliases: &["redis_return"], ..store("redis", &["redis"], false) },
    store("elasticsearch", &["elasticsearch"], true),
    Returner { aliases: &["mongo_return", "mongodb"], ..store("mongo", &["mongo"], true) },
    Returner { aliases: &["cassandra"], ..store("cassandra_cql", &["cassandra"], true) },
    store("couchbase", &["couchbase"], false),
    store("couchdb", &["couchdb"], false),
    store("etcd", &["etcd"], false),
    store("influxdb", &["influxdb"], false),
    store("memcache", &["memcache"], false),
    store("carbon", &["carbon"], true),
    store("kafka", &["returner.kafka"], false),
    store("splunk", &["splunk_http_forwarder"], true),
    store("syslog", &["syslog"], false),
    store("zabbix", &["zabbix"], false),
    store("sentry", &["raven"], false),
    store("appoptics", &["appoptics"], false),
    store("librato", &["librato"], false),
    store("nagios_nrdp", &["nagios_nrdp", "nagios"], false),
    notices("smtp", &["smtp"], true),
    notices("slack", &["slack"], false),
    notices("slack_webhook", &["slack_webhook"], true),
    notices("mattermost", &["mattermost"], true),
    notices("highstate", &["highstate"], false),
    notices("pushover", &["pushover"], false),
    notices("sms", &["sms", "twilio"], false),
    notices("telegram", &["telegram"], false),
    notices("xmpp", &["xmpp"], false),
    Returner { why_not: INSTEAD, ..store("multi_returner", &["multi_returner"], false) },
    Returner { why_not: INSTEAD, ..store("salt_cache", &[], false) },
];

/// Parts of names of options whose values are not printed.
const SECRETS: [&str; 6] = ["pass", "token", "secret", "key", "hook", "dsn"];

impl Returner {
    /// Whether Salt knows it by this name.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }

    /// Why it is not carried over.
    pub(super) fn why_not(&self) -> &'static str {
        match self.carried {
            None if sink::Kind::named(self.name).is_some() => OTHER_OPTIONS,
            _ => self.why_not,
        }
    }

    /// What is configured for it, as YAML; secrets are left out.
    pub(super) fn options(&self, master: &Master) -> Vec<(String, String)> {
        let mut options = Vec::new();
        for section in self.sections {
            for (key, node) in &master.keys {
                if let Some(option) = key.strip_prefix(section).and_then(|k| k.strip_prefix('.')) {
                    options.push((option.to_owned(), shown(option, node)));
                } else if key == section {
                    options.extend(inner(section, node));
                }
            }
        }
        options
    }

    /// The options of the sink; `None` if there is none, or one that it needs is not configured.
    pub(super) fn carried(&self, options: &[(String, String)]) -> Option<Vec<(String, String)>> {
        let known = self.carried?;
        if self.name == "sqlite3" && !options.iter().any(|(name, _)| name == "database") {
            return None;
        }
        Some(options.iter().filter(|(name, _)| known.contains(&name.as_str())).cloned().collect())
    }
}

/// The options in the mapping of a section; a section that is no mapping is an option by itself.
fn inner(section: &str, node: &Node) -> Vec<(String, String)> {
    match node.pairs() {
        Ok(pairs) => {
            let pairs = pairs.iter();
            pairs.map(|(key, node)| (key.name.clone(), shown(&key.name, node))).collect()
        }
        Err(_) => vec![(section.to_owned(), shown(section, node))],
    }
}

/// A value on one line of YAML, unless it is a secret.
fn shown(option: &str, node: &Node) -> String {
    let is_secret = SECRETS.iter().any(|part| option.to_lowercase().contains(part));
    if is_secret {
        return "(a secret; it stays in the master's file)".to_owned();
    }
    match &node.value {
        Value::Text(text) | Value::Replaced(text) => quoted(text),
        Value::List(nodes) => {
            let items: Vec<_> = nodes.iter().map(|node| shown("", node)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(pairs) => {
            let pairs = pairs
                .iter()
                .map(|(key, node)| format!("{}: {}", quoted(&key.name), shown(&key.name, node)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        _ => scalar(node).unwrap_or_else(|| "null".to_owned()),
    }
}
