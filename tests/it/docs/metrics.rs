//! `docs/metrics.md`: the metrics that the code declares.

use std::fmt::Write;

use saltern::estate::table::{ByMinion, ESTATE};
use saltern::observe::metrics::{METRICS, Metric, MetricKind};

const HEAD: &str = "| name | type | labels | meaning |\n|---|---|---|---|\n";

#[test]
fn the_page_of_metrics_is_the_tables_of_metrics() {
    let mut page = String::from(
        "# Metrics\n\nWhat `/metrics` serves.\n\n## Of saltern\n\n\
         Labels are bounded by the configuration, never by data.\n\n",
    );
    page.push_str(HEAD);
    for metric in METRICS {
        write_row(&mut page, metric, ByMinion::Never);
    }
    page.push_str(
        "\n## Of the Salt estate\n\nWith a section `estate`, see [Estate](estate.md). What the labels hold comes from events; each \
         metric has `estate.max_series` series at the most, and one more whose labels are `other`. The label `minion` is there with \
         `estate.minions` (¹) or `estate.minion_label` (²); a metric with ³ is there only with `estate.minions`.\n\n",
    );
    page.push_str(HEAD);
    for declared in ESTATE {
        write_row(&mut page, &declared.metric, declared.by_minion);
    }
    super::assert_written("docs/metrics.md", &page);
}

fn write_row(page: &mut String, metric: &Metric, by_minion: ByMinion) {
    let kind = match metric.kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram(_) => "histogram",
    };
    let minion = match by_minion {
        ByMinion::Never => None,
        ByMinion::Labelled => Some("`minion`¹"),
        ByMinion::Added => Some("`minion`²"),
        ByMinion::Only => Some("`minion`³"),
    };
    let labels = metric.labels.iter().map(|label| format!("`{label}`"));
    let labels: Vec<_> = minion.map(str::to_owned).into_iter().chain(labels).collect();
    // Writing to a String does not fail.
    let _ =
        writeln!(page, "| `{}` | {kind} | {} | {} |", metric.name, labels.join(", "), metric.help);
}
