//! The main job: a file is saved, and its tables are there.

use crate::support::hub::{
    columns, made_by, postgres, postgres_with, serving, until, until_commented,
};
use crate::support::{DEADLINE, Database, Spcd, eventually, query, role, shared, try_query, value};

const SHOP: &str =
    "CREATE TABLE orders (id integer PRIMARY KEY, total numeric(10,2), note varchar(40));
                    CREATE TABLE people (name text NOT NULL, tags text[]);
                    INSERT INTO orders VALUES (1, 9.5, 'first')";

async fn source() -> Database {
    made_by(SHOP).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_file_becomes_tables_that_can_be_read() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    spcd.start();
    until(&hub.url, &[]).await;
    let block = postgres("sales", &source);
    spcd.write("sales.spc", &block);
    until(&hub.url, &["sales ready"]).await;
    assert_eq!(
        columns(&hub.url, "sales.orders").await,
        [
            "id integer",
            "total numeric(10,2)",
            "note character varying(40)"
        ]
    );
    assert_eq!(
        value(&hub.url, "SELECT total FROM sales.orders").await,
        "9.50"
    );
    let row = "SELECT plugin, plugin_instance, type, import_schema, schema_mode, table_count,
                      start_line, end_line, last_ready IS NOT NULL FROM spcd.connection_state";
    let end = block.lines().count().to_string();
    assert_eq!(
        query(&hub.url, row).await,
        [[
            "postgres", "postgres", "plugin", "enabled", "dynamic", "2", "1", &end, "t"
        ]]
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn options_credentials_and_schema_change_in_place() {
    let (hub, source) = (shared().database().await, source().await);
    query(
        &source.url,
        "CREATE SCHEMA other; CREATE TABLE other.things (x integer)",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("sales", &source));
    spcd.start();
    until(&hub.url, &["sales ready"]).await;
    let oid = value(&hub.url, "SELECT 'sales.orders'::regclass::oid").await;

    role::change_password(&source, Some("new")).await;
    spcd.write(
        "a.spc",
        &postgres_with(
            "sales",
            &source,
            "  fetch_size = 77\n  password = \"new\"\n",
        ),
    );
    let changed = "SELECT srvoptions::text FROM pg_foreign_server WHERE srvoptions::text LIKE '%fetch_size=77%'";
    eventually("the option is there", DEADLINE, || async {
        try_query(&hub.url, changed).await.ok()?.first().map(|_| ())
    })
    .await;
    until(&hub.url, &["sales ready"]).await;
    let mapping = "SELECT umoptions::text FROM pg_user_mappings WHERE srvname = 'sales'";
    assert!(value(&hub.url, mapping).await.contains("password=new"));
    assert_eq!(
        value(&hub.url, "SELECT 'sales.orders'::regclass::oid").await,
        oid
    );

    role::change_password(&source, None).await;
    let schema = "  import {\n    schema = \"other\"\n  }\n";
    spcd.write("a.spc", &postgres_with("sales", &source, schema));
    eventually("the other schema's table", DEADLINE, || async {
        try_query(&hub.url, "SELECT x FROM sales.things").await.ok()
    })
    .await;
    until(&hub.url, &["sales ready"]).await;
    assert!(
        try_query(&hub.url, "SELECT 1 FROM sales.orders")
            .await
            .is_err()
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_block_takes_its_schema_and_a_disabled_one_keeps_its_row() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = serving(&hub, &source, &["a", "b", "c"]).await;
    spcd.remove("a.spc");
    spcd.write(
        "b.spc",
        &postgres_with("b", &source, "  import_schema = \"disabled\"\n"),
    );
    until(&hub.url, &["b disabled", "c ready"]).await;
    let left = "SELECT nspname FROM pg_namespace WHERE nspname IN ('a', 'b', 'c')
                UNION ALL SELECT srvname FROM pg_foreign_server";
    assert_eq!(query(&hub.url, left).await, [["c"], ["c"]]);

    spcd.write("b.spc", &postgres("b", &source));
    until(&hub.url, &["b ready", "c ready"]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_block_keeps_its_tables_and_a_repaired_one_is_ready_again() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    let good = postgres("a", &source);
    spcd.write("a.spc", &format!("{good}{}", postgres("b", &source)));
    spcd.start();
    until(&hub.url, &["a ready", "b ready"]).await;
    let broken = good.replace("\"127.0.0.1\"", "127.0.0.1");
    spcd.write("a.spc", &format!("{broken}{}", postgres("b", &source)));
    until(&hub.url, &["a error", "b ready"]).await;
    let error = value(
        &hub.url,
        "SELECT error FROM spcd.connection_state WHERE connection_name = 'a'",
    )
    .await;
    assert!(error.contains("a.spc:3:"), "{error}");
    assert_eq!(value(&hub.url, "SELECT count(*) FROM a.orders").await, "1");
    assert_ne!(
        value(&hub.url, "SELECT count(*) FROM spcd.config_diagnostic").await,
        "0"
    );
    spcd.write("a.spc", &format!("{good}{}", postgres("b", &source)));
    until(&hub.url, &["a ready", "b ready"]).await;
    eventually("the diagnostics are gone", DEADLINE, || async {
        let rows = query(&hub.url, "SELECT 1 FROM spcd.config_diagnostic").await;
        rows.is_empty().then_some(())
    })
    .await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_survives_what_happens_to_its_table() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("sales", &source));
    spcd.start();
    until(&hub.url, &["sales ready"]).await;
    query(&hub.url, "CREATE VIEW v AS SELECT id, note FROM sales.orders; CREATE VIEW w AS SELECT * FROM sales.people").await;
    let oid = value(&hub.url, "SELECT 'v'::regclass::oid").await;

    query(
        &source.url,
        "ALTER TABLE orders ADD COLUMN extra date; ALTER TABLE people DROP COLUMN tags",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "sales", "--wait"]).code, 0);
    assert!(
        columns(&hub.url, "sales.orders")
            .await
            .contains(&"extra date".to_owned())
    );
    let warnings = value(
        &hub.url,
        "SELECT array_to_string(warnings, ' ') FROM spcd.connection_state",
    )
    .await;
    assert!(
        warnings.contains("column tags") && warnings.contains("view public.w"),
        "{warnings}"
    );

    spcd.stop();
    spcd.start();
    until(&hub.url, &["sales ready"]).await;
    role::change_password(&source, Some("changed")).await;
    spcd.write(
        "a.spc",
        &postgres_with("sales", &source, "  password = \"changed\"\n"),
    );
    assert_eq!(spcd.spcd(&["wait", "sales"]).code, 0);
    assert_eq!(value(&hub.url, "SELECT note FROM v").await, "first");
    assert_eq!(value(&hub.url, "SELECT 'v'::regclass::oid").await, oid);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_found_and_mended_at_the_next_look() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = serving(&hub, &source, &["a", "b"]).await;
    let before = value(&hub.url, "SELECT max(id) FROM spcd.connection_event").await;
    query(
        &hub.url,
        "ALTER FOREIGN TABLE a.people DROP COLUMN tags;
         ALTER FOREIGN TABLE a.orders ALTER COLUMN note TYPE text;
         ALTER SERVER a OPTIONS (SET port '1');
         GRANT SELECT ON b.orders TO PUBLIC",
    )
    .await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    let events = format!(
        "SELECT connection_name, status FROM spcd.connection_event WHERE id > {before} ORDER BY id"
    );
    assert_eq!(
        query(&hub.url, &events).await,
        [["a", "updating"], ["a", "ready"]]
    );
    assert_eq!(
        columns(&hub.url, "a.orders").await,
        [
            "id integer",
            "total numeric(10,2)",
            "note character varying(40)"
        ]
    );
    assert_eq!(value(&hub.url, "SELECT count(*) FROM a.orders").await, "1");
    // A GRANT of people's is none of our business, and stays.
    let granted = "SELECT has_table_privilege('public', 'b.orders', 'SELECT')";
    assert_eq!(value(&hub.url, granted).await, "t");
    query(&hub.url, "DROP SCHEMA a CASCADE; DROP SERVER b CASCADE").await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(value(&hub.url, "SELECT count(*) FROM a.orders").await, "1");
    assert_eq!(value(&hub.url, "SELECT count(*) FROM b.orders").await, "1");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_differs_nothing_is_written() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = serving(&hub, &source, &["a"]).await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    until_commented(&hub.url, "a").await;
    // All but the heartbeat and the request itself.
    let versions = "SELECT sum(xmin::text::bigint) || ' ' || count(*) FROM (
                        SELECT xmin FROM spcd.connection_state UNION ALL SELECT xmin FROM spcd.applied
                        UNION ALL SELECT xmin FROM spcd.connection_event
                        UNION ALL SELECT xmin FROM spcd.config_diagnostic
                        UNION ALL SELECT xmin FROM pg_foreign_table UNION ALL SELECT xmin FROM pg_foreign_server) x";
    let generation = "SELECT last_value FROM spcd.generation";
    let before = (
        value(&hub.url, versions).await,
        value(&hub.url, generation).await,
    );
    spcd.write(
        "a.spc",
        &format!("{}\n# a comment\n", postgres("a", &source)),
    );
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    assert_eq!(
        (
            value(&hub.url, versions).await,
            value(&hub.url, generation).await
        ),
        before
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_client_is_woken_with_what_it_waited_for() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = serving(&hub, &source, &["a"]).await;

    let url = hub.url.clone();
    let waiter = tokio::spawn(async move {
        // The row must be there before it can be waited for: unknown is an answer of its own.
        eventually("b is known", DEADLINE, || async {
            query(
                &url,
                "SELECT 1 FROM spcd.connection_state WHERE connection_name = 'b'",
            )
            .await
            .pop()
        })
        .await;
        query(
            &url,
            "SELECT connection_name, status FROM spcd.wait_until_ready('{b}')",
        )
        .await
    });
    spcd.write("b.spc", &postgres("b", &source));
    assert_eq!(waiter.await.unwrap(), [["b", "ready"]]);
    assert_eq!(value(&hub.url, "SELECT count(*) FROM b.orders").await, "1");

    let code = async |sql: &str| {
        let error = try_query(&hub.url, sql).await.unwrap_err();
        error.code().map(|code| code.code().to_owned())
    };
    assert_eq!(
        code("SELECT spcd.wait_until_ready('{unknown}')")
            .await
            .as_deref(),
        Some("SP003")
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_answer_with_their_exit_codes() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    let plan = spcd.spcd(&["plan"]);
    assert_eq!(plan.code, 2, "{}", plan.stderr);
    assert!(
        plan.stdout.contains("+ connection \"a\""),
        "{}",
        plan.stdout
    );
    assert_eq!(
        value(&hub.url, "SELECT to_regnamespace('spcd') IS NULL").await,
        "t"
    );
    assert_eq!(spcd.spcd(&["status"]).code, 1);

    let apply = spcd.spcd(&["apply"]);
    assert_eq!(apply.code, 0, "{}", apply.stderr);
    assert_eq!(apply.stdout, "1 ready, 0 in error, 0 disabled\n");
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    let status = spcd.spcd(&["status", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(rows[0]["status"], "ready");
    assert_eq!(spcd.spcd(&["status", "unknown"]).code, 1);
    // No daemon answers.
    let wait = spcd.spcd(&["wait", "--timeout", "50ms"]);
    assert_eq!(wait.code, 3, "{}", wait.stderr);
    assert!(wait.stderr.contains("spcd run"), "{}", wait.stderr);

    spcd.start();
    until(&hub.url, &["a ready"]).await;
    assert_eq!(spcd.spcd(&["wait", "unknown"]).code, 1);
    assert_eq!(spcd.spcd(&["refresh", "unknown", "--wait"]).code, 1);
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    assert_eq!(spcd.spcd(&["apply", "--force"]).code, 0);
    spcd.write(
        "b.spc",
        "connection \"b\" {\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  port = 1\n}\n",
    );
    assert_eq!(spcd.spcd(&["wait", "a"]).code, 0);
    assert_eq!(spcd.spcd(&["wait", "b"]).code, 1);
    assert_eq!(spcd.spcd(&["apply"]).code, 1);
    assert_eq!(spcd.spcd(&["frobnicate"]).code, 64);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_writes_and_files_that_are_half_written_do_not_flash_errors() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = serving(&hub, &source, &["a"]).await;
    let path = spcd.config_dir().join("a.spc");
    for n in 0..50 {
        let whole = postgres_with("a", &source, &format!("  fetch_size = {}\n", 1000 + n));
        // As an editor does it that writes in two steps: the file is there, and broken.
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        std::fs::write(&path, &whole).unwrap();
    }
    let last =
        "SELECT 1 FROM pg_foreign_server WHERE srvname = 'a' AND srvoptions @> '{fetch_size=1049}'";
    eventually("the last write counts", DEADLINE, || async {
        query(&hub.url, last).await.pop()
    })
    .await;
    until(&hub.url, &["a ready"]).await;
    let errors = "SELECT count(*) FROM spcd.connection_event WHERE status = 'error'";
    assert_eq!(value(&hub.url, errors).await, "0");
    spcd.stop();
}
