//! `spcd events`: what happened to connections.

use crate::support::hub::{made_by, postgres, serving, until};
use crate::support::shared;

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
