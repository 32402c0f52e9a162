//! What `spcd.hcl` says of probes and attempts holds for a daemon that runs.

use std::fs;

use super::{WELL, health, reader, until_health};
use crate::support::hub::{guarded, until, until_error};
use crate::support::{DEADLINE, Spcd, eventually, shared, value};

#[tokio::test(flavor = "multi_thread")]
async fn when_sources_are_asked_changes_without_a_restart() {
    let hub = shared().database().await;
    let source = guarded("one").await;
    let mut late = guarded("one").await;
    late.stop();
    let mut spcd = Spcd::new(&hub.url);
    // The file decides: an empty variable is an unset one.
    spcd.env("SPCD_HEALTH_ENABLED", "");
    let file = spcd.dir().join("spcd.hcl");
    let say = |lines: &str| fs::write(&file, format!("health {{\n{lines}\n}}\n")).unwrap();
    say("enabled = false\npause = \"20h\"\ninterval = \"20h\"");
    spcd.write("a.spc", &reader("shop", source.port(), "one"));
    spcd.write("b.spc", &reader("late", late.port(), "one"));
    spcd.start();
    until_error(&hub.url, "late", "Connection refused").await;
    until(&hub.url, &["late error", "shop ready"]).await;
    let rows = "SELECT count(*) FROM spcd.connection_health";
    assert_eq!(value(&hub.url, rows).await, "0");

    // An import that was to be tried again tomorrow is tried by the new times.
    late.start_again();
    say("enabled = false\npause = \"100ms\"\ninterval = \"20h\"");
    until(&hub.url, &["late ready", "shop ready"]).await;
    assert_eq!(value(&hub.url, rows).await, "0");

    // Probes begin, and follow one another by the interval that is said last.
    for (interval, lines) in [
        ("1 hour", "interval = \"1h\""),
        ("3 s", "interval = \"3s\""),
    ] {
        say(lines);
        let by = format!("{WELL} AND next_attempt - last_checked = interval '{interval}'");
        // The first probe may be an hour away.
        eventually(&format!("an interval of {interval}"), DEADLINE, || async {
            spcd.spcd(&["reconnect", "shop"]);
            (health(&hub.url, "shop", &by).await == "t").then_some(())
        })
        .await;
    }

    // Wrong settings change nothing; and they end when it is said that they should.
    say("interval = \"soon\"");
    spcd.logged("settings stay as they were");
    let at = health(&hub.url, "shop", "last_checked").await;
    until_health(&hub.url, "shop", &format!("last_checked > '{at}'")).await;
    say("enabled = false");
    let unknown = "reachable IS NULL AND next_attempt IS NULL AND breaker = 'closed'";
    until_health(&hub.url, "shop", unknown).await;
    until(&hub.url, &["late ready", "shop ready"]).await;
    assert!(!spcd.log().contains("need a restart"), "{}", spcd.log());
    spcd.stop();
}
