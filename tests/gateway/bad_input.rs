//! What can be wrong with a gateway: each has its own message, and the hub's tables stay.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::daemon;
use crate::support::dump::restore;
use crate::support::hub::{guarded, reader, until, until_error};
use crate::support::steampipe::{connection, gateway, plugins};
use crate::support::{
    Cluster, DEADLINE, Database, Spcd, as_server_user, eventually, eventually_now, free_port,
    fresh_dir, query, try_query, value,
};

const PASSWORD: &str = "hunter2hunter2";

/// A file whose connection `p` reads table `t` of a source through the gateway.
fn behind_gateway(source: &Cluster) -> String {
    reader("p", source.port(), PASSWORD).replace("plugin ", "gateway = true\n  plugin ")
}

/// A file whose connection `a` uses a stand-in of Steampipe's wrappers.
fn stand_in() -> String {
    plugins() + &connection("a", "a", "token = \"one\"")
}

/// Tables and views of the hub, which nothing here may take away.
async fn relations(hub: &Database) -> Vec<Vec<String>> {
    let sql = "SELECT oid, relname FROM pg_class WHERE relkind = 'f' ORDER BY 1";
    query(&hub.url, sql).await
}

async fn until_readable(hub: &Database) {
    eventually("the table is read again", DEADLINE, || async {
        try_query(&hub.url, "SELECT * FROM p.t").await.ok()
    })
    .await;
}

/// A hub with the table `p.t` behind a private gateway.
async fn private(server: &Cluster, source: &Cluster) -> (Database, Spcd) {
    let hub = server.database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_GATEWAY", "private");
    spcd.write("p.spc", &behind_gateway(source));
    spcd.start();
    until(&hub.url, &["p ready"]).await;
    (hub, spcd)
}

fn cluster_of(spcd: &Spcd) -> PathBuf {
    spcd.state_dir().join("gateway/cluster")
}

fn postmaster(spcd: &Spcd) -> Pid {
    let file = cluster_of(spcd).join("data/postmaster.pid");
    let text = fs::read_to_string(file).unwrap();
    Pid::from_raw(text.lines().next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_private_gateway_is_made_again() {
    let (server, source) = (Cluster::start(&[]), guarded(PASSWORD).await);
    let (hub, mut spcd) = private(&server, &source).await;
    let before = relations(&hub).await;
    spcd.stop();
    fs::remove_dir_all(spcd.state_dir().join("gateway")).unwrap();
    spcd.start();
    until_readable(&hub).await;
    until(&hub.url, &["p ready"]).await;
    assert_eq!(relations(&hub).await, before);

    // Under the daemon's feet.
    let pid = postmaster(&spcd);
    fs::remove_dir_all(spcd.state_dir().join("gateway")).unwrap();
    kill(pid, Signal::SIGKILL).unwrap();
    until_readable(&hub).await;
    until(&hub.url, &["p ready"]).await;
    assert_eq!(relations(&hub).await, before);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_gateway_without_its_server_programs_is_told_and_the_rest_goes_on() {
    let (server, source) = (Cluster::start(&[]), guarded(PASSWORD).await);
    let (hub, mut spcd) = private(&server, &source).await;
    let before = relations(&hub).await;
    spcd.stop();
    // Its data belongs to a version that is not installed.
    let file = cluster_of(&spcd).join("data/PG_VERSION");
    let version = fs::read_to_string(&file).unwrap();
    fs::write(&file, "99\n").unwrap();
    spcd.write("q.spc", &reader("q", source.port(), PASSWORD));
    spcd.start();
    let error = until_error(&hub.url, "p", "the gateway: ").await;
    assert!(error.contains("belongs to Postgres 99"), "{error}");
    assert!(error.contains("apt-get install postgresql-99"), "{error}");
    until(&hub.url, &["p error", "q ready"]).await;
    let told = spcd.spcd(&["doctor"]).stdout;
    assert!(told.contains("belongs to Postgres 99"), "{told}");
    fs::write(&file, version).unwrap();
    until_readable(&hub).await;
    until(&hub.url, &["p ready", "q ready"]).await;
    let kept = relations(&hub).await;
    assert!(before.iter().all(|relation| kept.contains(relation)));
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_gateway_moves_away_from_a_port_that_is_taken() {
    let (server, source) = (Cluster::start(&[]), guarded(PASSWORD).await);
    let (hub, mut spcd) = private(&server, &source).await;
    let before = relations(&hub).await;
    let port = || -> u16 {
        let text = fs::read_to_string(cluster_of(&spcd).join("port")).unwrap();
        text.trim().parse().unwrap()
    };
    let first = port();
    // While the daemon cannot act, the server dies and another program takes its port.
    spcd.signal(Signal::SIGSTOP);
    let pid = postmaster(&spcd);
    kill(pid, Signal::SIGKILL).unwrap();
    let taken = eventually_now("the port is free", || {
        TcpListener::bind(("127.0.0.1", first)).ok()
    });
    spcd.signal(Signal::SIGCONT);
    eventually_now("it has moved", || (port() != first).then_some(()));
    until_readable(&hub).await;
    until(&hub.url, &["p ready"]).await;
    assert!(
        spcd.log()
            .contains("another program uses the private cluster's port")
    );
    assert_eq!(relations(&hub).await, before);

    // The same at a start.
    let second = port();
    spcd.stop();
    let _taken = (taken, TcpListener::bind(("127.0.0.1", second)).unwrap());
    spcd.start();
    until_readable(&hub).await;
    until(&hub.url, &["p ready"]).await;
    assert_eq!(relations(&hub).await, before);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_changed_by_hand_are_set_again_or_told() {
    let (server, source) = (Cluster::start(&[]), guarded(PASSWORD).await);
    let (hub, mut spcd) = private(&server, &source).await;
    let before = relations(&hub).await;
    let passfile = cluster_of(&spcd).join("passfile");
    let as_spcd = || {
        let port = fs::read_to_string(cluster_of(&spcd).join("port")).unwrap();
        let text = fs::read_to_string(&passfile).unwrap();
        let password = text.trim().rsplit(':').next().unwrap().to_owned();
        let port = port.trim();
        format!("host=127.0.0.1 port={port} user=spcd dbname=spcd password={password}")
    };
    query(
        &as_spcd(),
        "ALTER ROLE spcd_gateway_reader PASSWORD 'other'",
    )
    .await;
    spcd.logged("the gateway rejected the password of the hub's role");
    until_readable(&hub).await;
    until(&hub.url, &["p ready"]).await;

    query(&as_spcd(), "ALTER ROLE spcd PASSWORD 'other'").await;
    spcd.stop();
    spcd.start();
    let error = until_error(&hub.url, "p", "the gateway: ").await;
    assert!(error.contains(passfile.to_str().unwrap()), "{error}");
    assert_eq!(relations(&hub).await, before);
    // As the message says.
    spcd.stop();
    fs::remove_file(&passfile).unwrap();
    spcd.start();
    until_readable(&hub).await;
    until(&hub.url, &["p ready"]).await;
    assert_eq!(relations(&hub).await, before);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_the_hub_itself_is_refused() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    spcd.write("a.spc", &stand_in());
    until(&hub.url, &["a ready"]).await;
    let before = relations(&hub).await;
    spcd.stop();
    spcd.env("SPCD_GATEWAY", &hub.url);
    spcd.start();
    until_error(&hub.url, "a", "leads to the hub itself").await;
    assert_eq!(relations(&hub).await, before);
    assert_eq!(value(&hub.url, "SELECT token FROM a.account").await, "one");
    spcd.stop();
    spcd.env("SPCD_GATEWAY", &gateway.url("postgres"));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    assert_eq!(relations(&hub).await, before);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_recovers_is_waited_for() {
    let (server, mut gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    // A standby that allows no queries refuses sessions as a server in recovery does.
    gateway.stop();
    gateway.configure(&["hot_standby = off"]);
    let standby = gateway.write("standby.signal", "");
    gateway.start_again();
    let mut spcd = daemon(&hub.url, &gateway).await;
    spcd.write("a.spc", &stand_in());
    let refused = "FATAL:  the database system is not accepting connections";
    eventually(
        "sessions are tried one after the other",
        DEADLINE,
        || async { (gateway.log().matches(refused).count() >= 20).then_some(()) },
    )
    .await;
    until(&hub.url, &["a pending"]).await;
    gateway.stop();
    fs::remove_file(standby).unwrap();
    gateway.start_again();
    until(&hub.url, &["a ready"]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_serves_one_hub() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let (hub, other_hub) = (server.database().await, server.database().await);
    let mut spcd = daemon(&hub.url, &gateway).await;
    spcd.write("a.spc", &stand_in());
    until(&hub.url, &["a ready"]).await;
    // One with the same files waits for the lead there, one with others is refused it.
    let mut other = Spcd::new(&other_hub.url);
    let files = spcd.config_dir().display().to_string();
    other.env("SPCD_CONFIG", &files);
    other.env("SPCD_GATEWAY", &gateway.url("postgres"));
    other.start();
    until_error(&other_hub.url, "a", "serves another hub").await;
    other.stop();
    let third_hub = server.database().await;
    let mut third = daemon(&third_hub.url, &gateway).await;
    third.write("a.spc", &stand_in());
    until_error(&third_hub.url, "a", &files).await;
    third.stop();
    until(&hub.url, &["a ready"]).await;
    spcd.stop();
    // The first is gone: the other may have the gateway.
    other.start();
    until(&other_hub.url, &["a ready"]).await;
    other.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_from_a_dump_and_a_new_gateway_find_each_other() {
    let (server, first, second) = (Cluster::start(&[]), gateway().await, gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &first).await;
    spcd.write("a.spc", &stand_in());
    until(&hub.url, &["a ready"]).await;
    query(&hub.url, "CREATE VIEW mine AS SELECT token FROM a.account").await;
    spcd.stop();
    let restored = server.database().await;
    restore(&hub, &restored);
    let before = relations(&restored).await;
    assert_eq!(before.len(), 6);

    let mut spcd_again = Spcd::new(&restored.url);
    spcd_again.env("SPCD_CONFIG", &spcd.config_dir().display().to_string());
    spcd_again.env("SPCD_GATEWAY", &second.url("postgres"));
    spcd_again.start();
    until(&restored.url, &["a ready"]).await;
    assert_eq!(relations(&restored).await, before);
    assert_eq!(value(&restored.url, "SELECT token FROM mine").await, "one");
    spcd_again.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_gateway_is_the_error_of_what_it_does_not_have() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    spcd.write("a.spc", &stand_in());
    until(&hub.url, &["a ready"]).await;
    let before = relations(&hub).await;
    // As the server says when a file cannot grow.
    query(
        &gateway.url("postgres"),
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'could not extend file: No space left on device'
                       USING ERRCODE = 'disk_full'; END $$;
         CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON spcd.connection_state
         FOR EACH ROW EXECUTE FUNCTION full_disk()",
    )
    .await;
    spcd.write("b.spc", &connection("b", "b", "token = \"two\""));
    until_error(
        &hub.url,
        "b",
        "the gateway cannot write: could not extend file",
    )
    .await;
    until(&hub.url, &["a ready", "b error"]).await;
    assert_eq!(relations(&hub).await, before);
    assert_eq!(value(&hub.url, "SELECT token FROM a.account").await, "one");
    query(
        &gateway.url("postgres"),
        "DROP TRIGGER full_disk ON spcd.connection_state",
    )
    .await;
    until(&hub.url, &["a ready", "b ready"]).await;
    spcd.stop();
}

/// A server of an older major version, which `scripts/lib.sh` (`need_other_servers`) installs.
struct Older {
    server: Child,
    port: u16,
}

impl Older {
    fn start() -> Self {
        let programs =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/servers/14/bin");
        let data = fresh_dir("older").join("data");
        let mut initdb = Command::new(programs.join("initdb"));
        initdb
            .args(["--username=postgres", "--auth=scram-sha-256", "--no-sync"])
            .args(["--encoding=UTF8", "--locale=C", "--pwfile"])
            .arg({
                let file = fresh_dir("older").join("password");
                fs::write(&file, "older\n").unwrap();
                file
            })
            .arg("-D")
            .arg(&data);
        let made = as_server_user(&mut initdb).output();
        let made = made.unwrap_or_else(|error| {
            panic!("{}: {error} (scripts/test.sh)", programs.display());
        });
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let port = free_port();
        let mut server = Command::new(programs.join("postgres"));
        server
            .args([
                "-p",
                &port.to_string(),
                "-c",
                "unix_socket_directories=",
                "-D",
            ])
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let server = as_server_user(&mut server).spawn().unwrap();
        Self { server, port }
    }
}

impl Drop for Older {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.server.id()).unwrap());
        let _ = kill(pid, Signal::SIGQUIT);
        let _ = self.server.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_an_older_version_works() {
    let (server, source, older) = (Cluster::start(&[]), guarded(PASSWORD).await, Older::start());
    let hub = server.database().await;
    let url = format!(
        "postgres://postgres:older@127.0.0.1:{}/postgres",
        older.port
    );
    eventually("it is up", DEADLINE, || async {
        try_query(&url, "SELECT 1").await.ok()
    })
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_GATEWAY", &url);
    spcd.write("p.spc", &behind_gateway(&source));
    spcd.start();
    until(&hub.url, &["p ready"]).await;
    assert_eq!(value(&hub.url, "SELECT count(*) FROM p.t").await, "1");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateway_lacks_is_told_with_where_to_get_it() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    spcd.write("a.spc", &stand_in());
    spcd.write("n.spc", &connection("n", "nowhere", "token = \"one\""));
    let error = until_error(&hub.url, "n", "steampipe_postgres_nowhere").await;
    assert!(error.contains("on the gateway's host"), "{error}");
    assert!(
        error.contains("hub.steampipe.io/plugins/turbot/nowhere"),
        "{error}"
    );
    until(&hub.url, &["a ready", "n error"]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_gateway_beside_a_remote_hub_is_refused() {
    let server = Cluster::start(&[]);
    let hub = server.database().await;
    // Reaches this machine, and is no loopback address.
    let elsewhere = hub.url.replace("127.0.0.1", "0.0.0.0");
    let mut spcd = Spcd::new(&elsewhere);
    spcd.env("SPCD_GATEWAY", "private");
    spcd.write("n.spc", &connection("n", "nowhere", "token = \"one\""));
    spcd.start();
    let error = until_error(&hub.url, "n", "0.0.0.0").await;
    assert!(error.contains("cannot reach a private gateway"), "{error}");
    assert!(!spcd.state_dir().join("gateway").exists());
    spcd.stop();
}
