//! Sources that are reached through ssh, with a real ssh server.

use std::net::TcpListener;
use std::path::Path;

use crate::health::{WELL, health, told, until_health, watching};
use crate::support::hub::{guarded, made_by, postgres_with, until, until_error};
use crate::support::mariadb::{MariaDb, mysql, reader};
use crate::support::sshd::Sshd;
use crate::support::{
    Cluster, DEADLINE, Database, Spcd, eventually, eventually_now, free_port, query, shared,
    try_query, value,
};

async fn source() -> Database {
    made_by("CREATE TABLE t (id integer); INSERT INTO t VALUES (7)").await
}

/// The port at which a connection's server points.
async fn port(hub: &str, name: &str) -> String {
    let sql = format!(
        "SELECT substr(o, 6) FROM pg_foreign_server, unnest(srvoptions) AS o
         WHERE srvname = '{name}' AND o LIKE 'port=%'"
    );
    value(hub, &sql).await
}

/// Waits until a connection's table can be read.
async fn readable(hub: &str, table: &str) {
    eventually(&format!("{table} can be read"), DEADLINE, || async {
        let rows = try_query(hub, &format!("SELECT id FROM {table}"))
            .await
            .ok()?;
        (rows == [[Some("7".to_owned())]]).then_some(())
    })
    .await;
}

/// The processes of ssh that hold tunnels for a daemon.
fn masters(spcd: &Spcd) -> usize {
    let mark = spcd.state_dir().join("ssh").display().to_string();
    let is_one = |process: &Path| {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.starts_with("ssh") && line.contains(&mark)
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter(|process| is_one(&process.path())).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_behind_an_ssh_server_is_reached_and_the_tunnel_made_anew() {
    let source = source().await;
    let mut sshd = Sshd::start();
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres_with("a", &source, &sshd.block()));
    let plan = spcd.spcd(&["plan"]);
    let through = format!("127.0.0.1:{} to 127.0.0.1:{}", sshd.port(), shared().port());
    assert!(plan.stdout.contains("reached by ssh through"), "{plan:?}");
    assert!(plan.stdout.contains(&through), "{plan:?}");
    // Without a daemon a command opens the tunnel for itself.
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    query(&hub.url, "CREATE EXTENSION postgres_fdw").await;
    let plan = spcd.spcd(&["plan", "--refresh"]);
    assert!(plan.stdout.contains("table"), "{plan:?}");
    assert!(!plan.stdout.contains("known after import"), "{plan:?}");
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    readable(&hub.url, "a.t").await;
    let at = port(&hub.url, "a").await;
    assert_ne!(at, shared().port().to_string());
    let options = "SELECT srvoptions @> '{hostaddr=127.0.0.1}' FROM pg_foreign_server";
    assert_eq!(value(&hub.url, options).await, "t");

    // The connection to the ssh server is cut.
    assert_eq!(sshd.cut(), 1);
    spcd.logged("the ssh tunnel dropped");
    readable(&hub.url, "a.t").await;

    // The ssh server is away: a new connection says so, and what is there stays.
    sshd.stop();
    spcd.write("b.spc", &postgres_with("b", &source, &sshd.block()));
    let error = until_error(&hub.url, "b", "ssh tunnel").await;
    assert!(error.contains("Connection refused"), "{error}");
    until(&hub.url, &["a ready", "b error"]).await;
    assert!(try_query(&hub.url, "SELECT id FROM a.t").await.is_err());
    sshd.start_again();
    until(&hub.url, &["a ready", "b ready"]).await;
    for table in ["a.t", "b.t"] {
        readable(&hub.url, table).await;
    }
    // Both share one tunnel, which ends where it did.
    assert_eq!(port(&hub.url, "a").await, at);
    assert_eq!(port(&hub.url, "b").await, at);
    assert_eq!(masters(&spcd), 1);
    assert_eq!(spcd.spcd(&["plan"]).code, 0);

    // Tunnels that are not needed any more are closed, and all of them with the daemon.
    let elsewhere = sshd.block().replace("127.0.0.1", "localhost");
    spcd.write("b.spc", &postgres_with("b", &source, &elsewhere));
    until_error(&hub.url, "b", "host key is not known").await;
    spcd.remove("b.spc");
    until(&hub.url, &["a ready"]).await;
    readable(&hub.url, "a.t").await;
    spcd.stop();
    eventually_now("ssh has ended", || (masters(&spcd) == 0).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_server_with_the_known_key_is_believed() {
    let source = source().await;
    let sshd = Sshd::start();
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    sshd.know("other_hosts", "stranger");
    std::fs::write(sshd.path("no_hosts"), "").unwrap();
    for (name, block) in [
        ("forged", sshd.block_with("client", "other_hosts")),
        ("unknown", sshd.block_with("client", "no_hosts")),
        ("locked", sshd.block_with("stranger", "known_hosts")),
        ("keyless", sshd.block_with("nowhere", "known_hosts")),
    ] {
        let text = postgres_with(name, &source, &block);
        spcd.write(&format!("{name}.spc"), &text);
    }
    spcd.start();
    until_error(&hub.url, "forged", "another host key than the one in").await;
    until_error(&hub.url, "unknown", "ssh-keyscan -p").await;
    until_error(&hub.url, "locked", "does not let").await;
    until_error(&hub.url, "keyless", "cannot be read").await;
    // Nothing was learned from them.
    assert_eq!(std::fs::read_to_string(sshd.path("no_hosts")).unwrap(), "");
    sshd.know("other_hosts", "host");
    let again = spcd.spcd(&["refresh", "forged", "--wait"]);
    assert_eq!(again.code, 0, "{again:?}");
    readable(&hub.url, "forged.t").await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_another_process_has_is_not_used() {
    let source = source().await;
    let sshd = Sshd::start();
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres_with("a", &source, &sshd.block()));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let (before, oid) = (port(&hub.url, "a").await, "SELECT 'a.t'::regclass::oid");
    let table = value(&hub.url, oid).await;
    spcd.kill9();
    let taken = eventually_now("the port is free", || {
        TcpListener::bind(("127.0.0.1", before.parse().unwrap())).ok()
    });
    spcd.start();
    readable(&hub.url, "a.t").await;
    let after = port(&hub.url, "a").await;
    assert_ne!(before, after);
    assert_eq!(value(&hub.url, oid).await, table, "it was altered in place");
    until(&hub.url, &["a ready"]).await;
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    // It stays there from then on.
    drop(taken);
    spcd.stop();
    spcd.start();
    spcd.logged("\"this daemon leads\",\"epoch\":3");
    until(&hub.url, &["a ready"]).await;
    readable(&hub.url, "a.t").await;
    assert_eq!(port(&hub.url, "a").await, after);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mariadb_is_reached_through_ssh() {
    let source = MariaDb::start();
    source.run(
        "CREATE DATABASE shop; CREATE TABLE shop.t (id int); INSERT INTO shop.t VALUES (7);
         CREATE USER reader@'127.0.0.1' IDENTIFIED BY 'x'; GRANT SELECT ON shop.* TO reader@'127.0.0.1'",
    );
    let sshd = Sshd::start();
    let cluster = Cluster::start(&[]);
    let hub = cluster.database().await;
    let mut spcd = Spcd::new(&hub.url);
    let through = reader("x") + &sshd.block();
    spcd.write("a.spc", &mysql("a", source.port(), &through));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    readable(&hub.url, "a.t").await;
    assert_ne!(port(&hub.url, "a").await, source.port().to_string());
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_behind_ssh_is_lost_with_the_ssh_server_and_restored_with_it() {
    let source = source().await;
    let mut sshd = Sshd::start();
    let hub = shared().database().await;
    let mut spcd = watching(&hub.url);
    spcd.write("a.spc", &postgres_with("a", &source, &sshd.block()));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    until_health(&hub.url, "a", WELL).await;
    readable(&hub.url, "a.t").await;
    let table = value(&hub.url, "SELECT 'a.t'::regclass::oid").await;

    sshd.stop();
    until_health(&hub.url, "a", "NOT reachable AND attempts > 4").await;
    let failure = health(&hub.url, "a", "last_failure").await;
    assert!(failure.contains("the ssh tunnel through"), "{failure}");
    assert!(failure.contains("Connection refused"), "{failure}");
    assert!(
        failure.contains("the settings of the block `ssh`"),
        "{failure}"
    );
    assert!(try_query(&hub.url, "SELECT id FROM a.t").await.is_err());
    until(&hub.url, &["a ready"]).await;
    let all = told(&hub.url, "a").await;
    assert!(all.ends_with("lost ready ready"), "{all}");

    sshd.start_again();
    until_health(&hub.url, "a", WELL).await;
    readable(&hub.url, "a.t").await;
    until(&hub.url, &["a ready"]).await;
    let all = told(&hub.url, "a").await;
    assert!(
        all.ends_with("lost ready ready, restored ready ready"),
        "{all}"
    );
    assert_eq!(value(&hub.url, "SELECT 'a.t'::regclass::oid").await, table);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_tells_what_ssh_says_from_what_the_source_says() {
    let mut sshd = Sshd::start();
    let hub = shared().database().await;
    let source = guarded("hunter2").await;
    let mut spcd = Spcd::new(&hub.url);
    sshd.know("other_hosts", "stranger");
    std::fs::write(sshd.path("no_hosts"), "").unwrap();
    let block = |name: &str, port: u16, password: &str, ssh: &str| {
        format!(
            "connection \"{name}\" {{\n  plugin   = \"postgres\"\n  host     = \"127.0.0.1\"\n  \
             port     = {port}\n  dbname   = \"postgres\"\n  user     = \"reader\"\n  \
             password = \"{password}\"\n{ssh}}}\n"
        )
    };
    let (good, port) = (sshd.block(), source.port());
    let unused = free_port();
    let through = |key: &str, hosts: &str| sshd.block_with(key, hosts);
    let cases = [
        (
            "forged",
            block("forged", port, "hunter2", &through("client", "other_hosts")),
            "ssh",
            "another host key than the one in",
            "`ssh` can log in",
        ),
        (
            "keyless",
            block(
                "keyless",
                port,
                "hunter2",
                &through("nowhere", "known_hosts"),
            ),
            "ssh",
            "cannot be read",
            "`ssh` can log in",
        ),
        (
            "locked",
            block(
                "locked",
                port,
                "hunter2",
                &through("stranger", "known_hosts"),
            ),
            "ssh",
            "does not let",
            "`ssh` can log in",
        ),
        (
            "unused",
            block("unused", unused, "hunter2", &good),
            "connection refused",
            "server closed",
            "seen from the ssh server",
        ),
        (
            "refused",
            block("refused", port, "swordfish", &good),
            "authentication",
            "password authentication failed",
            "check `user` and `password`",
        ),
        (
            "unknown",
            block("unknown", port, "hunter2", &through("client", "no_hosts")),
            "ssh",
            "host key is not known",
            "`ssh` can log in",
        ),
    ];
    let told = |spcd: &Spcd, args: &[&str], kind: &str, reason: &str, hint: &str| {
        let done = spcd.spcd(args);
        assert_eq!(done.code, 1, "{args:?}: {done:?}");
        let name = args[1];
        let begin = format!("spcd: {name}: {kind}: ");
        assert!(done.stderr.starts_with(&begin), "{args:?}: {done:?}");
        assert!(done.stderr.contains(reason), "{args:?}: {done:?}");
        let (_, hinted) = done.stderr.split_once("\nhint: ").unwrap();
        assert!(hinted.contains(hint), "{args:?}: {done:?}");
        assert!(!done.stderr.contains("hunter2"), "{done:?}");
    };
    let answers = |spcd: &Spcd, args: &[&str]| {
        let done = spcd.spcd(args);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.stdout.starts_with("good: answers in "), "{done:?}");
        assert!(done.stdout.contains("\n  user      reader\n"), "{done:?}");
        assert!(done.stdout.contains("\n  tables    1\n"), "{done:?}");
    };
    // A block that is in no config directory, without a daemon; and all of them beside one.
    let draft = spcd.dir().join("draft.spc");
    std::fs::write(&draft, block("good", port, "hunter2", &good)).unwrap();
    let file = ["--file", "draft.spc"];
    answers(&spcd, &["test", "good", file[0], file[1]]);
    for (name, block, kind, reason, hint) in &cases {
        std::fs::write(&draft, block).unwrap();
        told(&spcd, &["test", name, file[0], file[1]], kind, reason, hint);
    }
    for (name, block, ..) in &cases {
        spcd.write(&format!("{name}.spc"), block);
    }
    spcd.write("good.spc", &block("good", port, "hunter2", &good));
    spcd.start();
    let states = [
        "forged error",
        "good ready",
        "keyless error",
        "locked error",
        "refused error",
        "unknown error",
        "unused error",
    ];
    until(&hub.url, &states).await;
    answers(&spcd, &["test", "good"]);
    for (name, _, kind, reason, hint) in &cases {
        told(&spcd, &["test", name], kind, reason, hint);
    }
    // The daemon's port is there as before: what is the matter is told all the same.
    sshd.stop();
    let unreachable = ("ssh", "Connection refused", "`ssh` can log in");
    let (kind, reason, hint) = unreachable;
    told(&spcd, &["test", "good"], kind, reason, hint);
    spcd.stop();
    told(&spcd, &["test", "good"], kind, reason, hint);
    sshd.start_again();
    answers(&spcd, &["test", "good"]);
    eventually_now("ssh has ended", || (masters(&spcd) == 0).then_some(()));
}
