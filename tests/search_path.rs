//! The search path of those who query.

use crate::support::hub::{postgres, until};
use crate::support::{Cluster, Database, Spcd, query, role, value};

/// A hub of its own, since roles are the cluster's.
async fn hub() -> (Cluster, Database) {
    let cluster = Cluster::start(&[]);
    let hub = cluster.database().await;
    query(
        &hub.url,
        "CREATE ROLE spcd_users; CREATE ROLE reader LOGIN IN ROLE spcd_users;
         CREATE ROLE stranger LOGIN; CREATE ROLE \"Od\"\"d 'one\" LOGIN IN ROLE spcd_users;
         CREATE ROLE own LOGIN IN ROLE spcd_users; ALTER ROLE own SET search_path = mine;
         CREATE ROLE team IN ROLE spcd_users; CREATE ROLE indirect LOGIN IN ROLE team",
    )
    .await;
    let roles = ["reader", "stranger", "Od\"d 'one", "own"];
    role::grant_to_daemon(&hub.url, &roles).await;
    (cluster, hub)
}

async fn path_of(cluster: &Cluster, hub: &Database, role: &str) -> String {
    value(&cluster.url_as(role, &hub.name), "SHOW search_path").await
}

const ODD: &str = "Od%22d%20'one";
const DEFAULT: &str = "\"$user\", public";

#[tokio::test(flavor = "multi_thread")]
async fn direct_members_find_connections_by_table_name() {
    let (cluster, hub) = hub().await;
    query(&hub.url, "CREATE TABLE in_b (id integer)").await;
    let source = cluster.database().await;
    query(
        &source.url,
        "CREATE TABLE t (id integer); INSERT INTO t VALUES (7)",
    )
    .await;
    let port = crate::support::shared().port().to_string();
    let connection =
        |name: &str| postgres(name, &source).replace(&port, &cluster.port().to_string());
    let mut spcd = Spcd::new(&hub.url);
    let odd = "C \\\"x\\\"";
    spcd.write("c.spc", &format!("{}{}", connection("b"), connection(odd)));
    spcd.start();
    until(&hub.url, &["C \"x\" ready", "b ready"]).await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    let wanted = "public, \"C \"\"x\"\"\", b, spcd";
    for role in ["reader", ODD] {
        assert_eq!(path_of(&cluster, &hub, role).await, wanted);
    }
    let found = "SELECT c.relnamespace::regnamespace FROM pg_class c WHERE c.oid = 't'::regclass";
    assert_eq!(
        value(&cluster.url_as("reader", &hub.name), found).await,
        "\"C \"\"x\"\"\""
    );
    assert_eq!(path_of(&cluster, &hub, "own").await, "mine");
    for role in ["stranger", "indirect", "postgres"] {
        assert_eq!(path_of(&cluster, &hub, role).await, DEFAULT);
    }
    // Other databases are none of its business.
    let elsewhere = cluster.url_as("reader", "postgres");
    assert_eq!(value(&elsewhere, "SHOW search_path").await, DEFAULT);

    // It follows the files, and the prefix comes first.
    spcd.write(
        "o.spc",
        "options \"database\" {\n  search_path_prefix = \"b\"\n}\n",
    );
    spcd.write("d.spc", &connection("a"));
    until(&hub.url, &["C \"x\" ready", "a ready", "b ready"]).await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(
        path_of(&cluster, &hub, "reader").await,
        "b, public, \"C \"\"x\"\"\", a, spcd"
    );

    // Members come and go. A path that a user set stays.
    query(
        &hub.url,
        &format!(
            "GRANT spcd_users TO stranger; REVOKE spcd_users FROM \"Od\"\"d 'one\";
             ALTER ROLE reader IN DATABASE {} SET search_path = theirs",
            hub.name
        ),
    )
    .await;
    assert_eq!(spcd.spcd(&["plan"]).code, 2);
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(
        path_of(&cluster, &hub, "stranger").await,
        "b, public, \"C \"\"x\"\"\", a, spcd"
    );
    assert_eq!(path_of(&cluster, &hub, ODD).await, DEFAULT);
    assert_eq!(path_of(&cluster, &hub, "reader").await, "theirs");
    let reset = format!(
        "ALTER ROLE reader IN DATABASE {} RESET search_path",
        hub.name
    );
    query(&hub.url, &reset).await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(
        path_of(&cluster, &hub, "reader").await,
        "b, public, \"C \"\"x\"\"\", a, spcd"
    );

    // Nothing differs: nothing is written, also after another of the role's settings changed.
    let other = format!(
        "ALTER ROLE reader IN DATABASE {} SET work_mem = '5MB'",
        hub.name
    );
    query(&hub.url, &other).await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    let versions = "SELECT string_agg(xmin::text, ' ' ORDER BY x) FROM (
                        SELECT xmin, setrole::text AS x FROM pg_db_role_setting
                        UNION ALL SELECT xmin, role_name FROM spcd.role_search_path) y";
    let before = value(&hub.url, versions).await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    assert_eq!(value(&hub.url, versions).await, before);

    // A file that cannot be understood takes nothing off the path.
    spcd.write("d.spc", "connection \"a\" {\n  plugin = \"postgres\n");
    until(&hub.url, &["C \"x\" ready", "a error", "b ready"]).await;
    assert_eq!(spcd.spcd(&["wait", "b"]).code, 0);
    assert_eq!(value(&hub.url, versions).await, before);

    // Not managed: what it set is taken back, and only that.
    spcd.write(
        "o.spc",
        "options \"database\" {\n  manage_search_path = false\n}\n",
    );
    assert_eq!(spcd.spcd(&["wait", "b"]).code, 0);
    for role in ["reader", "stranger"] {
        assert_eq!(path_of(&cluster, &hub, role).await, DEFAULT);
    }
    assert_eq!(path_of(&cluster, &hub, "own").await, "mine");
    assert_eq!(
        value(&cluster.url_as("reader", &hub.name), "SHOW work_mem").await,
        "5MB"
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_are_altered_at_the_same_moment_get_it_all_the_same() {
    let (cluster, hub) = hub().await;
    let mut spcd = Spcd::new(&hub.url);
    // Another session holds the row of the role's settings: the ALTER waits, and then fails with XX000.
    let alter = format!("ALTER ROLE reader IN DATABASE {} SET work_mem", hub.name);
    query(&hub.url, &format!("{alter} = '6MB'")).await;
    let other = crate::support::connect(&hub.url).await.unwrap();
    other
        .batch_execute(&format!("BEGIN; {alter} = '7MB'"))
        .await
        .unwrap();
    spcd.start();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    crate::support::eventually("it waits for the row", crate::support::DEADLINE, || async {
        (value(&hub.url, waits).await != "0").then_some(())
    })
    .await;
    other.batch_execute("COMMIT").await.unwrap();
    crate::support::eventually("it is set", crate::support::DEADLINE, || async {
        (path_of(&cluster, &hub, "reader").await == "public, spcd").then_some(())
    })
    .await;
    assert_eq!(
        value(&cluster.url_as("reader", &hub.name), "SHOW work_mem").await,
        "7MB"
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_stay_while_the_file_that_sets_them_is_away() {
    let (cluster, hub) = hub().await;
    let spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", "");
    spcd.write(
        "shared/options.spc",
        "options \"database\" {\n  search_path = \"theirs\"\n}\n",
    );
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    assert_eq!(path_of(&cluster, &hub, "reader").await, "theirs, spcd");

    // As when a file system is not mounted.
    let shared = spcd.config_dir().join("shared");
    std::fs::remove_file(shared.join("options.spc")).unwrap();
    let applied = spcd.spcd(&["apply"]);
    assert_eq!(applied.code, 1, "{}", applied.stderr);
    assert!(
        applied.stderr.contains("holds no file any more"),
        "{}",
        applied.stderr
    );
    assert_eq!(path_of(&cluster, &hub, "reader").await, "theirs, spcd");

    std::fs::remove_dir(&shared).unwrap();
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    assert_eq!(path_of(&cluster, &hub, "reader").await, "public, spcd");
}
