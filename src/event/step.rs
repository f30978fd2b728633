//! The two events of a job that the master runs itself: `salt/run/<jid>/new` and
//! `salt/run/<jid>/ret`, and the same under `salt/wheel/`.

use super::job_id::is_job;

/// The key of an event's time. Salt hands the return of a runner to its job cache under the time of
/// the first event, so that it is no part of the id of the second.
pub(super) const STAMP: &str = "_stamp";

/// An event of a runner's job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It has begun.
    New,
    /// It has returned.
    Return,
}

impl Step {
    /// The step, and the id of the job, that a tag names. Other events of runners are no step.
    pub(crate) fn in_tag(tag: &str) -> Option<(Step, &str)> {
        let rest = tag.strip_prefix("salt/run/").or_else(|| tag.strip_prefix("salt/wheel/"))?;
        let (jid, step) = rest.split_once('/')?;
        let step = match step {
            "new" => Step::New,
            "ret" => Step::Return,
            _ => return None,
        };
        is_job(jid).then_some((step, jid))
    }
}
