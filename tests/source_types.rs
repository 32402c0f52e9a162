//! Columns of types that only the source has.

use crate::support::hub::{columns, postgres, serving, until};
use crate::support::{Cluster, Spcd, query, shared, value};

const TYPES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE DOMAIN \"Sma\"\"ll\" AS integer CHECK (value < 10);
    CREATE DOMAIN smaller AS \"Sma\"\"ll\"; CREATE DOMAIN code AS varchar(5);
    CREATE DOMAIN mood2 AS mood; CREATE TYPE pair AS (a integer, b text);";

/// The first column of an answer, on one line.
async fn list(hub: &str, sql: &str) -> String {
    query(hub, sql).await.concat().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn enums_and_domains_are_read_and_compared_without_their_types() {
    let (hub, source) = (shared().database().await, shared().database().await);
    let tables = "
        CREATE TABLE t (id integer PRIMARY KEY, how mood NOT NULL, hows mood[], small smaller,
                        code code, also mood2);
        INSERT INTO t VALUES (1, 'sad', '{sad,ok}', 3, 'abc', 'ok'), (2, 'happy', '{happy}', 4, 'z', 'sad')";
    query(&source.url, &format!("{TYPES}{tables}")).await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    let text = "spcd_type.text";
    assert_eq!(
        columns(&hub.url, "a.t").await,
        [
            "id integer",
            &format!("how {text}"),
            &format!("hows {text}[]"),
            "small integer",
            "code character varying(5)",
            &format!("also {text}")
        ]
    );
    let warned = "SELECT cardinality(warnings) FROM spcd.connection_state";
    assert_eq!(value(&hub.url, warned).await, "0");
    // A condition that would fail at the source, where a text does not compare with an enum.
    for (sql, answer) in [
        ("SELECT id FROM a.t WHERE how = 'sad'", "1"),
        ("SELECT id FROM a.t WHERE how || '' = 'sad'", "1"),
        ("SELECT id FROM a.t WHERE lower(how) LIKE 's%'", "1"),
        ("SELECT id FROM a.t WHERE how IN ('happy', 'x')", "2"),
        ("SELECT id FROM a.t WHERE 'happy' = ANY (hows)", "2"),
        ("SELECT id FROM a.t WHERE hows = '{sad,ok}'", "1"),
        ("SELECT id FROM a.t ORDER BY how", "2 1"),
        ("SELECT max(how) FROM a.t", "sad"),
        ("SELECT b.id FROM a.t JOIN a.t b ON a.t.how = b.also", "2"),
        ("SELECT id FROM a.t WHERE small = 3 AND code = 'abc'", "1"),
    ] {
        assert_eq!(list(&hub.url, sql).await, answer, "{sql}");
    }
    query(
        &hub.url,
        "INSERT INTO a.t (id, how, hows, small) VALUES (3, 'ok', '{ok}', 5);
         UPDATE a.t SET how = 'happy' WHERE how = 'sad'; DELETE FROM a.t WHERE how = 'ok'",
    )
    .await;
    let there = "SELECT string_agg(how::text, ' ' ORDER BY id) FROM t";
    assert_eq!(value(&source.url, there).await, "happy happy");
    // Nothing is left to do, and nothing differs.
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    assert_eq!(spcd.spcd(&["plan", "--refresh"]).stdout, "nothing to do\n");
    // A type that the hub gets is used. A view keeps its columns.
    query(&hub.url, "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')").await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    assert_eq!(columns(&hub.url, "a.t").await[1], "how mood");
    // What spcd's state loses costs no column.
    query(&hub.url, "DROP SCHEMA spcd CASCADE").await;
    assert_eq!(columns(&hub.url, "a.t").await.len(), 6);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_types_are_left_out_unless_they_are_asked_for_as_text() {
    let (hub, source) = (shared().database().await, shared().database().await);
    let tables = "
        CREATE TABLE pairs (id integer, pair pair, pairs pair[], smalls smaller[]);
        CREATE TABLE good (id integer);
        INSERT INTO pairs VALUES (1, '(1,x)', '{\"(1,x)\"}', '{1,2}')";
    query(&source.url, &format!("{TYPES}{tables}")).await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    let warning = "SELECT warnings[1] FROM spcd.connection_state";
    let warned = value(&hub.url, warning).await;
    assert!(
        warned.starts_with("table \"pairs\" is left out: "),
        "{warned}"
    );
    assert!(
        warned.contains("create the type in this database"),
        "{warned}"
    );
    assert!(warned.contains("`unknown_types = \"text\"`"), "{warned}");
    let text = "\n  import {\n    unknown_types = \"text\"\n  }\n}";
    spcd.write("a.spc", &postgres("a", &source).replace("\n}", text));
    crate::support::eventually("they are text", crate::support::DEADLINE, || async {
        let sql = "SELECT count(*) FROM pg_class WHERE relname = 'pairs' AND relkind = 'f'";
        (value(&hub.url, sql).await == "1").then_some(())
    })
    .await;
    until(&hub.url, &["a ready"]).await;
    let sql = "SELECT pair || pairs[1] || smalls[2] FROM a.pairs WHERE pair = '(1,x)'";
    assert_eq!(value(&hub.url, sql).await, "(1,x)(1,x)2");
    let sql = "SELECT cardinality(warnings) FROM spcd.connection_state";
    assert_eq!(value(&hub.url, sql).await, "0");
    spcd.write(
        "a.spc",
        &postgres("a", &source).replace("\n}", &text.replace("text\"", "txt\"")),
    );
    let told = spcd.spcd(&["check"]);
    assert!(
        told.stderr
            .contains("write `\"known\"` or `\"text\"` or `\"skip\"`"),
        "{told:?}"
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_and_collations_beside_such_types_cost_no_table() {
    let (hub, source) = (shared().database().await, shared().database().await);
    let tables = "
        CREATE DOMAIN tag AS text COLLATE \"C\"; CREATE DOMAIN label AS name;
        CREATE COLLATION own (provider = icu, locale = 'de');
        CREATE TABLE t (id integer PRIMARY KEY, how mood,
                        twice integer GENERATED ALWAYS AS (id * 2) STORED,
                        c text COLLATE \"C\", tag tag, label label, other name COLLATE \"default\");
        CREATE TABLE alien (how mood, c text COLLATE own);
        INSERT INTO t VALUES (1, 'sad', DEFAULT, 'b'), (2, 'ok', DEFAULT, 'B')";
    query(&source.url, &format!("{TYPES}{tables}")).await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    let collations = "
        SELECT string_agg(format('%s %s %s', attname, atttypid::regtype, attcollation::regcollation),
                          ', ' ORDER BY attnum)
        FROM pg_attribute WHERE attrelid = 'a.t'::regclass AND attnum > 3";
    assert_eq!(
        value(&hub.url, collations).await,
        "c text \"C\", tag text \"C\", label name \"C\", other name \"default\""
    );
    let sql = "SELECT id || how || twice FROM a.t WHERE how <> 'x' ORDER BY c";
    assert_eq!(list(&hub.url, sql).await, "2ok4 1sad2");
    let warned = "SELECT unnest(warnings) FROM spcd.connection_state ORDER BY 1";
    let warned = query(&hub.url, warned).await.concat();
    assert_eq!(warned.len(), 2, "{warned:?}");
    let expected =
        "table \"alien\" is left out: column c: collation \"public\".\"own\" does not exist";
    assert!(warned[0].starts_with(expected), "{warned:?}");
    let expected = "table \"t\" is imported without generated expressions, ";
    assert!(warned[1].starts_with(expected), "{warned:?}");
    assert_eq!(spcd.spcd(&["plan", "--refresh"]).stdout, "nothing to do\n");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_type_of_the_hub_is_not_taken_for_a_type_of_the_source() {
    let (hub, source) = (shared().database().await, shared().database().await);
    let tables = "
        CREATE TYPE span AS RANGE (subtype = float8);
        CREATE TABLE t (how mood); CREATE TABLE spans (span span); CREATE TABLE pairs (pair pair);
        INSERT INTO t VALUES ('sad'); INSERT INTO spans VALUES ('[1,2)'); INSERT INTO pairs VALUES ('(1,x)')";
    query(&source.url, &format!("{TYPES}{tables}")).await;
    let here = "CREATE TABLE mood (code integer, label text); CREATE VIEW span AS SELECT 1 AS a;
                CREATE TYPE pair AS (a integer, b text)";
    query(&hub.url, here).await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    assert_eq!(value(&hub.url, "SELECT how FROM a.t").await, "sad");
    assert_eq!(value(&hub.url, "SELECT (pair).b FROM a.pairs").await, "x");
    // What is read as no other type is left out, not broken in a query.
    let warned = "SELECT unnest(warnings) FROM spcd.connection_state";
    let warned = list(&hub.url, warned).await;
    let expected =
        "table \"spans\" is left out: the type public.span in this database is a table's row type";
    assert!(warned.starts_with(expected), "{warned}");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_statements_are_sent_for_many_such_columns_as_for_one() {
    let server = Cluster::start(&["log_statement = 'all'"]);
    let mut statements = Vec::new();
    for count in [1, 60] {
        let (hub, source) = (server.database().await, shared().database().await);
        let wide: Vec<String> = (0..count)
            .map(|number| format!("small{number} smaller, code{number} code, how{number} mood"))
            .collect();
        let table = format!("CREATE TABLE t ({})", wide.join(", "));
        query(&source.url, &format!("{TYPES}{table}")).await;
        let spcd = Spcd::new(&hub.url);
        spcd.write("a.spc", &postgres("a", &source));
        let applied = spcd.spcd(&["apply"]);
        assert_eq!(applied.code, 0, "{applied:?}");
        assert_eq!(columns(&hub.url, "a.t").await.len(), 3 * count);
        let session = format!("@{} spcd asking ", hub.name);
        let log = server.log();
        let asked = (log.lines()).filter(|line| line.contains(&session));
        let is_statement = |line: &&str| line.contains("statement: ") || line.contains("execute ");
        statements.push(asked.filter(is_statement).count());
    }
    assert!(statements[0] > 0);
    assert_eq!(statements[0], statements[1]);
}
