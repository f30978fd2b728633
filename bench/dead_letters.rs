//! The cost of a dead letter, among few and among many: to keep one, and to read those that wait to
//! be handed over next. The times must not grow with the number of letters.

#![allow(missing_docs, clippy::expect_used)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use saltern::delivery::dead_letter::{DeadLetters, LetterSelection, Refused};
use saltern::event::batch::Entry;
use saltern::event::{Authority, Event, Origin};
use tempfile::TempDir;

/// Letters that are there already.
const LETTERS: [usize; 2] = [1_000, 240_000];

/// Letters that are made together.
const TOGETHER: usize = 10_000;

fn keep(letters: &DeadLetters, count: usize) {
    let origin = Origin { source: "bus".to_owned(), master_id: "master".to_owned() };
    let event = Event::new("salt/job/20261121230000000000/ret/minion", &[0xc0; 600]);
    let refused = (0..count).map(|_| Refused {
        entry: Entry { event: &event, origin: &origin, received: 1, authority: Authority::Bus },
        reason: "value too long for type character varying(255)",
        attempts: 1,
    });
    letters.keep("db", &refused.collect::<Vec<_>>()).expect("the disk takes them");
}

/// The file of `count` letters, all of them marked for replay.
fn letters(count: usize) -> (TempDir, DeadLetters) {
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    let letters = DeadLetters::open(folder.path(), 1 << 40).expect("the file can be made");
    for _ in 0..count.div_ceil(TOGETHER) {
        keep(&letters, TOGETHER.min(count));
    }
    letters.mark_for_replay(&LetterSelection::default()).expect("they can be marked");
    (folder, letters)
}

fn dead_letters(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dead letters");
    group.sample_size(10);
    for count in LETTERS {
        let (_folder, letters) = letters(count);
        let id = |what| BenchmarkId::new(what, count);
        group.bench_function(id("keep one"), |bencher| bencher.iter(|| keep(&letters, 1)));
        group.bench_function(id("keep 10 000"), |bencher| {
            bencher.iter(|| keep(&letters, TOGETHER));
        });
        group.bench_function(id("read the next to replay"), |bencher| {
            bencher.iter(|| black_box(letters.next_replays("db", 500)));
        });
        group.bench_function(id("count"), |bencher| {
            bencher.iter(|| black_box((letters.counts(), letters.marked())));
        });
    }
}

criterion_group!(benches, dead_letters);
criterion_main!(benches);
