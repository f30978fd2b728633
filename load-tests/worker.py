#!/usr/bin/env python3
"""Workers of a group drain a topic that was filled before; Kafka's own ConsumerPerformance reads it too.

Starts a broker of tests/servers/install.sh, fills a topic of four partitions through the sink `kafka`,
and for each case starts the workers, waits until they have stored everything between them, and prints
a line of a table in Markdown: events a second from the first event read to the last one stored, and
the workers' CPU an event. Wants the release build.

usage: load-tests/worker.py [--events N] [--rounds N] [--saltern BINARY]
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import broker

CASES = [
    ("blackhole", "json", 1),
    ("blackhole", "msgpack", 1),
    ("rawfile_json", "msgpack", 1),
    ("rawfile_json", "msgpack", 2),
]
TICKS = os.sysconf("SC_CLK_TCK")


def metric(port, name):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return 0.0
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))


def cpu(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def drained(saltern, folder, port, topic, group, sink, workers, events):
    """Events a second, and microseconds of CPU an event."""
    running, began = [], None
    try:
        for number in range(workers):
            home = folder / f"{group}-{number}"
            home.mkdir()
            settings = f"{{filename: '{home}/events'}}" if sink == "rawfile_json" else "{}"
            (home / "saltern.yaml").write_text(
                f"state_dir: {home}/state\nhttp: {{listen: '127.0.0.1:{port + 10 + number}'}}\n"
                f"sources:\n  topic:\n    kafka: {{brokers: ['127.0.0.1:{port}'], topics: [{topic}], group: {group}}}\n"
                f"sinks:\n  store:\n    {sink}: {settings}\n    spill: {{mode: memory, when_full: block}}\n"
            )
            log = open(home / "log", "wb")
            command = [saltern, "run", "--config", str(home / "saltern.yaml")]
            running.append(subprocess.Popen(command, stdout=log, stderr=log))
        ports = [port + 10 + number for number in range(workers)]
        deadline = time.monotonic() + 600
        while sum(metric(p, "saltern_sink_events_total") for p in ports) < events:
            if began is None and any(metric(p, "saltern_source_events_total") > 0 for p in ports):
                began = time.monotonic()
            if time.monotonic() > deadline:
                sys.exit(f"{group}: not everything was stored in ten minutes; see {folder}")
            time.sleep(0.02)
        took = time.monotonic() - (began or time.monotonic())
        used = sum(cpu(worker.pid) for worker in running)
        return events / max(took, 1e-3), used / events * 1e6
    finally:
        for worker in running:
            worker.send_signal(signal.SIGTERM)
        for worker in running:
            worker.wait(60)


def fill(saltern, folder, port, events):
    """Returns of highstates of 500 minions, of about 1000 bytes as JSON, into two topics."""
    states = {
        f"file_|-config-{n}_|-/etc/app/config-{n}.conf_|-managed": {
            "name": f"/etc/app/config-{n}.conf", "changes": {}, "result": True, "duration": 12.345 + n,
            "comment": f"File /etc/app/config-{n}.conf is in the correct state", "__sls__": "app.config",
        }
        for n in range(3)
    }
    with open(folder / "events.jsonl", "w") as lines:
        for n in range(events):
            jid, minion = f"20261121{n // 500:012d}", f"web-{n % 500}.example.com"
            data = {"id": minion, "jid": jid, "fun": "state.apply", "success": True, "retcode": 0, "return": states,
                    "_stamp": f"2026-11-21T00:00:00.{n % 1000000:06d}", "n": n}
            lines.write(json.dumps({"tag": f"salt/job/{jid}/ret/{minion}", "data": data}) + "\n")
    sinks = "".join(
        f"  {form}:\n    kafka: {{brokers: ['127.0.0.1:{port}'], topic: {form}, value: {form}, partitions: 4, "
        "replication: 1, compression: lz4}\n"
        for form in ("json", "msgpack")
    )
    (folder / "collector.yaml").write_text(
        f"state_dir: {folder}/collector\nhttp: {{listen: '127.0.0.1:{port + 9}'}}\n"
        f"sources:\n  lines: {{replay: {{path: '{folder}/events.jsonl'}}}}\nsinks:\n{sinks}"
    )
    with open(folder / "collector.log", "wb") as log:
        subprocess.run([saltern, "run", "--config", str(folder / "collector.yaml")], check=True, stdout=log, stderr=log)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=200_000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--port", type=int, default=19192)
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    arguments.add_argument("--saltern", default=f"{target}/release/saltern", help="the binary to measure")
    arguments = arguments.parse_args()
    cache = os.environ.get("SALTERN_TEST_CACHE", str(Path.home() / ".cache/saltern-tests"))
    jars = Path(cache) / "kafka-4.1.0/libs"
    if not jars.is_dir():
        sys.exit(f"there is no {jars}; run tests/servers/install.sh")
    saltern, events, port = arguments.saltern, arguments.events, arguments.port
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        log = open(folder / "broker.log", "wb")
        kafka = subprocess.Popen(broker.command(folder, jars, port), stdout=log, stderr=log)
        try:
            fill(saltern, folder, port, events)
            stored = sum(f.stat().st_size for f in (folder / "data").glob("json-*/*.log"))
            print(f"{events} events, {stored / events:.0f} bytes each in the topic as JSON with lz4\n")
            print("| round | what | events/s | of the reference | CPU an event |\n|---|---|---|---|---|")
            for turn in range(1, arguments.rounds + 1):
                words = ["org.apache.kafka.tools.ConsumerPerformance", "--bootstrap-server", f"127.0.0.1:{port}"]
                words += ["--topic", "json", "--messages", str(events), "--group", f"reference-{turn}"]
                words += ["--timeout", "60000"]
                output = subprocess.run(broker.java(jars, *words), check=True, capture_output=True, text=True).stdout
                # start, end, MB, MB/s, messages, messages/s, rebalance ms, fetch ms, MB/s, messages/s
                reference = float(output.strip().splitlines()[-1].split(",")[9])
                print(f"| {turn} | ConsumerPerformance, nothing stored | {reference:.0f} | | |", flush=True)
                for number, (sink, form, workers) in enumerate(CASES):
                    group = f"round-{turn}-{number}"
                    rate, used = drained(saltern, folder, port, form, group, sink, workers, events)
                    what = f"{workers} worker{'s' if workers > 1 else ''}, {form} to `{sink}`"
                    print(f"| {turn} | {what} | {rate:.0f} | {rate / reference:.2f} | {used:.1f} µs |", flush=True)
        finally:
            kafka.kill()
            kafka.wait()


main()
