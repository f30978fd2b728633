//! Jobs and returns as rows of tables.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::event::job_return::Outcome;

/// Characters of a text in a table.
const SHORT: usize = 80;

/// A page as the daemon writes it.
#[derive(Deserialize)]
pub(super) struct Page {
    pub(super) jobs: Vec<Job>,
    pub(super) next: Option<String>,
}

/// A page whose jobs are passed on as they are.
#[derive(Deserialize)]
pub(super) struct Objects {
    pub(super) jobs: Vec<Value>,
}

/// The fields of a job that tables show.
#[derive(Deserialize)]
pub(super) struct Job {
    pub(super) jid: String,
    pub(super) function: Option<String>,
    pub(super) user: Option<String>,
    pub(super) target: Value,
    pub(super) started: Option<String>,
    /// Not known of a job that a store alone has.
    pub(super) last_seen: Option<String>,
    pub(super) expected: u64,
    pub(super) returned: u64,
    pub(super) failed: u64,
    pub(super) missing: u64,
    /// Only a job that is shown alone has these.
    #[serde(default)]
    pub(super) missing_minions: Vec<String>,
    #[serde(default)]
    pub(super) returns: serde_json::Map<String, Value>,
}

pub(super) fn heading() -> [String; 9] {
    ["JID", "STARTED", "FUNCTION", "TARGET", "USER", "RETURNED", "FAILED", "MISSING", "TOOK"]
        .map(str::to_owned)
}

pub(super) fn return_heading() -> [String; 5] {
    ["MINION", "OUTCOME", "RETCODE", "AFTER", "RETURN"].map(str::to_owned)
}

impl Job {
    pub(super) fn row(&self) -> [String; 9] {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let target = match &self.target {
            Value::String(target) => target.clone(),
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        };
        [
            self.jid.clone(),
            text(&self.started.as_deref().map(to_the_second)),
            shortened(&text(&self.function)),
            shortened(&target),
            shortened(&text(&self.user)),
            format!("{}/{}", self.returned, self.expected.max(self.returned)),
            self.failed.to_string(),
            self.missing.to_string(),
            match &self.last_seen {
                Some(last_seen) if self.returned > 0 => self.after(last_seen),
                _ => "-".to_owned(),
            },
        ]
    }

    pub(super) fn return_row(&self, minion: &str, ret: &Value) -> [String; 5] {
        // A daemon of an older release says `ok` alone.
        let outcome = ret["outcome"]
            .as_str()
            .unwrap_or_else(|| Outcome::of_worked(ret["ok"].as_bool()).name());
        let test = if ret["test"] == true { " (test)" } else { "" };
        let is_in_conflict = ret["conflict"] == true;
        let doubt = match ret["contradicting_tag"].as_str() {
            Some(_) => " (its tag differs)",
            None if is_in_conflict => " (conflict)",
            None => "",
        };
        let received = ret["received"].as_str();
        [
            minion.to_owned(),
            format!("{outcome}{test}{doubt}"),
            match &ret["retcode"] {
                Value::Null => "-".to_owned(),
                code => shortened(&code.to_string()),
            },
            received.map_or_else(|| "-".to_owned(), |time| self.after(time)),
            shortened(&ret["return"].to_string()),
        ]
    }

    /// The time from the job's publication to `time`, as text.
    fn after(&self, time: &str) -> String {
        let started = self.started.as_ref().and_then(|time| time.parse::<Timestamp>().ok());
        match (started, time.parse::<Timestamp>()) {
            (Some(started), Ok(time)) => {
                format!("{:.1}s", time.duration_since(started).as_secs_f64().max(0.0))
            }
            _ => "-".to_owned(),
        }
    }
}

/// A time of RFC 3339 without its fraction.
fn to_the_second(time: &str) -> String {
    time.get(..19).unwrap_or(time).replace('T', " ")
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= SHORT {
        return text.to_owned();
    }
    text.chars().take(SHORT - 1).chain(['…']).collect()
}
