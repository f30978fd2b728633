#!/bin/bash
# Builds the release and measures it (`make load`). Everything is printed in Markdown; with all of it, also
# into target/load/report.md, with the plots beside it.
#
# usage: load-tests/run.sh                      all but the soak, a quarter of an hour or so
#        load-tests/run.sh report [--rounds N]  the targets: CPU, bytes a second, memory, size, start
#        load-tests/run.sh plot                 cost against the rate of events and against the number of sinks
#        load-tests/run.sh latency              from the bus to the sink's write, another sink being down
#        load-tests/run.sh faults               sinks down, slow, flapping; bursts; restarts; a slow disk
#        load-tests/run.sh estate [--minions N] what metrics of an estate cost, and a scrape of them
#        load-tests/run.sh spill | jobs         the spill and the job cache by themselves
#        load-tests/run.sh soak [--minutes N]   a long run with faults: does anything grow
#        load-tests/run.sh build                time of a cold release build, in a folder of its own
#
# What else stands behind a word goes to `saltern-load`: `target/release/saltern-load WORD --help`.
set -euo pipefail
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
target=${CARGO_TARGET_DIR:-target}
load=$target/release/saltern-load
results=$target/load
mkdir -p "$results"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# one WORD ARGUMENT...: one measurement, with what each of them needs.
one() {
    word=$1
    shift
    case $word in
        spill) "$load" spill --folder "$scratch/spill" "$@" ;;
        jobs)
            "$load" jobs --folder "$scratch/jobs" "$@" || return
            # Salt's own, on the same machine, where tests/servers/install.sh has put it.
            python=${SALTERN_TEST_CACHE:-$HOME/.cache/saltern-tests}/salt-3008.3/bin/python
            [ ! -x "$python" ] || "$python" load-tests/salt_local_cache.py --folder "$scratch/cache"
            ;;
        plot | latency | soak) "$load" "$word" --saltern "$target/release/saltern" --folder "$results" "$@" ;;
        *) "$load" "$word" --saltern "$target/release/saltern" "$@" ;;
    esac
}

if [ $# -gt 0 ]; then
    one "$@"
    exit
fi

all() {
    failed=0
    for word in report plot latency faults estate spill jobs; do
        printf '\n## %s\n\n' "$word"
        one "$word" || failed=1
    done
    return "$failed"
}
all | tee "$results/report.md"
