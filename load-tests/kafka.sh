#!/bin/sh
# The sink `kafka` beside Kafka's own ProducerPerformance: the same broker, the same messages, acks=all,
# idempotent, lz4. Prints a table in Markdown. Wants the release build and tests/servers/install.sh.
#
# usage: load-tests/kafka.sh [ROUNDS]      default: 3
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-3}
events=${SALTERN_LOAD_EVENTS:-200000}
build=${CARGO_TARGET_DIR:-target}/release
jars=${SALTERN_TEST_CACHE:-$HOME/.cache/saltern-tests}/kafka-4.1.0/libs
[ -d "$jars" ] || { echo "there is no $jars; run tests/servers/install.sh" >&2; exit 1; }

folder=$(mktemp -d)
broker=
trap 'kill -9 $broker 2>/dev/null || true; rm -rf "$folder"' EXIT
port=${SALTERN_LOAD_PORT:-19092}
quiet=-Dorg.slf4j.simpleLogger.defaultLogLevel=error
load-tests/broker.py "$folder" "$jars" "$port" >"$folder/log" 2>&1 &
broker=$!
with=
tool() {
    class=$1
    shift
    $with java -Xmx1g "$quiet" -cp "$jars/*" "org.apache.kafka.tools.$class" "$@"
}
until tool TopicCommand --bootstrap-server "127.0.0.1:$port" --list >/dev/null 2>&1; do
    kill -0 "$broker" || { cat "$folder/log" >&2; exit 1; }
done
topic() {
    tool TopicCommand --bootstrap-server "127.0.0.1:$port" --create --topic "$1" --partitions 4 >/dev/null
}

# Messages as saltern sends them, for the reference to send.
topic sample
"$build/saltern-load" measure --saltern "$build/saltern" --events 5000 --spill memory \
    --sink "kafka: {brokers: ['127.0.0.1:$port'], topic: sample}" >/dev/null
tool consumer.ConsoleConsumer --bootstrap-server "127.0.0.1:$port" --topic sample --from-beginning \
    --max-messages 5000 >"$folder/messages" 2>/dev/null

echo "| round | what | events/s | CPU an event |"
echo "|---|---|---|---|"
round=0
while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    topic "reference-$round"
    line=$(with="load-tests/cpu_clock.py $folder/cpu" tool ProducerPerformance --topic "reference-$round" --num-records "$events" --throughput -1 \
        --payload-file "$folder/messages" --producer-props "bootstrap.servers=127.0.0.1:$port" acks=all \
        enable.idempotence=true compression.type=lz4 batch.size=1000000 linger.ms=5 buffer.memory=67108864 | tail -n 1)
    reference=$(echo "$line" | sed -n 's/.* sent, \([0-9.]*\) records.*/\1/p')
    echo "| $round | ProducerPerformance | $reference | $(awk "{printf \"%.1f µs, start of Java included\", \$1 * 1e6 / $events}" "$folder/cpu") |"
    for more in "" ", transactional: true"; do
        name=saltern-$round${more:+-transactional}
        topic "$name"
        line=$("$build/saltern-load" measure --saltern "$build/saltern" --events "$events" --spill durable \
            --sink "kafka: {brokers: ['127.0.0.1:$port'], topic: $name$more}" | sed -n 1p)
        rate=$(echo "$line" | sed -n 's/.* \([0-9]*\) events\/s stored.*/\1/p')
        cpu=$(echo "$line" | sed -n 's/.*: \([0-9.]*\) µs CPU.*/\1/p')
        dropped=$(echo "$line" | sed -n 's/.*(\([0-9]*\) dropped).*/\1/p')
        ratio=$(awk "BEGIN {printf \"%.2f\", $rate / $reference}")
        echo "| $round | saltern, bus to \`kafka\`, \`durable\`${more:+, in transactions} | $rate ($ratio), $dropped dropped | $cpu µs |"
    done
done
