//! One table that cannot be imported costs that table.

use crate::support::hub::{columns, postgres, serving, until};
use crate::support::{Database, Spcd, query, shared, try_query, value};

async fn warnings(hub: &str) -> Vec<String> {
    let sql = "SELECT unnest(warnings) FROM spcd.connection_state ORDER BY 1";
    query(hub, sql).await.concat()
}

async fn tables(hub: &str, schema: &str) -> Vec<String> {
    let sql = format!(
        "SELECT relname FROM pg_class WHERE relnamespace = '{schema}'::regnamespace ORDER BY 1"
    );
    query(hub, &sql).await.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_the_hub_does_not_know_cost_their_tables_and_come_with_the_type() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE DOMAIN \"Sma\"\"ll\" AS integer;
         CREATE TABLE good (id integer); CREATE TABLE \"Moo\"\"dy\" (how mood);
         CREATE TABLE small (x \"Sma\"\"ll\"); CREATE TABLE turned (id integer, how text)",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    let skip = "\n  import {\n    unknown_types = \"skip\"\n  }\n}";
    spcd.write("a.spc", &postgres("a", &source).replace("\n}", skip));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    assert_eq!(tables(&hub.url, "a").await, ["good", "turned"]);
    let warned = warnings(&hub.url).await;
    assert_eq!(warned.len(), 2, "{warned:?}");
    assert!(
        warned[0].starts_with("table \"Moo\\\"dy\" is left out: "),
        "{warned:?}"
    );
    assert!(warned[0].contains("public.mood"), "{warned:?}");
    assert!(
        warned[1].starts_with("table \"small\" is left out: "),
        "{warned:?}"
    );

    // A query for it says that and why, by its schema or through the search path.
    for sql in [
        "SELECT * FROM a.small",
        "SET search_path = a; SELECT * FROM small",
    ] {
        let asked = spcd.spcd(&["query", sql]);
        let why = "spcd: connection \"a\" is ready, but table \"small\" is left out: ";
        assert!(asked.stderr.contains(why), "{}", asked.stderr);
        assert_eq!(asked.code, 1);
    }
    let quoted = spcd.spcd(&["query", "SELECT * FROM a.\"Moo\"\"dy\""]);
    assert!(quoted.stderr.contains("is left out: "), "{}", quoted.stderr);
    let other = spcd.spcd(&["query", "SELECT * FROM a.smal"]);
    assert!(!other.stderr.contains("left out"), "{}", other.stderr);
    // A schema that an earlier version made has no such rows yet.
    let left_out = "SELECT table_name FROM spcd.left_out_table ORDER BY 1";
    query(&hub.url, "DELETE FROM spcd.left_out_table").await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    assert_eq!(
        query(&hub.url, left_out).await.concat(),
        ["Moo\"dy", "small"]
    );

    // One that is there already stays as it was.
    query(
        &source.url,
        "ALTER TABLE turned ALTER COLUMN how TYPE mood USING how::mood",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    assert_eq!(
        columns(&hub.url, "a.turned").await,
        ["id integer", "how text"]
    );
    let warned = warnings(&hub.url).await;
    assert!(
        warned
            .iter()
            .any(|text| text.starts_with("table \"turned\" stays as it was: ")),
        "{warned:?}"
    );
    assert_eq!(
        query(&hub.url, left_out).await.concat(),
        ["Moo\"dy", "small"]
    );
    // With the type there is nothing to warn of.
    query(
        &hub.url,
        "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE DOMAIN \"Sma\"\"ll\" AS integer",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    assert_eq!(
        tables(&hub.url, "a").await,
        ["Moo\"dy", "good", "small", "turned"]
    );
    assert_eq!(
        columns(&hub.url, "a.turned").await,
        ["id integer", "how mood"]
    );
    assert_eq!(warnings(&hub.url).await, Vec::<String>::new());
    assert_eq!(query(&hub.url, left_out).await.concat(), [""; 0]);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_too_long_here_cost_their_tables() {
    let hub = shared().database().await;
    // Forty letters are forty bytes there, and eighty here.
    let name = format!("latin_{}", hub.name);
    let create = format!(
        "CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    );
    query(&shared().url("postgres"), &create).await;
    let source = Database {
        url: shared().url(&name),
        name,
    };
    let long = "ä".repeat(40);
    query(
        &source.url,
        &format!(
            "CREATE DOMAIN small AS integer; CREATE TABLE {long}1 (x small);
             CREATE TABLE {long} (id integer); CREATE TABLE {long}2 (id integer);
             CREATE TABLE wide (id integer, {long} text); CREATE TABLE good (\"ö\" integer)"
        ),
    )
    .await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    assert_eq!(tables(&hub.url, "a").await, ["good"]);
    let warned = warnings(&hub.url).await;
    assert_eq!(warned.len(), 4, "{warned:?}");
    assert!(
        warned[0].starts_with("table \"wide\" is left out: the name of its column"),
        "{warned:?}"
    );
    assert!(
        warned[1].contains(&format!("\"{long}\" is longer than 63 bytes")),
        "{warned:?}"
    );
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    assert_eq!(warnings(&hub.url).await, warned);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_to_create_or_alter_costs_its_table() {
    let (hub, source) = (shared().database().await, shared().database().await);
    // A view may have a column of such a name, a foreign table may not.
    query(
        &source.url,
        "CREATE TABLE good (id integer); CREATE VIEW odd AS SELECT 1 AS xmin;
         CREATE TABLE part (id integer); CREATE TABLE other (id integer)",
    )
    .await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    assert_eq!(tables(&hub.url, "a").await, ["good", "other", "part"]);
    let warned = warnings(&hub.url).await;
    assert!(
        warned[0].starts_with("table \"odd\" is left out: ") && warned[0].contains("xmin"),
        "{warned:?}"
    );
    assert_eq!(warned.len(), 1, "{warned:?}");

    // A partition takes no column of its own.
    query(
        &hub.url,
        "CREATE TABLE mine (id integer) PARTITION BY LIST (id);
         ALTER TABLE mine ATTACH PARTITION a.part FOR VALUES IN (1)",
    )
    .await;
    query(
        &source.url,
        "ALTER TABLE part ADD COLUMN more text; ALTER TABLE other ADD COLUMN more text;
         CREATE TABLE fresh (id integer); DROP VIEW odd",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    until(&hub.url, &["a ready"]).await;
    assert_eq!(columns(&hub.url, "a.part").await, ["id integer"]);
    assert_eq!(
        columns(&hub.url, "a.other").await,
        ["id integer", "more text"]
    );
    assert_eq!(
        tables(&hub.url, "a").await,
        ["fresh", "good", "other", "part"]
    );
    let warned = warnings(&hub.url).await;
    assert!(
        warned[0].starts_with("table \"part\" stays as it was: "),
        "{warned:?}"
    );
    assert_eq!(warned.len(), 1, "{warned:?}");
    // Neither is it dropped, though the source has it no more: its parent would lose it.
    query(&source.url, "DROP TABLE part").await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    let warned = warnings(&hub.url).await;
    assert!(
        warned[0].contains("its inheritance from table public.mine"),
        "{warned:?}"
    );
    assert_eq!(
        value(&hub.url, "SELECT count(*) FROM pg_inherits").await,
        "1"
    );
    assert!(try_query(&hub.url, "SELECT * FROM a.other").await.is_ok());
    spcd.stop();
}
