//! Defaults and generated columns that only the source can compute.

use super::{tables, warnings};
use crate::support::hub::{columns, postgres, until};
use crate::support::{Spcd, query, shared, value};

#[tokio::test(flavor = "multi_thread")]
async fn a_default_that_the_hub_cannot_compute_costs_that_default() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE good (id integer DEFAULT 7);
         CREATE TABLE numbered (id serial, x integer DEFAULT 3);
         INSERT INTO numbered (x) VALUES (1)",
    )
    .await;
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
        ["good", "numbered"],
        "{warned:?}"
    );
    let defaults = "SELECT count(*) FROM pg_attrdef WHERE adrelid = 'a.good'::regclass";
    assert_eq!(value(&hub.url, defaults).await, "1");
    assert_eq!(value(&hub.url, "SELECT id FROM a.numbered").await, "1");
    let about = "table \"numbered\" is imported without defaults and generated expressions: ";
    assert!(
        warned.len() == 1 && warned[0].starts_with(about),
        "{warned:?}"
    );
    assert!(warned[0].contains("numbered_id_seq"), "{warned:?}");

    // The same if it appears later: what else is new comes.
    query(
        &source.url,
        "CREATE SEQUENCE later; ALTER TABLE good ALTER id SET DEFAULT nextval('later');
         CREATE TABLE fresh (id integer)",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    assert_eq!(tables(&hub.url, "a").await, ["fresh", "good", "numbered"]);
    let warned = warnings(&hub.url).await;
    assert_eq!(warned.len(), 2, "{warned:?}");
    assert!(
        warned[0].starts_with("table \"good\" is imported without defaults"),
        "{warned:?}"
    );
    assert_eq!(value(&hub.url, defaults).await, "0");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_column_that_the_hub_cannot_compute_is_read_from_the_source() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE good (id integer); CREATE TABLE t (id integer)",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    query(
        &source.url,
        "CREATE FUNCTION twice(integer) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT 2 * $1';
         ALTER TABLE t ADD b integer GENERATED ALWAYS AS (twice(id)) STORED;
         INSERT INTO t VALUES (4); CREATE TABLE fresh (id integer);
         CREATE TABLE plain (id integer, b integer GENERATED ALWAYS AS (id + 1) STORED)",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    let warned = warnings(&hub.url).await;
    assert_eq!(
        tables(&hub.url, "a").await,
        ["fresh", "good", "plain", "t"],
        "{warned:?}"
    );
    assert_eq!(columns(&hub.url, "a.t").await, ["id integer", "b integer"]);
    assert_eq!(value(&hub.url, "SELECT b FROM a.t").await, "8");
    let about = "table \"t\" is imported without defaults and generated expressions: ";
    assert!(
        warned.len() == 1 && warned[0].starts_with(about),
        "{warned:?}"
    );
    assert!(warned[0].contains("twice"), "{warned:?}");
    spcd.stop();
}
