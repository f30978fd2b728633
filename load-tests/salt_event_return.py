#!/usr/bin/env python3
"""What Salt's own EventReturn costs: CPU of that process for each 3 KB event, with rawfile_json.

usage: SALT_VENV/bin/python load-tests/salt_event_return.py [--events N] [--queue N]

Starts a master of the Salt that this Python has, with `event_return: rawfile_json` and the given
`event_return_queue`, fires state returns from one process, waits until all are in the file and
prints a row of a Markdown table. The master is ended by its pid, its folder removed.
tests/servers/install.sh makes the environments (SALTERN_TEST_CACHE, salt-<version>).
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import salt.config
import salt.utils.event
import salt.version

SIZE = 3000


def master_config(folder, queue):
    config = {
        "user": "root" if os.getuid() == 0 else os.environ.get("USER", "salt"),
        "root_dir": folder,
        "pki_dir": f"{folder}/pki",
        "sock_dir": f"{folder}/sock",
        "cachedir": f"{folder}/cache",
        "log_file": f"{folder}/log",
        "interface": "127.0.0.1",
        "publish_port": 24505,
        "ret_port": 24506,
        "worker_threads": 1,
        "event_return": "rawfile_json",
        "event_return_queue": queue,
        "rawfile_json.filename": f"{folder}/events",
        "file_client": "local",
    }
    path = f"{folder}/master"
    with open(path, "w", encoding="utf-8") as file:
        for key, value in config.items():
            file.write(f"{key}: {value}\n")
    return path


def state_return(number):
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


def wait_for(what, done, seconds):
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            sys.exit(f"salt_event_return: {what} took more than {seconds} s")
        time.sleep(0.05)


def event_return_process(master):
    """The process that has called itself EventReturn (setproctitle)."""
    for child in psutil.Process(master.pid).children(recursive=True):
        if "EventReturn" in " ".join(child.cmdline()):
            return child
    return None


def lines(path):
    try:
        with open(path, "rb") as file:
            return sum(b"/ret/web-1" in line for line in file)
    except FileNotFoundError:
        return 0


def cpu(process):
    times = process.cpu_times()
    return times.user + times.system


def measure(folder, events, queue):
    config = master_config(folder, queue)
    program = os.path.join(os.path.dirname(sys.executable), "salt-master")
    master = subprocess.Popen([program, "-c", folder, "-l", "error"])
    try:
        wait_for("the master's start", lambda: event_return_process(master), 60)
        pull = f"{folder}/sock/master_event_pull.ipc"
        wait_for("the event bus", lambda: os.path.exists(pull), 60)
        options = salt.config.master_config(config)
        stored = f"{folder}/events"
        with salt.utils.event.get_master_event(options, options["sock_dir"]) as bus:
            # Until it subscribes, events are nobody's. A full queue makes it write.
            number = 10_000_000
            while not lines(stored):
                for _ in range(max(queue, 1)):
                    tag, data = state_return(number)
                    bus.fire_event(data, tag)
                    number += 1
                time.sleep(0.5)
            time.sleep(2)
            process, have = event_return_process(master), lines(stored)
            before, began = cpu(process), time.monotonic()
            for number in range(events):
                tag, data = state_return(number)
                bus.fire_event(data, tag)
        # What is left in a queue that is not full stays there.
        want = have + events - max(queue, 1)
        wait_for("storing", lambda: lines(stored) >= want, 120)
        done = lines(stored) - have
        seconds = time.monotonic() - began
        return done, (cpu(process) - before) * 1e6 / done, done / seconds
    finally:
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
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--queue", type=int, default=1000)
    arguments = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="salt-er-")
    try:
        done, cost, rate = measure(folder, arguments.events, arguments.queue)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    version = salt.version.__version__
    print(f"| Salt {version}, EventReturn with rawfile_json, queue {arguments.queue} "
          f"| {cost:.0f} µs CPU an event, {rate:.0f} events/s ({done} events) | | | |")


if __name__ == "__main__":
    main()
