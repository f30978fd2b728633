#!/usr/bin/env python3
"""
Writes the returner and what it imports of its package as one file, for those who keep it in
``_returners`` rather than install the package:

    python3 salt/single_file.py > /srv/salt/_returners/saltern.py
"""

import ast
import pathlib
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


def main() -> None:
    sources = [(PACKAGE / name).read_text(encoding="utf-8") for name in MODULES]
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
