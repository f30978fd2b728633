//! What the returners of a Salt master do, as a configuration of saltern.
//!
//! A master stores events with what `event_return` names, and jobs with what `master_job_cache` and
//! `ext_job_cache` name. Each of these becomes a sink where saltern has one of that kind, and a comment
//! that holds what is configured for it where saltern has none. Nothing that bears on events is left
//! out in silence: what cannot be carried over becomes a comment.

use std::fmt::Write;

use crate::jobs::JobsConfig;
use crate::units::Span;
use crate::yaml::{Node, Value};

mod globs;
mod returners;

use returners::RETURNERS;

/// What a master's configuration says, the files of it together: a later key wins.
pub struct Master {
    keys: Vec<(String, Node)>,
}

impl Master {
    /// A configuration without anything.
    pub fn new() -> Self {
        Master { keys: Vec::new() }
    }

    /// Adds a file, parsed.
    pub fn add(&mut self, file: &Node) -> Result<(), crate::yaml::Problem> {
        for (key, node) in file.pairs()? {
            self.keys.retain(|(name, _)| *name != key.name);
            self.keys.push((key.name.clone(), node.clone()));
        }
        Ok(())
    }

    /// The value of a key, or of a key in a mapping: `mysql.host` is either.
    fn get(&self, name: &str) -> Option<&Node> {
        let flat = self.keys.iter().find(|(key, _)| key == name).map(|(_, node)| node);
        flat.or_else(|| {
            let parts: Vec<_> = name.rsplitn(2, '.').collect();
            let [option, section] = parts[..] else { return None };
            let (_, node) = self.keys.iter().find(|(key, _)| key == section)?;
            node.pairs().ok()?.iter().find(|(key, _)| key.name == option).map(|(_, node)| node)
        })
    }

    fn text(&self, name: &str) -> Option<String> {
        scalar(self.get(name)?)
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.text(name)?.parse().ok()
    }

    /// The texts of a list, or the one that stands in its place.
    fn list(&self, name: &str) -> Vec<String> {
        match self.get(name).map(|node| &node.value) {
            Some(Value::List(nodes)) => nodes.iter().filter_map(scalar).collect(),
            Some(_) => self.text(name).into_iter().filter(|text| !text.is_empty()).collect(),
            None => Vec::new(),
        }
    }

    /// A path, below `root_dir` as Salt puts it.
    fn path(&self, name: &str, default: &str) -> String {
        let root = self.text("root_dir").unwrap_or_else(|| "/".to_owned());
        let root = root.trim_end_matches('/');
        let path = self.text(name).unwrap_or_else(|| default.to_owned());
        match path.starts_with(&format!("{root}/")) {
            true => path,
            false => format!("{root}/{}", path.trim_start_matches('/')),
        }
    }
}

impl Default for Master {
    fn default() -> Self {
        Master::new()
    }
}

/// A value as text; `None` for lists, mappings and nothing.
fn scalar(node: &Node) -> Option<String> {
    match &node.value {
        Value::Text(text) | Value::Replaced(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Int(number) => Some(number.to_string()),
        Value::Uint(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Null | Value::Nothing | Value::List(_) | Value::Map(_) => None,
    }
}

/// The keys that name what stores jobs, and what each stores.
const JOB_CACHES: [(&str, &str); 2] = [
    ("ext_job_cache", "jobs and what minions return, from the minions themselves"),
    ("master_job_cache", "jobs and what minions return, from the master"),
];

/// Why a returner is used.
struct Use<'a> {
    name: &'a str,
    /// `event_return`, `ext_job_cache` or `master_job_cache`.
    key: &'static str,
}

/// The configuration of saltern that does what `master` does, with comments. `from` says in the first
/// line where it comes from.
pub fn import(master: &Master, from: &str) -> String {
    let mut page = Page::default();
    page.line(0, &format!("# What the returners of {from} do, for saltern."));
    page.line(0, "# Lines that begin with `#` tell what could not be carried over, and why.");
    if let Some(id) = master.text("id") {
        page.pair(0, "master_id", &id);
    }
    let keeps_jobs = job_cache(master, &mut page);
    source(master, &mut page);

    page.line(0, "sinks:");
    let events = master.list("event_return");
    let caches = JOB_CACHES.map(|(key, _)| (key, master.text(key)));
    let uses = events.iter().map(|name| Use { name, key: "event_return" });
    let caches = caches.iter().filter_map(|(key, name)| Some(Use { name: name.as_ref()?, key }));
    let mut uses: Vec<Use<'_>> = uses.chain(caches).collect();
    uses.retain(|used| !["local_cache", "saltern"].contains(&used.name));
    uses.sort_by_key(|used| (used.name, used.key));
    uses.dedup_by_key(|used| (used.name, used.key));
    let mut sinks = 0;
    for used in &uses {
        sinks += usize::from(sink_of(master, used, &mut page));
    }
    if sinks == 0 && keeps_jobs {
        page.line(2, "{}");
    } else if sinks == 0 {
        page.line(
            2,
            "# No sink could be carried over. This one keeps nothing: put yours in its place.",
        );
        page.line(2, "nothing: {blackhole: {}}");
    }
    if let Some(niceness) = master.text("event_return_niceness") {
        let advice = "has no meaning here; set `Nice=` in the systemd unit.";
        page.line(0, &format!("# event_return_niceness: {niceness} {advice}"));
    }
    unused(master, &uses, &mut page);
    page.text
}

/// The job cache, where the master has one that is not its own files; whether there is one.
fn job_cache(master: &Master, page: &mut Page) -> bool {
    let external = JOB_CACHES.iter().any(|(key, _)| {
        master.text(key).is_some_and(|name| name != "local_cache" && !name.is_empty())
    });
    let keep = master.number("keep_jobs_seconds").or_else(|| {
        // Hours, and still read by Salt.
        master.number("keep_jobs").map(|hours| hours * 3600.0)
    });
    if !external {
        return false;
    }
    let keep = keep.unwrap_or_else(|| JobsConfig::default().keep_jobs.0.as_secs_f64());
    page.line(0, "# Jobs can be looked up with `saltern jobs`.");
    if keep <= 0.0 {
        page.line(
            0,
            "# The master keeps jobs for ever (keep_jobs_seconds: 0); here that is ten years.",
        );
    }
    let keep = if keep > 0.0 { taken(keep) } else { taken(f64::INFINITY) };
    page.line(0, &format!("jobs: {{enabled: true, keep_jobs: {keep:.0}s}}"));
    true
}

fn source(master: &Master, page: &mut Page) {
    page.line(0, "sources:");
    page.line(2, "bus:");
    page.line(4, "salt_bus:");
    match master.text("ipc_mode").as_deref() {
        Some("tcp") => {
            let port = master.text("tcp_master_pub_port").unwrap_or_else(|| "4512".to_owned());
            page.pair(6, "address", &format!("tcp://127.0.0.1:{port}"));
        }
        _ => {
            let folder = master.path("sock_dir", "/var/run/salt/master");
            page.pair(6, "address", &format!("{folder}/master_event_pub.ipc"));
        }
    }
    if let Some(size) = master.number("max_event_size").filter(|size| *size > 67_108_864.0) {
        page.line(6, &format!("max_frame: {size:.0}"));
    }
}

/// The sink that does what a returner does, or a comment; whether it is a sink.
fn sink_of(master: &Master, used: &Use<'_>, page: &mut Page) -> bool {
    let Use { name, key } = used;
    let Some(returner) = RETURNERS.iter().find(|returner| returner.is(name)) else {
        page.line(
            2,
            &format!(
                "# {key}: {name} is none of Salt's own returners; saltern has no sink for it."
            ),
        );
        return false;
    };
    if *key == "event_return" && !returner.stores_events {
        page.line(
            2,
            &format!(
                "# Salt's `{name}` cannot store events: the master logs an error and discards them."
            ),
        );
    }
    let options = returner.options(master);
    let Some(settings) = returner.carried(&options) else {
        page.line(2, &format!("# {key}: {name}. {} It is configured with:", returner.why_not()));
        for (option, value) in &options {
            page.line(2, &format!("#   {option}: {value}"));
        }
        if options.is_empty() {
            page.line(2, "#   (nothing)");
        }
        return false;
    };
    let sink = match *key {
        "event_return" => (*name).to_owned(),
        _ => format!("{name}-{}", key.replace('_', "-")),
    };
    page.line(2, &format!("{}:", quoted(&sink)));
    if settings.set.is_empty() {
        page.line(4, &format!("{}: {{}}", returner.name));
    } else {
        page.line(4, &format!("{}:", returner.name));
        for (option, value) in settings.set {
            page.line(6, &format!("{option}: {value}"));
        }
    }
    for (option, value) in settings.left_out {
        page.line(4, &format!("# {option}: {value} has no counterpart in the sink."));
    }
    if let Some(note) = settings.note {
        page.line(4, &format!("# {note}"));
    }
    if *key == "event_return" {
        filter(master, page);
        batch(master, page);
    } else {
        let what = JOB_CACHES.iter().find(|(cache, _)| cache == key).map_or("", |(_, what)| what);
        page.line(4, &format!("# {key}: {what}; here from the bus."));
        page.line(4, "filter: {tags: [\"salt/job/*/new\", \"salt/job/*/ret/*\"]}");
    }
    true
}

fn filter(master: &Master, page: &mut Page) {
    let mut lines = Vec::new();
    for (key, name) in [("event_return_whitelist", "tags"), ("event_return_blacklist", "not_tags")]
    {
        let mut tags = Vec::new();
        for pattern in master.list(key) {
            match globs::glob(&pattern) {
                Some(glob) => {
                    if glob != pattern {
                        page.line(
                            4,
                            &format!("# {key}: {} is {} here.", quoted(&pattern), quoted(&glob)),
                        );
                    }
                    tags.push(quoted(&glob));
                }
                None => page.line(
                    4,
                    &format!(
                        "# {key}: {} is a regular expression, which filters cannot be: write globs.",
                        quoted(&pattern)
                    ),
                ),
            }
        }
        if !tags.is_empty() {
            lines.push(format!("{name}: [{}]", tags.join(", ")));
        }
    }
    if !lines.is_empty() {
        page.line(4, &format!("filter: {{{}}}", lines.join(", ")));
    }
}

fn batch(master: &Master, page: &mut Page) {
    let queue = master.number("event_return_queue").filter(|queue| *queue > 0.0);
    let age = master.number("event_return_queue_max_seconds").filter(|age| *age > 0.0);
    match (queue, age) {
        // The kind's own: it stores what there is, at once or nearly so.
        (None, _) => {}
        (Some(queue), None) => page.line(4, &format!("batch: {{max_events: {queue:.0}}}")),
        (Some(queue), Some(age)) => {
            let linger = taken(age);
            page.line(4, &format!("batch: {{max_events: {queue:.0}, linger: {linger}s}}"));
        }
    }
}

/// So many seconds, or as many as a length of time may have.
fn taken(seconds: f64) -> f64 {
    seconds.min(Span::LONGEST.0.as_secs_f64())
}

/// Returners that are configured and that nothing on the master names.
fn unused(master: &Master, uses: &[Use<'_>], page: &mut Page) {
    for returner in RETURNERS {
        let is_used = uses.iter().any(|used| returner.is(used.name));
        if !is_used && !returner.options(master).is_empty() {
            page.line(
                0,
                &format!(
                    "# `{}` is configured, but the master stores nothing with it; minions may (`--return {}`).",
                    returner.name, returner.name
                ),
            );
        }
    }
}

/// Lines of YAML.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn line(&mut self, indent: usize, line: &str) {
        // Writing to a string cannot fail. A comment is one line whatever stands in it.
        let _ = writeln!(self.text, "{:indent$}{}", "", line.replace(['\n', '\r'], " "));
    }

    fn pair(&mut self, indent: usize, key: &str, value: &str) {
        self.line(indent, &format!("{key}: {}", quoted(value)));
    }
}

/// Text as a YAML value, in which `${` stands for itself.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text.replace("${", "$${")).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn imported(text: &str) -> String {
        let mut master = Master::new();
        master.add(&Node::parse(text).unwrap()).unwrap();
        let page = import(&master, "master");
        // Whatever it says, saltern takes it.
        if let Err(problems) = Config::parse(&page) {
            let problems: Vec<_> = problems.iter().map(|p| p.render("page", &page)).collect();
            panic!("{}\n{page}", problems.join("\n"));
        }
        page
    }

    #[test]
    fn a_file_with_filters_and_a_queue() {
        let page = imported(
            "id: salt.example.com\nevent_return: [rawfile_json, local]\nevent_return_queue: 500\n\
             event_return_queue_max_seconds: 30\nevent_return_whitelist: [salt/job/*, 'salt/(auth|key)']\n\
             event_return_blacklist: salt/job/.*/prog\nevent_return_niceness: 9\n\
             rawfile_json.filename: '/var/log/${HOME}/events'\nroot_dir: /srv\nsock_dir: /run/salt\n",
        );
        for expected in [
            "master_id: \"salt.example.com\"\n",
            "address: \"/srv/run/salt/master_event_pub.ipc\"\n",
            "  \"rawfile_json\":\n    rawfile_json:\n      filename: \"/var/log/$${HOME}/events\"\n",
            "filter: {tags: [\"salt/job/*\"], not_tags: [\"salt/job/*/prog\"]}\n",
            "# event_return_whitelist: \"salt/(auth|key)\" is a regular expression",
            "batch: {max_events: 500, linger: 30s}\n",
            "  \"local\":\n    local: {}\n",
            "# event_return_niceness: 9",
        ] {
            assert!(page.contains(expected), "{expected}\n{page}");
        }
    }

    #[test]
    fn lengths_of_time_without_an_end_become_the_longest_that_is_taken() {
        let page = imported(
            "master_job_cache: sqlite3\nkeep_jobs_seconds: 1e300\nevent_return: local\n\
             event_return_queue: 5\nevent_return_queue_max_seconds: 600000000000\n",
        );
        for expected in ["keep_jobs: 315360000s}", "linger: 315360000s}"] {
            assert!(page.contains(expected), "{expected}\n{page}");
        }
    }

    #[test]
    fn a_job_cache_in_sqlite() {
        let page = imported(
            "master_job_cache: sqlite3\nsqlite3.database: /var/lib/salt.db\nsqlite3.timeout: 5.0\n\
             keep_jobs_seconds: 7200\nipc_mode: tcp\ntcp_master_pub_port: 14512\n",
        );
        for expected in [
            "jobs: {enabled: true, keep_jobs: 7200s}\n",
            "address: \"tcp://127.0.0.1:14512\"\n",
            "  \"sqlite3-master-job-cache\":\n    sqlite3:\n      database: \"/var/lib/salt.db\"\n      timeout: 5\n",
            "filter: {tags: [\"salt/job/*/new\", \"salt/job/*/ret/*\"]}\n",
        ] {
            assert!(page.contains(expected), "{expected}\n{page}");
        }
    }

    #[test]
    fn every_returner_is_carried_over_or_said_not_to_be() {
        for returner in RETURNERS {
            let mut text = format!("event_return: {}\n", returner.name);
            for section in returner.sections {
                text += &format!("{section}.host: a.example.com\n{section}.password: hunter2\n");
            }
            let page = imported(&text);
            let is_sink = page.contains(&format!("  \"{}\":\n", returner.name));
            let is_comment = page.contains(&format!("# event_return: {}.", returner.name));
            assert!(is_sink != is_comment, "{page}");
            assert!(!page.contains("hunter2"), "{page}");
            if is_comment && !returner.sections.is_empty() {
                assert!(page.contains("host: \"a.example.com\""), "{page}");
            }
            let is_warned = page.contains("cannot store events");
            assert_eq!(is_warned, !returner.stores_events, "{page}");
        }
    }

    #[test]
    fn what_is_nested_is_found_and_what_is_not_used_is_said() {
        let page = imported(
            "event_return: my_own\nmysql: {host: db, pass: hunter2, port: 3306}\n\
             returner.kafka.bootstrap: [a, b]\n",
        );
        assert!(page.contains("my_own is none of Salt's own returners"), "{page}");
        assert!(page.contains("`mysql` is configured, but the master stores nothing"), "{page}");
        assert!(page.contains("`kafka` is configured"), "{page}");
        let page = imported(
            "event_return: [mysql, kafka]\nmysql: {host: db, pass: hunter2}\nreturner.kafka.bootstrap: [a, b]\n",
        );
        assert!(page.contains("#   host: \"db\"\n") && !page.contains("hunter2"), "{page}");
        assert!(page.contains("#   bootstrap: [\"a\", \"b\"]\n"), "{page}");
    }

    #[test]
    fn an_empty_file_is_one_too() {
        assert!(imported("").contains("nothing: {blackhole: {}}"));
    }
}
