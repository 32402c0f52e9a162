//! What anybody who can use the schema may ask for.

use crate::support::hub::{made_by, serving};
use crate::support::{DEADLINE, eventually, query, shared, try_query, value};

/// Makes a request; what came of it.
async fn answer(hub: &str, request: &str) -> String {
    let id = value(hub, &format!("SELECT spcd.{request}")).await;
    let sql = format!(
        "SELECT coalesce(error, 'done') FROM spcd.refresh_request
         WHERE id = {id} AND done_at IS NOT NULL"
    );
    eventually(&format!("{request} is answered"), DEADLINE, || async {
        query(hub, &sql).await.into_iter().flatten().next()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_no_connection_has_cost_next_to_nothing() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer)").await;
    let mut spcd = serving(&hub, &source, &["a", "b"]).await;
    let led = "SELECT epoch FROM spcd.daemon";
    let before = value(&hub.url, led).await;

    let many = "array(SELECT lpad(g::text, 6, '0') FROM generate_series(1, 99999) g) || 'a'::text";
    for request in ["reconnect", "refresh"] {
        assert_eq!(
            answer(&hub.url, &format!("{request}({many})")).await,
            "no connection is named \"000001\", \"000002\", \"000003\" and 99996 more"
        );
    }
    // The log is not theirs to fill.
    let log = spcd.log();
    let told: Vec<&str> = log.lines().filter(|l| l.contains("to be tried")).collect();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(!log.contains("000001"));

    for (names, told) in [
        ("array['a', NULL, 'a']", "done"),
        ("array[['a', 'b'], ['a', 'b']]", "done"),
        ("array[NULL::text]", "done"),
        (
            "array_fill('x'::text, array[100000])",
            "no connection is named \"x\"",
        ),
    ] {
        for request in ["refresh", "reconnect"] {
            let request = format!("{request}({names})");
            assert_eq!(answer(&hub.url, &request).await, told, "{request}");
        }
    }
    // One that is there already, however it came there.
    let insert = "INSERT INTO spcd.refresh_request (connections)
                  VALUES (array[[NULL, repeat('x', 1000000)]]) RETURNING id";
    let id = value(&hub.url, insert).await;
    assert_eq!(answer(&hub.url, "refresh('{}')").await, "done");
    let error =
        format!("SELECT octet_length(error) < 100 FROM spcd.refresh_request WHERE id = {id}");
    assert_eq!(value(&hub.url, &error).await, "t");

    // It served all the time, and listens to who wants it to end.
    assert_eq!(value(&hub.url, led).await, before);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_names_of_connections_is_refused() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer)").await;
    let _spcd = serving(&hub, &source, &["a"]).await;
    for (names, code) in [
        ("array_fill('a'::text, array[100001])", "54000"),
        ("array[repeat('é', 32)]", "42622"),
    ] {
        for function in ["refresh", "reconnect", "disconnect"] {
            let sql = format!("SELECT spcd.{function}({names})");
            let error = try_query(&hub.url, &sql).await.unwrap_err();
            let error = error.as_db_error().expect("the server says so");
            assert_eq!(error.code().code(), code, "{error:?}");
            assert!(error.hint().is_some(), "{error:?}");
        }
    }
    let longest = "array[repeat('é', 31) || 'x']";
    let told = answer(&hub.url, &format!("refresh({longest})")).await;
    assert!(told.starts_with("no connection is named \"éé"), "{told}");
}
