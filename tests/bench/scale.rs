//! How far one hub goes: sizes up to half a million foreign tables.

use std::process::{Command, Stdio};
use std::time::Instant;

use crate::measure::{
    ADDED, added, connection, daemon_cpu, median, memory, name, scaled, seconds, server,
    server_cpu, session, source, until_ready,
};
use crate::support::hub::STATIC;
use crate::support::{Database, Spcd, bindir, value};

const TABLES: usize = 50;
const SIZES: [usize; 3] = [1000, 3000, 10_000];
/// How often a session is opened.
const TIMES: usize = 11;

/// `scale`: a static plugin at growing sizes, each on a server of its own.
pub async fn run() {
    for size in SIZES {
        of_size(scaled(size)).await;
    }
}

async fn of_size(all: usize) {
    println!("## {all} static connections of {TABLES} tables on one hub");
    let server = server(&[]);
    let (hub, source) = (server.database().await, source(&server, TABLES).await);
    let before = database_megabytes(&hub).await;
    let mut spcd = Spcd::new(&hub.url);
    let text = |count: usize| -> String {
        let blocks = (0..count).map(|n| connection(&name(n), "app", server.port(), &source));
        STATIC.to_owned() + &blocks.collect::<String>()
    };
    spcd.write("all.spc", &text(all));
    let began = Instant::now();
    spcd.start();
    until_ready(&hub, "c%", all).await;
    println!("all ready after {}", seconds(began.elapsed()));
    println!(
        "the daemon: {} MB at most; processor time {}, the server's {}",
        memory(&spcd, "VmHWM:"),
        seconds(daemon_cpu(&spcd)),
        seconds(server_cpu(&server))
    );
    println!(
        "the database: {} MB",
        database_megabytes(&hub).await - before
    );
    println!(
        "its largest session of spcd: {} MB",
        backend_megabytes(&hub, "spcd").await
    );
    let took = added(&spcd, &hub, all, text).await;
    println!("one added, median of {ADDED}: {}", seconds(took));
    sessions(&hub).await;
    dumped(&hub);
    spcd.stop();
}

/// The start of a session, and the first plan in it.
async fn sessions(hub: &Database) {
    let (mut starts, mut plans) = (Vec::new(), Vec::new());
    for n in 0..TIMES {
        let began = Instant::now();
        let client = session(&hub.url).await;
        client.simple_query("SELECT 1").await.unwrap();
        starts.push(began.elapsed());
        let began = Instant::now();
        let sql = format!("EXPLAIN SELECT * FROM \"{}\".table_number_1", name(n));
        client.simple_query(&sql).await.unwrap();
        plans.push(began.elapsed());
    }
    println!(
        "a new session: {}, its first plan: {}",
        seconds(median(starts)),
        seconds(median(plans))
    );
}

/// The schema dumped by `pg_dump`.
fn dumped(hub: &Database) {
    let began = Instant::now();
    let program = bindir().join("pg_dump");
    let ended = Command::new(program)
        .args(["--schema-only", "--dbname", &hub.url])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    let result = if ended.success() {
        ""
    } else {
        ", which failed"
    };
    println!(
        "pg_dump --schema-only: {}{result}",
        seconds(began.elapsed())
    );
}

async fn database_megabytes(hub: &Database) -> i64 {
    let sql = "SELECT pg_database_size(current_database()) / 1000000";
    value(&hub.url, sql).await.parse().unwrap()
}

/// The private memory of the largest session whose application name begins so.
async fn backend_megabytes(hub: &Database, application: &str) -> u64 {
    let sql = format!(
        "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity
         WHERE datname = current_database() AND application_name LIKE '{application}%'"
    );
    let pids = value(&hub.url, &sql).await;
    let of_one = |pid: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text
            .lines()
            .find(|line| line.starts_with("Private_Dirty:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let largest = pids.split(' ').filter_map(of_one).max();
    largest.unwrap_or_default() / 1024
}
