//! `spcd wait`, `refresh` and `apply` beside a daemon: what a look covers, and for what it waits.

use crate::support::hub::{made_by, postgres, serving, statuses, until, until_error};
use crate::support::{Cluster, Spcd, finish, query, shared, value};

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_begins_while_the_hub_is_away_waits_for_it() {
    let source = made_by("CREATE TABLE t (id integer)").await;
    let mut cluster = Cluster::start(&[]);
    let hub = cluster.database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    cluster.stop();

    let late = spcd.spcd(&["wait", "--timeout", "300ms"]);
    assert_eq!(late.code, 3, "{late:?}");
    assert!(
        late.stderr.contains("cannot reach the database"),
        "{late:?}"
    );
    // What cannot be mended by waiting is told at once.
    let other = Spcd::new("postgresql://127.0.0.1:not-a-port/x");
    assert_eq!(other.spcd(&["wait"]).code, 1);

    let waiting = spcd.command(&["wait", "a"]);
    let waiter = std::thread::spawn(|| finish(waiting));
    spcd.start();
    spcd.logged("cannot reach the database");
    cluster.start_again();
    let waited = waiter.join().unwrap();
    assert_eq!(waited.code, 0, "{waited:?}");
    assert_eq!(value(&hub.url, "SELECT count(*) FROM a.t").await, "0");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_obstacle_that_is_gone_is_no_error_of_the_next_look() {
    let source = made_by("CREATE TABLE t (id integer)").await;
    let hub = shared().database().await;
    let mut spcd = serving(&hub, &source, &["a", "b"]).await;
    for (n, command) in [&["refresh", "--wait"][..], &["wait"], &["apply"]]
        .into_iter()
        .enumerate()
    {
        let view = format!("CREATE VIEW public.v{n} AS SELECT id FROM b.t");
        query(&hub.url, &view).await;
        spcd.remove("b.spc");
        until_error(&hub.url, "b", &format!("v{n}")).await;
        query(&hub.url, &format!("DROP VIEW public.v{n}")).await;
        let looked = spcd.spcd(command);
        assert_eq!(looked.code, 0, "{command:?}: {looked:?}");
        assert_eq!(statuses(&hub.url).await.len(), 1, "{command:?}");
        spcd.write("b.spc", &postgres("b", &source));
        until(&hub.url, &["a ready", "b ready"]).await;
    }
    spcd.stop();
}
