//! Files that come anew each day: what a table is does not depend on what one of them happens to hold.

use super::Fixture;
use crate::support::{query, value};

/// Waits until the daemon has looked at the files.
fn look(fixture: &Fixture) {
    let wait = fixture.spcd.spcd(&["wait"]);
    assert_eq!(wait.code, 0, "{}", wait.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_day_keeps_the_types_of_its_table() {
    let full = "day,total,note\n2024-01-02,9.50,x\n";
    let mut fixture = Fixture::new("", &[("a.csv", full)]).await;
    fixture.spcd.start();
    fixture.ready().await;
    let wanted = ["day date", "total numeric", "note text"];
    assert_eq!(fixture.columns("a").await, wanted);
    let view = "CREATE VIEW v AS SELECT day + 1 AS next, total * 2 AS twice FROM files.a";
    query(&fixture.hub.url, view).await;
    for day in ["day,total,note\n", "day,total,note\n,,y\n,,y\n"] {
        fixture.put("a.csv", day);
        look(&fixture);
        assert_eq!(fixture.columns("a").await, wanted, "{day:?}");
        assert!(fixture.warnings().await.is_empty());
        let rows = (day.lines().count() - 1).to_string();
        assert_eq!(
            value(&fixture.hub.url, "SELECT count(*) FROM v").await,
            rows
        );
    }
    // Neither a start nor `spcd apply` thinks otherwise.
    fixture.spcd.stop();
    assert_eq!(fixture.spcd.spcd(&["plan"]).code, 0);
    assert_eq!(fixture.spcd.spcd(&["apply", "--force"]).code, 0);
    assert_eq!(fixture.columns("a").await, wanted);

    // What is altered by hand is mended on such a day, too.
    query(
        &fixture.hub.url,
        "DROP VIEW v; ALTER FOREIGN TABLE files.a ALTER total TYPE text",
    )
    .await;
    assert_eq!(fixture.spcd.spcd(&["apply"]).code, 0);
    assert_eq!(fixture.columns("a").await, wanted);

    // A value that is no number contradicts.
    fixture.spcd.start();
    fixture.ready().await;
    fixture.put("a.csv", "day,total,note\n2024-01-02,none,x\n");
    look(&fixture);
    let wanted = ["day date", "total text", "note text"];
    assert_eq!(fixture.columns("a").await, wanted);
    fixture.spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_gets_its_type_from_its_first_values() {
    let mut fixture = Fixture::new("", &[("a.csv", "n,zip\n")]).await;
    fixture.spcd.start();
    fixture.ready().await;
    assert_eq!(fixture.columns("a").await, ["n text", "zip text"]);
    for (day, wanted) in [
        ("n,zip\n1,01234\n", ["n bigint", "zip text"]),
        ("n,zip\n1,91234\n", ["n bigint", "zip text"]),
    ] {
        fixture.put("a.csv", day);
        look(&fixture);
        assert_eq!(fixture.columns("a").await, wanted, "{day:?}");
    }
    fixture.spcd.stop();
}
