#!/usr/bin/env bash
# The main job, in under a minute after the build: a source, a private hub, files, tables, a query,
# and a client that waits for a change and is woken. Complete on a fresh Debian with Rust. Leaves
# nothing running and nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_rust
need_postgres
bin=$(server_bindir)
say "building"
cargo build --quiet -p spcd
cargo build --quiet -p spcd-client --example follow
spcd=$PWD/target/debug/spcd
follow=$PWD/target/debug/examples/follow

dir=$(mktemp -d /tmp/spcd-demo.XXXXXX)
chmod 755 "$dir"
daemon='' source=''
finish() {
    [ -z "$daemon" ] || { kill "$daemon" && wait "$daemon"; } 2>/dev/null || true
    [ -z "$source" ] || run "$bin/pg_ctl" -D "$dir/source/data" -m fast -s stop || true
    rm -rf "$dir"
}
trap finish EXIT

# Postgres refuses to run as root: then the source runs as another user, as the hub does.
run() { "$@"; }
mkdir "$dir/source"
if [ "$(id -u)" = 0 ]; then
    chown postgres "$dir/source"
    run() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
fi
export SHOP_HOST=$dir/source SHOP_PORT=5432

say "a source: a Postgres of its own, filled by pgbench -i"
run "$bin/initdb" -D "$dir/source/data" -U shop -A trust --no-sync >/dev/null
source=yes
run "$bin/pg_ctl" -D "$dir/source/data" -l "$dir/source/log" -s -w start \
    -o "-k $SHOP_HOST -c listen_addresses= -c fsync=off"
"$bin/createdb" -h "$SHOP_HOST" -U shop shop
"$bin/pgbench" -q -i -h "$SHOP_HOST" -U shop shop 2>/dev/null

say "the files"
mkdir "$dir/conf.d"
cp config/conf.d/*.spc "$dir/conf.d/"
cat "$dir"/conf.d/shop.spc
export SPCD_CONFIG=$dir/conf.d SPCD_STATE_DIR=$dir/state
"$spcd" check

say "spcd run: creates a private hub and keeps it true to the files"
"$spcd" run 2>"$dir/log" &
daemon=$!
tries=0
until [ -n "$("$spcd" status 2>/dev/null)" ]; do
    kill -0 "$daemon" 2>/dev/null && [ $((tries += 1)) -lt 300 ] || { cat "$dir/log"; exit 1; }
    sleep 0.1
done
"$spcd" wait
"$spcd" status

url=$("$spcd" url)
say "a query over the source, by any client: psql \"\$(spcd url)\""
"$bin/psql" "$url" -c 'SELECT count(*), sum(abalance) FROM shop.pgbench_accounts'

say "a client waits for a connection that is not there yet; then its block is saved"
"$follow" "$url" archive >"$dir/follow" &
client=$!
until grep -qs waiting "$dir/follow"; do
    kill -0 "$client" || exit 1
    sleep 0.01
done
began=$(date +%s%N)
sed -n '/^connection "shop"/,/^}/p' config/conf.d/shop.spc | sed 's/"shop" {/"archive" {/' >"$dir/conf.d/archive.spc"
wait "$client"
took=$((($(date +%s%N) - began) / 1000000))
cat "$dir/follow"
echo "from save to woken: $took ms"

say "the history"
"$bin/psql" "$url" -c 'SELECT time::time(3), connection_name, previous, status FROM spcd.connection_event ORDER BY id'
