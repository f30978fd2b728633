//! Random numbers for ids and keys that nobody may guess or meet twice.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A new number. The randomness is that of the operating system, by way of a keyed hash.
pub(crate) fn number() -> u128 {
    let half = || RandomState::new().build_hasher().finish();
    u128::from(half()) << 64 | u128::from(half())
}
