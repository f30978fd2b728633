//! The state of a process as the kernel has it.

use std::time::Duration;

use nix::time::ClockId;
use nix::unistd::Pid;

use crate::Failure;

/// The CPU that this process has used.
pub(crate) fn own_cpu() -> Result<Duration, Failure> {
    cpu(std::process::id())
}

/// The CPU that a process has used, by the clock that the kernel keeps for each. It counts
/// nanoseconds on a CPU of all threads, also of those that have ended, until the process is waited
/// for. `/proc/PID/stat` shows the same count in ticks of 10 ms, and `/proc/PID/task/*/schedstat`
/// loses ended threads.
pub(crate) fn cpu(pid: u32) -> Result<Duration, Failure> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.try_into()?));
    let now = clock.and_then(ClockId::now);
    let now = now.map_err(|error| format!("the CPU of process {pid}: {error}"))?;
    Ok(Duration::from(now))
}

/// A line of `/proc/PID/status` that is in kB, `VmHWM` or `VmRSS`, in bytes.
pub(crate) fn memory(pid: u32, name: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kb = line.ok_or_else(|| format!("/proc/{pid}/status has no {name}"))?;
    Ok(kb.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// The number of entries that a folder of `/proc/PID` has: `fd`, `task`.
pub(crate) fn entries(pid: u32, folder: &str) -> Result<u64, Failure> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/{folder}"))?.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_have_ended_count() {
        let before = own_cpu().unwrap();
        let work = Duration::from_millis(5);
        let burn = move || while cpu_of_this_thread() < work {};
        std::thread::spawn(burn).join().unwrap();
        assert!(own_cpu().unwrap() >= before + work);
    }

    fn cpu_of_this_thread() -> Duration {
        ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap().into()
    }
}
