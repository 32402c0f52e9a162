//! Names of tables in the hub that those in the gateway do not have.

use super::daemon;
use crate::support::hub::until;
use crate::support::steampipe::{connection, gateway, plugins};
use crate::support::{Cluster, DEADLINE, eventually, query, try_query, value};

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_renames_what_the_gateway_has() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let file = |settings: &str| {
        let body = format!("token = \"one\"\n  import {{\n    {settings}\n  }}");
        plugins() + &connection("a", "a", &body)
    };
    spcd.write("a.spc", &file("timeout = 20"));
    until(&hub.url, &["a ready"]).await;
    query(&hub.url, "CREATE VIEW v AS SELECT token FROM a.account").await;
    spcd.write(
        "a.spc",
        &file("prefix = \"cloud_\"\n    rename = { token = \"Key\" }"),
    );
    eventually("the table has another name", DEADLINE, || async {
        let rows = try_query(&hub.url, "SELECT \"Key\" FROM a.cloud_account")
            .await
            .ok()?;
        (rows[0][0].as_deref() == Some("one")).then_some(())
    })
    .await;
    until(&hub.url, &["a ready"]).await;
    assert_eq!(value(&hub.url, "SELECT token FROM v").await, "one");
    let old = "SELECT to_regclass('a.account') IS NULL";
    assert_eq!(value(&hub.url, old).await, "t");
    let in_gateway = "SELECT count(*) FROM pg_class WHERE relkind = 'f' AND relname = 'account'";
    assert_eq!(value(&gateway.url("postgres"), in_gateway).await, "1");
    spcd.stop();
}
