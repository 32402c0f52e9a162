//! What a connection says in plain words, on real servers.

use std::time::Duration;

use crate::support::hub::{postgres_with, until};
use crate::support::mariadb::{MariaDb, mysql};
use crate::support::{Cluster, Spcd, connect, query, shared, try_query, value};

/// The SQLSTATE with which a statement is refused.
async fn refused(url: &str, sql: &str) -> String {
    let error = try_query(url, sql).await.expect_err(sql);
    let code = error.code().map(|code| code.code().to_owned());
    code.unwrap_or_else(|| error.to_string())
}

/// With its own process of the server, statements that hang can be told from those that are stopped:
/// the latter end by themselves.
async fn stopped(url: &str, sql: &str) {
    let client = connect(url).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), client.batch_execute(sql)).await;
    assert!(ended.expect("the source stops it").is_err(), "{sql}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_read_only_refuses_every_way_to_write() {
    let source = shared().database().await;
    query(
        &source.url,
        "CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1);
         CREATE FUNCTION sneak() RETURNS integer LANGUAGE sql AS 'INSERT INTO public.t VALUES (7) RETURNING id';
         CREATE VIEW writes AS SELECT sneak() AS id;
         CREATE VIEW sleeps AS SELECT 1 AS id FROM pg_sleep(100000);",
    )
    .await;
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let kept = "  options = \"-c work_mem=7MB\"\n  read_only = true\n";
    spcd.write("shut.spc", &postgres_with("shut", &source, kept));
    spcd.write("open.spc", &postgres_with("open", &source, ""));
    let timed = "  statement_timeout = \"200ms\"\n  connect_timeout = \"7s\"\n";
    spcd.write("timed.spc", &postgres_with("timed", &source, timed));
    spcd.start();
    until(&hub.url, &["open ready", "shut ready", "timed ready"]).await;

    for statement in [
        "INSERT INTO shut.t VALUES (2)",
        "UPDATE shut.t SET id = 3",
        "DELETE FROM shut.t",
        "TRUNCATE shut.t",
        // Who owns the server may alter it, yet the source's session stays read-only.
        "ALTER SERVER shut OPTIONS (SET updatable 'true', SET truncatable 'true');
         INSERT INTO shut.t VALUES (2)",
        "ALTER SERVER shut OPTIONS (SET updatable 'true', SET truncatable 'true');
         TRUNCATE shut.t",
        "SELECT * FROM shut.writes",
    ] {
        refused(&hub.url, statement).await;
    }
    assert_eq!(
        refused(&hub.url, "SELECT * FROM shut.writes").await,
        "25006"
    );
    assert_eq!(query(&hub.url, "SELECT id FROM shut.t").await, [["1"]]);
    // What the user wrote into `options` is still there.
    let options = "SELECT srvoptions::text FROM pg_foreign_server WHERE srvname = 'shut'";
    assert!(
        value(&hub.url, options)
            .await
            .contains("work_mem=7MB -c default_transaction_read_only=on")
    );
    let mut open = query(&hub.url, "SELECT id FROM open.writes").await;
    assert_eq!(open.pop(), Some(vec!["7".to_owned()]));

    stopped(&hub.url, "SELECT * FROM timed.sleeps").await;
    let options = "SELECT srvoptions::text FROM pg_foreign_server WHERE srvname = 'timed'";
    assert!(value(&hub.url, options).await.contains("connect_timeout=7"));

    // It is open again without being made anew.
    let oid = value(&hub.url, "SELECT 'shut.t'::regclass::oid").await;
    spcd.write(
        "shut.spc",
        &postgres_with("shut", &source, "  read_only = false\n"),
    );
    assert_eq!(spcd.spcd(&["wait", "shut"]).code, 0);
    query(&hub.url, "INSERT INTO shut.t VALUES (2)").await;
    assert_eq!(value(&hub.url, "SELECT 'shut.t'::regclass::oid").await, oid);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mariadb_that_is_read_only_refuses_every_way_to_write() {
    let source = MariaDb::start();
    source.run(
        "CREATE DATABASE shop; USE shop; CREATE TABLE t (id int PRIMARY KEY, v int);
         INSERT INTO t VALUES (1, 1);
         CREATE VIEW sleeps AS SELECT sleep(100000) AS id;
         CREATE USER writer@'127.0.0.1' IDENTIFIED BY 'x';
         GRANT ALL ON shop.* TO writer@'127.0.0.1'",
    );
    let cluster = Cluster::start(&[]);
    let hub = cluster.database().await;
    let connection = |name: &str, more: &str| {
        let more = format!("  user = \"writer\"\n  password = \"x\"\n{more}");
        mysql(name, source.port(), &more)
    };
    let mut spcd = Spcd::new(&hub.url);
    let both = "  read_only = true\n  statement_timeout = \"200ms\"\n";
    spcd.write("shut.spc", &connection("shut", both));
    spcd.write("open.spc", &connection("open", ""));
    spcd.start();
    until(&hub.url, &["open ready", "shut ready"]).await;
    for statement in [
        "INSERT INTO shut.t VALUES (2, 2)",
        "UPDATE shut.t SET v = 3 WHERE id = 1",
        "DELETE FROM shut.t WHERE id = 1",
        "TRUNCATE shut.t",
    ] {
        refused(&hub.url, statement).await;
    }
    assert_eq!(
        query(&hub.url, "SELECT id, v FROM shut.t").await,
        [["1", "1"]]
    );
    stopped(&hub.url, "SELECT * FROM shut.sleeps").await;
    query(&hub.url, "INSERT INTO open.t VALUES (2, 2)").await;
    assert_eq!(value(&hub.url, "SELECT count(*) FROM open.t").await, "2");
    spcd.stop();
}

/// A mistake costs its own block, has its line, and nothing is sent anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_said_with_its_line_before_anything_is_sent() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write(
        "a.spc",
        "connection \"a\" {\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  port = 70000\n}\n\
         connection \"b\" {\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  sslmode = \"verify-ful\"\n}\n\
         connection \"c\" {\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  sslmode = \"verify-full\"\n}\n\
         connection \"d\" {\n  plugin = \"postgres\"\n  user = \"me\"\n}\n\
         connection \"e\" {\n  plugin = \"mysql\"\n  database = \"d\"\n  connect_timeout = 3\n}\n",
    );
    let checked = spcd.spcd(&["check"]);
    assert_eq!(checked.code, 1);
    for part in [
        "a.spc:4:10",
        "expected a number from 1 to 65535 for `port`",
        "a.spc:9:13",
        "did you mean \"verify-full\"?",
        "a.spc:14:13",
        "`sslmode = \"verify-full\"` needs `sslrootcert`",
        "a.spc:18:10",
        "`user` needs `host`",
        "a.spc:23:3",
        "import { timeout = \"10s\" }",
    ] {
        let all = format!("{}{}", checked.stdout, checked.stderr);
        assert!(all.contains(part), "{part}: {all}");
    }
    spcd.start();
    until(
        &hub.url,
        &["a error", "b error", "c error", "d error", "e error"],
    )
    .await;
    assert_eq!(
        value(&hub.url, "SELECT count(*) FROM pg_foreign_server").await,
        "0"
    );
    spcd.stop();
}
