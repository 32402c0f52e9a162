#!/usr/bin/env bash
# Measures, in a release build, against servers of its own. Without arguments: everything; else the
# named parts: language, planner, first_light, clients, cold_static (with cpu and drop), cold_dynamic,
# listeners, slow_sources, restart (with column_added and drop_many), aggregator, lanes, through_gateway,
# cold_gateway, mirror, for_each, one_wanted, one_file, queries, page, idle, probed, scale. Each takes less than three minutes, scale ten.
# SPCD_BENCH_DIVISOR=10 takes a tenth of the connections, to try a part out.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_rust
need_postgres
need_chromium
need_c_wrappers
cargo bench --quiet -p spcd --bench measure -- "$@"
