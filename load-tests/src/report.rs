//! The targets, and the table that says which are met.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::Failure;
use crate::bus::{Bus, Rate};
use crate::daemon::{Daemon, Folder, Setup};
use crate::measure::{self, Cost, Load, Measured, Sink, Spill};
use crate::traffic::{Framing, Mix, Traffic};

const SIZE: usize = 3000;

/// The rows of a table, and how many of them miss their target.
struct Table {
    missed: usize,
}

impl Table {
    fn row(&mut self, path: &str, measured: &str, reference: &str, target: &str, met: bool) {
        self.missed += usize::from(!met);
        let verdict = if met { "met" } else { "missed" };
        println!("| {path} | {measured} | {reference} | {target} | {verdict} |");
    }
}

/// Runs each measurement `rounds` times and prints the table. A target that is not met is marked,
/// and makes the command fail. `scale` is by how much there is less to do than in a real run.
pub(crate) fn print(binary: &Path, rounds: usize, scale: u64) -> Result<(), Failure> {
    let traffic = Traffic::new(Mix::Highstates, SIZE, Framing::Plain, Path::new(""))?;
    let events = |count: u64| (count / scale.max(1)).max(1);
    let run = |sinks: &[Sink], spill, rate, count| -> Result<(Cost, Cost), Failure> {
        let load = Load { traffic: &traffic, framing: Framing::Plain, rate, events: events(count) };
        let measured = Measured { binary, sinks, other: None, spill, sections: "" };
        let (mut ours, mut drains) = (Vec::new(), Vec::new());
        for _ in 0..rounds.max(1) {
            // One after the other, so that both see the same machine.
            ours.push(measure::saltern(&measured, &load)?);
            drains.push(measure::drain(&load)?);
        }
        Ok((middle(&ours), middle(&drains)))
    };

    println!("{}\n", machine());
    println!("State returns of {} bytes; medians of {rounds} runs.\n", traffic.mean_size());
    println!("| path | measured | drain, same run | target | |");
    println!("|---|---|---|---|---|");
    let mut table = Table { missed: 0 };

    let mut in_memory = 0.0;
    for (spill, target) in [(Spill::Memory, 4.0), (Spill::Durable, 5.5)] {
        let (ours, drain) = run(&[Sink::RawfileJson], spill, Rate::Max, 200_000)?;
        if spill == Spill::Memory {
            in_memory = ours.cpu;
        }
        table.row(
            &format!("bus to `rawfile_json`, saturated, `{spill}`"),
            &format!("{:.2} µs CPU an event, {:.0} events/s", ours.cpu, ours.stored_rate),
            &format!("{:.2} µs", drain.cpu),
            &format!("{target} µs"),
            ours.cpu <= target && ours.dropped == 0,
        );
    }
    for (sink, name) in [(Sink::RawfileJson, "rawfile_json"), (Sink::DevNull, "/dev/null")] {
        let (one, _) = run(&[sink], Spill::Memory, Rate::Max, 50_000)?;
        let (ten, _) = run(&[sink; 10], Spill::Memory, Rate::Max, 50_000)?;
        let each = (ten.cpu - one.cpu) / 9.0;
        table.row(
            &format!("each of nine further `{name}`, saturated, `memory`"),
            &format!("{each:.2} µs CPU an event more ({:.2} with one)", one.cpu),
            &format!("{in_memory:.2} µs with one `rawfile_json`"),
            "0.5 µs",
            each <= 0.5 && ten.dropped == 0,
        );
    }
    for spill in [Spill::Memory, Spill::Durable] {
        let rate = Rate::PerSecond(1000.0);
        let (ours, drain) = run(&[Sink::RawfileJson], spill, rate, 10_000)?;
        table.row(
            &format!("bus to `rawfile_json`, 1 000 events/s, `{spill}`"),
            &format!("{:.1} µs CPU an event", ours.cpu),
            &format!("{:.1} µs", drain.cpu),
            "15 µs",
            ours.cpu <= 15.0 && ours.dropped == 0,
        );
    }
    for spill in [Spill::Memory, Spill::Durable] {
        let (ours, drain) = run(&[Sink::Blackhole], spill, Rate::Max, 500_000)?;
        let part = ours.read_rate / drain.read_rate;
        let is_bound = spill == Spill::Memory;
        table.row(
            &format!("bus to `blackhole`, saturated, `{spill}`"),
            &format!("{:.0} MB/s, {:.2} µs CPU an event", ours.read_rate / 1e6, ours.cpu),
            &format!("{:.0} MB/s, {:.2} µs", drain.read_rate / 1e6, drain.cpu),
            // With the spill, how fast it reads is a matter of the disk.
            &format!("{}{part:.2} of drain", if is_bound { "0.7: " } else { "none lost: " }),
            (part >= 0.7 || !is_bound) && ours.dropped == 0,
        );
    }
    for (kind, what, limit) in [
        ("rawfile_json: {filename: /dev/null}", "up", 64),
        // Nobody listens there.
        ("clickhouse: {url: 'http://127.0.0.1:1', database: salt}", "down", 128),
    ] {
        let peak = resident(binary, kind, what == "up", &traffic, events(150_000))?;
        table.row(
            &format!("ten sinks, all {what}, 5 000 events/s, `durable`"),
            &format!("{} MiB resident at the most", peak.div_ceil(1 << 20)),
            "",
            &format!("{limit} MiB"),
            peak <= limit << 20,
        );
    }
    let length = std::fs::metadata(binary)?.len();
    #[allow(clippy::cast_precision_loss)]
    let mega = length as f64 / 1e6;
    table.row("the binary", &format!("{mega:.1} MB"), "", "40 MB", length < 40_000_000);
    let ready = time_to_ready(binary)?;
    table.row(
        "start until `/readyz` says yes",
        &format!("{ready:.0} ms"),
        "",
        "50 ms",
        ready < 50.0,
    );
    match table.missed {
        0 => Ok(()),
        missed => Err(format!("{missed} targets are missed").into()),
    }
}

/// The most memory that is resident with ten of these sinks.
fn resident(
    binary: &Path,
    kind: &str,
    is_up: bool,
    traffic: &Traffic,
    events: u64,
) -> Result<u64, Failure> {
    let folder = Folder::new()?;
    let bus = Bus::listen(&folder.bus(), Framing::Plain)?;
    let sinks = vec![format!("{kind}, spill: {{mode: durable}}"); 10];
    let daemon = Daemon::start(&folder, &Setup::new(binary, &sinks))?;
    let mut stream = [bus.accept()?];
    let rate = Rate::PerSecond(5000.0);
    crate::bus::send(&mut stream, traffic, rate, 0..events, &mut |_| Ok(()))?;
    if is_up {
        daemon.wait_until_settled(events)?;
    }
    daemon.reader.memory("VmHWM")
}

/// Milliseconds from the start of the process until it is ready; the median of five starts.
fn time_to_ready(binary: &Path) -> Result<f64, Failure> {
    let mut times = Vec::new();
    for _ in 0..5 {
        let folder = Folder::new()?;
        let bus = Bus::listen(&folder.bus(), Framing::Plain)?;
        let sinks = ["blackhole: {}".to_owned()];
        let began = Instant::now();
        let daemon = Daemon::start(&folder, &Setup::new(binary, &sinks))?;
        let _stream = bus.accept()?;
        while !daemon.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.0 200")) {
            if began.elapsed().as_secs() > 60 {
                return Err("saltern was not ready after a minute".into());
            }
            std::thread::yield_now();
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(median(times))
}

/// The medians of each of the numbers; of memory and losses the most.
fn middle(costs: &[Cost]) -> Cost {
    let by = |of: fn(&Cost) -> f64| median(costs.iter().map(of).collect());
    let most = |of: fn(&Cost) -> u64| costs.iter().map(of).max().unwrap_or(0);
    Cost {
        events: most(|cost| cost.events),
        dropped: most(|cost| cost.dropped),
        read_rate: by(|cost| cost.read_rate),
        stored_rate: by(|cost| cost.stored_rate),
        cpu: by(|cost| cost.cpu),
        peak: most(|cost| cost.peak),
        resident: most(|cost| cost.resident),
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
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
