#!/usr/bin/env python3
"""Runs `cargo test`, and each test that failed once more, alone.

    tests/run.py [ARGUMENT OF cargo test]...

A test that fails both times fails the run. A test that passes the second time does not: it is listed
at the end as a flake to be found. The output of both runs is kept in target/failed-tests. The last
line says how many passed and how many failed.

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
LIMIT = 1800

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
    first = folder / f"{name}.txt"
    code, counted, tests = run(command, first)
    passed = counted
    failed, flakes = [], []
    if code != 0 and not tests:
        says(f"{name} ended with {code} and no list of what failed: it is run again whole")
        code, passed, tests = run(command, folder / f"{name}.again.txt")
        (failed if code else flakes).append(f"{label(name)} (the whole program)")
    else:
        for test in tests:
            says(f"{label(name)}: {test} failed and is run again, alone")
            again = folder / f"{name}.{test.replace('::', '.')}.again.txt"
            alone = [command[0], test, "--exact", "--nocapture", "--include-ignored"]
            # A name that matches no test ends well too, and nothing has passed.
            if run(alone, again) == (0, 1, []):
                passed += 1
                flakes.append(f"{label(name)}: {test}")
            else:
                failed.append(f"{label(name)}: {test}")
    if not failed and not flakes:
        first.unlink()
    with (folder / "results").open("a") as results:
        line = {"passed": passed, "failed": failed, "flakes": flakes}
        results.write(json.dumps(line) + "\n")
    return 101 if failed else 0


def run(command, output):
    """Runs a program and shows what it says while it says it. Gives its exit code, how many tests
    passed, and the names of those that failed."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:

        def show():
            with output.open("wb") as file:
                while data := os.read(child.stdout.fileno(), 1 << 16):
                    file.write(data)
                    file.flush()
                    sys.stdout.buffer.write(data)
                    sys.stdout.flush()

        shown = threading.Thread(target=show, daemon=True)
        shown.start()
        try:
            code = child.wait(LIMIT)
        except subprocess.TimeoutExpired:
            says(f"{Path(command[0]).name} has not ended after {LIMIT} seconds and is killed")
            child.kill()
            code = child.wait()
        # A program that crashed may leave one behind that holds the pipe open.
        shown.join(10)
    text = output.read_text(errors="replace")
    results = list(RESULT.finditer(text))
    if not results:
        return code, 0, []
    _, _, failures = text[: results[-1].start()].rpartition("\nfailures:\n")
    names = re.findall(r"^    (\S.*)$", failures, re.MULTILINE)
    passed, failed = map(int, results[-1].groups())
    # A list that does not fit the number is none: what failed is not known.
    return code, passed, names if len(names) == failed else []


def label(name):
    return name.rpartition("-")[0] or name


def says(text):
    print(f"\ntests/run.py: {text}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:2] == ["--program"]:
        sys.exit(program(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(main(sys.argv[1:]))
