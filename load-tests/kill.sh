#!/bin/sh
# The long version of the kill test: 300 times the daemon is killed under load and started again;
# what it had read 10 ms before must be in the store. Wants a machine with little else to do.
set -eu
cd "$(dirname "$0")/.."
export SALTERN_KILL_ROUNDS="${SALTERN_KILL_ROUNDS:-300}"
export SALTERN_KILL_GRACE_MS="${SALTERN_KILL_GRACE_MS:-10}"
exec cargo test --release --test it -- --nocapture spill::invariant_3_kill_9
