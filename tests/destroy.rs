//! `destroy` removes all that spcd created and nothing else.

use crate::support::hub::{postgres, until};
use crate::support::{Cluster, Database, Spcd, query, role, shared, try_query, value};

/// Everything in a database but the system's own, and what is set for roles in it: one line each.
const ALL: &str = "
    SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
        SELECT pg_describe_object(d.classid, d.objid, 0) || coalesce(' ' || c.relacl::text, '')
        FROM (SELECT DISTINCT classid, objid FROM pg_depend WHERE deptype <> 'i') d
        LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
        WHERE d.objid >= 16384
        UNION ALL SELECT 'schema ' || nspname || coalesce(nspacl::text, '') FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'
        UNION ALL SELECT 'server ' || srvname FROM pg_foreign_server
        UNION ALL SELECT 'role ' || r.rolname || coalesce(s.setconfig::text, '')
        FROM pg_roles r LEFT JOIN pg_db_role_setting s ON s.setrole = r.oid
             AND s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) AS all_of_it (line)";

fn files(source: &Database) -> String {
    postgres("one", source)
        + &postgres("two", source)
        + "connection \"both\" {\n type = \"aggregator\"\n plugin = \"postgres\"\n connections = [\"*\"]\n}\n"
        + "connection \"broken\" {\n plugin = \"postgres\"\n frob = 1\n}\n"
}

#[tokio::test]
async fn all_that_spcd_made_goes_and_nothing_else() {
    let cluster = Cluster::start(&[]);
    let (hub, source) = (cluster.database().await, shared().database().await);
    query(&source.url, "CREATE TABLE t (id integer)").await;
    query(
        &hub.url,
        "CREATE EXTENSION IF NOT EXISTS postgres_fdw; CREATE TABLE public.own (id integer); CREATE SCHEMA theirs;
         CREATE SERVER theirs FOREIGN DATA WRAPPER postgres_fdw;
         CREATE FOREIGN TABLE theirs.t (id integer) SERVER theirs;
         CREATE ROLE spcd_users; CREATE ROLE reader LOGIN IN ROLE spcd_users",
    )
    .await;
    role::grant_to_daemon(&hub.url, &["reader"]).await;
    let before = value(&hub.url, ALL).await;
    let mut spcd = Spcd::new(&hub.url);
    assert!(
        spcd.spcd(&["destroy", "--yes"])
            .stdout
            .contains("created nothing")
    );

    spcd.write("all.spc", &files(&source));
    spcd.start();
    until(
        &hub.url,
        &["both ready", "broken error", "one ready", "two ready"],
    )
    .await;
    query(&hub.url, "CREATE VIEW public.mine AS SELECT id FROM one.t").await;

    // A daemon would make it all again.
    let led = spcd.spcd(&["destroy", "--yes"]);
    assert!(
        led.code == 1 && led.stderr.contains("stop it first"),
        "{led:?}"
    );
    spcd.stop();

    // Shown, and nothing done without a word.
    let shown = spcd.spcd(&["destroy"]);
    assert!(
        shown.code == 1 && shown.stderr.contains("--yes"),
        "{shown:?}"
    );
    for line in [
        "- connection \"one\"",
        "- connection \"both\"",
        "- connection \"broken\"",
        "- table t",
        "- search path of role \"reader\"",
        "- schemas \"spcd\"",
    ] {
        assert!(shown.stdout.contains(line), "{line}: {}", shown.stdout);
    }
    query(
        &hub.url,
        "SELECT * FROM public.mine; SELECT * FROM \"both\".t",
    )
    .await;

    // People's view stands in the way of its connection only.
    let blocked = spcd.spcd(&["destroy", "--yes"]);
    assert_eq!(blocked.code, 1, "{blocked:?}");
    assert!(blocked.stderr.contains("view public.mine"), "{blocked:?}");
    until(&hub.url, &["one error"]).await;
    query(&hub.url, "SELECT * FROM public.mine").await;
    // As do those on what is spcd's own.
    query(&hub.url, "DROP VIEW public.mine; CREATE VIEW public.watch AS SELECT status FROM spcd.connection_state").await;
    let blocked = spcd.spcd(&["destroy", "--yes"]);
    assert!(
        blocked.code == 1 && blocked.stderr.contains("watch"),
        "{blocked:?}"
    );
    query(
        &hub.url,
        "SELECT * FROM public.watch; SELECT spcd.refresh()",
    )
    .await;
    query(&hub.url, "DROP VIEW public.watch").await;

    let done = spcd.spcd(&["destroy", "--yes"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(value(&hub.url, ALL).await, before);
    // And it can begin again.
    let again = spcd.spcd(&["apply"]);
    assert!(again.stdout.contains("3 ready, 1 in error"), "{again:?}");
}

#[tokio::test]
async fn a_private_cluster_goes_too_unless_it_holds_what_people_made() {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let spcd = Spcd::with_private_cluster();
    assert!(
        spcd.spcd(&["destroy", "--yes"])
            .stdout
            .contains("nothing to remove")
    );
    assert!(!spcd.state_dir().join("cluster").exists());
    spcd.write("all.spc", &files(&source));
    let made = spcd.spcd(&["apply"]);
    assert!(made.stdout.contains("3 ready, 1 in error"), "{made:?}");
    let own = spcd.spcd(&["query", "CREATE TABLE public.own (id integer)"]);
    assert_eq!(own.code, 0, "{own:?}");

    let kept = spcd.spcd(&["destroy", "--yes"]);
    assert_eq!(kept.code, 0, "{kept:?}");
    assert!(
        kept.stdout.contains("stays") && kept.stdout.contains("table public.own"),
        "{kept:?}"
    );
    assert!(spcd.state_dir().join("cluster/data").exists());

    assert_eq!(spcd.spcd(&["query", "DROP TABLE public.own"]).code, 0);
    let gone = spcd.spcd(&["destroy", "--yes"]);
    assert_eq!(gone.code, 0, "{gone:?}");
    assert!(!spcd.state_dir().join("cluster").exists(), "{gone:?}");
    let again = spcd.spcd(&["destroy", "--yes"]);
    assert!(again.stdout.contains("nothing to remove"), "{again:?}");
}

#[test]
fn what_other_programs_clients_find_goes_as_well() {
    let mut spcd = Spcd::with_private_cluster();
    let cluster = spcd.state_dir().join("cluster");
    spcd.env("SPCD_COMPAT", "steampipe");
    spcd.write("a.spc", "");
    let made = spcd.spcd(&["apply"]);
    assert_eq!(made.code, 0, "{made:?}");
    let gone = spcd.spcd(&["destroy", "--yes"]);
    assert_eq!(gone.code, 0, "{gone:?}");
    assert!(
        gone.stdout.contains("steampipe_internal") && !cluster.exists(),
        "{gone:?}"
    );
}

#[tokio::test]
async fn a_hostile_name_is_removed_like_any_other() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE \"it's; a \"\"table\" (id integer)",
    )
    .await;
    let spcd = Spcd::new(&hub.url);
    spcd.write("all.spc", &postgres("a'; DROP SCHEMA public; --", &source));
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    let done = spcd.spcd(&["destroy", "--yes"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        try_query(&hub.url, "SELECT FROM spcd.connection_state")
            .await
            .is_err()
    );
    assert_eq!(
        value(
            &hub.url,
            "SELECT count(*) FROM pg_namespace WHERE nspname = 'public'"
        )
        .await,
        "1"
    );
}
