#!/usr/bin/env python3
"""Workers of a group drain a topic that was filled before; Kafka's own ConsumerPerformance reads it too.

Starts a broker of tests/servers/install.sh and fills topics of four partitions through the sink `kafka`. Each
case is a group of its own that reads a whole topic: its workers are started, have their partitions at the same
moment, and are waited for until they have stored everything between them. Prints a line of a table in Markdown
each: events a second from the first event read to the last one stored, the workers' CPU in the same time and
their memory. A worker "pinned to one core" runs on no other core, and others may run on that; where the broker
runs is left to the kernel. Wants the release build.

usage: load-tests/worker.py [--events N] [--rounds N] [--saltern BINARY]
"""
import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import broker
import cpu_clock

CORES = sorted(os.sched_getaffinity(0))
# What it is called, the sink, the form of the messages, and the cores of each worker.
CASES = [
    ("1 worker, JSON to `blackhole`", "blackhole", "json", [CORES]),
    ("1 worker, msgpack to `blackhole`", "blackhole", "msgpack", [CORES]),
    ("1 worker, msgpack to `rawfile_json`", "rawfile_json", "msgpack", [CORES]),
    ("1 worker pinned to one core, the same", "rawfile_json", "msgpack", [CORES[-1:]]),
    ("2 workers pinned to one core each, the same", "rawfile_json", "msgpack", [CORES[-1:], CORES[:1]]),
]
# Seconds between two looks at how far the workers are, which cost them something too. A worker makes its metrics
# at most every 100 ms, and who asks earlier has to wait.
LOOK = 0.1
# The fewest looks that tell a rate well enough.
LOOKS = 40


class Look:
    """How far a worker is, and the time and its seconds of CPU right after it said so."""

    def __init__(self, worker):
        self.read, self.stored = worker.counts()
        self.time, self.cpu = time.monotonic(), worker.cpu()


class Worker:
    """A worker of a group, on the cores that it may have."""

    def __init__(self, have, home, http, topic, group, sink, cores):
        home.mkdir()
        self.http = http
        settings = f"{{filename: '{home}/events'}}" if sink == "rawfile_json" else "{}"
        (home / "saltern.yaml").write_text(
            f"state_dir: {home}/state\nhttp: {{listen: '127.0.0.1:{http}'}}\n"
            f"sources:\n  topic:\n    kafka: {{brokers: ['127.0.0.1:{have.port}'], topics: [{topic}], group: {group}, "
            f"properties: {{{have.properties}}}}}\n"
            f"sinks:\n  store:\n    {sink}: {settings}\n    spill: {{mode: memory, when_full: block}}\n"
        )
        command = [have.saltern, "run", "--config", str(home / "saltern.yaml")]
        self.log = home / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, cores)
            )

    def counts(self):
        """Events read and events stored."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return 0, 0
        names = ("saltern_source_events_total", "saltern_sink_events_total")
        values = [re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M) for name in names]
        return tuple(sum(map(float, found)) for found in values)

    def look(self):
        """Looks how far it is; ends the program if it has died."""
        if self.process.poll() is not None:
            end = b"\n".join(self.log.read_bytes().splitlines()[-20:]).decode(errors="replace")
            sys.exit(f"{self.log.parent}: the worker has died (exit code {self.process.returncode}):\n{end}")
        return Look(self)

    def cpu(self):
        return cpu_clock.seconds(self.process.pid)

    def stop(self):
        """Waits for its end after SIGTERM, and kills it if it does not come."""
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            print(f"{self.log.parent}: the worker did not stop in 60 s and is killed", file=sys.stderr)
            self.process.kill()
            self.process.wait()

    def peak(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) << 10


def drained(have, folder, topic, group, sink, cores):
    """Events a second, seconds, CPU in seconds and in microseconds an event, and the most memory of a worker."""
    home, running = folder / group, []
    home.mkdir()
    try:
        for number, own in enumerate(cores):
            worker = Worker(have, home / str(number), have.port + 10 + number, topic, group, sink, own)
            running.append(worker)
        deadline = time.monotonic() + 600
        first, looked = None, 0
        while True:
            looks = [worker.look() for worker in running]
            if first is None and any(look.read for look in looks):
                first = looks
            looked += first is not None
            stored = sum(look.stored for look in looks)
            if stored >= have.events:
                break
            if time.monotonic() > deadline:
                sys.exit(f"{group}: not everything was stored in ten minutes; {stored:.0f} of {have.events} are")
            time.sleep(LOOK)
        grown = lambda of: sum(of(after) - of(before) for before, after in zip(first, looks))
        done, used = grown(lambda look: look.stored), grown(lambda look: look.cpu)
        # Each worker has a time of its own; they hardly differ.
        took = grown(lambda look: look.time) / len(running)
        if not done:
            sys.exit(f"{group}: all was stored before it was seen to begin; take more --events")
        if looked < LOOKS:
            print(f"{group}: {looked} looks in {took:.1f} s are few; take more --events", file=sys.stderr)
        return done / took, took, used, used / done * 1e6, max(worker.peak() for worker in running)
    finally:
        for worker in running:
            worker.process.send_signal(signal.SIGTERM)
        for worker in running:
            worker.stop()
        shutil.rmtree(home)


def fill(have, folder):
    """Returns of highstates of 500 minions, of about 1000 bytes as JSON, into two topics."""
    states = json.dumps({
        f"file_|-config-{n}_|-/etc/app/config-{n}.conf_|-managed": {
            "name": f"/etc/app/config-{n}.conf", "changes": {}, "result": True, "duration": 12.345 + n,
            "comment": f"File /etc/app/config-{n}.conf is in the correct state", "__sls__": "app.config",
        }
        for n in range(3)
    })
    lines = folder / "events.jsonl"
    with open(lines, "w") as out:
        for n in range(have.events):
            jid, minion = f"20261121{n // 500:012d}", f"web-{n % 500}.example.com"
            out.write(
                f'{{"tag": "salt/job/{jid}/ret/{minion}", "data": {{"id": "{minion}", "jid": "{jid}", '
                f'"fun": "state.apply", "success": true, "retcode": 0, "return": {states}, '
                f'"_stamp": "2026-11-21T00:00:00.{n % 1000000:06d}", "n": {n}}}}}\n'
            )
    # Spread evenly over the partitions, so that workers of equal parts end together.
    sinks = "".join(
        f"  {form}:\n    kafka: {{brokers: ['127.0.0.1:{have.port}'], topic: {form}, value: {form}, partitions: 4, "
        "replication: 1, compression: lz4, key: none}\n"
        for form in ("json", "msgpack")
    )
    (folder / "collector.yaml").write_text(
        f"state_dir: {folder}/collector\nhttp: {{listen: '127.0.0.1:{have.port + 9}'}}\n"
        f"sources:\n  lines: {{replay: {{path: '{lines}'}}}}\nsinks:\n{sinks}"
    )
    with open(folder / "collector.log", "wb") as log:
        command = [have.saltern, "run", "--config", str(folder / "collector.yaml")]
        subprocess.run(command, check=True, stdout=log, stderr=log)
    lines.unlink()


def reference(jars, port, topic, events, turn):
    """Events a second that ConsumerPerformance reads, without the time in which it joins its group."""
    words = ["org.apache.kafka.tools.ConsumerPerformance", "--bootstrap-server", f"127.0.0.1:{port}"]
    words += ["--topic", topic, "--messages", str(events), "--group", f"reference-{topic}-{turn}"]
    words += ["--timeout", "60000"]
    output = subprocess.run(broker.java(jars, *words), check=True, capture_output=True, text=True).stdout
    # start, end, MB, MB/s, messages, messages/s, rebalance ms, fetch ms, MB/s, messages/s
    return float(output.strip().splitlines()[-1].split(",")[9])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=19192)
    parser.add_argument("--properties", default="", help="settings of librdkafka for the workers, NAME: VALUE, ...")
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    parser.add_argument("--saltern", default=f"{target}/release/saltern", help="the binary to measure")
    have = parser.parse_args()
    cache = os.environ.get("SALTERN_TEST_CACHE", str(Path.home() / ".cache/saltern-tests"))
    jars = Path(cache) / "kafka-4.1.0/libs"
    if not jars.is_dir():
        sys.exit(f"there is no {jars}; run tests/servers/install.sh")
    events, port = have.events, have.port
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        log = open(folder / "broker.log", "wb")
        kafka = subprocess.Popen(broker.command(folder, jars, port, gather=3000), stdout=log, stderr=log)
        try:
            fill(have, folder)
            for form in ("json", "msgpack"):
                stored = sum(f.stat().st_size for f in (folder / "data").glob(f"{form}-*/*.log"))
                print(f"{events} events, {stored / events:.0f} bytes each in the topic as {form} with lz4\n")
            print("| round | what | events/s | seconds | CPU an event | cores | RSS at the most |")
            print("|---|---|---|---|---|---|---|", flush=True)
            for turn in range(1, have.rounds + 1):
                for form in ("json", "msgpack"):
                    rate = reference(jars, port, form, events, turn)
                    what = f"ConsumerPerformance, {form}, nothing stored"
                    print(f"| {turn} | {what} | {rate:.0f} | {events / rate:.1f} | | | |", flush=True)
                for number, (what, sink, form, cores) in enumerate(CASES):
                    if len(CORES) < len(cores):
                        continue
                    group = f"round-{turn}-{number}"
                    rate, took, used, each, peak = drained(have, folder, form, group, sink, cores)
                    print(f"| {turn} | {what} | {rate:.0f} | {took:.1f} | {each:.2f} µs "
                          f"| {used / took:.2f} | {peak >> 20} MiB |", flush=True)
        finally:
            kafka.kill()
            kafka.wait()


main()
