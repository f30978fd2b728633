#!/usr/bin/env python3
"""What a stream of events needs, computed from what one worker was measured to do (docs/scaling.md).

Prints a table for 1, 2 and 4 workers, the same for the whole stream, and a simulation of the whole
stream in steps of a second in which a worker dies and comes back. Every input is an option; the
defaults are the ones that the page names, measured or assumed as it says. Nothing is random.
A test compares what is printed with the page.
"""
import argparse
import math
import textwrap


def inputs():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = lambda name, value, help: parser.add_argument(f"--{name}", type=float, default=value, help=help)
    option("rate", 1e6, "events a second of the whole stream")
    option("worker-rate", 196e3, "events a second that one worker on a core writes to files (measured)")
    option("worker-cpu", 4.7, "microseconds of CPU that such a worker takes an event (measured)")
    option("clickhouse-cpu", 50, "microseconds of CPU that a worker takes an event for ClickHouse (measured)")
    option("use", 0.6, "part of what a worker, a broker, a disk or a shard can do that is planned with")
    option("event", 1000, "bytes of an event as JSON")
    option("shrink", 5, "times that a batch shrinks by compression (assumed)")
    option("copies", 3, "copies of each partition")
    option("retention", 24, "hours that Kafka keeps events")
    option("broker-in", 100e6, "bytes a second that a broker takes in, copies included (assumed)")
    option("rows", 5, "rows of an event in all tables of ClickHouse: itself, its return, each of three states")
    option("shard-rows", 250e3, "rows a second that a ClickHouse shard inserts (assumed)")
    option("shard-copies", 2, "copies of each shard")
    option("partition-rate", 10e3, "events a second planned for a partition (assumed)")
    option("core-price", 25, "what a core costs a month, in any currency (assumed)")
    option("server-cores", 8, "cores of a broker or of a copy of a shard (assumed)")
    option("disk-price", 0.05, "what a gigabyte of Kafka's disk costs a month (assumed)")
    option("dead", 60, "seconds for which a worker is gone in the simulation")
    option("noticed", 45, "seconds until its group notices (session.timeout.ms)")
    return parser.parse_args()


def whole(number):
    """The next whole number; 3 * x / x, which may be a little more than 3, is 3."""
    return math.ceil(number - 1e-9)


def needs(have, rate):
    """Everything that a stream of so many events a second needs."""
    planned = lambda wanted, each: whole(wanted / (each * have.use))
    wire = rate * have.event / have.shrink
    workers = planned(rate, have.worker_rate)
    brokers = max(int(have.copies), planned(wire * have.copies, have.broker_in))
    shards = planned(rate * have.rows, have.shard_rows)
    disk = wire * have.copies * have.retention * 3600 / have.use
    cores = max(workers, planned(rate * have.worker_cpu, 1e6))
    inserters = planned(rate * have.clickhouse_cpu, 1e6)
    servers = shards * int(have.shard_copies)
    partitions = lambda workers: whole(max(rate / have.partition_rate, workers) / workers) * workers
    cost = lambda cores, servers: round(
        (cores + servers * have.server_cores) * have.core_price + disk / 1e9 * have.disk_price
    )
    return {
        "brokers": brokers,
        "Kafka's disk, GB": round(disk / 1e9),
        "into Kafka, Mbit/s": round(wire * 8 / 1e6),
        "out of Kafka to workers, Mbit/s": round(wire * 8 / 1e6),
        "between brokers, Mbit/s": round(wire * (have.copies - 1) * 8 / 1e6),
        "*to write files:* workers": workers,
        "their cores": cores,
        "partitions": partitions(workers),
        "cost a month": cost(cores, brokers),
        "*to write `clickhouse`:* workers, a core each": inserters,
        "partitions for them": partitions(inserters),
        "ClickHouse shards": shards,
        "ClickHouse servers": servers,
        "cost a month with them": cost(inserters, brokers + servers),
    }


def serve(waiting, owned, room):
    """A worker takes what waits in its partitions; what one does not need of its part goes to the others."""
    shortest_first = sorted(owned, key=lambda partition: waiting[partition])
    for left, partition in zip(range(len(owned), 0, -1), shortest_first):
        done = min(waiting[partition], room / left)
        waiting[partition] -= done
        room -= done


def simulate(have):
    """One of the workers for files dies; the others serve their partitions as fast as they can, and then its too."""
    need = needs(have, have.rate)
    workers, partitions = need["*to write files:* workers"], need["partitions"]
    waiting = [0.0] * partitions
    worst, caught_up = 0.0, None
    # Seconds since its death. A worker that is back earlier has to wait, too, until its group has noticed.
    for second in range(3600):
        is_noticed = second >= have.noticed
        others = workers - 1 if is_noticed and second < have.dead else workers
        for partition in range(partitions):
            waiting[partition] += have.rate / partitions
        for owner in range(others):
            if is_noticed or owner > 0:
                serve(waiting, range(owner, partitions, others), have.worker_rate)
        worst = max(worst, sum(waiting))
        if is_noticed and sum(waiting) < 1:
            caught_up = second + 1
            break
    told = f"All are stored {caught_up} s after its death." if caught_up else "In an hour they are not all stored."
    text = (
        f"One of {workers} workers that write files is gone for {have.dead:.0f} s, and the group notices after "
        f"{have.noticed:.0f} s. At the worst {worst:,.0f} events wait, {worst / (have.rate / workers):.0f} s of its "
        f"part. {told}"
    )
    print("\n" + textwrap.fill(text, 120))


have = inputs()
columns = [needs(have, count * have.worker_rate * have.use) for count in (1, 2, 4)] + [needs(have, have.rate)]
heads = [f"{count * have.worker_rate * have.use:,.0f}/s" for count in (1, 2, 4)] + [f"{have.rate:,.0f}/s"]
print("| | " + " | ".join(heads) + " |\n|---" + "|---" * len(heads) + "|")
for name in columns[0]:
    print(f"| {name} | " + " | ".join(f"{column[name]:,}" for column in columns) + " |")
simulate(have)
