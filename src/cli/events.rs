//! `saltern events`: what passes, as it passes.
//!
//! Events come from a running daemon (`/api/v1/events`), or from a bus directly: then a pipeline
//! without sinks runs in this process.

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use clap::Args;
use jiff::Timestamp;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use super::{Failure, Output, load, runtime, start_logging};
use crate::config::{self, Config, ConfigError, Http, Log, LogLevel};
use crate::dispatch::Tapped;
use crate::event::{Event, Origin};
use crate::filter::{Filter, FilterConfig};
use crate::line::{self, Colour};
use crate::pipeline::Pipeline;
use crate::shutdown::{Shutdown, Signals};
use crate::sink::chain;
use crate::units::Secret;

/// How long a daemon may take to accept the connection and begin its answer.
const ANSWER: Duration = Duration::from_secs(10);

/// The longest line to accept of a daemon: its largest frame as JSON, with room to spare.
const LONGEST_LINE: usize = 512 << 20;

#[derive(Args)]
pub(super) struct Events {
    /// Only events whose tag matches; may be given several times.
    #[arg(long, value_name = "GLOB")]
    tag: Vec<String>,
    /// Columns (age, tag, minion, function, outcome), or JSON for machines.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// The daemon. Default: where the configuration says that it listens.
    #[arg(long, conflicts_with = "bus")]
    url: Option<String>,
    /// Read a bus and not a daemon: a path, unix:PATH or tcp://HOST:PORT.
    #[arg(long, value_name = "ADDRESS")]
    bus: Option<String>,
    /// End after so many events.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Colours.
    #[arg(long, value_enum, default_value_t)]
    colour: Colour,
}

pub(super) fn events(config: &Path, arguments: &Events) -> Result<(), Failure> {
    start_logging(Log { level: LogLevel::Warn, format: None });
    let filter = FilterConfig { tags: arguments.tag.clone(), ..FilterConfig::default() };
    let filter = Filter::new(&filter).map_err(|bad| Failure::Usage(bad.message))?;
    let printer = Printer {
        output: arguments.output,
        colour: arguments.colour.on_stdout(),
        left: arguments.count,
    };
    printer.head().map_err(unprintable)?;
    let tail = async {
        let mut signals = Signals::listen()
            .map_err(|error| Failure::Running(format!("cannot listen to signals: {error}")))?;
        // Nothing is lost with the other arm: what is read is on its way to the screen only.
        tokio::select! {
            result = follow(config, arguments, filter, printer) => result,
            () = signals.until_stop() => Ok(()),
        }
    };
    let runtime = runtime()?;
    let result = runtime.block_on(tail);
    runtime.shutdown_background();
    result
}

async fn follow(
    config: &Path,
    arguments: &Events,
    filter: Filter,
    printer: Printer,
) -> Result<(), Failure> {
    if let Some(address) = &arguments.bus {
        return follow_bus(address, &filter, printer).await;
    }
    let daemon = Daemon::find(config, arguments.url.as_deref())?;
    daemon.follow(&arguments.tag, printer).await
}

async fn follow_bus(address: &str, filter: &Filter, mut printer: Printer) -> Result<(), Failure> {
    let wrong = |problems: Vec<crate::yaml::Problem>| {
        let problems: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
        Failure::Usage(format!("--bus {address}: {}", problems.join("; ")))
    };
    // Any sink will do to make it a configuration; none is kept.
    let text = json!({
        "http": {"listen": null},
        "sources": {"bus": {"salt_bus": {"address": address.replace("${", "$${")}}},
        "sinks": {"none": {"blackhole": {}}},
    });
    let mut config = Config::parse(&text.to_string()).map_err(wrong)?;
    config.sinks.clear();
    for source in &config.sources {
        let failed = |error| Failure::Running(chain(&error));
        source.reader.probe().await.map_err(failed)?;
    }
    let shutdown = Shutdown::default();
    // Sources end, and their thread with them, however this function does.
    let _stop = shutdown.stop.clone().drop_guard();
    let (_reopen, reopen) = watch::channel(0);
    let failed = |error| Failure::Running(chain(&error));
    let pipeline = Pipeline::start(&config, &shutdown, &reopen).map_err(failed)?;
    let mut tap = pipeline.tap.subscribe();
    let mut next = None;
    loop {
        let Tapped { before, chunk } = match tap.recv().await {
            Ok(tapped) => tapped,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return Ok(()),
        };
        let missed = before - next.unwrap_or(before).min(before);
        next = Some(before + chunk.events.len() as u64);
        let mut out = Vec::new();
        if missed > 0 {
            printer.missed(missed, &mut out);
        }
        for event in chunk.events.iter().filter(|event| filter.takes(event)) {
            if printer.has_enough() {
                break;
            }
            printer.event(event, &chunk.origin, chunk.received, &mut out);
        }
        if !printer.print(&out)? {
            return Ok(());
        }
    }
}

/// Writes events to standard output until there were enough.
struct Printer {
    output: Output,
    colour: bool,
    left: Option<u64>,
}

impl Printer {
    fn head(&self) -> io::Result<()> {
        if self.output == Output::Json || !io::stdout().is_terminal() {
            return Ok(());
        }
        writeln!(io::stdout(), "{}", line::heading("    AGE"))
    }

    fn has_enough(&self) -> bool {
        self.left == Some(0)
    }

    fn counted(&mut self) {
        self.left = self.left.map(|left| left.saturating_sub(1));
    }

    fn event(&mut self, event: &Event, origin: &Origin, received: u64, out: &mut Vec<u8>) {
        self.counted();
        match self.output {
            Output::Json => line::write_json(event, origin, received, out),
            Output::Text => {
                let age = line::age(event, received, Timestamp::now());
                line::write_text(&age, event, self.colour, out);
            }
        }
    }

    /// A line as the daemon sent it.
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let read: Line = match self.output {
            // For machines it goes on as it is; only whether it is an event matters.
            Output::Json if !line.starts_with(b"{\"missed\"") => {
                self.counted();
                out.extend_from_slice(line);
                out.push(b'\n');
                return Ok(());
            }
            _ => serde_json::from_slice(line)?,
        };
        match read {
            Line::Missed { missed } => self.missed(missed, out),
            Line::Event { tag, received, source, master_id, data } => {
                // JSON becomes msgpack and with it an event, so that fields are told in one place.
                let event = Event::new(&tag, &rmp_serde::to_vec(&data).unwrap_or_default());
                let received = received.parse().unwrap_or(Timestamp::UNIX_EPOCH).as_microsecond();
                let received = u64::try_from(received).unwrap_or_default();
                self.event(&event, &Origin { source, master_id }, received, out);
            }
        }
        Ok(())
    }

    fn missed(&self, missed: u64, out: &mut Vec<u8>) {
        let line = match self.output {
            Output::Json => format!("{{\"missed\": {missed}}}\n"),
            Output::Text => format!("        … {missed} events of the bus passed too fast\n"),
        };
        out.extend_from_slice(line.as_bytes());
    }

    /// Prints; `false` when that was enough, or when nobody reads any more.
    fn print(&self, lines: &[u8]) -> Result<bool, Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(lines).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(!self.has_enough()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(unprintable(error)),
        }
    }
}

fn unprintable(error: io::Error) -> Failure {
    Failure::Running(format!("cannot write to standard output: {error}"))
}

/// A line of `/api/v1/events`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Missed { missed: u64 },
    Event { tag: String, received: String, source: String, master_id: String, data: Value },
}

/// A running daemon.
struct Daemon {
    url: Url,
    token: Option<Secret>,
}

impl Daemon {
    /// The daemon at `url`, or the one that the configuration describes.
    fn find(config: &Path, url: Option<&str>) -> Result<Self, Failure> {
        let http = http_side(config, url.is_some())?;
        let url = match (url, http.listen) {
            (Some(url), _) => url.to_owned(),
            (None, Some(listen)) => format!("http://{}", reachable(listen)),
            (None, None) => {
                let message = "http.listen is null, so the daemon cannot be asked; use --bus";
                return Err(Failure::Usage(message.to_owned()));
            }
        };
        let wrong = |error: String| Failure::Usage(format!("--url {url}: {error}"));
        let parsed = Url::parse(&url).map_err(|error| wrong(error.to_string()))?;
        if parsed.scheme() != "http" {
            return Err(wrong("the daemon speaks http://HOST:PORT only".to_owned()));
        }
        Ok(Daemon { url: parsed, token: http.token })
    }

    async fn follow(&self, tags: &[String], mut printer: Printer) -> Result<(), Failure> {
        let mut response = self.ask(tags).await?;
        let mut buffer = BytesMut::new();
        let mut looked_at = 0;
        loop {
            let piece: Bytes = match response.chunk().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Err(self.failed("the daemon has stopped")),
                Err(error) => return Err(self.failed(&chain(&error))),
            };
            buffer.extend_from_slice(&piece);
            let mut out = Vec::new();
            while let Some(at) = memchr::memchr(b'\n', buffer.get(looked_at..).unwrap_or_default())
            {
                let line = buffer.split_to(looked_at + at);
                buffer.advance(1);
                looked_at = 0;
                if printer.has_enough() {
                    break;
                }
                let read = printer.line(&line, &mut out);
                read.map_err(|error| self.failed(&format!("a line is not as expected: {error}")))?;
            }
            looked_at = buffer.len();
            if looked_at > LONGEST_LINE {
                return Err(self.failed("a line is too long; is this saltern?"));
            }
            if !printer.print(&out)? {
                return Ok(());
            }
        }
    }

    async fn ask(&self, tags: &[String]) -> Result<reqwest::Response, Failure> {
        let mut url = self.url.clone();
        url.set_path("/api/v1/events");
        if !tags.is_empty() {
            url.query_pairs_mut().extend_pairs(tags.iter().map(|tag| ("tag", tag)));
        }
        let client = reqwest::Client::builder()
            .connect_timeout(ANSWER)
            .tcp_keepalive(Duration::from_secs(30))
            .no_proxy()
            .build()
            .map_err(|error| self.failed(&chain(&error)))?;
        let mut request = client.get(url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let answer = tokio::time::timeout(ANSWER, request.send()).await;
        let response = match answer {
            Err(_) => return Err(self.failed("no answer; is this saltern?")),
            Ok(Err(error)) if error.is_connect() => {
                let advice = "is the daemon running, and is this its http.listen?";
                return Err(self.failed(&format!("{}; {advice}", chain(&error))));
            }
            Ok(Err(error)) => return Err(self.failed(&chain(&error))),
            Ok(Ok(response)) => response,
        };
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::UNAUTHORIZED => Err(self.failed(
                "the daemon wants its token; name its configuration with --config, http.token is read from there",
            )),
            status => {
                let body = response.text().await.unwrap_or_default();
                Err(self.failed(&format!("the answer is {status}: {}", body.trim())))
            }
        }
    }

    fn failed(&self, why: &str) -> Failure {
        Failure::Running(format!("cannot read events from {}: {why}", self.url))
    }
}

/// The HTTP side of the configuration. Where there is no file at the default path, or with `--url`,
/// that of an empty configuration.
fn http_side(config: &Path, has_url: bool) -> Result<Http, Failure> {
    match Config::load(config) {
        Ok(config) => Ok(config.general.http),
        Err(ConfigError::Unreadable { cause, .. })
            if cause.kind() == io::ErrorKind::NotFound
                && (has_url || config == Path::new(config::DEFAULT_PATH)) =>
        {
            Ok(Http::default())
        }
        Err(ConfigError::Unreadable { .. }) if has_url => Ok(Http::default()),
        Err(_) => load(config).map(|config| config.general.http),
    }
}

/// An address to connect to, of one to listen on.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_daemon_become_columns() {
        let mut printer = Printer { output: Output::Text, colour: false, left: Some(1) };
        let mut out = Vec::new();
        printer.line(b"{\"missed\": 3}", &mut out).unwrap();
        assert!(!printer.has_enough());
        let line = json!({
            "tag": "salt/job/20261121233336123456/ret/web-1", "received": "2026-11-21T23:36:17Z",
            "source": "bus", "master_id": "m", "data": {"fun": "test.ping", "retcode": 1},
        });
        printer.line(line.to_string().as_bytes(), &mut out).unwrap();
        assert!(printer.has_enough());
        let out = String::from_utf8(out).unwrap();
        let lines: Vec<_> = out.lines().collect();
        assert!(lines[0].contains("3 events"), "{out}");
        let words: Vec<_> = lines[1].split_whitespace().skip(1).collect();
        assert_eq!(
            words,
            ["salt/job/20261121233336123456/ret/web-1", "web-1", "test.ping", "failed"]
        );
        printer.line(b"not json", &mut Vec::new()).unwrap_err();
    }

    #[test]
    fn an_address_for_all_is_reached_over_loopback() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(reached("[::]:1"), "[::1]:1");
        assert_eq!(reached("10.0.0.1:1"), "10.0.0.1:1");
    }
}
