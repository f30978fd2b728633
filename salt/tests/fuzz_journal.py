"""
The journal of Salt's side, with files in its folder that were damaged in any way: it opens, sends what
is whole, behind the damage too where the file has checksums, never what only looks like a record, and
takes new events. Needs the package on Python's path, but no Salt.

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
from saltext.saltern.segment import Segment

# No file here is longer, so nothing longer may be asked of the reader.
LONGEST = 1 << 16


def record(body):
    return len(body).to_bytes(4, "big") + body


def damaged(rng, data):
    """The data with some bytes changed, gone, or more; and which of its bytes that concerns."""
    where = rng.randrange(len(data) + 1)
    kind = rng.randrange(6)
    if kind == 0:
        return data[:where], (where, len(data))
    if kind == 1:
        gone = rng.randrange(9)
        return data[:where] + data[where + gone :], (where, where + gone)
    if kind == 2:
        return data[:where] + rng.randbytes(rng.randrange(9)) + data[where:], (where, where)
    if kind == 3:
        length = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)])
        return data[:where] + length.to_bytes(4, "big") + data[where + 4 :], (where, where + 4)
    if kind == 4:
        zeros = rng.randrange(200)
        return data[:where] + bytes(zeros) + data[where + zeros :], (where, where + zeros)
    return data, (len(data), len(data))


def body_of(rng):
    """Events, among them some that hold what looks like records."""
    kind = rng.randrange(8)
    if kind == 0:
        return Segment.new("").packed([b"forged"]) + b"x"
    if kind == 1:
        return record(b"forged") + b"x"
    return rng.randbytes(rng.choice([1, 2, 10, 300]))


def segment_of(rng, path, bodies):
    """Writes a damaged file of the newer version; returns the bodies that have to be sent."""
    segment = Segment.new(path)
    head = segment.head()
    data, (begin, end) = damaged(rng, head + segment.packed(bodies))
    with open(path, "wb") as file:
        file.write(data)
    whole = []
    at = len(head)
    for body in bodies:
        behind = at + len(segment.packed([body]))
        # Of a head that is damaged or moved nothing more is asked than to be harmless.
        is_touched = begin < behind and at < end or at < begin < behind
        if begin >= len(head) and not is_touched:
            whole.append(body)
        at = behind
    return whole


def one_round(rng, folder):
    whole = []
    written = [b"new"]
    has_old = False
    for number in range(rng.randrange(4)):
        bodies = [body_of(rng) for _ in range(rng.randrange(20))]
        if rng.randrange(4):
            written += bodies
            whole += segment_of(rng, os.path.join(folder, f"{number + 1:016}.events2"), bodies)
            continue
        has_old = True
        data, (intact, _) = damaged(rng, b"".join(map(record, bodies)))
        with open(os.path.join(folder, f"{number + 1:016}.events"), "wb") as file:
            file.write(data)
        at = 0
        for body in bodies:
            at += 4 + len(body)
            if at <= intact:
                whole.append(body)
    for name in ["x.events", ".events", "-1.events", "1e3.events2", "lock.events.old"]:
        if rng.randrange(8) == 0:
            with open(os.path.join(folder, name), "wb") as file:
                file.write(rng.randbytes(rng.randrange(40)))
    if rng.randrange(8) == 0:
        os.mkdir(os.path.join(folder, f"{9:016}.events2"))

    journal = Journal(folder, 1 << 20)
    journal.append([b"new"])
    sent = []
    parts = 0
    while not journal.is_empty():
        part = journal.part()
        sent += part.bodies
        journal.safe(part)
        parts += 1
        assert parts < 1000, "it sends the same part again and again"
    assert all(sent), "an empty event"
    assert sum(map(len, sent)) <= LONGEST, "more is sent than there is"
    assert sent[-1] == b"new", "the new event is not the last"
    if not has_old:
        assert set(sent) <= set(written), "what is sent was never written"
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
