//! The cost of an event against the rate at which events come, and against the number of sinks.

use std::path::Path;

use crate::Failure;
use crate::bus::Rate;
use crate::measure::{self, Load, Measured, Sink, Spill};
use crate::plot::{self, Plot, Series};
use crate::report::machine;
use crate::traffic::{Framing, Traffic};

const RATES: [f64; 13] = [
    100.0,
    200.0,
    500.0,
    1000.0,
    2000.0,
    5000.0,
    10_000.0,
    20_000.0,
    50_000.0,
    100_000.0,
    200_000.0,
    500_000.0,
    1_000_000.0,
];
const SINKS: [usize; 6] = [1, 2, 5, 10, 20, 40];

/// Measures, prints the tables and saves the plots in `folder`. A rate is offered for `seconds`,
/// but no more than `events` events; they are also what the sinks get.
pub(crate) fn print(
    binary: &Path,
    folder: &Path,
    traffic: &Traffic,
    seconds: f64,
    events: u64,
) -> Result<(), Failure> {
    println!("{}; events of {} bytes in the mean.\n", machine(), traffic.mean_size());
    rates(binary, folder, traffic, seconds, events)?;
    sinks(binary, folder, traffic, events)
}

fn rates(
    binary: &Path,
    folder: &Path,
    traffic: &Traffic,
    seconds: f64,
    most: u64,
) -> Result<(), Failure> {
    let mut series = Vec::new();
    println!(
        "| offered, events/s | spill | stored, events/s | CPU an event | of a core | RSS at the most | dropped |"
    );
    println!("|---|---|---|---|---|---|---|");
    for spill in [Spill::Memory, Spill::Durable] {
        let mut points = Vec::new();
        for rate in RATES {
            // At least so many that the looks at how far the sinks are cost little beside them.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let events = ((rate * seconds) as u64).max(2000).min(most);
            let load =
                Load { traffic, framing: Framing::Plain, rate: Rate::PerSecond(rate), events };
            let sinks = &[Sink::RawfileJson];
            let measured = Measured { binary, sinks, other: None, spill, sections: "" };
            let cost = measure::saltern(&measured, &load)?;
            println!(
                "| {rate} | `{spill}` | {:.0} | {:.2} µs | {:.1} % | {} MiB | {} |",
                cost.stored_rate,
                cost.cpu,
                cost.cpu * cost.stored_rate / 1e4,
                cost.peak.div_ceil(1 << 20),
                cost.dropped
            );
            points.push((rate, cost.cpu));
        }
        series.push(Series { name: spill.to_string(), points });
    }
    let plot = Plot {
        title: "What an event costs, bus to rawfile_json",
        across: "events a second, offered",
        up: "µs of CPU an event",
        log: (true, true),
        series: &series,
    };
    plot::save(folder, "cost-against-rate.svg", &plot)
}

fn sinks(binary: &Path, folder: &Path, traffic: &Traffic, most: u64) -> Result<(), Failure> {
    let mut series = Vec::new();
    println!(
        "| sinks | of | CPU an event | each further one | events/s | RSS at the most | dropped |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (sink, name) in [
        (Sink::Blackhole, "blackhole"),
        (Sink::DevNull, "rawfile_json to /dev/null"),
        (Sink::RawfileJson, "rawfile_json"),
    ] {
        let mut points: Vec<(f64, f64)> = Vec::new();
        for count in SINKS {
            // Forty files of all events would be as many gigabytes.
            let events = (most / count as u64).clamp(most.min(10_000), 100_000);
            let load = Load { traffic, framing: Framing::Plain, rate: Rate::Max, events };
            let sinks = vec![sink; count];
            let spill = Spill::Memory;
            let measured = Measured { binary, sinks: &sinks, other: None, spill, sections: "" };
            let cost = measure::saltern(&measured, &load)?;
            #[allow(clippy::cast_precision_loss)]
            let at = count as f64;
            let further = points.first().map_or(String::new(), |(_, one)| {
                format!("{:.2} µs", (cost.cpu - one) / (at - 1.0))
            });
            println!(
                "| {count} | {name} | {:.2} µs | {further} | {:.0} | {} MiB | {} |",
                cost.cpu,
                cost.stored_rate,
                cost.peak.div_ceil(1 << 20),
                cost.dropped
            );
            points.push((at, cost.cpu));
        }
        series.push(Series { name: name.to_owned(), points });
    }
    let plot = Plot {
        title: "What an event costs, bus saturated, spill in memory",
        across: "sinks",
        up: "µs of CPU an event",
        log: (false, false),
        series: &series,
    };
    plot::save(folder, "cost-against-sinks.svg", &plot)
}
