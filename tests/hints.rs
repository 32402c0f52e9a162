//! Messages that say what to type.

use crate::support::hub::{made_by, postgres, until};
use crate::support::{Spcd, query, shared, value};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_trigger_that_refuses_a_table_is_named() {
    let (hub, source) = (
        shared().database().await,
        made_by("CREATE TABLE t (id integer)").await,
    );
    query(
        &hub.url,
        "CREATE FUNCTION public.no_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE EXCEPTION 'only on Mondays'; END $$;
         CREATE EVENT TRIGGER no_ddl ON ddl_command_end WHEN TAG IN ('CREATE FOREIGN TABLE')
             EXECUTE FUNCTION public.no_ddl()",
    )
    .await;
    let spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.spcd(&["apply"]);
    let told = "SELECT concat(error, warnings) FROM spcd.connection_state";
    let told = value(&hub.url, told).await;
    assert!(
        told.contains("only on Mondays; raised by public.no_ddl()"),
        "{told}"
    );
    query(&hub.url, "DROP EVENT TRIGGER no_ddl").await;
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    until(&hub.url, &["a ready"]).await;
}

#[test]
fn check_lists_a_connection_whose_name_is_refused() {
    let spcd = Spcd::new("postgres://127.0.0.1:1/none");
    spcd.write(
        "a.spc",
        "connection \"pg_x\" {\n  plugin = \"postgres\"\n}\n",
    );
    let checked = spcd.spcd(&["check", "--json"]);
    assert_eq!(checked.code, 1);
    let report: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
    let listed = &report["connections"][0];
    assert_eq!(listed["name"], "pg_x");
    let error = listed["error"].as_str().unwrap();
    assert!(error.contains("names that begin with `pg_`"), "{error}");
}
