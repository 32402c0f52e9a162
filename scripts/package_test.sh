#!/usr/bin/env bash
# Called by scripts/package.sh: the life of the package on a clean root, in mount and process
# namespaces of its own.
set -euo pipefail
. scripts/lib.sh

base=$1 deb=$2 later=$3 root=$4
[ $$ = 1 ] || die "Start scripts/package.sh --test."
archives=$PWD/target/package/archives
mkdir -p "$archives/partial"

say "a clean root"
tar -C "$root" -xf "$base"
mount -t proc proc "$root/proc"
mkdir -p "$root/dev/shm"
mount -t tmpfs tmpfs "$root/dev/shm"
mount --bind "$archives" "$root/var/cache/apt/archives"
cp /etc/resolv.conf "$root/etc/resolv.conf"
chmod 755 "$root"
# No package starts its service here, and Postgres creates no cluster.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
mkdir -p "$root/etc/postgresql-common"
echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.conf"
echo 'Binary::apt::APT::Keep-Downloaded-Packages "true";' >"$root/etc/apt/apt.conf.d/keep"
cp "$deb" "$root/spcd.deb"
cp "$later" "$root/later.deb"

inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
# A service's environment, without the service manager.
as_service() { inside setpriv --reuid=spcd --regid=spcd --init-groups env SHOP_HOST=/tmp SHOP_PORT=5432 "$@"; }
expect() {
    [ "$2" = "$3" ] || die "$1: expected
$3
and found
$2"
}

say "install"
inside apt-get update >/dev/null
inside apt-get install -y --no-install-recommends /spcd.deb systemd postgresql >/dev/null 2>"$root/apt.log" || die "$(cat "$root/apt.log")"
expect "owners and modes" "$(inside stat -c '%n %U:%G %a' /usr/bin/spcd /etc/spcd/conf.d /etc/spcd/conf.d/examples.spc /etc/spcd/spcd.hcl /var/lib/spcd)" \
    "/usr/bin/spcd root:root 755
/etc/spcd/conf.d root:spcd 750
/etc/spcd/conf.d/examples.spc root:spcd 640
/etc/spcd/spcd.hcl root:spcd 640
/var/lib/spcd spcd:spcd 755"
expect "the version" "spcd $(dpkg-deb -f "$deb" Version | sed 's/-.*//')" "$(inside spcd --version)"
for file in man/man1/spcd.1.gz man/man1/spcd-wait.1.gz bash-completion/completions/spcd zsh/vendor-completions/_spcd \
    fish/vendor_completions.d/spcd.fish doc/spcd/copyright doc/spcd/README.md doc/spcd/docs/spc.md; do
    [ -s "$root/usr/share/$file" ] || die "/usr/share/$file is missing"
done
inside bash -n /usr/share/bash-completion/completions/spcd

expect "what is commented out says nothing" "$(inside spcd check | tail -n 1)" "1 file, 0 connections: 0 errors, 0 warnings"
sed '/^# connection/,/^# }/s/^# \?//' "$root/etc/spcd/conf.d/examples.spc" >"$root/tmp/examples.spc"
expect "and with its comment signs removed it is right, but for its credentials" \
    "$(inside spcd check /tmp/examples.spc 2>&1 | grep '^error' | sort -u)" \
    "$(printf 'error: the credential `%s` is not available: $CREDENTIALS_DIRECTORY is not set: spcd was not started with credentials\n' sales wiki)"

say "the units"
verify=$(systemd-analyze verify --root="$root" spcd.service spcd@north.service 2>&1) || die "$verify"
expect "systemd-analyze verify" "$verify" ""
for unit in spcd.service spcd@north.service; do
    systemd-analyze security --offline=true --root="$root" "$unit" --no-pager | tail -n 1
done

say "the demo's files, as the packaged user"
bin=$(ls -d "$root"/usr/lib/postgresql/*/bin)
bin=${bin#"$root"}
postgres() { inside setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
postgres "$bin/initdb" -D /tmp/source -U shop -A trust --no-sync >/dev/null
postgres "$bin/pg_ctl" -D /tmp/source -l /tmp/source.log -s -w start -o "-k /tmp -c listen_addresses= -c fsync=off"
postgres "$bin/createdb" -h /tmp -U shop shop
postgres "$bin/pgbench" -q -i -h /tmp -U shop shop 2>/dev/null
install -m 640 config/conf.d/shop.spc "$root/etc/spcd/conf.d/"
chroot "$root" chown root:spcd /etc/spcd/conf.d/shop.spc
as_service spcd run 2>"$root/tmp/log" &
tries=0
until [ -n "$(as_service spcd status 2>/dev/null)" ]; do
    [ $((tries += 1)) -lt 300 ] || die "$(cat "$root/tmp/log")"
    sleep 0.2
done
as_service spcd wait
as_service spcd status
# By the service's user, and by root, who becomes it.
sql='SELECT count(*) FROM shop.pgbench_accounts'
expect "the service's user reads" "$(as_service spcd query --output csv "$sql")" "count
100000"
expect "root reads" "$(inside env SHOP_HOST=/tmp SHOP_PORT=5432 spcd query --output csv "$sql")" "count
100000"
expect "everything is the service's" "$(inside find /var/lib/spcd ! -user spcd)" ""
inside env SHOP_HOST=/tmp SHOP_PORT=5432 spcd doctor

say "a full disk"
# Room for a cluster, and for the 16 MB of a new segment of its write-ahead log.
mkdir "$root/mnt/state"
mount -t tmpfs -o size=96m,mode=755 tmpfs "$root/mnt/state"
chroot "$root" chown spcd /mnt/state
elsewhere() { inside env SPCD_STATE_DIR=/mnt/state "$@"; }
elsewhere spcd migrate >/dev/null
dd if=/dev/zero of="$root/mnt/state/fill" bs=1M 2>/dev/null || true
expect "it is said" "$(elsewhere spcd migrate 2>&1 | grep -o 'only 0 MB are free there: make room')" "only 0 MB are free there: make room"
rm "$root/mnt/state/fill"
expect "and nothing is lost" "$(elsewhere spcd migrate)" "up to date"
umount "$root/mnt/state"
rmdir "$root/mnt/state"

say "upgrade"
echo '# kept' >>"$root/etc/spcd/spcd.hcl"
inside apt-get install -y --no-install-recommends /later.deb >/dev/null 2>"$root/apt.log" || die "$(cat "$root/apt.log")"
expect "the new version" "$(inside dpkg-query -W -f '${Version}' spcd)" "$(dpkg-deb -f "$later" Version)"
expect "a changed setting" "$(tail -n 1 "$root/etc/spcd/spcd.hcl")" "# kept"
expect "the running daemon goes on" "$(as_service spcd query --output csv "$sql")" "count
100000"
kill -TERM "$(cat "$root/var/lib/spcd/cluster/daemon.lock")"
wait

say "remove"
inside apt-get remove -y spcd >/dev/null 2>&1
[ ! -e "$root/usr/bin/spcd" ] || die "the program is still there"
[ -s "$root/etc/spcd/conf.d/shop.spc" ] && [ -s "$root/etc/spcd/spcd.hcl" ] || die "the configuration is gone"
[ -e "$root/var/lib/spcd/cluster/data/PG_VERSION" ] || die "the private Postgres is gone"
inside apt-get install -y --no-install-recommends /later.deb >/dev/null 2>&1
expect "and back, with all that was there" "$(as_service spcd query --output csv "$sql")" "count
100000"

say "purge"
rm "$root/etc/spcd/conf.d/shop.spc"
inside apt-get purge -y spcd 2>&1 | grep 'stays in /var/lib/spcd' || die "nothing is said of the private Postgres"
[ -e "$root/var/lib/spcd/cluster/data/PG_VERSION" ] || die "the private Postgres is gone"
inside apt-get install -y --no-install-recommends /spcd.deb >/dev/null 2>&1
as_service spcd destroy --yes
inside apt-get purge -y spcd >/dev/null 2>&1
expect "what is left" "$(inside find / -xdev -name '*spcd*' ! -path '/proc/*' ! -path '/usr/lib/postgresql/*' ! -name '*.deb' ! -path '/usr/share/doc/*')" ""
say "docs/operations.md, as it is written"
postgres "$bin/createdb" -h /tmp -U shop sales
postgres "$bin/psql" -qh /tmp -U shop sales -c "CREATE ROLE reader LOGIN PASSWORD 'a secret'; CREATE TABLE orders (id integer); GRANT SELECT ON orders TO reader"
postgres "$bin/pg_ctl" -D /tmp/source -s -m fast -w stop
echo 'host all reader all scram-sha-256' >"$root/tmp/source/pg_hba.conf"
postgres "$bin/pg_ctl" -D /tmp/source -l /tmp/source.log -s -w start -o "-k /tmp -p 5433 -c listen_addresses=127.0.0.1 -c fsync=off"
rm -rf "$root/etc/postgresql-common/createcluster.conf" "$root/var/lib/spcd" "$root/etc/spcd"
cp "$deb" "$root/root/spcd_0.1.0-1_amd64.deb"
cp "$later" "$root/root/spcd_0.1.0-1.later_amd64.deb"
# There is no service manager here. This does what the page needs of one.
cat >"$root/usr/local/bin/systemctl" <<'SHIM'
#!/bin/bash
set -e
verb=$1 unit=${!#}
pid=/run/$unit.pid
case $verb in
start | enable | restart)
    [ "$verb" != restart ] || "$0" stop "$unit"
    instance=${unit#spcd@} env=()
    [ "$instance" = "$unit" ] || env=(SPCD_CONFIG=/etc/spcd/$instance/conf.d SPCD_STATE_DIR=/var/lib/spcd/$instance SPCD_INSTANCE=$instance)
    credentials=/run/credentials/$unit.service
    install -d -o spcd -m 700 "$credentials"
    sed -n 's/^LoadCredential=//p' /etc/systemd/system/"$unit".service.d/*.conf 2>/dev/null | while IFS=: read -r name file; do
        install -o spcd -m 400 "$file" "$credentials/$name"
    done
    setpriv --reuid=spcd --regid=spcd --init-groups env HOME=/var/lib/spcd CREDENTIALS_DIRECTORY="$credentials" \
        "${env[@]}" spcd run </dev/null >>/var/log/"$unit".log 2>&1 &
    echo $! >"$pid"
    ;;
stop)
    kill -TERM "$(cat "$pid")"
    while kill -0 "$(cat "$pid")" 2>/dev/null; do sleep 0.1; done
    ;;
reload) kill -HUP "$(cat "$pid")" ;;
status) kill -0 "$(cat "$pid")" ;;
daemon-reload) ;;
esac
SHIM
chmod 755 "$root/usr/local/bin/systemctl"
awk '/^```sh/ { on = 1; next } /^```/ { on = 0 } on' docs/operations.md | sed "s/pg_createcluster 15/pg_createcluster $(basename "$(dirname "$bin")")/" >"$root/root/operations.sh"
[ "$(wc -l <"$root/root/operations.sh")" -gt 60 ] || die "the page has lost its commands"
inside env -C /root PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root bash -ex operations.sh >"$root/operations.log" 2>&1 ||
    die "$(tail -n 40 "$root/operations.log" "$root"/var/log/spcd*.log)"
cp "$root/operations.log" target/package/operations.log
expect "what is left of it" "$(inside find / -xdev -name '*spcd*' ! -path '/proc/*' ! -path '/usr/lib/postgresql/*' ! -name '*.deb' ! -path '/run/*' \
    ! -path '/var/log/*' ! -path '/var/backups/*' ! -path '/tmp/*')" ""
say "the package installs, runs, upgrades and purges"
