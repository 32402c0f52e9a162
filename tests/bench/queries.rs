//! Queries with the options that spcd sets, beside the best that is known.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tokio_postgres::Client;

use crate::measure::{connection, median, report, scaled, server, session, until_ready};
use crate::support::{Spcd, query, value};

/// Number of times that each query is run.
const TIMES: usize = 5;
const MEMBERS: usize = 8;
/// Time that each member of the aggregator takes.
const MEMBER_TIME: f64 = 0.5;
/// Delay of each direction of the proxy.
const ONE_WAY: Duration = Duration::from_micros(2500);

/// `queries`: an aggregator over slow members, many rows over a slow network, and a search by an operator
/// of an extension.
pub async fn run() {
    aggregator().await;
    rows_over_a_slow_network().await;
    search_of_an_extension().await;
}

async fn aggregator() {
    println!("## an aggregator over {MEMBERS} members of {MEMBER_TIME} s");
    let server = server(&[]);
    let (source, hub) = (server.database().await, server.database().await);
    let view = format!("CREATE VIEW slow AS SELECT 1 AS id FROM pg_sleep({MEMBER_TIME})");
    query(&source.url, &view).await;
    let mut spcd = Spcd::new(&hub.url);
    let member = |n: usize| connection(&format!("m{n}"), "postgres", server.port(), &source);
    let members: String = (0..MEMBERS).map(member).collect();
    let all = "connection \"all\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
               connections = [\"m*\"]\n}\n";
    spcd.write("all.spc", &(members + all));
    spcd.start();
    until_ready(&hub, "%", MEMBERS + 1).await;
    let client = session(&hub.url).await;
    let one = timed(&client, "SELECT count(*) FROM m0.slow").await;
    let together = timed(&client, "SELECT count(*) FROM \"all\".slow").await;
    report("aggregator_slow", together, "one member", one, 1.2);
    spcd.stop();
}

async fn rows_over_a_slow_network() {
    let rows = scaled(200_000);
    println!("## {rows} rows over a round trip of 5 ms");
    let server = server(&[]);
    let (source, hub) = (server.database().await, server.database().await);
    let table = format!(
        "CREATE TABLE t AS SELECT n AS id, md5(n::text) AS note FROM generate_series(1, {rows}) n"
    );
    query(&source.url, &table).await;
    // As autovacuum leaves it.
    query(&source.url, "VACUUM (ANALYZE) t").await;
    let port = slow_network(server.port()).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &connection("a", "postgres", port, &source));
    spcd.start();
    until_ready(&hub, "a", 1).await;
    let sql = "SELECT count(note) FILTER (WHERE random() >= 0) FROM a.t";
    let client = session(&hub.url).await;
    let own = timed(&client, sql).await;
    let size = "SELECT ftoptions::text FROM pg_foreign_table WHERE ftrelid = 'a.t'::regclass";
    println!("options of the table: {}", value(&hub.url, size).await);
    // The daemon would set its own value again.
    spcd.stop();
    let mut best = Duration::MAX;
    for by_hand in [100, 1_000, 5_000, 10_000, 20_000, 50_000] {
        let set = format!("ALTER FOREIGN TABLE a.t OPTIONS (SET fetch_size '{by_hand}')");
        query(&hub.url, &set).await;
        let took = timed(&client, sql).await;
        println!("fetch_size {by_hand}: {:.3} s", took.as_secs_f64());
        best = best.min(took);
    }
    report("fetch_size", own, "the best found by hand", best, 1.2);
}

async fn search_of_an_extension() {
    let rows = scaled(100_000);
    println!("## an indexed ltree search over {rows} rows");
    let server = server(&[]);
    let (source, hub) = (server.database().await, server.database().await);
    let table = format!(
        "CREATE EXTENSION ltree;
         CREATE TABLE tree AS SELECT n AS id, ('a' || n % 4 || '.b' || n % 1000 || '.c' || n)::ltree AS path
         FROM generate_series(1, {rows}) n;
         CREATE INDEX ON tree USING gist (path); ANALYZE tree"
    );
    query(&source.url, &table).await;
    query(&hub.url, "CREATE EXTENSION ltree").await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write(
        "a.spc",
        &connection("a", "postgres", server.port(), &source),
    );
    spcd.start();
    until_ready(&hub, "a", 1).await;
    let search =
        |table: &str, below: &str| format!("SELECT count(*) FROM {table} WHERE path <@ '{below}'");
    let (there, here) = (session(&source.url).await, session(&hub.url).await);
    // The operator is not in pg_catalog.
    for client in [&there, &here] {
        client
            .batch_execute("SET search_path = public")
            .await
            .unwrap();
    }
    for (name, below) in [("ltree_quarter", "a3"), ("ltree_100_rows", "a3.b7")] {
        let round_trip = timed(&there, "SELECT 1").await;
        let bare = timed(&there, &search("tree", below)).await + round_trip;
        let own = timed(&here, &search("a.tree", below)).await;
        report(name, own, "the source and a round trip", bare, 1.2);
    }
    spcd.stop();
}

/// The median time of a query, after it has run once.
async fn timed(client: &Client, sql: &str) -> Duration {
    client.simple_query(sql).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let began = Instant::now();
        client.simple_query(sql).await.unwrap();
        times.push(began.elapsed());
    }
    median(times)
}

/// Returns the port of a proxy that delivers everything later, in each direction, and limits no
/// throughput.
async fn slow_network(port: u16) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            for side in [&client, &server] {
                side.set_nodelay(true).unwrap();
            }
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(deliver(from_client, to_server));
            tokio::spawn(deliver(from_server, to_client));
        }
    });
    own
}

async fn deliver(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (sender, mut parts) = mpsc::unbounded_channel();
    let read = async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let due = tokio::time::Instant::now() + ONE_WAY;
            let _ = sender.send((due, buffer[..length].to_vec()));
        }
    };
    let write = async move {
        while let Some((due, part)) = parts.recv().await {
            sleep_until(due).await;
            if to.write_all(&part).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
