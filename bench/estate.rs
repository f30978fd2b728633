//! The cost of the metrics of the estate: of the dispatcher, which hands chunks on; of the thread
//! that counts, with a bare walk over the payloads for reference; and of rendering. Throughput is
//! in events, of `render` in series.

#![allow(missing_docs, clippy::expect_used, dead_code)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use saltern::codec::msgpack::Walker;
use saltern::estate::{Estate, EstateConfig};
use saltern::event::chunk::Chunk;
use saltern::event::{Event, Origin};
use serde_json::json;

mod payloads;
#[path = "../load-tests/src/traffic.rs"]
mod traffic;

use payloads::payloads;

/// Events of a chunk: what a read of 256 KiB brings of 3 KB each.
const CHUNK: usize = 80;

fn chunk(bodies: &[Vec<u8>]) -> Arc<Chunk> {
    let parse = |body: &Vec<u8>| Event::parse(Bytes::copy_from_slice(body));
    let origin = Arc::new(Origin { source: "bus".to_owned(), master_id: "master".to_owned() });
    let events = bodies.iter().cycle().take(CHUNK.max(bodies.len()));
    let events = events.map(|body| parse(body).expect("a body has a tag")).collect();
    Arc::new(Chunk::new(origin, 1_795_304_177_692_890, events))
}

fn config() -> EstateConfig {
    EstateConfig { minions: true, ..EstateConfig::default() }
}

fn all_payloads() -> Vec<payloads::Payloads> {
    let mut all = payloads();
    if let Ok(mixed) = traffic::mixed(3000) {
        all.push(("mixed", mixed));
    }
    all
}

fn count(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("estate count");
    for (name, bodies) in all_payloads() {
        let chunk = chunk(&bodies);
        let estate = Estate::new(Some(config()));
        group.throughput(Throughput::Elements(chunk.events.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| estate.count(black_box(&chunk), false));
        });
    }
}

/// For reference: walking over the payloads without looking at anything.
fn skip(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("estate skip");
    for (name, bodies) in all_payloads() {
        let chunk = chunk(&bodies);
        group.throughput(Throughput::Elements(chunk.events.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                for event in &chunk.events {
                    let value = Walker::new(black_box(event.payload())).skip();
                    black_box(value.expect("a payload is msgpack"));
                }
            });
        });
    }
}

/// With the thread that counts at work, as in the daemon.
fn offer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("estate offer");
    for (name, bodies) in all_payloads() {
        let chunk = chunk(&bodies);
        let (sender, counter) = Estate::new(Some(config())).channel();
        let counting = std::thread::spawn(move || counter.run());
        group.throughput(Throughput::Elements(chunk.events.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| sender.offer(black_box(&chunk), false));
        });
        drop(sender);
        counting.join().expect("counting does not panic");
    }
}

/// Series to render.
const SERIES: usize = 10_000;

fn render(criterion: &mut Criterion) {
    let bodies: Vec<_> = (0..SERIES)
        .map(|number| {
            let tag = "salt/job/20261121233336123456/new";
            let data = json!({"fun": format!("module.function_{number}"), "arg": ["x"]});
            traffic::body(tag, &data).expect("JSON is msgpack too")
        })
        .collect();
    // A new job has a series in each of three metrics.
    let config = EstateConfig { max_series: (SERIES / 3) as u64, ..config() };
    let estate = Estate::new(Some(config));
    estate.count(&chunk(&bodies), false);
    let mut text = String::new();
    estate.render(&mut text);
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    eprintln!("{series} series are {} bytes", text.len());
    let mut group = criterion.benchmark_group("estate render");
    group.throughput(Throughput::Elements(series as u64));
    group.bench_function(BenchmarkId::from_parameter("10 000 series"), |bencher| {
        bencher.iter(|| {
            text.clear();
            estate.render(black_box(&mut text));
        });
    });
}

criterion_group! {
    name = estate_metrics;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = count, skip, offer, render
}
criterion_main!(estate_metrics);
