#!/usr/bin/env bash
# Builds the Debian package, target/debian/spcd_*.deb, from a release build. With --test: also
# installs, runs, upgrades, removes and purges it on a clean root made by debootstrap, which needs
# root and Debian's archive. Complete on a fresh Debian with Rust.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_rust
need_packages dpkg-dev
tools=$PWD/target/tools
if [ ! -x "$tools/bin/cargo-deb" ]; then
    say "installing cargo-deb"
    cargo install --quiet --locked --debug --version 3.8.0 --root "$tools" cargo-deb
fi
PATH=$tools/bin:$PATH

say "building"
cargo build --quiet --release -p spcd
spcd=$PWD/target/release/spcd
rm -rf target/package/man
mkdir -p target/package/man
"$spcd" man target/package/man
"$spcd" completions bash >target/package/spcd.bash
"$spcd" completions zsh >target/package/_spcd
"$spcd" completions fish >target/package/spcd.fish
rm -f target/debian/spcd_*.deb
cargo deb --quiet -p spcd --no-build >/dev/null
deb=$(ls "$PWD"/target/debian/spcd_*.deb)
printf '%s: %d KB, the program in it %d KB\n' "${deb#"$PWD"/}" \
    $(($(stat -c %s "$deb") / 1024)) $(($(stat -c %s "$spcd") / 1024))

[ "${1-}" = --test ] || exit 0
[ "$(id -u)" = 0 ] || die "The test of the package needs root: it makes a root directory and changes into it."
need_packages debootstrap systemd
# The same again as a newer version, for the upgrade. cargo-deb removes what it made before.
cp "$deb" target/package/this.deb
cargo deb --quiet -p spcd --no-build --deb-version "$(dpkg-deb -f "$deb" Version).later" \
    --output target/package/later.deb >/dev/null
cp target/package/this.deb "$deb"
base=$PWD/target/package/base.tar
if [ ! -s "$base" ]; then
    say "debootstrap"
    made=$(mktemp -d "$PWD/target/package/base.XXXXXX")
    debootstrap --variant=minbase "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$made" >/dev/null
    tar -C "$made" -cf "$base.new" .
    mv "$base.new" "$base"
    rm -rf "$made"
fi
# In mount and process namespaces of its own, which end with it, and all that runs in them.
root=$(mktemp -d "$PWD/target/package/root.XXXXXX")
trap 'rm -rf "$root"' EXIT
unshare --mount --pid --fork --kill-child scripts/package_test.sh "$base" "$deb" target/package/later.deb "$root"
