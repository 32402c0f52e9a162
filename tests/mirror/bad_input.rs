//! What a source may do, and what its connections may be: each costs itself only.

use super::mirroring;
use super::service::{PASSWORD, Service, tables};
use crate::support::authority::Authority;
use crate::support::hub::{until, until_error};
use crate::support::proxy::Proxy;
use crate::support::{DEADLINE, Spcd, eventually, query, shared, try_query, value};

/// Waits for a diagnostic with this text.
async fn diagnosed(hub: &str, part: &str) {
    let sql = "SELECT message || ' (' || hint || ')' FROM spcd.config_diagnostic";
    let mut last = Vec::new();
    for _ in 0..6_000 {
        last = try_query(hub, sql).await.unwrap_or_default();
        if last
            .iter()
            .flatten()
            .flatten()
            .any(|text| text.contains(part))
        {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("no diagnostic says {part:?}: {last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_have_no_place_here_cost_only_their_connections() {
    let service = Service::start().await;
    for name in ["aws", "Aws", "steampipe_x", "own", "test_1"] {
        service.load(name, &tables(name)).await;
    }
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("cloud.spc", &service.mirror("  exclude = [\"test_*\"]\n"));
    let own = "connection \"own\" {\n  plugin = \"postgres\"\n  import_schema = \"disabled\"\n}\n";
    spcd.write("own.spc", own);
    spcd.start();
    until(&hub.url, &["Aws ready", "aws ready", "own disabled"]).await;
    for (name, title) in [("\"Aws\"", "Aws"), ("aws", "aws")] {
        let sql = format!("SELECT title FROM {name}.account");
        assert_eq!(value(&hub.url, &sql).await, title);
    }
    diagnosed(&hub.url, "\"Aws\" and \"aws\" differ only in case").await;
    let reserved = "its connection \"steampipe_x\" is left out: names that begin with `steampipe_`";
    diagnosed(&hub.url, reserved).await;
    let local = "its connection \"own\" is left out: the block `connection \"own\"` at";
    diagnosed(&hub.url, local).await;
    // With a prefix each has a place.
    spcd.write("cloud.spc", &service.mirror("  prefix = \"c_\"\n"));
    let all = ["c_Aws", "c_aws", "c_own", "c_steampipe_x", "c_test_1"];
    let mut ready: Vec<String> = all.iter().map(|name| format!("{name} ready")).collect();
    ready.push("own disabled".into());
    let ready: Vec<&str> = ready.iter().map(String::as_str).collect();
    until(&hub.url, &ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_with_other_columns_is_understood_and_another_source_is_not() {
    let service = Service::start().await;
    let alter = "ALTER TABLE steampipe_internal.steampipe_connection ADD extra jsonb DEFAULT '{}'";
    query(&service.url, alter).await;
    service.load("aws", &tables("aws")).await;
    let (hub, spcd) = mirroring(&service, "").await;
    until(&hub.url, &["aws ready"]).await;
    let alter = "ALTER TABLE steampipe_internal.steampipe_connection DROP schema_hash";
    query(&service.url, alter).await;
    let bad = "INSERT INTO steampipe_internal.steampipe_connection
               SELECT * FROM jsonb_populate_record(NULL::steampipe_internal.steampipe_connection, (
                   SELECT to_jsonb(s) || '{\"name\": \"bad\", \"state\": \"error\", \"error\": \"no region\"}'
                   FROM steampipe_internal.steampipe_connection s))";
    query(&service.url, bad).await;
    service.announce().await;
    until_error(&hub.url, "bad", "no region").await;
    until(&hub.url, &["aws ready", "bad error"]).await;
    // A column without which nothing can be said.
    let alter = "ALTER TABLE steampipe_internal.steampipe_connection RENAME state TO phase";
    query(&service.url, alter).await;
    service.announce().await;
    let unknown = "steampipe_internal.steampipe_connection has rows without name and state";
    diagnosed(&hub.url, unknown).await;
    until(&hub.url, &["aws ready", "bad error"]).await;

    let other = shared().database().await;
    let source = format!(
        "mirror \"cloud\" {{\n  source = \"postgresql://postgres@127.0.0.1:{}/{}\"\n}}\n",
        shared().port(),
        other.name
    );
    spcd.write("cloud.spc", &source);
    let looked_for = "it has no spcd.connection_state and no \
                      steampipe_internal.steampipe_connection";
    diagnosed(&hub.url, looked_for).await;
    until(&hub.url, &["aws ready", "bad error"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_or_a_schema_that_is_not_as_it_should_be_costs_itself() {
    let service = Service::start().await;
    let odd = "CREATE TYPE odd AS (a int); CREATE TABLE t (v odd); CREATE TABLE fine (id int)";
    service.load("odd", odd).await;
    service.load("aws", &tables("aws")).await;
    service.load("hollow", "SELECT 1").await;
    let tree = "CREATE EXTENSION IF NOT EXISTS ltree SCHEMA public; CREATE TABLE t (path ltree)";
    service.load("tree", tree).await;
    let (hub, _spcd) = mirroring(&service, "").await;
    let all = ["aws ready", "hollow ready", "odd ready", "tree ready"];
    until(&hub.url, &all).await;
    let warnings = "SELECT warnings::text FROM spcd.connection_state WHERE connection_name = 'odd'";
    assert!(value(&hub.url, warnings).await.contains("odd"));
    query(&hub.url, "SELECT id FROM odd.fine").await;
    query(&hub.url, "SELECT path FROM tree.t").await;

    // Ready, and no schema.
    service.drop_schema("hollow").await;
    service.list("hollow", "ready", "").await;
    service.announce().await;
    until_error(&hub.url, "hollow", "has no schema \"hollow\" there").await;
    service.load("hollow", "CREATE TABLE now (id int)").await;
    until(&hub.url, &all).await;
    query(&hub.url, "SELECT id FROM hollow.now").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_and_a_burst_of_notifications_change_nothing_here() {
    let service = Service::start().await;
    service.load("aws", &tables("aws")).await;
    let (hub, spcd) = mirroring(&service, "").await;
    until(&hub.url, &["aws ready"]).await;
    let oid = "SELECT 'aws.account'::regclass::oid";
    let before = value(&hub.url, oid).await;
    let burst: String = (0..1_000)
        .map(|n| format!("NOTIFY steampipe_notification, '{n}';"))
        .collect();
    query(&service.url, &burst).await;
    service.load("gcp", &tables("gcp")).await;
    until(&hub.url, &["aws ready", "gcp ready"]).await;

    query(&service.url, "ALTER ROLE steampipe PASSWORD 'another one'").await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'steampipe'";
    query(&service.url, end).await;
    diagnosed(&hub.url, "password authentication failed").await;
    until(&hub.url, &["aws ready", "gcp ready"]).await;
    let text = service.mirror("").replace(PASSWORD, "another one");
    spcd.write("cloud.spc", &text);
    service.load("oci", &tables("oci")).await;
    until(&hub.url, &["aws ready", "gcp ready", "oci ready"]).await;
    assert_eq!(
        value(&hub.url, "SELECT title FROM aws.account").await,
        "aws"
    );
    assert_eq!(value(&hub.url, oid).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hangs_delays_no_other_connection() {
    let service = Service::start().await;
    service.load("aws", &tables("aws")).await;
    let proxy = Proxy::to(service.server.port()).await;
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let through = service.mirror("  refresh_interval = 1\n").replace(
        &format!(":{}/", service.server.port()),
        &format!(":{}/", proxy.port()),
    );
    spcd.write("cloud.spc", &through);
    spcd.start();
    until(&hub.url, &["aws ready"]).await;
    proxy.swallow(true);
    proxy.freeze();
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id int)").await;
    spcd.write("own.spc", &crate::support::hub::postgres("own", &source));
    until(&hub.url, &["aws ready", "own ready"]).await;
    diagnosed(&hub.url, "no answer within").await;
    until(&hub.url, &["aws ready", "own ready"]).await;
    proxy.swallow(false);
    proxy.hang_up();
    service.load("gcp", &tables("gcp")).await;
    eventually("it is followed again", DEADLINE, || async {
        let sql = "SELECT count(*) FROM spcd.connection_state WHERE status = 'ready'";
        (value(&hub.url, sql).await == "3").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_an_error_of_the_mirror_until_it_is_known() {
    let (old, new) = (Authority::new(), Authority::new());
    let names = "subjectAltName = DNS:localhost, IP:127.0.0.1";
    for authority in [&old, &new] {
        authority.signed("server", "CN=localhost", names, "30");
    }
    let server = old.server("server", "");
    let service = Service::on(server).await;
    service.load("aws", &tables("aws")).await;
    let block = |authority: &Authority| {
        let more = format!(
            "  sslmode = \"verify-full\"\n  sslrootcert = \"{}\"\n",
            authority.path("ca.crt")
        );
        service.mirror(&more)
    };
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("cloud.spc", &block(&old));
    spcd.start();
    until(&hub.url, &["aws ready"]).await;
    for (file, from) in [("server.crt", "server.crt"), ("server.key", "server.key")] {
        let text = std::fs::read_to_string(new.path(from)).unwrap();
        let path = service.server.write(file, &text);
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(path, closed).unwrap();
    }
    service.server.reload();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'steampipe'";
    query(&service.url, end).await;
    diagnosed(&hub.url, "certificate").await;
    until(&hub.url, &["aws ready"]).await;
    spcd.write("cloud.spc", &block(&new));
    service.load("gcp", &tables("gcp")).await;
    until(&hub.url, &["aws ready", "gcp ready"]).await;
}
