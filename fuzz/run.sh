#!/bin/sh
# Runs all fuzz targets, one after the other, for so many minutes each; or those that are named. What
# one of them finds does not keep the others from running, but fails the whole.
#
# usage: fuzz/run.sh MINUTES [TARGET]...
set -eu
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
minutes=$1
shift
$cargo fuzz --version >/dev/null 2>&1 || {
    echo 'fuzz/run.sh: there is no cargo-fuzz; install it with: cargo install cargo-fuzz --locked' >&2
    exit 1
}
# The versions that saltern itself is built with.
cp Cargo.lock fuzz/Cargo.lock
# Without a sanitizer stable Rust will do, but for the flags that count which code was reached.
export RUSTC_BOOTSTRAP=1

[ $# -gt 0 ] || set -- journal $(cd fuzz/fuzz_targets && ls | sed 's/\.rs$//')
failed=
for target; do
    echo "fuzz/run.sh: $target, $minutes minutes"
    if [ "$target" = journal ]; then
        # Of the Salt side, which is Python.
        PYTHONPATH=salt/src python3 salt/tests/fuzz_journal.py --minutes "$minutes" ||
            failed="$failed $target"
        continue
    fi
    mkdir -p "fuzz/corpus/$target" "fuzz/seeds/$target"
    [ "$target" != framing ] || cp -n tests/captures/*.bus fuzz/corpus/framing/
    $cargo fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time=$((minutes * 60)) -timeout=25 -rss_limit_mb=1024 -print_final_stats=1 ||
        failed="$failed $target"
done
[ -z "$failed" ] || {
    echo "fuzz/run.sh: something was found by:$failed; see fuzz/artifacts" >&2
    exit 1
}
