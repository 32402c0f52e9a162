//! What the measurements have in common: sources, files, references, and the time that they take.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::{Cluster, Database, Spcd, connect, query};

/// How long anything may take before a measurement is given up.
pub const LIMIT: Duration = Duration::from_secs(1200);

/// All that is measured here has this many columns a table.
pub const COLUMNS: usize = 20;

/// Divides how many connections there are, to try a measurement out: `SPCD_BENCH_DIVISOR=10`.
pub fn scaled(count: usize) -> usize {
    let divisor = std::env::var("SPCD_BENCH_DIVISOR")
        .ok()
        .and_then(|text| text.parse().ok());
    count / divisor.unwrap_or(1).max(1)
}

/// A server as a hub has it, apart from its disk: nothing is synced, so that the disk of the machine
/// does not tell.
pub fn server(conf: &[&str]) -> Cluster {
    let mut all = vec![
        "shared_buffers = 256MB",
        "jit = off",
        "max_connections = 100",
    ];
    all.extend(conf);
    Cluster::start(&all)
}

/// Tables of a source: `tables` of [`COLUMNS`] columns.
pub async fn source(server: &Cluster, tables: usize) -> Database {
    let source = server.database().await;
    for table in table_columns(tables) {
        query(&source.url, &format!("CREATE TABLE {table}")).await;
    }
    source
}

fn table_columns(tables: usize) -> impl Iterator<Item = String> {
    const TYPES: [&str; 5] = [
        "integer",
        "text",
        "timestamp with time zone",
        "numeric(10,2)",
        "jsonb",
    ];
    (0..tables).map(|table| {
        let columns: Vec<String> = (0..COLUMNS)
            .map(|column| format!("column_number_{column} {}", TYPES[column % TYPES.len()]))
            .collect();
        format!("table_number_{table} ({})", columns.join(", "))
    })
}

/// The name of a connection.
pub fn name(n: usize) -> String {
    format!("c{n:05}")
}

/// A connection of a plugin.
pub fn connection(name: &str, plugin: &str, port: u16, source: &Database) -> String {
    format!(
        "connection \"{name}\" {{\n  plugin = \"{plugin}\"\n  host = \"127.0.0.1\"\n  port = {port}\n  \
         dbname = \"{}\"\n  user = \"postgres\"\n}}\n\n",
        source.name
    )
}

/// Schema, server and mapping of a connection, as plain DDL.
pub fn frame(name: &str, server: &Cluster, source: &Database) -> String {
    format!(
        "CREATE SCHEMA \"{name}\";\n\
         CREATE SERVER \"{name}\" FOREIGN DATA WRAPPER postgres_fdw OPTIONS \
         (host '127.0.0.1', port '{}', dbname '{}', keep_connections 'off');\n\
         CREATE USER MAPPING FOR PUBLIC SERVER \"{name}\" OPTIONS (user 'postgres');\n",
        server.port(),
        source.name
    )
}

/// The tables of a connection, as plain DDL.
pub fn tables(name: &str, tables: usize) -> String {
    let mut out = String::new();
    for (n, table) in table_columns(tables).enumerate() {
        let _ = writeln!(
            out,
            "CREATE FOREIGN TABLE \"{name}\".{table} SERVER \"{name}\" \
             OPTIONS (schema_name 'public', table_name 'table_number_{n}');"
        );
    }
    out
}

/// Sends batches, each in a transaction, over two sessions, and says how long that took.
pub async fn two_sessions(url: &str, batches: Vec<String>) -> Duration {
    let sessions = [session(url).await, session(url).await];
    let began = Instant::now();
    let queue = std::sync::Arc::new(std::sync::Mutex::new(batches.into_iter()));
    let run = |client: Client| {
        let queue = queue.clone();
        tokio::spawn(async move {
            loop {
                let Some(batch) = queue.lock().unwrap().next() else {
                    return;
                };
                client
                    .batch_execute(&format!("BEGIN;{batch};COMMIT"))
                    .await
                    .unwrap();
            }
        })
    };
    for task in sessions.map(run) {
        task.await.unwrap();
    }
    began.elapsed()
}

/// A session as the daemon's own.
pub async fn session(url: &str) -> Client {
    let client = connect(url).await.unwrap();
    client
        .batch_execute("SET search_path = pg_catalog")
        .await
        .unwrap();
    client
}

/// Waits until so many connections are ready; `like` is a pattern of their names.
pub async fn until_ready(hub: &Database, like: &str, count: usize) {
    let sql = format!(
        "SELECT count(*) FROM spcd.connection_state WHERE status = 'ready' AND connection_name LIKE '{like}'"
    );
    until_count(hub, &sql, count).await;
}

/// Waits until a query's only value is this one. Looks twenty times a second, in one session: more
/// would be load.
pub async fn until_count(hub: &Database, sql: &str, count: usize) {
    let wanted = count.to_string();
    let began = Instant::now();
    let client = session(&hub.url).await;
    loop {
        let found = client.simple_query(sql).await.unwrap_or_default();
        let first = found.into_iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        if first.as_ref() == Some(&wanted) {
            return;
        }
        assert!(
            began.elapsed() < LIMIT,
            "waited in vain for {count}, not {first:?}: {sql}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until a connection is ready, to the millisecond, in a session that is open already.
pub async fn until_row_ready(client: &Client, name: &str) {
    let sql = "SELECT FROM spcd.connection_state WHERE connection_name = $1 AND status = 'ready'";
    while client.query(sql, &[&name]).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// How many connections are added to measure how long one takes.
pub const ADDED: usize = 11;

/// The median time until a connection is ready that is added to `all` others in one file.
pub async fn added(
    spcd: &Spcd,
    hub: &Database,
    all: usize,
    text: impl Fn(usize) -> String,
) -> Duration {
    let client = session(&hub.url).await;
    let mut times = Vec::new();
    for n in all..all + ADDED {
        // The passes that follow a save are no part of the next one.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        spcd.write("all.spc", &text(n + 1));
        until_row_ready(&client, &name(n)).await;
        times.push(began.elapsed());
    }
    median(times)
}

/// How often what is measured and its reference take turns: a machine is not equally fast all the time.
pub const TURNS: usize = 3;

/// What turns took.
#[derive(Default)]
pub struct Turns {
    ours: Vec<Duration>,
    reference: Vec<Duration>,
}

impl Turns {
    /// A turn of each.
    pub fn push(&mut self, ours: Duration, reference: Duration) {
        self.ours.push(ours);
        self.reference.push(reference);
    }

    /// The medians of both.
    pub fn medians(self) -> [Duration; 2] {
        [median(self.ours), median(self.reference)]
    }

    /// One line with the medians, and one with the ratio of each turn.
    pub fn report(self, what: &str, reference: &str, aim: f64) {
        let each = self.ours.iter().zip(&self.reference);
        let ratio = |(ours, bare): (&Duration, &Duration)| ours.as_secs_f64() / bare.as_secs_f64();
        let each: Vec<String> = each.map(|pair| format!("{:.2}", ratio(pair))).collect();
        report(
            what,
            median(self.ours),
            reference,
            median(self.reference),
            aim,
        );
        println!("  in turns: {}", each.join(", "));
    }
}

/// The one in the middle.
pub fn median(mut list: Vec<Duration>) -> Duration {
    list.sort();
    list.get(list.len() / 2).copied().unwrap_or_default()
}

/// One line: what it took, what the reference took, and how that compares with the aim.
pub fn report(what: &str, took: Duration, reference: &str, bare: Duration, aim: f64) {
    let ratio = took.as_secs_f64() / bare.as_secs_f64();
    println!(
        "{what}: {}; {reference}: {}; {ratio:.2} x (aim: at most {aim} x){}",
        seconds(took),
        seconds(bare),
        if ratio <= aim { "" } else { " MISSED" }
    );
}

/// A duration for people.
pub fn seconds(duration: Duration) -> String {
    match duration < Duration::from_secs(1) {
        true => format!("{:.1} ms", duration.as_secs_f64() * 1000.0),
        false => format!("{:.2} s", duration.as_secs_f64()),
    }
}

/// The processor time that a server's processes have taken, those that ended included.
pub fn server_cpu(server: &Cluster) -> Duration {
    let pid_file = std::fs::read_to_string(server.data().join("postmaster.pid")).unwrap();
    let postmaster: u32 = pid_file.lines().next().unwrap().trim().parse().unwrap();
    let mut ticks = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Some(stat) = stat(pid) else { continue };
        // parent, user, system, and those of children that ended
        if pid == postmaster {
            ticks += stat[11] + stat[12] + stat[13] + stat[14];
        } else if stat[1] == u64::from(postmaster) {
            ticks += stat[11] + stat[12];
        }
    }
    Duration::from_millis(ticks * 10)
}

/// The processor time that the daemon has taken.
pub fn daemon_cpu(spcd: &Spcd) -> Duration {
    let stat = stat(u32::try_from(spcd.pid().as_raw()).unwrap()).unwrap();
    Duration::from_millis((stat[11] + stat[12]) * 10)
}

/// The numbers of `/proc/PID/stat` after the name; the state is 0. A tick is 10 ms everywhere.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(
        rest.split_whitespace()
            .map(|field| field.parse().unwrap_or(0))
            .collect(),
    )
}

/// A figure of the daemon's memory in MB: `VmRSS:` or `VmHWM:`.
pub fn memory(spcd: &Spcd, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", spcd.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes / 1024
}
