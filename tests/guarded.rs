//! What users put on tables and views outlives a refresh; what the server put there stops none.

use crate::support::hub::{STATIC, columns, postgres, serving, until};
use crate::support::{Database, Spcd, query, shared, value};

async fn warnings(hub: &Database, name: &str) -> String {
    let sql = format!(
        "SELECT array_to_string(warnings, '; ') FROM spcd.connection_state
         WHERE connection_name = '{name}'"
    );
    value(&hub.url, &sql).await
}

async fn relations(hub: &Database, schema: &str) -> Vec<String> {
    let sql = format!(
        "SELECT relname FROM pg_class WHERE relnamespace = '{schema}'::regnamespace ORDER BY 1"
    );
    query(&hub.url, &sql).await.concat()
}

fn refresh(spcd: &Spcd, name: &str) {
    let refresh = spcd.spcd(&["refresh", name, "--wait"]);
    assert_eq!(refresh.code, 0, "{}", refresh.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_by_default_privileges_stop_no_change() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE gone (id integer); CREATE TABLE kept (id integer)",
    )
    .await;
    query(
        &hub.url,
        "CREATE ROLE default_reader; CREATE ROLE special_reader;
         ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO default_reader",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    let data = spcd.dir().join("f.csv");
    std::fs::write(&data, "a,b\n1,x\n").unwrap();
    let file = "connection \"f\" {\n  plugin = \"csv\"\n  paths  = [\"../f.csv\"]\n}\n";
    spcd.write("f.spc", file);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    until(&hub.url, &["a ready", "f ready"]).await;
    query(&hub.url, "GRANT SELECT ON a.kept TO special_reader").await;

    // A file's columns are found by position: the table is made again.
    std::fs::write(&data, "b,a\nx,1\n").unwrap();
    query(&source.url, "DROP TABLE gone; DROP TABLE kept").await;
    refresh(&spcd, "a");
    refresh(&spcd, "f");
    assert_eq!(relations(&hub, "a").await, ["kept"]);
    let warned = warnings(&hub, "a").await;
    assert!(warned.contains("a grant to special_reader"), "{warned}");
    assert!(!warned.contains("default_reader"), "{warned}");
    assert_eq!(warnings(&hub, "f").await, "");
    assert_eq!(columns(&hub.url, "f.f").await, ["b text", "a bigint"]);
    let may_read = "SELECT has_table_privilege('default_reader', 'f.f', 'SELECT')";
    assert_eq!(value(&hub.url, may_read).await, "t");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_settings_that_a_user_made_protect_a_column() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE t (id integer, counted text, plain text)",
    )
    .await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    // A retype makes the newest servers write settings of their own on each column.
    query(&source.url, "ALTER TABLE t ALTER COLUMN id TYPE bigint").await;
    refresh(&spcd, "a");
    query(
        &hub.url,
        "ALTER FOREIGN TABLE a.t ALTER COLUMN counted SET (n_distinct = 10)",
    )
    .await;
    query(&source.url, "ALTER TABLE t DROP COLUMN plain").await;
    refresh(&spcd, "a");
    assert_eq!(
        columns(&hub.url, "a.t").await,
        ["id bigint", "counted text"]
    );
    query(&source.url, "ALTER TABLE t DROP COLUMN counted").await;
    refresh(&spcd, "a");
    let warned = warnings(&hub, "a").await;
    assert!(
        warned.contains("the settings of column counted"),
        "{warned}"
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_and_comments_on_an_aggregators_views_are_kept() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE granted (id integer, a text); CREATE TABLE noted (id integer);
         CREATE TABLE plain (id integer);
         CREATE TABLE t (id integer, granted text, noted text, plain text)",
    )
    .await;
    query(&hub.url, "CREATE ROLE view_reader").await;
    let mut spcd = Spcd::new(&hub.url);
    let all = "connection \"all\" {\n  plugin = plugin.app\n  type = \"aggregator\"\n  \
               connections = [\"m*\"]\n}\n";
    let member =
        |name: &str| postgres(name, &source).replace("\"postgres\"\n  host", "plugin.app\n  host");
    spcd.write(
        "a.spc",
        &[STATIC, &member("m1"), &member("m2"), all].concat(),
    );
    spcd.start();
    until(&hub.url, &["all ready", "m1 ready", "m2 ready"]).await;
    query(
        &hub.url,
        r#"GRANT SELECT ON "all".granted TO view_reader;
           COMMENT ON VIEW "all".noted IS 'mine';
           GRANT SELECT (granted) ON "all".t TO view_reader;
           COMMENT ON COLUMN "all".t.noted IS 'mine, too'"#,
    )
    .await;
    query(
        &source.url,
        "DROP TABLE granted; DROP TABLE noted; DROP TABLE plain;
         ALTER TABLE t DROP COLUMN granted; ALTER TABLE t DROP COLUMN noted;
         ALTER TABLE t DROP COLUMN plain",
    )
    .await;
    refresh(&spcd, "all");
    assert_eq!(relations(&hub, "all").await, ["granted", "noted", "t"]);
    assert_eq!(
        columns(&hub.url, "\"all\".granted").await,
        ["connection_name text", "id integer", "a text"]
    );
    assert_eq!(
        columns(&hub.url, "\"all\".t").await,
        [
            "connection_name text",
            "id integer",
            "granted text",
            "noted text"
        ]
    );
    let there = r#"SELECT has_table_privilege('view_reader', '"all".granted', 'SELECT')
                      AND has_column_privilege('view_reader', '"all".t', 'granted', 'SELECT')
                      AND obj_description('"all".noted'::regclass) = 'mine'
                      AND col_description('"all".t'::regclass, 4) = 'mine, too'"#;
    assert_eq!(value(&hub.url, there).await, "t");
    let warned = warnings(&hub, "all").await;
    for part in [
        "table \"granted\" stays, empty, though no member has it any more: dropping it would break \
         or lose a grant to view_reader",
        "table \"noted\" stays, empty, though no member has it any more: dropping it would break or \
         lose its comment",
        "table \"t\" keeps column granted, which no member has any more: dropping it would break or \
         lose a grant on column granted",
        "table \"t\" keeps column noted, which no member has any more: dropping it would break or \
         lose the comment on column noted",
    ] {
        assert!(warned.contains(part), "{part}: {warned}");
    }
    spcd.stop();
}

/// The catalog goes on saying something about them: an empty list, a number for "not set".
#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_took_back_protects_nothing() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE granted (id integer); CREATE TABLE t (id integer, granted text, counted text, set text)",
    )
    .await;
    query(&hub.url, "CREATE ROLE former_reader").await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    query(
        &hub.url,
        "GRANT SELECT ON a.granted TO former_reader; REVOKE SELECT ON a.granted FROM former_reader;
         GRANT SELECT (granted) ON a.t TO former_reader; REVOKE SELECT (granted) ON a.t FROM former_reader;
         ALTER FOREIGN TABLE a.t ALTER COLUMN counted SET STATISTICS 100;
         ALTER FOREIGN TABLE a.t ALTER COLUMN counted SET STATISTICS -1;
         ALTER FOREIGN TABLE a.t ALTER COLUMN set SET (n_distinct = 10);
         ALTER FOREIGN TABLE a.t ALTER COLUMN set RESET (n_distinct)",
    )
    .await;
    let kept = "SELECT (SELECT relacl IS NOT NULL FROM pg_class WHERE oid = 'a.granted'::regclass)";
    assert_eq!(value(&hub.url, kept).await, "t");
    query(
        &source.url,
        "DROP TABLE granted; ALTER TABLE t DROP COLUMN granted, DROP COLUMN counted, DROP COLUMN set",
    )
    .await;
    refresh(&spcd, "a");
    assert_eq!(warnings(&hub, "a").await, "");
    assert_eq!(relations(&hub, "a").await, ["t"]);
    assert_eq!(columns(&hub.url, "a.t").await, ["id integer"]);
    spcd.stop();
}
