//! Aggregators over many.

use std::time::{Duration, Instant};

use crate::measure::{
    connection, memory, name, scaled, seconds, server, session, source, until_ready,
};
use crate::support::hub::STATIC;
use crate::support::{Database, Spcd, query, value};

const ALL: &str = "connection \"all\" {\n  plugin = \"app\"\n  type = \"aggregator\"\n  connections = [\"c*\"]\n}\n";

/// `aggregator`.
pub async fn aggregator() {
    let members = scaled(1000);
    println!("## an aggregator over {members} members of one table");
    let server = server(&[]);
    let source = source(&server, 1).await;
    let hub = server.database().await;
    let mut spcd = Spcd::new(&hub.url);
    let text = |count: usize| -> String {
        (0..count)
            .map(|n| connection(&name(n), "app", server.port(), &source))
            .collect()
    };
    spcd.write("plugin.spc", &(STATIC.to_owned() + ALL));
    spcd.write("members.spc", &text(members));
    let began = Instant::now();
    spcd.start();
    until_ready(&hub, "%", members + 1).await;
    println!("cold, with all members: {}", seconds(began.elapsed()));

    let table = "SELECT column_number_1 FROM \"all\".table_number_0";
    let pruned = format!("{table} WHERE connection_name = 'c00007'");
    plan_time(&hub, "a pruned query", &pruned, Duration::from_millis(150)).await;
    plan_time(&hub, "an unpruned query", table, Duration::from_secs(1)).await;

    let views = "SELECT count(*) FROM spcd.aggregator_view";
    let rules = "SELECT coalesce(sum(hashtext(r.oid::text || r.xmin)::bigint), 0), count(*)
                 FROM spcd.aggregator_view v
                 JOIN pg_class c ON c.relname = v.name AND c.relkind = 'v'
                 JOIN pg_rewrite r ON r.ev_class = c.oid";
    query(
        &hub.url,
        "CREATE TABLE public.rules AS
        SELECT r.oid, r.xmin::text AS version FROM spcd.aggregator_view v
        JOIN pg_class c ON c.relname = v.name AND c.relkind = 'v'
        JOIN pg_rewrite r ON r.ev_class = c.oid",
    )
    .await;
    let before = value(&hub.url, rules).await;
    let began = Instant::now();
    spcd.write("members.spc", &text(members + 1));
    let shown = format!(
        "SELECT count(*) FROM pg_depend d
         JOIN pg_class t ON t.oid = d.refobjid AND t.relnamespace = '{}'::regnamespace
         WHERE d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_rewrite'::regclass
           AND d.refobjsubid = 1",
        name(members)
    );
    until_ready(&hub, "%", members + 2).await;
    crate::measure::until_count(&hub, &shown, 1).await;
    let took = began.elapsed();
    let kept = "SELECT count(*) FROM public.rules o JOIN pg_rewrite r ON r.oid = o.oid AND r.xmin::text = o.version";
    println!(
        "a member added: {} from the save to the view that shows it; of {} views, {} are as they were{}",
        seconds(took),
        value(&hub.url, views).await,
        value(&hub.url, kept).await,
        if before == value(&hub.url, rules).await {
            " (nothing changed?)"
        } else {
            ""
        }
    );
    spcd.stop();
}

/// The time to plan in a session that has planned nothing before, and in one that has.
async fn plan_time(hub: &Database, what: &str, sql: &str, aim: Duration) {
    let client = session(&hub.url).await;
    let mut times = Vec::new();
    for _ in 0..3 {
        let rows = client
            .query(&format!("EXPLAIN (SUMMARY, FORMAT TEXT) {sql}"), &[])
            .await
            .unwrap();
        let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let line = lines
            .iter()
            .find_map(|line| line.strip_prefix("Planning Time: "))
            .unwrap();
        let milliseconds: f64 = line.trim_end_matches(" ms").parse().unwrap();
        let scans = lines
            .iter()
            .filter(|line| line.contains("Foreign Scan"))
            .count();
        times.push((Duration::from_secs_f64(milliseconds / 1000.0), scans));
    }
    println!(
        "aggregator, {what} planned: {}, again: {} (aim: at most {}), {} scans{}",
        seconds(times[0].0),
        seconds(times[2].0),
        seconds(aim),
        times[0].1,
        if times[0].0 <= aim { "" } else { " MISSED" }
    );
}

/// `one_file`.
pub async fn one_file() {
    let all = scaled(12_000);
    println!("## {all} connections of one table in one file, and an aggregator over all of them");
    let server = server(&[]);
    let source = source(&server, 1).await;
    let hub = server.database().await;
    let mut spcd = Spcd::new(&hub.url);
    let text: String = (0..all)
        .map(|n| connection(&name(n), "app", server.port(), &source))
        .collect();
    spcd.write("all.spc", &(STATIC.to_owned() + ALL + &text));
    let began = Instant::now();
    spcd.start();
    until_ready(&hub, "c%", all).await;
    let members = began.elapsed();
    until_ready(&hub, "all", 1).await;
    println!(
        "one_file: the connections ready after {}, the aggregator after {}; {} MB resident, at most {} MB",
        seconds(members),
        seconds(began.elapsed()),
        memory(&spcd, "VmRSS:"),
        memory(&spcd, "VmHWM:")
    );
    let pruned =
        "SELECT column_number_1 FROM \"all\".table_number_0 WHERE connection_name = 'c00007'";
    plan_time(
        &hub,
        "a pruned query over all of them",
        pruned,
        Duration::from_secs(2),
    )
    .await;
    spcd.stop();
}
