//! The other end of the source `returner`, by hand.

use std::path::Path;

use rmpv::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::harness::beside::{DEADLINE, Daemon};

pub(crate) fn packed(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).unwrap();
    bytes
}

pub(crate) fn map(pairs: &[(&str, Value)]) -> Value {
    Value::Map(pairs.iter().map(|(key, value)| (Value::from(*key), value.clone())).collect())
}

pub(crate) fn request(id: u64, op: &str, more: &[(&str, Value)]) -> Vec<u8> {
    let mut pairs = vec![("v", Value::from(2)), ("id", id.into()), ("op", op.into())];
    pairs.extend(more.iter().cloned());
    packed(&map(&pairs))
}

pub(crate) fn events(id: u64, tags: &[&str]) -> Vec<u8> {
    let event = |tag: &&str| Value::Binary([tag.as_bytes(), b"\n\n\x81\xa1a\x01"].concat());
    let events = Value::Array(tags.iter().map(event).collect());
    request(id, "events", &[("events", events)])
}

/// A minion's return, as a request.
pub(crate) fn returned(id: u64, jid: &str, minion: &str, value: Value) -> Vec<u8> {
    let load = [("jid", jid.into()), ("id", minion.into()), ("fun", "test.ping".into())];
    let more = [("return", value), ("retcode", 0.into()), ("success", true.into())];
    let load = packed(&map(&[&load[..], &more].concat()));
    request(id, "return", &[("load", Value::Binary(load))])
}

pub(crate) fn done(id: u64) -> Value {
    map(&[("v", 2.into()), ("id", id.into())])
}

/// One end of a connection.
pub(crate) struct Peer<S = UnixStream> {
    pub(crate) stream: S,
}

impl Peer {
    /// Connects to the socket `r` of a daemon, and is greeted.
    pub(crate) async fn at(daemon: &Daemon) -> Self {
        let path = daemon.path("r");
        daemon.until("the socket", || path.exists()).await;
        let mut peer = Peer::connect(&path).await;
        let greeting = peer.receive().await;
        assert_eq!((&greeting["v"], greeting["max_frame"].is_u64()), (&2.into(), true));
        peer
    }

    pub(crate) async fn connect(path: &Path) -> Self {
        Peer { stream: UnixStream::connect(path).await.unwrap() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    pub(crate) async fn send(&mut self, message: &[u8]) {
        let length = u32::try_from(message.len()).unwrap();
        self.stream.write_u32(length).await.unwrap();
        self.stream.write_all(message).await.unwrap();
    }

    pub(crate) async fn receive(&mut self) -> Value {
        timeout(DEADLINE, self.read()).await.unwrap()
    }

    async fn read(&mut self) -> Value {
        let length = self.stream.read_u32().await.unwrap();
        let mut message = vec![0; length as usize];
        self.stream.read_exact(&mut message).await.unwrap();
        rmpv::decode::read_value(&mut message.as_slice()).unwrap()
    }

    /// The answer, after however many that say to wait, with its parts put together.
    pub(crate) async fn ask(&mut self, request: Vec<u8>) -> Value {
        self.send(&request).await;
        let mut parts = Vec::new();
        loop {
            let answer = self.receive().await;
            if let Some(part) = answer["part"].as_slice() {
                parts.extend_from_slice(part);
            } else if answer["wait"].is_nil() {
                let Some(value) = answer["value"].as_slice().filter(|_| !parts.is_empty()) else {
                    return answer;
                };
                parts.extend_from_slice(value);
                return map(&[("id", answer["id"].clone()), ("value", Value::Binary(parts))]);
            }
        }
    }

    /// Waits until the daemon has closed the connection.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        timeout(DEADLINE, self.stream.read_to_end(&mut rest)).await.is_ok()
    }
}
