#!/bin/bash
# How fast rows get into a real ClickHouse 18.16: by saltern, from a capture of a bus, and by
# clickhouse-client, which inserts the very same rows in the same format (JSONEachRow) from files, a file
# a table. Both have the same tables and views; server and client share the machine. saltern is measured as
# it comes, and as one sets it up beside a server: two writers, nothing compressed, as clickhouse-client does.
#
# usage: load-tests/clickhouse.sh [EVENTS [ROUNDS]]        prints a table in Markdown
set -euo pipefail
cd "$(dirname "$0")/.."
events=${1:-40000} rounds=${2:-3}

cache=${SALTERN_TEST_CACHE:-$HOME/.cache/saltern-tests}
run=$cache/clickhouse-18.16/run
[ -x "$run" ] || { echo "no $run; run tests/servers/install.sh" >&2; exit 1; }
cargo build --release --locked --workspace --bins
bin=${CARGO_TARGET_DIR:-target}/release

folder=$(mktemp -d)
server='' http=$((20000 + RANDOM % 6000)) native=$((26000 + RANDOM % 6000))
trap '[ -z "$server" ] || kill "$server"; wait; rm -rf "$folder"' EXIT

cat >"$folder/users.xml" <<'END'
<yandex><profiles><default></default></profiles>
<users><default><password></password><networks><ip>127.0.0.1</ip></networks>
<profile>default</profile><quota>default</quota></default></users>
<quotas><default></default></quotas></yandex>
END
cat >"$folder/config.xml" <<END
<yandex><logger><level>warning</level><log>$folder/server.log</log></logger>
<http_port>$http</http_port><tcp_port>$native</tcp_port><listen_host>127.0.0.1</listen_host>
<path>$folder/data/</path><tmp_path>$folder/tmp/</tmp_path><user_files_path>$folder/files/</user_files_path>
<users_config>users.xml</users_config><default_profile>default</default_profile>
<default_database>default</default_database><timezone>UTC</timezone>
<mark_cache_size>5368709120</mark_cache_size></yandex>
END
"$run" clickhouse-server --config-file="$folder/config.xml" >"$folder/server.out" 2>&1 &
server=$!
client() { "$run" clickhouse-client --port "$native" "$@"; }
for _ in $(seq 100); do
    client --query 'SELECT 1' >/dev/null 2>&1 && break
    sleep 0.1
done

# The events of a bus in a file.
"$bin/saltern-load" bus --socket "$folder/bus" --events "$events" >/dev/null &
bus=$!
python3 - "$folder/bus" "$folder/capture" <<'END'
import socket, sys, time
reader = socket.socket(socket.AF_UNIX)
while reader.connect_ex(sys.argv[1]):
    time.sleep(0.05)
with open(sys.argv[2], "wb") as capture:
    while block := reader.recv(1 << 20):
        capture.write(block)
END
wait "$bus"

# config DATABASE [SETTINGS [WRITERS]]: saltern's configuration for a database.
config() {
    cat >"$folder/$1.yaml" <<END
state_dir: $folder/state-$1
http: {listen: '127.0.0.1:0'}
log: {level: warn}
sources: {recording: {replay: {path: $folder/capture}}}
sinks: {store: {clickhouse: {url: 'http://127.0.0.1:$http', database: $1, ${2:-}}, writers: ${3:-1}}}
END
}
config salt
config reference
tables='salt_events salt_returns salt_states'

# truncate DATABASE: all of its rows go, and its tables stay.
truncate() {
    for table in $(client --query "SELECT name FROM system.tables WHERE database = '$1' AND engine LIKE '%MergeTree' AND name != 'salt_schema'"); do
        client --query "TRUNCATE TABLE $1.$table"
    done
}
rows() {
    total=0
    for table in $tables; do
        total=$((total + $(client --query "SELECT count() FROM $1.$table")))
    done
    echo "$total"
}
saltern() { "$bin/saltern" run --config "$folder/salt.yaml"; }
reference() {
    for table in $tables; do
        client --query "INSERT INTO reference.$table FORMAT JSONEachRow" <"$folder/$table.json"
    done
}

for database in salt reference; do
    "$bin/saltern" schema clickhouse --apply --config "$folder/$database.yaml" >/dev/null
done
# Once before, for the files.
saltern
for table in $tables; do
    client --query "SELECT * FROM salt.$table FORMAT JSONEachRow" >"$folder/$table.json"
done

TIMEFORMAT='%R %U %S'
echo "| saltern with | round | saltern, rows/s | clickhouse-client, rows/s | ratio | saltern, µs CPU an event | clickhouse-client |"
echo "|---|---|---|---|---|---|---|"
for setup in 'lz4 1' 'none 2'; do
    config salt "compression: ${setup% *}" "${setup#* }"
    for round in $(seq "$rounds"); do
        truncate salt
        truncate reference
        rm -rf "$folder/state-salt"
        ours=$({ time saltern 2>"$folder/saltern.log"; } 2>&1)
        theirs=$({ time reference 2>"$folder/client.log"; } 2>&1)
        echo "$round $(rows salt) $(rows reference) $ours $theirs" |
            awk -v events="$events" -v setup="\`compression: ${setup% *}\`, \`writers: ${setup#* }\`" '{
                if ($2 != $3) { printf "%d rows of saltern, %d of clickhouse-client\n", $2, $3; exit 1 }
                printf "| %s | %d | %.0f | %.0f | %.2f | %.1f | %.1f |\n", setup, $1, $2 / $4, $3 / $7,
                    $7 / $4, ($5 + $6) / events * 1e6, ($8 + $9) / events * 1e6
            }'
    done
done
