//! Aggregators: views over the same-named tables of many connections.

mod complete;
mod people;
mod waited;

use crate::support::hub::{columns, postgres, postgres_with, serving, until};
use crate::support::{DEADLINE, Database, Spcd, eventually, query, shared, try_query, value};

async fn source(sql: &str) -> Database {
    let source = shared().database().await;
    query(&source.url, sql).await;
    source
}

/// An aggregator over what these patterns pick.
fn aggregator(name: &str, patterns: &[&str]) -> String {
    let patterns: Vec<String> = patterns
        .iter()
        .map(|pattern| format!("{pattern:?}"))
        .collect();
    format!(
        "connection {name:?} {{\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
         connections = [{}]\n}}\n",
        patterns.join(", ")
    )
}

async fn warnings(hub: &str, name: &str) -> String {
    let sql = format!(
        "SELECT array_to_string(warnings, E'\\n') FROM spcd.connection_state
         WHERE connection_name = '{name}'"
    );
    value(hub, &sql).await
}

/// The plan of a query, on one line.
async fn explained(hub: &str, sql: &str) -> String {
    let lines = query(hub, &format!("EXPLAIN (VERBOSE, COSTS OFF) {sql}")).await;
    lines.concat().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn same_named_tables_are_merged_and_follow_their_members() {
    let hub = shared().database().await;
    let a = source(
        "CREATE TABLE orders (id integer, note varchar(40), total numeric(10,2), what integer);
         CREATE TABLE only_a (x text);
         INSERT INTO orders VALUES (1, 'one', 1.5, 7); INSERT INTO only_a VALUES ('x')",
    )
    .await;
    let b = source(
        "CREATE TABLE orders (note varchar(60), id integer, total numeric(8,4), what date, extra text);
         INSERT INTO orders VALUES ('two', 2, 2.25, '2026-01-01', 'e')",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("m_a", &a));
    spcd.write("b.spc", &postgres("m_b", &b));
    spcd.write("all.spc", &aggregator("all", &["m_*"]));
    spcd.start();
    until(&hub.url, &["all ready", "m_a ready", "m_b ready"]).await;
    assert_eq!(
        columns(&hub.url, "\"all\".orders").await,
        [
            "connection_name text",
            "id integer",
            "note character varying(60)",
            "total numeric(12,4)",
            "what jsonb",
            "extra text"
        ]
    );
    let orders =
        "SELECT connection_name, id, note, total, what, extra FROM \"all\".orders ORDER BY id";
    assert_eq!(
        query(&hub.url, orders).await,
        [
            ["m_a", "1", "one", "1.5000", "7", ""],
            ["m_b", "2", "two", "2.2500", "\"2026-01-01\"", "e"]
        ]
    );
    assert_eq!(
        query(&hub.url, "SELECT * FROM \"all\".only_a").await,
        [["m_a", "x"]]
    );
    let row = "SELECT type, table_count, schema_mode IS NULL, array_to_string(connections, ',')
               FROM spcd.connection_state WHERE connection_name = 'all'";
    assert_eq!(
        query(&hub.url, row).await,
        [["aggregator", "2", "t", "m_*"]]
    );
    // It comes after its members.
    let order = "SELECT string_agg(connection_name, ' ' ORDER BY id) FROM spcd.connection_event
                 WHERE status = 'ready'";
    assert!(value(&hub.url, order).await.ends_with(" all"));

    // A new column is appended; what people made on the view stays.
    query(
        &hub.url,
        "CREATE VIEW v AS SELECT id, note FROM \"all\".orders",
    )
    .await;
    let oid = value(&hub.url, "SELECT '\"all\".orders'::regclass::oid").await;
    query(&a.url, "ALTER TABLE orders ADD COLUMN new_one integer").await;
    assert_eq!(spcd.spcd(&["refresh", "all", "--wait"]).code, 0);
    until(&hub.url, &["all ready", "m_a ready", "m_b ready"]).await;
    let columns_now = columns(&hub.url, "\"all\".orders").await;
    assert_eq!(
        columns_now.last().map(String::as_str),
        Some("new_one integer")
    );
    assert_eq!(
        value(&hub.url, "SELECT '\"all\".orders'::regclass::oid").await,
        oid
    );

    // A new member appears in it, a removed one goes.
    let c = source("CREATE TABLE orders (id integer); INSERT INTO orders VALUES (3)").await;
    spcd.write("c.spc", &postgres("m_c", &c));
    until(
        &hub.url,
        &["all ready", "m_a ready", "m_b ready", "m_c ready"],
    )
    .await;
    let ids = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM \"all\".orders";
    assert_eq!(value(&hub.url, ids).await, "1 2 3");
    spcd.remove("a.spc");
    until(&hub.url, &["all ready", "m_b ready", "m_c ready"]).await;
    assert_eq!(value(&hub.url, ids).await, "2 3");
    assert!(
        try_query(&hub.url, "SELECT 1 FROM \"all\".only_a")
            .await
            .is_err()
    );
    assert_eq!(
        value(&hub.url, "SELECT '\"all\".orders'::regclass::oid").await,
        oid
    );
    // The view's other columns are gone or stay as people need them.
    assert_eq!(value(&hub.url, "SELECT count(*) FROM v").await, "2");

    // Itself removed while people's view hangs on it: it says so, and goes once it can.
    spcd.remove("all.spc");
    until(&hub.url, &["all error", "m_b ready", "m_c ready"]).await;
    let error = "SELECT error FROM spcd.connection_state WHERE connection_name = 'all'";
    assert!(value(&hub.url, error).await.contains("view public.v"));
    query(&hub.url, "DROP VIEW v").await;
    until(&hub.url, &["m_b ready", "m_c ready"]).await;
    let left = "SELECT count(*) FROM spcd.aggregator_view";
    assert_eq!(value(&hub.url, left).await, "0");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_loses_or_retypes_goes_through_its_aggregators() {
    let hub = shared().database().await;
    let make = "CREATE TABLE t (id integer, gone text, typed integer); CREATE TABLE u (x integer);
                INSERT INTO t VALUES (1, 'g', 5); INSERT INTO u VALUES (1)";
    let (a, b) = (source(make).await, source(make).await);
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &a));
    spcd.write("b.spc", &postgres("b", &b));
    spcd.write("g.spc", &aggregator("g", &["a", "b"]));
    spcd.start();
    until(&hub.url, &["a ready", "b ready", "g ready"]).await;
    let reader = "DO $$ BEGIN CREATE ROLE aggregate_reader; EXCEPTION WHEN duplicate_object THEN END $$;
                  GRANT USAGE ON SCHEMA g TO aggregate_reader; GRANT SELECT ON g.t TO aggregate_reader;
                  GRANT SELECT (id) ON g.u TO aggregate_reader; COMMENT ON VIEW g.t IS 'of all';
                  COMMENT ON COLUMN g.t.id IS 'its number'";
    let reader = reader.replace("(id) ON g.u", "(x) ON g.u");
    query(&hub.url, &reader).await;

    query(
        &a.url,
        "ALTER TABLE t DROP COLUMN gone; ALTER TABLE t ALTER COLUMN typed TYPE text; DROP TABLE u",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    until(&hub.url, &["a ready", "b ready", "g ready"]).await;
    assert_eq!(warnings(&hub.url, "a").await, "");
    assert_eq!(columns(&hub.url, "a.t").await, ["id integer", "typed text"]);
    assert_eq!(
        query(
            &hub.url,
            "SELECT connection_name, gone, typed FROM g.t ORDER BY 1"
        )
        .await,
        [["a", "", "\"5\""], ["b", "g", "5"]]
    );
    assert_eq!(
        query(&hub.url, "SELECT connection_name FROM g.u").await,
        [["b"]]
    );
    query(
        &b.url,
        "ALTER TABLE t DROP COLUMN gone; ALTER TABLE t ALTER COLUMN typed TYPE text",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "b", "--wait"]).code, 0);
    until(&hub.url, &["a ready", "b ready", "g ready"]).await;
    assert_eq!(
        columns(&hub.url, "g.t").await,
        ["connection_name text", "id integer", "typed text"]
    );
    // What people gave the view is still there, though it was made again.
    let kept = "SELECT has_table_privilege('aggregate_reader', 'g.t', 'SELECT'),
                       has_column_privilege('aggregate_reader', 'g.u', 'x', 'SELECT'),
                       obj_description('g.t'::regclass), col_description('g.t'::regclass, 2)";
    assert_eq!(
        query(&hub.url, kept).await,
        [["t", "t", "of all", "its number"]]
    );

    // With people's view on the aggregator's: a column that goes becomes NULL, a change of type is
    // refused, and the refusal names the view.
    query(&hub.url, "CREATE VIEW w AS SELECT id, typed FROM g.t").await;
    query(
        &a.url,
        "ALTER TABLE t ALTER COLUMN typed TYPE integer USING typed::integer",
    )
    .await;
    query(&b.url, "ALTER TABLE t DROP COLUMN typed").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    until(&hub.url, &["a ready", "b ready", "g ready"]).await;
    let warned = warnings(&hub.url, "a").await;
    assert!(
        warned.contains("column typed from text to integer") && warned.contains("view public.w"),
        "{warned}"
    );
    assert_eq!(columns(&hub.url, "a.t").await, ["id integer", "typed text"]);
    assert_eq!(columns(&hub.url, "b.t").await, ["id integer"]);
    assert_eq!(
        query(
            &hub.url,
            "SELECT connection_name, typed IS NULL FROM g.t ORDER BY 1"
        )
        .await,
        [["a", "f"], ["b", "t"]]
    );
    // Once it is out of the way, the change is done.
    query(&hub.url, "DROP VIEW w").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    until(&hub.url, &["a ready", "b ready", "g ready"]).await;
    assert_eq!(
        columns(&hub.url, "g.t").await.last().map(String::as_str),
        Some("typed integer")
    );
    assert_eq!(warnings(&hub.url, "a").await, "");
    query(&hub.url, "DROP OWNED BY aggregate_reader").await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_on_the_connection_prunes_and_the_rest_is_pushed_down() {
    let hub = shared().database().await;
    let source = source("CREATE TABLE t (id integer, note varchar(9))").await;
    let mut spcd = Spcd::new(&hub.url);
    let members: String = (0..5)
        .map(|n| postgres(&format!("m{n}"), &source))
        .collect();
    spcd.write("m.spc", &members);
    spcd.write("g.spc", &aggregator("g", &["m*"]));
    spcd.start();
    until(
        &hub.url,
        &[
            "g ready", "m0 ready", "m1 ready", "m2 ready", "m3 ready", "m4 ready",
        ],
    )
    .await;
    let plan = explained(
        &hub.url,
        "SELECT note FROM g.t WHERE connection_name = 'm3' AND id = 7 AND note = 'x'",
    )
    .await;
    assert_eq!(plan.matches("Foreign Scan").count(), 1, "{plan}");
    assert!(plan.contains("m3.t"), "{plan}");
    assert!(plan.contains("WHERE ((id = 7)) AND ((note = 'x'"), "{plan}");
    let plan = explained(
        &hub.url,
        "SELECT note FROM g.t WHERE connection_name IN ('m1', 'm2')",
    )
    .await;
    assert_eq!(plan.matches("Foreign Scan").count(), 2, "{plan}");
    let plan = explained(&hub.url, "SELECT note FROM g.t WHERE id = 7").await;
    assert_eq!(plan.matches("WHERE ((id = 7))").count(), 5, "{plan}");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn aggregators_of_aggregators_empty_ones_and_strange_names() {
    let hub = shared().database().await;
    let source = source(
        "CREATE TABLE \"T \"\"x\"\" ' ; --\" (\"C 'd' \"\"e\"\"\" text, connection_name text);
         INSERT INTO \"T \"\"x\"\" ' ; --\" VALUES ('v', 'own')",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    let names = ["a'b", "ä \\\"x\\\""];
    let text = format!(
        "{}{}{}{}{}",
        postgres(names[0], &source),
        postgres(names[1], &source),
        aggregator("in.ner", &["a*"]),
        aggregator("out\"er", &["in.ner", "ä*", "a'b"]),
        aggregator("none", &["z*"]),
    );
    spcd.write("all.spc", &text);
    spcd.start();
    until(
        &hub.url,
        &[
            "a'b ready",
            "in.ner ready",
            "none ready",
            "out\"er ready",
            "ä \"x\" ready",
        ],
    )
    .await;
    let rows = "SELECT connection_name, \"C 'd' \"\"e\"\"\" FROM \"out\"\"er\".\"T \"\"x\"\" ' ; --\" ORDER BY 1";
    assert_eq!(
        query(&hub.url, rows).await,
        [["a'b", "v"], ["ä \"x\"", "v"]]
    );
    assert!(
        warnings(&hub.url, "in.ner")
            .await
            .contains("own column connection_name")
    );
    assert_eq!(
        warnings(&hub.url, "none").await,
        "no connection matches: the schema is empty until one does"
    );
    assert_eq!(
        value(
            &hub.url,
            "SELECT count(*) FROM pg_namespace WHERE nspname = 'none'"
        )
        .await,
        "1"
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_becomes_an_aggregator_and_back() {
    let hub = shared().database().await;
    let source = source("CREATE TABLE t (id integer); INSERT INTO t VALUES (1)").await;
    let mut spcd = serving(&hub, &source, &["a", "x"]).await;
    let kind = "SELECT relkind FROM pg_class WHERE oid = 'x.t'::regclass";
    let mode = "SELECT schema_mode FROM spcd.connection_state WHERE connection_name = 'x'";
    for (text, wanted, wanted_mode) in [
        (aggregator("x", &["a"]), "v", ""),
        (postgres("x", &source), "f", "dynamic"),
    ] {
        spcd.write("x.spc", &text);
        eventually("it is what it should be", DEADLINE, || async {
            let rows = try_query(&hub.url, kind).await.ok()?;
            (rows.first()?.first()?.as_deref() == Some(wanted)).then_some(())
        })
        .await;
        until(&hub.url, &["a ready", "x ready"]).await;
        assert_eq!(value(&hub.url, "SELECT count(*) FROM x.t").await, "1");
        assert_eq!(value(&hub.url, mode).await, wanted_mode);
    }
    // A schema of another owner is not changed.
    query(
        &hub.url,
        "CREATE SCHEMA mine; CREATE TABLE mine.t (id integer)",
    )
    .await;
    spcd.write("y.spc", &aggregator("mine", &["a"]));
    until(&hub.url, &["a ready", "mine error", "x ready"]).await;
    assert_eq!(value(&hub.url, "SELECT count(*) FROM mine.t").await, "0");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_differs_nothing_is_written_for_aggregators() {
    let hub = shared().database().await;
    let source = source("CREATE TABLE t (id integer)").await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write(
        "m.spc",
        &format!("{}{}", postgres("a1", &source), postgres("b1", &source)),
    );
    spcd.write("g.spc", &aggregator("g", &["a*", "b*"]));
    spcd.start();
    until(&hub.url, &["a1 ready", "b1 ready", "g ready"]).await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    let written = "SELECT (SELECT sum(xmin::text::bigint) FROM pg_rewrite) || ' '
                       || (SELECT count(*) FROM spcd.connection_event) || ' '
                       || (SELECT sum(xmin::text::bigint) FROM spcd.applied) || ' '
                       || (SELECT sum(xmin::text::bigint) FROM spcd.aggregator_view)";
    let before = value(&hub.url, written).await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    assert_eq!(value(&hub.url, written).await, before);
    // Patterns in another order pick the same.
    spcd.write("g.spc", &aggregator("g", &["b*", "a*"]));
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(value(&hub.url, written).await, before);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn disabled_members_take_part_without_a_schema_of_their_own() {
    let hub = shared().database().await;
    let source = source("CREATE TABLE t (id integer); INSERT INTO t VALUES (1)").await;
    let off = |name: &str| postgres_with(name, &source, "  import_schema = \"disabled\"\n");
    let long = "m".repeat(63);
    let mut spcd = Spcd::new(&hub.url);
    spcd.write(
        "m.spc",
        &[postgres("m_a", &source), off("m_b"), off(&long)].concat(),
    );
    spcd.write("o.spc", &off("other"));
    spcd.write("g.spc", &aggregator("g", &["m*"]));
    spcd.start();
    let long_is = format!("{long} disabled");
    let states = [
        "g ready",
        "m_a ready",
        "m_b disabled",
        &long_is,
        "other disabled",
    ];
    until(&hub.url, &states).await;
    let members = "SELECT string_agg(connection_name, ' ' ORDER BY connection_name) FROM g.t";
    let all = format!("m_a m_b {long}");
    eventually("the disabled ones take part", DEADLINE, || async {
        let rows = try_query(&hub.url, members).await.ok()?;
        (rows.first()?.first()?.as_deref() == Some(&all)).then_some(())
    })
    .await;
    let schemas = "SELECT nspname FROM pg_namespace WHERE nspname IN ('m_a', 'm_b', 'other', 'g')
                   ORDER BY 1";
    assert_eq!(query(&hub.url, schemas).await.concat(), ["g", "m_a"]);
    assert_eq!(spcd.spcd(&["plan"]).stdout, "nothing to do\n");

    // What their sources gain is seen.
    query(&source.url, "ALTER TABLE t ADD COLUMN more text").await;
    assert_eq!(spcd.spcd(&["refresh", "g", "--wait"]).code, 0);
    assert_eq!(
        columns(&hub.url, "g.t").await,
        ["connection_name text", "id integer", "more text"]
    );
    let hidden = columns(&hub.url, "spcd_member_m_b.t").await;
    assert_eq!(hidden, ["id integer", "more text"]);

    // One comes into sight and another goes out of it: tables and what people hung on them stay.
    query(&hub.url, "CREATE VIEW v AS SELECT id FROM m_a.t").await;
    let oids = "SELECT string_agg(ftrelid::text, ' ' ORDER BY ftrelid) FROM pg_foreign_table";
    let before = value(&hub.url, oids).await;
    spcd.write(
        "m.spc",
        &[off("m_a"), postgres("m_b", &source), off(&long)].concat(),
    );
    let states = [
        "g ready",
        "m_a disabled",
        "m_b ready",
        &long_is,
        "other disabled",
    ];
    until(&hub.url, &states).await;
    assert_eq!(query(&hub.url, schemas).await.concat(), ["g", "m_b"]);
    assert_eq!(value(&hub.url, oids).await, before);
    assert_eq!(value(&hub.url, "SELECT count(*) FROM v").await, "1");
    assert_eq!(value(&hub.url, members).await, all);
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(spcd.spcd(&["plan"]).stdout, "nothing to do\n");
    spcd.stop();
    spcd.start();
    until(&hub.url, &states).await;
    assert_eq!(value(&hub.url, oids).await, before);

    // No aggregator shows them any more, so they are dropped.
    query(&hub.url, "DROP VIEW v").await;
    spcd.remove("g.spc");
    until(
        &hub.url,
        &["m_a disabled", "m_b ready", &long_is, "other disabled"],
    )
    .await;
    eventually("the hidden schemas are gone", DEADLINE, || async {
        let sql = "SELECT 1 FROM pg_namespace WHERE nspname LIKE 'spcd\\_member\\_%'";
        query(&hub.url, sql).await.is_empty().then_some(())
    })
    .await;
    assert_eq!(
        query(&hub.url, "SELECT srvname FROM pg_foreign_server").await,
        [["m_b"]]
    );
    spcd.stop();
}
