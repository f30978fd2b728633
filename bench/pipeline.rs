//! The cost of handing events on: parsing, filters, dispatching, the queue. Throughput is in
//! events.

#![allow(missing_docs, clippy::expect_used, dead_code)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use saltern::event::batch::BatchLimits;
use saltern::event::chunk::Share;
use saltern::event::filter::{Filter, FilterConfig};
use saltern::event::{Authority, Event};
use saltern::files::disk::Folder;
use saltern::observe::state::{SinkState, SourceState};
use saltern::pipeline::dispatch::{Dispatcher, SinkChannel, SinkChannels};
use saltern::pipeline::routes::Routes;
use saltern::queue::Queue;
use saltern::queue::config::{SpillConfig, SpillMode};
use saltern::queue::parcel::Parcel;
use saltern::source::frame_sender::{Frames, Via};
use saltern::sync::bell::{Bell, Receiver, channel};
use saltern::units::{ByteSize, Span};

mod batches;
mod payloads;
#[path = "../load-tests/src/traffic.rs"]
mod traffic;

use batches::{EVENTS, share};
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

/// Ten globs of the sink of this number.
fn ten_globs(sink: usize) -> FilterConfig {
    let tags = (0..10).map(|n| format!("salt/*/ret/db-{sink}-{n}.*")).collect();
    FilterConfig { tags, ..FilterConfig::default() }
}

/// The filters of twenty sinks with ten globs each, asked together and one by one.
fn routes(criterion: &mut Criterion) {
    let filters: Vec<Filter> =
        (0..20).map(|n| Filter::new(&ten_globs(n)).expect("these are globs")).collect();
    let mut group = criterion.benchmark_group("200 globs of 20 sinks");
    for (name, bodies) in payloads() {
        let events = events(&bodies);
        group.throughput(Throughput::Elements(events.len() as u64));
        let mut routes = Routes::new(filters.iter());
        group.bench_function(BenchmarkId::new("together", name), |bencher| {
            bencher.iter(|| routes.picks(filters.iter(), black_box(&events)).len());
        });
        group.bench_function(BenchmarkId::new("one by one", name), |bencher| {
            let taken =
                |filter: &Filter| events.iter().filter(|e| filter.takes(black_box(e))).count();
            bencher.iter(|| filters.iter().map(taken).sum::<usize>());
        });
    }
}

/// Chunks that are dispatched, or pushed before the queue is emptied.
const CHUNKS: usize = 50;

/// The dispatcher's own thread: with one sink, with ten, with ten of which nine want nothing, and
/// with one and twenty of ten globs each.
fn dispatch(criterion: &mut Criterion) {
    let nothing = FilterConfig { tags: vec!["no/such/*".to_owned()], ..FilterConfig::default() };
    let all = FilterConfig::default();
    let kinds: [(&str, Vec<FilterConfig>); 4] = [
        ("one sink", vec![all.clone()]),
        ("ten sinks", vec![all.clone(); 10]),
        ("one and nine idle", [vec![all.clone()], vec![nothing; 9]].concat()),
        ("one and twenty of ten globs", [vec![all], (1..21).map(ten_globs).collect()].concat()),
    ];
    for (kind, filters) in &kinds {
        let mut group = criterion.benchmark_group(format!("dispatch {kind}"));
        group.throughput(Throughput::Elements((EVENTS * CHUNKS) as u64));
        for (name, bodies) in payloads() {
            let state = Arc::new(SourceState::new("bus", "salt_bus", "master"));
            let origin = batches::origin();
            let bodies = batches::frames(&bodies);
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter_batched(
                    || {
                        let (sender, frames) = channel(CHUNKS, &Bell::default());
                        for _ in 0..CHUNKS {
                            let frames = Frames {
                                authority: Authority::Bus,
                                state: Arc::clone(&state),
                                origin: Arc::clone(&origin),
                                via: Via::Read,
                                received: 1,
                                bodies: bodies.clone(),
                                ids: Vec::new(),
                                claim: None,
                            };
                            sender.send(frames).expect("there is room");
                        }
                        // Nobody sends a change; and the dispatcher ends when nothing more can
                        // come.
                        let (_, changes) = channel(1, &Bell::default());
                        let (tap, _) = tokio::sync::broadcast::channel(1);
                        let sinks = filters.iter().enumerate();
                        let (sinks, shares): (Vec<_>, Vec<_>) =
                            sinks.map(|(number, filter)| outgoing(number, filter)).unzip();
                        let dispatcher = Dispatcher {
                            frames,
                            sinks: SinkChannels::new(sinks),
                            recent: None,
                            redaction: None,
                            changes,
                            estate: None,
                            tap,
                        };
                        (dispatcher, shares)
                    },
                    |(dispatcher, shares)| {
                        dispatcher.run();
                        shares
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

fn outgoing(number: usize, filter: &FilterConfig) -> (SinkChannel, Receiver<Parcel>) {
    let (sender, shares) = channel(CHUNKS, &Bell::default());
    let filter = Filter::new(filter).expect("these are globs");
    let state = Arc::new(SinkState::new(&format!("s{number}"), "blackhole"));
    (SinkChannel { filter, shares: sender, ranks: false, jobs: false, state }, shares)
}

fn queue(criterion: &mut Criterion) {
    const LIMITS: BatchLimits = BatchLimits::new(1000, ByteSize::mib(1), Span::millis(0));
    let mut group = criterion.benchmark_group("queue push and take");
    for (name, bodies) in payloads() {
        let shares: Vec<Share> = (0..CHUNKS).map(|_| share(&bodies)).collect();
        group.throughput(Throughput::Elements((EVENTS * CHUNKS) as u64));
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
                        queue.push(share.into(), now);
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
    targets = parse, filter, routes, dispatch, queue
}
criterion_main!(pipeline);
