//! The cost of the spill: making a record of a share, appending it to a file, opening a spill again
//! and reading what waits in it. Throughput is in bytes. `saltern-load spill` measures the disk
//! besides.

#![allow(missing_docs, clippy::expect_used, dead_code)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use saltern::files::disk::Folder;
use saltern::queue::spill::record::Body;
use saltern::queue::spill::{Settings, Spill};
use tempfile::TempDir;

mod batches;
mod payloads;
#[path = "../load-tests/src/traffic.rs"]
mod traffic;

use batches::share;
use payloads::payloads;

const SETTINGS: Settings =
    Settings { segment_bytes: 64 << 20, max_bytes: u64::MAX, compress: false };

/// Records of a spill that is recovered.
const RECORDS: usize = 100;

fn open(folder: &TempDir) -> Spill<Folder> {
    let disk = Folder::create(folder.path()).expect("a folder can be made");
    Spill::open(disk, SETTINGS).expect("a spill can be opened")
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("there is a temporary folder")
}

fn encode(criterion: &mut Criterion) {
    for (compress, name) in [(false, "spill encode"), (true, "spill encode, compressed")] {
        let mut group = criterion.benchmark_group(name);
        for (payload, bodies) in payloads() {
            let share = share(&bodies);
            let length = Body::encode(&share, false).expect("small enough").record_len();
            group.throughput(Throughput::Bytes(length));
            group.bench_function(BenchmarkId::from_parameter(payload), |bencher| {
                bencher.iter(|| black_box(Body::encode(black_box(&share), compress)));
            });
        }
    }
}

fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("spill append");
    for (payload, bodies) in payloads() {
        let share = share(&bodies);
        let body = Body::encode(&share, false).expect("small enough");
        group.throughput(Throughput::Bytes(body.record_len() * RECORDS as u64));
        group.bench_function(BenchmarkId::from_parameter(payload), |bencher| {
            bencher.iter_batched(
                || {
                    let folder = folder();
                    (open(&folder), folder)
                },
                |(mut spill, folder)| {
                    for _ in 0..RECORDS {
                        spill.append(spill.next(), &share, &body).expect("a record is appended");
                    }
                    (spill, folder)
                },
                BatchSize::PerIteration,
            );
        });
    }
}

fn recover(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("spill recover and read");
    for (payload, bodies) in payloads() {
        let share = share(&bodies);
        let body = Body::encode(&share, false).expect("small enough");
        let folder = folder();
        let mut spill = open(&folder);
        for _ in 0..RECORDS {
            spill.append(spill.next(), &share, &body).expect("a record is appended");
        }
        drop(spill);
        group.throughput(Throughput::Bytes(body.record_len() * RECORDS as u64));
        group.bench_function(BenchmarkId::from_parameter(payload), |bencher| {
            bencher.iter(|| {
                let (mut spill, mut records) = (open(&folder), 0);
                while let Some(read) = spill.read().expect("a record is read") {
                    black_box(read);
                    records += 1;
                }
                assert_eq!(records, RECORDS);
            });
        });
    }
}

criterion_group! {
    name = spill;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = encode, append, recover
}
criterion_main!(spill);
