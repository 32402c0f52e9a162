#!/usr/bin/env bash
# Everything that must hold before a change is taken: format, lints, all tests. Complete on a
# fresh Debian with Rust: it installs what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_rust
need_postgres
command -v openssl >/dev/null || need_packages openssl
need_pgbouncer
need_sshd
need_nginx
need_promtool
need_drivers
need_wrappers
need_chromium
for part in rustfmt clippy; do
    cargo "${part/rust/}" --version >/dev/null 2>&1 || rustup component add "$part"
done

say "format"
cargo fmt --all --check
say "lints"
cargo clippy --workspace --all-targets --quiet -- -D warnings
say "tests"
cargo test --workspace --quiet "$@"
