#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use saltern::jobs::Jobs;

#[allow(dead_code)]
#[path = "../targets.rs"]
mod targets;

/// Earlier questions may change an answer, as they do in a daemon that lives on.
static JOBS: LazyLock<(tempfile::TempDir, Jobs)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("no folder for the job cache");
    let jobs = Jobs::new(folder.path());
    jobs.keep(Some(Duration::from_secs(3600)));
    (folder, jobs)
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    targets::request(data, &JOBS.1);
});
