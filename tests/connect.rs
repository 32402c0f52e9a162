//! Sessions with real servers: every way to authenticate, every sslmode, and what is said when it
//! does not work.

mod pooler;
mod tls;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::authority::Authority;
use crate::support::{Cluster, Finished, Spcd, free_port, query, shared, value};

/// Lets a command connect with this connection string.
fn attempt(spcd: &Spcd, cluster: &Cluster, params: &str) -> Finished {
    let database = format!(
        "hostaddr=127.0.0.1 port={} dbname=postgres {params}",
        cluster.port()
    );
    spcd.spcd(&["--database", &database, "migrate"])
}

#[track_caller]
fn connects(spcd: &Spcd, cluster: &Cluster, params: &str) {
    let done = attempt(spcd, cluster, params);
    assert_eq!(done.code, 0, "{params}: {done:?}");
}

#[track_caller]
fn refuses(spcd: &Spcd, cluster: &Cluster, params: &str, says: &[&str]) {
    let done = attempt(spcd, cluster, params);
    assert_eq!(done.code, 1, "{params}: {done:?}");
    for says in says {
        assert!(done.stderr.contains(says), "{params}: {done:?}");
    }
    assert!(!done.stderr.contains("hunter2"), "{done:?}");
}

#[tokio::test]
async fn every_way_to_authenticate_works_and_says_why_when_not() {
    let authority = Authority::new();
    authority.signed("server", "CN=db", "subjectAltName=DNS:db.example\n", "10");
    authority.signed(
        "certified",
        "CN=certified",
        "basicConstraints=CA:FALSE\n",
        "10",
    );
    let hba = "\
        local all all peer map=tests\n\
        hostssl all certified all cert\n\
        host all scram all scram-sha-256\n\
        host all md5 all md5\n\
        host all clear all password\n\
        host all rejected all reject\n";
    let server = authority.server("server", hba);
    let me = Command::new("id").arg("-un").output().unwrap();
    let me = String::from_utf8(me.stdout).unwrap().trim().to_owned();
    server.write("pg_ident.conf", &format!("tests {me} local_one\n"));
    server.reload();
    let url = server.url("postgres");
    for sql in [
        "CREATE ROLE certified SUPERUSER LOGIN",
        "CREATE ROLE rejected SUPERUSER LOGIN",
        "CREATE ROLE local_one SUPERUSER LOGIN",
        "CREATE ROLE scram SUPERUSER LOGIN PASSWORD 'hunter2'",
        "CREATE ROLE clear SUPERUSER LOGIN PASSWORD 'hunter2'",
        "SET password_encryption = 'md5'; CREATE ROLE md5 SUPERUSER LOGIN PASSWORD 'hunter2'",
    ] {
        query(&url, sql).await;
    }
    let mut spcd = Spcd::with_private_cluster();
    let (cert, key) = (
        authority.path("certified.crt"),
        authority.path("certified.key"),
    );

    for role in ["scram", "md5", "clear"] {
        connects(&spcd, &server, &format!("user={role} password=hunter2"));
        refuses(
            &spcd,
            &server,
            &format!("user={role} password=hunter23"),
            &["check the password"],
        );
        refuses(
            &spcd,
            &server,
            &format!("user={role}"),
            &["asks for a password", ".pgpass"],
        );
    }
    connects(
        &spcd,
        &server,
        "user=scram password=hunter2 sslmode=require host=db.example channel_binding=require",
    );
    refuses(&spcd, &server, "user=rejected", &["pg_hba.conf"]);
    refuses(
        &spcd,
        &server,
        "user=unknown_user dbname=nowhere",
        &["pg_hba.conf"],
    );
    refuses(
        &spcd,
        &server,
        "user=postgres dbname=nowhere",
        &["createdb nowhere"],
    );

    let certified =
        format!("user=certified host=db.example sslmode=require sslcert={cert} sslkey={key}");
    connects(&spcd, &server, &certified);
    refuses(
        &spcd,
        &server,
        "user=certified host=db.example sslmode=require",
        &["certificate"],
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    refuses(&spcd, &server, &certified, &["chmod 600"]);

    let socket = format!(
        "host={} port={} dbname=postgres",
        server.socket_dir().display(),
        server.port()
    );
    let done = spcd.spcd(&["--database", &format!("{socket} user=local_one"), "migrate"]);
    assert_eq!(done.code, 0, "{done:?}");
    let done = spcd.spcd(&["--database", &format!("{socket} user=scram"), "migrate"]);
    assert_eq!(done.code, 1, "{done:?}");

    // Passwords from a file: only if no other user can read it, and read again each time.
    let passfile = spcd.home().join(".pgpass");
    write_private(
        &passfile,
        &format!("127.0.0.1:{}:*:scram:hunter2\n", server.port()),
    );
    connects(&spcd, &server, "user=scram");
    write_private(&passfile, "*:*:*:scram:hunter23\n");
    refuses(&spcd, &server, "user=scram", &["check the password"]);
    write_private(&passfile, "*:*:*:scram:hunter2\n");
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o644)).unwrap();
    refuses(&spcd, &server, "user=scram", &["chmod 600"]);
    fs::remove_file(&passfile).unwrap();

    // A service, and the environment.
    fs::write(
        spcd.home().join(".pg_service.conf"),
        "[ours]\nuser=scram\npassword=hunter2\n",
    )
    .unwrap();
    connects(&spcd, &server, "service=ours");
    spcd.env("PGUSER", "md5").env("PGPASSWORD", "hunter2");
    connects(&spcd, &server, "");
    connects(&spcd, &server, "service=ours");
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn of_several_hosts_the_one_that_takes_writes_is_found() {
    let reader = Cluster::start(&["default_transaction_read_only = on"]);
    let writer = shared().database().await;
    let spcd = Spcd::with_private_cluster();
    let ports = |last: u16| format!("{},{},{last}", free_port(), reader.port());
    let hosts = format!(
        "postgres://postgres@/{}?host=127.0.0.1,127.0.0.1,127.0.0.1",
        writer.name
    );
    let done = spcd.spcd(&[
        "--database",
        &format!("{hosts}&port={}", ports(shared().port())),
        "migrate",
    ]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(
        value(
            &writer.url,
            "SELECT count(*) FROM pg_namespace WHERE nspname = 'spcd'"
        )
        .await,
        "1"
    );

    let hosts = hosts.replace(&format!("/{}?", writer.name), "/postgres?");
    let done = spcd.spcd(&[
        "--database",
        &format!("{hosts}&port={}", ports(reader.port())),
        "migrate",
    ]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("read-only"), "{done:?}");
}

#[tokio::test]
async fn a_host_that_says_nothing_does_not_keep_the_next_one_waiting() {
    let writer = shared().database().await;
    // The kernel accepts the connection, and no process answers: a primary that is paused.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let spcd = Spcd::new(&format!(
        "postgres://postgres@{},127.0.0.1:{}/{}?connect_timeout=3600",
        silent.local_addr().unwrap(),
        shared().port(),
        writer.name
    ));
    let done = spcd.spcd(&["apply"]);
    assert_eq!(done.code, 0, "{done:?}");
}

#[test]
fn a_server_that_is_not_there_or_says_nothing_is_given_up_and_named() {
    let spcd = Spcd::with_private_cluster();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let silence = spcd.spcd(&[
        "--database",
        &format!("postgres://u:hunter2@127.0.0.1:{port}/d?connect_timeout=1"),
        "migrate",
    ]);
    assert_eq!(silence.code, 1);
    assert!(
        silence.stderr.contains("no answer within 1 s"),
        "{silence:?}"
    );

    let closed = free_port();
    let closed = spcd.spcd(&[
        "--database",
        &format!("postgres://u:hunter2@127.0.0.1:{closed}/d"),
        "migrate",
    ]);
    assert!(closed.stderr.contains("Connection refused"), "{closed:?}");
    let unknown = spcd.spcd(&[
        "--database",
        "postgres://u:hunter2@no-such-host.invalid/d",
        "migrate",
    ]);
    assert!(
        unknown.stderr.contains("no-such-host.invalid"),
        "{unknown:?}"
    );
    for done in [silence, closed, unknown] {
        assert!(!done.stderr.contains("hunter2"), "{done:?}");
    }
}

#[tokio::test]
async fn a_session_does_not_depend_on_what_roles_and_databases_set() {
    let cluster = Cluster::start(&[]);
    let url = cluster.url("postgres");
    // All at once: the next session already has them.
    let settings = [
        "statement_timeout = 1",
        "lock_timeout = 1",
        "search_path = nowhere",
        "standard_conforming_strings = off",
        "default_transaction_isolation = serializable",
        "datestyle = 'German'",
        "client_min_messages = debug1",
    ];
    let sql: String = settings
        .iter()
        .map(|setting| format!("ALTER ROLE postgres SET {setting};"))
        .collect();
    query(&url, &sql).await;
    let spcd = Spcd::new(&url);
    let done = spcd.spcd(&["migrate"]);
    assert_eq!(done.code, 0, "{done:?}");
}

#[tokio::test]
async fn a_cluster_of_ones_own_survives_a_power_cut() {
    let mut cluster = Cluster::start(&["max_locks_per_transaction = 77"]);
    let url = cluster.url("postgres");
    assert_eq!(value(&url, "SHOW max_locks_per_transaction").await, "77");
    cluster.kill9();
    cluster.start_again();
    assert_eq!(value(&url, "SELECT 1").await, "1");
}

#[tokio::test]
async fn databases_of_the_shared_cluster_are_apart() {
    let (one, other) = (shared().database().await, shared().database().await);
    query(&one.url, "CREATE TABLE t ()").await;
    assert_eq!(
        value(
            &other.url,
            "SELECT count(*) FROM pg_class WHERE relname = 't'"
        )
        .await,
        "0"
    );
}
