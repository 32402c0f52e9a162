//! What people do to aggregators' views, and who may read them.

use super::{aggregator, explained, source, warnings};
use crate::support::hub::{columns, postgres, postgres_with, until};
use crate::support::{Cluster, DEADLINE, Spcd, eventually, query, shared, try_query, value};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_altered_by_hand_is_mended_and_what_people_add_stays() {
    let hub = shared().database().await;
    let make = "CREATE TABLE t (id integer); CREATE TABLE u (id integer); INSERT INTO t VALUES (1)";
    let source = source(make).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write(
        "m.spc",
        &format!("{}{}", postgres("a", &source), postgres("b", &source)),
    );
    spcd.write("g.spc", &aggregator("g", &["?"]));
    spcd.start();
    until(&hub.url, &["a ready", "b ready", "g ready"]).await;
    query(
        &hub.url,
        "CREATE OR REPLACE VIEW g.t AS SELECT 'x'::text AS connection_name, 5 AS id;
         DROP VIEW g.u; CREATE VIEW g.mine AS SELECT * FROM g.t",
    )
    .await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    until(&hub.url, &["a ready", "b ready", "g ready"]).await;
    let rows = "SELECT string_agg(connection_name, ' ' ORDER BY connection_name) FROM";
    assert_eq!(value(&hub.url, &format!("{rows} g.t")).await, "a b");
    assert_eq!(value(&hub.url, &format!("{rows} g.mine")).await, "a b");
    assert_eq!(value(&hub.url, "SELECT count(*) FROM g.u").await, "0");

    // A grant is no difference; neither is a restart.
    let events = "SELECT count(*) FROM spcd.connection_event WHERE status = 'updating'";
    let before = value(&hub.url, events).await;
    let views = "SELECT string_agg(c.oid || '/' || r.xmin, ' ' ORDER BY c.oid) FROM pg_class c
                 JOIN pg_rewrite r ON r.ev_class = c.oid WHERE c.relnamespace = 'g'::regnamespace";
    let oids = value(&hub.url, views).await;
    query(&hub.url, "GRANT SELECT ON g.t TO PUBLIC").await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    spcd.stop();
    spcd.start();
    until(&hub.url, &["a ready", "b ready", "g ready"]).await;
    assert_eq!(value(&hub.url, events).await, before);
    assert_eq!(value(&hub.url, views).await, oids);

    // Dropped altogether.
    query(&hub.url, "DROP SCHEMA g CASCADE").await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    until(&hub.url, &["a ready", "b ready", "g ready"]).await;
    assert_eq!(value(&hub.url, &format!("{rows} g.t")).await, "a b");
    // A member dropped by hand takes the views along; both are made again.
    query(&hub.url, "DROP SCHEMA a CASCADE").await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    until(&hub.url, &["a ready", "b ready", "g ready"]).await;
    assert_eq!(value(&hub.url, &format!("{rows} g.t")).await, "a b");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_read_views_without_rights_on_the_members() {
    let cluster = Cluster::start(&["max_locks_per_transaction = 10", "max_connections = 20"]);
    let hub = cluster.database().await;
    let source = cluster.database().await;
    query(
        &source.url,
        "CREATE TABLE t (id integer); INSERT INTO t VALUES (1)",
    )
    .await;
    query(
        &hub.url,
        "CREATE ROLE spcd_users; CREATE ROLE reader LOGIN IN ROLE spcd_users",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    let member = |name: &str| {
        postgres_with(name, &source, "")
            .replace(&shared().port().to_string(), &cluster.port().to_string())
    };
    let members: String = (0..160).map(|n| member(&format!("m{n:03}"))).collect();
    spcd.write("m.spc", &members);
    spcd.write("g.spc", &aggregator("g", &["m*"]));
    spcd.start();
    let ready = async |count: &str| {
        let sql = "SELECT count(*) FILTER (WHERE status = 'ready') || '/' || count(*)
                   FROM spcd.connection_state";
        eventually("all are ready", DEADLINE, || async {
            let rows = try_query(&hub.url, sql).await.ok()?;
            (rows.first()?.first()?.as_deref() == Some(count)).then_some(())
        })
        .await;
    };
    ready("161/161").await;
    // 160 members are four parts, out of sight.
    let parts = "SELECT count(*) FROM pg_class WHERE relnamespace = 'spcd_union'::regnamespace";
    assert_eq!(value(&hub.url, parts).await, "4");
    let reader = cluster.url_as("reader", &hub.name);
    assert_eq!(
        value(&reader, "SELECT id FROM g.t WHERE connection_name = 'm007'").await,
        "1"
    );
    assert!(
        try_query(&reader, "SELECT 1 FROM spcd_union.x")
            .await
            .is_err()
    );
    // 10 locks for each of 20 sessions: 160 members are more than a quarter of them.
    assert!(
        warnings(&hub.url, "g")
            .await
            .contains("max_locks_per_transaction")
    );
    let plan = explained(
        &hub.url,
        "SELECT id FROM g.t WHERE connection_name = 'm007'",
    )
    .await;
    assert_eq!(plan.matches("Foreign Scan").count(), 1, "{plan}");

    // All members lose a column: who waited for the refresh sees it gone, parts or not.
    query(&source.url, "ALTER TABLE t ADD COLUMN x integer").await;
    assert_eq!(spcd.spcd(&["refresh", "g", "--wait"]).code, 0);
    assert_eq!(columns(&hub.url, "g.t").await.len(), 3);
    query(&source.url, "ALTER TABLE t DROP COLUMN x").await;
    assert_eq!(spcd.spcd(&["refresh", "g", "--wait"]).code, 0);
    assert_eq!(columns(&hub.url, "g.t").await.len(), 2);
    assert_eq!(value(&hub.url, parts).await, "4");
    // One member less: one part is written, nothing else.
    let versions =
        "SELECT c.relname || r.xmin FROM pg_class c JOIN pg_rewrite r ON r.ev_class = c.oid
                    WHERE c.relnamespace IN ('g'::regnamespace, 'spcd_union'::regnamespace)";
    let before = query(&hub.url, versions).await;
    let fewer: String = (0..159).map(|n| member(&format!("m{n:03}"))).collect();
    spcd.write("m.spc", &fewer);
    ready("160/160").await;
    let after = query(&hub.url, versions).await;
    assert_eq!(after.iter().filter(|row| !before.contains(row)).count(), 1);
    // A group without rights loses them again only by hand.
    query(&hub.url, "REVOKE SELECT ON g.t FROM spcd_users").await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(
        value(
            &reader,
            "SELECT count(*) FROM g.t WHERE connection_name = 'm007'"
        )
        .await,
        "1"
    );
    spcd.stop();
}
