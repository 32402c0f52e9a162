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
