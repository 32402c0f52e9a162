//! Who waits for an aggregator sees what its members have become.

use super::aggregator;
use crate::support::hub::{made_by, postgres, postgres_with, until};
use crate::support::{Spcd, query, shared, value};

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_sees_what_a_member_has_become() {
    let hub = shared().database().await;
    let source = made_by(
        "CREATE TABLE t1 (id integer); CREATE TABLE t2 (id integer);
         INSERT INTO t1 VALUES (1); INSERT INTO t2 VALUES (1)",
    )
    .await;
    let one = "  import {\n    tables = [\"t1\"]\n  }\n";
    let member = |all: bool| match all {
        true => postgres("m_b", &source),
        false => postgres_with("m_b", &source, one),
    };
    let rest = postgres("m_a", &source) + &aggregator("all", &["m_*"]);
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("rest.spc", &rest);
    spcd.write("b.spc", &member(true));
    spcd.start();
    until(&hub.url, &["all ready", "m_a ready", "m_b ready"]).await;
    let shown = "SELECT count(DISTINCT connection_name) FROM \"all\".t2";
    // An odd number of them, so that each has both to wait for.
    let commands: [&[&str]; 5] = [
        &["wait"],
        &["query", "--output", "csv", shown],
        &["wait", "all"],
        &["apply"],
        &["wait", "m_b", "all"],
    ];
    for (n, command) in commands.iter().cycle().take(10).enumerate() {
        let all = n % 2 == 1;
        spcd.write("b.spc", &member(all));
        let done = spcd.spcd(command);
        assert_eq!(done.code, 0, "{command:?}: {done:?}");
        let expected = if all { "2" } else { "1" };
        if command[0] == "query" {
            assert_eq!(done.stdout, format!("count\n{expected}\n"));
        }
        assert_eq!(value(&hub.url, shown).await, expected, "{command:?}");
    }

    // What was told of it, in order: it was never called ready while a member was not.
    let told = query(
        &hub.url,
        "SELECT connection_name, status FROM spcd.connection_event
         WHERE connection_name IN ('all', 'm_b') AND health IS NULL ORDER BY id",
    )
    .await;
    let mut member_is_ready = true;
    for event in &told {
        match (event[0].as_str(), event[1].as_str()) {
            ("m_b", status) => member_is_ready = status == "ready",
            (_, "ready") => assert!(member_is_ready, "{told:?}"),
            _ => {}
        }
    }
}
