#!/bin/sh
# Builds the release, runs the scenarios and prints a table in Markdown (`make load`).
#
# usage: load-tests/run.sh [--rounds N]     the scenarios, and Salt's EventReturn beside them
#        load-tests/run.sh build            time of a cold release build, in a folder of its own
set -eu
cd "$(dirname "$0")/.."

if [ "${1:-}" = build ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    cargo fetch --locked
    began=$(date +%s)
    CARGO_TARGET_DIR="$folder" cargo build --release --locked --offline --package saltern
    echo "cold release build: $(($(date +%s) - began)) s on $(nproc) cores"
    exit
fi

cargo build --release --locked --workspace --bins
failed=0
"${CARGO_TARGET_DIR:-target}/release/saltern-load" report \
    --saltern "${CARGO_TARGET_DIR:-target}/release/saltern" "$@" || failed=1

spill=$(mktemp -d)
"${CARGO_TARGET_DIR:-target}/release/saltern-load" spill --folder "$spill/spill" || failed=1
rm -rf "$spill"

jobs=$(mktemp -d)
"${CARGO_TARGET_DIR:-target}/release/saltern-load" jobs --folder "$jobs/jobs" || failed=1
rm -rf "$jobs"

# Salt's own, on the same machine, where tests/servers/install.sh has put it.
cache=${SALTERN_TEST_CACHE:-$HOME/.cache/saltern-tests}
for version in 3006.28 3008.3; do
    python=$cache/salt-$version/bin/python
    if [ ! -x "$python" ]; then
        echo "without Salt $version: tests/servers/install.sh installs it" >&2
        continue
    fi
    for queue in 1000 0; do
        # What Salt says on its way is of no interest unless it fails.
        log=$(mktemp)
        "$python" load-tests/salt_event_return.py --queue "$queue" 2>"$log" || { cat "$log" >&2; failed=1; }
        rm -f "$log"
    done
    folder=$(mktemp -d)
    "$python" load-tests/salt_local_cache.py --folder "$folder/cache" || failed=1
    rm -rf "$folder"
done
exit "$failed"
