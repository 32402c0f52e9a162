//! A hub that is a real cluster: two nodes under Patroni. The daemon has both hosts in its URL and
//! finds the primary by itself; a change of the primary costs no connection.

use std::collections::BTreeMap;

use spcd_client::Client;

use crate::support::patroni::{Node, Patroni};
use crate::support::pooler::Pooler;
use crate::support::{Cluster, DEADLINE, Database, Spcd, eventually, query, try_query, value};

/// Enough that the primary changes in the middle of a cold pass.
const CONNECTIONS: usize = 500;

const READY: &str = "SELECT count(*) FROM spcd.connection_state WHERE status = 'ready'";

/// A source that writes down each statement with the time and the connection it is for.
struct Source {
    server: Cluster,
    database: Database,
}

impl Source {
    async fn start() -> Self {
        let server = Cluster::start(&[
            "max_connections = 200",
            "log_statement = all",
            "log_line_prefix = '%n|%p|%a|'",
        ]);
        let database = server.database().await;
        query(
            &database.url,
            "CREATE TABLE t (id integer); INSERT INTO t VALUES (7)",
        )
        .await;
        Self { server, database }
    }

    /// The blocks of all connections. Each has its own name at the source.
    fn blocks(&self) -> String {
        let block = |n| {
            format!(
                "connection \"c{n:03}\" {{\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  port = {}\n  \
                 dbname = \"{}\"\n  user = \"postgres\"\n  application_name = \"c{n:03}\"\n}}\n",
                self.server.port(),
                self.database.name
            )
        };
        (0..CONNECTIONS).map(block).collect()
    }

    /// The time by the source's clock.
    async fn now(&self) -> f64 {
        let now = "SELECT extract(epoch FROM clock_timestamp())";
        value(&self.database.url, now).await.parse().unwrap()
    }

    /// Checks that no connection was asked for its tables by two sessions at once. What sessions from
    /// before `paused` did after it does not count: a server that was paused ends its statements later.
    fn never_asked_twice_at_once(&self, paused: Option<f64>) {
        // For each connection and session the times of its first and last statement.
        let mut asked = BTreeMap::<(String, String), (f64, f64)>::new();
        for line in self.server.log().lines() {
            let mut fields = line.splitn(4, '|');
            let fields: Option<[&str; 4]> = (|| {
                Some([
                    fields.next()?,
                    fields.next()?,
                    fields.next()?,
                    fields.next()?,
                ])
            })();
            let Some([time, pid, name, _]) = fields else {
                continue;
            };
            let (Ok(time), true) = (time.parse::<f64>(), name.starts_with('c')) else {
                continue;
            };
            let entry = asked.entry((name.to_owned(), pid.to_owned()));
            let (first, last) = entry.or_insert((time, time));
            if !paused.is_some_and(|paused| *first < paused && time > paused) {
                *last = time;
            }
        }
        let names: std::collections::BTreeSet<&String> =
            asked.keys().map(|(name, _)| name).collect();
        assert_eq!(names.len(), CONNECTIONS, "all were asked");
        for ((name, pid), (first, last)) in &asked {
            let others = asked.range((name.clone(), String::new())..);
            let mut others = others.take_while(|((other, _), _)| other == name);
            let at_once =
                others.find(|((_, other), (from, to))| other > pid && from <= last && first <= to);
            assert!(
                at_once.is_none(),
                "{name}: {first} to {last} by {pid}, and {at_once:?}"
            );
        }
    }
}

async fn ready(url: &str) -> usize {
    let rows = try_query(url, READY).await.unwrap_or_default();
    let count = rows.first().and_then(|row| row[0].as_ref()?.parse().ok());
    count.unwrap_or(0)
}

/// A database on the primary, with a daemon in the middle of its first pass there.
async fn cold_pass(primary: &Node, url: &str, source: &Source) -> Spcd {
    let mut spcd = Spcd::new(url);
    spcd.write("all.spc", &source.blocks());
    spcd.start();
    let some = || async { (ready(&primary.url("hub")).await > CONNECTIONS / 10).then_some(()) };
    eventually("some are ready", DEADLINE, some).await;
    spcd
}

async fn create_database(primary: &Node) {
    query(&primary.url("postgres"), "CREATE DATABASE hub").await;
}

/// Waits until all connections are ready on a new primary, and checks that nothing more is there.
async fn all_are_ready(spcd: &Spcd, primary: &Node) {
    let url = primary.url("hub");
    let all = || async { (ready(&url).await == CONNECTIONS).then_some(()) };
    eventually("all are ready", DEADLINE, all).await;
    let tables = "SELECT count(*) FROM pg_foreign_table f JOIN pg_class c ON c.oid = f.ftrelid
                  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname ~ '^c[0-9]{3}$'";
    assert_eq!(value(&url, tables).await, CONNECTIONS.to_string());
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname ~ '^spcd_ask'";
    assert_eq!(value(&url, left).await, "0");
    let planned = spcd.spcd(&["plan"]);
    assert_eq!(planned.code, 0, "{planned:?}");
}

/// Waits until a replica serves the state and the tables of its primary.
async fn replica_serves_the_same(primary: &Node, replica: &Node) {
    let sql = "SELECT connection_name, status, generation, schema_hash, time_changed
               FROM spcd.connection_state ORDER BY 1";
    let wanted = query(&primary.url("hub"), sql).await;
    let same = || async {
        let rows = try_query(&replica.url("hub"), sql).await.ok()?;
        let rows: Vec<Vec<String>> = rows
            .into_iter()
            .map(|row| row.into_iter().map(Option::unwrap_or_default).collect())
            .collect();
        (rows == wanted).then_some(())
    };
    eventually("the replica has the same state", DEADLINE, same).await;
    let url = replica.url("hub");
    assert_eq!(value(&url, "SELECT pg_is_in_recovery()").await, "t");
    assert_eq!(value(&url, "SELECT id FROM c499.t").await, "7");
    let waited = "SELECT status FROM spcd.wait_until_ready('{c000}')";
    assert_eq!(value(&url, waited).await, "ready");
}

/// A client that waits at this URL for the last connection.
async fn waiting(url: &str) -> tokio::task::JoinHandle<Result<(), String>> {
    let mut client = Client::connect(url).await.unwrap();
    tokio::spawn(async move {
        let waited = client.wait_ready(&["c499"], DEADLINE * 2).await;
        waited.map_err(|error| error.to_string())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_during_a_cold_pass_through_poolers_costs_nothing() {
    let Some(mut patroni) = Patroni::start() else {
        return;
    };
    let source = Source::start().await;
    let (primary, replica) = patroni.roles();
    create_database(primary).await;

    let mixing = Pooler::start("transaction", primary.port());
    let refused = Spcd::new(&mixing.url("hub")).spcd(&["migrate"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("pool_mode = session"),
        "{refused:?}"
    );

    let poolers = patroni
        .nodes()
        .each_ref()
        .map(|node| Pooler::start("session", node.port()));
    let hosts = poolers
        .each_ref()
        .map(|pooler| format!("127.0.0.1:{}", pooler.port()));
    let url = format!("postgres://postgres@{}/hub", hosts.join(","));
    let mut spcd = cold_pass(primary, &url, &source).await;
    let waiter = waiting(&replica.url("hub")).await;
    patroni.switch_over(primary, replica);
    replica.wait_until_primary();
    all_are_ready(&spcd, replica).await;
    assert_eq!(waiter.await.unwrap(), Ok(()));
    source.never_asked_twice_at_once(None);
    patroni.wait_for_replica();
    let (primary, replica) = patroni.roles();
    replica_serves_the_same(primary, replica).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_during_a_cold_pass_costs_nothing() {
    let Some(mut patroni) = Patroni::start() else {
        return;
    };
    let source = Source::start().await;
    let (primary, replica) = patroni.roles();
    create_database(primary).await;
    let mut spcd = cold_pass(primary, &patroni.url("hub"), &source).await;
    let waiter = waiting(&patroni.url("hub")).await;
    primary.kill9();
    replica.wait_until_primary();
    all_are_ready(&spcd, replica).await;
    assert_eq!(waiter.await.unwrap(), Ok(()));
    source.never_asked_twice_at_once(None);
    // The one that was killed comes back as the replica.
    patroni.wait_for_replica();
    let (primary, replica) = patroni.roles();
    replica_serves_the_same(primary, replica).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_paused_during_a_cold_pass_is_left() {
    let Some(mut patroni) = Patroni::start() else {
        return;
    };
    let source = Source::start().await;
    let (primary, replica) = patroni.roles();
    create_database(primary).await;
    let mut spcd = cold_pass(primary, &patroni.url("hub"), &source).await;
    let waiter = waiting(&replica.url("hub")).await;
    primary.pause();
    let paused = source.now().await;
    replica.wait_until_primary();
    all_are_ready(&spcd, replica).await;
    assert_eq!(waiter.await.unwrap(), Ok(()));
    // It wakes up as a primary that does not know yet that it is none.
    primary.resume();
    patroni.wait_for_replica();
    let (primary, replica) = patroni.roles();
    all_are_ready(&spcd, primary).await;
    source.never_asked_twice_at_once(Some(paused));
    replica_serves_the_same(primary, replica).await;
    spcd.stop();
}
