//! The cost of the job cache: filling it, looking jobs up, listing them, forgetting them.
//!
//! `load-tests/salt_local_cache.py` asks Salt's own `local_cache` the same of as many jobs.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use saltern::event::batch::Entry;
use saltern::event::{Authority, Event, Origin};
use saltern::jobs::Jobs;
use saltern::jobs::listing::{JobOutcome, JobSelection};
use saltern::jobs::store::Question;
use serde_json::json;

use crate::Failure;

/// Jobs that are stored together, as a batch of the bus is.
const TOGETHER: u64 = 100;

/// A minion's return: 300 bytes. With its envelope that is a small return.
const TEXT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\
bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\
cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";

/// Bytes of an answer that may be in memory, as where the returner's source asks.
const ANSWER: usize = 64 << 10;

/// Each question is asked so often; the table has the shortest time, since other programs can only
/// make it longer.
const ROUNDS: usize = 5;

/// Fills a new cache in `folder` with so many jobs of so many returns each, and prints a table.
pub(crate) fn print(folder: &Path, count: u64, minions: u64) -> Result<(), Failure> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder)?;
    let jobs = Jobs::new(folder);
    jobs.keep(Some(Duration::from_secs(3600)));
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
    // The first half is old enough to be forgotten.
    let old = now.saturating_sub(7_200_000_000);
    let origin = Origin { source: "bus".into(), master_id: "master".into() };
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    for first in (0..count).step_by(usize::try_from(TOGETHER)?) {
        let received = if first < count / 2 { old } else { now };
        let events: Vec<Event> =
            (first..count.min(first + TOGETHER)).flat_map(|job| events_of(job, minions)).collect();
        let batch = Instant::now();
        let authority = Authority::Bus;
        let entry = |event| Entry { event, origin: &origin, received, authority };
        jobs.record(events.iter().map(entry))?;
        longest = longest.max(batch.elapsed());
    }
    let filling = began.elapsed();
    let returns = count * minions;
    #[allow(clippy::cast_precision_loss)]
    let rate = (count + returns) as f64 / filling.as_secs_f64();
    println!("| what | {count} jobs, {returns} returns |");
    println!("|---|---|");
    println!("| filling, events a second | {rate:.0} |");
    println!("| longest batch of {TOGETHER} jobs | {longest:.1?} |");
    println!("| size on disk, MiB | {} |", size(folder)? >> 20);
    let middle = jid(count * 3 / 4);
    let answer = |question: &Question| jobs.ask_now(question.clone(), ANSWER).map(drop);
    for (name, question) in [
        ("`get_load`", Question::GetLoad { jid: middle.clone() }),
        ("`get_jid`", Question::GetJid { jid: middle.clone() }),
        ("`get_jids` (`jobs.list_jobs`)", Question::GetJids),
        ("`get_jids_filter` 50", Question::GetJidsFilter { count: 50, filter_find_job: true }),
        ("`get_fun`", Question::GetFun { fun: "test.echo".to_owned() }),
        ("`get_minions`", Question::GetMinions),
    ] {
        ask(name, || answer(&question))?;
    }
    ask("a page", || jobs.page(&JobSelection::default()).map(drop))?;
    let failed = JobSelection { outcome: Some(JobOutcome::Failed), ..JobSelection::default() };
    ask("a page of failed ones, where there are none", || jobs.page(&failed).map(drop))?;

    let (began, mut steps, mut longest) = (Instant::now(), 0_u32, Duration::ZERO);
    loop {
        let step = Instant::now();
        let has_more = jobs.forget_some()?;
        longest = longest.max(step.elapsed());
        steps += 1;
        if !has_more {
            break;
        }
    }
    println!("| forgetting half of it | {:.1?} in {steps} steps |", began.elapsed());
    println!("| longest step | {longest:.1?} |");
    Ok(())
}

fn ask<E: Into<Failure>>(
    what: &str,
    mut question: impl FnMut() -> Result<(), E>,
) -> Result<(), Failure> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        question().map_err(Into::into)?;
        times.push(began.elapsed());
    }
    println!("| {what} | {:.1?} |", times.into_iter().min().unwrap_or_default());
    Ok(())
}

fn size(folder: &Path) -> Result<u64, Failure> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

/// The id of the job of this number; jobs are a tenth of a second apart.
fn jid(job: u64) -> String {
    let (seconds, tenths) = (job / 10, job % 10);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    format!(
        "202611{:02}{:02}{:02}{:02}{tenths}00000",
        1 + days % 28,
        hours % 24,
        minutes % 60,
        seconds % 60
    )
}

fn events_of(job: u64, minions: u64) -> Vec<Event> {
    let jid = jid(job);
    let names: Vec<_> = (0..minions).map(|minion| format!("web-{minion}.example.com")).collect();
    let event = |tag: &str, data: &serde_json::Value| {
        Event::new(tag, &rmp_serde::to_vec(data).unwrap_or_default())
    };
    let new = json!({
        "jid": jid, "tgt_type": "glob", "tgt": "web-*", "user": "root", "fun": "test.echo",
        "arg": ["x"], "minions": names, "missing": [], "_stamp": "2026-11-21T23:33:36.123456",
    });
    let mut events = vec![event(&format!("salt/job/{jid}/new"), &new)];
    for name in &names {
        let ret = json!({
            "cmd": "_return", "id": name, "success": true, "return": TEXT, "retcode": 0,
            "jid": jid, "fun": "test.echo", "fun_args": ["x"],
            "_stamp": "2026-11-21T23:33:36.123456",
        });
        events.push(event(&format!("salt/job/{jid}/ret/{name}"), &ret));
    }
    events
}
