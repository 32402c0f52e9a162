//! What a start leaves as it was, and what it writes of that.

use spcd_protocol::Status;

use crate::support::dump::restore;
use crate::support::hub::{made_by, postgres, serving, until, until_error};
use crate::support::{DEADLINE, Spcd, connect, eventually, eventually_now, query, shared, value};

const STATES: &str =
    "SELECT connection_name, status, error, time_changed, last_ready, warnings, generation
                      FROM spcd.connection_state ORDER BY 1";

/// Waits until a daemon has led so many times.
async fn until_led(hub: &str, times: usize) {
    let sql = "SELECT count(*) FROM spcd.connection_event WHERE status = 'resync'";
    eventually("a daemon leads", DEADLINE, || async {
        (value(hub, sql).await == times.to_string()).then_some(())
    })
    .await;
}

/// Every event is a transition that the contract names, or that of a source's health.
async fn events_follow_the_table(hub: &str) {
    let sql = "SELECT connection_name, previous, status, error FROM spcd.connection_event
               WHERE health IS NULL AND status <> 'resync' ORDER BY id";
    for row in query(hub, sql).await {
        let previous: Option<Status> = row[1].parse().ok();
        let is_permitted = match (previous, row[2].as_str()) {
            (Some(Status::Deleting), "deleted") => true,
            (_, "deleted") => false,
            (None, status) => Status::INITIAL.contains(&status.parse().unwrap()),
            (Some(previous), status) => previous.may_become(status.parse().unwrap()),
        };
        assert!(is_permitted, "{row:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_what_nothing_changed() {
    let source = made_by("CREATE TABLE t (id integer)").await;
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let group = "connection \"g\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  connections = [\"a\", \"b\"]\n}\n";
    spcd.write(
        "all.spc",
        &(postgres("a", &source) + &postgres("b", &source) + group),
    );
    spcd.write(
        "off.spc",
        "connection \"off\" {\n  plugin = \"postgres\"\n  import_schema = \"disabled\"\n}\n",
    );
    spcd.write(
        "broken.spc",
        "connection \"broken\" {\n  plugin = \"postgres\"\n  frob = 1\n}\n",
    );
    spcd.write("away.spc", "connection \"away\" {\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  port = 1\n  user = \"x\"\n  dbname = \"x\"\n}\n");
    let all = [
        "a ready",
        "away error",
        "b ready",
        "broken error",
        "g ready",
        "off disabled",
    ];
    spcd.start();
    until(&hub.url, &all).await;
    spcd.stop();
    let before = query(&hub.url, STATES).await;
    let last = value(&hub.url, "SELECT max(id) FROM spcd.connection_event").await;

    let listener = connect(&hub.url).await.unwrap();
    listener
        .batch_execute("LISTEN connection_state")
        .await
        .unwrap();
    for starts in 2..=3 {
        spcd.start();
        until_led(&hub.url, starts).await;
        until(&hub.url, &all).await;
        spcd.stop();
    }
    assert_eq!(query(&hub.url, STATES).await, before);
    let events = format!(
        "SELECT connection_name IS NULL, status FROM spcd.connection_event WHERE id > {last} ORDER BY id"
    );
    assert_eq!(
        query(&hub.url, &events).await,
        [["t", "resync"], ["t", "resync"]]
    );
    let kept = "SELECT count(*) FROM spcd.before_start";
    assert_eq!(value(&hub.url, kept).await, "0");

    // What did change meanwhile is told, from pending on.
    query(&source.url, "ALTER TABLE t ADD more text").await;
    spcd.write(
        "broken.spc",
        "connection \"broken\" {\n  plugin = \"postgres\"\n  frob = 2\n  grob = 3\n}\n",
    );
    spcd.remove("all.spc");
    spcd.write(
        "a.spc",
        &postgres("a", &source).replace("}\n", "  fetch_size = 7\n}\n"),
    );
    spcd.start();
    until_led(&hub.url, 4).await;
    until(
        &hub.url,
        &["a ready", "away error", "broken error", "off disabled"],
    )
    .await;
    let sql = format!(
        "SELECT connection_name, previous, status FROM spcd.connection_event
         WHERE id > {last} AND connection_name IN ('a', 'b') ORDER BY connection_name, id"
    );
    assert_eq!(
        query(&hub.url, &sql).await,
        [
            ["a", "pending", "updating"],
            ["a", "updating", "ready"],
            ["b", "pending", "deleting"],
            ["b", "deleting", "deleted"]
        ]
    );
    let times = "SELECT a.time_changed > o.time_changed FROM spcd.connection_state a, spcd.connection_state o
                 WHERE a.connection_name = 'a' AND o.connection_name = 'off'";
    assert_eq!(value(&hub.url, times).await, "t");
    spcd.stop();
    events_follow_the_table(&hub.url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_of_a_lock_is_named_in_the_warnings_and_in_no_event() {
    let source = made_by("CREATE TABLE t (id integer)").await;
    let hub = shared().database().await;
    let mut spcd = serving(&hub, &source, &["a", "b"]).await;
    let reader = connect(&hub.url).await.unwrap();
    let lock = "SET application_name = 'the reader'; BEGIN; EXPLAIN SELECT FROM a.t";
    reader.batch_execute(lock).await.unwrap();
    query(&source.url, "ALTER TABLE t ADD more text").await;
    query(&hub.url, "SELECT spcd.refresh()").await;
    let warnings = "SELECT warnings::text FROM spcd.connection_state WHERE connection_name = 'a'";
    let told = eventually("a warning says who is in the way", DEADLINE, || async {
        let told = value(&hub.url, warnings).await;
        (told != "{}").then_some(told)
    })
    .await;
    assert!(told.contains("(the reader) holds a lock on a.t"), "{told}");
    reader.batch_execute("COMMIT").await.unwrap();
    eventually("the warning is gone", DEADLINE, || async {
        (value(&hub.url, warnings).await == "{}").then_some(())
    })
    .await;
    until(&hub.url, &["a ready", "b ready"]).await;
    assert_eq!(value(&hub.url, "SELECT count(more) FROM a.t").await, "0");
    // A connection that goes, and one that breaks and is mended.
    spcd.remove("b.spc");
    spcd.write(
        "a.spc",
        "connection \"a\" {\n  plugin = \"postgres\"\n  frob = 1\n}\n",
    );
    until_error(&hub.url, "a", "frob").await;
    spcd.write("a.spc", &postgres("a", &source));
    until(&hub.url, &["a ready"]).await;
    spcd.stop();
    events_follow_the_table(&hub.url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_write_keeps_its_leader_and_its_states() {
    let source = made_by("CREATE TABLE t (id integer)").await;
    let hub = shared().database().await;
    let mut spcd = serving(&hub, &source, &["a", "b"]).await;
    let before = query(&hub.url, STATES).await;
    // As on a full disk: what fits into the pages there are is written, and no more.
    query(
        &hub.url,
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF TG_OP = 'INSERT' OR NEW.status <> 'pending' THEN
                 RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full';
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON spcd.connection_state
         FOR EACH ROW EXECUTE FUNCTION full_disk()",
    )
    .await;
    spcd.write("c.spc", &postgres("c", &source));
    let refused = || spcd.log().matches("the server cannot write now").count();
    eventually("it was tried again", DEADLINE, || async {
        (refused() >= 2).then_some(())
    })
    .await;
    assert_eq!(query(&hub.url, STATES).await, before);
    query(&hub.url, "DROP TRIGGER full_disk ON spcd.connection_state").await;
    until(&hub.url, &["a ready", "b ready", "c ready"]).await;
    // Nor is it an error of a connection whose work does not find the room.
    query(
        &hub.url,
        "CREATE OR REPLACE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF NEW.status = 'ready' THEN
                 RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full';
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON spcd.connection_state
         FOR EACH ROW EXECUTE FUNCTION full_disk()",
    )
    .await;
    spcd.write("d.spc", &postgres("d", &source));
    spcd.logged("waits for a retry");
    query(&hub.url, "DROP TRIGGER full_disk ON spcd.connection_state").await;
    until(&hub.url, &["a ready", "b ready", "c ready", "d ready"]).await;
    let errors = "SELECT count(*) FROM spcd.connection_event WHERE status = 'error'";
    assert_eq!(value(&hub.url, errors).await, "0");
    let led = "SELECT count(*) FROM spcd.connection_event WHERE status = 'resync'";
    assert_eq!(value(&hub.url, led).await, "1");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_says_so_already_has_no_event() {
    let source = made_by("CREATE TABLE t (id integer)").await;
    let hub = shared().database().await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    spcd.stop();
    let publish = async |route: &str, error: &str| {
        let change = format!(r#"[{{"name": "a", "route": {route}, "error": {error}}}]"#);
        let publish = format!("SELECT spcd.publish(nextval('spcd.generation'), '{change}')");
        query(&hub.url, &publish).await;
    };
    let last = value(&hub.url, "SELECT max(id) FROM spcd.connection_event").await;
    let before = query(&hub.url, STATES).await;
    publish(r#"["ready"]"#, "null").await;
    let time = |states: &[Vec<String>]| states[0][3].clone();
    assert_eq!(time(&query(&hub.url, STATES).await), time(&before));
    publish(r#"["updating"]"#, "null").await;
    publish(r#"["updating"]"#, "null").await;
    publish(r#"["error"]"#, "\"one\"").await;
    publish(r#"["error"]"#, "\"one\"").await;
    publish(r#"["error"]"#, "\"two\"").await;
    let events = format!(
        "SELECT previous, status, coalesce(error, '') FROM spcd.connection_event WHERE id > {last} ORDER BY id"
    );
    assert_eq!(
        query(&hub.url, &events).await,
        [
            ["ready", "updating", ""],
            ["updating", "error", "one"],
            ["error", "error", "two"]
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_what_became_ready_or_broke_and_where_it_is_written() {
    let source = made_by("CREATE TABLE t (id integer)").await;
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_LOG_FORMAT", "json");
    spcd.write("a.spc", &format!("# first\n{}", postgres("a", &source)));
    spcd.write(
        "b.spc",
        "connection \"b\" {\n  plugin = \"postgres\"\n  frob = 1\n}\n",
    );
    spcd.start();
    until(&hub.url, &["a ready", "b error"]).await;
    let place =
        |name: &str, line: usize| format!("{}/{name}.spc:{line}", spcd.config_dir().display());
    // The table says so a moment before the log does.
    let line = |parts: &[&str]| {
        eventually_now(&format!("the log has {parts:?}"), || {
            let log = spcd.log();
            let found = (log.lines()).find(|line| parts.iter().all(|part| line.contains(part)));
            found.map(str::to_owned)
        })
    };
    let error = line(&[
        "\"in error\"",
        "\"connection\":\"b\"",
        &place("b", 1),
        "frob",
    ]);
    assert!(error.contains("WARN"), "{error}");
    let ready = line(&["\"ready\"", "\"connection\":\"a\"", &place("a", 2)]);
    assert!(ready.contains("INFO"), "{ready}");
    let summary = "\"ready\",\"connections\":1,\"in_error\":1,\"under_way\":0";
    spcd.logged(summary);

    // A start finds both as they were: they are counted, and not logged one by one.
    spcd.stop();
    spcd.start();
    eventually("it is counted once each start", DEADLINE, || async {
        (spcd.log().matches(summary).count() == 2).then_some(())
    })
    .await;
    let log = spcd.log();
    let of_a = log
        .lines()
        .filter(|line| line.contains("\"connection\":\"a\""));
    assert_eq!(of_a.filter(|line| line.contains("\"ready\"")).count(), 1);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_what_is_repaired_and_what_fails_while_a_daemon_runs() {
    let source = made_by("CREATE TABLE t (id integer)").await;
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_LOG_FORMAT", "json");
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    spcd.logged("\"ready\",\"connections\":1");
    let lines = |parts: &[&str]| {
        let log = spcd.log();
        let found = (log.lines()).filter(|line| parts.iter().all(|part| line.contains(part)));
        found.map(str::to_owned).collect::<Vec<_>>()
    };
    // A block that is repaired is ready again without any work.
    spcd.write(
        "a.spc",
        "connection \"a\" {\n  plugin = \"postgres\"\n  frob = 1\n}\n",
    );
    until(&hub.url, &["a error"]).await;
    spcd.write("a.spc", &postgres("a", &source));
    until(&hub.url, &["a ready"]).await;
    eventually_now("it is logged that a is ready again", || {
        (lines(&["INFO", "\"ready\"", "\"connection\":\"a\"", "a.spc:1"]).len() == 2).then_some(())
    });
    let gone = postgres("c", &source).replace(&source.name, "no_such_database");
    spcd.write("c.spc", &gone);
    eventually_now("it is logged that c is in error", || {
        let parts = [
            "WARN",
            "\"in error\"",
            "\"connection\":\"c\"",
            "c.spc:1",
            "no_such_database",
        ];
        (!lines(&parts).is_empty()).then_some(())
    });
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_from_a_dump_goes_on_with_what_was_restored() {
    let source = made_by("CREATE TABLE t (id integer); INSERT INTO t VALUES (1)").await;
    let (hub, restored) = (shared().database().await, shared().database().await);
    let mut spcd = Spcd::new(&hub.url);
    let group = "connection \"g\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  connections = [\"*\"]\n}\n";
    spcd.write("a.spc", &postgres("a", &source));
    spcd.write("b.spc", &(postgres("b", &source) + group));
    spcd.start();
    until(&hub.url, &["a ready", "b ready", "g ready"]).await;
    query(
        &hub.url,
        "CREATE SCHEMA mine; CREATE VIEW mine.of_a AS SELECT id FROM a.t; CREATE TABLE a.own (n integer)",
    )
    .await;
    spcd.stop();
    restore(&hub, &restored);
    let relations = "SELECT c.oid, c.oid::regclass::text FROM pg_class c
                     WHERE c.relnamespace::regnamespace::text IN ('a', 'b', 'g', 'mine') ORDER BY 1";
    let before = query(&restored.url, relations).await;
    assert_eq!(before.len(), 5, "{before:?}");

    let mut again = Spcd::new(&restored.url);
    again.env("SPCD_CONFIG", &spcd.config_dir().display().to_string());
    again.start();
    until(&restored.url, &["a ready", "b ready", "g ready"]).await;
    // Asked, too, it finds nothing to change.
    assert_eq!(again.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(query(&restored.url, relations).await, before);
    assert_eq!(value(&restored.url, "SELECT id FROM mine.of_a").await, "1");
    // What it made it drops; what it did not make stays.
    spcd.remove("b.spc");
    until(&restored.url, &["a ready"]).await;
    let gone = "SELECT to_regnamespace('b') IS NULL AND to_regnamespace('g') IS NULL
                AND (SELECT count(*) FROM pg_foreign_server WHERE srvname = 'b') = 0";
    assert_eq!(value(&restored.url, gone).await, "t");
    spcd.write("a.spc", &postgres("c", &source));
    until_error(&restored.url, "a", "mine.of_a").await;
    query(&restored.url, "DROP VIEW mine.of_a; DROP TABLE a.own").await;
    until(&restored.url, &["c ready"]).await;
    again.stop();
}
