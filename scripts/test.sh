#!/usr/bin/env bash
# Everything that must hold before a change is taken: format, lints, all tests on the newest minor of
# the installed Postgres, and the core of them as a role without superuser rights, on the minor before,
# and on the other majors. Complete on a fresh Debian with Rust: it installs what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

# What must hold on each version of Postgres.
core=(
    aggregate::same_named_tables_are_merged_and_follow_their_members
    aggregate::what_a_source_loses_or_retypes_goes_through_its_aggregators
    by_hand::what_is_moved_renamed_or_replaced_by_hand_is_made_again_beside_it
    by_hand::whatever_is_altered_by_hand_is_mended_and_what_people_made_stays
    comments::comments_of_the_source_come_change_and_go_with_it
    crash::another_daemon_waits_and_takes_over_also_from_one_that_hangs
    csv::a_file_is_a_table_with_its_types
    csv::new_changed_and_removed_files_are_noticed
    destroy::all_that_spcd_made_goes_and_nothing_else
    health::a_probe_through_the_connections_own_server_keeps_no_session
    health::an_import_that_failed_is_tried_again_by_itself
    migrate::two_daemons_at_once_go_on_from_every_earlier_number
    pass::a_removed_block_takes_its_schema_and_a_disabled_one_keeps_its_row
    pass::a_saved_file_becomes_tables_that_can_be_read
    pass::a_view_survives_what_happens_to_its_table
    pass::drift_is_found_and_mended_at_the_next_look
    pass::nothing_differs_nothing_is_written
    pass::options_credentials_and_schema_change_in_place
    search_path::direct_members_find_connections_by_table_name
    wait::it_returns_when_what_was_named_is_ready_and_the_tables_are_there
)

need_rust
need_postgres
newest_postgres
need_other_servers
command -v openssl >/dev/null || need_packages openssl
need_pgbouncer
need_sshd
need_nginx
need_promtool
need_drivers
need_wrappers
need_c_wrappers
need_patroni || {
    say "SKIPPED: tests::patroni, since there are no packages of Patroni and etcd here"
    export SPCD_TEST_WITHOUT_PATRONI=1
}
need_faketime || {
    say "SKIPPED: tests::clock, since there is no package of libfaketime here"
    export SPCD_TEST_WITHOUT_FAKETIME=1
}
need_chromium
need_cargo_deny
for part in rustfmt clippy; do
    cargo "${part/rust/}" --version >/dev/null 2>&1 || rustup component add "$part"
done

say "format"
cargo fmt --all --check
say "lints"
cargo clippy --workspace --all-targets --quiet -- -D warnings
cargo deny --log-level error check licenses bans sources
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
say "20,000 simulated schedules"
scripts/simulate.sh 20000
say "tests"
cargo test --workspace --quiet "$@"
core_tests() {
    cargo test -p spcd --test real --quiet -- --exact "${core[@]}" | tee target/core.log
    # A test that was renamed would be left out silently.
    grep -q "^test result: ok. ${#core[@]} passed" target/core.log || die "Not all ${#core[@]} core tests ran."
}
say "core tests as a role without superuser rights"
SPCD_TEST_ROLE=keeper core_tests
for bindir in $(other_bindirs); do
    say "core tests on $("$bindir/postgres" --version)"
    SPCD_TEST_BINDIR=$bindir core_tests
done
# Since Postgres 16, CREATEROLE gives fewer rights.
say "core tests on $("$bindir/postgres" --version), as a role without superuser rights"
SPCD_TEST_ROLE=keeper SPCD_TEST_BINDIR=$bindir core_tests
