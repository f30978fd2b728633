//! A Salt master's bus, as far as a subscriber sees it: a unix socket that frames come from. Its
//! events are numbered, so that a store can be asked which it holds.

use std::io::Write;
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rmpv::Value;

use crate::harness::daemon::wait_for;

pub(crate) struct Bus {
    listener: UnixListener,
    stream: Option<UnixStream>,
    pub(crate) path: PathBuf,
}

impl Bus {
    pub(crate) fn listen(folder: &Path) -> Self {
        let path = folder.join("bus.ipc");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Bus { listener, stream: None, path }
    }

    /// The source's line in the configuration.
    pub(crate) fn source(&self) -> String {
        format!("sources:\n  bus: {{salt_bus: {{address: '{}'}}}}\n", self.path.display())
    }

    /// Sends the events of these numbers; waits for the subscriber first. Each is `size` bytes and
    /// some.
    pub(crate) fn send(&mut self, numbers: Range<u64>, size: usize) {
        for number in numbers {
            let data = Value::Map(vec![
                ("n".into(), number.into()),
                ("text".into(), "x".repeat(size).into()),
                ("_stamp".into(), "2026-11-21T23:38:10.518437".into()),
            ]);
            self.send_event(&tag(number), &msgpack(&data));
        }
    }

    /// Sends an event of this payload, which is to be msgpack; waits for the subscriber first.
    pub(crate) fn send_event(&mut self, tag: &str, payload: &[u8]) {
        self.send_bytes(&frame_of(tag, payload));
    }

    /// Sends frames; waits for the subscriber first.
    pub(crate) fn send_bytes(&mut self, frames: &[u8]) {
        self.try_send_bytes(frames).unwrap();
    }

    /// Sends bytes to a subscriber that may go meanwhile.
    pub(crate) fn try_send_bytes(&mut self, frames: &[u8]) -> std::io::Result<()> {
        let listener = &self.listener;
        let stream = self.stream.get_or_insert_with(|| {
            let (stream, _) = wait_for("a subscriber", || listener.accept().ok());
            stream.set_nonblocking(false).unwrap();
            stream
        });
        stream.write_all(frames)
    }

    /// Breaks the connection off, as a master that restarts does; the next subscriber is waited
    /// for.
    pub(crate) fn hang_up(&mut self) {
        self.stream = None;
    }
}

/// An event as the bus carries it.
pub(crate) fn frame_of(tag: &str, payload: &[u8]) -> Vec<u8> {
    let body = [tag.as_bytes(), b"\n\n", payload].concat();
    msgpack(&Value::Map(vec![
        ("head".into(), Value::Map(vec![])),
        ("body".into(), Value::Binary(body)),
    ]))
}

pub(crate) fn tag(number: u64) -> String {
    format!("test/{number}")
}

pub(crate) fn msgpack(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).unwrap();
    bytes
}
