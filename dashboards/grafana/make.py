"""Writes the dashboards of this folder, each from a module in `source`. With `--check` it writes nothing and
fails if a file is not what it would write. Needs nothing but Python.
"""

import json
import pathlib
import sys

sys.dont_write_bytecode = True

from source import clickhouse, estate, kafka, pipeline

FOLDER = pathlib.Path(__file__).parent
stale = []
for module in (pipeline, estate, clickhouse, kafka):
    dashboard = module.DASHBOARD
    path = FOLDER / f"{dashboard['uid']}.json"
    text = json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        stale.append(path.name)
if stale:
    sys.exit(f"run dashboards/grafana/make.py: {', '.join(stale)} is not what it writes")
