#!/usr/bin/env python3
"""
Writes the returner and what it imports of its package as one file, for those who keep it in
``_returners`` rather than install the package:

    python3 salt/single_file.py > /srv/salt/_returners/saltern.py

Under the name of a returner of Salt's it stands for that one, and its lookups ask a sink of the
daemon first:

    python3 salt/single_file.py --as mysql --sink db > /srv/salt/_returners/mysql.py
"""

import argparse
import ast
import pathlib
import re
import sys

PACKAGE = pathlib.Path(__file__).parent / "src/saltext/saltern"
# Each needs those before it.
MODULES = [
    "errors.py",
    "stream.py",
    "over_zeromq.py",
    "connection.py",
    "segment.py",
    "journal.py",
    "outbox.py",
    "process.py",
    "returners/saltern.py",
]


def is_of_package(line: str) -> bool:
    return line.startswith("from saltext.saltern")


def of_form(form: str):
    def check(value: str) -> str:
        if not re.fullmatch(form, value):
            raise argparse.ArgumentTypeError(f"{value!r} cannot be a name")
        return value

    return check


def with_value(source: str, name: str, value: str) -> str:
    """The source with another text as the value of this name, which it sets once."""
    changed, times = re.subn(rf'(?m)^{name} = "[^"]*"$', f'{name} = "{value}"', source)
    if times != 1:
        raise SystemExit(f"single_file.py: {name} is set {times} times in {MODULES[-1]}")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the returner as one file.")
    named = {"metavar": "NAME", "dest": "name", "type": of_form("[A-Za-z_][A-Za-z0-9_]*")}
    parser.add_argument("--as", default="saltern", help="the name of the returner", **named)
    sink = of_form("(?![.])[A-Za-z0-9_.-]{1,64}")
    parser.add_argument(
        "--sink", metavar="NAME", type=sink, help="the sink that is asked first for jobs"
    )
    options = parser.parse_args()
    sources = [(PACKAGE / name).read_text(encoding="utf-8") for name in MODULES]
    sources[-1] = with_value(sources[-1], "__virtualname__", options.name)
    sources[-1] = with_value(sources[-1], "_SINK", options.sink or "")
    # The docstring of the last is that of the file: Salt shows it.
    docstring = ast.get_docstring(ast.parse(sources[-1]), clean=False)
    print(f'"""{docstring}"""\n\nfrom __future__ import annotations\n')
    for name, source in zip(MODULES, sources):
        print(f"\n# {name}\n")
        body = ast.parse(source).body
        # Behind the docstring and `from __future__ import annotations`.
        lines = source.splitlines()[body[1].end_lineno :]
        print("\n".join(line for line in lines if not is_of_package(line)).strip("\n"))


if __name__ == "__main__":
    sys.exit(main())
