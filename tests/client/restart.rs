//! What waits when the daemon or the server is killed.

use std::time::Duration;

use serde_json::json;
use spcd_client::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{broken, count_waits, waits};
use crate::support::kept::{load, migrate, publish, to};
use crate::support::{Cluster, DEADLINE, Spcd, connect, eventually, query, shared, try_query};

/// Longer than all that happens to them takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Clients of spcd-client that wait, each in one of its two ways, for the connections in turn. They
/// return how many rows they got, or the error's text.
async fn waiters(
    url: &str,
    count: usize,
    names: &[&str],
) -> Vec<JoinHandle<Result<usize, String>>> {
    let mut waiters = Vec::new();
    let mut counts = Vec::new();
    for n in 0..count {
        let mut client = Client::connect(url).await.unwrap();
        client.set_timeout(PATIENCE);
        counts.push(count_waits(&mut client));
        let name = names[n % names.len()].to_owned();
        let ways = (n / names.len()).is_multiple_of(2);
        waiters.push(tokio::spawn(async move {
            let outcome = if ways {
                client.wait_ready(&[&name], PATIENCE).await.map(|()| 1)
            } else {
                let sql = format!("SELECT id FROM {name}.t");
                client.query(&sql, &[]).await.map(|rows| rows.len())
            };
            outcome.map_err(|error| error.to_string())
        }));
    }
    for count in &counts {
        waits(count).await;
    }
    waiters
}

/// Sessions that wait in SQL. They return how many rows they got, or the SQLSTATE; none where the
/// server was gone before it could say one.
async fn sleepers(url: &str, count: usize, name: &str) -> Vec<JoinHandle<Result<usize, String>>> {
    let mut sleepers = Vec::new();
    for _ in 0..count {
        let session = connect(url).await.unwrap();
        let sql = format!(
            "SELECT t.id FROM spcd.wait_until_ready('{{{name}}}', '5 min') CROSS JOIN LATERAL
             (SELECT 1 AS id) t"
        );
        sleepers.push(tokio::spawn(async move {
            let rows = session.query(&sql, &[]).await;
            rows.map(|rows| rows.len()).map_err(|error| {
                let code = error.code().map(|code| code.code().to_owned());
                code.unwrap_or_default()
            })
        }));
    }
    until_asleep(url, count).await;
    sleepers
}

async fn until_asleep(url: &str, count: usize) {
    let sql = "SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("the sessions wait", DEADLINE, || async {
        let rows = try_query(url, sql).await.ok()?;
        (rows[0][0] == Some(count.to_string())).then_some(())
    })
    .await;
}

async fn ended<T>(waiter: JoinHandle<T>) -> T {
    let ended = tokio::time::timeout(DEADLINE, waiter).await;
    ended.expect("no client hangs").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_clients_get_their_answer_over_a_power_cut() {
    let mut cluster = Cluster::start(&["max_connections = 300"]);
    let url = cluster.url("postgres");
    migrate(&url);
    let pending = json!([to("a", &["pending"]), to("b", &["pending"])]);
    publish(&url, "", pending).await;
    let waiters = waiters(&url, 50, &["a", "b"]).await;
    let sleepers = sleepers(&url, 50, "a").await;
    cluster.kill9();
    cluster.start_again();
    load(&url, "a").await;
    publish(&url, "", json!([broken("b", "gave up")])).await;
    for (n, waiter) in waiters.into_iter().enumerate() {
        match ended(waiter).await {
            Ok(rows) => assert_eq!((n % 2, rows), (0, 1)),
            Err(error) => {
                assert_eq!(n % 2, 1, "{error}");
                assert!(error.contains("gave up"), "{error}");
            }
        }
    }
    // A server without its postmaster ends its sessions without a word.
    for sleeper in sleepers {
        assert_eq!(ended(sleeper).await, Err(String::new()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_polls_a_standby_outlives_its_restart() {
    let cluster = Cluster::start(&[]);
    let url = cluster.url("postgres");
    migrate(&url);
    publish(&url, "", json!([to("a", &["pending"])])).await;
    let mut standby = cluster.standby();
    let waiters = waiters(&standby.url("postgres"), 4, &["a"]).await;
    standby.kill9();
    standby.start_again();
    load(&url, "a").await;
    for waiter in waiters {
        assert_eq!(ended(waiter).await, Ok(1));
    }
}

/// A source's port that lets sessions be opened, and holds back what they ask until the gate opens.
async fn gated(port: u16) -> (u16, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let (gate, is_open) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let (greeted, mut is_greeted) = watch::channel(false);
            let mut is_open = is_open.clone();
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = from_client.read(&mut bytes).await {
                    if *is_greeted.borrow_and_update() {
                        let _ = is_open.wait_for(|open| *open).await;
                    }
                    if to_server.write_all(&bytes[..n]).await.is_err() {
                        break;
                    }
                }
            });
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = from_server.read(&mut bytes).await {
                    if bytes[..n].ends_with(b"Z\0\0\0\x05I") {
                        let _ = greeted.send(true);
                    }
                    if to_client.write_all(&bytes[..n]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (own, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_wait_while_the_daemon_and_then_the_server_is_killed() {
    let mut cluster = Cluster::start(&["max_connections = 300"]);
    let url = cluster.url("postgres");
    let source = shared().database().await;
    query(
        &source.url,
        "CREATE TABLE t (id integer); INSERT INTO t VALUES (7)",
    )
    .await;
    let (port, gate) = gated(shared().port()).await;
    let mut spcd = Spcd::new(&url);
    let text = format!(
        "connection \"slow\" {{\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  port = {port}\n  \
         dbname = \"{}\"\n  user = \"postgres\"\n  import {{\n    timeout = \"10m\"\n  }}\n}}\n",
        source.name
    );
    spcd.write("slow.spc", &text);
    spcd.start();
    let is_led = |epoch: i64| {
        let url = url.clone();
        move || {
            let url = url.clone();
            async move {
                let sql = "SELECT d.epoch FROM spcd.daemon d, spcd.connection_state
                           WHERE connection_name = 'slow' AND status IN ('pending', 'updating')";
                let rows = try_query(&url, sql).await.ok()?;
                let at: i64 = rows.first()?.first()?.as_deref()?.parse().ok()?;
                (at >= epoch).then_some(())
            }
        }
    };
    eventually("it waits for the source", DEADLINE, is_led(1)).await;

    let waiters = waiters(&url, 50, &["slow"]).await;
    let sleepers = sleepers(&url, 50, "slow").await;
    spcd.kill9();
    spcd.start();
    eventually("the next daemon leads", DEADLINE, is_led(2)).await;
    until_asleep(&url, 50).await;
    cluster.stop();
    cluster.start_again();
    eventually("it leads again", DEADLINE, is_led(3)).await;
    for waiter in waiters.iter() {
        assert!(!waiter.is_finished());
    }
    let late = self::sleepers(&url, 1, "slow").await;
    gate.send(true).unwrap();
    for waiter in waiters {
        assert_eq!(ended(waiter).await, Ok(1));
    }
    for sleeper in sleepers {
        assert_eq!(ended(sleeper).await, Err("57P01".to_owned()));
    }
    for sleeper in late {
        assert_eq!(ended(sleeper).await, Ok(1));
    }
    assert_eq!(query(&url, "SELECT id FROM slow.t").await, [["7"]]);
    spcd.stop();
}
