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
    /// What the sink of the same name makes of it. `None` where there is no such sink.
    carried: Option<Carried>,
    /// Why it is not carried over where it is not.
    why_not: &'static str,
}

/// How a returner's options become those of a sink.
struct Carried {
    options: &'static [Carry],
    /// Settings by which the sink stores what the returner does.
    fixed: &'static [(&'static str, &'static str)],
    /// What is different all the same.
    note: Option<&'static str>,
}

/// An option, under the same name unless it says otherwise.
struct Carry {
    option: &'static str,
    setting: &'static str,
    is_needed: bool,
    /// The sink's value for that of the option, both as YAML; `None` if the sink would not take it.
    value: fn(&str) -> Option<String>,
}

const fn same(option: &'static str, is_needed: bool) -> Carry {
    Carry { option, setting: option, is_needed, value: |value| Some(value.to_owned()) }
}

const KAFKA: Carried = Carried {
    options: &[
        Carry { setting: "brokers", value: brokers, ..same("bootstrap", true) },
        Carry { value: topic, ..same("topic", true) },
    ],
    fixed: &[("value", "salt_returner")],
    note: Some(
        "Salt's `kafka` makes the return's text in Python the message's key; here it is the minion's id.",
    ),
};

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
    carried: Carried,
    sections: &'static [&'static str],
) -> Returner {
    let why_not = "An option that the sink cannot do without is missing, or none that it takes.";
    Returner { name, aliases: &[], sections, stores_events, carried: Some(carried), why_not }
}

const fn as_they_are(options: &'static [Carry]) -> Carried {
    Carried { options, fixed: &[], note: None }
}

/// All returners of Salt 3006 to 3008.
pub(super) const RETURNERS: &[Returner] = &[
    carried("rawfile_json", true, as_they_are(&[same("filename", false)]), &["rawfile_json"]),
    carried(
        "sqlite3",
        false,
        as_they_are(&[same("database", true), same("timeout", false)]),
        &["sqlite3"],
    ),
    carried("local", true, as_they_are(&[]), &[]),
    carried("kafka", false, KAFKA, &["returner.kafka"]),
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

    /// The settings of the sink; `None` if there is none, or one that it needs is not configured.
    pub(super) fn carried(&self, options: &[(String, String)]) -> Option<Settings> {
        let carried = self.carried.as_ref()?;
        let mut settings = Settings { note: carried.note, ..Settings::default() };
        for carry in carried.options {
            match options.iter().find(|(name, _)| name == carry.option) {
                Some((_, value)) => {
                    settings.set.push((carry.setting.to_owned(), (carry.value)(value)?));
                }
                None if carry.is_needed => return None,
                None => {}
            }
        }
        let fixed = carried.fixed.iter();
        settings.set.extend(fixed.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let is_unknown = |name: &str| carried.options.iter().all(|carry| carry.option != name);
        let unknown = options.iter().filter(|(name, _)| is_unknown(name));
        settings.left_out = unknown.cloned().collect();
        Some(settings)
    }
}

/// What a returner's options come to, as YAML.
#[derive(Default)]
pub(super) struct Settings {
    /// The sink's settings.
    pub(super) set: Vec<(String, String)>,
    /// Options for which it has none.
    pub(super) left_out: Vec<(String, String)>,
    /// What is different all the same.
    pub(super) note: Option<&'static str>,
}

/// Kafka's brokers, with the port that its client takes where none is given.
fn brokers(value: &str) -> Option<String> {
    let hosts = match serde_json::from_str(value).ok()? {
        serde_json::Value::Array(hosts) => hosts,
        host => vec![host],
    };
    let hosts = hosts.iter().flat_map(|host| host.as_str().unwrap_or_default().split(','));
    let hosts: Option<Vec<_>> = hosts
        .map(|host| {
            let host = host.trim();
            let (name, port) = host.rsplit_once(':').unwrap_or((host, "9092"));
            let is_broker = !name.is_empty() && !name.contains(['/', ' ']);
            (is_broker && port.parse::<u16>().is_ok()).then(|| quoted(&format!("{name}:{port}")))
        })
        .collect();
    Some(format!("[{}]", hosts?.join(", ")))
}

/// A topic by Kafka's own rules, in which nothing stands for something else.
fn topic(value: &str) -> Option<String> {
    let name: String = serde_json::from_str(value).ok()?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_name = !name.is_empty() && name.len() <= 249 && name.chars().all(is_plain);
    is_name.then(|| value.to_owned())
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
