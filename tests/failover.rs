//! The database goes away and comes back, or another server takes its place: the daemon goes on,
//! nothing is lost, and who waited is woken.

mod ready;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use spcd_client::Client;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::support::hub::{postgres, until};
use crate::support::proxy::Proxy;
use ready::{Ready, epoch};

use crate::support::{
    Cluster, DEADLINE, Database, Finished, Spcd, eventually, eventually_now, finish, query, shared,
    try_query, value,
};

/// Enough that a pass can be met in its middle.
const CONNECTIONS: usize = 300;

/// Longer than all that happens takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(300);

const READY: &str = "SELECT count(*) FROM spcd.connection_state WHERE status = 'ready'";

/// What must be there for each connection, and what must be left of none.
const EQUAL: &str = "
    SELECT (SELECT count(*) FROM spcd.connection_state WHERE status = 'ready'),
           (SELECT count(*) FROM pg_foreign_server WHERE srvoptions @> ARRAY['host=127.0.0.1']),
           (SELECT count(*) FROM pg_user_mappings WHERE umoptions = '{user=postgres}'),
           (SELECT count(*) FROM pg_foreign_table f JOIN pg_attribute a ON a.attrelid = f.ftrelid
            WHERE a.attname = 'id' AND a.atttypid = 'integer'::regtype),
           (SELECT count(*) FROM pg_namespace WHERE nspname ~ '^(c[0-9]|late)')";

async fn source() -> Database {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    source
}

fn many(spcd: &Spcd, source: &Database) {
    let text: String = (0..CONNECTIONS)
        .map(|n| postgres(&format!("c{n:03}"), source))
        .collect();
    spcd.write("all.spc", &text);
}

async fn ready(url: &str) -> usize {
    let rows = try_query(url, READY).await.unwrap_or_default();
    let count = rows.first().and_then(|row| row[0].as_ref()?.parse().ok());
    count.unwrap_or(0)
}

/// Waits until a pass is in its middle.
async fn until_some_are_ready(url: &str) {
    eventually("some are ready", DEADLINE, || async {
        (ready(url).await > CONNECTIONS / 10).then_some(())
    })
    .await;
}

async fn until_all_are_there(url: &str, count: usize) {
    eventually("all are ready", DEADLINE * 2, || async {
        (ready(url).await == count).then_some(())
    })
    .await;
    let n = count.to_string();
    assert_eq!(query(url, EQUAL).await, [[n.as_str(); 5]]);
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname ~ '^spcd_ask'";
    assert_eq!(value(url, left).await, "0");
}

/// `spcd wait` and a client of spcd-client, both at it.
struct Waiters {
    command: JoinHandle<Finished>,
    client: JoinHandle<Result<(), String>>,
}

impl Waiters {
    /// `at` is where they are looked for.
    async fn start(spcd: &Spcd, url: &str, at: &str, name: &str) -> Self {
        // What it asks for is durable: from then on it waits.
        let sql = "SELECT count(*) FROM spcd.refresh_request";
        let before = value(at, sql).await;
        let command = spcd.command(&["wait", name, "--timeout", "300s"]);
        let command = spawn_blocking(move || finish(command));
        let mut client = Client::connect(url).await.unwrap();
        client.set_timeout(PATIENCE);
        let name = name.to_owned();
        let client = tokio::spawn(async move {
            let waited = client.wait_ready(&[&name], PATIENCE).await;
            waited.map_err(|error| error.to_string())
        });
        eventually("the command waits", DEADLINE, || async {
            (value(at, sql).await != before).then_some(())
        })
        .await;
        Self { command, client }
    }

    async fn woken(self) {
        let ended = tokio::time::timeout(DEADLINE * 2, self.client).await;
        assert_eq!(ended.expect("no client hangs").unwrap(), Ok(()));
        let ended = tokio::time::timeout(DEADLINE * 2, self.command).await;
        let ended = ended.expect("no client hangs").unwrap();
        assert_eq!(ended.code, 0, "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_restarts_and_is_killed_during_a_pass_and_while_idle() {
    let source = source().await;
    let mut server = Cluster::start(&["max_locks_per_transaction = 256"]);
    let hub = server.database().await;
    let mut spcd = Spcd::new(&hub.url);
    many(&spcd, &source);
    let asked = Ready::start(&mut spcd);
    until_some_are_ready(&hub.url).await;
    asked.until_ready();
    let refused = format!("127.0.0.1:{}", server.port());
    let waiters = Waiters::start(&spcd, &hub.url, &hub.url, "c299").await;
    server.kill9();
    let away = asked.until_away(&refused);
    asked.never_ready(&away);
    server.start_again();
    // Killed again while it gets going, and stopped in order.
    until_some_are_ready(&hub.url).await;
    server.kill9();
    server.start_again();
    server.stop();
    spcd.logged("trying again");
    let away = asked.until_away(&refused);
    asked.never_ready(&away);
    server.start_again();
    asked.until_ready();
    waiters.woken().await;
    until_all_are_there(&hub.url, CONNECTIONS).await;

    // While nothing is to be done; what is saved meanwhile is not lost.
    for kill in [false, true] {
        let waiters = Waiters::start(&spcd, &hub.url, &hub.url, "c000").await;
        waiters.woken().await;
        let name = format!("late{kill}");
        let (ready, before) = (asked.until_ready(), epoch(&hub.url).await);
        asked.always_ready(&ready);
        match kill {
            true => server.kill9(),
            false => server.stop(),
        }
        let away = asked.until_away(&refused);
        spcd.write(&format!("{name}.spc"), &postgres(&name, &source));
        asked.never_ready(&away);
        server.start_again();
        asked.until_ready();
        assert!(epoch(&hub.url).await > before, "it leads anew");
        eventually("what was saved is ready", DEADLINE, || async {
            let sql = format!("{READY} AND connection_name = '{name}'");
            let rows = try_query(&hub.url, &sql).await.ok()?;
            (rows[0][0].as_deref() == Some("1")).then_some(())
        })
        .await;
    }
    until_all_are_there(&hub.url, CONNECTIONS + 2).await;
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    asked.end();
    spcd.stop();
}

/// Lets a standby take over, and waits until it has.
async fn promote(standby: &Cluster, database: &str) {
    let url = standby.url(database);
    assert_eq!(value(&url, "SELECT pg_promote(true, 60)").await, "t");
}

/// Waits until a standby has all that its primary wrote.
async fn caught_up(primary: &Cluster, standby: &Cluster) {
    let at = value(
        &primary.url("postgres"),
        "SELECT pg_current_wal_flush_lsn()",
    )
    .await;
    let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{at}'::pg_lsn");
    eventually("the standby has it all", DEADLINE, || async {
        let rows = try_query(&standby.url("postgres"), &sql).await.ok()?;
        (rows[0][0].as_deref() == Some("t")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_fails_over_to_a_standby_during_a_pass_and_while_idle() {
    let source = source().await;
    let mut first = Cluster::start(&["max_locks_per_transaction = 256"]);
    let database = first.database().await.name;
    let mut second = first.standby();
    let third = first.standby();
    let hosts: Vec<String> = [&first, &second, &third]
        .iter()
        .map(|server| format!("127.0.0.1:{}", server.port()))
        .collect();
    let url = format!("postgres://postgres@{}/{database}", hosts.join(","));
    let to_write = format!("{url}?target_session_attrs=read-write");
    let at_second = second.url(&database);

    let mut spcd = Spcd::new(&url);
    many(&spcd, &source);
    let asked = Ready::start(&mut spcd);
    until_some_are_ready(&first.url(&database)).await;
    asked.until_ready();
    let before = epoch(&first.url(&database)).await;
    let waiters = Waiters::start(&spcd, &to_write, &first.url(&database), "c299").await;
    first.kill9();
    // Two can be read, and none takes writes.
    let away = asked.until_away("it is a standby");
    asked.never_ready(&away);
    promote(&second, &database).await;
    asked.until_ready();
    assert!(epoch(&at_second).await > before, "it leads there");
    waiters.woken().await;
    until_all_are_there(&at_second, CONNECTIONS).await;

    // While nothing is to be done. The third follows the second by now.
    follow(&third, &second);
    caught_up(&second, &third).await;
    let waiters = Waiters::start(&spcd, &to_write, &at_second, "c000").await;
    waiters.woken().await;
    // The one that is named first is up again, and can be read: that makes no difference.
    let ready = asked.until_ready();
    first.write("standby.signal", "");
    follow_from_the_start(&first, &second);
    first.start_again();
    let recovers = "SELECT pg_is_in_recovery()";
    assert_eq!(value(&first.url(&database), recovers).await, "t");
    let waiters = Waiters::start(&spcd, &to_write, &at_second, "c001").await;
    waiters.woken().await;
    asked.until_ready();
    asked.always_ready(&ready);
    let before = epoch(&at_second).await;
    second.stop();
    let away = asked.until_away("it is a standby");
    spcd.write("late.spc", &postgres("late", &source));
    asked.never_ready(&away);
    promote(&third, &database).await;
    let at_third = third.url(&database);
    asked.until_ready();
    assert!(epoch(&at_third).await > before, "it leads there");
    until_all_are_there(&at_third, CONNECTIONS + 1).await;
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    asked.end();
    spcd.stop();
}

/// Lets a standby follow another server.
fn follow(standby: &Cluster, primary: &Cluster) {
    follow_from_the_start(standby, primary);
    standby.reload();
}

/// The same for one that is not started yet.
fn follow_from_the_start(standby: &Cluster, primary: &Cluster) {
    let conf = format!(
        "port = {}\nprimary_conninfo = 'host=127.0.0.1 port={} user=postgres'\n",
        standby.port(),
        primary.port()
    );
    standby.write("postgresql.auto.conf", &conf);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_more_writes_is_left_for_the_one_that_does() {
    let source = source().await;
    let first = Cluster::start(&[]);
    let database = first.database().await.name;
    let second = first.standby();
    let (one, two) = (first.port(), second.port());
    let url = format!("postgres://postgres@127.0.0.1:{one},127.0.0.1:{two}/{database}");
    let mut spcd = Spcd::new(&url);
    spcd.env("SPCD_HUB_KEEPALIVE", "1s");
    spcd.write("a.spc", &postgres("a", &source));
    let asked = Ready::start(&mut spcd);
    until(&first.url(&database), &["a ready"]).await;
    caught_up(&first, &second).await;
    asked.until_ready();

    // It is up and lets everybody in; its sessions stay open.
    let fence = "ALTER SYSTEM SET default_transaction_read_only = on";
    query(&first.url("postgres"), fence).await;
    query(&first.url("postgres"), "SELECT pg_reload_conf()").await;
    let away = asked.until_away("it is a standby");
    asked.never_ready(&away);
    promote(&second, &database).await;
    spcd.write("b.spc", &postgres("b", &source));
    until(&second.url(&database), &["a ready", "b ready"]).await;
    assert!(spcd.log().contains("takes no writes"), "{}", spcd.log());
    asked.until_ready();
    asked.end();
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_ends_with_the_lead_even_unnoticed() {
    let server = Cluster::start(&[]);
    let hub = server.database().await;
    let way = Proxy::to(server.port()).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/{}", way.port(), hub.name);
    let mut spcd = Spcd::new(&url);
    spcd.write("a.spc", "");
    let asked = Ready::start(&mut spcd);
    asked.until_ready();
    let before = epoch(&hub.url).await;
    // As where a server vanishes with its machine and another one takes its address: what was open
    // stays open, and says nothing any more. New sessions lead to a server without a leader.
    way.freeze();
    let end = "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity
               WHERE application_name LIKE 'spcd %'";
    query(&hub.url, end).await;
    loop {
        let told = asked.until("another answer", |_| true);
        if told.says("the leader's session has ended") {
            break;
        }
        // Where it takes long to find that out, the daemon has noticed and leads anew.
        if told.status == 200 {
            assert!(epoch(&hub.url).await > before, "{told:?}");
            break;
        }
    }
    asked.end();
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_acknowledges_and_says_nothing_is_left_for_new_sessions() {
    let (server, source) = (Cluster::start(&[]), source().await);
    let hub = server.database().await;
    let way = Proxy::to(server.port()).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/{}", way.port(), hub.name);
    let mut spcd = Spcd::new(&url);
    spcd.write("a.spc", &postgres("a", &source));
    let asked = Ready::start(&mut spcd);
    asked.until_ready();
    until(&hub.url, &["a ready"]).await;
    let before = epoch(&hub.url).await;
    // The links stay up and carry nothing; new ones are as good as ever.
    way.freeze();
    spcd.write("b.spc", &postgres("b", &source));
    asked.until("not ready", |sample| sample.status == 503);
    until(&hub.url, &["a ready", "b ready"]).await;
    assert!(epoch(&hub.url).await > before);
    asked.until_ready();
    // Nor do new ones.
    way.swallow(true);
    way.freeze();
    asked.until("not ready", |sample| sample.status == 503);
    way.swallow(false);
    way.hang_up();
    asked.until_ready();
    asked.end();
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_read_only_is_not_taken_for_ready() {
    let server = Cluster::start(&[]);
    let hub = server.database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", "");
    let asked = Ready::start(&mut spcd);
    asked.until_ready();
    // It is up, lets everybody in, and keeps the sessions that it has.
    let fence = "ALTER SYSTEM SET default_transaction_read_only = on";
    query(&hub.url, fence).await;
    query(&hub.url, "SELECT pg_reload_conf()").await;
    let away = asked.until_away("takes no writes");
    let told = asked.until("the server says so", |sample| {
        sample.body["checks"]["hub"]["ok"] == false
    });
    assert!(told.reason("hub").contains("read-only"), "{told:?}");
    asked.never_ready(&away);
    let may = format!(
        "{}?options=-c%20default_transaction_read_only%3Doff",
        hub.url
    );
    query(&may, "ALTER SYSTEM RESET default_transaction_read_only").await;
    query(&may, "SELECT pg_reload_conf()").await;
    // Whether or not the daemon came across it meanwhile.
    asked.until_ready();
    asked.end();
    spcd.stop();
}

/// How often the server refused a password.
fn refusals(server: &Cluster) -> usize {
    server
        .log()
        .matches("password authentication failed for user")
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_refused_is_not_sent_again_and_again() {
    let server = Cluster::start(&[]);
    let hub = server.database().await;
    let role = "CREATE ROLE keeper SUPERUSER LOGIN PASSWORD 'one'";
    query(&hub.url, role).await;
    server.write(
        "pg_hba.conf",
        "host all keeper 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n\
         host replication all 127.0.0.1/32 trust\n",
    );
    server.reload();
    let url = format!("postgres://keeper@127.0.0.1:{}/{}", server.port(), hub.name);
    let mut spcd = Spcd::new(&url);
    let passfile = spcd.home().join(".pgpass");
    let password = |password: &str| {
        fs::write(&passfile, format!("*:*:*:keeper:{password}\n")).unwrap();
        fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
    };
    password("one");
    // It does not come by itself while this test lasts.
    spcd.env("SPCD_HUB_BACKOFF_MAX", "1h");
    spcd.start();
    eventually("the daemon leads", DEADLINE, || async {
        try_query(&hub.url, "SELECT 1 FROM spcd.daemon")
            .await
            .ok()?
            .pop()
    })
    .await;

    let change = "ALTER ROLE keeper PASSWORD 'two';
                  SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'keeper'";
    query(&hub.url, change).await;
    spcd.logged("trying again when the password or the settings change");
    assert_eq!(refusals(&server), 1, "{}", server.log());
    // Another wrong one is sent once; the same one again on request.
    password("three");
    let until_refused = |times: usize| {
        eventually_now("the server refuses it", || {
            (refusals(&server) == times).then_some(())
        });
    };
    until_refused(2);
    spcd.signal(Signal::SIGHUP);
    until_refused(3);
    password("two");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'spcd listener'";
    eventually("the daemon is back", DEADLINE, || async {
        (value(&hub.url, sql).await == "1").then_some(())
    })
    .await;
    assert_eq!(refusals(&server), 3, "{}", server.log());
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_sessions_change_without_a_restart() {
    let source = source().await;
    let server = Cluster::start(&["log_statement = all"]);
    let hub = server.database().await;
    let mut spcd = Spcd::new(&hub.url);
    let file = spcd.dir().join("spcd.hcl");
    let hour = "hub {\n  keepalive = \"1h\"\n  statement_timeout = \"4m\"\n}\n";
    fs::write(&file, hour).unwrap();
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    assert!(server.log().contains("SET statement_timeout = 240000"));
    assert!(
        server.log().contains("SET lock_timeout = 500"),
        "the writer"
    );

    let pinged = |server: &Cluster| {
        let said =
            |line: &str| line.contains("spcd listener") && line.contains("pg_is_in_recovery");
        server.log().lines().filter(|line| said(line)).count()
    };
    let before = pinged(&server);
    let changed = "hub {\n  keepalive = \"1s\"\n  statement_timeout = \"7m\"\n  lock_timeout = \"300ms\"\n  pool_size = 2\n}\n";
    fs::write(&file, changed).unwrap();
    eventually_now("the sessions follow", || {
        let log = server.log();
        let told = |line: &str| line.contains("spcd listener") && line.contains("= 420000");
        (log.lines().any(told) && pinged(&server) >= before + 2).then_some(())
    });
    spcd.write("b.spc", &postgres("b", &source));
    until(&hub.url, &["a ready", "b ready"]).await;
    assert!(
        server.log().contains("SET lock_timeout = 300"),
        "the writer"
    );
    assert!(!spcd.log().contains("need a restart"), "{}", spcd.log());

    // What is wrong changes nothing.
    fs::write(&file, "hub {\n  keepalive = \"soon\"\n}\n").unwrap();
    spcd.logged("settings stay as they were");
    spcd.logged("expected a time from");
    spcd.stop();
}
