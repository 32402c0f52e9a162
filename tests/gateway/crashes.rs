//! Server processes: none ends while spcd works, and one that a client ends takes nothing else along.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{daemon, ended_processes};
use crate::support::hub::{postgres_with, until, until_error};
use crate::support::steampipe::{connection, gateway, gateway_with, plugins};
use crate::support::{Cluster, DEADLINE, Spcd, connect, eventually, finish, query, shared, value};

/// Plugins of both wrappers whose sources are probed, each once with tables of its own for each
/// connection and once with shared ones.
fn dynamic_and_static() -> String {
    let dynamic = plugins().replace("  probe = \"none\"\n", "");
    let shared_tables = (dynamic.replace("plugin \"a\"", "plugin \"a_static\""))
        .replace("plugin \"b\"", "plugin \"b_static\"")
        .replace("  body", "  schema_mode = \"static\"\n  body");
    dynamic + &shared_tables
}

/// Ten connections of each wrapper.
fn twenty(token: impl Fn(usize) -> String) -> String {
    let token = &token;
    let blocks = ["a", "b"].map(|wrapper| {
        (0..10).map(move |n| {
            let plugin = match n % 2 {
                0 => wrapper.to_owned(),
                _ => format!("{wrapper}_static"),
            };
            connection(
                &format!("{wrapper}{n}"),
                &plugin,
                &format!("token = \"{}\"", token(n)),
            )
        })
    });
    dynamic_and_static() + &blocks.into_iter().flatten().collect::<String>()
}

fn twenty_ready() -> Vec<String> {
    let names = ["a", "b"].map(|wrapper| (0..10).map(move |n| format!("{wrapper}{n} ready")));
    names.into_iter().flatten().collect()
}

/// Waits until an edit has reached a connection of each kind.
async fn until_read(hub: &str, n: usize, token: &str) {
    for wrapper in ["a", "b"] {
        let sql = format!("SELECT token FROM {wrapper}{n}.account");
        eventually("the edit has reached the wrapper", DEADLINE, || async {
            (value(hub, &sql).await == token).then_some(())
        })
        .await;
    }
}

/// Runs a command that must succeed; else shows what the hub and the gateway wait for.
async fn succeeds(spcd: &Spcd, args: &[&str], hub: &str, gateway: &str) {
    let command = spcd.command(args);
    let run = tokio::task::spawn_blocking(move || finish(command));
    let ended = run.await.unwrap();
    if ended.code == 0 {
        return;
    }
    let mut shown = format!("{args:?}: {ended:?}");
    for url in [hub, gateway] {
        for sql in [
            "SELECT connection_name, status, error FROM spcd.connection_state WHERE status <> 'ready'",
            "SELECT id, connections, action, done_at, error FROM spcd.refresh_request WHERE done_at IS NULL",
        ] {
            shown += &format!("\n{url}: {:?}", query(url, sql).await);
        }
    }
    panic!("{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_refreshes_probes_and_a_take_over_end_no_process() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let start = |spcd: &mut Spcd| {
        spcd.env("SPCD_GATEWAY", &gateway.url("postgres"))
            .env("SPCD_HEALTH_ENABLED", "true")
            .env("SPCD_HEALTH_INTERVAL", "1s");
        spcd.start();
    };
    let behind = gateway.url("postgres");
    let ready = twenty_ready();
    let ready: Vec<&str> = ready.iter().map(String::as_str).collect();
    let mut first = Spcd::new(&hub.url);
    first.write("all.spc", &twenty(|_| "first".into()));
    start(&mut first);
    until(&hub.url, &ready).await;
    let mut second = Spcd::beside(&first);
    start(&mut second);
    second.logged("another daemon leads");

    for edit in 0..20 {
        let other = |n| match n == edit % 10 {
            true => format!("edit{edit}"),
            false => "first".into(),
        };
        first.write("all.spc", &twenty(other));
        match edit % 5 {
            0 => until_read(&hub.url, edit % 10, &format!("edit{edit}")).await,
            1 => succeeds(&first, &["refresh", "--wait"], &hub.url, &behind).await,
            2 => succeeds(&first, &["test", "b1"], &hub.url, &behind).await,
            3 => succeeds(&first, &["reconnect", "a2", "b3"], &hub.url, &behind).await,
            _ => {}
        }
        if edit == 10 {
            first.stop();
            eventually("the second daemon leads", DEADLINE, || async {
                (value(&hub.url, "SELECT epoch FROM spcd.daemon").await == "2").then_some(())
            })
            .await;
        }
    }
    until_read(&hub.url, 9, "edit19").await;
    until(&hub.url, &ready).await;
    let probed = "SELECT count(*) FROM spcd.connection_health WHERE reachable";
    eventually("every source was probed", DEADLINE, || async {
        (value(&gateway.url("postgres"), probed).await == "20").then_some(())
    })
    .await;
    assert_eq!(second.spcd(&["apply", "--force"]).code, 0);
    second.stop();
    let ended = (ended_processes(&server), ended_processes(&gateway));
    assert_eq!(ended, (0, 0), "{}", gateway.log());
    let failed = "SELECT connection_name, error FROM spcd.connection_event WHERE status = 'error'";
    assert_eq!(query(&hub.url, failed).await, Vec::<Vec<String>>::new());
    assert_eq!(
        query(&gateway.url("postgres"), failed).await,
        Vec::<Vec<String>>::new()
    );
}

/// Queries a table that ends its server process until told to stop; returns how often it did.
async fn crash_in_a_loop(url: String, is_over: Arc<AtomicBool>, crashes: Arc<AtomicUsize>) {
    let session = connect(&url).await.unwrap();
    while !is_over.load(Ordering::Relaxed) {
        // The session lives; only while the gateway starts, the failure is another.
        session
            .query("SELECT * FROM a.panic", &[])
            .await
            .unwrap_err();
        crashes.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_gateway_processes_in_a_loop_changes_no_status() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let blocks = [
        plugins(),
        connection("a", "a", "token = \"one\""),
        connection("b", "b", "token = \"two\""),
        postgres_with("other", &source, ""),
    ];
    spcd.write("all.spc", &blocks.concat());
    until(&hub.url, &["a ready", "b ready", "other ready"]).await;
    let last = value(&hub.url, "SELECT max(id) FROM spcd.connection_event").await;
    let is_over = Arc::new(AtomicBool::new(false));
    let crashes = Arc::new(AtomicUsize::new(0));
    let client = tokio::spawn(crash_in_a_loop(
        hub.url.clone(),
        is_over.clone(),
        crashes.clone(),
    ));
    eventually("the gateway has restarted often", DEADLINE, || async {
        (ended_processes(&gateway) >= 20).then_some(())
    })
    .await;
    // What does not need the gateway is done meanwhile.
    spcd.write("more.spc", &postgres_with("more", &source, ""));
    let all = ["a ready", "b ready", "more ready", "other ready"];
    until(&hub.url, &all).await;
    is_over.store(true, Ordering::Relaxed);
    client.await.unwrap();
    spcd.write("b2.spc", &connection("b2", "b", "token = \"three\""));
    until(
        &hub.url,
        &[
            "a ready",
            "b ready",
            "b2 ready",
            "more ready",
            "other ready",
        ],
    )
    .await;
    assert_eq!(ended_processes(&server), 0);
    assert!(!server.log().contains("reinitializing"), "{}", server.log());
    let events = format!(
        "SELECT connection_name, status, error FROM spcd.connection_event
         WHERE id > {last} AND connection_name IN ('a', 'b', 'other')"
    );
    assert_eq!(query(&hub.url, &events).await, Vec::<Vec<String>>::new());
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_ends_its_process_is_told_and_not_repeated_at_once() {
    let server = Cluster::start(&[]);
    let collector = [
        "logging_collector = on",
        "log_directory = '..'",
        "log_filename = 'log'",
    ];
    let gateway = gateway_with(&collector).await;
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    spcd.write(
        "all.spc",
        &(plugins() + &connection("good", "b", "token = \"one\"")),
    );
    until(&hub.url, &["good ready"]).await;
    spcd.write("bad.spc", &connection("bad", "a", "panic = \"one\""));
    let error = until_error(&hub.url, "bad", "ended its server process").await;
    assert!(error.contains("last asked: import of bad"), "{error}");
    assert!(error.contains("exit code 2"), "{error}");
    assert!(error.contains("spcd retry bad"), "{error}");
    assert_eq!(ended_processes(&gateway), 1);
    // Neither a refresh nor another daemon repeats it.
    assert_eq!(spcd.spcd(&["refresh", "bad", "--wait"]).code, 1);
    spcd.stop();
    spcd.start();
    until(&hub.url, &["bad error", "good ready"]).await;
    assert_eq!(ended_processes(&gateway), 1);
    // A retry from the hub reaches the gateway.
    assert_eq!(spcd.spcd(&["retry", "bad"]).code, 1);
    eventually("it was asked again", DEADLINE, || async {
        (ended_processes(&gateway) == 2).then_some(())
    })
    .await;
    // So does another definition.
    until(&gateway.url("postgres"), &["bad error", "good ready"]).await;
    spcd.write("bad.spc", &connection("bad", "a", "token = \"one\""));
    until(&hub.url, &["bad ready", "good ready"]).await;
    assert_eq!(
        (ended_processes(&server), ended_processes(&gateway)),
        (0, 2)
    );
    spcd.stop();
}
