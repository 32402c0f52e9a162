//! What roles without rights, superusers and silent servers can and cannot do to the daemon's own
//! schema and locks.

use tokio_postgres::Client;

use crate::support::http::Http;
use crate::support::hub::{postgres, serving, until, until_error};
use crate::support::{
    Cluster, DEADLINE, Database, Spcd, connect, eventually, query, shared, try_query, value,
};

async fn source() -> Database {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    source
}

/// A session in an open transaction in which a statement was tried.
async fn holding(url: &str, sql: &str) -> Client {
    let client = connect(url).await.unwrap();
    client.batch_execute("BEGIN; SAVEPOINT s").await.unwrap();
    if client.batch_execute(sql).await.is_err() {
        client.batch_execute("ROLLBACK TO s").await.unwrap();
    }
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_holds_no_lock_that_stops_the_daemon() {
    let (server, source) = (Cluster::start(&[]), source().await);
    let hub = server.database().await;
    query(
        &hub.url,
        "CREATE ROLE spcd_users; CREATE ROLE reader LOGIN IN ROLE spcd_users",
    )
    .await;
    let reader = server.url_as("reader", &hub.name);
    // Any role may take this one, before the first start, too.
    let advisory = holding(&reader, "SELECT pg_advisory_lock(1936745316)").await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    until(&hub.url, &["a ready"]).await;

    let mut held = Vec::new();
    for table in [
        "spcd_lock.event_order",
        "spcd_lock.lead",
        "spcd_lock.migration",
        "spcd.connection_state",
        "spcd.connection_event",
        "spcd.daemon",
        "spcd.applied",
        "spcd.refresh_request",
    ] {
        for statement in [
            format!("PREPARE x AS INSERT INTO {table} DEFAULT VALUES"),
            format!("PREPARE x AS DELETE FROM {table}"),
            format!("PREPARE x AS SELECT FROM {table} FOR UPDATE"),
            format!("LOCK TABLE {table} IN EXCLUSIVE MODE"),
            format!("LOCK TABLE {table} IN ACCESS SHARE MODE"),
            format!("SELECT FROM {table} FOR SHARE"),
        ] {
            // What the daemon itself has locked is not waited for.
            let statement = format!("SET lock_timeout = '1s'; {statement}");
            held.push(holding(&reader, &statement).await);
        }
    }
    spcd.write("b.spc", &postgres("b", &source));
    until(&hub.url, &["a ready", "b ready"]).await;
    let mut second = Spcd::beside(&spcd);
    second.start();
    second.logged("another daemon leads");
    spcd.stop();
    second.write("c.spc", &postgres("c", &source));
    until(&hub.url, &["a ready", "b ready", "c ready"]).await;
    second.stop();
    drop((advisory, held));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_another_role_is_not_used() {
    let server = Cluster::start(&[]);
    query(&server.url("postgres"), "CREATE ROLE owner LOGIN").await;
    for (n, prepared) in [
        "CREATE SCHEMA spcd;
         CREATE FUNCTION spcd.rise() RETURNS integer LANGUAGE plpgsql AS
             $$BEGIN ALTER ROLE owner SUPERUSER; RETURN 0; END$$;
         CREATE VIEW spcd.migration AS SELECT spcd.rise() AS number",
        "CREATE SCHEMA spcd_lock",
        "CREATE SCHEMA spcd_union",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("owned{n}");
        let create = format!("CREATE DATABASE {name} OWNER owner");
        query(&server.url("postgres"), &create).await;
        query(&server.url_as("owner", &name), prepared).await;
        let mut spcd = Spcd::new(&server.url(&name));
        for command in ["migrate", "apply", "plan"] {
            let refused = spcd.spcd(&[command]);
            assert_eq!(refused.code, 1, "{command}: {refused:?}");
            assert!(
                refused.stderr.contains("belongs to owner"),
                "{command}: {refused:?}"
            );
        }
        spcd.start();
        assert_eq!(spcd.ended().code(), Some(1));
    }
    // One object in a schema that is spcd's own.
    query(&server.url("postgres"), "CREATE DATABASE ours").await;
    let mut spcd = Spcd::new(&server.url("ours"));
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    query(
        &server.url("ours"),
        "CREATE FUNCTION spcd.asked_names(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';
         ALTER FUNCTION spcd.asked_names(integer) OWNER TO owner",
    )
    .await;
    spcd.start();
    assert_eq!(spcd.ended().code(), Some(1));
    assert!(spcd.log().contains("asked_names"), "{}", spcd.log());
    let risen = "SELECT rolsuper FROM pg_roles WHERE rolname = 'owner'";
    assert_eq!(value(&server.url("postgres"), risen).await, "f");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_a_superuser_made_is_used() {
    let server = Cluster::start(&[]);
    let roles = "CREATE ROLE other SUPERUSER LOGIN; CREATE ROLE keeper LOGIN";
    query(&server.url("postgres"), roles).await;
    let hub = server.database().await;
    assert_eq!(Spcd::new(&hub.url).spcd(&["migrate"]).code, 0);
    let migrated = Spcd::new(&server.url_as("other", &hub.name)).spcd(&["migrate"]);
    assert_eq!(migrated.code, 0, "{migrated:?}");
    // The rights of an ordinary role are too few, but the owner is no reason to refuse.
    let ordinary = Spcd::new(&server.url_as("keeper", &hub.name)).spcd(&["migrate"]);
    assert!(!ordinary.stderr.contains("belongs to"), "{ordinary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_dropped_under_a_running_daemon_is_made_again() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = serving(&hub, &source, &["a"]).await;
    // It returns: nothing waits for a lock of the daemon's without end.
    query(&hub.url, "DROP SCHEMA spcd CASCADE").await;
    let error = until_error(&hub.url, "a", "did not create").await;
    assert!(error.contains("spcd adopt"), "{error}");
    assert_eq!(value(&hub.url, "SELECT count(*) FROM a.t").await, "0");
    query(
        &hub.url,
        "DROP SCHEMA spcd, spcd_lock, spcd_union CASCADE; DROP SCHEMA a CASCADE; DROP SERVER a CASCADE",
    )
    .await;
    until(&hub.url, &["a ready"]).await;

    // Nothing but the lead itself is in the way of this one.
    let lead = query(&hub.url, "DROP SCHEMA spcd_lock CASCADE");
    let given_way = tokio::time::timeout(DEADLINE, lead).await;
    assert!(
        given_way.is_ok(),
        "the daemon keeps the lead: {}",
        spcd.log()
    );
    spcd.write("b.spc", &postgres("b", &source));
    until(&hub.url, &["a ready", "b ready"]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_a_superuser_is_named_and_the_daemon_goes_on_after_it() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    let http = Http::of(&mut spcd);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    for table in [
        "spcd.connection_state",
        "spcd.daemon",
        "spcd_lock.event_order",
    ] {
        let lock = format!(
            "SET LOCAL application_name = 'lock of {table}'; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"
        );
        let held = holding(&hub.url, &lock).await;
        // Another change each time: one that was made before would not be written.
        let import = format!("\n  import {{\n    exclude = [\"not {table}\"]\n  }}\n}}");
        spcd.write("a.spc", &postgres("a", &source).replace("\n}", &import));
        eventually(
            &format!("{table} is locked: not ready"),
            DEADLINE,
            || async { (http.get("/readyz").status == 503).then_some(()) },
        )
        .await;
        spcd.logged(&format!("(lock of {table}) holds a lock on {table}"));
        held.batch_execute("ROLLBACK").await.unwrap();
        eventually("ready again", DEADLINE, || async {
            (http.get("/readyz").status == 200).then_some(())
        })
        .await;
        until(&hub.url, &["a ready"]).await;
    }
    spcd.stop();
}

#[test]
fn migrations_are_ascii_so_that_every_server_encoding_takes_them() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let mut read = 0;
    for dir in [root.clone(), root.join("compat"), root.join("functions")] {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "sql") {
                let text = std::fs::read(&path).unwrap();
                assert!(text.is_ascii(), "{}", path.display());
                read += 1;
            }
        }
    }
    assert!(read > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn hubs_of_other_encodings_start() {
    let source = source().await;
    for encoding in ["LATIN1", "LATIN9", "KOI8R", "WIN1252", "SQL_ASCII"] {
        let name = format!("hub_{}", encoding.to_lowercase());
        let create = format!(
            "CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        );
        query(&shared().url("postgres"), &create).await;
        let spcd = Spcd::new(&shared().url(&name));
        spcd.write("a.spc", &postgres("a", &source));
        let applied = spcd.spcd(&["apply"]);
        assert_eq!(applied.code, 0, "{encoding}: {applied:?}");
        try_query(&shared().url(&name), "SELECT * FROM a.t")
            .await
            .unwrap();
    }
}
