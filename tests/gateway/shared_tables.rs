//! Connections of a static plugin behind a gateway have the same tables in the hub, too.

use super::daemon;
use crate::support::hub::{guarded, reader, until};
use crate::support::steampipe::{READER, gateway};
use crate::support::{Cluster, query, value};

const PASSWORD: &str = "hunter2hunter2";

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_asks_the_gateway_once_for_the_tables_of_a_static_plugin() {
    let (server, gateway, source) = (
        Cluster::start(&[]),
        gateway().await,
        guarded(PASSWORD).await,
    );
    let hub = server.database().await;
    let plugin = "plugin \"app\" {\n  source = \"postgres\"\n  gateway = true\n  \
                  schema_mode = \"static\"\n}\n";
    let app = |name: &str| {
        reader(name, source.port(), PASSWORD).replacen("\"postgres\"", "plugin.app", 1)
    };
    let mut spcd = daemon(&hub.url, &gateway).await;
    spcd.write("a.spc", &(plugin.to_owned() + &app("c0")));
    until(&hub.url, &["c0 ready"]).await;
    let log = format!("ALTER ROLE {READER} SET log_statement = 'all'");
    query(&gateway.url("postgres"), &log).await;

    let names: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
    let blocks: String = names.iter().map(|name| app(name)).collect();
    spcd.write("a.spc", &(plugin.to_owned() + &blocks));
    let ready: Vec<String> = names.iter().map(|name| format!("{name} ready")).collect();
    until(
        &hub.url,
        &ready.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .await;
    // Comments are asked for in another way.
    let questions = || gateway.log().matches("attnotnull").count();
    assert_eq!(questions(), 0);
    let found = "SELECT count(*) FROM c0.t, c9.t";
    assert_eq!(value(&hub.url, found).await, "1");
    let schemas = "SELECT count(DISTINCT o) FROM pg_foreign_table, unnest(ftoptions) o
                   WHERE starts_with(o, 'schema_name=')";
    assert_eq!(value(&hub.url, schemas).await, "10");

    // Other tables are asked for, once for all.
    query(&source.url("postgres"), "ALTER TABLE t ADD more text").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    for name in ["c0", "c9"] {
        let more = format!("SELECT count(more) FROM {name}.t");
        assert_eq!(value(&hub.url, &more).await, "0");
    }
    assert_eq!(questions(), 1);
    spcd.stop();
}
