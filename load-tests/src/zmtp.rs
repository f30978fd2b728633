//! The first words between a ZeroMQ publisher and its subscriber: ZMTP 3.0 without security.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::Failure;

/// The beginning of both sides: signature, version, mechanism, that we are no server, filler.
fn greeting() -> [u8; 64] {
    let mut greeting = [0; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// A command READY with the type of our socket.
const READY: &[u8] = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB";

/// Speaks as a publisher until the other side has subscribed. Everything is sent to it, with any
/// subscription.
pub(crate) fn welcome(stream: &mut UnixStream) -> Result<(), Failure> {
    stream.write_all(&greeting())?;
    stream.read_exact(&mut [0; 64])?;
    stream.write_all(READY)?;
    // Its READY, and its subscription.
    for _ in 0..2 {
        let mut head = [0; 2];
        stream.read_exact(&mut head)?;
        let [flags, len] = head;
        if flags & 2 != 0 {
            return Err("a subscriber that begins with a frame of more than 255 bytes".into());
        }
        stream.read_exact(&mut vec![0; usize::from(len)])?;
    }
    Ok(())
}
