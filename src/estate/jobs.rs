//! Jobs that wait for returns, and the returns that never came.

use std::collections::{HashMap, HashSet, VecDeque};

use xxhash_rust::xxh3::xxh3_64;

/// Jobs that are waited for at a time, at the most.
const JOBS: usize = 10_000;

/// Returns that are waited for at a time, at the most: 16 bytes of memory each.
const RETURNS: usize = 500_000;

/// A job that waits.
struct Job {
    function: Box<str>,
    /// Hashes of the ids of the minions that have not returned.
    missing: HashSet<u64>,
}

/// The jobs that wait.
pub(super) struct Jobs {
    /// How long a job waits, in seconds.
    within: u64,
    by_id: HashMap<Box<str>, Job>,
    /// When each began, in seconds since 1970, in order.
    begun: VecDeque<(u64, Box<str>)>,
    returns: usize,
}

impl Jobs {
    /// None yet; each will wait for so many seconds.
    pub(super) fn new(within: u64) -> Self {
        Jobs { within, by_id: HashMap::new(), begun: VecDeque::new(), returns: 0 }
    }

    /// The same jobs; each waits for so many seconds.
    pub(super) fn waiting_for(self, within: u64) -> Self {
        Jobs { within, ..self }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.by_id.len()
    }

    /// A job was published to these minions; `false` if there is no room to wait for it.
    pub(super) fn begin<'a>(
        &mut self,
        now: u64,
        id: &str,
        function: &str,
        minions: impl Iterator<Item = &'a [u8]>,
    ) -> bool {
        let missing: HashSet<u64> = minions.map(xxh3_64).collect();
        if missing.is_empty() || self.by_id.contains_key(id) {
            return true;
        }
        if self.begun.len() >= JOBS || self.returns + missing.len() > RETURNS {
            return false;
        }
        self.returns += missing.len();
        self.begun.push_back((now, id.into()));
        self.by_id.insert(id.into(), Job { function: function.into(), missing });
        true
    }

    /// A minion has returned.
    pub(super) fn returned(&mut self, id: &str, minion: &str) {
        let Some(job) = self.by_id.get_mut(id) else { return };
        if job.missing.remove(&xxh3_64(minion.as_bytes())) {
            self.returns -= 1;
        }
        if job.missing.is_empty() {
            self.by_id.remove(id);
        }
    }

    /// Stops waiting for what has waited long enough: how many returns of which function are
    /// missing.
    pub(super) fn give_up(&mut self, now: u64) -> Vec<(Box<str>, usize)> {
        let mut given_up = Vec::new();
        while let Some((_, id)) = self.begun.pop_front_if(|(begun, _)| *begun + self.within <= now)
        {
            if let Some(job) = self.by_id.remove(&id) {
                self.returns -= job.missing.len();
                given_up.push((job.function, job.missing.len()));
            }
        }
        given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(jobs: &mut Jobs, now: u64, id: &str, minions: &[&str]) -> bool {
        jobs.begin(now, id, "test.ping", minions.iter().map(|minion| minion.as_bytes()))
    }

    #[test]
    fn what_never_comes_is_counted_once() {
        let mut jobs = Jobs::new(60);
        assert!(begin(&mut jobs, 100, "1", &["a", "b", "c"]));
        assert!(begin(&mut jobs, 110, "2", &["a"]));
        for (job, minion) in [("1", "b"), ("1", "b"), ("1", "nobody"), ("2", "a"), ("3", "a")] {
            jobs.returned(job, minion);
        }
        assert_eq!((jobs.waiting(), jobs.returns), (1, 2));
        assert!(jobs.give_up(159).is_empty());
        assert_eq!(jobs.give_up(160), [("test.ping".into(), 2)]);
        assert!(jobs.give_up(1000).is_empty());
        assert!(jobs.begun.is_empty() && jobs.returns == 0);
    }

    #[test]
    fn there_is_an_end_to_waiting() {
        let mut jobs = Jobs::new(60);
        for id in 0..JOBS {
            assert!(begin(&mut jobs, 1, &id.to_string(), &["a"]));
        }
        assert!(!begin(&mut jobs, 1, "one more", &["a"]));
        jobs.give_up(61);
        let ids: Vec<_> = (0..RETURNS).map(|id| id.to_string()).collect();
        assert!(jobs.begin(61, "x", "f", ids.iter().map(String::as_bytes)));
        assert!(!begin(&mut jobs, 61, "y", &["a"]));
    }
}
