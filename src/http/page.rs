//! The page `/`: `/api/v1/status`, for people. No script and nothing from elsewhere.

use std::fmt::{Display, Write};
use std::time::Duration;

use crate::observe::state::{LastError, SinkStatus, SourceStatus, Status};
use crate::units::ByteSize;

const HEAD: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>saltern</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; width: 100% }
caption { font-weight: bold; text-align: left }
th, td { border-bottom: 1px solid; padding: .3em .8em .3em 0; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
dt { font-family: monospace }
</style>
</head>
<body>
<main>
<h1>saltern</h1>
"#;

const TAIL: &str = r#"<h2>More</h2>
<dl>
<dt><a href="/api/v1/status">/api/v1/status</a></dt><dd>this page, as JSON</dd>
<dt><a href="/api/v1/spill">/api/v1/spill</a></dt><dd>what waits for each sink, as JSON (also: <code>saltern spill</code>)</dd>
<dt><a href="/api/v1/events">/api/v1/events</a></dt><dd>events as they pass, a JSON object a line; <code>?tag=GLOB</code> (also: <code>saltern events</code>)</dd>
<dt><a href="/api/v1/jobs">/api/v1/jobs</a></dt><dd>what is in the job cache; <code>?function=GLOB</code>, <code>not_function</code>, <code>minion</code>, <code>user</code>, <code>outcome</code>, <code>since</code>, <code>until</code>; <code>/api/v1/jobs/JID</code> shows one (also: <code>saltern jobs</code>)</dd>
<dt><a href="/metrics">/metrics</a></dt><dd>for Prometheus</dd>
<dt><a href="/healthz">/healthz</a></dt><dd>the process lives</dd>
<dt><a href="/readyz">/readyz</a></dt><dd>every source is connected or has ended, no sink is parked, every thread moves</dd>
</dl>
</main>
</body>
</html>
"#;

/// The page.
pub(super) fn page(status: &Status) -> String {
    let mut page = HEAD.to_owned();
    // Writing to a String does not fail.
    let _ = write_status(status, &mut page);
    page.push_str(TAIL);
    page
}

fn write_status(status: &Status, page: &mut String) -> std::fmt::Result {
    let worries = worries(status);
    let summary = match worries.len() {
        0 => "Every source is connected and every sink takes events.".to_owned(),
        _ => format!("Not all is well: {}.", worries.join("; ")),
    };
    writeln!(page, "<p><strong>{}</strong></p>", Escaped(&summary))?;
    let up = Duration::try_from_secs_f64(status.uptime_seconds).unwrap_or_default();
    let (hours, minutes) = (up.as_secs() / 3600, up.as_secs() / 60 % 60);
    let version = Escaped(status.version);
    writeln!(page, "<p>Version {version}, running for {hours} h {minutes} min.</p>")?;
    let heads = ["Source", "State", "Events", "Gaps", "Seconds missed", "Last error"];
    table(page, "Sources", &heads, &status.sources, source_row)?;
    let heads = [
        "Sink",
        "State",
        "Stored",
        "Waiting",
        "On disk",
        "Lag",
        "Lost",
        "Dead letters",
        "Last error",
    ];
    table(page, "Sinks", &heads, &status.sinks, sink_row)
}

/// The problems that somebody should look at.
fn worries(status: &Status) -> Vec<String> {
    let source = |source: &SourceStatus| {
        let is_well = source.connected || source.ended;
        (!is_well).then(|| format!("the source {} is not connected", source.name))
    };
    let sink = |sink: &SinkStatus| match sink_state(sink) {
        "up" | "no events yet" => None,
        state => Some(format!("the sink {} is {state}", sink.name)),
    };
    let lost = |sink: &SinkStatus| {
        (sink.dropped_events > 0)
            .then(|| format!("the sink {} has lost {} events", sink.name, sink.dropped_events))
    };
    let sources = status.sources.iter().filter_map(source);
    let sinks = status.sinks.iter().flat_map(|s| [sink(s), lost(s)]).flatten();
    sources.chain(sinks).collect()
}

fn sink_state(sink: &SinkStatus) -> &'static str {
    match (sink.parked, sink.up) {
        (true, _) => "parked",
        (false, true) => "up",
        (false, false) if sink.last_error.is_none() => "no events yet",
        (false, false) => "down",
    }
}

fn table<T>(
    page: &mut String,
    caption: &str,
    heads: &[&str],
    rows: &[T],
    row: impl Fn(&T, &mut String) -> std::fmt::Result,
) -> std::fmt::Result {
    writeln!(page, "<table>\n<caption>{caption}</caption>\n<thead><tr>")?;
    for head in heads {
        writeln!(page, "<th scope=\"col\">{head}</th>")?;
    }
    writeln!(page, "</tr></thead>\n<tbody>")?;
    for entry in rows {
        page.push_str("<tr>");
        row(entry, page)?;
        page.push_str("</tr>\n");
    }
    writeln!(page, "</tbody>\n</table>")
}

fn source_row(source: &SourceStatus, page: &mut String) -> std::fmt::Result {
    let state = match (source.connected, source.ended) {
        (true, _) => "connected",
        (false, true) => "ended",
        (false, false) => "not connected",
    };
    name(page, &source.name, source.kind)?;
    write!(page, "<td>{state}</td>")?;
    number(page, source.events)?;
    number(page, source.gaps)?;
    number(page, format!("{:.1}", source.gap_seconds))?;
    last_error(page, source.last_error.as_ref())
}

fn sink_row(sink: &SinkStatus, page: &mut String) -> std::fmt::Result {
    name(page, &sink.name, sink.kind)?;
    write!(page, "<td>{}</td>", sink_state(sink))?;
    number(page, sink.events)?;
    number(page, sink.queue_events)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // of a whole number of bytes
    number(page, ByteSize(sink.spill_bytes as u64))?;
    number(page, format!("{:.1} s", sink.lag_seconds))?;
    number(page, sink.dropped_events)?;
    number(page, sink.dead_letters)?;
    last_error(page, sink.last_error.as_ref().or(sink.last_refusal.as_ref()))
}

fn name(page: &mut String, name: &str, kind: &str) -> std::fmt::Result {
    write!(page, "<th scope=\"row\">{} <small>({})</small></th>", Escaped(name), Escaped(kind))
}

fn number(page: &mut String, number: impl Display) -> std::fmt::Result {
    write!(page, "<td class=\"n\">{number}</td>")
}

fn last_error(page: &mut String, error: Option<&LastError>) -> std::fmt::Result {
    match error {
        None => page.write_str("<td>none</td>"),
        Some(LastError { error, time }) => {
            let time = Escaped(time);
            write!(page, "<td>{} <small><time>{time}</time></small></td>", Escaped(error))
        }
    }
}

/// Text that is no markup.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::observe::state::{SinkState, SourceState, State};

    fn pages() -> (State, Arc<SourceState>, Arc<SinkState>) {
        let (source, sink) = (
            Arc::new(SourceState::new("page-bus", "salt_bus", "m")),
            Arc::new(SinkState::new("page-store", "sqlite3")),
        );
        let state = State::default();
        state.set_sources(vec![Arc::clone(&source)]);
        state.set_sinks(vec![Arc::clone(&sink)]);
        (state, source, sink)
    }

    #[test]
    fn the_first_sentence_says_what_to_look_at() {
        let (state, source, sink) = pages();
        assert!(
            page(&state.status())
                .contains("Not all is well: the source page-bus is not connected.")
        );
        source.connected.set_bool(true);
        sink.worked();
        assert!(page(&state.status()).contains("Every source is connected"));
        sink.failed("no <b>route</b> & \"more\"");
        sink.dropped_full.add(3);
        let page = page(&state.status());
        let expected = "the sink page-store is down; the sink page-store has lost 3 events.";
        assert!(page.contains(expected), "{page}");
        assert!(page.contains("no &lt;b&gt;route&lt;/b&gt; &amp; &quot;more&quot;"), "{page}");
        assert!(!page.contains("<b>"), "{page}");
    }

    #[test]
    fn every_element_is_closed_and_nothing_comes_from_elsewhere() {
        let (state, _, _) = pages();
        let page = page(&state.status());
        let mut open = Vec::new();
        for tag in page.split('<').skip(1) {
            let tag = tag.split('>').next().unwrap();
            let name = tag.split(' ').next().unwrap();
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "{page}"),
                None if ["!doctype", "meta"].contains(&name) => {}
                None => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
        assert!(!page.contains("://") && !page.contains("src="), "{page}");
    }
}
