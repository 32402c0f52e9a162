//! Clients that wait: a thousand of them, one beside a bare LISTEN, and those that need not.

use std::time::{Duration, Instant};

use serde_json::json;
use spcd_client::Client;
use tokio_postgres::AsyncMessage;

use crate::support::kept::{migrate, publish, publish_on, to};
use crate::support::{Cluster, connect, eventually, query, value};

/// Half of them by LISTEN, half in SQL.
const WAITERS: usize = 1000;
/// For how long the server's processor time is taken while they wait.
const WATCHED: Duration = Duration::from_secs(10);
const ROUNDS: usize = 200;
const MANY: usize = 10_000;
const LIMIT: Duration = Duration::from_secs(300);

pub async fn run() {
    println!("## clients that wait");
    let server = Cluster::start(&[
        "max_connections = 1200",
        "shared_buffers = 256MB",
        "max_locks_per_transaction = 256",
    ]);
    let url = server.url("postgres");
    migrate(&url);
    thousand(&server, &url).await;
    one(&url).await;
    ready_already(&url).await;
}

/// What publishes, so that connecting is not measured.
async fn become_ready(session: &tokio_postgres::Client, name: &str) -> Instant {
    let change = json!([to(name, &["updating", "ready"])]).to_string();
    let batch = format!(
        "BEGIN; SELECT spcd.publish(nextval('spcd.generation'), {})",
        spcd_core::sql::literal(&change)
    );
    session.batch_execute(&batch).await.unwrap();
    let began = Instant::now();
    session.batch_execute("COMMIT").await.unwrap();
    began
}

async fn thousand(server: &Cluster, url: &str) {
    publish(url, "", json!([to("a", &["pending"])])).await;
    let mut waiters = Vec::new();
    for n in 0..WAITERS {
        let url = url.to_owned();
        if n % 2 == 0 {
            let mut client = Client::connect(&url).await.unwrap();
            waiters.push(tokio::spawn(async move {
                client.wait_ready(&["a"], LIMIT).await.unwrap();
                (Instant::now(), "LISTEN")
            }));
        } else {
            let session = connect(&url).await.unwrap();
            waiters.push(tokio::spawn(async move {
                let sql = "SELECT FROM spcd.wait_until_ready('{a}', '5 min')";
                session.query(sql, &[]).await.unwrap();
                (Instant::now(), "SQL function")
            }));
        }
    }
    let asleep = "SELECT count(*) FROM pg_stat_activity
                  WHERE wait_event = 'PgSleep' OR query = 'LISTEN connection_state'
                     OR (wait_event = 'ClientRead' AND query LIKE '%to_jsonb%' AND pid <> pg_backend_pid())";
    eventually("all wait", LIMIT, || async {
        (value(url, asleep).await.parse::<usize>().unwrap() >= WAITERS * 95 / 100).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = processor_time(server);
    let began = Instant::now();
    tokio::time::sleep(WATCHED).await;
    let share = (processor_time(server) - before) / began.elapsed().as_secs_f64();
    println!(
        "{WAITERS} waiting clients: the server takes {:.1} % of one core",
        share * 100.0
    );

    let session = connect(url).await.unwrap();
    let committed = become_ready(&session, "a").await;
    let mut times = Vec::new();
    for waiter in waiters {
        let (at, how) = waiter.await.unwrap();
        times.push((at.saturating_duration_since(committed), how));
    }
    for how in ["LISTEN", "SQL function"] {
        let of = times.iter().filter(|(_, by)| *by == how);
        let mut of: Vec<Duration> = of.map(|(time, _)| *time).collect();
        of.sort();
        println!(
            "{} by {how}: all returned; from commit to return p50 {:.1} ms, p99 {:.1} ms, last {:.1} ms",
            of.len(),
            millis(of[of.len() / 2]),
            millis(of[of.len() * 99 / 100]),
            millis(of[of.len() - 1])
        );
    }
}

/// Seconds that the server and all its sessions have had of the processors.
fn processor_time(server: &Cluster) -> f64 {
    let text = std::fs::read_to_string(server.data().join("postmaster.pid")).unwrap();
    let postmaster = text.lines().next().unwrap().to_owned();
    let mut ticks = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let pid = entry.file_name().to_string_lossy().into_owned();
        let Some((_, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        // After the name: state, parent, …; utime and stime are the 12th and 13th.
        let fields: Vec<&str> = rest.split_whitespace().collect();
        if pid == postmaster || fields[1] == postmaster {
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    // Linux counts in hundredths of a second.
    ticks as f64 / 100.0
}

async fn one(url: &str) {
    let session = connect(url).await.unwrap();
    let mut client = Client::connect(url).await.unwrap();
    let (bare, mut connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
        .await
        .unwrap();
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(_) = message {
                let _ = sender.send(());
            }
        }
    });
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // In turn, so that a noisy moment hits both.
        publish_on(&session, "", json!([to("b", &["pending"])])).await;
        let waits = std::sync::Arc::new(tokio::sync::Notify::new());
        let waiting = waits.clone();
        client.on_wait(move |_| waiting.notify_one());
        let waiter = tokio::spawn(async move {
            client.wait_ready(&["b"], LIMIT).await.unwrap();
            (client, Instant::now())
        });
        waits.notified().await;
        let committed = become_ready(&session, "b").await;
        let (back, at) = waiter.await.unwrap();
        client = back;
        ours.push(at.saturating_duration_since(committed));

        publish_on(&session, "", json!([to("b", &["pending"])])).await;
        bare.batch_execute("LISTEN connection_state").await.unwrap();
        while heard.try_recv().is_ok() {}
        let waiter = tokio::spawn(async move {
            heard.recv().await.unwrap();
            (heard, Instant::now())
        });
        let committed = become_ready(&session, "b").await;
        let (back, at) = waiter.await.unwrap();
        heard = back;
        theirs.push(at.saturating_duration_since(committed));
        bare.batch_execute("UNLISTEN *").await.unwrap();
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!(
        "one client, from commit to return: {:.2} ms; a bare LISTEN: {:.2} ms; ratio {:.2} (aim 1.5)",
        millis(ours),
        millis(theirs),
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
}

async fn ready_already(url: &str) {
    let names: Vec<String> = (0..MANY).map(|n| format!("c{n:05}")).collect();
    for part in names.chunks(1000) {
        let changes: Vec<_> = (part.iter())
            .map(|name| to(name, &["pending", "ready"]))
            .collect();
        let schemas: String = (part.iter())
            .map(|name| format!("CREATE SCHEMA {name};"))
            .collect();
        publish(url, &schemas, json!(changes)).await;
    }
    query(url, "ANALYZE spcd.connection_state").await;
    let short = connect(url).await.unwrap();
    let long = connect(url).await.unwrap();
    let path = format!("SET search_path = {}", names.join(", "));
    long.batch_execute(&path).await.unwrap();
    let rows = "SELECT s.* FROM spcd.connection_state s ORDER BY s.connection_name";
    let named = "SELECT * FROM spcd.wait_until_ready('{c00007}')";
    let on_path = "SELECT * FROM spcd.wait_until_ready()";
    for (session, what, bare, ours) in [
        (&short, "one that is named", "SELECT 1", named),
        (
            &long,
            "one that is named, 10,000 on the search path",
            "SELECT 1",
            named,
        ),
        (
            &long,
            "no names, 10,000 on the search path (bare: the same rows)",
            rows,
            on_path,
        ),
    ] {
        let rounds = if bare == rows { ROUNDS / 10 } else { ROUNDS };
        let (mut bares, mut waits) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            bares.push(timed(session, bare).await);
            waits.push(timed(session, ours).await);
        }
        let (bare, ours) = (median(bares), median(waits));
        println!(
            "wait_until_ready, {what}: {:.2} ms, a bare select {:.2} ms, {:.2} ms more (aim 2 ms)",
            millis(ours),
            millis(bare),
            millis(ours.saturating_sub(bare))
        );
    }
}

async fn timed(session: &tokio_postgres::Client, sql: &str) -> Duration {
    let began = Instant::now();
    session.simple_query(sql).await.unwrap();
    began.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
