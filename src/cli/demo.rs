//! `saltern demo`: a daemon on a made-up bus, in one directory.
//!
//! A unix socket serves the events of [`crate::demo`] in the framing of a real master, and the real
//! `salt_bus` source reads it. So the demo shows the same as a master would. The commands find its
//! daemon like any other, or by its [`Sign`] if there is no other.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::daemon::is_demo_found;
use super::demo_sign::Sign;
use super::run;
use crate::cli::logging::start_logging;
use crate::cli::output::{Failure, print};
use crate::config::Config;
use crate::config::http::HttpSocket;
use crate::demo::Generator;
use crate::error::chain;
use crate::http;
use crate::http::place::Place;
use crate::observe::log_settings::{Log, LogLevel};
use crate::observe::state::State;
use crate::pipeline::shutdown::Signals;

#[derive(Args)]
pub(super) struct Demo {
    /// The directory of all files; a second run adds to the first.
    #[arg(long, default_value = "saltern-demo", value_name = "DIR")]
    directory: PathBuf,
    /// Events a second.
    #[arg(long, default_value_t = 300, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// End after so many seconds. Default: at Ctrl-C.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// The address of the HTTP side; if it is taken, a free port of the same address is used.
    #[arg(long, default_value = "127.0.0.1:4507", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// The same seed makes up the same events.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Log what the daemon would log.
    #[arg(long, short)]
    verbose: bool,
}

/// The interval at which the bus sends the events that are due.
const TICK: Duration = Duration::from_millis(10);

/// Frames that a subscriber of the bus may be behind before it is cut off, as a master does.
const BACKLOG: usize = 16_384;

/// The intervals of the summary: on a terminal, and elsewhere.
const SUMMARY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// The longest path of a unix socket.
const LONGEST_SOCKET_PATH: usize = 100;

pub(super) fn demo(arguments: &Demo, state_dir: Option<&Path>) -> Result<(), Failure> {
    let level = if arguments.verbose { LogLevel::Info } else { LogLevel::Warn };
    start_logging(Log { level, format: None });
    let directory = &arguments.directory;
    let created = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    created.map_err(|error| failed(&format!("cannot create {}", directory.display()), &error))?;
    let files = Files::of(directory, state_dir);
    // The place of the socket depends on the real path. The daemon reports its faults.
    let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&files.state_dir);
    let listener = listen(arguments.listen)?;
    let address = listener.local_addr().map_err(|error| failed("cannot listen", &error))?;
    let config = files.config(address)?;
    let mut named = String::new();
    let result = run::to_the_end(&config, async |signals| {
        run_demo(arguments, &config, &files, listener, signals, &mut named).await
    });
    // A socket that nobody serves any more would only confuse.
    let _ = std::fs::remove_file(&files.bus);
    result?;
    print(&files.what_next(address, &named))
}

async fn run_demo(
    arguments: &Demo,
    config: &Config,
    files: &Files,
    listener: TcpListener,
    signals: &Signals,
    named: &mut String,
) -> Result<(), Failure> {
    let bus = files.listen_on_bus().await?;
    let address = config.general.http.listen.unwrap_or(arguments.listen);
    let sign = Sign::put_up(&files.state_dir);
    *named = named_by(&files.state_dir, sign.as_ref());
    eprintln!(
        "{} made-up events a second from {} into {} and {}; http://{address}, whose page opens with \
         what `saltern console{named}` prints; `saltern jobs list{named}` in another terminal lists \
         the jobs; Ctrl-C ends it",
        arguments.rate,
        files.bus.display(),
        files.database.display(),
        files.lines.display(),
    );
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::TcpListener::from_std(listener))
        .map_err(|error| failed("cannot listen", &error))?;
    let ended = CancellationToken::new();
    let generator = Generator::new(arguments.seed);
    let bus = tokio::spawn(serve_bus(bus, generator, arguments.rate, ended.clone()));
    let seconds = arguments.seconds.map(Duration::from_secs);
    let result = run::serve_on(config, Some(http::Bound::of(listener)), signals, |pipeline| {
        show(Arc::clone(&pipeline.state), seconds)
    })
    .await;
    ended.cancel();
    bus.await.map_err(|error| failed("the made-up bus failed", &error))?;
    drop(sign);
    result
}

/// The option by which commands find the demo, if they would not find it themselves.
fn named_by(state_dir: &Path, sign: Option<&Sign>) -> String {
    match sign.is_some() && is_demo_found() {
        true => String::new(),
        false => format!(" --state-dir {}", state_dir.display()),
    }
}

/// Binds the address, or a free port where that one is taken.
fn listen(wanted: SocketAddr) -> Result<TcpListener, Failure> {
    let cannot =
        |error: io::Error| failed(&format!("cannot listen on {wanted} (--listen)"), &error);
    match TcpListener::bind(wanted) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let listener = TcpListener::bind(SocketAddr::new(wanted.ip(), 0)).map_err(cannot)?;
            let taken = listener.local_addr().map_err(cannot)?;
            eprintln!("{wanted} is taken, the HTTP side listens on {taken}");
            Ok(listener)
        }
        result => result.map_err(cannot),
    }
}

/// The paths of the demo.
struct Files {
    directory: PathBuf,
    state_dir: PathBuf,
    bus: PathBuf,
    database: PathBuf,
    lines: PathBuf,
}

impl Files {
    fn of(directory: &Path, state_dir: Option<&Path>) -> Self {
        let mut bus = directory.join("bus.ipc");
        if bus.as_os_str().len() > LONGEST_SOCKET_PATH {
            bus = std::env::temp_dir().join(format!("saltern-demo-{}.ipc", std::process::id()));
        }
        Files {
            directory: directory.to_owned(),
            state_dir: state_dir.map_or_else(|| directory.join("state"), Path::to_owned),
            bus,
            database: directory.join("events.db"),
            lines: directory.join("events.jsonl"),
        }
    }

    fn config(&self, listen: SocketAddr) -> Result<Config, Failure> {
        // `${` in a path is meant as it stands.
        let path = |path: &Path| path.to_string_lossy().replace("${", "$${");
        let text = json!({
            "master_id": "salt.example.com",
            "state_dir": path(&self.state_dir),
            "jobs": {"enabled": true},
            "http": {"listen": listen},
            "sources": {"bus": {"salt_bus": {"address": format!("unix:{}", path(&self.bus))}}},
            "sinks": {
                "lines": {"rawfile_json": {"filename": path(&self.lines)}},
                "database": {"sqlite3": {"database": path(&self.database)}},
            },
        });
        let mut config = Config::parse(&text.to_string()).map_err(|problems| {
            let problems: Vec<_> =
                problems.iter().map(|problem| problem.message.as_str()).collect();
            Failure::Usage(problems.join("\n"))
        })?;
        // The socket is beside the rest of its state, so that it never takes the place of a real
        // daemon's in a runtime directory.
        let place = Place::apart(&self.state_dir);
        let doing = || format!("cannot make a place for the socket {}", place.path().display());
        place.prepare().map_err(|error| failed(&doing(), &error))?;
        let path = Some(place.path().to_owned());
        config.general.http.socket = Some(HttpSocket { path, ..HttpSocket::default() });
        Ok(config)
    }

    /// Binds the bus; a socket that an earlier run left is replaced.
    async fn listen_on_bus(&self) -> Result<UnixListener, Failure> {
        let path = &self.bus;
        if UnixStream::connect(path).await.is_ok() {
            let message = format!("another demo runs in {}", self.directory.display());
            return Err(Failure::Running(message + "; use --directory for a second one"));
        }
        let _ = std::fs::remove_file(path);
        let bind = UnixListener::bind(path);
        bind.map_err(|error| failed(&format!("cannot serve a bus on {}", path.display()), &error))
    }

    fn what_next(&self, address: SocketAddr, named: &str) -> String {
        let (database, lines) = (self.database.display(), self.lines.display());
        let place = Place::apart(&self.state_dir);
        let socket = place.path().display();
        format!(
            "
What to look at next:
  tail -n 3 {lines}
  sqlite3 {database} \"SELECT fun, count(*), sum(success = '0') AS failed FROM salt_returns GROUP BY fun\"
While it runs, in another terminal:
  saltern jobs list{named}
  saltern jobs watch{named}
  saltern events{named} --tag 'salt/job/*/ret/*'
  saltern console{named}
  curl http://{address}/metrics
  curl --unix-socket {socket} http://localhost/api/v1/status
The same with a real master: put this into saltern.yaml and start `saltern run --config saltern.yaml`
  state_dir: {state_dir}
  sources:
    bus: {{salt_bus: {{address: /var/run/salt/master/master_event_pub.ipc}}}}
  sinks:
    database: {{sqlite3: {{database: {database}}}}}
",
            state_dir = self.state_dir.display(),
        )
    }
}

/// Publishes events at the rate until `ended` is cancelled, to everyone who connects.
async fn serve_bus(
    listener: UnixListener,
    mut generator: Generator,
    rate: u32,
    ended: CancellationToken,
) {
    let (frames, _) = broadcast::channel::<Bytes>(BACKLOG);
    let mut subscribers = JoinSet::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut last = Instant::now();
    let mut due = 0.0;
    loop {
        tokio::select! {
            () = ended.cancelled() => break,
            Ok((stream, _)) = listener.accept() => {
                subscribers.spawn(publish(stream, frames.subscribe()));
            }
            Some(_) = subscribers.join_next() => {}
            _ = ticks.tick() => {
                due += last.elapsed().as_secs_f64().min(1.0) * f64::from(rate);
                last = Instant::now();
                // Nobody misses events without a subscriber.
                while due >= 1.0 && frames.receiver_count() > 0 {
                    due -= 1.0;
                    // Fails only when the last subscriber has just gone.
                    let _ = frames.send(generator.next_frame(Timestamp::now()).into());
                }
                due = due.min(1.0);
            }
        }
    }
    subscribers.shutdown().await;
}

/// Writes frames to one subscriber until it goes away or is too slow.
async fn publish(mut stream: UnixStream, mut frames: broadcast::Receiver<Bytes>) {
    while let Ok(frame) = frames.recv().await {
        if stream.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Shows the summary until `seconds` have passed, or for ever.
async fn show(state: Arc<State>, seconds: Option<Duration>) {
    let is_terminal = io::stderr().is_terminal();
    let every = if is_terminal { SUMMARY.0 } else { SUMMARY.1 };
    let lines = async {
        let mut ticks = interval(every);
        ticks.tick().await;
        let mut before = 0;
        loop {
            ticks.tick().await;
            let events = events(&state);
            #[allow(clippy::cast_precision_loss)]
            let line = summary(&state, (events - before) as f64 / every.as_secs_f64());
            before = events;
            let line = if is_terminal { format!("\r\x1b[2K{line}") } else { format!("{line}\n") };
            // A user who closed standard error does not want to see it.
            let _ = io::stderr().write_all(line.as_bytes());
        }
    };
    if let Some(seconds) = seconds {
        // It ends when its time is over.
        let _ = tokio::time::timeout(seconds, lines).await;
    } else {
        lines.await;
    }
}

fn events(state: &State) -> u64 {
    state.sources().iter().map(|source| source.events.get()).sum()
}

fn summary(state: &State, rate: f64) -> String {
    let seconds = state.started.elapsed().as_secs();
    let mut line = format!("{seconds:>4} s  {rate:.0} events/s");
    let mut errors: u64 = state.sources().iter().map(|s| s.gaps.get() + s.bad_frames.get()).sum();
    let mut lag: f64 = 0.0;
    for sink in state.sinks() {
        let _ = write!(line, "  {} {}", sink.name, sink.events.get());
        lag = lag.max(sink.lag());
        errors += sink.retries.get() + sink.reconnects.get() + sink.timeouts.get();
        errors += sink.rejected.get() + sink.dropped();
    }
    let _ = write!(line, "  lag {lag:.1} s  errors {errors}");
    line
}

fn failed(doing: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::Running(format!("{doing}: {}", chain(error)))
}
