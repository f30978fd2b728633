//! The sinks' work on a batch: bytes for their stores, and SQLite's transaction. Throughput is in
//! bytes of payloads, of `sqlite3` in events.

#![allow(missing_docs, clippy::expect_used, dead_code)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use saltern::event::batch::Batch;
use saltern::event::line::write_text;
use saltern::sink::encoding::{Database, ENCODINGS, Encode};

mod batches;
mod payloads;
#[path = "../load-tests/src/traffic.rs"]
mod traffic;

use batches::{EVENTS, share, share_of};
use payloads::payloads;

fn encodings(criterion: &mut Criterion) {
    let local: (&str, Encode) = ("local", |batch, out| {
        batch.events().for_each(|event| write_text("12:00:00", event, false, out));
        out.len()
    });
    for (name, encode) in ENCODINGS.iter().chain([&local]) {
        let mut group = criterion.benchmark_group(format!("encode {name}"));
        for (payload, bodies) in payloads() {
            let batch = Batch::new(1, 0, vec![share(&bodies)]);
            group.throughput(size(&batch));
            let mut out = Vec::new();
            group.bench_function(BenchmarkId::from_parameter(payload), |bencher| {
                bencher.iter(|| {
                    out.clear();
                    black_box(encode(black_box(&batch), &mut out))
                });
            });
        }
    }
}

fn sqlite3(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store sqlite3");
    group.sample_size(20);
    group.throughput(Throughput::Elements(EVENTS as u64));
    for (payload, size) in [("ping", 0), ("return 3 KB", 3000)] {
        let folder = tempfile::tempdir().expect("there is a temporary folder");
        let mut database =
            Database::create(&folder.path().join("events.db")).expect("a new database");
        let mut number = 0;
        group.bench_function(BenchmarkId::from_parameter(payload), |bencher| {
            bencher.iter_batched(
                || {
                    // New events each time: the database leaves out known ones.
                    number += EVENTS;
                    Batch::new(1, number as u64, vec![share_of(size, number)])
                },
                |batch| database.store(&batch).expect("a batch that can be stored"),
                BatchSize::PerIteration,
            );
        });
    }
}

fn size(batch: &Batch) -> Throughput {
    Throughput::Bytes(batch.events().map(|event| event.payload().len() as u64).sum())
}

criterion_group! {
    name = sinks;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = encodings, sqlite3
}
criterion_main!(sinks);
