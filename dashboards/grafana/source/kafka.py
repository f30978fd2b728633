"""The sinks and sources of the kind `kafka`: a collector's way into Kafka and a worker's way out of it."""

from .model import PROMETHEUS, dashboard, graph, row, stat, variable

SINKS = '{instance=~"$instance", sink=~"$sink"}'
SOURCES = '{instance=~"$instance", source=~"$source"}'


def rate(metric, labels, by):
    return f"sum by ({by}) (rate({metric}{labels}[$__rate_interval]))"


def increase(metric, labels, by):
    return f"sum by ({by}) (increase({metric}{labels}[$__rate_interval]))"


def slower_than(quantile):
    return f"histogram_quantile({quantile}, {rate('saltern_sink_write_seconds_bucket', SINKS, 'instance, sink, le')})"


PANELS = [
    row("At a glance"),
    stat("Sinks that store", "Sinks whose last write worked, of all.", "short",
        (f"sum(saltern_sink_up{SINKS})", "up"),
        (f"count(saltern_sink_up{SINKS})", "all")),
    stat("Largest lag into Kafka", "Age of the oldest event that is not in Kafka.", "s",
        (f"max(saltern_sink_lag_seconds{SINKS})", "lag")),
    stat("Messages behind", "In Kafka, and not yet safe at the workers.", "short",
        (f"sum(saltern_source_kafka_lag_messages{SOURCES})", "messages")),
    stat("Partitions read", "By all workers together.", "short",
        (f"sum(saltern_source_kafka_partitions{SOURCES})", "partitions")),
    row("Into Kafka"),
    graph("Delivered", "Events by sink.", "ops",
        (rate("saltern_sink_events_total", SINKS, "instance, sink"), "{{instance}} {{sink}}")),
    graph("Lag", "Age of the oldest event that is not in Kafka.", "s",
        (f"saltern_sink_lag_seconds{SINKS}", "{{instance}} {{sink}}")),
    graph("Time of a write", "Until every message of a batch is reported, and committed.", "s",
        (slower_than(0.5), "half {{instance}} {{sink}}"),
        (slower_than(0.95), "95 of 100 {{instance}} {{sink}}")),
    graph("Transactions", "Committed, taken back, and those of batches that were found committed.", "short",
        (increase("saltern_sink_kafka_transactions_total", SINKS, "sink, outcome"), "{{sink}} {{outcome}}")),
    graph("Tried again", "By cause.", "short",
        (increase("saltern_sink_retries_total", SINKS, "sink, cause"), "{{sink}} {{cause}}")),
    graph("Lost and refused", "Lost by reason; what is refused is a dead letter.", "short",
        (increase("saltern_sink_dropped_events_total", SINKS, "sink, reason"), "lost {{sink}} {{reason}}"),
        (increase("saltern_sink_rejected_events_total", SINKS, "sink"), "refused {{sink}}")),
    graph("Events that wait", "All of them, and those of the spill.", "short",
        (f"saltern_sink_queue_events{SINKS}", "{{instance}} {{sink}}"),
        (f"saltern_sink_spill_events{SINKS}", "spill {{instance}} {{sink}}")),
    graph("Events of a batch", "In the mean.", "short",
        (f"{rate('saltern_sink_batch_events_sum', SINKS, 'instance, sink')} / "
         f"{rate('saltern_sink_batch_events_count', SINKS, 'instance, sink')}", "{{instance}} {{sink}}")),
    row("Out of Kafka"),
    graph("Read", "Events by source.", "ops",
        (rate("saltern_source_events_total", SOURCES, "instance, source"), "{{instance}} {{source}}")),
    graph("Messages behind", "In the partitions of each worker, behind its commits.", "short",
        (f"saltern_source_kafka_lag_messages{SOURCES}", "{{instance}} {{source}}")),
    graph("In flight", "Bytes read that not every sink has kept yet.", "bytes",
        (f"saltern_source_kafka_in_flight_bytes{SOURCES}", "{{instance}} {{source}}")),
    graph("Partitions", "That each worker reads.", "short",
        (f"saltern_source_kafka_partitions{SOURCES}", "{{instance}} {{source}}")),
    graph("Connections lost, and messages that are no events", "", "short",
        (increase("saltern_source_gaps_total", SOURCES, "source"), "lost {{source}}"),
        (increase("saltern_source_bad_frames_total", SOURCES, "source"), "no events {{source}}")),
]

# All sinks and sources of the kind are not all that there are; hence no `.*`.
VARIABLES = [
    variable("instance", "label_values(saltern_build_info, instance)", all_value=".*"),
    variable("sink", 'label_values(saltern_sink_kafka_transactions_total{instance=~"$instance"}, sink)'),
    variable("source", 'label_values(saltern_source_kafka_partitions{instance=~"$instance"}, source)'),
]

DASHBOARD = dashboard(
    "saltern-kafka",
    "saltern: Kafka",
    "What goes into Kafka, what comes out of it, and what is behind.",
    PROMETHEUS,
    VARIABLES,
    PANELS,
)
