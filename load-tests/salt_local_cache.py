"""Fills Salt's own `local_cache` with jobs and times what the job cache is asked.

    python salt_local_cache.py --folder DIR [--jobs 100000] [--minions 10]

for the Python of a Salt. Prints rows of the table that `saltern-load jobs` prints. The files are written as
`local_cache` writes them, but not by way of it, which would take hours.
"""

import argparse
import datetime
import os
import shutil
import time

import salt.config
import salt.payload
import salt.utils.jid
from salt.returners import local_cache

parser = argparse.ArgumentParser()
parser.add_argument("--folder", required=True, help="emptied")
parser.add_argument("--jobs", type=int, default=100_000)
parser.add_argument("--minions", type=int, default=10)
arguments = parser.parse_args()

opts = dict(salt.config.DEFAULT_MASTER_OPTS, cachedir=arguments.folder, hash_type="sha256")
local_cache.__opts__ = opts
shutil.rmtree(arguments.folder, ignore_errors=True)
root = os.path.join(arguments.folder, "jobs")
names = [f"web-{number}.example.com" for number in range(arguments.minions)]
packed_names = salt.payload.dumps(names)
packed_return = salt.payload.dumps({"return": "a" * 300, "retcode": 0, "success": True})
first = datetime.datetime(2026, 11, 1)


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


jids = []
for number in range(arguments.jobs):
    jid = (first + datetime.timedelta(seconds=number / 10)).strftime("%Y%m%d%H%M%S%f")
    jids.append(jid)
    folder = salt.utils.jid.jid_dir(jid, root, "sha256")
    os.makedirs(folder)
    load = {"cmd": "publish", "fun": "test.echo", "arg": ["x"], "tgt": "web-*", "tgt_type": "glob",
            "jid": jid, "ret": "", "user": "root"}
    write(os.path.join(folder, "jid"), jid.encode())
    write(os.path.join(folder, ".load.p"), salt.payload.dumps(load))
    write(os.path.join(folder, ".minions.p"), packed_names)
    for name in names:
        os.mkdir(os.path.join(folder, name))
        write(os.path.join(folder, name, "return.p"), packed_return)


def ask(what, rounds, question):
    times = []
    for _ in range(rounds):
        began = time.monotonic()
        question()
        times.append(time.monotonic() - began)
    print(f"| {what} | {min(times) * 1000:.1f}ms |", flush=True)


print(f"| local_cache | {arguments.jobs} jobs, {arguments.jobs * arguments.minions} returns |\n|---|---|")
blocks = sum(os.lstat(os.path.join(folder, name)).st_blocks
             for folder, folders, files in os.walk(arguments.folder) for name in folders + files)
print(f"| size on disk, MiB | {blocks * 512 >> 20} |")
middle = jids[len(jids) * 3 // 4]
ask("`get_load`", 5, lambda: local_cache.get_load(middle))
ask("`get_jid`", 5, lambda: local_cache.get_jid(middle))
ask("`get_jids` (`jobs.list_jobs`)", 3, local_cache.get_jids)
ask("`get_jids_filter` 50", 3, lambda: local_cache.get_jids_filter(50))
for jid in jids[: len(jids) // 2]:
    path = os.path.join(salt.utils.jid.jid_dir(jid, root, "sha256"), "jid")
    os.utime(path, (0, 0))
ask("forgetting half of it", 1, local_cache.clean_old_jobs)
