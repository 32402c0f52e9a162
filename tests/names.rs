//! Names of imported tables and columns: given by the block `import`, and changed in place.

use crate::support::hub::{columns, made_by, postgres_with, statuses, until, until_commented};
use crate::support::{DEADLINE, Database, Spcd, eventually, query, shared, value};

/// A connection with these settings in its block `import`.
fn importing(name: &str, source: &Database, settings: &str) -> String {
    postgres_with(
        name,
        source,
        &format!("  import {{\n    {settings}\n  }}\n"),
    )
}

/// The tables of a connection, by name.
async fn tables(hub: &str, connection: &str) -> Vec<String> {
    let sql = format!(
        "SELECT relname FROM pg_class WHERE relnamespace = '{connection}'::regnamespace AND relkind = 'f'
         ORDER BY relname COLLATE \"C\""
    );
    query(hub, &sql).await.concat()
}

/// Waits until a connection has these tables and is ready.
async fn until_tables(hub: &str, connection: &str, wanted: &[&str]) {
    eventually(&format!("tables {wanted:?}"), DEADLINE, || async {
        let is_ready = statuses(hub)
            .await
            .contains(&(connection.to_owned(), "ready".to_owned()));
        (is_ready && tables(hub, connection).await == wanted).then_some(())
    })
    .await;
}

async fn warnings(hub: &str, connection: &str) -> Vec<String> {
    let sql = format!(
        "SELECT unnest(warnings) FROM spcd.connection_state WHERE connection_name = '{connection}'
         ORDER BY 1"
    );
    query(hub, &sql).await.concat()
}

const SHOP: &str =
    "CREATE TABLE \"Orders\" (\"ID\" integer, \"UnitPrice\" numeric(8,2), note text);
    CREATE TABLE \"Order Lines\" (\"ID\" integer);
    INSERT INTO \"Orders\" VALUES (1, 2.50, 'n');
    COMMENT ON TABLE \"Orders\" IS 'all orders'; COMMENT ON COLUMN \"Orders\".\"ID\" IS 'the key'";

#[tokio::test(flavor = "multi_thread")]
async fn folding_and_unfolding_names_keeps_tables_and_what_uses_them() {
    let hub = shared().database().await;
    let source = made_by(SHOP).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("s.spc", &importing("s", &source, "names = \"keep\""));
    spcd.start();
    until_tables(&hub.url, "s", &["Order Lines", "Orders"]).await;
    query(
        &hub.url,
        "CREATE VIEW v AS SELECT \"ID\" AS key, \"UnitPrice\" AS price, note FROM s.\"Orders\";
         CREATE MATERIALIZED VIEW m AS SELECT * FROM s.\"Order Lines\"",
    )
    .await;
    let oids = "SELECT string_agg(oid::text, ' ' ORDER BY oid) FROM pg_class
                WHERE relnamespace = 's'::regnamespace AND relkind = 'f'";
    let before = value(&hub.url, oids).await;
    for (settings, names, column) in [
        ("names = \"snake\"", ["order_lines", "orders"], "unit_price"),
        ("names = \"lower\"", ["order lines", "orders"], "unitprice"),
        (
            "prefix = \"x_\"\n    rename = { \"Orders\" = \"sold\", \"Orders.UnitPrice\" = \"price\" }",
            ["sold", "x_Order Lines"],
            "price",
        ),
        // The two exchange their names.
        (
            "rename = { \"Orders\" = \"Order Lines\", \"Order Lines\" = \"Orders\" }",
            ["Order Lines", "Orders"],
            "UnitPrice",
        ),
        ("timeout = 20", ["Order Lines", "Orders"], "UnitPrice"),
    ] {
        spcd.write("s.spc", &importing("s", &source, settings));
        let find = "SELECT k.attname FROM pg_attribute k
                    JOIN pg_foreign_table f ON f.ftrelid = k.attrelid
                    WHERE attnum = 2 AND 'table_name=Orders' = ANY (f.ftoptions)";
        until_tables(&hub.url, "s", &names).await;
        eventually(column, DEADLINE, || async {
            (value(&hub.url, find).await == column).then_some(())
        })
        .await;
        assert_eq!(value(&hub.url, oids).await, before, "{settings}");
        assert_eq!(
            query(&hub.url, "SELECT * FROM v").await,
            [["1", "2.50", "n"]]
        );
        query(&hub.url, "REFRESH MATERIALIZED VIEW m").await;
        assert_eq!(warnings(&hub.url, "s").await, Vec::<String>::new());
    }
    // Comments of the source are on the tables under whatever name.
    spcd.write("s.spc", &importing("s", &source, "names = \"snake\""));
    until_tables(&hub.url, "s", &["order_lines", "orders"]).await;
    until_commented(&hub.url, "s").await;
    assert_eq!(
        query(
            &hub.url,
            "SELECT obj_description('s.orders'::regclass), col_description('s.orders'::regclass, 1)"
        )
        .await,
        [["all orders", "the key"]]
    );
    // Nothing differs at the next look.
    let written = value(&hub.url, "SELECT generation FROM spcd.connection_state").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(
        value(&hub.url, "SELECT generation FROM spcd.connection_state").await,
        written
    );
    assert_eq!(spcd.spcd(&["plan", "--refresh"]).code, 0);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_names_that_become_one_the_first_is_kept() {
    let hub = shared().database().await;
    let source = made_by(
        "CREATE TABLE \"A\" (\"ID\" integer, id text); CREATE TABLE a (x text); CREATE TABLE b (x text)",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    let settings = "names = \"lower\"\n    rename = { gone = \"x\" }";
    spcd.write("s.spc", &importing("s", &source, settings));
    spcd.start();
    until_tables(&hub.url, "s", &["a", "b"]).await;
    assert_eq!(columns(&hub.url, "s.a").await, ["id integer"]);
    assert_eq!(
        warnings(&hub.url, "s").await,
        [
            "\"gone\" in import.rename is the name of no imported table or column",
            "column \"id\" of table \"A\" is left out: its name here would be \"id\", the same as that of \
             \"ID\"",
            "table \"a\" is left out: its name here would be \"a\", the same as that of \"A\"",
        ]
    );
    // Another table gets the name; a table of a user's is in the way of neither.
    query(&hub.url, "CREATE TABLE s.taken ()").await;
    let settings = "rename = { b = \"taken\", \"A\" = \"a\", a = \"A\" }";
    spcd.write("s.spc", &importing("s", &source, settings));
    until_tables(&hub.url, "s", &["A", "a", "b"]).await;
    assert_eq!(columns(&hub.url, "s.\"A\"").await, ["x text"]);
    assert_eq!(
        warnings(&hub.url, "s").await,
        ["table \"b\" is not renamed to \"taken\": something else in the schema has that name"]
    );
    query(&hub.url, "DROP TABLE s.taken").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    until_tables(&hub.url, "s", &["A", "a", "taken"]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_renamed_costs_no_other() {
    let hub = shared().database().await;
    let source =
        made_by("CREATE TABLE \"T\" (\"A\" integer); CREATE TABLE \"U\" (\"A\" integer)").await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("s.spc", &importing("s", &source, "names = \"keep\""));
    spcd.start();
    until_tables(&hub.url, "s", &["T", "U"]).await;
    // The server refuses to rename an inherited column.
    query(
        &hub.url,
        "CREATE TABLE parent (\"A\" integer); ALTER FOREIGN TABLE s.\"T\" INHERIT parent",
    )
    .await;
    spcd.write("s.spc", &importing("s", &source, "names = \"lower\""));
    until_tables(&hub.url, "s", &["T", "u"]).await;
    assert_eq!(columns(&hub.url, "s.\"T\"").await, ["A integer"]);
    assert_eq!(columns(&hub.url, "s.u").await, ["a integer"]);
    let warned = warnings(&hub.url, "s").await;
    assert!(
        warned
            .iter()
            .all(|warning| warning.contains("cannot rename inherited column")),
        "{warned:?}"
    );
    query(&hub.url, "ALTER FOREIGN TABLE s.\"T\" NO INHERIT parent").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    until_tables(&hub.url, "s", &["t", "u"]).await;
    assert_eq!(warnings(&hub.url, "s").await, Vec::<String>::new());
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn aggregators_follow_the_names_of_their_members() {
    let hub = shared().database().await;
    let source = made_by(SHOP).await;
    let mut spcd = Spcd::new(&hub.url);
    let write = |spcd: &Spcd, settings: &str| {
        for name in ["m1", "m2"] {
            spcd.write(&format!("{name}.spc"), &importing(name, &source, settings));
        }
    };
    write(&spcd, "tables = [\"Orders\"]");
    spcd.write(
        "all.spc",
        "connection \"all\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
         connections = [\"m*\"]\n}\n",
    );
    spcd.start();
    until(&hub.url, &["all ready", "m1 ready", "m2 ready"]).await;
    assert_eq!(
        value(&hub.url, "SELECT count(*) FROM \"all\".\"Orders\"").await,
        "2"
    );
    write(&spcd, "tables = [\"Orders\"]\n    names = \"snake\"");
    let sum = "SELECT count(*) || ' ' || sum(unit_price) FROM \"all\".orders";
    eventually("the aggregator follows", DEADLINE, || async {
        let rows = crate::support::try_query(&hub.url, sum).await.ok()?;
        (rows[0][0].as_deref() == Some("2 5.00")).then_some(())
    })
    .await;
    until(&hub.url, &["all ready", "m1 ready", "m2 ready"]).await;
    assert_eq!(
        query(
            &hub.url,
            "SELECT relname FROM pg_class WHERE relnamespace = '\"all\"'::regnamespace"
        )
        .await,
        [["orders"]]
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_left_out_stays_while_a_view_reads_it() {
    let hub = shared().database().await;
    let source = made_by(
        "CREATE TABLE places (id integer, geom text, secret_a text, \"Name\" text);
         INSERT INTO places VALUES (1, 'g', 's', 'n')",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    let settings = "exclude_columns = [\"geom\", \"secret_*\"]\n    names = \"lower\"";
    spcd.write("s.spc", &importing("s", &source, settings));
    spcd.start();
    until(&hub.url, &["s ready"]).await;
    assert_eq!(
        columns(&hub.url, "s.places").await,
        ["id integer", "name text"]
    );
    assert_eq!(
        query(&hub.url, "SELECT * FROM s.places").await,
        [["1", "n"]]
    );
    spcd.write(
        "s.spc",
        &importing("s", &source, "exclude_columns = [\"secret_*\"]"),
    );
    let wanted = ["id integer", "Name text", "geom text"];
    eventually("the column is there", DEADLINE, || async {
        (columns(&hub.url, "s.places").await == wanted).then_some(())
    })
    .await;
    query(&hub.url, "CREATE VIEW v AS SELECT geom FROM s.places").await;
    spcd.write(
        "s.spc",
        &importing("s", &source, "exclude_columns = [\"geom\", \"none\"]"),
    );
    let warned = [
        "table \"places\" stays as it was: dropping column geom would break or lose view public.v",
        "the pattern \"none\" in import.exclude_columns matches no column",
    ];
    eventually("a warning", DEADLINE, || async {
        (warnings(&hub.url, "s").await == warned).then_some(())
    })
    .await;
    query(&hub.url, "DROP VIEW v").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(
        columns(&hub.url, "s.places").await,
        ["id integer", "Name text", "secret_a text"]
    );
    spcd.stop();
}
