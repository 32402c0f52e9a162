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
