//! The kernel's data on this process, for the `process_*` metrics.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::observe::metrics::{self, Level};

/// The unit of times in `/proc/self/stat` (`USER_HZ`): 100 on every Linux.
const TICKS_A_SECOND: f64 = 100.0;

/// The gauges of the process.
pub(crate) struct Process {
    resident: Level,
    cpu: Level,
    open_files: Level,
}

impl Process {
    /// Registers the metrics, and sets those that never change.
    pub(crate) fn new() -> Self {
        Level::new(metrics::BUILD_INFO, &[env!("CARGO_PKG_VERSION")]).set(1.0);
        let process = Process {
            resident: Level::new(metrics::PROCESS_RSS, &[]),
            cpu: Level::new(metrics::PROCESS_CPU, &[]),
            open_files: Level::new(metrics::PROCESS_FDS, &[]),
        };
        if let Some(start) = start_time() {
            Level::new(metrics::PROCESS_START, &[]).set(start);
        }
        process.refresh();
        process
    }

    /// Reads the kernel's numbers; those that cannot be read stay as they were.
    pub(crate) fn refresh(&self) {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(kibibytes) = number_behind(&status, "VmRSS:") {
            self.resident.set(kibibytes * 1024.0);
        }
        if let Some(seconds) = cpu() {
            self.cpu.set(seconds);
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // One of them is this listing.
            self.open_files.set_count(files.count().saturating_sub(1));
        }
    }
}

/// Seconds of CPU of all threads, also of those that have ended.
fn cpu() -> Option<f64> {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(used).ok().map(|used| used.as_secs_f64())
}

/// Seconds since 1970.
fn start_time() -> Option<f64> {
    let boot = number_behind(&fs::read_to_string("/proc/stat").ok()?, "btime")?;
    Some(boot + stat(22)? / TICKS_A_SECOND)
}

/// A field of `/proc/self/stat`, counted from 1 as in proc(5).
fn stat(field: usize) -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program is the second field and may hold spaces and parentheses.
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

fn number_behind(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use crate::observe::process::*;

    #[test]
    fn the_kernel_answers() {
        let process = Process::new();
        process.refresh();
        assert!(process.resident.get() > 1e6, "{}", process.resident.get());
        assert!(process.open_files.get() >= 3.0);
        let age = jiff::Timestamp::now().as_duration().as_secs_f64() - start_time().unwrap();
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }

    #[test]
    fn the_cpu_counts_up() {
        let process = Process::new();
        let before = process.cpu.get();
        assert!(before > 0.0);
        let deadline = Instant::now() + Duration::from_secs(120);
        while process.cpu.get() <= before {
            assert!(Instant::now() < deadline, "it stays at {before} s");
            black_box((0..100_000).fold(0_u64, |sum, number| black_box(sum ^ number)));
            process.refresh();
        }
    }
}
