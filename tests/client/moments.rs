//! Ten thousand answers, each held against what was true while it was asked.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use spcd_client::Client;

use super::{LONG, broken, code, count_waits};
use crate::support::kept::{kept, publish_on, to};
use crate::support::{connect, query};

/// What a client saw of one query.
struct Answer {
    name: String,
    from: i64,
    to: i64,
    rows: bool,
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_answers_are_each_right_for_a_moment_of_their_query() {
    const CLIENTS: usize = 16;
    const NAMES: usize = 12;
    let hub = kept().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    // What the daemon would do: connections are created, broken, repaired and removed. A table is
    // there exactly while its connection is ready, so that the events tell when.
    let world = {
        let (url, stop) = (hub.url.clone(), stop.clone());
        tokio::spawn(async move {
            let session = connect(&url).await.unwrap();
            let mut phase = [0_usize; NAMES];
            let mut n = 0_usize;
            while !stop.load(Ordering::SeqCst) {
                n = (n + 5) % NAMES;
                let now = phase[n];
                phase[n] = (phase[n] + 1) % 9;
                let name = format!("c{n}");
                let create = format!("CREATE SCHEMA {name}; CREATE TABLE {name}.t{n} (id integer)");
                let drop = format!("DROP SCHEMA {name} CASCADE");
                let remove = json!({"name": name, "route": ["deleting"], "remove": true});
                let (sql, change) = match now {
                    0 => (String::new(), to(&name, &["pending"])),
                    // Being on the way takes longer than anything else.
                    1..=3 => {
                        session.simple_query("SELECT 1").await.unwrap();
                        continue;
                    }
                    4 | 7 => (create, to(&name, &["updating", "ready"])),
                    5 => (drop, to(&name, &["updating"])),
                    6 => (String::new(), broken(&name, "broken")),
                    _ => (drop, remove),
                };
                publish_on(&session, &sql, json!([change])).await;
            }
        })
    };
    // All queries, those that waited, those with rows.
    let counts: Arc<[AtomicUsize; 3]> = Arc::default();
    let enough = |counts: &[AtomicUsize; 3]| {
        let [all, waited, rows] = counts.each_ref().map(|count| count.load(Ordering::SeqCst));
        all >= 10_000 && waited >= 1000 && rows >= 1000 && all - rows >= 1000
    };
    let mut clients = Vec::new();
    for c in 0..CLIENTS {
        let counts = counts.clone();
        let url = hub.url.clone();
        clients.push(tokio::spawn(async move {
            let mut client = Client::connect(&url).await.unwrap();
            client.set_timeout(LONG);
            let path: Vec<String> = (0..NAMES).map(|n| format!("c{n}")).collect();
            let path = format!("SET search_path = {}", path.join(", "));
            client
                .session()
                .await
                .unwrap()
                .batch_execute(&path)
                .await
                .unwrap();
            let count = count_waits(&mut client);
            let mut answers = Vec::new();
            for q in 0.. {
                if enough(&counts) {
                    break;
                }
                let n = (q * 7 + c) % NAMES;
                let name = format!("c{n}");
                let qualified = (q + c) % 3 != 0;
                let sql = if qualified {
                    format!("SELECT id FROM {name}.t{n}")
                } else {
                    format!("SELECT id FROM t{n}")
                };
                let at = "SELECT coalesce(max(id), 0) FROM spcd.connection_event";
                let session = client.session().await.unwrap();
                let from = session.query_one(at, &[]).await.unwrap().get(0);
                count.store(0, Ordering::SeqCst);
                let outcome = tokio::time::timeout(LONG, client.query(&sql, &[]))
                    .await
                    .expect("no query hangs");
                let waited = count.load(Ordering::SeqCst) > 0;
                if let Err(error) = &outcome {
                    assert_eq!(code(error), "42P01", "{sql}: {error:?}");
                }
                let session = client.session().await.unwrap();
                let to = session.query_one(at, &[]).await.unwrap().get(0);
                counts[0].fetch_add(1, Ordering::SeqCst);
                counts[1].fetch_add(usize::from(waited), Ordering::SeqCst);
                counts[2].fetch_add(usize::from(outcome.is_ok()), Ordering::SeqCst);
                answers.push(Answer {
                    name,
                    from,
                    to,
                    rows: outcome.is_ok(),
                });
            }
            answers
        }));
    }
    let mut answers = Vec::new();
    for client in clients {
        answers.extend(client.await.unwrap());
    }
    stop.store(true, Ordering::SeqCst);
    world.await.unwrap();

    // One session wrote, so the order of the events is that of the commits. What a commit left is
    // its last event.
    let mut history: BTreeMap<String, Vec<(i64, bool)>> = BTreeMap::new();
    let sql = "SELECT DISTINCT ON (generation) id, connection_name, status
               FROM spcd.connection_event ORDER BY generation, id DESC";
    for row in query(&hub.url, sql).await {
        let there = row[2] == "ready";
        history
            .entry(row[1].clone())
            .or_default()
            .push((row[0].parse().unwrap(), there));
    }
    for answer in &answers {
        let events = history
            .get(&answer.name)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let before = events
            .iter()
            .rev()
            .find(|(id, _)| *id <= answer.from)
            .is_some_and(|(_, is)| *is);
        let during = events
            .iter()
            .filter(|(id, _)| *id > answer.from && *id <= answer.to)
            .map(|(_, is)| *is);
        let moments: Vec<bool> = std::iter::once(before).chain(during).collect();
        assert!(
            moments.contains(&answer.rows),
            "{}: {} between {} and {}, when it was {moments:?}",
            answer.name,
            if answer.rows { "rows" } else { "an error" },
            answer.from,
            answer.to
        );
    }
    let [all, waited, rows] = counts.each_ref().map(|count| count.load(Ordering::SeqCst));
    let failed = all - rows;
    assert!(all >= 10_000 && waited >= 1000 && rows >= 1000 && failed >= 1000);
    // Past the harness, which keeps to itself what passing tests print.
    let mut out = std::io::stderr();
    writeln!(
        out,
        "\n{all} queries: {waited} waited, {rows} returned rows, {failed} rightly failed"
    )
    .unwrap();
}
