//! The configuration: YAML to typed structs, with every mistake reported at once and in its place.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tracing::warn;

use crate::client::stream::Stream;
use crate::codec::visible;
use crate::event::redact::Rules;
use crate::jobs::JobsConfig;
use crate::jobs::stores::JobStores;
use crate::sink::registry::JOB_CACHE;
use crate::source::contract::JobCache;
use crate::yaml::{Node, Problem};

mod entry;
mod general;
pub(crate) mod http;
pub(crate) mod located;
mod null;
mod renamed;
mod schema;
mod schema_of_type;
mod sink_entry;
mod source_entry;

use self::entry::noted;
use self::general::host_name;
use self::null::NULL_IN_GENERAL;
use self::sink_entry::{job_cache, share_memory, sink_of};
use self::source_entry::{introduce, source_of};
pub(crate) use general::General;
pub use schema::schema;
pub(crate) use sink_entry::SinkConfig;
pub(crate) use source_entry::SourceConfig;

/// The path of the configuration unless another is given.
pub(crate) const DEFAULT_PATH: &str = "/etc/saltern/saltern.yaml";

/// Everything that can be set.
pub struct Config {
    /// The settings of the whole, besides sources and sinks.
    pub(crate) general: General,
    /// The sources, in the order of the file.
    pub(crate) sources: Vec<SourceConfig>,
    /// The sinks, in the order of the file.
    pub(crate) sinks: Vec<SinkConfig>,
    /// The rules that hide values of all events.
    pub redact: Arc<Rules>,
    /// The time that jobs are kept in the job cache; `None` if there is none.
    pub(crate) keep_jobs: Option<Duration>,
    /// The stores that answer questions about jobs, beside the job cache.
    pub(crate) job_stores: Arc<JobStores>,
    /// The file, if it comes from one, so that it can be read again.
    pub(crate) path: Option<PathBuf>,
    /// Keys under an old name: they are in force but should be renamed.
    pub(crate) warnings: Vec<Problem>,
}

/// The reason why there is no configuration.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// There are mistakes in it.
    #[error("{rendered}")]
    Wrong {
        /// The mistakes.
        problems: Vec<Problem>,
        /// Keys under an old name.
        warnings: Vec<Problem>,
        /// The same for people, each with its line.
        rendered: String,
    },
}

impl ConfigError {
    fn wrong(path: &Path, text: &str, problems: Vec<Problem>, warnings: Vec<Problem>) -> Self {
        let file = path.display().to_string();
        let mut rendered: Vec<_> = problems.iter().map(|p| p.render(&file, text)).collect();
        rendered.extend(warnings.iter().map(|w| format!("warning: {}", w.on_one_line(&file))));
        ConfigError::Wrong { problems, warnings, rendered: rendered.join("\n\n") }
    }
}

/// The longest name of a source or sink, in bytes.
const LONGEST_NAME: usize = 64;

/// The longest configuration, ours or a Salt master's, in bytes.
const LONGEST: u64 = 64 << 20;

/// Reads the text of a configuration, from a file or a pipe.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    if File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)? as u64 > LONGEST {
        let message = format!("it has more than {LONGEST} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

impl Config {
    /// Reads and checks a file.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)
            .map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
        let mut warnings = Vec::new();
        match Config::read(&text, &mut warnings) {
            Ok(config) => Ok(Config { path: Some(path.to_owned()), warnings, ..config }),
            Err(problems) => Err(ConfigError::wrong(path, &text, problems, warnings)),
        }
    }

    /// Logs what should be written otherwise.
    pub(crate) fn log_warnings(&self) {
        let path = self.path.as_deref().unwrap_or(Path::new("the configuration"));
        for warning in &self.warnings {
            let place = warning.place.unwrap_or_default();
            // Lines of different files are no repeats of each other, so that all are shown.
            let file = format!("{}:{}:{}", path.display(), place.line, place.column);
            warn!(file, "{}", warning.with_help());
        }
    }

    /// The shortest time that a sink lets a batch wait to fill; endless where there is no sink.
    pub(crate) fn shortest_linger(&self) -> Duration {
        let lingers = self.sinks.iter().map(|sink| sink.limits.linger);
        lingers.min().unwrap_or(Duration::MAX)
    }

    /// The time for which events are remembered so that repeats are dropped.
    pub(crate) fn dedupe_window(&self) -> Option<Duration> {
        let window = match self.general.dedupe_window {
            Some(window) => window.0,
            None if self.sources.len() > 1 || self.sources.iter().any(|s| s.kind.repeats) => {
                Duration::from_secs(10)
            }
            None => Duration::ZERO,
        };
        (!window.is_zero()).then_some(window)
    }

    /// Reads and checks a text; on failure with every problem found.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let mut warnings = Vec::new();
        let config = Config::read(text, &mut warnings)?;
        Ok(Config { warnings, ..config })
    }

    /// The same. It gives the warnings of a text with problems too.
    fn read(text: &str, warnings: &mut Vec<Problem>) -> Result<Self, Vec<Problem>> {
        let mut root = Node::parse(text).map_err(|problem| vec![problem])?;
        let mut problems = Vec::new();
        root.interpolate(&mut problems);
        // They name variables and files, and not their contents.
        let unreplaced = problems.len();
        renamed::apply(&mut root, warnings, &mut problems);
        let pairs = root.pairs().map_err(|problem| vec![problem])?;

        let is_section = |name: &str| name == "sources" || name == "sinks";
        let general = root.without(|key| is_section(key)).with_none_said(&NULL_IN_GENERAL);
        let general: Option<General> = general.read_noting(&mut problems);
        if let Some(general) = &general {
            general.http.check(&root, &mut problems);
        }
        let default_master =
            general.as_ref().map_or_else(host_name, |general| general.master_id.clone());

        let (mut sources, mut sinks) = (Vec::new(), Vec::new());
        for (section, node) in pairs.iter().filter(|(key, _)| is_section(&key.name)) {
            let Some(entries) = noted(node.pairs(), &mut problems) else { continue };
            for (key, entry) in entries {
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
                if !key.name.chars().all(is_plain)
                    || !(1..=LONGEST_NAME).contains(&key.name.len())
                    || key.name.starts_with('.')
                {
                    let message =
                        format!("`{}` cannot be a name", visible::capped(&key.name, LONGEST_NAME));
                    let help =
                        "use letters, digits, `-`, `_` and `.`, 64 at the most; it names files too";
                    problems.push(Problem::at(key.place, message).help(help));
                }
                if section.name == "sources" {
                    sources.extend(source_of(&key.name, entry, &default_master, &mut problems));
                } else {
                    sinks.extend(sink_of(&key.name, entry, &mut problems));
                }
            }
        }
        problems.extend(loops(&root, &sources, &sinks));
        introduce(&mut sources);
        let redact = general.as_ref().map(|general| general.redact.as_slice()).unwrap_or_default();
        let redact = Arc::new(Rules::new(redact, &root, &mut problems));
        let jobs = general.as_ref().map(|general| general.jobs.clone()).unwrap_or_default();
        let keep_jobs = keep_jobs(&jobs, &sources, &root, &mut problems);
        let job_stores = Arc::new(job_stores(&jobs, &sinks, &root, &mut problems));
        if keep_jobs.is_some() {
            let place = root.place_of(&["sinks", JOB_CACHE.name]);
            if sinks.iter().any(|sink| sink.name == JOB_CACHE.name) {
                let message = format!("`{}` is the name of the job cache's sink", JOB_CACHE.name);
                problems.push(Problem::at(place, message).help("give this sink another name"));
            }
            sinks.extend(job_cache(place, &mut problems));
        }
        for (name, is_empty) in [("sources", sources.is_empty()), ("sinks", sinks.is_empty())] {
            if is_empty && problems.is_empty() {
                let place = root.place_of(&[name]);
                let problem = Problem::at(place, format!("there are no {name}"));
                problems.push(problem.help(format!("name at least one under `{name}:`")));
            }
        }
        match general {
            Some(general) if problems.is_empty() => {
                share_memory(general.memory, &mut sinks);
                Ok(Config {
                    general,
                    sources,
                    sinks,
                    redact,
                    keep_jobs,
                    job_stores,
                    path: None,
                    warnings: Vec::new(),
                })
            }
            _ => {
                let mut others = problems.split_off(unreplaced);
                // A value in which something could not be replaced is not what it will be.
                for place in problems.iter().filter_map(|problem| problem.place) {
                    let list = root.list_around(place);
                    others.retain(|other| {
                        other.place != Some(place) && (list.is_none() || other.place != list)
                    });
                }
                for problem in &mut others {
                    root.hide_secrets(problem);
                }
                problems.append(&mut others);
                problems
                    .sort_by_key(|problem| problem.place.map(|place| (place.line, place.column)));
                Err(problems)
            }
        }
    }
}

/// Sources that would read what a sink of the same daemon writes, and write that again, for ever.
/// Streams that two names of one server lead to, or patterns, are the operator's to keep apart.
fn loops(root: &Node, sources: &[SourceConfig], sinks: &[SinkConfig]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for source in sources {
        for read in source.reader.reads() {
            let is_same =
                |written: &Stream| written.server == read.server && written.name == read.name;
            let writer = sinks.iter().find(|sink| sink.driver.writes().iter().any(is_same));
            let Some(writer) = writer else { continue };
            let keys = ["sources", &source.name, source.kind.name];
            let keys: Vec<_> =
                keys.into_iter().chain(read.keys.iter().map(String::as_str)).collect();
            let message =
                format!("`{}` reads {}, which `{}` writes", source.name, read.name, writer.name);
            let help = "events would go round for ever: let one daemon write and another one read";
            let problem = Problem::at(root.place_of(&keys), message).help(help);
            // It reads the same stream of several servers.
            if !problems.iter().any(|other: &Problem| other.message == problem.message) {
                problems.push(problem);
            }
        }
    }
    problems
}

/// The time that jobs are kept, as configured or because a source asks for them.
fn keep_jobs(
    jobs: &JobsConfig,
    sources: &[SourceConfig],
    root: &Node,
    problems: &mut Vec<Problem>,
) -> Option<Duration> {
    let wanting = |wanted| sources.iter().find(|source| source.reader.job_cache() == wanted);
    let is_enabled = jobs
        .enabled
        .unwrap_or(wanting(JobCache::Needed).is_some() || wanting(JobCache::Used).is_some());
    if !is_enabled && let Some(source) = wanting(JobCache::Needed) {
        let message = format!("the source `{}` needs the job cache", source.name);
        problems.push(Problem::at(root.place_of(&["jobs", "enabled"]), message));
    }
    is_enabled.then_some(jobs.keep_jobs.0)
}

/// The stores of all sinks that keep jobs, and which of them `jobs.store` names.
fn job_stores(
    jobs: &JobsConfig,
    sinks: &[SinkConfig],
    root: &Node,
    problems: &mut Vec<Problem>,
) -> JobStores {
    for (index, name) in jobs.store.0.iter().enumerate() {
        if jobs.store.0.iter().take(index).any(|other| other == name) {
            let place = root.place_of(&["jobs", "store", &index.to_string()]);
            let message =
                format!("the sink `{}` is here twice", visible::capped(name, LONGEST_NAME));
            problems.push(Problem::at(place, message).help("remove one"));
        }
    }
    let store = |sink: &SinkConfig| Some((sink.name.clone(), sink.job_store()?));
    let stores = JobStores::new(sinks.iter().filter_map(store).collect(), &jobs.store.0);
    for (place, name) in jobs.store.0.iter().enumerate().filter(|(_, name)| !stores.has(name)) {
        let message = match sinks.iter().find(|sink| sink.name == *name) {
            Some(sink) => {
                format!(
                    "the sink `{name}` keeps no jobs that could be read: it is {}",
                    sink.kind.name
                )
            }
            None => format!("there is no sink `{}`", visible::capped(name, LONGEST_NAME)),
        };
        let place = root.place_of(&["jobs", "store", &place.to_string()]);
        let help = format!("sinks that keep jobs: {}", stores.names());
        problems.push(Problem::at(place, message).help(help));
    }
    stores
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::http::Http;
    use super::*;

    #[test]
    fn null_means_none_or_is_a_mistake_and_nothing_means_the_defaults() {
        let parsed = |text: &str| Config::parse(&format!("{SMALLEST}{text}\n"));
        for none in ["http: null", "http: ~", "http: {listen: null}"] {
            let general = parsed(none).unwrap().general;
            assert_eq!(general.http.listen, None, "{none}");
            assert_eq!(general.http.socket, Http::default().socket, "{none}");
        }
        for defaults in ["http:", "http: {}", "http:\n  # listen: null", "http:  # null"] {
            assert!(parsed(defaults).unwrap().general.http.listen.is_some(), "{defaults}");
        }
        assert_eq!(parsed("jobs: null").unwrap().general.jobs.enabled, Some(false));
        assert_eq!(parsed("jobs:").unwrap().general.jobs.enabled, None);
        assert!(parsed("estate: null\nredact: null\ndedupe_window: null").is_ok());
        for mistake in ["log: null", "dead_letters: ~", "log: {level: null}", "state_dir: null"] {
            let place = parsed(mistake).err().unwrap()[0].place.unwrap();
            assert_eq!(place.line, 6, "{mistake}");
        }
        assert!(parsed("log:\ndead_letters:").is_ok());
        let sink = |options: &str| {
            let text = format!("sources: {{b: {{salt_bus: null}}}}\nsinks: {{x: {options}}}\n");
            Config::parse(&text).map(drop)
        };
        sink("{blackhole: null, filter: null, redact: null, rate_limit: null}").unwrap();
        for mistake in ["batch", "retry", "spill"] {
            let problems = sink(&format!("{{blackhole: {{}}, {mistake}: null}}")).unwrap_err();
            assert_eq!(problems[0].message, "this section cannot be null", "{mistake}");
        }
        assert!(sink("null").unwrap_err()[0].message.contains("has no kind"));
        for unknown in ["filter: null", "batch: null"] {
            let message = &parsed(unknown).err().unwrap()[0].message;
            assert!(message.contains("unknown key"), "{unknown}: {message}");
        }
    }

    #[test]
    fn the_schema_lets_be_null_what_may_be_null() {
        let schema = json!(schema());
        let is_nullable = |pointer: &str| {
            let found = schema.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is missing"));
            let is_null = |schema: &serde_json::Value| schema["type"] == "null";
            found["anyOf"].as_array().is_some_and(|any| any.iter().any(is_null))
                || found["type"].as_array().is_some_and(|all| all.contains(&json!("null")))
        };
        let sink = |name: &str| format!("/properties/sinks/additionalProperties/properties/{name}");
        let source = "/properties/sources/additionalProperties/properties/salt_bus";
        for name in ["http", "jobs", "redact", "estate", "dedupe_window"] {
            assert!(is_nullable(&format!("/properties/{name}")), "{name}");
        }
        for name in ["log", "dead_letters", "state_dir"] {
            assert!(!is_nullable(&format!("/properties/{name}")), "{name}");
        }
        for name in ["filter", "redact", "rate_limit", "blackhole"] {
            assert!(is_nullable(&sink(name)), "{name}");
        }
        for name in ["batch", "retry", "spill", "writers"] {
            assert!(!is_nullable(&sink(name)), "{name}");
        }
        assert!(is_nullable(source));
        assert!(schema.pointer("/properties/filter").is_none());
    }

    const SMALLEST: &str = "
sources:
  bus: {salt_bus: {}}
sinks:
  archive: {rawfile_json: {filename: /tmp/events}}
";

    fn problems(text: &str) -> Vec<(usize, usize, String)> {
        let problems = Config::parse(text).err().unwrap_or_default();
        problems
            .into_iter()
            .map(|problem| {
                let place = problem.place.unwrap_or_default();
                (place.line, place.column, problem.message)
            })
            .collect()
    }

    #[test]
    fn the_smallest_configuration_is_enough() {
        let config = Config::parse(SMALLEST).map_err(|p| p[0].to_string()).unwrap();
        assert_eq!(config.sources[0].kind.name, "salt_bus");
        assert_eq!(config.sources[0].master_id, host_name());
        assert_eq!(config.sinks[0].writers, 1);
        assert!(config.sinks[0].filter.takes_all());
    }

    #[test]
    fn every_mistake_is_reported_in_its_place() {
        let text = "\
shutdown_deadlin: 3s
sources:
  bus: {salt_bus: {max_frame: 12 parsecs}}
  two:
    salt_bos: {}
sinks:
  a:
    rawfile_json: {filenam: /tmp/x}
    filter: {tags: ['ok', 'b[']}
  b:
    blackhole:
    writers: 0
  c: {filter: {}}
";
        let found = problems(text);
        let expected = [
            (1, 1, "unknown key `shutdown_deadlin`"),
            (
                3,
                31,
                "invalid value: string \"12 parsecs\", expected a size such as 8MiB, 1GB or 4096",
            ),
            (5, 5, "unknown key `salt_bos`"),
            (8, 20, "unknown key `filenam`"),
            (9, 27, "`b[` is no glob: unclosed character class; missing ']'"),
            (12, 14, "0 writers are not possible; write 1 to 64"),
            (13, 6, "the sink `c` has no kind"),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(line, column, text)| (*line, *column, (*text).to_owned()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn every_mistake_of_one_struct_is_reported() {
        let text = "\
shutdown_deadlin: 3s
log:
  levl: info
  format: xml
sources:
  bus:
    salt_bus:
      max_frame: many
      adress: /run/x
      coalesce: soon
    mastr_id: x
sinks:
  a:
    rawfile_json: {mode: 'rw', rotate: {keep: -1, max_byts: 1}}
    retry: {initial: x}
    writers: many
";
        let found: Vec<_> = problems(text).into_iter().map(|p| (p.0, p.1)).collect();
        let expected = [
            (1, 1),
            (3, 3),
            (4, 11),
            (8, 18),
            (9, 7),
            (10, 17),
            (11, 5),
            (14, 26),
            (14, 47),
            (14, 51),
            (15, 22),
            (16, 14),
        ];
        assert_eq!(found, expected, "{:#?}", problems(text));
    }

    #[test]
    fn a_name_is_short_and_so_is_the_path_of_a_socket() {
        for name in ["a".repeat(64), "web-1.b_c".to_owned()] {
            assert_eq!(problems(&SMALLEST.replace("archive", &name)), [], "{name}");
        }
        for name in
            ["a".repeat(65), "a".repeat(300), "..".to_owned(), ".a".to_owned(), "'a/b'".to_owned()]
        {
            let found = problems(&SMALLEST.replace("archive", &name));
            assert!(found[0].2.contains("cannot be a name"), "{name}: {found:?}");
            assert!(found[0].2.len() < 120, "{found:?}");
        }
        let path = |bytes: usize| format!("/{}/socket.ipc", "x".repeat(bytes - 12));
        for source in [
            "salt_bus: {address: 'unix:PATH'}",
            "salt_bus: {address: PATH}",
            "zeromq: {bind: 'ipc://PATH'}",
            "zeromq: {connect: ['ipc://PATH']}",
            "returner: {bind: 'ipc://PATH'}",
        ] {
            let with =
                |path: String| SMALLEST.replace("salt_bus: {}", &source.replace("PATH", &path));
            assert_eq!(problems(&with(path(107))), [], "{source}");
            let found = problems(&with(path(108)));
            let says = found.iter().any(|(_, _, message)| message.contains("at most 107 bytes"));
            assert!(says, "{source}: {found:?}");
        }
    }

    #[test]
    fn fingerprints_tell_what_changed() {
        let of = |text: &str| {
            let config = Config::parse(text).map_err(|p| p[0].to_string()).unwrap();
            (config.sources[0].fingerprint, config.sinks[0].fingerprint)
        };
        let (source, sink) = of(SMALLEST);
        let moved = format!("# a comment\nshutdown_deadline: 3s\n{SMALLEST}");
        assert_eq!(of(&moved), (source, sink));
        let other_master = format!("master_id: elsewhere\n{SMALLEST}");
        assert_ne!(of(&other_master).0, source);
        assert_eq!(of(&other_master).1, sink);
        for entry in [
            "{rawfile_json: {filename: /tmp/event}}",
            "{rawfile_json: {filename: /tmp/events}, writers: 1}",
            "{rawfile_json: {filename: /tmp/events}, filter: {tags: [a]}}",
            "{rawfile_json: {filename: /tmp/events}, redact: [{keys: [a]}]}",
        ] {
            let changed = SMALLEST.replace("{rawfile_json: {filename: /tmp/events}}", entry);
            assert_eq!(of(&changed).0, source);
            assert_ne!(of(&changed).1, sink, "{entry}");
        }
        let keys =
            |entry: &str| of(&SMALLEST.replace("{rawfile_json: {filename: /tmp/events}}", entry)).1;
        assert_eq!(
            keys("{blackhole: {}, writers: 2, rate_limit: 5}"),
            keys("{rate_limit: 5, writers: 2, blackhole: {}}")
        );
        // `ab` and `c` is not `a` and `bc`.
        assert_ne!(
            keys("{blackhole: {}, filter: {tags: [ab, c]}}"),
            keys("{blackhole: {}, filter: {tags: [a, bc]}}")
        );
    }

    #[test]
    fn a_running_daemon_cannot_change_everything() {
        let of = |text: &str| {
            let text = format!("{text}\n{SMALLEST}");
            Config::parse(&text).map_err(|p| p[0].to_string()).unwrap().general
        };
        let old = of("");
        assert!(old.needs_restart(&of("shutdown_deadline: 1s\nmaster_id: x")).is_empty());
        let new = of("state_dir: /x\nhttp: {listen: null, token: t}\nlog: {level: debug}");
        let expected = ["state_dir", "http.listen", "http.token", "log.level"];
        assert_eq!(old.needs_restart(&new), expected);
    }

    #[test]
    fn invariant_6_all_queues_together_have_a_bound() {
        let text = "
memory: 48MiB
sources: {bus: {salt_bus: {}}}
sinks:
  a: {blackhole: {}, spill: {mode: memory}}
  b: {blackhole: {}}
  c: {blackhole: {}, spill: {memory: 16MiB}}
";
        let config = Config::parse(text).map_err(|p| p[0].to_string()).unwrap();
        let bounds: Vec<_> = config.sinks.iter().map(|sink| sink.spill.memory_bound()).collect();
        assert_eq!(bounds, [32 << 20, 8 << 20, 8 << 20]);
    }

    #[test]
    fn a_rule_of_redaction_that_is_wrong_is_reported_on_top_and_at_a_sink() {
        let rules = "redact: [{keys: ['b[']}]";
        let sink = SMALLEST.replace("filename: /tmp/events}", &format!("filename: /x}}, {rules}"));
        let found = problems(&format!("{rules}\n{sink}"));
        let found: Vec<_> = found.iter().map(|(line, column, _)| (*line, *column)).collect();
        assert_eq!(found, [(1, 18), (6, 60)]);
        let config = Config::parse(&sink.replace("b[", "b")).ok().unwrap();
        assert!(config.redact.is_empty() && !config.sinks[0].redact.is_empty());
    }

    #[test]
    fn http_beyond_loopback_wants_a_token() {
        let text = format!("http: {{listen: '0.0.0.0:4507'}}\n{SMALLEST}");
        assert_eq!(
            problems(&text),
            [(1, 16, "0.0.0.0:4507 is not loopback and there is no token".to_owned())]
        );
        let text = format!("http: {{listen: '0.0.0.0:4507', token: x}}\n{SMALLEST}");
        assert_eq!(problems(&text), []);
    }

    #[test]
    fn an_empty_file_says_what_is_missing() {
        let found: Vec<_> = problems("# nothing\n").into_iter().map(|p| p.2).collect();
        assert_eq!(found, ["there are no sources"]);
    }

    #[test]
    fn the_schema_knows_every_kind() {
        let schema = schema().to_value();
        let sinks = &schema["properties"]["sinks"]["additionalProperties"]["properties"];
        for kind in crate::sink::registry::KINDS {
            assert!(sinks[kind.name].is_object(), "{}", kind.name);
        }
        assert!(sinks["filter"]["anyOf"][0]["properties"]["tags"].is_object(), "{sinks:#}");
        for redact in [&sinks["redact"], &schema["properties"]["redact"]] {
            let rule = &redact["anyOf"][0]["items"];
            assert!(rule["properties"]["keys"].is_object(), "{redact:#}");
        }
    }

    #[test]
    fn the_job_cache_is_a_sink_of_its_own() {
        let parsed = |more: &str| Config::parse(&format!("{SMALLEST}{more}")).ok().unwrap();
        assert_eq!(parsed("").keep_jobs, None);
        let on = parsed("jobs: {enabled: true, keep_jobs: 2h}");
        assert_eq!(on.keep_jobs, Some(Duration::from_secs(7200)));
        let names: Vec<_> = on.sinks.iter().map(|sink| sink.name.as_str()).collect();
        assert_eq!(names, ["archive", "job-cache"]);
        let backfill = SMALLEST.replace("salt_bus: {}", "salt_bus: {backfill: {}}");
        assert!(Config::parse(&backfill).ok().unwrap().keep_jobs.is_some());
        let off = problems(&format!("{backfill}jobs: {{enabled: false}}"));
        assert_eq!(off[0].2, "the source `bus` needs the job cache");
        let taken = SMALLEST.replace("archive", "job-cache") + "jobs: {enabled: true}";
        assert_eq!(problems(&taken)[0].2, "`job-cache` is the name of the job cache's sink");
        let alone = "sources: {bus: {salt_bus: {}}}\njobs: {enabled: true}";
        assert_eq!(Config::parse(alone).ok().unwrap().sinks.len(), 1);
    }

    #[test]
    fn stores_of_jobs_are_sinks_that_keep_jobs() {
        let db = "  db: {sqlite3: {database: /tmp/db}}\n  db2: {sqlite3: {database: /tmp/db2}}\n";
        let text = |store: &str| format!("{SMALLEST}{db}jobs: {{store: {store}}}\n");
        let config = |store| Config::parse(&text(store)).ok().unwrap();
        for (store, expected) in [("db", 1), ("[db2, db]", 2), ("null", 0)] {
            let config = config(store);
            assert_eq!(config.general.jobs.store.0.len(), expected, "{store}");
            assert_eq!(config.job_stores.is_empty(), expected == 0);
            assert_eq!(config.job_stores.names(), "db, db2");
        }
        let wrong = problems(&text("[archive, gone, db]"));
        let expected = "the sink `archive` keeps no jobs that could be read: it is rawfile_json";
        assert_eq!(wrong[0].2, expected);
        assert_eq!(wrong[1].2, "there is no sink `gone`");
        assert!(wrong[0].1 < wrong[1].1, "each in its place: {wrong:?}");
        assert_eq!(problems(&text("gone"))[0].2, "there is no sink `gone`");
        for (store, message) in [
            ("[]", "there is no name in this list"),
            ("[db, db2, db]", "the sink `db` is here twice"),
            ("3", "a name of a sink, or a list of them, belongs here"),
        ] {
            let found = problems(&text(store));
            assert_eq!((found.len(), found[0].2.as_str()), (1, message));
        }
    }

    #[test]
    fn a_rule_of_a_block_of_secrets_is_told_in_every_kind() {
        let sink = |text: &str| {
            problems(&SMALLEST.replace("{rawfile_json: {filename: /tmp/events}}", text))
        };
        for (text, message) in [
            (
                "{webhook: {url: 'http://h/', auth: {token: hunter2, user: u}}}",
                "`auth`: write one of {user, password}, {token} and {header, value}",
            ),
            (
                "\n    clickhouse:\n      url: http://h\n      database: d\n      auth:\n        \
                 user: 'a:b'\n        password: hunter2",
                "`auth`: a `user` cannot contain `:`, because HTTP puts one between user and password",
            ),
            (
                "{webhook: {url: 'http://h/', signature: {secret: hunter2, header: 'a b'}}}",
                "`signature`: `header` is not the name of a header",
            ),
            (
                "{clickhouse: {url: 'http://h', database: d, user: u, auth: {token: hunter2}}}",
                "`auth` stands in place of `user` and `password`; remove one",
            ),
        ] {
            let messages: Vec<_> = sink(text).into_iter().map(|problem| problem.2).collect();
            assert_eq!(messages, [message], "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_one_problem() {
        let text = SMALLEST.replace(
            "{rawfile_json: {filename: /tmp/events}}",
            "{webhook: {url: '${NOT_SET_ANYWHERE}', headers: {x: '${NOT_SET_ANYWHERE}'}, \
             timeout: '${NOT_SET_ANYWHERE}'}}",
        );
        let list = SMALLEST.replace(
            "{rawfile_json: {filename: /tmp/events}}",
            "{kafka: {topic: a, brokers: ['a:1', '${NOT_SET_ANYWHERE}']}}",
        );
        for (text, count) in [(text, 3), (list, 1)] {
            let found: Vec<_> = problems(&text).into_iter().map(|problem| problem.2).collect();
            assert_eq!(found.len(), count, "{found:?}");
            let is_told = |message: &String| {
                message == "the environment variable NOT_SET_ANYWHERE is not set"
            };
            assert!(found.iter().all(is_told), "{found:?}");
        }
    }

    #[test]
    fn times_that_are_of_no_use_are_refused() {
        for (sink, message) in [
            ("{webhook: {url: 'http://h/', timeout: 0}}", "a time of 0 is not possible here"),
            (
                "{clickhouse: {url: 'http://h', database: d, timeout: 0s}}",
                "a time of 0 is not possible here",
            ),
            (
                "{sqlite3: {database: /x, keep: 0}}",
                "a time of 0 is not possible here; leave the key out for no limit",
            ),
            (
                "{clickhouse: {url: 'http://h', database: d, ttl: 36h}}",
                "`ttl` is one whole day or several, such as 90d",
            ),
            (
                "{clickhouse: {url: 'http://h', database: d, ttl: 0}}",
                "`ttl` is one whole day or several, such as 90d",
            ),
        ] {
            let text = SMALLEST.replace("{rawfile_json: {filename: /tmp/events}}", sink);
            let found = problems(&text);
            assert_eq!((found.len(), found[0].2.as_str()), (1, message), "{sink}");
        }
        for sink in [
            "{sqlite3: {database: /x, keep: null}}",
            "{clickhouse: {url: 'http://h', database: d, ttl: 2d}}",
            "{clickhouse: {url: 'http://h', database: d, ttl: }}",
        ] {
            let text = SMALLEST.replace("{rawfile_json: {filename: /tmp/events}}", sink);
            assert_eq!(problems(&text), [], "{sink}");
        }
    }

    #[test]
    fn permissions_that_are_a_number_are_told_to_be_text() {
        for mode in ["0640", "660"] {
            let sink = format!("filename: /tmp/events, mode: {mode}}}");
            let found = problems(&SMALLEST.replace("filename: /tmp/events}", &sink));
            let expected = "expected permissions as text, \"0640\", between quotes";
            assert!(found.len() == 1 && found[0].2.ends_with(expected), "{found:?}");
        }
    }

    #[test]
    fn old_keys_are_told_in_the_order_of_the_file() {
        let text = "\
sources:
  bus: {salt_bus: {patience: 1s}}
sinks:
  a: {clickhouse: {url: 'http://h', database: d, tls: {insecure: true, ca: /x}}}
  b: {clickhouse: {url: 'http://h', database: d, tls: {certificate: /x, key: /y}}}
";
        let warnings = Config::parse(text).ok().unwrap().warnings;
        let lines: Vec<_> = warnings.iter().map(|warning| warning.place.unwrap().line).collect();
        assert_eq!(lines, [2, 4, 5]);
        let both = problems(&text.replace("ca: /x", "verify: false"));
        let message = "`insecure` is the old name of `verify`, which is there as well".to_owned();
        assert_eq!(both, [(4, 56, message)]);
    }

    #[test]
    fn a_topic_that_is_read_is_not_written() {
        let found = |sink: &str| {
            let source = "{brokers: ['a:1', 'b:1'], topics: [x, salt.events], group: g}";
            problems(&format!(
                "sources:\n  in: {{kafka: {source}}}\nsinks:\n  out: {{kafka: {sink}}}\n"
            ))
        };
        let loops = found("{brokers: ['b:1'], topic: salt.events, key: jid}");
        let message = "`in` reads the topic `salt.events`, which `out` writes".to_owned();
        assert_eq!(loops, [(2, 53, message)]);
        for sink in
            ["{brokers: ['b:1'], topic: salt.other}", "{brokers: ['c:1'], topic: salt.events}"]
        {
            assert_eq!(found(sink), [], "{sink}");
        }
    }
}
