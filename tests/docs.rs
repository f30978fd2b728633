//! `docs/metrics.md` is what the code says. `UPDATE_GOLDEN=1` writes it anew.

use std::fmt::Write;

use saltern::metrics::{METRICS, MetricKind};

#[test]
fn the_page_of_metrics_is_the_table_of_metrics() {
    let mut page = String::from(
        "# Metrics\n\nWhat `/metrics` serves. Labels are bounded by the configuration, never by data.\n\n\
         | name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for metric in METRICS {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram(_) => "histogram",
        };
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(page, "| `{}` | {kind} | {} | {} |", metric.name, labels.join(", "), metric.help)
            .unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(written, page, "run this test with UPDATE_GOLDEN=1");
}
