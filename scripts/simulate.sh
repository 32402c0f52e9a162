#!/usr/bin/env bash
# Runs the scheduler and the planner through N random schedules in virtual time (default 100,000; about
# 100,000 a minute on one core), from the seed FROM on. A seed that fails prints its smallest script.
# Usage: scripts/simulate.sh [N [FROM]]
set -euo pipefail
cd "$(dirname "$0")/.."

export SPCD_SIMULATE=${1:-100000} SPCD_SIMULATE_FROM=${2:-0}
cargo test --package spcd-core --release --quiet --test simulator
