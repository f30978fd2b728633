//! The configuration: YAML to typed structs, with every mistake reported at once and in its place.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;
use tracing::warn;
use xxhash_rust::xxh3::xxh3_128;

use crate::client::LEFT_OUT;
use crate::codec::visible;
use crate::delivery::RetryConfig;
use crate::estate::EstateConfig;
use crate::event::batch::{BatchConfig, BatchLimits};
use crate::event::filter::{Filter, FilterConfig};
use crate::event::redact::{RuleConfig, Rules};
pub(crate) use crate::http::settings::Http;
use crate::jobs::JobsConfig;
use crate::kafka_loop;
use crate::queue::SpillConfig;
use crate::sink::{self, Driver};
use crate::source;
use crate::source::contract::JobCache;
use crate::source::registry::Reader;
use crate::units::{ByteSize, Span};
use crate::yaml::{Key, Node, Place, Problem, Value, suggest};

mod located;
mod renamed;

pub(crate) use located::Located;

/// Where the configuration is unless told otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/saltern/saltern.yaml";

/// Everything that can be set.
pub struct Config {
    /// What is not a source or a sink.
    pub(crate) general: General,
    /// The sources, in the order of the file.
    pub(crate) sources: Vec<SourceConfig>,
    /// The sinks, in the order of the file.
    pub(crate) sinks: Vec<SinkConfig>,
    /// What is hidden of all events.
    pub redact: Arc<Rules>,
    /// How long jobs are kept in the job cache; `None` if there is none.
    pub(crate) keep_jobs: Option<Duration>,
    /// The file, if it comes from one, so that it can be read again.
    pub(crate) path: Option<PathBuf>,
    /// What is in force but should be written otherwise: keys under an old name.
    pub(crate) warnings: Vec<Problem>,
}

/// Settings of the daemon as a whole.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct General {
    /// The id of the Salt master whose events these are. Default: the host name.
    pub(crate) master_id: String,
    /// Where saltern keeps its files (0700).
    pub(crate) state_dir: PathBuf,
    /// The HTTP side. `null` is `{listen: null}`: no address, and the unix socket for the commands
    /// stays.
    pub(crate) http: Http,
    /// What is logged, and how.
    pub(crate) log: Log,
    /// Memory that the queues of all sinks may take together. If what the sinks ask for is more,
    /// each gets its part of this.
    pub(crate) memory: ByteSize,
    /// What is kept of events that sinks refuse.
    pub(crate) dead_letters: DeadLettersConfig,
    /// The job cache. `null` is `{enabled: false}`.
    pub(crate) jobs: JobsConfig,
    /// What is hidden of all events before they are stored or shown, and of what Salt writes into
    /// the job cache. Default: nothing.
    pub redact: Vec<RuleConfig>,
    /// How long an event is remembered, so that the same one from another source is dropped; `0s`
    /// for not at all. Default: 10s with two sources or more or a `returner`, else not at all.
    pub(crate) dedupe_window: Option<Span>,
    /// Metrics of the Salt estate, from the events: jobs, returns, states, minions, keys. `{}` for
    /// the defaults. Default: none.
    pub(crate) estate: Option<EstateConfig>,
    /// How long to deliver what was read once told to stop.
    pub(crate) shutdown_deadline: Span,
}

impl Default for General {
    fn default() -> Self {
        General {
            master_id: host_name(),
            state_dir: "/var/lib/saltern".into(),
            http: Http::default(),
            log: Log::default(),
            memory: ByteSize::mib(512),
            dead_letters: DeadLettersConfig::default(),
            jobs: JobsConfig::default(),
            redact: Vec::new(),
            dedupe_window: None,
            estate: None,
            shutdown_deadline: Span::seconds(25),
        }
    }
}

impl General {
    /// The settings that differ in `other` and that a running daemon cannot change.
    pub(crate) fn needs_restart(&self, other: &General) -> Vec<&'static str> {
        let differs = [
            ("state_dir", self.state_dir != other.state_dir),
            ("http.listen", self.http.listen != other.http.listen),
            ("http.socket", self.http.socket != other.http.socket),
            ("http.token", self.http.token != other.http.token),
            ("http.read_token", self.http.read_token != other.http.read_token),
            ("http.hosts", self.http.hosts != other.http.hosts),
            ("http.tls", self.http.tls != other.http.tls),
            ("log.level", self.log.level != other.log.level),
            ("log.format", self.log.format != other.log.format),
            ("dead_letters.max_bytes", self.dead_letters.max_bytes != other.dead_letters.max_bytes),
        ];
        differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }
}

/// What is kept of events that sinks refuse.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DeadLettersConfig {
    /// Bytes of refused events that are kept, of all sinks together; the oldest go first.
    pub(crate) max_bytes: ByteSize,
}

impl Default for DeadLettersConfig {
    fn default() -> Self {
        DeadLettersConfig { max_bytes: ByteSize::mib(256) }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// The least important line that is logged.
    pub(crate) level: LogLevel,
    /// How lines look. Default: text on a terminal, `journald` where they go to the journal, JSON
    /// elsewhere.
    pub(crate) format: Option<LogFormat>,
}

/// The importance of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogLevel {
    /// Something is broken for good.
    Error,
    /// Something is broken for now.
    Warn,
    /// A change of state.
    #[default]
    Info,
    /// Details of single frames and requests.
    Debug,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
    /// For people, without time and with the priority in front, which journald takes off.
    Journald,
}

/// A source.
pub(crate) struct SourceConfig {
    /// Its name.
    pub(crate) name: String,
    /// Its kind.
    pub(crate) kind: &'static source::registry::SourceKind,
    /// Its kind's own settings, ready to run.
    pub(crate) reader: Arc<dyn Reader>,
    /// The master whose events it reads.
    pub(crate) master_id: String,
    /// Differs from that of another configuration if anything of the source does.
    pub(crate) fingerprint: u128,
    /// A command runs it, which fails where a daemon would try again.
    pub(crate) is_tried_once: bool,
}

/// A sink.
pub(crate) struct SinkConfig {
    /// Its name.
    pub(crate) name: String,
    /// Its kind.
    pub(crate) kind: &'static sink::SinkKind,
    /// Its kind's own settings, ready to run.
    pub(crate) driver: Arc<dyn Driver>,
    /// What it wants.
    pub(crate) filter: Filter,
    /// What is hidden of what it is handed.
    pub redact: Arc<Rules>,
    /// When its batches are due.
    pub(crate) limits: BatchLimits,
    /// How it is tried again.
    pub(crate) retry: RetryConfig,
    /// How much may wait for it.
    pub(crate) spill: SpillConfig,
    /// How many writers it has; at least one.
    pub(crate) writers: usize,
    /// Events a second at the most.
    pub(crate) rate_limit: Option<u32>,
    /// Differs from that of another configuration if anything of the sink does.
    pub(crate) fingerprint: u128,
}

/// What every sink takes besides its kind.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct SinkOptions {
    /// Which events the sink takes. Default: all.
    filter: FilterConfig,
    /// What is hidden of the events that the sink takes, besides what is hidden of all. The filter
    /// sees them as they are without. Default: nothing.
    redact: Vec<RuleConfig>,
    /// How large batches are and how long they wait to fill.
    batch: BatchConfig,
    /// How a write that failed is tried again.
    retry: RetryConfig,
    /// How much may wait for the sink, and where.
    spill: SpillConfig,
    /// Writers that work side by side, 1 to 64. With more than one, order is kept within a batch
    /// only.
    writers: u64,
    /// Events a second at the most. Default: no limit.
    rate_limit: Option<u32>,
}

impl Default for SinkOptions {
    fn default() -> Self {
        SinkOptions {
            filter: FilterConfig::default(),
            redact: Vec::new(),
            batch: BatchConfig::default(),
            retry: RetryConfig::default(),
            spill: SpillConfig::default(),
            writers: 1,
            rate_limit: None,
        }
    }
}

/// What every source takes besides its kind.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct SourceOptions {
    /// The id of the master whose bus this is. Default: the `master_id` of the whole.
    master_id: Option<String>,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// There are mistakes in it.
    #[error("{rendered}")]
    Wrong {
        /// The mistakes.
        problems: Vec<Problem>,
        /// The same for people, each with its line.
        rendered: String,
    },
}

impl ConfigError {
    fn wrong(path: &Path, text: &str, problems: Vec<Problem>) -> Self {
        let file = path.display().to_string();
        let rendered: Vec<_> = problems.iter().map(|p| p.render(&file, text)).collect();
        ConfigError::Wrong { problems, rendered: rendered.join("\n\n") }
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
        let config = Config::parse(&text);
        let config = config.map_err(|problems| ConfigError::wrong(path, &text, problems))?;
        Ok(Config { path: Some(path.to_owned()), ..config })
    }

    /// Logs what should be written otherwise.
    pub(crate) fn log_warnings(&self) {
        let file = self.path.as_deref().unwrap_or(Path::new("the configuration"));
        for warning in &self.warnings {
            warn!("{}", warning.on_one_line(&file.display().to_string()));
        }
    }

    /// The shortest time that a sink lets a batch wait to fill; endless where there is no sink.
    pub(crate) fn shortest_linger(&self) -> Duration {
        let lingers = self.sinks.iter().map(|sink| sink.limits.linger);
        lingers.min().unwrap_or(Duration::MAX)
    }

    /// How long events are remembered so that repeats are dropped.
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
        let mut root = Node::parse(text).map_err(|problem| vec![problem])?;
        let mut problems = Vec::new();
        root.interpolate(&mut problems);
        // They name variables and files, and not what is in them.
        let unreplaced = problems.len();
        let mut warnings = Vec::new();
        renamed::apply(&mut root, &mut warnings, &mut problems);
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
        problems.extend(kafka_loop::problems(&root));
        introduce(&mut sources);
        let redact = general.as_ref().map(|general| general.redact.as_slice()).unwrap_or_default();
        let redact = Arc::new(Rules::new(redact, &root, &mut problems));
        let jobs = general.as_ref().map(|general| general.jobs).unwrap_or_default();
        let keep_jobs = keep_jobs(jobs, &sources, &root, &mut problems);
        if keep_jobs.is_some() {
            let place = root.place_of(&["sinks", sink::JOBS.name]);
            if sinks.iter().any(|sink| sink.name == sink::JOBS.name) {
                let message = format!("`{}` is the name of the job cache's sink", sink::JOBS.name);
                problems.push(Problem::at(place, message).help("name this sink otherwise"));
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
                Ok(Config { general, sources, sinks, redact, keep_jobs, path: None, warnings })
            }
            _ => {
                let others = problems.iter_mut().skip(unreplaced);
                others.for_each(|problem| root.hide_secrets(problem));
                problems
                    .sort_by_key(|problem| problem.place.map(|place| (place.line, place.column)));
                Err(problems)
            }
        }
    }
}

/// Tells each source of the buses that are read beside it.
fn introduce(sources: &mut [SourceConfig]) {
    let buses: Vec<_> = sources.iter().filter_map(|source| source.reader.bus_socket()).collect();
    for source in sources {
        if let Some(reader) = Arc::get_mut(&mut source.reader)
            && reader.beside(&buses)
        {
            source.fingerprint ^= xxh3_128(format!("{buses:?}").as_bytes());
        }
    }
}

const SOURCE_OPTIONS: &[&str] = &["master_id"];

fn source_of(
    name: &str,
    entry: &Node,
    default_master: &str,
    problems: &mut Vec<Problem>,
) -> Option<SourceConfig> {
    let known: Vec<_> = source::registry::KINDS.iter().map(|kind| kind.name).collect();
    let (kind, node) = kind_of("source", name, entry, &known, SOURCE_OPTIONS, problems)?;
    let kind = source::registry::SourceKind::named(kind)?;
    let reader = (kind.read)(&node.or_defaults(), problems);
    let options = entry.without(|key| key == kind.name || !SOURCE_OPTIONS.contains(&key));
    let options: Option<SourceOptions> = options.read_noting(problems);
    let master_id = options?.master_id.unwrap_or_else(|| default_master.to_owned());
    // The id may be that of the whole, which the entry does not show.
    let fingerprint = entry.fingerprint() ^ xxh3_128(master_id.as_bytes());
    let (name, reader) = (name.to_owned(), reader?);
    Some(SourceConfig { name, kind, reader, master_id, fingerprint, is_tried_once: false })
}

const SINK_OPTIONS: &[&str] =
    &["filter", "redact", "batch", "retry", "spill", "writers", "rate_limit"];

/// The keys of the whole whose `null` means none, besides those that have none by default.
const NULL_IN_GENERAL: [&str; 3] = ["http", "jobs", "redact"];

/// The same of a sink.
const NULL_IN_SINK: [&str; 2] = ["filter", "redact"];

fn sink_of(name: &str, entry: &Node, problems: &mut Vec<Problem>) -> Option<SinkConfig> {
    let known: Vec<_> = sink::KINDS.iter().map(|kind| kind.name).collect();
    let (kind, node) = kind_of("sink", name, entry, &known, SINK_OPTIONS, problems)?;
    let kind = sink::SinkKind::named(kind)?;
    let driver = (kind.read)(&node.or_defaults(), problems);
    let options = entry.without(|key| key == kind.name || !SINK_OPTIONS.contains(&key));
    let options = options.with_none_said(&NULL_IN_SINK);
    let options: SinkOptions = options.read_noting(problems)?;
    let filter = Filter::new(&options.filter).map_err(|bad| {
        let index = bad.index.to_string();
        Problem::at(entry.place_of(&["filter", bad.key, &index]), bad.message)
    });
    let redact = Rules::new(&options.redact, entry, problems);
    let writers = match options.writers {
        1..=64 => Ok(usize::try_from(options.writers).unwrap_or(1)),
        other => Err(Problem::at(
            entry.place_of(&["writers"]),
            format!("{other} writers are not possible; write 1 to 64"),
        )),
    };
    let filter = noted(filter, problems);
    let writers = noted(writers, problems);
    Some(SinkConfig {
        name: name.to_owned(),
        kind,
        driver: driver?,
        filter: filter?,
        redact: Arc::new(redact),
        limits: kind.batch.or(options.batch),
        retry: options.retry,
        spill: options.spill,
        writers: writers?,
        rate_limit: options.rate_limit,
        fingerprint: entry.fingerprint(),
    })
}

/// How long jobs are kept, as configured or because a source asks for them.
fn keep_jobs(
    jobs: JobsConfig,
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

/// What the job cache wants of the bus.
pub(crate) const JOB_TAGS: [&str; 6] = [
    "salt/job/*/new",
    "salt/job/*/ret/*",
    "salt/run/*/new",
    "salt/run/*/ret",
    "salt/wheel/*/new",
    "salt/wheel/*/ret",
];

/// The sink by which the bus feeds the job cache; nothing of it can be configured.
fn job_cache(place: Place, problems: &mut Vec<Problem>) -> Option<SinkConfig> {
    let kind = &sink::JOBS;
    let driver = (kind.read)(&Node { place, value: Value::Map(Vec::new()) }, problems)?;
    let tags = JOB_TAGS.map(str::to_owned).to_vec();
    let filter = Filter::new(&FilterConfig { tags, ..FilterConfig::default() });
    Some(SinkConfig {
        name: kind.name.to_owned(),
        kind,
        driver,
        filter: filter.map_err(|bad| problems.push(Problem::at(place, bad.message))).ok()?,
        redact: Arc::default(),
        limits: kind.batch,
        retry: RetryConfig::default(),
        spill: SpillConfig::default(),
        writers: 1,
        rate_limit: None,
        fingerprint: 0,
    })
}

/// The one key of an entry that names a kind, and what stands under it.
fn kind_of<'a>(
    what: &str,
    name: &str,
    entry: &'a Node,
    known: &[&'static str],
    options: &[&'static str],
    problems: &mut Vec<Problem>,
) -> Option<(&'static str, &'a Node)> {
    let mut found = None;
    let mut has_unknown = false;
    for (key, node) in noted(entry.pairs(), problems)? {
        let Some(kind) = known.iter().find(|kind| **kind == key.name) else {
            if LEFT_OUT.contains(&key.name.as_str()) {
                has_unknown = true;
                let message = format!("this build has no {}", key.name);
                let help = format!("install a build of saltern with the feature `{}`", key.name);
                problems.push(Problem::at(key.place, message).help(help));
            } else if !options.contains(&key.name.as_str()) {
                has_unknown = true;
                let all: Vec<_> = known.iter().chain(options).copied().collect();
                let problem = Problem::at(key.place, format!("unknown key `{}`", key.name));
                problems.push(problem.help(suggest(&key.name, &all)));
            }
            continue;
        };
        if let Some((first, _)) = found {
            let message = format!("the {what} `{name}` is a {first} already; one kind each");
            problems.push(Problem::at(key.place, message));
            continue;
        }
        found = Some((*kind, node));
    }
    // What was meant as the kind has just been reported.
    if found.is_none() && !has_unknown {
        let problem = Problem::at(entry.place, format!("the {what} `{name}` has no kind"));
        problems.push(problem.help(format!("write one of these under it: {}", known.join(", "))));
    }
    found
}

/// Cuts what the sinks' queues may take of memory down to `limit` together, in proportion.
fn share_memory(limit: ByteSize, sinks: &mut [SinkConfig]) {
    let wanted: u64 = sinks.iter().map(|sink| sink.spill.memory_bound() as u64).sum();
    if wanted <= limit.0 {
        return;
    }
    for sink in sinks {
        let bound = u128::from(sink.spill.memory_bound() as u64);
        let part = bound * u128::from(limit.0) / u128::from(wanted);
        sink.spill.memory = Some(ByteSize(u64::try_from(part).unwrap_or(limit.0)));
    }
}

fn noted<T>(result: Result<T, Problem>, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}

impl Node {
    /// The mapping without some of its keys.
    fn without(&self, leave_out: impl Fn(&str) -> bool) -> Node {
        let pairs = self.pairs().unwrap_or_default();
        let kept = pairs.iter().filter(|(key, _)| !leave_out(&key.name)).cloned().collect();
        Node { place: self.place, value: Value::Map(kept) }
    }

    /// The mapping with the `null` of these keys put in other words: nothing listens, jobs are not
    /// kept, every event is taken, nothing is hidden.
    fn with_none_said(mut self, keys: &[&str]) -> Node {
        let Value::Map(pairs) = &mut self.value else { return self };
        for (key, node) in pairs {
            if !matches!(node.value, Value::Null) || !keys.contains(&key.name.as_str()) {
                continue;
            }
            let place = node.place;
            let only = |name: &str, value| {
                let key = Key { name: name.to_owned(), place };
                Value::Map(vec![(key, Node { place, value })])
            };
            node.value = match key.name.as_str() {
                "http" => only("listen", Value::Null),
                "jobs" => only("enabled", Value::Bool(false)),
                "redact" => Value::List(Vec::new()),
                _ => Value::Nothing,
            };
        }
        self
    }

    /// The settings of a kind, of which there may be none: `salt_bus: null` has its defaults.
    fn or_defaults(&self) -> Cow<'_, Node> {
        match self.value {
            Value::Null => Cow::Owned(Node { place: self.place, value: Value::Nothing }),
            _ => Cow::Borrowed(self),
        }
    }
}

/// The JSON Schema of the whole configuration.
pub(crate) fn schema() -> Schema {
    let mut generator = SchemaGenerator::default();
    let sources =
        source::registry::KINDS.iter().map(|kind| (kind.name, (kind.schema)(&mut generator)));
    let sources = entry_schema::<SourceOptions>(sources.collect(), &[]);
    let sinks = sink::KINDS.iter().map(|kind| (kind.name, (kind.schema)(&mut generator)));
    let sinks = entry_schema::<SinkOptions>(sinks.collect(), &NULL_IN_SINK);
    let mut schema = schema_of::<General>();
    if let Some(properties) = schema.get_mut("properties").and_then(|p| p.as_object_mut()) {
        properties
            .insert("sources".into(), json!({"type": "object", "additionalProperties": sources}));
        properties.insert("sinks".into(), json!({"type": "object", "additionalProperties": sinks}));
    }
    allow_null(&mut schema, &NULL_IN_GENERAL);
    let definitions = generator.take_definitions(true);
    if let Some(defs) = schema.ensure_object().entry("$defs").or_insert(json!({})).as_object_mut() {
        defs.extend(definitions);
    }
    schema.insert("title".into(), json!("saltern configuration"));
    schema.insert("required".into(), json!(["sources", "sinks"]));
    schema
}

/// An entry: the options of all kinds, and exactly one kind.
fn entry_schema<O: JsonSchema>(
    kinds: Vec<(&'static str, Schema)>,
    nullable: &[&str],
) -> serde_json::Value {
    let mut schema = schema_of::<O>();
    allow_null(&mut schema, nullable);
    let one_of: Vec<_> = kinds.iter().map(|(name, _)| json!({"required": [name]})).collect();
    if let Some(properties) = schema.get_mut("properties").and_then(|p| p.as_object_mut()) {
        for (name, kind) in kinds {
            properties.insert(name.to_owned(), json!({"anyOf": [kind, {"type": "null"}]}));
        }
    }
    schema.insert("oneOf".into(), json!(one_of));
    schema.into()
}

/// Lets these keys be `null` too.
fn allow_null(schema: &mut Schema, keys: &[&str]) {
    for key in keys {
        let read = schema.get_mut("properties").and_then(|all| all.get_mut(*key));
        if let Some(read) = read {
            let description = read.get("description").cloned();
            let one = std::mem::take(read);
            *read = json!({"description": description, "anyOf": [one, {"type": "null"}]});
        }
    }
}

/// The schema of one type, its definitions written out.
fn schema_of<T: JsonSchema>() -> Schema {
    let settings = schemars::generate::SchemaSettings::default().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>()
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
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
        for kind in sink::KINDS {
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
}
