//! Options of a master about events, returns or jobs that become no setting here.
//!
//! The names are those of Salt 3006 to 3008 (`VALID_OPTS`). Options that hand events or jobs on
//! become the sources, the sinks and the job cache. All others that are set become comments by this
//! table. An option that no table knows is a comment as well if its name is about events, returns,
//! jobs or engines.

use super::masked::{self, masked};
use super::master::Master;
use super::page::Page;
use super::python::{is_false, scalar};
use super::returners::returners;
use crate::yaml::{Node, Value};

/// Options, and what becomes of each.
const SAID: &[(&str, &str)] = &[
    // Options of `event_return` and the job caches that could not be carried over.
    ("event_return", NOT_A_NAME),
    ("event_return_whitelist", NO_EVENT_RETURN),
    ("event_return_blacklist", NO_EVENT_RETURN),
    ("event_return_queue", "is the master's: each sink here has a `batch` of its own."),
    (
        "event_return_queue_max_seconds",
        "has a meaning with `event_return` and `event_return_queue` alone; here it is `batch.linger`.",
    ),
    ("event_return_niceness", "has no meaning here; set `Nice=` in the systemd unit."),
    ("master_job_cache", NOT_A_NAME),
    ("ext_job_cache", NOT_A_NAME),
    ("keep_jobs", KEEP),
    ("keep_jobs_seconds", KEEP),
    ("job_cache", "is about the master's own store; for saltern's set `jobs.enabled`."),
    ("job_cache_store_endtime", "is the master's; saltern knows the time of each return."),
    (
        "archive_jobs",
        "has no counterpart: the job cache forgets what is older than `jobs.keep_jobs`.",
    ),
    ("cache_jobs", "is about files of minions, which saltern does not touch."),
    ("disable_returners", "is about returners in the master and minions, not about sinks."),
    ("returner_dirs", "holds returners of your own, for which saltern has no sinks."),
    ("engines_dirs", "holds engines of your own; those that hand events on do so beside saltern."),
    ("return", "names the returner of minions; the `saltern` returner can replace it."),
    ("schedule", "may hand returns of its own jobs to a returner, which goes on beside saltern."),
    // The bus.
    ("max_event_size", "is less than what is read in any case (`max_frame`)."),
    ("ipc_mode", "is none that Salt knows; the unix socket is read."),
    ("tcp_master_pub_port", "is the bus's port with `ipc_mode: tcp` alone."),
    ("ipc_write_buffer", "is the master's: its buffer for slow readers of the bus."),
    ("event_match_type", "is how the master's own programs match tags; filters here are globs."),
    ("event_publisher_niceness", "is about a process of the master; it stays there."),
    // The events that there are.
    ("auth_events", MAKES),
    ("auth_events_autosign_grains", MAKES),
    ("enable_legacy_startup_events", MAKES),
    ("master_stats", MAKES),
    ("master_stats_event_iter", MAKES),
    ("minion_data_cache_events", MAKES),
    ("ping_on_rotate", MAKES),
    ("presence_events", MAKES),
    ("runner_returns", MAKES),
    ("state_events", MAKES),
    // Masters below masters, and beside each other.
    ("order_masters", "makes this a master of masters: events of the others come over its bus."),
    ("syndic_event_forward_timeout", SYNDIC),
    ("syndic_failover", SYNDIC),
    ("syndic_finger", SYNDIC),
    ("syndic_forward_all_events", SYNDIC),
    ("syndic_jid_forward_cache_hwm", SYNDIC),
    ("syndic_master", SYNDIC),
    ("syndic_master_port", SYNDIC),
    ("syndic_retries", SYNDIC),
    ("syndic_wait", SYNDIC),
    ("cluster_id", CLUSTER),
    ("cluster_peers", CLUSTER),
    // Parts that act on events within the master.
    ("reactor", REACTS),
    ("reactor_niceness", REACTS),
    ("reactor_refresh_interval", REACTS),
    ("reactor_worker_hwm", REACTS),
    ("reactor_worker_threads", REACTS),
    ("thorium_interval", REACTS),
    ("thorium_roots", REACTS),
    ("thorium_top", REACTS),
    ("thoriumenv", REACTS),
];

const KEEP: &str = "is about the master's own files, or overruled by the other of `keep_jobs` and `keep_jobs_seconds`; here it is `jobs.keep_jobs`.";
const NOT_A_NAME: &str = "is not the name of a returner.";
const NO_EVENT_RETURN: &str =
    "has a meaning with `event_return` alone; here it is a sink's `filter`.";
const MAKES: &str = "decides which events the master makes; saltern reads all of them.";
const SYNDIC: &str =
    "is about a syndic, which hands events to the master above; saltern can run beside either.";
const CLUSTER: &str = "is about masters that share their events: what is on the bus of one is on those of the others.";
const REACTS: &str = "acts on events within the master, and goes on doing so.";

/// Options with such a word in their names that are not about stored or handed on events: ports,
/// sizes and time limits of Salt's own programs, and options of minions alone.
pub const WITHOUT_MEANING: &[&str] = &[
    "gather_job_timeout",
    "mine_return_job",
    "pub_ret",
    "ret_port",
    "return_retry_timer",
    "return_retry_timer_max",
    "return_retry_tries",
    "source_ret_port",
    "syndic_dir",
    "syndic_log_file",
    "syndic_pidfile",
    "syndic_user",
];

/// Words of names that are about events, returns, jobs or engines.
const WORDS: [&str; 12] = [
    "engine",
    "engines",
    "event",
    "events",
    "job",
    "jobs",
    "ret",
    "return",
    "returner",
    "returners",
    "returns",
    "syndic",
];

/// Options that are lists of texts.
const LISTS: [&str; 3] = ["event_return", "event_return_whitelist", "event_return_blacklist"];

/// Explains each option that is left.
pub(super) fn left_over(master: &Master, page: &mut Page) {
    for key in LISTS {
        let Some(Node { value: Value::List(nodes), .. }) = master.get(key) else { continue };
        for node in nodes.iter().filter(|node| scalar(node).is_none()) {
            page.line(0, &format!("# {key}: {} is no text, and left out.", masked("", node)));
        }
    }
    for (key, node) in master.keys() {
        let is_option_of_returner = returners().iter().any(|returner| returner.owns(key));
        if page.has_said(key) || WITHOUT_MEANING.contains(&key) || is_option_of_returner {
            continue;
        }
        if key == "schedule" && !names_returner(node) {
            continue;
        }
        if let Some((_, what)) = SAID.iter().find(|(name, _)| *name == key) {
            // Its name is known and tells no secret, in spite of its words.
            page.line(0, &format!("# {key}: {} {what}", masked("", node)));
            continue;
        }
        let mut words = key.split(|c: char| !c.is_alphanumeric());
        if words.any(|word| WORDS.contains(&word)) && !is_false(node) {
            let what = "is none of Salt's own options, and nothing is made of it here.";
            page.line(0, &format!("# {}: {} {what}", masked::name(key), masked(key, node)));
        }
    }
}

/// True if a job of the schedule has a returner.
fn names_returner(schedule: &Node) -> bool {
    let Value::Map(jobs) = &schedule.value else { return false };
    jobs.iter().any(|(_, job)| {
        let options = job.pairs().unwrap_or_default();
        options.iter().any(|(key, _)| ["returner", "return_config"].contains(&key.name.as_str()))
    })
}
