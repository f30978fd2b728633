//! What handing events on costs: parsing, filters, the queue. Throughput is in events.

#![allow(missing_docs, clippy::expect_used, dead_code)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use saltern::batch::BatchLimits;
use saltern::event::{Chunk, Event, Origin, Share};
use saltern::filter::{Filter, FilterConfig};
use saltern::queue::{Queue, SpillConfig, SpillMode};
use saltern::spill::disk::Folder;
use saltern::units::ByteSize;

mod payloads;
#[path = "../load-tests/src/traffic.rs"]
mod traffic;

use payloads::payloads;

fn events(bodies: &[Vec<u8>]) -> Vec<Event> {
    let parse = |body: &Vec<u8>| Event::parse(Bytes::copy_from_slice(body));
    bodies.iter().map(|body| parse(body).expect("a body has a tag")).collect()
}

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for (name, bodies) in payloads() {
        let frames: Vec<Bytes> = bodies.into_iter().map(Bytes::from).collect();
        group.throughput(Throughput::Elements(frames.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                for frame in &frames {
                    black_box(Event::parse(black_box(frame).clone()).expect("there is a tag"));
                }
            });
        });
    }
}

fn filter(criterion: &mut Criterion) {
    let text = |globs: &[&str]| globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>();
    let configs = [
        ("one tag", FilterConfig { tags: text(&["salt/job/*"]), ..FilterConfig::default() }),
        (
            "ten tags",
            FilterConfig {
                tags: (0..10).map(|n| format!("salt/job/*/ret/db-{n}*")).collect(),
                ..FilterConfig::default()
            },
        ),
        (
            "two hundred tags",
            FilterConfig {
                tags: (0..200).map(|n| format!("salt/*/ret/db-{n}.*")).collect(),
                ..FilterConfig::default()
            },
        ),
        ("function", FilterConfig { functions: text(&["test.*"]), ..FilterConfig::default() }),
        ("success", FilterConfig { success: Some(false), ..FilterConfig::default() }),
    ];
    for (kind, config) in configs {
        let filter = Filter::new(&config).expect("these are globs");
        let mut group = criterion.benchmark_group(format!("filter {kind}"));
        for (name, bodies) in payloads() {
            let events = events(&bodies);
            group.throughput(Throughput::Elements(events.len() as u64));
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher
                    .iter(|| events.iter().filter(|event| filter.takes(black_box(event))).count());
            });
        }
    }
}

/// Events of a chunk: what a read of 256 KiB brings of 3 KB each.
const CHUNK: usize = 80;

/// Chunks pushed before the queue is emptied.
const CHUNKS: usize = 50;

fn queue(criterion: &mut Criterion) {
    const LIMITS: BatchLimits = BatchLimits::new(1000, ByteSize::mib(1), 0);
    let origin = Arc::new(Origin { source: "bus".to_owned(), master_id: "master".to_owned() });
    let mut group = criterion.benchmark_group("queue push and take");
    for (name, bodies) in payloads() {
        let chunk = || {
            let bodies: Vec<_> = bodies.iter().cycle().take(CHUNK).cloned().collect();
            let chunk = Chunk { origin: Arc::clone(&origin), received: 1, events: events(&bodies) };
            Share::all(Arc::new(chunk))
        };
        let shares: Vec<Share> = (0..CHUNKS).map(|_| chunk()).collect();
        group.throughput(Throughput::Elements((CHUNK * CHUNKS) as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_batched(
                || {
                    (
                        Queue::<Folder>::new(
                            1,
                            SpillConfig {
                                mode: SpillMode::Memory,
                                memory: Some(ByteSize::mib(4096)),
                                ..SpillConfig::default()
                            },
                            None,
                        ),
                        shares.clone(),
                    )
                },
                |(mut queue, shares)| {
                    let now = Instant::now();
                    for share in shares {
                        queue.push(share, now);
                    }
                    while let Some(batch) = queue.take(&LIMITS, Instant::now()) {
                        queue.settle(black_box(batch).first());
                    }
                    queue
                },
                BatchSize::SmallInput,
            );
        });
    }
}

criterion_group! {
    name = pipeline;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = parse, filter, queue
}
criterion_main!(pipeline);
