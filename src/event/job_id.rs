//! The ids of jobs.

/// Tells if a job may have this id. A minion's schedule with `return_job: nocache` returns under
/// `nocache`, and what has no id yet under `req`.
pub(crate) fn is_job(jid: &str) -> bool {
    !matches!(jid, "" | "nocache" | "req")
}

/// Tells if an id is one that Salt makes: twenty digits of a time, with `_<pid>` behind them if the
/// master makes unique ones.
pub(crate) fn is_jid(text: &str) -> bool {
    let (digits, pid) = text.split_once('_').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.len() == 20 && is_number(digits) && is_number(pid)
}
