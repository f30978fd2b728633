//! The cost of looking at bytes: framing, walking, finding, JSON, redaction. Throughput is in bytes
//! of frames.

#![allow(missing_docs, clippy::expect_used, dead_code)]

use std::hint::black_box;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use saltern::codec::{json, msgpack};
use saltern::config::Config;
use saltern::event::Event;
use saltern::event::redact::Redaction;
use saltern::source::framing::Framer;

mod payloads;
#[path = "../load-tests/src/traffic.rs"]
mod traffic;

use payloads::{payloads, stream};
use traffic::Framing;

fn size(bodies: &[Vec<u8>]) -> Throughput {
    Throughput::Bytes(bodies.iter().map(|body| body.len() as u64).sum())
}

fn events(bodies: &[Vec<u8>]) -> Vec<Event> {
    let parse = |body: &Vec<u8>| Event::parse(Bytes::copy_from_slice(body));
    bodies.iter().map(|body| parse(body).expect("a body has a tag")).collect()
}

fn framing(criterion: &mut Criterion) {
    for (group, framing) in
        [("framing plain", Framing::Plain), ("framing prefixed", Framing::Prefixed)]
    {
        let mut group = criterion.benchmark_group(group);
        for (name, bodies) in payloads() {
            // Enough frames that what one connection costs once does not count.
            let bodies: Vec<_> =
                bodies.iter().cycle().take(bodies.len().max(64)).cloned().collect();
            let stream = stream(&bodies, framing);
            group.throughput(size(&bodies));
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter_batched(
                    || BytesMut::from(stream.as_slice()),
                    |mut buffer| {
                        let mut framer = Framer::new(1 << 20);
                        let mut frames = 0;
                        while let Ok(Some(frame)) = framer.next(&mut buffer) {
                            black_box(frame);
                            frames += 1;
                        }
                        assert_eq!(frames, bodies.len());
                    },
                    criterion::BatchSize::LargeInput,
                );
            });
        }
    }
}

fn walker(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("skip");
    for (name, bodies) in payloads() {
        let events = events(&bodies);
        group.throughput(size(&bodies));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                for event in &events {
                    let value = msgpack::Walker::new(black_box(event.payload())).skip();
                    black_box(value.expect("a payload is msgpack"));
                }
            });
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("find");
    for (name, bodies) in payloads() {
        let events = events(&bodies);
        group.throughput(size(&bodies));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                for event in &events {
                    // Behind `return`, which is most of the payload.
                    black_box(msgpack::find(black_box(event.payload()), "fun"));
                }
            });
        });
    }
}

fn transcoder(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("json");
    for (name, bodies) in payloads() {
        let events = events(&bodies);
        let mut text = Vec::new();
        group.throughput(size(&bodies));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                for event in &events {
                    text.clear();
                    black_box(json::write(black_box(event.payload()), &mut text));
                }
            });
        });
    }
}

/// Texts of one sort each, which tell of the parts of the writer of strings.
fn texts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("json of texts");
    for (name, text) in [
        ("short", "__run_num__"),
        ("of a few words", "The service nginx is already running"),
        ("lines", "eth0: up\neth1: up\neth2: down\n"),
        ("not ASCII", "Der Dienst läuft schon, und zwar über Gebühr"),
    ] {
        let list = serde_json::json!(vec![text; 100]);
        let payload = rmp_serde::to_vec(&list).expect("JSON is msgpack too");
        let mut out = Vec::new();
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                out.clear();
                black_box(json::write(black_box(&payload), &mut out));
            });
        });
    }
}

/// Rules that find nothing, which is the cost of most events; and a rule that replaces something in
/// each.
fn redaction(criterion: &mut Criterion) {
    for (kind, rule) in [
        ("redact keys", r#"{"keys": ["*password*", "*token*", "pillar"]}"#),
        ("redact paths", r#"{"paths": ["$.return.secrets", "$.fun_args[*].pw"]}"#),
        ("redact a pattern", r#"{"pattern": "(?i)(api[_-]?key=)\\S+"}"#),
        ("redact something", r#"{"keys": ["_stamp"]}"#),
    ] {
        let rest = "sources: {bus: {salt_bus: {}}}\nsinks: {none: {blackhole: {}}}";
        let text = format!("redact: [{rule}]\n{rest}");
        let config = Config::parse(&text).expect("this is a configuration");
        let redaction = Redaction::new(&config.redact, "").expect("there are rules");
        let mut group = criterion.benchmark_group(kind);
        for (name, bodies) in payloads() {
            let events = events(&bodies);
            group.throughput(size(&bodies));
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter(|| {
                    for event in &events {
                        black_box(redaction.of(black_box(event)));
                    }
                });
            });
        }
    }
}

criterion_group! {
    name = codec;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = framing, walker, transcoder, texts, redaction
}
criterion_main!(codec);
