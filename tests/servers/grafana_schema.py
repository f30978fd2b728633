"""Reads dashboards with Grafana's published models of their schema.

What the models do not know they drop: a dashboard is right if nothing of it is gone when it is written again.
"""

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard


def lost(path, ours, theirs):
    """The places of what is in `ours` and not in `theirs`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from lost(f"{path}.{key}", value, theirs[key])
            else:
                yield f"{path}.{key} is unknown"
    elif isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            yield f"{path} has {len(theirs)} entries of {len(ours)}"
        for place, (mine, yours) in enumerate(zip(ours, theirs)):
            yield from lost(f"{path}[{place}]", mine, yours)
    elif ours != theirs:
        yield f"{path} is {ours!r} and became {theirs!r}"


def mistakes(path):
    with open(path, encoding="utf-8") as file:
        ours = json.load(file)
    theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
    return [f"{path}: {place}" for place in lost("", ours, theirs)]


found = [mistake for path in sys.argv[1:] for mistake in mistakes(path)]
print("\n".join(found))
sys.exit(bool(found))
