//! Answers about jobs in the form that Salt wants: that of its `local_cache`.

use super::spool::Spool;
use crate::codec::msgpack::{self, Item, MapWriter};

/// The keys that the event of a new job has besides the published ones.
const ONLY_IN_EVENTS: [&[u8]; 4] = [b"minions", b"missing", b"_stamp", b"_backfilled"];

/// The function with which Salt checks if a job still runs; there are as many of these as other
/// jobs.
pub(super) const FIND_JOB: &str = "saltutil.find_job";

/// A load as Salt gives it out.
pub(super) fn described(load: &[u8], is_event: bool, minions: &[String]) -> Vec<u8> {
    let mut map = MapWriter::default();
    for (key, value) in msgpack::raw_pairs(load) {
        let name = msgpack::scalar(key).and_then(Item::bytes);
        let is_left_out = is_event && name.is_some_and(|name| ONLY_IN_EVENTS.contains(&name));
        if !is_left_out && name != Some(b"Minions") {
            map.pair(key, value);
        }
    }
    if !minions.is_empty() {
        map.texts("Minions", minions);
    }
    map.finished()
}

/// Writes what `local_cache` keeps of a return.
pub(super) fn kept(load: &[u8], spool: &mut Spool) {
    let found = ["return", "retcode", "success", "out"]
        .map(|key| msgpack::find(load, key).map(|value| (key, value)));
    let (mut head, mut pairs) = (Vec::new(), 0);
    found.iter().flatten().for_each(|_| pairs += 1);
    msgpack::write_map_head(pairs, &mut head);
    spool.push(&head);
    for (key, value) in found.into_iter().flatten() {
        let mut text = Vec::new();
        msgpack::write_str(key, &mut text);
        spool.push(&text);
        spool.push(value);
    }
}

/// The entry of a job in Salt's lists, without its times.
pub(super) fn instance(load: &[u8]) -> MapWriter {
    let mut map = MapWriter::default();
    for (title, key, default) in [
        ("Function", "fun", "unknown-function"),
        ("Arguments", "arg", ""),
        ("Target", "tgt", "unknown-target"),
        ("Target-type", "tgt_type", "list"),
        ("User", "user", "root"),
    ] {
        match msgpack::find(load, key) {
            Some(value) if key != "arg" || is_array(value) => map.value(title, value),
            _ if key == "arg" => map.texts(title, &[]),
            _ => map.text(title, default),
        }
    }
    if let Some(metadata) = metadata(load) {
        map.value("Metadata", metadata);
    }
    map
}

fn is_array(value: &[u8]) -> bool {
    matches!(msgpack::scalar(value), Some(Item::Array(_)))
}

/// A job's metadata, wherever Salt has put it.
fn metadata(load: &[u8]) -> Option<&[u8]> {
    let in_kwargs = || msgpack::find(msgpack::find(load, "kwargs")?, "metadata");
    let in_arg = || {
        msgpack::items(msgpack::find(load, "arg")?).find_map(|arg| {
            let is_kwarg = msgpack::find(arg, "__kwarg__").and_then(msgpack::scalar);
            (is_kwarg == Some(Item::Bool(true))).then(|| msgpack::find(arg, "metadata"))?
        })
    };
    msgpack::find(load, "metadata").or_else(in_kwargs).or_else(in_arg)
}

/// The time of publication, as Salt tells it from the job's id: `2026, Nov 21 23:33:36.123456`.
pub(super) fn start_time(jid: &str) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let part = |range| jid.get(range).unwrap_or_default();
    let month =
        part(4..6).parse::<usize>().ok().and_then(|month| MONTHS.get(month.wrapping_sub(1)));
    match month {
        Some(month) if crate::event::is_jid(jid) => format!(
            "{}, {month} {} {}:{}:{}.{}",
            part(0..4),
            part(6..8),
            part(8..10),
            part(10..12),
            part(12..14),
            part(14..20)
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_from_ids() {
        assert_eq!(start_time("20261121233336123456_77"), "2026, Nov 21 23:33:36.123456");
        assert_eq!(start_time("20261321233336123456"), "");
        assert_eq!(start_time("today"), "");
    }
}
