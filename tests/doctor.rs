//! The doctor says what to type, and that is all that is needed.

use std::fs;

use crate::health::{WELL, until_health, watching};
use crate::support::http::Http;
use crate::support::hub::{guarded, reader, until};
use crate::support::{Cluster, DEADLINE, Spcd, eventually, query, try_query, value};

/// What a doctor's output says to type into psql.
fn cures(shown: &str) -> Vec<&str> {
    let lines = shown.lines().map(str::trim);
    let verbs = ["GRANT ", "ALTER ", "CREATE "];
    lines
        .filter(|line| verbs.iter().any(|verb| line.starts_with(verb)))
        .collect()
}

#[tokio::test]
async fn what_the_doctor_says_to_type_suffices_for_a_role_without_rights() {
    let (hub_server, source) = (Cluster::start(&[]), guarded("hunter2").await);
    let hub = hub_server.database().await;
    query(
        &hub.url,
        &format!(
            "CREATE ROLE \"the keeper\" LOGIN; CREATE ROLE spcd_users;
             CREATE ROLE asks LOGIN IN ROLE spcd_users;
             REVOKE TEMPORARY ON DATABASE \"{}\" FROM PUBLIC",
            hub.name
        ),
    )
    .await;
    let spcd = Spcd::new(&hub_server.url_as("the%20keeper", &hub.name));
    let text = format!(
        "connection \"shop\" {{\n plugin = \"postgres\"\n host = \"127.0.0.1\"\n port = {}\n dbname = \"postgres\"\n user = \"reader\"\n password = \"hunter2\"\n}}\n",
        source.port()
    );
    spcd.write("shop.spc", &text);
    fs::write(spcd.dir().join("list.csv"), "id\n1\n").unwrap();
    spcd.write(
        "list.spc",
        "connection \"lists\" {\n plugin = \"csv\"\n paths = [\"../list.csv\"]\n}\n",
    );

    // Who cannot begin is told where that is said.
    for command in ["run", "apply", "migrate"] {
        let refused = spcd.spcd(&[command]);
        assert_eq!(refused.code, 1, "{command}: {refused:?}");
        let told = &refused.stderr;
        assert!(told.contains("permission denied for database"), "{told}");
        assert!(told.contains("`spcd doctor` shows"), "{command}: {told}");
    }

    let mut said = Vec::new();
    let well = loop {
        let shown = spcd.spcd(&["doctor"]);
        assert!(
            !shown.stdout.contains("hunter2") && shown.stderr.is_empty(),
            "{shown:?}"
        );
        if shown.code == 0 {
            break shown;
        }
        let cures: Vec<String> = cures(&shown.stdout)
            .into_iter()
            .map(str::to_owned)
            .collect();
        // Each helps, so none is said twice.
        assert!(
            !cures.is_empty() && cures.iter().all(|cure| !said.contains(cure)),
            "{shown:?}"
        );
        for cure in cures {
            query(&hub.url, &cure).await;
            said.push(cure);
        }
    };
    assert!(
        well.stdout
            .contains("2 connections, no errors in the files"),
        "{well:?}"
    );
    let database = spcd_core::sql::ident(&hub.name);
    let mut expected = vec![
        "ALTER ROLE \"the keeper\" CREATEROLE;".to_owned(),
        "CREATE EXTENSION \"file_fdw\";".to_owned(),
        "CREATE EXTENSION \"postgres_fdw\";".to_owned(),
        format!("GRANT CREATE ON DATABASE {database} TO \"the keeper\";"),
        format!("GRANT TEMPORARY ON DATABASE {database} TO \"the keeper\";"),
        "GRANT USAGE ON FOREIGN DATA WRAPPER \"file_fdw\" TO \"the keeper\";".to_owned(),
        "GRANT USAGE ON FOREIGN DATA WRAPPER \"postgres_fdw\" TO \"the keeper\";".to_owned(),
        "GRANT pg_read_server_files TO \"the keeper\";".to_owned(),
    ];
    // From 16 on the right to alter roles is given role by role.
    if value(&hub.url, "SHOW server_version_num")
        .await
        .parse::<u32>()
        .unwrap()
        >= 160_000
    {
        expected.push("GRANT \"asks\" TO \"the keeper\" WITH ADMIN OPTION;".to_owned());
        expected.sort();
    }
    said.sort();
    assert_eq!(said, expected);

    // And it suffices: tables are made, a reader reads them, and finds them without their schema.
    let applied = spcd.spcd(&["apply"]);
    assert_eq!(applied.code, 0, "{applied:?}");
    until(&hub.url, &["lists ready", "shop ready"]).await;
    let asks = hub_server.url_as("asks", &hub.name);
    assert_eq!(value(&asks, "SELECT id FROM t").await, "7");
    assert_eq!(value(&asks, "SELECT id FROM list").await, "1");

    // A revoked privilege is reported.
    query(
        &hub.url,
        "ALTER SERVER shop OWNER TO postgres; ALTER FOREIGN TABLE shop.t OWNER TO postgres",
    )
    .await;
    let ill = spcd.spcd(&["doctor"]);
    assert_eq!(ill.code, 1, "{ill:?}");
    let back = [
        "ALTER SERVER \"shop\" OWNER TO \"the keeper\";",
        "ALTER FOREIGN TABLE \"shop\".\"t\" OWNER TO \"the keeper\";",
    ];
    assert_eq!(cures(&ill.stdout), back);
    for cure in back {
        query(&hub.url, cure).await;
    }
    assert_eq!(spcd.spcd(&["doctor"]).code, 0);
    assert!(try_query(&asks, "SELECT id FROM t").await.is_ok());
}

#[tokio::test]
async fn a_lock_table_that_is_too_small_is_told_with_the_size_that_is_enough() {
    let cluster = Cluster::start(&["max_locks_per_transaction = 10", "max_connections = 20"]);
    let hub = cluster.database().await;
    let spcd = Spcd::new(&hub.url);
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    spcd.write("a.spc", "");
    let well = spcd.spcd(&["doctor"]);
    assert_eq!(well.code, 0, "{well:?}");
    // As if a connection had 100 tables, whose drop takes 300 locks: 200 there are.
    query(
        &hub.url,
        "INSERT INTO spcd.applied (connection_name, target_hash, schema_oid, tables, fingerprint)
         SELECT 'wide', '', 0, pg_catalog.array_agg('t' || n), '' FROM generate_series(1, 100) n",
    )
    .await;
    let ill = spcd.spcd(&["doctor"]);
    assert_eq!(ill.code, 1, "{ill:?}");
    assert!(
        ill.stdout
            .contains("200 locks in all, and one statement may take 300")
            && ill
                .stdout
                .contains("ALTER SYSTEM SET max_locks_per_transaction = 64;"),
        "{ill:?}"
    );
}

#[test]
fn what_is_missing_on_the_machine_is_told_and_nothing_is_made() {
    let mut spcd = Spcd::with_private_cluster();
    let well = spcd.spcd(&["doctor"]);
    // Its config directory is empty.
    assert_eq!(well.code, 1, "{well:?}");
    for line in [
        "it contains no .spc file yet",
        "ok       the private cluster runs as",
        "ok       the server's programs",
        "`spcd run` creates it",
    ] {
        assert!(well.stdout.contains(line), "{line}: {well:?}");
    }
    assert!(!spcd.state_dir().exists());

    spcd.write("a.spc", "connection \"a\" {\n");
    spcd.env(
        "SPCD_CONFIG",
        &format!(
            "{}:{}",
            spcd.config_dir().display(),
            spcd.dir().join("no where").display()
        ),
    );
    let ill = spcd.spcd(&["doctor"]);
    assert!(
        ill.stdout.contains("1 error in the files") && ill.stdout.contains("spcd check"),
        "{ill:?}"
    );
    assert!(
        ill.stdout.contains("mkdir -p") && ill.stdout.contains("no where"),
        "{ill:?}"
    );

    // Where there is no database, that is what is missing.
    let lost = spcd.spcd(&["doctor", "--database", "postgres://u:hunter2@127.0.0.1:1/d"]);
    assert_eq!(lost.code, 1, "{lost:?}");
    assert!(
        lost.stdout.contains("Connection refused") && !lost.stdout.contains("hunter2"),
        "{lost:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_few_sessions_is_slow_and_gets_there() {
    let (server, source) = (Cluster::start(&[]), guarded("hunter2").await);
    let hub = server.database().await;
    let sql = format!(
        "CREATE ROLE low LOGIN CREATEROLE CONNECTION LIMIT 8; CREATE ROLE spcd_users;
         CREATE EXTENSION postgres_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO low;
         GRANT CREATE, TEMPORARY ON DATABASE \"{0}\" TO low",
        hub.name
    );
    query(&hub.url, &sql).await;
    let mut spcd = watching(&server.url_as("low", &hub.name));
    // The page's session is open all the time, too.
    Http::of(&mut spcd);
    let names: Vec<String> = (0..40).map(|n| format!("s{n:02}")).collect();
    let port = source.port();
    let blocks = |password: &str| -> String {
        names
            .iter()
            .map(|name| reader(name, port, password))
            .collect()
    };
    spcd.write("all.spc", &blocks("hunter2"));
    let shown = spcd.spcd(&["doctor"]);
    assert_eq!(shown.code, 1, "{shown:?}");
    assert_eq!(
        cures(&shown.stdout),
        ["ALTER ROLE \"low\" CONNECTION LIMIT 20;"],
        "{shown:?}"
    );

    let ready: Vec<String> = names.iter().map(|name| format!("{name} ready")).collect();
    let ready: Vec<&str> = ready.iter().map(String::as_str).collect();
    spcd.start();
    until(&hub.url, &ready).await;
    // Probes leave it room for what changes, and what has to look at what is there.
    until_health(&hub.url, "s00", WELL).await;
    query(
        &source.url("postgres"),
        "CREATE TABLE u (id integer); GRANT SELECT ON u TO reader",
    )
    .await;
    // As another role: it has no session left for a command.
    query(&hub.url, "SELECT spcd.refresh('{s07}')").await;
    eventually("the new table is there", DEADLINE, || async {
        let rows = try_query(&hub.url, "SELECT count(*) FROM s07.u").await;
        rows.is_ok().then_some(())
    })
    .await;
    spcd.remove("all.spc");
    spcd.write("one.spc", &reader("one", port, "hunter2"));
    until(&hub.url, &["one ready"]).await;
    let full = |line: &&str| line.contains("too many connections for role");
    let told = spcd.log().lines().filter(full).count();
    assert!(told < 20, "it was told {told} times");
    spcd.stop();

    query(&hub.url, "ALTER ROLE low CONNECTION LIMIT 20").await;
    let shown = spcd.spcd(&["doctor"]);
    assert_eq!(shown.code, 0, "{shown:?}");
}
