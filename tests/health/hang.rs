//! Sources that accept, say nothing, and cannot be let go of.

use std::collections::BTreeMap;

use super::{WELL, health, until_health, watching};
use crate::support::http::Http;
use crate::support::hub::{postgres, until, until_error};
use crate::support::mariadb::MariaDb;
use crate::support::proxy::Proxy;
use crate::support::{Cluster, DEADLINE, connect, eventually, query, shared, try_query, value};

/// How many sources fall silent: few, and then more than may hang.
const FEW: usize = 4;
const MANY: usize = 24;
/// The server's part in ending a session may come after the next one is there.
const ENDING: usize = 4;

/// What waits for sources: for their tables, and for whether they are there.
async fn waiting(hub: &str, purpose: &str) -> usize {
    let sql =
        format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'spcd {purpose}'");
    value(hub, &sql).await.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_hang_in_their_wrapper_affect_no_other() {
    let server = Cluster::start(&["max_connections = 60"]);
    let hub = server.database().await;
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let shop = MariaDb::start();
    shop.run(
        "CREATE DATABASE shop; CREATE TABLE shop.t (id int);
         CREATE USER reader@'127.0.0.1' IDENTIFIED BY 'x';
         GRANT SELECT ON shop.* TO reader@'127.0.0.1'",
    );
    let proxy = Proxy::to(shop.port()).await;
    proxy.swallow(true);
    let mysql = |name: &str, port: u16| {
        format!(
            "connection \"{name}\" {{\n  plugin   = \"mysql\"\n  port     = {port}\n  \
             database = \"shop\"\n  user     = \"reader\"\n  password = \"x\"\n  \
             import {{\n    timeout = \"1s\"\n  }}\n}}\n"
        )
    };
    let mut spcd = watching(&hub.url);
    spcd.env("SPCD_HEALTH_TIMEOUT", "1s");
    let silent: Vec<String> = (0..MANY).map(|n| format!("m{n:02}")).collect();
    let blocks = |names: &[String]| -> String {
        let block = |name: &String| mysql(name, proxy.port());
        names.iter().map(block).collect()
    };
    spcd.write("silent.spc", &blocks(&silent[..FEW]));
    spcd.start();
    for name in &silent[..FEW] {
        // One session for each is lost, and no other is risked.
        until_error(&hub.url, name, "a session still waits for it in mysql_fdw").await;
    }
    // Others are imported and asked as ever, also of the same wrapper.
    spcd.write("b.spc", &postgres("other", &source));
    spcd.write("c.spc", &mysql("shop", shop.port()));
    let states = |silent: &[String], status: &str, others: &[&str]| {
        let silent = silent.iter().map(|name| format!("{name} {status}"));
        let others = others.iter().map(|name| format!("{name} ready"));
        silent.chain(others).collect::<Vec<String>>()
    };
    let becomes = async |states: Vec<String>| {
        let states: Vec<&str> = states.iter().map(String::as_str).collect();
        until(&hub.url, &states).await;
    };
    becomes(states(&silent[..FEW], "error", &["other", "shop"])).await;
    for name in ["other", "shop"] {
        until_health(&hub.url, name, WELL).await;
    }

    // More than may hang. Each is tried, and it is said why it is not tried again.
    spcd.write("silent.spc", &blocks(&silent));
    spcd.write("d.spc", &postgres("zz", &source));
    becomes(states(&silent, "error", &["other", "shop", "zz"])).await;
    for (table, reason) in [
        (
            "connection_state",
            "error LIKE '%a session still waits for it in mysql_fdw%'
             OR error LIKE 'the source is not queried: % in mysql_fdw for sources that do not answer%'",
        ),
        (
            "connection_health",
            "last_failure LIKE '%did not answer within 1 s%'
             OR last_failure LIKE 'the source is not queried: %'",
        ),
    ] {
        let told = format!(
            "SELECT count(*) FROM spcd.{table} WHERE connection_name LIKE 'm%' AND ({reason})"
        );
        eventually("it is said why they are not asked", DEADLINE, || async {
            (value(&hub.url, &told).await == MANY.to_string()).then_some(())
        })
        .await;
    }
    for _ in 0..5 {
        for name in ["other", "shop", "zz"] {
            let at = health(&hub.url, name, "last_checked").await;
            until_health(&hub.url, name, &format!("last_checked > '{at}'")).await;
        }
        let imports = waiting(&hub.url, "asking").await;
        assert!(
            imports <= 20 + ENDING,
            "{imports} sessions wait for imports"
        );
        let probes = waiting(&hub.url, "probing").await;
        assert!(probes <= 16 + ENDING, "{probes} sessions wait for probes");
    }
    for name in ["other", "zz"] {
        until_health(&hub.url, name, WELL).await;
    }

    // They hang up, and answer from then on.
    let log = server.log();
    assert!(!log.contains("remaining connection slots"), "{log}");
    proxy.swallow(false);
    proxy.hang_up();
    becomes(states(&silent, "ready", &["other", "shop", "zz"])).await;
    for name in &silent {
        until_health(&hub.url, name, WELL).await;
    }
    spcd.stop();
}

/// The most sessions of each kind that were seen at a time.
type Most = BTreeMap<String, usize>;

/// Counts the daemon's sessions until `done`.
async fn most_sessions(hub: &str, done: impl AsyncFn(&Most) -> bool) {
    let client = connect(hub).await.unwrap();
    let sql = "SELECT application_name, count(*) FROM pg_stat_activity
               WHERE application_name LIKE 'spcd %' GROUP BY 1";
    let mut most = Most::new();
    let counted = async {
        while !done(&most).await {
            for row in client.query(sql, &[]).await.unwrap() {
                let (name, count): (String, i64) = (row.get(0), row.get(1));
                let seen = most.entry(name).or_default();
                *seen = usize::try_from(count).unwrap().max(*seen);
            }
        }
    };
    let counted = tokio::time::timeout(DEADLINE * 4, counted).await;
    assert!(counted.is_ok(), "it does not become so: {most:?}");
    eprintln!("{most:?}");
    // As docs/operations.md has it.
    for (name, count) in &most {
        let few = match name.as_str() {
            "spcd pool" => 6 + ENDING,
            "spcd asking" => 20 + ENDING,
            "spcd probing" => 16 + ENDING,
            "spcd writer" => 2,
            // It is replaced once the daemon leads; the earlier one may still be ending.
            "spcd http" => 2,
            _ => 1,
        };
        assert!(*count <= few, "{name}: {most:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sources_that_are_asked_take_few_sessions_of_the_hub() {
    let server = Cluster::start(&["max_connections = 60"]);
    let hub = server.database().await;
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let proxy = Proxy::to(shared().port()).await;
    let mut spcd = watching(&hub.url);
    spcd.env("SPCD_HEALTH_INTERVAL", "1s");
    let http = Http::of(&mut spcd);
    let (from, to) = (
        format!("= {}", shared().port()),
        format!("= {}", proxy.port()),
    );
    let all: String = (0..50)
        .map(|n| postgres(&format!("s{n:02}"), &source).replace(&from, &to))
        .collect();
    spcd.write("all.spc", &all);
    spcd.start();
    http.is_there();
    let well = format!("SELECT count(*) FROM spcd.connection_health WHERE {WELL}");
    let ready = "SELECT count(*) FROM spcd.connection_state WHERE status = 'ready'";
    let is = async |sql: &str, count: &str| {
        let rows = try_query(&hub.url, sql).await;
        rows.is_ok_and(|rows| rows[0][0].as_deref() == Some(count))
    };
    let seen = |most: &Most, least: usize| {
        ["spcd asking", "spcd probing"]
            .iter()
            .all(|name| most.get(*name).is_some_and(|count| *count >= least))
    };
    // Imported and probed for the first time, while a client waits.
    most_sessions(&hub.url, async |most| {
        http.get("/api/v1/connections");
        seen(most, 1) && is(ready, "50").await && is(&well, "50").await
    })
    .await;

    // None of them says anything any more, and all are asked for their tables, too. They wait
    // beside each other.
    proxy.swallow(true);
    let asked = spcd.spcd(&["refresh"]);
    assert_eq!(asked.code, 0, "{asked:?}");
    let lost = "SELECT count(*) FROM spcd.connection_health WHERE NOT reachable";
    most_sessions(&hub.url, async |most| seen(most, 5) && is(lost, "50").await).await;
    proxy.swallow(false);
    most_sessions(&hub.url, async |_| is(&well, "50").await).await;
    let log = server.log();
    assert!(!log.contains("remaining connection slots"), "{log}");
    spcd.stop();
}
