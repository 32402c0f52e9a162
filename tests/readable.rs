//! Tables and columns that the source's role may not read are imported and named.

use crate::support::hub::{guarded, reader, until};
use crate::support::{Spcd, query, shared};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_sources_role_may_not_read_is_named() {
    let hub = shared().database().await;
    let source = guarded("hunter2").await;
    query(
        &source.url("postgres"),
        "CREATE ROLE staff; GRANT staff TO reader;
         CREATE TABLE closed (id integer, note text);
         CREATE TABLE partly (id integer, salary numeric, \"No te\" text);
         GRANT SELECT (id) ON partly TO reader;
         CREATE TABLE written (id integer); GRANT INSERT ON written TO reader;
         CREATE TABLE of_all (id integer); GRANT SELECT ON of_all TO PUBLIC;
         CREATE TABLE of_staff (id integer); GRANT SELECT ON of_staff TO staff",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &reader("a", source.port(), "hunter2"));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let warnings = "SELECT unnest(warnings) FROM spcd.connection_state ORDER BY 1";
    assert_eq!(
        query(&hub.url, warnings).await.concat(),
        [
            "table \"closed\" cannot be read: the source's role may not SELECT from it",
            "table \"partly\" cannot be read in full: the source's role may not SELECT salary, No te",
            "table \"written\" cannot be read: the source's role may not SELECT from it",
        ]
    );
    let imported = "SELECT count(*) FROM pg_foreign_table";
    assert_eq!(query(&hub.url, imported).await.concat(), ["6"]);

    // Once the role may, nothing is said; nor of one that may read everything.
    for grant in [
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
        "REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM reader; GRANT pg_read_all_data TO reader",
        "REVOKE pg_read_all_data FROM reader; ALTER ROLE reader SUPERUSER",
    ] {
        query(&source.url("postgres"), grant).await;
        assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
        let said = query(&hub.url, warnings).await.concat();
        assert_eq!(said, Vec::<String>::new(), "{grant}");
    }
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_closed_and_a_source_that_does_not_tell_are_named() {
    let hub = shared().database().await;
    let source = guarded("hunter2").await;
    let mut spcd = Spcd::new(&hub.url);
    // Asked by reading the catalog, and by an import with options of its own.
    let own = "plugin \"own\" {\n  source = \"postgres\"\n  \
               import_options = { import_not_null = \"false\" }\n}\n";
    let block = reader("b", source.port(), "hunter2").replacen("\"postgres\"", "plugin.own", 1);
    spcd.write("a.spc", &reader("a", source.port(), "hunter2"));
    spcd.write("b.spc", &(own.to_owned() + &block));
    spcd.start();
    until(&hub.url, &["a ready", "b ready"]).await;
    let warnings =
        "SELECT connection_name || ': ' || unnest(warnings) FROM spcd.connection_state ORDER BY 1";
    assert_eq!(query(&hub.url, warnings).await.concat(), [""; 0]);
    for (sql, said) in [
        (
            "REVOKE SELECT ON t FROM reader",
            "table \"t\" cannot be read: the source's role may not SELECT from it",
        ),
        (
            "GRANT SELECT ON t TO reader; REVOKE USAGE ON SCHEMA public FROM PUBLIC",
            "no table can be read: the source's role has no USAGE on the schema \"public\"",
        ),
        (
            "GRANT USAGE ON SCHEMA public TO reader;
             REVOKE SELECT ON information_schema.enabled_roles FROM PUBLIC",
            "it is not known whether the source's role may read the tables: \
             permission denied for view enabled_roles",
        ),
    ] {
        query(&source.url("postgres"), sql).await;
        assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
        let found = query(&hub.url, warnings).await.concat();
        assert_eq!(found.len(), 2, "{sql}: {found:?}");
        for (name, found) in ["a", "b"].iter().zip(&found) {
            assert!(
                found.starts_with(&format!("{name}: {said}")),
                "{sql}: {found}"
            );
        }
    }
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_of_shared_tables_is_checked_by_itself() {
    let hub = shared().database().await;
    let source = guarded("hunter2").await;
    query(
        &source.url("postgres"),
        "CREATE SCHEMA app; CREATE TABLE app.t (id integer); CREATE TABLE app.u (id integer)",
    )
    .await;
    let plugin = "plugin \"app\" {\n  extension = \"postgres_fdw\"\n  schema_mode = \"static\"\n  \
                  column_name = \"column_name\"\n  server = [\"host\", \"port\", \"dbname\"]\n  \
                  mapping = [\"user\", \"password\"]\n  public = [\"host\", \"port\", \"dbname\"]\n}\n";
    let app = |name: &str, more: &str| {
        let block =
            reader(name, source.port(), "hunter2").replacen("\"postgres\"", "plugin.app", 1);
        let end = block.rfind('}').unwrap();
        format!(
            "{}  import {{\n    schema = \"app\"\n{more}  }}\n}}\n",
            &block[..end]
        )
    };
    let owner = app("owner", "").replace("\"reader\"", "\"postgres\"");
    let port = format!("port     = {}", source.port());
    let away = app("away", "").replace(&port, "port     = 1");
    let mut spcd = Spcd::new(&hub.url);
    let few = app("few", "    tables = [\"t\"]\n");
    spcd.write(
        "a.spc",
        &[plugin, &app("all", ""), &few, &owner, &away].concat(),
    );
    spcd.start();
    until(
        &hub.url,
        &["all ready", "away ready", "few ready", "owner ready"],
    )
    .await;
    let warnings = "SELECT connection_name || ': ' || unnest(warnings) FROM spcd.connection_state
                    WHERE connection_name <> 'away' ORDER BY 1";
    let closed = "no table can be read: the source's role has no USAGE on the schema \"app\"";
    assert_eq!(
        query(&hub.url, warnings).await.concat(),
        [format!("all: {closed}"), format!("few: {closed}")]
    );
    // A source that is down keeps no connection from tables that others have told.
    let of_away = "SELECT warnings[1] FROM spcd.connection_state WHERE connection_name = 'away'";
    let said = query(&hub.url, of_away).await.concat().concat();
    let unknown =
        "it is not known whether the source's role may read the tables: could not connect";
    assert!(said.starts_with(unknown), "{said}");
    spcd.logged("\"cannot check what the source's role may read\",\"connection\":\"away\",\"error\":\"could not");

    let open = "GRANT USAGE ON SCHEMA app TO reader; GRANT SELECT ON app.t TO reader";
    query(&source.url("postgres"), open).await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(
        query(&hub.url, warnings).await.concat(),
        ["all: table \"u\" cannot be read: the source's role may not SELECT from it"]
    );
    // A dry run says nothing else.
    let planned = spcd.spcd(&["plan"]);
    assert_eq!(planned.code, 0, "{}", planned.stdout);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_with_one_source_and_role_are_checked_by_one_question() {
    let hub = shared().database().await;
    let source = guarded("hunter2").await;
    let log = "ALTER ROLE reader SET log_statement = 'all'; ALTER ROLE postgres SET log_statement = 'all'";
    query(&source.url("postgres"), log).await;
    let plugin = "plugin \"app\" {\n  source = \"postgres\"\n  schema_mode = \"static\"\n}\n";
    let app = |name: &str| {
        reader(name, source.port(), "hunter2").replacen("\"postgres\"", "plugin.app", 1)
    };
    let owner = app("owner").replace("\"reader\"", "\"postgres\"");
    let readers: String = (0..10).map(|n| app(&format!("c{n}"))).collect();
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &[plugin, &readers, &owner].concat());
    spcd.start();
    let names: Vec<String> = (0..10).map(|n| format!("c{n} ready")).collect();
    let mut all: Vec<&str> = names.iter().map(String::as_str).collect();
    all.push("owner ready");
    until(&hub.url, &all).await;
    let questions = || {
        source
            .log()
            .matches("information_schema.enabled_roles")
            .count()
    };
    assert_eq!(questions(), 2);

    // A later request asks again: privileges may have changed.
    query(&source.url("postgres"), "REVOKE SELECT ON t FROM reader").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(questions(), 4);
    let warned = "SELECT count(*) FROM spcd.connection_state WHERE warnings <> '{}'";
    assert_eq!(query(&hub.url, warned).await.concat(), ["10"]);
    spcd.stop();
}
