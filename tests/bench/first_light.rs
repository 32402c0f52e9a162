//! Ten thousand connections: a restart that finds two of them altered, and one change among them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio_postgres::AsyncMessage;

use crate::support::{Cluster, Database, Spcd, connect, eventually, query, value};

const FILES: usize = 100;
const PER_FILE: usize = 100;
const CHANGES: usize = 21;
const LIMIT: Duration = Duration::from_secs(1200);

pub async fn run() {
    let all = FILES * PER_FILE;
    println!("## {all} connections of 2 tables, in {FILES} files");
    let server = Cluster::start(&[
        "log_statement = 'ddl'",
        "max_connections = 100",
        "shared_buffers = 256MB",
    ]);
    let (hub, source) = (server.database().await, server.database().await);
    query(
        &source.url,
        "CREATE TABLE a (id integer, name text); CREATE TABLE b (x date)",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    for file in 0..FILES {
        spcd.write(
            &format!("{file:03}.spc"),
            &text(&server, &source, file, None),
        );
    }

    let began = Instant::now();
    spcd.start();
    until_ready(&hub, all).await;
    println!(
        "cold pass, each source asked: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    spcd.stop();

    let undamaged = catalog(&hub).await;
    query(
        &hub.url,
        "DROP FOREIGN TABLE c05050.b; ALTER SERVER c07070 OPTIONS (SET fetch_size '7')",
    )
    .await;
    let before = server.log().len();
    let began = Instant::now();
    spcd.start();
    // Until it leads, the table says what the one before it left.
    eventually("it leads", LIMIT, || async {
        (value(&hub.url, "SELECT epoch FROM spcd.daemon").await == "2").then_some(())
    })
    .await;
    until_ready(&hub, all).await;
    let took = began.elapsed();
    println!(
        "restart, one table dropped and one server altered meanwhile: all ready after {:.2} s \
         (aim 1 s), resident {} MB, at most {} MB (aim 64 MB)",
        took.as_secs_f64(),
        memory(&spcd, "VmRSS:"),
        memory(&spcd, "VmHWM:"),
    );
    let log = server.log();
    let ddl: Vec<&str> = log[before..]
        .lines()
        .filter(|line| line.contains("statement: ") && !line.contains("spcd_ask_"))
        .filter(|line| {
            line.contains("TABLE ") || line.contains("SERVER ") || line.contains("SCHEMA ")
        })
        .filter_map(|line| line.split_once("statement: "))
        .map(|(_, statement)| statement)
        .collect();
    println!(
        "statements of DDL that the server logged meanwhile, but for questions that are rolled back: {ddl:#?}"
    );
    let after = catalog(&hub).await;
    println!(
        "what differs in the catalog since before the damage, by row version: {:?}",
        catalog_difference(&undamaged, &after)
    );
    println!(
        "the table is back: {}, the server's option: {}",
        value(&hub.url, "SELECT to_regclass('c05050.b') IS NOT NULL").await,
        value(
            &hub.url,
            "SELECT srvoptions::text FROM pg_foreign_server WHERE srvname = 'c07070'"
        )
        .await
    );

    let mut times = Vec::new();
    for change in 0..CHANGES {
        let number = change * 457 % all;
        times.push(change_one(&spcd, &server, &hub, &source, number, change).await);
    }
    times.sort();
    println!(
        "save to notification, one change among {all}: median {} ms (aim 150 ms), from {} to {} ms",
        times[CHANGES / 2].as_millis(),
        times[0].as_millis(),
        times[CHANGES - 1].as_millis()
    );
    spcd.stop();
}

fn text(
    server: &Cluster,
    source: &Database,
    file: usize,
    changed: Option<(usize, usize)>,
) -> String {
    let connection = |n: usize| {
        let fetch = match changed {
            Some((number, change)) if number == n => 1000 + change,
            _ => 100,
        };
        format!(
            "connection \"c{n:05}\" {{\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  port = {}\n  \
             dbname = \"{}\"\n  user = \"postgres\"\n  fetch_size = {fetch}\n}}\n\n",
            server.port(),
            source.name
        )
    };
    (file * PER_FILE..(file + 1) * PER_FILE)
        .map(connection)
        .collect()
}

async fn until_ready(hub: &Database, all: usize) {
    let sql = "SELECT count(*) FROM spcd.connection_state WHERE status = 'ready'";
    let wanted = all.to_string();
    eventually("all are ready", LIMIT, || async {
        let rows = crate::support::try_query(&hub.url, sql).await.ok()?;
        (rows[0][0].as_deref() == Some(&wanted)).then_some(())
    })
    .await;
}

/// From the moment a file is saved to the moment a listener hears that its change is ready.
async fn change_one(
    spcd: &Spcd,
    server: &Cluster,
    hub: &Database,
    source: &Database,
    number: usize,
    change: usize,
) -> Duration {
    let (client, mut connection) = tokio_postgres::connect(&hub.url, tokio_postgres::NoTls)
        .await
        .unwrap();
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let name = format!("\"c{number:05}\"");
    let pump = tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            let AsyncMessage::Notification(message) = message else {
                continue;
            };
            if message.payload().contains(&name) && message.payload().contains("\"ready\"") {
                let _ = sender.send(Instant::now());
            }
        }
    });
    client
        .batch_execute("LISTEN connection_state")
        .await
        .unwrap();
    let file = number / PER_FILE;
    let text = text(server, source, file, Some((number, change)));
    let saved = Instant::now();
    spcd.write(&format!("{file:03}.spc"), &text);
    let heard_at = loop {
        let at = heard.recv().await.unwrap();
        let sql = format!(
            "SELECT count(*) FROM pg_foreign_server WHERE srvname = 'c{number:05}' AND srvoptions::text LIKE '%={}%'",
            1000 + change
        );
        if value(&hub.url, &sql).await == "1" {
            break at;
        }
    };
    drop(connect(&hub.url).await);
    pump.abort();
    heard_at - saved
}

/// Every schema, relation, server and mapping with its row version: what a transaction that was
/// committed has changed shows here.
async fn catalog(hub: &Database) -> BTreeSet<String> {
    let sql = "SELECT 'schema ' || nspname || ' ' || xmin FROM pg_namespace WHERE nspname !~ '^pg_'
         UNION ALL SELECT 'table ' || relnamespace::regnamespace || '.' || relname || ' ' || xmin
                   FROM pg_class WHERE relkind = 'f'
         UNION ALL SELECT 'server ' || srvname || ' ' || xmin FROM pg_foreign_server
         UNION ALL SELECT 'mapping ' || umserver || ' ' || xmin FROM pg_user_mapping";
    let rows = crate::support::try_query(&hub.url, sql).await.unwrap();
    rows.into_iter()
        .filter_map(|row| row.into_iter().next().flatten())
        .collect()
}

/// What is in one of them only, without the versions.
fn catalog_difference(before: &BTreeSet<String>, after: &BTreeSet<String>) -> BTreeSet<String> {
    let name = |line: &String| line.rsplit_once(' ').map(|(name, _)| name.to_owned());
    before
        .symmetric_difference(after)
        .filter_map(name)
        .collect()
}

fn memory(spcd: &Spcd, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", spcd.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1024
}
