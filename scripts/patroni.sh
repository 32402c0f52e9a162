#!/usr/bin/env bash
# A Patroni cluster on this machine: etcd, and two Postgres nodes, `one` and `two`, of which one is the
# primary. For the tests, and for trying spcd with it by hand:
#
#   scripts/patroni.sh [DIRECTORY [PORT PORT PORT PORT PORT PORT]]
#
# The directory must be empty or missing, and is not removed. The ports are etcd's for clients and for
# peers, Postgres' of each node, and Patroni's REST API of each node. It runs in the foreground and ends
# all of it on SIGINT or SIGTERM. The role `postgres` is the superuser and needs no password: anyone on
# this machine can connect, so this is for tests only.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

if [ "$(id -u)" = 0 ]; then
    # Postgres refuses root, and nothing here needs it.
    need_patroni || die "Patroni and etcd are not installed, and there are no packages of them."
    directory=${1:-$(mktemp -d --tmpdir patroni.XXXXXX)}
    mkdir -p "$directory"
    chown postgres: "$directory"
    shift || true
    exec setpriv --reuid=postgres --regid=postgres --clear-groups "$PWD/scripts/patroni.sh" "$directory" "$@"
fi
need_patroni || die "Patroni and etcd are not installed, and there are no packages of them."
directory=${1:-$(mktemp -d --tmpdir patroni.XXXXXX)}
mkdir -p "$directory"
cd "$directory"
shift || true
[ $# = 6 ] || set -- 23790 23800 25441 25442 28081 28082
etcd_port=$1 peer_port=$2 postgres_ports=("$3" "$4") api_ports=("$5" "$6")
bindir=${SPCD_TEST_BINDIR:-$(server_bindir)}

# A failover begins when the leader's key has expired: `ttl` seconds after Patroni last renewed it.
config() {
    local name=$1 postgres_port=$2 api_port=$3
    cat <<YAML
scope: spcd
name: $name
restapi: {listen: "127.0.0.1:$api_port", connect_address: "127.0.0.1:$api_port"}
etcd3: {host: "127.0.0.1:$etcd_port"}
bootstrap:
  dcs:
    ttl: 5
    loop_wait: 1
    retry_timeout: 2
    master_start_timeout: 0
    postgresql:
      use_pg_rewind: true
      parameters:
        max_connections: 100
        max_locks_per_transaction: 256
        shared_buffers: 16MB
        max_wal_size: 256MB
        fsync: "off"
        synchronous_commit: "off"
        full_page_writes: "on"
        log_line_prefix: "%m [%p] %q%u@%d %a "
  initdb: [{encoding: UTF8}, {locale: C.UTF-8}, {auth: trust}, data-checksums, no-sync]
  pg_hba: ["local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]
postgresql:
  listen: "127.0.0.1:$postgres_port"
  connect_address: "127.0.0.1:$postgres_port"
  data_dir: "$PWD/$name/data"
  bin_dir: "$bindir"
  pgpass: "$PWD/$name/pgpass"
  authentication:
    superuser: {username: postgres}
    replication: {username: postgres}
    rewind: {username: postgres}
  parameters: {unix_socket_directories: "$PWD/$name"}
YAML
}

# etcd's process, then Patroni's.
processes=()
end() {
    trap - EXIT INT TERM
    kill -CONT "${processes[@]}" 2>/dev/null || true
    # Patroni stops its Postgres when it is told to end, unless it was killed before.
    kill "${processes[@]:1}" 2>/dev/null || true
    local pid name
    # Not `wait`: in a trap that has interrupted another `wait` it may never return.
    for pid in "${processes[@]:1}"; do
        for _ in {1..100}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    done
    for name in one two; do
        pid=$(head -n 1 "$name/data/postmaster.pid" 2>/dev/null) || continue
        kill -QUIT "$pid" 2>/dev/null || true
    done
    # In order it would take seconds.
    kill -KILL "${processes[0]}" 2>/dev/null || true
}
trap end EXIT
trap 'exit 0' INT TERM

etcd --name=spcd --data-dir="$PWD/etcd" --logger=zap --unsafe-no-fsync \
    --listen-client-urls="http://127.0.0.1:$etcd_port" --advertise-client-urls="http://127.0.0.1:$etcd_port" \
    --listen-peer-urls="http://127.0.0.1:$peer_port" --initial-advertise-peer-urls="http://127.0.0.1:$peer_port" \
    --initial-cluster="spcd=http://127.0.0.1:$peer_port" >etcd.log 2>&1 &
processes+=($!)
for node in 0 1; do
    name=$([ $node = 0 ] && echo one || echo two)
    mkdir -p "$name"
    chmod 700 "$name"
    config "$name" "${postgres_ports[node]}" "${api_ports[node]}" >"$name/patroni.yml"
    patroni "$name/patroni.yml" >"$name/log" 2>&1 &
    processes+=($!)
    echo $! >"$name/pid"
done
say "postgres://postgres@127.0.0.1:${postgres_ports[0]},127.0.0.1:${postgres_ports[1]}/postgres"
wait
