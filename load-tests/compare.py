#!/usr/bin/env python3
"""saltern and what else could do its work, one after the other, on the same events (`make compare`).

The events are those of a bus of `saltern-load`: state returns of 3 KB. saltern reads the bus; Salt's own
EventReturn gets the same events fired on a bus of its own; rsyslog and Telegraf, which know no bus, get them
over a unix socket as the lines of JSON that saltern made of them, so that they have neither msgpack to read
nor JSON to write. Each is measured as a process: its CPU from the first event to the last one stored, events
a second, the most memory. What is not installed is left out, and said to be.

usage: load-tests/compare.py [--events N] [--salt-events N] [--rounds N] [--only WORD,...]

Wants the release build and `tests/servers/install.sh peers`. The configurations are in load-tests/peers/.
"""
import argparse
import itertools
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import broker
import cpu_clock

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("SALTERN_TEST_CACHE", Path.home() / ".cache/saltern-tests"))
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
LIMIT = 600


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--salt-events", type=int, default=5_000, help="for Salt's own, which are slow")
    parser.add_argument("--rounds", type=int, default=1, help="the table has the medians")
    parser.add_argument("--only", default="", help="saltern,rsyslog,telegraf,kafka,salt: only those named")
    parser.add_argument("--port", type=int, default=19292, help="the first of three for servers")
    parser.add_argument("--saltern", default=TARGET / "release/saltern", type=Path)
    parser.add_argument("--load", default=TARGET / "release/saltern-load", type=Path)
    return parser.parse_args()


class Process:
    """A process that is ended, by its pid, with the block."""

    def __init__(self, command, log, **more):
        self.log = open(log, "wb")
        self.popen = subprocess.Popen([str(word) for word in command], stdout=self.log, stderr=self.log, **more)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(30)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.log.close()

    def cpu(self):
        return cpu_clock.seconds(self.popen.pid)

    def peak(self):
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) << 10


def wait_for(what, is_so, pause=0.01, seconds=LIMIT):
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} took more than {seconds} s")
        time.sleep(pause)


def size(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class Comparison:
    """The events in their two forms, and what was measured so far."""

    def __init__(self, have, folder):
        self.have, self.folder, self.rows = have, folder, []
        self.capture, self.lines = folder / "capture", folder / "lines"
        bus = [have.load, "bus", "--socket", folder / "bus", "--events", str(have.events)]
        with Process(bus, folder / "bus.log") as serving:
            reader = socket.socket(socket.AF_UNIX)
            wait_for("the bus", lambda: reader.connect_ex(str(folder / "bus")) == 0)
            with open(self.capture, "wb") as capture:
                while block := reader.recv(1 << 20):
                    capture.write(block)
            serving.popen.wait(60)
        config = folder / "lines.yaml"
        config.write_text(
            f"state_dir: {folder}/lines-state\nhttp: {{listen: '127.0.0.1:0'}}\nlog: {{level: error}}\n"
            f"sources: {{recording: {{replay: {{path: {self.capture}}}}}}}\n"
            f"sinks: {{lines: {{rawfile_json: {{filename: {self.lines}}}}}}}\n"
        )
        subprocess.run([have.saltern, "run", "--config", config], check=True)
        self.count = sum(block.count(b"\n") for block in iter(lambda f=open(self.lines, "rb"): f.read(1 << 20), b""))
        if self.count != have.events:
            sys.exit(f"{have.events} events were sent and {self.count} lines made of them")

    def run(self, word, name, measured, *arguments):
        """Measures as often as was asked for, and notes the medians."""
        if self.have.only and word not in self.have.only.split(","):
            return
        print(f"measuring {name}", file=sys.stderr, flush=True)
        rounds = []
        for number in range(self.have.rounds):
            folder = self.folder / f"run-{len(self.rows)}-{number}"
            folder.mkdir()
            # Processes that run as another user write there.
            folder.chmod(0o777)
            try:
                rounds.append(measured(folder, *arguments))
            except (RuntimeError, OSError, ValueError, ArithmeticError, subprocess.SubprocessError) as error:
                self.rows.append((name, None, f"failed: {error}"))
                print(f"{name}: {error}", file=sys.stderr)
                return
            shutil.rmtree(folder)
        self.rows.append((name, [statistics.median(column) for column in zip(*rounds)], ""))

    def saltern(self, folder, spill, sink):
        """`saltern-load measure`, which is the bus itself."""
        command = [self.have.load, "measure", "--saltern", self.have.saltern, "--events", str(self.have.events)]
        command += ["--spill", spill, *sink]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]
        found = re.search(r"\((\d+) dropped\): ([\d.]+) µs .* ([\d.]+) events/s .* ([\d.]+) MiB at the most", output)
        return self.have.events - int(found[1]), float(found[2]), float(found[3]), float(found[4]) * (1 << 20)

    def lines_into(self, folder, command, config, ending, is_done, part=1.0):
        """What is offered lines over a socket, or a part of them; `is_done` waits until they are stored."""
        text = (HERE / "peers" / config).read_text()
        path = folder / f"peer.{ending}"
        path.write_text(text.replace("FOLDER", str(folder)).replace("PORT", str(self.have.port)))
        with Process([*command, path], folder / "out.log") as peer, socket.socket(socket.AF_UNIX) as writer:
            wait_for("its socket", lambda: writer.connect_ex(str(folder / "in")) == 0, seconds=30)
            before, began = peer.cpu(), time.monotonic()
            left = int(self.have.events * part)
            want = 0
            with open(self.lines, "rb") as lines:
                while left > 0:
                    block = b"".join(itertools.islice(lines, min(left, 64)))
                    left, want = left - 64, want + len(block)
                    writer.sendall(block)
            writer.close()
            stored, ended = is_done(folder, want)
            used = peer.cpu() - before
            return stored, used * 1e6 / stored, stored / (ended - began), peer.peak()

    def in_file(self, folder, want):
        """Waits until as many bytes are stored as were sent; or none come for ten seconds."""
        out = folder / "out"
        last, since = 0, time.monotonic()
        while last < want and time.monotonic() - since < 10:
            time.sleep(0.005)
            if size(out) > last:
                last, since = size(out), time.monotonic()
        return sum(block.count(b"\n") for block in iter(lambda f=open(out, "rb"): f.read(1 << 20), b"")), since

    def salt(self, folder, version, returner, port, queue):
        command = [CACHE / f"salt-{version}/bin/python", HERE / "salt_event_return.py", "--numbers"]
        command += ["--returner", returner, "--port", str(port), "--queue", str(queue)]
        command += ["--events", str(self.have.salt_events), "--capture", self.capture]
        environment = dict(os.environ, PYTHONPATH=str(CACHE / "salt-drivers"), TMPDIR=str(folder))
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no word why")
        return [float(number) for number in done.stdout.split()]

    def table(self):
        print("| what | CPU an event | of saltern's | events/s | of saltern's | RSS at the most | stored |")
        print("|---|---|---|---|---|---|---|")
        base = next((numbers for _, numbers, _ in self.rows if numbers), None)
        for name, numbers, trouble in self.rows:
            if not numbers:
                print(f"| {name} | {trouble} | | | | | |")
                continue
            stored, cost, rate, memory = numbers
            against = [f"{cost / base[1]:.1f}" if base[1] else "", f"{rate / base[2]:.2f}"]
            print(f"| {name} | {cost:.1f} µs | {against[0]} | {rate:.0f} | {against[1]} "
                  f"| {memory / (1 << 20):.0f} MiB | {stored:.0f} |")


def installed(name):
    """Where it is, or nothing and a word about it."""
    if (CACHE / name).is_dir():
        return CACHE / name
    print(f"without {name}: `tests/servers/install.sh peers` installs it", file=sys.stderr)
    return None


def kafka(compared, have):
    """A broker; saltern and rsyslog in front of it."""
    home = installed("kafka-4.1.0")
    if not home or (have.only and "kafka" not in have.only.split(",")):
        return
    folder, port, jars = compared.folder / "kafka", have.port, home / "libs"

    def ask(tool, *words):
        command = broker.java(jars, f"org.apache.kafka.tools.{tool}", "--bootstrap-server", f"127.0.0.1:{port}", *words)
        return subprocess.run(command, capture_output=True, text=True)

    def messages(topic):
        offsets = ask("GetOffsetShell", "--topic", topic).stdout.split()
        return sum(int(line.rsplit(":", 1)[1]) for line in offsets)

    with Process(broker.command(folder, jars, port), compared.folder / "broker.log"):
        wait_for("the broker", lambda: ask("TopicCommand", "--list").returncode == 0, seconds=90)
        ask("TopicCommand", "--create", "--topic", "rsyslog", "--partitions", "4")
        sink = ["--sink", f"kafka: {{brokers: ['127.0.0.1:{port}'], topic: saltern}}"]
        for spill in ("memory", "durable"):
            compared.run("kafka", f"saltern, bus to `kafka`, `{spill}`", compared.saltern, spill, sink)

        def in_topic(*_):
            """The log's files stop growing; how many messages are in it is asked afterwards."""
            logs = lambda: sum(size(log) for log in (folder / "data").glob("rsyslog-*/*.log"))
            had, last, since = already[0], logs(), time.monotonic()
            while time.monotonic() - since < 5:
                time.sleep(0.01)
                if logs() > last:
                    last, since = logs(), time.monotonic()
            already[0] = messages("rsyslog")
            return already[0] - had, since

        already = [0]
        if home := installed("rsyslog"):
            compared.run("kafka", "rsyslog, socket to omkafka, disk-assisted queue", compared.lines_into,
                         rsyslogd(home), "rsyslog-kafka.conf", "conf", in_topic)


def rsyslogd(home):
    modules = next(home.glob("usr/lib/*-linux-gnu/rsyslog"))
    return [home / "run", "rsyslogd", "-n", "-M", modules, "-i", "NONE", "-f"]


def as_other(*command):
    """Database servers refuse to run as root."""
    if os.getuid() != 0:
        return command
    return ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command)


def postgresql(compared, port):
    """A running PostgreSQL with Salt's database."""
    home = installed("postgresql")
    if not home:
        return None
    # Short, because sockets are in it, and readable for another user, as the programs have to be.
    folder = Path(tempfile.mkdtemp(prefix="salt-pg-"))
    folder.chmod(0o777)
    home = shutil.copytree(home, folder / "home", symlinks=True)
    home.chmod(0o755)
    programs = next(home.glob("usr/lib/postgresql/*/bin"))
    initdb = as_other(home / "run", programs / "initdb", "-D", folder / "data", "-U", "salt", "-A", "trust", "-E", "UTF8")
    subprocess.run(initdb, check=True, capture_output=True)
    command = as_other(home / "run", programs / "postgres", "-D", folder / "data", "-p", str(port),
                       "-k", folder, "-c", "listen_addresses=127.0.0.1")
    server = Process(command, compared.folder / "postgresql.log")
    # Without a client: single-user mode would want the server stopped, so Salt's database is made by the driver.
    make = ("import psycopg2, sys; c = psycopg2.connect(host='127.0.0.1', port=sys.argv[1], user='salt', dbname='postgres'); "
            "c.autocommit = True; c.cursor().execute('CREATE DATABASE salt')")
    return server, folder, make


def mariadb(compared, port):
    """A running MariaDB with Salt's database."""
    home = installed("mariadb")
    if not home:
        return None
    folder = Path(tempfile.mkdtemp(prefix="salt-my-"))
    (folder / "data" / "mysql").mkdir(parents=True)
    user = ["--user=root"] if os.getuid() == 0 else []
    common = ["--no-defaults", f"--datadir={folder}/data", f"--lc-messages-dir={home}/usr/share/mysql", *user,
              f"--character-sets-dir={home}/usr/share/mysql/charsets", f"--plugin-dir={folder}"]
    scripts = home / "usr/share/mysql"
    script = "use mysql;\n" + "".join(
        (scripts / name).read_text() for name in ("mysql_system_tables.sql", "mysql_system_tables_data.sql"))
    command = [home / "run", "mariadbd", *common, "--bootstrap", "--skip-grant-tables"]
    subprocess.run(command, input=script, text=True, check=True, capture_output=True)
    command = [home / "run", "mariadbd", *common, "--skip-grant-tables", "--bind-address=127.0.0.1", f"--port={port}",
               f"--socket={folder}/socket", f"--pid-file={folder}/pid"]
    server = Process(command, compared.folder / "mariadb.log")
    make = ("import pymysql, sys; c = pymysql.connect(host='127.0.0.1', port=int(sys.argv[1]), user='salt', password='salt'); "
            "c.cursor().execute('CREATE DATABASE salt')")
    return server, folder, make


def salt(compared, have):
    """Salt's EventReturn, with the returners that the release has."""
    if have.only and "salt" not in have.only.split(","):
        return
    versions = [version for version in ("3006.28", "3008.3") if installed(f"salt-{version}")]
    for version in versions:
        for queue in (1000, 0):
            name = f"Salt {version}, EventReturn with rawfile_json, queue {queue}"
            compared.run("salt", name, compared.salt, version, "rawfile_json", 0, queue)
    if not versions or not installed("salt-drivers"):
        return
    for returner, start in (("pgjsonb", postgresql), ("mysql", mariadb)):
        port = have.port + (3 if returner == "pgjsonb" else 4)
        try:
            started = start(compared, port)
        except subprocess.CalledProcessError as error:
            print(f"without {returner}: {error}: {error.stderr}", file=sys.stderr)
            continue
        if not started:
            continue
        server, folder, make = started
        try:
            with server:
                driver = [CACHE / f"salt-{versions[0]}/bin/python", "-c", make, str(port)]
                environment = dict(os.environ, PYTHONPATH=str(CACHE / "salt-drivers"))
                made = lambda: subprocess.run(driver, env=environment, capture_output=True).returncode == 0
                wait_for(f"the database of {returner}", made, pause=0.2, seconds=60)
                for version in versions:
                    # 3008 has no mysql any more.
                    if returner == "mysql" and version.startswith("3008"):
                        continue
                    name = f"Salt {version}, EventReturn with {returner}, queue 1000"
                    compared.run("salt", name, compared.salt, version, returner, port, 1000)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def versions():
    said = []
    for name, command in (("rsyslog", ["run", "rsyslogd", "-v"]), ("telegraf-1.37.2", ["telegraf", "--version"]),
                          ("mariadb", ["run", "mariadbd", "--version"])):
        if (CACHE / name).is_dir():
            command[0] = CACHE / name / command[0]
            said.append(subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]
                        .split(" compiled with")[0].strip())
    for program in CACHE.glob("postgresql/usr/lib/postgresql/*/bin/postgres"):
        command = [CACHE / "postgresql/run", program, "--version"]
        said.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    return said


def main():
    have = options()
    for binary in (have.saltern, have.load):
        if not binary.exists():
            sys.exit(f"there is no {binary}; build it, or run `make compare`")
    with tempfile.TemporaryDirectory(prefix="saltern-compare-") as folder:
        folder = Path(folder)
        folder.chmod(0o755)
        compared = Comparison(have, folder)
        for spill in ("memory", "durable"):
            compared.run("saltern", f"saltern, bus to `rawfile_json`, `{spill}`", compared.saltern, spill, [])
        if home := installed("rsyslog"):
            for config, name, part in (
                ("direct", "no queue of its own", 1), ("assisted", "disk-assisted queue", 1),
                ("disk", "queue on disk", 1), ("disk-synced", "queue on disk, synced (a 20th of the events)", 0.05),
            ):
                compared.run("rsyslog", f"rsyslog, socket to omfile, {name}", compared.lines_into,
                             rsyslogd(home), f"rsyslog-{config}.conf", "conf", compared.in_file, part)
        if home := installed("telegraf-1.37.2"):
            compared.run("telegraf", "Telegraf, socket to file, buffer in memory", compared.lines_into,
                         [home / "telegraf", "--config"], "telegraf.conf", "toml", compared.in_file)
        kafka(compared, have)
        salt(compared, have)
        print(f"{have.events} events ({have.salt_events} for Salt's own) of {size(compared.lines) // have.events} bytes "
              f"as JSON; medians of {have.rounds}. " + "; ".join(versions()) + ".\n")
        compared.table()


main()
