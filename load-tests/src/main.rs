//! `saltern-load`: a bus that offers more than saltern takes, and a reader that only drains it.
//! Scenarios compare the two and print a table.
//!
//! [`traffic`] makes the events, [`simulator`] those of a whole estate, [`bus`] serves them (with
//! [`zmtp`], as ZeroMQ does), [`drain`] is the reference for the machine's own limit. [`daemon`]
//! starts a saltern as a process of its own, [`measure`] asks the kernel what the events cost
//! it. [`report`] is the list of targets, [`curves`], [`latency`] and [`estate`] are measured
//! beside it and drawn by [`plot`]; [`faults`] and [`soak`] are played on a [`stage`] and check
//! what the stores hold ([`lines`]). [`spill`] and [`jobs`] are parts measured by themselves.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::bus::Rate;
use crate::traffic::{Framing, Mix, Traffic};

mod bus;
mod curves;
mod daemon;
mod drain;
mod estate;
mod faults;
mod jobs;
mod latency;
mod lines;
mod measure;
mod plot;
mod process;
mod report;
mod simulator;
mod soak;
mod spill;
mod stage;
mod traffic;
mod zmtp;

type Failure = Box<dyn std::error::Error>;

/// Load generator, reference readers and scenarios for saltern.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a unix socket as a Salt master does; end when all events are sent.
    Bus {
        /// The socket to serve. A file that is there is replaced.
        #[arg(long)]
        socket: PathBuf,
        #[command(flatten)]
        traffic: Offer,
        /// Wait for so many subscribers, and send each of them every event.
        #[arg(long, default_value_t = 1)]
        connections: usize,
    },
    /// Connect to a bus and do nothing but read it.
    Drain {
        /// The socket to read.
        #[arg(long)]
        socket: PathBuf,
    },
    /// Start saltern behind a bus and print what the events cost it.
    Measure {
        #[command(flatten)]
        traffic: Offer,
        /// The binary to measure.
        #[arg(long, default_value = "target/release/saltern")]
        saltern: PathBuf,
        /// The sinks it has.
        #[arg(long, value_enum, value_delimiter = ',', default_value = "rawfile_json")]
        sinks: Vec<measure::Sink>,
        /// Another sink in their place, as the configuration has it: `kafka: {brokers: […], topic:
        /// t}`.
        #[arg(long)]
        sink: Option<String>,
        /// The place where the sinks' events wait.
        #[arg(long, value_enum, default_value_t = measure::Spill::Durable)]
        spill: measure::Spill,
    },
    /// Measure the spill by itself and print a table in Markdown.
    Spill {
        /// A folder on the disk to measure; it is emptied.
        #[arg(long)]
        folder: PathBuf,
        /// MiB to append.
        #[arg(long, default_value_t = 1024)]
        append: u64,
        /// MiB of acknowledged spill to recover from.
        #[arg(long, default_value_t = 10 * 1024)]
        acknowledged: u64,
        /// MiB of spill that waits to recover.
        #[arg(long, default_value_t = 1024)]
        waiting: u64,
    },
    /// Measure the job cache by itself and print a table in Markdown.
    Jobs {
        /// A folder on the disk to measure; it is emptied.
        #[arg(long)]
        folder: PathBuf,
        /// The number of jobs.
        #[arg(long, default_value_t = 100_000)]
        jobs: u64,
        /// The number of minions that return each.
        #[arg(long, default_value_t = 10)]
        minions: u64,
    },
    /// Print and plot what an event costs against the rate of events and against the number of
    /// sinks.
    Plot {
        /// The binary to measure.
        #[arg(long, default_value = "target/release/saltern")]
        saltern: PathBuf,
        /// The place where the plots (SVG) go.
        #[arg(long, default_value = "target/load")]
        folder: PathBuf,
        /// Bytes of an event, about.
        #[arg(long, default_value_t = 3000)]
        size: usize,
        /// For how long each rate is offered.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// The number of events that are sent at the most.
        #[arg(long, default_value_t = 200_000)]
        events: u64,
    },
    /// Print and plot how long an event takes from the bus to the sink's write, another sink being
    /// down.
    Latency {
        /// The binary to measure.
        #[arg(long, default_value = "target/release/saltern")]
        saltern: PathBuf,
        /// The place where the plot (SVG) goes.
        #[arg(long, default_value = "target/load")]
        folder: PathBuf,
        /// Events a second.
        #[arg(long, default_value_t = 5000.0)]
        rate: f64,
        /// The number of events that are measured.
        #[arg(long, default_value_t = 150_000)]
        events: usize,
    },
    /// Play scenarios of faults and say what became of the bus, the sinks and memory.
    Faults {
        /// The binary to try.
        #[arg(long, default_value = "target/release/saltern")]
        saltern: PathBuf,
        /// Events a second.
        #[arg(long, default_value_t = 5000.0)]
        rate: f64,
        /// The time for which a scenario sends events; a burst has them all at once.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// Let saltern run for a while with faults; say whether it grows and whether everything is
    /// stored.
    Soak {
        /// The binary to try.
        #[arg(long, default_value = "target/release/saltern")]
        saltern: PathBuf,
        /// The place where the samples (CSV) and the plot (SVG) go.
        #[arg(long, default_value = "target/load")]
        folder: PathBuf,
        /// For how long.
        #[arg(long, default_value_t = 30.0)]
        minutes: f64,
        /// Events a second.
        #[arg(long, default_value_t = 5000.0)]
        rate: f64,
    },
    /// Simulate an estate and print what its metrics cost and how long a scrape takes.
    Estate {
        /// The binary to measure.
        #[arg(long, default_value = "target/release/saltern")]
        saltern: PathBuf,
        /// The number of its minions.
        #[arg(long, default_value_t = 10_000)]
        minions: usize,
        /// The same seed gives the same events.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Events a second, or `max`, at which the metrics of the estate miss some.
        #[arg(long, default_value = "20000")]
        rate: Rate,
        /// The number of events to send.
        #[arg(long, default_value_t = 200_000)]
        events: u64,
    },
    /// Run the scenarios and print a table in Markdown.
    Report {
        /// The binary to measure.
        #[arg(long, default_value = "target/release/saltern")]
        saltern: PathBuf,
        /// The number of runs of each scenario; the table has the median.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Send so many times fewer events: to try the command out, not to measure.
        #[arg(long, default_value_t = 1)]
        scale: u64,
    },
}

/// The events that the bus sends.
#[derive(clap::Args)]
struct Offer {
    /// The framing of the bus: `plain` (before 3006.26, 3007, 3008), `prefixed` (3006.26+) or
    /// `zmtp` (a ZeroMQ publisher).
    #[arg(long, value_enum, default_value_t = Framing::Plain)]
    framing: Framing,
    /// The events to send.
    #[arg(long, value_enum, default_value_t = Mix::Highstates)]
    mix: Mix,
    /// In place of the mix, what an estate of so many minions says in about an hour.
    #[arg(long, conflicts_with = "mix")]
    minions: Option<usize>,
    /// With `--minions`: the same seed gives the same events.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Bytes of a state return's frame, about.
    #[arg(long, default_value_t = 3000)]
    size: usize,
    /// Events a second, each in a write of its own; or `max`: large writes, as fast as they are
    /// read.
    #[arg(long, default_value = "max")]
    rate: Rate,
    /// The number of events to send.
    #[arg(long, default_value_t = 100_000)]
    events: u64,
    /// The folder of the captures of real masters, for `--mix captures`.
    #[arg(long, default_value = "tests/captures")]
    captures: PathBuf,
}

impl Offer {
    fn traffic(&self) -> Result<Traffic, Failure> {
        match self.minions {
            Some(minions) => simulator::traffic(minions, self.seed, self.framing),
            None => Traffic::new(self.mix, self.size, self.framing, &self.captures),
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("saltern-load: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Bus { socket, traffic, connections } => {
            let offered = traffic.traffic()?;
            let bus = bus::Bus::listen(&socket, traffic.framing)?;
            let began = process::own_cpu()?;
            let sent = bus.serve(&offered, traffic.rate, traffic.events, connections)?;
            println!(
                "{sent}, {:.2} s of own CPU",
                process::own_cpu()?.saturating_sub(began).as_secs_f64()
            );
            Ok(())
        }
        Command::Drain { socket } => {
            println!("{}", drain::drain(&socket)?);
            Ok(())
        }
        Command::Measure { traffic, saltern, sinks, sink, spill } => {
            let offered = traffic.traffic()?;
            let load = measure::Load {
                traffic: &offered,
                framing: traffic.framing,
                rate: traffic.rate,
                events: traffic.events,
            };
            let measured = measure::Measured {
                binary: &saltern,
                sinks: &sinks,
                other: sink.as_deref(),
                spill,
                sections: "",
            };
            println!("{}", measure::saltern(&measured, &load)?);
            println!("drain: {}", measure::drain(&load)?);
            Ok(())
        }
        Command::Spill { folder, append, acknowledged, waiting } => {
            spill::print(&folder, append, acknowledged, waiting)
        }
        Command::Jobs { folder, jobs, minions } => jobs::print(&folder, jobs, minions),
        Command::Plot { saltern, folder, size, seconds, events } => {
            let traffic = Traffic::new(Mix::Highstates, size, Framing::Plain, &PathBuf::new())?;
            curves::print(&saltern, &folder, &traffic, seconds, events)
        }
        Command::Latency { saltern, folder, rate, events } => {
            latency::print(&saltern, &folder, rate, events)
        }
        Command::Faults { saltern, rate, seconds } => faults::print(&saltern, rate, seconds),
        Command::Soak { saltern, folder, minutes, rate } => {
            soak::print(&saltern, &folder, minutes, rate)
        }
        Command::Estate { saltern, minions, seed, rate, events } => {
            estate::print(&saltern, minions, seed, rate, events)
        }
        Command::Report { saltern, rounds, scale } => report::print(&saltern, rounds, scale),
    }
}
