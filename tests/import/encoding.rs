//! Names that the hub's encoding cannot hold.

use super::{tables, warnings};
use crate::support::hub::{columns, postgres, until, until_commented};
use crate::support::{Database, Spcd, query, shared, value};

/// A hub in WIN1252.
async fn hub() -> Database {
    let like = shared().database().await;
    let name = format!("win_{}", like.name);
    let create = format!(
        "CREATE DATABASE {name} ENCODING 'WIN1252' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    );
    query(&shared().url("postgres"), &create).await;
    Database {
        url: shared().url(&name),
        name,
    }
}

const SOURCE: &str =
    "CREATE TABLE good (id integer, \"größe\" text); CREATE TABLE \"€\" (id integer);
                      CREATE TABLE \"名前\" (id integer); CREATE TABLE holder (\"名\" integer);
                      CREATE TABLE later (id integer)";

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_the_encoding_cannot_hold_costs_its_table() {
    let (hub, source) = (hub().await, shared().database().await);
    query(&source.url, SOURCE).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let warned = warnings(&hub.url).await;
    assert_eq!(
        tables(&hub.url, "a").await,
        ["good", "later", "€"],
        "{warned:?}"
    );
    assert_eq!(
        columns(&hub.url, "a.good").await,
        ["id integer", "größe text"]
    );
    assert_eq!(warned.len(), 2, "{warned:?}");
    assert!(
        warned[0].starts_with("table \"holder\" is left out: "),
        "{warned:?}"
    );
    assert!(warned[1].starts_with("the table with OID "), "{warned:?}");
    assert!(
        warned.iter().all(|text| text.contains("WIN1252")),
        "{warned:?}"
    );

    // A query for one of them says so, also where this database cannot hold the name.
    let path = format!("ALTER DATABASE {} SET search_path = public, a", hub.name);
    query(&hub.url, &path).await;
    for (sql, why) in [
        ("SELECT * FROM a.holder", "table \"holder\" is left out: "),
        ("SELECT * FROM a.\"名前\"", "the table with OID "),
        ("SELECT * FROM \"名前\"", "the table with OID "),
    ] {
        let asked = spcd.spcd(&["query", sql]);
        let said = format!("connection \"a\" is ready, but {why}");
        assert!(asked.stderr.contains(&said), "{}", asked.stderr);
    }
    for sql in [
        "SELECT '名前' FROM a.good",
        "SELECT id AS \"名前\" FROM a.good",
    ] {
        let other = spcd.spcd(&["query", sql]);
        assert!(!other.stderr.contains("OID"), "{}", other.stderr);
    }

    // One that is there already stays.
    query(
        &source.url,
        "ALTER TABLE later ADD \"名\" integer; CREATE TABLE fresh (id integer)",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    assert_eq!(tables(&hub.url, "a").await, ["fresh", "good", "later", "€"]);
    assert_eq!(columns(&hub.url, "a.later").await, ["id integer"]);
    assert_eq!(warnings(&hub.url).await.len(), 3);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_of_all_does_so_too() {
    let (hub, source) = (hub().await, shared().database().await);
    query(&source.url, SOURCE).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write(
        "p.spc",
        "plugin \"postgres\" {\n  import_options = { import_default = \"true\" }\n}\n",
    );
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let warned = warnings(&hub.url).await;
    assert_eq!(
        tables(&hub.url, "a").await,
        ["good", "later", "€"],
        "{warned:?}"
    );
    assert_eq!(warned.len(), 2, "{warned:?}");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn comments_that_the_encoding_can_hold_are_there() {
    let (hub, source) = (hub().await, shared().database().await);
    query(
        &source.url,
        &format!(
            "{SOURCE}; COMMENT ON TABLE good IS 'Größen'; COMMENT ON COLUMN \"€\".id IS 'ids';
             COMMENT ON TABLE later IS '名前'; COMMENT ON TABLE \"名前\" IS 'names'"
        ),
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    until_commented(&hub.url, "a").await;
    let comments = "SELECT string_agg(description, ' ' ORDER BY description) FROM pg_description
                    WHERE objoid IN (SELECT oid FROM pg_class WHERE relnamespace = 'a'::regnamespace)";
    assert_eq!(value(&hub.url, comments).await, "Größen ids");
    spcd.stop();
}
