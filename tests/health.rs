//! Sources that come and go: what is known of them, what is told, and what is tried again.

mod command;
mod hang;
mod reload;

use crate::support::hub::{guarded, postgres, reader, until, until_error};
use crate::support::mariadb::{self, MariaDb, mysql};
use crate::support::proxy::Proxy;
use crate::support::{DEADLINE, Spcd, connect, eventually, query, shared, try_query, value};

/// A daemon that asks its sources all the time.
pub fn watching(hub: &str) -> Spcd {
    let mut spcd = Spcd::new(hub);
    spcd.env("SPCD_HEALTH_ENABLED", "true")
        .env("SPCD_HEALTH_INTERVAL", "300ms")
        .env("SPCD_HEALTH_PAUSE", "100ms")
        .env("SPCD_HEALTH_TIMEOUT", "2s");
    spcd
}

/// A column of a connection's health, as text.
pub async fn health(hub: &str, name: &str, what: &str) -> String {
    let name = spcd_core::sql::literal(name);
    let sql = format!("SELECT {what} FROM spcd.connection_health WHERE connection_name = {name}");
    let rows = try_query(hub, &sql).await.unwrap_or_default();
    let cell = rows.into_iter().flatten().next().flatten();
    cell.unwrap_or_default()
}

/// Waits until a connection's health is as a condition says.
pub async fn until_health(hub: &str, name: &str, condition: &str) {
    let start = std::time::Instant::now();
    while health(hub, name, condition).await != "t" {
        if start.elapsed() > DEADLINE {
            let row = health(hub, name, "to_jsonb(connection_health)").await;
            panic!("waited in vain for {condition} of {name}, the last was {row}");
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// What was told of a source, in order.
pub async fn told(hub: &str, name: &str) -> String {
    let name = spcd_core::sql::literal(name);
    let sql = format!(
        "SELECT coalesce(string_agg(concat_ws(' ', health, previous, status), ', ' ORDER BY id), '')
         FROM spcd.connection_event WHERE connection_name = {name} AND health IS NOT NULL"
    );
    value(hub, &sql).await
}

pub const WELL: &str = "reachable AND breaker = 'closed' AND attempts = 0 AND latency_ms > 0
                    AND last_checked IS NOT NULL AND next_attempt IS NOT NULL";
/// All attempts failed, and one more.
const GONE: &str = "NOT reachable AND breaker IN ('open', 'half_open') AND attempts > 4
                    AND failed_at IS NOT NULL AND next_attempt IS NOT NULL";
/// It is not tried again by itself.
const REFUSED: &str =
    "NOT reachable AND breaker = 'open' AND next_attempt IS NULL AND attempts = 1";

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_stops_and_hangs_and_refuses_is_followed() {
    let hub = shared().database().await;
    let mut source = guarded("one").await;
    let proxy = Proxy::to(source.port()).await;
    let mut spcd = watching(&hub.url);
    let mut listener = tokio_postgres::connect(&hub.url, tokio_postgres::NoTls)
        .await
        .unwrap();
    spcd.write("a.spc", &reader("shop", proxy.port(), "one"));
    spcd.start();
    until(&hub.url, &["shop ready"]).await;
    until_health(&hub.url, "shop", WELL).await;
    assert_eq!(told(&hub.url, "shop").await, "");
    let (messages, heard) = tokio::sync::mpsc::unbounded_channel();
    let client = listener.0;
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| listener.1.poll_message(cx)).await {
            if let tokio_postgres::AsyncMessage::Notification(message) = message {
                let _ = messages.send(message.payload().to_owned());
            }
        }
    });
    client
        .batch_execute("LISTEN connection_state")
        .await
        .unwrap();
    let mut heard = heard;

    // It stops: the tables are as good as before, and who listens hears of it.
    source.stop();
    until_health(&hub.url, "shop", GONE).await;
    let failure = health(&hub.url, "shop", "last_failure").await;
    assert!(failure.contains("is the source running"), "{failure}");
    until(&hub.url, &["shop ready"]).await;
    let payload = tokio::time::timeout(DEADLINE, heard.recv())
        .await
        .unwrap()
        .unwrap();
    let message: spcd_client::Notification = serde_json::from_str(&payload).unwrap();
    let [change] = message.changes.as_slice() else {
        panic!("one change: {payload}");
    };
    assert_eq!(change.connection, "shop");
    assert_eq!(change.health, Some(spcd_client::HealthChange::Lost));
    let ready = spcd_client::Status::Ready;
    assert_eq!(change.status, spcd_client::AnnouncedStatus::Status(ready));
    assert_eq!(change.previous, Some(ready));
    let event = format!(
        "SELECT health FROM spcd.connection_event WHERE id = {}",
        change.event
    );
    assert_eq!(value(&hub.url, &event).await, "lost");
    let status = spcd.spcd(&["status"]);
    assert!(status.stdout.contains("  lost\n"), "{}", status.stdout);
    assert!(
        status.stdout.contains("its source does not answer: "),
        "{}",
        status.stdout
    );

    // It starts again.
    source.start_again();
    until_health(&hub.url, "shop", WELL).await;
    assert_eq!(
        told(&hub.url, "shop").await,
        "lost ready ready, restored ready ready"
    );
    let payload = tokio::time::timeout(DEADLINE, heard.recv())
        .await
        .unwrap()
        .unwrap();
    assert!(
        payload.contains("\"health\": \"restored\"") || payload.contains("\"health\":\"restored\""),
        "{payload}"
    );

    // It accepts connections and never answers.
    proxy.swallow(true);
    until_health(&hub.url, "shop", "NOT reachable AND attempts > 1").await;
    let failure = health(&hub.url, "shop", "last_failure").await;
    assert!(failure.contains("firewall"), "{failure}");
    proxy.swallow(false);
    until_health(&hub.url, "shop", WELL).await;

    // Its password changes there: only a new one or a request makes it try again.
    query(&source.url("postgres"), "ALTER ROLE reader PASSWORD 'two'").await;
    until_health(&hub.url, "shop", REFUSED).await;
    let failure = health(&hub.url, "shop", "last_failure").await;
    assert!(failure.contains("authentication failed"), "{failure}");
    assert!(
        !failure.contains("one") || !failure.contains("reader\""),
        "{failure}"
    );
    // Another connection is asked meanwhile, several times.
    spcd.write("b.spc", &postgres("other", &hub));
    let before = proxy.connections();
    for _ in 0..3 {
        until_health(&hub.url, "other", WELL).await;
        let at = health(&hub.url, "other", "last_checked").await;
        until_health(&hub.url, "other", &format!("last_checked > '{at}'")).await;
    }
    assert_eq!(proxy.connections(), before, "it was tried again");
    until(&hub.url, &["other ready", "shop ready"]).await;
    let failed = spcd.spcd(&["reconnect", "shop"]);
    assert_eq!(failed.code, 1, "{failed:?}");
    assert!(
        failed.stderr.contains("authentication failed"),
        "{failed:?}"
    );
    query(&source.url("postgres"), "ALTER ROLE reader PASSWORD 'one'").await;
    let done = spcd.spcd(&["reconnect", "shop"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stdout
            .starts_with("shop: ready, its source answers in "),
        "{done:?}"
    );
    assert_eq!(health(&hub.url, "shop", WELL).await, "t");

    // And by its block.
    query(
        &source.url("postgres"),
        "ALTER ROLE reader PASSWORD 'three'",
    )
    .await;
    until_health(&hub.url, "shop", REFUSED).await;
    spcd.write("a.spc", &reader("shop", proxy.port(), "three"));
    until_health(&hub.url, "shop", WELL).await;
    until(&hub.url, &["other ready", "shop ready"]).await;
    assert_eq!(
        told(&hub.url, "shop").await,
        ["lost ready ready, restored ready ready"; 4].join(", ")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_refused_are_sent_once() {
    let hub = shared().database().await;
    let source = guarded("one").await;
    let refusals = || {
        let log = source.log();
        log.matches("password authentication failed").count()
    };
    let mut spcd = watching(&hub.url);
    // Nothing is asked but what is asked for.
    spcd.env("SPCD_HEALTH_INTERVAL", "3600s");
    spcd.write("a.spc", &reader("shop", source.port(), "one"));
    spcd.start();
    until(&hub.url, &["shop ready"]).await;
    let done = spcd.spcd(&["reconnect", "shop"]);
    assert_eq!(done.code, 0, "{done:?}");
    until_health(&hub.url, "shop", WELL).await;

    let admin = source.url("postgres");
    query(&admin, "ALTER ROLE reader PASSWORD 'two'").await;
    let failed = spcd.spcd(&["reconnect", "shop"]);
    assert_eq!(failed.code, 1, "{failed:?}");
    assert!(
        failed.stderr.contains("authentication failed"),
        "{failed:?}"
    );
    assert_eq!(health(&hub.url, "shop", REFUSED).await, "t");
    assert_eq!(refusals(), 1);
    // The same by another block. Who asks is served after what that began.
    spcd.write("a.spc", &reader("shop", source.port(), "three"));
    eventually("the new password was refused", DEADLINE, || async {
        (refusals() > 1).then_some(())
    })
    .await;
    until_error(&hub.url, "shop", "authentication failed").await;
    until_health(&hub.url, "shop", REFUSED).await;
    let failed = spcd.spcd(&["reconnect", "shop"]);
    assert_eq!(failed.code, 1, "{failed:?}");
    assert_eq!(refusals(), 3);

    query(&admin, "ALTER ROLE reader PASSWORD 'three'").await;
    let done = spcd.spcd(&["reconnect", "shop"]);
    assert_eq!(done.code, 0, "{done:?}");
    until_health(&hub.url, "shop", WELL).await;
    assert_eq!(refusals(), 3);
}

/// By default it is asked through what was made for the connection, with the wrapper's own sessions.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_through_the_connections_own_server_keeps_no_session() {
    let hub = shared().database().await;
    let source = guarded("one").await;
    let admin = source.url("postgres");
    let mut spcd = watching(&hub.url);
    // No less than the server's own limit, else a server of the probe's own is made.
    spcd.env("SPCD_HEALTH_TIMEOUT", "10s");
    spcd.write("a.spc", &reader("shop", source.port(), "one"));
    spcd.start();
    until(&hub.url, &["shop ready"]).await;
    for _ in 0..3 {
        until_health(&hub.url, "shop", WELL).await;
        let at = health(&hub.url, "shop", "last_checked").await;
        until_health(&hub.url, "shop", &format!("last_checked > '{at}'")).await;
    }
    // A session that was kept would not notice that it could not be had any more.
    query(&admin, "ALTER ROLE reader PASSWORD 'two'").await;
    until_health(&hub.url, "shop", REFUSED).await;
    query(&admin, "ALTER ROLE reader PASSWORD 'one'").await;
    assert_eq!(spcd.spcd(&["reconnect", "shop"]).code, 0);
    until_health(&hub.url, "shop", WELL).await;
    assert_eq!(spcd.spcd(&["disconnect", "shop"]).code, 0);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'reader'";
    eventually("no session is left", DEADLINE, || async {
        (value(&admin, sessions).await == "0").then_some(())
    })
    .await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mariadb_that_stops_and_hangs_and_refuses_is_followed() {
    let hub = shared().database().await;
    let mut source = MariaDb::start();
    source.run(
        "CREATE DATABASE shop; CREATE TABLE shop.t (id int);
         CREATE USER reader@'127.0.0.1' IDENTIFIED BY 'one';
         GRANT SELECT ON shop.* TO reader@'127.0.0.1'",
    );
    let proxy = Proxy::to(source.port()).await;
    let mut spcd = watching(&hub.url);
    let block = |password: &str| mysql("shop", proxy.port(), &mariadb::reader(password));
    spcd.write("a.spc", &block("one"));
    spcd.start();
    until(&hub.url, &["shop ready"]).await;
    until_health(&hub.url, "shop", WELL).await;

    source.stop();
    until_health(&hub.url, "shop", GONE).await;
    until(&hub.url, &["shop ready"]).await;
    source.start_again();
    until_health(&hub.url, "shop", WELL).await;

    proxy.swallow(true);
    until_health(&hub.url, "shop", "NOT reachable AND attempts > 1").await;
    let failure = health(&hub.url, "shop", "last_failure").await;
    assert!(failure.contains("firewall"), "{failure}");
    proxy.swallow(false);
    until_health(&hub.url, "shop", WELL).await;

    source.run("ALTER USER reader@'127.0.0.1' IDENTIFIED BY 'two'");
    until_health(&hub.url, "shop", REFUSED).await;
    let failure = health(&hub.url, "shop", "last_failure").await;
    assert!(failure.contains("Access denied"), "{failure}");
    spcd.write("a.spc", &block("two"));
    until_health(&hub.url, "shop", WELL).await;
    until(&hub.url, &["shop ready"]).await;
    assert_eq!(
        told(&hub.url, "shop").await,
        ["lost ready ready, restored ready ready"; 3].join(", ")
    );
}

/// Its first import failed: it needs no request when the source starts.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_failed_is_tried_again_by_itself() {
    let hub = shared().database().await;
    let mut source = guarded("one").await;
    source.stop();
    // Once it is found by the probe, once by the schedule alone.
    for enabled in ["true", "false"] {
        let mut spcd = watching(&hub.url);
        spcd.env("SPCD_HEALTH_ENABLED", enabled);
        spcd.write("a.spc", &reader("shop", source.port(), "one"));
        spcd.start();
        until_error(&hub.url, "shop", "Connection refused").await;
        if enabled == "true" {
            until_health(&hub.url, "shop", GONE).await;
        }
        source.start_again();
        until(&hub.url, &["shop ready"]).await;
        assert_eq!(value(&hub.url, "SELECT id FROM shop.t").await, "7");
        if enabled == "true" {
            until_health(&hub.url, "shop", WELL).await;
            source.stop();
            spcd.remove("a.spc");
            spcd.write("keep.spc", "");
            until(&hub.url, &[]).await;
            // What was known of it went with it.
            let rows = value(&hub.url, "SELECT count(*) FROM spcd.connection_health").await;
            assert_eq!(rows, "0");
        }
        spcd.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_left_alone_is_asked_nothing() {
    let hub = shared().database().await;
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let proxy = Proxy::to(shared().port()).await;
    let block = |name: &str, more: &str| {
        let port = format!("= {}", shared().port());
        let own = format!("= {}", proxy.port());
        crate::support::hub::postgres_with(name, &source, more).replace(&port, &own)
    };
    let mut spcd = watching(&hub.url);
    let short = "  import {\n    refresh_interval = \"1s\"\n  }\n";
    spcd.write("a.spc", &block("shop", short));
    spcd.start();
    until(&hub.url, &["shop ready"]).await;
    until_health(&hub.url, "shop", WELL).await;

    let done = spcd.spcd(&["disconnect", "shop"]);
    assert_eq!(done.code, 0, "{done:?}");
    until_health(
        &hub.url,
        "shop",
        "held AND reachable IS NULL AND next_attempt IS NULL",
    )
    .await;
    query(&source.url, "CREATE TABLE u (id integer)").await;
    let unknown = spcd.spcd(&["disconnect", "unknown"]);
    assert_eq!(unknown.code, 1, "{unknown:?}");
    assert!(
        unknown
            .stderr
            .contains("no connection is named \"unknown\""),
        "{unknown:?}"
    );
    // Another source is asked several times over, and this one is not, also by a daemon that starts.
    spcd.stop();
    let before = proxy.connections();
    spcd.write("b.spc", &postgres("other", &source));
    spcd.start();
    until(&hub.url, &["other ready", "shop ready"]).await;
    for _ in 0..3 {
        until_health(&hub.url, "other", WELL).await;
        let at = health(&hub.url, "other", "last_checked").await;
        until_health(&hub.url, "other", &format!("last_checked > '{at}'")).await;
    }
    let refused = spcd.spcd(&["refresh", "--wait", "shop"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("spcd reconnect shop"),
        "{refused:?}"
    );
    assert_eq!(proxy.connections(), before, "it was asked");
    assert_eq!(
        health(&hub.url, "shop", "held AND reachable IS NULL").await,
        "t"
    );
    let status = spcd.spcd(&["status", "shop"]);
    assert!(status.stdout.contains("  held\n"), "{}", status.stdout);

    // What its block says now cannot be made without asking.
    spcd.write("a.spc", &block("shop", "  fetch_size = 50\n"));
    until_error(&hub.url, "shop", "spcd reconnect shop").await;
    assert_eq!(proxy.connections(), before, "it was asked");
    assert_eq!(
        value(
            &hub.url,
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'shop'::regnamespace"
        )
        .await,
        "1"
    );

    let done = spcd.spcd(&["reconnect", "shop"]);
    assert_eq!(done.code, 0, "{done:?}");
    until(&hub.url, &["other ready", "shop ready"]).await;
    assert_eq!(value(&hub.url, "SELECT count(*) FROM shop.u").await, "0");
    until_health(&hub.url, "shop", WELL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_probes_nothing_is_said_and_nothing_asked() {
    let hub = shared().database().await;
    let source = shared().database().await;
    let mut spcd = watching(&hub.url);
    let off = "  health {\n    enabled = false\n  }\n";
    let block = |more: &str| crate::support::hub::postgres_with("shop", &source, more);
    spcd.write("a.spc", &block(off));
    spcd.write("b.spc", &postgres("other", &source));
    spcd.start();
    until(&hub.url, &["other ready", "shop ready"]).await;
    until_health(&hub.url, "other", WELL).await;
    assert_eq!(health(&hub.url, "shop", "count(*)").await, "0");
    // Turned on, and off again: nothing is known of it any more.
    spcd.write("a.spc", &block(""));
    until_health(&hub.url, "shop", WELL).await;
    spcd.write("a.spc", &block(off));
    let unknown = "reachable IS NULL AND next_attempt IS NULL AND breaker = 'closed'";
    until_health(&hub.url, "shop", unknown).await;
    assert_eq!(told(&hub.url, "shop").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_opened() {
    let hub = shared().database().await;
    let mut spcd = watching(&hub.url);
    let dir = spcd.dir().join("data");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("a.csv"), "id\n1\n").unwrap();
    spcd.write(
        "a.spc",
        &format!(
            "connection \"c\" {{\n  plugin = \"csv\"\n  paths  = [\"{}/*.csv\"]\n}}\n",
            dir.display()
        ),
    );
    spcd.start();
    until(&hub.url, &["c ready"]).await;
    until_health(&hub.url, "c", WELL).await;
    std::fs::rename(&dir, dir.with_extension("gone")).unwrap();
    until_health(&hub.url, "c", "NOT reachable AND attempts > 4").await;
    let failure = health(&hub.url, "c", "last_failure").await;
    assert!(failure.contains("data"), "{failure}");
    std::fs::rename(dir.with_extension("gone"), &dir).unwrap();
    until_health(&hub.url, "c", WELL).await;
    until(&hub.url, &["c ready"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_touch_nothing_but_the_row() {
    let hub = shared().database().await;
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let mut spcd = Spcd::new(&hub.url);
    let labelled = |name: &str, team: &str| {
        let labels = format!("  labels {{\n    team = \"{team}\"\n  }}\n");
        crate::support::hub::postgres_with(name, &source, &labels)
    };
    spcd.write("a.spc", &labelled("a", "data"));
    spcd.write("b.spc", &postgres("b", &source));
    spcd.start();
    until(&hub.url, &["a ready", "b ready"]).await;
    let label = "SELECT labels->>'team' FROM spcd.connection_state WHERE connection_name = 'a'";
    assert_eq!(value(&hub.url, label).await, "data");
    let made = "SELECT (SELECT count(*) FROM spcd.connection_event) || ' ' || 'a.t'::regclass::oid
                       || ' ' || (SELECT xmin FROM pg_foreign_server WHERE srvname = 'a')";
    let before = value(&hub.url, made).await;
    let hostile = "it's; \\\"DROP\\\" $$ 日本";
    spcd.write("a.spc", &labelled("a", hostile));
    let hostile = "it's; \"DROP\" $$ 日本";
    eventually("the label is another one", DEADLINE, || async {
        (value(&hub.url, label).await == hostile).then_some(())
    })
    .await;
    assert_eq!(value(&hub.url, made).await, before);
    until(&hub.url, &["a ready", "b ready"]).await;

    let shown = spcd.spcd(&["status", "--label", &format!("team={hostile}")]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.stdout.contains("\na "), "{}", shown.stdout);
    assert!(!shown.stdout.contains("\nb "), "{}", shown.stdout);
    let json = spcd.spcd(&["status", "--json", "--label", "team=none"]);
    assert_eq!(json.stdout.trim(), "[]");
    let json = spcd.spcd(&["status", "--json", "a"]);
    let rows: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(rows[0]["labels"]["team"], hostile);
    let check = spcd.spcd(&["check", "--json"]);
    let all: serde_json::Value = serde_json::from_str(&check.stdout).unwrap();
    assert_eq!(all["connections"][0]["config"]["labels"]["team"], hostile);
    assert_eq!(spcd.spcd(&["status", "--label", "team"]).code, 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_of_one_that_is_being_removed_costs_the_others_nothing() {
    let (hub, source) = (shared().database().await, shared().database().await);
    let mut spcd = watching(&hub.url);
    let both = postgres("stays", &source) + &postgres("goes", &source);
    spcd.write("a.spc", &both);
    spcd.start();
    for name in ["stays", "goes"] {
        until_health(&hub.url, name, WELL).await;
    }
    spcd.stop();

    let remover = connect(&hub.url).await.unwrap();
    remover
        .batch_execute("BEGIN; DELETE FROM spcd.connection_state WHERE connection_name = 'goes'")
        .await
        .unwrap();
    let found = |name: &str| {
        format!(
            "{{\"name\":\"{name}\",\"reachable\":false,\"attempts\":7,\"breaker\":\"closed\",\
             \"checked\":0,\"failure\":\"gone\",\"next\":5,\"health\":[\"lost\"]}}"
        )
    };
    let publish = format!(
        "SET statement_timeout = '30s';
         SELECT spcd.publish_health(epoch, '[{}, {}]') FROM spcd.daemon",
        found("goes"),
        found("stays")
    );
    let client = connect(&hub.url).await.unwrap();
    let published = client.batch_execute(&publish).await;
    published.expect("it neither waits nor fails");
    remover.batch_execute("COMMIT").await.unwrap();
    assert_eq!(health(&hub.url, "stays", "attempts").await, "7");
    assert_eq!(told(&hub.url, "stays").await, "lost ready ready");
    assert_eq!(health(&hub.url, "goes", "attempts").await, "");
}
