#!/usr/bin/env python3
"""What a stream of events needs, computed from what one worker was measured to do (docs/scaling.md).

Prints a table for 1, 2 and 4 workers, the same for the whole stream, and a simulation of the whole
stream in steps of a second in which a worker dies and comes back. Every input is an option; the
defaults are the ones that the page names, measured or assumed as it says. Nothing is random.
"""
import argparse
import math


def inputs():
    parser = argparse.ArgumentParser(description=__doc__)
    option = lambda name, value, help: parser.add_argument(f"--{name}", type=float, default=value, help=help)
    option("rate", 1e6, "events a second of the whole stream")
    option("worker-rate", 37e3, "events a second that one worker stores (measured)")
    option("worker-cpu", 7, "microseconds of CPU that a worker takes an event (measured)")
    option("use", 0.6, "part of what a worker, a broker or a shard can do that is planned with")
    option("event", 1000, "bytes of an event as JSON")
    option("shrink", 5, "times that a batch shrinks by compression")
    option("copies", 3, "copies of each partition")
    option("retention", 24, "hours that Kafka keeps events")
    option("broker-in", 100e6, "bytes a second that a broker takes in, copies included (assumed)")
    option("shard-rate", 250e3, "events a second that a ClickHouse shard inserts (assumed)")
    option("shard-copies", 2, "copies of each shard")
    option("partition-rate", 10e3, "events a second planned for a partition")
    option("core-price", 25, "what a core costs a month, in any currency (assumed)")
    option("server-cores", 8, "cores of a broker or of a copy of a shard (assumed)")
    option("disk-price", 0.05, "what a gigabyte of disk costs a month (assumed)")
    option("dead", 60, "seconds for which a worker is gone in the simulation")
    option("noticed", 45, "seconds until its group notices (session.timeout.ms)")
    return parser.parse_args()


def needs(have, rate):
    """Everything that a stream of so many events a second needs."""
    planned = lambda wanted, each: math.ceil(wanted / (each * have.use))
    wire = rate * have.event / have.shrink
    workers = planned(rate, have.worker_rate)
    brokers = max(int(have.copies), planned(wire * have.copies, have.broker_in))
    shards = planned(rate, have.shard_rate)
    disk = wire * have.copies * have.retention * 3600
    cores = math.ceil(rate * have.worker_cpu / 1e6 / have.use)
    servers = brokers + shards * int(have.shard_copies)
    return {
        "workers": workers,
        "worker cores": cores,
        "partitions, a multiple of the workers": math.ceil(max(rate / have.partition_rate, workers) / workers) * workers,
        "brokers": brokers,
        "Kafka's disk, GB": round(disk / 1e9),
        "into Kafka, Mbit/s": round(wire * 8 / 1e6),
        "out of Kafka to workers, Mbit/s": round(wire * 8 / 1e6),
        "between brokers, Mbit/s": round(wire * (have.copies - 1) * 8 / 1e6),
        "ClickHouse shards": shards,
        "ClickHouse servers": shards * int(have.shard_copies),
        "cost a month": round((cores + servers * have.server_cores) * have.core_price + disk / 1e9 * have.disk_price),
    }


def simulate(have):
    """One of the workers dies at second 60; each worker serves its partitions as fast as it can."""
    need = needs(have, have.rate)
    workers, partitions = need["workers"], need["partitions, a multiple of the workers"]
    arriving = have.rate / partitions
    waiting = [0.0] * partitions
    death, back = 60, 60 + int(have.dead)
    worst, caught_up = 0.0, None
    for second in range(3600):
        is_dead = death <= second < back
        is_noticed = death + have.noticed <= second
        # Before the group notices, the dead worker's partitions are nobody's.
        alive = workers - 1 if is_dead and is_noticed else workers
        room = [have.worker_rate] * alive
        for partition in range(partitions):
            owner = partition % alive
            waiting[partition] += arriving
            if is_dead and not is_noticed and owner == 0:
                continue
            fair = room[owner] / math.ceil((partitions - partition) / alive)
            done = min(waiting[partition], fair)
            waiting[partition] -= done
            room[owner] -= done
        total = sum(waiting)
        worst = max(worst, total)
        if second >= back and caught_up is None and total < arriving:
            caught_up = second - death
    longest = worst / (have.rate / workers)
    told = f"{caught_up} s after its death" if caught_up else "never"
    print(f"\nA worker of {workers} is gone for {have.dead:.0f} s, noticed after {have.noticed:.0f} s: "
          f"{worst:,.0f} events wait at the worst, {longest:.0f} s of its part; all are stored {told}.")


have = inputs()
columns = [needs(have, count * have.worker_rate * have.use) for count in (1, 2, 4)] + [needs(have, have.rate)]
heads = [f"{count * have.worker_rate * have.use:,.0f}/s" for count in (1, 2, 4)] + [f"{have.rate:,.0f}/s"]
print("| | " + " | ".join(heads) + " |\n|---" * 1 + "|---" * len(heads) + "|")
for name in columns[0]:
    print(f"| {name} | " + " | ".join(f"{column[name]:,}" for column in columns) + " |")
simulate(have)
