//! A hub that mirrors another one: all new, and one that is added there.

use std::time::{Duration, Instant};

use crate::measure::{
    ADDED, connection, daemon_cpu, median, name, scaled, seconds, server, server_cpu, session,
    source, tables, two_sessions, until_ready, until_row_ready,
};
use crate::support::hub::STATIC;
use crate::support::{Spcd, query};

const TABLES: usize = 40;
/// Sets of tables in one transaction of the reference.
const TOGETHER: usize = 12;

/// `mirror`: the connections of a hub in another one, beside the bare DDL on one server.
pub async fn run() {
    let all = scaled(1000);
    println!("## {all} connections of {TABLES} tables of another hub, all new");
    let (there, here) = (server(&[]), server(&[]));
    let source = source(&there, TABLES).await;
    let (first, second, bare) = (
        there.database().await,
        here.database().await,
        here.database().await,
    );
    let of_plugin = |name: &str| connection(name, "app", there.port(), &source);
    let mut at_source = Spcd::new(&first.url);
    let text: String = (0..all).map(|n| of_plugin(&name(n))).collect();
    at_source.write("all.spc", &(STATIC.to_owned() + &text));
    at_source.start();
    until_ready(&first, "c%", all).await;

    query(&bare.url, "CREATE EXTENSION postgres_fdw").await;
    let frame = format!(
        "CREATE SERVER m FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '{}', \
         dbname '{}'); CREATE USER MAPPING FOR PUBLIC SERVER m OPTIONS (user 'postgres')",
        there.port(),
        first.name
    );
    query(&bare.url, &frame).await;
    let names: Vec<String> = (0..all).map(name).collect();
    let of_name = |name: &String| {
        let tables = tables(name, TABLES).replace(&format!("SERVER \"{name}\""), "SERVER m");
        format!("CREATE SCHEMA \"{name}\";\n{tables}")
    };
    let batch = |names: &[String]| names.iter().map(of_name).collect::<String>();
    let batches = names.chunks(TOGETHER).map(batch).collect();
    let native = two_sessions(&bare.url, batches).await;

    let mut daemon = Spcd::new(&second.url);
    let keep = connection("keep", "postgres", there.port(), &source);
    daemon.write("keep.spc", &keep);
    daemon.start();
    until_ready(&second, "keep", 1).await;
    let before = [daemon_cpu(&daemon), server_cpu(&here), server_cpu(&there)];
    let began = Instant::now();
    let block = format!(
        "mirror \"m\" {{\n  source = \"postgresql://postgres@127.0.0.1:{}/{}\"\n}}\n",
        there.port(),
        first.name
    );
    daemon.write("m.spc", &block);
    until_ready(&second, "c%", all).await;
    let took = began.elapsed();
    let after = [daemon_cpu(&daemon), server_cpu(&here), server_cpu(&there)];
    let [own, hub, other] = [0, 1, 2].map(|n| seconds(after[n] - before[n]));
    println!("processor time: the daemon {own}, the hub's server {hub}, the source's {other}");
    crate::measure::report("mirror", took, "the bare DDL", native, 1.2);

    let (one, two) = (session(&first.url).await, session(&second.url).await);
    let mut lags = Vec::new();
    for n in 0..ADDED {
        let name = format!("added{n}");
        at_source.write(&format!("{name}.spc"), &of_plugin(&name));
        until_row_ready(&one, &name).await;
        let committed = Instant::now();
        until_row_ready(&two, &name).await;
        lags.push(committed.elapsed());
    }
    let lag = median(lags);
    let missed = if lag > Duration::from_millis(150) {
        " MISSED"
    } else {
        ""
    };
    println!(
        "from ready there to ready here, median of {ADDED}: {} (aim: at most 150 ms){missed}",
        seconds(lag)
    );
    daemon.stop();
    at_source.stop();
}
