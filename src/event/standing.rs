//! The worth of a minion's return of a job, and which of two returns of one minion holds.
//!
//! A minion may fire any event under any tag, and so may forge the return of another one. The true
//! one comes as well, before or after. Their authorities tell them apart: a master that hands a
//! return to its job cache has checked which minion it comes from.
//!
//! * A return that the master vouches for replaces one that came by the bus, and is never replaced
//!   by it.
//! * The first of two that are worth the same stays, unless the master had to trim it for its bus
//!   and the second is whole.
//! * A return whose tag names another job or minion than its data is worth less than any other.
//!   Salt makes the tag of the data, so the two never differ on a true bus. A forger writes both:
//!   neither can be believed. It stands where its data says, as in the tables of Salt's own
//!   returners, until any other return of that minion comes.

use xxhash_rust::xxh3::Xxh3;

use crate::codec::json;
use crate::codec::msgpack::{self, Item};
use crate::event::as_fired::as_fired;
use crate::event::{Authority, Event};

/// The text in place of a value that the master left out of an event over its `max_event_size`,
/// with the msgpack marker of a text of this length.
const TRIMMED: &[u8] = b"\xadVALUE_TRIMMED";

/// The worth of a return, from less to more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i64)]
pub(crate) enum Standing {
    /// Its tag and its data contradict each other.
    Contradicted = 0,
    /// It came by the bus.
    Bus = 1,
    /// The master vouches for it.
    Master = 2,
}

impl Standing {
    /// The worth of this return.
    pub(crate) fn of(event: &Event, authority: Authority) -> Self {
        if event.tag_contradicts_data() { Standing::Contradicted } else { authority.into() }
    }

    /// The name that tables and answers have for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Standing::Contradicted => "contradicted",
            Standing::Bus => "bus",
            Standing::Master => "master",
        }
    }

    /// The standing that a table has under this name. Rows from before there were names count as
    /// come by the bus.
    pub(crate) fn named(name: &str) -> Self {
        let all = [Standing::Contradicted, Standing::Bus, Standing::Master];
        all.into_iter().find(|standing| standing.name() == name).unwrap_or(Standing::Bus)
    }

    /// The standing that a file keeps as this number.
    pub(crate) fn of_number(number: i64) -> Self {
        let all = [Standing::Contradicted, Standing::Bus, Standing::Master];
        all.into_iter().find(|standing| *standing as i64 == number).unwrap_or(Standing::Bus)
    }
}

impl From<Authority> for Standing {
    fn from(authority: Authority) -> Self {
        match authority {
            Authority::Bus => Standing::Bus,
            Authority::Master => Standing::Master,
        }
    }
}

/// The rank of a return: its authority, and whether the master left something out of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Precedence {
    /// The authority that vouches for it.
    pub(crate) standing: Standing,
    /// Something is left out.
    pub(crate) trimmed: bool,
}

impl Precedence {
    /// Tells if this one takes the place of one that is stored.
    pub(crate) fn replaces(self, stored: Precedence) -> bool {
        self.standing > stored.standing
            || self.standing == stored.standing && stored.trimmed && !self.trimmed
    }
}

/// Tells if the master left something out of this msgpack.
pub(crate) fn is_trimmed(load: &[u8]) -> bool {
    memchr::memmem::find(load, TRIMMED).is_some()
}

/// Tells if two returns of one minion say different things of one job. A field that one of them
/// lacks is no contradiction, nor a value that the master left out of one of them: Salt's own job
/// cache keeps less than the bus carries. All other values are compared, except those that the
/// master itself writes into states that failed.
pub(crate) fn differ(one: &[u8], other: &[u8], compare_what: Compared) -> bool {
    if one == other {
        return false;
    }
    let (one, other) = (&*as_fired(one), &*as_fired(other));
    let keys: &[&str] = match compare_what {
        Compared::All => &["fun", "retcode", "success", "return"],
        Compared::AllButReturn => &["fun", "retcode", "success"],
    };
    keys.iter().any(|key| match (msgpack::find(one, key), msgpack::find(other, key)) {
        (Some(one), Some(other)) => !agree(one, other, TRIMMED_DEPTH),
        _ => false,
    })
}

/// The depth to which the master is thought to leave values out. Salt looks for long ones in the
/// mappings of a return; the results of states are four deep.
const TRIMMED_DEPTH: usize = 16;

/// Tells if two values are the same except for values left out of either. Pairs are compared in
/// order, which leaving values out does not change.
fn agree(one: &[u8], other: &[u8], depth: usize) -> bool {
    if one == other || one == TRIMMED || other == TRIMMED {
        return true;
    }
    if depth == 0 || !is_trimmed(one) && !is_trimmed(other) {
        return json_hash(one) == json_hash(other);
    }
    match (msgpack::scalar(one), msgpack::scalar(other)) {
        (Some(Item::Map(pairs)), Some(Item::Map(others))) => {
            pairs == others
                && msgpack::raw_pairs(one).zip(msgpack::raw_pairs(other)).all(
                    |((key, value), (other_key, other))| {
                        let is_same_key =
                            key == other_key || json_hash(key) == json_hash(other_key);
                        is_same_key && agree(value, other, depth - 1)
                    },
                )
        }
        (Some(Item::Array(items)), Some(Item::Array(others))) => {
            items == others
                && msgpack::items(one)
                    .zip(msgpack::items(other))
                    .all(|(item, other)| agree(item, other, depth - 1))
        }
        _ => json_hash(one) == json_hash(other),
    }
}

/// The part of two returns that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compared {
    /// All fields that Salt reads.
    All,
    /// The return without its data, which is not kept of a job without a cache.
    AllButReturn,
}

/// A hash of the value's JSON, which is the same however msgpack writes it. It is made in pieces,
/// since a return may be long.
fn json_hash(value: &[u8]) -> u128 {
    let mut hash = Xxh3::new();
    let mut rest = Vec::new();
    json::write_in_pieces(value, &mut rest, &mut |piece| hash.update(piece));
    hash.update(&rest);
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use crate::event::standing::*;

    #[test]
    fn invariant_7_a_better_return_replaces_a_worse_one_and_never_the_other_way() {
        let all = [Standing::Contradicted, Standing::Bus, Standing::Master];
        let worths = all
            .into_iter()
            .flat_map(|standing| [false, true].map(|trimmed| Precedence { standing, trimmed }));
        for (new, stored) in worths.clone().flat_map(|new| worths.clone().map(move |s| (new, s))) {
            let is_better = (new.standing, !new.trimmed) > (stored.standing, !stored.trimmed);
            assert_eq!(new.replaces(stored), is_better, "{new:?} {stored:?}");
        }
    }

    #[test]
    fn standings_keep_their_names_and_numbers() {
        for standing in [Standing::Contradicted, Standing::Bus, Standing::Master] {
            assert_eq!(Standing::named(standing.name()), standing);
            assert_eq!(Standing::of_number(standing as i64), standing);
        }
        assert_eq!((Standing::named(""), Standing::of_number(9)), (Standing::Bus, Standing::Bus));
    }

    #[test]
    fn a_tag_that_contradicts_its_data_is_worth_nothing() {
        let standing =
            |tag: &str, data: &[u8], authority| Standing::of(&Event::new(tag, data), authority);
        let data = b"\x82\xa2id\xa5web-1\xa3jid\xa11";
        for authority in [Authority::Bus, Authority::Master] {
            assert_eq!(standing("salt/job/1/ret/web-1", data, authority), authority.into());
            for tag in ["salt/job/1/ret/web-2", "salt/job/2/ret/web-1", "salt/job/1/ret/web-1/x"] {
                assert_eq!(standing(tag, data, authority), Standing::Contradicted, "{tag}");
            }
            // The data does not say it.
            assert_eq!(standing("salt/job/1/ret/web-2", b"\x80", authority), authority.into());
        }
    }

    #[test]
    fn returns_differ_by_what_they_say() {
        let all = |one: &[u8], other: &[u8]| differ(one, other, Compared::All);
        let ret = |value: &[u8]| [b"\x82\xa6_stamp\xa1x\xa6return", value].concat();
        assert!(!all(&ret(b"\xa1a"), b"\x81\xa6return\xd9\x01a"), "written in another way");
        assert!(all(&ret(b"\xa1a"), &ret(b"\xa1b")));
        assert!(!differ(&ret(b"\xa1a"), &ret(b"\xa1b"), Compared::AllButReturn));
        assert!(!all(&ret(b"\xa1a"), &ret(TRIMMED)), "left out");
        assert!(!all(&ret(b"\xa1a"), b"\x81\xa7retcode\x01"), "not said");
        // A value that was left out hides no other.
        let state = |name: &[u8], changes: &[u8]| {
            ret(&[b"\x81\xa1s\x82\xa4name", name, b"\xa7changes\x92\x01", changes].concat())
        };
        let whole = state(b"\xa1a", b"\xa1x");
        assert!(!all(&whole, &state(b"\xa1a", TRIMMED)), "left out, deep within");
        assert!(!all(&state(b"\xd9\x01a", TRIMMED), &whole), "and written in another way");
        assert!(all(&whole, &state(b"\xa1b", TRIMMED)));
        assert!(all(&state(b"\xa1b", TRIMMED), &whole));
        assert!(all(&ret(b"\xa1a"), &ret(b"\xaeVALUE_TRIMMED!")));
        assert!(all(&ret(&[b"\x92", TRIMMED, b"\x01"].concat()), &ret(b"\x91\x01")));
        assert!(all(b"\x81\xa7retcode\x01", b"\x81\xa7retcode\x00"));
    }
}
