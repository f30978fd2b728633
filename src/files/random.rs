//! Random bytes for ids, keys and tokens that nobody can guess or meet twice.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// So many bytes from the generator of the operating system; it fails only where a system has none.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let got = getrandom(&mut bytes, GetRandomFlags::empty())?;
    if got < N {
        return Err(io::Error::other("the system gave too few random bytes"));
    }
    Ok(bytes)
}

/// A number from the generator of the operating system.
pub(crate) fn number() -> io::Result<u128> {
    bytes().map(u128::from_le_bytes)
}
