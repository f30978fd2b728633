//! The first reporter of each of the last many things.
//!
//! With syndics the bus of the master of masters and that of a syndic's master carry the same jobs
//! and returns. Each is counted from the bus that brought it first. Memory has a fixed size: a
//! thing is a hash in one of many rows, and each row knows its last few. Chance fills the rows:
//! half as many things as there are places are remembered, or hardly fewer.

/// Places in a row: two lines of a processor's cache.
const WIDTH: usize = 16;

/// The bits of a place that name the reporter; the others name the thing.
const WHO: u64 = 0xff_ffff;

/// The way in which a thing came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// It was not seen before.
    First,
    /// It came the same way before.
    Again,
    /// It came another way first.
    Elsewhere,
}

/// The things that were seen, and the first reporter of each. Both are hashes.
pub(super) struct Firsts {
    rows: Vec<[u64; WIDTH]>,
}

impl Firsts {
    /// Nothing seen yet; there will be so many places at the most.
    pub(super) fn new(places: usize) -> Self {
        Firsts { rows: vec![[0; WIDTH]; places.div_ceil(WIDTH).max(1)] }
    }

    /// Notes a thing, and tells where it was seen before.
    pub(super) fn see(&mut self, thing: u64, who: u64) -> Seen {
        let new = (thing & !WHO) | (who & WHO);
        let row = row_of(thing, self.rows.len());
        let Some(row) = self.rows.get_mut(row) else { return Seen::First };
        if let Some(found) = row.iter().find(|place| is_of(**place, thing)) {
            return if *found == new { Seen::Again } else { Seen::Elsewhere };
        }
        row.copy_within(..WIDTH - 1, 1);
        row[0] = new;
        Seen::First
    }

    /// Tells if the thing was seen before.
    pub(super) fn knows(&self, thing: u64) -> bool {
        let row = self.rows.get(row_of(thing, self.rows.len()));
        row.is_some_and(|row| row.iter().any(|place| is_of(*place, thing)))
    }
}

fn is_of(place: u64, thing: u64) -> bool {
    place != 0 && place & !WHO == thing & !WHO
}

fn row_of(thing: u64, rows: usize) -> usize {
    usize::try_from((thing & WHO) % rows as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    fn thing(number: usize) -> u64 {
        xxh3_64(&number.to_be_bytes())
    }

    #[test]
    fn a_thing_belongs_to_who_brought_it_first() {
        let mut firsts = Firsts::new(100);
        assert!(!firsts.knows(thing(1)));
        for (who, expected) in
            [(7, Seen::First), (7, Seen::Again), (8, Seen::Elsewhere), (7, Seen::Again)]
        {
            assert_eq!(firsts.see(thing(1), who), expected);
        }
        assert!(firsts.knows(thing(1)) && !firsts.knows(thing(2)));
    }

    #[test]
    fn invariant_6_what_was_seen_is_forgotten_and_the_last_half_is_not() {
        let mut firsts = Firsts::new(1 << 14);
        for number in 0..1_000_000 {
            assert_eq!(firsts.see(thing(number), 1), Seen::First, "{number}");
        }
        assert_eq!(firsts.rows.len() * WIDTH, 1 << 14);
        let forgotten = (0..1 << 13).filter(|back| !firsts.knows(thing(999_999 - back))).count();
        assert!(forgotten < 100, "{forgotten}");
        assert!(!firsts.knows(thing(0)));
    }
}
