//! Wrappers that end the server process: two of a kind in one session, and one that panics.

use crate::support::alone::{connection, plugins, wrappers};
use crate::support::hub::until;
use crate::support::{Cluster, Database, Spcd, value};

/// Whether the server's log tells of a process that ended by a signal or by itself.
fn crashed(server: &Cluster) -> bool {
    let log = server.log();
    log.contains("was terminated by signal") || log.contains("exited with exit code 2")
}

async fn hub(server: &Cluster) -> Database {
    let hub = server.database().await;
    wrappers(&hub.url).await;
    hub
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_load_one_library_of_a_wrapper_at_most() {
    let server = Cluster::start(&[]);
    let hub = hub(&server).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_HEALTH_ENABLED", "true");
    spcd.env("SPCD_HEALTH_INTERVAL", "1s");
    let file = |other: &str| {
        let mut text = plugins();
        for n in 0..10 {
            text.push_str(&connection(&format!("a{n}"), "alone_a", "/nowhere", other));
            text.push_str(&connection(&format!("b{n}"), "alone_b", "/nowhere", other));
        }
        text + "connection \"all\" {\n  plugin = \"alone_a\"\n  type = \"aggregator\"\n  \
                connections = [\"a*\"]\n}\n"
    };
    let ready: Vec<String> = (0..10)
        .map(|n| format!("a{n} ready"))
        .chain(["all ready".to_owned()])
        .chain((0..10).map(|n| format!("b{n} ready")))
        .collect();
    let ready: Vec<&str> = ready.iter().map(String::as_str).collect();
    spcd.write("all.spc", &file("one"));
    spcd.start();
    until(&hub.url, &ready).await;
    let tables = "SELECT count(*) FROM pg_foreign_table";
    assert_eq!(value(&hub.url, tables).await, "40");

    // Options, refreshes, probes, removals, a restart.
    spcd.write("all.spc", &file("two"));
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    let two = "SELECT count(*) FROM pg_foreign_server WHERE srvoptions::text LIKE '%other=two%'";
    assert_eq!(value(&hub.url, two).await, "20");
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    for name in ["a0", "b0", "a1", "b1"] {
        assert_eq!(spcd.spcd(&["test", name]).code, 0);
    }
    assert_eq!(spcd.spcd(&["plan", "--refresh"]).code, 0);
    spcd.stop();
    assert_eq!(spcd.spcd(&["apply", "--force"]).code, 0);
    spcd.start();
    spcd.write("all.spc", &plugins());
    until(&hub.url, &[]).await;
    spcd.stop();
    assert!(!crashed(&server), "{}", server.log());
}
