#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use saltern::jobs::Jobs;

#[allow(dead_code)]
#[path = "../targets.rs"]
mod targets;

/// A job cache with nothing in it: the question must still be SQL.
static JOBS: LazyLock<(tempfile::TempDir, Jobs)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("no folder for the job cache");
    let jobs = Jobs::new(folder.path());
    jobs.keep(Some(Duration::from_secs(3600)));
    (folder, jobs)
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    targets::query(data, &JOBS.1);
});
