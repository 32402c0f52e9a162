//! Commands, figures and settings of a gateway.

use std::fs;
use std::net::TcpListener;

use super::daemon;
use crate::support::authority::Authority;
use crate::support::http::Http;
use crate::support::hub::{guarded, postgres_with, reader, until, until_error};
use crate::support::steampipe::{READER, connection, gateway, plugins};
use crate::support::{
    Cluster, DEADLINE, Spcd, connect, eventually, eventually_now, free_port, query, shared, value,
};

const PASSWORD: &str = "hunter2hunter2";

fn behind_gateway(source: &Cluster) -> String {
    reader("p", source.port(), PASSWORD).replace("plugin ", "gateway = true\n  plugin ")
}

#[tokio::test(flavor = "multi_thread")]
async fn destroy_removes_what_was_made_in_the_hub_and_in_a_gateway() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let one = connection("a", "a", "token = \"one\"");
    spcd.write("a.spc", &(plugins() + &one));
    until(&hub.url, &["a ready"]).await;
    spcd.stop();
    let destroyed = spcd.spcd(&["destroy", "--yes"]);
    assert_eq!(destroyed.code, 0, "{destroyed:?}");
    assert!(
        destroyed.stdout.contains("in the gateway:"),
        "{destroyed:?}"
    );
    for url in [&hub.url, &gateway.url("postgres")] {
        let left = "SELECT (SELECT count(*) FROM pg_foreign_server)
                         + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'spcd%' OR nspname = 'a')";
        assert_eq!(value(url, left).await, "0", "{destroyed:?}");
    }
    let as_before = format!(
        "SELECT (SELECT count(*) FROM pg_roles WHERE rolname = '{READER}'),
                has_table_privilege('public', 'pg_foreign_server', 'SELECT')"
    );
    assert_eq!(
        query(&gateway.url("postgres"), &as_before).await,
        [["0", "t"]]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn destroy_removes_a_private_gateway_also_when_it_is_off_by_now() {
    let (server, source) = (Cluster::start(&[]), guarded(PASSWORD).await);
    let hub = server.database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_GATEWAY", "private");
    spcd.write("p.spc", &behind_gateway(&source));
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    assert!(spcd.state_dir().join("gateway/cluster/data").exists());
    spcd.env("SPCD_GATEWAY", "off");
    let destroyed = spcd.spcd(&["destroy", "--yes"]);
    assert_eq!(destroyed.code, 0, "{destroyed:?}");
    assert!(!spcd.state_dir().join("gateway").exists());
    let left = "SELECT count(*) FROM pg_foreign_server";
    assert_eq!(value(&hub.url, left).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_and_status_show_both_sides() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let one = connection("a", "a", "token = \"one\"");
    spcd.write("a.spc", &(plugins() + &one));
    until(&hub.url, &["a ready"]).await;
    let status = spcd.spcd(&["status", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(rows[0]["gateway"]["status"], "ready", "{status:?}");
    spcd.stop();
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    spcd.write("b.spc", &connection("b", "b", "token = \"two\""));
    let plan = spcd.spcd(&["plan"]);
    assert_eq!(plan.code, 2, "{plan:?}");
    let behind = plan.stdout.split_once("in the gateway:").unwrap().1;
    assert!(
        behind.contains('b') && !plan.stdout.contains("two"),
        "{plan:?}"
    );
    let plan = spcd.spcd(&["plan", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    assert!(shown["gateway"].is_object(), "{plan:?}");
    assert!(!plan.stdout.contains("two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_reaches_the_hub_and_open_sessions_go_on() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let one = connection("a", "a", "token = \"one\"");
    spcd.write("a.spc", &(plugins() + &one));
    until(&hub.url, &["a ready"]).await;
    let kept = "SELECT password FROM spcd.gateway_reader";
    let first = value(&gateway.url("postgres"), kept).await;
    let table = value(&hub.url, "SELECT 'a.account'::regclass::oid").await;
    let mut session = connect(&hub.url).await.unwrap();
    let transaction = session.transaction().await.unwrap();
    let token = "SELECT token FROM a.account";
    transaction.query_one(token, &[]).await.unwrap();
    let rotated = spcd.spcd(&["rotate-gateway"]);
    assert_eq!(rotated.code, 0, "{rotated:?}");
    // In the transaction that was open, and in the next one.
    transaction.query_one(token, &[]).await.unwrap();
    transaction.commit().await.unwrap();
    session.query_one(token, &[]).await.unwrap();
    assert_eq!(value(&hub.url, token).await, "one");
    let second = value(&gateway.url("postgres"), kept).await;
    assert_ne!(first, second);
    let login = |password: &str| {
        let port = gateway.port();
        format!("postgres://{READER}:{password}@127.0.0.1:{port}/postgres")
    };
    assert!(connect(&login(&first)).await.is_err());
    assert!(connect(&login(&second)).await.is_ok());
    assert_eq!(
        value(&hub.url, "SELECT 'a.account'::regclass::oid").await,
        table
    );
    // Without a daemon the command does the hub's part itself.
    spcd.stop();
    let rotated = spcd.spcd(&["rotate-gateway"]);
    assert_eq!(rotated.code, 0, "{rotated:?}");
    assert_eq!(value(&hub.url, token).await, "one");
    let all = [
        rotated.stdout,
        rotated.stderr,
        spcd.log(),
        gateway.log(),
        server.log(),
    ]
    .concat();
    for password in [first, second, value(&gateway.url("postgres"), kept).await] {
        assert!(!all.contains(&password));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_show_the_gateway_and_crashes_by_plugin() {
    let (server, mut gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = Spcd::new(&hub.url);
    let http = Http::of(&mut spcd);
    spcd.env("SPCD_GATEWAY", &gateway.url("postgres"));
    let one = connection("a", "a", "token = \"one\"");
    spcd.write("a.spc", &(plugins() + &one));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let session = connect(&hub.url).await.unwrap();
    session.query("SELECT * FROM a.account", &[]).await.unwrap();
    spcd.write("b.spc", &connection("b", "b", "panic = \"one\""));
    until_error(&hub.url, "b", "ended its server process").await;
    // The crash ended the session's own one.
    eventually("the session reads again", DEADLINE, || async {
        session.query("SELECT * FROM a.account", &[]).await.ok()
    })
    .await;
    let name = format!("127.0.0.1:{}/postgres", gateway.port());
    let shows = |line: &str| {
        eventually_now(line, || {
            let text = http.get("/metrics").body;
            text.lines().any(|found| found == line).then_some(())
        });
    };
    shows(&format!("spcd_gateway_up{{gateway=\"{name}\"}} 1"));
    shows(&format!("spcd_gateway_sessions{{gateway=\"{name}\"}} 1"));
    shows("spcd_wrapper_crashes_total{plugin=\"b\"} 1");
    gateway.stop();
    shows(&format!("spcd_gateway_up{{gateway=\"{name}\"}} 0"));
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_has_the_hub_try_the_gateway() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let source = shared().database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let file = postgres_with("p", &source, "  gateway = true\n");
    spcd.write("p.spc", &file);
    until(&hub.url, &["p ready"]).await;
    let reaches = format!(
        "the hub reaches the gateway at 127.0.0.1:{}",
        gateway.port()
    );
    let doctor = spcd.spcd(&["doctor"]);
    assert!(
        doctor.stdout.contains(&format!("ok       {reaches}")),
        "{doctor:?}"
    );

    // An entry that lets no role in, and one that lets the role in without a password.
    let rest = "host all all all trust\n";
    gateway.write(
        "pg_hba.conf",
        &format!("host all {READER} all reject\n{rest}"),
    );
    gateway.reload();
    eventually_now("doctor says what is missing", || {
        let doctor = spcd.spcd(&["doctor"]).stdout;
        let said = doctor.split_once(&format!("missing  {reaches}"))?.1;
        said.contains("pg_hba.conf must admit this role")
            .then_some(())
    });
    gateway.write("pg_hba.conf", rest);
    gateway.reload();
    eventually_now("doctor says what is missing", || {
        let doctor = spcd.spcd(&["doctor"]).stdout;
        doctor
            .contains("missing  the gateway asks the hub's role for its password")
            .then_some(())
    });
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_gateway_listens_for_a_hub_elsewhere_with_tls() {
    let (server, source) = (Cluster::start(&[]), guarded(PASSWORD).await);
    let hub = server.database().await;
    let authority = Authority::new();
    authority.signed("gateway", "CN=gateway", "subjectAltName=IP:127.0.0.2", "2");
    let root = authority.path("ca.crt");
    // The hub's server reads it.
    fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let port = free_port();
    let settings = |hub_address: &str| {
        format!(
            "gateway {{\n  listen = \"127.0.0.2:{port}\"\n  hub_address = \"{hub_address}\"\n  \
             tls_cert_file = \"{}\"\n  tls_key_file = \"{}\"\n  hub_sslrootcert = \"{root}\"\n}}\n",
            authority.path("gateway.crt"),
            authority.path("gateway.key"),
        )
    };
    // Reaches this machine, and is no loopback address.
    let mut spcd = Spcd::new(&hub.url.replace("127.0.0.1", "0.0.0.0"));
    spcd.env("SPCD_GATEWAY", "");
    spcd.write("p.spc", &behind_gateway(&source));
    let file = spcd.dir().join("spcd.hcl");
    fs::write(&file, settings("127.0.0.0/24")).unwrap();
    spcd.start();
    until(&hub.url, &["p ready"]).await;
    let session = connect(&hub.url).await.unwrap();
    session.query("SELECT * FROM p.t", &[]).await.unwrap();
    let options =
        "SELECT srvoptions::text FROM pg_foreign_server WHERE srvname LIKE 'spcd_gateway%'";
    let options = value(&hub.url, options).await;
    for option in [
        "host=127.0.0.2",
        "sslmode=verify-full",
        &format!("port={port}"),
    ] {
        assert!(options.contains(option), "{option}: {options}");
    }
    let cluster = spcd.state_dir().join("gateway/cluster");
    let passfile = fs::read_to_string(cluster.join("passfile")).unwrap();
    let password = passfile.trim().rsplit(':').next().unwrap().to_owned();
    let as_spcd = format!("host=127.0.0.1 port={port} user=spcd dbname=spcd password={password}");
    let encrypted = format!(
        "SELECT bool_and(s.ssl) FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid)
         WHERE usename = '{READER}'"
    );
    assert_eq!(value(&as_spcd, &encrypted).await, "t");
    let doctor = spcd.spcd(&["doctor"]).stdout;
    assert!(
        doctor.contains("ok       the hub reaches the gateway at 127.0.0.2"),
        "{doctor}"
    );
    let hba = fs::read_to_string(cluster.join("pg_hba.conf")).unwrap();
    assert!(
        hba.contains(&format!("hostssl spcd {READER} 127.0.0.0/24 scram-sha-256")),
        "{hba}"
    );
    spcd.stop();

    // A port that is taken is told, not changed: the hub's firewall knows it.
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    spcd.start();
    until_error(
        &hub.url,
        "p",
        &format!("another program uses the port {port}"),
    )
    .await;
    drop(taken);
    until(&hub.url, &["p ready"]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_a_private_gateway_starts_with_the_first_connection_that_uses_it() {
    let server = Cluster::start(&[]);
    let hub = server.database().await;
    let source = guarded(PASSWORD).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_GATEWAY", "");
    let plain = reader("q", source.port(), PASSWORD);
    spcd.write("q.spc", &plain);
    spcd.start();
    until(&hub.url, &["q ready"]).await;
    assert!(!spcd.state_dir().join("gateway").exists());
    spcd.write("p.spc", &behind_gateway(&source));
    until(&hub.url, &["p ready", "q ready"]).await;
    assert!(spcd.state_dir().join("gateway/cluster/data").exists());
    let options = "SELECT srvoptions::text LIKE '%port=' || $$PORT$$ || '%' FROM pg_foreign_server
                   WHERE srvname = 'q'";
    let direct = options.replace("PORT", &source.port().to_string());
    assert_eq!(value(&hub.url, &direct).await, "t");
    spcd.stop();

    // Beside a hub elsewhere wrappers run in the hub, as they always did.
    let other = server.database().await;
    let mut spcd = Spcd::new(&other.url.replace("127.0.0.1", "0.0.0.0"));
    spcd.env("SPCD_GATEWAY", "");
    spcd.write("p.spc", &behind_gateway(&source));
    spcd.start();
    until(&other.url, &["p ready"]).await;
    assert!(!spcd.state_dir().join("gateway").exists());
    spcd.stop();
}
