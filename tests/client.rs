//! The crate for programs: what it answers while connections come, break and go.

mod feed;
mod moments;
mod restart;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use spcd_client::{Client, Connector, Error, Problem};

use crate::support::kept::{kept, load, pending, publish, to};
use crate::support::{DEADLINE, Database, eventually, query, value};

/// Long enough that only a bug reaches it.
const LONG: Duration = Duration::from_secs(50);

async fn client(hub: &Database) -> Client {
    let mut client = Client::connect(&hub.url).await.unwrap();
    client.set_timeout(LONG);
    client
}

/// Counts how often a client says that it waits.
fn count_waits(client: &mut Client) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    client.on_wait(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    count
}

async fn waits(count: &AtomicUsize) {
    let asked = || async { (count.load(Ordering::SeqCst) > 0).then_some(()) };
    eventually("the client waits", DEADLINE, asked).await;
}

fn broken(name: &str, why: &str) -> serde_json::Value {
    json!({"name": name, "route": ["error"], "error": why})
}

fn code(error: &Error) -> &str {
    error.code().map_or("", |code| code.code())
}

#[track_caller]
fn assert_disabled(error: &Error) {
    let disabled = matches!(
        error,
        Error::Connection {
            problem: Problem::Disabled,
            ..
        }
    );
    assert!(disabled, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_waits_for_the_schema_that_it_names() {
    let hub = kept().await;
    publish(&hub.url, "", json!([to("My sales", &["pending"])])).await;
    for sql in [
        "SELECT id FROM \"My sales\".t",
        "INSERT INTO \"My sales\".t VALUES (1) RETURNING id",
        "SELECT (SELECT 1) FROM public.\"é\", \"My sales\".t",
        "SELECT 1 WHERE '\"My sales\".t'::regclass IS NOT NULL",
        "SELECT \"My sales\".f()",
    ] {
        let away =
            "DROP SCHEMA IF EXISTS \"My sales\" CASCADE; CREATE TABLE IF NOT EXISTS \"é\" ();
                    DELETE FROM \"é\"; INSERT INTO \"é\" DEFAULT VALUES";
        publish(&hub.url, away, json!([to("My sales", &["pending"])])).await;
        let mut client = client(&hub).await;
        let count = count_waits(&mut client);
        let asked = tokio::spawn(async move { client.query(sql, &[]).await });
        waits(&count).await;
        let function = "CREATE SCHEMA \"My sales\"; CREATE TABLE \"My sales\".t (id integer); INSERT INTO \"My sales\".t VALUES (1);
                        CREATE FUNCTION \"My sales\".f() RETURNS integer LANGUAGE sql AS 'SELECT 1'";
        publish(
            &hub.url,
            function,
            json!([to("My sales", &["updating", "ready"])]),
        )
        .await;
        let rows = asked.await.unwrap().unwrap();
        assert_eq!(rows[0].get::<_, i32>(0), 1, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_inside_a_function_waits_too_and_happens_once() {
    let hub = kept().await;
    publish(
        &hub.url,
        "CREATE TABLE log (id integer);
         CREATE FUNCTION f() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO log VALUES (1); RETURN (SELECT count(*) FROM sales.t); END $$",
        json!([to("sales", &["pending"])]),
    )
    .await;
    let mut client = client(&hub).await;
    let count = count_waits(&mut client);
    let asked = tokio::spawn(async move { client.query("SELECT f()", &[]).await });
    waits(&count).await;
    load(&hub.url, "sales").await;
    assert_eq!(asked.await.unwrap().unwrap()[0].get::<_, i64>(0), 1);
    assert_eq!(value(&hub.url, "SELECT count(*) FROM log").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_will_not_come_is_the_callers_error_with_the_reason() {
    let hub = kept().await;
    load(&hub.url, "good").await;
    publish(
        &hub.url,
        "",
        json!([broken("bad", "no route to host"), to("off", &["disabled"])]),
    )
    .await;
    let mut client = client(&hub).await;
    let count = count_waits(&mut client);

    let error = client.query("SELECT * FROM bad.t", &[]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "connection \"bad\" is in error: no route to host"
    );
    assert_eq!(code(&error), "42P01");
    let error = client.query("SELECT * FROM off.t", &[]).await.unwrap_err();
    assert_disabled(&error);
    for sql in [
        "SELECT * FROM unknown.t",
        "SELECT * FROM good.missing",
        "SELECT * FROM missing",
        "CREATE TABLE unknown.t ()",
    ] {
        let error = client.query(sql, &[]).await.unwrap_err();
        assert!(matches!(error, Error::Database(_)), "{sql}: {error:?}");
    }
    assert_eq!(
        code(&client.query("SELECT unknown.f()", &[]).await.unwrap_err()),
        "3F000"
    );
    assert_eq!(
        code(&client.query("SELECT 1/0", &[]).await.unwrap_err()),
        "22012"
    );
    assert_eq!(count.load(Ordering::SeqCst), 0);

    // It breaks while it is waited for.
    publish(&hub.url, "", json!([to("slow", &["pending"])])).await;
    let url = hub.url.clone();
    let asked = tokio::spawn(async move { client.query("SELECT * FROM slow.t", &[]).await });
    waits(&count).await;
    publish(&url, "", json!([broken("slow", "gave up")])).await;
    let error = asked.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("gave up"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn time_that_is_up_says_what_was_waited_for() {
    let hub = pending(&["a", "b"]).await;
    let mut client = client(&hub).await;
    client.set_timeout(Duration::from_millis(200));
    let error = client.query("SELECT * FROM a.t", &[]).await.unwrap_err();
    assert_eq!(error.to_string(), "not ready in time: a");
    assert_eq!(code(&error), "42P01");
    let error = client
        .wait_ready(&["a", "b"], Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "not ready in time: a, b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_name_waits_for_what_the_search_path_needs() {
    let hub = kept().await;
    let fixed = |name: &str, route: &[&str]| json!({"name": name, "route": route, "plugin": "s", "plugin_instance": "s", "schema_mode": "static"});
    publish(
        &hub.url,
        "",
        json!([
            fixed("s1", &["pending"]),
            fixed("s2", &["pending"]),
            to("d", &["pending"]),
            to("elsewhere", &["pending"])
        ]),
    )
    .await;
    let mut client = client(&hub).await;
    let path = "SET search_path = s1, s2, d";
    client
        .session()
        .await
        .unwrap()
        .batch_execute(path)
        .await
        .unwrap();
    let count = count_waits(&mut client);
    let asked = tokio::spawn(async move {
        let rows = client.query("SELECT id FROM t", &[]).await;
        (client, rows)
    });
    waits(&count).await;
    load(&hub.url, "s1").await;
    load(&hub.url, "d").await;
    // The second of its plugin is still being imported, and no client waits for it.
    let (mut client, rows) = asked.await.unwrap();
    assert_eq!(rows.unwrap()[0].get::<_, i32>(0), 1);
    assert_eq!(
        code(
            &client
                .query("SELECT * FROM missing", &[])
                .await
                .unwrap_err()
        ),
        "42P01"
    );

    // The first of its plugin in error is the reason why a bare name is not found.
    let gone = json!({"name": "s1", "route": ["updating", "error"], "error": "gone", "schema_mode": "static", "plugin_instance": "s"});
    publish(&hub.url, "", json!([gone])).await;
    let error = client
        .query("SELECT * FROM missing", &[])
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "connection \"s1\" is in error: gone");
    // But what is found needs no reason.
    client.query("SELECT id FROM t", &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_path_that_was_asked_for_is_waited_for_before_anything_runs() {
    let hub = kept().await;
    query(
        &hub.url,
        "CREATE TABLE t (id integer); INSERT INTO t VALUES (7)",
    )
    .await;
    publish(&hub.url, "", json!([to("sales", &["pending"])])).await;
    let mut client = client(&hub).await;
    let count = count_waits(&mut client);
    client
        .set_search_path(Some(&["sales", "public"]))
        .await
        .unwrap();
    let asked = tokio::spawn(async move {
        let rows = client.query("SELECT id FROM t", &[]).await;
        (client, rows)
    });
    waits(&count).await;
    load(&hub.url, "sales").await;
    let (mut client, rows) = asked.await.unwrap();
    // The one in public would have been found without waiting.
    assert_eq!(rows.unwrap()[0].get::<_, i32>(0), 1);

    // It holds on the session after this one, too.
    query(&hub.url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").await;
    // What is sent before the end is noticed fails with it.
    let _ = client.query("SELECT 1", &[]).await;
    let rows = client.query("SELECT id FROM t", &[]).await.unwrap();
    assert_eq!(rows[0].get::<_, i32>(0), 1);

    publish(
        &hub.url,
        "",
        json!([{"name": "sales", "route": ["updating", "error"], "error": "gone"}]),
    )
    .await;
    let error = client.query("SELECT id FROM t", &[]).await.unwrap_err();
    assert_eq!(error.to_string(), "connection \"sales\" is in error: gone");
    client.set_search_path::<&str>(None).await.unwrap();
    assert_eq!(
        client.query("SELECT id FROM t", &[]).await.unwrap()[0].get::<_, i32>(0),
        7
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_twice_that_can_have_left_something() {
    let hub = kept().await;
    publish(
        &hub.url,
        "CREATE TABLE log (id integer);
         CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO log VALUES (1); COMMIT; PERFORM * FROM sales.t; END $$",
        json!([to("sales", &["pending"])]),
    )
    .await;
    let mut client = client(&hub).await;
    let count = count_waits(&mut client);
    assert_eq!(
        code(&client.query("CALL p()", &[]).await.unwrap_err()),
        "42P01"
    );
    assert_eq!(value(&hub.url, "SELECT count(*) FROM log").await, "1");
    // Inside a transaction that wrote.
    client.query("BEGIN", &[]).await.unwrap();
    client
        .query("INSERT INTO log VALUES (2)", &[])
        .await
        .unwrap();
    assert_eq!(
        code(
            &client
                .query("SELECT * FROM sales.t", &[])
                .await
                .unwrap_err()
        ),
        "42P01"
    );
    assert_eq!(
        code(&client.query("SELECT 1", &[]).await.unwrap_err()),
        "25P02"
    );
    client.query("ROLLBACK", &[]).await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_no_longer_fits_is_made_anew_once() {
    let hub = kept().await;
    // A sequence is not rolled back, so it counts the attempts.
    let fails = "CREATE SEQUENCE attempt; CREATE FUNCTION stale(times integer) RETURNS integer LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('attempt') <= times THEN RAISE 'cached plan' USING ERRCODE = '0A000'; END IF; RETURN 1; END $$";
    query(&hub.url, fails).await;
    let mut client = client(&hub).await;
    client.query("SELECT stale(1)", &[]).await.unwrap();
    query(&hub.url, "ALTER SEQUENCE attempt RESTART").await;
    assert_eq!(
        code(&client.query("SELECT stale(5)", &[]).await.unwrap_err()),
        "0A000"
    );
    assert_eq!(value(&hub.url, "SELECT last_value FROM attempt").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_when_all_that_was_named_is_ready_or_cannot_become_so() {
    let hub = kept().await;
    publish(
        &hub.url,
        "",
        json!([
            to("a", &["pending"]),
            to("b", &["pending"]),
            to("off", &["disabled"])
        ]),
    )
    .await;
    let mut client = client(&hub).await;
    let count = count_waits(&mut client);
    let asked = tokio::spawn(async move {
        let outcome = client.wait_ready(&["a", "b"], LONG).await;
        (client, outcome)
    });
    waits(&count).await;
    load(&hub.url, "a").await;
    load(&hub.url, "b").await;
    let (mut client, outcome) = asked.await.unwrap();
    outcome.unwrap();
    client.query("SELECT FROM a.t, b.t", &[]).await.unwrap();
    // It does not listen any more.
    let channels = client
        .query("SELECT pg_listening_channels()", &[])
        .await
        .unwrap();
    assert!(channels.is_empty());

    let error = client
        .wait_ready(&["a", "unknown"], LONG)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Connection {
                problem: Problem::Unknown,
                ..
            }
        ),
        "{error:?}"
    );
    let error = client.wait_ready(&["a", "off"], LONG).await.unwrap_err();
    assert_disabled(&error);
    let long = "why ".repeat(500);
    publish(&hub.url, "", json!([to("c", &["pending"])])).await;
    let asked = tokio::spawn(async move { client.wait_ready(&["c"], LONG).await });
    publish(&hub.url, "", json!([broken("c", &long)])).await;
    let error = asked.await.unwrap().unwrap_err();
    // Whole, though a message would shorten it.
    assert_eq!(
        error.to_string(),
        format!("connection \"c\" is in error: {long}")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_spcd_is_just_a_database() {
    let plain = crate::support::shared().database().await;
    let mut client = client(&plain).await;
    client.query("SELECT 1", &[]).await.unwrap();
    assert_eq!(
        code(&client.query("SELECT * FROM a.t", &[]).await.unwrap_err()),
        "42P01"
    );
    assert!(matches!(
        client.states::<&str>(None).await,
        Err(Error::NotKept)
    ));
    assert!(matches!(
        client.wait_ready(&["a"], LONG).await,
        Err(Error::NotKept)
    ));
    let error = Client::connect(&format!("{}x", plain.url))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, Error::Connect(_)));
    // Waiting does not help against a database that is not there.
    let mut lazy = Client::new(Connector::new(&format!("{}x", plain.url)).unwrap());
    lazy.set_timeout(Duration::from_secs(3600));
    assert!(matches!(
        lazy.query("SELECT 1", &[]).await,
        Err(Error::Connect(_))
    ));
}
