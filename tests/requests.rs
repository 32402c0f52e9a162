//! Requests that every role with USAGE on the schema may make.

use crate::support::hub::{guarded, made_by, reader, serving, until_error};
use crate::support::{Cluster, DEADLINE, Spcd, eventually, query, shared, try_query, value};

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
    let told: Vec<&str> = log
        .lines()
        .filter(|l| l.contains("connection resumed"))
        .collect();
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

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_queued_the_daemon_holds_little_of_it() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    query(
        &hub.url,
        "INSERT INTO spcd.refresh_request (connections)
         SELECT names FROM (
             SELECT array_agg(lpad(g::text, 63, 'x')) FROM generate_series(1, 100000) g) AS n (names)
         CROSS JOIN generate_series(1, 20)",
    )
    .await;
    query(
        &hub.url,
        "SELECT spcd.refresh() FROM generate_series(1, 200)",
    )
    .await;
    spcd.start();
    let open = "SELECT count(*) FROM spcd.refresh_request WHERE done_at IS NULL";
    eventually("all are answered", DEADLINE * 2, || async {
        (value(&hub.url, open).await == "0").then_some(())
    })
    .await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", spcd.pid())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 250_000, "{peak} kB");
    // Nor does the table keep what was answered.
    let kept = "SELECT max(cardinality(connections)) FROM spcd.refresh_request";
    assert_eq!(value(&hub.url, kept).await, "100");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_may_refresh_and_so_often_only() {
    let server = Cluster::start(&[]);
    let hub = server.database().await;
    query(
        &hub.url,
        "CREATE ROLE spcd_users; CREATE ROLE reader LOGIN IN ROLE spcd_users;
         CREATE ROLE granted LOGIN IN ROLE spcd_users",
    )
    .await;
    let spcd = Spcd::new(&hub.url);
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    let grant = "GRANT EXECUTE ON FUNCTION spcd.reconnect(text[]) TO granted";
    query(&hub.url, grant).await;
    let code = async |role: &str, sql: &str| {
        let refused = try_query(&server.url_as(role, &hub.name), sql).await;
        let error = refused.err()?;
        let error = error.as_db_error().expect("the server says so");
        Some(error.code().code().to_owned())
    };
    let refused = Some("42501".to_owned());
    assert_eq!(
        code("reader", "SELECT spcd.reconnect('{a}')").await,
        refused
    );
    assert_eq!(
        code("reader", "SELECT spcd.disconnect('{a}')").await,
        refused
    );
    assert_eq!(code("granted", "SELECT spcd.reconnect('{a}')").await, None);
    assert_eq!(
        code("granted", "SELECT spcd.disconnect('{a}')").await,
        refused
    );

    let many = |times: i32| format!("SELECT spcd.refresh() FROM generate_series(1, {times})");
    let limited = Some("53400".to_owned());
    assert_eq!(code("reader", &many(31)).await, limited);
    assert_eq!(code("reader", &many(30)).await, None);
    assert_eq!(code("reader", &many(1)).await, limited);
    // Answered ones count for a minute.
    let answer = "UPDATE spcd.refresh_request SET done_at = clock_timestamp()";
    query(&hub.url, answer).await;
    assert_eq!(code("reader", &many(30)).await, None);
    query(&hub.url, answer).await;
    assert_eq!(code("reader", &many(1)).await, limited);
    query(
        &hub.url,
        "UPDATE spcd.refresh_request SET requested_at = requested_at - interval '1 minute'",
    )
    .await;
    assert_eq!(code("reader", &many(1)).await, None);
    // A role's names are counted over all its open requests.
    let names = "SELECT spcd.refresh(array_agg(g::text)) FROM generate_series(1, 60000) g";
    assert_eq!(code("granted", names).await, None);
    assert_eq!(code("granted", names).await, limited);
    // The owner is not limited, and no operator of a caller's is used.
    query(&hub.url, &many(200)).await;
    query(
        &hub.url,
        "CREATE SCHEMA mine AUTHORIZATION reader;
         CREATE FUNCTION mine.never(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false';
         CREATE OPERATOR mine.>= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = mine.never)",
    )
    .await;
    let path = format!("SET search_path = mine, pg_catalog; {}", many(40));
    assert_eq!(code("reader", &path).await, limited);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_readers_refresh_sends_no_refused_credentials_again() {
    let (server, source) = (Cluster::start(&[]), guarded("right").await);
    let hub = server.database().await;
    let roles = "CREATE ROLE spcd_users; CREATE ROLE anna LOGIN IN ROLE spcd_users";
    query(&hub.url, roles).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &reader("shop", source.port(), "wrong"));
    spcd.start();
    until_error(&hub.url, "shop", "authentication failed").await;
    let refusals = || {
        source
            .log()
            .matches("password authentication failed")
            .count()
    };
    let before = refusals();
    let answered = async |role: &str, request: &str| {
        let url = server.url_as(role, &hub.name);
        let id = value(&url, &format!("SELECT spcd.{request}")).await;
        let sql =
            format!("SELECT id FROM spcd.refresh_request WHERE id = {id} AND done_at IS NOT NULL");
        eventually("it is answered", DEADLINE, || async {
            query(&url, &sql).await.into_iter().flatten().next()
        })
        .await;
    };
    for request in ["refresh()", "refresh('{shop}')", "refresh('{shop,shop}')"] {
        answered("anna", request).await;
    }
    assert_eq!(refusals(), before);
    answered("postgres", "refresh('{shop}')").await;
    assert!(refusals() > before);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_made_while_no_daemon_runs_is_answered_by_the_next() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer)").await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    spcd.stop();
    query(&source.url, "ALTER TABLE t ADD more text").await;
    let id = value(&hub.url, "SELECT spcd.refresh('{a}')").await;
    spcd.start();
    let answered = format!("SELECT done_at IS NOT NULL FROM spcd.refresh_request WHERE id = {id}");
    eventually("it is answered", DEADLINE, || async {
        (value(&hub.url, &answered).await == "t").then_some(())
    })
    .await;
    query(&hub.url, "SELECT more FROM a.t").await;
    spcd.stop();
}
