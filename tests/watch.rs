//! `spcd status --watch` believes the tables, and not who sends on the channel.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::support::hub::{made_by, postgres, serving, until};
use crate::support::{query, shared};

#[tokio::test(flavor = "multi_thread")]
async fn forged_notifications_are_not_shown_and_hide_nothing() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer)").await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    let mut command = spcd.command(&["status", "--watch"]);
    let mut watching = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    // The table, and then what changes.
    let first: Vec<String> = lines.by_ref().take(2).map(Result::unwrap).collect();
    assert!(first[1].starts_with("a "), "{first:?}");
    for (connection, status, event) in [("a", "error", 999_999), ("ghost", "ready", 999_999_999)] {
        let forged = format!(
            "{{\"version\":1,\"generation\":1,\"changes\":[{{\"connection\":\"{connection}\",
              \"status\":\"{status}\",\"previous\":\"ready\",\"time\":\"2026-01-01T00:00:00Z\",
              \"event\":{event},\"error\":\"forged\"}}]}}"
        );
        let send = format!(
            "SELECT pg_notify('connection_state', {})",
            spcd_core::sql::literal(&forged)
        );
        query(&hub.url, &send).await;
    }
    spcd.write("b.spc", &postgres("b", &source));
    until(&hub.url, &["a ready", "b ready"]).await;
    spcd.write(
        "a.spc",
        "connection \"a\" {\n  plugin = \"postgres\"\n  hots = \"x\"\n}\n",
    );
    let mut shown = Vec::new();
    for line in lines {
        shown.push(line.unwrap());
        if shown.iter().any(|line| line.contains("  a  error")) {
            break;
        }
    }
    let all = shown.join("\n");
    assert!(all.contains("  b  ready"), "{all}");
    assert!(all.contains("no attribute `hots`"), "{all}");
    assert!(!all.contains("forged") && !all.contains("ghost"), "{all}");
    watching.kill().unwrap();
    watching.wait().unwrap();
    spcd.stop();
}
