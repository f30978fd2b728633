//! The reference: a subscriber that reads and does nothing else.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use crate::{Failure, process};

/// Bytes asked of the kernel at once: what a unix socket's buffer holds.
const READ: usize = 256 << 10;

/// Reads until the bus closes. Returns the number of events read and their cost.
pub(crate) fn drain(socket: &Path) -> Result<String, Failure> {
    let mut stream =
        UnixStream::connect(socket).map_err(|error| format!("{}: {error}", socket.display()))?;
    let mut buffer = vec![0; READ];
    let mut bytes: u64 = 0;
    let mut began = None;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        began.get_or_insert_with(Instant::now);
        bytes += count as u64;
    }
    let seconds = began.map_or(0.0, |began| began.elapsed().as_secs_f64());
    let cpu = process::own_cpu()?.as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let mega = bytes as f64 / seconds / 1e6;
    Ok(format!("{bytes} bytes in {seconds:.3} s: {mega:.0} MB/s, {cpu:.3} s of CPU"))
}
