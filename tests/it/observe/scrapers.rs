//! Scrapers that never come, come as fast as they can, or do not read their answers. Events go on
//! to be stored, and the memory does not grow.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use rmpv::Value;

use crate::harness::bus::{Bus, frame_of, msgpack};
use crate::harness::daemon::Daemon;

/// Memory that the daemon may take beyond that of before.
const MORE: u64 = 64 << 20;

const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

/// Resident memory, in bytes.
fn memory(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// New jobs of so many different functions: as many series.
fn many_functions(bus: &mut Bus, count: usize) {
    let job = |number: usize| {
        let data = Value::Map(vec![("fun".into(), format!("module.function-{number}").into())]);
        frame_of("salt/job/20261121233336123456/new", &msgpack(&data))
    };
    let frames: Vec<u8> = (0..count).flat_map(job).collect();
    bus.send_bytes(&frames);
}

#[test]
fn no_scraper_holds_anything_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut bus = Bus::listen(folder.path());
    let out = folder.path().join("out");
    let sections = format!(
        "estate: {{max_series: 10000}}\n{}sinks:\n  out:\n    rawfile_json: {{filename: '{}'}}\n    \
         batch: {{linger: 10ms}}\n",
        bus.source(),
        out.display()
    );
    let daemon = Daemon::start(folder.path(), &sections);
    // Nobody has scraped so far, and nobody does until these are stored.
    many_functions(&mut bus, 10_000);
    bus.send(0..10_000, 100);
    daemon.wait_stored("out", 20_000);
    let size = daemon.get("/metrics").len();
    assert!(size > 1_000_000, "{size} bytes");
    let before = memory(&daemon);

    let address = daemon.address().to_owned();
    // They ask, read one byte, and leave the rest where it is.
    let ask = |_| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(REQUEST).unwrap();
        stream
    };
    // All before one reads, so that they get the same few texts also on a busy machine.
    let mut slow: Vec<TcpStream> = (0..60).map(ask).collect();
    for stream in &mut slow {
        stream.read_exact(&mut [0]).unwrap();
    }
    // They ask again as soon as they have the answer.
    let fast: Vec<_> = (0..4)
        .map(|_| {
            let address = address.clone();
            thread::spawn(move || {
                let mut stream = TcpStream::connect(&address).unwrap();
                let mut answers = 0;
                for _ in 0..250 {
                    stream.write_all(REQUEST).unwrap();
                    answers += usize::from(read_answer(&mut stream));
                }
                answers
            })
        })
        .collect();
    bus.send(10_000..20_000, 100);
    daemon.wait_stored("out", 30_000);
    let answers: usize = fast.into_iter().map(|scraper| scraper.join().unwrap()).sum();
    assert!(answers > 0, "nobody got an answer");
    let after = memory(&daemon);
    assert!(after < before + MORE, "{before} bytes before, {after} after");
    drop(slow);
    daemon.stop();
}

/// Reads one answer to its end; whether it was a good one.
fn read_answer(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    head.starts_with("HTTP/1.1 200")
}
