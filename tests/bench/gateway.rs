//! What the gateway costs, and what its lanes gain.

use std::time::{Duration, Instant};

use crate::measure::{
    ADDED, TURNS, Turns, added, connection, frame, median, name, scaled, seconds, server, session,
    source, tables, two_sessions, until_ready,
};
use crate::support::hub::STATIC;
use crate::support::steampipe::{self, plugins};
use crate::support::{Cluster, Database, Spcd, query};

const ALL: &str = "connection \"all\" {\n  plugin = \"a\"\n  type = \"aggregator\"\n  \
                   connections = [\"acc*\"]\n}\n";
const ACCOUNTS: usize = 8;
const ROWS: usize = 5000;
/// Time of a row from the cache of a real wrapper (tests/wrappers/README.md).
const ROW_MICROSECONDS: usize = 24;
/// How often a session is opened to measure its first query.
const SESSIONS: usize = 20;
const TABLES: usize = 40;
/// Sets of tables in one transaction of the reference.
const TOGETHER: usize = 12;

/// A daemon between a hub and a gateway.
fn daemon(hub: &Database, gateway: &Cluster) -> Spcd {
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_GATEWAY", &gateway.url("postgres"));
    spcd
}

/// `lanes`: an aggregator over accounts whose API takes a second.
pub async fn lanes() {
    println!("## an aggregator over {ACCOUNTS} accounts in the gateway, each of which takes 1 s");
    let server = server(&[]);
    for (lanes, aims) in [(1, None), (4, None), (8, Some((1.3, 1.7)))] {
        let (hub, gateway) = (server.database().await, steampipe::gateway().await);
        let mut spcd = daemon(&hub, &gateway);
        let account = |n| steampipe::connection(&format!("acc{n}"), "a", "seconds = 1");
        let accounts: String = (0..ACCOUNTS).map(account).collect();
        let plugins = plugins().replace(
            "gateway = true",
            &format!("gateway = true\nlanes = {lanes}"),
        );
        spcd.write("all.spc", &(plugins + ALL + &accounts));
        spcd.start();
        until_ready(&hub, "%", ACCOUNTS + 1).await;
        let sql = "SELECT count(*) FROM \"all\".slow";
        let (mut first, mut again) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            let began = Instant::now();
            let client = session(&hub.url).await;
            for times in [&mut first, &mut again] {
                let began = if times.is_empty() {
                    began
                } else {
                    Instant::now()
                };
                let row = client.query_one(sql, &[]).await.unwrap();
                assert_eq!(row.get::<_, i64>(0), 8);
                times.push(began.elapsed());
            }
        }
        let told = |what: &str, times: Vec<Duration>, aim: Option<f64>| {
            let took = median(times);
            let aim = aim.map_or_else(String::new, |aim| {
                let missed = if took.as_secs_f64() > aim {
                    " MISSED"
                } else {
                    ""
                };
                format!(" (aim: at most {aim} s){missed}")
            });
            println!("lanes, {lanes}, {what}: {}{aim}", seconds(took));
        };
        told("a new session", first, aims.map(|(_, new)| new));
        told(
            "a session that has its lanes open",
            again,
            aims.map(|(open, _)| open),
        );
        spcd.stop();
    }
}

/// `through_gateway`: rows and first queries, beside the same tables read in the wrapper's own server.
pub async fn through_gateway() {
    println!("## {ROWS} rows, and the first query of a session, direct and through the gateway");
    let (server, gateway) = (server(&[]), steampipe::gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub, &gateway);
    let block = |name: &str, time: usize| {
        let config = format!("rows = {ROWS}\n  row_microseconds = {time}");
        steampipe::connection(name, "a", &config)
    };
    let blocks = block("cached", ROW_MICROSECONDS) + &block("free", 0);
    spcd.write("all.spc", &(plugins() + &blocks));
    spcd.start();
    until_ready(&hub, "%", 2).await;
    let urls = [hub.url.clone(), gateway.url("postgres")];
    let (mut cached, mut free) = (Turns::default(), Turns::default());
    let mut firsts = [Vec::new(), Vec::new()];
    for turn in 0..SESSIONS {
        let mut took = [[Duration::ZERO; 3]; 2];
        for n in [turn % 2, 1 - turn % 2] {
            let began = Instant::now();
            let client = session(&urls[n]).await;
            client
                .query("SELECT id FROM cached.account LIMIT 1", &[])
                .await
                .unwrap();
            took[n][0] = began.elapsed();
            for (at, name) in [(1, "cached"), (2, "free")] {
                let sql = format!("SELECT * FROM {name}.account");
                let began = Instant::now();
                assert_eq!(client.query(&sql, &[]).await.unwrap().len(), ROWS);
                took[n][at] = began.elapsed();
            }
        }
        for (list, took) in firsts.iter_mut().zip(took) {
            list.push(took[0]);
        }
        cached.push(took[0][1], took[1][1]);
        free.push(took[0][2], took[1][2]);
    }
    let [through, direct] = firsts.map(median);
    println!(
        "the first query of a session: {}, direct: {} (aim: at most 30 ms more)",
        seconds(through),
        seconds(direct)
    );
    cached.report(
        "rows that take as long as from a wrapper's cache",
        "direct",
        1.1,
    );
    let [through, direct] = free.medians();
    println!(
        "rows that take no time: {}, direct: {}",
        seconds(through),
        seconds(direct)
    );
    spcd.stop();
}

/// `cold_gateway`: static connections in hub and gateway, all new, and one added.
pub async fn cold() {
    let all = scaled(1000);
    println!("## {all} static connections of {TABLES} tables in the gateway, all new");
    let (server, gateway) = (server(&[]), server(&[]));
    let source = source(&server, TABLES).await;
    let hub = server.database().await;
    let bare = server.database().await;
    query(&bare.url, "CREATE EXTENSION postgres_fdw").await;
    let mut spcd = daemon(&hub, &gateway);
    let plugin = STATIC.replace("schema_mode", "gateway = true\n  schema_mode");
    let text = |count: usize| -> String {
        (0..count)
            .map(|n| connection(&name(n), "app", server.port(), &source))
            .collect()
    };
    spcd.write("plugin.spc", &plugin);
    spcd.write(
        "keep.spc",
        &connection("keep", "app", server.port(), &source),
    );
    spcd.start();
    until_ready(&hub, "keep", 1).await;
    let began = Instant::now();
    spcd.write("all.spc", &text(all));
    until_ready(&hub, "c%", all).await;
    let took = began.elapsed();
    let names: Vec<String> = (0..all).map(name).collect();
    let batch = |names: &[String]| {
        let each = names
            .iter()
            .map(|name| frame(name, &server, &source) + &tables(name, TABLES));
        each.collect::<String>()
    };
    let batches = names.chunks(TOGETHER).map(batch).collect();
    let native = two_sessions(&bare.url, batches).await;
    crate::measure::report(
        "cold_gateway",
        took,
        "the bare DDL in one database",
        native,
        2.2,
    );
    let took = added(&spcd, &hub, all, text).await;
    let missed = if took > Duration::from_millis(150) {
        " MISSED"
    } else {
        ""
    };
    println!(
        "one added to {all}, median of {ADDED}: {} (aim: at most 150 ms){missed}",
        seconds(took)
    );
    spcd.stop();
}
