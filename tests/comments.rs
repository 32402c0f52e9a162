//! Comments of the source on the tables: set after `ready`, followed, and never in the way of what
//! people wrote themselves.

use crate::support::hub::{
    self, columns, guarded, made_by, postgres, serving, until, until_commented,
};
use crate::support::mariadb::{MariaDb, mysql, reader};
use crate::support::{Cluster, DEADLINE, Spcd, query, shared, try_query, value};
use spcd_core::sql::literal;
use tokio_postgres::error::SqlState;

/// Texts that try to break something.
const HOSTILE: [&str; 6] = [
    "it's \"so\"; DROP SCHEMA spcd CASCADE; --",
    "back\\slash \\' E'\\n' $$ %I %L %s",
    "two\nlines\tand\u{1}\u{7f} \u{202e}ä€😀",
    "'",
    " ",
    "{\"a\": [null]}",
];

/// Every comment in a schema, as `table.column text`.
async fn comments(hub: &str, schema: &str) -> Vec<String> {
    let sql = format!(
        "SELECT t FROM (SELECT concat_ws('.', c.relname, k.attname) || ' ' || d.description AS t
         FROM pg_description d
         JOIN pg_class c ON d.classoid = 'pg_class'::regclass AND c.oid = d.objoid
         LEFT JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = d.objsubid AND d.objsubid > 0
         WHERE c.relnamespace = {}::regnamespace ) c ORDER BY t COLLATE \"C\"",
        literal(schema)
    );
    query(hub, &sql).await.concat()
}

async fn until_comments(hub: &str, schema: &str, wanted: &[String]) {
    let mut last = Vec::new();
    let start = std::time::Instant::now();
    while last != wanted {
        assert!(
            start.elapsed() < DEADLINE,
            "wanted {wanted:?}, got {last:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        last = comments(hub, schema).await;
    }
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn comments_of_the_source_come_change_and_go_with_it() {
    let (hub, source) = (shared().database().await, shared().database().await);
    let mut sql = "CREATE TABLE plain (id integer);
        CREATE TABLE \"T \"\"x\"\" 'y'\" (\"C.d\" integer, \"ü\" text);
        COMMENT ON TABLE \"T \"\"x\"\" 'y'\" IS 'a table'; COMMENT ON COLUMN \"T \"\"x\"\" 'y'\".\"ü\" IS 'a column';
        CREATE VIEW seen AS SELECT 1 AS one; COMMENT ON VIEW seen IS 'a view';
        CREATE TABLE hostile (c0 integer, c1 integer, c2 integer, c3 integer, c4 integer, c5 integer);"
        .to_owned();
    let mut wanted = owned(&[
        "T \"x\" 'y' a table",
        "T \"x\" 'y'.ü a column",
        "seen a view",
    ]);
    for (n, text) in HOSTILE.iter().enumerate() {
        sql += &format!("COMMENT ON COLUMN hostile.c{n} IS {};", literal(text));
        wanted.push(format!("hostile.c{n} {text}"));
    }
    wanted.sort();
    query(&source.url, &sql).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("it's.spc", &postgres("it's", &source));
    spcd.start();
    until(&hub.url, &["it's ready"]).await;
    until_commented(&hub.url, "it's").await;
    assert_eq!(comments(&hub.url, "\"it's\"").await, wanted);
    let events = "SELECT count(*) FROM spcd.connection_event WHERE status = 'updating'";
    assert_eq!(value(&hub.url, events).await, "0");

    // Where nothing differs nothing is written: only the row of the comment that changed is new.
    let rows = "SELECT string_agg(d.objoid || '/' || d.objsubid || '/' || d.xmin, ' ' ORDER BY d.objoid, d.objsubid)
                FROM pg_description d JOIN pg_class c ON d.classoid = 'pg_class'::regclass AND c.oid = d.objoid
                WHERE c.relnamespace = '\"it''s\"'::regnamespace AND c.relname <> 'plain'";
    let before = value(&hub.url, rows).await;
    for text in ["one", "two", "three"] {
        query(
            &source.url,
            &format!("COMMENT ON COLUMN plain.id IS '{text}'"),
        )
        .await;
        assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
        let mut now = wanted.clone();
        now.push(format!("plain.id {text}"));
        now.sort();
        until_comments(&hub.url, "\"it's\"", &now).await;
    }
    assert_eq!(value(&hub.url, rows).await, before);
    assert_eq!(value(&hub.url, events).await, "0");

    // What goes at the source goes here, and what the source drops is not held up by it.
    query(
        &source.url,
        "COMMENT ON COLUMN plain.id IS NULL; DROP TABLE hostile; ALTER TABLE \"T \"\"x\"\" 'y'\" DROP COLUMN ü,
         ADD COLUMN fresh integer; COMMENT ON COLUMN \"T \"\"x\"\" 'y'\".fresh IS 'new'",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    let wanted = [
        "T \"x\" 'y' a table",
        "T \"x\" 'y'.fresh new",
        "seen a view",
    ];
    until_comments(&hub.url, "\"it's\"", &owned(&wanted)).await;
    until_commented(&hub.url, "it's").await;
    assert_eq!(
        value(&hub.url, "SELECT warnings FROM spcd.connection_state").await,
        "{}"
    );
    assert_eq!(
        query(
            &hub.url,
            "SELECT table_name, column_name FROM spcd.applied_comment ORDER BY 1, 2"
        )
        .await
        .concat(),
        ["T \"x\" 'y'", "", "T \"x\" 'y'", "fresh", "seen", ""]
    );
    spcd.remove("it's.spc");
    spcd.write("keep.spc", "");
    until(&hub.url, &[]).await;
    let left = "SELECT count(*) FROM spcd.applied_comment";
    assert_eq!(value(&hub.url, left).await, "0");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comment_that_a_person_wrote_is_theirs() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE t (a integer, b integer, c integer); COMMENT ON TABLE t IS 'of the source';
         COMMENT ON COLUMN t.a IS 'a of the source'; COMMENT ON COLUMN t.c IS 'c of the source'",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    // Without a daemon too: it ends when they are there.
    let done = spcd.spcd(&["apply"]);
    assert_eq!(done.code, 0, "{done:?}");
    let first = [
        "t of the source",
        "t.a a of the source",
        "t.c c of the source",
    ];
    assert_eq!(comments(&hub.url, "a").await, first);
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    query(
        &hub.url,
        "COMMENT ON FOREIGN TABLE a.t IS 'mine'; COMMENT ON COLUMN a.t.b IS 'b is mine';
         COMMENT ON COLUMN a.t.c IS NULL",
    )
    .await;
    // All of them change; only the ones that spcd wrote follow, and one that was taken away is mended.
    query(
        &source.url,
        "COMMENT ON TABLE t IS 'other'; COMMENT ON COLUMN t.a IS 'other a'; COMMENT ON COLUMN t.b IS 'other b'",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    let followed = [
        "t mine",
        "t.a other a",
        "t.b b is mine",
        "t.c c of the source",
    ];
    until_comments(&hub.url, "a", &owned(&followed)).await;

    // The person's stands in the way of a drop; spcd's own, which the table bears too, is not named.
    // A column that is missing for that reason does no harm.
    query(
        &source.url,
        "ALTER TABLE t DROP COLUMN a, DROP COLUMN b, ADD COLUMN d integer;
         COMMENT ON COLUMN t.d IS 'd of the source'; COMMENT ON COLUMN t.c IS 'other c'",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(
        value(&hub.url, "SELECT warnings[1] FROM spcd.connection_state").await,
        "table \"t\" stays as it was: dropping column b would break or lose the comment on column b"
    );
    let stayed = ["t mine", "t.b b is mine", "t.c other c"];
    until_comments(&hub.url, "a", &owned(&stayed)).await;
    // Given up, it no longer does; and the source's comes where there is none.
    query(
        &hub.url,
        "COMMENT ON COLUMN a.t.b IS NULL; COMMENT ON FOREIGN TABLE a.t IS NULL",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(columns(&hub.url, "a.t").await, ["c integer", "d integer"]);
    let last = ["t other", "t.c other c", "t.d d of the source"];
    until_comments(&hub.url, "a", &owned(&last)).await;

    // A daemon that was stopped before it came to it: the next one does, without a refresh.
    spcd.stop();
    query(
        &hub.url,
        "UPDATE spcd.connection_state SET comments_set = false; COMMENT ON FOREIGN TABLE a.t IS NULL;
         DELETE FROM spcd.applied_comment",
    )
    .await;
    query(&source.url, "COMMENT ON COLUMN t.c IS NULL").await;
    let quiet =
        postgres("a", &source).replacen('}', "  import {\n    refresh_interval = 0\n  }\n}", 1);
    spcd.write("a.spc", &quiet);
    spcd.start();
    until_commented(&hub.url, "a").await;
    // Whose the other is cannot be known any more.
    assert_eq!(comments(&hub.url, "a").await, last);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_bears_its_comments_is_not_written() {
    let hub = shared().database().await;
    let commented = "CREATE TABLE t (a integer); COMMENT ON TABLE t IS 'first'";
    let (one, two) = (made_by(commented).await, made_by(commented).await);
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &one));
    spcd.write("b.spc", &postgres("b", &two));
    spcd.start();
    until(&hub.url, &["a ready", "b ready"]).await;
    until_commented(&hub.url, "a").await;
    until_commented(&hub.url, "b").await;
    let row =
        "SELECT xmin || ' ' || generation FROM spcd.connection_state WHERE connection_name = 'a'";
    let before = value(&hub.url, row).await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    // One after the other is looked at.
    query(&two.url, "COMMENT ON TABLE t IS 'second'").await;
    assert_eq!(spcd.spcd(&["refresh", "b", "--wait"]).code, 0);
    until_comments(&hub.url, "b", &owned(&["t second"])).await;
    assert_eq!(value(&hub.url, row).await, before);
    spcd.stop();
}

/// What was found to differ may be out of date when it is written.
#[tokio::test(flavor = "multi_thread")]
async fn comments_are_put_only_where_they_still_belong() {
    let hub = shared().database().await;
    let source = made_by(
        "CREATE TABLE t (a integer, b integer); COMMENT ON TABLE t IS 't of the source';
         COMMENT ON COLUMN t.a IS 'a of the source'",
    )
    .await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    until_commented(&hub.url, "a").await;
    // A user's own table has the name of a new one of the source.
    query(
        &hub.url,
        "CREATE FOREIGN TABLE a.mine (x integer) SERVER a; COMMENT ON COLUMN a.t.a IS 'a is mine'",
    )
    .await;
    query(
        &source.url,
        "CREATE TABLE mine (x integer); COMMENT ON TABLE mine IS 'mine of the source';
         COMMENT ON COLUMN mine.x IS 'x of the source'; COMMENT ON TABLE t IS 't changed'",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    let mut wanted = owned(&["t t changed", "t.a a is mine"]);
    until_comments(&hub.url, "a", &wanted).await;
    until_commented(&hub.url, "a").await;
    spcd.stop();

    // The call that the daemon makes after the comparison; a user has commented on a column since.
    let seen = "SELECT generation FROM spcd.connection_state";
    let seen: i64 = value(&hub.url, seen).await.parse().unwrap();
    let set = |changes: &str, seen: i64| {
        let changes = literal(changes);
        format!("SELECT spcd.set_comments('a', {changes}, {seen}, true, {seen})")
    };
    let both = r#"[{"table": "t", "column": "a", "text": "late"}, {"table": "t", "column": "b", "text": "b"}]"#;
    query(&hub.url, &set(both, seen)).await;
    wanted.push("t.b b".to_owned());
    assert_eq!(comments(&hub.url, "a").await, wanted);
    // The tables were changed since: all of it is looked for anew.
    let other = both.replace("\"b\"}", "\"later\"}");
    let stale = try_query(&hub.url, &set(&other, seen - 1)).await;
    let code = stale.unwrap_err().code().cloned();
    assert_eq!(code, Some(SqlState::T_R_SERIALIZATION_FAILURE));
    assert_eq!(comments(&hub.url, "a").await, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_given_away_holds_up_no_other() {
    let source = guarded("hunter2hunter2").await;
    let admin = source.url("postgres");
    query(
        &admin,
        "CREATE TABLE u (id integer); GRANT SELECT ON u TO reader;
         COMMENT ON TABLE t IS 't of the source'; COMMENT ON TABLE u IS 'u of the source'",
    )
    .await;
    // One that keeps it without being a superuser, who may comment on everything.
    let cluster = Cluster::start(&[]);
    let hub = cluster.database().await;
    query(
        &hub.url,
        &format!(
            "CREATE ROLE keeper LOGIN; CREATE EXTENSION postgres_fdw;
             GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO keeper;
             GRANT CREATE, TEMPORARY ON DATABASE {} TO keeper",
            hub.name
        ),
    )
    .await;
    let mut spcd = Spcd::new(&cluster.url_as("keeper", &hub.name));
    let block = hub::reader("a", source.port(), "hunter2hunter2");
    spcd.write("a.spc", &block);
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let first = ["t t of the source", "u u of the source"];
    until_comments(&hub.url, "a", &owned(&first)).await;
    query(&hub.url, "ALTER FOREIGN TABLE a.t OWNER TO postgres").await;
    query(
        &admin,
        "COMMENT ON TABLE t IS 't changed'; COMMENT ON TABLE u IS 'u changed'; COMMENT ON COLUMN t.id IS 'new'",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    let then = ["t t of the source", "u u changed"];
    until_comments(&hub.url, "a", &owned(&then)).await;
    until_commented(&hub.url, "a").await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn comments_of_a_mariadb() {
    let source = MariaDb::start();
    source.run(
        "CREATE DATABASE shop; USE shop;
         CREATE TABLE customer (id int COMMENT 'it''s an \\\\ id', name varchar(40)) COMMENT 'who buys';
         CREATE TABLE plain (id int); CREATE VIEW seen AS SELECT 1 AS one;
         CREATE DATABASE other; CREATE TABLE other.customer (id int) COMMENT 'of another';
         CREATE USER reader@'127.0.0.1' IDENTIFIED BY 'hunter2hunter2';
         GRANT SELECT ON *.* TO reader@'127.0.0.1'",
    );
    let cluster = Cluster::start(&[]);
    let hub = cluster.database().await;
    let mut spcd = Spcd::new(&hub.url);
    let block = mysql("shop", source.port(), &reader("hunter2hunter2"));
    spcd.write("shop.spc", &block);
    spcd.start();
    until(&hub.url, &["shop ready"]).await;
    until_commented(&hub.url, "shop").await;
    let wanted = ["customer who buys", "customer.id it's an \\ id"];
    assert_eq!(comments(&hub.url, "shop").await, wanted);
    source.run("ALTER TABLE shop.plain COMMENT 'not so plain'");
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    let mut wanted = owned(&wanted);
    wanted.push("plain not so plain".to_owned());
    until_comments(&hub.url, "shop", &wanted).await;
    spcd.stop();
}
