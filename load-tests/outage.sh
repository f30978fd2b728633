#!/bin/sh
# The long version of the outage test: a sink is down for 9 million small events, half an hour at
# 5 000 a second sent as fast as they are read, and comes back; and the same with the sink up, for
# the other sink's lag and the memory side by side. Wants 6 GB in $TMPDIR, and gives them back.
set -eu
cd "$(dirname "$0")/.."
export SALTERN_OUTAGE_EVENTS="${SALTERN_OUTAGE_EVENTS:-9000000}"
export SALTERN_OUTAGE_SIDE_BY_SIDE=1
exec cargo test --release --test it -- --nocapture spill::invariant_2_and_6_an_outage
