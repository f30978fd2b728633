#!/usr/bin/env python3
"""Runs `cargo test`, and each test that failed once more, alone.

    tests/run.py [ARGUMENT OF cargo test]...

A test that fails both times fails the run. A test that passes the second time does not: it is listed
at the end as a flake to be found. The output of both runs is kept in target/failed-tests. The last
lines name the slowest tests and say how many passed and how many failed.

The program `it` runs as several processes at once, a lane each: what starts the same heavy servers
shares a lane, where it waits for its turn, while the others go on.

Cargo starts the test programs through this file (it is their `runner`), so that a second run has the
folder and the environment of the first.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Seconds after which a test program is taken to hang. It is killed, and that is a failure.
LIMIT = 3600

# The lanes of the program `it`: which tests, by a pattern that is searched in their path, and how many
# of them at once. The first that fits takes a test. Masters wait more than they compute: one at a
# time they take twenty minutes, longer than all else.
LANES = [
    ("masters", r"^(salt_\w+|jobs|systemd_unit)::", 2),
    ("kafka", r"kafka|^(alerts|secrets)::", 1),
    ("clickhouse", r"clickhouse|chdb", 1),
    ("others", r"", 2),
]

# How many of the slowest tests are named.
SLOWEST = 10

RESULT = re.compile(r"^test result: (?:ok|FAILED)\. (\d+) passed; (\d+) failed;", re.MULTILINE)


def main(arguments):
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    folder = Path(target).absolute() / "failed-tests"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # A list of strings is written in TOML as it is in JSON.
    runner = json.dumps([sys.executable, __file__, "--program", str(folder)], ensure_ascii=False)
    cargo = [os.environ.get("CARGO", "cargo"), "test", "--no-fail-fast"]
    cargo += ["--config", f"target.'cfg(all())'.runner={runner}"]
    code = subprocess.run([*cargo, *arguments], check=False).returncode

    results = folder / "results"
    if not results.exists():
        print("no test was run", file=sys.stderr)
        return code or 1
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    failed = [test for line in lines for test in line["failed"]]
    flakes = [test for line in lines for test in line["flakes"]]
    summary = ""
    if code != 0 and not failed:
        summary += f"cargo test failed (exit code {code}) where no test program did; see above\n"
    for headline, tests in [
        ("Passed alone, the second time; flakes to be found:", flakes),
        ("Failed twice:", failed),
    ]:
        if tests:
            summary += "\n".join([headline, *(f"    {test}" for test in tests)]) + "\n"
    slowest = sorted((time for line in lines for time in line["times"]), reverse=True)[:SLOWEST]
    if len(slowest) == SLOWEST:
        summary += "Slowest:\n"
        summary += "".join(f"{seconds:9.1f} s {test}\n" for seconds, test in slowest)
    if code == 0 and not any(line["passed"] for line in lines):
        summary += "no test was run; is that the name of any?\n"
        code = 1
    if failed or flakes:
        summary += f"What they said is in {folder}\n"
    summary += f"{sum(line['passed'] for line in lines)} passed, {len(failed)} failed\n"
    (folder / "summary").write_text(summary)
    print(f"\n{summary}", end="")
    return code


def program(folder, command):
    """Runs a test program, and what failed in it again; its exit code is that of the second runs."""
    path = Path(command[0])
    if path.parent.name != "deps":
        # The examples in the documentation: rustdoc judges them.
        os.execv(path, command)
    name = path.name
    timed = ["-Zunstable-options", "--report-time"]
    # Only a compiler of every night gives the times unasked.
    os.environ["RUSTC_BOOTSTRAP"] = "1"
    lanes = lanes_of(command) if label(name) == "it" else {}
    runs = [Run(folder / f"{name}.{lane}.txt", [*command, *more, *timed]) for lane, more in lanes.items()]
    runs = runs or [Run(folder / f"{name}.txt", [*command, *timed])]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    passed, failed, flakes, times = 0, [], [], []
    for first in runs:
        times += [(seconds, f"{label(name)}: {test}") for seconds, test in first.times]
        counted, tests, complaints = first.passed, first.failed, len(failed) + len(flakes)
        if first.code != 0 and not tests:
            says(f"{name} ended with {first.code} and no list of what failed: it is run again whole")
            again = Run(first.output.with_suffix(".again.txt"), first.command).done()
            counted, tests = again.passed, again.failed
            (failed if again.code else flakes).append(f"{label(name)} (the whole program)")
        else:
            for test in tests:
                says(f"{label(name)}: {test} failed and is run again, alone")
                output = folder / f"{name}.{test.replace('::', '.')}.again.txt"
                alone = [command[0], test, "--exact", "--nocapture", "--include-ignored"]
                again = Run(output, alone).done()
                # A name that matches no test ends well too, and nothing has passed.
                if (again.code, again.passed, again.failed) == (0, 1, []):
                    counted += 1
                    flakes.append(f"{label(name)}: {test}")
                else:
                    failed.append(f"{label(name)}: {test}")
        passed += counted
        if len(failed) + len(flakes) == complaints:
            first.output.unlink()
    with (folder / "results").open("a") as results:
        line = {"passed": passed, "failed": failed, "flakes": flakes, "times": times}
        results.write(json.dumps(line) + "\n")
    return 101 if failed else 0


def lanes_of(command):
    """The arguments for each lane of a program that has tests in it."""
    listing = subprocess.run([*command, "--list"], capture_output=True, text=True, check=False)
    lanes = {}
    for test in re.findall(r"^(\S+): test$", listing.stdout, re.MULTILINE):
        lane, threads = next((lane, n) for lane, pattern, n in LANES if re.search(pattern, test))
        lanes.setdefault(lane, ["--exact", f"--test-threads={threads}"]).append(test)
    return lanes


class Run(threading.Thread):
    """A run of a program, which is shown while it goes on: its exit code, how many tests passed, the
    names of those that failed, and how long each took."""

    def __init__(self, output, command):
        super().__init__()
        self.output, self.command = output, command
        self.code, self.passed, self.failed, self.times = None, 0, [], []

    def done(self):
        self.run()
        return self

    def run(self):
        with subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:

            def show():
                with self.output.open("wb") as file:
                    for line in child.stdout:
                        file.write(line)
                        file.flush()
                        # In one piece: others write too.
                        sys.stdout.buffer.write(line)
                        sys.stdout.flush()

            shown = threading.Thread(target=show, daemon=True)
            shown.start()
            try:
                self.code = child.wait(LIMIT)
            except subprocess.TimeoutExpired:
                says(f"{Path(self.command[0]).name} has not ended after {LIMIT} seconds and is killed")
                child.kill()
                self.code = child.wait()
            # A program that crashed may leave one behind that holds the pipe open.
            shown.join(10)
        self.judge(self.output.read_text(errors="replace"))

    def judge(self, text):
        times = re.findall(r"^test (\S+) .*<([0-9.]+)s>$", text, re.MULTILINE)
        self.times = [(float(seconds), test) for test, seconds in times]
        results = list(RESULT.finditer(text))
        if not results:
            return
        _, _, failures = text[: results[-1].start()].rpartition("\nfailures:\n")
        names = re.findall(r"^    (\S.*)$", failures, re.MULTILINE)
        self.passed, failed = map(int, results[-1].groups())
        # A list that does not fit the number is none: what failed is not known.
        self.failed = names if len(names) == failed else []


def label(name):
    return name.rpartition("-")[0] or name


def says(text):
    print(f"\ntests/run.py: {text}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:2] == ["--program"]:
        sys.exit(program(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(main(sys.argv[1:]))
