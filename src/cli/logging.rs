//! The destination and the format of the process's log.

use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;

use tracing::error;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::observe::log_line::LogLine;
use crate::observe::log_repeats::RepeatFilter;
use crate::observe::log_settings::{Log, LogFormat, LogLevel};

/// Begins to log as configured.
pub(super) fn start_logging(log: Log) {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let is_terminal = io::stderr().is_terminal();
    let format = log.format.unwrap_or_else(|| match () {
        () if is_terminal => LogFormat::Text,
        () if is_journal() => LogFormat::Journald,
        () => LogFormat::Json,
    });
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(is_terminal);
    let lines = lines.event_format(LogLine(format));
    let rest = tracing_subscriber::registry().with(level);
    // This fails only if there is a logger already, which then goes on.
    let _ = rest.with(lines).with(RepeatFilter::default()).try_init();
    log_panics();
}

/// Logs panics like everything else, with the thread.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let message = panic.payload_as_str().unwrap_or_default();
        let place = panic.location().map(ToString::to_string);
        error!(
            thread = thread.name(),
            place,
            error = message,
            "a thread has panicked; this is a bug in saltern"
        );
    }));
}

/// True if standard error goes to systemd's journal, whose device and inode systemd gives.
fn is_journal() -> bool {
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    let journal = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    journal == format!("{}:{}", stderr.dev(), stderr.ino())
}
