//! The daemon as the role of the documented set-up: an owner of the database without superuser rights.

use crate::health::{WELL, health, until_health, watching};
use crate::support::hub::{guarded, reader, until, until_error};
use crate::support::{Cluster, DEADLINE, Spcd, eventually, query, value};

/// A hub whose daemon connects as `keeper`, and the URL of a superuser there.
async fn hub(server: &Cluster) -> (Spcd, String) {
    let admin = server.url("hub");
    query(
        &server.url("postgres"),
        "CREATE ROLE keeper LOGIN CREATEROLE; CREATE ROLE spcd_users; CREATE ROLE reader LOGIN IN ROLE spcd_users",
    )
    .await;
    query(&server.url("postgres"), "CREATE DATABASE hub OWNER keeper").await;
    query(
        &admin,
        "CREATE EXTENSION postgres_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO keeper;
         GRANT spcd_users TO keeper WITH ADMIN OPTION",
    )
    .await;
    (watching(&server.url_as("keeper", "hub")), admin)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_superuser_rights_does_its_whole_work() {
    let server = Cluster::start(&[]);
    let remote = guarded("hunter2").await;
    let url = remote.url("postgres");
    let (mut spcd, admin) = hub(&server).await;
    let reads = server.url_as("reader", "hub");
    for name in ["a", "b"] {
        spcd.write(
            &format!("{name}.spc"),
            &reader(name, remote.port(), "hunter2"),
        );
    }
    spcd.write(
        "all.spc",
        "connection \"all\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  connections = [\"a\", \"b\"]\n}\n",
    );
    spcd.start();
    until(&admin, &["a ready", "all ready", "b ready"]).await;
    assert_eq!(value(&reads, "SELECT id FROM a.t").await, "7");
    assert_eq!(value(&reads, "SELECT count(*) FROM \"all\".t").await, "2");

    // Probes.
    let reachable = "SELECT bool_and(reachable) FROM spcd.connection_health
                     WHERE connection_name IN ('a', 'b') HAVING count(reachable) = 2";
    eventually("the probes answer", DEADLINE, || async {
        query(&admin, reachable).await.into_iter().flatten().next()
    })
    .await;
    let reconnected = spcd.spcd(&["reconnect", "a"]);
    assert_eq!(reconnected.code, 0, "{reconnected:?}");
    assert!(
        reconnected.stdout.contains("its source answers"),
        "{reconnected:?}"
    );
    assert_eq!(spcd.spcd(&["disconnect", "a"]).code, 0);
    assert_eq!(spcd.spcd(&["reconnect", "a"]).code, 0);

    // Changes at the source, by hand and in the files.
    query(&url, "CREATE VIEW v AS SELECT 1 AS one; GRANT SELECT ON v TO reader; ALTER TABLE t ADD more text").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(value(&reads, "SELECT one FROM a.v").await, "1");
    query(&admin, "SET ROLE keeper; DROP FOREIGN TABLE b.t CASCADE").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(
        value(&reads, "SELECT count(more) FROM \"all\".t").await,
        "0"
    );
    spcd.write("a.spc", &reader("a", remote.port(), "wrong"));
    until_error(&admin, "a", "password").await;
    spcd.remove("a.spc");
    until(&admin, &["all ready", "b ready"]).await;

    // A source that asks for no password is none for an ordinary role, which is told what to write.
    let open = reader("open", remote.port(), "").replace("reader", "postgres");
    let open: Vec<&str> = open
        .lines()
        .filter(|line| !line.contains("password"))
        .collect();
    spcd.write("open.spc", &(open.join("\n") + "\n"));
    let error = until_error(&admin, "open", "password is required").await;
    let advice =
        "(write `password`, or, if spcd's role is a superuser, `password_required = false`)";
    assert!(error.ends_with(advice), "{error}");
    spcd.remove("open.spc");
    until(&admin, &["all ready", "b ready"]).await;

    // A take-over, and the end.
    let mut second = Spcd::beside(&spcd);
    second.start();
    second.logged("another daemon leads");
    spcd.kill9();
    until(&admin, &["all ready", "b ready"]).await;
    second.stop();
    let destroyed = second.spcd(&["destroy", "--yes"]);
    assert_eq!(destroyed.code, 0, "{destroyed:?}");
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname ~ '^(spcd|a$|b$|all$)'";
    assert_eq!(value(&admin, left).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_another_owner_stays_as_it_is_and_the_grant_is_named() {
    let server = Cluster::start(&[]);
    let remote = guarded("hunter2").await;
    let (mut spcd, admin) = hub(&server).await;
    spcd.write("a.spc", &reader("a", remote.port(), "hunter2"));
    spcd.start();
    until(&admin, &["a ready"]).await;
    let owned = "CREATE ROLE \"The other\"; ALTER FOREIGN TABLE a.t OWNER TO \"The other\"";
    query(&admin, owned).await;
    let more =
        "ALTER TABLE t ADD more text; CREATE TABLE u (id integer); GRANT SELECT ON u TO reader";
    query(&remote.url("postgres"), more).await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    let columns = "SELECT string_agg(attrelid::regclass || '.' || attname, ' ' ORDER BY attrelid::regclass::text, attnum)
                   FROM pg_attribute WHERE attrelid IN ('a.t'::regclass, 'a.u'::regclass) AND attnum > 0";
    assert_eq!(value(&admin, columns).await, "a.t.id a.u.id");
    let warnings = "SELECT connection_name || ': ' || unnest(warnings) FROM spcd.connection_state";
    let told = query(&admin, warnings).await.concat();
    let reason = "it belongs to role \"The other\", and spcd's role has none of its rights: \
                  GRANT \"The other\" TO \"keeper\"";
    assert!(
        told.iter()
            .any(|one| one.starts_with("a: table \"t\"") && one.contains(reason)),
        "{told:?}"
    );
    until(&admin, &["a ready"]).await;

    query(&admin, "GRANT \"The other\" TO \"keeper\"").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(value(&admin, columns).await, "a.t.id a.t.more a.u.id");
    assert_eq!(query(&admin, warnings).await.concat(), [""; 0]);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_owner_is_an_error_that_is_tried_at_growing_intervals() {
    let server = Cluster::start(&[]);
    let remote = guarded("hunter2").await;
    let (mut spcd, admin) = hub(&server).await;
    spcd.write("a.spc", &reader("a", remote.port(), "hunter2"));
    spcd.start();
    until(&admin, &["a ready"]).await;
    until_health(&admin, "a", WELL).await;
    query(&admin, "CREATE ROLE other; ALTER SERVER a OWNER TO other").await;
    let changed =
        reader("a", remote.port(), "hunter2").replace("host ", "fetch_size = 50\n  host ");
    assert!(changed.contains("fetch_size"), "{changed}");
    spcd.write("a.spc", &changed);
    let error = until_error(&admin, "a", "must be owner of foreign server").await;
    assert!(
        error.contains("`spcd doctor` says what to grant"),
        "{error}"
    );

    // The source was well all along: its probes are no reason for another attempt.
    let attempts = || {
        let log = spcd.log();
        log.lines()
            .filter(|line| line.contains("must be owner"))
            .count()
    };
    let probes = || async { health(&admin, "a", "last_checked").await };
    let (mut last, before) = (probes().await, attempts());
    for _ in 0..6 {
        last = eventually("another probe", DEADLINE, || async {
            Some(probes().await).filter(|one| *one != last)
        })
        .await;
    }
    let after = attempts();
    assert!(
        after - before < 3,
        "{before} attempts before, {after} after six probes"
    );
    assert_eq!(health(&admin, "a", "reachable").await, "t");

    query(&admin, "ALTER SERVER a OWNER TO keeper").await;
    let mended = spcd.spcd(&["refresh", "--wait", "a"]);
    assert_eq!(mended.code, 0, "{mended:?}");
    until(&admin, &["a ready"]).await;
    let options =
        "SELECT srvoptions::text ~ 'fetch_size=50' FROM pg_foreign_server WHERE srvname = 'a'";
    assert_eq!(value(&admin, options).await, "t");
    spcd.stop();
}
