//! What wrappers say during an import, and what an import makes of it: a table that cannot be
//! imported costs that table, and the warning says which.

use crate::support::hub::{columns, until};
use crate::support::mariadb::{MariaDb, mysql};
use crate::support::script::Script;
use crate::support::{Spcd, query, shared, value};

mod encoding;
mod expressions;
mod namesakes;
mod wanted;

async fn warnings(hub: &str) -> Vec<String> {
    let sql = "SELECT unnest(warnings) FROM spcd.connection_state";
    let mut warnings = query(hub, sql).await.concat();
    warnings.sort();
    warnings
}

async fn tables(hub: &str, schema: &str) -> Vec<String> {
    let sql = format!(
        "SELECT relname FROM pg_class WHERE relkind = 'f' AND relnamespace = '{schema}'::regnamespace
         ORDER BY relname COLLATE \"C\""
    );
    query(hub, &sql).await.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_mysql_fdw_skips_stays() {
    let source = MariaDb::start();
    source.run(
        "CREATE DATABASE shop; USE shop; CREATE TABLE t (id int); CREATE TABLE gone (id int);
         CREATE TABLE always (f SET('x','y'))",
    );
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &mysql("c", source.port(), "  user = \"root\"\n"));
    spcd.start();
    until(&hub.url, &["c ready"]).await;
    assert_eq!(tables(&hub.url, "c").await, ["gone", "t"]);
    let words = |table: &str| {
        format!("skipping import for relation {table:?}; MySQL SET columns are not supported.")
    };
    let never = format!("the wrapper warns: {}", words("always"));
    assert_eq!(warnings(&hub.url).await, [never.as_str()]);
    query(&hub.url, "CREATE VIEW public.v AS SELECT id FROM c.t").await;
    let made = "SELECT 'c.t'::regclass::oid";
    let before = value(&hub.url, made).await;

    source.run("USE shop; ALTER TABLE t ADD f SET('x','y'); DROP TABLE gone");
    assert_eq!(spcd.spcd(&["refresh", "c", "--wait"]).code, 0);
    assert_eq!(tables(&hub.url, "c").await, ["t"]);
    assert_eq!(value(&hub.url, made).await, before);
    let stays = format!("table \"t\" stays as it was: {}", words("t"));
    assert_eq!(warnings(&hub.url).await, [stays, never]);

    // It follows again, and what the source lost goes, once the wrapper can read all of it.
    source.run("USE shop; ALTER TABLE t DROP f, ADD more int; DROP TABLE always");
    assert_eq!(spcd.spcd(&["refresh", "c", "--wait"]).code, 0);
    assert_eq!(
        columns(&hub.url, "c.t").await,
        ["id integer", "more integer"]
    );
    assert_eq!(warnings(&hub.url).await, Vec::<String>::new());
    query(&hub.url, "DROP VIEW public.v").await;
    source.run("USE shop; DROP TABLE t; CREATE TABLE fresh (id int)");
    assert_eq!(spcd.spcd(&["refresh", "c", "--wait"]).code, 0);
    assert_eq!(tables(&hub.url, "c").await, ["fresh"]);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_postgres_cuts_costs_its_table() {
    let source = MariaDb::start();
    // Ten Cyrillic letters more than fit into 63 bytes.
    let long = "ж".repeat(41);
    source.run(&format!(
        "CREATE DATABASE shop CHARACTER SET utf8mb4; USE shop; CREATE TABLE good (id int);
         CREATE TABLE latin (id int, {c64} int); CREATE TABLE cyrillic (`{long}` int);
         CREATE TABLE `{long}` (id int)",
        c64 = "c".repeat(64)
    ));
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &mysql("c", source.port(), "  user = \"root\"\n"));
    spcd.start();
    until(&hub.url, &["c ready"]).await;
    assert_eq!(tables(&hub.url, "c").await, ["good"]);
    let warned = warnings(&hub.url).await;
    assert_eq!(warned.len(), 3, "{warned:?}");
    let column = format!("the name of its column {:?} is longer", "c".repeat(64));
    assert!(
        warned[1].starts_with("table \"latin\" is left out: "),
        "{warned:?}"
    );
    assert!(warned[1].contains(&column), "{warned:?}");
    assert!(
        warned[0].contains(&format!("its column {long:?} is longer")),
        "{warned:?}"
    );
    assert!(
        warned[2].contains(&format!("its name {long:?} is longer")),
        "{warned:?}"
    );

    // One that is there stays when its column is renamed to such a name.
    source.run(&format!(
        "USE shop; ALTER TABLE good CHANGE id {} int",
        "d".repeat(64)
    ));
    assert_eq!(spcd.spcd(&["refresh", "c", "--wait"]).code, 0);
    assert_eq!(columns(&hub.url, "c.good").await, ["id integer"]);
    let warned = warnings(&hub.url).await;
    assert!(
        warned
            .iter()
            .any(|text| text.starts_with("table \"good\" stays as it was: ")),
        "{warned:?}"
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapper_is_heard_whatever_it_says() {
    let hub = shared().database().await;
    let script = Script::wrapper(&hub.url).await;
    let create = |table: &str| {
        format!(
            "CREATE FOREIGN TABLE {table} (id int) SERVER {{server}} OPTIONS (layer 'Layer {table}')\n"
        )
    };
    script.says(&[create("a"), create("b"), create("c"), create("d")].concat());
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &script.connection("s", ""));
    spcd.start();
    until(&hub.url, &["s ready"]).await;
    assert_eq!(tables(&hub.url, "s").await, ["a", "b", "c", "d"]);

    // By its name there, in a notice, in the detail; what is named nowhere is gone.
    script.says(
        "WARNING cannot read \"Layer a\"\n\
         NOTICE skipping \"b\"\n\
         WARNING a table is skipped | It was \"c\".\n\
         WARNING the licence ends soon\n",
    );
    assert_eq!(spcd.spcd(&["refresh", "s", "--wait"]).code, 0);
    assert_eq!(tables(&hub.url, "s").await, ["a", "b", "c"]);
    assert_eq!(
        warnings(&hub.url).await,
        [
            "table \"a\" stays as it was: cannot read \"Layer a\"",
            "table \"b\" stays as it was: skipping \"b\"",
            "table \"c\" stays as it was: a table is skipped; It was \"c\".",
            "the wrapper warns: the licence ends soon",
        ]
    );
    // Equal in, nothing out.
    let events = "SELECT count(*) FROM spcd.connection_event";
    let before = value(&hub.url, events).await;
    assert_eq!(spcd.spcd(&["refresh", "s", "--wait"]).code, 0);
    assert_eq!(value(&hub.url, events).await, before);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_extensions_are_found_wherever_they_are() {
    let hub = shared().database().await;
    query(
        &hub.url,
        "CREATE SCHEMA \"Odd place\"; CREATE EXTENSION hstore SCHEMA \"Odd place\"",
    )
    .await;
    let script = Script::wrapper(&hub.url).await;
    let create = |table: &str, data_type: &str| {
        format!(
            "CREATE FOREIGN TABLE IF NOT EXISTS {table} (id int, x {data_type}) SERVER {{server}}\n"
        )
    };
    let all = [
        create("good", "text"),
        create("path", "ltree"),
        create("pairs", "hstore"),
        create("nowhere", "nosuchtype"),
    ];
    script.says(&all.concat());
    let mut spcd = Spcd::new(&hub.url);
    spcd.write(
        "a.spc",
        &script.connection("s", "  requires = [\"ltree\", \"nosuchextension\"]\n"),
    );
    spcd.start();
    until(&hub.url, &["s ready"]).await;
    assert_eq!(tables(&hub.url, "s").await, ["good", "pairs", "path"]);
    let types = "SELECT format_type(atttypid, -1) FROM pg_attribute
                 WHERE attname = 'x' AND attrelid IN ('s.path'::regclass, 's.pairs'::regclass)
                 ORDER BY 1";
    query(&hub.url, "SET search_path = pg_catalog").await;
    assert_eq!(
        query(&hub.url, types).await.concat(),
        ["\"Odd place\".hstore", "ltree"]
    );
    let warned = warnings(&hub.url).await;
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(
        warned[0].starts_with("table \"nowhere\" is left out: ")
            && warned[0].contains("nosuchtype"),
        "{warned:?}"
    );
    // It comes with its type, and nothing else changes then.
    query(&hub.url, "CREATE EXTENSION citext").await;
    script.says(&all.concat().replace("nosuchtype", "citext"));
    assert_eq!(spcd.spcd(&["refresh", "s", "--wait"]).code, 0);
    assert_eq!(
        tables(&hub.url, "s").await,
        ["good", "nowhere", "pairs", "path"]
    );
    assert_eq!(warnings(&hub.url).await, Vec::<String>::new());
    spcd.stop();
}
