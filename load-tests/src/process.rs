//! The state of a process as `/proc` has it.

use std::time::Duration;

use crate::Failure;

/// Length of the ticks in which the kernel gives times (`USER_HZ`, 100 on every Linux of today).
const TICK: Duration = Duration::from_millis(10);

/// User and system time of this process, to 10 ms.
pub(crate) fn own_cpu() -> Result<Duration, Failure> {
    cpu("self")
}

/// User and system time of all threads of a process, ended ones included, to 10 ms.
pub(crate) fn cpu(pid: &str) -> Result<Duration, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold spaces; what follows it begins with field 3. utime and stime are 14 and 15.
    let (_, rest) = stat.rsplit_once(')').ok_or("/proc/PID/stat without a name")?;
    let ticks = rest.split_ascii_whitespace().skip(11).take(2).map(str::parse::<u32>);
    Ok(TICK * ticks.sum::<Result<u32, _>>()?)
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
