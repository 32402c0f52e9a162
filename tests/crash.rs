//! The daemon is killed at any moment, and no client ever meets a half-loaded database.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::hub::{postgres, until};
use crate::support::link::Link;
use crate::support::script::Script;
use crate::support::{
    Cluster, DEADLINE, Spcd, connect, eventually, query, shared, try_query, value,
};
use tokio_postgres::error::SqlState;

const CONNECTIONS: usize = 1000;
const ROUNDS: usize = 3;
const KILLS: usize = 6;

/// Ready rows, and among them those whose tables are not all there, in one snapshot.
const READY: &str = "
    SELECT count(*), count(*) FILTER (WHERE t.tables IS DISTINCT FROM 1)
    FROM spcd.connection_state s
    LEFT JOIN (SELECT n.nspname AS name, count(*) AS tables
               FROM pg_foreign_table f JOIN pg_class c ON c.oid = f.ftrelid
               JOIN pg_namespace n ON n.oid = c.relnamespace GROUP BY 1) t
           ON t.name = s.connection_name
    WHERE s.status = 'ready'";

/// Everything that must be there for each connection, and nothing else.
const EQUAL: &str = "
    SELECT (SELECT count(*) FROM spcd.connection_state WHERE status = 'ready'),
           (SELECT count(*) FROM pg_foreign_server WHERE srvname ~ '^c[0-9]{4}$'
            AND srvoptions @> ARRAY['host=127.0.0.1']),
           (SELECT count(*) FROM pg_user_mappings WHERE umoptions = '{user=postgres}'),
           (SELECT count(*) FROM pg_foreign_table f JOIN pg_attribute a ON a.attrelid = f.ftrelid
            WHERE a.attname = 'id' AND a.atttypid = 'integer'::regtype),
           (SELECT count(*) FROM pg_namespace WHERE nspname ~ '^(c[0-9]|spcd_ask)')";

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_cold_pass() {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let hub_server = Cluster::start(&["max_locks_per_transaction = 256"]);
    let mut counts = Vec::new();
    let looks = Arc::new(AtomicU64::new(0));
    for _ in 0..ROUNDS {
        let hub = hub_server.database().await;
        let mut spcd = Spcd::new(&hub.url);
        let text: String = (0..CONNECTIONS)
            .map(|n| postgres(&format!("c{n:04}"), &source))
            .collect();
        spcd.write("all.spc", &text);

        let over = Arc::new(AtomicBool::new(false));
        let watcher = tokio::spawn(watch(hub.url.clone(), over.clone(), looks.clone()));
        for kill in 1..=KILLS {
            spcd.start();
            let enough = (CONNECTIONS * kill / (KILLS + 1)) as u64;
            eventually("enough are ready", DEADLINE, || async {
                (ready(&hub.url).await >= enough).then_some(())
            })
            .await;
            spcd.kill9();
            let now = ready(&hub.url).await;
            counts.push(now);
        }
        spcd.start();
        eventually("all are ready", DEADLINE, || async {
            (ready(&hub.url).await == CONNECTIONS as u64).then_some(())
        })
        .await;
        let n = CONNECTIONS.to_string();
        assert_eq!(query(&hub.url, EQUAL).await, [[n.as_str(); 5]]);
        assert_eq!(spcd.spcd(&["plan"]).code, 0);
        spcd.stop();
        over.store(true, Ordering::Relaxed);
        assert_eq!(
            watcher.await.unwrap(),
            0,
            "a ready connection without its tables was seen"
        );
    }
    let between = counts
        .iter()
        .filter(|n| (1..CONNECTIONS as u64).contains(n))
        .count();
    // Past the test runner, which shows nothing of a test that passes.
    let _ = writeln!(
        std::io::stderr(),
        "killed {} times, {between} of them with between 1 and {} ready: {counts:?}; \
         looked {} times, never a ready connection without its tables",
        counts.len(),
        CONNECTIONS - 1,
        looks.load(Ordering::Relaxed)
    );
    assert!(between >= 15, "{counts:?}");
}

/// Looks as fast as it can; returns how many ready connections it saw without their tables.
async fn watch(url: String, over: Arc<AtomicBool>, looks: Arc<AtomicU64>) -> i64 {
    let client = connect(&url).await.unwrap();
    let mut bad = 0;
    while !over.load(Ordering::Relaxed) {
        // Before the first migration there is no table.
        if let Ok(row) = client.query_one(READY, &[]).await {
            bad += row.get::<_, i64>(1);
            looks.fetch_add(1, Ordering::Relaxed);
        }
        tokio::task::yield_now().await;
    }
    bad
}

async fn ready(url: &str) -> u64 {
    let rows = crate::support::try_query(url, READY)
        .await
        .unwrap_or_default();
    rows.first()
        .and_then(|row| row[0].as_ref()?.parse().ok())
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_restarts_and_comes_late() {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let mut server = Cluster::start(&[]);
    let hub = server.database().await;
    server.stop();

    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    spcd.logged("trying again");
    server.start_again();
    until(&hub.url, &["a ready"]).await;

    server.kill9();
    server.start_again();
    spcd.write("b.spc", &postgres("b", &source));
    until(&hub.url, &["a ready", "b ready"]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_daemon_waits_and_takes_over_also_from_one_that_hangs() {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let hub = shared().database().await;
    let mut first = Spcd::new(&hub.url);
    first.write("a.spc", &postgres("a", &source));
    first.start();
    until(&hub.url, &["a ready"]).await;

    let mut second = Spcd::beside(&first);
    second.start();
    second.logged("another daemon leads");
    assert_eq!(value(&hub.url, "SELECT epoch FROM spcd.daemon").await, "1");
    first.stop();
    second.write("b.spc", &postgres("b", &source));
    until(&hub.url, &["a ready", "b ready"]).await;
    assert_eq!(value(&hub.url, "SELECT epoch FROM spcd.daemon").await, "2");

    // Stopped, it keeps its lock; nothing is heard of it, so its sessions are ended.
    let mut third = Spcd::beside(&first);
    third.start();
    third.logged("another daemon leads");
    second.signal(nix::sys::signal::Signal::SIGSTOP);
    third.write("c.spc", &postgres("c", &source));
    until(&hub.url, &["a ready", "b ready", "c ready"]).await;
    second.signal(nix::sys::signal::Signal::SIGCONT);
    second.logged("trying again");
    assert_eq!(value(&hub.url, "SELECT epoch FROM spcd.daemon").await, "3");
    until(&hub.url, &["a ready", "b ready", "c ready"]).await;
    second.kill9();
    third.stop();
}

/// The settings of the session that holds the lock, or waits for it, were rolled back: it was cancelled
/// after `statement_timeout`, and ended after the server's `idle_in_transaction_session_timeout`.
#[tokio::test(flavor = "multi_thread")]
async fn no_limit_ends_the_session_that_holds_the_lead_or_waits_for_it() {
    let server = Cluster::start(&["idle_in_transaction_session_timeout = '3s'"]);
    let hub = server.database().await;
    let mut first = Spcd::new(&hub.url);
    first.env("SPCD_HUB_STATEMENT_TIMEOUT", "5s");
    first.start();
    let heartbeat = async |epoch: &str, since: &str| {
        let sql =
            format!("SELECT heartbeat - since > '{since}' FROM spcd.daemon WHERE epoch = {epoch}");
        eventually("the leader lives", DEADLINE, || async {
            let rows = try_query(&hub.url, &sql).await.ok()?;
            (rows.first()?[0].as_deref() == Some("t")).then_some(())
        })
        .await;
    };
    heartbeat("1", "0").await;
    let mut second = Spcd::beside(&first);
    second.env("SPCD_HUB_STATEMENT_TIMEOUT", "5s");
    second.start();
    second.logged("another daemon leads");
    // Longer than both limits.
    heartbeat("1", "12 s").await;
    first.kill9();
    heartbeat("2", "6 s").await;
    assert!(!second.log().contains("trying again"), "{}", second.log());
    let log = server.log();
    assert!(!log.contains("due to statement timeout"), "{log}");
    assert!(!log.contains("idle-in-transaction timeout"), "{log}");
    second.stop();
}

/// Makes `CREATE EXTENSION` wait until `public.go` has a row.
const SLOW_EXTENSION: &str = "
    CREATE TABLE public.go ();
    CREATE FUNCTION public.wait() RETURNS event_trigger LANGUAGE plpgsql AS $$
    BEGIN
        WHILE NOT EXISTS (SELECT FROM public.go) LOOP
            PERFORM pg_catalog.pg_sleep(0.02);
        END LOOP;
    END $$;
    CREATE EVENT TRIGGER wait ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION')
        EXECUTE FUNCTION public.wait()";

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_waits_for_an_extension_that_is_being_created() {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let hub = shared().database().await;
    query(&hub.url, SLOW_EXTENSION).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    eventually("the extension is being created", DEADLINE, || async {
        let creating = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()
                        AND state = 'active' AND query LIKE '%CREATE EXTENSION%'
                        AND pid <> pg_backend_pid()";
        query(&hub.url, creating).await.pop()
    })
    .await;
    // The row is there already, although its work waits.
    until(&hub.url, &["a pending"]).await;
    let take_lead = "SET lock_timeout = '300ms'; UPDATE spcd.daemon SET epoch = epoch + 1";
    let error = try_query(&hub.url, take_lead).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::LOCK_NOT_AVAILABLE), "{error}");
    query(&hub.url, "INSERT INTO public.go DEFAULT VALUES").await;
    until(&hub.url, &["a ready"]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_another_instance_does_not_lead_here() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.start();
    eventually("it leads", DEADLINE, || async {
        try_query(&hub.url, "SELECT 1 FROM spcd.daemon")
            .await
            .ok()?
            .pop()
    })
    .await;
    let mut other = Spcd::new(&hub.url);
    other.env("SPCD_INSTANCE", "other");
    other.start();
    assert_eq!(other.ended().code(), Some(1));
    assert!(
        other.log().contains("managed by the instance"),
        "{}",
        other.log()
    );
    spcd.stop();
}

/// A connection that was cut during an import was taken for the wrapper's crash,
/// and not asked again for a minute.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_loses_its_connection_with_the_hub_is_no_crash() {
    let hub = shared().database().await;
    let link = Link::to(shared().port()).await;
    let through_link = |url: &str| {
        url.replace(
            &format!(":{}/", shared().port()),
            &format!(":{}/", link.port()),
        )
    };
    let script = Script::wrapper(&hub.url).await;
    // The import waits until the pipe has a writer.
    script.says_nothing_yet();
    let mut spcd = Spcd::new(&through_link(&hub.url));
    spcd.write("a.spc", &script.connection("a", ""));
    spcd.start();
    let asked = "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND query LIKE '%IMPORT FOREIGN SCHEMA%'
                   AND state = 'active' AND pid <> pg_backend_pid()";
    eventually("the source is asked", DEADLINE, || async {
        (value(&hub.url, asked).await == "1").then_some(())
    })
    .await;
    link.cut();
    script.says("CREATE FOREIGN TABLE t (id integer) SERVER {server}\n");
    until(&hub.url, &["a ready"]).await;
    let crashes = "SELECT count(*) FROM spcd.wrapper_crash";
    assert_eq!(value(&hub.url, crashes).await, "0");
    spcd.stop();
}
