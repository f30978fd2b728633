//! The cost of the metrics of an estate: the same events with them, without them, and with series
//! for each minion; and the size of a scrape then.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::bus::Rate;
use crate::daemon::{Daemon, pause};
use crate::measure::{self, Load, Measured, Sink, Spill};
use crate::simulator;
use crate::traffic::Framing;

/// `/metrics` is asked so often; the table has the shortest and the longest.
const SCRAPES: usize = 5;

/// The time between two of them: saltern makes a scraper wait that asks again within 100 ms.
const BETWEEN: Duration = Duration::from_millis(250);

/// A scrape: bytes, lines that are series, the shortest and the longest time.
struct Scrape {
    bytes: usize,
    series: usize,
    shortest: Duration,
    longest: Duration,
}

/// Measures and prints a table in Markdown.
pub(crate) fn print(
    binary: &Path,
    minions: usize,
    seed: u64,
    rate: Rate,
    events: u64,
) -> Result<(), Failure> {
    let traffic = simulator::traffic(minions, seed, Framing::Plain)?;
    let count = traffic.events.len();
    println!(
        "An estate of {minions} minions, seed {seed}: {count} events of {} bytes in the mean and {} jobs, \
         {events} of them sent.\n",
        traffic.mean_size(),
        traffic.jobs
    );
    println!(
        "| estate | CPU an event | events/s | RSS at the most | missed | `/metrics` | series | render |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let load = Load { traffic: &traffic, framing: Framing::Plain, rate, events };
    let room = (minions * 2).max(5000);
    let minions = format!("estate: {{minions: true, max_series: {room}, max_minions: {room}}}");
    for (name, sections) in [("none", ""), ("`{}`", "estate: {}"), ("`minions: true`", &minions)] {
        let sinks = &[Sink::Blackhole];
        let measured = Measured { binary, sinks, other: None, spill: Spill::Memory, sections };
        let (cost, (scrape, missed)) = measure::with_saltern(&measured, &load, scraped)?;
        println!(
            "| {name} | {:.2} µs | {:.0} | {} MiB | {missed} | {} bytes | {} | {:.1?} to {:.1?} |",
            cost.cpu,
            cost.stored_rate,
            cost.peak.div_ceil(1 << 20),
            scrape.bytes,
            scrape.series,
            scrape.shortest,
            scrape.longest,
        );
    }
    Ok(())
}

/// Scrapes, and says how many events the metrics of the estate missed.
fn scraped(daemon: &Daemon) -> Result<(Scrape, u64), Failure> {
    let mut scrape =
        Scrape { bytes: 0, series: 0, shortest: Duration::MAX, longest: Duration::ZERO };
    let mut text = String::new();
    for _ in 0..SCRAPES {
        pause(BETWEEN);
        let began = Instant::now();
        text = daemon.get("/metrics")?;
        let took = began.elapsed();
        (scrape.shortest, scrape.longest) = (scrape.shortest.min(took), scrape.longest.max(took));
    }
    let (_, body) = text.split_once("\r\n\r\n").ok_or("an answer without a body")?;
    scrape.bytes = body.len();
    scrape.series = body.lines().filter(|line| !line.starts_with('#')).count();
    let missed =
        body.lines().filter_map(|line| line.strip_prefix("saltern_estate_missed_events_total"));
    let missed = missed.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
    Ok((scrape, missed))
}
