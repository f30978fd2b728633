//! Settings of the daemon as a whole.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::http::Http;
use crate::estate::EstateConfig;
use crate::event::redact::RuleConfig;
use crate::jobs::JobsConfig;
use crate::observe::log_settings::Log;
use crate::units::{ByteSize, Span};

/// Settings of the daemon as a whole.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct General {
    /// The id of the Salt master whose events these are. Default: the host name.
    pub(crate) master_id: String,
    /// The directory in which saltern keeps its files (0700).
    pub(crate) state_dir: PathBuf,
    /// The HTTP side. `null` is `{listen: null}`: no address, and the unix socket for the commands
    /// stays.
    pub(crate) http: Http,
    /// The log: its level and its format.
    pub(crate) log: Log,
    /// Memory that the queues of all sinks may take together. If the sinks ask for more, each gets
    /// its part of this.
    pub(crate) memory: ByteSize,
    /// The dead letters: events that sinks refuse.
    pub(crate) dead_letters: DeadLettersConfig,
    /// The job cache. `null` is `{enabled: false}`.
    pub(crate) jobs: JobsConfig,
    /// Rules that hide values of all events before they are stored or shown, and of data that Salt
    /// writes into the job cache. Default: nothing.
    pub redact: Vec<RuleConfig>,
    /// The time that an event is remembered, so that the same one from another source is dropped;
    /// `0s` for not at all. Default: 10s with two sources or more or a `returner`, else not at all.
    pub(crate) dedupe_window: Option<Span>,
    /// Metrics of the Salt estate, from the events: jobs, returns, states, minions, keys. `{}` for
    /// the defaults. Default: none.
    pub(crate) estate: Option<EstateConfig>,
    /// The time to deliver events that were read, once saltern is told to stop.
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

/// The room for dead letters, which are events that sinks refuse.
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

pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}
