#!/usr/bin/env python3
"""What Salt's own EventReturn costs: CPU of that process for each event, with one of its returners.

usage: SALT_VENV/bin/python load-tests/salt_event_return.py [--returner rawfile_json|pgjsonb|mysql|saltern]
           [--port PORT] [--events N] [--queue N] [--capture FILE] [--saltern BINARY]

Starts a master of the Salt that this Python has, with the configuration load-tests/peers/salt-master.conf,
fires state returns from one process, waits until all are stored and prints a row of a Markdown table. With
`--capture` they are the events of a bus that was written to a file, else returns of 3 KB made here. For
pgjsonb and mysql a server listens on the port, with a database, a user and a password `salt`; the table
is made anew. With saltern a daemon of ours takes the events and stores them with `rawfile_json`. The master is ended by its pid, its folder removed. tests/servers/install.sh makes the
environments (SALTERN_TEST_CACHE, salt-<version>), `tests/servers/install.sh peers` the drivers.
"""

import argparse
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import msgpack
import psutil
import salt.config
import salt.utils.event
import salt.version

import cpu_clock

SCHEMAS = {
    "pgjsonb": ["DROP TABLE IF EXISTS salt_events", """CREATE TABLE salt_events (
        id BIGSERIAL PRIMARY KEY, tag varchar(255) NOT NULL, data jsonb NOT NULL,
        alter_time TIMESTAMP WITH TIME ZONE DEFAULT NOW(), master_id varchar(255) NOT NULL)""",
        "CREATE INDEX idx_salt_events_tag ON salt_events (tag)",
        "CREATE INDEX idx_salt_events_data ON salt_events USING gin (data) with (fastupdate=on)"],
    "mysql": ["DROP TABLE IF EXISTS salt_events", """CREATE TABLE salt_events (
        id BIGINT NOT NULL AUTO_INCREMENT, tag varchar(255) NOT NULL, data mediumtext NOT NULL,
        alter_time TIMESTAMP DEFAULT CURRENT_TIMESTAMP, master_id varchar(255) NOT NULL,
        PRIMARY KEY (id), KEY tag (tag)) ENGINE=InnoDB DEFAULT CHARSET=utf8"""],
}


class File:
    """Where rawfile_json stores."""

    def __init__(self, folder):
        self.path, self.seen, self.count = f"{folder}/events", 0, 0

    def stored(self):
        """How many returns are stored; only what is new is read."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.seen)
                block = file.read()
        except FileNotFoundError:
            return 0
        whole = block.rfind(b"\n") + 1
        self.seen += whole
        self.count += sum(b"/ret/web-" in line for line in block[:whole].splitlines())
        return self.count


class Table:
    """Where pgjsonb and mysql store."""

    def __init__(self, returner, port):
        login = {"host": "127.0.0.1", "port": port, "user": "salt", "password": "salt"}
        if returner == "pgjsonb":
            import psycopg2
            self.connection = psycopg2.connect(dbname="salt", **login)
        else:
            import pymysql
            self.connection = pymysql.connect(database="salt", **login)
        for statement in SCHEMAS[returner]:
            self.ask(statement)

    def ask(self, statement):
        with self.connection.cursor() as cursor:
            cursor.execute(statement)
            answer = cursor.fetchone() if cursor.description else None
        self.connection.commit()
        return answer

    def stored(self):
        return self.ask("SELECT count(*) FROM salt_events WHERE tag LIKE '%/ret/web-%'")[0]


class Daemon:
    """saltern, which stores what EventReturn hands over in a file; ended by its pid."""

    def __init__(self, folder, arguments):
        self.process = None
        if arguments.returner != "saltern":
            return
        repository = pathlib.Path(__file__).parent.parent
        single_file = [sys.executable, str(repository / "salt/single_file.py")]
        returners = pathlib.Path(folder) / "returners"
        returners.mkdir()
        (returners / "saltern.py").write_bytes(subprocess.check_output(single_file))
        config = pathlib.Path(folder) / "saltern.yaml"
        config.write_text(f"""
state_dir: {folder}/state
sources: {{salt: {{returner: {{bind: "ipc://{folder}/r"}}}}}}
sinks: {{file: {{rawfile_json: {{filename: "{folder}/events"}}}}}}
""")
        command = [arguments.saltern, "--config", str(config), "run"]
        self.process = subprocess.Popen(command, stdout=sys.stderr)
        wait_for("saltern's start", lambda: os.path.exists(f"{folder}/r"), 30)

    def cpu(self):
        return cpu_clock.seconds(self.process.pid) if self.process else 0

    def end(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)


def master_config(folder, arguments):
    config = (pathlib.Path(__file__).parent / "peers/salt-master.conf").read_text()
    user = "root" if os.getuid() == 0 else os.environ.get("USER", "salt")
    filled = {"FOLDER": folder, "RETURNER": arguments.returner, "QUEUE": arguments.queue,
              "PORT": arguments.port, "USER": user}
    lines = [line for line in config.splitlines() if not line.startswith("#")]
    for index, line in enumerate(lines):
        for name, value in filled.items():
            line = line.replace(name, str(value))
        lines[index] = line
    path = pathlib.Path(folder) / "master"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def made(number):
    """A state return of 3 KB."""
    jid = f"2026112200{number:010}"
    states = {}
    for run in range(8):
        states[f"pkg_|-web_{run}_|-nginx_|-installed"] = {
            "name": "nginx",
            "changes": {},
            "result": True,
            "comment": "All specified packages are already installed. " * 3,
            "__sls__": "web.nginx",
            "__run_num__": run,
            "start_time": f"23:33:36.{run * 7919:06}",
            "duration": run * 1.618 + 0.25,
            "__id__": f"web_{run}",
        }
    data = {"cmd": "_return", "id": "web-1", "success": True, "return": states, "retcode": 0}
    data |= {"jid": jid, "fun": "state.apply", "fun_args": ["web.nginx"], "user": "root"}
    return f"salt/job/{jid}/ret/web-1", data


def captured(path):
    """Tags and data of the events of a bus, as they stand in a file."""
    with open(path, "rb") as file:
        for frame in msgpack.Unpacker(file, raw=False, strict_map_key=False):
            # As bytes, or as text where the packer knew of no bytes.
            body = frame["body"]
            tag, _, payload = body.partition(b"\n\n")
            yield tag.decode(), msgpack.unpackb(payload, raw=False, strict_map_key=False)


def wait_for(what, done, seconds):
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            sys.exit(f"salt_event_return: {what} took more than {seconds} s")
        time.sleep(0.05)


def event_return_process(master):
    """The process that has called itself EventReturn (setproctitle)."""
    for child in psutil.Process(master.pid).children(recursive=True):
        try:
            if "EventReturn" in " ".join(child.cmdline()):
                return child
        except psutil.Error:
            # It has ended meanwhile.
            continue
    return None


def measure(folder, arguments):
    events, queue = arguments.events, arguments.queue
    config = master_config(folder, arguments)
    is_table = arguments.returner in SCHEMAS
    store = Table(arguments.returner, arguments.port) if is_table else File(folder)
    daemon = Daemon(folder, arguments)
    # Read before, so that reading does not slow the sending down.
    made_here = map(made, itertools.count())
    offered = list(itertools.islice(captured(arguments.capture), events)) if arguments.capture else made_here
    offered = itertools.cycle(offered) if arguments.capture else offered
    program = os.path.join(os.path.dirname(sys.executable), "salt-master")
    # Some releases print on their own; standard output is for the row.
    master = subprocess.Popen([program, "-c", folder, "-l", "error"], stdout=sys.stderr)
    try:
        wait_for("the master's start", lambda: event_return_process(master), 60)
        pull = f"{folder}/sock/master_event_pull.ipc"
        wait_for("the event bus", lambda: os.path.exists(pull), 60)
        options = salt.config.master_config(config)
        with salt.utils.event.get_master_event(options, options["sock_dir"]) as bus:
            # Until it subscribes, events are nobody's. A full queue makes it write.
            deadline = time.monotonic() + 120
            while not store.stored():
                if time.monotonic() > deadline:
                    sys.exit(f"salt_event_return: nothing is stored; see {folder}/log")
                for tag, data in itertools.islice(offered, max(queue, 1)):
                    bus.fire_event(data, tag)
                time.sleep(0.5)
            time.sleep(2)
            process, have = event_return_process(master), store.stored()
            before, before_ours, began = cpu_clock.seconds(process.pid), daemon.cpu(), time.monotonic()
            for tag, data in itertools.islice(offered, events):
                bus.fire_event(data, tag)
        # What is left in a queue that is not full stays there.
        want = have + events - max(queue, 1)
        wait_for("storing", lambda: store.stored() >= want, 300)
        done = store.stored() - have
        seconds = time.monotonic() - began
        memory = process.memory_info().rss
        ours = (daemon.cpu() - before_ours) * 1e6 / done
        used = cpu_clock.seconds(process.pid) - before
        return done, used * 1e6 / done, done / seconds, memory, ours
    finally:
        daemon.end()
        master.send_signal(signal.SIGTERM)
        try:
            master.wait(20)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(master.pid).children(recursive=True):
                child.kill()
            master.kill()
            master.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--returner", choices=["rawfile_json", "saltern", *SCHEMAS], default="rawfile_json")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--queue", type=int, default=1000)
    parser.add_argument("--capture")
    parser.add_argument("--saltern", default="target/release/saltern")
    parser.add_argument("--numbers", action="store_true", help="print events, CPU, rate and memory instead of a row")
    arguments = parser.parse_args()
    if arguments.events < 2 * arguments.queue:
        parser.error("fewer than two queues full of events: nothing would be known of the last one")
    folder = tempfile.mkdtemp(prefix="salt-er-")
    try:
        done, cost, rate, memory, ours = measure(folder, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    version = salt.version.__version__
    beside = f" and {ours:.0f} µs in saltern" if arguments.returner == "saltern" else ""
    if arguments.numbers:
        print(done, cost, rate, memory)
        return
    print(f"| Salt {version}, EventReturn with {arguments.returner}, queue {arguments.queue} "
          f"| {cost:.0f} µs CPU an event{beside}, {rate:.0f} events/s ({done} events) | | | |")


if __name__ == "__main__":
    main()
