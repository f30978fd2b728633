//! Jobs that wait for returns, and the returns that never came.

use std::collections::{HashMap, HashSet, VecDeque};

/// Publications of jobs that are waited for at a time, at the most.
const JOBS: usize = 10_000;

/// Returns that are waited for at a time, at the most: 16 bytes of memory each.
const RETURNS: usize = 500_000;

/// Bytes of the names of functions that are remembered at a time, at the most.
const NAMES: usize = 16 << 20;

/// A job that waits.
struct Job {
    /// Each function that it runs.
    functions: Box<[Box<str>]>,
    /// Hashes of the ids of the minions that have not returned.
    missing: HashSet<u64>,
    /// The time when its last part was published, in seconds since 1970.
    begun: u64,
}

impl Job {
    /// Bytes of the names of its functions.
    fn names(&self) -> usize {
        names(self.functions.iter().map(|name| &**name))
    }
}

fn names<'a>(functions: impl Iterator<Item = &'a str>) -> usize {
    functions.map(|name| name.len() + size_of::<Box<str>>()).sum()
}

/// The jobs that wait. A job is the hash of its id, and so is a minion.
pub(super) struct PendingJobs {
    /// The time for which a job waits, in seconds.
    within: u64,
    by_id: HashMap<u64, Job>,
    /// The time when each was published, in seconds since 1970, in order. A batch is published in
    /// parts.
    begun: VecDeque<(u64, u64)>,
    returns: usize,
    names: usize,
}

impl PendingJobs {
    /// None yet; each will wait for so many seconds.
    pub(super) fn new(within: u64) -> Self {
        PendingJobs { within, by_id: HashMap::new(), begun: VecDeque::new(), returns: 0, names: 0 }
    }

    /// The same jobs; each waits for so many seconds.
    pub(super) fn waiting_for(self, within: u64) -> Self {
        PendingJobs { within, ..self }
    }

    /// The number of jobs that wait.
    pub(super) fn waiting(&self) -> usize {
        self.by_id.len()
    }

    /// A job, or another part of it, was published to these minions; `false` if there is no room to
    /// wait for it.
    pub(super) fn begin(
        &mut self,
        now: u64,
        id: u64,
        functions: &[&str],
        minions: &HashSet<u64>,
    ) -> bool {
        if minions.is_empty() {
            return true;
        }
        let names = names(functions.iter().copied());
        let is_full = self.begun.len() >= JOBS
            || self.returns + minions.len() > RETURNS
            || self.names + names > NAMES;
        if is_full {
            return false;
        }
        self.begun.push_back((now, id));
        let job = self.by_id.entry(id).or_insert_with(|| {
            self.names += names;
            let functions = functions.iter().map(|name| Box::from(*name)).collect();
            Job { functions, missing: HashSet::new(), begun: now }
        });
        job.begun = now;
        let before = job.missing.len();
        job.missing.extend(minions);
        self.returns += job.missing.len() - before;
        true
    }

    /// A minion has returned.
    pub(super) fn returned(&mut self, id: u64, minion: u64) {
        let Some(job) = self.by_id.get_mut(&id) else { return };
        if job.missing.remove(&minion) {
            self.returns -= 1;
        }
        if job.missing.is_empty() {
            self.names -= job.names();
            self.by_id.remove(&id);
        }
    }

    /// Gives up jobs that have waited long enough. Returns their functions, with the number of
    /// returns that are missing of each.
    pub(super) fn give_up(&mut self, now: u64) -> Vec<(Box<str>, usize)> {
        let mut given_up = Vec::new();
        while let Some((begun, id)) =
            self.begun.pop_front_if(|(begun, _)| *begun + self.within <= now)
        {
            // Another part of it was published later.
            if self.by_id.get(&id).is_none_or(|job| job.begun > begun) {
                continue;
            }
            if let Some(job) = self.by_id.remove(&id) {
                self.names -= job.names();
                self.returns -= job.missing.len();
                let functions = job.functions.into_iter();
                given_up.extend(functions.map(|function| (function, job.missing.len())));
            }
        }
        given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(jobs: &mut PendingJobs, now: u64, id: u64, minions: &[u64]) -> bool {
        jobs.begin(now, id, &["test.ping"], &minions.iter().copied().collect())
    }

    #[test]
    fn what_never_comes_is_counted_once() {
        let mut jobs = PendingJobs::new(60);
        assert!(begin(&mut jobs, 100, 1, &[1, 2, 3]));
        assert!(begin(&mut jobs, 110, 2, &[1]));
        for (job, minion) in [(1, 2), (1, 2), (1, 9), (2, 1), (3, 1)] {
            jobs.returned(job, minion);
        }
        assert_eq!((jobs.waiting(), jobs.returns), (1, 2));
        assert!(jobs.give_up(159).is_empty());
        assert_eq!(jobs.give_up(160), [("test.ping".into(), 2)]);
        assert!(jobs.give_up(1000).is_empty());
        assert!(jobs.begun.is_empty() && jobs.returns == 0 && jobs.names == 0);
    }

    #[test]
    fn a_batch_is_waited_for_from_its_last_part_on() {
        let mut jobs = PendingJobs::new(60);
        assert!(begin(&mut jobs, 100, 1, &[1, 2]));
        jobs.returned(1, 1);
        assert!(begin(&mut jobs, 150, 1, &[3]));
        assert!(jobs.give_up(160).is_empty());
        jobs.returned(1, 3);
        assert_eq!(jobs.give_up(210), [("test.ping".into(), 1)]);
        assert!(jobs.begun.is_empty() && jobs.returns == 0 && jobs.names == 0);
    }

    #[test]
    fn a_job_of_several_functions_misses_the_returns_of_each() {
        let mut jobs = PendingJobs::new(60);
        assert!(jobs.begin(1, 1, &["test.ping", "cmd.run"], &HashSet::from_iter([1, 2])));
        jobs.returned(1, 2);
        assert_eq!(jobs.give_up(61), [("test.ping".into(), 1), ("cmd.run".into(), 1)]);
    }

    #[test]
    fn invariant_6_there_is_an_end_to_waiting() {
        let mut jobs = PendingJobs::new(60);
        for id in 0..JOBS as u64 {
            assert!(begin(&mut jobs, 1, id, &[1]));
        }
        assert!(!begin(&mut jobs, 1, u64::MAX, &[1]));
        jobs.give_up(61);
        assert!(jobs.begin(61, 1, &["f"], &(0..RETURNS as u64).collect()));
        assert!(!begin(&mut jobs, 61, 2, &[1]));
        jobs.give_up(121);
        let names = vec!["a-long-name-of-a-function"; 1000];
        let begun = (0..JOBS as u64)
            .filter(|id| jobs.begin(121, *id, &names, &HashSet::from_iter([1])))
            .count();
        assert!((100..1000).contains(&begun) && jobs.names <= NAMES, "{begun}");
    }
}
