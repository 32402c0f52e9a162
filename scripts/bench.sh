#!/usr/bin/env bash
# Measures, in a release build, against servers of its own. Without arguments: everything; else the
# named parts (language, first_light, clients).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_rust
need_postgres
cargo bench --quiet -p spcd --bench measure -- "$@"
