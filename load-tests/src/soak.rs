//! A long run with faults all the time. Memory, descriptors and threads must not grow, and
//! everything must be stored.
//!
//! There are four sinks: one that is healthy and checked; a database that is locked every other
//! second, for one minion in fifty; a ClickHouse where nobody listens, with a bounded spill; a
//! blackhole. The master restarts once a minute. Memory, descriptors and threads are sampled every
//! second.

use std::fmt::Write as _;
use std::net::Shutdown;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::bus::{self, Bus, Rate};
use crate::daemon::{Daemon, Folder, Setup, count, lost, pause, settled, sinks, wait_until};
use crate::faults::restart;
use crate::plot::{self, Plot, Series};
use crate::report::{machine, median};
use crate::stage::{self, Lock, Output};
use crate::traffic::{Framing, Mix, Traffic};
use crate::{Failure, process};

/// Minions of the traffic; the database takes the events of one of them.
const MINIONS: u64 = 50;
const MINION: u64 = 7;

/// The state of saltern at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    second: f64,
    resident: u64,
    descriptors: u64,
    threads: u64,
}

/// Runs, prints and saves `soak.csv` and `soak.svg`; fails if something grew or is missing.
pub(crate) fn print(binary: &Path, plots: &Path, minutes: f64, rate: f64) -> Result<(), Failure> {
    let traffic = Traffic::new(Mix::Highstates, 3000, Framing::Plain, Path::new(""))?;
    let folder = Folder::new()?;
    let database = folder.path("events.db");
    let sinks = [
        stage::READ.to_owned(),
        format!(
            "sqlite3: {{database: FOLDER/events.db, timeout: 20ms}}, retry: {{initial: 50ms, max: 200ms}}, \
             filter: {{tags: ['salt/job/*/ret/web-{MINION}.example.com']}}"
        ),
        "clickhouse: {url: 'http://127.0.0.1:1', database: salt}, spill: {max_bytes: 64MiB}"
            .to_owned(),
        "blackhole: {}".to_owned(),
    ];
    let mut bus = Some(Bus::listen(&folder.bus(), Framing::Plain)?);
    let setup = Setup { is_read: true, ..Setup::new(binary, &sinks) };
    let mut daemon = Daemon::start(&folder, &setup)?;
    let output = Output::of(daemon.stdout()?);
    let mut stream = [bus.as_ref().ok_or("no bus")?.accept()?];
    daemon.wait_until_ready()?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let (total, each) = ((minutes * 60.0 * rate) as u64, (60.0 * rate).max(1.0) as u64);
    let of_minion = (total + MINIONS - 1 - MINION) / MINIONS;
    let is_over = AtomicBool::new(false);
    let lock = Lock { held: Duration::from_secs(1), free: Duration::from_secs(1) };
    let (samples, restarts) = std::thread::scope(|scope| {
        let holding = scope.spawn(|| lock.hold(&database, &is_over));
        let sampling = scope.spawn(|| sample(&daemon, &is_over));
        let mut run = || -> Result<u64, Failure> {
            let mut restarts = 0;
            for first in (0..total).step_by(usize::try_from(each)?) {
                if first > 0 {
                    stream[0].shutdown(Shutdown::Both)?;
                    stream = [restart(&mut bus, &folder)?];
                    restarts += 1;
                }
                let numbers = first..total.min(first + each);
                let rate = Rate::PerSecond(rate);
                bus::send(&mut stream, &traffic, rate, numbers, &mut |_| Ok(()))?;
            }
            Ok(restarts)
        };
        let ran = run();
        is_over.store(true, Ordering::Release);
        holding.join().map_err(|_| "holding the lock panicked")??;
        let samples = sampling.join().map_err(|_| "sampling panicked")??;
        Ok::<_, Failure>((samples, ran?))
    })?;
    wait_until(|| {
        let status = daemon.status()?;
        let wanted = [total, of_minion, 0, total];
        Ok(self::sinks(&status).zip(wanted).all(|(sink, wanted)| settled(sink) >= wanted))
    })?;
    let status = daemon.status()?;
    let unreachable = self::sinks(&status).nth(2);
    let waiting =
        unreachable.and_then(|sink| sink.get("queue_events")?.as_f64()).unwrap_or(f64::NAN);
    let dropped = unreachable.map_or(0, lost);
    let dropped_elsewhere: u64 =
        self::sinks(&status).filter(|sink| count(sink, "events") > 0).map(lost).sum();
    drop(daemon);
    let (healthy, locked) = (output.end()?, stage::stored(&database, MINIONS, MINION)?);

    println!(
        "{}; {minutes} min at {rate} events/s, {restarts} restarts of the master.\n",
        machine()
    );
    println!("| | first third | last third | at the most | |");
    println!("|---|---|---|---|---|");
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let mut grew = row("RSS, MiB", &samples, |sample| mib(sample.resident), 1.1, 4.0);
    grew += row("descriptors", &samples, |sample| sample.descriptors, 1.0, 2.0);
    grew += row("threads", &samples, |sample| sample.threads, 1.0, 2.0);
    // Events that wait and events that were dropped are all the others: nothing is lost without a
    // count.
    #[allow(clippy::cast_precision_loss)]
    let is_said = (waiting + dropped as f64 - total as f64).abs() < 0.5;
    let is_stored =
        is_said && healthy.is_all(total) && locked.is_all(of_minion) && dropped_elsewhere == 0;
    println!(
        "\nThe healthy sink: {healthy}, of {total}. The database that was locked: {locked}, of {of_minion}."
    );
    println!(
        "The sink that was never there: {waiting} events wait, {dropped} were dropped and counted, of {total}."
    );
    save(plots, &samples)?;
    match (grew, is_stored) {
        (0, true) => Ok(()),
        (_, false) => {
            Err("not everything was stored, once and in order, or counted as dropped".into())
        }
        (grew, true) => Err(format!("{grew} things grew").into()),
    }
}

/// Prints the medians of the first and of the last third; 1 if the latter is larger than `factor`
/// and `slack` allow.
fn row(
    name: &str,
    samples: &[Sample],
    of: impl Fn(&Sample) -> u64,
    factor: f64,
    slack: f64,
) -> u32 {
    #[allow(clippy::cast_precision_loss)]
    let values: Vec<f64> = samples.iter().map(|sample| of(sample) as f64).collect();
    let third = values.len().div_ceil(3);
    let first = median(values.iter().take(third).copied().collect());
    let last = median(values.iter().rev().take(third).copied().collect());
    let most = values.iter().copied().fold(0.0, f64::max);
    // Without samples neither is a number, and then this is not met either.
    let is_steady = last <= first * factor + slack;
    println!(
        "| {name} | {first} | {last} | {most} | {} |",
        if is_steady { "steady" } else { "GREW" }
    );
    u32::from(!is_steady)
}

fn sample(daemon: &Daemon, is_over: &AtomicBool) -> Result<Vec<Sample>, String> {
    let pid = daemon.reader.0.id();
    let began = Instant::now();
    let mut samples = Vec::new();
    let look = || -> Result<Sample, Failure> {
        Ok(Sample {
            second: began.elapsed().as_secs_f64(),
            resident: process::memory(pid, "VmRSS")?,
            descriptors: process::entries(pid, "fd")?,
            threads: process::entries(pid, "task")?,
        })
    };
    for second in 0.. {
        let due = Duration::from_secs(second);
        while began.elapsed() < due && !is_over.load(Ordering::Acquire) {
            pause(Duration::from_millis(20));
        }
        if is_over.load(Ordering::Acquire) {
            break;
        }
        samples.push(look().map_err(|error| error.to_string())?);
    }
    Ok(samples)
}

fn save(folder: &Path, samples: &[Sample]) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)?;
    let mut text = "second,resident_bytes,descriptors,threads\n".to_owned();
    for Sample { second, resident, descriptors, threads } in samples {
        writeln!(text, "{second:.1},{resident},{descriptors},{threads}")?;
    }
    std::fs::write(folder.join("soak.csv"), text)?;
    #[allow(clippy::cast_precision_loss)]
    let line = |of: fn(&Sample) -> u64, unit: u64| {
        samples.iter().map(|sample| (sample.second, of(sample) as f64 / unit as f64)).collect()
    };
    let series = [
        Series { name: "RSS, MiB".into(), points: line(|sample| sample.resident, 1 << 20) },
        Series { name: "descriptors".into(), points: line(|sample| sample.descriptors, 1) },
        Series { name: "threads".into(), points: line(|sample| sample.threads, 1) },
    ];
    let plot = Plot {
        title: "A long run with faults",
        across: "seconds",
        up: "",
        log: (false, false),
        series: &series,
    };
    plot::save(folder, "soak.svg", &plot)
}
