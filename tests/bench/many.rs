//! Ten thousand connections: nothing to do, one that changes, and half of them gone.

use std::time::{Duration, Instant};

use crate::measure::{
    LIMIT, connection, median, memory, name, report, scaled, seconds, server, session, source,
    until_count, until_ready,
};
use crate::support::hub::STATIC;
use crate::support::{Cluster, Spcd, eventually, query, value};

const FEW: usize = 2;
const WIDE: usize = 50;
const TIMES: usize = 11;

/// `restart`, `column_added`, `drop_many`.
pub async fn run() {
    let all = scaled(10_000);
    println!("## {all} static connections of {FEW} tables, and one dynamic one of {WIDE}");
    // The server says how long each statement took; max_locks_per_transaction is as it comes.
    let server = server(&["log_min_duration_statement = 0"]);
    let (few, wide) = (source(&server, FEW).await, source(&server, WIDE).await);
    let hub = server.database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_LOG", "spcd=debug");
    let part = |from: usize, to: usize| -> String {
        (from..to)
            .map(|n| connection(&name(n), "app", server.port(), &few))
            .collect()
    };
    spcd.write("plugin.spc", STATIC);
    spcd.write("first.spc", &part(0, all / 2));
    spcd.write("second.spc", &part(all / 2, all));
    spcd.write(
        "wide.spc",
        &connection("wide", "postgres", server.port(), &wide),
    );
    let began = Instant::now();
    spcd.start();
    until_ready(&hub, "%", all + 1).await;
    println!(
        "cold: {}, at most {} MB resident",
        seconds(began.elapsed()),
        memory(&spcd, "VmHWM:")
    );

    restart(&mut spcd, &server, &hub.url, all + 1).await;
    column_added(&spcd, &server, &hub.url, &wide.url).await;

    let gone = all - all / 2;
    let began = Instant::now();
    spcd.remove("second.spc");
    until_count(
        &hub,
        "SELECT count(*) FROM spcd.connection_state",
        all + 1 - gone,
    )
    .await;
    println!(
        "drop_many: {gone} connections dropped at once in {}, max_locks_per_transaction = {}",
        seconds(began.elapsed()),
        value(&hub.url, "SHOW max_locks_per_transaction").await
    );
    let errors = "SELECT count(*) FROM spcd.connection_event WHERE status = 'error'";
    println!("errors meanwhile: {}", value(&hub.url, errors).await);
    spcd.stop();
}

/// Passes that find nothing to do, each beside the query that observes in it.
async fn restart(spcd: &mut Spcd, server: &Cluster, hub: &str, all: usize) {
    spcd.stop();
    let (before, began) = (server.log().len(), Instant::now());
    spcd.start();
    let ready =
        format!("SELECT count(*) = {all} FROM spcd.connection_state WHERE status = 'ready'");
    let epoch = "SELECT epoch FROM spcd.daemon";
    eventually("all are ready again", LIMIT, || async {
        (value(hub, epoch).await == "2" && value(hub, &ready).await == "t").then_some(())
    })
    .await;
    println!(
        "restart: all {all} ready {} after the start, {} MB resident, at most {} MB",
        seconds(began.elapsed()),
        memory(spcd, "VmRSS:"),
        memory(spcd, "VmHWM:")
    );
    // Each of these is a look that finds nothing.
    for _ in 0..TIMES {
        let id = value(hub, "SELECT spcd.refresh('{}')").await;
        let done = format!("SELECT done_at IS NOT NULL FROM spcd.refresh_request WHERE id = {id}");
        eventually("the look is over", LIMIT, || async {
            (value(hub, &done).await == "t").then_some(())
        })
        .await;
    }
    let log = server.log();
    let queries = durations(
        &log[before..],
        "spcd observer",
        &["spcd.fingerprint f USING"],
    );
    let log = spcd.log();
    let micros = |line: &str| -> Option<Duration> {
        let at = line.rsplit_once("\"micros\":")?.1;
        let digits: String = at.chars().take_while(char::is_ascii_digit).collect();
        Some(Duration::from_micros(digits.parse().ok()?))
    };
    // From the beginning of the pass until it was known that nothing differs.
    let looked = |line: &&str| line.contains("\"nothing was altered\"");
    let mut passes: Vec<Duration> = log.lines().filter(looked).filter_map(micros).collect();
    let passes = passes.split_off(passes.len() - TIMES);
    report(
        "restart, a pass with nothing to do (median)",
        median(passes),
        "the query that observes (median)",
        median(queries),
        1.5,
    );
}

/// A column more in each table of one connection.
async fn column_added(spcd: &Spcd, server: &Cluster, hub: &str, source: &str) {
    let alter = |schema: &str, column: &str, what: &str| -> String {
        (0..WIDE)
            .map(|n| {
                format!("ALTER {what} {schema}.table_number_{n} ADD COLUMN {column} integer;\n")
            })
            .collect()
    };
    let bare = session(hub).await;
    bare.batch_execute("SET application_name = 'bare'")
        .await
        .unwrap();
    // The first time costs more, here and there.
    let (mut bare_took, mut whole) = (Vec::new(), Vec::new());
    let mut before = 0;
    for n in 0..TIMES {
        if n == 1 {
            before = server.log().len();
            bare_took.clear();
            whole.clear();
        }
        // What is added by hand is dropped again by the pass that follows: it is not measured.
        let text = alter("wide", &format!("by_hand_{n}"), "FOREIGN TABLE");
        let began = Instant::now();
        bare.batch_execute(&format!("BEGIN;{text}COMMIT"))
            .await
            .unwrap();
        bare_took.push(began.elapsed());
        query(hub, "SELECT spcd.refresh('{wide}')").await;
        until_columns(hub, &format!("by_hand_{n}"), 0).await;

        query(source, &alter("public", &format!("added_{n}"), "TABLE")).await;
        let began = Instant::now();
        query(hub, "SELECT spcd.refresh('{wide}')").await;
        until_columns(hub, &format!("added_{n}"), WIDE).await;
        whole.push(began.elapsed());
    }
    let log = server.log();
    let writes = durations(
        &log[before..],
        "spcd writer",
        &["ALTER FOREIGN TABLE", "ADD COLUMN \"added_"],
    );
    report(
        "column_added, the statements that write it (median)",
        median(writes),
        "the bare ALTERs (median)",
        median(bare_took),
        1.3,
    );
    println!(
        "from the request to the new columns, the source asked: {} (median), {} MB resident",
        seconds(median(whole)),
        memory(spcd, "VmRSS:")
    );
}

async fn until_columns(hub: &str, column: &str, count: usize) {
    let sql = format!(
        "SELECT count(*) = {count} FROM pg_attribute
         WHERE attname = '{column}' AND NOT attisdropped AND attrelid >= 16384"
    );
    eventually("the columns are as they should be", LIMIT, || async {
        (value(hub, &sql).await == "t").then_some(())
    })
    .await;
}

/// How long statements of an application took that have all these parts, as the server logged it.
/// What is logged as parse, bind and execute is one statement.
fn durations(log: &str, application: &str, parts: &[&str]) -> Vec<Duration> {
    let mut found = Vec::new();
    let mut sum = 0.0;
    let starts: Vec<usize> = log
        .match_indices(" LOG:  duration: ")
        .map(|(at, _)| at)
        .collect();
    for (n, start) in starts.iter().enumerate() {
        let entry = &log[*start..starts.get(n + 1).copied().unwrap_or(log.len())];
        let line = log[..*start].rsplit('\n').next().unwrap_or_default();
        if !line.contains(application) || !parts.iter().all(|part| entry.contains(part)) {
            continue;
        }
        let milliseconds = entry
            .split_whitespace()
            .nth(2)
            .and_then(|text| text.parse::<f64>().ok());
        sum += milliseconds.unwrap_or_default();
        let kind = entry.split_whitespace().nth(4).unwrap_or_default();
        if matches!(kind, "statement:" | "execute") {
            found.push(Duration::from_secs_f64(sum / 1000.0));
            sum = 0.0;
        }
    }
    found
}
