#!/usr/bin/env bash
# Runs a fuzz target: scripts/fuzz.sh [TARGET] [SECONDS]. Without a target: all of them, one after
# the other; SECONDS are of CPU time and 60 by default. What a run has learned stays in fuzz/corpus,
# and an input that breaks something in fuzz/artifacts. Needs cargo-fuzz (cargo install cargo-fuzz).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_rust
cargo fuzz --version >/dev/null 2>&1 || die "cargo-fuzz is not installed: cargo install cargo-fuzz"
# Coverage is a matter of the compiler that only its nightly releases admit to without this.
export RUSTC_BOOTSTRAP=1
seconds=${2:-60}
if [ -n "${1:-}" ]; then targets=("$1"); else mapfile -t targets < <(cargo fuzz list); fi

# Files to begin with: the tests', the documentation's examples and, where they are, those of the
# corpus beside the checkout.
seeds() {
    local dir=$1 from
    mkdir -p "$dir"
    # What earlier runs have found, for the formats that no other file of the repository has.
    [ ! -d "fuzz/seeds/$2" ] || cp "fuzz/seeds/$2"/* "$dir"
    case $2 in
        pattern)
            printf 'a*b?[c-e]\\*\nab/dd*' >"$dir/seed-1"
            printf '[^a-z]*\n0' >"$dir/seed-2"
            ;;
        csv)
            printf 'id,name,at\n1,"a, ""b""\nc",2024-01-02 03:04:05\n007,,\n' >"$dir/seed-1"
            ;;
        conninfo)
            printf "host=a port=5432 password='it''s \\\\ x' dbname = d" >"$dir/seed-1"
            printf 'postgresql://u:p%%20q@[::1]:5433,b/d?sslmode=require&host=/tmp' >"$dir/seed-2"
            ;;
        notification)
            printf '{"version":1,"resync":true}' >"$dir/seed-1"
            printf '{"version":1,"generation":7,"changes":[{"connection":"a","status":"error","previous":null,"time":"2026-01-01T00:00:00Z","event":12,"error":"x","health":"lost"}]}' >"$dir/seed-2"
            ;;
        settings)
            printf 'database = "postgres://h/d"\nconfig = ["a", "b"]\nhub {\n  writers = 4\n  keepalive = "1m"\n}\nhealth {\n  interval = "5s"\n}\nhttp {\n  listen = "127.0.0.1:1"\n}\n' >"$dir/seed-1"
            ;;
        steampipe_json) for from in tests/spc/*.json; do cp "$from" "$dir/$(basename "$from")"; done ;;
        json) for from in tests/spc/*.json; do cp "$from" "$dir/$(basename "$from")"; done ;;
        yaml) for from in tests/spc/*.y*ml; do cp "$from" "$dir/$(basename "$from")"; done ;;
        *)
            for from in tests/spc/*.spc config/*.spc config/conf.d/*.spc ../shared/corpus/spc/*.spc; do
                [ ! -f "$from" ] || cp "$from" "$dir/$(basename "$from")"
            done
            ;;
    esac
}

# Seconds of CPU that the children of this shell have used, put into `used`. (In a shell of its own,
# as $(…) is one, `times` would know nothing of them.)
used=0
count_used() {
    times >"$times"
    used=$(tail -n 1 "$times" | awk '{ for (n = 1; n <= 2; n++) { split($n, t, /[ms]/); s += t[1] * 60 + t[2] } printf "%d", s }')
}
times=$(mktemp)
trap 'rm -f "$times"' EXIT

for target in "${targets[@]}"; do
    say "$target"
    cargo fuzz build --sanitizer none --debug-assertions "$target"
    program=fuzz/target/$(rustc -vV | sed -n 's/^host: //p')/release/$target
    seeds "fuzz/corpus/$target" "$target"
    mkdir -p "fuzz/artifacts/$target"
    options=(-artifact_prefix="fuzz/artifacts/$target/" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1)
    case $target in pattern | csv | conninfo | notification) ;; *) options+=(-dict=fuzz/spc.dict) ;; esac
    log=fuzz/artifacts/$target.log
    : >"$log"
    count_used
    began=$used
    while left=$((seconds - used + began)); [ "$left" -gt 0 ]; do
        "$program" "${options[@]}" -max_total_time=$((left < 300 ? left : 300)) "fuzz/corpus/$target" 2>>"$log" || {
            tail -n 40 "$log"
            die "$target: the input is in fuzz/artifacts/$target"
        }
        count_used
    done
    runs=$(awk '/^stat::number_of_executed_units/ { n += $2 } END { print n }' "$log")
    say "$target: $runs runs in $((used - began)) s of CPU, $(grep -o 'cov: [0-9]* ft: [0-9]* corp: [0-9]*' "$log" | tail -n 1)"
done
