//! Options that make queries of Postgres sources fast: spcd sets them, and a user's value stays.

use crate::support::hub::{made_by, postgres_with, serving, until};
use crate::support::{Database, Spcd, query, shared, value};

/// The options of the server `a` and of its tables.
const OPTIONS: &str = "SELECT s.srvname, array_to_string(ARRAY(
        SELECT o FROM unnest(s.srvoptions) o WHERE o ~ '^(async_capable|extensions|fetch_size)=' ORDER BY 1), ' ')
    FROM pg_foreign_server s WHERE s.srvname = 'a'
    UNION ALL SELECT c.relname, array_to_string(ARRAY(
        SELECT o FROM unnest(f.ftoptions) o WHERE o ~ '^fetch_size='), ' ')
    FROM pg_foreign_table f JOIN pg_class c ON c.oid = f.ftrelid
    WHERE c.relnamespace = 'a'::regnamespace ORDER BY 1";

/// What a pass may change. Fingerprints may be recorded again.
const VERSIONS: &str = "SELECT 's', s.xmin::text FROM pg_foreign_server s UNION ALL
    SELECT f.ftrelid::regclass::text, f.xmin::text FROM pg_foreign_table f UNION ALL
    SELECT connection_name, concat_ws(' ', status, time_changed) FROM spcd.connection_state s UNION ALL
    SELECT connection_name, a.tuning::text FROM spcd.applied a ORDER BY 1, 2";

/// A narrow, a wide and an empty table. ANALYZE counts pages and rows. Autovacuum would count values out
/// of line at any time.
const TABLES: &str = "
    CREATE TABLE narrow (id integer, note text)
        WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off);
    INSERT INTO narrow SELECT n, 'n' FROM generate_series(1, 20000) n;
    CREATE TABLE wide (id integer, note text)
        WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off);
    INSERT INTO wide SELECT n, repeat(md5(n::text), 60) FROM generate_series(1, 500) n;
    CREATE TABLE fixed (id integer, at timestamptz);
    CREATE VIEW seen AS SELECT * FROM wide;
    ANALYZE narrow, wide";

async fn options(hub: &Database) -> String {
    let rows = query(&hub.url, OPTIONS).await;
    let row = |row: &Vec<String>| row.join(" ").trim_end().to_owned();
    rows.iter().map(row).collect::<Vec<_>>().join("\n")
}

/// Asks the sources again, and checks that a second time changes nothing.
async fn refreshed(hub: &Database, spcd: &Spcd) -> String {
    let done = spcd.spcd(&["refresh", "--wait"]);
    assert_eq!(done.code, 0, "{done:?}");
    let options = self::options(hub).await;
    let before = query(&hub.url, VERSIONS).await;
    let done = spcd.spcd(&["refresh", "--wait"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(query(&hub.url, VERSIONS).await, before);
    assert_eq!(spcd.spcd(&["plan"]).stdout, "nothing to do\n");
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn each_table_is_fetched_by_the_width_of_its_rows() {
    let hub = shared().database().await;
    let source = made_by(TABLES).await;
    let spcd = serving(&hub, &source, &["a"]).await;
    let first = options(&hub).await;
    assert_eq!(
        first,
        "a async_capable=true\nfixed fetch_size=50000\nnarrow fetch_size=10000\n\
         seen fetch_size=1000\nwide fetch_size=2000"
    );
    assert_eq!(refreshed(&hub, &spcd).await, first);

    // The rows become wider: by less than a factor of 2, and by more.
    query(
        &source.url,
        "UPDATE narrow SET note = 'four'; ANALYZE narrow;
         INSERT INTO wide SELECT n, string_agg(md5(n::text || x), '')
         FROM generate_series(501, 1000) n, generate_series(1, 240) x GROUP BY n",
    )
    .await;
    let later = refreshed(&hub, &spcd).await;
    assert!(later.contains("narrow fetch_size=10000"), "{later}");
    // Only VACUUM counts the values that are stored out of line, none or many.
    for table in ["narrow", "wide"] {
        query(&source.url, &format!("VACUUM ANALYZE {table}")).await;
    }
    let later = refreshed(&hub, &spcd).await;
    assert!(later.contains("narrow fetch_size=50000"), "{later}");
    assert!(!later.contains("wide fetch_size=2000"), "{later}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_file_or_a_user_sets_wins() {
    let hub = shared().database().await;
    let source = made_by(TABLES).await;
    let spcd = serving(&hub, &source, &["a"]).await;
    let defaults = options(&hub).await;
    let write = |more: &str| {
        spcd.write("a.spc", &postgres_with("a", &source, more));
        let done = spcd.spcd(&["wait"]);
        assert_eq!(done.code, 0, "{done:?}");
    };

    // A user's values stay over passes, refreshes and other changes.
    let by_user = "ALTER SERVER a OPTIONS (SET async_capable 'false');
                   ALTER FOREIGN TABLE a.wide OPTIONS (SET fetch_size '77')";
    query(&hub.url, by_user).await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    let theirs = defaults
        .replace("async_capable=true", "async_capable=false")
        .replace("wide fetch_size=2000", "wide fetch_size=77");
    assert_eq!(options(&hub).await, theirs);
    assert_eq!(refreshed(&hub, &spcd).await, theirs);
    write("  application_name = \"x\"\n");
    assert_eq!(refreshed(&hub, &spcd).await, theirs);

    // What a user drops comes back with the next import.
    query(
        &hub.url,
        "ALTER SERVER a OPTIONS (DROP async_capable);
         ALTER FOREIGN TABLE a.wide OPTIONS (DROP fetch_size)",
    )
    .await;
    assert_eq!(refreshed(&hub, &spcd).await, defaults);

    // One for the server applies to all tables, whether a user or the file sets it.
    let of_server = "a async_capable=true fetch_size=70\nfixed\nnarrow\nseen\nwide";
    query(&hub.url, "ALTER SERVER a OPTIONS (ADD fetch_size '70')").await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    until(&hub.url, &["a ready"]).await;
    assert_eq!(options(&hub).await, of_server);
    assert_eq!(refreshed(&hub, &spcd).await, of_server);
    query(&hub.url, "ALTER SERVER a OPTIONS (DROP fetch_size)").await;
    assert_eq!(refreshed(&hub, &spcd).await, defaults);
    write("  fetch_size = 70\n  async_capable = true\n");
    assert_eq!(refreshed(&hub, &spcd).await, of_server);
    // A file is the truth: a user's change of what it gives is drift.
    query(&hub.url, "ALTER SERVER a OPTIONS (SET fetch_size '71')").await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(options(&hub).await, of_server);
    write("");
    assert_eq!(refreshed(&hub, &spcd).await, defaults);

    // So is the block `import`.
    write("  import {\n    fetch_size = 3000\n  }\n");
    let fixed = "a async_capable=true\nfixed fetch_size=3000\nnarrow fetch_size=3000\n\
                 seen fetch_size=3000\nwide fetch_size=3000";
    assert_eq!(refreshed(&hub, &spcd).await, fixed);
    query(
        &hub.url,
        "ALTER FOREIGN TABLE a.wide OPTIONS (SET fetch_size '1')",
    )
    .await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(options(&hub).await, fixed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_of_an_earlier_version_gets_each_option_once() {
    let hub = shared().database().await;
    let source = made_by(TABLES).await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    let defaults = options(&hub).await;
    spcd.stop();
    // As an earlier version left it.
    query(
        &hub.url,
        "ALTER SERVER a OPTIONS (DROP async_capable);
         ALTER FOREIGN TABLE a.fixed OPTIONS (DROP fetch_size);
         ALTER FOREIGN TABLE a.narrow OPTIONS (DROP fetch_size);
         ALTER FOREIGN TABLE a.seen OPTIONS (DROP fetch_size);
         ALTER FOREIGN TABLE a.wide OPTIONS (DROP fetch_size);
         UPDATE spcd.applied SET tuning = NULL;
         SELECT spcd.refresh_fingerprint(ARRAY['a'])",
    )
    .await;
    let before = query(&hub.url, "SELECT 1, max(id) FROM spcd.connection_event").await;
    spcd.start();
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    until(&hub.url, &["a ready"]).await;
    let plan = spcd.spcd(&["plan"]);
    assert_eq!(plan.stdout, "nothing to do\n", "{before:?}");
    assert_eq!(refreshed(&hub, &spcd).await, defaults);
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_of_extensions_on_both_sides_run_at_the_source() {
    let hub = shared().database().await;
    let source = made_by(
        "CREATE EXTENSION ltree; CREATE TABLE tree (path ltree);
         INSERT INTO tree VALUES ('a.b'), ('c')",
    )
    .await;
    query(&hub.url, "CREATE EXTENSION ltree; CREATE EXTENSION cube").await;
    let spcd = serving(&hub, &source, &["a"]).await;
    let tree = "a async_capable=true extensions=ltree\ntree fetch_size=1000";
    assert_eq!(options(&hub).await, tree);
    let search = "SELECT * FROM a.tree WHERE path <@ 'a'";
    let explain = format!("EXPLAIN (VERBOSE, COSTS OFF) {search}");
    let plan = query(&hub.url, &explain).await;
    let plan: Vec<String> = plan.into_iter().flatten().collect();
    assert!(
        plan.join("\n").contains("WHERE ((path OPERATOR(public.<@)"),
        "{plan:?}"
    );
    assert_eq!(value(&hub.url, search).await, "a.b");
    assert_eq!(refreshed(&hub, &spcd).await, tree);

    query(&source.url, "CREATE EXTENSION cube").await;
    let both = tree.replace("=ltree", "=cube, ltree");
    assert_eq!(refreshed(&hub, &spcd).await, both);
    query(&source.url, "DROP EXTENSION cube").await;
    assert_eq!(refreshed(&hub, &spcd).await, tree);
    // A user's list stays.
    query(&hub.url, "ALTER SERVER a OPTIONS (SET extensions 'cube')").await;
    assert_eq!(
        refreshed(&hub, &spcd).await,
        tree.replace("ltree\n", "cube\n")
    );
    // The file's, too, and it may be none.
    spcd.write(
        "a.spc",
        &postgres_with("a", &source, "  extensions = \"\"\n"),
    );
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(
        refreshed(&hub, &spcd).await,
        tree.replace("=ltree\n", "=\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_reads_its_members_at_once() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer)").await;
    let spcd = serving(&hub, &source, &["m1", "m2", "m3"]).await;
    let all = "connection \"z\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
               connections = [\"m*\"]\n}\n";
    spcd.write("z.spc", all);
    until(&hub.url, &["m1 ready", "m2 ready", "m3 ready", "z ready"]).await;
    let plan = query(&hub.url, "EXPLAIN (COSTS OFF) SELECT * FROM z.t").await;
    let plan: Vec<String> = plan.into_iter().flatten().collect();
    let at_once = plan
        .iter()
        .filter(|line| line.contains("Async Foreign Scan"));
    assert_eq!(at_once.count(), 3, "{plan:?}");
}
