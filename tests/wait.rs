//! `spcd.wait_until_ready()`: waiting, for every client of Postgres.

use serde_json::json;

use crate::support::kept::{kept, load, migrate, pending, publish, to};
use crate::support::{Cluster, DEADLINE, connect, eventually, query, shared, try_query, value};

/// The SQLSTATE that a statement fails with, and the message.
async fn failure(url: &str, sql: &str) -> (String, String) {
    let error = try_query(url, sql).await.unwrap_err();
    let said = error.as_db_error().unwrap();
    (said.code().code().to_owned(), said.message().to_owned())
}

/// Waits until this many sessions sleep in the function.
async fn sleepers(url: &str, count: usize) {
    let sql = "SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("the waiters wait", DEADLINE, || async {
        (value(url, sql).await == count.to_string()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_returns_when_what_was_named_is_ready_and_the_tables_are_there() {
    let hub = pending(&["a", "b"]).await;
    let url = hub.url.clone();
    let waiter = tokio::spawn(async move {
        let sql = "SELECT connection_name, status FROM spcd.wait_until_ready('{b,a,a}');
                   SELECT count(*)::text, '' FROM a.t, b.t";
        query(&url, sql).await
    });
    sleepers(&hub.url, 1).await;
    load(&hub.url, "a").await;
    // Only one of the two yet.
    sleepers(&hub.url, 1).await;
    load(&hub.url, "b").await;
    assert_eq!(
        waiter.await.unwrap(),
        [["a", "ready"], ["b", "ready"], ["1", ""]]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_become_ready_fails_at_once_with_its_own_code() {
    let hub = kept().await;
    let mut broken = to("broken", &["error"]);
    broken["error"] = "no route to host".into();
    publish(
        &hub.url,
        "",
        json!([broken, to("off", &["disabled"]), to("slow", &["pending"])]),
    )
    .await;
    let wait = |names: &str| format!("SELECT * FROM spcd.wait_until_ready('{names}', '20 s')");
    let (code, text) = failure(&hub.url, &wait("{slow,broken}")).await;
    assert_eq!(
        (code.as_str(), text.contains("no route to host")),
        ("SP001", true),
        "{text}"
    );
    let (code, text) = failure(&hub.url, &wait("{broken,slow,unknown}")).await;
    assert_eq!(
        (code.as_str(), text.contains("unknown")),
        ("SP003", true),
        "{text}"
    );
    let (code, text) = failure(&hub.url, &wait("{off}")).await;
    assert_eq!(
        (code.as_str(), text.contains("disabled")),
        ("SP003", true),
        "{text}"
    );
    assert_eq!(failure(&hub.url, &wait("{slow,NULL}")).await.0, "SP003");

    let url = hub.url.clone();
    let waiter = tokio::spawn(async move { failure(&url, &wait("{slow}")).await });
    sleepers(&hub.url, 1).await;
    let mut breaks = to("slow", &["error"]);
    breaks["error"] = "gave up".into();
    publish(&hub.url, "", json!([breaks])).await;
    assert_eq!(waiter.await.unwrap().0, "SP001");
}

#[tokio::test(flavor = "multi_thread")]
async fn time_that_is_up_names_what_was_waited_for_and_null_is_no_limit() {
    let hub = kept().await;
    publish(
        &hub.url,
        "",
        json!([to("a", &["pending"]), to("b", &["disabled"])]),
    )
    .await;
    for limit in ["0", "30 ms", "-1 s"] {
        let sql = format!("SELECT * FROM spcd.wait_until_ready('{{a}}', '{limit}')");
        let (code, text) = failure(&hub.url, &sql).await;
        assert_eq!(
            (code.as_str(), text.as_str()),
            ("SP002", "not ready in time: a")
        );
    }
    let url = hub.url.clone();
    let waiter = tokio::spawn(async move {
        query(
            &url,
            "SELECT status FROM spcd.wait_until_ready('{a}', NULL)",
        )
        .await
    });
    sleepers(&hub.url, 1).await;
    load(&hub.url, "a").await;
    assert_eq!(waiter.await.unwrap(), [["ready"]]);
    assert!(
        query(&hub.url, "SELECT * FROM spcd.wait_until_ready('{}')")
            .await
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_names_it_waits_for_the_search_path_and_returns_errors_as_rows() {
    let hub = kept().await;
    let mut broken = to("Broken \"x\", y", &["error"]);
    broken["error"] = "no".into();
    let others = [
        to("postgres", &["pending"]),
        to("elsewhere", &["pending"]),
        broken,
        to("off", &["disabled"]),
    ];
    publish(&hub.url, "", json!(others)).await;
    let url = hub.url.clone();
    let waiter = tokio::spawn(async move {
        let sql =
            "SET search_path = \"$user\", OFF, public, \"Broken \"\"x\"\", y\", spcd, \"off\";
                   SELECT connection_name, status FROM spcd.wait_until_ready()";
        query(&url, sql).await
    });
    // The user is postgres.
    sleepers(&hub.url, 1).await;
    load(&hub.url, "postgres").await;
    let rows = waiter.await.unwrap();
    assert_eq!(
        rows,
        [
            ["Broken \"x\", y", "error"],
            ["off", "disabled"],
            ["postgres", "ready"]
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_a_transaction_it_waits_only_where_that_can_end() {
    let hub = kept().await;
    load(&hub.url, "a").await;
    publish(
        &hub.url,
        "",
        json!([to("a", &["updating"]), to("b", &["pending"])]),
    )
    .await;
    let wait = "SELECT status FROM spcd.wait_until_ready('{a}', '20 s')";
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let (code, text) =
            failure(&hub.url, &format!("BEGIN ISOLATION LEVEL {level}; {wait}")).await;
        assert_eq!(
            (code.as_str(), text.contains("frozen")),
            ("25001", true),
            "{text}"
        );
    }
    for holds in [
        "SELECT * FROM a.t",
        "CREATE TABLE a.mine ()",
        "COMMENT ON SCHEMA a IS 'x'",
    ] {
        let (code, text) = failure(&hub.url, &format!("BEGIN; {holds}; {wait}")).await;
        assert_eq!(
            (code.as_str(), text.contains("locks")),
            ("25001", true),
            "{holds}: {text}"
        );
    }
    // Locks on another connection's tables do no harm.
    let url = hub.url.clone();
    let waiter = tokio::spawn(async move {
        let held = "BEGIN; SELECT ''; SELECT id::text FROM a.t; SELECT status FROM spcd.wait_until_ready('{b}')";
        query(&url, held).await
    });
    sleepers(&hub.url, 1).await;
    load(&hub.url, "b").await;
    assert_eq!(waiter.await.unwrap(), [[""], ["1"], ["ready"]]);
    // What is settled already needs no waiting.
    publish(&hub.url, "", json!([to("a", &["ready"])])).await;
    let frozen = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM a.t; {wait}");
    assert_eq!(query(&hub.url, &frozen).await, [["1"], ["ready"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mere_reader_waits_on_a_standby_with_a_search_path_of_its_own() {
    let cluster = Cluster::start(&[]);
    let url = cluster.url("postgres");
    query(
        &url,
        "CREATE ROLE spcd_users; CREATE ROLE reader LOGIN IN ROLE spcd_users; CREATE ROLE stranger LOGIN",
    )
    .await;
    migrate(&url);
    query(
        &url,
        "SELECT spcd.admit_readers();
         CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
         CREATE DOMAIN evil.text AS pg_catalog.int4; CREATE DOMAIN evil.timestamptz AS pg_catalog.int4;
         CREATE FUNCTION evil.no(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
         CREATE FUNCTION evil.no(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS 'SELECT true';
         CREATE FUNCTION evil.none(text[]) RETURNS integer LANGUAGE sql AS 'SELECT 0';
         CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.no);
         CREATE OPERATOR evil.>= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = evil.no);
         CREATE FUNCTION evil.cardinality(text[]) RETURNS integer LANGUAGE sql AS 'SELECT 0';
         CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz'",
    )
    .await;
    publish(&url, "", json!([to("a", &["pending"])])).await;
    let standby = cluster.standby();
    let sql = "SET search_path = evil, pg_catalog, a;
               SELECT connection_name || ' ' || status FROM spcd.wait_until_ready('{a}');
               SELECT connection_name || ' ' || status FROM spcd.wait_until_ready()";
    let mut waiters = Vec::new();
    for at in [&cluster, &standby] {
        let url = at.url_as("reader", "postgres");
        waiters.push(tokio::spawn(async move { query(&url, sql).await }));
    }
    sleepers(&url, 1).await;
    sleepers(&standby.url("postgres"), 1).await;
    load(&url, "a").await;
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), [["a ready"], ["a ready"]]);
    }
    let stranger = cluster.url_as("stranger", "postgres");
    assert_eq!(
        failure(&stranger, "SELECT spcd.wait_until_ready('{a}')")
            .await
            .0,
        "42501"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_are_told_when_the_server_goes() {
    let mut cluster = Cluster::start(&[]);
    let url = cluster.url("postgres");
    migrate(&url);
    publish(&url, "", json!([to("a", &["pending"])])).await;
    let waiter = {
        let url = url.clone();
        tokio::spawn(async move { failure(&url, "SELECT spcd.wait_until_ready('{a}')").await })
    };
    sleepers(&url, 1).await;
    cluster.stop();
    assert_eq!(waiter.await.unwrap().0, "57P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_search_path_is_read_whole() {
    let hub = kept().await;
    let names: Vec<String> = (0..2000).map(|n| format!("\"c {n}\"")).collect();
    let changes: Vec<_> = (0..2000)
        .map(|n| to(&format!("c {n}"), &["pending", "ready"]))
        .collect();
    publish(&hub.url, "", json!(changes)).await;
    let session = connect(&hub.url).await.unwrap();
    let path = format!("SET search_path = {}", names.join(", "));
    session.batch_execute(&path).await.unwrap();
    let rows = session
        .query("SELECT * FROM spcd.wait_until_ready()", &[])
        .await
        .unwrap();
    assert_eq!(rows.len(), 2000);
    assert!(shared().port() > 0);
}
