//! Objects that were created by hand are adopted on request, and not before.

use crate::support::hub::{columns, postgres, postgres_with, statuses, until, until_error};
use crate::support::{Cluster, Database, Spcd, query, shared, try_query, value};

/// A schema and server as one makes them by hand: an old host, a table without its new column, one
/// that the source no longer has, a user's own table, and a view on all of them.
async fn by_hand(hub: &Database, source: &Database) {
    query(
        &source.url,
        "CREATE TABLE t (id integer, added text); CREATE TABLE fresh (id integer)",
    )
    .await;
    let sql = format!(
        "CREATE EXTENSION postgres_fdw;
         CREATE SCHEMA shop;
         CREATE SERVER shop FOREIGN DATA WRAPPER postgres_fdw
                OPTIONS (host 'elsewhere', port '{}', dbname '{}');
         CREATE USER MAPPING FOR PUBLIC SERVER shop OPTIONS (user 'nobody');
         CREATE FOREIGN TABLE shop.t (id integer) SERVER shop;
         CREATE FOREIGN TABLE shop.stale (id integer) SERVER shop;
         CREATE FOREIGN TABLE shop.kept (id integer) SERVER shop;
         CREATE TABLE shop.own (id integer);
         CREATE VIEW public.mine AS SELECT t.id FROM shop.t;
         CREATE VIEW public.on_kept AS SELECT id FROM shop.kept",
        shared().port(),
        source.name
    );
    query(&hub.url, &sql).await;
}

#[tokio::test]
async fn a_schema_and_server_made_by_hand_are_taken_over_and_brought_up_to_date() {
    let (hub, source) = (shared().database().await, shared().database().await);
    by_hand(&hub, &source).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("shop.spc", &postgres("shop", &source));
    spcd.start();
    let error = until_error(&hub.url, "shop", "spcd adopt shop").await;
    assert!(error.contains("a schema named \"shop\""), "{error}");

    // Standard input is no terminal, so nothing is adopted; but all objects are shown.
    let shown = spcd.spcd(&["adopt", "shop"]);
    assert_eq!(shown.code, 1, "{shown:?}");
    assert!(shown.stderr.contains("--yes"), "{shown:?}");
    for line in [
        "= schema \"shop\"",
        "= server \"shop\"",
        "= table t",
        "own stays its owner's",
        "~ server option host: elsewhere → 127.0.0.1",
        "~ user mapping",
        "~ table t",
        "+ column added text",
        "+ table fresh (1 columns)",
        "- table stale",
        "dropping it would break or lose view public.on_kept",
    ] {
        assert!(shown.stdout.contains(line), "{line}: {}", shown.stdout);
    }
    assert_eq!(statuses(&hub.url).await, [("shop".into(), "error".into())]);
    assert_eq!(
        value(&hub.url, "SELECT count(*) FROM spcd.applied").await,
        "0"
    );

    let adopted = spcd.spcd(&["adopt", "shop", "--yes"]);
    assert_eq!(adopted.code, 0, "{adopted:?}");
    until(&hub.url, &["shop ready"]).await;
    assert_eq!(
        columns(&hub.url, "shop.t").await,
        ["id integer", "added text"]
    );
    assert_eq!(columns(&hub.url, "shop.fresh").await, ["id integer"]);
    query(
        &hub.url,
        "SELECT * FROM public.mine; SELECT * FROM shop.fresh",
    )
    .await;
    let relations = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class
                     WHERE relnamespace = 'shop'::regnamespace";
    assert_eq!(value(&hub.url, relations).await, "fresh kept own t");
    let again = spcd.spcd(&["adopt", "shop", "--yes"]);
    assert!(
        again.code == 0 && again.stdout.contains("nothing to adopt"),
        "{again:?}"
    );

    // From now on it is spcd's: it goes with its block, but for what is people's own.
    query(
        &hub.url,
        "DROP VIEW public.mine, public.on_kept; DROP TABLE shop.own",
    )
    .await;
    spcd.write("shop.spc", &postgres("other", &source));
    until(&hub.url, &["other ready"]).await;
    let left = "SELECT count(*) FROM pg_foreign_server WHERE srvname = 'shop'";
    assert_eq!(value(&hub.url, left).await, "0");
    spcd.stop();
}

#[tokio::test]
async fn a_server_without_a_block_is_described_by_one() {
    let (hub, source) = (shared().database().await, shared().database().await);
    by_hand(&hub, &source).await;
    let mut spcd = Spcd::new(&hub.url);
    let described = spcd.spcd(&["adopt", "shop"]);
    assert_eq!(described.code, 1, "{described:?}");
    assert!(
        described.stdout.contains("host   = \"elsewhere\"")
            && described.stdout.contains("user   = env(\"SHOP_USER\")")
            && !described.stdout.contains("nobody"),
        "{described:?}"
    );
    spcd.write("shop.spc", &described.stdout);
    let without_secret = spcd.spcd(&["adopt", "shop", "--yes"]);
    assert!(
        without_secret.code == 1 && without_secret.stderr.contains("SHOP_USER"),
        "{without_secret:?}"
    );
    let adopted = spcd
        .env("SHOP_USER", "nobody")
        .spcd(&["adopt", "shop", "--yes"]);
    assert_eq!(adopted.code, 0, "{adopted:?}");
    assert!(!adopted.stdout.contains("~ server"), "{adopted:?}");
}

#[tokio::test]
async fn what_is_adopted_without_a_daemon_waits_for_the_next_pass() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(&source.url, "CREATE TABLE t (id integer)").await;
    // Each of the two by itself.
    query(
        &hub.url,
        "CREATE EXTENSION postgres_fdw; CREATE SCHEMA alone;
         CREATE SERVER served FOREIGN DATA WRAPPER postgres_fdw",
    )
    .await;
    let spcd = Spcd::new(&hub.url);
    let text = postgres("alone", &source) + &postgres("served", &source);
    spcd.write("a.spc", &text);
    for name in ["alone", "served"] {
        let adopted = spcd.spcd(&["adopt", name, "--yes"]);
        assert_eq!(adopted.code, 0, "{adopted:?}");
        assert!(adopted.stdout.contains("spcd apply"), "{adopted:?}");
    }
    let applied = spcd.spcd(&["apply"]);
    assert_eq!(applied.code, 0, "{applied:?}");
    query(&hub.url, "SELECT * FROM alone.t; SELECT * FROM served.t").await;
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
}

#[tokio::test]
async fn a_source_that_does_not_answer_does_not_prevent_adoption() {
    let (hub, source) = (shared().database().await, shared().database().await);
    by_hand(&hub, &source).await;
    let spcd = Spcd::new(&hub.url);
    let nowhere = "connection \"shop\" {\n plugin = \"postgres\"\n host = \"127.0.0.1\"\n port = 1\n dbname = \"d\"\n user = \"u\"\n}\n";
    spcd.write("shop.spc", nowhere);
    let adopted = spcd.spcd(&["adopt", "shop", "--yes"]);
    assert_eq!(adopted.code, 0, "{adopted:?}");
    assert!(
        adopted.stdout.contains("the source cannot be asked now"),
        "{adopted:?}"
    );
    // Its tables stay until the source says otherwise.
    assert_eq!(spcd.spcd(&["apply"]).code, 1);
    query(
        &hub.url,
        "SELECT FROM pg_class WHERE oid = 'shop.stale'::regclass",
    )
    .await;
    assert_eq!(statuses(&hub.url).await, [("shop".into(), "error".into())]);
}

#[tokio::test]
async fn what_cannot_be_adopted_is_refused_with_what_to_type() {
    // With a role of its own.
    let cluster = Cluster::start(&[]);
    let (hub, source) = (cluster.database().await, shared().database().await);
    by_hand(&hub, &source).await;
    query(&hub.url, "CREATE ROLE \"hub keeper\" LOGIN").await;
    let grants = format!(
        "GRANT CREATE ON DATABASE \"{}\" TO \"hub keeper\";
         GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO \"hub keeper\"",
        hub.name
    );
    query(&hub.url, &grants).await;
    let spcd = Spcd::new(&cluster.url_as("hub%20keeper", &hub.name));

    let unknown = spcd.spcd(&["adopt", "shop", "--yes"]);
    assert!(
        unknown.code == 1 && unknown.stderr.contains("write its block first"),
        "{unknown:?}"
    );
    let broken = postgres_with("shop", &source, "  frob = 1\n");
    spcd.write("shop.spc", &broken);
    let broken = spcd.spcd(&["adopt", "shop", "--yes"]);
    assert!(
        broken.code == 1 && broken.stderr.contains("frob"),
        "{broken:?}"
    );

    // A mapping is not needed to be theirs, but what is altered and dropped is.
    spcd.write(
        "shop.spc",
        &postgres_with("shop", &source, "  password_required = false\n"),
    );
    let foreign = spcd.spcd(&["adopt", "shop", "--yes"]);
    assert_eq!(foreign.code, 1, "{foreign:?}");
    let cures: Vec<&str> = foreign
        .stderr
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("ALTER"))
        .collect();
    assert_eq!(cures.len(), 5, "{foreign:?}");
    for cure in cures {
        query(&hub.url, cure).await;
    }
    let adopted = spcd.spcd(&["adopt", "shop", "--yes"]);
    assert_eq!(adopted.code, 0, "{adopted:?}");
    assert!(
        try_query(
            &hub.url,
            "SELECT FROM spcd.applied WHERE connection_name = 'shop'"
        )
        .await
        .is_ok_and(|rows| rows.len() == 1)
    );
}
