//! Scenarios of faults: their effect on the bus, on the healthy sink and on memory. Afterwards
//! everything has to be stored, once and in order.
//!
//! Sink `s0` is healthy in all of them, `s1` is the one that may fail. Both have a spill
//! (`durable`).

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::bus::{self, Bus, Rate};
use crate::daemon::{Daemon, Folder, Setup, pause, sinks};
use crate::lines::Seen;
use crate::measure::{self, Load};
use crate::report::machine;
use crate::stage::{self, Lock, Output};
use crate::traffic::{Framing, Mix, Traffic};

/// The fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// The sink's database is locked from the first event to the last.
    Down,
    /// It is locked for nine tenths of the time.
    Slow,
    /// It is locked for a second, free for a second.
    Flapping,
    /// All events come at once, and the sink is slow.
    Burst,
    /// The master restarts five times.
    Restarts,
    /// Syncs take half a second more, and writes what a disk of 20 MB/s takes.
    Disk,
}

const ALL: [(Fault, &str); 7] = [
    (Fault::Nothing, "nothing"),
    (Fault::Down, "a sink is down"),
    (Fault::Slow, "a sink is slow"),
    (Fault::Flapping, "a sink flaps, a second up and a second down"),
    (Fault::Burst, "all events in one burst, a sink is slow"),
    (Fault::Restarts, "the master restarts five times"),
    (Fault::Disk, "the disk is slow, 500 ms a sync, 20 MB/s; a fifth of the rate"),
];

impl Fault {
    fn lock(self) -> Option<Lock> {
        let lock = |held, free| {
            Some(Lock { held: Duration::from_millis(held), free: Duration::from_millis(free) })
        };
        match self {
            Fault::Down => lock(3_600_000, 0),
            Fault::Slow | Fault::Burst => lock(180, 20),
            Fault::Flapping => lock(1000, 1000),
            Fault::Nothing | Fault::Restarts | Fault::Disk => None,
        }
    }
}

/// The state of the daemon as it was seen meanwhile.
#[derive(Default)]
struct Watched {
    /// The longest lag of the healthy sink, in seconds.
    lag: f64,
    /// The most memory that was resident.
    resident: u64,
}

/// Memory that may be resident in any scenario.
const MOST_RESIDENT: u64 = 256 << 20;

/// Plays the scenarios and prints a table. Fails if one of them lost, repeated or reordered
/// anything, took too much memory, or held the bus or the healthy sink up for a second.
pub(crate) fn print(binary: &Path, rate: f64, seconds: u64) -> Result<(), Failure> {
    let traffic = Traffic::new(Mix::Highstates, 3000, Framing::Plain, Path::new(""))?;
    println!(
        "{}; {rate} events/s of {} bytes for {seconds} s, `durable`.\n",
        machine(),
        traffic.mean_size()
    );
    println!(
        "| what is wrong | bus, events/s | its longest write | lag of the healthy sink | RSS at the most | caught up after | healthy sink | other sink | |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut bad = 0;
    for (fault, name) in ALL {
        let rate = if fault == Fault::Disk { rate / 5.0 } else { rate };
        let ended = play(binary, &traffic, fault, rate, seconds)?;
        // After a burst, or behind a slow disk, the healthy sink has a backlog of its own.
        let may_lag = matches!(fault, Fault::Burst | Fault::Disk);
        let is_good = ended.is_whole
            && ended.longest < Duration::from_secs(1)
            && (may_lag || ended.watched.lag < 1.0)
            && ended.watched.resident < MOST_RESIDENT;
        bad += usize::from(!is_good);
        println!(
            "| {name} | {:.0} | {:.1?} | {:.2} s | {} MiB | {:.1?} | {} | {} | {} |",
            ended.rate,
            ended.longest,
            ended.watched.lag,
            ended.watched.resident.div_ceil(1 << 20),
            ended.caught_up,
            ended.healthy,
            ended.other,
            if is_good { "good" } else { "BAD" }
        );
    }
    // The burst is to be compared with these.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let events = (rate * seconds as f64) as u64;
    let load = Load { traffic: &traffic, framing: Framing::Plain, rate: Rate::Max, events };
    let drain = measure::drain(&load)?;
    println!(
        "\nA reader that only drains the bus takes the burst at {:.0} events/s.",
        drain.stored_rate
    );
    if bad > 0 { Err(format!("{bad} scenarios went wrong").into()) } else { Ok(()) }
}

struct Ended {
    /// Events a second, as the bus got rid of them.
    rate: f64,
    longest: Duration,
    watched: Watched,
    caught_up: Duration,
    healthy: Seen,
    other: Seen,
    is_whole: bool,
}

fn play(
    binary: &Path,
    traffic: &Traffic,
    fault: Fault,
    rate: f64,
    seconds: u64,
) -> Result<Ended, Failure> {
    let folder = Folder::new()?;
    let database = folder.path("events.db");
    let sinks = [
        stage::READ.to_owned(),
        "sqlite3: {database: FOLDER/events.db, timeout: 20ms}, retry: {initial: 50ms, max: 200ms}"
            .to_owned(),
    ];
    let library = match fault {
        Fault::Disk => Some(stage::slow_disk(&folder.0)?),
        _ => None,
    };
    let variable = library.as_deref().map(|library| ("LD_PRELOAD", library));
    let bus = Bus::listen(&folder.bus(), Framing::Plain)?;
    let setup = Setup { variable, is_read: true, ..Setup::new(binary, &sinks) };
    let mut daemon = Daemon::start(&folder, &setup)?;
    let healthy = Output::of(daemon.stdout()?);
    let mut stream = [bus.accept()?];
    daemon.wait_until_ready()?;
    let mut bus = Some(bus);

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let events = (rate * seconds as f64) as u64;
    let (is_mended, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (rate, longest, caught_up, watched) = std::thread::scope(|scope| {
        let holding = fault.lock().map(|lock| {
            let (database, is_mended) = (&database, &is_mended);
            scope.spawn(move || lock.hold(database, is_mended))
        });
        let watching = scope.spawn(|| watch(&daemon, &is_over));
        let mut play = || -> Result<(f64, Duration, Duration), Failure> {
            let offered = if fault == Fault::Burst { Rate::Max } else { Rate::PerSecond(rate) };
            let parts = if fault == Fault::Restarts { 6 } else { 1 };
            let (mut longest, mut sending) = (Duration::ZERO, Duration::ZERO);
            for part in 0..parts {
                if part > 0 {
                    stream[0].shutdown(Shutdown::Both)?;
                    stream = [restart(&mut bus, &folder)?];
                }
                let numbers = events * part / parts..events * (part + 1) / parts;
                let sent = bus::send(&mut stream, traffic, offered, numbers, &mut |_| Ok(()))?;
                longest = longest.max(sent.longest);
                sending += sent.elapsed;
            }
            // A burst is over before the slow sink has got anywhere; it stays slow for its time.
            if fault == Fault::Burst {
                pause(Duration::from_secs(seconds));
            }
            is_mended.store(true, Ordering::Release);
            let began = Instant::now();
            daemon.wait_until_settled(events)?;
            #[allow(clippy::cast_precision_loss)]
            let rate = events as f64 / sending.as_secs_f64();
            Ok((rate, longest, began.elapsed()))
        };
        let played = play();
        is_mended.store(true, Ordering::Release);
        is_over.store(true, Ordering::Release);
        let watched = watching.join().map_err(|_| "watching panicked")?;
        if let Some(holding) = holding {
            holding.join().map_err(|_| "holding the lock panicked")??;
        }
        let (rate, longest, caught_up) = played?;
        Ok::<_, Failure>((rate, longest, caught_up, watched?))
    })?;
    drop(daemon);
    let (healthy, other) = (healthy.end()?, stage::stored(&database, 1, 0)?);
    let is_whole = healthy.is_all(events) && other.is_all(events);
    Ok(Ended { rate, longest, watched, caught_up, healthy, other, is_whole })
}

/// Ends the bus and begins another one a moment later, as a master that restarts.
pub(crate) fn restart(bus: &mut Option<Bus>, folder: &Folder) -> Result<UnixStream, Failure> {
    // The old one takes its socket with it, before there is a new one.
    drop(bus.take());
    pause(Duration::from_millis(300));
    bus.insert(Bus::listen(&folder.bus(), Framing::Plain)?).accept()
}

/// Looks four times a second.
fn watch(daemon: &Daemon, is_over: &AtomicBool) -> Result<Watched, String> {
    let mut watched = Watched::default();
    while !is_over.load(Ordering::Acquire) {
        let status = daemon.status().map_err(|error| error.to_string())?;
        let healthy = sinks(&status).find(|sink| sink.get("name").is_some_and(|name| name == "s0"));
        let lag = healthy.and_then(|sink| sink.get("lag_seconds")?.as_f64()).unwrap_or(f64::NAN);
        watched.lag = if lag.is_nan() { lag } else { watched.lag.max(lag) };
        let resident = daemon.reader.memory("VmHWM").map_err(|error| error.to_string())?;
        watched.resident = watched.resident.max(resident);
        pause(Duration::from_millis(250));
    }
    Ok(watched)
}
