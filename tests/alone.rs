//! Wrappers that end the server process: two of a kind in one session, and one that panics.

use crate::support::alone::{connection, plugins, wrappers};
use crate::support::hub::{until, until_error};
use crate::support::{Cluster, DEADLINE, Database, Spcd, eventually, query, try_query, value};

/// Whether the server's log tells of a process that ended by a signal or by itself.
fn crashed(server: &Cluster) -> bool {
    let log = server.log();
    log.contains("was terminated by signal") || log.contains("exited with exit code 2")
}

async fn hub(server: &Cluster) -> Database {
    let hub = server.database().await;
    wrappers(&hub.url).await;
    hub
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_load_one_library_of_a_wrapper_at_most() {
    let server = Cluster::start(&[]);
    let hub = hub(&server).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_HEALTH_ENABLED", "true");
    spcd.env("SPCD_HEALTH_INTERVAL", "1s");
    let file = |other: &str| {
        let mut text = plugins();
        for n in 0..10 {
            text.push_str(&connection(&format!("a{n}"), "alone_a", "/nowhere", other));
            text.push_str(&connection(&format!("b{n}"), "alone_b", "/nowhere", other));
        }
        text + "connection \"all\" {\n  plugin = \"alone_a\"\n  type = \"aggregator\"\n  \
                connections = [\"a*\"]\n}\n"
    };
    let ready: Vec<String> = (0..10)
        .map(|n| format!("a{n} ready"))
        .chain(["all ready".to_owned()])
        .chain((0..10).map(|n| format!("b{n} ready")))
        .collect();
    let ready: Vec<&str> = ready.iter().map(String::as_str).collect();
    spcd.write("all.spc", &file("one"));
    spcd.start();
    until(&hub.url, &ready).await;
    let tables = "SELECT count(*) FROM pg_foreign_table";
    assert_eq!(value(&hub.url, tables).await, "40");

    // Options, refreshes, probes, removals, a restart.
    spcd.write("all.spc", &file("two"));
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    let two = "SELECT count(*) FROM pg_foreign_server WHERE srvoptions::text LIKE '%other=two%'";
    assert_eq!(value(&hub.url, two).await, "20");
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    for name in ["a0", "b0", "a1", "b1"] {
        assert_eq!(spcd.spcd(&["test", name]).code, 0);
    }
    assert_eq!(spcd.spcd(&["plan", "--refresh"]).code, 0);
    spcd.stop();
    assert_eq!(spcd.spcd(&["apply", "--force"]).code, 0);
    spcd.start();
    spcd.write("all.spc", &plugins());
    until(&hub.url, &[]).await;
    spcd.stop();
    assert!(!crashed(&server), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapper_that_ends_its_server_process_is_not_asked_again_at_once() {
    // What is committed outlives the crash that follows.
    let server = Cluster::start(&["synchronous_commit = on", "fsync = on"]);
    let hub = hub(&server).await;
    let mut spcd = Spcd::new(&hub.url);
    let crash = spcd.dir().join("crash");
    std::fs::write(&crash, "").unwrap();
    // The server's user looks for it.
    let crash = crash.to_str().unwrap().to_owned();
    let bad = |other: &str| connection("bad", "alone_a", &crash, other);
    // What is asked at the same time would be suspected, too.
    let good = connection("good", "alone_a", "/nowhere", "one");
    let other = connection("other", "alone_b", "/nowhere", "one");
    spcd.write("good.spc", &[plugins(), good, other].concat());
    spcd.start();
    until(&hub.url, &["good ready", "other ready"]).await;
    spcd.write("bad.spc", &bad("one"));
    let settled = ["bad error", "good ready", "other ready"];
    until(&hub.url, &settled).await;
    let error = until_error(&hub.url, "bad", "ended its server process").await;
    assert!(
        error.contains("alone_a") && error.contains("spcd retry bad"),
        "{error}"
    );
    let crashes = || server.log().matches("exited with exit code 2").count();
    assert_eq!(crashes(), 1);
    let recorded = "SELECT connection_name || ' ' || times || ' '
                        || round(extract(epoch FROM next_attempt - crashed_at)) FROM spcd.wrapper_crash";
    assert_eq!(value(&hub.url, recorded).await, "bad 1 60");

    // Neither a request, nor a look, nor another daemon asks it before its time.
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 1);
    spcd.stop();
    spcd.start();
    until(&hub.url, &settled).await;
    assert_eq!(spcd.spcd(&["refresh", "bad", "--wait"]).code, 1);
    assert_eq!(crashes(), 1);

    // Another definition is asked at once, and so is a retry.
    spcd.write("bad.spc", &bad("two"));
    eventually("it crashed again", DEADLINE, || async {
        (crashes() == 2).then_some(())
    })
    .await;
    until(&hub.url, &settled).await;
    assert_eq!(value(&hub.url, recorded).await, "bad 1 60");
    spcd.spcd(&["retry", "bad"]);
    eventually("it crashed again", DEADLINE, || async {
        (crashes() == 3).then_some(())
    })
    .await;
    until(&hub.url, &settled).await;
    assert_eq!(value(&hub.url, recorded).await, "bad 2 300");

    // A clock that is set back by a day lengthens no pause.
    spcd.stop();
    let set_back = "UPDATE spcd.wrapper_crash SET crashed_at = clock_timestamp() + '1 day',
                    next_attempt = clock_timestamp() + '1 day 100 ms'";
    query(&hub.url, set_back).await;
    spcd.start();
    eventually("it crashed again", DEADLINE, || async {
        (crashes() == 4).then_some(())
    })
    .await;
    eventually("that is recorded", DEADLINE, || async {
        // The server may still be in recovery.
        let rows = try_query(&hub.url, recorded).await.ok()?;
        (rows.first()?[0].as_deref() == Some("bad 3 1800")).then_some(())
    })
    .await;
    until(&hub.url, &settled).await;

    // Mended, it is ready and forgotten.
    std::fs::remove_file(&crash).unwrap();
    let retried = spcd.spcd(&["retry", "bad"]);
    assert_eq!(retried.code, 0, "{}", retried.stderr);
    until(&hub.url, &["bad ready", "good ready", "other ready"]).await;
    let left = "SELECT count(*) FROM spcd.wrapper_crash";
    eventually("the crashes are forgotten", DEADLINE, || async {
        (value(&hub.url, left).await == "0").then_some(())
    })
    .await;
    query(&hub.url, "SELECT FROM pg_foreign_table").await;
    assert_eq!(crashes(), 4);
    spcd.stop();
}
