//! Salt's returners, and where each reads its options.

use std::path::Path;
use std::sync::LazyLock;

use super::masked::is_open;
use super::master::Master;
use super::page::quoted;
use super::python::scalar;
use crate::files::unit_paths;
use crate::sink::contract::{SaltForm, SaltOption, SaltReturner};
use crate::sink::registry;
use crate::units::Span;
use crate::yaml::{Node, Value};

/// One of Salt's returners.
pub(super) struct Returner {
    /// Its name, and other names that Salt knows it by.
    names: &'static [&'static str],
    /// The names in front of its options, with a point between or as a mapping.
    pub(super) sections: &'static [&'static str],
    /// True if `event_return` can name it.
    pub(super) stores_events: bool,
    /// The way to carry its options over to a sink. `None` if there is no such sink.
    carried: Option<SaltReturner>,
    /// The reason for not carrying it over.
    why_not: &'static str,
}

/// A value that is not printed, and that an environment variable has to hold in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Needed {
    /// The variable.
    pub(super) variable: String,
    /// The option that holds it on the master.
    pub(super) option: &'static str,
}

const NO_SINK: &str = "saltern has no sink of this kind yet; its options carry over once it has.";
const NOTICES: &str = "It sends notices to people, for which saltern has no sink yet.";
const INSTEAD: &str = "Use `saltern` in its place on the master, and a sink for each store here.";

const MISSING: &str =
    "An option that the sink needs is missing, or has a value that the sink cannot take.";

const fn store(
    names: &'static [&'static str],
    sections: &'static [&'static str],
    stores_events: bool,
) -> Returner {
    Returner { names, sections, stores_events, carried: None, why_not: NO_SINK }
}

const fn notices(
    names: &'static [&'static str],
    sections: &'static [&'static str],
    stores_events: bool,
) -> Returner {
    Returner { names, sections, stores_events, carried: None, why_not: NOTICES }
}

/// All returners of Salt 3006 to 3008: those that a sink stands for, and the others.
pub(super) fn returners() -> &'static [Returner] {
    static ALL: LazyLock<Vec<Returner>> = LazyLock::new(|| {
        let carried = registry::KINDS.iter().filter_map(|kind| kind.salt).map(|salt| Returner {
            names: salt.names,
            sections: salt.sections,
            stores_events: salt.stores_events,
            carried: Some(salt),
            why_not: MISSING,
        });
        let mut all: Vec<_> = carried.collect();
        all.extend(OTHERS.into_iter().filter(has_no_sink));
        all
    });
    &ALL
}

/// True if no kind of this build stands for it.
fn has_no_sink(returner: &Returner) -> bool {
    let names = registry::KINDS.iter().filter_map(|kind| Some(kind.salt?.names));
    !names.flatten().any(|name| returner.is(name))
}

/// Returners that a sink need not stand for. One that a kind of this build names is that kind's.
const OTHERS: [Returner; 34] = [
    store(&["kafka"], &["returner.kafka"], false),
    store(&["mysql"], &["mysql"], true),
    store(&["pgjsonb"], &["returner.pgjsonb"], true),
    store(&["postgres"], &["returner.postgres"], true),
    store(&["postgres_local_cache"], &["master_job_cache.postgres"], true),
    store(&["odbc"], &["returner.odbc"], false),
    store(&["redis", "redis_return"], &["redis"], false),
    store(&["elasticsearch"], &["elasticsearch"], true),
    store(&["mongo", "mongo_return", "mongodb"], &["mongo"], true),
    store(&["cassandra_cql", "cassandra"], &["cassandra"], true),
    store(&["couchbase"], &["couchbase"], false),
    store(&["couchdb"], &["couchdb"], false),
    store(&["etcd"], &["etcd"], false),
    store(&["influxdb"], &["influxdb"], false),
    store(&["memcache"], &["memcache"], false),
    store(&["carbon"], &["carbon"], true),
    store(&["splunk"], &["splunk_http_forwarder"], true),
    store(&["syslog"], &["syslog"], false),
    store(&["zabbix"], &["zabbix"], false),
    store(&["sentry"], &["raven"], false),
    store(&["appoptics"], &["appoptics"], false),
    store(&["librato"], &["librato"], false),
    store(&["nagios_nrdp"], &["nagios_nrdp", "nagios"], false),
    notices(&["smtp"], &["smtp"], true),
    notices(&["slack"], &["slack"], false),
    notices(&["slack_webhook"], &["slack_webhook"], true),
    notices(&["mattermost"], &["mattermost"], true),
    notices(&["highstate"], &["highstate"], false),
    notices(&["pushover"], &["pushover"], false),
    notices(&["sms"], &["sms", "twilio"], false),
    notices(&["telegram"], &["telegram"], false),
    notices(&["xmpp"], &["xmpp"], false),
    // The returners that it lists are in its place.
    Returner { why_not: INSTEAD, ..store(&["multi_returner"], &["multi_returner"], false) },
    Returner { why_not: INSTEAD, ..store(&["salt_cache"], &[], false) },
];

/// The names of the returners that no sink stands for yet.
pub fn without_sink() -> impl Iterator<Item = &'static str> {
    OTHERS.iter().filter(|other| has_no_sink(other)).map(Returner::name)
}

/// Options that name a mapping elsewhere in the configuration, which holds more options.
const PROFILES: [&str; 4] =
    ["profile", "returner", "returner_read_profile", "returner_write_profile"];

impl Returner {
    /// Its name.
    pub(super) fn name(&self) -> &'static str {
        self.names.first().copied().unwrap_or_default()
    }

    /// True if Salt knows it by this name.
    pub(super) fn is(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    /// The reason for not carrying it over.
    pub(super) fn why_not(&self) -> &'static str {
        self.why_not
    }

    /// True if a key of the master's configuration holds options of it.
    pub(super) fn owns(&self, key: &str) -> bool {
        self.sections.iter().any(|section| {
            key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    /// Its options as they are configured. The first of two equal options counts, as in Salt: that
    /// of the mapping.
    pub(super) fn options<'a>(&self, master: &'a Master) -> Vec<(String, &'a Node)> {
        let mut options = Vec::new();
        for section in self.sections {
            if let Some(node) = master.get(section) {
                options.extend(inner(section, node));
            }
            for (key, node) in master.keys() {
                if let Some(option) = key.strip_prefix(section).and_then(|k| k.strip_prefix('.')) {
                    options.push((option.to_owned(), node));
                }
            }
        }
        let profiles: Vec<_> = options
            .iter()
            .filter(|(option, _)| PROFILES.contains(&option.as_str()))
            .filter_map(|(option, node)| {
                let name = scalar(node)?;
                let profile = master.get(&name)?;
                matches!(profile.value, Value::Map(_))
                    .then(|| (format!("{option} {name}"), profile))
            })
            .collect();
        options.extend(profiles);
        options
    }

    /// Its options under a name that stands before its own (`NAME.mysql.host`), which
    /// `--return_config NAME` asks for.
    pub(super) fn alternatives<'a>(&self, master: &'a Master) -> Vec<(&'a str, &'a Node)> {
        let is_owned = |key: &str| returners().iter().any(|returner| returner.owns(key));
        let is_mine = |key: &str| {
            self.sections.iter().any(|section| {
                let (before, behind) = key.split_once(&format!(".{section}")).unwrap_or_default();
                // Caches have drivers of the same names.
                let is_cache = before == "cache" || before.is_empty();
                !is_cache && (behind.is_empty() || behind.starts_with('.'))
            })
        };
        master.keys().filter(|(key, _)| !is_owned(key) && is_mine(key)).collect()
    }

    /// The sink's value for that of an option, as YAML; `None` if the sink would not take it.
    fn value(&self, option: &SaltOption, node: &Node, needed: &mut Vec<Needed>) -> Option<String> {
        let variable = |what: &str| format!("SALTERN_{}_{what}", self.name()).to_uppercase();
        match option.form {
            SaltForm::Path => path(node, variable(option.name), option.name, needed),
            SaltForm::Seconds => seconds(node),
            SaltForm::Servers { port, each } => {
                servers(node, port, &variable(each), option.name, needed)
            }
            SaltForm::Name { longest } => name(node, longest),
        }
    }

    /// The settings of the sink; `None` if there is none, or one that it needs is not configured.
    pub(super) fn carried<'a>(&self, options: &[(String, &'a Node)]) -> Option<Settings<'a>> {
        let carried = self.carried.as_ref()?;
        let mut settings = Settings { note: carried.note, ..Settings::default() };
        let mut taken = Vec::new();
        for carry in carried.options {
            let found = options.iter().position(|(name, _)| name == carry.name);
            match found.and_then(|index| Some((index, options.get(index)?.1))) {
                Some((index, node)) => {
                    let value = self.value(carry, node, &mut settings.needed)?;
                    settings.set.push((carry.setting, value));
                    taken.push(index);
                }
                None if carry.is_needed => return None,
                None => {}
            }
        }
        settings.set.extend(carried.fixed.iter().map(|(name, value)| (*name, (*value).to_owned())));
        if let Some((option, default)) = carried.file {
            let file = options.iter().find(|(name, _)| name == option);
            let file = file.and_then(|(_, node)| scalar(node)).unwrap_or(default.to_owned());
            settings.advice = Some(file).filter(|file| is_open_path(file)).and_then(|file| {
                Some(format!("{option}: {}", unit_paths::advice(Path::new(&file))?))
            });
        }
        let left = options.iter().enumerate().filter(|(index, _)| !taken.contains(index));
        settings.left_out = left.map(|(_, option)| option.clone()).collect();
        Some(settings)
    }
}

/// The settings made of a returner's options.
#[derive(Default)]
pub(super) struct Settings<'a> {
    /// The sink's settings, as YAML.
    pub(super) set: Vec<(&'static str, String)>,
    /// Options for which it has none.
    pub(super) left_out: Vec<(String, &'a Node)>,
    /// Variables that stand in place of values.
    pub(super) needed: Vec<Needed>,
    /// A difference that is left.
    pub(super) note: Option<&'static str>,
    /// Advice that lets the daemon write to the sink's place.
    pub(super) advice: Option<String>,
}

/// A path. A path that Salt looks up in a store (`sdb://`) is not known here.
fn path(
    node: &Node,
    variable: String,
    option: &'static str,
    needed: &mut Vec<Needed>,
) -> Option<String> {
    let path = scalar(node).filter(|path| !path.is_empty())?;
    if !is_open_path(&path) {
        return Some(instead(variable, option, needed));
    }
    Some(quoted(&path))
}

/// True if a path may be printed, wherever that is.
fn is_open_path(path: &str) -> bool {
    !path.contains("://") && is_open(path)
}

/// A length of time.
fn seconds(node: &Node) -> Option<String> {
    let seconds: f64 = scalar(node)?.parse().ok().filter(|seconds| *seconds >= 0.0)?;
    let seconds = seconds.min(Span::LONGEST.0.as_secs_f64());
    Some(match seconds.fract() == 0.0 {
        true => format!("{seconds}"),
        false => format!("{:.0}ms", seconds * 1000.0),
    })
}

/// A variable in place of a value.
fn instead(variable: String, option: &'static str, needed: &mut Vec<Needed>) -> String {
    let value = format!("\"${{{variable}}}\"");
    needed.push(Needed { variable, option });
    value
}

/// Servers, with the port that is meant where none is given.
fn servers(
    node: &Node,
    default_port: u16,
    variable: &str,
    option: &'static str,
    needed: &mut Vec<Needed>,
) -> Option<String> {
    let hosts: Vec<String> = match &node.value {
        Value::List(nodes) => nodes.iter().map(scalar).collect::<Option<_>>()?,
        _ => scalar(node)?.split(',').map(str::to_owned).collect(),
    };
    let mut servers = Vec::new();
    for host in hosts.iter().flat_map(|hosts| hosts.split(',')).map(str::trim) {
        if !is_open(host) || host.contains(['@', '/']) {
            servers.push(instead(format!("{variable}_{}", servers.len() + 1), option, needed));
            continue;
        }
        let default_port = default_port.to_string();
        let (name, port) = host.rsplit_once(':').unwrap_or((host, &default_port));
        let is_server = !name.is_empty() && !name.contains(' ') && port.parse::<u16>().is_ok();
        servers.push(is_server.then(|| quoted(&format!("{name}:{port}")))?);
    }
    (!servers.is_empty()).then(|| format!("[{}]", servers.join(", ")))
}

/// A name without placeholders.
fn name(node: &Node, longest: usize) -> Option<String> {
    let name = scalar(node)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_name = !name.is_empty() && name.len() <= longest && name.chars().all(is_plain);
    is_name.then(|| quoted(&name))
}

/// The options in the mapping of a section; a section that is no mapping is an option by itself.
fn inner<'a>(section: &str, node: &'a Node) -> Vec<(String, &'a Node)> {
    match node.pairs() {
        Ok(pairs) => pairs.iter().map(|(key, node)| (key.name.clone(), node)).collect(),
        Err(_) => vec![(section.to_owned(), node)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import_master::import;

    #[test]
    fn a_path_that_may_hold_a_secret_is_not_printed_anywhere() {
        for path in [
            "/srv/x.db?key=hunter2/def",
            "/srv/x;password=hunter2/def",
            "/srv/x.db?token=hunter2",
            "/srv/x token:hunter2/y",
            "sdb://hunter2/x",
        ] {
            for (returner, option) in [("sqlite3", "database"), ("rawfile_json", "filename")] {
                let text = format!("event_return: {returner}\n{returner}.{option}: '{path}'\n");
                let page = import(&Master::parse(&text).unwrap(), "master");
                assert!(!page.contains("hunter2"), "{page}");
                let variable = format!("{option}: \"${{SALTERN_{}_", returner.to_uppercase());
                assert!(page.contains(&variable), "{page}");
                assert!(!page.contains("Paths="), "{page}");
            }
        }
    }

    #[test]
    fn an_ordinary_path_is_printed_with_advice() {
        for path in ["/var/log/salt/events", "/srv/a b/x.db", "/srv/10.0.0.1/x-2026-01-02.db"] {
            let text = format!("event_return: sqlite3\nsqlite3.database: '{path}'\n");
            let page = import(&Master::parse(&text).unwrap(), "master");
            assert!(page.contains(&format!("database: \"{path}\"\n")), "{page}");
            assert!(page.contains("ReadWritePaths="), "{page}");
        }
    }
}
