"""
The journal of Salt's side, with files in its folder that were damaged in any way: it opens, sends what
is whole in front of the damage, and takes new events. Needs the package on Python's path, but no Salt.

    fuzz_journal.py [--rounds N | --minutes M] [--seed S]
"""

import argparse
import logging
import os
import random
import sys
import tempfile
import time

from saltext.saltern.journal import Journal

# No file here is longer, so nothing longer may be asked of the reader.
LONGEST = 1 << 16


def record(body):
    return len(body).to_bytes(4, "big") + body


def damaged(rng, data):
    """The data with some bytes changed, gone, or more; and how much in front of that is as it was."""
    where = rng.randrange(len(data) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        return data[:where], where
    if kind == 1:
        gone = rng.randrange(9)
        return data[:where] + data[where + gone :], where
    if kind == 2:
        return data[:where] + rng.randbytes(rng.randrange(9)) + data[where:], where
    if kind == 3:
        length = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)])
        return data[:where] + length.to_bytes(4, "big") + data[where + 4 :], where
    return data, len(data)


def one_round(rng, folder):
    whole = []
    for number in range(rng.randrange(4)):
        bodies = [rng.randbytes(rng.choice([1, 2, 10, 300])) for _ in range(rng.randrange(20))]
        data, intact = damaged(rng, b"".join(map(record, bodies)))
        with open(os.path.join(folder, f"{number + 1:016}.events"), "wb") as file:
            file.write(data)
        at = 0
        for body in bodies:
            at += 4 + len(body)
            if at <= intact:
                whole.append(body)
    for name in ["x.events", ".events", "-1.events", "1e3.events", "lock.events.old"]:
        if rng.randrange(8) == 0:
            with open(os.path.join(folder, name), "wb") as file:
                file.write(rng.randbytes(rng.randrange(40)))
    if rng.randrange(8) == 0:
        os.mkdir(os.path.join(folder, f"{9:016}.events"))

    journal = Journal(folder, 1 << 20)
    journal.append([b"new"])
    sent = []
    parts = 0
    while any(segment.size for segment in journal._segments):
        part = journal.part()
        sent += part.bodies
        journal.safe(part)
        parts += 1
        assert parts < 1000, "it sends the same part again and again"
    assert all(sent), "an empty event"
    assert sum(map(len, sent)) <= LONGEST, "more is sent than there is"
    assert sent[-1] == b"new", "the new event is not the last"
    rest = iter(sent)
    assert all(body in rest for body in whole), "a whole event is not sent, or not in order"
    os.close(journal._file)
    journal._lock_file.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    # What is damaged is logged, which is right, and of no interest here.
    logging.disable()
    until = time.monotonic() + options.minutes * 60
    rounds = 0
    while rounds < options.rounds or time.monotonic() < until:
        seed = f"{options.seed}/{rounds}"
        with tempfile.TemporaryDirectory() as folder:
            try:
                one_round(random.Random(seed), folder)
            except BaseException:
                print(f"round {rounds} of --seed {options.seed}", file=sys.stderr)
                raise
        rounds += 1
    print(f"{rounds} rounds")


main()
