//! A hub in which spcd has the rights of `docs/managed.md`, and no others.

use crate::support::hub::{guarded, reader, until};
use crate::support::{Cluster, Spcd, query, value};

const PASSWORD: &str = "hunter2hunter2";

/// A hub as the page says, and the URLs of its administrator and of an ordinary role.
async fn managed(server: &Cluster) -> (String, String) {
    query(&server.url("postgres"), "CREATE DATABASE hub").await;
    let admin = server.url("hub");
    query(
        &admin,
        "CREATE EXTENSION IF NOT EXISTS postgres_fdw;
         CREATE ROLE spcd LOGIN CREATEROLE PASSWORD 'choose one';
         GRANT CREATE, TEMPORARY ON DATABASE hub TO spcd;
         GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO spcd;
         CREATE ROLE spcd_users;
         GRANT spcd_users TO spcd WITH ADMIN OPTION;
         CREATE ROLE ann LOGIN IN ROLE spcd_users",
    )
    .await;
    (admin, server.url_as("ann", "hub"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_superuser_rights_reads_through_a_private_gateway() {
    let (server, source) = (Cluster::start(&[]), guarded(PASSWORD).await);
    let (admin, ann) = managed(&server).await;
    let mut spcd = Spcd::new(&server.url_as("spcd", "hub"));
    spcd.env("SPCD_GATEWAY", "private");
    let block = reader("p", source.port(), PASSWORD);
    spcd.write(
        "p.spc",
        &block.replace("plugin ", "gateway = true\n  plugin "),
    );
    spcd.start();
    until(&admin, &["p ready"]).await;
    assert_eq!(value(&ann, "SELECT id FROM p.t").await, "7");
    query(&source.url("postgres"), "ALTER TABLE t ADD more text").await;
    assert_eq!(spcd.spcd(&["refresh", "p", "--wait"]).code, 0);
    assert_eq!(value(&ann, "SELECT count(more) FROM p.t").await, "0");
    spcd.write("p.spc", "");
    until(&admin, &[]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_needs_no_superuser_either() {
    let (server, gateway, source) = (
        Cluster::start(&[]),
        Cluster::start(&[]),
        guarded(PASSWORD).await,
    );
    let (admin, ann) = managed(&server).await;
    query(&gateway.url("postgres"), "CREATE DATABASE gw").await;
    query(
        &gateway.url("gw"),
        "CREATE EXTENSION postgres_fdw; CREATE ROLE spcd LOGIN CREATEROLE;
         GRANT CREATE, TEMPORARY ON DATABASE gw TO spcd;
         GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO spcd",
    )
    .await;
    // As a gateway's own is to be: the hub's role logs in with its password.
    let hba = "host gw spcd_gateway_reader all scram-sha-256\nhost all all all trust\n";
    gateway.write("pg_hba.conf", hba);
    gateway.reload();
    let mut spcd = Spcd::new(&server.url_as("spcd", "hub"));
    spcd.env("SPCD_GATEWAY", &gateway.url_as("spcd", "gw"));
    let block = reader("p", source.port(), PASSWORD);
    spcd.write(
        "p.spc",
        &block.replace("plugin ", "gateway = true\n  plugin "),
    );
    spcd.start();
    until(&admin, &["p ready"]).await;
    assert_eq!(value(&ann, "SELECT id FROM p.t").await, "7");
    spcd.stop();
}
