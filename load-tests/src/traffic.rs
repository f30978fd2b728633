//! Events as Salt masters send them, encoded beforehand.
//!
//! The events of a [`Traffic`] go round and round. An event gets a new jid each time it is sent
//! again, so that a store with a key on jid and minion keeps them all. The jid is patched into the
//! encoded bytes, which costs a few nanoseconds; encoding costs microseconds.

use std::error::Error;
use std::path::Path;

use bytes::BytesMut;
use clap::ValueEnum;
use saltern::source::framing::{Frame, Framer};
use serde_json::{Map, Value, json};

/// The framing of events on the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Framing {
    /// Bare msgpack maps.
    Plain,
    /// Four bytes of length before each map.
    Prefixed,
    /// ZeroMQ's own protocol, as a publisher speaks it: the body alone in a frame.
    Zmtp,
}

/// The events of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mix {
    /// The events of real masters, from the capture files.
    Captures,
    /// Returns of `test.ping`.
    Pings,
    /// Returns of `state.apply`, of the size asked for.
    Highstates,
    /// Ten pings, five state returns of the size asked for, one of 56 KB, two beacons, a new job
    /// and an authentication.
    Mixed,
}

/// An event as the bus carries it, and where the jid stands in it.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    pub(crate) frame: Vec<u8>,
    pub(crate) jids: Vec<usize>,
    /// The number of its job in the traffic.
    pub(crate) job: u64,
}

/// The events that a bus sends, in turn.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) events: Vec<Encoded>,
    /// The number of jobs that they belong to.
    pub(crate) jobs: u64,
}

/// The text that stands where a jid goes.
pub(crate) const JID: &str = "20261122000000999999";

/// State returns that differ from each other.
const VARIANTS: usize = 50;

/// The length of the longest state returns of `mixed`.
const LARGE: usize = 56_000;

impl Traffic {
    pub(crate) fn new(
        mix: Mix,
        size: usize,
        framing: Framing,
        captures: &Path,
    ) -> Result<Self, Box<dyn Error>> {
        let bodies = match mix {
            Mix::Captures => captured(captures)?,
            Mix::Pings => (0..VARIANTS).map(ping).collect::<Result<_, _>>()?,
            Mix::Highstates => {
                (0..VARIANTS).map(|n| highstate(n, size)).collect::<Result<_, _>>()?
            }
            Mix::Mixed => mixed(size)?,
        };
        Traffic::of((0..).zip(bodies), framing)
    }

    /// These bodies, each with the number of the job it belongs to.
    pub(crate) fn of(
        bodies: impl IntoIterator<Item = (u64, Vec<u8>)>,
        framing: Framing,
    ) -> Result<Self, Box<dyn Error>> {
        let one = |(job, body): (u64, Vec<u8>)| {
            Ok::<_, Box<dyn Error>>(Encoded { job, ..encoded(&body, framing)? })
        };
        let events = bodies.into_iter().map(one).collect::<Result<Vec<_>, _>>()?;
        let jobs = events.iter().map(|event| event.job + 1).max().unwrap_or(0);
        Ok(Traffic { events, jobs })
    }

    /// Appends the frame of the event of this number, which has a jid that no other job has.
    pub(crate) fn append(&self, number: u64, out: &mut Vec<u8>) {
        let count = self.events.len().max(1) as u64;
        let index = usize::try_from(number % count).unwrap_or_default();
        let Some(event) = self.events.get(index) else { return };
        let start = out.len();
        out.extend_from_slice(&event.frame);
        let frame = out.get_mut(start..).unwrap_or_default();
        patch(frame, &event.jids, number / count * self.jobs + event.job);
    }

    /// Bytes of an event, in the mean.
    pub(crate) fn mean_size(&self) -> usize {
        self.events.iter().map(|event| event.frame.len()).sum::<usize>() / self.events.len().max(1)
    }
}

/// Writes `number` into the jids at these places.
fn patch(frame: &mut [u8], jids: &[usize], number: u64) {
    let text = format!("2026112200{number:010}");
    for at in jids {
        if let Some(jid) = frame.get_mut(*at..at + text.len()) {
            jid.copy_from_slice(text.as_bytes());
        }
    }
}

/// The body of a frame: tag, empty line, payload.
pub(crate) fn body(tag: &str, data: &Value) -> Result<Vec<u8>, Box<dyn Error>> {
    Ok([tag.as_bytes(), b"\n\n", &rmp_serde::to_vec(data)?].concat())
}

/// The return of `test.ping`.
pub(crate) fn ping(number: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    returned(number, "test.ping", &json!([]), json!(true))
}

/// The return of `state.apply` with as many states as make a frame of about `size` bytes.
pub(crate) fn highstate(number: usize, size: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    const STATES: [(&str, &str, &str, &str); 4] = [
        ("pkg", "nginx", "installed", "All specified packages are already installed"),
        (
            "file",
            "/etc/nginx/nginx.conf",
            "managed",
            "File /etc/nginx/nginx.conf is in the correct state",
        ),
        ("service", "nginx", "running", "The service nginx is already running"),
        ("cmd", "nginx -t 2>&1 | grep -q \"syntax is ok\"", "run", "Command \"nginx -t\" run"),
    ];
    let mut states = Map::new();
    let mut len = 400;
    for (run, (module, name, function, comment)) in (0..).zip(STATES.iter().cycle()) {
        let stdout = "nginx: the configuration file syntax is ok\nnginx: test is successful";
        let changes = match *module {
            "cmd" => json!({"pid": 4711 + run, "retcode": 0, "stdout": stdout, "stderr": ""}),
            _ => json!({}),
        };
        let state = json!({
            "name": name,
            "changes": changes,
            "result": run % 17 != 16,
            "comment": comment,
            "__sls__": "web.nginx",
            "__run_num__": run,
            "start_time": format!("23:33:36.{:06}", run * 7919 % 1_000_000),
            "duration": f64::from(run) * 1.618 + 0.25,
            "__id__": format!("web_{module}_{run}"),
        });
        let key = format!("{module}_|-web_{module}_{run}_|-{name}_|-{function}");
        len += key.len() + rmp_serde::to_vec(&state)?.len() + 2;
        states.insert(key, state);
        if len >= size {
            break;
        }
    }
    returned(number, "state.apply", &json!(["web.nginx"]), Value::Object(states))
}

fn returned(
    number: usize,
    function: &str,
    arguments: &Value,
    value: Value,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let minion = format!("web-{number}.example.com");
    let data = json!({
        "cmd": "_return",
        "id": minion,
        "success": true,
        "return": value,
        "retcode": 0,
        "jid": JID,
        "fun": function,
        "fun_args": arguments,
        "user": "root",
        "_stamp": "2026-11-22T00:00:00.999999",
        "out": "highstate",
    });
    body(&format!("salt/job/{JID}/ret/{minion}"), &data)
}

pub(crate) fn mixed(size: usize) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut bodies = Vec::new();
    for number in 0..VARIANTS {
        let minion = format!("web-{number}.example.com");
        bodies.push(body(
            &format!("salt/job/{JID}/new"),
            &json!({
                "jid": JID, "tgt_type": "glob", "tgt": "*", "user": "root", "fun": "state.apply",
                "arg": ["web.nginx"], "minions": [minion], "missing": [],
                "_stamp": "2026-11-22T00:00:00.999999",
            }),
        )?);
        for n in 0..10 {
            bodies.push(ping(number * 10 + n)?);
        }
        for n in 0..5 {
            bodies.push(highstate(number * 5 + n, size)?);
        }
        bodies.push(highstate(number, LARGE)?);
        for _ in 0..2 {
            bodies.push(body(
                &format!("salt/beacon/{minion}/status/2026-11-22T00:00:00.999999"),
                &json!({
                    "loadavg": {"1-min": 0.25, "5-min": 0.5, "15-min": 0.125},
                    "id": minion, "_stamp": "2026-11-22T00:00:00.999999",
                }),
            )?);
        }
        bodies.push(body(
            "salt/auth",
            &json!({
                "result": true, "act": "accept", "id": minion, "pub": "M".repeat(450),
                "_stamp": "2026-11-22T00:00:00.999999",
            }),
        )?);
    }
    Ok(bodies)
}

/// The bodies of every capture in the folder.
pub(crate) fn captured(folder: &Path) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "bus") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut bodies = Vec::new();
    for path in paths {
        let mut stream = BytesMut::from(std::fs::read(&path)?.as_slice());
        let mut framer = Framer::new(64 << 20);
        while let Some(frame) = framer.next(&mut stream)? {
            if let Frame::Body(body) = frame {
                bodies.push(body.to_vec());
            }
        }
    }
    if bodies.is_empty() {
        return Err(format!("there is no capture (*.bus) in {}", folder.display()).into());
    }
    Ok(bodies)
}

/// The frame of a body, as the master packs it.
pub(crate) fn encoded(body: &[u8], framing: Framing) -> Result<Encoded, Box<dyn Error>> {
    let mut frame = Vec::with_capacity(body.len() + 24);
    if framing == Framing::Zmtp {
        match u8::try_from(body.len()) {
            Ok(len) => frame.extend([0, len]),
            Err(_) => {
                frame.push(2);
                frame.extend((body.len() as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(body);
        let jids = memchr::memmem::find_iter(&frame, JID).collect();
        return Ok(Encoded { frame, jids, job: 0 });
    }
    if framing == Framing::Prefixed {
        frame.extend([0; 4]);
    }
    frame.extend_from_slice(b"\x82\xa4head\x80\xa4body");
    match (u8::try_from(body.len()), u16::try_from(body.len())) {
        (Ok(len), _) => frame.extend([0xc4, len]),
        (_, Ok(len)) => {
            frame.push(0xc5);
            frame.extend(len.to_be_bytes());
        }
        _ => {
            frame.push(0xc6);
            frame.extend(u32::try_from(body.len())?.to_be_bytes());
        }
    }
    frame.extend_from_slice(body);
    if framing == Framing::Prefixed {
        let len = u32::try_from(frame.len() - 4)?;
        frame.splice(..4, len.to_be_bytes());
    }
    let jids = memchr::memmem::find_iter(&frame, JID).collect();
    Ok(Encoded { frame, jids, job: 0 })
}
