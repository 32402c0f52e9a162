//! `spcd events`: what happened to connections.

use serde_json::json;

use crate::support::hub::{made_by, postgres, serving, until};
use crate::support::kept::to;
use crate::support::{DEADLINE, Spcd, connect, eventually, query, shared, value};

#[tokio::test(flavor = "multi_thread")]
async fn events_are_shown_in_order_with_their_errors() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer)").await;
    let mut spcd = serving(&hub, &source, &["a", "b"]).await;
    spcd.write(
        "a.spc",
        "connection \"a\" {\n  plugin = \"postgres\"\n  hots = \"x\"\n}\n",
    );
    until(&hub.url, &["a error", "b ready"]).await;
    spcd.write("a.spc", &postgres("a", &source));
    until(&hub.url, &["a ready", "b ready"]).await;

    let all = spcd.spcd(&["events"]);
    assert_eq!(all.code, 0, "{}", all.stderr);
    let of_a = spcd.spcd(&["events", "a", "--since", "1h"]);
    let changes: Vec<&str> = (of_a.stdout.lines().skip(1))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.get(33..))
        .filter_map(|line| line.split("  (").next())
        .collect();
    assert_eq!(
        changes,
        [
            "pending",
            "pending -> ready",
            "ready -> updating",
            "updating -> error",
            "error -> ready",
        ],
        "{}",
        of_a.stdout
    );
    assert!(of_a.stdout.contains("`postgres` has no attribute `hots`"));
    assert!(!of_a.stdout.contains("  b  ") && all.stdout.contains("b  "));

    let json = spcd.spcd(&["events", "b", "--json"]);
    let events: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let events = events.as_array().unwrap();
    assert!(events.iter().all(|event| event["connection_name"] == "b"));
    assert_eq!(events.last().unwrap()["status"], "ready");
    let none = spcd.spcd(&["events", "unknown"]);
    assert_eq!((none.code, none.stdout.as_str()), (0, ""));
    assert!(none.stderr.contains("no event"), "{}", none.stderr);
    spcd.stop();
}

/// Found by random faults: an event said `updating` after the event that said `ready`.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_a_source_has_the_status_that_another_session_commits_before_it() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer)").await;
    serving(&hub, &source, &["a"]).await.stop();
    // The leader's writer has just changed the status when a probe's result is written.
    let writer = connect(&hub.url).await.unwrap();
    let mut broken = to("a", &["updating", "error"]);
    broken["error"] = "no table".into();
    let broken = json!([broken]);
    let publish = format!("BEGIN; SELECT spcd.publish(nextval('spcd.generation'), '{broken}')");
    writer.batch_execute(&publish).await.unwrap();
    let url = hub.url.clone();
    let prober = tokio::spawn(async move {
        let lost = json!([{"name": "a", "reachable": false, "attempts": 1, "breaker": "closed",
                           "checked": 0, "failure": "gone", "health": ["lost"]}]);
        let publish = format!("SELECT spcd.publish_health(epoch, '{lost}') FROM spcd.daemon");
        query(&url, &publish).await
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database =
                 (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually("the prober waits for the writer", DEADLINE, || async {
        (value(&hub.url, waits).await == "1").then_some(())
    })
    .await;
    writer.batch_execute("COMMIT").await.unwrap();
    prober.await.unwrap();
    let last =
        "SELECT previous, status, health FROM spcd.connection_event ORDER BY id DESC LIMIT 1";
    assert_eq!(query(&hub.url, last).await, [["error", "error", "lost"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_kept_for_thirty_days() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    let old = "INSERT INTO spcd.connection_event (time, connection_name, status, generation)
               SELECT now() - make_interval(days => days), 'd' || days, 'ready', 0
               FROM unnest(ARRAY[29, 31]) AS days";
    query(&hub.url, old).await;
    spcd.start();
    let kept = "SELECT string_agg(connection_name, ' ') FROM spcd.connection_event
                WHERE connection_name ~ '^d'";
    eventually("the older one is gone", DEADLINE, || async {
        (value(&hub.url, kept).await == "d29").then_some(())
    })
    .await;
    spcd.stop();
}
