//! A job that the job cache does not know, for people and scripts, as the stores of sinks have it.
//!
//! Its JSON has the members that a job of the cache has. Values that no store keeps, such as the
//! time when a return came, are null.

use std::io;

use serde_json::json;

use super::began::time_in;
use super::listing::Pieces;
use super::spool::Spooled;
use super::store::{AUTHORITY, AskError, OUTCOME, Question};
use super::stores::deadline;
use super::{Jobs, JobsError};
use crate::codec::msgpack;
use crate::event::job_return::{Functions, JobReturn, Outcome, Verdict};

/// The bytes of a load and of all returns of a job that are shown.
const LONGEST: u64 = 16 << 20;

/// A job as the stores have it, not yet as JSON.
#[derive(Debug)]
pub(crate) struct StoredJob {
    jid: String,
    load: Option<Spooled>,
    returns: Option<Spooled>,
    end_time: Option<Spooled>,
}

impl Jobs {
    /// Looks for a job in the stores behind the cache.
    pub(crate) async fn find_stored(
        &self,
        jid: &str,
        memory: usize,
    ) -> Result<Option<StoredJob>, AskError> {
        let (stores, until) = (self.stores(), deadline());
        let ask = |question: Question| {
            let stores = &stores;
            let answer = move || self.answer_to(question.clone(), memory).with_verdicts();
            async move { stores.ask_in_turn(until, answer).await }
        };
        let jid = jid.to_owned();
        let load = ask(Question::GetLoad { jid: jid.clone() }).await?;
        let returns = ask(Question::GetJid { jid: jid.clone() }).await?;
        if load.is_none() && returns.is_none() {
            return Ok(None);
        }
        let end_time = ask(Question::GetEndtime { jid: jid.clone() }).await?;
        Ok(Some(StoredJob { jid, load, returns, end_time }))
    }

    /// The job as JSON, of which `memory` bytes may be in memory. It blocks as long as that takes.
    pub(crate) fn show_stored(&self, job: StoredJob, memory: usize) -> Result<Spooled, JobsError> {
        let doing = format!("showing the job {} as a store has it", job.jid);
        let mut out = Pieces::new(self.listing_spool(memory));
        let written = job.write(&mut out).and_then(|()| out.finished());
        written.map_err(|cause| AskError::new(doing, cause).into())
    }
}

impl StoredJob {
    fn write(self, out: &mut Pieces) -> io::Result<()> {
        let jid = self.jid;
        let (load, returns) = (read(self.load)?, read(self.returns)?);
        let end_time = read(self.end_time)?;
        let load = load.as_deref();
        let find = |key| load.and_then(|load| msgpack::find(load, key));
        let fun = find("fun");
        let functions = Functions::of(fun.unwrap_or_default());
        let returns = msgpack::raw_pairs(returns.as_deref().unwrap_or_default());
        let returns: Vec<_> = returns.filter_map(|(key, ret)| Some((text(key)?, ret))).collect();
        let minions: Vec<_> =
            find("Minions").into_iter().flat_map(msgpack::items).filter_map(text).collect();
        let has_returned = |minion: &&str| returns.iter().any(|(other, _)| other == minion);
        let missing: Vec<_> = minions.iter().copied().filter(|m| !has_returned(m)).collect();
        let verdicts: Vec<_> = returns
            .iter()
            .map(|(_, ret)| {
                let judged = msgpack::text(ret, OUTCOME).and_then(Outcome::named);
                let mut ret = JobReturn::of(ret);
                // The store tells it of the job alone.
                if let Some(fun) = fun {
                    ret.take(b"fun", fun);
                }
                let verdict = ret.verdict();
                // The store has seen more of the return than it keeps.
                Verdict { outcome: judged.unwrap_or(verdict.outcome), ..verdict }
            })
            .collect();
        let failed = verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Failed).count();
        let head = json!({
            "jid": jid,
            "function": fun.map(|_| functions.shown()),
            "functions": functions.iter().collect::<Vec<_>>(),
            "user": find("user").and_then(text),
            "started": time_in(&jid).map(|time| time.to_string()),
            "first_seen": null,
            "last_seen": null,
            "end_time": end_time.as_deref().and_then(text),
            "expected": minions.len(),
            "returned": returns.len(),
            "failed": failed,
            "missing": missing.len(),
            "minions": minions,
            "missing_minions": missing,
        });
        out.plain(head.to_string().trim_end_matches('}').as_bytes());
        for (name, value) in [
            ("arguments", find("arg")),
            ("target", find("tgt")),
            ("target_type", find("tgt_type")),
            ("load", load),
        ] {
            out.plain(format!(",\"{name}\":").as_bytes());
            out.json(value);
        }
        out.plain(b",\"returns\":{");
        for (place, ((minion, ret), verdict)) in returns.iter().zip(verdicts).enumerate() {
            out.plain(if place == 0 { b"" } else { b"," });
            out.text(Some(minion));
            let head = json!({
                "received": null,
                "outcome": verdict.outcome,
                "test": verdict.test,
                "ok": verdict.outcome.worked(),
                "runner": false,
                "vouched_by": msgpack::text(ret, AUTHORITY),
                "conflict": false,
                "contradicting_tag": null,
            });
            out.plain(b":");
            out.plain(head.to_string().trim_end_matches('}').as_bytes());
            for key in ["retcode", "success", "return"] {
                out.plain(format!(",\"{key}\":").as_bytes());
                out.json(msgpack::find(ret, key));
            }
            out.plain(b"}");
        }
        out.plain(b"}}");
        Ok(())
    }
}

fn read(spooled: Option<Spooled>) -> io::Result<Option<Vec<u8>>> {
    if let Some(Spooled::File(file)) = &spooled
        && file.length() > LONGEST
    {
        let length = file.length();
        let why = format!("it has {length} bytes, which is too much here; look it up with Salt");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    spooled.map(Spooled::into_memory).transpose()
}

fn text(value: &[u8]) -> Option<&str> {
    msgpack::scalar(value)?.text()
}
