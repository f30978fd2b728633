#!/bin/sh
# Builds the release, runs the scenarios and prints a table in Markdown (`make load`).
#
# usage: load-tests/run.sh [--rounds N]     the scenarios
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
"${CARGO_TARGET_DIR:-target}/release/saltern-load" report \
    --saltern "${CARGO_TARGET_DIR:-target}/release/saltern" "$@"
