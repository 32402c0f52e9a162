//! How the daemon ends when it is asked to: what is written is complete, no client waits for it, and it
//! waits for no client.

use std::net::TcpListener;

use crate::support::hub::{postgres, statuses};
use crate::support::{DEADLINE, Spcd, eventually, eventually_now, query, shared, value};

/// A source that takes connections and never says a word.
struct Silent(TcpListener);

impl Silent {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    /// A connection to it that is in no hurry at all.
    fn connection(&self, name: &str) -> String {
        format!(
            "connection \"{name}\" {{\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  port = {}\n  \
             dbname = \"d\"\n  user = \"u\"\n  connect_timeout = 600\n  import {{\n    timeout = 600\n  }}\n}}\n",
            self.0.local_addr().unwrap().port()
        )
    }

    /// Waits until a client has connected.
    fn is_asked(&self) -> std::net::TcpStream {
        eventually_now("the source is asked", || self.0.accept().ok()).0
    }
}

/// Who leads, and connections that are `ready` and lack their table or are not and have it.
const LEADER: &str = "SELECT leader IS NOT NULL FROM spcd.daemon";
const HALF: &str = "
    SELECT count(*) FROM spcd.connection_state s
    LEFT JOIN pg_class c ON c.relname = 't' AND c.relkind = 'f'
         AND c.relnamespace = to_regnamespace(quote_ident(s.connection_name))
    WHERE (s.status = 'ready') <> (c.oid IS NOT NULL)";

#[tokio::test]
async fn a_daemon_that_ends_records_that_none_leads() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", "");
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    assert_eq!(value(&hub.url, LEADER).await, "f");
    spcd.start();
    eventually("it leads", DEADLINE, || async {
        (value(&hub.url, LEADER).await == "t").then_some(())
    })
    .await;
    spcd.stop();
    assert_eq!(value(&hub.url, LEADER).await, "f");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_leaves_no_batch_half_written_and_waits_for_no_source() {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let hub = shared().database().await;
    let silent = Silent::new();
    let mut spcd = Spcd::new(&hub.url);
    let all: String = (0..300)
        .map(|n| postgres(&format!("c{n:03}"), &source))
        .collect();
    spcd.write("all.spc", &(all + &silent.connection("hung")));
    spcd.start();
    let asked = silent.is_asked();
    let ready = || async {
        let rows = statuses(&hub.url).await;
        rows.iter().filter(|(_, status)| status == "ready").count()
    };
    eventually("some are ready", DEADLINE, || async {
        (ready().await > 0).then_some(())
    })
    .await;
    spcd.stop();
    // The source is as silent as before: the end did not wait for it.
    drop(asked);
    assert_eq!(value(&hub.url, HALF).await, "0");
    let sessions = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name LIKE 'spcd%'";
    eventually("its sessions end", DEADLINE, || async {
        (value(&hub.url, sessions).await == "0").then_some(())
    })
    .await;
    let asking = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'spcd\\_ask%'";
    assert_eq!(value(&hub.url, asking).await, "0");

    spcd.start();
    eventually("the rest follows", DEADLINE, || async {
        (ready().await == 300).then_some(())
    })
    .await;
    assert_eq!(value(&hub.url, HALF).await, "0");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_stops_the_private_cluster_although_a_source_is_silent() {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let silent = Silent::new();
    let mut spcd = Spcd::with_private_cluster();
    spcd.write(
        "all.spc",
        &(postgres("one", &source) + &silent.connection("hung")),
    );
    spcd.start();
    let asked = silent.is_asked();
    let one = spcd.spcd(&["wait", "one"]);
    assert_eq!(one.code, 0, "{one:?}");
    spcd.stop();
    drop(asked);
    assert!(
        !spcd
            .state_dir()
            .join("cluster/data/postmaster.pid")
            .exists()
    );
    // A server that had to be cut off recovers, and has what was committed.
    spcd.write("all.spc", &postgres("one", &source));
    let read = spcd.spcd(&["query", "SELECT count(*) FROM one.t", "--output", "csv"]);
    assert_eq!(
        (read.code, read.stdout.as_str()),
        (0, "count\n0\n"),
        "{read:?}"
    );
}
