//! The configuration of a Salt master as one of saltern.
//!
//! A master stores events with the returners of `event_return`, and jobs with those of
//! `master_job_cache` and `ext_job_cache`. If saltern has a sink of that kind, each becomes a sink.
//! Else it becomes a comment with its configuration. All other options about events, returns or
//! jobs become comments as well (`options.rs`, `engines.rs`). No secret is printed (`masked.rs`).

use crate::files::socket_file::LONGEST_PATH;
use crate::jobs::JobsConfig;
use crate::jobs::TAGS as JOB_TAGS;
use crate::units::Span;

mod engines;
mod include_glob;
mod includes;
mod masked;
mod master;
mod options;
mod page;
mod python;
mod returners;
mod salt_yaml;
mod tag_glob;

use masked::{HIDDEN, is_open, masked};
pub use master::Master;
pub use options::WITHOUT_MEANING;
use page::{Page, quoted};
use python::is_false;
use returners::returners;
pub use returners::without_sink;

/// The keys that name a store of jobs, and the data that each stores.
const JOB_CACHES: [(&str, &str); 2] = [
    ("ext_job_cache", "jobs and what minions return, from the minions themselves"),
    ("master_job_cache", "jobs and what minions return, from the master"),
];

/// The options of `event_return` that its sink takes over.
const OF_EVENT_RETURN: [&str; 4] = [
    "event_return_whitelist",
    "event_return_blacklist",
    "event_return_queue",
    "event_return_queue_max_seconds",
];

/// The largest number of bytes or events that is carried over.
const MOST: f64 = 1e15;

/// The returner that hands over to those that the key of the same name lists.
const SEVERAL: &str = "multi_returner";

/// A use of a returner.
struct Use {
    name: String,
    /// `event_return`, `ext_job_cache` or `master_job_cache`.
    key: &'static str,
}

/// The configuration of saltern that does what `master` does, with comments. `from` says in the
/// first line where it comes from.
pub fn import(master: &Master, from: &str) -> String {
    let mut page = Page::default();
    page.line(0, &format!("# What the returners of {from} do, for saltern."));
    page.line(0, "# Lines that begin with `#` tell what could not be carried over, and why.");
    for remark in &master.remarks {
        page.line(0, &format!("# {remark}"));
    }
    if let Some(id) = master.name("id") {
        page.pair(0, "master_id", &id);
    }
    let keeps_jobs = job_cache(master, &mut page);
    source(master, &mut page);

    page.line(0, "sinks:");
    let mut sinks = 0;
    for used in &uses(master, &mut page) {
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
    unused(master, &mut page);
    engines::engines(master, &mut page);
    options::left_over(master, &mut page);
    page.text
}

/// The returners that the keys of the master name.
fn direct_uses(master: &Master) -> Vec<Use> {
    let events = master.list("event_return").into_iter();
    let mut uses: Vec<_> = events.map(|name| Use { name, key: "event_return" }).collect();
    let caches = JOB_CACHES.iter();
    uses.extend(caches.filter_map(|(key, _)| Some(Use { name: master.name(key)?, key })));
    uses
}

/// The same as [`direct_uses`], with the returners of `multi_returner` in its place.
fn all_uses(master: &Master) -> Vec<Use> {
    let behind = |used: Use| match used.name == SEVERAL {
        true => behind_several(master).map(|name| Use { name, ..used }).collect(),
        false => vec![used],
    };
    direct_uses(master).into_iter().flat_map(behind).collect()
}

/// The returners that `multi_returner` hands over to. Salt does not come to an end with itself.
fn behind_several(master: &Master) -> impl Iterator<Item = String> {
    master.list(SEVERAL).into_iter().filter(|name| name != SEVERAL)
}

/// Explains `multi_returner` where a key names it.
fn several_in_words(master: &Master, key: &str, page: &mut Page) {
    if key == "event_return" {
        page.line(2, &format!("# Salt's `{SEVERAL}` cannot store events: the master logs an error and discards them."));
    }
    let names: Vec<_> = behind_several(master).map(|name| quoted(masked::name(&name))).collect();
    match names.is_empty() {
        true => page.line(
            2,
            &format!("# {key}: {SEVERAL} stores nothing: `{SEVERAL}` lists no other returner."),
        ),
        false => page.line(
            2,
            &format!(
                "# {key}: {SEVERAL} hands over to [{}]; each is here by itself.",
                names.join(", ")
            ),
        ),
    }
}

/// The returners that the master stores something with. Others are named in comments.
fn uses(master: &Master, page: &mut Page) -> Vec<Use> {
    for key in ["event_return"].into_iter().chain(JOB_CACHES.map(|(key, _)| key)) {
        let is_named = direct_uses(master).iter().any(|used| used.key == key);
        if is_named || master.get(key).is_some_and(is_false) {
            page.say(key);
        }
    }
    for Use { key, .. } in direct_uses(master).iter().filter(|used| used.name == SEVERAL) {
        several_in_words(master, key, page);
    }
    let mut uses = all_uses(master);
    uses.sort_by(|a, b| (&a.name, a.key).cmp(&(&b.name, b.key)));
    uses.dedup_by(|a, b| a.name == b.name && a.key == b.key);
    uses.retain(|Use { name, key }| {
        let what = match name.as_str() {
            "saltern" => "hands over to saltern already: the `returner` source takes it.",
            "local_cache" => {
                "is files of the master, which stay. `local_cache` sources and `saltern replay` read them."
            }
            _ => return true,
        };
        page.line(2, &format!("# {key}: {name} {what}"));
        if *key == "event_return" {
            filters_in_words(master, page);
        }
        false
    });
    uses
}

/// Adds the job cache, if the master has another one than its own files. Returns true if it does.
fn job_cache(master: &Master, page: &mut Page) -> bool {
    let uses = all_uses(master);
    let external = uses.iter().any(|used| used.key != "event_return" && used.name != "local_cache");
    if !external {
        return false;
    }
    let seconds = master.number("keep_jobs_seconds");
    // The hours, which Salt still reads if only they differ from the default.
    let hours = master.text("keep_jobs").filter(|hours| hours != "24");
    let hours = hours.and_then(|hours| hours.parse::<f64>().ok());
    let are_default = master.text("keep_jobs_seconds").is_none_or(|seconds| seconds == "86400");
    let hours = hours.filter(|hours| are_default && !hours.is_nan());
    let keep = match (seconds, hours) {
        (_, Some(hours)) => {
            page.say("keep_jobs");
            Some(hours * 3600.0)
        }
        (Some(seconds), None) => {
            page.say("keep_jobs_seconds");
            Some(seconds)
        }
        (None, None) => None,
    };
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
            page.say("ipc_mode");
            let said = master.text("tcp_master_pub_port").and_then(|port| port.parse::<u16>().ok());
            if said.is_some() {
                page.say("tcp_master_pub_port");
            }
            let port = said.unwrap_or(4512);
            page.pair(6, "address", &format!("tcp://127.0.0.1:{port}"));
        }
        mode => {
            if mode == Some("ipc") {
                page.say("ipc_mode");
            }
            let (folder, cache) = ("/var/run/salt/master", "/var/cache/salt/master");
            let length = |name: &str, default: &str| {
                master.text(name).map_or(default.len(), |path| path.len())
            };
            // Salt's own way out of addresses that are too long.
            let folder = match length("sock_dir", folder) > length("cachedir", cache) + 10 {
                true => format!("{}/.salt-unix", master.path("cachedir", cache)),
                false => master.path("sock_dir", folder),
            };
            let address = format!("{folder}/master_event_pub.ipc");
            let is_short = address.len() <= LONGEST_PATH && !address.contains("://");
            if is_short {
                page.pair(6, "address", &address);
            } else {
                let length = address.len();
                page.line(6, &format!("# The bus's path of {length} bytes is none of a unix socket; this is Salt's default."));
                page.pair(6, "address", "/var/run/salt/master/master_event_pub.ipc");
            }
        }
    }
    let size = master.number("max_event_size").map(|size| size.min(MOST));
    if let Some(size) = size.filter(|size| *size > 67_108_864.0) {
        page.say("max_event_size");
        page.line(6, &format!("max_frame: {size:.0}"));
    }
    returner_source(master, page);
}

/// The source for a master that already uses saltern's package.
fn returner_source(master: &Master, page: &mut Page) {
    if !all_uses(master).iter().any(|used| used.name == "saltern") {
        return;
    }
    page.line(2, "salt:");
    let address = master.text("saltern.address");
    let is_open_path = |path: &String| path.starts_with('/') && is_open(path);
    let token_file = master.text("saltern.token_file").filter(is_open_path);
    let is_bound = address.as_deref().is_some_and(|address| {
        let is_file = |path: &str| path.starts_with('/') && path.len() <= LONGEST_PATH;
        let is_loopback = |host: &str| {
            let port = host.strip_prefix("127.0.0.1:").map(str::parse::<u16>);
            port.is_some_and(|port| port.is_ok_and(|port| port > 0))
        };
        is_open(address)
            && (address.strip_prefix("ipc://").is_some_and(is_file)
                || address.strip_prefix("unix:").is_some_and(is_file)
                || token_file.is_some() && address.strip_prefix("tcp://").is_some_and(is_loopback))
    });
    page.line(4, "returner:");
    match address.filter(|_| is_bound) {
        // The package's own default.
        None => page.pair(6, "bind", "ipc:///run/saltern/returner.ipc"),
        Some(address) => {
            page.say("saltern.address");
            page.pair(6, "bind", &address);
            if let Some(path) = token_file.filter(|_| address.starts_with("tcp:")) {
                page.say("saltern.token_file");
                page.pair(6, "token_file", &path);
            }
        }
    }
    for (key, node) in master.keys().filter(|(key, _)| key.starts_with("saltern.")) {
        if page.has_said(key) {
            continue;
        }
        page.say(key);
        let what = match key {
            "saltern.address" => "cannot be where saltern listens: write `bind` yourself.",
            _ => "is an option of the package in the master.",
        };
        page.line(4, &format!("# {key}: {} {what}", masked(key, node)));
    }
}

/// Adds the sink for a returner, or a comment. Returns true if it is a sink.
fn sink_of(master: &Master, used: &Use, page: &mut Page) -> bool {
    let Use { name, key } = used;
    let Some(returner) = returners().iter().find(|returner| returner.is(name)) else {
        let what = "is none of Salt's own returners; saltern has no sink for it.";
        page.line(2, &format!("# {key}: {} {what}", masked::name(name)));
        let prefix = format!("{name}.");
        for (key, node) in master.keys() {
            let rest = key.strip_prefix("returner.").unwrap_or(key);
            if rest == name || rest.starts_with(&prefix) {
                page.say(key);
                page.line(2, &format!("#   {}: {}", masked::name(key), masked(key, node)));
            }
        }
        if *key == "event_return" {
            filters_in_words(master, page);
        }
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
        for (option, node) in &options {
            page.line(2, &format!("#   {}: {}", masked::name(option), masked(option, node)));
        }
        if options.is_empty() {
            page.line(2, "#   (nothing)");
        }
        if *key == "event_return" {
            filters_in_words(master, page);
        }
        return false;
    };
    let sink = match *key {
        "event_return" => name.clone(),
        _ => format!("{name}-{}", key.replace('_', "-")),
    };
    page.line(2, &format!("{}:", quoted(&sink)));
    for needed in &settings.needed {
        let returners::Needed { variable, option } = needed;
        page.line(
            4,
            &format!(
                "# Set the environment variable {variable} to the value of `{option}` on the \
                 master, which may hold a secret."
            ),
        );
    }
    if settings.set.is_empty() {
        page.line(4, &format!("{}: {{}}", returner.name()));
    } else {
        page.line(4, &format!("{}:", returner.name()));
        for (option, value) in settings.set {
            page.line(6, &format!("{option}: {value}"));
        }
    }
    if let Some(advice) = settings.advice {
        page.line(4, &format!("# {advice}."));
    }
    for (option, node) in settings.left_out {
        let value = masked(&option, node);
        let option = masked::name(&option);
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
        // Minions hand over jobs alone, the master also runners.
        let is_job = |tag: &&str| *key == "master_job_cache" || tag.starts_with("salt/job/");
        let tags: Vec<_> = JOB_TAGS.into_iter().filter(is_job).map(quoted).collect();
        page.line(4, &format!("filter: {{tags: [{}]}}", tags.join(", ")));
    }
    true
}

/// The options of `event_return` beside a returner that is no sink.
fn filters_in_words(master: &Master, page: &mut Page) {
    for key in OF_EVENT_RETURN {
        let Some(node) = master.get(key) else { continue };
        page.say(key);
        let patterns: Vec<_> = master.list(key).iter().map(|pattern| tag_shown(pattern)).collect();
        let value = match key.ends_with("list") && !patterns.is_empty() {
            true => format!("[{}]", patterns.join(", ")),
            false => masked(key, node),
        };
        page.line(2, &format!("#   {key}: {value}"));
    }
}

/// A pattern of tags, unless it looks like a secret.
fn tag_shown(pattern: &str) -> String {
    if is_open(pattern) { quoted(pattern) } else { HIDDEN.to_owned() }
}

fn filter(master: &Master, page: &mut Page) {
    let mut lines = Vec::new();
    for (key, name) in [("event_return_whitelist", "tags"), ("event_return_blacklist", "not_tags")]
    {
        let mut tags = Vec::new();
        if master.get(key).is_some() {
            page.say(key);
        }
        for pattern in master.list(key) {
            if !is_open(&pattern) {
                let why =
                    "has a pattern that may hold a secret: write it into the filter yourself.";
                page.line(4, &format!("# {key} {why}"));
                continue;
            }
            match tag_glob::glob(&pattern) {
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
    // Else the kind's default: it stores events almost at once.
    let Some(queue) = queue.map(|queue| queue.min(MOST)) else { return };
    page.say("event_return_queue");
    match age.map(taken) {
        None => page.line(4, &format!("batch: {{max_events: {queue:.0}}}")),
        Some(age) => {
            page.say("event_return_queue_max_seconds");
            let age = format!("{:.0}ms", age * 1000.0).replace("000ms", "s");
            page.line(4, &format!("batch: {{max_events: {queue:.0}, linger: {age}}}"));
        }
    }
}

/// So many seconds, or as many as a length of time may have.
fn taken(seconds: f64) -> f64 {
    seconds.min(Span::LONGEST.0.as_secs_f64())
}

/// Returners that are configured and that nothing on the master names.
fn unused(master: &Master, page: &mut Page) {
    let used: Vec<_> =
        direct_uses(master).into_iter().chain(all_uses(master)).map(|used| used.name).collect();
    for returner in returners() {
        let name = returner.name();
        let options = returner.options(master);
        if !options.is_empty() && !used.iter().any(|used| returner.is(used)) {
            page.line(
                0,
                &format!(
                    "# `{name}` is configured, but the master stores nothing with it; minions may (`--return {name}`):",
                ),
            );
            for (option, node) in options {
                page.line(0, &format!("#   {}: {}", masked::name(&option), masked(&option, node)));
            }
        }
        for (key, node) in returner.alternatives(master) {
            page.say(key);
            let value = masked(key, node);
            page.line(
                0,
                &format!("# {key}: {value} is for `--return {name} --return_config NAME` alone."),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn imported(text: &str) -> String {
        let master = Master::parse(text).unwrap();
        let page = import(&master, "master");
        // Saltern takes every page. Variables are for values that it does not print.
        let mut set = page.clone();
        for (name, value) in
            [("KAFKA_BROKER_1", "h:1"), ("RAWFILE_JSON_FILENAME", "/a"), ("SQLITE3_DATABASE", "/a")]
        {
            set = set.replace(&format!("${{SALTERN_{name}}}"), value);
        }
        if let Err(problems) = Config::parse(&set) {
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
            "filter: {tags: [\"salt/job/*/new\", \"salt/job/*/ret/*\", \"salt/run/*/new\", \
             \"salt/run/*/ret\", \"salt/wheel/*/new\", \"salt/wheel/*/ret\"]}\n",
        ] {
            assert!(page.contains(expected), "{expected}\n{page}");
        }
    }

    #[test]
    fn a_job_cache_of_the_minions_has_jobs_alone() {
        let page = imported("ext_job_cache: sqlite3\nsqlite3.database: /var/lib/salt.db\n");
        let expected = "filter: {tags: [\"salt/job/*/new\", \"salt/job/*/ret/*\"]}\n";
        assert!(page.contains(expected), "{page}");
    }

    #[test]
    fn several_returners_come_to_what_each_would() {
        let options = "sqlite3.database: /var/lib/salt.db\nmysql.host: db.example.com\n";
        let page = imported(&format!(
            "master_job_cache: multi_returner\nmulti_returner: [sqlite3, mysql, local_cache]\n{options}",
        ));
        for expected in [
            "jobs: {enabled: true, ",
            "# master_job_cache: multi_returner hands over to [\"sqlite3\", \"mysql\", \"local_cache\"]",
            "  \"sqlite3-master-job-cache\":\n    sqlite3:\n      database: \"/var/lib/salt.db\"\n",
            "# master_job_cache: mysql. ",
            "#   host: \"db.example.com\"\n",
            "# master_job_cache: local_cache is files of the master",
        ] {
            assert!(page.contains(expected), "{expected}\n{page}");
        }
        assert!(!page.contains("stores nothing with it"), "{page}");
        let page =
            imported("event_return: [multi_returner, local]\nmulti_returner: rawfile_json\n");
        assert!(page.contains("Salt's `multi_returner` cannot store events"), "{page}");
        assert!(
            page.contains("  \"rawfile_json\":\n") && page.contains("  \"local\":\n"),
            "{page}"
        );
        for nothing in ["[]", "[multi_returner]", "{a: b}"] {
            let page =
                imported(&format!("master_job_cache: multi_returner\nmulti_returner: {nothing}\n"));
            assert!(page.contains("lists no other returner"), "{page}");
            assert!(page.contains("nothing: {blackhole: {}}"), "{page}");
        }
    }

    #[test]
    fn every_returner_is_carried_over_or_said_not_to_be() {
        for returner in returners().iter().filter(|returner| returner.name() != SEVERAL) {
            let mut text = format!("event_return: {}\n", returner.name());
            for section in returner.sections {
                text += &format!("{section}.host: a.example.com\n{section}.password: hunter2\n");
            }
            let page = imported(&text);
            let is_sink = page.contains(&format!("  \"{}\":\n", returner.name()));
            let is_comment = page.contains(&format!("# event_return: {}.", returner.name()));
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
    fn values_of_any_kind_come_to_a_configuration() {
        let keys = [
            "id",
            "root_dir",
            "sock_dir",
            "cachedir",
            "ipc_mode",
            "max_event_size",
            "event_return_whitelist",
            "keep_jobs",
            "event_return_blacklist",
            "event_return_queue",
            "event_return_queue_max_seconds",
            "keep_jobs_seconds",
            "rawfile_json.filename",
            "sqlite3.database",
            "sqlite3.timeout",
            "returner.kafka.bootstrap",
            "returner.kafka.topic",
            "rawfile_json",
            "returner.kafka",
            "engines",
            "event_return",
            "master_job_cache",
            "ext_job_cache",
            "schedule",
            "reactor",
            "event_return_niceness",
            "my_jobs",
        ];
        let values = [
            "~",
            "yes",
            "no",
            "-1",
            "0",
            "0.0001",
            "5.5",
            ".inf",
            "-.inf",
            ".nan",
            "1.0e+308",
            "99999999999999999999999",
            "''",
            "'a b'",
            "'$${X}'",
            "'a: b # c'",
            "\"a\\nb\\u2028\\e\"",
            "[]",
            "{}",
            "[~]",
            "[1, [2], {a: b}]",
            "{a: {b: [c]}}",
            "'*'",
            "'['",
            "'{'",
            "'!'",
            "'h:1,g:x'",
            "'[::1]:9092'",
            "local_cache",
            "saltern",
            "sqlite3",
        ];
        for key in keys {
            for value in values {
                let rest = [
                    ("event_return", "[rawfile_json, sqlite3, kafka, local, mysql]"),
                    ("master_job_cache", "redis"),
                    ("sqlite3.database", "/a"),
                    ("returner.kafka.bootstrap", "h"),
                    ("returner.kafka.topic", "t"),
                    ("event_return_queue", "5"),
                ];
                let rest = rest.iter().filter(|(name, _)| *name != key);
                let rest: Vec<_> = rest.map(|(name, value)| format!("{name}: {value}\n")).collect();
                let rest = rest.concat();
                imported(&format!("{key}: {value}\n{rest}"));
            }
        }
        imported("ipc_mode: tcp\ntcp_master_pub_port: x\n");
    }

    #[test]
    fn a_master_that_hands_over_to_saltern_has_a_source_that_takes_it() {
        let page = imported("event_return: saltern\nsaltern.timeout: 5\n");
        let usual = "  salt:\n    returner:\n      bind: \"ipc:///run/saltern/returner.ipc\"\n";
        assert!(
            page.contains(&format!("{usual}    # saltern.timeout: 5 is an option of")),
            "{page}"
        );
        let page = imported(
            "master_job_cache: saltern\nsaltern.address: tcp://127.0.0.1:4508\n\
             saltern.token_file: /etc/saltern/returner-token\n",
        );
        let bound = "    returner:\n      bind: \"tcp://127.0.0.1:4508\"\n      token_file: \
                     \"/etc/saltern/returner-token\"\n";
        assert!(page.contains(bound), "{page}");
        for address in ["tcp://10.0.0.1:4508", "tcp://127.0.0.1:4508", "ipc://x", "[1]"] {
            let page = imported(&format!("ext_job_cache: saltern\nsaltern.address: {address}\n"));
            let is_said = page.contains("# saltern.address: ") && page.contains(usual);
            assert!(is_said, "{page}");
        }
        assert!(!imported("event_return: local").contains("returner:"));
    }

    #[test]
    fn an_empty_file_is_one_too() {
        assert!(imported("").contains("nothing: {blackhole: {}}"));
    }
}
