//! The events of the benches: the same that the load generator sends.

use std::path::{Path, PathBuf};

use crate::traffic::{self, Framing};

/// A name for a bench and the bodies (tag, empty line, payload) it goes over.
pub(crate) type Payloads = (&'static str, Vec<Vec<u8>>);

/// A ping, a state return of 3 KB, one of 56 KB, and what real masters sent, if it is at hand.
pub(crate) fn payloads() -> Vec<Payloads> {
    let one = |body: Result<Vec<u8>, _>| vec![body.expect("JSON is msgpack too")];
    let mut all = vec![
        ("ping", one(traffic::ping(1))),
        ("return 3 KB", one(traffic::highstate(1, 3000))),
        ("return 56 KB", one(traffic::highstate(1, 56_000))),
    ];
    match traffic::captured(&captures()) {
        Ok(bodies) => all.push(("captures", bodies)),
        Err(error) => eprintln!("without the captures of real masters: {error}"),
    }
    all
}

/// The bodies as a bus sends them, one behind the other.
pub(crate) fn stream(bodies: &[Vec<u8>], framing: Framing) -> Vec<u8> {
    let frame = |body| traffic::encoded(body, framing).expect("a body is under 4 GiB").frame;
    bodies.iter().map(Vec::as_slice).flat_map(frame).collect()
}

fn captures() -> PathBuf {
    let folder = std::env::var_os("SALTERN_CAPTURES").map(PathBuf::from);
    folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures"))
}
