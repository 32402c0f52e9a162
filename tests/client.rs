//! The crate for programs: what it answers while connections come, break and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use spcd_client::{Changes, Client, Connector, Error, Problem, Reported, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::kept::{kept, load, migrate, publish, publish_on, to};
use crate::support::{Cluster, DEADLINE, Database, connect, eventually, query, value};

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
    assert!(
        matches!(
            error,
            Error::Connection {
                problem: Problem::Disabled,
                ..
            }
        ),
        "{error:?}"
    );
    for sql in [
        "SELECT * FROM nobody.t",
        "SELECT * FROM good.missing",
        "SELECT * FROM missing",
        "CREATE TABLE nobody.t ()",
    ] {
        let error = client.query(sql, &[]).await.unwrap_err();
        assert!(matches!(error, Error::Database(_)), "{sql}: {error:?}");
    }
    assert_eq!(
        code(&client.query("SELECT nobody.f()", &[]).await.unwrap_err()),
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
    let hub = kept().await;
    publish(
        &hub.url,
        "",
        json!([to("a", &["pending"]), to("b", &["pending"])]),
    )
    .await;
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
    // The second of its plugin is still on its way, and nobody waits for it.
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

    let error = client.wait_ready(&["a", "nobody"], LONG).await.unwrap_err();
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
    assert!(
        matches!(
            error,
            Error::Connection {
                problem: Problem::Disabled,
                ..
            }
        ),
        "{error:?}"
    );
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

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_once_and_in_order_over_lost_sessions() {
    let mut cluster = Cluster::start(&[]);
    let url = cluster.url("postgres");
    migrate(&url);
    load(&url, "a").await;
    load(&url, "b").await;
    let mut changes = Changes::of(Connector::new(&url).unwrap(), Some(&["a", "new"]));
    assert_eq!(
        changes.begin().await.unwrap(),
        [("a".to_owned(), Status::Ready)]
    );
    publish(
        &url,
        "",
        json!([
            to("b", &["updating"]),
            to("a", &["updating", "ready"]),
            to("new", &["pending"])
        ]),
    )
    .await;
    let mut told = Vec::new();
    for _ in 0..3 {
        let change = changes.next().await.unwrap();
        told.push((change.connection, change.previous, change.status));
    }
    let status = Reported::Status;
    assert_eq!(
        told,
        [
            (
                "a".to_owned(),
                Some(Status::Ready),
                status(Status::Updating)
            ),
            (
                "a".to_owned(),
                Some(Status::Updating),
                status(Status::Ready)
            ),
            ("new".to_owned(), None, status(Status::Pending)),
        ]
    );
    assert!(!changes.polls());

    // While nobody listens: a is broken, new goes.
    cluster.stop();
    cluster.start_again();
    publish(&url, "", json!([{"name": "a", "route": ["updating", "error"], "error": "x"}, {"name": "new", "route": ["deleting"], "remove": true}])).await;
    let mut after = BTreeMap::new();
    while after.len() < 2 {
        let change = changes.next().await.unwrap();
        // Either as one change each, from before to after, or as it happened.
        after.insert(
            change.connection,
            serde_json::to_value(change.status).unwrap(),
        );
        if after.get("a").is_some_and(|a| a == "updating") {
            after.remove("a");
        }
        if after.get("new").is_some_and(|new| new == "deleting") {
            after.remove("new");
        }
    }
    assert_eq!(
        serde_json::to_value(after).unwrap(),
        json!({"a": "error", "new": "deleted"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_standby_the_table_is_polled() {
    let cluster = Cluster::start(&[]);
    let url = cluster.url("postgres");
    migrate(&url);
    publish(&url, "", json!([to("a", &["pending"])])).await;
    let standby = cluster.standby();
    let mut client = Client::connect(&standby.url("postgres")).await.unwrap();
    let count = count_waits(&mut client);
    let mut changes = Changes::of(
        Connector::new(&standby.url("postgres")).unwrap(),
        Some(&["a"]),
    );
    changes.begin().await.unwrap();
    assert!(changes.polls());
    let asked = tokio::spawn(async move { client.query("SELECT id FROM a.t", &[]).await });
    waits(&count).await;
    load(&url, "a").await;
    assert_eq!(asked.await.unwrap().unwrap().len(), 1);
    assert_eq!(
        changes.next().await.unwrap().status,
        Reported::Status(Status::Ready)
    );
}

/// A pooler's way with LISTEN: what the server says unasked goes nowhere. With `old`, sessions are
/// served by backends that were opened before.
async fn pooler(port: u16, old: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let mut ready = Vec::new();
    if old {
        for _ in 0..4 {
            ready.push(backend(port, None).await);
        }
        // Until a backend is clearly older than the session it will serve.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let startup = startup(&mut client).await;
            let (server, greeting) = match ready.pop() {
                Some(backend) => backend,
                None => backend(port, Some(startup)).await,
            };
            client.write_all(&greeting).await.unwrap();
            tokio::spawn(pump(client, server));
        }
    });
    own
}

async fn startup(client: &mut TcpStream) -> Vec<u8> {
    loop {
        let length = client.read_u32().await.unwrap();
        let mut message = length.to_be_bytes().to_vec();
        message.resize(length as usize, 0);
        client.read_exact(&mut message[4..]).await.unwrap();
        // An SSLRequest is answered with no.
        if message[4..8] != 80_877_103_u32.to_be_bytes() {
            return message;
        }
        client.write_all(b"N").await.unwrap();
    }
}

/// A session with the server, and all that it said until it was ready.
async fn backend(port: u16, startup: Option<Vec<u8>>) -> (TcpStream, Vec<u8>) {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let startup = startup.unwrap_or_else(|| {
        let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
        [
            &(u32::try_from(body.len() + 4).unwrap()).to_be_bytes()[..],
            body,
        ]
        .concat()
    });
    server.write_all(&startup).await.unwrap();
    let mut said = Vec::new();
    loop {
        let message = message(&mut server).await.unwrap();
        said.extend_from_slice(&message);
        if message[0] == b'Z' {
            return (server, said);
        }
    }
}

async fn message(server: &mut (impl tokio::io::AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let kind = server.read_u8().await?;
    let length = server.read_u32().await?;
    let mut message = vec![kind];
    message.extend_from_slice(&length.to_be_bytes());
    message.resize(length as usize + 1, 0);
    server.read_exact(&mut message[5..]).await?;
    Ok(message)
}

async fn pump(client: TcpStream, server: TcpStream) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    while let Ok(message) = message(&mut from_server).await {
        const NOTIFICATION: u8 = b'A';
        if message[0] != NOTIFICATION && to_client.write_all(&message).await.is_err() {
            break;
        }
    }
    up.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_that_loses_notifications_the_table_is_read() {
    let cluster = Cluster::start(&[]);
    let url = cluster.url("postgres");
    migrate(&url);
    for old in [true, false] {
        let name = format!("old_{old}");
        publish(&url, "", json!([to(&name, &["pending"])])).await;
        let port = pooler(cluster.port(), old).await;
        let through = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let connector = Connector::new(&through).unwrap();
        let mut changes = Changes::of(connector.clone(), Some(&[&name]));
        changes.begin().await.unwrap();
        assert_eq!(changes.polls(), old);
        let mut client = Client::open(connector).await.unwrap();
        let count = count_waits(&mut client);
        let asked = {
            let name = name.clone();
            tokio::spawn(async move { client.wait_ready(&[name], LONG).await })
        };
        waits(&count).await;
        load(&url, &name).await;
        asked.await.unwrap().unwrap();
        assert_eq!(
            changes.next().await.unwrap().status,
            Reported::Status(Status::Ready)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_clients_get_their_answer_over_a_restart_of_the_server() {
    let mut cluster = Cluster::start(&["max_connections = 300"]);
    let url = cluster.url("postgres");
    migrate(&url);
    publish(
        &url,
        "",
        json!([to("a", &["pending"]), to("b", &["pending"])]),
    )
    .await;
    let mut waiters = Vec::new();
    let mut counts = Vec::new();
    for n in 0..100 {
        let mut client = Client::connect(&url).await.unwrap();
        client.set_timeout(LONG);
        counts.push(count_waits(&mut client));
        let name = if n % 2 == 0 { "a" } else { "b" };
        waiters.push(tokio::spawn(async move {
            match n % 4 {
                0 | 1 => client.wait_ready(&[name], LONG).await.map(|()| 1),
                _ => client
                    .query(&format!("SELECT id FROM {name}.t"), &[])
                    .await
                    .map(|rows| rows.len()),
            }
        }));
    }
    for count in &counts {
        waits(count).await;
    }
    cluster.kill9();
    cluster.start_again();
    load(&url, "a").await;
    publish(&url, "", json!([broken("b", "gave up")])).await;
    for (n, waiter) in waiters.into_iter().enumerate() {
        match waiter.await.unwrap() {
            Ok(rows) => assert_eq!((n % 2, rows), (0, 1)),
            Err(error) => {
                assert_eq!(n % 2, 1, "{error:?}");
                assert!(error.to_string().contains("gave up"), "{error}");
            }
        }
    }
}

/// What a client saw of one query.
struct Answer {
    name: String,
    from: i64,
    to: i64,
    rows: bool,
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_answers_are_each_right_for_a_moment_of_their_query() {
    const CLIENTS: usize = 16;
    const NAMES: usize = 12;
    let hub = kept().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    // What the daemon would do: connections are created, broken, repaired and removed. A table is
    // there exactly while its connection is ready, so that the events tell when.
    let world = {
        let (url, stop) = (hub.url.clone(), stop.clone());
        tokio::spawn(async move {
            let session = connect(&url).await.unwrap();
            let mut phase = [0_usize; NAMES];
            let mut n = 0_usize;
            while !stop.load(Ordering::SeqCst) {
                n = (n + 5) % NAMES;
                let now = phase[n];
                phase[n] = (phase[n] + 1) % 9;
                let name = format!("c{n}");
                let create = format!("CREATE SCHEMA {name}; CREATE TABLE {name}.t{n} (id integer)");
                let drop = format!("DROP SCHEMA {name} CASCADE");
                let remove = json!({"name": name, "route": ["deleting"], "remove": true});
                let (sql, change) = match now {
                    0 => (String::new(), to(&name, &["pending"])),
                    // Being on the way takes longer than anything else.
                    1..=3 => {
                        session.simple_query("SELECT 1").await.unwrap();
                        continue;
                    }
                    4 | 7 => (create, to(&name, &["updating", "ready"])),
                    5 => (drop, to(&name, &["updating"])),
                    6 => (String::new(), broken(&name, "broken")),
                    _ => (drop, remove),
                };
                publish_on(&session, &sql, json!([change])).await;
            }
        })
    };
    // All queries, those that waited, those with rows.
    let counts: Arc<[AtomicUsize; 3]> = Arc::default();
    let enough = |counts: &[AtomicUsize; 3]| {
        let [all, waited, rows] = counts.each_ref().map(|count| count.load(Ordering::SeqCst));
        all >= 10_000 && waited >= 1000 && rows >= 1000 && all - rows >= 1000
    };
    let mut clients = Vec::new();
    for c in 0..CLIENTS {
        let counts = counts.clone();
        let url = hub.url.clone();
        clients.push(tokio::spawn(async move {
            let mut client = Client::connect(&url).await.unwrap();
            client.set_timeout(LONG);
            let path: Vec<String> = (0..NAMES).map(|n| format!("c{n}")).collect();
            let path = format!("SET search_path = {}", path.join(", "));
            client
                .session()
                .await
                .unwrap()
                .batch_execute(&path)
                .await
                .unwrap();
            let count = count_waits(&mut client);
            let mut answers = Vec::new();
            for q in 0.. {
                if enough(&counts) {
                    break;
                }
                let n = (q * 7 + c) % NAMES;
                let name = format!("c{n}");
                let qualified = (q + c) % 3 != 0;
                let sql = if qualified {
                    format!("SELECT id FROM {name}.t{n}")
                } else {
                    format!("SELECT id FROM t{n}")
                };
                let at = "SELECT coalesce(max(id), 0) FROM spcd.connection_event";
                let session = client.session().await.unwrap();
                let from = session.query_one(at, &[]).await.unwrap().get(0);
                count.store(0, Ordering::SeqCst);
                let outcome = tokio::time::timeout(LONG, client.query(&sql, &[]))
                    .await
                    .expect("no query hangs");
                let waited = count.load(Ordering::SeqCst) > 0;
                if let Err(error) = &outcome {
                    assert_eq!(code(error), "42P01", "{sql}: {error:?}");
                }
                let session = client.session().await.unwrap();
                let to = session.query_one(at, &[]).await.unwrap().get(0);
                counts[0].fetch_add(1, Ordering::SeqCst);
                counts[1].fetch_add(usize::from(waited), Ordering::SeqCst);
                counts[2].fetch_add(usize::from(outcome.is_ok()), Ordering::SeqCst);
                answers.push(Answer {
                    name,
                    from,
                    to,
                    rows: outcome.is_ok(),
                });
            }
            answers
        }));
    }
    let mut answers = Vec::new();
    for client in clients {
        answers.extend(client.await.unwrap());
    }
    stop.store(true, Ordering::SeqCst);
    world.await.unwrap();

    // One session wrote, so the order of the events is that of the commits. What a commit left is
    // its last event.
    let mut history: BTreeMap<String, Vec<(i64, bool)>> = BTreeMap::new();
    let sql = "SELECT DISTINCT ON (generation) id, connection_name, status
               FROM spcd.connection_event ORDER BY generation, id DESC";
    for row in query(&hub.url, sql).await {
        let there = row[2] == "ready";
        history
            .entry(row[1].clone())
            .or_default()
            .push((row[0].parse().unwrap(), there));
    }
    for answer in &answers {
        let events = history
            .get(&answer.name)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let before = events
            .iter()
            .rev()
            .find(|(id, _)| *id <= answer.from)
            .is_some_and(|(_, is)| *is);
        let during = events
            .iter()
            .filter(|(id, _)| *id > answer.from && *id <= answer.to)
            .map(|(_, is)| *is);
        let moments: Vec<bool> = std::iter::once(before).chain(during).collect();
        assert!(
            moments.contains(&answer.rows),
            "{}: {} between {} and {}, when it was {moments:?}",
            answer.name,
            if answer.rows { "rows" } else { "an error" },
            answer.from,
            answer.to
        );
    }
    let [all, waited, rows] = counts.each_ref().map(|count| count.load(Ordering::SeqCst));
    println!(
        "{all} queries: {waited} waited, {rows} returned rows, {} rightly failed",
        all - rows
    );
}
