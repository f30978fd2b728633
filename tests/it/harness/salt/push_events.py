"""Hands events to `event_return: saltern` as Salt's EventReturn process does.

Started as `push_events.py CONFIG FIRST END` by a Python that has Salt; CONFIG is a master's. Reads a
number a line, makes so many calls more, each with one or more of the events from FIRST on, and prints
the number of the next event. After those before END there are no more.
"""

import logging
import sys

import salt.config
import salt.minion

logging.basicConfig(stream=sys.stderr, level=logging.INFO)
first, end = int(sys.argv[2]), int(sys.argv[3])
opts = salt.config.master_config(sys.argv[1])
# As in salt.utils.event.EventReturn.
returners = salt.minion.MasterMinion({**opts, "file_client": "local"}).returners


def event(number):
    text = f"event {number} of {end}, ä \N{SNOWFLAKE}"
    data = {"number": number, "text": text, "raw": b"\xff\x00", "_stamp": "2026-11-21T23:33:36.123456"}
    return {"tag": f"push/{number}", "data": data}


for line in sys.stdin:
    for _ in range(int(line)):
        # One event or many, as `event_return_queue` has it.
        until = min(first + (1 if first % 3 == 0 else 50), end)
        returners["saltern.event_return"]([event(number) for number in range(first, until)])
        first = until
    print(first, flush=True)
