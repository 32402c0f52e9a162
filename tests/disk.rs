//! The hub's disk is full: what is there stays, and what is missing comes when there is room again.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use crate::support::hub::{made_by, postgres, until};
use crate::support::{Cluster, DEADLINE, Spcd, eventually, eventually_now, query, value};

const TABLES: usize = 300;
const FULL: &str = "No space left on device";

/// Writes a file until nothing more fits.
fn fill(path: &Path) {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    let block = [0; 8192];
    while file.write_all(&block).is_ok() {}
    // A smaller write may still fit.
    while file.write_all(&block[..512]).is_ok() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_hub_costs_nothing_that_is_there() {
    let conf = ["min_wal_size = 80MB", "wal_recycle = on"];
    let Some(mut server) = Cluster::on_small_disk("300m", &conf) else {
        return;
    };
    let hub = server.database().await;
    let one = made_by("CREATE TABLE t (id integer); INSERT INTO t VALUES (1)").await;
    let columns: String = (0..30).map(|n| format!(", c{n} integer")).collect();
    let many: String = (0..TABLES)
        .map(|n| format!("CREATE TABLE t{n} (id integer{columns});"))
        .collect();
    let many = made_by(&many).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &one));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let filler = server.socket_dir().join("filler");
    fill(&filler);
    spcd.write("b.spc", &postgres("b", &many));
    eventually_now("the disk is full", || {
        server.log().contains(FULL).then_some(())
    });
    assert_eq!(value(&hub.url, "SELECT id FROM a.t").await, "1");
    // A daemon that starts now waits as well.
    spcd.kill9();
    spcd.start();
    spcd.logged("this daemon leads");
    let failed = server.log().matches(FULL).count();
    eventually_now("it is tried again", || {
        (server.log().matches(FULL).count() > failed).then_some(())
    });
    assert_eq!(value(&hub.url, "SELECT id FROM a.t").await, "1");
    let left = "SELECT count(*) FROM spcd.connection_state WHERE connection_name = 'a'
                AND status IN ('ready', 'pending')";
    assert_eq!(value(&hub.url, left).await, "1");

    fs::remove_file(&filler).unwrap();
    until(&hub.url, &["a ready", "b ready"]).await;
    let tables = "SELECT count(*) FROM pg_foreign_table";
    assert_eq!(value(&hub.url, tables).await, (TABLES + 1).to_string());
    assert_eq!(spcd.spcd(&["plan"]).code, 0);

    // The server ends when it can write no log ahead, and is started again when there is room.
    fill(&filler);
    server.stop_immediately();
    spcd.write("c.spc", &postgres("c", &one));
    fs::remove_file(&filler).unwrap();
    server.start_again();
    until(&hub.url, &["a ready", "b ready", "c ready"]).await;
    eventually("queries are answered", DEADLINE, || async {
        (query(&hub.url, "SELECT id FROM c.t").await == [["1"]]).then_some(())
    })
    .await;
    spcd.stop();
}
