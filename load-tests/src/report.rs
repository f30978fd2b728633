//! The scenarios, and the table that they end in.

use std::path::Path;
use std::process::Command;

use crate::Failure;
use crate::bus::Rate;
use crate::measure::{self, Cost, Load, Measured, Sink, Spill};
use crate::traffic::{Framing, Mix, Traffic};

const SIZE: usize = 3000;
const ALL: &[Sink] = &[Sink::RawfileJson, Sink::Sqlite3, Sink::Local, Sink::Blackhole];

/// Runs every scenario and prints the table. A target that is not met is marked, and makes the
/// command fail.
pub(crate) fn print(binary: &Path, rounds: usize) -> Result<(), Failure> {
    let traffic = Traffic::new(Mix::Highstates, SIZE, Framing::Plain, Path::new(""))?;
    let run = |sinks: &[Sink], spill, rate, events| -> Result<(Cost, Cost), Failure> {
        let load = Load { traffic: &traffic, framing: Framing::Plain, rate, events };
        let measured = Measured { binary, sinks, other: None, spill, sections: "" };
        let mut both = Vec::new();
        for _ in 0..rounds.max(1) {
            // One after the other, so that both see the same machine.
            both.push((measure::saltern(&measured, &load)?, measure::drain(&load)?));
        }
        let by = |of: fn(&Cost) -> f64| {
            let ours: Vec<f64> = both.iter().map(|(ours, _)| of(ours)).collect();
            let theirs: Vec<f64> = both.iter().map(|(_, drain)| of(drain)).collect();
            (median(ours), median(theirs))
        };
        let (cpu, read, stored) = (by(|c| c.cpu), by(|c| c.read_rate), by(|c| c.stored_rate));
        let most = |of: fn(&Cost) -> u64| both.iter().map(|(ours, _)| of(ours)).max().unwrap_or(0);
        let ours = Cost {
            events,
            dropped: most(|cost| cost.dropped),
            read_rate: read.0,
            stored_rate: stored.0,
            cpu: cpu.0,
            peak: most(|cost| cost.peak),
            resident: most(|cost| cost.resident),
        };
        let drain = Cost { cpu: cpu.1, read_rate: read.1, stored_rate: stored.1, ..ours };
        Ok((ours, drain))
    };

    println!("{}\n", machine());
    println!("State returns of {} bytes; medians of {rounds} runs.\n", traffic.mean_size());
    println!("| path | measured | drain, same run | target | |");
    println!("|---|---|---|---|---|");
    let mut missed = 0;
    let mut row = |path: &str, measured: String, drain: String, target: &str, met: bool| {
        missed += usize::from(!met);
        println!(
            "| {path} | {measured} | {drain} | {target} | {} |",
            if met { "met" } else { "missed" }
        );
    };

    let (in_memory, drain) = run(&[Sink::RawfileJson], Spill::Memory, Rate::Max, 200_000)?;
    row(
        "bus to `rawfile_json`, saturated, `memory`",
        format!("{:.2} µs CPU an event, {:.0} events/s", in_memory.cpu, in_memory.stored_rate),
        format!("{:.2} µs", drain.cpu),
        "6 µs",
        in_memory.cpu <= 6.0 && in_memory.dropped == 0,
    );
    let (ours, drain) = run(&[Sink::RawfileJson], Spill::Durable, Rate::Max, 200_000)?;
    let more = ours.cpu - in_memory.cpu;
    row(
        "the same, `durable`",
        format!("{:.2} µs CPU an event, {:.0} events/s", ours.cpu, ours.stored_rate),
        format!("{:.2} µs", drain.cpu),
        &format!("1.5 µs more than `memory`: {more:.2}"),
        more <= 1.5 && ours.dropped == 0,
    );
    for spill in [Spill::Memory, Spill::Durable] {
        let rate = Rate::PerSecond(1000.0);
        let (ours, drain) = run(&[Sink::RawfileJson], spill, rate, 10_000)?;
        row(
            &format!("bus to `rawfile_json`, 1 000 events/s, `{spill}`"),
            format!("{:.1} µs CPU an event", ours.cpu),
            format!("{:.1} µs", drain.cpu),
            "25 µs",
            ours.cpu <= 25.0 && ours.dropped == 0,
        );
    }
    let (in_memory, drain) = run(&[Sink::Blackhole], Spill::Memory, Rate::Max, 500_000)?;
    let part = in_memory.read_rate / drain.read_rate;
    row(
        "bus to `blackhole`, saturated, `memory`",
        format!("{:.0} MB/s, {:.2} µs CPU an event", in_memory.read_rate / 1e6, in_memory.cpu),
        format!("{:.0} MB/s, {:.2} µs", drain.read_rate / 1e6, drain.cpu),
        &format!("0.5 of drain: {part:.2}"),
        part >= 0.5 && in_memory.dropped == 0,
    );
    let (ours, drain) = run(&[Sink::Blackhole], Spill::Durable, Rate::Max, 500_000)?;
    let more = ours.cpu - in_memory.cpu;
    row(
        "the same, `durable`",
        format!("{:.0} MB/s, {:.2} µs CPU an event", ours.read_rate / 1e6, ours.cpu),
        format!("{:.0} MB/s, {:.2} µs", drain.read_rate / 1e6, drain.cpu),
        &format!("1.5 µs more than `memory`: {more:.2}"),
        more <= 1.5 && ours.dropped == 0,
    );
    let rate = Rate::PerSecond(5000.0);
    for spill in [Spill::Memory, Spill::Durable] {
        let load = Load { traffic: &traffic, framing: Framing::Plain, rate, events: 150_000 };
        let measured = Measured { binary, sinks: ALL, other: None, spill, sections: "" };
        let ours = measure::saltern(&measured, &load)?;
        row(
            &format!(
                "`rawfile_json`, `sqlite3`, `local`, `blackhole` at 5 000 events/s for 30 s, `{spill}`"
            ),
            format!(
                "{} MiB at the most, {} MiB at the end, {:.1} µs CPU an event",
                mib(ours.peak),
                mib(ours.resident),
                ours.cpu
            ),
            String::new(),
            "40 MiB",
            ours.peak <= 40 << 20 && ours.dropped == 0,
        );
    }
    match missed {
        0 => Ok(()),
        missed => Err(format!("{missed} targets are missed").into()),
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// The processor, its number, the kernel and the date.
pub(crate) fn machine() -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{}, {count} × {}, Linux {}",
        said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]).unwrap_or_default(),
        model.map_or("unknown processor", |(_, model)| model),
        said("uname", &["-r"]).unwrap_or_default(),
    )
}
