#!/usr/bin/env bash
# Runs random faults on real servers (tests/faults.rs) with new seeds for SECONDS (default 3600), from the
# seed FROM on, if it is given. Each seed that fails is printed with its steps; replay it with
# SPCD_FAULT_SEED=N cargo test -p spcd --test real -- promises_hold_through_random_faults
# Usage: scripts/soak.sh [SECONDS [FROM]]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_rust
need_postgres
need_c_wrappers

export SPCD_FAULT_SECONDS=${1:-3600} SPCD_FAULT_LIMIT=${SPCD_FAULT_LIMIT:-10}
[ -z "${2-}" ] || export SPCD_FAULT_SEED=$2
cargo test --package spcd --test real --quiet -- --ignored --exact faults::promises_hold_for_a_long_time
