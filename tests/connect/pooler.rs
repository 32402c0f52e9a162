//! Connection poolers between spcd and the server.

use crate::support::pooler::Pooler;
use crate::support::{Cluster, Spcd, shared, value};

#[tokio::test(flavor = "multi_thread")]
async fn the_attribute_is_named_that_a_pooler_before_the_source_refuses() {
    let (hub, source) = (shared().database().await, shared().database().await);
    let pooler = Pooler::start("session", shared().port());
    let spcd = Spcd::new(&hub.url);
    spcd.write(
        "a.spc",
        &format!(
            "connection \"a\" {{\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  port = {}\n  \
             dbname = \"{}\"\n  user = \"postgres\"\n  statement_timeout = \"5s\"\n}}\n",
            pooler.port(),
            source.name
        ),
    );
    spcd.spcd(&["apply"]);
    let error = value(&hub.url, "SELECT error FROM spcd.connection_state").await;
    assert!(
        error.contains("`statement_timeout` is sent as the parameter `options`"),
        "{error}"
    );
}

#[tokio::test]
async fn a_pooler_is_refused_if_it_mixes_up_sessions() {
    let database = shared().database().await;
    let mixing = Pooler::start("transaction", shared().port());
    for _ in 0..5 {
        let refused = Spcd::new(&mixing.url(&database.name)).spcd(&["migrate"]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(
            refused.stderr.contains("pool_mode = session"),
            "{refused:?}"
        );
    }
    // And nothing was set on connections that others use.
    assert_eq!(
        value(&mixing.url(&database.name), "SHOW search_path").await,
        "\"$user\", public"
    );

    // Also behind a host that is no pooler.
    let reader = Cluster::start(&["default_transaction_read_only = on"]);
    let hosts = format!("@127.0.0.1:{},", reader.port());
    let url = mixing.url(&database.name).replace('@', &hosts);
    let refused = Spcd::new(&url).spcd(&["migrate"]);
    assert!(
        refused.stderr.contains("pool_mode = session"),
        "{refused:?}"
    );

    let honest = Pooler::start("session", shared().port());
    let done = Spcd::new(&honest.url(&database.name)).spcd(&["migrate"]);
    assert_eq!(done.code, 0, "{done:?}");
}
