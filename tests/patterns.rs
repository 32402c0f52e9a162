//! Patterns of an import that match no table of the source are named, with what explains it.

use crate::support::hub::{STATIC, made_by, postgres_with, until};
use crate::support::mariadb::{MariaDb, mysql};
use crate::support::{Spcd, query, shared};

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_that_matches_nothing_is_a_warning() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE users (id integer); CREATE TABLE orders (id integer)").await;
    let mut spcd = Spcd::new(&hub.url);
    let import = |tables: &str, exclude: &str| {
        format!("  import {{\n    tables = {tables}\n    exclude = {exclude}\n  }}\n")
    };
    let dynamic = import(
        r#"["users", "USERS", "public.users", "u%", "gone"]"#,
        r#"["orders", "ORDERS", "nothing*"]"#,
    );
    let fixed = import(r#"["users", "Orders"]"#, "[]");
    spcd.write("a.spc", &postgres_with("a", &source, &dynamic));
    let block = postgres_with("b", &source, &fixed);
    let block = block.replace("\"postgres\"\n  host", "plugin.app\n  host");
    spcd.write("b.spc", &[STATIC, &block].concat());
    // None at all.
    let none = import(r#"["Users"]"#, "[]");
    spcd.write("c.spc", &postgres_with("c", &source, &none));
    spcd.start();
    until(&hub.url, &["a ready", "b ready", "c ready"]).await;
    let warnings = async |name: &str| {
        let sql = format!(
            "SELECT unnest(warnings) FROM spcd.connection_state WHERE connection_name = '{name}'
             ORDER BY 1"
        );
        query(&hub.url, &sql).await.concat()
    };
    let said = |list: &str, pattern: &str, hint: &str| {
        format!("the pattern {pattern:?} in import.{list} matches no table of the source{hint}")
    };
    let case = |name: &str| format!("; patterns are case-sensitive: there is {name:?}");
    let mut wanted = vec![
        said("exclude", "ORDERS", &case("orders")),
        said("exclude", "nothing*", ""),
        said("tables", "USERS", &case("users")),
        said("tables", "gone", ""),
        said(
            "tables",
            "public.users",
            "; patterns match names without their schema, write \"users\"",
        ),
        said("tables", "u%", "; `%` is not a wildcard, write `*`"),
    ];
    wanted.sort();
    let mut found = warnings("a").await;
    found.sort();
    assert_eq!(found, wanted);
    assert_eq!(
        warnings("b").await,
        [said("tables", "Orders", &case("orders"))]
    );
    assert_eq!(
        warnings("c").await,
        [said("tables", "Users", &case("users"))]
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_of_an_import_statement_are_explained_as_well() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE users (id integer); CREATE TABLE orders (id integer)").await;
    let mut spcd = Spcd::new(&hub.url);
    let own = "plugin \"own\" {\n  source = \"postgres\"\n  \
               import_options = { import_not_null = \"false\" }\n}\n";
    let import = "  import {\n    tables = [\"USERS\", \"public.x\", \"other.x\"]\n    \
                  exclude = [\"ORDERS\", \"orders\"]\n  }\n";
    let block = postgres_with("a", &source, import).replacen("\"postgres\"", "plugin.own", 1);
    spcd.write("a.spc", &(own.to_owned() + &block));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let sql = "SELECT unnest(warnings) FROM spcd.connection_state ORDER BY 1";
    let none = |list: &str, pattern: &str, hint: &str| {
        format!("the pattern {pattern:?} in import.{list} matches no table of the source{hint}")
    };
    let case = |name: &str| format!("; patterns are case-sensitive: there is {name:?}");
    assert_eq!(
        query(&hub.url, sql).await.concat(),
        [
            none("exclude", "ORDERS", &case("orders")),
            none("tables", "USERS", &case("users")),
            none("tables", "other.x", ""),
            none(
                "tables",
                "public.x",
                "; patterns match names without their schema, write \"x\""
            ),
        ]
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_are_explained_where_a_table_fails_the_import_of_all() {
    let source = MariaDb::start();
    // The wrapper does not escape its name, so an import of all fails.
    source.run(
        "CREATE DATABASE shop; USE shop; CREATE TABLE users (id int); CREATE TABLE orders (id int);
         CREATE TABLE `it's` (id int)",
    );
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let import = "  user = \"root\"\n  import {\n    tables = [\"users\", \"Orders\", \"it*\"]\n    \
                  exclude = [\"it*\", \"gone\"]\n  }\n";
    spcd.write("a.spc", &mysql("a", source.port(), import));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let sql = "SELECT unnest(warnings) FROM spcd.connection_state ORDER BY 1";
    assert_eq!(
        query(&hub.url, sql).await.concat(),
        [
            "the pattern \"Orders\" in import.tables matches no table of the source; patterns are \
             case-sensitive: there is \"orders\"",
            "the pattern \"gone\" in import.exclude matches no table of the source",
        ]
    );
    spcd.stop();
}
