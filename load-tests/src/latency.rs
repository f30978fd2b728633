//! The latency of an event: from the moment before it is written into the socket until the sink's
//! write arrives at another process.
//!
//! The sink is `local`, and its standard output is a pipe that is read here. A read that waits in
//! the kernel wakes with the sink's write; looking at a file again and again would add its own
//! delay. Both times are of this process, so one clock is enough. An event is recognised by its
//! jid. A second sink is down all the time.

use std::path::Path;
use std::process::ChildStdout;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use crate::bus::{self, Bus, Rate};
use crate::daemon::{Daemon, Folder, Setup};
use crate::measure::Spill;
use crate::plot::{self, Plot, Series};
use crate::report::machine;
use crate::traffic::{Framing, Mix, Traffic};
use crate::{Failure, lines};

/// Events at the beginning that are not counted: connecting, first pages, first batches.
const WARM_UP: usize = 1000;

/// Measures at a rate and prints the distribution, one row each for `durable` and `memory`.
pub(crate) fn print(binary: &Path, plots: &Path, rate: f64, events: usize) -> Result<(), Failure> {
    let traffic = Traffic::new(Mix::Highstates, 3000, Framing::Plain, Path::new(""))?;
    println!(
        "{}; {rate} events/s of {} bytes, linger 0, another sink down.\n",
        machine(),
        traffic.mean_size()
    );
    println!(
        "| spill | p50 | p90 | p99 | p99.9 | p99.99 | most | the bus itself late by | target | |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let (mut series, mut missed) = (Vec::new(), 0);
    for spill in [Spill::Durable, Spill::Memory] {
        let (mut times, late) = measure(binary, &traffic, spill, rate, events)?;
        times.sort();
        let at = |part: f64| quantile(&times, part);
        let met = at(0.99) < Duration::from_millis(2) && at(0.999) < Duration::from_millis(10);
        missed += usize::from(!met);
        println!(
            "| `{spill}` | {:.2?} | {:.2?} | {:.2?} | {:.2?} | {:.2?} | {:.2?} | {late:.2?} | p99 2 ms, p99.9 10 ms | {} |",
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            at(0.9999),
            at(1.0),
            if met { "met" } else { "missed" }
        );
        let line = (0..=50).map(|step| {
            // Evenly spread over "one in 1" to "one in 100 000".
            let one_in = 10_f64.powf(f64::from(step) / 10.0);
            (one_in, at(1.0 - 1.0 / one_in).as_secs_f64() * 1e3)
        });
        series.push(Series { name: spill.to_string(), points: line.collect() });
    }
    let plot = Plot {
        title: "From the bus to the sink's write",
        across: "one event in so many takes longer",
        up: "ms",
        log: (true, true),
        series: &series,
    };
    plot::save(plots, "latency.svg", &plot)?;
    if missed > 0 { Err(format!("{missed} targets are missed").into()) } else { Ok(()) }
}

/// The time of each event, and by how much the bus was behind its own schedule at the most.
fn measure(
    binary: &Path,
    traffic: &Traffic,
    spill: Spill,
    rate: f64,
    events: usize,
) -> Result<(Vec<Duration>, Duration), Failure> {
    let folder = Folder::new()?;
    let bus = Bus::listen(&folder.bus(), Framing::Plain)?;
    let sinks = [
        format!("local: {{format: json}}, batch: {{linger: 0s}}, spill: {{mode: {spill}}}"),
        // Nobody listens there.
        format!(
            "clickhouse: {{url: 'http://127.0.0.1:1', database: salt}}, spill: {{mode: {spill}}}"
        ),
    ];
    let setup = Setup { is_read: true, ..Setup::new(binary, &sinks) };
    let mut daemon = Daemon::start(&folder, &setup)?;
    let output = daemon.stdout()?;
    let total = WARM_UP + events;
    let (arrived, arrivals) = sync_channel(1);
    let reading = std::thread::spawn(move || {
        // The other side is gone only if the measurement has failed.
        let _ = arrived.send(read(output, total));
    });
    let mut stream = [bus.accept()?];
    daemon.wait_until_ready()?;
    let (mut sent, began) = (Vec::with_capacity(total), Instant::now());
    let mut late = Duration::ZERO;
    let mut note = |number: u64| {
        let now = Instant::now();
        #[allow(clippy::cast_precision_loss)]
        let due = began + Duration::from_secs_f64(number as f64 / rate);
        if sent.len() > WARM_UP {
            late = late.max(now.saturating_duration_since(due));
        }
        sent.push(now);
        Ok(())
    };
    bus::send(&mut stream, traffic, Rate::PerSecond(rate), 0..total as u64, &mut note)?;
    let arrivals = wait(&arrivals, &daemon)?;
    drop(daemon);
    reading.join().map_err(|_| "the thread that reads the sink's output panicked")?;
    let times = sent.iter().zip(&arrivals).skip(WARM_UP);
    Ok((times.map(|(sent, arrived)| arrived.saturating_duration_since(*sent)).collect(), late))
}

fn wait(
    arrivals: &Receiver<Result<Vec<Instant>, String>>,
    daemon: &Daemon,
) -> Result<Vec<Instant>, Failure> {
    match arrivals.recv_timeout(Duration::from_mins(2)) {
        Ok(arrivals) => Ok(arrivals?),
        Err(_) => Err(format!("not all events came; the status is {}", daemon.status()?).into()),
    }
}

/// The time when each of so many events came, in order.
fn read(output: ChildStdout, events: usize) -> Result<Vec<Instant>, String> {
    let mut arrivals = Vec::with_capacity(events);
    let read = lines::each(output, |line, now| {
        if lines::number(line) != Some(arrivals.len() as u64) {
            let what = format!("event {} is not the next one", arrivals.len());
            return Err(std::io::Error::other(what));
        }
        arrivals.push(now);
        Ok(arrivals.len() < events)
    });
    read.map_err(|error| error.to_string())?;
    if arrivals.len() < events {
        return Err(format!("the sink's output ended after {} events", arrivals.len()));
    }
    Ok(arrivals)
}

/// The value below which this part of the sorted times is.
fn quantile(times: &[Duration], part: f64) -> Duration {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let index = (times.len() as f64 * part) as usize;
    times.get(index.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
