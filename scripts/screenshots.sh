#!/usr/bin/env bash
# Takes the pictures of the page that docs/ shows.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_rust
need_postgres
need_chromium
SPCD_SCREENSHOTS=docs cargo test --quiet -p spcd --test real -- --ignored page::screenshots
